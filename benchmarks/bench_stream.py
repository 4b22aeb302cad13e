"""News as they happen, from files of sessions and of their times to the figures of the test day.

    python benchmarks/bench_stream.py --train_files train.txt --train_times train_times.txt \\
        --test_files test.txt --test_times test_times.txt -- --recipe strong --epochs 2

Times are in seconds. The parameters of the score are found on the sessions that begin in the
--fit_hours before the first click of the test files, with a model trained on the sessions before
them; then a model is trained on all training sessions and evaluated with these parameters. With
--ablation the test day is replayed again with each part of the score switched off, the other
weights as they are. Whatever follows -- goes to train.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile

import common

PARTS = ("readers", "content", "popularity", "transitions")


def split(args, work):
    """Writes the sessions before the day of the fit and those of it. Returns {part: paths}."""
    with open(args.test_times[0], "rb") as f:
        begins = min(int(line.split()[0]) for line in f if line.strip())
    begins -= round(args.fit_hours * 3600)
    paths = {f"{part}_{kind}": os.path.join(work, f"{part}_{kind}")
             for part in ("train", "test") for kind in ("files", "times")}
    with contextlib.ExitStack() as stack:
        out = {name: stack.enter_context(open(path, "wb")) for name, path in paths.items()}
        for files, times in zip(args.train_files, args.train_times):
            with open(files, "rb") as f, open(times, "rb") as t:
                for session, line in zip(f, t):
                    part = "test" if int(line.split()[0]) >= begins else "train"
                    out[f"{part}_files"].write(session)
                    out[f"{part}_times"].write(line)
    return {name: [path] for name, path in paths.items()}


def prepare(files, work, train_flags):
    """Preprocesses and trains. Returns the flags of evaluate_stream.py, and seconds of training."""
    flags = [flag for name, paths in files.items() for flag in (f"--{name}", *paths)]
    common.run_script("preprocess.py", "sessions", *flags, "--output_dir", work)
    paths = ["--vocab_path", f"{work}/vocab.txt", "--model_dir", f"{work}/model"]
    _, seconds, _ = common.run_script(*common.TRAIN, *paths, "--train_dir", f"{work}/train_data",
                                      *train_flags)
    return [*paths, "--test_dir", f"{work}/test_data", "--times", f"{work}/test_times",
            "--warm_dir", f"{work}/train_data", "--warm_times", f"{work}/train_times"], seconds


def figures(out):
    """{(method, labels): (recall, mrr)} and {method: clicks/s} from what was printed."""
    lines = re.findall(r"^(\w+) +(\w+) +queries:\d+ recall@20:(\S+) mrr@20:(\S+)", out, re.M)
    rates = re.findall(r"^(\w+) +all .* clicks/s:(\d+)", out, re.M)
    return {(name, part): (_number(recall), _number(mrr)) for name, part, recall, mrr in lines}, \
        dict(rates)


def _number(text):
    return float("nan") if text == "n/a" else float(text)


def print_rows(out, names):
    """A row for each method; names: {method: what to call it}"""
    metrics, rates = figures(out)
    for method, name in names.items():
        parts = (metrics[method, part] for part in ("all", "known", "unknown"))
        print(f"| {name} |", " | ".join("%.1f / %.1f" % (100 * r, 100 * m) for r, m in parts),
              f"| {int(rates[method]):,} |", flush=True)


def main(argv=None):
    parser, own_flags, train_flags = common.parser_and_flags(__doc__, argv)
    add = parser.add_argument
    for part in ("train", "test"):
        add(f"--{part}_files", nargs="+", required=True,
            help="a session a line, raw ids with white space between")
        add(f"--{part}_times", nargs="+", required=True,
            help="the times of their clicks, in whole seconds")
    add("--fit_hours", type=float, default=24,
        help="how long the parameters are fitted on, before the first click of the test files")
    add("--ablation", action="store_true",
        help="replay again with each part of the score switched off")
    add("--keep", help="also copy parameters, table and plot to this directory")
    args = parser.parse(own_flags)
    with tempfile.TemporaryDirectory() as work:
        day, _ = prepare(split(args, work), os.path.join(work, "fit"), train_flags)
        test, seconds = prepare({name: getattr(args, name) for name in (
            "train_files", "train_times", "test_files", "test_times")},
            os.path.join(work, "test"), train_flags)
        print(f"training: {seconds:.0f} s")
        scoring = os.path.join(work, "stream.json")
        out, seconds, _ = common.run_script("evaluate_stream.py", *day, "--scoring", scoring,
                                            "--fit", "--baselines", "none")
        print(f"fit and a replay of its own day: {seconds:.0f} s", figures(out)[0], flush=True)
        print("| recall@20 / mrr@20 | all | known | unknown | clicks/s |\n|---|---|---|---|---|")
        out, _, _ = common.run_script("evaluate_stream.py", *test, "--scoring", scoring, "--table",
                                      f"{work}/hours.tsv", "--plot", f"{work}/hours.png")
        print_rows(out, {"popular": "most clicked in 15 minutes", "frozen": "frozen model",
                         "vsknn": "V-SKNN, streaming", "stream": "`stream.py`"})
        if args.keep:
            os.makedirs(args.keep, exist_ok=True)
            for name in ("stream.json", "hours.tsv", "hours.png"):
                shutil.copy(os.path.join(work, name), args.keep)
        for part in PARTS if args.ablation else ():
            off = ["--scoring", scoring, "--baselines", "none", "--without", part]
            out, _, _ = common.run_script("evaluate_stream.py", *test, *off)
            print_rows(out, {"stream": f"without {part}"})


if __name__ == "__main__":
    main()

"""Recall, MRR, time and memory of infer.py's baselines beside a model's, on files of a session a
line.

    python benchmarks/bench_baselines.py --train_files train.txt --test_files test.txt \\
        -- --recipe strong

Whatever follows -- goes to train.py. Every line of the test files is scored on its last id. Each
row is a process of its own that evaluates the last epoch and, but for the first row, a baseline.
"""

from __future__ import annotations

import re
import tempfile

import common


def main(argv=None):
    parser, own_flags, train_flags = common.recall_parser_and_flags(__doc__, argv)
    args = parser.parse(own_flags)
    with tempfile.TemporaryDirectory() as work:
        common.run_script("preprocess.py", "sessions", "--train_files", *args.train_files,
                          "--test_files", *args.test_files, "--output_dir", work)
        paths = ["--data_dir", work, "--model_dir", f"{work}/model"]
        out, _, _ = common.run_script(*common.TRAIN, *paths, *train_flags)
        last = re.findall(r"epoch_(\d+)$", out, re.MULTILINE)[-1]
        epoch = ["infer.py", *paths, "--start_index", last, "--last_index", last]
        print("| | recall@20 | mrr@20 | whole process, s | against the model alone | peak memory, "
              "MB |")
        print("|---|---|---|---|---|---|")
        alone = None
        for name in ("the model", "popular", "item_knn", "v_sknn"):
            out, seconds, peak = common.run_script(
                *epoch, *([] if alone is None else ["--baselines", name]))
            alone = alone or seconds
            print(f"| {name} | {' | '.join(figures(out, name))} | {seconds:.1f} | "
                  f"{seconds / alone:.1f} | {peak / 1e6:.0f} |", flush=True)


def figures(out, name):
    """The recall and MRR that infer.py printed, of the model or a baseline."""
    if name == "the model":
        return re.search(r"all labels:\d+ recall@20:(\S+) mrr@20:(\S+)", out).groups()
    return re.search(rf"^20\s+{name}\s+(\S+) \[.*?\]\s+(\S+)", out, re.MULTILINE).groups()


if __name__ == "__main__":
    main()

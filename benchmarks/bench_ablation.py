"""What each part of the strong recipe is worth: recall and MRR on a validation split, with one part
at a time replaced, several seeds each.

    python benchmarks/bench_ablation.py --train_files train.txt -- --epochs 3

Whatever follows -- goes to train.py. The last tenth of the lines of the training files, which are
in the order of time, is the validation split: every click but the first of a session is predicted.
"""

from __future__ import annotations

import os
import re
import tempfile

import common
import numpy as np

from ssr.training.metrics import read_metrics

ROWS = {
    "the strong recipe": [],
    "`--targets last`": ["--targets", "last"],
    "`--loss hinge --num_negatives 20`": ["--loss", "hinge", "--num_negatives", "20"],
    "`--num_negatives 0`: the batch's targets only": ["--num_negatives", "0"],
    "`--num_negatives 500`": ["--num_negatives", "500"],
    "`--neg_alpha 0`": ["--neg_alpha", "0"],
    "`--neg_alpha 1`": ["--neg_alpha", "1"],
    "`--scale 8`": ["--scale", "8"],
    "`--pooling max`": ["--pooling", "max"],
    "`--pooling max_last_clicks`": ["--pooling", "max_last_clicks"],
    "`--pooling max_recent_clicks`": ["--pooling", "max_recent_clicks"],
    "`--repeats cosine`": ["--repeats", "cosine"],
    "`--recipe strong_v1`": ["--recipe", "strong_v1"],
    "`--item_encoder fc`": ["--item_encoder", "fc"],
    "`--dropout 0`": ["--dropout", "0"],
    "`--optimizer adagrad --base_lr 0.05`": ["--optimizer", "adagrad", "--base_lr", "0.05"],
    "`--lr_schedule constant`": ["--lr_schedule", "constant"],
    "`--members 2`": ["--members", "2"],
}


def split(files, work):
    """Writes the last tenth of all lines apart from the rest. Returns the two paths."""
    lines = []
    for path in files:
        with open(path, encoding="utf-8") as f:
            lines += f
    cut = len(lines) * 9 // 10
    paths = [os.path.join(work, name) for name in ("train.txt", "valid.txt")]
    for path, part in zip(paths, (lines[:cut], lines[cut:])):
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(part)
    return paths


def main(argv=None):
    parser, own_flags, train_flags = common.parser_and_flags(__doc__, argv)
    add = parser.add_argument
    add("--train_files", nargs="+", required=True,
        help="a session a line, raw ids with white space between")
    add("--seeds", type=int, default=3, help="0, 1, ...: how many")
    add("--rows", nargs="+", type=int, help="numbers of the rows to make, from 0 on; all when not "
        "given")
    args = parser.parse(own_flags)
    rows = list(ROWS.items())
    print("| one change | recall@20 | seeds apart | mrr@20 | seeds apart | s an epoch |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        train, valid = split(args.train_files, work)
        common.run_script("preprocess.py", "sessions", "--train_files", train, "--test_files",
                          valid, "--output_dir", f"{work}/data")
        for name, flags in rows if args.rows is None else [rows[i] for i in args.rows]:
            results = []
            for seed in range(args.seeds):
                paths = ["--vocab_path", f"{work}/data/vocab.txt", "--model_dir", f"{work}/model"]
                common.run_script(
                    *common.TRAIN, *paths, "--recipe", "strong", "--train_dir",
                    f"{work}/data/train_data", "--seed", seed, *flags, *train_flags)
                last = read_metrics(f"{work}/model/metrics.jsonl")[-1]
                out, _, _ = common.run_script(
                    "infer.py", *paths, "--test_dir", f"{work}/data/test_data", "--positions",
                    "all", "--start_index", last["epoch"], "--last_index", last["epoch"])
                recall, mrr = re.search(r"all labels:\d+ recall@20:(\S+) mrr@20:(\S+)",
                                        out).groups()
                results.append([float(recall), float(mrr), last["seconds"]])
            mean, apart = np.mean(results, axis=0), np.ptp(results, axis=0)
            print("| %s | %.4f | %.4f | %.4f | %.4f | %.1f |"
                  % (name, mean[0], apart[0], mean[1], apart[1], mean[2]), flush=True)


if __name__ == "__main__":
    main()

"""Recall of what train.py reaches on files that hold a session a line, over several seeds.

    python benchmarks/bench_recall.py --train_files train.txt --test_files test.txt --seeds 3 \\
        -- --epochs 5

Whatever follows -- goes to train.py. Every line of the test files is scored on its last id.
"""

from __future__ import annotations

import re
import tempfile

import common
import numpy as np


def main(argv=None):
    parser, own_flags, train_flags = common.recall_parser_and_flags(__doc__, argv)
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ...: how many")
    args = parser.parse(own_flags)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        common.run_script("preprocess.py", "sessions", "--train_files", *args.train_files,
                          "--test_files", *args.test_files, "--output_dir", work)
        paths = ["--vocab_path", f"{work}/vocab.txt", "--model_dir", f"{work}/model"]
        print("| seed | recall@20 | mrr@20 | s an epoch |")
        print("|---|---|---|---|")
        for seed in range(args.seeds):
            out, _, _ = common.run_script(*common.TRAIN, *paths, "--train_dir",
                                          f"{work}/train_data", "--seed", seed, *train_flags)
            epoch, seconds = re.findall(r"epoch:(\d+) num_steps:\d+ time_cost\(s\):(\S+)", out)[-1]
            out, _, _ = common.run_script("infer.py", *paths, "--test_dir", f"{work}/test_data",
                                          "--start_index", epoch, "--last_index", epoch)
            recall, mrr = re.search(r"all labels:\d+ recall@20:(\S+) mrr@20:(\S+)", out).groups()
            rows.append((float(recall), float(mrr), float(seconds)))
            print("| %d | %.4f | %.4f | %.1f |" % (seed, *rows[-1]), flush=True)
    print("| mean | %.4f | %.4f | %.1f |" % tuple(np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()

"""Evaluation speed and peak memory of infer.py, as a process of its own.

    python benchmarks/bench_infer.py --num_items 17376
"""

from __future__ import annotations

import re
import tempfile

import common

from ssr.preparation import sample


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    parser.add_argument("--num_items", type=int, nargs="+", default=[17376],
                        help="catalogues to measure")
    parser.add_argument("--queries", type=int, default=50000, help="test sessions")
    args = parser.parse(own_flags)
    print("| items | queries/s | whole process, s | peak memory, MB |")
    print("|---|---|---|---|")
    for num_items in args.num_items:
        with tempfile.TemporaryDirectory() as work:
            sample.write_sample(work, num_items, 5 * num_items, args.queries, seed=0)
            paths = ["--vocab_path", f"{work}/vocab.txt", "--model_dir", f"{work}/model"]
            common.run_script(*common.TRAIN, *paths, "--train_dir", f"{work}/train_data",
                              "--epochs", 1, "--batch_size", 500)
            out, seconds, peak = common.run_script("infer.py", *paths, "--test_dir",
                                                   f"{work}/test_data")
            rate = re.search(r"queries/s:(\d+)", out).group(1)
        print(f"| {num_items} | {rate} | {seconds:.1f} | {peak / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()

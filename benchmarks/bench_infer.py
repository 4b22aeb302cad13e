"""Evaluation speed and peak memory of infer.py, as a process of its own.

    python benchmarks/bench_infer.py --num_items 17376
"""

from __future__ import annotations

import argparse
import re
import tempfile

import common

from ssr.preparation import sample as make_sample


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_items", type=int, nargs="+", default=[17376])
    parser.add_argument("--queries", type=int, default=50000)
    args = parser.parse_args(argv)
    print("| items | queries/s | whole process, s | peak memory, MB |")
    print("|---|---|---|---|")
    for num_items in args.num_items:
        with tempfile.TemporaryDirectory() as work:
            make_sample.write_sample(work, num_items, 20 * num_items // 4, args.queries, seed=0)
            paths = ["--vocab_path", f"{work}/vocab.txt", "--model_dir", f"{work}/model"]
            common.run_script("train.py", *paths, "--train_dir", f"{work}/train_data",
                              "--epochs", 1, "--batch_size", 500, "--print_batch", 1000)
            out, seconds, peak = common.run_script("infer.py", *paths, "--test_dir",
                                                   f"{work}/test_data")
            rate = re.search(r"queries/s:(\d+)", out).group(1)
        print(f"| {num_items} | {rate} | {seconds:.1f} | {peak / 1e6:.0f} |")


if __name__ == "__main__":
    main()

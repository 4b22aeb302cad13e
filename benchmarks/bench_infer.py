"""Evaluation speed and peak memory of infer.py, as a process of its own.

    python benchmarks/bench_infer.py
    python benchmarks/bench_infer.py --num_items 1000000 --queries 300

The model is one that nobody trained, of which all items are candidates: neither speed nor memory
depends on what it learned. The share of the peak: what the products of queries and items alone
would take, at the speed that such a product has here, of the time of the evaluation, in which the
checkpoint is read and the sessions are encoded.
"""

from __future__ import annotations

import re
import tempfile

import common

from ssr.preparation import sample

DIM = 128  # of the vectors, what train.py makes of itself
BATCH = 256  # queries at a time, as infer.py has it


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    parser.add_argument("--num_items", type=int, nargs="+", default=[17376, 43000],
                        help="catalogues to measure")
    parser.add_argument("--queries", type=int, default=50000, help="test sessions")
    args = parser.parse(own_flags)
    print("| items | queries/s | of the peak | whole process, s | peak memory, MB |\n"
          + "|---" * 5 + "|")
    for num_items in args.num_items:
        with tempfile.TemporaryDirectory() as work:
            sample.write_sample(work, num_items, 1, args.queries, seed=0)
            paths = ["--vocab_path", f"{work}/vocab.txt", "--model_dir", f"{work}/model"]
            write_model(f"{work}/model", num_items)
            speed = gflops(num_items)
            out, seconds, peak = common.run_script("infer.py", *paths, "--test_dir",
                                                   f"{work}/test_data")
            rate = int(re.search(r"queries/s:(\d+)", out).group(1))
        share = rate * gflop(1, num_items) / speed
        print(f"| {num_items} | {rate} | {share:.0%} of {speed:.0f} GFLOP/s | {seconds:.1f} | "
              f"{peak / 1e6:.0f} |", flush=True)


def write_model(model_dir, num_items):
    """A checkpoint whose items were all clicked, with the parameters that training begins with."""
    import numpy as np

    from ssr.training import checkpoints
    from ssr.training.building import build
    from ssr.training.settings import merge

    settings = merge({})
    model, _ = build(settings, np.ones(num_items, np.int32))
    checkpoints.save(model_dir, settings, model, {}, 1, {})


def gflop(queries, items):
    return 2e-9 * queries * items * DIM


def gflops(items):
    """The speed of a product of some queries with all items, in GFLOP/s."""
    from ssr.runtime import paddle

    users, vectors = paddle.randn([BATCH, DIM]), paddle.randn([DIM, items])
    return gflop(BATCH, items) / common.timed(lambda: paddle.matmul(users, vectors), 5)


if __name__ == "__main__":
    main()

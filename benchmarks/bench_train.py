"""Training speed at a small and a large catalogue: a step must not depend on its size.

    python benchmarks/bench_train.py
    python benchmarks/bench_train.py --num_items 17376 1000000 --batch_size 50
    python benchmarks/bench_train.py --batch_size 128 -- --recipe strong

Whatever follows -- goes to train.py.
"""

from __future__ import annotations

import itertools
import time

import common
import numpy as np

import reader
import train
from ssr.preparation import sample
from ssr.runtime import paddle
from ssr.training.loop import epoch_batches


def steps_per_second(num_items, train_flags, num_steps, sessions):
    """Of train.py's own step, on sessions like those of the sample."""
    training = common.make_training(reader.YoochooseDataset(*sessions, num_items), train_flags)
    step = train.make_step(training.model, training.loss, training.optimizer)
    batches = itertools.chain.from_iterable(
        epoch_batches(training.run, training.negatives, epoch)[0] for epoch in itertools.count(1))
    rates = []
    for _ in range(4):  # the first round is the warm-up
        begin = time.perf_counter()
        for batch in itertools.islice(batches, num_steps):
            step(batch)
        rates.append(num_steps / (time.perf_counter() - begin))
    return np.median(rates[1:])


def main(argv=None):
    parser, own_flags, train_flags = common.parser_and_flags(__doc__, argv)
    add = parser.add_argument
    add("--num_items", type=int, nargs="+", default=[17376, 1000000], help="catalogues to measure")
    add("--batch_size", type=int, default=50, help="sessions a step")
    add("--num_steps", type=int, default=300, help="steps a round, of which there are three")
    add("--sessions", type=int, default=50000, help="to train on")
    args = parser.parse(own_flags)
    print(f"Paddle {paddle.__version__}, batch {args.batch_size}, one core")
    print("| items | sessions/s | ms a step | against the first |")
    print("|---|---|---|---|")
    first = None
    for num_items in args.num_items:
        sessions = sample.make_sessions(args.sessions, num_items, seed=0)
        rate = steps_per_second(num_items, ["--batch_size", args.batch_size, *train_flags],
                                args.num_steps, sessions)
        first = first or rate
        print(f"| {num_items} | {rate * args.batch_size:.0f} | {1e3 / rate:.2f} | "
              f"{first / rate:.2f} |", flush=True)


if __name__ == "__main__":
    main()

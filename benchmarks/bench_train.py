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
from ssr.preparation import sample as make_sample
from ssr.runtime import paddle


def steps_per_second(num_items, flags, num_steps, sessions):
    """Of train.py's own step, on sessions like those of the sample."""
    items, offsets = sessions
    dataset = reader.YoochooseDataset(items, offsets, num_items)
    args, _ = train.parse_args(flags)
    with paddle.utils.unique_name.guard():
        model, optimizer = train.build(args, dataset.item_clicks())
    loss, negatives = train.build_objective(args, dataset)
    step = train.make_step(model, loss, optimizer)
    batches = itertools.chain.from_iterable(
        train.epoch_batches(dataset, args, epoch, negatives)[0] for epoch in itertools.count(1))
    rates = []
    for _ in range(4):  # the first round is the warm-up
        begin = time.perf_counter()
        for batch in itertools.islice(batches, num_steps):
            step(batch)
        rates.append(num_steps / (time.perf_counter() - begin))
    return np.median(rates[1:])


def main(argv=None):
    parser, own_flags, train_flags = common.parser_and_flags(__doc__.splitlines()[0], argv)
    parser.add_argument("--num_items", type=int, nargs="+", default=[17376, 1000000])
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--num_steps", type=int, default=300)
    args = parser.parse_args(own_flags)
    flags = ["--batch_size", str(args.batch_size), *train_flags]
    print(f"Paddle {paddle.__version__}, batch {args.batch_size}, one core")
    print("| items | sessions/s | ms a step | against the first |")
    print("|---|---|---|---|")
    first = None
    for num_items in args.num_items:
        sessions = make_sample.make_sessions(50000, num_items, seed=0)
        rate = steps_per_second(num_items, flags, args.num_steps, sessions)
        first = first or rate
        print(f"| {num_items} | {rate * args.batch_size:.0f} | {1e3 / rate:.2f} | "
              f"{first / rate:.2f} |")


if __name__ == "__main__":
    main()

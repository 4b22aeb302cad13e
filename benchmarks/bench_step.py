"""Where the time of a training step goes, by phase and by operation of Paddle, and what share of
this core's peak its matrix products make of it.

    python benchmarks/bench_step.py --train_dir train_data --vocab_path vocab.txt -- --recipe strong

Whatever follows -- goes to train.py.
"""

from __future__ import annotations

import itertools
import time

import common
import numpy as np

import reader
from ssr.runtime import paddle
from ssr.training.loop import epoch_batches

WARM_UP = 20  # steps that are not counted


def phases(batches, training, num_steps):
    """({name of a phase: seconds}, the batches), of all steps that count."""
    seconds, done = {}, []
    last = time.perf_counter()

    def lap(name):
        nonlocal last
        now = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + now - last
        last = now
    for number in range(-WARM_UP, num_steps):
        if number == 0:
            seconds.clear()
            done.clear()
        batch = next(batches)
        done.append(batch)
        lap("batch")
        emb = training.model.look_up(batch.rows)
        lap("look-up")
        towers = training.model.towers(emb, batch)
        lap("towers")
        mean = paddle.mean(training.loss(towers, batch)[0])
        lap("loss")
        mean.backward()
        lap("backward")
        training.optimizer.step()
        training.optimizer.clear_grad()
        lap("optimizer")
    return seconds, done


def product_operations(batch, model):
    """Floating-point operations of the matrix products of a step, forward and backward; what is
    multiplied element by element is not counted."""
    clicks, items = len(batch.clicks), batch.candidates.size
    total = 0
    for towers in model.members:
        gru = getattr(towers.user_encoder, "gru", None)
        if gru is not None:
            # A sequence begins with no state that could be multiplied.
            total += (clicks * gru.weight_ih_l0.size
                      + (clicks - len(batch.lengths)) * gru.weight_hh_l0.size)
        total += len(batch.positive) * towers.user_fc.weight.size
        if towers.item_fc is not None:
            total += items * towers.item_fc.weight.size
        if batch.log_inclusion is not None:
            total += len(batch.positive) * items * towers.user_fc.weight.shape[1]
    return 2 * 3 * total  # multiply and add; one product forward, two backward


def peak(rows, inner, columns):
    """Floating-point operations a second of a product of this shape, the better of numpy and
    Paddle."""
    a, b = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    of_paddle = paddle.to_tensor(a), paddle.to_tensor(b)
    seconds = min(common.timed(lambda: a @ b, 50),
                  common.timed(lambda: paddle.matmul(*of_paddle), 50))
    return 2 * rows * inner * columns / seconds


def print_share(seconds, batches, model):
    """How much of the time the products of the steps would take at the peak of this core."""
    operations = sum(product_operations(batch, model) for batch in batches)
    typical = batches[len(batches) // 2]
    inner = model.members[0].user_fc.weight.shape[1]
    columns = typical.candidates.size if typical.log_inclusion is not None else 3 * inner
    rate = peak(len(typical.positive), inner, columns)
    print(f"matrix products: {operations / len(batches) / 1e9:.2f} GFLOP a step; peak of a product "
          f"of {len(typical.positive)}x{inner} and {inner}x{columns}: {rate / 1e9:.1f} GFLOP/s; "
          f"share of the measured peak: {operations / rate / sum(seconds.values()):.0%}")


def print_operations(batches, training, num_steps):
    profiler = paddle.profiler
    # Left to itself the profiler writes a trace of some megabytes to the directory it runs in.
    with profiler.Profiler(targets=[profiler.ProfilerTarget.CPU],
                           on_trace_ready=lambda _: None) as profile:
        for batch in itertools.islice(batches, num_steps):
            paddle.mean(training.loss(training.model(batch), batch)[0]).backward()
            training.optimizer.step()
            training.optimizer.clear_grad()
    profile.summary(sorted_by=profiler.SortedKeys.CPUTotal, op_detail=False)


def main(argv=None):
    parser, own_flags, train_flags = common.parser_and_flags(__doc__, argv)
    parser.add_argument("--train_dir", default="train_data", help="directory of session files")
    parser.add_argument("--vocab_path", default="vocab.txt", help="of these sessions")
    parser.add_argument("--num_steps", type=int, default=200, help="steps to measure")
    args = parser.parse(own_flags)
    dataset = reader.construct_train_data(args.train_dir, args.vocab_path)
    training = common.make_training(dataset, train_flags)
    batches = itertools.chain.from_iterable(
        epoch_batches(training.run, training.negatives, epoch)[0] for epoch in itertools.count(1))
    seconds, done = phases(batches, training, args.num_steps)
    print("| phase | ms a step |\n|---|---|")
    for name, value in [*seconds.items(), ("all", sum(seconds.values()))]:
        print(f"| {name} | {1000 * value / args.num_steps:.2f} |")
    print_share(seconds, done, training.model)
    print_operations(batches, training, min(50, args.num_steps))


if __name__ == "__main__":
    main()

"""Where the time of a training step goes, by phase and by operation of Paddle.

    python benchmarks/bench_step.py --train_dir train_data --vocab_path vocab.txt -- --recipe strong

Whatever follows -- goes to train.py.
"""

from __future__ import annotations

import itertools
import time

import common

import reader
from ssr.runtime import paddle
from ssr.training.loop import epoch_batches

WARM_UP = 20  # steps that are not counted


def phases(batches, training, num_steps):
    """Milliseconds a step of each phase."""
    seconds = {}
    last = time.perf_counter()

    def lap(name):
        nonlocal last
        now = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + now - last
        last = now
    for number in range(-WARM_UP, num_steps):
        if number == 0:
            seconds.clear()
        batch = next(batches)
        lap("batch")
        emb = training.model.embed(batch.rows())
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
    return {name: 1000 * value / num_steps for name, value in seconds.items()}


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
    milliseconds = phases(batches, training, args.num_steps)
    print("| phase | ms a step |\n|---|---|")
    for name, value in [*milliseconds.items(), ("all", sum(milliseconds.values()))]:
        print(f"| {name} | {value:.2f} |")
    print_operations(batches, training, min(50, args.num_steps))


if __name__ == "__main__":
    main()

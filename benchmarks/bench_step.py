"""Where the time of a training step goes, by phase and by operation of Paddle.

    python benchmarks/bench_step.py --train_dir train_data --vocab_path vocab.txt -- --recipe strong

Whatever follows -- goes to train.py.
"""

from __future__ import annotations

import sys
import time

import common
from paddle import profiler

import reader
import train
from ssr.runtime import paddle

STEPS = 200


def phases(batches, model, loss, optimizer):
    """Milliseconds a step of each phase."""
    seconds = {}
    last = time.perf_counter()

    def lap(name):
        nonlocal last
        now = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + now - last
        last = now
    for number in range(-20, STEPS):  # the first ones warm up
        if number == 0:
            seconds.clear()
        batch = next(batches)
        lap("batch")
        emb = model.embed(batch.ids())
        lap("look-up")
        towers = model.towers(emb, batch)
        lap("towers")
        mean = paddle.mean(loss(towers, batch)[0])
        lap("loss")
        mean.backward()
        lap("backward")
        optimizer.step()
        optimizer.clear_grad()
        lap("optimizer")
    return {name: 1000 * value / STEPS for name, value in seconds.items()}


def main(argv=None):
    parser, own_flags, train_flags = common.parser_and_flags(__doc__.splitlines()[0], argv)
    parser.add_argument("--train_dir", default="train_data")
    parser.add_argument("--vocab_path", default="vocab.txt")
    own = parser.parse_args(own_flags)
    args, _ = train.parse_args(train_flags)
    dataset = reader.construct_train_data(own.train_dir, own.vocab_path)
    model, optimizer = train.build(args, dataset.item_clicks())
    loss, negatives = train.build_objective(args, dataset)

    def endless():
        for epoch in range(1, sys.maxsize):
            yield from train.epoch_batches(dataset, args, epoch, negatives)[0]
    batches = endless()
    found = phases(batches, model, loss, optimizer)
    print("| phase | ms a step |\n|---|---|")
    for name, value in [*found.items(), ("all", sum(found.values()))]:
        print(f"| {name} | {value:.2f} |")
    # Left to itself the profiler writes a trace of some megabytes to the directory it runs in.
    with profiler.Profiler(targets=[profiler.ProfilerTarget.CPU],
                           on_trace_ready=lambda _: None) as profile:
        for batch, _ in zip(batches, range(50)):
            paddle.mean(loss(model(batch), batch)[0]).backward()
            optimizer.step()
            optimizer.clear_grad()
    profile.summary(sorted_by=profiler.SortedKeys.CPUTotal, op_detail=False)


if __name__ == "__main__":
    main()

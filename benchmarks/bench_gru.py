"""The packed GRU against Paddle's operator, forward and backward, on one core.

    python benchmarks/bench_gru.py
"""

from __future__ import annotations

import common
import numpy as np

import nets
from ssr.preparation import sample as make_sample
from ssr.runtime import paddle


def main():
    items, offsets = make_sample.make_sessions(4000, 1000, seed=0)
    lengths = np.minimum(np.diff(offsets) - 1, 19)
    random = np.random.default_rng(0)
    print(f"Paddle {paddle.__version__}, hidden 128, ms forward and backward")
    print("| sessions | steps | clicks | nn.GRU, padded | PackedGRU | ratio |")
    print("|---|---|---|---|---|---|")
    with paddle.utils.unique_name.guard():
        encoder = nets.GrnnEncoder(128, 128)
    for batch, name in ((50, ""), (128, ""), (500, ""), (50, " of one length")):
        some = random.choice(lengths, batch) if not name else np.full(batch, 5)
        emb = paddle.randn([int(some.sum()), 128])
        emb.stop_gradient = False
        times = []
        for states in (encoder._padded, encoder._packed):
            def step():
                paddle.sum(states(emb, some)[1]).backward()
                encoder.clear_gradients()
                emb.clear_grad()
            times.append(common.timed(step, 10) * 1e3)
        print(f"| {batch}{name} | {some.max()} | {some.sum()} | {times[0]:.2f} | {times[1]:.2f} | "
              f"{times[0] / times[1]:.1f} |")


if __name__ == "__main__":
    main()

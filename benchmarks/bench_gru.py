"""The packed GRU against Paddle's operator, forward and backward, on one core.

    python benchmarks/bench_gru.py
"""

from __future__ import annotations

import common
import numpy as np

from nets import GrnnEncoder
from ssr.kernels.gru import gru_tops, padded_gru
from ssr.preparation import sample
from ssr.runtime import paddle


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    parser.add_argument("--repeats", type=int, default=10, help="calls a round; the best of three")
    args = parser.parse(own_flags)
    _, offsets = sample.make_sessions(4000, 1000, seed=0)
    lengths = np.minimum(np.diff(offsets) - 1, 19)
    random = np.random.default_rng(0)
    print(f"Paddle {paddle.__version__}, hidden 128, ms forward and backward")
    print("| sessions | steps | clicks | nn.GRU, padded | PackedGRU | ratio |")
    print("|---|---|---|---|---|---|")
    with paddle.utils.unique_name.guard():
        gru = GrnnEncoder(128, 128).gru
    for batch, name in ((50, ""), (128, ""), (500, ""), (50, " of one length")):
        drawn = np.full(batch, 5) if name else random.choice(lengths, batch)
        padded, packed = (seconds(tops, gru, drawn, args.repeats) * 1e3
                          for tops in (padded_gru, gru_tops))
        print(f"| {batch}{name} | {drawn.max()} | {drawn.sum()} | {padded:.2f} | {packed:.2f} | "
              f"{padded / packed:.1f} |")


def seconds(tops, gru, lengths, repeats):
    """Of one step forward and backward."""
    emb = paddle.randn([int(lengths.sum()), 128])
    emb.stop_gradient = False

    def step():
        paddle.sum(tops(gru, emb, lengths)).backward()
        gru.clear_gradients()
        emb.clear_grad()
    return common.timed(step, repeats)


if __name__ == "__main__":
    main()

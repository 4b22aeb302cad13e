"""Draws a run's loss, and its recall and MRR where it was validated, by epoch.

    python plot_metrics.py --model_dir model_output --output metrics.png

Reads the metrics.jsonl that train.py keeps. Needs matplotlib (pip install matplotlib).
"""

from __future__ import annotations

import os
import sys

from ssr.commands import Parser, run

from ssr.errors import SetupError
from ssr.files import check_writable
from ssr.training.metrics import read_metrics
from ssr.training.plots import check_matplotlib, draw


def parse_args(argv=None):
    parser = Parser("Loss, recall and MRR by epoch, as a picture")
    add = parser.add_argument
    add("--model_dir", default="model_output", help="where train.py keeps metrics.jsonl")
    add("--output", default="metrics.png", help="the picture, a PNG file")
    return parser.parse(argv)


def plot(args):
    check_matplotlib()
    check_writable(args.output, "--output")
    path = os.path.join(args.model_dir, "metrics.jsonl")
    epochs = read_metrics(path)
    if not epochs:
        raise SetupError(f"{path} holds no epoch: train first, or see --model_dir")
    draw(epochs, args.output)
    print(f"written: {args.output}")
    return 0


def main(argv=None):
    args = parse_args(argv)
    return run(lambda: plot(args))


if __name__ == "__main__":
    sys.exit(main())

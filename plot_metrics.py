"""Draws a run's loss, and its recall and MRR where it was validated, by epoch.

    python plot_metrics.py --model_dir model_output --output metrics.png

Reads the metrics.jsonl that train.py keeps. Needs matplotlib (pip install matplotlib).
"""

from __future__ import annotations

import argparse
import os
import sys

import utils
from ssr import commands
from ssr.errors import SetupError
from ssr.files import write_atomically


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Loss, recall and MRR by epoch",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model_dir", default="model_output", help="where train.py keeps metrics.jsonl")
    add("--output", default="metrics.png", help="the picture")
    return parser.parse_args(argv)


def draw(lines, path):
    """lines: what utils.read_metrics returns; path: of the PNG. Raises SetupError."""
    try:
        import matplotlib
    except ImportError as error:
        raise SetupError("matplotlib is not installed: pip install matplotlib") from error
    matplotlib.use("Agg")  # no window
    from matplotlib import pyplot
    epochs = [line["epoch"] for line in lines]
    valid = sorted({name for line in lines for name in line if name.startswith("valid_")})
    figure, _ = pyplot.subplots(1, 1 + len(valid), figsize=(5 * (1 + len(valid)), 4))
    for panel, name in zip(figure.axes, ["avg_cost", *valid]):
        panel.plot(epochs, [line.get(name, float("nan")) for line in lines], marker="o")
        panel.set(title=name, xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    write_atomically(path, lambda name: figure.savefig(name, format="png"))
    pyplot.close(figure)


def main(argv=None):
    args = parse_args(argv)

    def run():
        path = os.path.join(args.model_dir, "metrics.jsonl")
        lines = utils.read_metrics(path)
        if not lines:
            raise SetupError(f"{path} holds no epoch: train first, or see --model_dir")
        draw(lines, args.output)
        print(f"written: {args.output}")
        return 0
    return commands.run(run)


if __name__ == "__main__":
    sys.exit(main())

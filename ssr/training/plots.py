"""A picture of how a run went. Needs matplotlib."""

from __future__ import annotations

from ssr.errors import SetupError
from ssr.files import write_atomically


def check_matplotlib() -> None:
    """Raises SetupError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise SetupError("matplotlib is not installed: pip install matplotlib") from error
    matplotlib.use("Agg")  # no window


def draw(epochs, path) -> None:
    """Draws the mean loss and what validation measured, a panel each, over the epochs.

    epochs: a dict for each, with "epoch" and, where measured, "avg_cost" and "valid_..."
    path: of the PNG
    Raises SetupError.
    """
    check_matplotlib()
    from matplotlib import pyplot

    measured = sorted({name for line in epochs for name in line if name.startswith("valid_")})
    names = ["avg_cost", *measured]
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    for panel, name in zip(panels[0], names):
        panel.plot([line["epoch"] for line in epochs],
                   [_number(line.get(name)) for line in epochs], marker="o")
        panel.set(title=name, xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    write_atomically(path, lambda name: figure.savefig(name, format="png"))
    pyplot.close(figure)


def _number(value):
    return value if isinstance(value, (int, float)) else float("nan")

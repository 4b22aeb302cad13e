"""The figures of a replay: for all labels, those that training knew and those that it did not, in
total and by hour; a table of them and a plot."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple, Optional

import numpy as np

from ssr.errors import SetupError
from ssr.files import write_atomically, write_text

DRAWN_FROM = 50  # queries: the recall of fewer is noise, and no point of the plot


class HourlyFigures(NamedTuple):
    """The figures of a method in an hour.

    hour: after that of the first query; method: its name
    labels: "all", "known" or "unknown"; queries: their number
    recall, mrr: at K, None where there are no queries
    """

    hour: int
    method: str
    labels: str
    queries: int
    recall: Optional[float]
    mrr: Optional[float]


def label_groups(known):
    """{"all", "known" and "unknown": which queries have such labels, <bool>[queries]}. known:
    <bool>[queries], whether training knew the label"""
    return {"all": np.ones_like(known), "known": known, "unknown": ~known}


def by_hour(results, times, known, measure):
    """A list of HourlyFigures.

    results: {method: ranks <int64>[queries]}; times: <int64>[queries], seconds
    known: as of label_groups; measure: (recall, mrr) of ranks
    """
    hours = times // 3600 - times.min() // 3600
    rows = []
    for hour in np.unique(hours):
        for method, ranks in results.items():
            for labels, chosen in label_groups(known).items():
                part = ranks[chosen & (hours == hour)]
                recall, mrr = measure(part) if len(part) else (None, None)
                rows.append(HourlyFigures(int(hour), method, labels, len(part), recall, mrr))
    return rows


def write_table(path, rows, k):
    """HourlyFigures as tab-separated text. Raises SetupError."""
    lines = [f"hour\tmethod\tlabels\tqueries\trecall@{k}\tmrr@{k}"]
    lines += ["\t".join(map(_shown, row)) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def _shown(value):
    if value is None:
        return "n/a"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def check_drawing():
    """Raises SetupError where draw could not."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SetupError("--plot needs matplotlib: pip install matplotlib")


def draw(path, rows, k):
    """A picture of recall@K by hour, from HourlyFigures: for all labels and for those that training
    did not know. Raises SetupError."""
    check_drawing()
    import matplotlib
    matplotlib.use("Agg")  # no window
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4), sharex=True)
    for panel, labels in zip(panels, ("all", "unknown")):
        for method in dict.fromkeys(row.method for row in rows):
            points = [(row.hour, row.recall) for row in rows if row.method == method
                      and row.labels == labels and row.queries >= DRAWN_FROM]
            panel.plot([hour for hour, _ in points], [recall for _, recall in points], marker=".",
                       label=method)
        panel.set(title=f"{labels} labels", xlabel="hour", ylabel=f"recall@{k}")
        panel.legend()
    figure.tight_layout()
    write_atomically(path, lambda name: figure.savefig(name, format="png"))
    pyplot.close(figure)

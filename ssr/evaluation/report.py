"""A comparison as a page of HTML: one file that needs no other, light and dark, for a phone too."""

from __future__ import annotations

import os
import string
from html import escape
from typing import NamedTuple

import numpy as np

from ssr.evaluation.baselines import BASELINES
from ssr.evaluation.metrics import NAMES, measure_gain, measure_recall

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.html")
POSITIONS = ((2, 2), (3, 3), (4, 4), (5, 5), (6, 10), (11, 20), (21, None))  # of the label
POPULARITY_BINS = 5
EXAMPLES = 8
SHOWN_CLICKS, SHOWN_ITEMS = 8, 5  # of an example
SEED = 0  # of the choice of examples

MEANINGS = {
    "recall": "share of the queries whose next click is among the K best items",
    "mrr": "mean of 1 / rank of the next click, 0 where it is not among them",
    "ndcg": "mean of 1 / log2(1 + rank) of the next click, likewise",
    "hit_rate": "share of the sessions with a hit; with one query a session it is the recall",
    "coverage": "share of the candidates that are recommended to anybody",
    "popularity": "mean training clicks of what is recommended; the most clicked item has 1",
}


class Items(NamedTuple):
    """How items are shown. names: list of "raw id <tab> text", the latter perhaps empty"""

    names: list

    def show(self, item):
        """An item as HTML."""
        raw_id, _, text = self.names[item].partition("\t")
        return f"{escape(text)} <small>{escape(raw_id)}</small>" if text else escape(raw_id)


def make_report(comparison, dataset, names, sources):
    """The page, a str.

    comparison: comparison.Comparison, in which the epochs of a model come before baselines
    dataset: reader.YoochooseDataset, the sessions of the test
    names: list of "raw id <tab> text" of each item
    sources: {"model": the directory of the model, "test": that of the test}
    """
    parts = [_head(comparison, sources), _tables(comparison), _parts(comparison),
             _examples(comparison, dataset, Items(names)), _notes(comparison)]
    with open(TEMPLATE, encoding="utf-8") as f:
        template = string.Template(f.read())
    return template.substitute(title=escape(f"Evaluation of {sources['model']}"),
                               body="\n".join(parts))


# --- head, table ----------------------------------------------------------------------------------


def _charted(comparison):
    """Indices of the rows that charts and examples show: the last epoch and the baselines."""
    rows = range(len(comparison.rows))
    baselines = [row for row in rows if comparison.rows[row].name in BASELINES]
    return [row for row in rows if row not in baselines][-1:] + baselines


def _color(comparison, row):
    """The class of a row's colour."""
    charted = _charted(comparison)
    return f"s{charted.index(row)}" if row in charted else "old"


def _key(comparison, row):
    return (f'<span class="key {_color(comparison, row)}">'
            f"{escape(comparison.rows[row].name)}</span>")


def _head(comparison, sources):
    queries, k = comparison.queries, max(comparison.topk)
    sessions = len(np.unique(queries.sessions))
    first, *others = _charted(comparison)
    recall = comparison.metrics[first][f"recall@{k}"]
    cards = [_figure(f"recall@{k} of {comparison.rows[first].name}", f"{recall.value:.3f}",
                     f"95% interval {recall.low:.3f} to {recall.high:.3f}")] if sessions else []
    if others and sessions:
        best = max(others, key=lambda row: comparison.metrics[row][f"recall@{k}"].value)
        gain = measure_gain(comparison.rows[first].ranks, comparison.rows[best].ranks,
                            queries.sessions, k)
        cards.append(_figure(f"against {comparison.rows[best].name}, the best baseline",
                             _signed(gain.value), f"95% interval {_signed(gain.low)} to "
                             f"{_signed(gain.high)}, on the same sessions"))
    cards.append(_figure("asked", f"{len(queries.labels):,}",
                         f"queries of {sessions:,} sessions; "
                         f"{np.count_nonzero(comparison.catalogue.candidates):,} candidates"))
    return (f"<h1>Evaluation of {escape(sources['model'])}</h1>\n"
            f'<p class="soft">What was clicked next in the sessions of {escape(sources["test"])}'
            " is the one right answer to each query.</p>\n"
            f'<div class="heads">{"".join(cards)}</div>')


def _signed(value):
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _figure(title, value, below):
    return (f'<div class="card"><div class="soft">{escape(title)}</div>'
            f'<div class="figure">{value}</div><div class="soft">{escape(below)}</div></div>')


def _tables(comparison):
    tables = "\n".join(_table(comparison, k) for k in comparison.topk)
    return ("<h2>All metrics</h2>\n"
            '<p class="soft">The band is the 95% interval, by bootstrap over sessions.</p>\n'
            + tables)


def _table(comparison, k):
    head = "".join(f"<th>{name}@{k}</th>" for name in NAMES)
    largest = {name: np.nanmax([metrics[f"{name}@{k}"].high for metrics in comparison.metrics]
                               + [1e-9]) for name in NAMES}
    best = {name: max(np.nan_to_num(metrics[f"{name}@{k}"].value)
                      for metrics in comparison.metrics) for name in NAMES[:-1]}
    lines = []
    for row, metrics in enumerate(comparison.metrics):
        cells = "".join(_cell(metrics[f"{name}@{k}"], largest[name], best.get(name))
                        for name in NAMES)
        lines.append(f'<tr class="{_color(comparison, row)}"><th>{_key(comparison, row)}</th>'
                     f"{cells}</tr>")
    body = "\n".join(lines)
    return (f'<div class="card wide"><table><thead><tr><th></th>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def _cell(estimate, largest, best):
    if np.isnan(estimate.value):
        return "<td>n/a</td>"
    kind = ' class="best"' if estimate.value == best else ""
    return (f"<td{kind}><b>{estimate.value:.4f}</b><br>"
            f"<small>{estimate.low:.3f}–{estimate.high:.3f}</small>"
            f'<span class="range" style="{_places(estimate, largest)}"><i></i><u></u></span></td>')


def _places(estimate, largest):
    """The style that places an Estimate on a scale from 0 to largest."""
    low, at, high = (100 * value / largest for value in (estimate.low, estimate.value,
                                                         estimate.high))
    return f"--low:{low:.2f}%;--at:{at:.2f}%;--span:{high - low:.2f}%"


# --- parts of the test ----------------------------------------------------------------------------


def _parts(comparison):
    k = max(comparison.topk)
    keys = "".join(_key(comparison, row) for row in _charted(comparison))
    labels = comparison.queries.labels
    clicks = comparison.catalogue.clicks[labels]
    known = {"clicked in training": clicks > 0, "new": clicks == 0}
    charts = [
        _chart(comparison, k, "By position", "The place of the next click in its session.",
               by_position(comparison.queries.positions)),
        _chart(comparison, k, "By popularity", "Training clicks of the item that was clicked next.",
               by_popularity(clicks)),
        _chart(comparison, k, "Known and new", "Whether the item that was clicked next has "
               "training clicks.", known)]
    return (f"<h2>Recall@{k} in parts of the test</h2>\n<p>{keys}</p>\n"
            f'<div class="charts">{"".join(charts)}</div>')


def by_position(positions):
    """{name: <bool>[queries]} by the position of the label in its session, from 1 on."""
    return {f"click {_range(low, high)}": (positions >= low) & (positions <= (high or np.inf))
            for low, high in POSITIONS}


def by_popularity(clicks):
    """{name: <bool>[queries]}: POPULARITY_BINS parts of about the same size, by the training clicks
    of the labels; fewer where many have the same. Labels without clicks are in none.

    clicks: <int>[queries]
    """
    known = clicks[clicks > 0]
    if not len(known):
        return {}
    shares = np.linspace(0, 1, POPULARITY_BINS + 1)[1:]
    bounds = np.unique(np.quantile(known, shares, method="inverted_cdf")).tolist()
    return {f"{_range(low + 1, high)} clicks": (clicks > low) & (clicks <= high)
            for low, high in zip([int(known.min()) - 1, *bounds], bounds)}


def _range(low, high):
    if high is None:
        return f"{low:,} and later"
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _chart(comparison, k, title, caption, groups):
    """A chart of recall@k in groups of queries. groups: {name: <bool>[queries]}"""
    charted = _charted(comparison)
    measured = {}
    for name, chosen in groups.items():
        if chosen.any():
            measured[name] = np.count_nonzero(chosen), measure_recall(
                [comparison.rows[row].ranks[chosen] for row in charted],
                comparison.queries.sessions[chosen], k)
    largest = max([estimate.high for _, recalls in measured.values() for estimate in recalls]
                  + [1e-9])
    rows = "".join(_group(comparison, name, count, recalls, largest)
                   for name, (count, recalls) in measured.items())
    return (f'<div class="card"><h3>{escape(title)}</h3><p class="soft">{escape(caption)}</p>'
            f"{rows}</div>")


def _group(comparison, name, count, recalls, largest):
    bars = "".join(
        f'<div class="bar {_color(comparison, row)}" title="{escape(comparison.rows[row].name)}: '
        f'{recall}"><span style="{_places(recall, largest)}"><i></i><u></u></span>'
        f"{recall.value:.3f}</div>" for row, recall in zip(_charted(comparison), recalls))
    queries = "1 query" if count == 1 else f"{count:,} queries"
    return (f'<div class="group"><div>{escape(name)}<small>{queries}</small></div>'
            f"<div>{bars}</div></div>")


# --- examples -------------------------------------------------------------------------------------


def choose_examples(ranks, k):
    """Indices of queries, some of each kind: hits of the first alone, of others alone, of all and
    of none, drawn with a seed.

    ranks: list of <int64>[queries]
    """
    hits = np.stack([(row > 0) & (row <= k) for row in ranks])
    others = hits[1:].any(axis=0)
    random = np.random.default_rng(SEED)
    kinds = [random.permutation(np.flatnonzero((hits[0] == first) & (others == other)))
             for first, other in ((True, False), (False, True), (True, True), (False, False))]
    turns = [(turn, kind, query) for kind, part in enumerate(kinds)
             for turn, query in enumerate(part[:EXAMPLES])]
    chosen = sorted(turns)[:EXAMPLES]
    return [int(query) for _, _, query in sorted(chosen, key=lambda of: of[1])]


def _examples(comparison, dataset, items):
    charted, k = _charted(comparison), max(comparison.topk)
    chosen = choose_examples([comparison.rows[row].ranks for row in charted], k)
    return ("<h2>Examples</h2>\n"
            '<p class="soft">Drawn at random: hits of the model alone, of a baseline alone, of both'
            " and of none.</p>\n"
            + "\n".join(_example(comparison, dataset, items, query) for query in chosen))


def _example(comparison, dataset, items, query):
    queries = comparison.queries
    session, position = int(queries.sessions[query]), int(queries.positions[query])
    begin = int(dataset.offsets[session - 1])
    before = dataset.items[begin:begin + position - 1]
    label = int(queries.labels[query])
    earlier = len(before) - SHOWN_CLICKS
    clicks = [f"<li>{earlier:,} earlier</li>"] if earlier > 0 else []
    clicks += [f"<li>{items.show(item)}</li>" for item in before[-SHOWN_CLICKS:]]
    clicks.append(f'<li class="next">{items.show(label)}</li>')
    lists = "".join(_list(comparison, row, query, label, items) for row in _charted(comparison))
    return (f'<div class="card"><small>Session {session:,}, click {position:,}</small>'
            f'<ul class="session">{"".join(clicks)}</ul><div class="lists">{lists}</div></div>')


def _list(comparison, row, query, label, items):
    answers = comparison.rows[row]
    best = [int(item) for item in answers.top[query, :SHOWN_ITEMS] if item >= 0]
    lines = "".join(f"<li{' class=next' if item == label else ''}>{items.show(item)}</li>"
                    for item in best)
    rank = int(answers.ranks[query])
    place = f"rank {rank:,}" if rank else "not ranked"
    return (f"<div>{_key(comparison, row)}<small>{place}</small>"
            f"<ol>{lines}</ol></div>")


def _notes(comparison):
    terms = "".join(f"<dt>{name}@K</dt><dd>{meaning}</dd>" for name, meaning in MEANINGS.items())
    return f'<h2>What the metrics are</h2>\n<div class="card"><dl>{terms}</dl></div>'

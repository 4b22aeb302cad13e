"""Impressions, lists of items that were shown to users: how well a model tells those that were
clicked from the others.

The metrics are those of MIND (Wu et al., "MIND: A Large-scale Dataset for News Recommendation", ACL
2020, and its evaluate.py), the mean over impressions of

    auc      probability that a clicked item scores higher than one that was not, ties half
    mrr      mean of 1 / rank over the clicked items of the impression, all of them
    ndcg@K   DCG of the K best items by that of the best order there is, with gain 1 for a click and
             discount log2(1 + rank)

Ranks are those of numpy.argsort(scores)[::-1], as there. What that leaves open is settled here: the
sort is stable, so of equal scores the item shown last ranks first. An impression whose items were
all clicked, or none of them, has no AUC; the script stops at it, and here it is left out.

The score is the cosine of the user's vector and the item's. An item without a vector, or with a
score that is not a number, ranks below all others. A user whose history holds no item with a vector
gives all items that have one the same score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssr.evaluation.queries import Queries
from ssr.evaluation.ranking import encode
from ssr.runtime import paddle

NAMES = ("auc", "mrr", "ndcg@5", "ndcg@10")
SCORES_AT_A_TIME = 1 << 16  # pairs of vectors that are multiplied together

# --- scores ---------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """What a model says of impressions.

    values: <float32>[items], the score of each item that was shown
    without_vector: how many of them have none
    without_history: impressions of users whose history holds no item with a vector
    """

    values: np.ndarray
    without_vector: int
    without_history: int


@paddle.no_grad()
def score(encoder, impressions, batch_size) -> Scores:
    """Scores all items that were shown. encoder: IdEncoder; batch_size: histories at a time"""
    queries = _queries(impressions, encoder.has_vector, encoder.max_len)
    users = np.zeros((len(queries.lengths), encoder.dim), np.float32)
    for batch, vectors in encode(encoder, queries, batch_size):
        users[batch] = vectors.numpy()
    history = np.repeat(impressions.history, np.diff(impressions.offsets))
    values = np.empty(len(history), np.float32)
    for start in range(0, len(history), SCORES_AT_A_TIME):
        chunk = slice(start, start + SCORES_AT_A_TIME)
        values[chunk] = np.einsum("ij,ij->i", users[history[chunk]],
                                  encoder.vectors[impressions.shown[chunk]])
    has_vector = encoder.has_vector[impressions.shown]
    values[~has_vector | np.isnan(values)] = -np.inf
    return Scores(values, int(np.count_nonzero(~has_vector)),
                  int(np.count_nonzero(queries.sources[impressions.history] < 0)))


def _queries(impressions, has_vector, max_len):
    """A query of each history, whose clicks are its newest max_len that have a vector."""
    num = len(impressions.history_offsets) - 1
    owner = np.repeat(np.arange(num), np.diff(impressions.history_offsets))
    known = has_vector[impressions.clicks]
    clicks, owner = impressions.clicks[known].astype(np.int64), owner[known]
    if max_len is not None:
        ends = np.cumsum(np.bincount(owner, minlength=num))
        newest = ends[owner] - np.arange(len(owner)) <= max_len
        clicks, owner = clicks[newest], owner[newest]
    lengths = np.bincount(owner, minlength=num)
    sources = np.where(lengths > 0, np.cumsum(lengths) - 1, -1)
    numbers = np.arange(num)
    return Queries(clicks, lengths, np.zeros(num, np.int64), sources, numbers + 1, lengths + 1,
                   int(np.count_nonzero(~known)))


# --- metrics --------------------------------------------------------------------------------------


def measure(scores, labels, offsets):
    """({"auc": mean, ...} of NAMES, how many impressions were left out). NaN where none is left.

    scores: <float>[items], which may be -inf but not NaN; labels: <bool>[items]
    offsets: <int64>[impressions + 1], where the items of each impression begin
    """
    lengths = np.diff(offsets)
    impression = np.repeat(np.arange(len(lengths)), lengths)
    clicked = np.bincount(impression, labels, len(lengths))
    measured = (clicked > 0) & (clicked < lengths)
    if not measured.any():
        return dict.fromkeys(NAMES, np.nan), len(lengths)
    of_measured = measured[impression]
    values = measure_each(scores[of_measured], labels[of_measured], lengths[measured])
    return ({name: float(value.mean()) for name, value in values.items()},
            int(np.count_nonzero(~measured)))


def measure_each(scores, labels, lengths):
    """{"auc": <float64>[impressions], ...} of NAMES. Each impression has items of both labels.

    scores, labels: as of measure; lengths: <int64>[impressions], items of each
    """
    num = len(lengths)
    impression = np.repeat(np.arange(num), lengths)
    # Each impression in its place, best first, of equal scores the last one shown.
    order = np.lexsort((-np.arange(len(scores)), -scores, impression))
    scores, labels = scores[order], labels[order]
    rank = np.arange(1, len(scores) + 1) - (np.cumsum(lengths) - lengths)[impression]

    def sums(values):
        return np.bincount(impression, values, num)

    clicked = sums(labels)
    values = {"auc": _auc(scores, labels, impression, rank, sums),
              "mrr": sums(labels / rank) / clicked}
    for k in (5, 10):
        gains = (rank <= k) / np.log2(1 + rank)
        values[f"ndcg@{k}"] = sums(gains * labels) / sums(gains * (rank <= clicked[impression]))
    return values


def _auc(scores, labels, impression, rank, sums):
    """From the mean rank of the clicked items, in which equal scores share the mean of theirs (Mann
    and Whitney)."""
    begins = np.ones(len(scores), bool)  # of what has the same score in the same impression
    begins[1:] = (scores[1:] != scores[:-1]) | (impression[1:] != impression[:-1])
    tie = np.cumsum(begins) - 1
    shared = (np.bincount(tie, rank) / np.bincount(tie))[tie]
    clicked, items = sums(labels), sums(np.ones(len(labels)))
    above = sums(labels * shared) - clicked * (clicked + 1) / 2  # pairs with the click below
    return 1 - above / (clicked * (items - clicked))

"""Fits what items score that their session has clicked already (ssr.retrieval.repeats), to sessions
that training has not seen.

Sessions of training would not do: of them the model knows what comes next better than it will ever
know again, so that coming back seems rarer than it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssr.evaluation.ranking import Ranker, encode
from ssr.retrieval.repeats import RepeatScore, features_of
from ssr.runtime import paddle

PAIRS = 1 << 30  # of a query and an item, at most so many are scored
FEWEST = 500  # queries, however many items there are
BATCH_SIZE, ITEMS_AT_A_TIME = 200, 2048  # of a block, whose scores stay in the cache
STEP = 2.0  # of the temperatures between which the sum over the other items is interpolated
SCALES = STEP * np.arange(2, 17)
MAX_LOG = 300.0  # a step of the minimization that leads far away is one with a finite value
TINY = 1e-30  # where a session has clicked all candidates
SPREAD = 0.1  # how far from where it starts a weight is expected to be, in units of a cosine


def fit_repeats(encoder, queries, start=None):
    """The RepeatScore that makes the labels of queries likeliest, where an item has a probability ~
    exp(scale * score), with a scale that is fitted too.

    encoder: IdEncoder; queries: Queries of sessions that it was not trained on
    start: the RepeatScore to begin with, all zeros if None; on few queries the result stays near it
    """
    from scipy.optimize import minimize

    start = np.array(start or RepeatScore())
    examples = _collect(encoder, queries)
    if examples is None:
        return RepeatScore(*start.tolist())
    loss = _Loss(examples, start)
    end = minimize(loss, loss.start, jac=True, method="L-BFGS-B", bounds=loss.bounds).x
    return RepeatScore(*end[1:].tolist())


class _Examples(NamedTuple):
    """What is known of some queries.

    others: <float64>[queries, SCALES], the log of the sum of exp(scale * cosine) over all
        candidates but the items of the session
    label: <float64>[queries], the cosine of what was clicked next, 0 if the session clicked it
    rows, cosines, features, is_label: <int64>[n], <float64>[n], <float64>[n, 7], <bool>[n], of the
        items of the sessions (OwnItems)
    """

    others: np.ndarray
    label: np.ndarray
    rows: np.ndarray
    cosines: np.ndarray
    features: np.ndarray
    is_label: np.ndarray


@paddle.no_grad()
def _collect(encoder, queries):
    """The _Examples of those queries whose label has a vector, None where there is none."""
    candidates = encoder.has_vector
    ranker = Ranker(encoder, candidates)
    asked, users = _encode(encoder, queries, max(FEWEST, PAIRS // len(ranker.candidates)))
    if not len(asked):
        return None
    own, labels = queries.own_items(asked, encoder.max_len, candidates), queries.labels[asked]
    cosines = ranker.cosines(paddle.to_tensor(users[own.rows]), own.items)
    is_label = own.items == labels[own.rows]
    label = ranker.cosines(paddle.to_tensor(users), labels).astype(np.float64)
    label[own.rows[is_label]] = 0
    others = np.log(np.maximum(_sums_over_others(ranker, users, own), TINY))
    return _Examples(others, label, own.rows, cosines.astype(np.float64),
                     features_of(cosines, own), is_label)


def _encode(encoder, queries, most):
    """(<int64>[n], at most about so many queries whose label has a vector; <float32>[n, dim], their
    user vectors)"""
    asked, users = [np.zeros(0, np.int64)], [np.zeros((0, encoder.dim), np.float32)]
    for batch, vectors in encode(encoder, queries, BATCH_SIZE):
        chosen = encoder.has_vector[queries.labels[batch]]
        asked.append(batch[chosen])
        users.append(vectors.numpy()[chosen])
        most -= np.count_nonzero(chosen)
        if most <= 0:
            break
    return np.concatenate(asked), np.concatenate(users)


def _sums_over_others(ranker, users, own):
    """For each of SCALES the sum of exp(scale * cosine) over all candidates but the own items:
    <float64>[n, SCALES]."""
    sums = np.zeros((len(users), len(SCALES)))
    place = np.searchsorted(ranker.candidates, own.items)
    for start in range(0, len(ranker.candidates), ITEMS_AT_A_TIME):
        vectors = ranker.vectors(ranker.candidates[start:start + ITEMS_AT_A_TIME]).numpy()
        for first in range(0, len(users), BATCH_SIZE):
            scores = users[first:first + BATCH_SIZE] @ vectors.T
            here = slice(*np.searchsorted(own.rows, [first, first + len(scores)]))
            rows, columns = own.rows[here] - first, place[here] - start
            inside = (columns >= 0) & (columns < len(vectors))
            scores[rows[inside], columns[inside]] = -np.inf
            sums[first:first + len(scores)] += _sums_of_exponentials(scores)
    return sums


def _sums_of_exponentials(scores):
    """The sum of exp(scale * score) over each row, for each of SCALES: <float32>[n, SCALES].
    scores: <float32>[n, m]"""
    factor = np.exp(STEP * scores)  # one exponential, then products
    power, sums = np.power(factor, SCALES[0] / STEP), []
    for _ in SCALES:
        sums.append(power.sum(axis=1))
        power *= factor
    return np.stack(sums, axis=1)


class _Loss:
    """The mean cross-entropy and its gradient, as a function of (scale, *weights), and how far the
    weights are from where they start.

    start: where the minimization begins; bounds: of each number
    """

    def __init__(self, examples, weights):
        from scipy.interpolate import CubicSpline

        self.examples = examples
        self.others = CubicSpline(SCALES, examples.others, axis=1)
        self.slope = self.others.derivative()
        self.start = np.concatenate([[SCALES[len(SCALES) // 2]], weights])
        self.bounds = [(SCALES[0], SCALES[-1])] + [(None, None)] * len(weights)

    def __call__(self, x):
        scale, weights = x[0], x[1:]
        rows, size = self.examples.rows, len(self.examples.label)
        own = self.examples.cosines + self.examples.features @ weights
        is_label = self.examples.is_label
        label = self.examples.label + np.bincount(rows, own * is_label, size)
        others, powers = np.exp(self.others(scale)), np.exp(np.minimum(scale * own, MAX_LOG))
        total = others + np.bincount(rows, powers, size)
        away = (x - self.start)[1:] / SPREAD
        value = np.sum(np.log(total) - scale * label) + away @ away / 2
        share = powers / total[rows]
        by_scale = others / total * self.slope(scale) + np.bincount(rows, share * own, size) - label
        by_weights = scale * ((share - is_label) @ self.examples.features) + away / SPREAD
        return value / size, np.concatenate([[by_scale.sum()], by_weights]) / size

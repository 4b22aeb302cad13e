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
BATCH_SIZE = 200  # queries at a time
STEP = 2.0  # of the temperatures between which the sum over the other items is interpolated
SCALES = STEP * np.arange(2, 17)
TINY = 1e-30  # where a session has clicked all candidates
SPREAD = 0.3  # how far from where it starts a weight is expected to be, in units of a cosine


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
    room = max(FEWEST, PAIRS // np.count_nonzero(candidates))
    parts = []
    for batch, users in encode(encoder, queries, BATCH_SIZE):
        rankable = candidates[queries.labels[batch]]
        if rankable.any():
            users = paddle.gather(users, paddle.to_tensor(np.flatnonzero(rankable)))
            parts.append(_examples_of(ranker, users, queries, batch[rankable], encoder.max_len))
            room -= len(parts[-1].label)
        if room <= 0:
            break
    if not parts:
        return None
    sizes = [len(part.label) for part in parts]
    shifts = np.cumsum([0, *sizes])
    return _Examples(*(np.concatenate(values) for values in zip(*(
        part._replace(rows=part.rows + shift) for part, shift in zip(parts, shifts)))))


def _examples_of(ranker, users, queries, asked, max_len):
    own = queries.own_items(asked, max_len, ranker.is_candidate)
    labels = queries.labels[asked]
    cosines = ranker.cosines(paddle.gather(users, paddle.to_tensor(own.rows)), own.items)
    is_label = own.items == labels[own.rows]
    label = ranker.cosines(users, labels).astype(np.float64)
    label[own.rows[is_label]] = 0
    others = np.zeros((len(asked), len(SCALES)))
    places = ranker.places(own.items)
    for start, scores in ranker.scores(users):
        scores = scores.numpy()
        here = (places >= start) & (places < start + scores.shape[1])
        scores[own.rows[here], places[here] - start] = -np.inf
        others += _sums_of_exponentials(scores)
    return _Examples(np.log(np.maximum(others, TINY)), label, own.rows, cosines.astype(np.float64),
                     features_of(cosines, own), is_label)


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
        others, powers = np.exp(self.others(scale)), np.exp(scale * own)
        total = others + np.bincount(rows, powers, size)
        away = (x - self.start)[1:] / SPREAD
        value = np.sum(np.log(total) - scale * label) + away @ away / 2
        share = powers / total[rows]
        by_scale = others / total * self.slope(scale) + np.bincount(rows, share * own, size) - label
        by_weights = scale * ((share - is_label) @ self.examples.features) + away / SPREAD
        return value / size, np.concatenate([[by_scale.sum()], by_weights]) / size

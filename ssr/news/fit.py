"""Fits the weights of the live score: those that make the clicks of some hours likeliest."""

from __future__ import annotations

import numpy as np

from ssr.news.scoring import LINEAR, MIXED, TINY, Scoring

MAX_LOG = 80.0  # of a weight: its exponential must fit into float32
STEPS = 100  # of L-BFGS
LEAST_SHARE = 1e-4  # weights of the mixture are fitted as logarithms: 0 begins here


class Examples:
    """Queries to fit a Scoring to: for each the features of the candidates that could be among the
    best, the label's with them. Those are the BEST by each feature and by the default weights:
    thousands that none of these puts in front would have more weight in the softmax than in any
    figure.
    """

    BEST = 60

    def __init__(self):
        self.features = []  # of each query
        self.labels = []  # where the label is among them
        self.weights = []

    def add(self, stream, label, user, session, now, weight=1.0):
        """A query, before its click; it is left out where its label is no candidate.

        label: the article clicked next; user, session, now: as of Stream.features
        weight: of the query in the fit
        """
        features = stream.features(user, session, now)
        row = stream.articles.rows.get(label)
        rows = np.flatnonzero(stream.candidates(session, now))
        if row is None or row not in rows:
            return
        features = features.select(rows)
        place = int(np.searchsorted(rows, row))
        chosen = self._best(features, place)
        self.features.append(features.select(chosen))
        self.labels.append(int(np.searchsorted(chosen, place)))
        self.weights.append(weight)

    def _best(self, features, label):
        """Which articles to keep, ascending."""
        score = features.score(*Scoring().weights())
        mixed = [features.part(name) for name in MIXED if name not in ("share", "floor")]
        # What two articles have alike, as no transition, the default weights tell apart.
        orders = [score, *(feature + 1e-3 * score for part in (features.linear, *mixed)
                           for feature in part)]
        best = min(self.BEST, len(score))
        return np.unique(np.concatenate([[label], *(np.argpartition(-order, best - 1)[:best]
                                                    for order in orders)]))

    def __len__(self):
        return len(self.labels)


def fit_scoring(examples, start=None, off=(), ridge=1e-4):
    """The Scoring that makes the examples' clicks likeliest: least cross-entropy by L-BFGS.

    start: a Scoring, None for the default one
    off: parts that stay switched off (Scoring.without); `content` is at least 0, and so is all of
        the mixture
    ridge: weighs the squared distance from start, the mixture's in logarithms: what the examples
        say nothing about stays as it is
    returns (Scoring, cross-entropy at start, cross-entropy at the end), in nats a query
    """
    from scipy.optimize import minimize
    loss = _Loss(examples, (start or Scoring()).without(*off), off, ridge)
    end = minimize(loss, loss.start, jac=True, method="L-BFGS-B", bounds=loss.bounds(),
                   options={"maxiter": STEPS}).x
    return loss.scoring(end), loss(loss.start)[0], loss(end)[0]


class _Loss:
    """Cross-entropy and ridge as a function of the weights that are not switched off: the linear
    ones, then the logarithms of the mixture's.

    start: where the minimization begins, <float64>[weights]
    """

    def __init__(self, examples, start, off, ridge):
        self.ridge = ridge
        self.linear = np.concatenate([features.linear for features in examples.features], 1)
        self.mixed = np.concatenate([features.mixed for features in examples.features], 1)
        self.sizes = np.array([features.linear.shape[1] for features in examples.features])
        self.begin = np.cumsum(self.sizes) - self.sizes
        self.labels = self.begin + np.array(examples.labels)
        self.weights = np.array(examples.weights) / np.sum(examples.weights)
        ones = Scoring.from_weights(np.ones(LINEAR.size), np.ones(MIXED.size))
        self.free = np.concatenate(ones.without(*off).weights()) > 0
        linear, mixed = (weights.astype(float) for weights in start.weights())
        self.origin = np.concatenate([linear, np.log(np.maximum(mixed, LEAST_SHARE))])
        self.start = self.origin[self.free]

    def bounds(self):
        bounds = [(0, None) if name == "content" else (None, None)
                  for layout in (LINEAR, MIXED) for name in layout
                  for _ in range(layout[name].stop - layout[name].start)]
        return [bound for bound, free in zip(bounds, self.free) if free]

    def split(self, x):
        """The weights that x stands for: <float64>[LINEAR.size], <float64>[MIXED.size]."""
        point = self.origin.copy()
        point[self.free] = x
        linear, mixed = point[:LINEAR.size], point[LINEAR.size:]
        return linear, np.where(self.free[LINEAR.size:], np.exp(np.minimum(mixed, MAX_LOG)), 0)

    def scoring(self, x):
        linear, mixed = self.split(x)
        return Scoring.from_weights(np.where(self.free[:LINEAR.size], linear, 0), mixed)

    def __call__(self, x):
        """(the loss, its gradient <float64>[weights])"""
        linear, mixed = (weights.astype(np.float32) for weights in self.split(x))
        mixture = mixed @ self.mixed + np.float32(TINY)
        score = linear @ self.linear + np.log(mixture)
        score -= np.repeat(np.maximum.reduceat(score, self.begin), self.sizes)
        probability = np.exp(score)
        total = np.add.reduceat(probability, self.begin)
        cross_entropy = float(self.weights @ (np.log(total) - score[self.labels]))
        probability *= np.repeat(self.weights / total, self.sizes).astype(np.float32)
        probability[self.labels] -= self.weights.astype(np.float32)
        gradient = np.concatenate([self.linear @ probability,
                                   (self.mixed @ (probability / mixture)) * mixed])
        away = x - self.start
        return (cross_entropy + self.ridge * away @ away,
                gradient[self.free] + 2 * self.ridge * away)

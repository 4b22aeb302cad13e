"""Replays sessions in order of time, as a service would have seen them: the live score, the frozen
model and the baselines are asked before each click and learn from it.

A query knows the clicks of its session before it, and of all others those strictly earlier than its
own time. Ties count against, articles of the session are no candidates, an article that is no
candidate is a miss.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from ssr.errors import SetupError
from ssr.news.baselines import rank_among
from ssr.news.fit import Examples, fit_scoring
from ssr.news.scoring import Scoring
from ssr.news.stream import Stream
from ssr.news.timeline import Method
from ssr.progress import progress_bar

SLICE = 64  # clicks whose sessions are encoded together


class StreamMethod(Method):
    """The live score. The vectors of the readers' sessions are those of the beginning of a slice.

    encoder: IdEncoder of all articles; scoring: Scoring; age: seconds, as of Stream
    k: a label that is not among the first k has rank 0
    """

    def __init__(self, encoder, scoring, age, k):
        self.encoder, self.scoring, self.k = encoder, scoring, k
        self.stream = Stream(encoder.dim, self._trained_vector, age)
        self._users = {}  # by the number of the click

    def _trained_vector(self, item):
        return self.encoder.vectors[item] if self.encoder.has_vector[item] else None

    def prepare(self, clicks):
        users = self.encoder.encode_sessions(
            [self.encoder.newest(click.before, self._embedded) for click in clicks])
        self._users.update((click.number, user) for click, user in zip(clicks, users))

    def _embedded(self, item):
        """A click on an item, as the encoder takes it; None for one that it cannot take."""
        click = self.encoder.click(item)
        return self.encoder.stand_in(self.stream.vector(item)) if click is None else click

    def rank(self, click):
        return self.stream.rank(click.item, self._users[click.number], click.before, click.time,
                                self.scoring, self.k)

    def learn(self, click):
        self.stream.advance(click.time)
        self.stream.click(click.item, click.before, click.time, self._users.pop(click.number))


class _Collector(StreamMethod):
    """Makes Examples of a random share of the queries and ranks nothing.

    weight: called with an article, says how much a query counts whose label it is
    """

    def __init__(self, encoder, age, share, weight):
        super().__init__(encoder, Scoring(), age, k=0)
        self.examples, self._share, self._weight = Examples(), share, weight
        self._random = np.random.default_rng(0)

    def rank(self, click):
        if self._random.random() < self._share:
            self.examples.add(self.stream, click.item, self._users[click.number], click.before,
                              click.time, self._weight(click.item))
        return 0


class Frozen(Method):
    """The model as it was trained: the cosine with every article that it has a vector of.

    encoder: IdEncoder
    """

    def __init__(self, encoder):
        self.encoder = encoder
        self._users = {}  # by the number of the click

    def prepare(self, clicks):
        asked = [click for click in clicks if click.asked]
        users = self.encoder.encode_sessions(
            [self.encoder.newest(click.before, self.encoder.click) for click in asked])
        self._users = {click.number: user for click, user in zip(asked, users)}

    def rank(self, click):
        user = self._users[click.number]
        if user is None or not self.encoder.has_vector[click.item] or click.item in click.before:
            return 0
        scores = self.encoder.vectors @ user
        scores[~self.encoder.has_vector] = -np.inf
        return rank_among(scores, click.item, list(set(click.before)))


def replay(timeline, method, name):
    """Goes through all clicks of a Timeline with a Method.

    name: of the method, for the progress bar
    returns the ranks of the queries <int64>[queries], in order; and how many clicks a second were
    gone through from the first query on
    """
    ranks, unlearned = [], []
    first = began = None  # the number of the first query, and when it was asked
    with progress_bar(total=len(timeline), desc=name, unit="click") as bar:
        for begin in range(0, len(timeline), SLICE):
            clicks = timeline.slice(begin, begin + SLICE)
            method.prepare(clicks)
            for click in clicks:
                if unlearned and unlearned[-1].time < click.time:
                    for earlier in unlearned:
                        method.learn(earlier)
                    unlearned.clear()
                if click.asked:
                    if first is None:
                        first, began = click.number, time.perf_counter()
                    ranks.append(method.rank(click))
                unlearned.append(click)
            bar.update(len(clicks))
    seconds = time.perf_counter() - began if ranks else 1.0
    return np.array(ranks, np.int64), (len(timeline) - (first or 0)) / seconds


class Fit(NamedTuple):
    """A Scoring that was fitted. queries: how many it was fitted on; before, after: their
    cross-entropy with the default weights and with these, in nats a query"""

    scoring: Scoring
    queries: int
    before: float
    after: float


def fit_on_replay(timeline, encoder, age, queries, unknown_weight, off=()):
    """Fits the weights of the score on the queries of a Timeline: a Fit.

    encoder, age: as of StreamMethod
    queries: about how many are looked at
    unknown_weight: of a click on an article unknown to training, against one on a known article
    off: parts that stay switched off, as in Scoring.without
    Raises SetupError where there is nothing to fit on.
    """
    collector = _Collector(encoder, age, queries / max(timeline.asked.sum(), 1),
                           lambda item: 1.0 if encoder.clicked[item] else unknown_weight)
    replay(timeline, collector, "fit")
    if not len(collector.examples):
        raise SetupError("--fit: no query has its label among the candidates")
    scoring, before, after = fit_scoring(collector.examples, off=off)
    return Fit(scoring, len(collector.examples), before, after)

"""Metrics of what was answered to queries, each with a 95% interval over sessions.

Every query has one relevant item, its label, the item that was clicked next. For the K best items:

    recall@K      share of the queries whose label is among them
    mrr@K         mean of 1 / rank of the label, 0 where it is not among them
    ndcg@K        mean of 1 / log2(1 + rank), likewise: with one relevant item the ideal DCG is 1
                  (Jaervelin and Kekaelaeinen, "Cumulated gain-based evaluation of IR techniques",
                  TOIS 2002)
    hit_rate@K    share of the sessions that have a label among them for any of their queries; with
                  one query a session it is recall@K, which many papers call so
    coverage@K    share of the candidates that are recommended to any query
    popularity@K  mean, over all that is recommended, of the training clicks of an item, as a share
                  of those of the most clicked one

the last two as in session-rec (Ludewig and Jannach, "Evaluation of Session-based Recommendation
Algorithms", UMUAI 2018).

The queries of a session depend on each other, so sessions are what the bootstrap draws: as many as
there are, with replacement, over and over (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13: the percentile interval). The draws depend on the number of sessions
and on the seed alone, so all that is measured on the same sessions sees the same draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

import utils

NAMES = ("recall", "mrr", "ndcg", "hit_rate", "coverage", "popularity")
RESAMPLES = 1000
LEVEL = 95  # percent of the resamples lie in the interval
WEIGHTS_AT_A_TIME = 1 << 22  # 32 MB: resamples x sessions
# An item that was recommended to more sessions is missing from less than e^-40 of the resamples.
RARE = 40


class Catalogue(NamedTuple):
    """What can be recommended.

    candidates: <bool>[V]
    clicks: <int32>[V], in training
    """

    candidates: np.ndarray
    clicks: np.ndarray


class Estimate(NamedTuple):
    """A figure and its 95% interval; all three are NaN where there is nothing to measure."""

    value: float
    low: float
    high: float

    def __str__(self):
        if np.isnan(self.value):
            return "n/a"
        return f"{self.value:.4f} [{self.low:.3f}, {self.high:.3f}]"


def measure(answers, sessions, catalogue, topk, resamples=RESAMPLES, seed=0):
    """{"recall@20": Estimate, ...}: all metrics at each K, in the order of NAMES.

    answers: Answers, whose lists are max(topk) long or hold all candidates
    sessions: <int64>[queries], numbers of the sessions that the queries are of
    catalogue: Catalogue
    topk: the K, ints
    """
    return measure_all([answers], sessions, catalogue, topk, resamples, seed)[0]


def measure_all(rows, sessions, catalogue, topk, resamples=RESAMPLES, seed=0):
    """A list of what measure returns of each of several Answers to the same queries; quicker."""
    session, count = _numbered(sessions)
    statistics = {}
    for row, answers in enumerate(rows):
        for k in topk:
            top = answers.top[:, :k]
            of_k = [*_of_ranks(answers.ranks, session, count, k),
                    Coverage(top, session, count, catalogue.candidates),
                    _popularity(top, session, count, catalogue.clicks)]
            statistics.update(((row, f"{name}@{k}"), of) for name, of in zip(NAMES, of_k))
    estimates = bootstrap(statistics, count, resamples, seed)
    return [{name: estimate for (of, name), estimate in estimates.items() if of == row}
            for row in range(len(rows))]


def measure_recall(rows, sessions, k, resamples=RESAMPLES, seed=0):
    """[Estimate] of recall@k of the ranks of several Answers. rows: list of <int64>[queries]"""
    session, count = _numbered(sessions)
    recall = {row: _of_ranks(ranks, session, count, k)[0] for row, ranks in enumerate(rows)}
    return [*bootstrap(recall, count, resamples, seed).values()]


def measure_gain(ranks, others, sessions, k, resamples=RESAMPLES, seed=0):
    """The Estimate of how much higher recall@k of ranks is than that of others, on the same
    queries: <int64>[queries] each. The draws are paired, so the interval is narrower than those of
    the two."""
    session, count = _numbered(sessions)
    mine, theirs = (_of_ranks(of, session, count, k)[0] for of in (ranks, others))
    gain = Ratio(mine.above - theirs.above, mine.below)
    return bootstrap({"gain": gain}, count, resamples, seed)["gain"]


def _numbered(sessions):
    """(the sessions numbered from 0 on without gaps, how many they are)"""
    numbers, session = np.unique(sessions, return_inverse=True)
    return session, len(numbers)


# --- statistics: each a value of all sessions, and one of each resample ---------------------------


class Ratio:
    """A sum over sessions by another. above, below: <float64>[sessions]"""

    def __init__(self, above, below):
        self.above, self.below = above, below
        self.value = _divide(above.sum(), below.sum())

    def of(self, weights):
        """<float64>[resamples]. weights: <float64>[resamples, sessions], how often each is drawn"""
        return _divide(weights @ self.above, weights @ self.below)

    def interval(self, values):
        """(low, high) from the values of all resamples: their percentiles."""
        return _percentiles(values)


class Coverage:
    """The share of the candidates in any list.

    A resample holds 63% of the sessions, so its lists cover less than those of all. The interval is
    as wide as the resamples are apart and lies around the value.

    top: <int32>[queries, K]; session: <int64>[queries]; candidates: <bool>[V]
    """

    def __init__(self, top, session, count, candidates):
        rows, columns = np.nonzero(top >= 0)
        shape = len(candidates), count
        items = sparse.csr_matrix((np.ones(len(rows)), (top[rows, columns], session[rows])), shape)
        items = items[candidates]
        lists = np.diff(items.indptr)
        self.frequent = int(np.count_nonzero(lists > RARE))
        self.rare = items[(lists > 0) & (lists <= RARE)]
        self.candidates = items.shape[0]
        self.value = _divide(self.frequent + self.rare.shape[0], self.candidates if count else 0)

    def of(self, weights):
        """As Ratio.of."""
        drawn = self.rare @ weights.T > 0
        return (self.frequent + drawn.sum(axis=0)) / self.candidates

    def interval(self, values):
        """As Ratio.interval."""
        low, high = _percentiles(values) - values.mean() + self.value
        return max(0.0, low), min(1.0, high)


def bootstrap(statistics, count, resamples=RESAMPLES, seed=0):
    """{name: Estimate} of {name: Ratio or Coverage}, of `count` sessions."""
    values = {name: [] for name in statistics}
    for weights in draw(count, resamples, seed):
        for name, statistic in statistics.items():
            values[name].append(statistic.of(weights))
    return {name: Estimate(statistic.value, *statistic.interval(np.concatenate(values[name])))
            if np.isfinite(statistic.value) else Estimate(np.nan, np.nan, np.nan)
            for name, statistic in statistics.items()}


def draw(count, resamples, seed):
    """Yields <float64>[n, count], how often each of `count` sessions is in each of n resamples,
    within a fixed memory."""
    random = np.random.default_rng(seed)
    step = max(1, WEIGHTS_AT_A_TIME // max(1, count))
    for start in range(0, resamples if count else 0, step):
        yield np.stack([np.bincount(random.integers(0, count, count), minlength=count)
                        for _ in range(min(step, resamples - start))]).astype(np.float64)


def _of_ranks(ranks, session, count, k):
    """The Ratios of recall, MRR, NDCG and hit rate."""
    hit, reciprocal = utils.hits(ranks, k)
    discounted = np.where(hit, 1 / np.log2(1 + np.maximum(ranks, 1)), 0)
    queries = np.bincount(session, minlength=count)
    sums = [np.bincount(session, gains, count) for gains in (hit, reciprocal, discounted)]
    return [*(Ratio(gains, queries) for gains in sums), Ratio(sums[0] > 0, np.ones(count))]


def _popularity(top, session, count, clicks):
    """The Ratio of the mean popularity."""
    listed = top >= 0
    share = np.where(listed, clicks[top] / max(1, clicks.max()), 0)
    return Ratio(np.bincount(session, share.sum(axis=1), count),
                 np.bincount(session, listed.sum(axis=1), count))


def _percentiles(values):
    return np.nanpercentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])


def _divide(above, below):
    """above / below, NaN where below is 0."""
    with np.errstate(invalid="ignore"):  # where below is 0 so is above
        return np.true_divide(above, below)

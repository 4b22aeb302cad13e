"""A question to a Stream: which articles fit a session at a moment, with no more work than the
answer needs.

Of thousands of articles a few dozen can be among the best. What an article scores without
transitions falls and rises slowly while nobody clicks it, and a cosine is at most 1: so there is a
Ceiling over its scores of the next minute. Below the worst score that counts, an article is passed
over. Scored are those that a transition leads to, those that were clicked since, and those whose
ceiling is high enough; and of these the products of vectors are left out where the rest of the
score already decides.

The answer is that of all scores, bit for bit. A score does not depend on which others are computed
beside it (as it may in BLAS), and all bounds leave room for rounding.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from ssr.news.scoring import (
    COUNT_FLOOR,
    LAGS,
    LINK_FLOOR,
    PASSAGES,
    SHARE_WINDOW,
    SHRINK,
    TINY,
    WINDOWS,
    Features,
)

SECONDS = 60.0  # that a Ceiling holds
MARKED = 64  # articles that may change before it is made anew, or 1/16 of all
LEADERS = 64  # articles that are scored first, to see what the best score
ROUNDING = 1e-4  # of a product of two vectors of length 1, much more than there is
ROUNDING_OF_SUM = 1e-5  # of a score, of all that is added up in it
_WINDOWS, _PASSAGES = np.array(WINDOWS), np.array(PASSAGES)
_NO_ROWS, _NO_NUMBERS = np.empty(0, np.int64), np.empty(0)


def normalized(x):
    """A vector of length 1; zeros stay: <float32>[dim]."""
    return x / max(_length(x), 1e-9)


def _length(x):
    return math.sqrt(x @ x)


class Question:
    """What is asked of a Stream whose clock has come to the moment of the question; it does not
    outlive a change of the Stream. Rows are those of its articles.

    stream: Stream; user, session, now: as of Stream.features
    scoring: a Scoring
    """

    def __init__(self, stream, user, session, now, scoring):
        self._stream, self._articles, self._count = stream, stream.articles, stream.articles.used
        self._session, self._now, self._scoring = session, now, scoring
        since = (stream.base or 0.0) - now  # from the moment of the question to `base`
        self._decay, self._decay_of_links = np.exp(since / _WINDOWS), np.exp(since / _PASSAGES)
        self._direction = None
        if user is not None and stream.users:
            self._direction = normalized(user - stream.common)

    # --- what a score is made of

    def features(self):
        """The Features of all articles."""
        features, rows = Features.zeros(self._count), slice(self._count)
        counts = self._counts(rows)
        features.part("power")[:] = np.log(counts + np.float32(COUNT_FLOOR)).T
        features.part("share")[0] = counts[:, SHARE_WINDOW] / np.float32(self._recent)
        for lag, targets, transitions, decay in self._links():
            features.part("last" if lag == 1 else "earlier")[:, targets] += (transitions * decay).T
        features.part("followed")[0] = np.log(features.part("last")[-1] + np.float32(LINK_FLOOR))
        features.part("floor")[:] = 1
        if self._direction is not None:
            features.part("readers")[0] = self._readers(rows)
            features.part("content")[0] = self._content(rows)
        return features

    def _counts(self, rows):
        """The clicks on articles, <float32>[n, WINDOWS]. rows: <int64>[n], or a slice"""
        return (self._articles.clicks[rows] * self._decay).astype(np.float32)

    @cached_property
    def _recent(self):
        """The clicks on all articles that popularity is a share of."""
        counts = self._articles.clicks[:self._count, SHARE_WINDOW]
        return max(counts.sum() * self._decay[SHARE_WINDOW], 1e-9)

    def _links(self):
        """Yields (lag, rows <int64>[n], counts <float64>[n, PASSAGES], decay <float64>[PASSAGES])
        for the session's clicks, of which the newest has lag 1: counts * decay are the transitions
        to these articles."""
        for lag, item in enumerate(reversed(self._session[-LAGS:]), 1):
            source = self._articles.rows.get(item)
            targets = None if source is None else self._stream.transitions.of(source)
            if targets is not None:
                yield (lag, *targets, self._decay_of_links / lag)

    @cached_property
    def _linked(self):
        """What transitions add to an article's mixture and to its score, and whether any leads to
        it: <float64>[rows], <float32>[rows], <bool>[rows]."""
        scoring, weights = self._scoring, np.array([self._scoring.last, self._scoring.earlier])
        score = np.full(self._count, scoring.followed * np.log(LINK_FLOOR), np.float32)
        is_linked = np.zeros(self._count, bool)
        targets, added = [_NO_ROWS], [_NO_NUMBERS]
        for lag, rows, counts, decay in self._links():
            targets.append(rows)
            added.append(counts @ (decay * weights[min(lag, 2) - 1]))
            if lag == 1:
                followed = np.log1p(counts[:, -1] * (decay[-1] / LINK_FLOOR))
                score[rows] += scoring.followed * followed
        targets = np.concatenate(targets)
        is_linked[targets] = True
        mixture = np.bincount(targets, np.concatenate(added), self._count)
        return mixture, score, is_linked

    def _trust(self, rows):
        """How much the readers of articles are worth, <float32>[n]. rows: as of _counts"""
        readers = self._articles.readers[rows]
        return readers / (readers + np.float32(SHRINK))

    def _readers(self, rows):
        """The feature of that name, <float32>[n]. rows: as of _counts"""
        return self._trust(rows) * _products(self._articles.direction[rows], self._direction)

    def _content(self, rows):
        """As _readers."""
        articles, common = self._articles, self._stream.common @ self._direction
        product = _products(articles.content[rows], self._direction)
        return (1 - self._trust(rows)) * (product - articles.has_content[rows] * common)

    # --- scores

    def _rest(self, rows):
        """The scores of articles without readers and content, <float32>[n]: as Features.score, and
        what is 0 for most articles is computed for the others. rows: <int64>[n]"""
        scoring = self._scoring
        of_mixture, of_score, _ = self._linked
        counts = self._counts(rows)
        mixture = counts[:, SHARE_WINDOW] * np.float32(scoring.share / self._recent)
        mixture += of_mixture[rows]
        mixture += np.float32(scoring.floor + TINY)
        counts += np.float32(COUNT_FLOOR)
        rest = _products(np.log(counts, out=counts), np.array(scoring.power, np.float32))
        rest += of_score[rows]
        rest += np.log(mixture, out=mixture)
        return rest

    @property
    def _uses_vectors(self):
        return self._direction is not None and (self._scoring.readers or self._scoring.content)

    def _with_vectors(self, rows, rest):
        """The scores, <float32>[n]. rest: _rest of the rows"""
        if not self._uses_vectors:
            return rest
        # All of it at once, so that it is rounded as the reach is.
        return rest + sum(np.float32(weight) * feature(rows) for weight, feature in (
            (self._scoring.readers, self._readers), (self._scoring.content, self._content))
            if weight)

    def scores(self, rows):
        """The scores of articles, <float32>[n]. rows: <int64>[n]"""
        return self._with_vectors(rows, self._rest(rows))

    def _reach(self, rows):
        """How far they are from the rest at most, <float32>[n] or 0."""
        if not self._uses_vectors:
            return np.float32(0)
        return _reach(self._scoring, self._trust(rows), _length(self._stream.common))

    def best(self, candidates, k):
        """The k best candidates, the best first, and of equal ones the one whose row comes first:
        (their rows <int64>[n], scores <float32>[n]). A score that is not a number is none.

        candidates: <bool>[rows]
        """
        first, rows, rest = self._first(candidates, k + LEADERS)
        least = _kth_best(rest - self._reach(rows), k)
        rows, scores = self._near(least, rows, rest)
        others, of_others = self._scores_from(_kth_best(scores, k), candidates & ~first)
        rows, scores = np.concatenate([rows, others]), np.concatenate([scores, of_others])
        chosen = np.flatnonzero(scores > -np.inf)
        order = chosen[np.lexsort((rows[chosen], -scores[chosen]))[:k]]
        return rows[order], scores[order]

    def rank(self, row, candidates, k):
        """How many candidates score as high as one of them or higher, itself among them; 0 where
        they are more than k.

        row: of that one; candidates: <bool>[rows]
        """
        first, rows, rest = self._first(candidates, k + LEADERS, [row])
        place = np.searchsorted(rows, [row])
        own, = self._with_vectors(rows[place], rest[place])
        if _reaching(own, rest - self._reach(rows)) > k:
            return 0
        _, scores = self._near(own, rows, rest)
        _, of_others = self._scores_from(own, candidates & ~first)
        rank = _reaching(own, scores) + _reaching(own, of_others)
        return rank if rank <= k else 0

    def _first(self, candidates, leaders, others=_NO_ROWS):
        """Those to begin with, which may be the best: the candidates that the Ceiling says nothing
        of, and so many that it has highest: (<bool>[rows], their rows <int64>[n], _rest of them).

        others: rows of further ones
        """
        ceiling = self._ceiling
        first = ceiling.upper[:self._count] == np.inf
        first |= self._linked[-1]
        first[ceiling.leaders[:leaders]] = True
        first[others] = True
        first &= candidates
        rows = np.flatnonzero(first)
        return first, rows, self._rest(rows)

    def _scores_from(self, least, among):
        """Those that may score so much, and perhaps some others: (rows <int64>[n], scores
        <float32>[n]). among: <bool>[rows]"""
        rows = np.flatnonzero(among & ~(self._ceiling.upper[:self._count] < least))
        if not len(rows):
            return rows, np.empty(0, np.float32)
        return self._near(least, rows, self._rest(rows))

    def _near(self, least, rows, rest):
        """As _scores_from, of some rows. rest: _rest of the rows"""
        is_near = ~(rest + self._reach(rows) < least)
        return rows[is_near], self._with_vectors(rows[is_near], rest[is_near])

    @property
    def _ceiling(self):
        """The Stream's, a new one if need be."""
        stream, about = self._stream, (self._stream, self._scoring, self._now)
        if stream.ceiling is None or not stream.ceiling.holds(*about):
            stream.ceiling = Ceiling(*about, *self._highest())
        return stream.ceiling

    def _highest(self):
        """What articles score at most, and what is added up for that, in the next SECONDS and
        without transitions; <float64>[rows] each."""
        scoring, counts = self._scoring, self._counts(slice(self._count))
        # The share falls, by the clicks on others.
        parts = [[np.log(counts[:, SHARE_WINDOW] * (scoring.share / self._recent)
                         + (scoring.floor + TINY))],
                 [np.full(self._count, scoring.followed * np.log(LINK_FLOOR))]]
        for power, window, of_window in zip(scoring.power, WINDOWS, counts.T):
            ends = np.stack([of_window, of_window * np.exp(-SECONDS / window)])
            parts.append(power * np.log(ends + COUNT_FLOOR))
        return (sum(np.max(part, axis=0).astype(float) for part in parts),
                sum(np.max(np.abs(part), axis=0).astype(float) for part in parts) + 1)


class Ceiling:
    """What articles score at most from a moment on, for SECONDS, without transitions.

    upper: <float32>[room], inf for what it does not know
    leaders: <int64>[n], the rows that it knows, the highest first
    """

    def __init__(self, stream, scoring, now, highest, size):
        """highest, size: as of Question._highest"""
        self._scoring, self._from, self._marked = scoring, now, 0
        self._length = 1.01 * _length(stream.common) + 0.01  # of `common`, for a while
        count = stream.articles.used
        readers = stream.articles.readers[:count]
        reach = _reach(scoring, readers / (readers + np.float32(SHRINK)), self._length)
        self._most = max(MARKED, count // 16)
        self.upper = np.full(len(stream.articles.ids), np.inf, np.float32)
        self.upper[:count] = highest + size * ROUNDING_OF_SUM + reach
        self.leaders = np.argsort(-self.upper[:count], kind="stable")

    def mark(self, row):
        """An article is not what it was."""
        self.upper[row:row + 1] = np.inf  # or it is a new one, for which there is no room
        self._marked += 1

    def holds(self, stream, scoring, now):
        """Whether it is of use for a question."""
        return (self._from <= now <= self._from + SECONDS and self._marked <= self._most
                and stream.articles.used <= len(self.upper) and scoring == self._scoring
                and (not scoring.content or _length(stream.common) <= self._length))


def _reach(scoring, trust, length):
    """How much readers and content add to scores at most, either way, <float32>[n]: a cosine is not
    above 1.

    trust: <float32>[n]; length: of the mean of all users
    """
    reach = trust * np.float32(abs(scoring.readers) * (1 + ROUNDING))
    if scoring.content:
        reach += (1 - trust) * np.float32(abs(scoring.content) * (1 + ROUNDING) * (1 + length))
    return reach


def _kth_best(scores, k):
    """The k-th best score, below which nothing is among the k best; -inf where there are fewer."""
    return -np.partition(-scores, k - 1)[k - 1] if 0 < k <= len(scores) else -np.inf


def _reaching(least, scores):
    """How many scores are so high. One that is not a number is below nothing."""
    return len(scores) - int(np.count_nonzero(scores < least))


def _products(vectors, direction):
    """<float32>[n, dim], <float32>[dim] -> <float32>[n], each as if it were computed alone."""
    return np.einsum("ij,j->i", vectors, direction)

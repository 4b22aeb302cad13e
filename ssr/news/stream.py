"""News as they happen: what is known of the articles that are read these days.

An article appears, is read for some hours and vanishes; training saw none of it. What is known of
it at any moment is who clicked it, when, and what its readers went on to. A Stream keeps just that
and is changed by every click, in less than a millisecond. How it becomes a score is in scoring.py.

    stream = Stream(dim=128)
    stream.advance(1508000000)
    stream.click(item=7, previous=[3, 5], time=1508000000, user=vector)   # None: no vector
    ids, scores = stream.scores(vector, session=[3, 5, 7], now=1508000060, scoring=Scoring())

**The clock** is the caller's: advance, and the `now` of every question, and nothing else makes
anything old. The time of a click does not: one that is ahead of the clock waits until the clock has
passed it. A click at time t is seen by what asks later than t, and by nothing that asks at t. The
clock does not go back; a question about an earlier moment is answered with what is known.

**A session counts once.** Its first click on an article counts for popularity, readers and
transitions; another one only keeps the article a candidate. So no session can lift an article by
more than any other reader does.

Articles and transitions are forgotten `age` seconds after the last click on them, so memory grows
with the traffic of a day and not with the age of the stream: 12 * dim + 100 bytes an article and
about 150 bytes a pair of articles that readers went between. That is decided once an hour (compact)
and carried out a little at a time, by what is called next.

Everything is numpy. A Stream is not locked: one thread at a time.
"""

from __future__ import annotations

import heapq
import itertools
from typing import NamedTuple, Optional

import numpy as np

from ssr.news import saved
from ssr.news.articles import Articles
from ssr.news.scoring import (
    COUNT_FLOOR,
    LAGS,
    LINK_FLOOR,
    PASSAGES,
    READERS,
    SHARE_WINDOW,
    SHRINK,
    WINDOWS,
    Features,
    Scoring,
)
from ssr.news.transitions import Transitions

AGE = 86400.0  # seconds after its last click that an article is a candidate
COMMON = 20000  # the mean of all users forgets: its newest term counts for 1/20000 at least
COMPACT_EVERY = 3600.0  # seconds of the clock
SWEEP_AT_A_TIME = 16  # articles whose transitions advance brings up to date after that
REBASE_AFTER = 100.0 * min(WINDOWS + PASSAGES)  # seconds; exp(+age/w) must not overflow
_WINDOWS, _PASSAGES = np.array(WINDOWS), np.array(PASSAGES)


def normalized(x):
    """Rows of length 1; zeros stay: <float32>[..., dim]."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


class Waiting(NamedTuple):
    """A click that the clock has not passed yet; sorts by time, then in the order of arrival."""

    time: float
    number: int
    item: int
    previous: tuple
    user: Optional[np.ndarray]


class Stream:
    """The live state of the articles that are read these days.

    dim: of the users' vectors
    vector_of: called with an article's id when it is first clicked, returns its vector of length 1
        <float32>[dim] (trained, or made from its words), or None where it has none
    age: seconds after its last click that an article remains a candidate
    """

    def __init__(self, dim, vector_of=None, age=AGE):
        self.dim, self.age = dim, float(age)
        self.vector_of = vector_of or (lambda item: None)
        self.articles, self.transitions = Articles(dim), Transitions()
        self.withdrawn = set()  # ids, also of articles that are not known
        self.clock = -np.inf
        self.compacted = None  # the time of the last compaction
        self.base = None  # the moment at which a click counts 1
        self.common = np.zeros(dim, np.float32)  # mean of all users' vectors
        self.users = 0  # how many went into it
        self._waiting = []  # a heap of Waiting: what the clock has not passed yet
        self._number = itertools.count()

    def __len__(self):
        return len(self.articles)

    def waiting(self):
        """The clicks that the clock has not passed yet, a list of Waiting in order."""
        return sorted(self._waiting)

    # --- what changes it --------------------------------------------------------------------------

    def advance(self, now):
        """Sets the clock: clicks strictly earlier are visible from here on. An earlier time than
        before changes nothing."""
        if now <= self.clock:
            return
        self.clock = now
        while self._waiting and self._waiting[0].time < now:
            click = heapq.heappop(self._waiting)
            self._apply(click.item, click.previous, click.time, click.user)
        if not self.transitions.is_swept:
            self.transitions.sweep(SWEEP_AT_A_TIME)
        elif self.compacted is None and len(self):
            self.compacted = now
        elif len(self) and now - self.compacted > COMPACT_EVERY:
            self._start_compaction(now)

    def click(self, item, previous, time, user=None):
        """A reader clicked.

        item: the article, an integer
        previous: the session's clicks before it, the newest last. Transitions start from the newest
            LAGS; all say what the session has clicked before
        time: in seconds, on any one clock; clicks may come late
        user: <float32>[dim], the vector of the session before this click; None where it has none
        """
        item, time = int(item), float(time)
        # A repeated click brings nothing with it.
        previous = (item,) if item in previous else tuple(previous[-LAGS:])
        if time < self.clock:
            self._apply(item, previous, time, user)
        else:
            heapq.heappush(self._waiting, Waiting(time, next(self._number), item, previous, user))

    def publish(self, item, time, vector=None):
        """An article is a candidate from now on, though nobody clicked it yet.

        vector: <float32>[dim] of length 1, of its words; None for what vector_of says
        """
        row = self._row(int(item), float(time))
        self.restore(item)
        if vector is not None:
            self.articles.content[row], self.articles.has_content[row] = vector, 1

    def withdraw(self, item):
        """The article is no candidate any more, however often it is clicked."""
        self.withdrawn.add(int(item))
        self._mark(item, True)

    def restore(self, item):
        """Takes withdraw back."""
        self.withdrawn.discard(int(item))
        self._mark(item, False)

    def _mark(self, item, withdrawn):
        row = self.articles.rows.get(int(item))
        if row is not None:
            self.articles.withdrawn[row] = withdrawn

    def _apply(self, item, previous, time, user):
        self._rebase(time)
        articles, row = self.articles, self._row(item, time)
        articles.last_click[row] = max(articles.last_click[row], time)
        if item in previous:
            return
        articles.clicks[row] += np.exp((time - self.base) / _WINDOWS)
        if user is not None:
            self._read(row, user)
        worth = np.exp((time - self.base) / _PASSAGES)
        seen = set()
        for lag, source in enumerate(reversed(previous), 1):
            if source not in seen:
                seen.add(source)
                self.transitions.add(self._row(int(source), time), row, worth / lag)

    def _read(self, row, user):
        """A reader's vector goes into the mean of the article and that of all."""
        articles = self.articles
        self.users += 1
        self.common += (user - self.common) / min(self.users, COMMON)
        articles.readers[row] = n = articles.readers[row] + 1
        articles.mean[row] += (user - self.common - articles.mean[row]) / min(n, READERS)
        articles.direction[row] = normalized(articles.mean[row])

    def _row(self, item, time):
        """The row of an article, a new one if need be."""
        row = self.articles.rows.get(item)
        if row is None:
            row = self.articles.add(item, time)
            self.articles.withdrawn[row] = item in self.withdrawn
            vector = self.vector_of(item)
            if vector is not None:
                self.articles.content[row], self.articles.has_content[row] = vector, 1
        return row

    def _rebase(self, time):
        """Counts are kept as sums of exp((time - base) / w): only what is asked for decays. The
        base moves on before that overflows."""
        if self.base is None:
            self.base = self.transitions.base = time
        if time - self.base > REBASE_AFTER:
            self.articles.clicks *= np.exp((self.base - time) / _WINDOWS)
            self.base = self.transitions.base = time

    # --- what it forgets --------------------------------------------------------------------------

    def compact(self, now):
        """Forgets at once what is too old at a moment; advance does it by itself, a little at a
        time."""
        self._start_compaction(now)
        self.transitions.sweep_all()

    def _start_compaction(self, now):
        """From here on all answers are those of the smaller state, and the transitions of each
        article are brought up to date when they are next needed, or by advance."""
        self.compacted = now
        new_rows = self.articles.remove(self.articles.older(now - self.age))
        self.transitions.compact(new_rows, now - self.age)

    # --- what asks it -----------------------------------------------------------------------------

    def features(self, user, session, now):
        """The Features of every article, in rows as in `articles`.

        user: <float32>[dim], None where the session has no vector
        session: its items, the newest last
        """
        self.advance(now)
        return self._features(user, session, now, Scoring(readers=1.0, content=1.0))

    def _features(self, user, session, now, scoring):
        """Those of readers and content are computed where their weights are not 0."""
        features = Features.zeros(self.articles.used)
        since = (self.base or 0.0) - now
        if user is not None and self.users:
            self._compare(features, normalized(user - self.common), scoring)
        self._count(features, since)
        self._follow(features, session, since)
        features.part("floor")[:] = 1
        return features

    def _compare(self, features, direction, scoring):
        """With readers and content. direction: of the user, <float32>[dim]"""
        articles, n = self.articles, self.articles.used
        trust = articles.readers[:n] / (articles.readers[:n] + SHRINK)
        if scoring.readers:
            cosine, = features.part("readers")
            cosine[:] = articles.direction[:n] @ direction
            cosine *= trust
        if scoring.content:
            product, = features.part("content")
            product[:] = articles.content[:n] @ direction
            product -= articles.has_content[:n] * (self.common @ direction)
            product *= 1 - trust

    def _count(self, features, since):
        """With popularity. since: `base`, in seconds after the moment that is asked at"""
        counts = features.part("power")
        counts[:] = (self.articles.clicks[:self.articles.used] * np.exp(since / _WINDOWS)).T
        features.part("share")[0] = counts[SHARE_WINDOW] / max(counts[SHARE_WINDOW].sum(), 1e-9)
        counts += np.float32(COUNT_FLOOR)
        np.log(counts, out=counts)

    def _follow(self, features, session, since):
        """With the transitions from the session's clicks. since: as in _count"""
        decay = np.exp(since / _PASSAGES)
        last, earlier = features.part("last"), features.part("earlier")
        for lag, item in enumerate(reversed(session[-LAGS:]), 1):
            source = self.articles.rows.get(item)
            targets = None if source is None else self.transitions.of(source)
            if targets is not None:
                rows, counts = targets
                (last if lag == 1 else earlier)[:, rows] += (counts * (decay / lag)).T
        features.part("followed")[0] = np.log(last[-1] + np.float32(LINK_FLOOR))

    def _scores(self, user, session, now, scoring, exclude_session=True, among=None):
        """<float32>[rows], -inf for what is no candidate. among: as in top"""
        self.advance(now)
        score = self._features(user, session, now, scoring).score(*scoring.weights())
        mask = self.candidates(session if exclude_session else (), now)
        if among is not None:
            rows = np.flatnonzero(mask)
            mask[rows] = among(self.articles.ids[rows])
        score[~mask] = -np.inf
        return score

    def candidates(self, session, now):
        """<bool>[rows]: clicked in the last `age` seconds, not withdrawn, not in the session."""
        articles = self.articles
        mask = articles.last_click[:articles.used] >= now - self.age
        mask &= ~articles.withdrawn[:articles.used]
        mask[[articles.rows[item] for item in session if item in articles.rows]] = False
        return mask

    def scores(self, user, session, now, scoring, exclude_session=True, among=None):
        """(ids <int64>[n], scores <float32>[n]) of the candidates at a moment, in no order.

        user, session, now: as in features; exclude_session, among: as in top
        """
        score = self._scores(user, session, now, scoring, exclude_session, among)
        chosen = np.flatnonzero(score > -np.inf)
        return self.articles.ids[chosen], score[chosen]

    def top(self, user, session, now, scoring, k, exclude_session=True, among=None):
        """The best k of scores, the best first.

        exclude_session: whether the session's articles are no candidates
        among: <int64>[n] -> <bool>[n], whether an id may be one; None: all may
        """
        ids, score = self.scores(user, session, now, scoring, exclude_session, among)
        if len(ids) > k:
            best = np.argpartition(-score, k)[:k]
            ids, score = ids[best], score[best]
        order = np.argsort(-score, kind="stable")
        return ids[order], score[order]

    def rank(self, label, user, session, now, scoring):
        """1 + the other candidates that score as high as the label or higher; 0 where the label is
        no candidate."""
        score = self._scores(user, session, now, scoring)
        row = self.articles.rows.get(label)
        if row is None or score[row] == -np.inf:
            return 0
        # Not "those at or above": a score that is not a number is below nothing.
        return len(score) - int(np.count_nonzero(score < score[row]))

    def volume(self, now):
        """How many clicks there were lately, each worth exp(-age / w), w the longest of WINDOWS."""
        self.advance(now)
        if self.base is None:
            return 0.0
        clicks = self.articles.clicks[:self.articles.used, -1].sum()
        return float(clicks * np.exp((self.base - now) / WINDOWS[-1]))

    def vector(self, item):
        """The readers' vector of an article, <float32>[dim] of length 1, None where there is none
        yet: in a model with a tied tower it can stand for the article inside of a session."""
        row = self.articles.rows.get(item)
        return self.articles.direction[row] if row is not None and self.articles.readers[row] \
            else None

    # --- on disk ----------------------------------------------------------------------------------

    def to_arrays(self):
        """{name: array}, all of the state, for numpy.savez or a blob."""
        return saved.to_arrays(self)

    @classmethod
    def from_arrays(cls, arrays, vector_of=None, now=None):
        """The Stream that to_arrays was asked of.

        now: the clock; clicks that the arrays have of later moments count as of this one
        Raises KeyError, ValueError where they are not of a Stream.
        """
        return saved.from_arrays(cls, arrays, vector_of, now)

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
from ssr.news.question import Question, normalized
from ssr.news.scoring import LAGS, PASSAGES, READERS, WINDOWS, Scoring
from ssr.news.transitions import Transitions

AGE = 86400.0  # seconds after its last click that an article is a candidate
COMMON = 20000  # the mean of all users forgets: its newest term counts for 1/20000 at least
COMPACT_EVERY = 3600.0  # seconds of the clock
SWEEP_AT_A_TIME = 16  # articles whose transitions advance brings up to date after that
REBASE_AFTER = 100.0 * min(WINDOWS + PASSAGES)  # seconds; exp(+age/w) must not overflow
_WINDOWS, _DECAYS = np.array(WINDOWS), np.array(WINDOWS + PASSAGES)


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
        self.ceiling = None  # of the newest questions (question.py)
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
        self._mark_changed(row)

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
        self._mark_changed(row)
        articles.last_click[row] = max(articles.last_click[row], time)
        if item in previous:
            return
        worth = np.exp((time - self.base) / _DECAYS)
        articles.clicks[row] += worth[:len(WINDOWS)]
        if user is not None:
            self._read(row, user)
        worth = worth[len(WINDOWS):]
        seen = set()
        for lag, source in enumerate(reversed(previous), 1):
            if source not in seen:
                seen.add(source)
                self.transitions.add(self._row(int(source), time), row, worth / lag)

    def _mark_changed(self, row):
        if self.ceiling is not None:
            self.ceiling.mark(row)

    def _read(self, row, user):
        """A reader's vector goes into the mean of the article and that of all."""
        articles = self.articles
        self.users += 1
        self.common += (user - self.common) / min(self.users, COMMON)
        articles.readers[row] = n = articles.readers[row] + 1
        mean = articles.mean[row]
        mean += (user - self.common - mean) / min(n, READERS)
        articles.direction[row] = normalized(mean)

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
        self.compacted, self.ceiling = now, None
        new_rows = self.articles.remove(self.articles.older(now - self.age))
        self.transitions.compact(new_rows, now - self.age)

    # --- what asks it -----------------------------------------------------------------------------

    def features(self, user, session, now):
        """The Features of every article, in rows as in `articles`.

        user: <float32>[dim], None where the session has no vector
        session: its items, the newest last
        """
        return self._ask(user, session, now, Scoring()).features()

    def _ask(self, user, session, now, scoring):
        self.advance(now)
        return Question(self, user, session, now, scoring)

    def candidates(self, session, now):
        """<bool>[rows]: clicked in the last `age` seconds, not withdrawn, not in the session."""
        articles = self.articles
        mask = articles.last_click[:articles.used] >= now - self.age
        mask &= ~articles.withdrawn[:articles.used]
        mask[[articles.rows[item] for item in session if item in articles.rows]] = False
        return mask

    def _candidates(self, session, now, exclude_session, among):
        """As candidates. exclude_session, among: as in top"""
        mask = self.candidates(session if exclude_session else (), now)
        if among is not None:
            rows = np.flatnonzero(mask)
            mask[rows] = among(self.articles.ids[rows])
        return mask

    def scores(self, user, session, now, scoring, exclude_session=True, among=None):
        """(ids <int64>[n], scores <float32>[n]) of the candidates at a moment, in no order.

        user, session, now: as in features; exclude_session, among: as in top
        """
        question = self._ask(user, session, now, scoring)
        rows = np.flatnonzero(self._candidates(session, now, exclude_session, among))
        return self.articles.ids[rows], question.scores(rows)

    def top(self, user, session, now, scoring, k, exclude_session=True, among=None):
        """The best k of scores, the best first.

        exclude_session: whether the session's articles are no candidates
        among: <int64>[n] -> <bool>[n], whether an id may be one; None: all may
        """
        question = self._ask(user, session, now, scoring)
        rows, scores = question.best(self._candidates(session, now, exclude_session, among), k)
        return self.articles.ids[rows], scores

    def rank(self, label, user, session, now, scoring, k):
        """1 + the other candidates that score as high as the label or higher; 0 where the label is
        no candidate or not among the first k."""
        question = self._ask(user, session, now, scoring)
        row, candidates = self.articles.rows.get(label), self.candidates(session, now)
        return 0 if row is None or not candidates[row] else question.rank(row, candidates, k)

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

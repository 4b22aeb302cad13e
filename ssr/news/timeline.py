"""Sessions as a stream of clicks in order of time, and what is asked to predict them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ReplayedClick(NamedTuple):
    """A click as the replay comes to it.

    item: that was clicked; before: the items of the session before it, the newest last
    time: in seconds; session: a number that its session alone has
    number: of the click, in order of time; asked: whether it is a query
    """

    item: int
    before: list
    time: float
    session: int
    number: int = 0
    asked: bool = True


class Method:
    """What a replay evaluates: it is asked before each click (rank) and then shown it (learn). A
    click is shown when the first later one comes, so that what happens at one moment is not known
    at that moment."""

    def prepare(self, clicks):
        """Called with each slice of the replay, a list of ReplayedClick, before it is gone
        through: what can be computed for many clicks at once, may be computed here."""

    def rank(self, click):
        """The rank of click.item, from 1 on, among all items that the method would have recommended
        to click.before at click.time, without the session's; ties count against it. 0: it is not
        among them."""
        raise NotImplementedError

    def learn(self, click):
        """The click happened."""


class Timeline:
    """All clicks in order of time; those of the same time in the order of their sessions.

    items: <int64>[clicks]; times: <int64>[clicks], seconds
    asked: <bool>[clicks], whether the click is a query: each but the first of a session, none of
        the sessions to warm up
    """

    def __init__(self, items, offsets, times, asked):
        """items, times, asked: [clicks], by session; offsets: <int64>[sessions + 1]"""
        lengths = np.diff(offsets)
        session = np.repeat(np.arange(len(lengths)), lengths)
        position = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
        order = np.argsort(times, kind="stable")
        self.items, self.times = items[order], times[order]
        self.asked = (asked & (position > 0))[order]
        self._sessions = [part.tolist() for part in np.split(items, offsets[1:-1])]
        self._session, self._position = session[order].tolist(), position[order].tolist()

    @classmethod
    def of(cls, data, times, warm=None, warm_times=None, warm_seconds=86400):
        """The Timeline of some sessions, and of those to warm up that end in the last warm_seconds
        before them or later.

        data, warm: data sets as reader.load_timed_sessions returns them; times, warm_times:
            <int64>[clicks]
        """
        items, offsets = np.asarray(data.items, np.int64), data.offsets
        asked = np.ones(len(items), bool)
        if warm is not None:
            recent = warm_times[warm.offsets[1:] - 1] >= int(times.min()) - warm_seconds
            lengths = np.diff(warm.offsets)
            chosen = np.repeat(recent, lengths)
            items = np.concatenate([np.asarray(warm.items, np.int64)[chosen], items])
            times = np.concatenate([warm_times[chosen], times])
            asked = np.concatenate([np.zeros(chosen.sum(), bool), asked])
            lengths = np.concatenate([lengths[recent], np.diff(offsets)])
            offsets = np.concatenate([[0], np.cumsum(lengths)])
        return cls(items, offsets, times, asked)

    def __len__(self):
        return len(self.items)

    def slice(self, begin, end):
        """Clicks number begin..end-1, a list of ReplayedClick."""
        columns = zip(self.items[begin:end].tolist(), self.times[begin:end].tolist(),
                      self._session[begin:end], self._position[begin:end],
                      self.asked[begin:end].tolist())
        return [ReplayedClick(item, self._sessions[session][:position], time, session, number,
                              asked)
                for number, (item, time, session, position, asked) in enumerate(columns, begin)]

"""What is asked of a model or baseline, sessions cut into what was clicked and what came next, and
what it answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reader import ragged_arange
from ssr.retrieval.repeats import OwnItems


class Queries(NamedTuple):
    """What is asked, the same for every epoch of a run.

    clicks: <int64>[clicks], the sessions' clicks that have a vector, without the last click of
        each, which is only ever a label; end to end
    lengths: <int64>[sessions], how many of these each session has, 0 allowed
    labels: <int64>[queries], the items that were clicked next
    sources: <int64>[queries], the place in clicks where the query's sequence ends; -1 where no
        click with a vector comes before the label
    sessions, positions: <int64>[queries], the label is click number `position` of the session;
        both from 1 on
    skipped: clicks without a vector that were left out of the sequences
    """

    clicks: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    sessions: np.ndarray
    positions: np.ndarray
    skipped: int

    def select(self, chosen):
        """The chosen ones among the queries. chosen: <bool>[queries]"""
        return self._replace(**{name: getattr(self, name)[chosen] for name in
                                ("labels", "sources", "sessions", "positions")})

    def ends(self):
        """For the queries that have a click before their label, <int64>[n] each: which these are,
        the session in `lengths` of each, and the place in it, from 0 on, where the query's sequence
        ends."""
        asked = np.flatnonzero(self.sources >= 0)
        return (asked, *self._end(asked))

    def _end(self, asked):
        ends = np.cumsum(self.lengths)
        session = np.searchsorted(ends, self.sources[asked], side="right")
        return session, self.sources[asked] - (ends - self.lengths)[session]

    def own_items(self, asked, max_len, candidates):
        """The OwnItems of some queries, each of which has a click before its label.

        asked: <int64>[n], which ones
        max_len: the newest clicks that count, None for all
        candidates: <bool>[V], the items that do
        """
        lengths = np.minimum(self._end(asked)[1] + 1, max_len or np.inf).astype(np.int64)
        clicks = self.clicks[ragged_arange(self.sources[asked] + 1 - lengths, lengths)]
        own = OwnItems.of(clicks, lengths)
        return own.select(candidates[own.items])


class Answers(NamedTuple):
    """What a model or baseline answered to the same queries.

    name: of the model or baseline
    ranks: <int64>[queries], of the label among all candidates, from 1 on, ties against it; 0 where
        it has none, a miss
    top: <int32>[queries, K], the K best items, best first; -1 from where there are no more on
    """

    name: str
    ranks: np.ndarray
    top: np.ndarray


def make_queries(dataset, has_vector, positions):
    """Cuts sessions into sequences and labels, and leaves out the clicks whose items have no
    vector.

    dataset: reader.YoochooseDataset
    has_vector: <bool>[V]; for a baseline, which items it knows
    positions: "last" for one query a session, "all" for one at each click but the first
    """
    items = np.asarray(dataset.items, np.int64)
    starts, last = dataset.offsets[:-1], dataset.offsets[1:] - 1
    session = np.arange(len(starts))
    if positions == "all":
        session = np.repeat(session, last - starts)
        label_at = np.delete(np.arange(len(items)), starts)
    else:
        label_at = last
    inputs = np.delete(np.arange(len(items)), last)
    encodable = inputs[has_vector[items[inputs]]]
    # A sequence ends at the last of these before its label, if that is of the same session.
    sources = np.searchsorted(encodable, label_at) - 1
    begin = np.searchsorted(encodable, starts)
    sources[sources < begin[session]] = -1
    return Queries(items[encodable], np.diff(begin, append=len(encodable)), items[label_at],
                   sources, session + 1, label_at - starts[session] + 1,
                   len(inputs) - len(encodable))


class Task(NamedTuple):
    """What models and baselines are compared on.

    dataset: reader.YoochooseDataset, the sessions of the test
    positions: as of make_queries
    candidates: <bool>[V], the items that are ranked
    labels: <bool>[V], those that are asked for
    """

    dataset: object
    positions: str
    candidates: np.ndarray
    labels: np.ndarray

    def queries(self, known):
        """The Queries of a model or baseline. known: <bool>[V], the items whose clicks it reads"""
        queries = make_queries(self.dataset, known, self.positions)
        return queries.select(self.labels[queries.labels])

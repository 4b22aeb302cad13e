"""Exact evaluation: the rank of every click that came next, among all items, in bounded memory.

All item vectors are computed once; a query is one product with them. An item without a vector is no
candidate; as a label it counts as a miss, as a click it is skipped. Ties count against the model,
so that one whose scores have collapsed looks as bad as it is. Items that the session has clicked
score as ssr.retrieval.repeats says, if the model has such a score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reader import ragged_arange
from ssr.evaluation.queries import Answers
from ssr.progress import progress_bar
from ssr.retrieval.encoder import ITEMS_AT_A_TIME
from ssr.runtime import paddle

SCORES_AT_A_TIME = 1 << 22  # 16 MB: the scores of a batch are computed over this many pairs
CLICKS_AT_A_TIME = 1 << 14  # sessions are encoded in groups of about this size
TIE = 1e-6  # cosines closer than this are equal: it is what rounding does to a sum of products


# --- users ----------------------------------------------------------------------------------------


class _Sequences(NamedTuple):
    """What the user tower is given for some queries, so that each finds its vector among those of
    the sequences' prefixes. A session is one sequence, cut to its first max_len clicks; each query
    that has more clicks before it has its newest max_len as a sequence of its own, behind that of
    its session. Such queries are rare, and all others cost one pass over the session.

    starts, lengths: <int64>[sequences], of each in Queries.clicks, perhaps empty
    asked: <int64>[n], the queries that have a sequence, in order
    rows: <int64>[n], where their vectors are among those of all prefixes, sequences end to end;
        ascending
    """

    starts: np.ndarray
    lengths: np.ndarray
    asked: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, queries, max_len):
        """max_len: the newest clicks that are encoded, None for all"""
        lengths, ends = queries.lengths, np.cumsum(queries.lengths)
        max_len = max_len or int(lengths.max(initial=1))
        asked, session, place = queries.ends()
        is_long = place >= max_len
        long_sources = queries.sources[asked[is_long]]
        starts = np.concatenate([ends - lengths, long_sources - (max_len - 1)])
        cut = np.concatenate([np.minimum(lengths, max_len), np.full(len(long_sources), max_len)])
        order = np.argsort(np.concatenate([np.arange(len(lengths)), session[is_long]]),
                           kind="stable")
        first_row = np.empty(len(order), np.int64)
        first_row[order] = np.cumsum(cut[order]) - cut[order]
        rows = first_row[session] + place
        rows[is_long] = first_row[len(lengths):] + max_len - 1
        return cls(starts[order], cut[order], asked, rows)


def encode(encoder, queries, batch_size):
    """Yields (indices of queries, their user vectors, a tensor <float32>[n, dim]), at most
    batch_size at a time, for all queries that have a click before their label, in order.

    encoder: IdEncoder
    """
    starts, lengths, asked, rows = _Sequences.of(queries, encoder.max_len)
    ends = np.cumsum(lengths)
    # Whole sequences, a few thousand clicks together; a longer one makes a group of its own.
    group = ends // CLICKS_AT_A_TIME
    cuts = np.flatnonzero(np.diff(group, prepend=-1, append=group[-1] + 1))
    for first, end in zip(cuts[:-1], cuts[1:]):
        of_group = lengths[first:end]
        begin, stop = ends[first] - of_group[0], ends[end - 1]
        if begin == stop:
            continue
        clicks = queries.clicks[ragged_arange(starts[first:end], of_group)]
        vectors = encoder.model.encode_user(encoder.embed(clicks), of_group[of_group > 0],
                                            every_prefix=True)
        inside = slice(*np.searchsorted(rows, [begin, stop]))
        cuts_of_batches = range(batch_size, inside.stop - inside.start, batch_size)
        for batch, at in zip(np.split(asked[inside], cuts_of_batches),
                             np.split(rows[inside] - begin, cuts_of_batches)):
            if len(batch):
                yield batch, paddle.gather(vectors, paddle.to_tensor(at))


# --- ranks ----------------------------------------------------------------------------------------


class Ranker:
    """Ranks the candidates for sessions, exactly.

    is_candidate: <bool>[V]; candidates: <int64>[candidates], their ids
    """

    def __init__(self, encoder, candidates):
        """encoder: IdEncoder; candidates: <bool>[V], at least one, all of which have a vector"""
        self.is_candidate, self.candidates = candidates, np.flatnonzero(candidates)
        chunks = np.array_split(self.candidates, -(-len(self.candidates) // ITEMS_AT_A_TIME))
        self._vectors = paddle.concat([encoder.model.encode_item(encoder.embed(chunk))
                                       for chunk in chunks])
        self._by_column = self._vectors.t().contiguous()  # as the product reads it
        self._repeats = encoder.repeats
        self._place = np.cumsum(candidates) - 1

    def places(self, items):
        """Where items stand among the candidates, all of which they are: numpy <int64>[n]."""
        return self._place[items]

    def cosines(self, users, items):
        """Of each user with an item of its own: numpy <float32>[n]. users: <float32>[n, dim];
        items: numpy <int64>[n], candidates all of them"""
        if not len(items):
            return np.zeros(0, np.float32)
        vectors = paddle.gather(self._vectors, paddle.to_tensor(self.places(items)))
        return paddle.sum(users * vectors, axis=1).numpy()

    def rank(self, users, labels, own=None):
        """How many candidates score as high as the label or higher, itself among them.

        users: <float32>[n, dim]; labels: numpy <int64>[n], candidates all of them
        own: OwnItems of the users, candidates all of them; None where these score as all others
        returns numpy <int64>[n]
        """
        bounds = self.cosines(users, labels)
        if own is not None:
            cosines, scores = self._score_own(users, own)
            is_label = own.items == labels[own.rows]
            bounds[own.rows[is_label]] = scores[is_label]
        bounds -= TIE
        column = paddle.to_tensor(bounds[:, None])
        below = sum(paddle.sum(scores < column, axis=1).numpy()
                    for _, scores in self.scores(users))
        if own is not None:  # they were counted by their cosines
            bounds = bounds[own.rows]
            np.add.at(below, own.rows, (scores < bounds).astype(int) - (cosines < bounds))
        # Not "those at or above": a score that is not a number is above nothing and below nothing.
        return len(self.candidates) - below

    def top(self, users, k, own=None):
        """The k best candidates, or all where there are fewer: their ids numpy <int64>[n, k] and
        scores numpy <float32>[n, k], best first. users, own: as of rank"""
        k = min(k, len(self.candidates))
        wanted = k if own is None else k + int(np.bincount(own.rows, minlength=1).max())
        best, items = [], []
        for start, scores in self.scores(users):
            values, places = paddle.topk(scores, min(wanted, scores.shape[1]), axis=1)
            best.append(values.numpy())
            items.append(self.candidates[places.numpy() + start])
        best, items = np.concatenate(best, axis=1), np.concatenate(items, axis=1)
        if own is not None:
            best, items = self._with_own(users, own, best, items)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(items, order, 1), np.take_along_axis(best, order, 1)

    def _score_own(self, users, own):
        """The cosines of OwnItems and their scores: numpy <float32>[n] each."""
        cosines = self.cosines(paddle.gather(users, paddle.to_tensor(own.rows)), own.items)
        return cosines, self._repeats(cosines, own)

    def _with_own(self, users, own, best, items):
        """Candidates and their scores, with each OwnItem once, by its own score."""
        _, scores = self._score_own(users, own)
        best[_contains(own, items)] = -np.inf
        counts = np.bincount(own.rows, minlength=len(items))
        column = ragged_arange(np.zeros_like(counts), counts)
        more = np.full((len(items), counts.max(initial=0)), -np.inf, np.float32)
        more_items = np.zeros(more.shape, np.int64)
        more[own.rows, column], more_items[own.rows, column] = scores, own.items
        return np.concatenate([best, more], axis=1), np.concatenate([items, more_items], axis=1)

    def scores(self, users):
        """Yields (first candidate, <float32>[n, candidates of a chunk]) within a fixed memory."""
        width = max(1, SCORES_AT_A_TIME // users.shape[0])
        for start in range(0, len(self.candidates), width):
            yield start, paddle.matmul(users, self._by_column[:, start:start + width])


def _contains(own, items):
    """Which items are among the OwnItems of their row: <bool>[n, m]. items: <int64>[n, m]"""
    width = max(items.max(initial=0), own.items.max(initial=0)) + 1
    rows = np.arange(len(items))[:, None]
    return np.isin(rows * width + items, own.rows * width + own.items)


@paddle.no_grad()
def evaluate(encoder, queries, candidates, batch_size, on_batch=None):
    """The rank of each query's label among the candidates, from 1 on: <int64>[queries]. 0 where it
    has none, because the label is no candidate or no click of the session has a vector.

    encoder: IdEncoder
    candidates: <bool>[V], at least one, all of which have a vector
    batch_size: queries that are ranked at a time
    on_batch: called with (indices of queries, their user vectors, the Ranker, their OwnItems or
        None), if given
    """
    def own_items(asked):
        if encoder.repeats is None:
            return None
        return queries.own_items(asked, encoder.max_len, candidates)

    ranker = Ranker(encoder, candidates)
    ranks = np.zeros(len(queries.labels), np.int64)
    with progress_bar(total=len(ranks), unit="query") as bar:
        for batch, users in encode(encoder, queries, batch_size):
            rankable = candidates[queries.labels[batch]]
            if rankable.any():
                rows = paddle.gather(users, paddle.to_tensor(np.flatnonzero(rankable)))
                chosen = batch[rankable]
                ranks[chosen] = ranker.rank(rows, queries.labels[chosen], own_items(chosen))
            if on_batch:
                on_batch(batch, users, ranker, own_items(batch))
            bar.update(len(batch))
    return ranks


class ModelRecommender:
    """A trained model, asked as a baseline is (baselines.py).

    known: <bool>[V], the items that have a vector
    """

    def __init__(self, name, encoder, batch_size):
        """encoder: IdEncoder; batch_size: queries that are ranked at a time"""
        self.name, self.encoder, self.batch_size = name, encoder, batch_size
        self.known = encoder.has_vector

    def answer(self, queries, candidates, k, on_top=None):
        """Answers to all queries, with lists of the k best items or of all; k may be 0.

        queries: Queries of the known items
        candidates: <bool>[V], at least one, all of which are known
        on_top: called with (indices of queries, their best items <int64>[n, k], the scores of these
            <float32>[n, k]), if given
        """
        k = min(k, np.count_nonzero(candidates))
        top = np.full((len(queries.labels), k), -1, np.int32)

        def keep(batch, users, ranker, own):
            items, scores = ranker.top(users, k, own)
            top[batch] = items
            if on_top:
                on_top(batch, items, scores)
        ranks = evaluate(self.encoder, queries, candidates, self.batch_size, keep if k else None)
        return Answers(self.name, ranks, top)

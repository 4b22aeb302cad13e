"""Exact evaluation: the rank of every click that came next, among all items, in bounded memory.

Queries are encoded, and then meet the items: a block of both at a time, small enough that its
scores are still in the cache when they are compared. The items' vectors are made on the way, once
for some ten thousand queries, so that there is no second table beside the model's.

An item without a vector is no candidate; as a label it counts as a miss, as a click it is skipped.
Ties count against the model, so that one whose scores have collapsed looks as bad as it is. Items
that the session has clicked score as ssr.retrieval.repeats says, if the model has such a score:
they are ranked by their cosines with all others, and then put right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reader import ragged_arange
from ssr.evaluation.queries import Answers
from ssr.progress import progress_bar
from ssr.runtime import paddle

SCORES_AT_A_TIME = 1 << 18  # 1 MB, the second cache of a core: pairs of a block
SCORES_ON_GPU = 1 << 22
USERS_AT_A_TIME = 1 << 23  # 32 MB: numbers of the users' vectors that meet the items together
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

    candidates: <int64>[candidates], their ids
    """

    def __init__(self, encoder, candidates):
        """encoder: IdEncoder; candidates: <bool>[V], at least one, all of which have a vector"""
        self.candidates, self._encoder = np.flatnonzero(candidates), encoder

    def rank(self, blocks):
        """Lets Blocks meet all candidates."""
        size = max(len(block.users) for block in blocks)
        on_cpu = blocks[0].users.place.is_cpu_place()
        width = (SCORES_AT_A_TIME if on_cpu else SCORES_ON_GPU) // size
        # A block on a CPU counts in bytes (_count).
        width = max(8, min(width, 8 * 255) // 8 * 8) if on_cpu else max(1, width)
        for start in range(0, len(self.candidates), width):
            items = self.candidates[start:start + width]
            vectors = self.vectors(items)
            for block in blocks:
                block.meet(items, vectors)

    def vectors(self, items):
        """Their vectors, a tensor <float32>[n, dim]. items: <int64>[n], candidates all of them"""
        return self._encoder.model.encode_item(self._encoder.embed(items))

    def cosines(self, users, items):
        """Of each user with an item of its own: numpy <float32>[n]. users: <float32>[n, dim];
        items: as of vectors"""
        if not len(items):
            return np.zeros(0, np.float32)
        return paddle.sum(users * self.vectors(items), axis=1).numpy()

    def block(self, users, labels=None, k=0, own=None):
        """A Block of queries. labels: <int64>[n], candidates all of them, None where no rank is
        asked for; own: OwnItems of the queries, candidates all of them, None where these score as
        all others; otherwise as Block"""
        bounds, scored = None, None
        if own is not None:
            cosines = self.cosines(paddle.gather(users, paddle.to_tensor(own.rows)), own.items)
            scored = _Scored(own.rows, own.items, cosines, self._encoder.repeats(cosines, own))
        if labels is not None:
            bounds = self.cosines(users, labels)
            if own is not None:
                is_label = own.items == labels[own.rows]
                bounds[own.rows[is_label]] = scored.scores[is_label]
        return Block(users, bounds, k, scored)

    def top(self, users, k):
        """The k best candidates, or all where there are fewer: their ids numpy <int64>[n, k] and
        scores numpy <float32>[n, k], best first. users: <float32>[n, dim]"""
        block = self.block(users, k=k)
        self.rank([block])
        return block.top()


class _Scored(NamedTuple):
    """Items that score otherwise than by their cosine: rows, items as of OwnItems; cosines, scores:
    <float32>[n]"""

    rows: np.ndarray
    items: np.ndarray
    cosines: np.ndarray
    scores: np.ndarray

    def contains(self, items):
        """Which items are among these in their row: <bool>[n, m]. items: <int64>[n, m]"""
        width = max(items.max(initial=0), self.items.max(initial=0)) + 1
        rows = np.arange(len(items))[:, None]
        return np.isin(rows * width + items, self.rows * width + self.items)

    def as_table(self, rows):
        """(items <int64>[rows, m], scores <float32>[rows, m]), filled up with scores of -inf."""
        counts = np.bincount(self.rows, minlength=rows)
        scores = np.full((rows, counts.max(initial=0)), -np.inf, np.float32)
        items = np.zeros(scores.shape, np.int64)
        place = self.rows, ragged_arange(np.zeros_like(counts), counts)
        items[place], scores[place] = self.items, self.scores
        return items, scores


class Block:
    """Some queries on their way through the items.

    users: a tensor <float32>[n, dim]
    """

    def __init__(self, users, bounds, k, own=None):
        """bounds: the labels' scores, numpy <float32>[n], or None; k: best items to keep; own:
        _Scored, or None"""
        self.users, self._below, self._wanted = users, np.zeros(len(users), np.int64), k
        self._own = own
        # Any of its own may have to leave the best again.
        self._k = k if own is None or not k else k + int(np.bincount(own.rows, minlength=1).max())
        self._on_cpu = users.place.is_cpu_place()
        self._bound = None if bounds is None else bounds[:, None] - np.float32(TIE)
        if self._bound is not None and not self._on_cpu:
            self._bound = paddle.to_tensor(self._bound)
        self._items = np.empty((len(users), 0), np.int64)
        self._scores = np.empty((len(users), 0), np.float32)

    def meet(self, items, vectors):
        """items: <int64>[m], that no query has met; vectors: theirs, a tensor <float32>[m, dim]"""
        scores = paddle.matmul(self.users, vectors, transpose_y=True)
        if not self._on_cpu:
            if self._bound is not None:
                self._below += paddle.sum(scores < self._bound, axis=1).numpy()
            if self._k:
                best, places = paddle.topk(scores, min(self._k, len(items)), axis=1)
                self._keep(items[places.numpy()], best.numpy())
            return
        values = scores.numpy()
        if self._bound is not None:
            self._below += _count(values, self._bound)
        if self._k:
            self._keep_better(items, values)

    def _keep_better(self, items, values):
        """Keeps what is among the best until now. values: <float32>[n, m], the items' scores"""
        if self._scores.shape[1] < self._k:
            return self._keep(np.broadcast_to(items, values.shape), values)
        row, place = np.nonzero(values > self._scores.min(axis=1, keepdims=True))
        if len(row):
            found = np.bincount(row, minlength=len(values))
            column = np.arange(len(row)) - np.repeat(np.cumsum(found) - found, found)
            best = np.full((len(values), found.max()), -np.inf, np.float32)
            which = np.zeros(best.shape, np.int64)
            best[row, column], which[row, column] = values[row, place], items[place]
            self._keep(which, best)

    def _keep(self, items, scores):
        items = np.concatenate([self._items, items], axis=1)
        scores = np.concatenate([self._scores, scores], axis=1)
        if scores.shape[1] > self._k:
            best = np.argpartition(-scores, self._k - 1, axis=1)[:, :self._k]
            items, scores = (np.take_along_axis(x, best, 1) for x in (items, scores))
        self._items, self._scores = items, scores

    def below(self):
        """How many of the items that the queries have met score lower than their labels:
        <int64>[n]."""
        if self._own is None:
            return self._below
        below, own = self._below.copy(), self._own
        bound = np.asarray(self._bound)[own.rows, 0]
        np.add.at(below, own.rows, (own.scores < bound).astype(int) - (own.cosines < bound))
        return below

    def top(self):
        """As Ranker.top, of the items that the queries have met."""
        items, scores = self._items, self._scores
        if self._own is not None:
            others = np.where(self._own.contains(items), -np.inf, scores)
            items, scores = (np.concatenate(pair, axis=1) for pair in zip(
                (items, others), self._own.as_table(len(items))))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :self._wanted]
        return tuple(np.take_along_axis(x, order, 1) for x in (items, scores))


def _count(scores, bound):
    """How many of each row's scores are below a bound, <int64>[n]. A sum of booleans would make
    numbers of them first: bytes of eight columns are added as one number, which holds 255 of each.

    scores: <float32>[n, m], m at most 8 * 255; bound: <float32>[n, 1]
    """
    below = np.zeros((len(scores), -(-scores.shape[1] // 8) * 8), bool)
    np.less(scores, bound, out=below[:, :scores.shape[1]])
    eight = np.add.reduce(below.view(np.uint64), axis=1)
    return eight.view(np.uint8).reshape(len(scores), 8).sum(axis=1, dtype=np.int64)


@paddle.no_grad()
def evaluate(encoder, queries, candidates, batch_size, k=0, on_top=None):
    """The rank of each query's label among the candidates, from 1 on: <int64>[queries]. 0 where it
    has none, because the label is no candidate or no click of the session has a vector.

    encoder: IdEncoder
    candidates: <bool>[V], at least one, all of which have a vector
    batch_size: queries of a block
    k, on_top: where k is not 0, on_top is called with (indices of queries, their k best items
        <int64>[n, k], the scores of these <float32>[n, k]) for all queries that have a vector, in
        order; there are at least k candidates
    """
    def own_items(batch):
        if encoder.repeats is None:
            return None
        return queries.own_items(batch, encoder.max_len, candidates)

    ranker = Ranker(encoder, candidates)
    ranks = np.zeros(len(queries.labels), np.int64)
    batches = encode(encoder, queries, batch_size)
    with progress_bar(total=len(ranks), unit="query") as bar:
        for group in _groups(batches, max(1, USERS_AT_A_TIME // encoder.dim)):
            is_candidate = [candidates[queries.labels[batch]] for batch, _ in group]
            # Any candidate in place of a label that is none.
            blocks = [ranker.block(users, np.where(rankable, queries.labels[batch],
                                                   ranker.candidates[0]), k, own_items(batch))
                      for (batch, users), rankable in zip(group, is_candidate)]
            ranker.rank(blocks)
            for (batch, _), rankable, block in zip(group, is_candidate, blocks):
                ranks[batch] = np.where(rankable, len(ranker.candidates) - block.below(), 0)
                if k:
                    on_top(batch, *block.top())
            bar.update(sum(len(batch) for batch, _ in group))
    return ranks


def _groups(batches, most):
    """Yields lists of batches, as encode yields them, of about so many queries."""
    group, size = [], 0
    for batch, users in batches:
        group.append((batch, users))
        size += len(batch)
        if size >= most:
            yield group
            group, size = [], 0
    if group:
        yield group


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

        def keep(batch, items, scores):
            top[batch] = items
            if on_top:
                on_top(batch, items, scores)
        ranks = evaluate(self.encoder, queries, candidates, self.batch_size, k, keep)
        return Answers(self.name, ranks, top)

"""A trained model that is asked: the ranks of the clicks that came next, exactly and within a
fixed memory.

All item vectors are computed once; a query is one product with them. An item without a vector is
no candidate, as a label it is a miss, as a click it is skipped. Ties count against the model, so
that one whose scores have collapsed looks as bad as it is.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import utils
from nets import SequenceSemanticRetrieval
from ssr.runtime import paddle

SCORES_AT_A_TIME = 1 << 22  # 16 MB: the scores of a batch are computed over this many pairs
CLICKS_AT_A_TIME = 1 << 14  # sessions are encoded, and items, in groups of about this size
TIE = 1e-6  # cosines closer than this are equal: it is what rounding does to a sum of products


def load_model(model_dir, epoch, meta):
    """The model of a checkpoint, ready to be asked. Raises SetupError."""
    model = SequenceSemanticRetrieval(**meta["model"])
    model.set_state_dict(utils.load_state(model_dir, epoch, ".pdparams"))
    model.eval()
    return model


class Items:
    """The items of a model.

    model: SequenceSemanticRetrieval
    content: ItemContent, None for a model whose items are their ids
    has_vector: <bool>[V], for which items there is a vector: those that were clicked in training
        or have content
    clicked: <bool>[V], which items were clicked in training
    """

    def __init__(self, model, content=None):
        self.model, self.content = model, content
        self.clicked = model.item_clicks.numpy() > 0
        self.has_vector = self.clicked if content is None else content.has_vector

    def embed(self, ids):
        """What the towers take (nets): <float32>[items, members * dim] for ids <int64>[items]."""
        if self.content is None:
            return self.model.embed(ids)
        bags = self.content.bags(ids)
        return self.model.embed(bags.rows, bags)


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
        """Some of the queries. chosen: <bool>[queries]"""
        return self._replace(**{name: getattr(self, name)[chosen] for name in
                                ("labels", "sources", "sessions", "positions")})


def make_queries(dataset, has_vector, positions):
    """Cuts the sessions into sequences and labels and skips clicks on items without a vector.

    has_vector: <bool>[V]
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
    kept = inputs[has_vector[items[inputs]]]
    # A sequence ends at the last kept click before its label, if that is of the same session.
    sources = np.searchsorted(kept, label_at) - 1
    begin = np.searchsorted(kept, starts)
    sources[sources < begin[session]] = -1
    return Queries(items[kept], np.diff(begin, append=len(kept)), items[label_at], sources,
                   session + 1, label_at - starts[session] + 1, len(inputs) - len(kept))


class Ranker:
    """Ranks the candidates for the sequences of sessions.

    items: Items
    candidates: <bool>[V], all of which have a vector
    """

    def __init__(self, items, candidates):
        self.candidates = np.flatnonzero(candidates)
        chunks = np.array_split(self.candidates, -(-len(self.candidates) // CLICKS_AT_A_TIME))
        vectors = paddle.concat([items.model.encode_item(items.embed(chunk)) for chunk in chunks])
        self.vectors = vectors
        self.by_column = vectors.t().contiguous()  # as the product reads it
        # Where an item stands among the candidates; only meaningful for those.
        self.place = np.cumsum(candidates) - 1

    def rank(self, users, labels):
        """1 + the candidates that score as high as the label or higher.

        users: <float32>[n, hidden]; labels: numpy <int64>[n], candidates all of them
        returns numpy <int64>[n]
        """
        own = paddle.gather(self.vectors, paddle.to_tensor(self.place[labels]))
        bound = paddle.sum(users * own, axis=1, keepdim=True) - TIE
        below = sum(paddle.sum(scores < bound, axis=1).numpy()
                    for _, scores in self._scores(users))
        # Not "those at or above": a score that is not a number is above nothing and below nothing.
        return len(self.candidates) - below

    def top(self, users, k):
        """The k best candidates: items numpy <int64>[n, k], scores numpy <float32>[n, k], with
        k no more than there are candidates."""
        best, items = [], []
        for start, scores in self._scores(users):
            values, places = paddle.topk(scores, min(k, scores.shape[1]), axis=1)
            best.append(values.numpy())
            items.append(self.candidates[places.numpy() + start])
        best, items = np.concatenate(best, axis=1), np.concatenate(items, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(items, order, 1), np.take_along_axis(best, order, 1)

    def _scores(self, users):
        """Yields (first candidate, <float32>[n, candidates of a chunk]) within a fixed memory."""
        width = max(1, SCORES_AT_A_TIME // users.shape[0])
        for start in range(0, len(self.candidates), width):
            yield start, paddle.matmul(users, self.by_column[:, start:start + width])


def encode(items, queries, batch_size):
    """Yields (indices of queries, their user vectors <float32>[n, hidden]), at most batch_size at
    a time, for all queries whose sequence is not empty, in order."""
    ends = np.cumsum(queries.lengths)
    # Whole sessions, a few thousand clicks together; a longer one makes a group of its own.
    group = ends // CLICKS_AT_A_TIME
    cuts = np.flatnonzero(np.diff(group, prepend=-1, append=group[-1] + 1))
    asked = np.flatnonzero(queries.sources >= 0)
    sources = queries.sources[asked]
    for first, end in zip(cuts[:-1], cuts[1:]):
        lengths = queries.lengths[first:end]
        begin, stop = ends[first] - lengths[0], ends[end - 1]
        if begin == stop:
            continue
        emb = items.embed(queries.clicks[begin:stop])
        vectors = items.model.encode_user(emb, lengths[lengths > 0], every_prefix=True)
        inside = asked[slice(*np.searchsorted(sources, [begin, stop]))]
        for chunk in np.split(inside, range(batch_size, len(inside), batch_size)):
            yield chunk, paddle.gather(vectors,
                                       paddle.to_tensor(queries.sources[chunk] - begin))


@paddle.no_grad()
def evaluate(items, queries, candidates, batch_size, top=None):
    """The rank of each query's label among the candidates, 0 where it has none: <int64>[queries].

    items: Items
    candidates: <bool>[V], all of which have a vector
    top: called with (indices of queries, their user vectors, the Ranker), if given
    """
    ranker = Ranker(items, candidates)
    ranks = np.zeros(len(queries.labels), np.int64)
    with tqdm(total=len(ranks), unit="query", leave=False,
              disable=not sys.stderr.isatty()) as bar:
        for chunk, users in encode(items, queries, batch_size):
            rankable = candidates[queries.labels[chunk]]
            if rankable.any():
                rows = paddle.gather(users, paddle.to_tensor(np.flatnonzero(rankable)))
                chosen = chunk[rankable]
                ranks[chosen] = ranker.rank(rows, queries.labels[chosen])
            if top:
                top(chunk, users, ranker)
            bar.update(len(chunk))
    return ranks

"""The one encoder of sessions and items: for the index, the replay, inference and validation.

A session is its clicks, oldest first, of which the newest max_len are encoded, as many as training
kept. Whoever asks leaves out the clicks whose items have no vector.

The user tower has three forms, the same function of the same parameters, each where the others
cannot be:

    nets.SequenceSemanticRetrieval   sequences end to end, every prefix, gradients, CPU and GPU
    ssr.kernels.static               padded: a static graph has no loop over lengths that are
                                     numpy's, and paddle.inference runs nothing else (export.py)
    FrozenUsers                      numpy: what a single session costs is the number of Paddle's
                                     calls, and here there are none

The GRU itself is written once for the first and the last (ssr.kernels.packed.packed_gru).
tests/test_encoder.py holds all three to the same vectors.
"""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import NamedTuple, Union

import numpy as np

from nets import GrnnEncoder
from ssr.errors import DataError, SetupError
from ssr.kernels.packed import packed_gru
from ssr.retrieval.bag import Bag
from ssr.retrieval.checkpoint import load_model, max_len_of
from ssr.runtime import paddle
from ssr.training.content import NO_FILES, Bags, load_content

ITEMS_AT_A_TIME = 1 << 14  # items are encoded in groups of this size


class Embedding(NamedTuple):
    """A click on an item whose embedding is at hand. vector: <float32>[members * dim]"""

    vector: np.ndarray


# What was clicked, as the encoder takes it; a Bag that holds something.
Clicked = Union[Bag, Embedding]


class Encoder:
    """A trained model, asked for the vectors of sessions and items; from any thread.

    model: SequenceSemanticRetrieval, which does not change any more (checkpoint.load_model)
    max_len: the newest clicks of a session that are encoded, None for all
    stand_in_length: the mean length of the embeddings of the items clicked in training, as of
        mean_length; None where no item needs a stand-in
    dim: of the vectors, members * hidden
    """

    def __init__(self, model, max_len=None, stand_in_length=None):
        self.model, self.max_len, self._stand_in_length = model, max_len, stand_in_length
        self.dim = sum(towers.user_fc.weight.shape[1] for towers in model.members)
        self.is_tied = all(towers.item_fc is None for towers in model.members)
        self._newest = slice(None) if max_len is None else slice(-max_len, None)

    @classmethod
    def load(cls, checkpoint, stand_in_length=None):
        """The encoder of a Checkpoint. Raises SetupError."""
        return cls(load_model(checkpoint), max_len_of(checkpoint.meta), stand_in_length)

    @property
    def stand_in_length(self):
        return self._stand_in_length

    # --- sessions

    def encode_sessions(self, sessions):
        """The vectors of sessions, of length 1: a list of numpy <float32>[dim], None for a session
        without a click. sessions: lists of Clicked, oldest first"""
        sessions = [session[self._newest] for session in sessions]
        lengths = np.array([len(session) for session in sessions if session])
        if not len(lengths):
            return [None] * len(sessions)
        emb = self._embed_clicks([click for session in sessions for click in session])
        vectors = iter(self._users(emb, lengths))
        return [next(vectors) if session else None for session in sessions]

    def newest(self, items, click_of):
        """The clicks of a session that encode_sessions looks at, oldest first, without those that
        come before them being made. items: what was clicked, oldest first; click_of: a function
        from an item to its Clicked, None where it has no vector"""
        clicks = filter(None, map(click_of, reversed(items)))
        return list(itertools.islice(clicks, self.max_len))[::-1]

    def stand_in(self, vector):
        """A click on an item that the model does not know, made of the vector of its readers.

        In a model with a tied item tower an item's vector is the direction of its embedding, so
        theirs, at the mean length of the trained embeddings, is an embedding for it.

        vector: <float32>[dim] of length 1, or None
        returns an Embedding; None where there is no vector, or the model keeps vectors and
        embeddings apart
        """
        if vector is None or not self.is_tied or self.stand_in_length is None:
            return None
        return Embedding(vector * np.float32(self.stand_in_length))

    @cached_property
    def _users(self):
        return FrozenUsers(self.model)

    def _embed_clicks(self, clicks):
        bags = [click for click in clicks if isinstance(click, Bag)]
        if not bags:
            return np.stack([click.vector for click in clicks])
        emb = self._embed_few(bags)
        if len(bags) == len(clicks):
            return emb
        embeddings = iter(emb)
        return np.stack([next(embeddings) if isinstance(click, Bag) else click.vector
                         for click in clicks])

    def _embed_few(self, bags):
        """As _embed_bags, in numpy: quicker for the clicks of a session."""
        with_rows = [bag.rows for bag in bags if len(bag.rows)]
        lengths = np.array([len(rows) for rows in with_rows])
        emb = with_rows and np.add.reduceat(self._rows[np.concatenate(with_rows)],
                                            np.cumsum(lengths) - lengths)
        if not self.model.item_vector_dim:
            return emb
        sums = iter(emb)
        return np.stack([_sum(next(sums) if len(bag.rows) else None, bag.projected)
                         for bag in bags])

    @cached_property
    def _rows(self):
        """The embedding table, numpy <float32>[rows, members * dim]: on a CPU the memory of the
        model's own, no copy of it."""
        table = self.model.embedding.weight
        return np.asarray(table.get_tensor()) if table.place.is_cpu_place() else table.numpy()

    # --- items

    def encode_items(self, bags):
        """The vectors of items, of length 1: a list of numpy <float32>[dim], None for an item that
        is made of nothing. bags: list of Bag"""
        vectors = [None] * len(bags)
        full = [place for place, bag in enumerate(bags) if bag]
        for places in _chunks(full):
            emb = self._embed_bags([bags[place] for place in places])
            for place, vector in zip(places, self.model.encode_item(emb).numpy()):
                vectors[place] = vector
        return vectors

    def mean_length(self, bags):
        """The mean length of the embeddings of items: a float, 1.0 for no item. bags: list of Bag,
        none of them of nothing"""
        return _mean_length(self._embed_bags(chunk) for chunk in _chunks(bags))

    def with_stand_ins(self, bags):
        """The same Encoder, with stand-ins as long as items are on average. bags: of those that
        were clicked in training, as of mean_length"""
        return Encoder(self.model, self.max_len, self.mean_length(bags))

    def bag(self, before, tokens=None, projected=None):
        """The Bag of an item whose content has changed: its own row, if it has one, and all that is
        made of its content.

        before: Bag, what it was made of until now
        tokens: <int64>[n], its token ids; None for a model without tokens
        projected: as of Bag
        """
        own = before.rows[before.rows < self.model.vocab_size]
        if tokens is None:
            return Bag(own, projected)
        rows = np.concatenate([own, self.model.vocab_size + tokens]).astype(np.int32)
        return Bag(rows, projected)

    def bags(self, content):
        """The Bag of each item of an ItemContent: a list."""
        rows = np.split(content.rows, content.offsets[1:-1])
        if content.vectors is None:
            return list(map(Bag, rows))
        projected = [of_item for _, vectors in content.vectors.chunks()
                     for of_item in self.project(vectors)]
        return list(map(Bag, rows, projected))

    def project(self, vectors):
        """What the model makes of the pretrained vectors of items: a list of <float32>[members *
        dim], None for a vector of zeros. vectors: <float32>[n, item_vector_dim]"""
        projected = self.model.item_projection(paddle.to_tensor(vectors)).numpy()
        return [of_item if is_there else None
                for of_item, is_there in zip(projected, vectors.any(axis=1))]

    def project_each(self, items):
        """As project, for a list of values.Item, of which some have a vector. Raises DataError for
        a vector that the model does not take."""
        dim = self.model.item_vector_dim
        vectors = np.zeros((len(items), dim), np.float32)
        for item, row in zip(items, vectors):
            if item.vector is None:
                continue
            if not dim:
                raise DataError(f"item {item.id!r} has a vector, and the model takes none: it was "
                                "trained without --item_vectors")
            if len(item.vector) != dim:
                raise DataError(f"the vector of item {item.id!r} has {len(item.vector)} numbers, "
                                f"and the model takes vectors of {dim}")
            row[:] = item.vector
        return self.project(vectors) if dim else [None] * len(items)

    def _embed_bags(self, bags):
        """The embeddings of bags, none of them of nothing: a tensor <float32>[n, members * dim]."""
        if self.model.item_vector_dim:
            return paddle.to_tensor(self._embed_few(bags))
        lengths = np.array([len(bag.rows) for bag in bags])
        rows = np.concatenate([bag.rows for bag in bags]).astype(np.int64)
        if lengths.max() == 1:
            return self.model.embed(rows)
        bags = Bags.of(rows, lengths)
        return self.model.embed(bags.rows, bags)


def _sum(rows, projected):
    """The sum of what is there of the two, each <float32>[dim] or None."""
    if rows is None or projected is None:
        return projected if rows is None else rows
    return rows + projected


class IdEncoder(Encoder):
    """An Encoder of items that are known by their ids 0..V-1.

    content: ItemContent of V items, None for a model whose items are their ids
    vocab_size: V, which may be more than the model's: what was published since training has the ids
        behind those of the model. None for those of the model
    clicked: <bool>[V], which items were clicked in training
    has_vector: <bool>[V], which items have a vector: those that were clicked in training or have
        content
    """

    def __init__(self, model, content=None, max_len=None, vocab_size=None):
        """model: as of Encoder; one that is still trained may be asked for items and by
        ssr.evaluation.ranking"""
        super().__init__(model, max_len)
        self.content, self.clicked = content, clicked_items(model, vocab_size)
        self.has_vector = self.clicked if content is None else content.has_vector

    @classmethod
    def load(cls, checkpoint, files=NO_FILES, vocab_size=None):
        """The encoder of a Checkpoint.

        files: ContentFiles of all V items, of a model with content; for what is None those of its
            training
        Raises DataError, SetupError.
        """
        model = load_model(checkpoint)
        if vocab_size is not None and vocab_size < model.vocab_size:
            raise SetupError(f"the checkpoint was trained with {model.vocab_size} items and the "
                             f"vocabulary file says {vocab_size}: those of training come first, "
                             "what is new behind them")
        content = load_content(files.as_trained(checkpoint.meta), clicked_items(model, vocab_size),
                               checkpoint.meta["model"], token_row=model.vocab_size)
        return cls(model, content, max_len_of(checkpoint.meta), vocab_size)

    def embed(self, ids):
        """What the towers take (nets): a tensor <float32>[n, members * dim] for ids <int64>[n], all
        of which have a vector."""
        if self.content is None:
            return self.model.embed(ids)
        bags = self.content.bags(ids)
        return self.model.embed(bags.rows, bags)

    def click(self, item):
        """A click on an item, an Embedding; None where it has no vector."""
        return Embedding(self.embeddings[item]) if self.has_vector[item] else None

    @cached_property
    def stand_in_length(self):
        return _mean_length(self.embed(ids) for ids in _chunks(np.flatnonzero(self.clicked)))

    @cached_property
    def embeddings(self):
        """The embeddings of all items, numpy <float32>[V, members * dim], zeros where there is
        none."""
        return self._table(self.model.embedding.weight.shape[1], lambda emb: emb)

    @cached_property
    def vectors(self):
        """The vectors of all items, numpy <float32>[V, dim], zeros where there is none."""
        return self._table(self.dim, self.model.encode_item)

    def _table(self, columns, encode):
        table = np.zeros((len(self.clicked), columns), np.float32)
        for chunk in _chunks(np.flatnonzero(self.has_vector)):
            table[chunk] = encode(self.embed(chunk)).numpy()
        return table


def clicked_items(model, vocab_size=None):
    """Which items were clicked in training: <bool>[V]. vocab_size: V, None for the model's"""
    clicked = model.item_clicks.numpy() > 0
    return np.pad(clicked, (0, (vocab_size or len(clicked)) - len(clicked)))


def _chunks(items):
    """Yields the items, any that can be sliced, so many at a time."""
    for start in range(0, len(items), ITEMS_AT_A_TIME):
        yield items[start:start + ITEMS_AT_A_TIME]


def _mean_length(chunks):
    """The mean length of the rows of tensors, a float; 1.0 where there is no row."""
    lengths = [np.linalg.norm(emb.numpy(), axis=1) for emb in chunks]
    return float(np.mean(np.concatenate(lengths), dtype=np.float64)) if lengths else 1.0


# --- the user tower in numpy ----------------------------------------------------------------------


class FrozenUsers:
    """The user tower of a model that does not change any more, on a CPU and in numpy: for a single
    session what costs is the number of operations, of which Paddle's take longer."""

    def __init__(self, model):
        self.members = [_Weights.of(towers) for towers in model.members]

    def __call__(self, emb, lengths):
        """As SequenceSemanticRetrieval.encode_user, of numpy and in numpy.

        emb: <float32>[clicks, members * dim], sessions end to end
        lengths: <int64>[batch], each at least 1
        returns <float32>[batch, members * hidden]
        """
        parts = np.split(emb, len(self.members), axis=1)
        users = [_encode_member(part, lengths, weights)
                 for part, weights in zip(parts, self.members)]
        return np.concatenate(users, axis=1) * np.float32(1 / np.sqrt(len(users)))


class _Weights(NamedTuple):
    """The weights of a member's user tower, of numpy.

    gru: as packed_gru takes them, None for a bag of words; pooling: of its states
    w, b: of the fc; gains: <float32>[n + 1, hidden] of the last n clicks, newest
        first, and of the mean of all, or None; unit_clicks: whether these have length 1
    """

    gru: Union[tuple, None]
    pooling: Union[str, None]
    w: np.ndarray
    b: np.ndarray
    gains: Union[np.ndarray, None]
    unit_clicks: bool

    @classmethod
    def of(cls, towers):
        gru = pooling = None
        if isinstance(towers.user_encoder, GrnnEncoder):
            pooling, layer = towers.user_encoder.pooling, towers.user_encoder.gru
            w_ih, w_hh, b_ih, b_hh = (weight.numpy() for weight in (
                layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0))
            gru = w_ih, np.ascontiguousarray(w_hh.T), b_ih, b_hh
        gains = None if towers.click_gains is None else towers.click_gains.numpy()
        return cls(gru, pooling, towers.user_fc.weight.numpy(), towers.user_fc.bias.numpy(), gains,
                   towers.unit_clicks)


def _encode_member(emb, lengths, weights):
    gru, pooling, w, b, gains, unit_clicks = weights
    ends = np.cumsum(lengths)
    if gru is None:
        encoded = np.add.reduceat(emb, ends - lengths)
    else:
        state, top, _ = packed_gru(np.ascontiguousarray(emb), *gru, lengths)
        encoded = top[ends - 1]
        if pooling != "max":
            encoded = np.concatenate([encoded, state[ends - 1]], axis=1)
    user = encoded @ w
    user += b
    if gains is not None:
        clicks = _unit_rows(emb) if unit_clicks else emb
        *recent, of_mean = gains
        for back, gain in enumerate(recent):
            has_click = lengths > back
            user[has_click] += gain * clicks[ends[has_click] - 1 - back]
        total = np.add.reduceat(clicks, ends - lengths)
        user += of_mean * (total / lengths[:, None].astype(np.float32))
    return _unit_rows(user)


def _unit_rows(x):
    """As ragged.unit_rows, in numpy."""
    return x / np.sqrt((x * x).sum(1, keepdims=True) + np.float32(1e-12))

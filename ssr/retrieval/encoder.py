"""The one encoder of sessions and items: for the index, the replay, inference and validation.

A session is its clicks, oldest first, of which the newest max_len are encoded, as many as training
kept. Whoever asks leaves out the clicks whose items have no vector.

The towers have three forms, the same functions of the same parameters, each where the others
cannot be:

    nets.SequenceSemanticRetrieval   sequences end to end, every prefix, gradients, CPU and GPU
    ssr.kernels.static               padded: a static graph has no loop over lengths that are
                                     numpy's, and paddle.inference runs nothing else (export.py)
    ssr.kernels.frozen               numpy: a session or an item takes none of Paddle's calls, each
                                     of which costs more than the work in it, and an index is opened
                                     without Paddle being loaded

An Encoder asks the last; the tables of all items that an IdEncoder has are made by the first, on
whatever device that is. The GRU itself is written once for both (ssr.kernels.packed).
tests/test_encoder.py holds all three to the same vectors.
"""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import NamedTuple, Union

import numpy as np

import utils
from ssr.errors import DataError, SetupError
from ssr.kernels.frozen import FrozenModel
from ssr.retrieval.bag import Bag
from ssr.retrieval.checkpoint import load_frozen, load_model, session_settings
from ssr.retrieval.repeats import OwnItems
from ssr.training.content import NO_FILES, load_content

ITEMS_AT_A_TIME = 1 << 14  # items are encoded in groups of this size
BAGS_AT_A_TIME = 1 << 10  # the same of bags: the rows of the table that they take stay in the cache


class Embedding(NamedTuple):
    """A click on an item whose embedding is at hand. vector: <float32>[members * dim]"""

    vector: np.ndarray


# What was clicked, as the encoder takes it; a Bag that holds something.
Clicked = Union[Bag, Embedding]


class Encoder:
    """A trained model, asked for the vectors of sessions and items; from any thread.

    model: a FrozenModel, or a SequenceSemanticRetrieval that does not change any more
        (checkpoint.load_model)
    max_len: the newest clicks of a session that are encoded, None for all
    stand_in_length: the mean length of the embeddings of the items clicked in training, as of
        mean_length; None where no item needs a stand-in
    repeats: the RepeatScore of items that their session has clicked, None where they score as all
        others
    dim: of the vectors, members * hidden
    """

    def __init__(self, model, max_len=None, stand_in_length=None, repeats=None):
        self.model, self.max_len, self._stand_in_length = model, max_len, stand_in_length
        self.repeats = repeats
        self.dim = model.sizes["members"] * model.sizes["hidden_size"]
        self.is_tied = model.sizes["item_encoder"] == "tied"
        self._newest = slice(None) if max_len is None else slice(-max_len, None)

    @classmethod
    def load(cls, checkpoint, stand_in_length=None):
        """The encoder of a Checkpoint. Raises SetupError."""
        utils.checked_state(checkpoint.model_dir, checkpoint.epoch, ".pdparams")
        return cls(load_frozen(checkpoint), stand_in_length=stand_in_length,
                   **session_settings(checkpoint.meta))

    @cached_property
    def towers(self):
        """The model as a FrozenModel."""
        return FrozenModel.of(self.model)

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
        vectors = iter(self.towers.encode_user(emb, lengths))
        return [next(vectors) if session else None for session in sessions]

    def score_own(self, keys, clicks, user):
        """{key: score} of the items that a session has clicked, where these do not score as all
        others. keys, clicks: what was clicked and what encode_sessions takes for it, oldest first;
        user: the session's vector, None where it has none"""
        keys, clicks = np.array(keys[self._newest], np.int64), clicks[self._newest]
        bags = {key: click for key, click in zip(keys.tolist(), clicks) if isinstance(click, Bag)}
        if self.repeats is None or not bags:
            return {}
        own = OwnItems.of(keys, [len(keys)])
        own = own.select(np.isin(own.items, [*bags]))
        vectors = self.encode_items([bags[key] for key in own.items.tolist()])
        return dict(zip(own.items.tolist(), self.repeats(vectors @ user, own).tolist()))

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

    def _embed_clicks(self, clicks):
        bags = [click for click in clicks if isinstance(click, Bag)]
        if not bags:
            return np.stack([click.vector for click in clicks])
        emb = self._embed_bags(bags)
        if len(bags) == len(clicks):
            return emb
        embeddings = iter(emb)
        return np.stack([next(embeddings) if isinstance(click, Bag) else click.vector
                         for click in clicks])

    def _embed_bags(self, bags):
        """The embeddings of bags, none of them of nothing: <float32>[n, members * dim]."""
        with_rows = [bag.rows for bag in bags if len(bag.rows)]
        lengths = np.array([len(rows) for rows in with_rows])
        emb = with_rows and np.add.reduceat(self.towers.table[np.concatenate(with_rows)],
                                            np.cumsum(lengths) - lengths)
        if not self.towers.item_vector_dim:
            return emb
        sums = iter(emb)
        return np.stack([_sum(next(sums) if len(bag.rows) else None, bag.projected)
                         for bag in bags])

    # --- items

    def encode_items(self, bags):
        """The vectors of items, of length 1: a list of numpy <float32>[dim], None for an item that
        is made of nothing. bags: list of Bag"""
        vectors = [None] * len(bags)
        full = [place for place, bag in enumerate(bags) if bag]
        for places in _chunks(full, BAGS_AT_A_TIME):
            emb = self._embed_bags([bags[place] for place in places])
            for place, vector in zip(places, self.towers.encode_item(emb)):
                vectors[place] = vector
        return vectors

    def mean_length(self, bags):
        """The mean length of the embeddings of items: a float, 1.0 for no item. bags: list of Bag,
        none of them of nothing"""
        return _mean_length(self._embed_bags(chunk) for chunk in _chunks(bags, BAGS_AT_A_TIME))

    def with_stand_ins(self, bags):
        """The same Encoder, with stand-ins as long as items are on average. bags: of those that
        were clicked in training, as of mean_length"""
        return Encoder(self.model, self.max_len, self.mean_length(bags), self.repeats)

    def bag(self, before, tokens=None, projected=None):
        """The Bag of an item whose content has changed: its own row, if it has one, and all that is
        made of its content.

        before: Bag, what it was made of until now
        tokens: <int64>[n], its token ids; None for a model without tokens
        projected: as of Bag
        """
        own = before.rows[before.rows < self.towers.vocab_size]
        if tokens is None:
            return Bag(own, projected)
        rows = np.concatenate([own, self.towers.vocab_size + tokens]).astype(np.int32)
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
        projected = self.towers.item_projection(vectors)
        return [of_item if is_there else None
                for of_item, is_there in zip(projected, vectors.any(axis=1))]

    def project_each(self, items):
        """As project, for a list of values.Item, of which some have a vector. Raises DataError for
        a vector that the model does not take."""
        dim = self.towers.item_vector_dim
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

    def __init__(self, model, content=None, vocab_size=None, max_len=None, repeats=None):
        """model: a SequenceSemanticRetrieval; one that is still trained may be asked for items and
        by ssr.evaluation.ranking"""
        super().__init__(model, max_len, repeats=repeats)
        self.content = content
        self.clicked = clicked_items(model.item_clicks.numpy(), vocab_size)
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
        clicked = clicked_items(model.item_clicks.numpy(), vocab_size)
        content = load_content(files.as_trained(checkpoint.meta), clicked, checkpoint.meta["model"],
                               token_row=model.vocab_size)
        return cls(model, content, vocab_size, **session_settings(checkpoint.meta))

    def embed(self, ids):
        """What the towers take (nets): a tensor <float32>[n, members * dim] for ids <int64>[n], all
        of which have a vector."""
        if self.content is None:
            return self.model.embed(ids)
        bags = self.content.bags(ids)
        return self.model.embed(bags.rows, bags)

    def encoded(self, items):
        """Those of a session's items that encode_sessions looks at. items: ids, oldest first"""
        return [item for item in items if self.has_vector[item]][self._newest]

    def click(self, item):
        """A click on an item, an Embedding; None where it has no vector."""
        return Embedding(self.embeddings[item]) if self.has_vector[item] else None

    @cached_property
    def stand_in_length(self):
        return _mean_length(self.embed(ids).numpy()
                            for ids in _chunks(np.flatnonzero(self.clicked)))

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


def clicked_items(item_clicks, vocab_size=None):
    """Which items were clicked in training: <bool>[V].

    item_clicks: <int32>[n], how often each item of the model was; vocab_size: V, None for n
    """
    clicked = item_clicks > 0
    return np.pad(clicked, (0, (vocab_size or len(clicked)) - len(clicked)))


def _chunks(items, size=ITEMS_AT_A_TIME):
    """Yields the items, any that can be sliced, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start:start + size]


def _mean_length(chunks):
    """The mean length of the rows of arrays, a float; 1.0 where there is no row."""
    lengths = [np.linalg.norm(emb, axis=1) for emb in chunks]
    return float(np.mean(np.concatenate(lengths), dtype=np.float64)) if lengths else 1.0

"""Items by content: what the embedding of each item is made of."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from ssr.commands import data_path

import numpy as np

from reader import MAX_ITEMS, ragged_arange
from ssr.data_directory import ITEM_TOKENS_FILE, ITEM_VECTORS_FILE, ITEMS_FILE
from ssr.errors import DataError
from ssr.files import read_raw_ids
from ssr.kernels.numbers import Numbers, parse_file
from ssr.training.item_vectors import load_item_vectors

TOKEN_IDS = Numbers("token id", "a", "preprocess.py makes them from the text of the items",
                    "tokens", "tokens.txt")


class Bags(NamedTuple):
    """What some items are made of, each different one once.

    rows: <int64>[rows], the rows of the table that are looked up, ascending, each once, at least
        one
    members: <int64>[n], the places in rows of what is in the bags, these end to end
    lengths: <int64>[bags], members of each
    place: <int64>[items], which bag is that of an item
    vectors: <float32>[bags, dim], the pretrained vector of each, zeros where there is none; None
        for a model without them
    """

    rows: np.ndarray
    members: np.ndarray
    lengths: np.ndarray
    place: np.ndarray
    vectors: Optional[np.ndarray] = None

    @classmethod
    def of(cls, members, lengths, place=None, vectors=None, rows=None):
        """Bags from the rows that are in them, end to end, <int64>[n], and how many each has.

        place: None for an item each
        rows: which are looked up, ascending, each once; None for those of the bags
        """
        rows = distinct(members) if rows is None else rows
        place = np.arange(len(lengths)) if place is None else place
        return cls(rows, np.searchsorted(rows, members), lengths, place, vectors)


def distinct(rows):
    """As numpy.unique, for rows of the table that are looked up: of none it is the first one, since
    Paddle looks up no fewer."""
    return np.unique(rows) if len(rows) else np.zeros(1, np.int64)


class ItemTokens(NamedTuple):
    """The tokens of all items, in memory at 4 bytes a token and 8 an item.

    tokens: <int32>[n], token ids 0..num_tokens-1, all items end to end
    offsets: <int64>[V + 1], item i has tokens[offsets[i]:offsets[i + 1]], perhaps none
    num_tokens: how many tokens there are, T
    """

    tokens: np.ndarray
    offsets: np.ndarray
    num_tokens: int

    @classmethod
    def none(cls, size):
        """Of so many items without any."""
        return cls(np.empty(0, np.int32), np.zeros(size + 1, np.int64), 0)


class ItemContent:
    """What the embedding of each item is made of: its own row of the table, if it was clicked in
    training, the rows of its tokens, V + t for token t, and what its pretrained vector is projected
    to.

    clicked: <bool>[V], which items were clicked in training
    item_tokens: ItemTokens, None for a model without them
    id_dropout: share of the items of a batch that leave out their own row, so that the rest learns
        to carry an item alone; those of nothing else keep it
    token_row: the row of token 0, which is how many items the model has; V where not given, but a
        catalogue may have grown since
    vectors: ItemVectors, None for a model without them
    """

    def __init__(self, clicked, item_tokens=None, id_dropout=0.0, token_row=None, vectors=None):
        item_tokens = ItemTokens.none(len(clicked)) if item_tokens is None else item_tokens
        self.num_tokens = item_tokens.num_tokens
        self.vectors, self.vector_dim = vectors, vectors.dim if vectors else 0
        self.id_dropout = id_dropout
        token_row = len(clicked) if token_row is None else token_row
        counts = np.diff(item_tokens.offsets)
        self.own = clicked.astype(np.int64)  # rows of the item itself, the first ones of its bag
        has_content = counts > 0 if vectors is None else (counts > 0) | vectors.is_there
        self.optional = clicked & has_content
        self.has_vector = clicked | has_content  # <bool>[V], which items are made of anything
        self.offsets = np.concatenate([[0], np.cumsum(counts + self.own)])
        self.rows = np.empty(self.offsets[-1], np.int32)
        self.rows[self.offsets[:-1][clicked]] = np.flatnonzero(clicked)
        self.rows[ragged_arange(self.offsets[:-1] + self.own, counts)] = (token_row
                                                                         + item_tokens.tokens)

    def draw_dropped(self, random, ids):
        """The items that leave out their own row, ascending: <int64>[items]."""
        items = np.unique(ids)
        return items[self.optional[items] & (random.random(len(items)) < self.id_dropout)]

    def bags(self, ids, dropped=(), rows=None):
        """The Bags of ids <int64>[n], all of which have a vector.

        dropped: items without their own row
        rows: which are looked up, as of Bags.of
        """
        items, place = np.unique(ids, return_inverse=True)
        vectors = None if self.vectors is None else self.vectors.of(items)
        return Bags.of(*self._rows_of(items, dropped), place, vectors, rows)

    def rows_needed(self, ids, dropped=()):
        """The rows of the Bags of ids, without these being made."""
        return distinct(self._rows_of(np.unique(ids), dropped)[0])

    def _rows_of(self, items, dropped):
        """Rows <int64>[n] of some items, end to end, and how many each has."""
        left_out = np.isin(items, dropped)  # one row each
        starts = self.offsets[items] + left_out
        lengths = self.offsets[items + 1] - starts
        return self.rows[ragged_arange(starts, lengths)].astype(np.int64), lengths


# --- files ----------------------------------------------------------------------------------------


class ContentFiles(NamedTuple):
    """Where the content of items is. None for what there is none of.

    item_tokens: line i is the token ids of item i
    item_vectors: of the pretrained vectors, as item_vectors.load_item_vectors takes it
    items: line i begins with the raw id of item i, by which Parquet knows the items
    """

    item_tokens: Optional[str] = None
    item_vectors: Optional[str] = None
    items: Optional[str] = None

    def as_trained(self, meta):
        """What a trained model needs of this: in place of what is not given the file of its
        training, else the one of the usual name. meta: of its checkpoint"""
        def path(given, trained_with, usual):
            return given or trained_with or data_path(usual)
        sizes, run = meta["model"], meta["run"]
        return ContentFiles(
            path(self.item_tokens, run.get("item_tokens"), ITEM_TOKENS_FILE)
            if sizes["num_tokens"] else None,
            path(self.item_vectors, run.get("item_vectors"), ITEM_VECTORS_FILE)
            if sizes.get("item_vector_dim") else None,
            self.items or data_path(ITEMS_FILE))


NO_FILES = ContentFiles()


def load_content(files, clicked, sizes=None, **settings):
    """The ItemContent of ContentFiles, None where they name neither tokens nor vectors.

    clicked: <bool>[V], which items were clicked in training
    sizes: as of read_content; settings: of ItemContent
    Raises DataError.
    """
    tokens, vectors = read_content(files, len(clicked), sizes)
    if tokens is None and vectors is None:
        return None
    return ItemContent(clicked, tokens, vectors=vectors, **settings)


def read_content(files, size, sizes=None):
    """(ItemTokens, ItemVectors) of ContentFiles, None for what they do not name.

    size: how many items there are
    sizes: of a trained model, that its content must fit (metadata["model"])
    Raises DataError.
    """
    sizes = sizes or {}
    tokens = vectors = None
    if files.item_tokens:
        tokens = load_item_tokens(files.item_tokens, size, sizes.get("num_tokens"))
    if files.item_vectors:
        vectors = load_item_vectors(files.item_vectors, size, lambda: _raw_ids(files.items, size),
                                    sizes.get("item_vector_dim"))
    return tokens, vectors


def _raw_ids(path, size):
    if path is None or not os.path.exists(path):
        raise DataError(f"cannot read {path or ITEMS_FILE}, whose raw ids say which vector is that "
                        "of which item: give it, or vectors as a .npy in the order of the items")
    ids = list(read_raw_ids(path))
    if len(ids) != size:
        raise DataError(f"{path} holds {len(ids)} items and the vocabulary file says {size}: give "
                        "the items.txt of this data")
    return ids


def load_item_tokens(path, vocab_size, num_tokens=None) -> ItemTokens:
    """Reads item_tokens.txt: line i is the token ids of item i, white space between, or is empty.

    num_tokens: the lines of tokens.txt, below which all ids must be; None for one more than the
        largest id
    Raises DataError, which names file, line and token, for anything else and unless there is a
    line for each of the vocab_size items.
    """
    limit = MAX_ITEMS if num_tokens is None else num_tokens
    tokens, lengths = map(np.concatenate, zip(
        (np.empty(0, np.int64), np.empty(0, np.int64)), *parse_file(path, TOKEN_IDS, limit)))
    if len(lengths) != vocab_size:
        raise DataError(f"{path} holds {len(lengths)} lines and the vocabulary file says "
                        f"{vocab_size} items: line i is the tokens of item i (preprocess.py "
                        "writes both)")
    if not len(tokens):
        raise DataError(f"{path}: no item has a token")
    offsets = np.zeros(vocab_size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return ItemTokens(tokens.astype(np.int32), offsets, num_tokens or int(tokens.max()) + 1)

"""Items by content: what the embedding of each item is made of."""

from __future__ import annotations

from typing import NamedTuple

from ssr.commands import data_path

import numpy as np

from reader import MAX_ITEMS, ragged_arange
from ssr.errors import DataError
from ssr.kernels.numbers import Numbers, parse_file

TOKEN_IDS = Numbers("token id", "a", "preprocess.py makes them from the text of the items",
                    "tokens", "tokens.txt")


class Bags(NamedTuple):
    """What some items are made of, each different one once.

    rows: <int64>[rows], the rows of the table that are needed, ascending, each once
    members: <int64>[n], the places in rows of what is in the bags, these end to end
    lengths: <int64>[bags], members of each, at least 1
    place: <int64>[items], which bag is that of an item
    """

    rows: np.ndarray
    members: np.ndarray
    lengths: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, rows, lengths, place=None):
        """Bags from their rows end to end, <int64>[n], and how many each has. place: None for an
        item each"""
        rows, members = np.unique(rows, return_inverse=True)
        return cls(rows, members, lengths, np.arange(len(lengths)) if place is None else place)


class ItemTokens(NamedTuple):
    """The tokens of all items, in memory at 4 bytes a token and 8 an item.

    tokens: <int32>[n], token ids 0..num_tokens-1, all items end to end
    offsets: <int64>[V + 1], item i has tokens[offsets[i]:offsets[i + 1]], perhaps none
    num_tokens: how many tokens there are, T
    """

    tokens: np.ndarray
    offsets: np.ndarray
    num_tokens: int


class ItemContent:
    """What the embedding of each item is made of: its own row of the table, if it was clicked in
    training, and the rows of its tokens, V + t for token t.

    clicked: <bool>[V], which items were clicked in training
    item_tokens: ItemTokens
    id_dropout: share of the items of a batch that leave out their own row, so that the tokens
        learn to carry an item alone; those without a token keep it
    token_row: the row of token 0, which is how many items the model has; V where not given, but a
        catalogue may have grown since
    """

    def __init__(self, clicked, item_tokens, id_dropout=0.0, token_row=None):
        self.num_tokens = item_tokens.num_tokens
        self.id_dropout = id_dropout
        token_row = len(clicked) if token_row is None else token_row
        counts = np.diff(item_tokens.offsets)
        self.own = clicked.astype(np.int64)  # rows of the item itself, the first ones of its bag
        self.optional = clicked & (counts > 0)
        self.offsets = np.concatenate([[0], np.cumsum(counts + self.own)])
        self.rows = np.empty(self.offsets[-1], np.int32)
        self.rows[self.offsets[:-1][clicked]] = np.flatnonzero(clicked)
        self.rows[ragged_arange(self.offsets[:-1] + self.own, counts)] = (token_row
                                                                         + item_tokens.tokens)

    @property
    def has_vector(self):
        """<bool>[V]: which items are made of anything."""
        return np.diff(self.offsets) > 0

    def draw_dropped(self, random, ids):
        """The items that leave out their own row, ascending: <int64>[items]."""
        items = np.unique(ids)
        return items[self.optional[items] & (random.random(len(items)) < self.id_dropout)]

    def bags(self, ids, dropped=()):
        """The Bags of ids <int64>[n], all of which have a vector. dropped: items without their own
        row"""
        items, place = np.unique(ids, return_inverse=True)
        left_out = np.isin(items, dropped)  # one row each
        starts = self.offsets[items] + left_out
        lengths = self.offsets[items + 1] - starts
        rows = self.rows[ragged_arange(starts, lengths)].astype(np.int64)
        return Bags.of(rows, lengths, place)


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


def item_tokens_path(meta, given=None):
    """The item_tokens.txt for a model with content: the given path, else that of its training, else
    the file of that name.

    meta: of its checkpoint
    """
    return given or meta["run"].get("item_tokens") or data_path("item_tokens.txt")

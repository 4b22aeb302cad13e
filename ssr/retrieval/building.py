"""An index made of a checkpoint and its items."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from ssr.errors import DataError
from ssr.files import items_digest
from ssr.preparation import text
from ssr.retrieval import builds, store
from ssr.retrieval.encoder import Bag, clicked_items
from ssr.retrieval.model_copy import copy_model, copy_vocabulary, describe, load_encoder
from ssr.retrieval.rows import Row
from ssr.retrieval.values import Item, check_item
from ssr.retrieval.vectors import DEFAULT_SEARCH
from ssr.training.content import ItemContent, load_item_tokens

TUNING_QUERIES = 200  # with which the recall of an approximate search is measured


class ItemFiles(NamedTuple):
    """Files of the data that a model was trained with.

    items: line i is the raw id of item i, then maybe a tab and its text
    item_tokens, tokens: of a model with content, the token ids of item i and token i
    """

    items: str
    item_tokens: str
    tokens: str


def build_index(path, checkpoint, files, overwrite=False, settings=DEFAULT_SEARCH):
    """Makes an index of the items of a checkpoint, in a directory.

    checkpoint: a Checkpoint (checkpoint.choose_checkpoint); the index keeps a copy
    files: ItemFiles
    overwrite: whether an index that is there may be replaced; its clicks stay
    settings: SearchSettings
    Raises DataError, StoreError, SetupError; then nothing has changed.
    """
    items, tokens = _read_files(files, checkpoint.meta)
    with builds.new_build(path, overwrite) as directory:
        # From here on the copy counts: training may go on and replace the original.
        copy_model(checkpoint, directory)
        if tokens is not None:
            copy_vocabulary(files.tokens, directory)
        details = describe(checkpoint, directory)
        encoder, _ = load_encoder(directory, details)
        clicked = clicked_items(encoder.model)
        bags = make_bags(clicked, tokens)
        details["stand_in_length"] = encoder.mean_length(
            [bag for bag, is_clicked in zip(bags, clicked) if is_clicked])
        vectors, now = encoder.encode_items(bags), time.time()
        rows = [Row(item.id, item.text, bag, vector, fields, now)
                for item, bag, vector, fields in zip(items, bags, vectors,
                                                     _fields(items, tokens, files))]
        queries = make_queries(encoder, bags)
        store.create(directory, queries.shape[1], rows, details, queries, settings)


def _read_files(files, meta):
    """(a list of Item, ItemTokens or None for a model without content). Raises DataError where the
    files are not those of the model."""
    items = [Item(id, *item) for id, item in text.read_items(files.items).items()]
    vocab_size, num_tokens = meta["model"]["vocab_size"], meta["model"]["num_tokens"]
    if len(items) != vocab_size:
        raise DataError(f"{files.items} holds {len(items)} items and the model has "
                        f"{vocab_size}: give the --items_path of the data it was trained with")
    trained_with = (meta.get("data") or {}).get("items")
    if trained_with and items_digest(files.items) != trained_with:
        raise DataError(f"{files.items} holds other items than those that the model was trained "
                        "with, or in another order: give the --items_path of that data")
    for item in items:
        check_item(item)
    if not num_tokens:
        return items, None
    vocabulary = text.TokenVocabulary.load(files.tokens)
    if len(vocabulary) != num_tokens:
        raise DataError(f"{files.tokens} holds {len(vocabulary)} tokens and the model has "
                        f"{num_tokens}: give the --tokens_path of the data it was trained with")
    return items, load_item_tokens(files.item_tokens, vocab_size, num_tokens)


def _fields(items, tokens, files):
    """The fields of each item, tuples of tokens: those beside its text and those among its content.
    """
    fields = [dict.fromkeys(text.field_tokens(item.fields)) for item in items]
    if tokens is not None:
        names = text.TokenVocabulary.load(files.tokens).tokens
        is_field = np.array([":" in name for name in names], bool)[tokens.tokens]
        owners = np.repeat(np.arange(len(items)), np.diff(tokens.offsets))
        for owner, token in zip(owners[is_field].tolist(), tokens.tokens[is_field].tolist()):
            fields[owner][names[token]] = None
    return list(map(tuple, fields))


def make_bags(clicked, tokens=None):
    """The rows of the table that make each item's embedding, a list of <int32>[n]: its own, if it
    was clicked in training, and those of its tokens.

    clicked: <bool>[items]; tokens: ItemTokens, None without content
    """
    if tokens is None:
        return np.split(np.flatnonzero(clicked).astype(np.int32), np.cumsum(clicked)[:-1])
    content = ItemContent(clicked, tokens)
    return np.split(content.rows, content.offsets[1:-1])


def make_queries(encoder, bags):
    """Queries of the kind that will come: the vectors of sessions of two clicks,
    <float32>[at most TUNING_QUERIES, hidden]. Raises DataError where no item has a vector."""
    full = [bag for bag in bags if len(bag)]
    if not full:
        raise DataError("none of the items has a vector: none was clicked in training")
    random = np.random.default_rng(0)
    pairs = random.integers(0, len(full), (min(TUNING_QUERIES, len(full)), 2))
    return np.stack(encoder.encode_sessions([[Bag(full[first]), Bag(full[second])]
                                             for first, second in pairs]))

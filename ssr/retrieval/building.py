"""An index made of a checkpoint and its items."""

from __future__ import annotations

import time
from typing import NamedTuple, Optional

import numpy as np

from ssr.errors import DataError
from ssr.files import items_digest
from ssr.preparation import text
from ssr.retrieval import builds, engines
from ssr.retrieval.encoder import clicked_items
from ssr.retrieval.model_copy import copy_model, copy_vocabulary, describe, load_encoder
from ssr.retrieval.rows import Row
from ssr.retrieval.values import Item, check_item
from ssr.retrieval.vectors import DEFAULT_SEARCH
from ssr.training.content import ContentFiles, ItemContent, load_content

TUNING_QUERIES = 200  # with which the recall of an approximate search is measured


class ItemFiles(NamedTuple):
    """Files of the data that a model was trained with.

    items: line i is the raw id of item i, then maybe a tab and its text
    item_tokens, tokens: of a model with tokens, the token ids of item i and token i
    item_vectors: of a model with pretrained vectors, that of item i; None for those of its training
    """

    items: str
    item_tokens: str
    tokens: str
    item_vectors: Optional[str] = None


def build_index(path, checkpoint, files, overwrite=False, settings=DEFAULT_SEARCH, engine=None):
    """Makes an index of the items of a checkpoint, in a directory.

    checkpoint: a Checkpoint (checkpoint.choose_checkpoint); the index keeps a copy
    files: ItemFiles
    overwrite: whether an index that is there may be replaced; its clicks stay
    settings: SearchSettings; engine: engines.Milvus, None for the directory itself
    Raises DataError, StoreError, SetupError; then nothing has changed.
    """
    items = _read_items(files, checkpoint.meta)
    with engines.building(path, engine) as create, \
            builds.new_build(path, overwrite) as directory:
        # From here on the copy counts: training may go on and replace the original.
        copy_model(checkpoint, directory)
        if checkpoint.meta["model"]["num_tokens"]:
            copy_vocabulary(files.tokens, directory)
        details = describe(checkpoint, directory)
        encoder, _ = load_encoder(directory, details)
        clicked = clicked_items(encoder.towers.item_clicks)
        content = load_content(_content_files(files, checkpoint.meta), clicked,
                               checkpoint.meta["model"]) or ItemContent(clicked)
        bags = encoder.bags(content)
        details["stand_in_length"] = encoder.mean_length(
            [bag for bag, is_clicked in zip(bags, clicked) if is_clicked])
        vectors, now = encoder.encode_items(bags), time.time()
        rows = [Row(item.id, item.text, bag, vector, fields, now)
                for item, bag, vector, fields in zip(items, bags, vectors,
                                                     _fields(items, content, files.tokens))]
        queries = make_queries(encoder, bags)
        create(directory, queries.shape[1], rows, details, queries, settings)


def _read_items(files, meta):
    """A list of Item. Raises DataError where the files are not those of the model."""
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
    vocabulary = text.TokenVocabulary.load(files.tokens) if num_tokens else ()
    if len(vocabulary) != num_tokens:
        raise DataError(f"{files.tokens} holds {len(vocabulary)} tokens and the model has "
                        f"{num_tokens}: give the --tokens_path of the data it was trained with")
    return items


def _content_files(files, meta):
    return ContentFiles(files.item_tokens, files.item_vectors, files.items).as_trained(meta)


def _fields(items, content, tokens_path):
    """The fields of each item, tuples of tokens: those beside its text and those among its content.
    """
    fields = [dict.fromkeys(text.field_tokens(item.fields)) for item in items]
    if content.num_tokens:
        names = text.TokenVocabulary.load(tokens_path).tokens
        owners = np.repeat(np.arange(len(items)), np.diff(content.offsets))
        is_token = content.rows >= len(items)
        for owner, row in zip(owners[is_token].tolist(), content.rows[is_token].tolist()):
            if ":" in names[row - len(items)]:
                fields[owner][names[row - len(items)]] = None
    return list(map(tuple, fields))


def make_queries(encoder, bags):
    """Queries of the kind that will come: the vectors of sessions of two clicks,
    <float32>[at most TUNING_QUERIES, hidden]. Raises DataError where no item has a vector."""
    full = [bag for bag in bags if bag]
    if not full:
        raise DataError("none of the items has a vector: none was clicked in training")
    random = np.random.default_rng(0)
    pairs = random.integers(0, len(full), (min(TUNING_QUERIES, len(full)), 2))
    return np.stack(encoder.encode_sessions([[full[first], full[second]]
                                             for first, second in pairs]))

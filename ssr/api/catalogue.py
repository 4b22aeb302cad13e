"""The items of a model: raw ids, texts and vectors."""

from __future__ import annotations

from functools import cached_property
from typing import Mapping

import numpy as np
import polars as pl

from ssr.api.clicks import as_raw_id, is_path, raw_ids_of
from ssr.errors import DataError
from ssr.files import items_digest, write_text
from ssr.preparation.text import ItemText, field_tokens, read_items
from ssr.retrieval.checkpoint import load_model, session_settings
from ssr.retrieval.encoder import IdEncoder, clicked_items
from ssr.retrieval.values import Added, Item, check_item, check_vector, enumerated
from ssr.training.content import ContentFiles, ItemContent, ItemTokens, read_content
from ssr.training.item_vectors import checked, is_parquet, vectors_of_table


class Catalogue:
    """All items that a model can be asked about. It does not change; extended() makes another one.

    raw_ids, texts: lists of str, of the item with the number i in place i
    encoder: IdEncoder of all of them
    added: {raw id: ItemText} of those that were added, or replaced, since training
    added_vectors: {raw id: <float32>[dim]} of those of these that have a pretrained vector
    """

    def __init__(self, raw_ids, texts, model, settings, tokens, vectors, added=None,
                 added_vectors=None):
        """model: SequenceSemanticRetrieval; settings: as of checkpoint.session_settings; tokens:
        ItemTokens of all items; vectors: ItemVectors, of the items of training; None for a model
        without them"""
        self.raw_ids, self.texts = raw_ids, texts
        self.added, self.added_vectors = added or {}, added_vectors or {}
        self._model, self._settings, self._tokens, self._vectors = model, settings, tokens, vectors
        self.encoder = self.encoder_of(len(raw_ids))

    @classmethod
    def read(cls, directory, checkpoint):
        """The items of a DataDirectory as a Checkpoint knows them. Raises DataError, SetupError."""
        sizes = checkpoint.meta["model"]
        raw_ids = raw_ids_of(directory)
        trained_with = (checkpoint.meta.get("data") or {}).get("items")
        if len(raw_ids) != sizes["vocab_size"] or (
                trained_with and directory.items
                and items_digest(directory.items) != trained_with):
            raise DataError(f"{directory.path} holds other items than those that the model in "
                            f"{checkpoint.model_dir} was trained with: give the data of that")
        texts = [""] * len(raw_ids)
        if directory.items:
            texts = [item.text for item in read_items(directory.items).values()]
        files = ContentFiles(directory.item_tokens, directory.item_vectors, directory.items)
        content = read_content(files.as_trained(checkpoint.meta), len(raw_ids), sizes)
        return cls(raw_ids, texts, load_model(checkpoint), session_settings(checkpoint.meta),
                   *content)

    def __len__(self):
        return len(self.raw_ids)

    @cached_property
    def numbers(self):
        """{raw id: number}"""
        return {raw: number for number, raw in enumerate(self.raw_ids)}

    def known(self, ids):
        """The numbers of those of some raw ids that are known, in order."""
        return [self.numbers[id] for id in ids if id in self.numbers]

    def mask(self, ids):
        """<bool>[items]: which items these raw ids are."""
        chosen = np.zeros(len(self), bool)
        chosen[self.known(ids)] = True
        return chosen

    def encoder_of(self, size):
        """An IdEncoder of so many items: behind those that there are come unknown ones."""
        tokens, vectors = self._tokens, self._vectors
        if tokens is None and vectors is None:
            return IdEncoder(self._model, None, size, **self._settings)
        if tokens is not None:
            tokens = tokens._replace(offsets=np.pad(
                tokens.offsets, (0, size + 1 - len(tokens.offsets)), mode="edge"))
        if vectors is not None:
            nothing = np.zeros(vectors.dim, np.float32)
            vectors = vectors.with_others(
                {self.numbers[raw]: self.added_vectors.get(raw, nothing) for raw in self.added},
                size)
        clicked = clicked_items(self._model.item_clicks.numpy(), size)
        content = ItemContent(clicked, tokens, vectors=vectors, token_row=self._model.vocab_size)
        return IdEncoder(self._model, content, size, **self._settings)

    def vectors_of(self, ids):
        """The pretrained vectors of those of some raw ids that have one: {raw id: <float32>[dim]}.
        """
        content = self.encoder.content
        known = self.known(ids)
        if content is None or content.vectors is None or not known:
            return {}
        return {self.raw_ids[number]: vector
                for number, vector in zip(known, content.vectors.of(np.array(known)))
                if content.vectors.is_there[number]}

    def extended(self, items, vectors, vocabulary):
        """(another Catalogue, Added): with more items, or with others in place of those that it
        has.

        items: {raw id: ItemText}
        vectors: {raw id: <float32>[dim]}, of some of them
        vocabulary: text.TokenVocabulary of the model, None for one without tokens
        Raises DataError where the model knows no content, or no such vectors.
        """
        self._check_vectors(vectors)
        if vocabulary is None and self._vectors is None:
            raise DataError(f"{enumerated(list(items))}: the model was trained without content, it "
                            "knows an item by its clicks alone: train with texts to add items")
        new = [raw for raw in items if raw not in self.numbers]
        raw_ids, texts = self.raw_ids + new, self.texts + [""] * len(new)
        numbers = {**self.numbers, **{raw: len(self) + place for place, raw in enumerate(new)}}
        for raw, item in items.items():
            texts[numbers[raw]] = " ".join(item.text.split())
        tokens = None
        if vocabulary is not None:
            tokens = self._tokens_with({numbers[raw]: vocabulary.encode(*item).astype(np.int32)
                                        for raw, item in items.items()}, len(raw_ids))
        kept = {raw: vector for raw, vector in self.added_vectors.items() if raw not in items}
        extended = Catalogue(raw_ids, texts, self._model, self._settings, tokens, self._vectors,
                             {**self.added, **items}, {**kept, **vectors})
        without = [raw for raw in items if not extended.encoder.has_vector[numbers[raw]]]
        had = self.encoder.has_vector
        replaced = sum(raw in self.numbers and bool(had[self.numbers[raw]])
                       for raw in {*items}.difference(without))
        return extended, Added(len(items) - len(without) - replaced, replaced, without)

    def _tokens_with(self, others, size):
        """ItemTokens of size items, of which some have others than here. others: {item:
        <int32>[n]}"""
        bags = np.split(self._tokens.tokens, self._tokens.offsets[1:-1])
        bags += [np.empty(0, np.int32)] * (size - len(bags))
        for item, bag in others.items():
            bags[item] = bag
        return ItemTokens(np.concatenate(bags), np.cumsum([0, *map(len, bags)]),
                          self._tokens.num_tokens)

    def _check_vectors(self, vectors):
        dim = self._model.item_vector_dim
        for raw, vector in vectors.items():
            if len(vector) != dim:
                raise DataError(f"the vector of {raw!r} has {len(vector)} numbers, and the model "
                                + (f"takes vectors of {dim}" if dim else
                                   "takes none: it was trained without item_vectors"))


# --- vectors, as a caller gives them --------------------------------------------------------------


def as_vectors(vectors, name="vectors", needed=()) -> dict:
    """{raw id: numbers}, a table of polars with the columns id and vector or the path of such a
    file of Parquet as {raw id: <float32>[dim]}, without those that are null or zeros.

    needed: raw ids that must be there, if only with null. Raises DataError.
    """
    if is_path(vectors):
        if not is_parquet(vectors):
            raise DataError(f"{vectors} is not Parquet, with the columns id and vector")
        scan, name = pl.scan_parquet(vectors), str(vectors)
    elif isinstance(vectors, Mapping):
        scan = _table_of_dict(vectors, name).lazy()
    elif isinstance(vectors, (pl.DataFrame, pl.LazyFrame)):
        scan = vectors.lazy()
    else:
        raise DataError(f"{name}: a dict, {{raw id: numbers}}, a table of polars with the columns "
                        "id and vector, or the path of such a file of Parquet, not "
                        f"{type(vectors).__name__}")
    try:
        ids = scan.select(pl.col("id").cast(pl.String)).collect()["id"].to_list()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name}: no column of ids: {str(error).splitlines()[0][:200]}") from error
    missing = [id for id in needed if id not in {*ids}]
    if missing:
        raise DataError(f"{name}: nothing about {enumerated(missing)}: each item needs a vector, "
                        "None where it has none")
    read = checked(name, *vectors_of_table(scan, name, ids))
    return {raw: vector for raw, vector, is_there in zip(ids, read.values, read.is_there)
            if is_there}


def _table_of_dict(vectors, name):
    made = {}
    for id, vector in vectors.items():
        raw = str(as_raw_id(id, name))
        if vector is not None:
            check_vector(vector, f"{name}: that of {raw!r}")
        made[raw] = None if vector is None else np.asarray(vector, np.float32).tolist()
    return vectors_table(made)


def vectors_table(vectors):
    """{raw id: numbers} as a table with the columns id and vector."""
    return pl.DataFrame({"id": pl.Series(list(vectors), dtype=pl.String), "vector": pl.Series(
        [vector if vector is None else list(vector) for vector in vectors.values()],
        dtype=pl.List(pl.Float32))})


# --- texts, as a caller gives them ----------------------------------------------------------------


def as_items(texts) -> dict:
    """{raw id: text}, {raw id: (text, fields)} or the path of a file of items (as --items_path
    takes it) as {raw id: ItemText}. Raises DataError."""
    if is_path(texts):
        return read_items(texts)
    if not isinstance(texts, Mapping):
        raise DataError("texts are a dict, {raw id: text} or {raw id: (text, {field: value})}, or "
                        f"the path of a file, not {type(texts).__name__}")
    items = {}
    for id, value in texts.items():
        raw = str(as_raw_id(id, "texts"))
        text, fields = (value, {}) if isinstance(value, str) else _text_and_fields(raw, value)
        check_item(Item(raw, text))
        field_tokens(fields)  # complains
        items[raw] = ItemText(text, fields)
    return items


def _text_and_fields(raw, value):
    if value is None or value != value:  # not there, as pandas has it
        return "", {}
    if (isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], str)
            and isinstance(value[1], Mapping)):
        return tuple(value)
    raise DataError(f"texts: that of {raw!r} is {value!r:.40}; it is a text, or a pair of a text "
                    "and {field: value}")


def write_items_file(path, items):
    """Writes {raw id: ItemText} as read_items reads it: a line each."""
    lines = []
    for raw, (text, fields) in items.items():
        values = [(name, value) for name, values in fields.items()
                  for value in (values if isinstance(values, (list, tuple)) else [values])]
        columns = [f"{name}:{' '.join(str(value).split())}" for name, value in values
                   if value is not None and str(value).strip()]
        lines.append("\t".join([raw, " ".join(text.split()), *columns]) + "\n")
    write_text(path, "".join(lines))

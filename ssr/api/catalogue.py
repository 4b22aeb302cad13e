"""The items of a model: raw ids, texts and vectors."""

from __future__ import annotations

from functools import cached_property
from typing import Mapping

import numpy as np

from ssr.api.clicks import as_raw_id, is_path, raw_ids_of
from ssr.errors import DataError
from ssr.files import items_digest, write_text
from ssr.preparation.text import ItemText, field_tokens, read_items
from ssr.retrieval.checkpoint import load_model, max_len_of
from ssr.retrieval.encoder import IdEncoder, clicked_items
from ssr.retrieval.values import Added, Item, check_item, enumerated
from ssr.training.content import ItemContent, ItemTokens, item_tokens_path, load_item_tokens


class Catalogue:
    """All items that a model can be asked about. It does not change; extended() makes another one.

    raw_ids, texts: lists of str, of the item with the number i in place i
    encoder: IdEncoder of all of them
    added: {raw id: ItemText} of those that were added by their text, or given another one
    """

    def __init__(self, raw_ids, texts, model, max_len, tokens, added=None):
        """model: SequenceSemanticRetrieval; max_len: as of IdEncoder; tokens: ItemTokens, None for
        a model without content"""
        self.raw_ids, self.texts, self.added = raw_ids, texts, added or {}
        self._model, self._max_len, self._tokens = model, max_len, tokens
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
        tokens = None
        if sizes["num_tokens"]:
            path = item_tokens_path(checkpoint.meta, directory.item_tokens)
            tokens = load_item_tokens(path, len(raw_ids), sizes["num_tokens"])
        return cls(raw_ids, texts, load_model(checkpoint), max_len_of(checkpoint.meta), tokens)

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
        clicked, content = clicked_items(self._model, size), None
        if self._tokens is not None:
            offsets = np.pad(self._tokens.offsets, (0, size + 1 - len(self._tokens.offsets)),
                             mode="edge")
            content = ItemContent(clicked, self._tokens._replace(offsets=offsets),
                                  token_row=self._model.vocab_size)
        return IdEncoder(self._model, content, self._max_len, size)

    def extended(self, items, vocabulary):
        """(another Catalogue, Added): with more items, or with other texts of those that it has.

        items: {raw id: ItemText}
        vocabulary: text.TokenVocabulary of the model, None for one without content
        Raises DataError where the model knows no content.
        """
        if vocabulary is None:
            raise DataError(f"{enumerated(list(items))}: the model was trained without content, it "
                            "knows an item by its clicks alone: train with texts to add items")
        new = [raw for raw in items if raw not in self.numbers]
        raw_ids, texts = self.raw_ids + new, self.texts + [""] * len(new)
        numbers = {**self.numbers, **{raw: len(self) + place for place, raw in enumerate(new)}}
        bags = np.split(self._tokens.tokens, self._tokens.offsets[1:-1])
        bags += [np.empty(0, np.int32)] * len(new)
        for raw, item in items.items():
            texts[numbers[raw]] = " ".join(item.text.split())
            bags[numbers[raw]] = vocabulary.encode(*item).astype(np.int32)
        tokens = ItemTokens(np.concatenate(bags), np.cumsum([0, *map(len, bags)]),
                            self._tokens.num_tokens)
        extended = Catalogue(raw_ids, texts, self._model, self._max_len, tokens,
                             {**self.added, **items})
        without = [raw for raw in items if not extended.encoder.has_vector[numbers[raw]]]
        had = self.encoder.has_vector
        replaced = sum(raw in self.numbers and bool(had[self.numbers[raw]])
                       for raw in {*items}.difference(without))
        return extended, Added(len(items) - len(without) - replaced, replaced, without)


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

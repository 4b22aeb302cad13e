"""Sessions, times, items and tokens as text files: the formats that training reads."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple, Optional, Sequence

import numpy as np
import polars as pl

from ssr.data_directory import (
    CUTTING_FILE,
    ITEM_TOKENS_FILE,
    ITEM_VECTORS_FILE,
    ITEMS_FILE,
    TOKENS_FILE,
    VOCAB_FILE,
)
from ssr.errors import DataError
from ssr.preparation import text
from ssr.preparation.numbering import EarlierRun
from ssr.preparation.output import Output
from ssr.preparation.text import ItemText

SESSIONS_AT_A_TIME = 500_000  # turned into text


# --- sessions -------------------------------------------------------------------------------------


def group_sessions(clicks: pl.DataFrame, columns=("item",)) -> pl.DataFrame:
    """Clicks in order of time -> one row a session, in order of their first clicks; its columns
    are lists."""
    return clicks.group_by("session", maintain_order=True).agg(*columns).select(*columns)


def write_sessions(file, sessions: pl.DataFrame, new_ids) -> None:
    """A session a line, ids with a space between, into a file open for bytes.

    sessions: its column item is lists of items
    new_ids: <uint32>[num_items], the id to write for each item
    """
    ids = pl.Series(new_ids)
    for chunk in sessions.iter_slices(SESSIONS_AT_A_TIME):
        lengths = chunk["item"].list.len()
        numbered = pl.DataFrame({
            "session": np.repeat(np.arange(len(chunk), dtype=np.uint32), lengths),
            "item": ids.gather(chunk["item"].explode()),
        })
        lines = numbered.group_by("session", maintain_order=True).agg("item")
        _write_lists(file, lines, pl.col("item"))


def write_times(file, sessions: pl.DataFrame) -> None:
    """The times of the clicks, as write_sessions writes their items, in whole seconds.

    sessions: its column time is lists of microseconds
    """
    for chunk in sessions.iter_slices(SESSIONS_AT_A_TIME):
        _write_lists(file, chunk, pl.col("time").list.eval(pl.element() // 1_000_000))


def _write_lists(file, frame, lists):
    frame.select(lists.cast(pl.List(pl.String)).list.join(" ")) \
        .write_csv(file, include_header=False, quote_style="never")


# --- items ----------------------------------------------------------------------------------------


class Catalogue(NamedTuple):
    """The text of items. source: the file that it comes from; items: {raw id: ItemText}"""

    source: str
    items: dict


class TextSettings(NamedTuple):
    """Where the text of the items comes from, and what is made of it.

    items_path: a file of items, or
    text_column, field_columns: columns of the click log, or
    catalogue: the text itself
    min_token_count: tokens of fewer items of the training sessions are dropped
    chinese_cutter: one of text.CUTTERS, None for jieba if it is installed
    all_items: whether items with text that occur in no session get ids as well
    vectors: <float32>[n, dim], pretrained vectors of the items: in row i that of the item whose raw
        id is i; None for none
    """

    items_path: Optional[str] = None
    text_column: Optional[str] = None
    field_columns: Sequence[str] = ()
    min_token_count: int = 2
    chinese_cutter: Optional[str] = None
    all_items: bool = False
    catalogue: Optional[Catalogue] = None
    vectors: Optional[np.ndarray] = None

    @property
    def wanted(self):
        """Whether items are to have text at all."""
        return bool(self.items_path or self.text_column or self.field_columns or self.catalogue)


class TextCoverage(NamedTuple):
    """items: those of the sessions; with_text: how many of them have text; outside: items with
    text that occur in no session; outside_kept: whether those get ids"""

    items: int
    with_text: int
    outside: int
    outside_kept: bool


class TokenCounts(NamedTuple):
    """tokens: in tokens.txt; per_item: the mean; without: items that have none; chinese_cutter:
    how Chinese was cut"""

    tokens: int
    per_item: float
    without: int
    chinese_cutter: str


def read_catalogue(settings: TextSettings):
    """The Catalogue that is at hand or in a file of items, None where there is none. Raises
    DataError."""
    path = settings.items_path
    return Catalogue(path, text.read_items(path)) if path else settings.catalogue


class Written(NamedTuple):
    """What write_items has written. num_tokens: of the vocabulary, None where items have no tokens;
    coverage, tokens: None where there was no text, or no new tokens"""

    items: int
    num_tokens: Optional[int] = None
    coverage: Optional[TextCoverage] = None
    tokens: Optional[TokenCounts] = None


def has_tokens(settings: TextSettings, earlier: EarlierRun) -> bool:
    """Whether write_items will write TOKEN_FILES. Raises DataError where items are to have
    text and those of an earlier run have none."""
    if not earlier.raw_ids:
        return settings.wanted
    if settings.wanted and earlier.token_lines is None:
        raise DataError(f"--continue_from {earlier.directory}: its items have no text, so a model "
                        "of it knows no tokens: leave the text out, or start anew")
    return earlier.token_lines is not None


def write_items(output: Output, raw_ids, num_train, catalogue, settings: TextSettings,
                earlier: EarlierRun) -> Written:
    """vocab.txt and items.txt and, if items have text, TOKEN_FILES, if they have vectors,
    ITEM_VECTORS_FILE.

    raw_ids: <str>[items of the sessions], in the order of their ids, those of earlier first
    num_train: how many of them training has, the first ones
    catalogue: the text of the items, None where none was asked for
    Raises DataError.
    """
    num_tokens = coverage = counts = None
    texts = [ItemText()] * len(raw_ids)
    if catalogue is not None:
        items = {raw: item for raw, item in catalogue.items.items()
                 if item.text.strip() or item.fields}
        raw_ids, coverage = _cover(raw_ids, Catalogue(catalogue.source, items), settings.all_items)
        texts = [items.get(raw, ItemText()) for raw in raw_ids]
    _write_item_lines(output, raw_ids, texts, earlier)
    if earlier.token_lines is not None:
        num_tokens = _write_more_tokens(output, texts, earlier)
    elif catalogue is not None:
        counts = _write_tokens(output, texts, num_train, catalogue.source, settings)
        num_tokens = counts.tokens
    if settings.vectors is not None:
        _write_vectors(output, raw_ids, settings.vectors)
    return Written(len(raw_ids), num_tokens, coverage, counts)


def _cover(raw_ids, catalogue, all_items):
    """(raw ids that are to have an id, TextCoverage). Raises DataError where text and sessions have
    no item in common."""
    known = set(raw_ids)
    outside = [raw for raw in catalogue.items if raw not in known]
    with_text = len(catalogue.items) - len(outside)
    if not with_text:
        raise DataError(f"{catalogue.source}: none of its {len(catalogue.items):,} items with text "
                        "occurs in the sessions: is it of this data?")
    coverage = TextCoverage(len(raw_ids), with_text, len(outside), all_items)
    return raw_ids + outside if all_items else raw_ids, coverage


def _write_vectors(output, raw_ids, vectors):
    """Zeros for an item beyond their end."""
    rows = np.array(raw_ids).astype(np.int64)
    values = np.zeros((len(rows), vectors.shape[1]), np.float32)
    there = rows < len(vectors)
    values[there] = vectors[rows[there]]
    with output.create(ITEM_VECTORS_FILE) as f:
        np.save(f, values)


def _write_item_lines(output, raw_ids, texts, earlier):
    with output.create(ITEMS_FILE) as f:
        for item, (raw, content) in enumerate(zip(raw_ids, texts)):
            # Text of one line: what splits lines, and tabs, are white space too.
            words = content.text.split()
            line = f"{raw}\t{' '.join(words)}" if words else raw
            if item < len(earlier.lines) and not words:
                line = earlier.lines[item]
            f.write(line.encode() + b"\n")
    with output.create(VOCAB_FILE) as f:
        f.write(b"%d\n" % len(raw_ids))


def _write_tokens(output, texts, num_train, source, settings):
    """The files of TOKEN_FILES. texts: <ItemText>[V]. Raises DataError if no token is left."""
    in_training = np.arange(len(texts)) < num_train
    bags = text.make_bags(texts, in_training, settings.min_token_count,
                          text.Tokenizer(settings.chinese_cutter))
    if not bags.tokens:
        raise DataError(f"{source}: no token occurs in {settings.min_token_count} items of the "
                        "training sessions: try a smaller --min_token_count")
    bags.write(output.create)
    return TokenCounts(len(bags.tokens), bags.lengths.mean(),
                       np.count_nonzero(bags.lengths == 0), bags.cutter)


def _write_more_tokens(output, texts, earlier):
    """The files of TOKEN_FILES with the tokens of an earlier run and no others: their ids are
    rows of a trained table. An item without text keeps the tokens that it has there. Returns how
    many tokens there are."""
    vocabulary = text.TokenVocabulary.load(os.path.join(earlier.directory, TOKENS_FILE))
    with output.create(ITEM_TOKENS_FILE) as f:
        for item, content in enumerate(texts):
            if item < len(earlier.token_lines) and content == ItemText():
                line = earlier.token_lines[item]
            else:
                line = " ".join(map(str, vocabulary.encode(*content)))
            f.write(line.encode() + b"\n")
    for name in (TOKENS_FILE, CUTTING_FILE):
        with output.create(name) as f, open(os.path.join(earlier.directory, name), "rb") as source:
            shutil.copyfileobj(source, f)
    return len(vocabulary)

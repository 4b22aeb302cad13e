"""Which number each item gets: in order of first appearance in train, then valid, then test, behind
the items of an earlier run."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

import numpy as np
import polars as pl

from ssr.data_directory import ITEM_TOKENS_FILE, ITEMS_FILE, read_description
from ssr.errors import DataError
from ssr.files import numbered_lines


class EarlierRun(NamedTuple):
    """The items of an earlier output directory, which keep their ids.

    raw_ids: <str>[V]
    lines: <str>[V], the lines of items.txt
    token_lines: <str>[V], those of item_tokens.txt; None where the items have no text
    """

    directory: str
    raw_ids: list
    lines: list
    token_lines: Optional[list]


NO_EARLIER_RUN = EarlierRun("", [], [], None)


def read_earlier_run(directory) -> EarlierRun:
    """What a directory of --continue_from says of its items. Raises DataError."""
    read_description(directory)  # an incomplete one has items of two runs
    path = os.path.join(directory, ITEMS_FILE)
    lines = [line for _, line in numbered_lines(path, "--continue_from is an earlier --output_dir")]
    raw_ids = [line.split("\t")[0] for line in lines]
    if len(set(raw_ids)) < len(raw_ids):
        raise DataError(f"{path} holds an item twice: run preprocess.py without --continue_from")
    tokens_path = os.path.join(directory, ITEM_TOKENS_FILE)
    token_lines = None
    if os.path.exists(tokens_path):
        token_lines = [line for _, line in numbered_lines(tokens_path, "it holds an item's tokens "
                                                                       "in each line")]
        if len(token_lines) != len(lines):
            raise DataError(f"{tokens_path} has {len(token_lines)} lines and {ITEMS_FILE} beside "
                            f"it {len(lines)}: they are not of one run")
    return EarlierRun(directory, raw_ids, lines, token_lines)


def number_items(sessions: dict, raw_items: pl.Series, earlier_raw_ids=()):
    """Numbers the items of a click log.

    sessions: {part: a frame whose column item is lists of items}, in the order of the parts
    raw_items: <str>[items of the log], the raw id of each item
    earlier_raw_ids: these have the ids 0, 1, ... already
    returns (raw_ids, new_ids): raw_ids, a list, the raw id of each id; new_ids <uint32>[items of
    the log], the id of each item that occurs in the sessions
    """
    clicked = pl.concat([part["item"].explode() for part in sessions.values()])
    items = clicked.unique(maintain_order=True).to_numpy()
    ids = {raw: number for number, raw in enumerate(earlier_raw_ids)}
    new_ids = np.zeros(len(raw_items), np.uint32)
    new_ids[items] = [ids.setdefault(raw, len(ids)) for raw in raw_items.gather(items).to_list()]
    return list(ids), new_ids


class ItemNumbers(dict):
    """{raw id: its number, in decimal}, both as bytes. A raw id that it does not have yet gets the
    next number. Raises UnicodeDecodeError where the raw id is not UTF-8."""

    def __init__(self, earlier_raw_ids=()):
        super().__init__((raw.encode(), b"%d" % number)
                         for number, raw in enumerate(earlier_raw_ids))

    def __missing__(self, raw):
        raw.decode("utf-8")  # items.txt must be readable
        number = self[raw] = b"%d" % len(self)
        return number

    def raw_ids(self):
        """<str>[V], in the order of their numbers."""
        return [raw.decode() for raw in self]


class PartNumbers(dict):
    """Those of an ItemNumbers that one part of the sessions has asked for: its length is the number
    of the part's items."""

    def __init__(self, numbers: ItemNumbers):
        super().__init__()
        self.numbers = numbers

    def __missing__(self, raw):
        number = self[raw] = self.numbers[raw]
        return number

"""Impressions, lists of items that were shown to users, and the files of them.

    impressions.txt    a line is the time in seconds, a tab, the ids of the items clicked before, a
                       tab, and the ids of those shown, each with -1 behind it if it was clicked and
                       -0 if not
"""

from __future__ import annotations

import array
import re
from typing import NamedTuple

import numpy as np

from ssr.errors import DataError
from ssr.files import files_of, numbered_lines

_ID = "[0-9]{1,10}"
_LINE = re.compile(rf"[0-9]{{1,18}}\t(?:{_ID}(?: {_ID})*)?\t{_ID}-[01](?: {_ID}-[01])*")
_FORM = ("a line is the time in seconds, a tab, the ids of the items clicked before, a tab, and "
         "the ids of those shown, each with -1 behind it if it was clicked and -0 if not")


class Impressions(NamedTuple):
    """Lists that were shown.

    clicks: <int32>[clicks], what was clicked before, all histories end to end; a history that
        several impressions have is there once
    history_offsets: <int64>[histories + 1], history i is clicks[offsets[i]:offsets[i + 1]]
    history: <int64>[impressions], the number of the history that each has
    shown: <int32>[items], the items of all impressions end to end
    labels: <bool>[items], whether they were clicked
    offsets: <int64>[impressions + 1], of the impressions in shown
    """

    clicks: np.ndarray
    history_offsets: np.ndarray
    history: np.ndarray
    shown: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray

    def __len__(self):
        return len(self.history)


def read_impressions(path, vocab_size) -> Impressions:
    """Reads impressions.txt, or all files of a directory of such files. Items are 0..vocab_size-1.
    Raises DataError."""
    histories, history = {}, array.array("q")
    shown, labels, lengths = array.array("q"), bytearray(), array.array("q")
    for file in files_of([path]):
        for number, line in numbered_lines(file, "it holds impressions: " + _FORM):
            if not line.strip():
                continue
            if not _LINE.fullmatch(line):
                raise DataError(f"{file}, line {number}: not an impression; {_FORM}")
            _, before, after = line.split("\t")
            items = after.split(" ")
            ids = [int(item[:-2]) for item in items]
            if before not in histories:
                _check_ids(map(int, before.split()), vocab_size, file, number)
            _check_ids(ids, vocab_size, file, number)
            history.append(histories.setdefault(before, len(histories)))
            shown.extend(ids)
            labels.extend(item.endswith("1") for item in items)
            lengths.append(len(ids))
    if not lengths:
        raise DataError(f"{path} holds no impressions; {_FORM}")
    sessions = [np.array(before.split(), np.int32) for before in histories]
    return Impressions(np.concatenate(sessions), _offsets(list(map(len, sessions))),
                       np.array(history), np.array(shown, np.int32),
                       np.frombuffer(labels, bool), _offsets(lengths))


def _check_ids(ids, vocab_size, path, line):
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise DataError(f"{path}, line {line}: item id {largest}, and the vocabulary file says "
                        f"{vocab_size} items, 0 to {vocab_size - 1}: give the --vocab_path of this "
                        "data")


def _offsets(lengths):
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

"""What goes into an index and what comes out of it."""

from __future__ import annotations

import re
from typing import Mapping, NamedTuple, Optional, Sequence

import numpy as np

from ssr.errors import DataError

MAX_TEXT = 10 * 1024  # bytes in UTF-8
MAX_ID = 1000  # the same

_NOT_IN_IDS = re.compile(r"[\0-\x1f\ud800-\udfff]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
# Control characters, line ends beyond ASCII, and what reverses the direction of writing.
_NOT_TO_PRINT = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Item(NamedTuple):
    """An item to add.

    id: the raw id; text: any; fields: {name: value or list of values}
    vector: its pretrained vector, for a model that was trained with such: numbers, as many as
        there; None, or zeros, for none
    """

    id: str
    text: str = ""
    fields: Mapping = {}
    vector: Optional[Sequence[float]] = None


class Hit(NamedTuple):
    """An item that fits a session.

    source: "live", where clicks rank it; the score is that of stream.Scoring. "nearest", where its
        vector does; the score is the cosine with the session, -1 to 1. "popular", where nothing is
        known of the session; the score is the number of its clicks in training. Hits of the first
        kind come before all others, whatever their scores, once the index has taken in enough
        clicks (queries.py)
    """

    id: str
    score: float
    text: str
    source: str = "nearest"


class Answer(NamedTuple):
    """What a session gets.

    hits: list of Hit, best first
    skipped: clicks that were left out, of items that are unknown or have no vector
    reason: why there are no hits, or why they are what is read most and not those of the session;
        "" where they are those
    """

    hits: list
    skipped: int
    reason: str


class Added(NamedTuple):
    """new: how many items were added, new or again; replaced: how many candidates were replaced by
    one of the same id; without_vector: ids of those that have no vector, since the model knows
    nothing about them"""

    new: int
    replaced: int
    without_vector: list


class Removed(NamedTuple):
    """removed: how many items were removed; unknown: the ids that were not known, or removed
    before"""

    removed: int
    unknown: list


def check_id(id):
    """Raises DataError for what cannot be an item's id."""
    if not isinstance(id, str) or not id or _NOT_IN_IDS.search(id):
        raise DataError(f"{_shortened(id)} is not an item's id: text, not empty, without tabs, "
                        "line ends and the like")


def check_item(item):
    """Raises DataError for an id, a text or a vector that cannot be one, or an id or text that is
    too long to be kept."""
    check_id(item.id)
    if _size(item.id) > MAX_ID:
        raise DataError(f"{_shortened(item.id)} is too long for an item's id: it may have {MAX_ID} "
                        "bytes in UTF-8")
    if not isinstance(item.text, str) or _SURROGATES.search(item.text):
        raise DataError(f"{_shortened(item.text)} is not a text")
    if _size(item.text) > MAX_TEXT:
        raise DataError(f"the text of item {item.id!r} is too long: {_size(item.text)} bytes in "
                        f"UTF-8, it may have {MAX_TEXT}")
    if item.vector is not None:
        check_vector(item.vector, f"the vector of item {item.id!r}")


def check_vector(vector, name):
    """Raises DataError for a vector that is not a list of finite numbers. name: what messages call
    it"""
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray(vector, np.float32)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise DataError(f"{name} is not a list of finite numbers")


def _size(text):
    return len(text) if text.isascii() else len(text.encode())


def _shortened(value):
    return repr(value if not isinstance(value, str) or len(value) <= 100 else value[:100] + "...")


def printable(text):
    r"""A text on one line of a terminal: control characters as escapes like \x1b."""
    return _NOT_TO_PRINT.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def enumerated(ids, most=5):
    """Some ids in a sentence."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return printable(", ".join(ids[:most])) + more

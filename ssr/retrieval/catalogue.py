"""What the live state needs of the index that it belongs to."""

from __future__ import annotations

from typing import Callable, NamedTuple


class Catalogue(NamedTuple):
    """
    model: the digest of its model; dim: of its vectors
    register: {raw id: key} of a list of raw ids; makes known those that were not, if it may
    encode: the vectors of sessions, lists of keys: a list of <float32>[dim] or None
    vector: that of a key, <float32>[dim] of length 1, or None
    """

    model: str
    dim: int
    register: Callable
    encode: Callable
    vector: Callable

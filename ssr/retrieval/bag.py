"""What the embedding of an item is made of, as an index keeps it."""

from __future__ import annotations

from typing import NamedTuple, Optional

import numpy as np


class Bag(NamedTuple):
    """An item's embedding is the sum of all of this. A Bag of nothing is false: the item has no
    embedding and no vector.

    rows: <int32>[n], rows of the embedding table: the item's own, those of its tokens
    projected: <float32>[members * dim], what the model makes of the item's pretrained vector; None
        for an item without one
    """

    rows: np.ndarray
    projected: Optional[np.ndarray] = None

    def __bool__(self):
        return len(self.rows) > 0 or self.projected is not None

    def to_bytes(self):
        """The rows, <int32>; before them, of an item with a pretrained vector, how many numbers
        were made of it, as a negative <int32>, and these, <float32>."""
        rows = np.asarray(self.rows, "<i4").tobytes()
        if self.projected is None:
            return rows
        projected = np.asarray(self.projected, "<f4")
        return np.array([-len(projected)], "<i4").tobytes() + projected.tobytes() + rows

    @classmethod
    def from_bytes(cls, data):
        """Raises ValueError, TypeError where these are not the bytes of a Bag."""
        values = np.frombuffer(data, "<i4")
        if not len(values) or values[0] >= 0:
            return cls(values)
        end = 1 - int(values[0])
        if end > len(values):
            raise ValueError("fewer numbers than it says")
        return cls(values[end:], values[1:end].view("<f4"))


NOTHING = Bag(np.empty(0, np.int32))

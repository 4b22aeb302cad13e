"""Pretrained vectors of items, of sentences, of pictures or of anything else, read from disk where
they are needed.

    item_vectors.npy        <float>[V, dim], row i is that of item i; zeros: it has none
    item_vectors.parquet    columns "id", a raw id, and "vector"; null: the item has none

A file of numpy is mapped into memory and never read as a whole. One of Parquet may have its rows in
any order and hold items that are not asked for; it is written to a file of numpy that nobody else
sees, in the order of the items, a part at a time.
"""

from __future__ import annotations

import logging
import os
import tempfile

import numpy as np

from ssr.errors import DataError, SetupError

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 1 << 13
_FORM = ("row i is the vector of item i, as numpy.save writes an array of numbers; Parquet with "
         "the columns id and vector will do as well")


class ItemVectors:
    """The vectors of items.

    values: <float>[n, dim], in memory or mapped into it; numbers, none of them infinite
    place: <int64>[V], which of them is that of each item
    is_there: <bool>[V], which items have one: zeros are none
    """

    def __init__(self, values, place, is_there):
        self.values, self.place, self.is_there = values, place, is_there
        self.dim = values.shape[1]

    @classmethod
    def of_rows(cls, values):
        """Vectors of which row i is that of item i."""
        vectors = cls(values, np.arange(len(values)), np.zeros(len(values), bool))
        for items, of_items in vectors.chunks():
            vectors.is_there[items] = of_items.any(axis=1)
        return vectors

    def __len__(self):
        return len(self.place)

    def of(self, items):
        """<float32>[n, dim], zeros for an item without a vector. items: <int64>[n]"""
        return np.asarray(self.values[self.place[items]], np.float32)

    def chunks(self):
        """Yields (items <int64>[n], their vectors), all items in order."""
        for start in range(0, len(self), ROWS_AT_A_TIME):
            items = np.arange(start, min(start + ROWS_AT_A_TIME, len(self)))
            yield items, self.of(items)

    def mean_and_std(self, chosen):
        """<float64>[dim] each, over those of the chosen items <bool>[V] that have a vector."""
        count, total, squares = 0, np.zeros(self.dim), np.zeros(self.dim)
        for items, vectors in self.chunks():
            some = vectors[(chosen & self.is_there)[items]].astype(np.float64)
            count += len(some)
            total += some.sum(0)
            squares += (some * some).sum(0)
        mean = total / max(count, 1)
        # Rounding leaves something of a number that is always the same.
        variance = squares / max(count, 1) - mean * mean
        return mean, np.sqrt(np.where(variance > 1e-12 * (mean * mean + 1e-30), variance, 0))

    def with_others(self, others, size):
        """The vectors of size items, of which some have others than here.

        others: {item: <float32>[dim]}; those of items that are new here and not in it are zeros
        """
        front = np.zeros((1 + len(others), self.dim), np.float32)
        front[1:] = list(others.values()) or front[1:]
        place, is_there = np.zeros(size, np.int64), np.zeros(size, bool)
        place[:len(self)], is_there[:len(self)] = len(front) + self.place, self.is_there
        items = np.array(list(others), np.int64)
        place[items], is_there[items] = np.arange(1, len(front)), front[1:].any(axis=1)
        return ItemVectors(_Joined(front, self.values), place, is_there)


class _Joined:
    """Two arrays one behind the other without a copy of them, as far as ItemVectors asks."""

    def __init__(self, front, back):
        self.front, self.back = front, back
        self.shape = (len(front) + len(back), front.shape[1])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        out = np.empty((len(rows), self.shape[1]), np.float32)
        in_front = rows < len(self.front)
        out[in_front] = self.front[rows[in_front]]
        out[~in_front] = self.back[rows[~in_front] - len(self.front)]
        return out


# --- reading --------------------------------------------------------------------------------------


def load_item_vectors(path, size, read_ids, dim=None) -> ItemVectors:
    """Reads the vectors of all items.

    path: of a .npy, or of Parquet
    size: how many items there are
    read_ids: called for their raw ids in order, where the file goes by these
    dim: numbers that a vector must have, None for any
    Raises DataError, which names file and row or item, for anything but finite numbers, and unless
    there is a vector for each item.
    """
    values, names = (vectors_of_table(_scan(path), path, read_ids()) if is_parquet(path)
                     else _read_npy(path, size))
    if dim is not None and values.shape[1] != dim:
        raise DataError(f"{path} holds vectors of {values.shape[1]} numbers, and the model was "
                        f"trained with vectors of {dim}: make them with the same encoder")
    return checked(path, values, names)


def is_parquet(path):
    """Whether a file says that it is one of Parquet. Raises DataError."""
    try:
        with open(path, "rb") as f:
            return f.read(4) == b"PAR1"
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    return DataError(f"cannot read {path}: {error.strerror or error}; {_FORM}")


def _read_npy(path, size):
    """(<float>[size, dim], mapped into memory, a function from a row to what messages call it)."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("several arrays")
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # whatever Python's parser makes of a damaged header
        raise DataError(f"{path} is not a file that numpy.save wrote, or an array of other things "
                        f"than numbers; {_FORM}") from error
    if values.ndim != 2 or values.dtype.kind != "f" or not values.shape[1]:
        raise DataError(f"{path} holds {values.dtype.name}{list(values.shape)}, and it must be "
                        f"floating-point numbers, [items, numbers of a vector]; {_FORM}")
    if len(values) != size:
        raise DataError(f"{path} holds {len(values)} rows, and there are {size} items: row i is "
                        "the vector of item i, make it for the items.txt of this data")
    return values, lambda row: f"row {row} (from 0 on, as the items)"


def checked(path, values, name) -> ItemVectors:
    """The vectors whose row i is that of item i. path: what messages call what they come from;
    name: a function from a row to what they call it. Raises DataError."""
    _check_finite(path, values, name)
    vectors = ItemVectors.of_rows(values)
    if not vectors.is_there.any():
        raise DataError(f"{path}: all vectors are zeros, no item has one")
    return vectors


def _check_finite(path, values, name):
    for start in range(0, len(values), ROWS_AT_A_TIME):
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite in it
            part = np.asarray(values[start:start + ROWS_AT_A_TIME], np.float32)
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise DataError(f"{path}, {name(row)}: the vector holds what is no number, or an "
                            "infinite one; zeros say that an item has none")


def _scan(path):
    import polars as pl  # here: who has an array needs none

    return pl.scan_parquet(path)


def vectors_of_table(scan, path, ids):
    """As _read_npy, for items with some raw ids.

    scan: a polars.LazyFrame with the columns id and vector; path: what messages call it
    """
    import polars as pl

    number = {id: row for row, id in enumerate(ids)}
    try:
        schema = scan.collect_schema()
        for column in ("id", "vector"):
            if column not in schema:
                raise DataError(f"{path} has no column {column!r}, only "
                                f"{', '.join(schema.names())[:200]}; {_FORM}")
        kind = schema["vector"]
        if not isinstance(kind, (pl.List, pl.Array)) or not kind.inner.is_numeric():
            raise DataError(f"{path}: the column vector holds {kind}, and must hold lists of "
                            "numbers, all as long as each other")
        values, seen = None, np.zeros(len(ids), bool)
        total = scan.select(pl.len()).collect().item()
        for start in range(0, total, ROWS_AT_A_TIME):
            part = scan.select(pl.col("id").cast(pl.String),
                               pl.col("vector").cast(pl.List(pl.Float32))).slice(
                start, ROWS_AT_A_TIME).collect()
            rows = np.array([number.get(id, -1) for id in part["id"]], np.int64)
            part, rows = part.filter(rows >= 0), rows[rows >= 0]
            _check_unique(path, part["id"], rows, seen)
            vectors = part["vector"]
            lengths = vectors.list.len().drop_nulls()
            if values is None and len(lengths):
                values = _unnamed_array(len(ids), lengths[0])
            if len(lengths):
                _put(path, values, part["id"], rows, vectors)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} is damaged, or not Parquet: "
                        f"{str(error).splitlines()[0][:200]}") from error
    if not seen.all():
        missing = [id for id, is_seen in zip(ids, seen) if not is_seen]
        raise DataError(f"{path} lacks {len(missing)} of {len(ids)} items, such as "
                        f"{', '.join(missing[:5])}: each needs a row, with a null for a vector "
                        "where it has none")
    if values is None:
        raise DataError(f"{path}: no item has a vector")
    if total > seen.sum():
        logger.info("%s: %d rows are of items that are not asked for", path, total - seen.sum())
    return values, lambda row: f"item {ids[row]!r}"


def _check_unique(path, names, rows, seen):
    again = seen[rows]
    _, first = np.unique(rows, return_index=True)
    again[np.setdiff1d(np.arange(len(rows)), first)] = True
    if again.any():
        raise DataError(f"{path}: item {names[int(np.argmax(again))]!r} has several rows: keep one "
                        "of them")
    seen[rows] = True


def _put(path, values, names, rows, vectors):
    """Writes a part of the vectors to their rows; null, of a vector, is zeros."""
    dim = values.shape[1]
    lengths = vectors.list.len()
    other = (lengths != dim).fill_null(False).to_numpy()
    if not dim or other.any():
        place = int(np.argmax(other))
        raise DataError(f"{path}: the vector of item {names[place]!r} has {lengths[place]} numbers "
                        f"and others have {dim}: all must have as many")
    there = vectors.is_not_null().to_numpy()
    flat = vectors.filter(there).explode(empty_as_null=False).to_numpy().reshape(-1, dim)
    values[rows[there]] = flat  # a null in it is not a number, and found as such


def _unnamed_array(rows, dim):
    """<float32>[rows, dim] of zeros in a file that goes with this process. Raises SetupError."""
    try:
        with tempfile.TemporaryFile(prefix="ssr-vectors-") as f:
            os.posix_fallocate(f.fileno(), 0, max(1, rows * dim * 4))
            return np.memmap(f, np.float32, "r+", shape=(rows, dim))
    except OSError as error:
        raise SetupError(f"no room for {rows:,} vectors in {tempfile.gettempdir()} "
                         f"({error.strerror}): TMPDIR names another directory; a .npy needs none"
                         ) from error

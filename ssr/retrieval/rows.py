"""An item as a row of the table of items: what it is made of, and the checksums that tell a damaged
one."""

from __future__ import annotations

import json
import zlib
from typing import NamedTuple, Optional, Tuple

import numpy as np

from ssr.retrieval.bag import Bag

SCHEMA = """
CREATE TABLE items (
    key INTEGER PRIMARY KEY,   -- the id in faiss, an item's own for good
    id TEXT UNIQUE NOT NULL,   -- the raw id
    text TEXT NOT NULL,
    bag BLOB NOT NULL,         -- what the item's embedding is made of (bag.Bag)
    vector BLOB,               -- <float32>[dim]; none: the item is known and no candidate
    text_crc INTEGER,          -- CRC-32 of id and text; in format 1 there are none
    bag_crc INTEGER,           -- of id and bag
    vector_crc INTEGER,        -- of id and vector
    fields TEXT,               -- a JSON list of "name:value"; before format 3 there are none
    added REAL,                -- when it was added last, seconds since 1970
    fields_crc INTEGER,        -- of id, fields and added
    removed INTEGER NOT NULL,  -- 1: no candidate, but still an item that may have been clicked
    change INTEGER NOT NULL    -- of the last transaction that touched it, from 1 on
);
CREATE INDEX items_change ON items (change);
CREATE INDEX items_removed ON items (key) WHERE removed = 1;
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """An item as it is written.

    id, text: str; bag: Bag; vector: numpy <float32>[dim], None for no candidate
    fields: as of text.field_tokens, such as ("section:sports",)
    added: seconds since 1970
    """

    id: str
    text: str
    bag: Bag
    vector: Optional[np.ndarray]
    fields: Tuple[str, ...] = ()
    added: float = 0.0


class StoredItem(NamedTuple):
    """An item as it is read.

    key: its key in faiss; vector: <float32>[dim] or None; change: the number of the last change
    that touched it
    """

    key: int
    id: str
    text: str
    bag: Bag
    vector: Optional[np.ndarray]
    removed: bool
    change: int

    @property
    def is_candidate(self):
        return self.vector is not None and not self.removed


class KnownItem(NamedTuple):
    """What a click on an item needs: its key, its Bag, whether it was removed."""

    key: int
    bag: Bag
    removed: bool


# Columns that an index has had since format 2, and since format 3.
CRCS = ["text_crc", "bag_crc", "vector_crc"]
FIELDS = ["fields", "added", "fields_crc"]


def put_rows(db, rows, change, columns):
    """Adds items, or replaces those of the same id; the last one of an id counts.

    rows: an iterable of Row; change: its number; columns: those of CRCS and FIELDS that there are
    """
    names = ["id", "text", "bag", "vector", "change", *columns]
    values = ", ".join(f":{name}" for name in names)
    updates = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
    db.executemany(
        f"INSERT INTO items ({', '.join(names)}, removed) VALUES ({values}, 0) "
        f"ON CONFLICT (id) DO UPDATE SET {updates}, removed = 0",
        ({"change": change, **_values(row)} for row in rows))


def _values(row):
    """The columns of a Row by their names."""
    bag = row.bag.to_bytes()
    vector = None if row.vector is None else np.asarray(row.vector, "<f4").tobytes()
    fields, added = json.dumps(row.fields, ensure_ascii=False), float(row.added)
    return {"id": row.id, "text": row.text, "bag": bag, "vector": vector, "fields": fields,
            "added": added, "fields_crc": fields_crc(row.id, fields, added),
            **dict(zip(CRCS, crcs(row.id, row.text, bag, vector)))}


def crcs(id, text, bag, vector):
    """The CRCS of an item; bag, vector: bytes, the latter maybe None."""
    start = zlib.crc32(id.encode())
    return tuple(zlib.crc32(data, start) for data in (text.encode(), bag, vector or b""))


def fields_crc(id, fields, added):
    """The checksum of what FIELDS hold of an item."""
    return zlib.crc32(f"{added!r} {fields}".encode(), zlib.crc32(id.encode()))


def is_intact(id, data, kind, crc):
    """Whether data are of a kind, str or bytes, and have the checksum that was taken with an id."""
    if not (isinstance(id, str) and isinstance(data, kind)):  # one flipped bit makes bytes of text
        return False
    return zlib.crc32(data.encode() if kind is str else data, zlib.crc32(id.encode())) == crc

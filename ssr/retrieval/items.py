"""The items of an index in SQLite: id, text, what the embedding is made of, and the vector.

A change has a number, one more than the last; each item keeps the number of the last change that
touched it. A change is one transaction: it is on the disk as a whole once it is acknowledged, or
not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import threading
import time

import numpy as np

from ssr.errors import StoreError
from ssr.retrieval.bag import NOTHING, Bag
from ssr.retrieval.builds import REMEDY
from ssr.retrieval.database import connect, has_writer_come, sqlite_errors, transaction
from ssr.retrieval.remembered import Remembered
from ssr.retrieval.rows import (
    CRCS,
    FIELDS,
    SCHEMA,
    KnownItem,
    Row,
    StoredItem,
    crcs,
    fields_crc,
    is_intact,
    put_rows,
)

ROWS_AT_A_TIME = 1 << 14
CHANGES_AT_A_TIME = 256

IS_CANDIDATE = "removed = 0 AND vector IS NOT NULL"


def get_meta(db, name):
    """The value of a name, None where there is none."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return row and row[0]


def set_meta(db, name, value):
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def create_items(file, dim, rows, details, queries):
    """Writes a new database. rows: an iterable of Row; details: a dict for JSON, returned as
    Items.details; queries: <float32>[n, dim], returned as Items.queries"""
    with sqlite_errors(file, REMEDY), contextlib.closing(
            sqlite3.connect(file, isolation_level=None)) as db:
        # The file is nobody's yet: it is flushed once, when it is complete.
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(SCHEMA)
        with transaction(db):
            put_rows(db, rows, 1, CRCS + FIELDS)
            set_meta(db, "dim", dim)
            set_meta(db, "details", json.dumps(details, ensure_ascii=False))
            set_meta(db, "probes", np.asarray(queries, "<f4").tobytes())


class Items:
    """The items of a build. Every method may be called from any thread; those that write are called
    by one at a time.

    file: of the database
    dim: of the vectors; details, queries: what create_items was given
    """

    def __init__(self, file, writable=False):
        """Raises StoreError."""
        self.file = file
        self._asking = threading.Lock()  # around the connection that reads
        self._browsing = threading.Lock()  # around the one that looks through texts
        self._connections = []
        self._known, self._texts, self._bags = (
            Remembered(read, self._data_version)
            for read in (self._read_known, self._read_texts, self._read_bags))
        try:
            with self.errors():
                self._reads, self._browses = self._connect(True), self._connect(True)
                self._reads.execute("PRAGMA query_only = ON")
                self.db = self._connect(False) if writable else None
                if writable:
                    self.db.execute("PRAGMA synchronous = FULL")
                self._read_meta()
        except BaseException:
            self.close()
            raise

    def _connect(self, read_only):
        if not os.path.exists(self.file):
            raise StoreError(f"{self.file} is missing: {REMEDY}")
        self._connections.append(connect(self.file, read_only))
        return self._connections[-1]

    def _read_meta(self):
        try:
            self.dim = int(get_meta(self._reads, "dim"))
            self.details = json.loads(get_meta(self._reads, "details"))
            self.queries = np.frombuffer(get_meta(self._reads, "probes"), "<f4").reshape(
                -1, self.dim)
            if not isinstance(self.details, dict):
                raise ValueError("details")
        except (TypeError, ValueError, RecursionError) as error:
            raise self._damaged("what it says of itself") from error
        columns = self._reads.execute("PRAGMA table_info(items)").fetchall()
        columns = {column[1] for column in columns}
        self.has_checksums, self.has_fields = "text_crc" in columns, "fields" in columns
        self._columns = CRCS * self.has_checksums + FIELDS * self.has_fields
        self._fields = ", ".join(FIELDS if self.has_fields else ["'[]'", "0.0", "NULL"])
        self._crcs = ", ".join(CRCS if self.has_checksums else ["NULL"] * len(CRCS))

    def close(self):
        with self._asking, self._browsing:
            for connection in self._connections:
                connection.close()

    def errors(self):
        """A context that turns SQLite's errors into StoreError."""
        return sqlite_errors(self.file, REMEDY)

    def _damaged(self, what):
        return StoreError(f"{self.file} is damaged ({what}): {REMEDY}")

    # --- reading

    def ask(self, query, *parameters):
        """The rows of a query in SQL that only reads. Raises StoreError."""
        with self._asking, self.errors():
            return self._reads.execute(query, parameters).fetchall()

    def version(self):
        """What is another value after somebody has changed the database; much cheaper than to look
        for the change."""
        if has_writer_come(self._reads, self.file):
            self._connect_again()
        return self._data_version()

    def _data_version(self):
        return self._reads, self.ask("PRAGMA data_version")[0][0]

    def _connect_again(self):
        with self._asking, self._browsing, self.errors():
            for connection in self._connections:
                connection.close()
            self._connections = []
            self._reads, self._browses = self._connect(True), self._connect(True)

    def _select(self, condition, *parameters):
        """The items of a condition in SQL, a list of StoredItem. Raises StoreError where one is
        damaged."""
        return [self._verified(*row) for row in self._rows(condition, *parameters)]

    def _rows(self, condition, *parameters):
        return self.ask(f"SELECT key, id, text, bag, vector, removed, change, {self._fields}, "
                        f"{self._crcs} FROM items WHERE {condition}", *parameters)

    def _verified(self, key, id, text, bag, vector, removed, change, *rest):
        fields, stored_crcs = rest[:len(FIELDS)], rest[len(FIELDS):]
        self._parsed_fields(key, id, *fields)
        try:
            if self.has_checksums and stored_crcs != crcs(id, text, bag, vector):
                raise ValueError
            stored = StoredItem(key, id, text, Bag.from_bytes(bag),
                                None if vector is None else np.frombuffer(vector, "<f4"),
                                bool(removed), change)
            if stored.vector is not None and len(stored.vector) != self.dim:
                raise ValueError
        except (TypeError, ValueError, AttributeError) as error:
            raise self._damaged_item(key, id) from error
        return stored

    def _damaged_item(self, key, id):
        return self._damaged(f"item {key}, {str(id)[:100]!r}")

    def find(self, ids):
        """{id: KnownItem} of those of the ids, strings, that are known, removed ones included."""
        return self._known.find(ids)

    def _read_known(self, ids):
        crc = "bag_crc" if self.has_checksums else "NULL"
        rows = self.ask(f"SELECT id, key, bag, removed, {crc} FROM items "
                        "WHERE id IN (SELECT value FROM json_each(?))", json.dumps(ids))
        known = {}
        for id, key, bag, removed, crc in rows:
            if self.has_checksums and not is_intact(id, bag, bytes, crc):
                raise self._damaged_item(key, id)
            known[id] = KnownItem(key, Bag.from_bytes(bag), bool(removed))
        return known

    def texts(self, keys):
        """{key: (id, text)} of keys, ints. Raises StoreError where one is not there."""
        return self._texts.find(keys)

    def _read_texts(self, keys):
        return {key: (id, text) for key, id, text in self._column("text", str, keys)}

    def bags(self, keys):
        """{key: Bag} of keys, ints. Raises StoreError where one is not there."""
        return self._bags.find(keys)

    def _read_bags(self, keys):
        return {key: Bag.from_bytes(bag) for key, _, bag in self._column("bag", bytes, keys)}

    def _column(self, name, kind, keys):
        """[(key, id, value of a column)] of keys: a query reads no more than it needs. kind: of the
        values, str or bytes"""
        crc = f"{name}_crc" if self.has_checksums else "NULL"
        rows = self.ask(f"SELECT key, id, {name}, {crc} FROM items "
                        "WHERE key IN (SELECT value FROM json_each(?))", json.dumps(keys))
        for key, id, value, crc in rows:
            if self.has_checksums and not is_intact(id, value, kind, crc):
                raise self._damaged_item(key, id)
        missing = set(keys).difference(row[0] for row in rows)
        if missing:
            raise self._damaged(f"there is no item {min(missing)}")
        return [row[:3] for row in rows]

    def attributes(self, change):
        """What filters ask of the items that later changes touched: a list of (key, id, fields, a
        list of str; added, seconds since 1970; the change). Of an index that keeps no fields there
        are none, and nothing is known of when an item was added."""
        return [(key, id, self._parsed_fields(key, id, *fields), fields[1], changed)
                for key, id, changed, *fields in self.ask(
                    f"SELECT key, id, change, {self._fields} FROM items WHERE change > ?", change)]

    def _parsed_fields(self, key, id, fields, added, crc):
        try:
            if self.has_fields and crc != fields_crc(id, fields, added):
                raise ValueError
            return json.loads(fields)
        except (TypeError, ValueError, AttributeError) as error:
            raise self._damaged_item(key, id) from error

    def vector(self, key):
        """<float32>[dim] of a candidate, None for what is none."""
        stored = self._select(f"key = ? AND {IS_CANDIDATE}", key)
        return stored[0].vector if stored else None

    def changed_since(self, change):
        """The items that later changes touched, a list of StoredItem."""
        return self._select("change > ?", change)

    def changes(self, since):
        """Yields lists of (Row without bag and vector, whether it was removed), of the items that
        later changes touched, in the order of their keys. Those of which nothing is known but that
        somebody has clicked them are left out."""
        key = -1
        while True:
            rows = self.ask(
                f"SELECT key, id, text, removed, {self._fields} FROM items WHERE "
                "change > ? AND key > ? AND (removed = 1 OR vector IS NOT NULL OR text != '' "
                "OR length(bag) > 0) ORDER BY key LIMIT ?", since, key, CHANGES_AT_A_TIME)
            if not rows:
                return
            yield [(Row(id, text, NOTHING, None, tuple(self._parsed_fields(key, id, *fields)),
                        fields[1]), bool(removed))
                   for key, id, text, removed, *fields in rows]
            key = rows[-1][0]

    def newest_change(self):
        """The number of the last change."""
        return self.ask("SELECT max(change) FROM items")[0][0]

    def removed(self):
        """The keys of the items that were removed, a set."""
        return {key for key, in self.ask("SELECT key FROM items WHERE removed = 1")}

    def scan(self):
        """Yields lists of StoredItem, all candidates in the order of their keys, as they are when
        each list is read."""
        key = -1
        while True:
            stored = self._select(f"key > ? AND {IS_CANDIDATE} ORDER BY key LIMIT ?", key,
                                  ROWS_AT_A_TIME)
            if not stored:
                return
            yield stored
            key = stored[-1].key

    def vectors(self):
        """(keys <int64>[n], vectors <float32>[n, dim]) of all candidates, in no more memory than
        that."""
        size, = self.ask(f"SELECT count(*) FROM items WHERE {IS_CANDIDATE}")[0]
        keys, vectors = np.empty(size, np.int64), np.empty((size, self.dim), np.float32)
        start = 0
        for stored in self.scan():
            end = start + len(stored)
            keys[start:end] = [item.key for item in stored]
            vectors[start:end] = [item.vector for item in stored]
            start = end
        return keys[:start], vectors[:start]

    def browse(self, words, limit, seconds=0.1):
        """Candidates whose text or id holds each of some words, those changed last first.

        words: strings; of ASCII letters either case matches; none: all candidates
        limit: how many at most
        seconds: after which the search ends with what it has by then
        returns a list of (id, text), and whether the search went through all items
        """
        patterns = ["%" + re.sub(r"([\\%_])", r"\\\1", word) + "%" for word in words]
        matches = "".join(" AND (text LIKE ? ESCAPE '\\' OR id LIKE ? ESCAPE '\\')" for _ in words)
        query = (f"SELECT id, text FROM items WHERE {IS_CANDIDATE}{matches} "
                 "ORDER BY change DESC, key DESC LIMIT ?")
        parameters = [pattern for pattern in patterns for _ in range(2)] + [limit]
        rows = []
        # A connection of its own: it reads through the table, queries do not wait for that.
        with self._browsing, self.errors():
            end = time.monotonic() + seconds
            self._browses.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            try:
                for row in self._browses.execute(query, parameters):
                    rows.append(row)
            except sqlite3.OperationalError as error:
                if "interrupted" not in str(error):
                    raise
                return rows, False
        return rows, True

    def count(self):
        """How many items are known, removed ones included, without reading through the table."""
        return self.ask("SELECT ifnull(max(key), 0) FROM items")[0][0]  # none is ever deleted

    def counts(self):
        """{"items": all that are known, "candidates", "removed", "without_vector"}."""
        items, candidates, removed = self.ask(
            f"SELECT count(*), sum({IS_CANDIDATE}), sum(removed) FROM items")[0]
        return {"items": items, "candidates": candidates, "removed": removed,
                "without_vector": items - candidates - removed}

    def get_meta(self, name):
        with self._asking, self.errors():
            return get_meta(self._reads, name)

    def faults(self):
        """Reads everything. Yields a sentence for each damaged item."""
        key = -1
        while True:
            rows = self._rows("key > ? ORDER BY key LIMIT ?", key, ROWS_AT_A_TIME)
            if not rows:
                return
            for row in rows:
                try:
                    self._verified(*row)
                except StoreError as error:
                    yield str(error)
            key = rows[-1][0]

    def integrity_error(self):
        """What SQLite's own check says of the file, None where it is in order."""
        result = self.ask("PRAGMA integrity_check(1)")[0][0]
        return None if result == "ok" else result.splitlines()[-1]

    # --- writing

    @contextlib.contextmanager
    def transaction(self):
        """Everything that is written within the block is on the disk when it ends, or nothing."""
        with self.errors(), transaction(self.db):
            yield

    def put(self, rows, change):
        """Adds items, or replaces those of the same id; the last one of an id counts. rows: an
        iterable of Row"""
        put_rows(self.db, rows, change, self._columns)

    def remove(self, id, change):
        """Takes an item off the candidates; it stays known. Returns False where it is not known or
        was removed before."""
        return bool(self.db.execute("UPDATE items SET removed = 1, change = ? WHERE id = ? "
                                    "AND removed = 0", (change, id)).rowcount)

"""Items with their vectors on the disk, and the search among them. It knows no model.

What counts is an SQLite database: a change is acknowledged once its transaction is on the disk, so
a crash at any moment leaves all of it or nothing. The faiss index that is searched is made from
it. A file holds it as it was at some change; what came later is read from the database on opening,
and the same way, change by change, while it is open. So there is one road by which a vector gets
into the index, whoever wrote it and whenever.

    INDEX/current        JSON: the version of this format and the name of the build
    INDEX/build-XXXX/    items.sqlite, vectors-CHANGE.faiss and what the caller keeps with them

One process writes, any number reads beside it; within a process any number of threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
import zlib
from typing import NamedTuple, Optional

import faiss
import numpy as np

from ssr.errors import StoreError

logger = logging.getLogger(__name__)

FORMAT = 1
RECALL_AT = 20
RECALL = 0.985  # what an approximate search is set to, unless told otherwise
POINTS_PER_LIST = 64  # vectors that k-means looks at, per list: more take longer and change little
ROWS_AT_A_TIME = 1 << 14
SAVE_AFTER = 1000  # changed rows, or a twentieth of all if that is more: opening stays quick

SCHEMA = """
CREATE TABLE items (
    key INTEGER PRIMARY KEY,   -- the id in faiss, an item's own for good
    id TEXT UNIQUE NOT NULL,   -- the raw id
    text TEXT NOT NULL,
    bag BLOB NOT NULL,         -- <int32>, what the item's embedding is made of
    vector BLOB,               -- <float32>[dim]; none: the item is known and no candidate
    removed INTEGER NOT NULL,  -- 1: no candidate, but still an item that may have been clicked
    change INTEGER NOT NULL    -- of the last transaction that touched it, from 1 on
);
CREATE INDEX items_change ON items (change);
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""
LIVE = "removed = 0 AND vector IS NOT NULL"


class Row(NamedTuple):
    """An item as it is written.

    id, text: str; bag: numpy <int32>[n]; vector: numpy <float32>[dim], None for no candidate
    """

    id: str
    text: str
    bag: np.ndarray
    vector: Optional[np.ndarray]


class Known(NamedTuple):
    """What is known of an item: its key in the index, its bag <int32>[n], whether it is removed."""

    key: int
    bag: np.ndarray
    removed: bool


# --- the directory --------------------------------------------------------------------------------


def _lock(path):
    """The exclusive lock on a directory, which ends with the process if not before."""
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StoreError(f"another process has {path} open for writing: one at a time, stop it "
                         "first") from error
    return lock


def _sync(path):
    """Flushes a file or the names in a directory to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _current(path):
    """The directory of the build that counts. Raises StoreError."""
    name = os.path.join(path, "current")
    try:
        with open(name, encoding="utf-8") as f:
            current = json.load(f)
        version, build = int(current["format"]), str(current["build"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"there is no index in {path}: retrieve.py build makes one") from error
    except OSError as error:
        raise StoreError(f"cannot read {name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{name} is damaged: {_REMEDY}") from error
    if version > FORMAT:
        raise StoreError(f"{path} was written by a newer version, in format {version}; this one "
                         f"reads up to {FORMAT}: use the newer one, or build the index anew")
    return os.path.join(path, build)


_REMEDY = "bring it back from a copy, or build the index anew (retrieve.py build --overwrite)"


@contextlib.contextmanager
def building(path, overwrite=False):
    """A context that gives an empty directory, which becomes the index in `path` when the block
    ends; until then, and if it fails, what was there stays. Raises StoreError."""
    try:
        os.makedirs(path, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    try:
        _check_target(path, overwrite)
        directory = tempfile.mkdtemp(prefix="build-", dir=path)
        try:
            yield directory
            _publish(path, directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(path)  # if it is empty: nothing was there before
            raise
        for name in os.listdir(path):  # the one before, and what a killed build has left
            if name.startswith("build-") and name != os.path.basename(directory):
                shutil.rmtree(os.path.join(path, name), ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        os.close(lock)


def _check_target(path, overwrite):
    names = os.listdir(path)
    if "current" in names and not overwrite:
        raise StoreError(f"there is an index in {path}: give another --index_dir, or --overwrite "
                         "to replace it")
    if "current" not in names and any(not name.startswith("build-") for name in names):
        raise StoreError(f"{path} holds something else than an index: give an --index_dir of its "
                         "own")


def _publish(path, directory):
    os.chmod(directory, os.stat(path).st_mode & 0o777)  # a temporary one is its owner's alone
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync(os.path.join(folder, name))
        _sync(folder)
    temporary = os.path.join(directory, "current")
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump({"format": FORMAT, "build": os.path.basename(directory)}, f)
    _sync(temporary)
    os.replace(temporary, os.path.join(path, "current"))
    _sync(path)


# --- the database ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _told(path):
    """Turns SQLite's errors into ours."""
    try:
        yield
    except sqlite3.ProgrammingError as error:  # what it calls a connection that is closed
        raise StoreError(f"the index {os.path.dirname(path)} is closed") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            raise StoreError(f"cannot use {path}: {error}") from error
        raise StoreError(f"{path} is damaged ({error}): {_REMEDY}") from error


def _connect(path):
    """A connection for several threads; transactions begin where we say so."""
    if not os.path.exists(path):
        raise StoreError(f"{path} is missing: {_REMEDY}")
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _get(db, name):
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return row and row[0]


def _set(db, name, value):
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _put(db, rows, change):
    db.executemany(
        "INSERT INTO items (id, text, bag, vector, removed, change) VALUES (?, ?, ?, ?, 0, ?) "
        "ON CONFLICT (id) DO UPDATE SET text = excluded.text, bag = excluded.bag, "
        "vector = excluded.vector, removed = 0, change = excluded.change",
        ((row.id, row.text, np.asarray(row.bag, "<i4").tobytes(),
          None if row.vector is None else np.asarray(row.vector, "<f4").tobytes(), change)
         for row in rows))


def _stack(blobs, dim):
    return np.frombuffer(b"".join(blobs), "<f4").reshape(-1, dim)


def create(directory, dim, rows, details, probes, ivf_above=100_000, nlist=None, nprobe=None):
    """Writes the database and the faiss file of a new index.

    directory: empty, as of building
    rows: an iterable of Row
    details: a dict for JSON, what the caller wants to find again
    probes: <float32>[n, dim], queries of the kind that will come, to measure the recall with
    ivf_above, nlist, nprobe: as of reindex
    Raises StoreError where no item has a vector.
    """
    path = os.path.join(directory, "items.sqlite")
    with _told(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        # The file is nobody's yet: it is flushed once, when it is complete.
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(SCHEMA)
        db.execute("BEGIN")
        _put(db, rows, change=1)
        _set(db, "dim", dim)
        _set(db, "details", json.dumps(details, ensure_ascii=False))
        _set(db, "probes", np.asarray(probes, "<f4").tobytes())
        db.execute("COMMIT")
        vectors = _train(db, dim, probes, ivf_above, nlist, nprobe)
        if not len(vectors):
            raise StoreError("no item has a vector, there is nothing to search")
        _save(db, directory, vectors, 1)
        db.execute("PRAGMA journal_mode = WAL")  # readers beside a writer, from here on


# --- faiss ----------------------------------------------------------------------------------------


class Flat:
    """Exact: IndexIDMap2(IndexFlatIP).

    faiss moves all later vectors up when one is removed, 2 ms at 50,000 items. So a changed vector
    is overwritten where it stands, and a dropped one with not-a-number, which no search returns;
    its place waits for the item to come back, or for the next time the file is written.
    """

    kind = "flat"

    def __init__(self, index):
        self.index = index
        self._number()

    @classmethod
    def make(cls, dim):
        return cls(faiss.IndexIDMap2(faiss.IndexFlatIP(dim)))

    def _number(self):
        keys = faiss.vector_to_array(self.index.id_map)
        self.places = dict(zip(keys.tolist(), range(len(keys))))

    def _matrix(self):
        flat = faiss.downcast_index(self.index.index)
        size = flat.ntotal * flat.d
        return faiss.rev_swig_ptr(flat.get_xb(), size).reshape(-1, flat.d) if size else \
            np.empty((0, flat.d), np.float32)

    def __len__(self):
        return self.index.ntotal

    def live(self):
        """How many vectors a search can return."""
        return len(self) - int(np.count_nonzero(np.isnan(self._matrix()[:, 0])))

    def put(self, keys, vectors):
        """keys: <int64>[n], each once; vectors: <float32>[n, dim]"""
        places = np.array([self.places.get(key, -1) for key in keys.tolist()], np.int64)
        old, new = places >= 0, np.flatnonzero(places < 0)
        self._matrix()[places[old]] = vectors[old]
        self.places.update(zip(keys[new].tolist(), range(len(self), len(self) + len(new))))
        if len(new):
            self.index.add_with_ids(np.ascontiguousarray(vectors[new]), keys[new])

    def drop(self, keys):
        places = [self.places[key] for key in keys.tolist() if key in self.places]
        self._matrix()[places] = np.nan

    def compact(self):
        """Gives the places of dropped vectors back."""
        keys = faiss.vector_to_array(self.index.id_map)
        dropped = keys[np.isnan(self._matrix()[:, 0])]
        if len(dropped):
            self.index.remove_ids(dropped)
            self._number()

    def search(self, vectors, k):
        return self.index.search(vectors, min(k, len(self))) if len(self) else \
            (np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64))


class Ivf:
    """Approximate: the vectors lie in lists around centroids and a search looks into the nearest
    few. A hash table tells in which list a key is, so a change costs what its list is long."""

    kind = "ivf"

    def __init__(self, index):
        self.index = index

    @classmethod
    def make(cls, vectors, nlist):
        """Finds nlist centroids for vectors <float32>[n, dim]; holds none of them yet."""
        dim = vectors.shape[1]
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, nlist, faiss.METRIC_INNER_PRODUCT)
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
        index.cp.spherical = True
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = POINTS_PER_LIST
        index.train(vectors)
        return cls(index)

    def __len__(self):
        return self.index.ntotal

    live = __len__

    def put(self, keys, vectors):
        self.drop(keys)
        self.index.add_with_ids(np.ascontiguousarray(vectors), keys)

    def drop(self, keys):
        self.index.remove_ids(faiss.IDSelectorArray(keys))

    def compact(self):
        pass

    def search(self, vectors, k):
        return self.index.search(vectors, k)

    def exact_search(self, vectors, k):
        everywhere = faiss.SearchParametersIVF(nprobe=self.index.nlist)
        return self.index.search(vectors, k, params=everywhere)

    def tune(self, probes):
        """Looks into as many lists as the wanted recall takes."""
        k = min(RECALL_AT, len(self))
        wanted = self.exact_search(probes, k)[1]
        self.index.nprobe = min(8, self.index.nlist)
        while (recall(self.search(probes, k)[1], wanted) < RECALL
               and self.index.nprobe < self.index.nlist):
            self.index.nprobe = min(self.index.nprobe * 3 // 2, self.index.nlist)


def recall(found, wanted):
    """Which part of the wanted was found, <int64>[n, k] both, the mean over the rows."""
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found)]))


def _train(db, dim, probes, ivf_above, nlist, nprobe):
    """The faiss index of all candidates in the database."""
    keys, vectors = _read_vectors(db, dim)
    if len(keys) <= ivf_above:
        flat = Flat.make(dim)
        flat.put(keys, vectors)
        return flat
    ivf = Ivf.make(vectors, min(nlist or int(4 * len(keys) ** 0.5), len(keys)))
    ivf.put(keys, vectors)
    if nprobe:
        ivf.index.nprobe = min(nprobe, ivf.index.nlist)
    else:
        ivf.tune(probes)
    return ivf


def _read_vectors(db, dim):
    """(keys <int64>[n], vectors <float32>[n, dim]) of all candidates, in no more memory than
    that."""
    size, = db.execute(f"SELECT count(*) FROM items WHERE {LIVE}").fetchone()
    keys, vectors = np.empty(size, np.int64), np.empty((size, dim), np.float32)
    rows = db.execute(f"SELECT key, vector FROM items WHERE {LIVE}")
    for start in range(0, size, ROWS_AT_A_TIME):
        some = rows.fetchmany(ROWS_AT_A_TIME)
        keys[start:start + len(some)] = [key for key, _ in some]
        vectors[start:start + len(some)] = _stack([blob for _, blob in some], dim)
    return keys, vectors


def _checksum(path):
    checksum = 0
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _save(db, directory, vectors, change):
    """Writes a new faiss file. The database says which one counts: the old one does until this
    is complete."""
    name = f"vectors-{change}-{secrets.token_hex(4)}.faiss"
    path = os.path.join(directory, name)
    try:
        faiss.write_index(vectors.index, path)
        _sync(path)
        _sync(directory)
    except (OSError, RuntimeError) as error:  # the latter is what faiss raises
        with contextlib.suppress(OSError):
            os.remove(path)
        raise StoreError(f"cannot write {path}: {error}") from error
    snapshot = {"name": name, "change": change, "checksum": _checksum(path)}
    _set(db, "snapshot", json.dumps(snapshot))
    for other in os.listdir(directory):
        if other.endswith(".faiss") and other != name:
            os.remove(os.path.join(directory, other))


def _load(db, directory):
    """(Flat or Ivf, the change it was saved at). Raises StoreError."""
    found = _get(db, "snapshot")
    snapshot = json.loads(found)
    path = os.path.join(directory, snapshot["name"])
    try:
        if _checksum(path) != snapshot["checksum"]:
            raise RuntimeError("its checksum is another one")
        index = faiss.read_index(path)
    except (OSError, RuntimeError) as error:
        if _get(db, "snapshot") != found:  # a writer was faster, with a new one
            return _load(db, directory)
        what = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"{path} is damaged ({what}): retrieve.py reindex makes it anew from "
                         "the items, of which none is lost") from error
    return (Ivf if isinstance(index, faiss.IndexIVFFlat) else Flat)(index), snapshot["change"]


# --- the whole ------------------------------------------------------------------------------------


class Latch:
    """Many readers or one writer, who goes before readers that come after."""

    def __init__(self):
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False

    @contextlib.contextmanager
    def reading(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def writing(self):
        """Whoever comes here holds a lock that keeps other writers out."""
        with self._changed:
            self._writing = True
            self._changed.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


class Store:
    """An open index; every method may be called from any thread.

    dim: columns of the vectors; details: what create was given; directory: of the build's files
    """

    def __init__(self, path, writable=False):
        """Raises StoreError."""
        self.path, self.writable = path, writable
        self._latch = Latch()  # around faiss
        self._changing = threading.Lock()  # held by who brings the faiss index up to date
        self._asking = threading.Lock()  # around the connection that reads
        self._browsing = threading.Lock()  # around the one that looks through texts
        self._connections = []
        self.directory = _current(path)
        self._lock = _lock(path) if writable else None
        try:
            while not self._open():
                pass
        except BaseException:
            self.close()
            raise

    def _open(self):
        """Opens the build that counts. Returns False where another one took its place meanwhile."""
        self.directory = _current(self.path)
        try:
            with self._told():
                self._open_build(os.path.join(self.directory, "items.sqlite"))
        except StoreError:
            if _current(self.path) == self.directory:
                raise
            return False
        return True

    def _open_build(self, file):
        self._reads = _connect(file)
        self._connections.append(self._reads)
        self._reads.execute("PRAGMA query_only = ON")
        self._browses = _connect(file)
        self._connections.append(self._browses)
        self.dim = _get(self._reads, "dim")
        self.details = json.loads(_get(self._reads, "details"))
        self._probes = _stack([_get(self._reads, "probes")], self.dim)
        if self.writable:
            self._writes = _connect(file)
            self._connections.append(self._writes)
            self._writes.execute("PRAGMA synchronous = FULL")
        self._vectors, self.change = _load(self._reads, self.directory)
        self._lag = 0  # rows that changed since the faiss file was written
        self.refresh()

    def _told(self):
        return _told(os.path.join(self.directory, "items.sqlite"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets others write. There is nothing to save, all that was acknowledged is."""
        with self._changing, self._asking, self._browsing:
            for connection in self._connections:
                connection.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    # --- reading

    def refresh(self):
        """Brings the faiss index up to what is in the database."""
        with self._changing:
            self._catch_up()

    def _catch_up(self):
        rows = self._ask(f"SELECT key, CASE WHEN {LIVE} THEN vector END, change FROM items "
                         "WHERE change > ?", self.change)
        if not rows:
            return
        put = [(key, vector) for key, vector, _ in rows if vector is not None]
        keys = np.array([key for key, _ in put], np.int64)
        vectors = _stack([vector for _, vector in put], self.dim)
        drop = np.array([key for key, vector, _ in rows if vector is None], np.int64)
        with self._latch.writing():
            if len(put):
                self._vectors.put(keys, vectors)
            if len(drop):
                self._vectors.drop(drop)
            self.change = max(change for _, _, change in rows)
        self._lag += len(rows)

    def search(self, vectors, k):
        """The k candidates with the largest inner products.

        vectors: <float32>[n, dim]
        returns scores <float32>[n, m], keys <int64>[n, m], best first, m at most k; a key of -1,
        after all others, where there were no more
        """
        if not self.writable and self._newest() != self.change:
            self.refresh()
        with self._latch.reading():
            return self._vectors.search(np.ascontiguousarray(vectors, np.float32), k)

    def _newest(self):
        return self._ask("SELECT max(change) FROM items")[0][0]

    def _ask(self, query, *parameters):
        with self._asking, self._told():
            return self._reads.execute(query, parameters).fetchall()

    def find(self, ids):
        """{id: Known} of those of the ids, strings, that are known, removed ones included."""
        rows = self._ask("SELECT id, key, bag, removed FROM items "
                         "WHERE id IN (SELECT value FROM json_each(?))", json.dumps(ids))
        return {id: Known(key, np.frombuffer(bag, "<i4"), bool(removed))
                for id, key, bag, removed in rows}

    def texts(self, keys):
        """{key: (id, text)} of keys, ints."""
        rows = self._ask("SELECT key, id, text FROM items "
                         "WHERE key IN (SELECT value FROM json_each(?))", json.dumps(keys))
        return {key: (id, text) for key, id, text in rows}

    def bags(self, keys):
        """{key: bag <int32>[n]} of keys, ints."""
        rows = self._ask("SELECT key, bag FROM items WHERE key IN (SELECT value FROM json_each(?))",
                         json.dumps(keys))
        return {key: np.frombuffer(bag, "<i4") for key, bag in rows}

    def vector(self, key):
        """<float32>[dim] of a candidate, None for what is none."""
        rows = self._ask(f"SELECT vector FROM items WHERE key = ? AND {LIVE}", key)
        return np.frombuffer(rows[0][0], "<f4") if rows else None

    def removed(self):
        """The keys of the items that were removed, a set."""
        return {key for key, in self._ask("SELECT key FROM items WHERE removed = 1")}

    def candidates(self):
        """Yields lists of (id, text, vector <float32>[dim]), all candidates in the order of their
        keys, as they are when each list is read."""
        key = 0
        while True:
            rows = self._ask(f"SELECT key, id, text, vector FROM items WHERE key > ? AND {LIVE} "
                             "ORDER BY key LIMIT ?", key, ROWS_AT_A_TIME)
            if not rows:
                return
            yield [(id, text, np.frombuffer(blob, "<f4")) for _, id, text, blob in rows]
            key = rows[-1][0]

    def browse(self, words, limit, seconds=0.1):
        """Candidates whose text or id holds each of some words, those changed last first.

        words: strings; of ASCII letters either case will do; none: all candidates
        limit: how many at most
        seconds: after which it returns what it has found so far
        returns a list of (id, text), and whether the time sufficed
        """
        patterns = ["%" + re.sub(r"([\\%_])", r"\\\1", word) + "%" for word in words]
        holds = "".join(" AND (text LIKE ? ESCAPE '\\' OR id LIKE ? ESCAPE '\\')" for _ in words)
        query = (f"SELECT id, text FROM items WHERE {LIVE}{holds} "
                 "ORDER BY change DESC, key DESC LIMIT ?")
        parameters = [pattern for pattern in patterns for _ in range(2)] + [limit]
        found = []
        # A connection of its own: it reads through the table, queries do not wait for that.
        with self._browsing, self._told():
            end = time.monotonic() + seconds
            self._browses.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            try:
                for row in self._browses.execute(query, parameters):
                    found.append(row)
            except sqlite3.OperationalError as error:
                if "interrupted" not in str(error):
                    raise
                return found, False
        return found, True

    def size(self):
        """(items, candidates), without reading through the table as counts does."""
        items, = self._ask("SELECT ifnull(max(key), 0) FROM items")[0]  # none is ever deleted
        with self._latch.reading():
            return items, self._vectors.live()

    def counts(self):
        """{"items": all that are known, "candidates", "removed", "without_vector"}."""
        items, candidates, removed = self._ask(
            f"SELECT count(*), sum({LIVE}), sum(removed) FROM items")[0]
        return {"items": items, "candidates": candidates, "removed": removed,
                "without_vector": items - candidates - removed}

    def search_settings(self):
        """{"kind": "flat"} or {"kind": "ivf", "nlist", "nprobe", "recall@20"}, the last of which
        is measured now, against the exact search."""
        if isinstance(self._vectors, Flat):
            return {"kind": "flat"}
        index = self._vectors.index
        return {"kind": "ivf", "nlist": index.nlist, "nprobe": index.nprobe,
                f"recall@{RECALL_AT}": round(self._recall(), 4)}

    def _recall(self):
        k = min(RECALL_AT, len(self._vectors))
        recalls = []
        for probe in self._probes:  # one by one: who writes does not wait for all of them
            with self._latch.reading():
                wanted = self._vectors.exact_search(probe[None], k)[1]
                recalls.append(recall(self._vectors.search(probe[None], k)[1], wanted))
        return float(np.mean(recalls))

    # --- writing

    def put(self, rows):
        """Adds items, or replaces those of the same id; the last one of an id counts. All of them
        are on the disk when it returns. rows: a list of Row"""
        with self._transaction() as change:
            _put(self._writes, rows, change)

    def remove(self, ids, without_vector=False):
        """Takes items off the candidates; they stay known. ids: a list of strings. Returns those
        that were no candidates or not known at all, in order. without_vector: items without one are
        candidates too"""
        with self._transaction() as change:
            query = "UPDATE items SET removed = 1, change = ? WHERE id = ? AND removed = 0"
            query += "" if without_vector else " AND vector IS NOT NULL"
            return [id for id in ids if not self._writes.execute(query, (change, id)).rowcount]

    @contextlib.contextmanager
    def _transaction(self):
        """Gives the number of the change. After the block the change is on the disk, then in the
        faiss index."""
        if not self.writable:
            raise StoreError(f"{self.path} was opened for reading only")
        with self._changing, self._told():
            self._writes.execute("BEGIN IMMEDIATE")
            try:
                yield self.change + 1
                self._writes.execute("COMMIT")
            except BaseException:
                if self._writes.in_transaction:
                    self._writes.execute("ROLLBACK")
                raise
            self._catch_up()
            if self._lag > max(SAVE_AFTER, len(self._vectors) // 20):
                self._save()

    def _save(self):
        with self._latch.writing():
            self._vectors.compact()
        try:
            _save(self._writes, self.directory, self._vectors, self.change)
        except (StoreError, OSError, sqlite3.Error) as error:  # the change itself is safe
            logger.warning("%s; opening the index will take longer", error)
        self._lag = 0


def reindex(path, ivf_above=100_000, nlist=None, nprobe=None):
    """Makes the faiss file anew from the items: where it is damaged, or for another kind of it.

    ivf_above: exact search up to so many candidates, approximate search above
    nlist: lists of the approximate one, 4 times the square root of the candidates when not given
    nprobe: how many of them a search looks into; what a recall of 0.985 takes when not given
    Raises StoreError.
    """
    _current(path)  # complains where there is none
    lock = _lock(path)
    try:
        directory = _current(path)
        file = os.path.join(directory, "items.sqlite")
        with _told(file), contextlib.closing(_connect(file)) as db:
            dim = _get(db, "dim")
            vectors = _train(db, dim, _stack([_get(db, "probes")], dim), ivf_above, nlist, nprobe)
            _save(db, directory, vectors,
                  db.execute("SELECT max(change) FROM items").fetchone()[0])
    finally:
        os.close(lock)

"""Items with their vectors on the disk, and the search among them. It knows no model.

What counts is the database of the items (items.py): a change is acknowledged once its transaction
is on the disk, so a crash at any moment leaves all of it or nothing. The faiss index that is
searched is made from it (vectors.py). A file holds it as it was at some change; what came later is
read from the database on opening, and the same way, change by change, while it is open. So there is
one road by which a vector gets into the index, whoever wrote it and whenever.

    INDEX/build-XXXX/    items.sqlite, vectors-CHANGE-XXXX.faiss and what the caller keeps with them

One process writes, any number reads beside it; within a process any number of threads.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sqlite3
import threading

import numpy as np

from ssr.errors import StoreError
from ssr.retrieval.bag import NOTHING
from ssr.retrieval.builds import adopt, current_build, lock
from ssr.retrieval.filters import Attributes
from ssr.retrieval.items import Items, create_items, set_meta
from ssr.retrieval.rows import Row
from ssr.retrieval.vectors import (
    DEFAULT_SEARCH,
    RECALL_AT,
    Flat,
    SearchSettings,
    make_vectors,
    read_vectors,
    recall,
    write_vectors,
)

logger = logging.getLogger(__name__)

SAVE_AFTER = 1000  # changed rows, or a twentieth of all if that is more: opening stays quick


class Latch:
    """Many readers or one writer. A writer that waits goes before readers that come later."""

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
        """The caller holds a lock that keeps other writers out."""
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

    As engines.Store; items is an items.Items, change what a search knows of.
    """

    is_remote = False

    def __init__(self, path, writable=False, directory=None):
        """directory: of a build that does not count yet, beside another Store that is open for
        writing; None for the one that counts. Raises StoreError."""
        self.path, self.writable = path, writable
        self.is_alone = writable  # one process at a time writes
        self._latch = Latch()  # around faiss
        self._changing = threading.Lock()  # held by who brings the faiss index up to date
        self.items = self._attributes = None
        self.directory = directory or current_build(path)
        self._lock = lock(path) if writable and not directory else None
        try:
            while not self._open(directory or current_build(path)):
                pass
        except BaseException:
            self.close()
            raise

    def _open(self, directory):
        """Opens a build. Returns False where another one counts by now."""
        self.directory = directory
        try:
            self.items = Items(os.path.join(directory, "items.sqlite"), self.writable)
            self._vectors, self.change = _load(self.items, directory)
            self._attributes = Attributes(self.items)
            self._unsaved = 0  # rows that changed since the faiss file was written
            self._version = None  # of the database, as the faiss index has it
            self.refresh()
        except (StoreError, OSError):
            if self.writable or not self.is_replaced():
                raise
            if self.items:
                self.items.close()
            return False
        return True

    @property
    def dim(self):
        return self.items.dim

    @property
    def details(self):
        return self.items.details

    def is_replaced(self):
        """Whether another build has taken the place of the one that is open."""
        return current_build(self.path) != self.directory

    def succeed(self, other):
        """The build that is open counts from here on, and not that of another Store, which has the
        lock until then. Raises StoreError; then nothing has changed."""
        adopt(self.path, self.directory)
        self._lock, other._lock = other._lock, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets others write. There is nothing to save, all that was acknowledged is."""
        with self._changing:
            if self.items:
                self.items.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    # --- reading

    def refresh(self):
        """Brings the faiss index up to what is in the database."""
        if self.items.version() != self._version:
            with self._changing:
                self._catch_up()

    def _catch_up(self):
        version = self.items.version()
        changed = self.items.changed_since(self.change)
        if changed:
            self._take_over(changed)
        self._version = version

    def _take_over(self, changed):
        """Into the faiss index. changed: a list of StoredItem"""
        put = [item for item in changed if item.is_candidate]
        drop = np.array([item.key for item in changed if not item.is_candidate], np.int64)
        with self._latch.writing():
            if put:
                self._vectors.put(np.array([item.key for item in put], np.int64),
                                  np.stack([item.vector for item in put]))
            if len(drop):
                self._vectors.drop(drop)
            self.change = max(item.change for item in changed)
        self._unsaved += len(changed)

    def search(self, vectors, k, among=None):
        """As of engines.Store."""
        if not self.is_alone:
            self.refresh()
        with self._latch.reading():
            return self._vectors.search(np.ascontiguousarray(vectors, np.float32), k,
                                        among and among.mask)

    def select(self, conditions):
        """As of engines.Store."""
        return self._attributes.select(conditions)

    def fields(self, keys):
        """As of engines.Store."""
        return self._attributes.fields(keys)

    def candidates(self, keys, among=None):
        """As of engines.Store."""
        keys = keys if among is None else keys[among(keys)]
        return keys[~np.isnan(self.searched_vectors(keys)[:, 0])]

    def removed(self):
        """As of engines.Store."""
        return self.items.removed()

    def model_keys(self, count):
        """As of engines.Store: a build writes them first, in order."""
        return np.arange(1, count + 1)

    def register(self, ids, added):
        """As of engines.Store. Ids that were not known are from here on, as items without text and
        vector, if the store is writable; else they are left out."""
        known = self.items.find(ids)
        if self.writable and len(known) < len(ids):
            self.put([Row(id, "", NOTHING, None, added=added) for id in ids if id not in known])
            known = self.items.find(ids)
        return {id: item.key for id, item in known.items()}

    def searched_vectors(self, keys):
        """What a search compares with: <float32>[n, dim] of keys <int64>[n], not-a-number for those
        that are no candidates."""
        with self._latch.reading():
            return self._vectors.vectors(keys)

    def size(self):
        """(items, candidates), without reading through the table as Items.counts does."""
        items = self.items.count()
        with self._latch.reading():
            return items, self._vectors.searchable()

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
        for query in self.items.queries:  # one by one: a writer waits for one of them at most
            with self._latch.reading():
                wanted = self._vectors.exact_search(query[None], k)[1]
                recalls.append(recall(self._vectors.search(query[None], k)[1], wanted))
        return float(np.mean(recalls))

    # --- writing

    def put(self, rows):
        """Adds items, or replaces those of the same id; the last one of an id counts. All of them
        are on the disk when it returns. rows: a list of Row"""
        with self._transaction() as change:
            self.items.put(rows, change)

    def remove(self, ids):
        """Takes items off the candidates; they stay known. ids: a list of strings. Returns those
        that were not known or removed before, in order."""
        with self._transaction() as change:
            return [id for id in ids if not self.items.remove(id, change)]

    @contextlib.contextmanager
    def _transaction(self):
        """Gives the number of the change. After the block the change is on the disk, then in the
        faiss index."""
        if not self.writable:
            raise StoreError(f"{self.path} was opened for reading only")
        with self._changing:
            with self.items.transaction():
                yield self.change + 1
            self._catch_up()
            if self._unsaved > max(SAVE_AFTER, len(self._vectors) // 20):
                self._save()

    def _save(self):
        with self._latch.writing():
            self._vectors.compact()
        try:
            _save(self.items.db, self.directory, self._vectors, self.change)
        except (StoreError, OSError, sqlite3.Error) as error:  # the change itself is safe
            logger.warning("%s; opening the index will take longer", error)
        self._unsaved = 0


# --- making and remaking --------------------------------------------------------------------------


def create(directory, dim, rows, details, queries, settings=DEFAULT_SEARCH):
    """Writes the database and the faiss file of a new index.

    directory: empty, as of builds.new_build
    rows: an iterable of Row
    details: a dict for JSON, what the caller wants to find again
    queries: <float32>[n, dim], of the kind that will come, to measure the recall with
    settings: SearchSettings
    Raises StoreError where no item has a vector.
    """
    file = os.path.join(directory, "items.sqlite")
    create_items(file, dim, rows, details, queries)
    with contextlib.closing(Items(file, writable=True)) as items:
        if not _make_snapshot(items, directory, settings):
            raise StoreError("no item has a vector, there is nothing to search")
        items.db.execute("PRAGMA journal_mode = WAL")  # readers beside a writer, from here on


def reindex(path, settings=DEFAULT_SEARCH):
    """Makes the faiss file anew from the items: where it is damaged, or for another kind of search.
    Without settings.ivf_above the kind stays what it is, and so do the lists unless they are given.
    Raises StoreError."""
    current_build(path)  # complains where there is none
    descriptor = lock(path)
    try:
        directory = current_build(path)
        with contextlib.closing(Items(os.path.join(directory, "items.sqlite"), True)) as items:
            _make_snapshot(items, directory, _with_former(settings, items, directory))
    finally:
        os.close(descriptor)


def _make_snapshot(items, directory, settings):
    """Returns the number of candidates."""
    vectors = make_vectors(*items.vectors(), items.queries, settings)
    with items.errors():
        nlist = getattr(vectors.index, "nlist", None)
        set_meta(items.db, "search", json.dumps({"kind": vectors.kind, "nlist": nlist,
                                                 "nprobe": settings.nprobe}))
        _save(items.db, directory, vectors, items.newest_change())
    return len(vectors)


def _with_former(settings, items, directory):
    """The settings that keep the kind of an index, where they do not say which."""
    if settings.ivf_above is not None:
        return settings
    former = _former_search(items, directory)
    if former["kind"] == "flat":
        if settings.nlist or settings.nprobe:
            logger.warning("--nlist and --nprobe are for the approximate search, which this index "
                           "does not use: see --ivf_above")
        return settings._replace(ivf_above=math.inf)
    if settings.nlist:
        return settings._replace(ivf_above=0)
    return SearchSettings(0, former["nlist"], settings.nprobe or former["nprobe"])


def _former_search(items, directory):
    """{"kind", "nlist", "nprobe"} as of the last create or reindex."""
    former = items.get_meta("search")
    if former is not None:
        return json.loads(former)
    try:  # an index of a version that did not keep it
        index = _load(items, directory)[0].index
    except StoreError:
        return {"kind": "flat"}
    nlist = getattr(index, "nlist", None)
    return {"kind": "ivf" if nlist else "flat", "nlist": nlist, "nprobe": None}


def _save(db, directory, vectors, change):
    """Writes a new faiss file. The database says which one counts: the old one does until this
    is complete."""
    snapshot = write_vectors(vectors, directory, change)
    set_meta(db, "snapshot", json.dumps(snapshot))
    for name in os.listdir(directory):
        if name.endswith(".faiss") and name != snapshot["name"]:
            os.remove(os.path.join(directory, name))


def _load(items, directory):
    """(Flat or Ivf, the change it was saved at). Raises StoreError."""
    text = items.get_meta("snapshot")
    file = items.file
    try:
        snapshot = json.loads(text)
        file = os.path.join(directory, snapshot["name"])
        return read_vectors(directory, snapshot), int(snapshot["change"])
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        if items.get_meta("snapshot") != text:  # a writer was faster, with a new one
            return _load(items, directory)
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"{file} is damaged ({reason}): retrieve.py reindex makes it anew from "
                         "the items, of which none is lost") from error

"""Where the items and vectors of an index are: in its own directory (store.py: SQLite and faiss) or
in a Milvus that several servers share (milvus.py). What an Index needs of either is a Store.

Which one it is, is decided when an index is built; its directory says so from there on:

    INDEX/build-XXXX/engine.json    {"engine": "milvus", "uri", "collection", ...}; not there: faiss
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import NamedTuple, Protocol

from ssr.errors import DataError, StoreError
from ssr.retrieval import store
from ssr.retrieval.builds import REMEDY, current_build

FILE = "engine.json"
NAMES = {"engine", "uri", "collection", "before", "dim", "details", "search", "change"}


class Store(Protocol):
    """The items and vectors of an index; any thread may call it. Whatever it does may raise
    StoreError.

    path: of the index; directory: of the build that is open, for the caller's files in it
    writable: whether it takes changes; is_alone: whether nobody else makes any while it is open
    is_remote: whether its answers come from another process
    dim: columns of the vectors; details: a dict, what the build was given
    change: the number of the last change that it knows of
    items: what is read of single items: find, texts, bags, vector, scan, counts and browse of
        items.Items
    """

    path: str
    directory: str
    writable: bool
    is_alone: bool
    is_remote: bool
    dim: int
    details: dict
    change: int
    items: object

    def search(self, vectors, k, among=None):
        """The k candidates with the largest inner products.

        vectors: <float32>[n, dim]; among: which of them may be returned, as select gives it
        returns scores <float32>[n, m], keys <int64>[n, m], best first, m at most k; a key of -1,
        after all others, where there were no more
        """

    def select(self, conditions):
        """The items of which filters.Conditions hold, for `among` of the other methods. Called with
        keys <int64>[n], it tells which of them are among these, <bool>[n]."""

    def candidates(self, keys, among=None):
        """Those of keys <int64>[n] that are candidates, in their order."""

    def fields(self, keys):
        """{key: tokens} of those of the keys that have any fields."""

    def removed(self):
        """The keys of the items that were removed, a set."""

    def model_keys(self, count):
        """The keys of the first items of the model, in its order: <int64>[count]"""

    def register(self, ids, added):
        """{id: key} of ids, also of items that nobody has added, where it can give them keys.
        added: seconds since 1970"""

    def put(self, rows):
        """Adds items, or replaces those of the same id; the last one of an id counts. They are
        safe when it returns. rows: a list of rows.Row"""

    def remove(self, ids):
        """Takes items off the candidates; they stay known. Returns those of the ids that were not
        known or removed before, in order."""

    def size(self):
        """(items that are known, candidates), quickly."""

    def search_settings(self):
        """How it searches, a dict to be shown."""

    def refresh(self):
        """Sees what others have changed."""

    def is_replaced(self):
        """Whether another build has taken the place of the one that is open."""

    def close(self):
        """Lets others write. There is nothing to save, all that was acknowledged is."""


class Milvus(NamedTuple):
    """A Milvus to build in. uri: http://HOST:PORT of a server, or a path that ends in .db, for
    Milvus Lite; prefix: what the names of its collections begin with"""

    uri: str
    prefix: str = "ssr"


def open_store(path, writable=False):
    """The Store of the index in a directory. Raises StoreError, SetupError."""
    if read_engine(current_build(path)) is None:
        return store.Store(path, writable)
    from ssr.retrieval.milvus import MilvusStore  # who has no such index needs no pymilvus

    return MilvusStore(path, writable)


@contextlib.contextmanager
def building(path, engine=None):
    """A context around builds.new_build that gives what fills a build: store.create, or what does
    the same elsewhere. Where the block fails nothing of it is left.

    path: of the index; engine: Milvus, None for the directory itself
    """
    if engine is None:
        yield store.create
        return
    from ssr.retrieval.milvus_build import building_in

    with building_in(path, engine) as create:
        yield create


def reindex(path, settings):
    """As store.reindex. Raises DataError for an index whose search is not of its own."""
    if read_engine(current_build(path)):
        raise DataError(f"the search of {path} is Milvus's own: another kind comes with the next "
                        "retrieve.py build --overwrite")
    store.reindex(path, settings)


def read_engine(directory):
    """What engine.json says in the directory of a build, a dict with NAMES; None where there is
    none. Raises StoreError."""
    file = os.path.join(directory, FILE)
    try:
        with open(file, encoding="utf-8") as f:
            engine = json.load(f)
        if NAMES - set(engine) or engine["engine"] != "milvus":
            raise ValueError("it names no engine that is known here")
        return engine
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} is damaged ({error}): {REMEDY}") from error


def write_engine(directory, engine):
    """Writes engine.json. engine: a dict with NAMES"""
    with open(os.path.join(directory, FILE), "w", encoding="utf-8") as f:
        json.dump(engine, f, indent=1, ensure_ascii=False)

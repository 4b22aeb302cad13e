"""Builds of an index in Milvus: a collection for each, and when it goes."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time

import numpy as np

from ssr.errors import DataError, StoreError
from ssr.retrieval.builds import current_build
from ssr.retrieval.engines import read_engine, write_engine
from ssr.retrieval.milvus import MilvusStore
from ssr.retrieval.milvus_items import (
    MilvusItems,
    connect,
    is_address,
    is_lite,
    key_of,
    make_schema,
    milvus_errors,
)
from ssr.retrieval.vectors import IVF_ABOVE

logger = logging.getLogger(__name__)

LITE_SEGMENT = 100_000  # candidates; it makes lists anew for each part of some such size


@contextlib.contextmanager
def building_in(path, engine):
    """A context that gives what fills a build, as store.create. Where the block fails its
    collection is removed; where it does not, those that no build needs any more.

    path: of the index; engine: engines.Milvus
    """
    uri = engine.uri if is_address(engine.uri) else os.path.abspath(engine.uri)
    builder = _Builder(path, uri, engine.prefix)
    try:
        yield builder.create
    except BaseException:
        builder.drop(builder.made)
        raise
    builder.drop(builder.superfluous)


class _Builder:
    """made, superfluous: names of collections, that it has made and that go when it is done"""

    def __init__(self, path, uri, prefix):
        self.path, self.uri, self.prefix = path, uri, prefix
        self.made, self.superfluous = [], []
        self._client = connect(uri)
        with milvus_errors(uri):
            self._is_lite = is_lite(self._client)

    def create(self, directory, dim, rows, details, queries, settings):
        """As store.create."""
        rows = list(rows)
        keys = np.array([key_of(row.id) for row in rows], np.int64)
        count = sum(row.vector is not None for row in rows)
        if not count:
            raise StoreError("no item has a vector, there is nothing to search")
        if len(np.unique(keys)) < len(keys):
            raise DataError("two of the ids have the same key in Milvus: change one of them")
        before, self.superfluous = self._former_collections(directory)
        collection = f"{self.prefix}_{details['digest'][:12]}_{secrets.token_hex(4)}"
        engine = {"engine": "milvus", "uri": self.uri, "collection": collection, "before": before,
                  "dim": dim, "details": details, "search": self._search_kind(count, settings),
                  "change": int(time.time() * 1e6)}
        write_engine(directory, engine)
        np.save(os.path.join(directory, "model_keys.npy"), keys)
        np.save(os.path.join(directory, "queries.npy"), np.asarray(queries, np.float32))
        self.made.append(collection)
        self._fill(engine, rows)
        with MilvusStore(self.path, directory=directory) as store:
            engine["search"] = store.tune(settings.nprobe)
        write_engine(directory, engine)

    def _search_kind(self, count, settings):
        """How so many candidates are searched, as engine.json keeps it. settings: SearchSettings"""
        if count <= (IVF_ABOVE if settings.ivf_above is None else settings.ivf_above):
            return {"kind": "flat"}
        alike = min(count, LITE_SEGMENT) if self._is_lite else count
        return {"kind": "ivf", "nlist": min(settings.nlist or int(4 * alike ** 0.5), count),
                "nprobe": None}

    def _fill(self, engine, rows):
        collection, search = engine["collection"], engine["search"]
        with milvus_errors(self.uri):
            self._client.create_collection(
                collection, schema=make_schema(self._client, engine["dim"], self._is_lite),
                consistency_level="Session")
        MilvusItems(self._client, self.uri, collection).write(rows, engine["dim"],
                                                              engine["change"], is_new=True)
        params = self._client.prepare_index_params()
        if search["kind"] == "flat":
            params.add_index("vector", index_type="FLAT", metric_type="IP")
        else:  # said twice: Milvus Lite 3.2 looks where pymilvus before 3 has put it
            nlist = {"nlist": search["nlist"]}
            params.add_index("vector", index_type="IVF_FLAT", metric_type="IP",
                             params={**nlist, "params": nlist})
        with milvus_errors(self.uri):
            self._client.flush(collection)
            self._client.create_index(collection, params)
        for name in ("fields", "change"):
            self._index_column(collection, name)
        with milvus_errors(self.uri):
            self._client.load_collection(collection)

    def _index_column(self, collection, name):
        """Makes filters by a column quick, where that kind of Milvus can: Milvus Lite reads through
        arrays."""
        params = self._client.prepare_index_params()
        params.add_index(name, index_type="INVERTED")
        with contextlib.suppress(StoreError), milvus_errors(self.uri):
            self._client.create_index(collection, params, sync=False)

    def _former_collections(self, directory):
        """(that of the build that counts now or None, those that no build needs once another one
        counts), as far as they are in this Milvus."""
        current, before, superfluous = None, None, []
        with contextlib.suppress(StoreError):
            current = os.path.basename(current_build(self.path))
        for name in os.listdir(self.path):
            engine = None
            if name != os.path.basename(directory) and name.startswith("build-"):
                with contextlib.suppress(StoreError):
                    engine = read_engine(os.path.join(self.path, name))
            if engine is None or engine["uri"] != self.uri:
                continue
            if name == current:
                before = engine["collection"]
                superfluous += filter(None, [engine["before"]])
            else:  # of a build that was killed
                superfluous.append(engine["collection"])
        return before, superfluous

    def drop(self, collections):
        """Removes collections; where that fails it says so."""
        for collection in collections:
            try:
                with milvus_errors(self.uri):
                    if self._client.has_collection(collection):
                        self._client.drop_collection(collection)
            except StoreError as error:
                logger.warning("%s; the collection %s is not needed any more", error, collection)

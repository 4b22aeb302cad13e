"""An index whose items and vectors are in a collection of Milvus, which several servers share.

    INDEX/build-XXXX/    engine.json: where they are; model_keys.npy, queries.npy; and what the
                         caller keeps with them: the model, which each server has on its own disk

Each build has a collection of its own, and its directory says which: so vectors and the model that
made them change together, in whichever server opens the new directory. The collection of the build
before it stays until the next build, for the servers that still have that one open.

What a server has changed it sees at its next query, what others have changed as soon as Milvus
tells (consistency level Session). Nobody holds a lock: two changes of one item at the same time
leave one of them. See engines.py for what an Index needs of this, milvus_items.py for the columns.
"""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from ssr.errors import StoreError
from ssr.retrieval.builds import REMEDY, current_build
from ssr.retrieval.engines import read_engine
from ssr.retrieval.milvus_items import (
    BUILD_TIMEOUT,
    CANDIDATE,
    LIMIT,
    REMOVED,
    TIMEOUT,
    MilvusItems,
    both,
    connect,
    expression_of,
    key_of,
)
from ssr.retrieval.vectors import RECALL, RECALL_AT, WIDER, recall

LOOK_EVERY = 0.5  # seconds, for the changes of others
OVERLAP = 10_000_000  # microseconds that the clocks of servers may differ
IS_CANDIDATE = f"state == {CANDIDATE}"


class Among:
    """The items that conditions let through: called with keys <int64>[n], it tells which of them
    are among these, <bool>[n].

    expression: what Milvus filters by
    is_list: whether they are out of a list that the caller gave
    """

    def __init__(self, items, conditions):
        """items: MilvusItems"""
        self._items, self._conditions = items, conditions
        self.expression = expression_of(conditions, items.has_terms)
        self.is_list = conditions.candidates is not None

    def __call__(self, keys):
        keys = keys.tolist()
        passing = set(self._items.of_keys(keys, expression=self.expression))
        unknown = [key for key in keys if key not in passing and key in self._items.names]
        if unknown and self._may_be_bare():
            unknown = set(unknown) - set(self._items.of_keys(unknown))
            passing.update(key for key in unknown if self._is_let_through(self._items.names[key]))
        return np.array([key in passing for key in keys], bool)

    def _may_be_bare(self):
        return not self._conditions.any_of

    def _is_let_through(self, id):
        """Whether an item is of which nothing but the id is known."""
        candidates = self._conditions.candidates
        return id not in self._conditions.exclude and (candidates is None or id in candidates)


class MilvusStore:
    """As engines.Store."""

    is_alone, is_remote = False, True

    def __init__(self, path, writable=False, directory=None):
        """directory: of a build that does not count yet, None for the one that does. Raises
        StoreError, SetupError."""
        self.path, self.writable = path, writable
        self.directory = directory or current_build(path)
        where = read_engine(self.directory)
        self.uri, self.dim, self.details = where["uri"], where["dim"], where["details"]
        self._search_kind = where["search"]
        self._client = connect(self.uri)
        self.items = MilvusItems(self._client, self.uri, where["collection"])
        self._looking, self._looked = threading.Lock(), -np.inf
        self._removed = None  # keys; read when they are first asked for
        self.change = self._built = where["change"]
        self._open()

    def _open(self):
        collection = self.items.collection
        with self.items.errors():
            if not self._client.has_collection(collection, timeout=TIMEOUT):
                raise StoreError(f"Milvus at {self.uri} has no collection {collection}, which "
                                 f"holds the items of {self.path}: two builds later it is removed; "
                                 "take the directory of the last build, or build anew")
            dim = self.items.columns.get("vector", {}).get("dim")
            if int(dim or 0) != self.dim or self.details["digest"][:12] not in collection:
                raise StoreError(f"the collection {collection} of Milvus at {self.uri} does not "
                                 f"hold what the model of {self.path} has made: {REMEDY}")
            self._client.load_collection(collection)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """As of engines.Store."""
        with self.items.errors():
            self._client.close()

    def is_replaced(self):
        """As of engines.Store."""
        return current_build(self.path) != self.directory

    # --- reading

    def refresh(self):
        """Sees which items others have removed; twice a second at most."""
        with self._looking:
            if self._removed is None or time.monotonic() - self._looked < LOOK_EVERY:
                return
            self._look(max(self.change - OVERLAP, self._built))

    def _look(self, since):
        self._looked = time.monotonic()
        for rows in self.items.states_since(since):
            for row in rows:
                note = self._removed.add if row["state"] == REMOVED else self._removed.discard
                note(row["key"])
                self.change = max(self.change, row["change"])

    def removed(self):
        """As of engines.Store."""
        with self._looking:
            if self._removed is None:
                self._removed = set()
                self._look(self._built)
            return set(self._removed)

    def search(self, vectors, k, among=None):
        """As of engines.Store; k is 16384 at most."""
        k = min(k, LIMIT)
        expression = both(IS_CANDIDATE, among and among.expression)
        nlist, nprobe = (self._search_kind.get(name) for name in ("nlist", "nprobe"))
        if nlist and among:
            # The few of a list are anywhere, and Milvus scores no others: it looks everywhere.
            nprobe = nlist if among.is_list else min(nlist, WIDER * nprobe)
        rows = self._search(vectors, k, expression, nprobe)
        is_part = nlist and nprobe < nlist
        short = [place for place, row in enumerate(rows) if is_part and len(row) < k]
        if short:  # the lists that were looked into hold fewer: into all of them
            for place, row in zip(short, self._search(vectors[short], k, expression, nlist)):
                rows[place] = row
        width = max(map(len, rows))
        scores = np.full((len(rows), width), -np.inf, np.float32)
        keys = np.full((len(rows), width), -1, np.int64)
        for place, row in enumerate(rows):
            scores[place, :len(row)] = [hit["distance"] for hit in row]
            keys[place, :len(row)] = [hit["key"] for hit in row]
        return scores, keys

    def _search(self, vectors, k, expression, nprobe, timeout=None):
        """timeout: in seconds, None for that of a query"""
        with self.items.errors():
            return list(self._client.search(
                self.items.collection, anns_field="vector", limit=k, filter=expression,
                data=np.ascontiguousarray(vectors, np.float32), output_fields=["key"],
                timeout=timeout or self.items.timeout,
                search_params={"params": {"nprobe": nprobe} if nprobe else {}}))

    def select(self, conditions):
        """As of engines.Store."""
        return Among(self.items, conditions)

    def fields(self, keys):
        """As of engines.Store."""
        return self.items.fields(keys)

    def candidates(self, keys, among=None):
        """As of engines.Store."""
        expression = both(IS_CANDIDATE, among and among.expression)
        there = self.items.of_keys(keys.tolist(), expression=expression)
        return keys[np.array([key in there for key in keys.tolist()], bool)]

    def model_keys(self, count):
        """As of engines.Store."""
        return load_array(self.directory, "model_keys.npy")[:count]

    def size(self):
        """As of engines.Store."""
        return self.items.count_of(""), self.items.count_of(IS_CANDIDATE)

    def search_settings(self):
        """{"kind": "milvus-flat"} or {"kind": "milvus-ivf", "nlist", "nprobe", "recall@20"}, the
        last of which is measured now."""
        if self._search_kind["kind"] == "flat":
            return {"kind": "milvus-flat"}
        return {**self._search_kind, "kind": "milvus-ivf",
                f"recall@{RECALL_AT}": round(self._recall(self._search_kind["nprobe"]), 4)}

    def _recall(self, nprobe):
        queries = load_array(self.directory, "queries.npy")
        found, wanted = ([[hit["key"] for hit in row] for row in self._search(
            queries, RECALL_AT, IS_CANDIDATE, probed, BUILD_TIMEOUT)]
            for probed in (nprobe, self._search_kind["nlist"]))
        return recall(found, wanted)

    def tune(self, nprobe=None):
        """Looks into nprobe lists, or into as many as a recall of RECALL takes. Returns the kind of
        the search, as engine.json keeps it."""
        if self._search_kind["kind"] != "flat":
            nlist = self._search_kind["nlist"]
            tried = min(nprobe or 8, nlist)
            while not nprobe and tried < nlist and self._recall(tried) < RECALL:
                tried = min(tried * 3 // 2, nlist)
            self._search_kind["nprobe"] = tried
        return self._search_kind

    # --- writing

    def put(self, rows):
        """As of engines.Store. Up to ROWS_AT_A_TIME rows are written as a whole."""
        self._check_writable()
        rows = list({row.id: row for row in rows}.values())
        change = self._next_change()
        self.items.write(rows, self.dim, change)
        self._note_own(change, [key_of(row.id) for row in rows], False)

    def remove(self, ids):
        """As of engines.Store."""
        self._check_writable()
        known = self.items.find(ids)
        there = {known[id].key: None for id in ids if id in known and not known[id].removed}
        change, keys = self._next_change(), list(there)
        self.items.withdraw(keys, change)
        self._note_own(change, keys, True)
        return [id for number, id in enumerate(ids)
                if key_of(id) not in there or id in ids[:number]]

    def register(self, ids, added):
        """As of engines.Store. The collection is not written: another server may be adding the
        article just then."""
        keys = {id: key_of(id) for id in ids}
        self.items.names.update((key, id) for id, key in keys.items())
        return keys

    def _check_writable(self):
        if not self.writable:
            raise StoreError(f"{self.path} was opened for reading only")

    def _next_change(self):
        return max(self.change + 1, int(time.time() * 1e6))

    def _note_own(self, change, keys, are_removed):
        with self._looking:
            self.change = max(self.change, change)
            if self._removed is not None:
                (self._removed.update if are_removed else self._removed.difference_update)(keys)


def load_array(directory, name):
    """An array that a build has beside its collection. Raises StoreError."""
    try:
        return np.load(os.path.join(directory, name))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {os.path.join(directory, name)} ({error}): {REMEDY}"
                         ) from error

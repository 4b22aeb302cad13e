"""A new build takes the place of the one that a process has open and writes, without a pause.

    successor = Successor(index, next_build(path))      # beside it, as long as it takes
    index = successor.take_over()                       # while nobody changes `index`: a moment

The builder has made vectors of its items (building.py, builds.py). What has changed in the index
since its own build was made is brought over: items that were added, replaced or removed, encoded by
the new model, and the clicks, whose sessions it encodes as well. Both indexes are in memory until
then.
INDEX/current names the former build until the new one holds all that was acknowledged, so a process
that is killed at any moment loses nothing.
"""

from __future__ import annotations

import contextlib

import numpy as np

from ssr.errors import StoreError
from ssr.retrieval.engines import read_engine
from ssr.retrieval.index import Index
from ssr.retrieval.store import Store

CHECKED = 100  # items whose vectors are compared with what the model makes of them
TOLERANCE = 1e-3
FIRST_CHANGE = 1  # that of the build itself


class Successor:
    """An index that is to take the place of another one."""

    def __init__(self, former, directory):
        """Opens it, checks it and brings over what there is by now; queries and changes of the
        former index go on meanwhile.

        former: an Index, open for writing; directory: of the build that waits (builds.next_build)
        Raises UserError where the build cannot be used.
        """
        self._former = former
        if read_engine(directory) or read_engine(former.store.directory):
            raise StoreError(f"{directory}: a server goes over to another build by itself where "
                             "both are in --index_dir and not in Milvus: start it again")
        store = Store(former.store.path, True, directory)
        with contextlib.ExitStack() as opened:
            opened.callback(store.close)
            index = Index.of(store, None, former._clock)
            check(index)
            if former.takes_fresh and not index.takes_fresh:
                raise StoreError(f"{directory}: its model has no content and could not encode the "
                                 "items that are added, as the one that is served can")
            self._change = index.bring_over(former, FIRST_CHANGE)
            if former.is_live:  # once the items are there that clicks speak of
                index = index.made_live(former.live_settings)
            opened.pop_all()
        self.index = index
        index.warm_up()

    def take_over(self):
        """Returns the Index, which counts from here on; the former one answers queries until it is
        closed. To be called while nobody changes that. Raises StoreError; then nothing has
        changed, and this is to be closed."""
        self.index.bring_over(self._former, self._change)
        self.index.succeed(self._former)
        return self.index

    def close(self):
        """Gives it up."""
        self.index.close()


def check(index):
    """Raises StoreError unless the vectors of an index are those that its model makes, and answer a
    query."""
    place = index.store.directory
    stored = next(index.store.items.scan(), [])[:CHECKED]
    made = index.encode_bags([item.bag for item in stored])
    for item, vector in zip(stored, made):
        if vector is None or len(vector) != index.store.dim \
                or not np.abs(vector - item.vector).max() < TOLERANCE:
            raise StoreError(f"{place}: the vector of item {item.id!r} is not the one that the "
                             "model makes")
    hits = index.similar([stored[0].id], 1)[0].hits
    if len(stored) > 1 and not (hits and np.isfinite(hits[0].score)):
        raise StoreError(f"{place}: a query finds nothing")

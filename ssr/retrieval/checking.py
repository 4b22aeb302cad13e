"""Whether an index is in order: every byte of it that counts is read."""

from __future__ import annotations

import contextlib
import os

import numpy as np

from ssr.errors import StoreError, UserError
from ssr.retrieval.builds import current_build
from ssr.retrieval.clicks import ClickLog
from ssr.retrieval.engines import open_store, read_engine
from ssr.retrieval.items import Items
from ssr.retrieval.live_settings import CLICKS_FILE, read_live
from ssr.retrieval.model_copy import load_encoder
from ssr.retrieval.store import Store


def check_index(path):
    """The faults of the index in a directory, a list of sentences, empty where it is in order.
    Raises StoreError where there is none."""
    directory = current_build(path)
    faults = []
    remote = read_engine(directory)
    for check in (_check_collection,) if remote else (_check_items, _check_vectors, _check_model):
        with _collected(faults):
            faults += check(path, directory)
    with _collected(faults):
        faults += _check_clicks(path)
    return list(dict.fromkeys(faults))


@contextlib.contextmanager
def _collected(faults):
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def _check_collection(path, directory):
    with open_store(path) as store:
        yield from store.items.faults()
        load_encoder(directory, store.details)


def _check_items(path, directory):
    with contextlib.closing(Items(os.path.join(directory, "items.sqlite"))) as items:
        error = items.integrity_error()
        if error:
            yield f"{items.file} is damaged: {error}"
        yield from items.faults()


def _check_vectors(path, directory):
    """Whether what is searched is what the items say."""
    with Store(path) as store:
        for stored in store.items.scan():
            searched = store.searched_vectors(np.array([item.key for item in stored]))
            same = (searched == np.stack([item.vector for item in stored])).all(axis=1)
            if not same.all():
                item = stored[int(np.flatnonzero(~same)[0])]
                yield (f"the search knows another vector of item {item.id!r} than "
                       f"{store.items.file}: retrieve.py reindex makes it anew")
                return


def _check_model(path, directory):
    with contextlib.closing(Items(os.path.join(directory, "items.sqlite"))) as items:
        details = items.details
    load_encoder(directory, details)
    return ()


def _check_clicks(path):
    read_live(path)
    with contextlib.closing(ClickLog(os.path.join(path, CLICKS_FILE), writable=False)) as log:
        error = log.integrity_error()
        if error:
            raise StoreError(f"{log.path} is damaged: {error}")
        for _ in log.read():
            pass
    return ()

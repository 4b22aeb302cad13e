"""The vectors of the candidates in faiss: exact search (Flat) or approximate search (Ivf), and the
file that holds them. A vector has a key, an integer of 0 or more."""

from __future__ import annotations

import contextlib
import os
import secrets
import zlib
from typing import NamedTuple, Optional

import numpy as np

from ssr.errors import StoreError
from ssr.retrieval.builds import sync
from ssr.retrieval.pages import use_large_pages
from ssr.runtime import faiss

RECALL_AT = 20
RECALL = 0.985  # what an approximate search is tuned to
POINTS_PER_LIST = 64  # vectors that k-means looks at, per list: more take longer and change little
IVF_ABOVE = 100_000  # candidates, above which the search is approximate
MOST = 0.75  # a search that is bound to more of the keys looks for them among the best of all
# A search that is bound to this share of the keys or less fetches their vectors one by one; for
# each it could pass by 128 others. Up to the second share, an approximate one looks into all lists.
FETCHED, EXACT = 1 / 128, 1 / 4
# What a reader likes and what a filter leaves are not independent: who asks for all but the section
# that a session is about finds little in the lists nearest to it.
WIDER = 4  # times as many lists


class SearchSettings(NamedTuple):
    """How the candidates are searched.

    ivf_above: exact search up to so many candidates, approximate search above; None: the kind and
        the lists stay what they are, for a new index IVF_ABOVE
    nlist: lists of the approximate search; None: 4 times the square root of the candidates
    nprobe: how many of them a query looks into; None: what a recall@20 of RECALL takes
    """

    ivf_above: Optional[int] = None
    nlist: Optional[int] = None
    nprobe: Optional[int] = None


DEFAULT_SEARCH = SearchSettings()


class Flat:
    """Exact: IndexIDMap2(IndexFlatIP).

    faiss moves all later vectors up when one is removed, 2 ms at 50,000 items. So a changed vector
    is overwritten where it stands, and a dropped one with not-a-number, which no search returns;
    its place waits for the item to come back, or for the next time the file is written.

    A search reads all vectors. In large pages that takes a third less time.
    """

    kind = "flat"

    def __init__(self, index):
        self.index = index
        self._number_places()
        self._address = None
        self._use_large_pages()

    @classmethod
    def make(cls, dim):
        return cls(faiss.IndexIDMap2(faiss.IndexFlatIP(dim)))

    def _number_places(self):
        keys = self.keys()
        self.places = dict(zip(keys.tolist(), range(len(keys))))

    def _use_large_pages(self):
        """Where faiss has put the vectors into other memory than before."""
        matrix = self._matrix()
        if matrix.ctypes.data != self._address:
            self._address = matrix.ctypes.data
            use_large_pages(matrix)

    def _matrix(self):
        flat = faiss.downcast_index(self.index.index)
        size = flat.ntotal * flat.d
        return faiss.rev_swig_ptr(flat.get_xb(), size).reshape(-1, flat.d) if size else \
            np.empty((0, flat.d), np.float32)

    def keys(self):
        """The keys of all places, <int64>[n], those of dropped vectors included."""
        return faiss.vector_to_array(self.index.id_map)

    def __len__(self):
        return self.index.ntotal

    def searchable(self):
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
            self._use_large_pages()

    def drop(self, keys):
        places = [self.places[key] for key in keys.tolist() if key in self.places]
        self._matrix()[places] = np.nan

    def compact(self):
        """Gives the places of dropped vectors back."""
        dropped = self.keys()[np.isnan(self._matrix()[:, 0])]
        if len(dropped):
            self.index.remove_ids(dropped)
            self._number_places()

    def vectors(self, keys):
        """<float32>[n, dim] of keys <int64>[n] that are there, not-a-number for other ones."""
        places = np.array([self.places.get(key, -1) for key in keys.tolist()], np.int64)
        result = self._matrix()[places] if len(self) else \
            np.empty((len(keys), self.index.d), np.float32)
        result[places < 0] = np.nan
        return result

    def search(self, vectors, k, among=None):
        """The k largest inner products: scores <float32>[n, k], keys <int64>[n, k], best first; a
        key of -1, after all others, where there were no more.

        among: <bool>[keys], whether a key may be an answer; None: all
        """
        if not len(self):
            return np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        if among is None:
            return self.index.search(vectors, min(k, len(self)))
        keys = np.flatnonzero(among)
        if len(keys) <= FETCHED * len(self):
            return _scan(vectors, k, keys, self.vectors(keys))
        if len(keys) > MOST * len(self):  # to pass by the few others takes longer than to see them
            found = _first_of(among, k, *self.index.search(vectors, min(4 * k, len(self))))
            if found:
                return found
        return self.index.search(vectors, min(k, len(self)),
                                 params=faiss.SearchParameters(sel=_selector(among)))


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

    searchable = __len__

    def put(self, keys, vectors):
        """As of Flat."""
        self.drop(keys)
        self.index.add_with_ids(np.ascontiguousarray(vectors), keys)

    def drop(self, keys):
        self.index.remove_ids(faiss.IDSelectorArray(keys))

    def compact(self):
        """Nothing to do: a dropped vector leaves no place behind."""

    def vectors(self, keys):
        """As of Flat."""
        with contextlib.suppress(RuntimeError):  # there is no such key
            return self.index.reconstruct_batch(keys)
        result = np.full((len(keys), self.index.d), np.nan, np.float32)
        for row, key in enumerate(keys.tolist()):
            with contextlib.suppress(RuntimeError):
                result[row] = self.index.reconstruct(key)
        return result

    def search(self, vectors, k, among=None):
        """As of Flat. It is exact among up to a quarter of the keys. Among more of them it looks
        into WIDER times so many more lists as they are fewer than all, and into every list before
        it returns less than there is."""
        if among is None:
            return self.index.search(vectors, k)
        keys = np.flatnonzero(among)
        if len(keys) <= FETCHED * len(self):
            return _scan(vectors, k, keys, self.vectors(keys))
        nlist, selector = self.index.nlist, _selector(among)
        nprobe = WIDER * self.index.nprobe * max(1, len(self) / len(keys))
        if len(keys) <= EXACT * len(self):
            nprobe = nlist
        while True:
            scores, nearest = self._search(vectors, k, min(nlist, int(nprobe)), selector)
            if nprobe >= nlist or (nearest >= 0).all():
                return scores, nearest
            nprobe *= 4

    def exact_search(self, vectors, k):
        """As search, in all lists."""
        return self._search(vectors, k, self.index.nlist)

    def _search(self, vectors, k, nprobe, selector=None):
        return self.index.search(vectors, k, params=faiss.SearchParametersIVF(nprobe=nprobe,
                                                                              sel=selector))

    def tune(self, queries):
        """Looks into as many lists as a recall of RECALL takes for queries <float32>[n, dim]."""
        k = min(RECALL_AT, len(self))
        wanted = self.exact_search(queries, k)[1]
        self.index.nprobe = min(8, self.index.nlist)
        while (recall(self.search(queries, k)[1], wanted) < RECALL
               and self.index.nprobe < self.index.nlist):
            self.index.nprobe = min(self.index.nprobe * 3 // 2, self.index.nlist)


def _selector(among):
    return faiss.IDSelectorBitmap(np.packbits(among, bitorder="little"))


def _first_of(among, k, scores, keys):
    """The first k of each row of scores and keys, <...>[n, m], that are among <bool>[keys]; None
    where a row has fewer."""
    passing = (keys >= 0) & (keys < len(among))
    passing[passing] = among[keys[passing]]
    if (passing.sum(1) < k).any():
        return None
    first = np.argsort(~passing, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, first, 1), np.take_along_axis(keys, first, 1)


def _scan(queries, k, keys, vectors):
    """The k largest inner products of queries <float32>[n, dim] with the vectors <float32>[m, dim]
    of keys <int64>[m], as of Flat.search. Vectors that are not a number are left out."""
    there = ~np.isnan(vectors[:, :1]).any(axis=1)
    keys, vectors = keys[there], vectors[there]
    scores = queries @ vectors.T
    if len(keys) > k:
        best = np.argpartition(-scores, k, axis=1)[:, :k]
    else:
        best = np.broadcast_to(np.arange(len(keys)), scores.shape)
    scores = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), keys[np.take_along_axis(best, order, axis=1)]


def recall(retrieved, wanted):
    """The share of the wanted keys that was retrieved, <int64>[n, k] both, averaged over rows."""
    return float(np.mean([np.isin(w, r).mean() for w, r in zip(wanted, retrieved)]))


def make_vectors(keys, vectors, queries, settings):
    """A Flat or an Ivf that holds vectors <float32>[n, dim] of keys <int64>[n].

    queries: <float32>[m, dim], of the kind that will come: what an Ivf is tuned with
    settings: SearchSettings
    """
    above = IVF_ABOVE if settings.ivf_above is None else settings.ivf_above
    if len(keys) <= above:
        flat = Flat.make(vectors.shape[1])
        flat.put(keys, vectors)
        return flat
    ivf = Ivf.make(vectors, min(settings.nlist or int(4 * len(keys) ** 0.5), len(keys)))
    ivf.put(keys, vectors)
    if settings.nprobe:
        ivf.index.nprobe = min(settings.nprobe, ivf.index.nlist)
    else:
        ivf.tune(queries)
    return ivf


# --- on the disk ----------------------------------------------------------------------------------


def write_vectors(vectors, directory, change):
    """Writes a new file vectors-CHANGE-XXXX.faiss, where change is the number of the last change
    that it holds. Returns the snapshot {"name", "change", "checksum"}. Raises StoreError."""
    name = f"vectors-{change}-{secrets.token_hex(4)}.faiss"
    path = os.path.join(directory, name)
    try:
        faiss.write_index(vectors.index, path)
        sync(path)
        sync(directory)
    except (OSError, RuntimeError) as error:  # the latter is what faiss raises
        with contextlib.suppress(OSError):
            os.remove(path)
        raise StoreError(f"cannot write {path}: {error}") from error
    return {"name": name, "change": change, "checksum": _checksum(path)}


def read_vectors(directory, snapshot):
    """The Flat or Ivf of a snapshot. Raises OSError, RuntimeError."""
    path = os.path.join(directory, snapshot["name"])
    if _checksum(path) != snapshot["checksum"]:
        raise RuntimeError("its checksum is another one")
    index = faiss.read_index(path)
    return (Ivf if isinstance(index, faiss.IndexIVFFlat) else Flat)(index)


def _checksum(path):
    checksum = 0
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            checksum = zlib.crc32(block, checksum)
    return checksum

"""What a session model has to beat: recommenders that only count, on sessions without times.

Each is made from training sessions and answers queries as a model does (ranking.ModelRecommender):
ties count against it, a label that is no candidate is a miss, and a click on an item that was not
clicked in training is left out of the session. Baselines that see each click of a stream as it
comes: ssr/news/baselines.py.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from reader import ragged_arange
from ssr.evaluation.queries import Answers

CLICKS_AT_A_TIME = 1 << 12  # of sequences; a longer one makes a group of its own
ITEMS_AT_A_TIME = 1 << 10  # items whose similarities are computed together
ENTRIES_AT_A_TIME = 1 << 22  # 32 MB: of rows whose largest entries are looked for
TIE = 1e-9  # scores that differ by a smaller share are equal: the order of a sum is arbitrary


class Popular:
    """The items that were clicked most, for everyone."""

    name = "popular"

    def __init__(self, train):
        """train: reader.YoochooseDataset"""
        self.clicks = train.item_clicks()
        self.known = self.clicks > 0

    def answer(self, queries, candidates, k):
        """Answers to all queries, with lists of the k best items or of all.

        queries: queries.Queries of the known items
        candidates: <bool>[V]
        """
        ids = np.flatnonzero(candidates)
        ascending = np.sort(self.clicks[ids])
        ranks = len(ids) - np.searchsorted(ascending, self.clicks[queries.labels])
        best = ids[np.argsort(-self.clicks[ids], kind="stable")][:k]
        best = best[self.clicks[best] > 0].astype(np.int32)
        return Answers(self.name, np.where(candidates[queries.labels], ranks, 0),
                       np.broadcast_to(best, (len(ranks), len(best))))


class Baseline:
    """A recommender whose scores are zero for most items.

    known: <bool>[V], the items that were clicked in training
    """

    def __init__(self, train):
        """train: reader.YoochooseDataset"""
        self.known = train.item_clicks() > 0

    def answer(self, queries, candidates, k):
        """As Popular.answer. An item of score zero ties with all candidates and is never
        recommended: a list may be shorter than k."""
        k = min(k, np.count_nonzero(candidates))
        ranks = np.zeros(len(queries.labels), np.int64)
        top = np.full((len(ranks), k), -1, np.int32)
        for asked, clicks, lengths in _groups(queries):
            scores = self.scores(clicks, lengths)
            scores.data *= candidates[scores.indices]
            ranks[asked] = _ranks(scores, queries.labels[asked], candidates)
            items, rows, places = best_of_rows(_sorted(scores), k)
            top[asked[rows], places] = items
        return Answers(self.name, ranks, top)

    def scores(self, clicks, lengths):
        """The scores of all items, a csr_matrix [n, V] without negative values, for n sequences.

        clicks: <int64>[clicks], known items, end to end; lengths: <int64>[n], each at least 1
        """
        raise NotImplementedError


class ItemKNN(Baseline):
    """The items that are in the same sessions as the last click (Item-KNN; Hidasi et al.,
    "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016, section 4, as in
    baselines.py of its authors' GRU4Rec).

    The similarity of items i and j is the number of clicks on i in sessions that have j, divided by
    (n_i + regularization)^alpha (n_j + regularization)^(1 - alpha), n the clicks on an item. Each
    item keeps its `neighbours` most similar ones; itself is none of them.
    """

    name = "item_knn"

    def __init__(self, train, neighbours=100, regularization=20, alpha=0.5):
        super().__init__(train)
        counts = _sessions_by_items(train)
        present = (counts > 0).astype(np.float64)
        clicks = train.item_clicks() + float(regularization)
        by_item = counts.T.tocsr()
        blocks = []
        for start in range(0, train.vocab_size, ITEMS_AT_A_TIME):
            block = (by_item[start:start + ITEMS_AT_A_TIME] @ present).tocsr()
            rows = start + rows_of(block)
            block.data /= clicks[rows] ** alpha * clicks[block.indices] ** (1 - alpha)
            block.data[rows == block.indices] = 0
            blocks.append(keep_best(_sorted(block), neighbours))
        self.similarity = sparse.vstack(blocks, "csr")

    def scores(self, clicks, lengths):
        return self.similarity[clicks[np.cumsum(lengths) - 1]]


class VSKNN(Baseline):
    """The items of the sessions most like the current one (V-SKNN; Ludewig and Jannach, "Evaluation
    of Session-based Recommendation Algorithms", UMUAI 2018, section 3.3), with the weights of their
    session-rec: quadratic in the session, `div` in the score, inverse document frequencies.

    The current session is a vector: click i of n has (i / n)^2, an item that was clicked more than
    once that of its last click. Of the training sessions that share an item with it the `sample`
    newest are taken, those that come last in the files, and of these the `k` whose sets of items
    have the largest dot products with it, the newer of two that are equal. Such a neighbour counts
    for its dot product, divided by how many clicks ago the newest shared item was (1 for the last
    click). The score of an item is the sum over the neighbours that have it, times
    1 + idf log(training sessions / clicks on the item).
    """

    name = "v_sknn"

    def __init__(self, train, k=500, sample=5000, idf=5):
        super().__init__(train)
        self.k, self.sample = k, sample
        # The newest session is row 0: what comes first in a row of sessions is newest.
        items = (_sessions_by_items(train)[::-1] > 0).astype(np.float64)
        # A session that is among the newest that share any item is so for each item it shares.
        self.having = keep_first(_sorted(items.T.tocsr()), sample)
        rarity = np.log(len(train) / np.maximum(train.item_clicks(), 1))
        items.data *= np.maximum(1 + idf * rarity[items.indices], 0)
        self.items = items

    def scores(self, clicks, lengths):
        weights, recency = self.vectors(clicks, lengths)
        similar = keep_first(_sorted(weights @ self.having), self.sample)
        nearest = keep_best(similar, self.k)
        # The sum of the shared items' powers of two lies below twice that of the newest one.
        shared = _sorted((recency @ self.having).multiply(nearest > 0).tocsr())
        nearest.data /= 1 - np.floor(np.log2(shared.data))
        return nearest @ self.items

    def vectors(self, clicks, lengths):
        """Two csr_matrix [n, V] of the current sessions: the weight of each item, and 2^-a where a
        is how many clicks came after the last one on it."""
        rows = np.repeat(np.arange(len(lengths)), lengths)
        number = ragged_arange(np.ones(len(lengths), np.int64), lengths)
        # The last of the clicks on an item is the first one from behind.
        _, last = np.unique((rows * len(self.known) + clicks)[::-1], return_index=True)
        last = len(clicks) - 1 - last
        length, number, places = lengths[rows[last]], number[last], (rows[last], clicks[last])
        shape = len(lengths), len(self.known)
        return (sparse.csr_matrix(((number / length) ** 2, places), shape),
                sparse.csr_matrix((2.0 ** np.maximum(number - length, -1000), places), shape))


BASELINES = {baseline.name: baseline for baseline in (Popular, ItemKNN, VSKNN)}


# --- sessions and rows of sparse matrices ---------------------------------------------------------


def _sessions_by_items(train):
    """How often each session has each item, a csr_matrix [sessions, V]."""
    counts = sparse.csr_matrix((np.ones(len(train.items)), train.items, train.offsets),
                               (len(train), train.vocab_size), copy=True)  # it is sorted in place
    counts.sum_duplicates()
    return counts


def _sorted(matrix):
    """The csr_matrix itself, its entries in order of columns."""
    matrix.sort_indices()
    return matrix


def _groups(queries):
    """Yields (indices of queries, their clicks end to end, their lengths), some thousand clicks at
    a time, for all queries that have a click before their label."""
    asked, _, place = queries.ends()
    lengths = place + 1
    starts = queries.sources[asked] - place
    group = np.cumsum(lengths) // CLICKS_AT_A_TIME
    for part in np.split(np.arange(len(asked)), np.flatnonzero(np.diff(group)) + 1):
        if len(part):
            places = ragged_arange(starts[part], lengths[part])
            yield asked[part], queries.clicks[places], lengths[part]


def _ranks(scores, labels, candidates):
    """The ranks of labels among the candidates, ties against them: <int64>[n].

    scores: csr_matrix [n, V], zero for what is no candidate
    """
    own = np.asarray(scores[np.arange(len(labels)), labels]).ravel()
    rows = rows_of(scores)
    as_high = scores.data >= own[rows] * (1 - TIE)
    ranks = np.bincount(rows[as_high], minlength=len(labels))
    ranks[own == 0] = np.count_nonzero(candidates)
    return np.where(candidates[labels], ranks, 0)


def rows_of(matrix):
    """The row of each entry of a csr_matrix."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def best_of_rows(matrix, n):
    """The n largest positive entries of each row of a csr_matrix, largest first, as of keep_best:
    their columns, their rows, and their places in the row from 0 on."""
    best = keep_best(matrix, n)
    rows = rows_of(best)
    order = np.lexsort((-best.data, rows))
    return best.indices[order], rows, np.arange(len(rows)) - best.indptr[rows]


def keep_best(matrix, n):
    """The matrix with the n largest positive entries of each row, of equal ones those that come
    first."""
    rows, bound = rows_of(matrix), _nth_largest(matrix, n)
    above = matrix.data > bound[rows]
    equal = (matrix.data == bound[rows]) & (matrix.data > 0)
    wanted = n - np.bincount(rows[above], minlength=len(bound))
    so_far = np.concatenate([[0], np.cumsum(equal)])
    number = so_far[1:] - so_far[matrix.indptr[rows]]  # among the equal ones of the row, from 1 on
    return _keep(matrix, above | equal & (number <= wanted[rows]))


def _nth_largest(matrix, n):
    """<float64>[rows]: the n-th largest entry of each row, 0 where there are not so many positive
    ones."""
    widths = np.diff(matrix.indptr)
    bound = np.zeros(len(widths))
    wide = np.flatnonzero(widths > n)
    step = max(1, ENTRIES_AT_A_TIME // widths.max(initial=1))
    for start in range(0, len(wide), step):
        part = wide[start:start + step]
        dense = np.zeros((len(part), widths[part].max()))
        dense[np.repeat(np.arange(len(part)), widths[part]),
              ragged_arange(np.zeros(len(part), np.int64), widths[part])] = matrix.data[
                  ragged_arange(matrix.indptr[part], widths[part])]
        bound[part] = np.partition(dense, -n, axis=1)[:, -n]
    return bound


def keep_first(matrix, n):
    """The matrix with the first n entries of each row, in order of columns if these are sorted."""
    return _keep(matrix, np.arange(len(matrix.data)) - matrix.indptr[rows_of(matrix)] < n)


def _keep(matrix, chosen):
    indptr = np.concatenate([[0], np.cumsum(chosen)])[matrix.indptr]
    return sparse.csr_matrix((matrix.data[chosen], matrix.indices[chosen], indptr), matrix.shape)

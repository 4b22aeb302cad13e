"""What a model is asked and answers: the best items for vectors, as a table."""

from __future__ import annotations

import numpy as np
import polars as pl

from ssr.errors import SetupError

SCORES_AT_A_TIME = 1 << 22  # 16 MB


def best_items(queries, vectors, candidates, own, k):
    """The best candidates for each query, best first, ties by number: a list of
    (numbers <int64>[at most k], scores <float32>[at most k]). Raises SetupError for no such k.

    queries: <float32>[n, dim]; vectors: <float32>[items, dim]; candidates: <int64>[m], ascending
    own: for each query (numbers of items <int64>[j], scores <float32>[j]), where an item scores
        otherwise than by its cosine; -inf for one that is no candidate
    """
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise SetupError(f"k is {k!r:.40}; it is a whole number of 1 or more")
    chosen, hits = vectors[candidates], []
    step = max(1, SCORES_AT_A_TIME // len(candidates))
    for start in range(0, len(queries), step):
        scores = queries[start:start + step] @ chosen.T
        for row, (numbers, own_scores) in zip(scores, own[start:start + step]):
            places = np.minimum(np.searchsorted(candidates, numbers), len(candidates) - 1)
            are_there = candidates[places] == numbers
            row[places[are_there]] = own_scores[are_there]
            best = _largest(row, k)
            hits.append((candidates[best], row[best]))
    return hits


def _largest(scores, k):
    """The places of the k largest finite scores, the largest first, ties by place: <int64>[at most
    k]."""
    k = min(k, len(scores))
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    best = np.flatnonzero((scores >= last) & np.isfinite(scores))
    return best[np.argsort(-scores[best], kind="stable")][:k]


def hits_table(name, labels, hits, ids, texts):
    """A row a hit: `name`, rank, item, score, text. A polars DataFrame.

    labels: what each of the hits, as of best_items, answers
    ids: a function from numbers to raw ids as the caller has them, all int or all str
    texts: of all items
    """
    rows = [(label, rank, *item_and_score)
            for label, (numbers, scores) in zip(labels, hits)
            for rank, item_and_score in enumerate(zip(numbers.tolist(), scores.tolist()), 1)]
    of, ranks, numbers, scores = zip(*rows) if rows else [()] * 4
    return pl.DataFrame({
        name: pl.Series(of, dtype=None if rows else pl.Int64),
        "rank": pl.Series(ranks, dtype=pl.Int64),
        "item": ids(numbers),
        "score": pl.Series(scores, dtype=pl.Float64),
        "text": pl.Series([texts[number] for number in numbers], dtype=pl.String)})

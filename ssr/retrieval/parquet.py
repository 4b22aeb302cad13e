"""The vectors of an index for engines elsewhere."""

from __future__ import annotations

import numpy as np
import polars as pl

from ssr.errors import DataError
from ssr.retrieval.engines import open_store


def vectors_table(path):
    """A polars.DataFrame of all candidates of the index in a directory: id, text and vector
    <float32>[dim]. Raises DataError where there are none, StoreError."""
    with open_store(path) as store:
        tables = [pl.DataFrame({
            "id": [item.id for item in stored], "text": [item.text for item in stored],
            "vector": pl.Series(np.stack([item.vector for item in stored]),
                                dtype=pl.Array(pl.Float32, store.dim)),
        }) for stored in store.items.scan()]
    if not tables:
        raise DataError(f"{path} holds no candidates, there is nothing to export")
    return pl.concat(tables)

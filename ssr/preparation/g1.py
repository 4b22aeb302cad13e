"""The files of Globo.com's news data set, clicks on the portal G1 in October 2017 (Moreira et al.,
"News Session-Based Recommendations using Deep Neural Networks", DLRS 2018).

clicks_hour_000.csv and so on have a line for each click: user_id, session_id, session_start,
session_size, click_article_id, click_timestamp in milliseconds, and the reader's device.
articles_metadata.csv has a line for each article: article_id, category_id, created_at_ts,
publisher_id, words_count. There are no titles; articles_embeddings.pickle holds a vector of each
article's text, row i that of article i.
"""

from __future__ import annotations

import array

import numpy as np
import polars as pl

from ssr.errors import DataError
from ssr.files import files_of, numbered_lines
from ssr.pickled import load_array
from ssr.preparation.click_log import Columns, Log, open_frame
from ssr.preparation.text import ItemText
from ssr.preparation.writing import Catalogue

CLICK_COLUMNS = ("session_id", "click_article_id", "click_timestamp")
ARTICLE_COLUMNS = ("article_id", "category_id", "publisher_id")
MAX_DIGITS = {"click_timestamp": 14}  # the year 5138; microseconds since 1970 fit into int64 then
MAX_DIGITS_OF_IDS = 18  # they fit into int64


def open_g1(paths) -> Log:
    """The clicks of files like clicks_hour_000.csv, or of the directories that hold them, as a log
    in memory. Hours without a click may be empty files. Raises DataError."""
    values = array.array("q")
    for path in files_of(paths, ".csv"):
        for row in _read_numbers(path, CLICK_COLUMNS):
            values.extend(row)
    session, item, time = np.frombuffer(values, np.int64).reshape(-1, len(CLICK_COLUMNS)).T
    frame = pl.DataFrame({"session": session, "item": item, "time": time})
    frame = frame.with_columns(pl.col("time").cast(pl.Datetime("ms")))
    columns = Columns("session", "item", "time")
    return open_frame(frame, columns, ", ".join(paths))._replace(layout="g1")


def read_articles(path) -> Catalogue:
    """Category and publisher of the articles in a file like articles_metadata.csv, as fields.
    Raises DataError."""
    items = {str(article): ItemText(fields={"category": category, "publisher": publisher})
             for article, category, publisher in _read_numbers(path, ARTICLE_COLUMNS)}
    return Catalogue(path, items)


def read_embeddings(path):
    """The vectors in a file like articles_embeddings.pickle, which is read without running what it
    may hold: <float32>[articles, dim]. Raises DataError."""
    vectors = load_array(path)
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.size:
        raise DataError(f"{path} holds {vectors.dtype.name}{list(vectors.shape)}, and must hold "
                        "floating-point numbers, [articles, numbers of a vector]")
    vectors = vectors.astype(np.float32, copy=False)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise DataError(f"{path}: the vector of article {int(np.argmin(finite))} holds what is no "
                        "number, or an infinite one")
    return vectors


def _read_numbers(path, columns):
    """Yields the numbers in some columns of each line of a CSV with a header. Raises DataError."""
    places = None
    for number, line in numbered_lines(path, "it is one of the files of G1"):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        if places is None:
            header = fields
            missing = [name for name in columns if name not in header]
            if missing:
                raise DataError(f"{path}, line {number}: no column {missing[0]!r}; the columns are "
                                f"{', '.join(header)[:200]}")
            places = [header.index(name) for name in columns]
            continue
        if len(fields) != len(header):
            raise DataError(f"{path}, line {number}: {len(fields)} fields where {len(header)} are "
                            "expected, with a comma between")
        yield [_number(fields[place], name, path, number) for place, name in zip(places, columns)]


def _number(field, name, path, line):
    digits = MAX_DIGITS.get(name, MAX_DIGITS_OF_IDS)
    if not (field.isascii() and field.isdigit() and len(field) <= digits):
        raise DataError(f"{path}, line {line}: {field[:40]!r} in the column {name!r} is not a "
                        f"whole number of at most {digits} digits")
    return int(field)

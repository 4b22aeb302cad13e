"""The files of Adressa, a Norwegian newspaper's data set (Gulla et al., "The Adressa Dataset for
News Recommendation", WI 2017): page views, a JSON object in each line, a file for each day.

Read of each are userId, time (seconds since 1970), sessionStart and sessionStop, and where the page
is an article its id, title and category1, as "nyheter|trondheim". A page without an id, the front
page say, is no click, yet it counts as the reader being there. There is no id of a session.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib

import numpy as np
import polars as pl

from ssr.errors import DataError
from ssr.files import files_of
from ssr.preparation import log_lines
from ssr.preparation.click_log import Columns, open_frame
from ssr.preparation.text import ItemText
from ssr.preparation.times import MAX_SECONDS
from ssr.preparation.writing import Catalogue

SCHEMA = {"userId": pl.String, "time": pl.Int64, "sessionStart": pl.Boolean,
          "sessionStop": pl.Boolean, "id": pl.String, "title": pl.String, "category1": pl.String}
BLOCK_BYTES = 1 << 25  # of lines that are parsed at a time
UNFIT = "[\t\r\n]"  # what an id in items.txt cannot hold


def read_adressa(paths, session_gap):
    """(Log, Catalogue): the clicks in files like Adressa's, or in directories of them, and the
    newest titles and categories of the articles.

    session_gap: minutes; a session ends at a sessionStop or a longer silence, and one begins at a
        sessionStart
    Raises DataError.
    """
    events, texts = [], {}
    for path in files_of(paths):
        for block in _read_blocks(path):
            _add_texts(texts, block)
            events.append(block.select(pl.col("userId", "id").cast(pl.Categorical), "time",
                                       "sessionStart", "sessionStop"))
    name = ", ".join(paths)
    if not events:
        raise DataError(f"{name}: the log holds no page views")
    events = pl.concat(events)
    sessions = cut_sessions(
        events["userId"].to_physical().to_numpy(), events["time"].to_numpy(),
        events["sessionStart"].fill_null(False).to_numpy(),
        events["sessionStop"].fill_null(False).to_numpy(), round(session_gap * 60))
    clicks = pl.DataFrame({"session": sessions, "item": events["id"], "time": events["time"]}) \
        .filter(pl.col("item").is_not_null())
    log = open_frame(clicks, Columns("session", "item", "time"), name)._replace(layout="adressa")
    return log, Catalogue(name, texts)


def cut_sessions(users, times, starts, stops, gap):
    """Numbers the sessions that page views belong to: <int64>[n], from 0 on.

    users: <int>[n]; times: <int64>[n], seconds; starts, stops: <bool>[n], whether a session begins
    or ends with a page view; gap: seconds, a longer silence ends one
    Page views of the same user and time are taken in their order.
    """
    order = np.lexsort((times, users))  # stable
    begins = starts[order].copy()
    begins[:1] = True
    begins[1:] |= np.diff(users[order].astype(np.int64)) != 0
    begins[1:] |= np.diff(times[order]) > gap
    begins[1:] |= stops[order][:-1]
    sessions = np.empty(len(order), np.int64)
    sessions[order] = np.cumsum(begins) - 1
    return sessions


def _add_texts(texts, block):
    """Adds the newest title and category of each article of a block. texts: {raw id: ItemText}"""
    articles = block.filter(pl.col("id").is_not_null()).group_by("id", maintain_order=True) \
        .agg(pl.col("title", "category1").drop_nulls().last())
    for raw, title, category in articles.iter_rows():
        before = texts.get(raw, ItemText())
        texts[raw] = ItemText(title or before.text,
                              _fields(category) if category else before.fields)


def _fields(category):
    category, *below = category.split("|")
    return {"category": category, "subcategory": below}


# --- reading --------------------------------------------------------------------------------------


def _read_blocks(path):
    """Yields frames with the columns of SCHEMA. Raises DataError."""
    log_lines.check_compression(path)
    number = 1
    try:
        with open(path, "rb") as f:
            compressed = f.read(2) == log_lines.GZIP_MAGIC
        with (gzip.open if compressed else open)(path, "rb") as f:
            while lines := f.readlines(BLOCK_BYTES):
                if number == 1:
                    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
                yield _parse(lines, path, number)
                number += len(lines)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}") from error


def _parse(lines, path, number):
    """The frame of some lines. number: of the first of them. Raises DataError."""
    try:
        frame = pl.read_ndjson(io.BytesIO(b"".join(lines)), schema=SCHEMA)
        valid = frame.select(
            (pl.col("userId") != "") & pl.col("time").is_between(0, int(MAX_SECONDS))
            & ~pl.col("id").fill_null("").str.contains(UNFIT)).to_series().fill_null(False).all()
        reason = "a value is missing"
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        valid, reason = False, str(error).splitlines()[0][:200]
    if not valid:
        raise _fault(lines, path, number, reason)
    return frame.with_columns(pl.col("id", "title", "category1").replace("", None))


def _fault(lines, path, number, reason):
    """The DataError of the first line that is no page view. Slow."""
    for at, line in enumerate(lines, number):
        if line.strip() and (fault := _fault_of(line)):
            return DataError(f"{path}, line {at}: {fault}")
    return DataError(f"{path}, lines {number} to {number + len(lines) - 1}: {reason}")


def _fault_of(line):
    """What is wrong with a line, None if nothing is."""
    try:
        event = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason}): convert the file"
    except (ValueError, RecursionError) as error:
        return f"not a JSON object: {error}"[:200]
    if not isinstance(event, dict):
        return "not a JSON object"
    user, time, raw = event.get("userId"), event.get("time"), event.get("id")
    if user in (None, "") or not isinstance(user, (str, int)):
        return "no userId: each page view has one"
    if type(time) is not int or not 0 <= time <= MAX_SECONDS:
        return f"{str(time)[:40]!r} is not a time in whole seconds since 1970"
    if isinstance(raw, str) and re.search(UNFIT, raw):
        return f"the id {raw[:40]!r} holds a tab or a line break, which items.txt cannot"
    for name in ("sessionStart", "sessionStop"):
        if not isinstance(event.get(name), (bool, type(None))):
            return f"{name} is {str(event[name])[:40]!r}: it is true or false"
    return None

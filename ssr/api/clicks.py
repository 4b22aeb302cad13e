"""What a caller calls clicks: a table of pandas or polars, lists of sessions, a file.

All of it becomes a click log, as the preparation reads it from a file: one road from there on.
"""

from __future__ import annotations

import itertools
import numbers
import os
import sys
from typing import NamedTuple

import polars as pl

import preprocess
import reader
from ssr.data_directory import VOCAB_FILE, DataDirectory
from ssr.errors import DataError, SetupError
from ssr.files import numbered_lines
from ssr.preparation.click_log import Log, layout_of, open_frame, read_clicks
from ssr.preparation.filtering import DAY_US
from ssr.preparation.text import read_items

# Lists of sessions are somebody's choice of what to train on already.
FLAGS_OF_LISTS = {"min_session_length": 1, "min_item_support": 1, "keep_unknown": True}


class Clicks(NamedTuple):
    """Clicks as the preparation takes them.

    log: a click_log.Log
    ids: "int" or "str", the type of the raw ids
    """

    log: Log
    ids: str


class Sessions(NamedTuple):
    """Sessions of raw ids.

    labels: list, what the caller knows each session by: its place in a list, or its id in a table
    clicks: list of lists of str, the raw ids of the clicks, oldest first
    """

    labels: list
    clicks: list


# --- which kind -----------------------------------------------------------------------------------


def is_path(clicks):
    """Whether clicks are a path."""
    return isinstance(clicks, (str, os.PathLike))


def is_data_directory(clicks):
    """Whether clicks are the path of a directory that preprocess.py wrote, or of one like it."""
    return is_path(clicks) and os.path.exists(os.path.join(clicks, VOCAB_FILE))


def is_table(clicks):
    """Whether clicks are a table of polars or pandas."""
    return isinstance(clicks, (pl.DataFrame, pl.LazyFrame)) or _is_pandas(clicks)


def has_columns(clicks, flags):
    """Whether clicks are a table, in memory or in a file, whose columns have names."""
    if not is_path(clicks):
        return is_table(clicks)
    return (flags.get("layout") or layout_of(os.fspath(clicks))) == "table"


def _is_pandas(clicks):
    pandas = sys.modules.get("pandas")  # who has such a table has loaded it
    return pandas is not None and isinstance(clicks, pandas.DataFrame)


def click_flags(clicks, given):
    """What preprocess.py is to be told of clicks: {flag: value}, of which those that are given
    win. Raises SetupError for a layout of what is no file."""
    layout = given.get("layout")
    if layout is not None and not is_path(clicks):
        raise SetupError(f"layout={layout!r} is for files, and these clicks are none")
    if is_path(clicks) and layout != "sessions" and not is_data_directory(clicks):
        return {"input": os.fspath(clicks), **given}
    defaults = {} if is_table(clicks) else FLAGS_OF_LISTS
    return {"input": "clicks", **defaults, **given, "layout": "table"}


# --- a log ----------------------------------------------------------------------------------------


def open_clicks(clicks, args, layout=None, name="clicks") -> Clicks:
    """Clicks of any kind as a log.

    args: of preprocess.py
    layout: "sessions" for a file of a session a line, else what args say
    name: what errors call a table in memory
    Raises DataError.
    """
    if is_path(clicks):
        path = os.fspath(clicks)
        if is_data_directory(path):
            return _from_lists(_data_sessions(path, "train").clicks, name)
        if layout == "sessions":
            lines = numbered_lines(path, "a session is a line of raw ids")
            return _from_lists([line.split() for _, line in lines], name)
        return _with_type(preprocess.open_log(args, path))
    if not is_table(clicks):
        return _from_lists(clicks, name)
    columns = preprocess.columns_of(args)
    if _is_pandas(clicks):
        texts = [column for column in [args.text_column] if column]
        clicks = _from_pandas(clicks, [*columns, *texts, *args.field_columns], name)
    return _with_type(open_frame(clicks, columns, name))


def _with_type(log):
    """A log with the type of its raw ids; all that a text file holds is text."""
    dtype = log.scan.collect_schema()[log.columns.item]
    return Clicks(log, "int" if dtype.is_integer() else "str")


def _from_lists(sessions, name):
    """Lists of sessions as a table whose times are the places of the sessions."""
    clicks = _checked_sessions(sessions, name)
    if not any(clicks):
        raise DataError(f"{name}: the sessions hold no clicks")
    ids = "int" if isinstance(next(itertools.chain(*clicks)), int) else "str"
    frame = _table({"Session": [place for place, session in enumerate(clicks) for _ in session],
                    "Item": list(itertools.chain(*clicks))}, name)
    columns = preprocess.Columns("Session", "Item", "Session")
    return Clicks(open_frame(frame, columns, name), ids)


def _checked_sessions(sessions, name="sessions"):
    """A list of lists of raw ids, all str or all int. Raises DataError."""
    checked, kinds = [], set()
    for place, session in enumerate(sessions):
        if isinstance(session, (str, bytes)) or not hasattr(session, "__iter__"):
            raise DataError(f"{name}: session {place} is {session!r:.40}; a session is a list of "
                            "raw ids, and sessions are a list of these")
        checked.append([as_raw_id(id, f"{name}: session {place}") for id in session])
        kinds.update(map(type, checked[-1]))
    if len(kinds) > 1:
        raise DataError(f"{name}: raw ids are all text or all integers, and these are both")
    return checked


def as_raw_id(id, place):
    """A raw id, str or int. place: for the error. Raises DataError for anything else."""
    if isinstance(id, str):
        return str(id)
    if isinstance(id, numbers.Integral) and not isinstance(id, bool):
        return int(id)
    raise DataError(f"{place}: {id!r:.40} is no raw id: these are text or integers")


def is_number(raw):
    """Whether a raw id, a str, is one of those that an int has."""
    return raw.lstrip("-").isdecimal() and str(int(raw)) == raw


def _from_pandas(frame, names, name):
    """The columns of a pandas DataFrame that there are, as a polars DataFrame. polars itself would
    need pyarrow for it."""
    return _table({column: _values(frame[column]) for column in names if column in frame}, name)


def _values(column):
    """The values of a pandas Series as polars takes them, None for missing ones."""
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    values = column.to_numpy()
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]")
    if values.dtype.kind in "iuf":
        return values
    return [None if missing else value
            for value, missing in zip(column.astype(object), column.isna())]


def _table(columns, name):
    """A polars DataFrame. Raises DataError where a column holds values of several kinds."""
    try:
        return pl.DataFrame(columns)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{name}: a column holds values of several kinds: {error}") from error


# --- what is asked of a log -----------------------------------------------------------------------


def days_of_share(log, share):
    """How many days before the last click of all the newest sessions end, so many that they are a
    share of all. Raises DataError."""
    clicks, _ = read_clicks(log)
    ends = clicks.group_by("session").agg(pl.col("time").max())["time"].sort(descending=True)
    first = ends[max(1, round(share * len(ends))) - 1]
    return (ends[0] - first) / DAY_US or 1e-9  # 0 would be none


def clicked_ids(log):
    """The raw ids of a log's items, a set of str. Raises DataError."""
    return {*read_clicks(log)[1]}


def read_sessions(clicks, flags, part="test") -> Sessions:
    """The sessions in clicks of any kind, none left out.

    flags: {name: value} of preprocess.py, for tables
    part: which one of a data directory
    Raises DataError, SetupError.
    """
    if is_data_directory(clicks):
        return _data_sessions(os.fspath(clicks), part)
    layout = flags.get("layout")
    if not (is_path(clicks) or is_table(clicks)):
        sessions = _checked_sessions(clicks)
        return Sessions([*range(len(sessions))], [[*map(str, session)] for session in sessions])
    args = preprocess.parse_args({"command": "clicks", "output_dir": "-",
                                  **click_flags(clicks, flags)})
    log = open_clicks(clicks, args, layout).log
    read, raw_ids = read_clicks(log)
    read = read.with_columns(item=raw_ids.gather(read["item"]))
    if log.separator is None:  # a row is a click
        read = read.with_columns(log.scan.select(label=pl.col(log.columns.session)).collect())
    else:
        read = read.with_columns(label=pl.col("session"))
    sessions = read.sort("time", maintain_order=True) \
        .group_by("session", maintain_order=True).agg("item", pl.col("label").first())
    return Sessions(sessions["label"].to_list(), sessions["item"].to_list())


def _data_sessions(path, part):
    """The sessions of a part of a data directory."""
    directory = DataDirectory.open(path)
    folder = directory.sessions(part)
    if folder is None:
        raise DataError(f"{path} has no {part}_data")
    data = reader.load_sessions(folder, reader.get_vocab_size(directory.vocab))
    raw_ids = raw_ids_of(directory)
    return Sessions([*range(len(data))],
                    [[raw_ids[item] for item in data.items[begin:end]]
                     for begin, end in zip(data.offsets[:-1], data.offsets[1:])])


def raw_ids_of(directory):
    """{raw id: ItemText} as a list of its ids, of a DataDirectory; its numbers where it has no
    items.txt."""
    if directory.items is None:
        return [str(item) for item in range(reader.get_vocab_size(directory.vocab))]
    return list(read_items(directory.items))

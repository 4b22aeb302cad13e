"""A log of clicks, on the disk or in memory -> numbers.

    log = open_table("clicks.csv", Columns("SessionId", "ItemId", "Time"))
    clicks, raw_items = read_clicks(log)

Text files are read as strings and everything is converted here, so that an error can say in which
line what stands.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple, Optional

import polars as pl

from ssr.errors import DataError
from ssr.preparation import log_lines
from ssr.preparation.text import ItemText
from ssr.preparation.times import from_seconds, parse_times, why_no_time

YOOCHOOSE_COLUMNS = ("session", "timestamp", "item", "category")
LAYOUTS = {".csv": "table", ".tsv": "table", ".parquet": "table", ".pq": "table",
           ".dat": "yoochoose"}
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


class Columns(NamedTuple):
    """The names of the columns that a click is made of."""

    session: str = "SessionId"
    item: str = "ItemId"
    time: str = "Time"


class Log(NamedTuple):
    """A log of clicks, on the disk or in memory.

    path: the file, or what errors call a table in memory
    scan: all of its columns, lazily; those of a text file are all strings
    columns: the names of those that a click is made of
    layout: "yoochoose" or "table"
    separator: what is between the fields of a text file, None for Parquet and in memory
    header: how many records come before the first click
    quoted: whether fields of a text file can be quoted
    """

    path: str
    scan: pl.LazyFrame
    columns: Columns
    layout: str
    separator: Optional[str] = None
    header: int = 0
    quoted: bool = False


# --- opening --------------------------------------------------------------------------------------


def layout_of(path) -> Optional[str]:
    """The layout that the name of a log tells, "yoochoose" or "table"; None where it does not."""
    return LAYOUTS.get(_extension(path))


def _extension(path):
    """With its dot, of what a gzip archive holds."""
    return os.path.splitext(path.lower().removesuffix(".gz"))[1]


def open_yoochoose(path) -> Log:
    """A log in the layout of yoochoose-clicks.dat, which has no header; gzip is read as well.
    Raises DataError."""
    _check_file(path)
    log_lines.check_compression(path)
    scan = pl.scan_csv(path, has_header=False, quote_char=None, glob=False,
                       schema=dict.fromkeys(YOOCHOOSE_COLUMNS, pl.String))
    return Log(path, scan, Columns("session", "item", "timestamp"), "yoochoose", ",")


def open_table(path, columns: Columns, separator=None) -> Log:
    """A log with named columns: Parquet, or text with a header, which may be compressed with gzip.

    separator: None to tell it from the name
    Raises DataError.
    """
    _check_file(path)
    if path.lower().endswith((".parquet", ".pq")):
        if separator:
            raise DataError(f"{path}: Parquet has no separator: leave --separator out")
        log = Log(path, pl.scan_parquet(path, glob=False), columns, "table")
    else:
        separator = separator or SEPARATORS.get(_extension(path))
        if separator is None:
            raise DataError(f"{path}: cannot tell the separator from the name (.csv, .tsv and "
                            ".txt, each also with .gz, and .parquet are known): give --separator")
        log_lines.check_compression(path)
        scan = pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)
        log = Log(path, scan, columns, "table", separator, header=1, quoted=True)
    _check_columns(log)
    return log


def open_frame(frame, columns: Columns, name="clicks") -> Log:
    """A log in memory. frame: a polars DataFrame or LazyFrame; name: for errors. Raises
    DataError."""
    log = Log(name, frame.lazy(), columns, "table")
    _check_columns(log)
    return log


def _check_file(path):
    if not os.path.isfile(path):
        raise DataError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}; "
                        "--input is a log of clicks")


def _schema(log):
    with _readable(log):
        return log.scan.collect_schema()


def _check_columns(log):
    schema = _schema(log)
    for what, name in log.columns._asdict().items():
        _check_column(log, schema, name, f"--{what}_column")


def _check_column(log, schema, name, flag):
    if name not in schema:
        place, check = (", line 1", " (and check --separator)") if log.separator else ("", "")
        raise DataError(f"{log.path}{place}: no column {name!r}; the columns are "
                        f"{', '.join(_shown(column) for column in schema)}: name one with {flag}"
                        f"{check}")


# --- clicks ---------------------------------------------------------------------------------------


def read_clicks(log: Log):
    """All clicks of a log, in file order.

    returns (clicks, raw_items): clicks has the columns session <uint32> and item <uint32>, both
    numbered from 0, and time <int64>, microseconds since 1970 in UTC; raw_items <str>[items] is
    the raw id of each item. Raises DataError.
    """
    schema = {} if log.separator else _schema(log)
    columns = [
        _id_column(log, log.columns.session, schema).alias("session"),
        _id_column(log, log.columns.item, schema).alias("item"),
        _time_column(log, log.columns.time, schema).alias("time"),
    ]
    with _readable(log):
        clicks = log.scan.select(columns).collect(engine="streaming")
        clicks = _without_blank_lines(log, clicks)
    if not len(clicks):
        raise DataError(f"{log.path}: the log holds no clicks")
    # One column after the other, so that only one is in memory as strings and as numbers.
    clicks = clicks.with_columns(_ranks(_as_numbers(clicks["session"])))
    items = _as_numbers(clicks["item"])
    raw_items = items.unique().sort().cast(pl.String)  # in the order of their ranks
    _check_raw_items(log, raw_items)
    return clicks.with_columns(_ranks(items)), raw_items


def _id_column(log, name, schema):
    dtype = schema.get(name, pl.String)
    if dtype.is_integer() or dtype == pl.String:
        return pl.col(name)
    if dtype in (pl.Categorical, pl.Enum):
        return pl.col(name).cast(pl.String)
    raise DataError(f"{log.path}: the column {name!r} is {dtype}; ids are integers or text")


def _time_column(log, name, schema):
    dtype = schema.get(name, pl.String)
    column = pl.col(name)
    if dtype == pl.String:
        return column.map_batches(parse_times, return_dtype=pl.Int64, is_elementwise=True)
    if dtype.is_numeric():
        return column.map_batches(from_seconds, return_dtype=pl.Int64, is_elementwise=True)
    if dtype == pl.Date or dtype == pl.Datetime:
        return column.dt.epoch("us")
    raise DataError(f"{log.path}: the column {name!r} is {dtype}; times are numbers (seconds), "
                    "text (ISO 8601) or dates")


def _without_blank_lines(log, clicks):
    """The clicks without those of blank lines. Raises DataError for the first one that lacks a
    value or has no valid time."""
    faulty = clicks.select(
        pl.any_horizontal(pl.all().is_null(), pl.selectors.string() == "").fill_null(True)
    ).to_series()
    if not faulty.any():
        return clicks
    if log.separator:
        blank = log.scan.select(pl.all_horizontal(pl.all().is_null())).collect().to_series()
        if not (faulty & ~blank).any():
            return clicks.filter(~blank)
        faulty &= ~blank
    row = faulty.arg_max()
    values = log.scan.slice(row, 1).select(*log.columns).collect().row(0)
    for name, value in zip(log.columns, values):
        if value is None or value == "":
            raise DataError(f"{_place(log, row)}: no value in the column {name!r}: "
                            "complete or remove the line")
    raise DataError(f"{_place(log, row)}: {_shown(values[2])} in the column {log.columns.time!r} "
                    f"is not a time: {why_no_time(values[2])}")


def _check_raw_items(log, raw_items):
    broken = raw_items.filter(raw_items.str.contains("[\t\r\n]"))
    if len(broken):
        item = pl.col(log.columns.item).cast(pl.String)
        row = log.scan.select((item == broken[0]).fill_null(False)).collect().to_series().arg_max()
        raise DataError(f"{_place(log, row)}: the item id {_shown(broken[0])} holds a tab or a "
                        "line break, which items.txt cannot: replace it")


def _as_numbers(ids):
    """Ids as <int64> where all are numbers and no two texts are the same number ('007' and '7'
    are): numbers sort several times faster. Otherwise as they are."""
    if ids.dtype == pl.String:
        numbers = ids.cast(pl.Int64, strict=False)
        if not numbers.has_nulls() and (numbers.cast(pl.String) == ids).all():
            return numbers
    return ids


def _ranks(ids):
    """<uint32>[clicks]: the rank of each id among all ids, from 0 on, equal ids the same."""
    return ids.rank("dense").cast(pl.UInt32) - 1


# --- text of the items ----------------------------------------------------------------------------


def check_item_columns(log: Log, text_column, field_columns) -> None:
    """Raises DataError unless the log has the columns, with something that text can be made of.

    text_column: a name or None; field_columns: names
    """
    schema = _schema(log)
    flags = [("--text_column", name) for name in [text_column] if name]
    for flag, name in flags + [("--field_columns", name) for name in field_columns]:
        _check_column(log, schema, name, flag)
        dtype = schema[name]
        usable = False
        if flag == "--field_columns":
            dtype = getattr(dtype, "inner", dtype)  # of a list
            usable = dtype.is_numeric() or dtype in (pl.Boolean, pl.Date)
        if not usable and dtype not in (pl.String, pl.Categorical, pl.Enum):
            raise DataError(f"{log.path}: the column {name!r} is {schema[name]}, which {flag} "
                            "cannot take: convert it to text")


def read_item_columns(log: Log, clicks, raw_items, text_column, field_columns) -> dict:
    """The newest text and fields of each item that has any: {raw id: ItemText}.

    clicks, raw_items: what read_clicks made of this log
    text_column, field_columns: as of check_item_columns; an empty value counts for nothing
    """
    texts, fields = {}, {}
    if text_column:
        texts = dict(_newest_values(log, clicks, text_column))
    for name in field_columns:
        for item, value in _newest_values(log, clicks, name):
            fields.setdefault(item, {})[name] = value
    items = sorted(texts.keys() | fields.keys())
    return {raw: ItemText(texts.get(item, ""), fields.get(item, {}))
            for item, raw in zip(items, raw_items.gather(items))}


def _newest_values(log, clicks, name):
    """(item, value) of each item that has a value in a column. The rows that they stand in are
    looked up first, so that no other values are ever in memory."""
    scan, schema = log.scan, _schema(log)
    if log.separator:  # without blank lines, as clicks is
        scan = scan.filter(~pl.all_horizontal(pl.all().is_null()))
    value = pl.col(name)
    if isinstance(schema[name], (pl.List, pl.Array)):
        has_value = value.is_not_null()
    else:
        has_value = value.cast(pl.String).str.strip_chars() != ""
    with _readable(log):
        has_value = scan.select(has_value.fill_null(False)).collect(engine="streaming").to_series()
        newest = clicks.select("item", "time").with_row_index("row").filter(has_value) \
            .sort("time", maintain_order=True).group_by("item").agg(pl.col("row").last())
        values = scan.select(value.alias("value")).with_row_index("row") \
            .join(newest.lazy(), on="row").select("item", "value").collect(engine="streaming")
    return values.iter_rows()


# --- errors ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _readable(log):
    """Turns what polars says of an unreadable file into a DataError, with the line where there is
    one to blame."""
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{log.path}: the log holds no clicks, it is empty") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        fault = None
        if log.separator:
            width = None if log.header else len(YOOCHOOSE_COLUMNS)
            fault = log_lines.find_fault(log.path, log.separator, log.quoted, width)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{log.path}{fault or f': cannot be read: {reason}'}") from error


def _place(log, row):
    """Where the click `row` is, from 0 on, for an error."""
    if not log.separator:
        return f"{log.path}, row {row + 1}"
    return log_lines.place(log.path, row, log.header, log.quoted)


def _shown(value, length=60):
    """A value as an error shows it: the beginning of a long one."""
    return repr(value if len(str(value)) <= length else str(value)[:length] + "...")

"""A log of clicks on disk -> numbers.

    log = open_log("clicks.csv", "table", "SessionId", "ItemId", "Time")
    clicks, raw_items = read_clicks(log)

Text files are read as strings and everything is converted here, so that an error can say in which
line what stands.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
from typing import NamedTuple, Optional

import polars as pl

from ssr.errors import DataError

YOOCHOOSE_COLUMNS = ("session", "timestamp", "item", "category")
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
MAX_SECONDS = 1e11  # the year 5138; taken as milliseconds it is 1973
ISO_FORMATS = [
    f"%Y-%m-%d{between}%H:%M{rest}"
    for between in "T "
    for rest in (":%S%.fZ", ":%S%.f%#z", ":%S%.f", "%#z", "")
] + ["%Y-%m-%d"]


class Log(NamedTuple):
    """A log of clicks on disk.

    path: the file
    scan: all of its columns, lazily; those of a text file are all strings
    session, item, time: the names of the columns of interest
    separator: what is between the fields of a text file, None for Parquet
    header: how many records come before the first click
    quote: the quote character of a text file, None where it has none
    """

    path: str
    scan: pl.LazyFrame
    session: str
    item: str
    time: str
    separator: Optional[str] = None
    header: int = 0
    quote: Optional[str] = None


def open_log(path, layout, session, item, time, separator=None) -> Log:
    """Finds out what kind of file a log is and whether it has the columns. Raises DataError."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}; "
                        "--input is a log of clicks")
    extension = os.path.splitext(path)[1].lower()
    if layout == "yoochoose":
        scan = pl.scan_csv(path, has_header=False, quote_char=None, glob=False,
                           schema={name: pl.String for name in YOOCHOOSE_COLUMNS})
        return Log(path, scan, "session", "item", "timestamp", ",")
    if extension in (".parquet", ".pq"):
        log = Log(path, pl.scan_parquet(path, glob=False), session, item, time)
    else:
        separator = separator or SEPARATORS.get(extension)
        if separator is None:
            raise DataError(f"{path}: cannot tell the separator from the name (.csv, .tsv, .txt "
                            "and .parquet are known): give --separator")
        scan = pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)
        log = Log(path, scan, session, item, time, separator, header=1, quote='"')
    with _polars_errors(log):
        schema = log.scan.collect_schema()
    for flag, name in (("session", session), ("item", item), ("time", time)):
        _check_column(log, schema, name, f"--{flag}_column")
    return log


def _check_column(log, schema, name, flag):
    if name not in schema:
        raise DataError(f"{log.path}, line 1: no column {name!r}; the columns are "
                        f"{', '.join(map(repr, schema))}: name one with {flag} "
                        "(and check --separator)")


def read_clicks(log: Log):
    """All clicks of a log, in file order.

    returns (clicks, raw_items): clicks has the columns session <uint32> and item <uint32>, both
    numbered from 0, and time <int64>, microseconds since 1970 in UTC; raw_items <str>[items] is
    the raw id of each item. Raises DataError.
    """
    with _polars_errors(log):
        schema = log.scan.collect_schema() if log.separator is None else {}
        columns = [
            _id_column(log, log.session, schema).alias("session"),
            _id_column(log, log.item, schema).alias("item"),
            _time_column(log, log.time, schema).alias("time"),
        ]
        clicks = log.scan.select(columns).collect(engine="streaming")
        clicks = _check_complete(log, clicks)
    if not len(clicks):
        raise DataError(f"{log.path}: the log holds no clicks")
    # One column after the other, so that only one is in memory as strings and as numbers.
    clicks = clicks.with_columns(_ranks(_as_numbers(clicks["session"])))
    items = _as_numbers(clicks["item"])
    raw_items = items.unique().sort().cast(pl.String)  # in the order of their ranks
    broken = raw_items.filter(raw_items.str.contains("[\t\r\n]"))
    if len(broken):
        place = _place(log, clicks["item"].eq(broken[0]).arg_max())
        raise DataError(f"{place}: the item id {broken[0]!r} holds a tab or a line break, which "
                        "items.txt cannot: replace it")
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
        return column.map_batches(_from_seconds, return_dtype=pl.Int64, is_elementwise=True)
    if dtype == pl.Date or dtype == pl.Datetime:
        return column.dt.epoch("us")
    raise DataError(f"{log.path}: the column {name!r} is {dtype}; times are numbers (seconds), "
                    "text (ISO 8601) or dates")


def parse_times(text: pl.Series) -> pl.Series:
    """Seconds since 1970 or ISO 8601, UTC unless there is an offset, as <int64> microseconds;
    null where it is neither."""
    times = _from_seconds(text)
    for iso_format in ISO_FORMATS:
        if not times.has_nulls():
            break
        parsed = text.str.to_datetime(iso_format, time_unit="us", strict=False).dt.epoch("us")
        times = times.zip_with(times.is_not_null(), parsed)
    return times


def _from_seconds(values):
    seconds = values.cast(pl.Float64, strict=False)
    in_range = seconds.is_between(-MAX_SECONDS, MAX_SECONDS)  # NaN is not
    return (seconds.zip_with(in_range, pl.Series([None], dtype=pl.Float64)) * 1e6).round() \
        .cast(pl.Int64)


def _check_complete(log, clicks):
    """The clicks without those of blank lines. Raises DataError for the first that lacks a value
    or has a time that is none."""
    faulty = clicks.select(
        pl.any_horizontal(pl.all().is_null(), pl.selectors.string() == "").fill_null(True)
    ).to_series()
    if not faulty.any():
        return clicks
    if log.separator is not None:
        blank = log.scan.select(pl.all_horizontal(pl.all().is_null())).collect().to_series()
        if not (faulty & ~blank).any():
            return clicks.filter(~blank)
        faulty &= ~blank
    row = faulty.arg_max()
    raw = log.scan.slice(row, 1).select(log.session, log.item, log.time).collect().row(0)
    for name, value in zip((log.session, log.item, log.time), raw):
        if value is None or value == "":
            raise DataError(f"{_place(log, row)}: no value in the column {name!r}: "
                            "complete or remove the line")
    raise DataError(f"{_place(log, row)}: {raw[2]!r} in the column {log.time!r} is not a time: "
                    + _time_hint(raw[2]))


def _time_hint(value):
    with contextlib.suppress(ValueError):
        if MAX_SECONDS < abs(float(value)) < math.inf:
            return ("a number is in seconds since 1970, and this looks like milliseconds or "
                    "finer: divide")
    return "it must be a number (seconds since 1970) or ISO 8601, as 2014-04-01T01:03:31.000Z"


def check_item_columns(log: Log, text_column, field_columns) -> None:
    """Raises DataError unless the log has the columns, with something that text can be made of."""
    with _polars_errors(log):
        schema = log.scan.collect_schema()
    flags = [("--text_column", name) for name in [text_column] if name]
    for flag, name in flags + [("--field_columns", name) for name in field_columns or []]:
        _check_column(log, schema, name, flag)
        dtype = schema[name]
        if flag == "--field_columns":
            dtype = getattr(dtype, "inner", dtype)  # of a list
            usable = dtype.is_numeric() or dtype in (pl.Boolean, pl.Date)
        else:
            usable = False
        if not usable and dtype not in (pl.String, pl.Categorical, pl.Enum):
            raise DataError(f"{log.path}: the column {name!r} is {schema[name]}, which {flag} "
                            "cannot take: convert it to text")


def read_item_columns(log: Log, clicks, raw_items, text_column, field_columns) -> dict:
    """The newest text and fields of each item that has any: {raw id: (text, {name: value})}.

    clicks, raw_items: what read_clicks made of this log
    text_column, field_columns: a name or None, names or None; an empty value counts for nothing
    """
    found = {}
    if text_column:
        for item, value in _newest_values(log, clicks, text_column):
            found.setdefault(item, ["", {}])[0] = value
    for name in field_columns or []:
        for item, value in _newest_values(log, clicks, name):
            found.setdefault(item, ["", {}])[1][name] = value
    items = sorted(found)
    return {raw: tuple(found[item]) for item, raw in zip(items, raw_items.gather(items))}


def _newest_values(log, clicks, name):
    """(item, value) of each item that has a value in a column. Only those values are ever in
    memory: which rows they stand in is found first."""
    scan = log.scan
    if log.separator is not None:  # without blank lines, as clicks is
        scan = scan.filter(~pl.all_horizontal(pl.all().is_null()))
    with _polars_errors(log):
        value = pl.col(name)
        kind = log.scan.collect_schema()[name]
        if isinstance(kind, (pl.List, pl.Array)):
            filled = value.is_not_null()
        else:
            filled = value.cast(pl.String).str.strip_chars() != ""
        filled = scan.select(filled.fill_null(False)).collect(engine="streaming").to_series()
        newest = clicks.select("item", "time").with_row_index("row").filter(filled) \
            .sort("time", maintain_order=True).group_by("item").agg(pl.col("row").last())
        values = scan.select(value.alias("value")).with_row_index("row") \
            .join(newest.lazy(), on="row").select("item", "value").collect(engine="streaming")
    return values.iter_rows()


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


@contextlib.contextmanager
def _polars_errors(log):
    """Turns what polars says of an unreadable file into a DataError, with the line where there is
    one to blame."""
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{log.path}: the log holds no clicks, it is empty") from error
    except pl.exceptions.PolarsError as error:
        reason = _unreadable_line(log) if log.separator is not None else None
        reason = reason or f": cannot be read: {str(error).strip().splitlines()[0]}"
        raise DataError(f"{log.path}{reason}") from error


def _records(log):
    """(number of its last line, fields) of each record of a text file, the header included; slow,
    it only runs to say what is wrong with a file."""
    with open(log.path, encoding="utf-8-sig", newline="") as f:
        quoting = csv.QUOTE_MINIMAL if log.quote else csv.QUOTE_NONE
        reader = csv.reader(f, delimiter=log.separator, quoting=quoting)
        for fields in reader:
            yield reader.line_num, fields


def _place(log, row):
    """Where the click `row` (from 0 on) is, for an error."""
    if log.separator is None:
        return f"{log.path}, row {row + 1}"
    for record, (line, _) in enumerate(_records(log)):
        if record == row + log.header:
            return f"{log.path}, line {line}"
    return f"{log.path}, record {row + 1}"


def _unreadable_line(log):
    """', line N: what is wrong' for the first line that is not UTF-8 or has too many fields."""
    with open(log.path, "rb") as f:
        for line, raw in enumerate(f, 1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                return f", line {line}: not UTF-8 ({error.reason}): convert the file"
    width = None if log.header else len(YOOCHOOSE_COLUMNS)
    for line, fields in _records(log):
        width = width or len(fields)
        if len(fields) > width or (len(fields) < width and not log.header and fields):
            return (f", line {line}: {len(fields)} fields where {width} are expected "
                    f"(separator {log.separator!r})")
    return None

"""Times of clicks -> microseconds since 1970 in UTC.

A time is a number of seconds or ISO 8601. Nothing is a time by accident: a plus sign, an
underscore, inf or a year before 0 is an error.
"""

from __future__ import annotations

import contextlib
import math

import polars as pl

MAX_SECONDS = 1e11  # the year 5138; taken as milliseconds it is 1973
ISO_FORMATS = [
    f"%Y-%m-%d{between}%H:%M{rest}"
    for between in "T "
    for rest in (":%S%.fZ", ":%S%.f%#z", ":%S%.f", "%#z", "")
] + ["%Y-%m-%d"]


def parse_times(text: pl.Series) -> pl.Series:
    """Seconds since 1970 (digits, with a fraction or an exponent if need be, a minus for before
    1970) or ISO 8601 (UTC unless there is an offset) <str>[n] -> <int64>[n], microseconds; null
    where it is neither."""
    signed = text.str.starts_with("+")
    if signed.any():
        text = text.zip_with(~signed, pl.Series([None], dtype=pl.String))
    times = from_seconds(text)
    if not times.has_nulls():
        return times
    dates = text.zip_with(~text.str.starts_with("-"), pl.Series([None], dtype=pl.String))
    for iso_format in ISO_FORMATS:
        parsed = dates.str.to_datetime(iso_format, time_unit="us", strict=False).dt.epoch("us")
        times = times.zip_with(times.is_not_null(), parsed)
        if not times.has_nulls():
            break
    return times


def from_seconds(values: pl.Series) -> pl.Series:
    """Numbers, or numbers as text -> <int64>, microseconds; null for what is no number or further
    than MAX_SECONDS from 1970."""
    seconds = values.cast(pl.Float64, strict=False)
    in_range = seconds.is_between(-MAX_SECONDS, MAX_SECONDS)  # NaN is not
    return (seconds.zip_with(in_range, pl.Series([None], dtype=pl.Float64)) * 1e6).round() \
        .cast(pl.Int64)


def why_no_time(value) -> str:
    """What is wrong with a value that parse_times or from_seconds made null of, for an error."""
    with contextlib.suppress(ValueError):
        if MAX_SECONDS < abs(float(value)) < math.inf:
            return ("a number is in seconds since 1970, and this looks like milliseconds or "
                    "finer: divide")
    return ("it must be a number (seconds since 1970, without plus sign or underscores) or "
            "ISO 8601, as 2014-04-01T01:03:31.000Z")

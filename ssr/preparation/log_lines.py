"""The lines of a click log as a person sees them, to say where in it something is wrong.

Slow, and only run for an error. A record can span lines: a line break within quotes belongs to it.
"""

from __future__ import annotations

import gzip
import itertools
import re
import zlib

from ssr.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
OTHER_COMPRESSION = re.compile(
    rb"(?P<zstd>\x28\xb5\x2f\xfd)|(?P<bzip2>BZh[1-9]1AY)|(?P<xz>\xfd7zXZ)|(?P<zip>PK\x03\x04)"
    rb"|(?P<zlib>x[\x01\x9c\xda])")
QUOTED = re.compile(rb'"[^"]*"')


def check_compression(path) -> None:
    """Raises DataError where a text file is compressed otherwise than with gzip, or cannot be
    read."""
    try:
        with open(path, "rb") as f:
            match = OTHER_COMPRESSION.match(f.read(8))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if match:
        raise DataError(f"{path}: compressed with {match.lastgroup}, and only gzip is read: "
                        "decompress it")


def place(path, row, header, quoted) -> str:
    """Where the click `row` is, for an error: "PATH, line N".

    row: from 0 on, empty lines included, as polars counts
    header: how many records come before the first click
    quoted: whether fields can be quoted
    """
    record = next(itertools.islice(_records(path, quoted), row + header, None), None)
    return f"{path}, line {record[0]}" if record else f"{path}, record {row + 1}"


def find_fault(path, separator, quoted, width=None):
    """What is wrong with the first line that cannot be read: ", line N: not UTF-8 ...", None if
    there is no such line.

    width: the number of fields of each line; None where the first line has the most
    Raises DataError where the file is damaged gzip.
    """
    for line, record in _records(path, quoted):
        try:
            record.decode("utf-8")
        except UnicodeDecodeError as error:
            line -= record.count(b"\n", error.start)
            return f", line {line}: not UTF-8 ({error.reason}): convert the file"
        begin = line - record.count(b"\n")
        if quoted and not _well_quoted(record, separator.encode()):
            return (f", line {begin}: a quote within a field: put the field in quotes, and write "
                    "each quote in it twice")
        plain = QUOTED.sub(b"", record) if quoted else record
        fields = plain.count(separator.encode()) + 1
        too_few = width and record and fields < width
        width = width or fields
        if fields > width or too_few:
            return (f", line {begin}: {fields} fields where {width} are expected "
                    f"(separator {separator!r})")
    return None


def _well_quoted(record, separator):
    """Whether quotes stand around fields only; two in a row are one in a quoted field."""
    if record.count(b'"') % 2:
        return False
    begins = (match.start() for match in QUOTED.finditer(record))
    return all(record[at - 1:at] in (b"", separator, b'"') for at in begins)


def _records(path, quoted):
    """(number of its last line, bytes without the line's end) of each record. Empty ones count,
    but for those before the header, which polars skips."""
    parts, open_quote, begun = [], False, not quoted
    for line, content in enumerate(_lines(path), 1):
        if line == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")
        parts.append(content)
        open_quote ^= quoted and content.count(b'"') % 2 == 1
        if open_quote:
            continue
        record, parts = b"".join(parts).rstrip(b"\r\n"), []
        begun = begun or bool(record)
        if begun:
            yield line, record
    if parts:  # a quote is open to the end
        yield line, b"".join(parts).rstrip(b"\r\n")


def _lines(path):
    try:
        with open(path, "rb") as f:
            compressed = f.read(2) == GZIP_MAGIC
        with (gzip.open if compressed else open)(path, "rb") as f:
            yield from f
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}" + compressed * ": the archive is damaged") \
            from error

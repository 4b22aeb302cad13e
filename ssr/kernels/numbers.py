"""Files of numbers, lines of different lengths -> two arrays, parsed a block at a time and cached.

The values of all lines lie end to end, beside the places where each line begins: 4 or 8 bytes a
number and 8 a line in memory, and no Python object for any of them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from typing import NamedTuple

import numpy as np

from ssr.errors import DataError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 4 << 20  # of text parsed at a time: the working set of the parser, not of the data
CACHE_BYTES = 16 << 20  # text of this size takes a second to parse: from here on it is cached
CACHE_VERSION = 2
MAX_DIGITS = 18  # what int64 surely holds

# What each byte of a file is. Everything that is no digit and no white space is an error.
_DIGIT, _SPACE, _NEWLINE, _OTHER = range(4)
_KIND = np.full(256, _OTHER, np.uint8)
_KIND[ord("0"): ord("9") + 1] = _DIGIT
_KIND[np.frombuffer(b" \t\r\v\f", np.uint8)] = _SPACE
_KIND[ord("\n")] = _NEWLINE


class Numbers(NamedTuple):
    """What the numbers of a file are, for messages.

    name: of one, as "item id"; article: "a" or "an"
    source: where they come from, as "preprocess.py makes them from raw ids"
    counted: what there are as many of as the limit says, as "items"
    counted_in: the file that says how many
    """

    name: str
    article: str
    source: str
    counted: str = ""
    counted_in: str = ""


class Lines(NamedTuple):
    """The lines of the files of a directory.

    values: all numbers, end to end
    offsets: <int64>[lines + 1], line i is values[offsets[i]:offsets[i + 1]]
    short: how many lines held fewer than two numbers; they are left out
    """

    values: np.ndarray
    offsets: np.ndarray
    short: int


def load_lines(paths, numbers, limit, dtype) -> Lines:
    """Reads files of one directory, whose lines are numbers below limit with white space between.

    paths: of the files, in the order in which their lines are to be
    Large ones are cached in .cache/ beside them and memory-mapped from there. Raises DataError,
    which names file, line and token, for anything that is not such a line.
    """
    directory = os.path.dirname(paths[0])
    stamp = _stamp(paths, dtype)
    lines = _from_cache(directory, stamp, limit)
    if lines is None:
        lines = _from_text(paths, numbers, limit, dtype)
        if sum(size for _, size, _ in stamp["files"]) >= CACHE_BYTES:
            _to_cache(directory, stamp, lines)
    return lines


def _from_text(paths, numbers, limit, dtype):
    parts, counts = [np.empty(0, dtype)], [np.empty(0, np.int32)]
    short = 0
    for path in paths:
        for values, lengths in parse_file(path, numbers, limit):
            keep = lengths >= 2
            short += int(len(keep) - keep.sum())
            parts.append(values[np.repeat(keep, lengths)].astype(dtype))
            counts.append(lengths[keep].astype(np.int32))
    values = np.concatenate(parts)
    del parts
    offsets = np.zeros(sum(map(len, counts)) + 1, np.int64)
    np.cumsum(np.concatenate(counts), out=offsets[1:])
    return Lines(values, offsets, short)


# --- parsing --------------------------------------------------------------------------------------


def parse_file(path, numbers, limit):
    """Yields (values <int64>[n], lengths <int64>[lines]) of one block of whole lines after the
    other. numbers: Numbers. Raises DataError."""
    line = 1
    try:
        with open(path, "rb") as f:
            rest = f.read(3)
            rest = b"" if rest == b"\xef\xbb\xbf" else rest  # the UTF-8 byte order mark
            while True:
                read = f.read(BLOCK_BYTES)
                block = rest + (read or b"\n")
                cut = block.rfind(b"\n") + 1
                block, rest = block[:cut], block[cut:]
                if cut:
                    values, lengths = _parse_block(block, path, line, numbers, limit)
                    # The newline added at the end of the file is not a line of it.
                    yield values, lengths if read or lengths[-1] else lengths[:-1]
                    line += len(lengths)
                if not read:
                    return
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _parse_block(block, path, first_line, numbers, limit):
    """All digits of a block at once: where tokens begin and end, then a place value at a time."""
    data = np.frombuffer(block, np.uint8)
    kind = _KIND[data]
    if (kind == _OTHER).any():
        token, line = _token_at(block, int(np.argmax(kind == _OTHER)), first_line)
        raise _not_a_number(token, f"{path}, line {line}", numbers)
    edges = np.diff((kind == _DIGIT).view(np.int8), prepend=np.int8(0))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    widths = ends - starts
    values = np.zeros(len(starts), np.int64)
    rest = np.arange(len(starts))
    for place in range(min(int(widths.max(initial=0)), MAX_DIGITS)):
        values[rest] += (data[ends[rest] - 1 - place] - np.int64(ord("0"))) * 10 ** place
        rest = rest[widths[rest] > place + 1]
    wrong = (values >= limit) | (widths > MAX_DIGITS)
    if wrong.any():
        token, line = _token_at(block, int(starts[np.argmax(wrong)]), first_line)
        raise _too_large(token, f"{path}, line {line}", numbers, limit)
    before = np.searchsorted(starts, np.flatnonzero(kind == _NEWLINE))
    return values, np.diff(before, prepend=0)


def _token_at(block, at, first_line):
    """The whole token around a position and the line it stands in."""
    line_start = block.rfind(b"\n", 0, at) + 1
    head = block[line_start:at].split(None)
    begin = at if not head or block[at - 1: at].isspace() else at - len(head[-1])
    return block[begin:].split(None, 1)[0], first_line + block.count(b"\n", 0, at)


def _not_a_number(token, where, numbers):
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return DataError(f"{where}: not UTF-8 text; a line holds {numbers.name}s with white space "
                         "between")
    is_negative = text[0] == "-" and text[1:].isdigit()
    what = f"a negative {numbers.name}" if is_negative else \
        f"not {numbers.article} {numbers.name}"
    return DataError(f"{where}: {text[:40]!r} is {what}; {numbers.name}s are numbers from 0 on "
                     f"({numbers.source})")


def _too_large(token, where, numbers, limit):
    shown = token[:40].decode()
    if not numbers.counted:
        return DataError(f"{where}: {numbers.name} {shown} is too large ({numbers.source})")
    return DataError(f"{where}: {numbers.name} {shown} is not below the number of "
                     f"{numbers.counted}, {limit}; is {numbers.counted_in} that of this data?")


# --- cache ----------------------------------------------------------------------------------------


def _stamp(paths, dtype):
    """What a cache was made from; any difference makes it worthless."""
    stats = [(os.path.basename(path), os.stat(path)) for path in paths]
    return {"version": CACHE_VERSION, "dtype": np.dtype(dtype).name,
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]}


def _from_cache(directory, stamp, limit):
    cache = os.path.join(directory, ".cache")
    try:
        with open(os.path.join(cache, "source.json"), encoding="utf-8") as f:
            source = json.load(f)
        if source["stamp"] != stamp or source["max"] >= limit:
            return None  # in the second case the text says in which line
        arrays = [np.load(os.path.join(cache, name), mmap_mode="r")
                  for name in ("values.npy", "offsets.npy")]
        return Lines(*arrays, source["short"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _to_cache(directory, stamp, lines):
    """Best effort: a directory that cannot be written is parsed again the next time."""
    cache = os.path.join(directory, ".cache")
    temporary = f"{cache}.{os.getpid()}"
    try:
        os.mkdir(temporary)
        np.save(os.path.join(temporary, "values.npy"), lines.values)
        np.save(os.path.join(temporary, "offsets.npy"), lines.offsets)
        source = {"stamp": stamp, "short": lines.short, "max": int(lines.values.max(initial=0))}
        with open(os.path.join(temporary, "source.json"), "w", encoding="utf-8") as f:
            json.dump(source, f)
        shutil.rmtree(cache, ignore_errors=True)
        os.rename(temporary, cache)
    except OSError as error:
        logger.info("%s: not cached: %s", directory, error.strerror or error)
        shutil.rmtree(temporary, ignore_errors=True)

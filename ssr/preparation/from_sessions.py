"""The road from files of sessions with raw ids to what training reads: only the ids change."""

from __future__ import annotations

import itertools
import re
from typing import Callable, Mapping, Sequence

from ssr.errors import DataError
from ssr.preparation.filtering import Stage
from ssr.preparation.numbering import NO_EARLIER_RUN, EarlierRun, ItemNumbers, PartNumbers
from ssr.preparation.output import Output, sessions_name, times_name
from ssr.preparation.writing import (
    TextSettings,
    Written,
    has_tokens,
    read_catalogue,
    write_items,
)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHOLE_SECONDS = re.compile(rb"(?:[0-9]{1,18}(?: |$))*")  # 18 digits always fit into int64


def prepare_sessions(files: Mapping[str, Sequence[str]], times: Mapping[str, Sequence[str]],
                     output_dir, settings: TextSettings, *,
                     earlier: EarlierRun = NO_EARLIER_RUN,
                     on_stage: Callable[[Stage], None] = lambda stage: None) -> Written:
    """Numbers the items of session files and writes the output directory, all of it or nothing.

    files: {part: paths}, a session a line, raw ids with white space between; the parts, of which
        "train" must be one, in the order of filtering.PARTS
    times: {part: paths} of the times of their clicks; a file of times belongs to the file of
        sessions in its place and has the same shape
    earlier: the run whose items keep their ids
    on_stage: called after each part
    Raises DataError and SetupError.
    """
    inputs = [path for paths in (*files.values(), *times.values()) for path in paths]
    inputs += [settings.items_path] if settings.items_path else []
    numbers = ItemNumbers(earlier.raw_ids)
    with Output(output_dir, list(files), list(times), has_tokens(settings, earlier),
                inputs) as output:
        # Small files first: what is wrong with them is told before the work.
        catalogue = read_catalogue(settings.items_path)
        for part, paths in files.items():
            on_stage(_write_part(output, part, paths, numbers))
            if part == "train":
                num_train = len(numbers)
        for part, paths in times.items():
            with output.create(times_name(part)) as out:
                for path, sessions_path in zip(paths, files[part]):
                    copy_times(path, sessions_path, out)
        written = write_items(output, numbers.raw_ids(), num_train, catalogue, settings, earlier)
        output.commit()
    return written


def _write_part(output, part, paths, numbers):
    part_numbers = PartNumbers(numbers)
    with output.create(sessions_name(part)) as out:
        counts = [convert_sessions(path, part_numbers, out) for path in paths]
    clicks, sessions = map(sum, zip(*counts))
    if not clicks:
        raise DataError(f"{', '.join(paths)}: no ids; a session is a line of ids with white space "
                        "between")
    return Stage(part, clicks, sessions, len(part_numbers))


def convert_sessions(path, numbers, out):
    """Writes the lines of a session file with numbers for raw ids.

    numbers: {raw id: number}, both as bytes; out: a file open for bytes
    returns (clicks, sessions); raises DataError
    """
    clicks = sessions = 0
    for line, content in _lines(path):
        raw_ids = content.split()
        try:
            out.write(b" ".join(map(numbers.__getitem__, raw_ids)) + b"\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {line}: {error.object[:40]!r} is not UTF-8: convert "
                            "the file") from error
        clicks += len(raw_ids)
        sessions += bool(raw_ids)
    return clicks, sessions


def copy_times(path, sessions_path, out):
    """Writes the lines of a file of times, which must have the shape of a session file. Raises
    DataError."""
    pairs = itertools.zip_longest(_lines(path), _lines(sessions_path), fillvalue=(0, None))
    for (line, content), (session_line, session) in pairs:
        if content is None or session is None:
            shorter, longer = (path, sessions_path) if content is None else (sessions_path, path)
            raise DataError(f"{shorter} ends before line {line or session_line} of {longer}: a "
                            "file of times has a line for each line of sessions")
        times = content.split()
        content = b" ".join(times)
        if not WHOLE_SECONDS.fullmatch(content):
            raise DataError(f"{path}, line {line}: {_faulty_time(times)!r} is not a time: it must "
                            "be whole seconds, digits alone")
        clicks = len(session.split())
        if len(times) != clicks:
            raise DataError(f"{path}, line {line}: {len(times)} times, and the same line of "
                            f"{sessions_path} has {clicks} clicks")
        seconds = list(map(int, times))
        if seconds != sorted(seconds):
            raise DataError(f"{path}, line {line}: the times fall; the clicks of a session are in "
                            "order of time")
        out.write(content + b"\n")


def _faulty_time(times):
    faulty = next(time for time in times if not WHOLE_SECONDS.fullmatch(time))
    return faulty.decode(errors="replace")[:40]


def _lines(path):
    """(number, line) of a file, as bytes; without a byte order mark. Raises DataError."""
    try:
        with open(path, "rb") as f:
            for line, content in enumerate(f, 1):
                yield line, content.removeprefix(BYTE_ORDER_MARK) if line == 1 else content
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error

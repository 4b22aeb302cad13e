"""The road from files of sessions with raw ids to what training reads: only the ids change."""

from __future__ import annotations

import itertools
import re
from typing import Callable, Mapping, Sequence

from ssr.data_directory import Description, PartSize, sessions_name, times_name
from ssr.errors import DataError
from ssr.preparation.filtering import Stage
from ssr.preparation.numbering import NO_EARLIER_RUN, EarlierRun, ItemNumbers, PartNumbers
from ssr.preparation.output import Output
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
        "train" must be one, in the order of data_directory.PARTS
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
        catalogue = read_catalogue(settings)
        sizes = {}
        for part, paths in files.items():
            stage = _write_part(output, part, paths, numbers)
            sizes[part] = PartSize(stage.sessions, stage.clicks)
            on_stage(stage)
            if part == "train":
                num_train = len(numbers)
        for part, paths in times.items():
            with output.create(times_name(part)) as out:
                for path, sessions_path in zip(paths, files[part]):
                    copy_times(path, sessions_path, out)
        written = write_items(output, numbers.raw_ids(), num_train, catalogue, settings, earlier)
        output.commit(Description(written.items, written.num_tokens, "sessions", None, sizes,
                                  output.files))
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
    number_of = numbers.__getitem__
    with _open(path) as f:
        for line, content in enumerate(f, 1):
            raw_ids = content.split()
            try:
                out.write(b" ".join(map(number_of, raw_ids)) + b"\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {line}: {error.object[:40]!r} is not UTF-8: "
                                "convert the file") from error
            clicks += len(raw_ids)
            sessions += bool(raw_ids)
    return clicks, sessions


def copy_times(path, sessions_path, out):
    """Writes the lines of a file of times, which must have the shape of a session file. Raises
    DataError."""
    with _open(path) as times_file, _open(sessions_path) as sessions_file:
        pairs = itertools.zip_longest(times_file, sessions_file)
        for line, (content, session) in enumerate(pairs, 1):
            if content is None or session is None:
                shorter, longer = (path, sessions_path)[::1 if content is None else -1]
                raise DataError(f"{shorter} ends before line {line} of {longer}: a file of times "
                                "has a line for each line of sessions")
            times = content.split()
            _check_times(times, len(session.split()), f"{path}, line {line}", sessions_path)
            out.write(b" ".join(times) + b"\n")


def _check_times(times, clicks, place, sessions_path):
    """Raises DataError unless these are the times of a session of so many clicks."""
    if not WHOLE_SECONDS.fullmatch(b" ".join(times)):
        raise DataError(f"{place}: {_faulty_time(times)!r} is not a time: it must be whole "
                        "seconds, digits alone")
    if len(times) != clicks:
        raise DataError(f"{place}: {len(times)} times, and the same line of {sessions_path} has "
                        f"{clicks} clicks")
    seconds = list(map(int, times))
    if seconds != sorted(seconds):
        raise DataError(f"{place}: the times fall; the clicks of a session are in order of time")


def _faulty_time(times):
    faulty = next(time for time in times if not WHOLE_SECONDS.fullmatch(time))
    return faulty.decode(errors="replace")[:40]


def _open(path):
    """A file open for bytes, behind a byte order mark. Raises DataError."""
    try:
        f = open(path, "rb")  # noqa: SIM115  the caller closes it
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if f.peek(len(BYTE_ORDER_MARK)).startswith(BYTE_ORDER_MARK):
        f.read(len(BYTE_ORDER_MARK))
    return f

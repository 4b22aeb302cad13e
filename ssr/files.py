"""Reading and writing files: a fault is told in one line, and nothing is left half-written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os

from ssr.errors import DataError, SetupError


def write_atomically(path, write):
    """Calls write(temporary path), flushes that file to the disk and renames it to path: whoever
    finds the file finds all of it. Raises SetupError."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        write(temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)  # there only if something went wrong


def write_json(path, value):
    """value as indented JSON, at once or not at all. Raises SetupError."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path, text):
    """A file of UTF-8 text, at once or not at all. Raises SetupError."""
    def write(name):
        with open(name, "w", encoding="utf-8") as f:
            f.write(text)
    write_atomically(path, write)


def check_writable(path, flag):
    """Raises SetupError where the file could not be written in the end: to be asked before the work
    whose result it is to hold. flag: the one that names it"""
    directory = os.path.dirname(os.path.abspath(path))
    probe = os.path.join(directory, f".probe.{os.getpid()}")
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(None, "it is a directory")
        with open(probe, "wb"):
            pass
        os.remove(probe)
    except OSError as error:
        raise SetupError(f"{flag}: cannot write {path}: {error.strerror}") from error


def numbered_lines(path, what):
    """(number, line without its end) of each line of UTF-8 text, of standard input for "-".

    what: what the file holds, for the error where there is none
    Raises DataError.
    """
    source, path = 0 if path == "-" else path, shown_name(path)
    try:
        with open(source, "rb", closefd=source != 0) as f:
            for line, raw in enumerate(f, 1):
                try:
                    text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason}): convert "
                                    "the file") from error
                yield line, text.rstrip("\r\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; {what}") from error


def shown_name(path):
    """A path as messages show it."""
    return "standard input" if path == "-" else path


def file_digest(path, before=b""):
    """The SHA-256 of a file, 64 hexadecimal digits. before: bytes that are digested before it"""
    digest = hashlib.sha256(before)
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def items_digest(path):
    """The SHA-256 of the raw ids in a file whose line i begins with the raw id of item i, before a
    tab: 64 hexadecimal digits, None where there is no such file. Texts may change, the order of the
    items may not. Raises DataError."""
    if not os.path.exists(path):
        return None
    digest = hashlib.sha256()
    for id in read_raw_ids(path):
        digest.update(id.encode() + b"\n")
    return digest.hexdigest()


def read_raw_ids(path):
    """Yields the raw ids of a file of items. Raises DataError."""
    for _, line in numbered_lines(path, "line i begins with the raw id of item i"):
        yield line.split("\t", 1)[0]


def files_of(paths, suffix=""):
    """The files at paths, in order: of a directory all that it holds, in the order of their names,
    but for hidden ones and those that do not end with suffix. Raises DataError."""
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise DataError(f"cannot read the directory {path}: {error.strerror}") from error
        inside = [os.path.join(path, name) for name in names
                  if not name.startswith(".") and name.endswith(suffix)]
        inside = [file for file in inside if not os.path.isdir(file)]
        if not inside:
            raise DataError(f"the directory {path} holds no files"
                            + (f" whose names end with {suffix}" if suffix else ""))
        files += inside
    return files

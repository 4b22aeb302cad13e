"""The directory of data that preprocess.py writes and the other commands read.

    directory = DataDirectory.open("data")
    directory.sessions("train")      # "data/train_data", None where that part is not there
    directory.description.items      # 500, from data.json

preprocess.py writes data.json last, so that a directory with a complete one is complete itself. It
says what is there and holds a digest of each file. A directory of the same layout without it opens
as well; nothing is checked then.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple, Optional

from ssr.errors import DataError
from ssr.files import file_digest, write_json

PARTS = ("train", "valid", "test")
SESSIONS_FILE = "sessions.txt"
IMPRESSIONS_FILE = "impressions.txt"
VOCAB_FILE, ITEMS_FILE = "vocab.txt", "items.txt"
ITEM_TOKENS_FILE, TOKENS_FILE, CUTTING_FILE = "item_tokens.txt", "tokens.txt", "tokens.json"
ITEM_VECTORS_FILE = "item_vectors.npy"
TOKEN_FILES = (ITEM_TOKENS_FILE, TOKENS_FILE, CUTTING_FILE)
DESCRIPTION_FILE = "data.json"

FORMAT = 1  # of data.json
DIGESTED_BYTES = 1 << 24  # larger files are compared by their size alone when a directory is opened


def sessions_name(part):
    """The file of a part's sessions, below the directory."""
    return os.path.join(f"{part}_data", SESSIONS_FILE)


def times_name(part):
    """The file of the times of a part's clicks, below the directory."""
    return os.path.join(f"{part}_times", SESSIONS_FILE)


def impressions_name(part):
    """The file of a part's impressions, below the directory."""
    return os.path.join(f"{part}_impressions", IMPRESSIONS_FILE)


# --- data.json ------------------------------------------------------------------------------------


class PartSize(NamedTuple):
    """How much a part holds."""

    sessions: int
    clicks: int


class Description(NamedTuple):
    """What data.json says.

    items: V, their number
    tokens: T, the number of tokens; None for items without text
    layout: of what the directory was made from: "yoochoose", "table", "sessions", "mind", "adressa"
        or "g1"
    time_zone: in which times without an offset were read, "UTC"; None where none were read
    parts: {part: PartSize}
    files: {name below the directory: (bytes, SHA-256 as hexadecimal digits)}
    """

    items: int
    tokens: Optional[int]
    layout: str
    time_zone: Optional[str]
    parts: dict
    files: dict


def mark_incomplete(directory) -> None:
    """Makes data.json say that the files beside it are being replaced, until write_description.
    Raises SetupError."""
    write_json(os.path.join(directory, DESCRIPTION_FILE), {"format": FORMAT, "complete": False})


def write_description(directory, description: Description) -> None:
    """Writes data.json, with which a directory is complete. Raises SetupError."""
    fields = description._asdict()
    fields["parts"] = {part: size._asdict() for part, size in description.parts.items()}
    fields["files"] = {name.replace(os.sep, "/"): {"bytes": size, "sha256": digest}
                       for name, (size, digest) in description.files.items()}
    write_json(os.path.join(directory, DESCRIPTION_FILE),
               {"format": FORMAT, "complete": True, **fields})


def read_description(directory) -> Optional[Description]:
    """What data.json says, None where there is none. Raises DataError."""
    path = os.path.join(directory, DESCRIPTION_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            values = json.load(f)
        version, complete = values["format"], values["complete"]
        if version == FORMAT and complete is True:
            return _description(values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: run preprocess.py again") from error
    if version != FORMAT:
        raise DataError(f"{path} has format {str(version)[:40]}, and format {FORMAT} is known: "
                        "run preprocess.py again")
    raise DataError(f"{directory} is incomplete: preprocess.py is replacing its files, or was "
                    "stopped while it did; run it again")


def _description(values):
    """Raises one of ValueError, KeyError, TypeError, AttributeError where the values are not those
    of a Description."""
    parts = {part: PartSize(_count(size["sessions"]), _count(size["clicks"]))
             for part, size in values["parts"].items()}
    files = {os.path.join(*_names(name)): (_count(file["bytes"]), _text(file["sha256"]))
             for name, file in values["files"].items()}
    tokens, time_zone = values["tokens"], values["time_zone"]
    if not parts.keys() <= {*PARTS}:
        raise ValueError("unknown parts")
    return Description(_count(values["items"]), None if tokens is None else _count(tokens),
                       _text(values["layout"]), None if time_zone is None else _text(time_zone),
                       parts, files)


def _count(value):
    if type(value) is not int or value < 0:
        raise ValueError("not a number of things")
    return value


def _text(value):
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _names(path):
    """The names in a path with slashes that stays below the directory."""
    names = path.split("/")
    if {"", ".", ".."} & {*names} or "\0" in path:
        raise ValueError("not a path below the directory")
    return names


# --- the directory --------------------------------------------------------------------------------


class DataDirectory:
    """Where the files of a data set are. Paths are None for what is not there.

    path: of the directory
    description: Description, None where there is no data.json
    """

    def __init__(self, path, description=None):
        self.path = path
        self.description = description

    @classmethod
    def open(cls, path) -> DataDirectory:
        """Raises DataError where there is no such directory, and where it is not what its data.json
        says: incomplete, or with a file missing, added or changed."""
        if not os.path.isdir(path):
            raise DataError(f"{path}: {'not a' if os.path.exists(path) else 'no such'} directory; "
                            "preprocess.py makes one of data")
        directory = cls(path, read_description(path))
        if directory.description is not None:
            try:
                directory._check_files()
            except OSError as error:
                raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        return directory

    def sessions(self, part):
        """The directory of the sessions of "train", "valid" or "test"."""
        return self.find(f"{part}_data")

    def times(self, part):
        """The directory of the times of the clicks of sessions(part)."""
        return self.find(f"{part}_times")

    def impressions(self, part):
        """The directory of what was shown to users and what they clicked."""
        return self.find(f"{part}_impressions")

    @property
    def vocab(self):
        """The file whose first line is the number of items."""
        return self.find(VOCAB_FILE)

    @property
    def items(self):
        """The file of raw ids and texts, line i those of item i."""
        return self.find(ITEMS_FILE)

    @property
    def item_tokens(self):
        """The file of token ids, line i those of item i."""
        return self.find(ITEM_TOKENS_FILE)

    @property
    def item_vectors(self):
        """The file of pretrained vectors, row i that of item i, which whoever has such adds."""
        return self.find(ITEM_VECTORS_FILE)

    @property
    def tokens(self):
        """The file of tokens, line i is token i."""
        return self.find(TOKENS_FILE)

    def find(self, name):
        """The path of a file or directory of the layout, as "train_data" or "vocab.txt"."""
        path = os.path.join(self.path, name)
        if _holds_anything(path):
            return path
        # The repository is such a directory, and keeps part of its sample one level below.
        below = os.path.join(self.path, "sample", name)
        return below if self.description is None and _holds_anything(below) else None

    def _check_files(self):
        for name, (size, digest) in self.description.files.items():
            path = os.path.join(self.path, name)
            if not os.path.isfile(path):
                raise self._unlike(f"{path} is missing")
            if os.path.getsize(path) != size or (size <= DIGESTED_BYTES
                                                 and file_digest(path) != digest):
                raise self._unlike(f"{path} has changed")
        for part in self.description.parts:  # all files of a directory of sessions are read
            folder = os.path.dirname(sessions_name(part))
            for name in _visible(os.path.join(self.path, folder)):
                if os.path.join(folder, name) not in self.description.files:
                    raise self._unlike(f"{os.path.join(self.path, folder, name)} has been added")

    def _unlike(self, what):
        return DataError(f"{what} since preprocess.py wrote {self.path}: run it again, or remove "
                         f"{os.path.join(self.path, DESCRIPTION_FILE)} to use the files as they "
                         "are")


def _holds_anything(path):
    """Whether it is a file, or a directory that holds more than the cache of the reader: a run that
    has no validation leaves the directory that an earlier one had for it."""
    return os.path.isfile(path) or os.path.isdir(path) and bool(_visible(path))


def _visible(directory):
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


# --- the flag -------------------------------------------------------------------------------------


def add_data_dir(parser, help="") -> None:
    """Adds --data_dir to a Parser. help: what a command takes from the directory, if it is not
    clear"""
    parser.add_argument("--data_dir", metavar="DIR", help="directory that preprocess.py wrote: "
                        "paths that are not given are those in it" + help)


def take_from_data_dir(args, **names) -> None:
    """Sets the flags of paths that were not given to what --data_dir holds, and args.from_data_dir
    to {flag: path} of these. Raises DataError where that directory cannot be used.

    names: {flag: name of the file or directory in --data_dir}. A flag without a default stays None
    where there is no such file; one with a default names it nevertheless, so that reading it fails
    as usual.
    """
    args.from_data_dir = {}
    if args.data_dir is None:
        return
    directory = DataDirectory.open(args.data_dir)
    for flag, name in names.items():
        path = directory.find(name)
        if path is None and getattr(args, flag) is not None:
            path = os.path.join(directory.path, name)
        if flag not in args.given and path is not None:
            args.from_data_dir[flag] = path
    vars(args).update(args.from_data_dir)

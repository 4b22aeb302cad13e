"""The directory that preprocessing writes to: all files appear at the end, or none; and where it is
stopped while they appear, data.json says so."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

from ssr.data_directory import (
    DESCRIPTION_FILE,
    ITEM_VECTORS_FILE,
    ITEMS_FILE,
    PARTS,
    TOKEN_FILES,
    VOCAB_FILE,
    Description,
    impressions_name,
    mark_incomplete,
    sessions_name,
    times_name,
    write_description,
)
from ssr.errors import SetupError
from ssr.files import file_digest


class Output:
    """The files of an output directory.

        with Output("data", ["train", "test"], inputs=["clicks.csv"]) as output:
            with output.create("vocab.txt") as f:
                f.write(b"500\\n")
            ...
            output.commit(Description(items=500, ..., files=output.files))

    They are written to a temporary directory inside of it, and commit() moves them to their names.
    Without commit() they are removed, and so is the output directory if it did not exist before.
    files: {name: (bytes, SHA-256)} of those that are written
    All methods raise SetupError.
    """

    def __init__(self, directory, parts, timed_parts=(), tokens=False, inputs=(), shown_parts=(),
                 vectors=False):
        """parts: those with sessions; timed_parts, shown_parts: those with times and impressions,
        too; tokens, vectors: whether there will be TOKEN_FILES, ITEM_VECTORS_FILE; inputs: paths of
        files that must not be overwritten"""
        self.directory = directory
        self.files = {}
        self.names = [*map(sessions_name, parts), *map(times_name, timed_parts),
                      *map(impressions_name, shown_parts), ITEMS_FILE, VOCAB_FILE,
                      *(TOKEN_FILES if tokens else ()), *[ITEM_VECTORS_FILE] * vectors]
        # Files of an earlier run that this one does not replace have ids of another vocabulary.
        possible = [*TOKEN_FILES, *map(sessions_name, PARTS), *map(times_name, PARTS),
                    *map(impressions_name, PARTS)]
        self.outdated = [name for name in possible if name not in self.names]
        with self._writing():
            self._check_vectors()
            self._check_inputs(inputs)
            self._check_folders([*map(sessions_name, parts), *map(impressions_name, shown_parts)])

    def _check_vectors(self):
        path = os.path.join(self.directory, ITEM_VECTORS_FILE)
        if os.path.exists(path) and ITEM_VECTORS_FILE not in self.names:
            raise SetupError(f"{path} is of the items that are there now, in their order: move it "
                             "away, and make it anew for the new items.txt")

    def _check_inputs(self, inputs):
        for name in [*self.names, *self.outdated, DESCRIPTION_FILE]:
            path = os.path.join(self.directory, name)
            if os.path.isdir(path):
                raise SetupError(f"{path} is a directory, and preprocess.py has a file there: "
                                 "choose another --output_dir")
            for source in inputs:
                if os.path.exists(path) and os.path.exists(source) \
                        and os.path.samefile(path, source):
                    raise SetupError(f"{source}: this input would be replaced by the output: "
                                     "choose another --output_dir")

    def _check_folders(self, names):
        for name in names:
            folder, file = os.path.split(os.path.join(self.directory, name))
            if not os.path.isdir(folder):
                continue
            others = sorted(other for other in os.listdir(folder)
                            if not other.startswith(".") and other != file)
            if others:
                raise SetupError(f"{folder} holds other files ({', '.join(others[:3])}), which "
                                 "would be read together with the new ones: move them away or "
                                 "choose another --output_dir")

    def __enter__(self):
        self.existed = os.path.isdir(self.directory)
        with self._writing():
            os.makedirs(self.directory, exist_ok=True)
            self.temporary = tempfile.mkdtemp(prefix=".preprocess-", dir=self.directory)
        return self

    def __exit__(self, *exception):
        shutil.rmtree(self.temporary, ignore_errors=True)
        if exception[0] is not None and not self.existed:
            with contextlib.suppress(OSError):  # not empty: somebody else wrote there
                os.rmdir(self.directory)

    @contextlib.contextmanager
    def create(self, name):
        """Opens one of self.names to write bytes to; it is on the disk when the block ends."""
        with self._writing(), open(self._temporary_path(name), "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
            self.files[name] = os.path.getsize(f.name), file_digest(f.name)

    def commit(self, description: Description):
        """Moves all files to their names, in place of those of an earlier run. While this lasts
        data.json says that they do not belong together, in the end what they are."""
        with self._writing():
            for name in self.names:
                os.makedirs(os.path.dirname(os.path.join(self.directory, name)), exist_ok=True)
            mark_incomplete(self.directory)
            for name in self.outdated:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.remove(os.path.join(self.directory, name))
            for name in self.names:
                os.replace(self._temporary_path(name), os.path.join(self.directory, name))
            write_description(self.directory, description)

    def _temporary_path(self, name):
        return os.path.join(self.temporary, name.replace(os.sep, "-"))

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise SetupError(f"cannot write to {self.directory}: {error.strerror or error}") \
                from error

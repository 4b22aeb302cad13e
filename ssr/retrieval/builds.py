"""The directory of an index: builds, of which one counts, and the lock of the process that writes.

    INDEX/current        JSON: the version of the format and the name of the build that counts
    INDEX/build-XXXX/    its items and vectors (store.py), and what the caller keeps with them
    INDEX/live.json, INDEX/clicks.sqlite    of a live index (live.py); they outlive the builds
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile

from ssr.errors import StoreError

FORMAT = 3  # 2: the items had no fields; 1: and no checksums
REMEDY = "bring it back from a copy, or build the index anew (retrieve.py build --overwrite)"


def lock(path):
    """Takes the exclusive lock on a directory: a file descriptor, to be closed in order to release
    it. It ends with the process if not before. Raises StoreError where another process has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"another process has {path} open for writing: one at a time, stop it "
                         "first") from error
    return descriptor


def sync(path):
    """Flushes a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current_build(path):
    """The directory of the build that counts. Raises StoreError."""
    name = os.path.join(path, "current")
    try:
        with open(name, encoding="utf-8") as f:
            current = json.load(f)
        version, build = int(current["format"]), str(current["build"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"there is no index in {path}: retrieve.py build makes one") from error
    except OSError as error:
        raise StoreError(f"cannot read {name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{name} is damaged: {REMEDY}") from error
    if version > FORMAT:
        raise StoreError(f"{path} was written by a newer version, in format {version}; this one "
                         f"reads up to {FORMAT}: use the newer one, or build the index anew")
    return os.path.join(path, build)


@contextlib.contextmanager
def new_build(path, overwrite=False):
    """A context that gives an empty directory, which becomes the index in `path` when the block
    ends. Until then, and if it fails, what was there stays.

    overwrite: whether an index that is there may be replaced
    Raises StoreError.
    """
    try:
        os.makedirs(path, exist_ok=True)
        descriptor = lock(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    try:
        _check_target(path, overwrite)
        directory = tempfile.mkdtemp(prefix="build-", dir=path)
        try:
            yield directory
            _publish(path, directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(path)  # if it is empty: nothing was there before
            raise
        for name in os.listdir(path):  # the one before, and what a killed build has left
            if name.startswith("build-") and name != os.path.basename(directory):
                shutil.rmtree(os.path.join(path, name), ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def _check_target(path, overwrite):
    names = os.listdir(path)
    if "current" in names and not overwrite:
        raise StoreError(f"there is an index in {path}: give another --index_dir, or --overwrite "
                         "to replace it")
    if "current" not in names and any(not name.startswith("build-") for name in names):
        raise StoreError(f"{path} holds something else than an index: give an --index_dir of its "
                         "own")


def _publish(path, directory):
    os.chmod(directory, os.stat(path).st_mode & 0o777)  # a temporary one is its owner's alone
    for folder, _, names in os.walk(directory):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)
    temporary = os.path.join(directory, "current")
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump({"format": FORMAT, "build": os.path.basename(directory)}, f)
    sync(temporary)
    os.replace(temporary, os.path.join(path, "current"))
    sync(path)

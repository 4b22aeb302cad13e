"""The directory of an index: builds, of which one counts, and the lock of the process that writes.

    INDEX/current        JSON: the version of the format and the name of the build that counts
    INDEX/build-XXXX/    its items and vectors (store.py), and what the caller keeps with them
    INDEX/live.json, INDEX/clicks.sqlite    of a live index (live.py); they outlive the builds

A build that is made beside a process which writes the index does not count when it is complete:
that process has to check it and to bring over what has changed meanwhile (succession.py).

    INDEX/next        as `current`: the build that waits for that
    INDEX/next.lock   locked by who makes it
    INDEX/heir.lock   locked by a process that writes and looks after `next`: without one no build
                      is made beside a writer
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile

from ssr.errors import StoreError

logger = logging.getLogger(__name__)

CURRENT, NEXT, NEXT_LOCK, HEIR_LOCK = "current", "next", "next.lock", "heir.lock"
FORMAT = 3  # 2: the items had no fields; 1: and no checksums
REMEDY = "bring it back from a copy, or build the index anew (retrieve.py build --overwrite)"


def lock(path):
    """Takes the exclusive lock on a directory: a file descriptor, to be closed in order to release
    it. It ends with the process if not before. Raises StoreError where another process has it."""
    descriptor = try_lock(path)
    if descriptor is None:
        raise StoreError(f"another process has {path} open for writing: one at a time, stop it "
                         "first")
    return descriptor


def try_lock(path, flags=os.O_RDONLY):
    """As lock, None where another process has it. flags: of os.open"""
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        os.close(descriptor)
        return None


def inherit(path):
    """Tells that this process writes the index and looks after `next`: a descriptor, to be closed
    when it does so no more; None where another one does."""
    return try_lock(os.path.join(path, HEIR_LOCK), os.O_RDWR | os.O_CREAT)


def _is_locked(path):
    """Whether some process has the lock on a file."""
    try:
        descriptor = try_lock(path)
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def sync(path):
    """Flushes a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current_build(path):
    """The directory of the build that counts. Raises StoreError."""
    return _build_of(path, CURRENT)


def next_build(path):
    """The directory of the build that waits to count, None where there is none. Raises
    StoreError."""
    return _build_of(path, NEXT) if os.path.exists(os.path.join(path, NEXT)) else None


def _build_of(path, file):
    name = os.path.join(path, file)
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

    overwrite: whether an index that is there may be replaced. One that a process writes and looks
        after is replaced when that process has gone over to the new build
    Raises StoreError.
    """
    with contextlib.ExitStack() as locks:
        try:
            os.makedirs(path, exist_ok=True)
            beside = not _lock_for_build(path, overwrite, locks)
            _check_target(path, overwrite)
            directory = tempfile.mkdtemp(prefix="build-", dir=path)
            try:
                yield directory
                _publish(path, directory, NEXT if beside else CURRENT)
            except BaseException:
                shutil.rmtree(directory, ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.rmdir(path)  # if it is empty: nothing was there before
                raise
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
        if beside:
            logger.info("another process has %s open: it goes over to what was built once it has "
                        "checked it", path)
        else:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(path, NEXT))
            remove_others(path)


def _lock_for_build(path, overwrite, locks):
    """Takes the locks for a build. Returns whether nobody else writes. Raises StoreError.

    locks: ExitStack that releases them
    """
    descriptor = try_lock(path)
    if descriptor is not None:
        locks.callback(os.close, descriptor)
        return True
    if not overwrite or not _is_locked(os.path.join(path, HEIR_LOCK)):
        locks.callback(os.close, lock(path))  # complains, or else it is free by now
        return True
    descriptor = try_lock(os.path.join(path, NEXT_LOCK), os.O_RDWR | os.O_CREAT)
    if descriptor is None:
        raise StoreError(f"another process builds an index in {path}: one at a time")
    locks.callback(os.close, descriptor)
    return False


def adopt(path, directory):
    """The build that waits counts from here on. The caller has the lock. directory: of that build
    Raises StoreError."""
    if next_build(path) != directory:
        raise StoreError(f"{directory} is no longer the build that waits in {path}")
    try:
        os.replace(os.path.join(path, NEXT), os.path.join(path, CURRENT))
        sync(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def refuse(path, directory):
    """The build that waits is not to count: it is removed."""
    with contextlib.suppress(OSError, StoreError):
        if next_build(path) == directory:
            os.remove(os.path.join(path, NEXT))
    shutil.rmtree(directory, ignore_errors=True)


def remove_others(path):
    """Removes the builds that neither count nor wait, and that nobody is making. The caller has the
    lock."""
    if _is_locked(os.path.join(path, NEXT_LOCK)):
        return
    kept = {current_build(path), next_build(path)}
    for name in os.listdir(path):
        directory = os.path.join(path, name)
        if name.startswith("build-") and directory not in kept:
            shutil.rmtree(directory, ignore_errors=True)


def _check_target(path, overwrite):
    names = os.listdir(path)
    if "current" in names and not overwrite:
        raise StoreError(f"there is an index in {path}: give another --index_dir, or --overwrite "
                         "to replace it")
    if "current" not in names and any(not name.startswith("build-") for name in names):
        raise StoreError(f"{path} holds something else than an index: give an --index_dir of its "
                         "own")


def _publish(path, directory, file):
    os.chmod(directory, os.stat(path).st_mode & 0o777)  # a temporary one is its owner's alone
    for folder, _, names in os.walk(directory):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)
    temporary = os.path.join(directory, file)
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump({"format": FORMAT, "build": os.path.basename(directory)}, f)
    sync(temporary)
    os.replace(temporary, os.path.join(path, file))
    sync(path)

"""SQLite as this package uses it: connections for several threads, on read-only media too, and
errors that a user can read."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import urllib.parse

from ssr.errors import StoreError


class Unchanging(sqlite3.Connection):
    """To a database that nobody had open for writing."""


def connect(path, read_only=False):
    """A connection to a database; transactions begin where the caller says so.

    read_only: nothing is written. In a directory that cannot be written, as on a read-only mount,
        changes are seen of a process that writes elsewhere; until there is one the connection is
        Unchanging, and is to be made anew once has_writer_come
    Raises StoreError.
    """
    if not read_only or os.access(os.path.dirname(path) or ".", os.W_OK):
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    options, kind = "mode=ro", sqlite3.Connection
    if not _is_written(path):
        if _size(path + "-wal"):
            raise StoreError(f"{path}-wal holds changes that {path} lacks, since a process was "
                             "killed: open the index once where it can be written (retrieve.py "
                             "info)")
        options, kind = "mode=ro&immutable=1", Unchanging
    uri = f"file:{urllib.parse.quote(os.path.abspath(path))}?{options}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False,
                           factory=kind)


def has_writer_come(connection, path):
    """Whether a connection does not see what a process writes that has come since."""
    return isinstance(connection, Unchanging) and _is_written(path)


def _is_written(path):
    """Whether the files are there by which SQLite shares a database with who writes it. Where they
    are not it would make them."""
    return os.path.exists(path + "-shm") and os.path.exists(path + "-wal")


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


@contextlib.contextmanager
def sqlite_errors(path, remedy):
    """Turns SQLite's errors about the database in `path` into StoreError. remedy: what to do where
    it is damaged"""
    try:
        yield
    except sqlite3.ProgrammingError as error:  # what it calls a connection that is closed
        raise StoreError(f"the index {os.path.dirname(path)} is closed") from error
    except sqlite3.DatabaseError as error:
        what = str(error)
        if isinstance(error, sqlite3.OperationalError) \
                and "no such" not in what and "decode" not in what:
            raise StoreError(f"cannot use {path}: {what}") from error
        raise StoreError(f"{path} is damaged ({what.splitlines()[0][:100]}): {remedy}") from error


@contextlib.contextmanager
def transaction(db):
    """A transaction on a connection: all of the block or, where it fails, nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise

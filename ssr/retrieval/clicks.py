"""Clicks on the disk, and what each session has clicked lately."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from typing import NamedTuple, Optional

import numpy as np

from ssr.errors import DataError, StoreError
from ssr.files import numbered_lines, shown_name
from ssr.retrieval.database import connect, has_writer_come, sqlite_errors, transaction
from ssr.retrieval.values import Item, check_item

logger = logging.getLogger(__name__)

FLUSH_EVERY = 0.25  # seconds: within one the disk has a click, also where the machine is busy
FLUSH_PATIENCE = 20.0  # seconds that closing tries to write what is left
MAX_BACKLOG = 100_000  # clicks in memory that wait for the disk, half a KB each
LOCK_PATIENCE = 2.0  # seconds that one attempt waits for another process's lock
SESSION_AGE = 7200  # seconds without a click, after which a session begins anew
SESSION_CLICKS = 20  # the newest of a session, of which its vector is made
SESSION_ITEMS = 200  # that a session may lift: nobody reads more
ROWS_AT_A_TIME = 1 << 12
# When the clock is looked at for what is old, and how many of these readings must agree.
PRUNE_EVERY = 3600  # seconds
CLOCK_READINGS = 24

TIME = re.compile(r"\d{1,20}(\.\d*)?", re.ASCII)
SCHEMA = """
CREATE TABLE IF NOT EXISTS clicks (
    number INTEGER PRIMARY KEY,
    session TEXT,       -- of any kind; none: a click of which nothing else is known
    item TEXT NOT NULL, -- the raw id
    time REAL NOT NULL, -- seconds since 1970
    user BLOB,          -- <float32>[dim], the vector of the session before it; none if it had none
    published INTEGER NOT NULL  -- 1: no click, the item was published
);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""


class Click(NamedTuple):
    """A reader clicked. session: of any kind, None if it is not known; item: the raw id; time:
    seconds since 1970, None for now"""

    session: Optional[str]
    item: str
    time: Optional[float] = None


def read_clicks(path):
    """The clicks of a file, a list of Click. A click a line: session, item and, maybe, seconds
    since 1970, with tabs between; no session for a click of which nothing else is known. "-" is
    standard input. Raises DataError, which names the line."""
    clicks = []
    for number, line in numbered_lines(path, "it holds clicks, a line each: session, tab, item"):
        session, *rest = line.split("\t")
        try:
            if len(rest) not in (1, 2):
                raise DataError("a line is session, tab, item and maybe a tab and the time")
            check_item(Item(rest[0], session))
            if rest[1:] and not TIME.fullmatch(rest[1]):
                raise DataError(f"{rest[1][:50]!r} is not a time in seconds since 1970")
            clicks.append(Click(session or None, rest[0], float(rest[1]) if rest[1:] else None))
        except DataError as error:
            raise DataError(f"{shown_name(path)}, line {number}: {error}") from None
    return clicks


class LoggedClick(NamedTuple):
    """A row of the log. number: in the order of arrival; user: the vector of the session before the
    click, <float32>[dim], None where it had none; published: no click, the item was published"""

    number: int
    click: Click
    user: Optional[np.ndarray]
    published: bool


class ClickLog:
    """The clicks of the last days in a database. append returns at once and a thread commits; what
    cannot be committed, since another process has locked the database or the disk is full, stays in
    memory until it can.

    path: of the database; a log that is only read may not be there yet
    is_shared: whether other processes append too; keeps_users: whether vectors are kept
    """

    is_shared, keeps_users = False, True

    def __init__(self, path, writable):
        """Raises StoreError."""
        self.path, self._writable = path, writable
        self._buffer = []  # values of rows that are not on the disk yet
        self._version = None  # of the database, as of which all of it was read
        self._buffering, self._using = threading.Lock(), threading.Lock()
        self._db = self._thread = None
        self._done = threading.Event()
        if writable:
            with self._errors():
                self._connect()
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.executescript(SCHEMA)
            self._thread = threading.Thread(target=self._flush_now_and_then, daemon=True)
            self._thread.start()

    def _connect(self):
        self._db = connect(self.path, read_only=not self._writable)
        self._db.execute(f"PRAGMA busy_timeout = {int(LOCK_PATIENCE * 1000)}")

    def _is_there(self):
        """Whether there is a log to read by now."""
        if self._db is None and os.path.exists(self.path):
            with self._errors():
                self._connect()
        return self._db is not None

    def _errors(self):
        return sqlite_errors(self.path, "without it the index works, and knows of no clicks: move "
                             "it away")

    def close(self):
        """All clicks are on the disk when it returns. Raises StoreError where the disk does not
        take them."""
        self._done.set()
        if self._db is None:
            return
        try:
            if self._thread:
                self._thread.join()
                self._flush_at_last()
        finally:
            with self._using:
                self._db.close()

    # --- what comes in

    def append(self, clicks, users, published=False):
        """clicks: a list of Click; users: of each, <float32>[dim], None where the session had no
        vector"""
        rows = [(*click, None if user is None else np.asarray(user, "<f4").tobytes(), published)
                for click, user in zip(clicks, users)]
        with self._buffering:
            self._buffer += rows

    def backlog(self):
        """How many clicks wait for the disk."""
        return len(self._buffer)

    def check_room(self, count):
        """Raises StoreError where the disk has not taken so many clicks that more cannot wait."""
        if self.backlog() + count > MAX_BACKLOG:
            raise StoreError(f"{self.backlog()} clicks wait to be written to {self.path}, no more "
                             "are taken: is the disk full, or does another process lock it?")

    def flush(self):
        """All that was appended before is on the disk when it returns. Raises StoreError; then it
        waits on."""
        with self._using, self._errors():
            rows = self._buffer[:]
            if rows:
                with transaction(self._db):
                    self._db.executemany("INSERT INTO clicks (session, item, time, user, published)"
                                         " VALUES (?, ?, ?, ?, ?)", rows)
                with self._buffering:
                    del self._buffer[:len(rows)]

    def _flush_now_and_then(self):
        failing = False
        while not self._done.wait(FLUSH_EVERY):
            try:
                self.flush()
                if failing:
                    logger.info("%s takes clicks again: all of them are written", self.path)
                failing = False
            except StoreError as error:
                if not failing:
                    logger.error("%s; clicks wait in memory", error)
                failing = True

    def _flush_at_last(self):
        end = time.monotonic() + FLUSH_PATIENCE
        while True:
            try:
                return self.flush()
            except StoreError as error:
                if time.monotonic() > end:
                    raise StoreError(f"{self.backlog()} clicks are lost: {error}") from error
            time.sleep(0.1)

    # --- what is there

    def has_changed(self):
        """Whether another process may have written to it since `read` came to its end; much cheaper
        than reading."""
        return self._is_there() and self._data_version() != self._version

    def _data_version(self):
        with self._using, self._errors():
            if has_writer_come(self._db, self.path):
                self._db.close()
                self._connect()
            return self._db, self._db.execute("PRAGMA data_version").fetchone()[0]

    def row(self, number=None):
        """[number, session, item, time] of a row, the last one unless a number is given; None where
        it is not there."""
        if not self._is_there():
            return None
        which = "ORDER BY number DESC LIMIT 1" if number is None else "WHERE number = ?"
        with self._using, self._errors():
            row = self._db.execute(f"SELECT number, session, item, time FROM clicks {which}",
                                   () if number is None else (number,)).fetchone()
        return row and list(row)

    def read(self, after=0, since=-np.inf):
        """Yields lists of LoggedClick, of higher numbers than `after` and, where `since` is given,
        not older than that time."""
        version = self._data_version() if self._is_there() else None
        while self._is_there():
            with self._using, self._errors():
                rows = self._db.execute(
                    "SELECT number, session, item, time, user, published FROM clicks "
                    "WHERE number > ? AND time >= ? ORDER BY number LIMIT ?",
                    (after, since, ROWS_AT_A_TIME)).fetchall()
            if not rows:
                self._version = version
                return
            yield [LoggedClick(number, Click(session, item, when),
                               None if user is None else np.frombuffer(user, "<f4"), published)
                   for number, session, item, when, user, published in rows]
            after = rows[-1][0]

    def newest_before(self, number, now):
        """The newest time up to now of the rows with lower numbers, -inf where there is none."""
        with self._using, self._errors():
            newest, = self._db.execute("SELECT max(time) FROM clicks WHERE number < ? "
                                       "AND time <= ?", (number, now)).fetchone()
        return -np.inf if newest is None else newest

    def model(self):
        """The digest of the model that made the vectors, None where there are none."""
        return self._get("model") if self._is_there() else None

    def _get(self, name):
        with self._using, self._errors():
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row and row[0]

    def set_users(self, users, model):
        """Replaces the vectors. users: {number: <float32>[dim] or None}; model: its digest"""
        rows = [(None if user is None else np.asarray(user, "<f4").tobytes(), number)
                for number, user in users.items()]
        with self._using, self._errors(), transaction(self._db):
            self._db.executemany("UPDATE clicks SET user = ? WHERE number = ?", rows)
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('model', ?)", (model,))

    def prune(self, now, age):
        """Removes clicks older than `age` seconds, but for the last one: numbers are not given
        twice. A clock may be wrong for a while, so it takes CLOCK_READINGS readings at least
        PRUNE_EVERY seconds apart that all call a click old."""
        readings = json.loads(self._get("clock") or "[]")
        if readings and abs(now - readings[-1]) < PRUNE_EVERY:
            return
        readings = [*readings, now][-CLOCK_READINGS:]
        with self._using, self._errors(), transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?)",
                             (json.dumps(readings),))
            if len(readings) == CLOCK_READINGS:
                self._db.execute("DELETE FROM clicks WHERE time < ? AND number < "
                                 "(SELECT max(number) FROM clicks)", (min(readings) - age,))

    def integrity_error(self):
        """What SQLite's own check says of the file, None where it is in order or not there."""
        if not self._is_there():
            return None
        with self._using, self._errors():
            result = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        return None if result == "ok" else result.splitlines()[-1]


class SessionBefore(NamedTuple):
    """A session before a click, as lists of keys, the newest last.

    recent: its newest clicks
    clicked: every item that it clicked, those of recent at the end; None where it has clicked so
        many that this click counts for nothing
    """

    recent: list
    clicked: Optional[list]


class Sessions:
    """What each session has clicked lately."""

    def __init__(self):
        self._sessions = {}  # {session: [keys of its newest clicks, {key: None}, time]}

    def add(self, session, key, when):
        """Adds a click and returns the SessionBefore."""
        if session is None:
            return SessionBefore([], [])
        recent, items, newest = self._sessions.pop(session, ([], {}, when))
        if when - newest > SESSION_AGE:
            recent, items = [], {}
        before = SessionBefore(recent, None)
        if key in items or len(items) < SESSION_ITEMS:
            latest = set(recent)
            before = SessionBefore(recent, [item for item in items if item not in latest] + recent)
            items[key] = None
        # At the end: the sessions are in the order of their newest clicks, but for late ones.
        self._sessions[session] = [*recent, key][-SESSION_CLICKS:], items, max(when, newest)
        return before

    def to_text(self):
        """All of it, a string."""
        # A session at a time: the interpreter can turn to other threads in between.
        return "\n".join(json.dumps([session, recent, list(items), newest])
                         for session, (recent, items, newest) in self._sessions.items())

    @classmethod
    def from_text(cls, text):
        """What to_text returned."""
        sessions = cls()
        for session, recent, items, newest in json.loads(f"[{text.replace(chr(10), ',')}]"):
            sessions._sessions[session] = recent, dict.fromkeys(items), newest
        return sessions

    def forget(self, before):
        """Forgets sessions whose newest click is older than a time."""
        for session, (_, _, newest) in list(self._sessions.items()):
            if newest >= before:
                break
            del self._sessions[session]

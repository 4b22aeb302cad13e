"""Clicks as they come: on the disk within a second, in a stream.Stream at once.

The log is what counts. It holds the clicks of the last day, with the vector that each reader had
before the click, in INDEX/clicks.sqlite; the Stream is made from it on opening. It lies beside the
builds of an index and outlives them: after a retraining the vectors are made anew, the clicks are
the same. A process that is killed loses what came in the last FLUSH_EVERY seconds and nothing else.

It knows no model. Whoever opens it says how sessions become vectors.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sqlite3
import threading
import time
from typing import NamedTuple, Optional

import numpy as np

from ssr.errors import StoreError
from ssr.news import stream

logger = logging.getLogger(__name__)

FLUSH_EVERY = 0.5  # seconds
PRUNE_EVERY = 3600  # seconds
SESSION_AGE = 7200  # seconds without a click, after which a session begins anew
SESSION_CLICKS = 20  # the newest of a session that are kept
ROWS_AT_A_TIME = 1 << 12

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
    seconds since 1970"""

    session: Optional[str]
    item: str
    time: float


class ClickLog:
    """Clicks on the disk. append returns at once; a thread commits."""

    def __init__(self, path, writable):
        """Raises StoreError. A log that is only read may not be there yet."""
        self.path = path
        self._buffer = []
        self._buffering, self._using = threading.Lock(), threading.Lock()
        self._db = self._thread = None
        self._done = threading.Event()
        if writable:
            with self._told():
                self._connect()
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.executescript(SCHEMA)
            self._thread = threading.Thread(target=self._flush_now_and_then, daemon=True)
            self._thread.start()

    def _connect(self):
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)

    def _is_there(self):
        """Whether there is a log to read by now."""
        if self._db is None and os.path.exists(self.path):
            with self._told():
                self._connect()
        return self._db is not None

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"cannot use {self.path}: {error}; without it the index works, and "
                           "knows of no clicks: move it away") from error

    def append(self, click, user, published=False):
        """user: <float32>[dim], None where the session had no vector"""
        blob = None if user is None else np.asarray(user, "<f4").tobytes()
        with self._buffering:
            self._buffer.append((*click, blob, published))

    def _flush_now_and_then(self):
        while not self._done.wait(FLUSH_EVERY):
            try:
                self.flush()
            except StoreError as error:
                logger.error("%s", error)

    def flush(self):
        """All that was appended is on the disk when it returns. Raises StoreError."""
        with self._using, self._told():
            with self._buffering:
                rows, self._buffer = self._buffer, []
            if rows:
                self._db.execute("BEGIN")
                self._db.executemany("INSERT INTO clicks (session, item, time, user, published) "
                                     "VALUES (?, ?, ?, ?, ?)", rows)
                self._db.execute("COMMIT")

    def read(self, after=0):
        """Yields lists of (number, Click, user or None, published) of the rows with higher numbers.
        """
        while self._is_there():
            with self._using, self._told():
                rows = self._db.execute("SELECT number, session, item, time, user, published "
                                        "FROM clicks WHERE number > ? ORDER BY number LIMIT ?",
                                        (after, ROWS_AT_A_TIME)).fetchall()
            if not rows:
                return
            yield [(number, Click(session, item, when),
                    None if user is None else np.frombuffer(user, "<f4"), published)
                   for number, session, item, when, user, published in rows]
            after = rows[-1][0]

    def model(self):
        """The digest of the model that made the vectors, None where there are none."""
        if not self._is_there():
            return None
        with self._using, self._told():
            row = self._db.execute("SELECT value FROM meta WHERE name = 'model'").fetchone()
        return row and row[0]

    def set_users(self, users, model):
        """Replaces the vectors. users: {number: <float32>[dim] or None}; model: its digest"""
        rows = [(None if user is None else np.asarray(user, "<f4").tobytes(), number)
                for number, user in users.items()]
        with self._using, self._told():
            self._db.execute("BEGIN")
            self._db.executemany("UPDATE clicks SET user = ? WHERE number = ?", rows)
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('model', ?)", (model,))
            self._db.execute("COMMIT")

    def forget(self, before):
        """Removes clicks that are older."""
        with self._using, self._told():
            self._db.execute("DELETE FROM clicks WHERE time < ?", (before,))

    def close(self):
        self._done.set()
        if self._db is None:
            return
        if self._thread:
            self._thread.join()
            self.flush()
        with self._using:
            self._db.close()


class Sessions:
    """What each session has clicked lately."""

    def __init__(self):
        self._clicks = {}  # session: (its keys, the newest last; time of the newest)

    def add(self, session, key, when):
        """Adds a click and returns those before it, the newest last."""
        if session is None:
            return []
        before, last = self._clicks.pop(session, ([], when))
        if when - last > SESSION_AGE:
            before = []
        # At the end: the sessions are in the order of their newest clicks, but for late ones.
        self._clicks[session] = ([*before, key][-SESSION_CLICKS:], max(when, last))
        return before

    def forget(self, before):
        for session, (_, last) in list(self._clicks.items()):
            if last >= before:
                break
            del self._clicks[session]


class Live:
    """The clicks of an index: log and Stream, of the same.

    path: of the log
    model: digest of the index's model; dim: of its vectors
    find: {raw id: key} of raw ids, which makes known those that were not, if the index is writable
    encode: the vectors of sessions, lists of keys: a list of <float32>[dim] or None
    vector_of: as in stream.Stream, of a key
    age: seconds after its last click that an item remains a candidate
    """

    def __init__(self, path, writable, model, dim, find, encode, vector_of, age=stream.AGE):
        self._find, self._encode, self._model = find, encode, model
        self._writing = threading.Lock()  # held by who takes clicks in
        self._changing = threading.Lock()  # around the Stream
        self._stream = stream.Stream(dim, vector_of, age)
        self._sessions = Sessions()
        self._read_to = 0
        self._pruned = time.time()
        self._age, self._writable = age, writable
        self._log = ClickLog(path, writable)
        try:
            if writable:
                self._log.forget(time.time() - age)
            self._catch_up(renew=writable and self._log.model() != model)
        except BaseException:
            self._log.close()
            raise

    def close(self):
        """All clicks are on the disk when it returns."""
        self._log.close()

    # --- what comes in

    def click(self, clicks):
        """Takes clicks in: the Stream has them at once, the disk within FLUSH_EVERY seconds.
        clicks: a list of Click, in the order of their times where they are of one session"""
        with self._writing:
            users = self._apply(clicks)
            for click, user in zip(clicks, users):
                self._log.append(click, user)
            if time.time() - self._pruned > PRUNE_EVERY:
                self._prune()

    def _apply(self, clicks, users=None):
        """Into sessions and Stream. users: as they are known, None to encode them; returns them"""
        keys = self._find(sorted({click.item for click in clicks}))
        before = [self._sessions.add(click.session, keys[click.item], click.time)
                  if click.item in keys else [] for click in clicks]
        if users is None:
            users = self._encode(before)
        with self._changing:
            for click, previous, user in zip(clicks, before, users):
                if click.item in keys:
                    self._stream.click(keys[click.item], previous, click.time, user)
        return users

    def publish(self, items, vectors, when):
        """Items are candidates from now on. items: {raw id: key}; vectors: of each, <float32>[dim]
        or None"""
        with self._writing, self._changing:
            for (id, key), vector in zip(items.items(), vectors):
                self._stream.publish(key, when, vector)
                self._log.append(Click(None, id, when), None, published=True)

    def withdraw(self, keys):
        """Items are no candidates any more."""
        with self._changing:
            for key in keys:
                self._stream.withdraw(key)

    def restore(self, keys):
        """Takes withdraw back."""
        with self._changing:
            for key in keys:
                self._stream.restore(key)

    def _catch_up(self, renew=False):
        """What the log has and the Stream does not. renew: the vectors are another model's"""
        with self._writing:
            ours = self._log.model() == self._model
            renewed = {}
            for rows in self._log.read(self._read_to):
                self._read_to = rows[-1][0]
                for published, part in itertools.groupby(rows, lambda row: row[3]):
                    numbers, clicks, users, _ = zip(*part)
                    if published:
                        self._publish_again(clicks)
                    else:
                        known = users if ours else [None] * len(users)
                        users = self._apply(clicks, None if renew else known)
                        renewed.update(zip(numbers, users))
            if renew:
                self._log.set_users(renewed, self._model)

    def _publish_again(self, clicks):
        keys = self._find(sorted({click.item for click in clicks}))
        with self._changing:
            for click in clicks:
                if click.item in keys:
                    self._stream.publish(keys[click.item], click.time)

    def refresh(self):
        """Sees the clicks that another process has taken in."""
        if not self._writable:
            self._catch_up()

    def _prune(self):
        self._pruned = time.time()
        self._sessions.forget(self._pruned - SESSION_AGE)
        self._log.forget(self._pruned - self._age)

    # --- what is asked

    def top(self, user, session, now, scoring, k, exclude_session):
        """As stream.Stream.top, of keys: a list of (key, score), the best first."""
        with self._changing:
            keys, scores = self._stream.top(user, session, now, scoring, k, exclude_session)
        return list(zip(keys.tolist(), scores.tolist()))

    def vector(self, key):
        """As stream.Stream.vector, of a key."""
        with self._changing:
            return self._stream.vector(key)

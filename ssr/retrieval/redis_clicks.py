"""Clicks in a stream of Redis, which several servers share: each appends what it takes in and
applies what all of them appended, in the order of the stream, its own clicks too. So all of them
come to the same live state, and one that starts reads the stream of the last days.

    redis://HOST:6379/0           the stream ssr:clicks
    redis://HOST:6379/0#NAME      the stream NAME, for another index

REDIS_PASSWORD in the environment is the password, where there is one.

An entry has the fields item and time, of a click in a session also session, of an article that was
published also published. What makes no click of that is passed over. A click is acknowledged once
Redis has it: whether it survives the end of Redis is for its appendfsync to say. Entries go when
they are a day older than an item remains a candidate, by the clock of Redis.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import urllib.parse

from ssr.errors import DataError, SetupError, StoreError
from ssr.retrieval.clicks import Click, LoggedClick
from ssr.retrieval.values import Item, check_item

logger = logging.getLogger(__name__)

STREAM = "ssr:clicks"
ROWS_AT_A_TIME = 1 << 12
TIMEOUT = 5.0  # seconds that Redis may take to answer
RETRIES, BACKOFF = 3, (0.2, 0.05)  # of a request, that a connection was lost; seconds: most, least
WAIT = 0.25  # seconds that the thread waits for clicks, before it looks whether it is to end
RETRY_EVERY = 0.5  # seconds
SPARE = 86400.0  # seconds that entries stay longer than they are needed
LEAD = 60.0  # seconds that a click's time may be ahead of Redis's clock


def check_address(uri):
    """Raises DataError for what is not the address of a Redis."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise DataError(f"--clicks {uri}: the address of a Redis is redis://HOST:6379/0")


class RedisLog:
    """As clicks.ClickLog, of clicks that several processes take in. Vectors are not kept: each
    process makes its own.

    path: the address, as messages have it
    """

    is_shared, keeps_users = True, False

    def __init__(self, uri, writable):
        """Raises SetupError, StoreError."""
        try:
            import redis
            from redis.backoff import ExponentialBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise SetupError("clicks over Redis need its client: pip install redis") from error
        address, _, name = uri.partition("#")
        self.path, self._writable = f"Redis at {without_password(address)}", writable
        self._stream, self._last, self._redis = name or STREAM, "0-0", None
        self._error, self._done, self._thread = redis.RedisError, threading.Event(), None
        try:
            password = os.environ.get("REDIS_PASSWORD")
            self._redis = redis.Redis.from_url(
                address, decode_responses=True, socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT, retry=Retry(ExponentialBackoff(*BACKOFF), RETRIES),
                **({"password": password} if password else {}))
        except (ValueError, self._error) as error:
            raise SetupError(f"{self.path}: {error}") from error
        with self._errors():
            self._redis.ping()

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except (self._error, UnicodeDecodeError) as error:
            raise StoreError(f"cannot use {self.path}: {error}") from error

    def close(self):
        """There is nothing to save."""
        self._done.set()
        if self._thread:
            self._thread.join()
        self._redis.close()

    # --- what comes in

    def append(self, clicks, users=(), published=False):
        """Redis has all of the clicks when it returns, or none. users: not kept"""
        with self._errors(), self._redis.pipeline(transaction=True) as pipeline:
            for click in clicks:
                fields = {"item": click.item, "time": repr(float(click.time))}
                if click.session is not None:
                    fields["session"] = click.session
                if published:
                    fields["published"] = "1"
                pipeline.xadd(self._stream, fields)
            pipeline.execute()

    def check_room(self, count):
        """Nothing waits here: append says whether Redis takes clicks."""

    def backlog(self):
        """Nothing waits here."""
        return 0

    def flush(self):
        """Nothing waits here."""

    def follow(self, callback):
        """Calls a function, from a thread, when there is something to read. Where that raises
        StoreError, or Redis cannot be reached, it is tried again."""
        self._thread = threading.Thread(target=self._follow, args=(callback,), daemon=True)
        self._thread.start()

    def _follow(self, callback):
        failing = False
        while not self._done.is_set():
            try:
                with self._errors():
                    there = self._redis.xread({self._stream: self._last}, 1, int(WAIT * 1e3))
                if there and not self._done.is_set():
                    callback()
                if failing:
                    logger.info("%s gives clicks again", self.path)
                failing = False
            except StoreError as error:
                if not failing:
                    logger.error("%s; clicks are not seen until it answers", error)
                failing = True
                self._done.wait(RETRY_EVERY)

    # --- what is there

    def read(self, after=0, since=float("-inf")):
        """As of clicks.ClickLog; the numbers are Redis's, strings."""
        start = f"({after}" if after else _id_of(since - LEAD)
        while True:
            with self._errors():
                entries = self._redis.xrange(self._stream, start, "+", ROWS_AT_A_TIME)
            if not entries:
                return
            rows = [row for row in map(_row_of, entries) if row and row.click.time >= since]
            if rows:
                yield rows
            self._last = entries[-1][0]
            start = f"({self._last}"

    def has_changed(self):
        """Whether there is more to read than was read."""
        with self._errors():
            return bool(self._redis.xrange(self._stream, f"({self._last}", "+", 1))

    def row(self, number=None):
        """As of clicks.ClickLog."""
        with self._errors():
            entries = self._redis.xrevrange(self._stream, count=1) if number is None \
                else self._redis.xrange(self._stream, number, number)
        row = _row_of(entries[0]) if entries else None
        return row and [row.number, row.click.session, row.click.item, row.click.time]

    def newest_before(self, number, now):
        """As of clicks.ClickLog, as far as the last ROWS_AT_A_TIME entries say."""
        with self._errors():
            entries = self._redis.xrevrange(self._stream, f"({number}", "-", ROWS_AT_A_TIME)
        times = [row.click.time for row in map(_row_of, entries) if row]
        return max((time for time in times if time <= now), default=float("-inf"))

    def prune(self, now, age):
        """Removes entries that are much older than `age`, by Redis's clock, which all share."""
        with self._errors():
            seconds, _ = self._redis.time()
            self._redis.xtrim(self._stream, minid=_id_of(seconds - age - SPARE), approximate=True)

    def integrity_error(self):
        """Redis sees to that."""


def _id_of(seconds):
    """The least id of entries that came at a time or later."""
    return f"{max(0, int(seconds * 1e3))}-0" if seconds > float("-inf") else "-"


def _row_of(entry):
    """The LoggedClick of an entry, None for what is none."""
    number, fields = entry
    try:
        click = Click(fields.get("session"), fields["item"], float(fields["time"]))
        check_item(Item(click.item, click.session or ""))
        if not 0 <= click.time < float("inf"):
            raise ValueError(click.time)
        return LoggedClick(number, click, None, "published" in fields)
    except (KeyError, ValueError, TypeError):
        logger.warning("the entry %s of the stream of clicks is no click: passed over", number)
        return None


def without_password(address):
    """An address as it may be shown."""
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

"""The live state of an index: its clicks, in a log (clicks.py) and in a Stream (ssr.news).

The log is what counts: the Stream is made from it on opening. It lies beside the builds of an index
and outlives them: after a retraining the vectors are made anew, the clicks are the same. A process
that is killed loses what came in the last FLUSH_EVERY seconds and nothing else.

Only the index's own clock says what is old. A click never leads it, and one that lags further
behind than an item remains a candidate is refused. A clock may be wrong for a while: the log holds
clicks in the order in which they came, so one that lies in the future as the clock has it now came
when its neighbours did, and nothing is removed from the log that the clock has not called old for
a day (ClickLog.prune). Where the clock is set, the Stream is made anew.

Reading a day of clicks takes seconds. So the Stream is written to a file now and then and when it
is closed (live_snapshot.py), and on opening only what came later is read from the log. A snapshot
holds what the log says and nothing that depends on a clock that was set: none is written while
clicks are placed elsewhere than where the log has them, or while a question about a later moment
has made things old before their time; and none counts that was written at a later moment than now.

It knows no model. Whoever opens it says how sessions become vectors.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time

from ssr.errors import DataError, SetupError, StoreError
from ssr.news import Stream
from ssr.retrieval import live_snapshot
from ssr.retrieval.clicks import SESSION_AGE, Click, SessionBefore, Sessions

logger = logging.getLogger(__name__)

LEAD = 5.0  # seconds that clocks may differ
JUMP = 60.0  # seconds that it may lead time.monotonic, before it counts as set anew
TICK = 1e-6  # seconds
TIDY_EVERY = 3600  # seconds
RECOVER_EVERY = 10  # seconds, between attempts
# How many clicks, and seconds, a snapshot may be behind: a thousand are read in about 0.1 s.
SAVE_AFTER, SAVE_EVERY, SAVE_AT_CLOSING = 10_000, 60.0, 1000
NOTHING = SessionBefore([], None)
NEVER = float("-inf")


class LiveClicks:
    """The clicks of an index: log and Stream, of the same.

    age: seconds after its last click that an item remains a candidate
    clicks_ahead: how many clicks were said to be of the future, since it was opened
    """

    def __init__(self, log, writable, catalogue, age, clock=time.time, snapshot=None):
        """log: a ClickLog, which it closes; writable: whether it takes clicks in; clock: seconds
        since 1970; snapshot: the path of that file, None for none. Raises StoreError."""
        self.age, self.clicks_ahead = age, 0
        self._catalogue, self._writable, self._clock = catalogue, writable, clock
        self._writing = threading.Lock()  # held by who takes clicks in
        self._changing = threading.Lock()  # around the Stream
        self._withdrawn = set()
        self._now = self._tidied = clock()
        self._looked, self._recover_after = time.monotonic(), 0.0
        self._snapshot, self._saver, self._saved_at = snapshot, None, time.monotonic()
        self._identity = live_snapshot.identity(catalogue.model, catalogue.dim, age)
        self._begin_anew()
        self._log = log
        try:
            if writable:
                self._prune()
                if snapshot:
                    live_snapshot.remove_unfinished(snapshot)
            if snapshot:
                self._resume()
            self._catch_up()
            if log.is_shared:
                log.follow(self._take_over)
        except BaseException:
            self._log.close()
            raise

    def _begin_anew(self):
        self._stream = Stream(self._catalogue.dim, self._catalogue.vector, self.age)
        self._sessions = Sessions()
        self._read_to = 0  # number in the log
        self._newest = NEVER  # the newest time in it that is not of the future
        self._is_placed = False  # whether any of its clicks is elsewhere than where the log has it
        self._unsaved = 0  # clicks that no snapshot has
        self._renewed = {}  # vectors that the log should have, by the numbers of its rows
        self._stream.advance(self._now)
        for key in self._withdrawn:
            self._stream.withdraw(key)

    def close(self):
        """All clicks are on the disk when it returns. Raises StoreError."""
        try:
            if self._saver:
                self._saver.join()
            if self._writable and self._unsaved >= SAVE_AT_CLOSING:
                self._save()
        finally:
            self._log.close()

    # --- the snapshot

    def _resume(self):
        """Takes over what the snapshot has, if it is of use."""
        found = live_snapshot.read_snapshot(self._snapshot)
        if found is None:
            return
        state, arrays = found
        if state.get("identity") != self._identity or self._now < state["now"] - LEAD \
                or not self._is_ours() or self._log.row(state["last"][0]) != state["last"]:
            return logger.info("%s is of another model, clock or log: the clicks are read from the "
                               "log", self._snapshot)
        self._stream = Stream.from_arrays(arrays, self._catalogue.vector)
        self._sessions = Sessions.from_text(state["sessions"])
        self._withdrawn = set(self._stream.withdrawn)
        self._read_to, self._newest = state["last"][0], state["newest"]
        self._now = max(self._now, state["now"])
        self._stream.advance(self._now)

    def _save_now_and_then(self):
        is_due = time.monotonic() - self._saved_at > SAVE_EVERY
        if self._snapshot and self._unsaved >= SAVE_AFTER and is_due:
            self._saved_at = time.monotonic()
            self._saver = threading.Thread(target=self._save, daemon=True)
            self._saver.start()

    def _save(self):
        """Writes a snapshot; queries wait for the copy of the arrays, clicks for all of the state.
        """
        try:
            with self._writing:
                if not self._snapshot or self._is_placed or self._stream.clock > self._now + LEAD:
                    return
                self._log.flush()
                last = self._log.row(self._read_to if self._log.is_shared else None)
                if last is None:
                    return
                with self._changing:
                    state = {"identity": self._identity, "last": last, "now": self._now,
                             "newest": self._newest}
                    arrays = self._stream.to_arrays()
                state["sessions"], self._unsaved = self._sessions.to_text(), 0
            live_snapshot.write_snapshot(self._snapshot, state, arrays)
        except (StoreError, SetupError) as error:  # the clicks themselves are in the log
            logger.warning("%s; opening the index will take longer", error)

    def now(self):
        """The index's own clock. It never stands still, so that a query sees the clicks that came
        before it, and never goes back; where the machine's clock was set, all starts anew."""
        now, steady = self._clock(), time.monotonic()
        ahead = now - self._now
        if ahead < -LEAD or ahead > JUMP + steady - self._looked:
            if steady >= self._recover_after:
                self._recover(now)
        else:
            self._now = max(self._now + TICK, now)
        self._looked = steady
        return self._now

    def _recover(self, now):
        """Makes the Stream anew from the log, as opening does, as of another moment."""
        logger.warning("the clock was set, by %.0f s: the clicks are read again", now - self._now)
        before = self._now
        try:
            with self._writing:
                if self._writable:
                    self._log.flush()
                self._now = now
                with self._changing:
                    self._begin_anew()
                self._read_log()
        except StoreError as error:
            logger.error("%s", error)
            self._now = before
            self._recover_after = time.monotonic() + RECOVER_EVERY

    # --- what comes in

    def click(self, clicks):
        """Takes clicks in: the Stream has them at once, the disk within FLUSH_EVERY seconds.

        clicks: a list of Click, in the order of their times where they are of one session
        Raises DataError for a click that is older than an item remains a candidate, StoreError
        where too many wait for the disk; then none of them is taken.
        """
        now = self.now()
        stamped = [self._stamped(click, now) for click in clicks]
        with self._writing:
            self._log.check_room(len(stamped))
            if self._log.is_shared:  # they count when and where they are read, as for the others
                self._log.append(stamped)
                self._read_log()
            else:
                self._log.append(stamped, self._apply(stamped))
                self._note(stamped)
        self.clicks_ahead += sum(click.time is not None and click.time > now + LEAD
                                 for click in clicks)
        self._tidy(now)

    def _tidy(self, now):
        if abs(now - self._tidied) > TIDY_EVERY:
            self._tidied = now
            with self._writing:
                self._sessions.forget(now - SESSION_AGE)
            self._prune()
        self._save_now_and_then()

    def _take_over(self):
        """Takes in what other processes have appended to the log."""
        now = self.now()
        self._catch_up()
        self._tidy(now)

    def _note(self, clicks):
        """That clicks, or published items, are in the Stream."""
        self._newest = max([self._newest, *(click.time for click in clicks)])
        self._unsaved += len(clicks)

    def _stamped(self, click, now):
        """A click with the time that it counts from."""
        if click.time is None or click.time > now:
            return click._replace(time=now)
        if click.time < now - self.age:
            raise DataError(f"{click.time:.0f} is too long ago for a click: an item is a candidate "
                            f"for {self.age / 3600:g} hours after its last one")
        return click

    def _prune(self):
        try:
            self._log.prune(self._now, self.age)
        except StoreError as error:  # it can wait
            logger.warning("%s", error)

    def _apply(self, clicks, users=None):
        """Into sessions and Stream. users: as they are known, None to encode them; returns them"""
        keys = self._catalogue.register(sorted({click.item for click in clicks}))
        before = [self._sessions.add(click.session, keys[click.item], click.time)
                  if click.item in keys else NOTHING for click in clicks]
        if users is None:
            users = self._catalogue.encode([session.recent for session in before])
        with self._changing:
            for click, session, user in zip(clicks, before, users):
                if session.clicked is not None:
                    self._stream.click(keys[click.item], session.clicked, click.time, user)
            self._stream.advance(self._now)
        return users

    def publish(self, items, vectors):
        """Items are candidates from now on. items: {raw id: key}; vectors: of each, <float32>[dim]
        or None"""
        now = self.now()
        with self._writing:
            with self._changing:
                for key, vector in zip(items.values(), vectors):
                    self._withdrawn.discard(key)
                    self._stream.publish(key, now, vector)
            published = [Click(None, id, now) for id in items]
            self._log.append(published, [None] * len(items), True)
            if self._log.is_shared:
                self._read_log()
            else:
                self._note(published)

    def withdraw(self, keys):
        """Items are no candidates any more, however often they are clicked."""
        with self._changing:
            for key in keys:
                self._withdrawn.add(key)
                self._stream.withdraw(key)

    def set_withdrawn(self, keys):
        """These items are no candidates and all others are. keys: a set"""
        with self._changing:
            for key in self._withdrawn - keys:
                self._stream.restore(key)
            for key in keys - self._withdrawn:
                self._stream.withdraw(key)
            self._withdrawn = set(keys)

    def refresh(self):
        """Sees the clicks that another process has taken in; those of a shared log come by
        themselves."""
        if not self._writable and not self._log.is_shared:
            self.now()
            if self._log.has_changed():
                self._catch_up()

    def succeed(self, other):
        """From here on it takes clicks in, and no more the LiveClicks of the build before, which
        still answers queries. Raises StoreError; then nothing has changed."""
        self.clicks_ahead += other.clicks_ahead
        if self._log.is_shared:  # both append to it, each by itself
            return
        with other._writing, self._writing:
            other._log.flush()
            self._log, other._log = other._log, self._log
            self._writable, other._writable = True, False
            try:
                self._read_log()
            except StoreError as error:  # what it could not write, the next opening makes anew
                logger.warning("%s; opening the index will take longer", error)

    def flush(self):
        """All clicks are on the disk when it returns. Raises StoreError."""
        self._log.flush()

    def backlog(self):
        """How many clicks are not on the disk yet."""
        return self._log.backlog()

    # --- from the log

    def _catch_up(self):
        with self._writing:
            self._read_log()

    def _read_log(self):
        """What the log has and the Stream does not. Where its vectors are another model's, all of
        them are made anew and, by who writes, stored."""
        ours = self._is_ours()
        if ours:
            self._renewed = {}
        for rows in self._log.read(self._read_to, self._now - self.age if ours else NEVER):
            self._read_to = rows[-1].number
            for published, group in itertools.groupby(rows, lambda row: row.published):
                part = [row._replace(click=self._placed(row)) for row in group]
                clicks = [row.click for row in part]
                if published:
                    self._publish_again(clicks)
                elif not self._log.keeps_users:
                    self._apply(clicks)
                elif ours:
                    self._apply(clicks, [self._checked(row.user) for row in part])
                else:
                    self._renewed.update(zip((row.number for row in part), self._apply(clicks)))
            self._unsaved += len(rows)
        if self._writable and not ours:
            self._log.set_users(self._renewed, self._catalogue.model)
            self._renewed = {}

    def _is_ours(self):
        """Whether the log has no vectors of another model."""
        return not self._log.keeps_users or self._log.model() == self._catalogue.model

    def _placed(self, row):
        """The click of a row. One that lies in the future came when those before it did."""
        click = row.click
        if click.time <= self._now + LEAD:
            self._newest = max(self._newest, click.time)
            return click
        self._is_placed = True
        if self._newest == NEVER:  # those before it are too old to have been read
            self._newest = self._log.newest_before(row.number, self._now)
        return click._replace(time=self._now - TICK if self._newest == NEVER else self._newest)

    def _checked(self, user):
        return user if user is not None and len(user) == self._catalogue.dim else None

    def _publish_again(self, clicks):
        keys = self._catalogue.register(sorted({click.item for click in clicks}))
        with self._changing:
            for click in clicks:
                if click.item in keys:
                    self._stream.publish(keys[click.item], click.time,
                                         self._catalogue.vector(keys[click.item]))
                    if keys[click.item] in self._withdrawn:
                        self._stream.withdraw(keys[click.item])

    # --- what is asked

    def top(self, user, session, scoring, k, exclude_session, now=None, among=None):
        """As Stream.top, of keys and by the index's clock unless `now` is given: a list of
        (key, score), the best first."""
        now = self.now() if now is None else now
        with self._changing:
            keys, scores = self._stream.top(user, session, now, scoring, k, exclude_session,
                                            among)
        return list(zip(keys.tolist(), scores.tolist()))

    def volume(self, now=None):
        """As Stream.volume, by the index's clock unless `now` is given."""
        now = self.now() if now is None else now
        with self._changing:
            return self._stream.volume(now)

    def vector(self, key):
        """As Stream.vector, of a key."""
        with self._changing:
            return self._stream.vector(key)

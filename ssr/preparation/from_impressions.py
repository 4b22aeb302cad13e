"""The road from lists that users were shown, in files like MIND's, to what training reads.

The history in such a log is what a user clicked before the log begins, and is the same in all lines
of the user, or nearly so. A session for each line would repeat it for each. A user is therefore one
session of a part: the history of the user's earliest impression, then what the user clicked in the
part, in order of time. The impressions themselves are written as they are, for infer.py.
"""

from __future__ import annotations

import contextlib
from typing import Callable, Mapping, NamedTuple, Sequence

import numpy as np

from ssr.data_directory import PARTS, Description, PartSize, impressions_name, sessions_name
from ssr.errors import DataError
from ssr.preparation.filtering import Stage
from ssr.preparation.mind import Impression, read_behaviors
from ssr.preparation.numbering import NO_EARLIER_RUN, EarlierRun, ItemNumbers, PartNumbers
from ssr.preparation.output import Output
from ssr.preparation.writing import (
    TextSettings,
    Written,
    has_tokens,
    read_catalogue,
    write_items,
)

DAY = 86_400  # seconds
MIN_SESSION_LENGTH = 2  # clicks; from a shorter session nothing can be predicted


class Prepared(NamedTuple):
    """What prepare_impressions has written. impressions: {part: how many}"""

    written: Written
    impressions: dict


def prepare_impressions(files: Mapping[str, Sequence[str]], days: Mapping[str, float], output_dir,
                        settings: TextSettings, *, inputs: Sequence[str] = (),
                        earlier: EarlierRun = NO_EARLIER_RUN,
                        on_stage: Callable[[Stage], None] = lambda stage: None) -> Prepared:
    """Writes the output directory from logs of impressions, all of it or nothing.

    files: {part: paths} of files like behaviors.tsv; "train" must be one of the parts
    days: {part: days} of those of "test" and "valid" that are cut off the newest impressions of
        the training logs; a part comes from one of the two
    settings: with the text of the articles
    inputs: further paths that must not be overwritten
    earlier: the run whose items keep their ids
    on_stage: called after each part
    Raises DataError and SetupError.
    """
    parts = [part for part in PARTS if part in files or part in days]
    paths = [path for of_part in files.values() for path in of_part]
    numbers = ItemNumbers(earlier.raw_ids)
    with Output(output_dir, parts, tokens=has_tokens(settings, earlier), shown_parts=parts,
                inputs=[*paths, *inputs]) as output:
        catalogue = read_catalogue(settings)
        log = _Log(files, _beginnings(files["train"], days))
        sizes = {}
        for part, users in log.users(parts).items():
            stage = _write_sessions(output, part, users, numbers)
            sizes[part] = PartSize(stage.sessions, stage.clicks)
            on_stage(stage)
            if part == "train":
                num_train = len(numbers)
        impressions = _write_impressions(output, parts, log, numbers)
        written = write_items(output, numbers.raw_ids(), num_train, catalogue, settings, earlier)
        output.commit(Description(written.items, written.num_tokens, "mind", "UTC", sizes,
                                  output.files))
    return Prepared(written, impressions)


# --- which part an impression belongs to ----------------------------------------------------------


class _Log:
    """The impressions of all files. They are read anew each time, so that they are never in memory
    together.

    files: as of prepare_impressions
    beginnings: as of _beginnings
    """

    def __init__(self, files, beginnings):
        self.files, self.beginnings = files, beginnings

    def __iter__(self):
        """Yields (part, Impression)."""
        for part, paths in self.files.items():
            for path in paths:
                for impression in read_behaviors(path):
                    yield self._part(part, impression.time), impression

    def _part(self, part, time):
        if part == "train":
            for cut, beginning in self.beginnings.items():
                if time >= beginning:
                    return cut
        return part

    def users(self, parts):
        """{part: {user: _User}}, users in the order in which they are first seen."""
        users = {part: {} for part in parts}
        for part, impression in self:
            user = users[part].get(impression.user)
            if user is None:
                user = users[part][impression.user] = _User()
            user.add(impression)
        return users


def _beginnings(paths, days):
    """{part: the time of its earliest impression}, for the parts that are cut off the newest
    impressions of the training logs, the newest part first. As with clicks, a part is what is at
    most so many days older than the newest impression that is left. Raises DataError."""
    beginnings = {}
    if not days:
        return beginnings
    times = np.array([impression.time for path in paths for impression in read_behaviors(path)])
    for part in ("test", "valid"):
        if part in days and len(times):
            beginnings[part] = times.max() - round(days[part] * DAY)
            times = times[times < beginnings[part]]
    if not len(times):
        flags = " and ".join(f"--{part}_days {days[part]:g}" for part in days)
        raise DataError(f"{', '.join(paths)}: nothing is left to train on before the impressions "
                        f"of {flags}: try fewer days")
    return beginnings


class _User:
    """What is known of a user in a part: the earliest history, and the clicks with their times."""

    __slots__ = ("clicks", "history", "time")

    def __init__(self):
        self.time, self.history, self.clicks = None, b"", []

    def add(self, impression: Impression):
        if self.time is None or impression.time < self.time:
            self.time, self.history = impression.time, b" ".join(impression.history)
        clicks = impression.clicks()
        if clicks:
            self.clicks.append((impression.time, b" ".join(clicks)))

    def session(self):
        """The raw ids of all clicks, oldest first, <bytes>[clicks]."""
        self.clicks.sort(key=lambda click: click[0])  # stable: of the same time, in file order
        return b" ".join([self.history, *(clicks for _, clicks in self.clicks)]).split()


# --- writing --------------------------------------------------------------------------------------


def _write_sessions(output, part, users, numbers):
    """The sessions of the users of a part. users: {user: _User}. Raises DataError for none."""
    part_numbers = PartNumbers(numbers)
    number_of = part_numbers.__getitem__
    clicks = sessions = 0
    with output.create(sessions_name(part)) as out:
        for user in users.values():
            session = user.session()
            if len(session) >= MIN_SESSION_LENGTH:
                out.write(b" ".join(map(number_of, session)) + b"\n")
                clicks += len(session)
                sessions += 1
    if not sessions:
        raise DataError(f"no user has {MIN_SESSION_LENGTH} clicks in the {part} part, history "
                        "included: is the log complete, and are its labels those of clicks?")
    return Stage(part, clicks, sessions, len(part_numbers))


def _write_impressions(output, parts, log, numbers):
    """The impressions of all parts. Articles that were shown and never clicked get their numbers
    here, behind all others. Returns {part: how many}."""
    counts = dict.fromkeys(parts, 0)
    number_of = numbers.__getitem__
    with contextlib.ExitStack() as stack:
        files = {part: stack.enter_context(output.create(impressions_name(part)))
                 for part in parts}
        for part, (_, time, history, shown) in log:
            files[part].write(b"%d\t%b\t%b\n" % (
                time, b" ".join(map(number_of, history)),
                b" ".join([number_of(article[:-2]) + article[-2:] for article in shown])))
            counts[part] += 1
    return counts

"""The files of MIND, Microsoft's news data set (Wu et al., "MIND: A Large-scale Dataset for News
Recommendation", ACL 2020), and of what is laid out like them.

behaviors.tsv has a line for each impression, a list of articles that a user was shown: impression
id, user, time, history, impressions, with a tab between. The history is what the user had clicked
before, oldest first, without times; the impressions are the articles shown, N123-1 if it was
clicked and N123-0 if not. news.tsv has a line for each article: id, category, subcategory, title,
abstract, url, and the entities of title and abstract.
"""

from __future__ import annotations

import calendar
import functools
import re
from time import strptime
from typing import Iterator, NamedTuple

from ssr.errors import DataError
from ssr.files import numbered_lines
from ssr.preparation.text import ItemText

BEHAVIORS = ("impression id", "user", "time", "history", "impressions")
NEWS = ("id", "category", "subcategory", "title", "abstract", "url", "title entities",
        "abstract entities")
DAY_FORMAT, CLOCK_FORMAT = "%m/%d/%Y", "%I:%M:%S %p"
_MIDNIGHT = calendar.timegm((1900, 1, 1, 0, 0, 0))  # of the day that a time without one is on

_SHOWN = re.compile(rb"\s*(?:\S+-[01](?:\s+|$))+")


class Impression(NamedTuple):
    """A list that a user was shown.

    time: in seconds since 1970
    history: <bytes>[clicks], the raw ids of what the user had clicked before, oldest first
    shown: <bytes>[articles], the raw id of each with its label, b"N123-1" if it was clicked
    """

    user: str
    time: int
    history: list
    shown: list

    def clicks(self):
        """The raw ids of the articles that were clicked, in the order in which they were shown."""
        return [article[:-2] for article in self.shown if article.endswith(b"-1")]


def read_behaviors(path) -> Iterator[Impression]:
    """Yields the impressions of a behaviors.tsv, in file order. Times are read as UTC. Raises
    DataError."""
    what = "it holds a line for each impression, as MIND's behaviors.tsv"
    for place, fields in _read_fields(path, BEHAVIORS, what):
        _, user, time, history, shown = fields
        seconds = _seconds(time)
        if seconds is None:
            raise DataError(f"{place}: {time[:40]!r} is not a time; they are written as 11/15/2019 "
                            "8:55:22 AM")
        shown = shown.encode()
        if not _SHOWN.fullmatch(shown):
            raise DataError(f"{place}: {_unlabelled(shown)}")
        yield Impression(user, seconds, history.encode().split(), shown.split())


def read_news(paths) -> dict[str, ItemText]:
    """{raw id: ItemText} of the articles in files like news.tsv. Title and abstract are the text,
    category and subcategory are fields. An article that stands in several files is taken from the
    last one. Raises DataError."""
    items = {}
    for path in paths:
        lines = {}
        what = "it holds a line for each article, as MIND's news.tsv"
        for place, fields in _read_fields(path, NEWS, what):
            raw, category, subcategory, title, abstract = fields[:5]
            if not raw or raw.split() != [raw]:
                raise DataError(f"{place}: {raw[:40]!r} cannot be an id: it is empty or holds "
                                "white space")
            if lines.setdefault(raw, place) != place:
                raise DataError(f"{place}: the article {raw[:40]!r} has a line before this one: "
                                "keep one of them")
            items[raw] = ItemText(f"{title} {abstract}".strip(),
                                  {"category": category, "subcategory": subcategory})
    return items


def _read_fields(path, names, what):
    """Yields ("PATH, line N", the fields) of each line that is not blank. Raises DataError."""
    for number, line in numbered_lines(path, what):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != len(names):
            raise DataError(f"{path}, line {number}: {len(fields)} fields where {len(names)} are "
                            f"expected, with a tab between: {', '.join(names)}")
        yield f"{path}, line {number}", fields


def _seconds(time):
    """A time as MIND writes it -> seconds since 1970, None where it is none."""
    day, _, clock = time.partition(" ")
    try:
        seconds = _parse_time(day, DAY_FORMAT) + _parse_time(clock, CLOCK_FORMAT) - _MIDNIGHT
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


@functools.lru_cache(maxsize=1 << 17)  # more than the seconds of a day: each is parsed once
def _parse_time(text, time_format):
    return calendar.timegm(strptime(text, time_format))


def _unlabelled(shown):
    """What is wrong with a list of shown articles."""
    article = next((article for article in shown.split() if not _SHOWN.fullmatch(article)), b"")
    if not article:
        return "the impression shows nothing"
    return (f"{article.decode(errors='replace')[:40]!r} has no label: -1 is put behind an article "
            "that was clicked and -0 behind one that was not; a log without labels has nothing to "
            "learn from or to compare with")

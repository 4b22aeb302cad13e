"""A Stream as arrays and back, and what heals one whose clicks came with a wrong clock."""

from __future__ import annotations

import numpy as np

from ssr.news.scoring import PASSAGES, WINDOWS
from ssr.news.transitions import Transitions

MAX_EXPONENT = 700.0  # of exp, in float64


def to_arrays(stream):
    """{name: array} of a Stream."""
    times = [np.nan if time is None else time for time in (stream.base, stream.compacted)]
    return {**stream.articles.to_arrays(), **stream.transitions.to_arrays(stream.articles.used),
            **_of_waiting(stream.waiting(), stream.dim),
            "common": stream.common.copy(), "users": np.array(stream.users),
            "withdrawn": np.array(sorted(stream.withdrawn), np.int64),
            "clock": np.array([*times, stream.age, stream.clock])}


def _of_waiting(waiting, dim):
    """The clicks that wait; what came before each, end to end; a row of nan is no vector."""
    users = [np.full(dim, np.nan) if click.user is None else click.user for click in waiting]
    return {"pending_items": np.array([[click.item, len(click.previous)] for click in waiting],
                                      np.int64).reshape(-1, 2),
            "pending_previous": np.array([item for click in waiting for item in click.previous],
                                         np.int64),
            "pending_times": np.array([click.time for click in waiting], float),
            "pending_users": np.array(users, np.float32).reshape(-1, dim)}


def from_arrays(cls, arrays, vector_of=None, now=None):
    """See Stream.from_arrays. cls: Stream"""
    if now is not None:
        arrays = _healed(arrays, now)
    base, compacted, age, *clock = (None if np.isnan(x) else float(x) for x in arrays["clock"])
    stream = cls(arrays["common"].shape[0], vector_of, age)
    stream.articles.fill(arrays)
    stream.transitions = Transitions.from_arrays(arrays, base)
    stream.base, stream.compacted = base, compacted
    stream.clock, = clock or [-np.inf]  # earlier versions had none
    stream.common, stream.users = arrays["common"].copy(), int(arrays["users"])
    stream.withdrawn = set(arrays["withdrawn"].tolist())
    begin = 0
    for (item, size), time, user in zip(arrays["pending_items"], arrays["pending_times"],
                                        arrays["pending_users"]):
        previous = arrays["pending_previous"][begin:begin + size].tolist()
        stream.click(item, previous, time, None if np.isnan(user).any() else user)
        begin += size
    return stream


def _healed(arrays, now):
    """Arrays in which nothing is of a later moment than now. Counts that clicks of the future have
    a part in become those of one click."""
    base, ahead = arrays["clock"][0], arrays["last"] > now
    new_base = min(base, now)

    def healed(counts, windows, ahead):
        windows = np.array(windows)
        counts = counts * _exp((base - new_base) / windows)
        counts[ahead] = np.minimum(counts[ahead], _exp((now - new_base) / windows))
        return counts

    changed = {"clock": np.minimum(arrays["clock"], [now, now, np.inf, now][:len(arrays["clock"])]),
               "last": np.minimum(arrays["last"], now),
               "pending_times": np.minimum(arrays["pending_times"], now)}
    if not np.isnan(base):
        changed["clicks"] = healed(arrays["clicks"], WINDOWS, ahead)
        changed["counts"] = healed(arrays["counts"], PASSAGES, ahead[arrays["targets"]])
    return {**arrays, **changed}


def _exp(x):
    return np.exp(np.minimum(x, MAX_EXPONENT))

"""What an item scores that the session has clicked already.

A cosine tells how well an item fits, and nothing of whether a session comes back to it: in a shop a
third of the next clicks are on items of the session, on a news portal none, and within a session
the readiness to come back shows early. Such an item therefore scores, in place of its cosine c,

    c + w * (1, c, newest, log(times), log(1 + back), log(n), 1 - m / n)

after n clicks on m items, `times` of them on this one, the last time `back` clicks ago; newest is 1
if that was the last click of all. The scores of all other items stay their cosines, and with them
the index and its search: the few items of a session are scored one by one. (Coming back as a mode
of its own: Ren et al., "RepeatNet", AAAI 2019; here it is seven numbers.) They are fitted by
ssr.evaluation.repeats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ssr.errors import SetupError


class OwnItems(NamedTuple):
    """The items of some sessions, each once a session.

    rows, items: <int64>[n], the number of the session, ascending, and what was clicked
    times, back: <int64>[n], how often, and how many clicks ago the last time, from 0 on
    clicks, distinct: <int64>[n], how many clicks the session has, and on how many items
    """

    rows: np.ndarray
    items: np.ndarray
    times: np.ndarray
    back: np.ndarray
    clicks: np.ndarray
    distinct: np.ndarray

    @classmethod
    def of(cls, clicks, lengths):
        """clicks: <int64>[clicks], what was clicked, oldest first, sessions end to end; lengths:
        <int64>[sessions]"""
        rows = np.repeat(np.arange(len(lengths)), lengths)
        back = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(clicks)) - 1
        order = np.lexsort((back, clicks, rows))
        rows, items, back = rows[order], clicks[order], back[order]
        is_first = np.ones(len(rows), bool)
        is_first[1:] = (np.diff(rows) > 0) | (np.diff(items) != 0)
        first = np.flatnonzero(is_first)
        rows, times = rows[first], np.diff(first, append=len(items))
        distinct = np.bincount(rows, minlength=len(lengths))
        return cls(rows, items[first], times, back[first], np.asarray(lengths)[rows],
                   distinct[rows])

    def select(self, chosen):
        """Some of them. chosen: <bool>[n]"""
        return OwnItems(*(values[chosen] for values in self))


class RepeatScore(NamedTuple):
    """The weights of the formula above, in its order and in the units of a cosine. With all of them
    0, items of the session score as all others."""

    bias: float = 0.0
    cosine: float = 0.0
    newest: float = 0.0
    times: float = 0.0
    back: float = 0.0
    length: float = 0.0
    repetition: float = 0.0

    @classmethod
    def of_meta(cls, meta):
        """That of the checkpoint with this metadata, None where it has none. Raises SetupError."""
        saved = meta.get("repeats")
        if saved is None:
            return None
        try:
            score = cls(**{name: float(value) for name, value in saved.items()})
            if not all(map(math.isfinite, score)):
                raise ValueError
        except (TypeError, ValueError, AttributeError) as error:
            raise SetupError("the checkpoint is damaged: its repeats are "
                             f"{saved!r:.80}") from error
        return score

    def __call__(self, cosines, own):
        """The scores of OwnItems, numpy <float32>[n]. cosines: theirs, numpy <float32>[n]"""
        return (cosines + features_of(cosines, own) @ np.array(self)).astype(np.float32)


def features_of(cosines, own):
    """What the weights of a RepeatScore are for: <float64>[n, 7]. Arguments: as of it"""
    return np.stack([np.ones(len(cosines)), cosines, own.back == 0, np.log(own.times),
                     np.log1p(own.back), np.log(own.clicks), 1 - own.distinct / own.clicks],
                    axis=-1)

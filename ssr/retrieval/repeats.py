"""What an item scores that the session has clicked already.

A cosine tells how well an item fits, and nothing of whether a session comes back to it: in a shop a
third of the next clicks are on items of the session, on a news portal none, and within a session
the readiness to come back shows early. Such an item therefore scores, in place of its cosine c,

    c + bias + of_cosine * c + of_length * log(n) + of_repetition * (1 - m / n)

after n clicks on m items. The scores of all other items stay their cosines, and with them the index
and its search: the few items of a session are scored one by one (repeat consumption as a mode of
its own: Ren et al., "RepeatNet", AAAI 2019; here it is four numbers). ssr.evaluation.repeats fits
them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ssr.errors import SetupError


class RepeatScore(NamedTuple):
    """The weights of the formula above, in the units of a cosine. With all of them 0, items of the
    session score as all others."""

    bias: float = 0.0
    of_cosine: float = 0.0
    of_length: float = 0.0
    of_repetition: float = 0.0

    @classmethod
    def of_meta(cls, meta):
        """That of the checkpoint with this metadata, None where it has none. Raises SetupError."""
        saved = meta.get("repeats")
        if saved is None:
            return None
        try:
            score = cls(**{name: float(value) for name, value in saved.items()})
        except (TypeError, ValueError, AttributeError) as error:
            raise SetupError("the checkpoint is damaged: its repeats are "
                             f"{saved!r:.80}") from error
        if not all(map(math.isfinite, score)):
            raise SetupError(f"the checkpoint is damaged: its repeats are {saved!r:.80}")
        return score

    def __call__(self, cosines, clicks, distinct):
        """The scores of items of sessions: numpy <float32>[n].

        cosines: numpy <float32>[n]; clicks, distinct: how many clicks the session of each has, as
        the encoder takes them, and on how many items; numpy <int64>[n], or one for all
        """
        features = features_of(cosines, clicks, distinct)
        return (cosines + features @ np.array(self)).astype(np.float32)


def features_of(cosines, clicks, distinct):
    """What the weights of a RepeatScore are for: <float64>[n, 4]. Arguments: as of it"""
    clicks, distinct = np.asarray(clicks), np.asarray(distinct)
    columns = np.broadcast_arrays(1.0, cosines, np.log(clicks), 1 - distinct / clicks)
    return np.stack(columns, axis=-1)

"""The live score: its features, its weights, and the weights' file.

The score of article j for a reader with the vector u, who has clicked i_1 (the newest), i_2, ... in
this session, is

    score(j) = readers * n/(n + SHRINK) * cos(u - m, r_j)
             + content * SHRINK/(n + SHRINK) * (e_j - m) . (u - m)/|u - m|
             + sum over w of power_w * log(c_w(j) + COUNT_FLOOR)
             + followed * log(T_w(i_1 -> j) + LINK_FLOOR)             w: the longest
             + log(share * c_w(j) / (sum of c_w over all articles)    w: SHARE_WINDOW
                   + sum over w of last_w * T_w(i_1 -> j)
                   + sum over w of earlier_w * sum over l > 1 of T_w(i_l -> j) / l
                   + floor)

    r_j       running mean of the vectors that the newest READERS readers of j had before they
              clicked it, less m; n is their number
    m         running mean of the vectors of all users: what they share says nothing about one
    e_j       a vector that does not come from clicks: the trained one or one made from the words
    c_w(j)    clicks on j, each worth exp(-age / w), w of WINDOWS
    T_w(i->j) clicks on j by readers of i, each worth exp(-age / w) / (how many clicks later),
              w of PASSAGES

These scores are the logits of a softmax over the articles. The weights (Scoring) are those that
make the clicks of some hours likeliest (fit.py); a weight of 0 switches its part off. The last
logarithm is of a mixture: popularity is the prior, with a uniform one of weight `floor`, and the
session's transitions are the evidence, as in a language model with Dirichlet smoothing (Zhai and
Lafferty, TOIS 2004). Without transitions it falls back on popularity. Popularity in several windows
is a trend: an article with more clicks in five minutes than the last hours promise is rising.
Transitions from the session's earlier clicks, worth less the further back, are the sequential rules
of Ludewig and Jannach (UMUAI 2018).
"""

from __future__ import annotations

import json
from typing import NamedTuple, Tuple

import numpy as np

from ssr.errors import DataError
from ssr.files import write_text

WINDOWS = (300.0, 900.0, 3600.0, 14400.0)  # seconds: of popularity
PASSAGES = (3600.0, 14400.0)  # seconds: of transitions
LAGS = 8  # a session's newest clicks, from which transitions start
SHRINK = 5.0  # readers, at which their mean has half of its weight
READERS = 30  # the mean forgets: its newest term counts for 1/30 at least
SHARE_WINDOW = 1  # of WINDOWS: the popularity that transitions are mixed with
COUNT_FLOOR = 0.3  # clicks, added before the logarithm
LINK_FLOOR = 0.05  # transitions, the same
TINY = 1e-6  # in the logarithm of the mixture: all of its weights may be 0
GROUPS = {"popularity": ("power", "share"), "transitions": ("followed", "last", "earlier")}
PARTS = ("readers", "content", *GROUPS)  # what Scoring.without is usually asked for
DIGEST_KEY = "model_digest"


class Layout:
    """Names for the parts of a vector, and for the rows of an array that it is multiplied with.

    size: of the vector; layout["name"]: the slice of a part
    """

    def __init__(self, **sizes):
        """sizes: of the parts, in order"""
        ends = np.cumsum(list(sizes.values())).tolist()
        self.size = ends[-1]
        self._slices = {name: slice(end - size, end)
                        for (name, size), end in zip(sizes.items(), ends)}

    def __getitem__(self, name):
        return self._slices[name]

    def __iter__(self):
        return iter(self._slices)


# The weights outside of the mixture and those inside, by the names of Scoring's fields.
LINEAR = Layout(readers=1, content=1, power=len(WINDOWS), followed=1)
MIXED = Layout(share=1, last=len(PASSAGES), earlier=len(PASSAGES), floor=1)
_PLACES = {name: (array, layout[name]) for array, layout in enumerate((LINEAR, MIXED))
           for name in layout}  # in Features


class Features(NamedTuple):
    """What the score of n articles is made of.

    linear: <float32>[LINEAR.size, n]; mixed: <float32>[MIXED.size, n]
    """

    linear: np.ndarray
    mixed: np.ndarray

    @classmethod
    def zeros(cls, n):
        return cls(np.zeros((LINEAR.size, n), np.float32), np.zeros((MIXED.size, n), np.float32))

    def part(self, name):
        """The rows that belong to a field of Scoring, <float32>[rows, n]; writing into them
        changes the features."""
        array, rows = _PLACES[name]
        return self[array][rows]

    def select(self, articles):
        """The features of some of the articles. articles: indices <int64>[m]"""
        return Features(self.linear[:, articles], self.mixed[:, articles])

    def score(self, linear, mixed):
        """<float32>[n]. linear, mixed: Scoring.weights()"""
        score = mixed @ self.mixed
        score += TINY
        np.log(score, out=score)
        score += linear @ self.linear
        return score


class Scoring(NamedTuple):
    """The weights of the score (see the module). `share`, `last`, `earlier` and `floor` are 0 or
    more."""

    readers: float = 0.8
    content: float = 0.0
    power: Tuple[float, ...] = (0.0, -0.2, 0.1, -0.5)
    followed: float = 0.4
    share: float = 40.0
    last: Tuple[float, ...] = (0.03, 0.003)
    earlier: Tuple[float, ...] = (0.1, 0.01)
    floor: float = 0.01

    def to_json(self):
        return json.dumps(self._asdict(), indent=1)

    @classmethod
    def from_json(cls, text):
        """The inverse of to_json; fields that are missing have their defaults. Raises DataError for
        any other text."""
        values = _parsed(text)
        values.pop(DIGEST_KEY, None)
        for name, value in values.items():
            if name not in cls._fields:
                raise DataError(f"{name!r} is not a weight of the score: those are "
                                f"{', '.join(cls._fields)}")
            values[name] = _checked(name, value, cls._field_defaults[name])
        return cls(**values)

    def without(self, *parts):
        """The same with some parts switched off: fields, or "popularity" for `power` and `share`,
        "transitions" for `followed`, `last` and `earlier`."""
        names = [name for part in parts for name in GROUPS.get(part, (part,))]
        return self._replace(**{name: tuple(0.0 for _ in value) if _is_many(value) else 0.0
                                for name, value in self._asdict().items() if name in names})

    def weights(self):
        """(<float32>[LINEAR.size], <float32>[MIXED.size]), in the order of these layouts."""
        return (np.array([self.readers, self.content, *self.power, self.followed], np.float32),
                np.array([self.share, *self.last, *self.earlier, self.floor], np.float32))

    @classmethod
    def from_weights(cls, linear, mixed):
        """The inverse of weights."""
        values = {}
        for layout, vector in ((LINEAR, linear), (MIXED, mixed)):
            for name in layout:
                part = tuple(float(x) for x in vector[layout[name]])
                values[name] = part if _is_many(cls._field_defaults[name]) else part[0]
        return cls(**values)


def _is_many(value):
    return isinstance(value, (tuple, list))


def _parsed(text):
    """The dict in a text of JSON. Raises DataError."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise DataError("not the weights of a score: nested too deeply") from error
    except ValueError as error:
        raise DataError(f"not the weights of a score: {error}") from error
    if not isinstance(values, dict):
        raise DataError("not the weights of a score: it is no JSON object")
    return values


def _checked(name, value, default):
    """A weight as Scoring has it. Raises DataError."""
    numbers = value if _is_many(value) else [value]
    if _is_many(value) != _is_many(default) or len(numbers) != len(np.atleast_1d(default)):
        raise DataError(f"{name} must look like {json.dumps(default)}")
    try:
        numbers = tuple(float(x) for x in numbers if not isinstance(x, (bool, str)))
    except (TypeError, OverflowError):
        numbers = ()
    if len(numbers) != len(np.atleast_1d(default)) or not np.isfinite(numbers).all():
        raise DataError(f"{name} must be made of finite numbers, like {json.dumps(default)}")
    if name in MIXED and min(numbers) < 0:
        raise DataError(f"{name} must not be negative")
    return numbers if _is_many(default) else numbers[0]


# --- the file -------------------------------------------------------------------------------------


def read_scoring(path):
    """The Scoring in a file, and the digest of the model that it was fitted with, None in files of
    earlier versions. Raises DataError."""
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read()
        digest = _parsed(text).get(DIGEST_KEY)
        if not isinstance(digest, (str, type(None))):
            raise DataError(f"{DIGEST_KEY} is not a text")
        return Scoring.from_json(text), digest
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; evaluate_stream.py --fit "
                        "writes such a file") from error
    except ValueError as error:  # a DataError, or not UTF-8
        raise DataError(f"cannot read {path}: {error}") from error


def write_scoring(path, scoring, model_digest):
    """Writes a file for read_scoring. Raises SetupError."""
    values = {DIGEST_KEY: model_digest, **scoring._asdict()}
    write_text(path, json.dumps(values, indent=1) + "\n")

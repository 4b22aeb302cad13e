"""News as they happen: vectors made by readers, recency and transitions, in one score.

An article appears, is read for some hours and vanishes; training saw none of it. What is known of
it at any moment is who clicked it, when, and what its readers went on to. A Stream keeps just that
and is changed by every click, in less than a millisecond. The score of article j for a reader with
the vector u, after the clicks i_1 (the newest), i_2, ... of the session, at some moment, is

    score(j) = readers * n/(n + SHRINK) * cos(u - m, r_j)
             + content * SHRINK/(n + SHRINK) * (e_j - m) . unit(u - m)
             + sum over w of power_w * log(c_w(j) + COUNT_FLOOR)
             + followed * log(T_w(i_1 -> j) + LINK_FLOOR)             w: the longest
             + log(share * c_w(j) / (sum of c_w over all articles)    w: SHARE_WINDOW
                   + sum over w of last_w * T_w(i_1 -> j)
                   + sum over w of earlier_w * sum over l > 1 of T_w(i_l -> j) / l
                   + floor)

    r_j      running mean over the newest READERS readers of j of their vectors, before the click,
             less m; n is how many there are
    m        running mean of all users' vectors: the part that all share and that tells nothing
    e_j      a vector that does not come from clicks: the trained one or one made from the words
    c_w(j)   clicks on j, each worth exp(-age / w), w of WINDOWS
    T_w(i->j) clicks on j by readers of i, each worth exp(-age / w) / (how many clicks later),
             w of PASSAGES

As logits of a softmax these scores make the clicks of a day likely or not; the weights (Scoring)
are those that make them likeliest (fit). A weight of 0 switches its part off. The last logarithm is
of a mixture: popularity is the prior (with `floor` of a uniform one), the session's transitions are
the evidence, as in a language model with Dirichlet smoothing (Zhai and Lafferty, TOIS 2004); what
has no transitions falls back on popularity. Popularity in several windows is a trend: more in five
minutes than the last hours promise is an article that rises. Transitions over the session's
earlier clicks, less the further back, are the sequential rules of Ludewig and Jannach (UMUAI 2018).

A click at time t is seen by whatever asks at a time later than t and by nothing that asks at t.

    stream = Stream(dim=128)
    stream.click(item=7, previous=[3, 5], time=1508000000, user=vector)   # None: no vector
    ids, scores = stream.scores(vector, session=[3, 5, 7], now=1508000060, scoring=Scoring())

Memory: (4 * 2 * dim + 100) bytes an article and about 150 bytes a pair of articles that readers
went between. Both are forgotten after `age` seconds without a click (compact, once an hour of the
stream), so memory grows with the traffic of a day and not with the age of the stream.

Everything is numpy. A Stream is not locked: one thread at a time.
"""

from __future__ import annotations

import json
from typing import NamedTuple, Tuple

import numpy as np

WINDOWS = (300.0, 900.0, 3600.0, 14400.0)  # seconds: of popularity
PASSAGES = (3600.0, 14400.0)  # seconds: of transitions
LAGS = 8  # newest clicks of a session that a transition starts from
SHRINK = 5.0  # readers, at which their mean has half of its weight
READERS = 30  # the mean forgets: its newest term counts for 1/30 at least
COMMON = 20000  # the same of the mean of all users
SHARE_WINDOW = 1  # of WINDOWS: the popularity that transitions are mixed with
COUNT_FLOOR = 0.3  # clicks, added before the logarithm
LINK_FLOOR = 0.05  # transitions, the same
AGE = 86400.0  # seconds without a click after which an article is no candidate
COMPACT_EVERY = 3600.0  # seconds of the stream
REBASE_AFTER = 100.0  # decay is kept as exp(+age/w), which must not overflow
NUM_LINEAR = 3 + len(WINDOWS)
NUM_MIXED = 2 + 2 * len(PASSAGES)
ARRAYS = ("ids", "first", "last", "gone", "readers", "unit", "mean", "content", "has_content",
          "clicks")


class Scoring(NamedTuple):
    """The weights of the score; the module says what each is. `share`, `last`, `earlier` and
    `floor` are 0 or more. All of 0 in one part switch it off."""

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
        """Raises ValueError where the text is not what to_json returns."""
        try:
            value = json.loads(text)
            found = cls(**{name: tuple(map(float, part)) if isinstance(part, list) else float(part)
                           for name, part in value.items()})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not the parameters of a score: {error}") from error
        for name, default in cls()._asdict().items():
            part = getattr(found, name)
            if np.shape(part) != np.shape(default) or not np.isfinite(part).all():
                raise ValueError(f"{name} is {part}, it must be like {default}")
            if name in MIXED and np.min(part) < 0:
                raise ValueError(f"{name} is {part}, it must not be negative")
        return found

    def without(self, *parts):
        """The same with some parts switched off: fields, or "popularity" for `power` and `share`,
        "transitions" for `followed`, `last` and `earlier`."""
        names = [name for part in parts for name in PARTS.get(part, (part,))]
        return self._replace(**{name: np.zeros_like(getattr(self, name)).tolist()
                                if np.ndim(getattr(self, name)) else 0.0 for name in names})

    def weights(self):
        """(<float32>[NUM_LINEAR], <float32>[NUM_MIXED]), in the order of Stream.features."""
        return (np.array([self.readers, self.content, *self.power, self.followed], np.float32),
                np.array([self.share, *self.last, *self.earlier, self.floor], np.float32))

    @classmethod
    def from_weights(cls, linear, mixed):
        """The inverse of weights."""
        linear, mixed = [float(x) for x in linear], [float(x) for x in mixed]
        p = len(PASSAGES)
        return cls(linear[0], linear[1], tuple(linear[2:-1]), linear[-1], mixed[0],
                   tuple(mixed[1:1 + p]), tuple(mixed[1 + p:1 + 2 * p]), mixed[-1])


MIXED = ("share", "last", "earlier", "floor")
PARTS = {"popularity": ("power", "share"), "transitions": ("followed", "last", "earlier")}
TINY = 1e-6  # in the logarithm of the mixture: all of its weights may be 0


class _Targets:
    """Where the readers of an article went: slots and their decayed counts, growing arrays."""

    __slots__ = ("row", "slots", "counts", "size")

    def __init__(self, slots=(), counts=None):
        """slots: <int64>[n], each once; counts: <float64>[n, PASSAGES]"""
        self.size = len(slots)
        self.row = {int(slot): row for row, slot in enumerate(slots)}
        room = max(4, self.size)
        self.slots = np.zeros(room, np.int64)
        self.counts = np.zeros((room, len(PASSAGES)))
        if self.size:
            self.slots[:], self.counts[:] = _padded(slots, room), _padded(counts, room)

    def add(self, slot, amount):
        """amount: <float64>[PASSAGES]"""
        row = self.row.get(slot)
        if row is None:
            row = self.row[slot] = self.size
            if row == len(self.slots):
                self.slots, self.counts = (_padded(a, 2 * row) for a in (self.slots, self.counts))
            self.slots[row] = slot
            self.size += 1
        self.counts[row] += amount

    def used(self):
        return self.slots[:self.size], self.counts[:self.size]


def _padded(array, rows):
    """The array with zeros behind it, `rows` in all."""
    array = np.asarray(array)
    more = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, more])


def unit(x):
    """Rows of length 1, zeros stay: <float32>[..., dim]."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


class Stream:
    """The live state of the articles that are read these days.

    dim: of the users' vectors
    vector_of: called with an article's id when it is first clicked, returns its vector of length 1
        <float32>[dim] (trained, or made from its words), or None where it has none
    age: seconds after its last click that an article remains a candidate
    """

    def __init__(self, dim, vector_of=None, age=AGE):
        self.dim, self.age = dim, float(age)
        self.vector_of = vector_of or (lambda item: None)
        self.slot_of = {}
        self.targets = []  # by slot: _Targets, or None
        self.withdrawn = set()
        self.pending = []  # clicks that nothing has asked after yet
        self.common = np.zeros(dim, np.float32)
        self.users = 0
        self.base = None  # the time at which a click counts 1
        self.compacted = None
        self._allocate(1024)

    def _allocate(self, room):
        new = {"ids": np.int64, "first": float, "last": float, "gone": bool,
               "readers": np.float32, "has_content": np.float32}
        for name, kind in new.items():
            setattr(self, name, np.zeros(room, kind))
        for name in ("unit", "mean", "content"):
            setattr(self, name, np.zeros((room, self.dim), np.float32))
        self.clicks = np.zeros((room, len(WINDOWS)))

    def __len__(self):
        return len(self.targets)

    # --- what changes it --------------------------------------------------------------------------

    def click(self, item, previous, time, user=None):
        """A reader clicked.

        item: the article, an integer; previous: the session's clicks before it, the newest last
        time: in seconds, on any one clock; clicks may come late, but what is asked later is asked
            at no moment before the newest. One that lies in the future is the caller's to refuse:
            what it makes old is forgotten
        user: <float32>[dim], the vector of the session before this click; None at its first click
        """
        if self.pending and time > self.pending[-1][2]:
            self.advance(time)  # not all at once when somebody asks
        self.pending.append((int(item), tuple(previous[-LAGS:]), float(time), user))

    def clicks_of(self, items, previous, times, users):
        """click, for each of some."""
        for each in zip(items, previous, times, users):
            self.click(*each)

    def publish(self, item, time, vector=None):
        """An article is a candidate from now on, though nobody clicked it yet.

        vector: <float32>[dim] of length 1, of its words; None for what vector_of says
        """
        slot = self._slot(int(item), float(time))
        self.restore(item)
        if vector is not None:
            self.content[slot], self.has_content[slot] = vector, 1

    def withdraw(self, item):
        """The article is no candidate any more, however often it is clicked."""
        self.withdrawn.add(int(item))
        if int(item) in self.slot_of:
            self.gone[self.slot_of[int(item)]] = True

    def restore(self, item):
        """Takes withdraw back."""
        self.withdrawn.discard(int(item))
        if int(item) in self.slot_of:
            self.gone[self.slot_of[int(item)]] = False

    def advance(self, now):
        """Makes the clicks visible that are strictly earlier than now; scores does it by itself."""
        seen = [click for click in self.pending if click[2] < now]
        if seen:
            self.pending = [click for click in self.pending if click[2] >= now]
            for click in seen:
                self._apply(*click)
        if self.compacted is None:
            self.compacted = now
        elif now - self.compacted > COMPACT_EVERY:
            self.compact(now)

    def _apply(self, item, previous, time, user):
        self._rebase(time)
        slot = self._slot(item, time)
        self.first[slot] = min(self.first[slot], time)
        self.last[slot] = max(self.last[slot], time)
        self.clicks[slot] += np.exp((time - self.base) / _WINDOWS)
        if user is not None:
            self._read(slot, user)
        worth = np.exp((time - self.base) / _PASSAGES)
        seen = {item}
        for lag, source in enumerate(reversed(previous), 1):
            if source not in seen:
                seen.add(source)
                source = self._slot(int(source), time)
                if self.targets[source] is None:
                    self.targets[source] = _Targets()
                self.targets[source].add(slot, worth / lag)

    def _read(self, slot, user):
        """A reader's vector goes into the mean of the article and that of all."""
        self.users += 1
        self.common += (user - self.common) / min(self.users, COMMON)
        self.readers[slot] = n = self.readers[slot] + 1
        self.mean[slot] += (user - self.common - self.mean[slot]) / min(n, READERS)
        self.unit[slot] = unit(self.mean[slot])

    def _slot(self, item, time):
        """The place of an article, a new one if need be."""
        slot = self.slot_of.get(item)
        if slot is not None:
            return slot
        slot = self.slot_of[item] = len(self.targets)
        self.targets.append(None)
        if slot == len(self.ids):
            for name in ARRAYS:
                setattr(self, name, _padded(getattr(self, name), 2 * slot))
        self.ids[slot], self.first[slot], self.last[slot] = item, time, time
        self.gone[slot] = item in self.withdrawn
        vector = self.vector_of(item)
        if vector is not None:
            self.content[slot], self.has_content[slot] = vector, 1
        return slot

    def _rebase(self, time):
        """Counts are kept as sums of exp((time - base) / w): only what is asked for decays. The
        base moves on before that overflows."""
        if self.base is None:
            self.base = time
        if time - self.base > REBASE_AFTER * min(WINDOWS + PASSAGES):
            by = time - self.base
            self.clicks *= np.exp(-by / _WINDOWS)
            for targets in self.targets:
                if targets:
                    targets.counts *= np.exp(-by / _PASSAGES)
            self.base = time

    def compact(self, now):
        """Forgets articles that are no candidates any more, and transitions that have faded."""
        self.compacted = now
        kept = np.flatnonzero(self.last[:len(self)] >= now - self.age)
        new = np.full(len(self), -1)
        new[kept] = np.arange(len(kept))
        faded = np.exp(((now - self.age - (self.base or now)) / _PASSAGES)[-1])
        targets = [self.targets[slot] and _remap(self.targets[slot], new, faded) for slot in kept]
        arrays = {name: getattr(self, name)[kept] for name in ARRAYS}
        self._allocate(max(1024, len(kept) + len(kept) // 4))
        for name, array in arrays.items():
            getattr(self, name)[:len(kept)] = array
        self.targets = targets
        self.slot_of = {int(item): slot for slot, item in enumerate(arrays["ids"])}

    # --- what asks it -----------------------------------------------------------------------------

    def features(self, user, session, now):
        """What the score is made of, for every article in its place (self.ids[:len(self)]).

        user: <float32>[dim], None where the session has no vector; session: its items, the newest
        last
        returns linear <float32>[NUM_LINEAR, n], mixed <float32>[NUM_MIXED, n]: the score is
        weights[0] @ linear + log(weights[1] @ mixed), see Scoring.weights
        """
        self.advance(now)
        return self._features(user, session, now, (True, True))

    def _features(self, user, session, now, wanted):
        """wanted: whether the readers' and the contents' products are to be computed."""
        n, p = len(self), len(PASSAGES)
        linear = np.zeros((NUM_LINEAR, n), np.float32)
        mixed = np.zeros((NUM_MIXED, n), np.float32)
        since = (self.base or 0.0) - now
        if user is not None and self.users:
            direction = unit(user - self.common)
            enough = self.readers[:n] / (self.readers[:n] + SHRINK)
            if wanted[0]:
                linear[0] = self.unit[:n] @ direction
                linear[0] *= enough
            if wanted[1]:
                linear[1] = self.content[:n] @ direction
                linear[1] -= self.has_content[:n] * (self.common @ direction)
                linear[1] *= 1 - enough
        counts = linear[2:-1]
        counts[:] = (self.clicks[:n] * np.exp(since / _WINDOWS)).T
        mixed[0] = counts[SHARE_WINDOW] / max(counts[SHARE_WINDOW].sum(), 1e-9)
        counts += np.float32(COUNT_FLOOR)
        np.log(counts, out=counts)
        decay = np.exp(since / _PASSAGES)
        for lag, item in enumerate(reversed(session[-LAGS:]), 1):
            slot = self.slot_of.get(item)
            if slot is not None and self.targets[slot]:
                slots, passed = self.targets[slot].used()
                first = 1 if lag == 1 else 1 + p
                mixed[first:first + p, slots] += (passed * (decay / lag)).T
        linear[-1] = np.log(mixed[p] + np.float32(LINK_FLOOR))
        mixed[-1] = 1
        return linear, mixed

    def _scores(self, user, session, now, scoring, exclude_session=True):
        """<float32>[articles], -inf for those that are no candidates."""
        self.advance(now)
        linear_weights, mixed_weights = scoring.weights()
        linear, mixed = self._features(user, session, now,
                                       (scoring.readers != 0, scoring.content != 0))
        score = mixed_weights @ mixed
        score += TINY
        np.log(score, out=score)
        score += linear_weights @ linear
        score[~self.candidates(session if exclude_session else (), now)] = -np.inf
        return score

    def candidates(self, session, now):
        """<bool>[articles]: clicked in the last `age` seconds, not withdrawn, not in session."""
        mask = self.last[:len(self)] >= now - self.age
        mask &= ~self.gone[:len(self)]
        slots = [self.slot_of.get(item) for item in session]
        mask[[slot for slot in slots if slot is not None]] = False
        return mask

    def scores(self, user, session, now, scoring, candidates=None, exclude_session=True):
        """(ids <int64>[n], scores <float32>[n]) of the candidates at a moment, in no order.

        user, session, now: as in features; candidates: ids, to choose from these only
        """
        score = self._scores(user, session, now, scoring, exclude_session)
        chosen = np.flatnonzero(score > -np.inf)
        if candidates is not None:
            chosen = chosen[np.isin(self.ids[chosen], candidates)]
        return self.ids[chosen], score[chosen]

    def top(self, user, session, now, scoring, k, exclude_session=True):
        """The best k of scores, the best first. exclude_session: whether the session's articles are
        no candidates"""
        ids, score = self.scores(user, session, now, scoring, exclude_session=exclude_session)
        if len(ids) > k:
            best = np.argpartition(-score, k)[:k]
            ids, score = ids[best], score[best]
        order = np.argsort(-score, kind="stable")
        return ids[order], score[order]

    def rank(self, label, user, session, now, scoring):
        """1 + the other candidates that score as high as the label or higher; 0 where the label is
        no candidate."""
        score = self._scores(user, session, now, scoring)
        slot = self.slot_of.get(label)
        if slot is None or score[slot] == -np.inf:
            return 0
        # Not "those at or above": a score that is not a number is below nothing.
        return len(score) - int(np.count_nonzero(score < score[slot]))

    def vector(self, item):
        """The readers' vector of an article, <float32>[dim] of length 1, or None where there is
        none yet: in a model with a tied tower it can stand for the article inside of a session."""
        slot = self.slot_of.get(item)
        return self.unit[slot] if slot is not None and self.readers[slot] else None

    # --- on disk ----------------------------------------------------------------------------------

    def to_arrays(self):
        """{name: array}: all of the state but pending clicks' order, for numpy.savez or a blob.
        Whatever is pending becomes part of it as it is."""
        n = len(self)
        used = [targets.used() if targets else (np.empty(0, np.int64),
                                                np.empty((0, len(PASSAGES))))
                for targets in self.targets]
        state = {name: getattr(self, name)[:n].copy() for name in ARRAYS}
        state["targets"] = np.concatenate([slots for slots, _ in used] or [np.empty(0, np.int64)])
        state["counts"] = np.concatenate([counts for _, counts in used]
                                         or [np.empty((0, len(PASSAGES)))])
        state["lengths"] = np.array([len(slots) for slots, _ in used], np.int64)
        state["common"], state["users"] = self.common.copy(), np.array(self.users)
        state["withdrawn"] = np.array(sorted(self.withdrawn), np.int64)
        clock = [np.nan if t is None else t for t in (self.base, self.compacted)]
        state["clock"] = np.array([*clock, self.age])
        state["pending_items"] = np.array([[item, len(previous)] for item, previous, _, _
                                           in self.pending], np.int64).reshape(-1, 2)
        state["pending_previous"] = np.array([i for click in self.pending for i in click[1]],
                                             np.int64)
        state["pending_times"] = np.array([click[2] for click in self.pending], float)
        # A row of nan: no vector.
        state["pending_users"] = np.array(
            [np.full(self.dim, np.nan) if click[3] is None else click[3]
             for click in self.pending], np.float32).reshape(-1, self.dim)
        return state

    @classmethod
    def from_arrays(cls, state, vector_of=None):
        """The Stream that to_arrays was asked of. Raises KeyError, ValueError where it is none."""
        stream = cls(state["common"].shape[0], vector_of, state["clock"][2])
        n = len(state["ids"])
        stream._allocate(max(1024, n))
        for name in ARRAYS:
            getattr(stream, name)[:n] = state[name]
        ends = np.cumsum(state["lengths"])
        parts = [slice(end - size, end) for end, size in zip(ends, state["lengths"])]
        stream.targets = [_Targets(state["targets"][part], state["counts"][part])
                          if part.stop > part.start else None for part in parts]
        stream.slot_of = {int(item): slot for slot, item in enumerate(state["ids"])}
        stream.common, stream.users = state["common"].copy(), int(state["users"])
        stream.withdrawn = set(state["withdrawn"].tolist())
        stream.base, stream.compacted = (None if np.isnan(t) else float(t)
                                         for t in state["clock"][:2])
        begin = 0
        for (item, size), time, user in zip(state["pending_items"], state["pending_times"],
                                            state["pending_users"]):
            previous = state["pending_previous"][begin:begin + size].tolist()
            stream.click(item, previous, time, None if np.isnan(user).any() else user)
            begin += size
        return stream


_WINDOWS, _PASSAGES = np.array(WINDOWS), np.array(PASSAGES)


def _remap(targets, new, faded):
    """_Targets with new slots (-1: gone), without those that have faded; None if none is left."""
    slots, counts = targets.used()
    slots = new[slots]
    kept = (slots >= 0) & (counts[:, -1] > faded)
    return _Targets(slots[kept], counts[kept]) if kept.any() else None


# --- fit ------------------------------------------------------------------------------------------


class Examples:
    """Queries to fit a Scoring to: for each the features of the candidates that could be among the
    best, its label's with them: the BEST of each feature and of the default weights. Thousands
    that none of these puts in front would have more weight in the softmax than in any figure.
    """

    BEST = 60

    def __init__(self):
        self.linear, self.mixed, self.label, self.weight = [], [], [], []

    def add(self, stream, label, user, session, now, weight=1.0):
        """A query, before its click; it is left out where its label is no candidate.

        weight: of the query in the fit
        """
        linear, mixed = stream.features(user, session, now)
        slot = stream.slot_of.get(label)
        places = np.flatnonzero(stream.candidates(session, now))
        if slot is None or slot not in places:
            return
        linear, mixed = linear[:, places], mixed[:, places]
        weights = Scoring().weights()
        score = weights[0] @ linear + np.log(weights[1] @ mixed + TINY)
        # What two articles have alike, as no transition, the default weights tell apart.
        orders = [score, *(feature + 1e-3 * score for feature in (*linear, *mixed[1:-1]))]
        best = min(self.BEST, len(places))
        chosen = np.unique(np.concatenate([np.argpartition(-order, best - 1)[:best]
                                           for order in orders]
                                          + [np.flatnonzero(places == slot)]))
        self.linear.append(linear[:, chosen])
        self.mixed.append(mixed[:, chosen])
        self.label.append(int(np.searchsorted(places[chosen], slot)))
        self.weight.append(weight)

    def __len__(self):
        return len(self.label)


def fit(examples, start=Scoring(), off=(), steps=100, ridge=1e-4):
    """The Scoring that makes the examples' clicks likeliest: least cross-entropy by L-BFGS.

    off: parts that stay switched off (Scoring.without); `content` is at least 0, as the mixture is
    ridge: weighs the squared distance from start, the mixture's in logarithms: what the examples
        say nothing about stays as it is
    returns (Scoring, cross-entropy at start, cross-entropy at the end), in nats a query
    """
    from scipy.optimize import minimize
    linear, mixed = np.concatenate(examples.linear, 1), np.concatenate(examples.mixed, 1)
    sizes = np.array([part.shape[1] for part in examples.linear])
    begin = np.cumsum(sizes) - sizes
    label = begin + np.array(examples.label)
    weight = np.array(examples.weight) / np.sum(examples.weight)
    start = start.without(*off)
    first = [part.astype(float) for part in start.weights()]
    ones = Scoring.from_weights(np.ones(NUM_LINEAR), np.ones(NUM_MIXED))
    free = np.concatenate(ones.without(*off).weights()) > 0
    origin = np.concatenate([first[0], np.log(np.maximum(first[1], 1e-4))])

    def loss(x):
        """(cross-entropy, its gradient) at the free ones of the weights."""
        at = origin.copy()
        at[free] = x
        powers = at[:NUM_LINEAR].astype(np.float32)
        shares = np.where(free[NUM_LINEAR:], np.exp(at[NUM_LINEAR:]), 0).astype(np.float32)
        mixture = shares @ mixed + np.float32(TINY)
        score = powers @ linear + np.log(mixture)
        score -= np.repeat(np.maximum.reduceat(score, begin), sizes)
        probability = np.exp(score)
        total = np.add.reduceat(probability, begin)
        cross_entropy = float(weight @ (np.log(total) - score[label]))
        probability *= np.repeat(weight / total, sizes).astype(np.float32)
        probability[label] -= weight.astype(np.float32)
        gradient = np.concatenate([linear @ probability,
                                   (mixed @ (probability / mixture)) * shares])
        away = x - origin[free]
        return cross_entropy + ridge * away @ away, gradient[free] + 2 * ridge * away

    bounds = [(None, None), (0, None), *[(None, None)] * (NUM_LINEAR - 2 + NUM_MIXED)]
    bounds = [bound for bound, is_free in zip(bounds, free) if is_free]
    found = minimize(loss, origin[free], jac=True, method="L-BFGS-B", bounds=bounds,
                     options={"maxiter": steps})
    at = origin.copy()
    at[free] = found.x
    mixture = np.where(free[NUM_LINEAR:], np.exp(at[NUM_LINEAR:]), 0)
    scoring = Scoring.from_weights(np.where(free[:NUM_LINEAR], at[:NUM_LINEAR], 0), mixture)
    return scoring, loss(origin[free])[0], loss(found.x)[0]

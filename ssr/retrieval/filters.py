"""Which items a query may answer with: a Filter, what it asks of an item (Conditions), and the
items that it lets through.

    Filter(only=["section:sports"], without=["kind:video"], max_age=86400, at_most={"section": 2})

What filters ask of the items (fields, ids, when they were added) is read into memory by the first
filtered query, some 300 bytes an item, and kept up to date from there on, change by change. Another
engine than this one is given the Conditions.
"""

from __future__ import annotations

import threading
from typing import Mapping, NamedTuple, Optional, Sequence

import numpy as np

from ssr.errors import DataError
from ssr.preparation.text import field_tokens


class Filter(NamedTuple):
    """Which items a query may answer with. All conditions hold at once; the default is none.

    only: fields as "section:sports"; of each name that is given, an item has one of the values
    without: fields of which an item has none
    candidates: raw ids to choose from, None for all items; unknown ones are ignored
    exclude: raw ids to leave out
    max_age: seconds since an item was added last, None for any
    at_most: {name of a field: how many items with the same value an answer may hold}
    """

    only: Sequence[str] = ()
    without: Sequence[str] = ()
    candidates: Optional[Sequence[str]] = None
    exclude: Sequence[str] = ()
    max_age: Optional[float] = None
    at_most: Mapping[str, int] = {}

    def selects(self):
        """Whether it leaves out items, whatever else is in the answer."""
        return bool(self.only or self.without or self.candidates is not None or self.exclude
                    or self.max_age is not None)


EVERYTHING = Filter()


class Conditions(NamedTuple):
    """What a Filter asks of an item, all at once, as tokens and times: what engines go by.

    any_of: of each of these lists of tokens an item has at least one
    none_of: tokens of which it has none
    candidates, exclude: as of Filter
    since: seconds since 1970, before which it was not added last; None for any time
    """

    any_of: Sequence[Sequence[str]]
    none_of: Sequence[str]
    candidates: Optional[Sequence[str]]
    exclude: Sequence[str]
    since: Optional[float]


def conditions_of(filter, now):
    """The Conditions of a Filter. now: seconds since 1970. Raises DataError."""
    any_of = {}
    for token in map(_token, filter.only):
        any_of.setdefault(token.partition(":")[0], []).append(token)
    since = None if filter.max_age is None else now - filter.max_age
    return Conditions(list(any_of.values()), list(map(_token, filter.without)), filter.candidates,
                      filter.exclude, since)


def spread(ranked, fields, at_most, k):
    """The first k of what is ranked, without those by which a value of a field would have more
    than its number.

    ranked: tuples that begin with a key, best first; fields: {key: tokens}, of keys that have any
    at_most: as of Filter
    """
    limits = {_field_name(name): most for name, most in at_most.items()}
    counts, chosen = {}, []
    for hit in ranked:
        values = [token for token in fields.get(hit[0], ())
                  if token.partition(":")[0] in limits]
        if all(counts.get(token, 0) < limits[token.partition(":")[0]] for token in values):
            chosen.append(hit)
            for token in values:
                counts[token] = counts.get(token, 0) + 1
        if len(chosen) == k:
            break
    return chosen


def check_filter(filter):
    """Raises DataError for a filter that cannot be one."""
    for term in (*filter.only, *filter.without):
        _token(term)
    if filter.max_age is not None and not filter.max_age >= 0:
        raise DataError(f"max_age {filter.max_age} is no number of seconds")
    for name, most in filter.at_most.items():
        _field_name(name)
        if most < 1:
            raise DataError(f"at_most {name}: {most} is less than 1")


def _token(term):
    """The token of a field as text.field_tokens makes it. Raises DataError."""
    name, colon, value = term.partition(":")
    token = field_tokens({name: value}) if colon else []
    if not token:
        raise DataError(f"{term[:100]!r} is not a field, as section:sports is one")
    return token[0]


def _field_name(name):
    """The name of a field as tokens begin with it. Raises DataError."""
    return field_tokens({name: "any"})[0].rpartition(":")[0]


class Mask:
    """Some of the keys: called with keys <int64>[n], it tells which are among them, <bool>[n].

    mask: <bool>[keys]; none beyond has been added yet
    """

    def __init__(self, mask):
        self.mask = mask

    def __call__(self, keys):
        return (keys < len(self.mask)) & self.mask[np.minimum(keys, len(self.mask) - 1)]


LISTS = 64  # of ids, whose keys are remembered: callers send the same ones again and again


class Ids:
    """The keys of ids. A list of 10,000 ids is looked up at once: of a dict's entries, strings and
    numbers hardly any would be in the processor's cache.

    Ids are known by their hash, of 64 bits with a secret of this process, so that nobody can make
    two that have the same.
    """

    def __init__(self):
        self._hashes, self._keys = np.empty(0, np.int64), np.empty(0, np.int64)  # in order of hash
        self._lists = {}  # hash of a list: its keys, of the newest lists

    def add(self, ids, keys):
        """ids: strings, none of them for the first time with another key; keys: <int64>[n]"""
        hashes = _hashes(ids)
        order = np.argsort(hashes)
        hashes, keys = hashes[order], keys[order]
        places = np.searchsorted(self._hashes, hashes)
        new = self._found(places) != hashes if len(self._hashes) else np.ones(len(hashes), bool)
        if new.any():
            self._hashes = np.insert(self._hashes, places[new], hashes[new])
            self._keys = np.insert(self._keys, places[new], keys[new])
            self._lists.clear()

    def find(self, ids):
        """The keys of those of the ids that are known, <int64>[n], in no order."""
        name = hash(tuple(ids))
        keys = self._lists.pop(name, None)
        if keys is None:
            hashes = np.sort(_hashes(ids))  # neighbours are looked up one after the other
            places = np.searchsorted(self._hashes, hashes)
            keys = self._keys[places[self._found(places) == hashes]] if len(self._hashes) else \
                np.empty(0, np.int64)
        self._lists[name] = keys
        if len(self._lists) > LISTS:
            del self._lists[next(iter(self._lists))]
        return keys

    def _found(self, places):
        return self._hashes[np.minimum(places, len(self._hashes) - 1)]


def _hashes(ids):
    return np.fromiter(map(hash, ids), np.int64, len(ids))


class Attributes:
    """What filters ask of the items of an index; any thread may call it."""

    def __init__(self, items):
        """items: items.Items, which are read when they are first needed"""
        self._items, self._change = items, 0
        self._reading = threading.Lock()
        self._ids = Ids()
        self._fields = {}  # tokens of each key that has any
        self._with = {}  # token: the keys that have it, a set
        self._arrays = {}  # token: the same as <int64>[n], of tokens that were asked for
        # <float64>[keys], seconds since 1970; -inf: there is no such key. None has the first one.
        self._added = np.full(1, -np.inf)

    def select(self, conditions):
        """The keys of which Conditions hold, a Mask. Raises StoreError."""
        with self._reading:
            self._refresh()
            mask = self._added > -np.inf
            for tokens in conditions.any_of:
                mask &= self._mask_of(tokens)
            if conditions.none_of:
                mask &= ~self._mask_of(conditions.none_of)
            if conditions.candidates is not None:
                mask &= self._mask(self._ids.find(conditions.candidates))
            mask[self._ids.find(conditions.exclude)] = False
            if conditions.since is not None:
                mask &= self._added >= conditions.since
        return Mask(mask)

    def _mask_of(self, tokens):
        mask = np.zeros(len(self._added), bool)
        for token in tokens:
            if token not in self._arrays and token in self._with:
                self._arrays[token] = np.array(list(self._with[token]), np.int64)
            mask[self._arrays.get(token, [])] = True
        return mask

    def _mask(self, keys):
        mask = np.zeros(len(self._added), bool)
        mask[keys] = True
        return mask

    def fields(self, keys):
        """{key: tokens} of those of the keys that have any. Raises StoreError."""
        with self._reading:
            self._refresh()
            return {key: self._fields[key] for key in keys if key in self._fields}

    def _refresh(self):
        if self._items.newest_change() == self._change:
            return
        rows = self._items.attributes(self._change)
        keys = np.array([row[0] for row in rows], np.int64)
        more = int(keys.max()) + 1 - len(self._added)
        self._added = np.pad(self._added, (0, max(0, more)), constant_values=-np.inf)
        self._added[keys] = [row[3] for row in rows]
        self._ids.add([row[1] for row in rows], keys)
        for key, _, fields, _, change in rows:
            self._set_fields(key, tuple(fields))
            self._change = max(self._change, change)

    def _set_fields(self, key, tokens):
        before = self._fields.pop(key, ())
        for token in before:
            self._with[token].discard(key)
        if tokens:
            self._fields[key] = tokens
            for token in tokens:
                self._with.setdefault(token, set()).add(key)
        for token in {*before, *tokens}:
            self._arrays.pop(token, None)

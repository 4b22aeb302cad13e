"""Where the readers of each article went, in counts that decay."""

from __future__ import annotations

import numpy as np

from ssr.news.scoring import PASSAGES

_PASSAGES = np.array(PASSAGES)
_NOTHING = np.empty(0, np.int64), np.empty((0, len(PASSAGES)))  # rows and counts


class _Table:
    """Where the readers of one article went: the targets' rows and their counts, growing arrays.

    base: the moment at which a transition counts 1; edition: of the rows (Transitions.compact)
    """

    __slots__ = ("place", "rows", "counts", "size", "base", "edition")

    def __init__(self, base, edition, rows=(), counts=()):
        """rows: <int64>[n], each once; counts: <float64>[n, PASSAGES]"""
        self.base, self.edition = base, edition
        self.set(rows, counts)

    def set(self, rows, counts):
        self.size = len(rows)
        self.place = {row: place for place, row in enumerate(map(int, rows))}
        room = max(4, self.size)
        self.rows, self.counts = np.zeros(room, np.int64), np.zeros((room, len(PASSAGES)))
        if self.size:
            self.rows[:self.size], self.counts[:self.size] = rows, counts

    def add(self, row, amount):
        """amount: <float64>[PASSAGES]"""
        place = self.place.get(row)
        if place is None:
            place = self.place[row] = self.size
            if place == len(self.rows):
                self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
                self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
            self.rows[place] = row
            self.size += 1
        self.counts[place] += amount

    def used(self):
        return self.rows[:self.size], self.counts[:self.size]


class Transitions:
    """A _Table for each article that readers went on from. What compact, or a new base, does to all
    of them is done to each when it is next needed, and by sweep to the others, a few at a time.

    base: the moment at which a transition counts 1; it may be moved at any time
    """

    def __init__(self, base=None):
        self.base = base
        self._tables = {}  # by the row of the source
        self._edition = 0
        self._new_rows = self._faded_at = None  # of the newest compaction
        self._unswept = []  # rows of sources

    def add(self, source, target, amount):
        """Readers of one article went to another.

        source, target: rows; amount: <float64>[PASSAGES], at `base`
        """
        table = self._current(source)
        if table is None:
            table = self._tables[source] = _Table(self.base, self._edition)
        table.add(target, amount)

    def of(self, source):
        """Where the readers of an article went: rows <int64>[n], counts <float64>[n, PASSAGES] at
        `base`; None where they went nowhere."""
        table = self._current(source)
        return table.used() if table is not None and table.size else None

    def _current(self, source):
        """The table of a source as of now, None where there is none."""
        table = self._tables.get(source)
        if table is not None:
            if table.edition != self._edition:
                self._compact(table)
            if table.base != self.base:
                table.counts *= np.exp((table.base - self.base) / _PASSAGES)
                table.base = self.base
        return table

    def _compact(self, table):
        rows, counts = table.used()
        rows = self._new_rows[rows]
        faded = np.exp((self._faded_at - table.base) / PASSAGES[-1])
        kept = (rows >= 0) & (counts[:, -1] > faded)
        table.set(rows[kept], counts[kept])
        table.edition = self._edition

    def compact(self, new_rows, faded_at):
        """Forgets transitions from and to articles that are gone, and faded ones.

        new_rows: <int64>[rows], where each row is from now on, -1: gone
        faded_at: what counts less than one transition of this moment has faded
        """
        self.sweep_all()  # a table can be one edition behind and not two
        self._edition += 1
        self._new_rows, self._faded_at = new_rows, faded_at
        moved = {}
        for row in np.flatnonzero(new_rows != np.arange(len(new_rows))).tolist():
            table = self._tables.pop(row, None)
            if table is not None and new_rows[row] >= 0:
                moved[int(new_rows[row])] = table
        self._tables.update(moved)
        self._unswept = list(self._tables)

    @property
    def is_swept(self):
        """Whether all tables are as the newest compaction leaves them."""
        return not self._unswept

    def sweep(self, most):
        """Brings at most so many tables up to date that nobody has needed yet."""
        for _ in range(min(most, len(self._unswept))):
            source = self._unswept.pop()
            if self.of(source) is None:
                self._tables.pop(source, None)

    def sweep_all(self):
        self.sweep(len(self._unswept))

    # --- on disk

    def to_arrays(self, rows):
        """{name: array}. rows: how many articles there are"""
        tables = [self.of(source) or _NOTHING for source in range(rows)]
        targets, counts = map(np.concatenate, zip(_NOTHING, *tables))
        return {"targets": targets, "counts": counts,
                "lengths": np.array([len(rows) for rows, _ in tables], np.int64)}

    @classmethod
    def from_arrays(cls, arrays, base):
        """What to_arrays returned."""
        transitions, begin = cls(base), 0
        for source, size in enumerate(arrays["lengths"].tolist()):
            part, begin = slice(begin, begin + size), begin + size
            if size:
                transitions._tables[source] = _Table(
                    base, 0, arrays["targets"][part], arrays["counts"][part])
        return transitions

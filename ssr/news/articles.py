"""What is known of the articles that are read these days, an article a row."""

from __future__ import annotations

import heapq

import numpy as np

from ssr.news.scoring import WINDOWS

MIN_ROOM = 1024  # rows


class Articles:
    """Columns with a row for each article. Rows of forgotten articles are used again, the lowest
    first, once they have been released.

    rows: {id: row}; used: rows from here on have never been used, or are free for good
    ids: <int64>, last_click: seconds <float64> (-inf in a row without an article)
    withdrawn: <bool>, whether it is kept from the candidates
    clicks: <float64>[WINDOWS], decayed counts (Stream)
    readers: <float32>, how many vectors went into mean <float32>[dim]; direction: that of mean
    content: <float32>[dim] of length 1, where has_content is 1 and not 0
    """

    COLUMNS = ("ids", "last_click", "withdrawn", "clicks", "readers", "mean", "direction",
               "content", "has_content")

    def __init__(self, dim):
        self.dim, self.rows, self.used = dim, {}, 0
        self._free = []  # a heap
        self._allocate(MIN_ROOM)

    def _allocate(self, room):
        self.ids, self.last_click = np.zeros(room, np.int64), np.full(room, -np.inf)
        self.withdrawn, self.clicks = np.zeros(room, bool), np.zeros((room, len(WINDOWS)))
        self.readers, self.has_content = (np.zeros(room, np.float32) for _ in range(2))
        self.mean, self.direction, self.content = (np.zeros((room, self.dim), np.float32)
                                                   for _ in range(3))

    def __len__(self):
        return len(self.rows)

    def add(self, item, time):
        """Returns the row of a new article."""
        if self._free:
            row = heapq.heappop(self._free)
        else:
            row, self.used = self.used, self.used + 1
            if row == len(self.ids):
                self._take(np.arange(row), 2 * row)
        for name in self.COLUMNS:  # of an article before
            getattr(self, name)[row] = 0
        self.rows[item] = row
        self.ids[row], self.last_click[row] = item, time
        return row

    def filled(self):
        """Rows with an article, <int64>[n]."""
        return np.flatnonzero(self.last_click[:self.used] > -np.inf)

    def older(self, time):
        """Rows of articles whose last click is older, <int64>[n]."""
        last_click = self.last_click[:self.used]
        return np.flatnonzero((last_click < time) & (last_click > -np.inf))

    def forget(self, rows):
        """Their articles are gone; the rows remain empty until they are released."""
        for item in self.ids[rows].tolist():
            del self.rows[item]
        self.last_click[rows], self.clicks[rows] = -np.inf, 0

    def release(self, rows):
        """Empty rows may be used again: nothing refers to them any more."""
        filled = self.filled()
        self.used = int(filled[-1]) + 1 if len(filled) else 0
        self._free = [row for row in [*self._free, *rows.tolist()] if row < self.used]
        heapq.heapify(self._free)

    @property
    def sparse(self):
        """Whether less than half of the rows, which every query goes through, are in use."""
        return self.used > MIN_ROOM and len(self) < self.used // 2

    def close_ranks(self):
        """Moves all articles to the first rows. Returns the rows that they had, <int64>[n]."""
        filled = self.filled()
        self._take(filled, max(MIN_ROOM, len(filled) + len(filled) // 4))
        self.used, self._free = len(filled), []
        self.rows = {item: row for row, item in enumerate(self.ids[:self.used].tolist())}
        return filled

    def _take(self, rows, room):
        """Makes room for so many articles and moves these rows to the first ones."""
        before = {name: getattr(self, name) for name in self.COLUMNS}
        self._allocate(room)
        for name, column in before.items():
            getattr(self, name)[:len(rows)] = column[rows]

    # --- on disk

    STORED_AS = {"last_click": "last", "withdrawn": "gone", "direction": "unit"}

    def to_arrays(self, rows):
        """{name: array} of some rows."""
        return {self.STORED_AS.get(name, name): getattr(self, name)[rows] for name in self.COLUMNS}

    def fill(self, arrays):
        """Takes over what to_arrays returned; for one that is empty."""
        count = len(arrays["ids"])
        self._allocate(max(MIN_ROOM, count))
        for name in self.COLUMNS:
            getattr(self, name)[:count] = arrays[self.STORED_AS.get(name, name)]
        self.used = count
        self.rows = {item: row for row, item in enumerate(arrays["ids"].tolist())}

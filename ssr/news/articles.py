"""What is known of the articles that are read these days, an article a row."""

from __future__ import annotations

import numpy as np

from ssr.news.scoring import WINDOWS

MIN_ROOM = 1024  # rows


class Articles:
    """Columns with a row for each article, without gaps: every question goes through all rows.

    rows: {id: row}; used: how many rows have an article, the first ones
    ids: <int64>; last_click: seconds <float64>
    withdrawn: <bool>, whether it is kept from the candidates
    clicks: <float64>[WINDOWS], decayed counts (Stream)
    readers: <float32>, how many vectors went into mean <float32>[dim]; direction: that of mean
    content: <float32>[dim] of length 1, where has_content is 1 and not 0
    """

    COLUMNS = ("ids", "last_click", "withdrawn", "clicks", "readers", "mean", "direction",
               "content", "has_content")

    def __init__(self, dim):
        self.dim, self.rows, self.used = dim, {}, 0
        self._allocate(MIN_ROOM)

    def _allocate(self, room):
        self.ids, self.last_click = np.zeros(room, np.int64), np.zeros(room)
        self.withdrawn, self.clicks = np.zeros(room, bool), np.zeros((room, len(WINDOWS)))
        self.readers, self.has_content = (np.zeros(room, np.float32) for _ in range(2))
        self.mean, self.direction, self.content = (np.zeros((room, self.dim), np.float32)
                                                   for _ in range(3))

    def __len__(self):
        return len(self.rows)

    def add(self, item, time):
        """Returns the row of a new article."""
        row = self.used
        if row == len(self.ids):
            self._make_room(2 * row)
        for name in self.COLUMNS:  # of an article that was there before
            getattr(self, name)[row] = 0
        self.used += 1
        self.rows[item] = row
        self.ids[row], self.last_click[row] = item, time
        return row

    def older(self, time):
        """Rows of articles whose last click is older, <int64>[n]."""
        return np.flatnonzero(self.last_click[:self.used] < time)

    def remove(self, rows):
        """Removes the articles in some rows, <int64>[n], ascending; the last ones move to their
        places. Returns where each row is from here on, -1: removed, <int64>[used before]."""
        for item in self.ids[rows].tolist():
            del self.rows[item]
        new_rows = np.arange(self.used)
        new_rows[rows] = -1
        self.used -= len(rows)
        gaps = rows[rows < self.used]
        last = self.used + np.flatnonzero(new_rows[self.used:] >= 0)
        new_rows[last] = gaps
        for name in self.COLUMNS:
            column = getattr(self, name)
            column[gaps] = column[last]
        self.rows.update(zip(self.ids[gaps].tolist(), gaps.tolist()))
        if MIN_ROOM < len(self.ids) > 4 * self.used:
            self._make_room(max(MIN_ROOM, 2 * self.used))
        return new_rows

    def _make_room(self, room):
        """For so many articles, at least those that are there."""
        before = {name: getattr(self, name) for name in self.COLUMNS}
        self._allocate(room)
        for name, column in before.items():
            getattr(self, name)[:self.used] = column[:self.used]

    # --- on disk

    STORED_AS = {"last_click": "last", "withdrawn": "gone", "direction": "unit"}

    def to_arrays(self):
        """{name: array}"""
        return {self.STORED_AS.get(name, name): getattr(self, name)[:self.used].copy()
                for name in self.COLUMNS}

    def fill(self, arrays):
        """Takes over what to_arrays returned; for one that is empty."""
        count = len(arrays["ids"])
        self._allocate(max(MIN_ROOM, count))
        for name in self.COLUMNS:
            getattr(self, name)[:count] = arrays[self.STORED_AS.get(name, name)]
        self.used = count
        self.rows = {item: row for row, item in enumerate(arrays["ids"].tolist())}

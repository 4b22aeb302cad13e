"""What was read from a database lately."""

from __future__ import annotations

import threading

ROOM = 1 << 14  # values; beyond it all are forgotten


class Remembered:
    """Values by their keys, read when they are first asked for, and again after somebody, in any
    process, has changed the database. Any thread may ask.

    read: from a list of keys, each once, to {key: value} of those that are there
    version: returns what is another value after each change
    """

    def __init__(self, read, version):
        self._read, self._get_version = read, version
        self._values, self._version = {}, None
        self._lock = threading.Lock()  # also while reading: what is read belongs to the version

    def find(self, keys):
        """{key: value} of those of the keys that are there."""
        with self._lock:
            version = self._get_version()
            if version != self._version or len(self._values) > ROOM:
                self._values, self._version = {}, version
            values = self._values
            missing = [key for key in dict.fromkeys(keys) if key not in values]
            if missing:
                values.update(self._read(missing))
            return {key: values[key] for key in keys if key in values}

"""Logging about what strangers may cause as often as they like."""

from __future__ import annotations

import logging
import time


class NoRepetitions(logging.Filter):
    """Drops a message that its logger has given within the last seconds."""

    def __init__(self, seconds=10.0):
        super().__init__()
        self.seconds, self._given = seconds, {}  # message: when it was given

    def filter(self, record):
        now, message = time.monotonic(), record.getMessage()
        self._given = {other: at for other, at in self._given.items() if now < at + self.seconds}
        is_new = message not in self._given
        self._given.setdefault(message, now)
        return is_new

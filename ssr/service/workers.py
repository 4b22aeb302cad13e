"""Several processes that serve one index from one socket: the first writes it, the others read it.

This process, which made them, does nothing but see to them: one that dies is started again, and
what ends this one ends them all.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import wait

from ssr.commands import run

import ssr.service.app  # noqa: F401  what takes long to load, once for all processes
from ssr.service.group import DOWN, WRITER, Group, Member
from ssr.service.server import GRACE

logger = logging.getLogger(__name__)

LOOK_EVERY, LOOK_AT_START = 0.1, 0.01  # seconds
PATIENCE = GRACE + 30  # seconds that a process gets to end: clicks are written, a snapshot maybe
LIVES, PAUSE = 10.0, 30.0  # seconds: one that lives shorter is started after a pause, up to this


class Workers:
    """The processes of a server."""

    def __init__(self, count, has_writer, serve):
        """serve: called with the Member in each process, serves until it is told to end and returns
        the exit code"""
        # Forked, from a process that has loaded the modules and opened no index.
        self._context = multiprocessing.get_context("fork")
        self._group, self._serve = Group(count, has_writer), serve
        self._alive, self._dying = os.pipe()  # the read end is at its end when this process is
        self._processes = {}  # by their numbers
        self._start_at = dict.fromkeys(range(count), 0.0)  # of time.monotonic
        self._pauses = dict.fromkeys(range(count), 0.0)  # the last one of each

    def run(self, tell):
        """Serves until a signal comes, which is an exception here. Returns the exit code where it
        cannot begin. tell: called when all processes are there"""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            # The others may need what the first one writes when it opens the index.
            for part in ([WRITER], self._readers()):
                for number in part:
                    self._start(number)
                if not self._are_up(part):
                    return 1
            tell()
            while True:
                self._start_again()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            code = self._stop()
            self._group.close()
            if code:
                sys.exit(code)

    def _readers(self):
        return range(1, self._group.count)

    # --- starting

    def _start(self, number):
        self._processes[number] = self._context.Process(target=self._work, args=(number,))
        self._processes[number].start()
        self._start_at[number] = time.monotonic()

    def _work(self, number):
        """What a process does."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the first process acts
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        os.close(self._dying)
        threading.Thread(target=self._end_with_the_first, daemon=True).start()
        sys.exit(run(lambda: self._serve(Member(self._group, number))))

    def _end_with_the_first(self):
        os.read(self._alive, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _are_up(self, numbers):
        """Waits until they are. Returns False where one has ended before."""
        while not all(map(self._group.is_up, numbers)):
            if wait([self._processes[number].sentinel for number in numbers], LOOK_AT_START):
                return False
        return True

    def _start_again(self):
        """Waits for a moment, or until a process ends, and starts those that have ended."""
        wait([process.sentinel for process in self._processes.values()] or [self._alive],
             LOOK_EVERY)
        for number, process in list(self._processes.items()):
            if not process.is_alive():
                del self._processes[number]
                self._note_end(number, process.exitcode)
        for number, moment in self._start_at.items():
            if number not in self._processes and time.monotonic() >= moment:
                self._start(number)

    def _note_end(self, number, code):
        self._group.set_connections(number, DOWN)
        now = time.monotonic()
        lived = now - self._start_at[number] > LIVES
        self._pauses[number] = pause = 0 if lived else min(2 * self._pauses[number] + 1, PAUSE)
        self._start_at[number] = now + pause
        logger.error("process %d, which %s, ended with code %s: it is started again%s", number,
                     "writes" if Member(self._group, number).writes else "reads", code,
                     f" in {pause:g} s" if pause else "")

    # --- ending

    def _stop(self):
        """Ends all: the one that writes after those that may wait for it. Returns an exit code."""
        code = 0
        for part in (self._readers(), [WRITER]):
            ending = [self._processes[number] for number in part if number in self._processes]
            for process in ending:
                process.terminate()
            end = time.monotonic() + PATIENCE
            for process in ending:
                process.join(max(0, end - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join()
                code = code or int(process.exitcode != 0)
        return code

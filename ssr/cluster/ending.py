"""How a process of a job ends: soon and with one line, whatever Paddle is doing in it."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading

_failing = threading.Lock()


def fail(message):
    """Ends the process at once, from any thread: the main one may be in a call of Paddle's that
    never returns."""
    _failing.acquire()  # and never released: the first fault is the one to report
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    leave(1)


def leave(code):
    """Ends the process without the destructors of Paddle's connections, which can hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def time_limit(seconds, what):
    """Ends the process where the block takes longer."""
    timer = threading.Timer(seconds, fail, [f"{what} took more than {seconds} s"])
    timer.daemon = True
    timer.start()
    # Many of Paddle's calls let no other thread of Python run. This one is not Python's.
    faulthandler.dump_traceback_later(seconds + 2, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()


def end_with(parent):
    """Lets the kernel end this process when the one that started it is killed.

    parent: its process id
    """
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        fail("the process that started this one is gone")

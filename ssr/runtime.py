"""Paddle and faiss, loaded the way this package needs them, when something of them is first used.

    from ssr.runtime import paddle

is how every module gets Paddle; none imports it by itself. Who uses it first makes it so that the
process is set up before Paddle is loaded, whatever was imported earlier and in which order.
Importing this module alone does nothing, and neither does importing a name from it: a query to an
index loads no Paddle, help loads nothing.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
import signal
import sys
import threading
import types
import warnings
import zlib  # noqa: F401  before Paddle: libpaddle 2.6.2 shadows zlib's symbols and breaks gzip

from ssr.errors import SetupError

_PACKAGES = {"paddle": "-r requirements-cpu.txt, for a GPU requirements.txt",
             "faiss": "-r requirements-cpu.txt"}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_loading = threading.RLock()


class Library(types.ModuleType):
    """A library that is loaded when something of it is first used, by any thread."""

    def __getattr__(self, name):
        with _loading:
            module = _load(self.__name__)
        return getattr(module, name)


paddle, faiss = Library("paddle"), Library("faiss")


def before_paddle(**variables):
    """Sets environment variables that Paddle reads when it is loaded; what the user has set stays.
    Does nothing in a process that has loaded it already, since child processes would have what this
    one has not."""
    if "paddle" not in sys.modules:
        for name, value in variables.items():
            os.environ.setdefault(name, value)


@functools.cache
def set_up():
    """Sets the process up for computing, as it is before Paddle or faiss are loaded: for those who
    compute in numpy alone."""
    single_thread = not any(name in os.environ for name in THREADS)
    _set_environment()
    _keep_freed_memory()
    _silence_libraries()
    if single_thread:
        # The environment is too late for a numpy that was loaded before.
        import threadpoolctl

        threadpoolctl.threadpool_limits(1, user_api="blas")


@functools.cache
def _load(name):
    set_up()
    try:
        module = _load_paddle() if name == "paddle" else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise SetupError(f"{name} is not installed: pip install {_PACKAGES[name]}") from error
    return module


def _load_paddle():
    # Paddle tells of a Ctrl-C while it is loaded as of a broken installation: it comes afterwards.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        import numpy  # noqa: F401  before Paddle, as zlib
        import paddle
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # Paddle sets up the root logger, and from then on everybody's lines would be printed.
        root.setLevel(level)
        root.handlers[:] = handlers
    # Paddle's handler of TERM prints a stack trace, in which a process can hang instead of ending.
    paddle.disable_signal_handler()
    return paddle


def _set_environment():
    """What makes this model fast on a CPU; a value that the user has set stays."""
    # A step is many small operations: a second thread costs more than it brings. More cores are
    # for more processes.
    for name in THREADS:
        os.environ.setdefault(name, "1")
    # Paddle carries an MKL of 2019, which takes its slowest path on AMD unless told otherwise.
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            if "AuthenticAMD" in f.read(4096):
                os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    except OSError:
        pass


def _keep_freed_memory():
    """Tells glibc not to hand large blocks back to the kernel after each operation, which would
    fault every page of them in again at the next."""
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # not glibc
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, 1 << 30)


def _silence_libraries():
    """What libraries say of themselves when they are loaded is not for the user."""
    warnings.filterwarnings("ignore", message="No ccache found")
    logging.getLogger("faiss").setLevel(logging.WARNING)

"""What the benchmarks share. Import it first: it puts the scripts on the path and sets the
environment before numpy and Paddle are loaded."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import utils  # noqa: F401


def run_script(script, *flags):
    """Runs a script of the project in a process of its own.

    Returns (its standard output, seconds, peak memory in bytes); ends the benchmark if it fails.
    """
    begin = time.time()
    process = subprocess.Popen([sys.executable, os.path.join(ROOT, script), *map(str, flags)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.stdout, process.stderr
    text = out.read()  # both scripts log little to standard error, far below a pipe's size
    errors = err.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{script} failed:\n{errors}")
    return text, time.time() - begin, usage.ru_maxrss * 1024


def parser_and_flags(description, argv=None):
    """(parser to add flags to, flags for it, flags for train.py), the latter behind a -- of their
    own."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    return argparse.ArgumentParser(description=description), argv[:cut], argv[cut + 1:]


def parse_recall_args(description, argv=None):
    """For benchmarks of recall, which take files: as parser_and_flags."""
    parser, own_flags, train_flags = parser_and_flags(description, argv)
    parser.add_argument("--train_files", nargs="+", required=True)
    parser.add_argument("--test_files", nargs="+", required=True)
    return parser, own_flags, train_flags


def timed(function, repeats):
    """Seconds a call, the best of three rounds after a warm-up."""
    function()
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(repeats):
            function()
        best = min(best, (time.perf_counter() - begin) / repeats)
    return best

"""What the benchmarks share. Import it first: it puts the project on the path."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from ssr.commands import Parser  # noqa: E402

# Each training of a benchmark replaces the one before.
TRAIN = ("train.py", "--print_batch", 10 ** 6, "--overwrite")


def run_script(script, *flags):
    """Runs a command of the project in a process of its own.

    Returns (its standard output, seconds, peak memory in bytes); ends the benchmark if it fails.
    """
    command = [sys.executable, os.path.join(ROOT, script), *map(str, flags)]
    begin = time.time()
    # To a file: a pipe that nobody reads yet takes 64 KB, and then the process waits.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        with process.stdout:
            out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # as wait(), with the memory of this process
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{script} failed:\n{errors.read()}")
    return out, time.time() - begin, peak_of(usage)


def peak_of(usage):
    """The peak of memory in bytes. usage: of os.wait4"""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def parser_and_flags(doc, argv=None):
    """(parser to add flags to, flags for it, flags for train.py), the latter those behind a --.

    doc: of the benchmark; its first paragraph describes it in the help
    """
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    return Parser(doc.split("\n\n")[0]), argv[:cut], argv[cut + 1:]


def recall_parser_and_flags(doc, argv=None):
    """For benchmarks of recall, which take files: as parser_and_flags."""
    parser, own_flags, train_flags = parser_and_flags(doc, argv)
    parser.add_argument("--train_files", nargs="+", required=True,
                        help="a session a line, raw ids with white space between")
    parser.add_argument("--test_files", nargs="+", required=True, help="likewise")
    return parser, own_flags, train_flags


class Training(NamedTuple):
    """What train.py makes of its flags, ready for a step. run: ssr.training.start.Run"""

    run: Any
    model: Any
    optimizer: Any
    loss: Any
    negatives: Any


def make_training(dataset, train_flags):
    """A Training of a reader.YoochooseDataset. train_flags: as train.py takes them"""
    import train
    from ssr.runtime import paddle
    from ssr.training.building import build, build_objective
    from ssr.training.settings import merge
    from ssr.training.start import Run

    args = train.parse_args(list(map(str, train_flags)))
    settings, clicks = merge(args.given), dataset.item_clicks()
    with paddle.utils.unique_name.guard():
        model, optimizer = build(settings, clicks)
    loss, negatives = build_objective(settings, dataset)
    return Training(Run(settings, dataset, None, clicks, None, {}, 0, None), model, optimizer, loss,
                    negatives)


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

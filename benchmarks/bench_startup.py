"""How long a command of an index takes from beginning to end, and a server until it answers.

    python benchmarks/bench_startup.py
    python benchmarks/bench_startup.py --against ../another_checkout

A model with content learns sessions like those of the sample, retrieve.py builds its index, and
each command runs in a process of its own, after one that is not counted: modules are compiled and
files are in memory. Another checkout runs the same commands on the same index, by turns with this
one. The second table is what the modules take that a query and a server load, as
python -X importtime has it; that itself takes time.
"""

from __future__ import annotations

import collections
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import bench_serve
import common

from ssr import commands
from ssr.own_modules import NAMES

LEAST = 0.005  # seconds of a package that is named
# Without the first every run would compile the modules again.
ENVIRONMENT = {name: value for name, value in os.environ.items()
               if name not in ("PYTHONDONTWRITEBYTECODE", "SSR_TOKEN")}


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    positive = commands.number(int, 1)
    parser.add_argument("--items", type=positive, default=50_000, help="of the index")
    parser.add_argument("--repeats", type=positive, default=5, help="of each command")
    parser.add_argument("--index_dir", help="an index that bench_serve.make_index has made")
    parser.add_argument("--against", metavar="DIR", help="another checkout of the project")
    args = parser.parse(own_flags)
    roots = [common.ROOT, args.against] if args.against else [common.ROOT]
    with tempfile.TemporaryDirectory() as work:
        if not args.index_dir:
            bench_serve.make_index(work, args.items, 2 * args.items)
        index_dir = args.index_dir or os.path.join(work, "index")
        print_seconds(roots, index_dir, args.repeats)
        print_imports(index_dir)


# --- seconds --------------------------------------------------------------------------------------


def print_seconds(roots, index_dir, repeats):
    """The table of the commands: medians, the least and the most, and the largest peaks."""
    other = [" s, the other | least to most | MB | times |"] * (len(roots) - 1)
    head = "".join(["| | s | least to most | MB |", *other])
    print(head + "\n" + "|---" * (head.count("|") - 1) + "|")
    for name, run in rows(index_dir):
        runs = [[run(root) for root in roots] for _ in range(1 + repeats)][1:]
        medians, cells = [], []
        for of_root in zip(*runs):
            seconds, peaks = zip(*of_root)
            medians.append(statistics.median(seconds))
            cells += [f"{medians[-1]:.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}",
                      f"{max(peaks) / 1e6:.0f}"]
        cells += [f"{medians[1] / medians[0]:.1f}"] if len(roots) > 1 else []
        print(f"| `{name}` | " + " | ".join(cells) + " |", flush=True)


def rows(index_dir):
    """Yields (name, function from a checkout to seconds and peak of memory in bytes)."""
    for command in ("train", "infer", "preprocess", "retrieve", "serve", "evaluate_stream",
                    "export", "cluster_train"):
        name = f"{command}.py -h"
        yield name, lambda root, name=name: finish(root, name.split())
    for command, text in (("query --session n0001", ""), ("info", ""), ("remove n0001", ""),
                          ("add", "n0001\tan article\n"), ("click", "a\tn0002\n"), ("check", "")):
        words = ["retrieve.py", *command.split(), "--index_dir", index_dir]
        yield f"retrieve.py {command}", lambda root, words=words, text=text: finish(
            root, words, text)
    for name in ("serve.py", "serve.py --workers 2"):
        words = [*name.split(), "--index_dir", index_dir, "--port", "0"]
        yield name, lambda root, words=words: serve(root, words)


def start(root, words, **options):
    script, *flags = words
    return subprocess.Popen([sys.executable, os.path.join(root, script), *flags], **{
        "env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options})


def finish(root, words, text="", **options):
    """(seconds, peak of memory in bytes) of a command that ends. text: its standard input"""
    with tempfile.TemporaryFile("w+") as file:
        file.write(text)
        file.seek(0)
        begin = time.perf_counter()
        process = start(root, words, stdin=file, **options)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} in {root} ended with the code {process.returncode}")
    return seconds, common.peak_of(usage)


def serve(root, words, **options):
    """(seconds until a server has answered a request, peak of memory in bytes of the process that
    was started)"""
    begin = time.perf_counter()
    process = start(root, words, stdout=subprocess.PIPE, **options)
    with process.stdout:
        url = process.stdout.readline().split()[-1].decode()
    with urllib.request.urlopen(f"{url}/healthz") as answer:
        answer.read()
    seconds = time.perf_counter() - begin
    process.terminate()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return seconds, common.peak_of(usage)


# --- what they load -------------------------------------------------------------------------------


def print_imports(index_dir):
    """The table of the packages that a query and a server load."""
    query = ["retrieve.py", "query", "--session", "n0001", "--index_dir", index_dir]
    server = ["serve.py", "--index_dir", index_dir, "--port", "0"]
    columns = [imports_of(finish, query), imports_of(serve, server)]
    packages = sorted({*columns[0], *columns[1]}, key=lambda name: -columns[1][name])
    named = [name for name in packages if max(column[name] for column in columns) >= LEAST]
    print("\n| loading | `retrieve.py query`, ms | `serve.py`, ms |\n|---|---|---|")
    for name in named:
        print(f"| {name} | {columns[0][name] * 1e3:.0f} | {columns[1][name] * 1e3:.0f} |")
    others = [sum(column.values()) - sum(column[name] for name in named) for column in columns]
    print(f"| others | {others[0] * 1e3:.0f} | {others[1] * 1e3:.0f} |")
    print("| together | " + " | ".join(f"{sum(column.values()) * 1e3:.0f}" for column in columns)
          + " |")


def imports_of(run, words):
    """{package: seconds of its modules} of what a command loads, a Counter. run: finish or serve"""
    seconds = collections.Counter()
    with tempfile.TemporaryFile("w+") as file:
        run(common.ROOT, words, env={**ENVIRONMENT, "PYTHONPROFILEIMPORTTIME": "1"}, stderr=file)
        file.seek(0)
        for line in file:
            # import time: self [us] | cumulative | imported package
            parts = line.removeprefix("import time:").split("|")
            if len(parts) == 3 and parts[0].strip().isdecimal():
                seconds[package_of(parts[2].strip())] += int(parts[0]) / 1e6
    return seconds


def package_of(module):
    name = module.split(".")[0]
    if name == "ssr" or name in NAMES:
        return "the project"
    of_python = getattr(sys, "stdlib_module_names", ())  # from Python 3.10 on
    return "Python's own" if name in of_python else name


if __name__ == "__main__":
    main()

"""Reading session files: speed, memory, and what the cache saves.

    python benchmarks/bench_reader.py --sessions 10000000
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time

import common

import reader
from ssr.preparation import sample

NUM_ITEMS = 1000000


def memory_bytes(field):
    """Of this process, from what Linux says: "VmRSS" for now, "VmHWM" for the most so far."""
    with open("/proc/self/status", encoding="utf-8") as f:
        return int(next(line for line in f if line.startswith(field)).split()[1]) * 1024


def measure(directory):
    """Loads, goes through some batches, and prints a row of the table."""
    base = memory_bytes("VmRSS")
    begin = time.perf_counter()
    dataset = reader.load_sessions(directory, NUM_ITEMS)
    seconds = time.perf_counter() - begin
    for _ in zip(range(1000), dataset.train(50, seed=0, epoch=1)):
        pass
    size = sum(os.path.getsize(os.path.join(directory, name)) for name in os.listdir(directory)
               if not name.startswith("."))
    clicks, sessions = len(dataset.items), len(dataset)
    allowed = 12 * clicks + 16 * sessions
    memory = memory_bytes("VmHWM") - base
    print(f"| {sessions} | {clicks} | {size / 1e6:.0f} | {seconds:.2f} | "
          f"{size / 1e6 / seconds:.0f} | {memory / 1e6:.0f} | {memory / allowed:.2f} |", flush=True)


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    parser.add_argument("--sessions", type=int, default=10000000, help="in all files together")
    parser.add_argument("--directory", help="of the files: measures in this process")
    args = parser.parse(own_flags)
    if args.directory:
        return measure(args.directory)
    with tempfile.TemporaryDirectory() as work:
        # Twenty files of the same sessions: to write so many different ones takes minutes.
        items, offsets = sample.make_sessions(args.sessions // 20, NUM_ITEMS, seed=0)
        sample.write_sessions(os.path.join(work, "part-00.txt"), items, offsets)
        for part in range(1, 20):
            shutil.copy(os.path.join(work, "part-00.txt"),
                        os.path.join(work, f"part-{part:02d}.txt"))
        print("from text, then from the cache; a process each. Memory: the peak above what the "
              "imports take, also as a share of 12 bytes a click and 16 a session")
        print("| sessions | clicks | MB of text | s | MB/s | memory, MB | share |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for _ in range(2):
            subprocess.run([sys.executable, os.path.abspath(__file__), "--directory", work],
                           check=True)



if __name__ == "__main__":
    main()

"""How much more several processes of a server answer than one does.

    python benchmarks/bench_workers.py --workers 2

The index is that of bench_serve.py, searched exactly and then approximately. Servers of one process
and of several are asked in turn, as fast as they can, by wrk (Debian has it), which shares the
cores with them and takes little of these. Then the same beside changes: so many articles a second
are published and withdrawn, and looked for after each. The table says how many cores were busy with
the server and with all else, the client and the system; where that is more than DISTURBED, other
programs ran, and the row does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import bench_serve
import common
import numpy as np
from bench_serve import Connection, Load, change, find_probes, wait_until

from ssr import commands
from ssr.preparation import sample

WARM_UP = 1  # seconds
DISTURBED = 0.25  # cores
# What wrk asks for is made before it begins. Of its results it prints JSON.
SCRIPT = """
local requests, number = {}, 0
for line in io.lines(%r) do
  requests[#requests + 1] = wrk.format("POST", "/recommend",
    {["Host"] = "localhost", ["Content-Type"] = "application/json"}, line)
end
request = function()
  number = number + 1
  return requests[number %% #requests + 1]
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"requests": %%d, "seconds": %%f, "p50": %%f, "p99": %%f, "failed": %%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    add, positive = parser.add_argument, commands.number(int, 1)
    add("--items", type=positive, default=50_000, help="of the index")
    add("--workers", type=commands.number(int, 2), default=2,
        help="processes that are compared with one")
    add("--rounds", type=positive, default=3, help="of each measurement")
    add("--seconds", type=commands.number(float, 1), default=5, help="of each measurement")
    add("--connections", type=positive, default=16, help="that ask")
    add("--changes", type=commands.number(float, 0.1), default=10,
        help="adds, and removes, a second")
    args = parser.parse(own_flags)
    if not shutil.which("wrk"):
        raise SystemExit("there is no wrk, which this benchmark asks with: apt-get install wrk")
    with tempfile.TemporaryDirectory() as work:
        sessions = bench_serve.make_index(work, args.items, args.items)
        print("| search | beside | processes | requests a second | p50, ms | p99, ms | failed | "
              "busy with the server | with all else | not seen |\n|" + "---|" * 10)
        ratios = compare(args, work, sessions, "exact")
        common.run_script("retrieve.py", "reindex", "--index_dir", f"{work}/index",
                          "--ivf_above", 0)
        ratios += compare(args, work, sessions, "IVF")
        print("\n" + "\n".join(ratios))


def compare(args, work, sessions, search):
    """Prints a row for each measurement. Returns sentences."""
    with open(f"{work}/bodies", "w") as bodies, open(f"{work}/wrk.lua", "w") as script:
        bodies.writelines(json.dumps({"session": session, "k": bench_serve.K}) + "\n"
                          for session in sessions)
        script.write(SCRIPT % bodies.name)
    headlines, rates = sample.make_headlines(args.items, 0), {}
    for _ in range(args.rounds):
        for count in (1, args.workers):
            with served(f"{work}/index", count) as server:
                probe, *_ = find_probes(Connection(server.port), sessions, headlines,
                                        bench_serve.CHECKED - 1, 10)
                for beside, changing in (("nothing", None), ("changes", probe)):
                    rate, disturbed = measure(args, server, script.name, changing,
                                              f"| {search} | {beside} | {count} |")
                    rates.setdefault((beside, count), []).extend([] if disturbed else [rate])
    sentences = []
    for beside in ("nothing", "changes"):
        one, several = rates[beside, 1], rates[beside, args.workers]
        if one and several:
            ratio = np.median(several) / np.median(one)
            sentences.append(f"{search}, beside {beside}: {ratio:.2f} times as many "
                             f"({len(one)} rows and {len(several)})")
    return sentences


class Server:
    """A running server. processes: those of it that answer"""

    def __init__(self, process, port, count):
        self.port, self.processes = port, [process.pid]
        if count > 1:
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as f:
                self.processes = list(map(int, f.read().split()))

    def cpu(self):
        """Seconds of a core that they have taken so far."""
        return sum(ticks_of(f"/proc/{process}/stat", [13, 14]) for process in self.processes)


def ticks_of(file, columns):
    """The sum of some columns of a file of /proc that count ticks, in seconds."""
    with open(file) as f:
        values = f.readline().rsplit(")", 1)[-1].split()
    first = 2 if file != "/proc/stat" else 0  # what stands before the bracket
    return sum(int(values[column - first]) for column in columns) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(index, count):
    process = subprocess.Popen(
        [sys.executable, os.path.join(common.ROOT, "serve.py"), "--port", "0", "--index_dir", index,
         "--workers", str(count)], env={**os.environ, "SSR_TOKEN": ""}, text=True,
        stdout=subprocess.PIPE)
    try:
        yield Server(process, int(process.stdout.readline().rsplit(":", 1)[1]), count)
    finally:
        process.terminate()
        process.communicate()


def measure(args, server, script, probe, name):
    """Prints a row. probe: of find_probes, for changes beside; None for none. Returns requests a
    second, and whether other programs disturbed it."""
    ask_with_wrk(args, server, script, WARM_UP)
    changes, ending = Load(), threading.Event()
    publisher = threading.Thread(target=publish, args=(args, server, probe, changes, ending))
    if probe:
        publisher.start()
    try:
        cpu, busy, begin = server.cpu(), busy_cores(), time.perf_counter()
        result = ask_with_wrk(args, server, script, args.seconds)
        seconds = time.perf_counter() - begin
        cpu, busy = (server.cpu() - cpu) / seconds, (busy_cores() - busy) / seconds
    finally:
        ending.set()
        if probe:
            publisher.join()
    rate = result["requests"] / result["seconds"]
    print(f"{name} {rate:.0f} | {result['p50']:.1f} | {result['p99']:.1f} | "
          f"{result['failed'] + changes.failed} | {cpu:.2f} | {busy - cpu:.2f} | "
          f"{changes.unseen} of {2 * changes.removed} |", flush=True)
    return rate, busy - cpu > DISTURBED


def ask_with_wrk(args, server, script, seconds):
    """What wrk found, a dict: see SCRIPT."""
    out = subprocess.run(["wrk", "--threads", "1", "--connections", str(args.connections),
                          "--duration", f"{seconds:.0f}s", "--script", script,
                          f"http://127.0.0.1:{server.port}"], check=True, capture_output=True,
                         text=True).stdout
    return json.loads(out.splitlines()[-1])


def busy_cores():
    """Seconds of all cores that were not idle."""
    return ticks_of("/proc/stat", [1, 2, 3, 6, 7])  # user, nice, system, interrupts


def publish(args, server, probe, result, ending):
    """Publishes and withdraws articles, and looks for each, until it is told to end."""
    connection, begin, number = Connection(server.port), time.perf_counter(), 0
    while not ending.is_set():
        change(connection, f"fresh{number}", *probe, result)
        number += 1
        wait_until(begin + number / args.changes)


if __name__ == "__main__":
    main()

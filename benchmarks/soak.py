"""The service under mixed traffic for as long as is asked, killed every few minutes: what is lost,
what is not seen, and whether memory or open files grow.

    python benchmarks/soak.py --minutes 60

A model with content learns the sample, its index is live. Readers ask for sessions; one client
publishes articles, withdraws them and looks after each change whether it is seen; another one
reports clicks; a hostile one sends what is no request. The server is killed (SIGKILL) every
--kill_every seconds and started again at once. Then every change that it had acknowledged must be
in the index, and every click that it had acknowledged more than a second before, which is what the
service promises. A row a minute; ends with 1 where anything was lost, not seen or answered with a
fault of the server, or where retrieve.py check finds damage.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

import common
from bench_serve import Connection, make_index, request

from ssr.preparation import sample
from ssr.retrieval.store import Store

PROMISED = 1.0  # seconds after which an acknowledged click is on the disk
SESSIONS_AT_A_TIME = 20  # of clicks reported together
COLUMNS = ("minute", "requests", "p99, ms", "failed", "memory, MB", "open files", "changes",
           "clicks", "kills", "lost changes", "lost clicks", "not seen")


class Server:
    """serve.py in a process of its own, on the same port after each start."""

    def __init__(self, index_dir):
        self.index_dir, self.port = index_dir, 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(common.ROOT, "serve.py"), "--index_dir", self.index_dir,
             "--port", str(self.port), "--timeout", "5"], text=True, stdout=subprocess.PIPE,
            env={**os.environ, "SSR_TOKEN": ""})
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the server does not start")
        self.port = int(line.rsplit(":", 1)[1])

    def stop(self, number):
        self.process.send_signal(number)
        self.process.wait()
        self.process.stdout.close()

    def memory_and_files(self):
        """(resident MB, open files)"""
        with open(f"/proc/{self.process.pid}/statm", encoding="utf-8") as f:
            pages = int(f.read().split()[1])
        files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return pages * os.sysconf("SC_PAGE_SIZE") / 2 ** 20, files


class Traffic:
    """What the clients do, and what was acknowledged to them. A client is a generator that does one
    thing at each step; its state is its own, what it counts is behind the lock.

    is_candidate: {id: whether it is, by the last change that was acknowledged}
    clicked: {session: when its click was acknowledged}
    """

    def __init__(self, server, sessions, headlines, seed):
        self.server, self.sessions, self.headlines = server, sessions, headlines
        self.random = random.Random(seed)
        self.lock, self.paused, self.ended = threading.Lock(), threading.Event(), False
        self.counts, self.seconds = collections.Counter(), []
        self.is_candidate, self.clicked = {}, {}
        clients = [(self.reading, 0.02), (self.reading, 0.02), (self.changing, 0.05),
                   (self.clicking, 0.1), (self.annoying, 0.2)]
        self.threads = [threading.Thread(target=self.run, args=client) for client in clients]
        for thread in self.threads:
            thread.start()

    def end(self):
        self.ended = True
        for thread in self.threads:
            thread.join()

    def run(self, client, pause):
        """Goes on after each kill with a connection of its own."""
        while not self.ended:
            with contextlib.suppress(OSError, ValueError, IndexError):  # a server that is killed
                connection = Connection(self.server.port)
                for _ in client(connection):
                    time.sleep(pause)
                    if self.ended:
                        return
            time.sleep(0.2)

    def ask(self, connection, *what):
        """(status, JSON) of a request that is counted."""
        begin = time.perf_counter()
        status, body = connection.ask(*what)
        with self.lock:
            self.seconds.append(time.perf_counter() - begin)
            self.counts["requests"] += 1
            self.counts["failed"] += status >= 500
        return status, json.loads(body)

    def count(self, name):
        with self.lock:
            self.counts[name] += 1

    # --- clients

    def reading(self, connection):
        while True:
            session = self.random.choice(self.sessions)
            status, _ = self.ask(connection, "POST", "/recommend", {"session": session, "k": 20})
            if status != 200:
                self.count("failed")
            yield

    def changing(self, connection):
        while True:
            id = f"soak-{self.random.randrange(2000):04d}"  # none is part of another
            publish = not self.is_candidate.get(id)
            # Until it is acknowledged nobody knows what a kill leaves of it.
            self.is_candidate.pop(id, None)
            if publish:
                text = self.random.choice(self.headlines)
                status, _ = self.ask(connection, "PUT", f"/items/{id}", {"text": text})
            else:
                status, _ = self.ask(connection, "DELETE", f"/items/{id}")
            if status == 200:
                self.is_candidate[id] = publish
                self.count("changes")
                _, answer = self.ask(connection, "GET", f"/items?search={id}&limit=200")
                if (id in [item["id"] for item in answer["items"]]) != publish:
                    self.count("not seen")
            yield

    def clicking(self, connection):
        for number in range(1 << 40):
            items = [f"n{int(self.random.random() ** 3 * len(self.headlines)):04d}"
                     for _ in range(SESSIONS_AT_A_TIME)]
            sessions = [f"{time.time_ns()}-{number}-{place}" for place in range(len(items))]
            status, _ = self.ask(connection, "POST", "/clicks/batch", [
                {"session": session, "item": item} for session, item in zip(sessions, items)])
            if status == 200:
                self.clicked.update(dict.fromkeys(sessions, time.time()))
                with self.lock:
                    self.counts["clicks"] += len(sessions)
            yield

    def annoying(self, connection):
        """Each on a connection of its own; the last one stays open with half a request."""
        while True:
            message = self.random.choice([
                b"\0" * 50 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
                request("POST", "/recommend", {"session": [7], "k": -1}),
                request("POST", "/clicks", {"session": "s", "item": "x" * 5000}),
                request("PUT", "/items/x", {"text": "long " * 10_000}),
                request("POST", "/recommend", [[]] * 1000)])
            stranger = Connection(self.server.port)
            with stranger.socket:
                status, _ = stranger.send(message)
                self.count("failed" if status >= 500 else "refused")
            stranger = Connection(self.server.port)
            stranger.socket.sendall(request("POST", "/recommend", {"session": []})[:-1])
            yield


# --- what is left after a kill --------------------------------------------------------------------


def lost_changes(index_dir, is_candidate):
    """How many of the changes that were acknowledged are not in the index."""
    with Store(index_dir) as store:
        known = store.items.find(list(is_candidate))
    return sum(candidate != (id in known and not known[id].removed)
               for id, candidate in is_candidate.items())


def lost_clicks(index_dir, clicked):
    """When the clicks were acknowledged that are not in the log, a list of seconds since 1970."""
    path = os.path.join(index_dir, "clicks.sqlite")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        present = {session for session, in db.execute("SELECT session FROM clicks")}
    return [when for session, when in clicked.items() if session not in present]


def kill(server, traffic, totals):
    """Kills the server, counts what is lost, starts it again."""
    killed = time.time()
    server.stop(signal.SIGKILL)
    time.sleep(0.5)  # the clients have noticed
    totals["kills"] += 1
    totals["lost changes"] += lost_changes(server.index_dir, dict(traffic.is_candidate))
    ages = [killed - when for when in lost_clicks(server.index_dir, dict(traffic.clicked))]
    totals["lost clicks"] += sum(age > PROMISED for age in ages)
    totals["oldest, s"] = max(totals["oldest, s"], *ages, 0)
    traffic.clicked.clear()
    server.start()


def print_row(minute, server, traffic, totals):
    with traffic.lock:
        seconds, traffic.seconds = sorted(traffic.seconds), []
        counts, traffic.counts = traffic.counts, collections.Counter()
    for name in ("failed", "not seen"):
        totals[name] += counts[name]
    memory, files = server.memory_and_files()
    values = {**counts, "minute": minute, "memory, MB": f"{memory:.0f}", "open files": files,
              "p99, ms": f"{1000 * seconds[len(seconds) * 99 // 100]:.1f}" if seconds else "n/a",
              **{name: totals[name] for name in ("kills", "lost changes", "lost clicks")}}
    print("| " + " | ".join(str(values.get(name, 0)) for name in COLUMNS) + " |", flush=True)


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    add = parser.add_argument
    add("--minutes", type=float, default=60, help="how long")
    add("--kill_every", type=float, default=180, help="seconds from one kill to the next")
    add("--seed", type=int, default=0, help="of what the clients do")
    args = parser.parse(own_flags)
    with tempfile.TemporaryDirectory() as work:
        sessions = make_index(work, 500, 100_000)
        index_dir = os.path.join(work, "index")
        common.run_script("retrieve.py", "live", "--index_dir", index_dir)
        server, totals = Server(index_dir), collections.Counter()
        traffic = Traffic(server, sessions, sample.make_headlines(500, 0), args.seed)
        print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
        begin = last_kill = time.monotonic()
        minute = 0
        try:
            while time.monotonic() < begin + 60 * args.minutes:
                time.sleep(0.5)
                if time.monotonic() > last_kill + args.kill_every:
                    kill(server, traffic, totals)
                    last_kill = time.monotonic()
                if time.monotonic() > begin + 60 * (minute + 1):
                    minute += 1
                    print_row(minute, server, traffic, totals)
        finally:
            traffic.end()
            server.stop(signal.SIGTERM)
        totals["lost clicks"] += len(lost_clicks(index_dir, traffic.clicked))
        totals["lost changes"] += lost_changes(index_dir, traffic.is_candidate)
        common.run_script("retrieve.py", "check", "--index_dir", index_dir)
    print(f"\nOldest click that a kill took: acknowledged {totals['oldest, s']:.2f} s before.")
    return int(any(totals[name] for name in ("failed", "not seen", "lost changes", "lost clicks")))


if __name__ == "__main__":
    sys.exit(main())

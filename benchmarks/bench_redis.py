"""Clicks that servers share over Redis: how fast they are taken in and seen, what a start costs.

    python benchmarks/bench_redis.py --clicks 20000

A redis-server that is installed runs beside three indexes of the sample with vectors of 128
columns, all in this process: on several machines each has a core of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time

import common  # first: it puts the project on the path
import numpy as np
import redis

from ssr import commands
from ssr.retrieval import Click, Index

ONE_BY_ONE, BATCH = 500, 100


def main():
    parser, flags, _ = common.parser_and_flags(__doc__)
    parser.add_argument("--clicks", type=commands.number(int, 1000), default=20_000)
    args = parser.parse(flags)
    with tempfile.TemporaryDirectory() as work, redis_server(work) as port:
        build(work)
        measure(work, f"redis://127.0.0.1:{port}/0", args.clicks)


@contextlib.contextmanager
def redis_server(work):
    """A Redis that flushes once a second, as its default is; gives the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(["redis-server", "--port", str(port), "--dir", work, "--save", "",
                                "--appendonly", "yes"], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            while True:
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def build(work):
    common.run_script("train.py", "--epochs", 1, "--use_cuda", 0, "--model_dir", f"{work}/model",
                      "--embedding_dim", 128, "--hidden_size", 128)
    common.run_script("retrieve.py", "build", "--model_dir", f"{work}/model", "--items_path",
                      os.path.join(common.ROOT, "sample", "items.txt"), "--index_dir", f"{work}/a")
    for name in "bc":
        shutil.copytree(f"{work}/a", f"{work}/{name}")


def measure(work, uri, count):
    random = np.random.default_rng(0)
    with Index.open(f"{work}/a", True, clicks=uri) as one:
        ids = [id for id, _ in one.browse([], 1000)[0]]
        clicks = [Click(f"s{random.integers(count // 5)}", ids[int(random.zipf(1.3)) % len(ids)])
                  for _ in range(count)]
        with Index.open(f"{work}/b", True, clicks=uri) as other:
            took = [seconds(one.click, [click]) for click in clicks[:ONE_BY_ONE]]
            print(f"a click: {np.median(took) * 1e3:.1f} ms until it is acknowledged")
            took = [seen_after(one, other, click) for click in clicks[:50]]
            print(f"seen by another server after {np.median(took) * 1e3:.0f} ms, "
                  f"at most {max(took) * 1e3:.0f} ms")
            begin = time.perf_counter()
            rest = clicks[ONE_BY_ONE:]
            for start in range(0, len(rest), BATCH):
                one.click(rest[start:start + BATCH])
            wait_for(other, one)
            print(f"{len(rest) / (time.perf_counter() - begin):.0f} clicks a second in batches of "
                  f"{BATCH}, taken in by two servers")
        with redis.Redis.from_url(uri) as client:
            entries, size = client.xlen("ssr:clicks"), client.memory_usage("ssr:clicks", samples=0)
        print(f"{size / entries:.0f} bytes a click in Redis")
    anew, again = opening(f"{work}/c", uri), opening(f"{work}/c", uri)
    print(f"a new server opens in {anew:.1f} s, {entries / anew:.0f} clicks a second; with its "
          f"snapshot in {again:.2f} s")


def opening(path, uri):
    """Seconds that it takes to open an index."""
    begin = time.perf_counter()
    with Index.open(path, True, clicks=uri):
        return time.perf_counter() - begin


def seconds(function, *arguments):
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def seen_after(one, other, click):
    """Seconds from the acknowledgement until another index has applied it."""
    seen, apply = threading.Event(), other._live._apply

    def applied(*arguments):
        users = apply(*arguments)
        seen.set()
        return users

    other._live._apply = applied
    one.click([click])
    begin = time.perf_counter()
    seen.wait(5)
    other._live._apply = apply
    return time.perf_counter() - begin


def wait_for(other, one):
    while other._live._read_to != one._live._read_to:
        time.sleep(0.01)


if __name__ == "__main__":
    main()

"""The server under load over loopback, a query by its parts, and a million items.

    python benchmarks/bench_serve.py                     # 50,000 items, a trained model, HTTP
    python benchmarks/bench_serve.py --items 1000000     # IVF against the exact search, no HTTP

With 50,000 items a model with content learns sessions like those of the sample, retrieve.py builds
its index and serve.py serves it in a process of its own; this process is the client. Connections
ask for sessions: first each as soon as its last answer is there, which is the most that the server
can do, then at a given rate, alone and beside others that publish fresh articles and withdraw them
and look after each change whether it is seen.

Above 200,000 items there is no training: vectors of 128 dimensions lie around centres as those of
a trained model lie around topics. The sizes of the topics fall as 1 / rank; two items of a topic
have a cosine of 0.55 in the mean. A query is the direction between two items of a topic and an
offset of its own, as a session's vector is near the items of its clicks and not one of them.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

import common
import numpy as np

from ssr import commands
from ssr.preparation import sample
from ssr.retrieval import Index
from ssr.retrieval.builds import new_build
from ssr.retrieval.encoder import Bag
from ssr.retrieval.rows import Row
from ssr.retrieval.store import Store, create
from ssr.retrieval.vectors import recall

MOST_TO_TRAIN = 200_000  # items; above there is no model, and no HTTP
K = 20
CHECKED = 60  # hits of a query that looks whether a change is seen
DIM, TOPICS, SPREAD = 128, 5000, 0.9  # of the synthetic vectors; spread: length of the offset


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    add = parser.add_argument
    add("--items", type=int, default=50_000, help="of the index")
    add("--seconds", type=float, default=20, help="of each load")
    add("--connections", type=int, default=4, help="that ask, and as many that publish")
    add("--rate", type=float, default=100, help="requests a second, where paced")
    add("--ivf_above", type=int, default=100_000, help="as of retrieve.py build")
    add("--changes", type=commands.number(float, 0.1), default=100,
        help="adds, and removes, a second")
    args = parser.parse(own_flags)
    with tempfile.TemporaryDirectory() as work:
        if args.items > MOST_TO_TRAIN:
            return measure_search(work, args.items)
        sessions = make_index(work, args.items, args.ivf_above)
        print_load(args, work, sessions)
        print_parts(os.path.join(work, "index"), sessions)


# --- the server -----------------------------------------------------------------------------------


def make_index(work, num_items, ivf_above):
    """Trains a model with content and builds its index. Returns sessions of raw ids."""
    sample.write_sample(work, num_items, 2 * num_items, 2000, seed=0)
    data = ["--train_dir", f"{work}/train_data", "--vocab_path", f"{work}/vocab.txt",
            "--item_tokens", f"{work}/item_tokens.txt", "--model_dir", f"{work}/model"]
    common.run_script(*common.TRAIN, *data, "--recipe", "strong", "--epochs", 1)
    common.run_script("retrieve.py", "build", "--index_dir", f"{work}/index", "--items_path",
                      f"{work}/items.txt", "--tokens_path", f"{work}/tokens.txt", "--ivf_above",
                      ivf_above, *data[4:])
    with open(f"{work}/test_data/sessions.txt", encoding="utf-8") as f:
        return [[f"n{int(item):04d}" for item in line.split()][-20:] for line in f]


class Connection:
    """As little of HTTP as it takes: the client's own time is in what it measures."""

    def __init__(self, port):
        self.port = port
        self._connect()

    def _connect(self):
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method, path, body=None):
        """(status, JSON)"""
        return self.send(request(method, path, body))

    def send(self, message):
        self.socket.sendall(message)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, body = received.split(b"\r\n\r\n", 1)
        head = head.lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self._more()
        if b"\r\nconnection: close" in head:
            self.socket.close()
            self._connect()
        return int(head[9:12]), body

    def _more(self):
        part = self.socket.recv(1 << 16)
        if not part:
            raise ConnectionError("the server hung up")
        return part


def request(method, path, body=None):
    content = b"" if body is None else json.dumps(body).encode()
    return (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n").encode() + content


def ids_for(connection, session):
    status, body = connection.ask("POST", "/recommend", {"session": session, "k": CHECKED})
    return [hit["id"] for hit in json.loads(body)["hits"]] if status == 200 else None


def print_load(args, work, sessions):
    environment = {**os.environ, "SSR_TOKEN": ""}
    server = subprocess.Popen([sys.executable, os.path.join(common.ROOT, "serve.py"), "--port", "0",
                               "--index_dir", f"{work}/index"],
                              env=environment, text=True, stdout=subprocess.PIPE)
    try:
        port = int(server.stdout.readline().rsplit(":", 1)[1])
        headlines = sample.make_headlines(args.items, 0)
        probes = find_probes(Connection(port), sessions, headlines,
                             CHECKED - args.connections)
        print("| /recommend | requests | a second | p50, ms | p99, ms | max, ms | failed | "
              "adds / s | removes / s | not seen |\n|" + "---|" * 10)
        load(args, port, sessions, float("inf"))  # a warm-up
        print_row("as fast as it can", load(args, port, sessions, float("inf")))
        print_row("as fast, beside changes", load(args, port, sessions, float("inf"), probes))
        print_row("paced", load(args, port, sessions, args.rate))
        print_row("paced, beside changes", load(args, port, sessions, args.rate, probes))
    finally:
        server.terminate()
        server.communicate()
    if server.returncode:
        raise SystemExit(f"the server ended with the code {server.returncode}")


def find_probes(connection, sessions, headlines, first, wanted=50):
    """Pairs (session, headline) such that a fresh article of the headline is among the first hits
    for the session: those show whether an add is seen.

    first: how many; less than CHECKED by what other connections may have published at the time
    """
    probes = []
    for session in sessions:
        headline = headlines[int(session[-1][1:])]
        connection.ask("PUT", "/items/probe", {"text": headline})
        if "probe" in ids_for(connection, session)[:first]:
            probes.append((session, headline))
        if len(probes) == wanted:
            break
    connection.ask("DELETE", "/items/probe")
    if len(probes) < 10:
        raise SystemExit(f"only {len(probes)} of {len(sessions)} headlines are among the hits for "
                         "their session")
    return probes


class Load:
    """What happened. times: seconds of each request for recommendations; the rest are counts"""

    def __init__(self):
        self.times, self.failed, self.added, self.removed, self.unseen = [], 0, 0, 0, 0
        self.seconds = 0


def load(args, port, sessions, rate, probes=None):
    """Asks for args.seconds, so many times a second, beside changes where there are probes. Returns
    a Load."""
    result, begin = Load(), time.perf_counter()
    end, asked, changed = begin + args.seconds, itertools.count(), itertools.count()
    messages = [request("POST", "/recommend", {"session": session, "k": K})
                for session in sessions]

    def read():
        connection = Connection(port)
        for number in asked:
            wait_until(begin + number / rate)
            sent = time.perf_counter()
            if sent > end:
                return
            status, _ = connection.send(messages[number % len(messages)])
            result.times.append(time.perf_counter() - sent)
            result.failed += status != 200

    def write():
        connection = Connection(port)
        for number in changed:
            wait_until(begin + number / args.changes)
            if time.perf_counter() > end:
                return
            change(connection, f"fresh{number}", *probes[number % len(probes)], result)

    threads = [threading.Thread(target=run) for run in [read, write][:1 + bool(probes)]
               for _ in range(args.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - begin
    return result


def wait_until(moment):
    time.sleep(max(0, moment - time.perf_counter()))


def change(connection, id, session, headline, result):
    """Publishes and withdraws an article, and looks for it after each."""
    added, _ = connection.ask("PUT", f"/items/{id}", {"text": headline})
    found = ids_for(connection, session)
    removed, _ = connection.ask("DELETE", f"/items/{id}")
    left = ids_for(connection, session)
    result.failed += (added != 200) + (removed != 200) + (found is None) + (left is None)
    result.unseen += (id not in (found or [])) + (id in (left or []))
    result.added += added == 200
    result.removed += removed == 200


def print_row(name, result):
    p50, p99 = np.percentile(result.times, [50, 99]) * 1e3
    print(f"| {name} | {len(result.times)} | {len(result.times) / result.seconds:.0f} | {p50:.2f} "
          f"| {p99:.2f} | {max(result.times) * 1e3:.1f} | {result.failed} | "
          f"{result.added / result.seconds:.0f} | {result.removed / result.seconds:.0f} | "
          f"{result.unseen} |", flush=True)


# --- a query by its parts -------------------------------------------------------------------------


def print_parts(path, sessions):
    """Milliseconds of a query, one core, without HTTP."""
    with Index.open(path, writable=True) as index:
        index.warm_up()
        encoder, store = index._encoder, index.store
        known = [store.items.find(sorted(set(session))) for session in sessions[:200]]
        clicks = [[items[id].bag for id in session]
                  for session, items in zip(sessions, known)]
        users = [np.stack(encoder.encode_sessions([session])) for session in clicks]
        keys = [store.search(user, K)[1][0].tolist() for user in users]
        parts = [
            ("find the clicks", lambda i: store.items.find(sorted(set(sessions[i])))),
            ("encode the session", lambda i: encoder.encode_sessions([clicks[i]])),
            ("search", lambda i: store.search(users[i], K)),
            ("fetch the texts", lambda i: store.items.texts(keys[i])),
            ("all of Index.query", lambda i: index.query(sessions[i], K))]
        print("\n| part | ms |\n|---|---|")
        for name, part in parts:
            seconds = common.timed(lambda: [part(i) for i in range(len(clicks))], 1) / len(clicks)
            print(f"| {name} | {seconds * 1e3:.3f} |")


# --- a million items ------------------------------------------------------------------------------


def make_vectors(count, queries):
    """Vectors <float32>[count, DIM] around centres, and queries <float32>[queries, DIM]."""
    random = np.random.default_rng(0)
    centres = unit(random.normal(size=(TOPICS, DIM)))
    share = 1 / np.arange(1, TOPICS + 1)
    topic = random.choice(TOPICS, count, p=share / share.sum())

    def near(vectors):
        offset = random.standard_normal(vectors.shape, np.float32) * (SPREAD / DIM ** 0.5)
        return unit(vectors + offset)

    vectors = near(centres[topic])
    first = random.integers(0, count, queries)
    ranked = np.argsort(topic, kind="stable")  # neighbours there are mostly of one topic
    place = np.empty(count, np.int64)
    place[ranked] = np.arange(count)
    second = ranked[np.minimum(place[first] + 1, count - 1)]
    return vectors, near(unit(vectors[first] + vectors[second]))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def measure_search(work, count):
    begin = time.time()
    vectors, queries = make_vectors(count, 2200)
    bag = Bag(np.zeros(1, np.int32))
    rows = (Row(f"n{i}", f"text {i}", bag, vector) for i, vector in enumerate(vectors))
    path = os.path.join(work, "index")
    with new_build(path) as directory:
        create(directory, DIM, rows, {}, queries[:200])
    built, begin = time.time() - begin, time.time()
    with Store(path, writable=True) as store:
        opening, queries = time.time() - begin, queries[200:]
        milliseconds, hits = zip(*(timed(store.search, query[None], K) for query in queries))
        hits = np.array([keys[0] for _, keys in hits[:1000]]) - 1  # keys begin at 1
        wanted = np.concatenate([exact(vectors, queries[i:i + 10]) for i in range(0, 1000, 10)])
        p50, p99 = np.percentile(milliseconds, [50, 99])
        changes = [timed(store.put, [Row(f"n{i}", "changed", bag, vectors[i + 1])])[0]
                   for i in range(200)]
        size, _ = timed(store.size)
        browse, (_, complete) = timed(store.items.browse, ["no such text"], K)
        settings = store.search_settings()
    print("| items | lists | looked into | recall@20 | ms a query | p50 | p99 | a change, ms | "
          "build, s | open, s | MB, opened |\n|" + "---|" * 11)
    print(f"| {count} | {settings.get('nlist', '-')} | {settings.get('nprobe', '-')} "
          f"| {recall(hits, wanted):.4f} | {np.mean(milliseconds):.2f} | {p50:.2f} | {p99:.2f} "
          f"| {np.mean(changes):.2f} | {built:.0f} | {opening:.1f} | {memory_of(path)} |")
    print(f"\nthe size in {size:.2f} ms; a search of the texts that finds nothing in "
          f"{browse:.0f} ms, {'all' if complete else 'not all'} looked at")


def timed(function, *args):
    """(milliseconds of a call, what it returns)"""
    begin = time.perf_counter()
    result = function(*args)
    return (time.perf_counter() - begin) * 1e3, result


def memory_of(path):
    """The peak of a process that opens an index, in MB, all imports included."""
    # Not getrusage: its peak begins with that of the process that this one was made by.
    code = (f"import sys; sys.path.insert(0, {common.ROOT!r}); import ssr.retrieval.index as i; "
            f"i.open_store({path!r}); print(open('/proc/self/status').read())")
    status = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True,
                            text=True).stdout
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def exact(vectors, queries):
    """<int64>[queries, K]: the nearest vectors."""
    scores = queries @ vectors.T
    return np.argpartition(-scores, K, axis=1)[:, :K].copy()  # a view would keep all of it


if __name__ == "__main__":
    main()

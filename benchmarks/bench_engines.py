"""Recall and latency of an index in Milvus beside one on faiss, of the same items in the same run.

    python benchmarks/bench_engines.py --items 50000
    python benchmarks/bench_engines.py --items 1000000 --queries 200

The vectors are those of bench_serve.py, clusters of 128 columns; each item has one of 20 sections.
Without --uri Milvus is Milvus Lite, in this process: a Python program on faiss that speaks Milvus's
protocol, for tests and trials. What a Milvus server takes is measured with its --uri. The queries
go to both in turn, one at a time.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time

import common  # first: it puts the project on the path
import numpy as np
from bench_serve import exact, make_vectors, timed

from ssr import commands
from ssr.retrieval import Filter, builds, engines
from ssr.retrieval.bag import NOTHING
from ssr.retrieval.filters import conditions_of
from ssr.retrieval.rows import Row
from ssr.retrieval.vectors import SearchSettings, recall

K, SECTIONS, TUNING, CHANGES = 20, 20, 200, 50
SECTION = Filter(only=["section:s3"])


def main():
    parser, flags, _ = common.parser_and_flags(__doc__)
    parser.add_argument("--items", type=commands.number(int, 1000), default=50_000)
    parser.add_argument("--queries", type=commands.number(int, 1), default=500)
    parser.add_argument("--ivf_above", type=commands.number(int, 0), help="as of retrieve.py build")
    parser.add_argument("--seconds", type=commands.number(float, 1), default=120,
                        help="after which there are no more queries of a kind")
    parser.add_argument("--uri", help="of a Milvus; Milvus Lite when not given")
    args = parser.parse(flags)
    with tempfile.TemporaryDirectory() as work:
        measure(work, args)


def measure(work, args):
    vectors, queries = make_vectors(args.items, TUNING + args.queries)
    rows = [Row(f"n{i}", f"text {i}", NOTHING, vector, (f"section:s{i % SECTIONS}",))
            for i, vector in enumerate(vectors)]
    milvus = engines.Milvus(args.uri or os.path.join(work, "lite.db"), "bench")
    with contextlib.ExitStack() as stack:
        stores = {}
        for name, engine in (("faiss", None), ("milvus", milvus)):
            begin = time.time()
            path = os.path.join(work, name)
            with engines.building(path, engine) as create, builds.new_build(path) as directory:
                create(directory, vectors.shape[1], rows, {"digest": "0" * 12, "model": "none"},
                       queries[:TUNING], SearchSettings(args.ivf_above))
            built, begin = time.time() - begin, time.time()
            stores[name] = stack.enter_context(engines.open_store(path, writable=True))
            print(f"{name}: built in {built:.0f} s, opened in {time.time() - begin:.1f} s, "
                  f"{stores[name].search_settings()}", flush=True)
        report(stores, vectors, queries[TUNING:], rows, args.seconds)


def report(stores, vectors, queries, rows, seconds):
    """A line for each way to ask and each engine. seconds: for each way, at most"""
    random = np.random.default_rng(0)
    lists = [Filter(candidates=[f"n{i}" for i in random.integers(0, len(rows), 1000)])
             for _ in range(20)]
    in_section = np.arange(len(rows)) % SECTIONS == 3
    ways = [("all", [None], None), ("one section of 20", [SECTION], in_section),
            ("a list of 1,000", lists, None)]
    print("| items | engine | asked for | queries | recall@20 | ms, p50 | p99 |\n|" + "---|" * 7)
    for way, filters, passing in ways:
        keys, times = {name: [] for name in stores}, {name: [] for name in stores}
        end = time.monotonic() + seconds
        for place, query in enumerate(queries):
            if time.monotonic() > end:
                break
            filter = filters[place % len(filters)]
            for name, store in stores.items():
                took, found = timed(ask, store, query, filter)
                times[name].append(took)
                keys[name].append(found)
        for name, store in stores.items():
            p50, p99 = np.percentile(times[name], [50, 99])
            quality = quality_of(store, keys[name], vectors, queries, filters, passing)
            print(f"| {len(rows)} | {name} | {way} | {len(times[name])} | {quality:.4f} "
                  f"| {p50:.2f} | {p99:.2f} |", flush=True)
    for name, store in stores.items():
        p50 = np.median([timed(store.put, [rows[i]])[0] for i in range(CHANGES)])
        print(f"| {len(rows)} | {name} | a change | {CHANGES} | | {p50:.2f} | |")


def ask(store, query, filter):
    among = filter and store.select(conditions_of(filter, time.time()))
    return store.search(query[None], K, among)[1][0]


def quality_of(store, found, vectors, queries, filters, passing):
    """The recall@20 of at most 200 of the answers, by a look at all vectors that pass."""
    places = dict(zip(store.model_keys(len(vectors)).tolist(), range(len(vectors))))
    recalls = []
    for place, (keys, query) in enumerate(zip(found[:200], queries)):
        filter = filters[place % len(filters)]
        if passing is not None:
            rows = np.flatnonzero(passing)
        elif filter is not None:
            rows = np.unique([int(id[1:]) for id in filter.candidates])
        else:
            rows = None
        if rows is None:
            wanted = exact(vectors, query[None])
        else:
            wanted = rows[np.argsort(-(vectors[rows] @ query), kind="stable")[:K]][None]
        recalls.append(recall([[places[key] for key in keys.tolist() if key >= 0]], wanted))
    return float(np.mean(recalls))


if __name__ == "__main__":
    main()

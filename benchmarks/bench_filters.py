"""What filters cost a query, beside the same query without one, in Python and over HTTP.

    python benchmarks/bench_filters.py --items 50000

The index is that of bench_serve.py with 20 sections, searched exactly and then approximately. Each
query is asked in all ways in turn. New lists of ids are drawn for every query, so that nobody can
remember them; of those that come again there are LISTS, as of a caller who knows what is on sale
today. Recall is that of the answers against a look at all vectors that pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import bench_serve
import common
import numpy as np
from bench_serve import Connection, K, request

from ssr import commands
from ssr.retrieval import Filter, Index
from ssr.retrieval.filters import conditions_of

SECTIONS, LISTS = 20, 10


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    add, positive = parser.add_argument, commands.number(int, 1)
    add("--items", type=positive, default=50_000, help="of the index")
    add("--list", type=positive, default=10_000, help="ids in a list")
    add("--queries", type=positive, default=200, help="in each way")
    args = parser.parse(own_flags)
    with tempfile.TemporaryDirectory() as work:
        sessions = make_index(work, args.items)
        queries = [(sessions[i % len(sessions)], ways(args, i)) for i in range(args.queries)]
        print("| search | filter | recall@20 | Index.query, ms | against none | HTTP, ms | "
              "against none |\n|" + "---|" * 7)
        for search, above in (("exact", args.items), ("IVF", 0)):
            common.run_script("retrieve.py", "reindex", "--index_dir", f"{work}/index",
                              "--ivf_above", above)
            report(search, measure_python(f"{work}/index", queries),
                   measure_http(f"{work}/index", queries))


def make_index(work, num_items):
    """Returns sessions of raw ids."""
    sessions = bench_serve.make_index(work, num_items, num_items)
    with open(f"{work}/items.txt", encoding="utf-8") as f:
        lines = [f"{line.rstrip()}\tsection:s{number % SECTIONS}\n"
                 for number, line in enumerate(f)]
    with open(f"{work}/items.txt", "w", encoding="utf-8") as f:
        f.writelines(lines)
    common.run_script("retrieve.py", "build", "--overwrite", "--index_dir", f"{work}/index",
                      "--model_dir", f"{work}/model", "--items_path", f"{work}/items.txt",
                      "--item_tokens", f"{work}/item_tokens.txt", "--tokens_path",
                      f"{work}/tokens.txt")
    return sessions


def ways(args, number):
    """{name: Filter}"""
    def some(seed):
        chosen = np.random.default_rng(seed).choice(args.items, args.list, replace=False)
        return [f"n{i:04d}" for i in chosen]

    sections = [f"section:s{(number + i) % SECTIONS}" for i in range(SECTIONS // 2)]
    return {"none": Filter(),
            f"candidates: a new list of {args.list:,}": Filter(candidates=some([number, 0])),
            f"candidates: {args.list:,} that come again": Filter(candidates=some(number % LISTS)),
            f"exclude: a new list of {args.list:,}": Filter(exclude=some([number, 1])),
            "only one section of 20": Filter(only=sections[:1]),
            "only ten sections of 20": Filter(only=sections),
            "without one section of 20": Filter(without=sections[:1]),
            "max_age": Filter(max_age=86400.0)}


def measure_python(path, queries):
    """{name: (recall@20, seconds of each query)}"""
    recalls, times = {}, {}
    with Index.open(path) as index:
        stored = index.store.items.vectors()
        index.query(queries[0][0], K, filter=Filter(exclude=["nobody"]))  # reads what filters ask
        for session, filters in queries:
            for name, filter in filters.items():
                begin = time.perf_counter()
                answer = index.query(session, K, filter=filter)
                times.setdefault(name, []).append(time.perf_counter() - begin)
                recalls.setdefault(name, []).append(
                    recall(index, stored, session, filter, answer))
    return {name: (np.mean(recalls[name]), times[name]) for name in times}


def recall(index, stored, session, filter, answer):
    """stored: keys and vectors of all items"""
    keys, vectors = stored
    known = index.store.items.find(sorted(set(session)))
    user, = index._encoder.encode_sessions([[known[id].bag for id in session]])
    passing = index.store.select(conditions_of(filter, time.time()))(keys)
    passing &= ~np.isin(keys, [item.key for item in known.values()])
    best = np.sort(vectors[passing] @ user)[::-1][:K]
    # By scores: of items that are as near as the last one any will do.
    return sum(hit.score >= best[-1] - 1e-5 for hit in answer.hits) / len(best)


def measure_http(path, queries):
    """{name: seconds of each query}"""
    server = subprocess.Popen(
        [sys.executable, os.path.join(common.ROOT, "serve.py"), "--port", "0", "--index_dir", path],
        env={**os.environ, "SSR_TOKEN": ""}, text=True, stdout=subprocess.PIPE)
    times = {}
    try:
        connection = Connection(int(server.stdout.readline().rsplit(":", 1)[1]))
        connection.ask("POST", "/recommend", {"session": [], "exclude": ["nobody"]})
        for session, filters in queries:
            for name, filter in filters.items():
                given = {key: value for key, value in filter._asdict().items()
                         if value != Filter._field_defaults[key]}
                message = request("POST", "/recommend", {"session": session, "k": K, **given})
                begin = time.perf_counter()
                status, body = connection.send(message)
                times.setdefault(name, []).append(time.perf_counter() - begin)
                if status != 200 or len(json.loads(body)["hits"]) != K:
                    raise SystemExit(f"{name}: {status} {body[:200]!r}")
    finally:
        server.terminate()
        server.communicate()
    return times


def report(search, in_python, over_http):
    base, base_http = np.median(in_python["none"][1]), np.median(over_http["none"])
    for name, (quality, times) in in_python.items():
        took, http = np.median(times), np.median(over_http[name])
        print(f"| {search} | {name} | {quality:.4f} | {took * 1e3:.2f} | {took / base:.2f} | "
              f"{http * 1e3:.2f} | {http / base_http:.2f} |", flush=True)


if __name__ == "__main__":
    main()

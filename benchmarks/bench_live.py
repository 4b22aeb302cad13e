"""A live index: what a click costs, what a query costs beside many clicked articles, and how long
it takes to open.

    python benchmarks/bench_live.py --items 12000 --clicks 100000

A model learns sessions like those of the sample, retrieve.py builds its index, and sessions of the
same kind click through it, a day of them, as if one came after the other. One process, no HTTP.
"""

from __future__ import annotations

import glob
import os
import resource
import tempfile
import time

import common
import numpy as np

import reader
from ssr.news import Scoring
from ssr.preparation import sample
from ssr.retrieval import Click, Index, live_snapshot

BATCH = 100
QUERIES = 500


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    parser.add_argument("--items", type=int, default=12_000, help="of the index")
    parser.add_argument("--clicks", type=int, default=100_000, help="that the index takes in")
    args = parser.parse(own_flags)
    with tempfile.TemporaryDirectory() as work:
        sessions = make_index(work, args)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        half = args.clicks // 2
        clicks = make_clicks(sessions, args.clicks)
        with Index.open(f"{work}/index", True, Scoring()) as index:
            index.click(clicks[:1])
            each = seconds(lambda: [index.click([click]) for click in clicks[1:half]])
            batches = seconds(lambda: [index.click(clicks[start:start + BATCH])
                                       for start in range(half, len(clicks), BATCH)])
            query = seconds(lambda: [index.query(session, 20) for session in sessions[:QUERIES]])
        snapshot, = glob.glob(f"{work}/index/build-*/{live_snapshot.FILE}")
        size = os.path.getsize(snapshot) / 1e6
        opening = seconds(lambda: open_and_close(work))
        os.remove(snapshot)
        replaying = seconds(lambda: open_and_close(work))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print("| articles clicked | clicks | ms a click, one by one | ms a click, by the hundred | "
              "ms a query | s to open | without a snapshot | MB for it | MB of the log | of the "
              "snapshot |\n" + "|---" * 10 + "|")
        print("| %d | %d | %.3f | %.3f | %.2f | %.2f | %.2f | %.0f | %.0f | %.0f |" % (
            len({click.item for click in clicks}), len(clicks), each / half * 1e3,
            batches / (len(clicks) - half) * 1e3, query / QUERIES * 1e3, opening,
            replaying, (peak - before) / 1024,
            os.path.getsize(f"{work}/index/clicks.sqlite") / 1e6, size))


def open_and_close(work):
    """As a reader: nothing is written."""
    Index.open(f"{work}/index", False, Scoring()).close()


def make_index(work, args):
    """Returns sessions of raw ids."""
    sample.write_sample(work, args.items, args.items, args.clicks // 5, seed=0)
    data = ["--vocab_path", f"{work}/vocab.txt", "--model_dir", f"{work}/model"]
    common.run_script(*common.TRAIN, *data, "--train_dir", f"{work}/train_data", "--recipe",
                      "strong", "--epochs", 1)
    common.run_script("retrieve.py", "build", "--index_dir", f"{work}/index", *data[2:],
                      "--items_path", f"{work}/items.txt")
    with open(f"{work}/items.txt", encoding="utf-8") as f:
        names = [line.rstrip("\n").split("\t")[0] for line in f]
    test = reader.construct_test_data(f"{work}/test_data", f"{work}/vocab.txt")
    return [[names[item] for item in part] for part in np.split(test.items, test.offsets[1:-1])]


def make_clicks(sessions, count):
    """Clicks of sessions one after the other, over the last 20 hours."""
    flat = [(str(number), item) for number, session in enumerate(sessions) for item in session]
    times = np.linspace(time.time() - 72_000, time.time() - 1, count)
    return [Click(session, item, when) for (session, item), when in zip(flat, times)]


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()

"""Measures `preprocess.py clicks` on a generated log: wall time, clicks per second, peak memory.

    python benchmarks/bench_preprocess.py --clicks 30000000

The log is in the layout of `yoochoose-clicks.dat` and about as hard as the real one: sessions of
geometric length (3.6 clicks on average), item popularity by Zipf's law, 30 days. It is written to
a temporary directory (about 43 bytes a click) and removed afterwards.
"""

from __future__ import annotations

import os
import tempfile

import common
import numpy as np
import polars as pl

START_MS = 1396310400000  # 1 April 2014, 00:00 UTC
DAY_MS = 86_400_000
CLICKS_AT_A_TIME = 2_000_000  # in memory while the log is written


def make_clicks(random, count, first_session, args, item_shares):
    """count rows of (session, time, item, category); ids of sessions from first_session on.

    item_shares: <float64>[items], the running sum of their probabilities
    """
    lengths = random.geometric(1 / args.mean_length, size=count)  # more than enough sessions
    session = np.repeat(np.arange(count), lengths)[:count]
    opens = np.flatnonzero(np.diff(session, prepend=-1))
    starts_ms = START_MS + random.integers(0, args.days * DAY_MS, size=len(opens))
    # A running sum of gaps, less its value at the session's first click.
    elapsed_ms = np.cumsum(random.exponential(90_000, size=count).astype(np.int64))
    time_ms = starts_ms[session] + elapsed_ms - elapsed_ms[opens][session]
    item = np.searchsorted(item_shares, random.random(count)) + 214_500_000
    return pl.DataFrame({
        "session": session + first_session,
        "time": pl.Series(time_ms).cast(pl.Datetime("ms")),
        "item": item,
        "category": np.zeros(count, np.int8),
    })


def write_log(path, args):
    """The same clicks for the same flags."""
    random = np.random.default_rng(args.seed)
    shares = np.cumsum(1 / np.arange(1, args.items + 1))
    shares /= shares[-1]
    first_session = 1
    with open(path, "wb") as file:
        for begin in range(0, args.clicks, CLICKS_AT_A_TIME):
            count = min(CLICKS_AT_A_TIME, args.clicks - begin)
            clicks = make_clicks(random, count, first_session, args, shares)
            clicks.write_csv(file, include_header=False, datetime_format="%Y-%m-%dT%H:%M:%S%.3fZ")
            first_session = clicks["session"][-1] + 1


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    add = parser.add_argument
    add("--clicks", type=int, default=30_000_000, help="of the log")
    add("--items", type=int, default=50_000, help="of the log")
    add("--days", type=int, default=30, help="that the log spans")
    add("--mean_length", type=float, default=3.6, help="clicks of a session, on average")
    add("--seed", type=int, default=1, help="of all that is drawn")
    add("--dir", help="where to write; a temporary directory of the system when not given")
    args = parser.parse(own_flags)
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-preprocess-") as folder:
        log = os.path.join(folder, "clicks.dat")
        print(f"writing {args.clicks:,} clicks ...", flush=True)
        write_log(log, args)
        out, seconds, peak = common.run_script(
            "preprocess.py", "clicks", "--layout", "yoochoose", "--input", log, "--output_dir",
            os.path.join(folder, "out"))
        size = os.path.getsize(log)
    print(out, end="")
    print(f"{args.clicks:,} clicks, {size / 1e9:.2f} GB, {os.cpu_count()} cores, "
          f"polars {pl.__version__}: {seconds:.1f} s, {args.clicks / seconds:,.0f} clicks/s, "
          f"peak memory {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

"""Measures `preprocess.py clicks` on a generated log: wall time, clicks per second, peak memory.

    python benchmarks/bench_preprocess.py --clicks 30000000

The log is in the layout of `yoochoose-clicks.dat` and about as hard as the real one: sessions of
geometric length (3.6 clicks on average), item popularity by Zipf's law, 30 days. It is written to
a temporary folder (about 43 bytes a click) and removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

SCRIPT = Path(__file__).resolve().parent.parent / "preprocess.py"
START_MS = 1396310400000  # 1 April 2014, 00:00 UTC
DAY_MS = 86_400_000
CHUNK_CLICKS = 2_000_000  # what is held in memory while the log is written


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clicks", type=int, default=30_000_000, help="default: %(default)s")
    parser.add_argument("--items", type=int, default=50_000, help="default: %(default)s")
    parser.add_argument("--days", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--mean_length", type=float, default=3.6, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dir", help="where to write; default: a temporary folder of the system")
    return parser.parse_args(argv)


def generate_chunk(
    random: np.random.Generator,
    args: argparse.Namespace,
    item_shares: np.ndarray,
    first_session: int,
    clicks: int,
) -> pl.DataFrame:
    """`clicks` rows of (session, time, item, category); ids of sessions from `first_session`."""
    lengths = random.geometric(1 / args.mean_length, size=clicks)  # more than enough sessions
    session = np.repeat(np.arange(clicks), lengths)[:clicks]
    opens = np.flatnonzero(np.diff(session, prepend=-1))
    starts_ms = START_MS + random.integers(0, args.days * DAY_MS, size=len(opens))
    # A running sum of gaps, less its value at the session's first click.
    elapsed_ms = np.cumsum(random.exponential(90_000, size=clicks).astype(np.int64))
    time_ms = starts_ms[session] + elapsed_ms - elapsed_ms[opens][session]
    item = np.searchsorted(item_shares, random.random(clicks)) + 214_500_000
    return pl.DataFrame(
        {
            "session": session + first_session,
            "time": pl.Series(time_ms).cast(pl.Datetime("ms")),
            "item": item,
            "category": np.zeros(clicks, np.int8),
        }
    )


def generate_log(path: Path, args: argparse.Namespace) -> None:
    """Writes `args.clicks` clicks to `path`, the same ones for the same arguments."""
    random = np.random.default_rng(args.seed)
    shares = np.cumsum(1 / np.arange(1, args.items + 1))
    shares /= shares[-1]
    first_session = 1
    with open(path, "wb") as file:
        for start in range(0, args.clicks, CHUNK_CLICKS):
            clicks = min(CHUNK_CLICKS, args.clicks - start)
            chunk = generate_chunk(random, args, shares, first_session, clicks)
            chunk.write_csv(file, include_header=False, datetime_format="%Y-%m-%dT%H:%M:%S%.3fZ")
            first_session = chunk["session"][-1] + 1


def peak_rss_of_children() -> int:
    """Bytes: the largest resident set of any finished child process."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-preprocess-") as folder:
        log = Path(folder) / "clicks.dat"
        print(f"writing {args.clicks:,} clicks ...", flush=True)
        generate_log(log, args)
        command = [sys.executable, str(SCRIPT), "clicks", "--layout", "yoochoose"]
        command += ["--input", str(log), "--output_dir", str(Path(folder) / "out")]
        start = time.perf_counter()
        status = subprocess.run(command).returncode
        seconds = time.perf_counter() - start
        size = log.stat().st_size
    if status:
        return status
    print(
        f"{args.clicks:,} clicks, {size / 1e9:.2f} GB, {os.cpu_count()} cores, "
        f"polars {pl.__version__}: {seconds:.1f} s, {args.clicks / seconds:,.0f} clicks/s, "
        f"peak memory {peak_rss_of_children() / 1e9:.2f} GB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

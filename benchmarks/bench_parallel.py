"""One process against several, at several batch sizes and catalogues.

    python benchmarks/bench_parallel.py --num_devices 1 2 --batch_size 50 500 \\
        --num_items 17376 1000000
"""

from __future__ import annotations

import argparse
import re
import tempfile

import common

from ssr.preparation import sample as make_sample

NUM_SESSIONS = 60000


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--num_items", type=int, nargs="+", default=[17376, 1000000])
    args = parser.parse_args(argv)
    print("sessions/s of the second epoch; batch: sessions a process and step; communication: "
          "share of the time, waiting for the slower process included")
    print("| items | batch | processes | sessions/s | against one | communication |")
    print("|---|---|---|---|---|---|")
    for num_items in args.num_items:
        with tempfile.TemporaryDirectory() as work:
            make_sample.write_sample(work, num_items, NUM_SESSIONS, 1, seed=0)
            for batch_size in args.batch_size:
                first = None
                for num_devices in args.num_devices:
                    out, _, _ = common.run_script(
                        "train.py", "--train_dir", f"{work}/train_data", "--vocab_path",
                        f"{work}/vocab.txt", "--model_dir", f"{work}/model", "--epochs", 2,
                        "--batch_size", batch_size, "--print_batch", 100, "--parallel",
                        int(num_devices > 1), "--num_devices", num_devices)
                    rate = int(re.findall(r"sessions/s:(\d+)", out)[-1])
                    share = (re.findall(r"communication:(\d+%)", out) or ["-"])[-1]
                    first = first or rate
                    print(f"| {num_items} | {batch_size} | {num_devices} | {rate} | "
                          f"{rate / first:.2f} | {share} |", flush=True)


if __name__ == "__main__":
    main()

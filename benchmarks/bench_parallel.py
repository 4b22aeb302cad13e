"""One process against several, at several batch sizes and catalogues.

    python benchmarks/bench_parallel.py --num_devices 1 2 --batch_size 50 500 \\
        --num_items 17376 1000000
    python benchmarks/bench_parallel.py --batch_size 128 --num_items 17376 -- --recipe strong

Whatever follows -- goes to train.py.
"""

from __future__ import annotations

import re
import tempfile

import common

from ssr.preparation import sample


def main(argv=None):
    parser, own_flags, train_flags = common.parser_and_flags(__doc__, argv)
    add = parser.add_argument
    add("--num_devices", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    add("--batch_size", type=int, nargs="+", default=[50, 500], help="sessions a process and step")
    add("--num_items", type=int, nargs="+", default=[17376, 1000000], help="catalogues")
    add("--sessions", type=int, default=60000, help="to train on")
    args = parser.parse(own_flags)
    print("sessions/s of the second epoch; batch: sessions a process and step; communication: "
          "share of the time, waiting for the slower process included; memory: peak of the largest "
          "process, saving included")
    print("| items | batch | processes | sessions/s | against one | communication | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for num_items in args.num_items:
        with tempfile.TemporaryDirectory() as work:
            sample.write_sample(work, num_items, args.sessions, 1, seed=0)
            for batch_size in args.batch_size:
                first = None
                for num_devices in args.num_devices:
                    out, _, peak = common.run_script(
                        *common.TRAIN, "--train_dir", f"{work}/train_data", "--vocab_path",
                        f"{work}/vocab.txt", "--model_dir", f"{work}/model", "--epochs", 2,
                        "--batch_size", batch_size, "--parallel", int(num_devices > 1),
                        "--num_devices", num_devices, *train_flags)
                    rate = int(re.findall(r"sessions/s:(\d+)", out)[-1])
                    share = (re.findall(r"communication:(\d+%)", out) or ["-"])[-1]
                    first = first or rate
                    print(f"| {num_items} | {batch_size} | {num_devices} | {rate} | "
                          f"{rate / first:.2f} | {share} | {peak / 2 ** 20:.0f} |", flush=True)


if __name__ == "__main__":
    main()

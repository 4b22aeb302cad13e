"""The fuzzers of the tests with other damage each time, for as long as is asked.

    python tests/fuzz.py --minutes 10

Ends with 1 at the first fault and says with which seed it comes back.
"""

import os
import random
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from ssr.commands import Parser, number, run  # noqa: E402


def main(argv=None):
    parser = Parser("fuzzers with other damage each time")
    parser.add_argument("--minutes", type=number(float, 0), default=10.0,
                        help="a round that has begun is finished")
    args = parser.parse(argv)
    return run(lambda: fuzz(args.minutes))


def fuzz(minutes):
    end, rounds = time.monotonic() + 60 * minutes, 0
    while rounds == 0 or time.monotonic() < end:
        seed = random.randrange(2 ** 32)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "fuzz",
                   f"--hypothesis-seed={seed}", "--hypothesis-profile=random"]
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if result.returncode:
            print(result.stdout, " ".join(command[1:]), sep="\n")
            return 1
        rounds += 1
        print(f"round {rounds}, seed {seed}: {result.stdout.splitlines()[-1]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the initial values and the order of the batches are worth: recall and time of the default
training, and with one choice made otherwise.

    python benchmarks/bench_choices.py --train_files train.txt --test_files test.txt -- --epochs 5

Whatever follows -- goes to train.py. Every line of the test files is scored on its last id.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from unittest import mock

import common
import numpy as np

import infer
import nets
import reader
import train
from ssr.runtime import paddle


def sorted_batches(dataset, batch_size, seed, epoch, negatives, targets, max_len=None, content=None,
                   rank=0, world_size=1):
    """As YoochooseDataset.train on one rank and without content, but sessions of similar length are
    put together: a chunk of 100 batches is sorted by length and cut, then its batches are
    shuffled."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(dataset))
    lengths = np.diff(dataset.offsets)
    for begin in range(0, len(order), 100 * batch_size):
        chunk = order[begin:begin + 100 * batch_size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches = np.split(chunk, range(batch_size, len(chunk), batch_size))
        for number in random.permutation(len(batches)):
            yield dataset._batch(batches[number], targets, max_len, negatives, random)


def paddles_values(ours):
    """Paddle's own initial values for the GRU, ours for the rest."""
    return lambda name: (paddle.ParamAttr(name=name) if name.startswith("grnn") else ours(name))


CHOICES = {
    "as it is": {},
    "Paddle's initial values of the GRU": {
        (nets, "_xavier"): paddles_values(nets._xavier),
        (nets, "_zero"): paddles_values(nets._zero)},
    "batches sorted by length": {(reader.YoochooseDataset, "train"): sorted_batches},
}


def run(main, *flags):
    """What a script prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if main([*map(str, flags)]):
            raise SystemExit(1)
    return out.getvalue()


def main(argv=None):
    parser, own_flags, train_flags = common.recall_parser_and_flags(__doc__, argv)
    args = parser.parse(own_flags)
    print("| choice | recall@20 | mrr@20 | s an epoch |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        common.run_script("preprocess.py", "sessions", "--train_files", *args.train_files,
                          "--test_files", *args.test_files, "--output_dir", work)
        paths = ["--vocab_path", f"{work}/vocab.txt", "--model_dir", f"{work}/model"]
        for name, patches in CHOICES.items():
            with contextlib.ExitStack() as stack:
                for (owner, attribute), value in patches.items():
                    stack.enter_context(mock.patch.object(owner, attribute, value))
                out = run(train.main, *common.TRAIN[1:], *paths, "--train_dir",
                          f"{work}/train_data", *train_flags)
            epoch, seconds = re.findall(r"epoch:(\d+) num_steps:\d+ time_cost\(s\):(\S+)", out)[-1]
            out = run(infer.main, *paths, "--test_dir", f"{work}/test_data", "--start_index",
                      epoch, "--last_index", epoch)
            recall, mrr = re.search(r"all labels:\d+ recall@20:(\S+) mrr@20:(\S+)", out).groups()
            print(f"| {name} | {recall} | {mrr} | {float(seconds):.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""The two towers as Paddle inference models, for servers that know no Python.

    python export.py --model_dir model_output --export_dir exported

writes exported/user.*, exported/item.* and exported/export.json, then loads them with
paddle.inference and compares them with the model. Both take rows of the embedding table, padded
with -1 at the end, and return vectors of length 1, whose inner product is the score:

    item: rows <int64>[items, tokens]           -> <float32>[items, members * hidden_size]
    user: rows <int64>[sessions, clicks, tokens] -> <float32>[sessions, members * hidden_size]

An item is the bag of its rows: row i is the id of item i, if it was clicked in training, row
vocab_size + t is token t of its content. Without content tokens is 1. Each session has a click,
each click and each item a row.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

import numpy as np

from ssr.errors import SetupError
from ssr.kernels import static
from ssr.runtime import paddle
from ssr.training.content import Bags

nn = paddle.nn


TOLERANCE = 1e-5  # the largest difference from the model that rounding explains
PROBES = 64  # sessions, and items, that are compared


class Tower(nn.Layer):
    """One tower of a model, as paddle.jit.save wants it: a layer whose forward is what is saved.

    model: nets.SequenceSemanticRetrieval; encode: of ssr.kernels.static
    """

    def __init__(self, model, encode):
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, rows):
        return self.encode(self.model, rows)


def save_towers(model, directory):
    """Writes user.* and item.* to a directory."""
    for name, dims in (("user", 3), ("item", 2)):
        rows = paddle.static.InputSpec([None] * dims, "int64", "rows")
        paddle.jit.save(Tower(model, getattr(static, f"{name}_vectors")), os.path.join(directory, name),
                        input_spec=[rows])


def load_tower(directory, name):
    """A function from rows, numpy <int64>, to vectors, numpy <float32>."""
    path = os.path.join(directory, name)
    # Paddle 3 calls the program .json.
    program = next(path + suffix for suffix in (".pdmodel", ".json")
                   if os.path.exists(path + suffix))
    config = paddle.inference.Config(program, path + ".pdiparams")
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(1)
    predictor = paddle.inference.create_predictor(config)

    def run(rows):
        given = predictor.get_input_handle(predictor.get_input_names()[0])
        given.reshape(rows.shape)
        given.copy_from_cpu(rows)
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()

    return run


# --- comparison -----------------------------------------------------------------------------------


def compare(model, directory):
    """The largest difference between the vectors of the exported towers and of the model, for
    random sessions and items."""
    random = np.random.default_rng(0)
    tokens = 6 if model.num_tokens else 1
    bags = [random.integers(0, model.vocab_size + model.num_tokens,
                            random.integers(1, tokens + 1)) for _ in range(20 * PROBES)]
    lengths = random.integers(1, 20, PROBES)
    with paddle.no_grad():
        items = model.item(*end_to_end(bags[:PROBES])).numpy()
        clicks = bags[:lengths.sum()]
        users = model.encode_user(model.embed(*end_to_end(clicks)), lengths).numpy()
    sessions = np.split(pad(clicks, tokens), np.cumsum(lengths)[:-1])
    found = load_tower(directory, "item")(pad(bags[:PROBES], tokens))
    found_users = load_tower(directory, "user")(pad(sessions, lengths.max()))
    return float(max(np.abs(found - items).max(), np.abs(found_users - users).max()))


def end_to_end(bags):
    """(rows, Bags) of bags, as the model takes them."""
    made = Bags.of(np.concatenate(bags), np.array([len(bag) for bag in bags]))
    return made.rows, made


def pad(arrays, size):
    """Stacks arrays <int64>[n, ..] with n <= size, filled up with -1: <int64>[len(arrays), size,
    ..]."""
    out = np.full((len(arrays), size, *arrays[0].shape[1:]), -1, np.int64)
    for place, array in zip(out, arrays):
        place[:len(array)] = array
    return out


# --- the directory --------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path, overwrite):
    """A context that gives an empty directory, which becomes `path` when the block ends; until
    then, and if it fails, what was there stays. Raises SetupError."""
    path = os.path.abspath(path)
    if os.path.lexists(path):
        if not overwrite:
            raise SetupError(f"{path} is there already: give another --export_dir, or "
                                   "--overwrite to replace it")
        if not os.path.exists(os.path.join(path, "export.json")):
            raise SetupError(f"{path} is no export, and is not replaced: give another "
                                   "--export_dir")
    work = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        work = tempfile.mkdtemp(prefix=os.path.basename(path) + ".tmp-", dir=os.path.dirname(path))
        fresh = os.path.join(work, "new")
        os.mkdir(fresh)
        yield fresh
        if os.path.exists(path):
            os.rename(path, os.path.join(work, "old"))
        os.rename(fresh, path)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


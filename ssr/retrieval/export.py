"""The two towers as Paddle inference models, for servers that know no Python.

Both take rows of the embedding table, padded with -1 at the end, and return vectors of length 1,
whose inner product is the score:

    item: rows <int64>[items, tokens]            -> <float32>[items, members * hidden_size]
    user: rows <int64>[sessions, clicks, tokens] -> <float32>[sessions, members * hidden_size]

A model with pretrained vectors of items takes these as a second input,

    item: vectors <float32>[items, item_vector_dim]
    user: vectors <float32>[sessions, clicks, item_vector_dim]

as they are, zeros for an item without one and behind the last click.

An item is the bag of its rows: row i is the id of item i, if it was clicked in training, row
vocab_size + t is token t of its content. Without tokens the last axis is 1. Each session has a
click, each click and each item a row or a vector. Of a longer session the user tower takes the
newest max_len clicks, as the model's encoder does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

import numpy as np

from ssr.errors import SetupError
from ssr.kernels import static
from ssr.retrieval.bag import Bag
from ssr.runtime import paddle

nn = paddle.nn

TOLERANCE = 1e-5  # the largest difference from the model that rounding explains
PROBES = 64  # sessions, and items, that are compared


class UserTower(nn.Layer):
    """The user tower, as paddle.jit.save wants it: a layer whose forward is what is saved.

    model: nets.SequenceSemanticRetrieval; max_len: the newest clicks that are encoded, None for all
    """

    def __init__(self, model, max_len):
        super().__init__()
        self.model, self.max_len = model, max_len

    def forward(self, rows, vectors=None):
        return static.user_vectors(self.model, *newest_clicks(self.max_len, rows, vectors))


class ItemTower(nn.Layer):
    """The item tower, as UserTower."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, rows, vectors=None):
        return static.item_vectors(self.model, rows, vectors)


def newest_clicks(max_len, rows, vectors=None):
    """The newest clicks of padded sessions.

    max_len: how many, None for all
    rows: a tensor <int64>[sessions, clicks, tokens], -1 behind the last click of a session and the
        last row of a click
    vectors: a tensor <float32>[sessions, clicks, item_vector_dim], or None
    returns both with at most max_len clicks, padded in the same way
    """
    if max_len is None:
        return rows, vectors
    lengths = static.session_lengths(rows, vectors)
    window = paddle.arange(max_len, dtype="int64")[:paddle.shape(rows)[1]]
    first = paddle.clip(lengths - max_len, min=0)
    at = first.unsqueeze(1) + window
    session = paddle.zeros_like(at) + paddle.arange(paddle.shape(rows)[0]).unsqueeze(1)
    place = paddle.stack([session, at], axis=2)
    return (paddle.gather_nd(rows, place),
            None if vectors is None else paddle.gather_nd(vectors, place))


def save_towers(encoder, directory):
    """Writes user.* and item.* to a directory. encoder: Encoder of a SequenceSemanticRetrieval"""
    for name, tower, dims in (("user", UserTower(encoder.model, encoder.max_len), 3),
                              ("item", ItemTower(encoder.model), 2)):
        inputs = [paddle.static.InputSpec([None] * dims, "int64", "rows")]
        dim = encoder.model.item_vector_dim
        if dim:
            inputs.append(paddle.static.InputSpec([*[None] * (dims - 1), dim], "float32",
                                                  "vectors"))
        paddle.jit.save(tower, os.path.join(directory, name), input_spec=inputs)


def load_tower(directory, name):
    """A function from rows, numpy <int64>, and pretrained vectors, numpy <float32>, where the model
    has such, to vectors, numpy <float32>. name: "user" or "item" """
    path = os.path.join(directory, name)
    # Paddle 3 calls the program .json.
    program = next(path + suffix for suffix in (".pdmodel", ".json")
                   if os.path.exists(path + suffix))
    config = paddle.inference.Config(program, path + ".pdiparams")
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(1)
    predictor = paddle.inference.create_predictor(config)

    def encode(*inputs):
        for name, values in zip(("rows", "vectors"), inputs):
            handle = predictor.get_input_handle(name)
            handle.reshape(values.shape)
            handle.copy_from_cpu(values)
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()

    return encode


# --- comparison -----------------------------------------------------------------------------------


def compare(encoder, directory):
    """The largest difference between the vectors of the exported towers and of an Encoder, for
    random sessions and items."""
    random = np.random.default_rng(0)
    model = encoder.model
    tokens = 6 if model.num_tokens else 1
    lengths = random.integers(1, 20, PROBES)
    if encoder.max_len is not None:
        lengths[0] = encoder.max_len + 1
    rows = [random.integers(0, model.vocab_size + model.num_tokens, random.integers(1, tokens + 1))
            for _ in range(lengths.sum())]
    vectors = random.normal(size=(len(rows), model.item_vector_dim)).astype(np.float32)
    vectors[::3] = 0
    bags = (list(map(Bag, rows)) if not model.item_vector_dim else
            list(map(Bag, rows, encoder.project(vectors))))

    def of_sessions(clicks):
        return [clicks[end - length:end] for end, length in zip(np.cumsum(lengths), lengths)]

    items = [pad(rows[:PROBES], tokens)]
    users = [pad_sessions(of_sessions(rows), tokens)]
    if model.item_vector_dim:
        items.append(vectors[:PROBES])
        users.append(pad(of_sessions(vectors), max(lengths), 0))
    differences = (
        load_tower(directory, "item")(*items) - np.stack(encoder.encode_items(bags[:PROBES])),
        load_tower(directory, "user")(*users) - np.stack(
            encoder.encode_sessions(of_sessions(bags))))
    return float(max(np.abs(difference).max() for difference in differences))


def pad(arrays, size, filling=-1):
    """Stacks arrays [n, ..] with n <= size, filled up: [len(arrays), size, ..], <int64> for rows,
    <float32> for vectors."""
    dtype = np.float32 if arrays[0].dtype.kind == "f" else np.int64
    out = np.full((len(arrays), size, *arrays[0].shape[1:]), filling, dtype)
    for place, array in zip(out, arrays):
        place[:len(array)] = array
    return out


def pad_sessions(sessions, tokens):
    """What the user tower takes for sessions, lists of bags <int64>[n] with n <= tokens:
    <int64>[sessions, clicks of the longest, tokens]"""
    return pad([pad(session, tokens) for session in sessions], max(map(len, sessions)))


# --- the directory --------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path, overwrite):
    """A context that gives an empty directory, which becomes `path` when the block ends; until
    then, and if it fails, what was there stays. Raises SetupError."""
    path = os.path.abspath(path)
    if os.path.lexists(path):
        if not overwrite:
            raise SetupError(f"{path} is there already: give another --export_dir, or --overwrite "
                             "to replace it")
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

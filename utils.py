"""Device, seed, versions, checkpoints and metrics."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import logging
import os
import re

import numpy as np

from ssr.architecture import check_architecture
from ssr.errors import SetupError
from ssr.files import file_digest, write_atomically, write_json
from ssr.pickled import load_arrays, save_arrays
from ssr.runtime import paddle

logger = logging.getLogger(__name__)


# --- versions, device, seed -----------------------------------------------------------------------


def check_version():
    """Raises SetupError where Paddle is older than 2.6, the first version that all of this runs
    on."""
    major, minor = (int(part) for part in re.findall(r"\d+", paddle.__version__ + ".0.0")[:2])
    if paddle.__version__ != "0.0.0" and (major, minor) < (2, 6):
        raise SetupError(f"Paddle {paddle.__version__} is too old, 2.6 or later is needed: "
                         "pip install -r requirements.txt")


def check_devices(use_cuda, count=1):
    """Raises SetupError where there are not so many devices of the kind. Paddle would end the
    process from inside of C++ instead."""
    if not use_cuda:
        return
    if not paddle.is_compiled_with_cuda():
        raise SetupError("--use_cuda 1 needs Paddle's GPU build and this is the CPU build: "
                         "pip uninstall paddlepaddle; pip install -r requirements.txt")
    num_gpus = paddle.device.cuda.device_count()
    visible = f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}"
    if not num_gpus:
        raise SetupError(f"--use_cuda 1 and no GPU is visible ({visible}): check nvidia-smi and "
                         "the driver, or use --use_cuda 0")
    if num_gpus < count:
        raise SetupError(f"--num_devices {count} and only {num_gpus} GPUs are visible ({visible})")


def set_device(use_cuda):
    """The first visible GPU, or the CPU. Raises SetupError."""
    check_devices(use_cuda)
    paddle.set_device("gpu:0" if use_cuda else "cpu")


# --- checkpoints ----------------------------------------------------------------------------------


@contextlib.contextmanager
def model_directory(model_dir):
    """Makes a directory that can be written and keeps other trainings out of it, for as long as the
    context lasts or the process lives. An empty one that it has made does not stay. Raises
    SetupError."""
    existed = os.path.isdir(model_dir)
    try:
        os.makedirs(model_dir, exist_ok=True)
        probe = os.path.join(model_dir, f".probe.{os.getpid()}")
        with open(probe, "wb"):
            pass
        os.remove(probe)
        lock = os.open(model_dir, os.O_RDONLY)
    except OSError as error:
        raise SetupError(f"cannot write the model directory {model_dir}: "
                         f"{error.strerror or error}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SetupError(f"another training writes to {model_dir}: wait for it, or give "
                             "another --model_dir") from error
        yield
    finally:
        os.close(lock)
        if not existed:
            with contextlib.suppress(OSError):
                os.rmdir(model_dir)


def save_checkpoint(model_dir, epoch, model, optimizer_state, meta):
    """Writes epoch_N.pdparams, .pdopt and, last, .json, whose presence makes it complete.

    meta: all that is needed to rebuild the model and to go on; sizes and digests of the files are
        added
    """
    path = os.path.join(model_dir, f"epoch_{epoch}")
    states = {".pdparams": model.state_dict(), ".pdopt": optimizer_state}
    for suffix, state in states.items():
        write_atomically(path + suffix, lambda name, state=state: save_state(name, state))
    write_json(path + ".json", dict(
        meta, epoch=epoch, bytes={suffix: os.path.getsize(path + suffix) for suffix in states},
        digests={suffix: file_digest(path + suffix) for suffix in states}))
    return path


def save_state(path, state):
    """Writes a state dict, {name: tensor}, for paddle.load and load_state, and makes its directory
    if need be."""
    from ssr.kernels.memory import host_array  # here: only training needs it

    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    save_arrays(path, {name: host_array(tensor) for name, tensor in state.items()},
                {name: tensor.name for name, tensor in state.items()})


def checkpoint_epochs(model_dir):
    """Which epochs have files in model_dir, complete or not, in ascending order."""
    paths = glob.glob(os.path.join(glob.escape(model_dir), "epoch_*"))
    matches = (re.fullmatch(r"epoch_(\d{1,9})\.(?:pdparams|pdopt|json)", os.path.basename(path))
               for path in paths)
    return sorted({int(match.group(1)) for match in matches if match})


_POSITIVE = (int, lambda value: value > 0)
_NOT_NEGATIVE = ((int, float), lambda value: 0 <= value < float("inf"))
_TEXT = (str, lambda value: True)
_MODEL = {"vocab_size": _POSITIVE, "embedding_dim": _POSITIVE, "hidden_size": _POSITIVE,
          "members": _POSITIVE, "num_tokens": (int, lambda value: value >= 0),
          "dropout": _NOT_NEGATIVE, "user_encoder": _TEXT, "pooling": _TEXT, "item_encoder": _TEXT}
_OPTIONAL = {"item_vector_dim": _POSITIVE}  # where there are such vectors


def load_meta(model_dir, epoch):
    """The metadata of a complete checkpoint. Raises SetupError where a file is missing or cut, or
    the metadata are not those of a checkpoint."""
    path = os.path.join(model_dir, f"epoch_{epoch}")
    try:
        with open(path + ".json", encoding="utf-8") as f:
            meta = json.load(f)
        _check_meta(meta)
        for suffix, size in meta["bytes"].items():
            actual = os.path.getsize(path + suffix)
            if actual != size:
                raise SetupError(f"the checkpoint {path}{suffix} is damaged: {actual} bytes "
                                 f"instead of {size}")
    except OSError as error:
        raise SetupError(f"the checkpoint {path} is incomplete: {error.filename}: "
                         f"{error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError(f"the checkpoint {path}.json is damaged: {str(error)[:200]}") from error
    return meta


def _check_meta(meta):
    """Raises ValueError, KeyError or TypeError where this is not what save_checkpoint wrote."""
    for name in ("model", "run", "bytes"):
        if not isinstance(meta[name], dict):
            raise ValueError(f"{name} is {meta[name]!r:.40}")
    if set(meta["model"]) - set(_OPTIONAL) != set(_MODEL):
        raise ValueError(f"the sizes of a model are {', '.join(_MODEL)}")
    for name, value in meta["model"].items():
        kind, is_right = {**_MODEL, **_OPTIONAL}[name]
        if not isinstance(value, kind) or isinstance(value, bool) or not is_right(value):
            raise ValueError(f"{name} is {value!r:.40}")
    check_architecture(meta["model"])
    if not set(meta["bytes"]) <= {".pdparams", ".pdopt"} or ".pdparams" not in meta["bytes"]:
        raise ValueError("it names no .pdparams")
    if not isinstance(meta.get("digests", {}), dict):
        raise ValueError(f"digests is {meta['digests']!r:.40}")
    best = meta.get("best")
    if best is not None and not isinstance(best["epoch"], int):
        raise ValueError(f"the best epoch is {best['epoch']!r:.40}")


def newest_complete(model_dir):
    """(epoch, metadata) of the newest complete checkpoint, or (0, None). Logs what it skips."""
    for epoch in reversed(checkpoint_epochs(model_dir)):
        try:
            return epoch, load_meta(model_dir, epoch)
        except SetupError as error:
            logger.warning("%s; looking for an older one", error)
    return 0, None


def find_checkpoint(model_dir, epoch):
    """(epoch, metadata) of the one asked for, the newest complete one for None. Raises
    SetupError."""
    if epoch is not None:
        return epoch, load_meta(model_dir, epoch)
    epoch, meta = newest_complete(model_dir)
    if meta is None:
        raise SetupError(f"{model_dir} holds no complete epoch: train first, or see "
                         "--model_dir")
    return epoch, meta


def check_vocab_size(meta, vocab_size):
    """Raises SetupError where a checkpoint was trained with another number of items."""
    if meta["model"]["vocab_size"] != vocab_size:
        raise SetupError(f"the checkpoint was trained with {meta['model']['vocab_size']} items "
                         f"and the vocabulary file says {vocab_size}: give the --vocab_path "
                         "that it was trained with")


def checked_state(model_dir, epoch, suffix):
    """The path of epoch_N + suffix (".pdparams" or ".pdopt"). Raises SetupError where that is not
    the file that belongs to the epoch's metadata."""
    path = os.path.join(model_dir, f"epoch_{epoch}{suffix}")
    digest = load_meta(model_dir, epoch).get("digests", {}).get(suffix)
    if digest is not None and file_digest(path) != digest:
        raise SetupError(f"the checkpoint {path} is damaged, or that of another epoch: it is not "
                         f"the file that epoch_{epoch}.json was written with")
    return path


def load_state(model_dir, epoch, suffix):
    """The state dict in epoch_N + suffix, {name: numpy array}: tensors would be another copy of the
    table. Raises SetupError, as checked_state."""
    return load_arrays(checked_state(model_dir, epoch, suffix))


def load_parameters(model, model_dir, epoch):
    """Loads the parameters of a checkpoint into a model. Raises SetupError, also where they are not
    those of such a model."""
    saved = load_state(model_dir, epoch, ".pdparams")
    check_parameters(saved, model.state_dict(), f"{model_dir}/epoch_{epoch}.pdparams")
    model.set_state_dict(saved)


def check_parameters(saved, wanted, path):
    """Raises SetupError where the state dict of a file has not the names and shapes of a model's.

    saved, wanted: {name: tensor or array}
    """
    differences = [f"it lacks {name}" for name in wanted if name not in saved]
    differences += [f"it holds {name}, which the model has not" for name in saved
                    if name not in wanted]
    differences += [f"{name} is {list(saved[name].shape)} and not {list(value.shape)}"
                    for name, value in wanted.items() if name in saved
                    and list(saved[name].shape) != list(value.shape)]
    if differences:
        raise SetupError(f"{path} is not of the model that the .json beside it describes: "
                         f"{differences[0]}")


def remove_checkpoints(model_dir, after=0):
    """Removes the checkpoints of epochs later than after."""
    for epoch in checkpoint_epochs(model_dir):
        if epoch > after:
            for suffix in (".json", ".pdopt", ".pdparams"):  # incomplete from the first on
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(model_dir, f"epoch_{epoch}{suffix}"))


# --- metrics --------------------------------------------------------------------------------------


def hits(ranks, k):
    """What each query adds to recall@k and MRR@k: <bool>[queries], whether its label is among the
    best k, and <float64>[queries], 1 / its rank if so and 0 if not.

    ranks: <int64>[queries], from 1 on; a query whose label cannot be ranked has rank 0, a miss
    """
    hit = (ranks > 0) & (ranks <= k)
    return hit, np.divide(1.0, ranks, out=np.zeros(len(ranks)), where=hit)


def recall_mrr(ranks, k):
    """Recall@k and MRR@k, two floats, 0.0 where there are no queries. ranks: as in hits"""
    if not len(ranks):
        return 0.0, 0.0
    return tuple(float(gains.mean()) for gains in hits(ranks, k))


def show_recall_mrr(ranks, k):
    """recall_mrr as the commands print it; n/a where there are no queries."""
    if not len(ranks):
        return f"recall@{k}:n/a mrr@{k}:n/a"
    recall, mrr = recall_mrr(ranks, k)
    return f"recall@{k}:{recall:.4f} mrr@{k}:{mrr:.4f}"

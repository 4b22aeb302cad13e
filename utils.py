"""Device, seed, versions, checkpoints and metrics."""

from __future__ import annotations

import glob
import json
import logging
import os
import re

import numpy as np

from ssr.errors import SetupError
from ssr.files import write_atomically
from ssr.runtime import paddle

logger = logging.getLogger(__name__)

SUFFIXES = (".pdparams", ".pdopt", ".json")


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
    found = paddle.device.cuda.device_count()
    visible = f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}"
    if not found:
        raise SetupError(f"--use_cuda 1 and no GPU is visible ({visible}): check nvidia-smi and "
                         "the driver, or use --use_cuda 0")
    if found < count:
        raise SetupError(f"--num_devices {count} and only {found} GPUs are visible ({visible})")


def set_device(use_cuda):
    """The first visible GPU, or the CPU. Raises SetupError."""
    check_devices(use_cuda)
    paddle.set_device("gpu:0" if use_cuda else "cpu")


# --- checkpoints ----------------------------------------------------------------------------------


def make_model_dir(model_dir):
    """Makes sure, before training, that model_dir can be written. Raises SetupError."""
    try:
        os.makedirs(model_dir, exist_ok=True)
        probe = os.path.join(model_dir, f".probe.{os.getpid()}")
        with open(probe, "wb"):
            pass
        os.remove(probe)
    except OSError as error:
        raise SetupError(f"cannot write the model directory {model_dir}: "
                         f"{error.strerror or error}") from error


def save_checkpoint(model_dir, epoch, model, optimizer_state, meta):
    """Writes epoch_N.pdparams, .pdopt and, last, .json, whose presence makes it complete.

    meta: all that is needed to rebuild the model and to go on; sizes of the files are added
    """
    path = os.path.join(model_dir, f"epoch_{epoch}")
    states = {".pdparams": model.state_dict(), ".pdopt": optimizer_state}
    for suffix, state in states.items():
        write_atomically(path + suffix, lambda name, state=state: paddle.save(state, name))
    meta = dict(meta, epoch=epoch, bytes={s: os.path.getsize(path + s) for s in states})
    write_atomically(path + ".json", lambda name: _write_json(name, meta))
    return path


def _write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, sort_keys=True)
        f.write("\n")


def append_metrics(model_dir, epoch, metrics):
    """Adds the line of an epoch to model_dir/metrics.jsonl, in place of those from it on.

    metrics: {name: number}
    """
    path = os.path.join(model_dir, "metrics.jsonl")
    older = [line for line in read_metrics(path) if line["epoch"] < epoch]

    def write(name):
        with open(name, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(line) + "\n" for line in [*older, {"epoch": epoch, **metrics}])
    write_atomically(path, write)


def read_metrics(path):
    """The lines of a metrics.jsonl, none where there is no such file. Raises SetupError."""
    try:
        with open(path, encoding="utf-8") as f:
            return [json.loads(line) for line in f]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise SetupError(f"{path} is damaged: {error}; remove it") from error


def checkpoint_epochs(model_dir):
    """Which epochs have files in model_dir, complete or not, in ascending order."""
    names = (os.path.basename(path) for path in glob.glob(os.path.join(glob.escape(model_dir),
                                                                      "epoch_*")))
    found = (re.fullmatch(r"epoch_(\d+)\.(?:pdparams|pdopt|json)", name) for name in names)
    return sorted({int(match.group(1)) for match in found if match})


def load_meta(model_dir, epoch):
    """The metadata of a complete checkpoint. Raises SetupError where a file is missing or cut."""
    path = os.path.join(model_dir, f"epoch_{epoch}")
    try:
        with open(path + ".json", encoding="utf-8") as f:
            meta = json.load(f)
        for suffix, size in meta["bytes"].items():
            found = os.path.getsize(path + suffix)
            if found != size:
                raise SetupError(f"the checkpoint {path}{suffix} is damaged: {found} bytes "
                                 f"instead of {size}")
    except OSError as error:
        raise SetupError(f"the checkpoint {path} is incomplete: {error.filename}: "
                         f"{error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise SetupError(f"the checkpoint {path}.json is damaged: {error}") from error
    return meta


def newest_complete(model_dir):
    """(epoch, metadata) of the newest complete checkpoint, or (0, None). Says what it skips."""
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


def load_state(model_dir, epoch, suffix):
    """The state dict in epoch_N + suffix (".pdparams" or ".pdopt"). Raises SetupError."""
    path = os.path.join(model_dir, f"epoch_{epoch}{suffix}")
    try:
        return paddle.load(path)
    except Exception as error:  # what paddle raises on a damaged file varies with the damage
        raise SetupError(f"cannot load the checkpoint {path}: {error}") from error


def remove_checkpoints(model_dir, after=0):
    """Removes the checkpoints of epochs later than after."""
    for epoch in checkpoint_epochs(model_dir):
        if epoch > after:
            for suffix in reversed(SUFFIXES):
                path = os.path.join(model_dir, f"epoch_{epoch}{suffix}")
                if os.path.exists(path):
                    os.remove(path)


# --- metrics --------------------------------------------------------------------------------------


def recall_mrr(ranks, k):
    """Recall@k and MRR@k.

    ranks: <int64>[queries], from 1 on; a query whose label cannot be ranked has rank 0, a miss
    returns two floats, 0.0 where there are no queries
    """
    hit = (ranks > 0) & (ranks <= k)
    if not len(ranks):
        return 0.0, 0.0
    return float(hit.mean()), float(np.sum(1.0 / ranks[hit]) / len(ranks))

"""The directory that a model lives in: its data, its epoch, and what tells them to the API.

    train_data/ ... vocab.txt items.txt ... data.json    a data directory (ssr.data_directory)
    model/epoch_N.*, model/metrics.jsonl                 one epoch, as train.py saved it
    model.json                                           type of the raw ids, names of the columns
    added_items.txt                                      items that were added by their text
    added_vectors.parquet                                the pretrained vectors of such items

So the commands take it as well: --data_dir HOME --model_dir HOME/model.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from typing import NamedTuple

import utils
from ssr.api.catalogue import vectors_table, write_items_file
from ssr.data_directory import (
    DESCRIPTION_FILE,
    ITEM_TOKENS_FILE,
    ITEM_VECTORS_FILE,
    ITEMS_FILE,
    PARTS,
    TOKEN_FILES,
    VOCAB_FILE,
)
from ssr.errors import DataError, SetupError
from ssr.files import write_json
from ssr.retrieval.checkpoint import best_epoch_of
from ssr.training.checkpoints import Checkpoint
from ssr.training.metrics import FILE as METRICS_FILE

MODEL_DIR, PROFILE_FILE, ADDED_FILE = "model", "model.json", "added_items.txt"
ADDED_VECTORS_FILE = "added_vectors.parquet"
CONTENT_FILES = {"item_tokens": ITEM_TOKENS_FILE, "item_vectors": ITEM_VECTORS_FILE}
FORMAT = 1  # of model.json


class Profile(NamedTuple):
    """What a model knows of its caller.

    ids: "int" or "str", the type of the raw ids
    columns: {flag of preprocess.py: name}, those of the tables that it is given
    """

    ids: str = "str"
    columns: dict = {}


def read_profile(home) -> Profile:
    """What model.json says; of a directory without one that ids are text. Raises DataError."""
    path = os.path.join(home, PROFILE_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            values = json.load(f)
        if values["format"] != FORMAT:
            raise ValueError("another format")
        profile = Profile(values["ids"], dict(values["columns"]))
        if profile.ids not in ("int", "str"):
            raise ValueError("another type of ids")
        return profile
    except FileNotFoundError:
        return Profile()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def write_profile(home, profile):
    """Writes model.json. Raises SetupError."""
    write_json(os.path.join(home, PROFILE_FILE), {"format": FORMAT, **profile._asdict()})


@contextlib.contextmanager
def new_home():
    """A temporary directory, which goes if the block fails."""
    home = tempfile.mkdtemp(prefix="ssr-")
    try:
        yield home
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def choose(model_dir):
    """The Checkpoint of a model directory that a Model is: the best in validation, the newest
    without."""
    epoch, meta = utils.find_checkpoint(model_dir, None)
    best = best_epoch_of(meta)
    if best is not None:
        epoch, meta = utils.find_checkpoint(model_dir, best)
    return Checkpoint(model_dir, epoch, meta)


def keep_only(checkpoint):
    """Removes all other epochs beside a Checkpoint, so that whatever looks for the newest finds
    it."""
    for epoch in utils.checkpoint_epochs(checkpoint.model_dir):
        if epoch != checkpoint.epoch:
            for suffix in (".json", ".pdopt", ".pdparams"):
                os.remove(os.path.join(checkpoint.model_dir, f"epoch_{epoch}{suffix}"))


@contextlib.contextmanager
def alone(checkpoint):
    """A model directory that holds a Checkpoint and no other epoch, for as long as the block
    runs."""
    with tempfile.TemporaryDirectory(prefix="ssr-") as model_dir:
        copy_epoch(checkpoint, model_dir)
        yield model_dir


# --- copies ---------------------------------------------------------------------------------------


def copy_data(directory, target):
    """Copies what belongs to a DataDirectory."""
    if directory.description is not None:
        names = [*directory.description.files, ITEM_VECTORS_FILE, DESCRIPTION_FILE]
    else:
        folders = [f"{part}_{kind}" for part in PARTS for kind in ("data", "times")]
        names = [*folders, VOCAB_FILE, ITEMS_FILE, ITEM_VECTORS_FILE, *TOKEN_FILES]
    for name in names:
        path, copy = directory.find(name), os.path.join(target, name)
        if path is None:
            continue
        if os.path.isdir(path):
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".*"))
        else:
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copyfile(path, copy)


def save_home(path, overwrite, directory, checkpoint, profile, added, added_vectors):
    """Writes a home, all of it or nothing.

    path: where it will be; overwrite: whether one that is there may be replaced
    directory: DataDirectory; added: {raw id: ItemText}; added_vectors: {raw id: <float32>[dim]}
    Raises SetupError.
    """
    path = os.path.normpath(path)
    if os.path.exists(path):
        if not overwrite:
            raise SetupError(f"{path} exists: save elsewhere, or with overwrite=True")
        if not os.path.exists(os.path.join(path, PROFILE_FILE)):
            raise SetupError(f"{path} holds no saved model, it is not replaced: save elsewhere")
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.join(temporary, MODEL_DIR))
        copy_data(directory, temporary)
        copy_epoch(checkpoint, os.path.join(temporary, MODEL_DIR), path)
        write_profile(temporary, profile)
        if added:
            write_items_file(os.path.join(temporary, ADDED_FILE), added)
        if added_vectors:
            vectors_table(added_vectors).write_parquet(
                os.path.join(temporary, ADDED_VECTORS_FILE))
        replaced = f"{temporary}.old"
        if os.path.exists(path):
            os.rename(path, replaced)
        os.rename(temporary, path)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_epoch(checkpoint, target, data_dir=None):
    """Copies an epoch and the metrics of its run. data_dir: where its data will be, if they are
    copied too"""
    name = f"epoch_{checkpoint.epoch}"
    for suffix in checkpoint.meta["bytes"]:
        shutil.copyfile(os.path.join(checkpoint.model_dir, name + suffix),
                        os.path.join(target, name + suffix))
    meta = dict(checkpoint.meta)
    moved = {flag: os.path.join(data_dir, file) for flag, file in CONTENT_FILES.items()
             if data_dir and meta["run"].get(flag)}
    meta["run"] = {**meta["run"], **moved}
    write_json(os.path.join(target, name + ".json"), meta)
    metrics = os.path.join(checkpoint.model_dir, METRICS_FILE)
    if os.path.exists(metrics):
        shutil.copyfile(metrics, os.path.join(target, METRICS_FILE))

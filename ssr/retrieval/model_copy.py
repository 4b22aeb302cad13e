"""The copy of the model in a build of an index: it alone counts, whatever becomes of the original.

    INDEX/build-XXXX/model/epoch_N.pdparams, epoch_N.json
    INDEX/build-XXXX/tokens.txt, tokens.json    of a model with content
"""

from __future__ import annotations

import json
import os
import shutil

import utils
from ssr.errors import StoreError
from ssr.preparation import text
from ssr.retrieval.builds import REMEDY
from ssr.retrieval.checkpoint import load_frozen, model_digest, session_settings
from ssr.retrieval.encoder import Encoder
from ssr.training.checkpoints import Checkpoint

MODEL_DIR = "model"


def copy_model(checkpoint, directory):
    """Copies of a Checkpoint what it takes to ask the model. Raises SetupError where it is damaged.
    """
    target = os.path.join(directory, MODEL_DIR)
    os.makedirs(target)
    name = f"epoch_{checkpoint.epoch}"
    shutil.copyfile(os.path.join(checkpoint.model_dir, name + ".pdparams"),
                    os.path.join(target, name + ".pdparams"))
    meta = checkpoint.meta
    sizes = {key: {".pdparams": meta[key][".pdparams"]} for key in ("bytes", "digests")
             if key in meta}
    with open(os.path.join(target, name + ".json"), "w", encoding="utf-8") as f:
        json.dump({**meta, **sizes}, f, indent=1, sort_keys=True)
    utils.checked_state(target, checkpoint.epoch, ".pdparams")


def copy_vocabulary(tokens_path, directory):
    """Copies tokens.txt and, from beside it, what says how Chinese was cut."""
    shutil.copyfile(tokens_path, os.path.join(directory, text.TOKENS_FILE))
    shutil.copyfile(os.path.join(os.path.dirname(tokens_path), text.CUTTING_FILE),
                    os.path.join(directory, text.CUTTING_FILE))


def describe(checkpoint, directory):
    """What an index keeps about the model in its build (Store.details): {"model": where it came
    from, "epoch", "digest": of the model, "files": {name: digest} of the files beside it}."""
    name = f"epoch_{checkpoint.epoch}"
    made_by = os.path.join(os.path.basename(os.path.abspath(checkpoint.model_dir)), name)
    names = [os.path.join(MODEL_DIR, name + ".json"), text.TOKENS_FILE, text.CUTTING_FILE]
    return {"model": made_by, "epoch": checkpoint.epoch,
            "digest": model_digest(_copy_in(directory, checkpoint.epoch)),
            "files": {name: utils.file_digest(os.path.join(directory, name)) for name in names
                      if os.path.exists(os.path.join(directory, name))}}


def load_encoder(directory, details):
    """(Encoder, text.TokenVocabulary or None for a model without content) of a build, once it is
    certain that they are those that made the vectors.

    details: as of describe
    Raises StoreError, SetupError, DataError.
    """
    try:
        made_by, epoch, digest = details["model"], details["epoch"], details["digest"]
    except KeyError as error:
        raise StoreError(f"{directory} is damaged, it does not say which model made it: "
                         f"{REMEDY}") from error
    _check_files(directory, details)
    checkpoint = _copy_in(directory, epoch)
    if model_digest(checkpoint) != digest:
        raise StoreError(f"the model in {checkpoint.model_dir} is not the one that made the "
                         f"vectors, {made_by} with the digest {digest[:12]}: build the index anew "
                         "(retrieve.py build --overwrite)")
    vocabulary = None
    if checkpoint.meta["model"]["num_tokens"]:
        vocabulary = text.TokenVocabulary.load(os.path.join(directory, text.TOKENS_FILE))
    return Encoder(load_frozen(checkpoint), stand_in_length=details.get("stand_in_length"),
                   **session_settings(checkpoint.meta)), vocabulary


def _copy_in(directory, epoch):
    model_dir = os.path.join(directory, MODEL_DIR)
    return Checkpoint(model_dir, epoch, utils.load_meta(model_dir, epoch))


def _check_files(directory, details):
    for name, digest in details.get("files", {}).items():  # none in format 1
        path = os.path.join(directory, name)
        try:
            if utils.file_digest(path) != digest:
                raise StoreError(f"{path} is damaged: {REMEDY}")
        except OSError as error:
            raise StoreError(f"cannot read {path} ({error.strerror}): {REMEDY}") from error

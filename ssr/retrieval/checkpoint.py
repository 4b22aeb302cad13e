"""A checkpoint that is to be asked: which one, its model, of Paddle or of numpy, and what tells it
from any other."""

from __future__ import annotations

import json
import logging
import os

import utils
from ssr.errors import SetupError
from ssr.kernels.frozen import FrozenModel
from ssr.pickled import load_arrays
from ssr.retrieval.repeats import RepeatScore
from ssr.runtime import set_up
from ssr.training.checkpoints import Checkpoint

logger = logging.getLogger(__name__)


def choose_checkpoint(model_dir, epoch=None, best=False) -> Checkpoint:
    """The epoch to take from a directory of train.py. Logs which one and why.

    epoch: the number of one; None for the newest complete one
    best: the epoch of the highest recall in validation (train.py --valid_dir), unless epoch is
        given
    Raises SetupError where there is no such epoch, or it is not complete.
    """
    if epoch is None and best:
        epoch, why = best_epoch(model_dir), "the best in validation"
    else:
        why = "the newest complete one" if epoch is None else "as asked for"
    epoch, meta = utils.find_checkpoint(model_dir, epoch)
    logger.info("epoch_%d of %s, %s", epoch, model_dir, why)
    better = best_epoch_of(meta)
    if why == "the newest complete one" and better not in (None, epoch):
        logger.warning("epoch_%d was the best in validation: take it with --best", better)
    return Checkpoint(model_dir, epoch, meta)


def best_epoch(model_dir):
    """The epoch of the highest recall in validation. Raises SetupError where none was validated."""
    _, meta = utils.newest_complete(model_dir)
    epoch = meta and best_epoch_of(meta)
    if epoch is None:
        raise SetupError(f"--best: {model_dir} holds no epoch that was trained with "
                         "train.py --valid_dir")
    return epoch


def best_epoch_of(meta):
    """The epoch that was the best in validation when a checkpoint with this metadata was written,
    None without validation."""
    best = meta.get("best")
    return best and best["epoch"]


def load_model(checkpoint):
    """The model of a Checkpoint, in evaluation mode and without gradients, in every thread. Raises
    SetupError."""
    from nets import SequenceSemanticRetrieval  # here: an index is opened without Paddle

    model = SequenceSemanticRetrieval(**checkpoint.meta["model"])
    utils.load_parameters(model, checkpoint.model_dir, checkpoint.epoch)
    for parameter in model.parameters():
        parameter.stop_gradient = True
    model.eval()
    return model


def load_frozen(checkpoint):
    """The FrozenModel of a Checkpoint, of which the caller knows that its file is that of its
    metadata (utils.checked_state, model_digest). Raises SetupError."""
    set_up()
    path = _parameters_of(checkpoint)
    try:
        return FrozenModel(checkpoint.meta["model"], load_arrays(path))
    except ValueError as error:
        raise SetupError(f"{path} is not of the model that the .json beside it describes: {error}"
                         ) from error


def max_len_of(meta):
    """How many of a session's newest clicks the model with this metadata was trained to encode,
    None for all. Raises SetupError."""
    max_len = meta["run"].get("max_len")
    if max_len is not None and (type(max_len) is not int or max_len < 1):
        raise SetupError(f"the checkpoint is damaged: its max_len is {max_len!r:.40}")
    return max_len


def session_settings(meta):
    """How the model with this metadata takes sessions, as keyword arguments of Encoder. Raises
    SetupError."""
    return {"max_len": max_len_of(meta), "repeats": RepeatScore.of_meta(meta)}


def model_digest(checkpoint):
    """The SHA-256 of a Checkpoint's sizes and parameters, 64 hexadecimal digits."""
    return utils.file_digest(_parameters_of(checkpoint),
                             json.dumps(checkpoint.meta["model"], sort_keys=True).encode())


def _parameters_of(checkpoint):
    return os.path.join(checkpoint.model_dir, f"epoch_{checkpoint.epoch}.pdparams")

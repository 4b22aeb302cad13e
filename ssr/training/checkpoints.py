"""The checkpoints of a training: writing one, and beginning with one."""

from __future__ import annotations

import dataclasses

import numpy as np

import utils
from ssr.errors import SetupError
from ssr.runtime import paddle
from ssr.training.settings import Settings, difference


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete epoch. meta: its metadata"""

    model_dir: str
    epoch: int
    meta: dict

    def load(self, suffix):
        """The state dict in the file of a suffix, {name: numpy array}. Raises SetupError."""
        return utils.load_state(self.model_dir, self.epoch, suffix)

    def item_clicks(self):
        """<int32>[V]: how often each item was clicked in training. Raises SetupError."""
        try:
            return self.load(".pdparams")["item_clicks"]
        except KeyError as error:
            raise SetupError(f"{self.model_dir}/epoch_{self.epoch}.pdparams is damaged: it lacks "
                             "item_clicks") from error


def save(model_dir, settings, model, optimizer_state, epoch, metrics, best=None, data=None,
         fitted=None, **run):
    """Writes the checkpoint of an epoch and returns its path.

    metrics: {name: number}
    best: {"epoch", "recall"} of the best epoch so far, None without validation
    data: {name: digest} of what it was trained on, see data_digests
    fitted: {name: value} of what belongs to the model beside its parameters
    run: what else decided the outcome
    """
    meta = {"model": model.sizes,
            "run": {**settings.to_meta(), **run},
            "metrics": metrics, "best": best, "data": data, "paddle": paddle.__version__,
            **(fitted or {})}
    return utils.save_checkpoint(model_dir, epoch, model, optimizer_state, meta)


def check_replaceable(model_dir, settings, data):
    """Raises SetupError where model_dir holds epochs of another run, which a new one would
    remove."""
    epoch, meta = utils.newest_complete(model_dir)
    if meta is None:
        return
    if meta.get("data") != data:
        what = "other data"
    elif not (what := difference(Settings.from_meta(meta), settings)):
        return
    raise SetupError(f"{model_dir} holds epoch_{epoch} of another run ({what}): give another "
                     "--model_dir, or --overwrite to replace it")


def restore(model, optimizer, source):
    """Loads a Checkpoint into model and optimizer, all but item_clicks. Items that it does not have
    keep their initial values. Raises SetupError."""
    rows = _rows_of(source.meta["model"], model)
    parameters = source.load(".pdparams")
    parameters["item_clicks"] = model.item_clicks
    table = model.embedding.weight
    if "embedding.weight" in parameters:
        parameters["embedding.weight"] = _grown(parameters["embedding.weight"], rows, table,
                                                lambda: table.numpy().copy())
    utils.check_parameters(parameters, model.state_dict(),
                           f"{source.model_dir}/epoch_{source.epoch}.pdparams")
    model.set_state_dict(parameters)
    del parameters  # the optimizer's state is larger still
    state = source.load(".pdopt")
    for name, saved in state.items():
        if name.startswith(table.name) and saved.shape == (len(rows), table.shape[1]):
            state[name] = _grown(saved, rows, table, lambda: np.zeros(table.shape, np.float32))
    optimizer.set_state_dict(state)


def _rows_of(sizes, model):
    """Where the rows of an older table are in that of a model: <int64>[rows]. Tokens stand behind
    the items, so they move when the catalogue grows."""
    return np.concatenate([np.arange(sizes["vocab_size"]),
                           model.vocab_size + np.arange(sizes["num_tokens"])])


def _grown(saved, rows, table, initial):
    """What was saved, where the table has grown in its rows of the initial values. Raises
    SetupError.

    saved: numpy <float32>[rows, dim]; initial: called for numpy <float32> like the table
    """
    if saved.shape != (len(rows), table.shape[1]):
        raise SetupError(f"the table of the checkpoint is {list(saved.shape)}, and its metadata "
                         f"say {[len(rows), table.shape[1]]}: it is damaged")
    if len(rows) == len(table):
        return saved
    full = initial()
    full[rows] = saved
    return full

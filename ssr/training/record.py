"""What a run leaves behind: checkpoints, metrics, and which epoch was the best."""

from __future__ import annotations

import os

import utils
from ssr.errors import SetupError
from ssr.training import checkpoints
from ssr.training.flags import VALID_K
from ssr.training.metrics import FILE, append_metrics, read_metrics


class Record:
    """Kept by rank 0 alone.

    model_dir: where it is kept
    run: ssr.training.start.Run
    examine: called with the model after each epoch, returns (what goes into its checkpoint,
        {name: value}; what validation measured, {name: recall or MRR})
    scalars: a writer of scalars (open_visualdl), or None
    """

    def __init__(self, model_dir, run, examine=lambda model: ({}, {}), scalars=None):
        self.model_dir, self.run, self.examine, self.scalars = model_dir, run, examine, scalars
        self.best = run.source.meta.get("best") if run.done else None
        self._complete_metrics()

    def _complete_metrics(self):
        """A run that was killed between a checkpoint and its line of metrics.jsonl gets the
        line."""
        epochs = [epoch for epoch in utils.checkpoint_epochs(self.model_dir)
                  if epoch <= self.run.done]
        lines = read_metrics(os.path.join(self.model_dir, FILE))
        missing = {*epochs} - {line["epoch"] for line in lines}
        for epoch in epochs:
            if missing and epoch >= min(missing):
                meta = utils.load_meta(self.model_dir, epoch)
                append_metrics(self.model_dir, epoch, meta.get("metrics") or {})

    def add(self, epoch, model, optimizer, metrics):
        """Examines and saves an epoch.

        metrics: {name: number}
        returns (path of the checkpoint, what validation measured)
        """
        fitted, measured = self.examine(model)
        recall = measured.get(f"valid_recall@{VALID_K}")
        if recall is not None and (self.best is None or recall > self.best["recall"]):
            self.best = {"epoch": epoch, "recall": recall}
        metrics = {**metrics, **measured}
        if epoch == self.run.done + 1:
            utils.remove_checkpoints(self.model_dir, after=self.run.done)
        path = checkpoints.save(self.model_dir, self.run.settings, model, optimizer.state_dict(),
                                epoch, metrics, self.best, self.run.data, fitted)
        append_metrics(self.model_dir, epoch, metrics)
        if self.scalars:
            for name, value in metrics.items():
                self.scalars.add_scalar(tag=name, step=epoch, value=value)
        return path, measured

    def best_is_older(self, epoch, patience):
        """Whether the last `patience` epochs brought no higher recall; False for a patience of
        None."""
        return patience is not None and epoch - self.best["epoch"] >= patience


def open_visualdl(log_dir):
    """A writer of scalars. Raises SetupError where VisualDL is not installed."""
    try:
        from visualdl import LogWriter
    except ImportError as error:
        raise SetupError("--log_dir needs VisualDL: pip install visualdl; without it the same "
                         "figures are in metrics.jsonl of --model_dir") from error
    return LogWriter(logdir=log_dir)

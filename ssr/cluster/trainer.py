"""A trainer of a job trains on its share of the sessions; the first one saves what the servers
hold."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from typing import NamedTuple, Optional

import numpy as np

import reader
import utils
from ssr.cluster.ending import time_limit
from ssr.cluster.meeting import Peers, connect
from ssr.cluster.program import STEP_LIMIT, TABLE, Cluster, dygraph
from ssr.errors import SetupError
from ssr.training import checkpoints
from ssr.training.building import build, build_objective
from ssr.training.loop import epoch_batches, train_epoch
from ssr.training.start import Run, check_steps, data_digests

logger = logging.getLogger(__name__)

TABLE_LIMIT = 600  # seconds for reading all of the table, which can be large
WATCHED_ROWS = 1000  # of the table, compared at the end


class Files(NamedTuple):
    """Where a trainer reads and writes.

    overwrite: whether epochs of another run in model_dir may be replaced
    """

    train_dir: str
    vocab_path: str
    model_dir: str
    overwrite: bool = False


class EpochResult(NamedTuple):
    """What an epoch came to.

    num_steps: of each trainer; seconds: that it took; cost, acc: means over the sessions of all
    trainers; sessions: of all trainers; path: of the checkpoint, None where another trainer saves
    """

    epoch: int
    num_steps: int
    seconds: float
    cost: float
    acc: float
    sessions: int
    path: Optional[str]


def run_trainer(job, settings, files, print_batch, on_start, on_end):
    """Trains on this trainer's share until the job is done.

    settings: ssr.training.settings.Settings, those of all trainers
    files: Files
    print_batch: the loss is logged every so many steps
    on_start, on_end: called before an epoch with its number, and after it with its EpochResult
    Raises DataError, SetupError.
    """
    dataset = reader.construct_train_data(files.train_dir, files.vocab_path)
    run = Run(settings, dataset, None, dataset.item_clicks(), None,
              data_digests(dataset, files.vocab_path), 0, None)
    check_steps(dataclasses.replace(settings, num_devices=job.trainers), dataset)
    # Only the first trainer saves, with the initial values of a single process.
    directory = contextlib.nullcontext() if job.trainer else utils.model_directory(files.model_dir)
    with directory:
        model = None
        if not job.trainer:
            if not files.overwrite:
                checkpoints.check_replaceable(files.model_dir, settings, run.data)
            with dygraph():
                model, _ = build(settings, run.clicks)
        trainer = Trainer(job, run, model, files.model_dir)
        trainer.train(print_batch, on_start, on_end)


class Trainer:
    """job: Job; run: ssr.training.start.Run; model: to be saved into model_dir by the first
    trainer, None on all others"""

    def __init__(self, job, run, model, model_dir):
        self.job, self.run, self.model, self.model_dir = job, run, model, model_dir
        self.cluster = Cluster(job, run.settings, run.dataset.vocab_size)
        self.peers = meet(job, description(run))

    def train(self, print_batch, on_start, on_end):
        """All of the job, as of run_trainer."""
        self._register()
        watched = np.argsort(-self.run.clicks, kind="stable")[:WATCHED_ROWS]
        initial = self.cluster.local(TABLE)[watched]
        _, negatives = build_objective(self.run.settings, self.run.dataset)
        for epoch in range(1, self.run.settings.epochs + 1):
            on_start(epoch)
            result, table = self._train_epoch(epoch, negatives, print_batch)
            on_end(result)
        check_agreement(self.cluster.local(TABLE)[watched], table[watched], initial)
        self._stop()

    def _register(self):
        """One trainer after the other; the first one brings the initial values."""
        values = {}
        if self.model:
            values = {value.name: value.numpy() for value in self.model.parameters()}
        for turn in range(self.job.trainers):
            if turn == self.job.trainer:
                with time_limit(STEP_LIMIT, "registering with the servers"):
                    self.cluster.start(values)
            self.peers.gather()
        dataset = self.run.dataset
        logger.info("%d sessions, %d clicks, %d items, shared by %d trainers", len(dataset),
                    len(dataset.items), dataset.vocab_size, self.job.trainers)

    def _train_epoch(self, epoch, negatives, print_batch):
        """Returns EpochResult and, where it was read, the table as the servers hold it."""
        begin = time.time()
        batches, num_steps = epoch_batches(self.run, negatives, epoch, self.job.trainer,
                                           self.job.trainers)
        seen = np.zeros(self.run.dataset.vocab_size, bool)
        own = train_epoch(self.cluster.step, note_items(batches, seen), num_steps, print_batch,
                          epoch)
        costs, accs, sessions = np.array(self.peers.gather(own)).T
        self.cluster.send_rows(np.flatnonzero(seen))
        self.cluster.settle()
        self.peers.gather()
        cost, acc = costs @ sessions / sessions.sum(), accs @ sessions / sessions.sum()
        seconds = time.time() - begin
        values = self._read_parameters(epoch)
        self.peers.gather()  # from here on others may change them
        path = None
        if self.model:
            path = self._save(values, epoch, {"avg_cost": cost, "acc": acc, "seconds": seconds})
        return EpochResult(epoch, num_steps, seconds, cost, acc, int(sessions.sum()), path), \
            values.get(TABLE)

    def _read_parameters(self, epoch):
        """{name: array}, what the servers hold; of the table only where it is needed."""
        with time_limit(TABLE_LIMIT, "reading the parameters from the servers"):
            values = self.cluster.served_dense()
            if self.model or epoch == self.run.settings.epochs:
                values[TABLE] = self.cluster.served_table()
        return values

    def _save(self, values, epoch, metrics):
        """Writes a checkpoint as train.py does, but for the optimizer's state: each trainer has its
        own, and "trainers" in the metadata says so. Returns its path."""
        if epoch == 1:
            utils.remove_checkpoints(self.model_dir)
        with dygraph():
            for parameter in self.model.parameters():
                parameter.set_value(values[parameter.name])
            return checkpoints.save(self.model_dir, self.run.settings, self.model, {}, epoch,
                                    metrics, data=self.run.data, trainers=self.job.trainers)

    def _stop(self):
        """Ends the job: first the trainers leave, then trainer 0 stops the servers."""
        with time_limit(STEP_LIMIT, "stopping the servers"):
            if self.job.trainer:
                self.cluster.stop(servers=False)
            self.peers.gather()
            self.peers.bye()
            if not self.job.trainer:
                self.cluster.stop(servers=True)


def meet(job, mine):
    """Finds the servers and the other trainers.

    mine: {what: value} of what must be the same on all trainers
    Raises SetupError where a process does not come, or has other data or flags.
    """
    end = time.monotonic() + job.wait

    def left():
        return max(1, math.ceil(end - time.monotonic()))
    for endpoint in job.endpoints:
        sock = connect(endpoint, left())
        if sock is None:
            raise SetupError(f"the server {endpoint} cannot be reached within {job.wait} s: is it "
                             "running, are these --endpoints right?")
        sock.close()
    if job.trainer:
        peers = Peers.join(job.coordinator, job.name, job.trainer, job.trainers, left())
    else:
        names = [f"server {i}" for i in range(len(job.endpoints))]
        names += [f"trainer {i}" for i in range(1, job.trainers)]
        peers = Peers.host(job.coordinator, names, job.trainers, left())
    first = peers.gather(mine, seconds=left())[0]
    for what, value in mine.items():
        if first.get(what) != value:
            raise SetupError(f"trainer 0 has another {what} than {job.name}: {first.get(what)}, "
                             f"not {value}")
    return peers


def description(run):
    """{what: value} of what must be the same on all trainers."""
    return {"train_dir": f"{len(run.dataset)} sessions, digest {run.data['train']}",
            "vocab_path": run.dataset.vocab_size,
            **{f"--{name}": value for name, value in dataclasses.asdict(run.settings).items()}}


def note_items(batches, seen):
    """Passes batches on and marks in seen, <bool>[V], the items that they hold."""
    for batch in batches:
        seen[batch.ids()] = True
        yield batch


def check_agreement(local, served, initial):
    """Raises SetupError where a trainer and the servers have gone different ways. They never agree
    exactly, see program.ROWS_LEFT.

    local, served, initial: <float32>[rows, dim], the same rows of the table
    """
    apart, moved = np.linalg.norm(local - served), np.linalg.norm(served - initial)
    if not apart <= 0.2 * moved:
        raise SetupError(f"this trainer's table is {apart:.3g} apart from the servers', which "
                         f"moved by {moved:.3g}: the trainers did not exchange it")
    logger.info("the table is %.3g apart from the servers', which moved by %.3g", apart, moved)

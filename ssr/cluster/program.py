"""The network as a static program of Paddle's parameter server."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import time
import warnings

import numpy as np

import utils
from nets import PairwiseHingeLoss, SequenceSemanticRetrieval
from ssr.cluster.ending import time_limit
from ssr.errors import SetupError
from ssr.kernels.static import pair_cosines
from ssr.runtime import paddle

TABLE = "emb.item"
GEO_STEPS = 10  # batches whose changes are sent together
STEP_LIMIT = 40  # seconds for what takes one or two: registering, exchanging the rest, stopping
ROWS_LEFT = 0.05  # of what a row has changed by may be on its way at the end of an epoch
ROWS_AT_A_TIME = 1000  # are announced to be sent
SETTLED = 1e-5  # a parameter other than the table that differs by less has arrived


def check_parameter_server():
    """Raises SetupError where this Paddle has none that works."""
    version = int(paddle.version.major), int(paddle.version.minor)
    if not hasattr(paddle.base.core, "DistFleetWrapper") or version >= (3, 1):
        raise SetupError(f"this Paddle, {paddle.__version__}, comes without a parameter server: "
                         "use paddlepaddle==2.6.2 (pip install -r requirements-cpu.txt)")


@contextlib.contextmanager
def parameter_server():
    """Makes static graphs the rule in this process, for as long as the context lasts. Raises
    SetupError where Paddle has no parameter server that works."""
    utils.check_version()
    check_parameter_server()
    utils.set_device(0)
    paddle.enable_static()
    try:
        yield
    finally:
        paddle.disable_static()


class Cluster:
    """The network as a static program, and this process's place among servers and trainers.

    The parameters have the names that they have in a dygraph model (nets.py gives them), and so
    their values go from one to the other by name.
    """

    def __init__(self, job, settings, vocab_size):
        """job: Job; settings: ssr.training.settings.Settings"""
        # Only here: not every Paddle has it.
        from paddle.distributed import fleet

        self.fleet = fleet
        self.trainers = job.trainers
        strategy = fleet.DistributedStrategy()
        strategy.a_sync = True
        # launch_barrier waits for the servers without a limit.
        strategy.a_sync_configs = {"k_steps": GEO_STEPS, "launch_barrier": False}
        self.startup = paddle.static.Program()
        with paddle.static.program_guard(paddle.static.Program(), self.startup), \
                paddle.utils.unique_name.guard(), quiet():
            fleet.init(_role(fleet, job), is_collective=False, strategy=strategy)
            loss, correct = _network(settings, vocab_size)
            optimizer = paddle.optimizer.Adagrad(settings.base_lr)
            fleet.distributed_optimizer(optimizer, strategy).minimize(loss, self.startup)
        self.fetch = [loss, correct]
        self.program = loss.block.program
        # The same without updates: what remains is that the rows of a batch are sent.
        self.announcement = self.program.clone()
        block = self.announcement.global_block()
        for place in reversed(range(len(block.ops))):
            if block.ops[place].type == "adagrad":
                block._remove_op(place)

    # --- of a server

    def serve(self):
        """Returns when trainer 0 stops it."""
        with quiet():
            self.fleet.init_server()
            self.fleet.run_server()

    # --- of a trainer

    def start(self, values):
        """Registers with the servers.

        values: {name: array}, the parameters' initial values, from the first trainer; empty for all
            others, which take what the servers hold by then
        """
        self.executor = paddle.static.Executor(paddle.CPUPlace())
        self.executor.run(self.startup)
        self.scope = paddle.static.global_scope()
        for name, value in values.items():
            self.scope.find_var(name).get_tensor().set(value, paddle.CPUPlace())
        from paddle.distributed.ps.utils.public import get_the_one_recv_context as tables

        with quiet():
            self.fleet.init_worker()
            self.runtime = self.fleet.fleet._runtime_handle
            # {number of a table: names of its parameters}
            self.dense = tables(self.runtime.context)
            (self.table,) = tables(self.runtime.context, is_dense=False)

    def step(self, batch):
        """One update. Returns the mean loss and the share of pairs ranked right."""
        return self.executor.run(self.program, feed=pad(batch), fetch_list=self.fetch)

    def local(self, name):
        """What this trainer holds: a view, which Paddle's threads go on changing."""
        return np.asarray(self.scope.find_var(name).get_tensor())

    def served_dense(self):
        """{name: array}, what the servers hold of all parameters but the table."""
        scope, values = paddle.static.Scope(), {}
        for table, names in self.dense.items():
            for name in names:
                values[name] = np.zeros_like(self.local(name))
                scope.var(name).get_tensor().set(values[name], paddle.CPUPlace())
            self.runtime._worker.pull_dense_params(scope, table, names)
            values.update((name, np.array(scope.find_var(name).get_tensor())) for name in names)
        return values

    def served_table(self):
        """<float32>[V, dim], the table as the servers hold it."""
        with tempfile.TemporaryDirectory() as directory:  # Paddle gives it as a file only
            self.runtime._worker.recv_and_save_model(self.table, directory)
            return np.asarray(paddle.load(os.path.join(directory, TABLE)))

    def send_rows(self, rows):
        """Sends what is left of this trainer's changes to rows of the table.

        Each time that a batch holds a row the servers are sent 1 / trainers of what it has changed
        by, and are owed the rest until the next time: rows that are rare would learn little.
        rows: <int64>[n], n > 0
        """
        # Batches are sent up to GEO_STEPS together, a row once: between two times that a row is
        # announced there are as many others.
        rows = np.resize(rows, max(len(rows), GEO_STEPS))
        chunks = np.array_split(rows, max(GEO_STEPS, -(-len(rows) // ROWS_AT_A_TIME)))
        times = 0
        if self.trainers > 1:
            times = math.ceil(math.log(ROWS_LEFT) / math.log(1 - 1 / self.trainers))
        # As many wait in a queue, and as many are being sent: after these all others have been.
        last = [rows[:1]] * 3 * GEO_STEPS
        for ids in [*chunks * times, *last]:
            self.executor.run(self.announcement, feed={
                "clicks": ids[:, None], "lengths": np.ones_like(ids), "positive": ids,
                "negative": ids})

    def settle(self):
        """Waits until the servers hold all that this trainer has changed of the other parameters.
        What differs is halved or so with each exchange, of which there are many a second."""
        with time_limit(STEP_LIMIT, "exchanging the parameters with the servers"):
            while any(np.abs(self.local(name) - value).max(initial=0) > SETTLED
                      for name, value in self.served_dense().items()):
                time.sleep(0.1)

    def stop(self, servers):
        """Leaves the servers. servers: whether to stop them as well"""
        with quiet():
            self.runtime._communicator.stop()
            if servers:
                self.runtime._worker.stop_server()
            self.runtime._worker.stop_worker()


def _role(fleet, job):
    from paddle.distributed.ps.the_one_ps import BarrierTable

    # Its barrier can lose a wake-up and hang. With a count of 1 it never waits; the trainers start
    # one after the other instead.
    if not hasattr(BarrierTable, "waits"):
        BarrierTable.waits, BarrierTable._set = BarrierTable._set, _set_without_waiting
    kinds = fleet.base.role_maker.Role
    return fleet.UserDefinedRoleMaker(
        current_id=job.trainer if job.server is None else job.server,
        role=kinds.WORKER if job.server is None else kinds.SERVER, worker_num=job.trainers,
        worker_endpoints=[job.coordinator] * job.trainers, server_endpoints=list(job.endpoints))


def _network(settings, vocab_size):
    """(mean loss, share of pairs ranked right), of the data that pad() makes."""
    model = SequenceSemanticRetrieval(vocab_size, **settings.architecture())
    pos, neg = pair_cosines(model, paddle.static.data("clicks", [None, None], "int64"),
                            *(paddle.static.data(name, [None], "int64")
                              for name in ("lengths", "positive", "negative")))
    return (paddle.mean(PairwiseHingeLoss().pair(pos, neg)),
            paddle.mean(paddle.cast(neg < pos, "float32")))


def _set_without_waiting(self, table):
    self.waits(table)
    table.common.trainer_num = 1


@contextlib.contextmanager
def dygraph():
    """Static graphs are the rule in this process."""
    paddle.disable_static()
    try:
        yield
    finally:
        paddle.enable_static()


@contextlib.contextmanager
def quiet():
    """Keeps away what Paddle prints about its tables and the gloo that is not used."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pad(batch):
    """A batch of sequences that lie end to end -> what the static program is fed. Item 0 fills
    the rest of a row; the program looks at `lengths` clicks only."""
    clicks = np.zeros((len(batch.lengths), batch.lengths.max()), np.int64)
    clicks[np.arange(clicks.shape[1]) < batch.lengths[:, None]] = batch.clicks
    return {"clicks": clicks, "lengths": batch.lengths, "positive": batch.positive,
            "negative": batch.candidates[:, 1]}

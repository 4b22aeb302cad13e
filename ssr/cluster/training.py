"""Trains Sequence Semantic Retrieval through Paddle's parameter server, on CPUs.

    sh cluster_train.sh             # 2 servers and 2 trainers on this machine
    python cluster_train.py --role pserver --endpoints HOST0:6000,HOST1:6000 \\
        --current_endpoint HOST0:6000 --trainers 2 --coordinator HOST0:6002
    python cluster_train.py --role trainer --endpoints HOST0:6000,HOST1:6000 \\
        --trainer_id 0 --trainers 2 --coordinator HOST0:6002

Every trainer holds all parameters, updates them with Adagrad on its share of the sessions and
exchanges the differences with the servers every few steps (Paddle's GEO mode). At the end of an
epoch all of them wait until everything has arrived; then trainer 0 saves what the servers hold.
Whichever process ends too early, all others end within seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import json
import logging
import math
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
import zlib

import numpy as np

import reader  # noqa: E402
import train  # noqa: E402
import utils
from nets import PairwiseHingeLoss, SequenceSemanticRetrieval  # noqa: E402
from ssr.errors import SetupError
from ssr.kernels.static import pair_cosines
from ssr.runtime import paddle

logger = logging.getLogger("cluster_train")

TABLE = "emb.item"
GEO_STEPS = 10  # batches whose changes are sent together
STEP_LIMIT = 40  # seconds for what takes one or two: registering, exchanging the rest, stopping
TABLE_LIMIT = 600  # seconds for reading all of the table, which can be large
ROWS_LEFT = 0.05  # of what a row has changed by may be on its way at the end of an epoch
ROWS_AT_A_TIME = 1000  # are announced to be sent
SETTLED = 1e-5  # a parameter other than the table that differs by less has arrived
WATCHED_ROWS = 1000  # of the table, compared at the end


def process_name(args):
    if args.role == "pserver":
        return f"server {args.endpoints.index(args.current_endpoint)}"
    return f"trainer {args.trainer_id}"


# --- ending ---------------------------------------------------------------------------------------


_failing = threading.Lock()


def fail(message):
    """Ends the process at once, from any thread: the main one may be in a call of Paddle's that
    never returns."""
    _failing.acquire()  # and never released: the first fault is the one to report
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    leave(1)


def leave(code):
    """Ends the process without the destructors of Paddle's connections, which can hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def time_limit(seconds, what):
    """Ends the process where the block takes longer."""
    timer = threading.Timer(seconds, fail, [f"{what} took more than {seconds} s"])
    timer.daemon = True
    timer.start()
    # Many of Paddle's calls let no other thread of Python run. This one is not Python's.
    faulthandler.dump_traceback_later(seconds + 2, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()


def end_with(parent):
    """Lets the kernel end this process when the one that started it is killed."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        fail("the process that started this one is gone")


# --- meeting --------------------------------------------------------------------------------------


class Peers:
    """The processes of a job, each connected to trainer 0: they agree on where they are, and a
    process that ends too early is noticed at once, whatever Paddle is doing.

    Messages are lines of JSON: {"name": ...} once, {"value": ...} to gather and to answer,
    {"bye": true} before an end that is no fault, {"error": ...} to turn someone away.
    """

    def __init__(self, trainer_id, trainers):
        self.trainer_id = trainer_id  # None for a server
        self.trainers = trainers
        self.links = {}
        self.ended = threading.Event()  # trainer 0 has said that the job is done

    @classmethod
    def host(cls, endpoint, names, trainers, seconds):
        """Trainer 0: waits for everybody. Raises SetupError."""
        peers = cls(0, trainers)
        missing = set(names)
        end = time.monotonic() + seconds
        with listen(endpoint) as server:
            while missing:
                server.settimeout(max(0.1, end - time.monotonic()))
                try:
                    link = Link(server.accept()[0])
                except OSError as error:
                    if time.monotonic() < end:
                        continue
                    raise SetupError(f"{', '.join(sorted(missing))} did not come to "
                                           f"{endpoint} within {seconds} s: see its log") from error
                name = link.receive_name()
                if name in missing:
                    missing.remove(name)
                    link.start(name, peers)
                    peers.links[name] = link
                else:
                    link.send(error=f"trainer 0 expects no {name}, or has it already: check "
                                    "--trainer_id, --trainers and --endpoints")
        for link in peers.links.values():
            link.send(value=None)
        return peers

    @classmethod
    def join(cls, endpoint, name, trainer_id, trainers, seconds):
        """Everybody else. seconds: None to wait on. Raises SetupError."""
        peers = cls(trainer_id, trainers)
        sock = connect(endpoint, seconds)
        if sock is None:
            raise SetupError(f"trainer 0 cannot be reached at {endpoint} within {seconds} s: "
                                   "is it running, is this its --coordinator?")
        link = Link(sock)
        link.send(name=name)
        link.start("trainer 0", peers)
        peers.links["trainer 0"] = link
        link.take("waiting for all processes", seconds)
        return peers

    def gather(self, value=None, what="waiting for the other trainers", seconds=None):
        """A value of each trainer -> the values of all, in their order, on every trainer."""
        if self.trainer_id:
            link = self.links["trainer 0"]
            link.send(value=value)
            return link.take(what, seconds)
        others = [self.links[f"trainer {i}"] for i in range(1, self.trainers)]
        values = [value] + [link.take(what, seconds) for link in others]
        for link in others:
            link.send(value=values)
        return values

    def bye(self):
        """From here on an end is no fault."""
        for link in self.links.values():
            link.send(bye=True)


class Link:
    """A connection, read by a thread of its own, so that its end is noticed."""

    def __init__(self, sock):
        self.sock = sock
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine may vanish, too
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.file = sock.makefile("r", encoding="utf-8")
        self.values = queue.Queue()

    def send(self, **message):
        with contextlib.suppress(OSError):  # the reading thread says why
            self.sock.sendall((json.dumps(message) + "\n").encode())

    def receive_name(self):
        """Who has connected; None for somebody who does not belong here."""
        self.sock.settimeout(5)
        try:
            return json.loads(self.file.readline(200)).get("name")
        except (OSError, ValueError, AttributeError):
            return None
        finally:
            self.sock.settimeout(None)

    def start(self, name, peers):
        self.thread = threading.Thread(target=self._read, args=(name, peers), daemon=True)
        self.thread.start()

    def take(self, what, seconds):
        """The next value. Raises SetupError after so many seconds."""
        try:
            return self.values.get(timeout=seconds)
        except queue.Empty:
            raise SetupError(f"{what} took more than {seconds} s") from None

    def _read(self, name, peers):
        with contextlib.suppress(OSError, ValueError):
            for line in self.file:
                message = json.loads(line)
                if "bye" in message:
                    peers.ended.set()
                    return
                if "error" in message:
                    fail(message["error"])
                else:
                    self.values.put(message["value"])
        fail(f"{name} has ended before the job was done: see its log")


def listen(endpoint):
    """A listening socket. Raises SetupError where the port is in use."""
    host, port = split(endpoint)
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise SetupError(f"cannot listen on {endpoint}: {error.strerror or error}; choose "
                               "another port, or stop what uses it") from error


def connect(endpoint, seconds):
    """A connected socket, or None after so many seconds (None: waits on)."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        with contextlib.suppress(OSError):
            sock = socket.create_connection(split(endpoint), timeout=5)
            if sock.getsockname() != sock.getpeername():  # it can happen to meet itself
                return sock
            sock.close()
        time.sleep(0.2)
    return None


def split(endpoint):
    host, _, port = endpoint.rpartition(":")
    return host, int(port)


# --- Paddle's parameter server --------------------------------------------------------------------


def check_parameter_server():
    """Raises SetupError where this Paddle has none that works."""
    version = int(paddle.version.major), int(paddle.version.minor)
    if not hasattr(paddle.base.core, "DistFleetWrapper") or version >= (3, 1):
        raise SetupError(f"this Paddle, {paddle.__version__}, comes without a parameter "
                               "server: use paddlepaddle==2.6.2 (pip install -r "
                               "requirements-cpu.txt)")


class Cluster:
    """The network as a static program, and this process's place among servers and trainers.

    The parameters have the names that they have in a dygraph model (nets.py gives them), and so
    their values go from one to the other by name.
    """

    def __init__(self, args, vocab_size):
        # Only here: not every Paddle has them.
        from paddle.distributed import fleet
        from paddle.distributed.ps.the_one_ps import BarrierTable

        # Its barrier can lose a wake-up and hang. With a count of 1 it never waits; the trainers
        # start one after the other instead.
        if not hasattr(BarrierTable, "waits"):
            BarrierTable.waits, BarrierTable._set = BarrierTable._set, _set_without_waiting
        server = args.role == "pserver"
        role = fleet.UserDefinedRoleMaker(
            current_id=args.endpoints.index(args.current_endpoint) if server else args.trainer_id,
            role=fleet.base.role_maker.Role.SERVER if server else
            fleet.base.role_maker.Role.WORKER,
            worker_num=args.trainers, worker_endpoints=[args.coordinator] * args.trainers,
            server_endpoints=args.endpoints)
        strategy = fleet.DistributedStrategy()
        strategy.a_sync = True
        # launch_barrier waits for the servers without a limit.
        strategy.a_sync_configs = {"k_steps": GEO_STEPS, "launch_barrier": False}
        self.startup = paddle.static.Program()
        with paddle.static.program_guard(paddle.static.Program(), self.startup), \
                paddle.utils.unique_name.guard(), quiet():
            fleet.init(role, is_collective=False, strategy=strategy)
            model = SequenceSemanticRetrieval(
                vocab_size, **{name: getattr(args, name) for name in train.MODEL_FLAGS})
            pos, neg = pair_cosines(
                model, paddle.static.data("clicks", [None, None], "int64"),
                                    *(paddle.static.data(name, [None], "int64")
                                      for name in ("lengths", "positive", "negative")))
            loss = paddle.mean(PairwiseHingeLoss().pair(pos, neg))
            correct = paddle.mean(paddle.cast(neg < pos, "float32"))
            optimizer = paddle.optimizer.Adagrad(args.base_lr)
            fleet.distributed_optimizer(optimizer, strategy).minimize(loss, self.startup)
        self.fetch = [loss, correct]
        self.program = loss.block.program
        self.fleet = fleet
        self.trainers = args.trainers
        # The same without updates: what remains is that the rows of a batch are sent.
        self.announcement = self.program.clone()
        block = self.announcement.global_block()
        for place in reversed(range(len(block.ops))):
            if block.ops[place].type == "adagrad":
                block._remove_op(place)

    def serve(self):
        """A server: returns when trainer 0 stops it."""
        with quiet():
            self.fleet.init_server()
            self.fleet.run_server()

    def start(self, values):
        """A trainer: the first one brings the values of the parameters ({name: array}), all
        others take what the servers hold by then."""
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
        """Leaves the servers, and stops them where that is asked."""
        with quiet():
            self.runtime._communicator.stop()
            if servers:
                self.runtime._worker.stop_server()
            self.runtime._worker.stop_worker()


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


# --- roles ----------------------------------------------------------------------------------------


def run_server(args):
    """Serves until trainer 0 has done its work. Returns 0; ends the process where a trainer or
    another server ends too early."""
    vocab_size = reader.get_vocab_size(args.vocab_path)
    # Paddle only logs that a port is in use and goes on as if it had served.
    listen(args.current_endpoint).close()
    # Paddle's server never lets another thread of its process run: this process only watches.
    watcher, child = os.getpid(), os.fork()
    if not child:
        end_with(watcher)
        Cluster(args, vocab_size).serve()
        leave(0)
    logger.info("%s on %s", process_name(args), args.current_endpoint)
    peers = []
    threading.Thread(target=lambda: peers.append(Peers.join(
        args.coordinator, process_name(args), None, args.trainers, None)), daemon=True).start()
    _, status = os.waitpid(child, 0)
    if status or not (peers and peers[0].ended.wait(5)):
        raise SetupError("Paddle's server has ended before the job was done")
    peers[0].bye()
    return 0


def meet(args, description):
    """Finds the servers and the other trainers. Raises SetupError where one does not come, or
    has other data or flags."""
    end = time.monotonic() + args.wait

    def left():
        return max(1, math.ceil(end - time.monotonic()))
    for endpoint in args.endpoints:
        sock = connect(endpoint, left())
        if sock is None:
            raise SetupError(f"the server {endpoint} cannot be reached within {args.wait} "
                                   "s: is it running, are these --endpoints right?")
        sock.close()
    if args.trainer_id:
        peers = Peers.join(args.coordinator, process_name(args), args.trainer_id, args.trainers,
                           left())
    else:
        names = [f"server {i}" for i in range(len(args.endpoints))]
        names += [f"trainer {i}" for i in range(1, args.trainers)]
        peers = Peers.host(args.coordinator, names, args.trainers, left())
    first, mine = peers.gather(description, seconds=left())[0], description
    for name in first:
        if first[name] != mine[name]:
            raise SetupError(f"trainer 0 has another {name} than trainer {args.trainer_id}: "
                                   f"{first[name]}, not {mine[name]}")
    return peers


def describe(args, dataset):
    """What must be the same on all trainers."""
    digest = zlib.crc32(np.ascontiguousarray(dataset.offsets), zlib.crc32(dataset.items))
    return {"train_dir": f"{len(dataset)} sessions, checksum {digest:08x}",
            "vocab_path": dataset.vocab_size,
            **{f"--{name}": getattr(args, name)
               for name in (*train.MODEL_FLAGS, *train.RUN_FLAGS, "epochs")}}


def run_trainer(args):
    """Trains on this trainer's share. Returns 0."""
    dataset = reader.construct_train_data(args.train_dir, args.vocab_path)
    if not dataset.num_steps(args.batch_size, args.trainers):
        raise SetupError(f"{len(dataset)} sessions are less than one step of "
                               f"{args.batch_size} on each of {args.trainers} trainers: use a "
                               "smaller --batch_size")
    model, values = None, {}
    if not args.trainer_id:
        utils.make_model_dir(args.model_dir)
        with dygraph():
            model, _ = train.build(args, dataset.item_clicks())
        # The initial values of a single process.
        values = {parameter.name: parameter.numpy() for parameter in model.parameters()}
    cluster = Cluster(args, dataset.vocab_size)
    peers = meet(args, describe(args, dataset))
    for turn in range(args.trainers):
        if turn == args.trainer_id:
            with time_limit(STEP_LIMIT, "registering with the servers"):
                cluster.start(values)
        peers.gather()
    logger.info("%d sessions, %d clicks, %d items, shared by %d trainers", len(dataset),
                len(dataset.items), dataset.vocab_size, args.trainers)
    watched = np.argsort(-dataset.item_clicks(), kind="stable")[:WATCHED_ROWS]
    initial = cluster.local(TABLE)[watched]
    table = train_epochs(args, dataset, model, cluster, peers)
    check_agreement(cluster.local(TABLE)[watched], table[watched], initial)
    stop(args, cluster, peers)
    return 0


def stop(args, cluster, peers):
    """Ends the job: first the trainers leave, then trainer 0 stops the servers."""
    with time_limit(STEP_LIMIT, "stopping the servers"):
        if args.trainer_id:
            cluster.stop(servers=False)
        peers.gather()
        peers.bye()
        if not args.trainer_id:
            cluster.stop(servers=True)


def train_epochs(args, dataset, model, cluster, peers):
    """Trains, and on trainer 0 saves into model and prints what train.py does. Returns the table
    as the servers hold it at the end."""
    total_time = 0.0
    _, negatives = train.build_objective(args, dataset)
    for epoch in range(1, args.epochs + 1):
        print(f"epoch_{epoch} start")
        begin = time.time()
        batches, num_steps = train.epoch_batches(dataset, args, epoch, negatives,
                                                 rank=args.trainer_id, world_size=args.trainers)
        seen = np.zeros(dataset.vocab_size, bool)
        result = train.train_epoch(cluster.step, note(batches, seen), num_steps, args.print_batch,
                                   epoch)
        results = np.array(peers.gather(result))
        cluster.send_rows(np.flatnonzero(seen))
        cluster.settle()
        peers.gather()
        sessions = results[:, 2].sum()
        cost, acc = results[:, 2] @ results[:, :2] / sessions
        seconds = time.time() - begin
        total_time += seconds
        print("epoch:%d num_steps:%d time_cost(s):%f" % (epoch, num_steps, total_time / epoch))
        print(f"epoch:{epoch} avg_cost:{cost:.6f} acc:{acc:.4f} "
              f"sessions/s:{sessions / seconds:.0f}", flush=True)
        table = None
        with time_limit(TABLE_LIMIT, "reading the parameters from the servers"):
            if not args.trainer_id or epoch == args.epochs:
                table = cluster.served_table()
            values = {**cluster.served_dense(), TABLE: table}
        peers.gather()  # from here on others may change them
        if not args.trainer_id:
            if epoch == 1:
                utils.remove_checkpoints(args.model_dir)
            path = save(args, model, values, epoch,
                        {"avg_cost": cost, "acc": acc, "seconds": seconds})
            print(f"model saved in {path}", flush=True)
    if args.enable_ce and not args.trainer_id:
        train.print_kpis(args, total_time / args.epochs, acc)
    return table


def note(batches, seen):
    """Passes batches on and marks in seen, <bool>[V], the items that they hold."""
    for batch in batches:
        seen[batch.ids()] = True
        yield batch


def save(args, model, values, epoch, metrics):
    """Writes a checkpoint as train.py does, but for the optimizer's state: each trainer has its
    own, and "trainers" in the metadata says so. Returns its path.

    values: {name: array} of all parameters
    """
    with dygraph(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer's state is empty
        for parameter in model.parameters():
            parameter.set_value(values[parameter.name])
        return train.save(args, model, {}, epoch, metrics, trainers=args.trainers)


def check_agreement(local, served, initial):
    """Raises SetupError where a trainer and the servers have gone different ways. They never
    agree exactly, see ROWS_LEFT.

    local, served, initial: <float32>[rows, dim], the same rows of the table
    """
    apart, moved = np.linalg.norm(local - served), np.linalg.norm(served - initial)
    if not apart <= 0.2 * moved:
        raise SetupError(f"this trainer's table is {apart:.3g} apart from the servers', "
                               f"which moved by {moved:.3g}: the trainers did not exchange it")
    logger.info("the table is %.3g apart from the servers', which moved by %.3g", apart, moved)


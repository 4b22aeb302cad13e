"""Many devices: a process each, and one exchange of gradients a step.

Paddle's DataParallel gathers the rows of a sparse gradient from all ranks with their ids, in
messages of varying size, beside those of the dense ones; on two CPU cores that took longer than it
saved. Here nothing needs to be asked: the order of the sessions and the negatives depend on the
seed alone, so that every rank knows which rows the batches of all ranks touch. Each adds its
gradients into one buffer, dense parameters first, then those rows, and one all-reduce sums it.

A worker finds its rank in the environment variables that paddle.distributed.launch sets too: the
same script runs under that launcher, over several machines.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import paddle
import paddle.distributed as dist

STOP_SECONDS = 5  # what a worker gets to end after TERM, before KILL


def rank_and_size():
    """(rank, number of ranks) of this process, (0, 1) where it is not one of several."""
    return (int(os.environ.get("PADDLE_TRAINER_ID", 0)),
            int(os.environ.get("PADDLE_TRAINERS_NUM", 1)))


def connect(use_cuda):
    """Joins the other ranks. Waits until all are there."""
    os.environ.setdefault("PADDLE_DISTRI_BACKEND", "nccl" if use_cuda else "gloo")
    dist.init_parallel_env()


def wait_for_first(event):
    """Rank 0 reports an event, all others wait for it. Through the store: in a collective they
    would be given up for lost after half a minute, and saving a large table takes longer."""
    store = paddle.base.core.create_or_get_global_tcp_store()
    if dist.get_rank() == 0:
        store.set(event, b"1")
    else:
        store.wait(event)


class GradientExchange:
    """Trains a model on the batches of all ranks as one process would on all of them together.

    model: SequenceSemanticRetrieval, with the same parameters on every rank
    """

    def __init__(self, model):
        self.embedding = model.embedding
        self.dense = [p for p in model.parameters() if p is not model.embedding.weight]
        self.seconds = 0.0  # spent in communication, waiting for slower ranks included

    def look_up(self, ids):
        """Rows of the table, cut off from it: their gradient stays with them.

        ids: numpy <int64>[n] -> <float32>[n, dim]
        """
        with paddle.no_grad():
            rows = self.embedding(paddle.to_tensor(ids))
        rows.stop_gradient = False
        return rows

    def reduce(self, rows, ids, touched, values):
        """Puts the mean gradient over all ranks into every parameter, sparse for the table.

        rows: what look_up returned for ids, after backward()
        touched: numpy <int64>[m], as in a Batch
        values: scalar tensors; returns the mean of each over all ranks, <float32>[len(values)]
        """
        place = paddle.to_tensor(np.searchsorted(touched, ids)[:, None])
        zeros = paddle.zeros([len(touched), rows.shape[1]])
        parts = [p.grad for p in self.dense] + [paddle.scatter_nd_add(zeros, place, rows.grad)]
        parts += [paddle.reshape(value, [1]) for value in values]
        buffer = paddle.concat([paddle.flatten(part) for part in parts])
        begin = time.perf_counter()
        dist.all_reduce(buffer)
        self.seconds += time.perf_counter() - begin
        buffer *= 1.0 / dist.get_world_size()
        sizes = [int(np.prod(p.shape)) for p in self.dense]
        *gradients, table, means = paddle.split(buffer, sizes + [-1, len(values)])
        for parameter, gradient in zip(self.dense, gradients):
            parameter.grad = paddle.reshape(gradient, parameter.shape)
        # Backward through a look-up is what makes a sparse gradient of rows and their ids.
        paddle.autograd.backward([self.embedding(paddle.to_tensor(touched))],
                                 [paddle.reshape(table, zeros.shape)])
        return means


# --- processes on this machine --------------------------------------------------------------------


def start_workers(num_workers, use_cuda):
    """Runs this very command once per device and waits. If one ends badly, or this process is
    told to end, the others are stopped.

    returns the exit code: 0, or 1 if a worker failed; 143 or 130 after TERM or INT
    """
    endpoints = [f"127.0.0.1:{port}" for port in _free_ports(num_workers)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(num_workers)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_exit)
    workers = []
    try:
        for rank in range(num_workers):
            environment = {
                **os.environ,
                "PADDLE_TRAINER_ID": str(rank),
                "PADDLE_TRAINERS_NUM": str(num_workers),
                "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
                "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
                "PADDLE_MASTER": endpoints[0],
                # gloo looks the host's own name up otherwise, which not every host can
                "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
                "GLOG_minloglevel": os.environ.get("GLOG_minloglevel", "2"),
            }
            if use_cuda:  # each sees one GPU, its own, as number 0
                environment.update(CUDA_VISIBLE_DEVICES=gpus[rank], FLAGS_selected_gpus="0")
            workers.append(subprocess.Popen([sys.executable, *sys.argv], env=environment,
                                            preexec_fn=_in_worker()))
        return _watch(workers)
    finally:
        _stop(workers)


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _in_worker():
    """What a child runs before it becomes the worker."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError, TypeError):
        prctl = None  # not Linux
    set_parent_death_signal = 1

    def run():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the parent to handle
        if prctl:  # not even a parent that is killed leaves the worker behind
            prctl(set_parent_death_signal, signal.SIGKILL)
    return run


def _raise_exit(number, _frame):
    _say(f"stopped by {signal.Signals(number).name}")
    raise SystemExit(128 + number)


def _say(text):
    print(f"{os.path.basename(sys.argv[0])}: error: {text}", file=sys.stderr, flush=True)


def _watch(workers):
    """Waits for all workers, or for the first that fails."""
    while True:
        codes = [worker.poll() for worker in workers]
        for rank, code in enumerate(codes):
            if code:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                _say(f"worker {rank} of {len(workers)} {how}; the others are stopped")
                return 1
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


def _stop(workers):
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        running = [worker for worker in workers if worker.poll() is None]
        for worker in running:
            worker.send_signal(number)
        for worker in running:
            try:
                worker.wait(seconds)
            except subprocess.TimeoutExpired:
                pass

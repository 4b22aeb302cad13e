"""Processes on this machine, one a device, that end together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

STOP_SECONDS = 5  # what a worker gets to end after TERM, before KILL
LOCAL = "SSR_LOCAL_WORKERS"  # descriptors for exchange.SharedMemoryGroup: memory, then sockets
STARTED = "SSR_STARTED"  # set in the processes that start_workers starts


def rank_and_size():
    """(rank, number of ranks) of this process, (0, 1) where it is not one of several."""
    return (int(os.environ.get("PADDLE_TRAINER_ID", 0)),
            int(os.environ.get("PADDLE_TRAINERS_NUM", 1)))


def was_started():
    """Whether this process is one that start_workers has started."""
    return STARTED in os.environ


def start_workers(num_workers, use_cuda):
    """Runs this very command once per device and waits. If one fails, or this process is told to
    end, the others are stopped.

    returns the exit code: 0, or 1 if a worker failed. Ends with 143 after TERM; raises
    KeyboardInterrupt after Ctrl-C.
    """
    signal.signal(signal.SIGTERM, _raise_exit)
    links = _gpu_links(num_workers) if use_cuda else _shared_memory_links(num_workers)
    workers = []
    try:
        for rank, (environment, descriptors) in enumerate(links):
            environment = {**os.environ, **environment, "PADDLE_TRAINER_ID": str(rank),
                           "PADDLE_TRAINERS_NUM": str(num_workers), STARTED: "1"}
            with _interrupts_held_back():
                workers.append(subprocess.Popen([sys.executable, *sys.argv], env=environment,
                                                pass_fds=descriptors, preexec_fn=_in_worker()))
        for descriptor in {number for _, descriptors in links for number in descriptors}:
            os.close(descriptor)  # who waits for a worker that is gone must find the other end shut
        return _watch(workers)
    finally:
        _stop(workers)


def _shared_memory_links(num_workers):
    """For each worker the environment that SharedMemoryGroup looks for, and the descriptors."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("gradients")
    else:  # not Linux
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    pairs = [socket.socketpair() for _ in range(1, num_workers)]
    ends = [[pair[0].detach() for pair in pairs], *([pair[1].detach()] for pair in pairs)]
    return [({LOCAL: ",".join(map(str, [memory, *own]))}, [memory, *own]) for own in ends]


def _gpu_links(num_workers):
    """For each worker the environment that Paddle looks for, and no descriptors."""
    endpoints = [f"127.0.0.1:{port}" for port in _free_ports(num_workers)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(num_workers)]
    return [({"PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
              "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
              "PADDLE_MASTER": endpoints[0],
              # Each sees one GPU, its own, as number 0.
              "CUDA_VISIBLE_DEVICES": gpus[rank],
              "FLAGS_selected_gpus": "0"}, []) for rank in range(num_workers)]


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextlib.contextmanager
def _interrupts_held_back():
    """Ctrl-C comes after the block: a child that is not yet the worker would take it for its
    own."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _in_worker():
    """What a child runs before it becomes the worker."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError, TypeError):
        prctl = None  # not Linux
    set_parent_death_signal = 1

    def run():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the parent to handle
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        if prctl:  # not even a parent that is killed leaves the worker behind
            prctl(set_parent_death_signal, signal.SIGKILL)
    return run


def _raise_exit(number, _frame):
    _say("stopped by SIGTERM")
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
    # A second Ctrl-C does not leave workers behind.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        running = [worker for worker in workers if worker.poll() is None]
        for worker in running:
            worker.send_signal(number)
        for worker in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(seconds)
    signal.signal(signal.SIGINT, before)

"""Many devices: a process each, and one exchange of gradients a step.

Paddle's DataParallel gathers the rows of a sparse gradient from all ranks with their ids, in
messages of varying size, beside those of the dense ones; on two CPU cores that took longer than it
saved. Here nothing needs to be asked: the order of the sessions and the negatives depend on the
seed alone, so that every rank knows which rows the batches of all ranks touch. Each contributes its
gradients, of the dense parameters and of those rows, and takes the sum over all ranks: through
shared memory between CPU processes of one machine, else through one all-reduce of gloo or NCCL.

A worker finds its rank in the environment variables that paddle.distributed.launch sets too: the
same script runs under that launcher, over several machines.
"""

from __future__ import annotations

import mmap
import os
import socket
import time

import numpy as np

from ssr.kernels.memory import as_array
from ssr.kernels.processes import LOCAL, STOP_SECONDS, rank_and_size
from ssr.runtime import paddle


def connect(use_cuda):
    """Joins the other ranks and returns the group of all. Waits until they are there."""
    if LOCAL in os.environ:
        return SharedMemoryGroup(*map(int, os.environ[LOCAL].split(",")))
    os.environ.setdefault("PADDLE_DISTRI_BACKEND", "nccl" if use_cuda else "gloo")
    paddle.distributed.init_parallel_env()
    return PaddleGroup()


class PaddleGroup:
    """Ranks that talk through gloo or NCCL."""

    def sum(self, parts):
        """The sum over all ranks of each of some tensors, which have the same shapes on all. May
        change them."""
        buffer = paddle.concat([paddle.flatten(part) for part in parts])
        paddle.distributed.all_reduce(buffer)
        sums = paddle.split(buffer, [int(np.prod(part.shape)) for part in parts])
        return [paddle.reshape(total, part.shape) for total, part in zip(sums, parts)]

    def wait_for_first(self, event):
        """Rank 0 reports an event, all others wait for it. Through the store: in a collective they
        would be given up for lost after half a minute, and saving a large table takes longer."""
        store = paddle.base.core.create_or_get_global_tcp_store()
        if paddle.distributed.get_rank() == 0:
            store.set(event, b"1")
        else:
            store.wait(event)


class SharedMemoryGroup:
    """CPU processes of one machine: each writes its numbers where all see them, and adds up.

    A rank has two slots and uses them in turn: when it comes back to one, all have met once more
    in between, and so are done reading it. They meet over sockets, with rank 0 in the middle,
    which also notice when one is gone.

    memory, links: file descriptors that start_workers made: memory that all share, and a socket
    to rank 0, or from rank 0 to each of the others
    """

    def __init__(self, memory, *links):
        self.rank, self.size = rank_and_size()
        self.memory = memory
        self.links = [socket.socket(fileno=link) for link in links]
        self.slots = np.empty((2, self.size, 0), np.float32)
        self.turn = 0
        self._meet()

    def sum(self, parts):
        """As PaddleGroup.sum."""
        parts = [part if part.is_contiguous() else part.contiguous() for part in parts]
        arrays = [as_array(part).reshape(-1) for part in parts]
        ends = np.cumsum([array.size for array in arrays])
        if ends[-1] > self.slots.shape[2]:
            self._grow(ends[-1])
        places = [slice(end - array.size, end) for array, end in zip(arrays, ends)]
        slots = self.slots[self.turn]
        self.turn ^= 1
        for array, place in zip(arrays, places):
            slots[self.rank, place] = array
        self._meet()
        for array, place in zip(arrays, places):
            np.add(slots[0, place], slots[1, place], out=array)
            for other in slots[2:, place]:
                array += other
        return parts

    def wait_for_first(self, event):
        """All wait for all, and so for rank 0."""
        self._meet()

    def _grow(self, length):
        """Larger slots. All ranks need them in the same step, since it is the same for all."""
        self._meet()  # nobody reads the old ones any more
        length = int(1.5 * length)
        shape = (2, self.size, length)
        os.ftruncate(self.memory, 4 * int(np.prod(shape)))
        self.slots = np.frombuffer(mmap.mmap(self.memory, 0), np.float32).reshape(shape)
        self._meet()  # nobody maps less than all of it

    def _meet(self):
        """Returns when all ranks have called it."""
        try:
            if self.rank:
                self.links[0].send(b".")
            heard = [link.recv(1) for link in self.links]
            if not self.rank:
                for link in self.links:
                    link.send(b".")
        except ConnectionError:
            heard = [b""]
        if not all(heard):  # a worker is gone
            time.sleep(STOP_SECONDS)  # the parent says which, and stops this one
            raise SystemExit(1)


class GradientExchange:
    """Trains a model on the batches of all ranks as one process would on all of them together.

    model: SequenceSemanticRetrieval, with the same parameters on every rank
    group: what connect() returned
    """

    def __init__(self, model, group):
        self.group = group
        _, self.size = rank_and_size()
        self.model = model
        self.dense = [p for p in model.parameters() if p is not model.embedding.weight]
        self.looked_up = self.rows = None  # of a step; rows: the copy that the model works with
        self.seconds = 0.0  # spent in the exchange, waiting for slower ranks included

    def look_up(self, rows):
        """As SequenceSemanticRetrieval.look_up, with a gradient that stays with the result. rows:
        of a reader.Batch, the same on every rank"""
        self.looked_up = self.model.look_up(rows)
        self.rows = self.looked_up.detach()
        self.rows.stop_gradient = False
        return self.rows

    def reduce(self, values):
        """Puts the sum over all ranks of the gradients into every parameter, sparse for the table.
        After backward() of what was made of look_up.

        values: scalar tensors; returns the sum of each over all ranks
        """
        begin = time.perf_counter()
        table, *sums = self.group.sum([self.rows.grad, *(p.grad for p in self.dense), *values])
        self.seconds += time.perf_counter() - begin
        for parameter, gradient in zip(self.dense, sums):
            parameter.grad = gradient
        # Backward through the look-up is what makes a sparse gradient of rows and their ids.
        paddle.autograd.backward([self.looked_up], [table])
        self.looked_up = self.rows = None
        return sums[len(self.dense):]

"""Tensors of a CPU and arrays of numpy over the same memory: Paddle's own conversions copy."""

from __future__ import annotations

import numpy as np

from ssr.runtime import paddle


class _Memory:
    """What numpy asks for the memory of a tensor, which lives as long as an array over it does."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.__array_interface__ = {"version": 3, "data": (tensor.data_ptr(), False),
                                    "shape": tuple(tensor.shape), "typestr": "<f4"}


def as_array(tensor):
    """The numbers of a tensor on a CPU, <float32>[..], not a copy of them: what is written into the
    array is in the tensor."""
    # Detached: an operation that keeps the array of its result would keep itself alive.
    tensor = tensor.detach()
    # Paddle 3 makes slices that share the memory of the whole.
    return np.asarray(_Memory(tensor if tensor.is_contiguous() else tensor.contiguous()))


def host_array(tensor):
    """The numbers of a tensor of any device and type, numpy: of <float32> on a CPU not a copy of
    them, as as_array."""
    if tensor.place.is_cpu_place() and tensor.dtype == paddle.float32:
        return as_array(tensor)
    return tensor.numpy()


def new_tensor(*shape):
    """A tensor <float32>[shape] on a CPU, of any numbers, and the array over its memory."""
    tensor = paddle.empty(shape)
    return tensor, as_array(tensor)

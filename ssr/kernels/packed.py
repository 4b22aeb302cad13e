"""The GRU over sequences that lie end to end, in numpy: a step works on the sequences that still
run, and on no padding. For those that train it (gru.py) and those that only ask it (frozen.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ONE = np.float32(1)  # numpy takes longer to add an int


def time_major(lengths):
    """Where the rows of sequences that lie end to end go when step t of all of them comes first.

    Sequences are taken longest first, so that those which still run at step t are the first
    sizes[t] ones: a step is computed on a contiguous block, and none on padding.

    lengths: <int64>[batch], each at least 1
    returns rows: <int64>[clicks], the row to take for each place of the new order;
    sizes: list of ints, how many sequences are longer than t
    """
    if len(lengths) == 1:  # as a service asks
        return np.arange(lengths[0]), [1] * int(lengths[0])
    longest_first = np.argsort(-lengths, kind="stable")
    sizes = len(lengths) - np.cumsum(np.bincount(lengths))[:-1]
    starts = (np.cumsum(lengths) - lengths)[longest_first]
    step = np.repeat(np.arange(len(sizes)), sizes)
    slot = np.arange(len(step)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return starts[slot] + step, sizes.tolist()


class GruStates(NamedTuple):
    """What packed_gru computes, by the names of the equations in gru.PackedGRU; rows in the order
    of time_major.

    x: <float32>[clicks, dim]; gates: r and z, <float32>[clicks, 2 hidden]
    candidate: c; recurrent: h W_hc + b_hc; before: h; state: h'; top: the maximum of the states of
    a sequence up to this one: <float32>[clicks, hidden] each
    rows, sizes: of time_major
    """

    x: np.ndarray
    gates: np.ndarray
    candidate: np.ndarray
    recurrent: np.ndarray
    before: np.ndarray
    state: np.ndarray
    top: np.ndarray
    rows: np.ndarray
    sizes: list


def packed_gru(x, w_ih_t, w_hh_t, b_ih, b_hh, lengths):
    """The states of a GRU (gru.PackedGRU has the equations), and what its gradients need.

    x: <float32>[clicks, dim], w_ih_t: [dim, 3 hidden], w_hh_t: [hidden, 3 hidden], b_ih, b_hh:
    [3 hidden], all of numpy; lengths: <int64>[batch]
    returns GruStates
    """
    rows, sizes = time_major(lengths)
    hidden = len(w_hh_t)
    x = x[rows]
    bias = b_ih.copy()
    bias[:2 * hidden] += b_hh[:2 * hidden]
    gates = x @ w_ih_t
    gates += bias
    candidate = gates[:, 2 * hidden:]  # becomes c in place
    gates = gates[:, :2 * hidden]  # becomes r, z in place: 1 / (1 + exp(-x))
    np.negative(gates, out=gates)
    recurrent = np.empty_like(candidate)
    recurrent[:] = b_hh[2 * hidden:]
    before = np.zeros_like(candidate)
    state, top = np.empty_like(candidate), np.empty_like(candidate)
    start = previous = 0
    # exp(-x) may overflow to infinity, whose reciprocal is the right 0.
    with np.errstate(over="ignore"):
        for n in sizes:
            now, last = slice(start, start + n), slice(previous, previous + n)
            rz, c, h = gates[now], candidate[now], before[now]
            if start:
                h[:] = state[last]
                product = h @ w_hh_t
                rz -= product[:, :2 * hidden]
                recurrent[now] += product[:, 2 * hidden:]
            np.exp(rz, out=rz)
            rz += ONE
            np.reciprocal(rz, out=rz)
            c += rz[:, :hidden] * recurrent[now]
            np.tanh(c, out=c)
            new = np.subtract(h, c, out=state[now])
            new *= rz[:, hidden:]
            new += c
            np.maximum(new, top[last] if start else new, out=top[now])
            start, previous = start + n, start
    return GruStates(x, gates, candidate, recurrent, before, state, top, rows, sizes)


def scatter(values, rows):
    """The same rows, each in the place that it was taken from: out[rows] = values."""
    out = np.empty_like(values)
    out[rows] = values
    return out

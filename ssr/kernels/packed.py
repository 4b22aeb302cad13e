"""The GRU over sequences that lie end to end, in numpy: a step works on the sequences that still
run, and on no padding. For those that train it (gru.py) and those that only ask it (frozen.py).
"""

from __future__ import annotations

import numpy as np


def time_major(lengths):
    """Where the rows of sequences that lie end to end go when step t of all of them comes first.

    Sequences are taken longest first, so that those which still run at step t are the first
    sizes[t] ones: a step is computed on a contiguous block, and none on padding.

    lengths: <int64>[batch], each at least 1
    returns rows: <int64>[clicks], the row to take for each place of the new order;
    sizes: list of ints, how many sequences are longer than t
    """
    longest_first = np.argsort(-lengths, kind="stable")
    sizes = len(lengths) - np.cumsum(np.bincount(lengths))[:-1]
    starts = (np.cumsum(lengths) - lengths)[longest_first]
    step = np.repeat(np.arange(len(sizes)), sizes)
    slot = np.arange(len(step)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return starts[slot] + step, sizes.tolist()


def packed_gru(x, w_ih, w_hh_t, b_ih, b_hh, lengths):
    """The states of a GRU (gru.PackedGRU has the equations), and what its gradients need.

    x: <float32>[clicks, dim], w_ih: [3 hidden, dim], w_hh_t: [hidden, 3 hidden], b_ih, b_hh:
    [3 hidden], all of numpy; lengths: <int64>[batch]
    returns the state after each click and the maximum of the states of its sequence up to it,
    numpy <float32>[clicks, hidden] each, in the order of x; then the intermediate values
    """
    rows, sizes = time_major(lengths)
    hidden = len(w_hh_t)
    x = x[rows]
    gates = x @ w_ih.T
    gates += b_ih
    gates[:, :2 * hidden] += b_hh[:2 * hidden]
    candidate = gates[:, 2 * hidden:]  # becomes c in place
    gates = gates[:, :2 * hidden]  # becomes r, z in place
    recurrent = np.empty_like(candidate)  # h W_hc + b_hc
    before = np.zeros_like(candidate)  # h of the step before
    state = np.empty_like(candidate)
    top = np.empty_like(candidate)
    start, previous = 0, None
    for n in sizes:
        now = slice(start, start + n)
        rz, c, h = gates[now], candidate[now], before[now]
        if previous is None:
            recurrent[now] = b_hh[2 * hidden:]
        else:
            h[:] = state[previous:previous + n]
            product = h @ w_hh_t
            rz += product[:, :2 * hidden]
            np.add(product[:, 2 * hidden:], b_hh[2 * hidden:], out=recurrent[now])
        _sigmoid(rz)
        c += rz[:, :hidden] * recurrent[now]
        np.tanh(c, out=c)
        new = np.subtract(h, c, out=state[now])
        new *= rz[:, hidden:]
        new += c
        if previous is None:
            top[now] = new
        else:
            np.maximum(new, top[previous:previous + n], out=top[now])
        start, previous = start + n, start
    return (scatter(state, rows), scatter(top, rows),
            (x, gates, candidate, recurrent, before, state, top, rows, sizes))


def _sigmoid(x):
    """In place. exp(-x) may overflow to infinity, whose reciprocal is the right 0."""
    with np.errstate(over="ignore"):
        np.exp(np.negative(x, out=x), out=x)
    x += 1
    np.reciprocal(x, out=x)


def scatter(values, rows):
    """The same rows, each in the place that it was taken from: out[rows] = values."""
    out = np.empty_like(values)
    out[rows] = values
    return out

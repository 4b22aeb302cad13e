"""The GRU of the user tower over sequences that lie end to end, and its running maximum.

On a CPU it is computed packed: a step works on the sequences that still run, and on no padding
(PackedGRU). On a GPU it is Paddle's own, fused one, over padded sequences. Both are the same
function of the same parameters.
"""

from __future__ import annotations

import numpy as np

from ssr.kernels.memory import as_array, new_tensor
from ssr.kernels.packed import packed_gru
from ssr.kernels.ragged import on_cpu, take
from ssr.runtime import paddle

PyLayer = paddle.autograd.PyLayer


def gru_tops(gru, emb, lengths, and_states=False):
    """The maximum of the states of a sequence up to each click.

    gru: paddle.nn.GRU of one layer; emb: <float32>[clicks, dim], sequences end to end
    lengths: numpy <int64>[batch], each at least 1
    and_states: beside it the state after the click
    returns <float32>[clicks, hidden], or [clicks, 2 * hidden], in the order of emb
    """
    if on_cpu(emb):
        return PackedGRU.apply(emb, gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0,
                               gru.bias_hh_l0, lengths, and_states)
    return padded_gru(gru, emb, lengths, and_states)


def padded_gru(gru, emb, lengths, and_states=False):
    """As gru_tops, by Paddle's operator."""
    batch, time = len(lengths), int(lengths.max())
    starts = np.cumsum(lengths) - lengths
    # Padding repeats the last click; it comes after all that is looked at.
    step = np.minimum(np.arange(time), lengths[:, None] - 1)
    padded = take(emb, (starts[:, None] + step).ravel())
    states, _ = gru(padded.reshape([batch, time, -1]), sequence_length=paddle.to_tensor(lengths))
    pooled, _ = paddle.cummax(states, axis=1)
    if and_states:
        pooled = paddle.concat([pooled, states], axis=2)
    valid = np.flatnonzero(np.arange(time) < lengths[:, None])
    return take(pooled.reshape([batch * time, -1]), valid)


class PackedGRU(PyLayer):
    """The equations of paddle.nn.GRU on a CPU, without padding, with the running maximum.

        r, z = sigmoid(x W_ir + b_ir + h W_hr + b_hr), likewise with z
        c    = tanh(x W_ic + b_ic + r * (h W_hc + b_hc))
        h'   = (1 - z) * c + z * h

    Written in numpy, since the work of a step is a few rows and what costs is the number of
    operations and of temporaries: it takes a quarter to a seventh of the time of Paddle 2.6.2's
    operator where lengths differ (benchmarks/bench_gru.py). The gradients of the weights are one
    product over all steps.
    """

    @staticmethod
    def forward(ctx, x, w_ih, w_hh, b_ih, b_hh, lengths, and_states):
        """x: <float32>[clicks, dim], w_ih: [3 hidden, dim], w_hh: [3 hidden, hidden],
        b_ih, b_hh: [3 hidden] (reset, update, candidate); the rest as of gru_tops."""
        x, w_ih, w_hh, b_ih, b_hh = map(as_array, (x, w_ih, w_hh, b_ih, b_hh))
        states = packed_gru(x, w_ih.T, np.ascontiguousarray(w_hh.T), b_ih, b_hh, lengths)
        ctx.saved = w_ih, w_hh, states
        hidden = w_hh.shape[1]
        result, pooled = new_tensor(len(x), (1 + and_states) * hidden)
        pooled[states.rows, :hidden] = states.top
        if and_states:
            pooled[states.rows, hidden:] = states.state
        return result

    @staticmethod
    def backward(ctx, d_pooled):
        w_ih, w_hh, (x, gates, c, recurrent, before, state, top, rows, sizes) = ctx.saved
        hidden = w_hh.shape[1]
        r, z = gates[:, :hidden], gates[:, hidden:]
        d_pooled = as_array(d_pooled)
        d_h = _running_max_gradient(d_pooled[:, :hidden][rows], state, top, sizes)
        if d_pooled.shape[1] > hidden:
            d_h += d_pooled[:, hidden:][rows]
        # What does not depend on the gradient is computed for all steps at once.
        by_z = (before - c) * z
        by_z *= 1 - z
        by_c = 1 - c * c
        by_c *= 1 - z
        by_r = recurrent * r
        by_r *= 1 - r
        d_x_gates = np.empty((len(x), 3 * hidden), np.float32)
        d_h_gates = np.empty_like(d_x_gates)
        end = len(x)
        for step in range(len(sizes) - 1, -1, -1):
            n = sizes[step]
            now = slice(end - n, end)
            d, d_c, d_gates = d_h[now], d_x_gates[now, 2 * hidden:], d_h_gates[now]
            np.multiply(d, by_c[now], out=d_c)
            np.multiply(d_c, by_r[now], out=d_gates[:, :hidden])
            np.multiply(d, by_z[now], out=d_gates[:, hidden:2 * hidden])
            np.multiply(d_c, r[now], out=d_gates[:, 2 * hidden:])
            end -= n
            if step:
                d_before = d_gates @ w_hh
                d_before += d * z[now]
                previous = end - sizes[step - 1]
                d_h[previous:previous + n] += d_before
        d_x_gates[:, :2 * hidden] = d_h_gates[:, :2 * hidden]
        gradients, (d_x, d_w_ih, d_w_hh, d_b_ih, d_b_hh) = zip(*(new_tensor(*shape) for shape in (
            x.shape, w_ih.shape, w_hh.shape, [3 * hidden], [3 * hidden])))
        d_x[rows] = d_x_gates @ w_ih
        np.matmul(d_x_gates.T, x, out=d_w_ih)
        first = sizes[0]  # rows, before which there is nothing
        np.matmul(d_h_gates[first:].T, before[first:], out=d_w_hh)
        d_x_gates.sum(axis=0, out=d_b_ih)
        d_h_gates.sum(axis=0, out=d_b_hh)
        return gradients


def _running_max_gradient(d_top, state, top, sizes):
    """Each maximum passes its gradient to the step that reached it first."""
    start = len(state)
    for step in range(len(sizes) - 1, 0, -1):
        n, start = sizes[step], start - sizes[step]
        previous = start - sizes[step - 1]
        older = top[previous:previous + n] >= state[start:start + n]
        d_top[previous:previous + n] += d_top[start:start + n] * older
        d_top[start:start + n] *= ~older
    return d_top

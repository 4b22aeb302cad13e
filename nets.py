"""Sequence Semantic Retrieval: two towers over one embedding table.

    user:  clicks -> table ``emb.item`` -> GrnnEncoder (GRU, max over time) -> fc ``user.w``
    item:  tokens -> table ``emb.item`` -> BowEncoder (sum)                 -> fc ``item.w``
    score: the cosine of the two

Neither tower sees the other. That is what makes items indexable, and what lets a fresh item get
its vector at the moment it is published. The sequences of a batch come end to end, with the
length of each, as the reader makes them; nothing is padded where that can be avoided.

Sources: Song, Elkahky and He, "Multi-Rate Deep Learning for Temporal Recommendation", SIGIR 2016
(two towers over a session); Hidasi et al., "Session-based Recommendations with Recurrent Neural
Networks", ICLR 2016 (the GRU over clicks); Cho et al., 2014 (the GRU).
"""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer


def _xavier(name):
    """Xavier uniform, as fluid had for every weight, the table included (fan_in V, fan_out D).
    Paddle's own default for a GRU costs four points of recall."""
    return paddle.ParamAttr(name=name, initializer=nn.initializer.XavierUniform())


def _zero(name):
    return paddle.ParamAttr(name=name, initializer=nn.initializer.Constant(0.0))


def unit(x):
    """Rows scaled to length 1: the inner product of two of them is their cosine.

    x: <float32>[n, dim] -> <float32>[n, dim]
    """
    return x * paddle.rsqrt(paddle.sum(x * x, axis=-1, keepdim=True) + 1e-12)


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
    """The forward pass of PackedGRU, and what its gradients need.

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
    return (_scatter(state, rows), _scatter(top, rows),
            (x, gates, candidate, recurrent, before, state, top, rows, sizes))


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
    def forward(ctx, x, w_ih, w_hh, b_ih, b_hh, lengths):
        """x: <float32>[clicks, dim], w_ih: [3 hidden, dim], w_hh: [3 hidden, hidden],
        b_ih, b_hh: [3 hidden] (reset, update, candidate), lengths: numpy <int64>[batch]
        returns <float32>[clicks, hidden] twice: the state after each click, and the maximum of
        the states of its sequence up to it."""
        x, w_ih, w_hh, b_ih, b_hh = (t.numpy() for t in (x, w_ih, w_hh, b_ih, b_hh))
        state, top, between = packed_gru(x, w_ih, np.ascontiguousarray(w_hh.T), b_ih, b_hh,
                                         lengths)
        ctx.saved = w_ih, w_hh, between
        ctx.set_materialize_grads(False)
        return paddle.to_tensor(state), paddle.to_tensor(top)

    @staticmethod
    def backward(ctx, d_state, d_top):
        w_ih, w_hh, (x, gates, c, recurrent, before, state, top, rows, sizes) = ctx.saved
        hidden = w_hh.shape[1]
        r, z = gates[:, :hidden], gates[:, hidden:]
        d_h = np.zeros_like(c) if d_state is None else d_state.numpy()[rows]
        if d_top is not None:
            d_h += _running_max_gradient(d_top.numpy()[rows], state, top, sizes)
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
        gradients = (_scatter(d_x_gates @ w_ih, rows), d_x_gates.T @ x, d_h_gates.T @ before,
                     d_x_gates.sum(0), d_h_gates.sum(0))
        return tuple(map(paddle.to_tensor, gradients))


def _sigmoid(x):
    """In place. exp(-x) may overflow to infinity, whose reciprocal is the right 0."""
    with np.errstate(over="ignore"):
        np.exp(np.negative(x, out=x), out=x)
    x += 1
    np.reciprocal(x, out=x)


def _scatter(values, rows):
    out = np.empty_like(values)
    out[rows] = values
    return out


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


class BowEncoder(nn.Layer):
    """Bag of words: the sum over a sequence."""

    def forward(self, emb, lengths, every_prefix=False):
        """emb: <float32>[words, dim], sequences end to end; lengths: numpy <int64>[batch]
        returns <float32>[batch, dim], or [words, dim] for the encoding of every prefix."""
        segments = paddle.to_tensor(np.repeat(np.arange(len(lengths)), lengths))
        if not every_prefix:
            return paddle.geometric.segment_sum(emb, segments)
        # A running sum over all sequences, less what it was where each began; in double
        # precision, so that a sequence is the same to the last digit in any company.
        total = paddle.cumsum(emb.astype("float64"), axis=0)
        total = paddle.concat([paddle.zeros_like(total[:1]), total])
        begin = paddle.gather(total, paddle.to_tensor(np.cumsum(lengths) - lengths))
        return (total[1:] - paddle.gather(begin, segments)).astype("float32")

    def padded(self, emb, lengths):
        """The same over padded sequences, in a static graph as well.

        emb: <float32>[batch, time, dim]; lengths: <int64>[batch] -> <float32>[batch, dim]"""
        valid = F.sequence_mask(lengths, paddle.shape(emb)[1], "float32")
        return paddle.sum(emb * valid.unsqueeze(-1), axis=1)


class GrnnEncoder(nn.Layer):
    """A GRU over the clicks, then the maximum over time.

    The maximum up to step t is exactly the encoding of the prefix that ends at t: one pass gives
    every prefix of a session. On a CPU the GRU is PackedGRU; on a GPU it is Paddle's own, fused
    one, over padded sequences. Both compute the same function of the same parameters.
    """

    def __init__(self, input_size, hidden_size, param_name="grnn"):
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size,
                          weight_ih_attr=_xavier(f"{param_name}.w_ih"),
                          weight_hh_attr=_xavier(f"{param_name}.w_hh"),
                          bias_ih_attr=_zero(f"{param_name}.b_ih"),
                          bias_hh_attr=_zero(f"{param_name}.b_hh"))
        self.frozen = None

    def freeze(self):
        """Keeps the weights as packed_gru takes them: fetching them costs as much as the GRU of a
        single session. From here on the parameters must not change."""
        gru = self.gru
        w_ih, w_hh, b_ih, b_hh = (t.numpy() for t in (
            gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0))
        self.frozen = w_ih, np.ascontiguousarray(w_hh.T), b_ih, b_hh

    def forward(self, emb, lengths, every_prefix=False):
        """emb: <float32>[clicks, dim], sequences end to end; lengths: numpy <int64>[batch]
        returns <float32>[batch, hidden], or [clicks, hidden] for the encoding of every prefix."""
        states = self._packed if emb.place.is_cpu_place() else self._padded
        _, top = states(emb, lengths)
        if every_prefix:
            return top
        return paddle.gather(top, paddle.to_tensor(np.cumsum(lengths) - 1))

    def _packed(self, emb, lengths):
        if self.frozen:
            state, top, _ = packed_gru(emb.numpy(), *self.frozen, lengths)
            return paddle.to_tensor(state), paddle.to_tensor(top)
        gru = self.gru
        return PackedGRU.apply(emb, gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0,
                               gru.bias_hh_l0, lengths)

    def _padded(self, emb, lengths):
        batch, time = len(lengths), int(lengths.max())
        starts = np.cumsum(lengths) - lengths
        # Padding repeats the last click; it comes after all that is looked at.
        step = np.minimum(np.arange(time), lengths[:, None] - 1)
        padded = paddle.gather(emb, paddle.to_tensor((starts[:, None] + step).ravel()))
        states, _ = self.gru(padded.reshape([batch, time, -1]),
                             sequence_length=paddle.to_tensor(lengths))
        top, _ = paddle.cummax(states, axis=1)
        valid = paddle.to_tensor(np.flatnonzero(np.arange(time) < lengths[:, None]))
        return tuple(paddle.gather(t.reshape([batch * time, -1]), valid) for t in (states, top))

    def padded(self, emb, lengths):
        """The encoding of padded sequences, in a static graph as well.

        emb: <float32>[batch, time, dim]; lengths: <int64>[batch] -> <float32>[batch, hidden]"""
        states, _ = self.gru(emb, sequence_length=lengths)
        valid = F.sequence_mask(lengths, paddle.shape(emb)[1], "float32").unsqueeze(-1)
        return paddle.max(states * valid - (1 - valid), axis=1)  # no state is below -1


class PairwiseHingeLoss(nn.Layer):
    """max(0, margin - cos(user, positive) + cos(user, negative))."""

    def __init__(self, margin=0.8):
        super().__init__()
        self.margin = margin

    def forward(self, pos, neg):
        """pos, neg: <float32>[batch] -> <float32>[batch]"""
        return F.relu(self.margin - pos + neg)


class SequenceSemanticRetrieval(nn.Layer):
    """The two towers.

    vocab_size: number of items V, the rows of the table
    embedding_dim, hidden_size: columns of the table; size of a user's and an item's vector
    user_encoder: "gru" or "bow"
    """

    def __init__(self, vocab_size, embedding_dim=128, hidden_size=128, user_encoder="gru"):
        super().__init__()
        if user_encoder not in ("gru", "bow"):
            raise ValueError(f"user_encoder is 'gru' or 'bow', not {user_encoder!r}")
        self.vocab_size = vocab_size
        user_size = hidden_size if user_encoder == "gru" else embedding_dim
        # Parameters keep their names in every model of a process: Paddle files the optimizer's
        # state under them.
        with paddle.utils.unique_name.guard():
            # Sparse: a step touches the rows of its batch only, however large the catalogue is.
            self.embedding = nn.Embedding(vocab_size, embedding_dim, sparse=True,
                                          weight_attr=_xavier("emb.item"))
            self.user_encoder = (GrnnEncoder(embedding_dim, hidden_size)
                                 if user_encoder == "gru" else BowEncoder())
            self.item_encoder = BowEncoder()
            self.user_fc = nn.Linear(user_size, hidden_size, _xavier("user.w"), _zero("user.b"))
            self.item_fc = nn.Linear(embedding_dim, hidden_size, _xavier("item.w"),
                                     _zero("item.b"))
        # An item that was never clicked in training has no vector worth ranking. Saved with the
        # parameters, so that evaluation and retrieval know which ones those are.
        if paddle.in_dynamic_mode():  # a static graph has parameters only
            self.register_buffer("item_clicks", paddle.zeros([vocab_size], "int32"))

    def freeze(self):
        """For many small questions, from several threads too: no gradients, and the weights of
        the GRU at hand. From here on the parameters must not change."""
        for parameter in self.parameters():
            parameter.stop_gradient = True
        if isinstance(self.user_encoder, GrnnEncoder):
            self.user_encoder.freeze()

    def user(self, clicks, lengths, every_prefix=False):
        """The vectors of sessions.

        clicks: numpy <int64>[clicks], item ids, sessions end to end
        lengths: numpy <int64>[batch], each at least 1
        returns <float32>[batch, hidden] of length 1, or [clicks, hidden] for every prefix
        """
        return self.encode_user(self.embed(clicks), lengths, every_prefix)

    def item(self, tokens, lengths=None):
        """The vectors of items: <float32>[items, hidden] of length 1. tokens, lengths: as in
        embed."""
        return self.encode_item(self.embed(tokens, lengths))

    def embed(self, tokens, lengths=None):
        """What both towers begin with: the bag of the tokens of each item.

        tokens: numpy <int64>[tokens], rows of the table, items end to end; lengths: numpy
        <int64>[items], or None where every item is one token, its own id
        returns <float32>[items, dim]
        """
        emb = self.embedding(paddle.to_tensor(tokens))
        return emb if lengths is None else self.item_encoder(emb, lengths)

    def encode_user(self, emb, lengths, every_prefix=False):
        """The user tower from what embed returns for the clicks; otherwise as user."""
        return unit(self.user_fc(self.user_encoder(emb, lengths, every_prefix)))

    def encode_item(self, emb):
        """The item tower from what embed returns: <float32>[items, hidden] of length 1."""
        return unit(self.item_fc(emb))

    def forward(self, clicks, lengths, positive, negative):
        """cos(user, positive) and cos(user, negative), <float32>[batch] each.

        clicks, lengths: as in user; positive, negative: numpy <int64>[batch], item ids
        """
        # One look-up for both towers: one gradient of the table to merge instead of three.
        ids = np.concatenate([clicks, positive, negative])
        return self.score(self.embedding(paddle.to_tensor(ids)), lengths)

    def score(self, emb, lengths):
        """As forward, from the rows of the table that it looks up, <float32>[clicks + 2 batch,
        dim]: where something happens between the look-up and the towers."""
        user_emb, item_emb = paddle.split(emb, [int(lengths.sum()), 2 * len(lengths)])
        user = self.encode_user(user_emb, lengths)
        positive, negative = paddle.split(self.encode_item(item_emb), 2)
        return paddle.sum(user * positive, axis=1), paddle.sum(user * negative, axis=1)

    def padded(self, clicks, lengths, positive, negative):
        """What forward computes, over padded sequences and in a static graph as well.

        clicks: <int64>[batch, time]; lengths, positive, negative: <int64>[batch]
        """
        user = unit(self.user_fc(self.user_encoder.padded(self.embedding(clicks), lengths)))
        positive = self.encode_item(self.embedding(positive))
        negative = self.encode_item(self.embedding(negative))
        return paddle.sum(user * positive, axis=1), paddle.sum(user * negative, axis=1)

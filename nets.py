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


def last_rows(x, lengths):
    """The last row of each sequence.

    x: <float32>[clicks, dim], sequences end to end; lengths: numpy <int64>[batch]
    returns <float32>[batch, dim]
    """
    return paddle.gather(x, paddle.to_tensor(np.cumsum(lengths) - 1))


class SumOfRows(PyLayer):
    """Sums of rows, the product with a sparse matrix of ones, on a CPU: scipy's takes a ninth of
    the time of Paddle 2.6.2's segment_sum, and its gradient is one of the rows, merged already."""

    @staticmethod
    def forward(ctx, x, picks):
        """x: <float32>[rows, dim]; picks: scipy.sparse.csr_matrix [sums, rows]
        returns <float32>[sums, dim]"""
        ctx.picks = picks
        return paddle.to_tensor(picks @ x.numpy())

    @staticmethod
    def backward(ctx, d_sums):
        return paddle.to_tensor(ctx.picks.T @ d_sums.numpy())


def sum_of(emb, lengths, every_prefix=False):
    """The sum over each sequence, or over each prefix.

    emb: <float32>[words, dim], sequences end to end; lengths: numpy <int64>[batch]
    returns <float32>[batch, dim], or [words, dim] for every prefix
    """
    segments = paddle.to_tensor(np.repeat(np.arange(len(lengths)), lengths))
    if not every_prefix:
        return paddle.geometric.segment_sum(emb, segments)
    # A running sum over all sequences, less what it was where each began; in double
    # precision, so that a sequence is the same to the last digit in any company.
    total = paddle.cumsum(emb.astype("float64"), axis=0)
    total = paddle.concat([paddle.zeros_like(total[:1]), total])
    begin = paddle.gather(total, paddle.to_tensor(np.cumsum(lengths) - lengths))
    return (total[1:] - paddle.gather(begin, segments)).astype("float32")


class BowEncoder(nn.Layer):
    """Bag of words: the sum over a sequence."""

    def of_rows(self, x, members, lengths):
        """The sums of bags of rows. x: <float32>[rows, dim]; members: numpy <int64>[n], the rows in
        each bag, these end to end; lengths: numpy <int64>[bags]
        returns <float32>[bags, dim]"""
        if not x.place.is_cpu_place():
            return self(paddle.gather(x, paddle.to_tensor(members)), lengths)
        from scipy.sparse import csr_matrix  # here: only content needs it

        ends = np.concatenate([[0], np.cumsum(lengths)])
        return SumOfRows.apply(x, csr_matrix((np.ones(len(members), np.float32), members, ends),
                                             shape=(len(lengths), len(x))))

    def forward(self, emb, lengths, every_prefix=False):
        """As sum_of."""
        return sum_of(emb, lengths, every_prefix)

    def padded(self, emb, lengths):
        """The same over padded sequences, in a static graph as well.

        emb: <float32>[batch, time, dim]; lengths: <int64>[batch] -> <float32>[batch, dim]"""
        return paddle.sum(emb * valid_steps(emb, lengths), axis=1)


def valid_steps(emb, lengths):
    """1 where a padded sequence has a row, 0 behind it.

    emb: <float32>[batch, time, dim]; lengths: <int64>[batch] -> <float32>[batch, time, 1]
    """
    return F.sequence_mask(lengths, paddle.shape(emb)[1], "float32").unsqueeze(-1)


def mean_of_clicks(emb, lengths, every_prefix=False):
    """The mean over each sequence, or over each prefix; shapes as in sum_of."""
    total = sum_of(emb, lengths, every_prefix)
    if every_prefix:
        ends = np.cumsum(lengths)
        lengths = np.arange(1, ends[-1] + 1) - np.repeat(ends - lengths, lengths)
    return total * paddle.to_tensor((1 / lengths).astype(np.float32)[:, None])


class GrnnEncoder(nn.Layer):
    """A GRU over the clicks, then a pooling of its states over time.

    "max" is the maximum, "max_last" the maximum and the last state, side by side. The maximum up to
    step t is exactly the encoding of the prefix that ends at t: one pass gives every prefix of a
    session. On a CPU the GRU is PackedGRU; on a GPU it is Paddle's own, fused one, over padded
    sequences. Both compute the same function of the same parameters.
    """

    def __init__(self, input_size, hidden_size, pooling="max", param_name="grnn"):
        super().__init__()
        self.pooling = pooling
        self.output_size = hidden_size if pooling == "max" else 2 * hidden_size
        self.gru = nn.GRU(input_size, hidden_size,
                          weight_ih_attr=_xavier(f"{param_name}.w_ih"),
                          weight_hh_attr=_xavier(f"{param_name}.w_hh"),
                          bias_ih_attr=_zero(f"{param_name}.b_ih"),
                          bias_hh_attr=_zero(f"{param_name}.b_hh"))

    def forward(self, emb, lengths, every_prefix=False):
        """emb: <float32>[clicks, dim], sequences end to end; lengths: numpy <int64>[batch]
        returns <float32>[batch, output_size], or [clicks, output_size] for the encoding of every
        prefix."""
        states = self._packed if emb.place.is_cpu_place() else self._padded
        state, top = states(emb, lengths)
        pooled = top if self.pooling == "max" else paddle.concat([top, state], axis=1)
        return pooled if every_prefix else last_rows(pooled, lengths)

    def _packed(self, emb, lengths):
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

        emb: <float32>[batch, time, dim]; lengths: <int64>[batch] -> <float32>[batch, output_size]
        """
        states, last = self.gru(emb, sequence_length=lengths)
        valid = valid_steps(emb, lengths)
        top = paddle.max(states * valid - (1 - valid), axis=1)  # no state is below -1
        return top if self.pooling == "max" else paddle.concat([top, last[0]], axis=1)


class PairwiseHingeLoss(nn.Layer):
    """max(0, margin - cos(user, positive) + cos(user, negative)), the mean over the negatives."""

    def __init__(self, margin=0.8):
        super().__init__()
        self.margin = margin

    def forward(self, towers, batch):
        """towers: what a model makes of a batch with paired candidates (reader.Batch)

        returns (losses, share of the negatives ranked below the target), <float32>[targets] each,
        the mean over the members
        """
        return mean_of([self._of_member(*member) for member in towers])

    def _of_member(self, users, items):
        targets, hidden = users.shape
        items = items.reshape([targets, -1, hidden])
        cos = paddle.sum(users.unsqueeze(1) * items, axis=-1)
        pos, neg = cos[:, :1], cos[:, 1:]
        correct = paddle.cast(neg < pos, "float32")
        return paddle.mean(self.pair(pos, neg), axis=1), paddle.mean(correct, axis=1)

    def pair(self, pos, neg):
        """The loss of pairs, from their cosines: <float32> of any shape."""
        return F.relu(self.margin - pos + neg)


class SampledSoftmaxLoss(nn.Layer):
    """Cross-entropy of the target among shared candidates, corrected for how these were drawn.

    A candidate j that is there with probability pi_j stands for 1 / pi_j items like it, so the sum
    over candidates of exp(scale * cos) / pi_j has the sum over all items as its expectation: log
    pi_j is taken off the logit (the logQ correction; Bengio and Senecal, 2008; Jean et al., 2015).
    The targets of a row's own session are among the candidates for certain, so they have pi = 1.
    """

    def __init__(self, scale=16.0):
        super().__init__()
        self.scale = scale

    def forward(self, towers, batch):
        """towers: what a model makes of a batch with shared candidates (reader.Batch)

        returns (losses, probability that the softmax gives to the target), <float32>[targets]
        each, the mean over the members
        """
        place = np.searchsorted(batch.candidates, batch.positive)
        per_session = batch.lengths if batch.every_prefix else np.ones_like(batch.lengths)
        certain = own_session(per_session, place)
        undo = paddle.to_tensor(certain), paddle.to_tensor(batch.log_inclusion[certain[:, 1]])
        place = paddle.to_tensor(place[:, None])
        # The correction is one more column of the product: no pass over all logits of its own.
        ones = paddle.ones([len(place), 1])
        correction = paddle.to_tensor(-batch.log_inclusion[:, None])
        return mean_of([self._cross_entropy(paddle.concat([users * self.scale, ones], axis=1),
                                            paddle.concat([items, correction], axis=1), place, undo)
                        for users, items in towers])

    @staticmethod
    def _cross_entropy(users, items, place, undo):
        logits = paddle.scatter_nd_add(paddle.matmul(users, items, transpose_y=True), *undo)
        losses = F.cross_entropy(logits, place, reduction="none").squeeze(-1)
        return losses, paddle.exp(-losses.detach())


def mean_of(results):
    """The mean of each value of some tuples of tensors."""
    if len(results) == 1:
        return results[0]
    return tuple(sum(values) / len(results) for values in zip(*results))


def own_session(lengths, place):
    """For each target, the targets of its session, itself among them, each item once.

    lengths: numpy <int64>[batch], targets per session; place: numpy <int64>[targets], where the
    targets are among the candidates
    returns <int64>[n, 2], ascending: target number i has the candidate j
    """
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    count = np.repeat(lengths, lengths)
    row = np.repeat(np.arange(len(place)), count)
    within = np.arange(len(row)) - (np.cumsum(count) - count)[row]
    width = place.max() + 1
    pairs = np.unique(row * width + place[first[row] + within])
    return np.stack(np.divmod(pairs, width), axis=1)


class Towers(nn.Layer):
    """The two towers of a member, over its columns of the table.

    The first arguments are those of SequenceSemanticRetrieval.
    suffix: of the parameters' names
    """

    def __init__(self, embedding_dim, hidden_size, user_encoder, pooling, item_encoder, dropout,
                 suffix):
        super().__init__()
        self.dropout = dropout
        if user_encoder == "gru":
            self.user_encoder = GrnnEncoder(embedding_dim, hidden_size,
                                            "max" if pooling == "max" else "max_last",
                                            "grnn" + suffix)
            encoded = self.user_encoder.output_size
        else:
            self.user_encoder = BowEncoder()
            encoded = embedding_dim
        self.user_fc = nn.Linear(encoded, hidden_size, _xavier("user.w" + suffix),
                                 _zero("user.b" + suffix))
        self.item_fc = (nn.Linear(embedding_dim, hidden_size, _xavier("item.w" + suffix),
                                  _zero("item.b" + suffix)) if item_encoder == "fc" else None)
        self.click_gains = (self.create_parameter(
            [2, hidden_size], attr=paddle.ParamAttr(name="user.g" + suffix),
            default_initializer=nn.initializer.Constant(0.5))
            if pooling == "max_last_clicks" else None)

    def user(self, emb, lengths, every_prefix=False):
        """As SequenceSemanticRetrieval.encode_user, for this member."""
        emb = F.dropout(emb, self.dropout, training=self.training)
        user = self.user_fc(self.user_encoder(emb, lengths, every_prefix))
        if self.click_gains is not None:
            last = emb if every_prefix else last_rows(emb, lengths)
            user = (user + self.click_gains[0] * last
                    + self.click_gains[1] * mean_of_clicks(emb, lengths, every_prefix))
        return unit(user)

    def padded(self, emb, lengths):
        """The same over padded sequences, in a static graph as well.

        emb: <float32>[batch, time, dim]; lengths: <int64>[batch] -> <float32>[batch, hidden]
        """
        user = self.user_fc(self.user_encoder.padded(emb, lengths))
        if self.click_gains is not None:
            # The mean as one product with its weights: Paddle 3.3 exports a sum wrongly of which
            # the mean is taken as well.
            valid = valid_steps(emb, lengths)
            last = paddle.sum(emb * (valid - valid_steps(emb, lengths - 1)), axis=1)
            weights = valid * paddle.reciprocal(paddle.cast(lengths, "float32")).reshape([-1, 1, 1])
            user = (user + self.click_gains[0] * last
                    + self.click_gains[1] * paddle.sum(emb * weights, axis=1))
        return unit(user)

    def item(self, emb):
        """As SequenceSemanticRetrieval.encode_item, for this member."""
        return unit(emb if self.item_fc is None else self.item_fc(emb))


class SequenceSemanticRetrieval(nn.Layer):
    """The two towers.

    vocab_size: number of items V, the rows of the table
    embedding_dim, hidden_size: columns of the table; size of a user's and an item's vector
    user_encoder: "gru" or "bow"
    pooling: of the GRU's states, "max" or "max_last"; "max_last_clicks" also adds the embedding of
        the last click and the mean of all, g1 * e_last + g2 * mean(e) with a gain per dimension
        each, to what the fc makes of the states
    item_encoder: "fc", or "tied": an item's vector is its bag itself
    dropout: share of the entries of the clicks' embeddings that are zeroed in training
    members: an ensemble of so many models, each with a table and towers of its own. Their vectors,
        side by side, are one vector, whose cosine is the mean of theirs.
    num_tokens: tokens T of the items' content, 0 for none; token t is the row V + t of the table
    """

    def __init__(self, vocab_size, embedding_dim=128, hidden_size=128, user_encoder="gru",
                 pooling="max", item_encoder="fc", dropout=0.0, members=1, num_tokens=0):
        super().__init__()
        check_architecture(embedding_dim, hidden_size, user_encoder, pooling, item_encoder)
        self.vocab_size = vocab_size
        self.num_tokens = num_tokens
        # Parameters keep their names in every model of a process: Paddle files the optimizer's
        # state under them.
        with paddle.utils.unique_name.guard():
            # Sparse: a step touches the rows of its batch only, however large the catalogue is.
            # One table of all members: one look-up and one update.
            self.embedding = nn.Embedding(vocab_size + num_tokens, members * embedding_dim,
                                          sparse=True, weight_attr=_xavier("emb.item"))
            self.item_encoder = BowEncoder()
            self.members = nn.LayerList([
                Towers(embedding_dim, hidden_size, user_encoder, pooling, item_encoder, dropout,
                       f".{number}" if number else "") for number in range(members)])
        # An item that was never clicked in training has no vector worth ranking. Saved with the
        # parameters, so that evaluation and retrieval know which ones those are.
        if paddle.in_dynamic_mode():  # a static graph has parameters only
            self.register_buffer("item_clicks", paddle.zeros([vocab_size], "int32"))

    def freeze(self):
        """Without gradients from here on, in every thread. Returns FrozenUsers."""
        for parameter in self.parameters():
            parameter.stop_gradient = True
        return FrozenUsers(self)

    def user(self, clicks, lengths, every_prefix=False):
        """The vectors of sessions.

        clicks: numpy <int64>[clicks], item ids, sessions end to end
        lengths: numpy <int64>[batch], each at least 1
        returns <float32>[batch, members * hidden] of length 1, or [clicks, members * hidden] for
        every prefix
        """
        return self.encode_user(self.embed(clicks), lengths, every_prefix)

    def item(self, rows, bags=None):
        """The vectors of items: <float32>[items, members * hidden] of length 1. rows, bags: as in
        embed."""
        return self.encode_item(self.embed(rows, bags))

    def embed(self, rows, bags=None):
        """What both towers begin with: the embedding of each item, the sum of its rows.

        rows: numpy <int64>[rows] of the table
        bags: which of the rows an item is made of (reader.Bags), None where it is one, its own id
        returns <float32>[items, members * dim]
        """
        return self.compose(self.embedding(paddle.to_tensor(rows)), bags)

    def compose(self, emb, bags):
        """embed, from the rows themselves: <float32>[rows, members * dim]."""
        if bags is None:
            return emb
        emb = self.item_encoder.of_rows(emb, bags.members, bags.lengths)
        return paddle.gather(emb, paddle.to_tensor(bags.place))

    def encode_user(self, emb, lengths, every_prefix=False):
        """The user tower from what embed returns for the clicks; otherwise as user."""
        return side_by_side([member.user(part, lengths, every_prefix)
                             for member, part in self._parts(emb)])

    def encode_item(self, emb):
        """The item tower from what embed returns; otherwise as item."""
        return side_by_side([member.item(part) for member, part in self._parts(emb)])

    def forward(self, batch):
        """The towers of a reader.Batch: for each member users <float32>[targets, hidden] and items
        <float32>[candidates, hidden], all of length 1."""
        # One look-up for both towers: one gradient of the table to merge instead of three.
        return self.towers(self.embedding(paddle.to_tensor(batch.rows())), batch)

    def towers(self, emb, batch):
        """As forward, from the rows of batch.rows(): where something happens between the look-up
        and the towers."""
        emb = self.compose(emb, batch.bags)
        clicks, candidates = paddle.split(emb, [len(batch.clicks), batch.candidates.size])
        return [(member.user(click_part, batch.lengths, batch.every_prefix), member.item(part))
                for (member, click_part), (_, part) in zip(self._parts(clicks),
                                                           self._parts(candidates))]

    def padded(self, clicks, lengths, positive, negative):
        """cos(user, positive) and cos(user, negative), <float32>[batch] each, over padded sequences
        and in a static graph as well. For one member, of items without content.

        clicks: <int64>[batch, time]; lengths, positive, negative: <int64>[batch]
        """
        towers, = self.members
        user = towers.padded(self.embedding(clicks), lengths)
        positive = towers.item(self.embedding(positive))
        negative = towers.item(self.embedding(negative))
        return paddle.sum(user * positive, axis=1), paddle.sum(user * negative, axis=1)

    def padded_user(self, rows):
        """The vectors of sessions, in a static graph as well.

        rows: <int64>[batch, time, tokens], the rows of the table that make each click; -1 behind
            the last row of a click and behind the last click. Each session has a click.
        returns <float32>[batch, members * hidden] of length 1
        """
        lengths = paddle.sum(paddle.cast(paddle.max(rows, axis=2) >= 0, "int64"), axis=1)
        return side_by_side([member.padded(part, lengths)
                             for member, part in self._parts(self._padded_bags(rows))])

    def padded_item(self, rows):
        """The vectors of items, in a static graph as well.

        rows: <int64>[items, tokens], padded as in padded_user
        returns <float32>[items, members * hidden] of length 1
        """
        return self.encode_item(self._padded_bags(rows))

    def _padded_bags(self, rows):
        """The embedding of each bag, the sum of its rows: <int64>[.., tokens] ->
        <float32>[.., members * dim]."""
        there = paddle.cast(rows >= 0, "float32").unsqueeze(-1)
        return paddle.sum(self.embedding(paddle.clip(rows, min=0)) * there, axis=-2)

    def _parts(self, emb):
        """Each member with its columns."""
        if len(self.members) == 1:
            return [(self.members[0], emb)]
        return list(zip(self.members, paddle.split(emb, len(self.members), axis=-1)))


class FrozenUsers:
    """The user tower of a model that does not change any more, on a CPU and in numpy: for a single
    session what costs is the number of operations, of which Paddle's take longer."""

    def __init__(self, model):
        self.members = [_weights_of(towers) for towers in model.members]

    def __call__(self, emb, lengths):
        """As SequenceSemanticRetrieval.encode_user, of numpy and in numpy: emb <float32>[clicks,
        members * dim], lengths <int64>[batch] -> <float32>[batch, members * hidden]"""
        parts = np.split(emb, len(self.members), axis=1)
        users = [self._of_member(part, lengths, *weights)
                 for part, weights in zip(parts, self.members)]
        return np.concatenate(users, axis=1) * np.float32(1 / np.sqrt(len(users)))

    @staticmethod
    def _of_member(emb, lengths, gru, pooling, w, b, gains):
        ends = np.cumsum(lengths)
        total = np.add.reduceat(emb, ends - lengths) if gru is None or gains is not None else None
        if gru is None:
            encoded = total
        else:
            state, top, _ = packed_gru(np.ascontiguousarray(emb), *gru, lengths)
            encoded = top[ends - 1]
            if pooling != "max":
                encoded = np.concatenate([encoded, state[ends - 1]], axis=1)
        user = encoded @ w
        user += b
        if gains is not None:
            user += gains[0] * emb[ends - 1]
            user += gains[1] * (total / lengths[:, None].astype(np.float32))
        return user / np.sqrt((user * user).sum(1, keepdims=True) + np.float32(1e-12))


def _weights_of(towers):
    """(those of the GRU as packed_gru takes them or None, its pooling, of the fc: w, b, gains of
    the clicks or None) of a member."""
    gru = pooling = gains = None
    if isinstance(towers.user_encoder, GrnnEncoder):
        pooling, found = towers.user_encoder.pooling, towers.user_encoder.gru
        w_ih, w_hh, b_ih, b_hh = (t.numpy() for t in (
            found.weight_ih_l0, found.weight_hh_l0, found.bias_ih_l0, found.bias_hh_l0))
        gru = w_ih, np.ascontiguousarray(w_hh.T), b_ih, b_hh
    if towers.click_gains is not None:
        gains = towers.click_gains.numpy()
    return gru, pooling, towers.user_fc.weight.numpy(), towers.user_fc.bias.numpy(), gains


def side_by_side(vectors):
    """Rows of length 1 from those of the members: the cosine of two is the mean of theirs.

    vectors: list of <float32>[n, dim] -> <float32>[n, members * dim]
    """
    if len(vectors) == 1:
        return vectors[0]
    return paddle.concat(vectors, axis=1) * (1 / np.sqrt(len(vectors)))


def check_architecture(embedding_dim, hidden_size, user_encoder, pooling, item_encoder):
    """Raises ValueError where the arguments of SequenceSemanticRetrieval do not go together."""
    for name, value, known in (("user_encoder", user_encoder, ("gru", "bow")),
                               ("pooling", pooling, ("max", "max_last", "max_last_clicks")),
                               ("item_encoder", item_encoder, ("fc", "tied"))):
        if value not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}")
    if user_encoder == "bow" and pooling != "max":
        raise ValueError(f"the pooling {pooling!r} is one of a GRU's states; user_encoder is 'bow'")
    if embedding_dim != hidden_size:
        for part in ("item_encoder tied", "pooling max_last_clicks"):
            if part.split()[1] in (item_encoder, pooling):
                raise ValueError(f"{part} needs an embedding_dim equal to hidden_size, not "
                                 f"{embedding_dim} and {hidden_size}")

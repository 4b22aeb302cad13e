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

from ssr.kernels.gru import PackedGRU
from ssr.kernels.sums import SumOfRows
from ssr.runtime import paddle

nn, F = paddle.nn, paddle.nn.functional


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


def last_rows(x, lengths):
    """The last row of each sequence.

    x: <float32>[clicks, dim], sequences end to end; lengths: numpy <int64>[batch]
    returns <float32>[batch, dim]
    """
    return paddle.gather(x, paddle.to_tensor(np.cumsum(lengths) - 1))


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


def mean_of(results):
    """The mean of each value of some tuples of tensors."""
    if len(results) == 1:
        return results[0]
    return tuple(sum(values) / len(results) for values in zip(*results))


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

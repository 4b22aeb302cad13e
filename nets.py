"""Sequence Semantic Retrieval: two towers over one embedding table.

    user:  clicks -> table ``emb.item`` -> GrnnEncoder (GRU, max over time) -> fc ``user.w``
    item:  tokens -> table ``emb.item`` -> BowEncoder (sum)                 -> fc ``item.w``
    score: the cosine of the two
    loss:  PairwiseHingeLoss, max(0, 0.8 - cos(user, positive) + cos(user, negative))

Neither tower sees the other. That is what makes items indexable, and what lets a fresh item get
its vector at the moment it is published. Without content an item's only token is its own id. The
sequences of a batch lie end to end, with the length of each, as reader.py makes them; nothing is
padded where that can be avoided (ssr/kernels).

Sources: Song, Elkahky and He, "Multi-Rate Deep Learning for Temporal Recommendation", SIGIR 2016
(two towers over a session); Hidasi et al., "Session-based Recommendations with Recurrent Neural
Networks", ICLR 2016 (the GRU over clicks); Cho et al., 2014 (the GRU).
"""

from __future__ import annotations

import numpy as np

from ssr.architecture import RECENT_CLICKS, check_architecture
from ssr.kernels import ragged
from ssr.kernels.gru import gru_tops
from ssr.kernels.ragged import unit_rows
from ssr.runtime import paddle

nn, F = paddle.nn, paddle.nn.functional


def _xavier(name):
    """Xavier uniform, as fluid had for every weight, the table included (fan_in V, fan_out D).
    Paddle's own default for a GRU costs four points of recall."""
    return paddle.ParamAttr(name=name, initializer=nn.initializer.XavierUniform())


def _zero(name):
    return paddle.ParamAttr(name=name, initializer=nn.initializer.Constant(0.0))


# --- encoders -------------------------------------------------------------------------------------


class BowEncoder(nn.Layer):
    """Bag of words: the sum over a sequence."""

    def forward(self, emb, lengths, every_prefix=False):
        """emb: <float32>[words, dim], sequences end to end; lengths: numpy <int64>[batch]
        returns <float32>[batch, dim], or [words, dim] for the sum of every prefix."""
        return ragged.sums(emb, lengths, every_prefix)


class GrnnEncoder(nn.Layer):
    """A GRU over the clicks, then a pooling of its states over time.

    "max" is the maximum, "max_last" the maximum and the last state, side by side. The maximum up to
    step t is exactly the encoding of the prefix that ends at t: one pass gives every prefix of a
    session.
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
        pooled = gru_tops(self.gru, emb, lengths, and_states=self.pooling == "max_last")
        return pooled if every_prefix else ragged.last_rows(pooled, lengths)


class VectorProjection(nn.Layer):
    """What pretrained vectors of items add to their embeddings: a linear map of the vectors, each
    number of which has first been standardised as it was among the items of training.

    dim: numbers of a vector; columns: of the embeddings
    """

    def __init__(self, dim, columns):
        super().__init__()
        self.linear = nn.Linear(dim, columns, _xavier("vector.w"), bias_attr=False)
        self.register_buffer("mean", paddle.zeros([dim]))
        self.register_buffer("scale", paddle.ones([dim]))

    def standardise_by(self, mean, std):
        """mean, std: numpy <float32>[dim], of the vectors of the items of training"""
        # By the root of dim as well: a standardised vector is of about length 1.
        scale = 1 / (np.where(std > 0, std, 1) * np.sqrt(len(std)))
        self.mean.set_value(paddle.to_tensor(mean.astype(np.float32)))
        self.scale.set_value(paddle.to_tensor(scale.astype(np.float32)))

    def forward(self, vectors):
        """vectors: <float32>[.., dim], zeros for an item that has none
        returns <float32>[.., columns], zeros for these"""
        is_there = paddle.max(paddle.abs(vectors), axis=-1, keepdim=True) > 0
        standardised = (vectors - self.mean) * self.scale
        return self.linear(standardised * paddle.cast(is_there, "float32"))


# --- towers ---------------------------------------------------------------------------------------


class Towers(nn.Layer):
    """The two towers of one member of an ensemble, over its columns of the table.

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
        self.click_gains = (self._make_gains(RECENT_CLICKS[pooling], hidden_size, "user.g" + suffix)
                            if pooling in RECENT_CLICKS else None)
        self.unit_clicks = pooling == "max_unit_clicks"

    def _make_gains(self, recent, hidden_size, name):
        """<float32>[recent + 1, hidden]: of the embeddings of the last clicks, newest first, and of
        the mean of all."""
        initial = np.full([recent + 1, hidden_size], 0.25, np.float32)
        initial[[0, -1]] = 0.5
        return self.create_parameter([recent + 1, hidden_size], attr=paddle.ParamAttr(name=name),
                                     default_initializer=nn.initializer.Assign(initial))

    def user(self, emb, lengths, every_prefix=False):
        """As SequenceSemanticRetrieval.encode_user, for this member."""
        if self.training:
            emb = ragged.dropout(emb, self.dropout)
        user = self.user_fc(self.user_encoder(emb, lengths, every_prefix))
        if self.click_gains is not None:
            clicks = unit_rows(emb) if self.unit_clicks else emb
            user = user + ragged.weighted_clicks(clicks, self.click_gains, lengths, every_prefix)
        return unit_rows(user)

    def item(self, emb):
        """As SequenceSemanticRetrieval.encode_item, for this member."""
        return unit_rows(emb if self.item_fc is None else self.item_fc(emb))


class SequenceSemanticRetrieval(nn.Layer):
    """The two towers.

    vocab_size: number of items V, the first rows of the table
    embedding_dim, hidden_size: columns of the table; size of a user's and an item's vector
    user_encoder: "gru" or "bow"
    pooling: of the GRU's states, "max"; or "max_recent_clicks", which adds the embeddings of the
        last five clicks and the mean of all, sum_k g_k * e_(n-k) + g * mean(e) with a gain per
        dimension each, to what the fc makes of the maximum and the last state; "max_unit_clicks"
        does so with embeddings of length 1, so that an item counts for where its vector points
        and not for how often it was clicked; "max_last_clicks" with the last click only
        ("max_last", with none of them, is what older checkpoints may have)
    item_encoder: "fc", or "tied": an item's vector is the sum of its tokens' embeddings itself
    dropout: share of the entries of the clicks' embeddings that are zeroed in training
    members: an ensemble of so many models, each with a table and towers of its own. Their vectors,
        side by side, are one vector; its cosine is the mean of theirs.
    num_tokens: tokens T of the items' content, 0 for none; token t is the row V + t of the table
    item_vector_dim: numbers of the items' pretrained vectors, 0 where they have none
    """

    def __init__(self, vocab_size, embedding_dim=128, hidden_size=128, user_encoder="gru",
                 pooling="max", item_encoder="fc", dropout=0.0, members=1, num_tokens=0,
                 item_vector_dim=0):
        super().__init__()
        # The arguments again, as checkpoints have them.
        self.sizes = dict(
            vocab_size=vocab_size, embedding_dim=embedding_dim, hidden_size=hidden_size,
            user_encoder=user_encoder, pooling=pooling, item_encoder=item_encoder, dropout=dropout,
            members=members, num_tokens=num_tokens)
        if item_vector_dim:  # without such vectors a checkpoint is as it always was
            self.sizes["item_vector_dim"] = item_vector_dim
        check_architecture(self.sizes)
        self.vocab_size = vocab_size
        self.num_tokens = num_tokens
        self.item_vector_dim = item_vector_dim
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
            if item_vector_dim:
                self.item_projection = VectorProjection(item_vector_dim, members * embedding_dim)
        # An item that was never clicked in training has no vector worth ranking. Saved with the
        # parameters, so that evaluation and retrieval know which ones those are.
        if paddle.in_dynamic_mode():  # a static graph has parameters only
            self.register_buffer("item_clicks", paddle.zeros([vocab_size], "int32"))

    def forward(self, batch):
        """The towers of a reader.Batch: for each member users <float32>[targets, hidden] and items
        <float32>[candidates + shown, hidden], all of length 1."""
        return self.towers(self.look_up(batch.rows), batch)

    def look_up(self, rows):
        """Rows of the table: numpy <int64>[n] -> <float32>[n, members * dim]. Where none comes
        twice, the gradient of the table has each row once, too."""
        return self.embedding(paddle.to_tensor(rows))

    def towers(self, emb, batch):
        """As forward, from what look_up returns for batch.rows: for a caller that does something
        between it and the towers."""
        emb = self.sum_tokens(emb, batch.bags)
        clicks, candidates = (ragged.take(emb, place) for place in batch.places())
        return [(member.user(of_clicks, batch.lengths, batch.every_prefix), member.item(of_items))
                for (member, of_clicks), (_, of_items) in zip(self.split(clicks),
                                                              self.split(candidates))]

    def user(self, clicks, lengths, every_prefix=False):
        """The vectors of sessions whose items are their ids.

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
        """What both towers begin with: the embedding of each item, the sum of its tokens' and of
        what its pretrained vector is projected to.

        rows: numpy <int64>[rows] of the table
        bags: which of the rows make up an item (ssr.training.content.Bags); None where an item is
            one row, its own id
        returns <float32>[items, members * dim]
        """
        emb = self.sum_tokens(self.look_up(rows), bags)
        return emb if bags is None else ragged.take(emb, bags.place)

    def sum_tokens(self, emb, bags):
        """The embedding of each bag, <float32>[bags, members * dim], of each row without bags.
        emb: what look_up returns"""
        if bags is None:
            return emb
        emb = ragged.sums_of_bags(emb, bags.members, bags.lengths)
        if bags.vectors is not None:
            emb = emb + self.item_projection(paddle.to_tensor(bags.vectors))
        return emb

    def encode_user(self, emb, lengths, every_prefix=False):
        """The user tower over what embed returns for the clicks; otherwise as user."""
        return self.join([member.user(part, lengths, every_prefix)
                          for member, part in self.split(emb)])

    def encode_item(self, emb):
        """The item tower over what embed returns; otherwise as item."""
        return self.join([member.item(part) for member, part in self.split(emb)])

    def split(self, emb):
        """Each member with its columns of embeddings."""
        if len(self.members) == 1:
            return [(self.members[0], emb)]
        return list(zip(self.members, paddle.split(emb, len(self.members), axis=-1)))

    @staticmethod
    def join(vectors):
        """The vectors of the members side by side, of length 1: their cosine is the mean of the
        members' cosines.

        vectors: list of <float32>[n, hidden] of length 1 -> <float32>[n, members * hidden]
        """
        if len(vectors) == 1:
            return vectors[0]
        return paddle.concat(vectors, axis=1) * (1 / np.sqrt(len(vectors)))


# --- the loss -------------------------------------------------------------------------------------


class PairwiseHingeLoss(nn.Layer):
    """max(0, margin - cos(user, positive) + cos(user, negative)), the mean over the negatives."""

    def __init__(self, margin=0.8):
        super().__init__()
        self.margin = margin

    def forward(self, towers, batch):
        """towers: what a model makes of a batch in which each target has negatives of its own

        returns (losses, share of the negatives ranked below the target), <float32>[targets] each,
        the mean over the members
        """
        return mean_over_members([self._of_member(*member) for member in towers])

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


def mean_over_members(results):
    """The mean of each value of the members' results, tuples of tensors."""
    if len(results) == 1:
        return results[0]
    return tuple(sum(values) / len(results) for values in zip(*results))

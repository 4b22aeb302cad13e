"""The two towers in numpy, of a model that does not change any more.

What the vector of a single session costs in Paddle is the number of its calls, and here there are
none. Nor does it take Paddle to begin with: to load that is most of what a query would wait for.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import numpy as np

from ssr.architecture import RECENT_CLICKS, check_architecture
from ssr.kernels.packed import packed_gru, scatter


class FrozenModel:
    """As nets.SequenceSemanticRetrieval in evaluation, the same function of the same parameters.

    sizes: the arguments that the model was made with, of which some are here by their own names
    item_clicks: <int32>[V], how often each item was clicked in training
    table: <float32>[V + tokens, members * dim], the embeddings
    """

    def __init__(self, sizes, state):
        """sizes: as a checkpoint's metadata have them ("model"); state: {name: array}, the state
        dict of the model

        Raises ValueError where they do not go together.
        """
        check_architecture(sizes)
        self.sizes = sizes
        self.vocab_size, self.num_tokens = sizes["vocab_size"], sizes["num_tokens"]
        self.item_vector_dim = sizes.get("item_vector_dim", 0)
        columns = sizes["members"] * sizes["embedding_dim"]
        state = _State(state)
        self.item_clicks = state.take("item_clicks", self.vocab_size)
        self.table = state.take("embedding.weight", self.vocab_size + self.num_tokens, columns)
        self.members = [_Towers.of(sizes, state, f"members.{number}")
                        for number in range(sizes["members"])]
        self._projection = None
        if self.item_vector_dim:
            self._projection = (
                state.take("item_projection.mean", self.item_vector_dim),
                state.take("item_projection.scale", self.item_vector_dim),
                state.take("item_projection.linear.weight", self.item_vector_dim, columns))
        state.check_all_taken()

    @classmethod
    def of(cls, model):
        """That of a nets.SequenceSemanticRetrieval, whose table it shares on a CPU; of one that is
        frozen, itself."""
        if isinstance(model, cls):
            return model
        from ssr.kernels.memory import host_array  # here: where there is a model of Paddle

        state = {name: tensor.numpy() for name, tensor in model.state_dict().items()
                 if name != "embedding.weight"}
        state["embedding.weight"] = host_array(model.embedding.weight)
        return cls(model.sizes, state)

    def encode_user(self, emb, lengths):
        """The vectors of sessions.

        emb: <float32>[clicks, members * dim], the embeddings of what was clicked, sessions end to
            end
        lengths: <int64>[batch], each at least 1
        returns <float32>[batch, members * hidden] of length 1
        """
        return _join([towers.user(part, lengths) for towers, part in self._split(emb)])

    def encode_item(self, emb):
        """The vectors of items, from their embeddings: <float32>[n, members * dim] ->
        <float32>[n, members * hidden] of length 1"""
        return _join([towers.item(part) for towers, part in self._split(emb)])

    def item_projection(self, vectors):
        """What pretrained vectors add to the embeddings of items, as of nets.VectorProjection:
        <float32>[n, item_vector_dim] -> <float32>[n, members * dim]"""
        mean, scale, weight = self._projection
        standardised = (vectors - mean) * scale
        return (standardised * vectors.any(axis=1, keepdims=True)) @ weight

    def _split(self, emb):
        return zip(self.members, np.split(emb, len(self.members), axis=1))


class _State:
    """A state dict, of which everything is taken once."""

    def __init__(self, arrays):
        # Paddle's GRU has a second set of names for the same weights.
        self._arrays = {name: array for name, array in arrays.items() if ".gru.0.cell." not in name}

    def take(self, name, *shape):
        """The array of a name. Raises ValueError where there is none of this shape."""
        if name not in self._arrays:
            raise ValueError(f"it lacks {name}")
        array = self._arrays.pop(name)
        if array.shape != shape:
            raise ValueError(f"{name} is {list(array.shape)} and not {list(shape)}")
        return array

    def check_all_taken(self):
        """Raises ValueError where something is left."""
        for name in self._arrays:
            raise ValueError(f"it holds {name}, which the model has not")


class _Towers(NamedTuple):
    """The towers of a member, over its columns of the table.

    gru: as packed_gru takes them, None for a bag of words; pooling: of its states
    user_fc, item_fc: weight and bias, the latter None where an item's vector is its embedding
    gains: <float32>[n + 1, hidden] of the last n clicks, newest first, and of the mean of all, or
        None
    """

    gru: Optional[tuple]
    pooling: str
    user_fc: tuple
    item_fc: Optional[tuple]
    gains: Optional[np.ndarray]

    @classmethod
    def of(cls, sizes, state, name):
        """sizes: as of FrozenModel; state: _State; name: of the member in it"""
        dim, hidden, pooling = (sizes[key] for key in ("embedding_dim", "hidden_size", "pooling"))
        gru, encoded = None, dim
        if sizes["user_encoder"] == "gru":
            def take(weight, *shape):
                return state.take(f"{name}.user_encoder.gru.{weight}_l0", *shape)
            gru = (np.ascontiguousarray(take("weight_ih", 3 * hidden, dim).T),
                   np.ascontiguousarray(take("weight_hh", 3 * hidden, hidden).T),
                   take("bias_ih", 3 * hidden), take("bias_hh", 3 * hidden))
            encoded = hidden if pooling == "max" else 2 * hidden

        def take_fc(fc, rows):
            return (state.take(f"{name}.{fc}.weight", rows, hidden),
                    state.take(f"{name}.{fc}.bias", hidden))
        gains = (state.take(f"{name}.click_gains", RECENT_CLICKS[pooling] + 1, hidden)
                 if pooling in RECENT_CLICKS else None)
        return cls(gru, pooling, take_fc("user_fc", encoded),
                   take_fc("item_fc", dim) if sizes["item_encoder"] == "fc" else None, gains)

    def user(self, emb, lengths):
        """As FrozenModel.encode_user, for this member."""
        user = _linear(self._encode(emb, lengths), self.user_fc)
        if self.gains is not None:
            self._add_clicks(user, emb, lengths)
        return _unit_rows(user)

    def item(self, emb):
        """As FrozenModel.encode_item, for this member."""
        return _unit_rows(emb if self.item_fc is None else _linear(emb, self.item_fc))

    def _encode(self, emb, lengths):
        ends = np.cumsum(lengths)
        if self.gru is None:
            return np.add.reduceat(emb, ends - lengths)
        states = packed_gru(np.ascontiguousarray(emb), *self.gru, lengths)
        last = scatter(np.arange(len(emb)), states.rows)[ends - 1]
        if self.pooling == "max":
            return states.top[last]
        return np.concatenate([states.top[last], states.state[last]], axis=1)

    def _add_clicks(self, user, emb, lengths):
        """Adds the embeddings of the last clicks and the mean of all to what the fc made."""
        ends = np.cumsum(lengths)
        clicks = _unit_rows(emb) if self.pooling == "max_unit_clicks" else emb
        recent, of_mean = self.gains[:-1], self.gains[-1]
        back = np.arange(len(recent))
        has_click = lengths[:, None] > back
        newest = clicks[np.where(has_click, ends[:, None] - 1 - back, 0)]
        user += np.einsum("ij,ijk,jk->ik", has_click, newest, recent)
        total = np.add.reduceat(clicks, ends - lengths)
        user += of_mean * (total / lengths[:, None].astype(np.float32))


def _linear(x, weights):
    weight, bias = weights
    out = x @ weight
    out += bias
    return out


def _join(vectors):
    """As SequenceSemanticRetrieval.join, of numpy."""
    if len(vectors) == 1:
        return vectors[0]
    return np.concatenate(vectors, axis=1) * np.float32(1 / np.sqrt(len(vectors)))


def _unit_rows(x):
    """As ragged.unit_rows, of numpy."""
    return x / np.sqrt((x * x).sum(1, keepdims=True) + np.float32(1e-12))

"""The encoder of sessions and items."""

from __future__ import annotations

import numpy as np

from nets import GrnnEncoder
from ssr.kernels.gru import packed_gru


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


def freeze(model):
    """A model without gradients from here on, in every thread. Returns its FrozenUsers."""
    for parameter in model.parameters():
        parameter.stop_gradient = True
    return FrozenUsers(model)


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

"""The two towers over padded sequences, which is what a static graph can hold: for the parameter
server and for export. The same functions of the same parameters as the model's own (nets.py).

A row of the table is a token or an item's id. Sequences and bags are filled up behind their ends.
"""

from __future__ import annotations

from ssr.kernels.ragged import unit_rows
from ssr.runtime import paddle

F = paddle.nn.functional


def pair_cosines(model, clicks, lengths, positive, negative):
    """cos(user, positive) and cos(user, negative), <float32>[batch] each, for a model of one member
    whose items are their ids.

    clicks: <int64>[batch, time]; lengths, positive, negative: <int64>[batch]
    """
    towers, = model.members
    user = _user(towers, model.embedding(clicks), lengths)
    return tuple(paddle.sum(user * towers.item(model.embedding(items)), axis=1)
                 for items in (positive, negative))


def user_vectors(model, rows):
    """The vectors of sessions.

    rows: <int64>[batch, time, tokens], the rows of the table that make up each click; -1 behind
        the last row of a click and behind the last click. Each session has a click.
    returns <float32>[batch, members * hidden] of length 1
    """
    lengths = paddle.sum(paddle.cast(paddle.max(rows, axis=2) >= 0, "int64"), axis=1)
    return model.join([_user(towers, emb, lengths)
                       for towers, emb in model.split(_sums_of_bags(model, rows))])


def item_vectors(model, rows):
    """The vectors of items.

    rows: <int64>[items, tokens], filled up as in user_vectors
    returns <float32>[items, members * hidden] of length 1
    """
    return model.encode_item(_sums_of_bags(model, rows))


def _sums_of_bags(model, rows):
    """<int64>[.., tokens] -> <float32>[.., members * dim]"""
    is_row = paddle.cast(rows >= 0, "float32").unsqueeze(-1)
    return paddle.sum(model.embedding(paddle.clip(rows, min=0)) * is_row, axis=-2)


def _user(towers, emb, lengths):
    """emb: <float32>[batch, time, dim]; lengths: <int64>[batch] -> <float32>[batch, hidden]"""
    valid = _valid_steps(emb, lengths)
    user = towers.user_fc(_pooled(towers.user_encoder, emb, lengths, valid))
    if towers.click_gains is not None:
        # The mean as one product with its weights: Paddle 3.3 exports a sum wrongly of which the
        # mean is taken as well.
        weights = valid * paddle.reciprocal(paddle.cast(lengths, "float32")).reshape([-1, 1, 1])
        user = user + towers.click_gains[-1] * paddle.sum(emb * weights, axis=1)
        later = valid
        for back in range(towers.click_gains.shape[0] - 1):
            earlier = _valid_steps(emb, paddle.clip(lengths - back - 1, min=0))
            user = user + towers.click_gains[back] * paddle.sum(emb * (later - earlier), axis=1)
            later = earlier
    return unit_rows(user)


def _pooled(encoder, emb, lengths, valid):
    """What the encoder makes of padded sequences: <float32>[batch, encoder's output size]"""
    if not hasattr(encoder, "gru"):  # a bag of words
        return paddle.sum(emb * valid, axis=1)
    states, last = encoder.gru(emb, sequence_length=lengths)
    top = paddle.max(states * valid - (1 - valid), axis=1)  # no state is below -1
    return top if encoder.pooling == "max" else paddle.concat([top, last[0]], axis=1)


def _valid_steps(emb, lengths):
    """<float32>[batch, time, 1]: 1 where a padded sequence has a row, 0 behind it."""
    return F.sequence_mask(lengths, paddle.shape(emb)[1], "float32").unsqueeze(-1)

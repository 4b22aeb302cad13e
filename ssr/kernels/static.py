"""The two towers over padded sequences, which is what a static graph can hold: for the parameter
server and for export. The same functions of the same parameters as the model's own (nets.py).

A row of the table is a token or an item's id. Sequences and bags are filled up behind their ends.
A model with pretrained vectors of items takes these beside the rows.
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


def user_vectors(model, rows, pretrained=None):
    """The vectors of sessions.

    rows: <int64>[batch, time, tokens], the rows of the table that make up each click; -1 behind
        the last row of a click and behind the last click. Each session has a click.
    pretrained: <float32>[batch, time, item_vector_dim], those of the items clicked; zeros where
        there is none and behind the last click. None for a model without them
    returns <float32>[batch, members * hidden] of length 1
    """
    lengths = session_lengths(rows, pretrained)
    return model.join([_user(towers, emb, lengths)
                       for towers, emb in model.split(_sums_of_bags(model, rows, pretrained))])


def session_lengths(rows, pretrained=None):
    """The clicks of each session, <int64>[batch]. rows, pretrained: as of user_vectors"""
    is_click = paddle.max(rows, axis=2) >= 0
    if pretrained is not None:
        is_click = paddle.logical_or(is_click, paddle.max(paddle.abs(pretrained), axis=2) > 0)
    return paddle.sum(paddle.cast(is_click, "int64"), axis=1)


def item_vectors(model, rows, pretrained=None):
    """The vectors of items.

    rows: <int64>[items, tokens]; pretrained: <float32>[items, item_vector_dim]; filled up as in
        user_vectors
    returns <float32>[items, members * hidden] of length 1
    """
    return model.encode_item(_sums_of_bags(model, rows, pretrained))


def _sums_of_bags(model, rows, pretrained):
    """<int64>[.., tokens] and maybe <float32>[.., item_vector_dim]
    -> <float32>[.., members * dim]"""
    is_row = paddle.cast(rows >= 0, "float32").unsqueeze(-1)
    emb = paddle.sum(model.embedding(paddle.clip(rows, min=0)) * is_row, axis=-2)
    return emb if pretrained is None else emb + model.item_projection(pretrained)


def _user(towers, emb, lengths):
    """emb: <float32>[batch, time, dim]; lengths: <int64>[batch] -> <float32>[batch, hidden]"""
    valid = _valid_steps(emb, lengths)
    user = towers.user_fc(_pooled(towers.user_encoder, emb, lengths, valid))
    if towers.click_gains is not None:
        clicks = unit_rows(emb) if towers.unit_clicks else emb
        # The mean as one product with its weights: Paddle 3.3 exports a sum wrongly of which the
        # mean is taken as well.
        weights = valid * paddle.reciprocal(paddle.cast(lengths, "float32")).reshape([-1, 1, 1])
        user = user + towers.click_gains[-1] * paddle.sum(clicks * weights, axis=1)
        later = valid
        for back in range(towers.click_gains.shape[0] - 1):
            earlier = _valid_steps(emb, paddle.clip(lengths - back - 1, min=0))
            user = user + towers.click_gains[back] * paddle.sum(clicks * (later - earlier), axis=1)
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

"""The sampled softmax: the cross-entropy of targets among candidates that all of them share.

On a CPU losses and gradients are computed in one pass over blocks of rows (FusedCrossEntropy); on a
GPU by Paddle's operators, over all logits at once. Both are the same function.
"""

from __future__ import annotations

import numpy as np

from ssr.kernels.memory import as_array, new_tensor
from ssr.kernels.ragged import on_cpu
from ssr.runtime import paddle

F = paddle.nn.functional

# Logits of a block, 4 MB, and its rows at least: smaller products lose more than the cache gains.
BLOCK_NUMBERS, MIN_BLOCK_ROWS = 2 ** 20, 128
MAX_UNSHIFTED = 40  # e^40 times the items that a candidate stands for is far below a float's range


def sampled_cross_entropy(users, items, place, certain, log_inclusion, scale):
    """Loss of each target: the log-sum-exp of its logits less its own logit, where

        logit[t, j] = scale * users[t] . items[j] - log_inclusion[j]

    and nothing is taken off for the pairs (t, j) that are certain.

    users: <float32>[targets, hidden], items: <float32>[candidates, hidden], of length 1
    place: numpy <int64>[targets], which candidate is the target
    certain: numpy <int64>[n, 2], ascending pairs of target and candidate, a target's own among them
    log_inclusion: numpy <float32>[candidates]
    returns <float32>[targets]
    """
    if on_cpu(users):
        return FusedCrossEntropy.apply(users, items, place, certain, log_inclusion, scale)
    return cross_entropy_of_logits(users, items, place, certain, log_inclusion, scale)


def cross_entropy_of_logits(users, items, place, certain, log_inclusion, scale):
    """As sampled_cross_entropy, by Paddle's operators."""
    # The correction is one more column of the product: no pass over all logits of its own.
    users = paddle.concat([users * scale, paddle.ones([len(place), 1])], axis=1)
    items = paddle.concat([items, paddle.to_tensor(-log_inclusion[:, None])], axis=1)
    logits = paddle.scatter_nd_add(paddle.matmul(users, items, transpose_y=True),
                                   paddle.to_tensor(certain),
                                   paddle.to_tensor(log_inclusion[certain[:, 1]]))
    losses = F.cross_entropy(logits, paddle.to_tensor(place[:, None]), reduction="none")
    return losses.squeeze(-1)


class FusedCrossEntropy(paddle.autograd.PyLayer):
    """As sampled_cross_entropy, on a CPU: the gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx, users, items, *rest):
        arrays = as_array(users), as_array(items)
        losses, *gradients = losses_and_gradients(*arrays, *rest)
        ctx.saved = arrays, rest, gradients
        return paddle.to_tensor(losses)

    @staticmethod
    def backward(ctx, d_losses):
        arrays, rest, gradients = ctx.saved
        weights = as_array(d_losses)
        if not (weights == weights[0]).all():  # none of a mean or sum
            _, *gradients = losses_and_gradients(*arrays, *rest, weights)
            weights = np.ones(1, np.float32)
        results = []
        for gradient in gradients:
            result, array = new_tensor(*gradient.shape)
            np.multiply(gradient, weights[0], out=array)
            results.append(result)
        return tuple(results)


def losses_and_gradients(users, items, place, certain, log_inclusion, scale, weights=None):
    """The losses, and the gradients of their sum by users and items.

    Arguments as of sampled_cross_entropy, all of numpy, users and items of one type of float, which
    is also that of the results. weights: <float>[targets], of the losses in that sum; None for 1
    returns (<float>[targets], <float>[targets, hidden], <float>[candidates, hidden])

    A candidate that is there with probability pi counts 1 / pi times: with e = exp(scale * cosine)
    the softmax is e / pi over the sum of that. The counts are put into the matrices that e is
    multiplied with, so that the logits are written once and become e in place.
    """
    inclusion = np.exp(log_inclusion).astype(items.dtype)
    counts = 1 / inclusion
    counted = items * counts[:, None]
    losses = np.empty(len(users), users.dtype)
    d_users, d_items = np.empty_like(users), np.empty_like(items)
    edges = _block_edges(len(users), len(items))
    logits = np.empty((np.diff(edges).max(), len(items)), users.dtype)
    pairs = np.searchsorted(certain[:, 0], edges)
    for begin, end, first_pair, last_pair in zip(edges, edges[1:], pairs, pairs[1:]):
        block = slice(begin, end)
        e = np.matmul(scale * users[block], items.T, out=logits[:end - begin])
        if scale > MAX_UNSHIFTED:
            e -= e.max(axis=1, keepdims=True)
        own = np.arange(end - begin), place[block]
        losses[block] = -e[own]
        np.exp(e, out=e)
        row, candidate = certain[first_pair:last_pair].T
        e[row - begin, candidate] *= inclusion[candidate]
        total = e @ counts
        losses[block] += np.log(total)
        # From here on e is the gradient of the logits, but for what all of a row or column share.
        e[own] -= total * inclusion[place[block]]
        share = scale / total if weights is None else scale * weights[block] / total
        np.matmul(e, counted, out=d_users[block])
        d_users[block] *= share[:, None]
        users_share = users[block] * share[:, None]
        if begin:
            d_items += e.T @ users_share
        else:
            np.matmul(e.T, users_share, out=d_items)
    d_items *= counts[:, None]
    return losses, d_users, d_items


def _block_edges(targets, candidates):
    """<int64>[blocks + 1]: where blocks of rows of much the same size begin and end."""
    rows = max(MIN_BLOCK_ROWS, BLOCK_NUMBERS // candidates)
    return np.linspace(0, targets, -(-targets // rows) + 1).astype(np.int64)

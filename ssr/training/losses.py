"""Losses beyond the pairwise hinge."""

from __future__ import annotations

import numpy as np

from nets import mean_over_members
from reader import ragged_arange
from ssr.kernels.ragged import take
from ssr.kernels.softmax import sampled_cross_entropy
from ssr.runtime import paddle

nn, F = paddle.nn, paddle.nn.functional


class SampledSoftmaxLoss(nn.Layer):
    """Cross-entropy of the target among shared candidates, corrected for how these were drawn.

    A candidate j that is there with probability pi_j stands for 1 / pi_j items like it, so the sum
    over candidates of exp(scale * cos) / pi_j has the sum over all items as its expectation: log
    pi_j is taken off the logit (the logQ correction; Bengio and Senecal, 2008; Jean et al., 2015).
    The targets of a row's own session are among the candidates for certain, so they have pi = 1.

    Where a batch says what was shown beside a target and not clicked, the cross-entropy of the
    target among these is added: which of the items that a user sees will be clicked. Among all
    items, with any correction, they would be the same few of many that they are without it.

    scale: logit = scale * cosine
    sampled_weight: of the first cross-entropy where there is the second; with 0 a model learns
        nothing but which of the items that are shown are clicked
    """

    def __init__(self, scale=16.0, sampled_weight=1.0):
        super().__init__()
        self.scale, self.sampled_weight = scale, sampled_weight

    def forward(self, towers, batch):
        """towers: what a model makes of a batch with shared candidates (reader.Batch)

        returns (losses, probability that the softmax gives to the target), <float32>[targets]
        each, the mean over the members
        """
        place = np.searchsorted(batch.candidates, batch.positive)
        certain = own_session(batch)
        return mean_over_members([
            self._of_member(users, *_parted(items, batch), (place, certain), batch)
            for users, items in towers])

    def _of_member(self, users, items, shown, targets, batch):
        losses = sampled_cross_entropy(users, items, *targets, batch.log_inclusion, self.scale)
        correct = paddle.exp(-losses.detach())
        if shown is not None:
            place, _ = targets
            among_shown = self._among_shown(
                users, take(items, place), shown, batch)
            losses = self.sampled_weight * losses + among_shown
        return losses, correct

    def _among_shown(self, users, target, shown, batch):
        """The cross-entropy of targets among what was shown, 0 where nothing is known of that.

        users, target: <float32>[targets, hidden]; shown: <float32>[targets, n, hidden]
        """
        is_known = (batch.shown != batch.positive[:, None]).any(axis=1)
        items = paddle.concat([target.unsqueeze(1), shown], axis=1)
        logits = self.scale * paddle.sum(users.unsqueeze(1) * items, axis=-1)
        first = paddle.zeros([len(batch.positive), 1], "int64")
        losses = F.cross_entropy(logits, first, reduction="none").squeeze(-1)
        return losses * paddle.to_tensor(is_known.astype(np.float32))


def _parted(items, batch):
    """(shared candidates, what was shown <float32>[targets, n, hidden] or None)"""
    if batch.shown is None:
        return items, None
    items, shown = paddle.split(items, [len(batch.candidates), batch.shown.size])
    return items, shown.reshape([*batch.shown.shape, -1])


def own_session(batch):
    """For each target, where the items of its session are among the candidates, each item once.

    batch: reader.Batch with shared candidates, all items of its sessions among them
    returns <int64>[n, 2], ascending: target number i has the candidate j
    """
    items, lengths = batch.sessions()
    width = len(batch.candidates)
    session = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(session * width + np.searchsorted(batch.candidates, items))
    session, place = np.divmod(pairs, width)
    count = np.bincount(session)
    targets = batch.lengths if batch.every_prefix else np.ones_like(count)
    first, count = (np.repeat(numbers, targets) for numbers in (np.cumsum(count) - count, count))
    row = np.repeat(np.arange(len(batch.positive)), count)
    return np.stack([row, place[ragged_arange(first, count)]], axis=1)

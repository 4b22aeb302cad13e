"""Negatives drawn by how often items are clicked. Both classes have the methods of
reader.UniformNegatives."""

from __future__ import annotations

import numpy as np


class PopularityNegatives:
    """Each target gets negatives of its own, never itself, among the items that were clicked.

    dataset: whose items are drawn
    num: negatives of a target
    alpha: an item is drawn with a probability ~ clicks^alpha; 0 for all alike
    """

    def __init__(self, dataset, num=1, alpha=0.0):
        self.num = num
        self.draw = _Draw(dataset.item_clicks(), alpha)

    def candidates(self, random, positive):
        """<int64>[targets, 1 + num], the target first, and None."""
        negative = self.draw(random, (len(positive), self.num))
        while (same := negative == positive[:, None]).any():
            negative[same] = self.draw(random, np.count_nonzero(same))
        return np.concatenate([positive[:, None], negative], axis=1), None

    @staticmethod
    def of_rank(candidates, mine):
        """The candidates of the targets mine <bool>[targets]."""
        return candidates[mine]


class SharedNegatives:
    """All targets of a step get the same candidates: themselves, and some drawn items.

    dataset: whose items are drawn
    targets: as in reader.YoochooseDataset.train
    num: items drawn a step, with replacement
    alpha: with a probability ~ clicks^alpha
    """

    def __init__(self, dataset, targets, num, alpha):
        self.num = num
        self.draw = _Draw(dataset.item_clicks(), alpha)
        labels = np.ones(len(dataset.items), bool)
        labels[dataset.offsets[:-1]] = False
        if targets == "last":
            labels[:] = False
            labels[dataset.offsets[1:] - 1] = True
        counts = np.bincount(dataset.items[labels], minlength=dataset.vocab_size)
        self.as_target = counts / counts.sum()

    def candidates(self, random, positive):
        """(candidates <int64>[n], log_inclusion <float32>[n]), as in a reader.Batch.

        An item is a candidate if it is drawn or the target of a row. With N targets distributed as
        p and K draws distributed as q, that has a probability of 1 - (1 - q)^K (1 - p)^N, taken as
        1 - exp(-K q - N p).
        """
        drawn = self.draw(random, self.num)
        items = np.unique(np.concatenate([positive, drawn]))
        expected = self.num * self.draw.probability[items] + len(positive) * self.as_target[items]
        return items, np.log(-np.expm1(-expected)).astype(np.float32)

    @staticmethod
    def of_rank(candidates, mine):
        """All of them, whatever the targets."""
        return candidates


class _Draw:
    """Draws items with a probability ~ clicks^alpha; those without a click never."""

    def __init__(self, clicks, alpha):
        weight = np.where(clicks > 0, clicks, 0.0)
        weight[clicks > 0] **= alpha
        self.probability = weight / weight.sum()
        self.below = np.cumsum(self.probability)
        self.below /= self.below[-1]

    def __call__(self, random, shape):
        return np.searchsorted(self.below, random.random(shape), side="right")



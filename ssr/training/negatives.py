"""Negatives: items drawn by how often they are clicked, or shown to the user and not clicked.

Classes of the first kind have the methods of reader.UniformNegatives.
"""

from __future__ import annotations

import bisect

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

    def candidates(self, random, positive, sessions=None):
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
    """All targets of a step get the same candidates: the items of their sessions, and some drawn
    items.

    dataset: whose items are drawn
    num: items drawn a step, with replacement
    alpha: with a probability ~ clicks^alpha
    """

    def __init__(self, dataset, num, alpha):
        self.num = num
        clicks = dataset.item_clicks()
        self.draw = _Draw(clicks, alpha)
        self.as_clicked = clicks / clicks.sum()

    def candidates(self, random, positive, sessions):
        """(candidates <int64>[n], log_inclusion <float32>[n]), as in a reader.Batch.

        sessions: <int64>[m], all clicks of the sessions, targets included

        An item is a candidate if it is drawn or clicked. With N clicks distributed as p and K
        draws distributed as q, that has a probability of 1 - (1 - q)^K (1 - p)^N, taken as
        1 - exp(-K q - N p).
        """
        drawn = self.draw.ascending(random, self.num)
        items = np.unique(np.concatenate([sessions, drawn]))
        expected = self.num * self.draw.probability[items] + len(sessions) * self.as_clicked[items]
        return items, np.log(-np.expm1(-expected)).astype(np.float32)

    @staticmethod
    def of_rank(candidates, mine):
        """All of them, whatever the targets."""
        return candidates


class ShownNegatives:
    """What users saw beside the items that they clicked, and did not click themselves.

    A click of a session is found again in the impressions by its item and by the history that the
    user had: the longest one that the session begins with. That is how preprocess.py mind makes
    sessions. A click that is not found, or beside which nothing else was shown, has no negatives.

    dataset: YoochooseDataset; impressions: ssr.impressions.Impressions of the same items
    usable: <bool>[V], the items that may be negatives: those that a step can teach something
    """

    NUM = 4  # of a target, drawn with replacement; as NRMS and NAML are trained

    def __init__(self, dataset, impressions, usable):
        events = _clicks_of(impressions)
        self.items, self.begins = impressions.shown, impressions.offsets
        self.is_negative = ~impressions.labels & usable[impressions.shown]
        self.impression = _found(dataset, impressions, events)
        self._keep_negatives()

    def _keep_negatives(self):
        """Leaves of the impressions only their negatives, end to end."""
        number = np.concatenate([[0], np.cumsum(self.is_negative)])
        self.begins = number[self.begins]
        self.items = self.items[self.is_negative]
        self.counts = np.diff(self.begins)
        found = self.impression >= 0
        self.impression[found] = np.where(self.counts[self.impression[found]] > 0,
                                          self.impression[found], -1)

    def draw(self, clicks, num, random):
        """(<bool>[n], which clicks have negatives; <int64>[those, num], theirs).

        clicks: <int64>[n], the places of clicks in the data set
        """
        impression = self.impression[clicks]
        found = impression >= 0
        impression = impression[found, None]
        drawn = (random.random((len(impression), num)) * self.counts[impression]).astype(np.int64)
        return found, self.items[self.begins[impression] + drawn].astype(np.int64)

    def beside(self, batch, predicted, random):
        """A reader.Batch with them: in place of the negatives of each target that has such, or,
        where candidates are shared, as what was shown.

        predicted: <int64>[targets], the places of the targets in the data set
        """
        if batch.log_inclusion is None:
            candidates = batch.candidates.copy()
            found, negatives = self.draw(predicted, candidates.shape[1] - 1, random)
            candidates[found, 1:] = negatives
            return batch._replace(candidates=candidates)
        shown = np.repeat(batch.positive[:, None], self.NUM, axis=1)
        found, negatives = self.draw(predicted, self.NUM, random)
        shown[found] = negatives
        return batch._replace(shown=shown)


def _clicks_of(impressions):
    """{(history, item): impression} of all clicks, numbers as in Impressions; the last one counts.
    """
    owner = np.repeat(np.arange(len(impressions)), np.diff(impressions.offsets))[impressions.labels]
    items = impressions.shown[impressions.labels]
    return dict(zip(zip(impressions.history[owner].tolist(), items.tolist()), owner.tolist()))


def _found(dataset, impressions, events):
    """<int32>[clicks]: the impression in which each click of a data set was made, -1 where there is
    none."""
    history_of = {impressions.clicks[begin:end].tobytes(): number for number, (begin, end) in
                  enumerate(zip(impressions.history_offsets[:-1], impressions.history_offsets[1:]))}
    lengths = sorted(set(map(len, history_of)))  # in bytes
    found = np.full(len(dataset.items), -1, np.int32)
    for begin, end in zip(dataset.offsets[:-1].tolist(), dataset.offsets[1:].tolist()):
        session = np.asarray(dataset.items[begin:end], np.int32)
        data = session.tobytes()
        shorter = reversed(lengths[:bisect.bisect_left(lengths, len(data))])
        length = next((length for length in shorter if data[:length] in history_of), None)
        if length is not None:
            history, before = history_of[data[:length]], length // session.itemsize
            found[begin + before:end] = [events.get((history, item), -1)
                                         for item in session[before:].tolist()]
    return found


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

    def ascending(self, random, num):
        """The same items as by a call, ascending, in half of the time: a search begins where the
        one before ended."""
        return np.searchsorted(self.below, np.sort(random.random(num)), side="right")



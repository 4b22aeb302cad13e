"""What a recommender of news has to beat, each in streaming form: it sees a click at once."""

from __future__ import annotations

from collections import deque

import numpy as np

from ssr.news.timeline import Method


def rank_among(scores, place, excluded):
    """1 + the other entries of scores that are as high as that at place or higher.

    excluded: places that are no candidates; place is not one of them
    """
    return (int(np.count_nonzero(scores >= scores[place]))
            - int(np.count_nonzero(scores[excluded] >= scores[place])))


class Popular(Method):
    """The articles that were clicked most in the last `window` seconds; of those that were clicked
    equally often the one that was clicked last comes first.

    num_items: ids are below it
    """

    def __init__(self, num_items, window):
        self.window = window
        self.counts = np.zeros(num_items, np.int64)
        self.newest = np.full(num_items, -np.inf)  # time of the last click
        self.recent = deque()

    def rank(self, click):
        while self.recent and self.recent[0][0] < click.time - self.window:
            self.counts[self.recent.popleft()[1]] -= 1
        label, session = click.item, np.unique(np.array(click.before, np.int64))
        if label in session or not self.counts[label]:
            return 0  # whatever was not clicked in the window is no candidate
        count = self.counts[label]
        self.counts[session] *= -1  # aside, for a moment
        equal = np.flatnonzero(self.counts == count)
        better = int(np.count_nonzero(self.counts > count))
        self.counts[session] *= -1
        return better + int(np.count_nonzero(self.newest[equal] >= self.newest[label]))

    def learn(self, click):
        self.recent.append((click.time, click.item))
        self.counts[click.item] += 1
        self.newest[click.item] = click.time


class VSKNN(Method):
    """Vector multiplication session-kNN (V-SKNN; Ludewig and Jannach, "Evaluation of Session-based
    Recommendation Algorithms", UMUAI 2018, section 3.3), on the sessions so far.

    Of the sessions that share an article with the current one the `sample` newest are taken, of
    these the `k` most similar; the similarity is the dot product of the shared articles with the
    current session as a vector, whose entries fall linearly from 1 at its last click to 1/n at its
    first of n. An article's score is the sum of the similarities of the neighbours that have it.
    """

    def __init__(self, num_items, k=100, sample=1000):
        self.k, self.sample = k, sample
        self.scores = np.zeros(num_items)
        self.sessions = {}  # id -> (its number, its items)
        self.items = []  # by number
        self.newest = np.zeros(1024, np.int64)  # by number: when its last click came, counted
        self.having = {}  # item -> numbers of the sessions that have it, the newest last
        self.clicks = 0

    def learn(self, click):
        item = click.item
        self.clicks += 1
        number = self.sessions.setdefault(click.session, len(self.items))
        if number == len(self.items):
            self.items.append([])
            if number == len(self.newest):
                self.newest = np.concatenate([self.newest, np.zeros_like(self.newest)])
        self.newest[number] = self.clicks
        if item not in self.items[number]:
            self.items[number].append(item)
            # No query takes more than `sample` sessions: those that came to it last are kept.
            self.having.setdefault(item, deque(maxlen=self.sample)).append(number)

    def neighbours(self, session, own):
        """(numbers <int64>[n], similarities <float64>[n]) of the k sessions nearest to one, whose
        own id is left out."""
        weight = {item: place / len(session) for place, item in enumerate(session, 1)}
        having = {item: np.fromiter(self.having[item], np.int64) for item in weight
                  if item in self.having}
        if not having:
            return np.empty(0, np.int64), np.empty(0)
        numbers = np.concatenate(list(having.values()))
        shared = np.repeat([weight[item] for item in having], [*map(len, having.values())])
        numbers, inverse = np.unique(numbers, return_inverse=True)
        similarity = np.bincount(inverse, shared)
        others = numbers != self.sessions.get(own, -1)
        numbers, similarity = numbers[others], similarity[others]
        newest = np.argsort(-self.newest[numbers])[:self.sample]
        # Among equally similar ones the newest.
        nearest = newest[np.argsort(-similarity[newest], kind="stable")[:self.k]]
        return numbers[nearest], similarity[nearest]

    def rank(self, click):
        label, session = click.item, click.before
        if label in session:
            return 0
        numbers, similarity = self.neighbours(session, click.session)
        items = [self.items[number] for number in numbers]
        places = np.array([item for part in items for item in part], np.int64)
        np.add.at(self.scores, places, np.repeat(similarity, [len(part) for part in items]))
        # An article of no neighbour ties with all others.
        rank = self.scores[label] and rank_among(self.scores, label, np.unique(session))
        self.scores[places] = 0
        return int(rank)

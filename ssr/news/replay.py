"""Replays sessions with times in order, as a service would have seen them, and evaluates what would
have been recommended.

    python evaluate_stream.py --test_dir fit/test_data --times fit/test_times --vocab_path \\
        fit/vocab.txt --model_dir fit/model --fit
    python evaluate_stream.py --test_dir data/test_data --times data/test_times --vocab_path \\
        data/vocab.txt --model_dir data/model --scoring fit/model/stream.json

Every click of a session but the first is a query: which article is clicked now. It knows the clicks
of its session before it, and of all others those strictly earlier than its own time. Ties count
against, articles of the session are no candidates, an article that is no candidate is a miss. The
score is that of stream.py; its parameters are read from --scoring, or, with --fit, found on these
sessions and written there: fit on a day and evaluate on a later one.

Beside it, in the same replay: the articles clicked most in a window, the model alone as it was
trained (frozen), and a session-kNN that sees every click (V-SKNN; stream_baselines.py).
"""

from __future__ import annotations

import logging
import sys
import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ssr.news import stream
from ssr.news.baselines import rank_among
from ssr.retrieval import evaluation
from ssr.retrieval.encoder import freeze
from ssr.training.content import ItemContent

logger = logging.getLogger("evaluate_stream")

SLICE = 64  # clicks whose sessions are encoded together
MAX_LEN = 20  # newest clicks of a session that are encoded
PARTS = ("readers", "content", "popularity", "transitions")
BASELINES = ("popular", "frozen", "vsknn")
DRAWN_FROM = 50  # queries: the recall of fewer is noise, and no point of the plot


# --- the clicks in order --------------------------------------------------------------------------


class Clicks(NamedTuple):
    """All clicks in order of time; at the same time in that of the sessions.

    items: <int64>[clicks] in order of time; times: <int64>[clicks] in seconds
    sessions: list of lists, the items of each session; session, position: <int64>[clicks], the
        click is sessions[session][position]
    asked: <bool>[clicks], whether the click is a query: none of the sessions to warm up is
    """

    items: np.ndarray
    times: np.ndarray
    sessions: list
    session: np.ndarray
    position: np.ndarray
    asked: np.ndarray

    def before(self, number):
        """The items of the session before click `number`."""
        return self.sessions[self.session[number]][:self.position[number]]


def in_order(data, times, warm=None, warm_times=None, warm_seconds=86400):
    """The Clicks of some sessions, among those to warm up that end in the last warm_seconds before
    them or later.

    data, warm: YoochooseDataset; times, warm_times: <int64>[clicks]
    """
    items, offsets, begins = np.asarray(data.items, np.int64), data.offsets, int(times.min())
    if warm is not None:
        kept = warm_times[warm.offsets[1:] - 1] >= begins - warm_seconds
        lengths = np.diff(warm.offsets)
        chosen = np.repeat(kept, lengths)
        items = np.concatenate([np.asarray(warm.items, np.int64)[chosen], items])
        times = np.concatenate([warm_times[chosen], times])
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([lengths[kept],
                                                                np.diff(data.offsets)]))])
    lengths = np.diff(offsets)
    session = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    order = np.argsort(times, kind="stable")
    sessions = [part.tolist() for part in np.split(items, offsets[1:-1])]
    asked = position > 0
    asked[:len(items) - len(data.items)] = False
    return Clicks(items[order], times[order], sessions, session[order], position[order],
                  asked[order])


# --- methods --------------------------------------------------------------------------------------


class Encoder:
    """The vectors of sessions, in which articles that the model does not know stand as well.

    In a model with a tied item tower an article's vector is the direction of its embedding. So that
    of its readers, at the mean length of the trained ones, is an embedding for it. In other models
    such clicks are skipped.

    vocab_size: of the sessions, which may be more than the model's
    item_tokens: ItemTokens of so many items, None for a model without content
    """

    def __init__(self, model, vocab_size, item_tokens=None):
        self.model, self._users = model, freeze(model)
        clicks = model.item_clicks.numpy()
        # Articles of the day come behind those that the model has.
        self.known = np.pad(clicks, (0, vocab_size - len(clicks))) > 0
        content = item_tokens and ItemContent(self.known, item_tokens,
                                                     token_row=len(clicks))
        self.has_vector = content.has_vector if content else self.known
        self.table, self.vectors = self._encode_items(content)
        self.dim = self.vectors.shape[1]
        self.length = float(np.linalg.norm(self.table[self.known], axis=1).mean())
        self.tied = all(member.item_fc is None for member in model.members)

    def _encode_items(self, content):
        """Embeddings and vectors <float32>[vocab_size, dim] of all items, zeros for those without
        one."""
        ids = np.flatnonzero(self.has_vector)
        items, embeddings, vectors = evaluation.Items(self.model, content), None, None
        for chunk in np.array_split(ids, -(-len(ids) // evaluation.CLICKS_AT_A_TIME)):
            emb = items.embed(chunk)
            found = self.model.encode_item(emb)
            if vectors is None:
                embeddings, vectors = (np.zeros((len(self.known), x.shape[1]), np.float32)
                                       for x in (emb, found))
            embeddings[chunk], vectors[chunk] = emb.numpy(), found.numpy()
        return embeddings, vectors

    def embedding(self, item, state):
        """<float32>[dim], or None."""
        if self.has_vector[item]:
            return self.table[item]
        vector = state.vector(item) if self.tied and state is not None else None
        return None if vector is None else vector * self.length

    def __call__(self, sequences, state=None):
        """The vector <float32>[dim] of each list of items, None where no click has an embedding.

        state: stream.Stream, without it only articles known to training count
        """
        rows = [[row for item in items[-MAX_LEN:]
                 if (row := self.embedding(item, state)) is not None] for items in sequences]
        lengths = np.array([len(part) for part in rows], np.int64)
        result = [None] * len(rows)
        if lengths.any():
            emb = np.stack([row for part in rows for row in part])
            vectors = self._users(emb, lengths[lengths > 0])
            for place, vector in zip(np.flatnonzero(lengths), vectors):
                result[place] = vector
        return result


class Live:
    """The score of stream.py.

    collect: called with (Stream, label, user, session, now) before each query, if given
    """

    def __init__(self, encoder, scoring, age, collect=None):
        self.encoder, self.scoring, self.collect = encoder, scoring, collect
        self.state = stream.Stream(
            encoder.dim, lambda item: encoder.vectors[item] if encoder.has_vector[item] else None,
            age)
        self.users = {}

    def prepare(self, clicks, numbers):
        self.users.update(zip(numbers, self.encoder([clicks.before(n) for n in numbers],
                                                    self.state)))

    def rank(self, clicks, number):
        label, now = int(clicks.items[number]), float(clicks.times[number])
        session, user = clicks.before(number), self.users[number]
        if self.collect:
            self.collect(self.state, label, user, session, now)
            return 0
        return self.state.rank(label, user, session, now, self.scoring)

    def click(self, clicks, number):
        self.state.click(clicks.items[number], clicks.before(number), clicks.times[number],
                         self.users.pop(number))


class Frozen:
    """The model as it was trained: the cosine with every article that it knows."""

    def __init__(self, encoder):
        self.encoder = encoder
        self.users = {}

    def prepare(self, clicks, numbers):
        asked = [n for n in numbers if clicks.asked[n]]
        self.users = dict(zip(asked, self.encoder([clicks.before(n) for n in asked])))

    def rank(self, clicks, number):
        label, session, user = clicks.items[number], clicks.before(number), self.users[number]
        if user is None or not self.encoder.has_vector[label] or label in session:
            return 0
        scores = self.encoder.vectors @ user
        scores[~self.encoder.has_vector] = -np.inf
        return rank_among(scores, label, list(set(session)))

    def click(self, clicks, number):
        pass


class Baseline:
    """One of stream_baselines.py."""

    def __init__(self, method):
        self.method = method

    def prepare(self, clicks, numbers):
        pass

    def rank(self, clicks, number):
        return self.method.rank(int(clicks.items[number]), clicks.before(number),
                                clicks.times[number], clicks.session[number])

    def click(self, clicks, number):
        self.method.click(int(clicks.items[number]), clicks.before(number), clicks.times[number],
                          clicks.session[number])


def replay(clicks, method, name):
    """Goes through all clicks. A click is told to the method when the first later one comes.

    returns the ranks of the queries <int64>[queries], in order; and how many clicks a second were
    gone through from the first query on
    """
    ranks, waiting = [], []
    first = begun = None  # the first query
    with tqdm(total=len(clicks.items), desc=name, unit="click", leave=False,
              disable=not sys.stderr.isatty()) as bar:
        for begin in range(0, len(clicks.items), SLICE):
            numbers = range(begin, min(begin + SLICE, len(clicks.items)))
            method.prepare(clicks, numbers)
            for number in numbers:
                if waiting and clicks.times[waiting[-1]] < clicks.times[number]:
                    for earlier in waiting:
                        method.click(clicks, earlier)
                    waiting.clear()
                if clicks.asked[number]:
                    if first is None:
                        first, begun = number, time.perf_counter()
                    ranks.append(method.rank(clicks, number))
                waiting.append(number)
            bar.update(len(numbers))
    seconds = time.perf_counter() - begun if ranks else 1.0
    return np.array(ranks, np.int64), (len(clicks.items) - (first or 0)) / seconds


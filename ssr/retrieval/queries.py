"""What an index answers to a session: what clicks rank where it is live, then the nearest vectors;
and, where nothing is known of the session, what was read most in training.

A live index that has seen few clicks knows little: ten articles that were clicked are not the best
ten of a catalogue. Until ENOUGH clicks have come in, the two rankings are mixed. Each is made a
distribution over its first DEPTH items, and an item has

    w * P(item | clicks) + (1 - w) * P(item | model),    w = (1 + clicks) / ENOUGH, at most 1

where P(item | clicks) is the softmax of the live score, whose scores are logits (scoring.py), and
P(item | model) that of cosine / TEMPERATURE, or the share of the clicks in training.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import numpy as np

from ssr.retrieval.filters import EVERYTHING, Filter, check_filter, conditions_of, spread
from ssr.retrieval.values import Answer, Hit

ENOUGH = 100.0  # clicks, as Stream.volume counts them, from which on clicks alone come first
DEPTH = 100  # items of each ranking that are mixed
TEMPERATURE = 0.1  # of cosines
AT_A_TIME = 1 << 10  # popular items that are looked at
MORE = 4  # times as many are ranked where Filter.at_most left too few


class Wanted(NamedTuple):
    """What is asked about each of some sessions.

    k: hits; exclude_session: whether its own items are none
    now: seconds since 1970, None for this moment
    filter: a Filter; by_vectors: whether the nearest vectors are all that counts
    """

    k: int = 20
    exclude_session: bool = True
    now: Optional[float] = None
    filter: Filter = EVERYTHING
    by_vectors: bool = False


class Asked:
    """A session on its way to an Answer.

    keys: of its known items, in the order of the clicks
    clicks: what the encoder takes for those of them that have a vector
    clicked: the keys of these clicks
    user: its vector <float32>[hidden], None where there are no such clicks
    own: {key: score} of its own items that score otherwise than by their cosine
    ranked: (key, score, source), best first
    """

    def __init__(self, session, keys, clicks, clicked=()):
        self.session, self.keys, self.clicks, self.clicked = session, keys, clicks, clicked
        self.user, self.own, self.ranked = None, {}, []

    def reason(self, filter):
        """Why there are no hits, or others than those of the session; "" for neither."""
        if self.user is None:
            reason = "none of its items is known" if self.session else "the session is empty"
            if not self.ranked:
                return reason
            most = "now" if self.ranked[0][2] == "live" else "in training"
            return f"{reason}: these are read most {most}"
        if self.ranked:
            return ""
        return "no other item passes the filter" if filter.selects() else \
            "the index holds no other item"


class Queries:
    """Ranks the items of an index for sessions; any thread may call it."""

    def __init__(self, store, live, scoring, item_clicks, clock):
        """store: store.Store; live: LiveClicks or None; scoring: of a live index; item_clicks:
        <int>[V], how often the items of the model were clicked in training; clock: seconds since
        1970"""
        self._store, self._live, self._scoring, self._clock = store, live, scoring, clock
        items = np.argsort(-item_clicks, kind="stable")[:np.count_nonzero(item_clicks)]
        self._popular = store.model_keys(len(item_clicks))[items]
        self._clicks = dict(zip(self._popular.tolist(), item_clicks[items].tolist()))

    def answer(self, asked, wanted):
        """A list of Answer. asked: a list of Asked, with `user`; wanted: a Wanted

        Raises DataError, StoreError.
        """
        filter, among = wanted.filter, None
        check_filter(filter)
        if filter.selects():
            now = self._clock() if wanted.now is None else wanted.now
            among = self._store.select(conditions_of(filter, now))
        self._rank(asked, wanted, among)
        texts = self._store.items.texts(sorted({key for one in asked for key, _, _ in one.ranked}))
        return [Answer([Hit(texts[key][0], score, texts[key][1], source)
                        for key, score, source in one.ranked],
                       len(one.session) - len(one.clicks), one.reason(filter)) for one in asked]

    def _rank(self, asked, wanted, among):
        """Sets `ranked` of each."""
        at_most, k = wanted.filter.at_most, wanted.k
        while asked:
            self._rank_freely(asked, wanted, among)
            if not at_most:
                return
            short = []
            for one in asked:
                is_all = len(one.ranked) < wanted.k
                fields = self._store.fields([key for key, _, _ in one.ranked])
                one.ranked = spread(one.ranked, fields, at_most, k)
                if len(one.ranked) < k and not is_all:
                    short.append(one)
            asked, wanted = short, wanted._replace(k=wanted.k * MORE)

    def _rank_freely(self, asked, wanted, among):
        for one in asked:
            one.ranked = []
        if not self._live or wanted.by_vectors:
            return self._fill(asked, wanted, among)
        weight = (1 + self._live.volume(wanted.now)) / ENOUGH
        if weight >= 1:
            for one in asked:
                one.ranked = self._clicked(one, wanted, among)
            return self._fill(asked, wanted, among)
        deep = wanted._replace(k=max(wanted.k, DEPTH))
        self._fill(asked, deep, among)
        for one in asked:
            clicked = self._clicked(one, deep, among)
            one.ranked = mixed(clicked, one.ranked, weight)[:wanted.k]

    def _clicked(self, one, wanted, among):
        """What clicks rank, as Asked.ranked."""
        top = self._live.top(one.user, one.keys, self._scoring, wanted.k, wanted.exclude_session,
                             wanted.now, among)
        return [(key, score, "live") for key, score in top]

    def _fill(self, asked, wanted, among):
        """Fills what is ranked up to k hits with what is not ranked by clicks."""
        few = [one for one in asked if len(one.ranked) < wanted.k]
        self._add_nearest([one for one in few if one.user is not None], wanted, among)
        for one in few:
            if one.user is None and not wanted.by_vectors:
                self._add_popular(one, wanted, among)

    def _add_nearest(self, asked, wanted, among):
        """Fills what is ranked up to k hits with the nearest vectors."""
        if not asked:
            return
        taken = [_taken(one, wanted) for one in asked]
        scores, keys = self._store.search(np.stack([one.user for one in asked]),
                                          wanted.k + max(map(len, taken))
                                          + max(len(one.own) for one in asked), among)
        for one, out, *row in zip(asked, taken, keys.tolist(), scores.tolist()):
            hits = [(key, score) for key, score in zip(*row) if key >= 0 and key not in one.own]
            if one.own:
                own = self._store.candidates(np.array([*one.own]), among).tolist()
                hits = sorted(hits + [(key, one.own[key]) for key in own], key=lambda hit: -hit[1])
            nearest = [(key, score, "nearest") for key, score in hits if key not in out]
            one.ranked += nearest[:wanted.k - len(one.ranked)]

    def _add_popular(self, one, wanted, among):
        """The same with what was clicked most in training."""
        taken = _taken(one, wanted)
        for start in range(0, len(self._popular), AT_A_TIME):
            part = self._store.candidates(self._popular[start:start + AT_A_TIME], among)
            one.ranked += [(key, float(self._clicks[key]), "popular")
                           for key in part.tolist() if key not in taken]
            if len(one.ranked) >= wanted.k:
                del one.ranked[wanted.k:]
                return


def mixed(clicked, others, weight):
    """Two rankings as one, of the items of both; an item of both is that of `clicked`.

    clicked, others: lists of (key, score, source), the latter all of one source
    weight: of the first, 0 to 1
    """
    worth = {}
    for ranked, share in ((others, 1 - weight), (clicked, weight)):
        for hit, probability in zip(ranked, _probabilities(ranked)):
            worth[hit[0]] = worth.get(hit[0], 0.0) + share * probability
    hits = {hit[0]: hit for hit in (*others, *clicked)}
    return sorted(hits.values(), key=lambda hit: -worth[hit[0]])


def _probabilities(ranked):
    """<float>[n] of (key, score, source): see the module."""
    if not ranked:
        return []
    scores = np.array([score for _, score, _ in ranked])
    if ranked[0][2] == "popular":
        return (scores / scores.sum()).tolist()
    powers = np.exp((scores - scores.max()) / (TEMPERATURE if ranked[0][2] == "nearest" else 1.0))
    return (powers / powers.sum()).tolist()


def _taken(one, wanted):
    """The keys that are no further hits of a session, a set."""
    return {key for key, _, _ in one.ranked} | set(one.keys if wanted.exclude_session else ())

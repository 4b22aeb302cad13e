"""What an index answers to a session: what clicks rank where it is live, then the nearest vectors;
and what is read most where nothing is known of the session."""

from __future__ import annotations

from typing import NamedTuple, Optional

import numpy as np

from ssr.retrieval.filters import EVERYTHING, Attributes, Filter, check_filter
from ssr.retrieval.values import Answer, Hit

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
    user: its vector <float32>[hidden], None where there are no such clicks
    ranked: (key, score, source), best first
    """

    def __init__(self, session, keys, clicks):
        self.session, self.keys, self.clicks = session, keys, clicks
        self.user, self.ranked = None, []

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
        self._attributes = Attributes(store.items)
        items = np.argsort(-item_clicks, kind="stable")[:np.count_nonzero(item_clicks)]
        # Item i of the model is the row of key i + 1: a build writes them first, in order.
        self._popular, self._clicks = items + 1, item_clicks

    def answer(self, asked, wanted):
        """A list of Answer. asked: a list of Asked, with `user`; wanted: a Wanted

        Raises DataError, StoreError.
        """
        filter, among = wanted.filter, None
        check_filter(filter)
        if filter.selects():
            among = self._attributes.select(
                filter, self._clock() if wanted.now is None else wanted.now)
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
                one.ranked = self._attributes.spread(one.ranked, at_most, k)
                if len(one.ranked) < k and not is_all:
                    short.append(one)
            asked, wanted = short, wanted._replace(k=wanted.k * MORE)

    def _rank_freely(self, asked, wanted, among):
        for one in asked:
            one.ranked = []
            if self._live and not wanted.by_vectors:
                top = self._live.top(one.user, one.keys, self._scoring, wanted.k,
                                     wanted.exclude_session, wanted.now, among)
                one.ranked = [(key, score, "live") for key, score in top]
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
                                          wanted.k + max(map(len, taken)), among)
        for one, out, *row in zip(asked, taken, keys.tolist(), scores.tolist()):
            nearest = [(key, score, "nearest") for key, score in zip(*row)
                       if key >= 0 and key not in out]
            one.ranked += nearest[:wanted.k - len(one.ranked)]

    def _add_popular(self, one, wanted, among):
        """The same with what was clicked most in training."""
        taken, keys = _taken(one, wanted), self._popular
        if among is not None:
            keys = keys[(keys < len(among)) & among[np.minimum(keys, len(among) - 1)]]
        for start in range(0, len(keys), AT_A_TIME):
            part = keys[start:start + AT_A_TIME]
            part = part[~np.isnan(self._store.searched_vectors(part)[:, 0])]
            one.ranked += [(key, float(self._clicks[key - 1]), "popular")
                           for key in part.tolist() if key not in taken]
            if len(one.ranked) >= wanted.k:
                del one.ranked[wanted.k:]
                return


def _taken(one, wanted):
    """The keys that are no further hits of a session, a set."""
    return {key for key, _, _ in one.ranked} | set(one.keys if wanted.exclude_session else ())

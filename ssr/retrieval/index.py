"""A vector index that lives: which items fit a session, while items come and go.

An index holds all that it takes to answer: the model, the items and their vectors (engines.py). An
item is encoded at the moment it is added, with the model of the index; nothing is trained or built
again, the next query finds it.

An index can be live: it takes clicks in, and what is clicked these days is ranked by the model, by
its readers and by how much it is clicked (stream.Scoring). Where that is too little, and in an
index that is not live, the items with the nearest vectors follow.
"""

from __future__ import annotations

import logging
import os
import time

from ssr.errors import DataError, UserError
from ssr.preparation.text import field_tokens, fields_of
from ssr.retrieval import live_snapshot
from ssr.retrieval.bag import NOTHING
from ssr.retrieval.catalogue import Catalogue
from ssr.retrieval.clicks import ClickLog
from ssr.retrieval.engines import open_store
from ssr.retrieval.filters import EVERYTHING
from ssr.retrieval.live import LiveClicks
from ssr.retrieval.live_settings import CLICKS_FILE, live_settings
from ssr.retrieval.model_copy import load_encoder
from ssr.retrieval.queries import Asked, Queries, Wanted
from ssr.retrieval.redis_clicks import RedisLog
from ssr.retrieval.rows import Row
from ssr.retrieval.values import Added, Item, Removed, check_item, enumerated

logger = logging.getLogger(__name__)
NO_TIME = 1e11  # seconds since 1970, the year 5138: milliseconds, rather


# --- the index ------------------------------------------------------------------------------------


class Index:
    """An open index. Every method may be called from any thread; encoding holds nobody up.

    store: what is underneath (engines.Store)
    scoring: the stream.Scoring of a live index, None for one that is not live
    candidate_age: of a live index, seconds after its last click that an item is ranked by clicks
    """

    def __init__(self, store, encoder, vocabulary=None, live=None, clock=time.time, beside=False):
        """store: an engines.Store; encoder: the Encoder of the model that made its vectors;
        vocabulary: text.TokenVocabulary, None for a model without content; live: LiveSettings, None
        for an index that is not live; clock: seconds since 1970; beside: whether another Index, of
        another build, still takes the clicks in"""
        self.store, self._encoder, self._vocabulary = store, encoder, vocabulary
        self.scoring = live and live.scoring
        self.candidate_age = live and live.candidate_age
        self.live_settings, self._clock, self._live = live, clock, None
        if live:
            removed, self._removed_at = store.removed(), store.change
            catalogue = Catalogue(store.details["digest"], store.dim, self._register,
                                  self._encode_keys, store.items.vector)
            log = _open_log(store, live, beside)
            self._live = LiveClicks(
                log, store.writable and not (beside and not log.is_shared), catalogue,
                live.candidate_age, clock,
                os.path.join(store.directory, live_snapshot.FILE))
            self._live.set_withdrawn(removed)
        self._queries = Queries(store, self._live, self.scoring,
                                encoder.towers.item_clicks, clock)

    @classmethod
    def open(cls, path, writable=False, scoring=None, candidate_age=None, clock=time.time,
             clicks=None):
        """The index in a directory. One process at a time opens it writable; others see what that
        one has changed at their next query. One in Milvus any number of processes open writable.

        scoring: a stream.Scoring. An index that is not live becomes so if it is opened writable;
            one that is live is scored by this one as long as it is open
        candidate_age: for an index that becomes live, 24 hours if not given; one that is live has
            its own, and another one is an error
        clicks: the address of the Redis that has the clicks, as scoring
        Raises StoreError, SetupError, DataError.
        """
        while True:
            store = open_store(path, writable)
            try:
                live = live_settings(path, writable, scoring, candidate_age, clicks)
                index = cls.of(store, live, clock)
                index.opened_with = {"scoring": scoring, "candidate_age": candidate_age,
                                     "clicks": clicks}
                return index
            except BaseException as error:
                store.close()
                # Or else build --overwrite has just taken away what was being opened.
                if not isinstance(error, (UserError, OSError)) or not store.is_replaced():
                    raise

    @classmethod
    def of(cls, store, live, clock=time.time):
        """That of a Store which is open. live, clock: as of Index. Raises StoreError, SetupError,
        DataError."""
        encoder, vocabulary = load_encoder(store.directory, store.details)
        if live and encoder.stand_in_length is None:
            encoder = encoder.with_stand_ins(_clicked_bags(store, encoder))
        return cls(store, encoder, vocabulary, live, clock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets another process write. Raises StoreError where the disk does not take the last
        clicks."""
        try:
            if self._live:
                self._live.close()
        finally:
            self.store.close()

    def refresh(self):
        """Sees what another process has changed. Every query does so by itself."""
        self.store.refresh()
        if self._live and not self.store.is_alone:
            self._live.refresh()
            if self.store.change != self._removed_at:
                self._removed_at = self.store.change
                self._live.set_withdrawn(self.store.removed())

    def warm_up(self):
        """Does what the first query and the first Chinese text would have to wait for."""
        if self._vocabulary:
            self._vocabulary.encode("中文 words")
        (id, _), = self.browse([], 1)[0] or [("", "")]
        self.query([id])

    # --- what it is

    @property
    def is_live(self):
        return self._live is not None

    @property
    def is_remote(self):
        """Whether a query waits for another machine."""
        return self.store.is_remote

    @property
    def takes_fresh(self):
        """Whether the model has content, so that items can be added which it never saw."""
        return self._vocabulary is not None or bool(self._encoder.towers.item_vector_dim)

    @property
    def details(self):
        """What made it: {"model", "epoch", "digest", ...}."""
        return self.store.details

    @property
    def change(self):
        """The number of the last change."""
        return self.store.change

    def size(self):
        """(items that are known, candidates), in no time."""
        return self.store.size()

    def counts(self):
        """As of items.Items."""
        return self.store.items.counts()

    def browse(self, words, limit, seconds=0.1):
        """As of items.Items."""
        return self.store.items.browse(words, limit, seconds)

    def click_backlog(self):
        """How many clicks are not on the disk yet."""
        return self._live.backlog() if self._live else 0

    @property
    def clicks_ahead(self):
        """How many clicks were said to be of the future, since it was opened."""
        return self._live.clicks_ahead if self._live else 0

    # --- queries

    def query(self, session, k=20, exclude_session=True, now=None, filter=EVERYTHING):
        """The items that fit a session best: an Answer.

        session: raw ids of the clicks, oldest first; those of unknown items are skipped, removed
            items still count as clicks
        k: hits wanted
        exclude_session: whether the items of the session are no candidates
        now: of a live index, the moment of the query in seconds since 1970, not before the clicks
            that it has taken in; None for this one
        filter: a Filter: k hits that it lets through come back wherever there are as many
        A session of which no click is known gets what is read most: in a live index these days, in
        any other one in training.
        Raises DataError for a filter that cannot be one, StoreError.
        """
        return self.query_many([session], k, exclude_session, now, filter)[0]

    def query_many(self, sessions, k=20, exclude_session=True, now=None, filter=EVERYTHING):
        """A list of Answer, for several sessions at once; otherwise as query."""
        sessions = [list(session) for session in sessions]
        self._see_changes()
        known = self.store.items.find(sorted({id for session in sessions for id in session}))
        asked = [self._understand(session, known) for session in sessions]
        for one, user in zip(asked, self._encoder.encode_sessions([one.clicks for one in asked])):
            one.user = user
            if not exclude_session:
                one.own = self._encoder.score_own(one.clicked, one.clicks, user)
        return self._queries.answer(asked, Wanted(k, exclude_session, now, filter))

    def similar(self, ids, k=20, filter=EVERYTHING):
        """The items whose vectors are nearest to that of an item, for each of some raw ids: a list
        of Answer. An item that was removed has its vector still; one without a vector is skipped.

        k, filter: as in query. Raises DataError, StoreError.
        """
        self._see_changes()
        known = self.store.items.find(sorted(set(ids)))
        asked = []
        for id in ids:
            item = known.get(id)
            asked.append(Asked([id], [item.key], [item.bag] if item.bag else []) if item
                         else Asked([id], [], []))
        vectors = self._encoder.encode_items([known[one.session[0]].bag if one.clicks else NOTHING
                                              for one in asked])
        for one, vector in zip(asked, vectors):
            one.user = vector
        answers = self._queries.answer(asked, Wanted(k, filter=filter, by_vectors=True))
        return [answer if one.clicks else answer._replace(reason="the item has no vector")
                for one, answer in zip(asked, answers)]

    def _see_changes(self):
        if self._live and not self.store.is_alone:
            self.refresh()

    def _understand(self, session, known):
        items = [known[id] for id in session if id in known]
        clicks = {place: click for place, item in enumerate(items)
                  if (click := self._click_of(item.key, item.bag)) is not None}
        return Asked(session, [item.key for item in items], list(clicks.values()),
                     [items[place].key for place in clicks])

    def _click_of(self, key, bag):
        """What the encoder takes for a click on an item, None where that has no vector."""
        if bag:
            return bag
        return self._encoder.stand_in(self._live.vector(key)) if self._live else None

    def _bags(self, items, known):
        """The Bag of each item from here on. known: {id: KnownItem}. Raises DataError for fields
        that cannot be any, and for vectors that the model does not take."""
        projected = self._encoder.project_each(items)
        tokens = [None if self._vocabulary is None
                  else self._vocabulary.encode(item.text, item.fields) for item in items]
        before = [known[item.id].bag if item.id in known else NOTHING for item in items]
        return list(map(self._encoder.bag, before, tokens, projected))

    # --- clicks

    def click(self, clicks):
        """Takes clicks in, of a live index: the next query knows them, the disk does within a
        second. An item that was not known is from here on, and is ranked by its clicks.

        clicks: a list of Click, those of a session in order. A time ahead of the clock becomes now;
            one further back than candidate_age is an error
        Raises DataError, and StoreError where the disk has not taken clicks for so long that no
        more can wait; then none of them is taken.
        """
        if not (self._live and self.store.writable):
            raise DataError("clicks are taken in by an index that is live and open for writing: "
                            "retrieve.py live makes it live")
        for click in clicks:
            check_item(Item(click.item, click.session or ""))
            if click.time is not None and not 0 <= click.time < NO_TIME:
                raise DataError(f"{click.time} is not the time of a click in seconds since 1970")
        self._live.click(clicks)

    def _register(self, ids):
        return self.store.register(ids, self._clock())

    def encode_bags(self, bags):
        """The vectors that the model makes of items, a list of <float32>[dim] or None."""
        return self._encoder.encode_items(bags)

    def _encode_keys(self, sessions):
        """The vectors of sessions of keys, a list, None where there is none."""
        bags = self.store.items.bags(sorted({key for session in sessions for key in session}))
        clicks = [[self._click_of(key, bags[key]) for key in session] for session in sessions]
        return self._encoder.encode_sessions([[click for click in session if click is not None]
                                              for session in clicks])

    # --- changes

    def add(self, items):
        """Encodes items and makes them candidates; one of an id that is there is replaced, text,
        fields and vectors. All of them are on the disk when it returns, or none. items: a list of
        Item

        A model without content takes back items that it was trained with and no others. One with
        content takes all; those of which it knows neither a token nor the id, and that have no
        pretrained vector, are kept with their text and are no candidates. In a live index all are
        candidates from here on, by their clicks, whatever the model knows. Returns Added. Raises
        DataError, StoreError.
        """
        items = list({item.id: item for item in items}.values())
        for item in items:
            check_item(item)
        known = self.store.items.find([item.id for item in items])
        bags = self._bags(items, known)
        without = [item.id for item, bag in zip(items, bags) if not bag]
        if without and not self.takes_fresh and not self._live:
            raise DataError(f"{enumerated(without)}: the model was trained without content, it "
                            "knows an item by its clicks and these had none in training; nothing "
                            "was added. Train with content to add fresh items")
        vectors = self._encoder.encode_items(bags)
        now = self._clock()
        self.store.put([Row(item.id, item.text, bag, vector, field_tokens(item.fields), now)
                        for item, bag, vector in zip(items, bags, vectors)])
        if self._live:
            keys = self._register([item.id for item in items])
            self._live.publish({item.id: keys[item.id] for item in items}, vectors)
        replaced = sum(bool(bag) and item.id in known and not known[item.id].removed
                       and bool(known[item.id].bag) for item, bag in zip(items, bags))
        return Added(len(items) - len(without) - replaced, replaced, without)

    def bring_over(self, former, since):
        """Takes over what was changed in the index of a former build: items that were added or
        replaced are encoded anew, those that were removed are so here.

        former: an Index of the same kind; since: the number of a change, of which later ones count
        An item's pretrained vector is not known any more. Returns the number of the last change
        that is certain to be here.
        """
        newest = former.store.change  # what changes meanwhile may be missed
        for rows in former.store.items.changes(since):
            items = [Item(row.id, row.text, fields_of(row.fields)) for row, _ in rows]
            known = self.store.items.find([item.id for item in items])
            bags = self._bags(items, known)
            self.store.put([row._replace(bag=bag, vector=vector) for (row, removed), bag, vector
                            in zip(rows, bags, self._encoder.encode_items(bags))
                            if not (removed and row.id in known)])
            self.store.remove([row.id for row, removed in rows if removed])
        return newest

    def made_live(self, live):
        """The same index, live, while another one still takes the clicks in. live: LiveSettings"""
        return Index(self.store, self._encoder, self._vocabulary, live, self._clock, beside=True)

    def succeed(self, former):
        """Takes the place of the index of a former build, which answers queries until it is closed
        and takes no changes any more. Raises StoreError; then nothing has changed."""
        if self._live:
            former._live.flush()
        self.store.succeed(former.store)
        if self._live:
            self._live.set_withdrawn(self.store.removed())
            self._live.succeed(former._live)

    def remove(self, ids):
        """Takes items off the candidates, those that clicks rank too. Sessions that clicked them
        are understood as before. ids: raw ids. Returns Removed; unknown ids are no error."""
        ids = list(ids)
        unknown = self.store.remove(ids)
        if self._live:
            self._live.withdraw(item.key for item in self.store.items.find(ids).values())
        return Removed(len(ids) - len(unknown), unknown)


def _open_log(store, live, beside):
    """The log of the clicks of a live index. beside: as of Index"""
    if live.clicks:
        return RedisLog(live.clicks, store.writable)
    if store.writable and not store.is_alone:
        raise DataError(f"{store.path} is open for writing in several processes, which share the "
                        "clicks over a Redis: --clicks redis://HOST:6379/0")
    return ClickLog(os.path.join(store.path, CLICKS_FILE), store.writable and not beside)


def _clicked_bags(store, encoder):
    """The bags of the items that were clicked in training, for an index that was built before it
    stored how long a stand-in is."""
    return [item.bag for items in store.items.scan() for item in items
            if len(item.bag.rows) and item.bag.rows[0] < encoder.towers.vocab_size]

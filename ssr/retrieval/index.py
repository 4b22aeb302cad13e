"""A vector index that lives: which items fit a session, while items come and go.

    python retrieve.py build --model_dir model_output --items_path items.txt --index_dir index
    python retrieve.py query --index_dir index --session "n0015 n0095 n0115" -k 5
    python retrieve.py remove --index_dir index n0041
    printf 'n0041\\teconomy, article 3\\n' | python retrieve.py add --index_dir index

and in Python

    with retrieve.Index.open("index", writable=True) as index:
        index.remove(["n0041"])
        index.add([retrieve.Item("n0041", "economy, article 3")])
        for hit in index.query(["n0015", "n0095", "n0115"], k=5).hits:
            print(hit.id, hit.score, hit.text)

With a scoring (stream.py) an index is live: it takes clicks in and ranks what is read these days.

    with retrieve.Index.open("index", writable=True, scoring=stream.Scoring()) as index:
        index.click([retrieve.Click("any session", "n0041", time.time())])

An index holds all that it takes to answer: the model, the items, their vectors (store.py). An
item is encoded at the moment it is added, with the model of the index; nothing is trained or built
again, the next query finds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from typing import Mapping, NamedTuple

import numpy as np

import utils
from ssr.errors import DataError, StoreError
from ssr.news import stream
from ssr.preparation import text
from ssr.retrieval import evaluation, live, store
from ssr.retrieval.encoder import freeze
from ssr.training.content import Bags

logger = logging.getLogger("retrieve")

ITEMS_AT_A_TIME = 1 << 14  # items are encoded in groups of this size
CLICKS_AT_A_TIME = 1 << 12  # and clicks taken in
PROBES = 200  # queries that the recall of an approximate search is measured with


class Item(NamedTuple):
    """An item to add. id: the raw id; text: any; fields: {name: value or list of values}"""

    id: str
    text: str = ""
    fields: Mapping = {}


class Hit(NamedTuple):
    """An item found. score: its cosine with the session, -1 to 1; of a live index, what
    stream.Scoring makes of cosine and clicks"""

    id: str
    score: float
    text: str


class Answer(NamedTuple):
    """What a session gets.

    hits: list of Hit, best first
    skipped: clicks that were left out, of items that are unknown or have no vector
    reason: why there are no hits, "" where there are
    """

    hits: list
    skipped: int
    reason: str


class Added(NamedTuple):
    """How many items were added, new or again; how many of the candidates took the place of one of
    the same id; and the ids of those that are no candidates, since the model knows nothing about
    them."""

    new: int
    replaced: int
    without_vector: list


class Removed(NamedTuple):
    """How many items were removed, and the ids that were no candidates."""

    removed: int
    unknown: list


def check_item(item):
    """Raises DataError for an id or a text that cannot be one."""
    if not isinstance(item.id, str) or not item.id or re.search(r"[\0-\x1f\ud800-\udfff]", item.id):
        raise DataError(f"{item.id!r} is not an item's id: text, not empty, without tabs, line "
                        "ends and the like")
    if not isinstance(item.text, str) or re.search(r"[\ud800-\udfff]", item.text):
        raise DataError(f"{item.text!r} is not a text")


# --- the model ------------------------------------------------------------------------------------


class Encoder:
    """The model of an index, asked for vectors; from any thread.

    vocabulary: text.TokenVocabulary, None for a model without content
    """

    def __init__(self, model, vocabulary):
        self._users = freeze(model)
        self.model, self.vocabulary = model, vocabulary
        self.num_items = model.vocab_size
        # Of the items' embeddings, if these are their vectors too.
        self.norm = None
        if all(towers.item_fc is None for towers in model.members):
            clicked = np.flatnonzero(model.item_clicks.numpy())
            rows = model.embed(clicked).numpy() if len(clicked) else np.ones((1, 1), np.float32)
            self.norm = float(np.linalg.norm(rows, axis=1).mean())

    def bag(self, own, item):
        """The rows of the table that make the embedding of an item, <int32>[n].

        own: <int32>[n], its bag so far; of that its own row stays, its old content does not
        Raises DataError for fields that cannot be any.
        """
        own = own[own < self.num_items]
        if self.vocabulary is None:
            return own
        tokens = self.vocabulary.encode(item.text, item.fields)
        return np.concatenate([own, self.num_items + tokens]).astype(np.int32)

    def embed(self, bags):
        """The embeddings of bags, none of them empty: a tensor <float32>[n, dim]."""
        lengths = np.array([len(bag) for bag in bags])
        rows = np.concatenate(bags).astype(np.int64)
        if lengths.max() == 1:
            return self.model.embed(rows)
        bags = Bags.of(rows, lengths)
        return self.model.embed(bags.rows, bags)

    def items(self, bags):
        """A list with the vector of each bag, <float32>[hidden], None for an empty one."""
        vectors = [None] * len(bags)
        full = [place for place, bag in enumerate(bags) if len(bag)]
        for start in range(0, len(full), ITEMS_AT_A_TIME):
            chunk = full[start:start + ITEMS_AT_A_TIME]
            encoded = self.model.encode_item(self.embed([bags[place] for place in chunk]))
            for place, vector in zip(chunk, encoded.numpy()):
                vectors[place] = vector
        return vectors

    def sessions(self, sessions):
        """<float32>[n, hidden] of sessions, none of them empty, each a list of clicks: a bag, not
        empty, or, of an item that the model does not know, the embedding <float32>[dim] that stands
        for it."""
        lengths = np.array([len(clicks) for clicks in sessions])
        clicks = [click for session in sessions for click in session]
        bags = [click for click in clicks if click.dtype != np.float32]
        emb = self._embed_few(bags) if bags else None
        if len(bags) < len(clicks):
            known = iter(emb if bags else [])
            emb = np.stack([click if click.dtype == np.float32 else next(known)
                            for click in clicks])
        return self._users(emb, lengths)

    def _embed_few(self, bags):
        """As embed, in numpy: quicker for the clicks of a session."""
        lengths = np.array([len(bag) for bag in bags])
        rows = np.concatenate(bags).astype(np.int64)
        return np.add.reduceat(self.model.embed(rows).numpy(), np.cumsum(lengths) - lengths)

    def stand_in(self, vector):
        """The embedding of an item from its vector <float32>[dim] of length 1, None where the model
        keeps the two apart or there is no vector."""
        return None if vector is None or self.norm is None else vector * np.float32(self.norm)


def digest(model_dir, epoch, meta):
    """A fingerprint of the sizes and the parameters in a checkpoint: 64 hexadecimal digits."""
    sha = hashlib.sha256(json.dumps(meta["model"], sort_keys=True).encode())
    with open(os.path.join(model_dir, f"epoch_{epoch}.pdparams"), "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()


def copy_model(model_dir, epoch, meta, directory):
    """Copies of a checkpoint what it takes to ask the model. Returns its metadata there."""
    os.makedirs(directory)
    name = f"epoch_{epoch}"
    shutil.copyfile(os.path.join(model_dir, name + ".pdparams"),
                    os.path.join(directory, name + ".pdparams"))
    meta = dict(meta, bytes={".pdparams": meta["bytes"][".pdparams"]})
    with open(os.path.join(directory, name + ".json"), "w", encoding="utf-8") as f:
        json.dump(meta, f, indent=1, sort_keys=True)
    return utils.load_meta(directory, epoch)


# --- the index ------------------------------------------------------------------------------------


class Index:
    """An open index. Every method may be called from any thread; encoding holds nobody up.

    An index with a scoring is live: clicks are taken in, and what is clicked these days is ranked
    by the model, by its readers and by how much it is clicked (stream.Scoring). Where there is too
    little of that, and in an index without a scoring, the nearest vectors follow.

    store: what is underneath (store.Store): counts, settings of the search, all candidates
    scoring: a stream.Scoring, None for an index that is not live
    """

    def __init__(self, opened, encoder, scoring=None, candidate_age=stream.AGE):
        """opened: a store.Store; encoder: the Encoder of the model that made its vectors; the rest
        as in open"""
        self.store, self._encoder, self.scoring = opened, encoder, scoring
        self._live = None
        if scoring is not None:
            self._live = live.Live(os.path.join(opened.path, "clicks.sqlite"), opened.writable,
                                   opened.details["digest"], opened.dim, self._register,
                                   self._users_of, opened.items.vector, candidate_age)
            self._removed, self._removed_at = opened.items.removed(), opened.change
            self._live.withdraw(self._removed)

    @classmethod
    def open(cls, path, writable=False, scoring=None, candidate_age=stream.AGE):
        """The index in a directory. One process at a time opens it writable; others see what that
        one has changed at their next query.

        scoring: a stream.Scoring, for a live index
        candidate_age: seconds after its last click that an item remains a candidate of the clicks
        Raises StoreError, StoreError, SetupError.
        """
        opened = store.Store(path, writable)
        try:
            return cls(opened, _open_encoder(opened), scoring, candidate_age)
        except BaseException:
            opened.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets another process write."""
        if self._live:
            self._live.close()
        self.store.close()

    def refresh(self):
        """Sees what another process has changed. Every query does so by itself."""
        self.store.refresh()
        if self._live and not self.store.writable:
            self._live.refresh()
            if self.store.change != self._removed_at:
                before, self._removed = self._removed, self.store.items.removed()
                self._removed_at = self.store.change
                self._live.withdraw(self._removed - before)
                self._live.restore(before - self._removed)

    @property
    def takes_fresh(self):
        """Whether the model has content, so that items can be added which it never saw."""
        return self._encoder.vocabulary is not None

    def warm_up(self):
        """Does what the first query and the first Chinese text would have to wait for."""
        if self.takes_fresh:
            self._encoder.vocabulary.encode("中文 words")
        (id, _), = self.store.items.browse([], 1)[0] or [("", "")]
        self.query([id])

    def query(self, session, k=20, exclude_session=True, now=None):
        """The items that fit a session best: an Answer.

        session: raw ids of the clicks, oldest first; those of unknown items are skipped, removed
            items still count as clicks
        k: hits wanted
        exclude_session: whether the items of the session are no candidates
        now: of a live index, the moment that is asked at, in seconds since 1970, not before the
            clicks that it has taken in; None for this one
        """
        return self.query_many([session], k, exclude_session, now)[0]

    def query_many(self, sessions, k=20, exclude_session=True, now=None):
        """A list of Answer, for several sessions at once; otherwise as query."""
        sessions = [list(session) for session in sessions]
        if self._live and not self.store.writable:
            self.refresh()
        known = self.store.items.find(sorted({id for session in sessions for id in session}))
        clicks = [[known[id] for id in session if id in known] for session in sessions]
        parts = [[part for click in session if (part := self._part(click)) is not None]
                 for session in clicks]
        users = self._encode(parts)
        keys = [[click.key for click in session] for session in clicks]
        rows = [[] for _ in sessions]
        if self._live:
            now = time.time() if now is None else now
            rows = [self._live.top(user, session, now, self.scoring, k, exclude_session)
                    for user, session in zip(users, keys)]
        few = [place for place, row in enumerate(rows)
               if len(row) < k and users[place] is not None]
        if few:
            out = [{key for key, _ in rows[place]} | set(keys[place] if exclude_session else [])
                   for place in few]
            for place, found in zip(few, self._search([users[place] for place in few], k, out)):
                rows[place] += found[:k - len(rows[place])]
        return [Answer(hits, len(session) - len(of_session),
                       "" if hits else _why_empty(session, of_session))
                for hits, session, of_session in zip(self._hits(rows), sessions, parts)]

    def _part(self, click):
        """What stands for a click of a session (Encoder.sessions), None for what has no vector."""
        if len(click.bag):
            return click.bag
        return self._encoder.stand_in(self._live.vector(click.key)) if self._live else None

    def _encode(self, sessions):
        """The vectors of sessions as of Encoder.sessions, a list, None for an empty one."""
        full = [session for session in sessions if session]
        vectors = iter(self._encoder.sessions(full) if full else [])
        return [next(vectors) if session else None for session in sessions]

    def _search(self, users, k, excluded):
        """A list of (key, cosine) per vector in users. excluded: a set of keys for each"""
        scores, keys = self.store.search(np.stack(users), k + max(map(len, excluded)))
        return [[(key, score) for key, score in zip(*row) if key >= 0 and key not in out][:k]
                for out, row in zip(excluded, zip(keys.tolist(), scores.tolist()))]

    def _hits(self, rows):
        """Lists of Hit from lists of (key, score)."""
        stored = self.store.items.get(sorted({key for row in rows for key, _ in row}))
        return [[Hit(stored[key].id, score, stored[key].text) for key, score in row]
                for row in rows]

    def click(self, clicks):
        """Takes clicks in, of a live index: the next query knows them, the disk does within a
        second. An item that was not known is from here on, and is ranked by its clicks.

        clicks: a list of Click, those of a session in order
        Raises DataError, StoreError.
        """
        if not (self._live and self.store.writable):
            raise DataError("clicks are taken in by an index that is open for writing and has a "
                            "scoring")
        latest = time.time() + 86400  # clocks differ; what lies a day ahead is a mistake
        for click in clicks:
            check_item(Item(click.item, click.session or ""))
            if not 0 <= click.time < latest:
                raise DataError(f"{click.time} is not the time of a click: seconds since 1970, not "
                                "in the future")
        self._live.click(clicks)

    def _register(self, ids):
        """{id: key}; items that were not known are from here on, if the index is writable."""
        known = self.store.items.find(ids)
        if self.store.writable and len(known) < len(ids):
            nothing = np.empty(0, np.int32)
            self.store.put([store.Row(id, "", nothing, None) for id in ids if id not in known])
            known = self.store.items.find(ids)
        return {id: item.key for id, item in known.items()}

    def _users_of(self, sessions):
        """The vectors of sessions of keys, a list, None where there is none."""
        stored = self.store.items.get(sorted({key for session in sessions for key in session}))
        return self._encode([[part for key in session if (part := self._part(
            stored[key])) is not None] for session in sessions])

    def add(self, items):
        """Encodes items and makes them candidates; one of an id that is there is replaced, text
        and vector. All of them are on the disk when it returns, or none. items: a list of Item

        A model without content takes back items that it was trained with and no others. One with
        content takes all; those of which it knows neither a token nor the id are kept with their
        text and are no candidates. In a live index all are candidates from here on, by their
        clicks, whatever the model knows. Returns Added. Raises DataError, DataError,
        StoreError.
        """
        items = list({item.id: item for item in items}.values())
        for item in items:
            check_item(item)
        known = self.store.items.find([item.id for item in items])
        nothing = np.empty(0, np.int32)
        bags = [self._encoder.bag(known[item.id].bag if item.id in known else nothing, item)
                for item in items]
        without = [item.id for item, bag in zip(items, bags) if not len(bag)]
        if without and self._encoder.vocabulary is None and not self._live:
            raise DataError(f"{_some(without)}: the model was trained without content, it knows "
                            "an item by its clicks and these had none in training; nothing was "
                            "added. Train with content to add fresh items")
        vectors = self._encoder.items(bags)
        self.store.put([store.Row(item.id, item.text, bag, vector) for item, bag, vector
                        in zip(items, bags, vectors)])
        if self._live:
            keys = self._register([item.id for item in items])
            self._live.publish({item.id: keys[item.id] for item in items}, vectors, time.time())
        replaced = sum(bool(len(bag)) and item.id in known and not known[item.id].removed
                       and bool(len(known[item.id].bag)) for item, bag in zip(items, bags))
        return Added(len(items) - len(without) - replaced, replaced, without)

    def remove(self, ids):
        """Takes items off the candidates. Sessions that clicked them are understood as before.
        ids: raw ids. Returns Removed; ids that are no candidates are no error."""
        ids = list(ids)
        unknown = self.store.remove(ids)
        if self._live:
            self._live.withdraw(known.key for known in self.store.items.find(ids).values())
        return Removed(len(ids) - len(unknown), unknown)


def _open_encoder(opened):
    """The Encoder of an open store. Raises StoreError, SetupError, DataError."""
    made_by, model_dir = opened.details, os.path.join(opened.directory, "model")
    epoch = made_by["epoch"]
    meta = utils.load_meta(model_dir, epoch)
    if digest(model_dir, epoch, meta) != made_by["digest"]:
        raise StoreError(
            f"the model in {model_dir} is not the one that made the vectors, {made_by['model']} "
            f"with the digest {made_by['digest'][:12]}: build the index anew (retrieve.py build "
            "--overwrite)")
    vocabulary = None
    if meta["model"]["num_tokens"]:
        vocabulary = text.TokenVocabulary.load(os.path.join(opened.directory, text.TOKENS_FILE))
    return Encoder(evaluation.load_model(model_dir, epoch, meta), vocabulary)


def _why_empty(session, understood):
    if understood:
        return "the index holds no other item"
    return "none of its items is known" if session else "the session is empty"


def _some(ids, most=5):
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


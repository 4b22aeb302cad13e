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

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from typing import Mapping, NamedTuple

import utils  # first: it sets the environment for numpy and paddle
import numpy as np

import evaluation
import live
import reader
import store
import stream
import text
from live import Click

logger = logging.getLogger("retrieve")

ITEMS_AT_A_TIME = 1 << 14  # items are encoded in groups of this size
CLICKS_AT_A_TIME = 1 << 12  # and clicks taken in
PROBES = 200  # queries that the recall of an approximate search is measured with


class ItemError(ValueError):
    """A fault in items or sessions; its message says which and what to do."""


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
    """Raises ItemError for an id or a text that cannot be one."""
    if not isinstance(item.id, str) or not item.id or re.search(r"[\0-\x1f\ud800-\udfff]", item.id):
        raise ItemError(f"{item.id!r} is not an item's id: text, not empty, without tabs, line "
                        "ends and the like")
    if not isinstance(item.text, str) or re.search(r"[\ud800-\udfff]", item.text):
        raise ItemError(f"{item.text!r} is not a text")


# --- the model ------------------------------------------------------------------------------------


class Encoder:
    """The model of an index, asked for vectors; from any thread.

    vocabulary: text.TokenVocabulary, None for a model without content
    """

    def __init__(self, model, vocabulary):
        self._users = model.freeze()
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
        Raises text.DataError for fields that cannot be any.
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
        bags = reader.Bags.of(rows, lengths)
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
                                   self._users_of, opened.vector, candidate_age)
            self._removed, self._removed_at = opened.removed(), opened.change
            self._live.withdraw(self._removed)

    @classmethod
    def open(cls, path, writable=False, scoring=None, candidate_age=stream.AGE):
        """The index in a directory. One process at a time opens it writable; others see what that
        one has changed at their next query.

        scoring: a stream.Scoring, for a live index
        candidate_age: seconds after its last click that an item remains a candidate of the clicks
        Raises store.StoreError, live.LogError, utils.SetupError.
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
                before, self._removed = self._removed, self.store.removed()
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
        (id, _), = self.store.browse([], 1)[0] or [("", "")]
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
        known = self.store.find(sorted({id for session in sessions for id in session}))
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
        texts = self.store.texts(sorted({key for row in rows for key, _ in row}))
        return [[Hit(texts[key][0], score, texts[key][1]) for key, score in row]
                for row in rows]

    def click(self, clicks):
        """Takes clicks in, of a live index: the next query knows them, the disk does within a
        second. An item that was not known is from here on, and is ranked by its clicks.

        clicks: a list of Click, those of a session in order
        Raises ItemError, store.StoreError.
        """
        if not (self._live and self.store.writable):
            raise ItemError("clicks are taken in by an index that is open for writing and has a "
                            "scoring")
        latest = time.time() + 86400  # clocks differ; what lies a day ahead is a mistake
        for click in clicks:
            check_item(Item(click.item, click.session or ""))
            if not 0 <= click.time < latest:
                raise ItemError(f"{click.time} is not the time of a click: seconds since 1970, not "
                                "in the future")
        self._live.click(clicks)

    def _register(self, ids):
        """{id: key}; items that were not known are from here on, if the index is writable."""
        known = self.store.find(ids)
        if self.store.writable and len(known) < len(ids):
            nothing = np.empty(0, np.int32)
            self.store.put([store.Row(id, "", nothing, None) for id in ids if id not in known])
            known = self.store.find(ids)
        return {id: item.key for id, item in known.items()}

    def _users_of(self, sessions):
        """The vectors of sessions of keys, a list, None where there is none."""
        bags = self.store.bags(sorted({key for session in sessions for key in session}))
        return self._encode([[part for key in session if (part := self._part(
            store.Known(key, bags[key], False))) is not None] for session in sessions])

    def add(self, items):
        """Encodes items and makes them candidates; one of an id that is there is replaced, text
        and vector. All of them are on the disk when it returns, or none. items: a list of Item

        A model without content takes back items that it was trained with and no others. One with
        content takes all; those of which it knows neither a token nor the id are kept with their
        text and are no candidates. In a live index all are candidates from here on, by their
        clicks, whatever the model knows. Returns Added. Raises ItemError, text.DataError,
        store.StoreError.
        """
        items = list({item.id: item for item in items}.values())
        for item in items:
            check_item(item)
        known = self.store.find([item.id for item in items])
        nothing = np.empty(0, np.int32)
        bags = [self._encoder.bag(known[item.id].bag if item.id in known else nothing, item)
                for item in items]
        without = [item.id for item, bag in zip(items, bags) if not len(bag)]
        if without and self._encoder.vocabulary is None and not self._live:
            raise ItemError(f"{_some(without)}: the model was trained without content, it knows "
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
        unknown = self.store.remove(ids, without_vector=bool(self._live))
        if self._live:
            self._live.withdraw(known.key for known in self.store.find(ids).values())
        return Removed(len(ids) - len(unknown), unknown)


def _open_encoder(opened):
    """The Encoder of an open store. Raises store.StoreError, utils.SetupError, text.DataError."""
    made_by, model_dir = opened.details, os.path.join(opened.directory, "model")
    epoch = made_by["epoch"]
    meta = utils.load_meta(model_dir, epoch)
    if digest(model_dir, epoch, meta) != made_by["digest"]:
        raise store.StoreError(
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


# --- commands -------------------------------------------------------------------------------------


def build(args):
    """Makes an index of the items of a checkpoint."""
    epoch, meta = utils.find_checkpoint(args.model_dir, args.epoch)
    items = [Item(id, *item) for id, item in text.read_items(args.items_path).items()]
    tokens = check_build(args, items, **meta["model"])
    with store.building(args.index_dir, args.overwrite) as directory:
        model_dir = os.path.join(directory, "model")
        # From here on the copy counts: training may go on and replace the original.
        meta = copy_model(args.model_dir, epoch, meta, model_dir)
        encoder = Encoder(evaluation.load_model(model_dir, epoch, meta), None)
        if tokens is not None:
            copy_vocabulary(args.tokens_path, directory)
        bags = make_bags(encoder.model.item_clicks.numpy() > 0, tokens)
        rows = [store.Row(item.id, item.text, bag, vector)
                for item, bag, vector in zip(items, bags, encoder.items(bags))]
        made_by = os.path.join(os.path.basename(os.path.abspath(args.model_dir)), f"epoch_{epoch}")
        details = {"model": made_by, "epoch": epoch, "digest": digest(model_dir, epoch, meta)}
        probes = make_probes(encoder, bags)
        store.create(directory, probes.shape[1], rows, details, probes, args.ivf_above, args.nlist,
                     args.nprobe)
    return info(args)


def check_build(args, items, vocab_size, num_tokens, **_):
    """The reader.ItemTokens of a model with content, None for one without. Raises ItemError,
    text.DataError, reader.DataError where the files are not those of the model."""
    if len(items) != vocab_size:
        raise ItemError(f"{args.items_path} holds {len(items)} items and the model has "
                        f"{vocab_size}: give the --items_path of the data it was trained with")
    for item in items:
        check_item(item)
    if not num_tokens:
        return None
    vocabulary = text.TokenVocabulary.load(args.tokens_path)
    if len(vocabulary) != num_tokens:
        raise ItemError(f"{args.tokens_path} holds {len(vocabulary)} tokens and the model has "
                        f"{num_tokens}: give the --tokens_path of the data it was trained with")
    return reader.load_item_tokens(args.item_tokens, vocab_size, num_tokens)


def copy_vocabulary(tokens_path, directory):
    """Copies tokens.txt and, from beside it, what says how Chinese was cut."""
    shutil.copyfile(tokens_path, os.path.join(directory, text.TOKENS_FILE))
    shutil.copyfile(os.path.join(os.path.dirname(tokens_path), text.CUTTING_FILE),
                    os.path.join(directory, text.CUTTING_FILE))


def make_bags(clicked, tokens=None):
    """The rows of the table that make each item's embedding, a list of <int32>[n]: its own, if it
    was clicked in training, and those of its tokens.

    clicked: <bool>[items]; tokens: reader.ItemTokens, None without content
    """
    if tokens is None:
        return np.split(np.flatnonzero(clicked).astype(np.int32), np.cumsum(clicked)[:-1])
    content = reader.ItemContent(clicked, tokens)
    return np.split(content.rows, content.offsets[1:-1])


def make_probes(encoder, bags):
    """Queries of the kind that will come: the vectors of sessions of two clicks,
    <float32>[at most PROBES, hidden]."""
    full = [bag for bag in bags if len(bag)]
    if not full:
        raise ItemError("none of the items has a vector: none was clicked in training")
    random = np.random.default_rng(0)
    pairs = random.integers(0, len(full), (min(PROBES, len(full)), 2))
    return encoder.sessions([[full[first], full[second]] for first, second in pairs])


def read_scoring(path, weights=()):
    """The stream.Scoring that flags name, None without a path. Raises ItemError.

    path: of a JSON file (evaluate_stream.py --fit), or "default"
    weights: strings NAME=NUMBER or NAME=NUMBER,NUMBER,... that take the place of what it has
    """
    if path is None:
        if weights:
            raise ItemError("--weight changes a --scoring: give one, or --scoring default")
        return None
    try:
        scoring = stream.Scoring()
        if path != "default":
            with open(path, encoding="utf-8") as f:
                scoring = stream.Scoring.from_json(f.read())
        for weight in weights:
            name, _, numbers = weight.partition("=")
            if name not in scoring._fields:
                raise ItemError(f"--weight {weight}: there is no {name!r}; there are "
                                + ", ".join(scoring._fields))
            value = json.loads(f"[{numbers}]")
            value = value if isinstance(getattr(scoring, name), tuple) else value[0]
            scoring = stream.Scoring.from_json(scoring._replace(**{name: value}).to_json())
    except OSError as error:
        raise ItemError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise ItemError(f"{f'--weight {weight}' if path == 'default' else path}: {error}") \
            from error
    return scoring


def open_index(args, writable=False):
    """The Index that flags name (add_live)."""
    scoring = read_scoring(args.scoring, args.weight)
    return Index.open(args.index_dir, writable, scoring, args.candidate_age * 3600)


def query(args):
    """Prints rank, score, id and text of the items that fit a session."""
    with open_index(args) as index:
        answer = index.query(args.session.split(), args.k, bool(args.exclude_session), args.now)
    for rank, hit in enumerate(answer.hits, 1):
        print(f"{rank}\t{hit.score:.6f}\t{hit.id}\t{hit.text}")
    if answer.skipped:
        logger.info("%d clicks were skipped: their items are unknown or have no vector",
                    answer.skipped)
    if answer.reason:
        logger.info("no items: %s", answer.reason)
    return 0


def add(args):
    """Adds the items of a file."""
    items = [Item(id, *item) for id, item in text.read_items(args.items_path).items()]
    with Index.open(args.index_dir, writable=True) as index:
        added = index.add(items)
    print(f"added:{added.new} replaced:{added.replaced} "
          f"without_vector:{len(added.without_vector)}")
    if added.without_vector:
        logger.warning("no candidates, since the model knows nothing about them: %s",
                       _some(added.without_vector))
    return 0


def remove(args):
    """Removes items, given as arguments or in a file. It takes no model."""
    ids = args.ids or list(text.read_items(args.items_path))
    with store.Store(args.index_dir, writable=True) as opened:
        unknown = opened.remove(ids)
    print(f"removed:{len(ids) - len(unknown)} unknown:{len(unknown)}")
    if unknown:
        logger.warning("no candidates before: %s", _some(unknown))
    return 0


def click(args):
    """Takes in the clicks of a file."""
    clicks = read_clicks(args.clicks_path)
    args.scoring = args.scoring or "default"  # it ranks nothing here
    with open_index(args, writable=True) as index:
        for start in range(0, len(clicks), CLICKS_AT_A_TIME):
            index.click(clicks[start:start + CLICKS_AT_A_TIME])
    print(f"clicks:{len(clicks)}")
    return 0


def read_clicks(path):
    """The clicks of a file, one a line: session, item and, maybe, seconds since 1970, with tabs
    between; - is standard input. Raises ItemError, which names the line, and text.DataError."""
    lines = text.numbered_lines(path, "it holds clicks, a line each: session, tab, item")
    clicks, now = [], time.time()
    for number, line in lines:
        session, *rest = line.split("\t")
        try:
            if len(rest) not in (1, 2):
                raise ValueError("a line is session, tab, item and maybe a tab and the time")
            check_item(Item(rest[0]))
            clicks.append(Click(session or None, rest[0], float(rest[1]) if rest[1:] else now))
        except ValueError as error:
            raise ItemError(f"{text.shown_name(path)}, line {number}: {error}") from None
    return clicks


def info(args):
    """Prints what an index holds and how it searches."""
    with store.Store(args.index_dir) as opened:
        details = opened.details
        print(" ".join(f"{name}:{count}" for name, count in opened.counts().items()))
        print(" ".join(f"{name}:{value}" for name, value in opened.search_settings().items()),
              f"dim:{opened.dim}")
        print(f"model:{details['model']} digest:{details['digest'][:12]} change:{opened.change}",
              flush=True)
    return 0


def reindex(args):
    """Makes the faiss file anew from the items."""
    store.reindex(args.index_dir, args.ivf_above, args.nlist, args.nprobe)
    return info(args)


def export_vectors(args):
    """Writes the candidates' ids, texts and vectors as Parquet."""
    import polars as pl  # here: no other command needs it

    with store.Store(args.index_dir) as opened:
        tables = [pl.DataFrame({
            "id": [id for id, _, _ in rows], "text": [text for _, text, _ in rows],
            "vector": pl.Series(np.stack([vector for _, _, vector in rows]),
                                dtype=pl.Array(pl.Float32, opened.dim)),
        }) for rows in opened.candidates()]
    if not tables:
        raise ItemError(f"{args.index_dir} holds no candidates, there is nothing to export")
    table = pl.concat(tables)
    utils.write_atomically(args.file, table.write_parquet)
    print(f"{len(table)} vectors in {args.file}")
    return 0


# --- flags ----------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Sequence Semantic Retrieval: a vector index of "
                                     "items that come and go")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, run, text):
        added = commands.add_parser(name, help=text, description=text, formatter_class=argparse.
                                    ArgumentDefaultsHelpFormatter)
        added.set_defaults(run=run)
        added.add_argument("--index_dir", default="index", help="directory of the index")
        return added

    add_build(command("build", build, "make an index of the items of a checkpoint"))
    asked = command("query", query, "the items that fit a session: rank, score, id, text")
    asked.add_argument("--session", required=True, metavar="IDS",
                       help="raw ids of the clicks, oldest first, white space between")
    asked.add_argument("-k", type=utils.number(int, 1), default=20, help="items wanted")
    asked.add_argument("--exclude_session", type=utils.number(int, 0, 1), default=1,
                       help="1: the items of the session are left out")
    asked.add_argument("--now", type=utils.number(float, 0), default=None, help="with --scoring: "
                       "seconds since 1970 at which is asked; this moment when not given")
    add_live(asked)
    added = command("add", add, "add items, or replace those of the same id")
    added.add_argument("items_path", nargs="?", default="-", metavar="FILE",
                       help="an item a line: id, tab, text, then maybe tabs and fields like "
                       "section:sports; - is standard input")
    removed = command("remove", remove, "remove items from the candidates")
    removed.add_argument("ids", nargs="*", metavar="ID", help="raw ids of the items")
    removed.add_argument("--items_path", default="-", metavar="FILE",
                         help="without IDs: a file with an id a line; - is standard input")
    clicked = command("click", click, "take in clicks, for queries with a --scoring")
    clicked.add_argument("clicks_path", nargs="?", default="-", metavar="FILE",
                         help="a click a line: session, tab, item, then maybe a tab and the "
                         "seconds since 1970; - is standard input")
    add_live(clicked)
    command("info", info, "what the index holds, how it searches, which model made it")
    add_search(command("reindex", reindex, "make the faiss file anew from the items: where it is "
                       "damaged, or with another kind of search"))
    exported = command("export-vectors", export_vectors,
                       "write id, text and vector of all candidates as Parquet")
    exported.add_argument("file", metavar="FILE.parquet")
    return parser.parse_args(argv)


def add_build(parser):
    add_flag = parser.add_argument
    add_flag("--model_dir", default="model_output", help="where train.py saved epoch_N")
    add_flag("--epoch", type=utils.number(int, 1), default=None,
             help="of the model; the newest complete one when not given")
    add_flag("--items_path", default="items.txt",
             help="line i: raw id of item i, then maybe a tab and its text")
    add_flag("--item_tokens", default=text.ITEM_TOKENS_FILE, metavar="FILE",
             help="line i: token ids of item i, for a model with content")
    add_flag("--tokens_path", default=text.TOKENS_FILE, metavar="FILE",
             help=f"line i: token i, for a model with content; {text.CUTTING_FILE} lies beside it")
    add_flag("--overwrite", action="store_true", help="replace an index that is there")
    add_search(parser)


def add_live(parser):
    """The flags of a live index."""
    add_flag = parser.add_argument
    add_flag("--scoring", default=None, metavar="FILE", help="rank by clicks too, with the "
             "weights in a file of evaluate_stream.py --fit, or with those of the package: default")
    add_flag("--weight", action="append", default=[], metavar="NAME=NUMBERS", help="of the "
             "scoring, in place of what it has, as readers=0 or power=0,1,0,0 (a number a window); "
             "may be given several times")
    add_flag("--candidate_age", type=utils.number(float, 0), default=stream.AGE / 3600,
             metavar="HOURS", help="for how long after its last click an item is ranked by clicks")


def add_search(parser):
    positive = utils.number(int, 1)
    parser.add_argument("--ivf_above", type=utils.number(int, 0), default=100_000,
                        help="search exactly up to so many candidates, approximately above")
    parser.add_argument("--nlist", type=positive, default=None, help="lists of the approximate "
                        "search; 4 times the square root of the candidates when not given")
    parser.add_argument("--nprobe", type=positive, default=None, help="how many lists it looks "
                        f"into; what a recall@20 of {store.RECALL} takes when not given")


def main(argv=None):
    args = parse_args(argv)
    utils.setup_logging()
    return utils.run_script(lambda: args.run(args), ItemError, store.StoreError, live.LogError,
                            reader.DataError, text.DataError)


if __name__ == "__main__":
    sys.exit(main())

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
from typing import NamedTuple, Sequence

import utils  # first: it sets the environment for numpy and paddle
import numpy as np

import evaluation
import store

logger = logging.getLogger("retrieve")

ITEMS_AT_A_TIME = 1 << 14  # items are encoded in groups of this size
PROBES = 200  # queries that the recall of an approximate search is measured with


class ItemError(ValueError):
    """A fault in items or sessions; its message says which and what to do."""


class Item(NamedTuple):
    """An item to add. id: the raw id; text: any; fields: strings like "section:sports"."""

    id: str
    text: str = ""
    fields: Sequence[str] = ()


class Hit(NamedTuple):
    """An item found. score: its cosine with the session, -1 to 1"""

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


# --- what an item is made of ----------------------------------------------------------------------


def content_tokens(item, vocabulary):
    """The content of an item as ids of tokens.

    A STAND-IN until the text library is plugged in here: words are runs of letters and digits.

    vocabulary: {token: id}; returns a list of int, without tokens that training did not know
    """
    words = re.findall(r"\w+", item.text.lower())
    return [vocabulary[token] for token in (*words, *item.fields) if token in vocabulary]


def read_vocabulary(path):
    """{token: id} of a file whose line i is token i. Raises ItemError."""
    return {token: number for number, token in enumerate(_read_lines(path))}


def _read_lines(path):
    """The lines of a UTF-8 file, or of standard input for "-". Raises ItemError."""
    try:
        with open(0 if path == "-" else path, encoding="utf-8-sig", closefd=path != "-") as f:
            lines = f.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ItemError(f"cannot read {_name(path)}: {reason}") from error
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]


def _name(path):
    return "standard input" if path == "-" else path


def read_items(path):
    """The items of a file, one a line: id, then optionally a tab and its text, then fields with a
    tab before each. Raises ItemError, which names the line."""
    items = []
    for number, line in enumerate(_read_lines(path), 1):
        id, text, *fields = line.split("\t") + [""] * ("\t" not in line)
        items.append(Item(id, text, [field for field in fields if field]))
        try:
            check_item(items[-1])
        except ItemError as error:
            raise ItemError(f"{_name(path)}, line {number}: {error}") from None
    return items


def check_item(item):
    """Raises ItemError for an id or a text that cannot be one."""
    if not isinstance(item.id, str) or not item.id or re.search(r"[\0-\x1f\ud800-\udfff]", item.id):
        raise ItemError(f"{item.id!r} is not an item's id: text, not empty, without tabs, line "
                        "ends and the like")
    if not isinstance(item.text, str) or re.search(r"[\ud800-\udfff]", item.text):
        raise ItemError(f"{item.text!r} is not a text")


def read_token_ids(path, num_items, num_tokens):
    """One array of token ids per item, from a file whose line i has those of item i with white
    space between. Raises ItemError."""
    lines = _read_lines(path)
    if len(lines) != num_items:
        raise ItemError(f"{path} holds {len(lines)} lines and the model has {num_items} items: "
                        "give the --item_tokens it was trained with")
    tokens = []
    for number, line in enumerate(lines, 1):
        try:
            ids = np.array(line.split(), np.int32)
        except (ValueError, OverflowError):
            ids = np.array([-1])
        if not ((ids >= 0) & (ids < num_tokens)).all():
            raise ItemError(f"{path}, line {number}: token ids are numbers from 0 to "
                            f"{num_tokens - 1}")
        tokens.append(ids)
    return tokens


# --- the model ------------------------------------------------------------------------------------


class Encoder:
    """The model of an index, asked for vectors; from any thread.

    vocabulary: {token: id}, empty for a model without content
    """

    def __init__(self, model, vocabulary):
        model.freeze()
        self.model, self.vocabulary = model, vocabulary
        self.num_items = model.vocab_size

    def bag(self, own, item):
        """The rows of the table that make the embedding of an item, <int32>[n].

        own: <int32>[n], its bag so far; of that its own row stays, its old content does not
        """
        tokens = content_tokens(item, self.vocabulary)
        return np.concatenate([own[own < self.num_items],
                               self.num_items + np.array(tokens, np.int32)]).astype(np.int32)

    def embed(self, bags):
        """The embeddings of bags, none of them empty: a tensor <float32>[n, dim]."""
        lengths = np.array([len(bag) for bag in bags])
        tokens = np.concatenate(bags).astype(np.int64)
        return self.model.embed(tokens, None if lengths.max() == 1 else lengths)

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
        """<float32>[n, hidden] of sessions, each a list of bags, none of them empty."""
        lengths = np.array([len(bags) for bags in sessions])
        emb = self.embed([bag for bags in sessions for bag in bags])
        return self.model.encode_user(emb, lengths).numpy()


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

    store: what is underneath (store.Store): counts, settings of the search, all candidates
    """

    def __init__(self, opened, encoder):
        """opened: a store.Store; encoder: the Encoder of the model that made its vectors"""
        self.store, self._encoder = opened, encoder

    @classmethod
    def open(cls, path, writable=False):
        """The index in a directory. One process at a time opens it writable; others see what that
        one has changed at their next query. Raises store.StoreError, utils.SetupError."""
        opened = store.Store(path, writable)
        try:
            return cls(opened, _open_encoder(opened))
        except BaseException:
            opened.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets another process write."""
        self.store.close()

    def refresh(self):
        """Sees what another process has changed. Every query does so by itself."""
        self.store.refresh()

    def query(self, session, k=20, exclude_session=True):
        """The items that fit a session best: an Answer.

        session: raw ids of the clicks, oldest first; those of unknown items are skipped, removed
            items still count as clicks
        k: hits wanted
        exclude_session: whether the items of the session are no candidates
        """
        return self.query_many([session], k, exclude_session)[0]

    def query_many(self, sessions, k=20, exclude_session=True):
        """A list of Answer, for several sessions at once; otherwise as query."""
        sessions = [list(session) for session in sessions]
        known = self.store.find(sorted({id for session in sessions for id in session}))
        clicks = [[known[id] for id in session if id in known and len(known[id].bag)]
                  for session in sessions]
        asked = [place for place, found in enumerate(clicks) if found]
        answers = [Answer([], len(session), _why_empty(session)) for session in sessions]
        if not asked:
            return answers
        excluded = [{click.key for click in clicks[place]} if exclude_session else set()
                    for place in asked]
        users = self._encoder.sessions([[click.bag for click in clicks[place]]
                                        for place in asked])
        hits = self._search(users, k, excluded)
        for place, found in zip(asked, hits):
            answers[place] = Answer(found, len(sessions[place]) - len(clicks[place]),
                                    "" if found else "the index holds no other item")
        return answers

    def _search(self, users, k, excluded):
        """A list of Hit per row of users. excluded: a set of keys per row"""
        scores, keys = self.store.search(users, k + max(map(len, excluded)))
        found = [[(key, score) for key, score in zip(*row) if key >= 0 and key not in out][:k]
                 for out, row in zip(excluded, zip(keys.tolist(), scores.tolist()))]
        texts = self.store.texts(sorted({key for row in found for key, _ in row}))
        return [[Hit(texts[key][0], score, texts[key][1]) for key, score in row]
                for row in found]

    def add(self, items):
        """Encodes items and makes them candidates; one of an id that is there is replaced, text
        and vector. All of them are on the disk when it returns, or none. items: a list of Item

        A model without content takes back items that it was trained with and no others. One with
        content takes all; those of which it knows neither a token nor the id are kept with their
        text and are no candidates. Returns Added. Raises ItemError, store.StoreError.
        """
        items = list({item.id: item for item in items}.values())
        for item in items:
            check_item(item)
        known = self.store.find([item.id for item in items])
        nothing = np.empty(0, np.int32)
        bags = [self._encoder.bag(known[item.id].bag if item.id in known else nothing, item)
                for item in items]
        without = [item.id for item, bag in zip(items, bags) if not len(bag)]
        if without and not self._encoder.vocabulary:
            raise ItemError(f"{_some(without)}: the model was trained without content, it knows "
                            "an item by its clicks and these had none in training; nothing was "
                            "added. Train with content to add fresh items")
        self.store.put([store.Row(item.id, item.text, bag, vector) for item, bag, vector
                        in zip(items, bags, self._encoder.items(bags))])
        replaced = sum(bool(len(bag)) and item.id in known and not known[item.id].removed
                       and bool(len(known[item.id].bag)) for item, bag in zip(items, bags))
        return Added(len(items) - len(without) - replaced, replaced, without)

    def remove(self, ids):
        """Takes items off the candidates. Sessions that clicked them are understood as before.
        ids: raw ids. Returns Removed; ids that are no candidates are no error."""
        ids = list(ids)
        unknown = self.store.remove(ids)
        return Removed(len(ids) - len(unknown), unknown)


def _open_encoder(opened):
    """The Encoder of an open store. Raises store.StoreError, utils.SetupError."""
    made_by, model_dir = opened.details, os.path.join(opened.directory, "model")
    epoch = made_by["epoch"]
    meta = utils.load_meta(model_dir, epoch)
    if digest(model_dir, epoch, meta) != made_by["digest"]:
        raise store.StoreError(
            f"the model in {model_dir} is not the one that made the vectors, {made_by['model']} "
            f"with the digest {made_by['digest'][:12]}: build the index anew (retrieve.py build "
            "--overwrite)")
    vocabulary = {}
    if meta["model"].get("num_tokens"):
        vocabulary = read_vocabulary(os.path.join(opened.directory, "tokens.txt"))
    return Encoder(evaluation.load_model(model_dir, epoch, meta), vocabulary)


def _why_empty(session):
    return "none of its items is known" if session else "the session is empty"


def _some(ids, most=5):
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


# --- commands -------------------------------------------------------------------------------------


def build(args):
    """Makes an index of the items of a checkpoint."""
    epoch, meta = find_checkpoint(args.model_dir, args.epoch)
    sizes = meta["model"]
    num_tokens = sizes.get("num_tokens") or 0
    items = read_items(args.items_path)
    check_build(args, items, sizes["vocab_size"], num_tokens)
    tokens = [()] * len(items)
    if num_tokens:
        tokens = read_token_ids(args.item_tokens, len(items), num_tokens)
    with store.building(args.index_dir, args.overwrite) as directory:
        model_dir = os.path.join(directory, "model")
        # From here on the copy counts: training may go on and replace the original.
        meta = copy_model(args.model_dir, epoch, meta, model_dir)
        encoder = Encoder(evaluation.load_model(model_dir, epoch, meta), {})
        if num_tokens:
            shutil.copyfile(args.tokens_path, os.path.join(directory, "tokens.txt"))
        bags = make_bags(encoder.model.item_clicks.numpy() > 0, tokens)
        rows = [store.Row(item.id, item.text, bag, vector)
                for item, bag, vector in zip(items, bags, encoder.items(bags))]
        made_by = os.path.join(os.path.basename(os.path.abspath(args.model_dir)), f"epoch_{epoch}")
        details = {"model": made_by, "epoch": epoch, "digest": digest(model_dir, epoch, meta)}
        probes = make_probes(encoder, bags)
        store.create(directory, probes.shape[1], rows, details, probes, args.ivf_above, args.nlist,
                     args.nprobe)
    return info(args)


def find_checkpoint(model_dir, epoch):
    """(epoch, metadata) of the one asked for, the newest complete one for None. Raises
    SetupError."""
    if epoch is not None:
        return epoch, utils.load_meta(model_dir, epoch)
    epoch, meta = utils.newest_complete(model_dir)
    if meta is None:
        raise utils.SetupError(f"{model_dir} holds no complete epoch: train first, or see "
                               "--model_dir")
    return epoch, meta


def check_build(args, items, num_items, num_tokens):
    """Raises ItemError where the files are not those of the model."""
    if len(items) != num_items:
        raise ItemError(f"{args.items_path} holds {len(items)} lines and the model has {num_items}"
                        " items: give the --items_path of the data it was trained with")
    if len({item.id for item in items}) < len(items):
        seen = set()
        twice = next(item.id for item in items if item.id in seen or seen.add(item.id))
        raise ItemError(f"{args.items_path} holds the id {twice} twice")
    if num_tokens and not (args.item_tokens and args.tokens_path):
        raise ItemError("the model was trained with content: give its --item_tokens and "
                        "--tokens_path")
    if (args.item_tokens or args.tokens_path) and not num_tokens:
        raise ItemError("the model was trained without content: leave --item_tokens and "
                        "--tokens_path out")
    if num_tokens and len(_read_lines(args.tokens_path)) != num_tokens:
        raise ItemError(f"{args.tokens_path} does not hold the {num_tokens} tokens of the model")


def make_bags(clicked, tokens):
    """The rows of the table that make each item's embedding, a list of <int32>[n]: its own, if it
    was clicked in training, and those of its tokens.

    clicked: <bool>[items]; tokens: a sequence of token ids per item
    """
    return [np.array([item] * bool(clicked[item]) + [len(clicked) + token for token in content],
                     np.int32) for item, content in enumerate(tokens)]


def make_probes(encoder, bags):
    """Queries of the kind that will come: the vectors of sessions of two clicks,
    <float32>[at most PROBES, hidden]."""
    full = [bag for bag in bags if len(bag)]
    if not full:
        raise ItemError("none of the items has a vector: none was clicked in training")
    random = np.random.default_rng(0)
    pairs = random.integers(0, len(full), (min(PROBES, len(full)), 2))
    return encoder.sessions([[full[first], full[second]] for first, second in pairs])


def query(args):
    """Prints rank, score, id and text of the items that fit a session."""
    with Index.open(args.index_dir) as index:
        answer = index.query(args.session.split(), args.k, bool(args.exclude_session))
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
    items = read_items(args.items_path)
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
    ids = args.ids or [item.id for item in read_items(args.items_path)]
    with store.Store(args.index_dir, writable=True) as opened:
        unknown = opened.remove(ids)
    print(f"removed:{len(ids) - len(unknown)} unknown:{len(unknown)}")
    if unknown:
        logger.warning("no candidates before: %s", _some(unknown))
    return 0


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
    added = command("add", add, "add items, or replace those of the same id")
    added.add_argument("items_path", nargs="?", default="-", metavar="FILE",
                       help="an item a line: id, tab, text, then maybe tabs and fields like "
                       "section:sports; - is standard input")
    removed = command("remove", remove, "remove items from the candidates")
    removed.add_argument("ids", nargs="*", metavar="ID", help="raw ids of the items")
    removed.add_argument("--items_path", default="-", metavar="FILE",
                         help="without IDs: a file with an id a line; - is standard input")
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
    add_flag("--item_tokens", default=None, metavar="FILE",
             help="line i: token ids of item i, for a model with content")
    add_flag("--tokens_path", default=None, metavar="FILE",
             help="line i: token i, for a model with content")
    add_flag("--overwrite", action="store_true", help="replace an index that is there")
    add_search(parser)


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
    return utils.run_script(lambda: args.run(args), ItemError, store.StoreError)


if __name__ == "__main__":
    sys.exit(main())

"""A vector index of items that come and go.

    python retrieve.py build --model_dir model_output --items_path sample/items.txt --index_dir index
    python retrieve.py query --index_dir index --session "n0015 n0095 n0115" -k 5
    python retrieve.py remove --index_dir index n0041
    printf 'n0041\\teconomy, article 3\\n' | python retrieve.py add --index_dir index
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time

import numpy as np

import utils
from ssr import commands
from ssr.files import numbered_lines, shown_name, write_atomically
from ssr.news import stream
from ssr.preparation import text
from ssr.retrieval import builds, evaluation, store, vectors
from ssr.retrieval.index import (
    DataError,
    Encoder,
    Index,
    Item,
    _some,
    check_item,
    copy_model,
    digest,
)
from ssr.retrieval.live import Click
from ssr.training.content import ItemContent, load_item_tokens

logger = logging.getLogger("retrieve")

CLICKS_AT_A_TIME = 1 << 12  # clicks taken in at once
PROBES = 200  # queries that the recall of an approximate search is measured with


# --- commands -------------------------------------------------------------------------------------


def build(args):
    """Makes an index of the items of a checkpoint."""
    epoch, meta = utils.find_checkpoint(args.model_dir, args.epoch)
    items = [Item(id, *item) for id, item in text.read_items(args.items_path).items()]
    tokens = check_build(args, items, **meta["model"])
    with builds.new_build(args.index_dir, args.overwrite) as directory:
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
        store.create(directory, probes.shape[1], rows, details, probes,
                     search_settings(args))
    return info(args)


def check_build(args, items, vocab_size, num_tokens, **_):
    """The ItemTokens of a model with content, None for one without. Raises DataError,
    DataError, DataError where the files are not those of the model."""
    if len(items) != vocab_size:
        raise DataError(f"{args.items_path} holds {len(items)} items and the model has "
                        f"{vocab_size}: give the --items_path of the data it was trained with")
    for item in items:
        check_item(item)
    if not num_tokens:
        return None
    vocabulary = text.TokenVocabulary.load(args.tokens_path)
    if len(vocabulary) != num_tokens:
        raise DataError(f"{args.tokens_path} holds {len(vocabulary)} tokens and the model has "
                        f"{num_tokens}: give the --tokens_path of the data it was trained with")
    return load_item_tokens(args.item_tokens, vocab_size, num_tokens)


def copy_vocabulary(tokens_path, directory):
    """Copies tokens.txt and, from beside it, what says how Chinese was cut."""
    shutil.copyfile(tokens_path, os.path.join(directory, text.TOKENS_FILE))
    shutil.copyfile(os.path.join(os.path.dirname(tokens_path), text.CUTTING_FILE),
                    os.path.join(directory, text.CUTTING_FILE))


def make_bags(clicked, tokens=None):
    """The rows of the table that make each item's embedding, a list of <int32>[n]: its own, if it
    was clicked in training, and those of its tokens.

    clicked: <bool>[items]; tokens: ItemTokens, None without content
    """
    if tokens is None:
        return np.split(np.flatnonzero(clicked).astype(np.int32), np.cumsum(clicked)[:-1])
    content = ItemContent(clicked, tokens)
    return np.split(content.rows, content.offsets[1:-1])


def make_probes(encoder, bags):
    """Queries of the kind that will come: the vectors of sessions of two clicks,
    <float32>[at most PROBES, hidden]."""
    full = [bag for bag in bags if len(bag)]
    if not full:
        raise DataError("none of the items has a vector: none was clicked in training")
    random = np.random.default_rng(0)
    pairs = random.integers(0, len(full), (min(PROBES, len(full)), 2))
    return encoder.sessions([[full[first], full[second]] for first, second in pairs])


def read_scoring(path, weights=()):
    """The stream.Scoring that flags name, None without a path. Raises DataError.

    path: of a JSON file (evaluate_stream.py --fit), or "default"
    weights: strings NAME=NUMBER or NAME=NUMBER,NUMBER,... that take the place of what it has
    """
    if path is None:
        if weights:
            raise DataError("--weight changes a --scoring: give one, or --scoring default")
        return None
    try:
        scoring = stream.Scoring()
        if path != "default":
            with open(path, encoding="utf-8") as f:
                scoring = stream.Scoring.from_json(f.read())
        for weight in weights:
            name, _, numbers = weight.partition("=")
            if name not in scoring._fields:
                raise DataError(f"--weight {weight}: there is no {name!r}; there are "
                                + ", ".join(scoring._fields))
            value = json.loads(f"[{numbers}]")
            value = value if isinstance(getattr(scoring, name), tuple) else value[0]
            scoring = stream.Scoring.from_json(scoring._replace(**{name: value}).to_json())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise DataError(f"{f'--weight {weight}' if path == 'default' else path}: {error}") \
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
    between; - is standard input. Raises DataError, which names the line, and DataError."""
    lines = numbered_lines(path, "it holds clicks, a line each: session, tab, item")
    clicks, now = [], time.time()
    for number, line in lines:
        session, *rest = line.split("\t")
        try:
            if len(rest) not in (1, 2):
                raise ValueError("a line is session, tab, item and maybe a tab and the time")
            check_item(Item(rest[0]))
            clicks.append(Click(session or None, rest[0], float(rest[1]) if rest[1:] else now))
        except ValueError as error:
            raise DataError(f"{shown_name(path)}, line {number}: {error}") from None
    return clicks


def info(args):
    """Prints what an index holds and how it searches."""
    with store.Store(args.index_dir) as opened:
        details = opened.details
        print(" ".join(f"{name}:{count}" for name, count in opened.items.counts().items()))
        print(" ".join(f"{name}:{value}" for name, value in opened.search_settings().items()),
              f"dim:{opened.dim}")
        print(f"model:{details['model']} digest:{details['digest'][:12]} change:{opened.change}",
              flush=True)
    return 0


def search_settings(args):
    return store.SearchSettings(args.ivf_above, args.nlist, args.nprobe)


def reindex(args):
    """Makes the faiss file anew from the items."""
    store.reindex(args.index_dir, search_settings(args))
    return info(args)


def export_vectors(args):
    """Writes the candidates' ids, texts and vectors as Parquet."""
    import polars as pl  # here: no other command needs it

    with store.Store(args.index_dir) as opened:
        tables = [pl.DataFrame({
            "id": [item.id for item in rows], "text": [item.text for item in rows],
            "vector": pl.Series(np.stack([item.vector for item in rows]),
                                dtype=pl.Array(pl.Float32, opened.dim)),
        }) for rows in opened.items.scan()]
    if not tables:
        raise DataError(f"{args.index_dir} holds no candidates, there is nothing to export")
    table = pl.concat(tables)
    write_atomically(args.file, table.write_parquet)
    print(f"{len(table)} vectors in {args.file}")
    return 0


# --- flags ----------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Sequence Semantic Retrieval: a vector index of "
                                     "items that come and go")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, run, text):
        added = subparsers.add_parser(name, help=text, description=text, formatter_class=argparse.
                                    ArgumentDefaultsHelpFormatter)
        added.set_defaults(run=run)
        added.add_argument("--index_dir", default="index", help="directory of the index")
        return added

    add_build(command("build", build, "make an index of the items of a checkpoint"))
    asked = command("query", query, "the items that fit a session: rank, score, id, text")
    asked.add_argument("--session", required=True, metavar="IDS",
                       help="raw ids of the clicks, oldest first, white space between")
    asked.add_argument("-k", type=commands.number(int, 1), default=20, help="items wanted")
    asked.add_argument("--exclude_session", type=commands.number(int, 0, 1), default=1,
                       help="1: the items of the session are left out")
    asked.add_argument("--now", type=commands.number(float, 0), default=None, help="with --scoring: "
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
    add_flag("--epoch", type=commands.number(int, 1), default=None,
             help="of the model; the newest complete one when not given")
    add_flag("--items_path", default="items.txt", type=commands.data_path,
             help="line i: raw id of item i, then maybe a tab and its text")
    add_flag("--item_tokens", type=commands.data_path, default=text.ITEM_TOKENS_FILE, metavar="FILE",
             help="line i: token ids of item i, for a model with content")
    add_flag("--tokens_path", type=commands.data_path, default=text.TOKENS_FILE, metavar="FILE",
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
    add_flag("--candidate_age", type=commands.number(float, 0), default=stream.AGE / 3600,
             metavar="HOURS", help="for how long after its last click an item is ranked by clicks")


def add_search(parser):
    positive = commands.number(int, 1)
    parser.add_argument("--ivf_above", type=commands.number(int, 0), default=None,
                        help="search exactly up to so many candidates, approximately above")
    parser.add_argument("--nlist", type=positive, default=None, help="lists of the approximate "
                        "search; 4 times the square root of the candidates when not given")
    parser.add_argument("--nprobe", type=positive, default=None, help="how many lists it looks "
                        f"into; what a recall@20 of {vectors.RECALL} takes when not given")


def main(argv=None):
    args = parse_args(argv)
    commands.setup_logging()
    return commands.run(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())

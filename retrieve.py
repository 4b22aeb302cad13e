"""A vector index of items that come and go.

    python retrieve.py build --model_dir model_output --items_path items.txt --index_dir index
    python retrieve.py query --index_dir index --session "n0015 n0095 n0115" -k 5
    python retrieve.py remove --index_dir index n0041
    printf 'n0041\\teconomy, article 3\\n' | python retrieve.py add --index_dir index
"""

from __future__ import annotations

import logging
import os
import sys
import time

from ssr.commands import Parser, data_path, number, run, setup_logging

from ssr.data_directory import (
    CUTTING_FILE,
    ITEM_TOKENS_FILE,
    ITEM_VECTORS_FILE,
    ITEMS_FILE,
    TOKENS_FILE,
    add_data_dir,
    take_from_data_dir,
)
from ssr.errors import DataError
from ssr.files import write_atomically
from ssr.preparation import text
from ssr.retrieval.clicks import read_clicks
from ssr.retrieval.flags import (
    add_engine,
    add_filter,
    add_live,
    engine_of,
    filter_of,
    live_flags,
    open_index,
)
from ssr.retrieval.live_settings import change_live, read_live
from ssr.retrieval.redis_clicks import without_password
from ssr.retrieval.values import Item, enumerated, printable

logger = logging.getLogger("retrieve")

CLICKS_AT_A_TIME = 1 << 12  # clicks taken in at once
MARGIN = 60  # seconds: a click that is nearly too old is too old when its turn comes


# --- commands -------------------------------------------------------------------------------------


def build(args):
    """Makes an index of the items of a checkpoint."""
    from ssr.retrieval.building import ItemFiles, build_index
    from ssr.retrieval.checkpoint import choose_checkpoint

    take_from_data_dir(args, items_path=ITEMS_FILE, item_tokens=ITEM_TOKENS_FILE,
                       tokens_path=TOKENS_FILE, item_vectors=ITEM_VECTORS_FILE)
    files = ItemFiles(args.items_path, args.item_tokens, args.tokens_path, args.item_vectors)
    build_index(args.index_dir, choose_checkpoint(args.model_dir, args.epoch, args.best), files,
                args.overwrite, search_settings(args), engine_of(args))
    if args.live and read_live(args.index_dir) is None:
        change_live(args.index_dir)
    return info(args)


def query(args):
    """Prints rank, score, id and text of the items that fit a session, and for a live index what
    ranks them."""
    if args.session is None and not args.item:
        raise DataError("give the clicks of the session: --session IDS, or --item ID for each")
    session = (args.session or "").split() + args.item
    with open_index(args) as index:
        answer = index.query(session, args.k, bool(args.exclude_session), args.now,
                             filter_of(args))
        print_hits(answer, index.is_live)
    if answer.skipped:
        logger.info("%d clicks were skipped: their items are unknown or have no vector",
                    answer.skipped)
    return 0


def similar(args):
    """Prints rank, score, id and text of the items that are most like one."""
    with open_index(args) as index:
        print_hits(index.similar([args.id], args.k, filter_of(args))[0])
    return 0


def print_hits(answer, with_source=False):
    """The hits of an Answer, a line each."""
    for rank, hit in enumerate(answer.hits, 1):
        print(f"{rank}\t{hit.score:.6f}\t{printable(hit.id)}\t{printable(hit.text)}"
              + f"\t{hit.source}" * with_source)
    if answer.reason:
        logger.info("%s%s", "" if answer.hits else "no items: ", answer.reason)


def add(args):
    """Adds the items of a file."""
    from ssr.retrieval import Index

    items = [Item(id, *item) for id, item in text.read_items(args.items_path).items()]
    if args.item_vectors:
        from ssr.training.item_vectors import load_item_vectors

        vectors = load_item_vectors(args.item_vectors, len(items), lambda: [
            item.id for item in items])
        items = [items[place]._replace(vector=vector) for places, chunk in vectors.chunks()
                 for place, vector in zip(places, chunk)]
    with Index.open(args.index_dir, writable=True) as index:
        added = index.add(items)
    print(f"added:{added.new} replaced:{added.replaced} "
          f"without_vector:{len(added.without_vector)}")
    if added.without_vector:
        logger.warning("no vector, since the model knows nothing about them: %s",
                       enumerated(added.without_vector))
    return 0


def remove(args):
    """Removes items, given as arguments or in a file. It takes no model."""
    from ssr.retrieval.engines import open_store

    ids = args.ids or list(text.read_items(args.items_path))
    with open_store(args.index_dir, writable=True) as store:
        known = store.items.find(args.ids)
        for id in args.ids:
            if id not in known and os.path.exists(id):
                raise DataError(f"{id} is no item but a file; nothing was removed: for the ids in "
                                f"it, --items_path {id}")
        unknown = store.remove(ids)
    print(f"removed:{len(ids) - len(unknown)} unknown:{len(unknown)}")
    if unknown:
        logger.warning("not known, or removed before: %s", enumerated(unknown))
    return 0


def live(args):
    """Makes an index live, or changes its settings, and prints them."""
    settings = change_live(args.index_dir, **live_flags(args))
    print(f"live candidate_age:{settings.candidate_age / 3600:g}")
    print(settings.scoring.to_json())
    if settings.clicks:
        print(f"clicks:{printable(without_password(settings.clicks))}")
    return 0


def click(args):
    """Takes in the clicks of a file, and makes the index live if it is not."""
    clicks = read_clicks(args.clicks_path)
    if args.scoring is None and read_live(args.index_dir) is None:
        args.scoring = "default"
    with open_index(args, writable=True) as index:
        oldest = time.time() - index.candidate_age + MARGIN
        recent = [click for click in clicks if click.time is None or click.time >= oldest]
        too_old = len(clicks) - len(recent)
        message = (f"{too_old} clicks are too old: an item is a candidate for "
                   f"{index.candidate_age / 3600:g} hours after its last one")
        if too_old and not recent:
            raise DataError(f"{args.clicks_path}: {message}")
        for start in range(0, len(recent), CLICKS_AT_A_TIME):
            index.click(recent[start:start + CLICKS_AT_A_TIME])
        if index.clicks_ahead:
            logger.warning("%d clicks were said to be of the future and count as of now",
                           index.clicks_ahead)
    if too_old:
        logger.warning("%s; they were left out", message)
    print(f"clicks:{len(recent)}")
    return 0


def info(args):
    """Prints what an index holds and how it searches."""
    from ssr.retrieval.engines import open_store

    with open_store(args.index_dir) as store:
        details = store.details
        print(_pairs(store.items.counts()))
        print(_pairs(store.search_settings()), f"dim:{store.dim}")
        print(f"model:{printable(details['model'])} digest:{details['digest'][:12]} "
              f"change:{store.change}")
    settings = read_live(args.index_dir)
    if settings:
        print(f"live candidate_age:{settings.candidate_age / 3600:g}")
    return 0


def _pairs(values):
    return " ".join(f"{name}:{value}" for name, value in values.items())


def check(args):
    """Reads all of an index and prints what is damaged."""
    from ssr.retrieval.checking import check_index

    faults = check_index(args.index_dir)
    for fault in faults:
        print(printable(fault))
    print(f"faults:{len(faults)}")
    return 1 if faults else 0


def reindex(args):
    """Makes the faiss file anew from the items."""
    from ssr.retrieval import engines

    engines.reindex(args.index_dir, search_settings(args))
    return info(args)


def export_vectors(args):
    """Writes the candidates' ids, texts and vectors as Parquet."""
    from ssr.retrieval.parquet import vectors_table

    table = vectors_table(args.index_dir)
    write_atomically(args.file, table.write_parquet)
    print(f"{len(table)} vectors in {args.file}")
    return 0


def search_settings(args):
    from ssr.retrieval.vectors import SearchSettings

    return SearchSettings(args.ivf_above, args.nlist, args.nprobe)


# --- flags ----------------------------------------------------------------------------------------


def make_parser():
    parser = Parser("Sequence Semantic Retrieval: a vector index of items that come and go")
    parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, function, help):
        added = parser.add_command(name, function, help)
        added.add_argument("--index_dir", default="index", help="directory of the index")
        return added

    add_build(command("build", build, "make an index of the items of a checkpoint"))
    add_query(command("query", query, "the items that fit a session: rank, score, id, text; of a "
                      "live index also what ranks them, live (clicks) or nearest (the vectors)"))
    add_similar(command("similar", similar, "the items that are most like one: rank, score, id, "
                        "text"))
    added = command("add", add, "add items, or replace those of the same id")
    added.add_argument(
        "items_path", nargs="?", default="-", metavar="FILE", help="an item a line: id, tab, text, "
        "then maybe tabs and fields like section:sports; - is standard input")
    added.add_argument("--item_vectors", type=data_path, metavar="VECTORS", help="the pretrained "
                       "vectors of these items, for a model that was trained with such: a .npy "
                       "whose row i is that of line i, or Parquet with the columns id and vector")
    removed = command("remove", remove, "remove items from the candidates")
    removed.add_argument("ids", nargs="*", default=[], metavar="ID", help="raw ids of the items")
    removed.add_argument("--items_path", default="-", metavar="FILE",
                         help="without IDs: a file with an id a line; - is standard input")
    add_live(command("live", live, "make an index live, which takes clicks in and ranks by them, "
                     "or change its settings"))
    clicked = command("click", click, "take in clicks; the index becomes live")
    clicked.add_argument("clicks_path", nargs="?", default="-", metavar="FILE",
                         help="a click a line: session, tab, item, then maybe a tab and the "
                         "seconds since 1970; - is standard input")
    add_live(clicked)
    command("info", info, "what the index holds, how it searches, which model made it")
    command("check", check, "read all of an index and say what is damaged")
    add_search(command("reindex", reindex, "make the faiss file anew from the items: where it is "
                       "damaged, or with another kind of search"), "as before")
    command("export-vectors", export_vectors, "write id, text and vector of all candidates as "
            "Parquet").add_argument("file", metavar="FILE.parquet")
    return parser


def add_build(parser):
    add_flag = parser.add_argument
    add_flag("--model_dir", default="model_output", help="where train.py saved epoch_N")
    add_flag("--epoch", type=number(int, 1), help="of the model; the newest complete one when not "
             "given")
    add_flag("--best", action="store_true", help="without --epoch: the best one in validation")
    add_data_dir(parser)
    add_flag("--items_path", default=ITEMS_FILE, type=data_path,
             help="line i: raw id of item i, then maybe a tab and its text")
    add_flag("--item_tokens", type=data_path, default=ITEM_TOKENS_FILE, metavar="FILE",
             help="line i: token ids of item i, for a model with content")
    add_flag("--item_vectors", type=data_path, metavar="FILE",
             help="row i: the vector of item i, for a model with pretrained vectors; those of its "
             "training when not given")
    add_flag("--tokens_path", type=data_path, default=TOKENS_FILE, metavar="FILE",
             help=f"line i: token i, for a model with content; {CUTTING_FILE} lies beside it")
    add_flag("--overwrite", action="store_true", help="replace an index that is there; its clicks "
             "stay")
    add_engine(parser)
    add_flag("--live", action="store_true", help="the index takes clicks in; retrieve.py live says "
             "how it ranks by them")
    add_search(parser, "100000")


def add_query(parser):
    add_flag = parser.add_argument
    add_flag("--session", metavar="IDS", help="raw ids of the clicks, oldest first, white space "
             "between")
    add_flag("--item", action="append", default=[], metavar="ID", help="a click more, for ids with "
             "white space; may be given several times")
    add_flag("-k", type=number(int, 1), default=20, help="items wanted")
    add_flag("--exclude_session", type=number(int, 0, 1), default=1,
             help="1: the items of the session are left out")
    add_flag("--now", type=number(float, 0), help="of a live index: the moment of the query in "
             "seconds since 1970; this one when not given")
    add_filter(parser)
    add_live(parser)


def add_similar(parser):
    parser.add_argument("id", metavar="ID", help="raw id of the item")
    parser.add_argument("-k", type=number(int, 1), default=20, help="items wanted")
    add_filter(parser)
    add_live(parser)


def add_search(parser, ivf_above):
    """ivf_above: what holds when it is not given"""
    parser.add_argument("--ivf_above", type=number(int, 0), help="search exactly up to so many "
                        f"candidates, approximately above; {ivf_above} when not given")
    parser.add_argument("--nlist", type=number(int, 1), help="lists of the approximate search; 4 "
                        "times the square root of the candidates when not given")
    parser.add_argument("--nprobe", type=number(int, 1), help="how many lists it looks into; what "
                        "a recall@20 of 0.985 takes when not given")


def main(argv=None):
    args = make_parser().parse(argv)
    setup_logging()
    return run(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())

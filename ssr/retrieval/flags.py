"""The flags that retrieve.py and serve.py share."""

from __future__ import annotations

import json
import re

from ssr import commands
from ssr.errors import DataError
from ssr.news import AGE, Scoring, read_scoring
from ssr.retrieval.filters import Filter
from ssr.retrieval.live_settings import read_live
from ssr.retrieval.redis_clicks import check_address


def add_live(parser):
    """The flags of a live index, for live_flags and open_index."""
    add_flag = parser.add_argument
    add_flag("--scoring", metavar="FILE", help="weights with which clicks rank: a file of "
             "evaluate_stream.py --fit, or default for those of the package; those of the index "
             "when not given")
    add_flag("--weight", action="append", default=[], metavar="NAME=NUMBERS", help="of the "
             "scoring, in place of what it has, as readers=0 or power=0,1,0,0 (a number a window); "
             "may be given several times")
    add_flag("--candidate_age", type=commands.number(float, 0.001), metavar="HOURS",
             help="for how long after its last click an item is ranked by clicks; "
             f"{AGE / 3600:g} for an index that becomes live")
    add_flag("--clicks", metavar="URI", help="of a Redis, redis://HOST:6379/0, over which several "
             "servers share the clicks; those of the index when not given, and without one a file "
             "in --index_dir")


def add_filter(parser):
    """The flags for filter_of."""
    add_flag = parser.add_argument
    add_flag("--only", nargs="+", default=[], metavar="FIELD", help="only items with one of these "
             "fields, as section:sports; of several names, with one of each")
    add_flag("--without", nargs="+", default=[], metavar="FIELD", help="no items with these fields")
    add_flag("--candidates", nargs="+", metavar="ID", help="only these items")
    add_flag("--exclude", nargs="+", default=[], metavar="ID", help="none of these items")
    add_flag("--max_age", type=commands.number(float, 0), metavar="SECONDS", help="only items that "
             "were added in the last so many seconds")
    add_flag("--at_most", nargs="+", default=[], metavar="NAME=NUMBER", help="so many items at "
             "most with the same value of a field, as section=3")


def filter_of(args):
    """The Filter that the flags of add_filter name. Raises DataError."""
    at_most = {}
    for limit in args.at_most:
        name, _, number = limit.rpartition("=")
        if not (name and number.isdecimal()):
            raise DataError(f"--at_most {limit}: it takes the name of a field and a number, as "
                            "section=3")
        at_most[name] = int(number)
    return Filter(args.only, args.without, args.candidates, args.exclude, args.max_age, at_most)


def add_engine(parser):
    """The flags of what keeps an index, for engine_of."""
    add_flag = parser.add_argument
    add_flag("--engine", choices=["faiss", "milvus"], default="faiss", help="what keeps items and "
             "vectors: faiss and SQLite in --index_dir, or a Milvus that several servers share; "
             "the index knows from there on")
    add_flag("--uri", help="of Milvus: http://HOST:19530, with MILVUS_TOKEN in the environment if "
             "it asks for one; or FILE.db for Milvus Lite, within one process")
    add_flag("--collection", default="ssr", help="what the names of the collections in Milvus "
             "begin with, one for each build")


def engine_of(args):
    """The engines.Milvus that --engine, --uri and --collection name, None for faiss."""
    from ssr.retrieval.engines import Milvus  # here: help and wrong flags need none of it

    if args.engine == "milvus":
        if not args.uri:
            raise DataError("--engine milvus needs the --uri of a Milvus: http://HOST:19530, or "
                            "FILE.db for Milvus Lite")
        if "://" not in args.uri and not args.uri.endswith(".db"):
            raise DataError(f"--uri {args.uri}: neither an address, as http://HOST:19530, nor a "
                            "file for Milvus Lite, whose name ends in .db")
        if not re.fullmatch(r"[A-Za-z_]\w{0,99}", args.collection, re.ASCII):
            raise DataError(f"--collection {args.collection}: a name in Milvus is made of letters, "
                            "digits and _ and begins with no digit")
        return Milvus(args.uri, args.collection)
    if args.uri:
        raise DataError("--uri is of --engine milvus")
    return None


def live_flags(args):
    """What the flags name, for Index.open and change_live: scoring, candidate_age in seconds,
    clicks; each None where it is not given. Raises DataError, StoreError."""
    age = None if args.candidate_age is None else args.candidate_age * 3600
    if args.clicks is not None:
        check_address(args.clicks)
    return {"scoring": _scoring(args.index_dir, args.scoring, args.weight), "candidate_age": age,
            "clicks": args.clicks}


def open_index(args, writable=False):
    """The Index that --index_dir and the flags of add_live name. Raises UserError."""
    from ssr.retrieval.index import Index  # here: help and wrong flags need none of it

    return Index.open(args.index_dir, writable, **live_flags(args))


def _scoring(index_dir, path, weights):
    if path is None:
        if not weights:
            return None
        live = read_live(index_dir)
        if live is None:
            raise DataError(f"--weight changes a scoring and {index_dir} is not live, it has none: "
                            "give one, or --scoring default")
        scoring = live.scoring
    else:
        scoring = Scoring() if path == "default" else read_scoring(path)[0]
    for weight in weights:
        scoring = _with_weight(scoring, weight)
    return scoring


def _with_weight(scoring, weight):
    """The scoring with one of its weights replaced. weight: NAME=NUMBER or NAME=NUMBER,NUMBER"""
    name, _, numbers = weight.partition("=")
    if name not in scoring._fields:
        raise DataError(f"--weight {weight}: there is no {name!r}; there are "
                        + ", ".join(scoring._fields))
    try:
        values = [float(number) for number in numbers.split(",")]
        single = not isinstance(getattr(scoring, name), tuple) and len(values) == 1
        scoring = scoring._replace(**{name: values[0] if single else values})
        return Scoring.from_json(json.dumps(scoring._asdict()))
    except ValueError as error:
        raise DataError(f"--weight {weight}: {error}") from error

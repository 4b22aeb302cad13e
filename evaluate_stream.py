"""Replays sessions with times in order, as a service would have seen them, and evaluates what would
have been recommended.

    python evaluate_stream.py --data_dir data --model_dir model --fit
    python evaluate_stream.py --data_dir data --model_dir model
    python evaluate_stream.py --test_dir later/test_data --times later/test_times --vocab_path \\
        later/vocab.txt --model_dir later_model --scoring model/stream.json

Every click of a session but the first is a query: which article is clicked now. It knows the clicks
of its session before it, and of all others those strictly earlier than its own time. Ties count
against, articles of the session are no candidates, an article that is no candidate is a miss. The
weights of the live score (ssr/news/scoring.py) are read from --scoring, or, with --fit, fitted on
these sessions and written there: fit on a day and evaluate on a later one. With --data_dir the
sessions are its test_data; those to --fit on are its valid_data, or its train_data where it has no
valid_data with times.

In the same replay, beside it: the articles clicked most in a window (popular), the model alone as
it was trained (frozen), and a session-kNN that sees every click (vsknn).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys

from ssr.commands import Parser, data_path, number, run, setup_logging

import reader
import utils
from ssr.data_directory import (
    ITEM_TOKENS_FILE,
    ITEM_VECTORS_FILE,
    ITEMS_FILE,
    VOCAB_FILE,
    DataDirectory,
    add_data_dir,
    take_from_data_dir,
)
from ssr.errors import DataError, SetupError
from ssr.files import check_writable
from ssr.news.baselines import VSKNN, Popular
from ssr.news.figures import by_hour, check_drawing, draw, label_groups, write_table
from ssr.news.replay import Frozen, StreamMethod, fit_on_replay, replay
from ssr.news.scoring import PARTS, Scoring, read_scoring, write_scoring
from ssr.news.timeline import Timeline
from ssr.retrieval.checkpoint import choose_checkpoint, model_digest
from ssr.retrieval.encoder import IdEncoder
from ssr.training.content import ContentFiles

logger = logging.getLogger("evaluate_stream")

BASELINES = ("popular", "frozen", "vsknn")


def make_parser():
    parser = Parser("Evaluation of sessions with times, replayed in order")
    add, positive = parser.add_argument, number(int, 1)
    add_data_dir(parser, "; of its sessions test_data, with --fit valid_data or "
                 "train_data")
    add("--test_dir", default="test_data", help="directory of session files")
    add("--times", default="test_times", type=data_path,
        help="directory of their times, files of the same names")
    add("--warm_dir", help="earlier sessions, those of training, whose last day is replayed first "
        "without being evaluated")
    add("--warm_times", type=data_path, help="the times of --warm_dir")
    add("--vocab_path", default="vocab.txt", help="file whose first line is the number of items of "
        "these sessions; it may be more than the model was trained with")
    add("--model_dir", default="model_output", help="where train.py saved epoch_N")
    add("--item_tokens", default="item_tokens.txt", type=data_path, metavar="FILE", help="for a "
        "model with content: line i is the tokens of item i, of all of --vocab_path; that of its "
        "training where this is not given and not there")
    add("--item_vectors", type=data_path, metavar="FILE", help="for a model with pretrained "
        "vectors: those of all items of --vocab_path; those of its training when not given")
    add("--epoch", type=positive, help="of the model; the newest complete one when not given")
    add("--best", action="store_true", help="the epoch of the highest recall in validation")
    add("--scoring", metavar="FILE", help="the weights of the score; when not given "
        "MODEL_DIR/stream.json, which must have been fitted with this model, or the weights of the "
        "package where there is no such file")
    add("--fit", action="store_true", help="fit the weights on these sessions and write them to "
        "--scoring; then evaluate on the same sessions")
    add("--fit_queries", type=positive, default=12000, help="queries that --fit looks at")
    add("--unknown_weight", type=number(float, 0), default=3.0, help="how much a click on an "
        "article unknown to training counts in --fit, against one on a known article")
    add("--without", nargs="+", choices=PARTS, default=[], help="parts of the score to switch off, "
        "in --fit as well")
    add("--baselines", nargs="*", choices=[*BASELINES, "none"], default=list(BASELINES),
        help="what to evaluate beside it; none, or no name at all, for nothing")
    add("--window", type=positive, default=900, help="seconds of the baseline popular")
    add("--age", type=positive, default=86400, help="seconds after its last click that an article "
        "remains a candidate")
    add("--topk", type=positive, default=20, metavar="K", help="the K of recall@K and MRR@K")
    add("--table", metavar="FILE", help="write the figures of each hour, as tab-separated text")
    add("--plot", metavar="FILE", help="draw recall@K of each hour; needs matplotlib")
    add("--use_cuda", type=number(int, 0, 1), default=0, help="1 for a GPU")
    return parser


def parse_args(argv=None):
    parser = make_parser()
    args = parser.parse(argv)
    if bool(args.warm_dir) != bool(args.warm_times):
        parser.error("--warm_dir and --warm_times go together")
    take_paths(args)
    if args.best and args.epoch:
        parser.error("--epoch and --best: give one")
    if "none" in args.baselines:
        if len(args.baselines) > 1:
            parser.error("--baselines: none goes with no other name")
        args.baselines = []
    args.scoring = args.scoring or os.path.join(args.model_dir, "stream.json")
    return args


def take_paths(args):
    """Sets the paths that were not given to those in --data_dir. Raises DataError."""
    names = {"vocab_path": VOCAB_FILE, "item_tokens": ITEM_TOKENS_FILE,
             "item_vectors": ITEM_VECTORS_FILE}
    if args.data_dir and not {"test_dir", "times", "warm_dir", "warm_times"} & {*args.given}:
        has_times = DataDirectory.open(args.data_dir).times
        part = "test" if not args.fit else "valid" if has_times("valid") else "train"
        names.update(test_dir=f"{part}_data", times=f"{part}_times")
        if part != "train" and has_times("train"):
            names.update(warm_dir="train_data", warm_times="train_times")
    take_from_data_dir(args, **names)


def check_outputs(args):
    """Raises SetupError where what is to be written in the end could not be."""
    for path, flag in ((args.table, "--table"), (args.plot, "--plot"),
                       (args.scoring if args.fit else None, "--fit")):
        if path:
            check_writable(path, flag)
    if args.plot:
        check_drawing()
    if args.fit and importlib.util.find_spec("scipy") is None:
        raise SetupError("--fit needs scipy: pip install scipy")


def load_timeline(args, vocab_size):
    """Raises DataError."""
    sessions = reader.load_timed_sessions(args.test_dir, args.times, vocab_size)
    if not args.warm_dir:
        return Timeline.of(*sessions)
    return Timeline.of(*sessions, *reader.load_timed_sessions(args.warm_dir, args.warm_times,
                                                              vocab_size))


def content_files(args):
    """ContentFiles, of which None stands for that of training."""
    is_given = "item_tokens" in args.given or os.path.exists(args.item_tokens)
    items = data_path(os.path.join(os.path.dirname(args.vocab_path), ITEMS_FILE))
    return ContentFiles(args.item_tokens if is_given else None, args.item_vectors, items)


def load_scoring(args, digest):
    """The weights to use. digest: of the model. Raises DataError."""
    is_given = "scoring" in args.given
    if not os.path.exists(args.scoring):
        if is_given:
            raise DataError(f"there is no {args.scoring}: --fit makes it")
        logger.warning("there is no %s, which --fit makes: the score has the weights of the "
                       "package", args.scoring)
        return Scoring().without(*args.without)
    scoring, fitted_with = read_scoring(args.scoring)
    if fitted_with is None:
        logger.info("%s does not say which model it was fitted with", args.scoring)
    elif fitted_with != digest:
        if not is_given:
            raise DataError(f"{args.scoring} was fitted with another model than the one in "
                            f"{args.model_dir}: fit again with --fit, or use it nevertheless with "
                            f"--scoring {args.scoring}")
        logger.info("%s was fitted with another model", args.scoring)
    return scoring.without(*args.without)


def fit(args, timeline, encoder, digest):
    """Fits the weights, writes and returns them. Raises SetupError."""
    result = fit_on_replay(timeline, encoder, args.age, args.fit_queries, args.unknown_weight,
                           args.without)
    print(f"fit on {result.queries} queries: cross-entropy {result.before:.4f} -> "
          f"{result.after:.4f}")
    write_scoring(args.scoring, result.scoring, digest)
    print(f"parameters written to {args.scoring}")
    return result.scoring


def make_methods(args, encoder, scoring, vocab_size):
    """{name: function that makes the Method}"""
    baselines = {"popular": lambda: Popular(vocab_size, args.window),
                 "frozen": lambda: Frozen(encoder),
                 "vsknn": lambda: VSKNN(vocab_size)}
    return {"stream": lambda: StreamMethod(encoder, scoring, args.age, args.topk),
            **{name: baselines[name] for name in args.baselines}}


def print_figures(name, ranks, known, k, rate):
    """known: <bool>[queries], whether training knew the label; rate: clicks/s"""
    for labels, chosen in label_groups(known).items():
        speed = f" clicks/s:{rate:.0f}" if labels == "all" else ""
        print(f"{name:8} {labels:8} queries:{chosen.sum()} "
              f"{utils.show_recall_mrr(ranks[chosen], k)}{speed}", flush=True)


def evaluate(args):
    """Returns 0."""
    check_outputs(args)
    utils.check_version()
    utils.set_device(args.use_cuda)
    vocab_size = reader.get_vocab_size(args.vocab_path)
    timeline = load_timeline(args, vocab_size)
    checkpoint = choose_checkpoint(args.model_dir, args.epoch, args.best)
    encoder = IdEncoder.load(checkpoint, content_files(args), vocab_size)
    digest = model_digest(checkpoint)
    print(f"{len(timeline)} clicks, {timeline.asked.sum()} queries")
    scoring = fit(args, timeline, encoder, digest) if args.fit else load_scoring(args, digest)
    known = encoder.clicked[timeline.items[timeline.asked]]
    results = {}
    for name, make in make_methods(args, encoder, scoring, vocab_size).items():
        results[name], rate = replay(timeline, make(), name)
        print_figures(name, results[name], known, args.topk, rate)
    rows = by_hour(results, timeline.times[timeline.asked], known,
                   lambda ranks: utils.recall_mrr(ranks, args.topk))
    if args.table:
        write_table(args.table, rows, args.topk)
        print(f"written: {args.table}")
    if args.plot:
        draw(args.plot, rows, args.topk)
        print(f"written: {args.plot}")
    return 0


def main(argv=None):
    setup_logging()
    return run(lambda: evaluate(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

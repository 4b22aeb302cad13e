"""Replays sessions with times in order, as a service would have seen them, and evaluates what would
have been recommended.

    python evaluate_stream.py --test_dir fit/test_data --times fit/test_times --vocab_path \\
        fit/vocab.txt --model_dir fit/model --fit
    python evaluate_stream.py --test_dir data/test_data --times data/test_times --vocab_path \\
        data/vocab.txt --model_dir data/model --scoring fit/model/stream.json

Every click of a session but the first is a query: which article is clicked now. It knows the clicks
of its session before it, and of all others those strictly earlier than its own time. Ties count
against, articles of the session are no candidates, an article that is no candidate is a miss. The
score is that of stream.py; its parameters are read from --scoring, or, with --fit, found on these
sessions and written there: fit on a day and evaluate on a later one.

Beside it, in the same replay: the articles clicked most in a window, the model alone as it was
trained (frozen), and a session-kNN that sees every click (V-SKNN; stream_baselines.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys

import numpy as np

import reader
import utils
from ssr import commands
from ssr.errors import SetupError
from ssr.files import write_atomically
from ssr.news import stream
from ssr.news.baselines import VSKNN, Popular
from ssr.news.replay import Baseline, Encoder, Frozen, Live, in_order, replay
from ssr.retrieval import evaluation
from ssr.training.content import load_item_tokens

logger = logging.getLogger("evaluate_stream")

PARTS = ("readers", "content", "popularity", "transitions")
BASELINES = ("popular", "frozen", "vsknn")
DRAWN_FROM = 50  # queries: the recall of fewer is noise, and no point of the plot


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Evaluation of sessions with times, replayed in order",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    positive = commands.number(int, 1)
    add("--test_dir", default="test_data", help="directory of session files")
    add("--times", default="test_times", type=commands.data_path, help="directory of their times, files of the same names")
    add("--warm_dir", help="sessions before them, whose last day is replayed first without being "
        "evaluated: those of training")
    add("--warm_times", type=commands.data_path, help="the times of --warm_dir")
    add("--vocab_path", default="vocab.txt", help="file whose first line is the number of items of "
        "these sessions; it may be more than the model was trained with")
    add("--model_dir", default="model_output", help="where train.py saved epoch_N")
    add("--item_tokens", default="item_tokens.txt", type=commands.data_path, metavar="FILE", help="for a model that was "
        "trained with it: line i is the tokens of item i, of all of --vocab_path")
    add("--epoch", type=positive, help="the newest complete one when not given")
    add("--scoring", help="the parameters of the score; MODEL_DIR/stream.json when not given, "
        "the defaults of stream.py where there is no such file")
    add("--fit", action="store_true", help="find the parameters on these sessions and write them "
        "to --scoring; then evaluate on the same sessions")
    add("--fit_queries", type=positive, default=12000, help="queries that --fit looks at")
    add("--unknown_weight", type=commands.number(float, 0), default=3.0, help="how much a click on an "
        "article unknown to training counts in --fit, against one on a known article")
    add("--without", nargs="+", choices=PARTS, default=[], help="parts of the score to switch off, "
        "in --fit as well")
    add("--baselines", nargs="*", choices=BASELINES, default=list(BASELINES))
    add("--window", type=positive, default=900, help="seconds of the baseline popular")
    add("--age", type=positive, default=86400, help="seconds after its last click that an article "
        "remains a candidate")
    add("--topk", type=positive, default=20, metavar="K", help="the K of recall@K and MRR@K")
    add("--table", metavar="FILE", help="write the figures of each hour, as tab-separated text")
    add("--plot", metavar="FILE", help="draw recall@K of each hour; needs matplotlib")
    add("--use_cuda", type=commands.number(int, 0, 1), default=0, help="1 for a GPU")
    args = parser.parse_args(argv)
    if bool(args.warm_dir) != bool(args.warm_times):
        parser.error("--warm_dir and --warm_times go together")
    args.scoring_given = args.scoring is not None
    args.scoring = args.scoring or os.path.join(args.model_dir, "stream.json")
    return args


# --- parameters -----------------------------------------------------------------------------------


def read_scoring(args):
    """The parameters to use. Raises SetupError."""
    try:
        with open(args.scoring, encoding="utf-8") as f:
            found = stream.Scoring.from_json(f.read())
    except FileNotFoundError as error:
        if args.scoring_given:
            raise SetupError(f"there is no {args.scoring}: --fit makes it") from error
        logger.warning("there is no %s, which --fit makes: the score has default parameters",
                       args.scoring)
        found = stream.Scoring()
    except (OSError, ValueError) as error:
        raise SetupError(f"cannot read {args.scoring}: {error}") from error
    return found.without(*args.without)


def fit(args, clicks, encoder):
    """Finds the parameters on the queries, writes and returns them. Raises SetupError."""
    if importlib.util.find_spec("scipy") is None:
        raise SetupError("--fit needs scipy: pip install scipy")
    examples = stream.Examples()
    share = args.fit_queries / clicks.asked.sum()
    random = np.random.default_rng(0)

    def collect(state, label, user, session, now):
        if random.random() < share:
            weight = 1.0 if encoder.known[label] else args.unknown_weight
            examples.add(state, label, user, session, now, weight)
    replay(clicks, Live(encoder, stream.Scoring(), args.age, collect), "fit")
    if not len(examples):
        raise SetupError("--fit: no query has its label among the candidates")
    scoring, before, after = stream.fit(examples, off=args.without)
    print(f"fit on {len(examples)} queries: cross-entropy {before:.4f} -> {after:.4f}")

    def write(path):
        with open(path, "w", encoding="utf-8") as f:
            f.write(scoring.to_json() + "\n")
    write_atomically(args.scoring, write)
    print(f"parameters written to {args.scoring}")
    return scoring


# --- figures --------------------------------------------------------------------------------------


def print_metrics(name, ranks, known, k, rate):
    """known: <bool>[queries], whether training knew the label; rate: clicks/s"""
    for part, chosen in (("all", slice(None)), ("known", known), ("unknown", ~known)):
        recall, mrr = utils.recall_mrr(ranks[chosen], k)
        print(f"{name:8} {part:8} queries:{len(ranks[chosen])} recall@{k}:{recall:.4f} "
              f"mrr@{k}:{mrr:.4f}" + f" clicks/s:{rate:.0f}" * (part == "all"), flush=True)


def hourly(results, times, known, k):
    """Rows (hour, method, labels, queries, recall, mrr); hours are counted from that of the first
    query.

    results: {method: ranks}; times: <int64>[queries]
    """
    hours = times // 3600 - times.min() // 3600
    rows = []
    for hour in np.unique(hours):
        for name, ranks in results.items():
            for part, chosen in (("all", hours == hour), ("known", (hours == hour) & known),
                                 ("unknown", (hours == hour) & ~known)):
                rows.append((int(hour), name, part, int(chosen.sum()),
                             *utils.recall_mrr(ranks[chosen], k)))
    return rows


def write_table(path, rows, k):
    def write(name):
        with open(name, "w", encoding="utf-8") as f:
            f.write(f"hour\tmethod\tlabels\tqueries\trecall@{k}\tmrr@{k}\n")
            f.writelines("%d\t%s\t%s\t%d\t%.4f\t%.4f\n" % row for row in rows)
    write_atomically(path, write)
    print(f"written: {path}")


def draw(path, rows, k):
    """recall@K by hour, for all labels and for those that training did not know. Raises
    SetupError."""
    try:
        import matplotlib
    except ImportError as error:
        raise SetupError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")  # no window
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4), sharex=True)
    for panel, part in zip(panels, ("all", "unknown")):
        for method in dict.fromkeys(row[1] for row in rows):
            chosen = [row for row in rows if row[1] == method and row[2] == part
                      and row[3] >= DRAWN_FROM]
            panel.plot([row[0] for row in chosen], [row[4] for row in chosen], marker=".",
                       label=method)
        panel.set(title=f"{part} labels", xlabel="hour", ylabel=f"recall@{k}")
        panel.legend()
    figure.tight_layout()
    write_atomically(path, lambda name: figure.savefig(name, format="png"))
    pyplot.close(figure)
    print(f"written: {path}")


# --- the command ----------------------------------------------------------------------------------


def load_clicks(args):
    """Raises DataError."""
    vocab_size = reader.get_vocab_size(args.vocab_path)
    data = reader.load_timed_sessions(args.test_dir, args.times, vocab_size)
    if not args.warm_dir:
        return in_order(*data), vocab_size
    warm = reader.load_timed_sessions(args.warm_dir, args.warm_times, vocab_size)
    return in_order(*data, *warm), vocab_size


def load_encoder(args, vocab_size):
    """Raises DataError, SetupError."""
    epoch, meta = utils.find_checkpoint(args.model_dir, args.epoch)
    model = evaluation.load_model(args.model_dir, epoch, meta)
    if model.vocab_size > vocab_size:
        raise SetupError(f"the checkpoint was trained with {model.vocab_size} items and "
                               f"{args.vocab_path} says {vocab_size}: those of training come "
                               "first, what is new behind them")
    tokens = None
    if model.num_tokens:
        tokens = load_item_tokens(args.item_tokens, vocab_size, model.num_tokens)
    return Encoder(model, vocab_size, tokens)


def make_methods(args, encoder, scoring, vocab_size):
    """{name: function that makes the method}"""
    baselines = {"popular": lambda: Baseline(Popular(vocab_size, args.window)),
                 "frozen": lambda: Frozen(encoder),
                 "vsknn": lambda: Baseline(VSKNN(vocab_size))}
    return {"stream": lambda: Live(encoder, scoring, args.age),
            **{name: baselines[name] for name in args.baselines}}


def evaluate(args):
    """Returns 0."""
    utils.check_version()
    utils.set_device(args.use_cuda)
    clicks, vocab_size = load_clicks(args)
    encoder = load_encoder(args, vocab_size)
    print(f"{len(clicks.items)} clicks, {clicks.asked.sum()} queries")
    scoring = fit(args, clicks, encoder) if args.fit else read_scoring(args)
    known = encoder.known[clicks.items[clicks.asked]]
    results = {}
    for name, make in make_methods(args, encoder, scoring, vocab_size).items():
        results[name], rate = replay(clicks, make(), name)
        print_metrics(name, results[name], known, args.topk, rate)
    rows = hourly(results, clicks.times[clicks.asked], known, args.topk)
    if args.table:
        write_table(args.table, rows, args.topk)
    if args.plot:
        draw(args.plot, rows, args.topk)
    return 0


def main(argv=None):
    args = parse_args(argv)
    commands.setup_logging()
    return commands.run(lambda: evaluate(args))


if __name__ == "__main__":
    sys.exit(main())

"""Evaluates the saved epochs: recall@K and MRR@K of the next click, against all items.

    python infer.py --test_dir test_data --use_cuda 0 --batch_size 50 --model_dir model_output
    python infer.py --start_index 10 --topk 5 20 --positions all
    python infer.py --start_index 10 --output top.tsv --items_path items.txt
    python infer.py --start_index 10 --candidates unknown    # a model of train.py --item_tokens
    python infer.py --start_index 10 --baselines popular item_knn v_sknn --report report.html
    python infer.py --start_index 10 --impressions data/test_impressions    # of preprocess.py mind

How items are ranked, and what has no vector: ssr/evaluation/ranking.py. What the table and the
report say beyond recall and MRR: ssr/evaluation/metrics.py. AUC, MRR and NDCG of impressions:
ssr/evaluation/impressions.py.
"""

from __future__ import annotations

import logging
import sys
import time

from ssr.commands import Parser, data_path, number, run, setup_logging

import numpy as np

import reader
import utils
from ssr.data_directory import (
    ITEM_TOKENS_FILE,
    ITEM_VECTORS_FILE,
    ITEMS_FILE,
    VOCAB_FILE,
    add_data_dir,
    take_from_data_dir,
)
from ssr.errors import DataError, SetupError
from ssr.evaluation.queries import Task
from ssr.files import check_writable, write_atomically, write_text
from ssr.impressions import read_impressions
from ssr.retrieval.checkpoint import best_epoch
from ssr.retrieval.encoder import IdEncoder
from ssr.training.checkpoints import Checkpoint
from ssr.training.content import ContentFiles

logger = logging.getLogger("infer")

# What --impressions, which asks for no next click, has no use for.
FLAGS_OF_CLICKS = ("test_dir", "topk", "positions", "candidates", "output", "baselines",
                   "train_dir", "report", "items_path")
BASELINES = ("popular", "item_knn", "v_sknn")  # of ssr.evaluation.baselines


def parse_args(argv=None):
    parser = Parser("Sequence Semantic Retrieval: evaluation")
    add, positive = parser.add_argument, number(int, 1)
    add_data_dir(parser)
    add("--test_dir", default="test_data", help="directory of session files")
    add("--vocab_path", default="vocab.txt", help="file whose first line is the number of items")
    add("--model_dir", default="model_output", help="where train.py saved epoch_N")
    add("--start_index", type=positive, default=1, help="first epoch to evaluate")
    add("--last_index", type=positive, default=10, help="last epoch to evaluate")
    add("--best", action="store_true", help="evaluate the epoch that was the best on train.py's "
        "--valid_dir, in place of --start_index to --last_index")
    add("--use_cuda", type=number(int, 0, 1), default=0, help="1 for a GPU")
    add("--batch_size", type=positive, default=256, help="queries at a time")
    for names in (("--hid_size", "--hidden_size"), ("--emb_size", "--embedding_dim")):
        add(*names, dest=names[1][2:], type=positive, help="as in the checkpoint, so it need not "
            "be given; another value is an error")
    add("--topk", type=positive, nargs="+", default=[20], metavar="K",
        help="the K of recall@K and MRR@K, several allowed")
    add("--positions", choices=("last", "all"), default="last",
        help="predict the last click of each line, or every click after the first")
    add("--item_tokens", type=data_path, metavar="FILE", help="for a model that was "
        "trained with it: line i holds the tokens of item i (default: the file of the training)")
    add("--item_vectors", type=data_path, metavar="FILE", help="for a model that was trained with "
        "it: the pretrained vectors of the items (default: the file of the training)")
    add("--candidates", choices=("all", "unknown"), default="all", help="rank all items that have "
        "a vector, or only those that were not clicked in training, for labels among them")
    add("--output", metavar="FILE",
        help="write the top items of each query, as tab-separated text")
    add("--baselines", nargs="+", choices=BASELINES, default=[], help="print a table of the "
        "epochs beside these, with more metrics and intervals")
    add("--train_dir", default="train_data", help="the sessions of the training, for --baselines")
    add("--report", metavar="FILE", help="write table, parts of the test and examples as a page "
        "of HTML")
    add("--items_path", default="items.txt", type=data_path,
        help="raw ids and texts for --output and --report, where the file exists")
    add("--impressions", metavar="PATH", help="in place of the next click, tell what was clicked "
        "from what was only shown: a file or directory of impressions, as preprocess.py mind "
        "writes them")
    args = parser.parse(argv)
    without_use = [f"--{name}" for name in FLAGS_OF_CLICKS if name in args.given]
    if args.impressions and without_use:
        parser.error(f"{', '.join(without_use)}: not with --impressions, whose labels are what "
                     "was shown: leave one of them out")
    take_from_data_dir(args, train_dir="train_data", test_dir="test_data", vocab_path=VOCAB_FILE,
                       items_path=ITEMS_FILE, item_tokens=ITEM_TOKENS_FILE,
                       item_vectors=ITEM_VECTORS_FILE)
    if "train_dir" in args.given and not args.baselines:
        parser.error("--train_dir is for --baselines: leave it out, or give both")
    if args.best and {"start_index", "last_index"} & {*args.given}:
        parser.error("--best names the epoch: leave out --start_index and --last_index")
    if args.last_index < args.start_index:
        parser.error(f"--last_index {args.last_index} is below --start_index {args.start_index}")
    return args


class TopWriter:
    """Writes the top items of each query as tab-separated text, a row an item."""

    HEADER = "epoch\tsession\tposition\trank\tscore\titem\traw_id\ttext\n"

    def __init__(self, file, queries, names, epoch):
        self.file, self.queries, self.names, self.epoch = file, queries, names, epoch

    def __call__(self, chunk, items, scores):
        for query, row, row_scores in zip(chunk, items, scores):
            head = f"{self.epoch}\t{self.queries.sessions[query]}\t{self.queries.positions[query]}"
            self.file.writelines(
                f"{head}\t{rank}\t{score:.6f}\t{item}\t{self.names[item]}\n"
                for rank, (item, score) in enumerate(zip(row, row_scores), 1))


def find_epochs(args, vocab_size):
    """[(epoch, metadata)] of the complete checkpoints asked for. Raises SetupError for none."""
    if args.best:
        args.start_index = args.last_index = best_epoch(args.model_dir)
    wanted = range(args.start_index, args.last_index + 1)
    present = utils.checkpoint_epochs(args.model_dir)
    complete = []
    for epoch in sorted({*present} & {*wanted}):
        try:
            complete.append((epoch, utils.load_meta(args.model_dir, epoch)))
        except SetupError as error:
            logger.warning("%s; it is left out", error)
    if not complete:
        raise SetupError(f"{args.model_dir} holds no complete epoch from {wanted[0]} to "
                         f"{wanted[-1]}: train first, or see --model_dir, --start_index and "
                         "--last_index")
    if len(complete) < len(wanted):
        print(f"epochs {wanted[0]} to {wanted[-1]} were asked for, "
              f"{args.model_dir} holds {', '.join(str(epoch) for epoch, _ in complete)}")
    later = [str(epoch) for epoch in present if epoch > wanted[-1]]
    if later and not args.best:
        print(f"not evaluated: epochs {', '.join(later)} above --last_index {wanted[-1]}")
    for _, meta in complete:
        utils.check_vocab_size(meta, vocab_size)
        for name in ("hidden_size", "embedding_dim"):
            if getattr(args, name) not in (None, meta["model"][name]):
                raise SetupError(
                    f"--{name} {getattr(args, name)} contradicts the checkpoint, which has "
                    f"{meta['model'][name]}: leave the flag out")
    return complete


def make_task(args, dataset, encoder):
    """The Task: the candidates are all items with a vector, or those of them that were not clicked
    in training; these are then the labels too. Raises SetupError for no candidate."""
    if args.candidates == "all":
        return Task(dataset, args.positions, encoder.has_vector, np.ones_like(encoder.has_vector))
    chosen = encoder.has_vector & ~encoder.clicked
    if not chosen.any():
        raise SetupError("--candidates unknown: no item without a training click has a "
                         "vector; content gives one (train.py --item_tokens, --item_vectors)")
    return Task(dataset, args.positions, chosen, chosen)


def print_metrics(path, queries, ranks, encoder, topk, seconds):
    """The retired script's line, then everything else."""
    print("model:%s recall@20:%.3f time_cost(s):%.2f"
          % (path, utils.recall_mrr(ranks, 20)[0], seconds))
    is_known = encoder.clicked[queries.labels]
    has_vector = encoder.has_vector[queries.labels]
    for name, chosen in (("all", slice(None)), ("known", is_known), ("unknown", ~is_known)):
        print(f"  {name} labels:{len(ranks[chosen])}",
              *(utils.show_recall_mrr(ranks[chosen], k) for k in topk))
    print(f"  not rankable, counted as misses: {np.count_nonzero(~has_vector)} labels without a "
          f"vector, {np.count_nonzero(has_vector & (queries.sources < 0))} sequences without a "
          f"click on an item that has one; clicks skipped: {queries.skipped}")
    print(f"  queries/s:{len(ranks) / seconds:.0f}", flush=True)


def load_encoder(args, epoch, meta):
    """The IdEncoder of an epoch. Raises DataError, SetupError."""
    files = ContentFiles(args.item_tokens, args.item_vectors, args.items_path)
    return IdEncoder.load(Checkpoint(args.model_dir, epoch, meta), files)


def infer_impressions(args):
    """Evaluates the epochs on --impressions. Returns 0."""
    from ssr.evaluation import impressions  # here: help and wrong flags need no Paddle

    utils.check_version()
    utils.set_device(args.use_cuda)
    vocab_size = reader.get_vocab_size(args.vocab_path)
    epochs = find_epochs(args, vocab_size)
    shown = read_impressions(args.impressions, vocab_size)
    for epoch, meta in epochs:
        begin = time.time()
        encoder = load_encoder(args, epoch, meta)
        scores = impressions.score(encoder, shown, args.batch_size)
        means, left_out = impressions.measure(scores.values, shown.labels, shown.offsets)
        print(f"model:{args.model_dir}/epoch_{epoch}",
              *(f"{name}:{mean:.4f}" for name, mean in means.items()),
              f"time_cost(s):{time.time() - begin:.2f}")
        print(f"  impressions:{len(shown) - left_out} left out, all or nothing clicked:{left_out}")
        print(f"  items shown:{len(shown.shown)} without a vector, ranked last:"
              f"{scores.without_vector}; impressions of users without a click on an item that has "
              f"one:{scores.without_history}", flush=True)
    return 0


def read_names(path, vocab_size):
    """"raw id <tab> text" of each item, from a file whose line i is the raw id of item i and then
    optionally a tab and its text; the ids 0..V-1 where there is no such file. Raises DataError."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = f.read().split("\n")
    except FileNotFoundError:
        logger.warning("there is no %s: raw_id repeats the item", path)
        return [f"{item}\t" for item in range(vocab_size)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    lines = lines[:-1] if not lines[-1] else lines
    if len(lines) != vocab_size:
        raise DataError(f"{path} holds {len(lines)} lines and the vocabulary file says "
                               f"{vocab_size} items: give the --items_path of this data")
    return ["\t".join((line.rstrip("\r") + "\t").split("\t")[:2]) for line in lines]


def infer(args, file=None):
    """Evaluates the epochs. file: where the top items go, if anywhere. Returns 0."""
    from ssr.evaluation.ranking import ModelRecommender  # here, as of impressions

    utils.check_version()
    utils.set_device(args.use_cuda)
    dataset = reader.construct_test_data(args.test_dir, args.vocab_path)
    epochs = find_epochs(args, dataset.vocab_size)
    compares = bool(args.baselines or args.report)
    train = read_train(args, epochs) if args.baselines else None
    names = read_names(args.items_path, dataset.vocab_size) if file or args.report else None
    rows = []
    for epoch, meta in epochs:
        begin = time.time()
        encoder = load_encoder(args, epoch, meta)
        task = make_task(args, dataset, encoder)
        queries = task.queries(encoder.has_vector)
        answers = ModelRecommender(f"epoch {epoch}", encoder, args.batch_size).answer(
            queries, task.candidates, max(args.topk) if file or compares else 0,
            TopWriter(file, queries, names, epoch) if file else None)
        print_metrics(f"{args.model_dir}/epoch_{epoch}", queries, answers.ranks, encoder, args.topk,
                      time.time() - begin)
        rows += [answers] if compares else []
    if compares:
        compare(args, task, rows, encoder, train, names)
    return 0


def compare(args, task, rows, encoder, train, names):
    """Prints the table of the epochs and baselines, and writes the report.

    task: of the epochs, the same for all
    rows: the Answers of the epochs
    encoder: of any of them
    train: the sessions that the baselines are made from, None where there are none
    names: of the items, None where there is no report
    """
    from ssr.evaluation import comparison, metrics, report  # they need scipy, others do not

    rows = rows + comparison.answer_with_baselines(args.baselines, train, task, max(args.topk))
    catalogue = metrics.Catalogue(task.candidates, encoder.model.item_clicks.numpy())
    compared = comparison.Comparison.of(task.queries(encoder.has_vector), catalogue, args.topk,
                                        rows)
    print(*comparison.table(compared), sep="\n", flush=True)
    if args.report:
        sources = {"model": args.model_dir, "test": args.test_dir}
        write_text(args.report, report.make_report(compared, task.dataset, names, sources))


def read_train(args, epochs):
    """The sessions that baselines are made from. Warns where the model was trained on others."""
    train = reader.construct_train_data(args.train_dir, args.vocab_path)
    if epochs[-1][1].get("data", {}).get("train") not in (None, train.digest()):
        logger.warning("%s holds other sessions than the model was trained on: the baselines know "
                       "these, the model those", args.train_dir)
    return train


def infer_to_file(args):
    """infer, with the top items written to --output if that is given."""
    if args.impressions:
        return infer_impressions(args)
    if args.report:
        check_writable(args.report, "--report")
    if args.output is None:
        return infer(args)
    def write(path):
        with open(path, "w", encoding="utf-8") as f:
            f.write(TopWriter.HEADER)
            infer(args, f)
    write_atomically(args.output, write)
    return 0


def main(argv=None):
    setup_logging()
    return run(lambda: infer_to_file(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

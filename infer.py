"""Evaluates the saved epochs: recall@K and MRR@K of the next click, against all items.

    python infer.py --test_dir test_data --use_cuda 0 --batch_size 50 --model_dir model_output
    python infer.py --start_index 10 --topk 5 20 --positions all
    python infer.py --start_index 10 --output top.tsv --items_path items.txt

The vectors of all items are computed once per epoch; a query is one product with them. An item
without a training click has no vector: it is no candidate, as a label it is a miss, as a click it
is skipped. Ties count against the model, so that one whose scores have collapsed looks as bad as
it is.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import NamedTuple

import utils  # first: it sets the environment for numpy and paddle
import numpy as np
import paddle
from tqdm import tqdm

import reader
from nets import SequenceSemanticRetrieval

logger = logging.getLogger("infer")

SCORES_AT_A_TIME = 1 << 22  # 16 MB: the scores of a batch are computed over this many pairs
CLICKS_AT_A_TIME = 1 << 14  # sessions are encoded, and items, in groups of about this size
TIE = 1e-6  # cosines closer than this are equal: it is what rounding does to a sum of products


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Sequence Semantic Retrieval: evaluation",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    positive = utils.number(int, 1)
    add("--test_dir", default="test_data", help="directory of session files")
    add("--vocab_path", default="vocab.txt", help="file whose first line is the number of items")
    add("--model_dir", default="model_output", help="where train.py saved epoch_N")
    add("--start_index", type=positive, default=1, help="first epoch to evaluate")
    add("--last_index", type=positive, default=10, help="last epoch to evaluate")
    add("--use_cuda", type=utils.number(int, 0, 1), default=0, help="1 for a GPU")
    add("--batch_size", type=positive, default=50, help="queries at a time")
    add("--hid_size", "--hidden_size", dest="hidden_size", type=positive, default=None,
        help="as in the checkpoint when not given (it was 128)")
    add("--emb_size", "--embedding_dim", dest="embedding_dim", type=positive, default=None,
        help="as in the checkpoint when not given (it was 128)")
    add("--topk", type=positive, nargs="+", default=[20], metavar="K",
        help="the K of recall@K and MRR@K, several allowed")
    add("--positions", choices=("last", "all"), default="last",
        help="predict the last click of each line, or every click after the first")
    add("--output", default=None, metavar="FILE",
        help="write the top items of each query, as tab-separated text")
    add("--items_path", default="items.txt",
        help="raw ids and texts for --output, where the file exists")
    args = parser.parse_args(argv)
    if args.last_index < args.start_index:
        parser.error(f"--last_index {args.last_index} is below --start_index {args.start_index}")
    return args


class Queries(NamedTuple):
    """What is asked, the same for every epoch of a run.

    clicks: <int64>[clicks], the sessions' clicks that have a vector, without the last click of
        each, which is only ever a label; end to end
    lengths: <int64>[sessions], how many of these each session has, 0 allowed
    labels: <int64>[queries], the items that were clicked next
    sources: <int64>[queries], the place in clicks where the query's sequence ends; -1 where no
        click with a vector comes before the label
    sessions, positions: <int64>[queries], the label is click number `position` of the session;
        both from 1 on
    skipped: clicks without a vector that were left out of the sequences
    """

    clicks: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    sessions: np.ndarray
    positions: np.ndarray
    skipped: int


def make_queries(dataset, known, positions):
    """Cuts the sessions into sequences and labels and skips clicks on unknown items.

    known: <bool>[V], whether an item has a vector
    positions: "last" for one query a session, "all" for one at each click but the first
    """
    items = np.asarray(dataset.items, np.int64)
    starts, last = dataset.offsets[:-1], dataset.offsets[1:] - 1
    session = np.arange(len(starts))
    if positions == "all":
        session = np.repeat(session, last - starts)
        label_at = reader.ragged_arange(starts + 1, last - starts)
    else:
        label_at = last
    inputs = reader.ragged_arange(starts, last - starts)
    kept = inputs[known[items[inputs]]]
    # A sequence ends at the last kept click before its label, if that is of the same session.
    sources = np.searchsorted(kept, label_at) - 1
    begin = np.searchsorted(kept, starts)
    sources[sources < begin[session]] = -1
    return Queries(items[kept], np.diff(begin, append=len(kept)), items[label_at], sources,
                   session + 1, label_at - starts[session] + 1, len(inputs) - len(kept))


class Ranker:
    """Ranks all items with a vector for the sequences of sessions.

    model: SequenceSemanticRetrieval
    known: <bool>[V], which items have a vector
    """

    def __init__(self, model, known):
        self.model = model
        self.candidates = np.flatnonzero(known)
        chunks = np.array_split(self.candidates, -(-len(self.candidates) // CLICKS_AT_A_TIME))
        vectors = paddle.concat([model.item(chunk) for chunk in chunks])
        self.vectors = vectors
        self.by_column = vectors.t().contiguous()  # as the product reads it
        # Where an item stands among the candidates; only meaningful for those.
        self.place = np.cumsum(known) - 1

    def rank(self, users, labels):
        """1 + the candidates that score as high as the label or higher.

        users: <float32>[n, hidden]; labels: numpy <int64>[n], candidates all of them
        returns numpy <int64>[n]
        """
        own = paddle.gather(self.vectors, paddle.to_tensor(self.place[labels]))
        bound = paddle.sum(users * own, axis=1, keepdim=True) - TIE
        below = sum(paddle.sum(scores < bound, axis=1).numpy()
                    for _, scores in self._scores(users))
        # Not "those at or above": a score that is not a number is above nothing and below nothing.
        return len(self.candidates) - below

    def top(self, users, k):
        """The k best candidates: items numpy <int64>[n, k], scores numpy <float32>[n, k], with
        k no more than there are candidates."""
        best, items = [], []
        for start, scores in self._scores(users):
            values, places = paddle.topk(scores, min(k, scores.shape[1]), axis=1)
            best.append(values.numpy())
            items.append(self.candidates[places.numpy() + start])
        best, items = np.concatenate(best, axis=1), np.concatenate(items, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(items, order, 1), np.take_along_axis(best, order, 1)

    def _scores(self, users):
        """Yields (first candidate, <float32>[n, candidates of a chunk]) within a fixed memory."""
        width = max(1, SCORES_AT_A_TIME // users.shape[0])
        for start in range(0, len(self.candidates), width):
            yield start, paddle.matmul(users, self.by_column[:, start:start + width])


def encode(model, queries, batch_size):
    """Yields (indices of queries, their user vectors <float32>[n, hidden]), at most batch_size at
    a time, for all queries whose sequence is not empty, in order."""
    ends = np.cumsum(queries.lengths)
    # Whole sessions, a few thousand clicks together; a longer one makes a group of its own.
    group = ends // CLICKS_AT_A_TIME
    cuts = np.flatnonzero(np.diff(group, prepend=-1, append=group[-1] + 1))
    asked = np.flatnonzero(queries.sources >= 0)
    sources = queries.sources[asked]
    for first, end in zip(cuts[:-1], cuts[1:]):
        lengths = queries.lengths[first:end]
        begin, stop = ends[first] - lengths[0], ends[end - 1]
        if begin == stop:
            continue
        vectors = model.user(queries.clicks[begin:stop], lengths[lengths > 0], every_prefix=True)
        inside = asked[slice(*np.searchsorted(sources, [begin, stop]))]
        for chunk in np.split(inside, range(batch_size, len(inside), batch_size)):
            yield chunk, paddle.gather(vectors,
                                       paddle.to_tensor(queries.sources[chunk] - begin))


@paddle.no_grad()
def evaluate(model, queries, known, batch_size, top=None):
    """The rank of each query's label, 0 where it has none: <int64>[queries].

    top: called with (indices of queries, their user vectors, the Ranker), if given
    """
    ranker = Ranker(model, known)
    ranks = np.zeros(len(queries.labels), np.int64)
    with tqdm(total=len(ranks), unit="query", leave=False,
              disable=not sys.stderr.isatty()) as bar:
        for chunk, users in encode(model, queries, batch_size):
            rankable = known[queries.labels[chunk]]
            if rankable.any():
                rows = paddle.gather(users, paddle.to_tensor(np.flatnonzero(rankable)))
                chosen = chunk[rankable]
                ranks[chosen] = ranker.rank(rows, queries.labels[chosen])
            if top:
                top(chunk, users, ranker)
            bar.update(len(chunk))
    return ranks


class TopWriter:
    """Writes the top items of each query as tab-separated text, a row an item."""

    HEADER = "epoch\tsession\tposition\trank\tscore\titem\traw_id\ttext\n"

    def __init__(self, file, queries, names, k, epoch):
        self.file, self.queries, self.names, self.k, self.epoch = file, queries, names, k, epoch

    def __call__(self, chunk, users, ranker):
        items, scores = ranker.top(users, self.k)
        for query, row, row_scores in zip(chunk, items, scores):
            head = f"{self.epoch}\t{self.queries.sessions[query]}\t{self.queries.positions[query]}"
            self.file.writelines(
                f"{head}\t{rank}\t{score:.6f}\t{item}\t{self.names[item]}\n"
                for rank, (item, score) in enumerate(zip(row, row_scores), 1))


def load_model(model_dir, epoch, meta):
    """The model of a checkpoint, ready to be asked. Raises SetupError."""
    model = SequenceSemanticRetrieval(**meta["model"])
    model.set_state_dict(utils.load_state(model_dir, epoch, ".pdparams"))
    model.eval()
    return model


def find_epochs(args, vocab_size):
    """[(epoch, metadata)] of the complete checkpoints asked for. Raises SetupError for none."""
    wanted = range(args.start_index, args.last_index + 1)
    found = []
    for epoch in utils.checkpoint_epochs(args.model_dir):
        if epoch in wanted:
            try:
                found.append((epoch, utils.load_meta(args.model_dir, epoch)))
            except utils.SetupError as error:
                logger.warning("%s; it is left out", error)
    if not found:
        raise utils.SetupError(f"{args.model_dir} holds no complete epoch from {wanted[0]} to "
                               f"{wanted[-1]}: train first, or see --model_dir, --start_index and "
                               "--last_index")
    if len(found) < len(wanted):
        print(f"epochs {args.start_index} to {args.last_index} were asked for, "
              f"{args.model_dir} holds {', '.join(str(epoch) for epoch, _ in found)}")
    for _, meta in found:
        utils.check_vocab_size(meta, vocab_size)
        for name in ("hidden_size", "embedding_dim"):
            if getattr(args, name) not in (None, meta["model"][name]):
                raise utils.SetupError(
                    f"--{name} {getattr(args, name)} contradicts the checkpoint, which has "
                    f"{meta['model'][name]}: leave the flag out")
    return found


def print_metrics(path, queries, ranks, known, topk, seconds):
    """The retired script's line, then everything else."""
    print("model:%s recall@20:%.3f time_cost(s):%.2f"
          % (path, utils.recall_mrr(ranks, 20)[0], seconds))
    is_known = known[queries.labels]
    for name, chosen in (("all", slice(None)), ("known", is_known), ("unknown", ~is_known)):
        metrics = (f"recall@{k}:{recall:.4f} mrr@{k}:{mrr:.4f}" for k in topk
                   for recall, mrr in [utils.recall_mrr(ranks[chosen], k)])
        print(f"  {name} labels:{len(ranks[chosen])}", *metrics)
    print(f"  not rankable, counted as misses: {np.count_nonzero(~is_known)} labels without a "
          f"vector, {np.count_nonzero(is_known & (queries.sources < 0))} sequences without a "
          f"known click; clicks skipped: {queries.skipped}")
    print(f"  queries/s:{len(ranks) / seconds:.0f}", flush=True)


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
        raise reader.DataError(f"cannot read {path}: {error}") from error
    lines = lines[:-1] if not lines[-1] else lines
    if len(lines) != vocab_size:
        raise reader.DataError(f"{path} holds {len(lines)} lines and the vocabulary file says "
                               f"{vocab_size} items: give the --items_path of this data")
    return ["\t".join((line.rstrip("\r") + "\t").split("\t")[:2]) for line in lines]


def infer(args, file=None):
    """Evaluates the epochs. file: where the top items go, if anywhere. Returns 0."""
    utils.check_version()
    utils.set_device(args.use_cuda)
    dataset = reader.construct_test_data(args.test_dir, args.vocab_path)
    epochs = find_epochs(args, dataset.vocab_size)
    names = read_names(args.items_path, dataset.vocab_size) if file else None
    for epoch, meta in epochs:
        begin = time.time()
        model = load_model(args.model_dir, epoch, meta)
        known = model.item_clicks.numpy() > 0
        queries = make_queries(dataset, known, args.positions)
        top = None
        if file:
            top = TopWriter(file, queries, names, max(args.topk), epoch)
        ranks = evaluate(model, queries, known, args.batch_size, top)
        print_metrics(f"{args.model_dir}/epoch_{epoch}", queries, ranks, known, args.topk,
                      time.time() - begin)
    return 0


def infer_to_file(args):
    """infer, with the top items written to --output if that is given."""
    if args.output is None:
        return infer(args)
    def write(path):
        with open(path, "w", encoding="utf-8") as f:
            f.write(TopWriter.HEADER)
            infer(args, f)
    utils.write_atomically(args.output, write)
    return 0


def main(argv=None):
    args = parse_args(argv)
    utils.setup_logging()
    return utils.run_script(lambda: infer_to_file(args), reader.DataError)


if __name__ == "__main__":
    sys.exit(main())

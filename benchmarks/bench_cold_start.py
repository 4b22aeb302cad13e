"""A live index from its first click on: recall@20 by minute of the model alone, of clicks first and
the model behind them, and of the mixture of both that the index answers with.

    python benchmarks/bench_cold_start.py --test_dir test_data --times test_times \\
        --vocab_path vocab.txt --model_dir model_output --starts 16

Sessions with times are replayed as evaluate_stream.py does it, --starts times, each from an hour
later on: nothing is known before, and only sessions that begin from then on take part. The 95%
intervals of what the mixture is ahead are those of starts drawn again and again: the queries of one
start are not independent.
"""

from __future__ import annotations

import common
import numpy as np

import reader
from ssr.news import Scoring
from ssr.news.replay import StreamMethod, replay
from ssr.news.timeline import Timeline
from ssr.retrieval.checkpoint import choose_checkpoint
from ssr.retrieval.encoder import IdEncoder
from ssr.retrieval.queries import DEPTH, ENOUGH, mixed

AGE, K = 86400, 20
MINUTES = np.array([0, 1, 2, 3, 5, 8])
METHODS = ("model", "clicks_first", "mixture")
DRAWS = 10_000  # of starts


class ColdStart(StreamMethod):
    """Ranks as an index that begins at a moment, by three ways.

    queries: rows of (seconds since the beginning, whether each of METHODS has the label in its
    first K)
    """

    def __init__(self, encoder, begin):
        super().__init__(encoder, Scoring(), AGE)
        self.begin, self.queries = begin, []

    def rank(self, click):
        user = self._users[click.number]
        nearest = self._nearest(user, click.before)
        top = self.stream.top(user, click.before, click.time, self.scoring, DEPTH)
        clicked = [(item, score, "live") for item, score in zip(*(part.tolist() for part in top))]
        ranked = {item for item, _, _ in clicked}
        first = clicked + [hit for hit in nearest if hit[0] not in ranked]
        weight = min(1.0, (1 + self.stream.volume(click.time)) / ENOUGH)
        answers = (nearest, first, mixed(clicked, nearest, weight))
        self.queries.append((click.time - self.begin, *(
            click.item in [hit[0] for hit in answer[:K]] for answer in answers)))
        return 0

    def _nearest(self, user, before):
        if user is None:
            return []
        scores = self.encoder.vectors @ user
        scores[~self.encoder.has_vector] = -np.inf
        scores[before] = -np.inf
        best = np.argsort(-scores, kind="stable")[:DEPTH]
        return [(item, score, "nearest") for item, score in zip(best.tolist(),
                                                                scores[best].tolist())]


def replay_from(data, times, encoder, begin):
    """The queries of the first minutes of an index that begins at a moment."""
    first = times[data.offsets[:-1]]
    chosen = (first >= begin) & (first < begin + MINUTES[-1] * 60)
    lengths = np.diff(data.offsets)
    clicks = np.repeat(chosen, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
    method = ColdStart(encoder, begin)
    replay(Timeline(np.asarray(data.items, np.int64)[clicks], offsets, times[clicks],
                    np.ones(offsets[-1], bool)), method, "cold start")
    return method.queries


def main(argv=None):
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("--test_dir", default="test_data", help="directory of session files")
    add("--times", default="test_times", help="directory of their times")
    add("--vocab_path", default="vocab.txt")
    add("--model_dir", default="model_output")
    add("--starts", type=int, default=16, help="how many, an hour apart")
    args = parser.parse(argv)
    vocab_size = reader.get_vocab_size(args.vocab_path)
    data, times = reader.load_timed_sessions(args.test_dir, args.times, vocab_size)
    encoder = IdEncoder.load(choose_checkpoint(args.model_dir, None), vocab_size=vocab_size)
    starts = [np.array(replay_from(data, times, encoder, int(times.min()) + hour * 3600))
              for hour in range(args.starts)]
    print("minutes\tqueries\t" + "\t".join(METHODS) + "\tmixture against model, clicks_first")
    for begin, end in zip(MINUTES, MINUTES[1:]):
        parts = [start[(start[:, 0] >= begin * 60) & (start[:, 0] < end * 60), 1:]
                 for start in starts if len(start)]
        counts, hits = np.array([len(part) for part in parts]), np.array([part.sum(0)
                                                                          for part in parts])
        recalls = 100 * hits.sum(0) / counts.sum()
        ahead = [f"{recalls[2] - recalls[other]:+.1f} ({low:+.1f} to {high:+.1f})"
                 for other, (low, high) in enumerate(intervals(counts, hits))]
        print(f"{begin}-{end}\t{counts.sum()}\t" + "\t".join(
            f"{recall:.1f}" for recall in recalls) + "\t" + ", ".join(ahead))


def intervals(counts, hits):
    """95% intervals of how far the mixture is ahead of each of the others, in points of recall.

    counts: <int>[starts], queries; hits: <float>[starts, METHODS]
    """
    drawn = np.random.default_rng(0).integers(len(counts), size=(DRAWS, len(counts)))
    recalls = 100 * hits[drawn].sum(1) / counts[drawn].sum(1)[:, None]
    ahead = recalls[:, 2:] - recalls[:, :2]
    return np.percentile(ahead, [2.5, 97.5], axis=0).T


if __name__ == "__main__":
    main()

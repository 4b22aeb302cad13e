"""Recall@20 and MRR@20 of recommending the most clicked items to everyone, as infer.py counts.

    python benchmarks/popular.py --train_dir train_data --test_dir test_data --vocab_path vocab.txt
"""

from __future__ import annotations

import common

import reader
import utils
from ssr.evaluation.baselines import Popular
from ssr.evaluation.queries import make_queries


def popularity_ranks(train, test):
    """The rank of each test session's last click by training clicks, ties against it, 0 for an
    item without any: <int64>[sessions]."""
    popular = Popular(train)
    queries = make_queries(test, popular.known, "last")
    return popular.answer(queries, popular.known, 20).ranks


def main(argv=None):
    parser, own_flags, _ = common.parser_and_flags(__doc__, argv)
    parser.add_argument("--train_dir", default="train_data", help="directory of session files")
    parser.add_argument("--test_dir", default="test_data", help="likewise")
    parser.add_argument("--vocab_path", default="vocab.txt", help="of these sessions")
    args = parser.parse(own_flags)
    train = reader.construct_train_data(args.train_dir, args.vocab_path)
    test = reader.construct_test_data(args.test_dir, args.vocab_path)
    recall, mrr = utils.recall_mrr(popularity_ranks(train, test), 20)
    print(f"popularity recall@20:{recall:.4f} mrr@20:{mrr:.4f}")


if __name__ == "__main__":
    main()

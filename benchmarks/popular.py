"""Recall@20 and MRR@20 of recommending the most clicked items to everyone, as infer.py counts.

    python benchmarks/popular.py --train_dir train_data --test_dir test_data --vocab_path vocab.txt
"""

from __future__ import annotations

import argparse

import common  # noqa: F401
import numpy as np

import reader
import utils


def popularity_ranks(train, test):
    """The rank of each test session's last click by training clicks, ties against it, 0 for an
    item without any: <int64>[sessions]."""
    clicks = train.item_clicks()
    labels = test.items[test.offsets[1:] - 1]
    ascending = np.sort(clicks[clicks > 0])
    ranks = len(ascending) - np.searchsorted(ascending, clicks[labels], side="left")
    return np.where(clicks[labels] > 0, ranks, 0)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_dir", default="train_data")
    parser.add_argument("--test_dir", default="test_data")
    parser.add_argument("--vocab_path", default="vocab.txt")
    args = parser.parse_args(argv)
    train = reader.construct_train_data(args.train_dir, args.vocab_path)
    test = reader.construct_test_data(args.test_dir, args.vocab_path)
    recall, mrr = utils.recall_mrr(popularity_ranks(train, test), 20)
    print(f"popularity recall@20:{recall:.4f} mrr@20:{mrr:.4f}")


if __name__ == "__main__":
    main()

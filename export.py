"""The two towers as Paddle inference models, for servers that know no Python.

    python export.py --model_dir model_output --export_dir exported

writes exported/user.*, exported/item.* and exported/export.json, then loads them with
paddle.inference and compares them with the model. ssr/retrieval/export.py says what they take and
return.
"""

from __future__ import annotations

import os
import sys

from ssr.commands import Parser, number, run, setup_logging

import utils
from ssr.errors import SetupError
from ssr.files import write_json
from ssr.retrieval.checkpoint import choose_checkpoint, load_model, session_settings
from ssr.retrieval.encoder import Encoder
from ssr.runtime import paddle


def parse_args(argv=None):
    parser = Parser("Sequence Semantic Retrieval: the towers as Paddle inference models")
    add = parser.add_argument
    add("--model_dir", default="model_output", help="where train.py saved epoch_N")
    add("--epoch", type=number(int, 1), help="of the model (default: the newest complete one)")
    add("--best", action="store_true",
        help="the epoch that was the best on train.py's --valid_dir, in place of --epoch")
    add("--export_dir", default="exported", help="directory that is made")
    add("--overwrite", action="store_true", help="replace an export that is there")
    args = parser.parse(argv)
    if args.best and args.epoch:
        parser.error("--best names the epoch: leave out --epoch")
    return args


def export(args):
    """Writes the towers, and keeps them if they are the model's. Returns 0."""
    # Here: help and wrong flags need no Paddle.
    from ssr.retrieval.export import TOLERANCE, compare, replacing, save_towers

    utils.check_version()
    with replacing(args.export_dir, args.overwrite) as directory:
        checkpoint = choose_checkpoint(args.model_dir, args.epoch, args.best)
        encoder = Encoder(load_model(checkpoint), **session_settings(checkpoint.meta))
        save_towers(encoder, directory)
        difference = compare(encoder, directory)
        if not difference <= TOLERANCE:  # nor if it is no number
            raise SetupError(f"the exported towers differ from the model by {difference}: with "
                             f"Paddle {paddle.__version__} they cannot be used")
        write_json(os.path.join(directory, "export.json"), {
            "model": checkpoint.meta["model"], "epoch": checkpoint.epoch,
            "max_len": encoder.max_len, "paddle": paddle.__version__,
            "repeats": checkpoint.meta.get("repeats")})
    print(f"epoch_{checkpoint.epoch} in {args.export_dir}, largest difference from the model: "
          f"{difference:.1e}")
    return 0


def main(argv=None):
    args = parse_args(argv)
    setup_logging()
    return run(lambda: export(args))


if __name__ == "__main__":
    sys.exit(main())

"""What a run starts from. All that can be wrong with it is found here, before training."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple, Optional

from ssr.commands import data_path

import numpy as np

import reader
import utils
from ssr.errors import SetupError
from ssr.files import items_digest
from ssr.training.checkpoints import Checkpoint, check_replaceable
from ssr.training.content import ItemContent, load_item_tokens
from ssr.training.settings import Settings, merge, with_enough_epochs

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """What a run starts from.

    settings: Settings
    dataset, valid: YoochooseDataset to train on and to validate on, the latter None without
    clicks: <int32>[V], how often each item was clicked, here and in what source has seen
    content: ItemContent, None where an item is its own id
    data: {name: digest} of the data, which goes into the checkpoints
    done: the last epoch that is there already, 0 for none
    source: Checkpoint to begin with, or None
    """

    settings: Settings
    dataset: reader.YoochooseDataset
    valid: Optional[reader.YoochooseDataset]
    clicks: np.ndarray
    content: Optional[ItemContent]
    data: dict
    done: int
    source: Optional[Checkpoint]


def prepare(args) -> Run:
    """Reads the data and finds the epoch to go on from.

    args: what the flags of ssr.training.flags say
    Raises DataError, SetupError.
    """
    source = find_source(args)
    given = settings_given(args, source)
    settings = merge(given, args.num_devices,
                     resumed=source.meta if source and args.resume else None,
                     initial=source.meta if source and args.init_from else None)
    dataset = reader.construct_train_data(args.train_dir, args.vocab_path)
    valid = args.valid_dir and reader.construct_test_data(args.valid_dir, args.vocab_path)
    check_catalogue(args, source, dataset.vocab_size)
    check_steps(settings, dataset)
    if source is None and "epochs" not in given:
        settings = with_enough_epochs(
            settings, dataset.num_steps(settings.batch_size, settings.num_devices))
    data = data_digests(dataset, args.vocab_path)
    resumes = source is not None and args.resume
    if not (resumes or args.overwrite):
        check_replaceable(args.model_dir, settings, data)
    clicks = total_clicks(dataset, source, resumes)
    content = load_content(settings, clicks > 0, source and source.meta)
    return Run(settings, dataset, valid, clicks, content, data, source.epoch if resumes else 0,
               source)


def find_source(args):
    """The Checkpoint that --resume or --init_from names, None for a run from nothing. Raises
    SetupError."""
    if not (args.resume or args.init_from):
        return None
    model_dir = args.model_dir if args.resume else args.init_from
    epoch, meta = utils.newest_complete(model_dir)
    if meta is not None:
        return Checkpoint(model_dir, epoch, meta)
    if args.resume:
        logger.warning("%s holds no complete epoch, training starts anew", model_dir)
        return None
    raise SetupError(f"--init_from: {model_dir} holds no complete epoch")


def settings_given(args, source):
    """{flag: value} of what was given, and the item tokens of --data_dir, unless the model to begin
    with knows no content."""
    item_tokens = args.from_data_dir.get("item_tokens")
    if item_tokens is None:
        return args.given
    if source is not None and not source.meta["model"]["num_tokens"]:
        logger.info("%s knows no content: %s is left out", source.model_dir, item_tokens)
        return args.given
    logger.info("items by content: %s (--item_tokens none leaves it out)", item_tokens)
    return {**args.given, "item_tokens": item_tokens}


def check_catalogue(args, source, vocab_size):
    """Raises SetupError where the items are not those of the checkpoint to begin with."""
    if source is None:
        return
    if args.resume:
        utils.check_vocab_size(source.meta, vocab_size)
    elif source.meta["model"]["vocab_size"] > vocab_size:
        raise SetupError(f"--init_from: {source.model_dir} has "
                         f"{source.meta['model']['vocab_size']} items and {args.vocab_path} says "
                         f"{vocab_size}: a catalogue grows, the items of the checkpoint are its "
                         "first ones")


def check_steps(settings, dataset):
    """Raises SetupError where there is not one step to make."""
    if not dataset.num_steps(settings.batch_size, settings.num_devices):
        raise SetupError(f"{len(dataset)} sessions are less than one step of "
                         f"{settings.batch_size} on each of {settings.num_devices} devices: use "
                         "fewer or a smaller --batch_size")


def data_digests(dataset, vocab_path):
    """What tells this data from other data, for a checkpoint: {"train": of the sessions, "items":
    of the raw ids of the items.txt beside the vocabulary file, None where there is none}."""
    items = data_path(os.path.join(os.path.dirname(vocab_path), "items.txt"))
    return {"train": dataset.digest(), "items": items_digest(items)}


def total_clicks(dataset, source, resumes):
    """<int32>[V]: how often each item was clicked in training, in what source has seen as well."""
    clicks = dataset.item_clicks()
    if source is None:
        return clicks
    earlier = source.item_clicks()
    if len(earlier) > len(clicks):
        raise SetupError(f"{source.model_dir}/epoch_{source.epoch}.pdparams is damaged: it has "
                         f"{len(earlier)} items")
    return earlier if resumes else clicks + np.pad(earlier, (0, len(clicks) - len(earlier)))


def load_content(settings, clicked, meta=None):
    """The ItemContent that --item_tokens names, None without it.

    clicked: <bool>[V], which items were clicked in training
    meta: of the checkpoint to begin with, if there is one
    Raises DataError, SetupError.
    """
    num_tokens = meta and meta["model"]["num_tokens"]
    if meta and bool(num_tokens) != bool(settings.item_tokens):
        raise SetupError("the checkpoint was trained "
                         + ("with --item_tokens: give it too" if num_tokens else
                            "without --item_tokens: leave it out"))
    if not settings.item_tokens:
        return None
    tokens = load_item_tokens(settings.item_tokens, len(clicked), num_tokens)
    return ItemContent(clicked, tokens, settings.id_dropout)

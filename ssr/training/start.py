"""What a run starts from. All that can be wrong with it is found here, before training."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple, Optional

from ssr.commands import data_path

import numpy as np

import reader
import utils
from ssr.data_directory import ITEMS_FILE
from ssr.errors import DataError, SetupError
from ssr.files import items_digest
from ssr.impressions import read_impressions
from ssr.training.building import check_memory
from ssr.training.checkpoints import Checkpoint, check_replaceable
from ssr.training.content import ContentFiles, ItemContent, load_content
from ssr.training.negatives import ShownNegatives
from ssr.training.settings import CONTENT, Settings, merge, num_held_out, with_enough_epochs

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """What a run starts from.

    settings: Settings
    dataset: YoochooseDataset to train on
    valid: YoochooseDataset to validate on, None without
    clicks: <int32>[V], how often each item was clicked, here and in what source has seen
    content: ItemContent, None where an item is its own id
    data: {name: digest} of the data, which goes into the checkpoints
    done: the last epoch that is there already, 0 for none
    source: Checkpoint to begin with, or None
    shown: ShownNegatives, None without --negatives impressions
    held_out: YoochooseDataset that --repeats fitted is fitted to, None without
    """

    settings: Settings
    dataset: reader.YoochooseDataset
    valid: Optional[reader.YoochooseDataset]
    clicks: np.ndarray
    content: Optional[ItemContent]
    data: dict
    done: int
    source: Optional[Checkpoint]
    shown: Optional[ShownNegatives] = None
    held_out: Optional[reader.YoochooseDataset] = None


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
    check_memory(settings, dataset.vocab_size)  # before as many items are counted
    data, held_out = data_digests(dataset, args.vocab_path), None
    if count := num_held_out(settings, len(dataset)):
        dataset, held_out = dataset.hold_out(count)
    check_steps(settings, dataset)
    if source is None and "epochs" not in given:
        settings = with_enough_epochs(
            settings, dataset.num_steps(settings.batch_size, settings.num_devices))
    resumes = source is not None and args.resume
    if not (resumes or args.overwrite):
        check_replaceable(args.model_dir, settings, data)
    clicks = total_clicks(dataset, source, resumes)
    files = content_files(settings, items_path(args.vocab_path), source and source.meta)
    content = load_content(files, clicks > 0, source and source.meta["model"],
                           id_dropout=settings.id_dropout)
    shown = load_shown(settings, args, dataset, content)
    return Run(settings, dataset, valid, clicks, content, data, source.epoch if resumes else 0,
               source, shown, held_out)


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
    """{flag: value} of what was given, and the content of --data_dir, but for what the model to
    begin with does not know."""
    given = dict(args.given)
    for name in CONTENT:
        path = args.from_data_dir.get(name)
        if path is None:
            continue
        if source is not None and not knows(source.meta, name):
            logger.info("%s knows no content: %s is left out", source.model_dir, path)
            continue
        logger.info("items by content: %s (--%s none leaves it out)", path, name)
        given[name] = path
    return given


def knows(meta, name):
    """Whether the model with this metadata has content of a kind of settings.CONTENT."""
    sizes = {"item_tokens": "num_tokens", "item_vectors": "item_vector_dim"}
    return bool(meta["model"].get(sizes[name]))


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


def items_path(vocab_path):
    """The items.txt beside a vocabulary file, which need not be there."""
    return data_path(os.path.join(os.path.dirname(vocab_path), ITEMS_FILE))


def data_digests(dataset, vocab_path):
    """What tells this data from other data, for a checkpoint: {"train": of the sessions, "items":
    of the raw ids of the items.txt beside the vocabulary file, None where there is none}."""
    return {"train": dataset.digest(), "items": items_digest(items_path(vocab_path))}


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


def load_shown(settings, args, dataset, content):
    """The ShownNegatives of --train_impressions, None where they are not asked for. Raises
    DataError, SetupError."""
    path = args.train_impressions
    if settings.negatives != "impressions":
        if "train_impressions" in args.given:
            raise SetupError("--train_impressions is for --negatives impressions: give both")
        return None
    if path is None:
        raise SetupError("--negatives impressions needs --train_impressions, or a --data_dir with "
                         "train_impressions (preprocess.py mind)")
    usable = dataset.item_clicks() > 0 if content is None else content.has_vector
    shown = ShownNegatives(dataset, read_impressions(path, dataset.vocab_size), usable)
    found = np.count_nonzero(shown.impression >= 0)
    if not found:
        raise DataError(f"{path}: of no click in the sessions to train on it says what was shown "
                        "beside it: a session begins with the history of its user's impressions, "
                        "as preprocess.py mind makes both")
    logger.info("%d of %d clicks have negatives that were shown", found, len(dataset.items))
    return shown


def content_files(settings, items, meta=None):
    """The ContentFiles of a run.

    items: items.txt; meta: of the checkpoint to begin with, if there is one
    Raises SetupError where that knows other content.
    """
    for name in CONTENT:
        if meta and knows(meta, name) != bool(getattr(settings, name)):
            raise SetupError("the checkpoint was trained "
                             + (f"with --{name}: give it too" if knows(meta, name) else
                                f"without --{name}: leave it out"))
    return ContentFiles(settings.item_tokens, settings.item_vectors, items)

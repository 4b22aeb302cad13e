"""From clicks to a model: what preprocess.py and train.py do, one after the other.

Neither knows that it is called from here: both get their flags from their own parsers.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import numbers
import os
import signal

from ssr.commands import noting_interrupts, raise_if_interrupted

import numpy as np

import preprocess
import train
from ssr.api import homes
from ssr.api.catalogue import as_items, as_vectors, write_items_file
from ssr.api.clicks import (
    click_flags,
    clicked_ids,
    days_of_share,
    has_columns,
    is_data_directory,
    is_number,
    open_clicks,
    raw_ids_of,
)
from ssr.api.model import Model, making
from ssr.data_directory import ITEM_VECTORS_FILE, DataDirectory
from ssr.errors import DataError, SetupError
from ssr.files import write_atomically

logger = logging.getLogger("ssr.api")
# What train.py loads when it is needed, loaded while `reader` and the like are the project's.
for _late in ("ssr.evaluation.repeats", "ssr.training.losses", "ssr.training.negatives"):
    importlib.import_module(_late)

COLUMN_FLAGS = ("session_column", "item_column", "time_column", "text_column", "field_columns")
# What fit decides, and no flag of a caller.
OF_FIT = {"command", "run", "given", "from_data_dir", "input", "output_dir", "continue_from",
          "items_path", "data_dir", "train_dir", "vocab_path", "model_dir", "valid_dir",
          "overwrite", "resume", "init_from"}
TEXTS_FILE = ".texts.txt"  # in a home while it is made


def fit(clicks, *, valid=None, texts=None, item_vectors=None, **flags) -> Model:
    """Trains a model.

    Parameters
    ----------
    clicks
        What to train on, one of

        * a DataFrame of pandas or polars, a row a click, with the columns SessionId, ItemId and
          Time (seconds since 1970, ISO 8601 or datetimes); ``session_column``, ``item_column`` and
          ``time_column`` say other names, ``text_column`` and ``field_columns`` where the text of
          the items is. Short sessions and rare items are dropped as preprocess.py does
          (``min_session_length=2``, ``min_item_support=5``).
        * a list of sessions, each a list of raw ids, oldest first, all of them str or all int.
          Nothing is dropped.
        * the path of a file of clicks (CSV, TSV, Parquet; with ``layout="yoochoose"`` or
          ``"sessions"``, a session a line), or of a data directory, which is used as it is. In
          text files raw ids are text.
    valid
        What to validate on after each epoch: clicks of these kinds, or a share of the sessions, the
        newest ones, as 0.1. ``valid_days`` does it by days. The model is then the best epoch, else
        the last one.
    texts
        The texts of the items, {raw id: text} or {raw id: (text, {field: value})}, or the path of a
        file as ``--items_path`` takes it. With texts the model knows items by their content.
    item_vectors
        Pretrained vectors of the items, {raw id: numbers}, None for an item without one, or a table
        of polars with the columns id and vector, or such a file of Parquet. All items that are
        trained on need a row; others may have one. "none" leaves out those of a data directory.
    **flags
        Flags of train.py and preprocess.py, with their names, defaults and errors, as
        ``recipe="strong"``, ``epochs=12``, ``seed=1``; only ``test_days`` is 0: all that is given
        is trained on.

    Returns
    -------
    Model
        The parameters are those of train.py with the same data and flags, bit for bit.

    Raises
    ------
    DataError, SetupError
        With the line that the commands print.
    TypeError
        For a name that is no flag.

    Notes
    -----
    Data and model lie in a temporary directory until they are saved.

    One model is trained or loaded at a time, other threads wait; models that are there answer
    meanwhile. For several devices there is train.py, and `ssr.load` for what it has trained.
    """
    return _fit(clicks, valid, texts, item_vectors, flags)


def load(path, model_dir=None) -> Model:
    """A model that was saved.

    Parameters
    ----------
    path
        A directory of `Model.save`; or a data directory that a model was trained on by train.py.
    model_dir
        Of train.py. Not given, "model" in path.

    Raises
    ------
    DataError, SetupError
    """
    return Model(os.fspath(path), model_dir and os.fspath(model_dir))


def update(model, clicks, valid, texts, item_vectors, flags) -> Model:
    """As Model.update."""
    if model.directory.items is None:
        raise DataError(f"{model.directory.path} has no items.txt, and an update names the items")
    return _fit(clicks, valid, texts, item_vectors, flags, model)


def _fit(clicks, valid, texts, item_vectors, flags, earlier=None):
    """earlier: the Model to begin with, None to begin anew"""
    preparing, training = _split_flags(flags)
    if isinstance(item_vectors, str) and item_vectors == "none":
        training["item_vectors"], item_vectors = item_vectors, None
    is_validated = (valid is not None or bool(preparing.get("valid_days"))
                    or is_data_directory(clicks))
    _check_training(training, is_validated, earlier)
    with _interrupts(), homes.new_home() as home:
        if earlier is None and is_data_directory(clicks):
            profile = _take_data(home, os.fspath(clicks), preparing, valid=valid, texts=texts,
                                 item_vectors=item_vectors)
        else:
            profile = _prepare(home, clicks, valid, texts, preparing, earlier)
            _write_vectors(home, item_vectors, earlier)
        homes.write_profile(home, profile)
        _train(home, training, earlier)
        return Model(home, owned=True)


def _split_flags(flags):
    """({flag: value} of preprocess.py, those of train.py). Raises SetupError, and TypeError for
    what is no flag of either."""
    preparing = {*vars(preprocess.parse_args({"command": "clicks", "input": "clicks.csv",
                                              "output_dir": "-"}))} - OF_FIT
    training = {*vars(train.parse_args({}))} - OF_FIT
    for name in flags:
        if name not in preparing | training:
            close = difflib.get_close_matches(name, preparing | training, 1)
            raise TypeError(f"{name!r} is no argument of fit and no flag of train.py or "
                            "preprocess.py" + (f"; {close[0]!r} is" if close else ""))
    if flags.get("parallel") or (flags.get("num_devices") or 1) > 1:
        raise SetupError("several devices take a process each: train with train.py --parallel 1 "
                         "and take the model from there with ssr.load")
    if flags.get("item_tokens") not in (None, "none"):
        raise SetupError("item_tokens is \"none\", which leaves the texts out, or not given: the "
                         "tokens come from texts, text_column or field_columns")
    return ({name: value for name, value in flags.items() if name in preparing},
            {name: value for name, value in flags.items() if name in training})


def _check_training(flags, is_validated, earlier):
    """Tells what is wrong with the flags of train.py before the data are prepared. Raises
    SetupError."""
    known = {name: value for name, value in flags.items() if name != "id_dropout"}  # needs the data
    train.parse_args({**known, "valid_dir": "-" if is_validated else None,
                      "init_from": "-" if earlier else None})


# --- data -----------------------------------------------------------------------------------------


def _take_data(home, path, flags, **others):
    """Copies a data directory. Returns its Profile."""
    given = [name for name, value in {**others, **flags}.items() if value is not None]
    if given:
        raise SetupError(f"{path} is a data directory, it is used as it is: leave {given[0]} out")
    directory = DataDirectory.open(path)
    homes.copy_data(directory, home)
    return homes.Profile("str" if directory.items else "int")


def _prepare(home, clicks, valid, texts, flags, earlier):
    """Makes a data directory with preprocess.py. Returns its Profile."""
    columns = {name: flags[name] for name in COLUMN_FLAGS if flags.get(name) is not None}
    if earlier and has_columns(clicks, flags):
        columns = {**earlier.profile.columns, **columns}
    flags = {"test_days": 0, **columns, **flags}
    from_columns = flags.get("text_column") or flags.get("field_columns")
    knows_texts = earlier and earlier.checkpoint.meta["model"]["num_tokens"]
    added = earlier.catalogue.added if knows_texts and not from_columns else {}
    items_path = os.path.join(home, TEXTS_FILE) if added or texts is not None else None
    args = preprocess.parse_args({
        "command": "clicks", "output_dir": home, "items_path": items_path,
        "continue_from": earlier and os.path.dirname(earlier.directory.items),
        **click_flags(clicks, flags)})
    source = open_clicks(clicks, args, flags.get("layout"))
    if earlier:
        _check_ids(source, earlier.profile.ids)
    if items_path and not _write_texts(items_path, texts, added, source.log):
        args.items_path = None
    preprocess.prepare(args, source.log, _validation(valid, args, source, flags.get("layout")),
                       on_stage=_log_stage)
    if items_path:
        os.remove(items_path)  # no part of the data
    return homes.Profile(earlier.profile.ids if earlier else source.ids, columns)


def _write_texts(path, texts, added, log):
    """Writes the texts that a caller gives, and before them those of added items that have been
    clicked since. Returns whether there are any. Raises DataError."""
    clicked = clicked_ids(log) if added else ()
    items = {raw: item for raw, item in added.items() if raw in clicked}
    items.update(as_items(texts) if texts is not None else {})
    write_items_file(path, items)
    return bool(items)


def _write_vectors(home, given, earlier):
    """Writes the pretrained vectors of the items of a home, where there are any: those that a
    caller gives and, of other items, those of the earlier Model. Raises DataError."""
    ids = raw_ids_of(DataDirectory.open(home))
    vectors = earlier.catalogue.vectors_of(ids) if earlier else {}
    if given is None and not vectors:
        return
    if given is not None:
        vectors.update(as_vectors(given, "item_vectors", () if vectors else ids))
    values = np.zeros((len(ids), len(next(iter(vectors.values())))), np.float32)
    for row, id in zip(values, ids):
        if id in vectors:
            row[:] = vectors[id]
    write_atomically(os.path.join(home, ITEM_VECTORS_FILE), lambda path: _save(path, values))


def _save(path, values):
    with open(path, "wb") as f:
        np.save(f, values)


def _check_ids(source, ids):
    """Raises DataError where the raw ids of newer clicks are not of the type of a model's."""
    of_text_file = source.log.separator is not None
    if source.ids != ids and not (of_text_file and all(map(is_number, clicked_ids(source.log)))):
        raise DataError(f"clicks: the raw ids are {source.ids}, and those of the model {ids}")


def _validation(valid, args, source, layout):
    """The log to validate on, None where there is none or it is cut off the clicks to train on:
    then args say how. Raises SetupError, DataError."""
    if valid is None:
        return None
    if args.valid_days:
        raise SetupError("valid and valid_days: what is validated on comes from one place")
    if isinstance(valid, numbers.Real):
        if not 0 < valid < 1:
            raise SetupError(f"valid={valid} is no share of the sessions, which is between 0 and "
                             "1; valid_days is in days")
        if args.test_days:
            raise SetupError("valid as a share and test_days: give valid_days")
        args.valid_days = days_of_share(source.log, valid)
        return None
    clicks = open_clicks(valid, args, layout, "valid")
    if clicks.ids != source.ids:
        raise DataError(f"valid: the raw ids are {clicks.ids}, and those to train on {source.ids}")
    return clicks.log


def _log_stage(stage):
    logger.info("%s: %d clicks, %d sessions, %d items", *stage)


# --- training -------------------------------------------------------------------------------------


def _train(home, flags, earlier):
    """Trains on the data of a home and keeps the epoch that a Model is."""
    model_dir = os.path.join(home, homes.MODEL_DIR)
    with contextlib.ExitStack() as stack:
        init_from = None
        if earlier:
            init_from = stack.enter_context(homes.alone(earlier.checkpoint))
        args = train.parse_args({"data_dir": home, "model_dir": model_dir, "init_from": init_from,
                                 **flags})
        with making:
            train.start(args, say=logger.info)
    homes.keep_only(homes.choose(model_dir))


@contextlib.contextmanager
def _interrupts():
    """A KeyboardInterrupt stays one, also where it went through Paddle's C++ on its way, and comes
    late where something between, a destructor for one, has lost it."""
    # A handler of somebody else's stays: it may want no interrupt.
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        with noting_interrupts() if is_usual else contextlib.nullcontext():
            yield
            raise_if_interrupted()
    except Exception as error:
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        raise

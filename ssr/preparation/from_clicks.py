"""The road from a log of clicks to what training reads: filter, split, number, write."""

from __future__ import annotations

from typing import Callable, Optional

import numpy as np
import polars as pl

from ssr.data_directory import PARTS, Description, PartSize, sessions_name, times_name
from ssr.errors import DataError
from ssr.preparation.click_log import Log, check_item_columns, read_clicks, read_item_columns
from ssr.preparation.filtering import (
    Rules,
    Stage,
    drop_short_sessions,
    drop_unknown,
    filter_and_split,
)
from ssr.preparation.numbering import NO_EARLIER_RUN, EarlierRun, number_items
from ssr.preparation.output import Output
from ssr.preparation.writing import (
    Catalogue,
    TextSettings,
    Written,
    group_sessions,
    has_tokens,
    read_catalogue,
    write_items,
    write_sessions,
    write_times,
)


def prepare_clicks(log: Log, output_dir, rules: Rules, settings: TextSettings, *,
                   valid: Optional[Log] = None, keep_times=False,
                   earlier: EarlierRun = NO_EARLIER_RUN,
                   on_stage: Callable[[Stage], None] = lambda stage: None) -> Written:
    """Filters and splits a log and writes the output directory, all of it or nothing.

    valid: a log of its own for validation, in place of a period before the test
    keep_times: whether the times of the clicks are written too
    earlier: the run whose items keep their ids
    on_stage: called after each step of the filtering
    Raises DataError and SetupError.
    """
    check_item_columns(log, settings.text_column, settings.field_columns)
    inputs = [path for path in (log.path, settings.items_path) if path]
    names = [part for part in PARTS if part in rules.parts or part == "valid" and valid]
    with Output(output_dir, names, names if keep_times else [],
                has_tokens(settings, earlier), inputs,
                vectors=settings.vectors is not None) as output:
        # Small files first: what is wrong with them is told before the work.
        catalogue = read_catalogue(settings)
        clicks, raw_items, texts = _read(log, settings)
        parts = filter_and_split(clicks, len(raw_items), rules, on_stage)
        del clicks  # the parts are copies
        if valid:
            raw_items, parts["valid"], newer = _read_valid(valid, settings, raw_items,
                                                           parts["train"], rules)
            texts.update(newer)
        if settings.text_column or settings.field_columns:
            catalogue = Catalogue(log.path, texts)
        if keep_times:
            _check_times(log, parts)
        columns = ["item", "time"] if keep_times else ["item"]
        sessions = {part: group_sessions(parts.pop(part), columns) for part in names}
        raw_ids, new_ids = number_items(sessions, raw_items, earlier.raw_ids)
        _write_parts(output, sessions, new_ids, keep_times)
        num_train = sessions["train"]["item"].explode().n_unique()
        written = write_items(output, raw_ids, num_train, catalogue, settings, earlier)
        sizes = {part: PartSize(len(frame), int(frame["item"].list.len().sum()))
                 for part, frame in sessions.items()}
        output.commit(Description(written.items, written.num_tokens, log.layout, "UTC", sizes,
                                  output.files))
    return written


def _read(log, settings):
    """(clicks, raw_items, {raw id: ItemText}) of a log: as of read_clicks, and what the columns
    that the settings name say of the items."""
    check_item_columns(log, settings.text_column, settings.field_columns)
    clicks, raw_items = read_clicks(log)
    texts = read_item_columns(log, clicks, raw_items, settings.text_column,
                              settings.field_columns)
    return clicks, raw_items, texts


def _read_valid(log, settings, raw_items, train, rules):
    """(raw_items, clicks, {raw id: ItemText}): the validation part from a log of its own, and the
    raw ids of the items of both logs. Raises DataError where nothing of it is left.

    raw_items, train: of the log to train on
    """
    clicks, of_log, texts = _read(log, settings)
    raw_items = pl.concat([raw_items, of_log.filter(~of_log.is_in(raw_items.implode()))])
    numbers = pl.DataFrame({"raw": of_log}).join(
        pl.DataFrame({"raw": raw_items, "item": np.arange(len(raw_items), dtype=np.uint32)}),
        on="raw", how="left", maintain_order="left")["item"]
    clicks = clicks.with_columns(item=numbers.gather(clicks["item"]))
    clicks = drop_short_sessions(clicks.sort("time", maintain_order=True),
                                 rules.min_session_length)
    clicks = drop_unknown(clicks, train, len(raw_items), rules)
    if not len(clicks):
        raise DataError(f"{log.path}: nothing is left to validate on: its sessions are short, or "
                        "their items unknown to training (--keep_unknown keeps them)")
    return raw_items, clicks, texts


def _check_times(log, parts):
    """Raises DataError where there are times that files of times cannot hold."""
    earliest = min(clicks["time"].min() for clicks in parts.values())
    if earliest < 0:
        raise DataError(f"{log.path}: the earliest click is {-earliest / 1e6:g} s before 1970, and "
                        "times that are kept begin there: leave --keep_times out or add to them")


def _write_parts(output, sessions, new_ids, keep_times):
    for part, frame in sessions.items():
        with output.create(sessions_name(part)) as f:
            write_sessions(f, frame, new_ids)
        if keep_times:
            with output.create(times_name(part)) as f:
                write_times(f, frame)

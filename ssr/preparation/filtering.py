"""Which clicks stay, and which part they belong to: the rules of GRU4Rec's preprocessing of RSC15
(examples/rsc15/preprocess.py; Hidasi et al., ICLR 2016, arXiv:1511.06939).

A frame of clicks has the columns session <uint32>, item <uint32>, both numbered from 0, and time
<int64>, microseconds since 1970.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import numpy as np
import polars as pl

from ssr.data_directory import PARTS
from ssr.errors import DataError

DAY_US = 86_400 * 1_000_000


class Rules(NamedTuple):
    """min_session_length: clicks; shorter sessions are dropped
    min_item_support: clicks; items with fewer are dropped
    test_days, valid_days: lengths of the test period and of the validation period before it, which
        may be fractions; 0 for none
    keep_unknown: whether validation and test keep items that training does not have
    """

    min_session_length: int = 2
    min_item_support: int = 5
    test_days: float = 1.0
    valid_days: float = 0.0
    keep_unknown: bool = False

    @property
    def parts(self):
        """The names of the parts that there will be, in the order of PARTS."""
        days = {"train": True, "valid": self.valid_days, "test": self.test_days}
        return [part for part in PARTS if days[part]]


class Stage(NamedTuple):
    """How much there is after a step of the preparation."""

    name: str
    clicks: int
    sessions: int
    items: int


def filter_and_split(clicks: pl.DataFrame, num_items: int, rules: Rules,
                     on_stage: Callable[[Stage], None]) -> dict:
    """{part: its clicks in order of time} for each of rules.parts.

    num_items: the items are numbered 0..num_items-1
    on_stage: called after each step
    Raises DataError, which names the flag to change, where a step leaves nothing.
    """
    def stage(name, clicks, advice):
        on_stage(Stage(name, len(clicks), clicks["session"].n_unique(), clicks["item"].n_unique()))
        if not len(clicks):
            raise DataError(f"nothing is left after '{name}': {advice}")
        return clicks

    length, support = rules.min_session_length, rules.min_item_support
    try_length = f"--min_session_length is {length}, try a smaller one"
    try_support = f"--min_item_support is {support}, try a smaller one"
    stage("all clicks", clicks, "")
    # A stable sort: clicks of the same time stay in file order, here and in all that follows.
    clicks = clicks.sort("time", maintain_order=True)
    clicks = stage("without short sessions", drop_short_sessions(clicks, length), try_length)
    clicks = stage("without rare items", drop_rare_items(clicks, support), try_support)
    clicks = stage("without short sessions, again", drop_short_sessions(clicks, length),
                   f"{try_support}; {try_length}")
    parts = _split(clicks, rules)
    stage("train", parts["train"], "")
    for part in rules.parts[1:]:
        parts[part] = drop_unknown(parts[part], parts["train"], num_items, rules)
        stage(part, parts[part], "its items are unknown to training: --keep_unknown keeps them; "
              f"or change --{part}_days")
    return {part: parts[part] for part in rules.parts}


def drop_unknown(clicks, train, num_items, rules: Rules) -> pl.DataFrame:
    """The clicks of validation or test, in their order, without those on items that training does
    not have and the sessions that are short then; all of them where the rules keep them."""
    if rules.keep_unknown:
        return clicks
    return drop_short_sessions(drop_unknown_items(clicks, train, num_items),
                               rules.min_session_length)


def _split(clicks, rules):
    """{part: clicks} by the time of each session's last click. Raises DataError where nothing is
    left to train on."""
    span = (clicks["time"].max() - clicks["time"].min()) / DAY_US
    parts = {}
    for part, days in (("test", rules.test_days), ("valid", rules.valid_days)):
        if not days:
            continue
        clicks, parts[part] = split_newest(clicks, days)
        if not len(clicks):
            raise DataError(f"nothing is left to train on before the {part} period: the clicks "
                            f"span {span:.3g} days, --{part}_days is {days:g}, try a smaller one")
    return {"train": clicks, **parts}


def drop_short_sessions(clicks: pl.DataFrame, min_length: int) -> pl.DataFrame:
    """The clicks, in their order, of sessions of at least min_length clicks."""
    return clicks.filter(pl.len().over("session") >= min_length)


def drop_rare_items(clicks: pl.DataFrame, min_support: int) -> pl.DataFrame:
    """The clicks, in their order, on items that have at least min_support clicks."""
    return clicks.filter(pl.len().over("item") >= min_support)


def split_newest(clicks: pl.DataFrame, days: float):
    """(older, newest): newest has the sessions that end at most `days` days before the last click
    of all, as in GRU4Rec. The order of the clicks stays."""
    boundary = clicks["time"].max() - round(days * DAY_US)
    newest = clicks.select(pl.col("time").max().over("session") >= boundary).to_series()
    return clicks.filter(~newest), clicks.filter(newest)


def drop_unknown_items(clicks: pl.DataFrame, train: pl.DataFrame, num_items: int) -> pl.DataFrame:
    """The clicks, in their order, on items that occur in train."""
    known = np.zeros(num_items, bool)
    known[train["item"].to_numpy()] = True
    return clicks.filter(pl.Series(known[clicks["item"].to_numpy()]))

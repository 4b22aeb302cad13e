"""A log of clicks, or sessions with raw ids -> what train.py and infer.py read.

    python preprocess.py clicks --input yoochoose-clicks.dat --layout yoochoose --output_dir data
    python preprocess.py clicks --input clicks.csv --layout table --output_dir data
    python preprocess.py sessions --train_files train.txt --test_files test.txt --output_dir data
    python preprocess.py clicks ... --items_path items.tsv     # or, of a table, --text_column Title

`clicks` filters and splits as the preprocessing of RSC15 in GRU4Rec's code does
(examples/rsc15/preprocess.py; Hidasi et al., ICLR 2016, arXiv:1511.06939):

1. drop sessions of one click, items with fewer than 5 clicks, then sessions of one click again;
2. test is the sessions whose last click is at most a day older than the newest click of all;
   with --valid_days the same rule then cuts the validation set off what is left;
3. drop validation and test clicks on items that training does not have (--keep_unknown keeps
   them: news needs that), then validation and test sessions of one click.

Clicks are in order of time within a session, sessions in order of their first clicks, ties in
file order. `sessions` changes nothing but the ids: every line stays, where it was.

Either command writes to the output directory

    train_data/sessions.txt, test_data/sessions.txt and, when asked for, valid_data/sessions.txt:
                 a session a line, item ids 0..V-1 with a space between
    train_times/sessions.txt and so on, with --keep_times or --train_times, --test_times: of the
                 same shape, the time of each click in place of its item, in whole seconds
    vocab.txt    V
    items.txt    line i, from 0 on, is the raw id of item i, then a tab and its text if it has one

and where items have text or fields (text.py says what is a token)

    item_tokens.txt  line i is the token ids of item i, with a space between
    tokens.txt       line i, from 0 on, is token i
    tokens.json      how Chinese was cut

Ids are given in order of first appearance in train, then valid, then test: items that training
does not have come last, and behind them, with --all_items, those that occur in no session. With
--continue_from the items of an earlier output directory keep their ids and all others come behind
them; its tokens.txt stays as it is. For that, the test part may be left out (--test_days 0).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import NamedTuple, Optional

import numpy as np
import polars as pl

from ssr.preparation import text
from ssr.preparation.click_log import (
    DataError,
    check_item_columns,
    open_log,
    read_clicks,
    read_item_columns,
)
from ssr.preparation.text import TOKEN_FILES, ItemText

TABLE_COLUMNS = {"session_column": "SessionId", "item_column": "ItemId", "time_column": "Time"}
TABLE_FLAGS = (*TABLE_COLUMNS, "text_column", "field_columns", "separator")
TEXT_FLAGS = ("min_token_count", "chinese_cutter", "all_items")
PARTS = ("train", "valid", "test")
SESSIONS_FILE = "sessions.txt"
DAY_US = 86_400 * 1_000_000
WRITE_SESSIONS = 500_000  # turned into text at a time


# --- filtering and splitting ----------------------------------------------------------------------


def drop_short_sessions(clicks: pl.DataFrame, min_length: int) -> pl.DataFrame:
    """The clicks, in their order, of sessions of at least min_length clicks."""
    return clicks.filter(pl.len().over("session") >= min_length)


def drop_rare_items(clicks: pl.DataFrame, min_support: int) -> pl.DataFrame:
    """The clicks, in their order, on items that have at least min_support clicks."""
    return clicks.filter(pl.len().over("item") >= min_support)


def split_newest(clicks: pl.DataFrame, days: float):
    """(older, newest): newest is the sessions whose last click is `days` days before the last
    click of all or later, as GRU4Rec has it. The order of the clicks stays."""
    boundary = clicks["time"].max() - round(days * DAY_US)
    newest = clicks.select(pl.col("time").max().over("session") >= boundary).to_series()
    return clicks.filter(~newest), clicks.filter(newest)


def drop_unknown_items(clicks: pl.DataFrame, train: pl.DataFrame, num_items: int) -> pl.DataFrame:
    """The clicks, in their order, on items that occur in train."""
    known = np.zeros(num_items, bool)
    known[train["item"].to_numpy()] = True
    return clicks.filter(pl.Series(known[clicks["item"].to_numpy()]))


def filter_and_split(clicks: pl.DataFrame, num_items: int, args, report) -> dict:
    """The clicks of the parts "train", "valid" (with --valid_days) and "test", each in order of
    time. Raises DataError where a stage leaves nothing."""
    def stage(name, clicks, advice):
        report(name, len(clicks), clicks["session"].n_unique(), clicks["item"].n_unique())
        if not len(clicks):
            raise DataError(f"{args.input}: nothing is left after '{name}': {advice}")
        return clicks

    short = f"--min_session_length is {args.min_session_length}, try a smaller one"
    stage("all clicks", clicks, "")
    # A stable sort: clicks of the same time stay in file order, here and in all that follows.
    clicks = clicks.sort("time", maintain_order=True)
    clicks = stage("without short sessions",
                   drop_short_sessions(clicks, args.min_session_length), short)
    clicks = stage("without rare items", drop_rare_items(clicks, args.min_item_support),
                   f"--min_item_support is {args.min_item_support}, try a smaller one")
    clicks = stage("without short sessions, again",
                   drop_short_sessions(clicks, args.min_session_length),
                   f"--min_item_support is {args.min_item_support}, and {short}")

    days = (clicks["time"].max() - clicks["time"].min()) / DAY_US
    parts = {}
    for part, length in (("test", args.test_days), ("valid", args.valid_days)):
        if length:
            clicks, parts[part] = split_newest(clicks, length)
            if not len(clicks):
                raise DataError(f"{args.input}: nothing is left to train on before the {part} "
                                f"period: the clicks span {days:.3g} days, --{part}_days is "
                                f"{length:g}, try a smaller one")
    parts["train"] = stage("train", clicks, "")
    for part in ("valid", "test"):
        if part in parts and not args.keep_unknown:
            known = drop_unknown_items(parts[part], parts["train"], num_items)
            parts[part] = drop_short_sessions(known, args.min_session_length)
        if part in parts:
            stage(part, parts[part], "its items are unknown to training: --keep_unknown keeps "
                  f"them; or change --{part}_days")
    return {part: parts[part] for part in PARTS if part in parts}


# --- writing --------------------------------------------------------------------------------------


def number_items(parts: dict, raw_items: pl.Series, earlier):
    """Ids in order of first appearance in the sessions of the parts, in the order of the parts,
    behind those of earlier.

    raw_items: <str>[items of the log]; earlier: raw ids that have the ids 0, 1, ... already
    returns (raw_ids, new_id): raw_ids, a list, the item of each id; new_id <uint32>[items of the
    log], the id that each gets
    """
    sessions = [sessions["item"].explode() for sessions in parts.values()]
    order = pl.concat(sessions).unique(maintain_order=True).to_numpy()
    ids = {raw: number for number, raw in enumerate(earlier)}
    new_id = np.zeros(len(raw_items), np.uint32)
    new_id[order] = [ids.setdefault(raw, len(ids)) for raw in raw_items.gather(order).to_list()]
    return list(ids), new_id


def group_sessions(clicks: pl.DataFrame, columns=("item",)) -> pl.DataFrame:
    """Clicks in order of time -> one row a session, in order of their first clicks; its columns
    are lists."""
    return clicks.group_by("session", maintain_order=True).agg(*columns).select(*columns)


def write_sessions(file, sessions: pl.DataFrame, new_id) -> None:
    """A session a line, ids with a space between, into a file open for bytes.

    new_id: <uint32>[num_items], the id to write for each item
    """
    ids = pl.Series(new_id)
    for some in sessions.iter_slices(WRITE_SESSIONS):
        lengths = some["item"].list.len()
        numbered = pl.DataFrame({
            "session": np.repeat(np.arange(len(some), dtype=np.uint32), lengths),
            "item": ids.gather(some["item"].explode()),
        })
        lines = numbered.group_by("session", maintain_order=True).agg("item")
        lines.select(pl.col("item").cast(pl.List(pl.String)).list.join(" ")) \
            .write_csv(file, include_header=False, quote_style="never")


def write_times(file, sessions: pl.DataFrame) -> None:
    """The times of the clicks, as write_sessions writes their items, in whole seconds."""
    for some in sessions.iter_slices(WRITE_SESSIONS):
        seconds = pl.col("time").list.eval(pl.element() // 1_000_000)
        some.select(seconds.cast(pl.List(pl.String)).list.join(" ")) \
            .write_csv(file, include_header=False, quote_style="never")


class Earlier(NamedTuple):
    """What an earlier output directory says of its items.

    raw_ids: <str>[V]; lines: <bytes>[V], those of items.txt
    bags: <bytes>[V], the lines of item_tokens.txt, None where items have no text
    """

    directory: str
    raw_ids: list
    lines: list
    bags: Optional[list]


def read_earlier(directory) -> Earlier:
    """None for None. Raises DataError."""
    if directory is None:
        return None
    lines = _read_lines(os.path.join(directory, "items.txt"))
    path = os.path.join(directory, text.ITEM_TOKENS_FILE)
    bags = _read_lines(path) if os.path.exists(path) else None
    if bags is not None and len(bags) != len(lines):
        raise DataError(f"{path} has {len(bags)} lines and items.txt beside it {len(lines)}: they "
                        "are not of one run")
    raw_ids = [line.split(b"\t")[0].decode() for line in lines]
    if len(set(raw_ids)) < len(raw_ids):
        raise DataError(f"{directory}/items.txt holds an item twice")
    return Earlier(directory, raw_ids, lines, bags)


def _read_lines(path):
    with open(path, "rb") as f:
        return f.read().splitlines()


def write_items(output, raw_ids, num_train, catalogue, args, earlier=None) -> int:
    """vocab.txt and items.txt and, if items have text, what text.make_bags makes of it. Returns
    the number of items.

    raw_ids: <str>[items of the sessions], in the order of their ids
    num_train: how many of them training has, the first ones
    catalogue: {raw id: ItemText}, None where no text was asked for
    earlier: Earlier, whose items come first; None where there is none
    """
    texts = None
    if catalogue is not None:
        catalogue = {raw: item for raw, item in catalogue.items()
                     if item.text.strip() or item.fields}
        raw_ids = raw_ids + _outside(raw_ids, catalogue, args)
        texts = [catalogue.get(raw, ItemText()) for raw in raw_ids]
    with output.create("items.txt") as f:
        for item, raw in enumerate(raw_ids):
            # Text of one line: what splits lines, and tabs, are white space too.
            words = texts[item].text.split() if texts else None
            if earlier and item < len(earlier.lines) and not words:
                f.write(earlier.lines[item] + b"\n")
            else:
                f.write((f"{raw}\t{' '.join(words)}\n" if words else f"{raw}\n").encode())
    with output.create("vocab.txt") as f:
        f.write(b"%d\n" % len(raw_ids))
    if earlier and earlier.bags is not None:
        write_more_tokens(output, texts or [ItemText()] * len(raw_ids), earlier)
    elif texts:
        write_tokens(output, texts, num_train, args)
    return len(raw_ids)


def _outside(raw_ids, catalogue, args):
    """The items with text that occur in no session and are to have ids; counts them and their
    opposite."""
    known = set(raw_ids)
    outside = [raw for raw in catalogue if raw not in known]
    covered = len(catalogue) - len(outside)
    if not covered:
        raise DataError(f"{args.items_path or args.input}: none of its {len(catalogue):,} items "
                        "with text occurs in the sessions: is it of this data?")
    print(f"text: {covered:,} of {len(raw_ids):,} items of the sessions have some; "
          f"{len(outside):,} items with text occur in no session, they "
          + ("come last" if args.all_items else "are left out (--all_items takes them)"))
    return outside if args.all_items else []


def write_tokens(output, texts, num_train, args) -> None:
    """The files of text.TOKEN_FILES. texts: <ItemText>[V]. Raises DataError if no token is left."""
    tokenizer = text.Tokenizer(args.chinese_cutter)
    bags = text.make_bags(texts, np.arange(len(texts)) < num_train, args.min_token_count, tokenizer)
    if not bags.tokens:
        raise DataError(f"{args.items_path or args.input}: no token occurs in "
                        f"{args.min_token_count} items of the training sessions: try a smaller "
                        "--min_token_count")
    bags.write(output.create)
    print(f"tokens: {len(bags.tokens):,} in tokens.txt, {bags.lengths.mean():.1f} an item; "
          f"{np.count_nonzero(bags.lengths == 0):,} items without any; Chinese is cut by "
          f"{bags.cutter}")


def write_more_tokens(output, texts, earlier) -> None:
    """The files of text.TOKEN_FILES, with the tokens of an earlier run and no others: their ids
    are rows of a trained table. An item without text now keeps its tokens."""
    vocabulary = text.TokenVocabulary.load(os.path.join(earlier.directory, text.TOKENS_FILE))
    with output.create(text.ITEM_TOKENS_FILE) as f:
        for item, content in enumerate(texts):
            if item < len(earlier.bags) and content == ItemText():
                f.write(earlier.bags[item] + b"\n")
            else:
                f.write(" ".join(map(str, vocabulary.encode(*content))).encode() + b"\n")
    for name in (text.TOKENS_FILE, text.CUTTING_FILE):
        with output.create(name) as f, open(os.path.join(earlier.directory, name), "rb") as source:
            shutil.copyfileobj(source, f)


class Output:
    """The files of an output directory, that all appear at the end or not at all.

    They are written to a temporary directory inside of it; commit() moves them to their names.
    Used as a context manager: what is not committed is removed, and so is the output directory
    where it did not exist before. Raises DataError where there is something in the way.
    """

    def __init__(self, directory, parts, inputs, tokens=False, times=()):
        """parts: of the sessions; inputs: files that must not be overwritten; tokens: whether
        there will be the files of text.TOKEN_FILES; times: the parts with times."""
        self.directory = directory
        self.parts = parts
        self.names = [os.path.join(f"{part}_data", SESSIONS_FILE) for part in parts]
        self.names += [os.path.join(f"{part}_times", SESSIONS_FILE) for part in times]
        self.names += ["items.txt", "vocab.txt", *TOKEN_FILES[:tokens * len(TOKEN_FILES)]]
        # Files of an earlier run, whose ids would be those of another vocabulary.
        self.stale = [*TOKEN_FILES, *(os.path.join(f"{part}_{kind}", SESSIONS_FILE)
                                      for part in PARTS for kind in ("data", "times"))]
        self.stale = [name for name in self.stale if name not in self.names]
        self._check(inputs)

    def _check(self, inputs):
        for name in self.names + self.stale:
            path = os.path.join(self.directory, name)
            if os.path.isdir(path):
                raise DataError(f"{path} is a directory, and preprocess.py has a file there")
            for source in inputs:
                if os.path.exists(path) and os.path.exists(source) \
                        and os.path.samefile(path, source):
                    raise DataError(f"{source}: this input would be replaced by the output: "
                                    "choose another --output_dir")
        for part in PARTS:
            folder = os.path.join(self.directory, f"{part}_data")
            if not os.path.isdir(folder):
                continue
            others = sorted(name for name in os.listdir(folder)
                            if not name.startswith(".") and name != SESSIONS_FILE)
            if part in self.parts and others:
                raise DataError(f"{folder} holds other files ({', '.join(others[:3])}), which "
                                "would be read together with the new ones: move them away or "
                                "choose another --output_dir")

    def __enter__(self):
        self.existed = os.path.isdir(self.directory)
        os.makedirs(self.directory, exist_ok=True)
        self.temporary = tempfile.mkdtemp(prefix=".preprocess-", dir=self.directory)
        return self

    def __exit__(self, *exception):
        shutil.rmtree(self.temporary, ignore_errors=True)
        if exception[0] is not None and not self.existed:
            with contextlib.suppress(OSError):  # not empty: somebody else wrote there
                os.rmdir(self.directory)

    @contextlib.contextmanager
    def create(self, name):
        """Opens one of self.names to write bytes to, and flushes it to the disk at the end."""
        with open(os.path.join(self.temporary, name.replace(os.sep, "-")), "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())

    def commit(self):
        """Moves all files to their names, replacing those of a previous run."""
        for name in self.names:
            os.makedirs(os.path.dirname(os.path.join(self.directory, name)), exist_ok=True)
        for name in self.stale:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.directory, name))
        for name in self.names:
            os.replace(os.path.join(self.temporary, name.replace(os.sep, "-")),
                       os.path.join(self.directory, name))


# --- the commands ---------------------------------------------------------------------------------


def print_counts(stage, clicks, sessions, items):
    print(f"{stage:32}{clicks:>14,} clicks {sessions:>13,} sessions {items:>11,} items",
          flush=True)


def run_clicks(args):
    parts = ["train"] + ["valid"] * (args.valid_days > 0) + ["test"] * (args.test_days > 0)
    columns = args.text_column, args.field_columns
    has_text = bool(args.items_path or any(columns))
    inputs = [args.input] + [args.items_path] * bool(args.items_path)
    times = parts if args.keep_times else []
    earlier = read_earlier(args.continue_from)
    has_tokens = check_continued(earlier, has_text)
    with Output(args.output_dir, parts, inputs, has_tokens, times) as output:
        catalogue = text.read_items(args.items_path) if args.items_path else None
        log = open_log(args.input, args.layout, args.session_column, args.item_column,
                       args.time_column, args.separator)
        check_item_columns(log, *columns)
        clicks, raw_items = read_clicks(log)
        if any(columns):
            found = read_item_columns(log, clicks, raw_items, *columns)
            catalogue = {raw: ItemText(*content) for raw, content in found.items()}
        split = filter_and_split(clicks, len(raw_items), args, print_counts)
        del clicks  # the parts are copies
        columns = ["item"] + ["time"] * args.keep_times
        sessions = {part: group_sessions(split.pop(part), columns) for part in parts}
        raw_ids, new_id = number_items(sessions, raw_items, earlier.raw_ids if earlier else [])
        for part in parts:
            with output.create(os.path.join(f"{part}_data", SESSIONS_FILE)) as f:
                write_sessions(f, sessions[part], new_id)
        for part in times:
            with output.create(os.path.join(f"{part}_times", SESSIONS_FILE)) as f:
                write_times(f, sessions[part])
        num_train = sessions["train"]["item"].explode().n_unique()
        num_items = write_items(output, raw_ids, num_train, catalogue, args, earlier)
        output.commit()
    print(f"{args.output_dir}: {num_items:,} items in vocab.txt and items.txt")


def check_continued(earlier, has_text):
    """Whether there will be the files of text.TOKEN_FILES. Raises DataError where items are to have
    text and those of an earlier run have none."""
    if not earlier:
        return has_text
    if has_text and earlier.bags is None:
        raise DataError(f"--continue_from {earlier.directory}: its items have no text, so a model "
                        "of it knows no tokens: leave the text out, or start anew")
    return earlier.bags is not None


class Vocabulary(dict):
    """Raw id -> its number, as text; a raw id that it does not have gets the next one."""

    def __missing__(self, raw):
        raw.decode("utf-8")  # items.txt must be readable
        number = self[raw] = b"%d" % len(self)
        return number


def convert_file(path, vocabulary, out):
    """Writes the lines of a session file with numbers for raw ids. Returns (clicks, sessions)."""
    clicks = sessions = 0
    line = 0
    with open(path, "rb") as f:
        for line, content in enumerate(f, 1):
            if line == 1:
                content = content.removeprefix(b"\xef\xbb\xbf")  # the byte order mark
            raw = content.split()
            try:
                out.write(b" ".join(map(vocabulary.__getitem__, raw)) + b"\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {line}: {error.object!r} is not UTF-8: convert "
                                "the file") from error
            clicks += len(raw)
            sessions += bool(raw)
    return clicks, sessions


def copy_times(path, out):
    """The lines of a file of times, with a newline at the end; evaluate_stream.py checks them."""
    with open(path, "rb") as f:
        content = f.read().removeprefix(b"\xef\xbb\xbf")
    out.write(content if content.endswith(b"\n") or not content else content + b"\n")


def run_sessions(args):
    files = {"train": args.train_files, "valid": args.valid_files, "test": args.test_files}
    files = {part: paths for part, paths in files.items() if paths}
    times = {part: getattr(args, f"{part}_times") for part in PARTS}
    times = {part: paths for part, paths in times.items() if paths}
    inputs = [path for paths in (*files.values(), *times.values()) for path in paths]
    inputs += [args.items_path] * bool(args.items_path)
    earlier = read_earlier(args.continue_from)
    has_tokens = check_continued(earlier, bool(args.items_path))
    vocabulary = Vocabulary((raw.encode(), b"%d" % number)
                            for number, raw in enumerate(earlier.raw_ids if earlier else []))
    with Output(args.output_dir, list(files), inputs, has_tokens, list(times)) as output:
        catalogue = text.read_items(args.items_path) if args.items_path else None
        for part, paths in files.items():
            known = len(vocabulary)
            with output.create(os.path.join(f"{part}_data", SESSIONS_FILE)) as out:
                counts = [convert_file(path, vocabulary, out) for path in paths]
            clicks, sessions = map(sum, zip(*counts))
            if not clicks:
                raise DataError(f"{', '.join(paths)}: no ids; a session is a line of ids with "
                                "white space between")
            print_counts(part, clicks, sessions, len(vocabulary) - known)
            if part == "train":
                num_train = len(vocabulary)
        for part, paths in times.items():
            with output.create(os.path.join(f"{part}_times", SESSIONS_FILE)) as out:
                for path in paths:
                    copy_times(path, out)
        raw_ids = [raw.decode() for raw in vocabulary]
        num_items = write_items(output, raw_ids, num_train, catalogue, args, earlier)
        output.commit()
    print(f"{args.output_dir}: {num_items:,} items in vocab.txt and items.txt")


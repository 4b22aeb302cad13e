"""Session files -> batches of (sequence, positive item, negative items).

A data set is two arrays: ``items``, the clicks of all sessions end to end, and ``offsets``, where
each session begins. A batch has the same form (what fluid called a LoD tensor): all clicks of its
sequences end to end and the length of each, so that there is no padding to compute or to mask.

    dataset = construct_train_data("train_data", "vocab.txt")
    for batch in dataset.train(50, seed=0, epoch=1):
        batch.clicks, batch.lengths, batch.positive, batch.candidates
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from typing import Iterator, NamedTuple, Optional

import numpy as np

from ssr.errors import DataError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 4 << 20  # of text parsed at a time: the working set of the parser, not of the data
CACHE_BYTES = 16 << 20  # text of this size takes a second to parse: from here on it is cached
CACHE_VERSION = 1
MAX_ITEMS = 2 ** 31 - 1  # ids are kept as int32

# What each byte of a session file is. Everything that is no digit and no white space is an error.
_DIGIT, _SPACE, _NEWLINE, _OTHER = range(4)
_KIND = np.full(256, _OTHER, np.uint8)
_KIND[ord("0"): ord("9") + 1] = _DIGIT
_KIND[np.frombuffer(b" \t\r\v\f", np.uint8)] = _SPACE
_KIND[ord("\n")] = _NEWLINE
_MAX_DIGITS = 18  # what int64 surely holds


class Bags(NamedTuple):
    """What some items are made of, each different one once.

    rows: <int64>[rows], the rows of the table that are needed, ascending, each once
    members: <int64>[n], the places in rows of what is in the bags, these end to end
    lengths: <int64>[bags], members of each, at least 1
    place: <int64>[items], which bag is that of an item
    """

    rows: np.ndarray
    members: np.ndarray
    lengths: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, rows, lengths, place=None):
        """Bags from their rows end to end, <int64>[n], and how many each has. place: None for an
        item each"""
        rows, members = np.unique(rows, return_inverse=True)
        return cls(rows, members, lengths, np.arange(len(lengths)) if place is None else place)


class Batch(NamedTuple):
    """Some sessions, cut into what was clicked and what is to be predicted.

    clicks: <int64>[clicks], the sequences end to end
    lengths: <int64>[batch], clicks per sequence, each at least 1
    positive: <int64>[targets], the items that were clicked next: one after each sequence, or one
        after each click of it
    candidates: what a target is to be told from. <int64>[targets, 1 + n], for each its own, the
        target first (PairedNegatives); or <int64>[n], the same for all, ascending, each once, all
        targets among them (SharedNegatives)
    log_inclusion: <float32>[n] with shared candidates, else None: the logarithm of the probability
        that a candidate is one
    num_targets: targets of the batches of all ranks
    bags: what the items are made of, for ids() (Bags); None where each is a row of the table
    touched: <int64>[rows], the rows of the table that the batches of all ranks need, ascending,
        each once; None where there is one rank. Every rank knows them without asking the others.
    """

    clicks: np.ndarray
    lengths: np.ndarray
    positive: np.ndarray
    candidates: np.ndarray
    log_inclusion: Optional[np.ndarray]
    num_targets: int
    bags: Optional[Bags] = None
    touched: Optional[np.ndarray] = None

    @property
    def every_prefix(self):
        """Whether there is a target after each click."""
        return len(self.positive) != len(self.lengths)

    def ids(self):
        """<int64>[clicks + candidates]: clicks and candidates, end to end."""
        return np.concatenate([self.clicks, self.candidates.ravel()])

    def rows(self):
        """<int64>[rows]: the rows of the table that the embeddings of ids() are made of."""
        return self.ids() if self.bags is None else self.bags.rows


class PairedNegatives:
    """Each target gets negatives of its own, never itself.

    dataset: whose items are drawn
    num: negatives of a target
    alpha: an item is drawn with a probability ~ clicks^alpha; 0 for all alike
    clicked_only: whether items without a click are never drawn with an alpha of 0 either. Where
        items have content, being a negative teaches that content.
    """

    def __init__(self, dataset, num=1, alpha=0.0, clicked_only=False):
        self.num = num
        self.vocab_size = dataset.vocab_size
        self.draw = _Draw(dataset.item_clicks(), alpha) if alpha or clicked_only else None

    def candidates(self, random, positive):
        """<int64>[targets, 1 + num], the target first, and None."""
        shape = (len(positive), self.num)
        if self.draw is None:
            # Uniform over the V-1 other items: the ids from the positive on move up by one.
            negative = random.integers(0, self.vocab_size - 1, shape)
            negative += negative >= positive[:, None]
        else:
            negative = self.draw(random, shape)
            while (same := negative == positive[:, None]).any():
                negative[same] = self.draw(random, np.count_nonzero(same))
        return np.concatenate([positive[:, None], negative], axis=1), None

    @staticmethod
    def of_rank(candidates, mine):
        """The candidates of the targets mine <bool>[targets]."""
        return candidates[mine]


class SharedNegatives:
    """All targets of a step get the same candidates: themselves, and some drawn items.

    dataset: whose items are drawn
    targets: as in YoochooseDataset.train
    num: items drawn a step, with replacement
    alpha: with a probability ~ clicks^alpha
    """

    def __init__(self, dataset, targets, num, alpha):
        self.num = num
        self.draw = _Draw(dataset.item_clicks(), alpha)
        labels = np.ones(len(dataset.items), bool)
        labels[dataset.offsets[:-1]] = False
        if targets == "last":
            labels[:] = False
            labels[dataset.offsets[1:] - 1] = True
        counts = np.bincount(dataset.items[labels], minlength=dataset.vocab_size)
        self.as_target = counts / counts.sum()

    def candidates(self, random, positive):
        """(candidates <int64>[n], log_inclusion <float32>[n]), as in a Batch.

        An item is a candidate if it is drawn or the target of a row. With N targets distributed as
        p and K draws distributed as q, that has a probability of 1 - (1 - q)^K (1 - p)^N, taken as
        1 - exp(-K q - N p).
        """
        drawn = self.draw(random, self.num)
        items = np.unique(np.concatenate([positive, drawn]))
        expected = self.num * self.draw.probability[items] + len(positive) * self.as_target[items]
        return items, np.log(-np.expm1(-expected)).astype(np.float32)

    @staticmethod
    def of_rank(candidates, mine):
        """All of them, whatever the targets."""
        return candidates


class _Draw:
    """Draws items with a probability ~ clicks^alpha; those without a click never."""

    def __init__(self, clicks, alpha):
        weight = np.where(clicks > 0, clicks, 0.0)
        weight[clicks > 0] **= alpha
        self.probability = weight / weight.sum()
        self.below = np.cumsum(self.probability)
        self.below /= self.below[-1]

    def __call__(self, random, shape):
        return np.searchsorted(self.below, random.random(shape), side="right")


def ragged_arange(starts, lengths):
    """The integers starts[i] .. starts[i] + lengths[i] - 1 of each i, end to end.

    starts, lengths: <int64>[n] -> <int64>[sum of lengths]
    """
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


class YoochooseDataset:
    """The sessions of a directory, in memory at 4 bytes a click and 8 a session.

    items: <int32>[clicks], item ids 0..vocab_size-1, all sessions end to end
    offsets: <int64>[sessions + 1], session i is items[offsets[i]:offsets[i + 1]]
    short: how many lines held fewer than two ids; they are left out
    """

    def __init__(self, items, offsets, vocab_size, short=0):
        self.items = items
        self.offsets = offsets
        self.vocab_size = vocab_size
        self.short = short

    def __len__(self):
        return len(self.offsets) - 1

    def item_clicks(self):
        """<int32>[vocab_size]: how often each item was clicked."""
        return np.bincount(self.items, minlength=self.vocab_size).astype(np.int32)

    def num_steps(self, batch_size, world_size=1):
        """Steps of an epoch, the same on every rank. One device takes the remainder as a smaller
        batch; several leave it out, since all of them must run the same number of equal steps."""
        whole, rest = divmod(len(self), batch_size * world_size)
        return whole + (world_size == 1 and rest > 0)

    def train(self, batch_size, seed, epoch, negatives=None, targets="last", max_len=None,
              content=None, rank=0, world_size=1) -> Iterator[Batch]:
        """Batches of one epoch, in an order that depends on (seed, epoch) alone.

        The global batch of batch_size * world_size sessions and its candidates are the same
        whatever world_size is; a rank takes every world_size-th session of it.

        batch_size: sessions a step and rank
        negatives: PairedNegatives or SharedNegatives; not given, one uniform negative a target
        targets: "last", the last click of a session is predicted; "all", every click but the first
        max_len: the newest clicks that are kept of a sequence, None for all
        content: ItemContent, None where an item is its own id
        """
        negatives = negatives or PairedNegatives(self)
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(np.arange(len(self), dtype=np.int32))
        size = batch_size * world_size
        for step in range(self.num_steps(batch_size, world_size)):
            chosen = order[step * size:(step + 1) * size]
            batch = self._batch(chosen, targets, max_len, negatives, random)
            dropped = content and content.draw_dropped(random, batch.ids())
            if world_size > 1:
                rows = with_bags(batch, content, dropped).rows()
                batch = _part(batch, negatives, rank, world_size)._replace(touched=np.unique(rows))
            yield with_bags(batch, content, dropped)

    def _batch(self, chosen, targets, max_len, negatives, random):
        starts, last = self.offsets[chosen], self.offsets[chosen + 1] - 1
        if max_len is not None:
            starts = np.maximum(starts, last - max_len)
        lengths = last - starts
        places = ragged_arange(starts, lengths)
        clicks = self.items[places].astype(np.int64)
        positive = self.items[last if targets == "last" else places + 1].astype(np.int64)
        candidates, log_inclusion = negatives.candidates(random, positive)
        return Batch(clicks, lengths, positive, candidates, log_inclusion, len(positive))


def _part(batch, negatives, rank, world_size):
    """What a rank takes of the global batch."""
    mine = np.arange(len(batch.lengths)) % world_size == rank
    clicks = np.repeat(mine, batch.lengths)
    targets = clicks if batch.every_prefix else mine
    return batch._replace(clicks=batch.clicks[clicks], lengths=batch.lengths[mine],
                          positive=batch.positive[targets],
                          candidates=negatives.of_rank(batch.candidates, targets))


def with_bags(batch, content, dropped):
    """A batch with its bags. dropped: of the ids, see ItemContent.bags"""
    return batch if content is None else batch._replace(bags=content.bags(batch.ids(), dropped))


def get_vocab_size(vocab_path):
    """The number of items, from the first line of vocab_path. Raises DataError."""
    try:
        with open(vocab_path, encoding="utf-8-sig") as f:
            line = f.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the vocabulary {vocab_path}: {_reason(error)}; its first "
                        "line is the number of items (preprocess.py writes it)") from error
    if not (line.isascii() and line.isdigit()):
        raise DataError(f"{vocab_path}, line 1: {line[:40]!r} is not a number of items")
    if not 2 <= int(line) <= MAX_ITEMS:
        raise DataError(f"{vocab_path}, line 1: {line} items; at least 2 are needed, one to be "
                        f"clicked and one not to be, and at most {MAX_ITEMS} can be told apart")
    return int(line)


def construct_train_data(file_dir, vocab_path) -> YoochooseDataset:
    """The sessions under file_dir to train on. Raises DataError."""
    return load_sessions(file_dir, get_vocab_size(vocab_path))


def construct_test_data(file_dir, vocab_path) -> YoochooseDataset:
    """The sessions under file_dir to evaluate on. Raises DataError."""
    return load_sessions(file_dir, get_vocab_size(vocab_path))


def load_sessions(file_dir, vocab_size) -> YoochooseDataset:
    """Reads every file of a directory, in the order of their names, hidden ones left out.

    A file is UTF-8 text, a session a line, item ids 0..vocab_size-1 in click order with white
    space between. Large directories are cached in FILE_DIR/.cache and memory-mapped from there.
    Raises DataError, which names file, line and token, for anything that is not such a line.
    """
    files = _session_files(file_dir)
    stamp = _stamp(files)
    dataset = _from_cache(file_dir, stamp, vocab_size)
    if dataset is None:
        dataset = _from_text(files, vocab_size)
        if sum(size for _, size, _ in stamp["files"]) >= CACHE_BYTES:
            _to_cache(file_dir, stamp, dataset)
    if not len(dataset):
        raise DataError(f"{file_dir}: no line holds two item ids or more; a session is a line of "
                        "ids with white space between")
    if dataset.short:
        logger.info("%s: %d lines of fewer than two ids were left out", file_dir, dataset.short)
    return dataset


def load_timed_sessions(file_dir, times_dir, vocab_size):
    """The sessions of a directory with the time of each click.

    times_dir: holds a file of the same name for each file of sessions, of the same shape: a session
        a line, in place of each item id the time of its click, in whole seconds from any moment on,
        never falling within a session
    returns (YoochooseDataset, <int64>[clicks]); lines of fewer than two ids are left out of both
    Raises DataError, which names file and line, where the files do not go together.
    """
    dataset = load_sessions(file_dir, vocab_size)
    parts = [_load_times(path, os.path.join(times_dir, os.path.basename(path)), vocab_size)
             for path in _session_files(file_dir)]
    return dataset, np.concatenate(parts)


def _load_times(path, times_path, vocab_size):
    """<int64>[clicks] of the lines of two ids or more."""
    if not os.path.isfile(times_path):
        raise DataError(f"there is no {times_path}, the times of the clicks in {path}: "
                        "preprocess.py clicks --keep_times writes both")
    lengths = np.concatenate([found for _, found in _parse_file(path, vocab_size)])
    lines = []
    with open(times_path, "rb") as f:
        text = f.read().removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    for number, (line, length) in enumerate(zip(text, lengths), 1):
        try:
            times = np.array(line.split(), np.int64)
        except (ValueError, OverflowError):
            raise DataError(f"{times_path}, line {number}: {line.decode(errors='replace')[:40]!r}: "
                            "a line holds the times of a session's clicks, in whole "
                            "seconds") from None
        if len(times) != length:
            raise DataError(f"{times_path}, line {number}: {len(times)} times, and the same line "
                            f"of {path} has {length} clicks")
        if (np.diff(times) < 0).any():
            raise DataError(f"{times_path}, line {number}: the times fall; the clicks of a "
                            "session are in order of time")
        if length >= 2:
            lines.append(times)
    if len(text) != len(lengths):
        raise DataError(f"{times_path} holds {len(text)} lines and {path} {len(lengths)}: a line a "
                        "session in both")
    return np.concatenate(lines or [np.empty(0, np.int64)])


def _session_files(file_dir):
    try:
        names = sorted(name for name in os.listdir(file_dir) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the directory {file_dir}: {_reason(error)}") from error
    files = [os.path.join(file_dir, name) for name in names]
    files = [path for path in files if not os.path.isdir(path)]
    if not files:
        raise DataError(f"the directory {file_dir} holds no files; preprocess.py makes them")
    return files


def _reason(error):
    return getattr(error, "strerror", None) or str(error)


# --- text ---------------------------------------------------------------------------------------


def _from_text(files, vocab_size):
    parts, counts = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    short = 0
    for path in files:
        for items, lengths in _parse_file(path, vocab_size):
            keep = lengths >= 2
            short += int(len(keep) - keep.sum())
            parts.append(items[np.repeat(keep, lengths)])
            counts.append(lengths[keep].astype(np.int32))
    items = np.concatenate(parts)
    del parts
    offsets = np.zeros(sum(map(len, counts)) + 1, np.int64)
    np.cumsum(np.concatenate(counts), out=offsets[1:])
    return YoochooseDataset(items, offsets, vocab_size, short)


def _parse_file(path, vocab_size):
    """Yields (items <int32>[clicks], lengths <int64>[lines]) of one block of whole lines after
    the other."""
    line = 1
    try:
        with open(path, "rb") as f:
            rest = f.read(3)
            rest = b"" if rest == b"\xef\xbb\xbf" else rest  # the UTF-8 byte order mark
            while True:
                read = f.read(BLOCK_BYTES)
                block = rest + (read or b"\n")
                cut = block.rfind(b"\n") + 1
                block, rest = block[:cut], block[cut:]
                if cut:
                    items, lengths = _parse_block(block, path, line, vocab_size)
                    # The newline added at the end of the file is not a line of it.
                    yield items, lengths if read or lengths[-1] else lengths[:-1]
                    line += len(lengths)
                if not read:
                    return
    except OSError as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error


def _parse_block(block, path, first_line, vocab_size):
    """All digits of a block at once: where tokens begin and end, then a place value at a time."""
    data = np.frombuffer(block, np.uint8)
    kind = _KIND[data]
    if (kind == _OTHER).any():
        raise _bad_token(block, int(np.argmax(kind == _OTHER)), path, first_line)
    edges = np.diff((kind == _DIGIT).view(np.int8), prepend=np.int8(0))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    widths = ends - starts
    values = np.zeros(len(starts), np.int64)
    rest = np.arange(len(starts))
    for place in range(min(int(widths.max(initial=0)), _MAX_DIGITS)):
        values[rest] += (data[ends[rest] - 1 - place] - np.int64(ord("0"))) * 10 ** place
        rest = rest[widths[rest] > place + 1]
    wrong = (values >= vocab_size) | (widths > _MAX_DIGITS)
    if wrong.any():
        at = int(starts[np.argmax(wrong)])
        token, line = _token_at(block, at, first_line)
        raise DataError(f"{path}, line {line}: item id {token.decode()} is not below the number "
                        f"of items, {vocab_size}; is the vocabulary file that of this data?")
    before = np.searchsorted(starts, np.flatnonzero(kind == _NEWLINE))
    return values.astype(np.int32), np.diff(before, prepend=0)


def _token_at(block, at, first_line):
    """The whole token around a position and the line it stands in."""
    line_start = block.rfind(b"\n", 0, at) + 1
    head = block[line_start:at].split(None)
    begin = at if not head or block[at - 1: at].isspace() else at - len(head[-1])
    return block[begin:].split(None, 1)[0], first_line + block.count(b"\n", 0, at)


def _bad_token(block, at, path, first_line):
    token, line = _token_at(block, at, first_line)
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return DataError(f"{path}, line {line}: not UTF-8 text; a session file holds a session a "
                         "line, item ids with white space between")
    what = "a negative id" if text[0] == "-" and text[1:].isdigit() else "not an item id"
    return DataError(f"{path}, line {line}: {text[:40]!r} is {what}; ids are numbers from 0 on "
                     "(preprocess.py makes them from raw ids)")


# --- cache --------------------------------------------------------------------------------------


def _stamp(files):
    """What a cache was made from; any difference makes it worthless."""
    stats = [(os.path.basename(path), os.stat(path)) for path in files]
    return {"version": CACHE_VERSION,
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]}


def _from_cache(file_dir, stamp, vocab_size):
    cache = os.path.join(file_dir, ".cache")
    try:
        with open(os.path.join(cache, "source.json"), encoding="utf-8") as f:
            source = json.load(f)
        if source["stamp"] != stamp or source["max_id"] >= vocab_size:
            return None  # in the second case the text says in which line
        arrays = [np.load(os.path.join(cache, name), mmap_mode="r")
                  for name in ("items.npy", "offsets.npy")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return YoochooseDataset(*arrays, vocab_size, source["short"])


def _to_cache(file_dir, stamp, dataset):
    """Best effort: a directory that cannot be written is parsed again the next time."""
    cache = os.path.join(file_dir, ".cache")
    temporary = f"{cache}.{os.getpid()}"
    try:
        os.mkdir(temporary)
        np.save(os.path.join(temporary, "items.npy"), dataset.items)
        np.save(os.path.join(temporary, "offsets.npy"), dataset.offsets)
        source = {"stamp": stamp, "short": dataset.short,
                  "max_id": int(dataset.items.max(initial=0))}
        with open(os.path.join(temporary, "source.json"), "w", encoding="utf-8") as f:
            json.dump(source, f)
        shutil.rmtree(cache, ignore_errors=True)
        os.rename(temporary, cache)
    except OSError as error:
        logger.info("%s: not cached: %s", file_dir, _reason(error))
        shutil.rmtree(temporary, ignore_errors=True)

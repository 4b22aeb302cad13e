"""Session files -> batches of (sequence, positive item, negative items).

A data set is two arrays: ``items``, the clicks of all sessions end to end, and ``offsets``, where
each session begins. A batch has the same form (what fluid called a LoD tensor): all clicks of its
sequences end to end and the length of each, so that there is no padding to compute or to mask.

    dataset = construct_train_data("train_data", "vocab.txt")
    for batch in dataset.train(50, seed=0, epoch=1):
        batch.clicks, batch.lengths, batch.positive, batch.candidates
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Iterator, NamedTuple, Optional

import numpy as np

from ssr.errors import DataError
from ssr.kernels.numbers import MAX_DIGITS, Numbers, load_lines, parse_file

logger = logging.getLogger(__name__)

MAX_ITEMS = 2 ** 31 - 1  # ids are kept as int32
ITEM_IDS = Numbers("item id", "an", "preprocess.py makes them from raw ids", "items",
                   "the vocabulary file")
TIMES = Numbers("time", "a", "a line holds the times of a session's clicks, in whole seconds")


# --- batches --------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Some sessions, cut into what was clicked and what is to be predicted.

    clicks: <int64>[clicks], the sequences end to end
    lengths: <int64>[batch], clicks per sequence, each at least 1
    positive: <int64>[targets], the items that were clicked next: one after each sequence, or one
        after each click of it
    candidates: what a target is to be told from. <int64>[targets, 1 + n], for each its own, the
        target first; or <int64>[n], the same for all, ascending, each once, all items of the
        sessions among them (ssr.training.negatives.SharedNegatives)
    log_inclusion: <float32>[n] with shared candidates, else None: the logarithm of the probability
        that a candidate is one
    num_targets: targets of the batches of all ranks
    shown: <int64>[targets, n] with shared candidates, of each target items that the same user saw
        beside it and did not click (ssr.training.negatives.ShownNegatives), or the target itself
        where nothing is known; None where nothing is asked of that
    rows: <int64>[rows], those of the table that the batches of all ranks need, ascending, each once
    bags: ssr.training.content.Bags of the items of ids(); None where each is one row, its own id
    """

    clicks: np.ndarray
    lengths: np.ndarray
    positive: np.ndarray
    candidates: np.ndarray
    log_inclusion: Optional[np.ndarray]
    num_targets: int
    shown: Optional[np.ndarray] = None
    rows: Optional[np.ndarray] = None
    bags: Optional[NamedTuple] = None

    @property
    def every_prefix(self):
        """Whether there is a target after each click."""
        return len(self.positive) != len(self.lengths)

    def sessions(self):
        """(<int64>[clicks + batch], the sessions with the last item of each, which is a target and
        no click, end to end; <int64>[batch], their lengths)."""
        ends = np.cumsum(self.lengths)
        last = self.positive[ends - 1] if self.every_prefix else self.positive
        return np.insert(self.clicks, ends, last), self.lengths + 1

    def ids(self):
        """<int64>[clicks + candidates + shown]: these, end to end."""
        parts = [self.clicks, self.candidates.ravel()]
        return np.concatenate(parts if self.shown is None else [*parts, self.shown.ravel()])

    def places(self):
        """<int64>[clicks], <int64>[candidates + shown]: where their embeddings are among those
        that the rows make up."""
        place = np.searchsorted(self.rows, self.ids()) if self.bags is None else self.bags.place
        return place[:len(self.clicks)], place[len(self.clicks):]


class UniformNegatives:
    """Each target gets negatives of its own: uniform over the other items.

    vocab_size: number of items
    num: negatives of a target
    """

    def __init__(self, vocab_size, num=1):
        self.vocab_size, self.num = vocab_size, num

    def candidates(self, random, positive, sessions=None):
        """<int64>[targets, 1 + num], the target first, and None, as Batch has them."""
        negative = random.integers(0, self.vocab_size - 1, (len(positive), self.num))
        # Uniform over the V-1 other items: the ids from the positive on move up by one.
        negative += negative >= positive[:, None]
        return np.concatenate([positive[:, None], negative], axis=1), None

    @staticmethod
    def of_rank(candidates, mine):
        """The candidates of the targets mine <bool>[targets]."""
        return candidates[mine]


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
    chosen: <int32>[n], the numbers of the sessions that count, None for all
    """

    def __init__(self, items, offsets, vocab_size, short=0, chosen=None):
        self.items = items
        self.offsets = offsets
        self.vocab_size = vocab_size
        self.short = short
        self.chosen = chosen

    def __len__(self):
        return len(self.offsets) - 1 if self.chosen is None else len(self.chosen)

    def item_clicks(self):
        """<int32>[vocab_size]: how often each item was clicked."""
        clicks = np.bincount(self.items, minlength=self.vocab_size).astype(np.int32)
        if self.chosen is not None:
            left_out = np.setdiff1d(np.arange(len(self.offsets) - 1), self.chosen)
            clicks -= self._copy(left_out).item_clicks()
        return clicks

    def _copy(self, sessions):
        """A YoochooseDataset of some of the sessions. sessions: <int64>[n], their numbers"""
        lengths = self.offsets[sessions + 1] - self.offsets[sessions]
        return YoochooseDataset(self.items[ragged_arange(self.offsets[sessions], lengths)],
                                np.cumsum([0, *lengths]), self.vocab_size)

    def hold_out(self, count):
        """Two YoochooseDatasets: of the others, and of `count` sessions evenly spread over all."""
        out = np.arange(count) * len(self) // max(count, 1)
        others = np.delete(np.arange(len(self), dtype=np.int32), out)
        return YoochooseDataset(self.items, self.offsets, self.vocab_size, self.short,
                                others), self._copy(out)

    def digest(self):
        """What tells these sessions from others: 32 hexadecimal digits."""
        digest = hashlib.blake2b(str(self.vocab_size).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.items))
        digest.update(np.ascontiguousarray(self.offsets))
        return digest.hexdigest()

    def num_steps(self, batch_size, world_size=1):
        """Steps of an epoch, the same on every rank. One device takes the remainder as a smaller
        batch; several leave it out, since all of them must run the same number of equal steps."""
        whole, rest = divmod(len(self), batch_size * world_size)
        return whole + (world_size == 1 and rest > 0)

    def train(self, batch_size, seed, epoch, negatives=None, targets="last", max_len=None,
              content=None, rank=0, world_size=1, shown=None) -> Iterator[Batch]:
        """Batches of one epoch, in an order that depends on (seed, epoch) alone.

        The global batch of batch_size * world_size sessions and its candidates are the same
        whatever world_size is; the ranks take turns at its sessions, from the longest on.

        batch_size: sessions a step and rank
        negatives: UniformNegatives, or a class of ssr.training.negatives; not given, one uniform
            negative a target
        targets: "last", the last click of a session is predicted; "all", every click but the first
        max_len: the newest clicks that are kept of a sequence, None for all
        content: ssr.training.content.ItemContent, None where an item is its own id
        shown: ssr.training.negatives.ShownNegatives, None for none
        """
        negatives = negatives or UniformNegatives(self.vocab_size)
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(np.arange(len(self), dtype=np.int32)
                                   if self.chosen is None else self.chosen)
        size = batch_size * world_size
        for step in range(self.num_steps(batch_size, world_size)):
            chosen = order[step * size:(step + 1) * size]
            whole = self._batch(chosen, targets, max_len, negatives, random, shown)
            part = whole if world_size == 1 else _part(whole, negatives, rank, world_size)
            yield with_rows(part, whole, content, random)

    def _batch(self, chosen, targets, max_len, negatives, random, shown):
        starts, last = self.offsets[chosen], self.offsets[chosen + 1] - 1
        if max_len is not None:
            starts = np.maximum(starts, last - max_len)
        lengths = last - starts
        places = ragged_arange(starts, lengths)
        clicks = self.items[places].astype(np.int64)
        predicted = last if targets == "last" else places + 1
        positive = self.items[predicted].astype(np.int64)
        sessions = self.items[ragged_arange(starts, lengths + 1)].astype(np.int64)
        candidates, log_inclusion = negatives.candidates(random, positive, sessions)
        batch = Batch(clicks, lengths, positive, candidates, log_inclusion, len(positive))
        return batch if shown is None else shown.beside(batch, predicted, random)


def _part(batch, negatives, rank, world_size):
    """What a rank takes of the global batch: as many sessions as every other one, and by taking
    turns from the longest on about as many clicks, since the ranks wait for the slowest."""
    mine = np.zeros(len(batch.lengths), bool)
    mine[np.argsort(-batch.lengths, kind="stable")[_turns(len(mine), rank, world_size)]] = True
    clicks = np.repeat(mine, batch.lengths)
    targets = clicks if batch.every_prefix else mine
    return batch._replace(clicks=batch.clicks[clicks], lengths=batch.lengths[mine],
                          positive=batch.positive[targets],
                          candidates=negatives.of_rank(batch.candidates, targets),
                          shown=None if batch.shown is None else batch.shown[targets])


def _turns(count, rank, world_size):
    """The numbers below count that a rank takes, where the ranks choose by turns, first to last,
    last to first, and so on."""
    turn = np.arange(count // world_size)
    return turn * world_size + np.where(turn % 2, world_size - 1 - rank, rank)


def with_rows(batch, whole, content=None, random=None):
    """A batch with its rows and bags. whole: the batch of all ranks"""
    if content is None:
        return batch._replace(rows=np.unique(whole.ids()))
    dropped = content.draw_dropped(random, whole.ids())
    rows = None if batch is whole else content.rows_needed(whole.ids(), dropped)
    bags = content.bags(batch.ids(), dropped, rows)
    return batch._replace(rows=bags.rows, bags=bags)


# --- files ----------------------------------------------------------------------------------------


def get_vocab_size(vocab_path):
    """The number of items, from the first line of vocab_path. Raises DataError."""
    try:
        with open(vocab_path, encoding="utf-8-sig") as f:
            line = f.readline(1000).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the vocabulary {vocab_path}: "
                        f"{getattr(error, 'strerror', None) or error}; its first line is the "
                        "number of items (preprocess.py writes it)") from error
    if not (line.isascii() and line.isdigit()):
        raise DataError(f"{vocab_path}, line 1: {line[:40]!r} is not a number of items")
    if len(line) > MAX_DIGITS or not 2 <= int(line) <= MAX_ITEMS:
        raise DataError(f"{vocab_path}, line 1: {line[:40]} items; at least 2 are needed, one to "
                        f"be clicked and one not to be, and at most {MAX_ITEMS} can be told apart")
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
    items, offsets, short = load_lines(_session_files(file_dir), ITEM_IDS, vocab_size, np.int32)
    if len(offsets) == 1:
        raise DataError(f"{file_dir}: no line holds two item ids or more; a session is a line of "
                        "ids with white space between")
    if short:
        logger.info("%s: %d lines of fewer than two ids were left out", file_dir, short)
    return YoochooseDataset(items, offsets, vocab_size, short)


def load_timed_sessions(file_dir, times_dir, vocab_size):
    """The sessions of a directory with the time of each click.

    times_dir: holds a file of the same name for each file of sessions, of the same shape: a session
        a line, in place of each item id the time of its click, in whole seconds from any moment on,
        never falling within a session
    returns (YoochooseDataset, <int64>[clicks]); lines of fewer than two ids are left out of both
    Raises DataError, which names file and line, where the files do not go together.
    """
    dataset = load_sessions(file_dir, vocab_size)
    files = _session_files(file_dir)
    times_files = [os.path.join(times_dir, os.path.basename(path)) for path in files]
    for path, times_path in zip(files, times_files):
        if not os.path.isfile(times_path):
            raise DataError(f"there is no {times_path}, the times of the clicks in {path}: "
                            "preprocess.py clicks --keep_times writes both")
    times, offsets, _ = load_lines(times_files, TIMES, 10 ** MAX_DIGITS, np.int64)
    if not np.array_equal(offsets, dataset.offsets) or _falls_within(times, offsets):
        raise _unlike_times(zip(files, times_files), vocab_size)
    return dataset, np.asarray(times)


def _falls_within(times, offsets):
    """Whether the times of any session fall."""
    falls = np.diff(times) < 0
    falls[offsets[1:-1] - 1] = False  # from one session to the next
    return falls.any()


def _unlike_times(pairs, vocab_size):
    """The error of files of sessions and of times that do not go together. Slow."""
    for path, times_path in pairs:
        lengths = np.concatenate([part for _, part in parse_file(path, ITEM_IDS, vocab_size)])
        values, counts = map(np.concatenate, zip(*parse_file(times_path, TIMES, 10 ** MAX_DIGITS)))
        ends = np.cumsum(counts)
        lines = zip(lengths, counts, np.split(values, ends[:-1]))
        for number, (length, count, times) in enumerate(lines, 1):
            if length != count:
                return DataError(f"{times_path}, line {number}: {count} times, and the same line "
                                 f"of {path} has {length} clicks")
            if (np.diff(times) < 0).any():
                return DataError(f"{times_path}, line {number}: the times fall; the clicks of a "
                                 "session are in order of time")
        if len(lengths) != len(counts):
            return DataError(f"{times_path} holds {len(counts)} lines and {path} {len(lengths)}: "
                             "a line a session in both")
    raise AssertionError("these files go together")


def _session_files(file_dir):
    try:
        names = sorted(name for name in os.listdir(file_dir) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the directory {file_dir}: {error.strerror}") from error
    files = [os.path.join(file_dir, name) for name in names]
    files = [path for path in files if not os.path.isdir(path)]
    if not files:
        raise DataError(f"the directory {file_dir} holds no files; preprocess.py makes them")
    return files

"""Item text and fields -> words -> token ids.

    tokenizer = Tokenizer()
    tokenizer.bag("Kirby’s Dream Land", {"platform": "Game Boy"})
    ["kirby", "dream", "land", "platform:game_boy"]

    vocabulary = TokenVocabulary.load("tokens.txt")
    vocabulary.encode("Dream Land 2")    # <int64>[tokens]: the ids of the words it knows

A word is a run of letters, marks and digits, in lower case and normalised (NFKC); apostrophes
between letters belong to it, a possessive 's does not. Writing without spaces is cut further:
Chinese into words with jieba if that is installed and into pairs of neighbouring characters if not;
kana, Thai, Lao, Khmer and Burmese always into pairs. An article that is served must be cut like
those that the model was trained on: tokens.json, beside tokens.txt, says how that was.
"""

from __future__ import annotations

import array
import functools
import html
import json
import logging
import os
import re
import unicodedata
import warnings
from typing import Iterable, Mapping, NamedTuple

import numpy as np

from ssr.data_directory import CUTTING_FILE, ITEM_TOKENS_FILE, TOKENS_FILE
from ssr.errors import DataError
from ssr.files import numbered_lines, shown_name

VERSION = 1  # of the rules below: other rules make another vocabulary
CUTTERS = ("jieba", "bigrams")

_ASCII_WORD = re.compile("[a-z0-9]+(?:'(?=[a-z])[a-z0-9]+)*")
_POSSESSIVE = re.compile("(?:'s)+$")
_HUGE_REFERENCE = re.compile("&#[0-9]{100,};?")  # html.unescape may refuse to read the number
_HAN = "々〆〇\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WITHOUT_SPACES = [  # blocks, each cut by itself: a change of script is the end of a word
    range(0x0E00, 0x0F00),  # Thai, Lao
    range(0x1000, 0x10A0),  # Burmese
    range(0x1780, 0x1800),  # Khmer
    range(0x3040, 0x30A0),  # Hiragana
    [*range(0x30A0, 0x3100), *range(0x31F0, 0x3200)],  # Katakana
]


class ItemText(NamedTuple):
    """What is known of an item.

    text: a title, say
    fields: {name: value or list of values}
    """

    text: str = ""
    fields: Mapping = {}


# --- words ----------------------------------------------------------------------------------------


def chinese_cutter() -> str:
    """How Chinese is cut by default: "jieba" if it is installed, "bigrams" if not."""
    return "bigrams" if _import_jieba() is None else "jieba"


def _import_jieba():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is older than the Python that it runs on
            import jieba
    except ImportError:
        return None
    jieba.setLogLevel(logging.WARNING)  # it reports the loading of its dictionary otherwise
    return jieba


class Tokenizer:
    """Cuts text into words. Raises DataError for an unknown cutter, or one that is not installed.

    cutter: "jieba" or "bigrams", how runs of Chinese are cut; None for chinese_cutter()
    """

    def __init__(self, cutter=None):
        self.cutter = cutter or chinese_cutter()
        if self.cutter not in CUTTERS:
            raise DataError(f"unknown way to cut Chinese: {cutter!r}; there are "
                            + " and ".join(CUTTERS))
        self._cut_chinese = _bigrams
        if self.cutter == "jieba":
            jieba = _import_jieba()
            if jieba is None:
                raise DataError("Chinese is to be cut with jieba, which is not installed: "
                                "pip install jieba")
            self._cut_chinese = jieba.lcut

    def words(self, text: str) -> list[str]:
        """The words of a text, in order, as often as they occur."""
        if "&" in text:  # titles that come from web pages hold &amp; and the like
            text = html.unescape(_HUGE_REFERENCE.sub("\N{REPLACEMENT CHARACTER}", text))
        if text.isascii():
            words = _ASCII_WORD.findall(text.lower())
        else:
            words = self._unicode_words(text)
        return [_POSSESSIVE.sub("", word) if "'" in word else word for word in words]

    def _unicode_words(self, text):
        rules = _rules()
        words = []
        for match in rules.run.finditer(_fold(text)):
            if match.lastgroup == "word":
                words.append(match[0])
            elif match.lastgroup == "han":
                words += self._cut_chinese(match[0])
            else:
                words += _bigrams(match[0])
        return words

    def bag(self, text: str, fields: Mapping = {}) -> list[str]:
        """The distinct words of a text, then the tokens of its fields, in order."""
        tokens = dict.fromkeys(self.words(text))
        if fields:
            tokens.update(dict.fromkeys(field_tokens(fields)))
        return list(tokens)


def field_tokens(fields: Mapping) -> list[str]:
    """{name: value or list of values} -> a token "name:value" for each value, in lower case, with
    _ for white space. None and blank values give no token. Raises DataError."""
    tokens = []
    for name, values in fields.items():
        if not name.strip() or ":" in name:
            raise DataError(f"{name!r} cannot be the name of a field: it is empty or holds a "
                            "colon")
        for value in values if isinstance(values, (list, tuple)) else [values]:
            value = "" if value is None else "_".join(_fold(str(value)).split())
            if value:
                tokens.append("_".join(_fold(name).split()) + ":" + value)
    return tokens


def fields_of(tokens) -> dict[str, list[str]]:
    """Fields of which field_tokens makes these tokens: what it leaves of a field for good."""
    fields = {}
    for token in tokens:
        name, _, value = token.partition(":")
        fields.setdefault(name, []).append(value)
    return fields


def _fold(text):
    """In lower case, normalised, without invisible characters, with ' for any apostrophe."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text.translate(_rules().replaced))
    # Folding makes Cherokee upper case, hence lower(); other letters it takes apart, hence NFKC
    # once more.
    return unicodedata.normalize("NFKC", text.casefold().lower())


def _bigrams(run):
    """Pairs of neighbouring characters, each with its marks; a single character is itself."""
    letters = _rules().letter.findall(run)
    return [a + b for a, b in zip(letters, letters[1:])] or letters


class _Rules(NamedTuple):
    """run: a regular expression that finds words (group word), Chinese (group han) and other
    writing without spaces (no group); letter: one that finds a letter with its marks; replaced: a
    table for str.translate"""

    run: re.Pattern
    letter: re.Pattern
    replaced: dict


@functools.cache
def _rules():
    """Built from the Unicode tables once there is text that is not ASCII: re knows letters and
    digits, but no marks."""
    points = [*range(0x80, 0x20000), *range(0xE0000, 0xE1000)]
    category = {point: unicodedata.category(chr(point)) for point in points}
    marks = {point for point in points if category[point][0] == "M"}
    # Selectors of a glyph's variant and fillers: nobody sees them.
    invisible = {0x034F, 0x115F, 0x1160, 0x3164, 0xFFA0, *range(0x180B, 0x1810),
                 *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
    invisible |= {point for point in points if category[point] == "Cf"}
    replaced = dict.fromkeys(invisible) | dict.fromkeys(map(ord, "‘’ʼ"), "'") | {
        ord("ŉ"): "'n",  # NFKC makes an apostrophe of it
        0x200B: " "}  # the space without width
    mark = f"[{_ranges(marks - invisible)}]*"
    others = [_ranges(point for point in block if category[point][0] == "L")
              for block in _WITHOUT_SPACES]
    other = "".join(others)
    letter = rf"[^\W_{_HAN}{other}]{mark}"
    run = re.compile(rf"(?P<word>(?:{letter})+(?:'(?=[^\W\d_{_HAN}{other}])(?:{letter})+)*)"
                     rf"|(?P<han>(?:[{_HAN}]{mark})+)"
                     + "".join(rf"|(?:[{other}]{mark})+" for other in others))
    return _Rules(run, re.compile(rf"\w{mark}"), replaced)


def _ranges(points):
    """Code points as a regular expression has them between brackets: "a-zA-Z"."""
    points = np.array(sorted(points))
    breaks = np.flatnonzero(np.diff(points) > 1)
    begins, ends = points[np.r_[0, breaks + 1]], points[np.r_[breaks, len(points) - 1]]
    return "".join(f"{chr(begin)}-{chr(end)}" for begin, end in zip(begins, ends))


# --- the text of all items ------------------------------------------------------------------------


def read_items(path) -> dict[str, ItemText]:
    """Reads a file of items without a header, a line each: raw id, tab, text, then any number of
    columns `field:value`, among which a field may come several times.

    path: "-" for standard input
    returns {raw id: ItemText} in file order; raises DataError
    """
    items = {}
    lines = numbered_lines(path, "it holds the items, a line each: raw id, tab, text")
    path = shown_name(path)
    for line, content in lines:
        if not content.strip():
            continue
        raw, *columns = content.split("\t")
        if not raw or "\r" in raw:
            raise DataError(f"{path}, line {line}: {raw[:40]!r} cannot be a raw id; a line is raw "
                            "id, tab, text")
        if raw in items:
            raise DataError(f"{path}, line {line}: item {raw[:40]!r} has a line before this one: "
                            "keep one of them")
        fields = {}
        for column in filter(str.strip, columns[1:]):
            name, colon, value = column.partition(":")
            if not (colon and name.strip() and value.strip()):
                raise DataError(f"{path}, line {line}: {column[:40]!r} is not field:value, as "
                                "columns behind the text must be")
            fields.setdefault(name, []).append(value)
        items[raw] = ItemText(columns[0] if columns else "", fields)
    return items


class ItemBags(NamedTuple):
    """The tokens of all items.

    tokens: <str>[T], token i is the one with id i; the most common ones come first
    ids: <int32>[n], token ids, the bags of all items end to end, each in the order of its text
    lengths: <int64>[V], the number of tokens of each item
    cutter: how Chinese was cut
    """

    tokens: list
    ids: np.ndarray
    lengths: np.ndarray
    cutter: str

    def write(self, create):
        """Writes item_tokens.txt, tokens.txt and tokens.json. create: opens the file of a name for
        bytes, as a context manager."""
        ids, begin = list(map(str, self.ids.tolist())), 0
        with create(ITEM_TOKENS_FILE) as f:
            for length in self.lengths.tolist():
                f.write(" ".join(ids[begin:begin + length]).encode() + b"\n")
                begin += length
        with create(TOKENS_FILE) as f:
            f.writelines(token.encode() + b"\n" for token in self.tokens)
        with create(CUTTING_FILE) as f:
            cutting = {"version": VERSION, "chinese_cutter": self.cutter}
            f.write(json.dumps(cutting).encode() + b"\n")


def make_bags(items: Iterable[ItemText], in_training, min_count: int,
              tokenizer: Tokenizer) -> ItemBags:
    """Tokenizes all items and gives ids to the tokens that occur in enough items of training: the
    vector of any other token would stay random.

    in_training: <bool>[V], which items occur in training
    min_count: in how many of those a token must occur
    """
    # Tokens are numbered as they appear first: 4 bytes a token in memory, and no list an item.
    numbers, flat, lengths = {}, array.array("i"), array.array("q")
    for item in items:
        bag = tokenizer.bag(*item)
        flat.extend([numbers.setdefault(token, len(numbers)) for token in bag])
        lengths.append(len(bag))
    flat, lengths = np.array(flat, np.int32), np.array(lengths, np.int64)
    counts = np.bincount(flat[np.repeat(in_training, lengths)], minlength=len(numbers))
    tokens = list(numbers)
    frequent = np.flatnonzero(counts >= min_count).tolist()
    frequent.sort(key=lambda number: (-counts[number], tokens[number]))
    id_of = np.full(len(numbers), -1, np.int32)
    id_of[frequent] = np.arange(len(frequent), dtype=np.int32)
    ids = id_of[flat]
    item = np.repeat(np.arange(len(lengths)), lengths)[ids >= 0]
    return ItemBags([tokens[number] for number in frequent], ids[ids >= 0],
                    np.bincount(item, minlength=len(lengths)), tokenizer.cutter)


# --- a vocabulary of tokens -----------------------------------------------------------------------


class TokenVocabulary:
    """Encodes items as the preprocessing did.

    tokens: <str>[T], token i is the one with id i
    tokenizer: cuts text as it was cut for the vocabulary
    """

    def __init__(self, tokens, tokenizer):
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.ids = {token: number for number, token in enumerate(tokens)}

    def __len__(self):
        return len(self.tokens)

    @classmethod
    def load(cls, path, cutter=None) -> TokenVocabulary:
        """Reads tokens.txt (line i is token i) and, beside it, tokens.json (how Chinese was cut).

        cutter: one of CUTTERS, needed where there is no tokens.json; None for what that says
        Raises DataError, also where the two contradict each other.
        """
        return cls(read_tokens(path), Tokenizer(_read_cutter(path, cutter)))

    def encode(self, text, fields: Mapping = {}) -> np.ndarray:
        """<int64>[tokens]: the ids of the distinct words and fields of an item, in order, without
        those that the vocabulary lacks."""
        ids = [self.ids[token] for token in self.tokenizer.bag(text, fields) if token in self.ids]
        return np.array(ids, np.int64)


def read_tokens(path) -> list[str]:
    """The lines of tokens.txt: line i is token i. Raises DataError."""
    numbers = {}
    lines = numbered_lines(path, "it holds the tokens, a line each; preprocess.py writes it where "
                                 "items have text")
    for line, token in lines:
        if not token.strip():
            raise DataError(f"{path}, line {line}: an empty line; each line is a token, and its "
                            "place is the token's id")
        if token in numbers:
            raise DataError(f"{path}, line {line}: the token {token[:40]!r} is in line "
                            f"{numbers[token] + 1} as well; each has one id")
        numbers[token] = line - 1
    if not numbers:
        raise DataError(f"{path} holds no tokens")
    return list(numbers)


def _read_cutter(tokens_path, cutter):
    """How Chinese was cut for a tokens.txt. cutter: as of TokenVocabulary.load"""
    path = os.path.join(os.path.dirname(tokens_path), CUTTING_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            cutting = json.load(f)
        recorded, version = cutting["chinese_cutter"], cutting["version"]
    except FileNotFoundError as error:
        if cutter is None:
            raise DataError(f"there is no {path}, which says how Chinese was cut; preprocess.py "
                            "writes it together with tokens.txt: copy both") from error
        return cutter
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: run preprocess.py again") from error
    if recorded not in CUTTERS:
        raise DataError(f"{path}: unknown way to cut Chinese: {str(recorded)[:40]!r}; there are "
                        + " and ".join(CUTTERS))
    if version != VERSION:
        raise DataError(f"{path}: the tokens were made by version {str(version)[:40]} of the rules "
                        f"for words, these are version {VERSION}: run preprocess.py again")
    if cutter not in (None, recorded):
        raise DataError(f"{path}: Chinese was cut by {recorded}, and {cutter} is asked for")
    return recorded

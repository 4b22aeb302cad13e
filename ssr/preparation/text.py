"""Item text and fields -> words -> token ids.

    tokenizer = Tokenizer()
    tokenizer.bag("Kirby’s Dream Land", {"platform": "Game Boy"})
    ["kirby", "dream", "land", "platform:game_boy"]

    vocabulary = TokenVocabulary.load("tokens.txt")
    vocabulary.encode("Dream Land 2")    # <int64>[tokens]: the ids of the words it knows

A word is a run of letters, marks and digits, in lower case and normalised (NFKC); apostrophes
between letters belong to it, a possessive 's does not. Writing without spaces is cut further:
Chinese into words with jieba where that is installed, into pairs of neighbours otherwise; kana,
Thai, Lao, Khmer and Burmese into pairs always. What is served must be cut as what was trained on
was, so the way of cutting has a name, which tokens.json keeps beside tokens.txt.
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

from ssr.errors import DataError
from ssr.files import numbered_lines, shown_name

VERSION = 1  # of the rules below: other rules, other words, and a vocabulary of other ids
CUTTERS = ("jieba", "bigrams")

ITEM_TOKENS_FILE, TOKENS_FILE, CUTTING_FILE = "item_tokens.txt", "tokens.txt", "tokens.json"
TOKEN_FILES = (ITEM_TOKENS_FILE, TOKENS_FILE, CUTTING_FILE)

_ASCII_WORD = re.compile("[a-z0-9]+(?:'(?=[a-z])[a-z0-9]+)*")
_POSSESSIVE = re.compile("(?:'s)+$")
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
    """How Chinese is cut where nobody says otherwise: "jieba" if it is installed, "bigrams" if
    not."""
    return "bigrams" if _import_jieba() is None else "jieba"


def _import_jieba():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its age
            import jieba
    except ImportError:
        return None
    jieba.setLogLevel(logging.WARNING)  # it reports the loading of its dictionary otherwise
    return jieba


class Tokenizer:
    """Cuts text into words. Raises DataError for a cutter that is not there.

    cutter: "jieba" or "bigrams", how runs of Chinese are cut; None for chinese_cutter()
    """

    def __init__(self, cutter=None):
        self.cutter = cutter or chinese_cutter()
        if self.cutter not in CUTTERS:
            raise DataError(f"no way to cut Chinese is named {cutter!r}; there are "
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
        if "&" in text:
            text = html.unescape(text)  # titles that come from web pages hold &amp; and the like
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
        """The different words of a text, then those of the fields, in order, each once."""
        tokens = dict.fromkeys(self.words(text))
        if fields:
            tokens.update(dict.fromkeys(field_tokens(fields)))
        return list(tokens)


def field_tokens(fields: Mapping) -> list[str]:
    """{name: value or list of values} -> a token "name:value" for each value, in lower case, with
    _ for white space. A value that is None or blank is none. Raises DataError."""
    tokens = []
    for name, values in fields.items():
        if not name.strip() or ":" in name:
            raise DataError(f"{name!r} is no name of a field: it must not be empty, nor hold a "
                            "colon")
        for value in values if isinstance(values, (list, tuple)) else [values]:
            value = "" if value is None else "_".join(_fold(str(value)).split())
            if value:
                tokens.append("_".join(_fold(name).split()) + ":" + value)
    return tokens


def _fold(text):
    """In lower case, normalised, without invisible characters, with ' for any apostrophe."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text.translate(_rules().replaced))
    # Folding makes Cherokee upper case, hence lower(); what it makes of others may have to be
    # composed again.
    return unicodedata.normalize("NFKC", text.casefold().lower())


def _bigrams(run):
    """Each two neighbours, marks with the letter they belong to; one alone is itself."""
    letters = _rules().letter.findall(run)
    return [a + b for a, b in zip(letters, letters[1:])] or letters


class _Rules(NamedTuple):
    """run: a regular expression that finds words (group word), Chinese (han) and other writing
    without spaces (no group); letter: one that finds a letter with its marks; replaced: for
    str.translate"""

    run: re.Pattern
    letter: re.Pattern
    replaced: dict


@functools.lru_cache(maxsize=None)
def _rules():
    """Built from the Unicode tables when the first text that is not ASCII comes: re knows letters
    and digits (\\w), but no marks."""
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
    """Code points as what stands between the brackets of a regular expression."""
    points = np.array(sorted(points))
    breaks = np.flatnonzero(np.diff(points) > 1)
    begins, ends = points[np.r_[0, breaks + 1]], points[np.r_[breaks, len(points) - 1]]
    return "".join(f"{chr(begin)}-{chr(end)}" for begin, end in zip(begins, ends))


# --- the text of all items ------------------------------------------------------------------------


def read_items(path) -> dict[str, ItemText]:
    """Reads a line an item: raw id, tab, text, then any number of columns `field:value`, without a
    header. A field may come several times. path: - for standard input. Returns {raw id: ItemText}
    in file order. Raises DataError."""
    items = {}
    lines = numbered_lines(path, "it holds the items, a line each: raw id, tab, text")
    path = shown_name(path)
    for line, content in lines:
        if not content.strip():
            continue
        raw, *columns = content.split("\t")
        if not raw or "\r" in raw:
            raise DataError(f"{path}, line {line}: {raw!r} is no raw id; a line is raw id, tab, "
                            "text")
        if raw in items:
            raise DataError(f"{path}, line {line}: item {raw!r} has a line before this one: "
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

    tokens: <str>[T], token i is the one with id i; the commonest come first
    ids: <int32>[n], token ids, the bags of all items end to end, each in the order of its text
    lengths: <int64>[V], tokens of each item
    cutter: how Chinese was cut
    """

    tokens: list
    ids: np.ndarray
    lengths: np.ndarray
    cutter: str

    def write(self, create):
        """item_tokens.txt, tokens.txt and tokens.json. create: name -> a file open for bytes, as
        a context manager."""
        ids, at = list(map(str, self.ids.tolist())), 0
        with create(ITEM_TOKENS_FILE) as f:
            for length in self.lengths.tolist():
                f.write(" ".join(ids[at:at + length]).encode() + b"\n")
                at += length
        with create(TOKENS_FILE) as f:
            f.writelines(token.encode() + b"\n" for token in self.tokens)
        with create(CUTTING_FILE) as f:
            cutting = {"version": VERSION, "chinese_cutter": self.cutter}
            f.write(json.dumps(cutting).encode() + b"\n")


def make_bags(items: Iterable[ItemText], counted, min_count: int, tokenizer: Tokenizer) -> ItemBags:
    """Tokenizes all items and gives ids to the tokens that occur in enough of them.

    counted: <bool>[V], the items that count: those of training, since a word that only others
        have would keep its random vector
    min_count: in how many of them a token must occur
    """
    # Numbers in the order of appearance first: 4 bytes a token in memory, and no list an item.
    numbers, flat, lengths = {}, array.array("i"), array.array("q")
    for item in items:
        bag = tokenizer.bag(*item)
        flat.extend([numbers.setdefault(token, len(numbers)) for token in bag])
        lengths.append(len(bag))
    flat, lengths = np.array(flat, np.int32), np.array(lengths, np.int64)
    counts = np.bincount(flat[np.repeat(counted, lengths)], minlength=len(numbers))
    tokens = list(numbers)
    kept = np.flatnonzero(counts >= min_count).tolist()
    kept.sort(key=lambda number: (-counts[number], tokens[number]))
    new_id = np.full(len(numbers), -1, np.int32)
    new_id[kept] = np.arange(len(kept), dtype=np.int32)
    ids = new_id[flat]
    item = np.repeat(np.arange(len(lengths)), lengths)[ids >= 0]
    return ItemBags([tokens[number] for number in kept], ids[ids >= 0],
                    np.bincount(item, minlength=len(lengths)), tokenizer.cutter)


# --- a vocabulary of tokens -----------------------------------------------------------------------


class TokenVocabulary:
    """Encodes items as the preprocessing did.

    tokens: <str>[T], token i is the one with id i
    tokenizer: cuts Chinese in the way that the vocabulary was made
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

        cutter: the name that it must have been cut by, None for whatever tokens.json says; needed
            where there is no such file
        Raises DataError, also where the two contradict each other.
        """
        return cls(read_tokens(path), Tokenizer(_read_cutter(path, cutter)))

    def encode(self, text, fields: Mapping = {}) -> np.ndarray:
        """<int64>[tokens]: the ids of the different words and fields of an item, in order; those
        that are not in the vocabulary are left out."""
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
            raise DataError(f"{path}, line {line}: the token {token[:40]!r} stands in line "
                            f"{numbers[token] + 1} too; each has one id")
        numbers[token] = line - 1
    if not numbers:
        raise DataError(f"{path} holds no tokens")
    return list(numbers)


def _read_cutter(tokens_path, cutter):
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
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: run preprocess.py again") from error
    if recorded not in CUTTERS:
        raise DataError(f"{path}: no way to cut Chinese is named {recorded!r}; there are "
                        + " and ".join(CUTTERS))
    if version != VERSION:
        raise DataError(f"{path}: the tokens were made by version {version} of the rules for "
                        f"words, these are version {VERSION}: run preprocess.py again")
    if cutter not in (None, recorded):
        raise DataError(f"{path}: Chinese was cut by {recorded}, and {cutter} is asked for")
    return recorded

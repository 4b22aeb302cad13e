"""Words, fields, vocabularies of tokens and the files that hold them."""

import contextlib
import json
import sys
import types

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssr.errors import DataError
from ssr.preparation import text

BIGRAMS = text.Tokenizer("bigrams")
# Letters of all kinds with what stands between and above them, rather than all of Unicode alike.
TEXTS = st.one_of(st.text(max_size=30), st.text(
    "aZs'’ʼ&;:_-. \t\u2028\u200b\u200d\u00ad9½ßİſŉΣςΆe\u0301\u0308\ufe0fЙ"
    "漢字々中国が\u3099カーﾊﾟกำ้ﷺ한\u1161Ꭰꭰ", max_size=30))


@pytest.fixture
def fake_jieba(monkeypatch):
    """A jieba that cuts after each second character, whatever is installed."""
    levels = []
    jieba = types.ModuleType("jieba")
    jieba.lcut = lambda run: [run[i:i + 2] for i in range(0, len(run), 2)]
    jieba.setLogLevel = levels.append
    monkeypatch.setitem(sys.modules, "jieba", jieba)
    return levels


@pytest.fixture
def no_jieba(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, words", [
    ("", ""),
    ("Fire Emblem: The Sacred-Stones", "fire emblem the sacred stones"),
    ("the the The", "the the the"),
    ("Don't stop Rock'n'Roll, ’tis 'quoted'", "don't stop rock'n'roll tis quoted"),
    ("Kirby's, KIRBY’S, Kirbyʼs and the players' 80's", "kirby kirby kirby and the players 80"),
    ("2.4 GHz x2 foo_bar C++", "2 4 ghz x2 foo bar c"),
    ("R&amp;B", "r b"),
    ("ﬁne ＡＢＣ Ⅳ Straße ΟΔΟΣ", "fine abc iv strasse οδοσ"),
    ("cafe\u0301 café", "café café"),
    ("l'équipe de L’Été", "l'équipe de l'été"),
    ("नमस्ते दुनिया", "नमस्ते दुनिया"),
    ("so\u00adft می\u200cخواهم one\u200btwo", "soft میخواهم one two"),
    ("❤\ufe0f 👨‍👩‍👧 — \u0301", ""),
    ("대통령 선거", "대통령 선거"),
    ("央行下调利率", "央行 行下 下调 调利 利率"),
    ("4K电视 and 书", "4k 电视 and 书"),
    ("東京オリンピックで食べる", "東京 オリ リン ンピ ピッ ック で 食 べる"),
    ("ｶﾞﾝﾀﾞﾑ", "ガン ンダ ダム"),
    ("ตั้งใหม่ 25", "ตั้ง งใ ให หม่ 25"),
])
def test_words(line, words):
    assert BIGRAMS.words(line) == words.split()


@settings(deadline=None, max_examples=400)
@given(TEXTS)
@example("a's's").via("a possessive of a possessive")
@example("Σ'Σ'S").via("a final sigma")
def test_words_are_clean_and_stay_what_they_are(line):
    words = BIGRAMS.words(line)
    assert BIGRAMS.words(" ".join(words)) == words
    for word in words:
        assert word and not any(map(str.isspace, word)) and word == word.lower()
        assert ":" not in word  # no word is taken for a field


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_lines_are_cut_apart_and_a_bag_holds_each_word_once(first, second):
    words = BIGRAMS.words(first + "\n" + second)
    if "&" not in first:
        assert words == BIGRAMS.words(first) + BIGRAMS.words(second)
    assert BIGRAMS.bag(first + "\n" + second) == list(dict.fromkeys(words))


def test_fields_are_a_token_each():
    fields = {"Category": "Video  Games", "author": ["Ann", "Bo:b", None, "ann"], "year": 1998,
              "none": None, "blank": " ", "主题": "体育 新闻"}
    tokens = ["category:video_games", "author:ann", "author:bo:b", "year:1998", "主题:体育_新闻"]
    assert BIGRAMS.bag("", fields) == tokens
    assert BIGRAMS.bag("Ann Ann", fields) == ["ann", *tokens]
    for name in ("", " ", "a:b"):
        with pytest.raises(DataError, match="name of a field"):
            BIGRAMS.bag("", {name: "x"})


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_a_field_is_one_clean_token_or_none(name, value):
    name = "f" + name.replace(":", "")
    tokens = text.field_tokens({name: value})
    assert len(tokens) <= 1
    for token in tokens:
        assert not any(map(str.isspace, token)) and token == token.lower()


# --- ways to cut Chinese --------------------------------------------------------------------------


def test_jieba_is_taken_where_it_is_installed(fake_jieba):
    assert text.chinese_cutter() == "jieba" == text.Tokenizer().cutter
    assert fake_jieba and min(fake_jieba) >= 30  # it is told to be quiet
    assert text.Tokenizer().words("央行下调利率 Mars カーン") == ["央行", "下调", "利率", "mars",
                                                          "カー", "ーン"]
    assert text.Tokenizer("bigrams").words("央行下") == ["央行", "行下"]


def test_bigrams_where_it_is_not(no_jieba):
    assert text.chinese_cutter() == "bigrams" == text.Tokenizer().cutter
    with pytest.raises(DataError, match="pip install jieba"):
        text.Tokenizer("jieba")
    with pytest.raises(DataError, match="'knife'"):
        text.Tokenizer("knife")


def test_a_vocabulary_is_cut_as_it_was_made(tmp_path, fake_jieba, monkeypatch):
    def load(*cutter):
        return text.TokenVocabulary.load(str(tmp_path / "tokens.txt"), *cutter)

    (tmp_path / "tokens.txt").write_text("央行\n行下\n", encoding="utf-8")
    with pytest.raises(DataError, match="tokens.json"):
        load()
    assert load("bigrams").encode("央行下调").tolist() == [0, 1]
    write_cutting(tmp_path, "jieba")
    assert load().encode("央行下调").tolist() == [0]
    with pytest.raises(DataError, match="by jieba, and bigrams is asked for"):
        load("bigrams")
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(DataError, match="pip install jieba"):
        load()
    for content, words in [
        ("{", "damaged"), ("[]", "damaged"), ("{}", "damaged"),
        ('{"version": 99, "chinese_cutter": "jieba"}', "version 99"),
        ('{"version": 1, "chinese_cutter": "knife"}', "'knife'"),
    ]:
        (tmp_path / "tokens.json").write_text(content)
        with pytest.raises(DataError, match=words):
            load()


def write_cutting(folder, cutter):
    (folder / "tokens.json").write_text(json.dumps({"version": text.VERSION,
                                                    "chinese_cutter": cutter}))


# --- items ----------------------------------------------------------------------------------------


def test_read_items(tmp_path):
    path = tmp_path / "items.tsv"
    content = "\ufeff7\tA title\r\n\nx y\t\tcat:a:b\t\tby:Ann\tby:Bob\r\n8\n9\t 书 \n"
    path.write_bytes(content.encode())
    assert text.read_items(str(path)) == {
        "7": ("A title", {}), "x y": ("", {"cat": ["a:b"], "by": ["Ann", "Bob"]}),
        "8": ("", {}), "9": (" 书 ", {})}


@pytest.mark.parametrize("content, words", [
    (b"1\ta\n2\tb\xe9\n", ["line 2", "UTF-8"]),
    (b"1\ta\n\n1\tb\n", ["line 3", "'1'"]),
    (b"1\ta\n\tb\n", ["line 2", "raw id"]),
    (b"1\ta\tsport\n", ["line 1", "'sport'", "field:value"]),
    (b"1\ta\tby:\n", ["line 1", "'by:'"]),
    (None, ["cannot read", "raw id, tab, text"]),
])
def test_errors_in_items(tmp_path, content, words):
    path = tmp_path / "items.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        text.read_items(str(path))
    assert str(path) in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_bags_of_all_items():
    items = [text.ItemText("b a b"), text.ItemText(), text.ItemText("c a", {"f": "x"}),
             text.ItemText("c c"), text.ItemText("b d", {"f": "X"}), text.ItemText("d d e")]
    counted = np.array([1, 1, 1, 1, 1, 0], bool)
    bags = text.make_bags(items, counted, 2, BIGRAMS)
    assert bags.tokens == ["a", "b", "c", "f:x"]  # the last item does not make d common
    assert bags.ids.tolist() == [1, 0, 2, 0, 3, 2, 1, 3]
    assert bags.lengths.tolist() == [2, 0, 3, 1, 2, 0]
    bags = text.make_bags(items, counted, 1, BIGRAMS)
    assert bags.tokens == ["a", "b", "c", "f:x", "d"]
    assert bags.lengths.tolist() == [2, 0, 3, 1, 3, 1]
    nothing = text.make_bags(items, counted, 9, BIGRAMS)
    assert nothing.tokens == [] and nothing.lengths.tolist() == [0] * 6 and not len(nothing.ids)


@settings(deadline=None, max_examples=50)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_a_vocabulary_encodes_what_was_written(tmp_path_factory, titles):
    folder = tmp_path_factory.mktemp("tokens")
    bags = text.make_bags(map(text.ItemText, titles), np.ones(len(titles), bool), 1, BIGRAMS)
    bags.write(lambda name: contextlib.closing(open(folder / name, "wb")))
    if not bags.tokens:
        return
    vocabulary = text.TokenVocabulary.load(str(folder / "tokens.txt"))
    assert vocabulary.tokens == bags.tokens and len(vocabulary) == len(bags.tokens)
    lines = (folder / "item_tokens.txt").read_text().splitlines()
    for title, line in zip(titles, lines):
        encoded = vocabulary.encode(title + " unheardof")
        assert encoded.dtype == np.int64 and encoded.tolist() == list(map(int, line.split()))


@pytest.mark.parametrize("content, words", [
    (b"", ["holds no tokens"]),
    (b"a\n\nb\n", ["line 2", "empty"]),
    (b"a\nb\r\na\n", ["line 3", "'a'", "line 1"]),
    (b"a\n\xff\n", ["line 2", "UTF-8"]),
    (None, ["cannot read"]),
])
def test_errors_in_tokens(tmp_path, content, words):
    path = tmp_path / "tokens.txt"
    if content is not None:
        path.write_bytes(content)
    write_cutting(tmp_path, "bigrams")
    with pytest.raises(DataError) as error:
        text.TokenVocabulary.load(str(path))
    assert str(path) in str(error.value)
    assert all(word in str(error.value) for word in words), error.value

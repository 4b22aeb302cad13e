"""preprocess.py on the layouts of MIND, Adressa and G1, against plain re-implementations of what is
made of them. All files are made here."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import random
import sys
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, mutated

import preprocess
from ssr.data_directory import DataDirectory
from ssr.preparation import adressa

NOON = 1_573_560_000  # 12 November 2019, 12:00 UTC
DAY = 86_400
BEHAVIORS = ("1\tU1\t11/12/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0\n"
             "2\tU2\t11/12/2019 12:00:00 PM\t\tN2-1 N5-0 N1-1\n"
             "3\tU1\t11/11/2019 11:59:59 PM\tN1\tN5-1 N3-0\n"
             "4\tU1\t11/14/2019 12:00:01 AM\tN1 N2\tN2-1 N6-0\n"
             "5\tU3\t11/14/2019 1:00:00 AM\tN4\tN7-0 N2-0\n")
NEWS = ("N1\tsports\tsoccer\tThe \"final\"\tGoals &amp; cards\thttps://x\t[]\t[]\n"
        "N2\tnews\tworld\tElections\t\thttps://x\t[]\t[]\n"
        "N9\tnews\tworld\tNobody read this\t\thttps://x\t[]\t[]\n")
VIEWS = [
    {"userId": "u1", "time": NOON, "sessionStart": True, "url": "http://adressa.no"},
    {"userId": "u1", "time": NOON + 9, "id": "a", "title": "Fyrverkeri", "category1": "nyheter|by",
     "profile": [{"item": "0", "groups": [{"count": 1, "group": "x", "weight": 1.0}]}]},
    {"userId": "u2", "time": NOON + 9, "id": "b", "title": "Kamp", "category1": "sport"},
    {"userId": "u1", "time": NOON + 30, "id": "b", "title": "Kampen", "sessionStop": True},
    {"userId": "u1", "time": NOON + 31, "id": "b"},
    {"userId": "u2", "time": NOON + 1809, "id": "a"},
    {"userId": "u1", "time": NOON + 1831, "id": "a", "sessionStop": False},
    {"userId": "u2", "time": NOON + 3610, "id": "b"},
    {"userId": "u2", "time": NOON + 3611, "id": "a"},
]
HOUR = ("user_id,session_id,session_start,session_size,click_article_id,click_timestamp,"
        "click_environment,click_deviceGroup\n"
        f"0,11,{NOON}000,2,157541,{NOON}999,4,3\n0,11,{NOON}000,2,68866,{NOON + 30}000,4,3\n"
        f"1,12,{NOON}000,2,68866,{NOON + 5}000,4,1\n")
NEXT_HOUR = HOUR.splitlines()[0] + f"\n1,12,{NOON}000,2,157541,{NOON + 3600}000,4,1\n"
ARTICLES = ("article_id,category_id,created_at_ts,publisher_id,words_count\n"
            "157541,281,1506826800000,0,200\n68866,136,1506826800000,7,150\n5,1,1,0,9\n")


@pytest.fixture(scope="module", autouse=True)
def command_line():
    """Messages begin with the name of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["preprocess.py"])
        yield


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def run(*command):
    """(exit code, standard error) of preprocess.py."""
    with contextlib.redirect_stderr(io.StringIO()) as err, \
            contextlib.redirect_stdout(io.StringIO()):
        code = preprocess.main([str(word) for word in command])
    return code, err.getvalue()


def error(*command):
    code, err = run(*command)
    assert code == 1 and err.startswith("preprocess.py: error: ") and err.count("\n") == 1, err
    assert len(err) < 1000
    return err


def usage_error(capsys, *command):
    with pytest.raises(SystemExit) as exit_:
        preprocess.main([str(word) for word in command])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def raw_ids(out):
    return [line.split("\t")[0] for line in (out / "items.txt").read_text().splitlines()]


def sessions(out, part):
    """The written sessions with raw ids."""
    names = raw_ids(out)
    path = out / f"{part}_data/sessions.txt"
    return [[names[int(item)] for item in line.split()] for line in path.read_text().splitlines()]


def times(out, part):
    path = out / f"{part}_times/sessions.txt"
    return [list(map(int, line.split())) for line in path.read_text().splitlines()]


def shown(out, part):
    """The written impressions with raw ids: (time, history, [(raw id, label)])."""
    names, lists = raw_ids(out), []
    for line in (out / f"{part}_impressions/impressions.txt").read_text().splitlines():
        time, history, items = line.split("\t")
        pairs = [item.split("-") for item in items.split(" ")]
        lists.append((int(time), [names[int(item)] for item in history.split()],
                      [(names[int(item)], int(label)) for item, label in pairs]))
    return lists


def tokens(out):
    """{raw id: {tokens}} of the written items."""
    names = (out / "tokens.txt").read_text().splitlines()
    lines = (out / "item_tokens.txt").read_text().split("\n")
    return {raw: {names[int(token)] for token in line.split()}
            for raw, line in zip(raw_ids(out), lines)}


# --- MIND -----------------------------------------------------------------------------------------


def mind(folder, *flags):
    return ["mind", "--behaviors", folder / "behaviors.tsv", "--news", folder / "news.tsv",
            "--output_dir", folder / "out", "--min_token_count", 1, *flags]


@pytest.fixture
def mind_folder(tmp_path):
    write(tmp_path / "behaviors.tsv", BEHAVIORS)
    write(tmp_path / "news.tsv", NEWS)
    return tmp_path


def test_mind_a_user_is_one_session_of_a_part(mind_folder):
    """The history of the earliest impression, then the clicks in order of time; what is at most a
    day older than the newest impression is the test."""
    assert run(*mind(mind_folder)) == (0, "")
    out = mind_folder / "out"
    assert sessions(out, "train") == [["N1", "N5", "N3"], ["N2", "N1"]]
    assert sessions(out, "test") == [["N1", "N2", "N2"]]  # U3 has clicked nothing but the history
    assert shown(out, "train") == [
        (NOON - 3 * 3600 + 358, ["N1", "N2"], [("N3", 1), ("N4", 0)]),
        (NOON, [], [("N2", 1), ("N5", 0), ("N1", 1)]),
        (NOON - 12 * 3600 - 1, ["N1"], [("N5", 1), ("N3", 0)])]
    assert shown(out, "test") == [
        (NOON + 36 * 3600 + 1, ["N1", "N2"], [("N2", 1), ("N6", 0)]),
        (NOON + 37 * 3600, ["N4"], [("N7", 0), ("N2", 0)])]
    # What was only shown comes behind what occurs in sessions.
    assert raw_ids(out) == ["N1", "N5", "N3", "N2", "N4", "N6", "N7"]
    description = DataDirectory.open(str(out)).description
    assert description.layout == "mind" and description.items == 7
    assert description.parts["train"] == (2, 5)


def test_mind_title_abstract_and_categories_become_tokens(mind_folder):
    assert run(*mind(mind_folder, "--all_items"))[0] == 0
    of = tokens(mind_folder / "out")
    assert of["N1"] == {"the", "final", "goals", "cards", "category:sports", "subcategory:soccer"}
    assert of["N2"] == {"elections", "category:news", "subcategory:world"}
    assert of["N3"] == set() and raw_ids(mind_folder / "out")[-1] == "N9"
    assert (mind_folder / "out/items.txt").read_text().startswith('N1\tThe "final" Goals &amp; ca')


def test_mind_parts_from_files_of_their_own(mind_folder):
    lines = BEHAVIORS.splitlines(keepends=True)
    write(mind_folder / "behaviors.tsv", lines[0])
    write(mind_folder / "more.tsv", lines[2])
    write(mind_folder / "valid.tsv", lines[1])
    write(mind_folder / "test.tsv", lines[3])
    command = mind(mind_folder, "--valid_behaviors", mind_folder / "valid.tsv",
                   "--test_behaviors", mind_folder / "test.tsv")
    command.insert(3, mind_folder / "more.tsv")
    assert run(*command)[0] == 0
    out = mind_folder / "out"
    assert sessions(out, "train") == [["N1", "N5", "N3"]]
    assert sessions(out, "valid") == [["N2", "N1"]] and len(shown(out, "valid")) == 1
    assert sessions(out, "test") == [["N1", "N2", "N2"]] and len(shown(out, "test")) == 1
    # The next run has no such parts: nothing of them is left.
    assert run(*mind(mind_folder, "--test_days", 0))[0] == 0
    assert {path.parent.name for path in out.glob("*/*")} == {"train_data", "train_impressions"}
    DataDirectory.open(str(out))


def test_mind_exactly_a_period_old_is_part_of_it(mind_folder):
    write(mind_folder / "behaviors.tsv", "".join(
        f"1\tU1\t11/{day}/2019 9:00:0{second} AM\tN1\tN2-1\n"
        for day, second in ((12, 0), (12, 1), (13, 1))))
    assert run(*mind(mind_folder))[0] == 0
    assert [len(shown(mind_folder / "out", part)) for part in ("train", "test")] == [1, 2]


def test_mind_against_a_plain_reimplementation(tmp_path):
    random.seed(3)
    log = []
    for _ in range(400):
        time = NOON + random.randrange(6 * DAY)
        items = random.sample(range(40), 5)
        log.append((f"U{random.randrange(60)}", time,
                    [f"N{random.randrange(40)}" for _ in range(random.randrange(4))],
                    [(f"N{item}", random.randrange(2)) for item in items]))
    moments = [datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=row[1]) for row in log]
    write(tmp_path / "behaviors.tsv", "".join(
        f"{number}\t{user}\t{moment.strftime('%m/%d/%Y %I:%M:%S %p')}\t{' '.join(history)}\t"
        f"{' '.join(f'{item}-{label}' for item, label in items)}\n"
        for number, ((user, _, history, items), moment) in enumerate(zip(log, moments))))
    write(tmp_path / "news.tsv", NEWS)
    assert run(*mind(tmp_path, "--test_days", 1.5, "--valid_days", 1))[0] == 0

    begin_test = max(row[1] for row in log) - 1.5 * DAY
    begin_valid = max(row[1] for row in log if row[1] < begin_test) - DAY
    expected = {"train": [row for row in log if row[1] < begin_valid],
                "valid": [row for row in log if begin_valid <= row[1] < begin_test],
                "test": [row for row in log if row[1] >= begin_test]}
    for part, rows in expected.items():
        assert shown(tmp_path / "out", part) == [row[1:] for row in rows]
        of_users = []
        for user in dict.fromkeys(row[0] for row in rows):
            mine = sorted((row for row in rows if row[0] == user), key=lambda row: row[1])
            clicks = [item for row in mine for item, label in row[3] if label]
            of_users.append(mine[0][2] + clicks)
        assert sessions(tmp_path / "out", part) == [row for row in of_users if len(row) > 1]


def test_mind_continues_an_earlier_run(mind_folder):
    assert run(*mind(mind_folder))[0] == 0
    (mind_folder / "out").rename(mind_folder / "one")
    before = raw_ids(mind_folder / "one")
    write(mind_folder / "behaviors.tsv", "1\tU1\t11/12/2019 9:05:58 AM\tN8 N2\tN3-1 N4-0\n")
    assert run(*mind(mind_folder, "--test_days", 0, "--continue_from", mind_folder / "one"))[0] == 0
    assert raw_ids(mind_folder / "out") == [*before, "N8"]
    assert sessions(mind_folder / "out", "train") == [["N8", "N2", "N3"]]


@pytest.mark.parametrize("line, words", [
    ("6\tU1\t11/12/2019 9:05:58 AM\tN1", "line 6: 4 fields where 5 are expected"),
    ("6\tU1\t2019-11-12\tN1\tN1-0", "line 6: '2019-11-12' is not a time"),
    ("6\tU1\t13/12/2019 9:05:58 AM\tN1\tN1-0", "is not a time"),
    ("6\tU1\t02/29/2019 9:05:58 AM\tN1\tN1-0", "is not a time"),
    ("6\tU1\t11/12/2019 13:05:58 PM\tN1\tN1-0", "is not a time"),
    ("6\tU1\t11/12/1969 9:05:58 AM\tN1\tN1-0", "is not a time"),
    ("6\tU1\t11/12/2019 9:05:58 AM\tN1\tN1-0 N2", "line 6: 'N2' has no label"),
    ("6\tU1\t11/12/2019 9:05:58 AM\tN1\tN1-2", "line 6: 'N1-2' has no label"),
    ("6\tU1\t11/12/2019 9:05:58 AM\tN1\t-1", "line 6: '-1' has no label"),
    ("6\tU1\t11/12/2019 9:05:58 AM\tN1\t", "line 6: the impression shows nothing"),
])
def test_mind_errors_of_behaviors(mind_folder, line, words):
    write(mind_folder / "behaviors.tsv", BEHAVIORS + line)
    message = error(*mind(mind_folder))
    assert "behaviors.tsv" in message and words in message
    assert not (mind_folder / "out").exists()


@pytest.mark.parametrize("line, words", [
    ("N7\tnews\tworld\tTitle\n", "line 4: 4 fields where 8 are expected"),
    ("\tnews\tworld\tTitle\t\t\t\t\n", "line 4: '' cannot be an id"),
    ("N 7\tnews\tworld\tTitle\t\t\t\t\n", "line 4: 'N 7' cannot be an id"),
    ("N1\tnews\tworld\tTitle\t\t\t\t\n", "line 4: the article 'N1' has a line before this one"),
])
def test_mind_errors_of_news(mind_folder, line, words):
    write(mind_folder / "news.tsv", NEWS + line)
    message = error(*mind(mind_folder))
    assert "news.tsv" in message and words in message


def test_mind_what_does_not_go_together(mind_folder, capsys):
    assert "--test_days" in usage_error(capsys, *mind(
        mind_folder, "--test_behaviors", mind_folder / "behaviors.tsv", "--test_days", 2))
    message = error(*mind(mind_folder, "--test_days", 30))
    assert "nothing is left to train on" in message and "--test_days 30" in message
    write(mind_folder / "behaviors.tsv", "")
    assert "nothing is left to train on" in error(*mind(mind_folder))
    write(mind_folder / "behaviors.tsv", "1\tU1\t11/12/2019 9:05:58 AM\t\tN1-1\n")
    assert "no user has 2 clicks" in error(*mind(mind_folder, "--test_days", 0))


# --- Adressa --------------------------------------------------------------------------------------


def lines_of(views):
    return "".join(json.dumps(view) + "\n" for view in views)


def adressa_command(folder, *flags):
    return ["adressa", "--input", folder / "views", "--output_dir", folder / "out", *flags,
            "--min_item_support", 1, "--min_token_count", 1]


TEST_OF_VIEWS = ("--test_days", 0.01)  # 864 seconds


def test_adressa_sessions_begin_and_end_as_the_log_says(tmp_path):
    """With a page view that starts or stops one, and after more than half an hour of silence; page
    views without an article count as being there."""
    write(tmp_path / "views", lines_of(VIEWS))
    assert run(*adressa_command(tmp_path, *TEST_OF_VIEWS)) == (0, "")
    out = tmp_path / "out"
    assert sessions(out, "train") == [["a", "b"], ["b", "a"], ["b", "a"]]
    assert times(out, "train") == [[NOON + 9, NOON + 30], [NOON + 9, NOON + 1809],
                                   [NOON + 31, NOON + 1831]]
    assert sessions(out, "test") == [["b", "a"]]
    assert DataDirectory.open(str(out)).description.layout == "adressa"
    assert run(*adressa_command(tmp_path, *TEST_OF_VIEWS, "--session_gap", 29))[0] == 0
    assert sessions(out, "train") == [["a", "b"]]


def test_adressa_the_newest_title_and_category_count(tmp_path):
    write(tmp_path / "views", lines_of(VIEWS))
    assert run(*adressa_command(tmp_path, *TEST_OF_VIEWS))[0] == 0
    assert tokens(tmp_path / "out") == {
        "a": {"fyrverkeri", "category:nyheter", "subcategory:by"},
        "b": {"kampen", "category:sport"}}


def test_adressa_a_directory_of_days_in_small_blocks_is_the_same(tmp_path, monkeypatch):
    write(tmp_path / "views", lines_of(VIEWS))
    assert run(*adressa_command(tmp_path, *TEST_OF_VIEWS))[0] == 0
    (tmp_path / "out").rename(tmp_path / "one")
    (tmp_path / "views").unlink()
    write(tmp_path / "views/20170101", lines_of(VIEWS[:4]) + "\n")
    content = b"\xef\xbb\xbf" + lines_of(VIEWS[4:]).encode()
    write(tmp_path / "views/20170102", gzip.compress(content))
    write(tmp_path / "views/.hidden", "nonsense")
    monkeypatch.setattr(adressa, "BLOCK_BYTES", 100)
    assert run(*adressa_command(tmp_path, *TEST_OF_VIEWS))[0] == 0
    for name in DataDirectory.open(str(tmp_path / "one")).description.files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.booleans(), st.booleans()),
                min_size=1, max_size=12))
def test_sessions_are_cut_as_a_loop_would(views):
    expected, last, count = [None] * len(views), {}, 0
    order = sorted(range(len(views)), key=lambda place: views[place][:2])
    for place in order:
        user, time, starts, _ = views[place]
        before = last.get(user)
        if starts or before is None or views[before][3] or time - views[before][1] > 5:
            count += 1
            expected[place] = count - 1
        else:
            expected[place] = expected[before]
        last[user] = place
    columns = [np.array(column) for column in zip(*views)]
    assert adressa.cut_sessions(*columns, 5).tolist() == expected


@pytest.mark.parametrize("line, words", [
    ('{"userId": "u"', "not a JSON object"),
    ("[1]", "not a JSON object"),
    ('{"time": 5}', "no userId"),
    ('{"userId": "", "time": 5}', "no userId"),
    ('{"userId": "u", "time": "soon"}', "'soon' is not a time"),
    ('{"userId": "u", "time": 1.5}', "'1.5' is not a time"),
    ('{"userId": "u"}', "'None' is not a time"),
    ('{"userId": "u", "time": -1}', "'-1' is not a time"),
    ('{"userId": "u", "time": 1573560000000}', "'1573560000000' is not a time"),
    ('{"userId": "u", "time": 5, "id": "a\\tb"}', "holds a tab"),
    ('{"userId": "u", "time": 5, "sessionStart": "yes"}', "sessionStart is 'yes'"),
    (b'{"userId": "\xff", "time": 5}', "not UTF-8"),
    ("[" * 100_000, "not a JSON object"),
])
def test_adressa_errors_name_file_and_line(tmp_path, monkeypatch, line, words):
    monkeypatch.setattr(adressa, "BLOCK_BYTES", 300)
    line = line if isinstance(line, bytes) else line.encode()
    write(tmp_path / "views", lines_of(VIEWS).encode() + b"\n" + line)
    message = error(*adressa_command(tmp_path))
    assert "views, line 11: " in message and words in message
    assert not (tmp_path / "out").exists()


def test_adressa_without_a_click(tmp_path):
    write(tmp_path / "views", "")
    assert "holds no page views" in error(*adressa_command(tmp_path))
    write(tmp_path / "views", lines_of(VIEWS[:1]))
    assert "holds no clicks" in error(*adressa_command(tmp_path))
    (tmp_path / "views").unlink()
    assert "no such file" in error(*adressa_command(tmp_path)).lower()


# --- G1 -------------------------------------------------------------------------------------------


def g1(folder, *flags):
    return ["g1", "--input", folder / "clicks", "--output_dir", folder / "out", "--test_days", 0.01,
            "--min_item_support", 1, *flags]


@pytest.fixture
def g1_folder(tmp_path):
    write(tmp_path / "clicks/clicks_hour_000.csv", HOUR)
    write(tmp_path / "clicks/clicks_hour_001.csv", NEXT_HOUR)
    write(tmp_path / "clicks/clicks_hour_002.csv", "")
    write(tmp_path / "clicks/readme.md", "nonsense")
    write(tmp_path / "articles_metadata.csv", ARTICLES)
    return tmp_path


def test_g1_sessions_by_their_ids_across_files(g1_folder):
    assert run(*g1(g1_folder)) == (0, "")
    out = g1_folder / "out"
    assert sessions(out, "train") == [["157541", "68866"]]
    assert times(out, "train") == [[NOON, NOON + 30]]
    assert sessions(out, "test") == [["68866", "157541"]]
    assert times(out, "test") == [[NOON + 5, NOON + 3600]]
    assert DataDirectory.open(str(out)).description.layout == "g1"
    assert not (out / "tokens.txt").exists()


def test_g1_categories_and_publishers_are_fields(g1_folder, capsys):
    articles = ("--articles", g1_folder / "articles_metadata.csv")
    assert run(*g1(g1_folder, *articles, "--min_token_count", 1))[0] == 0
    assert tokens(g1_folder / "out") == {"157541": {"category:281", "publisher:0"},
                                         "68866": {"category:136", "publisher:7"}}
    assert "--min_token_count" in usage_error(capsys, *g1(g1_folder, "--min_token_count", 1))


def pickled(path, value):
    path.write_bytes(pickle.dumps(value, protocol=3))
    return path


def test_g1_embeddings_become_item_vectors(g1_folder):
    """In row i that of item i, zeros for an article beyond the file."""
    vectors = np.arange(68867 * 3, dtype=np.float32).reshape(-1, 3)
    path = pickled(g1_folder / "articles_embeddings.pickle", vectors)
    for _ in range(2):  # the second time in place of those of the first
        assert run(*g1(g1_folder, "--embeddings", path)) == (0, "")
    out = g1_folder / "out"
    assert [line.split()[0] for line in (out / "items.txt").read_text().splitlines()] == [
        "157541", "68866"]
    np.testing.assert_array_equal(np.load(out / "item_vectors.npy"), [[0, 0, 0], vectors[68866]])
    assert "item_vectors.npy" in DataDirectory.open(str(out)).description.files
    # Other items beside them would have vectors that are not theirs.
    assert "move it away" in error(*g1(g1_folder))
    assert (out / "item_vectors.npy").exists()


def test_g1_embeddings_run_nothing(g1_folder):
    path = g1_folder / "articles_embeddings.pickle"
    made = g1_folder / "made"

    class Evil:
        def __reduce__(self):
            return open, (str(made), "w")

    for value, words in ((Evil(), "open, which no array needs"), ([1.0], "something else"),
                         (np.array([None]), "no pickle of an array"), (np.ones(3), "float64[3]"),
                         (np.array([[1.0], [np.nan]]), "the vector of article 1 holds")):
        message = error(*g1(g1_folder, "--embeddings", pickled(path, value)))
        assert str(path) in message and words in message
    path.write_bytes(b"nonsense")
    assert "no pickle of an array" in error(*g1(g1_folder, "--embeddings", path))
    assert not made.exists() and not (g1_folder / "out").exists()


@pytest.mark.parametrize("line, words", [
    ("1,12,0,2,5,6,4", "line 5: 7 fields where 8 are expected"),
    ("1,12,0,2,x,6,4,1", "line 5: 'x' in the column 'click_article_id'"),
    ("1,,0,2,5,6,4,1", "line 5: '' in the column 'session_id'"),
    ("1,12,0,2,5,-6,4,1", "line 5: '-6' in the column 'click_timestamp'"),
    ("1,12,0,2,5,123456789012345,4,1", "line 5: '123456789012345' in the column"),
    ("1,12,0,2,1_0,6,4,1", "line 5: '1_0' in the column"),
    ("1,12,0,2,٣,6,4,1", "line 5: '٣' in the column"),
])
def test_g1_errors_name_file_and_line(g1_folder, line, words):
    write(g1_folder / "clicks/clicks_hour_000.csv", HOUR + line)
    message = error(*g1(g1_folder))
    assert "clicks_hour_000.csv, " in message and words in message
    assert not (g1_folder / "out").exists()


def test_g1_other_files_are_refused(g1_folder):
    path = write(g1_folder / "other.csv", "a,b\n1,2\n")
    assert "line 1: no column 'article_id'" in error(*g1(g1_folder, "--articles", path))
    assert "no column 'session_id'; the columns are a, b" in error(
        "g1", "--input", path, "--output_dir", g1_folder / "out")
    assert "holds no files whose names end with .csv" in error(
        "g1", "--input", write(g1_folder / "empty/x", "").parent, "--output_dir", g1_folder / "out")


# --- mutations ------------------------------------------------------------------------------------


FILES = {
    "behaviors.tsv": (BEHAVIORS.encode(), mind), "news.tsv": (NEWS.encode(), mind),
    "views": (lines_of(VIEWS).encode(),
              lambda folder: adressa_command(folder, *TEST_OF_VIEWS)),
    "clicks/0.csv": ((HOUR + NEXT_HOUR.splitlines()[1]).encode(),
                     lambda folder: g1(folder, "--articles", folder / "articles.csv",
                                       "--min_token_count", "1")),
    "articles.csv": (ARTICLES.encode(),
                     lambda folder: g1(folder, "--articles", folder / "articles.csv",
                                       "--min_token_count", "1")),
}


@pytest.mark.fuzz
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from([*FILES]), mutations=MUTATIONS)
def test_mutated_files_are_read_or_refused(tmp_path_factory, name, mutations):
    folder = tmp_path_factory.mktemp("mutated", numbered=True)
    for file, (content, _) in FILES.items():
        write(folder / file, mutated(content, mutations) if file == name else content)
    code, err = run(*FILES[name][1](folder))
    if code:
        assert code == 1 and err.startswith("preprocess.py: error: ") and err.count("\n") == 1, err
        assert len(err) < 1000 and not (folder / "out").exists()
    else:
        assert not err
        size = DataDirectory.open(str(folder / "out")).description.items
        ids = (folder / "out/train_data/sessions.txt").read_text().split()
        assert ids and max(map(int, ids)) < size

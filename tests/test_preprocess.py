"""preprocess.py against a plain re-implementation of its rules, its layouts and its errors."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import preprocess
from ssr.data_directory import DataDirectory
from ssr.preparation import output as output_files

DAY = 86_400
START = 1_396_310_400  # 1 April 2014, 00:00 UTC
RSC15 = Path(__file__).parents[2] / "shared/data/rsc15_100k/yoochoose-clicks-100k.dat"
GAMES = RSC15.parents[1] / "games6k"


@pytest.fixture(scope="module", autouse=True)
def command_line():
    """Messages begin with the name of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["preprocess.py"])
        yield


def iso(seconds):
    moment = datetime.fromtimestamp(0, timezone.utc) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def write_yoochoose(path, clicks):
    path.write_text("".join(f"{s},{iso(t)},{i},0\n" for s, i, t in clicks), encoding="utf-8")
    return path


def run_clicks(log, out, *flags, layout="yoochoose"):
    return preprocess.main(["clicks", "--input", str(log), "--layout", layout,
                            "--output_dir", str(out), *map(str, flags)])


def read_parts(out):
    """The written sessions with raw ids, {part: [[raw id, ...], ...]}, and the raw ids."""
    items = (out / "items.txt").read_text(encoding="utf-8").split("\n")
    assert items.pop() == ""
    assert (out / "vocab.txt").read_text().split("\n")[0] == str(len(items))
    parts = {}
    for part in ("train", "valid", "test"):
        folder = out / f"{part}_data"
        if folder.exists():
            assert os.listdir(folder) == ["sessions.txt"]
            lines = (folder / "sessions.txt").read_text(encoding="utf-8").splitlines()
            parts[part] = [[items[int(number)] for number in line.split()] for line in lines]
    return parts, items


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- the rules, in plain Python -------------------------------------------------------------------


def expected_parts(clicks, min_length, min_support, test_days, valid_days, keep_unknown):
    """What the rules make of clicks (session, item, seconds): {part: [[item, ...], ...]}."""
    def long_enough(clicks):
        count = Counter(session for session, _, _ in clicks)
        return [click for click in clicks if count[click[0]] >= min_length]

    def split(clicks, days):
        last = {}
        for session, _, time in clicks:
            last[session] = max(time, last.get(session, time))
        boundary = max(last.values()) - days * DAY
        late = {session for session, time in last.items() if time >= boundary}
        return [c for c in clicks if c[0] not in late], [c for c in clicks if c[0] in late]

    clicks = sorted(clicks, key=lambda click: click[2])  # stable
    clicks = long_enough(clicks)
    support = Counter(item for _, item, _ in clicks)
    clicks = long_enough([click for click in clicks if support[click[1]] >= min_support])
    if not clicks:
        return None
    parts = {}
    for part, days in (("test", test_days), ("valid", valid_days)):
        if days:
            if not clicks:
                return None
            clicks, parts[part] = split(clicks, days)
    known = {item for _, item, _ in clicks}
    if not keep_unknown:
        parts = {part: long_enough([c for c in some if c[1] in known])
                 for part, some in parts.items()}
    parts["train"] = clicks
    if not all(parts.values()):
        return None
    result = {}
    for part, some in parts.items():
        sessions = {}
        for session, item, _ in some:
            sessions.setdefault(session, []).append(item)
        result[part] = list(sessions.values())
    return result


def check_against_rules(folder, clicks, flags):
    log = write_yoochoose(folder / "log.dat", clicks)
    out = folder / "out"
    expected = expected_parts(clicks, *flags)
    names = ("--min_session_length", "--min_item_support", "--test_days", "--valid_days")
    arguments = [text for pair in zip(names, flags) for text in pair]
    status = run_clicks(log, out, *arguments, *["--keep_unknown"] * flags[-1])
    if expected is None:
        assert status == 1
        assert not out.exists()
        return None
    assert status == 0
    parts, items = read_parts(out)
    assert parts == expected
    in_order = [item for part in ("train", "valid", "test")
                for session in parts.get(part, []) for item in session]
    assert items == list(dict.fromkeys(in_order))
    return parts


# Few sessions, items and moments, so that ties, rare items and unknown items are the rule.
LOGS = st.lists(
    st.tuples(
        st.sampled_from(["1", "2", "3", "10", "x", "01"]),
        st.sampled_from(["7", "007", "a b", "é", "8"]),
        st.integers(0, 16).map(lambda quarter: START + quarter * DAY // 4),
    ), min_size=1, max_size=40)
FLAGS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.5, 1, 2]),
                  st.sampled_from([0, 0, 0.5, 1]), st.booleans())


@settings(max_examples=150, deadline=None)
@given(clicks=LOGS, flags=FLAGS)
def test_small_logs_by_the_rules(tmp_path_factory, clicks, flags):
    check_against_rules(tmp_path_factory.mktemp("rules"), clicks, flags)


@pytest.mark.parametrize("valid_days, keep_unknown", [(0, False), (1, False), (1, True)])
def test_a_larger_log_by_the_rules(tmp_path, valid_days, keep_unknown):
    draw = random.Random(3)
    clicks = []
    for session in range(2000):
        begin = START + draw.random() * 6 * DAY
        for _ in range(draw.randint(1, 6)):
            # New items appear every day, as news do.
            item = int(draw.paretovariate(0.7)) % 300 + 40 * int((begin - START) / DAY)
            clicks.append((session, str(item), begin + draw.randint(0, 900)))
    draw.shuffle(clicks)
    # Whole ten minutes: many ties, in a log large enough for a sort to mix them up.
    clicks = [(s, i, t // 600 * 600) for s, i, t in clicks]
    parts = check_against_rules(tmp_path, clicks, (2, 5, 1, valid_days, keep_unknown))
    assert all(len(sessions) > 50 for sessions in parts.values())


# --- order and layouts ----------------------------------------------------------------------------

# (session, item, seconds): two sessions to train on, two to test; session b begins before a.
SMALL = [("a", "7", 10.5), ("b", "9", 5), ("a", "9", 10.25), ("b", "7", 10),
         ("c", "9", 3 * DAY), ("c", "7", 3 * DAY), ("d", "7", 3 * DAY - 9), ("d", "5", 3 * DAY + 9)]
KEEP_ALL = ("--min_item_support", 1)
SMALL_PARTS = {"train": [["9", "7"], ["9", "7"]], "test": [["9", "7"]]}


def table(column=lambda time: time):
    return pl.DataFrame({
        "SessionId": [s for s, _, _ in SMALL], "other": ["x, \"y\"\nz"] * len(SMALL),
        "ItemId": [i for _, i, _ in SMALL], "Time": [column(START + t) for _, _, t in SMALL]})


def offset(seconds):
    zone = timezone(timedelta(hours=5, minutes=30))
    return datetime.fromtimestamp(seconds, zone).isoformat()


TIMES = {
    "seconds": lambda t: t,
    "text of seconds": str,
    "Z": iso,
    "naive": lambda t: iso(t)[:-1],
    "a space": lambda t: iso(t)[:-1].replace("T", " "),
    "an offset": offset,
    "an offset without colon": lambda t: "".join(offset(t).rsplit(":", 1)),
    "mixed": lambda t: iso(t) if t % 2 else offset(t),
}


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("extension", ["csv", "tsv", "txt", "parquet"])
def test_tables(tmp_path, extension, name):
    log = tmp_path / f"log.{extension}"
    if extension == "parquet":
        table(TIMES[name]).write_parquet(log)
    else:
        table(TIMES[name]).write_csv(log, separator="," if extension == "csv" else "\t")
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL, layout="table") == 0
    assert read_parts(tmp_path / "out")[0] == SMALL_PARTS


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Asia/Kolkata"])
def test_parquet_dates_and_integers(tmp_path, unit, zone):
    frame = table(lambda t: datetime.fromtimestamp(t, timezone.utc)).with_columns(
        pl.col("Time").dt.cast_time_unit(unit), pl.col("ItemId").cast(pl.Int32))
    naive = pl.col("Time").dt.replace_time_zone(None)
    frame.with_columns(pl.col("Time").dt.convert_time_zone(zone) if zone else naive) \
        .write_parquet(tmp_path / "log.parquet")
    assert run_clicks(tmp_path / "log.parquet", tmp_path / "out", *KEEP_ALL, layout="table") == 0
    assert read_parts(tmp_path / "out")[0] == SMALL_PARTS


def test_named_columns_and_separator(tmp_path):
    log = tmp_path / "log.dat"
    table().rename({"SessionId": "s", "ItemId": "i", "Time": "t"}).write_csv(log, separator=";")
    flags = ["--session_column", "s", "--item_column", "i", "--time_column", "t",
             "--separator", ";", *KEEP_ALL]
    assert run_clicks(log, tmp_path / "out", *flags, layout="table") == 0
    assert read_parts(tmp_path / "out")[0] == SMALL_PARTS


def test_an_offset_moves_a_click(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("SessionId,ItemId,Time\n1,late,2014-04-01T12:00:00\n"
                   "1,early,2014-04-01T13:00:00+02:00\n2,early,2014-04-09\n2,late,2014-04-09\n")
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL, layout="table") == 0
    assert read_parts(tmp_path / "out")[0]["train"] == [["early", "late"]]


def test_line_ends_byte_order_mark_and_blank_lines(tmp_path):
    log = tmp_path / "log.csv"
    text = table().drop("other").write_csv().replace("\n", "\r\n")
    log.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL, layout="table") == 0
    assert read_parts(tmp_path / "out")[0] == SMALL_PARTS


def test_ties_stay_in_file_order(tmp_path):
    train = [(s, i, START) for i in "dbca" for s in ("y", "x")]
    test = [("z", i, START + 2 * DAY) for i in "cabd"]
    log = write_yoochoose(tmp_path / "log.dat", train + test)
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL) == 0
    parts, items = read_parts(tmp_path / "out")
    assert parts == {"train": [list("dbca")] * 2, "test": [list("cabd")]}
    assert items == list("dbca")


def test_a_session_that_ends_at_the_boundary_is_for_the_test(tmp_path):
    clicks = [("before", "1", START), ("before", "1", START + 0.999), ("at", "1", START),
              ("at", "1", START + 1), ("last", "1", START), ("last", "1", START + DAY + 1)]
    log = write_yoochoose(tmp_path / "log.dat", clicks)
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL) == 0
    parts, _ = read_parts(tmp_path / "out")
    assert {part: len(sessions) for part, sessions in parts.items()} == {"train": 1, "test": 2}


@pytest.mark.parametrize("name, layout", [("log.dat", "yoochoose"), ("LOG.CSV", "table"),
                                          ("log.tsv", "table")])
def test_the_name_tells_the_layout(tmp_path, name, layout):
    log = write_yoochoose(tmp_path / name, SMALL)
    if layout == "table":
        separator = "\t" if name.endswith("tsv") else ","
        log.write_text(separator.join(["SessionId", "Time", "ItemId", "Category"]) + "\n"
                       + log.read_text().replace(",", separator))
    assert preprocess.main(["clicks", "--input", str(log), "--output_dir", str(tmp_path / "out"),
                            *map(str, KEEP_ALL)]) == 0
    assert read_parts(tmp_path / "out")[0] == SMALL_PARTS
    assert DataDirectory.open(str(tmp_path / "out")).description.layout == layout


def test_a_name_that_does_not_tell_the_layout(tmp_path, capsys):
    log = write_yoochoose(tmp_path / "log.txt", SMALL)
    with pytest.raises(SystemExit):
        preprocess.main(["clicks", "--input", str(log), "--output_dir", str(tmp_path / "out")])
    assert "log.txt: its name does not tell the layout: give --layout" in capsys.readouterr().err
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL) == 0


def test_unknown_items(tmp_path):
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL) == 0
    assert read_parts(tmp_path / "out") == (SMALL_PARTS, ["9", "7"])
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL, "--keep_unknown") == 0
    parts, items = read_parts(tmp_path / "out")
    assert parts["test"] == [["7", "5"], ["9", "7"]]
    assert items == ["9", "7", "5"]


def test_counts_are_printed(tmp_path, capsys):
    run_clicks(write_yoochoose(tmp_path / "log.dat", SMALL), tmp_path / "out", *KEEP_ALL)
    counts = [[int(word) for word in line.replace(",", "").split() if word.isdigit()]
              for line in capsys.readouterr().out.splitlines()]
    assert [8, 4, 3] in counts  # all
    assert [4, 2, 2] in counts  # train
    assert [2, 1, 2] in counts  # test


# --- sessions -------------------------------------------------------------------------------------


def run_sessions(out, train, test, valid=(), flags=()):
    flags = [*flags, *(["--valid_files", *map(str, valid)] if valid else [])]
    return preprocess.main(["sessions", "--train_files", *map(str, train), "--test_files",
                            *map(str, test), *flags, "--output_dir", str(out)])


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def test_sessions_keep_every_line_and_text_ids(tmp_path):
    train = [write(tmp_path / "1", "b 7\n007 b\tb\n\nx"), write(tmp_path / "2", "\ufeff7 é\r\n")]
    valid = [write(tmp_path / "3", "v 7\n")]
    test = [write(tmp_path / "4", "q\nz 7 v\nq b\n")]
    assert run_sessions(tmp_path / "out", train, test, valid) == 0
    parts, items = read_parts(tmp_path / "out")
    assert items == ["b", "7", "007", "x", "é", "v", "q", "z"]
    assert parts == {"train": [["b", "7"], ["007", "b", "b"], [], ["x"], ["7", "é"]],
                     "valid": [["v", "7"]], "test": [["q"], ["z", "7", "v"], ["q", "b"]]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["0", "00", "a", "-1", "日"]), max_size=4), min_size=1),
       st.lists(st.lists(st.sampled_from(["0", "new", "b"]), max_size=4), min_size=1))
def test_sessions_come_back(tmp_path_factory, train, test):
    if not any(train) or not any(test):
        return
    folder = tmp_path_factory.mktemp("sessions")
    files = [write(folder / name, "".join(" ".join(line) + "\n" for line in lines))
             for name, lines in (("train", train), ("test", test))]
    assert run_sessions(folder / "out", files[:1], files[1:]) == 0
    parts, items = read_parts(folder / "out")
    assert parts == {"train": train, "test": test}
    seen = {item for line in train for item in line}
    assert set(items[:len(seen)]) == seen


def test_sessions_errors(tmp_path, capsys):
    good, empty = write(tmp_path / "good", "1 2\n"), write(tmp_path / "empty", "\n")
    latin = tmp_path / "latin"
    latin.write_bytes(b"1 2\n1 \xe9\n")
    for train, test, words in [
        (good, tmp_path / "missing", ["missing"]),
        (empty, good, ["empty"]),
        (good, latin, ["latin", "line 2", "UTF-8"]),
    ]:
        assert run_sessions(tmp_path / "out", [train], [test]) == 1
        message = capsys.readouterr().err
        assert message.startswith("preprocess.py: error: ") and message.count("\n") == 1
        assert all(word in message for word in words), message
        assert not (tmp_path / "out").exists()


# --- errors ---------------------------------------------------------------------------------------

GOOD = "SessionId,ItemId,Time\n1,a,1\n1,b,2\n2,a,300000\n2,b,300001\n"


@pytest.mark.parametrize("name, text, words", [
    ("log.csv", "", ["log.csv", "no click"]),
    ("log.csv", "SessionId,ItemId,Time\n", ["log.csv", "no click"]),
    ("log.csv", "SessionId,item,Time\n1,2,3\n", ["'ItemId'", "'item'", "--item_column"]),
    ("log.csv", GOOD.replace(",", ";"), ["'SessionId'", "--separator"]),
    ("log.csv", GOOD + "3,,5\n", ["line 6", "'ItemId'"]),
    ("log.csv", GOOD + ",a,5\n", ["line 6", "'SessionId'"]),
    ("log.csv", GOOD + "3,a\n", ["line 6", "'Time'"]),
    ("log.csv", GOOD + "3,a,soon\n", ["line 6", "'Time'", "'soon'", "ISO 8601"]),
    ("log.csv", GOOD + "3,a,2014-02-30T00:00:00\n", ["line 6", "2014-02-30"]),
    ("log.csv", GOOD + "3,a,nan\n", ["line 6", "'nan'"]),
    ("log.csv", GOOD + "3,a,1396310400123\n", ["line 6", "1396310400123", "milliseconds"]),
    ("log.csv", GOOD + "3,a,5,6\n", ["line 6", "4"]),
    ("log.csv", GOOD + '"3\n3",a,x\n', ["line 7", "'x'"]),
    ("log.csv", GOOD + '3,"a\tb",5\n', ["line 6", "tab"]),
    ("log.csv", GOOD + '3,"a\nb",5\n', ["line 7", "line break"]),
    ("log.dat", GOOD, ["log.dat", "--separator"]),
])
def test_errors_in_tables(tmp_path, capsys, name, text, words):
    log = write(tmp_path / name, text)
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL, layout="table") == 1
    message = capsys.readouterr().err
    assert message.startswith("preprocess.py: error: ") and message.count("\n") == 1
    assert str(log) in message
    assert all(word in message for word in words), message
    assert files_under(tmp_path) == [name]


def test_errors_in_yoochoose_name_the_line(tmp_path, capsys):
    good = "".join(f"1,{iso(START)},7,0\n" for _ in range(3))
    for text, words in [
        ("", ["no clicks"]),
        (good + "1,yesterday,7,0\n", ["line 4", "yesterday"]),
        (good + f"1,{iso(START)},,0\n", ["line 4"]),
        ("SessionId,Time,ItemId,Category\n" + good, ["line 1", "'Time'"]),
    ]:
        log = write(tmp_path / "log.dat", text)
        assert run_clicks(log, tmp_path / "out") == 1
        message = capsys.readouterr().err
        assert str(log) in message and all(word in message for word in words), message
        assert files_under(tmp_path) == ["log.dat"]


def test_not_utf8_names_the_line(tmp_path, capsys):
    log = tmp_path / "log.csv"
    log.write_bytes(GOOD.encode() + b"3,\xe9,5\n")
    assert run_clicks(log, tmp_path / "out", layout="table") == 1
    message = capsys.readouterr().err
    assert "line 6" in message and "UTF-8" in message


def test_parquet_errors(tmp_path, capsys):
    log = tmp_path / "log.parquet"
    frame = table()
    millis = pl.col("Time") * 1000
    for bad, words in [
        (frame.with_columns(ItemId=pl.lit(1.5)), ["'ItemId'", "Float64"]),
        (frame.with_columns(Time=pl.lit(True)), ["'Time'", "Boolean"]),
        (frame.with_columns(Time=millis.cast(pl.Int64)), ["row 1", "milliseconds"]),
        (frame.with_columns(Time=millis), ["row 1", "milliseconds"]),
        (frame.with_columns(SessionId=pl.lit(None, pl.String)), ["row 1", "'SessionId'"]),
    ]:
        bad.write_parquet(log)
        assert run_clicks(log, tmp_path / "out", layout="table") == 1
        message = capsys.readouterr().err
        assert all(word in message for word in words), message
    log.write_bytes(b"no Parquet file")
    assert run_clicks(log, tmp_path / "out", layout="table") == 1
    assert str(log) in capsys.readouterr().err


@pytest.mark.parametrize("flags, word", [
    (["--min_session_length", 9], "--min_session_length"),
    (["--min_item_support", 99], "--min_item_support"),
    (["--min_item_support", 1, "--test_days", 30], "--test_days"),
    (["--min_item_support", 1, "--valid_days", 30], "--valid_days"),
])
def test_nothing_left_names_the_flag(tmp_path, capsys, flags, word):
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    assert run_clicks(log, tmp_path / "out", *flags) == 1
    assert word in capsys.readouterr().err
    assert files_under(tmp_path) == ["log.dat"]


def test_only_unknown_test_items_names_the_flag(tmp_path, capsys):
    clicks = [("1", "old", START)] * 2 + [("2", "new", START + 5 * DAY)] * 2
    log = write_yoochoose(tmp_path / "log.dat", clicks)
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL) == 1
    assert "--keep_unknown" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [
    ["--test_days", "-1"], ["--test_days", "x"], ["--valid_days", "-1"], ["--test_days", "nan"],
    ["--min_session_length", "0"], ["--min_item_support", "1.5"], ["--separator", "ab"]])
def test_usage_errors(tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as exit_:
        run_clicks(tmp_path / "log.csv", tmp_path / "out", *flags, layout="table")
    assert exit_.value.code == 2
    assert flags[0] in capsys.readouterr().err


# --- the output directory -------------------------------------------------------------------------


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_replaces_the_first(tmp_path):
    out = tmp_path / "out"
    small = write_yoochoose(tmp_path / "log.dat", SMALL)
    sessions = write(tmp_path / "sessions", "1 2 3\n")
    assert run_sessions(out, [sessions], [sessions], [sessions]) == 0
    (out / "model").write_text("mine")
    assert run_clicks(small, out, *KEEP_ALL) == 0
    assert not (out / "valid_data" / "sessions.txt").exists()  # of another vocabulary
    assert (out / "model").read_text() == "mine"


def test_an_error_leaves_the_previous_run(tmp_path):
    out = tmp_path / "out"
    assert run_clicks(write_yoochoose(tmp_path / "log.dat", SMALL), out, *KEEP_ALL) == 0
    before = contents(out)
    bad = write(tmp_path / "bad.dat", "1,x,2,0\n")
    assert run_clicks(bad, out) == 1
    assert contents(out) == before
    assert files_under(out) == sorted([*before, "train_data", "test_data"])


def test_an_error_while_writing_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_files.os, "fsync", full)
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    assert run_clicks(log, tmp_path / "out", *KEEP_ALL) == 1
    assert "No space left" in capsys.readouterr().err
    assert files_under(tmp_path) == ["log.dat"]


def test_other_files_in_a_part_are_refused(tmp_path, capsys):
    out = tmp_path / "out"
    (out / "train_data").mkdir(parents=True)
    (out / "train_data" / ".cache").write_text("hidden")
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    assert run_clicks(log, out, *KEEP_ALL) == 0
    (out / "train_data" / "more.txt").write_text("1 2\n")
    before = contents(out)
    assert run_clicks(log, out, *KEEP_ALL) == 1
    assert "more.txt" in capsys.readouterr().err
    assert contents(out) == before


def test_an_input_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "out"
    sessions = write(tmp_path / "sessions", "1 2 3\n")
    assert run_sessions(out, [sessions], [sessions]) == 0
    before = contents(out)
    own = out / "train_data" / "sessions.txt"
    assert run_sessions(out, [own], [sessions]) == 1
    assert str(own) in capsys.readouterr().err
    assert contents(out) == before


def test_a_missing_input_and_a_file_in_the_way(tmp_path, capsys):
    assert run_clicks(tmp_path / "none.dat", tmp_path / "out") == 1
    assert "none.dat: no such file" in capsys.readouterr().err
    assert files_under(tmp_path) == []
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    assert run_clicks(log, log, *KEEP_ALL) == 1
    assert str(log) in capsys.readouterr().err


# --- text of the items ----------------------------------------------------------------------------

TOKEN_FILES = ("item_tokens.txt", "tokens.txt", "tokens.json")
ITEMS = ("9\tMars  landing\u2028today\tsection:Space\n\n7\tMars and Rover\n"
         "new\tRover\tsection:space\n")


def read_text(out):
    """{raw id: (text, tokens)} in the order of the ids, from the written files."""
    tokens = (out / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert json.loads((out / "tokens.json").read_text())["chinese_cutter"] in ("jieba", "bigrams")
    bags = (out / "item_tokens.txt").read_text().split("\n")
    lines = (out / "items.txt").read_text(encoding="utf-8").split("\n")
    assert bags.pop() == lines.pop() == "" and len(bags) == len(lines)
    assert (out / "vocab.txt").read_text() == f"{len(lines)}\n"
    return {line.split("\t")[0]: (line.partition("\t")[2], [tokens[int(i)] for i in bag.split()])
            for line, bag in zip(lines, bags)}


def test_text_of_a_log(tmp_path, capsys):
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    items = write(tmp_path / "items.tsv", ITEMS)
    flags = [*KEEP_ALL, "--items_path", items]
    assert run_clicks(log, tmp_path / "out", *flags) == 0
    assert read_text(tmp_path / "out") == {"9": ("Mars landing today", ["mars"]),
                                           "7": ("Mars and Rover", ["mars"])}
    assert "1 items with text occur in no session" in capsys.readouterr().out
    assert run_clicks(log, tmp_path / "out", *flags, "--keep_unknown", "--all_items",
                      "--min_token_count", 1) == 0
    found = read_text(tmp_path / "out")
    assert list(found) == ["9", "7", "5", "new"]  # 5 has no line
    assert found["9"][1] == ["mars", "landing", "today", "section:space"]
    assert found["5"] == ("", []) and found["new"] == ("Rover", ["rover", "section:space"])


def test_text_of_sessions_counts_in_training_only(tmp_path, capsys):
    train, test = write(tmp_path / "train", "a b\n"), write(tmp_path / "test", "a c\nd e\n")
    items = write(tmp_path / "items.tsv", "b\tcup final\na\tfinal\nc\tmoon final\nd\tmoon\n"
                                          "e\t \nz\tmoon\n")
    flags = ["--items_path", str(items)]
    assert run_sessions(tmp_path / "out", [train], [test], flags=flags) == 0
    assert read_text(tmp_path / "out") == {
        "a": ("final", ["final"]), "b": ("cup final", ["final"]), "c": ("moon final", ["final"]),
        "d": ("moon", []), "e": ("", [])}
    printed = capsys.readouterr().out
    assert "4 of 5 items of the sessions have some; 1 items with text occur in no" in printed
    assert "2 items without any" in printed


def text_table(folder, extension):
    """Two sessions to train on, one to test; the texts of an item change."""
    rows = [("s", "a", 5, "old name", "X"), ("s", "b", 6, "b name", None),
            ("t", "a", 9, "new name", None), ("t", "b", 8, None, "Y"),
            ("t", "a", 1, "oldest name", "W"), ("u", "a", 9e5, " ", "Z"), ("u", "b", 9e5, "", "")]
    names = ["SessionId", "ItemId", "Time", "title", "section"]
    frame = pl.DataFrame(rows, names, orient="row")
    log = folder / f"log.{extension}"
    if extension == "parquet":
        frame = frame.with_columns(
            pl.when(pl.col("section") != "").then(pl.concat_list("section", pl.lit("all"))))
        frame.write_parquet(log)
    else:
        log.write_text(frame.write_csv().replace("t,b", "\n\nt,b"))  # blank lines shift the rows
    return log


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_text_of_a_table_is_the_newest(tmp_path, extension):
    flags = [*KEEP_ALL, "--text_column", "title", "--field_columns", "section"]
    log = text_table(tmp_path, extension)
    assert run_clicks(log, tmp_path / "out", *flags, "--min_token_count", 1, layout="table") == 0
    found = read_text(tmp_path / "out")
    more = ["section:all"] * (extension == "parquet")
    assert found == {"a": ("new name", ["new", "name", "section:z", *more]),
                     "b": ("b name", ["b", "name", "section:y", *more])}
    flags = [*KEEP_ALL, "--field_columns", "section", "Time", "--min_token_count", 1]
    assert run_clicks(log, tmp_path / "out", *flags, layout="table") == 0
    assert set(read_text(tmp_path / "out")["b"][1]) > {"section:y", *more}


def test_all_items_of_a_table(tmp_path):
    log = text_table(tmp_path, "csv")
    with log.open("a") as f:
        f.write("v,rare,5,a name,\n")
    flags = [*KEEP_ALL, "--text_column", "title", "--all_items"]
    assert run_clicks(log, tmp_path / "out", *flags, layout="table") == 0
    assert read_text(tmp_path / "out")["rare"] == ("a name", ["name"])


def test_without_text_the_token_files_of_an_earlier_run_go(tmp_path):
    out = tmp_path / "out"
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    items = write(tmp_path / "items.tsv", ITEMS)
    assert run_clicks(log, out, *KEEP_ALL, "--items_path", items) == 0
    before = contents(out)
    assert set(TOKEN_FILES) < set(before)
    for bad in (["--items_path", tmp_path / "none.tsv"], ["--test_days", 99]):
        assert run_clicks(log, out, *KEEP_ALL, *bad) == 1
        assert contents(out) == before
    assert run_clicks(log, out, *KEEP_ALL) == 0
    assert not set(TOKEN_FILES) & set(contents(out))
    assert (out / "items.txt").read_text() == "9\n7\n"


@pytest.mark.parametrize("items, flags, words", [
    ("9\tx\n9\ty\n", [], ["line 2", "'9'"]),
    ("10\tx\n", [], ["items.tsv", "none of its 1 items", "of this data"]),
    ("", [], ["items.tsv", "none of its 0 items"]),
    ("9\tx\n7\ty\n", [], ["items.tsv", "--min_token_count"]),
    ("9\tx\n", ["--chinese_cutter", "jieba"], ["pip install jieba"]),
    (None, [], ["cannot read", "items.tsv"]),
])
def test_errors_in_text(tmp_path, capsys, monkeypatch, items, flags, words):
    monkeypatch.setitem(sys.modules, "jieba", None)
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    if items is not None:
        write(tmp_path / "items.tsv", items)
    names = files_under(tmp_path)
    flags = [*KEEP_ALL, "--items_path", tmp_path / "items.tsv", *flags]
    assert run_clicks(log, tmp_path / "out", *flags) == 1
    message = capsys.readouterr().err
    assert message.startswith("preprocess.py: error: ") and message.count("\n") == 1
    assert all(word in message for word in words), message
    assert files_under(tmp_path) == names


def test_errors_in_columns_of_text(tmp_path, capsys):
    log = text_table(tmp_path, "parquet")
    for flags, words in [
        (["--text_column", "headline"], ["'headline'", "'title'", "--text_column"]),
        (["--field_columns", "section", "x"], ["'x'", "--field_columns"]),
        (["--text_column", "Time"], ["'Time'", "Float64", "--text_column"]),
    ]:
        assert run_clicks(log, tmp_path / "out", *flags, layout="table") == 1
        message = capsys.readouterr().err
        assert all(word in message for word in words), message


def test_the_items_are_not_overwritten(tmp_path, capsys):
    sessions = write(tmp_path / "sessions", "1 2 3\n")
    out = tmp_path / "out"
    assert run_sessions(out, [sessions], [sessions]) == 0
    write(out / "tokens.txt", "1 2\n")
    before = contents(out)
    assert run_sessions(out, [sessions], [sessions],
                        flags=["--items_path", str(out / "items.txt")]) == 1
    assert run_sessions(out, [sessions], [out / "tokens.txt"]) == 1  # it would be removed
    assert capsys.readouterr().err.count("another --output_dir") == 2
    assert contents(out) == before


@pytest.mark.parametrize("layout, flags, words", [
    ("yoochoose", ["--item_column", "ItemId"], ["--item_column", "--layout table"]),
    ("yoochoose", ["--time_column", "t", "--separator", ";"], ["--time_column, --separator"]),
    ("yoochoose", ["--text_column", "category"], ["--text_column"]),
    ("table", ["--text_column", "t", "--items_path", "i"], ["--items_path and --text_column"]),
    ("table", ["--min_token_count", "3"], ["--min_token_count", "--text_column"]),
    ("yoochoose", ["--all_items"], ["--all_items", "--items_path"]),
    ("yoochoose", ["--items_path", "i", "--min_token_count", "0"], ["--min_token_count"]),
    ("yoochoose", ["--items_path", "i", "--chinese_cutter", "knife"], ["--chinese_cutter"]),
    (None, ["--all_items", "--chinese_cutter", "jieba"], ["--chinese_cutter, --all_items"]),
])
def test_flags_without_effect_are_errors(tmp_path, capsys, layout, flags, words):
    with pytest.raises(SystemExit) as exit_:
        if layout:
            run_clicks(tmp_path / "log.csv", tmp_path / "out", *flags, layout=layout)
        else:
            run_sessions(tmp_path / "out", ["1"], ["2"], flags=flags)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


@pytest.mark.skipif(not GAMES.exists(), reason="no games here")
def test_games(tmp_path):
    """Items held out of training get ids behind all others, and tokens."""
    held_out = {str(item) for item in range(40, 16859, 40)}
    lines = [line.split() for line in (GAMES / "train.txt").read_text().splitlines()]
    train = write(tmp_path / "train", "".join(
        " ".join(item for item in line if item not in held_out) + "\n" for line in lines))
    assert run_sessions(tmp_path / "out", [train], [GAMES / "test.txt"],
                        flags=["--items_path", str(GAMES / "items.tsv")]) == 0
    found = read_text(tmp_path / "out")
    known = {item for line in lines for item in line} - held_out
    assert set(list(found)[:len(known)]) == known and len(found) == 16859
    assert sum(bool(found[item][1]) for item in held_out) > 0.98 * len(held_out)


@pytest.mark.skipif(not RSC15.exists(), reason="no RSC15 sample here")
def test_rsc15_sample(tmp_path):
    assert run_clicks(RSC15, tmp_path / "out") == 0
    clicks = []
    for line in RSC15.read_text().splitlines():
        session, time, item, _ = line.split(",")
        moment = datetime.fromisoformat(time.replace("Z", "+00:00"))
        clicks.append((session, item, moment.timestamp()))
    assert read_parts(tmp_path / "out")[0] == expected_parts(clicks, 2, 5, 1, 0, False)


# --- a catalogue that grows -----------------------------------------------------------------------

RAW_SESSIONS = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5), min_size=1,
                        max_size=6)


@settings(deadline=None, max_examples=30)
@given(RAW_SESSIONS, RAW_SESSIONS, st.sets(st.sampled_from("abcdefgh")))
def test_items_of_an_earlier_run_keep_ids_and_tokens(tmp_path_factory, first, then, with_text):
    path = tmp_path_factory.mktemp("grown")
    for name, sessions in (("first", first), ("then", then)):
        write(path / name, "".join(" ".join(session) + "\n" for session in sessions))
    write(path / "old.tsv", f"{first[0][0]}\tred fish\n{first[-1][-1]}\tred fish\n"
          if first[0][0] != first[-1][-1] else f"{first[0][0]}\tred fish\n")
    write(path / "new.tsv", "".join(f"{raw}\tfish {raw} in green\n" for raw in sorted(with_text)))
    text_flags = ["--min_token_count", "1", "--chinese_cutter", "bigrams"]
    assert run_sessions(path / "one", [path / "first"], [path / "first"],
                        flags=["--items_path", str(path / "old.tsv"), *text_flags]) == 0
    news = ["--items_path", str(path / "new.tsv")] if with_text & set(sum(first + then, [])) else []
    assert preprocess.main(["sessions", "--train_files", str(path / "then"), "--continue_from",
                            str(path / "one"), "--output_dir", str(path / "two"), *news]) == 0

    def lines(run, name):
        return (path / run / name).read_text(encoding="utf-8").split("\n")[:-1]

    old, new = lines("one", "items.txt"), lines("two", "items.txt")
    old_ids, new_ids = ([line.split("\t")[0] for line in items] for items in (old, new))
    assert new_ids[:len(old_ids)] == old_ids and len(set(new_ids)) == len(new_ids)
    assert set(new_ids[len(old_ids):]) == set(sum(then, [])) - set(old_ids)
    assert [[new_ids[int(id)] for id in line.split()]
            for line in lines("two", "train_data/sessions.txt")] == then
    assert lines("two", "tokens.txt") == lines("one", "tokens.txt")
    assert lines("two", "vocab.txt") == [str(len(new))]
    bags = [{lines("two", "tokens.txt")[int(token)] for token in line.split()}
            for line in lines("two", "item_tokens.txt")]
    for item, raw in enumerate(new_ids):
        if news and raw in with_text:
            assert bags[item] == {"fish"} and new[item] == f"{raw}\tfish {raw} in green"
        elif item < len(old):
            assert new[item] == old[item]
            assert lines("two", "item_tokens.txt")[item] == lines("one", "item_tokens.txt")[item]
        else:
            assert bags[item] == set() and new[item] == raw
    assert not (path / "two" / "test_data").exists()


def test_clicks_continue_an_earlier_run(tmp_path, capsys):
    log = write_yoochoose(tmp_path / "log.dat", SMALL)
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_clicks(log, one, *KEEP_ALL, "--keep_unknown") == 0
    _, before = read_parts(one)
    fresh = [("s", item, START + 9 * DAY + number) for number, item in
             enumerate(["fresh", before[1], "other"])]
    more = write_yoochoose(tmp_path / "more.dat", fresh)
    assert run_clicks(more, two, *KEEP_ALL, "--test_days", 0, "--continue_from", one) == 0
    parts, after = read_parts(two)
    assert after == [*before, "fresh", "other"]
    assert parts["train"] == [["fresh", before[1], "other"]] and "test" not in parts
    # Text that the earlier run did not have is not for a model of it.
    write(tmp_path / "items.tsv", "fresh\tnews\n")
    assert run_clicks(more, tmp_path / "three", *KEEP_ALL, "--test_days", 0, "--continue_from", one,
                      "--items_path", tmp_path / "items.tsv") == 1
    assert "its items have no text" in capsys.readouterr().err
    assert run_clicks(more, tmp_path / "three", *KEEP_ALL, "--continue_from", tmp_path / "no") == 1
    assert "items.txt: No such file" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


# --- times ----------------------------------------------------------------------------------------


def test_times_have_the_shape_of_the_sessions(tmp_path):
    clicks = [("a", "x", START), ("b", "y", START + 5), ("a", "y", START + 7.9),
              ("c", "x", START + 3 * DAY), ("c", "z", START + 3 * DAY + 1)]
    log = write_yoochoose(tmp_path / "log.dat", clicks + [("b", "x", START + 9)])
    flags = ["--min_item_support", 1, "--keep_unknown"]
    assert run_clicks(log, tmp_path / "out", *flags, "--keep_times") == 0
    parts, _ = read_parts(tmp_path / "out")
    assert parts == {"train": [["x", "y"], ["y", "x"]], "test": [["x", "z"]]}
    times = {part: (tmp_path / "out" / f"{part}_times" / "sessions.txt").read_text()
             for part in parts}
    assert times == {"train": f"{START} {START + 7}\n{START + 5} {START + 9}\n",
                     "test": f"{START + 3 * DAY} {START + 3 * DAY + 1}\n"}
    # The next run, without times, must not leave those of other sessions.
    assert run_clicks(log, tmp_path / "out", *flags) == 0
    assert not list((tmp_path / "out").glob("*_times/*"))


def test_times_of_sessions_are_copied(tmp_path):
    for name, text in {"a": "x y", "b": "y z\n", "at": "1 2", "bt": "3 4\n", "c": "x q",
                       "ct": "5 6"}.items():
        (tmp_path / name).write_text(text)
    command = ["sessions", "--train_files", *(str(tmp_path / name) for name in "ab"),
               "--test_files", str(tmp_path / "c"), "--output_dir", str(tmp_path / "out")]
    times = ["--train_times", str(tmp_path / "at"), str(tmp_path / "bt"), "--test_times",
             str(tmp_path / "ct")]
    assert preprocess.main(command + times) == 0
    assert (tmp_path / "out/train_times/sessions.txt").read_text() == "1 2\n3 4\n"
    assert (tmp_path / "out/test_times/sessions.txt").read_text() == "5 6\n"
    with pytest.raises(SystemExit):
        preprocess.main(command + times[:2])

"""Whatever the files hold that preprocess.py is given: it succeeds, or says what is wrong in one
line and writes nothing."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import subprocess
import sys
import zlib
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, mutated

import preprocess
from ssr.errors import DataError
from ssr.preparation import text
from ssr.preparation.times import parse_times

ROOT = Path(__file__).parents[1]
TABLE = "SessionId,ItemId,Time\n1,a,1\n1,b,2\n2,a,300000\n2,b,300001\n"
YOOCHOOSE = ("1,2014-04-01T00:00:00.000Z,a,0\n1,2014-04-01T00:00:01.000Z,b,0\n"
             "2,2014-04-04T00:00:00.000Z,a,0\n2,2014-04-04T00:00:01.000Z,b,0\n")
SESSIONS, TIMES = "a b c\n\nb a\n", "1 2 3\n\n7 8\n"
ITEMS = "a\tMars &amp; Rover\tsection:space\nb\t央行下调利率\nz\tMoon\n"
CLICKS = ["clicks", "--min_item_support", "1"]


def run(*command):
    """(exit code, standard error, standard output) of preprocess.py."""
    with contextlib.redirect_stderr(io.StringIO()) as err, \
            contextlib.redirect_stdout(io.StringIO()) as out, \
            pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["preprocess.py"])
        code = preprocess.main([str(word) for word in command])
    return code, err.getvalue(), out.getvalue()


def error(*command):
    code, err, _ = run(*command)
    assert code == 1 and err.startswith("preprocess.py: error: ") and err.count("\n") == 1, err
    return err


def table(log, *flags):
    return [*CLICKS, "--layout", "table", "--input", log, "--output_dir", log.parent / "out",
            *flags]


def yoochoose(log, *flags):
    return [*CLICKS, "--layout", "yoochoose", "--input", log, "--output_dir", log.parent / "out",
            *flags]


def sessions(folder, *flags):
    return ["sessions", "--train_files", folder / "train", "--test_files", folder / "train",
            "--output_dir", folder / "out", *flags]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- compressed logs ------------------------------------------------------------------------------


@pytest.mark.parametrize("name, separator", [("log.csv.gz", ","), ("log.TSV.gz", "\t"),
                                             ("log.txt.gz", "\t"), ("log.csv", ",")])
def test_gzip_is_read_by_name(tmp_path, name, separator):
    """Also under a name that does not say so."""
    log = write(tmp_path / name, gzip.compress(TABLE.replace(",", separator).encode()))
    assert run(*table(log))[0] == 0
    assert (tmp_path / "out/train_data/sessions.txt").read_text() == "0 1\n"


def test_gzip_of_several_members_and_of_yoochoose(tmp_path):
    content = YOOCHOOSE.encode()
    log = write(tmp_path / "log.dat.gz", gzip.compress(content[:40]) + gzip.compress(content[40:]))
    assert run(*yoochoose(log))[0] == 0
    assert (tmp_path / "out/test_data/sessions.txt").read_text() == "0 1\n"


def test_errors_in_gzip_name_the_line(tmp_path):
    log = write(tmp_path / "log.csv.gz", gzip.compress((TABLE + "3,a,soon\n").encode()))
    assert "log.csv.gz, line 6: 'soon'" in error(*table(log))
    write(log, gzip.compress((TABLE + "3,a,1,2\n").encode()))
    assert "line 6: 4 fields where 3 are expected" in error(*table(log))
    write(log, gzip.compress(TABLE.encode() * 100)[:-9])
    assert "the archive is damaged" in error(*table(log))


@pytest.mark.parametrize("name, compress", [("bzip2", bz2.compress), ("xz", lzma.compress),
                                            ("zlib", zlib.compress)])
def test_other_compression_is_named(tmp_path, name, compress):
    log = write(tmp_path / "log.csv", compress(TABLE.encode()))
    assert f"compressed with {name}, and only gzip is read" in error(*table(log))
    assert f"compressed with {name}" in error(*yoochoose(log))


def test_parquet_has_no_separator(tmp_path):
    pl.read_csv(io.StringIO(TABLE)).write_parquet(tmp_path / "log.parquet")
    assert "--separator" in error(*table(tmp_path / "log.parquet", "--separator", ";"))
    assert run(*table(tmp_path / "log.parquet"))[0] == 0


# --- lines ----------------------------------------------------------------------------------------


def test_a_very_long_field_is_no_fault_and_hides_none(tmp_path):
    """Python's csv module has a limit of 131,072 characters."""
    log = tmp_path / "log.csv"
    long = '"' + "x" * 300_000 + '\n"'
    write(log, TABLE.replace("1,a,1\n", f"{long},a,1\n{long},b,2\n"))
    assert run(*table(log))[0] == 0
    write(log, TABLE.replace("1,a,1\n", f"{long},a,1\n") + "3,a,soon\n")
    assert "line 7: 'soon'" in error(*table(log))
    write(log, TABLE + f"3,a,{long}\n")
    message = error(*table(log))
    assert "line 7: 'xxx" in message and len(message) < 500
    write(log, TABLE + f"3,a\t{'x' * 300_000},1\n")
    message = error(*table(log))
    assert "line 6: the item id" in message and len(message) < 500


@pytest.mark.parametrize("lines, words", [
    ('3,"a,1\n4,b,2\n', "line 6: a quote within a field"),
    ('3,5" disk,1\n4,5" disk,2\n', "line 6: a quote within a field"),
    ('3,"5"" disk",1\n4,"5"" disk",2,9\n', "line 7: 4 fields where 3 are expected"),
    ('3,"a\nb\nc",1,2\n', "line 6: 4 fields where 3 are expected"),
    ('\n\n3,"a\tb",1\n', "line 8: the item id 'a\\tb'"),
    ('"3\n\n3",\xff,1\n', "line 8: not UTF-8"),
])
def test_the_line_that_is_named_is_the_one(tmp_path, lines, words):
    log = write(tmp_path / "log.csv", (TABLE + lines).encode("latin-1"))
    assert words in error(*table(log))


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("time, microseconds", [
    ("5", 5_000_000), ("5.25", 5_250_000), ("1.3e3", 1_300_000_000), ("-5", -5_000_000),
    ("1970-01-02", 86_400_000_000), ("1969-12-31T23:59:59Z", -1_000_000),
    *((text, None) for text in (
        "1_000", "+5", "+1e3", "5 ", " 5", "0x10", "inf", "-inf", "nan", "", "-", "--5", "٣",
        "9" * 5000, "1e400", "+2014-04-01", "-2014-04-01", "2014-4-1 ", "20140401T00")),
])
def test_what_a_time_is(time, microseconds):
    assert parse_times(pl.Series([time, "5"])).to_list() == [microseconds, 5_000_000]


@pytest.mark.parametrize("time", ["1_000", "+5", "9" * 5000, "-2014-04-01"])
def test_a_time_by_accident_names_the_line(tmp_path, time):
    log = write(tmp_path / "log.csv", TABLE + f"3,a,{time}\n")
    message = error(*table(log))
    assert f"log.csv, line 6: '{time[:20]}" in message and len(message) < 500
    log = write(tmp_path / "log.dat", YOOCHOOSE + f"3,{time},a,0\n")
    assert "log.dat, line 5: " in error(*yoochoose(log))


@pytest.mark.parametrize("times, words", [
    ("1 2 3\n\n1_000 8\n", "line 3: '1_000' is not a time"),
    ("1 2 3\n\n+5 8\n", "line 3: '+5' is not a time"),
    ("1 2 3\n\n1.5 8\n", "line 3: '1.5' is not a time"),
    ("1 2 3\n\n" + "9" * 5000 + " 8\n", "line 3: '9999999"),
    ("1 2 3\n\n-7 8\n", "line 3: '-7' is not a time"),
    ("1 2\n\n7 8\n", "line 1: 2 times, and the same line of"),
    ("1 2 3\n4\n7 8\n", "line 2: 1 times"),
    ("1 2 3\n\n8 7\n", "line 3: the times fall"),
    ("1 2 3\n\n", "times ends before line 3 of"),
    ("1 2 3\n\n7 8\n9 9\n", "train ends before line 4 of"),
    (None, "cannot read"),
])
def test_times_of_sessions_are_checked(tmp_path, times, words):
    write(tmp_path / "train", SESSIONS)
    if times is not None:
        write(tmp_path / "times", times)
    message = error(*sessions(tmp_path, "--train_times", tmp_path / "times"))
    assert "times" in message and words in message and len(message) < 500
    assert not (tmp_path / "out").exists()


def test_times_before_1970_cannot_be_kept(tmp_path):
    log = write(tmp_path / "log.csv", TABLE.replace("1,a,1\n", "1,a,-1.5\n"))
    assert run(*table(log))[0] == 0
    assert "the earliest click is 1.5 s before 1970" in error(*table(log, "--keep_times"))


def test_a_yoochoose_log_with_too_few_fields(tmp_path):
    log = write(tmp_path / "log.dat", "1,2014-04-01T00:00:00.000Z,a\n" + YOOCHOOSE)
    assert "log.dat, line 1: 3 fields where 4 are expected" in error(*yoochoose(log))


# --- numbers, text, counts ------------------------------------------------------------------------


def test_a_character_reference_of_any_length_is_text():
    words = text.Tokenizer("bigrams").words("red &#" + "9" * 5000 + "; fish &#65;&#0000066;")
    assert words == ["red", "fish", "ab"]


@pytest.mark.parametrize("content", ["[" * 200_000, '{"version": ' + "9" * 5000 + "}", "{", "7",
                                     '{"version": [1], "chinese_cutter": {}}'])
def test_a_damaged_record_of_the_cutter(tmp_path, content):
    write(tmp_path / "tokens.txt", "red\n")
    write(tmp_path / "tokens.json", content)
    with pytest.raises(DataError, match=r"tokens\.json") as info:
        text.TokenVocabulary.load(str(tmp_path / "tokens.txt"))
    assert len(str(info.value)) < 500


@pytest.mark.parametrize("flag", ["--min_session_length", "--min_item_support", "--test_days",
                                  "--valid_days", "--min_token_count"])
@pytest.mark.parametrize("value", ["9" * 5000, "1e300", "inf", "-1", "1_0000000000"])
def test_numbers_that_are_no_use_are_usage_errors(tmp_path, capsys, flag, value):
    log = write(tmp_path / "log.dat", YOOCHOOSE)
    items = write(tmp_path / "items", ITEMS)
    with pytest.raises(SystemExit) as exit_:
        preprocess.main(list(map(str, yoochoose(log, "--items_path", items, f"{flag}={value}"))))
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and flag in err


def test_the_items_of_each_part_are_counted_not_the_new_ones(tmp_path):
    write(tmp_path / "train", SESSIONS)
    write(tmp_path / "test", "a b\na d\n")
    command = sessions(tmp_path)
    command[4] = tmp_path / "test"
    code, _, out = run(*command)
    assert code == 0
    counts = {line.split()[0]: [int(word) for word in line.split() if word.isdigit()]
              for line in out.splitlines()}
    assert counts["train"] == [5, 2, 3] and counts["test"] == [4, 2, 3]  # clicks, sessions, items


def test_an_earlier_run_that_is_damaged(tmp_path):
    write(tmp_path / "train", SESSIONS)
    write(tmp_path / "items", ITEMS)
    assert run(*sessions(tmp_path, "--items_path", tmp_path / "items", "--min_token_count", 1))[0] \
        == 0
    (tmp_path / "out").rename(tmp_path / "one")
    command = sessions(tmp_path, "--continue_from", tmp_path / "one")
    assert run(*command)[0] == 0
    for name, content, words in [
        ("items.txt", b"a\nb\n\xff\n", "items.txt, line 3: not UTF-8"),
        ("items.txt", b"a\nb\na\n", "holds an item twice"),
        ("items.txt", b"a\nb\n", "they are not of one run"),
        ("item_tokens.txt", b"\xff\n0\n\n", "item_tokens.txt, line 1: not UTF-8"),
        ("tokens.txt", b"", "holds no tokens"),
        ("tokens.json", b"[" * 200_000, "is damaged"),
    ]:
        before = (tmp_path / "one" / name).read_bytes()
        write(tmp_path / "one" / name, content)
        assert words in error(*command), name
        write(tmp_path / "one" / name, before)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """The limit on the size of a file stands for it, 8 blocks of 512 bytes. The shell sets it: a
    preexec_fn would run beside the threads of other tests' libraries, which may end the process."""
    limited = ["sh", "-c", 'trap "" XFSZ; ulimit -f 8; exec "$@"', "sh"]  # the write fails instead
    write(tmp_path / "train", "a b c d\n" * 5000)
    write(tmp_path / "log.dat", "".join(
        f"{s},2014-04-0{1 + s % 4}T00:00:00.000Z,{i},0\n" for s in range(5000) for i in "ab"))
    for command in (sessions(tmp_path), yoochoose(tmp_path / "log.dat")):
        process = subprocess.run(
            [*limited, sys.executable, ROOT / "preprocess.py", *map(str, command)],
            capture_output=True, text=True)
        assert process.returncode == 1
        assert process.stderr.count("\n") == 1, process.stderr
        assert f"error: cannot write to {tmp_path}/out: File too large" in process.stderr
        assert not (tmp_path / "out").exists()


# --- mutations ------------------------------------------------------------------------------------


def parquet(content):
    buffer = io.BytesIO()
    pl.read_csv(io.StringIO(content)).write_parquet(buffer)
    return buffer.getvalue()


FILES = {
    "log.csv": TABLE.replace("1,a,1", '"1","a","1"').encode(),
    "log.tsv": TABLE.replace(",", "\t").encode(),
    "log.csv.gz": gzip.compress(TABLE.encode(), mtime=0),
    "log.parquet": parquet(TABLE),
    "log.dat": YOOCHOOSE.encode(),
    "train": SESSIONS.encode(),
    "times": TIMES.encode(),
    "items": ITEMS.encode(),
}
EARLIER = ("items.txt", "item_tokens.txt", "tokens.txt", "tokens.json")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    for name in ("train", "items"):
        write(folder / name, FILES[name])
    assert run(*sessions(folder, "--items_path", folder / "items", "--min_token_count", 1))[0] == 0
    return folder / "out"


def commands(folder):
    """{file: a command that reads it}"""
    text_flags = ["--items_path", folder / "items", "--min_token_count", 1]
    columns = ["--field_columns", "SessionId", "--text_column"]
    return {
        "log.csv": table(folder / "log.csv", *columns, "ItemId", "--min_token_count", 1),
        "log.tsv": table(folder / "log.tsv", "--keep_times", "--keep_unknown"),
        "log.csv.gz": table(folder / "log.csv.gz"),
        "log.parquet": table(folder / "log.parquet"),
        "log.dat": yoochoose(folder / "log.dat", *text_flags, "--all_items"),
        "train": sessions(folder, "--train_times", folder / "times"),
        "times": sessions(folder, "--train_times", folder / "times"),
        "items": sessions(folder, *text_flags),
        **dict.fromkeys(EARLIER, sessions(folder, *text_flags, "--continue_from",
                                          folder / "earlier")),
    }


@pytest.mark.fuzz
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from([*FILES, *EARLIER]), mutations=MUTATIONS)
def test_mutated_files_are_read_or_refused(tmp_path_factory, earlier, name, mutations):
    folder = tmp_path_factory.mktemp("mutated", numbered=True)
    contents = {**FILES, **{f"earlier/{file}": (earlier / file).read_bytes() for file in EARLIER}}
    (folder / "earlier").mkdir()
    for file, content in contents.items():
        hit = os.path.basename(file) == name
        write(folder / file, mutated(content, mutations) if hit else content)
    code, err, _ = run(*commands(folder)[name])
    if code:
        assert code == 1 and err.startswith("preprocess.py: error: ") and err.count("\n") == 1, err
        assert len(err) < 1000 and not (folder / "out").exists()
    else:
        assert not err
        size = int((folder / "out/vocab.txt").read_text())
        ids = (folder / "out/train_data/sessions.txt").read_text().split()
        assert ids and max(map(int, ids)) < size

"""An index whose files are damaged says so; one that is only read, moved or replaced works on."""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

import retrieve
import train
from ssr.errors import DataError, StoreError, UserError
from ssr.news.stream import Scoring
from ssr.retrieval import MAX_TEXT, Click, Index, Item, builds, items, store
from ssr.retrieval.bag import NOTHING
from ssr.retrieval.vectors import SearchSettings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def made(sample, tmp_path_factory):
    """A directory with a model with content, and its index."""
    path = tmp_path_factory.mktemp("made")
    flags = ["--train_dir", str(sample / "train_data"), "--vocab_path", str(sample / "vocab.txt"),
             "--item_tokens", str(sample / "item_tokens.txt")]
    assert train.main(["--recipe", "strong", "--epochs", "1", "--embedding_dim", "8",
                       "--hidden_size", "8", "--num_negatives", "20", "--model_dir",
                       str(path / "model"), *flags]) == 0
    assert retrieve.main(build_flags(sample, path, "index")) == 0
    return path


def build_flags(sample, path, index_dir):
    return ["build", "--model_dir", str(path / "model"), "--items_path", str(sample / "items.txt"),
            "--item_tokens", str(sample / "item_tokens.txt"), "--tokens_path",
            str(sample / "tokens.txt"), "--index_dir", str(path / index_dir)]


@pytest.fixture
def path(made, tmp_path):
    return str(shutil.copytree(made / "index", tmp_path / "index"))


def run(capsys, *argv):
    """(exit code, standard output, the lines of standard error that say error)"""
    capsys.readouterr()
    code = retrieve.main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, [line for line in captured.err.splitlines() if "error:" in line]


def build_of(path):
    return builds.current_build(path)


def rows_of(path):
    return os.path.join(build_of(path), "items.sqlite")


# --- damage ---------------------------------------------------------------------------------------


def change_row(path, column, change):
    """Changes what a row holds, as a flipped bit does."""
    with contextlib.closing(sqlite3.connect(rows_of(path))) as db, db:
        value, = db.execute(f"SELECT {column} FROM items WHERE id = 'n0007'").fetchone()
        db.execute(f"UPDATE items SET {column} = ? WHERE id = 'n0007'", (change(value),))


def flip(value):
    if isinstance(value, str):
        return chr(ord(value[0]) ^ 1) + value[1:]
    return value[:-1] + bytes([value[-1] ^ 0x40])


@pytest.mark.parametrize("column", ["text", "bag", "vector"])
def test_a_flipped_bit_of_an_item_is_told(path, capsys, column):
    change_row(path, column, flip)
    if column != "vector":  # a query reads none: it searches the faiss file, which has a checksum
        session = "n0001" if column == "text" else "n0007"
        with Index.open(path) as index, pytest.raises(StoreError, match="items.sqlite is damaged"):
            index.query([session], 60)
    code, out, _ = run(capsys, "check", "--index_dir", path)
    assert code == 1 and "'n0007'" in out and "faults:1\n" in out
    for command in ("reindex", "export-vectors"):
        argv = [command, "--index_dir", path] + [path + "/x"] * (command != "reindex")
        code, _, errors = run(capsys, *argv)
        assert code == 1 and "'n0007'" in errors[0] and len(errors) == 1


def test_a_text_that_has_become_bytes_is_told(path, capsys):
    """The same bytes, of another type: one bit of the row's head."""
    change_row(path, "text", str.encode)
    with Index.open(path) as index, pytest.raises(StoreError, match="items.sqlite is damaged"):
        index.query(["n0001"], 60)
    code, out, _ = run(capsys, "check", "--index_dir", path)
    assert code == 1 and "'n0007'" in out


def test_an_item_that_the_search_knows_and_the_database_does_not(path, capsys):
    with contextlib.closing(sqlite3.connect(rows_of(path))) as db, db:
        db.execute("DELETE FROM items WHERE id = 'n0007'")
    with Index.open(path) as index, pytest.raises(StoreError, match="there is no item"):
        index.query(["n0001"], 60)


def test_any_flipped_bit_is_told_or_harms_nobody(path, capsys):
    """Wherever it is: the answer is the same, or an error of one line."""
    with Index.open(path) as index:
        expected = index.query(["n0001", "n0002"], 60)
    random = np.random.default_rng(0)
    untold = 0
    files = [rows_of(path)] + [os.path.join(build_of(path), name)
                               for name in ("tokens.txt", "tokens.json", "model/epoch_1.json")]
    for name in files:
        with open(name, "rb") as f:
            good = f.read()
        for _ in range(25):
            place = int(random.integers(len(good)))
            bad = bytearray(good)
            bad[place] ^= 1 << int(random.integers(8))
            with open(name, "wb") as f:
                f.write(bad)
            try:
                with Index.open(path) as index:
                    untold += index.query(["n0001", "n0002"], 60) != expected
            except UserError as error:
                assert "\n" not in str(error)
                continue
            assert name == rows_of(path), name  # of others every bit counts
        with open(name, "wb") as f:
            f.write(good)
    assert untold == 0
    assert run(capsys, "check", "--index_dir", path)[:2] == (0, "faults:0\n")


def test_check_reads_the_clicks_too(path, capsys):
    with Index.open(path, True, Scoring()) as index:
        index.click([Click("a", "n0001")] * 2000)
    assert run(capsys, "check", "--index_dir", path)[:2] == (0, "faults:0\n")
    with open(os.path.join(path, "clicks.sqlite"), "r+b") as f:
        f.seek(3 * 4096)
        f.write(b"\xff" * 4096)
    code, out, _ = run(capsys, "check", "--index_dir", path)
    assert code == 1 and "clicks.sqlite is damaged" in out
    with open(os.path.join(path, "live.json"), "w") as f:
        f.write('{"candidate_age": "x"}')
    assert "live.json is damaged" in run(capsys, "check", "--index_dir", path)[1]
    code, _, errors = run(capsys, "query", "--session", "n0001", "--index_dir", path)
    assert code == 1 and "live.json is damaged" in errors[0]


def test_an_index_without_checksums_opens_and_takes_changes(path, capsys):
    """Format 1."""
    with contextlib.closing(sqlite3.connect(rows_of(path))) as db, db:
        for name in items.CRCS:
            db.execute(f"ALTER TABLE items DROP COLUMN {name}")
        db.execute("DELETE FROM meta WHERE name = 'search'")
        details = json.loads(items.get_meta(db, "details"))
        del details["files"]
        items.set_meta(db, "details", json.dumps(details))
    current = json.load(open(os.path.join(path, "current")))
    json.dump(dict(current, format=1), open(os.path.join(path, "current"), "w"))
    with Index.open(path, True) as index:
        index.add([Item("n0007", "changed")])
        assert "changed" in [hit.text for hit in index.query(["n0001"], 60).hits]
    for command in ("reindex", "check", "info"):
        assert run(capsys, command, "--index_dir", path)[0] == 0


# --- only read ------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_an_index_on_a_read_only_mount_is_read(path, tmp_path, capsys, enough_clicks):
    with Index.open(path, True, Scoring()) as index:
        index.click([Click("a", "n0007"), Click("b", "n0007")])
        expected = index.query(["n0001"], 1).hits[0].id
    mount = str(tmp_path / "mount")
    os.mkdir(mount)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        where = shutil.copytree(path, os.path.join(mount, "index"))
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        with Index.open(where) as index:
            assert index.query(["n0001"], 1).hits[0].id == expected == "n0007"
        for command in ("info", "check"):
            assert run(capsys, command, "--index_dir", where)[0] == 0
        code, _, errors = run(capsys, "remove", "--index_dir", where, "n0001")
        assert code == 1 and len(errors) == 1
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a directory")
@pytest.mark.parametrize("writes_first", [True, False])
def test_a_read_only_mount_beside_who_writes(path, tmp_path, enough_clicks, writes_first):
    with Index.open(path, True, Scoring()):
        pass
    mount = str(tmp_path / "mount")
    os.mkdir(mount)
    if subprocess.run(["mount", "--bind", path, mount], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", mount], check=True)
        with contextlib.ExitStack() as opened:
            if writes_first:
                writer = opened.enter_context(Index.open(path, True))
            reader = opened.enter_context(Index.open(mount))
            if not writes_first:
                writer = opened.enter_context(Index.open(path, True))
            for id in ("n0003", "n0004"):
                writer.remove([id])
                assert id not in {hit.id for hit in reader.query(["n0001"], 100).hits}
                writer.click([Click(id, "n0007")])
                writer._live._log.flush()
                assert reader.query(["n0001"], 1).hits[0].id == "n0007"
    finally:
        subprocess.run(["umount", mount], check=True)


# --- kinds of search ------------------------------------------------------------------------------


def test_reindex_keeps_the_kind(path, capsys):
    def kind(*flags):
        out = run(capsys, "reindex", "--index_dir", path, *flags)[1]
        return re.search("kind:(\\w+)(?: nlist:(\\d+) nprobe:(\\d+))?", out).groups()

    assert kind() == ("flat", None, None)
    assert kind("--ivf_above", "10", "--nlist", "7", "--nprobe", "3") == ("ivf", "7", "3")
    assert kind() == ("ivf", "7", "3")
    with Index.open(path, True) as index:
        index.remove([f"n{number:04d}" for number in range(52)])  # fewer than --ivf_above
    assert kind() == ("ivf", "7", "3")
    assert kind("--nlist", "5")[:2] == ("ivf", "5")
    assert kind("--ivf_above", "1000") == ("flat", None, None)
    assert kind() == ("flat", None, None)
    # Of an index that does not say, as versions before have left it.
    kind("--ivf_above", "5", "--nlist", "4")
    with contextlib.closing(sqlite3.connect(rows_of(path))) as db, db:
        db.execute("DELETE FROM meta WHERE name = 'search'")
    assert kind()[:2] == ("ivf", "4")


# --- commands -------------------------------------------------------------------------------------


def test_remove_does_not_take_a_file_for_an_id(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone.txt").write_text("n0001\n")
    code, _, errors = run(capsys, "remove", "--index_dir", path, "n0002", "gone.txt")
    assert code == 1 and "--items_path gone.txt" in errors[0]
    with Index.open(path, True) as index:
        assert index.counts()["removed"] == 0
        index.add([Item("gone.txt", "an item of that name")])
    assert run(capsys, "remove", "--index_dir", path, "n0002", "gone.txt")[0] == 0


def test_an_item_without_a_vector_can_be_removed(path):
    with Index.open(path, True) as index:
        assert index.add([Item("empty", "?")]).without_vector == ["empty"]
        assert index.remove(["empty"]) == (1, [])
        assert index.remove(["empty"]) == (0, ["empty"])
        assert index.counts()["without_vector"] == 0


def test_ids_with_white_space_can_be_queried(path, capsys):
    with Index.open(path, True) as index:
        index.add([Item("two words", index.query(["n0001"], 1).hits[0].text)])
    query = ["query", "--index_dir", path, "-k", "3"]
    unknown = run(capsys, *query, "--session", "nobody known")[1]
    assert run(capsys, *query, "--session", "two words")[1] == unknown
    one = run(capsys, *query, "--item", "two words")[1]
    assert len(one.splitlines()) == 3 and one != unknown
    both = run(capsys, *query, "--session", "n0001 n0002", "--item", "two words")[1]
    assert both != one and both != run(capsys, *query, "--session", "n0001 n0002")[1]
    code, _, errors = run(capsys, *query)
    assert code == 1 and "--item ID" in errors[0]


def test_a_text_cannot_forge_lines(path, capsys):
    forged = "x\n1\t0.9\tn0001\tforged\r\x1b[2J\x85\u2028\u202etxt"
    with Index.open(path, True) as index:
        index.add([Item("n0007", forged + " ")])
    out = run(capsys, "query", "--index_dir", path, "--session", "n0001", "-k", "60")[1]
    lines = [line for line in out.split("\n") if "\tn0007\t" in line]
    assert len(lines) == 1 and "\\n1\\t0.9" in lines[0]
    assert "\\x1b[2J\\x85\\u2028\\u202e" in lines[0]
    assert all(len(line.split("\t")) == 4 for line in out.split("\n")[:-1])


def test_a_text_is_bounded(path, made, sample, tmp_path, capsys):
    with Index.open(path, True) as index:
        index.add([Item("n0001", "é" * (MAX_TEXT // 2))])
        with pytest.raises(DataError, match="'n0002' is too long: 10242 bytes"):
            index.add([Item("n0001", "x"), Item("n0002", "é" * (MAX_TEXT // 2 + 1))])
        assert len(index.query(["n0003"], 60).hits) == 59
    lines = (sample / "items.txt").read_text().splitlines()
    lines[3] += "x" * MAX_TEXT
    (tmp_path / "long.txt").write_text("\n".join(lines) + "\n")
    flags = build_flags(sample, made, "other") + ["--items_path", str(tmp_path / "long.txt")]
    code, _, errors = run(capsys, *flags)
    assert code == 1 and "'n0003' is too long" in errors[0]


def test_build_refuses_items_in_another_order(made, sample, tmp_path, capsys):
    lines = (sample / "items.txt").read_text().splitlines()
    swapped = tmp_path / "swapped.txt"
    swapped.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    flags = build_flags(sample, made, "other") + ["--items_path", str(swapped)]
    code, _, errors = run(capsys, *flags)
    assert code == 1 and "in another order" in errors[0]
    renamed = tmp_path / "renamed.txt"  # other texts are no other items
    renamed.write_text("".join(line.split("\t")[0] + "\tnew\n" for line in lines))
    assert run(capsys, *flags, "--items_path", str(renamed))[0] == 0


# --- a reader beside a build ----------------------------------------------------------------------


def test_a_reader_beside_builds_always_finds_an_index(made, path):
    """Builds replace one another all the time; who opens the index finds one of them whole."""
    done, failures, opened = threading.Event(), [], []

    def replace():
        try:
            for _ in range(100):
                with builds.new_build(path, overwrite=True) as directory:
                    shutil.copytree(build_of(made / "index"), directory, dirs_exist_ok=True)
        finally:
            done.set()

    def read():
        while not done.is_set() and not failures:
            try:
                with Index.open(path) as index:
                    assert len(index.query(["n0001"], 5).hits) == 5
                opened.append(1)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=replace), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert len(opened) > 10


def test_names_of_the_package_are_lazy():
    code = ("import sys; from ssr.retrieval import Item, Click, Hit; Item('a'), Click('s', 'a'); "
            "assert not {'paddle', 'faiss'} & set(sys.modules); "
            "from ssr.retrieval import Index; import ssr.retrieval as r; "
            "assert all(hasattr(r, name) for name in r.__all__)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_store_of_one_kind_of_search_or_the_other(tmp_path):
    """SearchSettings alone: the recall of an approximate search is what it says."""
    random = np.random.default_rng(1)
    vectors = random.normal(size=(500, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [store.Row(f"n{number}", "", NOTHING, vector)
            for number, vector in enumerate(vectors)]
    path = str(tmp_path / "index")
    with builds.new_build(path) as directory:
        store.create(directory, 8, rows, {}, vectors[:50], SearchSettings(ivf_above=100))
    with store.Store(path) as opened:
        found = opened.search_settings()
        assert found["kind"] == "ivf" and found["recall@20"] >= 0.98
        searched = opened.searched_vectors(np.array([1, 500, 501]))
        np.testing.assert_array_equal(searched[:2], vectors[[0, 499]])
        assert np.isnan(searched[2]).all()

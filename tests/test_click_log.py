"""What a live index promises about clicks: none that was taken is lost or hidden, whatever the
disk, another process or a clock does."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

import retrieve
import train
from ssr.errors import DataError, StoreError
from ssr.news.stream import Scoring
from ssr.retrieval import Click, Index, Item, live
from ssr.retrieval import clicks as click_log

POPULAR = Scoring().without("readers", "content", "transitions")
START = 1_700_000_000.0
HOUR, DAY = 3600, 86400
pytestmark = pytest.mark.usefixtures("enough_clicks")


@pytest.fixture(scope="module")
def empty_index(sample, tmp_path_factory):
    """The directory of an index without clicks."""
    path = tmp_path_factory.mktemp("trained")
    files = ["--train_dir", str(sample / "train_data"), "--vocab_path", str(sample / "vocab.txt")]
    assert train.main(["--recipe", "strong", "--epochs", "1", "--embedding_dim", "8",
                       "--hidden_size", "8", "--num_negatives", "20", "--model_dir",
                       str(path / "model"), *files]) == 0
    assert retrieve.main(["build", "--model_dir", str(path / "model"), "--items_path",
                          str(sample / "items.txt"), "--index_dir", str(path / "index")]) == 0
    return path / "index"


@pytest.fixture
def path(empty_index, tmp_path):
    """A copy of it, of the test's own."""
    return str(shutil.copytree(empty_index, tmp_path / "index"))


class Clock:
    """A machine's clock that a test sets."""

    def __init__(self, now=START):
        self.now = now

    def __call__(self):
        return self.now


def open_live(path, clock=None, writable=True, **flags):
    return Index.open(path, writable, POPULAR, clock=clock or time.time, **flags)


def ids_of(index, k=9):
    """What clicks rank, for a reader of whom nothing is known."""
    return [hit.id for hit in index.query([], k).hits if hit.source == "live"]


def logged(path):
    """How many clicks are in the log."""
    with contextlib.closing(sqlite3.connect(os.path.join(path, "clicks.sqlite"))) as db:
        return db.execute("SELECT count(*) FROM clicks").fetchone()[0]


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- the disk -------------------------------------------------------------------------------------


HOLD_LOCK = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(path):
    """Another process holds a write lock on the log."""
    file = os.path.join(path, "clicks.sqlite")
    holder = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, file], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        holder.communicate("")


def test_clicks_wait_while_another_process_locks_the_log(path):
    with open_live(path) as index:
        index.click([Click("a", "n0001")])
        wait_for(lambda: index.click_backlog() == 0)
        with locked(path):
            for number in range(50):
                index.click([Click(f"s{number}", "n0002")])
            time.sleep(click_log.LOCK_PATIENCE + 2 * click_log.FLUSH_EVERY)  # an attempt has failed
            index.click([Click("b", "n0003")])
            assert index.click_backlog() == 51 and logged(path) == 1
        wait_for(lambda: index.click_backlog() == 0)
        assert logged(path) == 52
        index.click([Click("c", "n0004")])
    assert logged(path) == 53


def test_closing_waits_for_the_lock(path, monkeypatch):
    index = open_live(path)
    with locked(path):
        index.click([Click("a", "n0001")])
        time.sleep(click_log.LOCK_PATIENCE + 1)
    index.close()
    assert logged(path) == 1
    monkeypatch.setattr(click_log, "FLUSH_PATIENCE", 0.1)
    index = open_live(path)
    with locked(path):
        index.click([Click("a", "n0001")])
        with pytest.raises(StoreError, match="1 clicks are lost"):
            index.close()
    open_live(path).close()  # the other lock was given back


def test_no_more_clicks_are_taken_than_may_wait(path, monkeypatch):
    monkeypatch.setattr(click_log, "MAX_BACKLOG", 10)
    monkeypatch.setattr(click_log, "FLUSH_EVERY", 1000)
    with open_live(path) as index:
        index.click([Click(f"s{number}", "n0001") for number in range(9)])
        before = index.query([], 5).hits
        with pytest.raises(StoreError, match="9 clicks wait"):
            index.click([Click("x", "n0002"), Click("y", "n0002")])
        assert [hit.id for hit in index.query([], 5).hits] == [hit.id for hit in before]
        index.click([Click("x", "n0002")])
    assert logged(path) == 10


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_clicks_wait_while_the_disk_is_full(empty_index, tmp_path):
    disk = str(tmp_path / "disk")
    os.mkdir(disk)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk],
                      capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        path = shutil.copytree(empty_index, os.path.join(disk, "index"))
        with open_live(path) as index:
            index.click([Click("a", "n0001")])
            wait_for(lambda: index.click_backlog() == 0)
            with contextlib.suppress(OSError), open(os.path.join(disk, "fill"), "wb", 0) as f:
                while f.write(b"\0" * 4096):
                    pass
            for number in range(3000):
                index.click([Click(f"s{number}", f"n{number % 50:04d}")])
            time.sleep(2)
            assert 0 < index.click_backlog() <= 3000
            os.remove(os.path.join(disk, "fill"))
            wait_for(lambda: index.click_backlog() == 0)
            assert logged(path) == 3001
    finally:
        subprocess.run(["umount", disk], check=True)


# --- clocks ---------------------------------------------------------------------------------------


def test_a_click_of_the_future_counts_as_of_now(path):
    """The clock of a client leads by a day: its click evicts nobody else's."""
    clock = Clock()
    with open_live(path, clock) as index:
        index.click([Click(f"s{number}", f"n{number % 20:04d}") for number in range(100)])
        clock.now += 1
        for _ in range(2):
            index.click([Click("x", "n0030", clock.now + 86_340), Click("y", "n0031", START + 2)])
        clock.now += 1
        assert index.clicks_ahead == 2
        assert len(ids_of(index, 50)) == 22
    with open_live(path, clock) as index:
        assert len(ids_of(index, 50)) == 22
        assert index.clicks_ahead == 0


def test_a_click_may_lag_as_long_as_an_item_is_a_candidate(path):
    clock = Clock()
    with open_live(path, clock, candidate_age=2 * HOUR) as index:
        index.click([Click("a", "n0001", START - 2 * HOUR + 1)])
        for when in (START - 2 * HOUR - 1, 0.0):
            with pytest.raises(DataError, match="too long ago.*2 hours"):
                index.click([Click("b", "n0002"), Click("a", "n0003", when)])
        clock.now += 0.5
        assert ids_of(index) == ["n0001"]


def write_log(path, clicks):
    """A log as it was written when a click was taken with whatever time it came with."""
    click_log.ClickLog(os.path.join(path, "clicks.sqlite"), True).close()
    with contextlib.closing(sqlite3.connect(os.path.join(path, "clicks.sqlite"))) as db, db:
        db.executemany("INSERT INTO clicks (session, item, time, published) VALUES (?, ?, ?, 0)",
                       clicks)


def test_a_log_with_clicks_of_the_future_heals(path):
    write_log(path, [("a", "n0001", START - 50), ("b", "n0002", START + DAY),
                     ("c", "n0003", START - 40), ("d", "n0003", START - 30)])
    with open_live(path, Clock()) as index:
        assert set(ids_of(index)) == {"n0001", "n0002", "n0003"}
    # What came in between two others came in when they did, however often it is opened.
    with open_live(path, Clock(START + DAY - 45)) as index:
        assert ids_of(index) == ["n0003"]


def test_a_clock_that_goes_back_hides_and_deletes_nothing(path):
    clock = Clock()
    with open_live(path, clock) as index:
        index.click([Click("a", "n0001"), Click("b", "n0001"), Click("c", "n0002")])
        clock.now += 10
        assert ids_of(index) == ["n0001", "n0002"]
        clock.now = START - HOUR
        assert ids_of(index) == ["n0001", "n0002"]
        clock.now += 60
        index.click([Click(f"s{number}", "n0003") for number in range(4)])
        clock.now += 1
        assert ids_of(index) == ["n0003", "n0001", "n0002"]
    with open_live(path, Clock(START - HOUR + 70)) as index:
        assert ids_of(index) == ["n0003", "n0001", "n0002"]
    with open_live(path, Clock(START + 20)) as index:
        assert set(ids_of(index)) == {"n0001", "n0002", "n0003"}
    assert logged(path) == 7


@pytest.mark.parametrize("away", [3 * DAY, -DAY, -START])
def test_an_index_that_was_opened_with_a_wrong_clock(path, away):
    """For some hours; some clicks come in. Nothing is lost when the clock is right again."""
    with open_live(path, Clock()) as index:
        index.click([Click("a", "n0001"), Click("b", "n0001"), Click("c", "n0002")])
    clock = Clock(START + 100 + away)
    with open_live(path, clock) as index:
        for _ in range(5):
            index.click([Click("d", "n0003")])
            clock.now += HOUR + 1
            ids_of(index)
        clock.now = START + 200  # somebody sets it, while it is open
        assert {"n0001", "n0002"} <= set(ids_of(index))
    with open_live(path, Clock(START + 300)) as index:
        assert {"n0001", "n0002"} <= set(ids_of(index))
        if away > 0:  # else they are said to be older than a day
            assert "n0003" in ids_of(index)
    assert logged(path) == 8


def test_the_log_is_pruned_once_a_day_of_readings_agrees(path):
    log = click_log.ClickLog(os.path.join(path, "clicks.sqlite"), True)
    users = [None] * 3
    log.append([Click("a", "n0001", START), Click("a", "n0002", START + HOUR),
                Click("a", "n0003", START + 40 * HOUR)], users)
    log.flush()
    for reading in range(click_log.CLOCK_READINGS):
        assert logged(path) == 3
        log.prune(START + 25.5 * HOUR + reading * (HOUR + 1), DAY)
        log.prune(START + 25.5 * HOUR + reading * (HOUR + 1) + 5, DAY)  # no reading of its own
    assert logged(path) == 1
    log.close()


# --- settings -------------------------------------------------------------------------------------


def test_what_is_live_is_the_index(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = retrieve.main([argv[0], "--index_dir", path, *argv[1:]])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def live_file():
        with open(os.path.join(path, "live.json")) as f:
            return f.read()

    assert not Index.open(path).is_live
    assert "live" not in run("info")[1]
    assert run("query", "--session", "n0001", "--weight", "readers=0")[0] == 1
    now = time.time()
    with open("clicks.tsv", "w") as f:
        f.write(f"a\tn0007\t{now - 20}\nb\tn0007\nb\tn0008\t{now - 40 * HOUR}\n")
    code, out, err = run("click", "--candidate_age", "24", "clicks.tsv")
    assert (code, out) == (0, "clicks:2\n") and "1 clicks are too old" in err
    assert "live candidate_age:24" in run("info")[1]
    before = live_file()
    # Nobody who opens it changes that, and what contradicts it is told.
    for argv in (("click", "clicks.tsv"), ("query", "--session", "n0001")):
        code, _, err = run(*argv, "--candidate_age", "1")
        assert code == 1 and f"retrieve.py live --index_dir {path} --candidate_age 1" in err
    with pytest.raises(StoreError, match="live --index_dir"):
        Index.open(path, True, POPULAR, candidate_age=HOUR)
    out = run("query", "--session", "n0001", "-k", "2")[1].splitlines()
    assert [line.split("\t")[2::2] for line in out] == [["n0007", "live"],
                                                        [out[1].split("\t")[2], "nearest"]]
    with open_live(path) as index:
        assert index.scoring == POPULAR
    with Index.open(path) as index:
        assert index.is_live and index.scoring == Scoring() and index.candidate_age == DAY
    assert live_file() == before and logged(path) == 2
    assert run("live", "--candidate_age", "72", "--scoring", "default", "--weight",
               "readers=0.5")[0] == 0
    with Index.open(path, True) as index:
        assert index.scoring == Scoring(readers=0.5) and index.candidate_age == 72 * HOUR
        assert run("live")[0] == 1  # somebody writes


def test_an_index_is_built_live_and_stays_so(empty_index, sample, tmp_path, capsys):
    path = str(tmp_path / "index")
    build = ["build", "--model_dir", str(empty_index.parent / "model"), "--items_path",
             str(sample / "items.txt"), "--index_dir", path]
    assert retrieve.main([*build, "--live"]) == 0
    assert retrieve.main(["live", "--index_dir", path, "--candidate_age", "48"]) == 0
    with Index.open(path, True) as index:
        index.click([Click("a", "n0007")])
    assert retrieve.main([*build, "--overwrite"]) == 0
    with Index.open(path) as index:
        assert index.candidate_age == 48 * HOUR and index.query([], 1).hits[0].id == "n0007"


def test_removing_withdraws_from_the_clicks_as_well(path, capsys):
    with open_live(path) as index:
        index.click([Click(f"s{n}", item) for n, item in enumerate(["new", "new", "n0007"])])
    assert retrieve.main(["remove", "--index_dir", path, "new"]) == 0
    assert "removed:1 unknown:0" in capsys.readouterr().out
    with Index.open(path) as index:
        assert ids_of(index)[0] == "n0007" and "new" not in ids_of(index)


# --- one session ----------------------------------------------------------------------------------


def test_one_session_counts_once_for_an_item(path):
    """However often it clicks, also when it is read again from the log."""
    clock = Clock()
    with open_live(path, clock) as index:
        for number in range(3):
            index.click([Click(f"reader{number}", "n0005"), Click(f"reader{number}", "n0006")])
        for _ in range(300):
            clock.now += 1
            index.click([Click("loud", "n0007"), Click("loud", "n0008")])
        clock.now += 1
        assert set(ids_of(index, 2)) == {"n0005", "n0006"}
    with open_live(path, clock) as index:
        assert set(ids_of(index, 2)) == {"n0005", "n0006"}


def test_one_session_lifts_so_many_items_at_most(path, monkeypatch):
    monkeypatch.setattr(click_log, "SESSION_ITEMS", 5)
    clock = Clock()
    with open_live(path, clock) as index:
        index.click([Click("loud", f"n{number:04d}") for number in range(1, 20)])
        clock.now += 1
        assert ids_of(index, 30) == [f"n{number:04d}" for number in range(5, 0, -1)] or \
            set(ids_of(index, 30)) == {f"n{number:04d}" for number in range(1, 6)}


def test_readers_of_another_model_are_left_out(path):
    """A log whose vectors have another length than the index's, which no version writes."""
    log = click_log.ClickLog(os.path.join(path, "clicks.sqlite"), True)
    log.set_users({}, Index.open(path).details["digest"])
    log.append([Click("a", "n0001", START)], [np.zeros(3, np.float32)])
    log.close()
    with open_live(path, Clock(START + 1)) as index:
        assert ids_of(index) == ["n0001"]


def test_published_items_are_candidates_after_a_clock_went_back(path):
    clock = Clock()
    with open_live(path, clock) as index:
        index.add([Item("n0009", "published")])
        index.remove(["n0009"])
        index.click([Click("a", "n0001")])
        clock.now -= 100
        assert ids_of(index) == ["n0001"]
        index.add([Item("n0009", "published")])
        clock.now += 1
        assert set(ids_of(index)) == {"n0001", "n0009"}
    assert live.LEAD < 100

"""The snapshot of a live index: opening with it gives what opening without it gives."""

import contextlib
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssr.news.scoring import Scoring
from ssr.retrieval import live, live_snapshot
from ssr.retrieval.catalogue import Catalogue
from ssr.retrieval.clicks import Click, ClickLog, Sessions
from ssr.retrieval.live import LiveClicks

START = 1_700_000_000.0
DIM, ITEMS = 4, 12


def vector(key):
    x = np.random.default_rng(key).normal(size=DIM)
    return (x / np.linalg.norm(x)).astype(np.float32)


def encode(sessions):
    return [np.mean([vector(key) for key in session], axis=0) if session else None
            for session in sessions]


def catalogue(model="model"):
    return Catalogue(model, DIM, lambda ids: {id: int(id) for id in ids}, encode, vector)


class Machine:
    """A log, a snapshot beside it, and a clock that a test sets."""

    def __init__(self, path):
        self.path, self.now, self.withdrawn = str(path), START, set()
        os.makedirs(self.path, exist_ok=True)
        self.snapshot = os.path.join(self.path, live_snapshot.FILE)

    def open(self, writable=True, snapshot=True, age=86400.0, model="model"):
        opened = LiveClicks(ClickLog(os.path.join(self.path, "clicks.sqlite"), writable), writable,
                            catalogue(model), age, lambda: self.now,
                            self.snapshot if snapshot else None)
        opened.set_withdrawn(set(self.withdrawn))
        return opened

    def answers(self, **options):
        """{key: score} for some sessions, of who opens it now."""
        with contextlib.closing(self.open(False, **options)) as opened:
            return answers_of(opened)


def answers_of(opened):
    return [dict(opened.top(encode([session])[0], session, Scoring(), 99, True))
            for session in ([1, 2, 3], [5], [])]


def assert_same(some, others):
    for one, other in zip(some, others):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key] == pytest.approx(other[key], abs=2e-3)


item, session = st.integers(1, ITEMS), st.sampled_from(["a", "b", "c", "d", None])
late = st.floats(0, 3000) | st.floats(-100, 0) | st.none()
steps = st.lists(st.one_of(
    st.tuples(st.just("click"), st.lists(st.tuples(session, item, late), min_size=1, max_size=5)),
    st.tuples(st.just("publish"), item), st.tuples(st.just("withdraw"), item),
    st.tuples(st.just("wait"), st.floats(0.001, 55)),
    st.tuples(st.just("set the clock"), st.floats(-4000, 4000)),
    st.tuples(st.just("save"), st.none()), st.tuples(st.just("close"), st.none()),
    st.tuples(st.just("crash"), st.none())), max_size=25)


def take(machine, opened, kind, value):
    """A step. Returns what is open after it."""
    if kind == "click":
        opened.click([Click(name, str(key), None if ago is None else machine.now - ago)
                      for name, key, ago in value])
    elif kind == "publish":
        machine.withdrawn.discard(value)
        opened.publish({str(value): value}, [vector(value)])
    elif kind == "withdraw":
        machine.withdrawn.add(value)
        opened.withdraw([value])
    elif kind in ("wait", "set the clock"):
        machine.now += value
        opened.now()
    elif kind == "save":
        opened._save()
    else:  # a crash: what is on the disk stays, no snapshot is written
        opened._unsaved *= kind == "close"
        opened.close()
        opened = machine.open()
    return opened


@settings(max_examples=40, deadline=None)
@given(steps=steps)
def test_the_answers_are_those_of_the_log(tmp_path_factory, steps):
    machine = Machine(tmp_path_factory.mktemp("machine"))
    before, live.SAVE_AT_CLOSING = live.SAVE_AT_CLOSING, 1
    try:
        opened = machine.open()
        for kind, value in steps:
            opened = take(machine, opened, kind, value)
        opened.close()
        for away in (1, 10_000, -2, -500):
            machine.now += away
            assert_same(machine.answers(), machine.answers(snapshot=False))
    finally:
        live.SAVE_AT_CLOSING = before


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """With a log of which the snapshot holds all but the last click."""
    monkeypatch.setattr(live, "SAVE_AT_CLOSING", 1)
    machine = Machine(tmp_path / "machine")
    opened = machine.open()
    for number in range(40):
        machine.now += 1
        opened.click([Click(f"s{number % 7}", str(1 + number * number % ITEMS))])
    machine.now += 1
    opened.close()
    opened = machine.open()
    opened.click([Click("s1", "11")])
    opened._unsaved = 0
    machine.now += 1
    opened.close()
    return machine


def count_read(monkeypatch):
    """A list that grows by each row that is read from a log."""
    read, rows = ClickLog.read, []

    def counted(self, *args):
        for part in read(self, *args):
            rows.extend(part)
            yield part

    monkeypatch.setattr(ClickLog, "read", counted)
    return rows


def test_what_came_later_is_all_that_is_read(machine, monkeypatch):
    rows = count_read(monkeypatch)
    assert_same(machine.answers(), machine.answers(snapshot=False))
    assert len(rows) == 1 + 41


def damage(machine, place):
    with open(machine.snapshot, "r+b") as f:
        f.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))


def truncate(machine):
    os.truncate(machine.snapshot, os.path.getsize(machine.snapshot) // 2)


def other_log(machine):
    """Of other clicks, as many of them."""
    os.remove(os.path.join(machine.path, "clicks.sqlite"))
    with contextlib.closing(machine.open(snapshot=False)) as opened:
        for _ in range(45):
            opened.click([Click("x", "2")])
    machine.now += 1


def older_log(machine):
    os.remove(os.path.join(machine.path, "clicks.sqlite"))
    machine.open(snapshot=False).close()


@pytest.mark.parametrize("what", [
    lambda machine: damage(machine, 3), lambda machine: damage(machine, 500),
    lambda machine: damage(machine, -1), truncate, lambda machine: os.truncate(machine.snapshot, 0),
    other_log, older_log, lambda machine: setattr(machine, "now", machine.now - 3600)])
def test_a_snapshot_that_is_of_no_use_is_passed_over(machine, what, monkeypatch):
    what(machine)
    rows = count_read(monkeypatch)
    with_it, count = machine.answers(), len(rows)
    assert_same(with_it, machine.answers(snapshot=False))
    assert len(rows) == 2 * count  # the same was read


def test_a_snapshot_is_of_one_model_and_one_age(machine, monkeypatch):
    rows = count_read(monkeypatch)
    assert_same(machine.answers(model="other"), machine.answers(model="other", snapshot=False))
    assert_same(machine.answers(age=30.0), machine.answers(age=30.0, snapshot=False))
    assert len(rows) > 100


def test_none_is_written_while_a_clock_is_wrong(machine):
    """What is placed elsewhere than where the log has it would be there for good."""
    os.remove(machine.snapshot)
    machine.now -= 3600
    machine.open().close()
    assert not os.path.exists(machine.snapshot)
    machine.now += 3600
    opened = machine.open()
    opened.top(None, [], Scoring(), 5, True, now=machine.now + 90_000)  # all is old then
    opened.close()
    assert not os.path.exists(machine.snapshot)
    machine.open().close()
    assert os.path.exists(machine.snapshot)


def test_it_is_written_beside_the_clicks(tmp_path, monkeypatch):
    """Not only at the end, so that a crash costs little; what a killed process left is removed."""
    monkeypatch.setattr(live, "SAVE_AFTER", 5)
    monkeypatch.setattr(live, "SAVE_EVERY", 0.0)
    machine = Machine(tmp_path / "machine")
    left = machine.snapshot + ".7.tmp"
    with open(left, "w"):
        pass
    opened = machine.open()
    assert not os.path.exists(left)
    opened.click([Click("a", "1")] * 5)
    end = time.monotonic() + 20
    while not os.path.exists(machine.snapshot):
        assert time.monotonic() < end
        time.sleep(0.01)
    opened.click([Click("a", "2")])
    opened.close()
    machine.now += 1
    assert_same(machine.answers(), machine.answers(snapshot=False))


def test_sessions_as_text():
    sessions = Sessions()
    for name, key in (("a", 1), ("b\n\u2028", 2), ("a", 3), ("", 4), ("谁", 5)):
        sessions.add(name, key, START + key)
    again = Sessions.from_text(sessions.to_text())
    for name in ("a", "b\n\u2028", "", "谁"):
        assert again.add(name, 9, START + 9) == sessions.add(name, 9, START + 9)
    assert Sessions.from_text(Sessions().to_text()).add("a", 1, START).clicked == []

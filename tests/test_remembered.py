"""What is remembered of a database is what it holds."""

import threading

import numpy as np
import pytest

from ssr.retrieval import remembered
from ssr.retrieval.bag import NOTHING
from ssr.retrieval.items import Items, create_items
from ssr.retrieval.remembered import Remembered
from ssr.retrieval.rows import Row


class Database:
    def __init__(self, **values):
        self.values, self.version, self.reads = values, 0, []

    def read(self, keys):
        self.reads.append(keys)
        return {key: self.values[key] for key in keys if key in self.values}

    def change(self, **values):
        self.values.update(values)
        self.version += 1


def remember(database):
    return Remembered(database.read, lambda: database.version)


def test_a_value_is_read_once_until_something_changes():
    database = Database(a=1, b=2)
    found = remember(database)
    assert found.find(["a", "c", "a"]) == {"a": 1}
    assert found.find(["b", "a"]) == {"b": 2, "a": 1}
    assert database.reads == [["a", "c"], ["b"]]
    database.change(a=3, c=4)
    assert found.find(["a", "c"]) == {"a": 3, "c": 4}
    assert database.reads[2:] == [["a", "c"]]


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(remembered, "ROOM", 10)
    database = Database(**{str(number): number for number in range(100)})
    found = remember(database)
    for number in range(100):
        assert found.find([str(number)]) == {str(number): number}
        assert len(found._values) <= 11


def test_an_error_leaves_it_as_it_was():
    database = Database(a=1)
    found = remember(database)
    found._read = lambda keys: 1 / 0
    with pytest.raises(ZeroDivisionError):
        found.find(["a"])
    found._read = database.read
    assert found.find(["a"]) == {"a": 1}


def test_a_value_that_was_read_before_a_change_is_not_kept_after_it():
    """One thread reads while another one changes the database and asks."""
    database, reading, go_on = Database(a=1), threading.Event(), threading.Event()
    found = remember(database)

    def slow_read(keys):
        values = Database.read(database, keys)
        reading.set()
        go_on.wait(10)
        return values
    found._read = slow_read
    first = threading.Thread(target=found.find, args=[["a"]])
    first.start()
    assert reading.wait(10)
    found._read = database.read
    database.change(a=2)
    second = threading.Thread(target=found.find, args=[["a"]])
    second.start()
    go_on.set()
    for thread in (first, second):
        thread.join(10)
    assert found.find(["a"]) == {"a": 2}


def test_items_that_another_connection_changes_are_seen(tmp_path):
    file = str(tmp_path / "items.sqlite")
    rows = [Row(name, f"text of {name}", NOTHING, None) for name in "ab"]
    create_items(file, 2, rows, {}, np.zeros((1, 2)))
    reader, writer = Items(file), Items(file, writable=True)
    try:
        for items in (reader, writer):
            assert {id: item.key for id, item in items.find(["a", "b", "x"]).items()} == {
                "a": 1, "b": 2}
            assert items.texts([2, 1]) == {2: ("b", "text of b"), 1: ("a", "text of a")}
            assert not items.bags([1])[1]
        with writer.transaction():
            writer.put([Row("a", "another", NOTHING, None), Row("x", "new", NOTHING, None)], 2)
        for items in (reader, writer):
            assert set(items.find(["a", "b", "x"])) == {"a", "b", "x"}
            assert items.texts([1])[1] == ("a", "another")
    finally:
        reader.close()
        writer.close()

"""The generator of sessions, and the sample that is committed."""

import os
import subprocess
import sys

import numpy as np
import pytest

import preprocess
import reader
from ssr.data_directory import TOKEN_FILES, DataDirectory
from ssr.preparation import sample as make_sample
from ssr.preparation import text
from ssr.training.content import load_item_tokens

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_the_committed_sample_is_what_the_generator_makes(tmp_path):
    content = [os.path.join("sample", name) for name in (
        "train_times/sessions.txt", "test_times/sessions.txt", "valid_data/sessions.txt",
        "items.txt", "clicks.csv", *TOKEN_FILES)]
    assert make_sample.main(["--output_dir", str(tmp_path), "--content_dir",
                             str(tmp_path / "sample"), "--clicks_path",
                             str(tmp_path / "sample/clicks.csv")]) == 0
    names = ["train_data/sessions.txt", "test_data/sessions.txt", "vocab.txt", *content]
    assert sorted(names) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")
                                   if path.is_file())
    for name in names:
        with open(os.path.join(ROOT, name), "rb") as committed, open(tmp_path / name, "rb") as made:
            assert committed.read() == made.read(), name


def test_the_generator_runs_by_itself_and_without_paddle(tmp_path):
    (tmp_path / "paddle.py").write_text("raise SystemExit('Paddle was loaded')")
    command = [sys.executable, "-m", "ssr.preparation.sample", "--output_dir", str(tmp_path),
               "--num_items", "7", "--train_sessions", "3", "--test_sessions", "2"]
    subprocess.run(command, check=True, cwd=ROOT,
                   env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (tmp_path / "vocab.txt").read_text() == "7\n"
    assert len((tmp_path / "train_data" / "sessions.txt").read_text().splitlines()) == 3
    assert (tmp_path / "items.txt").exists()


def test_headlines_carry_the_topic_and_leave_the_sessions_alone(tmp_path):
    headlines = make_sample.make_headlines(500, seed=1)
    for item, headline in enumerate(headlines):
        topic, people, *_, chinese, matter = make_sample.TOPICS[item % len(make_sample.TOPICS)]
        assert headline.lower().startswith(tuple(people.split(", "))) or \
            (headline.startswith(chinese) and headline.endswith(matter)), (topic, headline)
    assert sum(not headline.isascii() for headline in headlines) == 40
    with open(os.path.join(ROOT, "sample", "items.txt"), encoding="utf-8") as f:
        assert [line.rstrip("\n").split("\t")[1] for line in f] == headlines
    tokens = load_item_tokens(os.path.join(ROOT, "sample", "item_tokens.txt"), 500)
    vocabulary = text.TokenVocabulary.load(os.path.join(ROOT, "sample", "tokens.txt"))
    assert tokens.num_tokens == len(vocabulary)
    for item in (0, 221, 499):
        own = tokens.tokens[tokens.offsets[item]:tokens.offsets[item + 1]]
        assert own.tolist() == vocabulary.encode(headlines[item]).tolist()


def test_times_are_those_of_the_clicks_and_rise():
    train, times = reader.load_timed_sessions(os.path.join(ROOT, "train_data"),
                                              os.path.join(ROOT, "sample", "train_times"), 500)
    starts = times[train.offsets[:-1]]
    assert (np.diff(starts) > 0).all() and len(times) == len(train.items)
    _, later = reader.load_timed_sessions(os.path.join(ROOT, "test_data"),
                                          os.path.join(ROOT, "sample", "test_times"), 500)
    assert later.min() > starts.max()
    assert later.max() - times.min() < make_sample.DAYS * 86_400 + 9000


def test_the_table_of_clicks_is_news(tmp_path):
    """New articles every day, some of which training does not know, and some that no session has
    clicked often enough."""
    assert preprocess.main([
        "clicks", "--input", os.path.join(ROOT, "sample", "clicks.csv"), "--text_column", "Title",
        "--valid_days", "1", "--keep_unknown", "--keep_times", "--all_items", "--output_dir",
        str(tmp_path)]) == 0
    directory = DataDirectory.open(str(tmp_path))
    parts = {part: reader.load_timed_sessions(directory.sessions(part), directory.times(part),
                                              directory.description.items)[0]
             for part in ("train", "valid", "test")}
    clicks = {part: dataset.item_clicks() for part, dataset in parts.items()}
    labels = parts["test"].items[parts["test"].offsets[1:] - 1]
    assert 0.1 < (clicks["train"][labels] == 0).mean() < 0.5
    assert (sum(clicks.values()) == 0).sum() > 50
    with open(directory.items, encoding="utf-8") as made, \
            open(os.path.join(ROOT, "sample", "items.txt"), encoding="utf-8") as sample:
        assert {*made} < {*sample}  # the articles are those of the sample


@pytest.mark.parametrize("num_items", [2, 7, 20, 21, 5000])
def test_sessions_keep_to_the_items_there_are(num_items):
    items, offsets = make_sample.make_sessions(500, num_items, seed=3)
    lengths = np.diff(offsets)
    assert offsets[0] == 0 and offsets[-1] == len(items)
    assert lengths.min() >= 2 and lengths.max() <= make_sample.MAX_LENGTH
    assert items.min() >= 0 and items.max() < num_items


def test_popularity_ranks_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "benchmarks"))
    popular = __import__("popular")
    train = reader.YoochooseDataset(np.array([0, 0, 0, 1, 1, 2, 2, 3], np.int32),
                                    np.array([0, 8]), 5)
    labels = np.array([0, 1, 2, 3, 4], np.int32)
    test = reader.YoochooseDataset(np.stack([labels, labels], 1).ravel(), np.arange(0, 11, 2), 5)
    # Items 1 and 2 tie: both have the worse rank. Item 4 was never clicked.
    assert popular.popularity_ranks(train, test).tolist() == [1, 3, 3, 4, 0]


@pytest.mark.parametrize("flags, code", [(["--num_items", "1"], 2), (["--seed", "-1"], 2),
                                         (["--output_dir", "a_file/below"], 1)])
def test_errors(tmp_path, monkeypatch, capsys, flags, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    if code == 2:
        with pytest.raises(SystemExit) as error:
            make_sample.main(flags)
        assert error.value.code == 2
    else:
        assert make_sample.main(flags) == 1
    assert "error: " in capsys.readouterr().err

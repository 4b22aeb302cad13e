"""Lists that were shown: the metrics of infer.py --impressions against their definitions, scores
against the encoder's own vectors, and the reader."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, mutated

import infer
import preprocess
import train
from nets import SequenceSemanticRetrieval
from ssr.errors import DataError
from ssr.evaluation import impressions
from ssr.retrieval.checkpoint import choose_checkpoint
from ssr.retrieval.encoder import IdEncoder

ITEMS = 9
LINES = "100\t0 1 2\t3-1 4-0 5-0\n90\t\t6-0 7-1\n120\t0 1 2\t8-0 2-1 1-1 0-0\n"


# --- metrics --------------------------------------------------------------------------------------


def by_definition(scores, labels):
    """The metrics of one impression, {name: value}."""
    clicked = [score for score, label in zip(scores, labels) if label]
    others = [score for score, label in zip(scores, labels) if not label]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in clicked for b in others]
    # A stable sort from the lowest to the highest, turned round.
    ranked = [labels[place] for place in sorted(range(len(scores)), key=scores.__getitem__)][::-1]
    metrics = {"auc": sum(wins) / len(wins),
               "mrr": sum(1 / rank for rank, label in enumerate(ranked, 1) if label) / len(clicked)}
    for k in (5, 10):
        gain = sum(1 / math.log2(1 + rank) for rank, label in enumerate(ranked[:k], 1) if label)
        best = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(clicked)) + 1))
        metrics[f"ndcg@{k}"] = gain / best
    return metrics


def mean_by_definition(scores, labels, offsets):
    """(means, impressions left out), as of impressions.measure."""
    measured = []
    for begin, end in zip(offsets[:-1], offsets[1:]):
        of_impression = list(map(bool, labels[begin:end]))
        if any(of_impression) and not all(of_impression):
            measured.append(by_definition(list(scores[begin:end]), of_impression))
    means = {name: sum(metrics[name] for metrics in measured) / len(measured) if measured
             else math.nan for name in impressions.NAMES}
    return means, len(offsets) - 1 - len(measured)


# Few different scores, so that many are equal.
shown_to_users = st.lists(st.lists(st.tuples(
    st.sampled_from([-math.inf, -0.5, 0.0, 0.25, 0.5]), st.booleans()), min_size=1, max_size=14),
    min_size=1, max_size=8)


@settings(deadline=None, max_examples=100)
@given(shown_to_users)
def test_metrics_are_those_of_their_definitions(lists):
    scores, labels = (np.array(column) for column in zip(*(pair for of in lists for pair in of)))
    offsets = np.concatenate([[0], np.cumsum(list(map(len, lists)))])
    means, left_out = impressions.measure(scores.astype(np.float32), labels, offsets)
    expected, expected_out = mean_by_definition(scores, labels, offsets)
    assert left_out == expected_out and list(means) == list(impressions.NAMES)
    assert means == pytest.approx(expected, nan_ok=True)


def test_metrics_of_an_impression_by_hand():
    """Ranks 1 and 3 were clicked: 3 of 4 pairs are in order."""
    means, _ = impressions.measure(np.array([0.1, 0.9, 0.3, 0.4]),
                                   np.array([False, True, True, False]), np.array([0, 4]))
    best = 1 + 1 / math.log2(3)
    assert means == pytest.approx({"auc": 0.75, "mrr": (1 + 1 / 3) / 2, "ndcg@5": 1.5 / best,
                                   "ndcg@10": 1.5 / best})


def test_of_equal_scores_the_last_one_shown_is_first():
    for labels, mrr in (([True, False], 0.5), ([False, True], 1.0)):
        means, _ = impressions.measure(np.zeros(2), np.array(labels), np.array([0, 2]))
        assert means["auc"] == 0.5 and means["mrr"] == mrr


def test_clicks_beyond_k_do_not_count_and_the_best_order_has_k():
    labels = np.array([False] * 6 + [True] * 6)
    means, _ = impressions.measure(-np.arange(12.0), labels, np.array([0, 12]))
    assert means["auc"] == 0 and means["ndcg@5"] == 0
    assert impressions.measure(np.arange(12.0), labels, np.array([0, 12]))[0]["ndcg@5"] == 1


# --- scores ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    """Items 0 to 6 were clicked in training, 7 and 8 were not."""
    model = SequenceSemanticRetrieval(ITEMS, embedding_dim=6, hidden_size=5)
    model.item_clicks.set_value(np.array([1] * 7 + [0] * 2, np.int32))
    model.eval()
    return IdEncoder(model, max_len=3)


def of_lists(histories, shown):
    """Impressions of histories and the lists that were shown to each."""
    lengths = [len(items) for items in shown]
    return impressions.Impressions(
        np.concatenate(histories).astype(np.int32),
        np.concatenate([[0], np.cumsum(list(map(len, histories)))]), np.arange(len(histories)),
        np.concatenate(shown).astype(np.int32), np.zeros(sum(lengths), bool),
        np.concatenate([[0], np.cumsum(lengths)]))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.lists(st.integers(0, ITEMS - 1), max_size=7),
                          st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=5)),
                min_size=1, max_size=6))
def test_scores_are_cosines_of_the_newest_clicks_and_the_item(encoder, lists):
    scores = impressions.score(encoder, of_lists(*zip(*lists)), batch_size=2)
    values = iter(scores.values)
    for history, shown in lists:
        clicks = encoder.newest(history, encoder.click)
        user, = encoder.encode_sessions([clicks])
        for item in shown:
            value = next(values)
            if not encoder.has_vector[item]:
                assert value == -np.inf
            elif user is None:
                assert value == 0
            else:
                assert value == pytest.approx(float(user @ encoder.vectors[item]), abs=1e-5)
    assert scores.without_vector == sum(item > 6 for _, shown in lists for item in shown)
    assert scores.without_history == sum(not any(item < 7 for item in history)
                                         for history, _ in lists)


def test_a_model_whose_scores_are_no_numbers_gains_nothing(encoder, monkeypatch):
    monkeypatch.setitem(vars(encoder), "vectors", np.full((ITEMS, encoder.dim), np.nan))
    scores = impressions.score(encoder, of_lists([[0, 1]], [[2, 3]]), batch_size=2)
    assert (scores.values == -np.inf).all()


# --- reading --------------------------------------------------------------------------------------


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_impressions_are_read(tmp_path):
    shown = impressions.read_impressions(write(tmp_path / "impressions.txt", LINES + "\n"), ITEMS)
    assert len(shown) == 3
    assert shown.clicks.tolist() == [0, 1, 2] and shown.history_offsets.tolist() == [0, 3, 3]
    assert shown.history.tolist() == [0, 1, 0]  # the same one is there once
    assert shown.shown.tolist() == [3, 4, 5, 6, 7, 8, 2, 1, 0]
    assert shown.labels.tolist() == [True, False, False, False, True, False, True, True, False]
    assert shown.offsets.tolist() == [0, 3, 5, 9]


def test_all_files_of_a_directory_are_read(tmp_path):
    write(tmp_path / "b", LINES.splitlines()[1])
    write(tmp_path / "a", LINES.splitlines()[0])
    write(tmp_path / ".hidden", "nonsense")
    assert impressions.read_impressions(str(tmp_path), ITEMS).shown.tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("line, words", [
    ("1\t0 1\t2", "not an impression"), ("1\t0 1\t", "not an impression"),
    ("1\t0 1", "not an impression"), ("0 1\t2-1", "not an impression"),
    ("1\t0 a\t2-1", "not an impression"), ("1\t0 1\t2-2", "not an impression"),
    ("-1\t0\t2-1", "not an impression"), ("1\t0\t٣-1", "not an impression"),
    ("1\t0\t9-1", "item id 9, and the vocabulary file says 9 items"),
    ("1\t9\t2-1", "item id 9, and the vocabulary file says 9 items"),
    ("1\t" + "9" * 5000 + "\t2-1", "not an impression"),
])
def test_errors_name_file_and_line(tmp_path, line, words):
    path = write(tmp_path / "impressions.txt", f"{LINES}{line}\n")
    with pytest.raises(DataError) as error:
        impressions.read_impressions(path, ITEMS)
    message = str(error.value)
    assert message.startswith(f"{path}, line 4: ") and words in message and len(message) < 500


def test_a_path_without_impressions(tmp_path):
    for path, words in ((tmp_path / "none", "cannot read"), (tmp_path, "holds no files")):
        with pytest.raises(DataError, match=words):
            impressions.read_impressions(str(path), ITEMS)
    with pytest.raises(DataError, match="holds no impressions"):
        impressions.read_impressions(write(tmp_path / "empty", "\n"), ITEMS)


@pytest.mark.fuzz
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations=MUTATIONS)
def test_mutated_impressions_are_read_or_refused(tmp_path_factory, mutations):
    path = tmp_path_factory.mktemp("mutated") / "impressions.txt"
    path.write_bytes(mutated(LINES.encode(), mutations))
    try:
        shown = impressions.read_impressions(str(path), ITEMS)
    except DataError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
    else:
        assert len(shown) and shown.offsets[-1] == len(shown.shown) == len(shown.labels)
        assert max(shown.shown) < ITEMS and max(shown.clicks, default=0) < ITEMS


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mind(tmp_path_factory):
    """A directory with data from a log in MIND's layout, and a model of it."""
    folder = tmp_path_factory.mktemp("mind")
    write(folder / "news.tsv", "".join(
        f"N{n}\tsport\tball\tArticle {'abc'[n % 3]}\t\thttp\t[]\t[]\n" for n in range(12)))
    write(folder / "behaviors.tsv", "".join(
        f"{n}\tU{n % 7}\t11/{10 + n % 4}/2019 {1 + n % 12}:00:00 AM\tN{n % 5} N{n % 3}\t"
        f"N{n % 12}-1 N{(n + 5) % 12}-0 N{(n + 7) % 12}-{n % 2}\n" for n in range(60)))
    assert preprocess.main(["mind", "--behaviors", str(folder / "behaviors.tsv"), "--news",
                            str(folder / "news.tsv"), "--output_dir", str(folder / "data")]) == 0
    assert train.main(["--data_dir", str(folder / "data"), "--recipe", "strong", "--epochs", "2",
                       "--embedding_dim", "8", "--hidden_size", "8", "--model_dir",
                       str(folder / "model")]) == 0
    return folder


def evaluate(mind, *flags):
    return infer.main(["--data_dir", str(mind / "data"), "--model_dir", str(mind / "model"),
                       "--impressions", str(mind / "data/test_impressions"), *flags])


def test_infer_prints_the_metrics_of_each_epoch(mind, capsys):
    capsys.readouterr()
    assert evaluate(mind) == 0
    out = capsys.readouterr().out
    encoder = IdEncoder.load(choose_checkpoint(str(mind / "model"), 2))
    shown = impressions.read_impressions(str(mind / "data/test_impressions"), 12)
    scores = impressions.score(encoder, shown, 50).values
    means, left_out = mean_by_definition(scores, shown.labels, shown.offsets)
    assert f"epoch_2 auc:{means['auc']:.4f} mrr:{means['mrr']:.4f} " \
           f"ndcg@5:{means['ndcg@5']:.4f} ndcg@10:{means['ndcg@10']:.4f} " in out
    assert f"impressions:{len(shown) - left_out} left out, all or nothing clicked:{left_out}" in out
    assert "epoch_1 auc:" in out and "items shown:60 without a vector, ranked last:0;" in out


def test_impressions_of_other_data_are_one_line(mind, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["infer.py"])
    path = write(mind / "other.txt", "1\t\t99-1 0-0\n")
    assert infer.main(["--data_dir", str(mind / "data"), "--model_dir", str(mind / "model"),
                       "--impressions", path]) == 1
    err = capsys.readouterr().err
    assert f"infer.py: error: {path}, line 1: item id 99" in err


@pytest.mark.parametrize("flag", ["--topk=5", "--positions=all", "--output=x", "--report=x"])
def test_flags_that_ask_for_the_next_click_are_refused(mind, capsys, flag):
    with pytest.raises(SystemExit):
        evaluate(mind, flag)
    assert f"{flag.split('=')[0]}: not with --impressions" in capsys.readouterr().err

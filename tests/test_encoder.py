"""One encoder: whoever asks a model gets the same vectors, cut the same way."""

import json
import logging
import os
import shutil
from unittest import mock

import numpy as np
import pytest

import nets
import reader
import train
import utils
from ssr.errors import SetupError
from ssr.evaluation import ranking
from ssr.evaluation.queries import make_queries
from ssr.kernels import static
from ssr.kernels.frozen import FrozenModel
from ssr.news import AGE, Scoring
from ssr.news.replay import SLICE, StreamMethod, replay
from ssr.news.timeline import Timeline
from ssr.pickled import load_arrays
from ssr.preparation.text import read_items
from ssr.retrieval import Click, Index, export
from ssr.retrieval.building import ItemFiles, build_index
from ssr.retrieval.checkpoint import choose_checkpoint, load_frozen, load_model, model_digest
from ssr.retrieval.encoder import Bag, Embedding, Encoder, IdEncoder
from ssr.runtime import paddle
from ssr.training.content import ContentFiles

SMALL = ["--epochs", "1", "--embedding_dim", "8", "--hidden_size", "8", "--batch_size", "20"]
STRONG = ["--recipe", "strong", "--num_negatives", "20", "--max_len", "3"]
CONTENT = ["--item_tokens", "item_tokens.txt"]
VECTORS = ["--item_vectors", "item_vectors.npy"]
DIM = 5  # of the pretrained vectors, of which every seventh item has none
KINDS = {
    "ids, fc": [],
    "ids, tied, members": [*STRONG, "--members", "2"],
    "content, fc": [*CONTENT, "--max_len", "3"],
    "content, tied, members": [*STRONG, *CONTENT, "--members", "2"],
    "vectors, tied": [*STRONG, *VECTORS],
    "content and vectors, fc, members": [*CONTENT, *VECTORS, "--members", "2"]}
NEW = 60  # an item that training never saw and that has no content


class Trained:
    """A model of a kind, trained for an epoch, and what is made of it. A quarter of the items is
    without a click in training.

    checkpoint: Checkpoint; encoder: IdEncoder of 61 items, those of the sample and a new one
    index: path; names: raw ids of the items; pretrained: <float32>[61, DIM]
    """

    def __init__(self, kind):
        vectors = np.random.default_rng(0).normal(1, 2, (61, DIM)).astype("f4")
        vectors[::7] = vectors[NEW] = 0
        np.save("item_vectors.npy", vectors[:NEW])
        np.save("grown_vectors.npy", vectors)
        self.pretrained = vectors
        assert train.main([*SMALL, *KINDS[kind]]) == 0
        meta = utils.load_meta("model_output", 1)
        model = load_model(choose_checkpoint("model_output"))
        clicks = model.item_clicks.numpy()
        clicks[::4] = 0
        model.item_clicks.set_value(paddle.to_tensor(clicks))
        utils.save_checkpoint("model_output", 1, model, {}, meta)
        self.checkpoint = choose_checkpoint("model_output")
        with open("item_tokens.txt") as f, open("grown_tokens.txt", "w") as grown:
            grown.write(f.read() + "\n")
        self.encoder = IdEncoder.load(
            self.checkpoint, ContentFiles("grown_tokens.txt", "grown_vectors.npy"), vocab_size=61)
        self.index = os.path.abspath("index")
        build_index(self.index, self.checkpoint,
                    ItemFiles("items.txt", "item_tokens.txt", "tokens.txt"))
        self.names = [*read_items("items.txt"), "new"]
        self.data = reader.construct_test_data("test_data", "vocab.txt")

    def vector(self, items):
        """That of a session <float32>[dim] by the model itself, None where no item has one."""
        items = np.array([item for item in items if self.encoder.has_vector[item]], np.int64)
        items = items[-(self.encoder.max_len or len(items)):]
        if not len(items):
            return None
        model = self.encoder.model
        return model.encode_user(self.encoder.embed(items), np.array([len(items)])).numpy()[0]

    def sessions(self):
        """Lists of items."""
        return [self.data.items[begin:end].tolist()
                for begin, end in zip(self.data.offsets[:-1], self.data.offsets[1:])]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, sample, tmp_path_factory):
    directory, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    for name in os.listdir(sample):
        (directory / name).symlink_to(sample / name)
    os.chdir(directory)
    try:
        yield Trained(request.param)
    finally:
        os.chdir(before)


def assert_same(vectors, expected):
    assert [vector is None for vector in vectors] == [vector is None for vector in expected]
    np.testing.assert_allclose(
        np.stack([vector for vector in vectors if vector is not None]),
        np.stack([vector for vector in expected if vector is not None]), atol=1e-6)


# --- everybody's vectors --------------------------------------------------------------------------


class Seen(StreamMethod):
    """Keeps the users of the queries."""

    def rank(self, click):
        self.seen = [*getattr(self, "seen", []), self._users[click.number]]
        return 0


def users_of_replay(encoder, sessions, times=None):
    """The vectors with which the replay asks for the clicks of sessions, in order of time. times:
    None for all at once, so that no article has readers"""
    items = np.concatenate(sessions).astype(np.int64)
    offsets = np.cumsum([0, *map(len, sessions)])
    method = Seen(encoder, Scoring(), AGE, k=0)
    times = np.zeros(len(items)) if times is None else times
    replay(Timeline(items, offsets, times, np.ones(len(items), bool)), method, "")
    return method.seen


def users_of_index(path, sessions):
    """The vectors with which the index searches, for sessions of raw ids that have one."""
    with Index.open(path) as index:
        search = mock.Mock(wraps=index.store.search)
        with mock.patch.object(index.store, "search", search):
            index.query_many(sessions)
    return list(search.call_args.args[0])


def users_of_evaluation(encoder, data, positions):
    """The vectors of all queries, None where a query has none."""
    queries = make_queries(data, encoder.has_vector, positions)
    users = [None] * len(queries.labels)

    for batch, vectors in ranking.encode(encoder, queries, 7):
        for query, vector in zip(batch, vectors.numpy()):
            users[query] = vector
    return users


def test_the_replay_has_the_models_vectors(trained):
    sessions = trained.sessions()
    expected = [trained.vector(session[:at]) for session in sessions
                for at in range(1, len(session))]
    assert_same(users_of_replay(trained.encoder, sessions), expected)


def test_the_index_has_the_models_vectors(trained):
    sessions = [session for session in trained.sessions() if trained.vector(session) is not None]
    assert_same(users_of_index(trained.index, [[trained.names[item] for item in session]
                                               for session in sessions]),
                [trained.vector(session) for session in sessions])


def test_exported_towers_have_the_models_vectors(trained):
    encoder = trained.encoder
    with Index.open(trained.index) as index:
        known = index.store.items.find(trained.names)
    bags = [known[name].bag for name in trained.names[:60]]
    sessions = [[item for item in session if bags[item]] for session in trained.sessions()]
    sessions = [session for session in sessions if session]
    export.save_towers(encoder, "exported")
    tokens = max(len(bag.rows) for bag in bags)
    clicks = [export.pad_sessions([[bags[item].rows for item in session] for session in sessions],
                                  tokens)]
    candidates = np.flatnonzero([bool(bag) for bag in bags])
    full = [bags[item] for item in candidates]
    items = [export.pad([bag.rows for bag in full], tokens)]
    if encoder.model.item_vector_dim:
        clicks.append(export.pad([trained.pretrained[session] for session in sessions],
                                 max(map(len, sessions)), 0))
        items.append(trained.pretrained[candidates])
    assert_same(list(export.load_tower("exported", "user")(*clicks)),
                [trained.vector(session) for session in sessions])
    items = export.load_tower("exported", "item")(*items)
    np.testing.assert_allclose(items, encoder.vectors[encoder.has_vector], atol=1e-6)
    assert_same(list(items), Encoder(encoder.model).encode_items(full))


@pytest.mark.parametrize("positions", ["last", "all"])
def test_evaluation_has_the_models_vectors(trained, positions, monkeypatch):
    monkeypatch.setattr(ranking, "CLICKS_AT_A_TIME", 50)
    small = IdEncoder.load(trained.checkpoint)  # the tokens of its training
    sessions = trained.sessions()
    expected = [trained.vector(session[:at]) for session in sessions
                for at in range(1 if positions == "all" else len(session) - 1, len(session))]
    assert_same(users_of_evaluation(small, trained.data, positions), expected)


@pytest.mark.parametrize("parts", [
    {}, {"user_encoder": "bow"}, {"pooling": "max_last", "members": 2},
    {"hidden_size": 6, "pooling": "max_last_clicks", "item_encoder": "tied", "members": 3},
    {"hidden_size": 6, "pooling": "max_recent_clicks", "item_encoder": "tied"},
    {"hidden_size": 6, "pooling": "max_unit_clicks", "item_encoder": "tied", "members": 2}])
def test_the_forms_of_the_towers_are_one_function(parts):
    paddle.seed(1)
    model = nets.SequenceSemanticRetrieval(30, 6, **{"hidden_size": 5, **parts})
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    clicks, lengths = np.arange(9), np.array([3, 1, 5])
    expected = model.user(clicks, lengths).numpy()
    frozen, emb = FrozenModel.of(model), model.embed(clicks)
    np.testing.assert_allclose(frozen.encode_user(emb.numpy(), lengths), expected, atol=1e-6)
    np.testing.assert_allclose(frozen.encode_item(emb.numpy()), model.encode_item(emb).numpy(),
                               atol=1e-6)
    rows = export.pad_sessions([[np.array([click]) for click in session]
                                for session in np.split(clicks, [3, 4])], 1)
    np.testing.assert_allclose(static.user_vectors(model, paddle.to_tensor(rows)).numpy(),
                               expected, atol=1e-6)


def test_a_checkpoint_has_the_towers_without_its_model(trained):
    """The arrays of the file are all that the towers of numpy are made of."""
    model, frozen = trained.encoder.model, load_frozen(trained.checkpoint)
    assert frozen.sizes == model.sizes == trained.checkpoint.meta["model"]
    np.testing.assert_array_equal(frozen.item_clicks, model.item_clicks.numpy())
    np.testing.assert_array_equal(frozen.table, model.embedding.weight.numpy())
    emb = frozen.table[:9]
    np.testing.assert_allclose(frozen.encode_item(emb),
                               model.encode_item(paddle.to_tensor(emb)).numpy(), atol=1e-6)
    if model.item_vector_dim:
        expected = model.item_projection(paddle.to_tensor(trained.pretrained)).numpy()
        np.testing.assert_allclose(frozen.item_projection(trained.pretrained), expected, atol=1e-6)
        assert not expected[NEW].any()


@pytest.mark.parametrize("change, words", [
    (lambda state: state.pop("members.0.user_fc.bias"), "it lacks members.0.user_fc.bias"),
    (lambda state: state.pop("item_clicks"), "it lacks item_clicks"),
    (lambda state: state.update(more=np.zeros(3, np.float32)),
     "it holds more, which the model has not"),
    (lambda state: state.update({"embedding.weight": np.zeros([3, 8], np.float32)}),
     "embedding.weight is [3, 8] and not [30, 6]")])
def test_a_file_of_another_model(change, words, tmp_path):
    """The same is said of it whoever reads it."""
    model, directory = small_model(), str(tmp_path)
    utils.save_checkpoint(directory, 1, model, {}, {"model": model.sizes, "run": {}})
    state = load_arrays(f"{directory}/epoch_1.pdparams")
    change(state)
    paddle.save(state, f"{directory}/epoch_1.pdparams")
    meta = json.loads((tmp_path / "epoch_1.json").read_text())
    meta["bytes"][".pdparams"] = os.path.getsize(f"{directory}/epoch_1.pdparams")
    del meta["digests"]
    (tmp_path / "epoch_1.json").write_text(json.dumps(meta))
    for load in (load_frozen, load_model):
        with pytest.raises(SetupError) as error:
            load(choose_checkpoint(directory))
        assert str(error.value) == (f"{directory}/epoch_1.pdparams is not of the model that the "
                                    f".json beside it describes: {words}")


def test_a_loaded_model_makes_no_gradients_in_any_thread(trained):
    model = load_model(trained.checkpoint)
    assert model.user(np.array([1]), np.array([1])).stop_gradient and not model.training


# --- stand-ins ------------------------------------------------------------------------------------


def mean_length(trained):
    """Of the embeddings of the items clicked in training, in double precision."""
    encoder = trained.encoder
    embeddings = encoder.embeddings[encoder.clicked].astype(np.float64)
    return np.sqrt((embeddings ** 2).sum(1)).mean()


def test_stand_ins_have_one_length(trained):
    encoder, vector = trained.encoder, np.eye(trained.encoder.dim, dtype=np.float32)[0]
    with Index.open(trained.index) as index:
        of_index = Encoder.load(trained.checkpoint, index.details["stand_in_length"])
    stand_ins = [encoder.stand_in(vector), of_index.stand_in(vector)]
    if not encoder.is_tied:
        assert stand_ins == [None, None]
        return
    for stand_in in stand_ins:
        np.testing.assert_allclose(np.linalg.norm(stand_in.vector), mean_length(trained), rtol=1e-6)
    if encoder.content is not None:  # that of the whole embedding, not of the item's own row
        rows = encoder.model.embed(np.flatnonzero(encoder.clicked)).numpy()
        assert abs(mean_length(trained) / np.linalg.norm(rows, axis=1).mean() - 1) > 0.1
    assert encoder.stand_in(None) is None


def test_an_article_that_training_never_saw_is_one_to_replay_and_index(trained):
    encoder = trained.encoder
    known = np.flatnonzero(encoder.clicked)[:3].tolist()
    # Three sessions click the new article, another one comes with it and asks for the next. Between
    # them there is a slice of others.
    sessions = [*([item, NEW] for item in known), *[known[:1]] * SLICE, [NEW, known[0]]]
    replayed = users_of_replay(encoder, sessions, np.arange(SLICE + 8))[-1]
    clicks = [Click(str(session), trained.names[item], 2.0 * session + place)
              for session, items in enumerate(sessions[:3]) for place, item in enumerate(items)]
    with Index.open(trained.index, writable=True, scoring=Scoring(), clock=lambda: 100.0) as index:
        index.click(clicks)
        with mock.patch.object(index.store, "search", wraps=index.store.search) as search:
            index.query(["new"])
    if not encoder.is_tied:
        assert replayed is None and not search.called
        return
    served = search.call_args.args[0][0]
    assert_same([replayed], [served])
    # The readers' vectors less that of all, which moves with each of them, as the stream has it.
    users = np.stack([trained.vector([item]) for item in known])
    common = np.cumsum(users, axis=0) / np.arange(1, 4)[:, None]
    vector = (users - common).mean(0)
    stand_in = Embedding((vector * mean_length(trained) / np.linalg.norm(vector)).astype("f4"))
    assert_same([served], encoder.encode_sessions([[stand_in]]))


def test_an_index_from_before_computes_the_length(trained):
    with Index.open(trained.index) as index:
        details = dict(index.details)
    del details["stand_in_length"]
    with mock.patch("ssr.retrieval.store.Store.details", details), \
            Index.open(trained.index, writable=True, scoring=Scoring()) as index:
        assert index._encoder.stand_in_length == pytest.approx(mean_length(trained), rel=1e-6)


# --- what is cut ----------------------------------------------------------------------------------


def small_model(**parts):
    paddle.seed(4)
    model = nets.SequenceSemanticRetrieval(30, 6, 6, **parts)
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    model.item_clicks.set_value(paddle.to_tensor((np.arange(30) % 5 > 0).astype(np.int32)))
    model.eval()
    return model


def test_the_newest_clicks_are_encoded_whatever_they_are():
    model = small_model(item_encoder="tied")
    clicks = [Bag(np.array([3, 4], np.int32)), Embedding(np.ones(6, np.float32)),
              Bag(np.array([7], np.int32))]
    whole, cut = Encoder(model), Encoder(model, max_len=2)
    alone = whole.encode_sessions([clicks[1:]])[0]
    assert_same(cut.encode_sessions([clicks, [], clicks[1:], clicks[2:]]),
                [alone, None, alone, whole.encode_sessions([clicks[2:]])[0]])
    emb = np.stack([model.embedding.weight.numpy()[[3, 4]].sum(0), np.ones(6),
                    model.embedding.weight.numpy()[7]]).astype(np.float32)
    np.testing.assert_allclose(
        whole.encode_sessions([clicks])[0],
        model.encode_user(paddle.to_tensor(emb), np.array([3])).numpy()[0], atol=1e-6)
    assert not np.allclose(whole.encode_sessions([clicks])[0], alone, atol=1e-2)
    assert cut.encode_sessions([]) == [] and cut.encode_sessions([[]]) == [None]


def test_only_the_newest_clicks_are_made():
    encoder, asked = IdEncoder(small_model(), max_len=2), []

    def click(item):
        asked.append(item)
        return encoder.click(item)
    clicks = encoder.newest([1, 2, 3, 5, 4, 0], click)  # 0 and 5 have no vector
    assert asked == [0, 4, 5, 3]
    assert_same([click.vector for click in clicks], encoder.embeddings[[3, 4]])
    assert len(IdEncoder(encoder.model).newest([1, 2, 0, 3], encoder.click)) == 3


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("max_len", [1, 3, 60, None])
@pytest.mark.parametrize("parts", [{}, {"user_encoder": "bow"}, {"pooling": "max_unit_clicks"}])
def test_long_sessions_in_evaluation(positions, max_len, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "CLICKS_AT_A_TIME", 40)
    random = np.random.default_rng(0)
    (tmp_path / "sessions").write_text("\n".join(
        " ".join(map(str, random.integers(0, 30, length)))
        for length in (2, 3, 90, 2, 9, 4, 50, 2, 5)) + "\n0 5 10\n")
    data = reader.load_sessions(str(tmp_path), 30)
    encoder = IdEncoder(small_model(**parts), max_len=max_len)
    sizes = []
    encode_user = encoder.model.encode_user

    def measured(emb, lengths, every_prefix=False):
        sizes.append(len(emb))
        return encode_user(emb, lengths, every_prefix)
    encoder.model.encode_user = measured
    users = users_of_evaluation(encoder, data, positions)
    if max_len and max_len < 10:
        assert max(sizes) <= 40 + max_len  # however long a session is
    expected = []
    for begin, end in zip(data.offsets[:-1], data.offsets[1:]):
        for at in range(begin + 1 if positions == "all" else end - 1, end):
            clicks = data.items[begin:at].astype(np.int64)
            clicks = clicks[encoder.has_vector[clicks]]
            clicks = clicks[-(max_len or len(clicks)):]
            expected.append(encode_user(encoder.embed(clicks), np.array([len(clicks)])).numpy()[0]
                            if len(clicks) else None)
    assert_same(users, expected)


def test_a_grown_catalogue(trained):
    encoder = trained.encoder
    assert len(encoder.has_vector) == len(encoder.vectors) == 61 and not encoder.clicked[NEW]
    assert encoder.click(NEW) is None
    with pytest.raises(SetupError, match="trained with 60 items and the vocabulary file says 59"):
        IdEncoder.load(trained.checkpoint, vocab_size=59)


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def three_epochs(tmp_path):
    """A directory of three epochs, the second of which was the best in validation."""
    def save(epoch, best):
        utils.save_checkpoint(str(tmp_path), epoch, small_model(), {}, {
            "model": dict(vocab_size=30, embedding_dim=6, hidden_size=6, user_encoder="gru",
                          pooling="max", item_encoder="fc", dropout=0.0, members=1, num_tokens=0),
            "run": {"max_len": 7}, "best": best and {"epoch": best, "recall": 0.5}})
    for epoch, best in ((1, 1), (2, 2), (3, 2)):
        save(epoch, best)
    return str(tmp_path), save


@pytest.mark.parametrize("arguments, epoch, words", [
    ({}, 3, ["the newest complete one", "epoch_2 was the best in validation: take it with --best"]),
    ({"best": True}, 2, ["epoch_2", "the best in validation"]),
    ({"epoch": 1}, 1, ["epoch_1", "as asked for"]),
    ({"epoch": 3, "best": True}, 3, ["as asked for"])])
def test_which_epoch_and_why(three_epochs, arguments, epoch, words, caplog):
    directory, _ = three_epochs
    with caplog.at_level(logging.INFO):
        checkpoint = choose_checkpoint(directory, **arguments)
    assert (checkpoint.model_dir, checkpoint.epoch) == (directory, epoch)
    assert all(word in caplog.text for word in words)
    assert ("take it with" in caplog.text) == (not arguments)
    assert Encoder.load(checkpoint).max_len == 7


def test_no_best_epoch(three_epochs, caplog):
    directory, save = three_epochs
    save(3, None)
    with pytest.raises(SetupError, match="train.py --valid_dir"):
        choose_checkpoint(directory, best=True)
    save(3, 3)
    with caplog.at_level(logging.INFO):
        assert choose_checkpoint(directory).epoch == 3
    assert "take it with" not in caplog.text
    os.remove(os.path.join(directory, "epoch_2.pdparams"))
    save(3, 2)
    with pytest.raises(SetupError, match="epoch_2 is incomplete"):
        choose_checkpoint(directory, best=True)


@pytest.mark.parametrize("max_len", [0, -1, "20", 2.5, True])
def test_a_max_len_that_is_none(three_epochs, max_len):
    directory, _ = three_epochs
    path = os.path.join(directory, "epoch_1.json")
    with open(path) as f:
        meta = json.load(f)
    meta["run"]["max_len"] = max_len
    with open(path, "w") as f:
        json.dump(meta, f)
    with pytest.raises(SetupError, match="max_len"):
        Encoder.load(choose_checkpoint(directory, epoch=1))


def test_a_digest_tells_models_apart(three_epochs):
    directory, _ = three_epochs
    first = choose_checkpoint(directory, epoch=1)
    shutil.copytree(directory, directory + ".copy")
    digest = model_digest(first)
    assert len(digest) == 64
    assert digest == model_digest(choose_checkpoint(directory + ".copy", epoch=1))
    model = load_model(first)
    model.item_clicks.set_value(paddle.ones([30], "int32"))
    utils.save_checkpoint(directory, 1, model, {}, first.meta)
    assert digest != model_digest(choose_checkpoint(directory, epoch=1))

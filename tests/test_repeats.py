"""What items score that their session has clicked: counted by hand, ranked by brute force, fitted
to sessions whose repeats are known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infer
import reader
import train
from nets import SequenceSemanticRetrieval
from ssr.errors import SetupError
from ssr.evaluation import ranking, repeats
from ssr.evaluation.queries import make_queries
from ssr.retrieval import Index
from ssr.retrieval.building import ItemFiles, build_index
from ssr.retrieval.checkpoint import choose_checkpoint
from ssr.retrieval.encoder import IdEncoder
from ssr.retrieval.filters import Filter
from ssr.retrieval.repeats import OwnItems, RepeatScore, features_of
from ssr.runtime import paddle
from ssr.training import settings as settings_of_training

SESSIONS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=5)
WEIGHTS = RepeatScore(0.2, -0.5, 0.1, 0.3, -0.1, 0.05, 0.4)


@given(SESSIONS)
def test_own_items_by_hand(sessions):
    own = OwnItems.of(np.concatenate(sessions), np.array(list(map(len, sessions))))
    expected = [(row, item, session.count(item), session[::-1].index(item), len(session),
                 len({*session}))
                for row, session in enumerate(sessions) for item in sorted({*session})]
    assert list(zip(*(values.tolist() for values in own))) == expected
    chosen = own.select(own.items % 2 == 0)
    assert list(zip(*chosen)) == [row for row in expected if row[1] % 2 == 0]


def test_the_formula():
    own = OwnItems.of(np.array([3, 4, 3, 5]), np.array([4]))
    features = features_of(np.array([0.1, 0.2, 0.3]), own)
    share = 1 - 3 / 4
    np.testing.assert_allclose(features, [
        [1, 0.1, 0, np.log(2), np.log(2), np.log(4), share],
        [1, 0.2, 0, 0, np.log(3), np.log(4), share],
        [1, 0.3, 1, 0, 0, np.log(4), share]])
    scores = WEIGHTS(np.array([0.1, 0.2, 0.3], np.float32), own)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.array([0.1, 0.2, 0.3]) + features @ np.array(WEIGHTS),
                               rtol=1e-6)
    assert (RepeatScore()(scores, own) == scores).all()


def make_encoder(sessions, vocab_size=12, repeats=WEIGHTS, max_len=None, unknown=()):
    paddle.seed(4)
    model = SequenceSemanticRetrieval(vocab_size, 6, 6, item_encoder="tied")
    clicks = np.ones(vocab_size, np.int32)
    clicks[list(unknown)] = 0
    model.item_clicks.set_value(paddle.to_tensor(clicks))
    model.eval()
    return IdEncoder(model, max_len=max_len, repeats=repeats)


def dataset_of(sessions, vocab_size=12):
    return reader.YoochooseDataset(np.concatenate(sessions).astype(np.int32),
                                   np.cumsum([0, *map(len, sessions)]), vocab_size)


def all_scores(encoder, clicks):
    """The score of every item after some clicks, by the formula, item by item."""
    clicks = [item for item in clicks if encoder.has_vector[item]]
    clicks = clicks[-encoder.max_len:] if encoder.max_len else clicks
    user, = encoder.encode_sessions([list(map(encoder.click, clicks))])
    scores = encoder.vectors @ user
    if encoder.repeats is not None:
        own = OwnItems.of(np.array(clicks), np.array([len(clicks)]))
        scores[own.items] = encoder.repeats(scores[own.items], own)
    return scores


@settings(max_examples=25, deadline=None)
@given(sessions=st.lists(st.lists(st.integers(0, 11), min_size=2, max_size=9), min_size=1,
                         max_size=4),
       max_len=st.sampled_from([None, 3]), k=st.integers(1, 12),
       repeats=st.sampled_from([None, RepeatScore(), WEIGHTS, RepeatScore(bias=-3.0)]))
def test_ranks_and_best_items_by_brute_force(sessions, max_len, k, repeats):
    encoder = make_encoder(sessions, repeats=repeats, max_len=max_len, unknown=[0])
    dataset = dataset_of(sessions)
    queries = make_queries(dataset, encoder.has_vector, "all")
    candidates = encoder.has_vector & (np.arange(12) != 3)  # 3 is clicked, and no answer
    best = {}

    def keep(batch, items, scores):
        best.update(zip(batch.tolist(), zip(items.tolist(), scores.tolist())))
    k = min(k, np.count_nonzero(candidates))
    ranks = ranking.evaluate(encoder, queries, candidates, 3, k, keep)
    prefixes = [session[:end] for session in sessions for end in range(1, len(session))]
    for number, (prefix, label) in enumerate(zip(prefixes, queries.labels)):
        if not any(encoder.has_vector[item] for item in prefix):
            assert ranks[number] == 0 and number not in best
            continue
        scores = np.where(candidates, all_scores(encoder, prefix), -np.inf)
        if candidates[label]:
            assert ranks[number] == np.count_nonzero(scores >= scores[label] - ranking.TIE)
        else:
            assert ranks[number] == 0
        items, of_items = best[number]
        wanted = np.sort(scores[candidates])[::-1][:k]
        np.testing.assert_allclose(of_items, wanted, atol=1e-6)
        np.testing.assert_allclose(scores[items], wanted, atol=1e-6)


def returning_sessions(random, num, share):
    """Sessions of six clicks, the last of which comes back to the item before the last one with a
    probability of share; else it is a new one."""
    sessions = [random.permutation(12)[:7].tolist() for _ in range(num)]
    return [session[:5] + [session[4] if random.random() < share else session[5]]
            for session in sessions]


@pytest.mark.parametrize("share", [0.05, 0.8])
def test_the_fit_finds_how_often_sessions_come_back(share):
    sessions = returning_sessions(np.random.default_rng(0), 600, share)
    encoder = make_encoder(sessions, repeats=None)
    dataset = dataset_of(sessions)
    queries = make_queries(dataset, encoder.has_vector, "last")
    encoder.repeats = repeats.fit_repeats(encoder, queries)
    ranks = ranking.evaluate(encoder, queries, encoder.has_vector, 100)
    came_back = np.array([session[-1] == session[-2] for session in sessions])
    if share > 0.5:
        assert (ranks[came_back] == 1).mean() > 0.95
    else:  # behind most of the seven items that are not of the session
        assert np.median(ranks[came_back]) >= 5
    other = repeats.fit_repeats(encoder, queries, RepeatScore(*[0.3] * 7))
    # Of these sessions none has clicked an item twice: what they do not tell stays as it was.
    for name, value in encoder.repeats._asdict().items():
        if name in ("times", "repetition"):
            assert (value, getattr(other, name)) == (0, 0.3)
        else:
            assert getattr(other, name) == pytest.approx(value, abs=0.25)


def test_the_gradient_of_the_fit_is_that_of_finite_differences():
    sessions = returning_sessions(np.random.default_rng(1), 20, 0.4)
    encoder = make_encoder(sessions, repeats=None)
    queries = make_queries(dataset_of(sessions), encoder.has_vector, "all")
    loss = repeats._Loss(repeats._collect(encoder, queries), np.array(WEIGHTS))
    x = np.concatenate([[11.0], np.random.default_rng(2).normal(0, 0.3, 7)])
    _, gradient = loss(x)
    for place in range(len(x)):
        change = np.zeros(len(x))
        change[place] = 1e-5
        difference = (loss(x + change)[0] - loss(x - change)[0]) / 2e-5
        np.testing.assert_allclose(gradient[place], difference, rtol=1e-4, atol=1e-6)


def test_the_loss_of_the_fit_is_the_cross_entropy_over_all_items():
    sessions = returning_sessions(np.random.default_rng(1), 20, 0.4)
    encoder = make_encoder(sessions, repeats=WEIGHTS)
    queries = make_queries(dataset_of(sessions), encoder.has_vector, "last")
    loss = repeats._Loss(repeats._collect(encoder, queries), np.array(WEIGHTS))
    logits = 12.0 * np.array([all_scores(encoder, session[:-1]) for session in sessions],
                             np.float64)
    labels = [session[-1] for session in sessions]
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(20), labels])
    value, _ = loss(np.concatenate([[12.0], WEIGHTS]))  # at its start nothing is added
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_few_sessions_keep_the_score_near_where_it_begins():
    encoder = make_encoder([[1, 2, 2]], repeats=None)
    queries = make_queries(dataset_of([[1, 2, 2]]), encoder.has_vector, "last")
    fitted = repeats.fit_repeats(encoder, queries, WEIGHTS)
    assert np.abs(np.subtract(fitted, WEIGHTS)).max() < 1
    nothing = make_queries(dataset_of([[1, 2]]), np.zeros(12, bool), "last")
    assert repeats.fit_repeats(encoder, nothing, WEIGHTS) == WEIGHTS


def test_sessions_held_out_are_spread_over_all():
    whole = dataset_of([[number % 12, 3, number % 7] for number in range(103)])
    others, out = whole.hold_out(10)
    assert (len(others), len(out)) == (93, 10)
    assert [out.items[begin] for begin in out.offsets[:-1]] == [
        number * 103 // 10 % 12 for number in range(10)]
    assert (others.item_clicks() + out.item_clicks() == whole.item_clicks()).all()
    assert others.items is whole.items
    seen = np.concatenate([np.stack([batch.clicks[::2], batch.clicks[1::2], batch.positive], 1)
                           for batch in others.train(10, 0, 1)])
    expected = [[number % 12, 3, number % 7] for number in range(103)
                if number not in {i * 103 // 10 for i in range(10)}]
    assert sorted(seen.tolist()) == sorted(expected)
    others, out = whole.hold_out(0)
    assert (len(others), len(out)) == (103, 0)


# --- commands -------------------------------------------------------------------------------------


def run(command, *words):
    assert command.main(list(map(str, words))) == 0


@pytest.fixture
def few_are_enough(monkeypatch):
    monkeypatch.setattr(settings_of_training, "FEWEST_HELD_OUT", 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for name, num in (("train", 3000), ("test", 40)):
        (path / name).mkdir()
        sessions = returning_sessions(np.random.default_rng(num), num, 0.9)
        (path / name / "sessions.txt").write_text(
            "".join(" ".join(map(str, session)) + "\n" for session in sessions))
    (path / "vocab.txt").write_text("12\n")
    return path


def flags(data, model_dir, *more):
    return ["--train_dir", data / "train", "--vocab_path", data / "vocab.txt", "--model_dir",
            model_dir, "--embedding_dim", "8", "--hidden_size", "8", "--recipe", "strong", *more]


def repeats_of(model_dir, epoch):
    return json.loads((model_dir / f"epoch_{epoch}.json").read_text())["repeats"]


@pytest.mark.usefixtures("few_are_enough")
def test_a_checkpoint_has_its_score_and_resuming_reaches_the_same(data, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(train, *flags(data, whole, "--epochs", "3"))
    run(train, *flags(data, parts, "--epochs", "2", "--lr_schedule", "constant"))
    run(train, *flags(data, tmp_path / "constant", "--epochs", "3", "--lr_schedule", "constant"))
    run(train, *flags(data, parts, "--resume", "--epochs", "3", "--lr_schedule", "constant"))
    assert repeats_of(parts, 3) == repeats_of(tmp_path / "constant", 3)
    assert repeats_of(whole, 1) != repeats_of(whole, 3)
    # The same model without its score finds the clicks that come back later.
    capsys.readouterr()
    asked = ["--test_dir", data / "test", "--vocab_path", data / "vocab.txt", "--model_dir", whole,
             "--start_index", "3", "--last_index", "3", "--topk", "1"]
    run(infer, *asked)
    fitted = capsys.readouterr().out
    path = whole / "epoch_3.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "repeats": None}))
    run(infer, *asked)
    recall = [float(out.split("recall@1:")[1].split()[0])
              for out in (fitted, capsys.readouterr().out)]
    assert recall[0] > recall[1]


@pytest.mark.usefixtures("few_are_enough")
def test_the_index_and_the_interface_rank_as_evaluation_does(data, tmp_path):
    run(train, *flags(data, tmp_path / "model", "--epochs", "1"))
    items = tmp_path / "items.txt"
    items.write_text("".join(f"raw{item}\n" for item in range(12)))
    checkpoint = choose_checkpoint(str(tmp_path / "model"))
    encoder = IdEncoder.load(checkpoint)
    assert encoder.repeats
    build_index(str(tmp_path / "index"), checkpoint, ItemFiles(str(items), None, None))
    with Index.open(str(tmp_path / "index"), writable=True) as index:
        index.remove(["raw11"])  # clicked, and no answer any more
        for session in ([3], [1, 2, 1], [5, 11, 5, 7], [*range(12)] * 3):
            scores = all_scores(encoder, session)
            raw = [f"raw{item}" for item in session]
            hits = index.query([*raw, "unknown"], 20, exclude_session=False).hits
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            found = {int(hit.id[3:]): hit.score for hit in hits}
            assert sorted(found) == [item for item in range(11) if encoder.has_vector[item]]
            for item, score in found.items():
                assert score == pytest.approx(scores[item], abs=1e-5)
            few = index.query(raw, 3, exclude_session=False).hits
            assert [hit.id for hit in few] == [hit.id for hit in hits[:3]]
            others = index.query(raw, 20).hits
            assert [hit.id for hit in others] == [hit.id for hit in hits
                                                  if int(hit.id[3:]) not in session]
            only = index.query(raw, 20, exclude_session=False,
                               filter=Filter(candidates=["raw1", "raw3"])).hits
            assert {hit.id for hit in only} == {"raw1", "raw3"}


@pytest.mark.usefixtures("few_are_enough")
def test_training_does_not_see_the_sessions_held_out(data, tmp_path):
    run(train, *flags(data, tmp_path / "model", "--epochs", "1"))
    changed = tmp_path / "changed"
    (changed / "train").mkdir(parents=True)
    lines = (data / "train/sessions.txt").read_text().splitlines(True)
    (changed / "train/sessions.txt").write_text("".join(
        "0 1\n" if number % 50 == 0 else line for number, line in enumerate(lines)))
    run(train, *flags(data, tmp_path / "other", "--epochs", "1", "--train_dir", changed / "train"))
    parameters = [paddle.load(str(tmp_path / name / "epoch_1.pdparams"))
                  for name in ("model", "other")]
    for name in parameters[0]:
        assert (parameters[0][name].numpy() == parameters[1][name].numpy()).all(), name
    assert repeats_of(tmp_path / "model", 1) != repeats_of(tmp_path / "other", 1)


def test_on_few_sessions_items_score_their_cosine(data, tmp_path, capsys):
    run(train, *flags(data, tmp_path / "model", "--epochs", "1"))
    assert "3000 sessions are too few to fit --repeats" in capsys.readouterr().err
    assert "repeats" not in json.loads((tmp_path / "model/epoch_1.json").read_text())


@pytest.mark.parametrize("saved", [[1.0], {"bias": "much"}, {"bias": float("nan")}, {"other": 1.0},
                                   7])
def test_damaged_metadata(saved):
    with pytest.raises(SetupError, match="the checkpoint is damaged: its repeats are"):
        RepeatScore.of_meta({"repeats": saved})
    assert RepeatScore.of_meta({}) is None

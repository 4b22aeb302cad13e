"""Items by content: an item that training never saw is found by its words."""

import os
import re

import numpy as np
import paddle
import pytest

import infer
import nets
import reader
import retrieve
import train
import utils
from ssr.evaluation import ranking
from ssr.evaluation.queries import make_queries
from ssr.kernels import ragged
from ssr.retrieval.checkpoint import choose_checkpoint, load_model
from ssr.retrieval.encoder import IdEncoder
from ssr.retrieval.index import Index, Item
from ssr.training.content import ItemContent, ItemTokens, load_item_tokens
from ssr.training.losses import SampledSoftmaxLoss
from ssr.training.negatives import SharedNegatives
from ssr.training.start import prepare

FLAGS = ("--embedding_dim", "16", "--hidden_size", "16", "--epochs", "2", "--item_tokens",
         "item_tokens.txt")


def run_train(*flags):
    return train.main([*FLAGS, *map(str, flags)])


def parameters(model_dir="model_output", epoch=2):
    return utils.load_state(model_dir, epoch, ".pdparams")


def make_model(**parts):
    paddle.seed(4)
    model = nets.SequenceSemanticRetrieval(20, 6, 6, num_tokens=8, **parts)
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    return model


def make_content(id_dropout=0.0):
    """Item i, of 20, has i % 3 tokens; the last 5 were never clicked."""
    counts = np.arange(20) % 3
    tokens = np.arange(counts.sum(), dtype=np.int32) % 8
    return ItemContent(np.arange(20) < 15, ItemTokens(
        tokens, np.concatenate([[0], np.cumsum(counts)]), 8), id_dropout)


def make_dataset():
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 6, 30))])
    items = random.permutation(np.arange(offsets[-1]) % 15).astype(np.int32)
    return reader.YoochooseDataset(items, offsets, 20)


@pytest.mark.parametrize("item_encoder", ["fc", "tied"])
def test_towers_take_each_item_as_the_sum_of_its_rows(item_encoder):
    model, content, dataset = make_model(item_encoder=item_encoder), make_content(), make_dataset()
    batch, = dataset.train(30, 0, 1, content=content)
    (users, items), = model(batch)
    table = model.embedding.weight.numpy()

    def rows_of(item):
        counts = np.arange(20) % 3
        begin = counts[:item].sum()
        tokens = [20 + (token % 8) for token in range(begin, begin + counts[item])]
        return [item] * int(item < 15) + tokens

    emb = np.stack([table[rows_of(item)].sum(0) for item in batch.ids()])
    clicks = len(batch.clicks)
    expected = model.encode_item(paddle.to_tensor(emb[clicks:]))
    np.testing.assert_allclose(items.numpy(), expected.numpy(), atol=1e-5)
    expected = model.encode_user(paddle.to_tensor(emb[:clicks]), batch.lengths)
    np.testing.assert_allclose(users.numpy(), expected.numpy(), atol=1e-5)


def test_gradients_of_the_rows_are_those_of_finite_differences():
    model, content, dataset = make_model(item_encoder="tied"), make_content(0.5), make_dataset()
    negatives = SharedNegatives(dataset, 5, 0.5)
    batch = next(dataset.train(4, 1, 1, negatives, "all", content=content))
    loss = SampledSoftmaxLoss(4.0)
    table = model.embedding.weight.numpy().copy()

    def value():
        return paddle.sum(loss(model(batch), batch)[0])

    # Of the rows looked up, since the gradient of the table itself is sparse.
    emb = paddle.to_tensor(table[batch.rows], stop_gradient=False)
    paddle.sum(loss(model.towers(emb, batch), batch)[0]).backward()
    dense = np.zeros_like(table)
    dense[batch.rows] = emb.grad.numpy()
    random = np.random.default_rng(2)
    for row in random.choice(batch.rows, 8, replace=False):
        column, change = random.integers(6), 1e-2
        numbers = []
        for sign in (1, -1):
            moved = table.copy()
            moved[row, column] += sign * change
            model.embedding.weight.set_value(moved)
            numbers.append(float(value()))
        assert (numbers[0] - numbers[1]) / (2 * change) == pytest.approx(
            dense[row, column], rel=2e-2, abs=2e-2)


def test_sums_of_rows_are_those_of_the_route_on_a_gpu():
    """There the rows are gathered and summed by Paddle: outputs and gradients of both."""
    x = paddle.randn([7, 3])
    members, lengths = np.array([3, 1, 1, 6, 0, 2]), np.array([2, 0, 3, 1, 0])
    results = []
    for route in (lambda x: ragged.sums_of_bags(x, members, lengths),
                  lambda x: ragged.sums_of_gathered(x, members, lengths)):
        x = x.detach()
        x.stop_gradient = False
        sums = route(x)
        (sums * sums).sum().backward()
        results.append((sums.numpy(), x.grad.numpy()))
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_step_moves_no_row_of_an_item_that_training_does_not_have(in_sample):
    assert run_train("--epochs", 1, "--recipe", "strong", "--num_negatives", 30) == 0
    dataset = reader.construct_train_data("train_data", "vocab.txt")
    never = np.flatnonzero(dataset.item_clicks() == 0)
    run = prepare(train.parse_args([*FLAGS, "--recipe", "strong", "--model_dir", "fresh"]))
    fresh, _ = train.build(run.settings, run.clicks, run.content)
    before, after = fresh.embedding.weight.numpy(), parameters(epoch=1)["embedding.weight"]
    assert (before[never] == after[never]).all()
    assert (before != after).any(1)[60:].all()  # and every token's


@pytest.mark.parametrize("recipe", ["faithful", "strong"])
def test_resume_equals_no_interruption(in_sample, recipe):
    flags = ["--recipe", recipe, "--dropout", 0, "--lr_schedule", "constant", "--id_dropout", 0.4]
    assert run_train(*flags, "--model_dir", "whole") == 0
    assert run_train(*flags, "--epochs", 1) == 0
    assert run_train("--resume") == 0
    whole, parts = parameters("whole"), parameters()
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])


@pytest.fixture
def grown(in_sample):
    """Beside the sample and a model of it, sessions of a catalogue that has grown by 4 items."""
    assert run_train("--recipe", "strong", "--num_negatives", 30) == 0
    os.makedirs("hour/train_data")
    with open("hour/train_data/sessions.txt", "w") as f:
        f.write("3 60 61\n5 62 3 60\n" * 20)
    with open("hour/vocab.txt", "w") as f:
        f.write("64\n")
    with open("item_tokens.txt") as old, open("hour/item_tokens.txt", "w") as f:
        f.write(old.read() + "0 1\n2\n\n3\n")
    return ["--init_from", "model_output", "--train_dir", "hour/train_data", "--vocab_path",
            "hour/vocab.txt", "--item_tokens", "hour/item_tokens.txt", "--model_dir", "next",
            "--epochs", "1"]


def test_a_new_run_begins_with_the_parameters_of_an_older_one(grown):
    assert train.main([*grown, "--base_lr", "0"]) == 0
    old, new = parameters(), parameters("next", 1)
    table, grown_table = old["embedding.weight"], new["embedding.weight"]
    np.testing.assert_array_equal(grown_table[:60], table[:60])
    np.testing.assert_array_equal(grown_table[64:], table[60:])  # the tokens
    assert (grown_table[60:64] != 0).all()
    for name in old.keys() - {"embedding.weight", "item_clicks"}:
        np.testing.assert_array_equal(new[name], old[name])
    clicks = new["item_clicks"]
    assert clicks[[60, 61, 62, 63]].tolist() == [40, 20, 20, 0]
    assert clicks[3] == old["item_clicks"][3] + 40
    # Of the optimizer's state only what the batches need has moved.
    before, after = (utils.load_state(directory, epoch, ".pdopt")["emb.item_moment2_0"]
                     for directory, epoch in (("model_output", 2), ("next", 1)))
    assert after.shape == (len(before) + 4, 16)
    rest = np.setdiff1d(np.arange(60), [3, 5])
    np.testing.assert_array_equal(after[rest], before[rest])
    assert (after[60:63] != 0).any() and (after[63] == 0).all()
    # What was not given is as it was.
    assert utils.load_meta("next", 1)["run"]["num_negatives"] == 30
    assert utils.load_meta("next", 1)["model"]["item_encoder"] == "tied"


def test_a_run_on_a_grown_catalogue_learns_and_goes_on(grown):
    assert train.main([*grown, "--epochs", "2", "--lr_schedule", "constant"]) == 0
    whole = parameters("next", 2)
    assert infer.main(["--test_dir", "hour/train_data", "--vocab_path", "hour/vocab.txt",
                       "--item_tokens", "hour/item_tokens.txt", "--model_dir", "next"]) == 0
    os.remove("next/epoch_2.json")
    assert train.main(["--resume", *grown[2:-2]]) == 0
    again = parameters("next", 2)
    for name in whole:
        np.testing.assert_array_equal(whole[name], again[name])


def test_errors_of_init_from(grown, capsys):
    def error_of(*flags):
        assert train.main([*grown, *flags]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "holds no complete epoch" in error_of("--init_from", "hour")
    with open("few.txt", "w") as f:
        f.write("59\n")
    os.makedirs("few")
    with open("few/sessions.txt", "w") as f:
        f.write("1 2\n" * 40)
    assert "a catalogue grows" in error_of("--vocab_path", "few.txt", "--train_dir", "few")
    assert "contradicts the checkpoint" in error_of("--pooling", "max")
    assert not os.path.exists("next/epoch_1.json")
    for flags, message in ((["--resume"], "give one of them"),
                           (["--model_dir", "./model_output"], "are the same")):
        with pytest.raises(SystemExit):
            train.main([*grown, *flags])
        assert message in capsys.readouterr().err


def test_errors(in_sample, capsys):
    def error_of(*flags):
        assert train.main([*map(str, flags), "--epochs", "2"]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    with pytest.raises(SystemExit):
        train.main(["--id_dropout", "0.5"])
    assert "--id_dropout needs --item_tokens" in capsys.readouterr().err
    assert "cannot read none.txt" in error_of("--item_tokens", "none.txt")
    with open("wrong.txt", "w") as f:
        f.write("0\n" * 59)
    assert "wrong.txt holds 59 lines" in error_of("--item_tokens", "wrong.txt")
    assert not os.path.exists("model_output/epoch_1.json")
    assert run_train("--epochs", 1) == 0
    os.rename("item_tokens.txt", "moved.txt")
    assert "cannot read item_tokens.txt" in error_of("--resume")  # where it was
    assert train.main(["--resume", "--epochs", "2", "--item_tokens", "moved.txt"]) == 0
    assert train.main(["--resume", "--epochs", "3"]) == 0  # the checkpoint says where it is
    os.rename("moved.txt", "item_tokens.txt")
    assert train.main(["--epochs", "1", "--model_dir", "ids"]) == 0
    assert "leave it out" in error_of("--resume", "--model_dir", "ids", "--item_tokens",
                                      "item_tokens.txt")
    assert infer.main(["--last_index", "1", "--item_tokens", "wrong.txt"]) == 1
    assert "wrong.txt holds 59 lines" in capsys.readouterr().err
    assert infer.main(["--last_index", "1", "--model_dir", "ids", "--candidates", "unknown"]) == 1
    assert "content gives one" in capsys.readouterr().err


@pytest.fixture
def with_unknown(in_sample):
    """A sample of which training does not know every fifth item, and a model of it."""
    sessions = [line.split() for line in open("train_data/sessions.txt")]
    os.makedirs("known_data")
    with open("known_data/sessions.txt", "w") as f:
        for session in sessions:
            f.write(" ".join(id for id in session if int(id) % 5) + "\n")
    assert run_train("--recipe", "strong", "--epochs", 8, "--num_negatives", 30, "--train_dir",
                     "known_data", "--batch_size", 20) == 0
    return in_sample


def number(text):
    return None if text == "n/a" else float(text)


def test_unknown_items_are_ranked_by_their_words(with_unknown, capsys):
    def metrics(*flags):
        capsys.readouterr()
        assert infer.main(["--start_index", "8", "--positions", "all", "--topk", "5", *flags]) == 0
        out = capsys.readouterr().out
        return {name: (int(labels), number(recall)) for name, labels, recall in
                re.findall(r"  (\w+) labels:(\d+) recall@5:(\S+)", out)}, out

    every, out = metrics("--candidates", "all")
    only, _ = metrics("--candidates", "unknown")
    assert "0 labels without a vector" in out
    assert every["all"][0] == every["known"][0] + every["unknown"][0]
    assert only["known"][0] == 0 and only["unknown"][0] == every["unknown"][0] > 10
    # By chance it would be 5/12 among the unknown and 5/60 among all.
    assert only["unknown"][1] >= every["unknown"][1] > 5 / 12


@pytest.mark.parametrize("positions", ["last", "all"])
def test_ranks_are_those_of_brute_force(with_unknown, positions, monkeypatch):
    monkeypatch.setattr(ranking, "CLICKS_AT_A_TIME", 50)
    model = load_model(choose_checkpoint("model_output", 8))
    tokens = load_item_tokens("item_tokens.txt", 60, model.num_tokens)
    items = IdEncoder(model, ItemContent(model.item_clicks.numpy() > 0, tokens))
    assert items.has_vector.all() and (items.clicked == (np.arange(60) % 5 > 0)).all()
    dataset = reader.construct_test_data("test_data", "vocab.txt")
    candidates = ~items.clicked
    queries = make_queries(dataset, items.has_vector, positions)
    queries = queries.select(candidates[queries.labels])
    ranks = ranking.evaluate(items, queries, candidates, batch_size=7)
    vectors = model.encode_item(items.embed(np.arange(60))).numpy()
    for session, position, label, rank in zip(queries.sessions, queries.positions, queries.labels,
                                              ranks):
        begin = dataset.offsets[session - 1]
        clicks = dataset.items[begin:begin + position - 1].astype(np.int64)
        user = model.encode_user(items.embed(clicks), np.array([len(clicks)])).numpy()[0]
        scores = vectors[candidates] @ user
        assert rank == (scores > vectors[label] @ user - ranking.TIE).sum()


def test_an_index_finds_items_that_training_never_saw(with_unknown, capsys):
    assert retrieve.main(["build"]) == 0
    assert "items:60 candidates:60" in capsys.readouterr().out
    lines = [line.rstrip("\n").split("\t") for line in open("items.txt", encoding="utf-8")]
    with Index.open("index", writable=True) as index:
        id, text = lines[10]
        twin = index.add([Item("published now", text)])
        assert twin == (1, 0, [])
        hits = {hit.id: hit for hit in index.query([lines[1][0], lines[2][0]], k=61).hits}
        # The item has no row of its own, so what was added is the same item.
        assert hits["published now"].score == pytest.approx(hits[id].score, abs=1e-6)
        assert not index.query(["published now"], k=3).skipped
    # The index asks for the vocabulary that it was built with, and no other.
    tokens = next(os.path.join(root, "tokens.txt") for root, _, names in os.walk("index")
                  if "tokens.txt" in names)
    os.remove(tokens)
    assert retrieve.main(["query", "--session", id]) == 1
    assert tokens in capsys.readouterr().err


def test_build_refuses_other_vocabularies(with_unknown, capsys):
    with open("tokens.txt") as f:
        lines = f.readlines()
    os.makedirs("other")
    with open("other/tokens.txt", "w") as f:
        f.writelines(lines[:-1])
    os.symlink(os.path.abspath("tokens.json"), "other/tokens.json")
    assert retrieve.main(["build", "--tokens_path", "other/tokens.txt"]) == 1
    assert f"the model has {len(lines)}" in capsys.readouterr().err
    assert not os.path.exists("index")

"""The exported towers are those of the model."""

import json
import os

import numpy as np
import paddle
import pytest

import export
import nets
import train
from ssr.errors import SetupError
from ssr.kernels import static
from ssr.retrieval import export as towers
from ssr.retrieval.encoder import Bag, Encoder


@pytest.mark.parametrize("parts", [
    dict(user_encoder="gru", pooling="max"), dict(user_encoder="gru", pooling="max_last"),
    dict(user_encoder="gru", pooling="max_last_clicks", hidden_size=6), dict(user_encoder="bow"),
    dict(item_encoder="tied", hidden_size=6),
    dict(pooling="max_unit_clicks", item_encoder="tied", hidden_size=6, members=3, dropout=0.5),
    dict(user_encoder="bow", members=2)])
@pytest.mark.parametrize("num_tokens, max_len", [(0, 4), (7, None)])
def test_any_architecture(parts, num_tokens, max_len, tmp_path):
    paddle.seed(1)
    model = nets.SequenceSemanticRetrieval(**{
        "vocab_size": 20, "embedding_dim": 6, "hidden_size": 5, "num_tokens": num_tokens, **parts})
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    model.eval()
    encoder = Encoder(model, max_len)
    towers.save_towers(encoder, str(tmp_path))
    assert towers.compare(encoder, str(tmp_path)) <= towers.TOLERANCE
    # It does notice another model.
    model.embedding.weight.set_value(model.embedding.weight + 0.1 * paddle.randn([
        20 + num_tokens, model.embedding.weight.shape[1]]))
    assert towers.compare(Encoder(model, max_len), str(tmp_path)) > 100 * towers.TOLERANCE


@pytest.mark.parametrize("max_len", [1, 7, 40])
def test_a_session_is_its_newest_clicks(max_len, tmp_path):
    """Also where all sessions of a batch are shorter."""
    paddle.seed(3)
    model = nets.SequenceSemanticRetrieval(20, 6, 6, pooling="max_last_clicks", num_tokens=3)
    model.embedding.weight.set_value(paddle.randn([23, 6]))
    model.eval()
    towers.save_towers(Encoder(model, max_len), str(tmp_path))
    encode = towers.load_tower(str(tmp_path), "user")
    bags = [np.array([click % 20, 20 + click % 3]) for click in range(12)]
    lengths = [12, 1, max_len % 12]
    vectors = encode(towers.pad_sessions([bags[:length] for length in lengths], 2))
    for vector, length in zip(vectors, lengths):
        newest = [Bag(bag) for bag in bags[max(0, length - max_len):length]]
        np.testing.assert_allclose(vector, Encoder(model).encode_sessions([newest])[0], atol=1e-6)


def test_padding_does_not_matter(tmp_path):
    paddle.seed(2)
    model = nets.SequenceSemanticRetrieval(20, 6, 6, pooling="max_last_clicks", num_tokens=3)
    model.eval()
    bags = [np.array([1, 20]), np.array([4]), np.array([21, 22, 7])]
    for clicks, tokens in ((3, 3), (9, 5)):
        rows = towers.pad([towers.pad(bags, tokens)], clicks)
        padded = static.user_vectors(model, paddle.to_tensor(rows))
        expected, = Encoder(model).encode_sessions([[Bag(bag) for bag in bags]])
        np.testing.assert_allclose(padded.numpy()[0], expected, atol=1e-6)


@pytest.fixture
def trained(in_sample):
    assert train.main(["--recipe", "strong", "--epochs", "1", "--embedding_dim", "8",
                       "--hidden_size", "8", "--members", "2", "--num_negatives", "20",
                       "--item_tokens", "item_tokens.txt"]) == 0
    return in_sample


def test_command(trained, capsys):
    assert export.main([]) == 0
    assert "epoch_1 in exported, largest difference from the model: " in capsys.readouterr().out
    assert json.load(open("exported/export.json"))["model"]["members"] == 2
    users = towers.load_tower("exported", "user")(np.array([[[3, -1]], [[5, 61]]]))
    assert users.shape == (2, 16)
    np.testing.assert_allclose((users ** 2).sum(1), 1, atol=1e-5)
    assert export.main([]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert export.main(["--overwrite"]) == 0
    assert [name for name in os.listdir() if "exported" in name] == ["exported"]


def test_what_was_there_stays_when_it_fails(trained, capsys, monkeypatch):
    assert export.main([]) == 0
    before = os.stat("exported").st_ino
    monkeypatch.setattr(towers, "compare", lambda *_: float("nan"))
    for argv, words in ((["--overwrite"], "differ from the model by nan"),
                        (["--export_dir", "other"], "differ from the model"),
                        (["--export_dir", "x", "--epoch", "7"], "epoch_7 is incomplete"),
                        (["--export_dir", "x", "--model_dir", "none"], "train first"),
                        (["--overwrite", "--export_dir", "train_data"], "is no export"),
                        (["--export_dir", "items.txt/x"], "cannot write")):
        capsys.readouterr()
        assert export.main(argv) == 1
        error, = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert words in error
    assert os.stat("exported").st_ino == before
    assert not {"other", "x"} & set(os.listdir()) and not [n for n in os.listdir() if "tmp" in n]


def test_a_fault_of_the_disk_is_told(in_sample, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    with pytest.raises(SetupError, match="cannot write .*No space"):
        with towers.replacing("exported", False):
            full()
    assert not [name for name in os.listdir() if "exported" in name]

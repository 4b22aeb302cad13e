"""Checkpoints that are damaged, replaced or hostile; directories that two trainings want."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import paddle
import pytest

import export
import infer
import retrieve
import train
import utils
from ssr.errors import SetupError
from ssr.pickled import load_arrays
from ssr.training.metrics import read_metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ["--embedding_dim", "8", "--hidden_size", "8"]
ASKED = {
    "infer": lambda: infer.main([]),
    "resume": lambda: train.main(["--resume", "--epochs", "9"]),
    "init_from": lambda: train.main(["--init_from", "model_output", "--model_dir", "next"]),
    "build": lambda: retrieve.main(["build"]),
    "export": lambda: export.main([]),
}


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained")
    assert train.main([*SMALL, "--epochs", "3", "--train_dir", str(sample / "train_data"),
                       "--model_dir", str(path), "--vocab_path", str(sample / "vocab.txt")]) == 0
    return path


@pytest.fixture
def model(in_sample, trained):
    shutil.copytree(trained, "model_output")
    return in_sample / "model_output"


class Hostile:
    """What leaves a mark when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def replace(path, content, meta_too=True):
    """Writes a file of a checkpoint; meta_too: and makes sizes and digests in the metadata fit, as
    an attacker would."""
    path.write_bytes(content)
    if meta_too:
        meta_path = path.with_suffix(".json")
        meta = json.loads(meta_path.read_text())
        meta["bytes"][path.suffix] = len(content)
        meta["digests"][path.suffix] = utils.file_digest(str(path))
        meta_path.write_text(json.dumps(meta))


def one_line(capsys):
    """The only line of an error on standard error."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    line, = [line for line in errors.splitlines() if "error:" in line]
    return line


@pytest.mark.parametrize("suffix", [".pdparams", ".pdopt"])
@pytest.mark.parametrize("command", ASKED)
def test_no_command_runs_what_a_checkpoint_holds(model, capsys, command, suffix):
    for epoch in (1, 2, 3):
        path = model / f"epoch_{epoch}{suffix}"
        state = load_arrays(str(path))
        replace(path, pickle.dumps({**state, "x": Hostile()}))
    reads_it = suffix == ".pdparams" or command in ("resume", "init_from")
    assert ASKED[command]() == (1 if reads_it else 0)
    if reads_it:
        assert "mkdir" in one_line(capsys)
    assert not os.path.exists("executed")


def test_an_index_does_not_run_it_either(model, capsys):
    assert retrieve.main(["build"]) == 0
    path, = [os.path.join(root, name) for root, _, names in os.walk("index")
             for name in names if name.endswith(".pdparams")]
    with open(path, "wb") as f:
        f.write(pickle.dumps({"x": Hostile()}))
    capsys.readouterr()
    assert retrieve.main(["query", "--session", "n0001"]) == 1
    one_line(capsys)
    assert not os.path.exists("executed")


@pytest.mark.parametrize("content", [
    b"", b"x", pickle.dumps([1]), pickle.dumps({"x": 3}), pickle.dumps({3: np.ones(2)}),
    pickle.dumps({"x": np.array([None])}), pickle.dumps(np.ones(3)), b"\x80\x04" + b"(" * 100_000])
def test_what_is_no_state_dict_is_one_error(tmp_path, content):
    path = tmp_path / "file.pdparams"
    path.write_bytes(content)
    with pytest.raises(SetupError, match="cannot load .*file.pdparams"):
        load_arrays(str(path))


@pytest.mark.parametrize("load", [load_arrays, paddle.load])
@pytest.mark.parametrize("save", [utils.save_state, lambda path, state: paddle.save(state, path)])
def test_a_state_dict_comes_back(tmp_path, save, load):
    path = str(tmp_path / "state.pdparams")
    layer = paddle.nn.GRU(3, 4)
    layer.register_buffer("clicks", paddle.arange(5, dtype="int32"))
    layer.register_buffer("transposed", paddle.rand([3, 4]).transpose([1, 0]))
    save(path, layer.state_dict())
    saved = load(path)
    assert saved.keys() == layer.state_dict().keys()
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(np.asarray(saved[name]), value.numpy())
        assert getattr(saved[name], "name", value.name) == value.name


def test_a_checkpoint_makes_its_directory(tmp_path):
    layer, directory = paddle.nn.Linear(2, 3), str(tmp_path / "not" / "there")
    utils.save_checkpoint(directory, 1, layer, {}, {})
    saved = load_arrays(f"{directory}/epoch_1.pdparams")
    np.testing.assert_array_equal(saved["weight"], layer.weight.numpy())


def test_saving_and_loading_take_one_array_at_a_time(tmp_path):
    path, size = str(tmp_path / "state.pdopt"), 8 << 20
    state = {f"moment{number}": paddle.rand([size // 4]) for number in range(4)}
    tracemalloc.start()
    try:
        utils.save_state(path, state)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
        tracemalloc.reset_peak()
        loaded = load_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < (len(loaded) + 1.5) * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("change, message", [
    (lambda state: {"x": state["item_clicks"]}, "it lacks"),
    (lambda state: {**state, "x": np.ones(3)}, "it holds x"),
    (lambda state: {**state, "members.0.user_fc.bias": np.ones(3, np.float32)}, "is [3] and not"),
])
@pytest.mark.parametrize("command", ["infer", "resume", "build"])
def test_parameters_of_another_model_are_refused(model, capsys, command, change, message):
    for epoch in (1, 2, 3):
        path = model / f"epoch_{epoch}.pdparams"
        replace(path, pickle.dumps(change(load_arrays(str(path)))))
    assert ASKED[command]() == 1
    assert message in one_line(capsys)


@pytest.mark.parametrize("command", ["infer", "resume", "build", "export"])
def test_another_epochs_file_is_refused(model, capsys, command):
    for epoch in (2, 3):
        shutil.copy(model / "epoch_1.pdparams", model / f"epoch_{epoch}.pdparams")
    os.remove(model / "epoch_1.json")
    assert ASKED[command]() == 1
    assert "or that of another epoch" in one_line(capsys)


def test_every_flipped_bit_is_told(model, capsys):
    draw = random.Random(0)
    content = (model / "epoch_3.pdparams").read_bytes()
    for _ in range(10):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        replace(model / "epoch_3.pdparams", bytes(flipped), meta_too=False)
        assert infer.main(["--start_index", "3"]) == 1
        assert "is damaged" in one_line(capsys)


def test_a_checkpoint_without_digests_is_taken(model):
    """As older ones are."""
    for epoch in (1, 2, 3):
        path = model / f"epoch_{epoch}.json"
        meta = json.loads(path.read_text())
        for name in ("digests", "data"):
            del meta[name]
        path.write_text(json.dumps(meta))
    assert infer.main([]) == 0 and train.main(["--resume", "--epochs", "4"]) == 0


WRONG = [None, -1, 0, 1e999, 10 ** 30, "x", "", [], {}, [[]], True, {"a": {"b": 1}}, float("nan")]


def mutations(meta, draw, count):
    """Copies of some metadata with a value replaced, or missing, somewhere."""
    places = [(name,) for name in meta] + [(name, inner) for name in meta
                                           if isinstance(meta[name], dict) for inner in meta[name]]
    for _ in range(count):
        *outer, last = draw.choice(places)
        changed = json.loads(json.dumps(meta))
        inside = changed[outer[0]] if outer else changed
        if draw.random() < 0.2:
            del inside[last]
        else:
            inside[last] = draw.choice(WRONG)
        yield changed


@pytest.mark.parametrize("command, count", [("infer", 25), ("resume", 25), ("build", 25),
                                            ("export", 8)])
def test_metadata_of_any_shape_are_one_error_or_none(model, capsys, command, count):
    meta = json.loads((model / "epoch_3.json").read_text())
    for changed in mutations(meta, random.Random(command), count):
        (model / "epoch_3.json").write_text(json.dumps(changed))
        os.system("rm -rf index exported next model_output/epoch_[4-9]*")
        code = ASKED[command]()
        errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert code in (0, 1) and len(errors) == code, (changed, errors)


@pytest.mark.parametrize("text", ["[" * 200_000, "{}", "[]", "3", '{"model": ' + "9" * 5000 + "}"])
def test_metadata_that_are_none(model, capsys, text):
    for epoch in (1, 2, 3):
        (model / f"epoch_{epoch}.json").write_text(text)
    assert infer.main([]) == 1
    assert "no complete epoch" in one_line(capsys)


# --- two trainings, killed trainings --------------------------------------------------------------


def start(*flags):
    return subprocess.Popen([sys.executable, os.path.join(ROOT, "train.py"), *SMALL, *flags],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--parallel", "1", "--num_devices", "2"]])
def test_a_second_training_is_kept_out(in_sample, flags):
    first = start("--epochs", "100000", *flags)
    try:
        deadline = time.time() + 60
        while not os.path.exists("model_output/epoch_1.json") and time.time() < deadline:
            time.sleep(0.1)
        second = start("--epochs", "1")
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 1
        assert errors.splitlines() == ["train.py: error: another training writes to model_output: "
                                       "wait for it, or give another --model_dir"]
    finally:
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=60) == 130
    epochs = utils.checkpoint_epochs("model_output")
    assert all(utils.load_meta("model_output", epoch) for epoch in epochs[:-1])
    assert train.main(["--resume", "--model_dir", "model_output", "--epochs", str(epochs[-1] + 1),
                       *flags[:0]]) == (0 if not flags else 1)  # the lock has gone with it


def test_metrics_have_a_line_for_every_epoch_after_a_kill(model):
    """Killed between a checkpoint and its line, say."""
    lines = read_metrics("model_output/metrics.jsonl")
    (model / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert train.main(["--resume", "--epochs", "4"]) == 0
    after = read_metrics("model_output/metrics.jsonl")
    assert [line["epoch"] for line in after] == [1, 2, 3, 4]
    assert after[:3] == lines


def test_what_does_not_fit_into_memory_is_told_before(in_sample, capsys):
    with open("vocab.txt.large", "w") as f:
        f.write(f"{2 ** 31 - 1}\n")
    assert train.main(["--vocab_path", "vocab.txt.large"]) == 1
    assert "GiB, and this machine has" in one_line(capsys)
    assert not os.path.exists("model_output")

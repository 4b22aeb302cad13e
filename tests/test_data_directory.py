"""The directory that preprocess.py writes: what data.json says of it, what a stopped run leaves,
and every command with --data_dir in place of paths."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, mutated

import evaluate_stream
import infer
import preprocess
import retrieve
import train
import utils
from ssr import data_directory
from ssr.data_directory import DataDirectory, PartSize
from ssr.errors import DataError
from ssr.training.settings import MIN_STEPS, merge, with_enough_epochs

ROOT = Path(__file__).parents[1]
CLICKS = "SessionId,ItemId,Time,Title\n" + "".join(
    f"{session},{item},{day * 86400 + session},words of {item}\n"
    for day, sessions in enumerate(["ab", "cde", "fg"], 1)
    for session in map(ord, sessions) for item in (1, 2, day + session % 2))
SMALL = ["--embedding_dim", "8", "--hidden_size", "8"]


def prepare(folder, *flags):
    """A directory made of CLICKS."""
    (folder / "clicks.csv").write_text(CLICKS)
    assert preprocess.main(["clicks", "--input", str(folder / "clicks.csv"), "--output_dir",
                            str(folder / "data"), "--min_item_support", "1", *flags]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("made"), "--valid_days", "1", "--keep_times",
                   "--text_column", "Title")


@pytest.fixture
def data(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "data")


def refusal(path):
    """What is said of a directory that cannot be used."""
    with pytest.raises(DataError) as error:
        DataDirectory.open(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


# --- what it says ---------------------------------------------------------------------------------


def test_what_preprocess_says_of_its_directory(made):
    directory = DataDirectory.open(str(made))
    said = directory.description
    for part in ("train", "valid", "test"):
        lines = (made / f"{part}_data/sessions.txt").read_text().splitlines()
        assert said.parts[part] == PartSize(len(lines), sum(len(line.split()) for line in lines))
    assert said.items == int((made / "vocab.txt").read_text())
    assert said.tokens == len((made / "tokens.txt").read_text().splitlines())
    assert (said.layout, said.time_zone) == ("table", "UTC")
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert files == {*said.files, "data.json"}
    for name, (size, digest) in said.files.items():
        content = (made / name).read_bytes()
        assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())


def test_sessions_with_raw_ids_have_no_times_to_read_and_maybe_no_tokens(tmp_path):
    (tmp_path / "raw").write_text("a b\n\nb a c\n")
    out = tmp_path / "data"
    assert preprocess.main(["sessions", "--train_files", str(tmp_path / "raw"), "--test_files",
                            str(tmp_path / "raw"), "--output_dir", str(out)]) == 0
    said = DataDirectory.open(str(out)).description
    assert (said.items, said.tokens, said.layout, said.time_zone) == (3, None, "sessions", None)
    assert said.parts == {part: PartSize(2, 5) for part in ("train", "test")}


def test_tokens_of_an_earlier_run_are_counted(made, tmp_path):
    said = DataDirectory.open(str(prepare(tmp_path, "--continue_from", str(made)))).description
    assert said.tokens == DataDirectory.open(str(made)).description.tokens


def test_where_things_are(made):
    directory = DataDirectory.open(str(made))
    assert directory.sessions("valid") == str(made / "valid_data")
    assert directory.times("test") == str(made / "test_times")
    assert [directory.vocab, directory.items, directory.item_tokens, directory.tokens] == [
        str(made / name) for name in ("vocab.txt", "items.txt", "item_tokens.txt", "tokens.txt")]


def test_a_directory_without_data_json_opens_as_well(data):
    (data / "data.json").unlink()
    (data / "items.txt").unlink()
    shutil.rmtree(data / "valid_data")
    directory = DataDirectory.open(str(data))
    assert directory.description is None
    assert directory.items is None and directory.sessions("valid") is None
    assert directory.sessions("train") == str(data / "train_data")


def test_a_part_that_a_later_run_does_not_have_is_not_there(data):
    (data / "valid_data/.cache").mkdir()
    log = data.parent / "clicks.csv"
    log.write_text(CLICKS)
    assert preprocess.main(["clicks", "--input", str(log), "--output_dir", str(data),
                            "--min_item_support", "1"]) == 0
    directory = DataDirectory.open(str(data))
    assert directory.sessions("valid") is None and directory.times("train") is None
    assert directory.item_tokens is None


def test_the_repository_is_one():
    directory = DataDirectory.open(str(ROOT))
    assert directory.sessions("train") == str(ROOT / "train_data")
    assert directory.sessions("valid") == str(ROOT / "sample/valid_data")
    assert directory.item_tokens == str(ROOT / "sample/item_tokens.txt")


# --- what it refuses ------------------------------------------------------------------------------


def test_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    assert "no such directory" in refusal(tmp_path / "none")
    assert "not a directory" in refusal(tmp_path / "file")


@pytest.mark.parametrize("change, what", [
    (lambda data: (data / "tokens.txt").unlink(), "tokens.txt is missing"),
    (lambda data: (data / "vocab.txt").write_text("10\n"), "vocab.txt has changed"),
    (lambda data: (data / "items.txt").write_bytes(
        (data / "items.txt").read_bytes()[::-1]), "items.txt has changed"),  # of the same size
    (lambda data: (data / "train_data/more.txt").write_text("0 1\n"), "more.txt has been added"),
    (lambda data: shutil.rmtree(data / "test_data"), "sessions.txt is missing"),
])
def test_files_that_are_not_those_of_the_run(data, change, what):
    change(data)
    assert what in refusal(data)
    assert f"remove {data / 'data.json'} to use the files as they are" in refusal(data)
    (data / "data.json").unlink()
    DataDirectory.open(str(data))


def test_what_the_reader_keeps_beside_the_sessions_is_no_change(data):
    (data / "train_data/.cache").mkdir()
    DataDirectory.open(str(data))


def test_what_cannot_be_read(data, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(data_directory, "file_digest", refuse)
    assert re.fullmatch(rf"cannot read {data}/\S+: Permission denied", refusal(data))


def test_large_files_are_compared_by_size_alone(data, monkeypatch):
    monkeypatch.setattr(data_directory, "DIGESTED_BYTES", 1)
    (data / "items.txt").write_bytes((data / "items.txt").read_bytes()[::-1])
    DataDirectory.open(str(data))
    with open(data / "items.txt", "a") as f:
        f.write("more\n")
    assert "items.txt has changed" in refusal(data)


def test_a_newer_format(data):
    (data / "data.json").write_text('{"format": 2, "complete": true}')
    assert "has format 2, and format 1 is known" in refusal(data)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(mutations=MUTATIONS)
def test_mutated_descriptions_are_read_or_refused(made, tmp_path_factory, mutations):
    folder = tmp_path_factory.mktemp("mutated", numbered=True)
    (folder / "data.json").write_bytes(mutated((made / "data.json").read_bytes(), mutations))
    try:
        data_directory.read_description(str(folder))
    except DataError as error:
        assert "\n" not in str(error) and "data.json" in str(error) or "incomplete" in str(error)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=2)
                    | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(key=st.sampled_from(["format", "complete", "items", "tokens", "layout", "time_zone", "parts",
                            "files"]),
       value=JSON | st.dictionaries(st.sampled_from(["train", "../x", "a//b", "items.txt"]),
                                    JSON, min_size=1))
def test_other_values_are_read_or_refused(made, tmp_path_factory, key, value):
    folder = tmp_path_factory.mktemp("values", numbered=True)
    values = json.loads((made / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps({**values, key: value}))
    try:
        directory = DataDirectory.open(str(folder))
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert (key, value) == ("files", {}), "nothing else lets a directory without files be"
        assert directory.description.files == {}


# --- a run that is stopped ------------------------------------------------------------------------


STOPPED = """if True:
    import os, signal, sys
    import preprocess
    replace, left = os.replace, int(sys.argv.pop(1))
    def replace_or_die(*paths):
        global left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        replace(*paths)
    os.replace = replace_or_die
    sys.exit(preprocess.main())"""


@pytest.mark.parametrize("renamed", [0, 1, 3, 5, 6])
def test_a_kill_leaves_the_old_the_new_or_a_directory_that_is_refused(tmp_path, renamed):
    """A run renames data.json, four files and data.json."""
    raw, out = tmp_path / "raw", tmp_path / "data"
    flags = ["sessions", "--train_files", str(raw), "--test_files", str(raw), "--output_dir",
             str(out)]
    raw.write_text("a b\n")
    assert preprocess.main(flags) == 0
    raw.write_text("a b c\nd c\n")
    killed = subprocess.run([sys.executable, "-c", STOPPED, str(renamed), *flags],
                            cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    assert killed == (0 if renamed == 6 else -signal.SIGKILL)
    if renamed in (0, 6):
        assert DataDirectory.open(str(out)).description.items == (4 if renamed else 2)
    else:
        assert "incomplete" in refusal(out)
    assert preprocess.main(flags) == 0
    assert DataDirectory.open(str(out)).description.items == 4


def test_a_failure_while_files_are_replaced(tmp_path, monkeypatch, capsys):
    data = prepare(tmp_path)
    replace = os.replace

    def replace_unless_items(source, target):
        if target.endswith("items.txt"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_unless_items)
        assert preprocess.main(["clicks", "--input", str(tmp_path / "clicks.csv"), "--output_dir",
                                str(data), "--min_item_support", "1"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert "incomplete" in refusal(data)
    assert preprocess.main(["clicks", "--input", str(tmp_path / "clicks.csv"), "--output_dir",
                            str(tmp_path / "more"), "--continue_from", str(data)]) == 1
    assert "incomplete" in capsys.readouterr().err
    DataDirectory.open(str(prepare(tmp_path)))


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def timed(sample, tmp_path, monkeypatch):
    """A directory of data with everything in it, seen from elsewhere."""
    shutil.copytree(sample, tmp_path / "data")
    for kind in ("data", "times"):
        shutil.copytree(sample / f"test_{kind}", tmp_path / f"data/valid_{kind}")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return "../data"


def parameters(model_dir, epoch=1):
    return {name: np.asarray(value)
            for name, value in paddle.load(f"{model_dir}/epoch_{epoch}.pdparams").items()}


def run_train(*flags):
    return train.main([*SMALL, "--epochs", "1", *flags])


def test_one_directory_in_place_of_paths(timed, capsys):
    assert run_train("--data_dir", timed, "--model_dir", "one") == 0
    words = f"items by content: {timed}/item_tokens.txt (--item_tokens none leaves it out)"
    assert words in capsys.readouterr().err
    assert run_train("--train_dir", f"{timed}/train_data", "--vocab_path", f"{timed}/vocab.txt",
                     "--item_tokens", f"{timed}/item_tokens.txt", "--model_dir", "other") == 0
    one, other = parameters("one"), parameters("other")
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    assert "valid_recall@20" in utils.load_meta("one", 1)["metrics"]
    assert "valid_recall@20" not in utils.load_meta("other", 1)["metrics"]


def test_a_path_that_is_given_wins(timed, capsys):
    Path("few").mkdir()
    Path("few/sessions.txt").write_text("0 1 2\n" * 60)
    assert run_train("--data_dir", timed, "--train_dir", "few", "--item_tokens", "none") == 0
    assert utils.load_meta("model_output", 1)["model"]["num_tokens"] == 0
    assert "num_steps:2 " in capsys.readouterr().out


def test_a_model_without_content_goes_on_without(timed, capsys):
    assert run_train("--data_dir", timed, "--item_tokens", "none", "--model_dir", "one") == 0
    assert run_train("--data_dir", timed, "--init_from", "one", "--model_dir", "two") == 0
    assert "one knows no content" in capsys.readouterr().err
    assert utils.load_meta("two", 1)["model"]["num_tokens"] == 0


@pytest.mark.parametrize("main, flags, paths", [
    (infer, [], ["--test_dir {}/test_data --vocab_path {}/vocab.txt"]),
    (infer, ["--output", "top.tsv"],
     ["--test_dir {}/test_data --vocab_path {}/vocab.txt --items_path {}/items.txt"]),
    (evaluate_stream, ["--baselines", "none"],
     ["--test_dir {}/test_data --times {}/test_times --warm_dir {}/train_data "
      "--warm_times {}/train_times --vocab_path {}/vocab.txt"]),
])
def test_the_other_commands(timed, capsys, main, flags, paths):
    assert run_train("--data_dir", timed, "--model_dir", "model_output") == 0
    outputs = []
    for given_paths in (["--data_dir", timed], paths[0].replace("{}", timed).split()):
        capsys.readouterr()
        assert main.main([*flags, *given_paths]) == 0
        outputs.append(re.sub(r"(queries|clicks)/s:\d+|time_cost\(s\):\S+", "",
                              capsys.readouterr().out))
        if "top.tsv" in flags:
            outputs[-1] += Path("top.tsv").read_text()
    assert outputs[0] == outputs[1]


def test_weights_are_fitted_on_valid_or_train_and_never_on_test(timed, capsys):
    assert run_train("--data_dir", timed) == 0
    flags = ["--data_dir", timed, "--fit", "--baselines", "none", "--fit_queries", "50"]
    shutil.rmtree(f"{timed}/test_data")
    for part, others in (("valid", "valid_times"), ("train", "train_times")):
        assert evaluate_stream.main(flags) == 0
        sessions = Path(timed, f"{part}_data/sessions.txt").read_text().splitlines()
        queries = sum(len(session.split()) - 1 for session in sessions)
        assert f" {queries} queries\n" in capsys.readouterr().out
        shutil.rmtree(f"{timed}/{others}")


def test_an_index_of_a_directory(timed, capsys):
    assert run_train("--data_dir", timed) == 0
    assert retrieve.main(["build", "--data_dir", timed]) == 0
    assert "items:60 candidates:60" in capsys.readouterr().out


@pytest.mark.parametrize("command", [train, infer, evaluate_stream])
def test_a_directory_that_cannot_be_used_is_one_line(made, tmp_path, capsys, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command.py"])
    data = shutil.copytree(made, tmp_path / "data")
    (data / "vocab.txt").write_text("3\n")
    assert command.main(["--data_dir", str(data)]) == 1
    assert re.fullmatch(r"command.py: error: .*vocab.txt has changed since .*\n",
                        capsys.readouterr().err)


# --- few sessions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, steps_per_epoch, epochs", [
    ("strong", 1, MIN_STEPS["strong"]), ("strong", 7, -(-MIN_STEPS["strong"] // 7)),
    ("strong", 908, 5), ("strong", 10 ** 6, 5), ("faithful", 1, 10)])
def test_a_recipe_has_a_least_number_of_steps(recipe, steps_per_epoch, epochs):
    chosen = with_enough_epochs(merge({"recipe": recipe}), steps_per_epoch)
    assert chosen == merge({"recipe": recipe, "epochs": epochs})


def test_epochs_of_few_sessions_are_settled_before_training(in_sample, capsys):
    strong = [*SMALL, "--recipe", "strong", "--batch_size", "16", "--num_negatives", "20"]
    assert train.main(strong) == 0
    epochs = -(-MIN_STEPS["strong"] // 15)
    assert f"{epochs} epochs in place of 5" in capsys.readouterr().err
    assert utils.checkpoint_epochs("model_output")[-1] == epochs
    assert utils.load_meta("model_output", 1)["run"]["epochs"] == epochs
    # A run that goes on has the epochs of its beginning, and one that is told has what it is told.
    assert train.main(["--resume"]) == 0
    assert utils.checkpoint_epochs("model_output")[-1] == epochs
    assert train.main([*strong, "--epochs", "1", "--model_dir", "told"]) == 0
    assert utils.checkpoint_epochs("told") == [1]
    assert train.main(["--init_from", "told", "--model_dir", "more"]) == 0
    assert utils.checkpoint_epochs("more") == [1]



"""Whatever a file holds: the commands that read it succeed, or say what is wrong in one line.

A fixed number of damaged files by default; tests/fuzz.py goes on with others for as long as is
asked. What preprocess.py reads and what comes over HTTP have their own in
test_preparation_inputs.py and test_serve.py.
"""

import contextlib
import io
import os
import shutil
import sys
import traceback

from ssr.commands import setup_logging

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, mutated

import evaluate_stream
import export
import infer
import plot_metrics
import retrieve
import train
from ssr.retrieval import builds

SMALL = ["--recipe", "strong", "--epochs", "1", "--embedding_dim", "4", "--hidden_size", "4",
         "--num_negatives", "20", "--valid_dir", "test_data"]
CONTENT = ["--item_tokens", "item_tokens.txt"]
REPLAY = ["--times", "test_times", "--warm_dir", "train_data", "--warm_times", "train_times",
          "--baselines", "none"]

TRAIN = train, [*SMALL, *CONTENT, "--model_dir", "new"]
RESUME = train, ["--resume", "--epochs", "2"]
START = train, ["--init_from", "model_output", *CONTENT, "--epochs", "1", "--model_dir", "new"]
INFER = infer, []
BUILD = retrieve, ["build", "--index_dir", "new"]
EXPORT = export, ["--export_dir", "new"]
STREAM = evaluate_stream, REPLAY
FIT = evaluate_stream, [*REPLAY, "--fit", "--scoring", "new"]
PLOT = plot_metrics, ["--output", "new"]
QUERY = retrieve, ["query", "--session", "n0001 n0002"]
CHECK = retrieve, ["check"]
ADD = retrieve, ["add", "news.txt"]
CLICK = retrieve, ["click", "clicks.txt"]
LIVE = retrieve, ["live", "--scoring", "scoring.json"]
REINDEX = retrieve, ["reindex"]
VECTORS = retrieve, ["export-vectors", "new"]

READ_BY = {
    "train_data/sessions.txt": [TRAIN], "vocab.txt": [TRAIN, INFER, STREAM],
    "item_tokens.txt": [TRAIN, INFER, BUILD], "test_data/sessions.txt": [INFER],
    "items.txt": [BUILD], "tokens.txt": [BUILD], "tokens.json": [BUILD],
    "test_times/sessions.txt": [STREAM], "train_times/sessions.txt": [FIT],
    "scoring.json": [LIVE, (evaluate_stream, [*REPLAY, "--scoring", "scoring.json"])],
    "model_output/epoch_1.json": [INFER, RESUME, START, BUILD, EXPORT, STREAM],
    "model_output/epoch_1.pdparams": [INFER, RESUME, START, BUILD, EXPORT, STREAM],
    "model_output/epoch_1.pdopt": [RESUME],
    "model_output/metrics.jsonl": [PLOT, RESUME],
    "news.txt": [ADD], "clicks.txt": [CLICK],
    "index/clicks.sqlite": [QUERY, CHECK, CLICK],
    "index/live.json": [QUERY, CLICK],
}
READ_WITH_AN_INDEX = [QUERY, CHECK, ADD, REINDEX, VECTORS]


def run(module, argv):
    """(exit code, standard error) of a command; a traceback is no exit code."""
    with contextlib.redirect_stderr(io.StringIO()) as err, \
            contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module.__name__}.py"])
        try:
            code = module.main(argv)
        except Exception:
            code = traceback.format_exc()
    setup_logging()  # to where standard error is now
    return code, err.getvalue()


@pytest.fixture(scope="module")
def world(sample, tmp_path_factory):
    """A directory that holds all that is read: the sample, a model, a live index, weights, news and
    clicks."""
    path = tmp_path_factory.mktemp("world")
    shutil.copytree(sample, path, dirs_exist_ok=True)
    before = os.getcwd()
    os.chdir(path)
    for module, argv in [(train, [*SMALL, *CONTENT]), (retrieve, ["build"]),
                         (evaluate_stream, [*REPLAY, "--fit", "--scoring", "scoring.json"])]:
        code, err = run(module, argv)
        assert code == 0, err
    (path / "news.txt").write_text("n0007\tanother title\tsection:space\nnews-1\tMars &amp; 火箭\n")
    (path / "clicks.txt").write_text("a\tn0001\nb\tn0002\na\tn0003\nc\tn0001\n")
    assert run(*CLICK)[0] == 0
    yield path
    os.chdir(before)


def files_of_the_index():
    build = os.path.relpath(builds.current_build("index"))
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(build)
                  for name in names if not name.endswith(("-wal", "-shm", "lock")))


def check_damaged(file, mutations, command):
    """Damages a file, runs a command that reads it, and makes all good again."""
    shutil.copytree(".", "../good", dirs_exist_ok=True)
    try:
        with open(file, "rb") as f:
            content = f.read()
        os.remove(file)  # it may be a second name of another one
        with open(file, "wb") as f:
            f.write(mutated(content, mutations))
        code, err = run(*command)
        errors = [line for line in err.splitlines() if "error:" in line]
        says_so = bool(errors) or command == CHECK  # which lists the faults
        assert code == 0 or (code == 1 and says_so), (file, command[1], code, err)
        assert len(errors) <= code and "Traceback" not in err, (file, command[1], err)
        assert not code or not os.path.exists("new"), (file, command[1])
        assert all(len(line) < 1000 for line in errors), (file, command[1], errors)
    finally:
        for name in os.listdir("."):
            shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)
        shutil.copytree("../good", ".", dirs_exist_ok=True)


# An example takes as long as a command: none is made smaller.
FUZZ = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.explicit, Phase.reuse, Phase.generate])


@pytest.mark.fuzz
@settings(max_examples=100, **FUZZ)
@given(data=st.data(), mutations=MUTATIONS)
def test_a_damaged_file_is_read_or_refused(world, data, mutations):
    file = data.draw(st.sampled_from(sorted(READ_BY)))
    check_damaged(file, mutations, data.draw(st.sampled_from(READ_BY[file])))


@pytest.mark.fuzz
@settings(max_examples=60, **FUZZ)
@given(data=st.data(), mutations=MUTATIONS)
def test_a_damaged_index_answers_or_says_so(world, data, mutations):
    file = data.draw(st.sampled_from(files_of_the_index()))
    check_damaged(file, mutations, data.draw(st.sampled_from(READ_WITH_AN_INDEX)))

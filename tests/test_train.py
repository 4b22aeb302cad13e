"""Training and evaluation as a user runs them, errors included."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest

import infer
import plot_metrics
import reader
import train
import utils
from nets import PairwiseHingeLoss
from ssr.errors import SetupError
from ssr.evaluation import ranking
from ssr.evaluation.queries import make_queries
from ssr.files import write_atomically
from ssr.retrieval.checkpoint import choose_checkpoint, load_model
from ssr.retrieval.encoder import IdEncoder
from ssr.training import flags
from ssr.training.metrics import read_metrics
from ssr.training.settings import merge

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ["--embedding_dim", "8", "--hidden_size", "8"]


def run_train(*flags):
    return train.main([*SMALL, *map(str, flags)])


def state(model_dir, epoch, suffix=".pdparams"):
    return {name: np.asarray(value) for name, value in
            paddle.load(f"{model_dir}/epoch_{epoch}{suffix}").items()
            if not isinstance(value, dict)}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def run_script(*command, **environment):
    result = subprocess.run([sys.executable, os.path.join(ROOT, command[0]), *command[1:]],
                            capture_output=True, text=True, env={**os.environ, **environment})
    return result.returncode, result.stdout, result.stderr


# --- what is printed and saved --------------------------------------------------------------------


def test_lines_that_peoples_scripts_read(in_sample, capsys):
    assert run_train("--epochs", 2) == 0
    out = capsys.readouterr().out
    assert re.search(r"^epoch:1 num_steps:5 time_cost\(s\):\d+\.\d{6}$", out, re.M)
    assert re.search(r"^model saved in model_output/epoch_2$", out, re.M)
    assert infer.main([]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^model:model_output/epoch_1 recall@20:\d\.\d{3} time_cost\(s\):\d+\.\d\d$",
                     out, re.M)
    assert "epochs 1 to 10 were asked for, model_output holds 1, 2" in out


def test_the_default_training_learns(in_sample, capsys):
    """Several times the recall of the most popular items at 5 of 60."""
    train.main(["--epochs", "25"])
    capsys.readouterr()
    infer.main(["--start_index", "25", "--last_index", "25", "--topk", "5"])
    recall = float(re.search(r"all labels:80 recall@5:(\S+)", capsys.readouterr().out).group(1))
    data = reader.construct_train_data("train_data", "vocab.txt")
    popular = np.argsort(-data.item_clicks(), kind="stable")[:5]
    test = reader.construct_test_data("test_data", "vocab.txt")
    baseline = np.isin(test.items[test.offsets[1:] - 1], popular).mean()
    assert recall > 2 * baseline, (recall, baseline)


def test_same_seed_same_parameters_another_seed_others(in_sample):
    for model_dir, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_train("--epochs", 1, "--seed", seed, "--model_dir", model_dir)
    assert_same_state(state("a", 1), state("b", 1))
    assert (state("a", 1)["embedding.weight"] != state("c", 1)["embedding.weight"]).any()


def test_one_step_changes_the_rows_of_its_batch_only(in_sample):
    dataset = reader.construct_train_data("train_data", "vocab.txt")
    settings = merge(train.parse_args(SMALL).given)
    with paddle.utils.unique_name.guard():
        model, optimizer = train.build(settings, dataset.item_clicks())
    before = model.embedding.weight.numpy().copy()
    batch = next(dataset.train(3, seed=0, epoch=1))
    train.make_step(model, PairwiseHingeLoss(), optimizer)(batch)
    changed = np.flatnonzero((model.embedding.weight.numpy() != before).any(axis=1))
    assert len(changed) > 0
    assert set(changed) <= set(batch.ids())


def test_the_loss_is_the_mean_over_sessions_and_acc_is_divided_by_the_true_count(in_sample):
    """The last batch is smaller; with a learning rate of 0 one large batch says what is right."""
    metrics = []
    for batch_size in (50, 1000):
        run_train("--epochs", 1, "--base_lr", 0, "--batch_size", batch_size)
        with open("model_output/epoch_1.json") as f:
            metrics.append(json.load(f)["metrics"])
    # The negatives differ between the two, hence not to the last digit.
    assert metrics[0]["avg_cost"] == pytest.approx(metrics[1]["avg_cost"], abs=0.05)
    assert metrics[0]["acc"] * 230 == pytest.approx(round(metrics[0]["acc"] * 230), abs=1e-3)


def test_enable_ce(in_sample, capsys):
    assert run_train("--enable_ce", "--step_num", 3, "--epochs", 2) == 0
    out = capsys.readouterr().out
    assert "epoch:1 num_steps:3 " in out
    assert re.search(r"^kpis\teach_pass_duration_cpu1_thread1\t\d+\.\d+$", out, re.M)
    assert re.search(r"^kpis\ttrain_acc_cpu1_thread1\t0\.\d+$", out, re.M)
    with open("model_output/epoch_2.json") as f:
        assert json.load(f)["run"]["seed"] == flags.CE_SEED


def test_progress_goes_to_the_log_when_there_is_no_terminal(in_sample):
    code, out, err = run_script("train.py", *SMALL, "--epochs", "1", "--print_batch", "2")
    assert code == 0 and "Train" not in out and "\r" not in err
    assert re.findall(r"Train --> pass: 0 batch_id: (\d+) avg_cost: \d\.\d+, acc: \d", err) == \
        ["1", "3"]


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("user_encoder", ["gru", "bow"])
def test_resume_equals_no_interruption(in_sample, user_encoder):
    flags = ["--user_encoder", user_encoder, "--seed", 4, "--max_len", 5]
    run_train(*flags, "--epochs", 4, "--model_dir", "whole")
    run_train(*flags, "--epochs", 2, "--model_dir", "parts")
    # Everything that decides the outcome comes from the checkpoint.
    assert train.main(["--resume", "--epochs", "4", "--model_dir", "parts"]) == 0
    for suffix in (".pdparams", ".pdopt"):
        assert_same_state(state("whole", 4, suffix), state("parts", 4, suffix))


@pytest.mark.parametrize("suffix", (".pdparams", ".pdopt", ".json"))
def test_resume_goes_back_to_the_newest_complete_epoch(in_sample, suffix, capsys):
    run_train("--epochs", 3, "--model_dir", "whole")
    shutil.copytree("whole", "cut")
    path = f"cut/epoch_3{suffix}"
    with open(path, "r+b") as f:
        f.truncate(os.path.getsize(path) // 2)
    assert train.main(["--resume", "--epochs", "3", "--model_dir", "cut"]) == 0
    err = capsys.readouterr().err
    assert path in err and "going on from cut/epoch_2" in err
    assert_same_state(state("whole", 3), state("cut", 3))


def test_resume_with_nothing_there_starts_anew(in_sample, capsys):
    assert run_train("--resume", "--epochs", 1) == 0
    assert "holds no complete epoch" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--hidden_size", "9"], ["--seed", "7"], ["--base_lr", "0.5"],
                                   ["--user_encoder", "bow"]])
def test_resume_refuses_flags_that_contradict(in_sample, flags, capsys):
    run_train("--epochs", 1)
    assert train.main(["--resume", *flags]) == 1
    assert f"{flags[0]} {flags[1]} contradicts the checkpoint" in capsys.readouterr().err


def test_a_new_run_replaces_the_epochs_of_an_older_one(in_sample):
    run_train("--epochs", 3)
    assert run_train("--epochs", 2, "--overwrite") == 0
    assert utils.checkpoint_epochs("model_output") == [1, 2]


@pytest.mark.parametrize("change, message", [
    (["--epochs", 2], "--epochs 3 and not 2"), (["--seed", 5], "--seed 0 and not 5"),
    (["--recipe", "strong", "--num_negatives", 30], "--recipe faithful and not strong"),
    (["--train_dir", "test_data"], "other data")])
def test_another_run_removes_no_epochs_unasked(in_sample, capsys, change, message):
    """The same command again replaces its own epochs."""
    assert run_train("--epochs", 3) == 0
    before = state("model_output", 3)
    assert run_train("--epochs", 3) == 0
    assert_same_state(before, state("model_output", 3))
    capsys.readouterr()
    assert run_train("--epochs", 3, *change) == 1
    error = capsys.readouterr().err
    assert message in error and "--overwrite" in error
    assert utils.checkpoint_epochs("model_output") == [1, 2, 3]
    assert run_train("--epochs", 3, *change, "--overwrite") == 0


# --- the strong recipe, validation, metrics -------------------------------------------------------

STRONG = ["--recipe", "strong", "--num_negatives", "50", "--batch_size", "16"]


def test_the_strong_recipe_learns_more_than_the_default(in_sample, capsys):
    recalls = []
    for recipe in ([], STRONG):
        assert train.main(["--epochs", "5", "--embedding_dim", "32", "--hidden_size", "32",
                           "--overwrite", *recipe]) == 0
        infer.main(["--start_index", "5"])
        recalls.append(float(re.search(r"all labels:\d+ recall@20:(\S+)",
                                       capsys.readouterr().out).group(1)))
    assert recalls[1] > recalls[0] > 0


def test_flags_go_before_the_recipe(in_sample):
    settings = merge(train.parse_args(["--recipe", "strong", "--dropout", "0.1"]).given)
    assert (settings.loss, settings.targets, settings.dropout, settings.batch_size) == (
        "softmax", "all", 0.1, 128)
    settings = merge(train.parse_args([]).given)
    assert (settings.loss, settings.targets, settings.base_lr, settings.batch_size) == (
        "hinge", "last", 0.01, 50)


@pytest.mark.parametrize("flags", [
    [*STRONG, "--pooling", "max_recent_clicks"], [*STRONG, "--members", "2"],
    [*STRONG, "--lr_schedule", "constant"],
    ["--loss", "hinge", "--num_negatives", "3", "--neg_alpha", "0.5", "--targets", "all"]])
def test_resume_equals_no_interruption_with_other_recipes(in_sample, flags):
    assert run_train(*flags, "--epochs", 3, "--model_dir", "whole") == 0
    run_train(*flags, "--epochs", 3, "--model_dir", "parts")
    utils.remove_checkpoints("parts", after=1)
    assert train.main(["--resume", "--model_dir", "parts"]) == 0  # flags and epochs are known
    assert_same_state(state("whole", 3), state("parts", 3))
    assert_same_state(state("whole", 3, ".pdopt"), state("parts", 3, ".pdopt"))


def test_the_rate_falls_to_a_hundredth(in_sample):
    settings = merge({"recipe": "strong", "epochs": 2})
    rates = []

    class Optimizer:
        set_lr = rates.append
    for epoch in (1, 2):
        list(train.with_linear_rate(range(4), 4, epoch, settings, Optimizer))
    assert rates[0] == 0.004
    np.testing.assert_allclose(np.diff(rates), -0.004 * 0.99 / 8)


def test_validation_marks_the_best_epoch_and_ends_the_training(in_sample, capsys, monkeypatch):
    found = iter([(0.1, 0.0), (0.3, 0.1), (0.2, 0.9), (0.3, 0.2), (0.9, 0.9)])
    monkeypatch.setattr(train.utils, "recall_mrr", lambda ranks, k: next(found))
    flags = ["--valid_dir", "test_data", "--patience", "2"]
    assert run_train(*flags, "--epochs", 9) == 0
    assert "no higher recall@20 for 2 epochs: training ends" in capsys.readouterr().out
    assert utils.checkpoint_epochs("model_output") == [1, 2, 3, 4]
    assert utils.load_meta("model_output", 4)["best"] == {"epoch": 2, "recall": 0.3}
    assert [line["valid_recall@20"] for line in read_metrics("model_output/metrics.jsonl")] \
        == [0.1, 0.3, 0.2, 0.3]
    # What was the best is known after a resumption too.
    utils.remove_checkpoints("model_output", after=3)
    found = iter([(0.2, 0.0)])
    assert run_train(*flags, "--resume") == 0
    assert utils.load_meta("model_output", 4)["best"]["epoch"] == 2
    monkeypatch.undo()
    assert infer.main(["--model_dir", str(in_sample / "model_output"), "--best", "--test_dir",
                       str(in_sample / "test_data"), "--vocab_path",
                       str(in_sample / "vocab.txt")]) == 0
    assert re.findall(r"^model:\S+/epoch_(\d+) ", capsys.readouterr().out, re.M) == ["2"]


def test_the_kpis_of_a_training_that_ended_early_are_those_of_its_epochs(in_sample, capsys,
                                                                        monkeypatch):
    monkeypatch.setattr(train.utils, "recall_mrr", lambda ranks, k: (0.5, 0.5))
    assert run_train("--enable_ce", "--valid_dir", "test_data", "--patience", 1) == 0
    out = capsys.readouterr().out
    assert utils.checkpoint_epochs("model_output") == [1, 2]
    cost = re.findall(r"time_cost\(s\):(\S+)", out)[-1]
    kpi = re.search(r"each_pass_duration_cpu1_thread1\t(\S+)", out).group(1)
    assert float(kpi) == pytest.approx(float(cost), abs=1e-6)


def test_validation_is_what_infer_says_and_changes_nothing(in_sample, capsys):
    run_train("--epochs", 2, "--model_dir", "without")
    run_train("--epochs", 2, "--valid_dir", "test_data")
    assert_same_state(state("without", 2), state("model_output", 2))
    capsys.readouterr()
    infer.main(["--start_index", "2"])
    said = re.search(r"all labels:\d+ recall@20:(\S+) mrr@20:(\S+)", capsys.readouterr().out)
    line = read_metrics("model_output/metrics.jsonl")[-1]
    assert line["valid_recall@20"] == pytest.approx(float(said.group(1)), abs=1e-4)
    assert line["valid_mrr@20"] == pytest.approx(float(said.group(2)), abs=1e-4)


def test_metrics_of_a_new_run_replace_older_ones(in_sample):
    run_train("--epochs", 3)
    run_train("--epochs", 2, "--overwrite")
    lines = read_metrics("model_output/metrics.jsonl")
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["avg_cost"] == utils.load_meta("model_output", 2)["metrics"]["avg_cost"]


def test_a_plot_of_the_metrics(in_sample, capsys):
    assert plot_metrics.main([]) == 1
    assert "metrics.jsonl holds no epoch" in capsys.readouterr().err
    run_train("--epochs", 2, "--valid_dir", "test_data")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert plot_metrics.main([]) == 1
        assert "pip install matplotlib" in capsys.readouterr().err
        return
    assert plot_metrics.main([]) == 0
    with open("metrics.png", "rb") as f:
        assert f.read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("flags, words", [
    (["--best"], "no epoch that was trained with train.py --valid_dir"),
    (["--best", "--start_index", "2"], "leave out")])
def test_best_needs_validation(in_sample, capsys, flags, words):
    run_train("--epochs", 1)
    try:
        assert infer.main(flags) == 1
    except SystemExit as end:
        assert end.code == 2
    assert words in capsys.readouterr().err


# --- evaluation -----------------------------------------------------------------------------------


def checkpoint_with(model_dir, **parameters):
    """Overwrites parameters of epoch 1."""
    meta = utils.load_meta(model_dir, 1)
    model = load_model(choose_checkpoint(model_dir, 1))
    for name, value in parameters.items():
        model.state_dict()[name.replace("__", ".")].set_value(paddle.to_tensor(value))
    utils.save_checkpoint(model_dir, 1, model, {}, meta)


def brute_force_ranks(model, dataset, positions):
    """One query after the other, in double precision."""
    known = model.item_clicks.numpy() > 0
    candidates = np.flatnonzero(known)
    vectors = model.item(candidates).numpy().astype(np.float64)
    ranks = []
    for begin, end in zip(dataset.offsets[:-1], dataset.offsets[1:]):
        session = dataset.items[begin:end].astype(np.int64)
        first = 1 if positions == "all" else len(session) - 1
        for at in range(first, len(session)):
            clicks = session[:at][known[session[:at]]]
            if not len(clicks) or not known[session[at]]:
                ranks.append(0)
                continue
            user = model.user(clicks, np.array([len(clicks)])).numpy()[0]
            scores = vectors @ user
            own = scores[np.searchsorted(candidates, session[at])]
            ranks.append(int((scores >= own - 1e-9).sum()))
    return np.array(ranks)


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("user_encoder", ["gru", "bow"])
def test_ranks_are_those_of_brute_force(in_sample, positions, user_encoder, monkeypatch):
    run_train("--epochs", 1, "--user_encoder", user_encoder)
    clicks = np.ones(60, np.int32)
    clicks[::4] = 0  # a quarter of the items is unknown
    checkpoint_with("model_output", item_clicks=clicks)
    monkeypatch.setattr(ranking, "SCORES_AT_A_TIME", 100)  # several chunks of the catalogue
    monkeypatch.setattr(ranking, "CLICKS_AT_A_TIME", 50)  # and of the sessions
    model = load_model(choose_checkpoint("model_output", 1))
    dataset = reader.construct_test_data("test_data", "vocab.txt")
    known = model.item_clicks.numpy() > 0
    queries = make_queries(dataset, known, positions)
    ranks = ranking.evaluate(IdEncoder(model), queries, known, batch_size=7)
    expected = brute_force_ranks(model, dataset, positions)
    assert (expected == 0).any() and (expected > 0).any()
    np.testing.assert_array_equal(ranks, expected)
    ends = np.cumsum(np.diff(dataset.offsets) - 1)
    assert queries.skipped == (~known[dataset.items]).sum() - \
        (~known[dataset.items[dataset.offsets[1:] - 1]]).sum()
    assert len(queries.labels) == (ends[-1] if positions == "all" else len(dataset))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_collapsed_model_does_not_look_good(in_sample, value, capsys):
    run_train("--epochs", 1)
    checkpoint_with("model_output", members__0__item_fc__weight=np.full((8, 8), value, np.float32))
    infer.main([])
    assert "all labels:80 recall@20:0.0000 mrr@20:0.0000" in capsys.readouterr().out


def test_recall_and_mrr_by_hand():
    ranks = np.array([1, 2, 20, 21, 0])
    recall, mrr = utils.recall_mrr(ranks, 20)
    assert recall == pytest.approx(3 / 5) and mrr == pytest.approx((1 + 1 / 2 + 1 / 20) / 5)
    assert utils.recall_mrr(np.array([], int), 20) == (0.0, 0.0)


def test_unknown_labels_are_misses_and_have_lines_of_their_own(in_sample, capsys):
    run_train("--epochs", 1)
    clicks = np.ones(60, np.int32)
    clicks[30:] = 0
    checkpoint_with("model_output", item_clicks=clicks)
    infer.main(["--topk", "5", "30"])
    out = capsys.readouterr().out
    dataset = reader.construct_test_data("test_data", "vocab.txt")
    unknown = int((dataset.items[dataset.offsets[1:] - 1] >= 30).sum())
    assert 0 < unknown < 80
    assert f"  unknown labels:{unknown} recall@5:0.0000 mrr@5:0.0000 recall@30:0.0000" in out
    assert f"  known labels:{80 - unknown} " in out
    assert f"{unknown} labels without a vector" in out
    # All 30 known items are within the first 30; a known label is a miss only where no click of
    # its sequence is known.
    without = int(re.search(r"(\d+) sequences without a click", out).group(1))
    expected = (80 - unknown - without) / 80
    assert float(re.search(r"all labels:80 .*recall@30:(\S+)", out).group(1)) == \
        pytest.approx(expected, abs=1e-4)


def test_sessions_of_two_and_of_two_thousand_clicks(in_sample, capsys):
    os.mkdir("long")
    with open("long/a.txt", "w") as f:
        f.write("1 2\n" + " ".join(str(i % 60) for i in range(2000)) + "\n1 2 3\n1 2 3 4\n")
    assert run_train("--train_dir", "long", "--epochs", 1) == 0
    assert infer.main(["--test_dir", "long", "--positions", "all"]) == 0
    assert f"all labels:{1 + 1999 + 2 + 3} " in capsys.readouterr().out


def test_output_lists_the_top_items_with_raw_ids(in_sample, monkeypatch):
    run_train("--epochs", 1)
    monkeypatch.setattr(ranking, "SCORES_AT_A_TIME", 500)  # the best of several chunks
    assert infer.main(["--topk", "3", "7", "--output", "top.tsv"]) == 0
    with open("top.tsv") as f:
        header, *lines = [line.rstrip("\n").split("\t") for line in f]
    assert header == ["epoch", "session", "position", "rank", "score", "item", "raw_id",
                      "text"]
    assert len(lines) == 80 * 7
    model = load_model(choose_checkpoint("model_output", 1))
    dataset = reader.construct_test_data("test_data", "vocab.txt")
    known = np.flatnonzero(model.item_clicks.numpy() > 0)
    session = dataset.items[dataset.offsets[10]:dataset.offsets[11]].astype(np.int64)
    user = model.user(session[:-1], np.array([len(session) - 1])).numpy()[0]
    scores = model.item(known).numpy() @ user
    mine = [line for line in lines if line[1] == "11"]
    assert [line[3] for line in mine] == [str(rank) for rank in range(1, 8)]
    assert all(line[2] == str(len(session)) for line in mine)
    np.testing.assert_allclose([float(line[4]) for line in mine], np.sort(scores)[::-1][:7],
                               atol=2e-6)
    assert all(line[6] == f"n{int(line[5]):04d}" and line[7].strip() for line in mine)


def test_a_truncated_epoch_is_left_out_of_the_evaluation(in_sample, capsys):
    run_train("--epochs", 2)
    with open("model_output/epoch_1.pdparams", "r+b") as f:
        f.truncate(100)
    assert infer.main([]) == 0
    out, err = capsys.readouterr()
    assert "epoch_1.pdparams is damaged" in err
    assert "model:model_output/epoch_2" in out and "model:model_output/epoch_1" not in out


# --- errors: one line, non-zero, nothing written -----------------------------------------------


def write(path, text):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as f:
        f.write(text)


@pytest.mark.parametrize("prepare, flags, message", [
    (lambda: write("bad/a.txt", "1 2\n3 x\n"), ["--train_dir", "bad"], "bad/a.txt, line 2: 'x'"),
    (lambda: write("bad/a.txt", "1 60\n"), ["--train_dir", "bad"], "line 1: item id 60"),
    (lambda: os.mkdir("none"), ["--train_dir", "none"], "none holds no files"),
    (lambda: None, ["--train_dir", "missing"], "cannot read the directory missing"),
    (lambda: None, ["--vocab_path", "missing"], "cannot read the vocabulary missing"),
    (lambda: write("model_output", "a file"), [], "cannot write the model directory"),
])
def test_training_errors(in_sample, capsys, prepare, flags, message):
    prepare()
    before = sorted(os.listdir("."))
    assert run_train(*flags) == 1
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.strip().splitlines()) == 1
    assert "epoch" not in captured.out and sorted(os.listdir(".")) == before


@pytest.mark.parametrize("flags", [
    ["--epochs", "0"], ["--batch_size", "-1"], ["--use_cuda", "2"], ["--base_lr", "nan"],
    ["--seed", "-1"], ["--max_len", "0"], ["--num_devices", "2"], ["--user_encoder", "lstm"],
    ["--enable_ce", "--seed", "3"], ["--base_lr", "fast"], ["--patience", "2"],
    ["--num_negatives", "0"], ["--scale", "3"],
    ["--pooling", "max_last_clicks", "--user_encoder", "bow"],
    ["--pooling", "max_recent_clicks", "--hidden_size", "64"],
    ["--recipe", "strong", "--hidden_size", "64"], ["--dropout", "1"], ["--members", "0"],
])
def test_flags_out_of_range_or_contradictory(flags, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(flags)
    assert error.value.code == 2 and "error: " in capsys.readouterr().err


def test_evaluation_errors(in_sample, capsys):
    assert infer.main([]) == 1
    assert "holds no complete epoch from 1 to 10" in capsys.readouterr().err
    run_train("--epochs", 1)
    for wrong, message in [
            (["--start_index", "2"], "holds no complete epoch from 2 to 10"),
            (["--hid_size", "64"], "--hidden_size 64 contradicts the checkpoint"),
            (["--emb_size", "64"], "--embedding_dim 64 contradicts the checkpoint"),
            (["--test_dir", "missing"], "cannot read the directory missing"),
            (["--output", "missing/top.tsv"], "cannot write missing/top.tsv")]:
        assert infer.main(wrong) == 1
        assert message in capsys.readouterr().err
    with open("vocab61.txt", "w") as f:
        f.write("61\n")
    assert infer.main(["--vocab_path", "vocab61.txt"]) == 1
    assert "trained with 60 items and the vocabulary file says 61" in capsys.readouterr().err
    assert train.main(["--resume", "--vocab_path", "vocab61.txt"]) == 1
    assert "trained with 60 items and the vocabulary file says 61" in capsys.readouterr().err
    assert infer.main(["--hid_size", "8", "--emb_size", "8"]) == 0


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a GPU build")
@pytest.mark.parametrize("script", ["train.py", "infer.py"])
def test_use_cuda_with_a_cpu_build_says_what_to_install(in_sample, script):
    code, _, err = run_script(script, "--use_cuda", "1", CUDA_VISIBLE_DEVICES="0")
    assert code == 1 and "Traceback" not in err
    assert "--use_cuda 1 needs Paddle's GPU build" in err and "requirements.txt" in err


def test_a_gpu_build_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
    with pytest.raises(SetupError, match="no GPU is visible"):
        utils.set_device(1)


@pytest.mark.parametrize("version, ok", [("2.6.2", True), ("3.3.1", True), ("0.0.0", True),
                                         ("1.8.5", False), ("2.5.0", False)])
def test_versions(monkeypatch, version, ok):
    monkeypatch.setattr(paddle, "__version__", version)
    if ok:
        utils.check_version()
    else:
        with pytest.raises(SetupError, match="too old"):
            utils.check_version()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(name):
        with open(name, "w") as f:
            f.write("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(SetupError, match="No space left"):
        write_atomically(str(path), fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]

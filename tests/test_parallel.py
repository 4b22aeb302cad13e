"""Several devices on this machine: the same parameters as one, and processes that end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest

import train
import utils
from ssr.errors import SetupError
from ssr.kernels import processes as parallel
from ssr.preparation import sample as make_sample
from ssr.training.start import prepare

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ["--embedding_dim", "8", "--hidden_size", "8"]


started = []


@pytest.fixture(autouse=True)
def leave_nothing_behind():
    """Whatever a failed test has started ends with it."""
    yield
    while started:
        process = started.pop()
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def start(*flags, **environment):
    """train.py in a process group of its own, so that what it leaves behind can be found."""
    environment = {key: value for key, value in {**os.environ, **environment}.items()
                   if value is not None}
    started.append(subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "train.py"), *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True))
    return started[-1]


def finish(process, seconds=120):
    """(exit code, standard output, standard error)"""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def members(group):
    """The processes of a process group that still run: {pid: parent}."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                state, parent, its_group = f.read().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX":
            found[int(pid)] = int(parent)
    return found


def wait_for(condition, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def parameters(model_dir, epoch):
    state = paddle.load(f"{model_dir}/epoch_{epoch}.pdparams")
    return {name: value.numpy() for name, value in state.items()}


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A sample with enough sessions for a hundred steps of 40."""
    make_sample.write_sample(str(tmp_path), num_items=300, train_sessions=4030, test_sessions=10,
                             seed=2)
    vectors = np.random.default_rng(3).normal(size=(300, 5)).astype(np.float32)
    np.save(tmp_path / "item_vectors.npy", vectors)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [
    ["--user_encoder", "gru"], ["--user_encoder", "bow"],
    # Ranks have unequal numbers of targets here; their dropout would differ from that of one. At
    # its full rate Adam makes of rounding a step of another direction.
    ["--recipe", "strong", "--pooling", "max_recent_clicks", "--dropout", "0", "--num_negatives",
     "50", "--base_lr", "0.0005"],
    ["--item_tokens", "item_tokens.txt", "--id_dropout", "0.3", "--item_vectors",
     "item_vectors.npy"]])
def test_two_devices_reach_the_parameters_of_one(large, kind):
    """At the same global batch, after 100 steps, with sparse gradients of the table."""
    flags = [*SMALL, *kind, "--epochs", "1"]
    code, out, err = finish(start(*flags, "--parallel", 1, "--num_devices", 2, "--batch_size", 20,
                                  "--model_dir", "two"))
    assert code == 0, err
    assert "epoch:1 num_steps:100 " in out
    # Nothing is said twice, and what an epoch leaves out is.
    assert out.count("model saved in two/epoch_1") == 1
    assert err.count("each epoch leaves out 30 sessions") == 1
    # One process has a last batch of the 30 sessions which the two leave out.
    run = prepare(train.parse_args([*flags, "--batch_size", "40", "--model_dir", "alone"]))
    with paddle.utils.unique_name.guard():
        model, optimizer = train.build(run.settings, run.clicks, run.content)
        loss, negatives = train.build_objective(run.settings, run.dataset, run.content)
        step = train.make_step(model, loss, optimizer)
        batches, _ = train.epoch_batches(run, negatives, 1)
        if run.settings.lr_schedule == "linear":
            batches = train.with_linear_rate(batches, 100, 1, run.settings, optimizer)
        losses = [(float(step(batch)[0]), batch.num_targets)
                  for _, batch in zip(range(100), batches)]
    for name, value in parameters("two", 1).items():
        np.testing.assert_allclose(value, model.state_dict()[name].numpy(), atol=1e-4,
                                   err_msg=name)
    with open("two/epoch_1.json") as f:
        assert json.load(f)["metrics"]["avg_cost"] == pytest.approx(
            np.average([loss for loss, _ in losses], weights=[n for _, n in losses]), abs=1e-5)


def test_resume_on_two_devices(in_sample):
    flags = [*SMALL, "--parallel", 1, "--num_devices", 2, "--seed", 3]
    assert finish(start(*flags, "--epochs", 2, "--model_dir", "whole"))[0] == 0
    assert finish(start(*flags, "--epochs", 1, "--model_dir", "parts"))[0] == 0
    code, _, err = finish(start("--resume", "--parallel", 1, "--epochs", 2, "--num_devices", 2,
                                "--model_dir", "parts"))
    assert code == 0 and "going on from parts/epoch_1" in err
    whole, parts = parameters("whole", 2), parameters("parts", 2)
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)
    for flags in ([], ["--parallel", 1], ["--parallel", 1, "--num_devices", 3]):
        code, _, err = finish(start("--resume", "--epochs", 3, "--model_dir", "parts", *flags,
                                    CPU_NUM=None))
        assert code == 1 and "trained on 2 devices: add --parallel 1 --num_devices 2" in err


def test_warnings_are_not_said_by_the_parent_as_well(in_sample):
    (in_sample / "data").mkdir()
    (in_sample / "data" / "a.txt").write_text("1\n" + "1 2 3\n" * 8)
    code, _, err = finish(start(*SMALL, "--parallel", 1, "--num_devices", 2, "--batch_size", 4,
                                "--epochs", 1, "--train_dir", "data", "--resume"))
    assert code == 0, err
    assert err.count("holds no complete epoch") == 1
    assert err.count("1 lines of fewer than two ids") == 1


def test_enable_ce_names_the_devices(in_sample):
    code, out, err = finish(start(*SMALL, "--enable_ce", "--epochs", 1, "--parallel", 1,
                                  "--step_num", 2, CPU_NUM="2"))
    assert code == 0, err
    assert "epoch:1 num_steps:2 " in out
    assert re.search(r"^kpis\ttrain_acc_cpu2_thread1\t0\.\d+$", out, re.M)


@pytest.mark.slow
def test_the_launcher_over_two_machines(large):
    """Two launchers, as on two machines that meet at an address of the first."""
    port = make_port()
    processes = [subprocess.Popen(
        [sys.executable, "-m", "paddle.distributed.launch", "--nnodes", "2", "--rank", str(rank),
         "--nproc_per_node", "1", "--master", f"127.0.0.1:{port}", "--log_dir", f"log{rank}",
         os.path.join(ROOT, "train.py"), *SMALL, "--parallel", "1", "--batch_size", "20",
         "--epochs", "1", "--model_dir", "launched"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"})
        for rank in range(2)]
    try:
        for process in processes:
            code, _, err = finish(process)
            assert code == 0, err
    finally:
        for process in processes:
            if members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
    assert finish(start(*SMALL, "--parallel", 1, "--num_devices", 2, "--batch_size", 20,
                        "--epochs", 1, "--model_dir", "own"))[0] == 0
    launched, own = parameters("launched", 1), parameters("own", 1)
    for name in own:
        np.testing.assert_allclose(launched[name], own[name], atol=1e-6, err_msg=name)


def make_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, environment, message", [
    (["--num_devices", 2], {"CPU_NUM": "3"}, "--num_devices 2 and CPU_NUM (3) disagree"),
    (["--num_devices", 2], {"CPU_NUM": "two"}, "CPU_NUM=two is not a number"),
    (["--num_devices", 2, "--batch_size", 200], {}, "230 sessions are less than one step"),
    (["--num_devices", 2, "--train_dir", "missing"], {}, "cannot read the directory missing"),
])
def test_errors_are_one_line_and_start_nothing(in_sample, flags, environment, message):
    code, out, err = finish(start("--parallel", 1, *flags, **environment))
    assert code in (1, 2) and message in err and "Traceback" not in err
    assert len([line for line in err.splitlines() if "error:" in line]) == 1
    assert "epoch" not in out


def test_one_device_needs_no_other_process(in_sample, monkeypatch):
    monkeypatch.delenv("CPU_NUM", raising=False)
    monkeypatch.setattr(parallel, "start_workers", None)  # would raise if it was called
    assert train.main([*SMALL, "--parallel", "1", "--epochs", "1"]) == 0


def test_launched_without_the_flag(in_sample, monkeypatch, capsys):
    """Each process would train by itself and overwrite the others' epochs."""
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    with pytest.raises(SystemExit):
        train.main(SMALL)
    assert "several devices need --parallel 1" in capsys.readouterr().err


def test_gpus(monkeypatch):
    if not paddle.is_compiled_with_cuda():
        with pytest.raises(SetupError, match="needs Paddle's GPU build"):
            utils.check_devices(use_cuda=1, count=2)
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    utils.check_devices(use_cuda=1, count=1)
    with pytest.raises(SetupError, match="--num_devices 2 and only 1 GPUs are visible"):
        utils.check_devices(use_cuda=1, count=2)


# --- processes that are killed --------------------------------------------------------------------


def start_training(*flags):
    """Two workers in the middle of an epoch. Returns (process, pids of the workers)."""
    process = start(*SMALL, "--parallel", 1, "--num_devices", 2, "--batch_size", 2, "--epochs",
                    1000, "--print_batch", 5, *flags)
    for line in process.stderr:
        if "Train -->" in line:
            break
    workers = [pid for pid, parent in members(process.pid).items() if parent == process.pid]
    assert len(workers) == 2
    return process, workers


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_ends_everything(in_sample, which, number):
    process, workers = start_training()
    os.kill(sorted(workers)[which], number)
    code, _, err = finish(process, seconds=30)
    assert code == 1
    line, = [line for line in err.splitlines() if "error:" in line]
    assert re.search(rf"worker \d of 2 was killed by signal {number.value}; the others are stopped",
                     line)
    assert wait_for(lambda: not members(process.pid), 5)


@pytest.mark.slow
@pytest.mark.parametrize("number, code, message", [
    (signal.SIGTERM, 143, "train.py: error: stopped by SIGTERM"),
    (signal.SIGINT, 130, "train.py: interrupted")])
def test_the_parent_is_told_to_end(in_sample, number, code, message):
    process, _ = start_training()
    os.kill(process.pid, number)
    returned, _, err = finish(process, seconds=30)
    assert returned == code
    assert [line for line in err.splitlines() if "train.py: " in line] == [message]
    assert wait_for(lambda: not members(process.pid), 5)


@pytest.mark.slow
def test_the_parent_is_killed(in_sample):
    process, _ = start_training()
    os.kill(process.pid, signal.SIGKILL)
    assert wait_for(lambda: not members(process.pid), 30)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_ten_devices_as_the_readme_has_it(tmp_path):
    """After a training on one device into the same directory: it is the same run."""
    data = ["--train_dir", f"{ROOT}/train_data", "--vocab_path", f"{ROOT}/vocab.txt"]
    assert finish(start(*data, "--model_dir", tmp_path / "model_output"), seconds=300)[0] == 0
    code, out, err = finish(start(
        "--train_dir", f"{ROOT}/train_data", "--vocab_path", f"{ROOT}/vocab.txt", "--use_cuda", 0,
        "--parallel", 1, "--batch_size", 50, "--model_dir", tmp_path / "model_output",
        "--num_devices", 10, CPU_NUM="10"), seconds=300)
    assert code == 0, err
    assert f"model saved in {tmp_path}/model_output/epoch_10" in out

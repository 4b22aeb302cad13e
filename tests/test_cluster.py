"""Training through the parameter server: processes that really run, and really die."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import paddle
import pytest

import cluster_train
import infer
import reader
import train
from nets import SequenceSemanticRetrieval
from ssr.cluster import meeting, program, trainer
from ssr.errors import SetupError
from ssr.kernels.static import pair_cosines
from ssr.training.building import build
from ssr.training.settings import Settings, merge

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ["--embedding_dim", "8", "--hidden_size", "8"]
LIMIT = 60  # seconds within which all has to end when a process fails

try:
    program.check_parameter_server()
    HAS_SERVER = True
except SetupError:
    HAS_SERVER = False
needs_server = pytest.mark.skipif(not HAS_SERVER, reason="this Paddle has no parameter server")


# --- helpers --------------------------------------------------------------------------------------


def free_ports(count=3):
    """The first of so many free ports in a row, below those that the system hands out."""
    while True:
        first = random.randrange(15000, 30000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def processes(directory):
    """{pid: command line} of the cluster_train processes that run in a directory."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                command = f.read().replace(b"\0", b" ").decode()
            if "cluster_train" in command and os.readlink(f"/proc/{pid}/cwd") == str(directory):
                found[int(pid)] = command
    return found


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def nothing_left(directory):
    wait_until(lambda: not processes(directory), 10)


@pytest.fixture
def job(in_sample):
    """Starts commands in the sample's directory, and kills what a failed test leaves behind."""
    started = []

    def start(*command, **environment):
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHON": sys.executable, **environment})
        started.append(process)
        return process
    start.directory = in_sample
    yield start
    for pid in processes(in_sample):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for process in started:
        process.kill()
        process.communicate()


def script(job, *flags, port=None, **environment):
    return job("sh", os.path.join(ROOT, "cluster_train.sh"), *SMALL, *flags,
               PORT=str(port or free_ports()), **environment)


def command(job, role, port, *flags, number=0, servers=1, trainers=1):
    """A server or a trainer by itself, as on a machine of its own."""
    endpoints = [f"127.0.0.1:{port + 1 + i}" for i in range(servers)]
    which = (["--current_endpoint", endpoints[number]] if role == "pserver"
             else ["--trainer_id", number])
    return job(sys.executable, os.path.join(ROOT, "cluster_train.py"), "--role", role,
               "--endpoints", ",".join(endpoints), *which, "--trainers", trainers,
               "--coordinator", f"127.0.0.1:{port}", *SMALL, *flags)


def wait_for_epoch(directory):
    """Until trainer 0 has saved once: all processes are at work."""
    wait_until((directory / "cluster_model" / "epoch_1.json").exists, LIMIT)


def pid_of(directory, flag):
    """The process with a flag; of a server the one that watches, which came first."""
    return min(pid for pid, command in processes(directory).items()
               if flag in command and "cluster_train.sh" not in command)


# --- flags, network, meeting: no processes --------------------------------------------------------


def test_flags_of_the_retired_script():
    args = cluster_train.parse_args([])
    assert (args.role, args.current_endpoint, args.trainer_id, args.trainers) == \
        ("pserver", "127.0.0.1:6000", 0, 1)
    assert args.endpoints == ["127.0.0.1:6000"]
    ours = train.parse_args([])
    assert merge(args.given) == merge(ours.given)
    for name in vars(ours).keys() & vars(args).keys() - {"model_dir"}:
        assert getattr(args, name) == getattr(ours, name), name
    assert args.model_dir == "cluster_model"


@pytest.mark.parametrize("flags, words", [
    (["--use_cuda", "1"], "runs on CPUs"),
    (["--parallel", "1", "--num_devices", "2"], "runs on CPUs"),
    (["--endpoints", "somewhere"], "'somewhere' is not host:port"),
    (["--endpoints", "127.0.0.1:6000,127.0.0.1:99999"], "'127.0.0.1:99999' is not host:port"),
    (["--coordinator", "127.0.0.1:6000"], "must all be different"),
    (["--current_endpoint", "127.0.0.1:7000"], "is not one of --endpoints"),
    (["--role", "trainer", "--trainer_id", "2", "--trainers", "2"], "is not below --trainers 2"),
    (["--role", "worker"], "invalid choice"),
    (["--resume"], "unrecognized arguments"),
])
def test_flags_that_make_no_sense(flags, words, capsys):
    with pytest.raises(SystemExit) as end:
        cluster_train.parse_args(flags)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("user_encoder", ["gru", "bow"])
def test_padded_network_is_the_network(user_encoder):
    paddle.seed(3)
    model = SequenceSemanticRetrieval(20, 6, 5, user_encoder)
    lengths = np.array([3, 1, 4])
    batch = reader.Batch(np.array([5, 6, 7, 8, 9, 5, 11, 12]), lengths, np.array([1, 2, 3]),
                         np.array([[1, 4], [2, 5], [3, 6]]), None, 3)
    batch = reader.with_rows(batch, batch)
    fed = program.pad(batch)
    assert fed["clicks"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0], [9, 5, 11, 12]]
    (users, items), = model(batch)
    expected = [paddle.sum(users * items[i::2], axis=1) for i in range(2)]
    for filler in (0, 19):  # what is in the padding does not matter
        fed["clicks"][np.arange(4) >= lengths[:, None]] = filler
        found = pair_cosines(model, *(paddle.to_tensor(fed[name])
                               for name in ("clicks", "lengths", "positive", "negative")))
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)


def test_trainers_that_went_apart_are_noticed():
    random = np.random.default_rng(0)
    initial = random.normal(size=(50, 4))
    served = initial + random.normal(size=(50, 4))
    trainer.check_agreement(served + 0.1, served, initial)
    for local, there in ((initial, served), (served, initial), (served * np.nan, served)):
        with pytest.raises(SetupError, match="did not exchange"):
            trainer.check_agreement(local, there, initial)


@pytest.mark.parametrize("version", [("3", "1"), ("3", "3")])
def test_paddle_without_parameter_server(version, in_sample, monkeypatch, capsys):
    monkeypatch.setattr(paddle.version, "major", version[0])
    monkeypatch.setattr(paddle.version, "minor", version[1])
    assert cluster_train.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "comes without a parameter server" in line and "paddlepaddle==2.6.2" in line
    assert paddle.in_dynamic_mode()


@pytest.mark.skipif(HAS_SERVER, reason="this Paddle has a parameter server")
def test_this_paddle_without_parameter_server(job):
    process = script(job)
    assert process.wait(LIMIT) == 1
    assert "comes without a parameter server" in process.stderr.read()
    nothing_left(job.directory)


@pytest.fixture
def faults(monkeypatch):
    """What meeting.fail was called with, instead of the end of the process."""
    found, links = [], []
    start = meeting.Link.start
    monkeypatch.setattr(meeting, "fail", found.append)
    monkeypatch.setattr(meeting.Link, "start",
                        lambda link, *args: (links.append(link), start(link, *args)))
    yield found
    for link in links:  # none may outlive the test and call the real one
        with contextlib.suppress(OSError):
            link.sock.shutdown(socket.SHUT_RDWR)
        link.thread.join(10)
        assert not link.thread.is_alive()


def in_thread(function, *args):
    results = []

    def run():
        try:
            results.append(function(*args))
        except SetupError as error:
            results.append(error)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_processes_meet_gather_and_leave(faults):
    endpoint = f"127.0.0.1:{free_ports()}"
    join, host = meeting.Peers.join, meeting.Peers.host
    early = [in_thread(join, endpoint, "trainer 1", 1, 2, 10),
             in_thread(join, endpoint, "server 0", None, 2, None)]
    hosting = in_thread(host, endpoint, ["server 0", "trainer 1"], 2, 10)
    for thread, _ in [*early, hosting]:
        thread.join(10)
    (other,), (server,), (first,) = (results for _, results in [*early, hosting])
    gathering = in_thread(other.gather, [1, "b"])
    assert first.gather([0, "a"]) == [[0, "a"], [1, "b"]]
    gathering[0].join(10)
    assert gathering[1] == [[[0, "a"], [1, "b"]]]
    assert not server.ended.is_set()
    other.bye()
    first.bye()
    assert server.ended.wait(10)
    server.bye()
    for peers in (first, other, server):
        for link in peers.links.values():
            link.thread.join(10)
    assert not faults


def test_the_end_of_a_process_is_noticed(faults):
    endpoint = f"127.0.0.1:{free_ports()}"
    joining = in_thread(meeting.Peers.join, endpoint, "trainer 1", 1, 2, 10)
    meeting.Peers.host(endpoint, ["trainer 1"], 2, 10)
    joining[0].join(10)
    joining[1][0].links["trainer 0"].sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: len(faults) == 2, 10)
    assert {fault.split(" has ended")[0] for fault in faults} == {"trainer 0", "trainer 1"}


def test_strangers_are_turned_away_and_who_is_missing_is_named(faults):
    port = free_ports()
    endpoint = f"127.0.0.1:{port}"
    hosting = in_thread(meeting.Peers.host, endpoint, ["server 0", "trainer 1"], 2, 4)
    in_thread(meeting.Peers.join, endpoint, "server 0", None, 2, None)
    in_thread(meeting.Peers.join, endpoint, "trainer 7", 7, 8, 3)
    for message in (b"GET / HTTP/1.1\r\n", b'{"name": ["server 0"]}\n', b"7\n"):
        stranger = meeting.connect(endpoint, 3)
        stranger.sendall(message)
        stranger.close()
    wait_until(lambda: any("expects no trainer 7" in fault for fault in faults), 5)
    hosting[0].join(10)
    assert str(hosting[1][0]) == f"trainer 1 did not come to {endpoint} within 4 s: see its log"


@needs_server
@pytest.mark.skipif(not paddle.__version__.startswith("2."), reason="Paddle 3.0 has to be told "
                    "before it is imported to use no new IR: it is in processes of their own only")
def test_errors_of_one_process_are_one_line(in_sample, capsys):
    def error(*flags):
        assert cluster_train.main([*SMALL, *map(str, flags)]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        return line
    port = free_ports()
    here, nowhere = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
    with socket.create_server(("127.0.0.1", port)):
        assert f"cannot listen on {here}" in error("--endpoints", here, "--current_endpoint", here)
    trainer = ["--role", "trainer", "--endpoints", nowhere, "--wait", 1]
    assert f"the server {nowhere} cannot be reached within 1 s" in error(*trainer)
    two = [*trainer, "--trainers", 2]
    assert "are less than one step of 500 on each of 2" in error(*two, "--batch_size", 500)
    assert "cannot read the directory nothing" in error(*trainer, "--train_dir", "nothing")
    assert "cannot write the model directory" in error(*trainer, "--model_dir", "vocab.txt/model")


# --- processes ------------------------------------------------------------------------------------


@needs_server
@pytest.mark.slow
def test_script_trains_and_saves_what_others_read(job, capsys):
    process = script(job, "--epochs", 2, LOG_DIR="logs", http_proxy="http://127.0.0.1:9")
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert not err
    assert re.search(r"^epoch:2 num_steps:2 time_cost\(s\):\d+\.\d{6}$", out, re.M)
    assert "model saved in cluster_model/epoch_2\n" in out
    nothing_left(job.directory)
    assert sorted(os.listdir("logs")) == [f"{name}_{i}.log" for name in ("server", "trainer")
                                          for i in (0, 1)]
    with open("cluster_model/epoch_2.json", encoding="utf-8") as f:
        assert json.load(f)["run"]["trainers"] == 2
    assert infer.main(["--model_dir", "cluster_model"]) == 0
    assert "model:cluster_model/epoch_2 recall@20:" in capsys.readouterr().out
    state = paddle.load("cluster_model/epoch_2.pdparams")
    data = reader.construct_train_data("train_data", "vocab.txt")
    np.testing.assert_array_equal(np.asarray(state["item_clicks"]), data.item_clicks())
    # The optimizer's state has gone: to go on from here would be to start something else.
    assert train.main([*SMALL, "--model_dir", "cluster_model", "--resume"]) == 1
    assert "cluster_train.py" in capsys.readouterr().err


@needs_server
@pytest.mark.slow
def test_one_trainer_gets_the_parameters_of_a_single_process(job):
    port = free_ports()
    server = command(job, "pserver", port, "--epochs", 2)
    trainer = command(job, "trainer", port, "--epochs", 2)
    assert (trainer.wait(LIMIT), server.wait(LIMIT)) == (0, 0), trainer.stderr.read()
    assert train.main([*SMALL, "--epochs", "2"]) == 0
    ours, theirs = (paddle.load(f"{name}/epoch_2.pdparams")
                    for name in ("cluster_model", "model_output"))
    clicks = reader.construct_train_data("train_data", "vocab.txt").item_clicks()
    model, _ = build(Settings(embedding_dim=8, hidden_size=8), clicks)
    start = {name: value.numpy() for name, value in model.state_dict().items()}
    assert ours.keys() == theirs.keys()
    for name, value in start.items():
        one, other = np.asarray(ours[name]), np.asarray(theirs[name])
        assert np.abs(one - other).max() <= 0.02 * max(1e-9, np.abs(other - value).max()), name


@needs_server
@pytest.mark.slow
def test_three_trainers_and_a_single_step(job):
    port = free_ports()
    flags = ["--epochs", 1, "--enable_ce", "--step_num", 1]
    server = command(job, "pserver", port, *flags, trainers=3)
    trainers = [command(job, "trainer", port, *flags, number=i, trainers=3) for i in range(3)]
    results = [process.communicate(timeout=LIMIT) for process in (server, *trainers)]
    assert [process.returncode for process in (server, *trainers)] == [0] * 4, results
    assert re.search(r"^kpis\ttrain_acc_cpu1_thread1\t0\.\d+$", results[1][0], re.M)


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize("flag, name", [("--trainer_id 0", "trainer_0"),
                                        ("--trainer_id 1", "trainer_1"),
                                        ("--current_endpoint", "server")])
def test_a_killed_process_ends_the_script(job, flag, name):
    process = script(job, "--epochs", 10000)
    wait_for_epoch(job.directory)
    os.kill(pid_of(job.directory, flag), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert re.search(rf"error: {name}\S* was killed by signal 9, its log is cluster_logs/{name}",
                     err)
    nothing_left(job.directory)


@needs_server
@pytest.mark.slow
def test_a_killed_server_ends_all_without_the_script(job):
    port = free_ports()
    server = [command(job, "pserver", port, number=i, servers=2, trainers=2) for i in (0, 1)]
    trainer = [command(job, "trainer", port, "--epochs", 10000, number=i, servers=2, trainers=2)
               for i in (0, 1)]
    for process in (*server, *trainer):  # the pipes must not fill
        for pipe in (process.stdout, process.stderr):
            process.lines = []
            threading.Thread(target=process.lines.extend, args=(pipe,), daemon=True).start()
    wait_for_epoch(job.directory)
    server[1].kill()
    assert [process.wait(LIMIT) for process in (server[0], *trainer)] == [1, 1, 1]
    nothing_left(job.directory)
    wait_until(lambda: "server 1 has ended before the job was done" in "".join(trainer[0].lines), 5)


@needs_server
@pytest.mark.slow
def test_paddles_part_of_a_server_may_die_alone(job):
    process = script(job, "--epochs", 10000)
    wait_for_epoch(job.directory)
    os.kill(max(pid for pid, command in processes(job.directory).items()
                if "pserver" in command), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "Paddle's server has ended before the job was done" in err
    nothing_left(job.directory)


@needs_server
@pytest.mark.slow
def test_port_in_use(job):
    port = free_ports()
    with socket.create_server(("127.0.0.1", port + 1)):
        process = script(job, port=port)
        _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "error: server_1 ended with code 1, its log is cluster_logs/server_1.log" in err
    assert f"cannot listen on 127.0.0.1:{port + 1}" in err
    nothing_left(job.directory)


@needs_server
@pytest.mark.slow
def test_a_trainer_that_does_not_come_is_named(job):
    port = free_ports()
    server = command(job, "pserver", port, trainers=2)
    trainer = command(job, "trainer", port, "--wait", 5, trainers=2)
    _, err = trainer.communicate(timeout=LIMIT)
    assert trainer.returncode == 1
    assert f"trainer 1 did not come to 127.0.0.1:{port} within 5 s" in err
    assert server.wait(LIMIT) == 1  # it had met trainer 0
    nothing_left(job.directory)


@needs_server
@pytest.mark.slow
def test_trainers_with_other_data_are_told(job):
    port = free_ports()
    (job.directory / "other").mkdir()
    (job.directory / "other" / "sessions.txt").write_text("1 2 3\n" * 230)
    command(job, "pserver", port, trainers=2)
    first = command(job, "trainer", port, trainers=2)
    other = command(job, "trainer", port, "--train_dir", "other", number=1, trainers=2)
    assert "trainer 0 has another train_dir" in other.communicate(timeout=LIMIT)[1]
    assert (first.wait(LIMIT), other.returncode) == (1, 1)
    nothing_left(job.directory)


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_script_takes_everything_with_it(job, number, code):
    process = script(job, "--epochs", 10000)
    wait_for_epoch(job.directory)
    assert len(processes(job.directory)) == 7  # the script, 2 trainers, 2 servers with a watcher
    process.send_signal(number)
    assert process.wait(LIMIT) == code
    nothing_left(job.directory)

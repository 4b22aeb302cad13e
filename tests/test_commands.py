"""The commands as a user meets them: their help, a wrong flag, Ctrl-C."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from commandline import COMMANDS, ROOT, parser_of, subcommands

ONE_LINE = re.compile(r"[^\n]+: error: [^\n]+\n")


def start(words, **options):
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True, **options)


# --- flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    process = start([*command.split(), "-h"], cwd=ROOT)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith("usage: ")
    assert "SUPPRESS" not in out and "default: None" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_does_not_exist_is_one_line(command):
    process = start([*command.split(), "--no_such_flag"], cwd=ROOT)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert ONE_LINE.fullmatch(err)


@pytest.mark.parametrize("command", COMMANDS)
def test_subcommands(command, capsys):
    parser = parser_of(command)
    for name in subcommands(parser):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([name, "-h"])
        out = capsys.readouterr().out
        assert ended.value.code == 0 and out.startswith("usage: ")
        assert "SUPPRESS" not in out and "default: None" not in out

        with pytest.raises(SystemExit) as ended:
            parser.parse_args([name, "--no_such_flag"])
        assert ended.value.code == 2 and ONE_LINE.fullmatch(capsys.readouterr().err)


def test_there_are_subcommands():
    assert {*subcommands(parser_of("preprocess.py"))} == {"clicks", "sessions", "mind", "adressa",
                                                          "g1"}
    assert len(subcommands(parser_of("retrieve.py"))) >= 8


# --- Ctrl-C ---------------------------------------------------------------------------------------
# As the terminal does it: the signal goes to every process of the group.


TRAININGS = {"one device": [], "two devices": ["--parallel", "1", "--num_devices", "2"]}
LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (INFO|WARNING) - ")


def is_mapped(library):
    """A moment of a process: it is about to load, or has loaded, a library."""
    def reached(process):
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/maps") as f:
            return library in f.read()
        return False
    return reached


def exists(path):
    return lambda process: os.path.exists(path)


def interrupt(flags, reached):
    """Trains on the sample of the working directory and interrupts that at some moment.

    reached: says of the process whether it is there.
    Returns: exit code, lines of standard error."""
    process = start([os.path.join(ROOT, "train.py"), "--train_dir", "train_data", "--vocab_path",
                     "vocab.txt", "--epochs", "1000", *flags])
    try:
        until = time.monotonic() + 120
        while not reached(process):
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, err.splitlines()


def assert_one_line(code, lines):
    assert [line for line in lines if not LOGGED.match(line)] == ["train.py: interrupted"]
    assert code == 130


@pytest.mark.parametrize("flags", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("reached", [
    is_mapped("_multiarray_umath"), is_mapped("libpaddle"), exists("model_output"),
    exists("model_output/epoch_3.json")], ids=["importing", "loading Paddle", "training", "saving"])
def test_interrupted(flags, reached, in_sample):
    assert_one_line(*interrupt(flags, reached))


@pytest.mark.slow
@pytest.mark.parametrize("flags", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("seed", range(6))
def test_interrupted_at_any_moment(flags, seed, in_sample):
    moment = time.monotonic() + random.Random(seed).uniform(0, 8)

    def reached(process):  # not while Python itself starts, which is its own affair
        return time.monotonic() > moment and is_mapped("_multiarray_umath")(process)

    assert_one_line(*interrupt(flags, reached))

"""What starts without Paddle: help, and all that asks or changes an index. The processes of these
tests cannot have it."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request

import pytest

import retrieve
from commandline import COMMANDS, ROOT, parser_of, subcommands
from ssr.retrieval import Index
from ssr.runtime import THREADS

LOADED = "Paddle was loaded"


@pytest.fixture(scope="module")
def without_paddle(tmp_path_factory):
    """The environment of a process in which Paddle is a module that ends it."""
    path = tmp_path_factory.mktemp("without")
    (path / "paddle.py").write_text(f"import os\nos.write(2, b'{LOADED}')\nos._exit(3)\n")
    return {**os.environ, "PYTHONPATH": str(path), "SSR_TOKEN": ""}


@pytest.fixture(scope="module")
def built(content_model, sample, tmp_path_factory):
    """A directory with the index of a model with content."""
    path = str(tmp_path_factory.mktemp("built") / "index")
    assert retrieve.main(build_flags(content_model, sample, path)) == 0
    return path


@pytest.fixture
def index_dir(built, tmp_path):
    return str(shutil.copytree(built, tmp_path / "index"))


def build_flags(model, sample, path):
    return ["build", "--model_dir", str(model), "--index_dir", str(path), "--data_dir", str(sample)]


def run(env, *words, stdin=None):
    """(exit code, standard output, standard error) of a command of the project."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, input=stdin, text=True,
                          capture_output=True)
    return done.returncode, done.stdout, done.stderr


def test_who_needs_paddle_does_not_get_it_here(without_paddle, content_model, tmp_path):
    code, _, errors = run(without_paddle, "export.py", "--model_dir", str(content_model),
                          "--export_dir", str(tmp_path / "exported"))
    assert code == 3 and errors.endswith(LOADED)


def test_who_has_no_paddle_is_told_how_to_get_it(without_paddle, content_model, tmp_path):
    (tmp_path / "paddle.py").write_text("raise ModuleNotFoundError(name='paddle')\n")
    code, _, errors = run({**without_paddle, "PYTHONPATH": str(tmp_path)}, "export.py",
                          "--model_dir", str(content_model), "--export_dir", str(tmp_path / "x"))
    *_, last = errors.splitlines()
    assert code == 1 and "Traceback" not in errors
    assert last.startswith("export.py: error: paddle is not installed: pip install ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_flags(command, without_paddle):
    code, out, errors = run(without_paddle, *command.split(), "-h")
    assert code == 0 and out.startswith("usage: ") and not errors
    code, _, errors = run(without_paddle, *command.split(), "--no_such_flag")
    assert code == 2 and "error: " in errors


COMMANDS_OF_INDEX = {
    "query": ["query", "--session", "n0001 n0007", "-k", "5"],
    "query with a filter": ["query", "--session", "n0001", "--exclude", "n0007"],
    "similar": ["similar", "n0001"],
    "add": ["add"],
    "remove": ["remove", "n0001"],
    "click": ["click"],
    "live": ["live"],
    "info": ["info"],
    "check": ["check"],
    "reindex": ["reindex", "--ivf_above", "10"],
    "export-vectors": ["export-vectors", "vectors.parquet"]}
INPUTS = {"add": "fresh\teconomy, article 3\n", "click": "a\tn0001\na\tn0007\n"}


def test_every_command_of_an_index_is_here():
    commands = {words[0] for words in COMMANDS_OF_INDEX.values()}
    assert commands | {"build"} == {*subcommands(parser_of("retrieve.py"))}


@pytest.mark.parametrize("name", COMMANDS_OF_INDEX)
def test_commands_of_an_index(name, without_paddle, index_dir, tmp_path):
    command, *flags = COMMANDS_OF_INDEX[name]
    flags = [str(tmp_path / flag) if flag.endswith(".parquet") else flag for flag in flags]
    code, out, errors = run(without_paddle, "retrieve.py", command, "--index_dir", index_dir,
                            *flags, stdin=INPUTS.get(command))
    assert code == 0 and out and "rror" not in errors


def test_a_build_and_its_answers(without_paddle, content_model, sample, built, tmp_path):
    """The towers of numpy make the index, too."""
    path = tmp_path / "index"
    assert run(without_paddle, "retrieve.py", *build_flags(content_model, sample, path))[0] == 0
    with Index.open(str(path)) as index, Index.open(built) as expected:
        assert index.query(["n0001", "n0007"], 60) == expected.query(["n0001", "n0007"], 60)


@pytest.mark.parametrize("given", [None, "2"])
def test_products_take_one_thread_unless_the_user_says_more(given, without_paddle, built):
    env = {name: value for name, value in without_paddle.items() if name not in THREADS}
    env.update({} if given is None else {"OPENBLAS_NUM_THREADS": given})
    code, out, errors = run(env, "-c", f"""if True:
        import numpy, threadpoolctl
        from ssr.retrieval import Index
        with Index.open({built!r}):
            for pool in threadpoolctl.threadpool_info():
                print(pool["user_api"], pool["num_threads"])""")
    assert code == 0 and not errors
    pools = [line.split() for line in out.splitlines()]
    products = {int(threads) for api, threads in pools if api == "blas"}
    assert products == {1} if given is None else max(products) == min(2, os.cpu_count())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_service(workers, without_paddle, index_dir, content_model, sample):
    process = subprocess.Popen([sys.executable, "serve.py", "--index_dir", index_dir, "--port", "0",
                                "--workers", str(workers)], cwd=ROOT, env=without_paddle, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        url = process.stdout.readline().split()[-1]
        for method, path, message in (("GET", "/healthz", None),
                                      ("PUT", "/items/fresh", {"text": "economy, article 3"}),
                                      ("POST", "/recommend", {"session": ["n0001"], "k": 3})):
            assert ask(method, url + path, message)
        # Another build of the same, which the server takes over.
        assert retrieve.main([*build_flags(content_model, sample, index_dir), "--overwrite"]) == 0
        assert ask("POST", url + "/reload", {})["model"]
    finally:
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 0 and "ERROR" not in errors and LOADED not in errors


def ask(method, url, message):
    """The JSON of an answer."""
    request = urllib.request.Request(
        url, method=method, data=None if message is None else json.dumps(message).encode(),
        headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)

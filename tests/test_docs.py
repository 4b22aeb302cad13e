"""What the READMEs and docs say is so: their commands run, their output looks like what comes out,
their links lead somewhere, what is made from the code is made from the code of today.

A fenced block is `sh` or `python`, which is run, `text`, the output of the blocks before it, or has
no name: a drawing. All blocks of a file run one after the other in a copy of the checkout, with
made-up data under the names that the file uses. What PARSED names is parsed only; nothing else is
left out. A server in the background stays there, as for a user who pastes the block; one in the
foreground is started in the background, as in another terminal. Either gets a free port.
"""

import contextlib
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from commandline import COMMANDS, ROOT, parser_of, subcommands
from ssr.runtime import paddle

ROOT = Path(ROOT)
ENGLISH = ["README.md", "benchmarks/README.md",
           *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
CHINESE = {path: "README_cn.md" if path == "README.md" else path.replace("docs/", "docs/cn/")
           for path in ENGLISH if not path.startswith("benchmarks")}
sys.path.insert(0, str(ROOT / "docs"))
import tables  # noqa: E402

HAS_SERVER = paddle.__version__ in ("2.6.2", "3.0.0")

# A pattern of commands that are parsed, not run, and why.
PARSED = {
    r"CUDA_VISIBLE_DEVICES=": "needs GPUs",
    r"CPU_NUM=10 ": "needs ten cores to be quick; test_parallel.py runs it",
    r"[AB]\$ ": "needs several machines; test_cluster.py has the processes on one",
    r"python -m paddle\.distributed\.launch": "needs several machines; test_parallel.py starts it",
    r"python tests/fuzz.py": "runs for minutes; the tests hold what it repeats",
    r"python examples/encode_titles\.py": "needs a sentence model; the vectors are made up",
    r"SSR_TOKEN=secret locust ": "loads the machine; test_examples.py runs it",
    r".*(http://milvus:|redis://redis:)": "needs a Milvus or a Redis; the tests have them",
    r"SSR_TOKEN=secret docker ": "needs Docker; test_examples.py reads the file",
    r"make |python3 -m venv|\. |pip install|python -m pytest": "installs; .ci/run does it",
}
if not HAS_SERVER:
    PARSED[r"sh cluster_train\.sh|.*--model_dir cluster_model"] = "no server in this Paddle"
PARSED_FILES = {"benchmarks/README.md": "commands of the tables: hours, and data that is not ours"}
OTHERS_FLAGS = {"--nnodes", "--rank", "--master", "--nproc_per_node",  # of Paddle's launcher
                "--retry",  # of curl
                "--headless",  # of locust
                "--rm"}  # of docker


class Block(NamedTuple):
    path: str
    line: int  # of its first line
    language: str
    text: str

    def __str__(self):
        return f"{self.path}:{self.line}"

    def commands(self):
        """The commands of a block of sh, one a line of the shell."""
        text = self.text.replace("\\\n", " ")
        return [line.strip() for line in text.splitlines()
                if line.strip() and not line.strip().startswith("#")]


def blocks(path):
    """The fenced blocks of a file; no other way to write code is allowed."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if start is None:
                start = number
                assert line[3:] in ("sh", "python", "text", ""), f"{path}:{number}: {line}"
            else:
                text = "\n".join(lines[start:number - 1]) + "\n"
                yield Block(path, start + 1, lines[start - 1][3:], text)
                start = None
        elif start is None:
            assert not line.startswith("    "), f"{path}:{number}: code stands in a fence"
    assert start is None, f"{path}:{start}: a fence without an end"


def reason_to_parse(path, command):
    """Why a command is not run, None where it is."""
    if path in PARSED_FILES:
        return PARSED_FILES[path]
    return next((why for pattern, why in PARSED.items() if re.match(pattern, command)), None)


# --- every command, parsed ------------------------------------------------------------------------


def check_command(command):
    """Raises an error where a command's flags are not what its parser takes."""
    for part in re.split(r" (?:\||&&) ", command):
        words = shlex.split(part.rstrip(" &"), comments=True)
        words = words[1:] if words[0] in ("A$", "B$", "do") else words
        while words and re.match(r"\w+=", words[0]):
            words = words[1:]
        if words[0] in ("python", "python3"):
            check_python(words[1:])
        elif words[:2] == ["sh", "cluster_train.sh"]:
            check_flags("cluster_train.py", words[2:])
        elif words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif words[:3] == ["pip", "install", "-r"]:
            assert (ROOT / words[3].rstrip(";")).exists()
        else:
            assert words[0] in ("pip", "curl", "printf", ".", "for", "done", "kill", "cp", "ls",
                                "locust", "docker")


def check_python(words):
    if words[:2] == ["-m", "paddle.distributed.launch"]:
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")):]
    if words[:2] in (["-m", "venv"], ["-m", "pytest"]):
        return
    count = 2 if words[0] == "-m" else 1
    check_flags(" ".join(words[:count]), words[count:])


def check_flags(command, flags):
    if "--" in flags:  # a benchmark's flags, then those of train.py
        check_flags("train.py", flags[flags.index("--") + 1:])
        flags = flags[:flags.index("--")]
    parser_of(command).parse_args(flags)


@pytest.mark.parametrize("path", ENGLISH)
def test_commands_are_what_their_parsers_take(path):
    for block in blocks(path):
        if block.language == "python":
            compile(block.text, str(block), "exec")
        for command in block.commands() if block.language == "sh" else []:
            try:
                check_command(command)
            except (SystemExit, AssertionError, IndexError) as error:
                pytest.fail(f"{block}: {command}: {error!r}")


def test_all_that_is_only_parsed_is_there():
    commands = [command for path in ENGLISH if path not in PARSED_FILES for block in blocks(path)
                if block.language == "sh" for command in block.commands()]
    assert not [pattern for pattern in PARSED
                if not any(re.match(pattern, command) for command in commands)]


def test_output_is_no_command():
    """No command hides in a block that is not run."""
    for path in ENGLISH:
        for block in blocks(path):
            if block.language in ("text", ""):
                assert not re.search(r"^\s*(\w+=\S+ )*(python|sh|make|pip|curl) ", block.text, re.M)


# --- what stands where ----------------------------------------------------------------------------


def without_comments(block):
    return [block.language, re.sub(r"\s*#.*", "", block.text)]


@pytest.mark.parametrize("english, chinese", CHINESE.items(), ids=CHINESE)
def test_the_chinese_commands_are_the_english_ones(english, chinese):
    assert [without_comments(block) for block in blocks(chinese)] == \
        [without_comments(block) for block in blocks(english)]


def anchors(text):
    """The names that GitHub gives to the headings of a text."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*ENGLISH, *CHINESE.values()])
def test_links_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:", link):
            file, _, anchor = link.partition("#")
            target = (ROOT / path).parent / file if file else ROOT / path
            assert target.exists(), link
            if anchor:
                assert anchor in anchors(target.read_text(encoding="utf-8")), link


def flags_of(parser):
    for action in parser._actions:
        yield from (flag for flag in action.option_strings if flag.startswith("--"))
    for name in subcommands(parser):
        yield from flags_of(next(action for action in parser._actions
                                 if action.choices and name in action.choices).choices[name])


@pytest.mark.parametrize("pages", [ENGLISH, [*CHINESE.values(), "benchmarks/README.md"]],
                         ids=["English", "Chinese"])
def test_every_flag_is_described(pages):
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    described = set(re.findall(r"--[a-z][a-z_]*", text))
    benchmarks = [f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")
                  if path.name != "common.py"]
    flags = {flag for command in COMMANDS for flag in flags_of(parser_of(command))}
    others = {flag for command in benchmarks for flag in flags_of(parser_of(command))}
    assert not flags - described - {"--help"}
    assert not described - flags - others - OTHERS_FLAGS


def test_what_is_made_from_the_code_is_up_to_date():
    translate = tables.Translator(json.loads(tables.TEXTS.read_text(encoding="utf-8")))
    for path, text in tables.pages(translate).items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is out of date: make docs"
    assert not translate.missing() and not translate.unused(), "docs/cn/texts.json"


def test_every_page_is_in_the_readme():
    for readme, folder in (("README.md", "docs"), ("README_cn.md", "docs/cn")):
        lines = (ROOT / readme).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 200, readme
        links = re.findall(r"\]\(([^)#\s]+)", "\n".join(lines))
        assert {path.name for path in (ROOT / folder).glob("*.md")} <= \
            {Path(link).name for link in links if link.startswith(f"{folder}/")}


# --- every command, run ---------------------------------------------------------------------------


PRELUDE = """
set -euo pipefail
if [ -e server.pid ]; then kill "$(cat server.pid)"; fi
while [ -e server.pid ]; do sleep 0.1; done
# Starts a server as in another terminal, and waits until it answers.
serve() {
    "$@" > server.log 2>&1 &
    for _ in $(seq 300); do
        if curl -sf http://127.0.0.1:PORT/healthz > /dev/null; then return; fi
        if ! kill -0 $!; then break; fi
        sleep 0.1
    done
    cat server.log
    exit 1
}
"""
# `python` in the copy of the checkout: this one. A server says where it is and gets a free port.
PYTHON = """#!/bin/sh
if [ "$1" != serve.py ]; then exec {python} "$@"; fi
{python} "$@" --port "$FREE_PORT" &
echo $! > server.pid
wait $!
code=$?
rm server.pid
exit $code
"""
TOP = ["*.py", "*.sh", "*.txt", "Makefile", "ssr", "sample", "train_data", "test_data",
       "benchmarks", "examples"]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout with made-up data."""
    for pattern in TOP:
        for source in ROOT.glob(pattern):
            if source.is_dir():
                shutil.copytree(source, tmp_path / source.name,
                                ignore=shutil.ignore_patterns("__pycache__", ".cache"))
            else:
                shutil.copy(source, tmp_path)
    make_data(tmp_path)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON.format(python=shlex.quote(sys.executable)))
    python.chmod(0o755)
    yield tmp_path
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        os.kill(int((tmp_path / "server.pid").read_text()), signal.SIGKILL)


def make_data(folder):
    """What the docs call a reader's own data, made of the sample."""
    ids = [line.split("\t") for line in (ROOT / "sample/items.txt").read_text().splitlines()]
    sessions = [[int(item) for item in line.split()] for part in ("train_data", "test_data")
                for line in (ROOT / part / "sessions.txt").read_text().splitlines()]
    start = 1_507_680_000  # the sample's clicks, ten to a minute: four days of them
    times = [[start + 345 * number + 10 * i for i in range(len(session))]
             for number, session in enumerate(sessions)]
    raw = [" ".join(ids[item][0] for item in session) for session in sessions]
    seconds = [" ".join(map(str, row)) for row in times]

    def write(name, lines):
        (folder / name).write_text("\n".join(lines) + "\n")

    for name, part in {"train": slice(0, 700), "test": slice(800, 1000), "hour": slice(700, 800),
                       "11-12": slice(0, 500), "13": slice(500, 750), "11-13": slice(0, 750),
                       "14": slice(750, 1000), "morning": slice(800, 900),
                       "afternoon": slice(900, 1000)}.items():
        write(f"{name}.txt", raw[part])
        write(f"{name}_times.txt", seconds[part])
    write("items.tsv", [f"{item}\t{text}\tsection:city" for item, text in ids])
    clicks = [(number, time, item) for number, session in enumerate(sessions)
              for item, time in zip(session, times[number])]
    write("clicks.csv", ["SessionId,ItemId,Time,Title,Section,Author",
                         *(f"{number},{ids[item][0]},{time},{ids[item][1]},city,nobody"
                           for number, time, item in clicks)])
    instant = "2017-10-{:02d}T{:02d}:{:02d}:{:02d}.000Z".format
    write("yoochoose-clicks.dat", [
        f"{number},{instant(11 + t // 86400, t // 3600 % 24, t // 60 % 60, t % 60)},{item + 1},0"
        for number, time, item in clicks for t in [time - start]])
    write("clicks.tsv", [f"reader-{number}\t{ids[item][0]}" for number, time, item in clicks[:50]])
    np.save(folder / "title_vectors.npy", np.random.default_rng(0).normal(size=(len(ids), 8)))
    make_news_data(folder, ids, sessions, times)


def make_news_data(folder, ids, sessions, times):
    """The sessions of the sample in the layouts of MIND, Adressa and G1."""
    def write(name, lines):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(f"{line}\n" for line in lines))

    def behaviors(numbers):
        for number in numbers:
            *history, clicked = (ids[item][0] for item in sessions[number])
            shown = ids[(sessions[number][-1] + 7) % len(ids)][0]
            time = datetime.fromtimestamp(times[number][-1], timezone.utc)
            yield (f"{number}\tU{number}\t{time:%m/%d/%Y %I:%M:%S %p}\t{' '.join(history)}\t"
                   f"{clicked}-1 {shown}-0")

    write("MINDsmall_train/behaviors.tsv", behaviors(range(800)))
    write("MINDsmall_dev/behaviors.tsv", behaviors(range(800, 1000)))
    for part in ("train", "dev"):
        write(f"MINDsmall_{part}/news.tsv",
              [f"{item}\tcity\ttraffic\t{text}\t\thttps://x\t[]\t[]" for item, text in ids])
    clicks = [(number, ids[item], time) for number, session in enumerate(sessions)
              for item, time in zip(session, times[number])]
    write("one_week/20171011", [
        json.dumps({"userId": f"u{number}", "time": time, "id": item, "title": text})
        for number, (item, text), time in clicks])
    write("clicks/clicks_hour_000.csv", [
        "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,"
        "click_environment,click_deviceGroup",
        *(f"{number},{number},{times[number][0]}000,{len(times[number])},{item[1:]},{time}000,4,1"
          for number, (item, _), time in clicks)])
    vectors = np.random.default_rng(1).normal(size=(1 + len(ids), 4)).astype(np.float32)
    (folder / "articles_embeddings.pickle").write_bytes(pickle.dumps(vectors))
    write("articles_metadata.csv", [
        "article_id,category_id,created_at_ts,publisher_id,words_count",
        *(f"{item[1:]},281,1506826800000,0,200" for item, _ in ids)])


def script_of(block, port):
    """The block as a script of the shell, without what is only parsed."""
    lines = [command for command in block.commands() if not reason_to_parse(block.path, command)]
    serves = any("python serve.py" in line for line in lines)
    lines = [f"serve env {line}" if "python serve.py" in line and not line.endswith("&") else line
             for line in lines]
    script = (PRELUDE if serves else "set -euo pipefail\n") + "\n".join(lines) + "\n"
    return with_port(script, port).replace("PORT", str(port))


def with_port(text, port):
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")


def shape(text):
    """The lines of an output without its numbers."""
    return {re.sub(r"(?<=digest:)\w+|\d+(\.\d+)?", "#", line.strip())
            for line in text.splitlines() if line.strip()}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in ENGLISH if path not in PARSED_FILES])
def test_commands_run(path, checkout):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}",
                   "PYTHONPATH": str(checkout), "FREE_PORT": str(port)}
    output = ""
    for block in blocks(path):
        if block.language == "text":
            assert not shape(block.text) - shape(output), f"{block}: not in the output:\n{output}"
            continue
        if block.language == "":
            continue
        if block.language == "sh":
            command = ["bash", "-c", script_of(block, port)]
        else:
            command = ["python", "-c", with_port(block.text, port)]
        with open(checkout / "block.out", "w+") as file:  # no pipe: a server may hold it open
            done = subprocess.run(command, cwd=checkout, env=environment, stdin=subprocess.DEVNULL,
                                  stdout=file, stderr=subprocess.STDOUT, timeout=600)
            file.seek(0)
            printed = file.read()
        output += printed
        assert done.returncode == 0, f"{block}:\n{block.text}\n{printed}"
        assert "Traceback" not in printed, f"{block}:\n{printed}"
    if (checkout / "server.pid").exists():
        os.kill(int((checkout / "server.pid").read_text()), signal.SIGTERM)

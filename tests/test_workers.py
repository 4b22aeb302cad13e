"""Several processes that serve one index: what they share, and that nobody notices how many there
are."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

import retrieve
import train
from ssr.retrieval import Index
from ssr.service import group, metrics
from ssr.service.group import Group, Member

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATIENCE = 90  # seconds that anything may take


# --- what they share ------------------------------------------------------------------------------


@pytest.fixture
def three():
    shared = Group(3, has_writer=True)
    yield shared
    shared.close()


def test_who_has_most_connections_takes_no_more(three, monkeypatch):
    monkeypatch.setattr(group, "DEFERRAL", 0.0)
    busy, idle = Member(three, 0), Member(three, 1)
    idle.set_connections(0)
    assert busy.leaves_to_others(2) and not idle.leaves_to_others(0)
    # It waits for the others, not for good: they may be hung.
    assert [busy.leaves_to_others(2) for _ in range(group.MAX_DEFERRALS)].count(False) == 1
    idle.set_connections(group.DOWN)
    assert not busy.leaves_to_others(2)
    assert busy.others() == [] and idle.others() == [0]
    assert busy.writes and idle.has_other_writer and not three.is_up(2)


def test_connections_are_shared_out_again(three):
    early, late = Member(three, 0), Member(three, 1)
    early.set_connections(4)
    assert not early.sends_away()  # there is nobody else yet
    late.set_connections(0)
    assert [early.sends_away() for _ in range(5)] == [True] * 3 + [False] * 2
    assert not late.sends_away()
    early.set_connections(1)
    assert not early.sends_away()  # one more is nothing to even out


def test_a_process_that_is_not_there_is_waited_for(three):
    with pytest.raises(OSError):
        three.ask(1, "GET", "/healthz", timeout=0.1)


def test_the_metrics_of_all():
    texts = {}
    for number in (0, 1):
        registry = metrics.make_registry()
        metrics.observe(registry, "ssr_items", "Items", lambda number=number: 10 + number)
        metrics.observe(registry, "ssr_reloads_total", "Reloads", lambda number=number: number)
        texts[number] = metrics.exposition(registry)
    whole = metrics.exposition_of_all(texts).decode()
    assert 'ssr_items{worker="0"} 10.0' in whole and 'ssr_items{worker="1"} 11.0' in whole
    assert 'ssr_reloads_total{worker="1"} 1.0' in whole
    assert whole.count("# TYPE ssr_items gauge") == 1
    assert len(re.findall("^process_resident_memory_bytes", whole, re.M)) == 2


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(sample, tmp_path_factory):
    """With a live index of model "first" and a model "second"."""
    path, before = tmp_path_factory.mktemp("workers"), os.getcwd()
    for name in os.listdir(sample):
        (path / name).symlink_to(sample / name)
    os.chdir(path)
    try:
        for name, size in (("first", "8"), ("second", "6")):
            assert train.main(["--epochs", "1", "--embedding_dim", size, "--hidden_size", size,
                               "--item_tokens", "item_tokens.txt", "--model_dir", name]) == 0
        assert retrieve.main(["build", "--live", "--model_dir", "first"]) == 0
    finally:
        os.chdir(before)
    return path


class Served:
    """process: the first one; lines: of its standard error"""

    def __init__(self, directory, *flags):
        environment = {**os.environ, "SSR_TOKEN": "secret"}
        self.log = open(directory / "log", "w+", encoding="utf-8")  # noqa: SIM115  stays open
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "serve.py"), "--port", "0", *flags], text=True,
            cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline()
        assert "serving" in line, self.lines()
        self.url = line.split()[-1]
        self.headers = {"Authorization": "Bearer secret"}

    def lines(self):
        with open(self.log.name, encoding="utf-8") as f:
            return f.read()

    def ask(self, method, path, json=None):
        """By a connection of its own, so that it may be any process that answers."""
        return httpx.request(method, self.url + path, json=json, headers=self.headers,
                             timeout=PATIENCE)

    def ids(self, *session, **options):
        response = self.ask("POST", "/recommend", {"session": session, "k": 60, **options})
        assert response.status_code == 200, response.text
        return [hit["id"] for hit in response.json()["hits"]]

    def children(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as f:
            return [int(pid) for pid in f.read().split()]

    def models(self):
        """Those of the processes, from their metrics."""
        text = self.ask("GET", "/metrics").text
        return {worker: model for model, worker in
                re.findall(r'ssr_model{model="(\w+)/[^"]*",worker="(\d)"} 1.0', text)}

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=PATIENCE)
        self.log.close()
        return self.process.returncode


@contextlib.contextmanager
def served(directory, *flags):
    server = Served(directory, *flags)
    try:
        yield server
        assert server.end() == 0, server.lines()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


def eventually(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def with_item(server, id):
    """What a query for it says, asked often enough that each process is."""
    return {id in server.ids("n0001", candidates=[id]) for _ in range(8)}


@pytest.mark.slow
def test_nobody_notices_how_many_there_are(directory):
    text = {"text": "Doubles partners welcome the seedings"}
    with served(directory, "--workers", "2") as server:
        assert len(server.children()) == 2 and set(server.models()) == {"0", "1"}
        for number in range(6):  # whoever takes a change, all know it at their next query
            assert server.ask("PUT", f"/items/new{number}", text).json()["new"] == 1
            assert with_item(server, f"new{number}") == {True}
            assert server.ask("DELETE", f"/items/new{number}").json()["removed"] == 1
            assert with_item(server, f"new{number}") == {False}
        for _ in range(6):
            assert server.ask("POST", "/clicks", {"session": "s", "item": "any"}).json() == {
                "clicks": 1}
        time.sleep(1.0)
        assert {"any" in server.ids() for _ in range(8)} == {True}
        assert {server.ask("GET", "/healthz").json()["writable"] for _ in range(8)} == {True}
        assert httpx.put(server.url + "/items/x", json=text).status_code == 401
        assert server.ask("PUT", "/items/x", {"text": 1}).status_code == 422
        requests = re.findall(r'ssr_requests_total{method="PUT",route="/items/{id:path}",'
                              r'status="(\d+)",worker="(\d)"} (\S+)',
                              server.ask("GET", "/metrics").text)
        assert sum(float(count) for *_, count in requests) == 6 + 2  # none of them twice
        assert len({worker for _, worker, _ in requests}) > 1
        # One that dies is started again; meanwhile queries are answered and changes wait.
        for victim in (0, 1):
            before = server.children()
            os.kill(before[victim], signal.SIGKILL)
            for number in range(4):
                assert server.ids("n0001")
                assert server.ask("PUT", f"/items/after{victim}{number}",
                                  text).status_code == 200
            eventually(lambda: set(server.models()) == {"0", "1"})
            assert with_item(server, f"after{victim}3") == {True}
            assert len(set(server.children()) & set(before)) == 1
        assert server.lines().count("is started again") == 2
    with Index.open(str(directory / "index")) as index:
        assert {"after00", "after13"} <= {hit.id for hit in index.query(["n0001"], 70).hits}


@pytest.mark.slow
def test_a_new_model_under_load(directory):
    """No request fails, and what was added before, between and after is there."""
    assert build(directory, "first").returncode == 0
    failed, counts, done = [], {"asked": 0, "changed": 0}, threading.Event()
    text = {"text": "Doubles partners welcome the seedings"}
    with served(directory, "--workers", "2") as server:

        def ask():
            with httpx.Client(base_url=server.url, headers=server.headers,
                              timeout=PATIENCE) as client:
                while not done.is_set():
                    response = client.post("/recommend", json={"session": ["n0001"], "k": 20})
                    counts["asked"] += 1
                    if response.status_code != 200 or len(response.json()["hits"]) != 20:
                        failed.append(response.text)

        def change():
            with httpx.Client(base_url=server.url, headers=server.headers,
                              timeout=PATIENCE) as client:
                while not done.is_set():
                    number = counts["changed"]
                    for response in (
                            client.put(f"/items/fresh{number}", json=text),
                            client.post("/clicks", json={"session": "s", "item": "n0003"})):
                        if response.status_code != 200:
                            failed.append(response.text)
                    counts["changed"] += 1
                    time.sleep(0.02)

        threads = [threading.Thread(target=run) for run in (ask, ask, ask, change)]
        for thread in threads:
            thread.start()
        try:
            for name in ("second", "first"):
                assert build(directory, name).returncode == 0
                response = server.ask("POST", "/reload", {})
                assert response.json()["model"].startswith(name)
                eventually(lambda name=name: set(server.models().values()) == {name})
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not failed and counts["asked"] > 50 and counts["changed"] > 10
        ids = [f"fresh{number}" for number in range(counts["changed"])]
        for part in (ids[start:start + 60] for start in range(0, len(ids), 60)):
            assert set(server.ids("n0002", candidates=part)) == set(part)


def build(directory, name):
    return subprocess.run([sys.executable, os.path.join(ROOT, "retrieve.py"), "build",
                           "--overwrite", "--model_dir", name], cwd=directory, text=True,
                          capture_output=True)


@pytest.mark.slow
def test_what_cannot_begin_ends(directory):
    """With the message of the process that could not, once."""
    def run(*flags):
        return subprocess.run([sys.executable, os.path.join(ROOT, "serve.py"), "--port", "0",
                               "--workers", "2", *flags], cwd=directory, text=True,
                              capture_output=True, timeout=PATIENCE)

    result = run("--index_dir", "nowhere")
    assert result.returncode == 1 and result.stderr.count("there is no index in nowhere") == 1
    with Index.open(str(directory / "index"), True):
        result = run()
        assert result.returncode == 1 and result.stderr.count("open for writing") == 1
    # And who is killed takes the others along.
    server = Served(directory, "--workers", "2")
    children = server.children()
    server.process.kill()
    server.process.communicate()
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))

"""Clicks over a stream of Redis: what one server takes in, all of them know, in the same order, and
whatever is killed or started in between."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import httpx
import pytest

import retrieve
from ssr.errors import DataError, SetupError, StoreError
from ssr.retrieval import Click, Index, Item
from ssr.retrieval.redis_clicks import RedisLog

redis = pytest.importorskip("redis", reason="the client of Redis is not installed")
if not shutil.which("redis-server"):
    pytest.skip("redis-server is not installed", allow_module_level=True)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IDS = [f"n{number:04d}" for number in range(60)]
SOON = 1.0  # seconds after which all servers answer the same


class Redis:
    """A redis-server that writes each entry to its disk before it answers."""

    def __init__(self, directory):
        self.directory = str(directory)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.process = None
        self.start()

    @property
    def uri(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir",
             self.directory, "--appendonly", "yes", "--appendfsync", "always", "--save", ""],
            stdout=subprocess.DEVNULL)
        with redis.Redis(port=self.port) as client:
            for _ in range(100):
                with contextlib.suppress(redis.RedisError):
                    return client.ping()
                time.sleep(0.05)
        raise AssertionError("redis-server does not answer")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def empty(self):
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def entries(self):
        with redis.Redis(port=self.port, decode_responses=True) as client:
            return [fields for _, fields in client.xrange("ssr:clicks")]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def server(started):
    if started.process.poll() is not None:
        started.start()
    started.empty()
    return started


@pytest.fixture(scope="module")
def built(sample, content_model, tmp_path_factory):
    """A directory with an index of a model with content."""
    path = tmp_path_factory.mktemp("built")
    (path / "model").symlink_to(content_model)
    assert retrieve.main(["build", "--model_dir", str(path / "model"), "--data_dir", str(sample),
                          "--index_dir", str(path / "index")]) == 0
    return path / "index"


@pytest.fixture
def opened(built, server, tmp_path, enough_clicks):
    """Opens a copy of the index, as a server of its own has it, by a name."""
    with contextlib.ExitStack() as stack:
        def open_index(name, **options):
            path = tmp_path / name
            if not path.exists():
                shutil.copytree(built, path)
            return stack.enter_context(Index.open(str(path), True, clicks=server.uri, **options))

        yield open_index


def hits(index, session=("n0001",), now=None):
    (answer,) = index.query_many([list(session)], 10, now=now)
    return [(hit.id, round(hit.score, 3), hit.source) for hit in answer.hits]


def wait_until(condition, seconds=SOON):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.02)


def some_clicks(count, start=0):
    return [Click(f"s{number % 7}", IDS[number * number % 50], None)
            for number in range(start, start + count)]


def assert_same(indexes):
    """That all answer the same, within SOON."""
    def answers():
        now = time.time()
        return [[hits(index, session, now) for session in ((), ("n0001",), ("n0004", "n0009"))]
                for index in indexes]

    wait_until(lambda: all(answer == found[0] for found in [answers()] for answer in found))
    assert any(source == "live" for _, _, source in answers()[0][0])


def test_what_one_takes_in_all_know(opened, server):
    indexes = [opened(name) for name in "abc"]
    for number, index in enumerate(indexes * 5):
        index.click(some_clicks(4, 4 * number))
    assert_same(indexes)
    assert len(server.entries()) == 60
    # Whoever has taken a click in answers by it at once.
    indexes[1].click([Click(f"new{number}", "n0055") for number in range(30)])
    assert hits(indexes[1], ())[0][0] == "n0055"
    assert_same(indexes)


def test_one_that_starts_catches_up_and_one_with_a_snapshot_too(opened, server):
    one = opened("one")
    one.click(some_clicks(40))
    two = opened("two")
    assert_same([one, two])
    two.close()
    with Index.open(two.store.path, True) as again:  # the index says where the clicks are
        assert_same([one, again])
    third = opened("three")
    third._live._save()
    third.close()
    one.click(some_clicks(20, 40))
    with mock.patch.object(RedisLog, "read", autospec=True, side_effect=RedisLog.read) as read:
        again = opened("three")
        assert read.call_args_list[0].args[1] > "1"  # not from the beginning
    assert_same([one, again])


def test_published_and_unknown_articles(opened, server):
    one, other = opened("one"), opened("other")
    one.click([Click("s", "nobody has added this"), *some_clicks(5)])
    for index in (one, other):
        index.add([Item("fresh", "Bankers discuss a transfer")])
    assert_same([one, other])
    assert "nobody has added this" in [id for id, _, source in hits(other, ()) if source == "live"]
    published = [entry for entry in server.entries() if "published" in entry]
    assert [entry["item"] for entry in published] == ["fresh", "fresh"]


def test_redis_restarted_in_between_loses_nothing_it_acknowledged(opened, server):
    one, other = opened("one"), opened("other")
    reader = Index.open(one.store.path)
    one.click(some_clicks(20))
    assert_same([one, reader])
    server.kill()
    before = hits(one)
    begin = time.monotonic()
    with pytest.raises(StoreError, match="cannot use Redis at redis://127.0.0.1"):
        other.click(some_clicks(5, 20))
    assert time.monotonic() - begin < 5
    for index in (one, reader):  # queries go on
        assert [hit[0] for hit in hits(index)] == [hit[0] for hit in before]
    server.start()
    wait_until(lambda: accepted(other, some_clicks(10, 30)), 5)
    assert len(server.entries()) == 30
    wait_until(lambda: one._live._read_to == reader._live._read_to == other._live._read_to, 5)
    assert_same([one, other, reader, opened("third")])
    reader.close()


def accepted(index, clicks):
    with contextlib.suppress(StoreError):
        index.click(clicks)
        return True


def test_what_is_no_click_is_passed_over(opened, server):
    index = opened("one")
    with redis.Redis(port=server.port) as client:
        for fields in ({"item": "n0001"}, {"time": "1"}, {"item": "n0001", "time": "soon"},
                       {"item": "n0001", "time": "nan"}, {"item": "a\tb", "time": "1"},
                       {"item": "n0001", "time": str(time.time() - 10 ** 6)}):
            client.xadd("ssr:clicks", fields)
        client.xadd("ssr:clicks", {"item": "n0002", "time": str(time.time() - 1), "more": "x"})
    wait_until(lambda: [id for id, _, source in hits(index, ()) if source == "live"] == ["n0002"])
    opened("other")


def test_old_entries_are_trimmed_by_the_clock_of_redis(opened, server):
    index = opened("one")
    with redis.Redis(port=server.port) as client:
        old = int((time.time() - 3 * 86400) * 1000)
        for number in range(300):
            client.xadd("ssr:clicks", {"item": "n0001", "time": "1"}, id=f"{old}-{number + 1}")
    index.click(some_clicks(1))
    index._live._log.prune(time.time() + 10 ** 9, 86400)  # a clock of this machine that is wrong
    assert len(server.entries()) < 200 and server.entries()[-1]["item"] == some_clicks(1)[0].item


def test_addresses(built, server, tmp_path, capsys):
    path = str(shutil.copytree(built, tmp_path / "index"))
    for uri, message in [("http://x", "redis://HOST"),
                         ("redis://127.0.0.1:1/0", "cannot use Redis"),
                         ("redis://127.0.0.1:x/0", "Redis at")]:
        assert retrieve.main(["query", "--index_dir", path, "--session", "n0001", "--clicks",
                              uri]) == 1
        assert message in capsys.readouterr().err
    assert retrieve.main(["live", "--index_dir", path, "--clicks",
                          server.uri.replace("//", "//:secret@") + "#other"]) == 0
    out = capsys.readouterr().out
    assert f"clicks:{server.uri}#other" in out and "secret" not in out
    with mock.patch.dict(sys.modules, {"redis": None}), pytest.raises(SetupError, match="pip"):
        Index.open(path)


@pytest.mark.slow
def test_an_index_in_milvus_shares_its_clicks(built, sample, server, tmp_path, enough_clicks):
    pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
    model, path = str(built.parent / "model"), str(tmp_path / "index")
    assert retrieve.main(["build", "--model_dir", model, "--data_dir", str(sample), "--index_dir",
                          path, "--engine", "milvus", "--uri", str(tmp_path / "x.db"),
                          "--live"]) == 0
    with pytest.raises(DataError, match="--clicks redis"):
        Index.open(path, True)
    assert retrieve.main(["live", "--index_dir", path, "--clicks", server.uri]) == 0
    with Index.open(path, True) as one, Index.open(path, True) as other:
        one.click([*some_clicks(20), *[Click(f"r{number}", "unknown") for number in range(9)]])
        other.add([Item("fresh", "Bankers discuss a transfer", {"section": "new"})])
        other.click([Click("s1", "fresh")])
        assert_same([one, other])
        assert hits(one, ())[0][0] == "unknown"
        assert other.remove(["fresh"]).removed == 1
        wait_until(lambda: "fresh" not in [id for id, _, _ in hits(one, ())])


# --- real servers ---------------------------------------------------------------------------------


class Server:
    """A serve.py of its own index directory."""

    def __init__(self, path, uri, *flags):
        self.arguments = [sys.executable, os.path.join(ROOT, "serve.py"), "--index_dir", str(path),
                          "--port", "0", "--clicks", uri, *flags]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.arguments, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        assert line, "the server does not start"
        self.client = httpx.Client(base_url=line.split(" on ")[1].strip(), timeout=10)

    def kill(self, number=signal.SIGKILL):
        self.client.close()
        self.process.send_signal(number)
        self.process.communicate(timeout=20)

    def live_hits(self):
        answer = self.client.post("/recommend", json={"session": ["n0001"], "k": 30}).json()
        return [hit["id"] for hit in answer["hits"] if hit["source"] == "live"]

    def click(self, session, item):
        return self.client.post("/clicks", json={"session": session, "item": item}).status_code


@pytest.mark.slow
def test_three_servers_with_kills_in_between(built, server, tmp_path):
    servers = [Server(shutil.copytree(built, tmp_path / name), server.uri) for name in "abc"]
    acknowledged = 0
    try:
        for turn, kill in enumerate([None, servers[0].kill, server.kill, servers[2].kill]):
            if kill:
                kill()
            for number in range(45):
                one = servers[number % 3]
                item = IDS[(7 * turn + number * number) % 40]
                with contextlib.suppress(httpx.TransportError, RuntimeError):  # it is killed
                    acknowledged += one.click(f"r{turn}-{number % 11}", item) == 200
                if kill == server.kill and number > 3:
                    break
            if kill == server.kill:
                server.start()
            elif kill:
                next(one for one in servers if one.process.poll() is not None).start()
        time.sleep(SOON)
        answers = [one.live_hits() for one in servers]
        assert answers[0] == answers[1] == answers[2] and len(answers[0]) > 15
        assert acknowledged >= 45 + 2 * 30
        assert len(server.entries()) >= acknowledged  # and not much more: what was not answered
        assert len(server.entries()) <= acknowledged + 10
    finally:
        for one in servers:
            if one.process.poll() is None:
                one.kill()

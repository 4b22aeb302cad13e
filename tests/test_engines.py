"""An index in Milvus, here Milvus Lite: it answers as one on faiss does, its builds replace each
other as a whole, and what is wrong is said."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retrieve
from ssr.errors import SetupError, StoreError
from ssr.retrieval import Filter, Index, Item, builds, engines
from ssr.retrieval.bag import Bag
from ssr.retrieval.filters import conditions_of
from ssr.retrieval.queries import Asked, Queries, Wanted
from ssr.retrieval.rows import Row
from ssr.retrieval.values import Answer
from ssr.retrieval.vectors import DEFAULT_SEARCH, SearchSettings
from ssr.service.backend import Backend
from ssr.service.limits import Limits

pytest.importorskip("pymilvus", reason="pymilvus is not installed")
pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")

from ssr.retrieval.milvus_items import connect, key_of  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DIM, NOW = 4, 1_700_000_000.0
DETAILS = {"model": "m/epoch_1", "digest": "0123456789abcdef"}
IDS = ["a", "B b", "c'", 'd"', "e\\", "f%", "g_", "ä", "中文", "key in [1]"]
TOKENS = ["section:sports", "section:a\"b", "kind:x\\", "kind:%", "section:中文"]
VECTORS = st.lists(st.integers(-100, 100), min_size=DIM, max_size=DIM).filter(any).map(
    lambda numbers: np.array(numbers, np.float32) / np.linalg.norm(numbers))
ROWS = st.lists(st.builds(
    Row, st.sampled_from(IDS), st.sampled_from(["", "Some News", "100% of a_b", "新闻"]),
    st.lists(st.integers(0, 9), max_size=3).map(lambda rows: Bag(np.array(rows, np.int32))),
    st.none() | VECTORS, st.lists(st.sampled_from(TOKENS), max_size=3, unique=True).map(tuple),
    st.integers(-100, 0).map(lambda age: NOW + age)), min_size=1, max_size=12)
FILTERS = st.builds(
    Filter, only=st.lists(st.sampled_from(TOKENS), max_size=3),
    without=st.lists(st.sampled_from(TOKENS), max_size=2),
    candidates=st.none() | st.lists(st.sampled_from(IDS + ["nobody"]), max_size=8),
    exclude=st.lists(st.sampled_from(IDS + ["nobody"]), max_size=5),
    max_age=st.none() | st.integers(0, 120),
    at_most=st.just({}) | st.fixed_dictionaries({"section": st.integers(1, 3)}))
CHANGES = st.lists(ROWS | st.lists(st.sampled_from(IDS + ["nobody"]), min_size=1, max_size=4),
                   max_size=4)


def make_store(path, rows, engine=None, settings=DEFAULT_SEARCH, overwrite=False):
    with engines.building(str(path), engine) as create, \
            builds.new_build(str(path), overwrite) as directory:
        create(directory, DIM, rows, DETAILS, np.eye(DIM, dtype=np.float32), settings)


def open_writable(path):
    return engines.open_store(str(path), writable=True)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{kind: a Store} of the same two items."""
    path = tmp_path_factory.mktemp("engines")
    milvus = engines.Milvus(str(path / "lite.db"))
    rows = [Row(id, "", Bag(np.array([0], np.int32)), np.eye(DIM, dtype=np.float32)[0])
            for id in ("first", "second")]
    make_store(path / "faiss", rows)
    make_store(path / "milvus", rows, milvus)
    make_store(path / "lists", rows, milvus, SearchSettings(0, 2, 1))
    with mock.patch("ssr.retrieval.milvus_build.is_lite", return_value=False):
        make_store(path / "arrays", rows, milvus)  # as a Milvus server has it
    stores = {name: open_writable(path / name) for name in ("faiss", "milvus", "lists", "arrays")}
    yield stores
    for store in stores.values():
        store.close()


def empty(store):
    store.remove(["first", "second", *IDS])


def ask(store, user, k, filter, clicked=()):
    """What an index without clicks answers, as (id, score, text), in an order of its own among
    equal scores."""
    one = Asked([], [store.items.find([id])[id].key for id in clicked], [])
    one.user = user
    queries = Queries(store, None, None, np.array([3, 5]), lambda: NOW)
    (answer,) = queries.answer([one], Wanted(k, filter=filter))
    return [(hit.id, round(hit.score, 4), hit.text) for hit in answer.hits]


def assert_same(hits, expected):
    assert [score for _, score, _ in hits] == pytest.approx(
        [score for _, score, _ in expected], abs=2e-4)
    last = expected[-1][1] if expected else 0
    surely = {hit for hit in expected if hit[1] > last + 4e-4}  # what ties with the last may vary
    assert {hit[0] for hit in surely} <= {hit[0] for hit in hits}


@settings(deadline=None, max_examples=12,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=CHANGES, rows=ROWS, filter=FILTERS, user=st.none() | VECTORS, k=st.integers(1, 12))
def test_both_engines_give_the_same_answers(opened, changes, rows, filter, user, k):
    found = {}
    for kind, store in opened.items():
        empty(store)
        told = []
        for change in [rows, *changes]:
            if isinstance(change[0], Row):
                store.put(change)
            else:
                told.append(store.remove(change))
        found[kind] = store, told
    faiss, told = found["faiss"]
    whole = ask(faiss, user, k, filter)
    for kind in ("milvus", "lists", "arrays"):
        store = opened[kind]
        assert found[kind][1] == told
        if not filter.at_most:  # of equal scores another one may be first, and its section counts
            assert_same(ask(store, user, k, filter), whole)
        ids = sorted({row.id for row in rows})
        known, expected = store.items.find(ids), faiss.items.find(ids)
        assert {id: (item.bag.to_bytes(), item.removed) for id, item in known.items()} == \
            {id: (item.bag.to_bytes(), item.removed) for id, item in expected.items()}
        assert sorted(key_of(id) for id in ids if known[id].removed) == \
            sorted(store.removed() & {key_of(id) for id in ids})
        keys = [known[id].key for id in ids]
        fields = store.fields(keys)
        assert {id: set(fields.get(known[id].key, ())) for id in ids} == {
            id: set(faiss.fields([expected[id].key]).get(expected[id].key, ())) for id in ids}
        assert_same_items(store, faiss)


def assert_same_items(store, faiss):
    def shown(store):
        return {item.id: (item.text, item.bag.to_bytes(), item.vector.tolist())
                for items in store.items.scan() for item in items}

    assert shown(store) == shown(faiss)
    for words in ([], ["news"], ["%"], ["a_b", "100%"], ["B B"], ["\\"], ['"'], ["新"]):
        assert sorted(store.items.browse(words, 50)[0]) == sorted(faiss.items.browse(words, 50)[0])


def test_lists_that_are_not_looked_into_still_fill_an_answer(tmp_path):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(500, DIM)).astype(np.float32)
    rows = [Row(f"n{i}", "", Bag(np.array([i])), vector / np.linalg.norm(vector),
                ("section:rare",) if i % 50 == 0 else ()) for i, vector in enumerate(vectors)]
    make_store(tmp_path / "index", rows, engines.Milvus(str(tmp_path / "lite.db")),
               SearchSettings(100, 20, 1))
    with open_writable(tmp_path / "index") as store:
        assert store.search_settings()["kind"] == "milvus-ivf"
        assert len(ask(store, vectors[3], 10, Filter(only=["section:rare"]))) == 10
        assert len(ask(store, vectors[3], 600, Filter())) == 500
        few = [f"n{i}" for i in range(0, 500, 3)]
        found = ask(store, vectors[3], 4, Filter(candidates=few))
        assert [id for id, _, _ in found] == sorted(
            few, key=lambda id: -float(rows[int(id[1:])].vector @ vectors[3]))[:4]
        with mock.patch.object(store, "_search", wraps=store._search) as search:
            assert len(ask(store, vectors[3], 10, Filter(candidates=few[:5]))) == 5
        assert search.call_count == 1  # there are no further lists to look into


def test_changes_of_others_are_seen_without_an_iterator(opened):
    """Each step of an iterator waits for all servers of a Milvus, 0.2 s; a query does not."""
    store, client = opened["milvus"], opened["milvus"].items._client
    with mock.patch.object(client, "query_iterator", side_effect=AssertionError):
        store.remove(["second"])
        store._looked = store._removed = None
        assert store.items.find(["second"])["second"].key in store.removed()
        store.put([Row(f"one of {i}", "", Bag(np.array([0], np.int32)), np.eye(DIM)[0])
                   for i in range(9)])
    with mock.patch("ssr.retrieval.milvus_items.LIMIT", 8):  # there are more
        found = [row["key"] for rows in store.items.states_since(0) for row in rows]
    assert len(found) == len(set(found)) == store.items.count_of("") > 8
    empty(store)
    store.remove([f"one of {i}" for i in range(9)])


def test_milvus_lite_filters_by_texts_others_by_arrays(opened):
    conditions = conditions_of(Filter(only=["section:a_b%"], without=["kind:x"]), NOW)
    assert opened["milvus"].select(conditions).expression == (
        r'(terms like "% section:a\\_b\\% %") and not (terms like "% kind:x %")')
    assert opened["arrays"].select(conditions).expression == (
        'array_contains_any(fields, ["section:a_b%"]) and not '
        'array_contains_any(fields, ["kind:x"])')


# --- commands and builds --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(sample, content_model, tmp_path_factory):
    """A directory with a model with content, an index of it in Milvus, and one on faiss."""
    path = tmp_path_factory.mktemp("commands")
    (path / "model").symlink_to(content_model)
    for name in ("milvus", "faiss"):
        assert build(path, sample, name) == 0
    return path


def build(path, sample, name, *flags):
    lite = ["--engine", "milvus", "--uri", str(path / "lite.db")] if name == "milvus" else []
    return retrieve.main(["build", "--model_dir", str(path / "model"), "--data_dir", str(sample),
                          *lite, "--index_dir", str(path / name), *flags])


def collections(path):
    return set(connect(str(path / "lite.db")).list_collections())


def test_commands_say_the_same(project, tmp_path, capsys):
    new = tmp_path / "new.txt"
    new.write_text("x1\tBankers discuss a transfer\tsection:city\nn0001\tBankers again\n")

    def run(name, *argv):
        code = retrieve.main([argv[0], "--index_dir", str(project / name), *argv[1:]])
        out = capsys.readouterr()
        assert code == 0, out.err
        # The engines add up in other orders: the last digits of a score may differ.
        said = re.sub(r"(?<=\d\.\d{4})\d\d(?=\t)", "", out.out)
        return re.sub(r"kind:\S+|change:\d+|\S+\.parquet", "", said)

    for argv in (["query", "--session", "n0015 n0020"], ["remove", "n0020", "nobody"],
                 ["query", "--session", "n0015 n0020"], ["add", str(new)],
                 ["query", "--session", "n0015", "--only", "section:city"],
                 ["query", "--item", "no"],
                 ["similar", "x1", "-k", "3", "--exclude", "x1"], ["info"], ["check"],
                 ["export-vectors", str(tmp_path / "out.parquet")]):
        said, expected = run("milvus", *argv), run("faiss", *argv)
        assert said and said == expected, argv


def test_several_have_it_open_for_writing_and_see_each_other(project):
    path = str(project / "milvus")
    with Index.open(path, writable=True) as one, Index.open(path, writable=True) as other:
        one.add([Item("seen", "Bankers discuss a transfer", {"section": "new"})])
        only = Filter(only=["section:new"])
        assert [hit.id for hit in other.query(["n0015"], filter=only).hits] == ["seen"]
        assert other.remove(["seen", "nobody"]).unknown == ["nobody"]
        assert one.query(["n0015"], filter=only).hits == []
        one.store.removed()
        other.add([Item("seen", "Bankers", {"section": "new"})])
        one.store._looked = -np.inf
        one.refresh()
        assert key_of("seen") not in one.store.removed()
        other.remove(["seen"])
    with Index.open(path) as reader, pytest.raises(StoreError, match="reading only"):
        reader.add([Item("n0015")])


@pytest.mark.slow
def test_a_build_has_a_collection_of_its_own_and_the_one_before_stays(project, sample, tmp_path):
    (tmp_path / "model").symlink_to(project / "model")
    (tmp_path / "milvus").mkdir()
    seen = [set()]
    for _ in range(3):
        assert build(tmp_path, sample, "milvus", "--overwrite") == 0
        seen.append(collections(tmp_path))
    assert [len(names) for names in seen] == [0, 1, 2, 2] and seen[1] <= seen[2]
    assert len(seen[2] & seen[3]) == 1 and not seen[1] & seen[3]
    # One that was killed left a directory and a collection, one that fails leaves neither.
    left = tmp_path / "milvus" / "build-left"
    left.mkdir()
    current = builds.current_build(str(tmp_path / "milvus"))
    engine = {**engines.read_engine(current), "collection": "ssr_left"}
    engines.write_engine(str(left), engine)
    connect(engine["uri"]).create_collection("ssr_left", dimension=2)
    with mock.patch("ssr.retrieval.builds._publish", side_effect=OSError(28, "No space left")):
        assert build(tmp_path, sample, "milvus", "--overwrite") == 1
    assert collections(tmp_path) == seen[3] | {"ssr_left"}
    assert builds.current_build(str(tmp_path / "milvus")) == current
    assert build(tmp_path, sample, "milvus", "--overwrite") == 0
    assert len(collections(tmp_path)) == 2 and "ssr_left" not in collections(tmp_path)


@pytest.mark.slow
def test_servers_share_a_milvus(project, sample, tmp_path):
    """Two serve.py with an index directory each, on a Milvus that is a process of its own."""
    processes, port = [], free_port()

    def start(*command, **options):
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, **options))
        return processes[-1]

    try:
        start(os.path.join(os.path.dirname(sys.executable), "milvus-lite"), "server", "--data-dir",
              str(tmp_path / "data"), "--host", "127.0.0.1", "--port", str(port))
        wait_for_port(port)
        uri = f"http://127.0.0.1:{port}"
        (tmp_path / "model").symlink_to(project / "model")
        assert build(tmp_path, sample, "one", "--engine", "milvus", "--uri", uri) == 0
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        one, two = (httpx.Client(base_url=start(
            sys.executable, os.path.join(ROOT, "serve.py"), "--index_dir", str(tmp_path / name),
            "--port", "0", stdout=subprocess.PIPE).stdout.readline().split(" on ")[1].strip())
            for name in ("one", "two"))

        def ids(client, **filter):
            answer = client.post("/recommend", json={"session": ["n0015"], "k": 5, **filter})
            return [hit["id"] for hit in answer.json()["hits"]]

        assert ids(one) == ids(two) and len(ids(one)) == 5
        content = {"text": "Bankers discuss a transfer", "fields": {"section": "new"}}
        assert one.put("/items/x1", json=content).json()["new"] == 1
        assert ids(two, only=["section:new"]) == ["x1"]
        assert two.delete("/items/x1").status_code == 200
        assert ids(one, only=["section:new"]) == []
        processes[0].kill()
        answer = one.post("/recommend", json={"session": ["n0015"]})
        assert answer.status_code == 503 and "cannot use Milvus" in answer.text
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_queries_that_wait_for_another_machine_wait_side_by_side():
    together = threading.Barrier(2, timeout=5)

    class Remote:
        is_remote, details = True, DETAILS

        def query(self, session, k, exclude_session, filter):
            together.wait()
            return Answer([], 0, session[0])

    backend = Backend(Remote(), Limits())

    async def ask_both():
        return await asyncio.gather(*(backend.recommend([name], 5, True, Filter())
                                      for name in ("one", "two")))

    assert [json.loads(answer)["reason"] for answer in asyncio.run(ask_both())] == ["one", "two"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_port(port):
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}")


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, message", [
    (["--engine", "milvus"], "needs the --uri"),
    (["--engine", "milvus", "--uri", "host:19530"], "neither an address"),
    (["--engine", "milvus", "--uri", "/no/where.db"], "no directory /no"),
    (["--engine", "milvus", "--uri", "x.db", "--collection", "a-b"], "letters"),
    (["--uri", "x.db"], "--engine milvus"),
    (["--engine", "milvus", "--uri", "http://127.0.0.1:1"], "cannot use Milvus at http://127")])
def test_flags_that_name_no_milvus(project, sample, tmp_path, capsys, flags, message):
    assert retrieve.main(["build", "--model_dir", str(project / "model"), "--data_dir",
                          str(sample), "--index_dir", str(tmp_path / "index"), *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "index").exists()


def test_without_pymilvus_it_says_what_to_install(project):
    with mock.patch.dict(sys.modules, {"pymilvus": None}):
        with pytest.raises(SetupError, match="pip install"):
            Index.open(str(project / "milvus"))


def test_the_collection_of_another_model_and_none(project, tmp_path, capsys):
    current = builds.current_build(str(project / "milvus"))
    before = engines.read_engine(current)
    try:
        for change, message in [({"collection": "ssr_gone"}, "has no collection ssr_gone"),
                                ({"dim": 16}, "does not hold what the model"),
                                ({"details": {**before["details"], "digest": "f" * 64}},
                                 "does not hold what the model")]:
            engines.write_engine(current, {**before, **change})
            with pytest.raises(StoreError, match=message):
                Index.open(str(project / "milvus"))
        for text in ("{", "[]", '{"engine": "other"}', json.dumps({**before, "engine": "x"})):
            with open(os.path.join(current, engines.FILE), "w") as file:
                file.write(text)
            with pytest.raises(StoreError, match="engine.json is damaged"):
                Index.open(str(project / "milvus"))
    finally:
        engines.write_engine(current, before)
    assert retrieve.main(["reindex", "--index_dir", str(project / "milvus")]) == 1
    assert "Milvus's own" in capsys.readouterr().err


def test_a_damaged_item_is_found(project, capsys):
    engine = engines.read_engine(builds.current_build(str(project / "milvus")))
    client = connect(engine["uri"])
    before = client.query(engine["collection"], filter=f"key == {key_of('n0003')}",
                          output_fields=["*"])
    try:
        client.upsert(engine["collection"], [{"key": key_of("n0003"), "bag": "no base64"}],
                      partial_update=True)
        assert retrieve.main(["check", "--index_dir", str(project / "milvus")]) == 1
        assert "item 'n0003' of the collection" in capsys.readouterr().out
    finally:
        client.upsert(engine["collection"], before)

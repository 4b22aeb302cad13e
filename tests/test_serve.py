"""The server: what it answers, what it refuses, what survives it, and its page in a browser."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.parse

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

import retrieve
import serve
import train
from ssr.errors import StoreError
from ssr.news.stream import Scoring
from ssr.retrieval import Index, clicks
from ssr.retrieval.rows import Row
from ssr.service.app import make_app
from ssr.service.limits import Limits

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIMITS = Limits(max_body=20_000, max_session=9, max_k=50, max_batch=5, max_ids=1000)


def make_index(directory, *flags):
    """Trains on the sample in the directory, builds its index."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        assert train.main(["--epochs", "1", "--embedding_dim", "8", "--hidden_size", "8",
                           "--model_dir", f"{directory}/model_output", *flags]) == 0
        assert retrieve.main(["build"]) == 0
    finally:
        os.chdir(before)


@pytest.fixture(scope="module", params=["content", "ids"])
def project(request, sample, tmp_path_factory):
    """A directory with an index: of a model with content, of one without."""
    path = tmp_path_factory.mktemp(request.param)
    for name in os.listdir(sample):
        (path / name).symlink_to(sample / name)
    content = ["--item_tokens", "item_tokens.txt"] if request.param == "content" else []
    make_index(str(path), *content)
    return path


content_only = pytest.mark.parametrize("project", ["content"], indirect=True)
ids_only = pytest.mark.parametrize("project", ["ids"], indirect=True)


@pytest.fixture
def index_dir(project, tmp_path):
    """A copy of the index for a test of its own."""
    return shutil.copytree(project / "index", tmp_path / "index")


@pytest.fixture
def client(index_dir):
    with Index.open(str(index_dir), writable=True) as index:
        with TestClient(make_app(index, LIMITS)) as client:
            client.index = index
            yield client


def recommend(client, *session, **options):
    response = client.post("/recommend", json={"session": session, **options})
    assert response.status_code == 200, response.text
    return response.json()


def ids_of(answer):
    return [hit["id"] for hit in answer["hits"]]


def sources_of(answer):
    return [hit["source"] for hit in answer["hits"]]


def problem_of(response, status):
    """(the path to the field, the message) of a refusal."""
    assert response.status_code == status, response.text
    problem = response.json()["detail"][0]
    return "/".join(map(str, problem["loc"])), problem["msg"]


@pytest.fixture
def live_client(index_dir, enough_clicks):
    """With an index that takes clicks in and ranks by their number."""
    scoring = Scoring().without("readers", "content", "transitions")
    with Index.open(str(index_dir), writable=True, scoring=scoring) as index:
        with TestClient(make_app(index, LIMITS, token="secret")) as client:
            client.headers["Authorization"] = "Bearer secret"
            yield client


# --- reading --------------------------------------------------------------------------------------


def test_recommendations_are_those_of_the_index(client):
    answer = recommend(client, "n0015", "nobody", "n0003", k=7)
    expected = client.index.query(["n0015", "nobody", "n0003"], 7)
    assert answer == {"hits": [hit._asdict() for hit in expected.hits], "skipped": 1, "reason": ""}
    with_session = recommend(client, "n0015", "n0003", k=50, exclude_session=False)
    assert {"n0015", "n0003"} <= set(ids_of(with_session))
    assert len(recommend(client, "n0015")["hits"]) == 20
    for session, reason in (([], "the session is empty"), (["谁"], "none of its items is known")):
        answer = recommend(client, *session)
        assert {hit["source"] for hit in answer["hits"]} == {"popular"}
        assert answer["skipped"] == len(session)
        assert answer["reason"] == f"{reason}: these are read most in training"


def test_a_batch_is_its_sessions(client):
    sessions = [["n0015"], [], ["n0003", "n0004"]]
    response = client.post("/recommend/batch", json={"sessions": sessions, "k": 3})
    assert [ids_of(answer) for answer in response.json()["answers"]] == [
        ids_of(recommend(client, *session, k=3)) for session in sessions]


def test_filters_and_similar_items(client):
    everything = ids_of(recommend(client, "n0015", k=50))
    assert ids_of(recommend(client, "n0015", candidates=everything[3:9] + ["nobody"],
                            exclude=[everything[4]], k=4)) == [everything[3], *everything[5:8]]
    for id, section in zip(everything, "aabbc"):
        assert client.put(f"/items/{id}", json={"fields": {"section": section}}).status_code == 200
    some = {"only": ["section:a", "section:b"], "max_age": 60, "at_most": {"section": 1}}
    answer = recommend(client, "n0015", **some)
    assert {id in everything[:2] for id in ids_of(answer)} == {True, False}
    assert len(answer["hits"]) == 2
    many = client.post("/recommend/batch", json={"sessions": [["n0015"]], **some}).json()
    assert many["answers"] == [answer]
    assert recommend(client, "n0015", candidates=[]) == {
        "hits": [], "skipped": 0, "reason": "no other item passes the filter"}
    nearest = client.post("/similar", json={"item": "n0015", "k": 3, "without": ["section:a"]})
    assert not set(ids_of(nearest.json())) & set(everything[:2])
    similar = client.get("/similar", params={"item": "n0015", "k": 4}).json()
    assert similar["hits"] == [hit._asdict() for hit in client.index.similar(["n0015"], 4)[0].hits]
    assert client.get("/similar", params={"item": "nobody"}).json()["reason"]
    for body, field in (({"only": ["sports"]}, "body"), ({"candidates": "n0015"}, "candidates"),
                        ({"at_most": {"section": 0}}, "at_most"), ({"max_age": -1}, "max_age"),
                        ({"exclude": ["a"] * 1001}, "exclude")):
        response = client.post("/recommend", json={"session": [], **body})
        assert field in problem_of(response, 422)[0]


def browse(client, **query):
    response = client.get("/items", params=query)
    assert response.status_code == 200 and response.json()["complete"]
    return response.json()["items"]


def test_items_are_found_by_their_text_and_id(client):
    everything = browse(client, limit=50)
    assert len(everything) == client.index.size()[1] or len(everything) == 50
    word, other = everything[0]["text"].split()[:2]
    found = browse(client, search=f"{word.upper()} {other}", limit=50)
    assert found and all(word in item["text"] and other in item["text"] for item in found)
    assert [item["id"] for item in browse(client, search=everything[3]["id"])] == [
        everything[3]["id"]]
    for nothing in ("%", "_", "\\", "no such word"):
        assert browse(client, search=nothing) == []
    assert problem_of(client.get("/items", params={"limit": 51}), 422)[0] == "query/limit"
    assert problem_of(client.get("/items", params={"search": "a" * 201}), 422)[0] == "query/search"


def test_what_changed_last_is_listed_first(client):
    id = browse(client)[-1]["id"]
    client.delete(f"/items/{id}")
    assert id not in [item["id"] for item in browse(client, limit=50)]
    client.put(f"/items/{id}", json={"text": "100% new_"})
    assert browse(client, limit=1) == [{"id": id, "text": "100% new_"}]
    assert browse(client, search="0% w_") == browse(client, limit=1)


def test_browsing_ends_in_time(client):
    found, complete = client.index.browse(["a"], 1000, seconds=-1)
    # SQLite looks at the clock after some thousand steps: what it has found by then is kept.
    assert complete or len(found) < client.index.size()[1]


def test_health_and_description(client):
    health = client.get("/healthz").json()
    assert health["status"] == "ok" and health["max_k"] == 50 and not health["needs_token"]
    assert health["model"].startswith("model_output/epoch_1 ")
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/recommend", "/recommend/batch", "/similar", "/items", "/items/{id}", "/items/delete",
            "/reload", "/healthz", "/metrics"} == set(paths)


def test_metrics(client):
    recommend(client, "n0015")
    client.post("/recommend", json={"k": 0, "session": []})
    client.delete("/items/nobody")
    client.request("BREW", "/items")
    client.get("/nowhere")
    items, candidates = client.index.size()
    counts = client.index.counts()
    assert (items, candidates) == (counts["items"], counts["candidates"])
    lines = client.get("/metrics").text.splitlines()
    for line in ('ssr_requests_total{method="POST",route="/recommend",status="200"} 1.0',
                 'ssr_requests_total{method="POST",route="/recommend",status="422"} 1.0',
                 'ssr_requests_total{method="DELETE",route="/items/{id:path}",status="404"} 1.0',
                 'ssr_requests_total{method="GET",route="none",status="404"} 1.0',
                 'ssr_request_seconds_count{method="POST",route="/recommend"} 2.0',
                 f"ssr_items {items}.0", f"ssr_candidates {candidates}.0"):
        assert line in lines
    assert "BREW" not in "".join(lines)


# --- writing --------------------------------------------------------------------------------------


def test_an_item_is_removed_and_comes_back(client):
    best = recommend(client, "n0015")["hits"][0]
    assert client.delete(f"/items/{best['id']}").json() == {"removed": 1, "unknown": []}
    assert best["id"] not in ids_of(recommend(client, "n0015", k=50))
    assert problem_of(client.delete(f"/items/{best['id']}"), 404)[0] == "path/id"
    added = client.put(f"/items/{best['id']}", json={"text": "回来了"})
    assert added.json() == {"new": 1, "replaced": 0, "without_vector": []}
    assert client.index.size()[1] == client.index.counts()["candidates"]
    again = recommend(client, "n0015", k=50)["hits"]
    assert "回来了" in [hit["text"] for hit in again]
    assert client.put(f"/items/{best['id']}", json={"text": "b"}).json()["replaced"] == 1


def test_batches_are_written_as_a_whole(client):
    first, second = ids_of(recommend(client, "n0015"))[:2]
    removed = client.post("/items/delete", json=[first, "nobody", second]).json()
    assert removed == {"removed": 2, "unknown": ["nobody"]}
    added = client.put("/items", json=[{"id": first, "text": "a"}, {"id": second, "text": "b"}])
    assert added.json() == {"new": 2, "replaced": 0, "without_vector": []}
    change = client.index.change
    bad = [{"id": first, "text": "c"}, {"id": "a\tb", "text": ""}]
    assert problem_of(client.put("/items", json=bad), 422)[0] == "body/1/id"
    assert client.index.change == change


@content_only
def test_a_fresh_item_is_found_by_the_next_query(client):
    text = recommend(client, "n0015")["hits"][0]["text"]
    added = client.put("/items/fresh", json={"text": text, "fields": {"section": ["a", 7]}})
    assert added.json() == {"new": 1, "replaced": 0, "without_vector": []}
    assert "fresh" in ids_of(recommend(client, "n0015", k=50))
    assert recommend(client, "fresh")["skipped"] == 0
    added = client.put("/items/empty", json={"text": "qqqq"})
    assert added.json() == {"new": 0, "replaced": 0, "without_vector": ["empty"]}


@ids_only
def test_a_model_without_content_says_that_it_takes_nothing_fresh(client):
    field, message = problem_of(client.put("/items/fresh", json={"text": "a"}), 422)
    assert "fresh: the model was trained without content" in message
    assert not client.get("/healthz").json()["takes_fresh"]


@pytest.mark.slow
@content_only
def test_any_id_fits_into_a_path(server):
    """To a real server: the test client takes %25 apart twice."""
    text = recommend(server.client, "n0015")["hits"][0]["text"]
    for id in ("a/b", "/a", "a//b/", "中文/标题", "a%2Fb", "a b?c#d", "delete", "é+", "..",
               "a/../b"):
        path = "/items/" + urllib.parse.quote(id, safe="").replace(".", "%2E")
        assert server.client.put(path, json={"text": text}).status_code == 200
        listed = server.client.get("/items", params={"limit": 1}).json()["items"]
        assert [item["id"] for item in listed] == [id]
        assert server.client.delete(path).json() == {"removed": 1, "unknown": []}


@pytest.mark.parametrize("path", ["%FF", "a%00b", "a%09", "%ED%A0%80", ""])
def test_what_is_no_id_is_refused_in_a_path(client, path):
    for response in (client.put(f"/items/{path}", json={}), client.delete(f"/items/{path}")):
        assert problem_of(response, 422)[0] == "path/id"


# --- clicks ---------------------------------------------------------------------------------------


@ids_only
def test_clicks_rank_the_next_answer(live_client):
    client = live_client
    for body in ({"session": "a", "item": "n0015"}, {"session": "b", "item": "fresh"},
                 {"session": "c", "item": "fresh", "time": time.time() - 5}):
        assert client.post("/clicks", json=body).json() == {"clicks": 1}
    assert ids_of(recommend(client, "n0001", k=2)) == ["fresh", "n0015"]
    more = [{"session": str(number), "item": "n0015"} for number in range(5)]
    assert client.post("/clicks/batch", json=more).json() == {"clicks": 5}
    assert ids_of(recommend(client, k=2)) == ["n0015", "fresh"]
    # An article that is withdrawn is gone from the next answer.
    assert client.delete("/items/fresh").status_code == 200
    assert "fresh" not in ids_of(recommend(client, k=50))
    assert client.put("/items/fresh", json={"text": "back"}).status_code == 200
    assert "fresh" in ids_of(recommend(client, k=2))


@ids_only
def test_what_no_click_can_be(live_client):
    for body, field in (({"session": "a"}, "body/item"), ({"item": "a"}, "body/session"),
                        ({"session": 1, "item": "a"}, "body/session"),
                        ({"session": "\ud800", "item": "a"}, "body/session"),
                        ({"session": "a", "item": "a\tb"}, "body/item"),
                        ({"session": "a", "item": "a", "time": -1}, "body/time"),
                        ({"session": "a", "item": "a", "time": 1e300}, "body"),
                        ({"session": "a", "item": "a", "when": 1}, "body/when")):
        content = json.dumps(body).encode()
        response = live_client.post("/clicks", content=content,
                                    headers={"Content-Type": "application/json"})
        assert problem_of(response, 422)[0].startswith(field), body
    many = [{"session": "a", "item": "b"}] * 6
    assert problem_of(live_client.post("/clicks/batch", json=many), 422)[0] == "body"
    live_client.headers.pop("Authorization")
    assert live_client.post("/clicks", json=many[0]).status_code == 401
    assert "live" not in sources_of(recommend(live_client))


def metric(client, name):
    """The number behind a name in /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).split()[1])


@ids_only
def test_a_time_may_lag_and_never_leads(live_client):
    client = live_client
    for number in range(100):
        click = {"session": f"s{number}", "item": "n0015"}
        assert client.post("/clicks", json=click).status_code == 200
    for session in ("x", "y"):
        ahead = {"session": session, "item": "n0003", "time": time.time() + 86340}
        assert client.post("/clicks", json=ahead).json() == {"clicks": 1}
    # The clock of two clients evicts nothing and lifts nothing.
    assert ids_of(recommend(client, k=2)) == ["n0015", "n0003"]
    assert metric(client, "ssr_clicks_ahead_total") == 2

    age = client.get("/healthz").json()["candidate_age"]
    late = {"session": "z", "item": "n0001", "time": time.time() - age + 60}
    assert client.post("/clicks", json=late).json() == {"clicks": 1}
    for long_ago in (0, time.time() - age - 60):
        click = {"session": "z", "item": "n0004", "time": long_ago}
        assert "too long ago" in problem_of(client.post("/clicks", json=click), 422)[1]
    # Of a batch with such a click nothing is taken.
    batch = [{"session": "z", "item": "n0005"}, click]
    assert problem_of(client.post("/clicks/batch", json=batch), 422)[0] == "body"
    answer = recommend(client, k=9)
    assert set(ids_of(answer)[:3]) == {"n0015", "n0003", "n0001"}
    assert sources_of(answer) == ["live"] * 3 + ["popular"] * 6
    assert answer["reason"] == "the session is empty: these are read most now"


@ids_only
def test_clicks_wait_for_a_locked_disk_and_are_refused_when_too_many_do(
        index_dir, live_client, monkeypatch, caplog):
    """Another process holds the database: what is acknowledged meanwhile is there in the end."""
    client, taken = live_client, 0
    monkeypatch.setattr(clicks, "MAX_BACKLOG", 20)
    assert client.get("/healthz").json()["click_backlog"] == 0
    with contextlib.closing(sqlite3.connect(index_dir / "clicks.sqlite",
                                            isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(30):
            response = client.post("/clicks", json={"session": f"s{number}", "item": "n0015"})
            if response.status_code == 503:
                break
            taken += response.json()["clicks"]
        assert 0 < taken < 30
        for _ in range(20):
            refused = client.post("/clicks", json={"session": "late", "item": "n0003"})
            assert "wait" in problem_of(refused, 503)[1]
        assert client.get("/healthz").json()["click_backlog"] == taken
        assert metric(client, "ssr_click_backlog") == taken
        assert len([record for record in caplog.records if "wait" in record.message]) < 5
        other.execute("ROLLBACK")
    deadline = time.monotonic() + 30
    while client.get("/healthz").json()["click_backlog"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with contextlib.closing(sqlite3.connect(index_dir / "clicks.sqlite")) as other:
        items = [item for item, in other.execute("SELECT item FROM clicks")]
    assert items == ["n0015"] * taken
    assert client.post("/clicks", json={"session": "z", "item": "n0003"}).status_code == 200


def test_an_index_that_is_not_live_takes_no_clicks(client):
    assert client.post("/clicks", json={"session": "a", "item": "n0001"}).status_code == 404


def test_writing_takes_the_token_where_there_is_one(index_dir):
    with Index.open(str(index_dir), writable=True) as index:
        with TestClient(make_app(index, LIMITS, "секрет")) as client:
            id = ids_of(recommend(client, "n0015"))[0]
            for method, path, body in (("PUT", f"/items/{id}", {}), ("PUT", "/items", []),
                                       ("DELETE", f"/items/{id}", None),
                                       ("POST", "/items/delete", [id])):
                for sent in (None, b"Bearer wrong", b"Bearer", b"Basic \xff", b"Bearer \xff"):
                    headers = {} if sent is None else {"Authorization": sent}
                    response = client.request(method, path, json=body, headers=headers)
                    assert response.status_code == 401
                    assert response.headers["WWW-Authenticate"] == "Bearer"
                headers = {"Authorization": "Bearer секрет".encode()}
                assert client.request(method, path, json=body, headers=headers).status_code == 200


# --- limits and nonsense --------------------------------------------------------------------------


@pytest.mark.parametrize("body, field", [
    ({"session": ["a"] * 10}, "body/session"),
    ({"session": ["n0001"], "k": 51}, "body/k"),
    ({"session": ["n0001"], "k": 0}, "body/k"),
    ({"session": ["n0001"], "k": True}, "body/k"),
    ({"session": ["n0001"], "k": "5"}, "body/k"),
    ({"session": ["n0001"], "k": 10 ** 400}, "body/k"),
    ({"session": ["n0001"], "k": float("nan")}, "body/k"),
    ({"session": ["n0001"], "exclude_session": 1}, "body/exclude_session"),
    ({"session": ["n0001", 7]}, "body/session/1"),
    ({"session": ["a\nb"]}, "body/session/0"),
    ({"session": [""]}, "body/session/0"),
    ({"session": "n0001"}, "body/session"),
    ({"session": None}, "body/session"),
    ({"session": [], "K": 5}, "body/K"),
    ({"session": [], "\ud800": 5}, "body"),
    ({"session": ["\ud800"]}, "body"),
    ({}, "body/session"),
    ([], "body"),
])
def test_a_wrong_field_is_named(client, body, field):
    response = client.post("/recommend", content=json.dumps(body),
                           headers={"Content-Type": "application/json"})
    assert problem_of(response, 422)[0].startswith(field)


@pytest.mark.parametrize("content, field", [
    ({"text": 7}, "body/text"), ({"text": None}, "body/text"), ({"fields": []}, "body/fields"),
    ({"fields": {"a:b": "c"}}, "body/fields"), ({"fields": {" ": "c"}}, "body/fields"),
    ({"fields": {"a": {}}}, "body/fields/a"), ({"fields": {"a": [None]}}, "body/fields/a"),
    ({"fields": {"a": 1.5}}, "body/fields/a"), ({"fields": {"a": 10 ** 300}}, "body/fields/a"),
    ({"fields": {"a": "\ud800"}}, "body"), ({"text": "\ud800"}, "body"),
    ({"title": "a"}, "body/title")])
def test_a_wrong_item_is_named(client, content, field):
    response = client.put("/items/n0001", content=json.dumps(content),
                          headers={"Content-Type": "application/json"})
    assert problem_of(response, 422)[0].startswith(field)


def test_limits_of_batches(client):
    for method, path, body, field in (
            ("POST", "/recommend/batch", {"sessions": [[]] * 6}, "body/sessions"),
            ("POST", "/recommend/batch", {"sessions": [[], ["a"] * 10]}, "body/sessions/1"),
            ("PUT", "/items", [{"id": "a", "text": ""}] * 6, "body"),
            ("POST", "/items/delete", ["a"] * 6, "body")):
        assert problem_of(client.request(method, path, json=body), 422)[0] == field


def test_a_text_is_bounded(index_dir):
    with Index.open(str(index_dir), writable=True) as index:
        with TestClient(make_app(index, LIMITS._replace(max_text=30))) as client:
            assert client.put("/items/n0001", json={"text": "字" * 10}).status_code == 200
            long = {"text": "字" * 10 + "a"}
            where, message = problem_of(client.put("/items/n0001", json=long), 422)
            assert where == "body/text" and "31 bytes in UTF-8, at most 30" in message
            batch = [{"id": "n0001"}, {"id": "n0002", **long}]
            assert problem_of(client.put("/items", json=batch), 422)[0] == "body/1/text"
            assert "字字" in str(browse(client, search="n0001"))


def test_an_answer_is_bounded(index_dir):
    with Index.open(str(index_dir), writable=True) as index:
        one = json.dumps(recommend(TestClient(make_app(index, LIMITS)), "n0015", k=9),
                         ensure_ascii=False, separators=(",", ":"))
        limit = len(one.encode()) * 2 + len('{"answers":[,]}')
        app = make_app(index, LIMITS._replace(max_answer=limit))
        with TestClient(app) as client:
            def batch(number):
                return client.post("/recommend/batch",
                                   json={"sessions": [["n0015"]] * number, "k": 9})

            assert len(batch(2).content) == limit
            assert f"more than {limit} bytes" in problem_of(batch(3), 422)[1]
            assert batch(1).status_code == batch(0).status_code == 200
            assert problem_of(client.post("/recommend", json={"session": ["n0015"], "k": 50}),
                              422)[0] == "body"
            assert problem_of(client.get("/items", params={"limit": 50}), 422)[0] == "query"


@ids_only
def test_a_batch_over_long_articles_stays_within_bounds(index_dir):
    """Articles of a megabyte, as versions that did not bound a text have taken them."""
    limits = LIMITS._replace(max_batch=256, max_answer=4_000_000)
    with Index.open(str(index_dir), writable=True) as index:
        items = index.store.items.find([hit.id for hit in index.query(["n0015"], 50).hits])
        index.store.put([Row(id, id[-1] * 10 ** 6, item.bag, index.store.items.vector(item.key))
                         for id, item in items.items()])
        with TestClient(make_app(index, limits)) as client:
            sessions = [[id] for id in items] * 5
            tracemalloc.start()
            try:
                response = client.post("/recommend/batch", json={"sessions": sessions, "k": 2})
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert response.status_code == 422 and "more than 4000000 bytes" in response.text
            assert peak < 15e6  # 9e6; 23e6 with the articles of all sessions at a time
            two = {"sessions": sessions[:1], "k": 2}
            assert len(client.post("/recommend/batch", json=two).content) > 1_000_000


def test_long_bodies_are_refused_announced_or_not(client):
    body = b'{"session": ["' + b"a" * 20_000 + b'"]}'
    headers = {"Content-Type": "application/json"}

    def chunks():
        for start in range(0, len(body), 100):
            yield body[start:start + 100]

    for content in (body, chunks()):
        response = client.post("/recommend", content=content, headers=headers)
        assert problem_of(response, 413) == ("body", "more than 20000 bytes")
    fits = body.replace(b"a" * 1000, b"", 1)
    assert client.post("/recommend", content=fits, headers=headers).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"nul", b"\xff\xfe", b"\x00", b"[" * 9000, b'"',
                                  b'{"k": ' + b"9" * 5000 + b"}", '{"a"}'.encode("utf-16")])
def test_what_is_not_json_is_refused(client, body):
    for method, path in (("POST", "/recommend"), ("POST", "/recommend/batch"), ("PUT", "/items"),
                         ("PUT", "/items/n0001"), ("POST", "/items/delete")):
        response = client.request(method, path, content=body,
                                  headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), response.text


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded",
                                  "application/jsonp"])
def test_a_page_of_another_site_cannot_write(client, kind):
    """Without asking first, a browser sends such types only, and none of them is taken."""
    response = client.post("/items/delete", content=b'["n0001"]',
                           headers={} if kind is None else {"Content-Type": kind})
    assert problem_of(response, 415)[0] == "header/content-type"


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("LocalHost:8000", 200), ("a.localhost:1", 200), ("127.0.0.1:8000", 200),
    ("[::1]:8000", 200), ("[::1]", 200), ("192.168.1.5", 200), ("news.example.com", 200),
    ("evil.example", 421), ("evil.example:8000", 421), ("localhost.evil.example", 421),
    ("news.example.com.evil.example", 421), ("127.0.0.1.evil.example", 421),
    ("evil.example:localhost", 421), ("localhost@evil.example", 421), ("", 421), ("[::1", 421),
    ("xlocalhost", 421), ("\xff", 421)])
def test_only_hosts_that_are_served(client, host, status):
    """A page whose own name leads here (DNS rebinding) can neither write nor read."""
    app = make_app(client.index, LIMITS, allowed_hosts=["localhost", "*.localhost",
                                                        "News.example.com"])
    with TestClient(app) as guarded:
        for method, path, body in (("POST", "/recommend", {"session": []}), ("GET", "/", None),
                                   ("GET", "/metrics", None), ("PUT", "/items", [])):
            response = guarded.request(method, path, json=body, headers={"Host": host.encode()})
            assert response.status_code == status
            if status != 200:
                assert problem_of(response, 421)[0] == "header/host"


def test_hosts_by_default():
    def hosts(*argv):
        args = serve.make_parser().parse(argv)
        args.token = args.token or ""
        return set(serve.hosts_of(args))

    assert hosts() == {"localhost", "*.localhost", "127.0.0.1"}
    assert hosts("--host", "news") == {"localhost", "*.localhost", "news"}
    assert hosts("--token", "secret") == set()  # what another page lacks is the token
    assert hosts("--token", "secret", "--allowed_hosts", "a", "b") == {"a", "b"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    | st.sampled_from(["n0001", "n0015", "\ud800", "a\0", 10 ** 30]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["session", "sessions", "k", "exclude_session", "id", "text", "fields",
                         "\udc00"]) | st.text(), inner, max_size=5), max_leaves=20)


@pytest.mark.fuzz
@settings(deadline=None, max_examples=150)
@given(body=JSON, route=st.sampled_from([
    ("POST", "/recommend"), ("POST", "/recommend/batch"), ("PUT", "/items/n0001"),
    ("PUT", "/items"), ("POST", "/items/delete")]))
def test_no_json_is_an_error_of_the_server(fuzzed, body, route):
    response = fuzzed.request(*route, content=json.dumps(body).encode(),
                              headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 422)
    if response.status_code == 422:
        assert response.json()["detail"][0]["loc"]


@pytest.mark.fuzz
@settings(deadline=None, max_examples=80)
@given(path=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
       query=st.text(max_size=9), method=st.sampled_from(["PUT", "DELETE", "GET", "POST"]))
def test_no_path_is_an_error_of_the_server(fuzzed, path, query, method):
    path = "/items/" + urllib.parse.quote(path, safe="")
    response = fuzzed.request(method, path, params={"search": query.encode("utf-8", "replace")},
                              json={} if method in ("PUT", "POST") else None)
    assert response.status_code < 500


@pytest.fixture(scope="module")
def fuzzed(project, tmp_path_factory):
    """A client that a whole property shares."""
    path = shutil.copytree(project / "index", tmp_path_factory.mktemp("fuzzed") / "index")
    with Index.open(str(path), writable=True) as index:
        with TestClient(make_app(index, LIMITS)) as client:
            yield client


def test_a_store_that_fails_is_no_crash(client, monkeypatch):
    def full(*_):
        raise StoreError("the disk is full")
    monkeypatch.setattr(client.index, "remove", full)
    assert problem_of(client.delete("/items/n0015"), 503)[1] == "the disk is full"
    assert recommend(client, "n0015")["hits"]


def test_no_page_needs_another_host(client):
    description = client.get("/docs")
    assert description.status_code == 200
    paths = re.findall(r'(?:src|href)="([^"]*)"', description.text)
    assert [path for path in paths if path != "data:,"]
    for path in paths:
        assert not re.match(r"(https?:)?//", path)
        assert path == "data:," or client.get(path).status_code == 200
    assert client.get("/redoc").status_code == 404


def test_page_allows_nothing_but_itself(client):
    response = client.get("/")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert len(re.findall("'sha256-", policy)) == 2
    assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write", response.text)


# --- the process ----------------------------------------------------------------------------------


class Server:
    """serve.py in a process of its own."""

    def __init__(self, index_dir, *flags, files=None, **environment):
        """files: how many it may have open"""
        limited = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"] if files else []
        self.process = subprocess.Popen(
            [*limited, sys.executable, os.path.join(ROOT, "serve.py"), "--index_dir",
             str(index_dir), "--port", "0", *flags], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
            env={**os.environ, "SSR_TOKEN": "", **environment})
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.url = line.split(" on ")[1].strip()
        self.client = httpx.Client(base_url=self.url)

    def end(self, number=signal.SIGTERM):
        """(exit code, standard error) after a signal."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture
def server(index_dir):
    server = Server(index_dir)
    yield server
    server.client.close()
    server.process.kill()
    server.process.communicate()


def run_serve(*argv):
    return subprocess.run([sys.executable, os.path.join(ROOT, "serve.py"), *map(str, argv)],
                          capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@ids_only
def test_sigterm_ends_it_in_good_order(server, index_dir):
    ids = ids_of(recommend(server.client, "n0015"))
    assert server.client.delete(f"/items/{ids[0]}").status_code == 200
    assert server.end() == (0, "")
    with Index.open(str(index_dir), writable=True) as index:
        assert ids[0] not in [hit.id for hit in index.query(["n0015"], 50).hits]


@pytest.mark.slow
@ids_only
def test_a_port_and_an_index_have_one_server(server, index_dir, tmp_path):
    port = server.url.rsplit(":", 1)[1]
    for argv, message in ((["--port", port], f"cannot listen on 127.0.0.1 port {port}: Address"),
                          (["--port", 0], "has .* open for writing"),
                          (["--port", 0, "--index_dir", tmp_path / "none"], "there is no index in"),
                          (["--host", "no.such.host.invalid"], "cannot listen on no.such.host")):
        ended = run_serve("--index_dir", index_dir, *argv)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        error, = [line for line in ended.stderr.splitlines() if "error:" in line]
        assert re.search(message, error)


@pytest.mark.slow
@ids_only
def test_acknowledged_changes_survive_a_kill(index_dir):
    """Several clients write until the server is killed: the last change of each that was
    acknowledged is there, or the one that was under way."""
    with Index.open(str(index_dir)) as index:
        ids = [hit.id for hit in index.query(["n0015"], 6).hits]
    acknowledged = 0
    for wait in (0.05, 0.2, 0.5):
        server = Server(index_dir)
        said = {id: [None, None] for id in ids}  # acknowledged, under way

        def change(id):
            with httpx.Client(base_url=server.url) as client:
                for number in range(10 ** 6):
                    text = None if number % 3 == 2 else f"{wait} {number}"
                    said[id][1] = ("is", text)
                    if text is None:
                        response = client.delete(f"/items/{id}")
                    else:
                        response = client.put(f"/items/{id}", json={"text": text})
                    assert response.status_code == 200
                    said[id][0] = ("is", text)

        def run(id):
            with pytest.raises(httpx.TransportError):
                change(id)

        threads = [threading.Thread(target=run, args=(id,)) for id in ids]
        for thread in threads:
            thread.start()
        while not all(last for last, _ in said.values()):
            time.sleep(0.01)
        time.sleep(wait)
        server.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
        with Index.open(str(index_dir)) as index:
            found = {hit.id: hit.text for hit in index.query(["n0015"], 60).hits}
        for id, states in said.items():
            assert ("is", found.get(id)) in states
            acknowledged += 1
    assert acknowledged == 18


@pytest.mark.slow
@content_only
def test_readers_beside_writers(server):
    """No request fails, and what was acknowledged is seen by the next query."""
    text = recommend(server.client, "n0015")["hits"][0]["text"]
    failures, done = [], threading.Event()

    def read():
        with httpx.Client(base_url=server.url) as client:
            while not done.is_set():
                response = client.post("/recommend", json={"session": ["n0015"], "k": 50})
                if response.status_code != 200 or len(response.json()["hits"]) != 50:
                    failures.append(response.text)

    def write(id):
        with httpx.Client(base_url=server.url) as client:
            for number in range(20):
                for present in (True, False):
                    response = client.put(f"/items/{id}", json={"text": text}) if present else \
                        client.delete(f"/items/{id}")
                    found = id in ids_of(recommend(client, "n0015", k=50))
                    if response.status_code != 200 or found != present:
                        failures.append((id, number, present, response.text))

    readers = [threading.Thread(target=read) for _ in range(3)]
    writers = [threading.Thread(target=write, args=(f"fresh/{number}",)) for number in range(3)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures


@pytest.mark.slow
@ids_only
def test_chunked_body_over_a_socket(server):
    """Without a length, and without an end: refused once it is too long."""
    host, port = server.url.split("//")[1].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                           b"application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert recommend(server.client, "n0015")["hits"]


def connect(server):
    host, port = server.url.split("//")[1].split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def is_ended(connection, seconds):
    """Whether the server ends the connection within so many seconds."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
        return True
    except ConnectionError:
        return True
    except socket.timeout:
        return False


@pytest.mark.slow
@ids_only
def test_silent_connections_do_not_stop_it(index_dir):
    """More of them than files that it may open."""
    server = Server(index_dir, "--timeout", "3", files=1024)
    connections = []
    try:
        for _ in range(1100):
            connections.append(connect(server))
        # One too many is told so at once.
        refused = connections[-1].recv(100)
        assert refused.startswith(b"HTTP/1.1 503") or not refused
        time.sleep(4.5)
        assert recommend(server.client, "n0015")["hits"]
        assert metric(server.client, "ssr_connections") < 10
        assert metric(server.client, "ssr_connections_refused_total") == 1100 - 512
        assert is_ended(connections[0], 1)
    finally:
        for connection in connections:
            connection.close()
        code, errors = server.end()
    assert code == 0 and len(errors) < 1000 and "512 connections are open" in errors


@pytest.mark.slow
@ids_only
def test_slow_clients_are_not_waited_for(index_dir):
    """Those that send nothing, half a head, half a body, either of them bit by bit, or that do not
    read their answer."""
    server = Server(index_dir, "--timeout", "2")
    head = (b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n")
    try:
        slow = [connect(server) for _ in range(6)]
        silent, half_head, half_body, dripping_head, dripping_body, after_an_answer = slow
        half_head.sendall(head)
        half_body.sendall(head + b"\r\n{")
        dripping_body.sendall(head + b"\r\n")
        dripping_head.sendall(b"GET /healthz HTTP/1.1\r\nX-Header: ")
        after_an_answer.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert after_an_answer.recv(100).startswith(b"HTTP/1.1 200")
        after_an_answer.sendall(b"GET /healthz HTTP/1.1\r\n")
        begin = time.monotonic()
        while time.monotonic() < begin + 4.5:
            for connection in (dripping_head, dripping_body):
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b" ")
            time.sleep(0.1)
        assert all(is_ended(connection, 0.5) for connection in slow)
        assert metric(server.client, "ssr_connections") == 1
        # A client that takes its time is not slow.
        with connect(server) as patient:
            for part in (head, b"\r\n", b'{"session": []', b" " * 985 + b"}"):
                patient.sendall(part)
                time.sleep(0.4)
            assert patient.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        assert server.end() == (0, "")


@pytest.mark.slow
@ids_only
def test_what_is_no_http_does_not_fill_the_log(server):
    for _ in range(50):
        with connect(server) as connection:
            connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert metric(server.client, "ssr_invalid_requests_total") == 50
    code, errors = server.end()
    assert code == 0 and 1 <= errors.count("Invalid HTTP request") <= 2


@pytest.mark.slow
@ids_only
def test_half_a_body_changes_nothing(server, index_dir):
    """Even if it could be taken for a whole one."""
    id = list_ids(index_dir)[0]
    body = json.dumps([id]).encode()
    with connect(server) as connection:
        connection.sendall(b"POST /items/delete HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                           b"application/json\r\nContent-Length: 1000\r\n\r\n" + body)
        time.sleep(0.3)
    time.sleep(0.3)
    assert server.client.get("/healthz").json()["change"] == 1
    assert [item["id"] for item in browse(server.client, search=id)] == [id]
    assert server.end() == (0, "")


@pytest.mark.slow
@ids_only
def test_an_answer_that_nobody_reads_is_given_up(index_dir):
    ids = list_ids(index_dir)
    server = Server(index_dir, "--timeout", "2")
    try:
        server.client.put("/items", json=[{"id": id, "text": "x" * 10_000} for id in ids])
        body = json.dumps({"sessions": [ids[:1]] * 40, "k": 30}).encode()
        with connect(server) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(b"POST /recommend/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                         b"application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            assert deaf.recv(1) == b"H"
            time.sleep(4.5)
            assert metric(server.client, "ssr_connections") == 1
    finally:
        assert server.end() == (0, "")


def list_ids(index_dir):
    with Index.open(str(index_dir)) as index:
        return [hit.id for hit in index.query(["n0015"], 50).hits]


@pytest.mark.slow
@ids_only
def test_too_few_files_for_the_connections(index_dir):
    ended = run_serve("--index_dir", index_dir, "--port", 0, "--max_connections", 10 ** 9)
    assert ended.returncode == 1
    assert "--max_connections may be" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.slow
@ids_only
def test_another_name_is_refused_by_a_server_without_a_token(index_dir):
    for token, status in (("", 421), ("secret", 200)):
        server = Server(index_dir, SSR_TOKEN=token)
        try:
            response = server.client.post("/recommend", json={"session": ["n0015"]},
                                          headers={"Host": "evil.example"})
            assert response.status_code == status
            assert recommend(server.client, "n0015")["hits"]
        finally:
            assert server.end()[0] == 0


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.mark.slow
@ids_only
def test_description_in_a_browser_without_a_network(server, browser):
    page = browser.new_page()
    page.set_default_timeout(10_000)
    others = []

    def route(route):
        if route.request.url.startswith((server.url, "data:")):
            route.continue_()
        else:
            others.append(route.request.url)
            route.abort()

    page.route("**/*", route)
    page.goto(server.url + "/docs")
    page.get_by_text("/recommend/batch", exact=True).first.click()
    page.wait_for_selector("text=Try it out")
    assert not others


@pytest.mark.slow
@ids_only
def test_page_in_the_language_of_the_browser(server, browser):
    from playwright.sync_api import expect

    page = browser.new_page(locale="zh-CN")
    page.set_default_timeout(10_000)
    page.goto(server.url)
    expect(page.locator("h1")).to_have_text("接下来读什么")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    page.locator("#articles button").first.click()
    expect(page.locator("#answer")).to_contain_text("点击 1 次之后")
    # What was chosen stays.
    page.click("#language")
    expect(page.locator("h1")).to_have_text("What to read next")
    expect(page.locator("#answer")).to_contain_text("After 1 click")
    page.reload()
    expect(page.locator("h1")).to_have_text("What to read next")


@pytest.mark.slow
@content_only
def test_page_in_a_browser(index_dir, browser):
    server = Server(index_dir, SSR_TOKEN="секрет")
    try:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(10_000)
        complaints, others = [], []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text)
                if "Content Security" in message.text else None)
        page.on("request", lambda request: None if request.url.startswith((server.url, "data:"))
                else others.append(request.url))
        page.goto(server.url)
        walk_through(page, server)
        assert not complaints and not others
    finally:
        assert server.end()[0] == 0


def walk_through(page, server):
    """What a visitor does, by keyboard where that is the harder way."""
    from playwright.sync_api import expect

    articles, hits = page.locator("#articles button"), page.locator("#hits button")
    error = page.locator("#error")

    def expect_hits(*session):
        expect(page.locator("#hits .id")).to_have_text(
            ids_of(recommend(server.client, *session, k=10)))

    # One click, another one on what is recommended: as the API says, and the focus is kept.
    expect(articles).not_to_have_count(0)
    page.fill("#search", "n0015")
    expect(articles).to_have_count(1)
    articles.first.press("Enter")
    expect_hits("n0015")
    second = page.locator("#hits .id").nth(1).inner_text()
    hits.nth(1).press("Enter")
    expect_hits("n0015", second)
    expect(hits.first).to_be_focused()
    expect(page.locator("#answer")).to_contain_text("After 2 clicks, first: ")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")

    # To publish takes the token; markup in a title is text. On a phone the form is closed.
    page.click("summary")
    text = recommend(server.client, "n0015", second)["hits"][0]["text"]
    page.fill("#title", text + " <img src=x onerror=alert(1)> 新闻")
    page.fill("#id", "新/1")
    page.press("#title", "Enter")
    expect(error).to_contain_text("bearer token")
    page.fill("#token", "секрет")
    page.press("#title", "Enter")
    expect(page.locator("#published")).to_contain_text("Published as 新/1")
    expect(error).to_be_hidden()
    expect_hits("n0015", second)
    assert "新/1" in ids_of(recommend(server.client, "n0015", second, k=50))
    page.fill("#search", "新闻")
    expect(page.locator("#articles .id")).to_have_text(["新/1"])
    expect(articles.first).to_contain_text("<img src=x")
    expect(articles.first.locator(".title")).to_have_attribute("lang", "zh")

    # Withdrawn; a click taken back; a wrong field is told.
    page.click("text=Withdraw it")
    expect(articles).to_have_count(0)
    page.locator("#session button").nth(1).press("Enter")
    expect_hits("n0015")
    page.fill("#title", "a")
    page.fill("#fields", "sports")
    page.press("#fields", "Enter")
    expect(error).to_contain_text("name:value")
    page.click("#clear")
    expect(page.locator("#answer")).to_contain_text("What was read most in training")
    expect_hits()


@pytest.mark.slow
@ids_only
def test_clicks_on_the_page_of_a_live_index(index_dir, browser):
    from playwright.sync_api import expect

    server = Server(index_dir, "--scoring", "default")
    try:
        page = browser.new_page()
        page.set_default_timeout(10_000)
        page.goto(server.url)
        expect(page.locator("#articles button")).not_to_have_count(0)
        expect(page.locator("#answer")).to_contain_text("read most in training")
        page.fill("#search", "n0015")
        expect(page.locator("#articles button")).to_have_count(1)
        page.click("#articles button")
        expect(page.locator("#answer")).to_contain_text("After 1 click")
        clicks = [{"session": f"s{number}", "item": "n0015"} for number in range(100)]
        server.client.post("/clicks/batch", json=clicks).raise_for_status()
        assert sources_of(recommend(server.client, k=5)) == ["live"] + ["popular"] * 4
        # An article that the model never saw is published, and ranked at once.
        page.fill("#title", "Something else")
        page.fill("#id", "fresh")
        page.press("#title", "Enter")
        expect(page.locator("#published")).to_contain_text("Published as fresh")
        expect(page.locator("#hits .id").first).to_have_text("fresh")
        # What is read now comes first; what is only similar says so, with its own kind of score.
        hits = recommend(server.client, "n0015", k=10)["hits"]
        assert [hit["source"] for hit in hits] == ["live"] + ["nearest"] * 9
        expect(page.locator("#hits .tag", has_text="similar")).to_have_count(9)
        expect(page.locator("#hits .score").first).to_have_text(f"{hits[0]['score']:.3f}")
        expect(page.locator("#hits .score").nth(1)).to_have_text(f"cosine {hits[1]['score']:.3f}")
        expect(page.locator("#hits .bar")).to_have_count(9)
        page.click("#clear")
        expect(page.locator("#answer")).to_contain_text("What is read now")
    finally:
        assert server.end()[0] == 0

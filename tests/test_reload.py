"""A new model takes the place of the one that is served: nothing fails, nothing is lost, and one
that is of no use stays out."""

import contextlib
import os
import shutil
import sqlite3
import threading

import pytest
from fastapi.testclient import TestClient

import retrieve
import train
from ssr.errors import StoreError
from ssr.news.stream import Scoring
from ssr.retrieval import Click, Index, Item, builds
from ssr.retrieval.succession import Successor
from ssr.service import reloading
from ssr.service.app import make_app
from ssr.service.limits import Limits

POPULAR = Scoring().without("readers", "content", "transitions")


@pytest.fixture(scope="module")
def models(sample, tmp_path_factory):
    """Directories of models: two with content, of other dimensions, and one without."""
    path = tmp_path_factory.mktemp("models")
    for name, size, more in (("first", 8, True), ("second", 6, True), ("ids", 6, False)):
        content = ["--item_tokens", str(sample / "item_tokens.txt")] if more else []
        assert train.main(["--epochs", "1", "--embedding_dim", str(size), "--hidden_size",
                           str(size), "--model_dir", str(path / name), "--train_dir",
                           str(sample / "train_data"), "--vocab_path", str(sample / "vocab.txt"),
                           *content]) == 0
    return path


@pytest.fixture
def path(models, in_sample, enough_clicks):
    """The directory of a live index of the first model."""
    assert retrieve.main(["build", "--live", "--model_dir", str(models / "first")]) == 0
    return str(in_sample / "index")


def build(models, name, *flags):
    return retrieve.main(["build", "--overwrite", "--model_dir", str(models / name), *flags])


@contextlib.contextmanager
def serving(path, **flags):
    """A client of the service, of which it is an attribute `index` what answers by now."""
    index = Index.open(path, True, POPULAR)
    app = make_app(index, Limits(), **flags)
    try:
        with TestClient(app) as client:
            client.backend = app.state.backend
            yield client
    finally:
        app.state.backend.index.close()


def ids_of(client, *session, k=60, **options):
    response = client.post("/recommend", json={"session": session, "k": k, **options})
    assert response.status_code == 200, response.text
    return [hit["id"] for hit in response.json()["hits"]]


def model_of(client):
    return client.get("/healthz").json()["model"].split("/")[0]


def reload(client):
    return client.post("/reload", headers={"Content-Type": "application/json"})


def change(client, number):
    """A few changes of each kind, that come before, between and after."""
    text = {"text": "Doubles partners welcome the seedings", "fields": {"section": f"s{number}"}}
    for method, place, body in (("PUT", f"/items/fresh{number}", text),
                                ("PUT", f"/items/n{10 + number:04d}", text),
                                ("DELETE", f"/items/n{20 + number:04d}", None),
                                ("POST", "/clicks", {"session": "s", "item": f"n{number:04d}"}),
                                ("POST", "/clicks", {"session": "s", "item": f"fresh{number}"}),
                                ("POST", "/clicks", {"session": "t", "item": f"new{number}"})):
        assert client.request(method, place, json=body).status_code == 200


def check_changes(client, numbers):
    found = ids_of(client, "n0001")
    for number in numbers:
        assert f"fresh{number}" in found and f"n{20 + number:04d}" not in found
        assert set(ids_of(client, "n0001", only=[f"section:s{number}"])) == {
            f"fresh{number}", f"n{10 + number:04d}"}
    answer = client.post("/recommend", json={"session": [], "k": 60}).json()
    live = {hit["id"] for hit in answer["hits"] if hit["source"] == "live"}
    assert {id for number in numbers
            for id in (f"n{number:04d}", f"fresh{number}", f"new{number}")} <= live
    # Their texts as well, and a vector of the new model for what was added.
    assert client.get("/items", params={"search": "seedings partners", "limit": 60}).json()["items"]
    similar = client.get("/similar", params={"item": f"fresh{numbers[0]}"}).json()
    assert similar["hits"]


def test_what_was_changed_goes_over(path, models, monkeypatch):
    monkeypatch.setattr(reloading, "LOOK_EVERY", 1000)  # when it is told to, and not before
    with serving(path) as client:
        assert reload(client).json()["reloaded"] is False
        change(client, 1)
        assert build(models, "second") == 0
        change(client, 2)
        assert model_of(client) == "first"
        prepare = Successor.__init__

        def prepare_and_change(*args):  # what comes in while it is prepared
            prepare(*args)
            change(client, 3)

        with monkeypatch.context() as patched:
            patched.setattr(Successor, "__init__", prepare_and_change)
            response = reload(client)
        assert response.json()["reloaded"] is True
        assert response.json()["model"].startswith("second/epoch_1 ")
        assert model_of(client) == "second"
        change(client, 4)
        check_changes(client, [1, 2, 3, 4])
        metrics = client.get("/metrics").text
        assert "ssr_reloads_total 1.0" in metrics and 'ssr_model{model="second' in metrics
        assert len([name for name in os.listdir(path) if name.startswith("build-")]) == 1
    with serving(path) as client:  # the same from the disk
        assert model_of(client) == "second"
        check_changes(client, [1, 2, 3, 4])
        assert build(models, "first") == 0
        reload(client)
        assert model_of(client) == "first"
        check_changes(client, [1, 2, 3, 4])


def test_it_goes_over_by_itself(path, models, monkeypatch):
    monkeypatch.setattr(reloading, "LOOK_EVERY", 0.05)
    with serving(path) as client:
        change(client, 1)
        assert build(models, "second") == 0
        for _ in range(400):
            if model_of(client) == "second":
                break
            threading.Event().wait(0.05)
        check_changes(client, [1])


def test_a_reader_follows(path, models):
    """And refuses changes."""
    with contextlib.ExitStack() as stack:
        index = Index.open(path)
        app = make_app(index, Limits())
        stack.callback(lambda: app.state.backend.index.close())
        client = stack.enter_context(TestClient(app))
        for method, place, body in (("PUT", "/items/x", {"text": ""}),
                                    ("DELETE", "/items/n1", None),
                                    ("POST", "/clicks", {"session": "s", "item": "n1"}),
                                    ("POST", "/reload", {}),
                                    ("POST", "/items/delete", ["n1"])):
            response = client.request(method, place, json=body)
            assert response.status_code == 403 and "only reads" in response.text
        assert client.get("/healthz").json()["writable"] is False
        with Index.open(path, True) as writer:
            writer.add([Item("fresh", "Doubles partners welcome the seedings")])
            assert "fresh" in ids_of(client, "n0001")
        assert build(models, "second") == 0
        for _ in range(400):
            if model_of(client) == "second":
                break
            threading.Event().wait(0.05)
        assert model_of(client) == "second" and ids_of(client, "n0001")


def test_a_token_is_needed(path):
    with serving(path, token="secret") as client:
        assert reload(client).status_code == 401


# --- what is refused ------------------------------------------------------------------------------


def put_next(path, spoil):
    """A copy of the build that counts waits, spoilt."""
    current = builds.current_build(path)
    with builds.new_build(path, overwrite=True) as directory:
        shutil.copytree(current, directory, dirs_exist_ok=True)
        spoil(directory)


def model_file(directory):
    name, = [name for name in os.listdir(os.path.join(directory, "model"))
             if name.endswith(".pdparams")]
    return os.path.join(directory, "model", name)


def overwrite(file):
    with open(file, "r+b") as f:
        f.seek(os.path.getsize(file) // 2)
        f.write(b"spoilt")


def other_vectors(directory):
    """Those of another model, as a program might have made them."""
    with contextlib.closing(sqlite3.connect(os.path.join(directory, "items.sqlite"))) as db, db:
        db.execute("UPDATE items SET vector = (SELECT vector FROM items WHERE id = 'n0002'), "
                   "vector_crc = NULL")


@pytest.mark.parametrize("spoil", [
    lambda directory: overwrite(model_file(directory)),
    lambda directory: os.remove(model_file(directory)),
    lambda directory: overwrite(os.path.join(directory, "items.sqlite")),
    lambda directory: os.remove(os.path.join(directory, "items.sqlite")), other_vectors])
def test_a_build_that_is_of_no_use_is_refused(path, monkeypatch, spoil):
    monkeypatch.setattr(reloading, "LOOK_EVERY", 1000)
    with serving(path) as client:
        before = ids_of(client, "n0001")
        put_next(path, spoil)
        for _ in range(2):  # it is told again to who asks later
            response = reload(client)
            assert response.status_code == 409
            assert "the new build is refused, first/epoch_1" in response.text
        assert ids_of(client, "n0001") == before
        change(client, 1)
        assert "ssr_reloads_refused_total 1.0" in client.get("/metrics").text
        assert builds.next_build(path) is None
        assert len([name for name in os.listdir(path) if name.startswith("build-")]) == 1


def test_a_model_that_cannot_encode_what_is_added_is_refused(path, models, monkeypatch):
    monkeypatch.setattr(reloading, "LOOK_EVERY", 1000)
    with serving(path) as client:
        assert build(models, "ids") == 0
        assert "no content" in reload(client).text
        assert build(models, "second") == 0
        assert reload(client).json()["reloaded"] is True


def test_who_only_writes_is_not_overtaken(path, models, capsys):
    """A process that would go on writing into the build before."""
    with Index.open(path, True):
        assert build(models, "second") == 1
        assert "open for writing" in capsys.readouterr().err
        assert builds.next_build(path) is None
    assert build(models, "second") == 0


def test_a_process_that_is_killed_while_it_goes_over(path, models, monkeypatch):
    """Nothing has happened, and the next one does it."""
    monkeypatch.setattr(reloading, "LOOK_EVERY", 1000)
    with serving(path) as client:
        change(client, 1)
        assert build(models, "second") == 0
        successor = Successor(client.backend.index, builds.next_build(path))
        successor.close()
        change(client, 2)
    with serving(path) as client:
        assert model_of(client) == "first"
        check_changes(client, [1, 2])
        assert reload(client).json()["reloaded"] is True
        check_changes(client, [1, 2])


def test_a_build_that_another_one_overtakes(path, models, monkeypatch):
    monkeypatch.setattr(reloading, "LOOK_EVERY", 1000)
    with serving(path) as client:
        assert build(models, "second") == 0
        successor = Successor(client.backend.index, builds.next_build(path))
        assert build(models, "first") == 0
        with pytest.raises(StoreError, match="no longer"):
            successor.take_over()
        successor.close()
        client.backend.index.click([Click("a", "n0001")])
        assert reload(client).json() == {"reloaded": True, "model": client.backend.model}
        assert model_of(client) == "first"

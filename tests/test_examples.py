"""The examples on a real server: the client, and the traffic of the load script."""

import csv
import os
import re
import shutil
import subprocess
import sys
import urllib.error

import pytest

import retrieve
from commandline import parser_of
from examples.client import Client

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOKEN = "secret"


@pytest.fixture(scope="module")
def server(sample, content_model, tmp_path_factory):
    """The address of a server with a live index of a model with content."""
    path = tmp_path_factory.mktemp("examples")
    index = str(path / "index")
    assert retrieve.main(["build", "--model_dir", str(content_model), "--data_dir", str(sample),
                          "--index_dir", index, "--live"]) == 0
    with open(path / "errors", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "serve.py"), "--index_dir", index, "--port", "0"],
            stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "SSR_TOKEN": TOKEN})
    line = process.stdout.readline()
    assert line, (path / "errors").read_text()
    yield line.split(" on ")[1].strip()
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_the_client_asks_and_changes(server):
    service = Client(server, TOKEN)
    assert len(service.recommend(["n0015"], 5)) == 5
    assert service.put("a/b ä", "Commuters defend the motorway", section=["traffic"])["new"] == 1
    (hit,) = service.recommend(["n0015"], 5, only=["section:traffic"])
    assert (hit["id"], hit["text"]) == ("a/b ä", "Commuters defend the motorway")
    assert "n0015" not in [hit["id"] for hit in service.similar("n0015", 50, exclude=["n0015"])]
    assert service.click("reader", "a/b ä") == {"clicks": 1}
    assert service.remove("a/b ä")["removed"] == 1
    with pytest.raises(urllib.error.HTTPError, match="422"):
        service.recommend(["n0015"], 0)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        Client(server, "wrong").click("reader", "n0015")


@pytest.mark.slow
def test_the_load_script_fails_no_request(server, tmp_path):
    locust = shutil.which("locust", path=os.path.dirname(sys.executable))
    if not locust:
        pytest.skip("locust is not installed")
    done = subprocess.run(
        [locust, "-f", os.path.join(ROOT, "examples", "load.py"), "--headless", "-u", "12", "-r",
         "12", "-t", "6s", "-H", server, "--csv", str(tmp_path / "load"), "--stop-timeout", "5"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "SSR_TOKEN": TOKEN})
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "load_stats.csv", newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert {"/recommend", "/clicks", "/items/[id]", "Aggregated"} <= set(rows)
    assert int(rows["Aggregated"]["Failure Count"]) == 0
    assert int(rows["Aggregated"]["Request Count"]) > 30


def test_the_compose_file_is_whole():
    """It is read and its commands are parsed; it is not started, which takes Docker."""
    yaml = pytest.importorskip("yaml")
    with open(os.path.join(ROOT, "examples", "compose.yaml"), encoding="utf-8") as file:
        compose = yaml.safe_load(file)
    services = compose["services"]
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("..")
        command = service["command"]
        words = command.split() if isinstance(command, str) else command
        if words[0] == "python":
            args = parser_of(words[1]).parse_args(words[2:])
            assert args.index_dir == "/index"
        for host in re.findall(r"\w+://(\w+):\d+", " ".join(words)):
            assert host in services or host == "0"
    assert services["server"]["deploy"]["replicas"] == 3

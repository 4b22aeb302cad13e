"""Puts the project on the path, and small samples to run on."""

import importlib.util
import os
import shutil
import signal
import sys

import pytest
from hypothesis import settings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from ssr.preparation.sample import write_sample  # noqa: E402
from ssr.runtime import paddle  # noqa: E402

paddle.__version__  # noqa: B018  it is loaded before a test imports it

# What a shell starts in the background ignores Ctrl-C, which some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time; tests/fuzz.py asks for others.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random")
settings.load_profile("fixed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_configure(config):
    """Where CI is set, nothing is skipped because something was not installed."""
    if os.environ.get("CI"):
        missing = [name for name in ("matplotlib", "playwright", "pymilvus", "milvus_lite", "redis",
                                     "locust", "yaml") if not importlib.util.find_spec(name)]
        missing += [] if any(map(shutil.which, BROWSERS)) else ["chromium"]
        missing += [] if shutil.which("redis-server") else ["redis-server"]
        if missing:
            pytest.exit(f"CI is set and the tests need {' and '.join(missing)}", returncode=1)


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A directory with a sample that is small enough to train on in a second."""
    path = tmp_path_factory.mktemp("sample")
    write_sample(str(path), num_items=60, train_sessions=230, test_sessions=80, seed=5)
    return path


@pytest.fixture(scope="session")
def content_model(sample, tmp_path_factory):
    """The directory of a small model with content, trained on the sample. Nothing writes to it."""
    import train  # here: Paddle is loaded by the tests that need it

    path = tmp_path_factory.mktemp("content") / "model"
    assert train.main(["--epochs", "1", "--embedding_dim", "8", "--hidden_size", "8", "--data_dir",
                       str(sample), "--item_tokens", str(sample / "item_tokens.txt"),
                       "--model_dir", str(path)]) == 0
    return path


@pytest.fixture
def in_sample(sample, tmp_path, monkeypatch):
    """Runs the test in a directory of its own that looks like the project's."""
    for name in os.listdir(sample):
        (tmp_path / name).symlink_to(sample / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def enough_clicks(monkeypatch):
    """Live indexes rank as if many clicks had come in already."""
    monkeypatch.setattr("ssr.retrieval.queries.ENOUGH", 1.0)  # every click and one

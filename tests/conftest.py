"""Puts the scripts on the path and sets the environment before numpy and Paddle are loaded."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import utils  # noqa: E402, F401  first: it sets the environment for numpy and paddle

import pytest  # noqa: E402

import make_sample  # noqa: E402


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A directory with a sample that is small enough to train on in a second."""
    path = tmp_path_factory.mktemp("sample")
    make_sample.write_sample(str(path), num_items=60, train_sessions=230, test_sessions=80, seed=5)
    return path


@pytest.fixture
def in_sample(sample, tmp_path, monkeypatch):
    """Runs the test in a directory of its own that looks like the project's."""
    for name in os.listdir(sample):
        (tmp_path / name).symlink_to(sample / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path

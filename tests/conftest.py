"""Puts the project on the path, and small samples to run on."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from ssr.preparation.sample import write_sample  # noqa: E402
from ssr.runtime import paddle  # noqa: E402, F401  before a test imports it


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A directory with a sample that is small enough to train on in a second."""
    path = tmp_path_factory.mktemp("sample")
    write_sample(str(path), num_items=60, train_sessions=230, test_sessions=80, seed=5)
    return path


@pytest.fixture
def in_sample(sample, tmp_path, monkeypatch):
    """Runs the test in a directory of its own that looks like the project's."""
    for name in os.listdir(sample):
        (tmp_path / name).symlink_to(sample / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""plot_metrics.py."""

import json
import os
import subprocess
import sys

import pytest

import plot_metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EPOCHS = [{"epoch": 1, "avg_cost": 0.5, "valid_recall@20": 0.1}, {"epoch": 2, "avg_cost": "?"}]


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "metrics.jsonl").write_text("\n".join(map(json.dumps, EPOCHS)) + "\n")
    return "model"


def error(capsys, *flags):
    assert plot_metrics.main(flags) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_a_picture(model_dir):
    pytest.importorskip("matplotlib")
    assert plot_metrics.main(["--model_dir", model_dir]) == 0
    with open("metrics.png", "rb") as f:
        assert f.read(8) == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_that_is_told_first(model_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for flags in ([], ["--model_dir", "nowhere"], ["--output", "nowhere/metrics.png"]):
        assert "pip install matplotlib" in error(capsys, *flags)


def test_what_else_can_be_wrong(model_dir, capsys):
    pytest.importorskip("matplotlib")
    assert "nowhere/metrics.jsonl holds no epoch" in error(capsys, "--model_dir", "nowhere")
    assert "--output: cannot write nowhere/x.png" in error(
        capsys, "--model_dir", model_dir, "--output", "nowhere/x.png")
    with open("model/metrics.jsonl", "a", encoding="utf-8") as f:
        f.write("{")
    assert "metrics.jsonl is damaged" in error(capsys, "--model_dir", model_dir)
    assert os.listdir() == ["model"]


def test_no_paddle_is_needed(model_dir):
    pytest.importorskip("matplotlib")
    with open("paddle.py", "w", encoding="utf-8") as f:
        f.write("raise SystemExit('Paddle was loaded')")
    subprocess.run([sys.executable, os.path.join(ROOT, "plot_metrics.py"), "--model_dir",
                    model_dir], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})

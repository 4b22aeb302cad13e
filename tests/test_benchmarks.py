"""What the benchmarks share, and that each of them can be asked for help."""

import os

import pytest

BENCHMARKS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "benchmarks")


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return __import__("common")


def test_a_process_that_says_much_on_both_sides_does_not_hang(common, tmp_path):
    script = tmp_path / "loud.py"
    script.write_text("import sys\n"
                      "sys.stderr.write('e' * 1_000_000)\nsys.stdout.write('o' * 1_000_000)\n"
                      "held = bytearray(64 << 20)\nraise SystemExit(len(sys.argv) > 1)\n")
    out, seconds, peak = common.run_script(str(script))
    assert out == "o" * 1_000_000 and 0 < seconds < 60
    assert 64 << 20 < peak < 1 << 30  # bytes
    with pytest.raises(SystemExit, match=r"loud.py failed:\s*e{1000}"):
        common.run_script(str(script), "fail")


def test_flags_behind_two_dashes_are_those_of_training(common):
    flags = ["--a", "1", "--", "--b", "2"]
    parser, own, train = common.parser_and_flags("What.\n\n    more", flags)
    parser.add_argument("--a", type=int, default=3, help="of this benchmark")
    assert parser.parse(own).a == 1 and train == ["--b", "2"] and parser.description == "What."
    assert common.parser_and_flags("What.", ["--a", "1"])[1:] == (["--a", "1"], [])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(
    name for name in os.listdir(BENCHMARKS) if name.endswith(".py") and name != "common.py"))
def test_help(common, name):
    out, _, _ = common.run_script(os.path.join(BENCHMARKS, name), "-h")
    assert out.startswith(f"usage: {name}")


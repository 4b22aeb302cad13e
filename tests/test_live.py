"""A live index: clicks come in, rank what is read these days, and survive."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import retrieve
import train
from ssr.errors import DataError
from ssr.news.stream import Scoring
from ssr.retrieval import Click, Index, Item, queries
from ssr.retrieval import clicks as click_log

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = pytest.mark.usefixtures("enough_clicks")

POPULAR = Scoring().without("readers", "content", "transitions")


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """The directory of a model without content whose items are their embeddings."""
    path = str(tmp_path_factory.mktemp("trained"))
    assert train.main(["--recipe", "strong", "--epochs", "1", "--embedding_dim", "8",
                       "--hidden_size", "8", "--num_negatives", "20", "--model_dir", path,
                       "--train_dir", str(sample / "train_data"),
                       "--vocab_path", str(sample / "vocab.txt")]) == 0
    return path


@pytest.fixture
def built(in_sample, trained):
    os.symlink(trained, "model_output")
    assert retrieve.main(["build"]) == 0
    return in_sample


def open_live(scoring=POPULAR, writable=True):
    return Index.open("index", writable, scoring)


def clicks_on(*items, start=None, session="s"):
    start = time.time() - 100 if start is None else start
    return [Click(f"{session}{number}", item, start + number / 100)
            for number, item in enumerate(items)]


def ids_of(answer):
    return [hit.id for hit in answer.hits]


def read_now(index, k, **options):
    """The ids that clicks rank."""
    return [hit.id for hit in index.query([], k, **options).hits if hit.source == "live"]


def test_what_is_clicked_comes_first_and_the_nearest_vectors_follow(built):
    with Index.open("index") as index:
        plain = ids_of(index.query(["n0001"], 59))
    with open_live() as index:
        assert ids_of(index.query(["n0001"], 59)) == plain  # no clicks yet
        index.click(clicks_on("n0007", "n0009", "n0007", "n0009", "n0007", "n0030"))
        answer = index.query(["n0001"], 6)
        assert ids_of(answer)[:3] == ["n0007", "n0009", "n0030"]
        rest = [id for id in plain if id not in ("n0007", "n0009", "n0030")]
        assert ids_of(answer)[3:] == rest[:3]
        # Even an empty session gets what is read now, and the session's items are left out.
        assert read_now(index, 9) == ["n0007", "n0009", "n0030"]
        assert ids_of(index.query(["n0007"], 2)) == ["n0009", "n0030"]
        assert ids_of(index.query(["n0007"], 2, exclude_session=False)) == ["n0007", "n0009"]


def test_an_article_that_the_model_does_not_know_is_ranked_by_its_clicks(built):
    with open_live() as index:
        assert index.query(["new"], 3).skipped == 1
        index.click(clicks_on("new", "new"))
        assert ids_of(index.query(["n0001"], 1)) == ["new"]
        assert index.add([Item("published", "Just out")]).without_vector == ["published"]
        assert index.add([Item("new", "With a text now")]).new == 0
        hits = index.query(["n0001"], 2).hits
        assert [(hit.id, hit.text) for hit in hits] == [("new", "With a text now"),
                                                        ("published", "Just out")]


def test_readers_make_a_vector_that_stands_in_for_the_article(built):
    with open_live(Scoring()) as index:
        start = time.time() - 50
        for session in range(8):
            for place, item in enumerate(("n0003", "n0008", "new")):
                index.click([Click(f"r{session}", item, start + session + place / 10)])
            other = ("n0020", "n0031", "other")
            for place, item in enumerate(other):
                index.click([Click(f"o{session}", item, start + session + place / 10)])
        scores = {hit.id: hit.score for hit in index.query(["n0003", "n0008"], 20).hits}
        assert scores["new"] > scores["other"]
        # A session of it alone has a vector now.
        assert index.query(["new"], 3).skipped == 0


def test_a_withdrawn_article_is_gone_from_the_next_answer(built):
    with open_live() as index:
        index.click(clicks_on("new", "n0007"))
        assert index.remove(["new", "n0007", "never"]).unknown == ["never"]
        assert not {"new", "n0007"} & set(ids_of(index.query(["n0001"], 59)))
        index.click(clicks_on("new"))
        assert "new" not in ids_of(index.query(["n0001"], 59))
        # Nor does it come back by a click after a day on which nobody asked for it.
        index._live._stream.compact(time.time() + 200_000)
        index.click(clicks_on("new", start=time.time() - 1))
        assert "new" not in ids_of(index.query(["n0001"], 59))
    with open_live() as index:
        assert not {"new", "n0007"} & set(ids_of(index.query(["n0001"], 59)))
        index.add([Item("n0007", "again")])
        assert "n0007" in ids_of(index.query(["n0001"], 2))


def test_opening_again_finds_the_same(built):
    random = np.random.default_rng(0)
    start = time.time() - 5000
    clicks = [Click(f"s{random.integers(40)}", f"n{random.integers(40):04d}", start + number)
              for number in range(600)]
    now = start + 700
    queries = [["n0001"], ["n0003", "n0005"], []]
    with open_live(Scoring()) as index:
        index.click(clicks[:300])
        index.add([Item("n0050", "published")])
        for click in clicks[300:]:
            index.click([click])
        before = index.query_many(queries, 10, now=now)
    with open_live(Scoring()) as index:
        after = index.query_many(queries, 10, now=now)
    for one, other in zip(before, after):
        assert ids_of(one) == ids_of(other)
        np.testing.assert_allclose([hit.score for hit in one.hits],
                                   [hit.score for hit in other.hits], atol=1e-4)


def test_others_see_clicks_and_withdrawals_as_they_come(built):
    with open_live(writable=False) as other, open_live() as index:  # no log yet for the first
        index.click(clicks_on("n0007", "n0007", "n0009"))
        deadline = time.time() + 20
        while read_now(other, 3) != ["n0007", "n0009"]:
            assert time.time() < deadline
            time.sleep(0.05)
        index.remove(["n0007"])
        assert read_now(other, 3) == ["n0009"]
        index.add([Item("n0007", "again")])
        assert read_now(other, 3) == ["n0007", "n0009"]
        with pytest.raises(DataError, match="open for writing"):
            other.click(clicks_on("n0001"))


def test_clicks_outlive_a_model(built, capsys):
    with open_live(Scoring()) as index:
        index.click([Click("a", item, time.time() - 60 + place)
                     for place, item in enumerate(("n0003", "n0005", "fresh"))])
    assert train.main(["--epochs", "1", "--embedding_dim", "6", "--hidden_size", "6",
                       "--model_dir", "other"]) == 0
    assert retrieve.main(["build", "--model_dir", "other", "--overwrite"]) == 0
    for _ in range(2):  # the second time the vectors are those of the new model
        with open_live(Scoring()) as index:
            assert {"n0003", "n0005", "fresh"} == set(read_now(index, 9))
            assert index._live.vector(index.store.items.find(["fresh"])["fresh"].key).shape == (6,)


def test_what_no_click_can_be(built):
    with Index.open("index", writable=True) as index:
        with pytest.raises(DataError, match="is live"):
            index.click(clicks_on("n0001"))
    with open_live() as index:
        now = time.time()
        for click in (Click("s", "a\tb", now), Click("s", "", now), Click("s", "n1", -1.0),
                      Click("s", "n1", float("nan")), Click("s", "n1", float("inf")),
                      Click("s", "n1", now - 90000), Click("s", "x" * 1001, now)):
            with pytest.raises(DataError):
                index.click([Click("s", "n0001", time.time()), click])
        assert read_now(index, 5) == []


class Clock:
    """A machine's clock that a test sets."""

    def __init__(self, now):
        self.now = float(now)

    def __call__(self):
        return self.now


def open_at(now, **flags):
    clock = now if isinstance(now, Clock) else Clock(now)
    return Index.open("index", True, POPULAR, clock=clock, **flags)


def logged():
    """The items in the log, in order."""
    log = click_log.ClickLog("index/clicks.sqlite", False)
    items = [row.click.item for rows in log.read() for row in rows]
    log.close()
    return items


DAY = 86400
START = 1_700_000_000


def test_old_clicks_are_no_candidates_and_leave_the_log_at_last(built):
    with open_at(START) as index:
        index.click([Click("a", "n0007"), Click("b", "n0007")])
    with open_at(START + DAY + 10) as index:
        index.click([Click("a", "n0009")])
        assert read_now(index, 5, now=START + DAY + 20) == ["n0009"]
    assert logged() == ["n0007", "n0007", "n0009"]
    for hour in range(25):
        open_at(START + DAY + 100 + hour * 3601).close()
    assert logged() == ["n0009"]
    assert open_at(START + 2 * DAY).close() is None and logged() == ["n0009"]


def test_a_session_begins_anew_after_a_while():
    sessions = click_log.Sessions()
    assert sessions.add("a", 1, 100.0).clicked == []
    assert sessions.add("a", 2, 200.0).clicked == [1]
    assert sessions.add(None, 9, 200.0) == ([], [])
    assert sessions.add("b", 3, 300.0).clicked == []
    assert sessions.add("a", 4, 200.0 + click_log.SESSION_AGE + 1).clicked == []
    sessions.forget(7000.0)
    assert sessions.add("b", 5, 8000.0).clicked == []
    assert sessions.add("a", 5, 8001.0).clicked == [4]


def test_a_session_is_remembered_as_a_whole_and_bounded():
    sessions = click_log.Sessions()
    most, recent = click_log.SESSION_ITEMS, click_log.SESSION_CLICKS
    for key in range(most):
        before = sessions.add("c", key, 100.0)
        assert before.clicked == list(range(key)) and before.recent == before.clicked[-recent:]
    assert sessions.add("c", most, 100.0).clicked is None
    assert 0 in sessions.add("c", 0, 100.0).clicked  # it counts nowhere: it was clicked before


def test_commands(built, capsys):
    def run(*argv):
        code = retrieve.main(list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    now = time.time()
    with open("clicks.tsv", "w") as f:
        f.write(f"a\tn0007\t{now - 20}\nb\tn0007\t{now - 10:.0f}\n\tn0009\t{now - 5}\n")
    assert run("click", "clicks.tsv")[:2] == (0, "clicks:3\n")
    code, out, _ = run("query", "--session", "n0001", "-k", "2", "--scoring", "default")
    assert [line.split("\t")[2] for line in out.splitlines()] == ["n0007", "n0009"]
    with open("scoring.json", "w") as f:
        f.write(Scoring(share=2.0).to_json())
    _, out, err = run("query", "--session", "n0001", "-k", "1", "--scoring", "scoring.json",
                      "--weight", "readers=0", "--weight", "power=0,0,0,-9")
    assert out.split("\t")[2] == "n0009"
    for flags, message in ((["--scoring", "none.json"], "cannot read none.json"),
                           (["--scoring", "clicks.tsv"], "clicks.tsv: "),
                           (["--scoring", "default", "--weight", "speed=1"],
                            "--weight speed=1: there is no 'speed'"),
                           (["--scoring", "scoring.json", "--weight", "readers=x"],
                            "--weight readers=x: could not convert"),
                           (["--weight", "readers=1,2"], "--weight readers=1,2: "),
                           (["--candidate_age", "0.01"], "--index_dir index --candidate_age 0.01")):
        code, _, err = run("query", "--session", "n0001", *flags)
        assert code == 1 and message in err, err
        assert err.count("error:") == 1 and err.count("--weight") <= 1
    assert run("live", "--candidate_age", "0.001")[0] == 0
    _, out, _ = run("query", "--session", "n0001", "-k", "1", "--scoring", "default")
    assert out.split("\t")[2] not in ("n0007", "n0009")
    with open("wrong.tsv", "w") as f:
        f.write("a\tn0007\nb\n")
    code, _, err = run("click", "wrong.tsv")
    assert code == 1 and "wrong.tsv, line 2" in err


@pytest.mark.slow
def test_a_killed_process_loses_the_last_second_at_most(built):
    """Kills the writer at random moments; whatever was told a second before must be there."""
    script = """
import sys, time
sys.path.insert(0, sys.argv[1])
from ssr.news import Scoring
from ssr.retrieval import Click, Index
with Index.open("index", True, Scoring()) as index:
    number = int(sys.argv[2])
    while True:
        index.click([Click(f"s{number % 7}", f"n{number % 50:04d}")])
        number += 1
        print(number, time.time(), flush=True)
"""
    random = np.random.default_rng(1)
    total = 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", script, ROOT, str(total)],
                                   stdout=subprocess.PIPE, text=True)
        told = [process.stdout.readline().split()]
        end = time.time() + random.uniform(0.3, 2.5)
        while time.time() < end:
            told.append(process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
        killed = time.time()
        process.wait()
        safe = max([int(number) for number, when in told if float(when) < killed - 1.0],
                   default=total)
        log = click_log.ClickLog("index/clicks.sqlite", False)
        total = sum(len(rows) for rows in log.read())
        log.close()
        assert total >= safe
    assert total > 200


def test_few_clicks_are_mixed_with_the_model(built, monkeypatch):
    """Ten clicked articles are not the best ten of all; many clicks rank alone, as they did."""
    monkeypatch.setattr("ssr.retrieval.queries.ENOUGH", 100.0)
    with Index.open("index") as index:
        model = ids_of(index.query(["n0001"], 20))
        popular = ids_of(index.query([], 20))
    clicked = [f"n{number:04d}" for number in range(40, 50)]
    with open_live() as index:
        index.click(clicks_on(*clicked))
        first = index.query(["n0001"], 20)
        assert len(set(ids_of(first)[:10]) & set(model[:10])) >= 5
        assert [id for id in ids_of(first) if id in model] != []
        assert len(set(ids_of(index.query([], 20))[:10]) & set(popular[:10])) >= 5
        # An item in both rankings is there once, and counts as clicked.
        assert len(set(ids_of(first))) == 20
        assert all((hit.source == "live") == (hit.id in clicked) for hit in first.hits)
        index.click(clicks_on(*clicked * 12, session="more"))
        assert {hit.source for hit in index.query(["n0001"], 10).hits} == {"live"}


def test_a_mixture_of_rankings():
    clicked, others = [(1, 2.0, "live"), (2, 0.0, "live")], [(3, 0.5, "nearest"),
                                                             (2, 0.45, "nearest")]

    def order(weight):
        return [key for key, _, _ in queries.mixed(clicked, others, weight)]

    assert order(0) == [3, 2, 1] and order(1) == [1, 2, 3]
    # 1: w * 0.881; 2: w * 0.119 + (1 - w) * 0.378; 3: (1 - w) * 0.622
    assert order(0.4) == [3, 1, 2] and order(0.45) == [1, 3, 2]
    assert queries.mixed(clicked, others, 0.5)[2] == (2, 0.0, "live")
    assert queries.mixed([], others, 0.5) == others and queries.mixed([], [], 0.5) == []
    popular = [(7, 3.0, "popular"), (8, 1.0, "popular")]
    assert [key for key, _, _ in queries.mixed(clicked, popular, 0.5)] == [1, 7, 8, 2]

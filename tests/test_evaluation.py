"""Metrics and their intervals, baselines, the table and the report of infer.py."""

import os
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infer
import reader
import train
import utils
from ssr.evaluation import baselines, comparison, metrics, report
from ssr.evaluation.metrics import Catalogue, measure, measure_gain, measure_recall
from ssr.evaluation.queries import Answers, Task, make_queries

ITEMS = 12


def dataset_of(sessions, vocab_size=ITEMS):
    lengths = [len(session) for session in sessions]
    return reader.YoochooseDataset(np.concatenate(sessions).astype(np.int32),
                                   np.concatenate([[0], np.cumsum(lengths)]), vocab_size)


sessions_of = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=2, max_size=7), min_size=1,
                       max_size=12)

# --- metrics --------------------------------------------------------------------------------------


@st.composite
def answered(draw):
    """(Answers, sessions, Catalogue) of a few queries, as they may come."""
    count = draw(st.integers(1, 8))
    ranks = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    sessions = sorted(draw(st.lists(st.integers(1, 4), min_size=count, max_size=count)))
    top = np.full((count, 5), -1, np.int32)
    for row in top:
        best = draw(st.lists(st.integers(0, ITEMS - 1), max_size=5, unique=True))
        row[:len(best)] = best
    clicks = np.array(draw(st.lists(st.integers(0, 9), min_size=ITEMS, max_size=ITEMS)), np.int32)
    return (Answers("x", np.array(ranks), top), np.array(sessions),
            Catalogue(np.ones(ITEMS, bool), clicks))


def brute_force(answers, sessions, catalogue, k):
    hits = [0 < rank <= k for rank in answers.ranks]
    lists = [[item for item in row[:k] if item >= 0] for row in answers.top]
    most = max(1, max(catalogue.clicks))
    shares = [catalogue.clicks[item] / most for items in lists for item in items]
    sessions_hit = {session for session, hit in zip(sessions, hits) if hit}
    return {
        "recall": np.mean(hits),
        "mrr": np.mean([1 / rank if hit else 0 for rank, hit in zip(answers.ranks, hits)]),
        "ndcg": np.mean([1 / np.log2(1 + rank) if hit else 0
                         for rank, hit in zip(answers.ranks, hits)]),
        "hit_rate": len(sessions_hit) / len({*sessions}),
        "coverage": len({item for items in lists for item in items}) / sum(catalogue.candidates),
        "popularity": np.mean(shares) if shares else np.nan}


@settings(deadline=None, max_examples=60)
@given(answered())
def test_metrics_are_those_of_brute_force(case):
    measured = measure(*case, topk=[1, 3, 5], resamples=20)
    assert [*measured] == [f"{name}@{k}" for k in (1, 3, 5) for name in metrics.NAMES]
    for k in (1, 3, 5):
        for name, value in brute_force(*case, k).items():
            estimate = measured[f"{name}@{k}"]
            assert estimate.value == pytest.approx(value, nan_ok=True)
            assert np.isnan(value) or estimate.low <= estimate.high
        assert (measured[f"recall@{k}"].value, measured[f"mrr@{k}"].value) == pytest.approx(
            utils.recall_mrr(case[0].ranks, k))


def test_coverage_counts_candidates_alone():
    top = np.array([[0, 1], [1, 2]], np.int32)
    clicks = np.array([4, 2, 1, 1], np.int32)
    candidates = np.array([True, True, True, False])
    measured = measure(Answers("x", np.array([1, 2]), top), np.array([1, 2]),
                       Catalogue(candidates, clicks), [1, 2])
    assert measured["coverage@1"].value == pytest.approx(2 / 3)
    assert measured["coverage@2"].value == 1
    assert measured["popularity@2"].value == pytest.approx((1 + .5 + .5 + .25) / 4)


def test_no_queries_are_no_figures():
    empty = Answers("x", np.empty(0, int), np.empty((0, 5), np.int32))
    measured = measure(empty, np.empty(0, int), Catalogue(np.ones(3, bool), np.ones(3, int)), [5])
    assert {str(estimate) for estimate in measured.values()} == {"n/a"}


def test_intervals_hold_what_is_true_as_often_as_they_say():
    random, truth, inside = np.random.default_rng(0), 0.3, 0
    for trial in range(200):
        ranks = np.where(random.random(300) < truth, 1, 0)
        low, high = measure_recall([ranks], np.arange(300), 1, resamples=300, seed=trial)[0][1:]
        inside += low <= truth <= high
    assert 180 <= inside <= 198  # 190 of 200, by 3 standard deviations


def test_sessions_are_drawn_not_queries():
    """Where the queries of a session all fare the same, ten a session say no more than one."""
    random = np.random.default_rng(0)
    one = np.where(random.random(200) < 0.5, 1, 0)
    alone = measure_recall([one], np.arange(200), 1)[0]
    ten = measure_recall([np.repeat(one, 10)], np.repeat(np.arange(200), 10), 1)[0]
    as_if = measure_recall([np.repeat(one, 10)], np.arange(2000), 1)[0]
    assert ten == pytest.approx(alone)
    assert (ten.high - ten.low) > 2.5 * (as_if.high - as_if.low)


def test_gains_are_paired_and_the_seed_decides():
    random = np.random.default_rng(0)
    ranks, sessions = random.integers(0, 40, 500), np.arange(500)
    assert measure_gain(ranks, ranks, sessions, 20) == (0, 0, 0)
    better = np.where(ranks > 20, np.where(random.random(500) < 0.1, 1, ranks), ranks)
    gain = measure_gain(better, ranks, sessions, 20)
    both = measure_recall([better, ranks], sessions, 20)
    assert gain.value == pytest.approx(both[0].value - both[1].value) and gain.low > 0
    assert gain.high - gain.low < both[0].high - both[0].low
    assert measure_recall([ranks], sessions, 20) == both[1:]
    assert measure_recall([ranks], sessions, 20, seed=1) != both[1:]


def test_the_interval_of_coverage_lies_around_it(monkeypatch):
    random = np.random.default_rng(0)
    top = random.integers(0, 300, (400, 5)).astype(np.int32)
    catalogue = Catalogue(np.ones(1000, bool), np.ones(1000, np.int32))
    answers = Answers("x", np.ones(400, int), top)
    estimate = measure(answers, np.arange(400), catalogue, [5])["coverage@5"]
    assert estimate.low < estimate.value < estimate.high <= 1
    # What is recommended often is in every resample: leaving it out of the draws changes nothing.
    monkeypatch.setattr(metrics, "RARE", 10 ** 9)
    assert measure(answers, np.arange(400), catalogue, [5])["coverage@5"] == estimate


# --- baselines ------------------------------------------------------------------------------------


def slow_item_knn(sessions, session, neighbours, regularization, alpha):
    clicks = Counter(item for other in sessions for item in other)
    last = session[-1]
    scores = {}
    for item in clicks:
        together = sum(other.count(last) for other in sessions if item in other)
        if item != last and together:
            scores[item] = (together / (clicks[last] + regularization) ** alpha
                            / (clicks[item] + regularization) ** (1 - alpha))
    best = sorted(scores, key=lambda item: (-round(scores[item], 12), item))[:neighbours]
    return {item: scores[item] for item in best}


def slow_v_sknn(sessions, session, k, sample, idf):
    clicks = Counter(item for other in sessions for item in other)
    place = {item: number for number, item in enumerate(session, 1)}  # of its last click
    sharing = [other for other in reversed(sessions) if {*other} & {*session}][:sample]
    similarity = [sum((place[item] / len(session)) ** 2 for item in {*other} & {*session})
                  for other in sharing]
    nearest = sorted(range(len(sharing)), key=lambda at: -round(similarity[at], 12))[:k]
    scores = Counter()
    for at in nearest:
        ago = min(len(session) - place[item] for item in {*sharing[at]} & {*session}) + 1
        for item in {*sharing[at]}:
            rarity = max(1 + idf * np.log(len(sessions) / clicks[item]), 0)
            scores[item] += similarity[at] / ago * rarity
    return scores


def slow_ranks(scores, label, candidates):
    if not candidates[label]:
        return 0
    own = scores.get(label, 0)
    return sum(scores.get(item, 0) >= own * (1 - 1e-9) for item in np.flatnonzero(candidates))


def check(baseline, slow, sessions, tests, candidates):
    """Holds the answers of a baseline to those of a function from a session to {item: score}."""
    known = {item for session in sessions for item in session}
    queries = make_queries(dataset_of(tests), baseline.known, "all")
    answers = baseline.answer(queries, candidates, 3)
    expected = iter(zip(answers.ranks, answers.top))
    for test in tests:
        for place in range(1, len(test)):
            rank, top = next(expected)
            before = [item for item in test[:place] if item in known]
            scores = slow(before) if before else {}
            scores = {item: score for item, score in scores.items() if candidates[item]}
            assert rank == (slow_ranks(scores, test[place], candidates) if before else 0)
            best = sorted(-score for score in scores.values() if score > 0)[:3]
            listed = [item for item in top if item >= 0]
            assert [-scores[item] for item in listed] == pytest.approx(best)


@settings(deadline=None, max_examples=60)
@given(sessions_of, sessions_of, st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS),
       st.integers(1, 4))
def test_item_knn_is_its_definition(sessions, tests, candidates, neighbours):
    baseline = baselines.ItemKNN(dataset_of(sessions), neighbours, 3, 0.7)
    check(baseline, lambda session: slow_item_knn(sessions, session, neighbours, 3, 0.7), sessions,
          tests, np.array(candidates))


@settings(deadline=None, max_examples=60)
@given(sessions_of, sessions_of, st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS),
       st.integers(1, 3), st.integers(1, 5))
def test_v_sknn_is_its_definition(sessions, tests, candidates, k, sample):
    baseline = baselines.VSKNN(dataset_of(sessions), k, sample, idf=2)
    check(baseline, lambda session: slow_v_sknn(sessions, session, k, sample, 2), sessions, tests,
          np.array(candidates))


@settings(deadline=None, max_examples=40)
@given(sessions_of, sessions_of, st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS))
def test_popular_is_its_definition(sessions, tests, candidates):
    candidates, train_set = np.array(candidates), dataset_of(sessions)
    baseline = baselines.Popular(train_set)
    queries = make_queries(dataset_of(tests), baseline.known, "all")
    answers = baseline.answer(queries, candidates, 3)
    clicks = train_set.item_clicks()
    ids = np.flatnonzero(candidates & (clicks > 0))
    best = ids[np.argsort(-clicks[ids], kind="stable")][:3]
    for label, rank, top in zip(queries.labels, answers.ranks, answers.top):
        assert rank == slow_ranks(dict(enumerate(clicks)), label, candidates)
        assert [item for item in top if item >= 0] == best.tolist()


def test_new_items_alone_tie_for_what_only_counts():
    """Baselines are asked for the same labels as a model by content, and have nothing to say."""
    train_set, test = dataset_of([[0, 1, 2], [1, 2]]), dataset_of([[0, 1], [1, 5], [2, 6, 2]])
    new = np.arange(ITEMS) > 4
    for answers in comparison.answer_with_baselines(
            infer.BASELINES, train_set, Task(test, "all", new, new), 3):
        assert answers.ranks.tolist() == [ITEMS - 5] * 2 and (answers.top < 0).all()


def test_the_default_baselines_in_groups_are_those_of_one_group(monkeypatch):
    random = np.random.default_rng(0)
    sessions = [random.integers(0, 200, random.integers(2, 12)).tolist() for _ in range(400)]
    train_set, test = dataset_of(sessions, 200), dataset_of(sessions[::7], 200)
    everything = np.ones(200, bool)
    before = train_set.items.copy()
    answers = []
    for size in (1 << 20, 16):
        for name in ("CLICKS_AT_A_TIME", "ENTRIES_AT_A_TIME", "ITEMS_AT_A_TIME"):
            monkeypatch.setattr(baselines, name, size)
        task = Task(test, "all", everything, everything)
        answers.append(comparison.answer_with_baselines(infer.BASELINES, train_set, task, 20))
    for once, in_groups in zip(*answers):
        assert (once.ranks == in_groups.ranks).all() and (once.top == in_groups.top).all()
    assert (train_set.items == before).all()


def test_the_commands_baselines_are_all_there_are():
    assert [*infer.BASELINES] == [*baselines.BASELINES]


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def trained(in_sample):
    train.main(["--epochs", "2"])
    return in_sample


def test_without_the_flags_nothing_is_added(trained, capsys):
    capsys.readouterr()
    assert infer.main([]) == 0
    plain = capsys.readouterr().out
    assert infer.main(["--baselines", "popular", "--topk", "20"]) == 0
    with_table = capsys.readouterr().out
    without_time = [re.sub(r"(time_cost\(s\)|queries/s):\S+", "", text).splitlines()
                    for text in (plain, with_table)]
    assert without_time[1][:len(without_time[0])] == without_time[0]
    assert [line.split()[:2] for line in without_time[1][len(without_time[0]):]] == [
        ["K", "recall"], ["20", "epoch"], ["20", "epoch"], ["20", "popular"]]


def test_the_table_says_what_the_lines_say(trained, capsys):
    capsys.readouterr()
    assert infer.main(["--start_index", "2", "--topk", "5", "20", "--positions", "all",
                       "--baselines", *infer.BASELINES]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("K "))
    table = [re.split(r"\s{2,}", line) for line in lines[start:]]
    assert table[0] == ["K", *metrics.NAMES]
    assert [row[:2] for row in table[1:]] == [[k, name] for k in ("5", "20") for name in (
        "epoch 2", "popular", "item_knn", "v_sknn")]
    assert len({line.find("[") for line in lines[start + 1:]}) == 1  # aligned
    of_all = re.search(r"all labels.*recall@20:(\S+) mrr@20:(\S+)", out).groups()
    assert (table[5][2].split()[0], table[5][3].split()[0]) == of_all


def test_unknown_candidates_are_those_of_all_rows(trained, capsys):
    """Without content no unknown item has a vector: an error, not a table of nothing."""
    assert infer.main(["--candidates", "unknown", "--baselines", "popular"]) == 1
    assert "no item without a training click" in capsys.readouterr().err


def test_other_training_sessions_are_warned_of(trained, capsys):
    assert infer.main(["--start_index", "2", "--baselines", "popular"]) == 0
    assert "holds other sessions" not in capsys.readouterr().err
    assert infer.main(["--start_index", "2", "--baselines", "popular", "--train_dir",
                       "test_data"]) == 0
    assert "test_data holds other sessions than the model was" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    (["--train_dir", "train_data"], "--train_dir is for --baselines"),
    (["--baselines", "random"], "invalid choice"),
    (["--baselines"], "expected at least one"),
])
def test_usage_errors(flags, message, capsys):
    with pytest.raises(SystemExit):
        infer.parse_args(flags)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    (["--report", "nowhere/report.html"], "--report: cannot write nowhere/report.html"),
    (["--report", "."], "--report: cannot write .: it is a directory"),
    (["--baselines", "popular", "--train_dir", "nowhere"], "cannot read the directory nowhere"),
])
def test_errors_come_before_the_work(trained, flags, message, capsys):
    capsys.readouterr()
    assert infer.main(flags) == 1
    captured = capsys.readouterr()
    assert message in captured.err and "recall" not in captured.out


# --- the report -----------------------------------------------------------------------------------

TEXT = "A <script>alert('&')</script> & \"more\""


class Page(HTMLParser):
    """What is in a page: text, tags, and the attributes that could load something."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.tags, self.loads = [], "", [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def write_items(path, vocab_size=60):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(f"<b>{item}</b>\t{TEXT} {item}\n" for item in range(vocab_size))


def test_report(trained):
    write_items("texts.txt")
    assert infer.main(["--start_index", "1", "--topk", "5", "20", "--baselines", *infer.BASELINES,
                       "--report", "report.html", "--items_path", "texts.txt", "--positions",
                       "all"]) == 0
    html = (trained / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and "b" in page.tags and not page.loads
    assert "url(" not in html and "@import" not in html and "http" not in html
    for part in ("Evaluation of model_output", "recall@5", "popularity@20", "By position",
                 "By popularity", "clicked in training", "Examples", "against v_sknn", TEXT,
                 "<b>", "epoch 1", "item_knn"):
        assert part in page.text, part
    assert not [name for name in os.listdir(trained) if name.endswith(".tmp")]


def test_a_report_needs_no_baselines_and_no_texts(trained):
    assert infer.main(["--start_index", "2", "--report", "report.html", "--items_path",
                       "none.txt"]) == 0
    page = Page((trained / "report.html").read_text(encoding="utf-8"))
    assert "epoch 2" in page.text and "best baseline" not in page.text


def test_a_report_that_fails_leaves_the_one_before(trained, monkeypatch):
    (trained / "report.html").write_text("before")
    monkeypatch.setattr(report, "_examples", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        infer.main(["--report", "report.html"])
    assert (trained / "report.html").read_text() == "before"


@given(st.lists(st.integers(0, 50), min_size=1, max_size=80))
def test_parts_by_popularity_are_parts(clicks):
    clicks = np.array(clicks)
    parts = report.by_popularity(clicks)
    assert len(parts) <= report.POPULARITY_BINS
    assert (sum(map(np.int64, parts.values()), np.zeros(len(clicks), np.int64))
            == (clicks > 0)).all()


def test_parts_by_position_are_parts():
    positions = np.arange(2, 40)
    parts = report.by_position(positions)
    assert (sum(part.astype(int) for part in parts.values()) == 1).all()
    assert parts["click 6–10"].sum() == 5 and parts["click 21 and later"].sum() == 19


def test_examples_are_of_every_kind():
    model, other = np.tile([1, 0, 1, 50], 25), np.tile([0, 3, 2, 0], 25)
    chosen = report.choose_examples([model, other], 20)
    assert len(chosen) == len({*chosen}) == report.EXAMPLES
    assert Counter(query % 4 for query in chosen) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert chosen == report.choose_examples([model, other], 20)
    assert len(report.choose_examples([model[:3], other[:3]], 20)) == 3

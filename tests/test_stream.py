"""The live score: what is seen when, by brute force, and the replay as a user runs it."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate_stream
import reader
import train
import utils
from ssr.errors import DataError
from ssr.news import baselines as stream_baselines
from ssr.news import stream

DIM = 4
SCORING = stream.Scoring(readers=1.0, content=0.5, power=(0.1, 0.2, 0.3, -0.1), followed=0.4,
                         share=3.0, last=(0.5, 0.2), earlier=(0.1, 0.05), floor=0.01)

# (item, session, seconds after the click before)
clicks_of = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 900)),
                     min_size=2, max_size=40)


def played(steps, seed=0):
    """[(item, items of the session before, time, user)] of a list of steps."""
    random = np.random.default_rng(seed)
    sessions, clicks, now = {}, [], 1000
    for item, session, later in steps:
        now += later
        before = sessions.setdefault(session, [])
        user = stream.unit(random.normal(size=DIM)).astype(np.float32) if before else None
        clicks.append((item, list(before), now, user))
        before.append(item)
    return clicks


def vector_of(item):
    return stream.unit(np.random.default_rng(item).normal(size=DIM)) if item % 2 else None


def asked(state, user, session, now, scoring=SCORING):
    return dict(zip(*(part.tolist() for part in state.scores(user, session, now, scoring))))


def by_hand(clicks, user, session, now, scoring, age=stream.AGE):
    """{item: score}, from the equations and the list of all clicks."""
    seen = [click for click in clicks if click[2] < now]
    common, users, means, readers = np.zeros(DIM), 0, {}, {}
    for item, _, _, vector in seen:
        if vector is not None:
            users += 1
            common = common + (vector - common) / min(users, stream.COMMON)
            readers[item] = n = readers.get(item, 0) + 1
            mean = means.get(item, np.zeros(DIM))
            means[item] = mean + (vector - common - mean) / min(n, stream.READERS)

    def clicked(item, window):
        return sum(np.exp((t - now) / window) for i, _, t, _ in seen if i == item)

    def passed(source, target, window):
        total = 0.0
        for item, before, time, _ in seen:
            lags = [lag for lag, i in enumerate(reversed(before[-stream.LAGS:]), 1) if i == source]
            if item == target and lags and source != target:
                total += np.exp((time - now) / window) / lags[0]
        return total

    last = {item: time for item, _, time, _ in seen}
    # An article is known from its transitions on.
    window = stream.WINDOWS[stream.SHARE_WINDOW]
    total = sum(clicked(item, window) for item in last)
    result = {}
    for item in set(last) - set(session):
        if last[item] < now - age:
            continue
        n = readers.get(item, 0)
        enough = n / (n + stream.SHRINK)
        score = sum(power * np.log(clicked(item, w) + stream.COUNT_FLOOR)
                    for power, w in zip(scoring.power, stream.WINDOWS))
        if user is not None and users:
            direction = stream.unit(user - common)
            if n:
                score += scoring.readers * enough * (stream.unit(means[item]) @ direction)
            if vector_of(item) is not None:
                score += (scoring.content * (1 - enough)
                          * ((vector_of(item) - common) @ direction))
        newest = session[-1] if session else None
        score += scoring.followed * np.log(
            passed(newest, item, stream.PASSAGES[-1]) + stream.LINK_FLOOR)
        mixed = scoring.share * clicked(item, window) / total + scoring.floor + stream.TINY
        for lag, source in enumerate(reversed(session[-stream.LAGS:]), 1):
            for weight, w in zip(scoring.last if lag == 1 else scoring.earlier, stream.PASSAGES):
                mixed += weight * passed(source, item, w) / lag
        result[item] = score + np.log(mixed)
    return result


@settings(max_examples=60, deadline=None)
@given(clicks_of, st.lists(st.integers(0, 8), max_size=4), st.integers(0, 2000))
def test_the_score_is_what_the_equations_say(steps, session, later):
    clicks = played(steps)
    state = stream.Stream(DIM, vector_of)
    for click in clicks:
        state.click(*click)
    user = stream.unit(np.arange(DIM) - 1.0).astype(np.float32)
    now = clicks[-1][2] + later
    expected = by_hand(clicks, user, session, now, SCORING)
    found = asked(state, user, session, now)
    assert found.keys() == expected.keys()
    for item, score in expected.items():
        assert found[item] == pytest.approx(score, abs=2e-4)


def test_a_click_is_seen_by_what_asks_later_and_not_at_its_own_time():
    state = stream.Stream(DIM)
    state.click(3, [], 100)
    assert asked(state, None, [], 100) == {}
    assert list(asked(state, None, [], 101)) == [3]


@settings(max_examples=30, deadline=None)
@given(clicks_of)
def test_clicks_together_and_one_by_one_are_the_same(steps):
    clicks = played(steps)
    one, many = stream.Stream(DIM, vector_of), stream.Stream(DIM, vector_of)
    for click in clicks:
        one.click(*click)
        one.advance(click[2])
    many.clicks_of(*zip(*clicks))
    now = clicks[-1][2] + 1
    user = np.ones(DIM, np.float32) / 2
    assert asked(one, user, [1, 2], now) == pytest.approx(asked(many, user, [1, 2], now))


@settings(max_examples=30, deadline=None)
@given(clicks_of, st.integers(0, 40))
def test_a_stream_goes_on_from_its_arrays(steps, cut):
    clicks = played(steps)
    whole, half = stream.Stream(DIM, vector_of), stream.Stream(DIM, vector_of)
    whole.clicks_of(*zip(*clicks))
    for click in clicks[:cut]:
        half.click(*click)
    half = stream.Stream.from_arrays(half.to_arrays(), vector_of)
    for click in clicks[cut:]:
        half.click(*click)
    now = clicks[-1][2] + 1
    user = np.ones(DIM, np.float32) / 2
    assert asked(whole, user, [3], now) == pytest.approx(asked(half, user, [3], now))


def test_arrays_survive_a_file(tmp_path):
    state = stream.Stream(DIM, vector_of, age=500)
    state.clicks_of(*zip(*played([(1, 0, 0), (2, 0, 5), (3, 0, 5), (2, 1, 0), (4, 1, 0)])))
    state.withdraw(3)
    np.savez(tmp_path / "state.npz", **state.to_arrays())
    with np.load(tmp_path / "state.npz") as arrays:
        loaded = stream.Stream.from_arrays(dict(arrays), vector_of)
    assert loaded.age == 500
    assert asked(loaded, None, [1], 1011) == asked(state, None, [1], 1011)
    assert set(asked(loaded, None, [1], 1011)) == {2, 4}


def test_a_withdrawn_article_is_gone_until_it_is_restored():
    state = stream.Stream(DIM)
    state.clicks_of([1, 2], [[], []], [0, 0], [None, None])
    state.withdraw(1)
    assert list(asked(state, None, [], 1)) == [2]
    state.click(1, [], 2)
    assert list(asked(state, None, [], 3)) == [2]
    state.restore(1)
    assert set(asked(state, None, [], 3)) == {1, 2}
    state.withdraw(9)
    state.click(9, [], 4)
    assert set(asked(state, None, [], 5)) == {1, 2}


def test_a_published_article_is_a_candidate_before_its_first_click():
    state = stream.Stream(DIM)
    direction = stream.unit(np.arange(DIM) + 1.0).astype(np.float32)
    state.clicks_of([1, 2], [[], [1]], [0, 1], [None, -direction])
    state.publish(7, 2, direction)
    state.publish(8, 2)
    found = asked(state, direction, [], 3, stream.Scoring(content=1.0))
    assert set(found) == {1, 2, 7, 8} and found[7] > found[8]


def test_what_is_not_read_any_more_is_forgotten():
    state = stream.Stream(DIM, age=1000)
    for hour in range(30):
        for item in range(20):
            state.click(100 * hour + item, [100 * hour + item - 1], 3601 * hour, np.ones(DIM))
    state.advance(3601 * 30)
    assert len(state) <= 21
    assert sum(len(t.used()[0]) for t in state.targets if t) <= 21
    assert len(state.ids) == 1024


def test_counts_survive_years():
    state = stream.Stream(DIM, age=1e9)
    state.click(1, [2], 0)
    for year in range(1, 4):
        state.click(1, [2], year * 31e6)
    state.click(3, [2], 3 * 31e6)
    linear, mixed = state.features(None, [2], 3 * 31e6 + 1)
    assert np.isfinite(linear).all() and np.isfinite(mixed).all()
    assert np.exp(linear[2, 0]) == pytest.approx(np.exp(-1 / 300) + stream.COUNT_FLOOR, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(clicks_of)
def test_ranks_count_ties_against(steps):
    clicks = played(steps)
    state = stream.Stream(DIM)
    for item, before, now, user in clicks:
        scores = asked(state, user, before, now)
        expected = sum(score >= scores[item] for score in scores.values()) if item in scores else 0
        assert state.rank(item, user, before, now, SCORING) == expected
        state.click(item, before, now, user)


def test_all_weights_of_zero_rank_last():
    state = stream.Stream(DIM)
    state.clicks_of([1, 2, 3], [[]] * 3, [0] * 3, [None] * 3)
    nothing = stream.Scoring().without("readers", "content", "popularity", "transitions", "floor")
    assert state.rank(2, None, [], 1, nothing) == 3


def test_top_is_the_best_of_scores():
    state = stream.Stream(DIM)
    state.clicks_of(*zip(*played([(item % 5, item % 3, item) for item in range(30)])))
    ids, scores = state.top(None, [4], 5000, SCORING, 2)
    everything = asked(state, None, [4], 5000)
    assert ids.tolist() == sorted(everything, key=everything.get, reverse=True)[:2]
    assert (np.diff(scores) <= 0).all()
    only, _ = state.scores(None, [4], 5000, SCORING, candidates=[1, 4, 77])
    assert only.tolist() == [1]


# --- parameters -----------------------------------------------------------------------------------


def test_parameters_survive_json():
    assert stream.Scoring.from_json(SCORING.to_json()) == SCORING
    again = stream.Scoring.from_weights(*SCORING.weights())
    assert np.allclose(np.concatenate(again.weights()), np.concatenate(SCORING.weights()))


@pytest.mark.parametrize("text", ["", "[]", "{\"readers\": \"much\"}", "{\"reader\": 1}",
                                  "{\"power\": [1]}", "{\"share\": -1}", "{\"readers\": NaN}"])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError):
        stream.Scoring.from_json(text)


def rule_examples(follow):
    """Examples of clicks of which `follow` of 10 go to the article that always comes after."""
    random = np.random.default_rng(0)
    state, examples = stream.Stream(DIM), stream.Examples()
    for step in range(600):
        source = int(random.integers(0, 10))
        label = source + 10 if random.integers(0, 10) < follow else int(random.integers(10, 20))
        user = stream.unit(random.normal(size=DIM)).astype(np.float32)
        if step > 200:
            examples.add(state, label, user, [source], 10 * step)
        state.click(source, [], 10 * step)
        state.click(label, [source], 10 * step, user)
    return examples


def test_fit_finds_what_the_clicks_follow():
    examples = rule_examples(follow=9)
    assert len(examples) > 300
    fitted, before, after = stream.fit(examples)
    assert after < before - 0.1
    bare, _, without = stream.fit(examples, off=("transitions",))
    assert without > after + 0.5
    assert bare.last == (0, 0) and bare.earlier == (0, 0) and bare.followed == 0
    assert min(fitted.last + fitted.earlier) >= 0 and fitted.content >= 0


def test_examples_hold_the_label_and_the_best(monkeypatch):
    monkeypatch.setattr(stream.Examples, "BEST", 1)
    state, examples = stream.Stream(DIM), stream.Examples()
    for item in range(9):
        state.clicks_of([item] * (item + 1), [[]] * (item + 1), [item] * (item + 1),
                        [None] * (item + 1))
    examples.add(state, 3, None, [8], 20)
    examples.add(state, 8, None, [8], 20)  # its own session has it
    linear, label = examples.linear[0], examples.label[0]
    assert len(examples) == 1
    assert np.exp(linear[2, label]) == pytest.approx(4 + stream.COUNT_FLOOR, rel=0.1)
    assert np.exp(linear[2].max()) == pytest.approx(8 + stream.COUNT_FLOOR, rel=0.1)


# --- baselines ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(clicks_of)
def test_popular_by_brute_force(steps):
    clicks = played(steps)
    method = stream_baselines.Popular(10, 600)
    seen = []
    for item, before, now, _ in clicks:
        count = {i: sum(j == i and t >= now - 600 for j, t in seen) for i in range(10)}
        newest = {i: max([t for j, t in seen if j == i], default=-1) for i in range(10)}
        others = [i for i in range(10) if i not in before and count[i]]
        expected = sum((count[i], newest[i]) >= (count[item], newest[item]) for i in others)
        assert method.rank(item, before, now, 0) == (expected if item in others else 0)
        method.click(item, before, now, 0)
        seen.append((item, now))


@settings(max_examples=60, deadline=None)
@given(clicks_of, st.integers(1, 3))
def test_session_knn_by_brute_force(steps, k):
    method = stream_baselines.VSKNN(10, k)
    sessions, newest = {}, {}
    for number, (item, session, _) in enumerate(steps):
        current = sessions.setdefault(session, [])
        weight = {i: place / len(current) for place, i in enumerate(current, 1)}
        sharing = [s for s in sessions if s != session and any(i in weight for i in sessions[s])]
        sharing = sorted(sharing, key=lambda s: -newest[s])
        sharing = sorted(sharing, key=lambda s: -sum(weight.get(i, 0) for i in set(sessions[s])))
        scores = {}
        for s in sharing[:k]:
            for i in set(sessions[s]):
                scores[i] = scores.get(i, 0) + sum(weight.get(j, 0) for j in set(sessions[s]))
        scores = {i: score for i, score in scores.items() if i not in current}
        expected = sum(score >= scores[item] - 1e-9 for score in scores.values()) \
            if item in scores else 0
        found = method.rank(item, list(current), number, session)
        assert abs(found - expected) <= _ties(scores, item)
        method.click(item, list(current), number, session)
        current.append(item)
        newest[session] = number


def _ties(scores, item):
    """Sums in another order differ in their last digit: those may be told apart or not."""
    return sum(abs(score - scores[item]) < 1e-9 for score in scores.values()) - 1 \
        if item in scores else 0


# --- times and the command ------------------------------------------------------------------------


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def test_times_belong_to_the_clicks(tmp_path):
    write(tmp_path / "a" / "one.txt", "1 2 3", "4", "", "2 1")
    write(tmp_path / "t" / "one.txt", "10 20 20", "5", "", "7 1700000000")
    data, times = reader.load_timed_sessions(str(tmp_path / "a"), str(tmp_path / "t"), 5)
    assert data.items.tolist() == [1, 2, 3, 2, 1]
    assert times.tolist() == [10, 20, 20, 7, 1700000000]


@pytest.mark.parametrize("lines, message", [
    (["10 20"], "line 1: 2 times, and the same line of .* has 3 clicks"),
    (["10 20 30"], "holds 1 lines and .* 2"),
    (["10 20 30", "4 x"], "line 2: 'x' is not a time; .*a line holds the times"),
    (["10 20 15", "1 2"], "line 1: the times fall"),
])
def test_times_that_do_not_fit_are_refused(tmp_path, lines, message):
    write(tmp_path / "a" / "one.txt", "1 2 3", "4 1")
    write(tmp_path / "t" / "one.txt", *lines)
    with pytest.raises(DataError, match=message):
        reader.load_timed_sessions(str(tmp_path / "a"), str(tmp_path / "t"), 5)


def news(path, day, sessions=150, seed=0):
    """Sessions over articles that appear as the day goes: ids rise with time. Articles below 40 are
    those of the day before."""
    random = np.random.default_rng(seed)
    lines, times = [], []
    for _ in range(sessions):
        start = int(random.integers(0, 20000))
        newest = 30 + 40 * day + start // 500
        items = random.permutation(np.arange(newest - 8, newest))[:random.integers(2, 5)]
        lines.append(" ".join(map(str, items)))
        times.append(" ".join(str(86400 * day + start + 10 * i) for i in range(len(items))))
    write(path / f"day{day}" / "s.txt", *lines)
    write(path / f"times{day}" / "s.txt", *times)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for day in range(3):
        news(tmp_path, day, seed=day)
    (tmp_path / "vocab.txt").write_text("160\n")
    assert train.main(["--train_dir", "day0", "--recipe", "strong", "--epochs", "1",
                       "--embedding_dim", "8", "--hidden_size", "8"]) == 0
    return tmp_path


def run(day, *flags):
    return evaluate_stream.main(["--test_dir", f"day{day}", "--times", f"times{day}", "--warm_dir",
                                 f"day{day - 1}", "--warm_times", f"times{day - 1}", *flags])


def test_the_command_fits_a_day_and_evaluates_the_next(trained, capsys):
    assert run(1, "--fit", "--baselines") == 0
    out = capsys.readouterr().out
    assert "parameters written to model_output/stream.json" in out
    assert run(2, "--table", "t.tsv") == 0
    out = capsys.readouterr().out
    recall = {tuple(line.split()[:2]): float(line.split("recall@20:")[1].split()[0])
              for line in out.splitlines() if "recall@20:" in line}
    assert recall["stream", "unknown"] > recall["frozen", "unknown"] == 0
    assert {method for method, _ in recall} == {"stream", "popular", "frozen", "vsknn"}
    rows = [line.split("\t") for line in (trained / "t.tsv").read_text().splitlines()]
    assert rows[0] == ["hour", "method", "labels", "queries", "recall@20", "mrr@20"]
    queries = sum(int(row[3]) for row in rows[1:] if row[1:3] == ["stream", "all"])
    data, _ = reader.load_timed_sessions("day2", "times2", 160)
    assert queries == len(data.items) - len(data)


def test_parts_can_be_switched_off(trained, capsys):
    assert run(2, "--baselines", "--without", *evaluate_stream.PARTS) == 0
    assert "stream   all" in capsys.readouterr().out
    assert run(1, "--fit", "--without", "transitions", "--baselines") == 0
    found = json.loads((trained / "model_output" / "stream.json").read_text())
    assert found["last"] == [0, 0] and found["share"] > 0


def test_mistakes_are_told_in_a_line(trained, capsys):
    assert run(2, "--scoring", "missing.json") == 1
    assert "there is no missing.json: --fit makes it" in capsys.readouterr().err
    (trained / "bad.json").write_text("{}x")
    assert run(2, "--scoring", "bad.json") == 1
    assert "cannot read bad.json" in capsys.readouterr().err
    assert run(2, "--times", "nowhere") == 1
    assert "there is no nowhere/s.txt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate_stream.main(["--warm_dir", "day0"])


def test_a_plot_is_drawn(trained, capsys):
    pytest.importorskip("matplotlib")
    assert run(2, "--baselines", "popular", "--plot", "p.png") == 0
    assert (trained / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif("GLOBO_DEV" not in os.environ, reason="GLOBO_DEV names no directory of it")
def test_popularity_on_real_news(tmp_path):
    source = os.environ["GLOBO_DEV"]
    vocabulary = {}
    for part in ("train", "test"):
        with open(os.path.join(source, f"{part}.txt")) as f:
            lines = [" ".join(str(vocabulary.setdefault(raw, len(vocabulary)))
                              for raw in line.split()) for line in f]
        write(tmp_path / part / "s.txt", *lines)
        with open(os.path.join(source, f"{part}_times.txt")) as f:
            write(tmp_path / f"{part}_times" / "s.txt", *f.read().splitlines())
    parts = [part for name in ("test", "train") for part in reader.load_timed_sessions(
        str(tmp_path / name), str(tmp_path / f"{name}_times"), len(vocabulary))]
    clicks = evaluate_stream.in_order(*parts)
    method = evaluate_stream.Baseline(stream_baselines.Popular(len(vocabulary), 900))
    ranks, _ = evaluate_stream.replay(clicks, method, "popular")
    assert len(ranks) == 60439
    assert np.round(100 * np.array(utils.recall_mrr(ranks, 20)), 1).tolist() == [53.1, 19.4]


def test_session_knn_takes_the_newest_sessions():
    method = stream_baselines.VSKNN(10, k=100, sample=2)
    for session, item in enumerate([1, 2, 3]):
        method.click(0, [], 0, session)
        method.click(item, [0], 0, session)
    assert method.rank(1, [0], 1, 9) == 0
    assert method.rank(2, [0], 1, 9) == method.rank(3, [0], 1, 9) == 2


def test_words_give_an_article_of_the_day_its_vector(trained, capsys):
    """With content the frozen model ranks what training never saw, and the stream knows its
    words."""
    write(trained / "item_tokens.txt", *(f"{item % 8} {8 + item % 5}" for item in range(160)))
    write(trained / "known_tokens.txt", *(f"{item % 8} {8 + item % 5}" for item in range(110)))
    write(trained / "known_vocab.txt", "110")
    assert train.main(["--train_dir", "day1", "--vocab_path", "known_vocab.txt", "--recipe",
                       "strong", "--epochs", "1", "--embedding_dim", "8", "--hidden_size", "8",
                       "--num_negatives", "20", "--item_tokens", "known_tokens.txt", "--model_dir",
                       "words"]) == 0
    capsys.readouterr()
    assert run(2, "--model_dir", "words", "--baselines", "frozen") == 0
    out = capsys.readouterr().out
    recall = {tuple(line.split()[:2]): float(line.split("recall@20:")[1].split()[0])
              for line in out.splitlines() if "recall@20:" in line}
    assert recall["frozen", "unknown"] > 0 and recall["stream", "unknown"] > 0
    assert run(2, "--model_dir", "words", "--item_tokens", "known_tokens.txt") == 1
    assert "known_tokens.txt holds 110 lines" in capsys.readouterr().err

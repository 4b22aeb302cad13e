"""The live score: what is seen when, by brute force, and the replay as a user runs it."""

import json
import os
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate_stream
import reader
import train
import utils
from ssr.errors import DataError
from ssr.news import (
    AGE,
    Examples,
    Scoring,
    Stream,
    baselines,
    fit_scoring,
    read_scoring,
    write_scoring,
)
from ssr.news.question import Question
from ssr.news.replay import replay
from ssr.news.scoring import (
    COUNT_FLOOR,
    LAGS,
    LINK_FLOOR,
    PARTS,
    PASSAGES,
    READERS,
    SHARE_WINDOW,
    SHRINK,
    TINY,
    WINDOWS,
    Features,
)
from ssr.news.stream import COMMON, normalized
from ssr.news.timeline import ReplayedClick, Timeline

DIM = 4
SCORING = Scoring(readers=1.0, content=0.5, power=(0.1, 0.2, 0.3, -0.1), followed=0.4,
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
        user = normalized(random.normal(size=DIM)).astype(np.float32) if before else None
        clicks.append((item, list(before), now, user))
        before.append(item)
    return clicks


def take_in(state, clicks):
    for click in clicks:
        state.click(*click)


def vector_of(item):
    return normalized(np.random.default_rng(item).normal(size=DIM)) if item % 2 else None


def asked(state, user, session, now, scoring=SCORING):
    return dict(zip(*(part.tolist() for part in state.scores(user, session, now, scoring))))


def by_hand(clicks, user, session, now, scoring, age=AGE):
    """{item: score}, from the equations and the list of all clicks."""
    happened = [click for click in clicks if click[2] < now]
    seen = [click for click in happened if click[0] not in click[1]]  # a session counts once
    common, users, means, readers = np.zeros(DIM), 0, {}, {}
    for item, _, _, vector in seen:
        if vector is not None:
            users += 1
            common = common + (vector - common) / min(users, COMMON)
            readers[item] = n = readers.get(item, 0) + 1
            mean = means.get(item, np.zeros(DIM))
            means[item] = mean + (vector - common - mean) / min(n, READERS)

    def clicked(item, window):
        return sum(np.exp((t - now) / window) for i, _, t, _ in seen if i == item)

    def passed(source, target, window):
        total = 0.0
        for item, before, time, _ in seen:
            lags = [lag for lag, i in enumerate(reversed(before[-LAGS:]), 1) if i == source]
            if item == target and lags and source != target:
                total += np.exp((time - now) / window) / lags[0]
        return total

    last = {item: time for item, _, time, _ in happened}
    # An article is known from its transitions on.
    window = WINDOWS[SHARE_WINDOW]
    total = sum(clicked(item, window) for item in last)
    result = {}
    for item in set(last) - set(session):
        if last[item] < now - age:
            continue
        n = readers.get(item, 0)
        enough = n / (n + SHRINK)
        score = sum(power * np.log(clicked(item, w) + COUNT_FLOOR)
                    for power, w in zip(scoring.power, WINDOWS))
        if user is not None and users:
            direction = normalized(user - common)
            if n:
                score += scoring.readers * enough * (normalized(means[item]) @ direction)
            if vector_of(item) is not None:
                score += (scoring.content * (1 - enough)
                          * ((vector_of(item) - common) @ direction))
        newest = session[-1] if session else None
        score += scoring.followed * np.log(
            passed(newest, item, PASSAGES[-1]) + LINK_FLOOR)
        mixed = scoring.share * clicked(item, window) / total + scoring.floor + TINY
        for lag, source in enumerate(reversed(session[-LAGS:]), 1):
            for weight, w in zip(scoring.last if lag == 1 else scoring.earlier, PASSAGES):
                mixed += weight * passed(source, item, w) / lag
        result[item] = score + np.log(mixed)
    return result


@settings(max_examples=60, deadline=None)
@given(clicks_of, st.lists(st.integers(0, 8), max_size=4), st.integers(0, 2000))
def test_the_score_is_what_the_equations_say(steps, session, later):
    clicks = played(steps)
    state = Stream(DIM, vector_of)
    for click in clicks:
        state.click(*click)
    user = normalized(np.arange(DIM) - 1.0).astype(np.float32)
    now = clicks[-1][2] + later
    expected = by_hand(clicks, user, session, now, SCORING)
    found = asked(state, user, session, now)
    assert found.keys() == expected.keys()
    for item, score in expected.items():
        assert found[item] == pytest.approx(score, abs=2e-4)


@st.composite
def scorings(draw):
    """Any weights, small ones, large ones and those of the package."""
    weight = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e-6, 1e6]), st.floats(-5, 5))
    share = st.one_of(st.sampled_from([0.0, 1.0, 1e6]), st.floats(0, 50))
    many = st.tuples(share, share)
    return draw(st.one_of(st.just(Scoring()), st.just(SCORING), st.builds(
        Scoring, weight, weight, st.tuples(*[weight] * len(WINDOWS)), weight, share, many, many,
        share)))


@settings(max_examples=150, deadline=None)
@given(clicks_of, scorings(), st.lists(st.integers(0, 8), max_size=4), st.integers(1, 8),
       st.sampled_from([0, 0.5, 30, 70, 4000]), st.integers(0, 3))
def test_passing_over_articles_changes_nothing(steps, scoring, session, k, later, leaders):
    """What is asked after each click is the best, and the rank, of all scores, in their order; no
    article is scored first unless it must be."""
    state = Stream(DIM, vector_of)
    with mock.patch.multiple("ssr.news.question", LEADERS=leaders, MARKED=3):
        for item, before, now, user in played(steps):
            state.advance(now)
            for asked_at in (now, now + later):
                question = state._ask(user, session, asked_at, scoring)
                candidates = state.candidates(session, asked_at)
                rows = np.flatnonzero(candidates)
                scores = question.scores(rows)
                best = np.lexsort((rows, -scores))[:k]
                found, found_scores = question.best(candidates, k)
                assert found.tolist() == rows[best].tolist()
                assert found_scores.tolist() == scores[best].tolist()
                for row, score in zip(rows, scores):
                    rank = np.count_nonzero(scores >= score)
                    assert question.rank(row, candidates, len(rows)) == rank
                    assert question.rank(row, candidates, k) == (rank if rank <= k else 0)
            state.click(item, before, now, user)


def test_few_of_many_articles_are_scored():
    random = np.random.default_rng(0)
    state, scored = Stream(DIM), []
    for number in range(20_000):
        item = int(2000 * random.random() ** 3)
        state.click(item, [int(random.integers(2000))], number, np.ones(DIM, np.float32) / 2)
    state.advance(20_001)
    user, rest = normalized(np.arange(DIM) - 1.0).astype(np.float32), Question._rest

    def counting(question, rows):
        scored.append(len(rows))
        return rest(question, rows)
    ids, scores = state.scores(user, [3], 20_001, Scoring())
    with mock.patch.object(Question, "_rest", counting):
        best, _ = state.top(user, [3], 20_001, Scoring(), 20)
    assert set(best) == set(ids[np.argsort(-scores)[:20]])
    assert sum(scored) < len(ids) / 3


def test_a_click_is_seen_by_what_asks_later_and_not_at_its_own_time():
    state = Stream(DIM)
    state.click(3, [], 100)
    assert asked(state, None, [], 100) == {}
    assert list(asked(state, None, [], 101)) == [3]


@settings(max_examples=30, deadline=None)
@given(clicks_of)
def test_clicks_together_and_one_by_one_are_the_same(steps):
    clicks = played(steps)
    one, many = Stream(DIM, vector_of), Stream(DIM, vector_of)
    for click in clicks:
        one.click(*click)
        one.advance(click[2])
    take_in(many, clicks)
    now = clicks[-1][2] + 1
    user = np.ones(DIM, np.float32) / 2
    assert asked(one, user, [1, 2], now) == pytest.approx(asked(many, user, [1, 2], now))


@settings(max_examples=30, deadline=None)
@given(clicks_of, st.integers(0, 40))
def test_a_stream_goes_on_from_its_arrays(steps, cut):
    clicks = played(steps)
    whole, half = Stream(DIM, vector_of), Stream(DIM, vector_of)
    take_in(whole, clicks)
    for click in clicks[:cut]:
        half.click(*click)
    half = Stream.from_arrays(half.to_arrays(), vector_of)
    for click in clicks[cut:]:
        half.click(*click)
    now = clicks[-1][2] + 1
    user = np.ones(DIM, np.float32) / 2
    assert asked(whole, user, [3], now) == pytest.approx(asked(half, user, [3], now))


def test_arrays_survive_a_file(tmp_path):
    state = Stream(DIM, vector_of, age=500)
    take_in(state, played([(1, 0, 0), (2, 0, 5), (3, 0, 5), (2, 1, 0), (4, 1, 0)]))
    state.withdraw(3)
    np.savez(tmp_path / "state.npz", **state.to_arrays())
    with np.load(tmp_path / "state.npz") as arrays:
        loaded = Stream.from_arrays(dict(arrays), vector_of)
    assert loaded.age == 500
    assert asked(loaded, None, [1], 1011) == asked(state, None, [1], 1011)
    assert set(asked(loaded, None, [1], 1011)) == {2, 4}


def test_a_withdrawn_article_is_gone_until_it_is_restored():
    state = Stream(DIM)
    take_in(state, [(1, [], 0), (2, [], 0)])
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
    state = Stream(DIM)
    direction = normalized(np.arange(DIM) + 1.0).astype(np.float32)
    take_in(state, [(1, [], 0), (2, [1], 1, -direction)])
    state.publish(7, 2, direction)
    state.publish(8, 2)
    found = asked(state, direction, [], 3, Scoring(content=1.0))
    assert set(found) == {1, 2, 7, 8} and found[7] > found[8]


def test_a_click_ahead_of_the_clock_ages_nothing():
    state = Stream(DIM)
    take_in(state, [(item, [], 1000 + item) for item in range(100)])
    take_in(state, [(200, [], 1000 + 86340), (201, [], 1e12)])
    take_in(state, [(300, [], 1200)])
    assert set(asked(state, None, [], 1300)) == {*range(100), 300}
    without = Stream(DIM)
    take_in(without, [(item, [], 1000 + item) for item in range(100)] + [(300, [], 1200)])
    assert asked(state, None, [3], 4000) == asked(without, None, [3], 4000)
    # It is seen when its time has come.
    assert 200 in asked(state, None, [], 1000 + 86341)


def test_the_clock_does_not_go_back():
    state = Stream(DIM)
    take_in(state, [(1, [], 1000), (2, [], 90000)])
    state.advance(90001)
    assert set(asked(state, None, [], 80000)) == {1, 2}
    state.advance(5000)
    assert state.clock == 90001
    state.click(3, [], 6000)  # late
    assert set(asked(state, None, [], 90001)) == {2, 3}


def poisoned(honest, days):
    """The arrays of a Stream whose clock was that of its clicks, as in earlier versions: one came
    so many days ahead, another one twice as many."""
    state = Stream(DIM)
    take_in(state, honest)
    state.advance(2000)
    take_in(state, [(77, [3], days * 86400.0), (78, [3], 2 * days * 86400.0)])
    state.advance(days * 86400.0 + 1)
    arrays = state.to_arrays()
    assert arrays["last"].max() > 80000 and len(arrays["pending_times"]) == 1
    return {**arrays, "clock": arrays["clock"][:3]}


def test_arrays_with_clicks_of_the_future_heal():
    honest = [(item, [] if item % 3 else [0], 1000 + item) for item in range(40)]
    healed = Stream.from_arrays(poisoned(honest, 1), now=2000)
    expected = Stream(DIM)
    take_in(expected, [*honest, (77, [3], 2000), (78, [3], 2000)])
    scores = asked(healed, None, [3], 2001)
    assert len(scores) == 41
    assert scores == pytest.approx(asked(expected, None, [3], 2001), abs=1e-3)
    # Some things are lost, others come.
    healed = Stream.from_arrays(poisoned(honest, 3), now=2000)
    healed.click(5, [3], 2002)
    scores = asked(healed, None, [3], 2003)
    assert {5, 77, 78} <= set(scores) and np.isfinite(list(scores.values())).all()
    assert max(scores.values()) - min(scores.values()) < 10
    healed.advance(90000)
    assert asked(healed, None, [], 90001) == {}


def test_one_session_lifts_an_article_no_more_than_once():
    honest = [(item, [], 2900 + number) for number, item in enumerate([1, 2, 1, 2, 1, 2, 1, 9])]

    def ranking(clicks):
        state = Stream(DIM)
        take_in(state, honest)
        take_in(state, clicks)
        return state.top(None, [], 4000, Scoring(), 4)[0].tolist()

    assert ranking([]) == [1, 2, 9]
    session = []
    for number in range(1000):  # two articles in turns, so that none follows itself
        session.append((9 if number % 2 else 5, [click[0] for click in session], 2000 + number))
    assert ranking(session) == [1, 2, 9, 5]
    assert ranking([(9, [], 2000 + number) for number in range(1000)]) == [9, 1, 2]


@pytest.mark.parametrize("seed", range(12))
def test_compaction_in_slices_is_that_at_once(seed):
    """Also where rows are moved or used again, and the base moves on, in between."""
    random = np.random.default_rng(seed)
    steps = [(int(random.integers(20)) + number // 40, int(random.integers(7)),
              int(random.integers(1, 40 if number % 100 < 80 else 400))) for number in range(400)]
    user = normalized(np.arange(DIM) - 1.0).astype(np.float32)
    with mock.patch.multiple("ssr.news.stream", COMPACT_EVERY=600.0, REBASE_AFTER=900.0,
                             SWEEP_AT_A_TIME=1 + seed % 3), \
            mock.patch("ssr.news.articles.MIN_ROOM", 4):
        sliced, whole = Stream(DIM, vector_of, age=900), Stream(DIM, vector_of, age=900)
        compactions, lingering = set(), 0
        for item, before, now, vector in played(steps):
            whole.compacted = np.inf  # not by itself
            sliced.advance(now)
            whole.advance(now)
            if sliced.compacted == now and now not in compactions:
                whole.compact(now)
                compactions.add(now)
            lingering += not sliced.transitions.is_swept
            session = [item - 1, *before[-2:]]
            assert asked(sliced, user, session, now) == pytest.approx(
                asked(whole, user, session, now), abs=1e-5)
            take_in(sliced, [(item, before, now, vector)])
            take_in(whole, [(item, before, now, vector)])
        assert len(compactions) > 5 and lingering > 10
        whole.compact(now)
        sliced.compact(now)
        arrays, others = sliced.to_arrays(), whole.to_arrays()
        assert sorted(arrays["ids"]) == sorted(others["ids"])
        assert sorted(arrays["counts"][:, 0]) == pytest.approx(sorted(others["counts"][:, 0]))


def test_room_follows_the_traffic():
    state = Stream(DIM, age=1000)
    for burst, items in enumerate((5000, 10, 4000)):
        start = burst * 4000.0
        take_in(state, [(10000 * burst + item, [10000 * burst + (item + 1) % items], start)
                        for item in range(items)])
        for second in range(1, 400):
            state.advance(start + second)
        assert len(asked(state, None, [], start + 400)) == len(state) == items
        assert items <= len(state.articles.ids) <= max(1024, 2 * items)
    state.advance(20000.0)
    assert len(state) == 0 and len(state.articles.ids) == 1024


def test_what_is_not_read_any_more_is_forgotten():
    state = Stream(DIM, age=1000)
    for hour in range(30):
        state.advance(3601 * hour)
        for item in range(20):
            state.click(100 * hour + item, [100 * hour + item - 1], 3601 * hour, np.ones(DIM))
    state.advance(3601 * 30)
    assert len(state) <= 21
    assert sum(len(state.transitions.of(row)[0]) for row in state.articles.rows.values()
               if state.transitions.of(row)) <= 21
    assert len(state.articles.ids) == 1024


def test_counts_survive_years():
    state = Stream(DIM, age=1e9)
    state.click(1, [2], 0)
    for year in range(1, 4):
        state.click(1, [2], year * 31e6)
    state.click(3, [2], 3 * 31e6)
    features = state.features(None, [2], 3 * 31e6 + 1)
    assert np.isfinite(features.linear).all() and np.isfinite(features.mixed).all()
    row = state.articles.rows[1]
    assert np.exp(features.part("power")[0, row]) == pytest.approx(
        np.exp(-1 / 300) + COUNT_FLOOR, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(clicks_of)
def test_ranks_count_ties_against(steps):
    clicks = played(steps)
    state = Stream(DIM)
    for item, before, now, user in clicks:
        scores = asked(state, user, before, now)
        expected = sum(score >= scores[item] for score in scores.values()) if item in scores else 0
        assert state.rank(item, user, before, now, SCORING, len(state)) == expected
        state.click(item, before, now, user)


def test_all_weights_of_zero_rank_last():
    state = Stream(DIM)
    take_in(state, [(1, [], 0), (2, [], 0), (3, [], 0)])
    nothing = Scoring().without("readers", "content", "popularity", "transitions", "floor")
    assert state.rank(2, None, [], 1, nothing, 3) == 3


def test_top_is_the_best_of_scores():
    state = Stream(DIM)
    take_in(state, played([(item % 5, item % 3, item) for item in range(30)]))
    ids, scores = state.top(None, [4], 5000, SCORING, 2)
    everything = asked(state, None, [4], 5000)
    assert ids.tolist() == sorted(everything, key=everything.get, reverse=True)[:2]
    assert (np.diff(scores) <= 0).all()
    only, _ = state.scores(None, [4], 5000, SCORING, among=lambda ids: np.isin(ids, [1, 4, 77]))
    assert only.tolist() == [1]


# --- parameters -----------------------------------------------------------------------------------


def test_parameters_survive_json():
    assert Scoring.from_json(SCORING.to_json()) == SCORING
    again = Scoring.from_weights(*SCORING.weights())
    assert np.allclose(np.concatenate(again.weights()), np.concatenate(SCORING.weights()))


@pytest.mark.parametrize("text", [
    '', '[]', '{"readers": "much"}', '{"reader": 1}', '{"power": [1]}', '{"share": -1}',
    '{"readers": NaN}', '{"readers": true}', '{"power": [1, 2, 3, "4"]}', '{"power": {}}',
    '{"readers": null}', '{"floor": [0.1]}', '{"readers": ' + "7" * 400 + '}',
    '{"readers": ' + "7" * 5000 + '}', "[" * 200_000, '{"power":' + "[" * 200_000],
    ids=lambda text: text[:20])
def test_other_json_is_refused(text, tmp_path):
    with pytest.raises(DataError) as error:
        Scoring.from_json(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match="cannot read .*s.json"):
        read_scoring(str(tmp_path / "s.json"))


def test_a_scoring_file_says_which_model_it_is_for(tmp_path):
    path = str(tmp_path / "s.json")
    write_scoring(path, SCORING, "abc")
    assert read_scoring(path) == (SCORING, "abc")
    with open(path) as f:
        assert Scoring.from_json(f.read()) == SCORING
    (tmp_path / "s.json").write_text(SCORING.to_json())  # as earlier versions wrote it
    assert read_scoring(path) == (SCORING, None)
    (tmp_path / "s.json").write_bytes(b"\xff\xfe{")
    for wrong in (path, str(tmp_path), str(tmp_path / "missing.json")):
        with pytest.raises(DataError, match="cannot read"):
            read_scoring(wrong)


def test_parts_have_names():
    features = Features.zeros(3)
    for number, name in enumerate(Scoring._fields, 1):
        features.part(name)[:] = number
    assert features.linear[:, 0].tolist() == [1, 2, 3, 3, 3, 3, 4]
    assert features.mixed[:, 0].tolist() == [5, 6, 6, 7, 7, 8]
    nothing = SCORING.without(*PARTS, "floor")
    assert not np.any(np.concatenate(nothing.weights()))
    assert hash(nothing) is not None


def rule_examples(follow):
    """Examples of clicks of which `follow` of 10 go to the article that always comes after."""
    random = np.random.default_rng(0)
    state, examples = Stream(DIM), Examples()
    for step in range(600):
        source = int(random.integers(0, 10))
        label = source + 10 if random.integers(0, 10) < follow else int(random.integers(10, 20))
        user = normalized(random.normal(size=DIM)).astype(np.float32)
        if step > 200:
            examples.add(state, label, user, [source], 10 * step)
        state.click(source, [], 10 * step)
        state.click(label, [source], 10 * step, user)
    return examples


def test_fit_finds_what_the_clicks_follow():
    examples = rule_examples(follow=9)
    assert len(examples) > 300
    fitted, before, after = fit_scoring(examples)
    assert after < before - 0.1
    bare, _, without = fit_scoring(examples, off=("transitions",))
    assert without > after + 0.5
    assert bare.last == (0, 0) and bare.earlier == (0, 0) and bare.followed == 0
    assert min(fitted.last + fitted.earlier) >= 0 and fitted.content >= 0


def test_examples_hold_the_label_and_the_best(monkeypatch):
    monkeypatch.setattr(Examples, "BEST", 1)
    state, examples = Stream(DIM), Examples()
    for item in range(9):
        take_in(state, [(item, [], item)] * (item + 1))
    examples.add(state, 3, None, [8], 20)
    examples.add(state, 8, None, [8], 20)  # its own session has it
    counts, label = examples.features[0].part("power")[0], examples.labels[0]
    assert len(examples) == 1
    assert np.exp(counts[label]) == pytest.approx(4 + COUNT_FLOOR, rel=0.1)
    assert np.exp(counts.max()) == pytest.approx(8 + COUNT_FLOOR, rel=0.1)


# --- baselines ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(clicks_of)
def test_popular_by_brute_force(steps):
    clicks = played(steps)
    method = baselines.Popular(10, 600)
    seen = []
    for item, before, now, _ in clicks:
        count = {i: sum(j == i and t >= now - 600 for j, t in seen) for i in range(10)}
        newest = {i: max([t for j, t in seen if j == i], default=-1) for i in range(10)}
        others = [i for i in range(10) if i not in before and count[i]]
        expected = sum((count[i], newest[i]) >= (count[item], newest[item]) for i in others)
        click = ReplayedClick(item, before, now, 0)
        assert method.rank(click) == (expected if item in others else 0)
        method.learn(click)
        seen.append((item, now))


@settings(max_examples=60, deadline=None)
@given(clicks_of, st.integers(1, 3))
def test_session_knn_by_brute_force(steps, k):
    method = baselines.VSKNN(10, k)
    sessions, newest = {}, {}
    for number, (item, session, _) in enumerate(steps):
        current = sessions.setdefault(session, [])
        click = ReplayedClick(item, list(current), number, session)
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
        found = method.rank(click)
        assert abs(found - expected) <= _ties(scores, item)
        method.learn(click)
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


def recalls(out):
    """{(method, labels): recall} of what the command printed, without what is not available."""
    figures = [(line.split()[:2], line.split("recall@20:")[1].split()[0])
               for line in out.splitlines() if "recall@20:" in line]
    return {tuple(name): float(value) for name, value in figures if value != "n/a"}


def run(day, *flags):
    return evaluate_stream.main(["--test_dir", f"day{day}", "--times", f"times{day}", "--warm_dir",
                                 f"day{day - 1}", "--warm_times", f"times{day - 1}", *flags])


def test_the_command_fits_a_day_and_evaluates_the_next(trained, capsys):
    assert run(1, "--fit", "--baselines") == 0
    out = capsys.readouterr().out
    assert "parameters written to model_output/stream.json" in out
    assert run(2, "--table", "t.tsv") == 0
    out = capsys.readouterr().out
    recall = recalls(out)
    assert recall["stream", "unknown"] > recall["frozen", "unknown"] == 0
    assert {method for method, _ in recall} == {"stream", "popular", "frozen", "vsknn"}
    rows = [line.split("\t") for line in (trained / "t.tsv").read_text().splitlines()]
    assert rows[0] == ["hour", "method", "labels", "queries", "recall@20", "mrr@20"]
    queries = sum(int(row[3]) for row in rows[1:] if row[1:3] == ["stream", "all"])
    data, _ = reader.load_timed_sessions("day2", "times2", 160)
    assert queries == len(data.items) - len(data)


def test_parts_can_be_switched_off(trained, capsys):
    assert run(2, "--baselines", "--without", *PARTS) == 0
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


def test_what_cannot_be_written_is_told_before_the_replay(trained, capsys):
    with mock.patch("evaluate_stream.replay") as replay_, \
            mock.patch("evaluate_stream.fit_on_replay") as fit:
        for flags, message in ((["--plot", "nowhere/p.png"], "--plot: cannot write nowhere/p.png"),
                               (["--table", "day1"], "--table: cannot write day1"),
                               (["--fit", "--scoring", "vocab.txt/s.json"], "--fit: cannot write")):
            assert run(2, *flags) == 1
            assert message in capsys.readouterr().err
        with mock.patch("importlib.util.find_spec", return_value=None):
            assert run(2, "--plot", "p.png") == 1
            assert "--plot needs matplotlib" in capsys.readouterr().err
            assert run(2, "--fit") == 1
            assert "--fit needs scipy" in capsys.readouterr().err
    assert not replay_.called and not fit.called


def test_weights_of_another_model_are_refused_unless_named(trained, capsys):
    (trained / "model_output" / "stream.json").write_text(Scoring().to_json())
    assert run(2, "--baselines", "none") == 0
    assert "does not say which model" in capsys.readouterr().err
    assert run(1, "--fit", "--baselines", "none") == 0
    assert run(2, "--baselines", "none") == 0
    assert train.main(["--train_dir", "day0", "--recipe", "strong", "--epochs", "1", "--overwrite",
                       "--embedding_dim", "8", "--hidden_size", "8", "--seed", "1"]) == 0
    capsys.readouterr()
    assert run(2, "--baselines", "none") == 1
    out, err = capsys.readouterr()
    assert "recall" not in out
    error, = (line for line in err.splitlines() if "error:" in line)
    assert "model_output/stream.json was fitted with another model" in error
    assert run(2, "--baselines", "none", "--scoring", "model_output/stream.json") == 0
    assert "was fitted with another model" in capsys.readouterr().err


def test_baselines_are_named_or_none(trained, capsys):
    def methods(*flags):
        assert run(2, *flags) == 0
        return {line.split()[0] for line in capsys.readouterr().out.splitlines()
                if "recall@20" in line}

    assert methods("--baselines") == methods("--baselines", "none") == {"stream"}
    assert methods("--baselines", "popular") == {"stream", "popular"}
    with pytest.raises(SystemExit):
        run(2, "--baselines", "none", "popular")
    assert "none goes with no other name" in capsys.readouterr().err


def test_no_queries_have_no_recall(trained, capsys):
    assert run(1, "--vocab_path", "vocab.txt", "--baselines", "--table", "t.tsv") == 0
    out = capsys.readouterr().out
    known = [line for line in out.splitlines() if line.split()[1:3] == ["known", "queries:0"]]
    assert all("recall@20:n/a mrr@20:n/a" in line for line in known)
    rows = [line.split("\t") for line in (trained / "t.tsv").read_text().splitlines()[1:]]
    assert any(row[3] == "0" for row in rows)
    assert all((row[4] == "n/a") == (row[3] == "0") for row in rows)


def test_the_best_epoch_is_taken_when_asked_for(trained, capsys):
    assert train.main(["--train_dir", "day0", "--recipe", "strong", "--epochs", "2",
                       "--embedding_dim", "8", "--hidden_size", "8", "--valid_dir", "day0",
                       "--model_dir", "validated"]) == 0
    with open("validated/epoch_2.json") as f:
        best = json.load(f)["best"]["epoch"]
    assert run(2, "--model_dir", "validated", "--baselines", "none", "--best") == 0
    assert f"epoch_{best} of validated, the best in validation" in capsys.readouterr().err
    assert run(2, "--best", "--baselines", "none") == 1
    assert "--best: model_output holds no epoch" in capsys.readouterr().err


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
    clicks = Timeline.of(*parts)
    method = baselines.Popular(len(vocabulary), 900)
    ranks, _ = replay(clicks, method, "popular")
    assert len(ranks) == 60439
    assert np.round(100 * np.array(utils.recall_mrr(ranks, 20)), 1).tolist() == [53.1, 19.4]


def test_session_knn_takes_the_newest_sessions():
    method = baselines.VSKNN(10, k=100, sample=2)
    for session, item in enumerate([1, 2, 3]):
        method.learn(ReplayedClick(0, [], 0, session))
        method.learn(ReplayedClick(item, [0], 0, session))
    ranks = [method.rank(ReplayedClick(item, [0], 1, 9)) for item in (1, 2, 3)]
    assert ranks == [0, 2, 2]


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
    recall = recalls(out)
    assert recall["frozen", "unknown"] > 0 and recall["stream", "unknown"] > 0
    assert run(2, "--model_dir", "words", "--item_tokens", "known_tokens.txt") == 1
    assert "known_tokens.txt holds 110 lines" in capsys.readouterr().err

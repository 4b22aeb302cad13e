"""Filters: an answer is what a look at every item would give, however the index searches."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retrieve
import train
from ssr.errors import DataError
from ssr.news import Scoring
from ssr.retrieval import Click, Filter, Index, Item, builds, store, vectors
from ssr.retrieval.bag import NOTHING
from ssr.retrieval.filters import EVERYTHING, Mask, check_filter
from ssr.retrieval.vectors import SearchSettings, recall

START = 1_700_000_000
IDS = [f"n{number:04d}" for number in range(60)]


def fields_of(number):
    fields = {"section": ["sports", "politics", "culture"][number % 3]}
    if number % 7 == 0:
        fields["kind"] = ["video", "long read"]
    return fields


class Clock:
    now = START

    def __call__(self):
        return self.now


def make_index(path, model_dir, sample, *flags, scoring=None):
    """An index of the sample, whose item i was added at START + i; open for writing."""
    assert retrieve.main(["build", "--model_dir", model_dir, "--index_dir", path, "--items_path",
                          str(sample / "items.txt"), *flags]) == 0
    clock = Clock()
    index = Index.open(path, True, scoring, clock=clock)
    has_vector = {id for id, _ in index.browse([], 1000)[0]}
    for number, id in enumerate(IDS):
        clock.now = START + number
        if id in has_vector:
            index.add([Item(id, f"text {number}", fields_of(number))])
    clock.now = START + 100
    return index


@pytest.fixture(scope="module")
def indexes(sample, tmp_path_factory):
    """{kind: an index of the same items}: exact, approximate, and live with some clicks."""
    path = str(tmp_path_factory.mktemp("filters"))
    assert train.main(["--epochs", "1", "--embedding_dim", "8", "--hidden_size", "8",
                       "--model_dir", path + "/model", "--train_dir", str(sample / "train_data"),
                       "--vocab_path", str(sample / "vocab.txt")]) == 0
    opened = {
        "flat": make_index(path + "/flat", path + "/model", sample),
        "ivf": make_index(path + "/ivf", path + "/model", sample, "--ivf_above", "0", "--nlist",
                          "12", "--nprobe", "1"),
        "live": make_index(path + "/live", path + "/model", sample, scoring=Scoring())}
    opened["live"].click([Click(f"s{number}", IDS[number * number % 60])
                          for number in range(12)])
    yield opened
    for index in opened.values():
        index.close()


def passes(filter, id, now):
    """Whether an item passes a filter but for at_most, by its definition."""
    number = IDS.index(id)
    tokens = {f"{name}:{value.replace(' ', '_')}" for name, values in fields_of(number).items()
              for value in ([values] if isinstance(values, str) else values)}
    for name in {term.split(":")[0] for term in filter.only}:
        if not tokens & {term for term in filter.only if term.startswith(name + ":")}:
            return False
    return not (tokens & set(filter.without) or id in filter.exclude
                or filter.candidates is not None and id not in filter.candidates
                or filter.max_age is not None and START + number < now - filter.max_age)


def filtered(hits, filter, k, now):
    chosen = []
    for hit in hits:
        if passes(filter, hit.id, now):
            section = fields_of(IDS.index(hit.id))["section"]
            same = sum(fields_of(IDS.index(other.id))["section"] == section for other in chosen)
            if same < filter.at_most.get("section", 1000):
                chosen.append(hit)
    return chosen[:k]


TERMS = ["section:sports", "section:politics", "section:culture", "kind:video", "kind:long_read",
         "kind:none"]
FILTERS = st.builds(
    Filter, only=st.lists(st.sampled_from(TERMS), max_size=3),
    without=st.lists(st.sampled_from(TERMS), max_size=2),
    candidates=st.none() | st.lists(st.sampled_from(IDS + ["nobody"]), max_size=40),
    exclude=st.lists(st.sampled_from(IDS + ["nobody"]), max_size=20),
    max_age=st.none() | st.integers(0, 120),
    at_most=st.just({}) | st.fixed_dictionaries({"section": st.integers(1, 5)}))


@settings(deadline=None, max_examples=60,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filter=FILTERS, session=st.lists(st.sampled_from(IDS), max_size=3), k=st.integers(1, 30))
def test_an_answer_is_that_of_a_look_at_every_item(indexes, enough_clicks, filter, session, k):
    for kind, index in indexes.items():
        # An approximate search leaves items out; its filtered one does not.
        whole = indexes["flat" if kind == "ivf" else kind].query(session, 1000, now=START + 100)
        answer = index.query(session, k, now=START + 100, filter=filter)
        expected = filtered(whole.hits, filter, k, START + 100)
        assert [hit.id for hit in answer.hits] == [hit.id for hit in expected], kind
        np.testing.assert_allclose([hit.score for hit in answer.hits],
                                   [hit.score for hit in expected], atol=1e-5)
        assert answer.hits or answer.reason


@settings(deadline=None, max_examples=30)
@given(filter=FILTERS, session=st.lists(st.sampled_from(IDS), max_size=3), k=st.integers(1, 30))
def test_a_live_index_of_few_clicks_answers_with_the_same_items(indexes, filter, session, k):
    """In an order of its own, and with as many."""
    whole = indexes["live"].query(session, 1000, now=START + 100)
    answer = indexes["live"].query(session, k, now=START + 100, filter=filter)
    passing = {hit.id for hit in whole.hits if passes(filter, hit.id, START + 100)}
    assert {hit.id for hit in answer.hits} <= passing
    if not filter.at_most:
        assert len(answer.hits) == min(k, len(passing))
    assert len({hit.id for hit in answer.hits}) == len(answer.hits)


def test_a_filter_follows_changes(indexes):
    index, sports = indexes["flat"], Filter(only=["Section: Sports"])
    before = [hit.id for hit in index.query(["n0001"], 60, filter=sports).hits]
    id = before[0]
    try:
        index.add([Item(id, "moved", {"section": "politics"})])
        assert [hit.id for hit in index.query(["n0001"], 60, filter=sports).hits] == before[1:]
        index.remove([before[1]])
        with Index.open(index.store.path) as other:
            assert [hit.id for hit in other.query(["n0001"], 60, filter=sports).hits] == before[2:]
            index.add([Item(id, "back", {"section": "sports"})])
            assert id in [hit.id for hit in other.query(["n0001"], 60, filter=sports).hits]
    finally:
        for back in before[:2]:
            index.add([Item(back, "", fields_of(IDS.index(back)))])


def test_items_that_are_alike(indexes):
    index = indexes["live"]
    nearest, = index.similar(["n0003"], 60)
    assert {hit.source for hit in nearest.hits} == {"nearest"} and nearest.reason == ""
    vectors = {item.id: item.vector for items in index.store.items.scan() for item in items}
    expected = sorted((id for id in vectors if id != "n0003"),
                      key=lambda id: -float(vectors[id] @ vectors["n0003"]))
    assert [hit.id for hit in nearest.hits] == expected
    some = Filter(candidates=expected[5:9])
    assert [hit.id for hit in index.similar(["n0003"], 2, some)[0].hits] == expected[5:7]
    unknown, again = index.similar(["nobody", "n0003"], 60)
    assert unknown == ([], 1, "the item has no vector") and again.hits == nearest.hits


def test_fields_of_a_build_come_from_the_items_and_from_their_content(tmp_path, sample):
    lines = (sample / "items.txt").read_text().splitlines()
    (tmp_path / "items.txt").write_text("".join(
        f"{line}\tsection:{'a b' if number % 2 else 'c'}\n" for number, line in enumerate(lines)))
    tokens = (sample / "tokens.txt").read_text().splitlines()
    tokens[0] = "author:x"
    (tmp_path / "tokens.txt").write_text("".join(token + "\n" for token in tokens))
    for name in ("tokens.json", "item_tokens.txt"):
        (tmp_path / name).symlink_to(sample / name)
    content = [set(line.split()) for line in (sample / "item_tokens.txt").read_text().splitlines()]
    assert train.main(["--epochs", "1", "--embedding_dim", "8", "--hidden_size", "8",
                       "--model_dir", str(tmp_path / "model"), "--item_tokens",
                       str(tmp_path / "item_tokens.txt"), "--train_dir", str(sample / "train_data"),
                       "--vocab_path", str(sample / "vocab.txt")]) == 0
    assert retrieve.main(["build", "--model_dir", str(tmp_path / "model"), "--index_dir",
                          str(tmp_path / "index"), "--items_path", str(tmp_path / "items.txt"),
                          "--item_tokens", str(tmp_path / "item_tokens.txt"), "--tokens_path",
                          str(tmp_path / "tokens.txt")]) == 0
    with Index.open(str(tmp_path / "index")) as index:
        filter = Filter(only=["section:A B", "author:x"])
        chosen = {hit.id for hit in index.query(["n0001"], 60, False, filter=filter).hits}
    assert chosen == {f"n{number:04d}" for number in range(60)
                      if number % 2 and "0" in content[number]} != set()


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_an_approximate_search_among_few_is_as_good_as_among_all(tmp_path, share, monkeypatch):
    random = np.random.default_rng(6)
    centres = random.normal(size=(60, 8))

    def near(count):
        points = centres[random.integers(0, 60, count)] + 0.4 * random.normal(size=(count, 8))
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

    points = near(4000)
    rows = [store.Row(f"n{i}", "", NOTHING, vector) for i, vector in enumerate(points)]
    with builds.new_build(str(tmp_path)) as directory:
        store.create(directory, 8, rows, {}, near(100), SearchSettings(0))
    among = np.concatenate([[False], random.random(4000) < share])
    queries = near(50)
    best = 1 + np.argsort(-np.where(among[1:], queries @ points.T, -np.inf), axis=1)
    with store.Store(str(tmp_path)) as opened:
        for fetched, exact, least in ((1, 1, 1), (0, 1, 1), (0, 0, 0.95)):
            monkeypatch.setattr(vectors, "FETCHED", fetched)
            monkeypatch.setattr(vectors, "EXACT", exact)
            keys = opened.search(queries, 20, Mask(among))[1]
            assert among[keys].all() and keys.shape == (50, 20)
            assert recall(keys, best[:, :20]) >= least
        # Nothing is missing where there is less than was asked for.
        few = np.isin(np.arange(4001), [7, 1234, 3999])
        assert set(opened.search(queries[:1], 20, Mask(few))[1][0]) == {7, 1234, 3999, -1}


def test_what_is_left_may_be_far_from_the_session(tmp_path):
    """All but the articles that are near it."""
    random = np.random.default_rng(0)
    points = random.normal(size=(20_000, 16)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    rows = [store.Row(f"n{i}", "", NOTHING, vector) for i, vector in enumerate(points)]
    queries, found = points[random.choice(20_000, 40)], []
    with builds.new_build(str(tmp_path)) as directory:
        store.create(directory, 16, rows, {}, queries, SearchSettings(0))
    with store.Store(str(tmp_path)) as opened:
        for query in queries:
            scores = points @ query
            among = scores < np.quantile(scores, 0.75)
            keys = opened.search(query[None], 20, Mask(np.concatenate([[False], among])))[1]
            best = 1 + np.argsort(-np.where(among, scores, -np.inf))[None, :20]
            found.append(recall(keys, best))
    assert np.mean(found) > 0.97


@pytest.mark.parametrize("filter, message", [
    (Filter(only=["sports"]), "'sports' is not a field"),
    (Filter(without=["section:"]), "is not a field"),
    (Filter(max_age=float("nan")), "max_age"),
    (Filter(at_most={"section": 0}), "less than 1"),
    (Filter(at_most={"a:b": 1}), "field")])
def test_what_no_filter_can_be(indexes, filter, message):
    with pytest.raises(DataError, match=message):
        indexes["flat"].query(["n0001"], filter=filter)


def test_by_the_command(indexes, capsys):
    path = indexes["flat"].store.path

    def ids_of(*argv):
        assert retrieve.main([*argv, "--index_dir", path]) == 0
        return [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()]

    sports = ids_of("query", "--session", "n0001", "-k", "60", "--only", "section:sports")
    assert sports and all(IDS.index(id) % 3 == 0 for id in sports)
    assert ids_of("query", "--session", "n0001", "--candidates", *sports[:4], "--exclude",
                  sports[1]) == [sports[0], *sports[2:4]]
    spread = ids_of("query", "--session", "n0001", "-k", "6", "--at_most", "section=2",
                    "--without", "kind:video")
    assert sorted(IDS.index(id) % 3 for id in spread) == [0, 0, 1, 1, 2, 2]
    assert ids_of("similar", "n0003", "-k", "3", "--only", "section:culture") == [
        hit.id for hit in indexes["flat"].similar(
            ["n0003"], 3, Filter(only=["section:culture"]))[0].hits]
    assert retrieve.main(["query", "--session", "n0001", "--at_most", "section",
                          "--index_dir", path]) == 1
    assert "--at_most section" in capsys.readouterr().err


def test_every_filter_but_the_empty_one_selects_or_spreads():
    for name, value in itertools.chain(zip(Filter._fields, [["a:b"], ["a:b"], [], ["a"], 0])):
        assert EVERYTHING._replace(**{name: value}).selects()
    assert not EVERYTHING.selects() and check_filter(EVERYTHING) is None

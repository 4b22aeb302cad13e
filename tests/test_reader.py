"""Session files, the arrays in memory, batches."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reader
from reader import UniformNegatives
from ssr.errors import DataError
from ssr.kernels import numbers
from ssr.training.content import ItemContent, ItemTokens, load_item_tokens
from ssr.training.negatives import PopularityNegatives, SharedNegatives


def write(directory, **files):
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        mode = "wb" if isinstance(content, bytes) else "w"
        newline = None if mode == "wb" else ""
        with open(directory / f"{name}.txt", mode, newline=newline) as f:
            f.write(content)
    return str(directory)


def sessions_of(dataset):
    return [list(map(int, dataset.items[a:b]))
            for a, b in zip(dataset.offsets[:-1], dataset.offsets[1:])]


SESSIONS = st.lists(st.lists(st.integers(0, 999), max_size=7), min_size=1, max_size=40)
BLANKS = st.text(" \t\v\f", max_size=2)


@settings(deadline=None, max_examples=150)
@given(SESSIONS, BLANKS, st.sampled_from([" ", "\t", "  ", " \t "]),
       st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.integers(8, 64))
def test_reads_back_what_was_written(tmp_path_factory, sessions, blank, between, newline, bom, last,
                                     block):
    """Whatever the white space, the end of the lines, the last newline, the mark at the start and
    the size of the blocks that the parser takes."""
    lines = [blank + between.join(map(str, session)) + blank for session in sessions]
    text = ("\ufeff" if bom else "") + newline.join(lines) + (newline if last else "")
    directory = write(tmp_path_factory.mktemp("data"), one=text.encode())
    expected = [session for session in sessions if len(session) >= 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "BLOCK_BYTES", block)
        if not expected:
            with pytest.raises(DataError, match="no line holds two item ids"):
                reader.load_sessions(directory, 1000)
            return
        dataset = reader.load_sessions(directory, 1000)
    assert sessions_of(dataset) == expected
    # What follows the last newline is a line only if something stands there.
    ended = bool(last or lines[-1].strip())
    assert dataset.short == len(sessions) - len(expected) - (not ended)
    assert dataset.items.dtype == np.int32 and dataset.offsets.dtype == np.int64


@settings(deadline=None, max_examples=150)
@given(SESSIONS.filter(lambda s: any(s)), st.data(),
       st.sampled_from(["word", "-3", "1000", "1.5", "99999999999999999999", "7,8", "Ａ", "\x00",
                        b"\xff\xfe", "４"]), st.integers(8, 64))
def test_names_the_line_and_token_of_anything_else(tmp_path_factory, sessions, data, bad, block):
    line = data.draw(st.sampled_from([i for i, session in enumerate(sessions) if session]))
    place = data.draw(st.integers(0, len(sessions[line]) - 1))
    tokens = [[str(i).encode() for i in session] for session in sessions]
    tokens[line][place] = bad if isinstance(bad, bytes) else bad.encode()
    text = b"\n".join(b" ".join(session) for session in tokens)
    directory = write(tmp_path_factory.mktemp("data"), bad=text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "BLOCK_BYTES", block)
        with pytest.raises(DataError) as error:
            reader.load_sessions(directory, 1000)
    message = str(error.value)
    assert f"bad.txt, line {line + 1}: " in message
    if isinstance(bad, bytes) or bad == "\x00":
        assert "not UTF-8 text" in message
    else:
        assert bad in message


def test_files_are_read_in_the_order_of_their_names_and_hidden_ones_left_out(tmp_path):
    directory = write(tmp_path / "d", b="3 4\n", a="1 2", c="5 6")
    (tmp_path / "d" / ".hidden").write_text("no session")
    assert sessions_of(reader.load_sessions(directory, 10)) == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("make, message", [
    (lambda d: None, "cannot read the directory"),
    (lambda d: d.mkdir(), "holds no files"),
    (lambda d: write(d, a="1\n\n2\n"), "no line holds two item ids"),
    (lambda d: write(d, a=""), "no line holds two item ids"),
])
def test_directories_without_sessions(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        reader.load_sessions(str(tmp_path / "data"), 10)


@pytest.mark.parametrize("content, message", [
    (None, "cannot read the vocabulary"), ("", "not a number"), ("many", "not a number"),
    ("-5", "not a number"), ("1", "at least 2"), ("2147483648", "at most"),
    ("9" * 5000, "at most"),
    (b"\xff\xfe4\x00", "cannot read the vocabulary"),
])
def test_vocabulary_errors(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        reader.get_vocab_size(str(path))


def test_vocabulary_is_the_first_line(tmp_path):
    (tmp_path / "vocab.txt").write_text("\ufeff 17 \r\nrest")
    assert reader.get_vocab_size(str(tmp_path / "vocab.txt")) == 17


def make_dataset(num_sessions=103, vocab_size=50, seed=0, longest=9):
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest, num_sessions)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return reader.YoochooseDataset(random.integers(0, vocab_size, offsets[-1]).astype(np.int32),
                                   offsets, vocab_size)


def rows(batch):
    """(sequence, positive, negative) of each session of a batch."""
    assert (batch.candidates[:, 0] == batch.positive).all()
    ends = np.cumsum(batch.lengths)
    return [(tuple(batch.clicks[end - n:end].tolist()), int(positive), int(negative))
            for end, n, positive, negative in zip(ends, batch.lengths, batch.positive,
                                                  batch.candidates[:, 1])]


def test_an_epoch_holds_every_session_once():
    dataset = make_dataset()
    batches = list(dataset.train(10, seed=1, epoch=1))
    assert len(batches) == dataset.num_steps(10) == 11
    got = sorted((*sequence, positive) for batch in batches
                 for sequence, positive, _ in rows(batch))
    assert got == sorted(map(tuple, sessions_of(dataset)))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return [row for batch in make_dataset().train(10, seed, epoch) for row in rows(batch)]
    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


def test_a_negative_is_uniform_over_all_other_items():
    dataset = make_dataset(num_sessions=6000, vocab_size=5)
    counts = np.zeros((5, 5))
    for batch in dataset.train(100, seed=0, epoch=1):
        np.add.at(counts, (batch.positive, batch.candidates[:, 1]), 1)
    assert (np.diag(counts) == 0).all()
    share = counts / counts.sum(1, keepdims=True)
    assert np.abs(share - (1 - np.eye(5)) / 4).max() < 0.06


@pytest.mark.parametrize("world_size", [2, 3, 10])
def test_ranks_share_the_batches_of_one_process(world_size):
    dataset = make_dataset()
    whole = list(dataset.train(4 * world_size, seed=3, epoch=2))
    parts = [list(dataset.train(4, 3, 2, rank=rank, world_size=world_size))
             for rank in range(world_size)]
    steps = dataset.num_steps(4, world_size)
    assert [len(part) for part in parts] == [steps] * world_size
    assert steps == len(dataset) // (4 * world_size)
    for step in range(steps):
        shares = [rows(part[step]) for part in parts]
        assert all(len(share) == 4 for share in shares)
        assert sorted(sum(shares, [])) == sorted(rows(whole[step]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_paired_negatives_are_drawn_by_clicks_and_are_never_the_target(alpha):
    dataset = make_dataset(num_sessions=3000, vocab_size=6)
    # Item 5 is never clicked: only the uniform draw may find it.
    dataset.items[dataset.items == 5] = 0
    clicks = dataset.item_clicks().astype(float)
    weight = np.where(clicks > 0, clicks, 0) ** alpha if alpha else np.ones(6)
    positive = np.repeat(np.arange(5), 4000)
    negatives = (PopularityNegatives(dataset, 3, alpha) if alpha else
                 UniformNegatives(dataset.vocab_size, 3))
    candidates, log_inclusion = negatives.candidates(np.random.default_rng(1), positive)
    assert candidates.shape == (20000, 4) and log_inclusion is None
    assert (candidates[:, 0] == positive).all()
    for target in range(5):
        drawn = candidates[positive == target, 1:]
        expected = np.where(np.arange(6) == target, 0, weight)
        share = np.bincount(drawn.ravel(), minlength=6) / drawn.size
        np.testing.assert_allclose(share, expected / expected.sum(), atol=0.02)
        assert share[target] == 0


@pytest.mark.parametrize("targets", ["last", "all"])
def test_shared_candidates_hold_the_sessions_and_know_their_probability(targets):
    dataset = make_dataset(num_sessions=400, vocab_size=30)
    dataset.items[dataset.items > 20] %= 7  # some popular, some never clicked
    negatives = SharedNegatives(dataset, num=5, alpha=0.5)
    seen, expected = np.zeros(30), np.zeros(30)
    steps = 0
    for epoch in range(40):
        for batch in dataset.train(8, 0, epoch, negatives, targets):
            assert (np.diff(batch.candidates) > 0).all()
            assert {*batch.clicks, *batch.positive} <= {*batch.candidates}
            assert (batch.log_inclusion <= 0).all()
            assert batch.num_targets == len(batch.positive)
            seen[batch.candidates] += 1
            expected[batch.candidates] = np.exp(batch.log_inclusion)
            steps += 1
    # The number of clicks differs from batch to batch, so expected is that of the last ones.
    np.testing.assert_allclose(seen / steps, expected, atol=0.1)
    assert (seen[21:] == 0).all()


def test_a_target_after_each_click():
    dataset = make_dataset()
    for batch in dataset.train(10, 1, 1, targets="all"):
        assert batch.every_prefix and len(batch.positive) == len(batch.clicks)
        ends = np.cumsum(batch.lengths)
        inner = np.setdiff1d(np.arange(len(batch.clicks)), ends - 1)
        assert (batch.positive[inner] == batch.clicks[inner + 1]).all()


@pytest.mark.parametrize("targets", ["last", "all"])
def test_ranks_share_targets_and_shared_candidates(targets):
    dataset = make_dataset()
    negatives = SharedNegatives(dataset, num=9, alpha=0.5)
    whole = list(dataset.train(12, 3, 2, negatives, targets))
    parts = [list(dataset.train(4, 3, 2, negatives, targets, rank=rank, world_size=3))
             for rank in range(3)]
    for step, batch in enumerate(whole[:dataset.num_steps(4, 3)]):
        shares = [part[step] for part in parts]
        for share in shares:
            assert (share.candidates == batch.candidates).all()
            assert (share.log_inclusion == batch.log_inclusion).all()
            assert share.num_targets == batch.num_targets
            assert share.rows.tolist() == batch.rows.tolist() == np.unique(batch.ids()).tolist()
        assert sorted(np.concatenate([share.positive for share in shares])) == sorted(
            batch.positive)
        assert sum(share.lengths.sum() for share in shares) == batch.lengths.sum()


def test_max_len_keeps_the_newest_clicks():
    dataset = make_dataset()
    got = [(*sequence, positive) for batch in dataset.train(7, seed=0, epoch=1, max_len=3)
           for sequence, positive, _ in rows(batch)]
    assert sorted(got) == sorted(tuple(session[-4:]) for session in sessions_of(dataset))


def test_a_large_directory_is_cached_and_the_cache_follows_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(numbers, "CACHE_BYTES", 1)
    directory = write(tmp_path / "d", a="1 2\n3\n", b="4 5 6\n")
    first = reader.load_sessions(directory, 10)
    with monkeypatch.context() as patch:
        patch.setattr(numbers, "_from_text", None)  # would raise if it was parsed again
        again = reader.load_sessions(directory, 10)
    assert isinstance(again.items, np.memmap)
    assert sessions_of(again) == sessions_of(first) and again.short == first.short == 1
    with pytest.raises(DataError, match="a.txt, line 1|b.txt, line 1"):
        reader.load_sessions(directory, 5)  # the vocabulary is another one
    write(tmp_path / "d", a="1 2 3\n")
    assert sessions_of(reader.load_sessions(directory, 10)) == [[1, 2, 3], [4, 5, 6]]
    for name in os.listdir(tmp_path / "d" / ".cache"):  # a damaged cache is made anew
        (tmp_path / "d" / ".cache" / name).write_bytes(b"x")
    assert sessions_of(reader.load_sessions(directory, 10)) == [[1, 2, 3], [4, 5, 6]]


def test_times_are_cached_too(tmp_path, monkeypatch):
    monkeypatch.setattr(numbers, "CACHE_BYTES", 1)
    sessions = write(tmp_path / "s", a="1 2\n3\n", b="4 5 6\n")
    times = write(tmp_path / "t", a="10 20\n5\n", b="1 1 3000000000\n")
    first = reader.load_timed_sessions(sessions, times, 10)[1]
    monkeypatch.setattr(numbers, "_from_text", None)  # would raise if it was parsed again
    again = reader.load_timed_sessions(sessions, times, 10)[1]
    assert first.tolist() == again.tolist() == [10, 20, 1, 1, 3_000_000_000]


@pytest.mark.parametrize("token", ["1_000", "+5", "-5", "1.5", "9" * 19, "9" * 5000])
def test_a_time_is_a_plain_number(tmp_path, token):
    sessions = write(tmp_path / "s", a="1 2\n3 4\n")
    times = write(tmp_path / "t", a=f"10 20\n5 {token}\n")
    with pytest.raises(DataError, match="a.txt, line 2: .*time"):
        reader.load_timed_sessions(sessions, times, 10)


def test_ragged_arange():
    got = reader.ragged_arange(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert got.tolist() == [5, 6, 9, 10, 11]
    assert reader.ragged_arange(np.array([], int), np.array([], int)).tolist() == []


# --- tokens of the items --------------------------------------------------------------------------

BAGS = st.lists(st.lists(st.integers(0, 999), max_size=5), min_size=1, max_size=30)


@settings(deadline=None, max_examples=100)
@given(BAGS.filter(any), st.sampled_from(["\n", "\r\n"]), st.integers(8, 64))
def test_item_tokens_come_back(tmp_path_factory, bags, newline, block):
    path = tmp_path_factory.mktemp("tokens") / "item_tokens.txt"
    path.write_bytes("".join(" ".join(map(str, bag)) + newline for bag in bags).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "BLOCK_BYTES", block)
        tokens = load_item_tokens(str(path), len(bags))
    assert tokens.tokens.dtype == np.int32 and tokens.offsets.dtype == np.int64
    assert tokens.num_tokens == max(map(max, filter(None, bags))) + 1
    assert load_item_tokens(str(path), len(bags), 1234).num_tokens == 1234
    assert [tokens.tokens[begin:end].tolist() for begin, end in
            zip(tokens.offsets, tokens.offsets[1:])] == bags


def make_content(bags, clicked, num_tokens=1000, id_dropout=0.0):
    offsets = np.cumsum([0, *map(len, bags)])
    tokens = np.array([token for bag in bags for token in bag], np.int32)
    return ItemContent(np.array(clicked, bool),
                              ItemTokens(tokens, offsets, num_tokens), id_dropout)


@settings(deadline=None, max_examples=100)
@given(BAGS, st.data())
def test_a_bag_is_the_own_row_if_clicked_then_the_tokens(bags, data):
    size = len(bags)
    clicked = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    content = make_content(bags, clicked)
    expected = [[item] * clicked[item] + [size + token for token in bag]
                for item, bag in enumerate(bags)]
    assert content.has_vector.tolist() == [bool(bag) for bag in expected]
    ids = data.draw(st.lists(st.sampled_from(np.flatnonzero(content.has_vector).tolist() or [0]),
                             max_size=9 * int(content.has_vector.any())))
    got = content.bags(np.array(ids, np.int64))
    ends = np.cumsum(got.lengths)
    flat = got.rows[got.members]
    made = [flat[end - length:end].tolist() for end, length in zip(ends, got.lengths)]
    assert [made[place] for place in got.place] == [expected[id] for id in ids]
    assert len(made) == len(set(ids)) and got.rows.dtype == np.int64
    assert got.rows.tolist() == (sorted(set(flat.tolist())) or [0])  # none cannot be looked up
    # Without their own row where something else is left.
    optional = [id for id in set(ids) if clicked[id] and bags[id]]
    some = content.bags(np.array(ids, np.int64), np.array(sorted(optional), np.int64))
    assert sum(some.lengths) == sum(got.lengths) - len(optional)
    assert not set(optional) & set(some.rows[some.members].tolist())


def test_id_dropout_leaves_out_its_share_of_those_that_have_tokens():
    content = make_content([[1]] * 500 + [[]] * 500, [True] * 1000, id_dropout=0.3)
    dropped = [content.draw_dropped(np.random.default_rng(seed), np.arange(1000))
               for seed in range(40)]
    assert max(map(np.max, dropped)) < 500
    assert np.mean([len(items) for items in dropped]) / 500 == pytest.approx(0.3, abs=0.02)
    none = make_content([[1]] * 9, [True] * 9)
    assert not len(none.draw_dropped(np.random.default_rng(0), np.arange(9)))


def bags_of(bags):
    return {tuple(rows) for rows in np.split(bags.rows[bags.members], np.cumsum(bags.lengths))}


@pytest.mark.parametrize("targets", ["last", "all"])
def test_ranks_know_the_rows_of_all(targets):
    dataset = make_dataset()
    content = make_content([[item % 7, 7 + item % 3][:item % 3] for item in range(50)],
                           dataset.item_clicks() > 0, 10, id_dropout=0.5)
    negatives = PopularityNegatives(dataset)
    whole = dataset.train(12, 3, 2, negatives, targets, None, content)
    parts = [list(dataset.train(4, 3, 2, negatives, targets, None, content, rank, 3))
             for rank in range(3)]
    for step, batch in zip(range(dataset.num_steps(4, 3)), whole):
        made = bags_of(batch.bags)
        for part in parts:
            bags = part[step].bags
            assert (part[step].rows == batch.rows).all()
            assert bags_of(bags) <= made
        assert len(batch.bags.place) == len(batch.ids())


def test_an_unclicked_item_is_no_negative_where_items_have_content():
    dataset = make_dataset(vocab_size=80)
    dataset.items = dataset.items % 40
    negatives = PopularityNegatives(dataset, 5)
    drawn = np.concatenate([batch.candidates.ravel() for batch in
                            dataset.train(20, 0, 1, negatives)])
    assert drawn.max() < 40
    drawn = np.concatenate([batch.candidates.ravel() for batch in
                            dataset.train(20, 0, 1, UniformNegatives(dataset.vocab_size, 5))])
    assert drawn.max() >= 40


@pytest.mark.parametrize("content, words", [
    (b"1 2\n\n3 x4\n", ["line 3", "'x4' is not a token id"]),
    (b"1 2\n-1\n3\n", ["line 2", "'-1' is a negative token id"]),
    (b"1 2\n\n3 10\n", ["line 3", "token id 10 is not below the number of tokens, 10"]),
    (b"1 2\n" + b"7" * 5000 + b"\n3\n", ["line 2", "token id 777", "10"]),
    (b"1\n\xff\n3\n", ["line 2", "not UTF-8"]),
    (b"1 2\n3\n", ["holds 2 lines", "3 items"]),
    (b"1\n2\n3\n\n", ["holds 4 lines", "3 items"]),
    (b"\n\n\n", ["no item has a token"]),
    (None, ["cannot read"]),
])
def test_errors_in_item_tokens(tmp_path, content, words):
    path = tmp_path / "item_tokens.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_item_tokens(str(path), 3, 10)
    assert str(path) in str(error.value) and "session" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value

"""The towers, their gradients and the loss."""

import itertools

import numpy as np
import paddle
import pytest

import nets
import reader
from ssr.kernels.gru import gru_tops, padded_gru
from ssr.kernels.packed import time_major
from ssr.kernels.ragged import recent_rows
from ssr.training.content import Bags
from ssr.training.losses import SampledSoftmaxLoss, own_session
from ssr.training.negatives import SharedNegatives


def ragged(random, lengths, vocab_size):
    return random.integers(0, vocab_size, sum(lengths)), np.array(lengths)


def make_model(user_encoder="gru", vocab_size=40, dim=6, hidden=5, seed=3, **parts):
    paddle.seed(seed)
    model = nets.SequenceSemanticRetrieval(vocab_size, dim, hidden, user_encoder, **parts)
    for name, parameter in model.named_parameters():
        if "bias" in name:  # zero at first: a test would not see whether they are used
            parameter.set_value(paddle.randn(parameter.shape) * 0.3)
        elif "embedding" in name:
            parameter.set_value(paddle.randn(parameter.shape) * 0.5)
    return model


STRONG = dict(hidden=6, pooling="max_unit_clicks", item_encoder="tied")
PARTS = [dict(user_encoder="gru"), dict(user_encoder="bow"), dict(pooling="max_last"),
         dict(STRONG, pooling="max_last_clicks"), STRONG, dict(STRONG, members=3), dict(members=2)]


def paired(random, lengths, vocab_size, num=1):
    """A batch of random sessions with one target each."""
    clicks, lengths = ragged(random, lengths, vocab_size)
    candidates = random.integers(0, vocab_size, (len(lengths), 1 + num))
    return make_batch(clicks, lengths, candidates[:, 0], candidates, None, len(lengths))


def make_batch(*parts):
    batch = reader.Batch(*parts)
    return reader.with_rows(batch, batch)


def shared(random, lengths, vocab_size, num=10, log_inclusion=None):
    """A batch of random sessions with a target after each click."""
    clicks, lengths = ragged(random, lengths, vocab_size)
    positive = np.append(clicks[1:], 0)
    positive[np.cumsum(lengths) - 1] = random.integers(0, vocab_size, len(lengths))
    candidates = np.unique(np.concatenate([clicks, positive,
                                           random.integers(0, vocab_size, num)]))
    if log_inclusion is None:
        log_inclusion = np.log(random.uniform(0.1, 1, vocab_size)).astype(np.float32)
    return make_batch(clicks, lengths, positive, candidates, log_inclusion[candidates],
                      len(positive))


def make_encoder(input_size, hidden_size):
    paddle.seed(1)
    with paddle.utils.unique_name.guard():
        encoder = nets.GrnnEncoder(input_size, hidden_size)
    for parameter in encoder.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.5)
    return encoder


LENGTHS = [3, 1, 7, 2, 7, 1, 4]


def test_time_major_takes_each_row_once_and_steps_in_order():
    lengths = np.array(LENGTHS)
    rows, sizes = time_major(lengths)
    assert sizes == [(lengths > t).sum() for t in range(7)]
    assert sorted(rows) == list(range(sum(LENGTHS)))
    step_of_row = np.concatenate([np.arange(n) for n in lengths])
    assert step_of_row[rows].tolist() == np.repeat(range(7), sizes).tolist()
    session_of_row = np.repeat(np.arange(len(lengths)), lengths)[rows]
    first = session_of_row[:sizes[0]]
    begin = 0
    for n in sizes:  # the sessions that still run are always the first ones, in the same order
        assert session_of_row[begin:begin + n].tolist() == first[:n].tolist()
        begin += n


@pytest.mark.parametrize("and_states", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [1, 1], [9], [1, 2, 3], [5, 5]])
def test_packed_gru_is_paddles_gru(lengths, and_states):
    """Running maxima, states and all gradients."""
    encoder = make_encoder(6, 5)
    random = np.random.default_rng(0)
    lengths = np.array(lengths)
    data = random.normal(size=(lengths.sum(), 6)).astype(np.float32)
    shape = lengths.sum(), 10 if and_states else 5
    weights = paddle.to_tensor(random.normal(size=shape).astype(np.float32))
    results = []
    for tops in (gru_tops, padded_gru):
        x = paddle.to_tensor(data, stop_gradient=False)
        pooled = tops(encoder.gru, x, lengths, and_states)
        assert tuple(pooled.shape) == shape
        paddle.sum(pooled * weights).backward()
        gradients = [p.grad.numpy() for p in encoder.parameters()] + [x.grad.numpy()]
        results.append([pooled.numpy()] + gradients)
        encoder.clear_gradients()
    for packed, padded in zip(*results):
        np.testing.assert_allclose(packed, padded, atol=2e-5, rtol=1e-4)


def test_gru_follows_its_equations():
    """State by state in double precision, with the documented order of gates."""
    encoder = make_encoder(4, 3)
    w_ih, w_hh, b_ih, b_hh = (p.numpy().astype(np.float64) for p in encoder.parameters())
    x = np.random.default_rng(0).normal(size=(5, 4))
    h, top = np.zeros(3), np.full(3, -np.inf)
    expected = []
    for row in x:
        by_x, by_h = w_ih @ row + b_ih, w_hh @ h + b_hh
        r, z = (1 / (1 + np.exp(-(by_x + by_h)[part])) for part in (slice(0, 3), slice(3, 6)))
        c = np.tanh(by_x[6:] + r * by_h[6:])
        h = (1 - z) * c + z * h
        top = np.maximum(top, h)
        expected.append(top)
    got = encoder(paddle.to_tensor(x.astype(np.float32)), np.array([5]), every_prefix=True)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("parts", PARTS)
def test_shapes_and_lengths_of_the_vectors(parts):
    model = make_model(**parts)
    clicks, lengths = ragged(np.random.default_rng(0), LENGTHS, 40)
    user, every = model.user(clicks, lengths), model.user(clicks, lengths, every_prefix=True)
    item = model.item(np.arange(40))
    hidden = parts.get("hidden", 5) * parts.get("members", 1)
    assert user.shape == [7, hidden] and every.shape == [25, hidden]
    assert item.shape == [40, hidden]
    for vectors in (user, every, item):
        np.testing.assert_allclose(np.linalg.norm(vectors.numpy(), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS)
def test_company_changes_nothing(parts):
    """A session has the same vectors alone and in any batch, and the same loss."""
    model = make_model(**parts)
    batch = paired(np.random.default_rng(0), LENGTHS, 40)
    loss = nets.PairwiseHingeLoss()
    together = loss(model(batch), batch)[0].numpy()
    every = model.user(batch.clicks, batch.lengths, every_prefix=True).numpy()
    ends = np.cumsum(batch.lengths)
    for i, (end, n) in enumerate(zip(ends, batch.lengths)):
        own = batch.clicks[end - n:end], batch.lengths[i:i + 1]
        single = make_batch(*own, batch.positive[i:i + 1], batch.candidates[i:i + 1], None, 1)
        np.testing.assert_allclose(loss(model(single), single)[0].numpy(), together[i:i + 1],
                                   atol=1e-6)
        np.testing.assert_allclose(model.user(*own, every_prefix=True).numpy(),
                                   every[end - n:end], atol=1e-6)


@pytest.mark.parametrize("parts", PARTS)
def test_a_prefix_is_a_session_of_its_own(parts):
    model = make_model(**parts)
    clicks, _ = ragged(np.random.default_rng(0), [9], 40)
    every = model.user(clicks, np.array([9]), every_prefix=True).numpy()
    for n in range(1, 10):
        np.testing.assert_allclose(model.user(clicks[:n], np.array([n])).numpy(), every[n - 1:n],
                                   atol=1e-5)


@pytest.mark.parametrize("pooling, recent", [("max_last_clicks", 1), ("max_recent_clicks", 5),
                                             ("max_unit_clicks", 5)])
def test_the_last_clicks_and_the_mean_are_added_to_what_the_states_give(pooling, recent):
    model = make_model(**dict(STRONG, pooling=pooling))
    clicks, lengths = ragged(np.random.default_rng(0), [7, 2, 1], 40)
    emb = model.embed(clicks)
    gains = np.random.default_rng(1).normal(size=(recent + 1, 6)).astype(np.float32)
    towers, = model.members
    towers.click_gains.set_value(gains)
    expected = towers.user_fc(towers.user_encoder(emb, lengths)).numpy()
    added = emb.numpy()
    if pooling == "max_unit_clicks":
        added = added / np.linalg.norm(added, axis=1, keepdims=True)
    for row, session in zip(expected, np.split(added, np.cumsum(lengths)[:-1])):
        row += gains[-1] * session.mean(0)
        for gain, click in zip(gains[:-1], session[::-1]):
            row += gain * click
    np.testing.assert_allclose(model.user(clicks, lengths).numpy(),
                               expected / np.linalg.norm(expected, axis=1, keepdims=True),
                               atol=1e-5)


def test_gradients_of_the_last_clicks_are_those_of_finite_differences():
    random = np.random.default_rng(0)
    lengths = np.array([7, 1, 3])
    x = random.normal(size=(11, 2)).astype(np.float32)
    for every_prefix, back in itertools.product((False, True), range(5)):
        tensor = paddle.to_tensor(x, stop_gradient=False)
        rows = recent_rows(tensor, lengths, back, every_prefix)
        weights = random.normal(size=rows.shape).astype(np.float32)
        paddle.sum(rows * paddle.to_tensor(weights)).backward()
        for place in np.ndindex(*x.shape):
            moved = np.zeros_like(x)
            moved[place] = 0.5  # linear: any step is exact
            up, down = (recent_rows(paddle.to_tensor(x + step), lengths, back, every_prefix).numpy()
                        for step in (moved, -moved))
            np.testing.assert_allclose(tensor.grad.numpy()[place],
                                       np.sum((up - down) * weights, dtype=np.float64), atol=1e-4)


def test_the_cosine_of_an_ensemble_is_the_mean_of_its_members():
    model = make_model(**STRONG, members=3)
    batch = paired(np.random.default_rng(0), LENGTHS, 40)
    towers = model(batch)
    users = model.user(batch.clicks, batch.lengths).numpy()
    items = model.item(batch.candidates.ravel()).numpy()
    expected = np.mean([user.numpy() @ item.numpy().T for user, item in towers], axis=0)
    np.testing.assert_allclose(users @ items.T, expected, atol=1e-6)
    loss = nets.PairwiseHingeLoss()
    singles = [loss([member], batch)[0].numpy() for member in towers]
    np.testing.assert_allclose(loss(towers, batch)[0].numpy(), np.mean(singles, axis=0), atol=1e-6)


def test_dropout_is_one_of_training():
    model = make_model(dropout=0.5)
    clicks, lengths = ragged(np.random.default_rng(0), LENGTHS, 40)
    model.train()
    one, other = (model.user(clicks, lengths).numpy() for _ in range(2))
    assert (one != other).any()
    model.eval()
    one, other = (model.user(clicks, lengths).numpy() for _ in range(2))
    assert (one == other).all()


def test_an_item_is_the_sum_of_its_tokens():
    model = make_model()
    table = model.embedding.weight.numpy()
    bags = Bags.of(np.array([3, 7, 7, 5]), np.array([3, 1]))
    got = model.item(bags.rows, bags).numpy()
    sums = np.stack([table[3] + 2 * table[7], table[5]])
    hidden = sums @ model.members[0].item_fc.weight.numpy() + model.members[0].item_fc.bias.numpy()
    np.testing.assert_allclose(got, hidden / np.linalg.norm(hidden, axis=1, keepdims=True),
                               atol=1e-6)
    np.testing.assert_allclose(model.item(np.array([5])).numpy(), got[1:], atol=1e-6)


def test_hinge_loss_by_hand():
    pos, neg = paddle.to_tensor([0.9, 0.5, -1.0]), paddle.to_tensor([0.0, 0.5, 1.0])
    np.testing.assert_allclose(nets.PairwiseHingeLoss(0.8).pair(pos, neg).numpy(), [0, 0.8, 2.8],
                               atol=1e-6)


def test_hinge_loss_of_several_negatives_is_their_mean():
    model = make_model()
    batch = paired(np.random.default_rng(0), LENGTHS, 40, num=3)
    losses, correct = nets.PairwiseHingeLoss(0.8)(model(batch), batch)
    user = model.user(batch.clicks, batch.lengths).numpy()
    cos = np.einsum("bh,bnh->bn", user, model.item(batch.candidates.ravel()).numpy().reshape(
        len(LENGTHS), 4, -1))
    hinge = np.maximum(0, 0.8 - cos[:, :1] + cos[:, 1:])
    np.testing.assert_allclose(losses.numpy(), hinge.mean(1), atol=1e-6)
    np.testing.assert_allclose(correct.numpy(), (cos[:, 1:] < cos[:, :1]).mean(1), atol=1e-6)


def full_softmax(model, batch, scale):
    """The cross-entropy of each target among all items, in double precision."""
    users = model.user(batch.clicks, batch.lengths, every_prefix=True).numpy()
    logits = scale * users.astype(np.float64) @ model.item(np.arange(model.vocab_size)).numpy().T
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), batch.positive]


def test_with_all_items_as_negatives_the_sampled_softmax_is_the_full_one():
    model = make_model(**STRONG)
    random = np.random.default_rng(0)
    dataset = reader.YoochooseDataset(np.arange(40, dtype=np.int32), np.array([0, 20, 40]), 40)
    batch = shared(random, LENGTHS, 40)
    negatives = SharedNegatives(dataset, num=4000, alpha=0.5)
    candidates, log_inclusion = negatives.candidates(random, batch.positive, batch.sessions()[0])
    batch = make_batch(*batch[:3], candidates, log_inclusion, batch.num_targets)
    assert len(candidates) == 40
    losses, _ = SampledSoftmaxLoss(5.0)(model(batch), batch)
    np.testing.assert_allclose(losses.numpy(), full_softmax(model, batch, 5.0), atol=1e-5)


def test_the_correction_has_the_sum_over_all_items_as_its_expectation():
    """Over draws of the candidates, exp(loss) * exp(own logit) is that sum, of which the items that
    are there for certain are a part that does not vary."""
    model = make_model(**STRONG)
    random = np.random.default_rng(0)
    batch = shared(random, [3, 1, 2], 40)
    inclusion = random.uniform(0.2, 0.9, 40)
    scale = 5.0
    users = model.user(batch.clicks, batch.lengths, every_prefix=True).numpy()
    own = scale * (users * model.item(batch.positive).numpy()).sum(1)
    total = np.zeros(6)
    draws = 3000
    loss = SampledSoftmaxLoss(scale)
    # Other sessions' items are there as often as any item: here each row is a batch of its own.
    starts = [0, 3, 4]
    items = model.item(np.arange(40))
    for i, (begin, n) in enumerate(zip(starts, batch.lengths)):
        positive = batch.positive[begin:begin + n]
        for _ in range(draws):
            candidates = np.unique(np.concatenate([np.flatnonzero(random.random(40) < inclusion),
                                                   batch.clicks[begin:begin + n], positive]))
            one = reader.Batch(batch.clicks[begin:begin + n], batch.lengths[i:i + 1], positive,
                               candidates, np.log(inclusion[candidates]).astype(np.float32), n)
            losses, _ = loss([(paddle.to_tensor(users[begin:begin + n]),
                               paddle.gather(items, paddle.to_tensor(candidates)))], one)
            total[begin:begin + n] += np.exp(losses.numpy() + own[begin:begin + n])
    np.testing.assert_allclose(total / draws, np.exp(full_softmax(model, batch, scale) + own),
                               rtol=0.02)


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("lengths", [[1], [3, 1, 2], [1, 1], [4]])
def test_own_session_by_brute_force(lengths, targets):
    random = np.random.default_rng(0)
    clicks, lengths = ragged(random, lengths, 5)
    last = random.integers(0, 5, len(lengths))
    parts = np.split(clicks, np.cumsum(lengths)[:-1])
    sessions = [[*part, item] for part, item in zip(parts, last)]
    positive = np.concatenate([part[1:] for part in sessions]) if targets == "all" else last
    candidates = np.unique(np.concatenate([clicks, last, [7]]))
    batch = make_batch(clicks, lengths, positive, candidates, None, len(positive))
    owner = np.repeat(np.arange(len(lengths)), lengths) if targets == "all" else \
        np.arange(len(lengths))
    expected = sorted({(row, candidates.tolist().index(item)) for row, session in enumerate(owner)
                       for item in sessions[session]})
    assert own_session(batch).tolist() == [list(pair) for pair in expected]


def dense_gradient(parameter):
    """A sparse gradient as a dense array, by what SGD of rate 1 subtracts."""
    before = parameter.numpy().copy()
    optimizer = paddle.optimizer.SGD(1.0, parameters=[parameter])
    optimizer.step()
    change = before - parameter.numpy()
    parameter.set_value(before)
    return change


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("loss, make_batch, num", [
    # The margin is wide, so that no pair is at the kink of the hinge.
    (nets.PairwiseHingeLoss(3.0), paired, 1), (nets.PairwiseHingeLoss(3.0), paired, 3),
    (SampledSoftmaxLoss(4.0), shared, 10)])
def test_gradients_agree_with_finite_differences(parts, loss, make_batch, num):
    """Along random directions, for every parameter, the table included."""
    model = make_model(**parts)
    random = np.random.default_rng(4)
    batch = make_batch(random, LENGTHS, 40, num)

    def mean_loss():
        return paddle.mean(loss(model(batch), batch)[0])

    mean_loss().backward()
    gradients = {name: dense_gradient(p) for name, p in model.named_parameters()}
    step = 2e-3
    for name, parameter in model.named_parameters():
        value = parameter.numpy().copy()
        for _ in range(3):
            direction = random.normal(size=value.shape).astype(np.float32)
            direction /= np.linalg.norm(direction)
            ends = []
            for sign in (1, -1):
                parameter.set_value(value + sign * step * direction)
                ends.append(float(mean_loss()))
            parameter.set_value(value)
            expected = (ends[0] - ends[1]) / (2 * step)
            got = float((gradients[name] * direction).sum())
            assert got == pytest.approx(expected, abs=4e-4, rel=0.02), name


@pytest.mark.parametrize("loss, make_batch", [(nets.PairwiseHingeLoss(), paired),
                                              (SampledSoftmaxLoss(), shared)])
def test_the_gradient_of_the_table_is_sparse(loss, make_batch):
    model = make_model()
    batch = make_batch(np.random.default_rng(0), [2, 1], 40, 4)
    paddle.mean(loss(model(batch), batch)[0]).backward()
    assert model.embedding.weight.grad.is_selected_rows()
    changed = np.abs(dense_gradient(model.embedding.weight)).sum(1) > 0
    assert set(np.flatnonzero(changed)) <= set(batch.ids())


@pytest.mark.parametrize("parts, words", [
    (dict(user_encoder="lstm"), "user_encoder is one of gru, bow"),
    (dict(pooling="mean"), "pooling is one of"), (dict(item_encoder="x"), "item_encoder is one"),
    (dict(user_encoder="bow", pooling="max_last"), "one of a GRU's states"),
    (dict(item_encoder="tied"), "item_encoder tied needs"),
    (dict(pooling="max_last_clicks"), "pooling max_last_clicks needs"),
    (dict(pooling="max_recent_clicks"), "pooling max_recent_clicks needs")])
def test_architectures_that_do_not_exist(parts, words):
    with pytest.raises(ValueError, match=words):
        nets.SequenceSemanticRetrieval(5, 4, 3, **parts)

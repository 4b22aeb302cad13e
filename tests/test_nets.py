"""The towers, their gradients and the loss."""

import numpy as np
import paddle
import pytest

import nets


def ragged(random, lengths, vocab_size):
    return random.integers(0, vocab_size, sum(lengths)), np.array(lengths)


def make_model(user_encoder="gru", vocab_size=40, dim=6, hidden=5, seed=3):
    paddle.seed(seed)
    model = nets.SequenceSemanticRetrieval(vocab_size, dim, hidden, user_encoder)
    for name, parameter in model.named_parameters():
        if "bias" in name:  # zero at first: a test would not see whether they are used
            parameter.set_value(paddle.randn(parameter.shape) * 0.3)
        elif "embedding" in name:
            parameter.set_value(paddle.randn(parameter.shape) * 0.5)
    return model


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
    rows, sizes = nets.time_major(lengths)
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


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [1, 1], [9], [1, 2, 3], [5, 5]])
def test_packed_gru_is_paddles_gru(lengths):
    """Outputs, running maxima and all gradients."""
    encoder = make_encoder(6, 5)
    random = np.random.default_rng(0)
    lengths = np.array(lengths)
    data = random.normal(size=(lengths.sum(), 6)).astype(np.float32)
    weights = [paddle.to_tensor(random.normal(size=(lengths.sum(), 5)).astype(np.float32))
               for _ in range(2)]
    results = []
    for run in (encoder._packed, encoder._padded):
        x = paddle.to_tensor(data, stop_gradient=False)
        state, top = run(x, lengths)
        (paddle.sum(state * weights[0]) + paddle.sum(top * weights[1])).backward()
        gradients = [p.grad.numpy() for p in encoder.parameters()] + [x.grad.numpy()]
        results.append([state.numpy(), top.numpy()] + gradients)
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


@pytest.mark.parametrize("user_encoder", ["gru", "bow"])
def test_shapes_and_lengths_of_the_vectors(user_encoder):
    model = make_model(user_encoder)
    clicks, lengths = ragged(np.random.default_rng(0), LENGTHS, 40)
    user, every = model.user(clicks, lengths), model.user(clicks, lengths, every_prefix=True)
    item = model.item(np.arange(40))
    assert user.shape == [7, 5] and every.shape == [25, 5] and item.shape == [40, 5]
    for vectors in (user, every, item):
        np.testing.assert_allclose(np.linalg.norm(vectors.numpy(), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("user_encoder", ["gru", "bow"])
def test_company_changes_nothing(user_encoder):
    """A session has the same vectors alone and in any batch, and the same loss."""
    model = make_model(user_encoder)
    random = np.random.default_rng(0)
    clicks, lengths = ragged(random, LENGTHS, 40)
    positive, negative = random.integers(0, 40, (2, len(LENGTHS)))
    loss = nets.PairwiseHingeLoss()
    together = loss(*model(clicks, lengths, positive, negative)).numpy()
    every = model.user(clicks, lengths, every_prefix=True).numpy()
    ends = np.cumsum(lengths)
    for i, (end, n) in enumerate(zip(ends, lengths)):
        own = clicks[end - n:end], lengths[i:i + 1]
        alone = loss(*model(*own, positive[i:i + 1], negative[i:i + 1])).numpy()
        np.testing.assert_allclose(alone, together[i:i + 1], atol=1e-6)
        np.testing.assert_allclose(model.user(*own, every_prefix=True).numpy(),
                                   every[end - n:end], atol=1e-6)


@pytest.mark.parametrize("user_encoder", ["gru", "bow"])
def test_a_prefix_is_a_session_of_its_own(user_encoder):
    model = make_model(user_encoder)
    clicks, _ = ragged(np.random.default_rng(0), [9], 40)
    every = model.user(clicks, np.array([9]), every_prefix=True).numpy()
    for n in range(1, 10):
        np.testing.assert_allclose(model.user(clicks[:n], np.array([n])).numpy(), every[n - 1:n],
                                   atol=1e-5)


def test_an_item_is_the_sum_of_its_tokens():
    model = make_model()
    table = model.embedding.weight.numpy()
    got = model.item(np.array([3, 7, 7, 5]), np.array([3, 1])).numpy()
    sums = np.stack([table[3] + 2 * table[7], table[5]])
    hidden = sums @ model.item_fc.weight.numpy() + model.item_fc.bias.numpy()
    np.testing.assert_allclose(got, hidden / np.linalg.norm(hidden, axis=1, keepdims=True),
                               atol=1e-6)
    np.testing.assert_allclose(model.item(np.array([5])).numpy(), got[1:], atol=1e-6)


def test_hinge_loss_by_hand():
    pos, neg = paddle.to_tensor([0.9, 0.5, -1.0]), paddle.to_tensor([0.0, 0.5, 1.0])
    np.testing.assert_allclose(nets.PairwiseHingeLoss(0.8)(pos, neg).numpy(), [0, 0.8, 2.8],
                               atol=1e-6)


def dense_gradient(parameter):
    """A sparse gradient as a dense array, by what SGD of rate 1 subtracts."""
    before = parameter.numpy().copy()
    optimizer = paddle.optimizer.SGD(1.0, parameters=[parameter])
    optimizer.step()
    change = before - parameter.numpy()
    parameter.set_value(before)
    return change


@pytest.mark.parametrize("user_encoder", ["gru", "bow"])
def test_gradients_agree_with_finite_differences(user_encoder):
    """Along random directions, for every parameter, the table included. The margin is wide, so
    that no pair is at the kink of the hinge."""
    model = make_model(user_encoder)
    random = np.random.default_rng(4)
    clicks, lengths = ragged(random, LENGTHS, 40)
    positive, negative = random.integers(0, 40, (2, len(LENGTHS)))

    def mean_loss():
        return paddle.mean(nets.PairwiseHingeLoss(3.0)(*model(clicks, lengths, positive, negative)))

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
            assert got == pytest.approx(expected, abs=3e-4, rel=0.02), name


def test_the_gradient_of_the_table_is_sparse():
    model = make_model()
    clicks, lengths = np.array([1, 2, 3]), np.array([2, 1])
    paddle.mean(nets.PairwiseHingeLoss()(*model(clicks, lengths, np.array([4, 5]),
                                                np.array([6, 7])))).backward()
    assert model.embedding.weight.grad.is_selected_rows()
    changed = np.abs(dense_gradient(model.embedding.weight)).sum(1) > 0
    assert set(np.flatnonzero(changed)) <= set(range(1, 8))


def test_unknown_user_encoder():
    with pytest.raises(ValueError, match="'gru' or 'bow'"):
        nets.SequenceSemanticRetrieval(5, 4, 4, "lstm")

"""The fused sampled softmax against Paddle's operators, a sum in double precision and finite
differences."""

import numpy as np
import paddle
import pytest

import reader
from ssr.kernels import softmax
from ssr.training.losses import own_session


@pytest.fixture(params=[1, 3, 128])
def block_rows(request, monkeypatch):
    monkeypatch.setattr(softmax, "MIN_BLOCK_ROWS", request.param)
    monkeypatch.setattr(softmax, "BLOCK_NUMBERS", 1)


def unit(random, rows, dim=6):
    x = random.normal(size=(rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def problem(lengths=(3, 1, 7, 2, 7, 1, 4), candidates=15, seed=0):
    """(users, items, place, certain, log_inclusion): sessions that repeat their own items."""
    random = np.random.default_rng(seed)
    targets = sum(lengths)
    place = random.integers(0, candidates, targets)
    place[:3] = place[0]
    clicks = np.insert(place[:-1], 0, 0)
    batch = reader.Batch(clicks, np.array(lengths), place, np.arange(candidates), None, targets)
    return (unit(random, targets), unit(random, candidates), place,
            own_session(batch),
            np.log(random.uniform(0.001, 1, candidates)).astype(np.float32))


def reference(users, items, place, certain, log_inclusion, scale):
    logits = scale * users @ items.T - log_inclusion.astype(np.float64)
    row, candidate = certain.T
    logits[row, candidate] += log_inclusion[candidate]
    top = logits.max(axis=1)
    return (np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
            - logits[np.arange(len(place)), place])


@pytest.mark.parametrize("scale", [0.0, 5.0, 16.0, 39.0, 41.0, 300.0])
def test_losses_are_those_of_the_definition(scale, block_rows):
    users, items, *rest = problem()
    losses, *_ = softmax.losses_and_gradients(users, items, *rest, scale)
    expected = reference(users, items, *rest, scale)
    np.testing.assert_allclose(losses, expected, rtol=1e-7, atol=1e-7)
    single, *gradients = softmax.losses_and_gradients(users.astype(np.float32),
                                                      items.astype(np.float32), *rest, scale)
    assert single.dtype == np.float32 and all(g.dtype == np.float32 for g in gradients)
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_finite_differences(weighted, block_rows):
    users, items, *rest = problem()
    random = np.random.default_rng(1)
    weights = random.uniform(-1, 2, len(users)) if weighted else np.ones(len(users))
    _, *gradients = softmax.losses_and_gradients(users, items, *rest, 7.0,
                                                 weights if weighted else None)
    for which, gradient in enumerate(gradients):
        for _ in range(5):
            direction = random.normal(size=gradient.shape)
            ends = []
            for step in (1e-6, -1e-6):
                moved = [users, items]
                moved[which] = moved[which] + step * direction
                ends.append(weights @ reference(*moved, *rest, 7.0))
            assert (gradient * direction).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6,
                                                                 rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("scale", [2.0, 16.0])
@pytest.mark.parametrize("reduce", ["mean", "weighted"])
def test_the_fused_one_is_that_of_paddles_operators(scale, reduce, block_rows):
    users, items, *rest = problem(lengths=(20, 1, 13, 1, 6), candidates=300)
    weights = np.random.default_rng(2).uniform(0, 3, len(users)).astype(np.float32)
    results = []
    for function in (softmax.sampled_cross_entropy, softmax.cross_entropy_of_logits):
        inputs = [paddle.to_tensor(x.astype(np.float32), stop_gradient=False)
                  for x in (users, items)]
        losses = function(*inputs, *rest, scale)
        total = paddle.mean(losses) if reduce == "mean" else paddle.sum(
            losses * paddle.to_tensor(weights))
        total.backward()
        results.append([losses.numpy(), *(x.grad.numpy() for x in inputs)])
    for fused, expected in zip(*results):
        np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=2e-5 * abs(expected).max())


def test_items_that_hardly_ever_are_candidates_count_for_many():
    """A candidate for 1e9 others is no overflow, and no loss of the others."""
    users, items, place, certain, log_inclusion = problem()
    log_inclusion[:] = np.log(1e-9)
    users, items = users.astype(np.float32), items.astype(np.float32)
    losses, *gradients = softmax.losses_and_gradients(users, items, place, certain, log_inclusion,
                                                      softmax.MAX_UNSHIFTED)
    expected = reference(users.astype(float), items, place, certain, log_inclusion,
                         softmax.MAX_UNSHIFTED)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)

"""What numpy computes in place of Paddle's operators on a CPU: the same values and gradients."""

import resource

import numpy as np
import paddle
import pytest

from ssr.kernels import ragged
from ssr.kernels.adam import LazyAdam
from ssr.kernels.memory import as_array, new_tensor

LENGTHS = np.array([3, 1, 7, 2, 7, 1, 4])


def both_routes(function, *inputs, monkeypatch):
    """(value, *gradients) of a weighted sum of what a function makes of arrays, by numpy and by
    Paddle's operators."""
    for on_cpu in (True, False):
        monkeypatch.setattr(ragged, "on_cpu", lambda x, answer=on_cpu: answer)
        tensors = [paddle.to_tensor(x.astype(np.float32), stop_gradient=False) for x in inputs]
        value = function(*tensors)
        weights = np.random.default_rng(9).normal(size=value.shape).astype(np.float32)
        paddle.sum(value * paddle.to_tensor(weights)).backward()
        yield [value.numpy(), *(x.grad.numpy() for x in tensors)]


def test_an_array_is_the_memory_of_its_tensor():
    tensor = paddle.arange(12, dtype="float32").reshape([3, 4])
    array = as_array(tensor)
    array[1, 2] = -5
    assert float(tensor[1, 2]) == -5
    for part in (tensor[1:], tensor.transpose([1, 0]), paddle.split(tensor, 2, axis=1)[1]):
        assert (as_array(part) == part.numpy()).all()
    _, alone = new_tensor(1000, 100)
    alone[:] = 7
    others = [paddle.zeros([1000, 100]) for _ in range(5)]
    assert len(others) and (alone == 7).all()  # the tensor lives as long as its array


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_unit_rows(shape, monkeypatch):
    x = np.random.default_rng(0).normal(size=shape)
    x.reshape(-1, 4)[1] = 0
    fused, expected = both_routes(ragged.unit_rows, x, monkeypatch=monkeypatch)
    for got, right in zip(fused, expected):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recent", [1, 2, 5])
@pytest.mark.parametrize("lengths", [LENGTHS, np.array([1, 1]), np.array([9])])
def test_weighted_clicks(recent, lengths, monkeypatch):
    random = np.random.default_rng(1)
    x, gains = random.normal(size=(lengths.sum(), 6)), random.normal(size=(recent + 1, 6))
    fused, expected = both_routes(
        lambda x, gains: ragged.weighted_clicks(x, gains, lengths, every_prefix=True), x, gains,
        monkeypatch=monkeypatch)
    for got, right in zip(fused, expected):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_expectation_and_belongs_to_the_seed():
    x = paddle.full([400, 100], 3.0)
    x.stop_gradient = False
    paddle.seed(5)
    one, other = ragged.dropout(x, 0.25), ragged.dropout(x, 0.25)
    assert set(np.unique(one.numpy())) == {0, 4}
    assert (one.numpy() == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert (one.numpy() == other.numpy()).mean() == pytest.approx(0.25 ** 2 + 0.75 ** 2, abs=0.01)
    paddle.sum(one).backward()
    np.testing.assert_allclose(x.grad.numpy(), one.numpy() / 3, rtol=1e-6)
    paddle.seed(5)
    assert (ragged.dropout(x, 0.25).numpy() == one.numpy()).all()
    assert ragged.dropout(x, 0.0) is x


def test_what_is_kept_for_a_gradient_is_given_back():
    """An operation that kept its own result would never end."""
    x = paddle.ones([50000, 100])
    x.stop_gradient = False
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30):
        ragged.unit_rows(ragged.dropout(x, 0.5))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 200  # MB; all of them together are 1,200


def train_rows(make_optimizer, sparse, steps=12):
    """The state after some steps on a table of 30 rows and a layer above it."""
    random = np.random.default_rng(0)
    with paddle.utils.unique_name.guard():
        table = paddle.nn.Embedding(30, 7, sparse=sparse)
        table.weight.set_value(random.normal(size=(30, 7)).astype(np.float32))
        layer = paddle.nn.Linear(7, 3)
        layer.weight.set_value(random.normal(size=(7, 3)).astype(np.float32))
        optimizer = make_optimizer([*table.parameters(), *layer.parameters()])
        for step in range(steps):
            optimizer.set_lr(0.1 / (1 + step))
            # All rows in each step, most of them several times: a dense step is then the same.
            rows = random.permutation(np.concatenate([np.arange(30), random.integers(0, 30, 40)]))
            weights = random.normal(size=(70, 3)).astype(np.float32)
            paddle.sum(layer(table(paddle.to_tensor(rows))) * paddle.to_tensor(weights)).backward()
            optimizer.step()
            optimizer.clear_grad()
    return {"table": table.weight, "layer": layer.weight, **optimizer.state_dict()}


def test_adam_of_rows_is_adam(monkeypatch):
    monkeypatch.setattr("ssr.kernels.adam.BLOCK_NUMBERS", 50)  # several blocks
    got = train_rows(lambda parameters: LazyAdam(0.1, parameters), sparse=True)
    right = train_rows(lambda parameters: paddle.optimizer.Adam(0.1, parameters=parameters),
                       sparse=False)
    assert got.keys() == right.keys()  # so a checkpoint is Paddle's
    for name, value in right.items():
        np.testing.assert_allclose(got[name].numpy(), value.numpy(), rtol=2e-4, atol=2e-6)


def test_adam_leaves_other_rows_alone():
    table = paddle.nn.Embedding(10, 4, sparse=True)
    optimizer = LazyAdam(0.1, table.parameters())
    for rows in ([1, 2, 2], [3]):
        before = {name: value.numpy() for name, value in optimizer.state_dict().items()}
        before["table"] = table.weight.numpy()
        paddle.sum(table(paddle.to_tensor(rows))).backward()
        optimizer.step()
        optimizer.clear_grad()
    for name, value in {**optimizer.state_dict(), "table": table.weight}.items():
        if len(value.shape) == 2:
            changed = (value.numpy() != before[name]).any(axis=1)
            assert np.flatnonzero(changed).tolist() == [3], name

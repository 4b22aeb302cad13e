"""Operations on sequences of rows that lie end to end, each with its length: nothing is padded.

Where those of training are many of Paddle's, on a CPU one of numpy takes their place: a step is
short enough for what each of them costs by itself to count.
"""

from __future__ import annotations

import numpy as np

from ssr.kernels.memory import as_array, new_tensor
from ssr.kernels.packed import scatter, time_major
from ssr.runtime import paddle


def on_cpu(x):
    """Whether numpy can compute with a tensor; not with a variable of a static graph."""
    return paddle.in_dynamic_mode() and x.place.is_cpu_place()


def unit_rows(x):
    """Rows scaled to length 1: the inner product of two of them is their cosine.

    x: <float32>[.., dim] -> <float32>[.., dim]
    """
    if on_cpu(x):
        return UnitRows.apply(x)
    return x * paddle.rsqrt(paddle.sum(x * x, axis=-1, keepdim=True) + EPSILON)


EPSILON = 1e-12  # of the squared length, for rows of zeros


class UnitRows(paddle.autograd.PyLayer):
    """unit_rows on a CPU."""

    @staticmethod
    def forward(ctx, x):
        value = as_array(x)
        out, unit = new_tensor(*x.shape)
        scale = np.einsum("...i,...i->...", value, value)[..., None]
        scale += EPSILON
        scale = 1 / np.sqrt(scale)
        np.multiply(value, scale, out=unit)
        ctx.saved = unit, scale
        return out

    @staticmethod
    def backward(ctx, d_out):
        unit, scale = ctx.saved
        d_unit = as_array(d_out)
        gradient, d_x = new_tensor(*d_out.shape)
        np.multiply(unit, np.einsum("...i,...i->...", unit, d_unit)[..., None], out=d_x)
        np.subtract(d_unit, d_x, out=d_x)
        d_x *= scale
        return gradient


def _steps(sizes):
    """The steps of time_major after the first: for each a slice of its rows, and one of those of
    the same sequences a step before."""
    starts = np.cumsum(sizes) - sizes
    return [(slice(start, start + n), slice(previous, previous + n))
            for previous, start, n in zip(starts.tolist(), starts[1:].tolist(), sizes[1:])]


def dropout(x, share):
    """Sets a share of the numbers to 0 and scales the others, so that each stays the same in
    expectation. Drawn by what paddle.seed has set.

    x: <float32>[rows, dim] -> <float32>[rows, dim]
    """
    if not share:
        return x
    if on_cpu(x):
        return Dropout.apply(x, share)
    return paddle.nn.functional.dropout(x, share)


class Dropout(paddle.autograd.PyLayer):
    """dropout on a CPU: numpy draws in a quarter of the time of Paddle."""

    @staticmethod
    def forward(ctx, x, share):
        random = np.random.default_rng(int(paddle.randint(0, MAX_SEED, [1])))
        ctx.factors = (random.random(x.shape, np.float32) >= share) * np.float32(1 / (1 - share))
        return _product(x, ctx.factors)

    @staticmethod
    def backward(ctx, d_out):
        return _product(d_out, ctx.factors)


MAX_SEED = 2 ** 31 - 1


def _product(x, factors):
    result, array = new_tensor(*x.shape)
    np.multiply(as_array(x), factors, out=array)
    return result


def take(x, place):
    """Some rows, in any order; x itself where these are all of them as they are.

    x: <float32>[rows, dim]; place: numpy <int64>[n] -> <float32>[n, dim]
    """
    if len(place) == len(x) and np.array_equal(place, np.arange(len(x))):
        return x
    return paddle.gather(x, paddle.to_tensor(place))


def last_rows(x, lengths):
    """The last row of each sequence.

    x: <float32>[rows, dim]; lengths: numpy <int64>[batch] -> <float32>[batch, dim]
    """
    return take(x, np.cumsum(lengths) - 1)


def recent_rows(x, lengths, back, every_prefix=False):
    """The row that comes `back` rows before the last one of each sequence, or of each prefix of
    each; zeros where there is none.

    x: <float32>[rows, dim]; lengths: numpy <int64>[batch]
    returns <float32>[batch, dim], or [rows, dim] for every prefix
    """
    if not back:
        return x if every_prefix else last_rows(x, lengths)
    last = np.cumsum(lengths) - 1
    if every_prefix:
        place = np.arange(len(x)) - np.repeat(last + 1 - lengths, lengths)
        last = np.arange(len(x))
    else:
        place = lengths - 1
    padded = paddle.concat([x, paddle.zeros_like(x[:1])])
    return take(padded, np.where(place >= back, last - back, len(x)))


def sums(x, lengths, every_prefix=False):
    """The sum over each sequence, or over each prefix of each.

    x: <float32>[rows, dim]; lengths: numpy <int64>[batch]
    returns <float32>[batch, dim], or [rows, dim] for every prefix
    """
    segments = paddle.to_tensor(np.repeat(np.arange(len(lengths)), lengths))
    if not every_prefix:
        return paddle.geometric.segment_sum(x, segments)
    # A running sum over all sequences, less what it was where each began; in double precision, so
    # that a sequence is the same to the last digit in any company.
    total = paddle.cumsum(x.astype("float64"), axis=0)
    total = paddle.concat([paddle.zeros_like(total[:1]), total])
    begin = paddle.gather(total, paddle.to_tensor(np.cumsum(lengths) - lengths))
    return (total[1:] - paddle.gather(begin, segments)).astype("float32")


def means(x, lengths, every_prefix=False):
    """The mean over each sequence, or over each prefix of each; shapes as in sums."""
    total = sums(x, lengths, every_prefix)
    if every_prefix:
        ends = np.cumsum(lengths)
        lengths = np.arange(1, ends[-1] + 1) - np.repeat(ends - lengths, lengths)
    return total * paddle.to_tensor((1 / lengths).astype(np.float32)[:, None])


def weighted_clicks(x, gains, lengths, every_prefix=False):
    """The last rows of each sequence, or of each prefix of each, and the mean of all of its rows,
    added up with a gain for each column.

    x: <float32>[rows, dim]; lengths: numpy <int64>[batch]
    gains: <float32>[recent + 1, dim], of the last rows, newest first, and of the mean
    returns <float32>[batch, dim], or [rows, dim] for every prefix
    """
    if every_prefix and on_cpu(x):
        return WeightedClicks.apply(x, gains, lengths)
    *recent, of_mean = gains
    total = of_mean * means(x, lengths, every_prefix)
    for back, gain in enumerate(recent):
        total = total + gain * recent_rows(x, lengths, back, every_prefix)
    return total


class WeightedClicks(paddle.autograd.PyLayer):
    """weighted_clicks of every prefix, on a CPU."""

    @staticmethod
    def forward(ctx, x, gains, lengths):
        x, gains = as_array(x), as_array(gains)
        place = np.arange(len(x)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        order = rows, sizes = time_major(lengths)
        averages = x[rows]
        for now, previous in _steps(sizes):
            averages[now] += averages[previous]
        averages /= (place[rows] + 1).astype(np.float32)[:, None]
        averages = scatter(averages, rows)
        out, total = new_tensor(*x.shape)
        np.multiply(averages, gains[-1], out=total)
        total += x * gains[0]
        older = [(back, np.flatnonzero(place >= back)) for back in range(1, len(gains) - 1)]
        for back, now in older:
            total[now] += x[now - back] * gains[back]
        ctx.saved = x, gains, place, order, averages, older
        return out

    @staticmethod
    def backward(ctx, d_out):
        x, gains, place, (rows, sizes), averages, older = ctx.saved
        d_total = as_array(d_out)
        d_gains = np.empty_like(gains)
        d_gains[-1] = np.einsum("ij,ij->j", d_total, averages)
        d_gains[0] = np.einsum("ij,ij->j", d_total, x)
        d_averages = d_total[rows]
        d_averages *= gains[-1]
        d_averages /= (place[rows] + 1).astype(np.float32)[:, None]
        for now, previous in reversed(_steps(sizes)):
            d_averages[previous] += d_averages[now]
        gradient, d_x = new_tensor(*x.shape)
        d_x[rows] = d_averages
        d_x += d_total * gains[0]
        for back, now in older:
            d_gains[back] = np.einsum("ij,ij->j", d_total[now], x[now - back])
            d_x[now - back] += d_total[now] * gains[back]
        return gradient, paddle.to_tensor(d_gains)


def sums_of_bags(x, members, lengths):
    """The sum of the rows in each bag.

    x: <float32>[rows, dim]; members: numpy <int64>[n], the rows in each bag, bags end to end
    lengths: numpy <int64>[bags] -> <float32>[bags, dim]
    """
    if not x.place.is_cpu_place():
        return sums_of_gathered(x, members, lengths)
    from scipy.sparse import csr_matrix  # here: only content needs it

    ends = np.concatenate([[0], np.cumsum(lengths)])
    return SumOfRows.apply(x, csr_matrix((np.ones(len(members), np.float32), members, ends),
                                         shape=(len(lengths), len(x))))


def sums_of_gathered(x, members, lengths):
    """As sums_of_bags, on a GPU."""
    full = np.flatnonzero(lengths)
    if not len(full):
        return paddle.zeros([len(lengths), x.shape[1]])
    total = sums(take(x, members), lengths[full])
    if len(full) == len(lengths):
        return total
    return paddle.scatter_nd_add(paddle.zeros([len(lengths), x.shape[1]]),
                                 paddle.to_tensor(full[:, None]), total)


class SumOfRows(paddle.autograd.PyLayer):
    """Sums of rows, the product with a sparse matrix of ones, on a CPU: scipy's takes a ninth of
    the time of Paddle 2.6.2's segment_sum, and its gradient is one of the rows, merged already."""

    @staticmethod
    def forward(ctx, x, picks):
        """x: <float32>[rows, dim]; picks: scipy.sparse.csr_matrix [sums, rows]
        returns <float32>[sums, dim]"""
        ctx.picks = picks
        return paddle.to_tensor(picks @ x.numpy())

    @staticmethod
    def backward(ctx, d_sums):
        return paddle.to_tensor(ctx.picks.T @ d_sums.numpy())

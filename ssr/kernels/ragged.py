"""Operations on sequences of rows that lie end to end, each with its length: nothing is padded."""

from __future__ import annotations

import numpy as np

from ssr.runtime import paddle


def unit_rows(x):
    """Rows scaled to length 1: the inner product of two of them is their cosine.

    x: <float32>[n, dim] -> <float32>[n, dim]
    """
    return x * paddle.rsqrt(paddle.sum(x * x, axis=-1, keepdim=True) + 1e-12)


def last_rows(x, lengths):
    """The last row of each sequence.

    x: <float32>[rows, dim]; lengths: numpy <int64>[batch] -> <float32>[batch, dim]
    """
    return paddle.gather(x, paddle.to_tensor(np.cumsum(lengths) - 1))


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
    return paddle.gather(padded, paddle.to_tensor(np.where(place >= back, last - back, len(x))))


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
    total = sums(paddle.gather(x, paddle.to_tensor(members)), lengths[full])
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

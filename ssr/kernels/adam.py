"""Adam that updates the rows of a step only, in place."""

from __future__ import annotations

import numpy as np

from ssr.kernels.memory import as_array
from ssr.kernels.ragged import on_cpu
from ssr.runtime import paddle

BLOCK_NUMBERS = 2 ** 17  # of an array at a time, 512 KB: what is computed stays in the cache


class LazyAdam(paddle.optimizer.Adam):
    """paddle.optimizer.Adam with lazy_mode: a row without a gradient keeps its value and moments.

    Paddle's own for sparse gradients goes number by number; on a CPU one of numpy takes its place.
    The state is Paddle's, and so is a file of it.
    """

    def __init__(self, learning_rate, parameters):
        super().__init__(learning_rate, parameters=parameters, lazy_mode=True)

    def _append_optimize_op(self, block, param_and_grad):
        parameter, gradient = param_and_grad
        if not (gradient.is_selected_rows() and on_cpu(parameter)):
            return super()._append_optimize_op(block, param_and_grad)
        moment1, moment2, power1, power2 = (
            as_array(self._get_accumulator_master(name, parameter))
            for name in (self._moment1_acc_str, self._moment2_acc_str, self._beta1_pow_acc_str,
                         self._beta2_pow_acc_str))
        correction = np.sqrt(1 - power2[0])
        rate = self.get_lr() * correction / (1 - power1[0])
        rows, values = merged_rows(gradient)
        update_rows(as_array(parameter), moment1, moment2, rows, values, rate,
                    (self._beta1, self._beta2), self._epsilon * correction)
        power1 *= self._beta1
        power2 *= self._beta2
        return None


def merged_rows(gradient):
    """A sparse gradient with each of its rows once: (<int64>[n], ascending, <float32>[n, dim])."""
    from scipy.sparse import csr_matrix  # here: only training needs it

    rows = np.array(gradient.rows())
    values = as_array(gradient._get_tensor_from_selected_rows())
    if (np.diff(rows) > 0).all():
        return rows, values
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    picks = csr_matrix((np.ones(len(rows), np.float32), order, [*begins, len(rows)]),
                       shape=(len(begins), len(rows)))
    return rows[begins], picks @ values


def update_rows(table, moment1, moment2, rows, gradient, rate, betas, epsilon):
    """A step of Adam (Kingma and Ba, ICLR 2015, with the corrections of the moments in rate and
    epsilon) on some rows, in place.

    table, moment1, moment2: <float32>[.., dim]; rows: <int64>[n], each once
    gradient: <float32>[n, dim]
    """
    rate, beta1, beta2, epsilon = map(np.float32, (rate, *betas, epsilon))
    step = max(1, BLOCK_NUMBERS // table.shape[1])
    for begin in range(0, len(rows), step):
        block, g = rows[begin:begin + step], gradient[begin:begin + step]
        m, v = moment1[block], moment2[block]
        m *= beta1
        m += g * (1 - beta1)
        moment1[block] = m
        v *= beta2
        v += np.square(g) * (1 - beta2)
        moment2[block] = v
        np.sqrt(v, out=v)
        v += epsilon
        m *= rate
        m /= v
        table[block] -= m

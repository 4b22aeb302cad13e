"""Adam that updates the rows of a step only, in place."""

from __future__ import annotations

import numpy as np

from ssr.kernels.memory import as_array
from ssr.kernels.ragged import on_cpu
from ssr.runtime import paddle

BLOCK_NUMBERS = 2 ** 16  # of an array at a time, 256 KB: what is computed stays in the cache


class LazyAdam(paddle.optimizer.Adam):
    """paddle.optimizer.Adam with lazy_mode: a row without a gradient keeps its value and moments.

    On a CPU numpy takes the place of Paddle's, which goes number by number where a gradient is
    sparse, and corrects the moments as if it were a step later (PaddlePaddle/Paddle#53052): its
    first steps are up to a quarter too small. The state is Paddle's, and so is a file of it.
    """

    def __init__(self, learning_rate, parameters):
        super().__init__(learning_rate, parameters=parameters, lazy_mode=True)

    def _append_optimize_op(self, block, param_and_grad):
        parameter, gradient = param_and_grad
        if not on_cpu(parameter):
            return super()._append_optimize_op(block, param_and_grad)
        moment1, moment2, power1, power2 = (
            as_array(self._get_accumulator_master(name, parameter))
            for name in (self._moment1_acc_str, self._moment2_acc_str, self._beta1_pow_acc_str,
                         self._beta2_pow_acc_str))
        correction = np.sqrt(1 - power2[0])
        arrays = as_array(parameter), moment1, moment2
        numbers = (self.get_lr() * correction / (1 - power1[0]), self._beta1, self._beta2,
                   self._epsilon * correction)
        if gradient.is_selected_rows():
            update_rows(*arrays, *merged_rows(gradient), *numbers)
        else:
            update(*arrays, as_array(gradient), *numbers)
        power1 *= self._beta1
        power2 *= self._beta2
        return None


def merged_rows(gradient):
    """A sparse gradient with each of its rows once: (<int64>[n], <float32>[n, dim])."""
    rows = np.array(gradient.rows())
    values = as_array(gradient._get_tensor_from_selected_rows())
    if (np.diff(rows) > 0).all():  # as training looks them up
        return rows, values
    rows, place = np.unique(rows, return_inverse=True)
    total = np.zeros((len(rows), values.shape[1]), np.float32)
    np.add.at(total, place, values)
    return rows, total


def update(parameter, moment1, moment2, gradient, rate, beta1, beta2, epsilon):
    """A step of Adam (Kingma and Ba, ICLR 2015, with the corrections of the moments in rate and
    epsilon), in place. parameter, moment1, moment2, gradient: <float32> of one shape"""
    rate, beta1, beta2, epsilon = map(np.float32, (rate, beta1, beta2, epsilon))
    change = gradient * (1 - beta1)
    moment1 *= beta1
    moment1 += change
    np.square(gradient, out=change)
    change *= 1 - beta2
    moment2 *= beta2
    moment2 += change
    np.sqrt(moment2, out=change)
    change += epsilon
    np.divide(moment1, change, out=change)
    change *= rate
    parameter -= change


def update_rows(table, moment1, moment2, rows, gradient, *numbers):
    """As update, of some rows.

    table, moment1, moment2: <float32>[.., dim]; rows: <int64>[n], each once
    gradient: <float32>[n, dim]
    """
    step = max(1, BLOCK_NUMBERS // table.shape[1])
    for begin in range(0, len(rows), step):
        block = rows[begin:begin + step]
        values = [array.take(block, axis=0) for array in (table, moment1, moment2)]
        update(*values, gradient[begin:begin + step], *numbers)
        for array, value in zip((table, moment1, moment2), values):
            array[block] = value

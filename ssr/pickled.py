"""Pickles of numpy arrays, as paddle.save writes them too, read without running what they may hold.

paddle.load unpickles, and a pickle may call any function. The state dict of a model or an optimizer
holds numpy arrays and names, so an unpickler that admits nothing else reads it. What is written
here paddle.load reads, too; paddle.save has all of the arrays in memory twice more while it writes.
"""

from __future__ import annotations

import pickle

import numpy as np

from ssr.errors import DataError, SetupError

# numpy 2 has moved its core; files of either version name the one they were written by.
_MAKERS = {"_reconstruct": np.empty(0).__reduce__()[0],  # wherever this numpy has it
           "_frombuffer": np.empty(0).__reduce_ex__(5)[0]}
_ALLOWED = {*((f"numpy.{core}.{module}", name) for core in ("core", "_core") for module, name in
              (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))),
            ("numpy", "ndarray"), ("numpy", "dtype")}
_NAMES = "StructuredToParameterName@@"  # where paddle.save puts the names of the tensors


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _MAKERS.get(name) or getattr(np, name)


def save_arrays(path, arrays, names):
    """Writes a state dict. One array at most is in memory a second time.

    arrays: {name: numpy array}; names: {name: that of the tensor} for paddle.load, which makes
        tensors of these
    """
    with open(path, "wb") as f:
        # Of earlier protocols the pickler would keep a copy of each array until it is done.
        pickle.dump({**arrays, _NAMES: names}, f, protocol=5)


def load_arrays(path):
    """{name: numpy array} of a state dict that save_arrays or paddle.save wrote. Raises SetupError.
    """
    try:
        with open(path, "rb") as f:
            state = _Unpickler(f).load()
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("it holds no state dict")
        state.pop(_NAMES, None)
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, np.ndarray) \
                    or value.dtype.hasobject:
                raise pickle.UnpicklingError(f"{str(name)[:40]!r} is no array of numbers")
    except Exception as error:  # what a damaged pickle raises varies with the damage
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SetupError(f"cannot load {path}: {reason}; it is no checkpoint, or a damaged one"
                         ) from error
    return state


def load_array(path):
    """The numpy array of numbers in a pickle that holds nothing else. Raises DataError."""
    try:
        with open(path, "rb") as f:
            array = _Unpickler(f).load()
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            raise pickle.UnpicklingError("it holds something else")
    except Exception as error:  # what a damaged pickle raises varies with the damage
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"cannot read {path}: {reason}; it is no pickle of an array of numbers"
                        ) from error
    return array

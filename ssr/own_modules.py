"""The modules at the top of the project beside a user's own of the same names.

nets.py, reader.py, utils.py and the commands lie at the top, since that is where one looks for
them. In a notebook, though, `utils` is likely to be a file beside it. Within

    with own_modules():
        import utils

`utils` is the project's, whatever else is on the path, and after it what it was for everybody else:
a module that was imported inside keeps what it has.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMES = ("nets", "reader", "utils", "train", "infer", "preprocess", "retrieve", "serve", "export",
         "evaluate_stream", "cluster_train", "plot_metrics")

_lock = threading.RLock()
_hidden = {}  # modules of the project whose names belong to others outside


@contextlib.contextmanager
def own_modules():
    """Within the block the NAMES are modules of the project."""
    with _lock:
        others = {name: sys.modules.pop(name) for name in NAMES
                  if name in sys.modules and not _is_own(sys.modules[name].__spec__)}
        sys.modules.update(_hidden)
        sys.path.insert(0, ROOT)
        try:
            yield
        finally:
            sys.path.remove(ROOT)
            for name in NAMES:
                if name in sys.modules and not _is_found_outside(name):
                    _hidden[name] = sys.modules.pop(name)
            sys.modules.update(others)


def lazy_names(package, modules):
    """The functions __getattr__ and __dir__ (PEP 562) of a package that loads nothing until one of
    its names is used.

    package: a dict, its globals()
    modules: {name: the module below the package that has it}
    """
    package_name = package["__name__"]

    def __getattr__(name):
        if name not in modules:
            raise AttributeError(f"module {package_name!r} has no attribute {name!r}")
        with own_modules():
            module = importlib.import_module(f"{package_name}.{modules[name]}")
        package[name] = getattr(module, name)
        return package[name]

    def __dir__():
        return sorted({*package, *modules})

    return __getattr__, __dir__


def _is_found_outside(name):
    """Whether an import of the name, if it came now for the first time, would find the project's
    module."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path)
    return _is_own(next(filter(None, specs), None))


def _is_own(spec):
    origin = getattr(spec, "origin", None)
    return bool(origin) and os.path.dirname(os.path.realpath(origin)) == os.path.realpath(ROOT)

"""A score for news as they happen, and its replay.

    from ssr.news import Scoring, Stream

Importing this package loads nothing; numpy comes with the first of these names, Paddle with none.
"""

from __future__ import annotations

import importlib

_MODULES = {"AGE": "stream", "Stream": "stream", "Scoring": "scoring", "read_scoring": "scoring",
            "write_scoring": "scoring", "Examples": "fit", "fit_scoring": "fit"}
__all__ = sorted(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__():
    return sorted({*globals(), *_MODULES})

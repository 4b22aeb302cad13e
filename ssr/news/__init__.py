"""A score for news as they happen, and its replay.

    from ssr.news import Scoring, Stream

Importing this package loads nothing; numpy comes with the first of these names, Paddle with none.
"""

from ssr.own_modules import lazy_names

_MODULES = {"AGE": "stream", "Stream": "stream", "Scoring": "scoring", "read_scoring": "scoring",
            "write_scoring": "scoring", "Examples": "fit", "fit_scoring": "fit"}
__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(globals(), _MODULES)

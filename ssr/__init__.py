"""Sequence Semantic Retrieval: from clicks to recommendations.

    import ssr

    model = ssr.fit(clicks, recipe="strong", valid=0.1)
    model.recommend([["n0015", "n0095", "n0115"]], k=5)
    model.save("news")

What goes beyond the core of Sequence Semantic Retrieval is in rooms named after what they are for.

    ssr.api          fit, load and Model: what the commands do, from Python
    ssr.kernels      the same functions, only faster: packed GRU, sums of rows, several processes
    ssr.training     recipes, losses, items by content, resuming, metrics
    ssr.preparation  a click log, or sessions with raw ids -> what training reads; text -> tokens
    ssr.retrieval    the encoder of sessions and items, the index and its live clicks
    ssr.evaluation   ranking, metrics, baselines
    ssr.news         a score for news as they happen, and its replay
    ssr.service      the index behind HTTP
    ssr.cluster      training through Paddle's parameter server

The core is nets.py, reader.py and utils.py beside this package. Importing the package loads
nothing else and changes nothing in the process; a name loads what it needs.
"""

from ssr.own_modules import lazy_names

_MODULES = {
    "fit": "api.fitting", "load": "api.fitting", "Model": "api.model",
    "UserError": "errors", "SetupError": "errors", "DataError": "errors", "StoreError": "errors",
}
__all__ = [*_MODULES]
__getattr__, __dir__ = lazy_names(globals(), _MODULES)

"""The encoder of sessions and items, ranking, the index and its live clicks.

    from ssr.retrieval import Index, Item

    with Index.open("index", writable=True) as index:
        index.remove(["n0041"])
        index.add([Item("n0041", "economy, article 3")])
        for hit in index.query(["n0015", "n0095", "n0115"], k=5).hits:
            print(hit.id, hit.score, hit.text)

Importing this package loads nothing; a name loads what it needs.
"""

from ssr.own_modules import lazy_names

_MODULES = {
    "Index": "index",
    "Item": "values", "Hit": "values", "Answer": "values", "Added": "values", "Removed": "values",
    "Filter": "filters",
    "check_id": "values", "check_item": "values", "MAX_TEXT": "values",
    "Click": "clicks",
}
__all__ = [*_MODULES]
__getattr__, __dir__ = lazy_names(globals(), _MODULES)

"""The encoder of sessions and items, ranking, the index and its live clicks."""

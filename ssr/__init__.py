"""What goes beyond the core of Sequence Semantic Retrieval, in rooms named after what they are for.

    ssr.kernels      the same functions, only faster: packed GRU, sums of rows, several processes
    ssr.training     recipes, losses, items by content, resuming, metrics
    ssr.preparation  a click log, or sessions with raw ids -> what training reads; text -> tokens
    ssr.retrieval    the encoder of sessions and items, ranking, the index and its live clicks
    ssr.news         a score for news as they happen, and its replay
    ssr.service      the index behind HTTP
    ssr.cluster      training through Paddle's parameter server

The core is nets.py, reader.py and utils.py beside this package. Importing the package loads
nothing else and changes nothing in the process.
"""

"""What the two towers may be made of, for those that make them (nets.py, kernels/frozen.py) and for
flags that nobody has acted on yet."""

from __future__ import annotations

# How many of the last clicks a pooling adds the embeddings of, beside the mean of all.
RECENT_CLICKS = {"max_last_clicks": 1, "max_recent_clicks": 5, "max_unit_clicks": 5}


def check_architecture(sizes):
    """Raises ValueError where the arguments of nets.SequenceSemanticRetrieval, a dict, do not go
    together."""
    for name, choices in (("user_encoder", ("gru", "bow")),
                          ("pooling", ("max", "max_last", *RECENT_CLICKS)),
                          ("item_encoder", ("fc", "tied"))):
        if sizes[name] not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}, not {sizes[name]!r}")
    pooling, dim, hidden = (sizes[name] for name in ("pooling", "embedding_dim", "hidden_size"))
    if sizes["user_encoder"] == "bow" and pooling != "max":
        raise ValueError(f"the pooling {pooling!r} is one of a GRU's states; user_encoder is 'bow'")
    if dim != hidden:
        for name, needs_equal in (("item_encoder", ("tied",)), ("pooling", RECENT_CLICKS)):
            if sizes[name] in needs_equal:
                raise ValueError(f"{name} {sizes[name]} needs an embedding_dim equal to "
                                 f"hidden_size, not {dim} and {hidden}")

"""How much of anything a server takes."""

from __future__ import annotations

from typing import NamedTuple

from ssr.retrieval import MAX_TEXT


class Limits(NamedTuple):
    """What a request, its answer and all connections together may take.

    max_body: bytes of a request's body
    max_answer: bytes of an answer's body
    max_session: clicks of a session
    max_k: hits of a session
    max_batch: sessions, items or clicks of a request
    max_ids: ids that a request may choose from or exclude
    max_text: bytes of an item's text in UTF-8, up to retrieval.MAX_TEXT
    """

    max_body: int = 1 << 20
    max_answer: int = 1 << 24
    max_session: int = 200
    max_k: int = 200
    max_batch: int = 256
    max_ids: int = 10_000
    max_text: int = MAX_TEXT

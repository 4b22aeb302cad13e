"""The page to try the service."""

from __future__ import annotations

import base64
import hashlib
import os
import re

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")


def read_page():
    """(the HTML, its headers). The headers let a browser do for the page what it needs and nothing
    else."""
    with open(FILE, encoding="utf-8", newline="") as f:
        page = f.read()
    return page, {"Content-Security-Policy": _policy(page), "X-Content-Type-Options": "nosniff",
                  "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


def _policy(page):
    """The content security policy. It admits the page's style and script by their digests, so that
    no script can run which the text of an item might smuggle in."""
    return (f"default-src 'none'; style-src {_digests(page, 'style')}; "
            f"script-src {_digests(page, 'script')}; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def _digests(page, tag):
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
    digests = [hashlib.sha256(content.encode()).digest() for content in contents]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

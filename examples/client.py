"""A client of the service (serve.py) that needs nothing but Python.

    from examples.client import Client

    service = Client("http://127.0.0.1:8000", token="secret")
    service.put("n0035", "Commuters defend the motorway", section=["traffic", "cities"])
    service.recommend(["n0015", "n0095"], k=5, only=["section:traffic"])
"""

from __future__ import annotations

import json
import urllib.parse
import urllib.request


class Client:
    """A service. What it answers is returned as it is: dicts and lists, as /docs describes them.

    Every method raises urllib.error.HTTPError where the service refuses; its read() says why.
    """

    def __init__(self, url, token="", timeout=10):
        """url: such as http://127.0.0.1:8000; token: what changes require (SSR_TOKEN); timeout:
        seconds that an answer may take"""
        self._url, self._timeout = url.rstrip("/"), timeout
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}

    def recommend(self, session, k=20, **filter):
        """The hits for a session of ids, best first. filter: only, without, candidates, exclude,
        max_age, at_most"""
        return self._ask("POST", "/recommend", {"session": session, "k": k, **filter})["hits"]

    def similar(self, item, k=20, **filter):
        """The hits that are most like an item. filter: as in recommend"""
        return self._ask("POST", "/similar", {"item": item, "k": k, **filter})["hits"]

    def put(self, item, text, **fields):
        """Adds an article, or replaces the one with that id. fields: section="sports"; a list for
        several values"""
        return self._ask("PUT", self._path(item), {"text": text, "fields": fields})

    def remove(self, item):
        """Takes an article off the candidates."""
        return self._ask("DELETE", self._path(item))

    def click(self, session, item):
        """A reader clicked an item, now; of a live index."""
        return self._ask("POST", "/clicks", {"session": session, "item": item})

    @staticmethod
    def _path(item):
        return "/items/" + urllib.parse.quote(item, safe="")

    def _ask(self, method, path, content=None):
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._url + path, body, self._headers, method=method)
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            return json.load(response)

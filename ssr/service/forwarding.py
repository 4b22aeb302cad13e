"""Changes that come to a process which does not write the index: they are handed to the one that
does, and its answer is that of this one; where there is none, they are refused."""

from __future__ import annotations

import asyncio
import http.client
from concurrent.futures import ThreadPoolExecutor

from fastapi import Response
from fastapi.routing import APIRoute

from ssr.service.group import WRITER
from ssr.service.guards import Refused

AT_A_TIME = 8  # requests that one process hands on
HANDED_ON = ("authorization", "content-type")  # headers
HANDED_BACK = ("content-type", "www-authenticate", "retry-after")
READ_ONLY = "this server only reads its index: changes go to the one that writes it"
PATIENCE, RELOAD_PATIENCE = 60.0, 1800.0  # seconds


def route_class(index, member):
    """The class for routes that change something.

    index: a retrieval.Index; member: the group.Member of this process, None where it is the only
    one
    """
    if index.store.writable:
        return APIRoute
    if member is None or not member.has_other_writer:
        return _class_with(refuse)
    return _class_with(Forwarder(member).forward)


def _class_with(handler):
    class Route(APIRoute):
        """Described as any other and handled by somebody else, who sees to the token too."""

        def get_route_handler(self):
            return handler

    return Route


async def refuse(request):
    raise Refused(403, [], READ_ONLY, "read_only")


class Forwarder:
    """Hands requests to the process that writes."""

    def __init__(self, member):
        self._member = member
        self._threads = ThreadPoolExecutor(AT_A_TIME, "forward")

    async def forward(self, request, timeout=None):
        """Its answer. timeout: in seconds, None for what the request may take"""
        if timeout is None:
            timeout = RELOAD_PATIENCE if request.url.path == "/reload" else PATIENCE
        path = request.scope["raw_path"].decode("latin-1")
        query = request.scope["query_string"].decode("latin-1")
        headers = {name: request.headers[name] for name in HANDED_ON if name in request.headers}
        try:
            status, headers, body = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._member.group.ask, WRITER, request.method,
                f"{path}?{query}" if query else path, await request.body(), headers, timeout)
        except (OSError, http.client.HTTPException) as error:
            raise Refused(503, [], "the process that writes has not answered, maybe it is being "
                          "started again; whether the change was made is not known",
                          "unavailable") from error
        return Response(body, status, {name: headers[name] for name in HANDED_BACK
                                       if name in headers})

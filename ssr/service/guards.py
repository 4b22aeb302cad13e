"""What every request passes before it reaches a route, and how refusals are told."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from ssr.errors import DataError, StoreError
from ssr.service.logs import NoRepetitions

logger = logging.getLogger(__name__)
logger.addFilter(NoRepetitions())


# --- refusals -------------------------------------------------------------------------------------


class Refused(Exception):
    """A request that is not carried out.

    status: of the answer; where: the path to the field, such as ("body", "session"); message: for
    people; kind: for programs
    """

    def __init__(self, status, where, message, kind="value_error"):
        super().__init__(message)
        self.status, self.where, self.message, self.kind = status, where, message, kind

    def response(self):
        return problems(self.status,
                        [{"loc": self.where, "msg": self.message, "type": self.kind}])


def problems(status, errors):
    """A response in the form that FastAPI has for validation errors.

    What was sent is not repeated: it may be long, or not be JSON at all. Names in it may hold half
    a surrogate pair, which no answer can.
    """
    detail = [{"loc": [_encodable(part) for part in error["loc"]], "msg": _encodable(error["msg"]),
               "type": error["type"]} for error in errors]
    return JSONResponse({"detail": detail}, status)


def _encodable(part):
    if not isinstance(part, str):
        return part
    return part[:200].encode("utf-8", "backslashreplace").decode()


def add_error_handlers(app):
    """Turns errors into answers."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return problems(422, error.errors()[:20])

    @app.exception_handler(Refused)
    async def refused(request, error):
        return error.response()

    @app.exception_handler(DataError)
    async def unusable(request, error):
        where = "body" if request.method in ("POST", "PUT") else "query"
        return Refused(422, [where], str(error)).response()

    @app.exception_handler(StoreError)
    async def unavailable(request, error):  # such as a full disk: the index is as before
        logger.error("%s", error)
        return Refused(503, [], str(error), "unavailable").response()


def check_token(credentials, token):
    """Raises HTTPException unless HTTPAuthorizationCredentials or None hold the token; "" asks for
    none."""
    sent = credentials.credentials.encode("latin-1") if credentials else b""  # as ASGI decoded it
    if token and not hmac.compare_digest(sent, token.encode()):
        raise HTTPException(401, "a bearer token is needed, and this is not it",
                            {"WWW-Authenticate": "Bearer"})


# --- between the socket and the routes ------------------------------------------------------------


class AllowedHosts:
    """Refuses requests that name a host which is not served.

    Without this a page of another site could have its own name resolve to the address of this
    server (DNS rebinding), and a browser would let the page read and write here as on its own
    server. Its requests carry that name. An IP address is always allowed: it cannot be made to mean
    another machine.
    """

    HOST = re.compile(rb"\[([0-9a-fA-F:.]+)\](?::\d*)?|([^:\[\]]+)(?::\d*)?")

    def __init__(self, app, names):
        """names: such as "news.example.com"; "*.example.com" for all below that one, "*" for any"""
        self.app = app
        names = [name.lower() for name in names]
        self.names = frozenset(names)
        self.suffixes = tuple(name[1:] for name in names if name.startswith("*"))

    async def __call__(self, scope, receive, send):
        app = self.app
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if len(hosts) != 1 or not self._is_allowed(hosts[0]):
                app = Refused(421, ["header", "host"], "no host of this name is served here: see "
                              "--allowed_hosts").response()
        await app(scope, receive, send)

    def _is_allowed(self, host):
        match = self.HOST.fullmatch(host)
        if not match:
            return False
        name = (match[1] or match[2]).decode("latin-1").lower()
        return name in self.names or name.endswith(self.suffixes) or _is_address(name)


def _is_address(name):
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


class BoundedBodies:
    """Refuses a body that is too long, whether its length is announced or not, or that is not
    declared as JSON: what a browser sends for a page of another site without asking this one first
    never is."""

    JSON = re.compile(rb"application/json\s*(;|$)", re.I)

    def __init__(self, app, max_body):
        """max_body: in bytes"""
        self.app, self.max_body = app, max_body

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            return await self.app(scope, receive, send)
        try:
            body = await self._read(dict(scope["headers"]), receive)
        except Refused as refused:
            return await refused.response()(scope, receive, send)
        except ConnectionError:
            return None  # nobody waits for an answer, and half a body is no request
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay():
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _read(self, headers, receive):
        """The whole body. Raises Refused, and ConnectionError where the client has gone."""
        if not self.JSON.match(headers.get(b"content-type", b"")):
            raise Refused(415, ["header", "content-type"], "only application/json is accepted")
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > self.max_body:
            raise self._too_large()
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            body += message.get("body", b"")
            if len(body) > self.max_body:
                raise self._too_large()
            more = message.get("more_body")
        return bytes(body)

    def _too_large(self):
        return Refused(413, ["body"], f"more than {self.max_body} bytes", "too_large")


class Balanced:
    """Shares connections out among the processes of a server again, by an answer that ends one:
    clients keep them open, those too that came when not all processes were there."""

    def __init__(self, app, member):
        """member: group.Member"""
        self.app, self.member = app, member

    async def __call__(self, scope, receive, send):
        async def send_on(message):
            if message["type"] == "http.response.start" and self.member.sends_away():
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive, send_on if scope["type"] == "http" else send)

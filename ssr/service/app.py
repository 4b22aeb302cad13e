"""The index behind HTTP: recommendations for sessions while items come and go.

    python serve.py --index_dir index
    curl -d '{"session": ["n0015", "n0095"], "k": 5}' -H 'Content-Type: application/json' \\
        http://127.0.0.1:8000/recommend
    curl -X DELETE http://127.0.0.1:8000/items/n0041
    curl -X PUT -d '{"text": "Bankers question the moon landing"}' \\
        -H 'Content-Type: application/json' http://127.0.0.1:8000/items/n0041

With --scoring the index is live: POST /clicks takes clicks in, and what is clicked these days is
ranked by the model, by its readers and by how much it is clicked.

    curl -d '{"session": "any", "item": "n0041"}' -H 'Content-Type: application/json' \\
        http://127.0.0.1:8000/clicks

A page to try it is at /, the description of all routes at /docs and /openapi.json, measurements for
Prometheus at /metrics.

One process, which also is the one that writes the index. /recommend runs in the event loop: it is
shorter than the way to a thread and back, and it waits for no disk. Whatever may take longer runs
in threads; all changes in a single one, since the index makes them one by one anyway, so that
however many of them wait they hold no thread up that a reader needs.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of functions within
# make_app, and strings would not find what is local to it.

import asyncio
import base64
import concurrent.futures
import contextlib
import hashlib
import hmac
import logging
import os
import re
import time
import urllib.parse
from typing import Annotated, Dict, List, NamedTuple, Union

import fastapi
import prometheus_client
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from starlette.concurrency import run_in_threadpool

from ssr.errors import DataError, StoreError
from ssr.preparation import text
from ssr.retrieval import live, values
from ssr.retrieval.index import Item, check_item

logger = logging.getLogger("serve")

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
METHODS = ("GET", "PUT", "POST", "DELETE")
GRACE = 10  # seconds that requests under way get when the server is told to end
SECONDS = (.0005, .001, .002, .003, .005, .0075, .01, .015, .025, .05, .1, .25, 1, 5)  # histogram


class Limits(NamedTuple):
    """max_body: bytes of a request; max_session: clicks; max_k: hits; max_batch: sessions or items
    of a request"""

    max_body: int = 1 << 20
    max_session: int = 200
    max_k: int = 200
    max_batch: int = 256


# --- what requests and answers hold ---------------------------------------------------------------


class Refused(Exception):
    """A request that cannot be done.

    status: of the answer; where: the path to the field, as ("body", "session"); message: for people
    """

    def __init__(self, status, where, message):
        super().__init__(message)
        self.status, self.where, self.message = status, where, message


def check_id(id):
    """Raises DataError where a string cannot be an item's id."""
    values.check_id(id)
    return id


def check_text(text):
    """Raises DataError where a string cannot be a text."""
    check_item(Item("any", text))
    return text


def check_fields(fields):
    """Raises DataError where fields cannot be those of an item."""
    text.field_tokens(fields)
    return fields


Id = Annotated[StrictStr, AfterValidator(check_id)]
Text = Annotated[StrictStr, AfterValidator(check_text)]
Value = Union[Text, Annotated[StrictInt, Field(ge=-2**63, lt=2**63)]]
Fields = Annotated[Dict[Text, Union[Value, List[Value]]], AfterValidator(check_fields)]


Moment = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Body(BaseModel):
    """A name that is spelt wrong is told, not ignored."""

    model_config = ConfigDict(extra="forbid")


class Content(Body):
    text: Text = Field("", description="what readers see, a title say")
    fields: Fields = Field({}, description="name: value or list of values",
                           examples=[{"section": "sports"}])


class NamedContent(Content):
    id: Id


class Click(Body):
    session: Annotated[Text, Field(max_length=200)] = Field(
        description="what tells the reader's visit from others, of any kind")
    item: Id
    time: Union[Moment, None] = Field(None, description="seconds since 1970; now if left out")


class Clicked(BaseModel):
    clicks: int


class Hit(BaseModel):
    id: str
    score: float = Field(description="cosine with the session, -1 to 1; with --scoring, what that "
                         "makes of cosine and clicks")
    text: str


class Answer(BaseModel):
    hits: List[Hit] = Field(description="best first")
    skipped: int = Field(description="clicks left out: their items are unknown or have no vector")
    reason: str = Field(description="why there are no hits, empty where there are")


class Answers(BaseModel):
    answers: List[Answer]


class Added(BaseModel):
    new: int
    replaced: int = Field(description="of the same id that were candidates before")
    without_vector: List[str] = Field(description="no candidates: the model knows none of their "
                                      "words")


class Removed(BaseModel):
    removed: int
    unknown: List[str] = Field(description="that were no candidates")


class Article(BaseModel):
    id: str
    text: str


class Articles(BaseModel):
    items: List[Article]
    complete: bool = Field(description="false where the time did not suffice to look at all items")


class Health(BaseModel):
    status: str
    model: str
    change: int = Field(description="number of the last change")
    takes_fresh: bool = Field(description="whether items can be added that the model never saw")
    live: bool = Field(description="whether clicks are taken in and rank what is recommended")
    needs_token: bool = Field(description="whether changes need a bearer token")
    max_k: int = Field(description="the most hits that may be asked for")


class Problem(BaseModel):
    loc: List[Union[str, int]] = Field(description="the path to the field")
    msg: str
    type: str


class Problems(BaseModel):
    detail: List[Problem]


def make_item(id, content):
    """The Item of an id and a Content."""
    return Item(id, content.text, content.fields)


def make_answer(answer):
    """The JSON of a Answer of an index."""
    return {"hits": [hit._asdict() for hit in answer.hits], "skipped": answer.skipped,
            "reason": answer.reason}


def make_sessions(limits):
    """The models of what is asked for one session and for many, within Limits."""
    clicks = Annotated[List[Id], Field(max_length=limits.max_session)]

    class Options(Body):
        k: Annotated[StrictInt, Field(ge=1, le=limits.max_k)] = min(20, limits.max_k)
        exclude_session: StrictBool = Field(True, description="leave out the session's items")

    class Session(Options):
        session: clicks = Field(description="ids of the clicks, oldest first")

    class Sessions(Options):
        sessions: Annotated[List[clicks], Field(max_length=limits.max_batch)]

    return Session, Sessions


# --- refusals -------------------------------------------------------------------------------------


def problem(status, where, message, kind="value_error"):
    """A response in the form that FastAPI has for validation errors."""
    return problems(status, [{"loc": where, "msg": message, "type": kind}])


def problems(status, found):
    """What was sent is not repeated: it may be long, or not be JSON at all. Names in it may hold
    half a surrogate pair, which no answer can."""
    detail = [{"loc": [_clean(part) for part in one["loc"]], "msg": _clean(one["msg"]),
               "type": one["type"]} for one in found]
    return JSONResponse({"detail": detail}, status)


def _clean(part):
    if not isinstance(part, str):
        return part
    return part[:200].encode("utf-8", "backslashreplace").decode()


def add_handlers(app):
    """Turns what can go wrong into answers."""

    @app.exception_handler(RequestValidationError)
    async def _(request, error):
        return problems(422, error.errors()[:20])

    @app.exception_handler(Refused)
    async def _(request, error):
        return problem(error.status, error.where, error.message)

    @app.exception_handler(StoreError)
    async def _(request, error):  # a full disk, say: the index is as before
        logger.error("%s", error)
        return problem(503, [], str(error), "unavailable")


# --- between the socket and the routes ------------------------------------------------------------


class Measured:
    """Counts and times requests, by route rather than by path: there are as many paths as items."""

    def __init__(self, app, registry):
        self.app = app
        self.requests = prometheus_client.Counter(
            "ssr_requests", "Requests answered", ["method", "route", "status"], registry=registry)
        self.seconds = prometheus_client.Histogram(
            "ssr_request_seconds", "Time from the request to the end of the answer",
            ["method", "route"], registry=registry, buckets=SECONDS)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begin, status = time.perf_counter(), 500

        async def told(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, told)
        finally:
            # Of what strangers may choose freely there is no label.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.requests.labels(method, route, status).inc()
            self.seconds.labels(method, route).observe(time.perf_counter() - begin)


class Bounded:
    """Lets no body pass that is too long, with or without a length announced, or that is not
    declared as JSON: what a browser sends for a page of another site without asking is not."""

    def __init__(self, app, max_body):
        self.app, self.max_body = app, max_body

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if not re.match(rb"application/json\s*(;|$)", headers.get(b"content-type", b""), re.I):
            refusal = problem(415, ["header", "content-type"], "application/json is taken only")
            return await refusal(scope, receive, send)
        announced = headers.get(b"content-length", b"0")
        body = None
        if not announced.isdigit() or int(announced[:20]) <= self.max_body:
            body = await self._read(receive)
        if body is None:
            refusal = problem(413, ["body"], f"more than {self.max_body} bytes", "too_large")
            return await refusal(scope, receive, send)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay():
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive):
        """The whole body, None for one that is too long."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_body:
                return None
            if not message.get("more_body"):
                return bytes(body)


# --- routes ---------------------------------------------------------------------------------------


def make_app(index, limits=Limits(), token=""):
    """The application. index: an Index that is open for writing; token: what the writing
    routes ask for, "" for nothing"""
    writer = concurrent.futures.ThreadPoolExecutor(1, "writer")

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        writer.shutdown()  # what was begun is finished

    registry = prometheus_client.CollectorRegistry()
    app = fastapi.FastAPI(
        title="Sequence Semantic Retrieval", description=__doc__.splitlines()[0],
        lifespan=lifespan, responses={422: {"model": Problems}})
    app.add_middleware(Bounded, max_body=limits.max_body)
    app.add_middleware(Measured, registry=registry)
    add_handlers(app)
    add_reading(app, index, limits, bool(token))
    add_writing(app, index, limits, token, writer)
    add_metrics(app, index, registry)
    return app


def add_reading(app, index, limits, needs_token):
    Session, Sessions = make_sessions(limits)
    page, headers = read_page()
    made_by = f"{index.store.details['model']} {index.store.details['digest'][:12]}"

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page():
        return HTMLResponse(page, headers=headers)

    # A response of our own spares the check of what we have just made.
    @app.post("/recommend", response_model=Answer)
    async def recommend(asked: Session):
        """The items that fit a session best."""
        answer = index.query(asked.session, asked.k, asked.exclude_session)
        return JSONResponse(make_answer(answer))

    @app.post("/recommend/batch", response_model=Answers)
    async def recommend_batch(asked: Sessions):
        """The same for many sessions, in their order."""
        answers = await run_in_threadpool(index.query_many, asked.sessions, asked.k,
                                          asked.exclude_session)
        return JSONResponse({"answers": list(map(make_answer, answers))})

    @app.get("/items", response_model=Articles)
    async def browse(search: Annotated[str, fastapi.Query(max_length=200)] = "",
                     limit: Annotated[int, fastapi.Query(ge=1, le=limits.max_k)] =
                     min(20, limits.max_k)):
        """Candidates, those changed last first; with `search`, whose text or id holds each of its
        words."""
        words = search.replace("\0", " ").split()  # at a zero SQLite takes the pattern as ended
        found, complete = await run_in_threadpool(index.store.items.browse, words, limit)
        return JSONResponse({"items": [{"id": id, "text": shown} for id, shown in found],
                             "complete": complete})

    @app.get("/healthz", response_model=Health)
    async def health():
        """Whether the server answers, and from what."""
        return JSONResponse({"status": "ok", "model": made_by, "change": index.store.change,
                             "takes_fresh": index.takes_fresh, "needs_token": needs_token,
                             "live": index.scoring is not None,
                             "max_k": limits.max_k})


def add_writing(app, index, limits, token, writer):
    bearer = HTTPBearer(auto_error=False)
    id_of_path = Annotated[str, fastapi.Depends(path_id)]

    def authorize(given: Annotated[Union[HTTPAuthorizationCredentials, None],
                                   fastapi.Depends(bearer)]):
        sent = given.credentials.encode("latin-1") if given else b""  # as ASGI decoded it
        if token and not hmac.compare_digest(sent, token.encode()):
            raise fastapi.HTTPException(401, "a bearer token is needed, and this is not it",
                                        {"WWW-Authenticate": "Bearer"})

    async def write(change, what):
        """In the writer's thread; done even if who asked has gone."""
        return await asyncio.get_running_loop().run_in_executor(writer, change, what)

    async def add(items):
        try:
            return JSONResponse((await write(index.add, items))._asdict())
        except DataError as error:
            raise Refused(422, ["body"], str(error)) from error

    routes = fastapi.APIRouter(dependencies=[fastapi.Depends(authorize)], responses={
        401: {"description": "the bearer token is missing or another one"}})

    @routes.put("/items/{id:path}", response_model=Added)
    async def put(id: id_of_path, content: Content):
        """Adds an item, or replaces the one of that id. It is on the disk when this answers, and
        the next query finds it."""
        return await add([make_item(id, content)])

    @routes.put("/items", response_model=Added)
    async def put_batch(items: Annotated[List[NamedContent], Field(max_length=limits.max_batch)]):
        """Adds or replaces items, all of them or none; the last one of an id counts."""
        return await add([make_item(item.id, item) for item in items])

    @routes.delete("/items/{id:path}", response_model=Removed,
                   responses={404: {"model": Problems}})
    async def delete(id: id_of_path):
        """Takes an item off the candidates. Sessions that clicked it are understood as before."""
        removed = await write(index.remove, [id])
        if removed.unknown:
            raise Refused(404, ["path", "id"], f"{id[:100]!r} is no candidate")
        return JSONResponse(removed._asdict())

    # Not a DELETE with a body: RFC 9110 gives that no meaning, proxies drop or refuse it, and
    # clients hide it.
    @routes.post("/items/delete", response_model=Removed)
    async def delete_batch(ids: Annotated[List[Id], Field(max_length=limits.max_batch)]):
        """Takes items off the candidates, all at once; unknown ones are no error."""
        return JSONResponse((await write(index.remove, ids))._asdict())

    async def click(clicks):
        try:
            await write(index.click, [live.Click(
                click.session, click.item, time.time() if click.time is None else click.time)
                for click in clicks])
        except DataError as error:
            raise Refused(422, ["body"], str(error)) from error
        return JSONResponse({"clicks": len(clicks)})

    if index.scoring is not None:
        @routes.post("/clicks", response_model=Clicked)
        async def take_click(clicked: Click):
            """A reader clicked an item. The next query knows; the disk does within a second."""
            return await click([clicked])

        @routes.post("/clicks/batch", response_model=Clicked)
        async def take_clicks(clicked: Annotated[List[Click], Field(max_length=limits.max_batch)]):
            """Readers clicked items, those of a session in order."""
            return await click(clicked)

    app.include_router(routes)


def path_id(request: fastapi.Request, id: str):
    """The id at the end of a path. The server replaces what is not UTF-8, and an item of another
    id would be changed."""
    try:
        urllib.parse.unquote_to_bytes(request.scope["raw_path"]).decode()
        return check_id(id)
    except UnicodeDecodeError as error:
        raise Refused(422, ["path", "id"], "not UTF-8, percent-encoded") from error
    except DataError as error:
        raise Refused(422, ["path", "id"], str(error)) from error


def add_metrics(app, index, registry):
    prometheus_client.ProcessCollector(registry=registry)
    for place, name, what in ((0, "items", "Items that are known, removed ones too"),
                              (1, "candidates", "Items that can be recommended")):
        gauge = prometheus_client.Gauge(f"ssr_{name}", what, registry=registry)
        gauge.set_function(lambda place=place: index.store.size()[place])

    @app.get("/metrics", response_class=Response, responses={
        200: {"content": {prometheus_client.CONTENT_TYPE_LATEST: {}}}})
    def metrics():
        """For Prometheus."""
        return Response(prometheus_client.generate_latest(registry),
                        media_type=prometheus_client.CONTENT_TYPE_LATEST)


def read_page():
    """The page, and headers that let a browser do for it what it needs and nothing else. Its style
    and its script are let in by their digests: nothing that a text might smuggle in runs."""
    with open(PAGE, encoding="utf-8", newline="") as f:
        page = f.read()

    def digests(tag):
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        hashes = [hashlib.sha256(content.encode()).digest() for content in found]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)

    policy = (f"default-src 'none'; style-src {digests('style')}; script-src {digests('script')}; "
              "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
              "frame-ancestors 'none'")
    return page, {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff",
                  "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


"""The routes: what is asked for over HTTP, handed to a Backend and answered."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of functions within
# functions, and strings could not name the models that are local there.

import contextlib
import http.client
import urllib.parse
from typing import Annotated, List, Optional

import fastapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field

from ssr.errors import DataError, UserError
from ssr.retrieval import Click, Filter, Item, check_id
from ssr.service import forwarding, messages, metrics
from ssr.service.group import WRITER
from ssr.service.guards import Refused, check_token
from ssr.service.page import read_page

QUICK = 2.0  # seconds that another process gets to say how it is


def add_routes(app, backend, reloader, token, registry, member=None):
    """All routes. token: what those that change something ask for, "" for nothing; member: as of
    make_app"""
    app.include_router(query_routes(backend))
    app.include_router(status_routes(backend, bool(token), registry, member))
    made_by = forwarding.route_class(backend.index, member)
    changes = fastapi.APIRouter(dependencies=[fastapi.Depends(authorization(token))], responses={
        401: {"description": "the bearer token is missing or wrong"}})
    changes.include_router(item_routes(backend, made_by))
    if backend.index.is_live:
        changes.include_router(click_routes(backend, made_by))
    changes.include_router(reload_routes(backend, reloader, made_by))
    app.include_router(changes)


def authorization(token):
    """A dependency that refuses requests without the token."""
    bearer = HTTPBearer(auto_error=False)

    async def authorize(credentials: Annotated[Optional[HTTPAuthorizationCredentials],
                                               fastapi.Depends(bearer)]):
        check_token(credentials, token)

    return authorize


def json_response(content):
    """An answer from bytes of JSON. Answers are no models: a check of what the service has just
    made would only cost time."""
    return Response(content, media_type="application/json")


# --- queries --------------------------------------------------------------------------------------


def query_routes(backend):
    """The routes that ask the index."""
    router, limits = fastapi.APIRouter(), backend.limits
    SessionQuery, BatchQuery, SimilarQuery = messages.make_queries(limits)
    Number = Annotated[int, fastapi.Query(ge=1, le=limits.max_k)]
    most = min(20, limits.max_k)

    @router.post("/recommend", response_model=messages.AnswerMessage)
    async def recommend(query: SessionQuery):
        """The items that fit a session best."""
        return json_response(await backend.recommend(query.session, query.k,
                                                     query.exclude_session, query.filter()))

    @router.post("/recommend/batch", response_model=messages.AnswersMessage)
    async def recommend_batch(query: BatchQuery):
        """The same for many sessions, in their order."""
        return json_response(await backend.recommend_many(
            query.sessions, query.k, query.exclude_session, query.filter()))

    @router.post("/similar", response_model=messages.AnswerMessage)
    async def similar(query: SimilarQuery):
        """The items whose vectors are nearest to that of an item."""
        return json_response(await backend.similar(query.item, query.k, query.filter()))

    @router.get("/similar", response_model=messages.AnswerMessage)
    async def similar_without_filter(item: str, k: Number = most):
        """The same by a link."""
        return json_response(await backend.similar(item, k, Filter()))

    @router.get("/items", response_model=messages.Articles)
    async def browse(search: Annotated[str, fastapi.Query(max_length=200)] = "",
                     limit: Number = most):
        """Candidates, those changed last first; with `search`, those whose text or id contains each
        of its words."""
        words = search.replace("\0", " ").split()  # SQLite takes a pattern to end at a zero
        return json_response(await backend.browse(words, limit))

    return router


# --- changes --------------------------------------------------------------------------------------


def item_routes(backend, made_by):
    """The routes that change items. made_by: the class of routes, of forwarding.route_class"""
    router, max_batch = fastapi.APIRouter(route_class=made_by), backend.limits.max_batch
    Content, ItemMessage = messages.make_items(backend.limits)

    @router.put("/items/{id:path}", response_model=messages.AddedMessage)
    async def put(id: PathId, content: Content):
        """Adds an item, or replaces the one with that id. It is on the disk when this answers, and
        the next query finds it."""
        return await add([Item(id, content.text, content.fields, content.vector)])

    @router.put("/items", response_model=messages.AddedMessage)
    async def put_batch(items: Annotated[List[ItemMessage], Field(max_length=max_batch)]):
        """Adds or replaces items, all of them or none; of several with one id the last counts."""
        return await add([Item(item.id, item.text, item.fields, item.vector)
                          for item in items])

    async def add(items):
        return JSONResponse((await backend.add(items))._asdict())

    @router.delete("/items/{id:path}", response_model=messages.RemovedMessage,
                   responses={404: {"model": messages.Problems}})
    async def delete(id: PathId):
        """Removes an item from the candidates. Sessions that clicked it are understood as before.
        """
        removed = await backend.remove([id])
        if removed.unknown:
            raise Refused(404, ["path", "id"], f"{id[:100]!r} is no candidate")
        return JSONResponse(removed._asdict())

    # Not a DELETE with a body: RFC 9110 gives that no meaning, proxies drop or refuse it, and
    # clients hide it.
    @router.post("/items/delete", response_model=messages.RemovedMessage)
    async def delete_batch(ids: Annotated[List[messages.Id], Field(max_length=max_batch)]):
        """Removes items from the candidates, all at once; unknown ids are no error."""
        return JSONResponse((await backend.remove(ids))._asdict())

    return router


def click_routes(backend, made_by):
    """The routes that take clicks in. made_by: as of item_routes"""
    router, max_batch = fastapi.APIRouter(route_class=made_by), backend.limits.max_batch
    unavailable = {503: {"model": messages.Problems, "description": "not taken in, since too many "
                         "clicks wait for the disk: to be sent again later"}}

    @router.post("/clicks", response_model=messages.ClicksMessage, responses=unavailable)
    async def take_click(click: messages.ClickMessage):
        """A reader clicked an item. The next query knows it, the disk does within a second."""
        return await take([click])

    @router.post("/clicks/batch", response_model=messages.ClicksMessage, responses=unavailable)
    async def take_clicks(clicks: Annotated[List[messages.ClickMessage],
                                            Field(max_length=max_batch)]):
        """Readers clicked items, those of a session in order: all are taken in or none."""
        return await take(clicks)

    async def take(clicks):
        await backend.click([Click(click.session, click.item, click.time) for click in clicks])
        return JSONResponse({"clicks": len(clicks)})

    return router


def reload_routes(backend, reloader, made_by):
    """The route that goes over to a new build. made_by: as of item_routes"""
    router = fastapi.APIRouter(route_class=made_by)

    @router.post("/reload", response_model=messages.ReloadedMessage, responses={
        409: {"model": messages.Problems, "description": "the new build cannot be used, the model "
              "is the one before"}})
    def reload():
        """Goes over to what `retrieve.py build --overwrite` has built, as it happens within a
        second or two anyway, and tells whether it could. Requests are answered meanwhile."""
        try:
            reloaded = reloader.reload()
        except UserError as error:
            raise Refused(409, [], str(error), "refused") from error
        if not reloaded and reloader.last_problem():
            raise Refused(409, [], reloader.last_problem(), "refused")
        return JSONResponse({"reloaded": reloaded, "model": backend.model})

    return router


async def path_id(request: fastapi.Request, id: str):
    """The id at the end of a path. The server replaces what is not UTF-8, and an item with another
    id would be changed."""
    try:
        urllib.parse.unquote_to_bytes(request.scope["raw_path"]).decode()
        check_id(id)
        return id
    except UnicodeDecodeError as error:
        raise Refused(422, ["path", "id"], "not UTF-8, percent-encoded") from error
    except DataError as error:
        raise Refused(422, ["path", "id"], str(error)) from error


PathId = Annotated[str, fastapi.Depends(path_id)]


# --- status ---------------------------------------------------------------------------------------


def status_routes(backend, needs_token, registry, member=None):
    """The page, and the routes that tell how the service is."""
    router = fastapi.APIRouter()
    page, headers = read_page()
    forwarder = forwarding.Forwarder(member) if member and member.has_other_writer else None

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page():
        return HTMLResponse(page, headers=headers)

    @router.get("/healthz", response_model=messages.Health)
    async def health(request: fastapi.Request):
        """Whether the server answers, and from what."""
        if forwarder and member.group.is_up(WRITER):
            with contextlib.suppress(Refused):  # it knows how many clicks wait
                return await forwarder.forward(request, QUICK)
        index = backend.index
        return JSONResponse({
            "status": "reading" if forwarder else "ok", "model": backend.model,
            "change": index.change, "takes_fresh": index.takes_fresh, "live": index.is_live,
            "candidate_age": index.candidate_age, "click_backlog": index.click_backlog(),
            "writable": index.store.writable, "needs_token": needs_token,
            "max_k": backend.limits.max_k})

    @router.get("/metrics", response_class=Response,
                responses={200: {"content": {metrics.CONTENT_TYPE: {}}}})
    def expose_metrics(request: fastapi.Request):
        """For Prometheus; of several processes each has its label `worker`."""
        own = metrics.exposition(registry)
        if member and not metrics.is_of_the_group(request.scope):
            own = metrics.exposition_of_all({member.number: own, **_metrics_of_others(member)})
        return Response(own, media_type=metrics.CONTENT_TYPE)

    return router


def _metrics_of_others(member):
    """{number: exposition} of the other processes that answer."""
    texts = {}
    for number in member.others():
        with contextlib.suppress(OSError, http.client.HTTPException):
            texts[number] = member.group.ask(number, "GET", "/metrics", timeout=QUICK)[2]
    return texts

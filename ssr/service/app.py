"""The service as an ASGI application."""

from __future__ import annotations

import contextlib

import fastapi_offline
from starlette.concurrency import run_in_threadpool

from ssr.service import guards, metrics
from ssr.service.backend import Backend
from ssr.service.messages import Problems
from ssr.service.reloading import Reloader
from ssr.service.routes import add_routes


def make_app(index, limits, token="", allowed_hosts=(), member=None):
    """The application; app.state.registry is that of its metrics, app.state.backend has the index
    that it uses by now, which is to be closed in the end.

    index: a retrieval.Index; where it is not open for writing, changes are handed to the process of
        the group that writes, or refused
    limits: limits.Limits
    token: what the routes that change something ask for, "" for nothing
    allowed_hosts: names that a request's Host may have, as of guards.AllowedHosts; () for any
    member: of the group.Group of processes that serve the index, None for the only one
    """
    backend, registry = Backend(index, limits), metrics.make_registry()
    reloader = Reloader(backend, registry)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        reloader.start()
        yield
        await run_in_threadpool(reloader.close)
        backend.close()

    # FastAPI, whose /docs has its scripts from here instead of from the internet.
    app = fastapi_offline.FastAPIOffline(
        title="Sequence Semantic Retrieval",
        description="Recommendations for sessions while items come and go.",
        lifespan=lifespan, responses={422: {"model": Problems}}, redoc_url=None,
        favicon_url="data:,", swagger_ui_parameters={"validatorUrl": None})
    app.state.registry, app.state.backend = registry, backend
    metrics.observe_index(registry, backend)
    app.add_middleware(guards.BoundedBodies, max_body=limits.max_body)
    if allowed_hosts:
        app.add_middleware(guards.AllowedHosts, names=allowed_hosts)
    app.add_middleware(metrics.MeasuredRequests, registry=registry)
    if member:
        app.add_middleware(guards.Balanced, member=member)
    guards.add_error_handlers(app)
    add_routes(app, backend, reloader, token, registry, member)
    return app

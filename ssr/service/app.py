"""The service as an ASGI application."""

from __future__ import annotations

import contextlib

import fastapi_offline

from ssr.service import guards, metrics
from ssr.service.backend import Backend
from ssr.service.messages import Problems
from ssr.service.routes import add_routes


def make_app(index, limits, token="", allowed_hosts=(), member=None):
    """The application; app.state.registry is that of its metrics.

    index: a retrieval.Index; where it is not open for writing, changes are handed to the process of
        the group that writes, or refused
    limits: limits.Limits
    token: what the routes that change something ask for, "" for nothing
    allowed_hosts: names that a request's Host may have, as of guards.AllowedHosts; () for any
    member: of the group.Group of processes that serve the index, None for the only one
    """
    backend = Backend(index, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        backend.close()

    # FastAPI, whose /docs has its scripts from here instead of from the internet.
    app = fastapi_offline.FastAPIOffline(
        title="Sequence Semantic Retrieval",
        description="Recommendations for sessions while items come and go.",
        lifespan=lifespan, responses={422: {"model": Problems}}, redoc_url=None,
        favicon_url="data:,", swagger_ui_parameters={"validatorUrl": None})
    app.state.registry = metrics.make_registry(index)
    app.add_middleware(guards.BoundedBodies, max_body=limits.max_body)
    if allowed_hosts:
        app.add_middleware(guards.AllowedHosts, names=allowed_hosts)
    app.add_middleware(metrics.MeasuredRequests, registry=app.state.registry)
    guards.add_error_handlers(app)
    add_routes(app, backend, token, app.state.registry, member)
    return app

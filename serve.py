"""The index behind HTTP: recommendations for sessions while items come and go.

    python serve.py --index_dir index
    curl -d '{"session": ["n0015", "n0095"], "k": 5}' -H 'Content-Type: application/json' \\
        http://127.0.0.1:8000/recommend
    curl -X DELETE http://127.0.0.1:8000/items/n0041
    curl -X PUT -d '{"text": "Bankers question the moon landing"}' \\
        -H 'Content-Type: application/json' http://127.0.0.1:8000/items/n0041

A live index (retrieve.py live, or --scoring) takes clicks in by POST /clicks: what has been clicked
lately is ranked by the model, by its readers and by how much it is clicked.

    curl -d '{"session": "any", "item": "n0041"}' -H 'Content-Type: application/json' \\
        http://127.0.0.1:8000/clicks

A page to try it is at /, the description of all routes at /docs and /openapi.json, measurements for
Prometheus at /metrics. The server is the one that writes the index: a single process, or the first
of several (--workers). Others may read it at the same time (--read_only).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from ssr.commands import Parser, number, run, setup_logging

from ssr.retrieval import MAX_TEXT
from ssr.retrieval.flags import add_live, open_index
from ssr.service.limits import Limits

logger = logging.getLogger("serve")


def serve(args):
    """Serves until a signal comes. Returns the exit code."""
    from ssr.service.server import listen  # here: help and wrong flags need none of it
    from ssr.service.workers import Workers

    with listen(args.host, args.port, args.max_connections) as listener:
        host, port = listener.getsockname()[:2]
        if not args.token and not args.read_only and not host.startswith("127.") and host != "::1":
            logger.warning("anyone who can reach %s can change the index: set SSR_TOKEN", host)

        def tell():
            print(f"serving {args.index_dir} on http://{f'[{host}]' if ':' in host else host}:"
                  f"{port}", flush=True)

        if args.workers == 1:
            return serve_index(args, listener, tell)
        return Workers(args.workers, not args.read_only,
                       lambda member: serve_index(args, listener, member=member)).run(tell)


def serve_index(args, listener, tell=lambda: None, member=None):
    """One process that serves. tell: called when all is ready; member: of the group.Group that it
    belongs to, None for the only one"""
    from ssr.service.app import make_app
    from ssr.service.server import serve as serve_app

    limits = Limits(*(getattr(args, name) for name in Limits._fields))
    with contextlib.ExitStack() as opened:
        index = opened.enter_context(
            open_index(args, writable=not args.read_only and (not member or member.writes)))
        index.warm_up()
        app = make_app(index, limits, args.token, hosts_of(args), member)
        opened.pop_all()
        opened.callback(lambda: app.state.backend.index.close())  # maybe another one by then
        tell()
        serve_app(app, listener, args.timeout, member)
    return 0


def hosts_of(args):
    """The host names that requests may give, () for any. A server with a token needs no default:
    the page of another site does not know the token."""
    if args.allowed_hosts:
        return args.allowed_hosts
    return () if args.token else ("localhost", "*.localhost", args.host)


def make_parser():
    parser = Parser("Sequence Semantic Retrieval: the index behind HTTP")
    add_flag, positive = parser.add_argument, number(int, 1)
    add_flag("--index_dir", default="index", help="directory of the index")
    add_flag("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    add_flag("--port", type=number(int, 0, 65535), default=8000, help="0: any that is free")
    add_flag("--workers", type=positive, default=1, help="processes that serve from one port: one "
             "writes the index, all answer queries; a core each, and the memory of an index each")
    add_flag("--read_only", action="store_true", help="only queries, beside another process that "
             "writes the index or on a medium that nobody can write; changes are refused with 403")
    add_flag("--token", help="bearer token that the routes which change something ask for; better "
             "in the environment as SSR_TOKEN, since the list of processes shows flags")
    add_flag("--allowed_hosts", nargs="+", metavar="NAME", help="host names that requests may be "
             "addressed to, besides any IP address; *.example.com for all names below that one, "
             "* for any; localhost and --host when not given, any if there is a token")
    default = Limits()
    add_flag("--max_body", type=positive, default=default.max_body, help="bytes of a request")
    add_flag("--max_answer", type=positive, default=default.max_answer, help="bytes of an answer")
    add_flag("--max_session", type=positive, default=default.max_session,
             help="clicks of a session")
    add_flag("--max_k", type=positive, default=default.max_k, help="hits of a session")
    add_flag("--max_batch", type=positive, default=default.max_batch,
             help="sessions, items or clicks of a request")
    add_flag("--max_ids", type=positive, default=default.max_ids,
             help="ids that a request may choose from or exclude")
    add_flag("--max_text", type=number(int, 1, MAX_TEXT), default=default.max_text,
             help="bytes of an item's text")
    add_flag("--max_connections", type=positive, default=512,
             help="connections of a process at a time; further ones are refused")
    add_flag("--timeout", type=number(float, 1), default=20, help="seconds that a client may take "
             "to send a request or to read an answer")
    add_live(parser)
    return parser


def main(argv=None):
    args = make_parser().parse(argv)
    if args.token is None:
        args.token = os.environ.get("SSR_TOKEN", "")
    setup_logging()
    return run(lambda: serve(args))


if __name__ == "__main__":
    sys.exit(main())

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

import argparse
import gc
import logging
import os
import signal
import socket
import sys

import uvicorn

import retrieve
from ssr import commands
from ssr.errors import SetupError
from ssr.service.app import Limits, make_app

logger = logging.getLogger("serve")

GRACE = 10  # seconds that requests under way get when the server is told to end


# --- the process ----------------------------------------------------------------------------------


def listen(host, port):
    """A socket that listens. Raises SetupError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        raise SetupError(f"cannot listen on {host} port {port}: {error.strerror or error}; "
                               "see --host and --port") from error
    # Connections inherit it. asyncio sets it only where a socket names its protocol; without it an
    # answer of two writes waits 40 ms for the client's acknowledgement of the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def serve(args):
    """Serves until a signal comes."""
    # uvicorn raises the signal again once it has ended in good order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with listen(args.host, args.port) as listening, \
            retrieve.open_index(args, writable=True) as index:
        index.warm_up()
        # What is here by now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        limits = Limits(*(getattr(args, name) for name in Limits._fields))
        config = uvicorn.Config(make_app(index, limits, args.token), log_level="warning",
                                access_log=False, server_header=False,
                                timeout_graceful_shutdown=GRACE)
        host, port = listening.getsockname()[:2]
        if not args.token and not host.startswith("127.") and host != "::1":
            logger.warning("whoever reaches %s can change the index: set SSR_TOKEN", host)
        print(f"serving {args.index_dir} on http://{f'[{host}]' if ':' in host else host}:{port}",
              flush=True)
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Sequence Semantic Retrieval: the index behind "
                                     "HTTP", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_flag, positive = parser.add_argument, commands.number(int, 1)
    add_flag("--index_dir", default="index", help="directory of the index")
    add_flag("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    add_flag("--port", type=commands.number(int, 0, 65535), default=8000, help="0: any that is free")
    add_flag("--token", default=argparse.SUPPRESS, help="bearer token that the routes which change "
             "something ask for; better in the environment as SSR_TOKEN, the list of processes "
             "shows flags")
    default = Limits()
    add_flag("--max_body", type=positive, default=default.max_body, help="bytes of a request")
    add_flag("--max_session", type=positive, default=default.max_session,
             help="clicks of a session")
    add_flag("--max_k", type=positive, default=default.max_k, help="hits of a session")
    add_flag("--max_batch", type=positive, default=default.max_batch,
             help="sessions or items of a request")
    retrieve.add_live(parser)
    args = parser.parse_args(argv)
    args.token = getattr(args, "token", os.environ.get("SSR_TOKEN", ""))
    return args


def main(argv=None):
    args = parse_args(argv)
    commands.setup_logging()
    return commands.run(lambda: serve(args))


if __name__ == "__main__":
    sys.exit(main())

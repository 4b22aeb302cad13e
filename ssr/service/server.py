"""The process that serves an application: sockets, connections, signals."""

from __future__ import annotations

import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
import time

import uvicorn

from ssr.errors import SetupError
from ssr.service import metrics
from ssr.service.logs import NoRepetitions

logger = logging.getLogger(__name__)
logger.addFilter(NoRepetitions())

GRACE = 10  # seconds that requests under way get when the server is told to end
BACKLOG = 2048  # connections that may wait to be accepted
OTHER_FILES = 128  # that the process has open beside its connections, with some to spare
TICKS = 10  # of uvicorn, 0.1 s each, between two looks at the connections


def serve(app, listener, timeout, member=None):
    """Serves an application until a signal comes.

    app: of app.make_app; listener: of listen
    timeout: seconds that a client may take to send a request, or to read an answer
    member: of the Group that shares the listener (group.Member), None for the only process
    """
    # uvicorn raises the signal again once it has ended in good order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # What is here by now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    listener.add_metrics(app.state.registry)
    # The loop: of those that uvicorn knows, the one that calls Listener.accept.
    config = uvicorn.Config(app, loop="asyncio", ws="none", log_level="warning", access_log=False,
                            server_header=False, backlog=BACKLOG, timeout_graceful_shutdown=GRACE)
    logging.getLogger("uvicorn.error").addFilter(InvalidRequests(app.state.registry))
    listener.member = member
    Server(config, timeout, listener, member).run(
        sockets=[listener, member.socket] if member else [listener])


class InvalidRequests(NoRepetitions):
    """Counts the requests that are no HTTP. uvicorn logs a line for each: of those it lets one
    pass in ten seconds, since a stranger may send as many as he likes."""

    MESSAGE = "Invalid HTTP request received."

    def __init__(self, registry):
        super().__init__()
        self.count = 0
        metrics.observe(registry, "ssr_invalid_requests_total", "Requests that were no HTTP",
                        lambda: self.count)

    def filter(self, record):
        if record.msg != self.MESSAGE:
            return True
        self.count += 1
        return super().filter(record)


# --- connections in number ------------------------------------------------------------------------


def listen(host, port, max_connections):
    """A Listener. port: 0 for any that is free. Raises SetupError."""
    _allow_open_files(max_connections + OTHER_FILES)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]
        listener = Listener(socket.create_server(address, family=family, backlog=BACKLOG),
                            max_connections)
    except OSError as error:
        raise SetupError(f"cannot listen on {host} port {port}: {error.strerror or error}; "
                         "see --host and --port") from error
    # Connections inherit it. asyncio sets it only where a socket names its protocol; without it an
    # answer of two writes waits 40 ms for the client's acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _allow_open_files(number):
    """Lets the process have as many files open. Raises SetupError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= number:
        return
    if hard != resource.RLIM_INFINITY and hard < number:
        raise SetupError(f"only {hard} files may be open at a time (ulimit -Hn): "
                         f"--max_connections may be {max(0, hard - OTHER_FILES)}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


class Listener(socket.socket):
    """A listening socket that keeps up to a number of connections open at a time; further ones are
    answered with 503 and closed.

    Otherwise silent connections would use up the files that a process may open, and asyncio would
    try to accept more of them again and again, with a traceback each time.

    It hands out one at a time, so that whoever shares it has a part in many that come at once.

    max_connections: how many; refused: how many were too many so far
    member: of the Group that shares it, None for nobody
    """

    REFUSAL = (b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n"
               b"Content-Length: 0\r\n\r\n")

    def __init__(self, listening, max_connections):
        """listening: a socket that listens, whose place this one takes"""
        super().__init__(listening.family, listening.type, listening.proto, listening.detach())
        self.max_connections, self.refused, self.member = max_connections, 0, None
        self._connections = []  # among them some that are closed by now
        self._is_turn_over = False

    def accept(self):
        """The next connection and its address. Raises BlockingIOError where there is none that may
        stay, or that should come here now."""
        if self.member and (self._is_turn_over or self.member.leaves_to_others(self.count())):
            self._is_turn_over = False
            raise BlockingIOError
        self._is_turn_over = True
        connection, address = super().accept()
        if len(self._connections) < self.max_connections \
                or self.count() < self.max_connections:
            self._connections.append(connection)
            return connection, address
        self._refuse(connection)
        raise BlockingIOError  # asyncio sees to the other connections before it asks again

    def count(self):
        """How many connections are open."""
        self._connections = [connection for connection in self._connections
                             if connection.fileno() >= 0]
        return len(self._connections)

    def _refuse(self, connection):
        self.refused += 1
        logger.warning("%d connections are open, further ones are refused: see --max_connections",
                       self.max_connections)
        with connection, contextlib.suppress(OSError):  # the client may have gone
            connection.send(self.REFUSAL)  # fits into the kernel's buffer, so this does not wait

    def add_metrics(self, registry):
        metrics.observe(registry, "ssr_connections", "Connections that are open", self.count)
        metrics.observe(registry, "ssr_connections_refused_total",
                        "Connections closed at once since too many were open",
                        lambda: self.refused)


# --- connections in time --------------------------------------------------------------------------


class Server(uvicorn.Server):
    """uvicorn, which ends a keep-alive connection when it has been idle for five seconds. This one
    also ends connections whose client has not sent a whole request in time, be it silent or slow,
    or has not read the answer."""

    def __init__(self, config, timeout, listener, member=None):
        """timeout: in seconds; listener: of listen; member: of the Group that shares it"""
        super().__init__(config)
        self._timeout, self._listener, self._member = timeout, listener, member
        self._waiting = {}  # what a connection waits for its client to do: since when

    async def on_tick(self, counter):
        if self._member:
            self._member.set_connections(self._listener.count())
        if counter % TICKS == 0:
            self._end_slow_connections(time.monotonic())
        return await super().on_tick(counter)

    def handle_exit(self, number, frame):
        if not (self._member and number == signal.SIGINT):  # Ctrl-C: the first process sees to it
            super().handle_exit(number, frame)

    def _end_slow_connections(self, now):
        waiting = {}
        for connection in self.server_state.connections:
            exchange = connection.cycle  # the last request and its answer; None before the first
            answered = exchange is None or exchange.response_complete
            if answered or exchange.more_body:
                step = connection, exchange, answered
                waiting[step] = self._waiting.get(step, now)
        self._waiting = waiting
        for (connection, _, _), since in waiting.items():
            if now - since > self._timeout:
                connection.transport.abort()

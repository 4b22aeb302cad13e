"""Where the processes of a job meet, and notice when one of them ends.

All of them are connected to trainer 0. Messages are lines of JSON: {"name": ...} once, {"value":
...} to gather and to answer, {"bye": true} before an end that is no fault, {"error": ...} to turn
someone away.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time

from ssr.cluster.ending import fail
from ssr.errors import SetupError


class Peers:
    """The processes of a job, as this one is connected to them: they agree on where they are, and
    one that ends too early is noticed at once, whatever Paddle is doing.

    trainer: which trainer this process is, None for a server
    trainers: how many there are
    """

    def __init__(self, trainer, trainers):
        self.trainer = trainer
        self.trainers = trainers
        self.links = {}
        self.ended = threading.Event()  # trainer 0 has said that the job is done

    @classmethod
    def host(cls, endpoint, names, trainers, seconds):
        """Trainer 0: waits for everybody else.

        names: of the other processes; seconds: how long they may take
        Raises SetupError.
        """
        peers = cls(0, trainers)
        missing, end = set(names), time.monotonic() + seconds
        with listen(endpoint) as server:
            while missing:
                link = _accept(server, end)
                if link is None:
                    raise SetupError(f"{', '.join(sorted(missing))} did not come to {endpoint} "
                                     f"within {seconds} s: see its log")
                name = link.receive_name()
                if name in missing:
                    missing.remove(name)
                    link.start(name, peers)
                    peers.links[name] = link
                else:
                    link.send(error=f"trainer 0 expects no {name}, or has it already: check "
                                    "--trainer_id, --trainers and --endpoints")
        for link in peers.links.values():
            link.send(value=None)
        return peers

    @classmethod
    def join(cls, endpoint, name, trainer, trainers, seconds):
        """Everybody else: meets trainer 0.

        name: of this process; seconds: how long that may take, None to wait on
        Raises SetupError.
        """
        peers = cls(trainer, trainers)
        sock = connect(endpoint, seconds)
        if sock is None:
            raise SetupError(f"trainer 0 cannot be reached at {endpoint} within {seconds} s: is it "
                             "running, is this its --coordinator?")
        link = Link(sock)
        link.send(name=name)
        link.start("trainer 0", peers)
        peers.links["trainer 0"] = link
        link.take("waiting for all processes", seconds)
        return peers

    def gather(self, value=None, what="waiting for the other trainers", seconds=None):
        """A value of each trainer -> the values of all, in their order, on every trainer.

        value: anything that JSON can hold; seconds: how long it may take, None for any time
        Raises SetupError.
        """
        if self.trainer:
            link = self.links["trainer 0"]
            link.send(value=value)
            return link.take(what, seconds)
        others = [self.links[f"trainer {i}"] for i in range(1, self.trainers)]
        values = [value] + [link.take(what, seconds) for link in others]
        for link in others:
            link.send(value=values)
        return values

    def bye(self):
        """From here on an end is no fault."""
        for link in self.links.values():
            link.send(bye=True)


class Link:
    """A connection, read by a thread of its own so that its end is noticed."""

    def __init__(self, sock):
        self.sock = sock
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine may vanish, too
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.file = sock.makefile("r", encoding="utf-8")
        self.values = queue.Queue()

    def send(self, **message):
        with contextlib.suppress(OSError):  # the reading thread says why
            self.sock.sendall((json.dumps(message) + "\n").encode())

    def receive_name(self):
        """Who has connected; None for somebody who does not belong here."""
        self.sock.settimeout(5)
        try:
            name = json.loads(self.file.readline(200)).get("name")
            return name if isinstance(name, str) else None
        except (OSError, ValueError, AttributeError):
            return None
        finally:
            self.sock.settimeout(None)

    def start(self, name, peers):
        """Begins to read. name: of the process at the other end"""
        self.thread = threading.Thread(target=self._read, args=(name, peers), daemon=True)
        self.thread.start()

    def take(self, what, seconds):
        """The next value. Raises SetupError after so many seconds."""
        try:
            return self.values.get(timeout=seconds)
        except queue.Empty:
            raise SetupError(f"{what} took more than {seconds} s") from None

    def _read(self, name, peers):
        with contextlib.suppress(OSError, ValueError):
            for line in self.file:
                message = json.loads(line)
                if "bye" in message:
                    peers.ended.set()
                    return
                if "error" in message:
                    fail(message["error"])
                else:
                    self.values.put(message["value"])
        fail(f"{name} has ended before the job was done: see its log")


def listen(endpoint):
    """A listening socket. Raises SetupError where the port is in use."""
    try:
        return socket.create_server(_address(endpoint), backlog=128)
    except OSError as error:
        raise SetupError(f"cannot listen on {endpoint}: {error.strerror or error}; choose another "
                         "port, or stop what uses it") from error


def _accept(server, end):
    """The Link of the next one that connects, None where nobody does until then."""
    while True:
        server.settimeout(max(0.1, end - time.monotonic()))
        try:
            return Link(server.accept()[0])
        except OSError:  # timed out, or somebody has hung up at once
            if time.monotonic() >= end:
                return None


def connect(endpoint, seconds):
    """A connected socket, or None after so many seconds (None: waits on)."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        with contextlib.suppress(OSError):
            sock = socket.create_connection(_address(endpoint), timeout=5)
            if sock.getsockname() != sock.getpeername():  # it can happen to meet itself
                return sock
            sock.close()
        time.sleep(0.2)
    return None


def _address(endpoint):
    host, _, port = endpoint.rpartition(":")
    return host, int(port)

"""What the processes of one server share, beside the socket that listens: a socket each through
which the others reach it, and a board that tells how many connections each has.

All of it is made before the processes are, which inherit it. So a process that has died and is
started again finds its sockets as they were, and what waits in them is answered after all.
"""

from __future__ import annotations

import http.client
import mmap
import os
import shutil
import socket
import tempfile
import time

DOWN = -1  # on the board: not there
WRITER = 0  # the number of the process that writes
MAX_DEFERRALS, DEFERRAL = 20, 0.0005  # how often, and for how many seconds


class Group:
    """count: processes; has_writer: whether one of them writes the index"""

    def __init__(self, count, has_writer):
        self.count, self.has_writer = count, has_writer
        self._directory = tempfile.mkdtemp(prefix="ssr-serve-")  # for its owner alone
        self._board = memoryview(mmap.mmap(-1, 4 * count)).cast("i")
        self.sockets = []
        for number in range(count):
            self.set_connections(number, DOWN)
            self.sockets.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self.sockets[-1].bind(self._path(number))
            self.sockets[-1].listen(128)

    def close(self):
        for listener in self.sockets:
            listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, number):
        return os.path.join(self._directory, str(number))

    def set_connections(self, number, connections):
        """Notes how many connections a process has, DOWN: it is not there."""
        self._board[number] = connections

    def connections(self, number):
        """How many connections a process has, by its last note."""
        return self._board[number]

    def is_up(self, number):
        return self._board[number] != DOWN

    def fewest_connections(self):
        """How many the process has that has fewest."""
        return min([connections for connections in self._board if connections != DOWN], default=0)

    def ask(self, number, method, path, body=None, headers=(), timeout=60.0):
        """(status, headers, body) of the answer of one of the processes. One that is being started
        answers when it is there. Raises OSError, http.client.HTTPException."""
        connection = _UnixConnection(self._path(number), timeout)
        try:
            # An address is a host name that every process takes.
            connection.request(method, path, body, {"Host": "127.0.0.1", **dict(headers)})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Member:
    """One of the processes, as it sees itself."""

    def __init__(self, group, number):
        self.group, self.number = group, number
        self.socket = group.sockets[number]
        self._deferrals = 0

    @property
    def writes(self):
        return self.group.has_writer and self.number == WRITER

    @property
    def has_other_writer(self):
        return self.group.has_writer and self.number != WRITER

    def others(self):
        """The numbers of the other processes that are there."""
        return [number for number in range(self.group.count)
                if number != self.number and self.group.is_up(number)]

    def set_connections(self, connections):
        self.group.set_connections(self.number, connections)

    def leaves_to_others(self, connections):
        """Whether another process should rather take the next connection. Connections stay open for
        long, and whoever is woken first would have most of them. One that is busy for a moment is
        waited for, not longer."""
        self.set_connections(connections)
        if connections <= self.group.fewest_connections() or self._deferrals == MAX_DEFERRALS:
            self._deferrals = 0
            return False
        self._deferrals += 1
        time.sleep(DEFERRAL)
        return True

    def sends_away(self):
        """Whether a client is to connect anew after this answer, which takes it to another process:
        where this one has more connections since the other was not there yet when they came."""
        own = self.group.connections(self.number)
        if own < self.group.fewest_connections() + 2:
            return False
        self.set_connections(own - 1)
        return True

"""Who is who in a job: servers hold the parameters, trainers train, and all of them know of all."""

from __future__ import annotations

from typing import NamedTuple, Sequence


class Job(NamedTuple):
    """A job, and this process's place in it.

    endpoints: host:port of each server
    coordinator: host:port on trainer 0's machine, where all processes meet
    trainers: how many there are
    server: which server this process is, from 0 on; None for a trainer
    trainer: which trainer this process is, from 0 on; None for a server
    wait: seconds that a trainer waits for the others at the start; servers wait on
    """

    endpoints: Sequence[str]
    coordinator: str
    trainers: int
    server: int | None = None
    trainer: int | None = None
    wait: int = 40

    @property
    def name(self):
        """Of this process."""
        return f"trainer {self.trainer}" if self.server is None else f"server {self.server}"

    @property
    def endpoint(self):
        """Where this server listens."""
        return self.endpoints[self.server]

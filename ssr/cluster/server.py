"""A server of a job: holds parameters until trainer 0 has done its work."""

from __future__ import annotations

import logging
import os
import threading

import reader
from ssr.cluster.ending import end_with, leave
from ssr.cluster.meeting import Peers, listen
from ssr.cluster.program import Cluster
from ssr.errors import SetupError

logger = logging.getLogger(__name__)

GOODBYE_LIMIT = 5  # seconds until trainer 0, which has stopped Paddle's server, has said so


def run_server(job, settings, vocab_path):
    """Serves until the job is done. Ends the process where a trainer or another server ends too
    early.

    settings: ssr.training.settings.Settings
    Raises DataError, SetupError.
    """
    vocab_size = reader.get_vocab_size(vocab_path)
    # Paddle only logs that a port is in use and goes on as if it had served.
    listen(job.endpoint).close()
    # Paddle's server never lets another thread of its process run: this process only watches.
    watcher, child = os.getpid(), os.fork()
    if not child:
        end_with(watcher)
        Cluster(job, settings, vocab_size).serve()
        leave(0)
    logger.info("%s on %s", job.name, job.endpoint)
    peers = []
    threading.Thread(target=lambda: peers.append(Peers.join(
        job.coordinator, job.name, None, job.trainers, None)), daemon=True).start()
    _, status = os.waitpid(child, 0)
    if status or not (peers and peers[0].ended.wait(GOODBYE_LIMIT)):
        raise SetupError("Paddle's server has ended before the job was done")
    peers[0].bye()

"""Going over to a new build of the index while requests are answered.

The process that writes looks for a build that waits (retrieve.py build --overwrite beside it),
checks it, brings over what has changed and makes it the one that counts (retrieval/succession.py).
The others look whether another build counts than the one that they have open.
"""

from __future__ import annotations

import logging
import os
import threading

from ssr.errors import StoreError, UserError
from ssr.retrieval import builds
from ssr.retrieval.index import Index
from ssr.retrieval.succession import Successor
from ssr.service import metrics
from ssr.service.logs import NoRepetitions

logger = logging.getLogger(__name__)
logger.addFilter(NoRepetitions(60.0))

LOOK_EVERY, RETRY_AFTER = 1.0, 10.0  # seconds
PATIENCE = 30.0  # seconds that ending waits for a build that is being opened


class Reloader:
    """Has a Backend go over to new builds, in a thread.

    reloads, refusals: how many builds it went over to, how many could not be used
    """

    def __init__(self, backend, registry):
        self._backend, self._path = backend, backend.index.store.path
        self.reloads = self.refusals = 0
        self._problem = ""  # of the last build, where that could not be used
        self._reloading, self._ending = threading.Lock(), threading.Event()
        self._heir = None  # the descriptor of builds.inherit
        self._thread = threading.Thread(target=self._look_now_and_then, daemon=True)
        metrics.observe(registry, "ssr_reloads_total", "New builds that the service went over to",
                        lambda: self.reloads)
        metrics.observe(registry, "ssr_reloads_refused_total", "New builds that could not be used",
                        lambda: self.refusals)

    def start(self):
        self._look_after_next()
        self._thread.start()

    def close(self):
        self._ending.set()
        self._thread.join(PATIENCE)
        if self._heir is not None:
            os.close(self._heir)

    def _look_after_next(self):
        if self._heir is None and self._backend.index.store.is_alone:
            self._heir = builds.inherit(self._path)

    def _look_now_and_then(self):
        while not self._ending.wait(LOOK_EVERY):
            try:
                self._look_after_next()
                self.reload()
            except Exception as error:  # the thread goes on, whatever a build is like
                if not self._ending.is_set():
                    logger.error("%s", error, exc_info=not isinstance(error, UserError))
                    self._ending.wait(RETRY_AFTER)

    def reload(self):
        """Goes over to a build that waits, or to the one that counts; returns whether there was
        one. Raises UserError where it cannot be used, or where the last one could not."""
        with self._reloading:
            try:
                reloaded = self._reload()
            except UserError as error:
                self._problem = str(error)
                self.refusals += 1
                raise
            if reloaded:
                self._problem = ""
                self.reloads += 1
                logger.info("%s: the model is %s from here on", self._path, self._backend.model)
            return reloaded

    def last_problem(self):
        """Why the last build could not be used, "" where it could."""
        return self._problem

    def _reload(self):
        store = self._backend.index.store
        if store.is_alone:
            directory = builds.next_build(self._path)
            return directory is not None and self._succeed(directory)
        return store.is_replaced() and self._follow()

    def _succeed(self, directory):
        """The writer goes over to the build that waits."""
        try:
            successor = Successor(self._backend.index, directory)
        except Exception as error:  # of any kind: a model may be broken in any way
            builds.refuse(self._path, directory)
            raise StoreError(f"the new build is refused, {self._backend.model} stays: "
                             f"{error}") from error
        try:
            former = self._backend.replace(successor.take_over)
        except BaseException:
            successor.close()
            raise
        former.close()
        builds.remove_others(self._path)
        return True

    def _follow(self):
        """A reader goes over to the build that counts."""
        former = self._backend.index
        index = Index.open(self._path, former.store.writable, clock=former._clock,
                           **former.opened_with)
        index.warm_up()
        self._backend.replace(lambda: index).close()
        return True

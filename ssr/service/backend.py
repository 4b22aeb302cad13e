"""The index as the routes use it.

A query for one session runs in the event loop: it is shorter than the way to a thread and back, and
waits for no disk. Where it waits for another machine (Index.is_remote) it runs in a thread, as all
does that may take longer: all changes in a single one, since the index makes them one at a time
anyway, so that no number of waiting changes takes away the threads that readers need; and queries
for many sessions in a few, since their answers are large.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

from starlette.concurrency import run_in_threadpool

from ssr.errors import DataError

BATCHES_AT_A_TIME = 4
HITS_AT_A_TIME = 8192  # of a batch


class Backend:
    """An index, asked from an event loop. Another one may take its place at any time: what has been
    begun ends on the former one.

    index: retrieval.Index; limits: limits.Limits
    """

    def __init__(self, index, limits):
        self.index, self.limits = index, limits
        self._uses, self._used = collections.Counter(), threading.Condition()
        self._longest_hit = 0  # bytes, in the mean of an answer; of all batches so far
        self._writer = ThreadPoolExecutor(1, "writer")
        self._batches = ThreadPoolExecutor(BATCHES_AT_A_TIME, "batches")

    @property
    def model(self):
        """What tells the index's model from others."""
        return f"{self.index.details['model']} {self.index.details['digest'][:12]}"

    @contextlib.contextmanager
    def _use(self):
        """Gives the index, which stays open within the block."""
        with self._used:
            index = self.index
            self._uses[index] += 1
        try:
            yield index
        finally:
            with self._used:
                self._uses[index] -= 1
                if index is not self.index:
                    self._used.notify_all()

    def replace(self, make):
        """Another index takes the place of this one, at a moment at which nobody changes it. Any
        thread but that of the event loop may call it.

        make: called with nothing, returns it
        Returns the former one once nobody uses it any more, for the caller to close it.
        """
        return self._writer.submit(self._replace, make).result()

    def _replace(self, make):
        former, index = self.index, make()
        with self._used:
            self.index = index
            self._used.wait_for(lambda: not self._uses[former])
            del self._uses[former]
        return former

    def close(self):
        """Returns when what was begun is finished."""
        self._batches.shutdown()
        self._writer.shutdown()

    # --- queries: bytes of JSON; DataError for more than Limits.max_answer of them

    async def recommend(self, session, k, exclude_session, filter):
        """The answer for a session, as of Index.query."""
        return await self._quickly(lambda index: self._encode(
            index.query(session, k, exclude_session, filter=filter)))

    async def similar(self, item, k, filter):
        """The answer for an item, as of Index.similar."""
        return await self._quickly(lambda index: self._encode(
            index.similar([item], k, filter)[0]))

    async def _quickly(self, answer):
        with self._use() as index:
            if index.is_remote:
                return await run_in_threadpool(answer, index)
            return answer(index)

    async def recommend_many(self, sessions, k, exclude_session, filter):
        """The answers for many sessions, as of Index.query_many."""
        with self._use() as index:
            return await self._run(self._batches, self._answer_many, index, sessions, k,
                                   exclude_session, filter)

    def _answer_many(self, index, sessions, k, exclude_session, filter):
        answers, start = [], 0
        size = len('{"answers":[]')  # of the answer so far; a comma or a brace follows each part
        while start < len(sessions):
            part = sessions[start:start + max(1, self._hits_at_a_time() // k)]
            start += len(part)
            for answer in index.query_many(part, k, exclude_session, filter=filter):
                answers.append(self._encode(answer))
                size += len(answers[-1]) + 1
                self._check_size(size)
                self._longest_hit = max(self._longest_hit,
                                        len(answers[-1]) // max(1, len(answer.hits)))
        return b'{"answers":[' + b",".join(answers) + b"]}"

    def _hits_at_a_time(self):
        """Of how many hits the texts may be in memory at a time: as many as should fit into an
        answer, the first time those of a single session."""
        if not self._longest_hit:
            return 1
        return min(HITS_AT_A_TIME, self.limits.max_answer // self._longest_hit)

    async def browse(self, words, limit):
        """The candidates whose text or id contains each of the words, as of Index.browse."""
        with self._use() as index:
            items, complete = await run_in_threadpool(index.browse, words, limit)
        self._check_size(sum(len(text) for _, text in items))
        return self._checked({"items": [{"id": id, "text": text} for id, text in items],
                              "complete": complete})

    def _encode(self, answer):
        self._check_size(sum([len(hit.text) for hit in answer.hits]))
        return self._checked({"hits": [hit._asdict() for hit in answer.hits],
                              "skipped": answer.skipped, "reason": answer.reason})

    def _checked(self, content):
        encoded = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        self._check_size(len(encoded))
        return encoded

    def _check_size(self, size):
        if size > self.limits.max_answer:
            raise DataError(f"the answer would have more than {self.limits.max_answer} bytes: ask "
                           "for less at a time")

    # --- changes: on the disk when they return, even if the client has gone

    async def add(self, items):
        """As Index.add."""
        return await self._change(lambda index: index.add(items))

    async def remove(self, ids):
        """As Index.remove."""
        return await self._change(lambda index: index.remove(ids))

    async def click(self, clicks):
        """As Index.click."""
        await self._change(lambda index: index.click(clicks))

    async def _change(self, change):
        # Which index it is, is known when its turn comes.
        return await self._run(self._writer, lambda: change(self.index))

    @staticmethod
    async def _run(threads, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

"""A few threads for what may block, so that the event loop never does.

Smaller than an executor with futures: a job is two functions, results come back in batches, and waking the
loop costs one call for all that finished meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

_LOG = logging.getLogger(__name__)

Then = Callable[[Any], None]


class WorkerPool:
    """*size* daemon threads; made and used on the running event loop.

    *turned* is called on the loop after each batch of results.
    """

    def __init__(self, size: int, turned: Callable[[], None] = lambda: None) -> None:
        self.size: Final = size
        #: Jobs that were given to the pool and whose result has not come back.
        self.busy = 0
        self._turned = turned
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Then] | None] = SimpleQueue()
        self._results: deque[tuple[Then, Any]] = deque()
        self._waking = False
        self._idle: asyncio.Event | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], Any], then: Then) -> None:
        """Run *work* in a thread, then *then* on the loop with what it returned. *work* must not raise."""
        self.busy += 1
        self._jobs.put((work, then))

    def _work(self) -> None:
        get, results = self._jobs.get, self._results
        while (job := get()) is not None:
            work, then = job
            results.append((then, work()))
            del job, work, then  # an idle thread must not keep a session alive
            # The loop resets the flag before it looks at the results, so none can be overlooked.
            if not self._waking:
                self._waking = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
                    self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._waking = False
        results = self._results
        while results:
            then, result = results.popleft()
            self.busy -= 1
            try:
                then(result)
            except Exception:
                _LOG.exception("a result could not be delivered")
        if not self.busy and self._idle is not None:
            self._idle.set()
        self._turned()

    async def drained(self) -> None:
        """Until no job is in the pool."""
        if self.busy:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def stop(self, timeout: float) -> bool:
        """End the threads; False if one is still at work after *timeout* seconds."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads)

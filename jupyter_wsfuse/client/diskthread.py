"""A thread that waits for a disk so that an event loop does not have to."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Things to do later that may wait at most.
_WAITING: Final = 4096


class DiskThread:
    """Does one thing after the other, for the event loop that is running when it is made. To be closed.

    What somebody waits for goes first, and so waits for one other thing at most. What can be done later is refused when
    there is too much of it. The thread does not keep the process from ending, whatever its disk does.
    """

    def __init__(self, name: str, waiting_bytes: int) -> None:
        """*waiting_bytes*: how much memory things to do later may hold."""
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()
        self._urgent: deque[Callable[[], None]] = deque()
        self._later: deque[tuple[Callable[[], None], int]] = deque()
        self._bytes = 0
        self._most_bytes = waiting_bytes
        self._closing = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def waiting(self) -> int:
        """Things to do later."""
        return len(self._later)

    async def ask(self, question: Callable[[], _T]) -> _T | None:
        """The answer. None when the thread ends, or something goes wrong that should not."""
        future: asyncio.Future[_T | None] = self._loop.create_future()

        def work() -> None:
            answer = None
            try:
                if not self._closing:
                    answer = question()
            finally:
                self._tell(future, answer)

        with self._wake:
            if self._closing:
                return None
            self._urgent.append(work)
            self._wake.notify()
        return await future

    def later(self, task: Callable[[], None], size: int = 0) -> bool:
        """Whether *task*, which holds *size* bytes, will be done, unless the thread is closed before. In order."""
        with self._wake:
            if self._closing or len(self._later) >= _WAITING or self._bytes + size > self._most_bytes:
                return False
            self._later.append((task, size))
            self._bytes += size
            self._wake.notify()
        return True

    async def flush(self) -> None:
        """Until all that is to be done later by now is done, or forgotten."""
        done: asyncio.Future[None] = self._loop.create_future()
        with self._wake:
            if self._closing:
                return
            self._later.append((lambda: self._tell(done, None), 0))
            self._wake.notify()
        await asyncio.wait((done, self._ended), return_when=asyncio.FIRST_COMPLETED)

    async def close(self, patience: float) -> bool:
        """Forget what waits, and end after what is being done. Whether that was done within *patience* seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        done, _ = await asyncio.wait((self._ended,), timeout=patience)
        return bool(done)

    def _next(self) -> Callable[[], None] | None:
        with self._wake:
            while not (self._closing or self._urgent or self._later):
                self._wake.wait()
            if self._urgent:
                return self._urgent.popleft()
            if self._closing:
                return None
            task, size = self._later.popleft()
            self._bytes -= size
            return task

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except Exception:
                _log.exception("%s failed at something", threading.current_thread().name)
            del task  # and what it holds
        self._later.clear()
        self._tell(self._ended, None)

    def _tell(self, future: asyncio.Future[Any], result: object) -> None:
        def tell() -> None:
            if not future.done():
                future.set_result(result)

        try:
            self._loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

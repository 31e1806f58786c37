"""Stepping a coroutine without a Task.

Most operations are answered from memory, or suspend exactly once to wait for one reply. A Task costs such an
operation a turn of the event loop before its first step (2.4 us; here 0.35 us). A :class:`Running` takes the first
step at once and is otherwise what ``asyncio`` expects of the current task: :func:`asyncio.timeout`, task groups,
``wait_for`` and :func:`asyncio.current_task` work inside. It uses the interface that asyncio documents for task
implementations of others ("Extending asyncio").
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine
from typing import Any


class Running:
    """One coroutine on its way; ``finished(self, result, error)`` is called exactly once, when it ends.

    *tag* is whatever the owner wants to find again there.
    """

    __slots__ = ("tag", "_loop", "_coro", "_finished", "_waiting", "_done", "_must_cancel", "_cancelling")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        finished: Callable[[Running, Any, BaseException | None], None],
        tag: Any = None,
    ) -> None:
        self.tag = tag
        self._loop = loop
        self._coro = coro
        self._finished = finished
        self._waiting: asyncio.Future[Any] | None = None
        self._done = False
        self._must_cancel = False
        self._cancelling = 0

    def step(self, error: BaseException | None = None) -> None:
        """Run to the next suspension or to the end. Not from inside a task."""
        if self._must_cancel:
            self._must_cancel = False
            error = asyncio.CancelledError()
        loop = self._loop
        _enter_task(loop, self)  # type: ignore[arg-type]
        try:
            waiting = self._coro.send(None) if error is None else self._coro.throw(error)
        except StopIteration as stop:
            result, failure = stop.value, None
        except BaseException as exc:
            result, failure = None, exc
        else:
            self._wait(waiting)
            return
        finally:
            _leave_task(loop, self)  # type: ignore[arg-type]
        self._done = True
        self._finished(self, result, failure)

    def _wait(self, waiting: Any) -> None:
        if waiting is None:  # a bare yield: sleep(0)
            self._loop.call_soon(self.step)
            return
        # Future.__await__ sets the mark just before it yields the future; whoever drives the coroutine clears it.
        waiting._asyncio_future_blocking = False
        waiting.add_done_callback(self._wake)
        self._waiting = waiting
        if self._must_cancel and waiting.cancel():
            self._must_cancel = False

    def _wake(self, _: asyncio.Future[Any]) -> None:
        # The result, or the error, is what Future.__await__ goes on with by itself.
        self._waiting = None
        self.step()

    # --- what asyncio asks of the current task ---------------------------------------------------------------------

    def done(self) -> bool:
        """Whether ``finished`` was or is being called."""
        return self._done

    def cancel(self, msg: object = None) -> bool:
        """Raise CancelledError where it waits, or at its next step."""
        if self._done:
            return False
        self._cancelling += 1
        if self._waiting is None or not self._waiting.cancel():
            self._must_cancel = True
        return True

    def cancelling(self) -> int:
        """How many cancellations were asked for and not taken back."""
        return self._cancelling

    def uncancel(self) -> int:
        """Take one back."""
        self._cancelling = max(0, self._cancelling - 1)
        return self._cancelling

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop it runs on."""
        return self._loop

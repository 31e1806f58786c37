"""A coroutine without a Task does what it would do in one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from jupyter_wsfuse.fuse.running import Running


class Outcome:
    """Starts a coroutine outside of any task, as the driver does, and keeps what became of it."""

    def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.running = Running(asyncio.get_running_loop(), coro, self._finished, "tag")
        self.eager = False

    def _finished(self, running: Running, result: Any, error: BaseException | None) -> None:
        assert running is self.running
        assert running.tag == "tag"
        self.result, self.error = result, error
        self.ended.set_result(None)  # raises if it happened before

    async def start(self) -> Outcome:
        started = asyncio.Event()

        def begin() -> None:
            self.running.step()
            self.eager = self.running.done()
            started.set()

        asyncio.get_running_loop().call_soon(begin)
        await started.wait()
        return self

    async def end(self) -> Outcome:
        await self.start()
        await self.ended
        return self


async def test_ends_at_once() -> None:
    async def work() -> int:
        return 5

    outcome = await Outcome(work()).end()
    assert (outcome.result, outcome.error, outcome.eager) == (5, None, True)


async def test_fails_at_once() -> None:
    async def work() -> None:
        raise OSError(2, "no")

    outcome = await Outcome(work()).end()
    assert isinstance(outcome.error, FileNotFoundError)
    assert outcome.eager


async def test_waits() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        await asyncio.sleep(0)
        return await future + 1

    outcome = await Outcome(work()).start()
    assert not outcome.running.done()
    future.set_result(1)
    await outcome.ended
    assert outcome.result == 2


async def test_errors_of_what_it_waits_for_arrive() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        try:
            await future
        except ValueError as exc:
            return str(exc)
        return ""

    outcome = await Outcome(work()).start()
    future.set_exception(ValueError("late"))
    await outcome.ended
    assert outcome.result == "late"


async def test_it_is_the_current_task_while_it_runs_and_only_then() -> None:
    seen: list[Any] = []

    async def work() -> None:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    outcome = await Outcome(work()).end()
    assert seen == [outcome.running] * 2
    assert isinstance(asyncio.current_task(), asyncio.Task)
    assert outcome.running.get_loop() is asyncio.get_running_loop()


async def test_timeout_in_the_first_step() -> None:
    async def work() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            return "too late"
        return ""

    outcome = await Outcome(work()).end()
    assert outcome.result == "too late"
    assert outcome.running.cancelling() == 0


async def test_timeout_that_is_not_needed() -> None:
    async def work() -> str:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        return await asyncio.wait_for(asyncio.sleep(0, "value"), 60)

    assert (await Outcome(work()).end()).result == "value"


async def test_task_group() -> None:
    async def fail() -> None:
        raise ValueError("child")

    async def work() -> str:
        said = ""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.Event().wait())
                group.create_task(fail())
                await asyncio.Event().wait()
        except* ValueError as found:
            said = str(found.exceptions[0])
        return said

    assert (await Outcome(work()).end()).result == "child"


async def test_gather_and_shield() -> None:
    async def work() -> list[int]:
        return await asyncio.gather(asyncio.shield(asyncio.sleep(0, 1)), asyncio.sleep(0, 2))

    assert (await Outcome(work()).end()).result == [1, 2]


async def test_cancelled_while_it_waits() -> None:
    outcome = await Outcome(asyncio.sleep(3600)).start()
    assert outcome.running.cancel()
    assert outcome.running.cancelling() == 1
    await outcome.ended
    assert isinstance(outcome.error, asyncio.CancelledError)
    assert not outcome.running.cancel()


async def test_cancelled_between_steps() -> None:
    """What it waited for is there already: the cancellation comes at the next step instead."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await future

    outcome = await Outcome(work()).start()
    future.set_result(1)
    assert outcome.running.cancel()
    await outcome.ended
    assert isinstance(outcome.error, asyncio.CancelledError)


@pytest.mark.parametrize("pause", ["future", "yield"])
async def test_cancelled_by_itself(pause: str) -> None:
    async def work() -> str:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        try:
            await (asyncio.Event().wait() if pause == "future" else asyncio.sleep(0))
        except asyncio.CancelledError:
            assert current.uncancel() == 0
            return "cancelled"
        return ""

    assert (await Outcome(work()).end()).result == "cancelled"


async def test_cancelled_by_itself_before_what_cannot_be_cancelled() -> None:
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    class Stubborn(asyncio.Future[int]):
        def cancel(self, msg: Any = None) -> bool:
            ready.set_result(1)
            return False

    async def work() -> int:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        stubborn = Stubborn()
        ready.add_done_callback(lambda _: stubborn.set_result(1))
        return await stubborn

    outcome = await Outcome(work()).end()
    assert isinstance(outcome.error, asyncio.CancelledError)

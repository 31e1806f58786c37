"""The thread that waits for a disk: order, bounds, and an end in any case."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from jupyter_wsfuse.client import diskthread
from jupyter_wsfuse.client.diskthread import DiskThread


class Gate:
    """A thing to do that lasts until it is opened."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()

    def __call__(self) -> None:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
async def thread() -> AsyncIterator[DiskThread]:
    made = DiskThread("test", 100)
    yield made
    assert await made.close(60)


async def test_answers(thread: DiskThread) -> None:
    assert await thread.ask(lambda: threading.current_thread().name) == "test"
    assert await asyncio.gather(*(thread.ask(lambda n=n: n) for n in range(50))) == list(range(50))


async def test_who_waits_goes_first(thread: DiskThread) -> None:
    gate, done = Gate(), []
    assert thread.later(gate)
    await gate.begun.wait()
    for n in range(3):
        assert thread.later(lambda n=n: done.append(n))
    asked = asyncio.ensure_future(thread.ask(lambda: done.append("asked")))
    await asyncio.sleep(0)
    assert thread.waiting == 3
    gate.open()
    await asked
    await thread.flush()
    assert done == ["asked", 0, 1, 2]
    assert thread.waiting == 0


async def test_too_much_is_refused(thread: DiskThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskthread, "_WAITING", 3)
    gate, done = Gate(), []
    assert thread.later(gate)
    await gate.begun.wait()
    assert not thread.later(lambda: done.append(0), 101)
    assert thread.later(lambda: done.append(1), 60)
    assert not thread.later(lambda: done.append(2), 41)
    assert thread.later(lambda: done.append(3), 40)
    assert thread.later(lambda: done.append(4))
    assert not thread.later(lambda: done.append(5))
    gate.open()
    await thread.flush()
    assert done == [1, 3, 4]
    assert thread.later(lambda: done.append(6), 100)
    await thread.flush()
    assert done[-1] == 6


async def test_what_goes_wrong_is_told_and_does_not_end_it(
    thread: DiskThread, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong() -> int:
        raise ZeroDivisionError

    with caplog.at_level(logging.CRITICAL + 1, diskthread.__name__):
        assert await thread.ask(wrong) is None
        assert thread.later(wrong)
        await thread.flush()
        assert await thread.ask(lambda: 1) == 1


async def test_a_question_that_is_given_up(thread: DiskThread) -> None:
    gate, done = Gate(), []
    thread.later(gate)
    await gate.begun.wait()
    asked = asyncio.ensure_future(thread.ask(lambda: done.append(1)))
    await asyncio.sleep(0)
    asked.cancel()
    gate.open()
    assert await thread.ask(lambda: 2) == 2
    assert asked.cancelled()


async def test_closing_forgets_what_waits() -> None:
    thread = DiskThread("test", 100)
    gate, done = Gate(), []
    thread.later(gate)
    await gate.begun.wait()
    thread.later(lambda: done.append("later"))
    asked = asyncio.ensure_future(thread.ask(lambda: done.append("asked")))
    flushed = asyncio.ensure_future(thread.flush())
    await asyncio.sleep(0)
    assert not await thread.close(0)
    gate.open()
    assert await thread.close(60)
    assert await asked is None
    await flushed
    assert done == []
    assert await thread.ask(lambda: 1) is None
    assert not thread.later(lambda: None)
    await thread.flush()


def test_the_loop_may_be_closed_before_it_ends() -> None:
    opened = threading.Event()
    ended: list[threading.Thread] = []

    async def leave() -> None:
        thread = DiskThread("left behind", 100)
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            ended.append(threading.current_thread())
            loop.call_soon_threadsafe(begun.set)
            assert opened.wait(60)

        thread.later(work)
        await begun.wait()
        assert not await thread.close(0)

    asyncio.run(leave())
    opened.set()
    ended[0].join(60)
    assert not ended[0].is_alive()

"""Callers that wait: deadlines one by one, interrupts, and what a loss means for each."""

from __future__ import annotations

import asyncio
import errno

import pytest

from jupyter_wsfuse.client.waiting import Answer, Waiting


def _add(waiting: Waiting, seq: int, key: int = 0) -> asyncio.Future[Answer]:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    waiting.futures[seq] = (future, key)
    return future


async def test_each_has_a_deadline_of_its_own() -> None:
    given_up: list[int] = []
    loop = asyncio.get_running_loop()
    waiting = Waiting(loop, 0.05, given_up.append)
    waiting.why = "the cable"
    first = _add(waiting, 1)
    waiting.strand(1)
    later = loop.create_future()
    loop.call_later(0.02, later.set_result, None)
    await later
    second = _add(waiting, 2)
    waiting.strand(2)
    with pytest.raises(TimeoutError, match="the cable") as caught:
        await first
    assert caught.value.errno == errno.ETIMEDOUT
    assert not second.done()
    with pytest.raises(TimeoutError):
        await second
    assert given_up == [1, 2]
    assert waiting.futures == {}


async def test_who_is_rescued_is_not_given_up() -> None:
    waiting = Waiting(asyncio.get_running_loop(), 0.01, lambda _seq: pytest.fail("given up"))
    future = _add(waiting, 1)
    waiting.strand_all()
    waiting.rescued()
    done, _ = await asyncio.wait((future,), timeout=0.05)
    assert not done
    assert waiting.forget(1)
    assert not waiting.forget(1)


async def test_the_interrupted_go_when_the_connection_does() -> None:
    waiting = Waiting(asyncio.get_running_loop(), 10.0, lambda _seq: None)
    patient, hasty = _add(waiting, 1, key=8), _add(waiting, 2, key=8)
    assert waiting.under(8) == [1, 2]
    assert waiting.under(9) == []
    waiting.interrupted.add(2)
    waiting.strand_all()
    waiting.strand_all()
    with pytest.raises(InterruptedError):
        await hasty
    assert not patient.done()
    waiting.fail_all(errno.ENOTCONN, "unmounted")
    with pytest.raises(OSError, match="unmounted"):
        await patient


async def test_a_caller_who_has_gone_is_not_woken() -> None:
    waiting = Waiting(asyncio.get_running_loop(), 10.0, lambda _seq: None)
    _add(waiting, 1).cancel()
    waiting.fail(1, errno.EIO)
    assert waiting.futures == {}

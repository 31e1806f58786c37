"""The loop stays awake only where an answer is due at once."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_wsfuse.busypoll import BusyPoll


class Loop:
    """What a BusyPoll needs of a loop: turns that a test makes one by one."""

    def __init__(self) -> None:
        self.soon: list[Any] = []

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)

    def turn(self) -> bool:
        """Whether the loop would have polled instead of sleeping."""
        callbacks, self.soon = self.soon, []
        for callback in callbacks:
            callback()
        return bool(callbacks)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make(limit: float = 1.0) -> tuple[BusyPoll, Loop, Clock]:
    loop, clock = Loop(), Clock()
    return BusyPoll(loop, limit, clock=clock), loop, clock  # type: ignore[arg-type]


def test_sleeps_until_an_answer_came_quickly() -> None:
    poll, loop, clock = make()
    poll.expect()
    assert not loop.turn()
    clock.now += 0.5
    poll.happened()
    poll.expect()
    assert loop.turn()
    assert loop.turn()
    poll.happened()
    loop.turn()
    assert not loop.turn()


def test_gives_up_at_the_limit_and_the_next_time() -> None:
    poll, loop, clock = make()
    poll.expect()
    poll.happened()
    poll.expect()
    assert loop.turn()
    clock.now += 1.5
    assert loop.turn()
    assert not loop.turn()
    poll.happened()
    poll.expect()
    assert not loop.turn()


def test_expecting_twice_polls_once() -> None:
    poll, loop, _ = make()
    poll.expect()
    poll.happened()
    poll.expect()
    poll.expect()
    assert len(loop.soon) == 1


def test_zero_never_polls() -> None:
    poll, loop, _ = make(0.0)
    poll.expect()
    poll.happened()
    poll.expect()
    assert not loop.turn()


async def test_on_a_real_loop_it_ends() -> None:
    loop = asyncio.get_running_loop()
    poll = BusyPoll(loop, 0.01)
    poll.expect()
    poll.happened()
    poll.expect()
    ended = loop.create_future()
    loop.call_later(0.05, ended.set_result, None)
    await ended
    assert poll._turning is False

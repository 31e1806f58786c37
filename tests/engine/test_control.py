"""The line to the engine's parent: commands, answers, events, and a parent that does not read."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from jupyter_wsfuse.engine.control import MAX_LINE, MAX_QUEUED, MAX_QUEUED_BYTES, Control
from tests.helpers.waiting import eventually_async


class Parent:
    """The other ends of the engine's standard input and output."""

    def __init__(self, handlers: Mapping[str, Callable[..., Any]]) -> None:
        source, self.stdin = os.pipe()
        self.stdout, sink = os.pipe()
        os.set_blocking(self.stdout, False)
        self.fds = {source, sink, self.stdin, self.stdout}
        self.sink = sink
        self.ended = asyncio.Event()
        self.control = Control(asyncio.get_running_loop(), handlers, source=source, sink=sink)
        self.heard: list[dict[str, Any]] = []
        self._rest = b""

    def say(self, *messages: object, raw: bytes = b"") -> None:
        os.write(self.stdin, b"".join(json.dumps(m).encode() + b"\n" for m in messages) + raw)

    def read(self) -> list[dict[str, Any]]:
        """Everything said so far."""
        while True:
            try:
                self._rest += os.read(self.stdout, 1 << 20)
            except BlockingIOError:
                break
        *lines, self._rest = self._rest.split(b"\n")
        self.heard += [json.loads(line) for line in lines]
        return self.heard

    async def until(self, count: int) -> list[dict[str, Any]]:
        await eventually_async(lambda: len(self.read()) >= count)
        return self.heard

    def close(self, *fds: int) -> None:
        for fd in fds or tuple(self.fds):
            os.close(fd)
            self.fds.remove(fd)


Make = Callable[..., Parent]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Parent] = []

    def factory(rest: bytes = b"", **handlers: Callable[..., Any]) -> Parent:
        made.append(Parent(handlers))
        made[-1].control.start(made[-1].ended.set, rest)
        return made[-1]

    yield factory
    for parent in made:
        parent.control.close()
        parent.control.close()  # does no harm
        parent.close()


def add(a: int, b: int = 1) -> int:
    return a + b


async def test_commands_are_answered_by_their_numbers(make: Make) -> None:
    gate = asyncio.Event()

    async def slow(word: str) -> str:
        await gate.wait()
        return word

    def release() -> None:
        gate.set()

    parent = make(add=add, slow=slow, release=release, rest=b'{"id": 0, "op": "add", "a": 1}\n{"id": 1,')
    parent.say(raw=b' "op": "slow", "word": "x"}\n\n')
    parent.say({"id": 2, "op": "add", "a": 2, "b": 3}, {"id": "three", "op": "release"})
    assert await parent.until(4) == [
        {"id": 0, "result": 2}, {"id": 2, "result": 5}, {"id": "three", "result": None}, {"id": 1, "result": "x"},
    ]  # fmt: skip


async def test_what_goes_wrong_is_the_answer(make: Make) -> None:
    def silent() -> None:
        raise KeyError

    async def later() -> None:
        raise OSError(5, "no luck")

    parent = make(add=add, silent=silent, later=later)
    parent.say(
        {"id": 1, "op": "add", "a": 1, "c": 2}, {"id": 2, "op": "fly"}, {"id": 3, "op": "silent"},
        {"id": 4, "op": "later"}, {"id": 5, "op": "add", "a": 1},
    )  # fmt: skip
    errors = {answer["id"]: answer.get("error", "") for answer in await parent.until(5)}
    assert "unexpected keyword argument 'c'" in errors[1]
    assert errors[2] == "no such command: fly"
    assert errors[3] == "KeyError"
    assert errors[4] == "[Errno 5] no luck"
    assert errors[5] == ""


async def test_what_is_no_command_is_dropped(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    parent = make(add=add)
    for rubbish in (
        b"\xff",
        b"[]",
        b"{}",
        b'{"id": 1}',
        b'{"op": "add"}',
        b"nonsense",
        b'{"id": 1, "op": []}',
    ):
        parent.say(raw=rubbish + b"\n")
    parent.say({"id": 9, "op": "add", "a": 1})
    assert await parent.until(1) == [{"id": 9, "result": 2}]
    assert len(caplog.records) == 7


async def test_a_line_without_end_takes_no_memory(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    parent = make(add=add)
    piece = b"x" * 65536
    for _ in range(2 * MAX_LINE // len(piece)):
        parent.say(raw=piece)
        await eventually_async(lambda: not _unread(parent.control))
    assert len(parent.control._input) <= MAX_LINE
    parent.say(raw=b"the end of it\n")
    parent.say({"id": 1, "op": "add", "a": 1})
    assert await parent.until(1) == [{"id": 1, "result": 2}]
    assert [record.getMessage() for record in caplog.records] == [
        f"a command of more than {MAX_LINE} bytes was dropped"
    ]


def _unread(control: Control) -> bool:
    count: int = struct.unpack("i", fcntl.ioctl(control._source, termios.FIONREAD, b"\0\0\0\0"))[0]
    return count > 0


async def test_events_are_told_in_order(make: Make) -> None:
    parent = make()
    for number in range(100):
        parent.control.emit({"event": "e", "n": number, "path": b"a\xff", "why": ValueError("x")})
    heard = await parent.until(100)
    assert [event["n"] for event in heard] == list(range(100))
    assert os.fsencode(heard[0]["path"]) == b"a\xff"
    assert heard[0]["why"] == "x"


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_parent_that_does_not_read_costs_a_bounded_queue(make: Make, size: int) -> None:
    parent = make(add=add)
    control = parent.control
    for number in range(3 * MAX_QUEUED):
        control.emit({"event": "e", "n": number, "text": "x" * size})
        assert len(control._queue) <= MAX_QUEUED
        assert control._queued <= MAX_QUEUED_BYTES
    lost = control.dropped
    assert lost > 0
    await eventually_async(lambda: parent.read() and parent.heard[-1]["event"] == "dropped")
    assert parent.heard.pop() == {"event": "dropped", "count": lost}
    assert [event["n"] for event in parent.heard] == list(range(3 * MAX_QUEUED - lost))
    assert not control._queue
    control.emit({"event": "after"})
    parent.say({"id": 1, "op": "add", "a": 1})
    assert (await parent.until(len(parent.heard) + 2))[-2:] == [{"event": "after"}, {"id": 1, "result": 2}]


async def test_the_end_of_input_is_told_once(make: Make) -> None:
    parent = make(add=add)
    parent.close(parent.stdin)
    await parent.ended.wait()
    parent.control.emit({"event": "still"})
    assert await parent.until(1) == [{"event": "still"}]


async def test_a_broken_line_is_an_end(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    parent = make()
    results: list[Any] = [InterruptedError(), BlockingIOError(), OSError(5, "broken")]

    def read(fd: int, size: int) -> bytes:
        raise results.pop(0)

    monkeypatch.setattr(os, "read", read)
    for _ in range(3):
        parent.control._readable()
    assert parent.ended.is_set()
    assert "the control line broke" in caplog.text


def fill(parent: Parent) -> None:
    """Until the pipe takes no more."""
    while not parent.control._writing:
        parent.control.emit({"event": "e", "text": "x" * 10_000})


async def test_nobody_to_tell(make: Make) -> None:
    parent = make()
    parent.close(parent.stdout)
    for _ in range(3):
        parent.control.emit({"event": "e"})
    assert not parent.control._queue
    full = make()
    fill(full)
    full.close(full.stdout)
    await eventually_async(lambda: not full.control._open)
    assert not full.control._writing


async def test_closing_says_what_can_be_said_and_drops_what_is_under_way(make: Make) -> None:
    started = asyncio.Event()

    def for_ever() -> Awaitable[None]:
        started.set()
        return asyncio.get_running_loop().create_future()

    parent = make(for_ever=for_ever)
    parent.say({"id": 1, "op": "for_ever"})
    await started.wait()
    fill(parent)
    (task,) = parent.control._tasks
    parent.control.close()
    assert not parent.control._writing
    await asyncio.wait((task,))
    assert task.cancelled()

"""The driver message by message: replies that nobody takes, the end, and what comes after it."""

from __future__ import annotations

import asyncio
import errno
import os
from struct import pack, unpack_from
from typing import Any

import pytest

from jupyter_wsfuse.errors import os_error
from tests.fuse.bench import (
    CREATE,
    INTERRUPT,
    LOOKUP,
    OPEN,
    OPENDIR,
    READ,
    READDIRPLUS,
    STATFS,
    Bench,
    MakeBench,
    errors,
)
from tests.fuse.kernel import init, message

# --- replies that nobody takes -------------------------------------------------------------------------------------


async def settle(bench: Bench) -> None:
    """Until everything sent so far has been dealt with."""
    assert (await bench.ask(STATFS, unique=0xFFFE))[0] == 0


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (LOOKUP, b"file\0"),
        (OPEN, bytes(8)),
        (CREATE, pack("=IIII", os.O_RDWR, 0o644, 0, 0) + b"new\0"),
        (51, pack("=IIII", os.O_RDWR, 0o644, 0, 0) + b"/\0"),
        (OPENDIR, bytes(8)),
        (READDIRPLUS, pack("=QQIIQII", 0, 2, 4096, 0, 0, 0, 0)),
    ],
    ids=["lookup", "open", "create", "tmpfile", "opendir", "readdirplus"],
)
async def test_what_the_kernel_does_not_take_is_given_back(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    opcode: int,
    body: bytes,
) -> None:
    await bench.create()
    handles = dict(bench.fs.handles)
    lookups = {node.number: node.lookups for node in bench.fs.nodes.values()}
    bench.fail_writes(monkeypatch, errno.ENOENT)
    bench.device.send(message(opcode, body, unique=50, node=1))
    await settle(bench)
    assert bench.fs.handles == handles
    assert {node.number: node.lookups for node in bench.fs.nodes.values() if node.lookups} == {
        number: count for number, count in lookups.items() if count
    }
    assert 50 not in bench.fs.answered
    assert errors(caplog) == []


async def test_a_negative_entry_holds_nothing(bench: Bench) -> None:
    bench.fs.ttl = 1.0
    error, body = await bench.ask(LOOKUP, b"nobody\0")
    assert error == 0
    assert unpack_from("=QQQ", body) == (0, 0, 1)


async def test_a_reply_that_the_kernel_refuses_becomes_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.fail_writes(monkeypatch, errno.EINVAL)
    assert await bench.ask(STATFS) == (errno.EIO, b"")
    assert bench.fs.answered == []
    assert errors(caplog) == ["no reply of 80 bytes could be written: [Errno 22] Invalid argument"]


async def test_an_error_that_the_kernel_refuses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.fail_writes(monkeypatch, errno.EINVAL, errno.EINVAL)
    bench.device.send(message(STATFS, unique=50))
    await settle(bench)
    assert errors(caplog)[1] == "error 5 could not be written: [Errno 22] Invalid argument"


async def test_nothing_is_answered_before_the_log_is_safe(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    fail = [os_error(errno.ENOSPC)]

    def before_reply() -> None:
        if fail:
            raise fail.pop()

    bench = await make_bench(before_reply=before_reply)
    assert await bench.ask(STATFS) == (errno.EIO, b"")
    assert "No space left" in errors(caplog)[0]


# --- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "aborted"), [(errno.ENODEV, False), (errno.ECONNABORTED, True)])
async def test_unmounted(bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int, aborted: bool) -> None:
    real = os.readv
    say = [errno.EINTR, errno.ENOENT, number]

    def readv(fd: int, buffers: Any) -> int:
        if fd == bench.device.fd and say:
            raise os_error(say.pop(0))
        return real(fd, buffers)

    await bench.read_gated()
    monkeypatch.setattr("jupyter_wsfuse.fuse.native.os.readv", readv)
    bench.device.send(message(STATFS))
    assert bench.task is not None
    await bench.task
    assert bench.driver.aborted is aborted
    assert await bench.reply() == (100, -errno.EIO, b"")


async def test_a_descriptor_that_is_no_device(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def readv(fd: int, buffers: Any) -> int:
        raise os_error(errno.EPERM)

    monkeypatch.setattr("jupyter_wsfuse.fuse.native.os.readv", readv)
    bench.device.send(message(STATFS))
    assert bench.task is not None
    with pytest.raises(PermissionError):
        await bench.task


async def test_stop_waits_for_what_runs(bench: Bench) -> None:
    await bench.read_gated()
    stopping = asyncio.create_task(bench.driver.stop())
    await asyncio.sleep(0)
    bench.device.send(message(STATFS, unique=200))
    bench.fs.gates["read"].set()
    assert await bench.reply() == (100, 0, b"data")
    await stopping
    assert bench.task is not None
    await bench.task
    assert bench.device.received() is None


async def test_stop_of_an_idle_driver(bench: Bench) -> None:
    await bench.driver.stop()
    await bench.driver.stop()
    assert bench.task is not None
    await bench.task


async def test_a_dropped_request_answers_by_itself(bench: Bench) -> None:
    await bench.read_gated()
    assert bench.task is not None
    bench.task.cancel()
    await asyncio.wait([bench.task])
    assert await bench.reply() == (100, -errno.EIO, b"")


async def test_invalidations_go_through_the_notifier(bench: Bench) -> None:
    assert bench.fs.invalidator is bench.driver
    bench.driver.inval_node(5)
    bench.driver.inval_entry(1, b"name")
    await bench.driver.settled()
    assert bench.device.received() == (0, 2, pack("=Qqq", 5, 0, 0))
    assert bench.device.received() == (0, 3, pack("=QII", 1, 4, 0) + b"name\0")


# --- a successor ---------------------------------------------------------------------------------------------------


async def test_successor_asks_for_what_was_left(bench: Bench) -> None:
    bench.device.send(init())
    await bench.reply()
    await bench.read_gated()
    assert bench.driver.abandon() == [100]
    assert bench.task is not None
    await bench.task
    assert bench.device.received() is None
    bench.driver = bench.make(state=bench.driver.state)
    await bench.start()
    assert await bench.reply() == (0, 7, b"")
    bench.fs.gates.clear()
    handle = next(iter(bench.fs.handles))
    body = pack("=QQIIQII", handle, 0, 4096, 0, 0, 0, 0)
    bench.device.send(message(READ, body, unique=1 << 63 | 100, node=2))
    assert await bench.reply() == (1 << 63 | 100, 0, b"data")
    assert bench.fs.answered[-1] == 100


async def test_successor_on_a_kernel_that_does_not_send_again(
    make_bench: MakeBench, monkeypatch: Any
) -> None:
    """Everything below the first number it sees was the predecessor's: EIO, harmless where nobody waits."""
    monkeypatch.setattr("jupyter_wsfuse.fuse.native._ORPHANS", 3)
    bench = await make_bench(
        state={"minor": 31, "flags": 0, "max_write": 1 << 20, "max_pages": 256}, before_reply=None
    )
    bench.fail_writes(monkeypatch, 0, errno.ENOENT)
    bench.device.send(message(INTERRUPT, pack("=Q", 60), unique=61))
    assert await bench.reply() == (60, -errno.EINTR, b"")
    bench.device.send(message(STATFS, unique=100))
    assert [(await bench.reply())[:2] for _ in range(3)] == [(96, -5), (98, -5), (100, 0)]
    assert (await bench.ask(STATFS, unique=102))[0] == 0

"""The driver message by message: negotiation, one request and its one reply, interrupts."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from struct import pack, unpack_from
from typing import Any

import pytest

from jupyter_wsfuse.errors import MountError, TransportError, os_error
from jupyter_wsfuse.fuse import abi
from jupyter_wsfuse.fuse.interface import Caller
from jupyter_wsfuse.fuse.native import DriverOptions
from jupyter_wsfuse.protocol.messages import Attr
from tests.fuse.bench import (
    BATCH_FORGET,
    COPY,
    COPY_64,
    DESTROY,
    FORGET,
    GETATTR,
    GETATTR_BODY,
    GETXATTR,
    INTERRUPT,
    IOCTL,
    LOOKUP,
    OPENDIR,
    POLL,
    READ,
    READDIR,
    READDIRPLUS,
    READLINK,
    STATFS,
    SYNCFS,
    WRITE,
    Bench,
    MakeBench,
    errors,
)
from tests.fuse.kernel import GID, PID, UID, init, message

# --- INIT ----------------------------------------------------------------------------------------------------------


async def test_init(bench: Bench) -> None:
    bench.device.send(init())
    unique, error, body = await bench.reply()
    assert (unique, error, len(body)) == (2, 0, 64)
    major, minor, readahead, flags, background, congestion, max_write, gran, pages, _, flags2 = unpack_from(
        "=IIIIHHIIHHI", body
    )
    assert (major, minor, max_write, gran) == (7, 45, 1 << 20, 1)
    assert readahead >= 131072
    assert (background, congestion) == (512, 384)
    assert pages * os.sysconf("SC_PAGESIZE") == 1 << 20
    assert flags & 1 << 30
    assert flags2 & 1 << 7
    assert not flags & (abi.WRITEBACK_CACHE | abi.DONT_MASK | abi.SETXATTR_EXT)
    assert bench.states == [bench.driver.state]
    assert bench.driver.state == {
        "minor": 45,
        "flags": flags | flags2 << 32,
        "max_write": 1 << 20,
        "max_pages": pages,
    }


async def test_init_takes_only_what_the_kernel_has(make_bench: MakeBench) -> None:
    bench = await make_bench(options=DriverOptions(refuse=abi.READDIRPLUS_AUTO, max_background=8))
    bench.device.send(init(minor=31, flags=abi.BIG_WRITES | abi.READDIRPLUS_AUTO | abi.WRITEBACK_CACHE))
    _, error, body = await bench.reply()
    assert error == 0
    assert unpack_from("=IIIIHH", body) == (7, 31, 64 << 20, abi.BIG_WRITES, 8, 6)


async def test_directories_that_are_listed_without_being_opened(make_bench: MakeBench) -> None:
    """Opening is answered once, in a way that the kernel remembers."""
    bench = await make_bench(options=DriverOptions(no_opendir=True))
    bench.device.send(init(flags=abi.NO_OPENDIR_SUPPORT))
    await bench.reply()
    bench.device.send(message(OPENDIR, bytes(8), unique=4))
    assert (await bench.reply())[:2] == (4, -errno.ENOSYS)


async def test_a_kernel_that_has_to_open_directories(make_bench: MakeBench) -> None:
    bench = await make_bench(options=DriverOptions(no_opendir=True))
    bench.device.send(init(flags=0))
    await bench.reply()
    bench.device.send(message(OPENDIR, bytes(8), unique=4))
    assert (await bench.reply())[1] != -errno.ENOSYS


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 45), (8, 0)])
async def test_a_kernel_too_old(bench: Bench, major: int, minor: int) -> None:
    bench.device.send(init(major=major, minor=minor))
    assert await bench.reply() == (2, -errno.EPROTO, b"")
    assert bench.task is not None
    with pytest.raises(MountError, match=rf"FUSE {major}\.{minor}; Linux 5.2 or later"):
        await bench.task
    assert bench.states == []


async def test_init_that_cannot_be_recorded(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    def on_init(state: dict[str, int]) -> None:
        raise RuntimeError("no log")

    bench = await make_bench(on_init=on_init)
    bench.device.send(init())
    bench.device.send(message(STATFS, unique=4))
    assert (await bench.reply())[0] == 4
    assert "Init 2" in errors(caplog)[0]


async def test_init_without_anybody_who_wants_to_know(make_bench: MakeBench) -> None:
    bench = await make_bench(on_init=None, before_reply=None)
    bench.device.send(init())
    assert (await bench.reply())[:2] == (2, 0)
    assert await bench.ask(99, unique=4) == (errno.ENOSYS, b"")


# --- one request, one reply ----------------------------------------------------------------------------------------


async def test_a_request_and_who_asked(bench: Bench) -> None:
    callers: list[Caller] = []

    async def getattr_(caller: Caller, node: int, handle: int) -> tuple[Attr, float]:
        callers.append(caller)
        return bench.fs.attr(bench.fs.root), 0.0

    bench.fs.getattr = getattr_  # type: ignore[method-assign]
    error, body = await bench.ask(GETATTR, GETATTR_BODY, unique=1 << 63 | 6)
    assert (error, len(body)) == (0, 104)
    assert callers == [Caller(UID, GID, PID, 6)]
    assert bench.fs.answered == [6]
    assert bench.flushed == 1


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (os_error(errno.ENOENT), errno.ENOENT),
        (TransportError("lost"), errno.EIO),
        (TimeoutError(), errno.ETIMEDOUT),
        (os_error(errno.ENOSYS), errno.EOPNOTSUPP),
        (OSError(5000, "no such number"), errno.EIO),
        (OSError("no number at all"), errno.EIO),
    ],
)
async def test_errors(bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception, number: int) -> None:
    async def statfs(caller: Caller, node: int) -> Any:
        raise error

    bench.fs.statfs = statfs  # type: ignore[method-assign]
    assert await bench.ask(STATFS) == (number, b"")
    assert bench.fs.answered == [2]
    assert errors(caplog) == []


async def test_a_bug_is_logged_and_answered(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def statfs(caller: Caller, node: int) -> Any:
        raise ZeroDivisionError

    bench.fs.statfs = statfs  # type: ignore[method-assign]
    assert await bench.ask(STATFS) == (errno.EIO, b"")
    assert errors(caplog) == [f"StatFs 2: node=1 uid={UID} gid={GID} pid={PID}"]


async def test_an_operation_that_returns_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def readlink(caller: Caller, node: int) -> Any:
        return None

    bench.fs.readlink = readlink  # type: ignore[method-assign]
    assert await bench.ask(READLINK) == (errno.EIO, b"")


@pytest.mark.parametrize("opcode", [POLL, 37, 48, 4711])
async def test_what_we_do_not_have(bench: Bench, opcode: int) -> None:
    assert await bench.ask(opcode, bytes(64)) == (errno.ENOSYS, b"")


async def test_ioctl_and_destroy(bench: Bench) -> None:
    assert await bench.ask(IOCTL, bytes(32)) == (errno.ENOTTY, b"")
    assert await bench.ask(DESTROY) == (0, b"")


async def test_syncfs(bench: Bench) -> None:
    assert await bench.ask(SYNCFS, bytes(8)) == (0, b"")
    assert bench.fs.calls == [("syncfs",)]


async def test_rename_of_old(bench: Bench) -> None:
    await bench.create(b"old")
    assert await bench.ask(12, pack("=Q", 1) + b"old\0new\0") == (0, b"")
    assert list(bench.fs.root.names) == [b"new"]


@pytest.mark.parametrize(("opcode", "size", "most"), [(COPY, 8, 0x7FFFF000), (COPY_64, 8, 1 << 40)])
async def test_copy_file_range(bench: Bench, opcode: int, size: int, most: int) -> None:
    lengths: list[int] = []

    async def copy(*arguments: Any) -> int:
        lengths.append(arguments[-1])
        return 123

    bench.fs.copy_file_range = copy  # type: ignore[method-assign]
    error, body = await bench.ask(opcode, pack("=QQQQQQQ", 1, 0, 2, 3, 0, 1 << 40, 0))
    assert (error, body) == (0, pack("=Q", 123))
    assert lengths == [most]


async def test_large_replies(bench: Bench) -> None:
    node, handle = await bench.create()
    data = os.urandom(1 << 20)
    assert await bench.ask(WRITE, pack("=QQIIQII", handle, 0, 1 << 20, 0, 0, 0, 0) + data, node=node) == (
        0,
        pack("=II", 1 << 20, 0),
    )
    for size in (1, 4095, 4096, 1 << 20):
        body = pack("=QQIIQII", handle, 0, size, 0, 0, 0, 0)
        assert await bench.ask(READ, body, node=node) == (0, data[:size])


async def test_forget(bench: Bench) -> None:
    node, _ = await bench.create()
    other, _ = await bench.create(b"other")
    assert bench.fs.nodes[node].lookups == 1
    bench.device.send(message(FORGET, pack("=Q", 1), node=node))
    bench.device.send(message(BATCH_FORGET, pack("=IIQQ", 1, 0, other, 1)))
    assert (await bench.ask(STATFS, unique=4))[0] == 0
    assert (bench.fs.nodes[node].lookups, bench.fs.nodes[other].lookups) == (0, 0)


async def test_a_forget_that_fails_harms_nobody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.device.send(message(FORGET, pack("=Q", 1), node=999))
    assert (await bench.ask(STATFS, unique=4))[0] == 0
    assert "Forget 2: node=999" in errors(caplog)[0]


async def test_malformed_requests(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert await bench.ask(GETATTR, b"short") == (errno.EIO, b"")
    assert "GETATTR of 45 bytes" in errors(caplog)[0]
    bench.device.send(b"rubbish")
    assert await bench.reply() == (0, -errno.EIO, b"")


async def test_requests_are_logged_for_debugging(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "jupyter_wsfuse.fuse.native")
    bench = await make_bench()
    assert (await bench.ask(LOOKUP, b"nobody\0"))[0] == errno.ENOENT
    lines = [record.message for record in caplog.records if record.name == "jupyter_wsfuse.fuse.native"]
    assert lines[0] == f"Lookup 2: node=1 uid={UID} gid={GID} pid={PID} name='nobody'"
    assert lines[1].startswith("Lookup 2: [Errno 2]")


async def test_a_busy_kernel_does_not_starve_the_loop(bench: Bench) -> None:
    turns = 0

    async def statfs(caller: Caller, node: int) -> Any:
        raise os_error(errno.EPERM)

    bench.fs.statfs = statfs  # type: ignore[method-assign]
    for number in range(100):
        bench.device.send(message(STATFS, unique=2 * number + 2))
    while len(bench.fs.answered) < 100:
        turns += 1
        await asyncio.sleep(0)
    assert turns > 3


# --- directories and attributes ------------------------------------------------------------------------------------


async def test_readdir_asks_for_as_many_as_may_fit_and_gives_back_the_rest(bench: Bench) -> None:
    for number in range(10):
        await bench.create(b"%03d" % number * 80)
    _, reply = await bench.ask(OPENDIR, bytes(8))
    (handle,) = unpack_from("=Q", reply)
    error, listing = await bench.ask(READDIRPLUS, pack("=QQIIQII", handle, 2, 1800, 0, 0, 0, 0))
    assert error == 0
    assert len(listing) == 4 * (128 + 24 + 240)
    assert [node.lookups for node in bench.fs.nodes.values()][1:] == [2] * 4 + [1] * 6
    error, listing = await bench.ask(READDIR, pack("=QQIIQII", handle, 12, 4096, 0, 0, 0, 0))
    assert (error, listing) == (0, b"")


async def test_readdir_with_room_for_nothing(bench: Bench) -> None:
    await bench.create(b"name" * 50)
    _, reply = await bench.ask(OPENDIR, bytes(8))
    body = pack("=QQIIQII", unpack_from("=Q", reply)[0], 2, 64, 0, 0, 0, 0)
    assert await bench.ask(READDIR, body) == (errno.EINVAL, b"")


async def test_sizes_of_attributes(bench: Bench) -> None:
    bench.fs.root.xattrs[b"user.k"] = b"value"
    for size, expected in [
        (0, (0, pack("=II", 5, 0))),
        (5, (0, b"value")),
        (100, (0, b"value")),
        (4, (errno.ERANGE, b"")),
    ]:
        assert await bench.ask(GETXATTR, pack("=II", size, 0) + b"user.k\0") == expected


# --- interrupts ----------------------------------------------------------------------------------------------------


async def test_interrupt_of_a_running_request(bench: Bench) -> None:
    await bench.read_gated()
    bench.device.send(message(INTERRUPT, pack("=Q", 100), unique=101))
    assert await bench.reply() == (100, -errno.EINTR, b"")
    assert bench.fs.interrupted == [100]


async def test_interrupt_of_a_request_that_was_sent_again(bench: Bench) -> None:
    await bench.read_gated(unique=100)
    bench.device.send(message(INTERRUPT, pack("=Q", 1 << 63 | 100), unique=1 << 63 | 101))
    assert await bench.reply() == (100, -errno.EINTR, b"")


async def test_interrupt_before_its_target(bench: Bench) -> None:
    """EAGAIN makes the kernel ask again."""
    assert await bench.ask(INTERRUPT, pack("=Q", 100), unique=101) == (errno.EAGAIN, b"")
    await bench.read_gated()
    bench.device.send(message(INTERRUPT, pack("=Q", 100), unique=101))
    assert await bench.reply() == (100, -errno.EINTR, b"")


async def test_interrupt_after_its_target(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await bench.ask(STATFS, unique=100))[0] == 0
    bench.fail_writes(monkeypatch, errno.ENOENT)  # the kernel has forgotten both
    bench.device.send(message(INTERRUPT, pack("=Q", 100), unique=101))
    assert (await bench.ask(STATFS, unique=102))[0] == 0
    assert bench.fs.interrupted == []


async def test_after_an_answer_it_stays_awake_for_what_comes_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    poll = bench.driver._poll
    monkeypatch.setattr(poll, "expect", lambda: seen.append("expect"))
    monkeypatch.setattr(poll, "happened", lambda: seen.append("happened"))
    for unique in (4, 6):
        bench.device.send(message(STATFS, unique=unique))
        await bench.reply()
    assert seen == 2 * ["happened", "expect"]

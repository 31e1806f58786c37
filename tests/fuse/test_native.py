"""The driver on a pair of sockets: what the kernel would see, message by message."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from struct import pack, unpack_from
from typing import Any

import pytest

from jupyter_wsfuse.errors import MountError, TransportError, os_error
from jupyter_wsfuse.fuse import abi
from jupyter_wsfuse.fuse.interface import Caller
from jupyter_wsfuse.fuse.native import DriverOptions, NativeDriver
from jupyter_wsfuse.protocol.messages import Attr
from tests.fuse.kernel import GID, PID, UID, Device, init, message
from tests.fuse.memfs import MemFs

LOOKUP, FORGET, GETATTR, READLINK, MKDIR, OPEN, READ, WRITE, STATFS = 1, 2, 3, 5, 9, 14, 15, 16, 17
RELEASE, GETXATTR, OPENDIR, READDIR, CREATE, INTERRUPT, DESTROY, IOCTL, POLL = (
    18,
    22,
    27,
    28,
    35,
    36,
    38,
    39,
    40,
)
BATCH_FORGET, READDIRPLUS, COPY, SYNCFS, COPY_64 = 42, 44, 47, 50, 53
GETATTR_BODY = pack("=IIQ", 0, 0, 0)


class Bench:
    """A driver that runs on a fake device, and what to do with it."""

    def __init__(self, **arguments: Any) -> None:
        self.device = Device()
        self.fs = MemFs()
        self.states: list[dict[str, int]] = []
        self.flushed = 0
        self.arguments = {"before_reply": self._flush, "on_init": self.states.append, **arguments}
        self.driver = self.make()
        self.task: asyncio.Task[None] | None = None

    def make(self, **arguments: Any) -> NativeDriver:
        return NativeDriver(self.device.fd, self.fs, **{**self.arguments, **arguments})

    def _flush(self) -> None:
        self.flushed += 1

    async def start(self) -> None:
        self.task = asyncio.create_task(self.driver.run())
        await asyncio.sleep(0)

    async def reply(self) -> tuple[int, int, bytes]:
        """The next reply, waited for."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self.device.kernel, ready.set)
        try:
            while (found := self.device.received()) is None:
                ready.clear()
                await asyncio.wait_for(ready.wait(), 30)
        finally:
            loop.remove_reader(self.device.kernel)
        return found

    async def ask(
        self, opcode: int, body: bytes = b"", *, unique: int = 2, node: int = 1
    ) -> tuple[int, bytes]:
        """(errno, body) of the reply to this one request."""
        self.device.send(message(opcode, body, unique=unique, node=node))
        answered, error, reply = await self.reply()
        assert answered == unique
        return -error, reply

    async def create(self, name: bytes = b"file", *, unique: int = 2) -> tuple[int, int]:
        """(node, handle) of a new open file."""
        error, reply = await self.ask(
            CREATE, pack("=IIII", os.O_RDWR, 0o644, 0, 0) + name + b"\0", unique=unique
        )
        assert error == 0
        return unpack_from("=Q", reply)[0], unpack_from("=Q", reply, 128)[0]

    async def read_gated(self, unique: int = 100) -> None:
        """A READ that the file system is holding back."""
        node, handle = await self.create(unique=unique - 2)
        self.fs.nodes[node].data[:] = b"data"
        self.fs.gates["read"] = asyncio.Event()
        self.device.send(
            message(READ, pack("=QQIIQII", handle, 0, 4096, 0, 0, 0, 0), unique=unique, node=node)
        )
        await self.fs.reached("read").wait()

    def fail_writes(self, monkeypatch: pytest.MonkeyPatch, *errnos: int) -> None:
        """The next writes to the device fail like this."""
        left = list(errnos)
        real = {"write": os.write, "writev": os.writev}

        def fake(name: str) -> Callable[..., int]:
            def call(fd: int, data: Any) -> int:
                if fd == self.device.fd and left and (number := left.pop(0)):
                    raise os_error(number)
                return real[name](fd, data)

            return call

        for name in real:
            monkeypatch.setattr(f"jupyter_wsfuse.fuse.native.os.{name}", fake(name))

    async def close(self) -> None:
        if self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        self.device.close()


MakeBench = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def make_bench() -> AsyncIterator[MakeBench]:
    made: list[Bench] = []

    async def make(**arguments: Any) -> Bench:
        made.append(Bench(**arguments))
        await made[-1].start()
        return made[-1]

    yield make
    for one in made:
        await one.close()


@pytest.fixture
async def bench(make_bench: MakeBench) -> Bench:
    return await make_bench()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


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

"""The driver under a real mount: locks, signals, notifications, take-over, the end."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jupyter_wsfuse.errors import MountError
from jupyter_wsfuse.fuse import abi, device
from jupyter_wsfuse.fuse.device import MountOptions
from jupyter_wsfuse.fuse.native import DriverOptions, NativeDriver
from tests.fuse.conftest import Mount
from tests.fuse.memfs import MemFs
from tests.fuse.nobody import Nobody
from tests.fuse.programs import HOLD, WAIT, end, fails, said, script
from tests.helpers.unprivileged import NOBODY

pytestmark = pytest.mark.mount
MakeMount = Callable[..., Awaitable[Mount]]
libc = ctypes.CDLL(None, use_errno=True)


@pytest.mark.parametrize("kind", ["flock", "posix"])
async def test_lock_between_processes(mount: Mount, kind: str) -> None:
    path = mount.path / "file"
    await mount.do(path.touch)
    holder = script(HOLD, path, kind)
    assert await said(mount, holder) == "held"

    def attempt() -> None:
        with open(path, "r+b") as file:
            (fcntl.flock if kind == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    await fails(mount, errno.EAGAIN, attempt)
    waiter = script(WAIT, path, kind)
    assert await said(mount, waiter) == "waiting"
    await mount.fs.reached("setlk").wait()
    await end(mount, holder)
    if kind == "flock":
        async with mount.fs.released:
            mount.fs.released.notify_all()
    assert await said(mount, waiter) == "held"
    await end(mount, waiter)


async def test_who_holds_the_lock(mount: Mount) -> None:
    path = mount.path / "file"
    await mount.do(path.touch)
    holder = script(HOLD, path, "posix")
    assert await said(mount, holder) == "held"

    def ask() -> int:
        with open(path, "r+b") as file:
            query = fcntl.fcntl(file, fcntl.F_GETLK, bytes([1]) + bytes(31))
            return int.from_bytes(query[24:28], sys.byteorder)

    assert await mount.do(ask) == holder.pid
    await end(mount, holder)
    assert await mount.do(ask) == 0


@pytest.mark.parametrize("kind", ["flock", "posix"])
async def test_signal_ends_the_wait_for_a_lock(mount: Mount, kind: str) -> None:
    path = mount.path / "file"
    await mount.do(path.touch)
    holder = script(HOLD, path, kind)
    assert await said(mount, holder) == "held"
    waiter = script(WAIT, path, kind)
    assert await said(mount, waiter) == "waiting"
    await mount.fs.reached("setlk").wait()
    waiter.send_signal(10)
    assert await said(mount, waiter) == "interrupted"
    assert len(mount.fs.interrupted) == 1
    await end(mount, waiter, holder)


async def test_killed_while_it_waits(mount: Mount) -> None:
    mount.fs.gates["mkdir"] = asyncio.Event()
    process = subprocess.Popen(["mkdir", mount.path / "dir"])
    await mount.fs.reached("mkdir").wait()
    process.kill()
    assert await mount.do(process.wait) == -9
    assert mount.fs.interrupted == [mount.fs.calls[-1][1]]


# --- notifications -------------------------------------------------------------------------------------------------


async def test_what_changed_behind_the_kernels_back_is_seen_when_told(make_mount: MakeMount) -> None:
    mount = await make_mount(fs=MemFs(ttl=3600.0))
    path = mount.path / "file"
    await mount.do(path.write_bytes, b"old")
    assert await mount.do(path.read_bytes) == b"old"
    node = mount.fs.child(1, b"file")
    assert node is not None
    assert (await mount.do(os.stat, path)).st_size == 3
    node.data[:] = b"newer"
    assert (await mount.do(os.stat, path)).st_size == 3
    mount.driver.inval_node(node.number)
    await mount.driver.settled()
    assert await mount.do(path.read_bytes) == b"newer"

    other = mount.fs._new(stat.S_IFREG | 0o644, 0, 0)
    other.data[:] = b"another file"
    mount.fs.root.names[b"file"] = other.number
    assert await mount.do(path.read_bytes) == b"newer"
    mount.driver.inval_entry(1, b"file")
    mount.driver.inval_entry(1, b"never heard of")
    await mount.driver.settled()
    assert await mount.do(path.read_bytes) == b"another file"

    assert not await mount.do(os.path.exists, mount.path / "late")
    mount.fs.root.names[b"late"] = other.number
    assert not await mount.do(os.path.exists, mount.path / "late")
    mount.driver.inval_entry(1, b"late")
    await mount.driver.settled()
    assert await mount.do(os.path.exists, mount.path / "late")


async def test_attributes_alone(make_mount: MakeMount) -> None:
    mount = await make_mount(fs=MemFs(ttl=3600.0))
    path = mount.path / "file"
    await mount.do(path.touch)
    node = mount.fs.child(1, b"file")
    assert node is not None
    node.mode = stat.S_IFREG | 0o751
    assert (await mount.do(os.stat, path)).st_mode != node.mode
    mount.driver.inval_node(node.number, data=False)
    await mount.driver.settled()
    assert (await mount.do(os.stat, path)).st_mode == node.mode


async def test_invalidation_waits_for_an_operation_and_not_the_other_way_round(mount: Mount) -> None:
    """The kernel holds the directory's lock until MKDIR is answered; the loop must stay free to do that."""
    mount.fs.gates["mkdir"] = asyncio.Event()
    making = asyncio.create_task(mount.do(os.mkdir, mount.path / "dir"))
    await mount.fs.reached("mkdir").wait()
    mount.driver.inval_entry(1, b"other")
    settled = asyncio.create_task(mount.driver.settled())
    await asyncio.sleep(0)
    assert not settled.done()
    mount.fs.gates["mkdir"].set()
    await making
    await settled


# --- other drivers on the same connection --------------------------------------------------------------------------


async def test_a_successor_is_sent_what_was_left(mount: Mount) -> None:
    path = mount.path / "file"
    await mount.do(path.write_bytes, b"data")
    fs = mount.fs
    fs.gates["read"] = asyncio.Event()
    opened = await mount.do(open, path, "rb")
    reading = asyncio.create_task(mount.do(opened.read))
    await fs.reached("read").wait()
    state = mount.driver.state
    (key,) = (call[1] for call in fs.calls if call[0] == "read")
    del fs.gates["read"]
    await mount.succeed(state=state)
    assert await reading == b"data"
    await mount.do(opened.close)
    assert [call[1] for call in fs.calls if call[0] == "read"][:2] == [key, key]
    assert fs.answered.count(key) == 1
    assert await mount.do(os.listdir, mount.path) == ["file"]


async def test_a_lock_is_waited_for_through_a_take_over(mount: Mount) -> None:
    path = mount.path / "file"
    await mount.do(path.touch)
    holder = script(HOLD, path, "posix")
    assert await said(mount, holder) == "held"
    waiter = script(WAIT, path, "posix")
    assert await said(mount, waiter) == "waiting"
    await mount.fs.reached("setlk").wait()
    mount.fs.reached("setlk").clear()
    await mount.succeed(state=mount.driver.state)
    await mount.fs.reached("setlk").wait()
    waiter.send_signal(10)
    assert await said(mount, waiter) == "interrupted"
    await end(mount, waiter, holder)


async def test_take_over_where_the_kernel_does_not_send_again(make_mount: MakeMount) -> None:
    mount = await make_mount(fs=MemFs(direct=True), driver={"options": DriverOptions(refuse=abi.HAS_RESEND)})
    path = mount.path / "file"
    await mount.do(path.write_bytes, b"data")
    mount.fs.gates["read"] = asyncio.Event()
    reading = asyncio.create_task(mount.do(path.read_bytes))
    await mount.fs.reached("read").wait()
    del mount.fs.gates["read"]
    await mount.succeed(state=mount.driver.state)
    await mount.do(os.statvfs, mount.path)  # the first request that it sees
    with pytest.raises(OSError, match="Input/output error"):
        await reading
    assert await mount.do(path.read_bytes) == b"data"


# --- the end -------------------------------------------------------------------------------------------------------


async def test_unmount_ends_the_driver(mount: Mount) -> None:
    await mount.do(os.listdir, mount.path)
    await mount.do(device.unmount, str(mount.path))
    await asyncio.wait_for(mount.task, 30)
    assert not mount.driver.aborted


async def test_lazy_unmount_with_open_files(mount: Mount) -> None:
    path = mount.path / "file"
    file = await mount.do(open, path, "w+b", buffering=0)
    with pytest.raises(MountError, match="in use"):
        await mount.do(device.unmount, str(mount.path))
    await mount.do(device.unmount, str(mount.path), lazy=True)
    await mount.do(file.write, b"still written")
    assert not mount.task.done()
    await mount.do(file.close)
    await asyncio.wait_for(mount.task, 30)
    assert bytes(mount.fs.nodes[2].data) == b"still written"


async def test_abort_when_stuck(mount: Mount) -> None:
    mount.fs.gates["mkdir"] = asyncio.Event()
    stuck = subprocess.Popen(["mkdir", mount.path / "dir"], stderr=subprocess.PIPE)
    await mount.fs.reached("mkdir").wait()
    await mount.do(device.abort, str(mount.path))
    assert b"mkdir: " in (await mount.do(stuck.communicate))[1]
    await asyncio.wait_for(mount.task, 30)
    assert mount.driver.aborted
    assert device.find_mount(str(mount.path)) is not None
    await mount.do(device.unmount, str(mount.path))


async def test_as_an_ordinary_user(nobody: Nobody, tmp_path: Path) -> None:
    """Mounted by fusermount3, used and unmounted by that user; served by this process."""
    path = f"/tmp/wsfuse-{os.getpid()}-{threading.get_native_id()}"
    os.mkdir(path)
    os.chown(path, NOBODY, NOBODY)
    try:
        fd = await asyncio.to_thread(nobody.run, lambda: device.mount(MountOptions(path, "memfs")))
        fs = MemFs(uid=NOBODY, gid=NOBODY)
        task = asyncio.create_task(NativeDriver(fd, fs).run())

        def use() -> tuple[bytes, os.stat_result]:
            Path(path, "file").write_bytes(b"mine")
            with open("/proc/thread-self/mountinfo") as table:
                assert any(f" {path} " in line for line in table)
            return Path(path, "file").read_bytes(), os.stat(f"{path}/file")

        data, found = await asyncio.to_thread(nobody.run, use)
        assert (data, found.st_uid, found.st_gid) == (b"mine", NOBODY, NOBODY)
        assert os.listdir(path) == []  # not in our namespace
        await asyncio.to_thread(nobody.run, lambda: device.unmount(path))
        await asyncio.wait_for(task, 30)
        os.close(fd)
    finally:
        os.rmdir(path)

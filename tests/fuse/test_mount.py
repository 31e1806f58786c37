"""The driver under a real mount: system calls in, the in-memory file system's state out."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.fuse import abi
from jupyter_wsfuse.fuse.native import DriverOptions
from tests.fuse.conftest import Mount
from tests.fuse.memfs import MemFs
from tests.fuse.nobody import Nobody
from tests.fuse.programs import end, fails, script

pytestmark = pytest.mark.mount
MakeMount = Callable[..., Awaitable[Mount]]
libc = ctypes.CDLL(None, use_errno=True)


async def test_what_the_kernel_agreed_to(mount: Mount) -> None:
    await mount.do(os.listdir, mount.path)
    assert mount.driver.state is not None
    assert mount.driver.state["flags"] & abi.BIG_WRITES


# --- names ---------------------------------------------------------------------------------------------------------


async def test_tree(mount: Mount) -> None:
    def work(top: str) -> list[Any]:
        os.mkdir(f"{top}/dir", 0o750)
        os.symlink("../target", f"{top}/link")
        os.mkfifo(f"{top}/fifo", 0o640)
        os.mknod(f"{top}/dir/node", stat.S_IFREG | 0o600)
        os.link(f"{top}/dir/node", f"{top}/second")
        os.rename(f"{top}/dir/node", f"{top}/first")
        os.unlink(f"{top}/second")
        os.mkdir(f"{top}/gone")
        os.rmdir(f"{top}/gone")
        return [
            sorted(os.listdir(top)),
            os.readlink(f"{top}/link"),
            stat.filemode(os.stat(f"{top}/dir").st_mode),
            stat.filemode(os.stat(f"{top}/fifo").st_mode),
            os.stat(f"{top}/first").st_nlink,
            os.stat(top).st_nlink,
        ]

    old = os.umask(0)
    try:
        assert await mount.do(work, str(mount.path)) == [
            ["dir", "fifo", "first", "link"], "../target", "drwxr-x---", "prw-r-----", 1, 3,
        ]  # fmt: skip
    finally:
        os.umask(old)


async def test_rename_flags(mount: Mount) -> None:
    one, two = mount.path / "one", mount.path / "two"
    await mount.do(one.write_bytes, b"1")
    await mount.do(two.write_bytes, b"22")

    def renameat2(flags: int) -> None:
        if libc.renameat2(-100, bytes(one), -100, bytes(two), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    await fails(mount, errno.EEXIST, renameat2, 1)
    await mount.do(renameat2, 2)
    assert await mount.do(one.read_bytes) == b"22"
    await mount.do(renameat2, 0)
    assert list(mount.fs.root.names) == [b"two"]


async def test_errors_arrive(mount: Mount) -> None:
    path = mount.path
    await mount.do(os.mkdir, path / "dir")
    await mount.do((path / "dir" / "file").touch)
    await fails(mount, errno.ENOENT, os.stat, path / "none")
    await fails(mount, errno.EEXIST, os.mkdir, path / "dir")
    await fails(mount, errno.ENOTEMPTY, os.rmdir, path / "dir")
    await fails(mount, errno.ENAMETOOLONG, os.mkdir, path / ("x" * 256))
    await fails(mount, errno.ENOTTY, fcntl.ioctl, await mount.do(os.open, path / "dir", os.O_RDONLY), 0x5401)


async def test_names_are_bytes(mount: Mount) -> None:
    name = b"\xff\xfe\n" + b"x" * 252
    top = bytes(mount.path)
    await mount.do(os.mkdir, top + b"/" + name)
    assert await mount.do(os.listdir, top) == [name]


async def test_large_directory(mount: Mount) -> None:
    for number in range(3000):
        node = mount.fs._new(stat.S_IFREG | 0o644, 0, 0)
        mount.fs.root.names[b"entry with a name %d" % number] = node.number
    expected = sorted(os.fsdecode(name) for name in mount.fs.root.names)
    assert sorted(await mount.do(os.listdir, mount.path)) == expected

    def sizes() -> list[str]:
        with os.scandir(mount.path) as entries:
            return sorted(entry.name for entry in entries if entry.stat().st_size == 0)

    assert await mount.do(sizes) == expected
    assert {call[0] for call in mount.fs.calls} >= {"readdirplus"}
    await mount.do(lambda: Path("/proc/sys/vm/drop_caches").write_text("2") if os.geteuid() == 0 else 0)


async def test_plain_readdir(make_mount: MakeMount) -> None:
    mount = await make_mount(
        driver={"options": DriverOptions(refuse=abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO)}
    )
    await mount.do(os.mkdir, mount.path / "dir")
    assert await mount.do(os.listdir, mount.path) == ["dir"]
    assert {call[0] for call in mount.fs.calls if call[0].startswith("readdir")} == {"readdir"}


# --- attributes ----------------------------------------------------------------------------------------------------


async def test_setattr(mount: Mount) -> None:
    path = mount.path / "file"
    await mount.do(path.write_bytes, b"0123456789")

    def work() -> None:
        os.chmod(path, 0o4755)
        os.chown(path, 11, 12)
        os.truncate(path, 4)
        os.utime(path, ns=(-1_500_000_000, 1_600_000_000_123_456_789))
        with open(path, "r+b") as file:
            os.ftruncate(file.fileno(), 5)
            os.fchmod(file.fileno(), 0o600)
        os.chown(path, -1, 13)
        os.utime(path)
        libc.utimensat(-100, bytes(path), (ctypes.c_long * 4)(7, 8, 0, 0x3FFFFFFE), 0)

    before = len(mount.fs.calls)
    now = time.time_ns()
    await mount.do(work)
    said = [call for call in mount.fs.calls[before:] if call[0] == "setattr"]
    assert [call[1] for call in said] == [
        {"mode": stat.S_IFREG | 0o4755},
        {"uid": 11, "gid": 12},
        {"size": 4},
        {"atime": -1_500_000_000, "mtime": 1_600_000_000_123_456_789},
        {"size": 5},
        {"mode": stat.S_IFREG | 0o600},
        {"gid": 13},
        {"atime": -1, "mtime": -1},
        {"atime": 7_000_000_008},
    ]
    assert said[4][2] is True  # by handle
    found = await mount.do(os.stat, path)
    assert (found.st_mode, found.st_uid, found.st_gid, found.st_size) == (stat.S_IFREG | 0o600, 11, 13, 5)
    assert found.st_atime_ns == 7_000_000_008
    assert found.st_mtime_ns >= now - 10**9


async def test_set_user_id_bits_go(make_mount: MakeMount, nobody: Nobody) -> None:
    """The kernel tells the server to drop them, instead of asking for every write whether there are any."""
    mount = await make_mount(allow_other=True)
    path = mount.path / "file"
    await mount.do(path.write_bytes, b"data")
    node = mount.fs.child(1, b"file")
    assert node is not None

    def write() -> None:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)

    node.mode = stat.S_IFREG | 0o6777
    await mount.do(nobody.run, write)
    assert node.mode == stat.S_IFREG | 0o777
    node.mode = stat.S_IFREG | 0o6777
    await mount.do(nobody.run, lambda: os.truncate(path, 1))
    assert node.mode == stat.S_IFREG | 0o777
    await mount.do(nobody.run, lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
    assert mount.fs.calls[-3:][0][2] is True
    assert not node.data


async def test_birth_time(mount: Mount) -> None:
    await mount.do((mount.path / "file").touch)
    node = mount.fs.child(1, b"file")
    assert node is not None
    node.btime = 86_400 * 10**9
    node.rdev = os.makedev(1, 3)
    done = await mount.do(
        subprocess.run,
        ["stat", "-c", "%W %i", mount.path / "file"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["86400", str(node.number + 1000)]

    def fstatx() -> int:
        buffer = ctypes.create_string_buffer(256)
        with open(mount.path / "file") as file:
            assert libc.statx(file.fileno(), b"", 0x1000, 0xFFF, buffer) == 0
        return int.from_bytes(buffer.raw[80:88], sys.byteorder)

    assert await mount.do(fstatx) == 86_400


async def test_extended_attributes(mount: Mount) -> None:
    path = mount.path / "file"
    await mount.do(path.touch)
    await mount.do(os.setxattr, path, "user.one", b"\0" * 5000)
    await mount.do(os.setxattr, path, "user.two", b"")
    await fails(mount, errno.EEXIST, os.setxattr, path, "user.one", b"", os.XATTR_CREATE)
    await fails(mount, errno.ENODATA, os.setxattr, path, "user.none", b"", os.XATTR_REPLACE)
    assert await mount.do(os.getxattr, path, "user.one") == b"\0" * 5000
    assert await mount.do(os.getxattr, path, "user.two") == b""
    assert await mount.do(os.listxattr, path) == ["user.one", "user.two"]
    await mount.do(os.removexattr, path, "user.one")
    await fails(mount, errno.ENODATA, os.getxattr, path, "user.one")
    await fails(mount, errno.ENODATA, os.removexattr, path, "user.one")

    def short() -> None:
        buffer = ctypes.create_string_buffer(4)
        assert libc.getxattr(bytes(path), b"user.two", None, 0) == 0
        if libc.listxattr(bytes(path), buffer, 4) < 0:
            raise OSError(ctypes.get_errno(), "listxattr")

    await fails(mount, errno.ERANGE, short)


async def test_statvfs(mount: Mount) -> None:
    found = await mount.do(os.statvfs, mount.path)
    assert (found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail) == (1024, 1000, 600, 500)
    assert (found.f_files, found.f_ffree, found.f_namemax) == (90, 80, 255)


async def test_access(make_mount: MakeMount, nobody: Nobody) -> None:
    mount = await make_mount(allow_other=True)
    await mount.do((mount.path / "file").touch)
    await mount.do(os.chmod, mount.path / "file", 0o444)
    assert not await mount.do(nobody.run, lambda: os.access(mount.path / "file", os.W_OK))
    assert await mount.do(nobody.run, lambda: os.access(mount.path / "file", os.R_OK))


async def test_kernel_checks_modes_if_asked(make_mount: MakeMount, nobody: Nobody) -> None:
    mount = await make_mount(allow_other=True, default_permissions=True)
    await mount.do((mount.path / "file").touch)
    await mount.do(os.chmod, mount.path / "file", 0o600)
    with pytest.raises(PermissionError):
        await mount.do(nobody.run, lambda: os.open(mount.path / "file", os.O_RDONLY))


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fs", [{"ttl": 0.0}, {"ttl": 60.0}, {"direct": True}], ids=["uncached", "cached", "direct"]
)
async def test_contents(make_mount: MakeMount, fs: dict[str, Any]) -> None:
    mount = await make_mount(fs=MemFs(**fs))
    path = mount.path / "file"
    data = os.urandom(5_000_001)
    await mount.do(path.write_bytes, data)
    assert await mount.do(path.read_bytes) == data

    def elsewhere() -> bytes:
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"inside", 1_048_570)
            os.lseek(file.fileno(), 0, os.SEEK_END)
            file.write(b"end")
            os.fsync(file.fileno())
            os.fdatasync(file.fileno())
            return os.pread(file.fileno(), 100, 5_000_001) + os.pread(file.fileno(), 6, 1_048_570)

    assert await mount.do(elsewhere) == b"endinside"
    assert [call for call in mount.fs.calls if call[0] == "fsync"] == [("fsync", False), ("fsync", True)]
    assert [call[0] for call in mount.fs.calls].count("flush") >= 2


MAP = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
    mapped[4096:4100] = b"here"
    mapped.flush()
"""


async def test_shared_mapping(make_mount: MakeMount) -> None:
    """In a process of its own: a page fault waits with the interpreter's lock held, which we need to answer it."""
    mount = await make_mount(fs=MemFs(direct=True))
    path = mount.path / "file"
    await mount.do(path.write_bytes, b"x" * 8192)
    await end(mount, script(MAP, path))
    assert await mount.do(path.read_bytes) == b"x" * 4096 + b"here" + b"x" * 4092


async def test_truncation_is_part_of_open(mount: Mount) -> None:
    path = mount.path / "file"
    await mount.do(path.write_bytes, b"data")
    before = len(mount.fs.calls)
    await mount.do(lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
    calls = mount.fs.calls[before:]
    assert [call[1] & os.O_TRUNC for call in calls if call[0] == "open"] == [os.O_TRUNC]
    assert not [call for call in calls if call[0] == "setattr"]


async def test_sparse_files_and_copies_on_the_server(mount: Mount) -> None:
    def work() -> list[Any]:
        with open(mount.path / "one", "w+b", buffering=0) as one, open(mount.path / "two", "w+b") as two:
            os.posix_fallocate(one.fileno(), 0, 8192)
            os.pwrite(one.fileno(), b"data", 0)
            assert libc.fallocate(one.fileno(), 3, ctypes.c_long(0), ctypes.c_long(2)) == 0
            copied = os.copy_file_range(one.fileno(), two.fileno(), 100, 0, 50)
            return [
                os.lseek(one.fileno(), 10, os.SEEK_HOLE),
                os.lseek(one.fileno(), 10, os.SEEK_DATA),
                os.pread(one.fileno(), 4, 0),
                copied,
                os.pread(two.fileno(), 10, 50),
            ]

    assert await mount.do(work) == [8192, 10, b"\0\0ta", 100, b"\0\0ta" + b"\0" * 6]


async def test_file_without_a_name(mount: Mount) -> None:
    def work() -> bytes:
        fd = os.open(mount.path, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"nameless")
        os.link(
            f"/proc/self/fd/{fd}", mount.path / "named", src_dir_fd=fd
        )  # with a directory, it follows links
        os.close(fd)
        return (mount.path / "named").read_bytes()

    assert await mount.do(work) == b"nameless"


async def test_open_file_that_was_unlinked(mount: Mount) -> None:
    def work() -> tuple[bytes, int]:
        with open(mount.path / "file", "w+b", buffering=0) as file:
            os.unlink(mount.path / "file")
            file.write(b"still here")
            return os.pread(file.fileno(), 100, 0), os.fstat(file.fileno()).st_nlink

    assert await mount.do(work) == (b"still here", 0)


async def test_nodes_are_forgotten(mount: Mount) -> None:
    """Every count given to the kernel comes back, but for the root's, which it never took."""
    for number in range(20):
        await mount.do((mount.path / f"file{number}").write_bytes, b"x")
    await mount.do(os.listdir, mount.path)
    for number in range(20):
        await mount.do(os.unlink, mount.path / f"file{number}")
    while len(mount.fs.nodes) > 1:
        await mount.do(os.statvfs, mount.path)  # a FORGET comes with the next requests
    assert mount.fs.root.lookups == 0
    while mount.fs.handles:
        await mount.do(os.statvfs, mount.path)


async def test_directories_are_synced(mount: Mount) -> None:
    def work() -> None:
        fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)

    await mount.do(work)
    assert ("fsyncdir", False) in mount.fs.calls


async def test_poll_is_the_kernels_to_answer(mount: Mount) -> None:
    def work() -> list[tuple[int, int]]:
        with open(mount.path / "file", "w+b") as file:
            poll = select.poll()
            poll.register(file, select.POLLIN | select.POLLOUT)
            return [poll.poll(1000)[0], poll.poll(1000)[0]]

    assert {events for _, events in await mount.do(work)} == {select.POLLIN | select.POLLOUT}


async def test_file_handles_that_outlive_the_cache(mount: Mount) -> None:
    """name_to_handle_at(2), and back after the kernel has forgotten the node: a lookup of the node's own '.'."""
    if os.geteuid():
        pytest.skip("needs root")
    path = mount.path / "dir"
    await mount.do(os.mkdir, path)
    handle = ctypes.create_string_buffer(136)
    ctypes.c_uint.from_buffer(handle).value = 128

    def take() -> None:
        mount_id = ctypes.c_int()
        assert libc.name_to_handle_at(-100, bytes(path), handle, ctypes.byref(mount_id), 0) == 0

    def reopen() -> int:
        top = os.open(mount.path, os.O_RDONLY)
        Path("/proc/sys/vm/drop_caches").write_text("2")
        fd: int = libc.open_by_handle_at(top, handle, os.O_RDONLY)
        os.close(top)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        os.close(fd)
        return fd

    await mount.do(take)
    assert await mount.do(reopen) >= 0

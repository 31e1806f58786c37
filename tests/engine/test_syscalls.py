"""The system calls, compared with what Python's own functions say of the same files."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_wsfuse.engine import syscalls
from jupyter_wsfuse.protocol.messages import Attr
from tests.helpers.unprivileged import NOBODY, as_user
from tests.helpers.workspace import fails, needs_root

BAD_FD = 1 << 20


def o_path(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_NOFOLLOW)


def plain(attr: Attr) -> list[int]:
    return [
        attr.dev, attr.ino, attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.size, attr.blocks,
        attr.blksize, attr.atime, attr.mtime, attr.ctime,
    ]  # fmt: skip


def expected(s: os.stat_result) -> list[int]:
    return [
        s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_size, s.st_blocks,
        s.st_blksize, s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns,
    ]  # fmt: skip


def make_all_kinds(folder: Path) -> list[Path]:
    (folder / "file").write_bytes(b"x" * 5000)
    (folder / "dir").mkdir()
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    os.utime(folder / "file", ns=(-1_500_000_001, 5_000_000_007))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("nowait", [False, True])
def test_statx_says_what_stat_says(tmp_path: Path, nowait: bool) -> None:
    for path in [*make_all_kinds(tmp_path), Path("/dev/null")]:
        fd = o_path(path)
        attr, mount = syscalls.statx(fd, nowait=nowait)
        os.close(fd)
        assert plain(attr) == expected(os.lstat(path))
        assert not mount


def test_statx_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    fd = o_path(tmp_path)
    attr, _ = syscalls.statx(fd, b"link", syscalls.AT_SYMLINK_NOFOLLOW)
    assert stat.S_ISLNK(attr.mode)
    with fails(errno.ENOENT):
        syscalls.statx(fd, b"none")
    os.close(fd)


def test_birth_time_does_not_change(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    fd = o_path(path)
    first, _ = syscalls.statx(fd)
    os.utime(path, ns=(1, 1))
    path.write_bytes(b"more")
    second, _ = syscalls.statx(fd)
    os.close(fd)
    assert first.btime == second.btime > 1_600_000_000_000_000_000
    assert first.identity == second.identity


def test_no_birth_time_is_zero() -> None:
    fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    attr, _ = syscalls.statx(fd)
    os.close(fd)
    assert attr.btime == 0


def test_a_mount_is_told() -> None:
    fd = os.open("/", os.O_PATH)
    _, mount = syscalls.statx(fd, b"proc", syscalls.AT_SYMLINK_NOFOLLOW)
    os.close(fd)
    assert mount


def test_openat2(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    top = o_path(tmp_path)
    how = syscalls.open_how(os.O_PATH, syscalls.RESOLVE_BENEATH)
    fd = syscalls.openat2(top, b"f", how)
    assert not os.get_inheritable(fd)
    os.close(fd)
    with fails(errno.ENOENT):
        syscalls.openat2(top, b"none", how)
    with fails(errno.EXDEV):
        syscalls.openat2(top, b"..", how)
    cached = syscalls.open_how(os.O_PATH, syscalls.RESOLVE_CACHED)
    os.close(syscalls.openat2(top, b"f", cached, nowait=True))
    with pytest.raises(BlockingIOError):
        syscalls.openat2(top, b"was-never-asked-for", cached, nowait=True)
    os.close(top)


def test_numbers_of_the_other_architecture_are_the_generic_ones() -> None:
    assert syscalls.NUMBERS["aarch64"] == (437, 291, 276, 439, 61)
    header = Path("/usr/include/asm-generic/unistd.h")
    if header.exists():
        text = header.read_text()
        for name, number in syscalls.NUMBERS["aarch64"]._asdict().items():
            assert re.search(rf"#define __NR_{name} {number}\n", text)


def test_rename(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    fd = o_path(tmp_path)
    with fails(errno.EEXIST):
        syscalls.rename(fd, b"a", fd, b"b", syscalls.RENAME_NOREPLACE)
    syscalls.rename(fd, b"a", fd, b"b", syscalls.RENAME_EXCHANGE)
    assert (tmp_path / "a").read_bytes() == b"b"
    syscalls.rename(fd, b"a", fd, b"b", 0)
    assert os.listdir(tmp_path) == ["b"]
    os.close(fd)


def test_set_times(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to("nowhere")
    fd = o_path(path)
    syscalls.set_times(fd, 1_000_000_001, -2_000_000_003)
    s = os.lstat(path)
    assert (s.st_atime_ns, s.st_mtime_ns) == (1_000_000_001, -2_000_000_003)
    syscalls.set_times(fd, None, -1)
    s = os.lstat(path)
    assert s.st_atime_ns == 1_000_000_001
    assert s.st_mtime_ns > 1_600_000_000_000_000_000
    os.close(fd)


@needs_root
def test_chown_and_access(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "f"
    path.write_bytes(b"")
    path.chmod(0o640)
    fd = o_path(path)
    syscalls.chown(fd, 11, -1)
    syscalls.chown(fd, -1, 12)
    assert (path.stat().st_uid, path.stat().st_gid) == (11, 12)
    syscalls.access(fd, os.R_OK | os.W_OK)
    as_user(lambda: syscalls.access(fd, os.R_OK), gid=12)
    with fails(errno.EACCES):
        as_user(lambda: syscalls.access(fd, os.W_OK), gid=12)
    os.close(fd)


def test_space_and_file_systems(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    syscalls.fallocate(fd, 0, 0, 8192)
    assert os.fstat(fd).st_size == 8192
    syscalls.syncfs(fd)
    os.close(fd)
    fd = os.open("/proc", os.O_PATH)
    assert syscalls.file_system_type(fd) == 0x9FA0
    os.close(fd)


@pytest.mark.parametrize(
    "call",
    [
        lambda: syscalls.statx(BAD_FD),
        lambda: syscalls.statx(BAD_FD, nowait=True),
        lambda: syscalls.chown(BAD_FD, 0, 0),
        lambda: syscalls.access(BAD_FD, 0),
        lambda: syscalls.set_times(BAD_FD, 0, 0),
        lambda: syscalls.fallocate(BAD_FD, 0, 0, 1),
        lambda: syscalls.file_system_type(BAD_FD),
        lambda: syscalls.syncfs(BAD_FD),
        lambda: syscalls.read_directory(BAD_FD, 1000),
        lambda: syscalls.rename(BAD_FD, b"a", BAD_FD, b"b", 0),
    ],
)
def test_failures(call: Callable[[], object]) -> None:
    with fails(errno.EBADF):
        call()


def test_read_directory(tmp_path: Path) -> None:
    names = {bytes([i]) * 255 for i in range(1, 256) if i != ord("/")}
    for name in names:
        os.close(os.open(bytes(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    fd = os.open(tmp_path, os.O_RDONLY)
    found = []
    while batch := syscalls.read_directory(fd, 1):  # one at a time
        found += batch
    assert {entry[0] for entry in found} == names | {b".", b".."}
    assert {entry[3] for entry in found} == {4, 8}  # DT_DIR, DT_REG
    assert len(found) == len(names) + 2
    name, _, ino, _ = found[5]
    assert os.lstat(bytes(tmp_path) + b"/" + name).st_ino == ino
    # A cookie continues after its entry.
    os.lseek(fd, found[9][1], os.SEEK_SET)
    assert syscalls.read_directory(fd, 1 << 30)[0][0] == found[10][0]
    os.close(fd)


def test_threads_do_not_share_buffers(tmp_path: Path) -> None:
    wrong = []

    def look(size: int) -> None:
        path = tmp_path / str(size)
        path.write_bytes(b"x" * size)
        fd = o_path(path)
        for _ in range(2000):
            attr, _ = syscalls.statx(fd)
            if attr.size != size:
                wrong.append(attr.size)
        os.close(fd)

    threads = [threading.Thread(target=look, args=(size,)) for size in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_root
class TestCreatingAs:
    def test_files_have_their_owner_at_once(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o700)  # closed to the owner to be, and to root without its capabilities
        os.chown(tmp_path, 5, 5)
        with syscalls.creating_as(11, 12):
            os.mkdir(tmp_path / "d")
        s = os.stat(tmp_path / "d")
        assert (s.st_uid, s.st_gid) == (11, 12)
        os.mkdir(tmp_path / "e")
        assert os.stat(tmp_path / "e").st_uid == 0

    def test_set_group_id_directories_give_their_group(self, tmp_path: Path) -> None:
        os.chown(tmp_path, 0, 77)
        tmp_path.chmod(0o2755)
        with syscalls.creating_as(11, 12):
            os.mkdir(tmp_path / "d")
        s = os.stat(tmp_path / "d")
        assert (s.st_uid, s.st_gid) == (11, 77)
        assert s.st_mode & stat.S_ISGID

    def test_the_thread_is_as_before_also_after_an_error(self, tmp_path: Path) -> None:
        def capabilities() -> list[str]:
            text = Path("/proc/thread-self/status").read_text()
            return re.findall(r"^(?:Uid|Gid|Cap\w+):.*$", text, re.M)

        before = capabilities()
        with pytest.raises(ZeroDivisionError), syscalls.creating_as(11, 12):
            raise ZeroDivisionError
        assert capabilities() == before

    def test_other_users_may_not(self, tmp_path: Path) -> None:
        def attempt() -> None:
            with syscalls.creating_as(0, NOBODY):
                pytest.fail("took another user's identity")

        with fails(errno.EPERM):
            as_user(attempt)

    def test_impossible_ids(self) -> None:
        with fails(errno.EINVAL), syscalls.creating_as(0xFFFFFFFF, 0):
            pass

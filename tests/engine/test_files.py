"""Opening, reading, writing, space, copying and durability."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_wsfuse.engine import files
from jupyter_wsfuse.engine.operations import WouldBlock, execute
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.unprivileged import NOBODY, as_user
from tests.helpers.workspace import ROOT, Workspace, errno_of_call, fails, needs_root

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE, INSERT = 1, 2, 8, 16, 32
MIB = 1 << 20


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestOpen:
    def test_reading(self, ws: Workspace) -> None:
        reply = ws.run(m.Open(1, ws.ref(b"file"), os.O_RDONLY))
        assert reply.attr == ws.attr(b"file")
        assert ws.read(reply.handle, 0, 100) == b"content"
        with fails(errno.EBADF):
            ws.write(reply.handle, 0, b"x")

    def test_writing(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_WRONLY)
        assert ws.write(handle, 3, b"XY") == 2
        with fails(errno.EBADF):
            ws.read(handle, 0, 1)
        assert (ws.path / "file").read_bytes() == b"conXYnt"

    def test_flags_that_are_the_clients_kernels_are_ignored(self, ws: Workspace) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT | os.O_NOFOLLOW | os.O_DIRECTORY | 1 << 40
        handle = ws.open(b"file", flags)
        assert ws.read(handle, 1, 3) == b"ont"
        assert fcntl.fcntl(ws.context.handles.get(handle).fd, fcntl.F_GETFL) & os.O_DIRECT == 0

    def test_truncating(self, ws: Workspace) -> None:
        (ws.path / "file").chmod(0o6755)
        reply = ws.run(m.Open(1, m.Ref(b"file"), os.O_WRONLY | os.O_TRUNC))
        assert reply.attr.size == 0
        (ws.path / "file").chmod(0o6755)
        reply = ws.run(m.Open(1, m.Ref(b"file"), os.O_WRONLY | os.O_TRUNC, kill_priv=True))
        assert stat.S_IMODE(reply.attr.mode) == 0o755

    def test_privileges_stay_when_nothing_is_written(self, ws: Workspace) -> None:
        (ws.path / "file").chmod(0o6755)
        reply = ws.run(m.Open(1, m.Ref(b"file"), os.O_RDWR, kill_priv=True))
        assert stat.S_IMODE(reply.attr.mode) == 0o6755
        assert (ws.path / "file").stat().st_mode & 0o7777 == 0o6755

    @pytest.mark.parametrize(
        ("name", "number"),
        [(b"dir", errno.EISDIR), (b"link", errno.ELOOP), (b"fifo", errno.ENXIO), (b"none", errno.ENOENT)],
    )
    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
    def test_what_cannot_be_opened(self, ws: Workspace, name: bytes, number: int, flags: int) -> None:
        before = open_descriptors()
        with fails(number):
            ws.open(name, flags)
        assert open_descriptors() == before

    @needs_root
    def test_devices_are_never_opened(self, ws: Workspace) -> None:
        os.mknod(ws.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with fails(errno.EACCES):
            ws.open(b"null", os.O_RDWR)

    @needs_root
    def test_permission(self, ws: Workspace) -> None:
        as_user(lambda: ws.open(b"file", os.O_RDONLY))
        with fails(errno.EACCES):
            as_user(lambda: ws.open(b"file", os.O_WRONLY))

    def test_too_many(self, ws: Workspace) -> None:
        ws.context.handles.limit = 1
        ws.open(b"file")
        before = open_descriptors()
        with fails(errno.EMFILE):
            ws.open(b"file")
        assert open_descriptors() == before

    def test_by_a_handle(self, ws: Workspace) -> None:
        first = ws.open(b"file", os.O_RDWR)
        (ws.path / "file").unlink()
        second = ws.run(m.Open(1, m.Ref(b"file", None, first), os.O_RDONLY)).handle
        assert first != second
        assert ws.read(second, 0, 3) == b"con"

    def test_nowait(self, ws: Workspace) -> None:
        if not ws.context.sandbox.inline_ok:
            pytest.skip("not a local file system")
        ws.attr(b"file")
        ws.run(m.Open(1, m.Ref(b"file"), os.O_RDWR), nowait=True)
        with pytest.raises(WouldBlock):
            ws.run(m.Open(1, m.Ref(b"file"), os.O_WRONLY | os.O_TRUNC), nowait=True)
        assert (ws.path / "file").read_bytes() == b"content"

    def test_a_lease_is_not_waited_for_on_the_loop(self, ws: Workspace) -> None:
        previous = signal.signal(signal.SIGIO, signal.SIG_IGN)
        try:
            with open(ws.path / "file", "r+b") as holder:
                fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
                with pytest.raises(WouldBlock):
                    ws.run(m.Open(1, m.Ref(b"file"), os.O_RDWR), nowait=True)
        finally:
            signal.signal(signal.SIGIO, previous)

    def test_a_failure_after_opening_closes(self, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "")

        monkeypatch.setattr(files, "kill_privileges", fail)
        before = open_descriptors()
        with fails(errno.EIO):
            ws.open(b"file", os.O_RDWR | os.O_TRUNC, kill_priv=True)
        assert open_descriptors() == before


class TestOpenDir:
    def test_of_a_directory(self, ws: Workspace) -> None:
        for nowait in (False, True):
            reply = ws.run(m.OpenDir(1, m.Ref(b"dir")), nowait=nowait)
            assert ws.context.handles.get(reply.handle).directory
            assert reply.attr == ws.attr(b"dir")
            ws.run(m.Fsync(1, reply.handle))
            ws.run(m.Fsync(1, reply.handle, True))

    @pytest.mark.parametrize("name", [b"file", b"link", b"fifo"])
    def test_of_something_else(self, ws: Workspace, name: bytes) -> None:
        with fails(errno.ENOTDIR):
            ws.open_dir(name)

    def test_a_directory_has_no_data(self, ws: Workspace) -> None:
        handle = ws.open_dir(b"dir")
        with fails(errno.EISDIR):
            ws.read(handle, 0, 1)
        with fails(errno.EBADF):
            ws.write(handle, 0, b"x")
        for whence in (os.SEEK_SET, os.SEEK_DATA):
            with fails(errno.EINVAL):
                ws.run(m.Seek(1, handle, 0, whence))


class TestCreate:
    def test_a_new_file(self, ws: Workspace) -> None:
        umask = os.umask(0)
        try:
            reply = ws.run(m.Create(1, ws.ref(b"dir"), b"\xff new", 0o104642, os.O_RDWR | os.O_EXCL))
        finally:
            os.umask(umask)
        assert stat.S_IMODE(reply.attr.mode) == 0o4642
        assert reply.attr == ws.attr(b"dir/\xff new")
        assert ws.context.handles.get(reply.handle).path == b"dir/\xff new"
        ws.write(reply.handle, 0, b"x")

    def test_writing_to_a_new_read_only_file(self, ws: Workspace) -> None:
        assert ws.write(ws.create(b"new", os.O_RDWR, 0), 0, b"abc") == 3

    def test_an_existing_file(self, ws: Workspace) -> None:
        handle = ws.create(b"file", os.O_RDWR)
        assert ws.read(handle, 0, 100) == b"content"
        (ws.path / "file").chmod(0o6755)
        reply = ws.run(m.Create(1, ROOT, b"file", 0o600, os.O_RDWR | os.O_TRUNC, kill_priv=True))
        assert (reply.attr.size, stat.S_IMODE(reply.attr.mode)) == (0, 0o755)
        with fails(errno.EEXIST):
            ws.create(b"file", os.O_RDWR | os.O_EXCL)

    def test_privileges_of_a_new_file_stay(self, ws: Workspace) -> None:
        umask = os.umask(0)
        try:
            reply = ws.run(m.Create(1, ROOT, b"new", 0o6755, os.O_RDWR | os.O_TRUNC, kill_priv=True))
        finally:
            os.umask(umask)
        assert stat.S_IMODE(reply.attr.mode) == 0o6755

    @pytest.mark.parametrize(
        ("name", "number"), [(b"dir", errno.EISDIR), (b"link", errno.ELOOP), (b"fifo", errno.ENXIO)]
    )
    def test_something_else_stands_there(self, ws: Workspace, name: bytes, number: int) -> None:
        before = open_descriptors()
        with fails(number):
            ws.create(name, os.O_RDWR)
        with fails(errno.EEXIST):
            ws.create(name, os.O_RDWR | os.O_EXCL)
        assert open_descriptors() == before

    def test_a_planted_link_is_not_written_through(self, ws: Workspace) -> None:
        outside = ws.path.parent / f"{ws.path.name}-outside"
        (ws.path / "trap").symlink_to(outside)
        for flags in (os.O_RDWR, os.O_RDWR | os.O_EXCL, os.O_RDWR | os.O_TRUNC):
            with pytest.raises(OSError):
                ws.create(b"trap", flags)
        assert not outside.exists()

    def test_parents(self, ws: Workspace) -> None:
        with fails(errno.ENOTDIR):
            ws.run(m.Create(1, m.Ref(b"file"), b"x", 0o600, os.O_RDWR))
        stale = ws.ref(b"dir")
        (ws.path / "dir").rmdir()
        with fails(errno.ESTALE):
            ws.run(m.Create(1, stale, b"x", 0o600, os.O_RDWR))

    def test_against_somebody_who_removes_it_all_the_time(self, ws: Workspace) -> None:
        stop = threading.Event()
        path = ws.path / "flicker"

        def flicker() -> None:
            while not stop.is_set():
                path.touch()
                path.unlink(missing_ok=True)

        thread = threading.Thread(target=flicker)
        thread.start()
        try:
            for _ in range(500):
                ws.close_handle(ws.create(b"flicker", os.O_RDWR))
        finally:
            stop.set()
            thread.join()

    def test_gives_up_in_the_end(self, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        def vanished(directory: int, name: bytes) -> int:
            raise FileNotFoundError(errno.ENOENT, "")

        monkeypatch.setattr(ws.context.sandbox, "lookup", vanished)
        with fails(errno.ESTALE):
            ws.create(b"file", os.O_RDWR)


class TestTmpFile:
    def test_from_nothing_to_a_name(self, ws: Workspace) -> None:
        reply = ws.run(m.TmpFile(1, m.Ref(b"dir"), 0o640, os.O_RDWR))
        assert reply.attr.nlink == 0
        assert os.listdir(ws.path / "dir") == []
        ws.write(reply.handle, 0, b"data")
        ref = m.Ref(b"", None, reply.handle)
        attr = ws.run(m.Link(1, ref, m.Ref(b"dir"), b"name")).attr
        assert (attr.nlink, attr.identity) == (1, reply.attr.identity)
        assert (ws.path / "dir/name").read_bytes() == b"data"

    def test_exclusive_ones_stay_without_a_name(self, ws: Workspace) -> None:
        reply = ws.run(m.TmpFile(1, ROOT, 0o600, os.O_RDWR | os.O_EXCL))
        with fails(errno.ENOENT):
            ws.run(m.Link(1, m.Ref(b"", None, reply.handle), ROOT, b"name"))

    @needs_root
    def test_unprivileged(self, ws: Workspace) -> None:
        os.chown(ws.path, NOBODY, NOBODY)

        def work() -> None:
            handle = ws.run(m.TmpFile(1, ROOT, 0o600, os.O_RDWR)).handle
            ws.run(m.Link(1, m.Ref(b"", None, handle), ROOT, b"name"))

        as_user(work)
        assert (ws.path / "name").stat().st_uid == NOBODY

    def test_errors(self, ws: Workspace) -> None:
        with fails(errno.EINVAL):
            ws.run(m.TmpFile(1, ROOT, 0o600, os.O_RDONLY))
        with fails(errno.ENOTDIR):
            ws.run(m.TmpFile(1, m.Ref(b"file"), 0o600, os.O_RDWR))


class TestRead:
    @pytest.mark.parametrize("nowait", [False, True])
    def test_full_length_unless_the_file_ends(self, ws: Workspace, nowait: bool) -> None:
        data = os.urandom(3 * MIB + 5)
        (ws.path / "big").write_bytes(data)
        handle = ws.open(b"big")
        for offset, size in ((0, MIB), (1, 4096), (3 * MIB, MIB), (3 * MIB + 5, 10), (1 << 40, 10), (0, 0)):
            try:
                assert ws.read(handle, offset, size, nowait) == data[offset : offset + size]
            except WouldBlock:
                assert nowait

    def test_limits(self, ws: Workspace) -> None:
        handle = ws.open(b"file")
        for offset, size in ((0, MIB + 1), (0, -1), (-1, 1), (1 << 63, 1), (1 << 64, 1)):
            with fails(errno.EINVAL):
                ws.read(handle, offset, size)
        with fails(errno.EBADF):
            ws.read(12345, 0, 1)

    def test_short_reads_are_continued(self, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:2]], offset))
        assert ws.read(ws.open(b"file"), 1, 5) == b"onten"
        assert ws.read(ws.open(b"file"), 1, 100) == b"ontent"

    def test_what_is_not_in_memory_is_not_waited_for(self, ws: Workspace) -> None:
        path = ws.path / "cold"
        path.write_bytes(os.urandom(8 * MIB))
        handle = ws.open(b"cold")
        fd = ws.context.handles.get(handle).fd
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            ws.read(handle, 4 * MIB, MIB, nowait=True)
        except WouldBlock:
            pass
        else:
            pytest.skip("a file system that is always in memory")
        assert len(ws.read(handle, 4 * MIB, MIB)) == MIB
        assert len(ws.read(handle, 4 * MIB, 4096, nowait=True)) == 4096

    @pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP])
    def test_no_answer_from_memory(self, ws: Workspace, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        def refuse(*arguments: Any) -> int:
            raise OSError(number, "")

        monkeypatch.setattr(os, "preadv", refuse)
        with pytest.raises(WouldBlock):
            ws.read(ws.open(b"file"), 0, 1, nowait=True)

    def test_errors_are_not_taken_for_waiting(self, ws: Workspace) -> None:
        with fails(errno.EBADF):
            ws.read(ws.open(b"file", os.O_WRONLY), 0, 1, nowait=True)

    def test_from_a_sparse_file(self, ws: Workspace) -> None:
        with open(ws.path / "sparse", "wb") as file:
            file.truncate(10 << 30)
            file.seek((10 << 30) - 4)
            file.write(b"last")
        handle = ws.open(b"sparse")
        assert ws.read(handle, (10 << 30) - 6, 100) == b"\0\0last"
        assert ws.read(handle, 5 << 30, MIB) == bytes(MIB)


class TestWrite:
    def test_at_offsets(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDWR)
        for data in (b"bytes", bytearray(b"array"), memoryview(b"xviewx")[1:-1]):
            assert ws.write(handle, 1, data) == len(data)
            assert ws.read(handle, 1, len(data)) == bytes(data)
        assert ws.write(handle, 100, b"") == 0
        assert ws.attr(b"file").size == 7
        assert ws.write(handle, 10 << 30, b"far") == 3
        assert ws.attr(b"file").size == (10 << 30) + 3
        assert ws.write(handle, 0, bytes(MIB)) == MIB

    def test_appending_is_the_kernels(self, ws: Workspace) -> None:
        one = ws.open(b"file", os.O_WRONLY | os.O_APPEND)
        two = ws.open(b"file", os.O_WRONLY | os.O_APPEND)
        ws.write(one, 0, b"-1")
        ws.write(two, 0, b"-2")
        ws.write(one, 1000, b"-3")
        assert (ws.path / "file").read_bytes() == b"content-1-2-3"

    def test_limits(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDWR)
        with fails(errno.EINVAL):
            ws.write(handle, 0, bytes(MIB + 1))
        for offset in (-1, 1 << 63, 1 << 64):
            with fails(errno.EINVAL):
                ws.write(handle, offset, b"x")
        with fails(errno.EFBIG):
            ws.write(handle, (1 << 63) - 2, b"x")
        with fails(errno.EBADF):
            ws.write(12345, 0, b"x")

    def test_partial_writes_are_continued(self, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, bytes(data)[:3], offset))
        assert ws.write(ws.open(b"file", os.O_RDWR), 0, b"0123456789") == 10
        assert ws.write(ws.open(b"file", os.O_RDWR | os.O_APPEND), 0, b"abcde") == 5
        assert (ws.path / "file").read_bytes() == b"0123456789abcde"

    def test_what_was_written_counts(self, ws: Workspace) -> None:
        """The limit of the file's size stands for a full disk."""
        import resource

        handle = ws.open(b"file", os.O_RDWR)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            assert ws.write(handle, 990, b"x" * 100) == 10
            with fails(errno.EFBIG):
                ws.write(handle, 1000, b"x")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert ws.attr(b"file").size == 1000

    @needs_root
    def test_kill_priv(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDWR)
        (ws.path / "file").chmod(0o6755)
        ws.write(handle, 0, b"x")
        assert stat.S_IMODE(ws.attr(b"file").mode) == 0o6755  # root writes
        ws.write(handle, 0, b"x", kill_priv=True)
        assert stat.S_IMODE(ws.attr(b"file").mode) == 0o755

    def test_a_handle_that_lost_its_locks(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDWR)
        other = ws.open(b"file", os.O_RDWR)
        ws.context.handles.get(handle).lost = errno.EIO
        for call in (
            lambda: ws.write(handle, 0, b"x"),
            lambda: ws.run(m.Fallocate(1, handle, 0, 0, 100)),
            lambda: ws.run(m.CopyRange(1, other, 0, handle, 100, 5)),
        ):
            with fails(errno.EIO):
                call()
        assert ws.read(handle, 0, 100) == b"content"
        ws.run(m.CopyRange(1, handle, 0, other, 100, 5))


class TestClose:
    def test_is_idempotent(self, ws: Workspace) -> None:
        handle = ws.open(b"file")
        before = open_descriptors()
        ws.close_handle(handle)
        assert open_descriptors() == before - 1
        ws.close_handle(handle)
        ws.close_handle(0)

    def test_nowait_only_where_nothing_can_take_long(self, ws: Workspace) -> None:
        reading, writing, deleted = ws.open(b"file"), ws.open(b"file", os.O_RDWR), ws.create(b"new")
        ws.run(m.Close(1, reading), nowait=True)
        ws.run(m.Close(1, 12345), nowait=True)
        deleted = ws.open(b"new")
        pin = ws.run(m.Unlink(1, ROOT, b"new", pin=True)).pin
        for handle in (writing, deleted, pin):
            with pytest.raises(WouldBlock):
                ws.run(m.Close(1, handle), nowait=True)
            assert handle in ws.context.handles
            ws.close_handle(handle)
            assert handle not in ws.context.handles


class TestSpace:
    @pytest.mark.parametrize("mode", [0, KEEP_SIZE, PUNCH_HOLE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, 3 | 16])
    @pytest.mark.parametrize(("offset", "length"), [(0, 4096), (4096, 100_000), (0, 0), (100, 10)])
    def test_fallocate_as_the_plain_call(self, ws: Workspace, mode: int, offset: int, length: int) -> None:
        for name in ("one", "two"):
            (ws.path / name).write_bytes(b"x" * 20_000)
        handle = ws.open(b"one", os.O_RDWR)
        with open(ws.path / "two", "r+b") as two:
            expected = errno_of_call(lambda: files.syscalls.fallocate(two.fileno(), mode, offset, length))
        assert errno_of_call(lambda: ws.run(m.Fallocate(1, handle, mode, offset, length))) == expected
        assert (ws.path / "one").read_bytes() == (ws.path / "two").read_bytes()
        assert (ws.path / "one").stat().st_blocks == (ws.path / "two").stat().st_blocks

    @pytest.mark.parametrize("mode", [COLLAPSE, INSERT, 64, 1 << 31])
    def test_modes_that_are_not_repeatable_are_refused(self, ws: Workspace, mode: int) -> None:
        with fails(errno.EOPNOTSUPP):
            ws.run(m.Fallocate(1, ws.open(b"file", os.O_RDWR), mode, 0, 4096))

    def test_fallocate_errors(self, ws: Workspace) -> None:
        with fails(errno.EBADF):
            ws.run(m.Fallocate(1, ws.open(b"file"), 0, 0, 1))
        for offset, length in ((-1, 1), (0, -1), (1 << 63, 1)):
            with fails(errno.EINVAL):
                ws.run(m.Fallocate(1, ws.open(b"file", os.O_RDWR), 0, offset, length))

    def test_seek_in_a_sparse_file(self, ws: Workspace) -> None:
        size = 10 << 30
        with open(ws.path / "sparse", "wb") as file:
            file.truncate(size)
            file.seek(5 << 30)
            file.write(b"x" * 4096)
        handle = ws.open(b"sparse")
        with open(ws.path / "sparse", "rb") as plain:
            for offset in (0, 5 << 30, (5 << 30) + 1, 6 << 30, size - 1, size, size + 1):
                for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                    try:
                        expected = os.lseek(plain.fileno(), offset, whence)
                    except OSError as error:
                        with fails(error.errno or 0):
                            ws.run(m.Seek(1, handle, offset, whence))
                    else:
                        assert ws.run(m.Seek(1, handle, offset, whence)).count == expected

    def test_seek_errors(self, ws: Workspace) -> None:
        handle = ws.open(b"file")
        for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 5, -1):
            with fails(errno.EINVAL):
                ws.run(m.Seek(1, handle, 0, whence))
        with fails(errno.EINVAL):
            ws.run(m.Seek(1, handle, -1, os.SEEK_DATA))


class TestCopyRange:
    def copy(self, ws: Workspace, *arguments: int) -> int:
        count: int = ws.run(m.CopyRange(1, *arguments)).count
        return count

    def test_copies(self, ws: Workspace) -> None:
        data = os.urandom(3 * MIB)
        (ws.path / "from").write_bytes(data)
        source, target = ws.open(b"from"), ws.create(b"to")
        assert self.copy(ws, source, MIB, target, 10, MIB) == MIB
        assert (ws.path / "to").read_bytes() == bytes(10) + data[MIB : 2 * MIB]
        assert self.copy(ws, source, 2 * MIB, target, 0, 1 << 62) == MIB
        assert self.copy(ws, source, 3 * MIB, target, 0, 10) == 0
        assert self.copy(ws, source, 0, target, 0, 0) == 0

    def test_stops_at_a_bound(self, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "_COPY_MAX", 5)
        assert self.copy(ws, ws.open(b"file"), 0, ws.create(b"to"), 0, 100) == 5

    def test_short_copies_are_continued(self, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = os.copy_file_range

        def short(source: int, target: int, count: int, offset_src: int, offset_dst: int) -> int:
            return whole(source, target, min(count, 3), offset_src, offset_dst)

        monkeypatch.setattr(os, "copy_file_range", short)
        assert self.copy(ws, ws.open(b"file"), 0, ws.create(b"to"), 1, 100) == 7
        assert (ws.path / "to").read_bytes() == b"\0content"

        def then_fail(source: int, target: int, count: int, offset_src: int, offset_dst: int) -> int:
            if offset_src:
                raise OSError(errno.ENOSPC, "")
            return short(source, target, count, offset_src, offset_dst)

        monkeypatch.setattr(os, "copy_file_range", then_fail)
        assert self.copy(ws, ws.open(b"file"), 0, ws.create(b"to"), 0, 100) == 3

    def test_errors_are_the_kernels(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDWR)
        with fails(errno.EINVAL):  # overlapping
            self.copy(ws, handle, 0, handle, 2, 5)
        with fails(errno.EBADF):
            self.copy(ws, handle, 0, ws.open(b"file"), 0, 5)
        with fails(errno.EBADF):
            self.copy(ws, handle, 0, ws.open(b"file", os.O_WRONLY | os.O_APPEND), 0, 5)
        with fails(errno.EISDIR):
            self.copy(ws, ws.open_dir(b"dir"), 0, handle, 0, 5)
        with fails(errno.EINVAL):
            self.copy(ws, handle, -1, handle, 0, 5)

    def test_between_file_systems(self, ws: Workspace) -> None:
        other = os.open("/proc/version", os.O_RDONLY)
        adopted = ws.context.handles.add(other, flags=os.O_RDONLY, identity=m.Identity(0, 0, 0))
        target = os.open(ws.path / "to", os.O_WRONLY | os.O_CREAT)
        expected = errno_of_call(lambda: os.copy_file_range(other, target, 10, 0, 0))
        os.close(target)
        assert (
            errno_of_call(lambda: self.copy(ws, adopted.id, 0, ws.open(b"to", os.O_RDWR), 0, 10)) == expected
        )


class TestFsync:
    @pytest.mark.parametrize("data_only", [False, True])
    def test_calls_the_right_one(
        self, ws: Workspace, monkeypatch: pytest.MonkeyPatch, data_only: bool
    ) -> None:
        called: list[tuple[str, int]] = []
        monkeypatch.setattr(os, "fsync", lambda fd: called.append(("fsync", fd)))
        monkeypatch.setattr(os, "fdatasync", lambda fd: called.append(("fdatasync", fd)))
        handle = ws.open(b"file", os.O_RDWR)
        ws.run(m.Fsync(1, handle, data_only))
        assert called == [("fdatasync" if data_only else "fsync", ws.context.handles.get(handle).fd)]

    def test_for_real(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDWR)
        ws.write(handle, 0, b"x")
        ws.run(m.Fsync(1, handle))
        ws.run(m.Fsync(1, handle, True))
        with fails(errno.EBADF):
            ws.run(m.Fsync(1, 12345))


class TestReopen:
    def reopen(self, ws: Workspace, ref: m.Ref, handle: int, flags: int, **options: Any) -> m.OpenReply:
        reply: m.OpenReply = ws.run(m.Reopen(1, ref, handle, flags, **options))
        return reply

    def test_under_the_old_number(self, ws: Workspace) -> None:
        old = ws.open(b"file", os.O_RDWR | os.O_APPEND)
        ref = ws.ref(b"file")
        ws.context.handles.close_all()
        flags = os.O_RDWR | os.O_APPEND | os.O_TRUNC | os.O_EXCL | os.O_CREAT
        reply = self.reopen(ws, ref, old, flags)
        assert (reply.handle, reply.attr) == (old, ws.attr(b"file"))
        ws.write(old, 0, b"!")
        assert (ws.path / "file").read_bytes() == b"content!"

    def test_twice(self, ws: Workspace) -> None:
        ref = ws.ref(b"file")
        self.reopen(ws, ref, 42, os.O_RDWR)
        assert self.reopen(ws, ref, 42, os.O_RDWR).handle == 42
        assert len(ws.context.handles) == 1
        with fails(errno.ESTALE):
            self.reopen(ws, ws.ref(b"dir"), 42, 0, directory=True)

    def test_directories(self, ws: Workspace) -> None:
        self.reopen(ws, ws.ref(b"dir"), 42, 0, directory=True)
        assert {e.name for e in ws.listing(42)} == {b".", b".."}
        with fails(errno.ENOTDIR):
            self.reopen(ws, ws.ref(b"file"), 43, 0, directory=True)
        with fails(errno.EISDIR):
            self.reopen(ws, ws.ref(b"dir"), 43, 0)

    def test_gone_or_replaced(self, ws: Workspace) -> None:
        ref = ws.ref(b"file")
        (ws.path / "file").rename(ws.path / "moved")
        with fails(errno.ESTALE):
            self.reopen(ws, ref, 42, os.O_RDONLY)
        (ws.path / "file").write_bytes(b"another")
        with fails(errno.ESTALE):
            self.reopen(ws, ref, 42, os.O_RDONLY)

    def test_impossible_numbers(self, ws: Workspace) -> None:
        before = open_descriptors()
        for id in (0, -1, 1 << 63):
            with fails(errno.EINVAL):
                self.reopen(ws, ws.ref(b"file"), id, os.O_RDONLY)
        assert open_descriptors() == before

    @needs_root
    def test_a_file_that_was_created_read_only_for_writing(self, ws: Workspace) -> None:
        """As git does with every object."""
        os.chown(ws.path / "file", NOBODY, NOBODY)
        (ws.path / "file").chmod(0o444)
        as_user(lambda: self.reopen(ws, ws.ref(b"file"), 42, os.O_RDWR))
        assert ws.write(42, 0, b"x") == 1
        assert stat.S_IMODE((ws.path / "file").stat().st_mode) == 0o444
        os.chown(ws.path / "file", 0, 0)
        with fails(errno.EACCES):
            as_user(lambda: self.reopen(ws, ws.ref(b"file"), 43, os.O_RDWR))


blocks = st.binary(max_size=40)
actions = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 3000), blocks),
    st.tuples(st.just("append"), st.just(0), blocks),
    st.tuples(st.just("truncate"), st.integers(0, 3000), st.none()),
    st.tuples(st.just("read"), st.integers(0, 3000), st.integers(0, 3000)),
    st.tuples(st.just("copy"), st.integers(0, 3000), st.integers(0, 3000)),
    st.tuples(st.just("punch"), st.integers(0, 3000), st.integers(1, 3000)),
    st.tuples(st.just("zero"), st.integers(0, 3000), st.integers(1, 3000)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(script=st.lists(actions, max_size=30))
def test_a_file_is_as_the_model_of_it(ws: Workspace, script: list[tuple[str, int, Any]]) -> None:
    model = bytearray()
    handle = ws.create(b"subject", os.O_RDWR | os.O_TRUNC)
    appending = ws.open(b"subject", os.O_WRONLY | os.O_APPEND)
    for action, offset, value in script:
        if action == "write" and value:
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(value)] = value
            assert ws.write(handle, offset, value) == len(value)
        elif action == "append":
            model += value
            assert ws.write(appending, offset, value) == len(value)
        elif action == "truncate":
            model = model[:offset].ljust(offset, b"\0")
            ws.run(m.SetAttr(1, m.Ref(b"", None, handle), size=offset))
        elif action == "read":
            assert ws.read(handle, offset, value) == model[offset : offset + value]
        elif action == "copy" and offset < len(model):
            target = len(model) + value
            data = model[offset : offset + 4000]
            model = model.ljust(target, b"\0") + data
            assert ws.run(m.CopyRange(1, handle, offset, handle, target, 4000)).count == len(data)
        elif action == "punch":
            model[offset : offset + value] = bytes(len(model[offset : offset + value]))
            ws.run(m.Fallocate(1, handle, PUNCH_HOLE | KEEP_SIZE, offset, value))
        elif action == "zero":
            model = model.ljust(offset + value, b"\0")
            model[offset : offset + value] = bytes(value)
            ws.run(m.Fallocate(1, handle, ZERO_RANGE, offset, value))
    assert ws.read(handle, 0, MIB) == model
    ws.context.handles.close_all()


def test_replies_carry_no_payload_but_reads(ws: Workspace) -> None:
    handle = ws.open(b"file", os.O_RDWR)
    calls: list[Callable[[], tuple[m.Reply, Any]]] = [
        lambda: execute(ws.context, m.GetAttr(5, ROOT)),
        lambda: execute(ws.context, m.Write(5, handle, 0), b"x"),
        lambda: execute(ws.context, m.Close(5, handle)),
    ]
    for call in calls:
        reply, payload = call()
        assert (reply.seq, payload) == (5, b"")


class Grants:
    """Leases on everything, and who asked for them."""

    def __init__(self, granted: bool = True) -> None:
        self.granted = granted
        self.asked: list[tuple[str, m.Identity]] = []

    def directory(self, fd: int, attr: m.Attr) -> bool:
        self.asked.append(("directory", attr.identity))
        return self.granted

    def file(self, fd: int, attr: m.Attr) -> bool:
        self.asked.append(("file", attr.identity))
        return self.granted

    def holds(self, identity: m.Identity) -> bool:
        return False


class TestInline:
    def test_the_first_bytes_come_with_the_handle(self, ws: Workspace) -> None:
        reply, data = execute(ws.context, m.Open(1, ws.ref(b"file"), os.O_RDONLY, inline=4))
        assert bytes(data) == b"cont"
        assert ws.read(reply.handle, 0, 100) == b"content"  # type: ignore[attr-defined]
        _, data = execute(ws.context, m.Open(1, ws.ref(b"file"), os.O_RDWR, inline=1 << 40))
        assert bytes(data) == b"content"

    def test_where_nothing_is_to_be_read(self, ws: Workspace) -> None:
        for flags, inline in ((os.O_WRONLY, 10), (os.O_RDONLY, 0), (os.O_RDONLY, -1)):
            assert execute(ws.context, m.Open(1, ws.ref(b"file"), flags, inline=inline))[1] == b""

    def test_what_is_not_in_memory_leaves_nothing_open(
        self, ws: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def block(*arguments: Any) -> int:
            raise BlockingIOError

        ref = ws.ref(b"file")
        before = open_descriptors()
        monkeypatch.setattr(os, "preadv", block)
        with pytest.raises(WouldBlock):
            execute(ws.context, m.Open(1, ref, os.O_RDONLY, inline=4), b"", True)
        assert open_descriptors() == before

    def test_a_number_of_the_clients_choice(self, ws: Workspace) -> None:
        assert ws.run(m.Open(1, ws.ref(b"file"), os.O_RDONLY, handle=4711)).handle == 4711
        assert ws.read(4711, 0, 100) == b"content"
        with fails(errno.EEXIST):
            ws.run(m.Open(1, ws.ref(b"file"), os.O_RDONLY, handle=4711))
        for flags in (os.O_RDONLY, os.O_RDWR | os.O_TRUNC):
            with fails(errno.EINVAL):
                ws.run(m.Open(1, ws.ref(b"file"), flags, handle=-1))
            with fails(errno.EEXIST):
                ws.run(m.Open(1, ws.ref(b"file"), flags, handle=4711))
        assert (ws.path / "file").read_bytes() == b"content"  # nothing has happened
        with fails(errno.EEXIST):
            ws.run(m.OpenDir(1, ws.ref(b"dir"), 4711))
        assert ws.run(m.OpenDir(1, ws.ref(b"dir"), 4712)).handle == 4712


class TestFetch:
    def fetch(self, ws: Workspace, path: bytes, offset: int = 0, size: int = 100, **options: Any) -> bytes:
        reply, data = execute(ws.context, m.Fetch(1, ws.ref(path), offset, size, **options))
        assert isinstance(reply, m.FetchReply)
        assert reply.attr.identity == ws.attr(path).identity
        return bytes(data)

    def test_data_without_a_handle(self, ws: Workspace) -> None:
        before = open_descriptors()
        assert self.fetch(ws, b"file") == b"content"
        assert self.fetch(ws, b"file", 3, 2) == b"te"
        assert self.fetch(ws, b"file", 100) == b""
        assert len(ws.context.handles) == 0
        assert open_descriptors() == before

    def test_in_the_background_it_leaves_no_trace(self, ws: Workspace) -> None:
        os.utime(ws.path / "file", (1, 2))
        assert self.fetch(ws, b"file", background=True) == b"content"
        assert os.stat(ws.path / "file").st_atime == 1

    @needs_root
    def test_where_it_may_not_hide_it_reads_all_the_same(self, ws: Workspace) -> None:
        ref = ws.ref(b"file")
        fetch = m.Fetch(1, ref, 0, 100, True)
        assert bytes(as_user(lambda: execute(ws.context, fetch)[1])) == b"content"

    @pytest.mark.parametrize(
        ("path", "number"), [(b"dir", errno.EISDIR), (b"link", errno.ELOOP), (b"fifo", errno.ENXIO)]
    )
    def test_only_regular_files(self, ws: Workspace, path: bytes, number: int) -> None:
        with fails(number):
            self.fetch(ws, path)

    @pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, MIB + 1), (1 << 63, 1)])
    def test_ranges(self, ws: Workspace, offset: int, size: int) -> None:
        with fails(errno.EINVAL):
            self.fetch(ws, b"file", offset, size)

    @pytest.mark.parametrize("granted", [True, False])
    def test_a_file_of_several_names_has_a_lease_of_its_own(self, ws: Workspace, granted: bool) -> None:
        os.link(ws.path / "file", ws.path / "dir/second")
        ws.context.leases = grants = Grants(granted)
        reply = ws.run(m.Fetch(1, m.Ref(b"file"), 0, 10))
        assert reply.lease == (m.LEASE_SELF if granted else 0)
        assert grants.asked == [("file", reply.attr.identity)]

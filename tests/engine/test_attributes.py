"""Attributes, access, extended attributes and the file system: as the same calls on the same files."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jupyter_wsfuse.engine import attributes
from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.unprivileged import NOBODY, as_user
from tests.helpers.workspace import ROOT, Workspace, errno_of_call, fails, needs_root


def populate(path: Path) -> None:
    path.chmod(0o755)
    (path / "file").write_bytes(b"content")
    (path / "secret").write_bytes(b"")
    (path / "secret").chmod(0o600)
    (path / "dir").mkdir()
    (path / "link").symlink_to("file")
    os.mkfifo(path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "socket"))


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    populate(tmp_path)
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()


KINDS = [b"file", b"dir", b"link", b"fifo", b"socket"]


class TestGetAttr:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_every_kind(self, ws: Workspace, kind: bytes) -> None:
        s = os.lstat(bytes(ws.path) + b"/" + kind)
        attr = ws.attr(kind)
        assert (attr.ino, attr.mode, attr.size, attr.nlink) == (s.st_ino, s.st_mode, s.st_size, s.st_nlink)

    def test_of_the_root(self, ws: Workspace) -> None:
        assert ws.attr(b"").ino == ws.path.stat().st_ino

    def test_another_file_at_the_path_is_stale(self, ws: Workspace) -> None:
        ref = ws.ref(b"file")
        (ws.path / "new").write_bytes(b"")
        (ws.path / "new").rename(ws.path / "file")
        with fails(errno.ESTALE):
            ws.run(m.GetAttr(1, ref))


class TestSetAttr:
    def set(self, ws: Workspace, path: bytes, handle: int = 0, **values: int | bool) -> m.Attr:
        attr: m.Attr = ws.run(m.SetAttr(1, m.Ref(path, None, handle), **values)).attr
        s = os.lstat(bytes(ws.path) + b"/" + path)
        assert (attr.mode, attr.size, attr.mtime, attr.ctime) == (
            s.st_mode,
            s.st_size,
            s.st_mtime_ns,
            s.st_ctime_ns,
        )
        return attr

    def test_mode(self, ws: Workspace) -> None:
        for kind in (b"file", b"dir", b"fifo", b"socket"):
            assert stat.S_IMODE(self.set(ws, kind, mode=0o101511).mode) == 0o1511
        with fails(errno.EOPNOTSUPP):
            self.set(ws, b"link", mode=0o777)
        assert stat.S_IMODE((ws.path / "file").stat().st_mode) == 0o1511

    @pytest.mark.parametrize("kind", KINDS)
    def test_times(self, ws: Workspace, kind: bytes) -> None:
        attr = self.set(ws, kind, atime=1_234_567_890_123_456_789, mtime=-7_000_000_001)
        assert (attr.atime, attr.mtime) == (1_234_567_890_123_456_789, -7_000_000_001)
        attr = self.set(ws, kind, mtime=-1)
        assert attr.atime == 1_234_567_890_123_456_789
        assert attr.mtime > 1_700_000_000_000_000_000

    @pytest.mark.parametrize("size", [0, 3, 100, 10 << 30])
    def test_size(self, ws: Workspace, size: int) -> None:
        attr = self.set(ws, b"file", size=size)
        assert attr.size == size
        assert attr.blocks * 512 < 1 << 20

    @pytest.mark.parametrize("kind", [b"dir", b"link", b"fifo", b"socket"])
    def test_size_of_what_has_none(self, ws: Workspace, kind: bytes) -> None:
        number = errno.EISDIR if kind == b"dir" else errno.EINVAL
        with fails(number):
            self.set(ws, kind, size=0)
        if kind != b"link":
            with fails(number):
                os.truncate(bytes(ws.path) + b"/" + kind, 0) if kind != b"socket" else _einval()

    def test_size_out_of_range(self, ws: Workspace) -> None:
        for size in (-1, 1 << 63, 1 << 64):
            with fails(errno.EINVAL):
                self.set(ws, b"file", size=size)
        with fails(errno.EFBIG):
            self.set(ws, b"file", size=(1 << 63) - 1)

    def test_everything_at_once_ends_as_asked(self, ws: Workspace) -> None:
        attr = self.set(ws, b"file", mode=0o4755, size=1, atime=5, mtime=6)
        # Whoever is privileged keeps the bits over a truncation, so the order is to be seen in the times only.
        assert (attr.size, attr.atime, attr.mtime) == (1, 5, 6)

    def test_kill_priv(self, ws: Workspace) -> None:
        (ws.path / "file").chmod(0o6755)
        assert stat.S_IMODE(self.set(ws, b"file", size=1, kill_priv=True).mode) == 0o755
        (ws.path / "file").chmod(0o6745)  # not executable by the group: mandatory locking, not a privilege
        assert stat.S_IMODE(self.set(ws, b"file", kill_priv=True).mode) == 0o2745
        assert stat.S_IMODE(self.set(ws, b"file", kill_priv=True).mode) == 0o2745
        (ws.path / "dir").chmod(0o2775)
        assert stat.S_IMODE(self.set(ws, b"dir", kill_priv=True).mode) == 0o2775

    @needs_root
    def test_kill_priv_takes_capabilities(self, ws: Workspace) -> None:
        value = struct.pack("<5I", 0x02000001, 1 << 12, 0, 0, 0)  # VFS_CAP_REVISION_2, CAP_NET_ADMIN
        try:
            os.setxattr(ws.path / "file", "security.capability", value)
        except OSError:
            pytest.skip("no file capabilities on this file system")
        self.set(ws, b"file", kill_priv=True)
        with fails(errno.ENODATA):
            os.getxattr(ws.path / "file", "security.capability")

    def test_owner_is_not_the_clients_to_choose(self, ws: Workspace) -> None:
        for values in ({"uid": 1}, {"gid": 1}, {"uid": os.getuid()}):
            with fails(errno.EPERM):
                self.set(ws, b"file", **values)

    @needs_root
    def test_raw_owner(self, ws: Workspace) -> None:
        ws.context.raw_owner = True
        for kind in KINDS:
            attr = self.set(ws, kind, uid=11)
            assert (attr.uid, attr.gid) == (11, 0)
            attr = self.set(ws, kind, gid=12)
            assert (attr.uid, attr.gid) == (11, 12)
        (ws.path / "file").chmod(0o6755)
        assert stat.S_IMODE(self.set(ws, b"file", uid=13).mode) == 0o755  # as chown(2) does
        assert stat.S_IMODE(self.set(ws, b"file", uid=13, mode=0o4755).mode) == 0o4755
        for id in (-1, (1 << 32) - 1, 1 << 32):
            with fails(errno.EINVAL):
                self.set(ws, b"file", uid=id)

    def test_size_by_a_handle_needs_no_permission_any_more(self, ws: Workspace) -> None:
        handle = ws.create(b"new", os.O_WRONLY, 0o444)
        assert self.set(ws, b"new", handle, size=5).size == 5

    def test_size_by_a_reading_handle_is_by_the_mode(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDONLY)
        assert self.set(ws, b"file", handle, size=2).size == 2
        with fails(errno.EISDIR):
            self.set(ws, b"dir", ws.open_dir(b"dir"), size=2)

    def test_a_file_without_a_name(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDWR)
        (ws.path / "file").unlink()
        ref = m.Ref(b"file", None, handle)
        attr = ws.run(m.SetAttr(1, ref, mode=0o600, size=3, atime=1, mtime=2)).attr
        assert (stat.S_IMODE(attr.mode), attr.size, attr.atime, attr.mtime, attr.nlink) == (0o600, 3, 1, 2, 0)
        assert ws.read(handle, 0, 10) == b"con"

    def test_a_handle_that_lost_its_locks_cannot_truncate(self, ws: Workspace) -> None:
        handle = ws.open(b"file", os.O_RDWR)
        ws.context.handles.get(handle).lost = errno.EIO
        with fails(errno.EIO):
            self.set(ws, b"file", handle, size=0)
        self.set(ws, b"file", handle, mode=0o600)
        assert (ws.path / "file").read_bytes() == b"content"

    @needs_root
    @pytest.mark.parametrize(
        "values", [{"mode": 0o600}, {"size": 0}, {"atime": 5}, {"atime": -1, "mtime": -1}]
    )
    def test_without_permission(self, ws: Workspace, values: dict[str, int]) -> None:
        writing = "size" in values or "mtime" in values  # what the permission to write allows
        with fails(errno.EACCES if writing else errno.EPERM):
            as_user(lambda: self.set(ws, b"file", **values))


def _einval() -> None:
    raise os_error(errno.EINVAL)  # truncate(2) of a socket cannot be asked for by its path


class TestAccess:
    @needs_root
    @pytest.mark.parametrize("mask", range(8))
    def test_as_the_plain_call(self, ws: Workspace, mask: int) -> None:
        for kind in (b"file", b"secret", b"dir", b"fifo", b"socket"):
            for uid in (None, NOBODY):

                def plain(kind: bytes = kind) -> None:
                    if not os.access(kind, mask, dir_fd=ws.context.sandbox.root_fd, effective_ids=True):
                        raise PermissionError(errno.EACCES, "")

                def ours(kind: bytes = kind) -> None:
                    ws.run(m.Access(1, m.Ref(kind), mask))

                def both(one: Callable[[], None] = plain, two: Callable[[], None] = ours) -> tuple[str, str]:
                    return errno_of_call(one), errno_of_call(two)

                expected, found = both() if uid is None else as_user(both)
                assert found == expected

    def test_impossible_mask(self, ws: Workspace) -> None:
        for mask in (8, -1):
            with fails(errno.EINVAL):
                ws.run(m.Access(1, ROOT, mask))

    def test_by_handle(self, ws: Workspace) -> None:
        handle = ws.open(b"file")
        (ws.path / "file").unlink()
        ws.run(m.Access(1, m.Ref(b"file", None, handle), os.R_OK))


def test_readlink(ws: Workspace) -> None:
    for target in (b"file", b"/etc/passwd", b"../..", b"\xff\xfe", b"x" * 4095, b"/proc/self/root"):
        (ws.path / "link").unlink()
        os.symlink(target, bytes(ws.path) + b"/link")
        assert ws.run(m.ReadLink(1, m.Ref(b"link"))).target == target
    for kind in (b"file", b"dir", b"fifo"):
        with fails(errno.EINVAL):
            ws.run(m.ReadLink(1, m.Ref(kind)))


def test_statfs(ws: Workspace) -> None:
    s = os.statvfs(ws.path)
    for ref in (ROOT, m.Ref(b"link"), m.Ref(b"", None, ws.open(b"file"))):
        reply = ws.run(m.StatFs(1, ref))
        assert (reply.bsize, reply.frsize, reply.blocks, reply.files, reply.namemax) == (
            s.f_bsize,
            s.f_frsize,
            s.f_blocks,
            s.f_files,
            s.f_namemax,
        )


def test_syncfs(ws: Workspace) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ws.run(m.SyncFs(1))
    assert len(os.listdir("/proc/self/fd")) == before


class TestXattr:
    @pytest.fixture(autouse=True)
    def supported(self, ws: Workspace) -> None:
        try:
            os.setxattr(ws.path / "file", "user.probe", b"")
            os.removexattr(ws.path / "file", "user.probe")
        except OSError:
            pytest.skip("no extended attributes on this file system")

    def get(self, ws: Workspace, path: bytes, name: bytes) -> bytes:
        value: bytes = ws.run(m.GetXattr(1, m.Ref(path), name)).value
        return value

    def names(self, ws: Workspace, path: bytes) -> list[bytes]:
        names: list[bytes] = ws.run(m.ListXattr(1, m.Ref(path))).names
        return sorted(name for name in names if name.startswith(b"user."))

    @pytest.mark.parametrize("kind", [b"file", b"dir"])
    def test_life_of_one(self, ws: Workspace, kind: bytes) -> None:
        ref = m.Ref(kind)
        for name in (b"user.a", b"user.\xff\xfe", b"user." + b"x" * 250):
            for value in (b"", b"\0binary\xff", b"v" * 1000):
                ws.run(m.SetXattr(1, ref, name, value))
                assert self.get(ws, kind, name) == value
                assert os.getxattr(bytes(ws.path) + b"/" + kind, name) == value
            assert self.names(ws, kind) == [name]
            ws.run(m.RemoveXattr(1, ref, name))
            assert self.names(ws, kind) == []

    def test_flags(self, ws: Workspace) -> None:
        ref = m.Ref(b"file")
        with fails(errno.ENODATA):
            ws.run(m.SetXattr(1, ref, b"user.a", b"1", os.XATTR_REPLACE))
        ws.run(m.SetXattr(1, ref, b"user.a", b"1", os.XATTR_CREATE))
        with fails(errno.EEXIST):
            ws.run(m.SetXattr(1, ref, b"user.a", b"2", os.XATTR_CREATE))
        ws.run(m.SetXattr(1, ref, b"user.a", b"2", os.XATTR_REPLACE))
        assert self.get(ws, b"file", b"user.a") == b"2"
        for flags in (3, 4, -1, 1 << 31, 1 << 63):
            with fails(errno.EINVAL):
                ws.run(m.SetXattr(1, ref, b"user.a", b"2", flags))

    @pytest.mark.parametrize(
        "name",
        [b"user.none", b"none", b"", b"user.", b"x" * 256, b"system.none", b"trusted.none", b"security.none"],
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_errors_are_the_file_systems(self, ws: Workspace, kind: bytes, name: bytes) -> None:
        path = bytes(ws.path) + b"/" + kind
        ref = m.Ref(kind)
        pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
            (
                lambda: ws.run(m.GetXattr(1, ref, name)),
                lambda: os.getxattr(path, name, follow_symlinks=False),
            ),
            (
                lambda: ws.run(m.RemoveXattr(1, ref, name)),
                lambda: os.removexattr(path, name, follow_symlinks=False),
            ),
            (
                lambda: ws.run(m.SetXattr(1, ref, name, b"v", os.XATTR_REPLACE)),
                lambda: os.setxattr(path, name, b"v", os.XATTR_REPLACE, follow_symlinks=False),
            ),
            (lambda: ws.run(m.ListXattr(1, ref)), lambda: os.listxattr(path, follow_symlinks=False)),
            (
                lambda: ws.run(m.SetXattr(1, ref, name, b"v" * 70000)),
                lambda: os.setxattr(path, name, b"v" * 70000, follow_symlinks=False),
            ),
        ]
        for ours, plain in pairs:
            assert errno_of_call(ours) == errno_of_call(plain)

    def test_nul_in_a_name(self, ws: Workspace) -> None:
        ref = m.Ref(b"file")
        for request in (
            m.GetXattr(1, ref, b"user.a\0b"),
            m.SetXattr(1, ref, b"user.a\0b", b""),
            m.RemoveXattr(1, ref, b"user.a\0b"),
        ):
            with fails(errno.EINVAL):
                ws.run(request)

    def test_the_mounts_own_are_not_stored(self, ws: Workspace) -> None:
        for request in (
            m.SetXattr(1, m.Ref(b"file"), b"user.wsfuse.status", b""),
            m.RemoveXattr(1, m.Ref(b"file"), b"user.wsfuse.status"),
        ):
            with fails(errno.EPERM):
                ws.run(request)
        with fails(errno.ENODATA):
            ws.run(m.GetXattr(1, m.Ref(b"file"), b"user.wsfuse.status"))

    def test_of_a_file_without_a_name(self, ws: Workspace) -> None:
        ref = m.Ref(b"file", None, ws.open(b"file"))
        (ws.path / "file").unlink()
        ws.run(m.SetXattr(1, ref, b"user.a", b"1"))
        assert ws.run(m.GetXattr(1, ref, b"user.a")).value == b"1"
        assert b"user.a" in ws.run(m.ListXattr(1, ref)).names
        ws.run(m.RemoveXattr(1, ref, b"user.a"))

    @needs_root
    def test_other_name_spaces_are_the_engines_users(self, ws: Workspace) -> None:
        ws.run(m.SetXattr(1, m.Ref(b"link"), b"trusted.a", b"1"))  # of the link itself
        assert os.getxattr(ws.path / "link", "trusted.a", follow_symlinks=False) == b"1"
        with fails(errno.EPERM):
            as_user(lambda: ws.run(m.SetXattr(1, m.Ref(b"file"), b"trusted.a", b"1")))


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o4755, 0o755), (0o2755, 0o755), (0o6755, 0o755), (0o2745, 0o2745), (0o755, 0o755), (0o4644, 0o644)],
)
def test_what_a_write_clears(tmp_path: Path, before: int, after: int) -> None:
    """Set-group-ID without the right for the group to execute once stood for mandatory locking, and stays."""
    path = tmp_path / "f"
    path.touch()
    path.chmod(before)
    with path.open() as file:
        attributes.kill_privileges(file.fileno())
    assert path.stat().st_mode & 0o7777 == after


def test_a_write_clears_nothing_of_a_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o6755)
    fd = os.open(tmp_path, os.O_RDONLY)
    attributes.kill_privileges(fd)
    os.close(fd)
    assert tmp_path.stat().st_mode & 0o7777 == 0o6755

"""Names: looking up, making, linking, removing, renaming, listing."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine import entries, syscalls
from jupyter_wsfuse.engine.operations import WouldBlock
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.unprivileged import NOBODY, as_user
from tests.helpers.workspace import ROOT, Workspace, errno_of_call, fails, needs_root

libc = ctypes.CDLL(None, use_errno=True)
DIR = m.Ref(b"dir")


def populate(path: Path) -> None:
    (path / "file").write_bytes(b"content")
    (path / "dir").mkdir()
    (path / "empty").mkdir()
    (path / "dir/inner").write_bytes(b"inner")
    (path / "link").symlink_to("file")
    (path / "dangling").symlink_to("nowhere")
    os.link(path / "file", path / "hard")
    os.mkfifo(path / "fifo")


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "root"
    root.mkdir()
    populate(root)
    workspace = Workspace(root)
    yield workspace
    workspace.close()


@pytest.fixture
def plain(tmp_path: Path) -> bytes:
    """The same tree, for the same calls made directly."""
    path = tmp_path / "plain"
    path.mkdir()
    populate(path)
    return bytes(path) + b"/"


class TestLookup:
    def test_in_the_root_and_below(self, ws: Workspace) -> None:
        for parent, name in ((b"", b"file"), (b"dir", b"inner"), (b"", b"dangling")):
            attr = ws.run(m.Lookup(1, ws.ref(parent), name)).attr
            assert attr.ino == os.lstat(ws.path / os.fsdecode(parent) / os.fsdecode(name)).st_ino

    def test_by_the_handle_of_a_directory_that_moved(self, ws: Workspace) -> None:
        ref = m.Ref(b"dir", None, ws.open_dir(b"dir"))
        (ws.path / "dir").rename(ws.path / "empty")
        assert ws.run(m.Lookup(1, ref, b"inner")).attr.size == 5
        with fails(errno.ENOENT):
            ws.run(m.Lookup(1, DIR, b"inner"))

    @pytest.mark.parametrize(
        ("parent", "name", "number"),
        [
            (b"", b"none", errno.ENOENT),
            (b"file", b"x", errno.ENOTDIR),
            (b"link", b"x", errno.ENOTDIR),
            (b"none", b"x", errno.ENOENT),
            (b"", b"..", errno.EACCES),
            (b"", b"dir/inner", errno.EINVAL),
            (b"", b"x" * 256, errno.ENAMETOOLONG),
        ],
    )
    def test_errors(self, ws: Workspace, parent: bytes, name: bytes, number: int) -> None:
        with fails(number):
            ws.run(m.Lookup(1, m.Ref(parent), name))

    def test_a_missing_name_is_not_a_stale_parent(self, ws: Workspace) -> None:
        with fails(errno.ENOENT):
            ws.run(m.Lookup(1, ws.ref(b"dir"), b"none"))
        ref = ws.ref(b"empty")
        (ws.path / "empty").rmdir()
        with fails(errno.ESTALE):
            ws.run(m.Lookup(1, ref, b"none"))

    def test_nowait(self, ws: Workspace) -> None:
        if not ws.context.sandbox.inline_ok:
            pytest.skip("not a local file system")
        assert ws.run(m.Lookup(1, DIR, b"inner"), nowait=True).attr.size == 5
        with pytest.raises(WouldBlock):
            ws.run(m.Lookup(1, DIR, b"nobody-asked-for-this"), nowait=True)

    @needs_root
    def test_without_permission(self, ws: Workspace) -> None:
        (ws.path / "dir").chmod(0o700)
        with fails(errno.EACCES):
            as_user(lambda: ws.run(m.Lookup(1, DIR, b"inner")))


NAMES = [
    b"new", b"file", b"dir", b"empty", b"link", b"dangling", b"fifo", b"none/x", b"file/x", b"dir/inner",
    b"\xff\xfe", b"n" * 255, b"n" * 256,
]  # fmt: skip


def split(path: bytes) -> tuple[m.Ref, bytes]:
    parent, _, name = path.rpartition(b"/")
    return m.Ref(parent), name


def snapshot(top: bytes) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = folder + b"/" + name
            s = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(s.st_mode) else b""
            found.append((path[len(top) :].lstrip(b"/"), s.st_mode, s.st_uid, s.st_gid, s.st_nlink, target))
    return sorted(found)


def same(ws: Workspace, plain: bytes, ours: Callable[[], object], direct: Callable[[], object]) -> str:
    expected = errno_of_call(direct)
    assert errno_of_call(ours) == expected
    assert snapshot(bytes(ws.path) + b"/") == snapshot(plain)
    return expected


class TestAsThePlainCall:
    @pytest.mark.parametrize("name", NAMES)
    def test_mkdir(self, ws: Workspace, plain: bytes, name: bytes) -> None:
        umask = os.umask(0)
        try:
            same(
                ws,
                plain,
                lambda: ws.run(m.MkDir(1, *split(name), 0o1751)),
                lambda: os.mkdir(plain + name, 0o1751),
            )
        finally:
            os.umask(umask)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, 0])
    def test_mknod(self, ws: Workspace, plain: bytes, name: bytes, kind: int) -> None:
        same(
            ws,
            plain,
            lambda: ws.run(m.MkNod(1, *split(name), kind | 0o640)),
            lambda: os.mknod(plain + name, kind | 0o640),
        )

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("target", [b"file", b"/etc", b"", b"t" * 4095, b"t" * 4096])
    def test_symlink(self, ws: Workspace, plain: bytes, name: bytes, target: bytes) -> None:
        if target and len(target) < 4096:
            same(
                ws,
                plain,
                lambda: ws.run(m.SymLink(1, *split(name), target)),
                lambda: os.symlink(target, plain + name),
            )
        else:  # which of two errors comes first is not worth a word
            with pytest.raises(OSError):
                ws.run(m.SymLink(1, *split(name), target))

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("source", [b"file", b"dir", b"link", b"dangling", b"fifo", b"none"])
    def test_link(self, ws: Workspace, plain: bytes, source: bytes, name: bytes) -> None:
        same(
            ws,
            plain,
            lambda: ws.run(m.Link(1, m.Ref(source), *split(name))),
            lambda: os.link(plain + source, plain + name, follow_symlinks=False),
        )

    @pytest.mark.parametrize("name", NAMES)
    def test_unlink(self, ws: Workspace, plain: bytes, name: bytes) -> None:
        same(ws, plain, lambda: ws.run(m.Unlink(1, *split(name))), lambda: os.unlink(plain + name))

    @pytest.mark.parametrize("name", NAMES)
    def test_rmdir(self, ws: Workspace, plain: bytes, name: bytes) -> None:
        same(ws, plain, lambda: ws.run(m.RmDir(1, *split(name))), lambda: os.rmdir(plain + name))

    @pytest.mark.parametrize("flags", [0, 1, 2, 3])
    @pytest.mark.parametrize("name", [b"file", b"dir", b"link", b"hard", b"fifo", b"none", b"none/x"])
    @pytest.mark.parametrize(
        "new",
        [
            b"new",
            b"file",
            b"dir",
            b"empty",
            b"hard",
            b"dangling",
            b"dir/new",
            b"file/x",
            b"empty/x",
            b"none/x",
        ],
    )
    def test_rename(self, ws: Workspace, plain: bytes, name: bytes, new: bytes, flags: int) -> None:
        def direct() -> None:
            if libc.renameat2(-100, plain + name, -100, plain + new, flags) < 0:
                raise OSError(ctypes.get_errno(), "")

        same(ws, plain, lambda: ws.run(m.Rename(1, *split(name), *split(new), flags)), direct)

    def test_rename_into_itself(self, ws: Workspace, plain: bytes) -> None:
        result = same(
            ws,
            plain,
            lambda: ws.run(m.Rename(1, ROOT, b"dir", DIR, b"x")),
            lambda: os.rename(plain + b"dir", plain + b"dir/x"),
        )
        assert result == "EINVAL"


class TestMaking:
    def test_replies(self, ws: Workspace) -> None:
        requests: list[tuple[m.Request, int]] = [
            (m.MkDir(1, DIR, b"1", 0o700), stat.S_IFDIR),
            (m.MkNod(1, DIR, b"2", stat.S_IFIFO | 0o600), stat.S_IFIFO),
            (m.SymLink(1, DIR, b"3", b"../../.."), stat.S_IFLNK),
            (m.Link(1, m.Ref(b"file"), DIR, b"4"), stat.S_IFREG),
        ]
        for number, (request, kind) in enumerate(requests, 1):
            attr = ws.run(request).attr
            assert stat.S_IFMT(attr.mode) == kind
            assert attr == ws.attr(b"dir/%d" % number)

    def test_devices_are_refused(self, ws: Workspace) -> None:
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            with fails(errno.EPERM):
                ws.run(m.MkNod(1, ROOT, b"null", kind | 0o666, 0x103))
        for kind in (stat.S_IFDIR, stat.S_IFLNK):
            with fails(errno.EINVAL):
                ws.run(m.MkNod(1, ROOT, b"null", kind | 0o666))

    def test_modes_that_are_no_modes(self, ws: Workspace) -> None:
        with fails(errno.EINVAL):
            ws.run(m.MkNod(1, ROOT, b"node", -1))
        assert ws.run(m.MkNod(1, ROOT, b"node", 1 << 40 | 0o640)).attr.mode == stat.S_IFREG | 0o640

    def test_names_are_checked(self, ws: Workspace) -> None:
        for name, number in ((b"..", errno.EACCES), (b"a/b", errno.EINVAL), (b"a\0", errno.EINVAL)):
            for request in (
                m.MkDir(1, ROOT, name, 0o700),
                m.MkNod(1, ROOT, name, 0o600),
                m.SymLink(1, ROOT, name, b"x"),
                m.Link(1, m.Ref(b"file"), ROOT, name),
                m.Unlink(1, ROOT, name),
                m.RmDir(1, ROOT, name),
                m.Rename(1, ROOT, name, ROOT, b"x"),
                m.Rename(1, ROOT, b"file", ROOT, name),
                m.Create(1, ROOT, name, 0o600, os.O_RDWR),
            ):
                with fails(number):
                    ws.run(request)
        with fails(errno.EINVAL):
            ws.run(m.SymLink(1, ROOT, b"new", b"a\0b"))

    def test_linking_a_link_links_the_link(self, ws: Workspace) -> None:
        attr = ws.run(m.Link(1, m.Ref(b"link"), DIR, b"again")).attr
        assert stat.S_ISLNK(attr.mode)
        assert attr.nlink == 2
        assert os.readlink(ws.path / "dir/again") == "file"

    def test_linking_is_by_identity(self, ws: Workspace) -> None:
        ref = ws.ref(b"dir/inner")
        (ws.path / "dir/inner").rename(ws.path / "dir/moved")
        (ws.path / "dir/inner").write_bytes(b"another")
        with fails(errno.ESTALE):
            ws.run(m.Link(1, ref, ROOT, b"new"))

    def test_an_unlinked_file_cannot_be_linked(self, ws: Workspace) -> None:
        handle = ws.open(b"dir/inner")
        (ws.path / "dir/inner").unlink()
        with fails(errno.ENOENT):
            ws.run(m.Link(1, m.Ref(b"", None, handle), ROOT, b"new"))

    @needs_root
    def test_unprivileged(self, ws: Workspace) -> None:
        os.chown(ws.path, NOBODY, NOBODY)
        ws.path.parent.chmod(0o755)

        def work() -> None:
            ws.run(m.MkDir(1, ROOT, b"mine", 0o755))
            mine = m.Ref(b"mine")
            ws.run(m.MkNod(1, mine, b"f", 0o600))
            ws.run(m.SymLink(1, mine, b"l", b"f"))
            ws.run(m.Link(1, m.Ref(b"mine/f"), ROOT, b"f2"))
            ws.run(m.Link(1, m.Ref(b"mine/l"), ROOT, b"l2"))
            ws.run(m.Rename(1, ROOT, b"f2", mine, b"f", 0))
            ws.run(m.Unlink(1, ROOT, b"l2", pin=True))
            with fails(errno.EACCES):
                ws.run(m.MkNod(1, m.Ref(b"empty"), b"x", 0o600))
            ws.run(m.SetAttr(1, m.Ref(b"mine/l"), mtime=5))
            ws.run(m.SetAttr(1, m.Ref(b"mine/f"), mode=0o640, size=3, mtime=5))

        as_user(work)
        s = os.stat(ws.path / "mine/f")
        assert (s.st_uid, s.st_mtime_ns, s.st_size) == (NOBODY, 5, 3)


class TestOwners:
    def requests(self, **ids: int) -> list[m.Request]:
        return [
            m.MkDir(1, DIR, b"1", 0o750, **ids),
            m.MkNod(1, DIR, b"2", 0o640, **ids),
            m.SymLink(1, DIR, b"3", b"x", **ids),
            m.Create(1, DIR, b"4", 0o640, os.O_RDWR, **ids),
        ]

    def test_not_allowed(self, ws: Workspace) -> None:
        for request in [*self.requests(uid=1, gid=1), m.TmpFile(1, DIR, 0o600, os.O_RDWR, 1)]:
            with fails(errno.EPERM):
                ws.run(request)
        assert os.listdir(ws.path / "dir") == ["inner"]

    @needs_root
    def test_raw_owner(self, ws: Workspace) -> None:
        ws.context.raw_owner = True
        (ws.path / "dir").chmod(0o700)
        for request in self.requests(uid=11, gid=12):
            attr = ws.run(request).attr
            assert (attr.uid, attr.gid) == (11, 12)
        assert stat.S_IMODE(ws.attr(b"dir/1").mode) & 0o700 == 0o700
        attr = ws.run(m.TmpFile(1, DIR, 0o600, os.O_RDWR, 11, 12)).attr
        assert (attr.uid, attr.gid) == (11, 12)
        attr = ws.run(m.MkDir(1, DIR, b"5", 0o700, uid=11)).attr
        assert (attr.uid, attr.gid) == (11, 0)
        attr = ws.run(m.MkDir(1, DIR, b"6", 0o700, gid=11)).attr
        assert (attr.uid, attr.gid) == (0, 11)
        with fails(errno.EINVAL):
            ws.run(m.MkDir(1, DIR, b"7", 0o700, uid=-1))

    @needs_root
    def test_set_group_id_directory(self, ws: Workspace) -> None:
        ws.context.raw_owner = True
        os.chown(ws.path / "dir", 0, 77)
        (ws.path / "dir").chmod(0o2755)
        for request in self.requests(uid=11, gid=12):
            attr = ws.run(request).attr
            assert (attr.uid, attr.gid) == (11, 77)
            assert bool(attr.mode & stat.S_ISGID) == stat.S_ISDIR(attr.mode)

    @needs_root
    def test_never_seen_with_another_owner(self, ws: Workspace) -> None:
        """Somebody who looks all the time sees no moment with an owner that was not asked for."""
        ws.context.raw_owner = True
        seen = set()
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                for entry in os.scandir(ws.path / "empty"):
                    try:
                        s = entry.stat()
                    except FileNotFoundError:
                        continue
                    seen.add((s.st_uid, s.st_gid, stat.S_IMODE(s.st_mode)))

        thread = threading.Thread(target=look)
        thread.start()
        for _ in range(2000):
            ws.close_handle(ws.run(m.Create(1, m.Ref(b"empty"), b"f", 0o600, os.O_RDWR, 11, 12)).handle)
            os.unlink(ws.path / "empty/f")
        stop.set()
        thread.join()
        assert seen <= {(11, 12, 0o600)}


class TestRemoving:
    def test_attributes_after_the_fact(self, ws: Workspace) -> None:
        reply = ws.run(m.Unlink(1, ROOT, b"hard", pin=True))
        assert (reply.attr.nlink, reply.pin) == (1, 0)
        reply = ws.run(m.Unlink(1, ROOT, b"file"))
        assert (reply.attr.nlink, reply.pin) == (0, 0)
        assert len(ws.context.handles) == 0

    def test_a_pin_keeps_the_file(self, ws: Workspace) -> None:
        ref = ws.ref(b"dir/inner")
        reply = ws.run(m.Unlink(1, DIR, b"inner", pin=True))
        assert reply.attr.identity == ref.identity
        pin = ws.context.handles.get(reply.pin)
        assert (pin.pin, pin.path, pin.writable, pin.directory) == (True, b"dir/inner", False, False)
        by_pin = m.Ref(b"dir/inner", None, reply.pin)
        assert ws.run(m.GetAttr(1, by_pin)).attr.nlink == 0
        assert ws.run(m.SetAttr(1, by_pin, mode=0o600, size=2, mtime=5)).attr.size == 2
        opened = ws.run(m.Open(1, by_pin, os.O_RDONLY)).handle
        assert ws.read(opened, 0, 10) == b"in"
        with fails(errno.EBADF):
            ws.read(reply.pin, 0, 10)
        ws.close_handle(reply.pin)
        with fails(errno.EBADF):
            ws.run(m.GetAttr(1, by_pin))

    def test_a_pinned_directory(self, ws: Workspace) -> None:
        reply = ws.run(m.RmDir(1, ROOT, b"empty", pin=True))
        assert ws.context.handles.get(reply.pin).directory
        ref = m.Ref(b"empty", None, reply.pin)
        assert stat.S_ISDIR(ws.run(m.GetAttr(1, ref)).attr.mode)
        with fails(errno.ENOENT):
            ws.run(m.MkDir(1, ref, b"x", 0o700))
        handle = ws.run(m.OpenDir(1, ref)).handle
        with fails(errno.ENOENT):  # as Linux says of a removed directory; the C library takes it for the end
            ws.listing(handle)
        reply = ws.run(m.Unlink(1, ROOT, b"dangling", pin=True))
        assert ws.run(m.ReadLink(1, m.Ref(b"", None, reply.pin))).target == b"nowhere"

    @needs_root
    def test_mount_points_are_busy(self, ws: Workspace) -> None:
        place = bytes(ws.path) + b"/empty"
        assert libc.mount(b"x", place, b"tmpfs", 0, None) == 0
        try:
            for request in (
                m.RmDir(1, ROOT, b"empty"),
                m.Unlink(1, ROOT, b"empty"),
                m.Rename(1, ROOT, b"empty", ROOT, b"x"),
                m.Rename(1, ROOT, b"dir", ROOT, b"empty"),
            ):
                with fails(errno.EBUSY):
                    ws.run(request)
            with fails(errno.EACCES):
                ws.run(m.Lookup(1, ROOT, b"empty"))
        finally:
            assert libc.umount2(place, 2) == 0

    @needs_root
    def test_sticky_directories(self, ws: Workspace) -> None:
        ws.path.chmod(0o1777)
        ws.path.parent.chmod(0o755)
        with fails(errno.EPERM):
            as_user(lambda: ws.run(m.Unlink(1, ROOT, b"file")))


class TestRename:
    def test_replies(self, ws: Workspace) -> None:
        file, inner = ws.attr(b"file"), ws.attr(b"dir/inner")
        reply = ws.run(m.Rename(1, ROOT, b"fifo", DIR, b"fifo"))
        assert (reply.attr, reply.pin, stat.S_ISFIFO(reply.moved.mode)) == (None, 0, True)
        reply = ws.run(m.Rename(1, ROOT, b"file", DIR, b"inner", 2))
        assert (reply.attr, reply.pin, reply.moved.identity) == (None, 0, file.identity)
        reply = ws.run(m.Rename(1, ROOT, b"file", DIR, b"inner"))
        assert reply.moved.identity == inner.identity
        assert (reply.attr.identity, reply.attr.nlink, reply.pin) == (file.identity, 1, 0)

    def test_pins_what_is_replaced(self, ws: Workspace) -> None:
        reply = ws.run(m.Rename(1, ROOT, b"file", DIR, b"inner", pin=True))
        assert reply.attr.nlink == 0
        opened = ws.run(m.Open(1, m.Ref(b"", None, reply.pin), os.O_RDONLY)).handle
        assert ws.read(opened, 0, 10) == b"inner"
        reply = ws.run(m.Rename(1, ROOT, b"dir", ROOT, b"empty", pin=True))
        assert ws.context.handles.get(reply.pin).path == b"empty"
        assert ws.context.handles.get(reply.pin).directory
        # Not its last name: nothing to keep.
        os.link(ws.path / "fifo", ws.path / "fifo2")
        ws.run(m.MkNod(1, ROOT, b"node", 0o600))
        assert ws.run(m.Rename(1, ROOT, b"node", ROOT, b"fifo", pin=True)).pin == 0

    def test_two_names_of_one_file_both_stay(self, ws: Workspace) -> None:
        reply = ws.run(m.Rename(1, ROOT, b"file", ROOT, b"hard", pin=True))
        assert (reply.attr, reply.pin, reply.moved.nlink) == (None, 0, 2)
        assert (ws.path / "file").exists()

    def test_unknown_flags(self, ws: Workspace) -> None:
        with fails(errno.EINVAL):
            ws.run(m.Rename(1, ROOT, b"file", ROOT, b"x", 4))

    def test_stale_parents(self, ws: Workspace) -> None:
        ref = ws.ref(b"empty")
        (ws.path / "empty").rmdir()
        (ws.path / "empty").mkdir()
        for request in (m.Rename(1, ref, b"a", ROOT, b"b"), m.Rename(1, ROOT, b"file", ref, b"b")):
            with fails(errno.ESTALE):
                ws.run(request)

    def test_failures_leave_no_descriptor(self, ws: Workspace) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for request in (
            m.Rename(1, ROOT, b"dir", ROOT, b"file"),
            m.Rename(1, ROOT, b"none", ROOT, b"file"),
            m.Rename(1, ROOT, b"file", m.Ref(b"none"), b"x"),
            m.Unlink(1, ROOT, b"dir"),
            m.RmDir(1, ROOT, b"dir"),
            m.Link(1, m.Ref(b"file"), m.Ref(b"none"), b"x"),
        ):
            with pytest.raises(OSError):
                ws.run(request)
        assert len(os.listdir("/proc/self/fd")) == before


class TestReadDir:
    def test_all_kinds(self, ws: Workspace) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(ws.path / "s"))
        handle = ws.open_dir(b"")
        for plus in (False, True):
            found = {entry.name: entry for entry in ws.listing(handle, plus=plus)}
            assert set(found) == {os.fsencode(name) for name in os.listdir(ws.path)} | {b".", b".."}
            for name, entry in found.items():
                if name == b"..":
                    assert entry.attr is None
                    continue
                s = os.lstat(bytes(ws.path) + b"/" + name)
                assert (entry.ino, entry.type) == (s.st_ino, stat.S_IFMT(s.st_mode) >> 12)
                if plus and name != b".":
                    assert entry.attr == ws.attr(name)
                else:
                    assert entry.attr is None

    def test_names_of_all_bytes(self, ws: Workspace) -> None:
        names = {bytes([value]) * 255 for value in range(1, 256) if value != 0x2F}
        for name in names:
            os.mkdir(bytes(ws.path) + b"/empty/" + name)
        handle = ws.open_dir(b"empty")
        assert {e.name for e in ws.listing(handle, plus=True)} == names | {b".", b".."}
        for limit in (1, 2, 3, 7, 100):
            assert len(ws.listing(handle, limit)) == len(names) + 2

    def test_cookies_continue_anywhere(self, ws: Workspace) -> None:
        for i in range(300):
            os.mkdir(ws.path / f"empty/{i}")
        handle = ws.open_dir(b"empty")
        everything = ws.listing(handle)
        for at in (0, 1, 150, 299, 301):
            rest = ws.run(m.ReadDir(1, handle, everything[at].cookie, 1000, False))
            assert [e.name for e in rest.entries] == [e.name for e in everything[at + 1 :]]
            assert rest.end

    def test_what_changes_meanwhile_is_seen_from_the_start(self, ws: Workspace) -> None:
        handle = ws.open_dir(b"empty")
        assert len(ws.listing(handle)) == 2
        (ws.path / "empty/new").mkdir()
        assert len(ws.listing(handle)) == 3
        (ws.path / "empty/new").rmdir()
        assert len(ws.listing(handle)) == 2

    def test_an_entry_that_vanishes_has_no_attributes(
        self, ws: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle = ws.open_dir(b"dir")
        listed = entries.syscalls.read_directory

        def and_remove(fd: int, size: int) -> list[tuple[bytes, int, int, int]]:
            found = listed(fd, size)
            (ws.path / "dir/inner").unlink(missing_ok=True)
            return found

        monkeypatch.setattr(entries.syscalls, "read_directory", and_remove)
        inner = next(e for e in ws.listing(handle, plus=True) if e.name == b"inner")
        assert (inner.attr, inner.type) == (None, 8)

    @needs_root
    def test_mount_points_are_listed_but_not_touched(self, ws: Workspace) -> None:
        place = bytes(ws.path) + b"/empty"
        assert libc.mount(b"x", place, b"tmpfs", 0, None) == 0
        try:
            found = {e.name: e for e in ws.listing(ws.open_dir(b""), plus=True)}
            assert found[b"empty"].attr is None
            assert found[b"dir"].attr is not None
        finally:
            assert libc.umount2(place, 2) == 0

    def test_one_reply_stays_within_a_frame(self, ws: Workspace) -> None:
        for i in range(3000):
            os.mknod(bytes(ws.path) + b"/empty/%0250d" % i)
        handle = ws.open_dir(b"empty")
        reply = ws.run(m.ReadDir(1, handle, 0, 1 << 20, True))
        import msgspec

        assert not reply.end
        assert 512 << 10 < len(msgspec.msgpack.encode(reply)) < 1 << 20
        assert len(ws.listing(handle, 1 << 20)) == 3002

    def test_time_grows_with_the_number_of_entries_only(
        self, ws: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for i in range(100_000):
            os.mknod(bytes(ws.path) + b"/empty/%d" % i)
        calls = []
        listed = syscalls.read_directory
        monkeypatch.setattr(
            entries.syscalls, "read_directory", lambda fd, size: calls.append(size) or listed(fd, size)
        )
        handle = ws.open_dir(b"empty")
        names = {e.name for e in ws.listing(handle, 1000)}
        assert len(names) == 100_002
        assert len(calls) < 2500
        assert sum(calls) < 100_000 * 24 * 5

    @pytest.mark.parametrize("limit", [0, -1])
    def test_impossible_arguments(self, ws: Workspace, limit: int) -> None:
        handle = ws.open_dir(b"dir")
        with fails(errno.EINVAL):
            ws.run(m.ReadDir(1, handle, 0, limit))
        for cookie in (-1, 1 << 63):
            with fails(errno.EINVAL):
                ws.run(m.ReadDir(1, handle, cookie, 10))
        with fails(errno.ENOTDIR):
            ws.run(m.ReadDir(1, ws.open(b"file"), 0, 10))
        with fails(errno.EBADF):
            ws.run(m.ReadDir(1, 12345, 0, 10))

    def test_two_listings_of_one_handle_at_once(self, ws: Workspace) -> None:
        for i in range(500):
            os.mkdir(ws.path / f"empty/{i}")
        handle = ws.open_dir(b"empty")
        lengths = []

        def walk() -> None:
            for _ in range(20):
                lengths.append(len({e.name for e in ws.listing(handle, 50)}))

        threads = [threading.Thread(target=walk) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(lengths) == {502}


class Grants:
    """Leases as long as they are granted, and what they were asked for."""

    def __init__(self) -> None:
        self.granted = True
        self.held: set[m.Identity] = set()
        self.asked: list[m.Identity] = []

    def directory(self, fd: int, attr: m.Attr) -> bool:
        self.asked.append(attr.identity)
        return self.granted

    def file(self, fd: int, attr: m.Attr) -> bool:
        return self.granted

    def holds(self, identity: m.Identity) -> bool:
        return identity in self.held


class TestLeases:
    @pytest.fixture
    def grants(self, ws: Workspace) -> Grants:
        ws.context.leases = grants = Grants()
        return grants

    def test_a_lookup_gets_one_on_the_directory(self, ws: Workspace, grants: Grants) -> None:
        assert ws.run(m.Lookup(1, DIR, b"inner")).lease == m.LEASE_PARENT
        assert grants.asked[:1] == [ws.attr(b"dir").identity]
        grants.held.add(ws.attr(b"dir").identity)
        grants.asked.clear()
        assert ws.run(m.Lookup(1, DIR, b"inner")).lease == m.LEASE_PARENT
        assert grants.asked == []
        with fails(errno.ENOENT):
            ws.run(m.Lookup(1, DIR, b"nothing"))
        with fails(errno.ENOTDIR):
            ws.run(m.Lookup(1, m.Ref(b"file"), b"x"))

    def test_a_file_of_several_names_gets_one_of_its_own(self, ws: Workspace, grants: Grants) -> None:
        assert ws.run(m.Lookup(1, ROOT, b"hard")).lease == m.LEASE_PARENT | m.LEASE_SELF
        assert ws.run(m.GetAttr(1, m.Ref(b"hard"))).lease == m.LEASE_SELF
        assert ws.run(m.GetAttr(1, m.Ref(b"dir/inner"))).lease == 0
        grants.granted = False
        assert ws.run(m.Lookup(1, ROOT, b"hard")).lease == 0

    def test_attributes_of_a_directory(self, ws: Workspace, grants: Grants) -> None:
        assert ws.run(m.GetAttr(1, DIR)).lease == m.LEASE_SELF
        grants.held.add(ws.attr(b"dir").identity)
        grants.granted = False
        assert ws.run(m.GetAttr(1, DIR)).lease == m.LEASE_SELF
        grants.held.clear()
        assert ws.run(m.GetAttr(1, DIR)).lease == 0

    def test_a_listing(self, ws: Workspace, grants: Grants, monkeypatch: pytest.MonkeyPatch) -> None:
        handle = ws.open_dir(b"")
        reply = ws.run(m.ReadDir(1, handle, 0, 100))
        assert reply.lease
        flags = {entry.name: entry.flags for entry in reply.entries}
        assert flags[b"hard"] == flags[b"file"] == m.ENTRY_LEASED
        assert flags[b"dir"] == flags[b"link"] == 0
        grants.granted = False
        reply = ws.run(m.ReadDir(1, handle, 0, 100))
        assert not reply.lease
        assert all(entry.flags == 0 for entry in reply.entries)

        def vanished(*arguments: Any) -> int:
            raise FileNotFoundError(errno.ENOENT, "gone")

        monkeypatch.setattr(ws.context.sandbox, "open_entry", vanished)
        assert all(entry.flags == 0 for entry in ws.run(m.ReadDir(1, handle, 0, 100)).entries)

    def test_who_may_not_list_gets_none(self, ws: Workspace, grants: Grants) -> None:
        from jupyter_wsfuse.engine.permissions import Policy, RuleSet, parse_rule

        ws.context.policy = Policy(RuleSet([parse_rule("deny read *.key", "x")]), None, hide=True)
        assert not ws.run(m.Lookup(1, ROOT, b"file")).lease & m.LEASE_PARENT
        ws.context.policy = Policy(RuleSet([parse_rule("deny write /dir/**", "x")]), None)
        assert ws.run(m.Lookup(1, DIR, b"inner")).lease == m.LEASE_PARENT

"""Requests that a dead engine had begun: done, or never done.

Every request is prepared, then executed or not, then settled by a new context, as after a kill.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jupyter_wsfuse.engine.settle import prepare, revive, settle
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.unprivileged import NOBODY, as_user
from tests.helpers.workspace import ROOT, Workspace, fails, needs_root

DIR = m.Ref(b"dir")


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_bytes(b"content")
    os.link(tmp_path / "file", tmp_path / "hard")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/inner").write_bytes(b"inner")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("file")
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()


def begin(ws: Workspace, request: m.Request, payload: bytes = b"") -> dict[str, Any]:
    intent = prepare(ws.context, request, payload)
    assert intent is not None
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(intent))
    assert stored == intent
    return intent


REQUESTS: list[m.Request] = [
    m.MkDir(7, DIR, b"new", 0o750),
    m.MkNod(7, DIR, b"new", stat.S_IFIFO | 0o640),
    m.MkNod(7, DIR, b"new", 0o640),
    m.SymLink(7, DIR, b"new", b"../x"),
    m.Link(7, m.Ref(b"file"), DIR, b"new"),
    m.Link(7, m.Ref(b"link"), DIR, b"new"),
    m.Create(7, DIR, b"new", 0o640, os.O_RDWR | os.O_EXCL),
    m.Unlink(7, ROOT, b"file"),
    m.Unlink(7, DIR, b"inner", pin=True),
    m.Unlink(7, ROOT, b"link"),
    m.RmDir(7, ROOT, b"empty", pin=True),
    m.Rename(7, ROOT, b"file", DIR, b"new"),
    m.Rename(7, ROOT, b"file", DIR, b"inner"),
    m.Rename(7, ROOT, b"file", DIR, b"inner", 2),
    m.Rename(7, ROOT, b"file", DIR, b"new", 1),
    m.Rename(7, ROOT, b"dir", ROOT, b"empty"),
]


def without(attr: m.Attr | None) -> list[int] | None:
    """Identity, type and links: what does not depend on the moment of asking."""
    return None if attr is None else [attr.dev, attr.ino, attr.btime, attr.mode, attr.nlink]


class TestNames:
    @pytest.mark.parametrize("request_", REQUESTS, ids=str)
    def test_done(self, ws: Workspace, request_: m.Request) -> None:
        intent = begin(ws, request_)
        reply = ws.run(request_)
        ws.context.handles.close_all()
        again: Any = settle(ws.context, request_, intent)
        assert type(again) is type(reply)
        assert again.seq == 7
        if isinstance(again, m.RemovedReply):
            assert (without(again.attr), without(again.moved)) == (without(reply.attr), without(reply.moved))
            assert again.pin == 0  # nothing could hold the file while no engine was there
        else:
            assert without(again.attr) == without(reply.attr)
        if isinstance(again, m.OpenReply):
            assert ws.write(again.handle, 0, b"x") == 1

    @pytest.mark.parametrize("request_", REQUESTS, ids=str)
    def test_never_done(self, ws: Workspace, request_: m.Request) -> None:
        intent = begin(ws, request_)
        assert settle(ws.context, request_, intent) is None
        ws.run(request_)

    @pytest.mark.parametrize("request_", REQUESTS[:7], ids=str)
    def test_the_name_was_taken_before(self, ws: Workspace, request_: m.Request) -> None:
        (ws.path / "dir/new").mkdir()
        intent = begin(ws, request_)
        with fails(errno.EEXIST):
            ws.run(request_)
        assert settle(ws.context, request_, intent) is None

    @pytest.mark.parametrize("request_", REQUESTS[:7], ids=str)
    def test_somebody_else_took_the_name(self, ws: Workspace, request_: m.Request) -> None:
        intent = begin(ws, request_)
        if isinstance(request_, m.SymLink | m.MkDir):
            (ws.path / "dir/new").symlink_to("another")
        else:
            (ws.path / "dir/new").mkdir()
        assert settle(ws.context, request_, intent) is None

    def test_removed_and_made_again_by_somebody(self, ws: Workspace) -> None:
        request = m.Unlink(7, DIR, b"inner")
        intent = begin(ws, request)
        ws.run(request)
        (ws.path / "dir/inner").write_bytes(b"somebody else's")
        reply = settle(ws.context, request, intent)
        assert isinstance(reply, m.RemovedReply)
        assert (ws.path / "dir/inner").exists()

    def test_nothing_to_remember(self, ws: Workspace) -> None:
        for request in (
            m.Unlink(7, DIR, b"none"),
            m.Unlink(7, m.Ref(b"none"), b"none"),
            m.MkDir(7, m.Ref(b"none"), b"none", 0o700),
            m.MkDir(7, ROOT, b"..", 0o700),
            m.Rename(7, ROOT, b"none", ROOT, b"none2"),
            m.Rename(7, ROOT, b"file", ROOT, b"hard"),
            m.Link(7, m.Ref(b"none"), ROOT, b"new"),
            m.Write(7, 12345, 0),
            m.RemoveXattr(7, m.Ref(b"none"), b"user.a"),
            m.RemoveXattr(7, ROOT, b"user.a\0"),
            m.SetAttr(7, m.Ref(b"file"), mode=0o600),
            m.CopyRange(7, 1, 0, 2, 0, 1),
            m.Fallocate(7, 1, 0, 0, 1),
            m.TmpFile(7, ROOT, 0o600, os.O_RDWR),
            m.Open(7, m.Ref(b"file"), os.O_RDWR),
        ):
            assert prepare(ws.context, request) is None

    def test_the_directory_is_gone_meanwhile(self, ws: Workspace) -> None:
        request = m.MkDir(7, ws.ref(b"empty"), b"new", 0o700)
        intent = begin(ws, request)
        (ws.path / "empty").rmdir()
        assert settle(ws.context, request, intent) is None

    @needs_root
    def test_a_created_file_that_its_mode_would_not_let_open(self, ws: Workspace) -> None:
        os.chown(ws.path / "dir", NOBODY, NOBODY)
        request = m.Create(7, DIR, b"new", 0o444, os.O_RDWR | os.O_EXCL)

        def work() -> m.Reply | None:
            intent = begin(ws, request)
            ws.run(request)
            ws.context.handles.close_all()
            return settle(ws.context, request, intent)

        reply = as_user(work)
        assert isinstance(reply, m.OpenReply)
        assert ws.write(reply.handle, 0, b"x") == 1


class TestAppends:
    def begin(
        self, ws: Workspace, flags: int = os.O_WRONLY, **options: Any
    ) -> tuple[m.Write, dict[str, Any]]:
        request = m.Write(7, ws.open(b"file", flags | os.O_APPEND), 0, **options)
        return request, begin(ws, request, b"-added")

    def test_done(self, ws: Workspace) -> None:
        request, intent = self.begin(ws)
        ws.run(request, b"-added")
        reply = settle(ws.context, request, intent, b"-added")
        assert reply == m.CountReply(7, 6)
        assert (ws.path / "file").read_bytes() == b"content-added"

    def test_done_and_others_wrote_after_it(self, ws: Workspace) -> None:
        request, intent = self.begin(ws)
        ws.run(request, b"-added")
        with open(ws.path / "file", "ab") as file:
            file.write(b"-other")
        assert settle(ws.context, request, intent, b"-added") == m.CountReply(7, 6)
        assert (ws.path / "file").read_bytes() == b"content-added-other"

    def test_never_done(self, ws: Workspace) -> None:
        request, intent = self.begin(ws)
        assert settle(ws.context, request, intent, b"-added") is None

    def test_half_done(self, ws: Workspace) -> None:
        request, intent = self.begin(ws, kill_priv=True)
        with open(ws.path / "file", "ab") as file:
            file.write(b"-add")
        (ws.path / "file").chmod(0o6755)
        assert settle(ws.context, request, intent, b"-added") == m.CountReply(7, 6)
        assert (ws.path / "file").read_bytes() == b"content-added"
        assert stat.S_IMODE((ws.path / "file").stat().st_mode) == 0o755

    @pytest.mark.parametrize("other", [b"-other", b"-o", b"-addxx"])
    def test_somebody_else_wrote_there(self, ws: Workspace, other: bytes) -> None:
        request, intent = self.begin(ws)
        with open(ws.path / "file", "ab") as file:
            file.write(other)
        assert settle(ws.context, request, intent, b"-added") is None

    def test_at_an_offset_is_simply_done_again(self, ws: Workspace) -> None:
        request = m.Write(7, ws.open(b"file", os.O_RDWR), 0)
        assert prepare(ws.context, request, b"x") is None

    def test_the_handle_is_gone(self, ws: Workspace) -> None:
        request, intent = self.begin(ws)
        ws.context.handles.close_all()
        assert settle(ws.context, request, intent, b"-added") is None


class TestXattrs:
    @pytest.fixture(autouse=True)
    def supported(self, ws: Workspace) -> None:
        try:
            os.setxattr(ws.path / "file", "user.there", b"old")
        except OSError:
            pytest.skip("no extended attributes on this file system")

    @pytest.mark.parametrize(
        "request_",
        [
            m.SetXattr(7, m.Ref(b"file"), b"user.new", b"v", os.XATTR_CREATE),
            m.RemoveXattr(7, m.Ref(b"file"), b"user.there"),
        ],
        ids=str,
    )
    def test_done_or_not(self, ws: Workspace, request_: m.Request) -> None:
        intent = begin(ws, request_)
        assert settle(ws.context, request_, intent) is None
        ws.run(request_)
        assert settle(ws.context, request_, intent) == m.Done(7)

    def test_it_would_have_failed(self, ws: Workspace) -> None:
        for request in (
            m.SetXattr(7, m.Ref(b"file"), b"user.there", b"old", os.XATTR_CREATE),
            m.RemoveXattr(7, m.Ref(b"file"), b"user.none"),
        ):
            intent = begin(ws, request)
            with pytest.raises(OSError):
                ws.run(request)
            assert settle(ws.context, request, intent) is None


class TestRevive:
    @pytest.mark.parametrize(
        "request_",
        [
            m.Open(7, m.Ref(b"file"), os.O_RDWR | os.O_TRUNC),
            m.OpenDir(7, DIR),
            m.Create(7, DIR, b"new", 0o600, os.O_RDWR | os.O_EXCL),
            m.Create(7, ROOT, b"new", 0o600, os.O_RDWR | os.O_EXCL),
        ],
        ids=str,
    )
    def test_under_the_same_number(self, ws: Workspace, request_: m.Request) -> None:
        reply = ws.run(request_)
        if not isinstance(request_, m.OpenDir):
            ws.write(reply.handle, 0, b"kept")
        ws.context.handles.close_all()
        assert revive(ws.context, request_, reply)
        assert ws.context.handles.ids() == [reply.handle]
        if isinstance(request_, m.OpenDir):
            assert len(ws.listing(reply.handle)) == 3
        else:
            assert ws.read(reply.handle, 0, 10) == b"kept"

    def test_gone(self, ws: Workspace) -> None:
        request = m.Open(7, m.Ref(b"file"), os.O_RDWR)
        reply = ws.run(request)
        ws.context.handles.close_all()
        (ws.path / "file").unlink()
        assert not revive(ws.context, request, reply)

    def test_of_a_reopened_one_and_of_one_without_a_name(self, ws: Workspace) -> None:
        request = m.Reopen(7, ws.ref(b"file"), 42, os.O_RDONLY)
        reply = ws.run(request)
        ws.context.handles.close_all()
        assert revive(ws.context, request, reply)
        nameless = m.TmpFile(7, ROOT, 0o600, os.O_RDWR)
        assert not revive(ws.context, nameless, reply)


def test_preparing_changes_nothing(ws: Workspace) -> None:
    def look() -> list[tuple[str, int, int]]:
        return sorted((p.name, p.lstat().st_ctime_ns, p.lstat().st_ino) for p in ws.path.rglob("*"))

    before = look()
    descriptors = len(os.listdir("/proc/self/fd"))
    calls: list[Callable[[], Any]] = [lambda r=r: prepare(ws.context, r) for r in REQUESTS]  # type: ignore[misc]
    for call in calls:
        call()
    assert look() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors

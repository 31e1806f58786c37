"""The table of operations, and all of them together against a plain directory."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_wsfuse.engine.operations import OPERATIONS, WouldBlock, execute
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.workspace import ROOT, Workspace

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "root").mkdir()
    workspace = Workspace(tmp_path / "root")
    yield workspace
    workspace.close()


def test_every_request_about_files_is_here() -> None:
    assert set(m.REQUESTS) - set(OPERATIONS) == {m.GetLock, m.SetLock, m.Stats}
    assert set(OPERATIONS) <= set(m.REQUESTS)


def test_nothing_that_changes_files_is_inline() -> None:
    for request, operation in OPERATIONS.items():
        assert not (operation.inline and request.mutating)


def test_inline_operations_say_the_same_or_nothing(ws: Workspace) -> None:
    (ws.path / "dir").mkdir()
    (ws.path / "dir/file").write_bytes(b"content")
    handle = ws.open(b"dir/file")
    for request in (
        m.GetAttr(1, m.Ref(b"dir/file")),
        m.GetAttr(1, m.Ref(b"", None, handle)),
        m.Lookup(1, m.Ref(b"dir"), b"file"),
        m.Read(1, handle, 0, 100),
    ):
        reply, payload = execute(ws.context, request)
        again = execute(ws.context, request, b"", True)
        assert (again[0], bytes(again[1])) == (reply, bytes(payload))


def test_errors_come_before_effects_inline(ws: Workspace) -> None:
    with pytest.raises(WouldBlock):
        execute(ws.context, m.Open(1, m.Ref(b"none"), os.O_TRUNC | os.O_RDWR), b"", True)


# --- random sequences, here and on a plain directory

names = st.sampled_from([b"a", b"b", b"c", b"\xff"])
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
steps = st.one_of(
    st.tuples(st.just("mkdir"), paths, st.integers(0o700, 0o777)),
    st.tuples(st.just("create"), paths, st.sampled_from([0, os.O_EXCL, os.O_TRUNC])),
    st.tuples(st.just("append"), paths, st.binary(max_size=5)),
    st.tuples(st.just("symlink"), paths, st.sampled_from([b"a", b"../b", b"/nowhere"])),
    st.tuples(st.just("fifo"), paths, st.none()),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("unlink"), paths, st.none()),
    st.tuples(st.just("rmdir"), paths, st.none()),
    st.tuples(st.just("rename"), paths, st.tuples(paths, st.integers(0, 2))),
    st.tuples(st.just("chmod"), paths, st.integers(0o600, 0o7777)),
    st.tuples(st.just("truncate"), paths, st.integers(0, 20)),
    st.tuples(st.just("stat"), paths, st.none()),
)


def split(path: bytes) -> tuple[m.Ref, bytes]:
    parent, _, name = path.rpartition(b"/")
    return m.Ref(parent), name


def ours(ws: Workspace, action: str, path: bytes, value: Any) -> Any:
    if action == "mkdir":
        return ws.run(m.MkDir(1, *split(path), value)).attr.mode
    if action == "create":
        reply = ws.run(m.Create(1, *split(path), 0o644, os.O_RDWR | value))
        ws.close_handle(reply.handle)
        return reply.attr.size
    if action == "append":
        handle = ws.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            return ws.write(handle, 0, value)
        finally:
            ws.close_handle(handle)
    if action == "symlink":
        return ws.run(m.SymLink(1, *split(path), value)).attr.mode
    if action == "fifo":
        return ws.run(m.MkNod(1, *split(path), stat.S_IFIFO | 0o644)).attr.mode
    if action == "link":
        return ws.run(m.Link(1, m.Ref(path), *split(value))).attr.nlink
    if action == "unlink":
        return ws.run(m.Unlink(1, *split(path))) and None
    if action == "rmdir":
        return ws.run(m.RmDir(1, *split(path))) and None
    if action == "rename":
        return ws.run(m.Rename(1, *split(path), *split(value[0]), value[1])) and None
    if action == "chmod":
        return ws.run(m.SetAttr(1, m.Ref(path), mode=value)).attr.mode
    if action == "truncate":
        return ws.run(m.SetAttr(1, m.Ref(path), size=value)).attr.size
    parent, name = split(path)
    attr = ws.run(m.Lookup(1, parent, name)).attr
    return attr.mode, attr.nlink, attr.size


def follow_nothing(top: bytes, path: bytes) -> bytes:
    """Links on the way are the client's kernel's to follow, not the engine's: the plain side refuses them too."""
    for index, byte in enumerate(path):
        if byte == 0x2F and os.path.islink(top + path[:index]):
            raise OSError(errno.ELOOP, "")
    return top + path


def plain(top: bytes, action: str, path: bytes, value: Any) -> Any:
    full = follow_nothing(top, path)
    if action == "mkdir":
        os.mkdir(full, value)
        return os.lstat(full).st_mode
    if action in ("create", "append"):
        flags = os.O_CREAT | os.O_RDWR | value if action == "create" else os.O_WRONLY | os.O_APPEND
        fd = os.open(full, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                raise OSError(errno.ENXIO, "")
            return os.fstat(fd).st_size if action == "create" else os.write(fd, value)
        finally:
            os.close(fd)
    if action == "symlink":
        os.symlink(value, full)
        return os.lstat(full).st_mode
    if action == "fifo":
        os.mkfifo(full, 0o644)
        return os.lstat(full).st_mode
    if action == "link":
        other = follow_nothing(top, value)
        os.link(full, other, follow_symlinks=False)
        return os.lstat(other).st_nlink
    if action == "unlink":
        return os.unlink(full)
    if action == "rmdir":
        return os.rmdir(full)
    if action == "rename":
        new = follow_nothing(top, value[0])
        if libc.renameat2(-100, full, -100, new, value[1]) < 0:
            raise OSError(ctypes.get_errno(), "")
        return None
    if action == "chmod":
        if os.path.islink(full):
            raise OSError(errno.EOPNOTSUPP, "")
        os.chmod(full, value)
        return os.lstat(full).st_mode
    if action == "truncate":
        if os.path.islink(full):
            raise OSError(errno.EINVAL, "")
        os.truncate(full, value)
        return os.lstat(full).st_size
    s = os.lstat(full)
    return s.st_mode, s.st_nlink, s.st_size


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except OSError as error:
        name = errno.errorcode[error.errno or 0]
        # Which of two things wrong with a request is told first may differ: with two paths, or two kinds of
        # a component that is no directory.
        if name in ("ELOOP", "ENOTDIR", "ENOENT") and arguments[1] in ("rename", "link"):
            return "no such path"
        return "ELOOP or ENOTDIR" if name in ("ELOOP", "ENOTDIR") else name


def tree(top: bytes) -> list[tuple[Any, ...]]:
    found = []
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = folder + b"/" + name
            s = os.lstat(path)
            content: bytes = b""
            if stat.S_ISLNK(s.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(s.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
            found.append((path[len(top) :], s.st_mode, s.st_nlink, size, content))
    return sorted(found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(script=st.lists(steps, min_size=5, max_size=40))
def test_sequences_as_on_a_plain_directory(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, bytes, Any]]
) -> None:
    top = tmp_path_factory.mktemp("pair")
    (top / "ours").mkdir()
    (top / "plain").mkdir()
    ws = Workspace(top / "ours")
    other = bytes(top / "plain") + b"/"
    umask = os.umask(0)
    try:
        for action, path, value in script:
            expected = outcome(plain, other, action, path, value)
            assert outcome(ours, ws, action, path, value) == expected, (action, path, value)
        assert tree(bytes(ws.path) + b"/") == tree(other)
        assert len(ws.context.handles) == 0
    finally:
        os.umask(umask)
        ws.close()


def test_names_that_no_decoder_knows_go_all_the_way(ws: Workspace) -> None:
    name = bytes(range(0x80, 0xC0)) + b'\x01\n\\" '
    ws.run(m.MkDir(1, ROOT, name, 0o700))
    ref = ws.ref(name)
    ws.close_handle(ws.run(m.Create(1, ref, name * 3, 0o600, os.O_RDWR)).handle)
    ws.run(m.Rename(1, ref, name * 3, ROOT, b"\xff" * 255))
    assert set(os.listdir(bytes(ws.path))) == {name, b"\xff" * 255}

"""Every operation under a policy: what is allowed works, what is not leaves no trace."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_wsfuse.engine import enforcement, entries, settle, syscalls
from jupyter_wsfuse.engine.enforcement import FMODE_EXEC, rights_to_open
from jupyter_wsfuse.engine.operations import OPERATIONS, execute
from jupyter_wsfuse.engine.permissions import ALL, EXECUTE, READ, WRITE, Policy, RuleSet, Scope, parse_rule
from jupyter_wsfuse.errors import DeniedError
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.workspace import ROOT, Workspace, fails

O_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def policy(*texts: str, hide: bool = False, scope: Scope | None = None) -> Policy:
    rules = [parse_rule(text, f"rule {number}") for number, text in enumerate(texts, 1)]
    return Policy(RuleSet(rules), scope, hide=hide)


class Guarded(Workspace):
    def rules(self, *texts: str, hide: bool = False, scope: Scope | None = None) -> None:
        self.context.policy = policy(*texts, hide=hide, scope=scope)

    def names(self, path: bytes, limit: int = 1000, plus: bool = False) -> set[bytes]:
        handle = self.open_dir(path)
        try:
            return {entry.name for entry in self.listing(handle, limit, plus)} - {b".", b".."}
        finally:
            self.close_handle(handle)

    def lookup(self, path: bytes) -> m.Attr:
        parent, _, name = path.rpartition(b"/")
        attr: m.Attr = self.run(m.Lookup(1, m.Ref(parent), name)).attr
        return attr

    def why(self, ref: m.Ref | bytes) -> str:
        ref = m.Ref(ref) if isinstance(ref, bytes) else ref
        value: bytes = self.run(m.GetXattr(1, ref, b"user.wsfuse.why")).value
        return value.decode()


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Guarded]:
    """raw/file, raw/deep/file, work/file, secret.key, link -> work/file"""
    root = tmp_path / "root"
    for name in ("raw/deep", "work"):
        (root / name).mkdir(parents=True)
    for name in ("raw/file", "raw/deep/file", "work/file", "secret.key"):
        (root / name).write_bytes(name.encode())
        (root / name).chmod(0o644)
    (root / "link").symlink_to("work/file")
    workspace = Guarded(root)
    yield workspace
    workspace.close()


def denied(number: int = 1) -> Any:
    return pytest.raises(DeniedError, check=lambda error: error.rule.startswith(f"rule {number}:"))


def state(path: Path) -> dict[str, Any]:
    found = {}
    for directory, subdirectories, files in os.walk(path):
        for name in (*subdirectories, *files):
            own = Path(directory, name)
            status = own.lstat()
            content = own.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            xattrs = os.listxattr(own, follow_symlinks=False)
            found[str(own.relative_to(path))] = (
                status.st_mode, status.st_nlink, status.st_ino, status.st_mtime_ns, content, xattrs,
            )  # fmt: skip
    return found


# --- each right stops what it is for, before anything has happened

RAW, FILE, HERE = m.Ref(b"raw"), m.Ref(b"raw/file"), m.Ref(b"work")

WRITING: list[m.Request] = [
    m.SetAttr(1, FILE, mode=0o600),
    m.SetAttr(1, FILE, size=0),
    m.SetAttr(1, FILE, mtime=1),
    m.SetAttr(1, FILE, kill_priv=True),
    m.SetAttr(1, m.Ref(b"raw/deep"), mode=0o700),
    m.Access(1, FILE, os.W_OK),
    m.Open(1, FILE, os.O_WRONLY),
    m.Open(1, FILE, os.O_RDWR),
    m.Open(1, FILE, os.O_RDONLY | os.O_TRUNC),
    m.Create(1, RAW, b"new", 0o644, O_NEW),
    m.Create(1, RAW, b"new", 0o644, os.O_RDONLY | os.O_CREAT),
    m.Create(1, RAW, b"file", 0o644, os.O_RDWR | os.O_CREAT),
    m.Create(1, RAW, b"file", 0o644, os.O_RDONLY | os.O_CREAT | os.O_TRUNC),
    m.TmpFile(1, RAW, 0o644, os.O_RDWR),
    m.MkDir(1, RAW, b"new", 0o755),
    m.MkNod(1, RAW, b"new", stat.S_IFREG | 0o644, 0),
    m.MkNod(1, RAW, b"new", stat.S_IFIFO | 0o644, 0),
    m.SymLink(1, RAW, b"new", b"file"),
    m.Link(1, m.Ref(b"work/file"), RAW, b"new"),
    m.Rename(1, HERE, b"file", RAW, b"new"),
    m.Rename(1, HERE, b"file", RAW, b"new", syscalls.RENAME_NOREPLACE),
    m.Rename(1, HERE, b"file", RAW, b"file"),
    m.Rename(1, HERE, b"file", RAW, b"file", syscalls.RENAME_EXCHANGE),
    m.Rename(1, RAW, b"file", HERE, b"file", syscalls.RENAME_EXCHANGE),
    m.SetXattr(1, FILE, b"user.x", b"1"),
    m.RemoveXattr(1, FILE, b"user.own"),
]
READING: list[m.Request] = [
    m.Access(1, FILE, os.R_OK),
    m.Access(1, m.Ref(b"raw/deep"), os.R_OK),
    m.Open(1, FILE, os.O_RDONLY),
    m.Open(1, FILE, os.O_RDWR),
    m.Open(1, FILE, os.O_WRONLY | FMODE_EXEC),
    m.Create(1, RAW, b"file", 0o644, os.O_RDONLY | os.O_CREAT),
    m.Create(1, RAW, b"new", 0o644, os.O_RDWR | os.O_CREAT),
    m.Reopen(1, FILE, 77, os.O_RDONLY, False),
    m.Reopen(1, m.Ref(b"raw/deep"), 77, os.O_RDONLY, True),
    m.OpenDir(1, m.Ref(b"raw/deep")),
    m.ListTree(1, [m.Ref(b"raw/deep")], 100),
    m.Fetch(1, FILE, 0, 100),
    m.Fetch(1, FILE, 0, 100, True),
    m.ReadLink(1, m.Ref(b"raw/link")),
    m.GetXattr(1, FILE, b"user.own"),
    m.ListXattr(1, FILE),
    m.Link(1, FILE, HERE, b"new"),
    m.Rename(1, RAW, b"file", HERE, b"new"),
]
EXECUTING: list[m.Request] = [
    m.Access(1, FILE, os.X_OK),
    m.Access(1, m.Ref(b"raw/deep"), os.X_OK),
    m.Open(1, FILE, os.O_RDONLY | FMODE_EXEC),
    m.Lookup(1, m.Ref(b"raw/deep"), b"file"),
    m.Lookup(1, m.Ref(b"raw/deep"), b"nothing"),
    m.GetAttr(1, m.Ref(b"raw/deep/file")),
    m.GetAttr(1, m.Ref(b"raw/deep/nothing")),
    m.GetAttr(1, m.Ref(b"raw/deep/file/x")),
    m.StatFs(1, m.Ref(b"raw/deep/file")),
    m.Unlink(1, m.Ref(b"raw/deep"), b"file"),
    m.Unlink(1, m.Ref(b"raw/deep"), b"nothing"),
    m.MkDir(1, m.Ref(b"raw/deep"), b"new", 0o755),
    m.Link(1, FILE, HERE, b"new"),
    m.Rename(1, RAW, b"file", HERE, b"new"),
]
DELETING: list[m.Request] = [
    m.Unlink(1, RAW, b"file"),
    m.RmDir(1, RAW, b"empty"),
    m.Rename(1, RAW, b"file", RAW, b"new"),
    m.Rename(1, RAW, b"file", HERE, b"new"),
    m.Rename(1, RAW, b"file", HERE, b"new", syscalls.RENAME_NOREPLACE),
    m.Rename(1, HERE, b"file", RAW, b"file"),
    m.Rename(1, HERE, b"file", RAW, b"file", syscalls.RENAME_EXCHANGE),
    m.Rename(1, RAW, b"file", HERE, b"file", syscalls.RENAME_EXCHANGE),
    m.Rename(1, ROOT, b"raw", ROOT, b"new"),
    m.Link(1, FILE, HERE, b"new"),
]


@pytest.mark.parametrize(
    ("right", "request_"),
    [
        (right, request)
        for right, requests in (
            ("write", WRITING), ("read", READING), ("execute", EXECUTING), ("delete", DELETING),
        )
        for request in requests
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:60],
)  # fmt: skip
def test_denied(ws: Guarded, right: str, request_: m.Request) -> None:
    (ws.path / "raw/empty").mkdir()
    (ws.path / "raw/link").symlink_to("file")
    os.setxattr(ws.path / "raw/file", "user.own", b"1")
    before = state(ws.path)
    ws.rules(f"deny {right} /raw/**")
    with denied():
        execute(ws.context, request_, b"")
    assert state(ws.path) == before
    assert len(ws.context.handles) == 0
    # And with all other rights it is not the rules that are in the way.
    others = {"write", "read", "execute", "delete"} - {right}
    if not isinstance(request_, m.Rename | m.Link | m.Open | m.Create):
        ws.rules(f"deny {','.join(others)} /else/**", "deny all /else")
        try:
            execute(ws.context, request_, b"")
        except DeniedError:
            raise
        except OSError:
            pass


def test_every_request_was_thought_of() -> None:
    tried = {type(request) for request in (*WRITING, *READING, *EXECUTING, *DELETING)}
    by_handle = {m.Read, m.Write, m.Fallocate, m.Seek, m.CopyRange, m.ReadDir}
    free = {m.Close, m.Fsync, m.SyncFs}
    assert tried | by_handle | free == set(OPERATIONS)
    assert not tried & (by_handle | free)


def test_rights_to_open() -> None:
    assert rights_to_open(os.O_RDONLY) == READ
    assert rights_to_open(os.O_WRONLY | os.O_APPEND) == WRITE
    assert rights_to_open(os.O_RDWR) == READ | WRITE
    assert rights_to_open(os.O_TRUNC) == READ | WRITE
    assert rights_to_open(FMODE_EXEC) == READ | EXECUTE
    assert rights_to_open(os.O_ACCMODE) == READ | WRITE


def test_what_stays_allowed(ws: Guarded) -> None:
    ws.rules("deny write,delete /raw/**")
    handle = ws.open(b"raw/file")
    assert ws.read(handle, 0, 100) == b"raw/file"
    assert ws.names(b"raw") == {b"deep", b"file"}
    assert ws.lookup(b"raw/file").size == 8
    handle = ws.run(m.Create(1, RAW, b"file", 0o644, os.O_RDONLY | os.O_CREAT)).handle
    assert ws.read(handle, 0, 100) == b"raw/file"
    with fails(errno.EACCES):
        ws.write(handle, 0, b"x")
    ws.run(m.Rename(1, HERE, b"file", ROOT, b"moved"))
    ws.run(m.Unlink(1, ROOT, b"moved"))
    ws.run(m.RmDir(1, ROOT, b"work"))
    ws.run(m.MkDir(1, ROOT, b"work", 0o755))
    assert ws.run(m.Lookup(1, ROOT, b"link")).attr.mode & 0o170000 == stat.S_IFLNK


def test_a_drop_box(ws: Guarded) -> None:
    """Everybody may put files in, nobody may read or change them."""
    ws.rules("deny read,delete /drop/**", hide=True)
    (ws.path / "drop").mkdir()
    handle = ws.run(m.Create(1, m.Ref(b"drop"), b"mine", 0o644, O_NEW)).handle
    ws.write(handle, 0, b"content")
    assert ws.run(m.GetAttr(1, m.Ref(b"", None, handle))).attr.size == 7
    with fails(errno.EACCES):
        ws.read(handle, 0, 7)
    assert ws.names(b"drop") == set()
    with fails(errno.ENOENT):
        ws.lookup(b"drop/mine")
    again = ws.run(m.Create(1, m.Ref(b"drop"), b"mine", 0o644, os.O_WRONLY | os.O_CREAT)).handle
    ws.write(again, 7, b"!")
    assert (ws.path / "drop/mine").read_bytes() == b"content!"


# --- the object counts, not the name that was sent


def test_the_real_place_counts(ws: Guarded) -> None:
    """The directory is moved between finding and judging."""
    ws.rules("deny all /raw/**")
    found = ws.context.sandbox.resolve

    def resolve(ref: m.Ref, handles: Any, nowait: bool = False) -> Any:
        target = found(ref, handles, nowait)
        if (ws.path / "work").exists():
            (ws.path / "work").rename(ws.path / "raw/work")
        return target

    ws.context.sandbox.resolve = resolve  # type: ignore[method-assign]
    with denied():
        ws.run(m.Open(1, m.Ref(b"work/file"), os.O_RDONLY))
    (ws.path / "raw/work").rename(ws.path / "work")
    with denied():
        ws.run(m.MkDir(1, m.Ref(b"work"), b"new", 0o755))
    (ws.path / "raw/work").rename(ws.path / "work")
    with denied():
        ws.run(m.Lookup(1, m.Ref(b"work"), b"file"))


def test_a_file_that_vanishes_before_it_is_judged(ws: Guarded) -> None:
    ws.rules("deny all /raw/**")
    found = ws.context.sandbox.resolve

    def resolve(ref: m.Ref, handles: Any, nowait: bool = False) -> Any:
        target = found(ref, handles, nowait)
        (ws.path / "work/file").unlink()
        return target

    reference = ws.ref(b"work/file")
    ws.context.sandbox.resolve = resolve  # type: ignore[method-assign]
    with fails(errno.ESTALE):
        ws.run(m.Open(1, reference, os.O_RDONLY))
    (ws.path / "work/file").touch()
    with fails(errno.ENOENT):
        ws.run(m.Open(1, m.Ref(b"work/file"), os.O_RDONLY))


def test_by_another_way_to_write_the_path(ws: Guarded) -> None:
    ws.rules("deny read /raw/file")
    for path in (b"raw//file", b"./raw/file", b"raw/./file"):
        with denied():
            ws.open(path)


def test_by_the_handle_of_a_directory(ws: Guarded) -> None:
    handle = ws.open_dir(b"work")
    ws.rules("deny write /raw/**", "deny write /work/a*")
    by_handle = m.Ref(b"", None, handle)
    with denied(2):
        ws.run(m.MkDir(1, by_handle, b"abc", 0o755))
    ws.run(m.MkDir(1, by_handle, b"bcd", 0o755))
    (ws.path / "work").rename(ws.path / "raw/work")
    with denied():
        ws.run(m.MkDir(1, by_handle, b"xyz", 0o755))


def test_a_directory_that_was_hidden_meanwhile(ws: Guarded) -> None:
    handle = ws.open_dir(b"work")
    ws.rules("deny read /raw", hide=True)
    ws.run(m.GetAttr(1, m.Ref(b"", None, handle)))
    (ws.path / "work").rename(ws.path / "raw/work")
    uses = ws.context.handles.get(handle)._uses
    with fails(errno.ENOENT):
        ws.run(m.MkDir(1, m.Ref(b"", None, handle), b"xyz", 0o755))
    assert ws.context.handles.get(handle)._uses == uses


# --- handles


def test_handles_are_decided_when_opened(ws: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.rules("deny read /raw/**")
    handle = ws.open(b"work/file", os.O_RDWR)

    def never(fd: int) -> bytes:
        raise AssertionError

    monkeypatch.setattr(ws.context.sandbox, "place", never)
    assert ws.read(handle, 0, 100) == b"work/file"
    ws.write(handle, 0, b"WORK")
    ws.run(m.Fallocate(1, handle, 0, 0, 100))
    ws.run(m.SetAttr(1, m.Ref(b"", None, handle), size=4))
    assert ws.run(m.GetAttr(1, m.Ref(b"", None, handle))).attr.size == 4


def test_a_new_policy_holds_for_open_files(ws: Guarded) -> None:
    handle = ws.open(b"raw/file", os.O_RDWR)
    other = ws.open(b"work/file", os.O_RDWR)
    directory = ws.open_dir(b"raw")
    assert ws.read(handle, 0, 3) == b"raw"
    ws.rules("deny all /raw", "deny write /work/**")
    for request in (
        m.Read(1, handle, 0, 1), m.Write(1, handle, 0), m.Fallocate(1, handle, 0, 0, 9),
        m.Seek(1, handle, 0, os.SEEK_DATA), m.CopyRange(1, handle, 0, other, 0, 1),
        m.CopyRange(1, other, 0, handle, 0, 1), m.GetAttr(1, m.Ref(b"", None, handle)),
        m.SetAttr(1, m.Ref(b"", None, handle), size=0), m.ReadDir(1, directory, 0, 10, False),
        m.GetXattr(1, m.Ref(b"", None, handle), b"user.x"), m.Open(1, m.Ref(b"", None, handle), os.O_RDONLY),
    ):  # fmt: skip
        with denied():
            execute(ws.context, request, b"x" if isinstance(request, m.Write) else b"")
    with denied(2):
        ws.write(other, 0, b"x")
    assert ws.read(other, 0, 4) == b"work"
    ws.close_handle(handle)
    ws.context.policy = Policy.OPEN
    ws.write(other, 0, b"WORK")
    assert (ws.path / "raw/file").read_bytes() == b"raw/file"


def test_files_without_a_name_are_what_they_were(ws: Guarded) -> None:
    known = ws.open(b"raw/file")
    pin = ws.run(m.Unlink(1, m.Ref(b"raw/deep"), b"file", pin=True)).pin
    ws.rules("deny read /else/**")
    judged = ws.open(b"work/file")
    by_handle = m.Ref(b"", None, ws.open_dir(b"work"))
    (ws.path / "work/own.key").touch()
    pinned = ws.run(m.Unlink(1, by_handle, b"own.key", pin=True)).pin
    assert pinned
    (ws.path / "raw/file").unlink()
    (ws.path / "work/file").unlink()
    ws.rules("deny read /raw/**", "deny read /work/*", "deny read /work/*.key")
    for number, handle in ((1, known), (2, judged)):
        with denied(number):
            ws.read(handle, 0, 1)
    for number, handle in ((1, pin), (3, pinned)):
        with denied(number):
            ws.run(m.ListXattr(1, m.Ref(b"", None, handle)))
    assert "denied by rule 3" in ws.why(m.Ref(b"", None, pinned))


def test_a_handle_opened_by_a_handle_knows_its_path(ws: Guarded) -> None:
    first = ws.open(b"raw/file")
    second = ws.run(m.Open(1, m.Ref(b"", None, first), os.O_RDONLY)).handle
    directory = ws.run(m.OpenDir(1, m.Ref(b"", None, ws.open_dir(b"work")))).handle
    assert ws.context.handles.get(second).path == b"raw/file"
    assert ws.context.handles.get(directory).path == b"work"


def test_temporary_files(ws: Guarded) -> None:
    ws.rules("deny read *.key", "deny write /raw/**")
    handle = ws.run(m.TmpFile(1, HERE, 0o644, os.O_RDWR)).handle
    ws.write(handle, 0, b"new")
    by_handle = m.Ref(b"", None, handle)
    with denied(2):
        ws.run(m.Link(1, by_handle, RAW, b"new"))
    ws.run(m.Link(1, by_handle, HERE, b"new.key"))
    with denied():
        ws.open(b"work/new.key")
    assert (ws.path / "work/new.key").read_bytes() == b"new"


def test_taking_up_handles_again(ws: Guarded) -> None:
    ws.rules("deny write /raw/**")
    assert ws.run(m.Reopen(1, ws.ref(b"raw/file"), 42, os.O_RDONLY, False)).handle == 42
    with denied():
        ws.run(m.Reopen(1, ws.ref(b"raw/file"), 43, os.O_RDWR, False))
    with denied():
        ws.run(m.SetAttr(1, m.Ref(b"", None, 42), size=0))


# --- moving and linking give no rights


def test_moving_away_from_a_rule(ws: Guarded) -> None:
    ws.rules("deny read *.key", "deny read /work/private/**")
    before = state(ws.path)
    for request in (
        m.Rename(1, ROOT, b"secret.key", ROOT, b"plain"),
        m.Link(1, m.Ref(b"secret.key"), ROOT, b"plain"),
        m.Rename(1, ROOT, b"work", ROOT, b"play"),
        m.Rename(1, HERE, b"file", ROOT, b"secret.key", syscalls.RENAME_EXCHANGE),
    ):
        with pytest.raises(DeniedError):
            execute(ws.context, request, b"")
    assert state(ws.path) == before
    ws.run(m.Rename(1, ROOT, b"secret.key", HERE, b"other.key"))
    ws.run(m.Link(1, m.Ref(b"work/other.key"), ROOT, b"again.key"))
    ws.run(m.Rename(1, ROOT, b"raw", HERE, b"raw"))
    ws.run(m.Rename(1, HERE, b"raw", ROOT, b"raw"))
    ws.run(m.Rename(1, HERE, b"file", RAW, b"file", syscalls.RENAME_EXCHANGE))
    assert (ws.path / "raw/file").read_bytes() == b"work/file"


def test_nothing_is_replaced_that_appears_meanwhile(ws: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.rules("deny delete /raw/**")
    request = m.Rename(1, HERE, b"file", RAW, b"new")
    true = entries._rename_to_nothing

    def late(*arguments: Any) -> None:
        (ws.path / "raw/new").write_bytes(b"precious")
        true(*arguments)

    monkeypatch.setattr(entries, "_rename_to_nothing", late)
    with denied():
        ws.run(request)
    assert (ws.path / "raw/new").read_bytes() == b"precious"
    monkeypatch.setattr(entries, "_rename_to_nothing", true)
    (ws.path / "raw/new").unlink()
    ws.run(request)
    # Also where only a directory may not be replaced, or what is there is not to be known.
    for rule, hide in (("deny delete /raw/*/", False), ("deny read,delete /raw/new", True)):
        (ws.path / "raw/new").unlink()
        (ws.path / "work/file").write_bytes(b"work/file")
        ws.rules(rule, hide=hide)
        monkeypatch.setattr(entries, "_rename_to_nothing", late)
        with denied():
            ws.run(request)
        assert (ws.path / "raw/new").read_bytes() == b"precious"


def test_replacing_what_is_hidden(ws: Guarded) -> None:
    """Allowed where removing it is; nothing is said about it."""
    ws.rules("deny read *.key", hide=True)
    reply = ws.run(m.Rename(1, HERE, b"file", ROOT, b"secret.key", pin=True))
    assert reply.attr is None
    assert reply.moved.size == 9
    assert (ws.path / "secret.key").read_bytes() == b"work/file"


def test_a_file_and_a_directory_of_one_name(ws: Guarded) -> None:
    ws.rules("deny delete file/")
    ws.run(m.Unlink(1, HERE, b"file"))
    ws.run(m.MkDir(1, HERE, b"file", 0o755))
    with denied():
        ws.run(m.RmDir(1, HERE, b"file"))


# --- hiding


def test_hidden_names(ws: Guarded) -> None:
    key = ws.ref(b"secret.key")
    deep = ws.ref(b"raw/deep/file")
    ws.rules("deny read *.key", "deny read /raw/deep", hide=True)
    assert ws.names(b"") == {b"raw", b"work", b"link"}
    assert ws.names(b"", plus=True) == {b"raw", b"work", b"link"}
    assert ws.names(b"raw") == {b"file"}
    before = state(ws.path)
    for request in (
        m.Lookup(1, ROOT, b"secret.key"),
        m.Lookup(1, m.Ref(b"secret.key"), b"x"),
        m.Lookup(1, m.Ref(b"raw/deep"), b"file"),
        m.Lookup(1, m.Ref(b"raw/deep"), b"nothing"),
        m.GetAttr(1, m.Ref(b"secret.key")),
        m.GetAttr(1, m.Ref(b"secret.key/x")),
        m.GetAttr(1, m.Ref(b"raw/deep/file/x")),
        m.Open(1, m.Ref(b"secret.key"), os.O_WRONLY),
        m.OpenDir(1, m.Ref(b"raw/deep")),
        m.ListTree(1, [m.Ref(b"raw/deep")], 100),
        m.Fetch(1, m.Ref(b"secret.key"), 0, 100),
        m.Fetch(1, m.Ref(b"secret.key"), 0, 100, True),
        m.SetAttr(1, m.Ref(b"secret.key"), size=0),
        m.Access(1, m.Ref(b"secret.key"), 0),
        m.StatFs(1, m.Ref(b"raw/deep")),
        m.GetXattr(1, m.Ref(b"secret.key"), b"user.wsfuse.why"),
        m.Unlink(1, ROOT, b"secret.key"),
        m.Unlink(1, ROOT, b"missing.key"),
        m.Rename(1, ROOT, b"secret.key", ROOT, b"plain"),
        m.RmDir(1, RAW, b"deep"),
        m.MkDir(1, m.Ref(b"raw/deep"), b"new", 0o755),
        m.Link(1, m.Ref(b"secret.key"), ROOT, b"plain"),
    ):
        with fails(errno.ENOENT):
            execute(ws.context, request, b"")
    for ref in (key, deep):
        with fails(errno.ESTALE):
            ws.run(m.GetAttr(1, ref))
    assert state(ws.path) == before


def test_denied_names_are_shown_without_hiding(ws: Guarded) -> None:
    ws.rules("deny read *.key", "deny read /raw/deep")
    assert ws.names(b"", plus=True) == {b"raw", b"work", b"link", b"secret.key"}
    assert ws.lookup(b"secret.key").size == 10
    with denied():
        ws.open(b"secret.key")


def test_creating_tells_nothing_of_hidden_files(ws: Guarded) -> None:
    """What is there and what is not is answered alike."""
    for rule in ("deny read,write *.key", "deny write *.key", "deny all *.key"):
        for hide in (False, True):
            ws.rules(rule, hide=hide)
            for flags in (os.O_CREAT | os.O_RDWR, O_NEW, os.O_CREAT | os.O_WRONLY):
                for name in (b"secret.key", b"missing.key"):
                    with denied():
                        ws.run(m.Create(1, ROOT, name, 0o644, flags))


def test_pages_of_a_listing_with_hidden_names(ws: Guarded) -> None:
    """A page is never empty before the end: the client would take that for the end."""
    for number in range(300):
        (ws.path / "work" / f"{number}.key").touch()
    ws.rules("deny read *.key", hide=True)
    assert ws.names(b"work", limit=3) == {b"file"}
    assert ws.names(b"work", limit=3, plus=True) == {b"file"}
    handle = ws.open_dir(b"work")
    (ws.path / "work/file").unlink()
    assert {entry.name for entry in ws.listing(handle, 2)} == {b".", b".."}


def test_kinds_that_the_file_system_does_not_tell(ws: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    true = syscalls.read_directory

    def read(fd: int, size: int) -> list[tuple[bytes, int, int, int]]:
        found = [(name, cookie, ino, 0) for name, cookie, ino, _ in true(fd, size)]
        return [*found, (b"vanished", 2**62, 1, 0)] if found else []

    monkeypatch.setattr(syscalls, "read_directory", read)
    ws.rules("deny read raw/", "deny read link/", hide=True)
    assert ws.names(b"") == {b"work", b"secret.key", b"link", b"vanished"}


# --- tokens


def test_a_token_shows_only_its_paths(ws: Guarded) -> None:
    ws.rules(scope=Scope((b"raw/deep",), READ, "token 1"))
    assert ws.names(b"") == {b"raw"}
    assert ws.names(b"raw") == {b"deep"}
    assert ws.names(b"raw/deep") == {b"file"}
    assert ws.read(ws.open(b"raw/deep/file"), 0, 100) == b"raw/deep/file"
    before = state(ws.path)
    for path in (b"raw/file", b"work", b"work/file", b"secret.key", b"link"):
        with fails(errno.ENOENT):
            ws.attr(path)
        with fails(errno.ENOENT):
            ws.lookup(path)
    for request in (
        m.MkDir(1, RAW, b"new", 0o755),
        m.Create(1, RAW, b"file", 0o644, os.O_CREAT | os.O_WRONLY),
        m.Create(1, m.Ref(b"raw/deep"), b"new", 0o644, O_NEW),
        m.Open(1, m.Ref(b"raw/deep/file"), os.O_RDWR),
        m.Unlink(1, m.Ref(b"raw/deep"), b"file"),
        m.RmDir(1, RAW, b"deep"),
        m.SetAttr(1, RAW, mode=0o700),
        m.ListXattr(1, RAW),
        m.Rename(1, m.Ref(b"raw/deep"), b"file", RAW, b"new"),
    ):
        with fails(errno.EACCES):
            execute(ws.context, request, b"")
    assert state(ws.path) == before


def test_a_token_for_one_file(ws: Guarded) -> None:
    ws.rules(scope=Scope((b"raw/file",), READ | WRITE, "token 1"))
    assert ws.names(b"raw", plus=True) == {b"file"}
    ws.write(ws.open(b"raw/file", os.O_RDWR), 0, b"RAW")
    assert (ws.path / "raw/file").read_bytes() == b"RAW/file"
    assert "delete: denied by token 1: it gives read, write" in ws.why(b"raw/file")


# --- folders that links lead to


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Guarded]:
    (tmp_path / "root").mkdir()
    (tmp_path / "shared").mkdir()
    for name in ("open", "closed"):
        (tmp_path / "shared" / name).write_bytes(name.encode())
    (tmp_path / "root/all").symlink_to("../shared")
    (tmp_path / "root/one").symlink_to("../shared/open")
    (tmp_path / "root/two").symlink_to("../shared/closed")
    (tmp_path / "root/broken").symlink_to("../shared/nothing")
    (tmp_path / "root/open").write_bytes(b"inside")
    workspace = Guarded(tmp_path / "root", follow_roots=[bytes(tmp_path / "shared")], links="follow")
    yield workspace
    workspace.close()


def test_followed_links_are_judged_by_where_they_lead(following: Guarded) -> None:
    following.rules("deny read closed")
    with denied():
        following.open(b"two")
    with denied():
        following.open(b"all/closed")
    assert following.read(following.open(b"one"), 0, 9) == b"open"
    following.rules("deny read closed", "deny read /one", hide=True)
    assert following.names(b"") == {b"all", b"open", b"two", b"broken"}
    shown = {entry.name: entry.attr for entry in following.listing(following.open_dir(b""), plus=True)}
    assert shown[b"two"] is None
    assert shown[b"broken"] is not None
    assert stat.S_ISDIR(shown[b"all"].mode)  # type: ignore[union-attr]
    for name in (b"one", b"two"):
        with fails(errno.ENOENT):
            following.lookup(name)
    assert following.lookup(b"open").size == 6
    assert following.names(b"all") == {b"open"}


def test_links_that_vanish_from_a_listing(following: Guarded) -> None:
    following.rules("deny read closed", hide=True)
    assert enforcement.attr_of_link(following.context, following.context.sandbox.root_fd, b"none") is None


def test_a_token_stays_in_the_workspace(following: Guarded) -> None:
    following.rules(scope=Scope((b"one", b"all", b"open"), ALL, "token 1"))
    for path in (b"one", b"all", b"all/open"):
        with fails(errno.ENOENT):
            following.attr(path)
    assert following.attr(b"open").size == 6


# --- asking why


def test_why(ws: Guarded) -> None:
    assert ws.why(b"work/file").count("allowed by the default") == 4
    ws.rules("deny read /raw/file", "deny write /raw/**")
    assert ws.why(b"raw/file") == (
        "read: denied by rule 1: deny read /raw/file; write: denied by rule 2: deny write /raw/**; "
        "execute: allowed by the default; delete: allowed by the default"
    )
    handle = ws.open(b"raw/deep/file")
    assert "read: allowed" in ws.why(m.Ref(b"", None, handle))
    os.setxattr(ws.path / "work/file", "user.wsfuse.planted", b"")
    assert ws.run(m.ListXattr(1, m.Ref(b"work/file"))).names == []
    for name in (b"user.wsfuse.planted", b"user.wsfuse.other"):
        with fails(errno.ENODATA):
            ws.run(m.GetXattr(1, m.Ref(b"work/file"), name))
    with fails(errno.EPERM):
        ws.run(m.SetXattr(1, m.Ref(b"work/file"), b"user.wsfuse.why", b""))


# --- what an engine that died has left


def test_settling_asks_again(ws: Guarded) -> None:
    append = ws.open(b"raw/file", os.O_WRONLY | os.O_APPEND)
    (ws.path / "raw/deep/file").unlink()
    cases: list[tuple[m.Request, Callable[[], None]]] = [
        (m.MkDir(1, RAW, b"made", 0o755), (ws.path / "raw/made").mkdir),
        (m.Create(1, RAW, b"new", 0o644, O_NEW), (ws.path / "raw/new").touch),
        (m.Link(1, FILE, RAW, b"link"), lambda: (ws.path / "raw/link").hardlink_to(ws.path / "raw/file")),
        (m.Unlink(1, RAW, b"new"), (ws.path / "raw/new").unlink),
        (m.RmDir(1, RAW, b"deep"), (ws.path / "raw/deep").rmdir),
        (m.Rename(1, RAW, b"link", RAW, b"other"), lambda: os.rename(ws.path / "raw/link", ws.path / "raw/other")),
        (m.SetXattr(1, FILE, b"user.x", b"1"), lambda: os.setxattr(ws.path / "raw/file", "user.x", b"1")),
        (m.Write(1, append, 0), lambda: None),
    ]  # fmt: skip
    for request, happens in cases:
        ws.context.policy = Policy.OPEN
        payload = b"raw/file" if isinstance(request, m.Write) else b""
        intent = {"size": 0} if isinstance(request, m.Write) else settle.prepare(ws.context, request)
        assert intent is not None
        happens()
        ws.rules("deny write,delete /raw/**")
        assert settle.settle(ws.context, request, intent, payload) is None
        ws.rules("deny read /else")
        assert settle.settle(ws.context, request, intent, payload) is not None


# --- all at once

names = st.sampled_from([b"a", b"b", b"s"])
places = st.lists(names, min_size=1, max_size=3).map(b"/".join)
actions = st.one_of(
    st.tuples(st.sampled_from(["rename", "link", "exchange"]), places, places),
    st.tuples(st.sampled_from(["unlink", "rmdir", "mkdir", "create", "write", "symlink"]), places, st.none()),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(actions, max_size=25), st.sampled_from(["s", "/s", "/a/s", "s/", "/a/*/s", "/a/**", "**/b/s"])
)
def test_no_sequence_gets_at_what_is_denied(
    tmp_path_factory: pytest.TempPathFactory, sequence: list[Any], pattern: str
) -> None:
    """What may not be read, changed or removed is as it was at the end, and nobody has read it elsewhere."""
    root = tmp_path_factory.mktemp("random")
    for directory in ("a/a", "a/b", "a/s", "b/a", "b/s", "s"):
        (root / directory).mkdir(parents=True)
    files = [b"a/a/a", b"a/a/s", b"a/b/s", b"a/s/a", b"b/a/s", b"b/s/a", b"b/b", b"s/a", b"s/s"]
    for name in files:
        Path(os.fsdecode(bytes(root) + b"/" + name)).write_bytes(name)
    ws = Guarded(root)
    ws.rules(f"deny all {pattern}", "allow search *")
    this = ws.context.policy
    protected = [name for name in files if not this.view(name, False).allowed & READ]

    def split(path: bytes) -> tuple[m.Ref, bytes]:
        directory, _, name = path.rpartition(b"/")
        return m.Ref(directory), name

    try:
        for action, first, second in sequence:
            parent, name = split(first)
            try:
                match action:
                    case "rename":
                        execute(ws.context, m.Rename(1, parent, name, *split(second)), b"")
                    case "exchange":
                        execute(ws.context, m.Rename(1, parent, name, *split(second), 2), b"")
                    case "link":
                        execute(ws.context, m.Link(1, m.Ref(first), *split(second)), b"")
                    case "unlink":
                        execute(ws.context, m.Unlink(1, parent, name), b"")
                    case "rmdir":
                        execute(ws.context, m.RmDir(1, parent, name), b"")
                    case "mkdir":
                        execute(ws.context, m.MkDir(1, parent, name, 0o755), b"")
                    case "symlink":
                        execute(ws.context, m.SymLink(1, parent, name, b"s"), b"")
                    case "create" | "write":
                        flags = os.O_RDWR | (os.O_TRUNC if action == "write" else 0)
                        handle = execute(ws.context, m.Create(1, parent, name, 0o644, flags), b"")[0].handle  # type: ignore[attr-defined]
                        content = ws.read(handle, 0, 100)
                        assert content not in protected
                        ws.write(handle, 0, b"mine")
                        ws.close_handle(handle)
            except OSError:
                pass
        left = {
            (Path(directory) / name).read_bytes()
            for directory, _, found in os.walk(root)
            for name in found
            if not (Path(directory) / name).is_symlink()
        }
        assert set(protected) <= left
    finally:
        ws.close()

"""The account of a workspace: what it holds, what it refuses, and that nothing escapes it."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jupyter_wsfuse.engine import quota as quota_module
from jupyter_wsfuse.engine import syscalls
from jupyter_wsfuse.engine.operations import Payload, execute
from jupyter_wsfuse.engine.quota import Quota
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.waiting import eventually
from tests.helpers.workspace import ROOT, Workspace, fails

KIB = 1 << 10
MIB = 1 << 20
LIMIT = 8 * MIB


def du(path: Path) -> int:
    output = subprocess.run(["du", "-s", "-B1", "--", path], check=True, capture_output=True).stdout
    return int(output.split()[0])


class Accounted(Workspace):
    """A workspace whose operations pass a quota, as those of sessions do."""

    def __init__(self, path: Path, limit: int = LIMIT, **options: Any) -> None:
        super().__init__(path, **options)
        self.quota = Quota(limit, bytes(path), follow=bool(options))
        self.context.handles.observer = self.quota
        self.quota.count()

    def run(self, request: m.Request, payload: Payload = b"", nowait: bool = False) -> Any:
        def run() -> Any:
            return execute(self.context, request, payload)

        return self.quota.account(self.context, request, payload, run)[0]

    def right(self) -> bool:
        """Whether the account is what du says, plus what is open without a name."""
        nameless = {
            (info.st_dev, info.st_ino): info.st_blocks * 512
            for info in (os.fstat(handle.fd) for handle in self.context.handles)
            if not info.st_nlink
        }
        return self.quota.used == du(self.path) + sum(nameless.values())


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Accounted]:
    root = tmp_path / "root"
    root.mkdir()
    workspace = Accounted(root)
    yield workspace
    workspace.close()


# --- what is refused, and what is not


def test_no_more_than_the_limit_can_be_written(workspace: Accounted) -> None:
    handle = workspace.create(b"f")
    block, at = b"x" * (256 * KIB), 0
    with fails(errno.EDQUOT) as caught:
        while True:
            at += workspace.write(handle, at, block)
    assert f"quota of {LIMIT} bytes" in str(caught.value)
    assert LIMIT - MIB < workspace.quota.used <= LIMIT
    assert du(workspace.path) <= LIMIT
    assert os.stat(workspace.path / "f").st_size == at  # the one that failed has written nothing
    assert workspace.quota.describe()["refused"] == 1
    assert workspace.right()


def test_what_needs_no_more_room_works_when_there_is_none(workspace: Accounted) -> None:
    handle = workspace.create(b"f")
    workspace.write(handle, 0, b"x" * MIB)
    workspace.quota.limit = workspace.quota.used
    assert workspace.write(handle, 0, b"y" * MIB) == MIB
    assert workspace.write(handle, 12345, b"z" * 100) == 100
    workspace.run(m.SetAttr(1, m.Ref(b"f"), mode=0o600))
    workspace.run(m.Rename(1, ROOT, b"f", ROOT, b"g"))
    with fails(errno.EDQUOT):
        workspace.write(handle, MIB - 1, b"12" * KIB)
    assert os.stat(workspace.path / "g").st_size == MIB
    workspace.run(m.SetAttr(1, m.Ref(b"g"), size=MIB // 2))
    assert workspace.write(handle, MIB // 2, b"x" * KIB) == KIB
    workspace.run(m.Unlink(1, ROOT, b"g"))
    workspace.close_handle(handle)
    assert workspace.right()


def test_room_that_was_reserved_in_a_file_can_be_written(workspace: Accounted) -> None:
    handle = workspace.create(b"f")
    workspace.run(m.Fallocate(1, handle, 0, 0, MIB))
    workspace.quota.limit = workspace.quota.used
    try:
        assert workspace.write(handle, 0, b"x" * MIB) == MIB
    except OSError as exc:
        if syscalls.file_system_type(workspace.context.sandbox.root_fd) == 0xEF53:
            raise
        pytest.skip(f"this file system does not tell what is reserved: {exc}")
    with fails(errno.EDQUOT):
        workspace.write(handle, MIB, b"x" * 8192)


def test_holes_take_room_when_they_are_filled(workspace: Accounted) -> None:
    handle = workspace.create(b"f")
    workspace.write(handle, 4 * MIB, b"x" * 4096)
    before = workspace.quota.used
    assert before < MIB
    workspace.quota.limit = before + 64 * KIB
    with fails(errno.EDQUOT):
        workspace.write(handle, 0, b"x" * 128 * KIB)
    assert workspace.write(handle, 4 * MIB, b"y" * 4096) == 4096
    assert workspace.write(handle, 8192, b"y" * 4096) == 4096
    assert workspace.right()


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.run(m.Create(1, ROOT, b"new", 0o600, os.O_RDWR)),
        lambda w: w.run(m.TmpFile(1, ROOT, 0o600, os.O_RDWR)),
        lambda w: w.run(m.MkDir(1, ROOT, b"new", 0o700)),
        lambda w: w.run(m.MkNod(1, ROOT, b"new", 0o600)),
        lambda w: w.run(m.SymLink(1, ROOT, b"new", b"old")),
        lambda w: w.run(m.Link(1, m.Ref(b"old"), ROOT, b"new")),
        lambda w: w.run(m.SetXattr(1, m.Ref(b"old"), b"user.x", b"x" * 100)),
        lambda w: w.run(m.Fallocate(1, w.open(b"old", os.O_RDWR), 0, 0, 4096)),
        lambda w: w.run(m.CopyRange(1, w.open(b"big"), 0, w.open(b"old", os.O_RDWR), 0, 4096)),
    ],
    ids=["create", "tmpfile", "mkdir", "mknod", "symlink", "link", "xattr", "fallocate", "copy"],
)
def test_nothing_is_added_to_a_full_workspace(workspace: Accounted, make: Any) -> None:
    workspace.create(b"old")
    workspace.write(workspace.create(b"big"), 0, b"x" * 4096)
    workspace.quota.limit = workspace.quota.used
    before = workspace.quota.used, sorted(os.listdir(workspace.path))
    with fails(errno.EDQUOT):
        make(workspace)
    assert (workspace.quota.used, sorted(os.listdir(workspace.path))) == before
    # What is there is opened as ever, also by who would make it otherwise.
    workspace.run(m.Create(1, ROOT, b"old", 0o600, os.O_RDWR))
    assert workspace.right()


def test_errors_are_the_operations_own(workspace: Accounted) -> None:
    gone = m.Ref(b"gone")
    for request, number in [
        (m.Write(1, 77, 0), errno.EBADF),
        (m.SetAttr(1, gone, size=1), errno.ENOENT),
        (m.Create(1, gone, b"x", 0o600, os.O_RDWR), errno.ENOENT),
        (m.Create(1, ROOT, b"x/y", 0o600, os.O_RDWR), errno.EINVAL),
        (m.MkDir(1, gone, b"x", 0o700), errno.ENOENT),
        (m.Unlink(1, ROOT, b"gone"), errno.ENOENT),
        (m.CopyRange(1, 77, 0, 78, 0, 1), errno.EBADF),
        (m.SetXattr(1, gone, b"user.x", b"x"), errno.ENOENT),
    ]:
        with fails(number):
            workspace.run(request, b"data" if isinstance(request, m.Write) else b"")
    assert not workspace.quota._changing
    assert not workspace.quota._reserved
    assert workspace.right()


def test_ranges_that_are_none_are_the_operations_to_refuse(workspace: Accounted) -> None:
    """And promise no room: nothing is reckoned with a number that the kernel could not be given."""
    handle = workspace.create(b"ranges")
    for offset, length in (
        (-1, 2**63 - 1),
        (2**63, 1),
        (0, -(2**63)),
        (2**63 - 1, 2**63 - 1),
        (2**64 - 1, 5),
    ):
        for request in (
            m.Fallocate(1, handle, 0, offset, length),
            m.CopyRange(1, handle, offset, handle, 0, length),
            m.CopyRange(1, handle, 0, handle, offset, length),
        ):
            try:
                workspace.run(request)
            except OSError as exc:
                error = exc.errno
            else:
                error = 0  # copying nothing from behind the end of a file is no error
            assert error in (0, errno.EINVAL, errno.EFBIG, errno.EOVERFLOW), request
    assert not workspace.quota._reserved
    assert workspace.right()


# --- files without a name


def test_a_file_counts_until_it_is_closed(workspace: Accounted) -> None:
    empty = workspace.quota.used
    handle, other = workspace.create(b"f"), workspace.open(b"f")
    workspace.write(handle, 0, b"x" * MIB)
    workspace.run(m.Unlink(1, ROOT, b"f"))
    assert workspace.quota.used >= empty + MIB
    workspace.write(handle, MIB, b"x" * MIB)
    assert workspace.quota.used >= empty + 2 * MIB
    workspace.quota.count()
    assert workspace.quota.used >= empty + 2 * MIB
    workspace.close_handle(handle)
    assert workspace.quota.used >= empty + 2 * MIB
    workspace.close_handle(other)
    assert workspace.quota.used == empty


def test_a_pin_and_a_temporary_file_count(workspace: Accounted) -> None:
    empty = workspace.quota.used
    handle = workspace.run(m.TmpFile(1, ROOT, 0o600, os.O_RDWR)).handle
    workspace.write(handle, 0, b"x" * MIB)
    assert workspace.quota.used == empty + MIB
    workspace.close_handle(handle)
    assert workspace.quota.used == empty
    handle = workspace.create(b"f")
    workspace.write(handle, 0, b"x" * MIB)
    workspace.close_handle(handle)
    pin = workspace.run(m.Unlink(1, ROOT, b"f", True)).pin
    assert workspace.quota.used == empty + MIB
    workspace.close_handle(pin)
    assert workspace.quota.used == empty


def test_the_end_of_a_session_frees_what_it_held(workspace: Accounted) -> None:
    empty = workspace.quota.used
    workspace.write(workspace.create(b"f"), 0, b"x" * MIB)
    workspace.run(m.Unlink(1, ROOT, b"f"))
    workspace.context.handles.close_all()
    assert workspace.quota.used == empty


def test_a_file_opened_while_it_is_removed_is_taken_off_once(workspace: Accounted) -> None:
    """It was found by its name, which vanished before the session had its handle."""
    empty = workspace.quota.used
    handle = workspace.create(b"f")
    workspace.write(handle, 0, b"x" * MIB)
    workspace.close_handle(handle)
    fd = os.open(workspace.path / "f", os.O_RDONLY)
    identity = workspace.attr(b"f").identity
    workspace.run(m.Unlink(1, ROOT, b"f"))
    assert workspace.quota.used == empty
    late = workspace.context.handles.add(fd, flags=os.O_RDONLY, identity=identity)
    assert workspace.quota.used == empty + MIB
    workspace.close_handle(late.id)
    assert workspace.quota.used == empty


def test_a_file_removed_while_it_changes_is_taken_off_once(workspace: Accounted) -> None:
    empty = workspace.quota.used
    (workspace.path / "f").write_bytes(b"x" * MIB)
    workspace.quota.count()
    assert workspace.quota.used == empty + MIB
    fd = os.open(workspace.path / "f", os.O_RDWR)
    with workspace.quota.changing(fd):
        workspace.run(m.Unlink(1, ROOT, b"f"))
        os.ftruncate(fd, 4096)
    os.close(fd)
    assert workspace.quota.used == empty


def test_a_file_closed_for_good_while_it_changes_is_taken_off_once(workspace: Accounted) -> None:
    empty = workspace.quota.used
    handle = workspace.run(m.TmpFile(1, ROOT, 0o600, os.O_RDWR)).handle
    workspace.write(handle, 0, b"x" * MIB)
    fd = os.dup(workspace.context.handles.get(handle).fd)
    with workspace.quota.changing(fd):
        workspace.close_handle(handle)
        os.ftruncate(fd, 4096)
    os.close(fd)
    assert workspace.quota.used == empty


def test_few_removed_files_are_remembered(workspace: Accounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_module, "_RELEASED_MAX", 2)
    for number in range(5):
        (workspace.path / "f").write_bytes(b"x" * number)
        workspace.run(m.Unlink(1, ROOT, b"f"))
    assert len(workspace.quota._released) <= 2


def test_a_number_used_again_is_another_file(workspace: Accounted) -> None:
    """Where the file system keeps no birth times, a new file may be taken for one that was removed."""
    handle = workspace.create(b"f")
    workspace.write(handle, 0, b"x" * MIB)
    before = workspace.quota.used
    workspace.quota._released[workspace.attr(b"f").identity] = None
    workspace.close_handle(handle)
    workspace.open(b"f")
    assert workspace.quota.used == before


def test_handles_from_before_are_no_news(workspace: Accounted) -> None:
    """The quota came into force while files were open."""
    workspace.context.handles.observer = None
    handle = workspace.create(b"f")
    workspace.context.handles.observer = workspace.quota
    before = workspace.quota.used
    workspace.close_handle(handle)
    assert workspace.quota.used == before


def test_extended_attributes_are_in_the_account(workspace: Accounted) -> None:
    workspace.create(b"f")
    workspace.run(m.SetXattr(1, m.Ref(b"f"), b"user.x", b"x" * 3000))
    assert workspace.right()
    workspace.run(m.RemoveXattr(1, m.Ref(b"f"), b"user.x"))
    assert workspace.right()


# --- several at once


def test_concurrent_changes_of_one_file_count_once(workspace: Accounted) -> None:
    handles = [workspace.create(b"f") for _ in range(4)]
    barrier = threading.Barrier(4)

    def write(number: int) -> None:
        barrier.wait(20)
        for index in range(32):
            workspace.write(handles[number], (number + 4 * index) * 16 * KIB, b"x" * 16 * KIB)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert workspace.right()


def test_what_is_under_way_is_held_against_the_limit(workspace: Accounted) -> None:
    workspace.quota.limit = workspace.quota.used + MIB
    first = os.open(workspace.path, os.O_TMPFILE | os.O_RDWR)
    with workspace.quota.changing(first, 700 * KIB):
        with fails(errno.EDQUOT):
            with workspace.quota.changing(first, 700 * KIB):
                pass
    with workspace.quota.changing(first, 700 * KIB):
        pass
    os.close(first)


# --- counting


def test_the_count_is_that_of_du(tmp_path: Path) -> None:
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"x" * MIB)
    deep = root / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"x" * 100_000)
    (root / os.fsdecode(b"n\xff\n")).write_bytes(b"x" * 5000)
    for name in ("l1", "l2"):
        os.link(deep / "f", root / name)
    (root / "away").symlink_to(outside)
    (root / "long").symlink_to("x" * 1000)
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 40)
    quota = Quota(LIMIT, bytes(root))
    quota.count()
    assert quota.used == du(root)
    assert quota.describe()["unreadable"] == 0
    assert quota.describe()["counted"] is not None


def test_a_tree_too_deep_for_a_path_is_counted(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    file = os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(file, b"x" * MIB)
    os.close(file)
    os.close(fd)
    quota = Quota(LIMIT, bytes(tmp_path))
    quota.count()
    assert quota.used == du(tmp_path) >= MIB


def test_changes_behind_the_engine_are_found(workspace: Accounted) -> None:
    (workspace.path / "f").write_bytes(b"x" * MIB)
    assert not workspace.right()
    workspace.quota.count()
    assert workspace.right()
    (workspace.path / "f").unlink()
    workspace.quota.count()
    assert workspace.right()


def test_changes_during_a_count_are_neither_lost_nor_doubled(
    workspace: Accounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file is written before the count has come by, another one after."""
    real = quota_module.measure
    handle = workspace.create(b"before")
    late = workspace.create(b"after")

    def measure(*args: Any, **options: Any) -> tuple[int, int]:
        workspace.write(handle, 0, b"x" * MIB)
        result = real(*args, **options)
        workspace.write(late, 0, b"x" * MIB)
        return result

    monkeypatch.setattr(quota_module, "measure", measure)
    workspace.quota.count()
    assert workspace.right()


def test_what_cannot_be_read_does_not_make_the_account_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = Quota(LIMIT, bytes(tmp_path))
    (tmp_path / "f").write_bytes(b"x" * MIB)
    quota.count()
    before = quota.used
    monkeypatch.setattr(quota_module, "measure", lambda *args, **options: (4096, 1))
    quota.count()
    assert quota.used == before
    assert quota.describe()["unreadable"] == 1


def test_a_root_that_is_gone_is_said(tmp_path: Path) -> None:
    quota = Quota(LIMIT, bytes(tmp_path / "gone"))
    quota.count()
    assert quota.describe()["error"] == "No such file or directory"
    assert quota.describe()["counted"] is None


def test_counting_in_the_background(tmp_path: Path) -> None:
    quota = Quota(LIMIT, bytes(tmp_path), interval=0.01)
    quota.start()
    quota.start()
    eventually(lambda: quota.describe()["counted"] is not None)
    (tmp_path / "f").write_bytes(b"x" * MIB)
    eventually(lambda: quota.used == du(tmp_path))
    quota.close()


def test_a_count_that_fails_is_logged_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def measure(*args: Any, **options: Any) -> tuple[int, int]:
        calls.append(1)
        raise RuntimeError("a fault")

    monkeypatch.setattr(quota_module, "measure", measure)
    quota = Quota(LIMIT, bytes(tmp_path), interval=0.001)
    quota.start()
    eventually(lambda: len(calls) > 1)
    quota.close()
    assert "could not be counted" in caplog.text
    quota = Quota(LIMIT, bytes(tmp_path))
    quota.close()  # never started


def test_a_count_is_given_up_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    real = quota_module.measure

    def measure(root: bytes, stop: threading.Event, **options: Any) -> tuple[int, int]:
        begun.set()
        stop.wait(20)
        return real(root, stop, **options)

    monkeypatch.setattr(quota_module, "measure", measure)
    quota = Quota(LIMIT, bytes(tmp_path))
    quota.start()
    assert begun.wait(20)
    quota.close()
    assert quota.describe()["counted"] is None


# --- df, and links that lead out


def test_df_shows_the_quota(workspace: Accounted) -> None:
    workspace.write(workspace.create(b"f"), 0, b"x" * MIB)
    reply = workspace.run(m.StatFs(1, ROOT))
    assert reply.blocks * reply.frsize == LIMIT
    assert reply.bavail * reply.frsize == LIMIT - workspace.quota.used
    workspace.quota.limit = 1 << 60
    real = os.statvfs(workspace.path)
    assert workspace.run(m.StatFs(1, ROOT)).blocks == real.f_blocks


def test_what_lies_elsewhere_does_not_count(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "big").write_bytes(b"x" * 4 * MIB)
    (root / "away").symlink_to(outside)
    workspace = Accounted(root, MIB, follow_roots=[bytes(outside)], links="follow")
    before = workspace.quota.used
    handle = workspace.run(m.Create(1, m.Ref(b"away"), b"f", 0o600, os.O_RDWR)).handle
    assert workspace.write(handle, 0, b"x" * MIB) == MIB
    assert workspace.write(handle, MIB, b"x" * MIB) == MIB
    workspace.run(m.Unlink(1, m.Ref(b"away"), b"big"))
    workspace.run(m.Unlink(1, m.Ref(b"away"), b"f"))
    workspace.close_handle(handle)
    assert workspace.quota.used == before
    workspace.close()


# --- whatever is done


class Anything(RuleBasedStateMachine):
    """The account is what du says after any sequence of operations, and the limit holds."""

    names = st.sampled_from([b"a", b"b", b"c"])
    sizes = st.integers(0, 300 * KIB)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.workspace = Accounted(Path(self.folder.name), 2 * MIB)
        self.handles: list[int] = []

    def attempt(self, request: m.Request, payload: bytes = b"") -> Any:
        try:
            return self.workspace.run(request, payload)
        except OSError:
            return None

    @rule(name=names, flags=st.sampled_from([0, os.O_TRUNC, os.O_EXCL]))
    def create(self, name: bytes, flags: int) -> None:
        reply = self.attempt(m.Create(1, ROOT, name, 0o600, os.O_RDWR | flags))
        if reply is not None:
            self.handles.append(reply.handle)

    @rule(name=names, flags=st.sampled_from([0, os.O_TRUNC]))
    def open(self, name: bytes, flags: int) -> None:
        reply = self.attempt(m.Open(1, m.Ref(name), os.O_RDWR | flags))
        if reply is not None:
            self.handles.append(reply.handle)

    @rule(data=st.data(), offset=sizes, size=sizes)
    def write(self, data: st.DataObject, offset: int, size: int) -> None:
        if self.handles:
            self.attempt(m.Write(1, data.draw(st.sampled_from(self.handles)), offset), b"x" * size)

    @rule(data=st.data(), mode=st.sampled_from([0, 1, 3, 16]), offset=sizes, size=st.integers(1, 300 * KIB))
    def allocate(self, data: st.DataObject, mode: int, offset: int, size: int) -> None:
        if self.handles:
            self.attempt(m.Fallocate(1, data.draw(st.sampled_from(self.handles)), mode, offset, size))

    @rule(data=st.data(), offset=sizes, size=sizes)
    def copy(self, data: st.DataObject, offset: int, size: int) -> None:
        if self.handles:
            one, two = (data.draw(st.sampled_from(self.handles)) for _ in range(2))
            self.attempt(m.CopyRange(1, one, 0, two, offset, size))

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.handles:
            handle = data.draw(st.sampled_from(self.handles))
            self.handles.remove(handle)
            self.attempt(m.Close(1, handle))

    @rule(name=names, size=sizes)
    def truncate(self, name: bytes, size: int) -> None:
        self.attempt(m.SetAttr(1, m.Ref(name), size=size))

    @rule(name=names, pin=st.booleans())
    def unlink(self, name: bytes, pin: bool) -> None:
        reply = self.attempt(m.Unlink(1, ROOT, name, pin))
        if reply is not None and reply.pin:
            self.handles.append(reply.pin)

    @rule(name=names)
    def mkdir(self, name: bytes) -> None:
        self.attempt(m.MkDir(1, ROOT, name, 0o700))

    @rule(name=names)
    def rmdir(self, name: bytes) -> None:
        self.attempt(m.RmDir(1, ROOT, name))

    @rule(name=names, length=st.sampled_from([1, 1000]))
    def symlink(self, name: bytes, length: int) -> None:
        self.attempt(m.SymLink(1, ROOT, name, b"x" * length))

    @rule(name=names, new=names)
    def link(self, name: bytes, new: bytes) -> None:
        self.attempt(m.Link(1, m.Ref(name), ROOT, new))

    @rule(name=names, new=names, flags=st.sampled_from([0, 1, 2]))
    def rename(self, name: bytes, new: bytes, flags: int) -> None:
        self.attempt(m.Rename(1, ROOT, name, ROOT, new, flags))

    @invariant()
    def account_is_right(self) -> None:
        assert self.workspace.right()
        assert self.workspace.quota.used <= self.workspace.quota.limit

    def teardown(self) -> None:
        assert not self.workspace.quota._reserved
        assert not self.workspace.quota._changing
        self.workspace.close()
        assert self.workspace.quota.used == du(self.workspace.path)
        self.folder.cleanup()


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

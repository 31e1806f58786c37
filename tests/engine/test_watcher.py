"""What a session is told of what happens to the files, and what it is not told because it did that itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine import inotify
from jupyter_wsfuse.engine import notes as notes_module
from jupyter_wsfuse.engine import watcher as watcher_module
from jupyter_wsfuse.engine.changes import Pending
from jupyter_wsfuse.engine.leases import Leaser
from jupyter_wsfuse.engine.operations import execute
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.engine.watcher import Watcher, fine_times
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Change, Changed, InvalidateAll, Released
from tests.helpers.workspace import ROOT, Workspace

DIR = m.Ref(b"dir")


class Told:
    """A session as far as the watcher knows one."""

    def __init__(self, context: Any, workspace: str = "home") -> None:
        self.context = context
        self.workspace = workspace
        self.leases: dict[m.Identity, Any] = {}
        self.lease_ends = 0
        self.pending = Pending()
        self.leaser: Leaser

    def leases_of(self, watcher: Watcher) -> Leaser:
        self.leaser = Leaser(watcher.leases, self, self.context.sandbox)  # type: ignore[arg-type]
        return self.leaser


class Watched(Workspace):
    """A workspace whose operations are noted, with one session that has leases."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path)
        self.marked: list[Told] = []
        self.watcher = Watcher(
            **{"watches": 1000, "each": 100, **options},
            mark=self.marked.append,  # type: ignore[arg-type]
            ended=lambda session, identities: None,
        )
        self.watcher.settle(self.context.sandbox)
        self.session = Told(self.context)
        self.context.leases = self.session.leases_of(self.watcher)

    def do(self, request: m.Request, payload: bytes = b"") -> Any:
        """As the engine does it for a client."""
        changes = request.mutating or isinstance(request, m.Open)
        doing = self.watcher.ours.begin(self.session, request) if changes else None  # type: ignore[arg-type]
        try:
            reply, _ = execute(self.context, request, payload)
            if doing is not None:
                doing.done(reply)
        finally:
            if doing is not None:
                doing.end()
        return reply

    def named(self, path: bytes) -> m.Ref:
        """A directory as clients name it."""
        return m.Ref(path, self.attr(path).identity)

    def join(self, workspace: str = "home") -> Told:
        """Another session, with leases on all of it."""
        other = Told(self.context, workspace)
        mine, self.context.leases = self.context.leases, other.leases_of(self.watcher)
        self.run(m.ListTree(1, [ROOT], 100, 5))
        self.context.leases = mine
        return other

    def forget(self) -> None:
        self.watcher.drain()
        self.session.pending.take()

    def news(self, session: Told | None = None) -> list[tuple[bytes | None, bytes | None]]:
        """What the session is told: (what the file is called, name of the entry)."""
        self.watcher.drain()
        found: list[tuple[bytes | None, bytes | None]] = []
        names = {}
        for folder, folders, files in os.walk(os.fsencode(self.path)):
            for name in (b".", *folders, *files):
                path = os.path.relpath(os.path.join(folder, name), os.fsencode(self.path))
                status = os.lstat(os.path.join(folder, name))
                names.setdefault(status.st_ino, path)
        for message in (session or self.session).pending.take():
            assert isinstance(message, Changed)
            found += [(names.get(change.identity.ino), change.name) for change in message.changes]
        return found

    def close(self) -> None:
        self.watcher.close()
        super().close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    root = tmp_path / "root"
    (root / "dir/deep").mkdir(parents=True)
    (root / "dir/file").write_bytes(b"content")
    (root / "hard").write_bytes(b"two names")
    os.link(root / "hard", root / "dir/hard")
    made: list[Watched] = []

    def start(**options: Any) -> Watched:
        made.append(Watched(root, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def ws(make: Callable[..., Watched]) -> Watched:
    """Leases on all of it."""
    ws = make()
    ws.do(m.ListTree(1, [ROOT], 100, 5))
    assert len(ws.session.leases) == 4  # three directories, and a file of two names
    assert ws.news() == []
    return ws


def test_changes_of_others_are_told(ws: Watched) -> None:
    (ws.path / "dir/file").write_bytes(b"other")
    assert ws.news() == [(b"dir/file", None)]
    assert ws.marked[-1] is ws.session
    (ws.path / "dir/file").chmod(0o600)
    assert ws.news() == [(b"dir/file", None)]
    (ws.path / "dir/new").touch()
    assert ws.news()[0] == (b"dir", b"new")
    (ws.path / "dir/new").rename(ws.path / "moved")
    assert ws.news() == [(b"dir", b"new"), (b".", b"moved")]
    (ws.path / "moved").unlink()
    assert ws.news() == [(b".", b"moved")]
    (ws.path / "dir/deep").chmod(0o700)
    assert ws.news() == [(b"dir/deep", None)]


def test_what_is_not_covered_is_not_told(make: Callable[..., Watched]) -> None:
    ws = make()
    ws.do(m.ListTree(1, [DIR], 100))
    (ws.path / "elsewhere").touch()
    (ws.path / "dir/deep/inner").touch()
    assert ws.news() == []


def test_without_leases_nothing_is_read(make: Callable[..., Watched]) -> None:
    ws = make()
    ws.do(m.Create(1, ROOT, b"n", 0o644, os.O_RDWR))
    assert ws.news() == []
    assert ws.watcher.events == 0


def test_ones_own_operations_do_not_come_back(ws: Watched) -> None:
    handle = ws.do(m.Create(1, DIR, b"new", 0o644, os.O_RDWR)).handle
    ws.do(m.Write(1, handle, 0), b"data")
    ws.do(m.Fallocate(1, handle, 0, 0, 100))
    ws.do(m.SetAttr(1, m.Ref(b"", None, handle), mode=0o600))
    ws.do(m.CopyRange(1, handle, 0, handle, 50, 10))
    assert ws.news() == [(b"dir", b"new")]  # made in a directory that was not named by identity
    root = ws.named(b"")
    ws.do(m.MkDir(1, root, b"made", 0o755))
    ws.do(m.SymLink(1, root, b"link", b"target"))
    ws.do(m.MkNod(1, root, b"node", 0o100644))
    ws.do(m.Link(1, m.Ref(b"node"), root, b"node2"))
    ws.do(m.Unlink(1, root, b"node2"))
    ws.do(m.Rename(1, ws.named(b"dir"), b"new", root, b"renamed"))
    ws.do(m.Rename(1, root, b"made", ws.named(b"dir"), b"moved"))
    ws.do(m.RmDir(1, ws.named(b"dir"), b"moved"))
    ws.do(m.Open(1, m.Ref(b"renamed"), os.O_RDWR | os.O_TRUNC))
    ws.do(m.Unlink(1, root, b"node"))
    assert ws.news() == []
    assert ws.watcher.echoes > 10


def test_a_change_right_after_ones_own_is_told(ws: Watched) -> None:
    handle = ws.open(b"dir/file", os.O_RDWR)
    ws.do(m.Write(1, handle, 0), b"mine")
    with (ws.path / "dir/file").open("r+b") as file:
        file.write(b"abc")
    assert ws.news() == [(b"dir/file", None)]
    ws.do(m.Write(1, handle, 0), b"mine")
    assert ws.news() == []


def test_one_state_is_told_once(ws: Watched) -> None:
    with (ws.path / "dir/file").open("r+b") as file:
        file.write(b"x")
        file.flush()
        assert ws.news() == [(b"dir/file", None)]
    assert ws.news() == []  # it was closed


def test_where_times_are_coarse_equal_times_prove_nothing(
    make: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "fine_times", lambda sandbox: False)
    now = [0]
    ws = make(wall=lambda: now[0])
    ws.do(m.ListTree(1, [DIR], 100))
    handle = ws.open(b"dir/file", os.O_RDWR)
    ws.do(m.Write(1, handle, 0), b"mine")
    # It is looked at late: another change with the same times may have followed the write.
    now[0] = ws.attr(b"dir/file").ctime + 10**9
    assert ws.news() == [(b"dir/file", None)]
    ws.close_handle(handle)  # this event came later than any such change
    assert ws.news() == []
    assert ws.watcher.echoes == 1


def test_a_file_of_several_names_is_told_to_whoever_knows_it(ws: Watched) -> None:
    (ws.path / "hard").write_bytes(b"by one name")
    assert ws.news() in ([(b"hard", None)], [(b"dir/hard", None)])
    os.link(ws.path / "dir/file", ws.path / "second")
    told = ws.news()
    assert (b".", b"second") in told
    assert any(name is None and path in (b"dir/file", b"second") for path, name in told)
    (ws.path / "hard").unlink()
    told = ws.news()
    assert (b".", b"hard") in told
    assert (b"dir/hard", None) in told
    (ws.path / "dir/hard").unlink()
    ws.watcher.drain()
    messages = ws.session.pending.take()
    assert any(isinstance(message, Released) for message in messages)  # it is gone for good
    assert len(ws.session.leases) == 3


def test_a_directory_that_is_removed_is_let_go(ws: Watched) -> None:
    identity = ws.attr(b"dir/deep").identity
    assert identity in ws.session.leases
    (ws.path / "dir/deep").rmdir()
    ws.watcher.drain()
    messages = ws.session.pending.take()
    assert Released([identity]) in messages
    assert identity not in ws.session.leases
    (ws.path / "dir/deep").mkdir()  # under the same name, another one
    (ws.path / "dir/deep/inner").touch()
    assert {name for _, name in ws.news()} == {b"deep"}


def test_more_than_the_kernel_queues(ws: Watched) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events") as setting:
        most = int(setting.read())
    for number in range(most // 2 + 100):
        os.chmod(ws.path / "dir/file", 0o600 + number % 2)
        os.chmod(ws.path / "hard", 0o600 + number % 2)
    while not ws.watcher.overflows:
        ws.watcher.drain()
    messages = ws.session.pending.take()
    assert any(isinstance(message, InvalidateAll) for message in messages)
    assert len(ws.session.leases) == 4
    (ws.path / "dir/file").chmod(0o644)
    ws.session.pending.take()
    (ws.path / "dir/file").chmod(0o600)
    assert (b"dir/file", None) in ws.news()  # it goes on


def test_what_vanished_before_it_was_looked_at(ws: Watched) -> None:
    with (ws.path / "dir/file").open("r+b", buffering=0) as file:
        file.write(b"x")
        (ws.path / "dir/file").unlink()
    assert ws.news() == [(b"dir", b"file")]


def test_notes_are_bounded(ws: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes_module, "MOST", 2)
    root = ws.named(b"")
    for name in (b"one", b"two", b"three"):
        ws.do(m.MkNod(1, root, name, 0o100644))
    assert {name for _, name in ws.news()} >= {b"one"}  # forgotten, so told


def test_whether_times_are_fine_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = Sandbox(tmp_path)
    assert isinstance(fine_times(sandbox), bool)
    assert list(tmp_path.iterdir()) == []

    def fail(*arguments: Any, **more: Any) -> int:
        raise OSError(30, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        assert not fine_times(sandbox)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert not fine_times(sandbox)
    sandbox.close()


def test_a_queue_without_leases_is_emptied(make: Callable[..., Watched]) -> None:
    ws = make()
    ws.do(m.ListTree(1, [DIR], 100))
    ws.watcher.leases.end(ws.session.leaser)
    assert not ws.watcher.leases
    ws.watcher.drain()
    assert ws.watcher.queue.read() == []


def test_a_device_is_tried_once(make: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    ws = make()
    monkeypatch.setattr(watcher_module, "fine_times", lambda sandbox: pytest.fail("tried again"))
    ws.watcher.settle(ws.context.sandbox)


def test_a_rename_over_a_file(ws: Watched) -> None:
    (ws.path / "old").touch()
    ws.forget()
    root = ws.named(b"")
    ws.do(m.MkNod(1, root, b"new", 0o100644))
    ws.do(m.Rename(1, root, b"new", root, b"old"))
    assert ws.news() == []


def test_an_entry_named_through_an_open_directory(ws: Watched) -> None:
    directory = ws.open_dir(b"dir")
    ws.do(m.MkNod(1, m.Ref(b"", None, directory), b"new", 0o100644))
    assert ws.news() == []


def test_a_removed_directory_that_another_one_is_called_like(ws: Watched) -> None:
    (ws.path / "dir/deep/deep").mkdir()
    ws.do(m.ListTree(1, [m.Ref(b"dir/deep")], 100, 3))
    inner = ws.attr(b"dir/deep/deep").identity
    (ws.path / "dir/deep/deep").rmdir()
    ws.forget()
    assert inner not in ws.session.leases
    assert ws.attr(b"dir/deep").identity in ws.session.leases


def test_news_of_nobody_are_ignored(ws: Watched) -> None:
    ws.watcher._happened(inotify.Event(4711, inotify.CREATE, b"x"))
    assert ws.session.pending.take() == []
    watched = next(iter(ws.watcher.leases))
    ws.watcher._happened(inotify.Event(watched.wd, inotify.UNMOUNT, b""))
    assert [type(message) for message in ws.session.pending.take()] == [Changed, Released]


def test_what_cannot_be_looked_at_is_gone(ws: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = ws.attr(b"dir/deep").identity
    watched = ws.session.leases[identity]

    def fail(*arguments: Any) -> Any:
        raise OSError(5, "the disk")

    with monkeypatch.context() as patch:
        patch.setattr(watched.sandbox, "stat", fail)
        ws.watcher._gone_if_removed(watched)
    assert identity not in ws.session.leases
    root = ws.session.leases[ws.attr(b"").identity]
    with monkeypatch.context() as patch:
        patch.setattr(root.sandbox, "stat", fail)
        ws.watcher._happened(inotify.Event(root.wd, inotify.ATTRIB, b""))
    assert len(ws.session.leases) == 2
    assert ws.watcher.describe()["watches"] == 2
    assert Change(identity) in ws.session.pending.take()[0].changes  # type: ignore[union-attr]


# --- what looks like an echo and is none


def test_made_and_removed_again_by_others_is_told(ws: Watched) -> None:
    """Whoever looked at the name meanwhile believes what he saw."""
    root = ws.named(b"")
    ws.do(m.MkDir(1, root, b"x", 0o755))
    ws.do(m.RmDir(1, root, b"x"))
    assert ws.news() == []
    (ws.path / "x").mkdir()
    (ws.path / "x").rmdir()
    assert ws.news() == [(b".", b"x")]


def test_moved_away_and_back_by_others_is_told(ws: Watched) -> None:
    root = ws.named(b"")
    ws.do(m.MkNod(1, root, b"x", 0o100644))
    assert ws.news() == []
    (ws.path / "x").rename(ws.path / "dir/y")
    (ws.path / "dir/y").rename(ws.path / "x")
    told = ws.news()
    assert (b".", b"x") in told
    assert (b"dir", b"y") in told


def test_another_workspace_on_the_same_files_is_told(ws: Watched) -> None:
    """Nobody else tells its sessions: they have nothing to do with the workspace in which it was done."""
    beside, elsewhere = ws.join(), ws.join("elsewhere")
    root = ws.named(b"")
    ws.do(m.MkNod(1, root, b"x", 0o100644))
    ws.do(m.SetAttr(1, m.Ref(b"dir/file"), mode=0o600))
    assert ws.news() == ws.news(beside) == []
    assert ws.news(elsewhere) == [(b".", b"x"), (b"dir/file", None)]
    ws.do(m.Write(1, ws.open(b"hard", os.O_RDWR), 0), b"both")
    assert ws.news() == ws.news(beside) == []
    assert set(ws.news(elsewhere)) & {(b"hard", None), (b"dir/hard", None)}


def test_each_directory_that_a_file_is_in_hears_of_it(make: Callable[..., Watched]) -> None:
    """Those who know it by one name as a file without another, and those who know that it has several."""
    ws = make()
    (ws.path / "out").mkdir()
    ws.do(m.ListTree(1, [DIR], 100))
    os.link(ws.path / "dir/file", ws.path / "out/second")  # nobody watches there
    other = Told(ws.context)
    ws.context.leases = other.leases_of(ws.watcher)
    assert ws.do(m.GetAttr(1, m.Ref(b"out/second"))).lease == m.LEASE_SELF
    ws.forget()
    with (ws.path / "dir/file").open("r+b") as file:
        file.write(b"x")
        file.flush()
        told, others = ws.news(), ws.news(other)
    assert any(name is None for _, name in told)
    assert any(name is None for _, name in others)


def test_a_directory_that_was_moved_is_told_and_let_go_when_removed(ws: Watched) -> None:
    identity = ws.attr(b"dir/deep").identity
    (ws.path / "dir/deep").rename(ws.path / "elsewhere")
    told = ws.news()
    assert (b"elsewhere", None) in told  # its ctime is another
    assert (b"dir", b"deep") in told
    (ws.path / "elsewhere").rmdir()
    ws.forget()
    assert identity not in ws.session.leases


def test_a_file_of_several_names_is_moved_where_nobody_watches(make: Callable[..., Watched]) -> None:
    ws = make()
    ws.do(m.GetAttr(1, m.Ref(b"hard")))
    ws.forget()
    (ws.path / "hard").rename(ws.path / "hardly")
    assert (b"hardly", None) in ws.news() or (b"dir/hard", None) in ws.news()


def test_what_goes_on_with_a_file_without_a_name_is_nobodys_concern(ws: Watched) -> None:
    with (ws.path / "dir/file").open("r+b") as file:
        (ws.path / "dir/file").unlink()
        assert ws.news() == [(b"dir", b"file")]
        file.write(b"x")
    assert ws.news() == []


def test_a_directory_at_a_name_of_a_file_that_was_renamed_over(ws: Watched) -> None:
    (ws.path / "dir/a").write_bytes(b"1")
    (ws.path / "dir/b").write_bytes(b"2")
    ws.forget()
    (ws.path / "dir/a").rename(ws.path / "dir/b")
    assert set(ws.news()) == {(b"dir", b"a"), (b"dir", b"b")}


def test_a_server_that_cannot_watch(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Watched]) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(inotify, "Inotify", none_left)
    monkeypatch.setattr(watcher_module._LOG, "disabled", True)
    ws = make()
    assert "EMFILE" in ws.watcher.unable
    assert ws.watcher.fd == -1
    assert not ws.do(m.ListTree(1, [ROOT], 100)).directories[0].lease
    ws.watcher.drain()
    assert ws.watcher.describe() == {
        "watches": 0, "leases": 0, "refused": 2, "events": 0, "echoes": 0, "overflows": 0,
        "unable": ws.watcher.unable,
    }  # fmt: skip


# --- while operations are at work


class AtWork:
    """An operation of a session that is not done yet, although the kernel tells of it already."""

    def __init__(self, ws: Watched, request: m.Request, payload: bytes = b"") -> None:
        doing = ws.watcher.ours.begin(ws.session, request)  # type: ignore[arg-type]
        assert doing is not None
        self.doing = doing
        self.reply, _ = execute(ws.context, request, payload)

    def finish(self) -> None:
        self.doing.done(self.reply)
        self.doing.end()


def test_what_is_at_work_is_waited_for(make: Callable[..., Watched]) -> None:
    asked: list[float] = []
    ws = make(again=asked.append)
    ws.do(m.ListTree(1, [ROOT], 100, 5))
    root, folder = ws.named(b""), ws.named(b"dir")
    handle = ws.open(b"dir/file", os.O_RDWR)
    requests: list[tuple[m.Request, bytes]] = [
        (m.Write(1, handle, 0), b"x"),
        (m.Fallocate(1, handle, 0, 0, 100), b""),
        (m.CopyRange(1, handle, 0, handle, 50, 10), b""),
        (m.SetAttr(1, ws.ref(b"dir/file"), mode=0o600), b""),
        (m.SetXattr(1, ws.ref(b"dir/file"), b"user.x", b"1"), b""),
        (m.SetXattr(1, m.Ref(b"", None, handle), b"user.y", b"1"), b""),
        (m.RemoveXattr(1, ws.ref(b"dir/file"), b"user.x"), b""),
        (m.Open(1, ws.ref(b"dir/file"), os.O_RDWR | os.O_TRUNC), b""),
        (m.Create(1, root, b"new", 0o644, os.O_RDWR), b""),
        (m.Link(1, ws.ref(b"hard"), root, b"hard3"), b""),
        (m.MkDir(1, root, b"made", 0o755), b""),
        (m.Rename(1, root, b"made", folder, b"moved"), b""),
        (m.Rename(1, folder, b"deep", root, b"deep"), b""),
        (m.RmDir(1, folder, b"moved"), b""),
        (m.Unlink(1, root, b"new"), b""),
    ]
    for request, payload in requests:
        asked.clear()
        at_work = AtWork(ws, request, payload)
        assert ws.news() == [], request
        assert asked == [watcher_module.PATIENCE]
        at_work.finish()
        assert ws.news() == [], request


def test_what_others_do_meanwhile_is_told_at_once(ws: Watched) -> None:
    handle = ws.open(b"dir/file", os.O_RDWR)
    at_work = AtWork(ws, m.Write(1, handle, 0), b"x")
    (ws.path / "hard").chmod(0o600)
    (ws.path / "other").mkdir()
    told = ws.news()
    assert (b".", b"other") in told
    assert (b"dir/file", None) not in told
    at_work.finish()
    (ws.path / "dir/file").chmod(0o600)
    assert ws.news() == [(b"dir/file", None)]


def test_what_others_do_with_the_same_file_is_told_afterwards(ws: Watched) -> None:
    handle = ws.open(b"dir/file", os.O_RDWR)
    at_work = AtWork(ws, m.Write(1, handle, 0), b"x")
    assert ws.news() == []
    for _ in range(3):
        os.pwrite(ws.context.handles.get(handle).fd, b"y", 0)
        assert ws.news() == []
    assert len(ws.watcher._waiting) == 1
    at_work.finish()
    (ws.path / "dir/file").chmod(0o600)
    assert ws.news() == [(b"dir/file", None)]


def test_news_do_not_wait_for_ever(ws: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor while one operation follows another without a gap."""
    monkeypatch.setattr(watcher_module, "PATIENCE", 1e-9)
    handle = ws.open(b"dir/file", os.O_RDWR)
    at_work = AtWork(ws, m.Write(1, handle, 0), b"x")
    assert ws.news() == []
    ws.session.pending.take()
    assert ws.news() == [(b"dir/file", None)]
    at_work.finish()


def test_an_operation_that_fails_was_none(ws: Watched) -> None:
    with pytest.raises(OSError):
        ws.do(m.MkDir(1, ws.named(b""), b"hard", 0o755))
    assert not ws.watcher._notes.at_work((ws.attr(b"").identity, b"hard"))
    (ws.path / "hard").unlink()
    (ws.path / "hard").mkdir()
    assert (b".", b"hard") in ws.news()


# --- what of an operation cannot be noted


def done(ws: Watched, request: m.Request, reply: m.Reply) -> int:
    """How many notes there are more once it was done."""
    before = len(ws.watcher._notes)
    doing = ws.watcher.ours.begin(ws.session, request)  # type: ignore[arg-type]
    assert doing is not None
    doing.done(reply)
    doing.end()
    return len(ws.watcher._notes) - before


def test_what_cannot_be_said_is_not_noted(ws: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ws.named(b"")
    one, two = ws.attr(b"dir/file"), ws.attr(b"hard")
    assert done(ws, m.Write(1, 4711, 0), m.CountReply(1, 1)) == 0
    assert done(ws, m.Unlink(1, m.Ref(b"", None, 4711), b"x"), m.RemovedReply(1)) == 0
    assert done(ws, m.Unlink(1, m.Ref(b""), b"x"), m.RemovedReply(1)) == 0
    assert done(ws, m.Unlink(1, m.Ref(b"dir/file", one.identity), b"x"), m.RemovedReply(1)) == 0
    assert done(ws, m.TmpFile(1, root, 0o600, os.O_RDWR), m.OpenReply(1, 5, one)) == 1  # its state
    assert done(ws, m.Rename(1, root, b"a", root, b"b"), m.RemovedReply(1)) == 0
    assert (
        done(ws, m.Rename(1, root, b"a", root, b"b", 2), m.RemovedReply(1, moved=one)) == 0
    )  # known already
    assert done(ws, m.Rename(1, root, b"a", root, b"b"), m.RemovedReply(1, moved=two)) == 1
    assert done(ws, m.SetXattr(1, m.Ref(b"hard"), b"user.x", b""), m.Done(1)) == 0
    gone = m.Ref(b"no", two.identity)
    assert done(ws, m.SetXattr(1, gone, b"user.x", b""), m.Done(1)) == -1  # it is unknown now
    handle = ws.open(b"dir/file", os.O_RDWR)

    def fail(*arguments: Any) -> Any:
        raise OSError(errno.EIO, "the disk")

    with monkeypatch.context() as patch:
        patch.setattr(ws.context.sandbox, "stat", fail)
        assert done(ws, m.Write(1, handle, 0), m.CountReply(1, 1)) == -1


def test_a_directory_that_is_watched_since_the_operation_began(make: Callable[..., Watched]) -> None:
    """Its event came before: nothing will come that could be excused."""
    ws = make()
    ws.do(m.ListTree(1, [DIR], 100))
    sandbox = ws.context.sandbox
    root = m.Ref(b"", sandbox.stat(sandbox.root_fd).identity)
    assert ws.watcher.leases.on(root.identity) is None  # type: ignore[arg-type]
    at_work = AtWork(ws, m.MkNod(1, root, b"made", 0o100644))
    (ws.path / "made").rename(ws.path / "dir/away")
    ws.run(m.ListTree(1, [root], 100))  # now it is watched, and has no such entry
    at_work.finish()
    ws.forget()
    os.link(ws.path / "dir/away", ws.path / "made")
    assert (b".", b"made") in ws.news()

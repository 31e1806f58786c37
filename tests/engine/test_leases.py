"""Leases: granted and ended, and nothing is left of one that has ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine import leases as leases_module
from jupyter_wsfuse.engine.inotify import Inotify
from jupyter_wsfuse.engine.leases import Leaser, Leases, most_watches, unlease
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Identity


class Holder:
    """What leases need to know of a session."""

    def __init__(self) -> None:
        self.leases: dict[Identity, Any] = {}
        self.lease_ends = 0
        self.leaser: Any = None


class Table:
    def __init__(self, root: Path, **limits: int) -> None:
        self.root = root
        self.queue = Inotify()
        self.told: list[tuple[Any, list[Identity]]] = []
        self.leases = Leases(
            self.queue, **{"watches": 100, "each": 100, **limits}, ended=lambda *said: self.told.append(said)
        )
        self.sandbox = Sandbox(root)

    def grant(self, holder: Any, name: str) -> tuple[bool, Identity]:
        fd = os.open(self.root / name, os.O_PATH)
        try:
            attr = self.sandbox.stat(fd)
            leaser = holder.leaser = holder.leaser or Leaser(self.leases, holder, self.sandbox)
            granted = (leaser.directory if os.path.isdir(self.root / name) else leaser.file)(fd, attr)
            assert granted == leaser.holds(attr.identity)
            return granted, attr.identity
        finally:
            os.close(fd)

    def close(self) -> None:
        for watched in self.leases:
            self.leases.gone(watched)
        self.queue.close()
        self.sandbox.close()


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Callable[..., Table]]:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    before = len(os.listdir("/proc/self/fd"))
    made: list[Table] = []

    def make(**limits: int) -> Table:
        made.append(Table(tmp_path, **limits))
        return made[-1]

    yield make
    for each in made:
        each.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_sessions_share_a_watch(table: Callable[..., Table]) -> None:
    t = table()
    one, two = Holder(), Holder()
    assert t.grant(one, "a")[0]
    assert t.grant(one, "a")[0]
    granted, identity = t.grant(two, "a")
    assert granted
    assert len(t.leases) == 1
    watched = t.leases.on(identity)
    assert watched is not None
    assert list(watched.holders) == [one, two]
    assert t.leases.granted == 2
    assert t.leases.end(one.leaser) == [identity]
    assert one.leases == {}
    assert list(watched.holders) == [two]
    t.leases.end(two.leaser)
    assert len(t.leases) == t.leases.granted == 0
    assert t.leases.on(identity) is None


def test_files_and_directories(table: Callable[..., Table]) -> None:
    t = table()
    holder = Holder()
    t.grant(holder, "a")
    _, file = t.grant(holder, "file")
    watched = holder.leases[file]
    assert not watched.directory
    assert t.leases.find(watched.wd) is watched
    assert [each.identity for each in t.leases.called(b"a")] == [i for i in holder.leases if i != file]
    assert t.leases.called(b"file") == []
    assert t.leases.gone(watched) == [holder]
    assert t.leases.find(watched.wd) is None
    assert t.leases.gone(watched) == []
    assert file not in holder.leases
    assert holder.lease_ends == 1


def test_who_was_told_that_leases_end_gets_none(table: Callable[..., Table]) -> None:
    t = table()
    holder = Holder()
    granted, identity = t.grant(holder, "a")
    assert granted
    old = holder.leaser
    assert t.leases.end(old) == [identity]
    assert not t.grant(holder, "a")[0]
    assert len(t.leases) == t.leases.refused == 0
    holder.leaser = None  # another one, under other rules
    assert t.grant(holder, "a")[0]
    assert not old.holds(identity)


def test_a_directory_is_known_by_its_name_of_now(table: Callable[..., Table], tmp_path: Path) -> None:
    t = table()
    holder = Holder()
    _, identity = t.grant(holder, "a")
    watched = holder.leases[identity]
    _, other = t.grant(holder, "b")
    (tmp_path / "a").rename(tmp_path / "b/a2")
    t.leases.renamed(watched)
    assert t.leases.called(b"a") == []
    assert t.leases.called(b"a2") == [watched]
    (tmp_path / "b/a2").rename(tmp_path / "c/b")
    t.leases.renamed(watched)
    assert {each.identity for each in t.leases.called(b"b")} == {identity, other}
    t.leases.gone(watched)
    t.leases.renamed(watched)
    assert [each.identity for each in t.leases.called(b"b")] == [other]


def test_a_path_that_is_too_long_to_be_told(table: Callable[..., Table], tmp_path: Path) -> None:
    t = table()
    holder = Holder()
    fd = os.open(tmp_path, os.O_PATH)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=fd)
        below = os.open("x" * 250, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    try:
        assert Leaser(t.leases, holder, t.sandbox).directory(fd, t.sandbox.stat(fd))  # type: ignore[arg-type]
        assert [watched.name for watched in t.leases] == [b""]
    finally:
        os.close(fd)


def test_what_a_reply_says_of_leases_can_be_taken_out(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    attr = sandbox.stat(sandbox.root_fd)
    sandbox.close()
    entry = m.DirEntry(b"x", 1, 2, 8, attr, m.ENTRY_LEASED | m.ENTRY_PLAIN)
    replies: list[Any] = [
        m.AttrReply(1, attr, m.LEASE_PARENT | m.LEASE_SELF),
        m.FetchReply(1, attr, m.LEASE_SELF),
        m.DirReply(1, [entry], True, True),
        m.TreeReply(1, [m.TreeDirectory(b"", attr, [m.msgspec.structs.replace(entry)], True, True)]),
        m.Done(1),
    ]
    for reply in replies:
        unlease(reply)
    assert [reply.lease for reply in replies[:3]] == [0, 0, False]
    assert not replies[3].directories[0].lease
    assert replies[3].directories[0].entries[0].flags == replies[2].entries[0].flags == m.ENTRY_PLAIN


def test_the_oldest_go_where_there_are_too_many(table: Callable[..., Table]) -> None:
    t = table(each=2)
    holder = Holder()
    _, a = t.grant(holder, "a")
    _, b = t.grant(holder, "b")
    _, c = t.grant(holder, "c")
    assert list(holder.leases) == [b, c]
    assert t.told == [(holder, [a])]
    assert holder.lease_ends == 1
    assert len(t.leases) == 2


def test_watches_are_bounded(table: Callable[..., Table], caplog: pytest.LogCaptureFixture) -> None:
    t = table(watches=1)
    holder = Holder()
    assert t.grant(holder, "a")[0]
    assert not t.grant(holder, "b")[0]
    assert not t.grant(holder, "c")[0]
    assert t.grant(Holder(), "a")[0]
    assert t.leases.refused == 2
    assert caplog.messages == []  # an information at most


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_what_the_kernel_refuses_is_not_granted(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    t = table()

    def refuse(path: bytes, mask: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(t.queue, "add", refuse)
    assert not t.grant(Holder(), "a")[0]
    assert t.leases.refused == 1


def test_no_descriptor_is_left_for_it(table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch) -> None:
    t = table()
    fd = os.open(t.root / "a", os.O_PATH)
    attr = t.sandbox.stat(fd)
    os.close(fd)
    assert not Leaser(t.leases, Holder(), t.sandbox).directory(fd, attr)  # type: ignore[arg-type]


def test_one_file_under_two_identities_is_watched_once(table: Callable[..., Table]) -> None:
    t = table()
    holder = Holder()
    t.grant(holder, "a")
    fd = os.open(t.root / "a", os.O_PATH)
    attr = t.sandbox.stat(fd)
    attr.btime = 0
    assert not holder.leaser.directory(fd, attr)
    os.close(fd)


def test_how_many_watches_there_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "max"
    monkeypatch.setattr(leases_module, "_MAX_WATCHES", str(setting))
    assert most_watches(1 << 20) == 6144
    setting.write_text("1000\n")
    assert most_watches(1 << 20) == 750
    assert most_watches(1000) == 500

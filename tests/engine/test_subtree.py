"""Listing several directories, and what is below them, in one go."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine import entries, subtree
from jupyter_wsfuse.engine.permissions import Policy, RuleSet, parse_rule
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.workspace import ROOT, Workspace, fails


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    for path in ("a/b/c", "a/d", "e"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()


def listed(ws: Workspace, *refs: m.Ref, limit: int = 100, depth: int = 0) -> dict[bytes, Any]:
    reply = ws.run(m.ListTree(1, list(refs) or [ROOT], limit, depth))
    assert len(codec.encode_head(reply)) < codec.MAX_HEADER
    return {found.path: found for found in reply.directories}


def test_one_directory(ws: Workspace) -> None:
    found = listed(ws, m.Ref(b"a", ws.attr(b"a").identity))
    assert list(found) == [b"a"]
    assert found[b"a"].complete
    assert not found[b"a"].lease
    assert found[b"a"].attr.identity == ws.attr(b"a").identity
    by_name = {entry.name: entry for entry in found[b"a"].entries}
    assert set(by_name) == {b"b", b"d"}
    assert by_name[b"b"].attr == ws.attr(b"a/b")
    assert by_name[b"b"].type == 4


def test_breadth_first_as_deep_as_asked(ws: Workspace) -> None:
    assert list(listed(ws, depth=1)) in ([b"", b"a", b"e"], [b"", b"e", b"a"])
    assert set(listed(ws, depth=9)) == {b"", b"a", b"e", b"a/b", b"a/d", b"a/b/c"}
    assert set(listed(ws, m.Ref(b"e"), m.Ref(b"a/b"), depth=1)) == {b"e", b"a/b", b"a/b/c"}
    assert listed(ws, depth=10**9).keys() == listed(ws, depth=9).keys()


def test_cookies_go_on_where_another_listing_stopped(ws: Workspace) -> None:
    entry = listed(ws, m.Ref(b"a"))[b"a"].entries[0]
    handle = ws.run(m.OpenDir(1, m.Ref(b"a"))).handle
    rest = ws.run(m.ReadDir(1, handle, entry.cookie, 100)).entries
    assert entry.name not in {other.name for other in rest}
    assert {b"b", b"d"} - {entry.name} <= {other.name for other in rest}


def test_the_limit(ws: Workspace) -> None:
    for number in range(20):
        (ws.path / f"e/n{number}").touch()
    found = listed(ws, m.Ref(b"e"), limit=10)
    assert not found[b"e"].complete
    assert found[b"e"].entries == []
    assert set(listed(ws, m.Ref(b"a"), m.Ref(b"e"), limit=10)) == {
        b"a"
    }  # not begun, if there is anything at all
    assert len(listed(ws, m.Ref(b"e"), limit=21)[b"e"].entries) == 21
    assert set(listed(ws, limit=3, depth=9)) == {b""}


def test_bytes_are_bounded_too(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "LISTING_BYTES", 1000)
    found = listed(ws, depth=9)
    assert 0 < len(found) < 5
    monkeypatch.setattr(entries, "LISTING_BYTES", 100)
    assert not listed(ws)[b""].complete


def test_what_cannot_be_listed(ws: Workspace) -> None:
    assert set(listed(ws, m.Ref(b"nothing"), m.Ref(b"e"))) == {b"e"}
    with fails(errno.ENOENT):
        ws.run(m.ListTree(1, [m.Ref(b"nothing"), m.Ref(b"a/b/file")], 10))
    with fails(errno.ENOTDIR):
        ws.run(m.ListTree(1, [m.Ref(b"e/file")], 10))
    with fails(errno.ENOTDIR):
        ws.run(m.ListTree(1, [m.Ref(b"link")], 10))
    with fails(errno.ESTALE):
        ws.run(m.ListTree(1, [m.Ref(b"a", ws.attr(b"e").identity)], 10))
    for refs in ([], [ROOT] * (subtree.MOST_REFS + 1)):
        with fails(errno.EINVAL):
            ws.run(m.ListTree(1, refs, 10))
    assert listed(ws, limit=-5)[b""].complete is False


def test_who_has_no_extended_attributes_is_plain(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (ws.path / "a/b/file").touch()
    os.setxattr(ws.path / "a/b/file", "user.x", b"1")
    by_name = {entry.name: entry.flags & m.ENTRY_PLAIN for entry in listed(ws, m.Ref(b"a/b"))[b"a/b"].entries}
    assert by_name == {b"file": 0, b"c": m.ENTRY_PLAIN}

    def fail(*arguments: Any, **more: Any) -> Any:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "listxattr", fail)
    assert all(entry.flags == 0 for entry in listed(ws)[b""].entries)


def test_directories_that_do_not_fit_are_passed_over(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (ws.path / f"e/n{number}").touch()
    assert set(listed(ws, limit=15, depth=9)) == {b"", b"a", b"a/b", b"a/d", b"a/b/c"}
    monkeypatch.setattr(subtree, "_MOST_SKIPPED", 0)
    assert b"a/b/c" not in listed(ws, limit=15, depth=9)


@pytest.mark.parametrize(
    ("identity", "mode", "readable", "executable"),
    [
        ((0, frozenset(), True), 0o100000, True, False),
        ((0, frozenset(), True), 0o100001, True, True),
        ((0, frozenset(), True), 0o040000, True, True),
        ((7, frozenset(), False), 0o100500, True, True),
        ((7, frozenset(), False), 0o100077, False, False),
        ((8, frozenset({9}), False), 0o100750, True, True),
        ((8, frozenset({9}), False), 0o100707, False, False),
        ((8, frozenset(), False), 0o100704, True, False),
    ],
)
def test_what_access_would_say(
    monkeypatch: pytest.MonkeyPatch,
    ws: Workspace,
    identity: tuple[int, frozenset[int], bool],
    mode: int,
    readable: bool,
    executable: bool,
) -> None:
    monkeypatch.setattr(subtree, "_identity", lambda: identity)
    attr = m.msgspec.structs.replace(ws.attr(b""), mode=mode, uid=7, gid=9)
    wanted = (m.ENTRY_READABLE if readable else 0) | (m.ENTRY_EXECUTABLE if executable else 0)
    assert subtree._access(attr) == wanted


def test_what_access_says(ws: Workspace) -> None:
    """As the kernel does."""
    for mode in (0o000, 0o400, 0o644, 0o711):
        (ws.path / "e/file").chmod(mode)
        entry = next(entry for entry in listed(ws, m.Ref(b"e"))[b"e"].entries if entry.name == b"file")
        for mask, flag in ((os.R_OK, m.ENTRY_READABLE), (os.X_OK, m.ENTRY_EXECUTABLE)):
            assert os.access(ws.path / "e/file", mask) == bool(entry.flags & flag)


def test_whether_modes_bind_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert subtree._may_override() == (os.geteuid() == 0)
    monkeypatch.setattr("builtins.open", lambda path: iter_of(["Name:\tx\n"]))
    assert not subtree._may_override()


class iter_of(list[str]):
    def __enter__(self) -> iter_of:
        return self

    def __exit__(self, *error: object) -> None: ...


class Grants:
    """Leases on everything that is asked for."""

    def __init__(self) -> None:
        self.asked: list[m.Identity] = []

    def directory(self, fd: int, attr: m.Attr) -> bool:
        self.asked.append(attr.identity)
        return True

    def file(self, fd: int, attr: m.Attr) -> bool:
        self.asked.append(attr.identity)
        return True

    def holds(self, identity: m.Identity) -> bool:
        return False


def test_leases_on_directories_and_on_files_of_several_names(ws: Workspace) -> None:
    (ws.path / "e/one").touch()
    (ws.path / "e/two").hardlink_to(ws.path / "e/one")
    ws.context.leases = grants = Grants()
    found = listed(ws, depth=9)
    assert all(directory.lease for directory in found.values())
    flags = {entry.name: entry.flags for entry in found[b"e"].entries}
    for name in (b"one", b"two"):
        assert flags[name] & (m.ENTRY_LEASED | m.ENTRY_PLAIN) == m.ENTRY_LEASED | m.ENTRY_PLAIN
    assert not flags[b"file"] & m.ENTRY_LEASED
    assert {ws.attr(path).identity for path in (b"", b"e", b"a/b/c", b"e/one")} <= set(grants.asked)


def test_names_that_are_hidden_are_not_listed_nor_entered(ws: Workspace) -> None:
    ws.context.policy = Policy(RuleSet([parse_rule("deny read /a/b", "x")]), None, hide=True)
    found = listed(ws, depth=9)
    assert set(found) == {b"", b"a", b"a/d", b"e"}
    assert {entry.name for entry in found[b"a"].entries} == {b"d"}
    assert found[b"a"].complete


def test_what_may_not_be_listed_is_left_out(ws: Workspace) -> None:
    ws.context.policy = Policy(RuleSet([parse_rule("deny read /a/b", "x")]), None)
    found = listed(ws, depth=9)
    assert b"a" in found
    assert not {b"a/b", b"a/b/c"} & set(found)
    with fails(errno.EACCES):
        ws.run(m.ListTree(1, [m.Ref(b"a/b")], 10))

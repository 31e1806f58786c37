"""A profile of a mount: by operation, by directory, bounded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.client import profile as module
from jupyter_wsfuse.client.profile import Profile
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.local_engine import Mount

MS = 1_000_000


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


def begin(mount: Mount, server: dict[str, list[int]] | None = None) -> Profile:
    return Profile(mount.vfs.stats, mount.vfs.directory_named, server, wall=lambda: 1000.0)


def places(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["operation"], row["directory"]): row for row in result["places"]}


async def test_what_was_done_and_where(mount: Mount, root: Path) -> None:
    (root / "data" / "deep").mkdir(parents=True)
    for number in range(3):
        (root / "data" / f"{number}.txt").write_text("x" * 100)
    (root / "data" / "deep" / "a").write_text("y")
    (root / "top").write_text("t")
    clock = mount.vfs.stats.clock = Clock()

    async def slowly(request: m.Request) -> None:
        clock.now += MS

    mount.engine.before = slowly
    await mount.open(b"top")  # before the profile: not counted
    profile = begin(mount)
    for number in range(3):
        node, handle = await mount.open(b"data/%d.txt" % number)
        assert len(await mount.vfs.read(mount.caller(), node, handle, 0, 4096)) == 100
    await mount.open(b"data/deep/a")
    _, handle = await mount.open(b"top", os.O_RDWR)
    assert await mount.vfs.write(mount.caller(), 1, handle, 0, b"12345") == 5
    with pytest.raises(FileNotFoundError):
        await mount.vfs.lookup(mount.caller(), 1, b"missing")
    result = profile.finish(None)
    after = await mount.vfs.getattr(mount.caller(), 1)
    assert after
    json.dumps(result)

    operations = result["operations"]
    assert {name: row["count"] for name, row in operations.items()} == {
        "lookup": 11, "open": 5, "read": 3, "write": 1,
    }  # fmt: skip
    assert (operations["read"]["bytes"], operations["write"]["bytes"]) == (300, 5)
    assert operations["lookup"]["errors"] == 1
    assert operations["lookup"]["cache_hits"] == 11 - operations["lookup"]["asked"] > 0
    found = places(result)
    assert (found["open", "data"]["count"], found["open", "data"]["waited"]) == (3, 0.003)
    assert (found["read", "data"]["bytes"], found["open", "data/deep"]["count"]) == (300, 1)
    assert found["write", ""]["bytes"] == 5
    assert result["places_known"] == len(result["places"])
    waits = sum(row["asked"] for row in operations.values())
    assert result["waiting"]["sum"] == result["waiting"]["wall"] == pytest.approx(waits / 1000)
    assert result["seconds"] == pytest.approx(waits / 1000)
    assert mount.vfs.stats.watchers == []
    profile.stop()


async def test_what_the_server_took_while_it_ran(mount: Mount, root: Path) -> None:
    (root / "a").touch()
    clock = mount.vfs.stats.clock = Clock()

    async def slowly(request: m.Request) -> None:
        clock.now += 10 * MS

    mount.engine.before = slowly
    profile = begin(mount, {"Open": [100, 0, 10**12, 0, 0, 0]})
    await mount.open(b"a")
    result = profile.finish({"Open": [101, 0, 10**12 + 4 * MS, 3 * MS, 0, 0], "Lookup": [1, 0, MS, 0, MS, 0]})
    assert result["waiting"]["operations"]["open"] == {
        "network": 0.006, "server": 0.001, "disk": 0.003, "limit": 0.0,
    }  # fmt: skip
    assert result["waiting"]["parts"] == {"network": 0.015, "server": 0.001, "disk": 0.003, "limit": 0.001}
    for before, after in ((None, {}), ({}, None)):
        assert begin(mount, before).finish(after)["waiting"]["parts"] is None


async def test_several_at_a_time_and_a_count_from_zero_between(mount: Mount, root: Path) -> None:
    (root / "a").touch()
    one = begin(mount)
    await mount.open(b"a")
    mount.vfs.stats.reset()
    two = begin(mount)
    await mount.open(b"a")
    assert one.finish(None)["operations"]["open"]["count"] == 2
    assert two.finish(None)["operations"]["open"]["count"] == 1
    assert mount.vfs.stats.snapshot()["open"]["count"] == 1


async def test_memory_is_bounded(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLACES", 10)
    monkeypatch.setattr(module, "SHOWN", 5)
    profile = begin(mount)
    caller = mount.caller()
    for number in range(50):
        made = await mount.vfs.mkdir(caller._replace(key=0), 1, b"%d" % number, 0o755)
        await mount.vfs.getattr(caller, made.node)
        await mount.vfs.opendir(caller._replace(key=0), made.node)
    result = profile.finish(None)
    assert result["places_known"] <= 10 + len(result["operations"])
    assert len(result["places"]) == 5
    elsewhere = {row["operation"] for row in result["places"] if row["directory"] is None}
    assert elsewhere, "what had no place of its own is counted together"
    assert result["operations"]["opendir"]["count"] == 50


async def test_how_operations_are_named(mount: Mount, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "f\xff").touch()
    vfs, caller = mount.vfs, mount.caller()
    directory = await mount.node(b"d")
    file = (await vfs.lookup(caller, directory, os.fsencode("f\xff"))).node
    name = os.fsencode("f\xff")
    for operation, arguments, path, where in (
        ("getattr", (caller, 1), b"", b""),
        ("getattr", (caller, directory), b"d", b"d"),
        ("read", (caller, file, 7, 0, 1), b"d/" + name, b"d"),
        ("lookup", (caller, directory, b"x"), b"d/x", b"d"),
        ("mkdir", (caller, 1, b"x", 0o755), b"x", b""),
        ("readdir", (caller, directory, 1, 0, 9, True), b"d", b"d"),
        ("syncfs", (caller,), b"", b""),
        ("getattr", (caller, 4711), b"(a file without a name)", b"(files without a name)"),
    ):
        assert vfs.path_named(operation, arguments) == path, operation
        assert vfs.directory_named(operation, arguments) == where, operation
    assert vfs.stats.path_of("lookup", (caller, directory, b"x")) == b"d/x"


async def test_long_names_are_cut(mount: Mount, root: Path) -> None:
    path = "/".join(["n" * 200] * 4)
    (root / path).mkdir(parents=True)
    profile = begin(mount)
    await mount.vfs.opendir(mount.caller(), await mount.node(path.encode()))
    assert max(len(row["directory"]) for row in profile.finish(None)["places"]) == module.PATH_TEXT


async def test_a_subdirectory_that_is_the_root(mounted: Any, root: Path) -> None:
    (root / "sub" / "d").mkdir(parents=True)
    mount = await mounted(subdir=b"sub")
    node = await mount.node(b"d")
    assert mount.vfs.directory_named("readdir", (mount.caller(), node)) == b"d"
    assert mount.vfs.path_named("lookup", (mount.caller(), 1, b"x")) == b"x"

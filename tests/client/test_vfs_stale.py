"""What others moved or removed on the server: ESTALE is mended where there is another way to the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.local_engine import Mount


def raises(number: int):
    return pytest.raises(OSError, check=lambda error: error.errno == number)


async def fresh(mount: Mount) -> Mount:
    mount.clock.seconds += 100
    return mount


async def test_a_file_replaced_on_the_server_is_another_node(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"old")
    node = await mount.node(b"f")
    (root / "g").write_bytes(b"newer")
    os.replace(root / "g", root / "f")
    await fresh(mount)
    with raises(errno.ESTALE):
        await mount.vfs.getattr(mount.caller(), node)
    assert (1, b"f") in mount.notes.seen
    with raises(errno.ESTALE):  # it has no name any more; nothing is asked
        await mount.vfs.getattr(mount.caller(), node)
    entry = await mount.vfs.lookup(mount.caller(), 1, b"f")
    assert entry.node != node
    assert entry.attr.size == 5


async def test_an_open_file_is_reached_by_its_handle(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"abc")
    node, _ = await mount.open(b"f", os.O_RDWR)
    os.unlink(root / "f")
    await fresh(mount)
    attr, _ = await mount.vfs.getattr(mount.caller(), node)
    assert (attr.size, attr.nlink) == (3, 0)
    attr, _ = await mount.vfs.setattr(mount.caller(), node, mode=0o600)
    assert attr.mode & 0o777 == 0o600


async def test_another_name_of_the_file_is_tried(mount: Mount, root: Path) -> None:
    (root / "a").write_bytes(b"abc")
    os.link(root / "a", root / "b")
    node = await mount.node(b"a")
    await mount.node(b"b")
    os.unlink(root / "a")
    await fresh(mount)
    assert (await mount.vfs.getattr(mount.caller(), node))[0].nlink == 1
    assert [name for _, name in mount.vfs.tree.get(node).names] == [b"b"]


async def test_a_directory_moved_on_the_server_is_found_again_with_all_below(
    mount: Mount, root: Path
) -> None:
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/c/f").touch()
    leaf = await mount.node(b"a/b/c/f")
    c = await mount.node(b"a/b/c")
    os.rename(root / "a", root / "x")
    await fresh(mount)
    with raises(errno.ESTALE):
        await mount.vfs.lookup(mount.caller(), c, b"f")
    assert (1, b"a") in mount.notes.seen  # the step that is untrue, and no other
    await mount.node(b"x")
    assert mount.vfs.tree.path_of(mount.vfs.tree.get(leaf)) == b"x/b/c/f"
    assert (await mount.vfs.lookup(mount.caller(), c, b"f")).node == leaf


async def test_changes_in_a_moved_directory_go_by_its_open_handle(mount: Mount, root: Path) -> None:
    (root / "a").mkdir()
    (root / "t").mkdir()
    (root / "f").touch()
    directory, target = await mount.node(b"a"), await mount.node(b"t")
    await mount.vfs.opendir(mount.caller(), directory)
    os.rename(root / "a", root / "x")
    key = mount.caller()
    made = await mount.vfs.mkdir(key, directory, b"new", 0o755)
    assert (root / "x/new").is_dir()
    assert made.node
    await mount.vfs.rename(mount.caller(), directory, b"new", target, b"moved")
    assert (root / "t/moved").is_dir()
    # Both ends untrue, one without a way: nothing happens.
    os.rename(root / "t", root / "u")
    await fresh(mount)
    with raises(errno.ESTALE):
        await mount.vfs.rename(mount.caller(), target, b"moved", 1, b"back")
    assert (root / "u/moved").is_dir()


async def test_a_second_estale_is_the_kernels(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    node, handle = await mount.open(b"f")
    await fresh(mount)

    async def stale(request: m.Request) -> None:
        raise os_error(errno.ESTALE)

    mount.engine.before = stale
    for by in (0, handle):
        with raises(errno.ESTALE):
            await mount.vfs.getattr(mount.caller(), node, by)


async def test_a_step_that_changed_while_it_was_looked_at_is_left_alone(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    (root / "g").touch()
    node = await mount.node(b"f")
    await fresh(mount)
    asked = 0

    async def meddle(request: m.Request) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            other = mount.engine.execute(m.Lookup(0, m.Ref(b""), b"g"), b"")[0].attr
            mount.vfs.tree.link(mount.vfs.tree.root, b"f", mount.vfs.tree.intern(other))
        raise os_error(errno.ESTALE)

    mount.engine.before = meddle
    with raises(errno.ESTALE):
        await mount.vfs.getattr(mount.caller(), node)
    assert mount.vfs.tree.root.children[b"f"].id != node


async def test_estale_without_any_step_at_fault_is_the_kernels(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    node = await mount.node(b"f")
    await fresh(mount)
    first = True

    async def once(request: m.Request) -> None:
        nonlocal first
        if first:
            first = False
            raise os_error(errno.ESTALE)

    mount.engine.before = once
    with raises(errno.ESTALE):
        await mount.vfs.getattr(mount.caller(), node)
    assert (await mount.vfs.getattr(mount.caller(), node))[0].nlink == 1

"""Names through the file system: real effects, and what the kernel may believe afterwards."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from jupyter_wsfuse.protocol import messages as m
from tests.helpers.local_engine import Mount, state


def raises(number: int):
    return pytest.raises(OSError, check=lambda error: error.errno == number)


async def test_lookup_tells_what_is_there_once_and_then_remembers(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"12345")
    entry = await mount.vfs.lookup(mount.caller(), 1, b"f")
    assert (entry.attr.size, entry.attr.ino) == (5, (root / "f").stat().st_ino)
    assert (entry.generation, entry.entry_ttl, entry.attr_ttl) == (0, 1.0, 1.0)
    assert (entry.attr.uid, entry.attr.gid) == (1234, 1234)
    mount.clock.seconds += 0.25
    again = await mount.vfs.lookup(mount.caller(), 1, b"f")
    assert (again.node, again.entry_ttl, again.attr_ttl) == (entry.node, 0.75, 0.75)
    assert mount.engine.count(m.Lookup) == 1
    assert mount.vfs.stats.snapshot()["lookup"]["cache_hits"] == 1
    assert mount.vfs.tree.get(entry.node).lookups == 2
    mount.clock.seconds += 1
    await mount.vfs.lookup(mount.caller(), 1, b"f")
    assert mount.engine.count(m.Lookup) == 2


async def test_an_entry_without_attributes_is_asked_for_again(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    node = await mount.node(b"f")
    mount.vfs.cache.drop_attr(mount.vfs.tree.get(node).identity)
    assert await mount.node(b"f") == node
    assert mount.engine.count(m.Lookup) == 2


async def test_what_is_missing_is_an_error_or_a_negative_entry(mounted, root: Path) -> None:
    mount = await mounted()
    with raises(errno.ENOENT):
        await mount.vfs.lookup(mount.caller(), 1, b"nothing")
    mount = await mounted(negative_ttl=2.0)
    for _ in range(2):
        entry = await mount.vfs.lookup(mount.caller(), 1, b"nothing")
        assert (entry.node, entry.entry_ttl) == (0, 2.0)
    assert mount.engine.count(m.Lookup) == 1
    made = await mount.vfs.mkdir(mount.caller(), 1, b"nothing", 0o755)
    assert (await mount.vfs.lookup(mount.caller(), 1, b"nothing")).node == made.node


async def test_other_errors_of_lookup_reach_the_kernel(mount: Mount, root: Path) -> None:
    with raises(errno.ENAMETOOLONG):
        await mount.vfs.lookup(mount.caller(), 1, b"x" * 256)
    (root / "f").touch()
    node = await mount.node(b"f")
    with raises(errno.ENOTDIR):
        await mount.vfs.lookup(mount.caller(), node, b"x")
    with raises(errno.ESTALE):
        await mount.vfs.lookup(mount.caller(), 99, b"x")


async def test_without_cache_every_question_is_asked(mounted, root: Path) -> None:
    mount = await mounted(cache=False, negative_ttl=1.0)
    (root / "f").touch()
    for _ in range(2):
        entry = await mount.vfs.lookup(mount.caller(), 1, b"f")
        assert (entry.entry_ttl, entry.attr_ttl) == (0, 0)
        assert (await mount.vfs.getattr(mount.caller(), entry.node))[1] == 0
        with raises(errno.ENOENT):
            await mount.vfs.lookup(mount.caller(), 1, b"no")
    assert mount.engine.count(m.Lookup) == 4
    assert mount.engine.count(m.GetAttr) == 2


async def test_making_things(mounted, root: Path) -> None:
    mount = await mounted()
    vfs, caller = mount.vfs, mount.caller
    directory = await vfs.mkdir(caller(), 1, b"d", 0o750)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750
    fifo = await vfs.mknod(caller(), directory.node, b"p", stat.S_IFIFO | 0o600, 0)
    link = await vfs.symlink(caller(), directory.node, b"\xff", b"../d/p")
    assert os.readlink(os.fsencode(root) + b"/d/\xff") == b"../d/p"
    assert stat.S_ISFIFO(fifo.attr.mode)
    assert await vfs.readlink(caller(), link.node) == b"../d/p"
    assert {directory.entry_ttl, fifo.attr_ttl, link.attr_ttl} == {1.0}
    with raises(errno.EPERM):
        await vfs.mknod(caller(), 1, b"dev", stat.S_IFCHR | 0o600, 5)
    with raises(errno.EEXIST):
        await vfs.mkdir(caller(), 1, b"d", 0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="owners are root's to choose")
async def test_raw_owners_pass_in_both_directions(mounted, root: Path) -> None:
    mount = await mounted(raw=True, owner="raw")
    made = await mount.vfs.mkdir(mount.caller(77, 88), 1, b"d", 0o755)
    assert (made.attr.uid, made.attr.gid) == (77, 88)
    attr, _ = await mount.vfs.setattr(mount.caller(), made.node, uid=5, gid=6)
    assert (attr.uid, attr.gid) == (5, 6) == ((root / "d").stat().st_uid, (root / "d").stat().st_gid)


async def test_a_change_of_a_directory_shows_in_its_attributes_at_once(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller

    async def links() -> int:
        return (await vfs.getattr(caller(), 1))[0].nlink

    assert await links() == 2
    await vfs.mkdir(caller(), 1, b"a", 0o755)
    assert await links() == 3
    inner = await vfs.mkdir(caller(), 1, b"b", 0o755)
    await vfs.rename(caller(), 1, b"a", inner.node, b"a")
    assert await links() == 3
    assert (await vfs.getattr(caller(), inner.node))[0].nlink == 3
    await vfs.rmdir(caller(), inner.node, b"a")
    assert (await vfs.getattr(caller(), inner.node))[0].nlink == 2


async def test_hard_links_share_node_and_count(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "a").write_bytes(b"x")
    node = await mount.node(b"a")
    second = await vfs.link(caller(), node, 1, b"b")
    assert second.node == node
    assert second.attr.nlink == 2
    assert second.attr_ttl == 1.0
    await vfs.unlink(caller(), 1, b"a")
    attr, ttl = await vfs.getattr(caller(), node)
    assert (attr.nlink, ttl) == (1, 1.0)
    assert vfs.tree.path_of(vfs.tree.get(node)) == b"b"
    (root / "c").touch()
    await mount.node(b"c")
    await vfs.rename(caller(), 1, b"c", 1, b"b")
    assert (await vfs.getattr(caller(), node))[0].nlink == 0


async def test_renaming_one_name_of_a_file_to_another_of_it_does_nothing(mount: Mount, root: Path) -> None:
    (root / "a").touch()
    os.link(root / "a", root / "b")
    node = await mount.node(b"a")
    assert await mount.node(b"b") == node
    await mount.vfs.rename(mount.caller(), 1, b"a", 1, b"b")
    assert sorted(os.listdir(root)) == ["a", "b"]
    assert len(mount.vfs.tree.get(node).names) == 2


async def test_a_removed_file_without_handle_stays_reachable_until_it_is_forgotten(
    mount: Mount, root: Path
) -> None:
    (root / "f").touch()
    (root / "d").mkdir()
    for name, remove in ((b"f", mount.vfs.unlink), (b"d", mount.vfs.rmdir)):
        node = await mount.node(name)
        await remove(mount.caller(), 1, name)
        attr, ttl = await mount.vfs.getattr(mount.caller(), node)
        assert (attr.nlink, ttl) == (0, 0.0)
        attr, _ = await mount.vfs.setattr(mount.caller(), node, mode=0o700)
        assert stat.S_IMODE(attr.mode) == 0o700
        pin = mount.vfs.tree.get(node).pin
        assert pin in mount.vfs.live_handles()
        mount.vfs.forget(node, 1)
        assert mount.engine.posted[-1] == m.Close(0, pin)
        assert mount.vfs.live_handles() == []
        with raises(errno.ESTALE):
            await mount.vfs.getattr(mount.caller(), node)


async def test_removing_what_was_never_looked_up_leaves_no_pin(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    (root / "g").touch()
    (root / "h").touch()
    await mount.vfs.unlink(mount.caller(), 1, b"f")
    await mount.vfs.rename(mount.caller(), 1, b"g", 1, b"h")
    assert len(mount.engine.posted) == 2
    assert mount.vfs.live_handles() == []
    assert len(mount.engine.context.handles) == 0


async def test_a_new_file_of_the_same_inode_is_another_node(mount: Mount, root: Path) -> None:
    """On file systems without birth time, the number of a removed file may return at once."""
    mount.engine.sandbox._births = False
    (root / "f").touch()
    entry = await mount.vfs.lookup(mount.caller(), 1, b"f")
    await mount.vfs.unlink(mount.caller(), 1, b"f")
    copy = m.Attr(*(getattr(entry.attr, field) for field in entry.attr.__struct_fields__))
    assert mount.vfs.tree.intern(copy).id != entry.node


async def test_rename_moves_a_tree(mount: Mount, root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    (root / "x").mkdir()
    (root / "a/b/c/f").write_bytes(b"1")
    leaf = await mount.node(b"a/b/c/f")
    x = await mount.node(b"x")
    await mount.vfs.rename(mount.caller(), await mount.node(b"a"), b"b", x, b"y")
    assert mount.vfs.tree.path_of(mount.vfs.tree.get(leaf)) == b"x/y/c/f"
    mount.clock.seconds += 5
    assert (await mount.vfs.getattr(mount.caller(), leaf))[0].size == 1
    with raises(errno.ENOENT):
        await mount.node(b"a/b")


async def test_exchange(mount: Mount, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/inside").touch()
    (root / "f").touch()
    inside, f, d = await mount.node(b"d/inside"), await mount.node(b"f"), await mount.node(b"d")
    key = mount.caller()
    await mount.vfs.rename(key, 1, b"d", 1, b"f", 2)
    paths = {node: mount.vfs.tree.path_of(mount.vfs.tree.get(node)) for node in (inside, f, d)}
    assert paths == {inside: b"f/inside", f: b"d", d: b"f"}
    mount.engine.repeats()
    await mount.vfs.rename(key, 1, b"d", 1, b"f", 2)  # repeated by the kernel, answered from memory
    assert paths == {node: mount.vfs.tree.path_of(mount.vfs.tree.get(node)) for node in (inside, f, d)}
    assert (root / "f/inside").exists()


async def test_exchange_with_what_the_kernel_does_not_know(mount: Mount, root: Path) -> None:
    (root / "a").touch()
    (root / "b").touch()
    a = await mount.node(b"a")
    await mount.vfs.rename(mount.caller(), 1, b"a", 1, b"b", 2)
    assert mount.vfs.tree.path_of(mount.vfs.tree.get(a)) == b"b"
    assert await mount.node(b"b") == a


async def test_rename_flags(mount: Mount, root: Path) -> None:
    (root / "a").touch()
    (root / "b").touch()
    with raises(errno.EEXIST):
        await mount.vfs.rename(mount.caller(), 1, b"a", 1, b"b", 1)
    with raises(errno.EINVAL):
        await mount.vfs.rename(mount.caller(), 1, b"a", 1, b"b", 4)
    await mount.vfs.rename(mount.caller(), 1, b"a", 1, b"c", 1)
    assert sorted(os.listdir(root)) == ["b", "c"]


async def test_rename_of_what_others_replaced_forgets_the_untrue_names(mount: Mount, root: Path) -> None:
    (root / "a").write_bytes(b"old")
    (root / "b").touch()
    old, b = await mount.node(b"a"), await mount.node(b"b")
    (root / "new").write_bytes(b"new")
    os.replace(root / "new", root / "a")
    await mount.vfs.rename(mount.caller(), 1, b"a", 1, b"b")
    tree = mount.vfs.tree
    assert tree.path_of(tree.get(old)) is None
    assert tree.path_of(tree.get(b)) is None
    assert (root / "b").read_bytes() == b"new"


async def test_a_repeated_removal_does_not_take_the_name_of_its_successor(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    await mount.node(b"f")
    key = mount.caller()
    await mount.vfs.unlink(key, 1, b"f")
    made = await mount.vfs.mknod(mount.caller(), 1, b"f", stat.S_IFREG | 0o600, 0)
    before = state(mount.vfs)
    mount.engine.repeats()
    await mount.vfs.unlink(key, 1, b"f")  # answered from memory
    assert (root / "f").exists()
    assert state(mount.vfs) == before
    assert mount.vfs.tree.path_of(mount.vfs.tree.get(made.node)) == b"f"


async def test_every_repeated_mutation_is_harmless(mount: Mount, root: Path) -> None:
    vfs = mount.vfs
    (root / "f").touch()
    (root / "v").touch()
    (root / "d").mkdir()
    f = await mount.node(b"f")
    await mount.node(b"v")
    await mount.node(b"d")
    for operation, args in (
        (vfs.mkdir, (1, b"new", 0o755)),
        (vfs.symlink, (1, b"s", b"f")),
        (vfs.mknod, (1, b"n", stat.S_IFREG | 0o600, 0)),
        (vfs.link, (f, 1, b"l")),
        (vfs.rename, (1, b"n", 1, b"v")),
        (vfs.rename, (1, b"f", 1, b"g")),
        (vfs.unlink, (1, b"g")),
        (vfs.rmdir, (1, b"d")),
    ):
        key = mount.caller()
        await operation(key, *args)
        before = [record for record in state(vfs) if record[0] != "look"]
        mount.engine.repeats()
        await operation(key, *args)
        assert [record for record in state(vfs) if record[0] != "look"] == before
    assert sorted(os.listdir(root)) == ["l", "new", "s", "v"]


async def test_read_only_refuses_without_asking(mounted, root: Path) -> None:
    mount = await mounted(read_only=True)
    (root / "f").touch()
    node = await mount.node(b"f")
    vfs, caller = mount.vfs, mount.caller
    asked = len(mount.engine.requests)
    for attempt in (
        vfs.mkdir(caller(), 1, b"d", 0o755), vfs.mknod(caller(), 1, b"d", stat.S_IFREG, 0),
        vfs.symlink(caller(), 1, b"s", b"x"), vfs.link(caller(), node, 1, b"l"), vfs.unlink(caller(), 1, b"f"),
        vfs.rmdir(caller(), 1, b"f"), vfs.rename(caller(), 1, b"f", 1, b"g"), vfs.open(caller(), node, os.O_WRONLY),
        vfs.open(caller(), node, os.O_TRUNC), vfs.create(caller(), 1, b"c", 0o644, os.O_RDWR),
        vfs.tmpfile(caller(), 1, 0o644, os.O_RDWR), vfs.setattr(caller(), node, mode=0o600),
        vfs.setxattr(caller(), node, b"user.a", b"", 0), vfs.removexattr(caller(), node, b"user.a"),
        vfs.access(caller(), node, os.W_OK),
    ):  # fmt: skip
        with raises(errno.EROFS):
            await attempt
    assert len(mount.engine.requests) == asked
    await vfs.open(caller(), node, os.O_RDONLY)


async def test_a_subdirectory_can_be_the_root(mounted, root: Path) -> None:
    (root / "sub/dir").mkdir(parents=True)
    (root / "sub/dir/f").write_bytes(b"123")
    mount = await mounted(subdir=b"/sub/dir/")
    assert (await mount.vfs.lookup(mount.caller(), 1, b"f")).attr.size == 3
    assert (await mount.vfs.getattr(mount.caller(), 1))[0].ino == (root / "sub/dir").stat().st_ino
    os.rename(root / "sub/dir", root / "sub/old")
    (root / "sub/dir").mkdir()
    (root / "sub/dir/g").touch()
    mount.clock.seconds += 5
    assert (await mount.vfs.getattr(mount.caller(), 1))[0].ino == (root / "sub/dir").stat().st_ino
    await mount.node(b"g")


async def test_a_subdirectory_that_is_none_cannot_be_mounted(mounted, root: Path) -> None:
    (root / "f").touch()
    with raises(errno.ENOENT):
        await mounted(subdir=b"nothing")
    with raises(errno.ENOTDIR):
        await mounted(subdir=b"f")


async def test_raw_owners_need_the_servers_consent(mounted) -> None:
    from jupyter_wsfuse.errors import MountError

    with pytest.raises(MountError, match="squash"):
        await mounted(owner="raw")


async def test_a_repeated_change_leaves_alone_what_came_after_it(mount: Mount, root: Path) -> None:
    """The kernel asks a new process again, and others have gone on meanwhile."""
    (root / "a").touch()
    os.link(root / "a", root / "b")
    a = await mount.node(b"a")
    await mount.node(b"b")
    (root / "m").touch()
    m_node = await mount.node(b"m")
    keys = mount.caller(), mount.caller()
    await mount.vfs.unlink(keys[0], 1, b"a")
    await mount.vfs.rename(keys[1], 1, b"m", 1, b"n")
    made = [(await mount.vfs.mkdir(mount.caller(), 1, name, 0o755)).node for name in (b"a", b"m")]
    mount.engine.repeats()
    await mount.vfs.unlink(keys[0], 1, b"a")
    await mount.vfs.rename(keys[1], 1, b"m", 1, b"n")
    tree = mount.vfs.tree
    assert [tree.path_of(tree.get(node)) for node in (a, m_node, *made)] == [b"b", b"n", b"a", b"m"]


async def test_a_removal_that_tells_nothing_is_an_error(mount: Mount, root: Path) -> None:
    (root / "f").touch()

    async def nothing(request: m.Request, reply: m.Reply) -> m.Reply:
        return m.RemovedReply(0)

    mount.engine.after = nothing
    with raises(errno.EIO):
        await mount.vfs.rename(mount.caller(), 1, b"f", 1, b"g")
    with raises(errno.EIO):
        await mount.vfs.unlink(mount.caller(), 1, b"g")


async def test_pins_that_are_offered_twice_are_kept_once(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    node = mount.vfs.tree.get(await mount.node(b"f"))
    await mount.vfs.unlink(mount.caller(), 1, b"f")
    pin = node.pin
    mount.vfs.pin(node, pin)
    assert mount.engine.posted == []
    assert "Node" in repr(node)

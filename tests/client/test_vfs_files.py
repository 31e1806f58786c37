"""Open files, attributes and extended attributes: real effects, and what may be believed afterwards."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest

from jupyter_wsfuse.client.api import FMODE_EXEC, Opened
from jupyter_wsfuse.engine.permissions import Policy, RuleSet, parse_rule
from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.local_engine import Mount


def raises(number: int):
    return pytest.raises(OSError, check=lambda error: error.errno == number)


async def test_create_write_read_release(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    entry, opened = await vfs.create(caller(), 1, b"f", 0o640, os.O_RDWR | os.O_EXCL)
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o640
    assert opened == Opened(opened.handle, False, False, False)
    assert (entry.entry_ttl, entry.attr_ttl) == (1.0, 1.0)
    assert await vfs.write(caller(), entry.node, opened.handle, 2, b"hello") == 5
    attr, ttl = await vfs.getattr(caller(), entry.node)
    assert (attr.size, ttl) == (7, 1.0)
    assert await vfs.read(caller(), entry.node, opened.handle, 0, 100) == b"\0\0hello"
    await vfs.fsync(caller(), entry.node, opened.handle, False)
    await vfs.flush(caller(), entry.node, opened.handle, 7)
    vfs.release(entry.node, opened.handle)
    vfs.release(entry.node, opened.handle)
    assert mount.engine.posted == [m.Close(mount.engine.posted[0].seq, opened.handle)]
    assert vfs.live_handles() == []
    with raises(errno.EBADF):
        await vfs.read(caller(), entry.node, opened.handle, 0, 1)
    statistics = vfs.stats.snapshot()
    assert statistics["write"]["bytes"] == 5
    assert statistics["read"]["bytes"] == 7
    assert statistics["read"]["errors"] == 1


async def test_repeated_open_and_create_give_the_same_handle(mount: Mount) -> None:
    key = mount.caller()
    entry, opened = await mount.vfs.create(key, 1, b"f", 0o640, os.O_RDWR)
    mount.engine.repeats()
    again, same = await mount.vfs.create(key, 1, b"f", 0o640, os.O_RDWR)
    assert (again.node, same.handle) == (entry.node, opened.handle)
    assert mount.vfs.live_handles() == [opened.handle]


async def test_create_with_truncation_of_a_file_that_was_there(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"old data")
    node = await mount.node(b"f")
    entry, _ = await mount.vfs.create(mount.caller(), 1, b"f", 0o640, os.O_RDWR | os.O_TRUNC)
    assert (entry.node, entry.attr.size, entry.attr_ttl) == (node, 0, 1.0)


async def test_create_over_a_new_symbolic_link_makes_the_kernel_look_again(mount: Mount, root: Path) -> None:
    os.symlink("target", root / "f")
    with raises(errno.ESTALE):
        await mount.vfs.create(mount.caller(), 1, b"f", 0o640, os.O_RDWR)
    with raises(errno.EEXIST):
        await mount.vfs.create(mount.caller(), 1, b"f", 0o640, os.O_RDWR | os.O_EXCL)


async def test_tmpfile_can_be_linked(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    entry, opened = await vfs.tmpfile(caller(), 1, 0o600, os.O_RDWR)
    await vfs.write(caller(), entry.node, opened.handle, 0, b"abc")
    assert (await vfs.getattr(caller(), entry.node))[0].nlink == 0
    linked = await vfs.link(caller(), entry.node, 1, b"f")
    assert (linked.node, linked.attr.size, linked.attr.nlink) == (entry.node, 3, 1)
    assert (root / "f").read_bytes() == b"abc"


async def test_an_unlinked_open_file_goes_on(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "f").write_bytes(b"abc")
    node, handle = await mount.open(b"f", os.O_RDWR)
    await vfs.unlink(caller(), 1, b"f")
    assert await vfs.read(caller(), node, handle, 0, 10) == b"abc"
    await vfs.write(caller(), node, handle, 3, b"d")
    assert (await vfs.getattr(caller(), node, handle))[0].size == 4
    assert (await vfs.setattr(caller(), node, handle=handle, size=2))[0].size == 2
    assert (await vfs.setattr(caller(), node, mode=0o611))[0].mode & 0o777 == 0o611
    again = await vfs.mknod(caller(), 1, b"f", stat.S_IFREG | 0o600, 0)
    assert again.node != node


@pytest.mark.parametrize("change", ["write", "truncate", "fallocate", "copy", "open", "chmod", "xattr"])
async def test_a_change_shows_at_once_and_reliably(mount: Mount, root: Path, change: str) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "f").write_bytes(b"abc")
    node, handle = await mount.open(b"f", os.O_RDWR)
    before, _ = await vfs.getattr(caller(), node)
    before = (before.size, before.ctime, before.mode)
    if change == "write":
        await vfs.write(caller(), node, handle, 3, b"d")
    elif change == "truncate":
        assert (await vfs.setattr(caller(), node, size=1))[1] == 1.0
    elif change == "fallocate":
        await vfs.fallocate(caller(), node, handle, 0, 0, 4096)
    elif change == "copy":
        assert await vfs.copy_file_range(caller(), node, handle, 0, node, handle, 3, 3) == 3
    elif change == "open":
        await vfs.open(caller(), node, os.O_RDWR | os.O_TRUNC)
    elif change == "chmod":
        await vfs.setattr(caller(), node, mode=0o600)
    else:
        await vfs.setxattr(caller(), node, b"user.a", b"1", 0)
    attr, ttl = await vfs.getattr(caller(), node)
    real = (root / "f").stat()
    assert (attr.size, attr.ctime, attr.mtime) == (real.st_size, real.st_ctime_ns, real.st_mtime_ns)
    assert ttl == 1.0
    assert (attr.size, attr.ctime, attr.mode) != before


async def test_seek_finds_holes(mount: Mount, root: Path) -> None:
    with open(root / "f", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    node, handle = await mount.open(b"f")
    assert await mount.vfs.lseek(mount.caller(), node, handle, 0, os.SEEK_DATA) == 1 << 19
    with raises(errno.ENXIO):
        await mount.vfs.lseek(mount.caller(), node, handle, 1 << 21, os.SEEK_DATA)


async def test_times(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    node = await mount.node(b"f")
    attr, _ = await mount.vfs.setattr(mount.caller(), node, atime=5, mtime=7)
    assert (attr.atime, attr.mtime) == (5, 7)
    attr, _ = await mount.vfs.setattr(mount.caller(), node, mtime=-1)
    assert attr.atime == 5
    assert attr.mtime > 10**18


async def test_the_access_time_moves_with_reading(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"abc")
    os.utime(root / "f", ns=(1, 2))
    node, handle = await mount.open(b"f")
    assert (await mount.vfs.getattr(mount.caller(), node))[0].atime == 1
    await mount.vfs.read(mount.caller(), node, handle, 0, 10)
    attr, _ = await mount.vfs.getattr(mount.caller(), node)
    assert attr.atime == (root / "f").stat().st_atime_ns


async def test_squashed_owners(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "f").touch()
    (root / "f").chmod(0o6755)
    (root / "d").mkdir()
    f, d = await mount.node(b"f"), await mount.node(b"d")
    attr, _ = await vfs.setattr(caller(), f, uid=1234, gid=1234)
    assert (attr.uid, attr.gid, stat.S_IMODE(attr.mode)) == (1234, 1234, 0o755)
    attr, _ = await vfs.setattr(caller(), d, gid=1234)
    assert (attr.uid, mount.engine.count(m.SetAttr)) == (1234, 1)
    assert stat.S_IMODE((await vfs.setattr(caller(), d, gid=1234, mode=0o700))[0].mode) == 0o700
    (root / "f").chmod(0o6755)
    attr, _ = await vfs.setattr(caller(), f)  # chown(-1, -1)
    assert stat.S_IMODE(attr.mode) == 0o755
    for ids in ({"uid": 0}, {"gid": 0}, {"uid": 1234, "gid": 5}):
        with raises(errno.EPERM):
            await vfs.setattr(caller(), f, **ids)


async def test_pages_are_kept_only_while_the_file_is_certainly_the_same(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "f").write_bytes(b"abc")
    node = await mount.node(b"f")

    async def keeps(flags: int = os.O_RDWR) -> bool:
        return (await vfs.open(caller(), node, flags)).keep_cache

    assert [await keeps(), await keeps(), await keeps()] == [False, True, True]
    (root / "f").write_bytes(b"abd")
    assert [await keeps(), await keeps()] == [False, True]
    handle = (await vfs.open(caller(), node, os.O_RDWR)).handle
    await vfs.write(caller(), node, handle, 0, b"x")
    assert [await keeps(), await keeps()] == [False, True]
    mount.engine.on_notification(m.Changed([m.Change(vfs.tree.get(node).identity)]))
    assert [await keeps(), await keeps()] == [False, True]
    assert [await keeps(os.O_RDWR | os.O_TRUNC), await keeps()] == [False, True]
    # Just changed: the next change might have the very same time.
    mount.clock.wall_ns = (root / "f").stat().st_mtime_ns + 1000
    assert [await keeps(), await keeps()] == [False, False]


async def test_without_cache_files_are_direct(mounted, root: Path) -> None:
    mount = await mounted(cache=False)
    (root / "f").touch()
    node = await mount.node(b"f")
    for _ in range(2):
        opened = await mount.vfs.open(mount.caller(), node, os.O_RDWR)
        assert opened[1:] == (False, True, True)
    assert (await mount.vfs.open(mount.caller(), node, os.O_RDWR | os.O_APPEND)).parallel is False


async def test_the_server_gets_only_the_flags_that_it_needs(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    await mount.open(b"f", os.O_RDWR | os.O_APPEND | os.O_DIRECT | os.O_SYNC | os.O_NONBLOCK | os.O_CREAT)
    assert mount.engine.requests[-1].flags == os.O_RDWR | os.O_APPEND


async def test_keys_go_with_requests_and_are_done_and_interrupted(mount: Mount, root: Path) -> None:
    await mount.vfs.mkdir(mount.caller()._replace(key=1000), 1, b"d", 0o755)
    assert mount.engine.requests[-1].seq == 1000
    mount.vfs.done(1000)
    mount.vfs.interrupt(1002)
    mount.vfs.repeated(1004)
    mount.vfs.all_repeated()
    assert mount.engine.calls == [
        ("done", 1000),
        ("interrupt", 1002),
        ("repeated", 1004),
        ("forget_others", 0),
    ]


async def test_extended_attributes(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "f").touch()
    node = await mount.node(b"f")
    await vfs.setxattr(caller(), node, b"user.a", b"1", os.XATTR_CREATE)
    with raises(errno.EEXIST):
        await vfs.setxattr(caller(), node, b"user.a", b"1", os.XATTR_CREATE)
    assert await vfs.getxattr(caller(), node, b"user.a") == b"1"
    os.setxattr(root / "f", "user.wsfuse.x", b"")
    assert await vfs.listxattr(caller(), node) == [b"user.a"]
    with raises(errno.ENODATA):
        await vfs.getxattr(caller(), node, b"user.wsfuse.x")
    assert (await vfs.getxattr(caller(), node, b"user.wsfuse.why")).startswith(
        b"read: allowed by the default"
    )
    for attempt in (
        vfs.setxattr(caller(), node, b"user.wsfuse.x", b"", 0),
        vfs.removexattr(caller(), node, b"user.wsfuse.x"),
    ):
        with raises(errno.EPERM):
            await attempt
    await vfs.removexattr(caller(), node, b"user.a")
    with raises(errno.ENODATA):
        await vfs.getxattr(caller(), node, b"user.a")


async def test_what_a_rule_denies_is_in_the_log(
    mount: Mount, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "f").touch()
    node = await mount.node(b"f")
    opened = await mount.vfs.open(mount.caller(), node, os.O_RDWR)
    mount.engine.context.policy = Policy(RuleSet([parse_rule("deny write,execute f", "rule 1")]))
    for attempt in (
        mount.vfs.write(mount.caller(), node, opened.handle, 0, b"x"),
        mount.vfs.setattr(mount.caller(), node, mode=0o600),
        mount.vfs.open(mount.caller(), node, FMODE_EXEC),
    ):
        with raises(errno.EACCES):
            await attempt
    denied = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(denied) == 1
    assert denied[0].startswith("Write(")
    assert denied[0].endswith(": denied by rule 1: deny write,execute f")
    caplog.clear()


async def test_access_statfs_syncfs(mount: Mount, root: Path) -> None:
    await mount.vfs.access(mount.caller(), 1, os.R_OK | os.W_OK)
    assert (await mount.vfs.statfs(mount.caller(), 1)).bsize > 0
    await mount.vfs.syncfs(mount.caller())


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        (b"x/y", True), (b"../x", True), (b"../../x", True), (b"./.././../x", True), (b"../../../x", False),
        (b"/etc/passwd", False), (b"x/../../y", False), (b"..", True),
    ],
)  # fmt: skip
async def test_contained_links_do_not_leave_the_mount(
    mounted, root: Path, target: bytes, allowed: bool, caplog
) -> None:
    (root / "a/b").mkdir(parents=True)
    os.symlink(target, os.fsencode(root) + b"/a/b/link")
    kept, contained = await mounted(), await mounted(links="contain")
    assert await kept.vfs.readlink(kept.caller(), await kept.node(b"a/b/link")) == target
    node = await contained.node(b"a/b/link")
    for _ in range(2):
        if allowed:
            assert await contained.vfs.readlink(contained.caller(), node) == target
        else:
            with raises(errno.EPERM):
                await contained.vfs.readlink(contained.caller(), node)
    assert contained.engine.count(m.ReadLink) == 1
    assert ("leaves the mount" in caplog.text) is not allowed


# --- answers that are overtaken


async def test_attributes_that_a_write_overtook_are_not_believed(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "f").write_bytes(b"abc")
    node, handle = await mount.open(b"f", os.O_RDWR)
    mount.clock.seconds += 5
    asked, go = asyncio.Event(), asyncio.Event()

    async def late(request: m.Request, reply: m.Reply) -> None:
        if isinstance(request, m.GetAttr):
            asked.set()
            await go.wait()

    mount.engine.after = late
    old = asyncio.create_task(vfs.getattr(caller(), node))
    await asked.wait()
    await vfs.write(caller(), node, handle, 3, b"d")
    go.set()
    attr, ttl = await old
    assert (attr.size, ttl) == (3, 0.0)
    attr, ttl = await vfs.getattr(caller(), node)
    assert (attr.size, ttl) == (4, 1.0)


async def test_a_lookup_that_a_rename_overtook_is_made_again(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "a").write_bytes(b"A")
    (root / "b").write_bytes(b"Bb")
    a = await mount.node(b"a")
    asked, go = asyncio.Event(), asyncio.Event()

    async def late(request: m.Request, reply: m.Reply) -> None:
        if isinstance(request, m.Lookup) and not go.is_set():
            asked.set()
            await go.wait()

    mount.engine.after = late
    looking = asyncio.create_task(vfs.lookup(caller(), 1, b"b"))
    await asked.wait()
    await vfs.rename(caller(), 1, b"a", 1, b"b")
    go.set()
    assert (await looking).node == a
    assert vfs.tree.path_of(vfs.tree.get(a)) == b"b"


async def test_a_lookup_that_is_overtaken_again_and_again_takes_no_name_away(
    mount: Mount, root: Path
) -> None:
    (root / "f").touch()
    (root / "g").touch()
    node = await mount.node(b"f")
    other = (root / "g").stat().st_ino

    async def meddle(request: m.Request, reply: m.Reply) -> m.Reply | None:
        mount.vfs.cache.drop_entry(mount.vfs.tree.root.identity, b"f")
        if isinstance(request, m.Lookup):
            return m.AttrReply(0, mount.engine.execute(m.Lookup(0, m.Ref(b""), b"g"), b"")[0].attr)
        return None

    mount.clock.seconds += 5
    mount.engine.after = meddle
    entry = await mount.vfs.lookup(mount.caller(), 1, b"f")
    assert (entry.attr.ino, entry.entry_ttl) == (other, 0.0)
    assert mount.vfs.tree.path_of(mount.vfs.tree.get(node)) == b"f"


async def test_a_name_that_was_made_while_it_was_missing_is_not_negative(mounted, root: Path) -> None:
    mount = await mounted(negative_ttl=5.0)
    (root / "f").touch()
    node = await mount.node(b"f")
    mount.clock.seconds += 9

    async def gone(request: m.Request) -> None:
        mount.vfs.cache.drop_entry(mount.vfs.tree.root.identity, b"f")
        raise os_error(errno.ENOENT)

    mount.engine.before = gone
    with raises(errno.ENOENT):
        await mount.vfs.lookup(mount.caller(), 1, b"f")
    assert mount.vfs.tree.path_of(mount.vfs.tree.get(node)) == b"f"


async def test_an_uncertain_failure_leaves_nothing_in_the_cache(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"abc")
    node, handle = await mount.open(b"f", os.O_RDWR)

    async def lost(request: m.Request, reply: m.Reply) -> None:
        if isinstance(request, m.Write):
            raise os_error(errno.EIO, "outcome unknown")

    mount.engine.after = lost
    with raises(errno.EIO):
        await mount.vfs.write(mount.caller(), node, handle, 3, b"d")
    assert (await mount.vfs.getattr(mount.caller(), node))[0].size == 4


@pytest.mark.parametrize("operation", ["getattr", "read", "write"])
async def test_an_answer_of_another_kind_is_an_error(mount: Mount, root: Path, operation: str) -> None:
    (root / "f").touch()
    node, handle = await mount.open(b"f", os.O_RDWR)
    mount.clock.seconds += 5

    async def nonsense(request: m.Request, reply: m.Reply) -> m.Reply:
        return m.NamesReply(0, [])

    mount.engine.after = nonsense
    arguments = {"getattr": (), "read": (handle, 0, 1), "write": (handle, 0, b"x")}[operation]
    with raises(errno.EIO):
        await getattr(mount.vfs, operation)(mount.caller(), node, *arguments)

"""Listing directories: every name once, in linear time, and attributes only while they are true."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from jupyter_wsfuse.client.api import DirItem
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.local_engine import Mount


async def listing(mount: Mount, handle: int, step: int = 7, plus: bool = False) -> list[DirItem]:
    found: list[DirItem] = []
    cookie = 0
    while items := await mount.vfs.readdir(mount.caller(), 1, handle, cookie, step, plus):
        assert len(items) <= step
        found += items
        cookie = items[-1].cookie
    return found


@pytest.fixture
async def handle(mount: Mount, root: Path) -> int:
    for number in range(50):
        (root / f"f{number}").write_bytes(b"x" * number)
    return (await mount.vfs.opendir(mount.caller(), 1)).handle


async def test_every_name_is_listed_once(mounted, root: Path) -> None:
    mount = await mounted(page_entries=11)
    for number in range(50):
        (root / f"f{number}").touch()
    handle = (await mount.vfs.opendir(mount.caller(), 1)).handle
    names = [item.name for item in await listing(mount, handle)]
    assert sorted(names) == sorted([b".", b"..", *(b"f%d" % number for number in range(50))])
    mount.vfs.releasedir(1, handle)
    with pytest.raises(OSError) as caught:
        await mount.vfs.readdir(mount.caller(), 1, handle, 0, 10, False)
    assert caught.value.errno == errno.EBADF


async def test_plus_looks_up_and_counts(mount: Mount, handle: int) -> None:
    items = await listing(mount, handle, plus=True)
    assert mount.engine.count(m.ReadDir) == 1
    by_name = {item.name: item for item in items}
    assert by_name[b"."].entry is None
    assert by_name[b".."].entry is None
    entry = by_name[b"f7"].entry
    assert entry is not None
    assert (entry.attr.size, entry.attr.uid, entry.attr_ttl) == (7, 1234, 1.0)
    node = mount.vfs.tree.get(entry.node)
    assert (node.lookups, mount.vfs.tree.path_of(node)) == (1, b"f7")
    # What follows a listing asks nobody.
    again = await mount.vfs.lookup(mount.caller(), 1, b"f7")
    await mount.vfs.getattr(mount.caller(), again.node)
    assert mount.engine.count(m.Lookup) == mount.engine.count(m.GetAttr) == 0
    mount.vfs.unreturned(items)
    assert len(mount.vfs.tree) == 2  # the root, and f7 that was looked up


async def test_plain_listing_knows_no_nodes(mount: Mount, handle: int) -> None:
    items = await listing(mount, handle)
    assert all(item.entry is None for item in items)
    assert len(mount.vfs.tree) == 1
    assert {item.type for item in items} == {4, 8}


async def test_the_kernel_continues_where_it_had_no_more_room(mount: Mount, handle: int) -> None:
    vfs, caller = mount.vfs, mount.caller
    first = await vfs.readdir(caller(), 1, handle, 0, 20, True)
    vfs.unreturned(first[5:])
    second = await vfs.readdir(caller(), 1, handle, first[4].cookie, 100, True)
    assert [item.name for item in second[:15]] == [item.name for item in first[5:]]
    assert mount.engine.count(m.ReadDir) == 1
    assert mount.vfs.tree.get(second[0].entry.node).lookups == 1


async def test_rewinding_and_seeking_ask_again(mount: Mount, handle: int, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    items = await listing(mount, handle)
    (root / "new").touch()
    os.unlink(root / "f0")
    again = await listing(mount, handle)
    assert {item.name for item in items} ^ {item.name for item in again} == {b"new", b"f0"}
    assert mount.engine.count(m.ReadDir) == 2
    await vfs.readdir(caller(), 1, handle, 0, 10, False)
    middle = await vfs.readdir(caller(), 1, handle, again[30].cookie, 1, False)
    assert middle[0].name == again[31].name
    assert mount.engine.count(m.ReadDir) == 4


async def test_none_fitted_of_the_first_piece_of_a_later_page(mounted, root: Path) -> None:
    mount = await mounted(page_entries=10)
    for number in range(30):
        (root / f"f{number}").touch()
    handle = (await mount.vfs.opendir(mount.caller(), 1)).handle
    first = await mount.vfs.readdir(mount.caller(), 1, handle, 0, 10, True)
    second = await mount.vfs.readdir(mount.caller(), 1, handle, first[-1].cookie, 10, True)
    mount.vfs.unreturned(second)
    again = await mount.vfs.readdir(mount.caller(), 1, handle, first[-1].cookie, 10, True)
    assert [item.name for item in again] == [item.name for item in second]
    assert mount.engine.count(m.ReadDir) == 2


async def test_a_page_that_waited_tells_no_old_attributes(mount: Mount, handle: int, root: Path) -> None:
    """The kernel would take the old size for the new one and cut the file off."""
    vfs, caller = mount.vfs, mount.caller
    node, file = await mount.open(b"f7", os.O_RDWR)
    items = await vfs.readdir(caller(), 1, handle, 0, 2, True)
    await vfs.write(caller(), node, file, 7, b"more")
    await vfs.unlink(caller(), 1, b"f8")
    await vfs.rename(caller(), 1, b"f9", 1, b"f10")
    rest = {item.name: item for item in await vfs.readdir(caller(), 1, handle, items[-1].cookie, 100, True)}
    rest |= {item.name: item for item in items}
    assert rest[b"f7"].entry is None
    assert rest[b"f8"].entry is None
    assert rest[b"f9"].entry is None
    assert rest[b"f10"].entry is not None  # what was renamed is known
    assert rest[b"f10"].entry.attr.size == 9
    assert rest[b"f11"].entry is not None
    await vfs.getattr(caller(), node)
    rest = {item.name: item for item in await vfs.readdir(caller(), 1, handle, items[-1].cookie, 100, True)}
    assert rest[b"f7"].entry is None or rest[b"f7"].entry.attr.size == 11


async def test_a_page_that_waited_too_long_tells_names_only(mount: Mount, handle: int) -> None:
    items = await mount.vfs.readdir(mount.caller(), 1, handle, 0, 10, True)
    mount.clock.seconds += 2
    rest = await mount.vfs.readdir(mount.caller(), 1, handle, items[-1].cookie, 100, True)
    assert len(rest) == 42
    assert all(item.entry is None for item in rest)


async def test_without_cache_listings_tell_names_only(mounted, root: Path) -> None:
    mount = await mounted(cache=False)
    (root / "f").touch()
    handle = (await mount.vfs.opendir(mount.caller(), 1)).handle
    assert all(item.entry is None for item in await listing(mount, handle, plus=True))


async def test_what_vanished_while_it_was_listed_has_no_attributes(mount: Mount, handle: int) -> None:
    async def vanish(request: m.Request, reply: m.Reply) -> None:
        if isinstance(reply, m.DirReply):
            for entry in reply.entries:
                entry.attr = None

    mount.engine.after = vanish
    assert all(item.entry is None for item in await listing(mount, handle, plus=True))


async def test_a_negative_entry_is_not_an_entry_of_a_listing(mounted, root: Path) -> None:
    mount = await mounted(negative_ttl=5.0)
    (root / "a").touch()
    (root / "b").touch()
    handle = (await mount.vfs.opendir(mount.caller(), 1)).handle
    items = await mount.vfs.readdir(mount.caller(), 1, handle, 0, 1, True)
    for name in (b"a", b"b"):
        os.unlink(os.fsencode(root) + b"/" + name)
        mount.vfs.cache.drop_entry(mount.vfs.tree.root.identity, name)
        assert (await mount.vfs.lookup(mount.caller(), 1, name)).node == 0
    rest = await mount.vfs.readdir(mount.caller(), 1, handle, items[-1].cookie, 10, True)
    assert all(item.entry is None for item in rest)


async def test_fsyncdir(mount: Mount, handle: int) -> None:
    await mount.vfs.fsyncdir(mount.caller(), 1, handle, True)
    assert mount.engine.count(m.Fsync) == 1


async def test_a_hundred_thousand_entries_are_listed_in_as_many_steps(mount: Mount, handle: int) -> None:
    """Counted, not timed: every page is asked for once, and every continuation is found at the first look."""
    compared = 0

    class Entry(m.DirEntry):
        def __getattribute__(self, name: str) -> object:
            nonlocal compared
            compared += name == "cookie"
            return super().__getattribute__(name)

    total, size = 100_000, 1000

    def page(request: m.Request, payload: bytes) -> tuple[m.Reply, bytes]:
        assert isinstance(request, m.ReadDir)
        first = request.cookie
        last = min(first + size, total)
        return m.DirReply(
            0, [Entry(b"%d" % n, n + 1, n + 1, 8) for n in range(first, last)], last == total
        ), b""

    mount.engine.execute = page  # type: ignore[method-assign]
    items = await listing(mount, handle, step=25)
    assert [item.name for item in items] == [b"%d" % n for n in range(total)]
    assert mount.engine.count(m.ReadDir) == total // size
    assert compared < 1.2 * total


async def test_attributes_of_dots_are_not_the_servers_to_tell(mount: Mount, handle: int) -> None:
    async def dots(request: m.Request, reply: m.Reply) -> None:
        if isinstance(reply, m.DirReply):
            for entry in reply.entries:
                entry.attr = entry.attr or reply.entries[-1].attr

    mount.engine.after = dots
    items = {item.name: item for item in await listing(mount, handle, plus=True)}
    assert items[b"."].entry is items[b".."].entry is None

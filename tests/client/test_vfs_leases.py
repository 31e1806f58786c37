"""What is answered from memory under a lease, what is fetched ahead, and when neither is believed."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.client import core as core_module
from jupyter_wsfuse.client import directories as directories_module
from jupyter_wsfuse.client import fetcher as fetcher_module
from jupyter_wsfuse.client.api import PREFETCH, DirItem
from jupyter_wsfuse.client.directory import LEASED
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.ranges import LAST
from tests.helpers.local_engine import Mount, state

MIB = 1 << 20
DISK = b"".join(number.to_bytes(4, "little") for number in range(MIB))  # 4 MiB, no two words alike


def fails(number: int) -> Any:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


@pytest.fixture
async def mount(mounted: Callable[..., Awaitable[Mount]], root: Path) -> Mount:
    for folder in ("a", "a/deep", "b", "c"):
        (root / folder).mkdir()
        for number in range(6):
            (root / folder / f"f{number}").write_bytes(b"%s %d" % (folder.encode(), number))
    (root / "big").write_bytes(DISK)
    return await mounted(leases=True, prefetch=PREFETCH)


async def quiet(mount: Mount) -> None:
    """Until nothing is fetched ahead any more."""
    while mount.vfs.fetcher._tasks:
        await asyncio.gather(*mount.vfs.fetcher._tasks)


def asked(mount: Mount) -> list[str]:
    """The requests since the last look."""
    found = [type(request).__name__ for request in mount.engine.requests]
    mount.engine.requests.clear()
    return found


async def listing(mount: Mount, node: int = 1, handle: int = 0, step: int = 3) -> dict[bytes, DirItem]:
    found: dict[bytes, DirItem] = {}
    cookie = 0
    while items := await mount.vfs.readdir(mount.caller(), node, handle, cookie, step, True):
        found |= {item.name: item for item in items}
        cookie = items[-1].cookie
    return found


async def content(mount: Mount, path: bytes) -> bytes:
    node, handle = await mount.open(path)
    data = bytes(await mount.vfs.read(mount.caller(), node, handle, 0, MIB))
    mount.vfs.release(node, handle)
    return data


def changed(mount: Mount, path: str, name: bytes | None = None) -> None:
    identity = mount.engine.execute(m.GetAttr(0, m.Ref(path.encode())), b"")[0].attr.identity
    mount.engine.on_notification(m.Changed([m.Change(identity, name)]))


# --- names and attributes


async def test_a_lookup_brings_the_whole_directory(mount: Mount) -> None:
    await mount.node(b"a/f0")
    await quiet(mount)
    asked(mount)
    mount.clock.seconds += 10**6
    entry = await mount.vfs.lookup(mount.caller(), await mount.node(b"a"), b"f5")
    assert entry.entry_ttl == entry.attr_ttl == LEASED
    assert (await mount.vfs.lookup(mount.caller(), await mount.node(b"a"), b"nothing")).node == 0
    assert (await mount.vfs.getattr(mount.caller(), entry.node))[1] == LEASED
    assert asked(mount) == []


async def test_nearby_the_whole_directory_comes_instead_of_the_one_name(mount: Mount) -> None:
    mount.engine.rtt = 0.0003
    asked(mount)
    assert await mount.node(b"a/f0")
    await quiet(mount)
    assert mount.engine.count(m.Lookup) == 0
    listings = [request for request in mount.engine.requests if isinstance(request, m.ListTree)]
    assert [(request.refs[0].path, request.depth) for request in listings] == [(b"", 0), (b"a", 0)]


async def test_a_large_plan_is_asked_for_in_parts_that_name_each_directory_once(
    mount: Mount, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "_PART", 1)
    monkeypatch.setattr(fetcher_module, "_NEAR", 0)
    for number in range(7):
        (root / f"d{number}").mkdir()
    await listing(mount)
    await quiet(mount)
    mount.engine.requests.clear()
    await listing(mount, await mount.node(b"a"))
    await quiet(mount)
    parts = [
        [ref.path for ref in request.refs]
        for request in mount.engine.requests
        if isinstance(request, m.ListTree) and request.background and request.depth == 32
    ]
    named = [path for part in parts for path in part]
    assert len(parts) == len(named) == len(set(named)) > 7
    assert {b"b", b"c", b"d0", b"d6"} <= set(named)


async def test_a_listing_is_whole_and_asks_once(mount: Mount) -> None:
    found = await listing(mount)
    assert set(found) == {b".", b"..", b"a", b"b", b"c", b"big"}
    assert found[b"."].ino == found[b".."].ino == mount.vfs.tree.root.identity.ino
    entry = found[b"big"].entry
    assert entry is not None
    assert entry.attr_ttl == LEASED
    await quiet(mount)
    asked(mount)
    assert set(await listing(mount, step=100)) == set(found)
    assert asked(mount) == []


async def test_news_are_believed_at_once(mount: Mount, root: Path) -> None:
    await listing(mount)
    (root / "new").touch()
    (root / "c").rename(root / "d")
    for name in (b"new", b"c", b"d"):
        changed(mount, "", name)
    assert (await mount.vfs.lookup(mount.caller(), 1, b"new")).node
    assert (await mount.vfs.lookup(mount.caller(), 1, b"d")).node
    assert (await mount.vfs.lookup(mount.caller(), 1, b"c")).node == 0
    assert set(await listing(mount)) == {b".", b"..", b"a", b"b", b"d", b"big", b"new"}


async def test_a_listing_under_way_goes_on_in_what_it_began_with(mount: Mount, root: Path) -> None:
    first = await mount.vfs.readdir(mount.caller(), 1, 0, 0, 3, False)
    (root / "new").touch()
    changed(mount, "", b"new")
    rest = await mount.vfs.readdir(mount.caller(), 1, 0, first[-1].cookie, 100, False)
    assert {item.name for item in first + rest} == {b".", b"..", b"a", b"b", b"c", b"big"}
    mount.vfs._pages.clear()  # too many others were listed since
    again = await mount.vfs.readdir(mount.caller(), 1, 0, first[-1].cookie, 100, False)
    assert {item.name for item in again} <= {b"a", b"b", b"c", b"big", b"new"}
    assert {item.name for item in rest} <= {item.name for item in again}


async def test_what_came_while_it_changed_is_listed_and_not_remembered(mount: Mount, root: Path) -> None:
    async def meddle(request: m.Request, reply: m.Reply) -> None:
        if isinstance(reply, m.TreeReply):
            mount.vfs.cache.clear()

    mount.engine.after = meddle
    assert b"a" in await listing(mount, step=100)
    assert mount.vfs.cache.directory(mount.vfs.tree.root.identity) is None


async def test_a_lost_connection_is_the_end_of_all_leases(mount: Mount) -> None:
    await listing(mount)
    await mount.vfs.lookup(mount.caller(), 1, b"nothing")
    mount.notes.seen.clear()
    mount.engine.on_state("reconnecting")
    assert (1, b"nothing") in mount.notes.seen
    assert (1, b"a") in mount.notes.seen
    assert not len(mount.vfs.cache.leases)
    asked(mount)
    mount.engine.on_state("connected")
    await mount.vfs.lookup(mount.caller(), 1, b"a")
    assert asked(mount)


async def test_a_lease_that_is_released(mount: Mount) -> None:
    a = await mount.node(b"a")
    await listing(mount, a)
    await listing(mount)
    mount.notes.seen.clear()
    identities = [mount.vfs.tree.get(node).identity for node in (a, 1)]
    mount.engine.on_notification(m.Released([*identities, m.Identity(1, 2, 3)]))
    assert {(1, b"a"), (a, b"f0"), (1, b"big")} <= set(mount.notes.seen)
    asked(mount)
    await mount.vfs.lookup(mount.caller(), a, b"f0")
    assert "Lookup" in asked(mount)


async def test_directories_that_come_next_are_listed_ahead(mount: Mount, root: Path) -> None:
    await listing(mount)
    a = await mount.node(b"a")
    await listing(mount, a)
    await quiet(mount)
    asked(mount)
    for path in (b"b", b"c", b"a/deep"):
        assert b"f5" in await listing(mount, await mount.node(path))
    assert asked(mount) == []
    assert mount.vfs.fetcher.snapshot()["subtree"]["used"] == 3


async def test_what_cannot_be_listed_ahead_harms_nobody(mount: Mount, root: Path) -> None:
    async def refuse(request: m.Request) -> None:
        if isinstance(request, (m.ListTree, m.Fetch)) and request.background:
            raise OSError(errno.EIO, "no")

    mount.engine.before = refuse
    await mount.node(b"a/f0")
    await quiet(mount)
    assert await content(mount, b"b/f1") == b"b 1"
    assert await content(mount, b"b/f2") == b"b 2"
    await quiet(mount)
    assert mount.vfs.fetcher.window.flying == 0


async def test_a_directory_that_does_not_fit_is_listed_in_pages(
    mount: Mount, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories_module, "LARGEST", 3)
    monkeypatch.setattr(fetcher_module, "LIMITS", (2, 3))
    monkeypatch.setattr(directories_module, "_STREAMS", 1)
    a, b = await mount.node(b"a"), await mount.node(b"b")
    assert {b"f0", b"f5", b"deep"} <= set(await listing(mount, a, step=2))
    assert not any(file.directory for file in mount.vfs.files.values())  # closed at the end
    half = await mount.vfs.readdir(mount.caller(), a, 0, 0, 2, True)
    await listing(mount, b, step=100)
    rest = await mount.vfs.readdir(mount.caller(), a, 0, half[-1].cookie, 100, True)
    assert len(half + rest) == 9
    await quiet(mount)
    asked(mount)
    await mount.vfs.lookup(mount.caller(), a, b"nothing")
    await quiet(mount)
    lists = [request for request in mount.engine.requests if isinstance(request, m.ListTree)]
    assert all(ref.path != b"a" for request in lists for ref in request.refs)


async def test_a_directory_that_is_gone_is_empty(mount: Mount, root: Path) -> None:
    (root / "empty").mkdir()
    node = await mount.node(b"empty")
    await mount.vfs.rmdir(mount.caller(), 1, b"empty")
    assert await mount.vfs.readdir(mount.caller(), node, 0, 0, 10, True) == []
    assert (await mount.vfs.lookup(mount.caller(), 1, b"empty")).node == 0


async def test_opening_a_directory_asks_nobody_and_fsync_does(mount: Mount) -> None:
    a = await mount.node(b"a")
    await quiet(mount)
    asked(mount)
    handle = (await mount.vfs.opendir(mount.caller(), a)).handle
    assert asked(mount) == []
    await mount.vfs.fsyncdir(mount.caller(), a, handle, False)
    assert asked(mount) == ["OpenDir", "Fsync"]
    mount.vfs.releasedir(a, handle)
    await mount.vfs.fsyncdir(mount.caller(), a, 0, False)
    assert asked(mount) == ["OpenDir", "Fsync"]
    assert mount.vfs.files == {}


async def test_names_that_are_too_long_are_not_just_missing(mount: Mount) -> None:
    await listing(mount)
    with fails(errno.ENAMETOOLONG):
        await mount.vfs.lookup(mount.caller(), 1, b"n" * 256)


async def test_what_one_made_or_removed_is_known(mount: Mount) -> None:
    await listing(mount)
    asked(mount)
    await mount.vfs.mkdir(mount.caller(), 1, b"made", 0o755)
    await mount.vfs.rename(mount.caller(), 1, b"made", 1, b"moved")
    await mount.vfs.unlink(mount.caller(), 1, b"big")
    asked(mount)
    assert (await mount.vfs.lookup(mount.caller(), 1, b"moved")).node
    for name in (b"made", b"big"):
        assert (await mount.vfs.lookup(mount.caller(), 1, name)).node == 0
    assert asked(mount) == []


async def test_the_kernel_knows_no_more_files_than_agreed(
    mounted: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_module, "_SHED", 8)
    for number in range(40):
        (root / f"f{number}").touch()
    mount = await mounted(leases=True, prefetch=PREFETCH, nodes=10)
    for number in range(40):
        await mount.vfs.lookup(mount.caller(), 1, b"f%d" % number)
    told = {seen for seen in mount.notes.seen if isinstance(seen[1], bytes)}
    assert (1, b"f0") in told
    assert len(mount.notes.seen) < 100  # once in a while, not for each


async def test_access_and_extended_attributes_are_remembered(mount: Mount, root: Path) -> None:
    os.setxattr(root / "a/f1", "user.x", b"1")
    node, other = await mount.node(b"a/f0"), await mount.node(b"a/f1")
    await quiet(mount)
    await mount.vfs.access(mount.caller(), node, 4)
    asked(mount)
    await mount.vfs.access(mount.caller(), node, 4)
    with fails(errno.ENODATA):
        await mount.vfs.getxattr(mount.caller(), node, b"security.selinux")
    assert await mount.vfs.listxattr(mount.caller(), node) == []
    assert asked(mount) == []
    assert await mount.vfs.getxattr(mount.caller(), other, b"user.x") == b"1"
    changed(mount, "a/f0")
    await mount.vfs.access(mount.caller(), node, 4)
    assert asked(mount) == ["GetXattr", "Access"]


async def test_a_refusal_is_remembered_too(mount: Mount) -> None:
    node = await mount.node(b"a/f0")
    await quiet(mount)

    async def refuse(request: m.Request) -> None:
        if isinstance(request, m.Access):
            raise OSError(errno.EACCES, "no")

    mount.engine.before = refuse
    for _ in range(2):
        with fails(errno.EACCES):
            await mount.vfs.access(mount.caller(), node, 2)
    assert asked(mount).count("Access") == 1


# --- small files


async def test_a_file_is_opened_again_without_asking(mount: Mount) -> None:
    assert await content(mount, b"a/f0") == b"a 0"
    await quiet(mount)
    asked(mount)
    assert await content(mount, b"a/f0") == b"a 0"
    node, handle = await mount.open(b"a/f0", os.O_RDWR)
    assert asked(mount) == ["Open"]
    mount.vfs.release(node, handle)


async def test_data_come_with_the_opening(mount: Mount) -> None:
    node = await mount.node(b"a/f0")
    await quiet(mount)
    asked(mount)
    handle = (await mount.vfs.open(mount.caller(), node, os.O_RDONLY)).handle
    assert bytes(await mount.vfs.read(mount.caller(), node, handle, 1, 100)) == b" 0"
    assert await mount.vfs.read(mount.caller(), node, handle, 3, 100) == b""
    assert asked(mount) == ["Open"]
    assert mount.vfs.fetcher.inline.used == 1


async def test_who_reads_two_files_reads_the_others(mount: Mount) -> None:
    for number in range(2):
        await content(mount, b"a/f%d" % number)
        await quiet(mount)
    asked(mount)
    for number in range(2, 6):
        assert await content(mount, b"a/f%d" % number) == b"a %d" % number
    assert asked(mount) == []
    assert mount.vfs.fetcher.siblings.tally.used == 4


async def test_and_then_those_of_the_directories_beside(mount: Mount) -> None:
    await listing(mount)
    for path in (b"a", b"b", b"c"):
        await listing(mount, await mount.node(path))
    await quiet(mount)
    await content(mount, b"a/f0")
    await content(mount, b"b/f0")
    await quiet(mount)
    asked(mount)
    for number in range(6):
        await content(mount, b"b/f%d" % number)
    assert asked(mount) == []


async def test_data_on_their_way_are_waited_for(mount: Mount) -> None:
    asked_for, gate = asyncio.Event(), asyncio.Event()

    async def hold(request: m.Request) -> None:
        if isinstance(request, m.Fetch):
            asked_for.set()
            await gate.wait()

    await content(mount, b"a/f0")
    await quiet(mount)
    mount.engine.before = hold
    await content(mount, b"a/f1")
    await asked_for.wait()
    reading = asyncio.create_task(content(mount, b"a/f2"))
    await asyncio.sleep(0)
    assert not reading.done()
    gate.set()
    assert await reading == b"a 2"
    assert asked(mount).count("Open") == 2


async def test_what_changed_on_its_way_is_not_kept(mount: Mount, root: Path) -> None:
    async def change(request: m.Request, reply: m.Reply) -> None:
        if isinstance(request, m.Fetch):
            changed(mount, request.ref.path.decode())

    mount.engine.after = change
    for number in range(2):
        await content(mount, b"a/f%d" % number)
    await quiet(mount)
    (root / "a/f3").write_bytes(b"other")
    changed(mount, "a/f3")
    assert await content(mount, b"a/f3") == b"other"


async def test_a_changed_file_is_read_anew(mount: Mount, root: Path) -> None:
    assert await content(mount, b"a/f0") == b"a 0"
    (root / "a/f0").write_bytes(b"longer than before")
    changed(mount, "a/f0")
    assert await content(mount, b"a/f0") == b"longer than before"
    node, handle = await mount.open(b"a/f0", os.O_RDWR)
    await mount.vfs.write(mount.caller(), node, handle, 0, b"LONGER")
    assert await content(mount, b"a/f0") == b"LONGER than before"


async def test_data_are_taken_up_again_when_the_file_is_what_it_was(mount: Mount) -> None:
    assert await content(mount, b"a/f0") == b"a 0"
    mount.engine.on_state("reconnecting")
    mount.engine.on_state("connected")
    asked(mount)
    node = await mount.node(b"a/f0")
    await mount.vfs.getattr(mount.caller(), node)
    handle = (await mount.vfs.open(mount.caller(), node, os.O_RDONLY)).handle
    assert bytes(await mount.vfs.read(mount.caller(), node, handle, 0, 10)) == b"a 0"
    assert "Read" not in asked(mount)


async def opened_here(mount: Mount, path: bytes) -> tuple[int, int]:
    """A file that is open without the server's knowing."""
    await content(mount, path)
    await quiet(mount)
    asked(mount)
    node, handle = await mount.open(path)
    assert mount.vfs.files[handle].local
    await quiet(mount)
    asked(mount)
    return node, handle


async def test_the_server_is_told_when_it_has_to_know(mount: Mount) -> None:
    node, handle = await opened_here(mount, b"a/f0")
    lock = m.Lock(1, 0, LAST, "r", 1)
    await mount.vfs.setlk(mount.caller(), node, handle, lock, False)
    assert asked(mount) == ["Open", "SetLock"]
    assert not mount.vfs.files[handle].local
    await mount.vfs.fsync(mount.caller(), node, handle, False)
    mount.vfs.release(node, handle)
    assert [type(request) for request in mount.engine.posted][-1:] == [m.Close]
    node, handle = await opened_here(mount, b"a/f1")
    assert (await mount.vfs.getattr(mount.caller(), node, handle))[0].size == 3
    await mount.vfs.setattr(mount.caller(), node, handle=handle, mode=0o600)
    assert await mount.vfs.lseek(mount.caller(), node, handle, 0, os.SEEK_DATA) == 0
    assert asked(mount) == ["SetAttr", "Open", "Seek"]


async def test_who_closes_before_the_server_was_told_leaves_nothing_open(mount: Mount) -> None:
    node, handle = await opened_here(mount, b"a/f0")
    telling = mount.vfs.tell(mount.vfs.files[handle])
    assert mount.vfs.live_handles() == [handle]
    mount.vfs.release(node, handle)
    await telling
    assert len(mount.engine.context.handles) == 0


async def test_a_file_that_is_removed_while_it_is_open_here(mount: Mount, root: Path) -> None:
    node, handle = await opened_here(mount, b"a/f0")
    (root / "a/f0").unlink()
    changed(mount, "a", b"f0")
    assert bytes(await mount.vfs.read(mount.caller(), node, handle, 2, 10)) == b"0"
    attr, ttl = await mount.vfs.getattr(mount.caller(), node, handle)
    assert (attr.nlink, attr.size, ttl) == (0, 3, 0.0)
    with fails(errno.ESTALE):
        await mount.vfs.fsync(mount.caller(), node, handle, False)


async def test_a_file_that_was_moved_while_it_is_open_here(mount: Mount, root: Path) -> None:
    node, handle = await opened_here(mount, b"a/f0")
    (root / "a/f0").rename(root / "moved")
    (root / "moved").write_bytes(b"other")
    changed(mount, "a", b"f0")
    changed(mount, "", b"moved")
    await mount.node(b"moved")
    assert bytes(await mount.vfs.read(mount.caller(), node, handle, 0, 10)) == b"other"


async def test_a_successor_knows_which_files_are_open_here_only(mount: Mount) -> None:
    node, handle = await opened_here(mount, b"a/f0")
    told = await opened_here(mount, b"a/f1")
    await mount.vfs.fsync(mount.caller(), *told, False)
    vfs = await mount.restarted()
    assert state(vfs) == state(mount.vfs)
    assert vfs.files[handle].local
    assert not vfs.files[told[1]].local
    mount.engine.repeats()
    assert bytes(await vfs.read(mount.caller(), node, handle, 0, 10)) == b"a 0"
    # One that its predecessor had told of, and had no time to note.
    other = await mount.restarted()
    assert bytes(await other.read(mount.caller(), node, handle, 0, 10)) == b"a 0"
    mount.vfs = other


async def test_after_the_server_was_replaced_it_need_not_know(mount: Mount) -> None:
    node, handle = await opened_here(mount, b"a/f0")
    mount.engine.restart()
    await mount.engine.on_welcome(mount.engine.welcome, "recovered")
    assert "Reopen" not in asked(mount)
    assert bytes(await mount.vfs.read(mount.caller(), node, handle, 0, 10)) == b"a 0"


# --- large files


async def read_through(mount: Mount, step: int) -> bytes:
    node, handle = await mount.open(b"big")
    parts, offset = [], 0
    while part := await mount.vfs.read(mount.caller(), node, handle, offset, step):
        parts.append(bytes(part))
        offset += len(part)
    mount.vfs.release(node, handle)
    return b"".join(parts)


@pytest.mark.parametrize("step", [4096 * 3, 128 << 10, MIB])
async def test_who_reads_in_sequence_is_served_from_whole_blocks(mount: Mount, step: int) -> None:
    assert await read_through(mount, step) == DISK
    reads = [request for request in mount.engine.requests if isinstance(request, m.Read)]
    assert sum(request.size == MIB for request in reads) >= 3
    assert sum(request.size for request in reads) < 1.3 * len(DISK)
    mount.engine.requests.clear()
    assert await read_through(mount, step) == DISK
    assert "Open" not in asked(mount)


async def test_random_reads_are_exact(mount: Mount) -> None:
    node, handle = await mount.open(b"big")
    await quiet(mount)
    asked(mount)
    for offset in (3_000_000, 1_000_000, 2_500_000, 100_000):
        data = await mount.vfs.read(mount.caller(), node, handle, offset, 4096)
        assert bytes(data) == DISK[offset : offset + 4096]
    await quiet(mount)
    assert asked(mount) == ["Read"] * 4


async def test_reads_with_a_stride_are_foreseen(mount: Mount) -> None:
    node, handle = await mount.open(b"big")
    asked(mount)
    for offset in range(0, len(DISK), 100_000):
        data = await mount.vfs.read(mount.caller(), node, handle, offset, 8192)
        assert bytes(data) == DISK[offset : offset + 8192]
    await quiet(mount)
    assert mount.vfs.fetcher.ahead.used > 20


async def test_blocks_on_their_way_serve_those_who_ask_meanwhile(mount: Mount) -> None:
    node, handle = await mount.open(b"big")
    parts = await asyncio.gather(
        *(
            mount.vfs.read(mount.caller(), node, handle, offset, 128 << 10)
            for offset in range(0, MIB, 128 << 10)
        )
    )
    assert b"".join(map(bytes, parts)) == DISK[:MIB]


async def test_a_block_that_changed_on_its_way_is_asked_for_again(mount: Mount, root: Path) -> None:
    node, handle = await mount.open(b"big")
    once = [True]

    async def change(request: m.Request, reply: m.Reply) -> None:
        if isinstance(request, m.Read) and request.size == MIB and once.pop():
            once.append(False)
            with (root / "big").open("r+b") as file:
                file.write(b"other")
            changed(mount, "big")

    mount.engine.after = change
    data = await mount.vfs.read(mount.caller(), node, handle, 0, 128 << 10)
    assert bytes(data[:5]) == b"other"


async def test_the_server_is_told_of_the_file_before_its_blocks_are_asked_for(mount: Mount) -> None:
    await read_through(mount, MIB)
    node, handle = await mount.open(b"big")
    assert mount.vfs.files[handle].local
    mount.vfs.pages.drop(mount.vfs.tree.get(node).identity)
    asked(mount)
    assert bytes(await mount.vfs.read(mount.caller(), node, handle, 0, MIB)) == DISK[:MIB]
    found = asked(mount)
    assert found[0] == "Open"
    assert "Read" in found


class Shelf:
    """A store in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Any, ...], bytes] = {}

    async def get(self, identity: m.Identity, version: tuple[int, int, int], index: int) -> bytes | None:
        return self.kept.get((identity, version, index))

    def put(self, identity: m.Identity, version: tuple[int, int, int], index: int, data: bytes) -> None:
        self.kept[identity, version, index] = data


async def test_what_is_in_the_store_is_not_asked_for(mount: Mount, root: Path) -> None:
    shelf = Shelf()
    mount.vfs.keep_in(shelf)
    assert await read_through(mount, MIB) == DISK
    await content(mount, b"a/f0")
    assert len(shelf.kept) == 5
    mount.vfs.pages.unsure_all()
    for identity in list(mount.vfs.pages._files):
        mount.vfs.pages.drop(identity)
    asked(mount)
    assert await read_through(mount, MIB) == DISK
    assert await content(mount, b"a/f0") == b"a 0"
    assert "Read" not in asked(mount)


async def test_what_the_store_has_of_another_state_is_not_taken(mount: Mount, root: Path) -> None:
    shelf = Shelf()
    mount.vfs.keep_in(shelf)
    await content(mount, b"a/f0")
    (root / "a/f0").write_bytes(b"other")
    changed(mount, "a/f0")
    assert await content(mount, b"a/f0") == b"other"
    for key in shelf.kept:
        shelf.kept[key] = b"torn"
    mount.vfs.pages.drop(mount.vfs.tree.get(await mount.node(b"a/f0")).identity)
    assert await content(mount, b"a/f0") == b"other"
    mount.clock.wall_ns = 0  # it may yet change unnoticed
    mount.vfs.pages.drop(mount.vfs.tree.get(await mount.node(b"a/f0")).identity)
    assert await content(mount, b"a/f0") == b"other"


async def test_what_is_switched_off_is_not_done(mounted: Any, root: Path) -> None:
    (root / "a").mkdir()
    for number in range(6):
        (root / f"a/f{number}").write_bytes(b"%d" % number)
    (root / "big").write_bytes(DISK)
    mount = await mounted(leases=True, prefetch=frozenset())
    for number in range(6):
        await content(mount, b"a/f%d" % number)
    assert await read_through(mount, 128 << 10) == DISK
    found = asked(mount)
    assert "ListTree" not in found
    assert "Fetch" not in found
    assert all(
        tally["issued"] == 0 for name, tally in mount.vfs.fetcher.snapshot().items() if name != "window"
    )
    handle = (await mount.vfs.opendir(mount.caller(), 1)).handle
    assert b"a" in await listing(mount, 1, handle)

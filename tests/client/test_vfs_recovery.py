"""News from the server, a server that was replaced, and a client process that was."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from jupyter_wsfuse.errors import TransportError, os_error
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.ranges import LAST
from tests.helpers.local_engine import Log, Mount, Notes, state

LOCK = m.Lock(7, 0, LAST, "w", 99)


def raises(number: int, text: str | None = None):
    return pytest.raises(OSError, match=text, check=lambda error: error.errno == number)


async def recover(mount: Mount, kind: str) -> None:
    await mount.engine.on_welcome(mount.engine.welcome, kind)


# --- news


async def test_news_of_a_file_drops_its_attributes_and_pages(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"1")
    node = await mount.node(b"f")
    (root / "f").write_bytes(b"22")
    mount.engine.on_notification(m.Changed([m.Change(mount.vfs.tree.get(node).identity)]))
    assert mount.notes.seen == [(node, True)]
    assert (await mount.vfs.getattr(mount.caller(), node))[0].size == 2


async def test_news_of_a_name_drops_the_entry_and_the_directorys_attributes(mount: Mount, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/f").touch()
    f = await mount.node(b"d/f")
    d = await mount.node(b"d")
    os.unlink(root / "d/f")
    mount.engine.on_notification(m.Changed([m.Change(mount.vfs.tree.get(d).identity, b"f")]))
    assert mount.notes.seen == [(f, True), (d, b"f"), (d, True)]
    with raises(errno.ENOENT):
        await mount.vfs.lookup(mount.caller(), d, b"f")


async def test_news_of_the_root(mount: Mount, root: Path) -> None:
    mount.engine.on_notification(m.Changed([m.Change(mount.engine.welcome.root.identity, b"f")]))
    assert mount.notes.seen == [(1, b"f"), (1, True)]


async def test_news_of_what_only_a_listing_knows(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"1")
    handle = (await mount.vfs.opendir(mount.caller(), 1)).handle
    items = await mount.vfs.readdir(mount.caller(), 1, handle, 0, 1, True)
    identity = mount.engine.execute(m.Lookup(0, m.Ref(b""), b"f"), b"")[0].attr.identity
    mount.engine.on_notification(m.Changed([m.Change(identity)]))
    rest = await mount.vfs.readdir(mount.caller(), 1, handle, items[-1].cookie, 10, True)
    assert all(item.entry is None for item in rest)


async def test_lost_news_mean_that_nothing_is_known(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"1")
    node = await mount.node(b"f")
    (root / "f").write_bytes(b"22")
    mount.engine.on_notification(m.InvalidateAll("too many"))
    assert set(mount.notes.seen) == {(1, True), (1, b"f"), (node, True)}
    assert (await mount.vfs.lookup(mount.caller(), 1, b"f")).attr.size == 2
    mount.engine.on_notification(m.Pong(1))  # nothing that concerns us


async def test_after_stop_news_find_nobody(mount: Mount, root: Path) -> None:
    await mount.vfs.stop()
    mount.engine.on_notification(m.InvalidateAll("late"))
    assert mount.notes.seen == []
    await mount.vfs.invalidator.settled()
    mount.vfs.invalidator.inval_entry(1, b"f")


# --- another server


async def test_a_resumed_session_has_lost_nothing(mount: Mount, root: Path) -> None:
    (root / "f").write_bytes(b"abc")
    node, handle = await mount.open(b"f")
    asked = len(mount.engine.requests)
    await recover(mount, "resumed")
    assert len(mount.engine.requests) == asked
    assert mount.engine.live_handles() == [handle]
    assert await mount.vfs.read(mount.caller(), node, handle, 0, 3) == b"abc"


async def test_a_recovered_session_has_its_files_and_locks_again(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "d").mkdir()
    (root / "d/f").write_bytes(b"abc")
    node, handle = await mount.open(b"d/f", os.O_RDWR | os.O_TRUNC)
    await vfs.write(caller(), node, handle, 0, b"kept")
    await vfs.setlk(caller(), node, handle, LOCK, False)
    listing = (await vfs.opendir(caller(), await mount.node(b"d"))).handle
    top = (await vfs.opendir(caller(), 1)).handle
    mount.engine.restart()
    await recover(mount, "recovered")
    assert await vfs.read(caller(), node, handle, 0, 10) == b"kept"
    await vfs.write(caller(), node, handle, 0, b"K")
    assert [held.owner for _, held in mount.engine.locks] == [7]
    for directory in (listing, top):
        assert len(await vfs.readdir(caller(), 1, directory, 0, 10, True)) == 3
    await vfs.flush(caller(), node, handle, 7)
    assert mount.engine.locks == []
    assert (node, True) in mount.notes.seen


async def test_files_that_are_gone_say_so(mount: Mount, root: Path, caplog) -> None:
    vfs, caller = mount.vfs, mount.caller
    for name in ("unlinked", "replaced", "forbidden", "odd", "closed"):
        (root / name).touch()
    unlinked, replaced, forbidden, odd, closed = [
        await mount.open(name, os.O_RDWR)
        for name in (b"unlinked", b"replaced", b"forbidden", b"odd", b"closed")
    ]
    await vfs.unlink(caller(), 1, b"unlinked")
    os.unlink(root / "replaced")
    mount.engine.restart()

    async def refuse(request: m.Request) -> None:
        if isinstance(request, m.Reopen) and request.ref.path == b"forbidden":
            raise os_error(errno.EACCES, "not now")
        if isinstance(request, m.Reopen):
            vfs.release(*closed)

    async def oddly(request: m.Request, reply: m.Reply) -> m.Reply | None:
        return m.Done(0) if isinstance(request, m.Reopen) and request.ref.path == b"odd" else None

    mount.engine.before, mount.engine.after = refuse, oddly
    await recover(mount, "recovered")
    mount.engine.before = mount.engine.after = None
    for (node, handle), number, text in (
        (unlinked, errno.EIO, "deleted while open"),
        (replaced, errno.ESTALE, "not there any more"),
        (forbidden, errno.EIO, "not now"),
        (odd, errno.EIO, "answered with"),
        (closed, errno.EBADF, "not open"),
    ):
        with raises(number, text):
            await vfs.read(caller(), node, handle, 0, 1)
    for node, handle in (unlinked, replaced, forbidden, odd):
        with raises(errno.ESTALE if handle == replaced[1] else errno.EIO):
            await vfs.flush(caller(), node, handle, 7)
        vfs.release(node, handle)
    assert mount.engine.live_handles() == []
    assert {type(request) for request in mount.engine.posted} == {m.Close}
    assert {request.handle for request in mount.engine.posted} == {closed[1]}
    assert caplog.text.count("is lost") == 4
    with raises(errno.ESTALE):
        await vfs.getattr(caller(), unlinked[0])


async def test_a_lost_session_fences_files_that_were_locked(mount: Mount, root: Path) -> None:
    vfs, caller = mount.vfs, mount.caller
    (root / "a").write_bytes(b"a")
    (root / "b").write_bytes(b"b")
    locked, free = await mount.open(b"a", os.O_RDWR), await mount.open(b"b", os.O_RDWR)
    await vfs.setlk(caller(), *locked, LOCK, False)
    mount.engine.restart()
    await recover(mount, "lost")
    assert await vfs.read(caller(), *free, 0, 1) == b"b"
    for attempt in (
        vfs.read(caller(), *locked, 0, 1), vfs.write(caller(), *locked, 0, b"x"), vfs.fsync(caller(), *locked, True),
        vfs.setlk(caller(), *locked, LOCK, False), vfs.getattr(caller(), *locked),
        vfs.setattr(caller(), locked[0], handle=locked[1], size=0),
    ):  # fmt: skip
        with raises(errno.EIO, "locks on the file were lost"):
            await attempt
    assert mount.engine.live_handles() == [free[1]]
    assert (root / "a").read_bytes() == b"a"
    await recover(mount, "recovered")  # what has failed has failed
    with raises(errno.EIO, "locks on the file were lost"):
        await vfs.read(caller(), *locked, 0, 1)
    assert (await mount.open(b"a", os.O_RDWR))[1] != locked[1]
    os.unlink(root / "a")
    mount.clock.seconds += 9
    assert (await vfs.getattr(caller(), locked[0]))[0].nlink == 0  # by the handle that is alive


async def test_locks_that_others_got_first_fence_as_well(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    node, handle = await mount.open(b"f", os.O_RDWR)
    await mount.vfs.setlk(mount.caller(), node, handle, LOCK, False)
    mount.engine.restart()

    async def taken(request: m.Request) -> None:
        if isinstance(request, m.Reopen):
            raise os_error(errno.ENOLCK)

    mount.engine.before = taken
    await recover(mount, "recovered")
    with raises(errno.EIO, "locks on the file were lost"):
        await mount.vfs.write(mount.caller(), node, handle, 0, b"x")


async def test_pins_do_not_survive_the_engine(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    node = await mount.node(b"f")
    await mount.vfs.unlink(mount.caller(), 1, b"f")
    mount.engine.restart()
    await recover(mount, "recovered")
    with raises(errno.ESTALE):
        await mount.vfs.getattr(mount.caller(), node)
    mount.vfs.forget(node, 1)
    assert mount.engine.posted == []


async def test_a_recovery_that_is_cut_off_goes_on_with_the_next_connection(mount: Mount, root: Path) -> None:
    (root / "a").write_bytes(b"a")
    (root / "b").write_bytes(b"b")
    a, b = await mount.open(b"a"), await mount.open(b"b")
    mount.engine.restart()
    cut = asyncio.Event()

    async def hang(request: m.Request) -> None:
        if isinstance(request, m.Reopen) and request.ref.path == b"b":
            cut.set()
            await asyncio.Event().wait()

    mount.engine.before = hang
    recovery = asyncio.create_task(recover(mount, "recovered"))
    await cut.wait()
    recovery.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recovery
    mount.engine.before = None
    await recover(mount, "resumed")
    reopened = [request.ref.path for request in mount.engine.requests if isinstance(request, m.Reopen)]
    assert reopened == [b"a", b"b", b"b"]
    assert await mount.vfs.read(mount.caller(), *a, 0, 1) == b"a"
    assert await mount.vfs.read(mount.caller(), *b, 0, 1) == b"b"


async def test_other_failures_of_a_recovery_are_the_connections(mount: Mount, root: Path) -> None:
    (root / "f").touch()
    await mount.open(b"f")

    async def broken(request: m.Request) -> None:
        raise TransportError("gone again")

    mount.engine.before = broken
    with pytest.raises(TransportError):
        await recover(mount, "recovered")


async def test_a_strange_answer_about_the_subdirectory(mounted, root: Path, monkeypatch) -> None:
    (root / "sub").mkdir()
    mount = await mounted(subdir=b"sub")

    async def oddly(request: m.Request, reply: m.Reply) -> m.Reply:
        return m.Done(0)

    mount.engine.after = oddly
    with raises(errno.EIO):
        await recover(mount, "new")


async def test_the_servers_word_on_writing_counts(mount: Mount) -> None:
    welcome = mount.engine.welcome
    welcome.read_only = True
    await mount.engine.on_welcome(welcome, "resumed")
    with raises(errno.EROFS):
        await mount.vfs.mkdir(mount.caller(), 1, b"d", 0o755)


# --- another process


async def history(mount: Mount, root: Path) -> dict[str, tuple[int, int]]:
    """Something of everything that is recorded."""
    vfs, caller = mount.vfs, mount.caller
    (root / "d").mkdir()
    (root / "d/f").write_bytes(b"abc")
    (root / "pinned").touch()
    opened = {"file": await mount.open(b"d/f", os.O_RDWR)}
    opened["closed"] = await mount.open(b"d/f", os.O_RDWR)
    vfs.release(*opened["closed"])
    entry, made = await vfs.create(caller(), 1, b"made", 0o600, os.O_RDWR)
    opened["unlinked"] = entry.node, made.handle
    await vfs.unlink(caller(), 1, b"made")
    await mount.node(b"pinned")
    await vfs.unlink(caller(), 1, b"pinned")
    d = await mount.node(b"d")
    opened["directory"] = d, (await vfs.opendir(caller(), d)).handle
    await vfs.rename(caller(), 1, b"d", 1, b"e")
    await vfs.link(caller(), opened["file"][0], 1, b"hard")
    await vfs.setlk(caller(), *opened["file"], m.Lock(7, 0, 99, "w", 1), False)
    await vfs.setlk(caller(), *opened["file"], m.Lock(7, 10, 19, "u", 1), False)
    return opened


async def test_a_new_process_is_what_the_old_one_was(mount: Mount, root: Path) -> None:
    opened = await history(mount, root)
    posted = len(mount.engine.posted)
    heir = await mount.restarted()
    assert state(heir) == state(mount.vfs)
    assert len(mount.engine.posted) == posted
    compact = Log()
    for record in heir.snapshot():
        compact.record(*record)
    mount.log = compact
    again = await mount.restarted()
    assert state(again) == state(heir)
    assert sorted(again.live_handles()) == sorted(mount.vfs.live_handles())
    caller = mount.caller
    assert await again.read(caller(), *opened["file"], 0, 9) == b"abc"
    assert await again.read(caller(), *opened["unlinked"], 0, 9) == b""
    assert len(await again.readdir(caller(), *opened["directory"], 0, 9, True)) == 3
    assert [(lock.start, lock.end) for lock in mount_locks(again, opened["file"])] == [(0, 9), (20, 99)]
    await again.flush(caller(), *opened["file"], 7)
    fresh = (await again.mkdir(caller(), 1, b"new", 0o755)).node
    assert fresh not in mount.vfs.tree.nodes
    again.forget(opened["unlinked"][0], 1)
    again.release(*opened["unlinked"])
    assert opened["unlinked"][0] not in again.tree.nodes


def mount_locks(vfs, opened) -> list[m.Lock]:
    from jupyter_wsfuse.client.handles import locks_of

    return list(locks_of(vfs.tree.get(opened[0]).locks, opened[1]))


async def test_what_has_failed_stays_failed_in_a_new_process(mount: Mount, root: Path) -> None:
    opened = await history(mount, root)
    mount.engine.restart()
    await recover(mount, "lost")
    heir = await mount.restarted()
    assert state(heir) == state(mount.vfs)
    with raises(errno.EIO, "deleted while open"):
        await heir.read(mount.caller(), *opened["unlinked"], 0, 1)
    with raises(errno.EIO, "locks on the file were lost"):
        await heir.read(mount.caller(), *opened["file"], 0, 1)
    assert not any(record[0] == "pin" for record in heir.snapshot())


async def test_records_about_what_is_not_known_are_passed_over(mount: Mount) -> None:
    await mount.vfs.opendir(mount.caller(), 1)
    before = state(mount.vfs)
    mount.vfs.restore(
        [
            ("future", *mount.vfs.files),
            ("open", 5, 99, 0, False),
            ("pin", 99, 5),
            ("close", 5),
            ("lock", 5, 1, 0, 1, "w", 1, False),
            ("future",),
        ]
    )
    assert state(mount.vfs) == before


async def test_a_restored_file_system_can_be_recovered(mount: Mount, root: Path) -> None:
    opened = await history(mount, root)
    heir = await mount.restarted()
    heir.invalidator = Notes()
    mount.engine.restart()
    await recover(mount, "recovered")
    assert await heir.read(mount.caller(), *opened["file"], 0, 9) == b"abc"
    with raises(errno.EIO, "deleted while open"):
        await heir.read(mount.caller(), *opened["unlinked"], 0, 9)

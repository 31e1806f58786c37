"""Leases and what is told of changes, by a real engine process over real sockets."""

from __future__ import annotations

import errno
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Change, Identity, Ref
from tests.engine.conftest import Join, Start
from tests.helpers.engineproc import EngineProcess
from tests.helpers.rawclient import RawClient, disconnect_all
from tests.helpers.waiting import eventually_async
from tests.helpers.workspace import fails


@pytest.fixture(autouse=True)
async def no_connection_is_left() -> AsyncIterator[None]:
    yield
    await disconnect_all()


class Mount:
    """A client with leases on the directories of a workspace."""

    def __init__(self, client: RawClient, path: Path) -> None:
        self.client = client
        self.path = path
        self.root = Ref(b"", client.welcome.root.identity)
        self.seen = 0

    async def list_all(self) -> list[m.TreeDirectory]:
        reply = await self.client.call(m.ListTree, [self.root], 8192, 64)
        assert all(directory.lease for directory in reply.directories)
        found: list[m.TreeDirectory] = reply.directories
        return found

    async def ref(self, name: bytes) -> Ref:
        return Ref(name, (await self.client.call(m.GetAttr, Ref(name))).attr.identity)

    def told(self) -> list[Any]:
        """All messages that were not looked at yet."""
        found = self.client.notified[self.seen :]
        self.seen += len(found)
        return found

    async def until(self, found: Callable[[Any], object]) -> list[Any]:
        """All messages up to one of that kind."""
        messages: list[Any] = []

        def look() -> bool:
            messages.extend(self.told())
            return any(found(message) for message in messages)

        await eventually_async(look)
        return messages

    async def changes(self) -> list[Change]:
        """All that is told before something that happens now."""
        name = b"marker" + secrets.token_hex(8).encode()
        (self.path / os.fsdecode(name)).mkdir()
        messages = await self.until(lambda message: name in names_of(message))
        found = [change for x in messages if isinstance(x, m.Changed) for change in x.changes]
        return [change for change in found if not (change.name or b"").startswith(b"marker")]


def names_of(message: Any) -> list[bytes | None]:
    return [change.name for change in message.changes] if isinstance(message, m.Changed) else []


def identity_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def is_told(found: list[Change], path: Path, name: bytes | None = None) -> bool:
    return any((c.identity.dev, c.identity.ino, c.name) == (*identity_of(path), name) for c in found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "dir/deep").mkdir(parents=True)
    (root / "dir/file").write_bytes(b"content")
    (root / "hard").write_bytes(b"two names")
    os.link(root / "hard", root / "dir/hard")
    return root


async def mount(engine: EngineProcess, join: Join, **hello: Any) -> Mount:
    client = await join(engine, features=[m.LEASES], **hello)
    assert client.welcome.features == [m.LEASES]
    mounted = Mount(client, engine.root)
    await mounted.list_all()
    return mounted


def open_files(engine: EngineProcess) -> int:
    return len(os.listdir(f"/proc/{engine.process.pid}/fd"))


def watches(engine: EngineProcess) -> int:
    """As the kernel counts them."""
    found = 0
    for fd in os.listdir(f"/proc/{engine.process.pid}/fd"):
        try:
            if os.readlink(f"/proc/{engine.process.pid}/fd/{fd}") == "anon_inode:inotify":
                info = Path(f"/proc/{engine.process.pid}/fdinfo/{fd}").read_text()
                found += sum(line.startswith("inotify wd:") for line in info.splitlines())
        except FileNotFoundError:  # closed just now
            pass
    return found


async def test_what_others_do_behind_is_told(root: Path, start: Start, join: Join) -> None:
    mounted = await mount(start(), join)
    file = root / "dir/file"
    file.write_bytes(b"other")
    assert is_told(await mounted.changes(), file)
    file.chmod(0o600)
    assert is_told(await mounted.changes(), file)
    (root / "dir/new").write_bytes(b"x")
    assert is_told(await mounted.changes(), root / "dir", b"new")
    (root / "dir/new").rename(file)
    found = await mounted.changes()
    assert is_told(found, root / "dir", b"new")
    assert is_told(found, root / "dir", b"file")
    file.unlink()
    assert is_told(await mounted.changes(), root / "dir", b"file")
    (root / "dir/deep").chmod(0o700)
    assert is_told(await mounted.changes(), root / "dir/deep")
    with (root / "hard").open("ab") as stream:
        stream.write(b"!")
    assert is_told(await mounted.changes(), root / "dir/hard")
    os.setxattr(root / "dir/hard", "user.x", b"1")
    assert is_told(await mounted.changes(), root / "hard")


async def test_ones_own_operations_are_not(root: Path, start: Start, join: Join) -> None:
    engine = start()
    mounted, other = await mount(engine, join), await mount(engine, join)
    call = mounted.client.call
    folder = await mounted.ref(b"dir")
    made = await call(m.Create, folder, b"new", 0o644, os.O_RDWR)
    await call(m.Write, made.handle, 0, payload=b"data")
    await call(m.SetAttr, Ref(b"", None, made.handle), mode=0o600)
    await call(m.Close, made.handle)
    await call(m.Rename, folder, b"new", mounted.root, b"renamed")
    await call(m.MkDir, mounted.root, b"made", 0o755)
    await call(m.Unlink, mounted.root, b"renamed")
    await call(m.RmDir, mounted.root, b"made")
    assert await mounted.changes() == []
    found = await other.changes()
    assert is_told(found, root / "dir", b"new")
    assert is_told(found, root, b"renamed")
    assert any(change.identity == made.attr.identity for change in found)
    figures = engine.status()["watcher"]
    assert figures["echoes"] > 5
    assert figures["leases"] == 2 * (3 + 1)
    assert (figures["watches"], figures["overflows"], figures["unable"]) == (watches(engine), 0, "")


async def test_a_change_right_behind_ones_own(root: Path, start: Start, join: Join) -> None:
    mounted = await mount(start(), join)
    handle = (await mounted.client.call(m.Open, await mounted.ref(b"dir/file"), os.O_RDWR)).handle
    for _ in range(20):
        await mounted.client.call(m.Write, handle, 0, payload=b"mine")
        with (root / "dir/file").open("r+b", buffering=0) as stream:
            stream.write(b"them")
        assert is_told(await mounted.changes(), root / "dir/file")


async def test_news_come_before_what_was_asked_behind_them(root: Path, start: Start, join: Join) -> None:
    """What is read after a change is never followed by the news of an earlier one: no answer is dropped for nothing."""
    mounted = await mount(start(), join)
    for number in range(20):
        (root / f"n{number}").mkdir()
        reply = await mounted.client.call(m.Lookup, mounted.root, b"n%d" % number)
        assert reply.lease == m.LEASE_PARENT
        assert b"n%d" % number in [name for message in mounted.told() for name in names_of(message)]


async def test_a_directory_that_is_removed(root: Path, start: Start, join: Join) -> None:
    engine = start()
    mounted = await mount(engine, join)
    identity = (await mounted.ref(b"dir/deep")).identity
    before = watches(engine)
    (root / "dir/deep").rmdir()
    await mounted.until(lambda message: isinstance(message, m.Released) and identity in message.identities)
    assert watches(engine) == before - 1


async def test_more_than_the_kernel_queues(root: Path, start: Start, join: Join) -> None:
    engine = start()
    mounted = await mount(engine, join)
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    os.kill(engine.process.pid, signal.SIGSTOP)
    try:
        for number in range(most // 2 + 100):  # two that alternate: the kernel merges what is alike
            os.chmod(root / "dir/file", 0o600 + number % 2)
            os.chmod(root / "dir/deep", 0o700 + number % 2)
    finally:
        os.kill(engine.process.pid, signal.SIGCONT)
    await mounted.until(lambda message: isinstance(message, m.InvalidateAll))
    assert engine.status()["watcher"]["overflows"] >= 1
    os.chmod(root / "dir/file", 0o644)
    assert is_told(await mounted.changes(), root / "dir/file")  # leases go on


async def test_too_many_leases(root: Path, start: Start, join: Join) -> None:
    engine = start(max_leases=4)
    mounted = await mount(engine, join)
    first = (await mounted.ref(b"")).identity
    (root / "one-more").mkdir()
    await mounted.client.call(m.GetAttr, Ref(b"one-more"))
    await mounted.until(lambda message: isinstance(message, m.Released) and message.identities == [first])
    assert watches(engine) == engine.status()["watcher"]["leases"] == 4


async def test_watches_that_are_refused(root: Path, start: Start, join: Join) -> None:
    engine = start(max_watches=1)
    client = await join(engine, features=[m.LEASES])
    assert (await client.call(m.GetAttr, Ref(b""))).lease == m.LEASE_SELF
    assert (await client.call(m.GetAttr, Ref(b"dir"))).lease == 0
    assert (await client.call(m.GetAttr, Ref(b"dir/deep"))).lease == 0
    assert engine.status()["watcher"]["refused"] == 2
    assert engine.log.count("are not watched") == 1


async def test_nothing_is_left_of_a_session(root: Path, start: Start, join: Join) -> None:
    engine = start()
    assert await (await join(engine)).call(m.GetAttr, Ref(b""))
    files = open_files(engine)
    mounted = await mount(engine, join)
    assert watches(engine) == 4
    assert open_files(engine) > files + 4
    await mounted.client.close()
    await eventually_async(lambda: watches(engine) == 0 and open_files(engine) == files)


@pytest.mark.parametrize("rate", [None, 5])
async def test_an_opening_and_what_comes_behind_it_in_one_message(
    root: Path, start: Start, join: Join, rate: int | None
) -> None:
    tenant = {"root": str(root)} | ({} if rate is None else {"limits": {"metadata": rate}})
    engine = start(tenants={"default": tenant})
    client = await join(engine)
    ref, folder = Ref(b"dir/file"), Ref(b"dir")
    for number in range(1, 8):
        seqs = [client.session.next_seq() for _ in range(5)]
        requests: list[m.Request] = [
            m.Open(seqs[0], ref, os.O_RDONLY, handle=number, inline=3),
            m.Read(seqs[1], number, 3, 100),
            m.OpenDir(seqs[2], folder, 1000 + number),
            m.ReadDir(seqs[3], 1000 + number, 0, 100),
            m.Close(seqs[4], number),
        ]
        answers = [client.submit(request) for request in requests]
        client.flush()
        replies = [await client.answer(seq) for seq in answers]
        assert replies[0][0].handle == number
        assert [payload for _, payload in replies[:2]] == [b"con", b"tent"]
        assert {b"file", b"hard"} <= {entry.name for entry in replies[3][0].entries}
    with fails(errno.EEXIST):
        await client.call(m.OpenDir, folder, 1001)
    with fails(errno.EBADF):
        await client.read(1, 0, 1)


async def test_what_nobody_waits_for_does_not_overtake(root: Path, start: Start, join: Join) -> None:
    """Of what comes in one message, what somebody waits for is answered first."""
    client = await join(start())
    order: list[int] = []
    background, foreground = [], []
    for number in range(40):
        seq = client.session.next_seq()
        later = number % 2 == 0
        (background if later else foreground).append(seq)
        client.submit(m.Fetch(seq, Ref(b"dir/file"), 0, 100, later))
        client.on_answer(seq, order.append)
    client.flush()
    for seq in (*background, *foreground):
        _, payload = await client.answer(seq)
        assert payload == b"content"
    assert order == foreground + background


async def test_the_engine_after_one_that_died(root: Path, start: Start, join: Join) -> None:
    """Its successor knows nothing of leases, and grants new ones."""
    engine = start()
    mounted = await mount(engine, join)
    engine.kill()
    await mounted.client.listener.gone.wait()
    engine.start()
    assert watches(engine) == 0
    welcome = await mounted.client.open(engine.url, engine.ticket(), features=[m.LEASES])
    assert welcome.recovered
    reply = await mounted.client.call(m.GetAttr, Ref(b"dir"))
    assert reply.lease == m.LEASE_SELF
    assert isinstance(reply.attr.identity, Identity)
    (root / "dir/another").touch()
    await mounted.until(lambda message: b"another" in names_of(message))

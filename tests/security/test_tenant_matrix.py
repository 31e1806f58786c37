"""Two tenants on one engine: everything that the one can send is tried with what belongs to the other.

Ann's tenant is ``a``, Bob's is ``b``. Ann has learnt all she could: his handles, his session's id, the numbers of his
requests, the paths and identities of his files, and has planted links to them. Nothing of his may be read, changed,
locked or noticed.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Identity, Lock, Ref
from tests.helpers.arena import Make, by_handle, by_name, by_path, kinds_of
from tests.helpers.engineproc import EngineProcess
from tests.helpers.rawclient import RawClient, Refused, disconnect_all

SECRET = b"bob's, and nobody else's"
LAST = 2**63 - 1


@dataclass
class Two:
    """Both tenants, each with a session, and what Ann knows of Bob's."""

    engine: EngineProcess
    a: Path
    b: Path
    ann: RawClient
    bob: RawClient
    file: int = 0
    directory: int = 0
    pin: int = 0

    def handles(self) -> list[int]:
        return [self.file, self.directory, self.pin]


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that can be seen of a workspace, but access times."""
    seen: dict[str, tuple[Any, ...]] = {}
    for path in (root, *root.rglob("*")):
        s = os.lstat(path)
        data = path.read_bytes() if stat.S_ISREG(s.st_mode) else b""
        seen[str(path)] = (s.st_ino, s.st_mode, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns, data)
    return seen


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    """Not confined: both folders are open to the process in any case."""
    tenants = {}
    for name, user in (("a", "ann"), ("b", "bob")):
        root = tmp_path / name
        (root / "dir").mkdir(parents=True)
        (root / "file").write_bytes(SECRET if name == "b" else b"ann's")
        (root / "dir/inner").write_bytes(SECRET if name == "b" else b"ann's")
        tenants[name] = {"root": str(root), "users": [user]}
    (tmp_path / "b/treasure").write_bytes(SECRET)
    engine = EngineProcess(tmp_path / "a", tmp_path / "state", tenants=tenants, landlock=False)
    yield engine
    assert engine.stop() == 0
    assert "Traceback" not in engine.log, engine.log
    assert " ERROR " not in engine.log, engine.log
    for text in ("treasure", "inner", SECRET.decode()):
        assert text not in engine.log


@pytest.fixture
async def two(engine: EngineProcess, tmp_path: Path) -> AsyncIterator[Two]:
    ann, bob = RawClient(client="ann's"), RawClient(client="bob's")
    await ann.open(engine.url, engine.ticket(tenant="a", principal="ann"), features=[m.LEASES])
    await bob.open(engine.url, engine.ticket(tenant="b", principal="bob"), features=[m.LEASES])
    both = Two(engine, tmp_path / "a", tmp_path / "b", ann, bob)
    both.file = (await bob.call(m.Open, Ref(b"treasure"), os.O_RDWR)).handle
    both.directory = (await bob.call(m.OpenDir, Ref(b"dir"))).handle
    await bob.call(m.MkNod, Ref(b""), b"gone", 0o100644)
    both.pin = (await bob.call(m.Unlink, Ref(b""), b"gone", True)).pin
    yield both
    await disconnect_all()


async def still_bobs(two: Two) -> None:
    """His handles are as open as before."""
    assert await two.bob.read(two.file, 0, 100) == SECRET
    listed = await two.bob.call(m.ReadDir, two.directory, 0, 100)
    assert {entry.name for entry in listed.entries} == {b".", b"..", b"inner"}
    assert (await two.bob.call(m.GetAttr, Ref(b"", None, two.pin))).attr.nlink == 0


async def outcomes(client: RawClient, makes: list[Make]) -> list[tuple[Make, Any, bytes]]:
    """Each request with its reply, or the number of its error."""
    sent = [(make, client.send(make, payload=b"ann's" if make.func is m.Write else b"")) for make in makes]
    found: list[tuple[Make, Any, bytes]] = []
    for make, seq in sent:
        try:
            found.append((make, *await client.answer(seq)))
        except OSError as exc:
            found.append((make, exc.errno, b""))
    return found


def test_every_request_is_in_the_matrix() -> None:
    covered = kinds_of([*by_handle(1), *by_path(b""), *by_name(b"")]) | {m.Close}
    rest = set(m.REQUESTS) - covered
    assert all(not {"ref", "refs", "handle", "parent", "name"} & set(kind.__struct_fields__) for kind in rest)
    assert m.SyncFs in rest


async def test_handles(two: Two) -> None:
    before = tree(two.b)
    for handle in two.handles():
        for make, answer, _ in await outcomes(two.ann, by_handle(handle)):
            assert answer == errno.EBADF, (make, answer)
        await two.ann.call(m.Close, handle)  # closing what one does not have is no error, and closes nothing
        for path in (b"treasure", b"dir", b""):
            reopen = Make(
                m.Reopen, ref=Ref(path), handle=handle, flags=os.O_RDWR, directory=path != b"treasure"
            )
            for make, answer, _ in await outcomes(two.ann, [reopen]):
                if not isinstance(
                    answer, int
                ):  # a number means nothing beyond the session: it is her own folder
                    assert (answer.attr.ino,) != (os.stat(two.b / os.fsdecode(path)).st_ino,), make
                    await two.ann.call(m.Close, handle)
        await still_bobs(two)
    assert tree(two.b) == before


async def test_a_handle_of_his_as_the_other_end_of_a_request(two: Two) -> None:
    own = (await two.ann.call(m.Create, Ref(b""), b"own", 0o644, os.O_RDWR)).handle
    of_bob = Ref(b"", None, two.directory)
    makes = [
        Make(m.CopyRange, source=two.file, source_offset=0, target=own, target_offset=0, length=100),
        Make(m.CopyRange, source=own, source_offset=0, target=two.file, target_offset=0, length=100),
        Make(m.Link, ref=Ref(b"", None, two.file), parent=Ref(b""), name=b"stolen"),
        Make(m.Link, ref=Ref(b"", None, two.pin), parent=Ref(b""), name=b"stolen"),
        Make(m.Link, ref=Ref(b"", None, own), parent=of_bob, name=b"planted"),
        Make(m.Rename, parent=of_bob, name=b"inner", new_parent=Ref(b""), new_name=b"stolen"),
        Make(m.Rename, parent=Ref(b""), name=b"own", new_parent=of_bob, new_name=b"planted"),
        Make(m.Rename, parent=Ref(b""), name=b"own", new_parent=of_bob, new_name=b"inner", flags=2),
    ]
    before = tree(two.b)
    for make, answer, _ in await outcomes(two.ann, makes):
        assert answer == errno.EBADF, (make, answer)
    assert tree(two.b) == before
    assert (two.a / "own").read_bytes() == b""
    await still_bobs(two)


@pytest.mark.parametrize("links", ["keep", "follow"])
async def test_paths_identities_and_planted_links(two: Two, links: str) -> None:
    ann = RawClient(client="again")
    await ann.open(two.engine.url, two.engine.ticket(tenant="a", principal="ann"), links=links)
    for name, target in (("absolute", two.b), ("relative", "../b"), ("to-file", two.b / "treasure")):
        os.symlink(target, two.a / name)
    before = tree(two.b)
    inodes = {seen[0] for seen in before.values()}
    own = b"/proc/%d/fd/%d" % (os.getpid(), os.open(two.b, os.O_PATH))
    os.symlink(own, bytes(two.a) + b"/magic")
    of_bob = os.stat(two.b / "treasure")
    for path in (
        b"absolute/treasure", b"relative/treasure", b"to-file", b"magic/treasure", b"../b/treasure",
        bytes(two.b) + b"/treasure", b"treasure", b"absolute", b"relative/dir",
    ):  # fmt: skip
        for known in (None, Identity(of_bob.st_dev, of_bob.st_ino, 0), (await root_of(two)).identity):
            for make, answer, payload in await outcomes(ann, by_path(path, known)):
                assert SECRET not in payload
                if not isinstance(answer, int):
                    attr = getattr(answer, "attr", None)
                    assert attr is None or attr.ino not in inodes, make
                if isinstance(answer, m.OpenReply):
                    assert SECRET not in await ann.read(answer.handle, 0, 100)
                    await ann.call(m.Close, answer.handle)
    for name in (b"../b/treasure", b"absolute/treasure", b"relative"):
        for make, answer, _ in await outcomes(ann, by_name(name)):
            assert isinstance(answer, int) or b"/" not in name or make.func is m.SetXattr, (make, answer)
    os.close(int(own.rpartition(b"/")[2]))
    assert tree(two.b) == before
    await still_bobs(two)


async def root_of(two: Two) -> m.Attr:
    attr: m.Attr = (await two.bob.call(m.GetAttr, Ref(b""))).attr
    return attr


async def test_his_session(two: Two) -> None:
    """Its id is not enough, under whatever name, and asking for it changes nothing."""
    for ticket in (
        two.engine.ticket(tenant="a", principal="ann"),
        two.engine.ticket(tenant="", principal="ann"),
    ):
        thief = RawClient(session=two.bob.welcome.session, epoch=two.engine.epoch)
        with pytest.raises(Refused) as caught:
            await thief.open(two.engine.url, ticket, handles=[])
        assert caught.value.args == ("session-foreign",)
    await still_bobs(two)
    assert two.bob.welcome.session not in two.engine.log


async def test_his_tenant(two: Two) -> None:
    """A ticket for it is not issued to her; were it, the engine would not admit her."""
    with pytest.raises(Refused) as caught:
        await RawClient().open(two.engine.url, two.engine.ticket(tenant="b", principal="ann"))
    assert caught.value.args == ("workspace",)
    unnamed = RawClient()
    welcome = await unnamed.open(two.engine.url, two.engine.ticket(tenant="", principal="ann"))
    assert welcome.tenant == "a"


async def test_numbers_of_his_requests(two: Two) -> None:
    """The same number is another request in another session: never answered from his memory, nor forgotten there."""
    made, _ = await two.bob.answer(
        two.bob.send(m.Create, Ref(b""), b"new", 0o644, os.O_RDWR, seq=77), done=False
    )
    own, _ = await two.ann.answer(
        two.ann.send(m.Create, Ref(b""), b"new", 0o600, os.O_RDWR, seq=77)
    )  # and Ack
    assert own.handle != made.handle
    assert own.attr.ino == (two.a / "new").stat().st_ino
    await two.ann.call(m.GetAttr, Ref(b""))
    again = RawClient(session=two.bob.welcome.session, epoch=two.engine.epoch)
    await again.open(two.engine.url, two.engine.ticket(tenant="b", principal="bob"))
    repeated, _ = await again.answer(again.send(m.Create, Ref(b""), b"new", 0o644, os.O_RDWR, seq=77))
    assert repeated.handle == made.handle  # remembered: it was not executed again


async def test_cancelling_his_waiting_request(two: Two) -> None:
    lock = Lock(1, 0, LAST, "w", 1)
    await two.bob.call(m.SetLock, two.file, lock)
    waiting = two.bob.send(m.SetLock, two.file, Lock(2, 0, LAST, "w", 2), True, seq=99)
    await two.bob.call(m.GetAttr, Ref(b""))
    own = (await two.ann.call(m.Open, Ref(b"file"), os.O_RDWR)).handle
    await two.ann.call(m.SetLock, own, lock)
    hers = two.ann.send(m.SetLock, own, Lock(2, 0, LAST, "w", 2), True, seq=99)
    await two.ann.call(m.GetAttr, Ref(b""))
    two.ann.session.cancel(99)
    two.ann.flush()
    with pytest.raises(InterruptedError):
        await two.ann.answer(hers)
    await two.bob.call(m.GetAttr, Ref(b""))
    assert not two.bob.answered(waiting)
    await two.bob.call(m.SetLock, two.file, Lock(1, 0, LAST, "u", 1))
    await two.bob.answer(waiting)


@pytest.mark.parametrize("flock", [False, True])
async def test_locks_on_a_file_that_both_can_reach(two: Two, flock: bool) -> None:
    """A hard link. The server's kernel keeps them apart, as it does any two processes; the engine tells neither who
    the other is, and what the one does never releases what the other has."""
    os.link(two.b / "treasure", two.a / "both")
    hers = (await two.ann.call(m.Open, Ref(b"both"), os.O_RDWR)).handle
    his = Lock(4242, 0, LAST, "w", 31337, flock)
    await two.bob.call(m.SetLock, two.file, his)
    wanted = Lock(4242, 0, LAST, "w", 7, flock)  # the same owner's number: it is another owner
    if not flock:
        found = (await two.ann.call(m.GetLock, hers, wanted)).lock
        assert found.type == "w"
        assert 31337 not in (found.pid, found.owner)
        assert found.owner != 4242 or found.pid != 31337
    with pytest.raises(BlockingIOError):
        await two.ann.call(m.SetLock, hers, wanted)
    await two.ann.call(m.SetLock, hers, Lock(4242, 0, LAST, "u", 7, flock))
    await two.ann.call(m.Close, hers)
    await two.ann.close()
    other = RawClient(client="bob's other")
    await other.open(two.engine.url, two.engine.ticket(tenant="b", principal="bob"))
    handle = (await other.call(m.Open, Ref(b"treasure"), os.O_RDWR)).handle
    with pytest.raises(BlockingIOError):
        await other.call(m.SetLock, handle, Lock(1, 0, LAST, "w", 1, flock))


async def test_locks_of_two_files_never_wait_in_a_circle(two: Two) -> None:
    """Owners are numbers of each client's kernel: equal ones in two tenants must not look like one that waits for
    itself."""
    own = (await two.ann.call(m.Open, Ref(b"file"), os.O_RDWR)).handle
    for client, handle in ((two.bob, two.file), (two.ann, own)):
        await client.call(m.SetLock, handle, Lock(1, 0, LAST, "w", 1))
    waiting = [
        client.send(m.SetLock, handle, Lock(2, 0, LAST, "w", 1), True)
        for client, handle in ((two.bob, two.file), (two.ann, own))
    ]
    for client, handle in ((two.bob, two.file), (two.ann, own)):
        await client.call(m.SetLock, handle, Lock(1, 0, LAST, "u", 1))
    for client, seq in zip((two.bob, two.ann), waiting, strict=True):
        await client.answer(seq)


async def test_what_she_changes_is_not_told_to_him(two: Two) -> None:
    os.link(two.b / "treasure", two.a / "both")
    hers = (await two.ann.call(m.Open, Ref(b"both"), os.O_RDWR)).handle
    await two.ann.call(m.SetAttr, Ref(b"both"), mode=0o600)
    await two.ann.call(m.MkDir, Ref(b""), b"new", 0o755)
    await two.ann.call(m.Close, hers)
    other = RawClient(client="ann's other")
    await other.open(two.engine.url, two.engine.ticket(tenant="a", principal="ann"))
    await two.ann.call(m.RmDir, Ref(b"", (await two.ann.call(m.GetAttr, Ref(b""))).attr.identity), b"new")
    await asyncio.wait_for(other.told.wait(), 20)  # her own other client is told, so the news are out
    await two.bob.call(m.GetAttr, Ref(b""))
    assert two.bob.notified == []


def numbers(value: Any, path: str = "") -> dict[str, Any]:
    """Every number in *value* by where it stands, but those of time going by."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in numbers(item, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for at, item in enumerate(value) for k, v in numbers(item, f"{path}/{at}").items()}
    timed = any(word in path.rpartition("/")[2] for word in ("age", "time", "lag", "since"))
    return {path: value} if isinstance(value, int | float) and not timed else {}


async def test_what_she_does_is_not_counted_as_his(two: Two) -> None:
    before = two.engine.status()
    assert {"a", "b"} <= set(before["tenants"])
    for _ in range(3):
        await outcomes(two.ann, by_path(b"dir"))
    after = two.engine.status()
    assert numbers(after["tenants"]["b"]) == numbers(before["tenants"]["b"])
    assert numbers(after["tenants"]["a"]) != numbers(before["tenants"]["a"])
    shown = json.dumps(after)
    for text in ("treasure", "inner", str(two.b), two.bob.welcome.session):
        assert text not in shown


async def test_what_a_session_is_told_of_itself_is_its_own(two: Two) -> None:
    """Statistics that a client may ask for."""
    asked = [kind for kind in m.REQUESTS if set(kind.__struct_fields__) == {"seq"} and kind is not m.SyncFs]
    for kind in asked:
        before = (await two.bob.answer(two.bob.send(kind)))[0]
        await outcomes(two.ann, [Make(m.ReadLink, ref=Ref(b"file"))] * 5)
        after = (await two.bob.answer(two.bob.send(kind)))[0]
        assert "ReadLink" not in str(getattr(after, "operations", ""))
        assert type(before) is type(after)

"""Sessions and dispatcher in this process: what goes wrong inside, and races that a real client cannot stage."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine import dispatcher, sandbox
from jupyter_wsfuse.engine import inotify as inotify_module
from jupyter_wsfuse.engine.config import read_config
from jupyter_wsfuse.engine.replay import ReplayLog, StateDir
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.engine.server import EngineServer
from jupyter_wsfuse.engine.session import Session
from jupyter_wsfuse.engine.sessions import Sessions
from jupyter_wsfuse.engine.syscalls import WouldBlock
from jupyter_wsfuse.engine.tenants import Tenants
from jupyter_wsfuse.errors import RemoteProtocolError
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Hello, Lock, Ref
from jupyter_wsfuse.protocol.tickets import TicketIssuer
from tests.helpers.rawclient import RawClient, disconnect_all
from tests.helpers.waiting import eventually_async

SECRET = bytes(range(16))
LOCK = Lock(1, 0, 2**63 - 1, "w", 42)


class Peer:
    """What a connection is to the sessions, and the client at its other end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.paused = False
        self.closed = False
        self.close_code: int | None = None
        self.session: Session | None = None
        self.received: list[Any] = []
        self.seq = 0

    def admitted(self, session: Session) -> None:
        self.session = session

    def send(self, messages: list[bytearray]) -> None:
        for message in messages:
            self.received += [frame for frame, _ in codec.decode(message[codec.HEADROOM :])]

    def close(self, code: int, reason: str) -> None:
        self.closed = True
        self.close_code = code

    def greet(self, ticket: str = "", session: str = "", **hello: Any) -> None:
        data = codec.encode_frame(Hello([1], ticket or self.engine.ticket(), session, client="peer", **hello))
        self.engine.sessions.greet(self, data)

    async def welcome(self, session: str = "", **hello: Any) -> m.Welcome:
        self.greet(session=session, **hello)
        welcome = await self.next(m.Welcome)
        assert isinstance(welcome, m.Welcome)
        return welcome

    def say(self, *requests: m.Struct) -> None:
        assert self.session is not None
        self.engine.sessions.received(self.session, b"".join(map(codec.encode_frame, requests)))

    async def next(self, kind: type, seq: int = 0) -> Any:
        def find() -> list[Any]:
            return [
                x for x in self.received if isinstance(x, kind) and (not seq or getattr(x, "seq", 0) == seq)
            ]

        await eventually_async(find)
        found = find()[0]
        self.received.remove(found)
        return found

    async def ask(self, make: Callable[..., m.Request], *args: Any, **kw: Any) -> Any:
        self.seq += 1
        self.say(make(self.seq, *args, **kw))
        return await self.next(m.Reply, self.seq)


class Engine:
    """Sessions on a folder, without a socket."""

    def __init__(self, root: Path, state: Path, **options: Any) -> None:
        root.mkdir(exist_ok=True)
        config = {
            "secret": SECRET.hex(),
            "audience": "here",
            "state_dir": str(state),
            "tenants": {"default": {"root": str(root)}},
            "workers": 2,
            **options,
        }
        parsed, tenants = read_config(json.dumps(config).encode())
        self.root = root
        self.state = StateDir(state)
        self.sessions = Sessions(parsed, tenants, self.state, epoch=7)

    def ticket(self) -> str:
        return TicketIssuer(SECRET, "here").issue("default", "ann", ["read", "write"], 30)

    async def peer(self) -> Peer:
        peer = Peer(self)
        await peer.welcome()
        return peer


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path / "root", tmp_path / "state")
    yield engine
    if not engine.sessions.stopping:
        await engine.sessions.drain()


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that replaces what executes a kind of request."""

    def replace(kind: type[m.Request], function: Callable[..., Any], **changes: Any) -> None:
        plan = dispatcher.PLANS[kind]._replace(function=function, **changes)
        monkeypatch.setitem(dispatcher.PLANS, kind, plan)

    return replace


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """The records of errors, which a test has to look at and clear."""
    found: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler = Handler(logging.ERROR)
    logging.getLogger("jupyter_wsfuse").addHandler(handler)
    yield found
    logging.getLogger("jupyter_wsfuse").removeHandler(handler)


# --- failures inside


@pytest.mark.parametrize("inline", [True, False])
async def test_an_unexpected_exception_is_eio_and_logged_once(
    engine: Engine, plans: Any, errors: list[logging.LogRecord], inline: bool
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError(str(engine.root))

    plans(m.GetAttr, fail, inline=inline)
    peer = await engine.peer()
    for _ in range(3):
        reply = await peer.ask(m.GetAttr, Ref(b""))
        assert (reply.errno, reply.message) == ("EIO", os.strerror(errno.EIO))
    [record] = errors
    assert record.exc_info is not None
    assert engine.sessions.operations()["GetAttr"]["errors"] == 3


async def test_an_answer_that_the_protocol_does_not_allow(
    engine: Engine, plans: Any, errors: list[logging.LogRecord]
) -> None:
    plans(m.GetAttr, lambda context, request, payload, nowait: (m.Done(request.seq), b""))
    peer = await engine.peer()
    assert (await peer.ask(m.GetAttr, Ref(b""))).errno == "EIO"
    assert len(errors) == 1


async def test_what_cannot_be_recorded_beforehand_does_not_happen(
    engine: Engine, errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await engine.peer()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(ReplayLog, "intend", full)
    assert (await peer.ask(m.MkDir, Ref(b""), b"d", 0o755)).errno == "ENOSPC"
    assert not (engine.root / "d").exists()
    assert errors == []


async def test_what_cannot_be_recorded_afterwards_is_answered(
    engine: Engine, errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await engine.peer()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(ReplayLog, "answer", full)
    monkeypatch.setattr(ReplayLog, "hold", full)
    made = await peer.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)
    assert isinstance(made, m.OpenReply)
    assert isinstance(await peer.ask(m.MkDir, Ref(b""), b"d", 0o700), m.AttrReply)
    assert isinstance(await peer.ask(m.SetLock, made.handle, LOCK), m.LockReply)
    assert len(errors) == 2  # the record once, and the lock


async def test_the_attributes_after_a_lock(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = await engine.peer()
    handle = (await peer.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    real = Sandbox.stat

    def not_now(self: Sandbox, fd: int, nowait: bool = False) -> Any:
        if nowait:
            raise WouldBlock
        return real(self, fd)

    monkeypatch.setattr(Sandbox, "stat", not_now)
    assert (await peer.ask(m.SetLock, handle, LOCK)).attr.size == 0
    assert peer.session is not None
    assert peer.session.context is not None
    peer.session.context.sandbox.inline_ok = False
    assert (await peer.ask(m.SetLock, handle, LOCK)).attr.size == 0
    assert isinstance(await peer.ask(m.GetAttr, Ref(b"f")), m.AttrReply)

    def broken(self: Sandbox, fd: int, nowait: bool = False) -> Any:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(Sandbox, "stat", broken)
    assert (await peer.ask(m.SetLock, handle, LOCK)).errno == "EIO"


# --- who does not read


async def test_nothing_is_executed_for_who_does_not_read(engine: Engine) -> None:
    peer, other = await engine.peer(), await engine.peer()
    peer.paused = True
    peer.say(*[m.MkDir(n, Ref(b""), b"d%d" % n, 0o755) for n in range(1, 20)])
    await other.ask(m.MkDir, Ref(b""), b"other", 0o755)
    assert [path.name for path in engine.root.iterdir()] == ["other"]
    assert not any(isinstance(x, m.InvalidateAll) for x in peer.received)
    peer.paused = False
    assert peer.session is not None
    engine.sessions.resumed_reading(peer.session)
    for n in range(1, 20):
        await peer.next(m.AttrReply, n)
    await peer.next(m.InvalidateAll)


async def test_a_worker_is_not_used_for_who_stopped_reading(engine: Engine) -> None:
    peer = await engine.peer()
    peer.say(*[m.SetXattr(n, Ref(b""), b"user.a", b"%d" % n) for n in range(1, 20)])
    peer.paused = True
    await engine.sessions.pool.drained()
    assert len([x for x in peer.received if isinstance(x, m.Reply)]) < 19
    peer.paused = False
    assert peer.session is not None
    engine.sessions.resumed_reading(peer.session)
    await peer.next(m.Reply, 19)


async def test_a_flood_of_requests_lets_others_have_their_turn(engine: Engine) -> None:
    peer, other = await engine.peer(), await engine.peer()
    count = dispatcher.BUDGET * 3
    peer.say(m.Pong(1), *[m.GetAttr(n, Ref(b"")) for n in range(1, count)])
    other.say(m.GetAttr(1, Ref(b"")))
    engine.sessions.flush()
    assert any(isinstance(x, m.AttrReply) for x in other.received)
    assert len(peer.received) < count
    await peer.next(m.AttrReply, count - 1)


# --- sessions that end while something is on its way


class Held:
    """Holds an operation in its worker until it is let go."""

    def __init__(self, plans: Any, kind: type[m.Request]) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        real = dispatcher.PLANS[kind].function
        assert real is not None

        def run(*args: Any) -> Any:
            self.began.set()
            assert self.go.wait(20)
            return real(*args)

        plans(kind, run, inline=False)


async def test_what_an_ended_session_opened_is_closed(engine: Engine, plans: Any) -> None:
    (engine.root / "f").touch()
    peer = await engine.peer()
    held = Held(plans, m.Open)
    peer.say(m.Open(1, Ref(b"f"), os.O_RDONLY), m.MkDir(2, Ref(b""), b"d", 0o755))
    await eventually_async(held.began.is_set)
    session = peer.session
    assert session is not None
    peer.say(m.Bye("enough"))
    assert peer.closed
    assert len(engine.sessions) == 0
    held.go.set()
    await engine.sessions.pool.drained()
    assert session.context is not None
    assert len(session.context.handles) == 0
    assert not any(isinstance(x, m.Reply) for x in peer.received)
    assert not list(engine.state.path.glob("*.record"))


async def test_others_hear_of_what_an_ended_session_wrote(engine: Engine, plans: Any) -> None:
    peer, other = await engine.peer(), await engine.peer()
    await peer.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)
    await other.next(m.InvalidateAll)  # the request did not say which directory
    plans(m.Write, lambda context, request, payload, nowait: (m.CountReply(request.seq, 1), b""))
    await peer.ask(m.Write, 12345, 0)
    await other.next(m.InvalidateAll)  # the handle was closed before anybody could look which file it was
    held = Held(plans, m.SetAttr)
    peer.say(m.SetAttr(20, Ref(b"f"), size=5), m.Cancel(20))
    await eventually_async(held.began.is_set)
    peer.say(m.Bye())
    held.go.set()
    changed = await other.next(m.Changed)
    assert changed.changes[0].name is None
    assert (engine.root / "f").stat().st_size == 5


async def test_a_claim_of_a_session_that_ends_meanwhile(engine: Engine, plans: Any) -> None:
    peer = await engine.peer()
    made = await peer.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)
    session = peer.session
    assert session is not None
    session.may_reclaim = True
    held = Held(plans, m.Reopen)
    peer.say(m.Reopen(9, Ref(b"f"), made.handle + 1, os.O_RDWR, locks=[LOCK]))
    await eventually_async(held.began.is_set)
    engine.sessions.end(session, "the test says so")
    held.go.set()
    await engine.sessions.pool.drained()
    assert session.workspace.locks.holds(session.id) == []


async def test_a_connection_that_is_gone_before_it_is_admitted(engine: Engine) -> None:
    peer = Peer(engine)
    peer.greet()
    peer.closed = True
    await engine.sessions.pool.drained()
    assert len(engine.sessions) == 0
    peer = await engine.peer()
    session = peer.session
    assert session is not None
    engine.sessions.disconnected(session, peer)
    again = Peer(engine)
    again.greet(session=session.id)
    assert session.grace is None
    again.closed = True
    await engine.sessions.pool.drained()
    assert session.grace is not None
    assert not session.ended
    late = Peer(engine)
    late.closed = True
    late.greet(ticket="forged")
    assert late.received == []


async def test_a_session_that_ends_while_another_connection_asks_for_it(engine: Engine) -> None:
    peer = await engine.peer()
    session = peer.session
    assert session is not None
    second = Peer(engine)
    second.greet(session=session.id)
    engine.sessions.end(session, "the test says so")
    welcome = await second.next(m.Welcome)
    assert not welcome.resumed
    assert welcome.session != session.id


async def test_a_workspace_that_vanished_between_two_connections(
    engine: Engine, errors: list[logging.LogRecord]
) -> None:
    peer = await engine.peer()
    session = peer.session
    assert session is not None
    engine.sessions.disconnected(session, peer)
    engine.root.rmdir()
    again = Peer(engine)
    again.greet(session=session.id)
    assert (await again.next(m.Refused)).code == "workspace"
    assert session.grace is not None
    assert len(errors) == 1
    engine.root.mkdir()


async def test_a_message_that_ends_the_session(engine: Engine) -> None:
    peer = await engine.peer()
    with pytest.raises(RemoteProtocolError):
        peer.say(m.GetAttr(0, Ref(b"")))
    assert len(engine.sessions) == 0
    engine.sessions.flush()


async def test_a_lock_step_that_comes_after_the_end_of_its_session(engine: Engine) -> None:
    peer = await engine.peer()
    made = await peer.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)
    await peer.ask(m.SetLock, made.handle, LOCK)
    session = peer.session
    assert session is not None
    engine.sessions.end(session, "the test says so")  # releases the lock when nobody can be told any more
    assert session.workspace.locks.holds(session.id) == []


# --- the server around them


async def test_an_exception_for_a_message_costs_that_connection_only(
    engine: Engine, errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EngineServer(engine.sessions)
    port = await server.listen()
    client, other = RawClient(), RawClient()
    for one in (client, other):
        await one.open(f"ws://127.0.0.1:{port}/", engine.ticket())

    def fail(session: Session, data: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(engine.sessions, "received", fail)
        client.send(m.GetAttr, Ref(b""))
        await asyncio.wait_for(client.listener.gone.wait(), 20)
    assert client.listener.close_code == 1011
    assert len(errors) == 1
    await other.call(m.GetAttr, Ref(b""))
    await client.open(f"ws://127.0.0.1:{port}/", engine.ticket())
    assert client.kind == "resumed"
    await disconnect_all()
    await server.stop()


# --- the end


async def test_stopping_refuses_and_does_not_wait_for_ever(
    tmp_path: Path, plans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(tmp_path / "root", tmp_path / "state", drain=0.05)
    peer = await engine.peer()
    held = Held(plans, m.Fsync)
    handle = (await peer.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    peer.say(m.Fsync(50, handle))
    await eventually_async(held.began.is_set)
    drain = asyncio.ensure_future(engine.sessions.drain())
    await eventually_async(lambda: engine.sessions.stopping)
    late = Peer(engine)
    late.greet()
    assert late.received[0].code == "stopping"
    await drain
    assert "still at work" in caplog.text
    held.go.set()
    assert engine.sessions.pool.stop(10)


async def test_heartbeat_of_the_state_folder(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "root", tmp_path / "state", grace=0.02)
    lock = tmp_path / "state" / "engine.lock"
    os.utime(lock, (1, 1))
    await eventually_async(lambda: lock.stat().st_mtime > 2)
    await engine.sessions.drain()


# --- leases: who gets them, who is told


LEASES = [m.LEASES]


async def leased(engine: Engine, *paths: bytes) -> tuple[Peer, Ref]:
    """A peer with leases on those directories, and the root by identity."""
    peer = Peer(engine)
    welcome = await peer.welcome(features=LEASES)
    assert (welcome.features, welcome.unwatched) == (LEASES, "")
    for path in paths:
        assert (await peer.ask(m.GetAttr, Ref(path))).lease == m.LEASE_SELF
    return peer, Ref(b"", welcome.root.identity)


def changes_of(peer: Peer) -> list[tuple[int, bytes | None]]:
    """What a peer was told since, by inode number."""
    found = [change for x in peer.received if isinstance(x, m.Changed) for change in x.changes]
    peer.received = [x for x in peer.received if not isinstance(x, m.Changed)]
    return [(change.identity.ino, change.name) for change in found]


async def test_who_does_not_ask_gets_no_leases(engine: Engine) -> None:
    peer = Peer(engine)
    welcome = await peer.welcome()
    assert (welcome.features, welcome.unwatched) == ([], "")
    assert (await peer.ask(m.GetAttr, Ref(b""))).lease == 0
    assert len(engine.sessions.watcher.leases) == 0


async def test_a_session_is_told_what_it_has_leases_for(engine: Engine) -> None:
    for name in ("a", "b"):
        (engine.root / name).mkdir()
    watching, root = await leased(engine, b"a")
    without = Peer(engine)
    await without.welcome(features=LEASES)
    plain, doer = await engine.peer(), await engine.peer()
    a, b = ((engine.root / name).stat().st_ino for name in ("a", "b"))
    made: dict[bytes, int] = {}
    for name in (b"a", b"b"):
        folder = Ref(name, (await doer.ask(m.Lookup, root, name)).attr.identity)
        made[name] = (await doer.ask(m.Create, folder, b"f", 0o600, os.O_RDWR)).attr.ino
    expected = [(a, b"f"), (a, None), (made[b"a"], None), (b, b"f"), (b, None), (made[b"b"], None)]
    assert changes_of(plain) == expected
    # Files are told whatever leases there are: they may have other names.
    assert set(changes_of(watching)) == {place for place in expected if place != (b, b"f")}
    assert changes_of(without) == []
    assert changes_of(doer) == []


async def test_a_grant_while_somebody_else_is_at_it(engine: Engine, plans: Any) -> None:
    """The lease is there before the state is read, so the change is either in that or told."""
    watching, _ = await leased(engine)
    doer = await engine.peer()
    made = await doer.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)
    held = Held(plans, m.Write)
    doer.say(m.Write(9, made.handle, 0))
    await eventually_async(held.began.is_set)
    assert (await watching.ask(m.Lookup, Ref(b""), b"f")).lease == m.LEASE_PARENT
    changes_of(watching)
    held.go.set()
    await doer.next(m.CountReply, 9)
    assert (made.attr.ino, None) in changes_of(watching)


@pytest.mark.parametrize(
    ("links", "tenant", "words"),
    [
        ("follow", {}, "links are followed"),
        ("keep", {"rules": ["deny read *.key"], "hide": True}, "hidden"),
        ("keep", {}, "file system"),
        ("keep", {}, "inotify"),
    ],
)
async def test_why_there_are_no_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: str, tenant: dict[str, Any], words: str
) -> None:
    if words == "file system":
        monkeypatch.setattr(sandbox, "_LOCAL", frozenset())

    def none_left() -> None:
        raise OSError(errno.EMFILE, "none left")

    if words == "inotify":
        monkeypatch.setattr(inotify_module, "Inotify", none_left)
    engine = Engine(
        tmp_path / "root",
        tmp_path / "state",
        tenants={"default": {"root": str(tmp_path / "root"), **tenant}},
    )
    peer = Peer(engine)
    welcome = await peer.welcome(features=LEASES, links=links)
    assert welcome.features == []
    assert words in welcome.unwatched
    assert (await peer.ask(m.GetAttr, Ref(b""))).lease == 0
    # It is told everything by everybody, as ever.
    doer = Peer(engine)
    await doer.welcome()
    await doer.ask(m.MkDir, Ref(b"", welcome.root.identity), b"d", 0o700)
    told = await peer.next(m.InvalidateAll if words == "hidden" else m.Changed)
    assert told
    await engine.sessions.drain()


async def test_other_rules_end_leases(engine: Engine, plans: Any) -> None:
    (engine.root / "f").touch()
    os.link(engine.root / "f", engine.root / "g")
    peer, root = await leased(engine, b"")
    assert peer.session is not None
    before = peer.session.leaser
    held = Held(plans, m.Lookup)
    peer.say(m.Lookup(50, root, b"f"))
    await eventually_async(held.began.is_set)

    def define(**more: Any) -> None:
        tenant = {"root": str(engine.root), **more}
        engine.sessions.redefine(Tenants.from_config({"default": tenant}))

    define(rules=["deny write /secret"])
    released = await peer.next(m.Released)
    assert released.identities == [root.identity]
    await peer.next(m.InvalidateAll)
    assert before is not None
    assert before.stopped
    held.go.set()
    assert (await peer.next(m.AttrReply, 50)).lease == 0  # it was at work when they ended
    assert (await peer.ask(m.GetAttr, Ref(b"f"))).lease == m.LEASE_SELF
    define(rules=["deny read *.key"], hide=True)
    assert len((await peer.next(m.Released)).identities) in (1, 2)
    assert peer.session.leaser is None
    assert (await peer.ask(m.GetAttr, Ref(b""))).lease == 0
    assert len(engine.sessions.watcher.leases) == 0


async def test_who_may_not_list_a_directory_gets_no_lease_on_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "shut").mkdir(parents=True)
    (root / "shut/f").touch()
    tenant = {"root": str(root), "rules": ["deny read /shut", "allow read /shut/f"]}
    engine = Engine(root, tmp_path / "state", tenants={"default": tenant})
    peer, _ = await leased(engine)
    assert (await peer.ask(m.Lookup, Ref(b""), b"shut")).lease == m.LEASE_PARENT
    assert (await peer.ask(m.GetAttr, Ref(b"shut"))).lease == 0
    assert (await peer.ask(m.Lookup, Ref(b"shut"), b"f")).lease == 0
    await engine.sessions.drain()


async def test_leases_end_when_a_session_is_taken_up_again(engine: Engine) -> None:
    peer, root = await leased(engine, b"")
    session = peer.session
    assert session is not None
    engine.sessions.disconnected(session, peer)  # type: ignore[arg-type]
    (engine.root / "x").mkdir()
    again = Peer(engine)
    welcome = await again.welcome(session=session.id, features=LEASES)
    assert welcome.resumed
    assert (await again.next(m.Released)).identities == [root.identity]
    again.seq = 10
    assert (await again.ask(m.GetAttr, Ref(b""))).lease == m.LEASE_SELF
    # And one that does not ask for them any more has none.
    engine.sessions.disconnected(session, again)  # type: ignore[arg-type]
    last = Peer(engine)
    assert (await last.welcome(session=session.id)).features == []
    assert session.leases == {}
    assert len(engine.sessions.watcher.leases) == 0


async def test_too_many_leases_end_the_oldest(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "root", tmp_path / "state", max_leases=2)
    for name in ("a", "b", "c"):
        (engine.root / name).mkdir()
    peer, _ = await leased(engine, b"a", b"b", b"c")
    released = await peer.next(m.Released)
    assert [identity.ino for identity in released.identities] == [(engine.root / "a").stat().st_ino]
    assert engine.sessions.watcher.describe()["leases"] == 2
    await engine.sessions.drain()


async def test_what_ends_with_a_session(engine: Engine) -> None:
    peer, _ = await leased(engine, b"")
    other, _ = await leased(engine, b"")
    before = len(os.listdir("/proc/self/fd"))
    assert len(engine.sessions.watcher.leases) == 1
    peer.say(m.Bye())
    assert len(engine.sessions.watcher.leases) == 1
    other.say(m.Bye())
    assert len(engine.sessions.watcher.leases) == 0
    await engine.sessions.pool.drained()
    assert len(os.listdir("/proc/self/fd")) < before


async def test_a_flood_of_events_does_not_stop_the_loop(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read in portions, and all in the end."""
    monkeypatch.setattr(inotify_module, "READ", 512)
    peer, _ = await leased(engine, b"")
    for number in range(300):
        (engine.root / f"{number:04}").mkdir()
    names: set[bytes | None] = set()

    def all_told() -> bool:
        names.update(name for _, name in changes_of(peer))
        return len(names) >= 300

    await eventually_async(all_told)

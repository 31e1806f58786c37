"""The order in which requests run, who is told of a change, and the worker threads."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine import files
from jupyter_wsfuse.engine.auditpaths import describe
from jupyter_wsfuse.engine.changes import PENDING, PER_MESSAGE, Pending, Unknown, changes
from jupyter_wsfuse.engine.context import Context
from jupyter_wsfuse.engine.dispatcher import Dispatcher
from jupyter_wsfuse.engine.gates import Gate
from jupyter_wsfuse.engine.handles import HandleTable
from jupyter_wsfuse.engine.limiter import Limiter
from jupyter_wsfuse.engine.locks import LockTable
from jupyter_wsfuse.engine.plans import PLANS
from jupyter_wsfuse.engine.profiler import Profiler
from jupyter_wsfuse.engine.replay import Meta, StateDir
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.engine.session import Session
from jupyter_wsfuse.engine.settle import prepare
from jupyter_wsfuse.engine.syscalls import WouldBlock
from jupyter_wsfuse.engine.tenants import Limits, Tenant
from jupyter_wsfuse.engine.workers import WorkerPool
from jupyter_wsfuse.errors import DeniedError
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Attr, Change, Changed, Identity, InvalidateAll, Ref
from jupyter_wsfuse.protocol.serving import EngineSession
from tests.helpers.waiting import eventually_async

# --- gates


class Walker:
    def __init__(self, name: str) -> None:
        self.name = name
        self.needs = 0


def test_lookers_pass_together_and_changers_alone_and_nobody_overtakes() -> None:
    gate = Gate()
    line = [Walker(name) for name in ("read1", "read2", "write", "read3", "close")]
    for walker in line:
        gate.enter(walker, walker.name in ("write", "close"))
    assert [walker.needs for walker in line] == [0, 0, 1, 1, 1]
    assert gate.changing
    assert not gate.admits(False)
    assert gate.leave() == []
    assert gate.leave() == [line[2]]
    assert gate.changing
    assert gate.leave() == [line[3]]
    assert gate.leave() == [line[4]]
    assert gate
    assert gate.leave() == []
    assert not gate
    assert not gate.changing


def test_lookers_in_a_row_are_let_in_at_once() -> None:
    gate = Gate()
    walkers = [Walker(str(n)) for n in range(5)]
    for number, walker in enumerate(walkers):
        gate.enter(walker, number in (0, 4))
    assert gate.leave() == walkers[1:4]


def test_no_walk_over_several_gates_ends_in_a_deadlock() -> None:
    rng = random.Random(3)
    gates = [Gate() for _ in range(3)]
    running: list[tuple[Walker, list[Gate]]] = []
    waiting: dict[Walker, list[Gate]] = {}
    for number in range(2000):
        walker = Walker(str(number))
        passes = rng.sample(gates, rng.randrange(1, 3))
        for gate in passes:
            gate.enter(walker, rng.random() < 0.5)
        if walker.needs:
            waiting[walker] = passes
        else:
            running.append((walker, passes))
        if rng.random() < 0.55:
            finish(running, waiting, rng)
    while running:
        finish(running, waiting, rng)
    assert not waiting
    assert not any(gates)


def finish(
    running: list[tuple[Walker, list[Gate]]], waiting: dict[Walker, list[Gate]], rng: random.Random
) -> None:
    if running:
        _, passes = running.pop(rng.randrange(len(running)))
        for gate in passes:
            for ready in gate.leave():
                assert isinstance(ready, Walker)
                running.append((ready, waiting.pop(ready)))


def test_every_request_has_a_plan() -> None:
    assert set(PLANS) == set(m.REQUESTS)
    for kind, plan in PLANS.items():
        assert plan.mutating == kind.mutating
        assert plan.function is not None or kind in (m.SetLock, m.GetLock, m.Stats)
        assert not (plan.inline and plan.mutating)
    ref = Ref(b"x", None, 7)
    assert PLANS[m.Write].handles(m.Write(1, 7, 0)) == [(7, True)]
    assert PLANS[m.Read].handles(m.Read(1, 7, 0, 1)) == [(7, False)]
    assert PLANS[m.Close].handles(m.Close(1, 7)) == [(7, True)]
    assert PLANS[m.SetAttr].handles(m.SetAttr(1, ref)) == [(7, True)]
    assert PLANS[m.GetAttr].handles(m.GetAttr(1, Ref(b"x"))) == []
    assert PLANS[m.CopyRange].handles(m.CopyRange(1, 7, 0, 8, 0, 1)) == [(8, True), (7, False)]
    assert PLANS[m.CopyRange].handles(m.CopyRange(1, 7, 0, 7, 0, 1)) == [(7, True)]
    assert PLANS[m.Reopen].handles(m.Reopen(1, ref, 7, 0)) == []
    assert PLANS[m.MkDir].handles(m.MkDir(1, ref, b"n", 0)) == []
    assert PLANS[m.Open].handles(m.Open(1, Ref(b"x"), 0)) == []
    assert PLANS[m.Open].handles(m.Open(1, ref, 0)) == [(7, False)]
    assert PLANS[m.Open].handles(m.Open(1, Ref(b"x"), 0, handle=9)) == [(9, True)]
    assert PLANS[m.OpenDir].handles(m.OpenDir(1, ref, 9)) == [(9, True), (7, False)]
    assert PLANS[m.OpenDir].handles(m.OpenDir(1, ref, 7)) == [(7, True)]  # or it would wait for itself


# --- what a request passes on its way


class Notes:
    """An audit that keeps what it is told."""

    def __init__(self) -> None:
        self.refusing = False
        self.safe = True
        self.barriers = 0
        self.unwanted: set[type] = set()
        self.records: list[tuple[Any, ...]] = []

    def wants(self, kind: type[m.Request], failed: bool, denied: bool) -> bool:
        return kind not in self.unwanted or denied

    def record(
        self, session: Any, request: Any, paths: Any, error: Any, rule: str, size: int, total: int
    ) -> None:
        assert total > 0
        self.records.append((type(request).__name__, paths, error.errno if error else "", rule, size))

    def barrier(self) -> bool:
        self.barriers += 1
        return self.safe


class NoRoom:
    """A quota that has none for writes."""

    def account(self, context: Context, request: Any, payload: Any, run: Callable[[], Any]) -> Any:
        if isinstance(request, m.Write):
            raise OSError(errno.EDQUOT, "full")
        return run()


class Room:
    """A workspace with nothing but what requests pass."""

    def __init__(self, tenant: Tenant, dispatcher: Dispatcher) -> None:
        self.tenant = tenant
        self.locks = LockTable(offload=dispatcher.offload(tenant.name))
        self.profiler = Profiler()
        self.limiter = Limiter(tenant.limits)
        self.audit = Notes()
        self.quota: Any = None
        self.denials: list[tuple[str, bytes]] = []

    def limiter_for(self, token: object) -> Limiter:
        return self.limiter

    def denied(self, session: Session, rule: str, path: bytes) -> None:
        self.denials.append((rule, path))


class Desk:
    """A dispatcher with one session on a folder, asked without a connection."""

    def __init__(self, folder: Path, workers: int = 2, **tenant: Any) -> None:
        root = folder / "root"
        root.mkdir()
        self.root = root
        self.pool = WorkerPool(workers)
        self.ended: list[Session] = []
        self.dispatcher = Dispatcher(
            self.pool,
            mark=lambda session: None,
            flush=lambda session: None,
            ended=self.ended.append,
            told=lambda session, places: None,
            describe=describe,
        )
        self.room = Room(Tenant("here", os.fsencode(root), **tenant), self.dispatcher)
        self.state = StateDir(folder / "state")
        self.session = self.open()
        self.seq = 0
        self.answered: dict[int, Any] = {}
        self.data = b""

    def open(self) -> Session:
        meta = Meta(secrets.token_hex(16), "here", "ann", "test", "keep", 0.0, "")
        log = self.state.create(meta)
        session = Session(
            id=meta.session, workspace=self.room, principal="ann", client="", since=0, log=log,  # type: ignore[arg-type]
        )  # fmt: skip
        session.proto = EngineSession(meta.session, window=100, window_bytes=1 << 24)
        session.proto.attach()
        session.read_only = False
        session.context = Context(Sandbox(self.root), HandleTable(budget=session.limiter))
        self.dispatcher.entered(session)
        return session

    def say(self, make: Callable[..., m.Request], *args: Any, payload: bytes = b"", **kw: Any) -> int:
        self.seq += 1
        frame = codec.encode_frame(make(self.seq, *args, **kw), payload)
        self.dispatcher.receive(self.session, self.session.proto.receive(frame))
        return self.seq

    async def answer(self, seq: int) -> Any:
        found = self.answered

        def look() -> bool:
            for message in self.session.proto.outgoing():
                for reply, data in codec.decode(bytes(message)):
                    found[reply.seq] = reply
                    self.data = bytes(data)
            return seq in found

        await eventually_async(look)
        return found.pop(seq)

    async def ask(self, make: Callable[..., m.Request], *args: Any, **kw: Any) -> Any:
        return await self.answer(self.say(make, *args, **kw))

    def say_all(self, *messages: m.Struct) -> None:
        """At once, as they come in one message."""
        data = b"".join(map(codec.encode_frame, messages))
        self.dispatcher.receive(self.session, self.session.proto.receive(data))

    def acknowledge(self, *seqs: int) -> None:
        self.say_all(m.Ack(list(seqs)))

    async def answers(self, *seqs: int) -> list[Any]:
        return [await self.answer(seq) for seq in seqs]

    async def close(self) -> None:
        await self.pool.drained()
        self.dispatcher.left(self.session)
        assert self.session.context is not None
        self.session.context.handles.close_all()
        self.session.context.sandbox.close()
        self.session.log.close()
        self.state.close()
        assert self.pool.stop(10)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    await desk.close()


async def test_what_is_recorded(desk: Desk) -> None:
    made = await desk.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)
    await desk.ask(m.Write, made.handle, 0, payload=b"12345")
    await desk.ask(m.Read, made.handle, 0, 3)
    await desk.ask(m.GetAttr, Ref(b"f"))
    await desk.ask(m.GetAttr, Ref(b"gone"))
    await desk.ask(m.Rename, Ref(b""), b"f", Ref(b""), b"g")
    await desk.ask(m.Close, made.handle)
    assert desk.room.audit.records == [
        ("Create", (b"f", b""), "", "", 0),
        ("Write", (b"f", b""), "", "", 5),
        ("Read", (b"f", b""), "", "", 3),
        ("GetAttr", (b"f", b""), "", "", 0),
        ("GetAttr", (b"gone", b""), "ENOENT", "", 0),
        ("Rename", (b"f", b"g"), "", "", 0),
        ("Close", (b"f", b""), "", "", 0),
    ]
    desk.room.audit.records.clear()
    desk.room.audit.unwanted = set(m.REQUESTS)
    await desk.ask(m.GetAttr, Ref(b"g"))
    await desk.ask(m.GetAttr, Ref(b"gone"))
    assert desk.room.audit.records == []


@pytest.mark.parametrize("inline", [True, False])
async def test_who_denied_what(desk: Desk, monkeypatch: pytest.MonkeyPatch, inline: bool) -> None:
    def deny(*_: Any) -> Any:
        raise DeniedError("rule 7")

    kind: Any = m.GetAttr if inline else m.MkDir
    monkeypatch.setitem(PLANS, kind, PLANS[kind]._replace(function=deny))
    desk.room.audit.unwanted = set(m.REQUESTS)
    if inline:
        error = await desk.ask(m.GetAttr, Ref(b"secret"))
    else:
        error = await desk.ask(m.MkDir, Ref(b""), b"secret", 0o700)
    assert (error.errno, error.message) == ("EACCES", "denied by rule 7")
    assert desk.room.denials == [("rule 7", b"secret")]
    assert desk.room.audit.records == [(kind.__name__, (b"secret", b""), "EACCES", "rule 7", 0)]


async def test_without_a_record_nothing_changes(desk: Desk) -> None:
    made = await desk.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)
    desk.room.audit.refusing = True
    error = await desk.ask(m.MkDir, Ref(b""), b"d", 0o700)
    assert (error.errno, error.message) == ("EROFS", "the audit log cannot be written")
    assert (await desk.ask(m.Open, Ref(b"f"), os.O_WRONLY)).errno == "EROFS"
    assert (await desk.ask(m.Write, made.handle, 0, payload=b"x")).errno == "EROFS"
    assert isinstance(await desk.ask(m.Open, Ref(b"f"), os.O_RDONLY), m.OpenReply)
    assert not (desk.root / "d").exists()
    # What a former engine may have done is answered with what became of it.
    assert desk.session.context is not None
    again = m.MkDir(desk.seq + 1, Ref(b""), b"d", 0o700)
    desk.session.log.intents[again.seq] = prepare(desk.session.context, again) or {}
    assert isinstance(await desk.ask(m.MkDir, Ref(b""), b"d", 0o700), m.AttrReply)


async def test_synced_is_what_is_on_record_too(desk: Desk) -> None:
    handle = (await desk.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    audit = desk.room.audit
    assert isinstance(await desk.ask(m.Fsync, handle), m.Done)
    assert isinstance(await desk.ask(m.SyncFs), m.Done)
    assert audit.barriers == 2
    audit.safe = False
    assert isinstance(await desk.ask(m.Fsync, handle), m.Done)  # the policy is to go on
    audit.refusing = True
    assert (await desk.ask(m.Fsync, handle)).errno == "EIO"
    assert audit.barriers == 4


async def test_a_quota_is_asked(desk: Desk) -> None:
    handle = (await desk.ask(m.Create, Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    desk.room.quota = NoRoom()
    assert (await desk.ask(m.Write, handle, 0, payload=b"x")).errno == "EDQUOT"
    assert (desk.root / "f").read_bytes() == b""
    assert isinstance(await desk.ask(m.StatFs, Ref(b"")), m.StatFsReply)


async def test_what_requests_have_cost(desk: Desk) -> None:
    await desk.ask(m.GetAttr, Ref(b""))
    await desk.ask(m.GetAttr, Ref(b"no"))
    await desk.ask(m.MkDir, Ref(b""), b"d", 0o700)
    operations = (await desk.ask(m.Stats)).operations
    assert set(operations) == {"GetAttr", "MkDir"}
    assert operations["GetAttr"][:2] == [2, 1]
    for count, _errors, total, disk, limit, moved in operations.values():
        assert count
        assert total > disk > 0
        assert limit == moved == 0
    profile = desk.room.profiler.snapshot()
    assert profile["GetAttr"]["count"] == 2
    assert profile["MkDir"]["disk_us"] > 0


async def test_what_a_former_engine_may_have_done_is_not_held(tmp_path: Path) -> None:
    desk = Desk(tmp_path, limits=Limits(metadata=1, refuse=True))
    assert isinstance(await desk.ask(m.GetAttr, Ref(b"")), m.AttrReply)
    assert (await desk.ask(m.MkDir, Ref(b""), b"d", 0o700)).errno == "EBUSY"
    assert desk.session.context is not None
    again = m.MkDir(desk.seq + 1, Ref(b""), b"d", 0o700)
    desk.session.log.intents[again.seq] = prepare(desk.session.context, again) or {}
    assert isinstance(await desk.ask(m.MkDir, Ref(b""), b"d", 0o700), m.AttrReply)
    await desk.close()


async def test_places_at_work_come_back_whatever_happens(tmp_path: Path) -> None:
    desk = Desk(tmp_path, limits=Limits(in_flight=2))
    go = threading.Event()
    real = PLANS[m.MkDir].function
    assert real is not None

    def wait(*args: Any) -> Any:
        assert go.wait(20)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PLANS, m.MkDir, PLANS[m.MkDir]._replace(function=wait))
        for number in range(5):
            desk.say(m.MkDir, Ref(b""), b"d%d" % number, 0o700)
        slots = desk.room.limiter.describe()["in_flight"]
        assert (slots["used"], slots["waiting"]) == (2, 3)
        await eventually_async(lambda: desk.pool.busy == 1)  # a session's share of two workers
        # The session ends: one is at work, one has a place and waits for a worker, three for a place.
        desk.session.ended = True
        desk.dispatcher.left(desk.session)
        slots = desk.room.limiter.describe()["in_flight"]
        assert (slots["used"], slots["waiting"]) == (1, 0)
        go.set()
        await desk.pool.drained()
    assert desk.room.limiter.describe()["in_flight"]["used"] == 0
    assert [path.name for path in desk.root.iterdir()] == ["d0"]
    desk.session = desk.open()
    await desk.close()


class Stopper:
    """Holds operations of a kind in their workers until they are let go; ``began``: how many have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type[m.Request], inline: bool = False) -> None:
        self.began = 0
        self.go = threading.Event()
        real = PLANS[kind].function
        assert real is not None

        def wait(context: Any, request: Any, payload: Any, nowait: bool) -> Any:
            if nowait:
                raise WouldBlock
            self.began += 1
            assert self.go.wait(20)
            return real(context, request, payload, nowait)

        monkeypatch.setitem(PLANS, kind, PLANS[kind]._replace(function=wait))


# --- handles whose numbers the client chose


@pytest.mark.parametrize("limits", [None, Limits(metadata=20, max_wait=10)])
async def test_what_is_asked_behind_an_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits | None
) -> None:
    """Also where the opening goes to a worker, and where a limit holds it."""
    desk = Desk(tmp_path, **({} if limits is None else {"limits": limits}))
    (desk.root / "f").write_bytes(b"content")
    if limits is None:
        opening = Stopper(monkeypatch, m.Open)
    else:
        while desk.session.limiter.take("metadata") < 0:
            pass
    seqs = [
        desk.say(m.Open, Ref(b"f"), os.O_RDONLY, handle=4711),
        desk.say(m.Read, 4711, 0, 100),
        desk.say(m.GetAttr, Ref(b"", None, 4711)),
        desk.say(m.Close, 4711),
        desk.say(m.Read, 4711, 0, 100),
    ]
    assert desk.session.proto.executing == seqs
    if limits is None:
        await eventually_async(lambda: opening.began)
        opening.go.set()
    replies = await desk.answers(*seqs)
    assert [type(reply) for reply in replies] == [m.OpenReply, m.DataReply, m.AttrReply, m.Done, m.Error]
    assert replies[0].handle == 4711
    assert replies[4].errno == "EBADF"
    assert desk.session.context is not None
    assert len(desk.session.context.handles) == 0
    assert not desk.session.gates
    await desk.close()


async def test_behind_an_opening_that_fails(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.root / "d").mkdir()
    opening = Stopper(monkeypatch, m.OpenDir)
    opening.go.set()
    seqs = [desk.say(m.OpenDir, Ref(b"no"), 4711), desk.say(m.ReadDir, 4711, 0, 10), desk.say(m.Close, 4711)]
    replies = await desk.answers(*seqs)
    assert [getattr(reply, "errno", "") for reply in replies] == ["ENOENT", "EBADF", ""]
    seqs = [desk.say(m.OpenDir, Ref(b"d"), 4711), desk.say(m.ReadDir, 4711, 0, 10)]
    assert type((await desk.answers(*seqs))[1]) is m.DirReply
    assert (await desk.ask(m.OpenDir, Ref(b"d"), 4711)).errno == "EEXIST"
    assert (await desk.ask(m.OpenDir, Ref(b"", None, 4711), 4711)).errno == "EEXIST"
    other = await desk.ask(m.OpenDir, Ref(b"", None, 4711), 4712)
    assert other.handle == 4712


async def test_a_number_is_free_again_behind_its_closing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.root / "f").write_bytes(b"content")
    first = (await desk.ask(m.Open, Ref(b"f"), os.O_RDONLY, handle=4711)).handle
    closing = Stopper(monkeypatch, m.Close)
    seqs = [
        desk.say(m.Close, first),
        desk.say(m.Open, Ref(b"f"), os.O_RDONLY, handle=4711),
        desk.say(m.Read, 4711, 0, 9),
    ]
    await eventually_async(lambda: closing.began)
    closing.go.set()
    assert [type(reply) for reply in await desk.answers(*seqs)] == [m.Done, m.OpenReply, m.DataReply]


async def test_what_was_closed_before_it_was_acknowledged_is_not_remembered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk.root / "f").touch()
    seq = desk.say(m.Open, Ref(b"f"), os.O_RDONLY, handle=4711)
    await desk.ask(m.Close, 4711)
    desk.acknowledge(seq)
    assert desk.session.known == set()
    seq = desk.say(m.Open, Ref(b"f"), os.O_RDONLY, handle=4712)
    closing = Stopper(monkeypatch, m.Close)
    other = desk.say(m.Close, 4712)
    await eventually_async(lambda: closing.began)
    desk.acknowledge(seq)
    closing.go.set()
    await desk.answer(other)
    assert desk.session.known == set()


# --- data that come with other replies


async def test_the_first_bytes_are_under_the_limit_of_bytes(tmp_path: Path) -> None:
    desk = Desk(tmp_path, limits=Limits(bytes_out=1000, refuse=True))
    (desk.root / "f").write_bytes(b"x" * 900)
    assert type(await desk.ask(m.Open, Ref(b"f"), os.O_RDONLY, handle=1, inline=900)) is m.OpenReply
    assert desk.data == b"x" * 900
    # It is open: to say that it is not would be to forget it. The data can be asked for.
    assert type(await desk.ask(m.Open, Ref(b"f"), os.O_RDONLY, handle=2, inline=900)) is m.OpenReply
    assert desk.data == b""
    assert (await desk.ask(m.Fetch, Ref(b"f"), 0, 900)).errno == "EBUSY"
    assert desk.session.context is not None
    assert desk.session.context.handles.ids() == [1, 2]
    await desk.close()


async def test_what_is_fetched_is_under_the_limit_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, limits=Limits(bytes_out=1000, refuse=True))
    (desk.root / "f").write_bytes(b"x" * 900)
    stopper = Stopper(monkeypatch, m.Fetch)
    stopper.go.set()
    assert type(await desk.ask(m.Fetch, Ref(b"f"), 0, 900)) is m.FetchReply
    assert desk.data == b"x" * 900
    assert (await desk.ask(m.Fetch, Ref(b"f"), 0, 900)).errno == "EBUSY"
    await desk.close()


# --- what nobody waits for


async def test_what_nobody_waits_for_comes_last(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for kind in (m.GetAttr, m.Fetch):
        real: Any = PLANS[kind].function

        def run(context: Any, request: Any, payload: Any, nowait: bool, real: Any = real) -> Any:
            order.append(type(request).__name__)
            return real(context, request, payload, nowait)

        monkeypatch.setitem(PLANS, kind, PLANS[kind]._replace(function=run))
    (desk.root / "f").write_bytes(b"content")
    later = m.Fetch(1, Ref(b"f"), 0, 10, True)
    desk.say_all(later, m.GetAttr(2, Ref(b"")), m.Fetch(3, Ref(b"f"), 0, 10), m.GetAttr(4, Ref(b"")))
    await desk.answers(1, 2, 3, 4)
    assert order == ["GetAttr", "Fetch", "GetAttr", "Fetch"]
    assert not desk.session.later


async def test_what_nobody_waits_for_leaves_workers_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, 4)
    listing = Stopper(monkeypatch, m.ListTree)
    desk.say_all(*[m.ListTree(n, [Ref(b"")], 100, 0, True) for n in (1, 2, 3)])
    await eventually_async(lambda: listing.began)
    desk.seq = 3
    assert type(await desk.ask(m.MkDir, Ref(b""), b"d", 0o700)) is m.AttrReply  # a worker does that
    assert listing.began == 1
    assert desk.session.behind == 1
    assert len(desk.session.later) == 2
    listing.go.set()
    await desk.answers(1, 2, 3)
    assert listing.began == 3
    assert desk.session.behind == 0
    await desk.close()


async def test_what_nobody_waits_for_can_be_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Stopper(monkeypatch, m.ListTree)
    desk.say_all(*[m.ListTree(n, [Ref(b"")], 100, 0, True) for n in (1, 2, 3)])
    await eventually_async(lambda: listing.began)
    desk.say_all(m.Cancel(3), m.Cancel(1), m.Cancel(77))
    assert (await desk.answer(3)).errno == "EINTR"
    assert desk.session.proto.executing == [1, 2]
    listing.go.set()
    assert [type(reply) for reply in await desk.answers(1, 2)] == [m.TreeReply, m.TreeReply]


async def test_what_a_limit_refuses_makes_room_for_the_next(tmp_path: Path) -> None:
    desk = Desk(tmp_path, limits=Limits(metadata=1, refuse=True))
    await desk.ask(m.GetAttr, Ref(b""))
    desk.say_all(*[m.ListTree(n, [Ref(b"")], 100, 0, True) for n in (2, 3, 4)])
    assert [reply.errno for reply in await desk.answers(2, 3, 4)] == ["EBUSY"] * 3
    assert desk.session.behind == 0
    await desk.close()


@pytest.mark.parametrize("bye", [True, False])
async def test_what_nobody_waits_for_ends_with_the_session(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, bye: bool
) -> None:
    listing = Stopper(monkeypatch, m.ListTree)
    desk.say_all(*[m.ListTree(n, [Ref(b"")], 100, 0, True) for n in (1, 2, 3)])
    await eventually_async(lambda: listing.began)
    if bye:
        desk.say_all(m.Bye())
        assert desk.ended == [desk.session]
    else:
        desk.session.ended = True
        desk.dispatcher.left(desk.session)
    assert not desk.session.later
    listing.go.set()
    await desk.pool.drained()
    assert listing.began == 1
    if not bye:
        desk.session = desk.open()


# --- leases that end while something is on its way


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("limits", [None, Limits(bytes_out=10, max_wait=30)])
async def test_an_answer_does_not_promise_what_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, limits: Limits | None
) -> None:
    desk = Desk(tmp_path, **({} if limits is None else {"limits": limits}))
    (desk.root / "f").write_bytes(b"x" * 12)

    def fetch(context: Context, request: m.Fetch, payload: Any, nowait: bool) -> Any:
        reply, data = files.fetch(context, request, payload, nowait)
        reply.lease = m.LEASE_SELF  # type: ignore[attr-defined]
        if ends and limits is None:
            desk.session.lease_ends += 1
        return reply, data

    monkeypatch.setitem(PLANS, m.Fetch, PLANS[m.Fetch]._replace(function=fetch, inline=limits is not None))
    seqs = [desk.say(m.Fetch, Ref(b"f"), 0, 12) for _ in range(2)]
    if limits is not None:
        assert desk.session.held  # the second one: it was executed on the loop, and is not answered yet
        desk.session.lease_ends += ends
    replies = await desk.answers(*seqs)
    assert replies[-1].lease == (0 if ends else m.LEASE_SELF)
    await desk.close()


async def test_bye_ends(desk: Desk) -> None:
    desk.dispatcher.receive(desk.session, desk.session.proto.receive(codec.encode_frame(m.Bye())))
    assert desk.ended == [desk.session]


def test_the_class_of_each_request() -> None:
    classes = {kind.__name__: plan.limit for kind, plan in PLANS.items()}
    assert {name for name, limit in classes.items() if limit == "read"} == {"Read", "Fetch"}
    assert {name for name, limit in classes.items() if limit == "delete"} == {"Unlink", "RmDir"}
    assert {name for name, limit in classes.items() if limit == "write"} == {
        "Write", "Fallocate", "CopyRange", "Fsync", "SyncFs"
    }  # fmt: skip
    assert {name for name, limit in classes.items() if not limit} == {"Close", "Reopen", "Stats"}
    assert classes["Rename"] == classes["Lookup"] == "metadata"


# --- changes

ROOT, DIR, FILE, OTHER = (Identity(1, number, 0) for number in (2, 3, 4, 5))


def attr(identity: Identity) -> Attr:
    return Attr(identity.dev, identity.ino, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, identity.btime)


def told(request: Any, reply: Any) -> list[tuple[Identity, bytes | None]]:
    return list(changes(request, reply, {10: FILE, 11: OTHER, 12: DIR}.get))


AT = Ref(b"d", DIR)
ENTRY = [(DIR, b"n"), (DIR, None)]


@pytest.mark.parametrize(
    ("request_", "reply", "expected"),
    [
        (m.Write(1, 10, 0), m.CountReply(1, 1), [(FILE, None)]),
        (m.Fallocate(1, 10, 0, 0, 1), m.Done(1), [(FILE, None)]),
        (m.CopyRange(1, 10, 0, 11, 0, 1), m.CountReply(1, 1), [(OTHER, None)]),
        (m.SetAttr(1, Ref(b"f")), m.AttrReply(1, attr(FILE)), [(FILE, None)]),
        (m.Open(1, Ref(b"f"), 512), m.OpenReply(1, 9, attr(FILE)), [(FILE, None)]),
        (m.SetXattr(1, Ref(b"", None, 10), b"user.x", b""), m.Done(1), [(FILE, None)]),
        (m.RemoveXattr(1, Ref(b"f", OTHER), b"user.x"), m.Done(1), [(OTHER, None)]),
        (m.Create(1, AT, b"n", 0, 0), m.OpenReply(1, 9, attr(FILE)), [*ENTRY, (FILE, None)]),
        (m.Link(1, Ref(b"f"), AT, b"n"), m.AttrReply(1, attr(FILE)), [*ENTRY, (FILE, None)]),
        (m.MkDir(1, Ref(b"", None, 12), b"n", 0), m.AttrReply(1, attr(FILE)), ENTRY),
        (m.MkNod(1, AT, b"n", 0), m.AttrReply(1, attr(FILE)), ENTRY),
        (m.SymLink(1, AT, b"n", b"t"), m.AttrReply(1, attr(FILE)), ENTRY),
        (m.Unlink(1, AT, b"n"), m.RemovedReply(1, attr(FILE)), [*ENTRY, (FILE, None)]),
        (m.RmDir(1, AT, b"n"), m.RemovedReply(1), ENTRY),
        (
            m.Rename(1, AT, b"n", Ref(b"", ROOT), b"m"),
            m.RemovedReply(1, None, 0, attr(FILE)),
            [*ENTRY, (ROOT, b"m"), (ROOT, None), (FILE, None)],
        ),
        (m.TmpFile(1, AT, 0, 0), m.OpenReply(1, 9, attr(FILE)), []),
    ],
)
def test_what_changed(request_: Any, reply: Any, expected: list[Any]) -> None:
    assert told(request_, reply) == expected


def test_what_cannot_be_told() -> None:
    with pytest.raises(Unknown):
        told(m.Write(1, 99, 0), m.CountReply(1, 1))
    with pytest.raises(Unknown):
        told(m.MkDir(1, Ref(b"d"), b"n", 0), m.AttrReply(1, attr(FILE)))


def test_pending_changes_are_merged_and_bounded() -> None:
    pending = Pending()
    assert not pending
    assert pending.take() == []
    pending.add([(FILE, None), (FILE, None), (DIR, b"n")])
    pending.add([(FILE, None)])
    assert pending
    assert pending.take() == [Changed([Change(FILE), Change(DIR, b"n")])]
    pending.add([(Identity(1, n, 0), None) for n in range(PER_MESSAGE + 1)])
    assert [len(message.changes) for message in pending.take() if isinstance(message, Changed)] == [
        PER_MESSAGE,
        1,
    ]
    pending.add([(Identity(1, n, 0), None) for n in range(PENDING + 1)])
    pending.add([(FILE, None)])
    assert pending.take() == [InvalidateAll("too many changes at once")]
    assert not pending


# --- workers


@pytest.fixture
async def pool() -> Any:
    turns: list[int] = []
    pool = WorkerPool(3, lambda: turns.append(1))
    yield pool
    assert pool.stop(10)
    assert turns


async def test_results_come_back_on_the_loop(pool: WorkerPool) -> None:
    here = threading.get_ident()
    results: list[int] = []
    for number in range(200):
        pool.submit(lambda number=number: (number, threading.get_ident()), lambda r: (  # type: ignore[misc]
            results.append(r[0]), pytest.fail("on the loop") if r[1] == here else None,
            pytest.fail("in a thread") if threading.get_ident() != here else None,
        ))  # fmt: skip
    assert pool.busy == 200
    await asyncio.wait_for(pool.drained(), 20)
    assert sorted(results) == list(range(200))
    await pool.drained()


async def test_jobs_run_at_the_same_time(pool: WorkerPool) -> None:
    meeting = threading.Barrier(3)
    for _ in range(3):
        pool.submit(lambda: meeting.wait(20), lambda _: None)
    await asyncio.wait_for(pool.drained(), 20)


async def test_a_delivery_that_fails_is_logged_and_does_not_stop_others(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no")

    done: list[int] = []
    pool.submit(lambda: 1, fail)
    pool.submit(lambda: 2, done.append)
    await asyncio.wait_for(pool.drained(), 20)
    assert done == [2]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_thread_that_finishes_after_the_loop_is_no_error() -> None:
    go = threading.Event()

    async def run() -> WorkerPool:
        pool = WorkerPool(1)
        pool.submit(lambda: go.wait(20), lambda _: None)
        assert not pool.stop(0)
        return pool

    pool = asyncio.run(run())
    go.set()
    for thread in pool._threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def no_stray_threads() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before

"""The order in which requests run, who is told of a change, and the worker threads."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jupyter_wsfuse.engine.changes import PENDING, PER_MESSAGE, Pending, Unknown, changes
from jupyter_wsfuse.engine.dispatcher import PLANS
from jupyter_wsfuse.engine.gates import Gate
from jupyter_wsfuse.engine.workers import WorkerPool
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Attr, Change, Changed, Identity, InvalidateAll, Ref

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
        assert plan.function is not None or kind in (m.SetLock, m.GetLock)
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

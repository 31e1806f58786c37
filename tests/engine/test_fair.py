"""Whose turn it is: queues, slices of the event loop, workers, and what a flood leaves of an engine to others."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_wsfuse.engine.fair import (
    BLOCKED,
    LONG_SLICE,
    RECENT,
    SLICE,
    Crew,
    FairQueue,
    Presence,
    TenantQueue,
    Turns,
)
from jupyter_wsfuse.engine.workers import WorkerPool
from tests.helpers.waiting import eventually_async

# --- queues


def serve(queue: FairQueue[Any], count: int, cost: dict[str, float]) -> Counter[str]:
    """Take *count* items, each named after its flow, which pays its *cost* for it."""
    served: Counter[str] = Counter()
    for _ in range(count):
        key = queue.pop()
        assert key is not None
        queue.charge(key, cost[key])
        served[key] += 1
    return served


def test_a_flow_is_first_in_first_out() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5):
        queue.push("a", number)
    assert len(queue) == 5
    assert [queue.pop() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    assert not queue


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 4), (0.5, 0.05, 3)])
def test_what_flows_pay_is_in_proportion_to_their_weights(weights: tuple[float, ...]) -> None:
    queue: FairQueue[str] = FairQueue()
    cost = {"a": 1.0, "b": 0.25, "c": 3.0}
    for key, weight in zip(cost, weights, strict=True):
        for _ in range(20000):
            queue.push(key, key, weight)
    served = serve(queue, 5000, cost)
    paid = {key: served[key] * cost[key] for key in cost}
    for key, weight in zip(cost, weights, strict=True):
        expected = sum(paid.values()) * weight / sum(weights)
        assert abs(paid[key] - expected) <= 3 * (1 + max(weights)), (key, paid)


def test_who_comes_waits_for_one_round_only() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(1000):
        queue.push("noisy", "noisy")
    serve(queue, 500, {"noisy": 1.0})
    queue.push("quiet", "quiet")
    assert "quiet" in serve(queue, 3, {"noisy": 1.0, "quiet": 1.0})


def test_debts_outlive_an_empty_flow_and_savings_do_not() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", "a")
    assert queue.pop() == "a"
    queue.charge("a", 5)
    for key in "ab":
        for _ in range(20):
            queue.push(key, key)
    served = serve(queue, 6, {"a": 1.0, "b": 1.0})
    assert served["b"] >= 5
    queue = FairQueue(10)
    queue.push("a", "a")
    assert queue.pop() == "a"  # it had a quantum of 10 and used nothing of it
    for key in "ab":
        for _ in range(40):
            queue.push(key, key)
    served = serve(queue, 40, {"a": 1.0, "b": 1.0})
    assert served["a"] == served["b"] == 20


def test_who_may_not_is_passed_over_and_keeps_its_place() -> None:
    queue: FairQueue[str] = FairQueue()
    for key in "abc":
        queue.push(key, key)
    assert queue.pop(lambda key: key == "c") == "c"
    assert queue.pop(lambda key: False) is None
    assert queue.waits("a")
    assert not queue.waits("c")
    assert {queue.pop(), queue.pop()} == {"a", "b"}


def test_a_dropped_flow_is_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push("a", 1)
    queue.push("b", 2)
    queue.push("a", 3)
    assert queue.drop("a") == [1, 3]
    assert queue.drop("a") == []
    assert len(queue) == 1
    assert queue.pop() == 2
    queue.charge("a", 1)


def test_tenants_first_then_their_sessions() -> None:
    queue: TenantQueue[tuple[str, str]] = TenantQueue()
    for key in [("x", "1"), ("x", "2"), ("x", "3"), ("y", "1")]:
        for _ in range(200):
            queue.push(key, key)
    served: Counter[tuple[str, str]] = Counter()
    for _ in range(240):
        key = queue.pop()
        assert key is not None
        queue.charge(key, 1.0)
        served[key] += 1
    assert abs(served["y", "1"] - 120) <= 2
    assert all(abs(served["x", session] - 40) <= 2 for session in "123")


def test_of_a_tenant_whose_sessions_may_not_nothing_is_taken() -> None:
    queue: TenantQueue[str] = TenantQueue()
    queue.push(("x", "1"), "x1")
    queue.push(("x", "2"), "x2")
    queue.push(("y", "1"), "y1")
    assert queue.pop(None, lambda session: session == "2") == "x2"
    assert queue.pop(lambda tenant: tenant == "x", lambda session: session == "2") is None
    assert queue.drop(("x", "1")) == ["x1"]
    assert queue.drop(("z", "1")) == []
    queue.forget("x")
    queue.forget("y")  # something waits there: stays
    assert len(queue) == 1
    assert queue.pop() == "y1"


def test_tenant_queue_against_a_list() -> None:
    rng = random.Random(5)
    queue: TenantQueue[int] = TenantQueue()
    inside: dict[int, tuple[str, str]] = {}
    for number in range(5000):
        key = (rng.choice("ab"), rng.choice("123"))
        kind = rng.random()
        if kind < 0.5:
            queue.push(key, number, rng.choice([0.5, 1, 3]))
            inside[number] = key
        elif kind < 0.98:
            may, may_session = rng.choice(["a", "b", "ab"]), rng.choice(["1", "12", "123"])
            taken = queue.pop(may.__contains__, may_session.__contains__)
            able = [n for n, (t, s) in inside.items() if t in may and s in may_session]
            if taken is None:
                assert not able
            else:
                mine = inside[taken]
                assert taken == min(n for n in able if inside[n] == mine)
                del inside[taken]
                queue.charge(mine, rng.random() * 3)
        else:
            assert queue.drop(key) == [n for n, k in inside.items() if k == key]
            inside = {n: k for n, k in inside.items() if k != key}
        assert len(queue) == len(inside)


def test_who_is_there() -> None:
    now = 0
    said: list[bool] = []
    presence = Presence(said.append, clock=lambda: now)
    assert presence.slice == 0
    presence.entered("a")
    presence.seen("a")
    assert (presence.slice, presence.shared, presence.crowded) == (0, False, False)
    presence.entered("a")
    assert presence.slice == LONG_SLICE
    presence.entered("b")
    presence.seen("a")
    assert (presence.slice, presence.shared, presence.crowded) == (LONG_SLICE, True, False)
    presence.seen("b")
    assert (presence.slice, presence.crowded, said) == (SLICE, True, [True])
    now += RECENT - 1
    presence.seen("b")
    assert presence.crowded
    now += 1
    presence.seen("b")
    assert (presence.slice, presence.crowded, said) == (LONG_SLICE, False, [True, False])
    presence.seen("a")
    assert presence.crowded
    assert not presence.left("a")
    assert presence.left("b")
    assert (presence.slice, said) == (0, [True, False, True, False])
    assert presence.left("a")
    assert len(said) == 4


def presence_of(*sessions: Sitting, busy: bool = True) -> Presence:
    """All of these are there, and have just done something if *busy*."""
    presence = Presence()
    for session in sessions:
        presence.entered(session.workspace.tenant.name)
    for session in sessions if busy else ():
        presence.seen(session.workspace.tenant.name)
    return presence


# --- the event loop and the workers


class Sitting:
    """What the two know of a session."""

    def __init__(self, tenant: str, weight: float = 1.0) -> None:
        self.workspace = SimpleNamespace(tenant=SimpleNamespace(name=tenant, weight=weight))
        self.paused = False
        self.todo = 0
        self.done = 0


class Loop:
    """Time that passes by 20 us for each step of what a session has to do."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[Sitting] = []

    def clock(self) -> int:
        return self.now

    def run(self, session: Any, until: int) -> bool:
        while session.todo and not (until and self.now >= until):
            self.now += 20_000
            session.todo -= 1
            session.done += 1
        self.log.append(session)
        return bool(session.todo)

    def turns(self, presence: Presence) -> Turns:
        return Turns(presence, self.run, clock=self.clock)


async def test_one_tenant_has_the_loop_for_as_long_as_it_wants() -> None:
    presence = Presence()
    one = Sitting("a")
    presence.entered("a")
    loop = Loop()
    log, turns = loop.log, loop.turns(presence)
    one.todo = 200
    turns.add(one)  # type: ignore[arg-type]
    assert one.todo == 0
    assert log == [one]


async def test_a_flood_is_cut_into_slices_that_others_come_between() -> None:
    noisy, also_noisy, quiet = Sitting("a"), Sitting("a"), Sitting("b")
    presence = presence_of(noisy, also_noisy, quiet)
    loop = Loop()
    log, turns = loop.log, loop.turns(presence)
    noisy.todo = also_noisy.todo = 2000
    turns.add(noisy)  # type: ignore[arg-type]
    turns.add(also_noisy)  # type: ignore[arg-type]
    assert log == [noisy]  # the tenant has had its slice
    for _ in range(50):
        quiet.todo = 1
        turns.add(quiet)  # type: ignore[arg-type]
        assert quiet.todo == 0  # at once: it had nothing before
        before = len(log)
        await asyncio.sleep(0)
        assert len(log) <= before + 1  # one slice, and the loop looks for what is new
    assert noisy.todo
    assert noisy.todo < 2000 > also_noisy.todo  # both have been served
    turns.drop(noisy, False)  # type: ignore[arg-type]
    left = noisy.todo
    await eventually_async(lambda: also_noisy.todo == 0)
    assert noisy.todo == left


async def test_busy_tenants_have_the_loop_by_their_weights() -> None:
    heavy, light = Sitting("a", 3.0), Sitting("b", 1.0)
    presence = presence_of(heavy, light)
    turns = Loop().turns(presence)
    heavy.todo = light.todo = 10**9
    turns.add(heavy)  # type: ignore[arg-type]
    turns.add(light)  # type: ignore[arg-type]
    await eventually_async(lambda: light.done > 1000)
    assert 2.5 < heavy.done / light.done < 3.5
    turns.drop(heavy, True)  # type: ignore[arg-type]
    turns.drop(light, True)  # type: ignore[arg-type]


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(4)
    yield pool
    assert pool.stop(10)


class Holder:
    """Jobs that stay at work until they are let go one by one."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.at_work: list[Sitting | None] = []
        self.done: list[Sitting | None] = []
        self.go = threading.Semaphore(0)

    def submit(self, session: Sitting | None, tenant: str = "", *, blocked: bool = True) -> None:
        def work() -> None:
            self.at_work.append(session)
            if blocked:
                assert self.go.acquire(timeout=20)

        name = session.workspace.tenant.name if session is not None else tenant
        weight = session.workspace.tenant.weight if session is not None else 1.0
        self.crew.submit(name, weight, session, work, lambda _: self.done.append(session))  # type: ignore[arg-type]

    def release(self, count: int) -> None:
        self.go.release(count)


async def test_no_session_has_all_the_workers(pool: WorkerPool) -> None:
    presence = Presence()
    presence.entered("a")
    presence.entered("a")
    holder = Holder(Crew(pool, presence))
    one, other = Sitting("a"), Sitting("a")
    for _ in range(6):
        holder.submit(one)
    await eventually_async(lambda: len(holder.at_work) == 3)
    holder.submit(other)
    await eventually_async(lambda: len(holder.at_work) == 4)
    assert Counter(map(id, holder.at_work)) == {id(one): 3, id(other): 1}
    holder.release(7)
    await eventually_async(lambda: len(holder.done) == 7)


@pytest.mark.parametrize("busy", [True, False])
async def test_no_tenant_has_all_the_workers_while_another_is_there(pool: WorkerPool, busy: bool) -> None:
    sessions = [Sitting("a") for _ in range(3)]
    quiet = Sitting("b")
    presence = presence_of(*sessions, quiet, busy=busy)
    holder = Holder(Crew(pool, presence, processors=1))
    for session in sessions * 3:
        holder.submit(session)
    # Its jobs seem to wait for a disk after a while, and leave the processors to more of them; never to all.
    await eventually_async(lambda: len(holder.at_work) == 3)
    holder.submit(quiet)
    await eventually_async(lambda: len(holder.at_work) == 4)
    assert holder.at_work[3] is quiet
    holder.release(10)
    await eventually_async(lambda: len(holder.done) == 10)


async def test_who_is_alone_has_all_of_them(pool: WorkerPool) -> None:
    presence = Presence()
    sessions = [Sitting("a") for _ in range(3)]
    for _ in sessions:
        presence.entered("a")
    holder = Holder(Crew(pool, presence, processors=1))
    for session in sessions * 2:
        holder.submit(session)
    await eventually_async(lambda: len(holder.at_work) == 4)
    holder.release(6)
    await eventually_async(lambda: len(holder.done) == 6)


async def test_jobs_that_use_a_processor_leave_one_to_others(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyter_wsfuse.engine.fair.BLOCKED", 3600 * 10**9)  # nothing ever seems to wait
    noisy, quiet = Sitting("a"), Sitting("b")
    presence = presence_of(noisy, quiet)
    crew = Crew(pool, presence, processors=1)
    holder = Holder(crew)
    for _ in range(3):
        holder.submit(noisy)
    holder.submit(quiet)
    await eventually_async(lambda: len(holder.at_work) == 2)
    assert set(map(id, holder.at_work)) == {id(noisy), id(quiet)}
    assert presence.left("b")
    crew.feed()
    await eventually_async(lambda: len(holder.at_work) == 4)
    holder.release(4)
    await eventually_async(lambda: len(holder.done) == 4)
    assert BLOCKED < 10**9


async def test_workers_are_divided_by_weight(pool: WorkerPool) -> None:
    heavy, light = Sitting("a", 3.0), Sitting("b", 1.0)
    presence = presence_of(heavy, light)
    crew = Crew(pool, presence, processors=4)
    holder = Holder(crew)
    stopper = Sitting("c")
    presence.entered("c")
    for _ in range(3):
        holder.submit(stopper)
    holder.submit(None, "d")
    await eventually_async(lambda: len(holder.at_work) == 4)
    for _ in range(80):
        holder.submit(heavy, blocked=False)
        holder.submit(light, blocked=False)
    holder.release(1)
    await eventually_async(lambda: len(holder.at_work) == 164)
    first = Counter(map(id, holder.at_work[4:84]))
    assert 45 <= first[id(heavy)] <= 75
    holder.release(3)
    await eventually_async(lambda: len(holder.done) == 164)


async def test_what_a_session_waits_for_a_worker_with(pool: WorkerPool) -> None:
    presence = Presence()
    for tenant in "ab":
        presence.entered(tenant)
    crew = Crew(pool, presence, processors=4)
    holder = Holder(crew)
    ended, slow = Sitting("a"), Sitting("b")
    for _ in range(5):
        holder.submit(ended)
    await eventually_async(lambda: len(holder.at_work) == 3)
    assert len(crew.drop(ended, True)) == 2  # type: ignore[arg-type]
    slow.paused = True
    holder.submit(slow)
    holder.release(3)
    await eventually_async(lambda: len(holder.done) == 3)
    assert holder.at_work == [ended] * 3  # nothing for who does not read
    slow.paused = False
    crew.feed()
    holder.release(1)
    await eventually_async(lambda: holder.done[3:] == [slow])

"""Weighted fair service: whose turn it is when several tenants, and several sessions of one, want the same thing.

Three things are shared by all that an engine serves. The *event loop* is taken in slices (:class:`Turns`): a session
with much to do gives it back after a moment, so that who asks for little is answered before. The *workers* are
handed out job by job (:class:`Crew`). What a tenant's rate limit lets through is divided among its sessions
(:mod:`.limiter`). Each time the next one is found by deficit round robin (:class:`FairQueue`).

A tenant that is alone pays nothing for this: it has the loop for as long as it wants and all the workers. One whose
neighbours are idle pays little: it looks up once in a millisecond.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Hashable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from .workers import Then, WorkerPool

if TYPE_CHECKING:
    from .session import Session

T = TypeVar("T")

#: Nanoseconds of the event loop that a session takes at a time while another tenant does something, and while there
#: are other sessions that might.
SLICE: Final = 150_000
LONG_SLICE: Final = 1_000_000
#: Nanoseconds for which a tenant that has done something counts as doing something.
RECENT: Final = 1_000_000_000
#: The smallest weight that makes a difference: it bounds the rounds until a flow has paid for one item.
LEAST_WEIGHT: Final = 0.01
#: Nanoseconds after which a job counts as waiting for a disk, not as using a processor.
BLOCKED: Final = 2_000_000
#: Bytes of file data that make a job as expensive as one more without any.
BYTES_PER_JOB: Final = 1 << 16


class _Flow:
    """``items``: what waits. ``listed``: it is in the ring, for as long as it has items and until somebody looks after
    that, so that one that is given back what was just taken goes on. ``turn``: it has got its quantum for it."""

    __slots__ = ("balance", "items", "listed", "turn", "weight")

    def __init__(self, items: Any) -> None:
        self.balance = 0.0
        self.items = items
        self.listed = False
        self.turn = False
        self.weight = 1.0


class FairQueue(Generic[T]):
    """Items of several flows, each flow first in, first out, taken by deficit round robin.

    A flow whose turn it is gets *quantum* times its weight, and is served while its balance is positive. It pays
    afterwards (:meth:`charge`), so that a cost need not be known before. Debts are remembered while the flow is
    empty, savings are not.
    """

    def __init__(self, quantum: float = 1.0) -> None:
        self._quantum = quantum
        self._flows: dict[Any, _Flow] = {}
        self._ring: deque[tuple[Any, _Flow]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, key: Hashable, item: T, weight: float = 1.0) -> None:
        """*item* is the last of the flow *key*."""
        self._enter(key, weight).items.append(item)

    def _enter(self, key: Hashable, weight: float) -> _Flow:
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(self._empty())
        flow.weight = weight if weight > LEAST_WEIGHT else LEAST_WEIGHT
        if not flow.listed:
            flow.listed = True
            self._ring.append((key, flow))
        self._count += 1
        return flow

    def _empty(self) -> Any:
        return deque()

    def pop(self, may: Callable[[Any], bool] | None = None) -> T | None:
        """The next item of those flows that *may* be served now; None if there is none."""
        return self._pop(may, lambda items: items.popleft())

    def _pop(self, may: Callable[[Any], bool] | None, take: Callable[[Any], T | None]) -> T | None:
        ring = self._ring
        skipped = 0  # flows in a row that were not able to be served
        while skipped < len(ring):
            key, flow = ring[0]
            if not flow.items:
                ring.popleft()
                flow.listed = flow.turn = False
                flow.balance = min(flow.balance, 0.0)
                continue
            if may is None or may(key):
                if not flow.turn:
                    flow.turn = True
                    quantum = self._quantum * flow.weight
                    flow.balance = min(flow.balance + quantum, quantum)
                if flow.balance <= 0:
                    flow.turn = False
                    skipped = 0
                    ring.rotate(-1)
                    continue
                item = take(flow.items)
                if item is not None:
                    self._count -= 1
                    return item
            skipped += 1
            ring.rotate(-1)
        return None

    def charge(self, key: Hashable, cost: float) -> None:
        """The flow *key* pays for what it got."""
        flow = self._flows.get(key)
        if flow is not None:
            flow.balance -= cost

    def waits(self, key: Hashable) -> bool:
        """Whether there is an item of the flow *key*."""
        flow = self._flows.get(key)
        return flow is not None and bool(flow.items)

    def drop(self, key: Hashable) -> list[T]:
        """Forget the flow *key*; returns its items."""
        flow = self._flows.pop(key, None)
        if flow is None:
            return []
        if flow.listed:
            self._ring.remove((key, flow))
        self._count -= len(flow.items)
        return list(flow.items)


class TenantQueue(FairQueue[T]):
    """Fair among tenants by their weight, and in each of them among its sessions. A key is ``(tenant, session)``."""

    def push(self, key: Any, item: T, weight: float = 1.0) -> None:
        """*item* is the last of its session; *weight* is the tenant's."""
        self._enter(key[0], weight).items.push(key[1], item)

    def _empty(self) -> Any:
        return FairQueue(self._quantum)

    def pop(
        self, may: Callable[[Any], bool] | None = None, may_session: Callable[[Any], bool] | None = None
    ) -> T | None:
        """The next item of a tenant and a session that may be served now; None if there is none."""
        return self._pop(may, lambda items: items.pop(may_session))

    def charge(self, key: Any, cost: float) -> None:
        flow = self._flows.get(key[0])
        if flow is not None:
            flow.balance -= cost
            flow.items.charge(key[1], cost)

    def drop(self, key: Any) -> list[T]:
        """Forget a session; returns its items."""
        flow = self._flows.get(key[0])
        if flow is None:
            return []
        items: list[T] = flow.items.drop(key[1])
        self._count -= len(items)
        return items

    def forget(self, tenant: str) -> None:
        """The last session of *tenant* was dropped."""
        flow = self._flows.get(tenant)
        if flow is not None and not flow.items:
            del self._flows[tenant]
            if flow.listed:
                self._ring.remove((tenant, flow))


class Presence:
    """Which tenants have sessions, and which of them have done something lately: who is alone need not share.
    *changed* is told when it becomes crowded, and when that is over."""

    def __init__(
        self,
        changed: Callable[[bool], None] = lambda crowded: None,
        *,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        #: More than one tenant does something.
        self.crowded = False
        self._sessions: dict[str, int] = {}
        self._changed = changed
        self._clock = clock
        self._last = ""
        self._until = 0

    def entered(self, tenant: str) -> None:
        self._sessions[tenant] = self._sessions.get(tenant, 0) + 1

    def left(self, tenant: str) -> bool:
        """Whether that was the last one of *tenant*."""
        self._sessions[tenant] -= 1
        if self._sessions[tenant]:
            return False
        del self._sessions[tenant]
        if not self.shared:
            self._until = 0
            self._set(False)
        return True

    def seen(self, tenant: str) -> None:
        """*tenant* has asked for something."""
        if tenant != self._last:
            if self._last in self._sessions:
                self._until = self._clock() + RECENT
                self._set(True)
            self._last = tenant
        elif self.crowded and self._clock() >= self._until:
            self._set(False)

    def _set(self, crowded: bool) -> None:
        if crowded != self.crowded:
            self.crowded = crowded
            self._changed(crowded)

    @property
    def shared(self) -> bool:
        """Whether there are sessions of more than one tenant."""
        return len(self._sessions) > 1

    @property
    def slice(self) -> int:
        """Nanoseconds of the event loop that a session may use at a time; 0: no bound."""
        if self.crowded:
            return SLICE
        if len(self._sessions) > 1:
            return LONG_SLICE
        for count in self._sessions.values():
            return LONG_SLICE if count > 1 else 0
        return 0


class Turns:
    """Divides the event loop. *run(session, until)* does what the session has to do, up to the time *until*
    (``perf_counter_ns``; 0: no bound), and says whether there is more.
    """

    def __init__(
        self,
        presence: Presence,
        run: Callable[[Session, int], bool],
        *,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        self._presence = presence
        self._run = run
        self._clock = clock
        self._queue: TenantQueue[Session] = TenantQueue(SLICE)
        self._queued: set[Session] = set()
        #: Nanoseconds that tenants have used since the loop last looked for something new.
        self._used: dict[str, int] = {}
        self._turning = False

    def add(self, session: Session) -> None:
        """*session* has something to do: at once if its tenant has not had the loop just now, else in its turn."""
        if session in self._queued:
            return
        tenant = session.workspace.tenant
        self._presence.seen(tenant.name)
        bound = self._presence.slice
        if not bound:
            more = self._run(session, 0)
        elif self._presence.crowded:
            left = bound - self._used.get(tenant.name, 0)
            more = left <= 0 or self._queue.waits(tenant.name) or self._slice(session, left)
        else:
            more = self._slice(session, bound)
        if more and session not in self._queued:
            self._queued.add(session)
            self._queue.push((tenant.name, session), session, tenant.weight)
        if (self._used or self._queue) and not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _slice(self, session: Session, length: int) -> bool:
        name = session.workspace.tenant.name
        began = self._clock()
        more = self._run(session, began + length)
        used = self._clock() - began
        self._used[name] = self._used.get(name, 0) + used
        self._queue.charge((name, session), used)
        return more

    def _turn(self) -> None:
        """Once in a turn of the loop: one slice for one session. Before the next one, the loop reads what came."""
        self._turning = False
        self._used.clear()
        session = self._queue.pop()
        if session is not None:
            self._queued.discard(session)
            if self._slice(session, self._presence.slice or LONG_SLICE):
                tenant = session.workspace.tenant
                self._queued.add(session)
                self._queue.push((tenant.name, session), session, tenant.weight)
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def drop(self, session: Session, last: bool) -> None:
        """*session* has ended; *last* of its tenant."""
        name = session.workspace.tenant.name
        self._queue.drop((name, session))
        self._queued.discard(session)
        if last:
            self._queue.forget(name)


class _Working:
    """A tenant's jobs at work. ``fresh``: those that began a moment ago, in this order, each with its time."""

    __slots__ = ("active", "fresh")

    def __init__(self) -> None:
        self.active = 0
        self.fresh: dict[int, int] = {}


class _Job(NamedTuple):
    tenant: str
    session: Session | None
    work: Callable[[], Any]
    then: Then
    cost: float


class Crew:
    """Hands out the workers of *pool*: job by job, fair among tenants, and among the sessions of each.

    No session has more than three quarters of the workers at a time, and no tenant if there is another one. While
    others do something, a tenant's jobs also leave them a processor: no more of its jobs run at once than *processors*
    (default: all but one), except beside those that have been at it for so long that they have to be waiting for a
    disk.
    """

    def __init__(self, pool: WorkerPool, presence: Presence, processors: int = 0) -> None:
        self.pool = pool
        self._presence = presence
        self._share = max(1, pool.size * 3 // 4)
        self._processors = processors or max(1, len(os.sched_getaffinity(0)) - 1)
        self._queue: TenantQueue[_Job] = TenantQueue(4.0)
        self._tenants: dict[str, _Working] = {}
        self._sessions: dict[Session | None, int] = {}  # jobs at work
        self._numbers = 0
        self._too_fresh = False
        self._timer: asyncio.TimerHandle | None = None

    def submit(
        self,
        tenant: str,
        weight: float,
        session: Session | None,
        work: Callable[[], Any],
        then: Then,
        size: int = 0,
    ) -> None:
        """Run *work*, which moves *size* bytes, in a worker when it is its turn, then *then* on the loop with what
        it returned. *work* must not raise. *session* None: on behalf of the tenant, whoever of it is there."""
        job = _Job(tenant, session, work, then, 1.0 + size / BYTES_PER_JOB)
        if not self._queue and self._may(tenant) and self._may_session(session):
            self._start(job)
        else:
            self._queue.push((tenant, session), job, weight)
            self.feed()

    def _may(self, tenant: str) -> bool:
        pool = self.pool
        if pool.busy >= pool.size:
            return False
        working = self._tenants.get(tenant)
        if working is None or not self._presence.shared:
            return True
        if working.active >= self._share:
            return False
        if not self._presence.crowded:
            return True
        fresh = working.fresh
        if len(fresh) < self._processors:
            return True
        since = perf_counter_ns() - BLOCKED
        for number, began in list(fresh.items()):
            if began > since:
                break
            del fresh[number]
        if len(fresh) < self._processors:
            return True
        self._too_fresh = True
        return False

    def _may_session(self, session: Session | None) -> bool:
        if session is None:
            return True
        return self._sessions.get(session, 0) < self._share and not session.paused

    def _start(self, job: _Job) -> None:
        tenant, session, _, then, cost = job
        working = self._tenants.get(tenant)
        if working is None:
            working = self._tenants[tenant] = _Working()
        self._numbers = number = self._numbers + 1
        working.active += 1
        working.fresh[number] = perf_counter_ns()
        self._sessions[session] = self._sessions.get(session, 0) + 1
        self._queue.charge((tenant, session), cost)

        def done(result: Any) -> None:
            working.active -= 1
            working.fresh.pop(number, None)
            if not working.active:
                del self._tenants[tenant]
            left = self._sessions[session] - 1
            if left:
                self._sessions[session] = left
            else:
                del self._sessions[session]
            try:
                then(result)
            finally:
                if self._queue:
                    self.feed()

        self.pool.submit(job.work, done)

    def feed(self) -> None:
        """Start what may be started. Call when a session reads again."""
        self._too_fresh = False
        while (job := self._queue.pop(self._may, self._may_session)) is not None:
            self._start(job)
        if self._too_fresh and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BLOCKED / 1e9, self._aged)

    def _aged(self) -> None:
        self._timer = None
        self.feed()

    def drop(self, session: Session, last: bool) -> list[Then]:
        """*session* has ended, *last* of its tenant: what it waits for a worker with is not done. Returns who would
        have been told of it."""
        name = session.workspace.tenant.name
        jobs = self._queue.drop((name, session))
        if last:
            self._queue.forget(name)
        return [job.then for job in jobs]

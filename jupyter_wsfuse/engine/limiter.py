"""Rate limits: how much of what a tenant, a token and a session may do, and what happens to who wants more.

A :class:`Limiter` has a leaky bucket (aiolimiter) for each class of operations and each direction of file data
that is limited, a count of requests at work, and a count of open files. Limiters form a chain: what passes a
session's passes its token's and its tenant's as well. A request over a limit is held back until there is room, in
its turn among its session's own requests, and its session in turn with the tenant's others; after ``max_wait``
seconds, or at once if the limit says ``refuse``, it is refused with ``EBUSY``.

Buckets hold what may be used in one second, so a burst of that much passes at once; on the long run the rate is
exact. An amount of bytes above that is let through when the bucket has room for as much as it holds, and the rest
is owed: nothing else passes until it has leaked out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from aiolimiter import AsyncLimiter

from ..errors import RefusedError, os_error
from .fair import BYTES_PER_JOB, FairQueue
from .tenants import Limits

if TYPE_CHECKING:
    from .session import Session

_LOG = logging.getLogger(__name__)

#: The part of a bucket that is taken ahead, so that most requests cost one subtraction.
AHEAD: Final = 0.01
#: Classes of operations, and what one of them is called.
OPERATIONS: Final = {
    "metadata": "metadata operations",
    "read": "read operations",
    "write": "write operations",
    "delete": "delete operations",
}
BYTES: Final = {"bytes_in": "bytes written", "bytes_out": "bytes read"}
RATES: Final = {**OPERATIONS, **BYTES}


class Counters:
    """What has happened at one limit. ``waited`` in nanoseconds, of those that were let through or refused."""

    __slots__ = ("allowed", "delayed", "refused", "waited")

    def __init__(self) -> None:
        self.allowed = 0
        self.delayed = 0
        self.refused = 0
        self.waited = 0

    def add(self, other: Counters) -> None:
        self.allowed += other.allowed
        self.delayed += other.delayed
        self.refused += other.refused
        self.waited += other.waited

    def describe(self) -> dict[str, Any]:
        """For JSON; ``waited`` in seconds."""
        return {
            "allowed": self.allowed,
            "delayed": self.delayed,
            "refused": self.refused,
            "waited": round(self.waited / 1e9, 6),
        }


class Held:
    """A request on its way through the limits that hold for it.

    *admitted* or *refused* is called once, later, unless :meth:`drop` was before. ``waited``: for how long in all
    it was held back, nanoseconds.
    """

    __slots__ = ("_admitted", "_at", "_refused", "_since", "_stages", "_timer", "done", "session", "waited")

    def __init__(
        self,
        session: Session,
        stages: list[tuple[Stage, float]],
        admitted: Callable[[], None],
        refused: Callable[[OSError], None],
        at: int = 0,
        waited: int = 0,
    ) -> None:
        self.session = session
        self.waited = waited
        self.done = False
        self._stages = stages
        self._at = at
        self._admitted = admitted
        self._refused = refused
        self._since = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def amount(self) -> float:
        return self._stages[self._at][1]

    @property
    def name(self) -> str:
        """The class of the limit at which it waits."""
        return self._stages[self._at][0].name

    @property
    def patience(self) -> float:
        """Seconds that it may be held back yet, at most."""
        limits = self._stages[self._at][0].limits
        waited = self.waited + perf_counter_ns() - self._since
        return max(0.0, limits.max_wait - waited / 1e9)

    def go(self) -> bool:
        """Take what is there at once. True: nothing is in the way, and *admitted* is not called."""
        while self._at < len(self._stages):
            stage, amount = self._stages[self._at]
            if not stage.take(amount):
                self._hold(stage)
                return False
            self._at += 1
        self.done = True
        return True

    def _hold(self, stage: Stage) -> None:
        limits = stage.limits
        patience = limits.max_wait - self.waited / 1e9
        self._since = perf_counter_ns()
        stage.held += 1
        if limits.refuse or patience <= 0:
            # Not from within go(): whoever called it learns first that it is held.
            self._timer = asyncio.get_running_loop().call_later(0, self._refuse, stage)
            return
        self._timer = asyncio.get_running_loop().call_later(patience, self._refuse, stage)
        stage.hold(self)

    def _stop_waiting(self, stage: Stage) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waited = perf_counter_ns() - self._since
        self.waited += waited
        stage.counters.waited += waited
        stage.held -= 1

    def granted(self) -> None:
        """The stage that held this lets it pass."""
        stage = self._stages[self._at][0]
        stage.counters.delayed += 1
        self._stop_waiting(stage)
        self._at += 1
        if self.go():
            self._admitted()

    def _refuse(self, stage: Stage) -> None:
        self.done = True
        stage.counters.refused += 1
        refuse = stage.limits.refuse
        self._stop_waiting(stage)
        text = f"over the limit of {stage.words}"
        if not refuse:
            text += f", waited {self.waited / 1e9:.3g} s"
        self._give_back()
        self._refused(os_error(errno.EBUSY, text))

    def _give_back(self) -> None:
        for stage, amount in self._stages[: self._at]:
            stage.give(amount)

    def cancel(self) -> None:
        """Who asked has given up: refused with ``EINTR``."""
        if not self.done:
            self.drop()
            self._refused(os_error(errno.EINTR))

    def drop(self) -> None:
        """Nobody waits for it any more: neither function is called."""
        if not self.done:
            self.done = True
            self._stop_waiting(self._stages[self._at][0])
            self._give_back()


class Stage:
    """One limit of one limiter: who comes passes it or waits at it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.waiting: FairQueue[Held] = FairQueue()
        #: How many wait here. Some in the queue may have given up.
        self.held = 0

    name = ""
    words = ""

    def take(self, amount: float) -> bool:
        """Pass at once, if there is room and nobody waits."""
        raise NotImplementedError

    def give(self, amount: float) -> None:
        """What was taken is not used any more. Of a rate nothing comes back."""

    def hold(self, held: Held) -> None:
        """Let *held* pass as soon as possible."""
        self.waiting.push(held.session, held)

    def next(self) -> Held | None:
        """Who waits and is next; pays for it."""
        while (held := self.waiting.pop()) is not None:
            if not held.done:
                self.waiting.charge(held.session, self.cost(held))
                return held
        return None

    def cost(self, held: Held) -> float:
        return 1.0

    def forget(self, session: Session) -> None:
        for held in self.waiting.drop(session):
            held.drop()

    def close(self) -> None:
        """Everyone who waits passes."""
        while (held := self.next()) is not None:
            held.granted()


class Bucket(Stage):
    """At most *rate* a second of what :data:`RATES` calls *name*."""

    def __init__(self, limits: Limits, name: str, rate: float) -> None:
        super().__init__(limits)
        self.name = name
        #: Taken from the bucket ahead; negative: owed to it.
        self._credit = 0.0
        self._head: Held | None = None
        self._server: asyncio.Task[None] | None = None
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """From now on. Those who wait go on waiting."""
        self.rate = rate
        #: What passes at once.
        self.capacity = max(1.0, rate)
        self._bucket = AsyncLimiter(self.capacity, self.capacity / rate)
        self._ahead = AHEAD * rate
        self.words = f"{rate:.10g} {RATES[self.name]} a second"
        if self._server is not None:
            self._server.cancel()
            self._serve_them()

    def cost(self, held: Held) -> float:
        return held.amount / BYTES_PER_JOB if self.name in BYTES else 1.0

    def take(self, amount: float) -> bool:
        if self._server is not None:
            return False
        credit = self._credit - amount
        if credit < 0:
            bucket = self._bucket
            now = min(-credit, self.capacity)
            if now + self._ahead <= self.capacity and bucket.has_capacity(now + self._ahead):
                now += self._ahead
            elif not bucket.has_capacity(now):
                return False
            # With room there, this comes to its end without waiting for anything.
            taking = bucket.acquire(now)
            try:
                taking.send(None)
            except StopIteration:
                pass
            credit += now
        self._credit = credit
        self.counters.allowed += 1
        if credit < 0:
            self._serve_them()
        return True

    def hold(self, held: Held) -> None:
        super().hold(held)
        if self._server is None:
            self._serve_them()

    def _serve_them(self) -> None:
        self._server = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        """Exists while somebody waits or something is owed."""
        while True:
            if self._credit < 0:  # debts first
                piece = min(-self._credit, self.capacity)
                await self._bucket.acquire(piece)
                self._credit += piece
                continue
            head = self._head = self._head or self.next()
            if head is None:
                break
            owed = head.amount - self._credit
            piece = min(max(owed, 0.0), self.capacity)
            await self._bucket.acquire(piece)
            self._credit = piece - owed
            self._head = None
            if head.done:  # it did not wait for this: what was taken for it is the next one's
                self._credit += head.amount
                continue
            self.counters.allowed += 1
            try:
                head.granted()
            except Exception:
                _LOG.exception("a request could not go on")
        self._server = None

    def close(self) -> None:
        if self._server is not None:
            self._server.cancel()
            self._server = None
        head, self._head = self._head, None
        if head is not None and not head.done:
            head.granted()
        super().close()

    def forget(self, session: Session) -> None:
        super().forget(session)
        if self._head is not None and self._head.session is session:
            self._head.drop()

    def describe(self) -> dict[str, Any]:
        return {"limit": self.rate, "waiting": self.held, **self.counters.describe()}


class Slots(Stage):
    """At most *limit* requests at work at a time."""

    name = "in_flight"

    def __init__(self, limits: Limits, limit: int | None) -> None:
        super().__init__(limits)
        self.used = 0
        self.set_limit(limit)

    def set_limit(self, limit: int | None) -> None:
        self.limit = limit
        self.words = f"{limit} requests at a time"
        self._pass()

    def _free(self) -> bool:
        return self.limit is None or self.used < self.limit

    def take(self, amount: float) -> bool:
        if self.waiting or not self._free():
            return False
        self.used += 1
        self.counters.allowed += 1
        return True

    def give(self, amount: float) -> None:
        self.used -= 1
        self._pass()

    def _pass(self) -> None:
        while self.waiting and self._free() and (held := self.next()) is not None:
            self.used += 1
            self.counters.allowed += 1
            held.granted()

    def close(self) -> None:
        self.set_limit(None)

    def describe(self) -> dict[str, Any]:
        return {
            "limit": self.limit, "used": self.used, "waiting": self.held, **self.counters.describe()
        }  # fmt: skip


class Limiter:
    """Keeps what passes it within *limits*, and within those of *parent* and its parents.

    On the event loop, except :meth:`open_handle` and :meth:`close_handle`.
    """

    def __init__(self, limits: Limits, *, parent: Limiter | None = None) -> None:
        self.limits = limits
        self.parent = parent
        self._stages: dict[str, Bucket] = {}
        self._slots: Slots | None = None
        self._children: weakref.WeakSet[Limiter] = weakref.WeakSet()
        #: What happened at the limits of children that are no more, by class.
        self._past: dict[str, Counters] = {}
        self._handles = 0
        self._handles_refused = 0
        self._handles_lock = threading.Lock()
        self._sessions_refused = 0
        if parent is not None:
            parent._children.add(self)
        #: By class, the limits that hold, the nearest first; of bytes and of requests at work likewise.
        self.table: dict[str, tuple[Stage, ...]] = {}
        self.update(limits)

    # --- what the limits are --------------------------------------------------------------------------------

    def update(self, limits: Limits) -> None:
        """From now on *limits* hold, for those as well who wait already."""
        self.limits = limits
        for name in RATES:
            rate = getattr(limits, name)
            stage = self._stages.get(name)
            if rate is None:
                if stage is not None:
                    del self._stages[name]
            elif stage is None:
                self._stages[name] = Bucket(limits, name, rate)
                continue
            elif stage.rate != rate:
                stage.set_rate(rate)
            if stage is not None:
                stage.limits = limits
                if rate is None:
                    stage.close()
        slots = self._slots
        if slots is not None:
            slots.limits = limits
            slots.set_limit(limits.in_flight)
        elif limits.in_flight is not None:
            self._slots = Slots(limits, limits.in_flight)
        self._arrange()

    def _arrange(self) -> None:
        above = self.parent.table if self.parent is not None else {}
        table: dict[str, tuple[Stage, ...]] = {}
        for name in (*RATES, "in_flight"):
            own: Stage | None = self._slots if name == "in_flight" else self._stages.get(name)
            stages = (() if own is None else (own,)) + above.get(name, ())
            if stages:
                table[name] = stages
        self.table = table
        for child in self._children:
            child._arrange()

    def _remember(self, name: str, counters: Counters) -> None:
        self._past.setdefault(name, Counters()).add(counters)

    # --- what passes ----------------------------------------------------------------------------------------

    def take(self, name: str) -> int:
        """Pass the limits of one operation of the class *name* at once: -1, or how many have been passed. Then
        :meth:`admit` goes on from there."""
        for passed, stage in enumerate(self.table.get(name, ())):
            if not stage.take(1):
                return passed
        return -1

    def admit(
        self,
        session: Session,
        amounts: Sequence[tuple[str, float]],
        admitted: Callable[[], None],
        refused: Callable[[OSError], None],
        *,
        passed: int = 0,
        waited: int = 0,
    ) -> Held | None:
        """None if *amounts*, each of a class, may pass at once. Otherwise what is held, and one of the functions is
        called later, never from within this. *passed*: limits of the first class that have been passed already;
        *waited*: nanoseconds that the request was held back before."""
        table = self.table
        at = 0
        for name, amount in amounts:
            for stage in table.get(name, ()):
                if at >= passed and not stage.take(amount):
                    break
                at += 1
            else:
                continue
            break
        else:
            return None
        stages = [(stage, amount) for name, amount in amounts for stage in table.get(name, ())]
        held = Held(session, stages, admitted, refused, at, waited)
        return None if held.go() else held

    def open_handle(self) -> None:
        """One more open file: ``EMFILE`` if the session or its token has too many, ``ENFILE`` if its tenant has. In
        any thread."""
        limit = self.limits.handles
        with self._handles_lock:
            if limit is not None and self._handles >= limit:
                self._handles_refused += 1
                number = errno.ENFILE if self.parent is None else errno.EMFILE
                raise os_error(number, f"over the limit of {limit} open files")
            self._handles += 1
        if self.parent is not None:
            try:
                self.parent.open_handle()
            except OSError:
                with self._handles_lock:
                    self._handles -= 1
                raise

    def close_handle(self) -> None:
        """One less. In any thread."""
        with self._handles_lock:
            self._handles -= 1
        if self.parent is not None:
            self.parent.close_handle()

    def check_sessions(self, count: int) -> None:
        """Raise :class:`RefusedError` (``busy``) if there may not be one more than *count* sessions."""
        limit = self.limits.sessions
        if limit is not None and count >= limit:
            self._sessions_refused += 1
            raise RefusedError("busy", f"over the limit of {limit} sessions at a time")

    # --- the end, and the figures ---------------------------------------------------------------------------

    def forget(self, session: Session) -> None:
        """*session* has ended: what of it is held is dropped, here and further up."""
        for stage in self._stages.values():
            stage.forget(session)
        if self._slots is not None:
            self._slots.forget(session)
        if self.parent is not None:
            self.parent.forget(session)

    def close(self) -> None:
        """Nothing will pass any more. What was counted is kept by the parent."""
        for name, stage in self._stages.items():
            if self.parent is not None:
                self.parent._remember(name, stage.counters)
            stage.close()
        if self._slots is not None and self.parent is not None:
            self.parent._remember("in_flight", self._slots.counters)
        if self.parent is not None:
            self.parent._children.discard(self)

    def describe(self) -> dict[str, Any]:
        """For the status, ready for JSON. By class its limit, how many ``allowed``, ``delayed`` and ``refused``, the
        seconds ``waited`` and how many wait now; ``below``: the same of the limits of its sessions in all."""
        limits = self.limits
        shown = self.own()
        if limits.sessions is not None:
            shown["sessions"] = {"limit": limits.sessions, "refused": self._sessions_refused}
        below: dict[str, Counters] = {}
        for name, counters in self._below():
            below.setdefault(name, Counters()).add(counters)
        shown["below"] = {name: counters.describe() for name, counters in sorted(below.items())}
        shown["max_wait"] = limits.max_wait
        shown["refuse"] = limits.refuse
        return shown

    def own(self) -> dict[str, Any]:
        """Of :meth:`describe` what is about each limit of its own."""
        shown: dict[str, Any] = {name: stage.describe() for name, stage in self._stages.items()}
        if self._slots is not None:
            shown["in_flight"] = self._slots.describe()
        shown["handles"] = {
            "limit": self.limits.handles, "used": self._handles, "refused": self._handles_refused
        }  # fmt: skip
        return shown

    def _below(self) -> list[tuple[str, Counters]]:
        found = list(self._past.items())
        for child in self._children:
            found += [(name, stage.counters) for name, stage in child._stages.items()]
            if child._slots is not None:
                found.append(("in_flight", child._slots.counters))
            found += child._below()
        return found


def tightest(first: Limits, second: Limits) -> Limits:
    """The limits that hold where both do."""
    changes: dict[str, Any] = {
        name: min(mine, theirs)
        for name in (*RATES, "sessions", "handles", "in_flight")
        if (theirs := getattr(second, name)) is not None and (mine := getattr(first, name)) is not None
    }
    changes |= {
        name: getattr(second, name)
        for name in (*RATES, "sessions", "handles", "in_flight")
        if getattr(first, name) is None
    }
    return replace(
        first, **changes, max_wait=min(first.max_wait, second.max_wait), refuse=first.refuse or second.refuse
    )

"""One request's way through the engine: may it? -> in its turn -> execute -> record -> reply.

Runs on the event loop and never blocks it. An operation that the file system can answer from memory is
executed at once; everything else goes to the worker threads, where it is recorded as well. Requests run
concurrently, but on one handle in order of arrival (:mod:`.gates`).

Nothing is executed for a client that does not read its replies, and no session gets all the workers.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

from ..errors import LocalProtocolError, errno_name, errno_of, os_error
from ..protocol import codec
from ..protocol import messages as m
from ..protocol.events import Acked, Cancelled, Event, PeerClosed, Requested
from ..protocol.messages import Error, Identity, Reply, Request
from .changes import Unknown, changes
from .context import Context
from .gates import Gate, Passenger
from .handles import Handle
from .locks import LockTable, Target
from .operations import OPERATIONS, Payload, WouldBlock
from .profiler import Profiler
from .session import Session
from .settle import prepare, revive, settle
from .workers import WorkerPool

_LOG = logging.getLogger(__name__)

#: Requests of one session that are looked at before others get their turn.
BUDGET: Final = 256
#: Bytes of replies that are queued before they are sent, so that the client's reading is noticed.
UNSENT: Final = 1 << 20

Result = tuple[Reply, Payload]


class Plan(NamedTuple):
    """What is known of a request by its type.

    ``handles``: the handles that it passes the gate of, each with whether alone. ``recorded``: a successor
    must know whether it ran. The others that are ``once`` only make or use what dies with the engine, and run
    again.
    """

    handles: Callable[[Any], list[tuple[int, bool]]]
    function: Callable[[Context, Any, Payload, bool], Result] | None
    inline: bool
    mutating: bool
    recorded: bool


def _no_handle(request: Any) -> list[tuple[int, bool]]:
    return []


def _by_handle(alone: bool) -> Callable[[Any], list[tuple[int, bool]]]:
    return lambda request: [(request.handle, alone)]


def _by_ref(alone: bool) -> Callable[[Any], list[tuple[int, bool]]]:
    return lambda request: [(request.ref.handle, alone)] if request.ref.handle else []


def _copy_range(request: m.CopyRange) -> list[tuple[int, bool]]:
    if request.source == request.target:
        return [(request.target, True)]
    return [(request.target, True), (request.source, False)]


def _plan(kind: type[Request]) -> Plan:
    operation = OPERATIONS.get(kind)
    alone = kind.mutating or kind in (m.Close, m.ReadDir, m.SetLock)
    if kind is m.CopyRange:
        handles: Callable[[Any], list[tuple[int, bool]]] = _copy_range
    elif kind is not m.Reopen and "handle" in kind.__struct_fields__:
        handles = _by_handle(alone)
    elif kind is not m.Reopen and "ref" in kind.__struct_fields__:
        handles = _by_ref(alone)
    else:
        handles = _no_handle
    return Plan(
        handles=handles,
        function=None if operation is None else operation.function,
        inline=operation is not None and operation.inline and not kind.mutating,
        mutating=kind.mutating,
        recorded=kind.mutating,
    )


PLANS: Final = {kind: _plan(kind) for kind in m.REQUESTS}


class Job:
    """A request that could not be answered at once."""

    __slots__ = ("began", "gates", "needs", "payload", "plan", "recorded", "request", "session")

    def __init__(
        self, session: Session, request: Request, payload: bytes, plan: Plan, recorded: bool, began: int
    ) -> None:
        self.session = session
        self.request: Any = request
        self.payload = payload
        self.plan = plan
        self.recorded = recorded
        self.began = began
        self.gates: list[tuple[int, Gate]] = []
        self.needs = 0


class Dispatcher:
    """Executes requests. *flush* is asked for soon after anything was queued for *a session*; *ended* when
    its client said Bye; *told* with what a session has changed."""

    def __init__(
        self,
        pool: WorkerPool,
        locks: LockTable,
        profiler: Profiler,
        *,
        mark: Callable[[Session], None],
        flush: Callable[[Session], None],
        ended: Callable[[Session], None],
        told: Callable[[Session, list[tuple[Identity, bytes | None]] | None], None],
    ) -> None:
        self._pool = pool
        self._locks = locks
        self._profiler = profiler
        self._mark = mark
        self._flush = flush
        self._ended = ended
        self._told = told
        self._share = max(1, pool.size * 3 // 4)
        self._complained: set[tuple[str, str]] = set()
        self._admitted: deque[Passenger] = deque()
        self._admitting = False
        self._special: dict[type[Request], Callable[[Job], None]] = {
            m.SetLock: self._set_lock,
            m.GetLock: self._get_lock,
        }

    # --- what was received ----------------------------------------------------------------------------------

    def receive(self, session: Session, events: list[Event]) -> None:
        """Deal with *events* of the session's client, now or when it reads again."""
        session.todo.extend(events)
        self._mark(session)
        self.pump(session)

    def pump(self, session: Session) -> None:
        """Go on with what was received and what waits for a worker."""
        while session.ready and session.active < self._share and not session.paused:
            self._start(session.ready.popleft())
        todo = session.todo
        budget = BUDGET
        while todo and not session.paused:
            if not budget:
                asyncio.get_running_loop().call_soon(self.pump, session)
                return
            budget -= 1
            event = todo.popleft()
            if type(event) is Requested:
                self._request(session, event.request, event.payload)
                if session.unsent > UNSENT:
                    self._flush(session)
            elif type(event) is Acked:
                session.log.acked(event.seqs)
                for seq in event.seqs:
                    handle = session.unacknowledged.pop(seq, None)
                    if handle is not None:
                        session.known.add(handle)
            elif type(event) is Cancelled:
                waiting = session.waits.get(event.seq)
                if waiting is not None:
                    self._locks.cancel(waiting)
            elif type(event) is PeerClosed:
                todo.clear()
                self._ended(session)

    def _request(self, session: Session, request: Any, payload: bytes) -> None:
        began = perf_counter_ns()
        session.requests += 1
        kind = type(request)
        plan = PLANS[kind]
        context = session.context
        assert context is not None
        if session.read_only and (plan.mutating or (kind is m.Open and _writes(request.flags))):
            self._answer(session, request, began, _error(request.seq, os_error(errno.EROFS)), b"")
            return
        passes = plan.handles(request)
        gates = session.gates
        if kind is m.Close:
            session.known.discard(request.handle)
            gate = gates.get(request.handle)
            if gate is None or not gate.changing:
                # Before anything that was sent later, which may want the lock. With a change under way, the
                # lock has to hold until that is done: _launch() releases it.
                self._locks.close_handle(session.id, request.handle)
        elif kind is m.Reopen and request.locks and not session.may_reclaim:
            self._answer(session, request, began, _error(request.seq, _lock_lost()), b"")
            return
        recorded = plan.recorded or (kind is m.Open and bool(request.flags & os.O_TRUNC))
        if plan.inline and not recorded and context.sandbox.inline_ok and kind is not m.Reopen:
            gate = gates.get(passes[0][0]) if passes and gates else None
            if gate is None or gate.admits(passes[0][1]):
                try:
                    reply, data = plan.function(context, request, payload, True)  # type: ignore[misc]
                except WouldBlock:
                    pass
                except Exception as exc:
                    self._answer(session, request, began, self._failed(request, exc), b"")
                    return
                else:
                    self._answer(session, request, began, reply, data)
                    return
        job = Job(session, request, payload, plan, recorded, began)
        for handle, alone in passes:
            gate = gates.get(handle)
            if gate is None:
                gate = gates[handle] = Gate()
            gate.enter(job, alone)
            job.gates.append((handle, gate))
        if not job.needs:
            self._launch(job)

    # --- in a worker thread ---------------------------------------------------------------------------------

    def _launch(self, job: Job) -> None:
        """The gates are passed."""
        session = job.session
        special = self._special.get(type(job.request))
        if special is not None:
            special(job)
            return
        if type(job.request) is m.Close:
            self._locks.close_handle(session.id, job.request.handle)
        if session.active < self._share and not session.paused:
            self._start(job)
        else:
            session.ready.append(job)

    def _start(self, job: Job) -> None:
        job.session.active += 1
        self._pool.submit(lambda: self._run(job), lambda result: self._finished(job, result))

    def _run(self, job: Job) -> Result:
        """In a worker thread: never raises."""
        session, request, log = job.session, job.request, job.session.log
        context = session.context
        seq = request.seq
        assert context is not None
        assert job.plan.function is not None
        data: Payload = b""
        try:
            if not job.recorded:
                return job.plan.function(context, request, job.payload, False)
            known = session.revivable.pop(seq, None)
            if known is not None:
                revive(context, request, known)
                return known, b""
            intent = log.intents.get(seq)
            reply = None if intent is None else settle(context, request, intent, job.payload)
            if reply is None:
                intent = prepare(context, request, job.payload)
                if intent is not None:
                    log.intend(seq, intent)
                reply, data = job.plan.function(context, request, job.payload, False)
        except Exception as exc:
            reply = self._failed(request, exc)
        if job.recorded:
            try:
                log.answer(seq, codec.encode_frame(reply, data))
            except (OSError, LocalProtocolError) as exc:
                # It has happened, so it is answered. Only a successor could not know.
                self._complain("record", exc)
        return reply, data

    def _finished(self, job: Job, result: Result) -> None:
        session, request = job.session, job.request
        session.active -= 1
        self._leave(job)
        reply, data = result
        if session.ended and session.context is not None:
            session.context.handles.close_all()  # what this has just opened
        if type(request) is m.Reopen and request.locks and type(reply) is m.OpenReply:
            self._reclaim(job, reply)
        else:
            self._answer(session, request, job.began, reply, data)
        self.pump(session)

    def _leave(self, job: Job) -> None:
        """Let in who comes after *job*."""
        gates, job.gates = job.gates, []
        for handle, gate in gates:
            self._admitted.extend(gate.leave())
            if not gate:
                del job.session.gates[handle]
        if self._admitting:  # called by what the loop below launched
            return
        self._admitting = True
        while self._admitted:
            passenger = self._admitted.popleft()
            assert isinstance(passenger, Job)
            self._launch(passenger)
        self._admitting = False

    # --- locks ----------------------------------------------------------------------------------------------

    def _lock_target(self, job: Job) -> tuple[Handle, Target]:
        context = job.session.context
        assert context is not None
        handle = context.handles.acquire(job.request.handle)
        if handle.pin or (handle.directory and not job.request.lock.flock):
            context.handles.release(handle)
            raise os_error(errno.EBADF)
        return handle, _target(job.session, handle)

    def _set_lock(self, job: Job) -> None:
        # What was written before the lock is released is executed by now, and what comes later may run while
        # this waits.
        self._leave(job)
        session, request = job.session, job.request
        context = session.context
        assert context is not None
        try:
            handle, target = self._lock_target(job)
        except OSError as exc:
            self._answer(session, request, job.began, self._failed(request, exc), b"")
            return

        def answer(attr: m.Attr | OSError | None) -> None:
            context.handles.release(handle)
            if isinstance(attr, OSError):
                reply: Reply = self._failed(request, attr)
            else:
                reply = m.LockReply(request.seq, None, attr)
            self._answer(session, request, job.began, reply, b"")

        def done(error: OSError | None) -> None:
            session.waits.pop(request.seq, None)
            if error is not None or request.lock.type == "u":
                answer(error)
            else:
                self._stat(context, handle, answer)

        waiting = self._locks.set(target, request.lock, request.wait, done)
        if not waiting.answered:
            session.waits[request.seq] = waiting

    def _stat(self, context: Context, handle: Handle, then: Callable[[m.Attr | OSError], None]) -> None:
        def stat(nowait: bool) -> m.Attr | OSError:
            try:
                return context.sandbox.stat(handle.fd, nowait)
            except OSError as exc:
                return exc

        if context.sandbox.inline_ok:
            try:
                then(stat(True))
                return
            except WouldBlock:
                pass
        self._pool.submit(lambda: stat(False), then)

    def _get_lock(self, job: Job) -> None:
        self._leave(job)
        session, request = job.session, job.request
        context = session.context
        assert context is not None
        try:
            handle, target = self._lock_target(job)
        except OSError as exc:
            self._answer(session, request, job.began, self._failed(request, exc), b"")
            return

        def found(lock: m.Lock | OSError) -> None:
            context.handles.release(handle)
            if isinstance(lock, OSError):
                reply: Reply = self._failed(request, lock)
            else:
                reply = m.LockReply(request.seq, lock)
            self._answer(session, request, job.began, reply, b"")

        self._locks.get(target, request.lock, found)

    def _reclaim(self, job: Job, reply: Reply) -> None:
        """The handle is open again; now its locks, or nothing."""
        session, request = job.session, job.request
        context = session.context
        assert context is not None
        handles = context.handles
        try:
            handle = handles.acquire(request.handle)
        except OSError as exc:  # the session has ended meanwhile
            self._answer(session, request, job.began, self._failed(request, exc), b"")
            return

        def done(error: OSError | None) -> None:
            handles.release(handle)
            if error is not None:
                handles.close(handle.id)
            answer = reply if error is None else self._failed(request, error)
            self._answer(session, request, job.began, answer, b"")

        self._locks.reclaim(_target(session, handle), request.locks, done)

    # --- the answer -----------------------------------------------------------------------------------------

    def _answer(self, session: Session, request: Any, began: int, reply: Reply, data: Payload) -> None:
        failed = type(reply) is Error
        try:
            session.proto.reply(reply, data)
        except LocalProtocolError as exc:
            self._complain(type(request).__name__, exc)
            failed = True
            reply = Error(request.seq, "EIO", "the answer is not possible")
            session.proto.reply(reply)
        moved = len(data)
        session.unsent += moved + 256
        if not failed:
            kind = type(reply)
            if kind is m.OpenReply:
                session.unacknowledged[request.seq] = reply.handle  # type: ignore[attr-defined]
            elif kind is m.RemovedReply and reply.pin:  # type: ignore[attr-defined]
                session.unacknowledged[request.seq] = reply.pin  # type: ignore[attr-defined]
            elif kind is m.CountReply and type(request) is m.Write:
                moved = reply.count  # type: ignore[attr-defined]
            if PLANS[type(request)].mutating or (type(request) is m.Open and request.flags & os.O_TRUNC):
                self._tell(session, request, reply)
        self._profiler.record(type(request).__name__, perf_counter_ns() - began, moved, failed)
        self._mark(session)

    def _tell(self, session: Session, request: Any, reply: Reply) -> None:
        context = session.context
        assert context is not None

        def find(id: int) -> Identity | None:
            try:
                return context.handles.get(id).identity
            except OSError:
                return None

        try:
            self._told(session, list(changes(request, reply, find)))
        except Unknown:
            self._told(session, None)

    def _failed(self, request: Any, exc: Exception) -> Error:
        if not isinstance(exc, OSError):
            self._complain(type(request).__name__, exc)
        return _error(request.seq, exc)

    def _complain(self, what: str, exc: Exception) -> None:
        """Log a failure that should not be, the first of its kind with its traceback."""
        kind = (what, type(exc).__name__)
        if kind not in self._complained:
            self._complained.add(kind)
            _LOG.error("%s failed unexpectedly", what, exc_info=exc)


def _writes(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def _error(seq: int, exc: Exception) -> Error:
    """The reply to what ended in *exc*. Its text, not its file names: those may be outside the workspace."""
    number = errno_of(exc)
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else os.strerror(number)
    return Error(seq, errno_name(number), text)


def _lock_lost() -> OSError:
    return os_error(errno.ENOLCK, "the locks were lost while the client was away")


def _target(session: Session, handle: Handle) -> Target:
    return Target(session.id, handle.id, handle.identity, handle.fd, handle.flags & os.O_ACCMODE)

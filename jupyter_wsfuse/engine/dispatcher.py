"""One request's way through the engine: may it? -> in its turn -> within its limits -> execute -> record -> reply.

Runs on the event loop and never blocks it. An operation that the file system can answer from memory is
executed at once; everything else goes to the worker threads, where it is recorded as well. Requests run
concurrently, but on one handle in order of arrival (:mod:`.gates`); one that a rate limit holds back
(:mod:`.limiter`) has its place there already, so that nothing overtakes it.

Nothing is executed for a client that does not read its replies, and neither the loop nor the workers are left to
one tenant while another has something to do (:mod:`.fair`).
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final

from ..auditlog.entries import DENIALS
from ..errors import DeniedError, LocalProtocolError, errno_name, errno_of, os_error
from ..protocol import codec
from ..protocol import messages as m
from ..protocol.events import Acked, Cancelled, Event, PeerClosed, Requested
from ..protocol.messages import Error, Identity, Reply, Request
from .changes import Unknown, changes
from .context import MAX_IO, Payload
from .fair import Crew, Presence, Turns
from .gates import Gate, Passenger
from .hooks import Describe, Paths, Result, no_paths
from .jobs import Job
from .leases import unlease
from .limiter import Held
from .lockrequests import LockRequests
from .locks import Offload
from .operations import WouldBlock
from .ours import Doing
from .plans import PLANS
from .session import Session
from .settle import prepare, revive, settle
from .turnaround import Turnaround
from .workers import WorkerPool

_LOG = logging.getLogger(__name__)

#: Requests of one session that are looked at before others get their turn.
BUDGET: Final = 256
#: Bytes of replies that are queued before they are sent, so that the client's reading is noticed.
UNSENT: Final = 1 << 20


class Dispatcher:
    """Executes requests. *flush* is asked for soon after anything was queued for *a session*; *ended* when
    its client said Bye; *told* with what a session has changed. *describe* names the paths of a request, for the
    record. *begin* is told of an operation before it is executed, in that thread (:class:`.ours.Ours`).

    Whoever makes sessions says so by :meth:`entered` and :meth:`left`.
    """

    def __init__(
        self,
        pool: WorkerPool,
        *,
        mark: Callable[[Session], None],
        flush: Callable[[Session], None],
        ended: Callable[[Session], None],
        told: Callable[[Session, list[tuple[Identity, bytes | None]] | None], None],
        describe: Describe = no_paths,
        begin: Callable[[Session, Any], Doing | None] = lambda session, request: None,
    ) -> None:
        self._mark = mark
        self._flush = flush
        self._ended = ended
        self._told = told
        self._describe = describe
        self._begin = begin
        self._presence = Presence(Turnaround().set)
        self._turns = Turns(self._presence, self._deal)
        self._crew = Crew(pool, self._presence)
        #: Requests of one session that nobody waits for and that are at work at a time: the others find workers free.
        self._most_behind = max(1, pool.size // 8)
        self._complained: set[tuple[str, str]] = set()
        #: Told of each request that has changed something, while somebody wants to know where.
        self.on_change: Callable[[Session, Request], None] | None = None
        self._admitted: deque[Passenger] = deque()
        self._admitting = False
        self._locks = LockRequests(
            answer=self._answer_job, failed=self._failed, leave=self._leave, offload=self._offload_for
        )
        self._special: dict[type[Request], Callable[[Job], None]] = {
            m.SetLock: self._locks.set,
            m.GetLock: self._locks.get,
            m.Stats: self._stats,
        }

    # --- who is there ---------------------------------------------------------------------------------------

    def entered(self, session: Session) -> None:
        """*session* is one of those that share the engine."""
        self._presence.entered(session.tenant.name)

    def left(self, session: Session) -> None:
        """*session* has ended: what of it waits for anything is dropped."""
        last = self._presence.left(session.tenant.name)
        session.todo.clear()
        session.later.clear()
        self._turns.drop(session, last)
        dropped = self._crew.drop(session, last)
        session.held.clear()
        session.limiter.forget(session)
        session.limiter.close()
        for then in dropped:
            then(None)

    def offload(self, tenant: str) -> Offload:
        """What runs functions in a worker on behalf of *tenant*, for its lock table."""

        def run(work: Callable[[], Any], then: Callable[[Any], None]) -> None:
            self._crew.submit(tenant, 1.0, None, work, then)

        return run

    def _offload_for(self, session: Session, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        tenant = session.tenant
        self._crew.submit(tenant.name, tenant.weight, None, work, then)

    # --- what was received ----------------------------------------------------------------------------------

    def receive(self, session: Session, events: list[Event]) -> None:
        """Deal with *events* of the session's client, now, in its turn, or when it reads again."""
        session.todo.extend(events)
        self._mark(session)
        self._turns.add(session)

    def pump(self, session: Session) -> None:
        """*session* reads again, or cannot be slow any more: go on with what was received, and what waits for a
        worker."""
        self._crew.feed()
        if session.todo or session.later:
            self._turns.add(session)

    def _deal(self, session: Session, until: int) -> bool:
        """Deal with what *session* has received, up to the time *until* (0: no bound). True if there is more."""
        todo, later = session.todo, session.later
        budget = BUDGET
        while (todo or (later and session.behind < self._most_behind)) and not session.paused:
            if not budget or (until and perf_counter_ns() >= until):
                return True
            budget -= 1
            if todo:
                event = todo.popleft()
                if type(event) is Requested and getattr(event.request, "background", False):
                    later.append(event)
                    continue
            else:  # what nobody waits for comes when there is nothing else
                event = later.popleft()
            if type(event) is Requested:
                self._request(session, event.request, event.payload)
                if session.unsent > UNSENT:
                    self._flush(session)
            elif type(event) is Acked:
                session.log.acked(event.seqs)
                for seq in event.seqs:
                    handle = session.unacknowledged.pop(seq, None)
                    context = session.context
                    if handle is not None and context is not None and handle in context.handles:
                        session.known.add(handle)
            elif type(event) is Cancelled:
                self._cancel(session, event.seq)
            elif type(event) is PeerClosed:
                todo.clear()
                later.clear()
                self._ended(session)
        return False

    def _cancel(self, session: Session, seq: int) -> None:
        waiting = session.waits.get(seq)
        if waiting is not None:
            session.workspace.locks.cancel(waiting)
        held = session.held.get(seq)
        if held is not None:
            held.cancel()
        for event in session.later:
            if isinstance(event, Requested) and event.seq == seq:
                session.later.remove(event)
                error = self._failed(event.request, os_error(errno.EINTR))
                self._answer(session, event.request, perf_counter_ns(), error)
                break

    def _request(self, session: Session, request: Any, payload: bytes) -> None:
        began = perf_counter_ns()
        session.requests += 1
        kind = type(request)
        plan = PLANS[kind]
        context = session.context
        assert context is not None
        workspace = session.workspace
        if plan.mutating or (kind is m.Open and _writes(request.flags)):
            refusal = None
            if session.read_only:
                refusal = os_error(errno.EROFS)
            elif workspace.audit.refusing and not _repeated(session, request.seq):
                refusal = os_error(errno.EROFS, "the audit log cannot be written")
            if refusal is not None:
                self._answer(session, request, began, self._failed(request, refusal))
                return
        passes = plan.handles(request)
        gates = session.gates
        paths: Paths | None = None
        if kind is m.Close:
            if workspace.audit.wants(kind, False, False):
                paths = self._describe(request, context)
            session.known.discard(request.handle)
            gate = gates.get(request.handle)
            if gate is None or not gate.changing:
                # Before anything that was sent later, which may want the lock. With a change under way, the
                # lock has to hold until that is done: _launch() releases it.
                workspace.locks.close_handle(session.id, request.handle)
        elif kind is m.Reopen and request.locks and not session.may_reclaim:
            self._answer(session, request, began, self._failed(request, _lock_lost()))
            return
        recorded = plan.recorded or (kind is m.Open and bool(request.flags & os.O_TRUNC))
        charged, passed = False, 0
        # What must not overtake others waits with them, and so does what waits for the disk.
        inline = plan.inline and not recorded and context.sandbox.inline_ok and kind is not m.Reopen
        if inline and (not gates or _open(gates, passes)):
            table = session.limiter.table
            if table and plan.limit:
                passed = session.limiter.take(plan.limit)
                charged = passed < 0
            else:
                charged = True
            if charged:
                lease_ends = session.lease_ends
                started = perf_counter_ns()
                try:
                    reply, data = plan.function(context, request, payload, True)  # type: ignore[misc]
                except WouldBlock:
                    pass
                except Exception as exc:
                    disk = perf_counter_ns() - started
                    rule = exc.rule if isinstance(exc, DeniedError) else ""
                    error = self._failed(request, exc)
                    self._answer(session, request, began, error, b"", disk, 0, rule, paths)
                    return
                else:
                    disk = perf_counter_ns() - started
                    if table and data and "bytes_out" in table:
                        job = Job(session, request, payload, plan, recorded, began)
                        job.disk, job.lease_ends = disk, lease_ends
                        self._reply_within_limit(job, reply, data)
                    else:
                        self._answer(session, request, began, reply, data, disk, 0, "", paths)
                    return
        job = Job(session, request, payload, plan, recorded, began)
        job.charged, job.passed, job.paths = charged, max(passed, 0), paths
        if getattr(request, "background", False):
            job.behind = True
            session.behind += 1
        for handle, alone in passes:
            gate = gates.get(handle)
            if gate is None:
                gate = gates[handle] = Gate()
            gate.enter(job, alone)
            job.gates.append((handle, gate))
        if not job.needs:
            self._launch(job)

    # --- limits ---------------------------------------------------------------------------------------------

    def _launch(self, job: Job) -> None:
        """The gates are passed; now the limits."""
        session, request = job.session, job.request
        limiter = session.limiter
        if limiter.table and _limited(job) and not _repeated(session, request.seq):
            amounts: list[tuple[str, float]] = []
            if not job.charged:
                amounts.append((job.plan.limit, 1))
            if job.payload:
                amounts.append(("bytes_in", len(job.payload)))
            if type(request) not in self._special:
                amounts.append(("in_flight", 1))
                job.slots = limiter.table.get("in_flight", ())
            held = limiter.admit(
                session,
                amounts,
                functools.partial(self._let_through, job),
                functools.partial(self._held_too_long, job),
                passed=job.passed,
            )
            if held is not None:
                session.held[request.seq] = held
                return
        self._proceed(job)

    def _let_through(self, job: Job) -> None:
        held = job.session.held.pop(job.request.seq, None)
        if held is not None:
            job.limit = held.waited
        self._proceed(job)

    def _held_too_long(self, job: Job, error: OSError) -> None:
        held = job.session.held.pop(job.request.seq, None)
        if held is not None:
            job.limit = held.waited
        self._answer_job(job, self._failed(job.request, error))
        self._leave(job)

    def _reply_within_limit(self, job: Job, reply: Reply, data: Payload) -> None:
        """Answer with data as soon as they may be sent."""

        def pass_on(error: OSError | None = None) -> None:
            waiting: Held | None = session.held.pop(job.request.seq, None)
            if waiting is not None:
                job.limit = waiting.waited
            if error is None:
                self._answer_job(job, reply, data)
            elif type(reply) is m.OpenReply:
                self._answer_job(
                    job, reply
                )  # it is open, and that has to be known; the data can be asked for
            else:
                self._answer_job(job, self._failed(job.request, error))

        session = job.session
        held = session.limiter.admit(session, (("bytes_out", len(data)),), pass_on, pass_on, waited=job.limit)
        if held is None:
            pass_on()
        else:
            session.held[job.request.seq] = held

    # --- in a worker thread ---------------------------------------------------------------------------------

    def _proceed(self, job: Job) -> None:
        """Nothing is in the way any more."""
        session, request = job.session, job.request
        special = self._special.get(type(request))
        if special is not None:
            special(job)
            return
        if type(request) is m.Close:
            session.workspace.locks.close_handle(session.id, request.handle)
        tenant = session.workspace.tenant
        # What a client only says is not reckoned with beyond what it can get.
        kind = type(request)
        if kind is m.Read or kind is m.Fetch:
            size = min(max(request.size, 0), MAX_IO)
        elif kind is m.Open:
            size = min(max(request.inline, 0), MAX_IO)
        else:
            size = len(job.payload)
        self._crew.submit(
            tenant.name,
            tenant.weight,
            session,
            functools.partial(self._run, job),
            functools.partial(self._finished, job),
            size,
        )

    def _run(self, job: Job) -> Result:
        """In a worker thread: never raises."""
        session, request, log = job.session, job.request, job.session.log
        context = session.context
        seq = request.seq
        assert context is not None
        data: Payload = b""
        job.lease_ends = session.lease_ends
        try:
            if not job.recorded:
                result = self._execute(job)
                audit = session.workspace.audit
                if job.plan.syncs and not audit.barrier() and audit.refusing:
                    raise os_error(errno.EIO, "the audit log cannot be written")
                return result
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
                reply, data = self._change(job)
        except Exception as exc:
            if isinstance(exc, DeniedError):
                job.rule = exc.rule
            reply = self._failed(request, exc)
        if job.recorded:
            try:
                log.answer(seq, codec.encode_frame(reply))
            except (OSError, LocalProtocolError) as exc:
                # It has happened, so it is answered. Only a successor could not know.
                self._complain("record", exc)
        return reply, data

    def _change(self, job: Job) -> Result:
        doing = self._begin(job.session, job.request)
        if doing is None:
            return self._execute(job)
        try:
            result = self._execute(job)
            doing.done(result[0])
            return result
        finally:
            doing.end()

    def _execute(self, job: Job) -> Result:
        context, function, request, payload = job.session.context, job.plan.function, job.request, job.payload
        assert context is not None
        assert function is not None
        quota = job.session.workspace.quota
        began = perf_counter_ns()
        try:
            if quota is None:
                return function(context, request, payload, False)
            return quota.account(
                context, request, payload, lambda: function(context, request, payload, False)
            )
        finally:
            job.disk = perf_counter_ns() - began

    def _finished(self, job: Job, result: Result | None) -> None:
        """*result* None: the session ended before a worker was free."""
        session, request = job.session, job.request
        slots, job.slots = job.slots, ()
        for slot in slots:
            slot.give(1)
        if result is None:
            return
        reply, data = result
        if session.ended and session.context is not None:
            session.context.handles.close_all()  # what this has just opened
        if type(request) is m.Reopen and request.locks and type(reply) is m.OpenReply:
            self._leave(job)
            self._locks.reclaim(job, reply)
        elif data and "bytes_out" in session.limiter.table and not session.ended:
            self._leave(job)
            self._reply_within_limit(job, reply, data)
        else:
            # Before the next one on this handle, which may close it, and with it what is known of the file.
            self._answer_job(job, reply, data)
            self._leave(job)

    def _leave(self, job: Job) -> None:
        """Let in who comes after *job*."""
        if job.behind:
            job.session.behind -= 1
            if job.session.later:
                asyncio.get_running_loop().call_soon(self.pump, job.session)
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

    # --- the answer -----------------------------------------------------------------------------------------

    def _stats(self, job: Job) -> None:
        operations = job.session.profile.operations()
        self._answer_job(job, m.StatsReply(job.request.seq, operations))
        self._leave(job)

    def _answer_job(self, job: Job, reply: Reply, data: Payload = b"") -> None:
        if job.lease_ends != job.session.lease_ends:
            unlease(reply)
        self._answer(
            job.session, job.request, job.began, reply, data, job.disk, job.limit, job.rule, job.paths
        )

    def _answer(
        self,
        session: Session,
        request: Any,
        began: int,
        reply: Reply,
        data: Payload = b"",
        disk: int = 0,
        limit: int = 0,
        rule: str = "",
        paths: Paths | None = None,
    ) -> None:
        kind = type(request)
        failed = type(reply) is Error
        try:
            session.proto.reply(reply, data)
        except LocalProtocolError as exc:
            self._complain(kind.__name__, exc)
            failed = True
            reply = Error(request.seq, "EIO", "the answer is not possible")
            session.proto.reply(reply)
        moved = len(data)
        session.unsent += moved + 256
        context = session.context
        assert context is not None
        if not failed:
            answer = type(reply)
            if answer is m.OpenReply:
                session.unacknowledged[request.seq] = reply.handle  # type: ignore[attr-defined]
            elif kind is m.Close:
                session.known.discard(request.handle)  # it may have been acknowledged while this waited
            elif answer is m.RemovedReply and reply.pin:  # type: ignore[attr-defined]
                session.unacknowledged[request.seq] = reply.pin  # type: ignore[attr-defined]
            elif answer is m.CountReply and kind is m.Write:
                moved = reply.count  # type: ignore[attr-defined]
            if PLANS[kind].mutating or (kind is m.Open and request.flags & os.O_TRUNC):
                self._tell(session, request, reply)
        total = perf_counter_ns() - began
        name = kind.__name__
        workspace = session.workspace
        workspace.profiler.record(name, total, moved, failed, disk, limit, (request, context))
        session.profile.record(name, total, disk, limit, moved, failed)
        error = reply if isinstance(reply, Error) else None
        denied = bool(rule) or (error is not None and error.errno in DENIALS)
        if workspace.audit.wants(kind, failed, denied):
            if paths is None:
                paths = self._describe(request, context)
            workspace.audit.record(session, request, paths, error, rule, moved, total)
        if rule:
            workspace.denied(session, rule, (paths or self._describe(request, context))[0])
        self._mark(session)

    def _tell(self, session: Session, request: Any, reply: Reply) -> None:
        context = session.context
        assert context is not None
        if self.on_change is not None:
            self.on_change(session, request)

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
        """The reply to what ended in *exc*. Its text, not its file names: those may be outside the workspace."""
        if not isinstance(exc, OSError):
            self._complain(type(request).__name__, exc)
        number = errno_of(exc)
        text = exc.strerror if isinstance(exc, OSError) and exc.strerror else os.strerror(number)
        return Error(request.seq, errno_name(number), text)

    def _complain(self, what: str, exc: Exception) -> None:
        """Log a failure that should not be, the first of its kind with its traceback."""
        kind = (what, type(exc).__name__)
        if kind not in self._complained:
            self._complained.add(kind)
            _LOG.error("%s failed unexpectedly", what, exc_info=exc)


def _open(gates: dict[int, Gate], passes: list[tuple[int, bool]]) -> bool:
    """Whether one that came now could pass them all at once."""
    return all(handle not in gates or gates[handle].admits(alone) for handle, alone in passes)


def _writes(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def _repeated(session: Session, seq: int) -> bool:
    """Whether a former engine may have executed it: then it has to be answered with what became of that."""
    return seq in session.log.intents or seq in session.revivable


def _limited(job: Job) -> bool:
    if type(job.request) is m.SetLock:
        return bool(job.request.lock.type != "u")  # who releases lets others go on
    return bool(job.plan.limit)


def _lock_lost() -> OSError:
    return os_error(errno.ENOLCK, "the locks were lost while the client was away")

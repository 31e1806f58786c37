"""The sessions of one engine: how they begin, go on after a disconnect or the engine's death, and end.

A session belongs to the tenant of the ticket that began it, and is named by 128 random bits. It
outlives its connection by the grace period; a newer connection for it replaces an older one. What else has to
be one for all sessions lives here as well: the worker threads, the lock table, and the end of a loop turn,
when everything queued is sent (:meth:`Sessions.flush`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from ..busypoll import BusyPoll
from ..errors import RefusedError, RemoteProtocolError, errno_name, errno_of
from ..protocol import codec
from ..protocol.messages import (
    PROTOCOL_VERSION,
    REFUSALS,
    Attr,
    Hello,
    Identity,
    OpenReply,
    Refused,
    Welcome,
)  # fmt: skip
from ..protocol.serving import EngineSession, read_hello
from ..protocol.tickets import Ticket, TicketVerifier
from .config import Config
from .context import Context
from .dispatcher import Dispatcher
from .handles import HandleTable
from .locks import Hold, LockTable
from .profiler import Profiler
from .replay import Meta, ReplayLog, StateDir
from .sandbox import Sandbox
from .session import Connection, Session
from .tenants import Tenant, Tenants
from .workers import WorkerPool

_LOG = logging.getLogger(__name__)

LINKS: Final = frozenset({"keep", "contain", "follow"})
#: Characters of what a client calls itself that are kept.
CLIENT_TEXT: Final = 100


class Caller(Connection, Protocol):
    """A connection that has not been admitted yet."""

    closed: bool

    def admitted(self, session: Session) -> None: ...


def _refusal(code: str) -> RefusedError:
    return RefusedError(code, REFUSALS[code])


class Sessions:
    """See the module's text. Made on the running loop.

    *epoch* tells this engine from its predecessors. Takes up what *state* has of a predecessor.
    """

    def __init__(
        self,
        config: Config,
        tenants: Tenants,
        state: StateDir,
        *,
        epoch: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.epoch = epoch
        self.stopping = False
        self.profiler = Profiler()
        self._clock = clock
        self._tenants = tenants
        self._state = state
        self._verifier = TicketVerifier(config.key, config.audience, clock)
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[str, Session] = {}
        self._of_tenant: dict[str, dict[str, Session]] = {}
        self._admitting = 0
        self._sandboxes: dict[str, Sandbox] = {}
        self._dirty: dict[Session, None] = {}
        self._flush_scheduled = False
        self.pool = WorkerPool(config.workers, self.flush)
        self.poll = BusyPoll(self._loop, config.busy_poll)
        self.locks = LockTable(changed=self._lock_changed, offload=self.pool.submit)
        self.dispatcher = Dispatcher(
            self.pool, self.locks, self.profiler,
            mark=self.mark, flush=self._flush_one, ended=self._bye, told=self._changed,
        )  # fmt: skip
        self._take_up(state.recover(config.grace))
        self._beat()

    def __len__(self) -> int:
        """How many sessions there are, those without connection included."""
        return len(self._sessions)

    def describe(self) -> list[dict[str, Any]]:
        """All sessions, for the status page."""
        return [session.describe() for session in self._sessions.values()]

    # --- what a dead predecessor left -----------------------------------------------------------------------

    def _take_up(self, logs: list[ReplayLog]) -> None:
        for log in logs:
            meta = log.meta
            try:
                tenant = self._tenants.get(meta.tenant)
            except RefusedError:
                log.remove()
                continue
            session = Session(
                id=meta.session, tenant=tenant, principal=meta.principal, client=meta.client,
                since=meta.since, log=log,
            )  # fmt: skip
            remembered = {}
            for seq, frame in log.replies.items():
                reply = codec.client_decoder.decode(frame)[0][0]
                if isinstance(reply, OpenReply):
                    session.revivable[seq] = reply
                else:
                    remembered[seq] = frame
            session.proto = self._proto(session.id, remembered)
            session.recovered = session.may_reclaim = True
            self.locks.expect(log.holds)
            self._enter(session)
            self._start_grace(session)
        if logs:
            _LOG.info("took up %d sessions of an engine that died", len(self._sessions))
            self._loop.call_later(self.config.grace, self._end_reclaim)

    def _end_reclaim(self) -> None:
        for session in self._sessions.values():
            session.may_reclaim = False
        self.locks.end_reclaim()

    def _beat(self) -> None:
        self._state.alive()
        self._heartbeat = self._loop.call_later(self.config.grace / 4, self._beat)

    # --- beginning ------------------------------------------------------------------------------------------

    def _proto(self, id: str, remembered: dict[int, bytes] | None = None) -> EngineSession:
        config = self.config
        return EngineSession(
            id,
            window=config.window,
            window_bytes=config.window_bytes,
            remembered=remembered,
            room=codec.HEADROOM,
        )

    def _enter(self, session: Session) -> None:
        self._sessions[session.id] = session
        self._of_tenant.setdefault(session.tenant.name, {})[session.id] = session

    def greet(self, caller: Caller, data: codec.Buffer) -> None:
        """The first message of a connection: admit it or refuse it, perhaps later.

        Raises :class:`RemoteProtocolError` if it is no Hello.
        """
        hello = read_hello(data)
        if hello.links not in LINKS:
            raise RemoteProtocolError("a Hello that names no way to treat links")
        try:
            ticket = self._verifier.redeem(hello.ticket)
            tenant = self._tenants.get(ticket.tenant)
            session = self._sought(hello, ticket, tenant)
        except RefusedError as exc:
            self._refuse(caller, hello, exc)
            return
        if session is None:
            self._admitting += 1
            closing: list[int] = []
        else:
            # From here on the old connection has nothing to say any more.
            self.disconnected(session, session.connection, "another connection took the session over")
            closing = [] if hello.handles is None else list(session.known.difference(hello.handles))
            for handle in closing:
                self.locks.close_handle(session.id, handle)
                session.known.discard(handle)
            self._stop_grace(session)

        def prepare() -> tuple[Sandbox, Attr, ReplayLog | None] | OSError:
            try:
                sandbox = self._sandboxes.get(tenant.name)
                if sandbox is None or not sandbox.stat(sandbox.root_fd).nlink:  # that folder was removed
                    sandbox = Sandbox(tenant.root, follow_roots=tenant.follow_roots)
                root = sandbox.stat(sandbox.root_fd)
                if session is None:
                    return sandbox, root, self._new_log(hello, ticket)
                if session.context is not None:
                    for handle in closing:
                        session.context.handles.close(handle)
                return sandbox, root, None
            except OSError as exc:
                return exc

        def prepared(result: tuple[Sandbox, Attr, ReplayLog | None] | OSError) -> None:
            if session is None:
                self._admitting -= 1
            if isinstance(result, OSError):
                _LOG.error("tenant %r: the workspace cannot be served: %s", tenant.name, result)
                if session is not None:
                    self._start_grace(session)
                self._refuse(caller, hello, _refusal("workspace"))
            else:
                self._admit(caller, hello, ticket, tenant, session, *result)

        self.pool.submit(prepare, prepared)

    def _sought(self, hello: Hello, ticket: Ticket, tenant: Tenant) -> Session | None:
        """The session that *hello* asks for, None if it has to be a new one. Raises :class:`RefusedError`."""
        if PROTOCOL_VERSION not in hello.versions:
            raise _refusal("version")
        if self.stopping:
            raise _refusal("stopping")
        if "read" not in ticket.rights:
            raise RefusedError("workspace", "the ticket gives no right to read the workspace")
        session = self._sessions.get(hello.session)
        if session is None:
            if len(self._sessions) + self._admitting >= self.config.max_sessions:
                raise _refusal("busy")
        elif session.tenant.name != tenant.name or session.principal != ticket.principal:
            raise _refusal("session-foreign")
        return session

    def _refuse(self, caller: Caller, hello: Hello, error: RefusedError) -> None:
        _LOG.warning("refused %r: %s (%s)", hello.client[:CLIENT_TEXT], error.code, error)
        if not caller.closed:
            encoder = codec.Encoder(codec.HEADROOM)
            encoder.add(Refused(error.code, str(error)))
            caller.send(encoder.take())
            caller.close(1008, error.code)

    def _new_log(self, hello: Hello, ticket: Ticket) -> ReplayLog:
        id = secrets.token_hex(16)
        return self._state.create(
            Meta(
                session=id, tenant=ticket.tenant, principal=ticket.principal, client=hello.client[:CLIENT_TEXT],
                links=hello.links, since=self._clock(), boot=self._state.boot,
            )
        )  # fmt: skip

    def _admit(
        self,
        caller: Caller,
        hello: Hello,
        ticket: Ticket,
        tenant: Tenant,
        session: Session | None,
        sandbox: Sandbox,
        root: Attr,
        log: ReplayLog | None,
    ) -> None:
        self._sandboxes[tenant.name] = sandbox
        resumed = session is not None and not session.ended
        if session is None or session.ended:  # the latter: its grace ended while we looked at the disk
            if log is None:
                log = self._new_log(hello, ticket)
            meta = log.meta
            session = Session(
                id=meta.session, tenant=tenant, principal=meta.principal, client=meta.client,
                since=meta.since, log=log,
            )  # fmt: skip
            session.proto = self._proto(session.id)
            self._enter(session)
        if caller.closed:
            if resumed:
                self._start_grace(session)
            else:
                self.end(session)  # nobody knows of it
            return
        self.disconnected(session, session.connection, "another connection took the session over")
        self._stop_grace(session)
        raw_owner = tenant.raw_owner and os.geteuid() == 0
        if session.context is None:
            handles = HandleTable(self.config.max_handles)
            session.context = Context(sandbox.with_links(hello.links), handles, raw_owner)
        else:
            session.context.sandbox = session.context.sandbox.with_links(hello.links)
        session.client = hello.client[:CLIENT_TEXT]
        session.transport = hello.transport[:CLIENT_TEXT]
        session.read_only = tenant.read_only or "write" not in ticket.rights
        session.connection = caller
        recovered, session.recovered = session.recovered and resumed, False
        welcome = Welcome(
            version=PROTOCOL_VERSION,
            session=session.id,
            epoch=self.epoch,
            resumed=resumed and not recovered,
            recovered=recovered,
            window=self.config.window,
            window_bytes=self.config.window_bytes,
            max_payload=codec.DEFAULT_MAX_PAYLOAD,
            tenant=tenant.name,
            root=root,
            uid=os.geteuid(),
            gid=os.getegid(),
            read_only=session.read_only,
            raw_owner=raw_owner,
            grace=self.config.grace,
        )
        session.proto.attach(welcome)
        caller.admitted(session)
        kind = "recovered" if recovered else "resumed" if resumed else "new"
        _LOG.info(
            "session %s of %r is connected (%s, %s)", session.id[:8], session.client, kind, session.transport
        )
        self.mark(session)

    # --- while it lasts -------------------------------------------------------------------------------------

    def received(self, session: Session, data: codec.Buffer) -> None:
        """A message from the connection of *session*. Raises :class:`RemoteProtocolError`: close it; the
        session has ended."""
        try:
            events = session.proto.receive(data)
        except RemoteProtocolError:
            self.end(session)
            raise
        self.dispatcher.receive(session, events)

    def disconnected(self, session: Session, connection: Connection | None, reason: str = "") -> None:
        """*connection* does not carry *session* any longer; with *reason* it is closed. No news is no harm."""
        if connection is None or session.connection is not connection:
            return
        session.connection = None
        session.proto.detach()
        if reason:
            connection.close(1000, reason)
        self._start_grace(session)
        self.dispatcher.pump(session)  # a client that is away cannot be slow

    def _start_grace(self, session: Session) -> None:
        self._stop_grace(session)
        if not session.ended:
            session.grace = self._loop.call_later(self.config.grace, self._expired, session)

    def _stop_grace(self, session: Session) -> None:
        if session.grace is not None:
            session.grace.cancel()
            session.grace = None

    def _expired(self, session: Session) -> None:
        _LOG.info("session %s of %r did not come back and ends", session.id[:8], session.client)
        self.end(session)

    def _bye(self, session: Session) -> None:
        _LOG.info("session %s of %r said goodbye", session.id[:8], session.client)
        connection = session.connection
        self.end(session)
        if connection is not None:
            connection.close(1000, "")

    def end(self, session: Session) -> None:
        """Nothing of *session* remains: locks released, handles closed, record removed."""
        session.ended = True
        session.connection = None
        self._stop_grace(session)
        session.proto.close()
        session.todo.clear()
        session.ready.clear()
        self._dirty.pop(session, None)
        del self._sessions[session.id]
        del self._of_tenant[session.tenant.name][session.id]
        self.locks.end_session(session.id)

        def close() -> None:
            session.log.remove()
            if session.context is not None:
                session.context.handles.close_all()

        self.pool.submit(close, lambda _: None)

    def _lock_changed(self, hold: Hold, held: bool) -> None:
        session = self._sessions.get(hold.key.session)
        if session is None:
            return  # it has ended, and its record with it
        try:
            session.log.hold(hold, held)
        except OSError as exc:
            _LOG.error("a lock could not be recorded: %s", errno_name(errno_of(exc)))

    # --- the end of a loop turn -----------------------------------------------------------------------------

    def _changed(self, origin: Session, places: list[tuple[Identity, bytes | None]] | None) -> None:
        for session in self._of_tenant[origin.tenant.name].values():
            if session is not origin:
                if places is None:
                    session.pending.everything("another client changed something")
                else:
                    session.pending.add(places)
                self._dirty[session] = None

    def mark(self, session: Session) -> None:
        """Something was queued for *session*: it is sent at the end of this turn of the loop."""
        self._dirty[session] = None
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send what is queued: first what sessions are told of each other, then the replies to those who did
        it.
        """
        if not self._dirty:
            return
        dirty = list(self._dirty)
        self._dirty.clear()
        for session in dirty:
            if session.pending:
                self._flush_one(session)
        for session in dirty:
            self._flush_one(session)

    def _flush_one(self, session: Session) -> None:
        connection = session.connection
        if session.pending and (connection is None or not connection.paused):
            for message in session.pending.take():
                session.proto.notify(message)
        session.unsent = 0
        messages = session.proto.outgoing()
        if messages and connection is not None:
            connection.send(messages)

    def resumed_reading(self, session: Session) -> None:
        """The client of *session* reads again."""
        self.dispatcher.pump(session)
        self.mark(session)

    # --- the end --------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Finish what is at work, send the replies, and leave the sessions to a successor.

        The caller has seen to it that nothing new arrives.
        """
        self.stopping = True
        try:
            await asyncio.wait_for(self.pool.drained(), self.config.drain)
        except TimeoutError:
            _LOG.warning("stopping although %d operations are still at work", self.pool.busy)
        self.flush()
        for session in self._sessions.values():
            session.log.close()
        self.pool.stop(0.1)
        self._heartbeat.cancel()
        self._state.alive()
        self._state.close()

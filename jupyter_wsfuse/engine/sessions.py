"""The sessions of one engine: how they go on after a disconnect or the engine's death, and how they end.

A session belongs to the tenant of the ticket that began it (:mod:`.admission`), and is named by 128 random bits. It
outlives its connection by the grace period; a newer connection for it replaces an older one. What else has to
be one for all sessions lives here as well: the workspaces, the worker threads, and the end of a loop turn,
when everything queued is sent (:meth:`Sessions.flush`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..busypoll import BusyPoll
from ..errors import RefusedError, RemoteProtocolError, errno_name, errno_of
from ..protocol import codec
from ..protocol.messages import Identity, OpenReply
from ..protocol.serving import EngineSession
from ..protocol.tickets import TicketVerifier
from .admission import Admission
from .auditpaths import describe
from .auditstore import AuditStore
from .config import Config
from .dispatcher import Dispatcher
from .leases import Leaser, most_watches
from .locks import Hold, LockTable
from .panel import Panel
from .profiler import Profiler
from .replay import ReplayLog, StateDir
from .session import Connection, Session
from .tenants import Tenant, Tenants
from .watcher import Watcher
from .workers import WorkerPool
from .workspace import Emit, Reach, Workspace

_LOG = logging.getLogger(__name__)

#: Seconds after which a timer for a token's expiry is set anew: a loop's timers do not like years.
_DAY: Final = 86400.0
#: Per cent of all sessions that one tenant may have while there are others.
SHARE: Final = 75
#: What the record calls the states of a session.
_EVENTS: Final = {
    "begun": "session-begin",
    "resumed": "session-resume",
    "recovered": "session-resume",
    "ended": "session-end",
}


class Sessions:
    """See the module's text. Made on the running loop.

    *epoch* tells this engine from its predecessors. Takes up what *state* has of a predecessor. *emit* is told what
    others outside the engine want to know of; *reach* raises for a folder that the process cannot touch, and
    *renew* has another engine started that can, if that may help; *clock* gives seconds since the epoch.
    """

    def __init__(
        self,
        config: Config,
        tenants: Tenants,
        state: StateDir,
        *,
        epoch: int,
        clock: Callable[[], float] = time.time,
        audits: AuditStore | None = None,
        emit: Emit = lambda event: None,
        reach: Reach = lambda folder: None,
        renew: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config = config
        self.epoch = epoch
        self.stopping = False
        self.tenants = tenants
        self.state = state
        self.clock = clock
        self._audits = audits
        self._emit = emit
        self._reach = reach
        self.renew = renew
        self._private = [os.fsencode(path) for path in config.private]
        self._revoked = set(config.revoked)
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[str, Session] = {}
        self._workspaces: dict[str, Workspace] = {}
        self._dirty: dict[Session, None] = {}
        self._flush_scheduled = False
        self._looking_again: asyncio.TimerHandle | None = None
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.watcher = Watcher(
            watches=min(config.max_watches, most_watches(files)),
            each=config.max_leases,
            mark=self.mark,
            ended=self._leases_ended,
            again=self._look_again,
        )
        if not self.watcher.unable:
            self._loop.add_reader(self.watcher.fd, self._something_happened)
        self.pool = WorkerPool(config.workers, self.flush)
        self.poll = BusyPoll(self._loop, config.busy_poll)
        self.dispatcher = Dispatcher(
            self.pool,
            mark=self.mark, flush=self._flush_one, ended=self._bye, told=self._changed, describe=describe,
            begin=self.watcher.ours.begin,
        )  # fmt: skip
        verifier = TicketVerifier(config.key, config.audience, clock)
        self.panel = Panel(self, self.dispatcher, self.watcher)
        self._admission = Admission(self, verifier, self._revoked)
        self.greet = self._admission.greet
        self._take_up(state.recover(config.grace))
        self._beat()

    def workspace(self, tenant: Tenant) -> Workspace:
        """The running state of *tenant*."""
        workspace = self._workspaces.get(tenant.name)
        if workspace is None:
            workspace = self._workspaces[tenant.name] = Workspace(
                tenant,
                locks=LockTable(changed=self._lock_changed, offload=self.dispatcher.offload(tenant.name)),
                profiler=Profiler(self.config.slow_operation),
                audits=self._audits,
                emit=self._emit,
                reach=self._reach,
                private=self._private,
            )
        return workspace

    def assign(self, principal: str, groups: list[str], tenant: str) -> str:
        """The name of the tenant that the identity belongs to, *tenant* if it may have that one. Raises
        :class:`RefusedError`."""
        return self.tenants.assign(principal, groups, tenant).name

    def find(self, id: str) -> Session | None:
        return self._sessions.get(id)

    def __len__(self) -> int:
        """How many sessions there are, those without connection included."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def workspaces(self) -> list[Workspace]:
        """Of all tenants that were used."""
        return list(self._workspaces.values())

    def describe(self) -> list[dict[str, Any]]:
        """All sessions, for the status page."""
        return [session.describe() for session in self._sessions.values()]

    def describe_tenants(self) -> dict[str, dict[str, Any]]:
        """All tenants that were used, for the status page."""
        return {name: workspace.describe() for name, workspace in sorted(self._workspaces.items())}

    def operations(self) -> dict[str, dict[str, Any]]:
        """The profile over all tenants."""
        everyone = Profiler()
        for workspace in self._workspaces.values():
            everyone.merge(workspace.profiler)
        return everyone.snapshot()

    # --- what a dead predecessor left -----------------------------------------------------------------------

    def _take_up(self, logs: list[ReplayLog]) -> None:
        for log in logs:
            meta = log.meta
            try:
                tenant = self.tenants.assign(meta.principal, meta.groups, meta.tenant)
            except RefusedError:
                log.remove()
                continue
            if meta.token is not None and not self._revoked.isdisjoint(meta.token.family):
                log.remove()
                continue
            session = self.begin(self.workspace(tenant), log)
            remembered = {}
            for seq, frame in log.replies.items():
                reply = codec.client_decoder.decode(frame)[0][0]
                if isinstance(reply, OpenReply):
                    session.revivable[seq] = reply
                else:
                    remembered[seq] = frame
            session.proto = self._proto(session, remembered)
            session.recovered = session.may_reclaim = True
            session.workspace.locks.expect(log.holds)
            self.watch_token(session)
            self.start_grace(session)
        if logs:
            _LOG.info("took up %d sessions of an engine that died", len(self._sessions))
            self._loop.call_later(self.config.grace, self._end_reclaim)

    def _end_reclaim(self) -> None:
        for session in self._sessions.values():
            session.may_reclaim = False
        for workspace in self._workspaces.values():
            workspace.locks.end_reclaim()

    def _beat(self) -> None:
        self.state.alive()
        self._heartbeat = self._loop.call_later(self.config.grace / 4, self._beat)

    # --- beginning ------------------------------------------------------------------------------------------

    def begin(self, workspace: Workspace, log: ReplayLog) -> Session:
        """A new session, as *log* has it."""
        meta = log.meta
        session = Session(
            id=meta.session, workspace=workspace, principal=meta.principal, client=meta.client,
            since=meta.since, log=log, groups=meta.groups, address=meta.address, token=meta.token,
        )  # fmt: skip
        session.proto = self._proto(session)
        self._sessions[session.id] = session
        workspace.sessions[session.id] = session
        self.dispatcher.entered(session)
        return session

    def _proto(self, session: Session, remembered: dict[int, bytes] | None = None) -> EngineSession:
        return EngineSession(
            session.id,
            window=self.window(session.tenant),
            window_bytes=self.config.window_bytes,
            remembered=remembered,
            room=codec.HEADROOM,
        )

    def window(self, tenant: Tenant) -> int:
        """Requests that a session of *tenant* may have unanswered."""
        return min(self.config.window, tenant.session_limits.in_flight or self.config.window)

    def tell(self, session: Session, state: str, why: str = "") -> None:
        """*session* has "begun", is "resumed" or "recovered", or has "ended": for the record and for those who
        watch."""
        details = {"transport": session.transport} if state in ("begun", "resumed", "recovered") else {}
        session.workspace.audit.event(_EVENTS[state], session, message=why, **details)
        self._emit({**session.who(), "event": "session", "state": state})

    # --- while it lasts -------------------------------------------------------------------------------------

    def received(self, session: Session, data: codec.Buffer) -> None:
        """A message from the connection of *session*. Raises :class:`RemoteProtocolError`: close it; the
        session has ended."""
        try:
            events = session.proto.receive(data)
        except RemoteProtocolError:
            self.end(session, "it broke the protocol")
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
        self.start_grace(session)
        self.dispatcher.pump(session)  # a client that is away cannot be slow

    def start_grace(self, session: Session) -> None:
        self.stop_grace(session)
        if not session.ended:
            session.grace = self._loop.call_later(self.config.grace, self._expired, session)

    def stop_grace(self, session: Session) -> None:
        if session.grace is not None:
            session.grace.cancel()
            session.grace = None

    def _expired(self, session: Session) -> None:
        _LOG.info("session %s of %r did not come back and ends", session.id[:8], session.client)
        self.end(session, "it did not come back")

    def _bye(self, session: Session) -> None:
        _LOG.info("session %s of %r said goodbye", session.id[:8], session.client)
        self.end(session, "it said goodbye", 1000)

    def end(self, session: Session, why: str, code: int = 0) -> None:
        """Nothing of *session* remains: locks released, handles closed, record removed.

        With *code*, its connection is closed with that, and *why* as the reason.
        """
        connection, session.connection = session.connection, None
        if connection is not None and code:
            connection.close(code, "" if code == 1000 else why)
        session.ended = True
        self.stop_grace(session)
        if session.token_expiry is not None:
            session.token_expiry.cancel()
        session.proto.close()
        if session.leaser is not None:
            self.watcher.leases.end(session.leaser)
        self._dirty.pop(session, None)
        del self._sessions[session.id]
        self.dispatcher.left(session)
        session.workspace.left(session)
        session.workspace.locks.end_session(session.id)
        self.tell(session, "ended", why)

        def close() -> None:
            session.log.remove()
            if session.context is not None:
                session.context.handles.close_all()

        self.pool.submit(close, lambda _: None)

    def make_room(self, workspace: Workspace, admitting: int) -> bool:
        """Whether one more session fits into the engine for *workspace*.

        No tenant gets all of them while there may be others. Where there are too many, one that nobody is connected to
        ends early, of the same tenant, or of the one that has the most.
        """
        most = self.config.max_sessions
        share = most if self.tenants.alone else max(1, most * SHARE // 100)
        if len(workspace.sessions) + workspace.admitting >= share:
            return self._end_an_idle_one(workspace)
        if len(self._sessions) + admitting >= most:
            return self._end_an_idle_one(
                max(self._workspaces.values(), key=lambda other: len(other.sessions))
            )
        return True

    def _end_an_idle_one(self, workspace: Workspace) -> bool:
        for session in workspace.sessions.values():  # the oldest first
            if session.connection is None and session.grace is not None:
                _LOG.warning(
                    "session %s of %r ends early: there are too many", session.id[:8], session.client
                )
                self.end(session, "there were too many sessions")
                return True
        return False

    # --- tokens and tenants change --------------------------------------------------------------------------

    def watch_token(self, session: Session) -> None:
        """*session* ends when its token expires."""
        if session.token_expiry is not None:
            session.token_expiry.cancel()
            session.token_expiry = None
        if session.token is not None:
            left = session.token.expires - self.clock()
            session.token_expiry = self._loop.call_later(
                min(max(left, 0), _DAY), self._token_due, session, session.token.expires
            )

    def _token_due(self, session: Session, expires: float) -> None:
        if self.clock() < expires:
            self.watch_token(session)
        else:
            self._cut_off(session, "its token has expired")

    def revoke(self, token: str) -> dict[str, int]:
        """The scoped token of that id, and those made with it, are good for nothing from now on.

        Ends their sessions, and returns how many those were.
        """
        self._revoked.add(token)
        found = [s for s in self._sessions.values() if s.token is not None and token in s.token.family]
        for session in found:
            self._cut_off(session, "its token was revoked")
        return {"sessions": len(found)}

    def redefine(self, tenants: Tenants) -> None:
        """The definitions of tenants have changed. Sessions go on, except those that have lost their workspace."""
        self.tenants = tenants
        for name, workspace in list(self._workspaces.items()):
            changed: Tenant | None = None
            for session in list(workspace.sessions.values()):
                try:
                    tenant = tenants.assign(session.principal, session.groups, name)
                    if (
                        tenant.root != workspace.tenant.root
                        or tenant.follow_roots != workspace.tenant.follow_roots
                    ):
                        raise RefusedError("workspace", "the workspace is another one now")
                except RefusedError as exc:
                    self._cut_off(session, str(exc))
                else:
                    changed = tenant
                    session.read_only = tenant.read_only or not session.may_write
            if changed is not None:
                workspace.audit.event("reload")
                workspace.redefine(changed)
                for session in workspace.sessions.values():
                    if session.context is not None:
                        self.lease(session)
                    self.mark(session)
            else:  # nobody is left in it; whoever comes next finds the new one
                del self._workspaces[name]
                self.pool.submit(workspace.close, lambda _: None)

    def _cut_off(self, session: Session, why: str) -> None:
        _LOG.warning("session %s of %r is ended: %s", session.id[:8], session.client, why)
        self.end(session, why, 1008)

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
        for session in origin.workspace.sessions.values():
            if session is origin:
                continue
            # What a session may not see the names of, it must not be told the names of either.
            if places is None or (session.context is not None and session.context.policy.hides):
                session.pending.everything("another client changed something")
            elif session.context is not None and session.context.leases is not None:
                leases = session.leases
                if not leases:
                    continue
                session.pending.add([place for place in places if place[1] is None or place[0] in leases])
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
        """Send what is queued: first what sessions are told of each other and of what happened behind us, then the
        replies to those who did it.
        """
        if self.watcher.leases:
            self.watcher.drain()
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

    def _something_happened(self) -> None:
        """The kernel has news of watched files, or of such that were."""
        self.watcher.drain()
        self.flush()

    def _look_again(self, seconds: float) -> None:
        if self._looking_again is None:
            self._looking_again = self._loop.call_later(seconds, self._looked_again)

    def _looked_again(self) -> None:
        self._looking_again = None
        self._something_happened()

    def _leases_ended(self, session: Session, identities: list[Identity]) -> None:
        """*session* had too many leases. On the thread that granted the last one."""
        self._loop.call_soon_threadsafe(self._tell_ended, session, identities)

    def _tell_ended(self, session: Session, identities: list[Identity]) -> None:
        session.pending.released(identities)
        self.mark(session)

    def lease(self, session: Session) -> str:
        """Let *session* have leases, if it wants any and may, by the rules that it is under now. Those that it had end.
        Why it gets none, in words."""
        context, workspace = session.context, session.workspace
        assert context is not None
        if session.leaser is not None:
            session.pending.released(self.watcher.leases.end(session.leaser))
        why = ""
        if session.wants_leases:
            why = workspace.unwatchable or self.watcher.unable
            if not why and context.policy.hides:
                why = "some names are hidden from you, and changes are told by name"
            if not why and context.sandbox.links == "follow":
                why = "links are followed on the server, to files that are not watched"
        session.unwatched = why
        fine = session.wants_leases and not why
        context.leases = session.leaser = (
            Leaser(self.watcher.leases, session, context.sandbox) if fine else None
        )
        return why

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
        for workspace in self._workspaces.values():
            workspace.close()
        self.pool.stop(0.1)
        self._heartbeat.cancel()
        self.panel.close()
        if self._looking_again is not None:
            self._looking_again.cancel()
        if not self.watcher.unable:
            self._loop.remove_reader(self.watcher.fd)
        self.watcher.close()
        self.state.alive()
        self.state.close()

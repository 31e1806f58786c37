"""Who gets a session: a connection's Hello is answered with Welcome or Refused.

The ticket says who comes, with what rights, and with which scoped token if any; the tenants say which workspace
that is. A session is taken up again only by the same principal of the same tenant, with the same token.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import RefusedError, RemoteProtocolError
from ..protocol import codec
from ..protocol.messages import (
    LEASES,
    PROTOCOL_VERSION,
    REFUSALS,
    REPORTS,
    Attr,
    Hello,
    Refused,
    Welcome,
)
from ..protocol.serving import read_hello
from ..protocol.tickets import Ticket, TicketVerifier
from .context import Context
from .handles import HandleTable
from .hardening import OutOfReachError
from .replay import Meta, ReplayLog
from .sandbox import Sandbox
from .session import Connection, Session
from .workspace import Workspace

if TYPE_CHECKING:
    from .sessions import Sessions

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


class _Applicant:
    """A connection that asks for a session, until it has one or is refused."""

    def __init__(
        self, caller: Caller, hello: Hello, ticket: Ticket, workspace: Workspace, session: Session | None
    ) -> None:
        self.caller = caller
        self.hello = hello
        self.ticket = ticket
        self.workspace = workspace
        #: The one to take up again; None for a new one.
        self.session = session
        #: Handles of it that the client does not know any more.
        self.closing: list[int] = []


class Admission:
    """Admits connections to *sessions*. *revoked*: ids of scoped tokens that are good for nothing any more."""

    def __init__(self, sessions: Sessions, verifier: TicketVerifier, revoked: set[str]) -> None:
        self._sessions = sessions
        self._verifier = verifier
        self._revoked = revoked
        self._admitting = 0

    def greet(self, caller: Caller, data: codec.Buffer) -> None:
        """The first message of a connection: admit it or refuse it, perhaps later.

        Raises :class:`RemoteProtocolError` if it is no Hello.
        """
        hello = read_hello(data)
        if hello.links not in LINKS:
            raise RemoteProtocolError("a Hello that names no way to treat links")
        try:
            applicant = self._sought(caller, hello, self._verifier.redeem(hello.ticket))
        except RefusedError as exc:
            self._refuse(caller, hello, exc)
            return
        session, workspace = applicant.session, applicant.workspace
        if session is None:
            self._admitting += 1
            workspace.admitting += 1
        else:
            # From here on the old connection has nothing to say any more.
            self._sessions.disconnected(
                session, session.connection, "another connection took the session over"
            )
            if hello.handles is not None:
                applicant.closing = list(session.known.difference(hello.handles))
            for handle in applicant.closing:
                workspace.locks.close_handle(session.id, handle)
                session.known.discard(handle)
            self._sessions.stop_grace(session)
        self._sessions.pool.submit(
            lambda: self._prepare(applicant), lambda found: self._prepared(applicant, found)
        )

    def _sought(self, caller: Caller, hello: Hello, ticket: Ticket) -> _Applicant:
        """Whose session *hello* asks for, and which. Raises :class:`RefusedError`."""
        sessions = self._sessions
        if PROTOCOL_VERSION not in hello.versions:
            raise _refusal("version")
        if sessions.stopping:
            raise _refusal("stopping")
        workspace, token = self._entitled(ticket), ticket.token
        session = sessions.find(hello.session)
        if session is None:
            workspace.check_room(token)
            if not sessions.make_room(workspace, self._admitting):
                raise _refusal("busy")
        elif (
            session.workspace is not workspace
            or session.principal != ticket.principal
            or session.token_id != ("" if token is None else token.id)
        ):
            raise _refusal("session-foreign")
        return _Applicant(caller, hello, ticket, workspace, session)

    def _entitled(self, ticket: Ticket) -> Workspace:
        """The workspace that *ticket* opens now. Raises :class:`RefusedError`."""
        if ticket.token is not None and not self._revoked.isdisjoint(ticket.token.family):
            raise _refusal("token-revoked")
        if "read" not in ticket.rights:
            raise RefusedError("workspace", "the ticket gives no right to read the workspace")
        tenants = self._sessions.tenants
        return self._sessions.workspace(tenants.assign(ticket.principal, ticket.groups, ticket.tenant))

    def _refuse(self, caller: Caller, hello: Hello, error: RefusedError) -> None:
        _LOG.warning("refused %r: %s (%s)", hello.client[:CLIENT_TEXT], error.code, error)
        if not caller.closed:
            encoder = codec.Encoder(codec.HEADROOM)
            encoder.add(Refused(error.code, str(error)))
            caller.send(encoder.take())
            caller.close(1008, error.code)

    # --- in a worker thread ---------------------------------------------------------------------------------

    def _prepare(self, applicant: _Applicant) -> tuple[Sandbox, Attr, ReplayLog | None] | OSError:
        session = applicant.session
        try:
            sandbox = applicant.workspace.open()
            self._sessions.watcher.settle(sandbox)
            root = sandbox.stat(sandbox.root_fd)
            if session is None:
                return sandbox, root, self._new_log(applicant)
            if session.context is not None:
                for handle in applicant.closing:
                    session.context.handles.close(handle)
            return sandbox, root, None
        except OSError as exc:
            return exc

    def _new_log(self, applicant: _Applicant) -> ReplayLog:
        sessions, ticket = self._sessions, applicant.ticket
        return sessions.state.create(
            Meta(
                session=secrets.token_hex(16),
                tenant=applicant.workspace.tenant.name,
                principal=ticket.principal,
                client=applicant.hello.client[:CLIENT_TEXT],
                links=applicant.hello.links,
                since=sessions.clock(),
                boot=sessions.state.boot,
                groups=ticket.groups,
                address=ticket.address,
                token=ticket.token,
            )
        )

    # --- and back -------------------------------------------------------------------------------------------

    def _prepared(
        self, applicant: _Applicant, found: tuple[Sandbox, Attr, ReplayLog | None] | OSError
    ) -> None:
        workspace, session = applicant.workspace, applicant.session
        if session is None:
            self._admitting -= 1
            workspace.admitting -= 1
        if isinstance(found, OutOfReachError) and self._sessions.renew():
            if session is not None:
                self._sessions.start_grace(session)
            self._refuse(applicant.caller, applicant.hello, _refusal("stopping"))
        elif isinstance(found, OSError):
            _LOG.error("tenant %r: the workspace cannot be served: %s", workspace.tenant.name, found)
            if session is not None:
                self._sessions.start_grace(session)
            self._refuse(applicant.caller, applicant.hello, _refusal("workspace"))
        else:
            self._admit(applicant, *found)

    def _admit(self, applicant: _Applicant, sandbox: Sandbox, root: Attr, log: ReplayLog | None) -> None:
        sessions, workspace, caller = self._sessions, applicant.workspace, applicant.caller
        hello, ticket, session = applicant.hello, applicant.ticket, applicant.session
        try:  # while we looked at the disk, the token may have been revoked and the tenants redefined
            if self._entitled(ticket) is not workspace:
                raise _refusal("workspace")
        except RefusedError as exc:
            if log is not None:
                log.remove()
            if session is not None:
                sessions.start_grace(session)
            self._refuse(caller, hello, exc)
            return
        token = ticket.token
        resumed = session is not None and not session.ended
        if session is None or session.ended:  # the latter: its grace ended while we looked at the disk
            session = sessions.begin(workspace, log or self._new_log(applicant))
        if caller.closed:
            if resumed:
                sessions.start_grace(session)
            else:
                sessions.end(session, "nobody knows of it")
            return
        sessions.disconnected(session, session.connection, "another connection took the session over")
        sessions.stop_grace(session)
        tenant, config = workspace.tenant, sessions.config
        raw_owner = tenant.raw_owner and os.geteuid() == 0
        session.token, session.groups, session.address = token, ticket.groups, ticket.address
        session.may_write = "write" in ticket.rights
        policy = workspace.policy(ticket.groups, token, session.may_write)
        if session.context is None:
            limits = [config.max_handles, tenant.session_limits.handles or config.max_handles]
            handles = HandleTable(min(limits), budget=session.limiter)
            handles.observer = workspace.quota
            session.context = Context(sandbox.with_links(hello.links), handles, raw_owner, policy=policy)
        else:
            session.context.sandbox = session.context.sandbox.with_links(hello.links)
            session.context.policy = policy
        session.wants_leases = LEASES in hello.features
        session.reports = REPORTS in hello.features
        unwatched = sessions.lease(session)
        session.client = hello.client[:CLIENT_TEXT]
        session.transport = hello.transport[:CLIENT_TEXT]
        session.read_only = tenant.read_only or not session.may_write
        session.connection = caller
        sessions.watch_token(session)
        features = [LEASES] if session.context.leases is not None else []
        features += [REPORTS] if session.reports else []
        recovered, session.recovered = session.recovered and resumed, False
        welcome = Welcome(
            version=PROTOCOL_VERSION,
            session=session.id,
            epoch=sessions.epoch,
            resumed=resumed and not recovered,
            recovered=recovered,
            window=sessions.window(tenant),
            window_bytes=config.window_bytes,
            max_payload=codec.DEFAULT_MAX_PAYLOAD,
            tenant=tenant.name,
            root=root,
            uid=os.geteuid(),
            gid=os.getegid(),
            read_only=session.read_only,
            raw_owner=raw_owner,
            grace=config.grace,
            features=features,
            unwatched=unwatched,
        )
        session.proto.attach(welcome)
        if session.reports and sessions.panel.watched:
            session.proto.watched(True)
        caller.admitted(session)
        kind = "recovered" if recovered else "resumed" if resumed else "begun"
        _LOG.info(
            "session %s of %r is connected (%s, %s)", session.id[:8], session.client, kind, session.transport
        )
        sessions.tell(session, kind)
        sessions.mark(session)

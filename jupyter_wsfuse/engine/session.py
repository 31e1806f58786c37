"""What the engine keeps for one session, from its first Hello to its Bye or the end of its grace."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from ..protocol.events import Event
from ..protocol.messages import Identity
from ..protocol.serving import EngineSession
from ..protocol.tickets import TokenClaims
from .changes import Pending
from .context import Context
from .gates import Gate
from .leases import Leaser, Watched
from .limiter import Held, Limiter
from .locks import Waiting
from .profiler import SessionProfile
from .replay import ReplayLog
from .tenants import Tenant
from .workspace import Workspace


class Connection(Protocol):
    """The connection that carries a session."""

    paused: bool  # the peer does not read: nothing more is executed for it

    def send(self, messages: list[bytearray]) -> None:
        """Send messages that have :data:`.codec.HEADROOM` bytes free in front."""

    def close(self, code: int, reason: str) -> None: ...


class Session:
    """Plain state; the rules are in :mod:`.sessions` (life) and :mod:`.dispatcher` (requests)."""

    def __init__(
        self,
        *,
        id: str,
        workspace: Workspace,
        principal: str,
        client: str,
        since: float,
        log: ReplayLog,
        groups: tuple[str, ...] = (),
        address: str = "",
        token: TokenClaims | None = None,
    ) -> None:
        self.id = id
        self.workspace = workspace
        self.limiter = Limiter(workspace.tenant.session_limits, parent=workspace.limiter_for(token))
        self.profile = SessionProfile()
        self.groups = groups
        #: What the client came with, if that was a scoped token.
        self.token = token
        self.token_expiry: asyncio.TimerHandle | None = None
        #: Where the client is, as its HTTP server saw it; for the record.
        self.address = address
        self.principal = principal
        self.client = client
        self.since = since
        self.log = log
        self.proto: EngineSession
        #: None: of a former engine and not asked for yet.
        self.context: Context | None = None
        self.transport = ""
        self.read_only = True
        #: The ticket lets it write, whatever the tenant's definition says just now.
        self.may_write = False
        self.ended = False
        #: The first Welcome is still to say that this engine took the session over.
        self.recovered = False
        #: Locks of the former engine may be claimed.
        self.may_reclaim = False
        self.connection: Connection | None = None
        self.grace: asyncio.TimerHandle | None = None

        self.todo: deque[Event] = deque()  # received and not looked at
        self.later: deque[Event] = deque()  # of these, what nobody waits for
        self.gates: dict[int, Gate] = {}
        self.held: dict[int, Held] = {}  # requests and replies that a rate limit holds back
        self.waits: dict[int, Waiting] = {}  # SetLock requests without an answer
        self.unsent = 0  # bytes of replies queued since the last flush
        #: Handles that the client may not know of yet, by the request whose reply names them; and those it
        #: knows.
        self.unacknowledged: dict[int, int] = {}
        self.known: set[int] = set()
        #: Remembered replies of a former engine that name a handle, which has to be opened again first.
        self.revivable: dict[int, Any] = {}
        self.pending = Pending()
        #: The client wants to be told of changes by leases, and those that it has.
        self.wants_leases = False
        #: Why it is not told, in words; empty if it is, or does not want to be.
        self.unwatched = ""
        self.leases: dict[Identity, Watched] = {}
        self.leaser: Leaser | None = None
        #: The client says what it knows of itself, if somebody looks.
        self.reports = False
        self.lease_ends = 0  # how many leases have ended
        #: Requests of :attr:`later` that are at work.
        self.behind = 0
        self.requests = 0

    @property
    def tenant(self) -> Tenant:
        return self.workspace.tenant

    @property
    def token_id(self) -> str:
        return "" if self.token is None else self.token.id

    def who(self) -> dict[str, Any]:
        """Whose session this is, for events. The id is cut: the whole of it is the client's secret."""
        return {
            "tenant": self.tenant.name,
            "principal": self.principal,
            "client": self.client,
            "address": self.address,
            "session": self.id[:16],
            "token": self.token_id,
        }

    @property
    def paused(self) -> bool:
        """The client does not read what it is sent."""
        return self.connection is not None and self.connection.paused

    def describe(self) -> dict[str, Any]:
        """For the status page. The id is cut: the whole of it is the client's secret."""
        return {
            "id": self.id[:8],
            "client": self.client,
            "transport": self.transport,
            "connected": self.connection is not None,
            "handles": 0 if self.context is None else len(self.context.handles),
            "requests": self.requests,
            "leases": len(self.leases),
            "since": self.since,
            "tenant": self.tenant.name,
            "read_only": self.read_only,
            "principal": self.principal,
            "address": self.address,
            "token": self.token_id,
            "limits": self.limiter.describe(),
        }

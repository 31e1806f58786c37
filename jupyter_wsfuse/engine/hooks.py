"""What a request passes on its way through the dispatcher, as the dispatcher sees it.

Each is a protocol with a null implementation, which is also what a workspace has where the thing is switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..protocol.messages import Error, Reply, Request
from .context import Context, Payload
from .tenants import AuditOptions

if TYPE_CHECKING:
    from .session import Session

Result: TypeAlias = tuple[Reply, Payload]
#: The path that a request names, and the second one of those that name two.
Paths: TypeAlias = tuple[bytes, bytes]


class Audit(Protocol):
    """The record of who did what in one workspace."""

    @property
    def refusing(self) -> bool:
        """Nothing may change in the workspace, because it could not be recorded."""

    def wants(self, kind: type[Request], failed: bool, denied: bool) -> bool:
        """Whether a request of this kind that ended so is recorded. Cheap: asked for each request."""

    def record(
        self,
        session: Session,
        request: Request,
        paths: Paths,
        error: Error | None,
        rule: str,
        size: int,
        total_ns: int,
    ) -> None:
        """Record a request that has been executed or refused. On the event loop; does not block. *rule* is the
        one that denied it, *size* the bytes of file data moved, *total_ns* the time from arrival to reply."""

    def barrier(self) -> bool:
        """Wait until everything recorded so far is on disk; False if it is not. Blocks."""

    def event(self, operation: str, session: Session | None = None, **details: Any) -> None:
        """Record what is no request, as that a session began. On the event loop."""

    def reconfigure(self, options: AuditOptions) -> None:
        """Other options hold from now on. On the event loop."""

    def state(self) -> dict[str, Any]:
        """For the status page."""

    def close(self) -> None:
        """Everything recorded is written, and nothing more will be. Blocks."""


class NullAudit:
    """Records nothing."""

    refusing = False

    def wants(self, kind: type[Request], failed: bool, denied: bool) -> bool:
        return False

    def record(
        self,
        session: Session,
        request: Request,
        paths: Paths,
        error: Error | None,
        rule: str,
        size: int,
        total_ns: int,
    ) -> None: ...

    def barrier(self) -> bool:
        return True

    def event(self, operation: str, session: Session | None = None, **details: Any) -> None: ...

    def reconfigure(self, options: AuditOptions) -> None: ...

    def state(self) -> dict[str, Any]:
        return {
            "record": "off", "state": "off", "error": "", "refusing": False, "lag": 0.0, "pending": 0, "lost": 0,
            "entries": 0, "segment": 0, "stream": -1, "hash": "",
        }  # fmt: skip

    def close(self) -> None: ...


class Quota(Protocol):
    """How much a workspace may hold."""

    def account(self, context: Context, request: Any, payload: Payload, run: Callable[[], Result]) -> Result:
        """Execute *run*, which is *request* with *payload* on the files, if there is room for what it may add.
        Raises ``EDQUOT`` otherwise, nothing done. In a worker thread."""


#: The paths that a request names, for the record; handles are looked up in the context.
Describe: TypeAlias = Callable[[Any, Context], Paths]


def no_paths(request: Any, context: Context) -> Paths:
    """A :data:`Describe` where nobody wants to know."""
    return b"", b""

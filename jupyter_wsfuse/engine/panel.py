"""What the panel of the Jupyter server shows of the engine, asked for by its control line while somebody looks.

Each question (:meth:`Panel.look`) says that somebody looks for :data:`LEASE` seconds more. Only during that time is
noted where the workspaces change, and are clients told that their own figures are wanted. An answer is bounded,
whatever clients say of themselves, and made of what is counted anyway: histograms are gone through only for
operations that came to them since.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from ..protocol.messages import Report, Request, SymLink
from .auditpaths import ROOT, describe
from .dispatcher import Dispatcher
from .leases import Watched
from .profiler import Profiler, SessionProfile
from .sandbox import proc_path
from .session import Session
from .watcher import Watcher
from .workspace import Workspace

if TYPE_CHECKING:
    from .sessions import Sessions

#: Seconds for which one question keeps the noting up.
LEASE: Final = 5.0
#: Sessions of one answer; there may be more, and their number is told.
MOST_SESSIONS: Final = 128
#: Folders of a workspace that are named as changed; if more have, that is said instead.
MOST_FOLDERS: Final = 256
#: Bytes of such a folder's path.
LONGEST_FOLDER: Final = 1024
#: Slow operations of a tenant that are told.
MOST_SLOW: Final = 20
#: The largest number that is shown: JavaScript has no larger whole ones.
MOST_COUNTED: Final = (1 << 53) - 1
#: Bytes of an answer: it has to fit into one line of the control line, which takes 1 MiB.
MOST_BYTES: Final = 700_000
#: Sessions and tenants up to which an answer cannot come near that.
_FEW: Final = 8
#: What is left out of an answer that is too large, in this order.
_CUTS: Final = (
    ("sessions", "operations"),
    ("tenants", "slow"),
    ("sessions", "report"),
    ("tenants", "operations"),
)


class Panel:
    """See the module's text. On the event loop."""

    def __init__(self, sessions: Sessions, dispatcher: Dispatcher, watcher: Watcher) -> None:
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._watcher = watcher
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._until = 0.0  # loop time
        self._timer: asyncio.TimerHandle | None = None
        self._folders: dict[str, set[bytes] | None] = {}  # by tenant; None: too many
        self._roots: dict[str, tuple[object, bytes]] = {}
        self._rows: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        self._held: dict[str, int] = {}  # session -> nanoseconds that its requests were held back in all

    @property
    def watched(self) -> bool:
        """Somebody looks."""
        return self._timer is not None

    def close(self) -> None:
        """Nobody looks any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._stop()

    # --- the question ---------------------------------------------------------------------------------------

    def look(
        self, views: Collection[str] = (), principals: list[str] | None = None, peek: bool = False
    ) -> dict[str, Any]:
        """The sessions, and of their tenants what *views* ("profile", "limits", "audit") need. *principals*: whose
        sessions; None: all, and all tenants.

        ``sessions``: by the beginning of their id what :meth:`_session` says; ``count``: how many there are.
        ``tenants``: by name what :meth:`_tenant` says. ``changed``: by tenant the folders in which something changed
        since the last question, relative to its root; null: too many to name. *peek*: somebody only wants to know once.
        """
        if not peek:
            self._watch()
        chosen = [s for s in self._sessions if principals is None or s.principal in principals]
        names = {session.tenant.name for session in chosen}
        shown = chosen[-MOST_SESSIONS:]
        tenants = {
            workspace.tenant.name: self._tenant(workspace, views, whole=principals is None)
            for workspace in self._sessions.workspaces()
            if principals is None or workspace.tenant.name in names
        }
        changed: dict[str, set[bytes] | None] = {}
        if not peek:
            changed, self._folders = self._folders, {}
        answer = {
            "epoch": self._sessions.epoch,
            "uptime_s": round(self._loop.time() - self._started, 1),
            "count": len(chosen),
            "sessions": {session.id[:16]: self._session(session, "profile" in views) for session in shown},
            "tenants": tenants,
            "changed": {
                name: None if found is None else [os.fsdecode(path) for path in found]
                for name, found in changed.items()
                if name in tenants
            },
        }
        live = {session.id for session in self._sessions}
        self._held = {id: held for id, held in self._held.items() if id in live}
        few = max(len(shown), len(tenants)) <= _FEW
        return answer if few else _fitting(answer)

    def reset(self, tenants: list[str] | None = None, session: str = "") -> None:
        """Count operations from zero again: of *tenants* (None: all), or of the one *session* by the beginning of its
        id. Raises :class:`LookupError` if there is none."""
        if session:
            for found in self._sessions:
                if found.id[:16] == session:
                    found.profile = SessionProfile()
                    self._held.pop(found.id, None)
                    return
            raise LookupError("that mount is not connected any more")
        for workspace in self._sessions.workspaces():
            if tenants is None or workspace.tenant.name in tenants:
                workspace.profiler.reset()
        self._rows.clear()

    # --- the answer -----------------------------------------------------------------------------------------

    def _session(self, session: Session, profile: bool) -> dict[str, Any]:
        totals = session.profile.operations()
        held = sum(row[4] for row in totals.values())
        before = self._held.get(session.id, 0)
        if self.watched:
            self._held[session.id] = held
        throttled: dict[str, Any] | None = None
        if session.held:
            oldest = next(iter(session.held.values()))
            throttled = {"counter": oldest.name, "until_s": round(oldest.patience, 1)}
        elif held > before:
            throttled = {"counter": "", "until_s": 0.0}
        row: dict[str, Any] = {
            "client": _printable(session.client),
            "tenant": session.tenant.name,
            "principal": session.principal,
            "address": session.address,
            "token": session.token_id,
            "transport": _printable(session.transport),
            "connected": session.connection is not None,
            "read_only": session.read_only,
            "unwatched": session.unwatched,
            "since": session.since,
            "requests": session.requests,
            "handles": 0 if session.context is None else len(session.context.handles),
            "grace": self._sessions.config.grace,
            "throttled": throttled,
            "limits": {name: _mine(figures) for name, figures in session.limiter.own().items()},
        }
        if session.proto.report is not None:
            row["report"] = _report(session.proto.report)
        if profile:
            row["operations"] = totals
        return row

    def _tenant(self, workspace: Workspace, views: Collection[str], *, whole: bool) -> dict[str, Any]:
        tenant = workspace.tenant
        found: dict[str, Any] = {
            "root": os.fsdecode(self._root(workspace) or tenant.root),
            "hide": tenant.hide,
        }
        if "profile" in views:
            found["operations"] = self._operations(tenant.name, workspace.profiler)
            found["slow"] = workspace.profiler.slowest()[:MOST_SLOW] if whole else []
        if "limits" in views:
            found["limits"] = workspace.limiter.own()
            found["quota"] = None if workspace.quota is None else workspace.quota.describe()
            found["sessions"] = {"limit": tenant.limits.sessions, "used": len(workspace.sessions)}
        if "audit" in views:
            state = workspace.audit.state()
            found["audit"] = {name: state[name] for name in ("state", "error", "entries", "stream", "lost")}
        return found

    def _operations(self, tenant: str, profiler: Profiler) -> dict[str, Any]:
        found = {}
        for name, count in profiler.counts().items():
            known = self._rows.get((tenant, name))
            if known is None or known[0] != count:
                row = profiler.row(name)
                del row["buckets"]
                known = self._rows[tenant, name] = (count, row)
            found[name] = known[1]
        return found

    # --- where workspaces change ----------------------------------------------------------------------------

    def _watch(self) -> None:
        self._until = self._loop.time() + LEASE
        if self._timer is None:
            self._folders = {}
            self._dispatcher.on_change = self._changed
            self._watcher.on_change = self._changed_behind
            self._tell(True)
            self._timer = self._loop.call_later(LEASE, self._due)

    def _due(self) -> None:
        left = self._until - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._due)
        else:
            self._stop()

    def _stop(self) -> None:
        self._timer = None
        self._dispatcher.on_change = self._watcher.on_change = None
        self._folders, self._roots, self._rows, self._held = {}, {}, {}, {}
        self._tell(False)

    def _tell(self, watched: bool) -> None:
        for session in self._sessions:
            if session.reports:
                session.proto.watched(watched)
                self._sessions.mark(session)

    def _changed(self, session: Session, request: Request) -> None:
        assert session.context is not None
        paths = describe(request, session.context)
        for path in paths[:1] if type(request) is SymLink else paths:  # the other is where that one leads
            if path:
                self._note(session.tenant.name, path.rpartition(b"/")[0])

    def _changed_behind(self, watched: Watched) -> None:
        for workspace in {session.workspace for session in watched.holders}:
            root = self._root(workspace)
            try:
                path = os.readlink(proc_path(watched.fd))
            except OSError:  # the path is too long
                continue
            if not watched.directory:
                path = path.rpartition(b"/")[0]
            if path == root:
                self._note(workspace.tenant.name, b"")
            elif root and path.startswith(root + b"/"):
                self._note(workspace.tenant.name, path[len(root) + 1 :])

    def _root(self, workspace: Workspace) -> bytes:
        known = self._roots.get(workspace.tenant.name)
        if known is None or known[0] is not workspace.sandbox:
            path = b""
            if workspace.sandbox is not None:
                try:
                    path = os.readlink(proc_path(workspace.sandbox.root_fd))
                except OSError:
                    pass
            known = self._roots[workspace.tenant.name] = (workspace.sandbox, path)
        return known[1]

    def _note(self, tenant: str, folder: bytes) -> None:
        folders = self._folders.setdefault(tenant, set())
        if folders is not None:
            folders.add(b"" if folder == ROOT else folder)
            if len(folders) > MOST_FOLDERS or len(folder) > LONGEST_FOLDER:
                self._folders[tenant] = None


def _report(report: Report) -> dict[str, Any]:
    """What a client says of itself, as it may be shown: who sends it can say anything."""
    return {
        "state": report.state if report.state in ("connected", "parked") else "",
        "host": _printable(report.host),
        "path": _printable(os.fsdecode(report.path)),
        "rtt_ms": round(_number(report.rtt) / 1e6, 3) or None,
        "operations": _number(report.operations),
        "hits": _number(report.hits),
        "misses": _number(report.misses),
        "unsynced": _number(report.unsynced),
        "held": _number(report.held),
        "rescue": {
            _printable(each.name) or str(place): {
                "path": _printable(os.fsdecode(each.path)),
                "reason": _printable(each.reason),
                "bytes": _number(each.size),
                "time": _number(each.time) / 1e9,
            }
            for place, each in enumerate(report.rescue)
        },
    }


def _number(value: int) -> int:
    """A counter that is one, and that every reader of JSON can hold."""
    return max(0, min(value, MOST_COUNTED))


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _mine(figures: dict[str, Any]) -> dict[str, Any]:
    wanted = ("limit", "used", "allowed", "delayed", "refused", "waited")
    return {name: figures[name] for name in wanted if name in figures}


def _fitting(answer: dict[str, Any]) -> dict[str, Any]:
    """*answer*, without what there is no room for."""
    for collection, part in _CUTS:
        if len(json.dumps(answer)) <= MOST_BYTES:
            return answer
        for row in answer[collection].values():
            row.pop(part, None)
    return {**answer, "changed": dict.fromkeys(answer["changed"])}

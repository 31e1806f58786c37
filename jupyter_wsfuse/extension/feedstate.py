"""What the panel shows, made of what engine, supervisor and steward say. Pure: no I/O, no clock.

A state holds objects, lists and plain values, and never null: what is not known is left out, so that a merge patch
(RFC 7396), in which null removes, can tell every change.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

State = dict[str, Any]

VIEWS: Final = ("mounts", "profile", "limits", "audit")
#: The daemon's names of an operation's figures, in seconds, and ours in microseconds.
_TIMES: Final = {"mean": "mean_us", "p50": "p50_us", "p95": "p95_us", "p99": "p99_us", "max": "max_us"}
#: Classes of limits and the unit of what is used of them.
_UNITS: Final = {
    "metadata": "operations/s",
    "read": "operations/s",
    "write": "operations/s",
    "delete": "operations/s",
    "bytes_in": "bytes/s",
    "bytes_out": "bytes/s",
    "in_flight": "requests",
    "handles": "files",
    "sessions": "mounts",
    "quota": "bytes",
}
#: A round trip that differs by less than this part of it, or by less than so many milliseconds, is the same.
_RTT_PART: Final = 0.25
_RTT_LEAST: Final = 0.5


# --- merge patches ---------------------------------------------------------------------------------------------


def diff(old: State, new: State) -> State:
    """The merge patch that makes *new* of *old*; empty if they are the same."""
    patch: State = {}
    for name in old.keys() - new.keys():
        patch[name] = None
    for name, value in new.items():
        before = old.get(name)
        if name in old and isinstance(value, dict) and isinstance(before, dict):
            inner = diff(before, value)
            if inner:
                patch[name] = inner
        elif name not in old or not _same(before, value):
            patch[name] = value
    return patch


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def without_null(value: Any) -> Any:
    """*value* with nothing that is null in its objects."""
    if isinstance(value, dict):
        return {str(name): without_null(inner) for name, inner in value.items() if inner is not None}
    return value


# --- where things are ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The server: its file browser's ``root`` (an absolute path), the ``urls`` by which it is mounted on this machine,
    and the ``url`` by which the panel does it; empty: it cannot."""

    root: str
    urls: frozenset[tuple[str, int, str]] = frozenset()
    url: str = ""

    def folder(self, path: str) -> str | None:
        """*path*, an absolute one, as the file browser names it; None: it is not in there."""
        if path == self.root:
            return ""
        prefix = self.root.rstrip("/") + "/"
        return path[len(prefix) :] if path.startswith(prefix) else None

    def serves(self, url: str) -> bool:
        """Whether *url* is this very server's."""
        return address(url) in self.urls


def address(url: str) -> tuple[str, int, str]:
    """What makes two URLs of servers the same: host (one name for this machine's own), port, path."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return "", 0, ""
    host = (parts.hostname or "").lower()
    if host in ("localhost", "::1", "0.0.0.0", "") or host.startswith("127."):
        host = "127.0.0.1"
    return host, port, "/" + parts.path.strip("/")


# --- what is known ---------------------------------------------------------------------------------------------


@dataclass
class Snapshot:
    """All that is known at ``time`` (seconds since the epoch).

    ``engine``: what the supervisor says; ``panel``: the engine's answer to "panel", empty if there was none;
    ``mounts``: the steward's answer to "look"; ``rates``: of what :func:`counters` names, a second. ``owners``: by the
    id of a mount on this machine who mounted it, as far as an engine ever said so.
    """

    time: float
    engine: Mapping[str, Any]
    panel: Mapping[str, Any] = field(default_factory=dict)
    mounts: Collection[Mapping[str, Any]] = ()
    rates: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)

    @property
    def sessions(self) -> Mapping[str, Mapping[str, Any]]:
        return self.panel.get("sessions", {})

    @property
    def tenants(self) -> Mapping[str, Mapping[str, Any]]:
        return self.panel.get("tenants", {})


@dataclass(frozen=True)
class Viewer:
    """Who looks. ``principal`` None: everything of the server is his."""

    principal: str | None
    audit: bool = True

    def owns(self, principal: str | None) -> bool:
        return self.principal is None or principal == self.principal


class Rates:
    """Operations a second, from counters that are looked at now and then."""

    #: Seconds over which a rate is taken at least.
    WINDOW: Final = 0.9

    def __init__(self) -> None:
        self._before: dict[tuple[str, ...], tuple[float, float]] = {}
        self.now: dict[tuple[str, ...], float] = {}

    def update(self, counters: Mapping[tuple[str, ...], float], time: float) -> None:
        """*counters* as they are at *time* (seconds, monotonic). One that fell began again at zero."""
        found = {}
        before: dict[tuple[str, ...], tuple[float, float]] = {}
        for name, count in counters.items():
            then, was = self._before.get(name, (time, count))
            if count < was:
                was = 0.0
            if time - then >= self.WINDOW:
                found[name] = _rounded((count - was) / (time - then))
                then, was = time, count
            else:
                found[name] = self.now.get(name, 0.0)
            before[name] = (then, was)
        self._before, self.now = before, found


def _rounded(rate: float) -> float:
    return round(rate) if rate >= 10 else round(rate, 1)


def counters(panel: Mapping[str, Any], mounts: Collection[Mapping[str, Any]]) -> dict[tuple[str, ...], float]:
    """What :class:`Rates` are taken of: operations by mount and tenant, and what passed each limit."""
    found: dict[tuple[str, ...], float] = {}
    for name, session in panel.get("sessions", {}).items():
        found["mount", name] = session["requests"]
        for kind, figures in session.get("limits", {}).items():
            found["limit", name, kind] = figures.get("allowed", 0) + figures.get("delayed", 0)
    for name, tenant in panel.get("tenants", {}).items():
        if "operations" in tenant:
            found["tenant", name] = sum(row["count"] for row in tenant["operations"].values())
        for kind, figures in tenant.get("limits", {}).items():
            found["limit", "", name, kind] = figures.get("allowed", 0) + figures.get("delayed", 0)
    for mount in mounts:
        figures = (mount.get("daemon") or {}).get("figures")
        if figures:
            found["mount", mount["id"]] = figures["operations"]
    return found


# --- the state -------------------------------------------------------------------------------------------------


def build(snapshot: Snapshot, views: Collection[str], viewer: Viewer, place: Place, before: State) -> State:
    """What *viewer*, who looks at *views*, is shown of *snapshot*. *before*: what he was shown last; what changes all
    the time without meaning anything stays as it was."""
    if not views:
        return {}
    mounts = Mounts(snapshot, viewer, place)
    state: State = {"engine": _engine(snapshot, before.get("engine", {}))}
    if "mounts" in views:
        known = before.get("mounts", {})
        state["mounts"] = {id: _steady(row, known.get(id, {})) for id, row in mounts.rows.items()}
    if "profile" in views:
        state["profile"] = dict(_profiles(snapshot, viewer, mounts))
    if "limits" in views:
        state["limits"] = dict(_limits(snapshot, viewer, mounts))
    if "audit" in views and viewer.audit:
        state["audit"] = _audit(snapshot)
    return without_null(state)


def _engine(snapshot: Snapshot, before: Mapping[str, Any]) -> State:
    engine = snapshot.engine
    found = {name: engine.get(name) for name in ("state", "pid", "restarts", "error")}
    found["error"] = found["error"] or ""
    same = before.get("pid") is not None and before.get("pid") == found["pid"]
    found["uptime_s"] = before.get("uptime_s") if same else engine.get("uptime_s")
    count = snapshot.panel.get("count")
    if count is not None and count > len(snapshot.sessions):
        found["more_mounts"] = count - len(snapshot.sessions)
    return found


def _steady(row: State, before: Mapping[str, Any]) -> State:
    rtt, was = row.get("rtt_ms"), before.get("rtt_ms")
    if rtt is not None and was is not None and abs(rtt - was) < max(_RTT_PART * was, _RTT_LEAST):
        row["rtt_ms"] = was
    return row


class Mounts:
    """The mounts that *viewer* is shown, each once. ``rows`` by id; ``local``: the steward's words by id; ``sessions``:
    the id of the session that belongs to a mount; ``shown``: the other way round."""

    def __init__(self, snapshot: Snapshot, viewer: Viewer, place: Place) -> None:
        self.rows: dict[str, State] = {}
        self.local: dict[str, Mapping[str, Any]] = {}
        self.sessions: dict[str, str] = {}
        self._known = snapshot.sessions
        self._time = snapshot.time
        self._place = place
        for mount in snapshot.mounts:
            id = str(mount["id"])
            name = session_of(mount)
            session = snapshot.sessions.get(name)
            owner = snapshot.owners.get(id) if session is None else session["principal"]
            ours = session is not None or id in snapshot.owners or place.serves(str(mount.get("url", "")))
            if ours and viewer.owns(owner):
                self.local[id] = mount
                if session is not None:
                    self.sessions[id] = name
                self.rows[id] = self._here(mount, session)
        self.shown = {name: id for id, name in self.sessions.items()}
        taken = {session_of(mount) for mount in snapshot.mounts}
        for name, session in snapshot.sessions.items():
            if name not in taken and viewer.owns(session["principal"]):
                self.sessions[name] = self.shown[name] = name
                self.rows[name] = self._elsewhere(session)

    def session(self, id: str) -> Mapping[str, Any]:
        """What the engine says of the mount *id*; empty: nothing."""
        return self._known.get(self.sessions.get(id, ""), {})

    def _here(self, mount: Mapping[str, Any], session: Mapping[str, Any] | None) -> State:
        connection = (mount.get("daemon") or {}).get("connection") or {}
        figures = (mount.get("daemon") or {}).get("figures") or {}
        path = str(mount.get("mountpoint", ""))
        waited = max(0.0, self._time - connection.get("since", self._time))
        state, reason = _state_here(mount, connection, waited)
        row: State = {
            "state": state,
            "reason": reason,
            "path": path,
            "host": os.uname().nodename,
            "local": True,
            "managed": True,
            "folder": self._place.folder(path),
            "tenant": session["tenant"] if session else str(mount.get("tenant") or ""),
            "transport": connection.get("transport") or (session or {}).get("transport", ""),
            "client": session["client"] if session else "",
            "read_only": bool(mount.get("read_only") or connection.get("read_only")),
            "since": mount.get("since"),
            "rtt_ms": connection.get("rtt_ms"),
            "hit_rate": _hit_rate(figures.get("hits"), figures.get("misses")),
            "operations": figures.get("operations"),
            "unsynced": figures.get("unsynced", 0),
            "rescue": figures.get("rescue", {}),
            "held": connection.get("held", 0),
        }
        if state in ("reconnecting", "disconnected"):
            row["waited_s"] = round(waited)
            row["deadline_s"] = connection.get("deadline")
        return row

    def _elsewhere(self, session: Mapping[str, Any]) -> State:
        client = session["client"]
        host, _, path = client.partition(":")
        report = session.get("report") or {}
        state, reason = _state_elsewhere(session, report)
        return {
            "state": state,
            "reason": reason,
            "path": report.get("path") or path,
            "host": report.get("host") or host or session["address"],
            "local": False,
            "managed": False,
            "folder": None,
            "tenant": session["tenant"],
            "transport": session["transport"],
            "client": client,
            "read_only": session["read_only"],
            "since": session["since"],
            "rtt_ms": report.get("rtt_ms"),
            "hit_rate": _hit_rate(report.get("hits"), report.get("misses")),
            "operations": report.get("operations", session["requests"]),
            "unsynced": report.get("unsynced", 0),
            "rescue": report.get("rescue", {}),
            "held": report.get("held", 0),
        }


def session_of(mount: Mapping[str, Any]) -> str:
    """The beginning of the id of the session that the steward says *mount* has; empty: none."""
    connection = (mount.get("daemon") or {}).get("connection") or {}
    return str(connection.get("session") or "")


def _hit_rate(hits: int | None, misses: int | None) -> float | None:
    if hits is None or misses is None or hits + misses <= 0:
        return None
    return round(hits / (hits + misses), 3)


_TAKE_DOWN: Final = "Unmount it, here or by `wsfuse umount`, and mount it again."


def _state_here(mount: Mapping[str, Any], connection: Mapping[str, Any], waited: float) -> tuple[str, str]:
    """State and reason of a mount on this machine."""
    trouble = str(connection.get("last_error") or "")
    match mount.get("state"):
        case "connecting":
            return "mounting", ""
        case "unmounting":
            return "unmounting", ""
        case "restarting":
            return "reconnecting", f"Its process ended ({mount.get('last_death')}) and is being replaced."
        case "dead":
            return "failed", f"The processes that served it are gone. {_TAKE_DOWN}"
        case "unsupervised":
            return (
                "degraded",
                f"The process that looks after it is gone; it works as long as the other one lives. {_TAKE_DOWN}",
            )
        case "not answering":
            return "degraded", "Its process does not answer; its log may say why."
    match connection.get("state"):
        case "connected":
            if connection.get("told") is False and mount.get("cache") is not False:
                why = connection.get("untold_because")
                return "degraded", "What others change is seen after a second" + (f": {why}." if why else ".")
            return "connected", ""
        case "parked":
            return "parked", ""
        case "failed":
            return "failed", f"{trouble or 'The server refused it'}. {_TAKE_DOWN}"
        case "reconnecting":
            if waited > float(connection.get("deadline") or 0):
                return "disconnected", (
                    f"{trouble or 'The server cannot be reached'}. Operations fail until it is back; it is tried again "
                    "and again."
                )
            return "reconnecting", trouble
    return "degraded", "Its process does not answer; its log may say why."


def _state_elsewhere(session: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[str, str]:
    """State and reason of a mount on another machine."""
    if session["connected"]:
        if report.get("state") == "degraded":
            return "degraded", "What others change is seen there after a second."
        return "connected", ""
    if report.get("state") == "parked":
        return "parked", ""
    return "disconnected", (
        f"Its connection was lost. Its open files and locks are kept for {session['grace']:.0f} s after that."
    )


# --- figures ---------------------------------------------------------------------------------------------------


def _profiles(snapshot: Snapshot, viewer: Viewer, mounts: Mounts) -> Iterator[tuple[str, State]]:
    tenants = {
        name: tenant
        for name, tenant in snapshot.tenants.items()
        if "operations" in tenant and (viewer.principal is None or name in _tenants(mounts))
    }
    for name, tenant in tenants.items():
        alone = len(tenants) == 1
        yield (
            "server" if alone else f"server {name}",
            {
                "rate": snapshot.rates.get(("tenant", name), 0.0),
                "operations": {kind: _operation(row) for kind, row in tenant["operations"].items()},
                "slow": [] if viewer.principal is not None else _slow(tenant["slow"], "total_us", 1),
            },
        )
    for id in mounts.rows:
        local = mounts.local.get(id)
        found = ((local or {}).get("daemon") or {}).get("figures", {}).get("profile")
        session = mounts.session(id)
        if found is not None:
            operations = {name: _mount_operation(row) for name, row in found["operations"].items()}
            slow = _slow(found["slow"], "seconds", 1e6)
        elif "operations" in session:
            operations = {name: _totals(row) for name, row in session["operations"].items()}
            slow = []
        else:
            continue
        yield id, {"rate": snapshot.rates.get(("mount", id), 0.0), "operations": operations, "slow": slow}


def _tenants(mounts: Mounts) -> set[str]:
    return {str(row["tenant"]) for row in mounts.rows.values()}


def _operation(row: Mapping[str, Any]) -> State:
    wanted = ("count", "errors", "mean_us", "p50_us", "p95_us", "p99_us", "max_us", "bytes")
    return {name: row[name] for name in wanted}


def _mount_operation(row: Mapping[str, Any]) -> State:
    count = row["count"]
    return {
        "count": count,
        "errors": row["errors"],
        **{ours: round(row[theirs] * 1e6, 3) for theirs, ours in _TIMES.items()},
        "bytes": row["bytes"],
        "hit_rate": round(row["cache_hits"] / count, 3) if count else None,
    }


def _totals(row: Collection[int]) -> State:
    count, errors, total, _, _, size = row
    return {
        "count": count,
        "errors": errors,
        "mean_us": round(total / 1000 / count, 3) if count else 0,
        "bytes": size,
    }


def _slow(found: Collection[Mapping[str, Any]], name: str, factor: float) -> list[State]:
    rows = [
        {
            "time": row["time"],
            "operation": row["operation"],
            "path": row["path"],
            "duration_us": round(row[name] * factor),
        }
        for row in found
    ]
    return sorted(rows, key=lambda row: -row["duration_us"])


def _limits(snapshot: Snapshot, viewer: Viewer, mounts: Mounts) -> Iterator[tuple[str, State]]:
    for name, tenant in snapshot.tenants.items():
        if viewer.principal is not None and name not in _tenants(mounts):
            continue
        table: dict[str, State] = {}
        for kind, figures in (tenant.get("limits") or {}).items():
            table[kind] = _counter(kind, figures, snapshot.rates.get(("limit", "", name, kind), 0.0))
        table["sessions"] = _counter("sessions", tenant.get("sessions") or {}, 0.0)
        quota = tenant.get("quota")
        if quota:
            table["quota"] = _counter("quota", quota, 0.0)
        throttled = {}
        for id, session in snapshot.sessions.items():
            if session["tenant"] != name:
                continue
            for kind, figures in session.get("limits", {}).items():
                if figures.get("limit") is not None:
                    each = _counter(kind, figures, snapshot.rates.get(("limit", id, kind), 0.0))
                    _most(table.setdefault(f"each mount: {kind}", each), each)
            if session["throttled"] and viewer.owns(session["principal"]):
                throttled[session["client"] or id] = session["throttled"]
        yield name, {"counters": table, "throttled": throttled}


def _counter(kind: str, figures: Mapping[str, Any], rate: float) -> State:
    return {
        "used": figures.get("used", rate),
        "limit": figures.get("limit"),
        "unit": _UNITS.get(kind, ""),
        "delayed": figures.get("delayed", 0),
        "refused": figures.get("refused", 0),
        "waited_s": round(figures.get("waited", 0.0), 3),
    }


def _most(known: State, other: State) -> None:
    """Of the mounts that have a limit each, the one that uses most of it is shown, and what was held back of all."""
    if known is other:
        return
    known["used"] = max(known["used"], other["used"])
    for name in ("delayed", "refused", "waited_s"):
        known[name] += other[name]


def _audit(snapshot: Snapshot) -> State:
    audits = [tenant["audit"] for tenant in snapshot.tenants.values() if "audit" in tenant]
    errors = sorted({audit["error"] for audit in audits if audit["error"]})
    return {
        "entries": sum(audit["entries"] for audit in audits),
        "failed": "; ".join(errors),
        "streams": sum(audit["stream"] >= 0 for audit in audits),
    }


def changed_folders(panel: Mapping[str, Any], viewer: Viewer, place: Place) -> list[str] | None:
    """The folders of the file browser that the engine's answer names as changed, for *viewer*; None: any may be."""
    found: set[str] = set()
    tenants = panel.get("tenants", {})
    his = {
        session["tenant"]
        for session in panel.get("sessions", {}).values()
        if viewer.owns(session["principal"])
    }
    for name, folders in panel.get("changed", {}).items():
        tenant = tenants.get(name)
        if tenant is None or (viewer.principal is not None and (name not in his or tenant["hide"])):
            continue
        if folders is None:
            return None
        for folder in folders:
            path = place.folder(os.path.normpath(os.path.join(tenant["root"], folder)))
            if path is not None:
                found.add(path)
    return sorted(found)

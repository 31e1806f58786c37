"""What the panel shows, made of what engine, supervisor and steward say. Pure: no I/O, no clock.

A state holds objects, lists and plain values, and never null: what is not known is left out, so that a merge patch
(RFC 7396), in which null removes, can tell every change.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from jupyter_wsfuse.extension.feedmounts import Mounts, Place, Snapshot, Viewer
from jupyter_wsfuse.extension.mergepatch import State, without_null

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

"""The mounts that somebody is shown: what engine and steward say of them, each once. Pure: no I/O, no clock."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from jupyter_wsfuse.extension.mergepatch import State

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

    ``engine``: what the supervisor says; ``panel``: the engine's answer to "panel", empty if there was none, with
    ``old`` if it does not answer now;
    ``mounts``: the steward's answer to "look"; ``rates``: of what :func:`.feedstate.counters` names, a second.
    ``owners``: by the id of a mount on this machine who mounted it, as far as an engine ever said so.
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


class Mounts:
    """The mounts that *viewer* is shown, each once. ``rows`` by id; ``local``: the steward's words by id; ``sessions``:
    the id of the session that belongs to a mount; ``shown``: the other way round."""

    def __init__(self, snapshot: Snapshot, viewer: Viewer, place: Place) -> None:
        self.rows: dict[str, State] = {}
        self.local: dict[str, Mapping[str, Any]] = {}
        self.sessions: dict[str, str] = {}
        self._known = snapshot.sessions
        self._old = bool(snapshot.panel.get("old"))
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
        state, reason = ("reconnecting", _NO_ENGINE) if self._old else _state_elsewhere(session, report)
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


_NO_ENGINE: Final = "The server's file engine does not answer; it is started again if that goes on."
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
                return "degraded", _untold(str(connection.get("untold_because") or ""))
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


def _untold(why: str) -> str:
    return "What others change is seen after a second" + (f": {why}." if why else ".")


def _state_elsewhere(session: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[str, str]:
    """State and reason of a mount on another machine."""
    if session["connected"]:
        if session["unwatched"]:
            return "degraded", _untold(session["unwatched"])
        return "connected", ""
    if report.get("state") == "parked":
        return "parked", ""
    return "disconnected", (
        f"Its connection was lost. Its open files and locks are kept for {session['grace']:.0f} s after that."
    )

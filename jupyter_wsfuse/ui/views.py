"""What the commands' results look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jupyter_wsfuse.ui.render import Report, ago, size

_OUTCOMES = {
    "clean": "unmounted",
    "lazy": "unmounted; files that were still open have been closed since",
    "aborted": "unmounted by force: operations that were under way have failed",
}


def mounted(status: dict[str, Any], prefix: str) -> Report:
    """After a successful ``mount``."""
    connection = _connection(status)
    words = [str(connection.get("transport") or ""), "read-only" if status.get("read_only") else ""]
    how = ", ".join(filter(None, words))
    report = Report(status)
    report.line(f"Mounted {status['url']} on {status['mountpoint']}" + (f" ({how})" if how else ""), "ok")
    return report.line(f"{prefix} status shows it, {prefix} umount takes it down", "hint")


def unmounted(results: Sequence[tuple[str, dict[str, Any]]]) -> Report:
    """After ``umount``."""
    report = Report([{"mountpoint": path, **result} for path, result in results])
    for path, result in results:
        outcome = str(result["outcome"])
        report.line(f"{path}: {_OUTCOMES.get(outcome, outcome)}", "ok" if outcome == "clean" else "warn")
        if outcome != "clean" and result.get("users"):
            users = ", ".join(f"{name} ({pid})" for pid, name in result["users"])
            report.line(f"  it was in use by {users}", "warn")
        for warning in result.get("warnings", []):
            report.line(f"  {warning}", "warn")
    if not results:
        report.line("Nothing was mounted.")
    return report


def _connection(status: dict[str, Any]) -> dict[str, Any]:
    return (status.get("daemon") or {}).get("connection") or {}


def status(found: Sequence[dict[str, Any]], prefix: str) -> Report:
    """All mounts, and how they are."""
    report = Report(list(found))
    if not found:
        report.line("Nothing is mounted.")
        return report.line(f"{prefix} mount [URL] [DIR] mounts a workspace", "hint")
    rows = []
    for mount in found:
        connection = _connection(mount)
        rtt = connection.get("rtt_ms")
        rows.append(
            (
                str(mount.get("mountpoint", "")),
                str(mount.get("url", "?")),
                _state(mount),
                str(connection.get("transport") or "-"),
                f"{rtt:.1f} ms" if isinstance(rtt, int | float) else "-",
                "read-only" if mount.get("read_only") else "read-write",
                ago(mount.get("since")),
            )
        )
    report.grid(("mounted on", "server", "state", "path", "round trip", "access", "for"), rows)
    for mount in found:
        problem = _connection(mount).get("last_error")
        if problem and _state(mount) != "connected":
            report.line(f"{mount['mountpoint']}: {problem}", "warn")
        if mount.get("state") in ("dead", "unsupervised", "not answering"):
            report.line(
                f"{mount['mountpoint']}: `{prefix} umount {mount['mountpoint']}` takes it down", "hint"
            )
    return report


def _state(mount: dict[str, Any]) -> str:
    """One word: the mount's own state, or that of its connection if the mount is well."""
    state = str(mount.get("state", "?"))
    if state != "mounted":
        return state
    daemon = mount.get("daemon") or {}
    return str(_connection(mount).get("state") or ("mounted" if daemon.get("answering") else "not answering"))


def stats(mountpoint: str, found: dict[str, Any]) -> Report:
    """The profile of a mount, a row an operation."""
    report = Report({"mountpoint": mountpoint, **found})
    rows = [
        (
            name,
            str(row["count"]),
            str(row["errors"]),
            f"{1e3 * row['mean']:.3f}",
            f"{1e3 * row['max']:.1f}",
            size(row["bytes"]) if row["bytes"] else "",
            f"{row['cache_hits'] / row['count']:.0%}" if row["cache_hits"] else "",
        )
        for name, row in found["operations"].items()
    ]
    if not rows:
        return report.line(f"{mountpoint}: no operation yet.")
    report.line(f"{mountpoint}, for {ago(found['since'])}", "title")
    return report.grid(("operation", "count", "errors", "mean ms", "max ms", "data", "from cache"), rows)

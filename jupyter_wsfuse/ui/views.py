"""What the commands' results look like."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from jupyter_wsfuse.ui.advice import advise, place_name
from jupyter_wsfuse.ui.render import Report, ago, milliseconds, printable, seconds, size

#: Directories that the report of a profile lists.
_PLACES: Final = 10

_OUTCOMES = {
    "clean": "unmounted",
    "lazy": "unmounted; files that were still open have been closed since",
    "aborted": "unmounted by force: operations that were under way have failed",
}


def mounted(status: dict[str, Any], prefix: str) -> Report:
    """After a successful ``mount``."""
    connection = _connection(status)
    words = [str(connection.get("transport") or ""), "read-only" if _is_read_only(status) else ""]
    how = ", ".join(filter(None, words))
    report = Report(status)
    report.line(f"Mounted {status['url']} on {status['mountpoint']}" + (f" ({how})" if how else ""), "ok")
    _untold(report, status)
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


def _is_read_only(status: dict[str, Any]) -> bool:
    """By its own options, or because the server lets this session, this token, change nothing."""
    return bool(status.get("read_only") or _connection(status).get("read_only"))


def _changes(status: dict[str, Any]) -> str:
    """How soon what others change is seen."""
    if status.get("cache") is False:
        return "not cached"
    told = _connection(status).get("told")
    return "-" if told is None else "pushed" if told else "after 1 s"


def _untold(report: Report, status: dict[str, Any]) -> None:
    why = _connection(status).get("untold_because")
    if _changes(status) == "after 1 s":
        report.line(
            f"{status['mountpoint']}: what others change is seen after 1 s"
            + (f", because {printable(str(why))}" if why else ""),
            "warn",
        )


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
                "read-only" if _is_read_only(mount) else "read-write",
                _changes(mount),
                ago(mount.get("since")),
            )
        )
    report.grid(("mounted on", "server", "state", "path", "round trip", "access", "changes", "for"), rows)
    for mount in found:
        problem = _connection(mount).get("last_error")
        if problem and _state(mount) != "connected":
            report.line(f"{mount['mountpoint']}: {problem}", "warn")
        _untold(report, mount)
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


# --- figures ---------------------------------------------------------------------------------------------------


def stats(
    mountpoint: str, found: dict[str, Any], *, slow: bool = False, before: dict[str, Any] | None = None
) -> Report:
    """The figures of a mount, a row an operation. *slow*: the slow ones by themselves as well. *before*: what was found
    earlier, both with their ``time`` (seconds), for rates."""
    report = Report({"mountpoint": mountpoint, **found})
    operations = found["operations"]
    if not operations:
        return report.line(f"{mountpoint}: no operation yet.")
    report.line(f"{mountpoint}, for {ago(found['since'])}", "title")
    counts = [("operation", list(operations)), ("count", [str(row["count"]) for row in operations.values()])]
    _columns(report, [*counts, *_rates(found, before), *_latencies(operations)])
    _waits(report, found.get("waiting"))
    _remembered(report, found.get("cache") or {}, found.get("pages") or {})
    _ahead(report, found.get("prefetch") or {})
    if slow:
        _slow(report, found)
    return report


def _rates(found: dict[str, Any], before: dict[str, Any] | None) -> list[tuple[str, list[str]]]:
    if before is None or found["time"] <= before["time"]:
        return []
    seconds = found["time"] - before["time"]
    counts = [
        (row["count"] - before["operations"].get(name, {"count": 0})["count"]) / seconds
        for name, row in found["operations"].items()
    ]
    return [("per s", [f"{max(rate, 0):.0f}" for rate in counts])]


def _latencies(operations: dict[str, Any]) -> list[tuple[str, list[str]]]:
    rows = operations.values()
    return [
        ("errors", [str(row["errors"] or "") for row in rows]),
        ("mean ms", [milliseconds(row["mean"]) for row in rows]),
        *((name, [milliseconds(row[name]) for row in rows]) for name in ("p50", "p95", "p99", "max")),
        ("data", [size(row["bytes"]) if row["bytes"] else "" for row in rows]),
        (
            "from cache",
            [f"{row['cache_hits'] / row['count']:.0%}" if row["cache_hits"] else "" for row in rows],
        ),
        ("waited s", [f"{row['waited']:.2f}" if row["waited"] >= 0.005 else "" for row in rows]),
    ]


def _columns(report: Report, columns: list[tuple[str, list[str]]]) -> None:
    """A table of the columns that are not empty."""
    shown = [(header, cells) for header, cells in columns if any(cells)]
    report.grid([header for header, _ in shown], list(zip(*(cells for _, cells in shown), strict=True)))


def _waits(report: Report, waiting: dict[str, Any] | None) -> None:
    if waiting is None or waiting["sum"] <= 0:
        return
    said = f"Operations waited {seconds(waiting['sum'])} for the server"
    if waiting["wall"] and waiting["sum"] > 1.2 * waiting["wall"]:
        said += f", side by side in {seconds(waiting['wall'])}"
    report.line(said + parts(waiting["parts"], waiting["sum"]))


def _remembered(report: Report, cache: dict[str, Any], pages: dict[str, Any]) -> None:
    """What is in the daemon's memory; an older one does not say."""
    if cache:
        report.line(
            f"Names and attributes{_answered(cache)}: {cache.get('attributes', 0)} files, "
            f"{cache.get('entries', 0)} names in {cache.get('directories', 0)} directories remembered, "
            f"{cache.get('leases', 0)} leases"
        )
    if pages:
        report.line(
            f"File data{_answered(pages)}: {pages.get('files', 0)} files, {size(pages.get('bytes', 0))} remembered"
        )


def _answered(counts: dict[str, Any]) -> str:
    hits, misses = counts.get("hits", 0), counts.get("misses", 0)
    return f", {hits / (hits + misses):.0%} from memory".replace("%", " %") if hits + misses else ""


def _ahead(report: Report, prefetch: dict[str, Any]) -> None:
    """What was fetched before it was asked for, a row a policy that has done something."""
    rows = [
        (
            name,
            str(row["issued"]),
            str(row.get("used", 0)),
            str(row.get("wasted", 0)),
            "pauses: mostly wrong" if row.get("paused") else "",
        )
        for name, row in prefetch.items()
        if isinstance(row, dict) and (row.get("issued") or row.get("paused"))
    ]
    if rows:
        report.grid(("prefetch", "asked", "used", "wasted", ""), rows)
    window = prefetch.get("window") or {}
    if rows and window.get("rate"):
        report.line(
            f"Fetched ahead: up to {size(window['limit'])} on the way, at {size(window['rate'])}/s at best"
        )


def parts(found: dict[str, float] | None, whole: float) -> str:
    """What waiting consisted of, to follow a clause: ``: network 80 %, disk 20 %``."""
    if found is None:
        return " (which does not say now how much of it was its own part)"
    shares = [(name, value / whole) for name, value in found.items() if whole and value >= 0.005 * whole]
    return (
        ": " + ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in shares) if shares else ""
    )


def _slow(report: Report, found: dict[str, Any]) -> None:
    slow = found["slow"]
    if not slow:
        report.line("No operation took longer than a second.")
        return
    count = found["slow_count"]
    some = f", the last of {count}" if count > len(slow) else ""
    report.line(f"Slower than a second{some}:", "title")
    report.grid(
        ("at", "operation", "path", "took", ""),
        [
            (
                time.strftime("%H:%M:%S", time.localtime(row["time"])),
                row["operation"],
                printable(row["path"]) or ".",
                seconds(row["seconds"]),
                "failed" if row["failed"] else "",
            )
            for row in slow
        ],
    )


def profile(mountpoint: str, result: dict[str, Any], prefix: str | None = "wsfuse") -> Report:
    """What was done while a profile was taken, and what would be faster. *prefix*: what is typed before commands, None
    for a mount that remembers nothing."""
    report = Report({"mountpoint": mountpoint, **result})
    operations = result["operations"]
    if not operations:
        return report.line(f"Nothing was asked of {mountpoint} in {seconds(result['seconds'])}.")
    count = sum(row["count"] for row in operations.values())
    moved = [
        f"{size(operations[name]['bytes'])} {word}"
        for name, word in (("read", "read"), ("write", "written"))
        if operations.get(name, {}).get("bytes")
    ]
    report.line(
        f"{mountpoint}: {', '.join([f'{count} operations', *moved])} in {seconds(result['seconds'])}", "title"
    )
    _waits(report, result["waiting"])
    for advice in advise(mountpoint, result, prefix):
        report.line(advice.what, "warn" if advice.todo else "")
        if advice.todo:
            report.line(f"  {advice.todo}", "ok")
    counts = [("operation", list(operations)), ("count", [str(row["count"]) for row in operations.values()])]
    _columns(report, [*counts, *_latencies(operations)])
    places = result["places"][:_PLACES]
    _columns(
        report,
        [
            ("directory", [place_name(row["directory"]) for row in places]),
            ("operation", [row["operation"] for row in places]),
            ("count", [str(row["count"]) for row in places]),
            ("waited s", [f"{row['waited']:.2f}" if row["waited"] >= 0.005 else "" for row in places]),
            ("data", [size(row["bytes"]) if row["bytes"] else "" for row in places]),
        ],
    )
    return report

"""Results as text, as HTML, as data."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jupyter_wsfuse.ui import render, views
from jupyter_wsfuse.ui.render import Report

NASTY = "<script>alert(1)</script> [bold]x[/bold]"


def test_text_is_never_taken_for_markup() -> None:
    report = Report({}).line(NASTY, "ok").grid(("name",), [(NASTY,)])
    assert str(report).count(NASTY) == 2
    page = report._repr_html_()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 2


def test_long_paths_stay_in_one_line() -> None:
    path = "/long/" + "x" * 300
    assert path in str(Report({}).line(path))


class Printer:
    def text(self, text: str) -> None:
        self.shown = text


def test_it_shows_itself_in_ipython() -> None:
    report, printer = Report([1]).line("done"), Printer()
    report._repr_pretty_(printer, False)
    assert printer.shown == str(report) == repr(report) == "done"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (864000, "10 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB"), (1 << 20, "1.0 MiB")]
)
def test_sizes(number: int, text: str) -> None:
    assert render.size(number) == text


def test_ago() -> None:
    assert render.ago(None) == "-"
    assert render.ago(time.time() - 600) == "10 min"


# --- views -----------------------------------------------------------------------------------------------------


def mount(**changes: Any) -> dict[str, Any]:
    connection = {"state": "connected", "transport": "direct", "rtt_ms": 0.25, "last_error": ""}
    daemon = {"pid": 2, "answering": True, "connection": {**connection, **changes.pop("connection", {})}}
    return {
        "mountpoint": "/mnt/a", "url": "http://h/", "state": "mounted", "read_only": False, "since": time.time() - 600,
        "daemon": daemon, **changes,
    }  # fmt: skip


def test_status_of_nothing_says_what_to_do() -> None:
    report = views.status([], "%wsfuse")
    assert report.data == []
    assert "%wsfuse mount" in str(report)


def test_status_of_a_healthy_mount() -> None:
    text = str(views.status([mount(read_only=True)], "wsfuse"))
    for part in ("/mnt/a", "http://h/", "connected", "direct", "0.2 ms", "read-only", "10 min"):
        assert part in text


def test_a_session_that_is_read_only_although_the_mount_is_not() -> None:
    mine = mount(connection={"read_only": True})
    assert "read-only" in str(views.status([mine], "wsfuse"))
    assert "(direct, read-only)" in str(views.mounted(mine, "wsfuse"))
    assert "read-write" in str(views.status([mount(connection={"read_only": False})], "wsfuse"))


def test_how_soon_changes_are_seen() -> None:
    pushed = mount(connection={"told": True, "untold_because": ""})
    assert "pushed" in str(views.status([pushed], "wsfuse"))
    assert "1 s" not in str(views.mounted(pushed, "wsfuse"))
    why = "the workspace lies on a network file system (nfs\x1b)"
    untold = mount(connection={"told": False, "untold_because": why})
    for report in (views.status([untold], "wsfuse"), views.mounted(untold, "wsfuse")):
        assert "/mnt/a: what others change is seen after 1 s, because the workspace lies on" in str(report)
        assert "\x1b" not in str(report)
    assert "seen after 1 s\n" in str(views.status([mount(connection={"told": False})], "wsfuse")) + "\n"
    forgetful = str(views.status([mount(cache=False, connection={"told": False})], "wsfuse"))
    assert "not cached" in forgetful
    assert "1 s" not in forgetful
    older = str(views.status([mount()], "wsfuse"))
    assert "pushed" not in older
    assert "1 s" not in older


def test_status_says_what_is_wrong_and_what_to_do() -> None:
    text = str(views.status([mount(connection={"state": "reconnecting", "last_error": "refused"})], "wsfuse"))
    assert "reconnecting" in text
    assert "/mnt/a: refused" in text
    for state in ("dead", "unsupervised", "not answering"):
        assert "wsfuse umount /mnt/a" in str(views.status([mount(state=state, daemon={})], "wsfuse"))
    assert "not answering" in str(views.status([mount(daemon={"pid": 1, "answering": False})], "wsfuse"))


def test_unmounted() -> None:
    assert "Nothing" in str(views.unmounted([]))
    clean = {"outcome": "clean", "users": [], "warnings": []}
    assert str(views.unmounted([("/mnt/a", clean)])) == "/mnt/a: unmounted"
    forced = {"outcome": "aborted", "users": [[7, "python"]], "warnings": ["not synced"]}
    text = str(views.unmounted([("/mnt/a", forced)]))
    assert "by force" in text
    assert "python (7)" in text
    assert "not synced" in text


def row(**changes: Any) -> dict[str, Any]:
    values = {
        "count": 4, "errors": 0, "seconds": 0.01, "mean": 0.0025, "min": 0.001, "max": 0.004, "p50": 0.002,
        "p95": 0.004, "p99": 0.004, "bytes": 0, "cache_hits": 0, "asked": 3, "waited": 0.009,
    }  # fmt: skip
    return {**values, **changes}


def figures(**operations: dict[str, Any]) -> dict[str, Any]:
    parts = {"network": 1.5, "server": 0.0, "disk": 0.4, "limit": 0.1}
    waiting = {"sum": 2.0, "wall": 2.0, "parts": parts, "operations": {}}
    return {"operations": operations, "since": time.time(), "waiting": waiting, "slow": [], "slow_count": 0}


def result() -> dict[str, Any]:
    """Of a profile."""
    places = [
        {"directory": "data", "operation": "open", "count": 212, "asked": 212, "seconds": 3.1, "waited": 3.0149,
         "bytes": 0},
        {"directory": None, "operation": "read", "count": 9, "asked": 9, "seconds": 0.1, "waited": 0.1, "bytes": 7},
    ]  # fmt: skip
    return {
        "seconds": 4.13,
        "operations": {"read": row(count=4, bytes=1024), "write": row(count=2, bytes=2048)},
        "waiting": {"sum": 3.3, "wall": 3.3, "parts": None, "operations": None},
        "places": places,
        "places_known": 2,
    }


def test_stats() -> None:
    assert "no operation" in str(views.stats("/mnt/a", {"operations": {}, "since": 0}))
    found = figures(read=row(count=4, errors=1, bytes=2048, cache_hits=1))
    text = str(views.stats("/mnt/a", found))
    for part in ("read", "4", "2.500", "4.000", "2.0 KiB", "25%", "Operations waited 2 s for the server: "):
        assert part in text
    assert "network 75 %, disk 20 %, limit 5 %" in text
    assert "per s" not in text
    assert "side by side" not in text
    assert "took longer" not in text
    assert "errors" not in str(views.stats("/mnt/a", figures(read=row()))), (
        "columns without anything are left out"
    )


def test_a_server_that_does_not_say() -> None:
    found = figures(read=row())
    found["waiting"] = {"sum": 3.0, "wall": 1.0, "parts": None, "operations": None}
    text = str(views.stats("/mnt/a", found))
    assert "waited 3 s for the server, side by side in 1 s (which does not say" in text
    found["waiting"]["parts"] = dict.fromkeys(("network", "server", "disk", "limit"), 0.0)
    assert "side by side in 1 s\n" in str(views.stats("/mnt/a", found)) + "\n"


def test_rates() -> None:
    before = {**figures(read=row(count=4)), "time": 100.0}
    now = {**figures(read=row(count=24), open=row(count=2), stat=row(count=1)), "time": 102.0}
    before["operations"]["stat"] = row(count=1)
    lines = str(views.stats("/mnt/a", now, before=before)).splitlines()
    assert lines[1].split()[:3] == ["operation", "count", "per"]
    assert [line.split()[:3] for line in lines[2:4]] == [["read", "24", "10"], ["open", "2", "1"]]
    assert lines[4].split()[:3] == ["stat", "1", "0"], "nothing since"
    assert "per s" not in str(views.stats("/mnt/a", before, before=before))


def test_what_is_remembered_and_fetched_ahead() -> None:
    found = figures(read=row())
    older = str(views.stats("/mnt/a", found))
    for word in ("remembered", "prefetch", "ahead"):
        assert word not in older
    found["cache"] = {
        "hits": 93, "misses": 7, "attributes": 1200, "entries": 1100, "directories": 60, "links": 1, "leases": 59,
        "nodes": 1300,
    }  # fmt: skip
    found["pages"] = {"files": 40, "bytes": 3 << 20, "hits": 0, "misses": 0}
    found["prefetch"] = {
        "subtree": {"issued": 12, "used": 10, "wasted": 1, "paused": False},
        "siblings": {"issued": 300, "used": 2, "wasted": 290, "paused": True},
        "inline": {"issued": 0, "used": 0, "wasted": 0, "paused": False},
        "window": {"limit": 2 << 20, "flying": 0, "rate": 12 << 20, "shortest": 0.02},
    }
    report = views.stats("/mnt/a", found)
    text = str(report)
    assert (
        "Names and attributes, 93 % from memory: 1200 files, 1100 names in 60 directories remembered, 59 leases"
        in text
    )
    assert "File data: 40 files, 3.0 MiB remembered" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["prefetch", "asked", "used", "wasted"] in lines
    assert ["subtree", "12", "10", "1"] in lines
    assert "pauses: mostly wrong" in text
    assert "inline" not in text
    assert "up to 2.0 MiB on the way, at 12.0 MiB/s at best" in text
    assert report.data["pages"]["files"] == 40
    found["prefetch"] = {name: {"issued": 0} for name in found["prefetch"]}
    assert "wasted" not in str(views.stats("/mnt/a", found)), "nothing of it has happened yet"


def test_slow_operations() -> None:
    found = figures(read=row())
    assert "No operation took longer" in str(views.stats("/mnt/a", found, slow=True))
    name = "a\x1b[31m\n\udcff"
    found["slow"] = [
        {"time": 0.0, "operation": "read", "path": name, "seconds": 2.5, "failed": True},
        {"time": 0.0, "operation": "open", "path": "", "seconds": 120.4, "failed": False},
    ]
    found["slow_count"] = 7
    text = str(views.stats("/mnt/a", found, slow=True))
    assert "the last of 7" in text
    assert r"a\x1b[31m\n\udcff" in text
    assert "\x1b" not in text
    for part in ("2.5 s", "120 s", "failed"):
        assert part in text
    assert "\x1b" not in views.stats("/mnt/a", found, slow=True)._repr_html_()


def test_a_profile() -> None:
    report = views.profile("/mnt/a", result())
    text = str(report)
    assert "/mnt/a: 6 operations, 1.0 KiB read, 2.0 KiB written in 4.13 s" in text
    assert "73 % of 4.13 s waited for 212 opens in data/, one after another" in text
    assert "`wsfuse prefetch /mnt/a/data`" in text
    assert "`%wsfuse prefetch /mnt/a/data`" in str(views.profile("/mnt/a", result(), "%wsfuse"))
    assert "`cp -r /mnt/a/data /tmp`" in str(views.profile("/mnt/a", result(), None))
    for part in ("other directories", "data/", "p95", "waited s"):
        assert part in text
    assert report.data["mountpoint"] == "/mnt/a"
    nothing = {**result(), "operations": {}}
    assert str(views.profile("/mnt/a", nothing)) == "Nothing was asked of /mnt/a in 4.13 s."


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.0, "0.000 ms"),
        (0.0000521, "0.052 ms"),
        (0.2134, "213.4 ms"),
        (4.128, "4.13 s"),
        (61.2, "61.2 s"),
        (3600, "3600 s"),
    ],
)
def test_seconds(number: float, shown: str) -> None:
    assert render.seconds(number) == shown

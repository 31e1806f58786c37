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


def test_stats() -> None:
    assert "no operation" in str(views.stats("/mnt/a", {"operations": {}, "since": 0}))
    row = {
        "count": 4,
        "errors": 1,
        "seconds": 0.01,
        "mean": 0.0025,
        "max": 0.004,
        "bytes": 2048,
        "cache_hits": 1,
    }
    text = str(views.stats("/mnt/a", {"operations": {"read": row}, "since": time.time()}))
    for part in ("read", "4", "2.500", "4.0", "2.0 KiB", "25%"):
        assert part in text

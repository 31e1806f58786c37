"""Counters, histograms and the memory of slow operations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_wsfuse.engine.profiler import SLOW_KEPT, SLOW_TEXT, Profiler, SessionProfile
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.workspace import Workspace

ROOT = m.Ref(b"")


def test_counts_times_bytes_and_errors() -> None:
    profiler = Profiler()
    profiler.record("Read", 3_000, 4096)
    profiler.record("Read", 5_000, 100, disk_ns=2_000)
    profiler.record("Read", 1_000_000, failed=True, disk_ns=1_000, limit_ns=900_000)
    shown = profiler.snapshot()["Read"]
    assert (shown["count"], shown["errors"], shown["bytes"]) == (3, 1, 4196)
    assert (shown["total_us"], shown["mean_us"]) == (1008.0, 336.0)
    assert (shown["min_us"], shown["max_us"]) == (3.0, 1000.0)
    assert (shown["disk_us"], shown["limit_us"]) == (3.0, 900.0)
    assert sum(shown["buckets"]) == 3
    json.dumps(profiler.snapshot())


def test_quantiles() -> None:
    profiler = Profiler()
    for milliseconds in range(1, 101):
        profiler.record("Open", milliseconds * 1_000_000)
    shown = profiler.snapshot()["Open"]
    assert shown["p50_us"] == pytest.approx(50_000, rel=0.01)
    assert shown["p95_us"] == pytest.approx(95_000, rel=0.01)
    assert shown["p99_us"] == pytest.approx(99_000, rel=0.01)


def test_what_has_no_time_limit_fits_too() -> None:
    profiler = Profiler()
    profiler.record("SetLock", 3600 * 10**9 * 10)
    assert profiler.snapshot()["SetLock"]["p99_us"] == 36_000_000_000.0
    assert len(profiler.snapshot()["SetLock"]["buckets"]) <= 33


def test_tenants_can_be_added_up() -> None:
    one, two = Profiler(), Profiler()
    one.record("Read", 1_000, 10, disk_ns=500)
    two.record("Read", 3_000, 20, True, 700, 100)
    two.record("Open", 9_000_000_000)
    total = Profiler()
    for profiler in (one, two):
        total.merge(profiler)
    shown = total.snapshot()
    assert {name: row["count"] for name, row in shown.items()} == {"Read": 2, "Open": 1}
    assert (shown["Read"]["bytes"], shown["Read"]["errors"]) == (30, 1)
    assert (shown["Read"]["disk_us"], shown["Read"]["limit_us"]) == (1.2, 0.1)
    assert total.slow_count == 1
    assert total.slowest() == []
    assert one.snapshot()["Read"]["count"] == 1


# --- slow operations -------------------------------------------------------------------------------------------


def test_slow_operations_are_remembered_and_others_are_not_even_asked() -> None:
    def never() -> str:
        raise AssertionError("it was not slow")

    profiler = Profiler(0.5, wall=lambda: 1234.5678)
    profiler.record("Read", 499_999_999, what=never)
    assert profiler.slowest() == []
    profiler.record("Read", 500_000_000, 10, True, 400_000_000, 1_000, lambda: "data/a.csv")
    profiler.record("Open", 600_000_000)
    assert profiler.slowest() == [
        {
            "time": 1234.568, "operation": "Open", "path": "", "total_us": 600_000.0, "disk_us": 0.0,
            "limit_us": 0.0, "bytes": 0, "failed": False,
        },
        {
            "time": 1234.568, "operation": "Read", "path": "data/a.csv", "total_us": 500_000.0,
            "disk_us": 400_000.0, "limit_us": 1.0, "bytes": 10, "failed": True,
        },
    ]  # fmt: skip
    json.dumps(profiler.slowest())


def test_the_threshold_can_be_changed_and_turned_off() -> None:
    profiler = Profiler(0)
    assert profiler.slow > 3600
    profiler.record("Read", 3600 * 10**9)
    assert profiler.slowest() == []
    profiler.slow = 0.001
    assert profiler.slow == 0.001
    profiler.record("Read", 1_000_000)
    assert len(profiler.slowest()) == 1


def test_the_memory_of_slow_operations_is_bounded() -> None:
    profiler = Profiler(1.0)
    for number in range(SLOW_KEPT + 5):
        profiler.record("Read", 10**9 + number, what=lambda: "x" * 10_000)
    assert len(profiler.slowest()) == SLOW_KEPT
    assert profiler.slow_count == SLOW_KEPT + 5
    assert profiler.slowest()[0]["total_us"] == (10**9 + SLOW_KEPT + 4) / 1000
    assert len(profiler.slowest()[0]["path"]) == SLOW_TEXT


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "root").mkdir()
    workspace = Workspace(tmp_path / "root")
    yield workspace
    workspace.close()


def test_what_a_slow_operation_was_about(workspace: Workspace) -> None:
    context = workspace.context
    (workspace.path / "a.txt").write_text("x")
    handle = workspace.open(b"a.txt")
    profiler = Profiler(1.0)
    expected: list[tuple[m.Request, str]] = [
        (m.GetAttr(1, m.Ref(b"dir/b")), "dir/b"),
        (m.GetAttr(1, ROOT), "."),
        (m.GetAttr(1, m.Ref(b"", None, handle)), "a.txt"),
        (m.Read(1, handle, 0, 1), "a.txt"),
        (m.Lookup(1, ROOT, b"n"), "n"),
        (m.MkDir(1, m.Ref(b"dir"), b"\xff", 0o755), "dir/\\xff"),
        (m.TmpFile(1, m.Ref(b"dir"), 0o600, 2), "dir"),
        (m.SymLink(1, ROOT, b"l", b"to"), "l"),
        (m.Rename(1, m.Ref(b"d"), b"a", m.Ref(b"e"), b"b"), "d/a, e/b"),
        (m.Link(1, m.Ref(b"f"), m.Ref(b"d"), b"n"), "f, d/n"),
        (m.GetXattr(1, m.Ref(b"f"), b"user.x"), "f"),
        (m.CopyRange(1, handle, 0, 4711, 0, 1), "a.txt, (a file closed since)"),
        (m.SyncFs(1), ""),
    ]
    for request, path in expected:
        profiler.record("X", 10**9, what=(request, context))
        assert profiler.slowest()[0]["path"] == path, request
    workspace.close_handle(handle)
    profiler.record("Close", 10**9, what=(m.Close(2, handle), context))
    assert profiler.slowest()[0]["path"] == "(a file closed since)"


# --- sessions --------------------------------------------------------------------------------------------------


def test_the_totals_of_a_session() -> None:
    profile = SessionProfile()
    profile.record("Read", 3_000, 1_000, 500, 4096)
    profile.record("Read", 4_000, 2_000, 0, 0, True)
    profile.record("GetAttr", 10)
    expected = {"Read": [2, 1, 7_000, 3_000, 500, 4096], "GetAttr": [1, 0, 10, 0, 0, 0]}
    answer = profile.operations()
    assert answer == expected
    profile.record("Read", 1)
    assert answer == expected, "a copy"
    reply = m.StatsReply(1, profile.operations())
    assert m.msgspec.msgpack.decode(m.msgspec.msgpack.encode(reply), type=m.StatsReply) == reply

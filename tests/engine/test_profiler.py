"""Counters and histograms of operations."""

from __future__ import annotations

import json

from jupyter_wsfuse.engine.profiler import BUCKETS, Operation, Profiler


def test_counts_times_bytes_and_errors() -> None:
    profiler = Profiler()
    profiler.record("Read", 3_000, 4096)
    profiler.record("Read", 5_000, 100)
    profiler.record("Read", 1_000_000, failed=True)
    shown = profiler.snapshot()["Read"]
    assert (shown["count"], shown["errors"], shown["bytes"]) == (3, 1, 4196)
    assert shown["total_us"] == 1008.0
    assert shown["max_us"] == 1000.0
    assert sum(shown["buckets"]) == 3
    json.dumps(profiler.snapshot())


def test_buckets_are_powers_of_two_in_microseconds() -> None:
    profiler = Profiler()
    for nanoseconds in (0, 999, 1_000, 1_999, 2_000, 3_999, 4_000):
        profiler.record("GetAttr", nanoseconds)
    assert profiler.snapshot()["GetAttr"]["buckets"] == [2, 2, 2, 1]


def test_an_hour_fits_in_the_last_bucket() -> None:
    profiler = Profiler()
    profiler.record("SetLock", 3600 * 10**9)
    assert len(profiler.snapshot()["SetLock"]["buckets"]) == BUCKETS


def test_quantiles_are_upper_bounds() -> None:
    operation = Operation()
    assert operation.quantile(0.5) == 0.0
    profiler = Profiler()
    for _ in range(99):
        profiler.record("Open", 10_000)
    profiler.record("Open", 900_000)
    shown = profiler.snapshot()["Open"]
    assert shown["p50_us"] == 16.0
    assert shown["p99_us"] == 16.0
    assert shown["max_us"] == 900.0
    profiler.record("Close", 10_000)
    assert profiler.snapshot()["Close"]["p50_us"] == 10.0  # no more than the longest there was

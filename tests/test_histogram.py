"""Histograms: what they keep of durations, in how much memory."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.histogram import BUCKETS, LONGEST, Histogram, upper_bound

SECOND = 10**9
durations = st.lists(st.integers(0, 2 * 3600 * SECOND), max_size=50)


def of(*nanoseconds: int) -> Histogram:
    histogram = Histogram()
    for duration in nanoseconds:
        histogram.record(duration)
    return histogram


def test_nothing() -> None:
    empty = Histogram()
    assert (empty.count, empty.total, empty.shortest, empty.longest, empty.mean) == (0, 0, 0, 0, 0.0)
    assert empty.quantile(0.5) == 0
    assert empty.octaves() == []
    empty.merge(Histogram())
    assert empty.count == 0


def test_what_is_exact() -> None:
    histogram = of(5_000, 3_000, 4_001)
    assert (histogram.count, histogram.total, histogram.shortest, histogram.longest) == (
        3,
        12_001,
        3_000,
        5_000,
    )
    assert histogram.mean == pytest.approx(4000.333, abs=0.001)


def test_every_bucket_begins_where_the_one_before_ends() -> None:
    before = 0
    for index in range(BUCKETS - 1):
        end = upper_bound(index)
        for duration in {before, end - 1}:
            histogram = of(duration * 1000)
            assert histogram.to_json()["counts"] == [index, 1], duration
        assert end - before <= max(1, before / 128)
        before = end
    assert before <= LONGEST < upper_bound(BUCKETS - 1)


@given(durations, st.floats(0, 1))
def test_quantiles_are_two_digits_right(nanoseconds: list[int], fraction: float) -> None:
    histogram = of(*nanoseconds)
    found = histogram.quantile(fraction)
    if not nanoseconds:
        assert found == 0
        return
    rank = max(1, -(-fraction * len(nanoseconds) // 1))
    exact = sorted(nanoseconds)[int(min(rank, len(nanoseconds))) - 1]
    assert histogram.shortest <= found <= histogram.longest
    if exact < 3600 * SECOND:
        assert exact <= found <= exact * 1.01 + 1000


def test_quantiles_of_a_known_distribution() -> None:
    histogram = of(*(index * 1_000_000 for index in range(1, 1001)))
    for fraction, milliseconds in ((0.5, 500), (0.95, 950), (0.99, 990), (1.0, 1000), (0.0, 1)):
        assert histogram.quantile(fraction) == pytest.approx(milliseconds * 1e6, rel=0.01)


def test_more_than_an_hour() -> None:
    histogram = of(5 * 3600 * SECOND, 24 * 3600 * SECOND, 1000)
    assert histogram.longest == histogram.quantile(0.9) == 24 * 3600 * SECOND
    assert histogram.to_json()["counts"] == [1, 1, BUCKETS - 1, 2]


def test_a_clock_that_was_set_back() -> None:
    histogram = of(1000, -5)
    assert (histogram.count, histogram.total, histogram.shortest) == (2, 1000, 0)


def test_octaves() -> None:
    assert of(0, 999, 1_000, 1_999, 2_000, 3_999, 4_000).octaves() == [2, 2, 2, 1]
    assert of(1024 * 1000).octaves() == [0] * 11 + [1]
    assert of(1023 * 1000).octaves() == [0] * 10 + [1]


@given(st.lists(st.integers(0, 4 * 3600 * 10**6)))
def test_octaves_are_powers_of_two(microseconds: list[int]) -> None:
    found = of(*(duration * 1000 for duration in microseconds)).octaves()
    assert sum(found) == len(microseconds)
    for octave, count in enumerate(found):
        assert count == sum(min(duration, LONGEST).bit_length() == octave for duration in microseconds)


@given(durations, durations)
def test_merging_is_counting_together(one: list[int], two: list[int]) -> None:
    merged = of(*one)
    merged.merge(of(*two))
    assert merged.to_json() == of(*one, *two).to_json()
    assert merged.count == len(one) + len(two)


@given(durations)
def test_there_and_back(nanoseconds: list[int]) -> None:
    histogram = of(*nanoseconds)
    again = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))
    assert again.to_json() == histogram.to_json()
    assert again.count == histogram.count
    assert again.quantile(0.95) == histogram.quantile(0.95)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"total": 1, "min": 1, "max": 1},
        {"total": 1, "min": 1, "max": 1, "counts": None},
        {"total": 1, "min": 1, "max": 1, "counts": [1]},
        {"total": 1, "min": 1, "max": 1, "counts": [BUCKETS, 1]},
        {"total": 1, "min": 1, "max": 1, "counts": [1, 0]},
        {"total": 1, "min": 1, "max": 1, "counts": [1, -1]},
        {"total": 1, "min": 1, "max": 1, "counts": [1, 1 << 64]},
        {"total": 1, "min": 1, "max": 1, "counts": [1, 1.0]},
        {"total": "1", "min": 1, "max": 1, "counts": [1, 1]},
        {"total": True, "min": 1, "max": 1, "counts": [1, 1]},
    ],
)
def test_what_is_no_histogram(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_json(data)


def test_memory_is_bounded_and_small_while_durations_are_short() -> None:
    short, long = Histogram(), Histogram()
    chance = random.Random(1)
    for _ in range(20_000):
        short.record(chance.randrange(1_000_000))
        long.record(chance.randrange(100 * 3600 * SECOND))
    assert sys.getsizeof(short._buckets) < 6_000
    assert sys.getsizeof(long._buckets) < 9 * BUCKETS
    assert max(long.to_json()["counts"][::2]) < BUCKETS

"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (17, 17),
        (17.0, 17),
        ("17", 17),
        ("17 B", 17),
        ("1k", 1024),
        ("1K", 1024),
        ("1 KiB", 1024),
        ("1 kB", 1000),
        ("500 MB", 500_000_000),
        (" 10 GiB ", 10 << 30),
        ("1.5G", 3 << 29),
        ("2 TiB", 2 << 40),
        ("1PiB", 1 << 50),
        ("8388607.9999999 TiB", (8388607 << 40) + (9999999 << 40) // 10**7),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "value",
    [
        "",
        "GiB",
        float("inf"),
        float("nan"),
        "-1",
        -1,
        1.5,
        True,
        None,
        "1 GiB free",
        "1e9",
        "1 gigabyte",
        "1,5G",
        "\u0661",
        "9" * 65,
        [1],
        "1.G",
    ],
)
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="must be a number of bytes, or a text like"):
        parse_size(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("250ms", 0.25),
        ("5 min", 300.0),
        ("5 minutes", 300.0),
        ("8h", 28800.0),
        ("1.5 hours", 5400.0),
        ("30 days", 2_592_000.0),
        ("2W", 1_209_600.0),
        ("1h30m", 5400.0),
        (" 1h 30m ", 5400.0),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "h",
        "-1h",
        -1,
        float("inf"),
        float("nan"),
        True,
        None,
        "1 30m",
        "1h 30",
        "1 fortnight",
        "8h!",
        "1e3",
    ],
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="must be a number of seconds, or a text like"):
        parse_duration(value)


@given(st.one_of(st.text(max_size=80), st.integers(), st.floats(), st.none(), st.binary()))
def test_anything_is_a_number_or_a_complaint(value: object) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert parse(value) >= 0
        except ValueError:
            pass

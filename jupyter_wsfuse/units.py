"""Sizes and durations as people write them: ``10 GiB``, ``64k``, ``8h``, ``1h 30m``."""

from __future__ import annotations

import math
import re
from typing import Final

_BINARY: Final = {letter: 1 << 10 * power for power, letter in enumerate("kmgtp", 1)}
_DECIMAL: Final = {letter: 10 ** (3 * power) for power, letter in enumerate("kmgtp", 1)}
#: ``GB`` is 10**9 as on a disk's label, ``GiB`` 2**30, and a bare ``G`` 2**30 as with ls and du.
_SIZES: Final[dict[str, int]] = {
    "": 1,
    "b": 1,
    **_BINARY,
    **{f"{letter}ib": factor for letter, factor in _BINARY.items()},
    **{f"{letter}b": factor for letter, factor in _DECIMAL.items()},
}
_SECONDS: Final[dict[str, float]] = {
    "ms": 0.001,
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
    "w": 604800,
    "week": 604800,
}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.ASCII)
_PART: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.ASCII)
_LONGEST: Final = 64  # characters of a text that is looked at


def parse_size(value: object) -> int:
    """Bytes, from a whole number or a text like ``10 GiB``. :class:`ValueError` says what is expected."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value % 1 == 0:
        return int(value)
    if isinstance(value, str) and len(value) <= _LONGEST:
        match = _SIZE.fullmatch(value.strip().lower())
        if match is not None and match[2] in _SIZES:
            whole, _, fraction = match[1].partition(".")
            factor = _SIZES[match[2]]
            return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
    raise ValueError("must be a number of bytes, or a text like 500 MB or 10 GiB")


def parse_duration(value: object) -> float:
    """Seconds, from a number or a text like ``8h``, ``30 days``, ``1h 30m``. :class:`ValueError` says what is
    expected."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and value.strip() and len(value) <= _LONGEST:
        text, at, total, bare = value.lower(), 0, 0.0, False
        while (match := _PART.match(text, at)) is not None:
            unit = match[2] if match[2] in _SECONDS else match[2].removesuffix("s")
            if match[2] and unit not in _SECONDS:
                break
            bare = bare or not match[2]
            if bare and (at or match.end() < len(text)):  # "1 30m": which unit is the 1?
                break
            total += float(match[1]) * (_SECONDS[unit] if match[2] else 1)
            at = match.end()
            if at == len(text):
                return total
    raise ValueError("must be a number of seconds, or a text like 90s, 8h, 30 days or 1h 30m")

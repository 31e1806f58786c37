"""Durations in bounded memory, two significant digits kept: a histogram after the manner of HdrHistogram.

Durations below 256 us are counted to the microsecond, longer ones in 128 equal steps for every doubling, so a
bucket is never wider than 1/128 of what it counts. An hour and anything longer share the last bucket; ``longest``
and ``total`` stay exact.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

_LINEAR: Final = 256  # buckets of one microsecond; a power of two
_STEPS: Final = _LINEAR // 2  # buckets of each doubling after them
_BITS: Final = _LINEAR.bit_length() - 1
LONGEST: Final = 3600 * 10**6  # microseconds


def _index(microseconds: int) -> int:
    if microseconds < _LINEAR:
        return microseconds
    shift = microseconds.bit_length() - _BITS
    return (shift * _STEPS) + (microseconds >> shift)


#: The most buckets that a histogram has: 26 KB of counters.
BUCKETS: Final = _index(LONGEST) + 1


def upper_bound(index: int) -> int:
    """The microseconds that a duration in bucket *index* is below."""
    if index < _LINEAR:
        return index + 1
    shift, step = divmod(index - _STEPS, _STEPS)
    return (step + _STEPS + 1) << shift


class Histogram:
    """Durations in nanoseconds. Grows with the longest one, up to :data:`BUCKETS` counters."""

    __slots__ = ("count", "total", "shortest", "longest", "_buckets")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.shortest = 0
        self.longest = 0
        self._buckets = array("Q")

    def record(self, nanoseconds: int) -> None:
        """Count one duration; a negative one, of a clock that was set back, counts as none."""
        if nanoseconds < 0:
            nanoseconds = 0
        if not self.count or nanoseconds < self.shortest:
            self.shortest = nanoseconds
        if nanoseconds > self.longest:
            self.longest = nanoseconds
        self.count += 1
        self.total += nanoseconds
        index = nanoseconds // 1000
        if index >= _LINEAR:
            shift = index.bit_length() - _BITS
            index = shift * _STEPS + (index >> shift)
        try:
            self._buckets[index] += 1
        except IndexError:
            self._grow(index)

    def _grow(self, index: int) -> None:
        index = min(index, BUCKETS - 1)
        # Never more than BUCKETS: record() relies on running over the end of it.
        missing = min((index // _STEPS + 1) * _STEPS, BUCKETS) - len(self._buckets)
        if missing > 0:
            self._buckets.frombytes(bytes(missing * self._buckets.itemsize))
        self._buckets[index] += 1

    @property
    def mean(self) -> float:
        """Nanoseconds; 0.0 if nothing was counted."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, fraction: float) -> int:
        """Nanoseconds that *fraction* (0 to 1) of the durations do not exceed, at most 1 % too many; 0 if nothing was
        counted."""
        return self.quantiles((fraction,))[0]

    def quantiles(self, fractions: Sequence[float]) -> list[int]:
        """:meth:`quantile` of each, in one pass."""
        if not self.count:
            return [0] * len(fractions)
        seen = list(accumulate(self._buckets))
        found = []
        for fraction in fractions:
            index = bisect_left(seen, max(fraction * self.count, 1))
            if index < min(len(seen), BUCKETS - 1):
                found.append(max(self.shortest, min(upper_bound(index) * 1000, self.longest)))
            else:
                found.append(self.longest)
        return found

    def octaves(self) -> list[int]:
        """Counts by powers of two, without trailing zeros: below 1 us, below 2, below 4, ..."""
        found: list[int] = []
        for index, count in self._counted():
            octave = (upper_bound(index) - 1).bit_length()
            found.extend([0] * (octave + 1 - len(found)))
            found[octave] += count
        return found

    def merge(self, other: Histogram) -> None:
        """Count what *other* has counted as well."""
        if not other.count:
            return
        if not self.count or other.shortest < self.shortest:
            self.shortest = other.shortest
        self.longest = max(self.longest, other.longest)
        self.count += other.count
        self.total += other.total
        self._add(other._counted())

    def _add(self, counted: Iterator[tuple[int, int]]) -> None:
        for index, count in counted:
            self._grow(index)
            self._buckets[index] += count - 1

    def _counted(self) -> Iterator[tuple[int, int]]:
        return ((index, count) for index, count in enumerate(self._buckets) if count)

    # --- elsewhere ----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Everything, as small as it is varied: ``counts`` alternates buckets and how often each was met."""
        return {
            "total": self.total,
            "min": self.shortest,
            "max": self.longest,
            "counts": [number for pair in self._counted() for number in pair],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        """The histogram that :meth:`to_json` described. Raises :class:`ValueError` for anything else."""
        made = cls()
        try:
            numbers = [data["total"], data["min"], data["max"], *data["counts"]]
        except (KeyError, TypeError):
            raise ValueError("not a histogram") from None
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("not a histogram: it has other things than whole numbers in it")
        total, shortest, longest, *counts = numbers
        buckets, counts = counts[::2], counts[1::2]
        if len(buckets) != len(counts) or max(buckets, default=0) >= BUCKETS or not all(counts):
            raise ValueError("not a histogram: its counts are none")
        made.count = sum(counts)
        if made.count >= 1 << 63:
            raise ValueError("not a histogram: nobody has counted so far")
        made._add(iter(zip(buckets, counts, strict=True)))
        made.total, made.shortest, made.longest = total, shortest, longest
        return made

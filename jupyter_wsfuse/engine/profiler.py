"""How long operations take: a few counters and one histogram per kind of operation.

The histogram has a bucket per power of two, which is all that a table or a bar chart shows, costs one list
index to fill, and needs no compiled library (hdrhistogram publishes no wheels for ARM64).
"""

from __future__ import annotations

from typing import Any, Final

#: Bucket *i* counts durations in [2**(i-1), 2**i) microseconds, bucket 0 those below one microsecond, the
#: last one everything from 2**30 us (18 minutes) on.
BUCKETS: Final = 32


class Operation:
    """The counters of one kind of operation. Durations in nanoseconds, ``bytes`` is file data moved."""

    __slots__ = ("count", "errors", "total", "longest", "bytes", "buckets")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.total = 0
        self.longest = 0
        self.bytes = 0
        self.buckets = [0] * BUCKETS

    def quantile(self, fraction: float) -> float:
        """Upper bound in microseconds of the bucket that holds the quantile; 0.0 if nothing was counted."""
        rank = fraction * self.count
        seen = 0
        for index, count in enumerate(self.buckets):
            seen += count
            if count and seen >= rank:
                return min(float(1 << index), self.longest / 1000)
        return 0.0


class Profiler:
    """Counts operations by name. Bounded: callers pass the names of request types, a fixed set."""

    def __init__(self) -> None:
        self._operations: dict[str, Operation] = {}

    def record(self, name: str, nanoseconds: int, size: int = 0, failed: bool = False) -> None:
        """Count one operation that took *nanoseconds* and moved *size* bytes of file data."""
        operation = self._operations.get(name)
        if operation is None:
            operation = self._operations[name] = Operation()
        operation.count += 1
        operation.total += nanoseconds
        operation.bytes += size
        if failed:
            operation.errors += 1
        if nanoseconds > operation.longest:
            operation.longest = nanoseconds
        index = (nanoseconds // 1000).bit_length()
        operation.buckets[index if index < BUCKETS else BUCKETS - 1] += 1

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """The counters by operation, ready for JSON; times in microseconds, buckets without trailing zeros."""
        shown: dict[str, dict[str, Any]] = {}
        for name, operation in sorted(self._operations.items()):
            buckets = list(operation.buckets)
            while buckets and not buckets[-1]:
                buckets.pop()
            shown[name] = {
                "count": operation.count,
                "errors": operation.errors,
                "total_us": operation.total / 1000,
                "max_us": operation.longest / 1000,
                "p50_us": operation.quantile(0.5),
                "p99_us": operation.quantile(0.99),
                "bytes": operation.bytes,
                "buckets": buckets,
            }
        return shown

"""How long operations take, where the time goes, and which ones were slow.

A :class:`Profiler` belongs to a tenant: a histogram and a few totals for each kind of operation, and the last slow
ones by name. A :class:`SessionProfile` belongs to a session: totals alone, which its client asks for to know how
much of its own waiting was the network's.

All times are nanoseconds. An operation's *total* runs from its arrival to its reply; of that, *disk* is the time inside
the operation itself and *limit* the time it was held back by a rate limit. What is left was spent in queues: for
a worker, for its turn on the file, for a lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..histogram import Histogram
from ..protocol.messages import Ref, Request
from .context import Context

#: Slow operations that are remembered; older ones make room.
SLOW_KEPT: Final = 100
#: Characters of a slow operation's path that are kept.
SLOW_TEXT: Final = 300

#: What a slow operation was about: a text when it is asked for, or what one can be made of.
What = Callable[[], str] | tuple[Request, Context] | None


class Operation:
    """What is known of one kind of operation; ``bytes`` is file data moved."""

    __slots__ = ("errors", "bytes", "disk", "limit", "times")

    def __init__(self) -> None:
        self.errors = 0
        self.bytes = 0
        self.disk = 0
        self.limit = 0
        self.times = Histogram()

    def snapshot(self) -> dict[str, Any]:
        times = self.times
        p50, p95, p99 = times.quantiles((0.5, 0.95, 0.99))
        return {
            "count": times.count,
            "errors": self.errors,
            "total_us": times.total / 1000,
            "mean_us": round(times.mean / 1000, 3),
            "min_us": times.shortest / 1000,
            "max_us": times.longest / 1000,
            "p50_us": p50 / 1000,
            "p95_us": p95 / 1000,
            "p99_us": p99 / 1000,
            "disk_us": self.disk / 1000,
            "limit_us": self.limit / 1000,
            "bytes": self.bytes,
            "buckets": times.octaves(),
        }


class Profiler:
    """Operations by name. Bounded: callers pass the names of request types, a fixed set.

    *slow*: seconds from which on an operation is remembered by itself; 0 for none. *wall* tells seconds since the
    epoch.
    """

    def __init__(self, slow: float = 1.0, *, wall: Callable[[], float] = time.time) -> None:
        self._operations: dict[str, Operation] = {}
        self._slow: deque[dict[str, Any]] = deque(maxlen=SLOW_KEPT)
        self._wall = wall
        self.slow_count = 0
        self.slow = slow

    @property
    def slow(self) -> float:
        """Seconds from which on an operation is slow; may be changed at any time."""
        return self._threshold / 1e9

    @slow.setter
    def slow(self, seconds: float) -> None:
        self._threshold = round(seconds * 1e9) if seconds > 0 else 1 << 63

    def record(
        self,
        name: str,
        total_ns: int,
        size: int = 0,
        failed: bool = False,
        disk_ns: int = 0,
        limit_ns: int = 0,
        what: What = None,
    ) -> None:
        """Count one operation that moved *size* bytes of file data. *what* is looked at if it was slow."""
        operation = self._operations.get(name)
        if operation is None:
            operation = self._operations[name] = Operation()
        operation.times.record(total_ns)
        operation.bytes += size
        operation.disk += disk_ns
        if failed:
            operation.errors += 1
        if limit_ns:
            operation.limit += limit_ns
        if total_ns >= self._threshold:
            self._remember(name, total_ns, size, failed, disk_ns, limit_ns, what)

    def _remember(
        self, name: str, total_ns: int, size: int, failed: bool, disk_ns: int, limit_ns: int, what: What
    ) -> None:
        self.slow_count += 1
        self._slow.append(
            {
                "time": round(self._wall(), 3),
                "operation": name,
                "path": _text(what),
                "total_us": total_ns / 1000,
                "disk_us": disk_ns / 1000,
                "limit_us": limit_ns / 1000,
                "bytes": size,
                "failed": failed,
            }
        )

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """The counters by operation, ready for JSON. Times in microseconds; ``buckets`` counts durations by powers of
        two of a microsecond, without trailing zeros."""
        return {name: operation.snapshot() for name, operation in sorted(self._operations.items())}

    def slowest(self) -> list[dict[str, Any]]:
        """The last operations that were slow, the newest first, ready for JSON."""
        return list(reversed(self._slow))

    def counts(self) -> dict[str, int]:
        """How often each operation was executed."""
        return {name: operation.times.count for name, operation in self._operations.items()}

    def row(self, name: str) -> dict[str, Any]:
        """:meth:`snapshot` of one operation that was used."""
        return self._operations[name].snapshot()

    def reset(self) -> None:
        """Count from zero again."""
        self._operations.clear()
        self._slow.clear()
        self.slow_count = 0

    def merge(self, other: Profiler) -> None:
        """Add what *other* has counted: for sums over tenants. Its slow operations stay its own."""
        for name, theirs in other._operations.items():
            operation = self._operations.setdefault(name, Operation())
            operation.times.merge(theirs.times)
            operation.errors += theirs.errors
            operation.bytes += theirs.bytes
            operation.disk += theirs.disk
            operation.limit += theirs.limit
        self.slow_count += other.slow_count


class SessionProfile:
    """Totals of one session, for :class:`~..protocol.messages.Stats`. Bounded as :class:`Profiler` is."""

    __slots__ = ("_operations",)

    def __init__(self) -> None:
        self._operations: dict[str, list[int]] = {}

    def record(
        self,
        name: str,
        total_ns: int,
        disk_ns: int = 0,
        limit_ns: int = 0,
        size: int = 0,
        failed: bool = False,
    ) -> None:
        """Count one operation."""
        row = self._operations.get(name)
        if row is None:
            row = self._operations[name] = [0, 0, 0, 0, 0, 0]
        row[0] += 1
        if failed:
            row[1] += 1
        row[2] += total_ns
        row[3] += disk_ns
        if limit_ns:
            row[4] += limit_ns
        if size:
            row[5] += size

    def operations(self) -> dict[str, list[int]]:
        """``{name: [count, errors, total, disk, limit, bytes]}``, as the reply to Stats has it."""
        return {name: list(row) for name, row in self._operations.items()}


def _text(what: What) -> str:
    """What an operation was about, in words."""
    if what is None:
        return ""
    return (_paths(*what) if isinstance(what, tuple) else what())[:SLOW_TEXT]


def _paths(request: Request, context: Context) -> str:
    """The paths that a request names; those of handles as far as they are still open."""

    def of_handle(handle: int) -> bytes:
        try:
            return context.handles.get(handle).path
        except OSError:
            return b"(a file closed since)"

    def of_ref(ref: Ref) -> bytes:
        return of_handle(ref.handle) if ref.handle else ref.path

    found: list[bytes] = []
    for field in request.__struct_fields__:
        value = getattr(request, field)
        if isinstance(value, Ref):
            found.append(of_ref(value))
        elif field in ("name", "new_name") and hasattr(request, "parent"):
            parent = found.pop()
            found.append(parent + b"/" + value if parent else value)
        elif field in ("handle", "source", "target") and isinstance(value, int):
            found.append(of_handle(value))
    return ", ".join(path.decode("utf-8", "backslashreplace") or "." for path in found)

"""What the operations of a mount cost, and what they waited for.

An operation of the file system is answered from memory or by asking the server; how long it took goes into a
histogram, how long it waited for the server into a sum. The server says what its own part of that was
(:class:`~..protocol.messages.Stats`), so that :func:`split` can tell the network from the server without any cost
on the way. All times are integer nanoseconds of a monotonic clock; what :meth:`snapshot` gives is in seconds.

One :class:`Operation` for every method that is :func:`measured`, so the size is bounded by the code.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from ..histogram import Histogram

P = ParamSpec("P")
R = TypeVar("R")

#: Nanoseconds from which on an operation is remembered by itself, and how many are.
SLOW: Final = 1_000_000_000
SLOW_KEPT: Final = 50
#: Bytes of a slow operation's path that are kept.
SLOW_TEXT: Final = 200

#: The request by which an operation asks the server.
REQUEST_OF: Final[dict[str, str]] = {
    "lookup": "Lookup",
    "mkdir": "MkDir",
    "mknod": "MkNod",
    "symlink": "SymLink",
    "link": "Link",
    "unlink": "Unlink",
    "rmdir": "RmDir",
    "rename": "Rename",
    "getattr": "GetAttr",
    "setattr": "SetAttr",
    "access": "Access",
    "readlink": "ReadLink",
    "statfs": "StatFs",
    "syncfs": "SyncFs",
    "getxattr": "GetXattr",
    "setxattr": "SetXattr",
    "listxattr": "ListXattr",
    "removexattr": "RemoveXattr",
    "opendir": "OpenDir",
    "readdir": "ReadDir",
    "fsyncdir": "Fsync",
    "open": "Open",
    "create": "Create",
    "tmpfile": "TmpFile",
    "read": "Read",
    "write": "Write",
    "fsync": "Fsync",
    "fallocate": "Fallocate",
    "lseek": "Seek",
    "copy_file_range": "CopyRange",
    "getlk": "GetLock",
    "setlk": "SetLock",
    "flush": "SetLock",
}

#: What waiting for the server consists of.
PARTS: Final = ("network", "server", "disk", "limit")

#: The totals of the server by request, as :class:`~..protocol.messages.StatsReply` has them.
ServerTotals = Mapping[str, Sequence[int]]


class Flight:
    """One operation under way: the requests that it made, and the nanoseconds it waited for their replies."""

    __slots__ = ("asked", "waited")

    def __init__(self) -> None:
        self.asked = 0
        self.waited = 0


class Operation(Flight):
    """Totals of one kind of operation. ``bytes`` is file data moved; ``hits`` were answered without a request where
    one might have been needed."""

    __slots__ = ("errors", "bytes", "hits", "times")

    def __init__(self) -> None:
        super().__init__()
        self.errors = 0
        self.bytes = 0
        self.hits = 0
        self.times = Histogram()

    def snapshot(self) -> dict[str, int | float]:
        times = self.times
        p50, p95, p99 = times.quantiles((0.5, 0.95, 0.99))
        return {
            "count": times.count,
            "errors": self.errors,
            "seconds": times.total / 1e9,
            "mean": times.mean / 1e9,
            "min": times.shortest / 1e9,
            "max": times.longest / 1e9,
            "p50": p50 / 1e9,
            "p95": p95 / 1e9,
            "p99": p99 / 1e9,
            "bytes": self.bytes,
            "cache_hits": self.hits,
            "asked": self.asked,
            "waited": self.waited / 1e9,
        }


class Watcher(Protocol):
    """Somebody who wants to know of each operation while a profile is taken."""

    def seen(
        self,
        name: str,
        arguments: tuple[Any, ...],
        elapsed: int,
        flight: Flight,
        result: object,
        failed: bool,
    ) -> None:
        """*name* has ended after *elapsed* nanoseconds; *arguments* are those of the method."""


class Profiler(dict[str, Operation]):
    """Operations by name; one that was not used yet comes into being when it is asked for.

    ``path_of`` tells the path that the arguments of an operation name, for people; the file system sets it.
    ``current`` is the operation whose code runs: whoever asks the server on its behalf notes it before waiting, and
    :meth:`answered` puts it back. That holds because nothing of an operation runs between its waits but itself.
    """

    def __init__(
        self, clock: Callable[[], int] = time.perf_counter_ns, wall: Callable[[], float] = time.time
    ) -> None:
        super().__init__()
        self.clock = clock
        self.path_of: Callable[[str, tuple[Any, ...]], bytes] = lambda name, arguments: b""
        self.current: Flight = Flight()
        self.watchers: list[Watcher] = []
        self.slow: deque[dict[str, Any]] = deque(maxlen=SLOW_KEPT)
        self.slow_count = 0
        self._wall = wall
        self._pending = 0
        self._pending_since = 0
        self._waited = 0
        self._waited_before = 0

    def __missing__(self, name: str) -> Operation:
        operation = self[name] = Operation()
        return operation

    # --- on the way ---------------------------------------------------------------------------------------------

    def asking(self) -> int:
        """A request goes out for :attr:`current`. To be given to :meth:`answered`."""
        now = self.clock()
        if not self._pending:
            self._pending_since = now
        self._pending += 1
        return now

    def answered(self, flight: Flight, asked_at: int) -> None:
        """The request of *flight* has its reply, or nobody waits for that any more."""
        now = self.clock()
        self._pending -= 1
        if not self._pending:
            self._waited += now - self._pending_since
        flight.asked += 1
        flight.waited += now - asked_at
        self.current = flight

    def remember(self, name: str, arguments: tuple[Any, ...], elapsed: int, failed: bool) -> None:
        """*name* was slow."""
        self.slow_count += 1
        path = self.path_of(name, arguments)[:SLOW_TEXT].decode("utf-8", "backslashreplace")
        self.slow.append(
            {
                "time": round(self._wall(), 3),
                "operation": name,
                "path": path,
                "seconds": elapsed / 1e9,
                "failed": failed,
            }
        )

    # --- looking at it ------------------------------------------------------------------------------------------

    @property
    def waited(self) -> int:
        """Nanoseconds during which at least one operation waited for the server, since the beginning."""
        running = self.clock() - self._pending_since if self._pending else 0
        return self._waited + running

    def snapshot(self) -> dict[str, dict[str, int | float]]:
        """:meth:`Operation.snapshot` by operation, of those used so far."""
        return {
            name: operation.snapshot() for name, operation in sorted(self.items()) if operation.times.count
        }

    def waiting(self, server: ServerTotals | None) -> dict[str, Any]:
        """What operations have waited for so far; see :func:`summary`."""
        operations = {name: operation for name, operation in self.items() if operation.asked}
        return summary(operations, self.waited - self._waited_before, server)

    def reset(self) -> None:
        """Count from zero again. What is under way now is counted nowhere."""
        self.clear()
        self.slow.clear()
        self.slow_count = 0
        self._waited_before = self.waited


# --- whose fault it was ----------------------------------------------------------------------------------------


def since(now: ServerTotals, before: ServerTotals) -> dict[str, list[int]]:
    """What came to the totals of the server after *before*; all of *now* where a new engine began at zero."""
    found = {}
    for name, row in now.items():
        old = before.get(name, ())
        same = len(old) == len(row) and all(new >= was for new, was in zip(row, old, strict=True))
        found[name] = [new - was for new, was in zip(row, old, strict=True)] if same else list(row)
    return found


def split(operations: Mapping[str, Flight], server: ServerTotals) -> dict[str, dict[str, float]]:
    """Nanoseconds that each operation waited for each of :data:`PARTS`.

    "disk" is work on the server's files, "limit" being held back by a rate limit, "server" whatever else the server
    took (queues, locks held by others); what it does not account for is the network's, with both processes' part in
    sending and receiving. Means of the server are taken, so that neither its restart nor requests that nobody waited
    for make the sum untrue.
    """
    waited: dict[str, int] = {}
    asked: dict[str, int] = {}
    for name, flight in operations.items():
        request = REQUEST_OF.get(name, "")
        waited[request] = waited.get(request, 0) + flight.waited
        asked[request] = asked.get(request, 0) + flight.asked
    found = {}
    for name, flight in operations.items():
        request = REQUEST_OF.get(name, "")
        row = server.get(request)
        parts = dict.fromkeys(PARTS, 0.0)
        if row and row[0] and waited[request]:
            share = flight.waited / waited[request]
            total, disk, limit = (part / row[0] * asked[request] * share for part in row[2:5])
            # What is inside cannot have taken longer than what is around it, whatever the other clock says.
            total = max(total, disk + limit)
            scale = min(1.0, flight.waited / total) if total else 0.0
            parts["disk"], parts["limit"] = disk * scale, limit * scale
            parts["server"] = max(0.0, total - disk - limit) * scale
        parts["network"] = max(0.0, flight.waited - sum(parts.values()))
        found[name] = parts
    return found


def summary(operations: Mapping[str, Flight], wall: int, server: ServerTotals | None) -> dict[str, Any]:
    """What *operations* waited for, in seconds, ready for JSON.

    ``sum``: of all waits; ``wall``: the time during which anybody waited, less than the sum where they waited side by
    side. ``parts``: the sum by :data:`PARTS`, and ``operations``: the same for each; None if the server did not say.
    """
    parts = split(operations, server) if server is not None else None
    return {
        "sum": sum(flight.waited for flight in operations.values()) / 1e9,
        "wall": wall / 1e9,
        "parts": None
        if parts is None
        else {part: sum(row[part] for row in parts.values()) / 1e9 for part in PARTS},
        "operations": None
        if parts is None
        else {name: {part: row[part] / 1e9 for part in PARTS} for name, row in sorted(parts.items())},
    }


# --- measuring -------------------------------------------------------------------------------------------------


class HasStats(Protocol):
    stats: Profiler


S = TypeVar("S", bound=HasStats)

Method = Callable[Concatenate[S, P], Coroutine[Any, Any, R]]


def measured(method: Method[S, P, R]) -> Method[S, P, R]:
    """Count and time an asynchronous method in ``self.stats`` under its own name."""
    name = method.__name__

    @functools.wraps(method)
    async def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        stats = self.stats
        operation = stats[name]
        flight = stats.current = Flight() if stats.watchers else operation
        failed, result = True, None
        begun = stats.clock()
        try:
            result = await method(self, *args, **kwargs)
            failed = False
            return result
        finally:
            elapsed = stats.clock() - begun
            operation.times.record(elapsed)
            if failed:
                operation.errors += 1
            if elapsed >= SLOW:
                stats.remember(name, args, elapsed, failed)
            if flight is not operation:
                operation.asked += flight.asked
                operation.waited += flight.waited
                for watcher in stats.watchers:
                    watcher.seen(name, args, elapsed, flight, result, failed)

    return wrapper

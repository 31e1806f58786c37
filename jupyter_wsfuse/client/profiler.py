"""What the operations of a mount cost: counted here, asked for by ``stats``.

One :class:`Operation` for every method that is :func:`measured`, so the size is bounded by the code.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Operation:
    """Totals of one kind of operation. ``seconds`` is wall-clock time, waiting for the server included."""

    __slots__ = ("count", "errors", "seconds", "longest", "bytes", "hits")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.seconds = 0.0
        self.longest = 0.0
        self.bytes = 0
        self.hits = 0

    def snapshot(self) -> dict[str, int | float]:
        return {
            "count": self.count,
            "errors": self.errors,
            "seconds": self.seconds,
            "mean": self.seconds / self.count if self.count else 0.0,
            "max": self.longest,
            "bytes": self.bytes,
            "cache_hits": self.hits,
        }


class Profiler(dict[str, Operation]):
    """Operations by name; one that was not used yet comes into being when it is asked for."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.clock = clock

    def __missing__(self, name: str) -> Operation:
        operation = self[name] = Operation()
        return operation

    def snapshot(self) -> dict[str, dict[str, int | float]]:
        """``{operation: {count, errors, seconds, mean, max, bytes, cache_hits}}`` of those used so far."""
        return {name: operation.snapshot() for name, operation in sorted(self.items()) if operation.count}


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
        begun = stats.clock()
        try:
            return await method(self, *args, **kwargs)
        except BaseException:
            operation.errors += 1
            raise
        finally:
            elapsed = stats.clock() - begun
            operation.count += 1
            operation.seconds += elapsed
            if elapsed > operation.longest:
                operation.longest = elapsed

    return wrapper

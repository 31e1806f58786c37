"""A profile: what a mount did between two moments, by operation and by directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from .profiler import Flight, Operation, Profiler, ServerTotals, since, summary

#: Places (an operation in a directory) that are told apart; what comes after them is counted as one.
PLACES: Final = 2000
#: Places that the result names, those that waited longest.
SHOWN: Final = 30
#: Bytes of a directory's path that are shown.
PATH_TEXT: Final = 300

_MOVES: Final = frozenset({"write", "copy_file_range"})  # operations whose result is a number of bytes


class Place:
    """An operation in a directory."""

    __slots__ = ("count", "elapsed", "asked", "waited", "bytes")

    def __init__(self) -> None:
        self.count = 0
        self.elapsed = 0
        self.asked = 0
        self.waited = 0
        self.bytes = 0


class Profile:
    """Counts from when it is made until :meth:`stop`. Bounded by :data:`PLACES`, however long it runs.

    *directory_of* tells the directory that an operation with these arguments works in; *server* are the server's totals
    at the beginning, None if it does not answer.
    """

    def __init__(
        self,
        stats: Profiler,
        directory_of: Callable[[str, tuple[Any, ...]], bytes],
        server: ServerTotals | None,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._stats = stats
        self._directory_of = directory_of
        self._server = server
        self._operations: dict[str, Operation] = {}
        self._places: dict[tuple[str, bytes | None], Place] = {}
        self.since = wall()
        self._ended: tuple[int, int] | None = None
        stats.watchers.append(self)
        self._began = self._moment()

    def _moment(self) -> tuple[int, int]:
        return self._stats.clock(), self._stats.waited

    def seen(
        self,
        name: str,
        arguments: tuple[Any, ...],
        elapsed: int,
        flight: Flight,
        result: object,
        failed: bool,
    ) -> None:
        """See :class:`~.profiler.Watcher`."""
        operation = self._operations.get(name)
        if operation is None:
            operation = self._operations[name] = Operation()
        moved = 0
        if type(result) is bytes and name == "read":
            moved = len(result)
        elif type(result) is int and name in _MOVES:
            moved = result
        operation.times.record(elapsed)
        operation.errors += failed
        operation.bytes += moved
        operation.asked += flight.asked
        operation.waited += flight.waited
        operation.hits += not flight.asked and not failed
        key: tuple[str, bytes | None] = (name, self._directory_of(name, arguments))
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= PLACES:
                key = (name, None)
            place = self._places.setdefault(key, Place())
        place.count += 1
        place.elapsed += elapsed
        place.asked += flight.asked
        place.waited += flight.waited
        place.bytes += moved

    def stop(self) -> None:
        """What comes now is no part of it. Twice is no error."""
        if self._ended is None:
            self._ended = self._moment()
            self._stats.watchers.remove(self)

    def finish(self, server: ServerTotals | None) -> dict[str, Any]:
        """The result, ready for JSON, times in seconds. *server*: its totals now, or at :meth:`stop`.

        ``seconds`` it took; ``operations`` as :meth:`Operation.snapshot`, where ``cache_hits`` are those that needed
        no answer of the server; ``waiting`` as :func:`~.profiler.summary`; ``places``: ``directory`` (None: those for
        which there was no room), ``operation``, ``count``, ``asked``, ``seconds``, ``waited``, ``bytes``.
        """
        self.stop()
        assert self._ended is not None
        elapsed, waited = (end - start for start, end in zip(self._began, self._ended, strict=True))
        came = None if server is None or self._server is None else since(server, self._server)
        asking = {name: operation for name, operation in self._operations.items() if operation.asked}
        places = sorted(self._places.items(), key=lambda item: (-item[1].waited, -item[1].elapsed))
        return {
            "seconds": elapsed / 1e9,
            "operations": {name: row.snapshot() for name, row in sorted(self._operations.items())},
            "waiting": summary(asking, waited, came),
            "places": [
                {
                    "directory": None
                    if directory is None
                    else directory[:PATH_TEXT].decode("utf-8", "backslashreplace"),
                    "operation": name,
                    "count": place.count,
                    "asked": place.asked,
                    "seconds": place.elapsed / 1e9,
                    "waited": place.waited / 1e9,
                    "bytes": place.bytes,
                }
                for (name, directory), place in places[:SHOWN]
            ],
            "places_known": len(self._places),
        }

"""How many bytes prefetching may have under way: enough to fill the link, and little more.

What is asked for ahead travels on the same connection as what somebody waits for, so everything that is under way
beyond what the link holds is delay for him. As in BBR, the window is twice the product of the highest rate at which
answers came lately and the shortest time that one took; what the link needs to be full, and as much again so that it
stays so while answers are looked at. While that grows the window doubles with every round trip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: Seconds after which what was measured is measured anew: the way to the server may be another by then.
_RENEWED: Final = 10.0
#: Round trips over which the highest rate counts.
_ROUNDS: Final = 8
#: How many windows the link is filled with.
_GAIN: Final = 2.0


class _Sent:
    __slots__ = ("size", "at", "delivered", "since")

    def __init__(self, size: int, at: float, delivered: int, since: float) -> None:
        self.size = size
        self.at = at
        self.delivered = delivered  # bytes that had come altogether when it was sent
        self.since = since  # when the last of these came


class Window:
    """*clock* is monotonic, in seconds; everything else is in bytes. The window is from *floor* to *ceiling*."""

    def __init__(
        self,
        clock: Callable[[], float],
        floor: int = 128 << 10,
        start: int = 512 << 10,
        ceiling: int = 32 << 20,
    ) -> None:
        self.limit = start
        self.flying = 0
        self._clock = clock
        self._floor = floor
        self._ceiling = ceiling
        self._sent: dict[int, _Sent] = {}
        self._last = 0
        self._delivered = 0
        self._delivered_at = clock()
        self._shortest = float("inf")
        self._shortest_at = clock()
        self._rates: list[float] = []  # the highest of each of the last rounds, the present one last
        self._round_ends = 0  # it ends when something that was sent after so many bytes had come is answered
        self._starting = True
        self._best = 0.0
        self._stale = 0

    def room(self) -> int:
        """Bytes that may be asked for now."""
        return max(0, self.limit - self.flying)

    def sent(self, size: int) -> int:
        """About *size* bytes are asked for. To be followed by :meth:`answered` or :meth:`dropped` with the result."""
        now = self._clock()
        if not self._sent:
            self._delivered_at = now  # a rate is not measured over idle time
        self._last += 1
        self._sent[self._last] = _Sent(size, now, self._delivered, self._delivered_at)
        self.flying += size
        return self._last

    def dropped(self, token: int) -> None:
        """It will not be answered."""
        sent = self._sent.pop(token, None)
        if sent is not None:
            self.flying -= sent.size

    def answered(self, token: int, size: int) -> None:
        """It was answered with *size* bytes."""
        sent = self._sent.pop(token, None)
        if sent is None:
            return
        self.flying -= sent.size
        now = self._clock()
        self._delivered += size
        self._delivered_at = now
        took = max(now - sent.at, 1e-6)
        if took <= self._shortest or now - self._shortest_at > _RENEWED:
            self._shortest, self._shortest_at = took, now
        rate = (self._delivered - sent.delivered) / max(now - sent.since, 1e-6)
        if sent.delivered >= self._round_ends:
            self._round_ends = self._delivered
            self._next_round()
        if not self._rates:
            self._rates.append(0.0)
        self._rates[-1] = max(self._rates[-1], rate)
        self._resize(size)

    def _next_round(self) -> None:
        highest = max(self._rates, default=0.0)
        if self._starting and self._rates:
            # The link is full when twice the window brought no more, three times in a row.
            if highest > 1.25 * self._best:
                self._best, self._stale = highest, 0
            else:
                self._stale += 1
                self._starting = self._stale < 3
        self._rates.append(0.0)
        del self._rates[:-_ROUNDS]

    def _resize(self, size: int) -> None:
        target = int(_GAIN * max(self._rates) * self._shortest)
        if self._starting:
            # Each byte that comes makes room for two, as long as the window is made use of.
            if self.flying + size >= self.limit // 2:
                self.limit = min(self._ceiling, self.limit + size)
        elif target > self.limit:
            self.limit = min(target, self.limit + size)
        else:
            self.limit = max(target, self.limit - size)
        self.limit = min(self._ceiling, max(self._floor, self.limit))

    def shrink(self) -> None:
        """The connection was lost: begin anew, carefully."""
        self.limit = max(self._floor, min(self.limit, 512 << 10))
        self._rates.clear()
        self._starting, self._best, self._stale = True, 0.0, 0
        self._shortest, self._shortest_at = float("inf"), self._clock()

    def snapshot(self) -> dict[str, float]:
        """Numbers for people: bytes, bytes a second, seconds."""
        return {
            "limit": self.limit,
            "flying": self.flying,
            "rate": max(self._rates, default=0.0),
            "shortest": 0.0 if self._shortest == float("inf") else self._shortest,
        }

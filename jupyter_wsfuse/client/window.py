"""How many bytes prefetching may have under way: enough to fill the link, and little more.

What is asked for ahead travels on the same connection as what somebody waits for, so everything that is under way
beyond what the link holds is delay for him. While answers take little longer than the quickest did, nothing waits on
the way, and the window doubles with every round trip in which it was made use of. From then on it is, as in BBR, twice
the product of the highest rate at which answers came lately and the shortest time that one took: what the link needs to
be full, and as much again so that it stays so while answers are looked at.
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
#: An answer that took so many times the shortest, and so many seconds more, had to wait on the way.
_QUEUED: Final = 1.5
_JITTER: Final = 0.002


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
        self._rates = [0.0]  # the highest of each of the last rounds, the present one last
        self._round_ends = 0  # it ends when something that was sent after so many bytes had come is answered

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
        full = (
            self.flying >= self.limit // 2
        )  # otherwise it says nothing about how large the window should be
        self.flying -= sent.size
        now = self._clock()
        self._delivered += size
        self._delivered_at = now
        took = max(now - sent.at, 1e-6)
        if took <= self._shortest or now - self._shortest_at > _RENEWED:
            self._shortest, self._shortest_at = took, now
        if sent.delivered >= self._round_ends:
            self._round_ends = self._delivered
            self._rates.append(0.0)
            del self._rates[:-_ROUNDS]
        rate = (self._delivered - sent.delivered) / max(now - sent.since, 1e-6)
        self._rates[-1] = max(self._rates[-1], rate)
        if took < _QUEUED * self._shortest + _JITTER:
            # Nothing waits on the way: each byte that comes makes room for two.
            if full:
                self.limit += size
        else:
            target = int(_GAIN * max(self._rates) * self._shortest)
            self.limit = (
                min(self.limit + size, target) if target > self.limit else max(target, self.limit - size)
            )
        self.limit = min(self._ceiling, max(self._floor, self.limit))

    def shrink(self) -> None:
        """The connection was lost: begin anew, carefully."""
        self.limit = max(self._floor, min(self.limit, 512 << 10))
        self._rates = [0.0]
        self._shortest, self._shortest_at = float("inf"), self._clock()

    def snapshot(self) -> dict[str, float]:
        """Numbers for people: bytes, bytes a second, seconds."""
        return {
            "limit": self.limit,
            "flying": self.flying,
            "rate": max(self._rates),
            "shortest": 0.0 if self._shortest == float("inf") else self._shortest,
        }

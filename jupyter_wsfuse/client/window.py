"""How many bytes prefetching may have under way: enough to fill the link, and little more.

What is asked for ahead travels on the same connection as what somebody waits for, so everything that is under way
beyond what the link holds is delay for him. An answer of *size* bytes takes ``base + size / rate`` if nothing waits on
the way; what it takes longer, it waited. Both are measured, as in BBR: the rate is the highest at which answers came
lately, ``base`` what the quickest of the last ten seconds took beyond its own bytes.

- At first the window doubles with every round trip, until something waits.
- From then on it is what the link holds, ``rate * base``, and as much again so that it stays full while answers are
  looked at, and one answer more, as they come whole. It follows these numbers as fast as it grew at first, and tries a
  little more whenever nothing waits: the link may have become wider.
- A window that is always full never sees how quick the link is when it is empty, takes its own queue for distance, and
  grows for ever. So when ten seconds have passed without an answer as quick as the quickest, or the rate has fallen,
  nothing is asked for until all has come, and the next answer says what the distance is now. That costs one round
  trip.

Whoever asks for ranges of a fixed size should ask if they fit into :meth:`Window.room`, or if nothing is under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

#: Seconds after which the distance is measured anew: the way to the server may be another by then.
_RENEWED: Final = 10.0
#: Rounds over which the highest rate counts (BBR: 10). One is a round trip, or if a queue makes that long, so many
#: seconds.
_ROUNDS: Final = 8
_LONGEST_ROUND: Final = 0.1
#: A rate that falls below this part of what it was means another way, and not before so many seconds after the last.
_FALLEN: Final = 0.7
_SETTLED: Final = 2.0
#: Seconds by which answers come early or late on a short way: turns of two event loops.
_JITTER: Final = 0.002
#: Part of what is answered by which the window grows beyond what was computed, while nothing waits.
_CURIOUS: Final = 8
#: Part by which the size of the largest answer is forgotten with every smaller one.
_FORGETFUL: Final = 16


class _Sent:
    __slots__ = ("size", "at", "delivered", "since", "sent_since", "alone")

    def __init__(
        self, size: int, at: float, delivered: int, since: float, sent_since: float, alone: bool
    ) -> None:
        self.size = size
        self.at = at
        self.delivered = delivered  # bytes that had come altogether when it was sent
        self.since = since  # when the last of these came
        self.sent_since = sent_since  # when the last of these was asked for
        self.alone = alone  # nothing else was under way


class Window:
    """*clock* is monotonic, in seconds; everything else is in bytes. The window is from *floor* to *ceiling*, at first
    *start*.

    Every :meth:`sent` is to be followed by one :meth:`answered` or :meth:`dropped` with what it returned; of a token
    that is not under way, nothing is noted.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        floor: int = 128 << 10,
        start: int = 512 << 10,
        ceiling: int = 32 << 20,
    ) -> None:
        if not 0 < floor <= start <= ceiling:
            raise ValueError(f"a window from {floor} to {ceiling} bytes cannot start with {start}")
        self._clock = clock
        self._floor = floor
        self._start = start
        self._ceiling = ceiling
        self._limit = start
        self._flying = 0
        self._sent: dict[int, _Sent] = {}
        self._last = 0
        self._delivered = 0
        self._delivered_at = self._delivered_sent_at = clock()
        self._grain = 0  # the size of large answers
        self._forget()

    def _forget(self) -> None:
        """Of what was measured, everything."""
        self._starting = True
        self._rates: deque[float] = deque([0.0], _ROUNDS)  # highest of each round, the present one last
        self._rate = 0.0  # bytes a second, the highest of these
        self._round_ends = self._delivered  # the present one, with an answer to what was asked for after that
        self._quickest: tuple[float, int] | None = None  # seconds, bytes; see _base()
        self._quickest_at = self._round_at = self._settled_at = self._clock()
        self._best_rate = 0.0  # since then
        self._draining_until = 0.0

    @property
    def limit(self) -> int:
        """Bytes that may be under way."""
        return self._limit

    @property
    def flying(self) -> int:
        """Bytes that are."""
        return self._flying

    def room(self) -> int:
        """Bytes that may be asked for now, never below 0."""
        if self._draining_until and self._clock() < self._draining_until:
            return 0
        return max(0, self._limit - self._flying)

    def sent(self, size: int) -> int:
        """About *size* bytes are asked for."""
        now = self._clock()
        if not self._sent:  # a rate is not measured over idle time
            self._delivered_at = self._delivered_sent_at = now
        self._last += 1
        self._sent[self._last] = _Sent(
            size, now, self._delivered, self._delivered_at, self._delivered_sent_at, not self._sent
        )
        self._flying += size
        return self._last

    def dropped(self, token: int) -> None:
        """It failed, or was given up."""
        sent = self._sent.pop(token, None)
        if sent is not None:
            self._landed(sent)

    def answered(self, token: int, size: int) -> None:
        """It was answered with *size* bytes."""
        sent = self._sent.pop(token, None)
        if sent is None:
            return
        now = self._clock()
        flying = self._flying
        self._landed(sent)
        took = max(now - sent.at, 1e-6)
        self._delivered += size
        self._delivered_at, self._delivered_sent_at = now, sent.at
        self._grain = max(size, self._grain - self._grain // _FORGETFUL)
        # A small use of the window says little about how large it should be, or how wide the link is.
        full = 2 * flying >= self._limit
        self._measure_rate(sent, now, full)
        self._measure_base(sent, took, size, now)
        base = self._base()
        slack = max(base, _JITTER)
        target = int(self._rate * (base + slack)) + self._grain
        if took - base - size / self._rate > slack / 2:
            if 2 * flying >= min(self._limit, target):
                self._starting = False
                self._limit = min(self._limit + size, target)
        elif full:
            known = self._limit < target or self._starting
            self._limit += size if known else size // _CURIOUS
        self._limit = min(self._ceiling, max(self._floor, self._limit))

    def shrink(self) -> None:
        """Something went wrong that answers do not tell, as a connection that was lost: begin anew, carefully."""
        self._limit = max(self._floor, min(self._limit // 2, self._start))
        self._forget()

    def snapshot(self) -> dict[str, float]:
        """Numbers for people: bytes (``limit``, ``flying``), bytes a second (``rate``), seconds (``shortest``)."""
        return {
            "limit": self._limit,
            "flying": self._flying,
            "rate": self._rate,
            "shortest": self._base(),
        }

    # --- what is measured ------------------------------------------------------------------------------

    def _landed(self, sent: _Sent) -> None:
        self._flying -= sent.size
        if self._draining_until and not self._sent:
            self._draining_until = 0.0
            self._limit = max(self._floor, self._limit // 2)  # all at once would wait for itself

    def _measure_rate(self, sent: _Sent, now: float, full: bool) -> None:
        """What came since *sent* was sent, over the time in which it came or was asked for, whichever is longer:
        answers that were held up and come all at once do not make the link faster."""
        if full and (
            sent.delivered >= self._round_ends or now - self._round_at > max(_LONGEST_ROUND, 2 * self._base())
        ):
            self._round_ends, self._round_at = self._delivered, now
            self._rates.append(0.0)
        seconds = max(now - sent.since, sent.at - sent.sent_since, 1e-6)
        self._rates[-1] = max(self._rates[-1], (self._delivered - sent.delivered) / seconds)
        self._rate = max(1.0, *self._rates)
        if self._rate >= self._best_rate:
            self._best_rate = self._rate
        elif self._rate < _FALLEN * self._best_rate and now - self._settled_at > _SETTLED:
            # The link is narrower, and much is queued, or it is longer, and the window too small for it.
            self._best_rate, self._settled_at = self._rate, now
            self._quickest_at = now - 2 * _RENEWED

    def _measure_base(self, sent: _Sent, took: float, size: int, now: float) -> None:
        old = now - self._quickest_at > _RENEWED
        if (
            self._quickest is None
            or took - size / self._rate <= self._quickest[0] - self._quickest[1] / self._rate
            or (old and sent.alone)
        ):
            self._quickest, self._quickest_at = (took, size), now
            self._draining_until = 0.0
        elif old and self._sent:
            if not self._draining_until:
                expected = self._flying / self._rate + self._base() + _JITTER
                self._draining_until = now + 2 * expected
            elif now >= self._draining_until:  # something takes very long; another time
                self._quickest_at, self._draining_until = now, 0.0

    def _base(self) -> float:
        """Seconds from a request to its answer, without the time that the answer's own bytes take. Computed from the
        rate as it is known now: while that is too low, bytes seem to take longer than they do."""
        if self._quickest is None:
            return 0.0
        took, size = self._quickest
        return max(0.0, took - size / self._rate)

"""Noticing that a peer has gone without a word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from jupyter_wsfuse.client.transport import WebSocket


class Heartbeat:
    """Watches one WebSocket until :meth:`stop`.

    After *interval* seconds without a sign of life *ping* is called with a number; without one for *patience*
    seconds more, *dead* is called, with how long it was. ``idle`` is asked at every beat whether to stop instead.
    """

    def __init__(
        self,
        ws: WebSocket,
        *,
        interval: float,
        patience: float,
        ping: Callable[[int], None],
        dead: Callable[[float], None],
        idle: Callable[[float], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ws = ws
        self._interval = interval
        self._patience = patience
        self._ping, self._dead, self._idle = ping, dead, idle
        self._nonce = 0
        self._pinged_at = 0.0  # loop time; 0: there is no ping to be answered
        self._sent_at = 0.0  # the same by a clock that is finer than uvloop's
        self._seen = (ws.arrivals, ws.unsent())
        self._seen_at = self._loop.time()
        self._timer = self._loop.call_later(interval, self._beat)
        self._verdict: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        self._timer.cancel()
        if self._verdict is not None:
            self._verdict.cancel()

    def measure(self) -> None:
        """Ask for a pong although nothing is wrong, to learn how long the round trip is."""
        self._nonce += 1
        self._sent_at = time.monotonic()
        self._ping(self._nonce)

    def hurry(self, patience: float) -> None:
        """Somebody would rather not wait: the peer has *patience* seconds from now to show a sign of life."""
        if self._verdict is None:
            seen = self._ws.arrivals, self._ws.unsent()
            self._verdict = self._loop.call_later(patience, self._judge, seen, patience)
            self.measure()

    def _judge(self, seen: tuple[int, int], patience: float) -> None:
        self._verdict = None
        unsent = self._ws.unsent()
        if self._ws.arrivals != seen[0]:
            return
        if unsent < seen[1]:  # the network lives; whether the peer does will show
            self._verdict = self._loop.call_later(patience, self._judge, (seen[0], unsent), patience)
        else:
            self._dead(patience)

    def pong(self, nonce: int) -> float | None:
        """The round trip that this answer means, in seconds; None if it is an old one."""
        return time.monotonic() - self._sent_at if nonce == self._nonce else None

    def _beat(self) -> None:
        now = self._loop.time()
        if self._idle(now):
            return
        # Bytes that leave are a sign of life as well: on a slow link a ping queues behind megabytes.
        arrivals, unsent = self._ws.arrivals, self._ws.unsent()
        if arrivals != self._seen[0] or unsent < self._seen[1]:
            self._seen_at, self._pinged_at = now, 0.0
        elif not self._pinged_at:
            self._pinged_at = now
            self.measure()
        elif now - self._pinged_at >= self._patience:
            self._dead(now - self._seen_at)
            return
        self._seen = (arrivals, unsent)
        self._timer = self._loop.call_later(min(self._interval, self._patience), self._beat)

"""Staying awake for an answer that is due in microseconds.

A processor that has gone idle takes some 20 microseconds to be woken, more on a virtual machine: as much as the
work on either side of one operation between two processes of a host. So who has just sent something to such a peer
lets the event loop poll instead of sleep, for as long as the last answer took at most, as block devices and
hypervisors do. That costs processor time only while operations follow each other at once, and gives way to
whatever else wants to run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

#: Seconds for which polling is cheaper than sleeping and being woken.
LIMIT: Final = 150e-6


class BusyPoll:
    """Keeps *loop* from sleeping between :meth:`expect` and :meth:`happened`, if the time before was short.

    *limit* in seconds: what took longer last time is not waited for in this way, and nothing is for longer. 0: never.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: float = LIMIT,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._clock = clock
        self._since = 0.0
        self._until = 0.0
        self._soon = False
        self._turning = False

    def expect(self) -> None:
        """From now on something may arrive at any moment."""
        now = self._since = self._clock()
        if self._soon:
            self._until = now + self._limit
            if not self._turning:
                self._turning = True
                self._loop.call_soon(self._turn)

    def happened(self) -> None:
        """It has arrived, or is not waited for any more."""
        self._soon = self._clock() - self._since < self._limit
        self._until = 0.0

    def _turn(self) -> None:
        if self._clock() < self._until:
            os.sched_yield()
            self._loop.call_soon(self._turn)
        else:
            self._turning = False

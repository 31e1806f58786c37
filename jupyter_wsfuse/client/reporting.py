"""What a mount says of itself to those who look at it on the server, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from ..protocol.messages import Report

#: Seconds between two reports.
INTERVAL: Final = 1.0


class Reporting(Protocol):
    """What is needed of :class:`~.connection.Connection`."""

    on_watched: Callable[[bool], None]
    on_parking: Callable[[], None]

    def report(self, report: Report) -> bool: ...


class Reporter:
    """Reports what *figures* gives for a state, while somebody looks and it is another than before.

    Sets the hooks of *connection*. An idle mount says nothing: what changes all the time, like the round trip, goes
    with what else is to be said.
    """

    def __init__(
        self, connection: Reporting, figures: Callable[[str], Report], *, interval: float = INTERVAL
    ) -> None:
        self._connection = connection
        self._figures = figures
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None
        self._said: Report | None = None
        connection.on_watched = self.watched
        connection.on_parking = self.parking

    def watched(self, on: bool) -> None:
        """Somebody looks, or nobody does any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._said = None
        if on:
            self._look()

    def parking(self) -> None:
        """The connection is let go because nobody uses it: who looks later will know why it is not there."""
        self._connection.report(self._figures("parked"))

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._look)
        report = self._figures("connected")
        if self._is_news(report) and self._connection.report(report):
            self._said = report

    def _is_news(self, report: Report) -> bool:
        said = self._said
        if said is None:
            return True
        rtt, report.rtt = report.rtt, said.rtt
        same = report == said
        report.rtt = rtt
        return not same

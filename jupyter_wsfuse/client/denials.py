"""Saying in the mount's log which rule of the server denied something, without drowning it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Final

from ..protocol.messages import Request

log = logging.getLogger(__name__)

#: Seconds for which the same rule is not named again, and rules that are remembered for that.
QUIET: Final = 60.0
_REMEMBERED: Final = 100

#: How the server's message begins when it was a rule.
_MARK: Final = "denied by "


class Denials:
    """Each rule is named at most once in :data:`QUIET` seconds, with the request that met it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, tuple[float, int]] = {}  # when, and how often since

    def saw(self, request: Request, error: OSError) -> None:
        """*request* ended in *error*: log it if that was by a rule."""
        text = error.strerror or ""
        if error.errno != errno.EACCES or not text.startswith(_MARK):
            return
        now = self._clock()
        when, more = self._told.pop(text, (now - QUIET, 0))
        if now < when + QUIET:
            self._told[text] = when, more + 1
            return
        if len(self._told) >= _REMEMBERED:
            del self._told[next(iter(self._told))]
        self._told[text] = now, 0
        log.warning("%s: %s%s", request, text, f" (and {more} times before)" if more else "")

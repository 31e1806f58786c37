"""Waiting with a deadline, for what gives no event."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

_NEVER = threading.Event()


def eventually(predicate: Callable[[], object], timeout: float = 20.0) -> None:
    """Until *predicate* is true; fails after *timeout* seconds. Only where no event says so."""
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        _NEVER.wait(0.005)


async def eventually_async(predicate: Callable[[], object], timeout: float = 20.0) -> None:
    """As :func:`eventually`, while the event loop goes on."""
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.005)
        except TimeoutError:
            pass

"""Waiting until a moment, more exactly than an event loop does.

Timers of uvloop (and the timeout of epoll) count whole milliseconds: half of a round trip of 5 ms would become 2 ms.
The kernel's timer descriptors count nanoseconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

_libc = ctypes.CDLL(None, use_errno=True)
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


class Alarm:
    """One waiter at a time, on the loop that runs. :meth:`close` it."""

    def __init__(self) -> None:
        # The flags of timerfd_create are those of open.
        self._fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._rung = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._ring)

    def close(self) -> None:
        """Nobody may be waiting."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    async def until(self, due: float) -> None:
        """Return when :func:`time.monotonic` is *due* or a little more, never before."""
        if due <= time.monotonic():
            return
        self._rung.clear()
        # Rounded up: at the moment itself, a clock that is read as a float could still show the one before.
        nanoseconds = int(due * 1e9) + 1000
        when = _Itimerspec(value=_Timespec(nanoseconds // 10**9, nanoseconds % 10**9))
        if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(when), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._rung.wait()

    def _ring(self) -> None:
        os.read(self._fd, 8)
        self._rung.set()

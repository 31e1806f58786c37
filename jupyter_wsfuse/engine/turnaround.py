"""How soon a thread that has something to do gets to do it while others of this process are busy.

Threads wait for two things: for the interpreter, which its owner gives up after the *switch interval* at the latest,
and for a processor, which the kernel takes from whoever has had it for a *slice*. Short ones let small requests pass
between large ones, and cost those some of their speed: so they are for when somebody else is there.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import threading
from typing import Final

#: Seconds and nanoseconds, while several tenants are there.
SHORT_INTERVAL: Final = 50e-6
SHORT_SLICE: Final = 100_000

#: Of sched_setattr(2).
_SYSCALL: Final = {"x86_64": 314, "aarch64": 274}
#: u32 size, policy, u64 flags, s32 nice, u32 priority, u64 runtime, deadline, period
_ATTRIBUTES: Final = struct.Struct("<IIQiIQQQ")
_KEEP_POLICY: Final = 8


def set_slice(thread: int, nanoseconds: int) -> bool:
    """Ask for slices of that length for the thread of this native id; 0 is the kernel's own. False if it cannot be
    had. Kernels before 6.12 take the wish and do nothing."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        return False
    try:
        nice = os.getpriority(os.PRIO_PROCESS, thread)
    except OSError:
        return False
    wish = _ATTRIBUTES.pack(_ATTRIBUTES.size, 0, _KEEP_POLICY, nice, 0, nanoseconds, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(number, thread, wish, 0) == 0)


class Turnaround:
    """Switches between short turns and those that were set when this was made."""

    def __init__(self) -> None:
        self._interval = sys.getswitchinterval()
        self.short = False

    def set(self, short: bool) -> None:
        """For all threads that there are now."""
        if short == self.short:
            return
        self.short = short
        sys.setswitchinterval(min(SHORT_INTERVAL, self._interval) if short else self._interval)
        for thread in threading.enumerate():
            if thread.native_id is not None:
                set_slice(thread.native_id, SHORT_SLICE if short else 0)

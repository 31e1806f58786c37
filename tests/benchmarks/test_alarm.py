"""Waiting exactly."""

from __future__ import annotations

import os
import time

from benchmarks.alarm import Alarm


async def test_never_early_and_again_and_again() -> None:
    alarm = Alarm()
    for wait in (0.0011, 0.0005, 0.0, -1.0, 0.0025):
        due = time.monotonic() + wait
        await alarm.until(due)
        assert time.monotonic() >= due
    alarm.close()


async def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    alarm = Alarm()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    alarm.close()
    assert len(os.listdir("/proc/self/fd")) == before

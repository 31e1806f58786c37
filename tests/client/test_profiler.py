"""Counting and timing."""

from __future__ import annotations

import asyncio

import pytest

from jupyter_wsfuse.client.profiler import Profiler, measured


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Service:
    def __init__(self) -> None:
        self.clock = Clock()
        self.stats = Profiler(self.clock)

    @measured
    async def work(self, seconds: float, error: type[BaseException] | None = None) -> float:
        """Takes that long."""
        self.clock.now += seconds
        if error is not None:
            raise error
        return seconds


async def test_operations_are_counted_and_timed() -> None:
    service = Service()
    assert await service.work(1.0) == 1.0
    assert await service.work(3.0) == 3.0
    with pytest.raises(OSError):
        await service.work(0.5, OSError)
    with pytest.raises(asyncio.CancelledError):
        await service.work(0.5, error=asyncio.CancelledError)
    service.stats["work"].bytes += 7
    service.stats["work"].hits += 1
    assert service.stats.snapshot() == {
        "work": {
            "count": 4, "errors": 2, "seconds": 5.0, "mean": 1.25, "max": 3.0, "bytes": 7, "cache_hits": 1,
        }
    }  # fmt: skip


def test_what_was_not_used_is_not_shown() -> None:
    profiler = Profiler()
    assert profiler["idle"].snapshot()["mean"] == 0.0
    assert profiler.snapshot() == {}


def test_a_measured_method_keeps_its_name_and_text() -> None:
    assert Service.work.__name__ == "work"
    assert Service.work.__doc__ == "Takes that long."

"""Counting, timing, and whose part the waiting was."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.client.profiler import (
    PARTS,
    REQUEST_OF,
    SLOW,
    SLOW_KEPT,
    SLOW_TEXT,
    Flight,
    Profiler,
    measured,
    since,
    split,
    summary,
)
from jupyter_wsfuse.client.vfs import Vfs
from jupyter_wsfuse.protocol import messages as m

MS = 1_000_000


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


class Service:
    """Operations that take as long as they are told, and ask a server that answers when it is told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stats = Profiler(self.clock, wall=lambda: 1000.0)

    @measured
    async def work(self, took: int, error: type[BaseException] | None = None) -> int:
        """Takes that long."""
        self.clock.now += took
        if error is not None:
            raise error
        return took

    @measured
    async def fetch(self, *replies: asyncio.Future[None]) -> None:
        for reply in replies:
            await self.ask(reply)

    @measured
    async def other(self, reply: asyncio.Future[None]) -> None:
        await self.ask(reply)

    async def ask(self, reply: asyncio.Future[None]) -> None:
        flight = self.stats.current
        asked_at = self.stats.asking()
        try:
            await reply
        finally:
            self.stats.answered(flight, asked_at)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_operations_are_counted_and_timed() -> None:
    service = Service()
    assert await service.work(MS) == MS
    assert await service.work(3 * MS) == 3 * MS
    with pytest.raises(OSError):
        await service.work(MS // 2, OSError)
    with pytest.raises(asyncio.CancelledError):
        await service.work(MS // 2, error=asyncio.CancelledError)
    service.stats["work"].bytes += 7
    service.stats["work"].hits += 1
    row = service.stats.snapshot()["work"]
    quantiles = [row.pop(name) for name in ("p50", "p95", "p99")]
    assert row == {
        "count": 4, "errors": 2, "seconds": 0.005, "mean": 0.00125, "min": 0.0005, "max": 0.003, "bytes": 7,
        "cache_hits": 1, "asked": 0, "waited": 0.0,
    }  # fmt: skip
    assert quantiles == pytest.approx([0.0005, 0.003, 0.003], rel=0.01)
    json.dumps(service.stats.snapshot())


def test_what_was_not_used_is_not_shown() -> None:
    profiler = Profiler()
    assert profiler["idle"].snapshot()["mean"] == 0.0
    assert profiler.snapshot() == {}
    assert profiler.waiting({}) == {
        "sum": 0.0,
        "wall": 0.0,
        "parts": dict.fromkeys(PARTS, 0),
        "operations": {},
    }


def test_a_measured_method_keeps_its_name_and_text() -> None:
    assert Service.work.__name__ == "work"
    assert Service.work.__doc__ == "Takes that long."


def test_every_operation_is_known_by_its_request() -> None:
    marked = {name for name, _ in inspect.getmembers(Vfs, lambda member: hasattr(member, "__wrapped__"))}
    assert marked == set(REQUEST_OF)
    assert set(REQUEST_OF.values()) <= {kind.__name__ for kind in m.REQUESTS}


# --- waiting ---------------------------------------------------------------------------------------------------


async def test_waiting_is_the_operation_s_that_asked() -> None:
    """Although several are under way and each asks more than once."""
    service, loop = Service(), asyncio.get_running_loop()
    replies = [loop.create_future() for _ in range(4)]
    first = asyncio.ensure_future(service.fetch(replies[0], replies[2]))
    second = asyncio.ensure_future(service.other(replies[1]))
    await turns()
    service.clock.now = 10 * MS
    replies[0].set_result(None)
    await turns()  # the first asks again while the second waits
    service.clock.now = 30 * MS
    replies[1].set_result(None)
    await second
    service.clock.now = 60 * MS
    replies[2].set_result(None)
    await first
    service.clock.now = 100 * MS
    found = service.stats.snapshot()
    assert (found["fetch"]["asked"], found["fetch"]["waited"]) == (2, 0.060)
    assert (found["other"]["asked"], found["other"]["waited"]) == (1, 0.030)
    waiting = service.stats.waiting(None)
    assert (waiting["sum"], waiting["wall"]) == (0.09, 0.06)
    assert waiting["parts"] is None

    third = asyncio.ensure_future(service.other(replies[3]))
    await turns()
    service.clock.now = 105 * MS
    assert service.stats.waited == 65 * MS, "one waits at this moment"
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    assert service.stats.snapshot()["other"]["waited"] == 0.035
    assert service.stats.waited == 65 * MS


async def test_counting_from_zero_again() -> None:
    service = Service()
    await service.work(2 * SLOW)
    reply = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(service.other(reply))
    await turns()
    service.clock.now += 10 * MS
    service.stats.reset()
    assert service.stats.snapshot() == {}
    assert (len(service.stats.slow), service.stats.slow_count) == (0, 0)
    service.clock.now += 5 * MS
    reply.set_result(None)
    await task
    assert service.stats.waiting(None)["wall"] == 0.005
    assert service.stats.snapshot() == {}
    await service.work(1)
    assert service.stats.snapshot()["work"]["count"] == 1


# --- slow operations -------------------------------------------------------------------------------------------


async def test_slow_operations_are_remembered() -> None:
    service = Service()
    service.stats.path_of = lambda name, arguments: b"data/\xff" + b"x" * 1000
    await service.work(SLOW - 1)
    assert not service.stats.slow
    await service.work(SLOW)
    with pytest.raises(OSError):
        await service.work(2 * SLOW, OSError)
    path = "data/\\xff" + "x" * (SLOW_TEXT - 6)
    assert list(service.stats.slow) == [
        {"time": 1000.0, "operation": "work", "path": path, "seconds": 1.0, "failed": False},
        {"time": 1000.0, "operation": "work", "path": path, "seconds": 2.0, "failed": True},
    ]
    for _ in range(SLOW_KEPT):
        await service.work(3 * SLOW)
    assert {row["seconds"] for row in service.stats.slow} == {3.0}
    assert service.stats.slow_count == SLOW_KEPT + 2
    assert len(json.dumps(list(service.stats.slow))) < 30_000


# --- watchers --------------------------------------------------------------------------------------------------


class Eye:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def seen(
        self,
        name: str,
        arguments: tuple[Any, ...],
        elapsed: int,
        flight: Flight,
        result: object,
        failed: bool,
    ) -> None:
        self.calls.append((name, arguments, elapsed, flight.asked, flight.waited, result, failed))


async def test_who_watches_is_told_and_the_totals_are_the_same() -> None:
    service, eye = Service(), Eye()
    service.stats.watchers.append(eye)
    reply = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(service.other(reply))
    await turns()
    service.clock.now += 10 * MS
    reply.set_result(None)
    await task
    await service.work(MS)
    with pytest.raises(OSError):
        await service.work(MS, OSError)
    assert eye.calls == [
        ("other", (reply,), 10 * MS, 1, 10 * MS, None, False),
        ("work", (MS,), MS, 0, 0, MS, False),
        ("work", (MS, OSError), MS, 0, 0, None, True),
    ]
    assert service.stats.snapshot()["other"]["waited"] == 0.01
    service.stats.watchers.remove(eye)
    await service.work(MS)
    assert len(eye.calls) == 3


# --- whose part ------------------------------------------------------------------------------------------------


def flight(asked: int, waited: int) -> Flight:
    made = Flight()
    made.asked, made.waited = asked, waited
    return made


def test_the_split() -> None:
    server = {"Open": [10, 0, 1000, 300, 200, 0], "Close": [10, 0, 5000, 5000, 0, 0]}
    assert split({"open": flight(10, 4000)}, server) == {
        "open": {"network": 3000.0, "server": 500.0, "disk": 300.0, "limit": 200.0}
    }
    twice = {"Open": [20, 0, 2000, 600, 400, 0]}
    assert split({"open": flight(10, 4000)}, twice) == split({"open": flight(10, 4000)}, server)
    nothing = {"network": 4000.0, "server": 0.0, "disk": 0.0, "limit": 0.0}
    assert split({"open": flight(10, 4000)}, {}) == {"open": nothing}
    assert split({"unheard": flight(10, 4000)}, {"Open": [0, 0, 0, 0, 0, 0]}) == {"unheard": nothing}


def test_operations_that_share_a_request() -> None:
    server = {"SetLock": [4, 0, 4000, 400, 0, 0]}
    parts = split({"setlk": flight(3, 6000), "flush": flight(1, 2000)}, server)
    assert parts["setlk"] == {"network": 3000.0, "server": 2700.0, "disk": 300.0, "limit": 0.0}
    assert parts["flush"] == {"network": 1000.0, "server": 900.0, "disk": 100.0, "limit": 0.0}


rows = st.lists(st.integers(0, 10**12), min_size=6, max_size=6)


@given(
    st.dictionaries(
        st.sampled_from(sorted(REQUEST_OF)), st.tuples(st.integers(1, 1000), st.integers(0, 10**12))
    ),
    st.dictionaries(st.sampled_from(sorted(REQUEST_OF.values())), rows),
)
def test_the_parts_are_the_whole(
    operations: dict[str, tuple[int, int]], server: dict[str, list[int]]
) -> None:
    """Even if the server claims what cannot be."""
    flights = {name: flight(*numbers) for name, numbers in operations.items()}
    for name, parts in split(flights, server).items():
        assert min(parts.values()) >= 0
        assert sum(parts.values()) == pytest.approx(flights[name].waited, rel=1e-6, abs=1e-3)
    found = summary(flights, 5, server)
    assert sum(found["parts"].values()) == pytest.approx(found["sum"], rel=1e-6, abs=1e-9)


def test_the_totals_of_a_server_that_was_replaced() -> None:
    before = {"Open": [10, 0, 100, 50, 0, 0], "Read": [5, 0, 10, 5, 0, 7]}
    now = {
        "Open": [12, 1, 130, 60, 0, 0],
        "Read": [2, 0, 4, 1, 0, 3],
        "Write": [1, 0, 1, 1, 0, 1],
        "Odd": [1],
    }
    assert since(now, before) == {
        "Open": [2, 1, 30, 10, 0, 0], "Read": [2, 0, 4, 1, 0, 3], "Write": [1, 0, 1, 1, 0, 1], "Odd": [1],
    }  # fmt: skip

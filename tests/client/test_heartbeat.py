"""Signs of life: what counts as one, and when a peer is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from jupyter_wsfuse.client.heartbeat import Heartbeat
from jupyter_wsfuse.client.transport import WebSocket


class Socket(WebSocket):
    """A socket whose signs of life the test gives."""

    def __init__(self) -> None:
        super().__init__(lambda _data: None, lambda _why: None, lambda: None)
        self.waiting = 0

    def unsent(self) -> int:
        return self.waiting


class Watch:
    def __init__(self, on_ping: Callable[[int], None], patience: float = 0.02) -> None:
        self.socket = Socket()
        self.pings: list[int] = []
        self.silence: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.on_ping = on_ping
        self.stopping = False
        self.beat = Heartbeat(
            self.socket,
            interval=0.01,
            patience=patience,
            ping=self.ping,
            dead=self.silence.set_result,
            idle=self.idle,
        )

    def ping(self, nonce: int) -> None:
        self.pings.append(nonce)
        self.on_ping(nonce)

    def idle(self, _now: float) -> bool:
        return self.stopping


async def test_a_silent_peer_is_pinged_once_and_given_up() -> None:
    watch = Watch(lambda _nonce: None)
    assert await watch.silence >= 0.02
    assert watch.pings == [1]


async def test_an_answer_is_a_sign_of_life_and_measures_the_way() -> None:
    enough = asyncio.Event()
    trips: list[float | None] = []

    def answer(nonce: int) -> None:
        watch.socket.arrivals += 1
        trips.append(watch.beat.pong(nonce))
        if len(trips) == 3:
            enough.set()

    watch = Watch(answer)
    await enough.wait()
    assert all(trip is not None and 0 <= trip < 1 for trip in trips)
    assert watch.beat.pong(0) is None
    watch.beat.stop()
    assert not watch.silence.done()


async def test_bytes_that_leave_are_a_sign_of_life() -> None:
    enough = asyncio.Event()
    seen: list[int] = []

    def drain(nonce: int) -> None:
        watch.socket.waiting -= 1000
        seen.append(nonce)
        if len(seen) == 3:
            enough.set()

    watch = Watch(drain, patience=0.005)
    watch.socket.waiting = 1_000_000
    await enough.wait()
    watch.beat.stop()
    assert not watch.silence.done()


async def test_it_ends_when_it_is_told_to() -> None:
    watch = Watch(lambda _nonce: None)
    watch.stopping = True
    done, _ = await asyncio.wait((watch.silence,), timeout=0.06)
    assert not done
    assert watch.pings == []


async def test_whoever_is_in_a_hurry_has_the_peer_given_up_sooner() -> None:
    watch = Watch(lambda _nonce: None, patience=60.0)
    watch.beat.hurry(0.02)
    watch.beat.hurry(0.02)
    assert watch.pings == [1]
    assert await watch.silence == 0.02


async def test_bytes_that_leave_are_a_reprieve_for_the_hurried() -> None:
    watch = Watch(lambda _nonce: None, patience=60.0)
    watch.socket.waiting = 100
    watch.beat.hurry(0.02)
    watch.socket.waiting = 0
    assert await watch.silence == 0.02


async def test_a_peer_that_answers_the_hurried_is_kept() -> None:
    def answer(_nonce: int) -> None:
        watch.socket.arrivals += 1

    watch = Watch(answer, patience=60.0)
    watch.beat.hurry(0.01)
    answered = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.05, answered.set_result, None)
    await answered
    assert not watch.silence.done()
    watch.beat.hurry(60.0)
    watch.beat.stop()


async def test_the_way_is_measured_when_nothing_is_wrong() -> None:
    watch = Watch(lambda _nonce: None, patience=60)
    watch.beat.measure()
    assert watch.pings == [1]
    trip = watch.beat.pong(1)
    assert trip is not None
    assert trip >= 0
    assert watch.beat.pong(0) is None
    watch.beat.stop()

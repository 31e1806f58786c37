"""Limits: what passes, who waits and for how long, who is refused, and the rate on the long run."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine.limiter import Held, Limiter, tightest
from jupyter_wsfuse.engine.tenants import Limits
from jupyter_wsfuse.errors import RefusedError
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.engineproc import EngineProcess
from tests.helpers.rawclient import RawClient, disconnect_all
from tests.helpers.waiting import eventually_async


class Asker:
    """Somebody who asks a limiter for things, and keeps what came of it."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.passed: list[Any] = []
        self.refused: list[OSError] = []

    def ask(self, *amounts: tuple[str, float], tag: Any = None) -> Held | None:
        """None if it passed at once."""
        held = self.limiter.admit(
            self,  # type: ignore[arg-type]  # a session is a key to a limiter, nothing else
            list(amounts),
            lambda: self.passed.append(tag),
            self.refused.append,
        )
        if held is None:
            self.passed.append(tag)
        return held


def shown(limiter: Limiter, name: str) -> tuple[int, int, int]:
    counters = limiter.describe()[name]
    return counters["allowed"], counters["delayed"], counters["refused"]


# --- what passes


async def test_without_limits_everything_passes() -> None:
    limiter = Limiter(Limits())
    asker = Asker(limiter)
    assert limiter.table == {}
    for _ in range(100):
        assert asker.ask(("write", 1), ("bytes_in", 1 << 30), ("in_flight", 1)) is None
    assert limiter.take("metadata") == -1
    limiter.open_handle()
    limiter.close_handle()
    limiter.check_sessions(10**6)


async def test_a_burst_of_one_second_passes_and_then_the_rate_holds() -> None:
    limiter = Limiter(Limits(metadata=200))
    asker = Asker(limiter)
    at_once = 0
    while asker.ask(("metadata", 1)) is None:
        at_once += 1
    assert 200 <= at_once <= 240  # what leaked meanwhile on top
    assert asker.ask(("read", 1)) is None  # of another class
    for _ in range(30):
        assert asker.ask(("metadata", 1)) is not None  # nobody overtakes
    await eventually_async(lambda: len(asker.passed) == at_once + 32)
    allowed, delayed, refused = shown(limiter, "metadata")
    assert (allowed, delayed, refused) == (at_once + 31, 31, 0)
    assert limiter.describe()["metadata"]["waited"] > 0
    assert limiter.describe()["metadata"]["waiting"] == 0


@pytest.mark.parametrize(("name", "rate", "amount"), [("read", 3000, 1), ("bytes_in", 40 << 20, 64 << 10)])
async def test_the_long_run_rate(name: str, rate: float, amount: float) -> None:
    """Ten askers who always want more: counted after the burst, over a second and more."""
    tenant = Limiter(Limits(**{name: rate}))  # type: ignore[arg-type]
    passed = 0
    when: list[float] = []

    def one(key: Any) -> None:
        nonlocal passed

        def again() -> None:
            nonlocal passed
            passed += 1
            when.append(time.perf_counter())
            if not stop:
                one(key)

        while limiter.admit(key, [(name, amount)], again, pytest.fail) is None:
            passed += 1
            when.append(time.perf_counter())

    stop = False
    limiter = Limiter(Limits(), parent=tenant)
    for key in range(10):
        one(key)
    burst = len(when)
    await eventually_async(lambda: when[-1] - when[burst - 1] > 1.5)
    stop = True
    took = when[-1] - when[burst - 1]
    measured = (len(when) - burst) * amount / took
    assert abs(measured / rate - 1) < 0.05, (measured, rate)
    for key in range(10):
        limiter.forget(key)  # type: ignore[arg-type]
    limiter.close()
    tenant.close()


async def test_more_bytes_than_the_bucket_holds_are_owed() -> None:
    limiter = Limiter(Limits(bytes_in=1000))
    asker = Asker(limiter)
    assert asker.ask(("bytes_in", 1300), tag="large") is None
    began = time.perf_counter()
    assert asker.ask(("bytes_in", 1), tag="small") is not None
    await eventually_async(lambda: len(asker.passed) == 2)
    assert time.perf_counter() - began > 0.29  # until the rest and this one have leaked out
    assert asker.ask(("bytes_in", 0)) is None


async def test_many_times_what_the_bucket_holds() -> None:
    limiter = Limiter(Limits(bytes_in=10000))
    asker = Asker(limiter)
    began = time.perf_counter()
    assert asker.ask(("bytes_in", 23000)) is None
    assert asker.ask(("bytes_in", 1)) is not None
    await eventually_async(lambda: len(asker.passed) == 2)
    assert time.perf_counter() - began > 1.29


async def test_nobody_overtakes_who_needs_more() -> None:
    limiter = Limiter(Limits(bytes_out=1000))
    asker = Asker(limiter)
    assert asker.ask(("bytes_out", 900), tag="first") is None
    assert asker.ask(("bytes_out", 500), tag="large") is not None
    assert asker.ask(("bytes_out", 5), tag="small") is not None  # although there is room for it
    await eventually_async(lambda: len(asker.passed) == 3)
    assert asker.passed == ["first", "large", "small"]


async def test_rates_below_one_a_second() -> None:
    limiter = Limiter(Limits(delete=0.01))
    asker = Asker(limiter)
    assert asker.ask(("delete", 1)) is None
    assert asker.ask(("delete", 1)) is not None
    limiter.update(Limits(delete=50))
    await eventually_async(lambda: len(asker.passed) == 2)


async def test_all_limits_up_the_chain_hold() -> None:
    tenant = Limiter(Limits(metadata=50, write=1000))
    token = Limiter(Limits(metadata=20), parent=tenant)
    one, other = (Asker(Limiter(Limits(), parent=token)) for _ in range(2))
    third = Asker(Limiter(Limits(write=5), parent=tenant))
    for asker in (one, other) * 10:
        assert asker.ask(("metadata", 1)) is None
    assert one.ask(("metadata", 1)) is not None  # over the token's
    passed = sum(third.ask(("metadata", 1)) is None for _ in range(40))
    assert 29 <= passed <= 35  # what the token's have left of the tenant's
    assert third.ask(("write", 1)) is None
    assert tenant.describe()["write"]["allowed"] == 1
    assert tenant.describe()["below"]["write"]["allowed"] == 1
    await eventually_async(lambda: len(one.passed) == 11)


async def test_sessions_take_turns_at_their_tenants_limit() -> None:
    tenant = Limiter(Limits(read=100))
    noisy, quiet = (Asker(Limiter(Limits(), parent=tenant)) for _ in range(2))
    while noisy.ask(("read", 1)) is None:
        pass
    before = len(noisy.passed)
    for _ in range(200):
        noisy.ask(("read", 1))
    quiet.ask(("read", 1))
    await eventually_async(lambda: bool(quiet.passed))
    assert len(noisy.passed) - before < 10
    noisy.limiter.forget(noisy)  # type: ignore[arg-type]
    noisy.limiter.close()


async def test_take_and_admit_go_on_from_each_other() -> None:
    tenant = Limiter(Limits(metadata=1))
    limiter = Limiter(Limits(metadata=100), parent=tenant)
    asker = Asker(limiter)
    assert limiter.take("metadata") == -1
    assert limiter.take("metadata") == 1  # past the session's
    before = limiter.describe()["metadata"]["allowed"]
    held = limiter.admit(
        asker,  # type: ignore[arg-type]
        [("metadata", 1)],
        lambda: asker.passed.append(1),
        asker.refused.append,
        passed=1,
    )
    assert held is not None
    await eventually_async(lambda: asker.passed == [1])
    assert limiter.describe()["metadata"]["allowed"] == before
    assert held.waited > 0


# --- who is refused


async def test_who_waited_for_long_enough_is_refused() -> None:
    limiter = Limiter(Limits(delete=0.5, max_wait=0.03))
    asker = Asker(limiter)
    assert asker.ask(("delete", 1)) is None
    assert asker.ask(("delete", 1)) is not None
    assert asker.ask(("delete", 1)) is not None
    await eventually_async(lambda: len(asker.refused) == 2)
    for error in asker.refused:
        assert error.errno == errno.EBUSY
        text, _, waited = str(error.strerror).rpartition(" waited ")
        assert text == "over the limit of 0.5 delete operations a second,"
        assert float(waited.removesuffix(" s")) >= 0.03
    assert shown(limiter, "delete") == (1, 0, 2)
    assert limiter.describe()["delete"]["waiting"] == 0


async def test_refused_at_once() -> None:
    limiter = Limiter(Limits(write=2, bytes_in=100, refuse=True))
    asker = Asker(limiter)
    assert asker.ask(("write", 1), ("bytes_in", 1000)) is None  # it could never be had at once
    assert asker.ask(("write", 1), ("bytes_in", 1)) is not None
    assert asker.refused == []  # whoever asked knows first that it is held
    await eventually_async(lambda: bool(asker.refused))
    assert asker.refused[0].strerror == "over the limit of 100 bytes written a second"
    assert asker.ask(("write", 1)) is not None
    await eventually_async(lambda: len(asker.refused) == 2)
    assert asker.refused[1].strerror == "over the limit of 2 write operations a second"


async def test_what_was_waited_before_counts() -> None:
    limiter = Limiter(Limits(bytes_out=1, max_wait=10))
    refused: list[OSError] = []
    limiter.take("bytes_out")
    held = limiter.admit(
        object(),  # type: ignore[arg-type]
        [("bytes_out", 5)],
        pytest.fail,
        refused.append,
        waited=11 * 10**9,
    )
    assert held is not None
    await eventually_async(lambda: bool(refused))
    assert str(refused[0].strerror).endswith("waited 11 s")


async def test_who_gives_up() -> None:
    limiter = Limiter(Limits(read=1, in_flight=1))
    asker = Asker(limiter)
    assert asker.ask(("in_flight", 1), ("read", 1)) is None
    waiting = asker.ask(("in_flight", 1))
    assert waiting is not None
    waiting.cancel()
    waiting.cancel()
    assert [error.errno for error in asker.refused] == [errno.EINTR]
    limiter.table["in_flight"][0].give(1)
    held = asker.ask(("in_flight", 1), ("read", 1))
    assert held is not None
    held.drop()
    assert limiter.describe()["in_flight"]["used"] == 0
    assert len(asker.refused) == 1


# --- requests at work


async def test_requests_at_a_time() -> None:
    tenant = Limiter(Limits(in_flight=3))
    one, other = (Asker(Limiter(Limits(in_flight=2), parent=tenant)) for _ in range(2))
    slots = one.limiter.table["in_flight"]
    assert [one.ask(("in_flight", 1), tag=n) is None for n in range(4)] == [True, True, False, False]
    assert [other.ask(("in_flight", 1), tag=n) is None for n in range(2)] == [True, False]
    assert tenant.describe()["in_flight"]["used"] == 3
    for slot in slots:
        slot.give(1)
    assert other.passed == [0, 1] or one.passed == [0, 1, 2]
    for slot in slots:
        slot.give(1)
    assert len(one.passed) + len(other.passed) == 5
    one.limiter.forget(one)  # type: ignore[arg-type]
    assert tenant.describe()["in_flight"]["waiting"] == 0
    tenant.update(Limits())
    other.limiter.update(Limits())
    assert other.ask(("in_flight", 1)) is None
    one.limiter.close()
    assert tenant.describe()["below"]["in_flight"]["allowed"] >= 5


async def test_limits_that_change_under_those_who_wait() -> None:
    limiter = Limiter(Limits(write=1))
    asker = Asker(limiter)
    for _ in range(20):
        asker.ask(("write", 1))
    assert len(asker.passed) <= 2
    limiter.update(Limits(write=100, read=5))
    await eventually_async(lambda: len(asker.passed) == 20)
    for _ in range(200):
        asker.ask(("write", 1))
    limiter.update(Limits(read=5))
    assert len(asker.passed) == 220
    assert set(limiter.table) == {"read"}
    child = Limiter(Limits(), parent=limiter)
    limiter.update(Limits(metadata=7, in_flight=2))
    assert set(child.table) == {"metadata", "in_flight"}


async def test_a_session_that_ends() -> None:
    tenant = Limiter(Limits(read=1))
    asker, other = (Asker(Limiter(Limits(), parent=tenant)) for _ in range(2))
    assert asker.ask(("read", 1)) is None
    for _ in range(5):
        asker.ask(("read", 1))
    await asyncio.sleep(0)  # the first of them is at the head now
    asker.limiter.forget(asker)  # type: ignore[arg-type]
    asker.limiter.close()
    assert tenant.describe()["read"]["waiting"] == 0
    other.ask(("read", 1))
    await eventually_async(lambda: len(other.passed) == 1)
    assert len(asker.passed) == 1
    assert asker.refused == []


async def test_one_that_cannot_go_on_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    limiter = Limiter(Limits(read=20))
    asker = Asker(limiter)
    while asker.ask(("read", 1)) is None:
        pass

    def fail() -> None:
        raise RuntimeError("no")

    limiter.admit(asker, [("read", 1)], fail, asker.refused.append)  # type: ignore[arg-type]
    count = len(asker.passed)
    asker.ask(("read", 1))
    await eventually_async(lambda: len(asker.passed) == count + 2)
    assert "could not go on" in caplog.text


# --- files and sessions


def test_open_files() -> None:
    tenant = Limiter(Limits(handles=3))
    one, other = Limiter(Limits(handles=2), parent=tenant), Limiter(Limits(), parent=tenant)
    one.open_handle()
    one.open_handle()
    with pytest.raises(OSError) as caught:
        one.open_handle()
    assert caught.value.errno == errno.EMFILE
    other.open_handle()
    with pytest.raises(OSError) as caught:
        other.open_handle()
    assert caught.value.errno == errno.ENFILE
    one.close_handle()
    other.open_handle()
    assert tenant.describe()["handles"] == {"limit": 3, "used": 3, "refused": 1}
    assert one.describe()["handles"] == {"limit": 2, "used": 1, "refused": 1}
    assert other.describe()["handles"] == {"limit": None, "used": 2, "refused": 0}


def test_sessions() -> None:
    limiter = Limiter(Limits(sessions=2))
    limiter.check_sessions(1)
    with pytest.raises(RefusedError) as caught:
        limiter.check_sessions(2)
    assert caught.value.code == "busy"
    assert limiter.describe()["sessions"] == {"limit": 2, "refused": 1}


def test_the_tighter_of_two() -> None:
    first = Limits(read=5, write=10, handles=7, max_wait=20)
    second = Limits(read=9, delete=1, handles=3, refuse=True)
    assert tightest(first, second) == Limits(read=5, write=10, delete=1, handles=3, max_wait=20, refuse=True)
    assert tightest(Limits(), Limits()) == Limits()


# --- a real engine


@pytest.fixture(autouse=True)
async def disconnected() -> AsyncIterator[None]:
    yield
    await disconnect_all()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """A function that starts an engine with these options for its tenant."""
    engines: list[EngineProcess] = []

    def start(**options: Any) -> EngineProcess:
        root = tmp_path / "root"
        root.mkdir()
        tenants = {"default": {"root": str(root), **options}}
        engines.append(EngineProcess(root, tmp_path / "state", tenants=tenants))
        return engines[-1]

    yield start
    for engine in engines:
        assert engine.stop() == 0
        assert "ERROR" not in engine.log


async def connect(engine: EngineProcess) -> RawClient:
    client = RawClient()
    await client.open(engine.url, engine.ticket())
    return client


async def refusal(client: RawClient, make: Any, *args: Any, **kw: Any) -> OSError:
    with pytest.raises(OSError) as caught:
        await client.call(make, *args, **kw)
    return caught.value


async def finished(client: RawClient, seqs: list[int]) -> list[float]:
    """When each of the requests was answered."""

    async def one(seq: int) -> float:
        await client.answer(seq)
        return time.perf_counter()

    return list(await asyncio.gather(*map(one, seqs)))


@pytest.mark.parametrize(
    ("limits", "rate"),
    [
        ({"metadata": 300}, 300),
        ({"write": 200}, 200),
        ({"bytes_in": 1 << 20}, 256),
        ({"bytes_out": 1 << 20}, 256),
    ],
)
async def test_the_rate_that_a_client_sees(
    serve: Callable[..., EngineProcess], limits: dict[str, float], rate: float
) -> None:
    """Requests, or pieces of 4 KiB, a second. Inline and in workers, replies and requests are held alike."""
    engine = serve(limits=limits)
    client = await connect(engine)
    handle = (await client.call(m.Create, m.Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    ask: Callable[[], int]
    if "metadata" in limits:
        ask = lambda: client.send(m.GetAttr, m.Ref(b""))  # noqa: E731
    elif "bytes_out" in limits:
        await client.call(m.Write, handle, 0, payload=bytes(4096))
        ask = lambda: client.send(m.Read, handle, 0, 4096)  # noqa: E731
    else:
        ask = lambda: client.send(m.Write, handle, 0, payload=bytes(4096))  # noqa: E731
    began = time.perf_counter()
    count = int(3.5 * rate)
    times = await finished(client, [ask() for _ in range(count)])
    # Of these, as many as go in one second have passed at once.
    assert abs((count - rate) / (max(times) - began) / rate - 1) < 0.05
    await client.close()


async def test_refusals_have_a_name_and_change_nothing(serve: Callable[..., EngineProcess]) -> None:
    engine = serve(limits={"delete": 0.5, "refuse": True}, session_limits={"handles": 3})
    (engine.root / "a").touch()
    (engine.root / "b").touch()
    client = await connect(engine)
    await client.call(m.Unlink, m.Ref(b""), b"a")
    error = await refusal(client, m.Unlink, m.Ref(b""), b"b")
    assert (error.errno, error.strerror) == (
        errno.EBUSY, "over the limit of 0.5 delete operations a second"
    )  # fmt: skip
    assert (engine.root / "b").exists()
    opened = [(await client.call(m.Open, m.Ref(b"b"), os.O_RDONLY)).handle for _ in range(3)]
    assert (await refusal(client, m.Open, m.Ref(b"b"), os.O_RDONLY)).errno == errno.EMFILE
    await client.call(m.Close, opened[0])
    await client.call(m.Open, m.Ref(b"b"), os.O_RDONLY)
    await client.close()


async def test_what_is_held_keeps_its_place_on_its_handle(serve: Callable[..., EngineProcess]) -> None:
    engine = serve(session_limits={"write": 10})
    client = await connect(engine)
    handle = (await client.call(m.Create, m.Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    writes = [client.send(m.Write, handle, n, payload=b"%x" % (n % 16)) for n in range(15)]
    look = client.send(m.GetAttr, m.Ref(b"", None, handle))
    free = client.send(m.GetAttr, m.Ref(b""))
    close = client.send(m.Close, handle)
    await client.answer(free)
    assert not client.answered(look)  # not limited itself, but behind the writes
    reply, _ = await client.answer(look)
    assert reply.attr.size == 15
    for seq in writes:
        assert client.answered(seq)
        await client.answer(seq)
    await client.answer(close)
    assert (engine.root / "f").read_bytes() == b"0123456789abcde"
    await client.close()


async def test_waiting_for_a_limit_is_interrupted_and_ends_with_the_session(
    serve: Callable[..., EngineProcess],
) -> None:
    engine = serve(limits={"write": 0.02})
    client, other = await connect(engine), await connect(engine)
    handle = (await client.call(m.Create, m.Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    await client.call(m.Write, handle, 0, payload=b"1")
    held = client.send(m.Write, handle, 0, payload=b"2")
    behind = client.send(m.GetAttr, m.Ref(b"", None, handle))
    client.session.cancel(held)
    client.flush()
    with pytest.raises(InterruptedError):
        await client.answer(held)
    await client.answer(behind)
    assert (engine.root / "f").read_bytes() == b"1"
    client.send(m.Write, handle, 0, payload=b"3")
    await client.close()
    await other.call(m.GetAttr, m.Ref(b""))
    assert (engine.root / "f").read_bytes() == b"1"
    await other.close()


async def test_what_releases_is_never_held(serve: Callable[..., EngineProcess]) -> None:
    engine = serve(limits={"metadata": 4, "in_flight": 1, "refuse": True})
    client = await connect(engine)
    handle = (await client.call(m.Create, m.Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    lock = m.Lock(1, 0, 2**63 - 1, "w", 42)
    await client.call(m.SetLock, handle, lock)
    errors: Counter[int] = Counter()
    while not errors[errno.EBUSY]:
        try:
            await client.call(m.GetAttr, m.Ref(b""))
        except OSError as error:
            errors[error.errno or 0] += 1
    assert (await refusal(client, m.GetLock, handle, lock)).errno == errno.EBUSY
    await client.call(m.SetLock, handle, m.Lock(1, 0, 2**63 - 1, "u", 42))
    await client.call(m.Close, handle)
    stats = await client.call(m.Stats)
    assert stats.operations["GetAttr"][1] == 1
    await client.close()


async def test_time_held_back_is_told_apart(serve: Callable[..., EngineProcess]) -> None:
    engine = serve(limits={"write": 20, "bytes_out": 1000})
    client = await connect(engine)
    handle = (await client.call(m.Create, m.Ref(b""), b"f", 0o600, os.O_RDWR)).handle
    await finished(client, [client.send(m.Write, handle, 0, payload=bytes(1100)) for _ in range(30)])
    await finished(client, [client.send(m.Read, handle, 0, 1100) for _ in range(2)])
    operations = (await client.call(m.Stats)).operations
    for name in ("Write", "Read"):
        _count, _errors, total, disk, limit, _bytes = operations[name]
        assert limit > 0.05e9
        assert total > limit + disk
    assert operations["Create"][4] == 0
    await client.close()

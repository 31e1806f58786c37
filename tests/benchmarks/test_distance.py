"""The relay that stands for distance."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from benchmarks import distance
from benchmarks.distance import CHUNK, Relay
from benchmarks.tickets import TicketRewriter

DELAY = 0.05


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, and ends when that ends."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


@contextlib.asynccontextmanager
async def distant(delay: float) -> AsyncIterator[int]:
    """The port of a relay before something that echoes."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay = Relay(server.sockets[0].getsockname()[1], delay)
    yield await relay.listen()
    await relay.close()
    server.close()
    await server.wait_closed()


async def exchange(port: int, data: bytes) -> tuple[bytes, float]:
    """What comes back of *data*, and seconds until the first of it does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun = time.monotonic()
    writer.write(data)
    writer.write_eof()
    first = await reader.readexactly(1)
    elapsed = time.monotonic() - begun
    rest = await reader.read()
    writer.close()
    await writer.wait_closed()
    return first + rest, elapsed


async def test_everything_arrives_in_order_and_later() -> None:
    data = bytes(range(256)) * (16 << 10)
    async with distant(DELAY) as far, distant(0.0) as near:
        found, elapsed = await exchange(far, data)
        found_near, elapsed_near = await exchange(near, data)
    assert found == found_near == data
    assert elapsed >= 2 * DELAY
    assert elapsed > elapsed_near


async def test_many_at_once_wait_together() -> None:
    pieces = [bytes([number]) * 1000 for number in range(20)]
    async with distant(DELAY) as port:
        begun = time.monotonic()
        found = await asyncio.gather(*(exchange(port, piece) for piece in pieces))
        elapsed = time.monotonic() - begun
    assert [data for data, _ in found] == pieces
    assert elapsed < len(pieces) * 2 * DELAY


async def test_an_end_of_one_direction_leaves_the_other_open() -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))  # which needs the end of what comes
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    relay = Relay(server.sockets[0].getsockname()[1], DELAY)
    found, _ = await exchange(await relay.listen(), bytes(12345))
    assert found == b"12345"
    await relay.close()
    server.close()
    await server.wait_closed()


async def test_who_does_not_read_stops_who_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the way is bounded, and all of it arrives when it is asked for again."""
    monkeypatch.setattr(distance, "ON_THE_WAY", CHUNK)
    much = 128 << 20  # more than the buffers of four sockets, and of the echo
    async with distant(0.0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.set_write_buffer_limits(high=0)
        sent, piece = 0, bytes(CHUNK)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while sent < much:
                    writer.write(piece)
                    sent += len(piece)
                    async with asyncio.timeout(0.5):
                        await writer.drain()
        assert sent < much
        writer.write_eof()
        arrived = 0
        while data := await reader.read(CHUNK):
            arrived += len(data)
        assert arrived == sent
        writer.close()
        await writer.wait_closed()


async def test_distance_is_not_bandwidth() -> None:
    """Many megabytes are on their way at once."""
    data = bytes(32 << 20)
    async with distant(DELAY) as port:
        begun = time.monotonic()
        found, _ = await exchange(port, data)
        elapsed = time.monotonic() - begun
    assert len(found) == len(data)
    assert elapsed < 2 * DELAY * len(data) / CHUNK  # which it would be, one chunk after the other


async def test_nobody_on_the_other_side() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        relay = Relay(taken.getsockname()[1], 0.0)
        reader, writer = await asyncio.open_connection("127.0.0.1", await relay.listen())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await relay.close()


async def test_a_ticket_leads_through_the_relay() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"ticket": "abc", "engine": {"host": "127.0.0.1", "port": 40123}}'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        for piece in (head[:30], head[30:] + body[:20], body[20:]):
            writer.write(piece)
            await writer.drain()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    found: list[int] = []
    port = server.sockets[0].getsockname()[1]
    relay = Relay(port, 0.0, lambda: TicketRewriter(4711, found.append))
    received, _ = await exchange(await relay.listen(), b"GET / HTTP/1.1\r\n\r\n")
    assert b'"port": 4711' in received
    assert found == [40123]
    await relay.close()
    server.close()
    await server.wait_closed()

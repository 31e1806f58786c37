"""The relay that stands for distance."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

from benchmarks.distance import CHUNK, Relay, ticket_rewriter

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
    async with distant(DELAY) as port:
        found, elapsed = await exchange(port, data)
    assert found == data
    assert elapsed >= 2 * DELAY


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


def test_a_ticket_leads_to_another_port() -> None:
    found: list[int] = []
    rewrite = ticket_rewriter(4711, found.append)
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{"ticket": "abc", "port": 40123, "x": 1}'
    changed = rewrite(answer)
    assert changed == answer.replace(b"40123", b" 4711")
    assert len(changed) == len(answer)
    assert found == [40123]
    for other in (b"HTTP/1.1 200 OK\r\n\r\n{}", b'{"ticket": "abc", "port": 40123}', b"\x82\x7e\x00"):
        assert rewrite(other) == other

"""A link of any length on one machine: a TCP relay that delays each direction by half a round trip.

``python -m benchmarks.distance LISTEN_PORT TARGET_PORT SECONDS [ENGINE_LISTEN_PORT]``. Order and throughput stay as
they are: it is a link that is long, not one that is narrow. With the last argument the relay stands before a Jupyter
server and changes the port in the tickets that pass (:mod:`.tickets`): whoever connects directly to the file engine by
such a ticket reaches that port, behind which this relay passes on to the engine, with the same delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable

import uvloop

from .alarm import Alarm
from .tickets import TicketRewriter

#: Bytes that are read at a time, and that may be on their way in one direction: more than bandwidth times delay.
CHUNK = 1 << 20
ON_THE_WAY = 128 << 20


class Direction:
    """What goes from one end of a connection to the other, *delay* seconds later."""

    def __init__(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        delay: float,
        tickets: TicketRewriter | None = None,
    ) -> None:
        self._source = source
        self._target = target
        self._delay = delay
        self._tickets = tickets
        self._queue: deque[tuple[float, bytes]] = deque()  # when it arrives, what; b"" is the end
        self._bytes = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()

    async def run(self) -> None:
        """Until the source ends, and everything has arrived."""
        taking = asyncio.create_task(self._take())
        try:
            await self._give()
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _take(self) -> None:
        while True:
            try:
                data = await self._source.read(CHUNK)
            except OSError:
                data = b""
            ended = not data
            if self._tickets is not None:
                data = self._tickets.rest() if ended else self._tickets.feed(data)
            if data:
                self._put(data)
            if ended:
                self._put(b"")
                return
            while self._bytes > ON_THE_WAY:
                self._drained.clear()
                await self._drained.wait()

    def _put(self, data: bytes) -> None:
        self._queue.append((time.monotonic() + self._delay, data))
        self._bytes += len(data)
        self._filled.set()

    async def _give(self) -> None:
        alarm = Alarm()
        try:
            while True:
                while not self._queue:
                    self._filled.clear()
                    await self._filled.wait()
                due, data = self._queue.popleft()
                await alarm.until(due)
                if not data:
                    with contextlib.suppress(OSError, RuntimeError):  # the latter: it is closed already
                        self._target.write_eof()
                    return
                try:
                    self._target.write(data)
                    await self._target.drain()
                except OSError:
                    return
                self._bytes -= len(data)
                self._drained.set()
        finally:
            alarm.close()


class Relay:
    """Listens on a port of this machine and passes on to another. Both ends' sockets have TCP_NODELAY: asyncio sets
    it. *tickets* makes what looks at the responses of one connection."""

    def __init__(
        self, target: int, delay: float, tickets: Callable[[], TicketRewriter] | None = None
    ) -> None:
        self.target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._delay = delay
        self._tickets = tickets

    async def listen(self, port: int = 0) -> int:
        """Start; returns the port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=8 * CHUNK)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Listen no more, and return when all connections have ended."""
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=8 * CHUNK)
        except OSError:
            writer.close()
            return
        tickets = self._tickets() if self._tickets else None
        try:
            await asyncio.gather(
                Direction(reader, far_writer, self._delay).run(),
                Direction(far_reader, writer, self._delay, tickets).run(),
            )
        finally:
            for end in (writer, far_writer):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()


async def serve(listen: int, target: int, round_trip: float, engine: int = 0) -> None:
    """Relay for ever; says ``ready`` on standard output when it can."""
    direct = Relay(0, round_trip / 2)

    def found(port: int) -> None:
        direct.target = port

    if engine:
        await direct.listen(engine)
    relay = Relay(target, round_trip / 2, (lambda: TicketRewriter(engine, found)) if engine else None)
    await relay.listen(listen)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    uvloop.run(serve(int(arguments[0]), int(arguments[1]), float(arguments[2]), *map(int, arguments[3:])))

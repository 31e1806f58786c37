"""A TCP proxy that can be cut, stalled and slowed down, for each direction on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self


class Direction:
    """One way through the proxy. ``up``: from the client to the server; ``down``: back.

    ``delay`` is the one-way latency in seconds (bandwidth is not limited by it: data in flight overlaps).
    """

    def __init__(self) -> None:
        self.delay = 0.0
        self.passed = 0  #: bytes forwarded so far, over all connections
        self.limit: int | None = None  #: cut every connection once ``passed`` would go over this
        self._open = asyncio.Event()
        self._open.set()

    def stall(self) -> None:
        """Forward nothing any more; connections stay up."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    async def ready(self) -> None:
        await self._open.wait()


class TcpProxy:
    """Listens on ``127.0.0.1:port`` and forwards to ``host:target``; an async context manager.

    ``target`` may be changed: later connections go there.
    """

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self.host, self.target = host, target
        self.port = 0
        self.up, self.down = Direction(), Direction()
        self.connections = 0  #: accepted so far
        self.refusing = False  #: accept and close at once
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self.refuse()
        for way in (self.up, self.down):
            way.resume()
        # Not cancelled: asyncio's streams complain about that. Without its sockets every task ends by itself.
        await asyncio.gather(*self._tasks)

    def cut(self) -> None:
        """Reset every connection now. What was on its way is lost."""
        for writer in list(self._writers):
            writer.transport.abort()

    def refuse(self, refusing: bool = True) -> None:
        """Turn new connections away (a server that is down) and cut those there are."""
        self.refusing = refusing
        if refusing:
            self.cut()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until *predicate*, looked at whenever bytes pass or a connection comes or goes."""
        async with self._changed:
            await self._changed.wait_for(predicate)

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            await self._note()
            if self.refusing:
                return
            try:
                far_reader, far_writer = await asyncio.open_connection(self.host, self.target)
            except OSError:
                return
            self._writers.add(far_writer)
            ways = [
                asyncio.create_task(self._forward(self.up, reader, far_writer)),
                asyncio.create_task(self._forward(self.down, far_reader, writer)),
            ]
            try:
                # Either way's end is both ways' end: a half-closed connection is of no use to a WebSocket.
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                far_writer.transport.abort()
                self._writers.discard(far_writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)
            await self._note()

    async def _forward(
        self, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

        async def read() -> None:
            while True:
                try:
                    data = await reader.read(1 << 16)
                except OSError:
                    data = b""
                await queue.put((loop.time() + way.delay, data))
                if not data:
                    return

        feeder = asyncio.create_task(read())
        try:
            while True:
                due, data = await queue.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                await way.ready()
                if not data:
                    return
                if way.limit is not None and way.passed + len(data) > way.limit:
                    writer.write(data[: max(0, way.limit - way.passed)])
                    way.passed, way.limit = way.limit, None
                    return
                way.passed += len(data)
                writer.write(data)
                await self._note()
                try:
                    await writer.drain()
                except OSError:
                    return
        finally:
            feeder.cancel()

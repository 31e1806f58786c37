"""Opaque messages between a mount's WebSocket and the engine's, with bounded buffers.

Towards the engine, messages are queued up to ``relay_buffer`` bytes; then the mount's socket is read no
further until half of that has left. Towards the mount, the engine's socket is read no further while what
was written last has not left. Either way a full buffer that does not move for ``relay_stall_timeout``
seconds closes the connection with 1013 ("try again later"): the mount reconnects and goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from jupyter_wsfuse.extension.settings import Settings
from jupyter_wsfuse.extension.supervisor import Endpoint
from jupyter_wsfuse.protocol.codec import MAX_MESSAGE

if TYPE_CHECKING:
    from tornado.websocket import WebSocketHandler

SUBPROTOCOL: Final = "wsfuse.v1"
_CONNECT_TIMEOUT: Final = 10.0

# Close codes of RFC 6455, section 7.4.1.
GOING_AWAY: Final = 1001
UNSUPPORTED_DATA: Final = 1003
SERVICE_RESTART: Final = 1012
TRY_AGAIN_LATER: Final = 1013


def sendable(code: int | None, default: int) -> int:
    """*code* if an endpoint may send it in a close frame, otherwise *default*."""
    if code is not None and (
        code in range(1000, 1004) or code in range(1007, 1015) or code in range(3000, 5000)
    ):
        return code
    return default


class Relay:
    """One mount's way to the engine. Used by one :class:`WebSocketHandler`, from its event loop."""

    def __init__(self, mount: WebSocketHandler, endpoint: Endpoint, settings: Settings) -> None:
        self._mount = mount
        self._endpoint = endpoint
        self._bound = settings.relay_buffer
        self._stall_timeout = settings.relay_stall_timeout
        self._queue: deque[bytes] = deque()
        self._queued = 0  # bytes: of the queue, and of the message that is being written
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._gave_up = False
        self._goodbye: tuple[int, str] | None = (
            None  # what the engine is told once the mount's side has ended
        )

    def start(self) -> None:
        """Connect to the engine and carry messages until either side closes."""
        # Tornado leaves Nagle's algorithm on: a small message behind another would wait until the other side has
        # acknowledged that one, which it puts off for 40 ms.
        self._mount.set_nodelay(True)
        self._task = asyncio.create_task(self._run(), name="wsfuse-relay")

    def from_mount(self, message: str | bytes) -> asyncio.Future[bool] | None:
        """A message of the mount. What is returned, if anything, is to be awaited before the next is read."""
        if isinstance(message, str):
            self._mount.close(UNSUPPORTED_DATA, "binary messages only")
            return None
        self._queue.append(message)
        self._queued += len(message)
        self._arrived.set()
        if self._queued <= self._bound:
            return None
        self._room.clear()
        return asyncio.ensure_future(self._room.wait())

    def mount_closed(self, code: int | None, reason: str | None) -> None:
        """The mount's side has ended. What it sent before still goes to the engine, its goodbye above all."""
        self._goodbye = (sendable(code, GOING_AWAY), reason or "")
        self._arrived.set()

    async def _run(self) -> None:
        try:
            engine = await self._connect()
        except Exception as exc:
            self._mount.close(TRY_AGAIN_LATER, f"the file engine cannot be reached: {exc}"[:120])
            return
        finally:
            self._room.set()
        up = asyncio.create_task(self._to_engine(engine))
        down = asyncio.create_task(self._to_mount(engine))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if down.done() and not down.result():
                # The mount does not listen any more; what it has said still goes.
                self._goodbye = self._goodbye or (GOING_AWAY, "")
                self._arrived.set()
                await up
            elif self._goodbye is None:
                # The engine's end: its close code follows if a write noticed first. No code: it died.
                await asyncio.wait((down,), timeout=1.0)
                reason = engine.close_reason or ("" if engine.close_code else "the file engine has ended")
                self._mount.close(sendable(engine.close_code, SERVICE_RESTART), reason)
        finally:
            for way in (up, down):
                way.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            self._room.set()  # nobody is left who would
            stream = None if engine.protocol is None else engine.protocol.stream
            engine.close(*(self._goodbye or (GOING_AWAY, "")))
            if self._gave_up and stream is not None:
                stream.close()  # nobody reads what it has sent, and its own goodbye comes behind that

    async def _connect(self) -> WebSocketClientConnection:
        request = HTTPRequest(
            f"ws://{self._endpoint.host}:{self._endpoint.port}/",
            connect_timeout=_CONNECT_TIMEOUT,
            request_timeout=_CONNECT_TIMEOUT,
        )
        # Without a callback, messages wait in a queue of one: that is what holds the engine's socket back.
        engine = await websocket_connect(request, subprotocols=[SUBPROTOCOL], max_message_size=MAX_MESSAGE)
        if engine.protocol is not None:
            engine.protocol.set_nodelay(True)
        return engine

    async def _to_engine(self, engine: WebSocketClientConnection) -> None:
        while True:
            if not self._queue:
                if self._goodbye is not None:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            message = self._queue.popleft()
            try:
                async with asyncio.timeout(self._stall_timeout):
                    await engine.write_message(message, binary=True)
            except WebSocketClosedError:
                return
            except TimeoutError:
                self._give_up("the file engine takes no more data")
                return
            self._queued -= len(message)
            if self._queued <= self._bound // 2:
                self._room.set()

    async def _to_mount(self, engine: WebSocketClientConnection) -> bool:
        """True: the engine has ended. False: the mount does not take what it says."""
        while True:
            message = await engine.read_message()
            if message is None:
                return True
            try:
                async with asyncio.timeout(self._stall_timeout):
                    await self._mount.write_message(message, binary=True)
            except WebSocketClosedError:
                return False
            except TimeoutError:
                self._give_up("the mount takes no more data")
                return False

    def _give_up(self, why: str) -> None:
        self._gave_up = True
        self._goodbye = (TRY_AGAIN_LATER, why)
        self._mount.close(*self._goodbye)

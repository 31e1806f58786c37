"""A client of an engine that is nothing but :class:`ClientSession` on a picows connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from jupyter_wsfuse.errors import errno_number, os_error
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.events import Notified, PeerClosed, RefusedEvent, Replied, Welcomed
from jupyter_wsfuse.protocol.session import ClientSession


class Listener(WSListener):
    """Collects messages; :attr:`gone` is set when the connection is."""

    def __init__(self, on_message: Callable[[bytes], None] | None = None) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.close_code: int | None = None
        self.close_reason = ""
        self.on_message = on_message or self.messages.put_nowait
        self.on_gone: Callable[[], None] = lambda: None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            self.on_message(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            self.close_code = int(frame.get_close_code())
            self.close_reason = frame.get_close_reason() or ""
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.gone.set()
        self.on_gone()

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


_open: list[tuple[WSTransport, Listener]] = []


async def disconnect_all() -> None:
    """Cut every connection that a test has left open, and wait until they are gone."""
    while _open:
        transport, listener = _open.pop()
        transport.underlying_transport.abort()
        await asyncio.wait_for(listener.gone.wait(), 20)


async def connect(url: str, listener: Listener, **options: Any) -> WSTransport:
    """A WebSocket connection with our subprotocol."""
    headers = options.pop("extra_headers", {"Sec-WebSocket-Protocol": m.SUBPROTOCOL})
    transport, _ = await ws_connect(
        lambda: listener,
        url,
        extra_headers=headers,
        max_frame_size=8 << 20,
        read_buffer_init_size=1 << 18,
        **options,
    )
    _open.append((transport, listener))
    return transport


class Refused(Exception):
    """The engine did not admit us; ``args[0]`` is the code."""


class RawClient:
    """One session. Every request is sent at once and answered by its own future."""

    def __init__(
        self, *, client: str = "raw", session: str = "", epoch: int = 0, incarnation: int = 1
    ) -> None:
        self.session = ClientSession(client=client, incarnation=incarnation, session=session, epoch=epoch)
        self.notified: list[Any] = []
        self.told = asyncio.Event()
        self.listener: Listener
        self.transport: WSTransport
        self.kind = ""
        self.welcome: m.Welcome
        self._answers: dict[int, asyncio.Future[tuple[m.Reply, bytes]]] = {}
        self._welcomed: asyncio.Future[Welcomed]

    async def open(self, url: str, ticket: str, *, recover: bool = True, **hello: Any) -> m.Welcome:
        """Connect and greet. With *recover* ordinary requests go on at once."""
        self._welcomed = asyncio.get_running_loop().create_future()
        self.listener = Listener(self._received)
        self.listener.on_gone = self._gone
        self.transport = await connect(url, self.listener)
        self.session.connected(ticket, **hello)
        self.flush()
        event = await asyncio.wait_for(self._welcomed, 20)
        self.kind, self.welcome = event.kind, event.welcome
        if recover:
            self.recovered()
        return self.welcome

    def recovered(self) -> None:
        self.session.recovered()
        self.flush()

    def flush(self) -> None:
        for message in self.session.outgoing():
            self.transport.send(WSMsgType.BINARY, message)

    def _received(self, data: bytes) -> None:
        for event in self.session.receive(data):
            if isinstance(event, Replied):
                future = self._answers.get(event.seq)
                if future is not None and not future.done():
                    future.set_result((event.reply, event.payload))
            elif isinstance(event, Notified):
                self.notified.append(event.message)
                self.told.set()
            elif isinstance(event, Welcomed):
                self._welcomed.set_result(event)
            elif isinstance(event, RefusedEvent):
                self._welcomed.set_exception(Refused(event.code))
            else:
                assert isinstance(event, PeerClosed)
        self.flush()

    def _gone(self) -> None:
        self.session.disconnected()
        if not self._welcomed.done():
            self._welcomed.set_exception(ConnectionError("closed before Welcome"))

    def send(
        self, make: Callable[..., m.Request], *args: Any, payload: bytes = b"", seq: int = 0, **kw: Any
    ) -> int:
        """Submit ``make(seq, ...)`` and return its number."""
        seq = seq or self.session.next_seq()
        recovery = kw.pop("recovery", False)
        self.submit(make(seq, *args, **kw), payload, recovery=recovery)
        self.flush()
        return seq

    def submit(self, request: m.Request, payload: bytes = b"", *, recovery: bool = False) -> int:
        """As :meth:`send`, to go out with the next :meth:`flush`."""
        self._answers[request.seq] = asyncio.get_running_loop().create_future()
        self.session.submit(request, payload, recovery=recovery)
        return request.seq

    async def answer(self, seq: int, *, done: bool = True) -> tuple[Any, bytes]:
        """The reply to *seq*, its errors raised as OSError. With *done* the engine may forget it."""
        reply, payload = await asyncio.wait_for(self._answers[seq], 20)
        del self._answers[seq]
        if done:
            self.session.done(seq)
            self.flush()
        if isinstance(reply, m.Error):
            raise os_error(errno_number(reply.errno), reply.message)
        return reply, payload

    async def call(self, make: Callable[..., m.Request], *args: Any, **kw: Any) -> Any:
        """Submit and wait; the reply."""
        return (await self.answer(self.send(make, *args, **kw)))[0]

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return (await self.answer(self.send(m.Read, handle, offset, size)))[1]

    def on_answer(self, seq: int, then: Callable[[int], None]) -> None:
        """Have *then* called with *seq* when it is answered."""
        self._answers[seq].add_done_callback(lambda _: then(seq))

    def answered(self, seq: int) -> bool:
        return self._answers[seq].done()

    async def cut(self) -> None:
        """Lose the connection without a word."""
        self.transport.underlying_transport.abort()
        await asyncio.wait_for(self.listener.gone.wait(), 20)

    async def close(self) -> None:
        """Say goodbye, and wait until the connection is closed."""
        self.session.close("done")
        self.flush()
        await asyncio.wait_for(self.listener.gone.wait(), 20)

"""One WebSocket to the engine, by picows: whole binary messages in and out.

Direct: ``ws://127.0.0.1:port/`` of the engine. Relay: ``wsfuse/channel`` of the Jupyter server, with the
token in a header. Both carry the same messages.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sys
import termios
from collections.abc import Callable
from typing import Final
from urllib.parse import urljoin

import picows
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.client.tickets_http import (
    CONNECT_TIMEOUT,
    Ticket,
    authorization,
    describe,
    refusal,
    tls_context,
)
from jupyter_wsfuse.errors import TransportError
from jupyter_wsfuse.protocol.codec import HEADROOM, MAX_MESSAGE
from jupyter_wsfuse.protocol.messages import SUBPROTOCOL

# Bytes in the socket's own queue over which nothing more is given to it, and under which it goes on. Requests
# that wait on our side of it can still be taken back.
_HIGH_WATER: Final = 4 << 20
_LOW_WATER: Final = 1 << 20
# Bytes: a reply to the largest read, so that such a message arrives in few pieces.
_READ_BUFFER: Final = 1 << 20

_log = logging.getLogger(__name__)
# picows announces every connection; we do that ourselves, with what matters.
logging.getLogger("picows").setLevel(logging.ERROR)


class WebSocket(WSListener):
    """An open connection. ``writable`` is False while the socket's queue is above its high-water mark.

    ``on_message`` gets a view of each binary message, valid only during the call. ``on_lost`` is called
    exactly once, when the connection has ended for whatever reason, with that reason for people; not after
    :meth:`drop`. ``on_drained`` is called when ``writable`` becomes True again.
    """

    def __init__(
        self,
        on_message: Callable[[memoryview | bytes], None],
        on_lost: Callable[[str], None],
        on_drained: Callable[[], None],
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_drained = on_drained
        self._parts: list[bytes] = []
        self._size = 0
        self._dropped = False
        self._ws: WSTransport | None = None
        self._why = ""
        self.writable = True
        self.arrivals = 0  #: frames so far: a counter is cheaper than a time, and shows life as well

    def check(self) -> None:
        """Raise :class:`TransportError` if the connection has ended already.

        picows takes a socket that is closed during the handshake for a success.
        """
        if self._ws is None:
            raise TransportError(self._why or "the connection was closed during the handshake")

    def send(self, message: bytearray) -> None:
        """Hand one message, with :data:`HEADROOM` bytes free in front, to the socket, which takes it over.

        Never blocks; nothing happens on a connection that has ended.
        """
        if self._ws is not None:
            self._ws.send_reuse_external_bytearray(WSMsgType.BINARY, message, HEADROOM)

    def unsent(self) -> int:
        """Bytes that we or the operating system hold, not acknowledged by the next hop."""
        if self._ws is None:
            return 0
        transport = self._ws.underlying_transport
        size = transport.get_write_buffer_size()
        try:
            waiting = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        except OSError:
            return size
        return size + int.from_bytes(waiting, sys.byteorder)

    def close(self) -> None:
        """Say goodbye (1000); ``on_lost`` is called when the peer has closed, too."""
        if self._ws is not None:
            self._ws.send_close(WSCloseCode.OK)

    def drop(self) -> None:
        """End it now. ``on_lost`` is not called any more."""
        self._dropped = True
        if self._ws is not None:
            self._ws.disconnect(graceful=False)

    # --- picows calls these -----------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._ws = transport
        transport.underlying_transport.set_write_buffer_limits(high=_HIGH_WATER, low=_LOW_WATER)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self._dropped:
            return
        self.arrivals += 1
        kind = frame.msg_type
        if kind is WSMsgType.BINARY and frame.fin:
            self._on_message(frame.get_payload_as_memoryview())
        elif kind is WSMsgType.BINARY or kind is WSMsgType.CONTINUATION:
            self._fragment(transport, frame)
        elif kind is WSMsgType.CLOSE:
            code = frame.get_close_code()
            reason = frame.get_close_reason()
            number = code.value if isinstance(code, WSCloseCode) else int(code)
            self._why = self._why or f"closed by the peer: {reason or 'no reason given'} ({number})"
            if not transport.is_close_frame_sent:
                transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif kind is WSMsgType.TEXT:
            self.fail(WSCloseCode.UNSUPPORTED_DATA, "the peer sent text")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._ws = None
        self._parts.clear()
        if not self._dropped:
            self._dropped = True
            self._on_lost(self._why or "connection lost")

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if not self._dropped:
            self._on_drained()

    def fail(self, code: WSCloseCode, why: str) -> None:
        """End the connection because of what the peer did; ``on_lost`` follows."""
        self._why = self._why or why
        if self._ws is not None:
            self._ws.send_close(code, why[:100])
            self._ws.disconnect()

    def _fragment(self, transport: WSTransport, frame: WSFrame) -> None:
        """Part of a message, which a proxy may have cut up."""
        self._size += frame.payload_size
        if self._size > MAX_MESSAGE:
            self.fail(WSCloseCode.MESSAGE_TOO_BIG, "the peer sent a message above the limit")
            return
        self._parts.append(frame.get_payload_as_bytes())
        if frame.fin:
            message = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            self._on_message(message)


async def connect_direct(ticket: Ticket, listener: WebSocket) -> None:
    """To the engine on this host. Raises :class:`TransportError`."""
    url = f"ws://{ticket.host}:{ticket.port}/"
    try:
        await picows.ws_connect(
            lambda: listener,
            url,
            websocket_handshake_timeout=CONNECT_TIMEOUT,
            max_frame_size=MAX_MESSAGE,
            max_redirects=0,
            extra_headers={"Sec-WebSocket-Protocol": SUBPROTOCOL},
            read_buffer_init_size=_READ_BUFFER,
        )
        listener.check()
    except (OSError, picows.WSError, TransportError) as exc:
        raise TransportError(
            f"the file engine at {ticket.host}:{ticket.port} cannot be reached: {exc}"
        ) from None


async def connect_relay(server: Server, listener: WebSocket) -> None:
    """Through the Jupyter server. Raises :class:`TransportError` or :class:`RefusedError`."""
    url = "ws" + urljoin(server.url, "wsfuse/channel").removeprefix("http")
    secure = url.startswith("wss:")
    try:
        async with asyncio.timeout(2 * CONNECT_TIMEOUT):
            await picows.ws_connect(
                lambda: listener,
                url,
                ssl_context=tls_context(server.ca_file or "") if secure else None,
                websocket_handshake_timeout=CONNECT_TIMEOUT,
                max_frame_size=MAX_MESSAGE,
                max_redirects=0,
                extra_headers={"Sec-WebSocket-Protocol": SUBPROTOCOL, **authorization(server)},
                proxy=server.proxy or None,
                read_buffer_init_size=_READ_BUFFER,
            )
        listener.check()
    except picows.WSHandshakeError as exc:
        response = exc.response
        if response is None:
            raise TransportError(f"{server.url}: the WebSocket could not be opened: {exc}") from None
        status = int(response.status)
        if status == 101 or status == 200:
            raise TransportError(
                f"{server.url}: something in between does not pass WebSockets on: {exc}"
            ) from None
        raise refusal(
            server,
            status,
            location=response.headers.get("Location", ""),
            retry_after=response.headers.get("Retry-After", ""),
        ) from None
    except (OSError, picows.WSError) as exc:
        raise TransportError(describe(server, exc)) from None
    except Exception as exc:  # a proxy's own errors have no common base
        raise TransportError(f"{server.url}: {exc}") from None

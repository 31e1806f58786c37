"""The listening side: WebSocket connections and the status page, on a loopback port.

What may be wrong with a connection ends here, with its close code and one line in the log: a browser (they
say where a page came from; we are none of their business), no or a late Hello, text, too much in a message,
and whatever the protocol finds. Tickets and session ids are never logged.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)  # fmt: skip

from ..errors import LimitExceededError, RemoteProtocolError
from ..protocol import codec
from ..protocol.messages import SUBPROTOCOL
from ..protocol.tickets import bearer
from .hardening import Confinement, in_force
from .session import Session
from .sessions import Sessions
from .tenantsfile import TenantsFile

_LOG = logging.getLogger(__name__)

#: Bytes in a connection's write buffer from which on nothing is read or executed for it, and until which.
HIGH_WATER: Final = 2 << 20
LOW_WATER: Final = 512 << 10
#: Seconds that a closed connection may take to send what is left.
LINGER: Final = 3.0


class ClientConnection(WSListener):
    """One WebSocket connection."""

    def __init__(self, sessions: Sessions, there: Callable[[ClientConnection, bool], None]) -> None:
        self.paused = False
        self.closed = False
        self._sessions = sessions
        self._there = there
        self._session: Session | None = None
        self._transport: WSTransport
        self._greeted = False
        self._parts: list[bytes] | None = None  # of a message in several frames
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    # what picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._there(self, True)
        transport.underlying_transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._sessions.config.hello_timeout, self._silent)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self.closed:
            return
        sessions = self._sessions
        sessions.poll.happened()
        try:
            kind = frame.msg_type
            if kind == WSMsgType.CLOSE:
                self.close(1000, "")
            elif frame.rsv1 or frame.rsv2 or frame.rsv3:
                raise RemoteProtocolError("an extension that was not agreed")
            elif kind == WSMsgType.BINARY and frame.fin and self._parts is None:
                self._message(frame.get_payload_as_memoryview())
            elif kind == WSMsgType.BINARY or kind == WSMsgType.CONTINUATION:
                self._fragment(frame)
            elif kind == WSMsgType.TEXT:
                self._fail(1003, "a text message")
            if frame.last_in_buffer:
                sessions.flush()
                if not sessions.pool.busy:  # a worker has better use for the interpreter
                    sessions.poll.expect()
        except RemoteProtocolError as exc:
            self._fail(exc.close_code, str(exc))
        except Exception:
            _LOG.exception("a message could not be dealt with")
            self._fail(1011, "an error of the engine")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        handshake = transport.close_handshake
        if not self.closed and handshake is not None and handshake.sent is not None:
            self._log(handshake.sent.reason)  # picows has closed it, for a malformed frame
        self.closed = True
        self._stop_timer()
        if self._session is not None:
            self._sessions.disconnected(self._session, self)
            self._session = None
        self._there(self, False)

    def pause_writing(self) -> None:
        self.paused = True
        self._transport.underlying_transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        if not self.closed:
            self._transport.underlying_transport.resume_reading()
            if self._session is not None:
                self._sessions.resumed_reading(self._session)

    # what sessions call

    def admitted(self, session: Session) -> None:
        self._session = session

    def send(self, messages: list[bytearray]) -> None:
        for message in messages:
            self._transport.send_reuse_external_bytearray(WSMsgType.BINARY, message, codec.HEADROOM)

    def close(self, code: int, reason: str) -> None:
        """Send what is left, say why, and disconnect."""
        if self.closed:
            return
        self.closed = True
        self._stop_timer()
        transport = self._transport
        transport.send_close(WSCloseCode(code), reason[:100].encode())
        transport.disconnect()
        asyncio.get_running_loop().call_later(LINGER, self._abort)

    def stop_reading(self) -> None:
        if not self.closed and not self.paused:
            self._transport.underlying_transport.pause_reading()

    # the rest

    def _fragment(self, frame: WSFrame) -> None:
        first = frame.msg_type == WSMsgType.BINARY
        if first == (self._parts is not None):
            raise RemoteProtocolError("fragments in the wrong order")
        if self._parts is None:
            self._parts = []
            self._size = 0
        self._size += frame.payload_size + 1  # a message of empty fragments costs memory as well
        if self._size > codec.MAX_MESSAGE:
            raise LimitExceededError(f"message in fragments of more than {codec.MAX_MESSAGE} bytes")
        self._parts.append(frame.get_payload_as_bytes())
        if frame.fin:
            parts, self._parts = self._parts, None
            self._message(b"".join(parts))

    def _message(self, data: codec.Buffer) -> None:
        if self._session is not None:
            self._sessions.received(self._session, data)
        elif self._greeted:
            raise RemoteProtocolError("a message between Hello and Welcome")
        else:
            self._greeted = True
            self._stop_timer()
            self._sessions.greet(self, data)

    def _silent(self) -> None:
        self._fail(1008, "no Hello in time")

    def _fail(self, code: int, why: str) -> None:
        self._log(why)
        session, self._session = self._session, None
        if session is not None:
            self._sessions.disconnected(session, self)
        self.close(code, why.encode("ascii", "replace").decode())

    def _log(self, why: str) -> None:
        session = self._session
        who = "a stranger" if session is None else f"session {session.id[:8]} of {session.client!r}"
        _LOG.warning("closed %s: %r", who, why)

    def _abort(self) -> None:
        """Who does not read would keep what is left for him, and the connection, for ever."""
        if not self._transport.is_disconnected:
            _LOG.warning("a client did not take its last replies")
            self._transport.underlying_transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class EngineServer:
    """Listens on 127.0.0.1 and hands connections to *sessions*."""

    def __init__(
        self,
        sessions: Sessions,
        *,
        confinement: Confinement | None = None,
        tenants_file: TenantsFile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sessions = sessions
        self._confinement = confinement
        self._tenants_file = tenants_file
        self._clock = clock
        self._started = clock()
        self._authorization = f"Bearer {bearer(sessions.config.key, 'status')}".encode()
        self._server: asyncio.Server | None = None
        self._connections: set[ClientConnection] = set()
        self._empty = asyncio.Event()

    async def listen(self) -> int:
        """Start listening; returns the port."""
        self._server = await ws_create_server(
            self._request,
            "127.0.0.1",
            0,
            max_frame_size=codec.MAX_MESSAGE,
            websocket_handshake_timeout=self.sessions.config.hello_timeout,
            read_buffer_init_size=1 << 20,
            logger_name="server",
        )
        asyncio.get_running_loop().set_exception_handler(_untold)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stop listening and reading, let the sessions drain, and close the connections."""
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.stop_reading()
        await self.sessions.drain()
        for connection in list(self._connections):
            connection.close(1001, "the engine is stopping")
        if self._connections:
            self._empty.clear()
            await self._empty.wait()  # for LINGER at most

    def _there(self, connection: ClientConnection, there: bool) -> None:
        if there:
            self._connections.add(connection)
        else:
            self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def status(self) -> dict[str, object]:
        """What ``GET /status`` answers."""
        return {
            "epoch": self.sessions.epoch,
            "pid": os.getpid(),
            "uptime": self._clock() - self._started,
            "stopping": self.sessions.stopping,
            "sessions": self.sessions.describe(),
            "operations": self.sessions.operations(),
            "tenants": self.sessions.describe_tenants(),
            "watcher": self.sessions.watcher.describe(),
            "tenants_file": None if self._tenants_file is None else self._tenants_file.describe(),
            "hardening": {
                **in_force(),
                "landlock": None if self._confinement is None else self._confinement.describe(),
            },
        }

    def _request(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        headers = request.headers
        if "Origin" in headers:
            return self._error(HTTPStatus.FORBIDDEN, "not for browsers")
        if request.path == b"/status":
            given = headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, self._authorization):
                return self._error(HTTPStatus.UNAUTHORIZED, "wrong or missing token")
            body = json.dumps(self.status()).encode()
            answer = WSUpgradeResponse.create_ok_response(body, {"Content-Type": "application/json"})
            return WSUpgradeResponseWithListener(answer, None)
        if request.path != b"/":
            return self._error(HTTPStatus.NOT_FOUND, "no such page")
        offered = ",".join(headers.getall("Sec-WebSocket-Protocol", [])).split(",")
        if SUBPROTOCOL not in map(str.strip, offered):
            return self._error(HTTPStatus.BAD_REQUEST, f"only for the WebSocket subprotocol {SUBPROTOCOL}")
        accepted = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": SUBPROTOCOL})
        connection = ClientConnection(self.sessions, self._there)
        return WSUpgradeResponseWithListener(accepted, connection)

    def _error(self, status: HTTPStatus, why: str) -> WSUpgradeResponseWithListener:
        _LOG.warning("refused a request: %s", why)
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_error_response(status, why.encode()), None
        )


def _untold(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody caught. picows cannot say what is wrong with a header that is no text, and closes the connection
    with that as its error: it is the stranger's, and worth a line."""
    if "protocol" in context and isinstance(context.get("exception"), UnicodeError):
        _LOG.warning("closed a stranger: the request has a header that is no text")
    else:
        loop.default_exception_handler(context)

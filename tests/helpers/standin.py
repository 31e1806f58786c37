"""A server for tests of the client that need to control every answer: tickets over HTTP, an engine in memory.

The engine's end is the real ``EngineSession``; what requests do is up to the test.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Self

import picows
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from jupyter_wsfuse.errors import RefusedError
from jupyter_wsfuse.extension.relay import Relay
from jupyter_wsfuse.extension.settings import Settings
from jupyter_wsfuse.extension.supervisor import Endpoint
from jupyter_wsfuse.host import host_id
from jupyter_wsfuse.protocol.codec import DEFAULT_MAX_PAYLOAD, MAX_MESSAGE, encode_frame
from jupyter_wsfuse.protocol.messages import Attr, Done, Refused, Reply, Request, Struct, Welcome
from jupyter_wsfuse.protocol.session import (
    Cancelled,
    EngineSession,
    EngineState,
    PeerClosed,
    Requested,
    read_hello,
)
from jupyter_wsfuse.protocol.tickets import TicketIssuer, TicketVerifier

ATTR = Attr(1, 2, 0o40755, 2, 0, 0, 0, 4096, 8, 4096, 0, 0, 0, 1)
TOKEN = "right-token"

#: What a request does: returns its reply, with or without a payload; None: the test answers later by itself.
Answer = Callable[[Request, bytes], Awaitable[Reply | tuple[Reply, bytes] | None]]


async def _done(request: Request, _payload: bytes) -> Reply:
    return Done(request.seq)


class StandIn:
    """An async context manager. ``url`` and ``token`` are the server's, ``port`` the engine's."""

    def __init__(
        self,
        answer: Answer = _done,
        *,
        window: int = 64,
        window_bytes: int = 16 << 20,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.tls = tls
        self.window, self.window_bytes = window, window_bytes
        self.token = TOKEN
        self.secret = secrets.token_bytes(32)
        self.verifier = TicketVerifier(self.secret, "test")
        self.sessions: dict[str, EngineSession] = {}
        self.hellos: list[Any] = []
        self.requests: list[Request] = []  #: in the order in which they were executed
        self.cancelled: list[int] = []
        self.closed: list[str] = []  #: reasons of Byes
        self.listeners: set[_Listener] = set()
        self.tickets = 0
        self.channels = 0  #: relays opened
        self.messages = 0  #: WebSocket messages received
        self.features: list[str] = []  #: of its Welcome
        self.recovers = False  #: after die(): sessions are recovered, not lost
        self.epoch = 1
        self.refuse: str | None = None  #: a code to refuse the next Hello with
        self.http: Callable[[RequestHandler], bool] | None = None  #: True: it has answered the request itself
        self.greet: Callable[[_Listener], bool] | None = None  #: the same for a Hello
        self.advertised_host = host_id()
        self.advertised_port: int | None = None  #: of the engine, if a proxy stands before it
        self.http_port = 0
        self.port = 0
        self.changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.http_port}/user/ann/"

    async def __aenter__(self) -> Self:
        socket, self.http_port = bind_unused_port()
        mine = {"stand_in": self}
        application = Application(
            [
                (r"/user/ann/wsfuse/api/ticket", _TicketHandler, mine),
                (r"/user/ann/wsfuse/channel", _ChannelHandler, mine),
            ],
            log_function=lambda _handler: None,  # a refused ticket is no trouble of ours
        )
        self._http = HTTPServer(application, ssl_options=self.tls)
        self._http.add_socket(socket)
        await self.listen()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._http.stop()
        self.silence()
        relays = [task for task in asyncio.all_tasks() if task.get_name() == "wsfuse-relay"]
        if relays:
            await asyncio.wait(relays)
        await self._http.close_all_connections()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listen(self) -> None:
        """Start (again) to listen as the engine, on another port."""
        self._server = await picows.ws_create_server(
            lambda _request: _Listener(self), "127.0.0.1", 0, max_frame_size=MAX_MESSAGE
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def silence(self) -> None:
        """The engine dies: its port is closed, its connections are reset."""
        self._server.close()
        for listener in list(self.listeners):
            if listener.transport is not None:
                listener.transport.disconnect(graceful=False)

    def die(self) -> None:
        """... and whatever it knew is lost (or with ``recovers`` its handles are)."""
        self.silence()
        if not self.recovers:
            self.sessions.clear()
        self.epoch += 1

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until *predicate*, looked at after every message."""
        async with self.changed:
            await self.changed.wait_for(predicate)

    def reply(self, request: Request, reply: Reply, payload: bytes = b"") -> None:
        """Answer a request for which :attr:`answer` returned None."""
        for listener in self.listeners:
            if listener.session is not None and request.seq in listener.session.executing:
                listener.session.reply(reply, payload)
                listener.flush()

    def say(self, message: Struct) -> None:
        """Say something, legal or not, on every connection."""
        for listener in list(self.listeners):
            assert listener.transport is not None
            listener.transport.send(WSMsgType.BINARY, encode_frame(message))

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def note(self) -> None:
        async with self.changed:
            self.changed.notify_all()


class _TicketHandler(RequestHandler):
    def initialize(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in

    def post(self) -> None:
        stand_in = self.stand_in
        stand_in.tickets += 1
        stand_in.spawn(stand_in.note())
        if stand_in.http is not None and stand_in.http(self):
            return
        if stand_in.token and self.request.headers.get("Authorization") != f"token {stand_in.token}":
            self.set_status(403)
            self.finish({"message": "Forbidden"})
            return
        ticket = TicketIssuer(stand_in.secret, "test").issue("default", "ann", {"read", "write"}, 60)
        answer: dict[str, Any] = {
            "ticket": ticket,
            "protocol": 1,
            "version": "1.2.3",
            "expires": 60,
            "engine": {"host": "127.0.0.1", "port": stand_in.advertised_port or stand_in.port},
            "host_id": stand_in.advertised_host,
            "max_message": MAX_MESSAGE,
        }
        self.finish(json.dumps(answer))


class _ChannelHandler(WebSocketHandler):
    """The extension's own relay, with the least authentication around it."""

    def initialize(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in

    async def get(self, *args: Any, **kwargs: Any) -> None:
        stand_in = self.stand_in
        stand_in.channels += 1
        if stand_in.http is not None and stand_in.http(self):
            return
        if self.request.headers.get("Authorization") != f"token {stand_in.token}":
            self.set_status(403)
            self.finish({"message": "Forbidden"})
            return
        self.relay = Relay(self, Endpoint(stand_in.port, 1, 1), Settings(root_dir="/"))
        await super().get(*args, **kwargs)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return subprotocols[0]

    @property
    def max_message_size(self) -> int:
        return MAX_MESSAGE

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.relay.start()

    def on_message(self, message: str | bytes) -> Any:
        return self.relay.from_mount(message)

    def on_close(self) -> None:
        self.relay.mount_closed(self.close_code, self.close_reason)


class _Listener(WSListener):
    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self.session: EngineSession | None = None
        self.transport: WSTransport | None = None
        stand_in.listeners.add(self)

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.stand_in.listeners.discard(self)
        if self.session is not None and self.session.state is EngineState.ATTACHED:
            self.session.detach()
        self.stand_in.spawn(self.stand_in.note())

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        stand_in = self.stand_in
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
            return
        data = frame.get_payload_as_bytes()
        stand_in.messages += 1
        if self.session is None:
            self._hello(data)
            return
        for event in self.session.receive(data):
            if isinstance(event, Requested):
                stand_in.requests.append(event.request)
                stand_in.spawn(self._execute(event.request, event.payload))
            elif isinstance(event, Cancelled):
                stand_in.cancelled.append(event.seq)
            elif isinstance(event, PeerClosed):
                stand_in.closed.append(event.reason)
        self.flush()
        stand_in.spawn(stand_in.note())

    def _hello(self, data: bytes) -> None:
        stand_in, hello = self.stand_in, read_hello(data)
        stand_in.hellos.append(hello)
        if stand_in.greet is not None and stand_in.greet(self):
            return
        assert self.transport is not None
        try:
            stand_in.verifier.redeem(hello.ticket)
            if stand_in.refuse is not None:
                code, stand_in.refuse = stand_in.refuse, None
                raise RefusedError(code, f"refused: {code}")
        except RefusedError as exc:
            self.transport.send(WSMsgType.BINARY, encode_frame(Refused(exc.code, str(exc))))
            self.transport.send_close(WSCloseCode.POLICY_VIOLATION)
            self.transport.disconnect()
            return
        session = stand_in.sessions.get(hello.session)
        resumed = session is not None and hello.epoch == stand_in.epoch
        recovered = session is not None and not resumed
        if session is None:
            name = secrets.token_hex(16)
            session = EngineSession(name, window=stand_in.window, window_bytes=stand_in.window_bytes)
            stand_in.sessions[name] = session
        for other in list(stand_in.listeners):
            if other.session is session and other.transport is not None:  # somebody took the session over
                other.session = None
                other.transport.disconnect(graceful=False)
        self.session = session
        welcome = Welcome(
            1, session.session_id, stand_in.epoch, resumed, recovered, stand_in.window, stand_in.window_bytes,
            DEFAULT_MAX_PAYLOAD, "default", ATTR, 0, 0, features=stand_in.features,
        )  # fmt: skip
        session.attach(welcome)
        self.flush()
        stand_in.spawn(stand_in.note())

    async def _execute(self, request: Request, payload: bytes) -> None:
        assert self.session is not None
        answer = await self.stand_in.answer(request, payload)
        if answer is None:
            return
        reply, data = answer if isinstance(answer, tuple) else (answer, b"")
        self.session.reply(reply, data)
        for listener in list(self.stand_in.listeners):  # the session may be on another connection by now
            if listener.session is self.session:
                listener.flush()

    def flush(self) -> None:
        assert self.session is not None
        if self.transport is not None:
            for message in self.session.outgoing():
                self.transport.send(WSMsgType.BINARY, message)

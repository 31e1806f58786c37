"""The shell around a client's session: tickets, WebSockets, and coming back after a loss.

A :class:`Connection` is the only thing of the client that touches the network. It makes requests out of
calls, keeps the callers waiting through reconnects up to the mount's deadline, and wakes them with the reply. What
may be sent, sent again or answered by memory is decided by :class:`~..protocol.session.ClientSession`.

==============  ====================================================================================
state           meaning, for people and for ``status``
==============  ====================================================================================
``closed``      not opened yet, or closed for good
``connected``   requests are answered
``reconnecting`` the link is down; requests wait
``parked``      nobody used an idle relay: it was let go, and comes back with the next request
``failed``      the server refuses us for good, ``last_error`` says why; requests fail with ``EACCES``
==============  ====================================================================================
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from picows import WSCloseCode

from jupyter_wsfuse.busypoll import BusyPoll
from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.client.heartbeat import Heartbeat
from jupyter_wsfuse.client.options import ConnectionOptions
from jupyter_wsfuse.client.tickets_http import Ticket, TicketClient, Unavailable
from jupyter_wsfuse.client.transport import WebSocket, connect_direct, connect_relay
from jupyter_wsfuse.client.waiting import Answer, Waiting
from jupyter_wsfuse.errors import RefusedError, RemoteProtocolError, TransportError, errno_number, os_error
from jupyter_wsfuse.host import host_id
from jupyter_wsfuse.protocol.codec import HEADROOM
from jupyter_wsfuse.protocol.messages import (
    LEASES,
    REPORTS,
    Error,
    Reply,
    Report,
    Request,
    Struct,
    Watched,
    Welcome,
)
from jupyter_wsfuse.protocol.session import (
    ClientSession,
    ClientState,
    Notified,
    PeerClosed,
    PongReceived,
    RefusedEvent,
    Replied,
    Welcomed,
)

State = Literal["closed", "connected", "reconnecting", "parked", "failed"]

#: What will not pass by trying again; every other refusal may.
_PERMANENT: Final = frozenset({"token", "token-revoked", "version", "session-foreign"})

_LOST_AGAIN: Final = "the connection was lost again before it could be used"

__all__ = ["Connection", "ConnectionOptions"]

_log = logging.getLogger(__name__)


async def _no_welcome(_welcome: Welcome, _kind: str) -> None:
    pass


def _no_notification(_message: Struct) -> None:
    pass


def _no_state(_state: str) -> None:
    pass


def _not_watched(_on: bool) -> None:
    pass


def _no_parking() -> None:
    pass


class Connection:
    """A client's connection to one workspace, kept up until :meth:`close`. Belongs to one event loop.

    *session* and *epoch*: those of a predecessor whose session is taken over. Set ``on_notification``,
    ``on_welcome`` and ``live_handles`` before :meth:`open`:

    ``on_welcome(welcome, kind)``: awaited after each connection is admitted, before held requests go out; it makes
    its own with ``recovery=True``. *kind* as in :class:`~..protocol.session.Welcomed`.
    ``on_notification(message)``: for every ``Changed`` and ``InvalidateAll``.
    ``on_state(state)``: for every change of state.
    ``on_watched(on)``: whether somebody looks at what :meth:`report` says; False also when the connection is lost.
    ``on_parking()``: the connection is about to be let go; what is reported now still goes out.
    ``live_handles()``: the handles still wanted, asked before a resume.
    """

    def __init__(
        self,
        server: Server,
        options: ConnectionOptions | None = None,
        *,
        session: str = "",
        epoch: int = 0,
        incarnation: int | None = None,
    ) -> None:
        self.server = server
        self.options = options or ConnectionOptions()
        self.on_notification: Callable[[Struct], None] = _no_notification
        self.on_welcome: Callable[[Welcome, str], Awaitable[None]] = _no_welcome
        self.on_state: Callable[[str], None] = _no_state
        self.on_watched: Callable[[bool], None] = _not_watched
        self.on_parking: Callable[[], None] = _no_parking
        self.live_handles: Callable[[], list[int]] | None = None
        self._session = ClientSession(
            client=self.options.client,
            incarnation=secrets.randbits(20) if incarnation is None else incarnation,
            session=session,
            epoch=epoch,
            room=HEADROOM,
        )
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # set by open()
        self._tickets: TicketClient | None = None
        self._ws: WebSocket | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._greeting: asyncio.Future[Welcomed] | None = None
        self._lost: asyncio.Event = asyncio.Event()  # there is no transport, or it has gone
        self._wake: asyncio.Event = asyncio.Event()  # somebody wants a parked connection back
        self._flushing = False
        self._waiting: Waiting = None  # type: ignore[assignment]  # set by open()
        self._used: set[int] = set()  # keys that are the seq of a request
        self._keyed: set[int] = set()  # of these, what is answered and to be acknowledged by done()
        self._repeated: set[int] = set()  # keys of requests that a predecessor may have sent
        self._heartbeat: Heartbeat | None = None
        self._busy_at = 0.0  # loop time
        self._state: State = "closed"
        self._since = time.time()
        self._welcome: Welcome | None = None
        self._transport = ""
        self._rtt: float | None = None
        self._reconnects = 0
        self._last_error = ""

    # --- for the mount ----------------------------------------------------------------------------------

    @property
    def rtt(self) -> float | None:
        """See :class:`~.api.Requester`."""
        return self._rtt

    @property
    def welcome(self) -> Welcome | None:
        """The engine's last Welcome; None before the first."""
        return self._welcome

    @property
    def session_id(self) -> str:
        """What a successor of this process needs to take the session over, with ``epoch``. A secret."""
        return self._session.session

    @property
    def epoch(self) -> int:
        return self._session.epoch

    async def open(self) -> Welcome:
        """Connect for the first time. Does not try twice.

        Raises :class:`TransportError` (the server cannot be reached, or has no extension) or
        :class:`RefusedError` (it does not admit us), with messages that say what to do.
        """
        self._loop = asyncio.get_running_loop()
        self._waiting = Waiting(self._loop, self.options.deadline, self._session.cancel)
        self._poll = BusyPoll(self._loop, self.options.busy_poll)
        self._tickets = TicketClient(self.server)
        try:
            await self._establish()
        except BaseException:
            self._tickets.close()
            raise
        self._keeper = self._loop.create_task(self._keep(), name="wsfuse-connection")
        assert self._welcome is not None
        return self._welcome

    def start(self) -> None:
        """Instead of :meth:`open`, for a successor of a process that was connected: return at once, connect when it
        can be done. Until then requests wait, up to the deadline."""
        self._loop = asyncio.get_running_loop()
        self._waiting = Waiting(self._loop, self.options.deadline, self._session.cancel)
        self._poll = BusyPoll(self._loop, self.options.busy_poll)
        self._tickets = TicketClient(self.server)
        self._set("reconnecting")
        self._lost.set()
        self._keeper = self._loop.create_task(self._keep(), name="wsfuse-connection")

    async def call(
        self, request: Request, payload: bytes = b"", *, key: int = 0, recovery: bool = False
    ) -> tuple[Reply, bytes]:
        """Make *request* (its ``seq`` is filled in) and return the reply and its payload.

        *key*: the kernel's number of the request that this serves, or 0. The first ``once`` request made under a key
        has it as its ``seq``, and its reply is acknowledged by :meth:`done`; all others are acknowledged at once.
        Raises :class:`OSError`: what the engine answered; ``ETIMEDOUT`` after the deadline without a connection;
        ``EINTR`` after :meth:`interrupt`; ``ENOTCONN`` or ``EACCES`` if the connection is closed or has failed.
        """
        session = self._session
        connected = self._state == "connected"
        if not connected:
            self._check_usable(recovery)
        repeated = False
        if key and request.once and key not in self._used:
            seq = key
            repeated = key in self._repeated
            self._used.add(key)
        else:
            seq = session.next_seq()
        request.seq = seq
        session.submit(request, payload, recovery=recovery, repeated=repeated)
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.futures[seq] = (future, key)
        if not connected:
            self._waiting.strand(seq)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        try:
            reply, data = await future
        except asyncio.CancelledError:
            if self._waiting.forget(seq):
                session.cancel(seq)
                self._flush_soon()
            raise
        if type(reply) is Error:
            raise os_error(errno_number(reply.errno), reply.message)
        return reply, data

    def post(self, request: Request) -> None:
        """Make *request*; nobody wants to know the answer. Does nothing on a connection that has ended."""
        if self._state not in ("closed", "failed"):
            request.seq = self._session.next_seq()
            self._session.submit(request)
            self._flush_soon()
            self._wake.set()

    def report(self, report: Report) -> bool:
        """Tell the server what this client knows of itself; False if it cannot be told now. It counts as no use of the
        connection."""
        welcome = self._welcome
        if self._state != "connected" or welcome is None or REPORTS not in welcome.features:
            return False
        self._session.report(report)
        self._flush_soon()
        return True

    def done(self, key: int) -> None:
        """The kernel has the result of what was done under *key*: the engine may forget it."""
        self._used.discard(key)
        if self._repeated:
            self._repeated.discard(key)
        if key in self._keyed:
            self._keyed.remove(key)
            if self._session.held:  # a place in the window becomes free
                self._flush_soon()
            self._session.done(key)

    def interrupt(self, key: int) -> None:
        """Nobody waits for what was asked under *key* any longer.

        What was not sent yet, and everything while there is no connection, fails with ``EINTR`` now. Otherwise the
        engine is told, and answers what waits for somebody else with ``EINTR``, the rest as usual.
        """
        for seq in self._waiting.under(key):
            if self._session.cancel(seq) or self._state != "connected":
                self._waiting.fail(seq, errno.EINTR)
            else:
                self._waiting.interrupted.add(seq)
                if self._heartbeat is not None:
                    self._heartbeat.hurry(self.options.interrupt_patience)
        self._flush_soon()

    def mark_repeated(self, key: int) -> None:
        """The kernel asked for *key* of a predecessor of this process already, which may have sent it. To be called
        before :meth:`call`."""
        self._repeated.add(key)

    def forget_others(self) -> None:
        """The kernel has repeated everything that a predecessor of this process left unanswered."""
        self._session.forget_others()
        self._flush_soon()

    def status(self) -> dict[str, Any]:
        """For people: JSON-able, without secrets. ``session``: the beginning of its id, as the engine names it.
        ``since`` in seconds since the epoch, ``deadline`` in seconds.
        ``read_only``: the server lets nothing be changed, as it said last. ``told``: it tells of changes; if not,
        ``untold_because`` says why."""
        return {
            "state": self._state,
            "session": self._session.session[:16],
            "transport": self._transport,
            "read_only": self._welcome is not None and self._welcome.read_only,
            "told": self._welcome is not None and LEASES in self._welcome.features,
            "untold_because": "" if self._welcome is None else self._welcome.unwatched,
            "url": self.server.url,
            "source": self.server.source,
            "rtt_ms": None if self._rtt is None else round(self._rtt * 1000, 3),
            "held": self._session.held,
            "unanswered": self._session.unanswered,
            "since": self._since,
            "deadline": self.options.deadline,
            "reconnects": self._reconnects,
            "last_error": self._last_error,
        }

    async def close(self) -> None:
        """End the session: the engine closes its handles and releases its locks. Whoever waits gets ``ENOTCONN``."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._waiting is not None:
            self._end("closed", errno.ENOTCONN, "unmounted")
        ws = self._ws
        self._session.close("unmounted")
        if ws is not None:
            for message in self._session.outgoing():
                ws.send(message)
            ws.close()
            try:
                async with asyncio.timeout(self.options.close_timeout):
                    await self._lost.wait()
            except TimeoutError:
                self._drop("")
        if self._tickets is not None:
            self._tickets.close()
            self._tickets = None

    def _check_usable(self, recovery: bool) -> None:
        if self._state == "failed":
            raise os_error(errno.EACCES, self._last_error)
        if self._state == "closed" and not recovery:
            raise os_error(errno.ENOTCONN, "the connection is closed")
        self._wake.set()

    def _end(self, state: State, number: int, message: str) -> None:
        self._set(state)
        self._waiting.fail_all(number, message)

    def _set(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._since = time.time()
            _log.info(
                "%s: %s%s", self.server.url, state, f" ({self._transport})" if state == "connected" else ""
            )
            self.on_state(state)

    # --- one connection ---------------------------------------------------------------------------------

    async def _establish(self) -> None:
        """Ticket, WebSocket, handshake, recovery. When it returns, everything held has been released."""
        assert self._tickets is not None
        session, options = self._session, self.options
        ticket = await self._tickets.ticket(self.options.tenant)
        try:
            ws = await self._connect(ticket)
            self._greeting = self._loop.create_future()
            # On a resume the engine closes what is not in this list; before a session exists there is nothing.
            handles = self.live_handles() if self.live_handles is not None and session.session else None
            features = [LEASES] if options.leases else []
            features += [REPORTS] if options.reports else []
            session.connected(
                ticket.ticket,
                transport=self._transport,
                links=options.links,
                handles=handles,
                features=features,
            )
            begun = time.monotonic()  # uvloop's clock counts milliseconds
            self._flush()
            try:
                async with asyncio.timeout(options.welcome_timeout):
                    welcomed = await self._greeting
            except TimeoutError:
                raise TransportError(f"{self.server.url}: the file engine did not greet in time") from None
            self._rtt = time.monotonic() - begun
            self._heartbeat = Heartbeat(
                ws,
                interval=options.heartbeat,
                patience=options.patience,
                ping=self._ping,
                dead=self._dead,
                idle=self._park_if_idle,
            )
            self._welcome = welcomed.welcome
            await self._recover(welcomed)
            if self._lost.is_set():
                raise TransportError(_LOST_AGAIN)
        except BaseException:
            self._drop()
            raise
        self._busy_at = self._loop.time()
        self._set("connected")
        self._waiting.rescued()
        session.recovered()
        self._heartbeat.measure()  # a greeting takes the engine longer than an answer
        self._flush()

    async def _connect(self, ticket: Ticket) -> WebSocket:
        options, server = self.options, self.server
        near = ticket.host_id == host_id() and ticket.port > 0
        if options.transport == "direct" and not near:
            raise TransportError(
                f"{server.url} runs on another host (or admits no direct connections): use the transport auto or relay"
            )
        if near and options.transport != "relay":
            try:
                ws = self._listen("direct")
                await connect_direct(ticket, ws)
                return ws
            except TransportError as exc:
                if options.transport == "direct":
                    raise
                _log.info("%s; trying the relay", exc)
        ws = self._listen("relay")
        await connect_relay(server, ws)
        return ws

    def _listen(self, transport: str) -> WebSocket:
        self._transport = transport
        self._lost.clear()
        self._ws = WebSocket(self._received, self._on_lost, self._flush)
        return self._ws

    async def _recover(self, welcomed: Welcomed) -> None:
        """The mount's own part of the handshake, given up if the connection goes meanwhile."""
        hook = asyncio.ensure_future(self.on_welcome(welcomed.welcome, welcomed.kind))
        lost = self._loop.create_task(self._lost.wait())
        try:
            await asyncio.wait((hook, lost), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise TransportError(_LOST_AGAIN)
            await hook
        finally:
            for task in (hook, lost):
                task.cancel()
            await asyncio.gather(hook, lost, return_exceptions=True)

    def _flush_soon(self) -> None:
        if not self._flushing and self._ws is not None:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what was queued in this turn of the loop. While the socket's queue is full, it stays with us."""
        self._flushing = False
        ws = self._ws
        if ws is not None and ws.writable:
            for message in self._session.outgoing():
                ws.send(message)
            if self._transport == "direct" and self._session.unanswered:
                self._poll.expect()

    def _received(self, data: memoryview | bytes) -> None:
        session, waiting = self._session, self._waiting
        self._poll.happened()
        try:
            events = session.receive(data)
        except RemoteProtocolError as exc:
            _log.error("%s: the server broke the protocol: %s", self.server.url, exc)
            if self._ws is not None:
                self._ws.fail(WSCloseCode(exc.close_code), str(exc))
            return
        for event in events:
            if type(event) is Replied:
                seq = event.seq
                waiter = waiting.futures.pop(seq, None)
                self._busy_at = self._loop.time()
                if waiter is None:
                    session.done(seq)
                    continue
                if waiting.interrupted:
                    waiting.interrupted.discard(seq)
                future, key = waiter
                if seq == key:
                    self._keyed.add(seq)
                else:
                    session.done(seq)
                if not future.done():
                    future.set_result((event.reply, event.payload))
            else:
                self._handle(event)
        self._flush()

    def _handle(self, event: object) -> None:
        if isinstance(event, Notified):
            if isinstance(event.message, Watched):
                self.on_watched(event.message.on)
            else:
                self.on_notification(event.message)
        elif isinstance(event, PongReceived):
            if self._heartbeat is not None:
                self._rtt = self._heartbeat.pong(event.nonce) or self._rtt
        elif isinstance(event, Welcomed):
            assert self._greeting is not None
            if not self._greeting.done():
                self._greeting.set_result(event)
        elif isinstance(event, RefusedEvent):
            assert self._greeting is not None
            if not self._greeting.done():
                self._greeting.set_exception(RefusedError(event.code, event.message))
        elif isinstance(event, PeerClosed) and self._ws is not None:
            self._ws.fail(WSCloseCode.OK, f"the server ended the session: {event.reason}")

    def _on_lost(self, why: str) -> None:
        """The WebSocket is gone."""
        self._ws = None
        self.on_watched(False)
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self._session.state is not ClientState.IDLE:
            self._session.disconnected()
        if self._state == "connected":
            self._trouble(why)
            self._set("reconnecting")
        self._waiting.strand_all()
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(TransportError(f"{self.server.url}: {why}"))
        self._lost.set()

    def _trouble(self, why: str) -> None:
        self._last_error = self._waiting.why = why
        _log.info("%s: %s", self.server.url, why)

    def _drop(self, why: str = "") -> None:
        """End the present WebSocket, if there is one, without waiting for the peer."""
        ws = self._ws
        if ws is not None:
            ws.drop()
            self._on_lost(why)
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None

    # --- keeping it up ----------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Reconnect whenever the connection is lost, until it is closed or refused for good."""
        options = self.options
        while True:
            await self._lost.wait()
            pause = options.backoff
            if self._state == "parked":
                await self._wake.wait()
                self._set("reconnecting")
                pause = 0.0
            while True:
                await asyncio.sleep(pause * (0.5 + options.jitter() / 2))
                pause = min(max(2 * pause, options.backoff), options.backoff_max)
                try:
                    await self._establish()
                    break
                except RefusedError as exc:
                    self._trouble(str(exc))
                    if exc.code in _PERMANENT:
                        _log.error("%s", exc)
                        self._end("failed", errno.EACCES, str(exc))
                        return
                except (TransportError, OSError) as exc:
                    self._trouble(str(exc))
                    if isinstance(exc, Unavailable):
                        pause = max(pause, min(exc.retry_after, options.backoff_max))
                except Exception as exc:
                    # A bug in the mount's recovery: what waits must not wait for ever without a word.
                    _log.exception("the connection could not be recovered")
                    self._trouble(f"{type(exc).__name__}: {exc}")
            self._reconnects += 1

    def _ping(self, nonce: int) -> None:
        if self._session.state in (ClientState.OPEN, ClientState.RECOVERING):
            self._session.ping(nonce)
            self._flush()

    def _dead(self, silence: float) -> None:
        _log.warning("%s: no sign of life for %.1f seconds, connecting again", self.server.url, silence)
        self._drop(f"no sign of life for {silence:.1f} seconds")

    def _park_if_idle(self, now: float) -> bool:
        options = self.options
        if (
            options.park_after <= 0
            or self._transport != "relay"
            or self._state != "connected"
            or now - self._busy_at < options.park_after
            or self._session.unanswered
            or (self.live_handles is not None and self.live_handles())
        ):
            return False
        self._wake.clear()
        self.on_parking()
        self._flush()
        self._set("parked")
        self._drop("idle")
        return True

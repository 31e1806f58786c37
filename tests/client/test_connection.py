"""A client's connection against a server that the test controls: calls, losses, deadlines, interrupts, takeovers."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from picows import WSMsgType

from jupyter_wsfuse.client.connection import Connection, ConnectionOptions
from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.client.transport import WebSocket
from jupyter_wsfuse.errors import RefusedError, TransportError
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol.messages import (
    REPORTS,
    Access,
    AttrReply,
    Bye,
    Change,
    Changed,
    Close,
    CountReply,
    DataReply,
    Done,
    Error,
    GetAttr,
    Identity,
    InvalidateAll,
    Lock,
    LockReply,
    MkDir,
    OpenReply,
    Read,
    Ref,
    RemoveXattr,
    Reopen,
    Reply,
    Report,
    Request,
    SetLock,
    Struct,
    Watched,
    Welcome,
    Write,
)
from tests.helpers.standin import ATTR, TOKEN, StandIn
from tests.helpers.tcpproxy import TcpProxy

FAST: dict[str, Any] = {"transport": "direct", "backoff": 0.001, "backoff_max": 0.01, "client": "test"}

Connect = Callable[..., Awaitable[Connection]]


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    async with StandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def connect(server: StandIn) -> AsyncIterator[Connect]:
    """Opens connections to the server, with options; all are closed in the end."""
    made: list[Connection] = []

    async def connector(before: Callable[[Connection], None] = lambda _c: None, **options: Any) -> Connection:
        keywords = {name: options.pop(name) for name in ("session", "epoch") if name in options}
        made.append(
            Connection(Server(server.url, TOKEN), ConnectionOptions(**{**FAST, **options}), **keywords)
        )
        before(made[-1])
        await made[-1].open()
        return made[-1]

    yield connector
    for connection in made:
        await connection.close()


@pytest.fixture
async def link(server: StandIn) -> AsyncIterator[TcpProxy]:
    """A proxy before the engine of ``server``, to be cut and stalled."""
    async with TcpProxy(server.port) as proxy:
        server.advertised_port = proxy.port
        yield proxy


def _removal(name: bytes = b"user.x") -> RemoveXattr:
    """A ``once`` request whose reply is Done."""
    return RemoveXattr(0, Ref(b"a"), name)


def _question() -> Access:
    """A request that is not ``once`` and whose reply is Done."""
    return Access(0, Ref(b"a"), 4)


def _lock(*, wait: bool = True) -> SetLock:
    return SetLock(0, 7, Lock(1, 0, 9, "w", 1), wait)


def _watch(connection: Connection) -> Callable[[str], Awaitable[object]]:
    """A function that waits until the connection is in a state. To be made before it can be."""
    events: dict[str, asyncio.Event] = {}

    def note(state: str) -> None:
        for name, event in events.items():
            event.set() if name == state else event.clear()

    async def wait(state: str) -> None:
        event = events.setdefault(state, asyncio.Event())
        if connection.status()["state"] != state:
            await event.wait()

    connection.on_state = note
    return wait


class Gate:
    """An engine that answers when it is let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, request: Request, _payload: bytes) -> Reply:
        await self.open.wait()
        return AttrReply(request.seq, ATTR) if isinstance(request, GetAttr) else Done(request.seq)


# --- calls --------------------------------------------------------------------------------------------


async def test_a_call_returns_reply_and_payload(server: StandIn, connect: Connect) -> None:
    async def answer(request: Request, payload: bytes) -> Reply | tuple[Reply, bytes]:
        if isinstance(request, Write):
            return CountReply(request.seq, len(payload))
        assert isinstance(request, Read)
        return DataReply(request.seq), b"x" * request.size

    server.answer = answer
    connection = await connect()
    reply, payload = await connection.call(Write(0, 1, 0), b"12345")
    assert (reply, payload) == (CountReply(reply.seq, 5), b"")
    _, payload = await connection.call(Read(0, 1, 0, 100_000))
    assert payload == b"x" * 100_000


async def test_an_error_is_an_oserror_of_this_systems_number(server: StandIn, connect: Connect) -> None:
    async def answer(request: Request, _payload: bytes) -> Reply:
        return Error(request.seq, "ENOENT", "no such thing")

    server.answer = answer
    connection = await connect()
    with pytest.raises(FileNotFoundError, match="no such thing"):
        await connection.call(_removal())


async def test_open_returns_the_welcome(server: StandIn, connect: Connect) -> None:
    connection = await connect()
    assert connection.welcome is not None
    assert connection.welcome.root == ATTR
    assert connection.session_id == connection.welcome.session
    assert connection.epoch == server.epoch
    (hello,) = server.hellos
    assert (hello.client, hello.transport, hello.links, hello.handles) == ("test", "direct", "keep", None)


async def test_requests_of_one_turn_of_the_loop_leave_in_one_message(
    server: StandIn, connect: Connect
) -> None:
    connection = await connect()
    await connection.call(_removal())  # behind what is sent by itself at the beginning
    before = server.messages
    await asyncio.gather(*[connection.call(_removal()) for _ in range(50)])
    assert server.messages == before + 1


async def test_more_than_the_window_waits_its_turn(server: StandIn, connect: Connect) -> None:
    async def answer(request: Request, payload: bytes) -> Reply:
        return CountReply(request.seq, len(payload)) if payload else Done(request.seq)

    server.answer = answer
    connection = await connect()
    await asyncio.gather(*[connection.call(_removal()) for _ in range(1000)])
    await asyncio.gather(*[connection.call(Write(0, 1, 0), bytes(500_000)) for _ in range(100)])
    assert len(server.requests) == 1100


async def test_a_full_socket_holds_requests_on_our_side(
    server: StandIn, link: TcpProxy, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(request: Request, payload: bytes) -> Reply:
        return CountReply(request.seq, len(payload))

    server.answer = answer
    connection = await connect()
    full = asyncio.Event()
    monkeypatch.setattr(WebSocket, "pause_writing", lambda ws: (setattr(ws, "writable", False), full.set()))
    link.up.stall()
    calls = [asyncio.create_task(connection.call(Write(0, 1, 0), bytes(1 << 20))) for _ in range(100)]
    await full.wait()
    ws = connection._ws
    assert ws is not None
    assert ws.unsent() > 1 << 20
    link.up.resume()
    assert {reply.count for reply, _ in await asyncio.gather(*calls) if isinstance(reply, CountReply)} == {
        1 << 20
    }


async def test_without_a_listener_notifications_are_dropped(server: StandIn, connect: Connect) -> None:
    connection = await connect()
    server.say(InvalidateAll("overflow"))
    await connection.call(_removal())


async def test_post_waits_for_nothing(server: StandIn, connect: Connect) -> None:
    async def answer(request: Request, _payload: bytes) -> Reply:
        return Error(request.seq, "EIO") if isinstance(request, Close) else Done(request.seq)

    server.answer = answer
    connection = await connect()
    connection.post(Close(0, 7))
    await connection.call(_removal())
    assert [type(request) for request in server.requests] == [Close, RemoveXattr]


async def test_notifications_are_passed_on(server: StandIn, connect: Connect) -> None:
    seen: asyncio.Queue[Struct] = asyncio.Queue()

    def before(connection: Connection) -> None:
        connection.on_notification = seen.put_nowait

    await connect(before)
    said = [Changed([Change(Identity(1, 2, 3), b"name")]), InvalidateAll("overflow")]
    for message in said:
        server.say(message)
    assert [await seen.get() for _ in said] == said


# --- keys ---------------------------------------------------------------------------------------------


async def test_under_a_key_a_once_request_is_acknowledged_by_done(server: StandIn, connect: Connect) -> None:
    connection = await connect()
    (session,) = server.sessions.values()
    await connection.call(_removal(), key=1234)
    assert server.requests[-1].seq == 1234
    await connection.call(_question(), key=1234)
    assert server.requests[-1].seq >= 2**62
    await connection.call(_removal(), key=1234)  # another one under the key has a number of its own
    assert server.requests[-1].seq >= 2**62
    await connection.call(_removal())
    assert (
        session.remembered == 2
    )  # that of the key, and the last, whose acknowledgement has nothing to travel with
    connection.done(1234)
    await connection.call(_question())
    assert session.remembered == 0
    connection.done(1234)
    connection.done(99)


def _question() -> Request:
    from jupyter_wsfuse.protocol.messages import Access

    return Access(0, Ref(b""), 4)


async def test_done_lets_what_waits_for_the_window_go(server: StandIn, connect: Connect) -> None:
    server.window = 2
    connection = await connect()
    await connection.call(_removal(), key=2)
    await connection.call(_removal(), key=4)
    third = asyncio.create_task(connection.call(_removal(), key=6))
    await asyncio.sleep(0)
    assert connection.status()["held"] == 1
    connection.done(2)
    await third
    assert [request.seq for request in server.requests] == [2, 4, 6]


# --- interrupts ---------------------------------------------------------------------------------------


async def test_an_unsent_request_is_dropped(server: StandIn, connect: Connect) -> None:
    server.window, server.answer = 1, Gate()
    connection = await connect()
    first = asyncio.create_task(connection.call(_removal(), key=2))
    second = asyncio.create_task(connection.call(_removal(), key=4))
    await server.until(lambda: len(server.requests) == 1)
    connection.interrupt(4)
    with pytest.raises(InterruptedError):
        await second
    assert isinstance(server.answer, Gate)
    server.answer.open.set()
    await first
    connection.done(2)
    await connection.call(_removal())
    assert 4 not in [request.seq for request in server.requests]


async def test_a_sent_request_is_cancelled_and_still_answered(server: StandIn, connect: Connect) -> None:
    async def answer(request: Request, _payload: bytes) -> Reply | None:
        return None

    server.answer = answer
    connection = await connect()
    waiting = asyncio.create_task(connection.call(_lock(), key=8))
    await server.until(lambda: len(server.requests) == 1)
    connection.interrupt(8)
    await server.until(lambda: server.cancelled == [8])
    assert not waiting.done()
    server.reply(server.requests[0], Error(8, "EINTR"))
    with pytest.raises(InterruptedError):
        await waiting
    connection.done(8)


async def test_all_requests_under_a_key_are_interrupted_and_no_other(
    server: StandIn, connect: Connect
) -> None:
    gate = server.answer = Gate()
    connection = await connect()
    asked: list[tuple[Request, int]] = [(_removal(), 8), (GetAttr(0, Ref(b"")), 8), (_removal(), 0)]
    tasks = [asyncio.create_task(connection.call(request, key=key)) for request, key in asked]
    await server.until(lambda: len(server.requests) == 3)
    connection.interrupt(8)
    await server.until(lambda: len(server.cancelled) == 2)
    assert set(server.cancelled) == {request.seq for request in server.requests[:2]}
    gate.open.set()
    await asyncio.gather(*tasks)


async def test_without_a_connection_nobody_who_is_interrupted_waits(
    server: StandIn, link: TcpProxy, connect: Connect
) -> None:
    gate = server.answer = Gate()
    connection = await connect()
    sent = asyncio.create_task(connection.call(_removal(), key=2))
    asked = asyncio.create_task(connection.call(_removal(), key=4))
    await server.until(lambda: len(server.requests) == 2)
    connection.interrupt(4)  # while there is a connection it waits for its answer
    await server.until(lambda: server.cancelled == [4])
    link.refuse()
    with pytest.raises(InterruptedError):
        await asked
    unsent = asyncio.create_task(connection.call(_removal(), key=6))
    await asyncio.sleep(0)
    connection.interrupt(2)
    connection.interrupt(6)
    for task in (sent, unsent):
        with pytest.raises(InterruptedError):
            await task
    for key in (2, 4, 6):
        connection.done(key)
    link.refuse(False)
    gate.open.set()
    await connection.call(_removal())
    assert sorted(request.seq for request in server.requests)[:2] == [2, 4]
    await connection.call(GetAttr(0, Ref(b"")))
    (session,) = server.sessions.values()
    assert session.remembered == 0  # replies that found nobody have been acknowledged


async def test_a_cancelled_task_leaves_nothing_behind(server: StandIn, connect: Connect) -> None:
    gate = server.answer = Gate()
    connection = await connect()
    task = asyncio.create_task(connection.call(_removal(), key=2))
    await server.until(lambda: len(server.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda: server.cancelled == [2])
    gate.open.set()
    await connection.call(_removal())
    await connection.call(GetAttr(0, Ref(b"")))
    (session,) = server.sessions.values()
    assert session.remembered == 0
    assert connection.status()["unanswered"] == 0


# --- losses -------------------------------------------------------------------------------------------


async def test_a_cut_link_is_resumed_and_everything_is_done_once(
    server: StandIn, link: TcpProxy, connect: Connect
) -> None:
    connection = await connect()
    for round_ in range(10):
        names = [f"user.{round_}.{number}".encode() for number in range(20)]
        tasks = [asyncio.create_task(connection.call(_removal(name))) for name in names]
        await asyncio.sleep(0)
        link.cut()
        await asyncio.gather(*tasks)
    names_done = [request.name for request in server.requests if isinstance(request, RemoveXattr)]
    assert len(names_done) == len(set(names_done)) == 200
    assert len(server.sessions) == 1
    status = connection.status()
    assert status["state"] == "connected"
    assert status["reconnects"] >= 1
    assert status["last_error"]


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_link_cut_in_the_middle_of_a_message(
    way: str, server: StandIn, link: TcpProxy, connect: Connect
) -> None:
    async def answer(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
        assert isinstance(request, Read)
        return DataReply(request.seq), bytes(request.size)

    server.answer = answer
    connection = await connect()
    direction = getattr(link, way)
    for limit in (1, 5, 20):
        direction.limit = direction.passed + limit
        _, data = await connection.call(Read(0, 1, 0, 10_000))
        assert len(data) == 10_000
    assert connection.status()["reconnects"] == 3


async def test_handles_are_named_on_a_resume_only(server: StandIn, link: TcpProxy, connect: Connect) -> None:
    kinds: list[str] = []

    async def on_welcome(_welcome: Welcome, kind: str) -> None:
        kinds.append(kind)

    def before(connection: Connection) -> None:
        connection.live_handles = lambda: [1, 2]
        connection.on_welcome = on_welcome

    connection = await connect(before)
    link.cut()
    await server.until(lambda: len(server.hellos) == 2)
    await connection.call(_removal())
    assert [hello.handles for hello in server.hellos] == [None, [1, 2]]
    assert [hello.session for hello in server.hellos] == ["", connection.session_id]
    assert kinds == ["new", "resumed"]


async def test_after_a_lost_session_what_was_sent_is_unknown_and_the_rest_goes_on(
    server: StandIn, connect: Connect
) -> None:
    gate = server.answer = Gate()
    kinds: list[str] = []

    async def on_welcome(_welcome: Welcome, kind: str) -> None:
        kinds.append(kind)

    def before(connection: Connection) -> None:
        connection.on_welcome = on_welcome

    connection = await connect(before)
    sent = asyncio.create_task(connection.call(_removal(), key=2))
    idempotent = asyncio.create_task(connection.call(GetAttr(0, Ref(b""))))
    await server.until(lambda: len(server.requests) == 2)
    server.die()
    await server.listen()
    gate.open.set()
    with pytest.raises(OSError, match="unknown") as caught:
        await sent
    assert caught.value.errno == errno.EIO
    await idempotent
    assert kinds == ["new", "lost"]


async def test_recovery_goes_before_everything_that_waits(server: StandIn, connect: Connect) -> None:
    server.recovers = True
    order: list[str] = []

    async def on_welcome(_welcome: Welcome, kind: str) -> None:
        if kind == "recovered":
            await connection.call(Reopen(0, Ref(b"a"), 7, 0), recovery=True)

    async def answer(request: Request, _payload: bytes) -> Reply:
        order.append(type(request).__name__)
        if isinstance(request, Reopen):
            return OpenReply(request.seq, 7, ATTR)
        return Done(request.seq)

    def before(connection: Connection) -> None:
        connection.on_welcome = on_welcome

    server.answer = answer
    connection = await connect(before)
    server.die()
    await server.until(lambda: not server.listeners)
    waiting = asyncio.create_task(connection.call(_removal()))
    await asyncio.sleep(0)
    await server.listen()
    await waiting
    assert order == ["Reopen", "RemoveXattr"]


async def test_a_recovery_that_fails_is_tried_again(
    server: StandIn, link: TcpProxy, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[Exception] = [OSError(errno.ENOLCK, "no locks"), ZeroDivisionError("a bug")]

    async def on_welcome(_welcome: Welcome, kind: str) -> None:
        if kind == "resumed" and failures:
            raise failures.pop(0)

    def before(connection: Connection) -> None:
        connection.on_welcome = on_welcome

    connection = await connect(before)
    link.cut()
    await connection.call(_removal())
    assert failures == []
    assert "a bug" in caplog.text


async def test_a_recovery_is_given_up_when_the_connection_goes(
    server: StandIn, link: TcpProxy, connect: Connect
) -> None:
    given_up: list[str] = []

    async def on_welcome(_welcome: Welcome, kind: str) -> None:
        if kind == "resumed" and not given_up:
            try:
                link.cut()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                given_up.append(kind)
                raise

    def before(connection: Connection) -> None:
        connection.on_welcome = on_welcome

    connection = await connect(before)
    link.cut()
    await connection.call(_removal())
    assert given_up == ["resumed"]


async def test_after_the_deadline_without_a_connection_an_operation_fails(
    server: StandIn, link: TcpProxy, connect: Connect
) -> None:
    gate = server.answer = Gate()
    connection = await connect(deadline=0.05)
    sent = asyncio.create_task(connection.call(_removal(), key=2))
    await server.until(lambda: len(server.requests) == 1)
    link.refuse()
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError, match=r"no connection for 0\.05 seconds") as caught:
        await sent
    assert caught.value.errno == errno.ETIMEDOUT
    begun = loop.time()
    tasks = [asyncio.create_task(connection.call(_removal())) for _ in range(2)]
    for task in tasks:
        with pytest.raises(TimeoutError):
            await task
    assert loop.time() - begun >= 0.04  # each has the whole of it
    link.refuse(False)
    gate.open.set()
    await server.until(lambda: len(server.hellos) >= 2)
    await connection.call(_removal())
    assert connection.status()["state"] == "connected"


async def test_while_connected_there_is_no_deadline(server: StandIn, connect: Connect) -> None:
    gate = server.answer = Gate()
    connection = await connect(deadline=0.01)
    waiting = asyncio.create_task(connection.call(_removal()))
    await asyncio.wait((waiting,), timeout=0.05)
    assert not waiting.done()
    gate.open.set()
    await waiting


async def test_a_silent_peer_is_given_up(
    server: StandIn, link: TcpProxy, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await connect(heartbeat=0.02, patience=0.05)
    state = _watch(connection)
    link.down.stall()
    waiting = asyncio.create_task(connection.call(_removal()))
    await state("reconnecting")
    assert "no sign of life" in connection.status()["last_error"]
    link.cut()
    link.down.resume()
    await waiting
    assert [type(request) for request in server.requests] == [RemoveXattr]
    assert "no sign of life" in caplog.text


async def test_the_status_says_whether_the_session_is_read_only(connect: Connect) -> None:
    connection = await connect()
    welcome = connection.welcome
    assert welcome is not None
    assert connection.status()["read_only"] is False
    welcome.read_only = True
    assert connection.status()["read_only"] is True


async def test_an_idle_connection_is_pinged_and_lives(server: StandIn, connect: Connect) -> None:
    connection = await connect(heartbeat=0.01, patience=5.0)
    before = server.messages
    await server.until(lambda: server.messages >= before + 5)
    status = connection.status()
    assert status["state"] == "connected"
    assert status["reconnects"] == 0
    assert 0 < status["rtt_ms"] < 5000
    assert connection.rtt is not None
    assert status["rtt_ms"] == round(1000 * connection.rtt, 3)


async def test_a_server_that_breaks_the_protocol_is_left_and_taken_up_again(
    server: StandIn, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await connect()
    for rubbish in (codec.encode_frame(GetAttr(1, Ref(b""))), b"rubbish"):
        seen = len(server.hellos)
        for listener in server.listeners:
            assert listener.transport is not None
            listener.transport.send(WSMsgType.BINARY, rubbish)
        await server.until(lambda seen=seen: len(server.hellos) > seen)
        await connection.call(_removal())
    assert caplog.text.count("broke the protocol") == 2


async def test_text_and_endless_messages_are_refused(server: StandIn, connect: Connect) -> None:
    connection = await connect()
    for kind, last in ((WSMsgType.TEXT, True), (WSMsgType.BINARY, False)):
        seen = len(server.hellos)
        for listener in list(server.listeners):
            assert listener.transport is not None
            listener.transport.send(kind, b"hello", fin=last)
            if not last:
                for _ in range(5):
                    listener.transport.send(WSMsgType.CONTINUATION, bytes(1 << 20), fin=False)
        await server.until(lambda seen=seen: len(server.hellos) > seen)
        await connection.call(_removal())
    assert "above the limit" in connection.status()["last_error"]


async def test_a_message_in_fragments_is_put_together(server: StandIn, connect: Connect) -> None:
    seen: asyncio.Queue[Struct] = asyncio.Queue()

    def before(connection: Connection) -> None:
        connection.on_notification = seen.put_nowait

    await connect(before)
    (listener,) = server.listeners
    assert listener.transport is not None
    for _ in range(2):
        data = codec.encode_frame(InvalidateAll("in pieces"))
        listener.transport.send(WSMsgType.BINARY, data[:5], fin=False)
        listener.transport.send(WSMsgType.CONTINUATION, data[5:9], fin=False)
        listener.transport.send(WSMsgType.CONTINUATION, data[9:])
        assert await seen.get() == InvalidateAll("in pieces")


async def test_a_goodbye_of_the_server_is_a_loss_like_others(server: StandIn, connect: Connect) -> None:
    connection = await connect()
    server.say(Bye("stopping"))
    await server.until(lambda: len(server.hellos) == 2)
    await connection.call(_removal())
    assert "stopping" in connection.status()["last_error"]


# --- refusals -----------------------------------------------------------------------------------------


def _http(code: int, body: str = "", **headers: str) -> Callable[[Any], bool]:
    def answer(handler: Any) -> bool:
        handler.set_status(code)
        for name, value in headers.items():
            handler.set_header(name.replace("_", "-"), value)
        handler.finish(body)
        return True

    return answer


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (_http(401), RefusedError, "the server refused the token; pass a valid one with --token-file"),
        (_http(403, '{"message": "not for you"}'), RefusedError, r"refused the token \(not for you\); pass"),
        (_http(404), TransportError, "no jupyter-wsfuse extension: `pip install jupyter-wsfuse`"),
        (_http(405), TransportError, "no jupyter-wsfuse extension"),
        (_http(424, '{"message": "ann is away"}'), TransportError, "ann is away.*start it from JupyterHub"),
        (
            _http(503, '{"message": "no engine"}', Retry_After="7"),
            TransportError,
            "available now: HTTP 503 .no engine",
        ),
        (_http(500, "<html>"), TransportError, "HTTP 500 Internal Server Error$"),
        (
            _http(302, Location="/hub/login?next=x"),
            RefusedError,
            "login page .*/hub/login: pass a valid token",
        ),
        (_http(302, Location="/hub/api/oauth2/authorize"), RefusedError, "login page"),
        (_http(302, Location="/hub/spawn"), TransportError, "does not run; start it"),
        (
            _http(301, Location="https://elsewhere/user/ann/"),
            TransportError,
            "redirects to https://elsewhere/user/ann/",
        ),
        (_http(200, "<html>Welcome"), TransportError, "not as a Jupyter server with jupyter-wsfuse does"),
        (_http(200, "[]"), TransportError, "not as a Jupyter server"),
        (
            _http(200, json.dumps({"ticket": "t", "version": "9.9", "protocol": 2})),
            RefusedError,
            "has jupyter-wsfuse 9.9 with protocol 2, this side speaks 1",
        ),
    ],
)
async def test_an_http_answer_is_put_in_words(
    server: StandIn, connect: Connect, answer: Callable[[Any], bool], error: type[Exception], said: str
) -> None:
    server.http = answer
    with pytest.raises(error, match=said) as caught:
        await connect()
    assert TOKEN not in str(caught.value)


async def test_a_wrong_and_a_missing_token(server: StandIn) -> None:
    for token, said in (("wrong", "refused the token"), ("", "wants a token")):
        with pytest.raises(RefusedError, match=said) as caught:
            await Connection(Server(server.url, token)).open()
        assert caught.value.code == "token"


async def test_a_server_without_tokens(server: StandIn) -> None:
    server.token = ""
    connection = Connection(Server(server.url, ""), ConnectionOptions(**FAST))
    await connection.open()
    await connection.close()


@pytest.mark.parametrize("code", ["version", "busy", "ticket-forged", "workspace"])
async def test_a_refusal_by_the_engine_reaches_the_caller_of_open(
    server: StandIn, connect: Connect, code: str
) -> None:
    server.refuse = code
    with pytest.raises(RefusedError, match="refused") as caught:
        await connect()
    assert caught.value.code == code


async def test_forged_tickets_are_refused_by_the_engine(server: StandIn, connect: Connect) -> None:
    server.secret = b"another secret of sixteen bytes+"
    with pytest.raises(RefusedError) as caught:
        await connect()
    assert caught.value.code == "ticket-forged"


async def test_a_passing_refusal_does_not_end_a_mount(
    server: StandIn, link: TcpProxy, connect: Connect
) -> None:
    connection = await connect()
    for trouble in ("busy", "ticket-expired", "stopping"):
        server.refuse = trouble
        link.cut()
        await server.until(lambda: server.refuse is None)
        await connection.call(_removal())
    server.http = _http(503, Retry_After="1")
    link.cut()
    await server.until(lambda: not server.listeners)
    tickets = server.tickets
    waiting = asyncio.create_task(connection.call(_removal()))
    await server.until(lambda: server.tickets >= tickets + 3)
    server.http = None
    await waiting


@pytest.mark.parametrize("trouble", ["token", "version"])
async def test_a_lasting_refusal_ends_it(
    server: StandIn, link: TcpProxy, connect: Connect, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = server.answer = Gate()
    connection = await connect()
    waiting = asyncio.create_task(connection.call(_removal()))
    await server.until(lambda: len(server.requests) == 1)
    if trouble == "token":
        server.token = "another"
    else:
        server.refuse = trouble
    link.cut()
    with pytest.raises(PermissionError):
        await waiting
    gate.open.set()
    status = connection.status()
    assert status["state"] == "failed"
    assert "refused" in status["last_error"]
    with pytest.raises(PermissionError, match="refused"):
        await connection.call(_removal())
    connection.post(Close(0, 1))
    assert "refused" in caplog.text


async def test_nobody_listens_at_the_url() -> None:
    async with StandIn() as server:
        url = server.url
    with pytest.raises(TransportError, match=r"connection refused\. Does the server run") as caught:
        await Connection(Server(url, TOKEN)).open()
    assert url in str(caught.value)


async def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(TransportError, match="name cannot be found"):
        await Connection(Server("http://nowhere.invalid/", TOKEN)).open()


async def test_something_that_is_no_web_server() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    other = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    try:
        with pytest.raises(TransportError, match="closed without an answer"):
            await Connection(Server(f"http://127.0.0.1:{port}/", TOKEN)).open()
    finally:
        other.close()


async def test_a_server_that_does_not_greet(server: StandIn, connect: Connect) -> None:
    server.greet = lambda _listener: True
    with pytest.raises(TransportError, match="did not greet in time"):
        await connect(welcome_timeout=0.05)


async def test_a_server_that_hangs_up_instead_of_greeting(server: StandIn, connect: Connect) -> None:
    def greet(listener: Any) -> bool:
        listener.transport.send_close(1013, "later")
        return True

    server.greet = greet
    with pytest.raises(TransportError, match=r"closed by the peer: later \(1013\)"):
        await connect()


# --- transports ---------------------------------------------------------------------------------------


async def test_auto_prefers_direct(server: StandIn, connect: Connect) -> None:
    connection = await connect(transport="auto")
    assert connection.status()["transport"] == "direct"
    assert server.channels == 0


async def test_auto_takes_the_relay_from_another_host(server: StandIn, connect: Connect) -> None:
    server.advertised_host = "another"
    connection = await connect(transport="auto")
    assert connection.status()["transport"] == "relay"
    await connection.call(_removal())
    assert server.hellos[-1].transport == "relay"


async def test_auto_takes_the_relay_if_the_port_does_not_answer(server: StandIn, connect: Connect) -> None:
    async with TcpProxy(server.port) as gone:
        server.advertised_port = gone.port
    connection = await connect(transport="auto")
    assert connection.status()["transport"] == "relay"


async def test_direct_says_why_it_is_not_possible(server: StandIn, connect: Connect) -> None:
    async with TcpProxy(server.port) as gone:
        server.advertised_port = gone.port
    with pytest.raises(TransportError, match="cannot be reached"):
        await connect(transport="direct")
    server.advertised_host = "another"
    with pytest.raises(TransportError, match="runs on another host"):
        await connect(transport="direct")


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (_http(403), RefusedError, "refused the token"),
        (_http(404), TransportError, "no jupyter-wsfuse extension"),
        (_http(503, Retry_After="x"), TransportError, "HTTP 503"),
        (_http(200, "hello"), TransportError, "does not pass WebSockets on"),
        (_http(302, Location="/hub/login"), RefusedError, "login page"),
    ],
)
async def test_what_stands_before_the_channel_is_put_in_words(
    server: StandIn, connect: Connect, answer: Callable[[Any], bool], error: type[Exception], said: str
) -> None:
    def only_channel(handler: Any) -> bool:
        return handler.request.path.endswith("channel") and answer(handler)

    server.http = only_channel
    with pytest.raises(error, match=said):
        await connect(transport="relay")


async def test_a_large_message_through_the_relay(server: StandIn, connect: Connect) -> None:
    async def answer(request: Request, payload: bytes) -> Reply | tuple[Reply, bytes]:
        if isinstance(request, Read):
            return DataReply(request.seq), bytes(1 << 20)
        return CountReply(request.seq, len(payload))

    server.answer = answer
    connection = await connect(transport="relay")
    replies = await asyncio.gather(
        *[connection.call(Write(0, 1, 0), bytes(1 << 20)) for _ in range(8)],
        *[connection.call(Read(0, 1, 0, 1 << 20)) for _ in range(8)],
    )
    assert [len(payload) for _, payload in replies] == [0] * 8 + [1 << 20] * 8


async def test_small_messages_are_not_held_back(server: StandIn, connect: Connect) -> None:
    """Nagle's algorithm is off at every end of the relay's connections."""
    connection = await connect(transport="relay")
    await connection.call(Access(0, Ref(b""), 4))
    ports = {server.http_port, server.port}
    delayed, seen = set(), set()
    for name in os.listdir("/proc/self/fd"):
        try:
            end = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # no socket, or the descriptor of the listing itself
        with end:
            try:
                near, far = end.getsockname(), end.getpeername()
            except OSError:
                continue
            if end.family == socket.AF_INET and ports & {near[1], far[1]}:
                seen.add(ports & {near[1], far[1]} == {server.port})
                if not end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY):
                    delayed.add((near[1] in ports, far[1] in ports))
    assert seen == {True, False}, "both the mount's connection and the engine's"
    assert not delayed


async def test_an_idle_relay_is_parked_and_comes_back(server: StandIn, connect: Connect) -> None:
    connection = await connect(transport="relay", park_after=0.05, heartbeat=0.01)
    await server.until(lambda: not server.listeners)
    assert connection.status()["state"] == "parked"
    await connection.call(_removal())
    assert connection.status()["state"] == "connected"
    assert len(server.sessions) == 1
    assert server.hellos[-1].session == connection.session_id
    await server.until(lambda: not server.listeners)
    connection.post(Close(0, 1))
    await server.until(lambda: type(server.requests[-1]) is Close)


async def test_what_a_client_says_of_itself(server: StandIn, connect: Connect) -> None:
    watched: list[bool] = []
    told = asyncio.Event()

    def before(connection: Connection) -> None:
        connection.on_watched = lambda on: (watched.append(on), told.set())  # type: ignore[func-returns-value]

    plain = await connect(before)
    report = Report("connected", "laptop", b"/mnt", 0, 1, 2, 3, 4, 5)
    assert not plain.report(report)  # this server did not say that it wants to know
    assert REPORTS not in server.hellos[-1].features
    server.features = [REPORTS]
    connection = await connect(before, reports=True)
    assert REPORTS in server.hellos[-1].features
    server.say(Watched(True))
    await told.wait()
    assert watched[-1] is True
    assert connection.report(report)
    session = server.sessions[connection.session_id]
    await server.until(lambda: session.report == report)
    server.silence()
    await server.until(lambda: not server.listeners)
    while watched[-1]:
        told.clear()
        await told.wait()
    await plain.close()
    assert not plain.report(report)


async def test_a_connection_that_is_parked_says_so(server: StandIn, connect: Connect) -> None:
    server.features = [REPORTS]
    report = Report("parked", "laptop", b"/mnt", 0, 1, 2, 3, 4, 5)

    def before(connection: Connection) -> None:
        connection.on_parking = lambda: connection.report(report)  # type: ignore[assignment,return-value]

    connection = await connect(before, transport="relay", park_after=0.05, heartbeat=0.01, reports=True)
    await server.until(lambda: not server.listeners)
    assert connection.status()["state"] == "parked"
    assert server.sessions[connection.session_id].report == report


async def test_neither_open_files_nor_the_direct_way_are_parked(server: StandIn, connect: Connect) -> None:
    def before(connection: Connection) -> None:
        connection.live_handles = lambda: [1]

    relay = await connect(before, transport="relay", park_after=0.01, heartbeat=0.01)
    direct = await connect(park_after=0.01, heartbeat=0.01)
    seen = server.messages
    await server.until(lambda: server.messages > seen + 10)
    assert {relay.status()["state"], direct.status()["state"]} == {"connected"}


# --- the end, and a successor -------------------------------------------------------------------------


async def test_close_says_goodbye_and_wakes_who_waits(server: StandIn, connect: Connect) -> None:
    server.answer = Gate()
    connection = await connect()
    waiting = asyncio.create_task(connection.call(_removal()))
    await server.until(lambda: len(server.requests) == 1)
    await connection.close()
    assert server.closed == ["unmounted"]
    with pytest.raises(OSError, match="unmounted") as caught:
        await waiting
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(OSError, match="closed") as caught:
        await connection.call(_removal())
    assert caught.value.errno == errno.ENOTCONN
    connection.post(Close(0, 1))
    assert connection.status()["state"] == "closed"
    await connection.close()


async def test_close_does_not_wait_for_a_peer_that_is_not_there(
    server: StandIn, link: TcpProxy, connect: Connect
) -> None:
    connection = await connect(close_timeout=0.05)
    link.down.stall()
    await connection.close()


async def test_close_while_reconnecting(server: StandIn, link: TcpProxy, connect: Connect) -> None:
    connection = await connect()
    state = _watch(connection)
    link.refuse()
    await state("reconnecting")
    await connection.close()
    assert connection.status()["state"] == "closed"


async def test_close_before_open(server: StandIn) -> None:
    connection = Connection(Server(server.url, TOKEN))
    with pytest.raises(OSError, match="closed"):
        await connection.call(_removal())
    await connection.close()
    assert connection.status()["state"] == "closed"


async def _die(connection: Connection) -> None:
    """What kill -9 leaves of a connection: a closed socket."""
    assert connection._keeper is not None
    connection._keeper.cancel()
    connection._drop()


async def test_a_successor_takes_the_session_over(server: StandIn, connect: Connect) -> None:
    """A daemon dies with a request answered that the kernel has not got; its successor is asked again."""
    first = await connect()
    await first.call(_removal(b"user.twice"), key=2)
    await first.call(_removal(b"user.done"), key=4)
    (session,) = server.sessions.values()
    await _die(first)
    second = await connect(session=first.session_id, epoch=first.epoch)
    second.mark_repeated(2)
    await second.call(_removal(b"user.twice"), key=2)
    assert [request.seq for request in server.requests] == [2, 4]  # not executed again
    second.done(2)
    second.forget_others()
    await second.call(_question())
    assert session.remembered == 0


async def test_a_successor_may_start_before_the_server_can_be_reached(
    server: StandIn, link: TcpProxy
) -> None:
    link.refuse()
    connection = Connection(Server(server.url, TOKEN), ConnectionOptions(**FAST))
    connection.start()
    assert connection.status()["state"] == "reconnecting"
    waiting = asyncio.create_task(connection.call(_removal()))
    await server.until(lambda: server.tickets >= 2)
    link.refuse(False)
    await waiting
    assert connection.status()["state"] == "connected"
    await connection.close()


async def test_a_successor_of_a_lost_session_does_not_repeat(server: StandIn, connect: Connect) -> None:
    first = await connect()
    name, epoch = first.session_id, first.epoch
    await _die(first)
    server.sessions.clear()
    second = await connect(session=name, epoch=epoch)
    second.mark_repeated(2)
    with pytest.raises(OSError, match="unknown"):
        await second.call(_removal(), key=2)
    second.done(2)
    await second.call(_removal(), key=4)
    assert [request.seq for request in server.requests] == [4]


async def test_status_is_json_without_secrets(server: StandIn, connect: Connect) -> None:
    connection = await connect()
    shown = json.dumps(connection.status())
    assert TOKEN not in shown
    assert connection.session_id not in shown
    assert json.loads(shown)["url"] == server.url


async def test_nothing_is_logged_that_is_secret(
    server: StandIn, link: TcpProxy, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    connection = await connect()
    link.cut()
    await server.until(lambda: len(server.hellos) == 2)
    await connection.call(_removal())
    for hello in server.hellos:
        assert hello.ticket not in caplog.text
    assert TOKEN not in caplog.text
    assert connection.session_id not in caplog.text


async def test_waiting_for_locks_does_not_keep_others_waiting(server: StandIn, connect: Connect) -> None:
    """A window full of requests that wait for a lock does not keep the unlock from going."""
    gate = asyncio.Event()

    async def answer(request: Request, _payload: bytes) -> Reply:
        if isinstance(request, SetLock):
            if request.wait:
                await gate.wait()
            else:
                gate.set()
            return LockReply(request.seq)
        assert isinstance(request, MkDir)
        return AttrReply(request.seq, ATTR)

    server.window, server.answer = 2, answer
    connection = await connect()
    waiting = [asyncio.create_task(connection.call(_lock())) for _ in range(10)]
    await server.until(lambda: len(server.requests) == 2)
    await connection.call(MkDir(0, Ref(b""), b"d", 0o755))
    await connection.call(_lock(wait=False))
    await asyncio.gather(*waiting)

"""The extension's endpoints in a real Jupyter server, with a fake engine behind them."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.auth import Authorizer, User
from jupyter_server.auth.identity import IdentityProvider
from tornado.httpclient import HTTPClientError
from tornado.websocket import WebSocketClientConnection

from jupyter_wsfuse.extension import handlers, relay
from jupyter_wsfuse.host import host_id
from jupyter_wsfuse.protocol import messages
from jupyter_wsfuse.protocol.codec import MAX_MESSAGE

from .conftest import Running, Start

pytestmark = pytest.mark.jupyter


class Allowing(Authorizer):
    """Allows only what ``allowed`` holds for the resource wsfuse, and remembers what it was asked."""

    allowed: frozenset[str] = frozenset()

    def is_authorized(self, handler: Any, user: User, action: str, resource: str) -> bool:
        return resource != "wsfuse" or action in self.allowed


class AllowingRead(Allowing):
    allowed = frozenset({"read"})


class AllowingWriteOnly(Allowing):
    allowed = frozenset({"write"})


class AllowingAll(Allowing):
    allowed = frozenset({"read", "write", "execute"})


def _with(authorizer: type[Authorizer]) -> dict[str, Any]:
    return {"authorizer_class": authorizer}


async def _rights(server: Running) -> list[str]:
    """What a ticket from the server grants, as the engine sees it."""
    answer = json.loads((await server.ticket()).body)
    channel = await server.channel()
    await channel.write_message(f"ticket {answer['ticket']}".encode(), binary=True)
    said = await channel.read_message()
    assert said is not None
    rights: list[str] = json.loads(said)["rights"]
    return rights


async def _closed(channel: WebSocketClientConnection) -> tuple[int | None, str | None]:
    assert await channel.read_message() is None
    return channel.close_code, channel.close_reason


def test_the_subprotocol_is_the_protocols_own() -> None:
    assert relay.SUBPROTOCOL == messages.SUBPROTOCOL
    assert handlers.PROTOCOL == messages.PROTOCOL_VERSION


# --- tickets ------------------------------------------------------------------------------------------


async def test_a_ticket_and_what_comes_with_it(start: Start) -> None:
    server = await start()
    response = await server.ticket()
    assert response.code == 200
    assert response.headers["Cache-Control"] == "no-store"
    answer = json.loads(response.body)
    assert answer.pop("ticket")
    assert answer.pop("version")
    engine = await server.extension.supervisor.endpoint()
    assert answer == {
        "protocol": 1,
        "expires": 60.0,
        "engine": {"host": "127.0.0.1", "port": engine.port},
        "host_id": host_id(),
        "max_message": MAX_MESSAGE,
    }


async def test_each_ticket_is_another(start: Start) -> None:
    server = await start()
    one, two = [json.loads((await server.ticket()).body)["ticket"] for _ in range(2)]
    assert one != two


@pytest.mark.parametrize("token", ["wrong", ""])
async def test_without_the_token_there_is_nothing(start: Start, token: str) -> None:
    server = await start()
    assert (await server.ticket(token=token)).code == 403
    assert (await server.fetch("wsfuse/api/status", token=token)).code == 403
    with pytest.raises(HTTPClientError) as caught:
        await server.channel(token=token)
    assert caught.value.code == 403
    assert server.extension.supervisor.state == "stopped"  # and nothing was started


async def test_a_ticket_is_not_to_be_had_by_get(start: Start) -> None:
    server = await start()
    assert (await server.fetch("wsfuse/api/ticket")).code == 405


async def test_direct_connections_can_be_forbidden(start: Start) -> None:
    server = await start(WsFuse={"allow_direct": False, "ticket_lifetime": 7.0})
    answer = json.loads((await server.ticket()).body)
    assert answer["engine"] is None
    assert answer["expires"] == 7.0


async def test_full_rights_by_default(start: Start) -> None:
    assert await _rights(await start()) == ["read", "write"]


async def test_full_rights_by_an_authorizer(start: Start) -> None:
    assert await _rights(await start(ServerApp=_with(AllowingAll))) == ["read", "write"]


async def test_an_authorizer_that_allows_reading_makes_it_read_only(start: Start) -> None:
    assert await _rights(await start(ServerApp=_with(AllowingRead))) == ["read"]


async def test_a_read_only_workspace(start: Start) -> None:
    assert await _rights(await start(WsFuse={"read_only": True})) == ["read"]


@pytest.mark.parametrize("authorizer", [Allowing, AllowingWriteOnly])
async def test_an_authorizer_that_denies(start: Start, authorizer: type[Authorizer]) -> None:
    server = await start(ServerApp=_with(authorizer))
    response = await server.ticket()
    assert response.code == 403
    assert "not authorized" in json.loads(response.body)["message"]
    assert (await server.fetch("wsfuse/api/status")).code == 403
    with pytest.raises(HTTPClientError) as caught:
        await server.channel()
    assert caught.value.code == 403


async def test_an_engine_that_does_not_run_is_said_so(start: Start) -> None:
    server = await start("dies")
    for attempt in (
        server.ticket(),
        server.fetch("wsfuse/channel", headers={"Sec-WebSocket-Protocol": "wsfuse.v1"}),
    ):
        response = await attempt
        assert response.code == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert response.headers["Content-Type"].startswith("application/json")
        assert json.loads(response.body)["message"].startswith("the file engine does not run")
    status = json.loads((await server.fetch("wsfuse/api/status")).body)
    assert status["sessions"] == []
    assert status["engine"]["state"] in ("failed", "starting")
    assert "status 3" in status["engine"]["error"]


async def test_no_secret_is_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start()
    caplog.clear()  # the server itself announces its URL with its token
    ticket = json.loads((await server.ticket()).body)["ticket"]
    channel = await server.channel()
    await channel.write_message(f"ticket {ticket}".encode(), binary=True)
    await channel.read_message()
    channel.close()
    assert ticket not in caplog.text
    assert ticket.split(".")[1] not in caplog.text
    assert server.token not in caplog.text


# --- status -------------------------------------------------------------------------------------------


async def test_status(start: Start) -> None:
    server = await start()
    before = json.loads((await server.fetch("wsfuse/api/status")).body)
    assert before["engine"] == {"state": "stopped", "pid": None, "restarts": 0, "error": None}
    assert before["protocol"] == 1
    assert before["sessions"] == []
    await server.ticket()
    after = json.loads((await server.fetch("wsfuse/api/status")).body)
    assert after["engine"]["state"] == "running"
    assert [session["client"] for session in after["sessions"]] == ["test"]
    assert after["engine"]["uptime"] == 1.0
    assert after["tenants"]["default"]["slow"] == [{"path": "theirs"}]
    assert after["operations"] == {"Read": {"count": 1}}
    assert "tenants_file" not in after["engine"]


async def test_on_a_server_with_several_tenants_everybody_sees_his_own(start: Start, tmp_path: Path) -> None:
    class Ann(IdentityProvider):
        async def get_user(self, handler: Any) -> User | None:
            return None if await self._get_user(handler) is None else User("ann")

    class Ben(IdentityProvider):
        async def get_user(self, handler: Any) -> User | None:
            return None if await self._get_user(handler) is None else User("ben")

    tenants = tmp_path / "tenants.yaml"
    tenants.write_text("")
    server = await start(
        "broken", ServerApp={"identity_provider_class": Ann}, WsFuse={"tenants_file": str(tenants)}
    )
    await server.ticket()
    hers = json.loads((await server.fetch("wsfuse/api/status")).body)
    assert [session["principal"] for session in hers["sessions"]] == ["ann"]
    assert hers["tenants"] == {"default": {"sessions": 1}}  # without other people's paths
    assert hers["operations"] == {}
    assert "has an error" in hers["engine"]["tenants_file"]
    assert "line 5" not in json.dumps(hers)
    server.app.web_app.settings["identity_provider"] = Ben(parent=server.app, token=server.token)
    his = json.loads((await server.fetch("wsfuse/api/status")).body)
    assert (his["sessions"], his["tenants"]) == ([], {})


async def test_neither_looking_nor_connecting_is_activity_but_use_is(start: Start) -> None:
    server = await start("busy", WsFuse={"probe_interval": 0.05})
    settings = server.app.web_app.settings
    await server.fetch("wsfuse/api/status")
    assert "api_last_activity" not in settings
    assert "wsfuse_last_activity" not in settings
    noted = asyncio.Event()
    server.extension.supervisor._on_activity = lambda: (server.extension._note_activity(), noted.set())
    await server.ticket()
    assert "api_last_activity" not in settings
    await noted.wait()
    assert server.app.web_app.last_activity() == settings["wsfuse_last_activity"]


# --- the channel --------------------------------------------------------------------------------------


async def test_messages_pass_both_ways_unchanged(start: Start) -> None:
    channel = await (await start()).channel()
    assert channel.selected_subprotocol == "wsfuse.v1"
    for message in (b"\x00\xff", b"", bytes(range(256)) * 1000):
        await channel.write_message(message, binary=True)
        assert await channel.read_message() == message


async def test_the_largest_message_passes_and_a_larger_one_does_not(start: Start) -> None:
    channel = await (await start()).channel()
    largest = bytes(MAX_MESSAGE)
    await channel.write_message(largest, binary=True)
    assert await channel.read_message() == largest
    await channel.write_message(largest + b"x", binary=True)
    assert await channel.read_message() is None


@pytest.mark.parametrize("offered", [(), ("other.v1",)])
async def test_another_subprotocol_is_refused(start: Start, offered: tuple[str, ...]) -> None:
    server = await start()
    with pytest.raises(HTTPClientError) as caught:
        await server.channel(subprotocols=offered)
    assert caught.value.code == 400


async def test_a_page_of_another_site_is_refused(start: Start) -> None:
    server = await start()
    login = await server.fetch(f"?token={server.token}", token="")
    cookie = "; ".join(value.split(";")[0] for value in login.headers.get_list("Set-Cookie"))
    with pytest.raises(HTTPClientError) as caught:
        await server.channel(token="", Cookie=cookie, Origin="https://evil.example.org")
    assert caught.value.code == 403
    await server.channel(token="", Cookie=cookie, Origin=server.url.split("/a%40b")[0])


async def test_pings_by_the_servers_settings(start: Start) -> None:
    server = await start(ServerApp={"tornado_settings": {"ws_ping_interval": 20}})
    channel = await server.channel()
    pinged = asyncio.Event()
    channel.on_ping = lambda _data: pinged.set()  # type: ignore[method-assign]
    await pinged.wait()


async def test_text_is_refused(start: Start) -> None:
    channel = await (await start()).channel()
    await channel.write_message("text", binary=False)
    assert await _closed(channel) == (1003, "binary messages only")


async def test_the_engines_close_code_reaches_the_mount(start: Start) -> None:
    channel = await (await start()).channel()
    await channel.write_message(b"close 4321 so long", binary=True)
    assert await _closed(channel) == (4321, "so long")


class _Lines(logging.Handler):
    """The messages of a log, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put_nowait(record.getMessage())

    async def until(self, line: str) -> None:
        while await self.lines.get() != line:
            pass


async def test_the_mounts_last_words_and_close_code_reach_the_engine(start: Start) -> None:
    server = await start()
    log = _Lines()
    server.app.log.addHandler(log)
    channel = await server.channel()
    for _ in range(8):
        await channel.write_message(b"drop " + bytes(1 << 20), binary=True)
    await channel.write_message(b"say the last words", binary=True)
    channel.close(4000, "unmounted")
    await log.until("engine: said: the last words")
    await log.until("engine: closed by the peer: 4000 unmounted")
    server.app.log.removeHandler(log)


async def test_an_engine_that_dies_is_not_an_error_of_the_mount(start: Start) -> None:
    server = await start()
    channel = await server.channel()
    await channel.write_message(b"pid", binary=True)
    first = await channel.read_message()
    await channel.write_message(b"die", binary=True)
    assert await _closed(channel) == (1012, "the file engine has ended")
    supervisor = server.extension.supervisor
    await supervisor.until(lambda: supervisor.restarts == 1 and supervisor.state == "running")
    channel = await server.channel()
    await channel.write_message(b"pid", binary=True)
    assert await channel.read_message() not in (None, first)


async def test_an_engine_that_cannot_be_reached(start: Start) -> None:
    server = await start()
    engine = await server.extension.supervisor.endpoint()
    server.extension.supervisor._endpoint = type(engine)(port=1, pid=engine.pid, epoch=1)
    code, reason = await _closed(await server.channel())
    assert code == 1013
    assert reason is not None
    assert reason.startswith("the file engine cannot be reached")


async def test_a_mount_that_sends_more_than_the_engine_takes_is_held_back_and_then_closed(
    start: Start,
) -> None:
    server = await start(WsFuse={"relay_buffer": 1 << 20, "relay_stall_timeout": 1.0})
    channel = await server.channel()
    await channel.write_message(b"stall", binary=True)
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await channel.write_message(bytes(1 << 20), binary=True)
            sent += 1

    sending = asyncio.create_task(send())
    assert await _closed(channel) == (1013, "the file engine takes no more data")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert sent < 64  # what sockets hold, not what we would like to send


async def test_a_mount_that_does_not_read_is_closed(start: Start) -> None:
    server = await start(WsFuse={"relay_stall_timeout": 1.0})
    channel = await server.channel()
    await channel.write_message(b"flood 64", binary=True)
    # Nothing is read: the client's queue holds one message, and its socket's buffers fill.
    (running,) = [task for task in asyncio.all_tasks() if task.get_name() == "wsfuse-relay"]
    await asyncio.wait((running,))
    while await channel.read_message() is not None:
        pass
    assert channel.close_code in (1013, None)


def test_what_may_be_sent_in_a_close_frame() -> None:
    assert relay.sendable(None, 1001) == 1001
    assert relay.sendable(1005, 1001) == 1001
    assert relay.sendable(1006, 1012) == 1012
    assert [relay.sendable(code, 1) for code in (1000, 1009, 1014, 3000, 4999)] == [
        1000,
        1009,
        1014,
        3000,
        4999,
    ]
    assert relay.sendable(5000, 1001) == 1001

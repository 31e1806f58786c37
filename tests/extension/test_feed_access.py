"""Who may see the feed and act, on a server in this process; and what becomes of its helper."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.auth import Authorizer, User
from jupyter_server.auth.identity import IdentityProvider
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from jupyter_wsfuse.extension import feed as feed_module
from jupyter_wsfuse.extension import steward as steward_module
from jupyter_wsfuse.extension.steward import Steward, StewardError
from jupyter_wsfuse.mount import registry
from jupyter_wsfuse.protocol import messages as m
from tests.helpers import live
from tests.helpers.rawclient import RawClient, disconnect_all
from tests.helpers.waiting import eventually_async

from .conftest import Running, Start

pytestmark = pytest.mark.jupyter


class Allowing(Authorizer):
    allowed: frozenset[str] = frozenset()

    def is_authorized(self, handler: Any, user: User, action: str, resource: str) -> bool:
        return resource != "wsfuse" or action in self.allowed


class Reading(Allowing):
    allowed = frozenset({"read"})


class Ann(IdentityProvider):
    """A server that knows its users: by the header, for the test."""

    async def get_user(self, handler: Any) -> User | None:
        if await self._get_user(handler) is None:
            return None
        return User(handler.request.headers.get("X-Test-User", "ann"))


Open = Callable[..., Awaitable["Page"]]


class Page:
    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection

    def say(self, **message: Any) -> None:
        self.connection.write_message(json.dumps(message))

    async def next(self, kind: str) -> dict[str, Any]:
        """The next message of that kind."""
        async with asyncio.timeout(30):
            while True:
                text = await self.connection.read_message()
                assert text is not None, (
                    f"closed with {self.connection.close_code} {self.connection.close_reason}"
                )
                message: dict[str, Any] = json.loads(text)
                if message["type"] == kind:
                    return message

    async def closed(self) -> int | None:
        async with asyncio.timeout(30):
            while await self.connection.read_message() is not None:
                pass
        return self.connection.close_code

    async def state(self, *views: str) -> dict[str, Any]:
        """What is shown first."""
        self.say(type="watch", views=list(views))
        state: dict[str, Any] = (await self.next("state"))["state"]
        return state


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """A function that opens a page on a server; all are closed in the end."""
    pages: list[Page] = []

    async def open(server: Running, *, token: str | None = None, greet: bool = True, **headers: str) -> Page:
        token = server.token if token is None else token
        given = {"Authorization": f"token {token}"} if token else {}
        request = HTTPRequest(
            f"ws{server.url.removeprefix('http')}wsfuse/feed",
            headers={**given, **{name.replace("_", "-"): value for name, value in headers.items()}},
        )
        page = Page(await websocket_connect(request))
        pages.append(page)
        if greet:
            page.say(type="hello", feed=[1], version="0.1.0")
        return page

    yield open
    for page in pages:
        stream = None if page.connection.protocol is None else page.connection.protocol.stream
        page.connection.close()
        if stream is not None:
            stream.close()


async def refused(opening: Awaitable[Any]) -> int:
    with pytest.raises(HTTPClientError) as caught:
        await opening
    return int(caught.value.code)


async def test_strangers_see_nothing(start: Start, opened: Open) -> None:
    server = await start("real")
    assert await refused(opened(server, token="")) == 403
    assert await refused(opened(server, token="wrong")) == 403
    login = await server.fetch(
        "api/status"
    )  # from then on a browser has a cookie, which it sends from any page
    cookie = "; ".join(one.partition(";")[0] for one in login.headers.get_list("Set-Cookie"))
    await (await opened(server, token="", Cookie=cookie)).next("hello")
    assert await refused(opened(server, token="", Cookie=cookie, Origin="https://evil.example")) == 403
    acting = {"method": "POST", "body": "{}", "token": "", "headers": {"Cookie": cookie}}
    found = await server.fetch("wsfuse/api/profile/reset", **acting)
    assert (found.code, b"_xsrf" in found.body) == (403, True)
    made = await server.fetch("wsfuse/api/tokens", method="POST", body="{}")
    assert await refused(opened(server, token=json.loads(made.body)["token"])) == 403
    await (await opened(server)).next("hello")


async def test_who_has_no_right_sees_nothing(start: Start, opened: Open) -> None:
    server = await start("real", ServerApp={"authorizer_class": Allowing})
    assert await refused(opened(server)) == 403
    assert (await server.fetch("wsfuse/api/mounts", method="POST", body="{}")).code == 403


async def test_who_may_only_look(start: Start, opened: Open) -> None:
    server = await start("real", ServerApp={"authorizer_class": Reading, "identity_provider_class": Ann})
    page = await opened(server)
    assert (await page.next("hello"))["may"] == {"act": False, "audit": False}
    state = await page.state("mounts", "audit")
    assert state.keys() == {"engine", "mounts"}  # the log is about other people as well
    for method, name in (("POST", "mounts"), ("DELETE", "mounts/0123456789ab"), ("POST", "profile/reset")):
        body = "{}" if method == "POST" else None
        assert (await server.fetch(f"wsfuse/api/{name}", method=method, body=body)).code == 403
    for method, name in (("GET", "unsynced"), ("POST", "sync")):
        body = "{}" if method == "POST" else None
        found = await server.fetch(f"wsfuse/api/mounts/0123456789ab/{name}", method=method, body=body)
        assert found.code == 403


async def test_looking_is_no_activity_and_rests_with_the_last_page(start: Start, opened: Open) -> None:
    server = await start("real")
    collector = server.extension.collector
    before = server.app.web_app.last_activity()
    pages = [await opened(server) for _ in range(3)]
    for page in pages:
        await page.state("mounts", "profile", "limits", "audit")
    assert server.app.web_app.last_activity() == before
    first, second = pages[:2]
    first.connection.close()
    second.say(type="watch", views=[])
    looks = collector.looks
    await eventually_async(lambda: collector.looks > looks + 1)  # the third one looks on
    pages[2].connection.close()
    await eventually_async(lambda: collector._task is None)
    looks = collector.looks
    await asyncio.sleep(0.02)
    assert collector.looks == looks


async def test_a_page_that_does_not_greet(
    start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_HELLO_TIMEOUT", 0.05)
    server = await start("real")
    page = await opened(server, greet=False)
    assert await page.closed() == 1008


async def test_everybody_sees_what_is_his(start: Start, opened: Open, tmp_path: Path) -> None:
    for name in ("ann", "ben"):
        (tmp_path / name).mkdir()
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(
        json.dumps(
            {"tenants": {name: {"root": str(tmp_path / name), "users": [name]} for name in ("ann", "ben")}}
        )
    )
    server = await start(
        "real", ServerApp={"identity_provider_class": Ann}, WsFuse={"tenants_file": str(tenants)}
    )
    engine = await server.extension.supervisor.endpoint()
    ticket = server.extension.supervisor.ticket("ann", {"read", "write"})
    client = RawClient(client="laptop:/mnt")
    try:
        await client.open(f"ws://127.0.0.1:{engine.port}/", ticket)
        await client.call(m.MkDir, m.Ref(b""), b"secret", 0o755)
        hers, his = await opened(server), await opened(server, X_Test_User="ben")
        views = ("mounts", "profile", "limits")
        (row,) = (await hers.state(*views))["mounts"].values()
        assert (row["path"], row["tenant"]) == ("/mnt", "ann")
        seen = await his.state(*views)
        assert (seen["mounts"], seen["profile"], seen["limits"]) == ({}, {}, {})
        found = await server.fetch("wsfuse/api/profile/reset", method="POST", body='{"scope": "server"}')
        assert found.code == 403
        id = client.session.session[:16]
        for user, code in (("ben", 404), ("ann", 200)):
            found = await server.fetch(
                "wsfuse/api/profile/reset",
                method="POST",
                body=json.dumps({"scope": id}),
                headers={"X-Test-User": user},
            )
            assert found.code == code
    finally:
        await disconnect_all()


@pytest.fixture
def mountpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a server of the test may mount; whatever is there is taken down."""
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(run))
    path = tmp_path.resolve() / "m"
    yield path
    live.Mount(path, path, dict(os.environ), None).destroy()  # type: ignore[arg-type]
    assert registry.kernel_mount(str(path)) is None


@pytest.mark.mount
async def test_a_named_user_mounts_with_a_token_of_his_own_that_ends_with_the_mount(
    start: Start, mountpoint: Path
) -> None:
    server = await start("real", ServerApp={"identity_provider_class": Ann})

    async def tokens() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((await server.fetch("wsfuse/api/tokens")).body)["tokens"]
        return found

    said = await _mount(server, mountpoint)
    assert said["expires"] > 0
    [token] = await tokens()
    assert (token["state"], token["label"]) == ("valid", f"mounted by the panel on {mountpoint}"[:100])
    ended = await server.fetch(f"wsfuse/api/mounts/{said['id']}", method="DELETE", request_timeout=60)
    assert ended.code == 200, ended.body
    assert [one["state"] for one in await tokens()] == ["revoked"]
    mountpoint.mkdir(exist_ok=True)
    (mountpoint / "x").touch()  # a mount that fails leaves no token either
    body = json.dumps({"path": str(mountpoint)})
    assert (await server.fetch("wsfuse/api/mounts", method="POST", body=body)).code == 409
    assert [one["state"] for one in await tokens()] == ["revoked", "revoked"]


async def _mount(server: Running, path: Path, user: str = "ann") -> dict[str, Any]:
    made = await server.fetch(
        "wsfuse/api/mounts",
        method="POST",
        body=json.dumps({"path": str(path)}),
        headers={"X-Test-User": user},
        request_timeout=60,
    )
    assert made.code == 201, made.body
    said: dict[str, Any] = json.loads(made.body)
    return said


@pytest.mark.mount
async def test_the_owner_of_a_hubs_server_mounts_with_its_token(
    start: Start, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start("real", ServerApp={"identity_provider_class": Ann})
    monkeypatch.setenv("JUPYTERHUB_USER", "ann")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", server.token)
    for user, expires in (("ann", False), ("ben", True)):  # only hers is the Hub's
        said = await _mount(server, mountpoint, user)
        assert bool(said["expires"]) is expires
        ended = await server.fetch(f"wsfuse/api/mounts/{said['id']}", method="DELETE", request_timeout=60)
        assert ended.code == 200


# --- the helper ------------------------------------------------------------------------------------------------

_HELPER = """
import json, os, sys
for line in sys.stdin:
    said = json.loads(line)
    match said["op"]:
        case "die": os._exit(3)
        case "say": print(said["text"], flush=True)
        case "hang": pass
        case "fuse": print(json.dumps({"id": said["id"], "result": {"available": False, "reason": "no /dev/fuse", "advice": "modprobe fuse"}}), flush=True)
        case "mount": print(json.dumps({"id": said["id"], "error": {"kind": "fuse", "message": "no", "reason": "no /dev/fuse", "advice": "modprobe fuse"}}), flush=True)
        case "look": print(json.dumps({"id": said["id"], "result": []}), flush=True)
        case other: print(json.dumps({"id": said["id"], "error": {"kind": "failed", "message": other}}), flush=True)
"""  # noqa: E501 - a program of its own
_LOG = logging.getLogger("test.steward")


@pytest.fixture
async def helper() -> AsyncIterator[Steward]:
    steward = Steward(_LOG, command=(sys.executable, "-c", _HELPER))
    yield steward
    await steward.close()


async def test_a_machine_without_fuse(start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward_module, "STEWARD", (sys.executable, "-c", _HELPER))
    server = await start("real")
    page = await opened(server)
    assert (await page.next("hello"))["fuse"] == {
        "available": False, "reason": "no /dev/fuse", "advice": "modprobe fuse"
    }  # fmt: skip
    found = await server.fetch("wsfuse/api/mounts", method="POST", body='{"path": "/x"}')
    assert found.code == 501
    said = json.loads(found.body)
    assert (said["reason"], said["advice"]) == ("no /dev/fuse", "modprobe fuse")


async def test_a_helper_that_fails_is_left_alone_for_a_while(
    start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(steward_module, "STEWARD", (sys.executable, "-c", "pass"))
    server = await start("real")
    page = await opened(server)
    hello = await page.next("hello")
    assert not hello["fuse"]["available"]
    assert await page.state("mounts") == {
        "engine": {"state": "stopped", "restarts": 0, "error": ""},
        "mounts": {},
    }
    looks = server.extension.collector.looks
    await eventually_async(lambda: server.extension.collector.looks > looks + 2)
    said = [record for record in caplog.records if "cannot be looked at" in record.getMessage()]
    assert len(said) == 1
    for method, name, body in (
        ("DELETE", "mounts/0123456789ab", None),
        ("POST", "mounts/0123456789ab/sync", "{}"),
        ("GET", "mounts/0123456789ab/unsynced", None),
        ("POST", "profile/reset", '{"scope": "0123456789ab"}'),
    ):
        found = await server.fetch(f"wsfuse/api/{name}", method=method, body=body)
        assert (found.code, json.loads(found.body)["reason"]) == (503, "gone")
    found = await server.fetch("wsfuse/api/profile/reset", method="POST", body='{"scope": "server"}')
    assert (found.code, json.loads(found.body)["reason"]) == (503, "engine unavailable")
    found = await server.fetch("wsfuse/api/mounts/0123456789ab?force=maybe", method="DELETE")
    assert found.code == 400


async def test_a_page_that_takes_nothing_is_closed(
    start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck(self: Any, message: Any, binary: bool = False) -> None:
        await asyncio.Event().wait()

    server = await start("real")
    page = await opened(server)
    await page.next("hello")
    monkeypatch.setattr(feed_module, "_STALLED", 0.05)
    monkeypatch.setattr(feed_module.FeedHandler, "write_message", stuck)
    page.say(type="watch", views=["mounts"])
    assert await page.closed() == 1013


async def test_an_error_of_our_own_closes_the_page(
    start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start("real")
    page = await opened(server)
    await page.next("hello")
    monkeypatch.setattr(feed_module, "build", lambda *arguments: 1 / 0)
    page.say(type="watch", views=["mounts"])
    assert await page.closed() == 1011
    assert "could not be served" in caplog.text


async def test_a_helper_that_ends_is_started_again(helper: Steward) -> None:
    with pytest.raises(StewardError, match="something") as caught:
        await helper.request("something", 20)
    assert caught.value.kind == "failed"
    first = helper.pid
    with pytest.raises(StewardError) as caught:
        await helper.request("die", 20)
    assert caught.value.kind == "gone"
    assert await helper.request("look", 20) == []
    assert helper.pid != first


async def test_a_helper_that_does_not_answer_or_talks_nonsense(helper: Steward) -> None:
    with pytest.raises(StewardError, match="does not answer"):
        await helper.request("hang", 0.05)
    assert await helper.request("look", 20) == []
    with pytest.raises(StewardError, match="ended"):
        await helper.request("say", 20, text="nonsense")
    assert await helper.request("look", 20) == []


async def test_a_helper_rests_and_ends() -> None:
    steward = Steward(_LOG, command=(sys.executable, "-c", _HELPER), idle=0.05)
    assert await steward.request("look", 20) == []
    pid = steward.pid
    assert pid
    await eventually_async(lambda: not steward.pid and not live._alive(pid))
    waiting = asyncio.create_task(steward.request("hang", 20))
    await eventually_async(lambda: steward.pid)
    await steward.close()
    with pytest.raises(StewardError):
        await waiting
    with pytest.raises(StewardError, match="stopping"):
        await steward.request("look", 20)


async def test_a_helper_that_cannot_be_started() -> None:
    steward = Steward(_LOG, command=("/nonexistent/python",))
    with pytest.raises(StewardError, match="cannot be reached"):
        await steward.request("look", 20)
    await steward.close()


async def test_what_a_helper_complains_of_is_logged(
    helper: Steward, caplog: pytest.LogCaptureFixture
) -> None:
    steward = Steward(_LOG, command=(sys.executable, "-c", "import sys; print('oh no', file=sys.stderr)"))
    with pytest.raises(StewardError):
        await steward.request("look", 20)
    await steward.close()
    assert "oh no" in caplog.text

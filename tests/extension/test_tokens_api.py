"""Scoped tokens at a real Jupyter server: how they are made, what they open, and that they open nothing else."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from jupyter_server.auth import Authorizer, User
from jupyter_server.auth.identity import IdentityProvider
from tornado.httpclient import HTTPClientError, HTTPResponse

from jupyter_wsfuse.extension.base import EVENTS, TOKENS
from jupyter_wsfuse.extension.events import schema_id

from .conftest import Running, Start

pytestmark = pytest.mark.jupyter


class Reading(Authorizer):
    def is_authorized(self, handler: Any, user: User, action: str, resource: str) -> bool:
        return resource != "wsfuse" or action == "read"


class Nothing(Authorizer):
    def is_authorized(self, handler: Any, user: User, action: str, resource: str) -> bool:
        return resource != "wsfuse"


class HubUser(User):
    """As JupyterHub's single-user server makes them."""

    def __init__(self, model: dict[str, Any]) -> None:
        self.hub_user = model
        super().__init__(username=model["name"])


class Hub(IdentityProvider):
    """A server that knows its users by name; who it is stands in a header. A scoped token is not for its eyes."""

    async def get_user(self, handler: Any) -> User | None:
        authorization = handler.request.headers.get("Authorization", "")
        assert "wsfuse1_" not in authorization
        if await self._get_user(handler) is None:
            return None
        return HubUser(json.loads(handler.request.headers.get("X-User", '{"name": "ann"}')))


class Open(IdentityProvider):
    """A server without authentication."""

    async def get_user(self, handler: Any) -> User | None:
        return User("anybody")


async def call(
    server: Running, method: str, path: str = "tokens", body: Any = None, **options: Any
) -> HTTPResponse:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    if method == "POST" and data is None:
        data = b""
    response: HTTPResponse = await server.fetch(f"wsfuse/api/{path}", method=method, body=data, **options)
    return response


async def create(server: Running, token: str | None = None, **wish: Any) -> dict[str, Any]:
    response = await call(server, "POST", body=wish, token=token)
    assert response.code == 201, response.body
    assert response.headers["Cache-Control"] == "no-store"
    made: dict[str, Any] = json.loads(response.body)
    return made


async def claims(server: Running, token: str | None = None, **options: Any) -> dict[str, Any]:
    """What a ticket that is got with *token* says."""
    response = await server.ticket(token=token, **options)
    assert response.code == 200, response.body
    channel = await server.channel(token=token)
    await channel.write_message(f"ticket {json.loads(response.body)['ticket']}".encode(), binary=True)
    said = await channel.read_message()
    assert said is not None
    found: dict[str, Any] = json.loads(said)
    return found


def message(response: HTTPResponse) -> str:
    assert response.headers["Content-Type"].startswith("application/json")
    text: str = json.loads(response.body)["message"]
    return text


def told(server: Running, kind: str) -> list[dict[str, Any]]:
    """Listens to the server's events of a kind; what is heard is in the list."""
    heard: list[dict[str, Any]] = []

    async def listen(logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        heard.append(data)

    server.app.event_logger.add_listener(schema_id=schema_id(kind), listener=listen)
    return heard


async def test_a_tokens_life(start: Start) -> None:
    server = await start()
    heard = told(server, "token")
    made = await create(
        server, paths=["data/"], rights=["read"], expires=600, limits={"read": 100}, label="for ben"
    )
    assert made["token"].startswith("wsfuse1_")
    assert (made["paths"], made["rights"], made["limits"]) == (["data"], ["read"], {"read": 100})
    assert (made["creator"], made["tenant"], made["label"]) == ("", "default", "for ben")
    assert made["expires"] - made["created"] == 600
    assert (await claims(server))["token"] is None
    found = await claims(server, made["token"])
    assert (found["token"], found["rights"], found["tenant"]) == (made["id"], ["read"], "default")
    assert found["address"] == "127.0.0.1"
    (listed,) = json.loads((await call(server, "GET")).body)["tokens"]
    assert "token" not in listed
    assert listed["used"] is not None
    revoked = json.loads((await call(server, "DELETE", f"tokens/{made['id']}")).body)
    assert revoked == {"revoked": [made["id"]], "pending": None}
    status = await server.extension.supervisor.look()
    assert status["revoked"] == [made["id"]]  # the engine knows already
    refused = await server.ticket(token=made["token"])
    assert refused.code == 403
    assert message(refused).startswith("this token was revoked on ")
    assert json.loads(refused.body)["reason"] == "token revoked"
    assert [(event["action"], event["token"]) for event in heard] == [
        (action, made["id"]) for action in ("created", "used", "revoked")
    ]


async def test_a_token_opens_nothing_else(start: Start) -> None:
    server = await start()
    token = (await create(server))["token"]
    for path in ("wsfuse/api/status", "wsfuse/api/audit"):
        refused = await server.fetch(path, token=token)
        assert (refused.code, message(refused)) == (
            403,
            "a scoped token opens the workspace, and nothing else",
        )
    for path in ("api/contents", "api/kernels", "api/sessions", "api/me", "metrics", "files/x"):
        response = await server.fetch(path, token=token)
        assert response.code == 403 or "login" in response.headers["Location"], path
    for path in (f"wsfuse/api/ticket?token={token}", "wsfuse/api/ticket"):
        assert (await server.fetch(path, method="POST", body=b"{}", token="")).code == 403
    response = await server.ticket(token=token)
    assert response.headers.get_list("Set-Cookie") == []


async def test_a_token_counts_alone_even_where_nobody_needs_one(start: Start) -> None:
    server = await start(ServerApp={"identity_provider_class": Open, "disable_check_xsrf": True})
    assert (await claims(server, ""))["rights"] == ["read", "write"]
    token = (await create(server, token="", rights=["read"]))["token"]
    assert (await claims(server, token))["rights"] == ["read"]
    assert (await server.ticket(token=token + "x")).code == 403


@pytest.mark.parametrize("scheme", ["token", "Bearer"])
async def test_no_cookie_is_asked_for(start: Start, scheme: str) -> None:
    server = await start()
    token = (await create(server))["token"]
    headers = {"Authorization": f"{scheme} {token}", "Cookie": "_xsrf=x; username=y"}
    response = await server.fetch("wsfuse/api/ticket", method="POST", body=b"{}", token="", headers=headers)
    assert response.code == 200


async def test_tokens_that_are_refused(start: Start) -> None:
    server = await start()
    made = await create(server)
    store = server.app.web_app.settings[TOKENS]
    for bad, why, reason in (
        (made["token"][:-1], "this is no token of this server", "token malformed"),
        ("wsfuse1_", "this is no token of this server", "token malformed"),
    ):
        refused = await server.ticket(token=bad)
        assert (refused.code, json.loads(refused.body)["reason"]) == (403, reason)
        assert message(refused).startswith(why)
        with pytest.raises(HTTPClientError) as caught:
            await server.channel(token=bad)
        assert caught.value.code == 403
    store._clock = lambda: made["expires"]
    refused = await server.ticket(token=made["token"])
    assert json.loads(refused.body)["reason"] == "token expired"
    store._clock = lambda: made["created"]
    store._workspace = "another"
    refused = await server.ticket(token=made["token"])
    assert json.loads(refused.body)["reason"] == "token foreign"
    assert server.extension.supervisor.state == "stopped"  # nothing was started for any of them


async def test_never_more_than_the_creator_has(start: Start) -> None:
    server = await start(ServerApp={"authorizer_class": Reading})
    made = await create(server, rights=["read", "write"])
    assert made["rights"] == ["read"]
    assert (await claims(server, made["token"]))["rights"] == ["read"]


async def test_who_may_nothing_makes_no_tokens(start: Start) -> None:
    server = await start(ServerApp={"authorizer_class": Nothing})
    for response in (
        await call(server, "POST", body={}), await call(server, "GET"), await call(server, "DELETE"),
    ):  # fmt: skip
        assert response.code == 403
        assert "not authorized" in message(response)
    for method in ("GET", "POST", "DELETE"):
        assert (await call(server, method, token="wrong")).code == 403


async def test_a_token_loses_what_its_creator_loses(start: Start) -> None:
    server = await start()
    made = await create(server)
    server.app.web_app.settings["authorizer"] = Reading(parent=server.app)
    assert (await claims(server, made["token"]))["rights"] == ["read", "write"]
    await claims(server)  # the creator comes himself
    assert (await claims(server, made["token"]))["rights"] == ["read"]
    creator_without = server.app.web_app.settings[TOKENS]
    for entry in creator_without._tokens.values():
        entry.creator_rights = []
    refused = await server.ticket(token=made["token"])
    assert refused.code == 403
    assert "not authorized" in message(refused)


async def test_a_token_made_with_a_token(start: Start) -> None:
    server = await start()
    parent = await create(server, paths=["data", "b"], rights=["read"], expires=100, limits={"read": 5})
    child = await create(server, parent["token"], paths=["data/x", "c"], expires=500, limits={"read": 50})
    assert child["paths"] == ["data/x"]
    assert (child["rights"], child["expires"], child["limits"]) == (["read"], parent["expires"], {"read": 5})
    assert child["parents"] == [parent["id"]]
    other = await create(server)
    refused = await call(server, "POST", body={"paths": ["c"]}, token=parent["token"])
    assert (refused.code, message(refused)) == (
        400, "none of these paths is within what the token that you came with opens",
    )  # fmt: skip
    refused = await call(server, "POST", body={"tenant": "other"}, token=parent["token"])
    assert refused.code == 400
    seen = json.loads((await call(server, "GET", token=parent["token"])).body)["tokens"]
    assert {one["id"] for one in seen} == {parent["id"], child["id"]}
    assert (await call(server, "DELETE", f"tokens/{other['id']}", token=parent["token"])).code == 404
    await call(server, "DELETE", f"tokens/{parent['id']}")
    refused = await server.ticket(token=child["token"])
    assert message(refused).startswith("the token that this one was made with was revoked on ")
    ended = json.loads((await call(server, "DELETE", token=other["token"])).body)
    assert ended["revoked"] == [other["id"]]  # whoever has one may end it


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"paths": ["../x"]}, "the path '../x' must name something inside the workspace, without '..'"),
        ({"expires": 50_000}, "a token may be valid for 12 hours at most (WsFuse.token_max_lifetime)"),
        ({"tenant": 5}, "the body must be an object, and its tenant a text"),
        ([1], "the body must be an object, and its tenant a text"),
        ({"limits": {"x": 1}}, "limits may be"),
    ],
)
async def test_wishes_that_are_refused(start: Start, body: Any, complaint: str) -> None:
    server = await start(WsFuse={"token_max_lifetime": 43200.0})
    response = await call(server, "POST", body=body)
    assert response.code == 400
    assert message(response).startswith(complaint)


async def test_bodies_that_are_no_json(start: Start) -> None:
    server = await start()
    for path in ("tokens", "ticket"):
        assert (await call(server, "POST", path, body=b"{")).code == 400
    for body in ({"tenant": 5}, [1]):
        response = await call(server, "POST", "ticket", body=body)
        assert (response.code, message(response)) == (400, 'the body must be {} or {"tenant": name}')
    assert (await call(server, "POST", "ticket", body=b"")).code == 200


async def test_what_is_not_there_cannot_be_revoked(start: Start) -> None:
    server = await start()
    response = await call(server, "DELETE", "tokens/0123456789abcdef")
    assert response.code == 404
    assert "wsfuse token list" in message(response)
    assert json.loads((await call(server, "DELETE")).body) == {"revoked": [], "pending": None}


async def test_an_engine_that_cannot_be_told_is_said_so(start: Start) -> None:
    server = await start("unwilling", WsFuse={"probe_interval": 600.0})
    made = await create(server)
    await server.ticket()
    answer = json.loads((await call(server, "DELETE", f"tokens/{made['id']}")).body)
    assert answer == {"revoked": [made["id"]], "pending": "not today"}
    assert (await server.ticket(token=made["token"])).code == 403


async def test_a_broken_store_is_an_error_of_the_server(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start()
    made = await create(server)
    store = server.app.web_app.settings[TOKENS]
    store._file.write_bytes(b"rubbish")
    assert (await server.ticket()).code == 200  # who needs no token is not kept out
    for response in (
        await server.ticket(token=made["token"]), await call(server, "GET"), await call(server, "POST", body={}),
        await call(server, "DELETE"),
    ):  # fmt: skip
        assert response.code == 500
        assert json.loads(response.body)["reason"] == "token store"
    assert "tokens.json is damaged" in caplog.text


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        ({"groups": ["b", "a"]}, ["a", "b"]),
        ({"groups": None, "auth_state": {"groups": ["c"]}}, ["c"]),
        ({"groups": [1, "a"], "auth_state": None}, ["a"]),
        ({}, []),
        ({"auth_state": "x"}, []),
    ],
)
async def test_users_of_a_hub_have_names_and_groups(
    start: Start, model: dict[str, Any], groups: list[str]
) -> None:
    server = await start(ServerApp={"identity_provider_class": Hub})
    headers = {"X-User": json.dumps({"name": "ben", **model})}
    found = await claims(server, headers=headers)
    assert (found["principal"], found["groups"]) == ("ben", groups)
    made = json.loads((await call(server, "POST", body={}, headers=headers)).body)
    scoped = await claims(server, made["token"])
    assert (scoped["principal"], scoped["groups"]) == ("ben", groups)
    assert json.loads((await call(server, "GET")).body)["tokens"] == []  # ann's, who has none
    assert (await call(server, "DELETE", f"tokens/{made['id']}")).code == 404


async def test_groups_of_another_providers_user(start: Start) -> None:
    class Grouped(User):
        groups = ("x", "y")

    class Provider(IdentityProvider):
        async def get_user(self, handler: Any) -> User | None:
            return None if await self._get_user(handler) is None else Grouped("ann")

    found = await claims(await start(ServerApp={"identity_provider_class": Provider}))
    assert (found["principal"], found["groups"]) == ("ann", ["x", "y"])


async def test_several_tenants(start: Start, tmp_path: Any) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text("read by the engine\n")
    server = await start(ServerApp={"identity_provider_class": Hub}, WsFuse={"tenants_file": str(tenants)})
    assert (await claims(server))["tenant"] == ""
    response = await call(server, "POST", "ticket", body={"tenant": "team"})
    assert response.code == 200
    made = await create(server)
    assert made["tenant"] == "of-ann-"  # as the engine says, once and for all
    assert (await claims(server, made["token"]))["tenant"] == "of-ann-"
    other = await call(server, "POST", "ticket", body={"tenant": "team"}, token=made["token"])
    assert (other.code, json.loads(other.body)["reason"]) == (403, "token foreign")
    assert (await create(server, tenant="team"))["tenant"] == "team"
    refused = await call(server, "POST", body={"tenant": "secret"})
    assert (refused.code, message(refused)) == (400, "ann is no member of secret")


async def test_an_engine_that_does_not_run(start: Start, tmp_path: Any) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text("")
    server = await start("dies", WsFuse={"tenants_file": str(tenants)})
    response = await call(server, "POST", body={})
    assert response.code == 503
    assert int(response.headers["Retry-After"]) >= 1


async def test_names_too_long_for_a_ticket(start: Start) -> None:
    server = await start(ServerApp={"identity_provider_class": Hub})
    headers = {"X-User": json.dumps({"name": "ben", "groups": ["x" * 50_000]})}
    response = await server.ticket(headers=headers)
    assert (response.code, "too long" in message(response)) == (400, True)


async def test_no_token_is_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start()
    made = await create(server, paths=["private/place"])
    await claims(server, made["token"])
    await call(server, "DELETE")
    await server.ticket(token=made["token"])
    assert made["token"] not in caplog.text
    assert made["token"].rpartition(".")[2] not in caplog.text
    assert "private/place" not in caplog.text
    assert server.app.web_app.settings[EVENTS] is not None

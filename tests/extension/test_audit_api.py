"""The audit log through a real Jupyter server: who may read it, and that the command gets what the log has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.auth import Authorizer, User
from jupyter_server.auth.identity import IdentityProvider

from jupyter_wsfuse.client import audit_http
from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.errors import RefusedError, TransportError, WsFuseError
from jupyter_wsfuse.ui.cli import Code, main
from tests.helpers.auditing import Log, edit

from .conftest import Running, Start

pytestmark = pytest.mark.jupyter


class Allowing(Authorizer):
    allowed: frozenset[str] = frozenset()

    def is_authorized(self, handler: Any, user: User, action: str, resource: str) -> bool:
        return resource != "wsfuse" or action in self.allowed


class Reading(Allowing):
    allowed = frozenset({"read"})


class Everything(Allowing):
    allowed = frozenset({"read", "write", "execute"})


class Named(IdentityProvider):
    """A server that knows its users."""

    async def get_user(self, handler: Any) -> User | None:
        return None if await self._get_user(handler) is None else User("ann")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path / "audit")
    files = log.open()
    for number in range(700):
        files.append([log.entry("Create", f"data/{number}.csv")])
    name = "\udcff\n\u00e4"
    files.append(
        [log.entry("Unlink", name, principal="ben"), log.entry("Open", "x", success=False, rule="r")]
    )
    files.close()
    return log


@pytest.fixture
def serve(start: Start, log: Log) -> Callable[..., Any]:
    async def starter(**server: Any) -> Running:
        return await start(WsFuse={"audit_dir": str(log.directory)}, ServerApp=server)

    return starter


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


Serve = Callable[..., Any]


async def test_entries_are_streamed_newest_first(serve: Serve) -> None:
    server = await serve()
    response = await server.fetch("wsfuse/api/audit?limit=0")
    assert response.code == 200
    assert response.headers["Content-Type"].startswith("application/x-ndjson")
    assert response.headers["Cache-Control"] == "no-store"
    *entries, end = lines(response.body)
    assert end == {"end": True}
    assert [entry["operation"] for entry in entries[:3]] == ["stop", "Open", "Unlink"]
    assert [entry["path"] for entry in entries[3:-1]] == [
        f"data/{number}.csv" for number in reversed(range(700))
    ]
    assert entries[2]["path"] == "\udcff\n\u00e4"


async def test_filters(serve: Serve) -> None:
    server = await serve()
    for asked, count in (
        ("operation=Unlink", 1),
        ("path=data/1*.csv&limit=5", 5),
        ("denied=true", 1),
        ("success=false", 1),
        ("principal=ben", 1),
        ("tenant=u", 0),
        ("since=1h", 0),
        ("until=2023-11-01", 0),
        ("no_track_activity=1&limit=2", 2),
    ):
        assert len(lines((await server.fetch(f"wsfuse/api/audit?{asked}")).body)) == count + 1, asked
    for wrong in ("limit=-1", "since=soon", "who=me", "path=[z-a]", "denied=maybe"):
        response = await server.fetch(f"wsfuse/api/audit?{wrong}")
        assert response.code == 400, wrong
        assert json.loads(response.body)["message"]


async def test_nothing_recorded_yet(start: Start, tmp_path: Path) -> None:
    server = await start(WsFuse={"audit_dir": str(tmp_path / "none")})
    assert lines((await server.fetch("wsfuse/api/audit")).body) == [{"end": True}]
    assert json.loads((await server.fetch("wsfuse/api/audit/verify")).body) == {"proofs": []}


async def test_verified(serve: Serve, log: Log) -> None:
    server = await serve()
    (proof,) = json.loads((await server.fetch("wsfuse/api/audit/verify")).body)["proofs"]
    assert (proof["fault"], proof["tenant"], proof["entries"]) == (None, "t", 705)
    asked = f"wsfuse/api/audit/verify?expect={proof['hash']}&expect={'0' * 64}&tenant=t"
    (proof,) = json.loads((await server.fetch(asked)).body)["proofs"]
    assert proof["found"] == [proof["hash"], "0" * 64] or proof["found"] == ["0" * 64, proof["hash"]]
    edit(log.segment(1), lambda lines: [*lines[:9], *lines[10:]])
    (proof,) = json.loads((await server.fetch("wsfuse/api/audit/verify")).body)["proofs"]
    assert (proof["fault"]["file"], proof["fault"]["line"]) == ("00000001.jsonl", 10)


# --- who may ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["wsfuse/api/audit", "wsfuse/api/audit/verify"])
async def test_who_may_read_the_log(serve: Serve, path: str) -> None:
    server = await serve(authorizer_class=Reading)
    assert (await server.fetch(path)).code == 200
    assert (await server.fetch(path, token="")).code == 403
    assert (await server.fetch(path, token="wrong")).code == 403


@pytest.mark.parametrize(
    ("authorizer", "code"), [(Allowing, 403), (Reading, 403), (Everything, 200)], ids=lambda value: str(value)
)
async def test_on_a_server_of_several_users(serve: Serve, authorizer: type[Authorizer], code: int) -> None:
    server = await serve(authorizer_class=authorizer, identity_provider_class=Named)
    for path in ("wsfuse/api/audit", "wsfuse/api/audit/verify"):
        response = await server.fetch(path)
        assert response.code == code
        assert code == 200 or json.loads(response.body)["message"]


async def test_scoped_tokens_do_not_open_it(serve: Serve) -> None:
    server = await serve()
    for path in ("wsfuse/api/audit", "wsfuse/api/audit/verify"):
        response = await server.fetch(path, token="wsfuse1_anything")
        assert response.code == 403
        assert b"jsonl" not in response.body


# --- the command, asking the server ----------------------------------------------------------------------------


async def test_the_command(
    serve: Serve, log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await serve()
    monkeypatch.setenv("WSFUSE_TOKEN", server.token)
    monkeypatch.delenv("WSFUSE_URL", raising=False)

    async def run(*arguments: str) -> int:
        return await asyncio.to_thread(main, ["audit", arguments[0], server.url, *arguments[1:]])

    assert await run("query", "--operation", "Unlink") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "ben" in line
    assert "\\xff\\n\u00e4" in line
    assert await run("query", "--limit", "0", "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 704
    assert await run("tail", "-n", "3") == 0
    assert [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()] == ["ok", "failed", "ok"]
    assert await run("verify") == 0
    assert "705 entries" in capsys.readouterr().out
    assert await run("verify", "--expect", "f" * 64) == Code.FAILED
    monkeypatch.setenv("WSFUSE_TOKEN", "wrong")
    assert await run("query") == Code.SERVER


async def _answers(body: bytes) -> tuple[asyncio.Server, Server]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    return server, Server(f"http://127.0.0.1:{port}/", "t", ca_file="", proxy="")


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + b'{"time": "T"}\n', TransportError, "cut off"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n" + b'{"time": "T"}\n',
            TransportError,
            "answer",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", TransportError, "cannot be read"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"error": "no disk"}\n', WsFuseError, "no disk"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/login\r\n\r\n", RefusedError, "login"),
        (b"", TransportError, "closed"),
        (b"nonsense\r\n\r\n", TransportError, "http"),
    ],
)
async def test_answers_that_are_none(body: bytes, error: type[Exception], words: str) -> None:
    listening, server = await _answers(body)
    with pytest.raises(error, match=words):
        await asyncio.to_thread(lambda: list(audit_http.entries(server, {})))
    with pytest.raises(WsFuseError):
        await asyncio.to_thread(audit_http.proofs, server, "", ())
    listening.close()
    await listening.wait_closed()


def test_no_server() -> None:
    with pytest.raises(TransportError, match="refused"):
        list(audit_http.entries(Server("http://127.0.0.1:9/", "t", ca_file="", proxy=""), {}))

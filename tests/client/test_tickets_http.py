"""Asking a server over HTTP: what is sent, and what its answers mean. The rest is in test_connection."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.client.tickets_http import TicketClient, Unavailable, call, refusal
from jupyter_wsfuse.errors import RefusedError, TransportError, WsFuseError

GOOD = {"ticket": "t", "version": "1", "protocol": 1}


class Handler(http.server.BaseHTTPRequestHandler):
    answer: ClassVar[tuple[int, bytes, dict[str, str]]] = (200, b"", {})
    seen: ClassVar[list[Any]] = []

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, self.headers["Authorization"], body))
        code, data, headers = self.answer
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # it was too much for the client
            self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    Handler.seen = []
    yield Server(f"http://127.0.0.1:{httpd.server_address[1]}/base/", "secret", proxy="")
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize(("tenant", "body"), [("", {}), ("team", {"tenant": "team"})])
async def test_a_ticket_names_the_tenant_that_is_wanted(server: Server, tenant: str, body: Any) -> None:
    Handler.answer = (200, json.dumps(GOOD).encode(), {})
    client = TicketClient(server)
    assert (await client.ticket(tenant)).ticket == "t"
    client.close()
    ((method, path, authorization, sent),) = Handler.seen
    assert (method, path, authorization) == ("POST", "/base/wsfuse/api/ticket", "token secret")
    assert json.loads(sent) == body


@pytest.mark.parametrize(
    ("method", "body", "sent"), [("GET", None, b""), ("DELETE", None, b""), ("POST", {"a": 1}, b'{"a": 1}')]
)
def test_a_call(server: Server, method: str, body: Any, sent: bytes) -> None:
    Handler.answer = (201, b'{"b": [2]}', {})
    assert call(server, method, "x/y", body) == {"b": [2]}
    assert Handler.seen == [(method, "/base/wsfuse/api/x/y", "token secret", sent)]


async def test_a_call_while_a_loop_runs_as_in_a_notebook(server: Server) -> None:
    Handler.answer = (200, b"[]", {})
    assert call(server, "GET", "x") == []


def test_an_answer_that_is_no_json(server: Server) -> None:
    Handler.answer = (200, b"<html>", {})
    with pytest.raises(TransportError, match=r"not in JSON\. Is something else at that URL"):
        call(server, "GET", "x")


def test_a_long_list(server: Server) -> None:
    Handler.answer = (200, json.dumps(["x" * (3 << 20)]).encode(), {})
    assert len(call(server, "GET", "x")[0]) == 3 << 20


def test_an_answer_that_is_too_large(server: Server) -> None:
    Handler.answer = (200, b"[" + b" " * (16 << 20) + b"]", {})
    with pytest.raises(
        TransportError, match=r"the answer is too large: 16777218 bytes, and more than 16 MiB"
    ):
        call(server, "GET", "x")


async def test_a_ticket_that_is_too_large(server: Server) -> None:
    Handler.answer = (200, b" " * (1 << 20) + b" ", {})
    client = TicketClient(server)
    with pytest.raises(TransportError, match=r"the answer is too large: 1048577 bytes, and more than 1 MiB"):
        await client.ticket()
    client.close()


def test_an_answer_that_breaks_off(server: Server) -> None:
    Handler.answer = (200, b"no size\r\n", {"Transfer-Encoding": "chunked"})
    with pytest.raises(
        TransportError, match=r"the answer broke off, took too long, or is larger than the 16 MiB"
    ):
        call(server, "GET", "x")


@pytest.mark.parametrize("code", [404, 405])
def test_an_extension_that_is_missing_or_did_not_load(code: int) -> None:
    said = str(refusal(Server("http://h/", "secret"), code))
    assert "`pip install jupyter-wsfuse`" in said
    assert "failed to load because of a mistake in its options: the server's log tells" in said


@pytest.mark.parametrize("code", [400, 403, 404, 500])
def test_our_own_words_are_told_as_they_are(server: Server, code: int) -> None:
    Handler.answer = (code, b'{"message": "this is why"}', {"X-Wsfuse": "1"})
    with pytest.raises(WsFuseError) as caught:
        call(server, "GET", "x")
    assert str(caught.value) == f"{server.url}: this is why"
    assert isinstance(caught.value, RefusedError) == (code == 403)


def test_our_engine_that_is_away_may_come_back(server: Server) -> None:
    Handler.answer = (503, b'{"message": "it restarts"}', {"X-Wsfuse": "1", "Retry-After": "7"})
    with pytest.raises(Unavailable, match="it restarts") as caught:
        call(server, "GET", "x")
    assert caught.value.retry_after == 7.0


def test_words_of_others_are_not_taken_for_ours() -> None:
    found = refusal(Server("http://h/", "secret"), 403, message="no entry")
    assert "the server refused the token (no entry); pass a valid one" in str(found)
    assert isinstance(refusal(Server("http://h/", ""), 500, message="x"), TransportError)

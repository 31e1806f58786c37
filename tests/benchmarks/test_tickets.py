"""Tickets that lead through another port."""

from __future__ import annotations

import json

import pytest

from benchmarks.tickets import TicketRewriter

TICKET = {"ticket": "abc", "engine": {"host": "127.0.0.1", "port": 40123}, "expires": 30}


def response(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nServer: x\r\n\r\n"
    return head.encode() + body


def through(*pieces: bytes) -> tuple[bytes, list[int]]:
    """What comes out in the end, and the ports that were found."""
    found: list[int] = []
    rewriter = TicketRewriter(7, found.append)
    return b"".join(map(rewriter.feed, pieces)) + rewriter.rest(), found


def is_changed(answer: bytes) -> bool:
    """A whole response with a ticket that names the other port, and with a length that is right."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
    return bool(json.loads(body) == TICKET | {"engine": {"host": "127.0.0.1", "port": 7}})


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
def test_a_ticket_that_comes_in_pieces(size: int) -> None:
    answer = response(json.dumps(TICKET).encode())
    out, found = through(*(answer[at : at + size] for at in range(0, len(answer), size)))
    assert found == [40123]
    assert is_changed(out)


def test_nothing_of_a_ticket_goes_on_before_all_is_there() -> None:
    answer = response(json.dumps(TICKET).encode())
    rewriter = TicketRewriter(7, lambda port: None)
    assert rewriter.feed(answer[:-1]) == b""
    assert is_changed(rewriter.feed(answer[-1:]))


def test_the_ticket_behind_other_answers_and_before_a_websocket() -> None:
    other = (
        response(b"x" * 200_000, "text/html") + response(b'{"a": 1}') + response(b"", status="204 No Content")
    )
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    frames = b"\x82\x7e" + response(json.dumps(TICKET).encode())  # what looks like a ticket there is none
    out, found = through(other + response(json.dumps(TICKET).encode()) + upgrade, frames)
    assert out.startswith(other)
    assert out.endswith(upgrade + frames)
    assert is_changed(out[len(other) : -len(upgrade + frames)])
    assert found == [40123]


@pytest.mark.parametrize(
    "answer",
    [
        response(b'{"ticket": "abc", "engine": null}'),
        response(b'["ticket"]'),
        response(b"no json"),
        response(b"{" + b" " * 100_000 + b"}"),
        response(json.dumps(TICKET).encode(), "text/plain"),
        response(b"", status="304 Not Modified"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nTruncated",
        b"\0" * 100_000,
    ],
)
def test_everything_else_passes_as_it_is(answer: bytes) -> None:
    assert through(answer) == (answer, [])
    assert through(answer[:5], answer[5:40], answer[40:]) == (answer, [])

"""Sends whoever asks for the file engine's port through another one.

The direct transport goes around the relay that stands for distance: it asks the Jupyter server for a ticket, and
connects to the port that the ticket names. So the ticket is changed on its way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

#: A ticket is much smaller; what is larger passes as it is.
_LARGEST: Final = 64 << 10
_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"(?i)(\r\nContent-Length:[ \t]*)([0-9]+)(?=\r\n)")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")


class TicketRewriter:
    """What a server sends on one connection, with the engine's port in tickets replaced by *port*.

    *found* is told the engine's own port. Responses of a known length are followed one after the other; from the first
    one that is something else (a WebSocket, a stream), everything passes as it is.
    """

    def __init__(self, port: int, found: Callable[[int], None]) -> None:
        self._port = port
        self._found = found
        self._pending = b""
        self._body = 0  # bytes of a response's body that still pass as they are
        self._opaque = False

    def feed(self, data: bytes) -> bytes:
        """What goes on now; a response that may hold a ticket is kept until all of it is there."""
        if self._opaque:
            return data
        self._pending += data
        out = b""
        while self._pending and (piece := self._next()):
            out += piece
        return out

    def rest(self) -> bytes:
        """What was kept when the connection ended."""
        out, self._pending = self._pending, b""
        return out

    def _next(self) -> bytes:
        """Take from what is pending what may pass: of a body, a head, or a whole response that was looked at. Empty:
        more must come first."""
        if self._body:
            piece, self._pending = self._pending[: self._body], self._pending[self._body :]
            self._body -= len(piece)
            return piece
        head, end, after = self._pending.partition(_END)
        status, length = _STATUS.match(head), _LENGTH.search(head + b"\r\n")
        if not end and b"HTTP/1".startswith(head[:6]) and len(head) < _LARGEST:
            return b""
        empty = status is not None and status[1] in (b"204", b"304")
        if not end or status is None or status[1] == b"101" or not (length or empty):
            self._opaque = True
            return self.rest()
        size = int(length[2]) if length and not empty else 0
        if size > _LARGEST or b"application/json" not in head.lower():
            self._pending, self._body = after, size
            return head + end
        if len(after) < size:
            return b""
        self._pending = after[size:]
        body = self._ticket(after[:size])
        return _LENGTH.sub(rb"\g<1>%d" % len(body), head + b"\r\n").removesuffix(b"\r\n") + end + body

    def _ticket(self, body: bytes) -> bytes:
        try:
            ticket = json.loads(body)
        except ValueError:
            return body
        engine = ticket.get("engine") if isinstance(ticket, dict) and "ticket" in ticket else None
        if not engine or not engine.get("port"):
            return body
        self._found(int(engine["port"]))
        return json.dumps({**ticket, "engine": {**engine, "port": self._port}}).encode()

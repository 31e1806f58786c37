"""A WebSocket client that sends what it is told, byte for byte."""

from __future__ import annotations

import os
import socket
import struct

from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: wsfuse.v1\r\n\r\n"
)
BINARY, CLOSE = 2, 8


class Socket:
    """One connection. Everything that takes longer than *patience* seconds is a failure."""

    def __init__(self, port: int, patience: float = 30) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=patience)
        self._received = b""

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Raw bytes; False if the other side has closed already."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def handshake(self) -> None:
        self.send(HANDSHAKE)
        while b"\r\n\r\n" not in self._received:
            assert self._more(), "closed within the handshake"
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head

    def message(self, data: bytes) -> bool:
        """One binary message."""
        return self.send(frame(data))

    def receive(self) -> bytes | None:
        """The next binary message; None when the other side closes."""
        while True:
            taken = self._take()
            if taken is None:
                if not self._more():
                    return None
                continue
            kind, data = taken
            if kind == CLOSE:
                return None
            if kind == BINARY:
                return data

    def finish(self) -> None:
        """Say nothing more, and wait until the other side has closed."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        while self._more():
            self._received = b""

    def greet(self, ticket: str) -> m.Welcome:
        """Hello and Welcome."""
        self.handshake()
        self.message(codec.encode_frame(m.Hello([1], ticket, features=[m.LEASES, m.REPORTS])))
        data = self.receive()
        assert data is not None
        welcome = codec.decode(data)[0][0]
        assert isinstance(welcome, m.Welcome)
        return welcome

    def ask(self, request: m.Request, payload: bytes = b"") -> m.Reply | None:
        """The answer to *request*; None if the connection was closed instead."""
        self.message(codec.encode_frame(request, payload))
        return self.replies({request.seq}).get(request.seq)

    def replies(self, seqs: set[int]) -> dict[int, m.Reply]:
        """The answers to *seqs*; fewer only if the connection was closed."""
        found: dict[int, m.Reply] = {}
        while seqs - set(found):
            try:
                data = self.receive()
            except TimeoutError:
                raise AssertionError(f"no answer to {sorted(seqs - set(found))}") from None
            if data is None:
                break
            for message, _ in codec.decode(data):
                if isinstance(message, m.Reply):
                    found[message.seq] = message
        return found

    def _more(self) -> bool:
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        self._received += data
        return bool(data)

    def _take(self) -> tuple[int, bytes] | None:
        data = self._received
        if len(data) < 2:
            return None
        size, at = data[1] & 0x7F, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(data) < 2 + width:
                return None
            size, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
        if len(data) < at + size:
            return None
        self._received = data[at + size :]
        return data[0] & 0x0F, data[at : at + size]


def frame(data: bytes, *, kind: int = BINARY, fin: bool = True) -> bytes:
    """A masked WebSocket frame."""
    head = bytes([(0x80 if fin else 0) | kind])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 1 << 16:
        head += bytes([0xFE]) + struct.pack(">H", len(data))
    else:
        head += bytes([0xFF]) + struct.pack(">Q", len(data))
    mask = os.urandom(4)
    repeated = mask * (len(data) // 4 + 1)
    masked = int.from_bytes(data, "little") ^ int.from_bytes(repeated[: len(data)], "little")
    return head + mask + masked.to_bytes(len(data), "little")

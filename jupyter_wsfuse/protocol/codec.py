"""Frames to bytes and back, in batches, without trusting a length.

One WebSocket message carries one or more frames, one after another with nothing between::

    u32le header length | u32le payload length | header (msgpack) | payload (raw bytes)

The header is one struct of :mod:`.messages`. Only the types of ``messages.WITH_PAYLOAD`` may have a
payload. Every limit holds in both directions: passing one of ours is a :class:`LocalProtocolError`, the
peer passing it a :class:`LimitExceededError`. A message is taken whole or not at all, and what it costs
to refuse one is bounded by its own size.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct as Layout
from typing import Any, Final, Union

import msgspec

from ..errors import LimitExceededError, LocalProtocolError, RemoteProtocolError
from . import messages
from .messages import Struct

#: Bytes of one frame's header. A directory page is the largest in practice.
MAX_HEADER: Final = 1 << 20
#: ... and of what a client says after its Hello. The largest is an extended attribute (64 KiB) with its path.
MAX_REQUEST_HEADER: Final = 1 << 17
#: Bytes of one frame's payload: the most a FUSE kernel reads or writes at a time (256 pages of 4 KiB), and
#: room for a page more, because an unaligned request of that size touches 257.
DEFAULT_MAX_PAYLOAD: Final = (1 << 20) + (1 << 12)
#: Frames of one message: what a peer can make us decode before anything else gets its turn.
MAX_FRAMES: Final = 4096
#: Bytes after which the encoder starts another message; a larger frame has a message of its own.
BATCH: Final = 1 << 20
#: Bytes of one message: the largest frame, and a batch more for what is put in front of it.
MAX_MESSAGE: Final = 4 << 20

#: Bytes of the longest WebSocket header (RFC 6455, section 5.2).
HEADROOM: Final = 14

Buffer = bytes | bytearray | memoryview

_PREFIX: Final = Layout("<II")
_WITH_PAYLOAD: Final = frozenset(messages.WITH_PAYLOAD)
_encode_header: Final = msgspec.msgpack.Encoder().encode
_TEXT: Final = 200  # characters of a decoder's complaint that are passed on: it may quote the peer

#: What an engine accepts (after the Hello that opens a connection), and what a client accepts.
FROM_CLIENT: Final[tuple[type[Struct], ...]] = (
    *messages.REQUESTS, messages.Ack, messages.Ping, messages.Pong, messages.Bye, messages.Cancel,
    messages.Report,
)  # fmt: skip
FROM_ENGINE: Final[tuple[type[Struct], ...]] = (
    *messages.REPLIES, messages.Welcome, messages.Refused, messages.Ping, messages.Pong, messages.Bye,
    messages.Changed, messages.InvalidateAll, messages.Released, messages.Watched,
)  # fmt: skip


def encode_head(
    message: Struct,
    payload_length: int = 0,
    *,
    max_header: int = MAX_HEADER,
    max_payload: int = DEFAULT_MAX_PAYLOAD,
) -> bytes:
    """Everything of a frame but its payload, which has to follow.

    Raises :class:`LocalProtocolError` for a message that the peer would refuse.
    """
    header = _encode_header(message)
    if payload_length:
        if type(message) not in _WITH_PAYLOAD:
            raise LocalProtocolError(f"{type(message).__name__} takes no payload")
        if payload_length > max_payload:
            raise LocalProtocolError(f"payload of {payload_length} bytes; the limit is {max_payload}")
    if len(header) > max_header:
        raise LocalProtocolError(f"header of {len(header)} bytes; the limit is {max_header}")
    return _PREFIX.pack(len(header), payload_length) + header


def encode_frame(message: Struct, payload: Buffer = b"") -> bytes:
    """One frame, which is a valid message as well. Raises as :func:`encode_head`."""
    head = encode_head(message, len(payload))
    return b"".join((head, payload)) if payload else head


class Encoder:
    """Collects frames and hands them out as few messages.

    Payloads are not copied before :meth:`take`, and then once: the caller must not change them until then.
    *room*: bytes to leave free at the start of each message, for a transport that puts its own header there
    instead of copying the message behind one.
    """

    __slots__ = ("_batches", "_parts", "_room", "_size")

    def __init__(self, room: int = 0) -> None:
        self._room = bytes(room)
        self._batches: list[list[Buffer]] = []
        self._parts: list[Buffer] = []  # the last of _batches: each frame is one or two parts of it
        self._size = 0

    def __bool__(self) -> bool:
        """Whether :meth:`take` would return anything."""
        return bool(self._batches)

    def add(self, message: Struct, payload: Buffer = b"") -> None:
        """Queue one frame. Raises as :func:`encode_head`, and then has queued nothing."""
        self.add_encoded(encode_head(message, len(payload)), payload)

    def add_encoded(self, head: Buffer, payload: Buffer = b"") -> None:
        """Queue one frame whose head :func:`encode_head` has made (or the whole of one, without *payload*)."""
        size = len(head) + len(payload)
        # Counting parts instead of frames is one frame in two too strict at worst. One frame is kept free for
        # add_first().
        if not self._batches or self._size + size > BATCH or len(self._parts) >= MAX_FRAMES - 2:
            self._parts = []
            self._batches.append(self._parts)
            self._size = 0
        self._parts.append(head)
        if payload:
            self._parts.append(payload)
        self._size += size

    def add_first(self, message: Struct) -> None:
        """Queue one small frame in front of everything queued. At most once between two :meth:`take`."""
        if self._batches:
            self._batches[0].insert(0, encode_head(message))
        else:
            self.add(message)

    def take(self) -> list[bytearray]:
        """The messages to send now, in order; nothing is queued afterwards. They are the caller's to change."""
        if not self._batches:
            return []
        room = self._room
        taken = [bytearray().join((room, *parts)) for parts in self._batches]
        self._batches = []
        return taken

    def clear(self) -> None:
        """Drop everything queued."""
        self._batches = []


class Decoder:
    """Decodes messages made of frames of certain *types*; anything else is the peer's fault."""

    __slots__ = ("_decode_header", "_max_header", "_max_payload")

    def __init__(
        self,
        types: Iterable[type[Struct]],
        *,
        max_header: int = MAX_HEADER,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
    ) -> None:
        self._decode_header = msgspec.msgpack.Decoder(Union[tuple(types)]).decode  # noqa: UP007 - made at run time
        self._max_header = max_header
        self._max_payload = max_payload

    def decode(self, data: Buffer, *, copy: bool = True) -> list[tuple[Any, Any]]:
        """The frames of one message, as ``(struct, payload)``.

        Payloads are copied to :class:`bytes` once; with ``copy=False`` they are views of *data*, valid as
        long as that is. Raises :class:`RemoteProtocolError`, or :class:`LimitExceededError` for something
        larger than agreed.
        """
        total = len(data)
        if total > MAX_MESSAGE:
            raise LimitExceededError(f"message of {total} bytes; the limit is {MAX_MESSAGE}")
        frames: list[tuple[Any, Any]] = []
        position = 0
        while True:
            start = position + 8
            if start > total:
                raise RemoteProtocolError("message ends within a frame's lengths")
            header_length, payload_length = _PREFIX.unpack_from(data, position)
            if header_length > self._max_header:
                raise LimitExceededError(f"header of {header_length} bytes; the limit is {self._max_header}")
            if payload_length > self._max_payload:
                raise LimitExceededError(
                    f"payload of {payload_length} bytes; the limit is {self._max_payload}"
                )
            middle = start + header_length
            position = middle + payload_length
            if position > total:
                raise RemoteProtocolError("message ends within a frame")
            try:
                message = self._decode_header(data[start:middle])
            except (ValueError, RecursionError) as exc:  # msgspec's own errors are ValueErrors
                raise RemoteProtocolError(f"malformed header: {str(exc)[:_TEXT]}") from None
            if not payload_length:
                frames.append((message, b""))
            elif type(message) not in _WITH_PAYLOAD:
                raise RemoteProtocolError(f"{type(message).__name__} with a payload")
            elif copy:
                frames.append((message, bytes(data[middle:position])))
            else:
                frames.append((message, memoryview(data)[middle:position]))
            if position == total:
                return frames
            if len(frames) >= MAX_FRAMES:
                raise LimitExceededError(f"more than {MAX_FRAMES} frames in a message")


#: One decoder a direction, and one for the very first message, which nobody has vouched for yet.
client_decoder: Final = Decoder(FROM_ENGINE)
engine_decoder: Final = Decoder(FROM_CLIENT, max_header=MAX_REQUEST_HEADER)
hello_decoder: Final = Decoder([messages.Hello])
_any_decoder: Final = Decoder({messages.Hello, *FROM_CLIENT, *FROM_ENGINE})


def decode(data: Buffer, *, copy: bool = True) -> list[tuple[Any, Any]]:
    """The frames of a message of either direction; see :meth:`Decoder.decode`."""
    return _any_decoder.decode(data, copy=copy)

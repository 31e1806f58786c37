"""The engine's end of a session. The rules that both ends keep are in :mod:`.session`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from ..errors import LimitExceededError, LocalProtocolError, RemoteProtocolError
from . import codec
from .codec import Buffer, Encoder
from .events import Acked, Cancelled, Event, PeerClosed, PongReceived, Requested
from .messages import (
    REQUESTS,
    Ack,
    Bye,
    Cancel,
    Changed,
    Error,
    Fetch,
    Hello,
    InvalidateAll,
    Open,
    Ping,
    Pong,
    Read,
    Released,
    Reply,
    Report,
    Request,
    Watched,
    Welcome,
)  # fmt: skip

#: Characters of an error's message: with this, no reply that is remembered is larger than a few hundred bytes.
ERROR_TEXT: Final = 300
#: How many windows the engine tolerates: one for each of the client's lanes, and one for what a predecessor of
#: the client left unacknowledged.
SHARES: Final = 4


class EngineState(enum.Enum):
    DETACHED = "detached"
    ATTACHED = "attached"
    CLOSED = "closed"


_S = EngineState
TRANSITIONS: Final[dict[str, dict[EngineState, EngineState]]] = {
    "attach": {
        _S.DETACHED: _S.ATTACHED,
        _S.ATTACHED: _S.ATTACHED,
    },  # the latter: a newer connection takes over
    "detach": {_S.ATTACHED: _S.DETACHED, _S.CLOSED: _S.CLOSED},
    "close": dict.fromkeys(_S, _S.CLOSED),
}


def charge_of(request: Request, payload: Buffer) -> int:
    """The bytes of the window that a request takes: of the data that it brings or will bring."""
    if type(request) is Read or type(request) is Fetch:
        return min(max(request.size, 0), codec.DEFAULT_MAX_PAYLOAD)
    if type(request) is Open:
        return min(max(request.inline, 0), codec.DEFAULT_MAX_PAYLOAD)
    return len(payload)


def read_hello(data: Buffer) -> Hello:
    """The first message of a connection. Raises :class:`RemoteProtocolError`; the version is not looked at."""
    frames = codec.hello_decoder.decode(data)
    if len(frames) > 1:
        raise RemoteProtocolError("more than one Hello")
    hello: Hello = frames[0][0]
    return hello


class EngineSession:
    """The engine's end, which outlives connections. Call :meth:`outgoing` after every other call.

    *window*, *window_bytes*: as told to the client in its Welcome. *remembered*: encoded replies that an
    engine before this one recorded and that were not acknowledged. *room*: see :class:`.codec.Encoder`.
    After :meth:`attach`, nothing that comes from an older connection may be given to :meth:`receive`, nor may
    its end be told to :meth:`detach`.
    """

    def __init__(
        self,
        session_id: str,
        *,
        window: int,
        window_bytes: int,
        remembered: Mapping[int, bytes] | None = None,
        room: int = 0,
    ) -> None:
        self.state = EngineState.DETACHED
        self.session_id = session_id
        self._count_limit = SHARES * window
        self._charge_limit = SHARES * max(window_bytes, codec.DEFAULT_MAX_PAYLOAD)
        self._encoder = Encoder(room)
        self._executing: dict[int, tuple[type[Request], int]] = {}
        self._charge = 0
        self._remembered: dict[int, bytes] = dict(remembered or {})
        self._notified = False
        #: What the client said of itself last; not to be believed.
        self.report: Report | None = None

    @property
    def executing(self) -> list[int]:
        """The requests that have to be answered yet."""
        return list(self._executing)

    @property
    def remembered(self) -> int:
        """How many replies are kept for the client."""
        return len(self._remembered)

    def _step(self, what: str) -> None:
        try:
            self.state = TRANSITIONS[what][self.state]
        except KeyError:
            raise LocalProtocolError(f"{what} while {self.state.value}") from None

    def attach(self, welcome: Welcome | None = None) -> None:
        """A connection carries the session from now on. *welcome* is queued as the first thing to say (None:
        the caller has said it)."""
        self._step("attach")
        self._encoder.clear()
        if welcome is not None:
            self._encoder.add(welcome)
        if self._notified:
            self._encoder.add(InvalidateAll("reconnected"))

    def detach(self) -> None:
        """The connection is gone. What is executing goes on."""
        self._step("detach")
        self._encoder.clear()

    def close(self, reason: str = "") -> None:
        """End the session for good: nothing is remembered, and replies to what is executing are dropped."""
        if self.state is EngineState.ATTACHED:
            self._encoder.add(Bye(reason))
        self._end()

    def _end(self) -> None:
        self._step("close")
        self._executing.clear()
        self._charge = 0
        self._remembered.clear()

    def outgoing(self) -> list[bytearray]:
        """The messages to send now, in order."""
        return self._encoder.take()

    def receive(self, data: Buffer) -> list[Event]:
        """What a message from the client means. Raises :class:`RemoteProtocolError`: then the session is over,
        as after :meth:`close`, and the connection has to be closed."""
        if self.state is EngineState.CLOSED:
            return []  # behind a Bye
        if self.state is EngineState.DETACHED:
            raise LocalProtocolError("data for a detached session")
        events: list[Event] = []
        try:
            for message, payload in codec.engine_decoder.decode(data):
                if isinstance(message, Request):
                    self._requested(message, payload, events)
                elif isinstance(message, Ack):
                    self._acked(message, events)
                elif isinstance(message, Cancel):
                    if message.seq in self._executing:
                        events.append(Cancelled(message.seq))
                elif isinstance(message, Ping):
                    self._encoder.add(Pong(message.nonce))
                elif isinstance(message, Pong):
                    events.append(PongReceived(message.nonce))
                elif isinstance(message, Report):
                    self.report = (
                        message.cut()
                    )  # the last one counts: no event, which somebody would have to keep
                else:
                    self._end()
                    events.append(PeerClosed(message.reason))
                    break
        except RemoteProtocolError:
            self._end()
            raise
        return events

    def _requested(self, request: Request, payload: bytes, events: list[Event]) -> None:
        seq = request.seq
        if seq in self._executing:
            return
        known = self._remembered.get(seq)
        if known is not None:
            self._encoder.add_encoded(known)
            return
        if not 0 < seq < 2**63:
            raise RemoteProtocolError(f"bad sequence number {seq}")
        if len(self._executing) + len(self._remembered) >= self._count_limit:
            raise LimitExceededError(f"more than {self._count_limit} requests unanswered or unacknowledged")
        charge = charge_of(request, payload)
        if self._charge + charge > self._charge_limit:
            raise LimitExceededError(f"more than {self._charge_limit} bytes unanswered")
        self._executing[seq] = (type(request), charge)
        self._charge += charge
        events.append(Requested(seq, request, payload))

    def _acked(self, ack: Ack, events: list[Event]) -> None:
        seqs = ack.seqs
        if ack.keep is not None:
            keep = frozenset(ack.keep)
            seqs = [*seqs, *(seq for seq in self._remembered if seq not in keep)]
        forgotten = [seq for seq in seqs if self._remembered.pop(seq, None) is not None]
        if forgotten:
            events.append(Acked(forgotten))

    def reply(self, reply: Reply, payload: Buffer = b"") -> bytes | None:
        """Answer a request that was :class:`Requested`.

        Of a reply that is remembered *payload* is not: who asks again gets none. Returns the encoded reply if it is
        remembered: whoever keeps a record of it must have done so before
        :meth:`outgoing` is sent. Raises :class:`LocalProtocolError`, with nothing said, for a request that has
        been answered, for a reply of the wrong type, and for one that is too large.
        """
        if self.state is EngineState.CLOSED:
            return None
        seq = reply.seq
        try:
            kind, charge = self._executing[seq]
        except KeyError:
            raise LocalProtocolError(f"request {seq} is not being executed") from None
        if isinstance(reply, Error):
            if len(reply.message) > ERROR_TEXT:
                reply = Error(seq, reply.errno, reply.message[:ERROR_TEXT])
        elif type(reply) is not REQUESTS[kind]:
            raise LocalProtocolError(f"{type(reply).__name__} does not answer {kind.__name__}")
        frame = None
        if kind.once:
            head = codec.encode_head(reply, len(payload))
            frame = self._remembered[seq] = codec.encode_frame(reply) if payload else head
            if self.state is EngineState.ATTACHED:
                self._encoder.add_encoded(head, payload)
        elif self.state is EngineState.ATTACHED:
            self._encoder.add(reply, payload)
        del self._executing[seq]
        self._charge -= charge
        return frame

    def notify(self, message: Changed | InvalidateAll | Released) -> None:
        """Tell the client, or, when it is not there, remember that it has missed something."""
        self._notified = True
        if self.state is EngineState.ATTACHED:
            self._encoder.add(message)

    def watched(self, on: bool) -> None:
        """Tell a client that sends reports whether somebody looks at them. One that is not there has missed
        nothing: it is to be told after its next :meth:`attach`."""
        if self.state is EngineState.ATTACHED:
            self._encoder.add(Watched(on))

    def ping(self, nonce: int) -> None:
        """Ask for a :class:`PongReceived` with the same *nonce*."""
        if self.state is not EngineState.ATTACHED:
            raise LocalProtocolError(f"ping while {self.state.value}")
        self._encoder.add(Ping(nonce))

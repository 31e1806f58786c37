"""Both ends of a session: bytes and calls in, events and bytes out; no I/O, no clock, no tasks.

A *session* lives longer than the connections that carry it. A connection may be cut anywhere: the peer has
then received some whole messages, in order, and nothing else. The rules that still make every request
executed at most once and answered exactly once:

1. The client numbers its requests (``seq``), and a number is never used for another request of the session.
2. The client keeps a request until it has the answer. When a connection is lost, everything without one is
   sent again, in the order in which it was submitted, on the next connection; the first answer counts, and a
   second one is ignored.
3. The engine ignores a request that it is executing, and answers one that it has answered before from memory
   if the request is ``once``. Only other requests, which change nothing, can be executed again.
4. What the engine remembers of a ``once`` request is forgotten when the client acknowledges the reply, which
   it does when the reply is safe where it belongs (:meth:`ClientSession.done`). Acknowledgements travel in
   front of the next message. They can be lost with a connection, so the first thing that a client says after
   a resume is which replies it still cares about (``Ack.keep``).
5. If the engine has lost the session, whether a ``once`` request was executed is unknowable: the client answers
   those that it had sent by itself with ``EIO``. It never sends them in another session.
6. A client process that takes a session over from a predecessor cannot say what is cared about until the
   kernel has repeated its requests: it then calls :meth:`ClientSession.forget_others`.
7. Notifications are not numbered. A resume means that some may be missing, and the engine says so with
   ``InvalidateAll``.

Credit. The engine grants a window of requests and of bytes (a request's payload, or what a Read asks for). A
``once`` request holds its place in the window until it is acknowledged, its bytes until it is answered. There
are three lanes with a window each, so that one cannot starve another: ordinary requests; requests that wait
for somebody else, who may need an ordinary one to let them go; and recovery requests, which pass while
everything else is held. Held requests leave in the order they came, lane by lane. The engine tolerates
one window more, for what a predecessor of the client left unacknowledged.

A message is taken whole or not at all by the client: what an illegal one contains has no effect, and will be
asked for again on the next connection. A session whose *client* breaks the rules is over.

``ClientSession``: what happens (down) in which state, and the state after it; anything else is our own bug and
raises :class:`LocalProtocolError`. ``EngineSession`` has a table of its own in :mod:`.serving`.

================  ==========  ===========  ==========  ======  ==========  ======
..                IDLE        GREETING     RECOVERING  OPEN    LOST        CLOSED
================  ==========  ===========  ==========  ======  ==========  ======
``connected``     GREETING    .            .           .       GREETING    .
Welcome           .           RECOVERING   .           .       .           .
``recovered``     .           .            OPEN        .       .           .
Refused           .           LOST         .           .       .           .
Bye               .           .            LOST        LOST    .           .
``disconnected``  .           LOST         LOST        LOST    LOST        CLOSED
``close``         CLOSED      CLOSED       CLOSED      CLOSED  CLOSED      CLOSED
================  ==========  ===========  ==========  ======  ==========  ======
"""

from __future__ import annotations

import enum
import errno
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from ..errors import LocalProtocolError, RemoteProtocolError
from . import codec
from .codec import Buffer, Encoder
from .events import (
    KINDS,
    Acked,
    Cancelled,
    Event,
    Kind,
    Notified,
    PeerClosed,
    PongReceived,
    RefusedEvent,
    Replied,
    Requested,
    Welcomed,
)  # fmt: skip
from .messages import (
    PROTOCOL_VERSION,
    REQUESTS,
    Ack,
    Bye,
    Cancel,
    Changed,
    Error,
    Hello,
    InvalidateAll,
    Ping,
    Pong,
    Refused,
    Released,
    Reply,
    Report,
    Request,
    SetLock,
    Struct,
    Watched,
    Welcome,
)
from .serving import EngineSession, EngineState, charge_of, read_hello

__all__ = [
    "ClientSession", "ClientState", "EngineSession", "EngineState", "read_hello",
    "Event", "Kind", "Welcomed", "RefusedEvent", "Replied", "Notified", "PongReceived", "PeerClosed",
    "Requested", "Cancelled", "Acked",
]  # fmt: skip

#: Acknowledgements that may wait for a message to travel with.
ACKS_WAITING: Final = 64
#: The widest window that a client makes use of: what it says after a resume must fit in one header.
WIDEST_WINDOW: Final = 4096
#: The most numbers that are known to fit in one header; with more than that, nothing is said about them.
LONGEST_KEEP: Final = 14_000
_UNKNOWN: Final = "the server lost the session: whether this was done is unknown"


class ClientState(enum.Enum):
    IDLE = "idle"
    GREETING = "greeting"
    RECOVERING = "recovering"
    OPEN = "open"
    LOST = "lost"
    CLOSED = "closed"


_S = ClientState

# fmt: off
TRANSITIONS: Final[dict[str, dict[ClientState, ClientState]]] = {
    "connected":    {_S.IDLE: _S.GREETING, _S.LOST: _S.GREETING},
    "welcome":      {_S.GREETING: _S.RECOVERING},
    "recovered":    {_S.RECOVERING: _S.OPEN},
    "refused":      {_S.GREETING: _S.LOST},
    "bye":          {_S.RECOVERING: _S.LOST, _S.OPEN: _S.LOST},
    "disconnected": {_S.GREETING: _S.LOST, _S.RECOVERING: _S.LOST, _S.OPEN: _S.LOST, _S.LOST: _S.LOST,
                     _S.CLOSED: _S.CLOSED},
    "close":        dict.fromkeys(_S, _S.CLOSED),
}
# fmt: on


_ORDINARY, _WAITING, _RECOVERY = range(3)
_LANES: Final = 3
_CONNECTED: Final = frozenset({_S.RECOVERING, _S.OPEN})


class _Pending(msgspec.Struct, eq=False):
    """A request without an answer."""

    seq: int
    kind: type[Request]
    head: bytes
    payload: Buffer
    charge: int
    lane: int
    sent: bool  # in this session; then the engine may have executed it
    flying: bool = False  # sent on this connection
    cancelled: bool = False


class _Lane:
    __slots__ = ("charge", "count", "held")

    def __init__(self) -> None:
        self.held: deque[_Pending] = deque()
        self.count = 0  # flying, or answered and not done
        self.charge = 0


class ClientSession:
    """The client's end. Call :meth:`outgoing` after every other call and send what it returns.

    *incarnation*: 20 random bits that tell this process from others that used the session. *session* and
    *epoch*: those of a predecessor whose session is taken over; otherwise empty. *room*: see
    :class:`.codec.Encoder`.
    """

    def __init__(
        self, *, client: str, incarnation: int, session: str = "", epoch: int = 0, room: int = 0
    ) -> None:
        self.state = ClientState.IDLE
        self.session = session
        self.epoch = epoch
        self.window = self.window_bytes = 0
        self.max_payload = codec.DEFAULT_MAX_PAYLOAD
        self._client = client
        self._next_seq = 2**62 | (incarnation & 0xFFFFF) << 40
        self._alone = not session  # the engine remembers nothing for us that we did not ask for
        self._unfinished: Kind = "resumed"
        self._encoder = Encoder(room)
        self._acks: list[int] = []
        self._pending: dict[int, _Pending] = {}  # in the order of submission
        self._undone: dict[int, int] = {}  # seq of a once request that has been answered -> its lane
        self._lanes = tuple(_Lane() for _ in range(_LANES))

    @property
    def held(self) -> int:
        """Requests that wait to be sent."""
        return sum(len(lane.held) for lane in self._lanes)

    @property
    def unanswered(self) -> int:
        """Requests without an answer, held ones included."""
        return len(self._pending)

    def _step(self, what: str) -> None:
        try:
            self.state = TRANSITIONS[what][self.state]
        except KeyError:
            raise LocalProtocolError(f"{what} while {self.state.value}") from None

    # connections

    def connected(
        self,
        ticket: str,
        *,
        transport: str = "direct",
        links: str = "keep",
        handles: list[int] | None = None,
        features: Sequence[str] = (),
    ) -> None:
        """A connection was made: greet. *handles*: those still wanted, on a resume; None: all. *features*: what the
        client wants of what not every engine has."""
        self._step("connected")
        hello = Hello(
            [PROTOCOL_VERSION], ticket, self.session, self.epoch, self._client, transport, links, handles,
            list(features),
        )  # fmt: skip
        self._encoder.add(hello)

    def disconnected(self) -> list[int]:
        """The connection is gone. Returns the requests that were sent and have no answer yet."""
        self._step("disconnected")
        self._ground()
        return [entry.seq for entry in self._pending.values() if entry.sent]

    def recovered(self) -> None:
        """What :class:`Welcomed` asked for is done: everything held may go."""
        self._step("recovered")
        self._unfinished = "resumed"
        self._pump()

    def ping(self, nonce: int) -> None:
        """Ask for a :class:`PongReceived` with the same *nonce*."""
        if self.state not in _CONNECTED:
            raise LocalProtocolError(f"ping while {self.state.value}")
        self._encoder.add(Ping(nonce))

    def report(self, report: Report) -> None:
        """Say what the client knows of itself, to an engine that has the feature."""
        if self.state not in _CONNECTED:
            raise LocalProtocolError(f"report while {self.state.value}")
        self._encoder.add(report)

    def close(self, reason: str = "") -> None:
        """End the session for good. What is unanswered stays so; nothing may be submitted any more."""
        if self.state in _CONNECTED or self.state is ClientState.GREETING:
            self._encoder.add(Bye(reason))
        self._step("close")

    def outgoing(self) -> list[bytearray]:
        """The messages to send now, in order."""
        if self._acks and (self._encoder or len(self._acks) > ACKS_WAITING):
            self._encoder.add_first(Ack(self._acks))
            self._acks = []
        return self._encoder.take()

    # requests

    def next_seq(self) -> int:
        """A number for a request that has no number from the kernel."""
        self._next_seq += 1
        return self._next_seq

    def submit(
        self, request: Request, payload: Buffer = b"", *, recovery: bool = False, repeated: bool = False
    ) -> None:
        """Send *request* as soon as state and credit allow. *payload* must not change until it is answered.

        *recovery*: passes while everything else is held. *repeated*: a predecessor of this process may have
        sent it already; raises ``OSError(EIO)`` if the session in which it did is gone, and with it the answer.
        Raises :class:`LocalProtocolError` for a number in use, or for what the engine would not accept.
        """
        seq, once = request.seq, request.once
        if not 0 < seq < 2**63 or seq in self._pending or seq in self._undone:
            raise LocalProtocolError(f"bad sequence number {seq}")
        if self.state is ClientState.CLOSED:
            raise LocalProtocolError("the session is closed")
        if repeated and once and self._alone:
            raise OSError(errno.EIO, _UNKNOWN)
        head = codec.encode_head(
            request, len(payload), max_header=codec.MAX_REQUEST_HEADER, max_payload=self.max_payload
        )
        if recovery:
            lane = _RECOVERY
        elif type(request) is SetLock and request.wait:
            lane = _WAITING
        else:
            lane = _ORDINARY
        entry = _Pending(seq, type(request), head, payload, charge_of(request, payload), lane, repeated)
        self._pending[seq] = entry
        self._lanes[lane].held.append(entry)
        self._pump_lane(lane)

    def done(self, seq: int) -> None:
        """The answer to the ``once`` request *seq* is safe: the engine may forget it."""
        lane = self._undone.pop(seq, None)
        if lane is not None:
            self._lanes[lane].count -= 1
            if self.state in _CONNECTED:
                self._acks.append(seq)
                self._pump_lane(lane)
        elif seq in self._pending:
            raise LocalProtocolError(f"request {seq} has no answer yet")

    def cancel(self, seq: int) -> bool:
        """Give up *seq*. True: it was never sent, and there will be no answer. False: there will be one (or
        has been); if it waits for somebody else, then soon."""
        entry = self._pending.get(seq)
        if entry is None:
            return False
        if not entry.sent:
            del self._pending[seq]
            self._lanes[entry.lane].held.remove(entry)
            return True
        entry.cancelled = True
        if entry.flying:
            self._encoder.add(Cancel(seq))
        return False

    def forget_others(self) -> None:
        """Nothing that a predecessor of this process asked for will be submitted from now on."""
        self._alone = True
        if self.state in _CONNECTED:
            self._say_what_to_keep()

    # what the engine says

    def receive(self, data: Buffer) -> list[Event]:
        """What a message from the engine means. Raises :class:`RemoteProtocolError`: then the message had no
        effect; close the connection and call :meth:`disconnected`."""
        if self.state not in _CONNECTED and self.state is not ClientState.GREETING:
            return []  # behind a Refused, a Bye or our own close
        frames = codec.client_decoder.decode(data)
        self._check(frames)
        events: list[Event] = []
        for message, payload in frames:
            if isinstance(message, Reply):
                self._replied(message, payload, events)
            elif isinstance(message, (Changed, InvalidateAll, Released, Watched)):
                events.append(Notified(message))
            elif isinstance(message, Ping):
                self._encoder.add(Pong(message.nonce))
            elif isinstance(message, Pong):
                events.append(PongReceived(message.nonce))
            elif isinstance(message, Welcome):
                self._welcomed(message, events)
            elif isinstance(message, Bye):
                self._step("bye")
                self._ground()
                events.append(PeerClosed(message.reason))
                break
            else:
                self._step("refused")
                events.append(RefusedEvent(message.code, message.message))
                break
        self._pump()
        return events

    def _check(self, frames: list[tuple[Struct, bytes]]) -> None:
        greeting = self.state is ClientState.GREETING
        for message, _ in frames:
            if greeting:
                if isinstance(message, Welcome):
                    self._check_welcome(message)
                elif not isinstance(message, Refused):
                    raise RemoteProtocolError(f"{type(message).__name__} before Welcome")
                greeting = False
            elif isinstance(message, Reply):
                entry = self._pending.get(message.seq)
                if entry and not isinstance(message, (Error, REQUESTS[entry.kind])):
                    raise RemoteProtocolError(f"{type(message).__name__} answers {entry.kind.__name__}")
            elif isinstance(message, (Welcome, Refused)):
                raise RemoteProtocolError(f"{type(message).__name__} again")

    def _check_welcome(self, welcome: Welcome) -> None:
        if welcome.version != PROTOCOL_VERSION:
            raise RemoteProtocolError(f"version {welcome.version} was not offered")
        if min(welcome.window, welcome.window_bytes, welcome.max_payload) < 1:
            raise RemoteProtocolError("a window of nothing")
        if welcome.resumed and welcome.recovered:
            raise RemoteProtocolError("resumed and recovered")
        same = bool(self.session) and welcome.session == self.session
        if same != (welcome.resumed or welcome.recovered) or not welcome.session:
            raise RemoteProtocolError("Welcome to another session than it says")

    def _welcomed(self, welcome: Welcome, events: list[Event]) -> None:
        self._step("welcome")
        kind: Kind
        if not self.session:
            kind = "new"
        elif welcome.resumed and self.epoch in (0, welcome.epoch):
            kind = "resumed"
        elif welcome.resumed or welcome.recovered:
            # Another engine has our handles no more, even if its first Welcome, which said so, was lost.
            kind = "recovered"
        else:
            kind = "lost"
        self._unfinished = max(kind, self._unfinished, key=KINDS.index)
        self.session = welcome.session
        self.epoch = welcome.epoch
        self.window = min(welcome.window, WIDEST_WINDOW)
        self.window_bytes = welcome.window_bytes
        self.max_payload = min(welcome.max_payload, codec.DEFAULT_MAX_PAYLOAD)
        events.append(Welcomed(welcome, self._unfinished))
        if kind == "lost":
            self._lose(events)
        elif kind != "new" and self._alone:
            self._say_what_to_keep()

    def _lose(self, events: list[Event]) -> None:
        self._alone = True
        self._undone.clear()
        for seq, entry in list(self._pending.items()):
            if entry.sent and entry.kind.once:
                del self._pending[seq]
                events.append(Replied(seq, Error(seq, "EIO", _UNKNOWN), b""))
            entry.sent = False
        self._ground()

    def _replied(self, reply: Reply, payload: bytes, events: list[Event]) -> None:
        seq = reply.seq
        entry = self._pending.pop(seq, None)
        if entry is None:
            # A request that was sent again has been executed twice, or we did not wait for it. Unless it is the
            # answer to a predecessor's request, which the kernel may repeat yet, nobody will need it.
            if self._alone and seq not in self._undone:
                self._acks.append(seq)
            return
        lane = self._lanes[entry.lane]
        if entry.flying:
            lane.count -= 1
            lane.charge -= entry.charge
        else:
            lane.held.remove(entry)
        if entry.kind.once:
            lane.count += 1
            self._undone[seq] = entry.lane
        events.append(Replied(seq, reply, payload))

    def _say_what_to_keep(self) -> None:
        keep = [entry.seq for entry in self._pending.values() if entry.kind.once]
        keep += self._undone
        if len(keep) <= LONGEST_KEEP:
            self._encoder.add(Ack([], keep))

    # credit

    def _ground(self) -> None:
        """Nothing flies any more: hold everything unanswered, in the order of submission."""
        self._encoder.clear()
        self._acks.clear()
        for number, lane in enumerate(self._lanes):
            lane.held = deque(entry for entry in self._pending.values() if entry.lane == number)
            lane.count = list(self._undone.values()).count(number)
            lane.charge = 0
        for entry in self._pending.values():
            entry.flying = False

    def _pump(self) -> None:
        for number in range(_LANES):
            self._pump_lane(number)

    def _pump_lane(self, number: int) -> None:
        if self.state is not ClientState.OPEN and (
            number != _RECOVERY or self.state is not ClientState.RECOVERING
        ):
            return
        lane = self._lanes[number]
        while lane.held and lane.count < self.window:
            entry = lane.held[0]
            # A request larger than the window goes alone.
            if lane.charge and lane.charge + entry.charge > self.window_bytes:
                return
            lane.held.popleft()
            lane.count += 1
            lane.charge += entry.charge
            entry.sent = entry.flying = True
            self._encoder.add_encoded(entry.head, entry.payload)
            if entry.cancelled:
                self._encoder.add(Cancel(entry.seq))

"""Two ends of a session joined by a link that can be cut at any byte, and models of who uses them."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.session import (
    Acked,
    Cancelled,
    ClientSession,
    ClientState,
    EngineSession,
    EngineState,
    PeerClosed,
    Replied,
    Requested,
    Welcomed,
    read_hello,
)

ATTR = m.Attr(1, 2, 0o100644, 1, 0, 0, 0, 10, 8, 4096, 1, 2, 3, 4)
ROOT = m.Ref(b"")


def welcome(session: str = "s1", **changes: Any) -> m.Welcome:
    values: dict[str, Any] = {
        "version": 1, "session": session, "epoch": 1, "resumed": False, "recovered": False, "window": 8,
        "window_bytes": 1 << 20, "max_payload": 1 << 20, "tenant": "t", "root": ATTR, "uid": 0, "gid": 0,
    }  # fmt: skip
    return m.Welcome(**{**values, **changes})


def answer(request: m.Request, payload: bytes = b"") -> tuple[m.Reply, bytes]:
    """A right answer that shows which execution it came from."""
    kind = m.REQUESTS[type(request)]
    if kind is m.CountReply:
        return m.CountReply(request.seq, len(payload)), b""
    if kind is m.DataReply:
        return m.DataReply(request.seq), b"d" * request.size
    if kind is m.AttrReply:
        return m.AttrReply(request.seq, ATTR), b""
    if kind is m.OpenReply:
        return m.OpenReply(request.seq, request.seq * 7, ATTR), b""
    return kind(request.seq), b""


class Pipe:
    """One direction of a TCP connection: of what is sent, the first *cut* bytes arrive."""

    def __init__(self, cut: int | None = None) -> None:
        self.cut = cut
        self.sent = 0
        self._stream = bytearray()
        self._read = 0

    @property
    def broken(self) -> bool:
        return self.cut is not None and self.sent > self.cut

    def send(self, messages: list[bytes]) -> None:
        for message in messages:
            self._stream += struct.pack(">I", len(message)) + message
            self.sent += 4 + len(message)

    def receive(self) -> list[bytes]:
        whole = []
        end = len(self._stream) if self.cut is None else min(len(self._stream), self.cut)
        while self._read + 4 <= end:
            (length,) = struct.unpack_from(">I", self._stream, self._read)
            if self._read + 4 + length > end:
                break
            whole.append(bytes(self._stream[self._read + 4 : self._read + 4 + length]))
            self._read += 4 + length
        return whole


class EngineModel:
    """Executes requests, keeps a record that survives it, and can be replaced by another."""

    def __init__(self, window: int = 8, window_bytes: int = 1 << 20) -> None:
        self.window, self.window_bytes = window, window_bytes
        self.effects: Counter[int] = Counter()
        self.record: dict[int, bytes] = {}  # what a real engine writes to its file
        self.sessions = 0
        self.epoch = 1
        self.session: EngineSession | None = None
        self.fresh = True  # this engine has made or served the session itself
        self.greeted = False  # on this connection
        self.jobs: list[Requested] = []
        self.cancelled: list[int] = []

    def _new(self, session_id: str) -> EngineSession:
        return EngineSession(
            session_id, window=self.window, window_bytes=self.window_bytes, remembered=self.record
        )

    def greet(self, data: bytes) -> None:
        hello = read_hello(data)
        resumed = recovered = False
        if self.session is None or hello.session != self.session.session_id:
            self.sessions += 1
            self.record, self.jobs = {}, []
            self.session = self._new(f"s{self.sessions}")
        else:
            resumed, recovered = self.fresh, not self.fresh
        self.fresh = self.greeted = True
        self.session.attach(
            welcome(
                self.session.session_id,
                epoch=self.epoch,
                resumed=resumed,
                recovered=recovered,
                window=self.window,
                window_bytes=self.window_bytes,
            )
        )

    def receive(self, data: bytes) -> None:
        if not self.greeted:
            self.greet(data)
            return
        assert self.session is not None
        for event in self.session.receive(data):
            match event:
                case Requested():
                    self.jobs.append(event)
                case Acked(seqs):
                    for seq in seqs:
                        del self.record[seq]
                case Cancelled(seq):
                    self.cancelled.append(seq)
                case PeerClosed():
                    self.jobs = []

    def execute(self, index: int = -1, *, die_before_reply: bool = False) -> None:
        """Finish a request that is executing."""
        assert self.session is not None
        job = self.jobs.pop(index)
        # An engine finds out from the files whether one before it has done this already.
        if not (job.request.once and self.effects[job.seq]):
            self.effects[job.seq] += 1
        if die_before_reply:
            return
        frame = self.session.reply(*answer(job.request, job.payload))
        assert (frame is not None) == job.request.once
        if frame is not None:
            self.record[job.seq] = frame

    def die(self) -> None:
        """Another engine takes over, with nothing but the record."""
        self.epoch += 1
        self.jobs = []
        if self.session is None:
            return
        self.fresh = False
        self.session = self._new(self.session.session_id)

    def lose(self) -> None:
        self.session = None
        self.jobs = []


class ClientModel:
    """Submits, counts the answers, and says when they are safe."""

    def __init__(self, session: ClientSession | None = None) -> None:
        self.session = session or ClientSession(client="test", incarnation=5)
        self.answers: dict[int, list[m.Reply]] = {}
        self.submitted: dict[int, m.Request] = {}
        self.undone: list[int] = []
        self.kinds: list[str] = []

    def submit(self, request: m.Request, payload: bytes = b"", **how: Any) -> None:
        self.submitted[request.seq] = request
        self.answers[request.seq] = []
        self.session.submit(request, payload, **how)

    def receive(self, data: bytes) -> None:
        for event in self.session.receive(data):
            match event:
                case Replied(seq, reply, _):
                    self.answers[seq].append(reply)
                    if self.submitted[seq].once:
                        self.undone.append(seq)
                case Welcomed(_, kind):
                    self.kinds.append(kind)

    def settle(self) -> None:
        """What a connection does at the end of a turn."""
        if self.session.state is ClientState.RECOVERING:
            self.session.recovered()
        while self.undone:
            self.session.done(self.undone.pop())


class World:
    """A client and an engine, and the connection between them."""

    def __init__(
        self, client: ClientModel, engine: EngineModel, up: int | None = None, down: int | None = None
    ):
        self.client, self.engine = client, engine
        self.connect(up, down)

    def connect(self, up: int | None = None, down: int | None = None) -> None:
        self.up, self.down = Pipe(up), Pipe(down)
        self.client.session.connected("ticket")
        self.engine.greeted = False

    def disconnect(self) -> None:
        self.client.session.disconnected()
        if self.engine.session and self.engine.session.state is not EngineState.DETACHED:
            self.engine.session.detach()
        self.engine.greeted = False

    def turn(self, *, executes: bool = True) -> None:
        self.up.send(self.client.session.outgoing())
        for data in self.up.receive():
            self.engine.receive(data)
        if executes and self.engine.jobs:
            self.engine.execute()
        if self.engine.session is not None:
            self.down.send(self.engine.session.outgoing())
        for data in self.down.receive():
            self.client.receive(data)
        self.client.settle()

    def drain(self) -> None:
        """Until nothing is left to say."""
        before = (-1, -1)
        while before != (self.up.sent, self.down.sent) or self.engine.jobs:
            before = (self.up.sent, self.down.sent)
            self.turn()

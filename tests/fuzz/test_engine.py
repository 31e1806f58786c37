"""A running engine, fed anything: before the handshake, instead of a Hello, and as a client that was let in.

It answers or closes, keeps its memory, and serves the next one as if nothing had been.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Ref
from tests.fuzz.anything import EDGES, HEADERS, any_of, damage, mangled, nothing_special
from tests.fuzz.anything import struct as any_struct
from tests.fuzz.sockets import HANDSHAKE, Socket, frame
from tests.helpers.arena import Arena
from tests.helpers.engineproc import EngineProcess
from tests.helpers.fuzzing import SCALE, examples
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 * (1 + SCALE))]

#: Bytes by which an engine may grow while it is fed.
GROWTH = 48 << 20
#: Stand for a handle of a file, of a directory, of a pin, when a request is made; there may be none of that number.
FILE, DIRECTORY, PIN = 11, 12, 13


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("fuzz"))
    yield arena
    arena.close()


#: Everything that stands between a request and its execution, with room for what is tried here.
GUARDS: dict[str, Any] = {
    "rules": ["deny write /dir/sub/**", "deny read,delete *.secret", "deny execute b"],
    "hide": True,
    "limits": {"metadata": 1e5, "read": 1e5, "write": 1e5, "bytes_in": 1e9, "handles": 500, "in_flight": 300},
    "session_limits": {"delete": 1e5, "bytes_out": 1e9, "sessions": 400},
    "quota": 8 << 20,
    "audit": {"record": "all"},
}


@pytest.fixture(scope="module", params=["plain", "guarded"])
def running(
    request: pytest.FixtureRequest, arena: Arena, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProcess]:
    """One engine for everything. In the end it stops as it should, has not grown, and has nothing to complain of
    but its clients."""
    home = tmp_path_factory.mktemp("engine")
    options: dict[str, Any] = {}
    if request.param == "guarded":
        options["tenants"] = {"default": {"root": str(arena.workspace), **GUARDS}}
        options |= {"audit_dir": str(home / "audit"), "audit_key_file": str(home / "keys/audit")}
    engine = EngineProcess(
        arena.workspace, home / "state",
        grace=0.5, max_sessions=500, hello_timeout=5.0, log_level="WARNING", **options,
    )  # fmt: skip
    try:
        for _ in range(20):
            with Socket(engine.port) as client:
                client.greet(engine.ticket())
                client.message(codec.encode_frame(m.Bye()))
                client.finish()
        before = resident(engine)
        yield engine
        alive(engine)
        eventually(lambda: engine.status()["sessions"] == [])
        assert resident(engine) < before + GROWTH * (1 + SCALE // 10)
        assert engine.stop() == 0
        assert "Traceback" not in engine.log, engine.log
        assert " ERROR " not in engine.log, engine.log
        arena.check_untouched()
    finally:
        if engine.process.poll() is None:  # one that hangs does not end by itself
            engine.kill()


def resident(engine: EngineProcess) -> int:
    """Bytes of memory that the engine has."""
    for line in Path(f"/proc/{engine.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no such process")


def alive(engine: EngineProcess) -> None:
    """Somebody else is served."""
    with Socket(engine.port) as client:
        client.greet(engine.ticket())
        assert isinstance(client.ask(m.GetAttr(1, Ref(b""))), m.AttrReply)
        client.message(codec.encode_frame(m.Bye()))
        client.finish()


# --- strangers


@examples(60)
@given(data=st.one_of(st.binary(max_size=400), mangled(HANDSHAKE), mangled(HANDSHAKE + frame(b"hello"))))
def test_anything_for_a_handshake(running: EngineProcess, data: bytes) -> None:
    with Socket(running.port) as stranger:
        stranger.send(data)
        stranger.finish()


@examples(60)
@given(data=st.one_of(st.binary(max_size=100), mangled(frame(b"\0" * 20)), mangled(frame(b"", kind=9) * 3)))
def test_anything_for_frames(running: EngineProcess, data: bytes) -> None:
    with Socket(running.port) as stranger:
        stranger.handshake()
        stranger.send(data)
        stranger.finish()


@examples(120)
@given(data=st.data())
def test_anything_for_a_hello(running: EngineProcess, data: st.DataObject) -> None:
    """It is refused with a reason, or the connection is closed; in no case is anybody let in."""
    first = data.draw(
        st.one_of(
            st.binary(max_size=200),
            any_of([m.Hello]).map(codec.encode_frame),
            any_of([m.Hello]).map(codec.encode_frame).flatmap(mangled),
            any_of([*m.REQUESTS, *m.CONTROL]).map(codec.encode_frame),
            st.sampled_from(HEADERS).map(lambda header: struct.pack("<II", len(header), 0) + header),
            st.just(codec.encode_frame(m.Hello([1], "x")) * 2),
        )
    )
    with Socket(running.port) as stranger:
        stranger.handshake()
        stranger.message(first)
        answer = stranger.receive()
        if answer is not None:
            assert isinstance(codec.decode(answer)[0][0], m.Refused)
            assert stranger.receive() is None
        stranger.finish()


def test_the_corpus(running: EngineProcess) -> None:
    for header in HEADERS:
        for data in (header, struct.pack("<II", len(header), 0) + header):
            for known in (False, True):
                with Socket(running.port) as peer:
                    peer.greet(running.ticket()) if known else peer.handshake()
                    peer.message(data)
                    peer.finish()
    alive(running)


# --- who was let in

# Sizes at which something may be allocated are small or impossible: the disk is not what is tested.
LENGTHS = st.sampled_from([0, 1, 5, 4096, 65536, -1, (1 << 63) - 1, 1 << 63, -(1 << 63)])
NAMES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"file", b"dir", b"a", b"b", b"empty", b"fifo", b"relative", b"..", b".", b"", b"x/y", b"\0"]
    ),
)
PATHS = st.one_of(
    NAMES,
    st.sampled_from(
        [b"dir/file", b"dir/sub", b"dir/sub/deep", b"relative/canary", b"../outside", b"magic/canary"]
    ),
)


def careful(name: str, kind: Any) -> st.SearchStrategy[Any] | None:
    """Requests that mean something on the arena's workspace, and cannot fill a disk."""
    if kind is int:
        if name == "handle" or name in ("source", "target"):
            return st.sampled_from([0, FILE, FILE, FILE, DIRECTORY, DIRECTORY, PIN, 1, 5, -1, (1 << 63) - 1])
        if name in ("size", "length", "offset", "source_offset", "target_offset", "start", "end"):
            return LENGTHS
        if name == "limit":
            return st.sampled_from([0, 1, 100, -1, (1 << 63) - 1])
        if name in ("flags", "mode", "mask", "whence"):
            return st.one_of(st.integers(0, 8), st.integers(0, 1 << 23), st.sampled_from(EDGES))
        if name == "seq":
            return st.just(0)
    if kind is bytes:
        return (
            PATHS
            if name == "path"
            else st.sampled_from([b"file", b"dir/a", b"x"])
            if name == "target"
            else NAMES
        )
    if kind is str and name == "type":
        return st.sampled_from(["r", "w", "u", "", "x"])
    if kind is m.Identity:
        return st.just(m.Identity(1, 2, 3))
    return nothing_special(name, kind)


REQUESTS: list[type[m.Request]] = list(m.REQUESTS)
REQUEST = st.one_of([any_struct(kind, careful) for kind in REQUESTS])
SAID = st.one_of(REQUEST, REQUEST, REQUEST, any_of([m.Ack, m.Ping, m.Pong, m.Cancel]))


def substituted(request: m.Struct, handles: dict[int, int]) -> m.Struct:
    """*request* with the handles that there are."""
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if isinstance(value, Ref) and value.handle in handles:
            setattr(request, name, Ref(value.path, value.identity, handles[value.handle]))
        elif (
            name in ("handle", "source", "target") and value in handles and not isinstance(request, m.Reopen)
        ):
            setattr(request, name, handles[value])
    return request


def let_in(engine: EngineProcess, client: Socket) -> dict[int, int]:
    """A session, and what its placeholders for handles stand for."""
    root = client.greet(engine.ticket()).root.identity
    handles = {}
    made = client.ask(m.Create(1, Ref(b"", root), b"file", 0o644, os.O_RDWR))
    opened = client.ask(m.OpenDir(2, Ref(b"dir")))
    client.ask(m.MkNod(3, Ref(b""), b"pinned", 0o100644))
    removed = client.ask(m.Unlink(4, Ref(b""), b"pinned", True))
    for placeholder, reply in ((FILE, made), (DIRECTORY, opened)):
        if isinstance(reply, m.OpenReply):
            handles[placeholder] = reply.handle
    if isinstance(removed, m.RemovedReply) and removed.pin:
        handles[PIN] = removed.pin
    return handles


@examples(150)
@given(data=st.data())
def test_anything_that_is_well_formed(running: EngineProcess, arena: Arena, data: st.DataObject) -> None:
    """Every request is answered, whatever is in it. None is worth an entry in the log."""
    arena.build()
    with Socket(running.port) as client:
        handles = let_in(running, client)
        said = data.draw(st.lists(SAID, min_size=1, max_size=25))
        frames = []
        seq = 100
        for message in said:
            if isinstance(message, m.Request):
                seq += 1
                message.seq = seq
                if isinstance(message, m.SetLock):
                    message.wait = False  # for nobody: the connection is all there is
            payload = b"payload" if isinstance(message, m.Write) and seq % 2 else b""
            frames.append(codec.encode_frame(substituted(message, handles), payload))
        note("\n".join(map(str, said)))
        client.message(b"".join(frames))
        replies = client.replies(set(range(101, seq + 1)))
        assert len(replies) == seq - 100, [str(message) for message in said]
        # EIO is what the engine says when it did not expect that, as a disk may say it that is broken.
        unexpected = [
            reply.seq for reply in replies.values() if isinstance(reply, m.Error) and reply.errno == "EIO"
        ]
        assert not unexpected, [str(message) for message in said if getattr(message, "seq", 0) in unexpected]
        assert isinstance(client.ask(m.GetAttr(1 << 40, Ref(b""))), m.AttrReply)
        client.message(codec.encode_frame(m.Bye()))
        client.finish()


@pytest.mark.parametrize("size", [(1 << 63) - 1, -(1 << 63)])
def test_a_size_that_lies_holds_nobody_up(running: EngineProcess, arena: Arena, size: int) -> None:
    """Behind a write, a read is queued before anybody has looked at how much it asks for: it must not be reckoned
    with what it says, neither as a debt that others wait for nor as a credit."""
    arena.build()
    with Socket(running.port) as client:
        file = let_in(running, client)[FILE]
        for start in (1000, 2000):  # more than there are workers for, so that some have to wait their turn
            crowd = [codec.encode_frame(m.Access(start + n, Ref(b"file"), 4)) for n in range(100)]
            liars = []
            for seq in range(start + 100, start + 160, 2):
                liars.append(codec.encode_frame(m.Write(seq, file, 0), b"x"))
                liars.append(codec.encode_frame(m.Read(seq + 1, file, 0, size)))
            client.message(b"".join(crowd + liars))
            replies = client.replies(set(range(start, start + 160)))
            assert len(replies) == 160
            assert {reply.errno for reply in replies.values() if isinstance(reply, m.Error)} == {"EINVAL"}
        client.message(codec.encode_frame(m.Bye()))
        client.finish()


@examples(100)
@given(data=st.data())
def test_anything_that_is_not(running: EngineProcess, arena: Arena, data: st.DataObject) -> None:
    """It is answered as far as it makes sense, or closed."""
    arena.build()
    tame = st.one_of([any_struct(kind, careful) for kind in REQUESTS if kind not in HEAVY])
    with Socket(running.port) as client:
        handles = let_in(running, client)
        requests = data.draw(st.lists(tame, min_size=1, max_size=4))
        whole = b"".join(codec.encode_frame(substituted(request, handles)) for request in requests)
        client.message(damage(whole, random.Random(data.draw(st.integers(0, 1 << 32)))))
        client.message(data.draw(st.binary(max_size=60)))
        client.finish()


#: Not to be damaged at random: targets of links must not come to lead anywhere, nor sizes to be large.
HEAVY: tuple[type[m.Request], ...] = (m.SymLink, m.SetAttr, m.Fallocate, m.CopyRange, m.Write)

"""The engine as a process of its own, spoken to over real sockets: who is let in, what is refused, what survives."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from picows import WSMsgType

from jupyter_wsfuse.engine.hardening import MIN_ABI, landlock_abi
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Hello, Lock, Ref
from tests.engine.conftest import Join, Start
from tests.helpers.engineproc import EngineProcess
from tests.helpers.rawclient import Listener, RawClient, Refused, connect, disconnect_all
from tests.helpers.waiting import eventually_async
from tests.helpers.workspace import needs_root

LAST = 2**63 - 1


@pytest.fixture(autouse=True)
async def no_connection_is_left() -> AsyncIterator[None]:
    yield
    await disconnect_all()


def root_of(client: RawClient) -> Ref:
    return Ref(b"", client.welcome.root.identity)


async def create(client: RawClient, name: bytes, flags: int = os.O_RDWR) -> Any:
    return await client.call(m.Create, root_of(client), name, 0o644, flags)


def posix(kind: str, owner: int = 1, start: int = 0, end: int = LAST) -> Lock:
    return Lock(owner, start, end, kind, 42)


def flock(kind: str) -> Lock:
    return Lock(9, 0, LAST, kind, 42, True)


# --- the process


@needs_root  # nobody else may look into it
def test_it_settles_what_it_inherited(start: Start, tmp_path: Path) -> None:
    with open(tmp_path / "inherited", "w") as file:
        os.set_inheritable(file.fileno(), True)
        engine = start()
        held = [
            os.readlink(f"/proc/{engine.process.pid}/fd/{fd}")
            for fd in os.listdir(f"/proc/{engine.process.pid}/fd")
        ]
    assert str(tmp_path / "inherited") not in held
    status = Path(f"/proc/{engine.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Umask:\t0000" in status
    limits = Path(f"/proc/{engine.process.pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.split()[3] == line.split()[4]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert engine.secret.hex().encode() not in Path(f"/proc/{engine.process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("by_signal", [False, True])
def test_it_ends_with_its_parent_or_by_a_signal(start: Start, by_signal: bool) -> None:
    engine = start()
    assert engine.stop(by_signal=by_signal) == 0
    assert "stopping" in engine.log


@pytest.mark.parametrize("line", [b"", b"rubbish\n", b'{"secret": "00"}\n', b"x" * (1 << 20) + b"yyy"])
def test_a_configuration_that_is_not_usable(line: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_wsfuse.engine.main"], input=line, capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert b" ERROR " in done.stderr
    assert b": configuration" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"ERROR .*Not a directory"):
        EngineProcess(tmp_path, tmp_path / "file" / "state")


# --- the status page and other HTTP


async def test_the_status_page(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    await client.call(m.GetAttr, root_of(client))
    await create(client, b"f")
    status = engine.status()
    assert (status["epoch"], status["pid"]) == (engine.epoch, engine.process.pid)
    [session] = status["sessions"]
    assert session["client"] == "client0"
    assert session["transport"] == "direct"
    assert session["connected"] is True
    assert session["handles"] == 1
    assert session["requests"] == 2
    assert session["tenant"] == "default"
    assert client.welcome.session.startswith(session["id"])
    assert len(session["id"]) == 8
    assert status["operations"]["GetAttr"]["count"] == 1
    assert client.welcome.session not in json.dumps(status)
    await client.cut()
    await eventually_async(lambda: not engine.status()["sessions"][0]["connected"])


def test_http_that_is_refused(start: Start) -> None:
    engine = start()
    good = {"Authorization": "Bearer x"}
    assert engine.get(headers={})[0] == 401
    assert engine.get(headers=good)[0] == 401
    assert engine.get(headers={"Authorization": "Bearer \xff"})[0] == 401
    assert engine.get("elsewhere", {})[0] == 404
    assert engine.get("", {})[0] == 400
    assert engine.get("", {"Origin": "http://localhost"})[0] == 403
    assert engine.get("status", {"Origin": "http://localhost", **good})[0] == 403
    with socket.create_connection(("127.0.0.1", engine.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Protocol: other, wsfuse.v1\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")  # no upgrade
    with socket.create_connection(("127.0.0.1", engine.port)) as raw:
        raw.settimeout(20)
        raw.sendall(HANDSHAKE.replace(b"Version: 13", b"Version: \xff"))
        assert raw.recv(1000) == b""
    assert engine.stop() == 0
    assert engine.log.count("WARNING") == 8
    assert "Traceback" not in engine.log


# --- tickets and sessions that are refused


async def refusal(engine: EngineProcess, ticket: str, client: RawClient | None = None, **hello: Any) -> str:
    with pytest.raises(Refused) as caught:
        await (client or RawClient()).open(engine.url, ticket, **hello)
    return str(caught.value)


async def test_tickets_that_are_refused(start: Start) -> None:
    engine = start()
    good = engine.ticket()
    await RawClient().open(engine.url, good)
    refused = []
    for code, ticket in (
        ("ticket-replayed", good),
        (
            "ticket-forged",
            engine.issuer(secret=b"another secret of the right size").issue("default", "ann", ["read"], 9),
        ),
        ("ticket-forged", engine.ticket()[:-3] + "AAA"),
        ("ticket-forged", "rubbish"),
        ("ticket-forged", ""),
        ("ticket-expired", engine.ticket(ttl=-1)),
        ("ticket-foreign", engine.issuer("another engine").issue("default", "ann", ["read"], 9)),
        ("workspace", engine.ticket(tenant="nobody")),
        ("workspace", engine.ticket(rights=())),
    ):
        assert await refusal(engine, ticket) == code
        refused.append((code, ticket))
    assert engine.stop() == 0
    lines = [line for line in engine.log.splitlines() if "WARNING" in line]
    assert len(lines) == len(refused)
    for line, (code, ticket) in zip(lines, refused, strict=True):
        assert f"refused 'raw': {code}" in line
        assert len(ticket) < 20 or ticket not in engine.log


async def test_a_workspace_that_is_not_there(start: Start, tmp_path: Path) -> None:
    engine = start(tenants={"default": {"root": str(tmp_path / "missing")}}, landlock=False)
    assert await refusal(engine, engine.ticket()) == "workspace"
    (tmp_path / "missing").mkdir()
    await RawClient().open(engine.url, engine.ticket())
    assert engine.stop() == 0
    assert engine.log.count("the workspace cannot be served") == 1


async def test_a_root_that_was_made_anew_is_served(start: Start, join: Join) -> None:
    engine = start(landlock=False)
    before = (await join(engine)).welcome.root
    engine.root.rmdir()
    engine.root.mkdir()
    (engine.root / "f").touch()
    client = await join(engine)
    assert client.welcome.root.identity != before.identity
    await client.call(m.Lookup, root_of(client), b"f")


@pytest.mark.skipif(landlock_abi() < MIN_ABI, reason="needs a kernel with Landlock")
async def test_a_confined_engine_serves_what_was_there_when_it_started(start: Start, tmp_path: Path) -> None:
    """A folder that appears later, or takes the place of one, is out of its reach: it says so, and another engine
    can."""
    roots = {name: tmp_path / name for name in ("later", "anew")}
    roots["anew"].mkdir()
    tenants = {name: {"root": str(root)} for name, root in roots.items()}
    engine = start(tenants=tenants)
    await RawClient().open(engine.url, engine.ticket(tenant="anew"))
    roots["anew"].rmdir()
    for name, root in roots.items():
        root.mkdir()
        assert await refusal(engine, engine.ticket(tenant=name)) == "workspace"
    assert engine.status()["hardening"]["landlock"]["active"] is True
    assert engine.stop() == 0
    assert engine.log.count("start the engine anew") == 2
    engine.start()
    for name in roots:
        await RawClient().open(engine.url, engine.ticket(tenant=name))
    engine.log = ""


async def test_no_common_version(start: Start) -> None:
    engine = start()
    listener = Listener()
    transport = await connect(engine.url, listener)
    transport.send(WSMsgType.BINARY, codec.encode_frame(Hello([99], engine.ticket())))
    [(refused, _)] = codec.decode(await listener.messages.get())
    assert refused.code == "version"
    await asyncio.wait_for(listener.gone.wait(), 20)
    assert listener.close_code == 1008


async def test_too_many_sessions(start: Start, join: Join) -> None:
    engine = start(max_sessions=2)
    first = await join(engine)
    await join(engine)
    assert await refusal(engine, engine.ticket()) == "busy"
    await first.close()
    await eventually_async(lambda: len(engine.status()["sessions"]) == 1)
    await join(engine)


async def test_a_session_of_somebody_else(start: Start, join: Join, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    tenants = {"default": {"root": str(tmp_path / "root")}, "other": {"root": str(tmp_path / "other")}}
    engine = start(tenants=tenants)
    client = await join(engine)
    handle = (await create(client, b"f")).handle
    for ticket in (engine.ticket(tenant="other"), engine.ticket(principal="bob")):
        thief = RawClient(session=client.welcome.session, epoch=engine.epoch)
        assert await refusal(engine, ticket, thief) == "session-foreign"
    assert client.welcome.session not in engine.log
    await client.read(handle, 0, 10)  # and the owner has not noticed


# --- what the peer may not do


async def greeted(engine: EngineProcess) -> tuple[Any, Listener]:
    """A bare connection with a session."""
    listener = Listener()
    transport = await connect(engine.url, listener)
    transport.send(WSMsgType.BINARY, codec.encode_frame(Hello([1], engine.ticket())))
    [(welcome, _)] = codec.decode(await listener.messages.get())
    assert isinstance(welcome, m.Welcome)
    return transport, listener


GOOD = codec.encode_frame(m.GetAttr(5, Ref(b"")))
BAD_MESSAGES = {
    "empty": b"",
    "short": b"abc",
    "no msgpack": struct.pack("<II", 3, 0) + b"\xc1\xc1\xc1",
    "unknown request": struct.pack("<II", 3, 0) + b"\x92\x7f\x01",
    "a header longer than allowed": struct.pack("<II", codec.MAX_HEADER + 1, 0),
    "a payload longer than allowed": struct.pack("<II", 3, codec.DEFAULT_MAX_PAYLOAD + 1),
    "a length that lies": struct.pack("<II", 300, 0) + b"abc",
    "a reply": codec.encode_frame(m.Done(5)),
    "payload where none may be": struct.pack("<II", len(GOOD) - 8, 1) + GOOD[8:] + b"x",
    "a good frame and rubbish": GOOD + b"rubbish",
    "hello again": codec.encode_frame(Hello([1], "x")),
}


CASES = [(name, known) for name in BAD_MESSAGES for known in (False, True) if known or name != "hello again"]


@pytest.mark.parametrize(("name", "known"), CASES)
async def test_malformed_messages(start: Start, name: str, known: bool) -> None:
    engine = start()
    if known:
        transport, listener = await greeted(engine)
    else:
        listener = Listener()
        transport = await connect(engine.url, listener)
    transport.send(WSMsgType.BINARY, BAD_MESSAGES[name])
    await asyncio.wait_for(listener.gone.wait(), 20)
    assert listener.close_code == (1009 if "longer" in name else 1002)
    await eventually_async(lambda: engine.status()["sessions"] == [])
    assert engine.stop() == 0
    lines = [line for line in engine.log.splitlines() if "WARNING" in line]
    assert len(lines) == 1
    assert "closed" in lines[0]


async def test_messages_that_websocket_allows_and_we_do_not(start: Start) -> None:
    engine = start()
    huge = bytes(codec.MAX_MESSAGE + 1)
    half = bytes(codec.MAX_MESSAGE // 2 + 1)
    B, C, T = WSMsgType.BINARY, WSMsgType.CONTINUATION, WSMsgType.TEXT
    for code, frames in (
        (1003, [(T, b"text", True)]),
        (1009, [(B, huge, True)]),
        (1009, [(B, half, False), (C, half, True)]),
        (1009, [(B, half, False), (C, half, False)]),
        (1002, [(C, GOOD, True)]),
        (1002, [(B, GOOD, False), (B, GOOD, True)]),
    ):
        transport, listener = await greeted(engine)
        for kind, data, fin in frames:
            transport.send(kind, data, fin=fin)
        await asyncio.wait_for(listener.gone.wait(), 20)
        assert listener.close_code == code
    transport, listener = await greeted(engine)
    transport.send(B, GOOD, rsv1=True)
    await asyncio.wait_for(listener.gone.wait(), 20)
    assert listener.close_code == 1002
    await eventually_async(lambda: engine.log.count("WARNING") == 7)


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: wsfuse.v1\r\n\r\n"
)


@pytest.mark.parametrize(
    ("frames", "code", "complaint"),
    [
        (b"\x82\x01x", 1002, "un-masked"),
        (b"\x83\x80\0\0\0\0", 1002, "invalid opcode"),
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4), 1009, "exceeding max"),
        (b"\x81\x81\0\0\0\0x" + b"\x82\x81\0\0\0\0x", 1003, "a text message"),  # and nothing behind it counts
    ],
)
def test_frames_that_are_no_websocket(start: Start, frames: bytes, code: int, complaint: str) -> None:
    engine = start()
    with socket.create_connection(("127.0.0.1", engine.port)) as raw:
        raw.settimeout(20)
        raw.sendall(HANDSHAKE + frames)
        answer = b""
        while more := raw.recv(1000):
            answer += more
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"Sec-WebSocket-Protocol: wsfuse.v1" in answer
    assert struct.pack(">H", code) in answer.partition(b"\r\n\r\n")[2]
    assert engine.stop() == 0
    lines = [line for line in engine.log.splitlines() if "INFO" not in line]
    assert len(lines) == 1
    assert complaint in lines[0]


async def test_a_message_in_fragments(start: Start, join: Join) -> None:
    engine = start()
    transport, listener = await greeted(engine)
    for position, byte in enumerate(GOOD):
        kind = WSMsgType.CONTINUATION if position else WSMsgType.BINARY
        transport.send(kind, bytes([byte]), fin=position == len(GOOD) - 1)
        if position == 3:
            transport.send_ping(b"between")
            transport.send_pong(b"nobody asked")
    [(reply, _)] = codec.decode(await asyncio.wait_for(listener.messages.get(), 20))
    assert isinstance(reply, m.AttrReply)
    transport.send_close()
    await asyncio.wait_for(listener.gone.wait(), 20)
    assert listener.close_code == 1000


async def test_impatience_and_a_way_to_treat_links_that_nobody_knows(start: Start) -> None:
    engine = start()
    listener = Listener()
    transport = await connect(engine.url, listener)
    hello = codec.encode_frame(Hello([1], engine.ticket()))
    transport.send(WSMsgType.BINARY, hello)
    transport.send(WSMsgType.BINARY, GOOD)
    await asyncio.wait_for(listener.gone.wait(), 20)
    listener = Listener()
    transport = await connect(engine.url, listener)
    transport.send(WSMsgType.BINARY, codec.encode_frame(Hello([1], engine.ticket(), links="sideways")))
    await asyncio.wait_for(listener.gone.wait(), 20)
    assert listener.close_code == 1002


async def test_who_says_nothing_is_sent_away(start: Start) -> None:
    engine = start(hello_timeout=0.2)
    listener = Listener()
    await connect(engine.url, listener)
    await asyncio.wait_for(listener.gone.wait(), 20)
    assert (listener.close_code, listener.close_reason) == (1008, "no Hello in time")
    with socket.create_connection(("127.0.0.1", engine.port)) as raw:
        raw.settimeout(20)
        raw.sendall(b"GET / HTT")
        assert raw.recv(100) == b""
    transport, listener = await greeted(engine)
    transport.send_ping(b"still here")
    await asyncio.sleep(0)
    assert not listener.gone.is_set()


async def test_more_requests_than_the_window_allows(start: Start) -> None:
    engine = start(window=8)
    transport, listener = await greeted(engine)
    frames = [codec.encode_frame(m.MkDir(n, Ref(b""), b"d%d" % n, 0o755)) for n in range(1, 40)]
    transport.send(WSMsgType.BINARY, b"".join(frames))
    await asyncio.wait_for(listener.gone.wait(), 20)
    assert listener.close_code == 1009


# --- rights


async def test_read_only_by_configuration_and_by_ticket(start: Start, join: Join, tmp_path: Path) -> None:
    (tmp_path / "root" / "f").write_bytes(b"text")
    tenants = {
        "default": {"root": str(tmp_path / "root")},
        "ro": {"root": str(tmp_path / "root"), "read_only": True},
    }
    engine = start(tenants=tenants)
    for ticket in (engine.ticket(tenant="ro"), engine.ticket(rights=("read",))):
        client = await join(engine, ticket)
        assert client.welcome.read_only
        root = root_of(client)
        found = await client.call(m.Lookup, root, b"f")
        ref = Ref(b"f", found.attr.identity)
        handle = (await client.call(m.Open, ref, os.O_RDONLY)).handle
        assert await client.read(handle, 0, 10) == b"text"
        for make, arguments in (
            (m.Open, (ref, os.O_RDWR)),
            (m.Open, (ref, os.O_RDONLY | os.O_TRUNC)),
            (m.Write, (handle, 0)),
            (m.SetAttr, (ref, 0o600)),
            (m.MkDir, (root, b"d", 0o755)),
            (m.Unlink, (root, b"f")),
            (m.SetXattr, (ref, b"user.x", b"1")),
        ):
            with pytest.raises(OSError) as caught:
                await client.call(make, *arguments)
            assert caught.value.errno == errno.EROFS
    assert (tmp_path / "root" / "f").read_bytes() == b"text"


async def test_rights_are_those_of_the_latest_ticket(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    handle = (await create(client, b"f")).handle
    await client.cut()
    await client.open(engine.url, engine.ticket(rights=("read",)))
    assert client.kind == "resumed"
    with pytest.raises(OSError, match="Read-only"):
        await client.call(m.Write, handle, 0, payload=b"x")


async def test_errors_travel_by_name_and_do_not_tell_where_the_workspace_is(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    for make, arguments, number in (
        (m.Lookup, (root_of(client), b"missing"), errno.ENOENT),
        (m.GetAttr, (Ref(b"../../etc/passwd"),), errno.EACCES),
        (m.Open, (Ref(b"missing"), os.O_RDWR), errno.ENOENT),
        (m.Read, (12345, 0, 10), errno.EBADF),
        (m.SetLock, (12345, posix("r")), errno.EBADF),
        (m.GetLock, (12345, posix("r")), errno.EBADF),
        (m.Rename, (root_of(client), b"a", root_of(client), b"b"), errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            await client.call(make, *arguments)
        assert caught.value.errno == number
        assert str(engine.root) not in str(caught.value)


# --- order


async def test_requests_of_one_handle_keep_their_order(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    opened = await create(client, b"log", os.O_RDWR | os.O_APPEND)
    handle, seqs = opened.handle, []
    for number in range(200):
        seqs.append(client.send(m.Write, handle, 0, payload=b"%05d\n" % number))
        if number % 50 == 49:
            seqs.append(client.send(m.Read, handle, 0, 1 << 20))
    seqs.append(client.send(m.SetAttr, Ref(b"", None, handle), size=600))
    seqs.append(client.send(m.GetAttr, Ref(b"", None, handle)))
    seqs.append(client.send(m.Fsync, handle))
    seqs.append(client.send(m.Close, handle))
    late = client.send(m.Read, handle, 0, 10)
    replies = [await client.answer(seq) for seq in seqs]
    reads = [payload for reply, payload in replies if isinstance(reply, m.DataReply)]
    expected = b"".join(b"%05d\n" % number for number in range(200))
    assert reads == [expected[: 6 * n] for n in (50, 100, 150, 200)]
    assert replies[-3][0].attr.size == 600
    with pytest.raises(OSError) as caught:
        await client.answer(late)
    assert caught.value.errno == errno.EBADF
    assert (engine.root / "log").read_bytes() == expected[:600]


async def test_copies_between_two_handles_in_both_directions(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    a, b = (await create(client, b"a")).handle, (await create(client, b"b")).handle
    await client.call(m.Write, a, 0, payload=b"A" * 8192)
    await client.call(m.Write, b, 0, payload=b"B" * 8192)
    seqs = []
    for _ in range(20):
        seqs.append(client.send(m.CopyRange, a, 0, b, 4096, 4096))
        seqs.append(client.send(m.CopyRange, b, 0, a, 4096, 4096))
        seqs.append(client.send(m.CopyRange, a, 0, a, 4096, 4096))
    assert [(await client.answer(seq))[0].count for seq in seqs] == [4096] * 60
    assert (engine.root / "a").read_bytes() == b"A" * 8192
    assert (engine.root / "b").read_bytes() == b"B" * 4096 + b"A" * 4096


async def test_many_lock_requests_behind_a_write(start: Start, join: Join) -> None:
    engine = start(window=2048)
    client = await join(engine)
    handle = (await create(client, b"f")).handle
    first = client.send(m.Write, handle, 0, payload=bytes(1 << 20))
    seqs = [client.send(m.SetLock, handle, posix("w", owner=1, start=n, end=n)) for n in range(1200)]
    await client.answer(first)
    for seq in seqs:
        await client.answer(seq)


async def test_one_session_does_not_get_all_the_workers(start: Start, join: Join) -> None:
    engine = start(workers=2)
    busy, other = await join(engine), await join(engine)
    handles = [(await create(busy, b"f%d" % n)).handle for n in range(40)]
    seqs = [busy.send(m.Write, handle, 0, payload=bytes(1 << 18)) for handle in handles]
    await other.call(m.MkDir, root_of(other), b"d", 0o755)
    assert not all(busy.answered(seq) for seq in seqs)
    for seq in seqs:
        await busy.answer(seq)


# --- resume, takeover, grace


async def test_resume_after_a_cut(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    handle = (await create(client, b"f", os.O_RDWR | os.O_APPEND)).handle
    await client.call(m.SetLock, handle, posix("w"))
    seqs = [client.send(m.Write, handle, 0, payload=b"line %d\n" % n) for n in range(50)]
    await client.cut()
    await client.open(engine.url, engine.ticket(), handles=[handle])
    assert client.kind == "resumed"
    for seq in seqs:
        await client.answer(seq)
    assert (engine.root / "f").read_bytes() == b"".join(b"line %d\n" % n for n in range(50))
    other = await join(engine)
    theirs = (await other.call(m.Open, Ref(b"f"), os.O_RDWR)).handle
    with pytest.raises(OSError, match="unavailable"):
        await other.call(m.SetLock, theirs, posix("w"))


async def test_a_resume_closes_what_the_client_does_not_name(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    kept, dropped = (await create(client, b"a")).handle, (await create(client, b"b")).handle
    await client.call(m.SetLock, dropped, flock("w"))
    unknown = client.send(m.Create, root_of(client), b"c", 0o644, os.O_RDWR)
    await client.cut()  # whether or not the answer came: it was not acknowledged
    await client.open(engine.url, engine.ticket(), handles=[kept])
    unknown_handle = (await client.answer(unknown))[0].handle
    await client.read(kept, 0, 1)
    await client.read(unknown_handle, 0, 1)
    with pytest.raises(OSError) as caught:
        await client.read(dropped, 0, 1)
    assert caught.value.errno == errno.EBADF
    other = await join(engine)
    theirs = (await other.call(m.Open, Ref(b"b"), os.O_RDONLY)).handle
    await other.call(m.SetLock, theirs, flock("w"))


async def test_a_newer_connection_takes_over(start: Start, join: Join) -> None:
    engine = start()
    old = await join(engine)
    handle = (await create(old, b"f")).handle
    new = RawClient(session=old.welcome.session, epoch=engine.epoch, incarnation=2)
    await new.open(engine.url, engine.ticket())
    assert new.kind == "resumed"
    await asyncio.wait_for(old.listener.gone.wait(), 20)
    assert old.listener.close_code == 1000
    await new.call(m.Write, handle, 0, payload=b"x")
    await new.close()


async def test_the_end_of_the_grace(start: Start, join: Join) -> None:
    engine = start(grace=0.3)
    client, other = await join(engine), await join(engine)
    handle = (await create(client, b"f")).handle
    await client.call(m.SetLock, handle, posix("w"))
    theirs = (await other.call(m.Open, Ref(b"f"), os.O_RDWR)).handle
    waiting = other.send(m.SetLock, theirs, posix("w"), wait=True)
    never = client.send(m.SetLock, handle, flock("w"))
    await client.answer(never)
    await client.cut()
    await other.answer(waiting)  # granted when the session of the first has ended
    assert [s["client"] for s in engine.status()["sessions"]] == ["client1"]
    unsure = client.send(m.MkDir, root_of(client), b"d", 0o755)
    await client.open(engine.url, engine.ticket())
    assert client.kind == "lost"
    assert not client.welcome.resumed
    await client.answer(unsure)  # it was never sent
    for make, arguments in ((m.Write, (handle, 0)), (m.SetLock, (handle, posix("w")))):
        with pytest.raises(OSError) as caught:
            await client.call(make, *arguments)
        assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError) as caught:
        await client.call(m.Reopen, Ref(b"f"), handle, os.O_RDWR, locks=[posix("w")])
    assert caught.value.errno == errno.ENOLCK
    await client.call(m.Reopen, Ref(b"f"), handle, os.O_RDWR)
    assert len(list((engine.state_dir).glob("*.record"))) == 2


async def test_goodbye_releases_everything(start: Start, join: Join) -> None:
    engine = start()
    client, other = await join(engine), await join(engine)
    handle = (await create(client, b"f")).handle
    await client.call(m.SetLock, handle, flock("w"))
    theirs = (await other.call(m.Open, Ref(b"f"), os.O_RDWR)).handle
    waiting = other.send(m.SetLock, theirs, flock("w"), wait=True)
    await client.close()
    await other.answer(waiting)
    await eventually_async(lambda: len(list(engine.state_dir.glob("*.record"))) == 1)


# --- locks between sessions


async def test_two_sessions_lock_each_other_out(start: Start, join: Join) -> None:
    engine = start()
    a, b = await join(engine), await join(engine)
    ours = (await create(a, b"f")).handle
    theirs = (await b.call(m.Open, Ref(b"f"), os.O_RDWR)).handle
    granted = await a.call(m.SetLock, ours, posix("w", start=0, end=9))
    assert granted.attr.size == 0
    found = await b.call(m.GetLock, theirs, posix("w"))
    assert (found.lock.type, found.lock.start, found.lock.end, found.lock.pid) == ("w", 0, 9, 42)
    assert (await b.call(m.GetLock, theirs, posix("r", start=10))).lock.type == "u"
    with pytest.raises(OSError, match="unavailable"):
        await b.call(m.SetLock, theirs, posix("r"))
    waiting = b.send(m.SetLock, theirs, posix("r"), wait=True)
    cancelled = b.send(m.SetLock, theirs, posix("w", owner=5), wait=True)
    await b.call(m.GetAttr, root_of(b))
    assert not b.answered(waiting)
    assert b.session.cancel(cancelled) is False
    b.flush()
    with pytest.raises(InterruptedError):
        await b.answer(cancelled)
    await a.call(m.Write, ours, 0, payload=b"changed")
    unlocked = await a.call(m.SetLock, ours, posix("u"))
    assert unlocked.attr is None
    assert (await b.answer(waiting))[0].attr.size == 7  # as it is once the lock is held
    with pytest.raises(OSError) as caught:
        await b.call(m.SetLock, theirs, Lock(1, 5, 4, "r", 0))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError) as caught:
        await b.call(m.GetLock, theirs, Lock(1, 5, 4, "r", 0))
    assert caught.value.errno == errno.EINVAL


async def test_a_deadlock_between_mounts(start: Start, join: Join) -> None:
    engine = start()
    a, b = await join(engine), await join(engine)
    handles = {}
    for name in (b"x", b"y"):
        handles[a, name] = (await create(a, name)).handle
        handles[b, name] = (await b.call(m.Open, Ref(name), os.O_RDWR)).handle
    await a.call(m.SetLock, handles[a, b"x"], posix("w"))
    await b.call(m.SetLock, handles[b, b"y"], posix("w"))
    waiting = a.send(m.SetLock, handles[a, b"y"], posix("w"), wait=True)
    await a.call(m.GetAttr, root_of(a))  # it has arrived
    with pytest.raises(OSError) as caught:
        await b.call(m.SetLock, handles[b, b"x"], posix("w"), wait=True)
    assert caught.value.errno == errno.EDEADLK
    await b.call(m.SetLock, handles[b, b"y"], posix("u"))
    await a.answer(waiting)


async def test_a_close_releases_before_what_comes_after_it(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    one = (await create(client, b"f")).handle
    two = (await client.call(m.Open, Ref(b"f"), os.O_RDWR)).handle
    for _ in range(30):
        await client.call(m.SetLock, one, flock("w"))
        close = client.send(m.Close, one)
        await client.answer(client.send(m.SetLock, two, flock("w")))
        await client.answer(close)
        await client.call(m.SetLock, two, flock("u"))
        one = (await client.call(m.Open, Ref(b"f"), os.O_RDWR)).handle
    # With a write under way the lock holds until that is done.
    await client.call(m.SetLock, one, flock("w"))
    write = client.send(m.Write, one, 0, payload=bytes(1 << 20))
    close = client.send(m.Close, one)
    waiting = client.send(m.SetLock, two, flock("w"), wait=True)
    for seq in (write, close, waiting):
        await client.answer(seq)


async def test_locks_on_directories_and_pins(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    directory = (await client.call(m.OpenDir, root_of(client))).handle
    await client.call(m.SetLock, directory, flock("w"))
    await create(client, b"f")
    pin = (await client.call(m.Unlink, root_of(client), b"f", pin=True)).pin
    for handle, lock in ((directory, posix("r")), (pin, posix("r")), (pin, flock("r"))):
        with pytest.raises(OSError) as caught:
            await client.call(m.SetLock, handle, lock)
        assert caught.value.errno == errno.EBADF


# --- changes


async def test_others_are_told_what_changed(start: Start, join: Join) -> None:
    engine = start()
    a, b = await join(engine), await join(engine)
    made = await create(a, b"f")
    await a.call(m.Write, made.handle, 0, payload=b"x")
    await asyncio.wait_for(b.told.wait(), 20)
    root = a.welcome.root.identity
    await eventually_async(
        lambda: (
            {(change.identity, change.name) for told in b.notified for change in told.changes}
            >= {(root, b"f"), (root, None), (made.attr.identity, None)}
        )
    )
    assert a.notified == []
    b.told.clear()
    await a.call(m.MkDir, Ref(b""), b"d", 0o755)  # of a directory that is not named by its identity
    await asyncio.wait_for(b.told.wait(), 20)
    assert isinstance(b.notified[-1], m.InvalidateAll)
    b.notified.clear()
    b.told.clear()
    await b.cut()
    await a.call(m.MkDir, root_of(a), b"e", 0o755)
    await b.open(engine.url, engine.ticket())
    await asyncio.wait_for(b.told.wait(), 20)
    assert isinstance(b.notified[0], m.InvalidateAll)


# --- a client that does not read


async def test_a_slow_reader_costs_a_bounded_amount(start: Start, join: Join) -> None:
    engine = start(window=512, window_bytes=512 << 20)
    (engine.root / "big").write_bytes(os.urandom(1 << 20) * 4)
    slow, other = await join(engine), await join(engine)
    handle = (await slow.call(m.Open, Ref(b"big"), os.O_RDONLY)).handle
    page = Path(f"/proc/{engine.process.pid}/statm")

    def resident() -> int:
        return int(page.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(20):
        await slow.read(handle, 0, 1 << 20)
    before = resident()
    slow.transport.underlying_transport.pause_reading()
    seqs = [slow.send(m.Read, handle, (n % 4) << 20, 1 << 20) for n in range(400)]
    seqs += [slow.send(m.ReadLink, Ref(b"big")) for _ in range(50)]
    root = root_of(other)
    for n in range(100):
        await other.call(m.MkDir, root, b"d%d" % n, 0o755)
    assert not slow.answered(seqs[-1])
    assert resident() - before < 64 << 20
    slow.transport.underlying_transport.resume_reading()
    for seq in seqs[:400]:
        assert len((await slow.answer(seq))[1]) == 1 << 20
    for seq in seqs[400:]:
        with pytest.raises(OSError):
            await slow.answer(seq)
    assert slow.notified  # what the other did while it was not listening


async def test_a_slow_reader_that_vanishes(start: Start, join: Join) -> None:
    engine = start()
    (engine.root / "big").write_bytes(bytes(1 << 20))
    slow = await join(engine)
    handle = (await slow.call(m.Open, Ref(b"big"), os.O_RDONLY)).handle
    slow.transport.underlying_transport.pause_reading()
    seqs = [slow.send(m.Read, handle, 0, 1 << 20) for _ in range(100)]
    made = slow.send(m.MkDir, root_of(slow), b"d", 0o755)
    await eventually_async(lambda: engine.status()["operations"].get("Read", {"count": 0})["count"] > 3)
    await slow.cut()
    await slow.open(engine.url, engine.ticket())
    for seq in [*seqs, made]:
        await slow.answer(seq)


# --- the engine's death and its end


class Stream:
    """Mutations that show how often each was executed."""

    def __init__(self, client: RawClient, log: Any) -> None:
        self.client = client
        self.log = log
        self.sent: list[tuple[str, int, int]] = []

    def add(self, number: int) -> None:
        client, root = self.client, root_of(self.client)
        for kind, seq in (
            ("append", client.send(m.Write, self.log.handle, 0, payload=b"%06d\n" % number)),
            ("mkdir", client.send(m.MkDir, root, b"dir%d" % number, 0o755)),
            ("create", client.send(m.Create, root, b"new%d" % number, 0o600, os.O_RDWR | os.O_EXCL)),
            ("rmdir", client.send(m.RmDir, root, b"old%d" % number)),
            ("unlink", client.send(m.Unlink, root, b"file%d" % number)),
            ("rename", client.send(m.Rename, root, b"from%d" % number, root, b"to%d" % number)),
            ("link", client.send(m.Link, Ref(b"target"), root, b"link%d" % number)),
            ("symlink", client.send(m.SymLink, root, b"sym%d" % number, b"target")),
        ):
            self.sent.append((kind, number, seq))


@pytest.mark.parametrize("after", [1, 3, 40, 150, 300])
async def test_kill_9_in_a_stream_of_mutations(start: Start, after: int) -> None:
    engine = start(window=4096)
    total = 60
    for number in range(total):
        (engine.root / f"old{number}").mkdir()
        (engine.root / f"file{number}").touch()
        (engine.root / f"from{number}").touch()
    (engine.root / "target").touch()
    client = RawClient()
    await client.open(engine.url, engine.ticket())
    log = await create(client, b"log", os.O_WRONLY | os.O_APPEND)
    stream = Stream(client, log)
    for number in range(total):
        stream.add(number)
    handles: dict[int, int] = {}
    for _kind, _number, seq in stream.sent[:after]:
        await asyncio.wait_for(asyncio.shield(client._answers[seq]), 20)
    engine.kill()
    await asyncio.wait_for(client.listener.gone.wait(), 20)
    engine.start()
    await client.open(engine.url, engine.ticket(), recover=False)
    assert client.kind == "recovered"
    assert client.welcome.recovered
    await client.call(
        m.Reopen, Ref(b"log", log.attr.identity), log.handle, os.O_WRONLY | os.O_APPEND, recovery=True
    )
    for kind, number, seq in stream.sent:
        if kind == "create" and client.answered(seq):  # known to be open: to be taken up again as well
            made = client._answers[seq].result()[0]
            again = Ref(b"new%d" % number, made.attr.identity)
            await client.call(m.Reopen, again, made.handle, os.O_RDWR, recovery=True)
    client.recovered()
    for kind, number, seq in stream.sent:
        reply, _ = await client.answer(seq)  # none failed: none was executed a second time
        if kind == "create":
            handles[number] = reply.handle
    assert (engine.root / "log").read_bytes() == b"".join(b"%06d\n" % number for number in range(total))
    names = {path.name for path in engine.root.iterdir()}
    assert names == {"log", "target"} | {
        f"{kind}{number}" for kind in ("dir", "new", "to", "link", "sym") for number in range(total)
    }
    assert (engine.root / "target").stat().st_nlink == total + 1
    # What was created before the kill and answered after it can be written to.
    last = handles[total - 1]
    await client.call(m.Write, last, 0, payload=b"alive")
    assert (engine.root / f"new{total - 1}").read_bytes() == b"alive"
    await client.close()


async def test_locks_are_claimed_before_others_get_them(start: Start, join: Join) -> None:
    engine = start()
    holder, other = await join(engine), await join(engine)
    ours = await create(holder, b"f")
    lock = posix("w", start=0, end=99)
    await holder.call(m.SetLock, ours.handle, lock)
    await holder.call(m.SetLock, ours.handle, flock("w"))
    theirs = await other.call(m.Open, Ref(b"f"), os.O_RDWR)
    engine.kill()
    for client in (holder, other):
        await asyncio.wait_for(client.listener.gone.wait(), 20)
    engine.start()
    await other.open(engine.url, engine.ticket())
    assert other.kind == "recovered"
    again = await other.call(m.Open, Ref(b"f"), os.O_RDWR)
    eager = other.send(m.SetLock, again.handle, posix("w"))
    patient = other.send(m.SetLock, again.handle, flock("w"), wait=True)
    await other.call(m.GetAttr, root_of(other))
    assert not other.answered(eager)
    await holder.open(engine.url, engine.ticket(), recover=False)
    ref = Ref(b"f", ours.attr.identity)
    reopened = await holder.call(
        m.Reopen, ref, ours.handle, os.O_RDWR, locks=[lock, flock("w")], recovery=True
    )
    assert reopened.handle == ours.handle
    holder.recovered()
    with pytest.raises(OSError, match="unavailable"):
        await other.answer(eager)
    assert not other.answered(patient)
    await holder.call(m.Close, ours.handle)
    await other.answer(patient)
    # By the record this one held nothing, so a claim that conflicts is of a lock that was being released.
    await other.call(m.Reopen, Ref(b"f"), theirs.handle, os.O_RDWR, locks=[flock("w")])
    assert (await other.call(m.GetLock, theirs.handle, flock("w"))).lock.type == "w"


async def test_a_lock_that_a_process_took_in_between_is_lost(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    ours = await create(client, b"f")
    await client.call(m.SetLock, ours.handle, flock("w"))
    engine.kill()
    await asyncio.wait_for(client.listener.gone.wait(), 20)
    engine.start()
    with open(engine.root / "f") as foreign:
        fcntl.flock(foreign, fcntl.LOCK_EX)
        await client.open(engine.url, engine.ticket(), recover=False)
        with pytest.raises(OSError) as caught:
            await client.call(
                m.Reopen,
                Ref(b"f", ours.attr.identity),
                ours.handle,
                os.O_RDWR,
                locks=[flock("w")],
                recovery=True,
            )
        assert caught.value.errno == errno.ENOLCK
    client.recovered()
    with pytest.raises(OSError) as caught:
        await client.call(m.Write, ours.handle, 0, payload=b"under a lock that is not held")
    assert caught.value.errno == errno.EBADF


async def test_holders_that_do_not_come_back_do_not_block_for_ever(start: Start, join: Join) -> None:
    engine = start(grace=0.5)
    holder, other = await join(engine), await join(engine)
    ours = await create(holder, b"f")
    await holder.call(m.SetLock, ours.handle, posix("w"))
    engine.kill()
    for client in (holder, other):
        await asyncio.wait_for(client.listener.gone.wait(), 20)
    engine.start()
    await other.open(engine.url, engine.ticket())
    handle = (await other.call(m.Open, Ref(b"f"), os.O_RDWR)).handle
    await other.call(m.SetLock, handle, posix("w"))
    await holder.open(engine.url, engine.ticket(), recover=False)
    assert holder.kind == "lost"
    with pytest.raises(OSError) as caught:
        await holder.call(
            m.Reopen, Ref(b"f", ours.attr.identity), ours.handle, os.O_RDWR, locks=[posix("w")], recovery=True
        )
    assert caught.value.errno == errno.ENOLCK


async def test_sessions_of_a_tenant_that_is_served_no_longer(
    start: Start, join: Join, tmp_path: Path
) -> None:
    engine = start()
    client = await join(engine)
    engine.kill()
    await asyncio.wait_for(client.listener.gone.wait(), 20)
    engine.options["tenants"] = {"other": {"root": str(tmp_path)}}
    engine.start()
    assert engine.status()["sessions"] == []
    assert list(engine.state_dir.glob("*.record")) == []


@pytest.mark.parametrize("by_signal", [False, True])
async def test_a_stop_finishes_what_has_begun_and_leaves_the_sessions(
    start: Start, join: Join, by_signal: bool
) -> None:
    engine = start()
    client = await join(engine)
    opened = await create(client, b"f")
    seqs = [client.send(m.Write, opened.handle, n << 20, payload=bytes([n]) * (1 << 20)) for n in range(8)]
    idle = Listener()
    await connect(engine.url, idle)
    await client.answer(seqs[0])
    if by_signal:
        engine.process.send_signal(signal.SIGTERM)
    else:
        assert engine.process.stdin is not None
        engine.process.stdin.close()
    for listener in (client.listener, idle):
        await asyncio.wait_for(listener.gone.wait(), 20)
        assert listener.close_code == 1001
    assert await asyncio.to_thread(engine.stop) == 0
    engine.start()
    await client.open(engine.url, engine.ticket(), recover=False)
    assert client.kind == "recovered"
    await client.call(m.Reopen, Ref(b"f", opened.attr.identity), opened.handle, os.O_RDWR, recovery=True)
    client.recovered()
    for seq in seqs[1:]:
        await client.answer(seq)
    assert (engine.root / "f").read_bytes() == b"".join(bytes([n]) * (1 << 20) for n in range(8))


async def test_who_does_not_take_the_last_replies_does_not_prevent_the_stop(start: Start, join: Join) -> None:
    engine = start()
    (engine.root / "big").write_bytes(bytes(1 << 20))
    client = await join(engine)
    handle = (await client.call(m.Open, Ref(b"big"), os.O_RDONLY)).handle
    client.transport.underlying_transport.pause_reading()
    for _ in range(40):
        client.send(m.Read, handle, 0, 1 << 20)
    await eventually_async(lambda: engine.status()["operations"].get("Read", {"count": 0})["count"] > 3)
    assert await asyncio.to_thread(engine.stop) == 0
    assert "a client did not take its last replies" in engine.log

"""The client, a real Jupyter server in a process of its own, and the real engine: both ways, and what breaks them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import picows
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

import jupyter_wsfuse
from jupyter_wsfuse.client.connection import Connection, ConnectionOptions
from jupyter_wsfuse.client.discovery import Server, discover
from jupyter_wsfuse.errors import RefusedError, TransportError
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol.messages import (
    AttrReply,
    Close,
    CountReply,
    Create,
    GetAttr,
    Hello,
    MkDir,
    Open,
    OpenReply,
    Read,
    Ref,
    Refused,
    Reopen,
    Welcome,
    Write,
)
from jupyter_wsfuse.protocol.tickets import TicketIssuer
from tests.helpers.tcpproxy import TcpProxy

pytestmark = pytest.mark.jupyter

PACKAGE = Path(jupyter_wsfuse.__file__).resolve().parent.parent
QUICK: dict[str, Any] = {"backoff": 0.01, "backoff_max": 0.1, "client": "live"}


@dataclass
class Jupyter:
    """A server process. ``log`` grows while it runs; ``announced`` are the problems that a test provokes."""

    process: asyncio.subprocess.Process
    server: Server
    root: Path
    log: list[str] = field(default_factory=list)
    grown: asyncio.Condition = field(default_factory=asyncio.Condition)
    announced: list[str] = field(default_factory=list)

    async def follow(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            async with self.grown:
                self.log.append(line.decode())
                self.grown.notify_all()

    async def until(self, pattern: str, count: int = 1) -> str:
        """Wait for that many lines that match, and return the last."""

        def found() -> list[str]:
            return [line for line in self.log if re.search(pattern, line)]

        async with self.grown:
            await self.grown.wait_for(lambda: len(found()) >= count)
        return found()[-1]

    async def accepts(self) -> None:
        """It announces itself before it listens."""
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", _port(self.server))
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return

    async def status(self) -> dict[str, Any]:
        request = HTTPRequest(
            self.server.url + "wsfuse/api/status", headers={"Authorization": f"token {self.server.token}"}
        )
        status: dict[str, Any] = json.loads((await AsyncHTTPClient().fetch(request)).body)
        return status

    async def ticket(self) -> dict[str, Any]:
        request = HTTPRequest(
            self.server.url + "wsfuse/api/ticket",
            method="POST",
            body=b"{}",
            headers={"Authorization": f"token {self.server.token}"},
        )
        ticket: dict[str, Any] = json.loads((await AsyncHTTPClient().fetch(request)).body)
        return ticket


@pytest.fixture
async def jupyter(tmp_path: Path) -> AsyncIterator[Jupyter]:
    root, home = tmp_path / "root", tmp_path / "home"
    for directory in (root, home, tmp_path / "run"):
        directory.mkdir(mode=0o700)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY"))},
        "HOME": str(home),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "run"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "jupyter_server", "--allow-root", "--no-browser"),
        *("--ServerApp.port=0", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={root}"),
        *("--ServerApp.jpserver_extensions={'jupyter_wsfuse': True}", "--WsFuse.probe_interval=0.2"),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Jupyter(process, Server("http://unknown/", ""), root)
    following = asyncio.create_task(running.follow())
    try:
        await running.until("copy and paste")
        environ = {"JPY_PARENT_PID": str(process.pid)}
        running.server = discover(environ=environ, runtime_dir=tmp_path / "run")
        await running.accepts()
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
        await following
    assert not list((tmp_path / "run").glob("wsfuse-*"))
    problems = [
        line
        for line in running.log
        if re.search(r"^\[[WE] |Traceback|Warning:", line)
        and not any(word in line for word in running.announced)
    ]
    assert not problems, "".join(running.log)


Opened = Callable[..., Any]


@pytest.fixture
async def connect(jupyter: Jupyter) -> AsyncIterator[Opened]:
    made: list[Connection] = []

    async def connector(server: Server | None = None, **options: Any) -> Connection:
        before = options.pop("before", lambda _connection: None)
        made.append(Connection(server or jupyter.server, ConnectionOptions(**{**QUICK, **options})))
        before(made[-1])
        await made[-1].open()
        return made[-1]

    yield connector
    for connection in made:
        await connection.close()


def _through(server: Server, proxy: TcpProxy) -> Server:
    return Server(f"http://127.0.0.1:{proxy.port}/", server.token)


def _port(server: Server) -> int:
    return int(server.url.rstrip("/").rpartition(":")[2])


async def _write_and_read(connection: Connection, name: bytes) -> None:
    opened, _ = await connection.call(Create(0, Ref(b""), name, 0o644, os.O_RDWR))
    assert isinstance(opened, OpenReply)
    data = os.urandom(1 << 20)
    written = await asyncio.gather(
        *[connection.call(Write(0, opened.handle, index << 20), data) for index in range(8)]
    )
    assert [reply.count for reply, _ in written if isinstance(reply, CountReply)] == [1 << 20] * 8
    read = await asyncio.gather(
        *[connection.call(Read(0, opened.handle, index << 20, 1 << 20)) for index in range(8)]
    )
    assert all(found == data for _, found in read)
    connection.post(Close(0, opened.handle))


@pytest.mark.parametrize("transport", ["direct", "relay", "auto"])
async def test_files_by_every_way(transport: str, jupyter: Jupyter, connect: Opened) -> None:
    connection = await connect(transport=transport)
    await _write_and_read(connection, b"data.bin")
    assert (jupyter.root / "data.bin").stat().st_size == 8 << 20
    with pytest.raises(FileNotFoundError):
        await connection.call(GetAttr(0, Ref(b"nothing")))
    (session,) = (await jupyter.status())["sessions"]
    expected = "direct" if transport == "auto" else transport
    assert (session["client"], session["transport"], session["connected"]) == ("live", expected, True)
    await connection.close()
    await jupyter.until("said goodbye")
    assert (await jupyter.status())["sessions"] == []


async def test_a_wrong_token(jupyter: Jupyter) -> None:
    jupyter.announced.extend(["_xsrf", "403 POST"])
    for token, said in (
        ("wrong", "the server refused the token; pass"),
        ("", "the server wants a token; pass"),
    ):
        with pytest.raises(RefusedError, match=said):
            await Connection(Server(jupyter.server.url, token)).open()


async def test_a_server_without_the_extension(jupyter: Jupyter) -> None:
    jupyter.announced.append("404 POST")
    server = Server(jupyter.server.url + "elsewhere/", jupyter.server.token)
    with pytest.raises(TransportError, match="pip install jupyter-wsfuse"):
        await Connection(server).open()


async def test_a_relay_that_is_cut_again_and_again(jupyter: Jupyter, connect: Opened) -> None:
    jupyter.announced.append("Stream is closed")
    async with TcpProxy(_port(jupyter.server)) as proxy:
        connection = await connect(_through(jupyter.server, proxy), transport="relay")
        for round_ in range(5):
            calls = [
                asyncio.create_task(connection.call(MkDir(0, Ref(b""), f"{round_}-{number}".encode(), 0o755)))
                for number in range(20)
            ]
            await asyncio.sleep(0)
            proxy.cut()
            await asyncio.gather(*calls)  # none says EEXIST: each was done once
        assert len(list(jupyter.root.iterdir())) == 100
        assert connection.status()["reconnects"] >= 1
        await connection.close()


@pytest.mark.parametrize("transport", ["direct", "relay"])
async def test_an_engine_that_is_killed_is_replaced_and_the_client_goes_on(
    transport: str, jupyter: Jupyter, connect: Opened
) -> None:
    jupyter.announced.extend(["the file engine failed", "did not answer", "is started again"])
    kinds: list[str] = []
    handles: dict[int, bytes] = {}

    def before(connection: Connection) -> None:
        async def on_welcome(_welcome: Welcome, kind: str) -> None:
            kinds.append(kind)
            if kind == "recovered":
                for handle, name in handles.items():
                    await connection.call(Reopen(0, Ref(name), handle, os.O_RDWR), recovery=True)

        connection.on_welcome = on_welcome
        connection.live_handles = lambda: list(handles)

    connection = await connect(transport=transport, before=before)
    opened, _ = await connection.call(Create(0, Ref(b""), b"log", 0o644, os.O_RDWR | os.O_APPEND))
    assert isinstance(opened, OpenReply)
    handles[opened.handle] = b"log"
    for _round in range(3):
        pid = (await jupyter.status())["engine"]["pid"]
        appends = [connection.call(Write(0, opened.handle, 0), b"x") for _ in range(10)]
        waiting = [asyncio.create_task(append) for append in appends]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*waiting)
    assert kinds == ["new", "recovered", "recovered", "recovered"]
    attributes, _ = await connection.call(GetAttr(0, Ref(b"log")))
    assert isinstance(attributes, AttrReply)
    assert (jupyter.root / "log").stat().st_size == attributes.attr.size
    status = await jupyter.status()
    assert status["engine"]["restarts"] == 3


async def _answer_to(port: int, hello: Hello) -> object:
    """What the engine says to a Hello of our own making."""
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    class Listener(picows.WSListener):
        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type is picows.WSMsgType.BINARY and not answer.done():
                answer.set_result(codec.decode(frame.get_payload_as_bytes())[0][0])
                transport.disconnect()

    transport, _ = await picows.ws_connect(
        Listener, f"ws://127.0.0.1:{port}/", extra_headers={"Sec-WebSocket-Protocol": "wsfuse.v1"}
    )
    transport.send(picows.WSMsgType.BINARY, codec.encode_frame(hello))
    found = await answer
    await transport.wait_disconnected()
    return found


async def test_forged_and_replayed_tickets_are_refused_and_logged(jupyter: Jupyter) -> None:
    jupyter.announced.extend(["ticket", "refused"])
    ticket = await jupyter.ticket()
    port = ticket["engine"]["port"]
    forged = TicketIssuer(b"a secret of my own making" * 2, "x").issue(
        "default", "eve", {"read", "write"}, 60
    )
    for text, code in (
        (forged, "ticket-forged"),
        ("rubbish", "ticket-forged"),
        (ticket["ticket"][:-3] + "abc", "ticket-forged"),
    ):
        answer = await _answer_to(port, Hello([1], text))
        assert isinstance(answer, Refused)
        assert answer.code == code
    assert isinstance(await _answer_to(port, Hello([1], ticket["ticket"])), Welcome)
    answer = await _answer_to(port, Hello([1], ticket["ticket"]))
    assert isinstance(answer, Refused)
    assert answer.code == "ticket-replayed"
    await jupyter.until("ticket-replayed|used before")
    assert not any(ticket["ticket"] in line for line in jupyter.log)


async def test_a_silent_link_is_left(jupyter: Jupyter, connect: Opened) -> None:
    async with TcpProxy(_port(jupyter.server)) as proxy:
        connection = await connect(
            _through(jupyter.server, proxy), transport="relay", heartbeat=0.05, patience=0.1
        )
        states: asyncio.Queue[str] = asyncio.Queue()
        connection.on_state = states.put_nowait
        proxy.down.stall()
        assert await states.get() == "reconnecting"
        proxy.down.resume()
        assert await states.get() == "connected"
        await connection.call(GetAttr(0, Ref(b"")))
        await connection.close()


async def test_the_server_stops_under_a_mount(jupyter: Jupyter, connect: Opened) -> None:
    connection = await connect(deadline=0.2)
    opened, _ = await connection.call(Create(0, Ref(b""), b"f", 0o644, os.O_RDWR))
    pid = (await jupyter.status())["engine"]["pid"]
    jupyter.process.send_signal(signal.SIGTERM)
    await jupyter.process.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(TimeoutError, match="connection refused"):
        await connection.call(Read(0, opened.handle, 0, 10))


async def test_the_engine_does_not_survive_its_server(
    jupyter: Jupyter, connect: Opened, tmp_path: Path
) -> None:
    await connect(deadline=0.2)
    pid = (await jupyter.status())["engine"]["pid"]
    ended = os.pidfd_open(pid)
    jupyter.process.kill()
    waiting = asyncio.Event()
    asyncio.get_running_loop().add_reader(ended, waiting.set)
    await waiting.wait()
    asyncio.get_running_loop().remove_reader(ended)
    os.close(ended)
    for remains in (tmp_path / "run").glob("wsfuse-*"):  # the next server of this user removes them
        for file in sorted(remains.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        remains.rmdir()


async def test_opening_what_is_not_there_by_both_ways(jupyter: Jupyter, connect: Opened) -> None:
    direct, relay = await connect(transport="direct"), await connect(transport="relay")
    for connection in (direct, relay):
        with pytest.raises(FileNotFoundError):
            await connection.call(Open(0, Ref(b"nothing"), os.O_RDONLY), key=2)
        connection.done(2)
    assert len((await jupyter.status())["sessions"]) == 2

"""The control socket and the channel, with a supervisor and a daemon that are only functions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.errors import DiscoveryError, MountError, NotMountedError, RefusedError, TransportError
from jupyter_wsfuse.mount import control
from jupyter_wsfuse.mount.control import Channel, ChannelClosed, Client, ControlServer


async def answer(op: str, arguments: dict[str, Any]) -> Any:
    if op == "echo":
        return arguments
    if op == "slow":
        await asyncio.Event().wait()
    if op == "refuse":
        raise RefusedError("busy", "come back later")
    if op == "errno":
        raise FileNotFoundError(2, "not there")
    if op == "large":
        return "x" * arguments["size"]
    raise MountError(f"unknown request {op!r}")


async def blocking(function: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function)


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MountError("a"),
        NotMountedError("b"),
        TransportError("c"),
        DiscoveryError("d"),
        RefusedError("busy", "e"),
    ],
)
def test_our_errors_cross_a_pipe(error: Exception) -> None:
    again = control.error_from_json(json.loads(json.dumps(control.error_to_json(error))))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert getattr(again, "code", None) == getattr(error, "code", None)


def test_other_errors_become_ours() -> None:
    for error in (OSError(2, "not there"), ZeroDivisionError("oops"), TimeoutError()):
        assert type(control.error_from_json(control.error_to_json(error))) is MountError
    assert type(control.error_from_json({"kind": "os", "message": "x"})) is MountError


# --- the control socket ----------------------------------------------------------------------------------------


async def test_requests_are_answered(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    server = ControlServer(path, answer)
    await server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def ask() -> None:
        with Client(path) as client:
            assert client.call("echo", a=1, b=["x"]) == {"a": 1, "b": ["x"]}
            with pytest.raises(RefusedError, match="come back later"):
                client.call("refuse")
            with pytest.raises(MountError, match="not there"):
                client.call("errno")
            with pytest.raises(MountError, match="unknown request"):
                client.call("nothing")
            assert len(client.call("large", size=3_000_000)) == 3_000_000

    await blocking(ask)
    await server.close()


async def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "a.sock"
    path.parent.mkdir(parents=True)
    server = ControlServer(path, answer)
    await server.start()

    def ask() -> None:
        with Client(path) as client:
            assert client.call("echo") == {}

    await blocking(ask)
    await server.close()


async def test_a_stuck_answer_costs_the_deadline(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "a.sock", answer)
    await server.start()

    def ask() -> None:
        with Client(tmp_path / "a.sock") as client, pytest.raises(MountError, match="did not answer"):
            client.call("slow", timeout=0.05)

    await blocking(ask)
    await server.close(timeout=0.05)


async def test_closing_answers_what_is_under_way(tmp_path: Path) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def last(op: str, arguments: dict[str, Any]) -> Any:
        begun.set()
        await release.wait()
        return "the last word"

    server = ControlServer(tmp_path / "a.sock", last)
    await server.start()

    def ask() -> Any:
        with Client(tmp_path / "a.sock") as client:
            word = client.call("unmount")
            client.wait_closed(30)
            return word

    asking = asyncio.ensure_future(blocking(ask))
    await begun.wait()
    closing = asyncio.create_task(server.close())
    release.set()
    await closing
    assert await asking == "the last word"


async def test_nonsense_is_refused_and_the_server_lives(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "a.sock", answer)
    await server.start()

    for line in (b"nonsense\n", b"[1]\n", b'"op"\n'):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "a.sock"))
        writer.write(line)
        assert json.loads(await reader.readline())["ok"] is False
        writer.close()
        await writer.wait_closed()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "a.sock"))
    writer.write(b"x" * 200_000)  # a line without end
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await server.close()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotMountedError):
        Client(tmp_path / "a.sock")
    left_over = socket.socket(socket.AF_UNIX)
    with left_over:
        left_over.bind(str(tmp_path / "b.sock"))
    with pytest.raises(NotMountedError):
        Client(tmp_path / "b.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_turned_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one who got past the modes of directory and socket. (Root is let in: here we pretend to be somebody.)"""
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    monkeypatch.setattr(control, "peer_uid", lambda sock: 4343)
    server = ControlServer(tmp_path / "a.sock", answer)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "a.sock"))
    assert await reader.read() == b""
    writer.close()
    await server.close()
    assert "user 4343 was turned away" in caplog.text


async def test_the_peer_s_user_is_the_kernel_s_word() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert control.peer_uid(ours) == os.getuid()


# --- the channel -----------------------------------------------------------------------------------------------


async def test_a_channel_carries_requests_both_ways_and_descriptors() -> None:
    one, two = Channel.pair()
    events: list[Any] = []
    arrived = asyncio.Event()

    def on_event(message: dict[str, Any], fds: Any) -> None:
        events.append((message, fds))
        arrived.set()

    left, right = Channel(one, handler=answer), Channel(two, handler=answer, on_event=on_event)
    assert await left.request("echo", timeout=5, x=1) == {"x": 1}
    assert await right.request("echo", timeout=5, y=2) == {"y": 2}
    with pytest.raises(RefusedError):
        await left.request("refuse", timeout=5)
    with pytest.raises(MountError, match="too long"):
        await left.request("large", timeout=5, size=control.MAX_MESSAGE)
    readable, writable = os.pipe()
    left.announce("serve", fds=(writable,), n=3)
    os.close(writable)
    await arrived.wait()
    ((message, (fd,)),) = events
    assert message == {"event": "serve", "n": 3}
    assert not os.get_inheritable(fd)
    os.write(fd, b"x")
    assert os.read(readable, 10) == b"x"
    os.close(fd)
    os.close(readable)
    left.close()
    right.close()


async def test_a_channel_s_peer_may_be_slow_or_gone() -> None:
    one, two = Channel.pair()
    closed = asyncio.Event()
    left = Channel(one, handler=answer, on_close=closed.set)
    right = Channel(two, handler=answer)
    with pytest.raises(TimeoutError):
        await left.request("slow", timeout=0.01)
    many = [asyncio.ensure_future(left.request("large", timeout=30, size=60_000)) for _ in range(50)]
    assert {len(text) for text in await asyncio.gather(*many)} == {60_000}
    waiting = asyncio.ensure_future(left.request("slow", timeout=30))
    await asyncio.sleep(0)
    right.close()
    with pytest.raises(ChannelClosed):
        await waiting
    assert closed.is_set()
    with pytest.raises(ChannelClosed):
        await left.request("echo", timeout=1)
    left.announce("nobody hears it")
    left.close()


def test_modules_of_processes_say_who_starts_them() -> None:
    for module, arguments in (("daemon", []), ("daemon", ["7", "8"]), ("supervisor", [])):
        done = subprocess.run(
            [sys.executable, "-m", f"jupyter_wsfuse.mount.{module}", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 2)
        assert "wsfuse mount" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr

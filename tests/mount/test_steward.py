"""The helper process of a Jupyter server, without one: what it refuses, and that nothing keeps it waiting."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.mount import machine, observer, registry, steward
from jupyter_wsfuse.mount.control import ControlServer
from jupyter_wsfuse.mount.observer import Observer
from jupyter_wsfuse.mount.steward import Steward, StewardError, check_mountpoint
from tests.helpers import live
from tests.helpers.waiting import eventually_async


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(path))
    return path


async def ask(to: Steward, op: str, **arguments: Any) -> dict[str, Any]:
    return await to.answer(json.dumps({"id": 1, "op": op, **arguments}).encode())


@pytest.fixture
async def helper() -> AsyncIterator[Steward]:
    made = Steward()
    yield made
    made.close()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"id": 1}',
        b'{"id": 1, "op": "rm"}',
        b'{"id": 1, "op": "mount"}',
        b"[" * 10_000,
    ],
)
async def test_what_is_no_request(helper: Steward, line: bytes) -> None:
    assert (await helper.answer(line))["error"]["kind"] == "invalid"


async def test_a_machine_that_does_not_mount(helper: Steward, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        machine.Check("mounting", "fail", "there is no /dev/fuse", "modprobe fuse"),
        machine.Check("x", "ok", "y"),
    ]
    monkeypatch.setattr(machine, "mounting", lambda: iter(checks))
    found = (await ask(helper, "fuse"))["result"]
    assert found == {"available": False, "reason": "there is no /dev/fuse", "advice": "modprobe fuse"}
    refused = (await ask(helper, "mount", url="http://127.0.0.1:1/", token="", path="/x"))["error"]
    assert (refused["kind"], refused["reason"], refused["advice"]) == (
        "fuse",
        "there is no /dev/fuse",
        "modprobe fuse",
    )


@pytest.mark.parametrize("path", ["", "relative", "/a\0b", "/" + "x" * 5000])
def test_no_names_of_folders(path: str) -> None:
    with pytest.raises(StewardError) as caught:
        check_mountpoint(path)
    assert caught.value.kind == "invalid"


def test_loops_of_links_and_files_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for name in ("loop", "file", "file/below"):
        with pytest.raises(StewardError):
            check_mountpoint(str(tmp_path / name))
    assert check_mountpoint(str(tmp_path / "new" / "deep")) == str(tmp_path / "new" / "deep")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    assert check_mountpoint(str(tmp_path / "link")) == str(tmp_path / "new")


async def test_a_folder_that_the_file_browser_shows_through_the_relay(
    helper: Steward, tmp_path: Path
) -> None:
    if not (await helper.fuse())["available"]:
        pytest.skip("this machine does not mount")
    refused = await ask(
        helper, "mount", url="http://127.0.0.1:1/", token="", path=str(tmp_path / "m"), outside=str(tmp_path)
    )
    assert refused["error"]["kind"] == "relay"
    assert str(tmp_path) in refused["error"]["advice"]


async def test_a_server_that_is_not_there(helper: Steward, tmp_path: Path) -> None:
    if not (await helper.fuse())["available"]:
        pytest.skip("this machine does not mount")
    refused = await ask(helper, "mount", url="http://127.0.0.1:1/", token="t", path=str(tmp_path / "m"))
    assert refused["error"]["kind"] == "failed"
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("op", ["unmount", "sync", "unsynced", "reset"])
async def test_what_is_not_mounted(helper: Steward, op: str) -> None:
    assert (await ask(helper, op, mount="0123456789ab"))["error"]["kind"] == "missing"


# --- looking ---------------------------------------------------------------------------------------------------


class Supervisor:
    """A mount's entry with a control socket that answers as it is told."""

    def __init__(self, path: str) -> None:
        self.claim = registry.Claim(path)
        self.claim.write({"state": "mounted", "url": "http://here/"})
        self.hang = asyncio.Event()
        self.hang.set()
        self.asked: list[dict[str, Any]] = []
        self.server = ControlServer(self.claim.entry.socket, self.answer)

    async def answer(self, op: str, arguments: dict[str, Any]) -> Any:
        self.asked.append({"op": op, **arguments})
        await self.hang.wait()
        return {"state": "mounted", "daemon": {"answering": True}}

    async def end(self) -> None:
        self.hang.set()
        await self.server.close()
        self.claim.release()


async def test_one_that_is_stuck_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "PATIENCE", 0.1)
    well, stuck, unsupervised = Supervisor("/a"), Supervisor("/b"), Supervisor("/c")
    watching = Observer()
    try:
        await well.server.start()
        await stuck.server.start()
        rows = {row["mountpoint"]: row["state"] for row in await watching.look(profile=True)}
        assert rows == {"/a": "mounted", "/b": "mounted", "/c": "unsupervised"}
        assert well.asked == [{"op": "status", "figures": True, "profile": True}]
        stuck.hang.clear()
        rows = {row["mountpoint"]: row["state"] for row in await watching.look()}
        assert rows == {"/a": "mounted", "/b": "not answering", "/c": "unsupervised"}
        stuck.hang.set()
        rows = {row["mountpoint"]: row["state"] for row in await watching.look()}
        assert rows["/b"] == "mounted"  # over a new connection
    finally:
        watching.close()
        for one in (well, stuck, unsupervised):
            await one.end()


async def test_several_look_at_once(helper: Steward) -> None:
    mount = Supervisor("/a")
    try:
        await mount.server.start()
        mount.hang.clear()
        looking = [asyncio.create_task(ask(helper, "look")) for _ in range(3)]
        await eventually_async(lambda: mount.asked)
        mount.hang.set()
        for found in await asyncio.gather(*looking):
            assert [row["state"] for row in found["result"]] == ["mounted"]
    finally:
        helper.close()
        await mount.end()


async def test_lines_that_are_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    server = await asyncio.start_unix_server(_nonsense, path)
    line = observer._Line(path)
    for _ in range(3):
        with pytest.raises((ValueError, OSError)):
            await line.ask("status")
    server.close()
    line.close()
    with pytest.raises(OSError):
        await observer._Line(tmp_path / "none.sock").ask("status")


async def _nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b'{"id": 99, "ok": true, "result": 3}\n')
    writer.close()


# --- the process -----------------------------------------------------------------------------------------------


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        steward_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    )


def steward_command() -> list[str]:
    return [sys.executable, "-P", "-m", "jupyter_wsfuse.mount.steward"]


def test_it_answers_and_ends_with_its_input() -> None:
    process = _start()
    assert process.stdin is not None
    process.stdin.write(b'{"id": 7, "op": "look"}\n{"id": 8, "op": "fuse"}\nnonsense\n')
    process.stdin.flush()
    assert process.stdout is not None
    said = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert {one["id"] for one in said} == {7, 8, None}
    assert [one["result"] for one in said if one["id"] == 7] == [[]]
    out, err = process.communicate(timeout=live.PATIENCE)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_nobody_reads_what_it_says() -> None:
    near, far = socket.socketpair()
    process = subprocess.Popen(steward_command(), stdin=far, stdout=far, stderr=subprocess.PIPE, cwd="/")
    far.close()
    near.sendall(b'{"id": 1, "op": "fuse"}\n' * 200)
    near.close()
    _, err = process.communicate(timeout=live.PATIENCE)
    assert process.returncode == 0, err
    assert b"Traceback" not in err, err


def test_a_request_without_end() -> None:
    process = _start()
    out, _ = process.communicate(b"x" * (steward._LONGEST * 3), timeout=live.PATIENCE)
    assert (process.returncode, out) == (0, b"")

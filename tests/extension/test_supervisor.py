"""The engine's supervisor with a fake engine in every mood."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import fcntl
import json
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient

from jupyter_wsfuse.extension.settings import Settings
from jupyter_wsfuse.extension.supervisor import (
    ENGINE,
    EngineSupervisor,
    EngineUnavailable,
    StateDir,
    _environment,
)
from jupyter_wsfuse.protocol.tickets import TicketVerifier, bearer

FAKE = Path(__file__).parent.parent / "helpers" / "fake_engine.py"
SETTINGS = Settings(
    root_dir="/srv/work",
    read_only=True,
    follow_roots=("/data",),
    engine_start_timeout=30.0,
    engine_stop_timeout=0.3,
    probe_interval=0.05,
    restart_backoff=0.05,
    restart_backoff_max=0.1,
)

Make = Callable[..., EngineSupervisor]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Supervisors of fake engines; their logs are those of the test."""
    made: list[EngineSupervisor] = []

    def factory(mode: str = "", command: tuple[str, ...] = (), **changes: Any) -> EngineSupervisor:
        on_activity = changes.pop("on_activity", lambda: None)
        settings = dataclasses.replace(SETTINGS, **changes)
        command = command or (sys.executable, str(FAKE), mode)
        log = logging.getLogger("test.supervisor")
        made.append(EngineSupervisor(settings, tmp_path, log, command=command, on_activity=on_activity))
        return made[-1]

    yield factory
    for supervisor in made:
        await supervisor.stop()


async def test_nothing_runs_before_it_is_needed(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    assert supervisor.info() == {"state": "stopped", "pid": None, "restarts": 0, "error": None}
    assert await supervisor.sessions() == []
    assert list(tmp_path.iterdir()) == []


async def test_the_engine_is_started_once_and_told_everything(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    one, two = await asyncio.gather(supervisor.endpoint(), supervisor.endpoint())
    assert one == two
    assert supervisor.info() == {"state": "running", "pid": one.pid, "restarts": 0, "error": None}
    status = await supervisor._ask(one)
    config = status["config"]
    assert len(bytes.fromhex(config.pop("secret"))) == 32
    state_dir = Path(config.pop("state_dir"))
    assert state_dir.parent == tmp_path
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert config.pop("audience")
    assert config == {
        "tenants": {
            "default": {"root": "/srv/work", "read_only": True, "raw_owner": True, "follow_roots": ["/data"]}
        },
        "grace": 60.0,
        "window": 512,
        "max_sessions": 64,
    }
    assert [session["id"] for session in await supervisor.sessions()] == ["abc"]


async def test_the_real_engine_is_the_default() -> None:
    assert (sys.executable, "-P", "-m", "jupyter_wsfuse.engine.main") == ENGINE


async def test_a_ticket_is_good_for_the_engine(make: Make) -> None:
    supervisor = make()
    endpoint = await supervisor.endpoint()
    config = (await supervisor._ask(endpoint))["config"]
    verifier = TicketVerifier(bytes.fromhex(config["secret"]), config["audience"])
    ticket = verifier.redeem(supervisor.ticket("a" * 10_000, {"read"}))
    assert ticket.tenant == "default"
    assert ticket.rights == {"read"}
    assert len(ticket.principal) == 200


async def test_the_status_is_asked_for_with_proof(make: Make) -> None:
    endpoint = await make().endpoint()
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{endpoint.port}/status", raise_error=False)
    assert answer.code == 403


async def test_credentials_are_not_inherited(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    endpoint = await make().endpoint()
    environ = Path(f"/proc/{endpoint.pid}/environ").read_bytes()
    assert b"JUPYTERHUB_API_TOKEN" not in environ
    assert b"PATH=" in environ


async def test_a_killed_engine_is_replaced_by_one_that_can_take_over(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = make()
    first = await supervisor.endpoint()
    config = (await supervisor._ask(first))["config"]
    os.kill(first.pid, signal.SIGKILL)
    await supervisor.until(lambda: supervisor.info()["pid"] != first.pid)
    second = await supervisor.endpoint()
    assert second.pid != first.pid
    successor = (await supervisor._ask(second))["config"]
    # What was a ticket for the first is none for the second, who does not know whether it was used.
    assert successor.pop("audience") != config.pop("audience")
    assert successor == config
    assert supervisor.restarts == 1
    assert "it ended by SIGKILL" in caplog.text
    assert Path(config["state_dir"]).is_dir()


async def test_while_one_is_replaced_callers_wait_for_the_next(make: Make) -> None:
    supervisor = make()
    first = await supervisor.endpoint()
    os.kill(first.pid, signal.SIGKILL)
    await supervisor.until(lambda: supervisor._endpoint is None)
    assert supervisor.state == "starting"
    assert (await supervisor.endpoint()).pid != first.pid


async def test_an_engine_that_keeps_dying_is_started_more_and_more_slowly(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    supervisor = make("dies", restart_backoff=0.01, restart_backoff_max=0.02)
    with pytest.raises(EngineUnavailable, match="it ended at its start with status 3"):
        await supervisor.endpoint()
    await supervisor.until(lambda: supervisor.restarts >= 3)
    pauses = [record.args for record in caplog.records if "is started again" in record.msg]
    assert pauses[:3] == [(0.01,), (0.02,), (0.02,)]
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert levels["engine: nothing works"] == "ERROR"
    assert levels["engine: Traceback: of it"] == "ERROR"  # belongs to the line before
    assert levels["engine: the fake engine has read its configuration"] == "INFO"


async def test_callers_wait_for_a_next_start_that_is_near(make: Make, tmp_path: Path) -> None:
    supervisor = make("dies", restart_backoff=0.5, restart_backoff_max=0.5)
    with pytest.raises(EngineUnavailable):
        await supervisor.endpoint()
    assert supervisor.state == "failed"
    supervisor._command = (sys.executable, str(FAKE), "")
    assert (await supervisor.endpoint()).pid


async def test_while_it_has_failed_callers_do_not_wait(make: Make) -> None:
    supervisor = make("dies", restart_backoff=1000.0, restart_backoff_max=1000.0)
    for _ in range(2):
        with pytest.raises(EngineUnavailable) as caught:
            await supervisor.endpoint()
        assert 900 < caught.value.retry_after <= 1000
    assert supervisor.info()["state"] == "failed"
    assert supervisor.restarts == 1


@pytest.mark.parametrize(
    ("mode", "error"), [("mumbles", "did not introduce itself"), ("mute", "did not start within 1 seconds")]
)
async def test_an_engine_that_does_not_introduce_itself(make: Make, mode: str, error: str) -> None:
    supervisor = make(mode, engine_start_timeout=1.0, restart_backoff=1000.0, restart_backoff_max=1000.0)
    with pytest.raises(EngineUnavailable):
        await supervisor.endpoint()
    await supervisor.until(lambda: supervisor.state == "failed")
    assert error in (supervisor.error or "")


async def test_an_engine_that_cannot_be_started(make: Make) -> None:
    supervisor = make(command=("/nonexistent/engine",), restart_backoff=1000.0, restart_backoff_max=1000.0)
    with pytest.raises(EngineUnavailable, match="No such file"):
        await supervisor.endpoint()


async def test_an_engine_that_does_not_answer_is_killed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = make("hangs", probe_failures=2)
    first = await supervisor.endpoint()
    await supervisor.until(lambda: supervisor.restarts >= 1)
    assert "it did not answer 2 times in a row and was killed" in caplog.text
    with pytest.raises(ProcessLookupError):
        os.kill(first.pid, 0)


async def test_a_status_that_cannot_be_had_is_an_empty_one(make: Make) -> None:
    supervisor = make("hangs", probe_interval=1000.0)
    await supervisor.endpoint()
    assert await supervisor.sessions() == []


async def test_requests_are_activity_and_a_connection_is_not(make: Make) -> None:
    noted = asyncio.Event()
    await make("busy", on_activity=noted.set).endpoint()
    await noted.wait()

    idle: list[None] = []
    supervisor = make("", on_activity=lambda: idle.append(None))
    endpoint = await supervisor.endpoint()
    for _ in range(3):
        supervisor._count(await supervisor._ask(endpoint))
    assert idle == []


async def test_stop_asks_and_removes_the_state(make: Make, tmp_path: Path) -> None:
    supervisor = make(engine_stop_timeout=30.0)
    endpoint = await supervisor.endpoint()
    await supervisor.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(endpoint.pid, 0)
    assert list(tmp_path.iterdir()) == []
    assert supervisor.info()["state"] == "stopped"
    with pytest.raises(EngineUnavailable, match="stopping"):
        await supervisor.endpoint()
    await supervisor.stop()


async def test_stop_kills_what_does_not_go(make: Make) -> None:
    supervisor = make("stubborn", engine_stop_timeout=0.05)
    endpoint = await supervisor.endpoint()
    await supervisor.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(endpoint.pid, 0)


async def test_stop_while_starting(make: Make) -> None:
    supervisor = make("mute")
    waiting = asyncio.create_task(supervisor.endpoint())
    await supervisor.until(lambda: supervisor.state == "starting")
    await supervisor.stop()
    with pytest.raises(EngineUnavailable, match="stopping"):
        await waiting


async def test_long_and_broken_lines_of_the_log_are_no_trouble(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stream = asyncio.StreamReader(limit=1000)
    stream.feed_data(b"INFO " + b"x" * 5000 + b"\nWARNING \xff\n")
    stream.feed_eof()
    await make()._forward(stream)
    assert "engine: \\xff" in caplog.text


async def test_a_status_that_is_not_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = make()
    endpoint = await supervisor.endpoint()
    monkeypatch.setattr(json, "loads", lambda _text: [])
    with pytest.raises(ValueError, match="not an object"):
        await supervisor._ask(endpoint)


def test_a_checkout_and_an_installation_can_both_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "relative")
    first = _environment()["PYTHONPATH"].split(os.pathsep)
    assert first[0] == os.path.abspath("relative")
    monkeypatch.setattr(
        "jupyter_wsfuse.extension.supervisor.__file__", "/venv/site-packages/p/extension/s.py"
    )
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in _environment()


def test_remains_that_cannot_be_locked_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    one, two = StateDir(tmp_path), StateDir(tmp_path)
    assert one.path.is_dir()
    one.remove()
    two.remove()


async def test_a_slow_start_is_not_waited_for_beyond_the_limit(make: Make) -> None:
    supervisor = make("mute", engine_start_timeout=0.2, restart_backoff=1000.0, restart_backoff_max=1000.0)
    with pytest.raises(EngineUnavailable):
        await supervisor.endpoint()


def test_remains_of_killed_servers_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    used = StateDir(tmp_path)
    dead = StateDir(tmp_path)
    os.close(dead._lock)  # what the kernel does when a process is killed
    (dead.path / "session").write_text("x")
    other = tmp_path / "wsfuse-is-a-file-of-mine"
    other.write_text("x")
    new = StateDir(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([used.path, new.path, other])
    used.remove()
    new.remove()
    assert list(tmp_path.iterdir()) == [other]


def test_bearer_is_what_the_fake_engine_checks() -> None:
    assert bearer(b"x" * 32, "status") != bearer(b"y" * 32, "status")
    assert json.dumps(bearer(b"x" * 32, "status")).isascii()

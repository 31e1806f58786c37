"""The engine's supervisor with a fake engine in every mood."""

from __future__ import annotations

import asyncio
import dataclasses
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
from tornado.websocket import websocket_connect

from jupyter_wsfuse.extension.settings import Settings
from jupyter_wsfuse.extension.supervisor import (
    ENGINE,
    CommandError,
    EngineSupervisor,
    EngineUnavailable,
    environment,
)
from jupyter_wsfuse.extension.tokens import StoreError
from jupyter_wsfuse.protocol.tickets import TicketVerifier, TokenClaims, bearer
from tests.helpers.waiting import eventually_async

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

CLAIMS = TokenClaims(id="t1", paths=(b"data",), rights=frozenset({"read"}), expires=4e9)

Make = Callable[..., EngineSupervisor]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Supervisors of fake engines; their logs are those of the test."""
    made: list[EngineSupervisor] = []

    def factory(mode: str = "", command: tuple[str, ...] = (), **changes: Any) -> EngineSupervisor:
        hooks = {
            name: changes.pop(name)
            for name in ("on_activity", "on_event", "revoked", "private")
            if name in changes
        }
        settings = dataclasses.replace(SETTINGS, **changes)
        command = command or (sys.executable, str(FAKE), mode)
        log = logging.getLogger("test.supervisor")
        made.append(EngineSupervisor(settings, tmp_path, log, command=command, **hooks))
        return made[-1]

    yield factory
    for supervisor in made:
        await supervisor.stop()


async def test_nothing_runs_before_it_is_needed(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    assert supervisor.info() == {"state": "stopped", "pid": None, "restarts": 0, "error": None}
    assert await supervisor.look() == {}
    assert list(tmp_path.iterdir()) == []


async def test_the_engine_is_started_once_and_told_everything(make: Make, tmp_path: Path) -> None:
    supervisor = make(private=["/srv/secret"])
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
    assert config.pop("revoked") == []
    assert config.pop("private") == ["/srv/secret"]
    assert config == SETTINGS.engine_config()
    assert config["tenants"]["default"]["root"] == "/srv/work"
    assert [session["id"] for session in (await supervisor.look())["sessions"]] == ["abc"]


async def test_the_real_engine_is_the_default() -> None:
    assert (sys.executable, "-P", "-m", "jupyter_wsfuse.engine.main") == ENGINE


async def test_a_ticket_is_good_for_the_engine(make: Make) -> None:
    supervisor = make()
    endpoint = await supervisor.endpoint()
    config = (await supervisor._ask(endpoint))["config"]
    verifier = TicketVerifier(bytes.fromhex(config["secret"]), config["audience"])
    ticket = verifier.redeem(supervisor.ticket("ann", {"read"}, groups=["staff"], address="::1"))
    assert (ticket.tenant, ticket.principal, ticket.groups) == ("default", "ann", ("staff",))
    assert (set(ticket.rights), ticket.address, ticket.token) == ({"read"}, "::1", None)
    scoped = verifier.redeem(supervisor.ticket("ann", {"read", "write"}, token=CLAIMS))
    assert (scoped.token, set(scoped.rights)) == (CLAIMS, {"read"})
    with pytest.raises(ValueError, match="too long"):
        supervisor.ticket("a" * 100_000, {"read"})
    with_file = make(tenants_file="/etc/tenants.yaml")
    issued = with_file._issuer
    for wanted in ("", "team-a"):
        found = TicketVerifier(issued._secret, issued._audience).redeem(
            with_file.ticket("ann", {"read"}, tenant=wanted)
        )
        assert found.tenant == wanted  # empty: the engine looks which one is hers


# --- commands and events --------------------------------------------------------------------------------


async def say(supervisor: EngineSupervisor, command: str) -> None:
    """Have the fake engine do something by itself."""
    endpoint = await supervisor.endpoint()
    channel = await websocket_connect(f"ws://{endpoint.host}:{endpoint.port}/", subprotocols=["wsfuse.v1"])
    await channel.write_message(command.encode(), binary=True)
    assert await channel.read_message() == b"told"
    assert channel.protocol is not None
    stream = channel.protocol.stream
    channel.close()
    assert await channel.read_message() is None
    if stream is not None:
        stream.close()


async def test_commands_are_answered(make: Make) -> None:
    supervisor = make()
    with pytest.raises(EngineUnavailable, match="does not run"):
        await supervisor.command("assign")
    await supervisor.endpoint()
    answers = await asyncio.gather(
        *(supervisor.command("assign", principal="p", groups=[], tenant=f"t{n}") for n in range(20))
    )
    assert answers == [f"t{n}" for n in range(20)]
    with pytest.raises(CommandError, match="no such command: fly"):
        await supervisor.command("fly")
    with pytest.raises(CommandError, match="unexpected keyword"):
        await supervisor.command("revoke", what="x")
    assert not supervisor._commands


async def test_an_engine_that_does_not_answer_a_command(make: Make) -> None:
    supervisor = make("deaf", probe_timeout=0.2)
    endpoint = await supervisor.endpoint()
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await supervisor.command("revoke", token="x")
    patient = make("deaf")
    endpoint = await patient.endpoint()
    asked = asyncio.create_task(patient.command("revoke", token="x"))
    await asyncio.sleep(0)
    os.kill(endpoint.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="has ended"):
        await asked


async def test_the_tenant_of_an_identity(make: Make) -> None:
    plain = make()
    assert await plain.assign("ann", []) == await plain.assign("ann", [], "default") == "default"
    assert plain.state == "stopped"  # there is nothing to ask
    several = make(tenants_file="/etc/tenants.yaml")
    assert await several.assign("ann", ("a", "b")) == "of-ann-a+b"
    assert await several.assign("ann", (), "team") == "team"
    with pytest.raises(CommandError, match="ann is no member of secret"):
        await several.assign("ann", (), "secret")


async def test_revocations_reach_the_engine_and_its_successors(make: Make) -> None:
    revoked = ["a"]
    supervisor = make(revoked=lambda: list(revoked), probe_interval=600.0)
    await supervisor.revoke()  # nobody to tell
    await supervisor.endpoint()
    status = await supervisor.look()
    assert (status["config"]["revoked"], status["revoked"]) == (["a"], [])
    revoked += ["b", "c"]
    await asyncio.gather(supervisor.revoke(), supervisor.revoke())
    assert sorted((await supervisor.look())["revoked"]) == ["b", "c"]  # each once
    revoked.remove("a")  # expired meanwhile
    os.kill((await supervisor.endpoint()).pid, signal.SIGKILL)
    await supervisor.until(lambda: supervisor.restarts == 1 and supervisor.state == "running")
    assert (await supervisor.look())["config"]["revoked"] == ["b", "c"]


async def test_what_another_server_revoked_is_found_by_the_next_probe(make: Make) -> None:
    revoked: list[str] = []
    supervisor = make(revoked=lambda: list(revoked))
    await supervisor.endpoint()
    revoked.append("theirs")
    await eventually_async(lambda: supervisor.status.get("revoked") == ["theirs"])


async def test_a_revocation_that_fails_is_tried_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    damaged, tries = True, 0

    def revoked() -> list[str]:
        nonlocal tries
        tries += 1
        if damaged:
            raise StoreError("damaged")
        return ["a"]

    supervisor = make("unwilling", revoked=revoked)
    await supervisor.endpoint()
    await eventually_async(lambda: tries >= 3)  # by the start, and by two probes
    damaged = False
    with pytest.raises(CommandError, match="not today"):
        await supervisor.revoke()
    tries = 0
    await eventually_async(lambda: tries >= 3)
    assert supervisor.info()["restarts"] == 0
    errors = {record.getMessage() for record in caplog.records if record.levelname == "ERROR"}
    assert errors == {
        "the list of tokens cannot be read: damaged",
        "revoked tokens could not be made known to the file engine: damaged",
        "revoked tokens could not be made known to the file engine: not today",
    }


async def test_events_of_the_engine(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[dict[str, Any]] = []

    def listen(event: dict[str, Any]) -> None:
        heard.append(event)
        if event["event"] == "bad":
            raise RuntimeError("cannot listen")

    supervisor = make(on_event=listen, probe_interval=600.0)
    for line in (
        'event {"event": "bad"}', "line rubbish", "line [1]", "line " + "x" * (2 << 20),
        'line {"id": 99, "result": 1}', 'event {"event": "last", "path": "\\udcff"}',
    ):  # fmt: skip
        await say(supervisor, line)
    await eventually_async(lambda: len(heard) == 2)
    assert heard == [{"event": "bad"}, {"event": "last", "path": "\udcff"}]
    assert supervisor.state == "running"
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "an event of the file engine could not be dealt with" in warned
    assert set(warned[1:]) == {"the file engine said something that is no JSON object"}


async def test_the_last_status_is_kept_while_the_engine_runs(make: Make) -> None:
    supervisor = make(probe_interval=600.0)
    assert supervisor.status == {}
    endpoint = await supervisor.endpoint()
    await supervisor.look()
    assert supervisor.status["pid"] == endpoint.pid
    os.kill(endpoint.pid, signal.SIGKILL)
    await supervisor.until(lambda: supervisor.state != "running")
    assert supervisor.status == {}


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
    ("mode", "limit", "error"),
    [("mumbles", 30.0, "did not introduce itself"), ("mute", 1.0, "did not start within 1 seconds")],
)
async def test_an_engine_that_does_not_introduce_itself(
    make: Make, mode: str, limit: float, error: str
) -> None:
    supervisor = make(mode, engine_start_timeout=limit, restart_backoff=1000.0, restart_backoff_max=1000.0)
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
    assert await supervisor.look() == {}


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
    first = environment()["PYTHONPATH"].split(os.pathsep)
    assert first[0] == os.path.abspath("relative")
    monkeypatch.setattr(
        "jupyter_wsfuse.extension.supervisor.__file__", "/venv/site-packages/p/extension/s.py"
    )
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in environment()


async def test_a_slow_start_is_not_waited_for_beyond_the_limit(make: Make) -> None:
    supervisor = make("mute", engine_start_timeout=0.2, restart_backoff=1000.0, restart_backoff_max=1000.0)
    with pytest.raises(EngineUnavailable):
        await supervisor.endpoint()


def test_bearer_is_what_the_fake_engine_checks() -> None:
    assert bearer(b"x" * 32, "status") != bearer(b"y" * 32, "status")
    assert json.dumps(bearer(b"x" * 32, "status")).isascii()

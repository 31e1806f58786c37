"""What a real engine answers to somebody who looks, and what clients can say of themselves."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from jupyter_wsfuse.engine import panel
from jupyter_wsfuse.engine.panel import MOST_BYTES, MOST_COUNTED, MOST_FOLDERS, MOST_SESSIONS
from jupyter_wsfuse.protocol import codec
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Ref, Report, Rescued
from jupyter_wsfuse.protocol.session import ClientState
from tests.engine.conftest import Join, Start
from tests.fuzz.anything import struct
from tests.helpers.engineproc import EngineProcess
from tests.helpers.fuzzing import examples
from tests.helpers.rawclient import RawClient, disconnect_all
from tests.helpers.waiting import eventually_async


@pytest.fixture(autouse=True)
async def no_connection_is_left() -> AsyncIterator[None]:
    yield
    await disconnect_all()


def look(engine: EngineProcess, *views: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = engine.command("panel", views=list(views), **more)
    return found


def report(**changes: Any) -> Report:
    values = {
        "state": "connected", "host": "laptop", "path": b"/home/ann/hub", "rtt": 20_500_000, "operations": 12,
        "hits": 3, "misses": 1, "unsynced": 0, "held": 0, **changes,
    }  # fmt: skip
    return Report(**values)


def say(client: RawClient, message: Report) -> None:
    client.session.report(message)
    client.flush()


def watched(client: RawClient) -> list[bool]:
    return [message.on for message in client.notified if isinstance(message, m.Watched)]


async def test_sessions_and_figures(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    await client.call(m.MkDir, Ref(b""), b"d", 0o755)
    found = look(engine, "profile", "limits", "audit")
    ((id, session),) = found["sessions"].items()
    assert client.session.session.startswith(id)
    assert len(id) == 16
    assert (session["tenant"], session["principal"], session["connected"]) == ("default", "ann", True)
    assert session["operations"]["MkDir"][0] == 1
    assert "report" not in session
    tenant = found["tenants"]["default"]
    assert tenant["root"] == os.path.realpath(engine.root)
    assert tenant["operations"]["MkDir"]["count"] == 1
    assert tenant["limits"]["handles"]["used"] == 0
    assert tenant["audit"]["state"] == "off"
    assert found["count"] == 1
    assert found["uptime_s"] >= 0
    assert "operations" not in look(engine)["tenants"]["default"]


async def test_figures_are_made_again_only_for_what_came_to_them(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    for count in (1, 2):
        await client.call(m.GetAttr, Ref(b""))
        assert look(engine, "profile")["tenants"]["default"]["operations"]["GetAttr"]["count"] == count
    engine.command("reset")
    assert look(engine, "profile")["tenants"]["default"]["operations"] == {}
    await client.call(m.GetAttr, Ref(b""))
    assert look(engine, "profile")["tenants"]["default"]["operations"]["GetAttr"]["count"] == 1


async def test_a_sessions_profile_is_reset(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    await client.call(m.GetAttr, Ref(b""))
    id = client.session.session[:16]
    assert engine.command("reset", session=id) is None
    assert look(engine, "profile")["sessions"][id]["operations"] == {}
    with pytest.raises(RuntimeError, match="not connected"):
        engine.command("reset", session="nobody")


async def test_everybody_sees_what_is_his(start: Start, join: Join, tmp_path: Path) -> None:
    tenants = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tenants[name] = {"root": str(tmp_path / name), "users": ["ann" if name == "a" else "ben"]}
    engine = start(tenants=tenants)
    ann = await join(engine, engine.ticket("a", "ann"))
    await join(engine, engine.ticket("b", "ben"))
    await ann.call(m.MkDir, Ref(b""), b"secret", 0o755)
    look(engine)
    await ann.call(m.RmDir, Ref(b""), b"secret")
    found = look(engine, "profile", principals=["ben"])
    assert [session["principal"] for session in found["sessions"].values()] == ["ben"]
    assert found["tenants"].keys() == {"b"}
    assert found["changed"] == {}
    assert found["tenants"]["b"]["slow"] == []
    assert len(look(engine)["sessions"]) == 2


# --- where workspaces change -----------------------------------------------------------------------------------


async def test_changed_folders_are_noted_while_somebody_looks(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    await client.call(m.MkDir, Ref(b""), b"before", 0o755)
    assert look(engine)["changed"] == {}
    await client.call(m.MkDir, Ref(b"before"), b"d", 0o755)
    handle = (await client.call(m.Create, Ref(b"before/d"), b"f", 0o644, os.O_RDWR)).handle
    await client.call(m.Write, handle, 0, payload=b"x")
    assert look(engine, peek=True)["changed"] == {}  # it is no look that others would miss
    assert sorted(look(engine)["changed"]["default"]) == ["before", "before/d"]
    assert look(engine)["changed"] == {}
    await client.call(m.Rename, Ref(b"before/d"), b"f", Ref(b""), b"g")
    await client.call(m.SymLink, Ref(b""), b"link", b"/etc/elsewhere")
    await client.call(m.GetAttr, Ref(b"g"))
    assert sorted(look(engine)["changed"]["default"]) == ["", "before/d"]


async def test_changes_behind_the_mounts_are_noted(start: Start, join: Join) -> None:
    engine = start()
    (engine.root / "d").mkdir()
    client = await join(engine, features=[m.LEASES])
    await client.call(m.ListTree, [Ref(b"", client.welcome.root.identity)], 100, 5)
    look(engine)
    (engine.root / "d" / "f").write_text("x")
    (engine.root / "g").write_text("x")
    found: set[str] = set()

    def both() -> bool:
        found.update(look(engine)["changed"].get("default", []))
        return found >= {"", "d"}

    await eventually_async(both)
    assert found == {"", "d"}


async def test_too_many_folders_are_not_named(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    look(engine)
    for number in range(MOST_FOLDERS + 1):
        name = b"%d" % number
        await client.call(m.MkDir, Ref(b""), name, 0o755)
        await client.call(m.MkDir, Ref(name), b"x", 0o755)
    assert look(engine)["changed"] == {"default": None}
    assert look(engine)["changed"] == {}


async def test_nothing_is_noted_when_nobody_looks_any_more(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine, features=[m.REPORTS])
    assert client.welcome.features == [m.REPORTS]
    look(engine)
    await eventually_async(lambda: watched(client) == [True])
    await eventually_async(lambda: watched(client) == [True, False])
    await client.call(m.MkDir, Ref(b""), b"d", 0o755)
    assert look(engine)["changed"] == {}
    await eventually_async(lambda: watched(client) == [True, False, True])


async def test_a_folder_that_was_moved_is_named_by_where_it_is(start: Start, join: Join) -> None:
    engine = start()
    (engine.root / "d").mkdir()
    client = await join(engine, features=[m.LEASES])
    await client.call(m.ListTree, [Ref(b"", client.welcome.root.identity)], 100, 5)
    look(engine)
    (engine.root / "d").rename(engine.root / "e")
    (engine.root / "e" / "f").write_text("x")
    await eventually_async(lambda: "e" in look(engine)["changed"].get("default", []))


# --- who is held back ------------------------------------------------------------------------------------------


async def test_who_is_held_back(start: Start, join: Join, tmp_path: Path) -> None:
    limits = {"default": {"root": str(tmp_path / "root"), "limits": {"metadata": 2}}}
    engine = start(tenants=limits)
    client = await join(engine)
    look(engine, "limits")
    waiting = [client.send(m.GetAttr, Ref(b"")) for _ in range(8)]
    await client.answer(waiting[2])
    found = look(engine, "limits")
    (session,) = found["sessions"].values()
    assert session["throttled"]["counter"] == "metadata"
    assert 0 < session["throttled"]["until_s"] <= 60
    assert found["tenants"]["default"]["limits"]["metadata"]["limit"] == 2
    for seq in waiting[3:]:
        await client.answer(seq)
    (session,) = look(engine, "limits")["sessions"].values()
    assert session["throttled"] == {"counter": "", "until_s": 0.0}  # a moment ago
    (session,) = look(engine, "limits")["sessions"].values()
    assert session["throttled"] is None


# --- what clients say of themselves ----------------------------------------------------------------------------


async def test_a_report_is_asked_for_and_shown(start: Start, join: Join) -> None:
    engine = start()
    client, old = await join(engine, features=[m.REPORTS]), await join(engine)
    assert old.welcome.features == []
    assert watched(client) == []
    look(engine)
    await eventually_async(lambda: watched(client) == [True])
    rescued = Rescued("1", b"a/b", "disk full", 7, 1_500_000_000)
    say(client, report(unsynced=7, rescue=[rescued]))
    id = client.session.session[:16]
    await eventually_async(lambda: "report" in look(engine)["sessions"][id])
    found = look(engine)["sessions"][id]["report"]
    assert (found["rtt_ms"], found["operations"], found["unsynced"]) == (20.5, 12, 7)
    assert found["rescue"] == {"1": {"path": "a/b", "reason": "disk full", "bytes": 7, "time": 1.5}}
    assert watched(old) == []
    assert look(engine)["sessions"][id]["requests"] == 0  # no use of the connection


async def test_who_comes_back_is_told_that_somebody_looks(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine, features=[m.REPORTS])
    look(engine)
    await eventually_async(lambda: watched(client) == [True])
    await client.cut()
    await eventually_async(lambda: client.session.state is ClientState.LOST)
    await client.open(engine.url, engine.ticket(), features=[m.REPORTS])
    await eventually_async(lambda: watched(client) == [True, True])
    assert not any(isinstance(message, m.InvalidateAll) for message in client.notified)


async def test_what_is_reported_cannot_do_harm(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine, features=[m.REPORTS])
    evil = "\x1b[31m\n</script>\0" + "\u202e" * 4000
    long = [Rescued(evil[:900], b"\xff\n" * 3000, evil[:900], -5, 1 << 63) for _ in range(8)]
    say(
        client,
        report(state="rm -rf", host=evil[:9000], path=b"../\xff\0" * 9000, rtt=-1, operations=(1 << 64) - 1),
    )
    say(client, report(rescue=long, unsynced=-(1 << 63)))
    id = client.session.session[:16]
    await eventually_async(lambda: look(engine)["sessions"][id].get("report", {}).get("rescue"))
    found = look(engine)["sessions"][id]["report"]
    assert found["unsynced"] == 0
    (row,) = {row["path"]: row for row in found["rescue"].values()}.values()
    assert (row["bytes"], row["time"]) == (0, MOST_COUNTED / 1e9)
    assert all(
        character.isprintable() for character in "".join([found["host"], *found["rescue"], row["reason"]])
    )
    assert len(json.dumps(look(engine))) < 100_000
    for _ in range(2000):  # one is kept, however many there are
        client.session.report(report(host="x" * 1000))
    client.flush()
    await client.call(m.GetAttr, Ref(b""))
    assert look(engine)["sessions"][id]["report"]["host"] == "x" * 160


async def test_a_report_that_is_none_ends_the_session(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine, features=[m.REPORTS])
    client.session._encoder.add(report(rescue=[m.Ping(1)]))
    client.flush()
    with pytest.raises(Exception):  # noqa: B017 - whichever way the connection goes
        await asyncio.wait_for(client.call(m.GetAttr, Ref(b"")), 0.5)
    await eventually_async(lambda: look(engine)["count"] == 0)


@examples(200)
@given(struct(Report))
def test_anything_reported_is_fit_to_be_shown(said: Report) -> None:
    try:
        (decoded,) = codec.engine_decoder.decode(codec.encode_frame(said))
    except ValueError:
        return
    found = panel._report(decoded[0].cut())
    text = json.dumps(found, allow_nan=False)
    assert len(text) < 40_000
    assert json.loads(text) == found

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                check(name)
                check(inner)
        elif isinstance(value, str):
            assert value.isprintable() or not value
        elif value is not None:
            assert 0 <= value <= MOST_COUNTED

    check(found)


async def test_an_answer_is_bounded_however_many_there_are(start: Start, join: Join) -> None:
    engine = start(max_sessions=2 * MOST_SESSIONS)
    clients = [await join(engine, features=[m.REPORTS]) for _ in range(MOST_SESSIONS + 3)]
    for client in clients:
        rescue = [Rescued(f"{n}" + "\u00e9" * 150, b"\xff" * 500, "\u00e9" * 150, 1, 1) for n in range(8)]
        say(client, report(rescue=rescue))
        await client.call(m.GetAttr, Ref(b""))
    found = look(engine, "profile", "limits")
    assert (len(found["sessions"]), found["count"]) == (MOST_SESSIONS, MOST_SESSIONS + 3)
    assert clients[-1].session.session[:16] in found["sessions"]
    assert len(json.dumps(found)) <= MOST_BYTES

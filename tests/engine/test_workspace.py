"""Tenants at run time, as sessions of a real engine process meet them: definitions that change, tokens, quotas."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine.workspace import way_to
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Ref
from jupyter_wsfuse.protocol.tickets import TokenClaims
from tests.engine.conftest import Join, Start
from tests.helpers.engineproc import EngineProcess
from tests.helpers.rawclient import RawClient, Refused
from tests.helpers.waiting import eventually_async


def claims(**changes: Any) -> TokenClaims:
    given: dict[str, Any] = {
        "id": "t1", "paths": (b"",), "rights": frozenset({"read", "write"}), "expires": time.time() + 600,
    }  # fmt: skip
    return TokenClaims(**{**given, **changes})


def root_of(client: RawClient) -> Ref:
    return Ref(b"", client.welcome.root.identity)


async def create(client: RawClient, name: bytes) -> Any:
    return await client.call(m.Create, root_of(client), name, 0o644, os.O_RDWR)


async def denied(call: Awaitable[Any]) -> str:
    """The errno with which it fails."""
    with pytest.raises(OSError) as info:
        await call
    return errno.errorcode[info.value.errno or 0]


async def resume(engine: EngineProcess, ticket: str, former: RawClient) -> RawClient:
    """Another connection for the session of *former*."""
    client = RawClient(session=former.welcome.session, epoch=former.welcome.epoch)
    await client.open(engine.url, ticket)
    return client


class File:
    """A file of tenants, always changed as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, tenants: dict[str, Any]) -> None:
        new = self.path.with_name("new.yaml")
        new.write_text(json.dumps({"tenants": tenants}))  # which is YAML as well
        new.rename(self.path)


@pytest.fixture
def file(tmp_path: Path) -> File:
    (tmp_path / "config").mkdir()
    return File(tmp_path / "config/tenants.yaml")


# --- definitions that change


async def test_rules_change_under_a_session(start: Start, join: Join, file: File, tmp_path: Path) -> None:
    team: dict[str, Any] = {"root": str(tmp_path / "root"), "users": ["ann"]}
    file.write({"team": team})
    engine = start(tenants_file=str(file.path))
    ann = await join(engine, engine.ticket(tenant=""))
    assert ann.welcome.tenant == "team"
    handle = (await create(ann, b"f")).handle
    await ann.call(m.Write, handle, 0, payload=b"x")
    file.write({"team": {**team, "rules": ["deny write /f"]}})
    await eventually_async(lambda: "the definition of tenants has changed" in engine.log)
    assert await denied(ann.call(m.Write, handle, 0, payload=b"y")) == "EACCES"
    assert await denied(ann.call(m.SetAttr, Ref(b"f"), mode=0o600)) == "EACCES"
    file.write({"team": {**team, "read_only": True}})
    await eventually_async(lambda: engine.log.count("the definition of tenants has changed") == 2)
    assert await denied(ann.call(m.Write, handle, 0, payload=b"y")) == "EROFS"
    file.write({"team": team})
    await eventually_async(lambda: engine.log.count("the definition of tenants has changed") == 3)
    await ann.call(m.Write, handle, 0, payload=b"z")
    assert (tmp_path / "root/f").read_bytes() == b"z"


async def test_who_has_lost_the_workspace_is_cut_off(
    start: Start, join: Join, file: File, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    both = {name: {"root": str(tmp_path / name), "users": [name]} for name in ("one", "two")}
    file.write(both)
    engine = start(tenants_file=str(file.path))
    one, two = [await join(engine, engine.ticket(tenant="", principal=name)) for name in ("one", "two")]
    file.write({"two": both["two"]})
    await asyncio.wait_for(one.listener.gone.wait(), 20)
    assert one.listener.close_code == 1008
    await two.call(m.GetAttr, Ref(b""))
    with pytest.raises(Refused) as info:
        await join(engine, engine.ticket(tenant="", principal="one"))
    assert str(info.value) == "workspace"
    assert engine.status()["tenants"].keys() == {"two"}


async def test_a_mistake_leaves_the_former_definition(
    start: Start, join: Join, file: File, tmp_path: Path
) -> None:  # fmt: skip
    team = {"root": str(tmp_path / "root"), "users": ["ann"]}
    file.write({"team": team})
    engine = start(tenants_file=str(file.path))
    ann = await join(engine, engine.ticket(tenant=""))
    file.write({"team": {**team, "rules": ["allow nonsense /"]}})
    await eventually_async(lambda: "stays in force" in engine.log)
    await ann.call(m.GetAttr, Ref(b""))
    status = engine.status()
    assert "tenants.yaml:1" in status["tenants_file"]["error"]
    engine.log = engine.log.replace(" ERROR ", " expected ")


async def test_each_user_has_a_folder(start: Start, join: Join, file: File, tmp_path: Path) -> None:
    (tmp_path / "homes").mkdir()
    file.write({"home": {"root": str(tmp_path / "homes/{user}"), "users": ["*"]}})
    engine = start(tenants_file=str(file.path))
    ann, bob = [await join(engine, engine.ticket(tenant="", principal=name)) for name in ("ann", "bob")]
    assert (ann.welcome.tenant, bob.welcome.tenant) == ("home/ann", "home/bob")
    assert (tmp_path / "homes/ann").stat().st_mode & 0o7777 == 0o700
    await create(ann, b"mine")
    assert await denied(bob.call(m.Lookup, root_of(bob), b"mine")) == "ENOENT"
    assert engine.command("assign", principal="eve", groups=[], tenant="") == "home/eve"
    with pytest.raises(Refused):
        await join(engine, engine.ticket(tenant="", principal="../ann"))


# --- tokens


async def test_a_token_opens_what_it_names(start: Start, join: Join, tmp_path: Path) -> None:
    for name in ("data/in", "other"):
        (tmp_path / "root" / name).mkdir(parents=True)
    engine = start()
    token = claims(paths=(b"data",), rights=frozenset({"read"}))
    client = await join(engine, engine.ticket(token=token))
    assert client.welcome.read_only
    await client.call(m.Lookup, Ref(b"data"), b"in")
    assert await denied(client.call(m.Lookup, root_of(client), b"other")) == "ENOENT"
    assert await denied(client.call(m.MkDir, Ref(b"data"), b"new", 0o755)) == "EROFS"
    handle = (await client.call(m.OpenDir, root_of(client))).handle
    listed = await client.call(m.ReadDir, handle, 0, 100)
    assert {entry.name for entry in listed.entries} - {b".", b".."} == {b"data"}


async def test_a_revoked_token_ends_its_sessions_and_those_of_its_children(
    start: Start, join: Join
) -> None:  # fmt: skip
    engine = start()
    parent, child = claims(), claims(id="t2", parents=("t1",), parent_limits=({},))
    mine = await join(engine, engine.ticket(token=parent))
    theirs = await join(engine, engine.ticket(token=child))
    other = await join(engine)
    assert engine.command("revoke", token="t1") == {"sessions": 2}
    for client in (mine, theirs):
        await asyncio.wait_for(client.listener.gone.wait(), 20)
        assert client.listener.close_code == 1008
    await other.call(m.GetAttr, Ref(b""))
    for token in (parent, child):
        with pytest.raises(Refused) as info:
            await join(engine, engine.ticket(token=token))
        assert str(info.value) == "token-revoked"


async def test_a_session_ends_with_its_token(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine, engine.ticket(token=claims(expires=time.time() + 1)))
    await client.call(m.GetAttr, Ref(b""))
    await asyncio.wait_for(client.listener.gone.wait(), 20)
    assert (client.listener.close_code, str(client.listener.close_reason)) == (1008, "its token has expired")


async def test_a_session_is_only_taken_up_with_the_same_token(start: Start, join: Join) -> None:
    engine = start()
    client = await join(engine)
    with pytest.raises(Refused) as info:
        await resume(engine, engine.ticket(token=claims()), client)
    assert str(info.value) == "session-foreign"
    limited = await join(engine, engine.ticket(token=claims()))
    with pytest.raises(Refused) as info:
        await resume(engine, engine.ticket(token=claims(id="t2")), limited)
    assert str(info.value) == "session-foreign"


async def test_sessions_of_a_token_and_of_a_tenant_are_limited(
    start: Start, join: Join, tmp_path: Path
) -> None:
    engine = start(tenants={"default": {"root": str(tmp_path / "root"), "limits": {"sessions": 3}}})
    token = claims(limits={"sessions": 1})
    await join(engine, engine.ticket(token=token))
    with pytest.raises(Refused) as info:
        await join(engine, engine.ticket(token=token))
    assert str(info.value) == "busy"
    await join(engine)
    await join(engine)
    with pytest.raises(Refused) as info:
        await join(engine)
    assert str(info.value) == "busy"


async def test_no_token_opens_what_keys_are_kept_in(start: Start, join: Join, tmp_path: Path) -> None:
    private = tmp_path / "root/.local/share [1]/jupyter"
    private.mkdir(parents=True)
    (private / "key").write_text("secret")
    (tmp_path / "root/.local/share 1").mkdir()
    engine = start(private=[str(private)])
    limited = await join(engine, engine.ticket(token=claims()))
    path = b".local/share [1]/jupyter/key"
    assert await denied(limited.call(m.Open, Ref(path), os.O_RDONLY)) == "EACCES"
    await limited.call(m.OpenDir, Ref(b".local/share 1"))
    reader = await join(engine, engine.ticket(rights=("read",)))
    assert await denied(reader.call(m.Open, Ref(path), os.O_RDONLY)) == "EACCES"
    owner = await join(engine)
    await owner.call(m.Open, Ref(path), os.O_RDONLY)


async def test_a_token_holds_after_the_engine_died(start: Start, join: Join, tmp_path: Path) -> None:
    (tmp_path / "root/data").mkdir()
    engine = start()
    token = claims(paths=(b"data",))
    client = await join(engine, engine.ticket(token=token))
    engine.kill()
    engine.start()
    with pytest.raises(Refused) as info:
        await resume(engine, engine.ticket(), client)
    assert str(info.value) == "session-foreign"
    again = await resume(engine, engine.ticket(token=token), client)
    assert again.welcome.recovered
    assert await denied(again.call(m.MkDir, root_of(again), b"new", 0o755)) == "EACCES"


# --- quotas, and what is told


async def test_a_full_workspace(start: Start, join: Join, tmp_path: Path) -> None:
    engine = start(tenants={"default": {"root": str(tmp_path / "root"), "quota": 1 << 20}})
    client = await join(engine)
    handle = (await create(client, b"f")).handle
    piece = b"x" * (256 << 10)

    async def fill() -> None:
        for number in range(8):
            await client.call(m.Write, handle, number * len(piece), payload=piece)

    assert await denied(fill()) == "EDQUOT"
    assert os.stat(tmp_path / "root/f").st_blocks * 512 <= 1 << 20
    space = await client.call(m.StatFs, Ref(b""))
    assert space.blocks * space.frsize <= 1 << 20
    await client.call(m.Unlink, root_of(client), b"f")
    await client.call(m.Close, handle)
    again = (await create(client, b"g")).handle
    await client.call(m.Write, again, 0, payload=piece)
    assert engine.status()["tenants"]["default"]["quota"]["refused"] >= 1


async def test_what_is_told_of_sessions_and_denials(start: Start, join: Join, tmp_path: Path) -> None:
    engine = start(tenants={"default": {"root": str(tmp_path / "root"), "rules": ["deny all *.key"]}})
    client = await join(engine, engine.ticket(address="192.0.2.7"))
    event = engine.event("session", state="begun")
    assert (event["principal"], event["address"], event["tenant"]) == ("ann", "192.0.2.7", "default")
    assert client.welcome.session not in json.dumps(event)
    for number in range(5):
        assert await denied(create(client, b"%d.key" % number)) == "EACCES"
    burst = await asyncio.to_thread(engine.event, "denials")
    assert burst["count"] == 5
    assert "deny all *.key" in burst["rule"]
    await client.close()
    assert engine.status()["tenants"]["default"]["denials"] == 5


# --- the server's own files, and room for others


def test_every_link_on_the_way_counts(tmp_path: Path) -> None:
    (tmp_path / "dot/jup").mkdir(parents=True)
    (tmp_path / ".local").symlink_to("dot")
    (tmp_path / ".jupyter").symlink_to(tmp_path / ".local/./jup")
    (tmp_path / "loop").symlink_to("loop")
    top = os.fsencode(tmp_path)
    assert way_to(top + b"/.jupyter/new") == {
        top + b"/.jupyter",
        top + b"/.local",
        top + b"/dot/jup/new",
    }
    assert top + b"/loop" in way_to(top + b"/loop/x")
    assert way_to(top + b"/dot/../none") == {top + b"/none"}


async def test_no_token_puts_something_else_in_the_place_of_what_leads_to_keys(
    start: Start, join: Join, tmp_path: Path
) -> None:
    home = tmp_path / "root"
    (home / "dot/share/jupyter").mkdir(parents=True)
    (home / ".local").symlink_to("dot")
    engine = start(private=[str(home / ".local/share/jupyter")])
    client = await join(engine, engine.ticket(token=claims()))
    root = root_of(client)
    for call in (
        client.call(m.Unlink, root, b".local"),
        client.call(m.Rename, root, b".local", root, b"old"),
        client.call(m.Rename, root, b"dot", root, b"old"),
        client.call(m.Rename, Ref(b"dot"), b"share", root, b"old"),
    ):
        assert await denied(call) in ("EACCES", "ENOENT")
    assert os.readlink(home / ".local") == "dot"


async def test_one_tenant_leaves_room_for_others(start: Start, join: Join, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    tenants = {name: {"root": str(tmp_path / name), "users": [name]} for name in ("one", "two")}
    engine = start(tenants=tenants, max_sessions=8)
    for _ in range(6):
        await join(engine, engine.ticket("one", "one"))
    with pytest.raises(Refused) as info:
        await join(engine, engine.ticket("one", "one"))
    assert str(info.value) == "busy"
    await join(engine, engine.ticket("two", "two"))


async def test_sessions_without_connection_make_room(start: Start, join: Join, tmp_path: Path) -> None:
    engine = start(max_sessions=2)
    first, second = await join(engine), await join(engine)
    await first.cut()
    await eventually_async(lambda: [s["connected"] for s in engine.status()["sessions"]].count(False) == 1)
    third = await join(engine)
    await third.call(m.GetAttr, Ref(b""))
    await second.call(m.GetAttr, Ref(b""))
    with pytest.raises(Refused):
        await join(engine)

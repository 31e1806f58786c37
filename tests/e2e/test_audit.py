"""Who did it? The record of a real server, asked as an administrator asks it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import live
from tests.helpers.live import run, wait_for

pytestmark = pytest.mark.mount


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[live.Mount]:
    root, home = tmp_path / "root", tmp_path / "home"
    root.mkdir()
    (root / "report.csv").write_text("1,2,3")
    (home / "config").mkdir(parents=True)
    options = {"audit": "all", "audit_dir": str(tmp_path / "audit"), "rules": ["deny all *.key"]}
    (home / "config/jupyter_server_config.json").write_text(json.dumps({"WsFuse": options}))
    with live.start_server(root, home) as server, live.mount(server, tmp_path / "mount") as mount:
        yield mount


def asked(mount: live.Mount, *filters: str) -> list[dict[str, Any]]:
    env = {**mount.env, "WSFUSE_TOKEN": mount.server.token}
    lines = run("audit", "query", mount.server.url, "--json", *filters, env=env).stdout.splitlines()
    return [json.loads(line) for line in lines]


def logs(mount: live.Mount) -> Path:
    return mount.source.parent / "audit"


def test_who_deleted_this_file(recorded: live.Mount) -> None:
    (recorded.path / "report.csv").unlink()
    run("sync", recorded.path, env=recorded.env)
    wait_for(
        lambda: asked(recorded, "--operation", "Unlink", "--path", "report.csv"), "the entry in the record"
    )
    [entry] = asked(recorded, "--operation", "Unlink", "--path", "report.csv")
    assert entry["success"] is True
    assert entry["address"] == "127.0.0.1"
    [begin] = asked(recorded, "--operation", "session-begin")
    assert entry["session"] == begin["session"]
    assert begin["client"]
    assert begin["time"] < entry["time"]
    verdict = run("audit", "verify", "--dir", logs(recorded), env=recorded.env)
    assert "none is missing" in verdict.stdout


def test_who_emptied_this_file(recorded: live.Mount) -> None:
    (recorded.path / "a").write_text("x")
    (recorded.path / "b").write_text("x")
    os.truncate(recorded.path / "a", 0)
    os.close(os.open(recorded.path / "b", os.O_RDONLY | os.O_TRUNC))
    (recorded.path / "b").chmod(0o600)
    wait_for(lambda: asked(recorded, "--path", "b", "--operation", "SetAttr"), "the entry in the record")
    [emptied] = asked(recorded, "--path", "a", "--operation", "SetAttr")
    assert emptied["details"]["size"] == 0
    sizes = [entry for entry in asked(recorded, "--path", "b") if "details" in entry]
    assert any(entry["details"].get("truncate") or entry["details"].get("size") == 0 for entry in sizes)
    assert any(entry["details"].get("mode") == "0600" for entry in sizes)


def test_a_denial_names_its_rule(recorded: live.Mount) -> None:
    recorded.expect_log("denied by ")
    recorded.server.expect_log("denied ")
    with pytest.raises(PermissionError):
        (recorded.path / "server.key").touch()
    wait_for(lambda: asked(recorded, "--denied"), "the entry in the record")
    entry = asked(recorded, "--denied")[0]
    assert (entry["path"], entry["errno"]) == ("server.key", "EACCES")
    assert "deny all *.key" in entry["rule"]


def test_what_was_taken_out_is_missed(recorded: live.Mount) -> None:
    for number in range(5):
        (recorded.path / f"f{number}").write_text("x")
    run("sync", recorded.path, env=recorded.env)
    wait_for(lambda: len(asked(recorded, "--operation", "Create")) == 5, "the entry in the record")
    run("umount", recorded.path, env=recorded.env)
    wait_for(lambda: asked(recorded, "--operation", "session-end"), "the entry in the record")
    run("audit", "verify", "--dir", logs(recorded), env=recorded.env)
    [segment] = logs(recorded).rglob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    [where] = [number for number, line in enumerate(lines) if b'"Create"' in line and b'"f3"' in line]
    segment.write_bytes(b"".join(lines[:where] + lines[where + 1 :]))
    done = run("audit", "verify", "--dir", logs(recorded), env=recorded.env, check=False)
    assert done.returncode == 1
    assert f"{segment.name}" in done.stdout + done.stderr


def test_the_record_goes_on_after_the_engine_was_killed(recorded: live.Mount) -> None:
    recorded.server.expect_log("engine failed", "took up 1 sessions")
    (recorded.path / "before").write_text("x")
    with (recorded.path / "synced").open("w") as file:
        file.write("x")
        os.fsync(file.fileno())
    os.kill(recorded.server.engine_pid(), signal.SIGKILL)
    (recorded.path / "after").write_text("x")
    wait_for(lambda: asked(recorded, "--operation", "Create", "--path", "after"), "the entry in the record")
    [before] = asked(recorded, "--operation", "Create", "--path", "before")
    [after] = asked(recorded, "--operation", "Create", "--path", "after")
    assert before["session"] == after["session"]
    run("audit", "verify", "--dir", logs(recorded), env=recorded.env)

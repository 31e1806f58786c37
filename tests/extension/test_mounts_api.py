"""What the panel does to mounts, on a real server with real mounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.mount import registry
from tests.helpers import live
from tests.helpers.feed import page

pytestmark = [pytest.mark.jupyter, pytest.mark.mount]


def call(server: live.Live, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of the answer to a request below ``wsfuse/api/``."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server.url}wsfuse/api/{path}",
        method=method,
        data=data,
        headers=headers or {"Authorization": f"token {server.token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=live.PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as exc:
        with exc:
            text = exc.read()
        return exc.code, json.loads(text) if text.startswith(b"{") else text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Live]:
    home = tmp_path_factory.mktemp("actions")
    with live.start_server(home / "workspace", home / "home") as running:
        # Requests are refused on purpose, and one has a body that is no JSON.
        running.expect_log(r"ServerApp\] (400|403|404|409) (POST|DELETE) /wsfuse/api/")
        running.expect_log("wrote error|Forbidden|XSRF|JSON", "^Traceback")
        yield running


@pytest.fixture
def path(server: live.Live, tmp_path: Path) -> Iterator[Path]:
    """A mount point; whatever is mounted there is taken down."""
    path = tmp_path.resolve() / "m"
    yield path
    live.Mount(path, server.root, server.env, server).destroy()


def test_mount_use_sync_and_unmount(server: live.Live, path: Path) -> None:
    with page(server, "mounts") as opened:
        status, made = call(server, "POST", "mounts", {"path": str(path)})
        assert (status, made["path"], made["expires"]) == (201, str(path), None)
        opened.until(
            lambda page: page.state["mounts"].get(made["id"], {}).get("state") == "connected",
            "it is shown as connected",
        )
        (path / "file").write_text("x")
        assert (server.root / "file").read_text() == "x"
        assert call(server, "GET", f"mounts/{made['id']}/unsynced") == (200, {"files": [], "bytes": 0})
        assert call(server, "POST", f"mounts/{made['id']}/sync", {}) == (200, {"synced": True})
        status, ended = call(server, "DELETE", f"mounts/{made['id']}")
        assert (status, ended["outcome"]) == (200, "clean")
        assert registry.kernel_mount(str(path)) is None
        opened.until(lambda page: made["id"] not in page.state["mounts"], "it is not shown any more")
    assert call(server, "DELETE", f"mounts/{made['id']}")[0] == 404


def test_a_mount_in_the_file_browser_is_read_only_if_that_was_asked_for(server: live.Live) -> None:
    name = server.root / "inside"
    try:
        status, made = call(server, "POST", "mounts", {"path": "inside", "read_only": True})
        assert (status, made.get("path")) == (201, str(name)), made
        with page(server, "mounts") as opened:
            row = opened.until(lambda page: page.state.get("mounts", {}).get(made["id"]), "it is shown")
            assert (row["folder"], row["read_only"]) == ("inside", True)
        with pytest.raises(OSError):
            (name / "x").write_text("x")
        listing = server.request("api/contents/inside")
        assert listing["type"] == "directory"
    finally:
        call(server, "DELETE", f"mounts/{registry.mount_id(str(name))}?force=1")
    assert registry.kernel_mount(str(name)) is None


def test_a_busy_mount_names_its_users(server: live.Live, path: Path) -> None:
    _, made = call(server, "POST", "mounts", {"path": str(path)})
    user = subprocess.Popen(
        [sys.executable, "-c", "import sys; print('in', flush=True); sys.stdin.read()"],
        cwd=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        live.read_until(user, "in")
        status, said = call(server, "DELETE", f"mounts/{made['id']}")
        assert status == 409
        assert user.pid in [one["pid"] for one in said["users"]]
        assert str(user.pid) in said["message"]
        assert "force" in said["advice"]
        assert registry.kernel_mount(str(path)) is not None
        status, ended = call(server, "DELETE", f"mounts/{made['id']}?force=1")
        assert status == 200
        assert ended["outcome"] in ("lazy", "aborted")
        assert registry.kernel_mount(str(path)) is None
    finally:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.close()
        user.wait(live.PATIENCE)
        user.stdout.close()


def test_a_mount_that_cannot_be_synced_stays(tmp_path: Path) -> None:
    with live.start_server(tmp_path / "workspace", tmp_path / "home") as server:
        with live.mount(server, tmp_path / "m") as mounted:
            mounted.expect_log(".")
            id = registry.mount_id(str(mounted.path))
            # Its connection is lost, as far as it can tell: nothing answers at its end.
            pid = server.engine_pid()
            os.kill(pid, 19)
            try:
                status, said = call(server, "DELETE", f"mounts/{id}")
            finally:
                os.kill(pid, 18)
            assert status == 409
            assert said["unsynced"] == []
            assert "synced" in said["message"]
            assert mounted.mounted
            server.expect_log("did not answer", "engine", "409 DELETE")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 400, "path"),
        ({"path": 7}, 400, "path"),
        ({"path": "/x", "read_only": "yes"}, 400, "read_only"),
        ({"path": "/x", "tenant": 1}, 400, "tenant"),
        ([], 400, "path"),
        ([1], 400, "object"),
        (b"{", 400, "JSON"),
        ({"path": "/x\0y"}, 400, "folder"),
        ({"path": "/proc/x"}, 409, "/proc/x"),
        ({"path": "/etc/passwd"}, 400, "not a folder"),
        ({"path": "/x", "tenant": "nobody's"}, 400, "tenant"),
    ],
)
def test_what_cannot_be_mounted(server: live.Live, body: Any, status: int, word: str) -> None:
    found, said = call(server, "POST", "mounts", body)
    assert found == status, said
    assert word in said["message"]


def test_a_folder_in_use_is_no_mount_point(server: live.Live, path: Path) -> None:
    path.mkdir()
    (path / "file").touch()
    status, said = call(server, "POST", "mounts", {"path": str(path)})
    assert (status, said["reason"]) == (409, "busy")
    assert "not empty" in said["message"]
    (path / "file").unlink()
    assert call(server, "POST", "mounts", {"path": str(path)})[0] == 201
    status, said = call(server, "POST", "mounts", {"path": str(path)})
    assert (status, said["reason"]) == (409, "busy")
    assert "mounted already" in said["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_somebody_elses_folder_is_no_mount_point(server: live.Live, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    os.chown(other, 12345, 12345)
    for name in ("other", "other/below"):
        status, said = call(server, "POST", "mounts", {"path": str(tmp_path / name)})
        assert status == 400
        assert "not a folder of yours" in said["message"]
    link = tmp_path / "link"
    link.symlink_to(other)
    assert call(server, "POST", "mounts", {"path": str(link)})[0] == 400


def test_a_dead_mount_is_shown_with_what_to_do_and_can_be_unmounted(server: live.Live, path: Path) -> None:
    _, made = call(server, "POST", "mounts", {"path": str(path)})
    mounted = live.Mount(path, server.root, server.env, server)
    with page(server, "mounts") as opened:
        opened.until(lambda page: page.state.get("mounts", {}).get(made["id"]), "it is shown")
        for pid in sorted(mounted.pids(), key=lambda pid: pid != mounted.supervisor_pid):
            os.kill(pid, 9)
        row = opened.until(
            lambda page: (row := page.state["mounts"].get(made["id"], {})).get("state") == "failed" and row,
            "it is shown as failed",
        )
        assert "nmount" in row["reason"]
        status, _ = call(server, "DELETE", f"mounts/{made['id']}?force=1")
        assert status == 200
        opened.until(lambda page: made["id"] not in page.state["mounts"], "it is gone")
    assert registry.kernel_mount(str(path)) is None


def test_a_mount_that_lost_its_supervisor_can_be_unmounted(server: live.Live, path: Path) -> None:
    _, made = call(server, "POST", "mounts", {"path": str(path)})
    with page(server, "mounts") as opened:
        os.kill(live.Mount(path, server.root, server.env, server).supervisor_pid, 9)
        row = opened.until(
            lambda page: (
                (row := page.state.get("mounts", {}).get(made["id"], {})).get("state") == "degraded" and row
            ),
            "it is shown as degraded",
        )
        assert row["managed"]
    (path / "still").write_text("served")
    status, said = call(server, "POST", f"mounts/{made['id']}/sync", {})
    assert (status, said["reason"]) == (409, "failed")
    status, ended = call(server, "DELETE", f"mounts/{made['id']}")
    assert status == 200, ended
    assert registry.kernel_mount(str(path)) is None


def test_profiles_are_counted_from_zero(server: live.Live, path: Path) -> None:
    _, made = call(server, "POST", "mounts", {"path": str(path)})
    with page(server, "profile") as opened:
        (path / "folder").mkdir()
        opened.until(
            lambda page: (
                "mkdir" in page.state.get("profile", {}).get(made["id"], {}).get("operations", {})
                and "MkDir" in page.state["profile"]["server"]["operations"]
            ),
            "both have counted it",
        )
        assert call(server, "POST", "profile/reset", {"scope": made["id"]}) == (200, {})
        opened.until(
            lambda page: "mkdir" not in page.state["profile"][made["id"]]["operations"], "the mount forgot"
        )
        assert call(server, "POST", "profile/reset", {"scope": "server"}) == (200, {})
        opened.until(
            lambda page: "MkDir" not in page.state["profile"]["server"]["operations"], "the server forgot"
        )
    assert call(server, "POST", "profile/reset", {"scope": "abcdef012345"})[0] == 404
    assert call(server, "POST", "profile/reset", {})[0] == 400


def test_a_mount_on_another_machine(server: live.Live, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    with live.mount(server, tmp_path / "m", env={**server.env, "WSFUSE_RUNTIME_DIR": str(run)}) as mounted:
        with page(server, "mounts", "profile") as opened:
            row = opened.until(lambda page: page.mount_at(mounted.path), "it is shown")
            assert not row["managed"]
            assert not row["local"]
            (mounted.path / "elsewhere").mkdir()
            opened.until(
                lambda page: "MkDir" in page.state["profile"].get(row["id"], {}).get("operations", {}),
                "it is counted",
            )
            status, said = call(server, "DELETE", f"mounts/{row['id']}")
            assert (status, said["reason"]) == (409, "elsewhere")
            assert f"wsfuse umount {mounted.path}" in said["advice"]
            assert call(server, "POST", "profile/reset", {"scope": row["id"]}) == (200, {})
            opened.until(
                lambda page: "MkDir" not in page.state["profile"][row["id"]]["operations"], "it is forgotten"
            )


def test_without_a_right_or_a_proof_that_it_was_meant(server: live.Live) -> None:
    for method, name in (("POST", "mounts"), ("DELETE", "mounts/abcdef012345"), ("POST", "profile/reset")):
        assert call(server, method, name, None if method == "DELETE" else {}, Cookie="x=y")[0] == 403
        assert (
            call(server, method, name, None if method == "DELETE" else {}, Authorization="token no")[0] == 403
        )
    made = server.request("wsfuse/api/tokens", "POST")
    scoped = {"Authorization": f"token {made['token']}"}
    assert call(server, "POST", "mounts", {"path": "/x"}, **scoped)[0] == 403

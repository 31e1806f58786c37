"""``wsfuse serve``: a real Jupyter server that is quiet, ready when it says so, and gone when it is told to go."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.live import WSFUSE, environment, launch_server, read_until, run, start_server, wait_gone

pytestmark = pytest.mark.jupyter


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_life(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("content")
    live = launch_server(tmp_path / "root", tmp_path / "home")
    try:
        assert stat.S_IMODE(live.token_file.stat().st_mode) == 0o600
        assert live.request("api/contents/file")["content"] == "content"
        assert live.request("wsfuse/api/ticket", "POST")["protocol"] == 1
        engine = live.engine_pid()
        assert live.token not in Path(f"/proc/{live.process.pid}/cmdline").read_text()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(live.url + "wsfuse/api/status")
        assert refused.value.code == 403
        refused.value.close()
        token = live.token
    finally:
        code = live.stop(number)
    assert code == 0
    wait_gone(engine)
    left = {path.name for path in (tmp_path / "home" / "runtime").iterdir()}
    assert left == {"jupyter_cookie_secret"}, "Jupyter keeps that for browsers; nothing else is left"
    assert live.token_file.read_text().strip() == token, "for the next time"
    errors = [line for line in live.log.splitlines() if line.startswith(("[W", "[E", "[C", "Traceback"))]
    assert not any("token" in line or token in line for line in errors)


def test_it_says_how_to_mount_and_not_the_token(tmp_path: Path) -> None:
    env = environment(tmp_path / "home")
    (tmp_path / "a directory").mkdir()
    process = subprocess.Popen(
        [*WSFUSE, "serve", str(tmp_path / "a directory"), "--port", "0"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/",
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        first = process.stdout.readline()
        lines = [first, *(process.stdout.readline() for _ in range(4))]
        assert lines[0] == f"Serving {tmp_path / 'a directory'}\n"
        url = lines[4].removeprefix("Ready: ").strip()
        assert url.startswith("http://127.0.0.1:")
        token_file = Path(lines[2].split()[-1])
        assert (
            lines[3].split("mount with")[1].strip()
            == f"wsfuse mount {url} MOUNTPOINT --token-file {token_file}"
        )
        token = token_file.read_text().strip()
        assert token not in "".join(lines)
        checked = run("doctor", url, "--token-file", token_file, "--json", env=env, check=False)
        assert {check["name"]: check["result"] for check in json.loads(checked.stdout)["checks"]}[
            "extension"
        ] == "ok"
        process.terminate()
        assert process.wait(60) == 0
    assert not token_file.exists(), "one of our own is removed again"


def test_a_token_file_that_exists_is_used(tmp_path: Path) -> None:
    home = tmp_path / "home"
    env = environment(home)
    (home / "token").write_text("my-own-token\n")
    (home / "token").chmod(0o600)
    live = launch_server(tmp_path / "root", home, env=env)
    try:
        assert live.token == "my-own-token"
        assert live.request("api/status")
    finally:
        live.stop()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(
            "serve", str(tmp_path), "--port", str(port), env=environment(tmp_path / "home"), check=False
        )
        assert done.returncode != 0
        assert str(port) in done.stderr
        assert "Traceback" not in done.stderr


def test_a_configuration_file_cannot_take_over(tmp_path: Path) -> None:
    """What was asked for on the command line wins; everything else of the user's holds."""
    home = tmp_path / "home"
    environment(home)
    (home / "config" / "jupyter_server_config.py").write_text(
        "c.ServerApp.root_dir = '/'\nc.ServerApp.base_url = '/mine/'\nc.IdentityProvider.token = ''\n"
    )
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "only this").touch()
    with start_server(tmp_path / "root", home) as live:
        assert live.url.endswith("/mine/")
        assert [entry["name"] for entry in live.request("api/contents/")["content"]] == ["only this"]
        assert os.environ.get("JUPYTER_TOKEN") is None


@pytest.mark.mount
def test_the_contents_api_lists_a_mount_inside_its_own_root(tmp_path: Path) -> None:
    """The server's loop blocks in listdir() on a directory that it serves itself, and is answered all the same."""
    root = tmp_path / "root"
    with start_server(root, tmp_path / "home") as live:
        run("mount", live.url, root / "inside", "--token-file", live.token_file, env=live.env)
        try:
            (root / "file").write_text("x")
            found = live.request("api/contents/inside")["content"]
            assert "file" in {entry["name"] for entry in found}
            assert live.request("api/contents/inside/file")["content"] == "x"
        finally:
            run("umount", "--all", env=live.env)


def test_ready_means_ready(tmp_path: Path) -> None:
    live = launch_server(tmp_path / "root", tmp_path / "home")
    try:
        socket.create_connection(("127.0.0.1", live.port), 10).close()
    finally:
        live.stop()


def test_read_until_fails_with_what_was_said() -> None:
    with subprocess.Popen(["echo", "something else"], stdout=subprocess.PIPE, text=True) as process:
        with pytest.raises(AssertionError, match="something else"):
            read_until(process, "Ready")

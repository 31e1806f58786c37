"""Mounting for real: both ways to the server, both kinds of user, and nothing left behind when it cannot be done."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_wsfuse.mount import registry
from tests.helpers.live import (
    WSFUSE,
    Live,
    Mount,
    environment,
    launch_server,
    mount,
    read_until,
    run,
    start_server,
    wait_for,
    wait_gone,
)
from tests.helpers.otheruser import NOBODY, OtherUser, other_user

pytestmark = [pytest.mark.mount, pytest.mark.jupyter]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("server")
    with start_server(home / "root", home / "home") as live:
        yield live


def runtime_files(env: dict[str, str]) -> set[str]:
    """What a mount has left in its runtime directory, logs aside."""
    return {path.name for path in Path(env["WSFUSE_RUNTIME_DIR"]).iterdir() if ".log" not in path.suffixes}


# --- it works --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["direct", "relay", "auto"])
def test_mount_and_umount(server: Live, tmp_path: Path, transport: str) -> None:
    (server.root / "of the server").write_text("hello")
    with mount(server, tmp_path / "mnt", "--transport", transport) as mounted:
        status = mounted.status()
        assert status["state"] == "mounted"
        assert status["daemon"]["connection"]["state"] == "connected"
        assert status["daemon"]["connection"]["transport"] == {"auto": "direct"}.get(transport, transport)
        assert (mounted.path / "of the server").read_text() == "hello"
        (mounted.path / "of the mount").write_text("back")
        assert (server.root / "of the mount").read_text() == "back"
        pids = mounted.pids()
        assert {status["pid"], status["daemon"]["pid"]} == set(pids)
        assert "unmounted" in mounted.umount().stdout
        assert not mounted.mounted
        assert not mounted.path.exists(), "what was made for the mount is removed with it"
        for pid in pids:
            wait_gone(pid)
        assert runtime_files(mounted.env) == set()
        assert mounted.umount(check=False).returncode == 3


def test_stats_and_sync(server: Live, tmp_path: Path) -> None:
    with mount(server, tmp_path / "mnt") as mounted:
        (mounted.path / "file").write_bytes(b"x" * 1000)
        found = json.loads(run("stats", mounted.path, "--json", env=mounted.env).stdout)
        assert found["operations"]["write"]["bytes"] == 1000
        assert "write" in run("stats", env=mounted.env).stdout
        assert "on the server's disk" in run("sync", mounted.path, env=mounted.env).stdout


def test_a_directory_that_was_there_stays(server: Live, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir(mode=0o750)
    with mount(server, path) as mounted:
        mounted.umount()
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert list(path.iterdir()) == []


def test_options_reach_the_mount(server: Live, tmp_path: Path) -> None:
    (server.root / "sub" / "dir").mkdir(parents=True)
    (server.root / "sub" / "dir" / "file").touch()
    with mount(server, tmp_path / "mnt", "--subdir", "sub/dir", "--read-only", "--cache", "off") as mounted:
        assert os.listdir(mounted.path) == ["file"]
        with pytest.raises(OSError, match="Read-only"):
            (mounted.path / "new").touch()
        status = mounted.status()
        assert (status["read_only"], status["cache"], status["subdir"]) == (True, False, "sub/dir")


def test_it_is_ours_alone(server: Live, tmp_path: Path) -> None:
    """The token is in no argument list, no environment, no file of ours; nobody else can reach the control socket."""
    with mount(server, tmp_path / "mnt") as mounted:
        directory = Path(mounted.env["WSFUSE_RUNTIME_DIR"])
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        files = list(directory.iterdir())
        assert {path.suffix for path in files} == {".json", ".sock", ".log"}
        for path in files:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            if path.suffix != ".sock":
                assert server.token not in path.read_text()
        for pid in mounted.pids():
            for name in ("cmdline", "environ"):
                assert server.token.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        assert server.token not in json.dumps(mounted.status())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_cannot_use_the_control_socket(server: Live, tmp_path: Path) -> None:
    with mount(server, tmp_path / "mnt") as mounted:
        path = registry.Entry(Path(mounted.env["WSFUSE_RUNTIME_DIR"]), str(mounted.path), True).socket
        with other_user([path.parent]) as user:
            script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
            done = user.run("/usr/bin/env", "python3", "-c", script, str(path), env=mounted.env, check=False)
            assert "PermissionError" in done.stderr


def test_foreground(server: Live, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        path = tmp_path / number.name
        process = subprocess.Popen(
            [*WSFUSE, "mount", server.url, str(path), "--token-file", str(server.token_file), "--foreground"],
            env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        with process:
            read_until(process, "Mounted ")
            (path / number.name).touch()
            process.send_signal(number)
            assert process.wait(60) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""
        assert registry.kernel_mount(str(path)) is None
        assert not path.exists()


# --- it cannot be done, and nothing is left --------------------------------------------------------------------


def failed(
    server: Live, path: Path, *arguments: str, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A mount that must not succeed."""
    env = {**server.env, "WSFUSE_TOKEN": token if token is not None else server.token}
    existed = path.exists()
    done = run("mount", *arguments, env=env, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    mounted = Mount(path, server.root, env, server)
    assert not mounted.mounted
    assert path.exists() == existed
    assert mounted.pids() == []
    assert runtime_files(env) == set()
    return done


def test_a_wrong_token(server: Live, tmp_path: Path) -> None:
    server.expect_log("403 POST /wsfuse/api/ticket", "_xsrf")
    done = failed(server, tmp_path / "mnt", server.url, str(tmp_path / "mnt"), token="wrong")
    assert done.returncode == 4
    assert "token" in done.stderr
    assert "wrong" not in done.stderr


def test_no_server(server: Live, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        assert failed(server, tmp_path / "mnt", url, str(tmp_path / "mnt")).returncode == 4


def test_no_extension(server: Live, tmp_path: Path) -> None:
    server.expect_log("404 POST /elsewhere/wsfuse/api/ticket")
    done = failed(server, tmp_path / "mnt", f"{server.url}elsewhere/", str(tmp_path / "mnt"))
    assert done.returncode == 4
    assert "jupyter-wsfuse" in done.stderr


def test_no_such_subdirectory(server: Live, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    assert "No such file" in failed(server, path, server.url, str(path), "--subdir", "missing").stderr


def test_a_directory_with_files_in_it(server: Live, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "file").touch()
    assert "not empty" in failed(server, tmp_path / "mnt", server.url, str(tmp_path / "mnt")).stderr


def test_a_mount_point_that_cannot_be(server: Live, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in failed(server, tmp_path / "file", server.url, str(tmp_path / "file")).stderr
    below = tmp_path / "file" / "below"
    assert "Not a directory" in failed(server, below, server.url, str(below)).stderr


def test_twice(server: Live, tmp_path: Path) -> None:
    with mount(server, tmp_path / "mnt") as mounted:
        (mounted.path / "file").touch()
        done = run(
            "mount", server.url, mounted.path, "--token-file", server.token_file, env=mounted.env, check=False
        )
        assert done.returncode == 1
        assert f"wsfuse umount {mounted.path}" in done.stderr
        assert (mounted.path / "file").exists()


def test_interrupted_while_connecting(server: Live, tmp_path: Path) -> None:
    """A server that accepts and says nothing: Ctrl-C ends the command, and the processes behind it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        process = subprocess.Popen(
            [*WSFUSE, "mount", url, str(tmp_path / "mnt")],
            env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        with process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 130
                mounted = Mount(tmp_path / "mnt", server.root, server.env, server)
                wait_for(lambda: not mounted.pids(), "its processes have ended")
                assert runtime_files(server.env) == set()
                assert not mounted.path.exists()


# --- as an ordinary user ---------------------------------------------------------------------------------------


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[tuple[OtherUser, Path]]:
    """A user and a directory of his."""
    if os.geteuid() != 0:
        pytest.skip("all tests run as an ordinary user already")
    home = tmp_path / "home of nobody"
    home.mkdir()
    with other_user([home, Path(__file__).parents[2]]) as user:
        environment(home)
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        yield user, home


@pytest.mark.parametrize("transport", ["direct", "relay"])
def test_as_an_ordinary_user(nobody: tuple[OtherUser, Path], transport: str) -> None:
    """Server and mount, through fusermount3; the mount is his, the files are his, and he can take it down."""
    user, home = nobody
    env, command = environment(home), (*user.command, *WSFUSE)
    root, path = home / "root", home / "mnt"
    root.mkdir()
    os.chown(root, NOBODY, NOBODY)
    live = launch_server(root, home, env=env, command=command)
    try:
        options = ("--token-file", str(live.token_file), "--transport", transport)
        run("mount", live.url, path, *options, env=env, command=command)
        user.run("sh", "-c", f"echo hello > '{path}/file' && mkdir '{path}/dir' && ls -ln '{path}'", env=env)
        assert (root / "file").read_text() == "hello\n"
        assert (root / "file").stat().st_uid == NOBODY
        status = json.loads(run("status", "--json", env=env, command=command).stdout)[0]
        assert status["daemon"]["connection"]["transport"] == transport
        for pid in (status["pid"], status["daemon"]["pid"]):
            assert Path(f"/proc/{pid}").stat().st_uid == NOBODY
        doctor = json.loads(run("doctor", live.url, "--json", env=env, command=command, check=False).stdout)
        assert doctor["ok"], doctor
        with_open_file = subprocess.Popen(
            [*user.command, "sh", "-c", f"exec 3> '{path}/open'; echo opened; read wait"],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with with_open_file:
            read_until(with_open_file, "opened")
            done = run("umount", env=env, command=command)
            assert "by force" in done.stdout
            assert "sh (" in done.stdout
            with_open_file.communicate("")
        wait_gone(status["pid"])
        wait_gone(status["daemon"]["pid"])
        assert runtime_files(env) == set()
        assert not path.exists()
    finally:
        run("umount", "--all", "--force", env=env, command=command, check=False)
        live.stop()

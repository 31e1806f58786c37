"""Processes that die under a live mount: who has files open notices nothing but a pause."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_wsfuse.mount import registry
from tests.helpers.live import Live, Mount, mount, run, start_server, wait_for, wait_gone

pytestmark = [pytest.mark.mount, pytest.mark.jupyter]

CHUNK = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("server")
    with start_server(home / "root", home / "home") as live:
        yield live


@pytest.fixture(params=["direct", "relay"])
def mounted(server: Live, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    for path in server.root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with mount(server, tmp_path / "mnt", "--transport", request.param) as found:
        yield found


def kill_daemon(mounted: Mount) -> int:
    pid = mounted.daemon_pid
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    return pid


# --- the daemon ------------------------------------------------------------------------------------------------


def test_a_reader_and_a_writer_go_on(mounted: Mount) -> None:
    data = os.urandom(6 * CHUNK)
    (mounted.source / "in").write_bytes(data)
    with (
        open(mounted.path / "in", "rb", buffering=0) as reader,
        open(mounted.path / "out", "wb", buffering=0) as out,
    ):
        for number in range(3):
            out.write(reader.read(CHUNK))
            kill_daemon(mounted)
            out.write(reader.read(CHUNK))
            assert mounted.status()["restarts"] == number + 1
    assert (mounted.source / "out").read_bytes() == data


def test_at_every_moment_of_a_stream_of_operations(mounted: Mount) -> None:
    """Appends, creations and renames while the daemon is killed again and again: each is done exactly once."""
    directory = mounted.path / "many"
    directory.mkdir()
    stop = threading.Event()
    killed = []

    def kill() -> None:
        entry = Path(mounted.env["WSFUSE_RUNTIME_DIR"]) / f"{registry.mount_id(str(mounted.path))}.json"
        last = 0
        while not stop.wait(0.15) and len(killed) < 5:
            found = registry._read(entry)
            pid = found.info.get("daemon_pid", 0) if found is not None else 0
            if pid and pid != last:
                last = pid
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    done = 0
    try:
        while killer.is_alive() and done < 5000:
            fd = os.open(directory / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(fd, b"%08d\n" % done)
            os.close(fd)
            os.close(os.open(directory / f"new{done}", os.O_CREAT | os.O_EXCL, 0o644))
            os.rename(directory / f"new{done}", directory / f"old{done}")
            done += 1
    finally:
        stop.set()
        killer.join()
    assert killed
    lines = (mounted.source / "many" / "log").read_bytes().splitlines()
    assert [int(line) for line in lines] == list(range(done))
    assert set(os.listdir(directory)) == {"log", *(f"old{number}" for number in range(done))}


def test_locks_and_unlinked_files_survive(mounted: Mount) -> None:
    script = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(fd, fcntl.LOCK_EX)
gone = os.open(sys.argv[1] + ".gone", os.O_RDWR | os.O_CREAT)
os.write(gone, b"still here")
os.unlink(sys.argv[1] + ".gone")
print("locked", flush=True)
sys.stdin.readline()
print(os.pread(gone, 100, 0).decode(), flush=True)
sys.stdin.readline()
"""
    path = mounted.path / "locked"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        kill_daemon(mounted)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "still here\n"
        attempt = "import fcntl, os, sys; fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        for place in (path, mounted.source / "locked"):
            done = subprocess.run(
                [sys.executable, "-c", attempt, str(place)], capture_output=True, text=True, check=False
            )
            assert "BlockingIOError" in done.stderr
        holder.stdin.write("\n")
        holder.stdin.flush()
        holder.wait()
    subprocess.run([sys.executable, "-c", attempt, str(path)], check=True)


def test_a_daemon_that_is_told_to_go_is_replaced(mounted: Mount) -> None:
    (mounted.path / "file").write_text("x")
    with open(mounted.path / "file") as reader:
        pid = mounted.daemon_pid
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)
        assert reader.read() == "x"
    assert mounted.status()["restarts"] == 1


def test_a_stuck_daemon_does_not_stop_status_or_umount(mounted: Mount) -> None:
    pid = mounted.daemon_pid
    os.kill(pid, signal.SIGSTOP)
    assert mounted.status()["daemon"]["answering"] is False
    assert "not answering" in run("status", env=mounted.env).stdout
    done = mounted.umount("--force")
    assert not mounted.mounted
    assert "unmounted" in done.stdout
    wait_gone(pid)


def test_a_stuck_daemon_is_replaced(mounted: Mount) -> None:
    (mounted.path / "file").write_text("x")
    mounted.expect_log("has not answered")
    os.kill(mounted.daemon_pid, signal.SIGSTOP)
    assert (mounted.path / "file").read_text() == "x"
    assert mounted.status()["restarts"] == 1


@pytest.mark.parametrize("call", ["os.write(fd, b'y')", "os.mkdir(path + '.d')", "os.fsync(fd)"])
def test_a_signal_ends_a_call_although_the_engine_is_silent(mounted: Mount, call: str) -> None:
    path = mounted.path / "file"
    path.write_text("x" * 9)
    mounted.expect_log("no sign of life")
    mounted.server.expect_log("engine")
    engine = mounted.server.engine_pid()
    program = f"import os, sys; path = sys.argv[1]; fd = os.open(path, os.O_RDWR); print(flush=True); input(); {call}"
    child = subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout
        assert child.stdin
        child.stdout.readline()
        os.kill(engine, signal.SIGSTOP)
        child.stdin.write("\n")
        child.stdin.flush()
        wait_for(lambda: mounted_waits(child.pid), "the call waits for the mount")
        child.kill()
        assert child.wait(12) == -signal.SIGKILL
    finally:
        os.kill(engine, signal.SIGCONT)
        child.kill()
        child.communicate()


def mounted_waits(pid: int) -> bool:
    """Whether the process sleeps in a request to a FUSE mount."""
    return (
        "fuse" in Path(f"/proc/{pid}/stack").read_text()
        or "request_wait" in Path(f"/proc/{pid}/wchan").read_text()
    )


# --- the supervisor --------------------------------------------------------------------------------------------


def test_without_its_supervisor_a_mount_goes_on(mounted: Mount) -> None:
    status = mounted.status()
    os.kill(status["pid"], signal.SIGKILL)
    wait_gone(status["pid"])
    (mounted.path / "file").write_text("served on")
    assert mounted.status()["state"] == "unsupervised"
    assert run("mount", mounted.server.url, mounted.path, env=mounted.env, check=False).returncode == 1
    mounted.umount()
    assert not mounted.mounted
    wait_gone(status["daemon"]["pid"])
    assert mounted.status_of_all() == []


def test_a_dead_mount_is_cleared_away(mounted: Mount) -> None:
    """All its processes killed: what is left answers with an error, and the next mount or umount removes it."""
    for again in (False, True):
        status = mounted.status()
        os.kill(status["pid"], signal.SIGKILL)
        os.kill(status["daemon"]["pid"], signal.SIGKILL)
        wait_gone(status["pid"])
        wait_gone(status["daemon"]["pid"])
        with pytest.raises(OSError) as caught:
            os.listdir(mounted.path)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        assert mounted.status()["state"] == "dead"
        if again:
            mounted.umount()
            assert not mounted.mounted
        else:
            token = str(mounted.server.token_file)
            run("mount", mounted.server.url, mounted.path, "--token-file", token, env=mounted.env)
            os.listdir(mounted.path)


# --- the engine and the server ---------------------------------------------------------------------------------


def test_an_engine_that_dies_in_the_middle_of_writes(mounted: Mount) -> None:
    data = os.urandom(8 * CHUNK)
    with open(mounted.path / "out", "wb", buffering=0) as out:
        for number in range(8):
            out.write(data[number * CHUNK : (number + 1) * CHUNK])
            if number in (2, 5):
                mounted.server.kill_engine()
        os.fsync(out.fileno())
    assert (mounted.source / "out").read_bytes() == data


def test_a_server_that_is_gone_for_longer_than_the_deadline(tmp_path: Path) -> None:
    with start_server(tmp_path / "root", tmp_path / "home") as server:
        with mount(server, tmp_path / "mnt", "--deadline", "0.5") as mounted:
            (mounted.path / "file").touch()
            server.stop()
            with pytest.raises(OSError, match="timed out"):
                (mounted.path / "other").touch()
            wait_for(
                lambda: mounted.status()["daemon"]["connection"]["state"] == "reconnecting", "it notices"
            )
            assert run("sync", env=mounted.env, check=False).returncode == 1
            assert mounted.umount().returncode == 0
            assert not mounted.mounted

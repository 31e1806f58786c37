"""``umount`` always works: whatever is dead, and whoever has files open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_wsfuse.fuse import device
from jupyter_wsfuse.mount import teardown
from tests.helpers.live import Live, Mount, mount, run, start_server, wait_for, wait_gone

pytestmark = [pytest.mark.mount, pytest.mark.jupyter]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Live]:
    with start_server(tmp_path / "root", tmp_path / "home") as live:
        yield live


def gone(mounted: Mount, pids: list[int]) -> None:
    """No mount, no process, no entry."""
    assert not mounted.mounted
    for pid in pids:
        wait_gone(pid)
    left = {path.name for path in Path(mounted.env["WSFUSE_RUNTIME_DIR"]).iterdir()}
    assert left == {mounted.log_file.name}


_OPEN = """
import os, sys
file = open(sys.argv[1], "w+")
os.chdir(os.path.dirname(sys.argv[1]))
file.write("unsaved")
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(server: Live, tmp_path: Path) -> Iterator[tuple[Mount, subprocess.Popen[str]]]:
    """A mount, and a program that has a file open in it and stands in it."""
    with mount(server, tmp_path / "mnt") as mounted:
        process = subprocess.Popen(
            [sys.executable, "-c", _OPEN, str(mounted.path / "file")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield mounted, process
            process.communicate("\n")


@pytest.mark.parametrize("option", [(), ("--force",)])
def test_with_files_open(holder: tuple[Mount, subprocess.Popen[str]], option: tuple[str, ...]) -> None:
    mounted, process = holder
    pids = mounted.pids()
    assert (process.pid, "python") in [(pid, name[:6]) for pid, name in teardown.users_of(str(mounted.path))]
    done = mounted.umount(*option)
    assert f"({process.pid})" in done.stdout
    gone(mounted, pids)


@pytest.mark.parametrize("option", [(), ("--force",)])
@pytest.mark.parametrize("dead", ["server", "engine", "both"])
def test_with_files_open_and_nobody_to_answer(
    holder: tuple[Mount, subprocess.Popen[str]], dead: str, option: tuple[str, ...]
) -> None:
    mounted, _ = holder
    pids = mounted.pids()
    engine = mounted.server.engine_pid()
    mounted.server.expect_log("engine")
    if dead in ("server", "both"):
        mounted.server.process.send_signal(signal.SIGSTOP)  # connections stay up, and silent
    if dead in ("engine", "both"):
        os.kill(engine, signal.SIGSTOP)
    try:
        mounted.umount(*option)
        gone(mounted, pids)
    finally:
        os.kill(engine, signal.SIGCONT)
        mounted.server.process.send_signal(signal.SIGCONT)


def test_with_the_server_gone(server: Live, tmp_path: Path) -> None:
    with mount(server, tmp_path / "mnt") as mounted:
        pids = mounted.pids()
        server.stop()
        wait_for(lambda: mounted.status()["daemon"]["connection"]["state"] == "reconnecting", "it notices")
        assert "not synced" in mounted.umount().stdout
        gone(mounted, pids)


def test_a_plain_umount_ends_everything(server: Live, tmp_path: Path) -> None:
    for command in (["umount"], ["fusermount3", "-u"]):
        with mount(server, tmp_path / "mnt") as mounted:
            pids = mounted.pids()
            subprocess.run([*command, str(mounted.path)], check=True)
            for pid in pids:
                wait_gone(pid)
            gone(mounted, pids)


def test_a_lazy_umount_serves_open_files_to_the_end(server: Live, tmp_path: Path) -> None:
    with mount(server, tmp_path / "mnt") as mounted:
        pids = mounted.pids()
        with open(mounted.path / "file", "w") as file:
            subprocess.run(["umount", "--lazy", str(mounted.path)], check=True)
            file.write("written after")
        for pid in pids:
            wait_gone(pid)
        assert (mounted.source / "file").read_text() == "written after"
        gone(mounted, pids)


def test_an_aborted_connection_ends_everything(server: Live, tmp_path: Path) -> None:
    with mount(server, tmp_path / "mnt") as mounted:
        pids = mounted.pids()
        device.abort(str(mounted.path))
        for pid in pids:
            wait_gone(pid)
        gone(mounted, pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_supervisor_unmounts(server: Live, tmp_path: Path, number: int) -> None:
    with mount(server, tmp_path / "mnt") as mounted:
        pids = mounted.pids()
        os.kill(mounted.supervisor_pid, number)
        for pid in pids:
            wait_gone(pid)
        gone(mounted, pids)


def test_a_stuck_supervisor(server: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and the mount taken down without it."""
    from jupyter_wsfuse.mount import launcher

    with mount(server, tmp_path / "mnt") as mounted:
        pids = mounted.pids()
        for name, value in mounted.env.items():
            if name.startswith("WSFUSE"):
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(launcher, "ANSWER_TIMEOUT", 0.2)
        os.kill(mounted.supervisor_pid, signal.SIGSTOP)
        launcher.unmount(launcher.choose(str(mounted.path)))
        gone(mounted, pids)


def test_all(server: Live, tmp_path: Path) -> None:
    with mount(server, tmp_path / "a") as one, mount(server, tmp_path / "b") as two:
        pids = one.pids()
        assert len(pids) == 4
        assert run("umount", env=one.env, check=False).returncode == 2
        done = run("umount", "--all", env=one.env)
        assert done.stdout.count("unmounted") == 2
        assert not one.mounted
        assert not two.mounted
        for pid in pids:
            wait_gone(pid)

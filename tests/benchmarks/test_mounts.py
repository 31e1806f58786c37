"""Mounts that are found and taken down, whatever state they are in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mounts

INFO = (
    "22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
    "30 22 0:52 / /tmp/a\\040b/mount rw,nosuid - fuse.wsfuse http://127.0.0.1:1 rw,user_id=0\n"
    "31 22 0:53 / /tmp/other rw shared:5 master:6 - fuse.sshfs root@127.0.0.1:/ rw\n"
    "32 22 0:54 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n"
)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A table of mounts to write."""
    path = tmp_path / "mountinfo"
    path.write_text(INFO)
    monkeypatch.setattr(mounts, "_MOUNTS", path)
    return path


def test_mounts_are_found_without_asking_them(table: Path) -> None:
    assert mounts.mounted() == {"/tmp/a b/mount": 52, "/tmp/other": 53}


def test_a_connection_is_aborted(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_CONNECTIONS", tmp_path)
    (tmp_path / "52").mkdir()
    assert mounts.abort(Path("/tmp/a b/mount"))
    assert (tmp_path / "52/abort").read_text() == "1"
    assert not mounts.abort(Path("/tmp/other"))  # whose connection is gone
    assert not mounts.abort(Path("/tmp/nothing"))


def test_what_does_not_go_by_itself_goes_by_force(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run: list[list[str]] = []

    def command(words: list[object], **options: object) -> None:
        run.append([*map(str, words)])
        if run[-1][0] == "stuck":
            raise subprocess.TimeoutExpired("stuck", 1)
        table.write_text("")

    aborted: list[Path] = []
    monkeypatch.setattr(subprocess, "run", command)
    monkeypatch.setattr(mounts, "abort", aborted.append)
    mounts.take_down(Path("/tmp/other"), ["stuck", "umount"])
    assert run[0] == ["stuck", "umount", "/tmp/other"]
    assert len(run) == 2
    assert run[1][-1] == "/tmp/other"
    assert aborted == [Path("/tmp/other")]
    assert "by force" in capfd.readouterr().err


def test_what_a_killed_run_left_is_swept(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = (
        f"wsfuse-bench-{gone.pid}-x/relay",
        f"wsfuse-bench-{os.getpid()}-x/relay",
        "wsfuse-bench-abc/relay",
    )
    table.write_text("".join(f"1 1 0:9 / /tmp/{name} rw - fuse.wsfuse x rw\n" for name in names))
    down: list[Path] = []
    monkeypatch.setattr(mounts, "take_down", lambda path, command: down.append(path))
    assert mounts.sweep() == down == [Path("/tmp") / names[0]]


def test_the_workplace_is_gone_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "sweep", list)
    before = signal.getsignal(signal.SIGTERM)
    places: list[Path] = []

    def work() -> None:
        with mounts.workplace() as place:
            places.append(place)
            (place / "file").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 128 + signal.SIGTERM
    assert not places[0].exists()
    assert signal.getsignal(signal.SIGTERM) is before

"""The runtime directory, entries and claims. Nobody else can get in, and a lock says who lives."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_wsfuse.errors import MountError, NotMountedError
from jupyter_wsfuse.mount import launcher, registry
from jupyter_wsfuse.mount.registry import Claim


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(path))
    return path


# --- the runtime directory -------------------------------------------------------------------------------------


def test_it_is_private(directory: Path) -> None:
    assert registry.runtime_dir() == directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_an_open_one_of_ours_is_closed(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    registry.runtime_dir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_one_of_somebody_else_is_refused(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)
    with pytest.raises(MountError, match="not a private directory of yours"):
        registry.runtime_dir()


def test_a_link_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MountError, match="not a private directory of yours"):
        registry.runtime_dir()


def test_a_file_in_its_place_is_refused(directory: Path) -> None:
    directory.touch()
    with pytest.raises(MountError, match="WSFUSE_RUNTIME_DIR"):
        registry.runtime_dir()


def test_the_system_s_directory_is_used_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WSFUSE_RUNTIME_DIR")
    system = tmp_path / "run-user"
    system.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(system))
    assert registry.runtime_dir() == system / "wsfuse"


def test_otherwise_one_of_our_own_below_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSFUSE_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not Path(f"/run/user/{os.getuid()}").exists():
        assert registry.runtime_dir() == tmp_path / f"wsfuse-{os.getuid()}"


# --- claims ----------------------------------------------------------------------------------------------------


def test_a_claim_excludes_others_until_it_is_released(directory: Path) -> None:
    claim = Claim("/mnt/a")
    with pytest.raises(MountError, match="already mounted"):
        Claim("/mnt/a")
    Claim("/mnt/b").release()
    claim.release()
    assert list(directory.iterdir()) == []
    Claim("/mnt/a").release()


def test_the_entry_tells_what_was_written() -> None:
    claim = Claim("/mnt/\udcff")
    assert list(registry.entries()) == []  # nothing written yet: not an entry
    claim.write({"url": "http://h/", "long": "x" * 100})
    claim.write({"url": "http://h/"})
    entry = registry.find("/mnt/\udcff")
    assert entry.alive
    assert entry.info == {"url": "http://h/", "mountpoint": "/mnt/\udcff"}
    assert stat.S_IMODE(entry.file.stat().st_mode) == 0o600
    claim.release()
    with pytest.raises(NotMountedError, match="wsfuse status"):
        registry.find("/mnt/\udcff")


_CLAIM = """
import os, sys
from jupyter_wsfuse.mount.registry import Claim
claim = Claim("/mnt/a")
claim.write({"pid": os.getpid()})
if sys.argv[1] == "inherit":
    os.set_inheritable(claim.fd, True)
    if os.fork() == 0:
        print("ready", flush=True)
        sys.stdin.read()
        os._exit(0)
    os._exit(0)
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.parametrize("how", ["itself", "inherit"])
def test_a_claim_lives_as_long_as_a_process_that_has_it(how: str) -> None:
    """The supervisor's child holds it as well: a dead supervisor alone does not make a mount dead."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _CLAIM, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == "ready\n"
        if how == "inherit":
            holder.wait()
        assert registry.find("/mnt/a").alive
        with pytest.raises(MountError):
            Claim("/mnt/a")
        holder.stdin.close()
        assert holder.stdout.read() == ""  # the last process that had it is gone
    holder.wait()
    assert not registry.find("/mnt/a").alive
    Claim("/mnt/a").release()


def test_a_dead_entry_of_what_is_not_mounted_is_swept_away(directory: Path) -> None:
    claim = Claim("/mnt/a")
    claim.write({})
    os.close(claim.fd)  # as a kill would
    assert not registry.find("/mnt/a").alive
    assert launcher.mounts() == []
    assert list(directory.iterdir()) == []


def test_nonsense_in_the_directory_is_passed_over(directory: Path) -> None:
    registry.runtime_dir()
    (directory / "1.json").write_text("{")
    (directory / "2.json").write_text(json.dumps([1]))
    (directory / "3.json").symlink_to("/etc/passwd")
    assert list(registry.entries()) == []


# --- names -----------------------------------------------------------------------------------------------------


def test_mount_points_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "dir").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "last").symlink_to("dir")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in (
        "link/dir",
        "real/last",
        "link/last/",
        "~/real/dir",
        "./link/../link/dir",
        f"{tmp_path}//real/dir/",
    ):
        assert registry.resolve_mountpoint(text) == str(tmp_path / "real" / "dir")
    assert registry.resolve_mountpoint("link/new") == str(tmp_path / "real" / "new")


def test_a_loop_of_links_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(MountError, match="loop"):
        registry.resolve_mountpoint(str(tmp_path / "a"))


def test_names_in_the_mount_table_are_unescaped() -> None:
    assert registry._unescape("/a\\040b\\134c\\012") == "/a b\\c\n"

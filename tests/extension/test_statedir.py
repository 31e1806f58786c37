"""The private directory of a server, and what is done with those of dead ones."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from jupyter_wsfuse.extension.statedir import StateDir


def test_it_is_private(tmp_path: Path) -> None:
    made = StateDir(tmp_path / "runtime")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    made.remove()
    assert list((tmp_path / "runtime").iterdir()) == []


def test_remains_that_cannot_be_locked_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    one, two = StateDir(tmp_path), StateDir(tmp_path)
    assert one.path.is_dir()
    one.remove()
    two.remove()


def test_remains_of_killed_servers_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    used = StateDir(tmp_path)
    dead = StateDir(tmp_path)
    os.close(dead._lock)  # what the kernel does when a process is killed
    (dead.path / "session").write_text("x")
    other = tmp_path / "wsfuse-is-a-file-of-mine"
    other.write_text("x")
    new = StateDir(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([used.path, new.path, other])
    used.remove()
    new.remove()
    assert list(tmp_path.iterdir()) == [other]

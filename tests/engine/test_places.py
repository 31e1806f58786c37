"""Where an open file lies, from its descriptor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jupyter_wsfuse.engine.places import Places
from jupyter_wsfuse.errors import SandboxError
from tests.helpers.workspace import fails


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Folders:
    """A workspace, folders outside, and their places."""

    def __init__(self, tmp_path: Path, *outside: str) -> None:
        self.root = tmp_path / "root"
        self.root.mkdir()
        self.clock = Clock()
        self.fds = [os.open(path, os.O_PATH) for path in (self.root, *(tmp_path / name for name in outside))]
        self.places = Places(self.fds, self.clock)

    @contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)

    def of(self, path: Path) -> bytes:
        with self.opened(path) as fd:
            return self.places.of(fd)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    for name in ("shared", "shared/inner", "else"):
        (tmp_path / name).mkdir()
    folders = Folders(tmp_path, "shared", "shared/inner")
    yield folders
    folders.places.close()
    for fd in folders.fds:
        os.close(fd)


def test_in_the_workspace(folders: Folders) -> None:
    (folders.root / "a").mkdir()
    (folders.root / "a" / os.fsdecode(b"b\n\xff")).touch()
    (folders.root / "link").symlink_to("a")
    for _ in range(2):  # looked up, and remembered
        assert folders.of(folders.root) == b""
        assert folders.of(folders.root / "a") == b"a"
        assert folders.of(folders.root / "a" / os.fsdecode(b"b\n\xff")) == b"a/b\n\xff"
        assert folders.of(folders.root / "link") == b"link"


def test_in_other_folders(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "shared/inner/x").touch()
    (tmp_path / "shared/y").touch()
    assert folders.of(tmp_path / "shared") == b"/"
    assert folders.of(tmp_path / "shared/y") == b"/y"
    assert folders.of(tmp_path / "shared/inner/x") == b"/x"  # of the innermost


def test_elsewhere(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "rooted").mkdir()  # begins like the name of the workspace
    for path in (tmp_path, tmp_path / "else", tmp_path / "rooted"):
        with pytest.raises(SandboxError):
            folders.of(path)


def test_the_path_of_now(folders: Folders) -> None:
    (folders.root / "a").mkdir()
    (folders.root / "a/file").touch()
    with folders.opened(folders.root / "a/file") as fd:
        assert folders.places.of(fd) == b"a/file"
        (folders.root / "a").rename(folders.root / "b")
        assert folders.places.of(fd) == b"b/file"


def test_a_workspace_that_is_moved(folders: Folders, tmp_path: Path) -> None:
    (folders.root / "file").touch()
    assert folders.of(folders.root / "file") == b"file"
    folders.root.rename(tmp_path / "moved")
    assert folders.of(tmp_path / "moved/file") == b"file"
    # Moved below where it was, nothing shows it but time.
    (tmp_path / "moved").rename(tmp_path / "away")
    (tmp_path / "moved").mkdir()
    (tmp_path / "away").rename(tmp_path / "moved/deeper")
    folders.clock.now += 2
    assert folders.of(tmp_path / "moved/deeper/file") == b"file"


def test_files_without_a_name(folders: Folders) -> None:
    path = folders.root / "file"
    path.touch()
    with folders.opened(path) as fd:
        path.unlink()
        with fails(errno.ENOENT):
            folders.places.of(fd)
        path.touch()  # another one
        with fails(errno.ENOENT):
            folders.places.of(fd)


def test_names_that_only_look_deleted(folders: Folders) -> None:
    path = folders.root / "file (deleted)"
    path.touch()
    assert folders.of(path) == b"file (deleted)"
    (folders.root / "file").touch()
    assert folders.of(path) == b"file (deleted)"
    with folders.opened(path) as fd:
        path.unlink()
        with fails(errno.ENOENT):
            folders.places.of(fd)


def test_a_name_that_came_back(folders: Folders) -> None:
    """As the kernel sees those that it dropped although they are still good on another machine."""
    path, other = folders.root / "file", folders.root / "other"
    path.touch()
    other.hardlink_to(path)
    with folders.opened(path) as fd:
        path.unlink()
        path.hardlink_to(other)
        assert folders.places.of(fd) == b"file"


def test_a_path_that_is_too_long(folders: Folders) -> None:
    directory = os.open(folders.root, os.O_PATH)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=directory)
        inner = os.open("x" * 250, os.O_PATH, dir_fd=directory)
        os.close(directory)
        directory = inner
    try:
        with fails(errno.ENAMETOOLONG):
            folders.places.of(directory)
    finally:
        os.close(directory)


def test_the_whole_machine() -> None:
    fds = [os.open("/", os.O_PATH), os.open("/proc/self", os.O_PATH)]
    places = Places(fds[:1])
    try:
        assert places.of(fds[0]) == b""
        assert places.of(fds[1]) == b"proc/%d" % os.getpid()
    finally:
        places.close()
        for fd in fds:
            os.close(fd)

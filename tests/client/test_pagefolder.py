"""The folder of kept pages: whose it has to be, and its count, lock and files."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jupyter_wsfuse.client.pagefolder import PAGE, Folder, Found, cost_of
from jupyter_wsfuse.errors import MountError

MakeFolder = Callable[[Path], Folder]
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def made() -> Iterator[MakeFolder]:
    folders: list[Folder] = []

    def make(path: Path) -> Folder:
        folders.append(Folder(path))
        return folders[-1]

    yield make
    for folder in folders:
        folder.close()


@pytest.fixture
def folder(made: MakeFolder, tmp_path: Path) -> Folder:
    return made(tmp_path / "pages")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- whose it is ------------------------------------------------------------------------------------------


def test_all_that_is_made_is_this_users_alone(tmp_path: Path, made: MakeFolder) -> None:
    before = os.umask(0)
    try:
        folder = made(tmp_path / "one" / "two" / "three")
        folder.write("ab-1", [b"x"], 1.0)
    finally:
        os.umask(before)
    paths = list((tmp_path / "one").rglob("*"))
    assert len(paths) == 7
    for path in [tmp_path / "one", *paths]:
        assert _mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_it_is_marked_as_a_cache(folder: Folder, tmp_path: Path) -> None:
    tag = (tmp_path / "pages" / "CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


def test_it_is_taken_up_again(tmp_path: Path, made: MakeFolder) -> None:
    made(tmp_path / "pages").write("ab-1", [b"x"], 1.0)
    (tmp_path / "pages" / "notes").touch()
    assert [found.name for found in made(tmp_path / "pages").files()] == ["ab-1"]


def test_relative_to_where_it_was_named(
    tmp_path: Path, made: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = made(Path("pages"))
    monkeypatch.chdir("/")
    folder.write("ab-1", [b"x"], 1.0)
    assert (tmp_path / "pages/a/b/ab-1").exists()


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o770, 0o720, 0o755, 0o704])
def test_open_to_others(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "pages"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(MountError, match=f"chmod 700 {path}"):
        Folder(path)
    assert list(path.iterdir()) == []


@ROOT
def test_another_users(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.mkdir(0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(MountError, match=r"user 12345: choose one of your own"):
        Folder(path)
    assert list(path.iterdir()) == []


def test_a_link(tmp_path: Path, made: MakeFolder) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "pages").symlink_to("real")
    with pytest.raises(MountError, match="symbolic link: name the folder itself"):
        Folder(tmp_path / "pages")
    (tmp_path / "nowhere").symlink_to("missing")
    with pytest.raises(MountError, match="symbolic link"):
        Folder(tmp_path / "nowhere")
    assert not (tmp_path / "missing").exists()
    made(tmp_path / "pages" / "below")  # as a home that is elsewhere
    assert (tmp_path / "real" / "below").is_dir()


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MountError, match="Not a directory"):
            Folder(path)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir(0o700)
    (path / "thesis.tex").touch()
    with pytest.raises(MountError, match="contains other files: choose an empty folder"):
        Folder(path)
    assert [entry.name for entry in path.iterdir()] == ["thesis.tex"]


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pages"
    path.mkdir(0o700)
    really = os.open

    def opening(name: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return really(name, flags, *rest, **more)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", opening)
    with pytest.raises(MountError, match="cannot be written: Read-only"):
        Folder(path)
    assert len(os.listdir("/proc/self/fd")) == before


# --- the lock, and the count ------------------------------------------------------------------------------


def test_one_at_a_time(folder: Folder, made: MakeFolder, tmp_path: Path) -> None:
    other = made(tmp_path / "pages")
    with folder.locked() as held:
        assert held
        with other.locked() as too:
            assert not too
    with other.locked() as held:
        assert held


def test_a_file_system_without_locks(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    with folder.locked() as held:
        assert not held


def test_the_count_is_shared(folder: Folder, made: MakeFolder, tmp_path: Path) -> None:
    other = made(tmp_path / "pages")
    assert folder.count is None
    folder.count = 12345
    assert other.count == 12345
    other.count = -1
    assert folder.count == 0


# --- files ------------------------------------------------------------------------------------------------


def _content(folder: Folder, name: str) -> bytes:
    fd = folder.open(name)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def test_files(folder: Folder) -> None:
    assert folder.find("ab-1") is None
    folder.write("ab-1", [b"one", memoryview(b"two")], 17.0)
    folder.write("ab-2", [], 18.0)
    folder.write("cd-1", [bytes(PAGE + 1)], 19.0)
    assert _content(folder, "ab-1") == b"onetwo"
    assert folder.find("ab-1") == Found("ab-1", PAGE, 17.0)
    assert folder.find("ab-2") == Found("ab-2", 0, 18.0)
    assert folder.find("cd-1") == Found("cd-1", 2 * PAGE, 19.0)
    assert sorted(found.name for found in folder.files()) == ["ab-1", "ab-2", "cd-1"]
    assert sorted(found.name for found in folder.files("ab")) == ["ab-1", "ab-2"]
    assert [found.name for found in folder.files("ab-2")] == ["ab-2"]
    assert list(folder.files("ee")) == []
    folder.write("ab-1", [b"three"], 20.0)
    assert _content(folder, "ab-1") == b"three"
    assert folder.remove("ab-1")
    assert not folder.remove("ab-1")
    with pytest.raises(FileNotFoundError):
        folder.open("ab-1")


@pytest.mark.parametrize(("size", "cost"), [(0, 0), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)])
def test_cost(size: int, cost: int) -> None:
    assert cost_of(size) == cost


def test_what_is_not_ours_is_not_looked_at(folder: Folder, tmp_path: Path) -> None:
    folder.write("ab-1", [b"x"], 1.0)
    leaf = tmp_path / "pages" / "a" / "b"
    (leaf / "README").touch()
    (leaf / "ac-1").touch()
    (leaf / "ab-2").mkdir()
    (leaf / "ab-3").symlink_to("ab-1")
    (tmp_path / "pages" / "c").mkdir()
    (tmp_path / "pages" / "c" / "d").touch()
    assert [found.name for found in folder.files()] == ["ab-1"]
    assert folder.find("ab-2") is None
    assert folder.find("ab-3") is None
    with pytest.raises(OSError):
        folder.open("ab-3")


@pytest.mark.parametrize("failing", ["write", "utime", "rename"])
def test_a_file_that_cannot_be_written_is_not_there(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder.write("ab-1", [b"before"], 1.0)

    def fail(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OSError) as caught:
            folder.write("ab-1", [b"after"], 1.0)
    assert caught.value.errno == errno.ENOSPC
    assert _content(folder, "ab-1") == b"before"
    assert not list((tmp_path / "pages").glob("new-*"))


def test_a_write_that_is_short_goes_on(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: really(fd, data[:3]))
    folder.write("ab-1", [b"0123456789", b"abc"], 1.0)
    assert _content(folder, "ab-1") == b"0123456789abc"


def test_leftovers_go(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "pages" / "new-0123").touch()
    (tmp_path / "pages" / "newer").touch()
    folder.write("ab-1", [b"x"], 1.0)
    folder.tidy()
    assert not (tmp_path / "pages" / "new-0123").exists()
    assert (tmp_path / "pages" / "newer").exists()
    assert folder.find("ab-1")


def test_the_folder_is_removed_under_it(folder: Folder, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "pages")
    with pytest.raises(FileNotFoundError):
        folder.write("ab-1", [b"x"], 1.0)
    assert list(folder.files()) == []
    assert not folder.remove("ab-1")
    folder.tidy()

"""The folder of a :class:`~.pagestore.PageStore`: files with names, and how much they take.

::

    folder/
      CACHEDIR.TAG    tells backups to leave it out, and us that the folder is ours
      lock            held by who writes; contains the bytes that all files take, big-endian
      new-...         what is being written; if nobody holds the lock, a leftover
      3/f/3f...       the files

Several processes may share a folder. The count is never less than what is there: who is killed between a change and
the count of it leaves too large a number behind, until somebody looks at all files.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import MountError

#: What a file takes on disk is a multiple of that.
PAGE: Final = 4096
_COUNT: Final = struct.Struct(">Q")
#: Attempts to get the lock, a millisecond apart. A process may be stopped while it holds it.
_ATTEMPTS: Final = 10
#: bford.info/cachedir
_TAG: Final = b"""Signature: 8a477f597d28d172789f06886806bc55
# Blocks of files of a Jupyter workspace, kept by jupyter-wsfuse. May be removed at any time.
"""
_DIGITS: Final = "0123456789abcdef"
_OURS: Final = re.compile(r"CACHEDIR\.TAG|lock|new-[0-9a-f]+|[0-9a-f]")
_FILE: Final = re.compile(r"[0-9a-f]{2}[0-9a-f-]+")
_DIRECTORY: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY


class Found(NamedTuple):
    """A file: bytes that it takes on disk, seconds since the epoch when it was last used."""

    name: str
    cost: int
    used: float


def cost_of(size: int) -> int:
    """Bytes that a file of *size* bytes takes on disk."""
    return -(-size // PAGE) * PAGE


class Folder:
    """Methods raise the :class:`OSError` of what they did, if they do not say otherwise."""

    def __init__(self, path: Path) -> None:
        """Made if it is missing, as are folders above it. :class:`.MountError` says why it cannot be used."""
        path = Path(os.path.abspath(path))
        try:
            for part in reversed((path, *path.parents)):
                if not os.path.lexists(part):
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o700)
            if path.is_symlink():
                raise _unusable(path, "is a symbolic link: name the folder itself")
            self._fd = os.open(path, _DIRECTORY)
        except OSError as error:
            raise _unusable(path, f"cannot be opened or made: {error.strerror}") from error
        try:
            self._check(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = os.open("lock", flags, 0o600, dir_fd=self._fd)
        except OSError as error:
            os.close(self._fd)
            raise _unusable(path, f"cannot be written: {error.strerror}") from error
        except MountError:
            os.close(self._fd)
            raise

    def _check(self, path: Path) -> None:
        found = os.fstat(self._fd)
        if found.st_uid != os.geteuid():
            raise _unusable(path, f"belongs to the user {found.st_uid}: choose one of your own")
        if found.st_mode & 0o077:
            raise _unusable(path, f"is open to other users: chmod 700 {path}")
        names = os.listdir(self._fd)
        if "CACHEDIR.TAG" in names:
            return
        if not all(map(_OURS.fullmatch, names)):
            raise _unusable(
                path, "contains other files: choose an empty folder, or a name that is not there yet"
            )
        with suppress(OSError):  # as when the disk is full
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open("CACHEDIR.TAG", flags, 0o600, dir_fd=self._fd)
            try:
                os.write(fd, _TAG)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Nothing else may be called after that."""
        os.close(self._lock)
        os.close(self._fd)

    # --- who may write, and how much is there ----------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether no other process writes meanwhile. Waits for some milliseconds at most. Not to be nested."""
        held = False
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
                break
            except BlockingIOError:
                time.sleep(0.001 if attempt < _ATTEMPTS - 1 else 0.0)
            except OSError:  # a file system without locks
                break
        try:
            yield held
        finally:
            if held:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    @property
    def count(self) -> int | None:
        """Bytes that all files take, at most; None if nobody knows. No errors."""
        try:
            return int(_COUNT.unpack(os.pread(self._lock, _COUNT.size, 0))[0])
        except (OSError, struct.error):
            return None

    @count.setter
    def count(self, count: int) -> None:
        """To be called under the lock, before something is written and after something is removed."""
        with suppress(OSError):
            os.pwrite(self._lock, _COUNT.pack(max(0, count)), 0)

    # --- files -----------------------------------------------------------------------------------------

    def open(self, name: str) -> int:
        """A descriptor to read from."""
        return os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._fd)

    def find(self, name: str) -> Found | None:
        """What is there under a name. No errors."""
        try:
            return _found(name, os.stat(_path(name), dir_fd=self._fd, follow_symlinks=False))
        except OSError:
            return None

    def write(self, name: str, parts: list[bytes | memoryview], used: float) -> None:
        """A file whole or not at all, instead of what has that name. Under the lock."""
        new = f"new-{secrets.token_hex(8)}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            try:
                for part in parts:
                    rest = memoryview(part)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
                os.utime(fd, (used, used))
            finally:
                os.close(fd)
            try:
                os.rename(new, _path(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except FileNotFoundError:
                for directory in (name[0], f"{name[0]}/{name[1]}"):
                    with suppress(FileExistsError):
                        os.mkdir(directory, 0o700, dir_fd=self._fd)
                os.rename(new, _path(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(new, dir_fd=self._fd)
            raise

    def remove(self, name: str) -> bool:
        """Whether it was there, and is not any more. No errors."""
        try:
            os.unlink(_path(name), dir_fd=self._fd)
        except OSError:
            return False
        return True

    def files(self, prefix: str = "") -> Iterator[Found]:
        """All files, or those whose names begin with *prefix*, which is empty or at least two digits. No errors."""
        leaves = [prefix[:2]] if prefix else [first + second for first in _DIGITS for second in _DIGITS]
        for leaf in leaves:
            try:
                fd = os.open(f"{leaf[0]}/{leaf[1]}", _DIRECTORY, dir_fd=self._fd)
            except OSError:
                continue
            try:
                with suppress(OSError), os.scandir(fd) as entries:
                    for entry in entries:
                        name = entry.name
                        if name.startswith(prefix or leaf) and _FILE.fullmatch(name):
                            with suppress(OSError):
                                found = _found(name, entry.stat(follow_symlinks=False))
                                if found is not None:
                                    yield found
            finally:
                os.close(fd)

    def tidy(self) -> None:
        """Remove what writers left that were killed. Under the lock. No errors."""
        with suppress(OSError):
            for name in os.listdir(self._fd):
                if name.startswith("new-"):
                    os.unlink(name, dir_fd=self._fd)


def _path(name: str) -> str:
    return f"{name[0]}/{name[1]}/{name}"


def _found(name: str, found: os.stat_result) -> Found | None:
    return Found(name, cost_of(found.st_size), found.st_mtime) if stat.S_ISREG(found.st_mode) else None


def _unusable(path: Path, why: str) -> MountError:
    return MountError(f"{path}, where file data should be kept, {why}")

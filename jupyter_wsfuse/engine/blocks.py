"""What files occupy on disk: a whole tree, and the part of a file that has no blocks yet."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
import time
from typing import Final, TypeAlias

from .sandbox import Sandbox, proc_path

#: Bytes of a block as st_blocks counts them, and as file systems give them out.
SECTOR: Final = 512
BLOCK: Final = 4096
#: Files with several names that are remembered to be counted once; of further ones, each name counts its share.
LINKED_MAX: Final = 1 << 20
#: Seconds of work after which the count rests.
_SLICE: Final = 0.01

# <linux/fiemap.h>
_FS_IOC_FIEMAP: Final = 0xC020660B
_FIEMAP: Final = struct.Struct("=QQIIII")
_EXTENT: Final = struct.Struct("=QQQQQIIII")
_EXTENT_LAST: Final = 1
_EXTENTS: Final = 256  # asked for at a time
_ROUNDS: Final = 64

_Path: TypeAlias = tuple["_Path | None", bytes]  # of the directory, and the name in it


class Stopped(Exception):
    """The count was given up because it was told to."""


def measure(root: bytes, stop: threading.Event, *, rest: float = 0.0) -> tuple[int, int]:
    """Bytes on disk of *root* and everything below it, and the number of directories that could not be read.

    A file with several names counts once; nothing that is mounted below counts, or is touched. No link is
    followed. *rest*: seconds of rest for each second of work. Raises :class:`Stopped` once *stop* is set, and
    :class:`OSError` if the root cannot be read.
    """
    sandbox = Sandbox(root)
    try:
        return _Count(sandbox, stop, rest).run()
    finally:
        sandbox.close()


class _Count:
    def __init__(self, sandbox: Sandbox, stop: threading.Event, rest: float) -> None:
        self.sandbox = sandbox
        self.stop = stop
        self.rest = rest
        self.total = 0
        self.unreadable = 0
        self.linked: set[tuple[int, int]] = set()
        # Directories to look into. Each knows only its name and where it is in: the paths of many deep ones would
        # take more room than they.
        self.pending: list[_Path | None] = [None]
        self.since = time.monotonic()

    def run(self) -> tuple[int, int]:
        self.total += os.fstat(self.sandbox.root_fd).st_blocks * SECTOR
        while self.pending:
            place = self.pending.pop()
            try:
                self.directory(place)
            except PermissionError:
                self.unreadable += 1
            except OSError:  # it is gone, or something else is there or mounted there
                if place is None:
                    raise
            self.pause()
        return self.total, self.unreadable

    def pause(self) -> None:
        worked = time.monotonic() - self.since
        if worked > _SLICE:
            self.stop.wait(worked * self.rest)
            self.since = time.monotonic()
        if self.stop.is_set():
            raise Stopped

    def directory(self, place: _Path | None) -> None:
        found = self.sandbox.open_path(_path(place), os.O_DIRECTORY)
        try:
            fd = os.open(proc_path(found), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(found)
        try:
            mounted = self.sandbox.mounted_in(fd)
            with os.scandir(fd) as entries:
                for number, entry in enumerate(entries):
                    name = os.fsencode(entry.name)
                    if name not in mounted:
                        self.entry(place, name, entry)
                    if number % 256 == 255:
                        self.pause()
        finally:
            os.close(fd)

    def entry(self, place: _Path | None, name: bytes, entry: os.DirEntry[str]) -> None:
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        size = info.st_blocks * SECTOR
        if stat.S_ISDIR(info.st_mode):
            self.pending.append((place, name))
        elif info.st_nlink > 1:
            key = info.st_dev, info.st_ino
            if key in self.linked:
                return
            if len(self.linked) < LINKED_MAX:
                self.linked.add(key)
            else:
                size //= info.st_nlink
        self.total += size


def _path(place: _Path | None) -> bytes:
    names = []
    while place is not None:
        place, name = place
        names.append(name)
    return b"/".join(reversed(names))


def missing(fd: int, offset: int, length: int) -> int:
    """Bytes of the blocks that the range of an open file has not yet; never too few, as far as the file system
    tells."""
    start = offset - offset % BLOCK
    end = offset + length + -(offset + length) % BLOCK
    try:
        return _by_extents(fd, start, end)
    except (
        OSError
    ):  # not every file system has this, or what it does not call a hole may be one that was reserved
        pass
    try:
        return _by_holes(fd, start, end)
    except OSError:
        return end - start


def _by_extents(fd: int, start: int, end: int) -> int:
    lacking, at = 0, start
    for _ in range(_ROUNDS):
        buffer = bytearray(_FIEMAP.size + _EXTENTS * _EXTENT.size)
        _FIEMAP.pack_into(buffer, 0, at, end - at, 0, 0, _EXTENTS, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _FIEMAP.unpack_from(buffer)[3]
        last = count < _EXTENTS
        for number in range(count):
            logical, _, size, _, _, flags, *_ = _EXTENT.unpack_from(
                buffer, _FIEMAP.size + number * _EXTENT.size
            )
            lacking += max(0, min(logical, end) - at)
            at = max(at, min(logical + size, end))
            last = last or bool(flags & _EXTENT_LAST)
        if last or at >= end:
            break
    return lacking + end - at


def _by_holes(fd: int, start: int, end: int) -> int:
    lacking, at = 0, start
    for _ in range(_ROUNDS):
        try:
            hole = os.lseek(fd, at, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            hole = at  # behind the end of the file
        hole += -hole % BLOCK
        if hole >= end:
            return lacking
        try:
            at = min(end, os.lseek(fd, hole, os.SEEK_DATA))
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            at = end
        lacking += at - hole
        if at == end:
            return lacking
    return lacking + end - at

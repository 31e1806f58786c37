"""The same system calls on two directories, and what each of them showed.

A :class:`Workbench` is a directory and the open descriptors of one run on it. :func:`perform` executes one
operation, given as plain data, and returns an outcome that can be compared: the errno name, or the result
without what must differ between two directories (inode numbers, times, device).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

Outcome = tuple[Any, ...]


class Operation(NamedTuple):
    """``name`` is a function of this module; ``uid`` whose effective identity executes it (None: ours)."""

    name: str
    arguments: tuple[Any, ...]
    uid: int | None = None


class Workbench:
    """A directory under test. ``close`` closes the descriptors that operations left open."""

    def __init__(self, root: str | bytes) -> None:
        self.root = os.fsencode(root)
        self.files: dict[int, int] = {}

    def path(self, relative: bytes) -> bytes:
        return os.path.join(self.root, relative) if relative else self.root

    def close(self) -> None:
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()


@contextmanager
def acting_as(uid: int | None) -> Any:
    """Effective user and group *uid*, without supplementary groups, for the calling (single) thread."""
    if uid is None:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def perform(bench: Workbench, operation: Operation) -> Outcome:
    """Execute *operation*; the outcome is ("ok", result) or ("error", errno name)."""
    function: Callable[..., Any] = FUNCTIONS[operation.name]
    previous = os.umask(0o022)
    try:
        with acting_as(operation.uid):
            return ("ok", function(bench, *operation.arguments))
    except OSError as problem:
        return ("error", errno.errorcode[problem.errno or 0])
    finally:
        os.umask(previous)


def visible(info: os.stat_result) -> tuple[Any, ...]:
    """What of a stat must be the same in both directories."""
    directory = stat.S_ISDIR(info.st_mode)
    return (
        oct(info.st_mode),
        info.st_nlink,
        info.st_uid,
        info.st_gid,
        None if directory else info.st_size,
        info.st_rdev,
    )


def tree(bench: Workbench) -> list[tuple[Any, ...]]:
    """Everything visible below the root: names, attributes, contents, link targets, extended attributes."""
    rows: list[tuple[Any, ...]] = []

    def walk(relative: bytes) -> None:
        for name in sorted(os.listdir(bench.path(relative))):
            child = os.path.join(relative, name) if relative else name
            path = bench.path(child)
            info = os.lstat(path)
            content: Any = None
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            names = [] if stat.S_ISLNK(info.st_mode) else sorted(os.listxattr(path))
            rows.append((child, visible(info), content, [(n, os.getxattr(path, n)) for n in names]))
            if stat.S_ISDIR(info.st_mode):
                walk(child)

    walk(b"")
    return rows


# --- operations on names ---------------------------------------------------------------------------


def mkdir(bench: Workbench, path: bytes, mode: int) -> None:
    os.mkdir(bench.path(path), mode)


def rmdir(bench: Workbench, path: bytes) -> None:
    os.rmdir(bench.path(path))


def unlink(bench: Workbench, path: bytes) -> None:
    os.unlink(bench.path(path))


def symlink(bench: Workbench, target: bytes, path: bytes) -> None:
    os.symlink(target, bench.path(path))


def readlink(bench: Workbench, path: bytes) -> bytes:
    return os.readlink(bench.path(path))


def link(bench: Workbench, old: bytes, new: bytes) -> None:
    os.link(bench.path(old), bench.path(new), follow_symlinks=False)


def rename(bench: Workbench, old: bytes, new: bytes) -> None:
    os.rename(bench.path(old), bench.path(new))


def mkfifo(bench: Workbench, path: bytes, mode: int) -> None:
    os.mkfifo(bench.path(path), mode)


def mknod(bench: Workbench, path: bytes, mode: int) -> None:
    os.mknod(bench.path(path), mode)


def chmod(bench: Workbench, path: bytes, mode: int) -> None:
    os.chmod(bench.path(path), mode)


def chown(bench: Workbench, path: bytes, uid: int, gid: int) -> None:
    os.lchown(bench.path(path), uid, gid)


def truncate(bench: Workbench, path: bytes, size: int) -> None:
    os.truncate(bench.path(path), size)


def utime(bench: Workbench, path: bytes, atime: int, mtime: int) -> tuple[int, int]:
    os.utime(bench.path(path), ns=(atime, mtime), follow_symlinks=False)
    info = os.lstat(bench.path(path))
    return info.st_atime_ns, info.st_mtime_ns


def lstat(bench: Workbench, path: bytes) -> tuple[Any, ...]:
    return visible(os.lstat(bench.path(path)))


def stat_(bench: Workbench, path: bytes) -> tuple[Any, ...]:
    return visible(os.stat(bench.path(path)))


def access(bench: Workbench, path: bytes, mask: int) -> bool:
    return os.access(bench.path(path), mask, effective_ids=True)


def listdir(bench: Workbench, path: bytes) -> list[bytes]:
    return sorted(os.listdir(bench.path(path)))


def setxattr(bench: Workbench, path: bytes, name: str, value: bytes, flags: int) -> None:
    os.setxattr(bench.path(path), name, value, flags)


def getxattr(bench: Workbench, path: bytes, name: str) -> bytes:
    return os.getxattr(bench.path(path), name)


def removexattr(bench: Workbench, path: bytes, name: str) -> None:
    os.removexattr(bench.path(path), name)


# --- operations on open files ------------------------------------------------------------------------


def open_(bench: Workbench, slot: int, path: bytes, flags: int, mode: int) -> tuple[Any, ...]:
    fd = os.open(bench.path(path), flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    if (old := bench.files.pop(slot, None)) is not None:
        os.close(old)
    bench.files[slot] = fd
    return visible(os.fstat(fd))


def _file(bench: Workbench, slot: int) -> int:
    if slot not in bench.files:
        raise OSError(errno.EBADF, "no such slot")
    return bench.files[slot]


def close(bench: Workbench, slot: int) -> None:
    os.close(_file(bench, slot))
    del bench.files[slot]


def pread(bench: Workbench, slot: int, size: int, offset: int) -> bytes:
    return os.pread(_file(bench, slot), size, offset)


def pwrite(bench: Workbench, slot: int, data: bytes, offset: int) -> int:
    return os.pwrite(_file(bench, slot), data, offset)


def write(bench: Workbench, slot: int, data: bytes) -> int:
    return os.write(_file(bench, slot), data)


def ftruncate(bench: Workbench, slot: int, size: int) -> None:
    os.ftruncate(_file(bench, slot), size)


def fstat(bench: Workbench, slot: int) -> tuple[Any, ...]:
    return visible(os.fstat(_file(bench, slot)))


def fchmod(bench: Workbench, slot: int, mode: int) -> None:
    os.fchmod(_file(bench, slot), mode)


def fsync(bench: Workbench, slot: int) -> None:
    os.fsync(_file(bench, slot))


def fallocate(bench: Workbench, slot: int, offset: int, length: int) -> None:
    os.posix_fallocate(_file(bench, slot), offset, length)


def copy_range(bench: Workbench, source: int, target: int, length: int, from_: int, to: int) -> int:
    return os.copy_file_range(_file(bench, source), _file(bench, target), length, from_, to)


def map_and_write(bench: Workbench, slot: int, offset: int, data: bytes) -> bytes:
    """Write through a shared mapping where the file has room; the page's bytes afterwards."""
    fd = _file(bench, slot)
    size = os.fstat(fd).st_size
    if offset + len(data) > size:
        return b""
    with mmap.mmap(fd, size, mmap.MAP_SHARED) as mapped:
        mapped[offset : offset + len(data)] = data
        mapped.flush()
        return bytes(mapped[:])


def flock(bench: Workbench, slot: int, operation: int) -> None:
    fcntl.flock(_file(bench, slot), operation | fcntl.LOCK_NB)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__.rstrip("_"): function
    for function in (
        mkdir, rmdir, unlink, symlink, readlink, link, rename, mkfifo, mknod, chmod, chown, truncate, utime,
        lstat, stat_, access, listdir, setxattr, getxattr, removexattr, open_, close, pread, pwrite, write,
        ftruncate, fstat, fchmod, fsync, fallocate, copy_range, map_and_write, flock,
    )
}  # fmt: skip

"""The Linux system calls that Python does not offer, or not with the flags that are needed.

Nothing here knows of workspaces: descriptors and names go in, numbers and structs come out, errors are
:class:`OSError` with ``errno``. The layouts come from ``<linux/stat.h>``, ``<linux/openat2.h>`` and
``<linux/dirent.h>``; they are the same on x86-64 and ARM64, only some system call numbers differ.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol.messages import Attr


class WouldBlock(Exception):
    """A call that may not wait would have had to. It had no effect: repeat it where waiting is allowed."""


class Numbers(NamedTuple):
    """System call numbers of one architecture (``<asm/unistd.h>``)."""

    openat2: int
    statx: int
    renameat2: int
    faccessat2: int
    getdents64: int


NUMBERS: Final[dict[str, Numbers]] = {
    "x86_64": Numbers(openat2=437, statx=332, renameat2=316, faccessat2=439, getdents64=217),
    "aarch64": Numbers(openat2=437, statx=291, renameat2=276, faccessat2=439, getdents64=61),
}
_NR: Final = NUMBERS.get(
    platform.machine(), NUMBERS["aarch64"]
)  # newer architectures all use the generic table

# <fcntl.h>, <linux/openat2.h>
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EACCESS: Final = 0x200
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_CACHED: Final = 0x20

# <linux/falloc.h>, <linux/fs.h>
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

# <linux/stat.h>
_STATX_BASIC_AND_BTIME: Final = 0x0FFF
_STATX_BTIME: Final = 0x0800
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000
_STATX: Final = struct.Struct("=IIQIIIHxxQQQQqI4xqI4xqI4xqI4xIIII")
_STATX_SIZE: Final = 256
_DIRENT: Final = struct.Struct("=QqHB")
_TIMES: Final = struct.Struct("=qqqq")
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_NS: Final = 1_000_000_000

# <linux/prctl.h>, <linux/securebits.h>
_PR_GET_SECUREBITS: Final = 27
_PR_SET_SECUREBITS: Final = 28
_SECBIT_NO_SETUID_FIXUP: Final = 1 << 2

DIRENT_MAX: Final = 280  # bytes of the longest entry: 19, a name of 255, its NUL, aligned to 8
BUFFER_SIZE: Final = 1 << 16

_INT, _LONG, _NAME, _PTR, _SIZE = (
    ctypes.c_int,
    ctypes.c_long,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# The same functions, called with the GIL held: for calls that cannot wait, because giving the GIL up costs
# the event loop up to a whole switch interval (5 ms) to get it back from a busy worker thread.
_HELD: Final = ctypes.PyDLL(None, use_errno=True)


def _bind(library: ctypes.CDLL, name: str, *arguments: Any, result: Any = _INT) -> Any:
    function = library[name]  # a new object each time, unlike attribute access: "syscall" has many signatures
    function.argtypes = arguments
    function.restype = result
    return function


_openat2 = _bind(_LIBC, "syscall", _LONG, _INT, _NAME, _NAME, _SIZE, result=_LONG)
_openat2_held = _bind(_HELD, "syscall", _LONG, _INT, _NAME, _NAME, _SIZE, result=_LONG)
_statx = _bind(_LIBC, "syscall", _LONG, _INT, _NAME, _INT, ctypes.c_uint, _PTR, result=_LONG)
_statx_held = _bind(_HELD, "syscall", _LONG, _INT, _NAME, _INT, ctypes.c_uint, _PTR, result=_LONG)
_renameat2 = _bind(_LIBC, "syscall", _LONG, _INT, _NAME, _INT, _NAME, ctypes.c_uint, result=_LONG)
_faccessat2 = _bind(_LIBC, "syscall", _LONG, _INT, _NAME, _INT, _INT, result=_LONG)
_getdents64 = _bind(_LIBC, "syscall", _LONG, _INT, _PTR, _SIZE, result=_LONG)
_fchownat = _bind(_LIBC, "fchownat", _INT, _NAME, ctypes.c_uint, ctypes.c_uint, _INT)
_utimensat = _bind(_LIBC, "utimensat", _INT, _NAME, _NAME, _INT)
_fallocate = _bind(_LIBC, "fallocate", _INT, _INT, ctypes.c_int64, ctypes.c_int64)
_fstatfs = _bind(_LIBC, "fstatfs", _INT, _PTR)
_syncfs = _bind(_LIBC, "syncfs", _INT)
_readlinkat = _bind(_HELD, "readlinkat", _INT, _NAME, _PTR, _SIZE, result=ctypes.c_ssize_t)
_setfsuid = _bind(_HELD, "setfsuid", ctypes.c_uint)
_setfsgid = _bind(_HELD, "setfsgid", ctypes.c_uint)
_prctl = _bind(_HELD, "prctl", _INT, *[ctypes.c_ulong] * 4)


class _Buffers(threading.local):
    """Memory that the kernel writes results to, one set per thread."""

    def __init__(self) -> None:
        self.statx = ctypes.create_string_buffer(_STATX_SIZE)
        self.statx_address = ctypes.addressof(self.statx)
        self.entries = ctypes.create_string_buffer(BUFFER_SIZE)
        self.entries_address = ctypes.addressof(self.entries)


_buffers = _Buffers()


def failure() -> OSError:
    """The error that the last call of this thread ended with."""
    return os_error(ctypes.get_errno())


def open_how(flags: int, resolve: int) -> bytes:
    """``struct open_how`` of openat2(2)."""
    return struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)


def openat2(directory: int, path: bytes, how: bytes, nowait: bool = False) -> int:
    """A descriptor of *path* below *directory*; *how* comes from :func:`open_how`.

    *path* must not contain NUL. With *nowait*, *how* has ``RESOLVE_CACHED`` and the GIL is kept.
    """
    call = _openat2_held if nowait else _openat2
    fd: int = call(_NR.openat2, directory, path, how, 24)
    if fd < 0:
        raise failure()
    return fd


def statx(fd: int, name: bytes = b"", flags: int = AT_EMPTY_PATH, nowait: bool = False) -> tuple[Attr, bool]:
    """Attributes of *fd* (any kind, ``O_PATH`` as well) or of *name* in it, and whether a mount begins
    there."""
    buffers = _buffers
    call = _statx_held if nowait else _statx
    if call(_NR.statx, fd, name, flags, _STATX_BASIC_AND_BTIME, buffers.statx_address) < 0:
        raise failure()
    (
        mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, _,
        atime, atime_ns, btime, btime_ns, ctime, ctime_ns, mtime, mtime_ns,
        rdev_major, rdev_minor, dev_major, dev_minor,
    ) = _STATX.unpack_from(buffers.statx)  # fmt: skip
    attr = Attr(
        os.makedev(dev_major, dev_minor),
        ino,
        mode,
        nlink,
        uid,
        gid,
        os.makedev(rdev_major, rdev_minor),
        size,
        blocks,
        blksize,
        atime * _NS + atime_ns,
        mtime * _NS + mtime_ns,
        ctime * _NS + ctime_ns,
        btime * _NS + btime_ns if mask & _STATX_BTIME else 0,
    )
    return attr, bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def descriptor_path(directory: int, fd: int) -> bytes:
    """The absolute path by which the kernel knows what *fd* is open on; *directory* is ``/proc/self/fd``.

    Read from memory, so the GIL is kept. ``ENAMETOOLONG`` from 4096 bytes on.
    """
    buffers = _buffers
    length: int = _readlinkat(directory, b"%d" % fd, buffers.entries_address, BUFFER_SIZE)
    if length < 0:
        raise failure()
    return ctypes.string_at(buffers.entries_address, length)


def rename(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _renameat2(_NR.renameat2, old_directory, old, new_directory, new, flags) < 0:
        raise failure()


def access(fd: int, mask: int) -> None:
    """faccessat2(2) of the descriptor itself, with the effective identity."""
    if _faccessat2(_NR.faccessat2, fd, b"", mask, AT_EMPTY_PATH | AT_EACCESS) < 0:
        raise failure()


def chown(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) of the descriptor itself, a symbolic link as well; -1 keeps what is there."""
    if _fchownat(fd, b"", uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, AT_EMPTY_PATH) < 0:
        raise failure()


def set_times(fd: int, atime: int | None, mtime: int | None) -> None:
    """utimensat(2) of the descriptor itself. Nanoseconds; None keeps a time, -1 is now."""
    words: list[int] = []
    for value in (atime, mtime):
        if value is None:
            words += (0, _UTIME_OMIT)
        elif value == -1:
            words += (0, _UTIME_NOW)
        else:
            words += divmod(value, _NS)
    if _utimensat(fd, b"", _TIMES.pack(*words), AT_EMPTY_PATH) < 0:
        raise failure()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    if _fallocate(fd, mode, offset, length) < 0:
        raise failure()


def file_system_type(fd: int) -> int:
    """``f_type`` of statfs(2), one of the magic numbers of ``<linux/magic.h>``."""
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, ctypes.addressof(buffer)) < 0:
        raise failure()
    kind: int = struct.unpack_from("=q", buffer)[0]
    return kind & 0xFFFFFFFF


def syncfs(fd: int) -> None:
    """syncfs(2); *fd* must be open for real, not ``O_PATH``."""
    if _syncfs(fd) < 0:
        raise failure()


def read_directory(fd: int, size: int) -> list[tuple[bytes, int, int, int]]:
    """The next entries as (name, cookie, inode, ``DT_*``), from at most *size* bytes; none at the end.

    *size* is brought between :data:`DIRENT_MAX`, so that one entry always fits, and :data:`BUFFER_SIZE`.
    """
    buffers = _buffers
    length = _getdents64(_NR.getdents64, fd, buffers.entries_address, min(max(size, DIRENT_MAX), BUFFER_SIZE))
    if length < 0:
        raise failure()
    data = ctypes.string_at(buffers.entries_address, length)
    entries = []
    at = 0
    while at < length:
        ino, cookie, record, kind = _DIRENT.unpack_from(data, at)
        entries.append((data[at + 19 : data.index(0, at + 19)], cookie, ino, kind))
        at += record
    return entries


@contextmanager
def creating_as(uid: int, gid: int) -> Iterator[None]:
    """Within the block, what this thread creates belongs to *uid*:*gid* from its first moment.

    The file system identity of the one thread is changed (setfsuid(2)), so the kernel itself applies
    set-group-ID directories, default ACLs and quotas, and there is no moment at which the file has another
    owner. The thread keeps its capabilities if it may say so (``CAP_SETPCAP``); if not, the permissions of
    *uid* apply as well. ``EINVAL`` if the ids do not exist in this user namespace, ``EPERM`` if this process
    may not take them.
    """
    securebits = _prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
    _prctl(_PR_SET_SECUREBITS, securebits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    try:
        # Either call only answers with the former id; asking with an impossible id tells whether it has
        # worked.
        _setfsgid(gid)
        _setfsuid(uid)
        if _setfsgid(0xFFFFFFFF) & 0xFFFFFFFF != gid or _setfsuid(0xFFFFFFFF) & 0xFFFFFFFF != uid:
            raise os_error(errno.EINVAL if os.geteuid() == 0 else errno.EPERM)
        yield
    finally:
        _setfsuid(os.geteuid())
        _setfsgid(os.getegid())
        _prctl(_PR_SET_SECUREBITS, securebits, 0, 0, 0)

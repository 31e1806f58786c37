"""Our locks as the server's kernel sees them, so that processes on the server interlock with the mounts.

The table in :mod:`.locks` has decided between our own sessions already. So towards the kernel the engine is
one holder: the POSIX locks of all owners of a file are kept, merged, as open-file-description locks on one
descriptor. (Classic ``fcntl`` locks would be lost whenever the engine closes any descriptor of the file.) A
flock is taken on the descriptor of the handle itself.

This is best effort: where the file system has no locks, or the descriptor does not allow the type, the table
alone decides. Nothing here waits for a lock; but on a network file system each call waits for the network
(:func:`is_local`).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import logging
import os
import struct
from typing import Final, NamedTuple

from ..protocol.ranges import LAST

_LOG = logging.getLogger(__name__)
_TYPES: Final = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}
_FLOCKS: Final = {"r": fcntl.LOCK_SH, "w": fcntl.LOCK_EX, "u": fcntl.LOCK_UN}
_NAMES: Final = {fcntl.F_RDLCK: "r", fcntl.F_WRLCK: "w", fcntl.F_UNLCK: "u"}
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux
_LOCAL: Final = frozenset({
    "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs",
})  # fmt: skip


@functools.lru_cache(maxsize=256)
def is_local(dev: int) -> bool:
    """Whether the file system with this ``st_dev`` is known to grant locks without any waiting."""
    number = f"{os.major(dev)}:{os.minor(dev)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.partition(" - ")
            if before.split(" ", 3)[2] == number:
                return after.split(" ", 1)[0] in _LOCAL
    return False


class Foreign(NamedTuple):
    """A lock that a process on the server holds: "r" or "w" on ``[start, end]``."""

    type: str
    start: int
    end: int


def _refused(exc: OSError, what: str) -> bool:
    """True if another process holds the lock; otherwise the kernel has no say in this lock."""
    if exc.errno in (errno.EAGAIN, errno.EACCES):
        return True
    _LOG.debug("no lock of the server's kernel (%s): %s", what, errno.errorcode.get(exc.errno or 0, "?"))
    return False


def open_for_locks(fd: int, access: int) -> int:
    """A descriptor for the POSIX locks of the file behind *fd* (of access mode *access*); the caller closes
    it.

    Both types of lock need both rights, so a handle for one of them is opened anew. Where that is forbidden,
    a duplicate serves for the type it allows.
    """
    if access != os.O_RDWR:
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            pass
    return os.dup(fd)


def set_posix(fd: int, type: str, ranges: list[tuple[int, int]]) -> bool:
    """Set *ranges* to *type*; False if a foreign process holds one (only possible for a single range)."""
    for start, end in ranges:
        length = 0 if end == LAST else end - start + 1
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(_TYPES[type], os.SEEK_SET, start, length, 0))
        except OSError as exc:
            return not _refused(exc, "posix")
    return True


def get_posix(fd: int, type: str, start: int, end: int) -> Foreign | None:
    """The first lock of a foreign process that forbids *type* on ``[start, end]``."""
    length = 0 if end == LAST else end - start + 1
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(_TYPES[type], os.SEEK_SET, start, length, 0))
    except OSError as exc:
        _refused(exc, "posix")
        return None
    held, _whence, first, count, _pid = _FLOCK.unpack(answer)
    if held == fcntl.F_UNLCK:
        return None
    return Foreign(_NAMES[held], first, LAST if count == 0 else first + count - 1)


def set_flock(fd: int, type: str) -> bool:
    """Set, convert or ("u") release the flock of the open file *fd*; False if a foreign process forbids it."""
    try:
        fcntl.flock(fd, _FLOCKS[type] | fcntl.LOCK_NB)
    except OSError as exc:
        return not _refused(exc, "flock")
    return True

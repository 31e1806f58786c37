"""inotify(7): being told by the kernel what happens to files.

The packages that offer it look the C library up by running a linker or compiler, which this process has forbidden
itself (:mod:`.hardening`); and they decode names.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

from ..errors import os_error

# <sys/inotify.h>
MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
UNMOUNT: Final = 0x2000
Q_OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
ONLYDIR: Final = 0x1000000
EXCL_UNLINK: Final = 0x4000000
ISDIR: Final = 0x40000000

#: An entry of the directory appeared, vanished, or is another file now.
ENTRY: Final = CREATE | DELETE | MOVED_FROM | MOVED_TO
#: Attributes or data of a file are others now.
FILE: Final = MODIFY | ATTRIB | CLOSE_WRITE
#: The end of a watch.
END: Final = DELETE_SELF | UNMOUNT | IGNORED

#: The most that is read at a time, in bytes.
READ: Final = 1 << 16
_HEAD: Final = struct.Struct("=iIII")  # wd, mask, cookie, length of the name

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """``name``: of the entry that it is about, ``b""`` for the watched file itself."""

    wd: int
    mask: int
    name: bytes


class Inotify:
    """One queue of events, never waited for; ``fd`` is readable when there are any. ``EMFILE`` if the user has too
    many."""

    def __init__(self) -> None:
        self.fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self.fd < 0:
            raise os_error(ctypes.get_errno())

    def add(self, path: bytes, mask: int) -> int:
        """Watch the file *path*, and follow it if it is a link; the number of the watch, which another path to the
        same file has as well. ``ENOSPC`` if the user has too many."""
        wd = int(_libc.inotify_add_watch(self.fd, path, ctypes.c_uint32(mask)))
        if wd < 0:
            raise os_error(ctypes.get_errno())
        return wd

    def remove(self, wd: int) -> None:
        """No more events of the watch *wd*, but for ``IGNORED``. One that has ended by itself is no error."""
        if _libc.inotify_rm_watch(self.fd, wd) < 0 and ctypes.get_errno() != errno.EINVAL:
            raise os_error(ctypes.get_errno())

    def read(self) -> list[Event]:
        """What has happened, in order; empty if nothing more has."""
        try:
            data = os.read(self.fd, READ)
        except BlockingIOError:
            return []
        events = []
        at = 0
        while at < len(data):
            wd, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            events.append(Event(wd, mask, data[at : at + length].rstrip(b"\0")))
            at += length
        return events

    def close(self) -> None:
        os.close(self.fd)


class NoInotify(Inotify):
    """In place of one that cannot be had: watches nothing."""

    def __init__(self) -> None:
        self.fd = -1

    def add(self, path: bytes, mask: int) -> int:
        raise os_error(errno.ENOSYS)

    def read(self) -> list[Event]:
        return []

    def close(self) -> None:
        pass

"""The write-ahead log by which a new daemon continues where a killed one stopped.

It lives in a memory file (``memfd``) that the supervisor keeps open: it survives the daemon, is gone with the mount,
and never touches a disk, as the session's name in it is a secret. What the kernel is about to learn (a node number, a
handle) is in the log before the kernel learns it: ``record`` while the operation runs, ``flush`` before its reply.

Layout: a 16 byte header ``<offset of the live segment, 0>``, then segments of records; a record is a 4 byte length and
a msgpack array. Compaction appends a fresh segment and then moves the header on to it, so that a kill at any moment
leaves one complete segment; the old one's memory is given back by punching a hole.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

_HEADER: Final = struct.Struct("<QQ")
_LENGTH: Final = struct.Struct("<I")
_PUNCH_HOLE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_PAGE: Final = 4096

#: Bytes a segment may grow to before it is worth looking at; and by what factor it must have outgrown its start.
COMPACT_AT: Final = 4 << 20
COMPACT_FACTOR: Final = 4


def create() -> int:
    """A new, empty log; the descriptor is to be passed to each daemon."""
    fd = os.memfd_create("wsfuse-state", os.MFD_CLOEXEC)
    os.pwrite(fd, _HEADER.pack(_HEADER.size, 0), 0)
    return fd


class StateLog:
    """One writer on the log behind *fd*; implements the client's ``Recorder``.

    :attr:`snapshot` gives the records that are still needed, for compaction; None: never compact.
    """

    def __init__(self, fd: int, *, compact_at: int = COMPACT_AT) -> None:
        self._fd = fd
        self._compact_at = compact_at
        self._encode = msgspec.msgpack.Encoder().encode
        self._buffer = bytearray()
        self.snapshot: Callable[[], Iterable[tuple[Any, ...]]] | None = None
        self._start: int = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))[0]
        self._end = self._start
        self._base = 0

    def load(self) -> list[list[Any]]:
        """All complete records, oldest first. What a kill cut off at the end is dropped: nobody was told of it."""
        data = memoryview(os.pread(self._fd, os.fstat(self._fd).st_size - self._start, self._start))
        decode = msgspec.msgpack.Decoder().decode
        records: list[list[Any]] = []
        at = 0
        while at + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            record = data[at + _LENGTH.size : at + _LENGTH.size + length]
            if length == 0 or len(record) < length:
                break
            try:
                records.append(decode(record))
            except msgspec.DecodeError:
                break
            at += _LENGTH.size + length
        self._end = self._start + at
        self._base = at
        os.ftruncate(self._fd, self._end)
        return records

    def record(self, *fields: Any) -> None:
        """Add a record; it is safe after the next :meth:`flush`."""
        packed = self._encode(fields)
        self._buffer += _LENGTH.pack(len(packed))
        self._buffer += packed

    def flush(self) -> None:
        """Make everything recorded so far outlive this process. Cheap when there is nothing."""
        if not self._buffer:
            return
        self._write(self._buffer)
        self._buffer = bytearray()
        size = self._end - self._start
        if self.snapshot is not None and size > max(self._compact_at, COMPACT_FACTOR * self._base):
            self._compact(self.snapshot())

    def _write(self, data: bytearray) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self._end)
            self._end += written
            view = view[written:]

    def _compact(self, records: Iterable[tuple[Any, ...]]) -> None:
        """Must be called between operations, when the snapshot and the log say the same."""
        old, self._start = self._start, self._end
        fresh = bytearray()
        for fields in records:
            packed = self._encode(fields)
            fresh += _LENGTH.pack(len(packed))
            fresh += packed
        self._write(fresh)
        os.pwrite(
            self._fd, _HEADER.pack(self._start, 0), 0
        )  # the switch: before it the old segment is complete
        self._base = self._end - self._start
        first, last = -(-old // _PAGE) * _PAGE, self._start // _PAGE * _PAGE
        if last > first:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.fallocate(self._fd, _PUNCH_HOLE, ctypes.c_long(first), ctypes.c_long(last - first))

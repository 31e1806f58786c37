"""Answers and notifications -> bytes for the kernel.

Functions named after a struct give the body of a reply, without its header: :func:`head` makes that. Notifications
are complete messages. Times are in nanoseconds, time-outs in seconds.
"""

from __future__ import annotations

import os
from typing import Final

from jupyter_wsfuse.fuse import abi
from jupyter_wsfuse.fuse.interface import DirItem, Entry, Opened
from jupyter_wsfuse.protocol.messages import Attr, Lock, StatFsReply

_NS: Final = 1_000_000_000
_MAX_TTL: Final = 1 << 32  # seconds, which is for ever; also what infinity becomes
_HEAD_SIZE: Final = abi.OUT_HEADER.size
_TYPES: Final = {"r": abi.F_RDLCK, "w": abi.F_WRLCK, "u": abi.F_UNLCK}
_NO_ENTRY: Final = bytes(abi.ENTRY_OUT.size)

#: The smallest records of READDIR and READDIRPLUS: what bounds how many fit.
SMALLEST_DIRENT: Final = abi.DIRENT.size + 8
SMALLEST_DIRENTPLUS: Final = abi.ENTRY_OUT.size + SMALLEST_DIRENT


def head(unique: int, length: int = 0, *, errno: int = 0) -> bytes:
    """The header of a reply whose body has *length* bytes; ``errno`` positive."""
    return abi.OUT_HEADER.pack(_HEAD_SIZE + length, -errno, unique)


def _ttl(seconds: float) -> tuple[int, int]:
    if not seconds:
        return 0, 0
    bounded = min(seconds, _MAX_TTL)
    whole = int(bounded)
    return whole, int((bounded - whole) * _NS)


def _attr(attr: Attr) -> tuple[int, ...]:
    atime, atime_ns = divmod(attr.atime, _NS)
    mtime, mtime_ns = divmod(attr.mtime, _NS)
    ctime, ctime_ns = divmod(attr.ctime, _NS)
    return (
        attr.ino, attr.size, attr.blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, attr.mode,
        attr.nlink, attr.uid, attr.gid, attr.rdev & 0xFFFFFFFF, attr.blksize, 0,
    )  # fmt: skip


def attributes(attr: Attr, ttl: float) -> bytes:
    return abi.ATTR_OUT.pack(*_ttl(ttl), 0, *_attr(attr))


def entry(found: Entry) -> bytes:
    entry_ttl, entry_ns = _ttl(found.entry_ttl)
    attr_ttl, attr_ns = _ttl(found.attr_ttl)
    return abi.ENTRY_OUT.pack(
        found.node, found.generation, entry_ttl, attr_ttl, entry_ns, attr_ns, *_attr(found.attr)
    )


def statx(attr: Attr, ttl: float) -> bytes:
    times = []
    for time in (attr.atime, attr.btime, attr.ctime, attr.mtime):
        times += [*divmod(time, _NS), 0]
    return abi.STATX_OUT.pack(
        *_ttl(ttl), 0, abi.STATX_MASK, attr.blksize, 0, attr.nlink, attr.uid, attr.gid, attr.mode, 0, attr.ino,
        attr.size, attr.blocks, 0, *times, os.major(attr.rdev), os.minor(attr.rdev), os.major(attr.dev),
        os.minor(attr.dev),
    )  # fmt: skip


def opened(file: Opened) -> bytes:
    flags = abi.FOPEN_KEEP_CACHE if file.keep_cache else 0
    if file.direct_io:
        flags |= abi.FOPEN_DIRECT_IO
    if file.parallel:
        flags |= abi.FOPEN_PARALLEL_DIRECT_WRITES
    return abi.OPEN_OUT.pack(file.handle, flags, 0)


def opened_directory(directory: Opened) -> bytes:
    """``keep_cache`` lets the kernel answer readdir from what it has read before, until told otherwise."""
    flags = abi.FOPEN_KEEP_CACHE | abi.FOPEN_CACHE_DIR if directory.keep_cache else 0
    return abi.OPEN_OUT.pack(directory.handle, flags, 0)


def statfs(reply: StatFsReply) -> bytes:
    return abi.STATFS_OUT.pack(
        reply.blocks, reply.bfree, reply.bavail, reply.files, reply.ffree, reply.bsize, reply.namemax,
        reply.frsize, 0,
    )  # fmt: skip


def lock(found: Lock) -> bytes:
    return abi.LK_OUT.pack(found.start, found.end, _TYPES[found.type], found.pid & 0xFFFFFFFF)


def listing(items: list[DirItem], size: int, *, plus: bool) -> tuple[bytes, int]:
    """As many of *items* as fit into *size* bytes, and how many those are."""
    records: list[bytes] = []
    for item in items:
        length = len(item.name)
        record = abi.DIRENT.pack(item.ino, item.cookie, length, item.type) + item.name + bytes(-length % 8)
        if plus:
            # Node 0 tells the kernel that it knows the name, and no more.
            record = (_NO_ENTRY if item.entry is None else entry(item.entry)) + record
        size -= len(record)
        if size < 0:
            break
        records.append(record)
    return b"".join(records), len(records)


def init(
    *, minor: int, max_readahead: int, flags: int, max_background: int, max_write: int, max_pages: int
) -> bytes:
    """The kernel pauses writers and read-ahead at three quarters of *max_background* requests in the background."""
    return abi.INIT_OUT.pack(
        abi.MAJOR, minor, max_readahead, flags & 0xFFFFFFFF, max_background, max_background * 3 // 4, max_write, 1,
        max_pages, 0, flags >> 32,
    )  # fmt: skip


# --- notifications -------------------------------------------------------------------------------------------------


def _notification(code: abi.Notify, body: bytes = b"") -> bytes:
    return abi.OUT_HEADER.pack(_HEAD_SIZE + len(body), code, 0) + body


def inval_inode(node: int, *, data: bool) -> bytes:
    """A negative offset spares the pages; a length of 0 means to the end."""
    return _notification(abi.Notify.INVAL_INODE, abi.NOTIFY_INVAL_INODE_OUT.pack(node, 0 if data else -1, 0))


def inval_entry(parent: int, name: bytes) -> bytes:
    return _notification(
        abi.Notify.INVAL_ENTRY, abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
    )


def resend() -> bytes:
    """All requests that were read and not answered are to be sent once more."""
    return _notification(abi.Notify.RESEND)

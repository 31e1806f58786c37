"""Replies and notifications as golden bytes, packed here by the C header's fields."""

from __future__ import annotations

import math
import os
from struct import pack

import pytest

from jupyter_wsfuse.fuse import replies
from jupyter_wsfuse.fuse.interface import DirItem, Entry, Opened
from jupyter_wsfuse.protocol.messages import Attr, Lock, StatFsReply

NS = 1_000_000_000
#: dev, ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, atime, mtime, ctime, btime
ATTR = Attr(
    os.makedev(8, 3), 77, 0o100644, 2, 1000, 100, os.makedev(1, 300), 5000, 10, 4096,
    1 * NS + 2, -1, 5 * NS + 6, 7 * NS + 8,
)  # fmt: skip
#: struct fuse_attr: ino size blocks atime mtime ctime, 3 x nsec, mode nlink uid gid rdev blksize flags
FUSE_ATTR = pack("=QQQqqq", 77, 5000, 10, 1, -1, 5) + pack(
    "=IIIIIIIIII",
    2,
    999_999_999,
    6,
    0o100644,
    2,
    1000,
    100,
    1 << 8 | 300 & 0xFF | (300 & ~0xFF) << 12,
    4096,
    0,
)
#: struct fuse_entry_out: nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec attr
ENTRY = Entry(9, 3, ATTR, 1.5, 2.0)
FUSE_ENTRY = pack("=QQQQII", 9, 3, 1, 2, 500_000_000, 0) + FUSE_ATTR


def test_heads() -> None:
    assert replies.head(6, 10) == pack("=IiQ", 26, 0, 6)
    assert replies.head(1 << 63 | 6, errno=2) == pack("=IiQ", 16, -2, 1 << 63 | 6)


@pytest.mark.parametrize(
    ("ttl", "seconds", "nanoseconds"),
    [(0, 0, 0), (0.0, 0, 0), (0.25, 0, 250_000_000), (3600, 3600, 0), (math.inf, 1 << 32, 0)],
)
def test_attributes(ttl: float, seconds: int, nanoseconds: int) -> None:
    assert replies.attributes(ATTR, ttl) == pack("=QII", seconds, nanoseconds, 0) + FUSE_ATTR


def test_entry() -> None:
    assert replies.entry(ENTRY) == FUSE_ENTRY
    assert len(FUSE_ENTRY) == 128


def test_statx() -> None:
    expected = (
        pack("=QII16x", 1, 0, 0)
        # mask blksize attributes nlink uid gid mode spare ino size blocks attributes_mask
        + pack("=IIQIIIHHQQQQ", 0xFFF, 4096, 0, 2, 1000, 100, 0o100644, 0, 77, 5000, 10, 0)
        + b"".join(pack("=qIi", s, ns, 0) for s, ns in [(1, 2), (7, 8), (5, 6), (-1, 999_999_999)])
        + pack("=IIII112x", 1, 300, 8, 3)
    )
    assert replies.statx(ATTR, 1.0) == expected


@pytest.mark.parametrize(
    ("opened", "flags"),
    [
        (Opened(5, False, False, False), 0),
        (Opened(5, True, False, False), 2),
        (Opened(5, False, True, False), 1),
        (Opened(5, False, True, True), 1 | 64),
    ],
)
def test_opened(opened: Opened, flags: int) -> None:
    assert replies.opened(opened) == pack("=QII", 5, flags, 0)


def test_opened_directory() -> None:
    assert replies.opened_directory(Opened(5, False, False, False)) == pack("=QII", 5, 0, 0)
    assert replies.opened_directory(Opened(5, True, False, False)) == pack("=QII", 5, 2 | 8, 0)


def test_statfs() -> None:
    reply = StatFsReply(0, 4096, 1024, 1000, 600, 500, 90, 80, 255)
    # blocks bfree bavail files ffree bsize namelen frsize padding spare[6]
    assert replies.statfs(reply) == pack("=QQQQQIIII24x", 1000, 600, 500, 90, 80, 4096, 255, 1024, 0)


@pytest.mark.parametrize(("kind", "number"), [("r", 0), ("w", 1), ("u", 2)])
def test_lock(kind: str, number: int) -> None:
    assert replies.lock(Lock(1, 10, 20, kind, -1)) == pack("=QQII", 10, 20, number, 0xFFFFFFFF)


ITEMS = [
    DirItem(b".", 1, 100, 4, None),
    DirItem(b"8letters", 2, 101, 8, ENTRY),
    DirItem(b"9 letters", 3, 102, 8, ENTRY),
]
DIRENTS = [
    pack("=QQII", 100, 1, 1, 4) + b".\0\0\0\0\0\0\0",
    pack("=QQII", 101, 2, 8, 8) + b"8letters",
    pack("=QQII", 102, 3, 9, 8) + b"9 letters\0\0\0\0\0\0\0",
]


@pytest.mark.parametrize(("size", "fitting"), [(4096, 3), (104, 3), (103, 2), (64, 2), (63, 1), (31, 0)])
def test_listing(size: int, fitting: int) -> None:
    assert replies.listing(ITEMS, size, plus=False) == (b"".join(DIRENTS[:fitting]), fitting)


def test_listing_with_attributes() -> None:
    records = [bytes(128) + DIRENTS[0], FUSE_ENTRY + DIRENTS[1], FUSE_ENTRY + DIRENTS[2]]
    assert replies.listing(ITEMS, 4096, plus=True) == (b"".join(records), 3)
    assert replies.listing(ITEMS, 400, plus=True) == (b"".join(records[:2]), 2)


def test_init() -> None:
    body = replies.init(
        minor=38,
        max_readahead=1 << 20,
        flags=1 << 39 | 1,
        max_background=100,
        max_write=1 << 20,
        max_pages=256,
    )
    # major minor max_readahead flags, max_background congestion, max_write time_gran, max_pages align, flags2
    assert body == pack("=IIIIHHIIHHI28x", 7, 38, 1 << 20, 1, 100, 75, 1 << 20, 1, 256, 0, 1 << 7)


def test_notifications() -> None:
    assert replies.inval_inode(5, data=True) == pack("=IiQQqq", 40, 2, 0, 5, 0, 0)
    assert replies.inval_inode(5, data=False) == pack("=IiQQqq", 40, 2, 0, 5, -1, 0)
    assert replies.inval_entry(5, b"na\xff") == pack("=IiQQII", 36, 3, 0, 5, 3, 0) + b"na\xff\0"
    assert replies.resend() == pack("=IiQ", 16, 7, 0)

"""Requests from golden bytes: every body is packed here by the C header's fields, in its order."""

from __future__ import annotations

import os
import struct
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.errors import RemoteProtocolError
from jupyter_wsfuse.fuse import abi
from jupyter_wsfuse.fuse import requests as rq
from jupyter_wsfuse.fuse.wire import MalformedRequestError, parse
from jupyter_wsfuse.protocol.messages import Lock
from tests.fuse.kernel import GID, PID, UID, init, message

H = (2, 7, UID, GID, PID)
FH = 0xFEDCBA9876543210
OWNER = 0x1122334455667788
#: fuse_lk_in: fh, owner, start, end, type, pid, lk_flags, padding
LK = pack("=QQQQIIII", FH, OWNER, 10, 20, 1, 99, 0, 0)
#: fuse_copy_file_range_in: fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
COPY = pack("=QQQQQQQ", FH, 1, 8, 9, 2, 1 << 33, 0)


def setattr_in(valid: int) -> bytes:
    """valid, padding, fh, size, lock_owner, atime, mtime, ctime, 3 x nsec, mode, unused4, uid, gid, unused5"""
    return pack(
        "=IIQQQqqqIIIIIIII", valid, 0, FH, 4096, OWNER, 5, -1, 9, 6, 999_999_999, 8, 0o644, 0, 11, 12, 0
    )


GOLDEN: dict[str, tuple[int, bytes, rq.Request]] = {
    "lookup": (1, b"a\xff\n\0", rq.Lookup(*H, b"a\xff\n")),
    "lookup itself": (1, b".\0", rq.Lookup(*H, b".")),
    "lookup parent": (1, b"..\0", rq.Lookup(*H, b"..")),
    "forget": (2, pack("=Q", 3), rq.Forget(*H, 3)),
    "getattr": (3, pack("=IIQ", 0, 0, FH), rq.GetAttr(*H, 0)),
    "getattr of a handle": (3, pack("=IIQ", 1, 0, FH), rq.GetAttr(*H, FH)),
    "setattr nothing": (4, setattr_in(0), rq.SetAttr(*H, 0, None, None, None, None, None, None, True)),
    "setattr mode": (4, setattr_in(1), rq.SetAttr(*H, 0, 0o644, None, None, None, None, None, False)),
    "setattr uid": (4, setattr_in(2), rq.SetAttr(*H, 0, None, 11, None, None, None, None, False)),
    "setattr gid": (4, setattr_in(4), rq.SetAttr(*H, 0, None, None, 12, None, None, None, False)),
    "setattr size": (
        4,
        setattr_in(8 | 1 << 6 | 1 << 9 | 1 << 11),
        rq.SetAttr(*H, FH, None, None, None, 4096, None, None, True),
    ),
    "setattr atime": (
        4,
        setattr_in(16),
        rq.SetAttr(*H, 0, None, None, None, None, 5_000_000_006, None, False),
    ),
    "setattr just before the epoch": (
        4,
        setattr_in(32),
        rq.SetAttr(*H, 0, None, None, None, None, None, 0, False),
    ),
    "setattr now": (
        4,
        setattr_in(16 | 128 | 32 | 256),
        rq.SetAttr(*H, 0, None, None, None, None, -1, -1, False),
    ),
    "readlink": (5, b"", rq.ReadLink(*H)),
    "symlink": (6, b"name\0../to/there\0", rq.SymLink(*H, b"name", b"../to/there")),
    "mknod": (8, pack("=IIII", 0o10644, 0x103, 0o22, 0) + b"fifo\0", rq.MkNod(*H, b"fifo", 0o10644, 0x103)),
    "mkdir": (9, pack("=II", 0o755, 0o22) + b"d\0", rq.MkDir(*H, b"d", 0o755)),
    "unlink": (10, b"gone\0", rq.Unlink(*H, b"gone")),
    "rmdir": (11, b"gone\0", rq.RmDir(*H, b"gone")),
    "rename": (12, pack("=Q", 8) + b"old\0new\0", rq.Rename(*H, b"old", 8, b"new", 0)),
    "link": (13, pack("=Q", 9) + b"another\0", rq.Link(*H, 9, b"another")),
    "open": (14, pack("=II", os.O_RDWR, 0), rq.Open(*H, os.O_RDWR, False)),
    "open, killing": (14, pack("=II", os.O_TRUNC, 1), rq.Open(*H, os.O_TRUNC, True)),
    "read": (15, pack("=QQIIQII", FH, 1 << 40, 4096, 0, 0, 0, 0), rq.Read(*H, FH, 1 << 40, 4096)),
    "write": (16, pack("=QQIIQII", FH, 5, 4, 0, 0, 0, 0) + b"d\0ta", rq.Write(*H, FH, 5, b"d\0ta", False)),
    "write, killing": (16, pack("=QQIIQII", FH, 5, 1, 4, 0, 0, 0) + b"x", rq.Write(*H, FH, 5, b"x", True)),
    "statfs": (17, b"", rq.StatFs(*H)),
    "release": (18, pack("=QIIQ", FH, os.O_RDWR, 1, OWNER), rq.Release(*H, FH, OWNER, False)),
    "release of a flock": (18, pack("=QIIQ", FH, os.O_RDWR, 2, OWNER), rq.Release(*H, FH, OWNER, True)),
    "fsync": (20, pack("=QII", FH, 0, 0), rq.Fsync(*H, FH, False)),
    "fdatasync": (20, pack("=QII", FH, 1, 0), rq.Fsync(*H, FH, True)),
    "setxattr": (21, pack("=II", 3, 1) + b"user.k\0a\0b", rq.SetXattr(*H, b"user.k", b"a\0b", 1)),
    "setxattr empty": (21, pack("=II", 0, 2) + b"user.k\0", rq.SetXattr(*H, b"user.k", b"", 2)),
    "getxattr": (22, pack("=II", 64, 0) + b"user.k\0", rq.GetXattr(*H, b"user.k", 64)),
    "listxattr": (23, pack("=II", 0, 0), rq.ListXattr(*H, 0)),
    "removexattr": (24, b"user.k\0", rq.RemoveXattr(*H, b"user.k")),
    "flush": (25, pack("=QIIQ", FH, 0, 0, OWNER), rq.Flush(*H, FH, OWNER)),
    "old init": (26, pack("=IIII", 7, 31, 131072, 0xFF), rq.Init(*H, 7, 31, 131072, 0xFF)),
    "opendir": (27, pack("=II", os.O_DIRECTORY, 0), rq.OpenDir(*H, os.O_DIRECTORY)),
    "readdir": (28, pack("=QQIIQII", FH, 3, 4096, 0, 0, 0, 0), rq.ReadDir(*H, FH, 3, 4096, False)),
    "releasedir": (29, pack("=QIIQ", FH, 0, 0, 0), rq.ReleaseDir(*H, FH)),
    "fsyncdir": (30, pack("=QII", FH, 1, 0), rq.FsyncDir(*H, FH, True)),
    "getlk": (31, LK, rq.GetLk(*H, FH, Lock(OWNER, 10, 20, "w", 99, False))),
    "setlk": (32, LK, rq.SetLk(*H, FH, Lock(OWNER, 10, 20, "w", 99, False), False)),
    "setlkw of a flock": (
        33,
        pack("=QQQQIIII", FH, OWNER, 0, 2**63 - 1, 0, 99, 1, 0),
        rq.SetLk(*H, FH, Lock(OWNER, 0, 2**63 - 1, "r", 99, True), True),
    ),
    "unlock": (
        32,
        pack("=QQQQIIII", FH, OWNER, 0, 2**63 - 1, 2, 99, 0, 0),
        rq.SetLk(*H, FH, Lock(OWNER, 0, 2**63 - 1, "u", 99, False), False),
    ),
    "access": (34, pack("=II", 6, 0), rq.Access(*H, 6)),
    "create": (
        35,
        pack("=IIII", os.O_RDWR, 0o600, 0o22, 1) + b"n\0",
        rq.Create(*H, b"n", os.O_RDWR, 0o600, True),
    ),
    "interrupt": (36, pack("=Q", 1 << 63 | 44), rq.Interrupt(*H, 44)),
    "bmap": (37, bytes(16), rq.Unsupported(*H, 37)),
    "destroy": (38, b"", rq.Destroy(*H)),
    "ioctl": (39, pack("=QIIQII", FH, 0, 0x5401, 0, 0, 0), rq.Ioctl(*H, FH, 0x5401)),
    "poll": (40, bytes(24), rq.Unsupported(*H, 40)),
    "batch forget": (42, pack("=IIQQQQ", 2, 0, 5, 1, 6, 2), rq.BatchForget(*H, [(5, 1), (6, 2)])),
    "fallocate": (43, pack("=QQQII", FH, 1, 2, 3, 0), rq.Fallocate(*H, FH, 1, 2, 3)),
    "readdirplus": (44, pack("=QQIIQII", FH, 3, 4096, 0, 0, 0, 0), rq.ReadDir(*H, FH, 3, 4096, True)),
    "rename2": (45, pack("=QII", 8, 2, 0) + b"old\0new\0", rq.Rename(*H, b"old", 8, b"new", 2)),
    "lseek": (46, pack("=QQII", FH, 100, 3, 0), rq.Lseek(*H, FH, 100, 3)),
    "copy_file_range": (47, COPY, rq.CopyFileRange(*H, FH, 1, 8, 9, 2, 1 << 33, False)),
    "syncfs": (50, bytes(8), rq.SyncFs(*H)),
    "tmpfile": (51, pack("=IIII", os.O_RDWR, 0o600, 0o22, 0) + b"/\0", rq.TmpFile(*H, os.O_RDWR, 0o600)),
    "statx": (52, pack("=IIQII", 0, 0, FH, 0, 0xFFF), rq.Statx(*H, 0, 0xFFF)),
    "statx of a handle": (52, pack("=IIQII", 1, 0, FH, 0, 0xFFF), rq.Statx(*H, FH, 0xFFF)),
    "copy_file_range_64": (53, COPY, rq.CopyFileRange(*H, FH, 1, 8, 9, 2, 1 << 33, True)),
    "something new": (4711, b"whatever", rq.Unsupported(*H, 4711)),
}


@pytest.mark.parametrize(("opcode", "body", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_golden_request(opcode: int, body: bytes, expected: rq.Request) -> None:
    assert parse(memoryview(message(opcode, body))) == expected


@pytest.mark.parametrize(("opcode", "body", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_extensions_are_not_part_of_the_request(opcode: int, body: bytes, expected: rq.Request) -> None:
    assert parse(memoryview(message(opcode, body, extensions=b"security"))) == expected


def test_every_opcode_has_a_golden_request() -> None:
    absent = {abi.Opcode.NOTIFY_REPLY, abi.Opcode.SETUPMAPPING, abi.Opcode.REMOVEMAPPING}
    assert {opcode for opcode, _, _ in GOLDEN.values()} >= set(abi.Opcode) - absent


def test_new_init() -> None:
    request = parse(memoryview(init(flags=1 << 39 | 1 << 30 | 5)))
    assert request == rq.Init(2, 0, UID, GID, PID, 7, 45, 131072, 1 << 39 | 1 << 30 | 5)


def test_data_outlives_the_buffer() -> None:
    buffer = bytearray(message(*GOLDEN["write"][:2]))
    request = parse(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert request == GOLDEN["write"][2]


BAD = {
    "nothing": b"",
    "half a header": message(5)[:39],
    "says more than there is": struct.pack("=I", 50) + message(5)[4:],
    "says less than there is": struct.pack("=I", 40) + message(5, b"surplus")[4:],
    "more extensions than message": message(5)[:36] + struct.pack("=HH", 1, 0),
    "short struct": message(3, bytes(8)),
    "no terminator": message(1, b"name"),
    "no name": message(1, b""),
    "empty name": message(1, b"\0"),
    "slash in a lookup": message(1, b"a/b\0"),
    "slash in a name": message(10, b"a/b\0"),
    "dot": message(9, bytes(8) + b".\0"),
    "dot dot": message(9, bytes(8) + b"..\0"),
    "empty name of a link": message(6, b"\0target\0"),
    "one name too few": message(12, bytes(8) + b"old\0"),
    "one name too many": message(10, b"a\0b\0"),
    "write of less than it says": message(16, pack("=QQIIQII", 1, 0, 10, 0, 0, 0, 0) + b"short"),
    "value longer than the message": message(21, pack("=II", 100, 0) + b"user.k\0v"),
    "value over the name": message(21, pack("=II", 3, 0) + b"k\0v"),
    "fewer to forget than it says": message(42, pack("=IIQQ", 2, 0, 5, 1)),
    "no such lock": message(32, pack("=QQQQIIII", 1, 2, 0, 1, 9, 0, 0, 0)),
    "extended init without extension": message(26, pack("=IIII", 7, 45, 0, 1 << 30)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_malformed(data: bytes) -> None:
    with pytest.raises(MalformedRequestError) as info:
        parse(memoryview(data))
    assert isinstance(info.value, RemoteProtocolError)
    assert info.value.unique == (2 if len(data) >= 40 else 0)
    assert str(info.value)


def test_malformed_message_names_the_operation() -> None:
    with pytest.raises(MalformedRequestError, match=r"^GETATTR of 48 bytes: "):
        parse(memoryview(BAD["short struct"]))
    with pytest.raises(MalformedRequestError, match=r"^operation 4711: says 50 bytes"):
        parse(memoryview(struct.pack("=I", 50) + message(4711)[4:]))


def attempt(data: bytes) -> rq.Request | MalformedRequestError:
    """What the parser makes of it; any other exception fails the test."""
    try:
        return parse(memoryview(data))
    except MalformedRequestError as error:
        return error


@given(st.binary(max_size=200))
def test_random_bytes_never_crash(data: bytes) -> None:
    attempt(data)


@given(st.sampled_from(sorted({*abi.Opcode, 0, 7, 99})), st.binary(max_size=200), st.integers(0, 3))
def test_random_bodies_never_crash(opcode: int, body: bytes, extensions: int) -> None:
    result = attempt(message(opcode, body, extensions=bytes(8 * extensions)))
    assert result.unique == 2
    assert len(str(result)) < 1500


@given(st.sampled_from(list(GOLDEN.values())), st.data())
def test_truncated_requests_never_crash(case: tuple[int, bytes, rq.Request], data: st.DataObject) -> None:
    opcode, body, _ = case
    cut = body[: data.draw(st.integers(0, len(body)))]
    assert attempt(message(opcode, cut)).unique == 2


@pytest.mark.parametrize(
    ("request_", "shown"),
    [
        (rq.Lookup(4, 1, 0, 5, 6, b"a\xffb"), r"Lookup 4: node=1 uid=0 gid=5 pid=6 name='a\\xffb'"),
        (rq.Forget(4 | 1 << 63, 1, 0, 5, 6, 3), "Forget 4 again: node=1 uid=0 gid=5 pid=6 count=3"),
        (
            rq.Write(4, 1, 0, 5, 6, 9, 0, b"x" * 100, False),
            f"Write 4: node=1 uid=0 gid=5 pid=6 handle=9 offset=0 data='{'x' * 64}'...(100 bytes) kill_priv=False",
        ),
        (
            rq.BatchForget(4, 0, 0, 0, 0, [(1, 1)] * 500),
            "BatchForget 4: node=0 uid=0 gid=0 pid=0 items=<500 items>",
        ),
    ],
)
def test_one_bounded_line(request_: rq.Request, shown: str) -> None:
    assert str(request_) == shown
    assert "\n" not in str(request_)

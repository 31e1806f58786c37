"""The kernel's requests as typed structs. ``str()`` of one is one bounded line for the log."""

from __future__ import annotations

from typing import Final

import msgspec

from jupyter_wsfuse.fuse import abi
from jupyter_wsfuse.protocol.messages import Lock

_SHOWN: Final = 64  # bytes of one field that a log line may carry


def show(value: object) -> str:
    """*value* for people, bounded."""
    if isinstance(value, bytes):
        text = repr(value[:_SHOWN].decode("utf-8", "backslashreplace"))
        return text if len(value) <= _SHOWN else f"{text}...({len(value)} bytes)"
    if isinstance(value, list):
        return f"<{len(value)} items>"
    return str(value)


class Request(msgspec.Struct, gc=False):
    """What every request has. ``node`` is what it is about, of names their directory; uid, gid, pid who asks."""

    unique: int
    node: int
    uid: int
    gid: int
    pid: int

    @property
    def key(self) -> int:
        """The request's number, the same when the kernel sends it again."""
        return self.unique & ~abi.UNIQUE_RESEND

    def __str__(self) -> str:
        parts = [f"{name}={show(getattr(self, name))}" for name in self.__struct_fields__[1:]]
        again = " again" if self.unique & abi.UNIQUE_RESEND else ""
        return f"{type(self).__name__} {self.key}{again}: {' '.join(parts)}"


class Init(Request):
    major: int
    minor: int
    max_readahead: int
    flags: int


class Lookup(Request):
    """``name`` may be ``.`` or ``..`` here, when a file handle of name_to_handle_at(2) is opened."""

    name: bytes


class Forget(Request):
    count: int


class BatchForget(Request):
    items: list[tuple[int, int]]


class GetAttr(Request):
    handle: int


class SetAttr(Request):
    """None: leave as it is. Times in nanoseconds, -1 for now."""

    handle: int
    mode: int | None
    new_uid: int | None
    new_gid: int | None
    size: int | None
    atime: int | None
    mtime: int | None
    kill_priv: bool


class ReadLink(Request):
    pass


class SymLink(Request):
    name: bytes
    target: bytes


class MkNod(Request):
    name: bytes
    mode: int
    rdev: int


class MkDir(Request):
    name: bytes
    mode: int


class Unlink(Request):
    name: bytes


class RmDir(Request):
    name: bytes


class Rename(Request):
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int


class Link(Request):
    """Give the node ``target`` another name."""

    target: int
    name: bytes


class Open(Request):
    flags: int
    kill_priv: bool


class OpenDir(Request):
    flags: int


class Read(Request):
    handle: int
    offset: int
    size: int


class ReadDir(Request):
    handle: int
    cookie: int
    size: int
    plus: bool


class Write(Request):
    handle: int
    offset: int
    data: bytes
    kill_priv: bool


class StatFs(Request):
    pass


class Release(Request):
    handle: int
    lock_owner: int
    flock_unlock: bool


class ReleaseDir(Request):
    handle: int


class Fsync(Request):
    handle: int
    data_only: bool


class FsyncDir(Request):
    handle: int
    data_only: bool


class SetXattr(Request):
    name: bytes
    value: bytes
    flags: int


class GetXattr(Request):
    """``size`` 0: how long is it?"""

    name: bytes
    size: int


class ListXattr(Request):
    size: int


class RemoveXattr(Request):
    name: bytes


class Flush(Request):
    handle: int
    lock_owner: int


class GetLk(Request):
    handle: int
    lock: Lock


class SetLk(Request):
    handle: int
    lock: Lock
    wait: bool


class Access(Request):
    mask: int


class Create(Request):
    name: bytes
    flags: int
    mode: int
    kill_priv: bool


class TmpFile(Request):
    flags: int
    mode: int


class Interrupt(Request):
    """The caller of the request with the key ``target`` does not want to wait any longer."""

    target: int


class Destroy(Request):
    pass


class Ioctl(Request):
    handle: int
    command: int


class Fallocate(Request):
    handle: int
    offset: int
    length: int
    mode: int


class Lseek(Request):
    handle: int
    offset: int
    whence: int


class CopyFileRange(Request):
    """``wide``: answered in 64 bits, so that more than 4 GiB may be copied at a time."""

    handle: int
    offset: int
    node_out: int
    handle_out: int
    offset_out: int
    length: int
    wide: bool


class SyncFs(Request):
    pass


class Statx(Request):
    handle: int
    mask: int


class Unsupported(Request):
    """An operation that we do not have, or do not know."""

    opcode: int

"""Bytes from the kernel -> typed requests; :mod:`.replies` has the way back.

:func:`parse` takes one message as read from ``/dev/fuse``. Data is copied out of the message exactly once, so the
caller may reuse its buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from jupyter_wsfuse.errors import RemoteProtocolError
from jupyter_wsfuse.fuse import abi
from jupyter_wsfuse.fuse import requests as rq
from jupyter_wsfuse.fuse.abi import Opcode
from jupyter_wsfuse.protocol.messages import Lock

_HEADER_SIZE: Final = abi.IN_HEADER.size
_NS: Final = 1_000_000_000


class MalformedRequestError(RemoteProtocolError):
    """The kernel's message is not laid out as the protocol has it. ``unique`` to answer to; 0: unknown."""

    def __init__(self, message: str, unique: int = 0) -> None:
        super().__init__(message)
        self.unique = unique


# --- parsers: (body, unique, node, uid, gid, pid) -> request --------------------------------------------------------
# A body that is too short makes struct raise; parse() turns that into MalformedRequestError. A longer one is fine:
# that is how the kernel extends a struct.

_Header = tuple[int, int, int, int, int]
_Parser = Callable[[memoryview, _Header], rq.Request]


def _names(body: memoryview, at: int, count: int) -> list[bytes]:
    """The *count* NUL-terminated strings that end the message."""
    found = bytes(body[at:]).split(b"\0")
    if len(found) != count + 1 or found[count]:
        raise ValueError(f"expected {count} terminated strings, found {len(found) - 1}")
    return found


def _entry_names(body: memoryview, at: int, count: int) -> list[bytes]:
    """The same, each fit to be the name of a directory entry. Its length is the file system's to judge."""
    found = _names(body, at, count)
    for name in found[:count]:
        if not name or b"/" in name or name in (b".", b".."):
            raise ValueError(f"not a name: {rq.show(name)}")
    return found


def _init(body: memoryview, header: _Header) -> rq.Request:
    major, minor, readahead, flags = abi.INIT_IN.unpack_from(body)
    if flags & abi.INIT_EXT:
        flags |= abi.INIT_IN_EXT.unpack_from(body, abi.INIT_IN.size)[0] << 32
    return rq.Init(*header, major, minor, readahead, flags)


def _lookup(body: memoryview, header: _Header) -> rq.Request:
    name = _names(body, 0, 1)[0]
    if not name or b"/" in name:
        raise ValueError(f"not a name: {rq.show(name)}")
    return rq.Lookup(*header, name)


def _forget(body: memoryview, header: _Header) -> rq.Request:
    return rq.Forget(*header, abi.FORGET_IN.unpack_from(body)[0])


def _batch_forget(body: memoryview, header: _Header) -> rq.Request:
    count, _ = abi.BATCH_FORGET_IN.unpack_from(body)
    items = body[abi.BATCH_FORGET_IN.size :]
    if len(items) != count * abi.FORGET_ONE.size:
        raise ValueError(f"{count} nodes to forget, in {len(items)} bytes")
    return rq.BatchForget(*header, list(abi.FORGET_ONE.iter_unpack(items)))


def _getattr(body: memoryview, header: _Header) -> rq.Request:
    flags, _, handle = abi.GETATTR_IN.unpack_from(body)
    return rq.GetAttr(*header, handle if flags & abi.GETATTR_FH else 0)


def _time(valid: int, given: int, now: int, sec: int, nsec: int) -> int | None:
    if valid & now:
        return -1
    if not valid & given:
        return None
    time = sec * _NS + nsec
    return 0 if time == -1 else time  # -1 says "now"; the last nanosecond before the epoch gives way to that


def _setattr(body: memoryview, header: _Header) -> rq.Request:
    (
        valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _,
    ) = abi.SETATTR_IN.unpack_from(body)  # fmt: skip
    return rq.SetAttr(
        *header,
        handle if valid & abi.FATTR_FH else 0,
        mode if valid & abi.FATTR_MODE else None,
        uid if valid & abi.FATTR_UID else None,
        gid if valid & abi.FATTR_GID else None,
        size if valid & abi.FATTR_SIZE else None,
        _time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, atime, atime_ns),
        _time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, mtime, mtime_ns),
        # The kernel sends nothing at all to be set when privileges are to go: for chown(path, -1, -1), and before
        # fallocate and copy_file_range by whoever may not keep them.
        bool(valid & abi.FATTR_KILL_SUIDGID) or not valid & ~(abi.FATTR_FH | abi.FATTR_LOCKOWNER),
    )


def _symlink(body: memoryview, header: _Header) -> rq.Request:
    name, target, _ = _names(body, 0, 2)
    _entry_names(body[: len(name) + 1], 0, 1)
    return rq.SymLink(*header, name, target)


def _mknod(body: memoryview, header: _Header) -> rq.Request:
    mode, rdev, _, _ = abi.MKNOD_IN.unpack_from(body)
    return rq.MkNod(*header, _entry_names(body, abi.MKNOD_IN.size, 1)[0], mode, rdev)


def _mkdir(body: memoryview, header: _Header) -> rq.Request:
    mode, _ = abi.MKDIR_IN.unpack_from(body)
    return rq.MkDir(*header, _entry_names(body, abi.MKDIR_IN.size, 1)[0], mode)


def _unlink(body: memoryview, header: _Header) -> rq.Request:
    return rq.Unlink(*header, _entry_names(body, 0, 1)[0])


def _rmdir(body: memoryview, header: _Header) -> rq.Request:
    return rq.RmDir(*header, _entry_names(body, 0, 1)[0])


def _rename(body: memoryview, header: _Header) -> rq.Request:
    (new_parent,) = abi.RENAME_IN.unpack_from(body)
    name, new_name, _ = _entry_names(body, abi.RENAME_IN.size, 2)
    return rq.Rename(*header, name, new_parent, new_name, 0)


def _rename2(body: memoryview, header: _Header) -> rq.Request:
    new_parent, flags, _ = abi.RENAME2_IN.unpack_from(body)
    name, new_name, _ = _entry_names(body, abi.RENAME2_IN.size, 2)
    return rq.Rename(*header, name, new_parent, new_name, flags)


def _link(body: memoryview, header: _Header) -> rq.Request:
    (target,) = abi.LINK_IN.unpack_from(body)
    return rq.Link(*header, target, _entry_names(body, abi.LINK_IN.size, 1)[0])


def _open(body: memoryview, header: _Header) -> rq.Request:
    flags, open_flags = abi.OPEN_IN.unpack_from(body)
    return rq.Open(*header, flags, bool(open_flags & abi.OPEN_KILL_SUIDGID))


def _opendir(body: memoryview, header: _Header) -> rq.Request:
    return rq.OpenDir(*header, abi.OPEN_IN.unpack_from(body)[0])


def _read(body: memoryview, header: _Header) -> rq.Request:
    handle, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
    return rq.Read(*header, handle, offset, size)


def _readdir(body: memoryview, header: _Header) -> rq.Request:
    handle, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
    return rq.ReadDir(*header, handle, offset, size, False)


def _readdirplus(body: memoryview, header: _Header) -> rq.Request:
    handle, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
    return rq.ReadDir(*header, handle, offset, size, True)


def _write(body: memoryview, header: _Header) -> rq.Request:
    handle, offset, size, flags, _, _, _ = abi.WRITE_IN.unpack_from(body)
    data = bytes(body[abi.WRITE_IN.size :])
    if len(data) != size:
        raise ValueError(f"{size} bytes to write, found {len(data)}")
    return rq.Write(*header, handle, offset, data, bool(flags & abi.WRITE_KILL_SUIDGID))


def _release(body: memoryview, header: _Header) -> rq.Request:
    handle, _, flags, lock_owner = abi.RELEASE_IN.unpack_from(body)
    return rq.Release(*header, handle, lock_owner, bool(flags & abi.RELEASE_FLOCK_UNLOCK))


def _releasedir(body: memoryview, header: _Header) -> rq.Request:
    return rq.ReleaseDir(*header, abi.RELEASE_IN.unpack_from(body)[0])


def _fsync(body: memoryview, header: _Header) -> rq.Request:
    handle, flags, _ = abi.FSYNC_IN.unpack_from(body)
    return rq.Fsync(*header, handle, bool(flags & abi.FSYNC_FDATASYNC))


def _fsyncdir(body: memoryview, header: _Header) -> rq.Request:
    handle, flags, _ = abi.FSYNC_IN.unpack_from(body)
    return rq.FsyncDir(*header, handle, bool(flags & abi.FSYNC_FDATASYNC))


def _setxattr(body: memoryview, header: _Header) -> rq.Request:
    size, flags = abi.SETXATTR_IN.unpack_from(body)
    at = len(body) - size  # the value, which may hold any bytes, comes last
    if at < abi.SETXATTR_IN.size:
        raise ValueError(f"a value of {size} bytes in a message of {len(body)}")
    name = _names(body[:at], abi.SETXATTR_IN.size, 1)[0]
    return rq.SetXattr(*header, name, bytes(body[at:]), flags)


def _getxattr(body: memoryview, header: _Header) -> rq.Request:
    size, _ = abi.GETXATTR_IN.unpack_from(body)
    return rq.GetXattr(*header, _names(body, abi.GETXATTR_IN.size, 1)[0], size)


def _listxattr(body: memoryview, header: _Header) -> rq.Request:
    return rq.ListXattr(*header, abi.GETXATTR_IN.unpack_from(body)[0])


def _removexattr(body: memoryview, header: _Header) -> rq.Request:
    return rq.RemoveXattr(*header, _names(body, 0, 1)[0])


def _flush(body: memoryview, header: _Header) -> rq.Request:
    handle, _, _, lock_owner = abi.FLUSH_IN.unpack_from(body)
    return rq.Flush(*header, handle, lock_owner)


_LOCK_TYPES: Final = {abi.F_RDLCK: "r", abi.F_WRLCK: "w", abi.F_UNLCK: "u"}


def _lock(body: memoryview) -> tuple[int, Lock]:
    handle, owner, start, end, kind, pid, flags, _ = abi.LK_IN.unpack_from(body)
    if kind not in _LOCK_TYPES:
        raise ValueError(f"no such type of lock: {kind}")
    return handle, Lock(owner, start, end, _LOCK_TYPES[kind], pid, bool(flags & abi.LK_FLOCK))


def _getlk(body: memoryview, header: _Header) -> rq.Request:
    return rq.GetLk(*header, *_lock(body))


def _setlk(body: memoryview, header: _Header) -> rq.Request:
    return rq.SetLk(*header, *_lock(body), False)


def _setlkw(body: memoryview, header: _Header) -> rq.Request:
    return rq.SetLk(*header, *_lock(body), True)


def _access(body: memoryview, header: _Header) -> rq.Request:
    return rq.Access(*header, abi.ACCESS_IN.unpack_from(body)[0])


def _create(body: memoryview, header: _Header) -> rq.Request:
    flags, mode, _, open_flags = abi.CREATE_IN.unpack_from(body)
    name = _entry_names(body, abi.CREATE_IN.size, 1)[0]
    return rq.Create(*header, name, flags, mode, bool(open_flags & abi.OPEN_KILL_SUIDGID))


def _tmpfile(body: memoryview, header: _Header) -> rq.Request:
    flags, mode, _, _ = abi.CREATE_IN.unpack_from(body)  # and then a "/", the kernel's name for what has none
    return rq.TmpFile(*header, flags, mode)


def _interrupt(body: memoryview, header: _Header) -> rq.Request:
    return rq.Interrupt(*header, abi.INTERRUPT_IN.unpack_from(body)[0] & ~abi.UNIQUE_RESEND)


def _ioctl(body: memoryview, header: _Header) -> rq.Request:
    handle, _, command, _, _, _ = abi.IOCTL_IN.unpack_from(body)
    return rq.Ioctl(*header, handle, command)


def _fallocate(body: memoryview, header: _Header) -> rq.Request:
    handle, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(body)
    return rq.Fallocate(*header, handle, offset, length, mode)


def _lseek(body: memoryview, header: _Header) -> rq.Request:
    handle, offset, whence, _ = abi.LSEEK_IN.unpack_from(body)
    return rq.Lseek(*header, handle, offset, whence)


def _copy(body: memoryview, header: _Header) -> rq.Request:
    handle, offset, node_out, handle_out, offset_out, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(body)
    return rq.CopyFileRange(*header, handle, offset, node_out, handle_out, offset_out, length, False)


def _copy_64(body: memoryview, header: _Header) -> rq.Request:
    handle, offset, node_out, handle_out, offset_out, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(body)
    return rq.CopyFileRange(*header, handle, offset, node_out, handle_out, offset_out, length, True)


def _statx(body: memoryview, header: _Header) -> rq.Request:
    flags, _, handle, _, mask = abi.STATX_IN.unpack_from(body)
    return rq.Statx(*header, handle if flags & abi.GETATTR_FH else 0, mask)


_PARSERS: Final[dict[int, _Parser]] = {
    Opcode.LOOKUP: _lookup,
    Opcode.FORGET: _forget,
    Opcode.GETATTR: _getattr,
    Opcode.SETATTR: _setattr,
    Opcode.READLINK: lambda _, header: rq.ReadLink(*header),
    Opcode.SYMLINK: _symlink,
    Opcode.MKNOD: _mknod,
    Opcode.MKDIR: _mkdir,
    Opcode.UNLINK: _unlink,
    Opcode.RMDIR: _rmdir,
    Opcode.RENAME: _rename,
    Opcode.LINK: _link,
    Opcode.OPEN: _open,
    Opcode.READ: _read,
    Opcode.WRITE: _write,
    Opcode.STATFS: lambda _, header: rq.StatFs(*header),
    Opcode.RELEASE: _release,
    Opcode.FSYNC: _fsync,
    Opcode.SETXATTR: _setxattr,
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _listxattr,
    Opcode.REMOVEXATTR: _removexattr,
    Opcode.FLUSH: _flush,
    Opcode.INIT: _init,
    Opcode.OPENDIR: _opendir,
    Opcode.READDIR: _readdir,
    Opcode.RELEASEDIR: _releasedir,
    Opcode.FSYNCDIR: _fsyncdir,
    Opcode.GETLK: _getlk,
    Opcode.SETLK: _setlk,
    Opcode.SETLKW: _setlkw,
    Opcode.ACCESS: _access,
    Opcode.CREATE: _create,
    Opcode.INTERRUPT: _interrupt,
    Opcode.DESTROY: lambda _, header: rq.Destroy(*header),
    Opcode.IOCTL: _ioctl,
    Opcode.BATCH_FORGET: _batch_forget,
    Opcode.FALLOCATE: _fallocate,
    Opcode.READDIRPLUS: _readdirplus,
    Opcode.RENAME2: _rename2,
    Opcode.LSEEK: _lseek,
    Opcode.COPY_FILE_RANGE: _copy,
    Opcode.SYNCFS: lambda _, header: rq.SyncFs(*header),
    Opcode.TMPFILE: _tmpfile,
    Opcode.STATX: _statx,
    Opcode.COPY_FILE_RANGE_64: _copy_64,
}


def _opcode_name(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"operation {opcode}"


def parse(message: memoryview) -> rq.Request:
    """The typed request in *message*, which must be exactly what one read(2) returned.

    Raises :class:`MalformedRequestError` and nothing else.
    """
    if len(message) < _HEADER_SIZE:
        raise MalformedRequestError(f"a message of {len(message)} bytes is shorter than its header")
    length, opcode, unique, node, uid, gid, pid, extensions, _ = abi.IN_HEADER.unpack_from(message)
    end = length - 8 * extensions
    if length != len(message) or end < _HEADER_SIZE:
        raise MalformedRequestError(
            f"{_opcode_name(opcode)}: says {length} bytes, {8 * extensions} of extensions; there are {len(message)}",
            unique,
        )
    parser = _PARSERS.get(opcode)
    if parser is None:
        return rq.Unsupported(unique, node, uid, gid, pid, opcode)
    try:
        return parser(message[_HEADER_SIZE:end], (unique, node, uid, gid, pid))
    except (struct.error, ValueError) as exc:
        raise MalformedRequestError(f"{_opcode_name(opcode)} of {length} bytes: {exc}", unique) from exc

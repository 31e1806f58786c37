"""One function per request: what to ask of the file system, and how its answer is packed.

A function returns the body of the reply, or raises. Where the reply makes the kernel hold something of ours - a
lookup count, an open handle - it returns :class:`Held`, so that it is given back should the kernel be gone.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, NamedTuple

from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.fuse import abi, replies
from jupyter_wsfuse.fuse import requests as rq
from jupyter_wsfuse.fuse.interface import Caller, Entry, FileSystem, Opened


class Held(NamedTuple):
    """A reply, and what takes back what it gives to the kernel."""

    body: bytes
    undo: Callable[[], None]


Body = bytes | memoryview | Held
Operation = Callable[[FileSystem, Any, Caller], Coroutine[Any, Any, Body]]
_DONE: Final = b""


async def _entry(fs: FileSystem, pending: Awaitable[Entry]) -> Body:
    found = await pending
    body = replies.entry(found)
    return Held(body, partial(fs.forget, found.node, 1)) if found.node else body


def _file(fs: FileSystem, node: int, opened: Opened, body: bytes) -> Body:
    return Held(body, partial(fs.release, node, opened.handle, 0, False))


def _created(fs: FileSystem, found: Entry, opened: Opened) -> Body:
    def undo() -> None:
        fs.release(found.node, opened.handle, 0, False)
        fs.forget(found.node, 1)

    return Held(replies.entry(found) + replies.opened(opened), undo)


async def _lookup(fs: FileSystem, request: rq.Lookup, caller: Caller) -> Body:
    return await _entry(fs, fs.lookup(caller, request.node, request.name))


async def _getattr(fs: FileSystem, request: rq.GetAttr, caller: Caller) -> Body:
    attr, ttl = await fs.getattr(caller, request.node, request.handle)
    return replies.attributes(attr, ttl)


async def _statx(fs: FileSystem, request: rq.Statx, caller: Caller) -> Body:
    attr, ttl = await fs.getattr(caller, request.node, request.handle)
    return replies.statx(attr, ttl)


async def _setattr(fs: FileSystem, request: rq.SetAttr, caller: Caller) -> Body:
    attr, ttl = await fs.setattr(
        caller,
        request.node,
        handle=request.handle,
        mode=request.mode,
        uid=request.new_uid,
        gid=request.new_gid,
        size=request.size,
        atime=request.atime,
        mtime=request.mtime,
        kill_priv=request.kill_priv,
    )
    return replies.attributes(attr, ttl)


async def _access(fs: FileSystem, request: rq.Access, caller: Caller) -> Body:
    await fs.access(caller, request.node, request.mask)
    return _DONE


async def _readlink(fs: FileSystem, request: rq.ReadLink, caller: Caller) -> Body:
    return await fs.readlink(caller, request.node)


async def _symlink(fs: FileSystem, request: rq.SymLink, caller: Caller) -> Body:
    return await _entry(fs, fs.symlink(caller, request.node, request.name, request.target))


async def _mknod(fs: FileSystem, request: rq.MkNod, caller: Caller) -> Body:
    return await _entry(fs, fs.mknod(caller, request.node, request.name, request.mode, request.rdev))


async def _mkdir(fs: FileSystem, request: rq.MkDir, caller: Caller) -> Body:
    return await _entry(fs, fs.mkdir(caller, request.node, request.name, request.mode))


async def _link(fs: FileSystem, request: rq.Link, caller: Caller) -> Body:
    return await _entry(fs, fs.link(caller, request.target, request.node, request.name))


async def _unlink(fs: FileSystem, request: rq.Unlink, caller: Caller) -> Body:
    await fs.unlink(caller, request.node, request.name)
    return _DONE


async def _rmdir(fs: FileSystem, request: rq.RmDir, caller: Caller) -> Body:
    await fs.rmdir(caller, request.node, request.name)
    return _DONE


async def _rename(fs: FileSystem, request: rq.Rename, caller: Caller) -> Body:
    await fs.rename(caller, request.node, request.name, request.new_parent, request.new_name, request.flags)
    return _DONE


async def _open(fs: FileSystem, request: rq.Open, caller: Caller) -> Body:
    opened = await fs.open(caller, request.node, request.flags, request.kill_priv)
    return _file(fs, request.node, opened, replies.opened(opened))


async def _create(fs: FileSystem, request: rq.Create, caller: Caller) -> Body:
    found, opened = await fs.create(
        caller, request.node, request.name, request.mode, request.flags, request.kill_priv
    )
    return _created(fs, found, opened)


async def _tmpfile(fs: FileSystem, request: rq.TmpFile, caller: Caller) -> Body:
    found, opened = await fs.tmpfile(caller, request.node, request.mode, request.flags)
    return _created(fs, found, opened)


async def _read(fs: FileSystem, request: rq.Read, caller: Caller) -> Body:
    return await fs.read(caller, request.node, request.handle, request.offset, request.size)


async def _write(fs: FileSystem, request: rq.Write, caller: Caller) -> Body:
    count = await fs.write(
        caller, request.node, request.handle, request.offset, request.data, request.kill_priv
    )
    return abi.WRITE_OUT.pack(count, 0)


async def _flush(fs: FileSystem, request: rq.Flush, caller: Caller) -> Body:
    await fs.flush(caller, request.node, request.handle, request.lock_owner)
    return _DONE


async def _release(fs: FileSystem, request: rq.Release, caller: Caller) -> Body:
    fs.release(request.node, request.handle, request.lock_owner, request.flock_unlock)
    return _DONE


async def _fsync(fs: FileSystem, request: rq.Fsync, caller: Caller) -> Body:
    await fs.fsync(caller, request.node, request.handle, request.data_only)
    return _DONE


async def _fallocate(fs: FileSystem, request: rq.Fallocate, caller: Caller) -> Body:
    await fs.fallocate(caller, request.node, request.handle, request.mode, request.offset, request.length)
    return _DONE


async def _lseek(fs: FileSystem, request: rq.Lseek, caller: Caller) -> Body:
    offset = await fs.lseek(caller, request.node, request.handle, request.offset, request.whence)
    return abi.LSEEK_OUT.pack(offset)


async def _copy_file_range(fs: FileSystem, request: rq.CopyFileRange, caller: Caller) -> Body:
    # The narrow reply has 32 bits for the count; a copy may always be shorter than asked.
    count = await fs.copy_file_range(
        caller,
        request.node,
        request.handle,
        request.offset,
        request.node_out,
        request.handle_out,
        request.offset_out,
        request.length if request.wide else min(request.length, 0x7FFFF000),
    )
    return abi.COPY_FILE_RANGE_OUT.pack(count) if request.wide else abi.WRITE_OUT.pack(count, 0)


async def _opendir(fs: FileSystem, request: rq.OpenDir, caller: Caller) -> Body:
    opened = await fs.opendir(caller, request.node)
    return Held(replies.opened_directory(opened), partial(fs.releasedir, request.node, opened.handle))


async def _readdir(fs: FileSystem, request: rq.ReadDir, caller: Caller) -> Body:
    plus = request.plus
    most = request.size // (replies.SMALLEST_DIRENTPLUS if plus else replies.SMALLEST_DIRENT)
    items = await fs.readdir(caller, request.node, request.handle, request.cookie, most, plus)
    body, fitting = replies.listing(items, request.size, plus=plus)
    if items and not fitting:
        raise os_error(errno.EINVAL, "not even one entry fits")
    if not plus:
        return body
    if fitting < len(items):
        fs.unreturned(items[fitting:])
    return Held(body, partial(fs.unreturned, items[:fitting]))


async def _releasedir(fs: FileSystem, request: rq.ReleaseDir, caller: Caller) -> Body:
    fs.releasedir(request.node, request.handle)
    return _DONE


async def _fsyncdir(fs: FileSystem, request: rq.FsyncDir, caller: Caller) -> Body:
    await fs.fsyncdir(caller, request.node, request.handle, request.data_only)
    return _DONE


async def _statfs(fs: FileSystem, request: rq.StatFs, caller: Caller) -> Body:
    return replies.statfs(await fs.statfs(caller, request.node))


async def _syncfs(fs: FileSystem, request: rq.SyncFs, caller: Caller) -> Body:
    await fs.syncfs(caller)
    return _DONE


def _sized(value: bytes, size: int) -> bytes:
    """How an attribute is answered: its length if asked for no more, else itself if it fits."""
    if size == 0:
        return abi.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise os_error(errno.ERANGE)
    return value


async def _getxattr(fs: FileSystem, request: rq.GetXattr, caller: Caller) -> Body:
    return _sized(await fs.getxattr(caller, request.node, request.name), request.size)


async def _listxattr(fs: FileSystem, request: rq.ListXattr, caller: Caller) -> Body:
    names = await fs.listxattr(caller, request.node)
    return _sized(b"".join([name + b"\0" for name in names]), request.size)


async def _setxattr(fs: FileSystem, request: rq.SetXattr, caller: Caller) -> Body:
    await fs.setxattr(caller, request.node, request.name, request.value, request.flags)
    return _DONE


async def _removexattr(fs: FileSystem, request: rq.RemoveXattr, caller: Caller) -> Body:
    await fs.removexattr(caller, request.node, request.name)
    return _DONE


async def _getlk(fs: FileSystem, request: rq.GetLk, caller: Caller) -> Body:
    return replies.lock(await fs.getlk(caller, request.node, request.handle, request.lock))


async def _setlk(fs: FileSystem, request: rq.SetLk, caller: Caller) -> Body:
    await fs.setlk(caller, request.node, request.handle, request.lock, request.wait)
    return _DONE


async def _ioctl(fs: FileSystem, request: rq.Ioctl, caller: Caller) -> Body:
    raise os_error(errno.ENOTTY)


async def _destroy(fs: FileSystem, request: rq.Destroy, caller: Caller) -> Body:
    return _DONE


#: Requests that are answered, apart from INIT, INTERRUPT and what we do not have.
OPERATIONS: Final[dict[type[rq.Request], Operation]] = {
    rq.Lookup: _lookup,
    rq.GetAttr: _getattr,
    rq.SetAttr: _setattr,
    rq.ReadLink: _readlink,
    rq.SymLink: _symlink,
    rq.MkNod: _mknod,
    rq.MkDir: _mkdir,
    rq.Unlink: _unlink,
    rq.RmDir: _rmdir,
    rq.Rename: _rename,
    rq.Link: _link,
    rq.Open: _open,
    rq.Read: _read,
    rq.Write: _write,
    rq.StatFs: _statfs,
    rq.Release: _release,
    rq.Fsync: _fsync,
    rq.SetXattr: _setxattr,
    rq.GetXattr: _getxattr,
    rq.ListXattr: _listxattr,
    rq.RemoveXattr: _removexattr,
    rq.Flush: _flush,
    rq.OpenDir: _opendir,
    rq.ReadDir: _readdir,
    rq.ReleaseDir: _releasedir,
    rq.FsyncDir: _fsyncdir,
    rq.GetLk: _getlk,
    rq.SetLk: _setlk,
    rq.Access: _access,
    rq.Create: _create,
    rq.TmpFile: _tmpfile,
    rq.Ioctl: _ioctl,
    rq.Destroy: _destroy,
    rq.Fallocate: _fallocate,
    rq.Lseek: _lseek,
    rq.CopyFileRange: _copy_file_range,
    rq.SyncFs: _syncfs,
    rq.Statx: _statx,
}

"""A small file system in memory: what the driver's tests mount. One instance serves any number of drivers in turn."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Any

from jupyter_wsfuse.client.api import NoInvalidator
from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.fuse.interface import Caller, DirItem, Entry, Invalidator, Opened
from jupyter_wsfuse.protocol.messages import Attr, Lock, StatFsReply

END = 2**63 - 1


@dataclass
class Node:
    number: int
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    nlink: int = 1
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    names: dict[bytes, int] = field(default_factory=dict)
    parent: int = 1
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    btime: int = 0
    lookups: int = 0


class MemFs:
    """``ttl``: seconds that the kernel may cache names and attributes. ``direct``: open files with direct I/O.

    ``gates``: an operation named there waits for the event before it does anything, and can be interrupted.
    ``calls`` records what was asked, by name; ``answered`` the keys of replies that the kernel took.
    """

    def __init__(self, *, ttl: float = 0.0, direct: bool = False, uid: int = 0, gid: int = 0) -> None:
        self.invalidator: Invalidator = NoInvalidator()
        self.ttl = ttl
        self.direct = direct
        self.nodes: dict[int, Node] = {}
        self.handles: dict[int, int] = {}
        self.locks: list[tuple[int, Lock]] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.entered: dict[str, asyncio.Event] = {}
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self.released = asyncio.Condition()
        self.calls: list[tuple[Any, ...]] = []
        self.answered: list[int] = []
        self.again: list[int] = []
        self.interrupted: list[int] = []
        self._last = 0
        self._handle = 1 << 63
        self.root = self._new(stat.S_IFDIR | 0o755, uid, gid)
        self.root.nlink = 2

    # --- plumbing ----------------------------------------------------------------------------------------------

    def _new(self, mode: int, uid: int, gid: int) -> Node:
        self._last += 1
        now = time.time_ns()
        node = Node(self._last, mode, uid, gid, atime=now, mtime=now, ctime=now, btime=now)
        self.nodes[node.number] = node
        return node

    def node(self, number: int) -> Node:
        try:
            return self.nodes[number]
        except KeyError:
            raise os_error(errno.ESTALE) from None

    def attr(self, node: Node) -> Attr:
        size = len(node.data) or len(node.target)
        return Attr(
            0x803, node.number + 1000, node.mode, node.nlink, node.uid, node.gid, node.rdev, size, -(-size // 512),
            4096, node.atime, node.mtime, node.ctime, node.btime,
        )  # fmt: skip

    def entry(self, node: Node) -> Entry:
        node.lookups += 1
        return Entry(node.number, 0, self.attr(node), self.ttl, self.ttl)

    def opened(self, node: Node) -> Opened:
        self._handle += 1
        self.handles[self._handle] = node.number
        return Opened(self._handle, not self.direct and self.ttl > 0, self.direct, self.direct)

    def reached(self, name: str) -> asyncio.Event:
        """Set when an operation waits at that gate; "setlk": when one waits for a lock."""
        return self.entered.setdefault(name, asyncio.Event())

    async def gate(self, name: str, caller: Caller) -> None:
        self.calls.append((name, caller.key))
        event = self.gates.get(name)
        if event is not None:
            self.reached(name).set()
            await self.interruptible(caller.key, event.wait())

    async def interruptible(self, key: int, awaitable: Any) -> None:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[key] = gone
        work = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise os_error(errno.EINTR)
        finally:
            work.cancel()
            gone.cancel()
            del self.waiting[key]

    def child(self, parent: int, name: bytes) -> Node | None:
        found = self.node(parent).names.get(name)
        return None if found is None else self.nodes[found]

    def _add(self, caller: Caller, parent: int, name: bytes, mode: int) -> Node:
        directory = self.node(parent)
        if name in directory.names:
            raise os_error(errno.EEXIST)
        if len(name) > 255:
            raise os_error(errno.ENAMETOOLONG)
        node = self._new(mode, caller.uid, caller.gid)
        directory.names[name] = node.number
        self._touch(directory)
        return node

    def _touch(self, node: Node) -> None:
        node.mtime = node.ctime = time.time_ns()

    def repeated(self, key: int) -> None:
        self.again.append(key)

    def all_repeated(self) -> None:
        self.again.append(0)

    def done(self, key: int) -> None:
        self.answered.append(key)

    def interrupt(self, key: int) -> None:
        self.interrupted.append(key)
        if key in self.waiting:
            self.waiting[key].set_result(None)

    def forget(self, node: int, count: int) -> None:
        found = self.nodes[node]
        found.lookups -= count
        assert found.lookups >= 0, f"node {node} forgotten too often"
        if not found.lookups and not found.nlink:
            del self.nodes[node]

    def unreturned(self, items: list[DirItem]) -> None:
        for item in items:
            if item.entry is not None:
                self.forget(item.entry.node, 1)

    # --- attributes --------------------------------------------------------------------------------------------

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> Entry:
        await self.gate("lookup", caller)
        if name == b".":
            return self.entry(self.node(parent))
        if name == b"..":
            return self.entry(self.node(self.node(parent).parent))
        found = self.child(parent, name)
        if found is None:
            if self.ttl:
                return Entry(0, 0, Attr(*([0] * 14)), self.ttl, 0.0)
            raise os_error(errno.ENOENT)
        return self.entry(found)

    async def getattr(self, caller: Caller, node: int, handle: int = 0) -> tuple[Attr, float]:
        await self.gate("getattr", caller)
        return self.attr(self.node(node)), self.ttl

    async def setattr(
        self,
        caller: Caller,
        node: int,
        *,
        handle: int = 0,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
        kill_priv: bool = False,
    ) -> tuple[Attr, float]:
        found = self.node(node)
        given = {"mode": mode, "uid": uid, "gid": gid, "size": size, "atime": atime, "mtime": mtime}
        self.calls.append(
            ("setattr", {k: v for k, v in given.items() if v is not None}, bool(handle), kill_priv)
        )
        if mode is not None:
            found.mode = stat.S_IFMT(found.mode) | stat.S_IMODE(mode)
        if uid is not None:
            found.uid = uid
        if gid is not None:
            found.gid = gid
        if kill_priv:
            found.mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if size is not None:
            del found.data[size:]
            found.data.extend(bytes(size - len(found.data)))
            self._touch(found)
        if atime is not None:
            found.atime = time.time_ns() if atime == -1 else atime
        if mtime is not None:
            found.mtime = time.time_ns() if mtime == -1 else mtime
        found.ctime = time.time_ns()
        return self.attr(found), self.ttl

    async def access(self, caller: Caller, node: int, mask: int) -> None:
        self.calls.append(("access", mask))
        if caller.uid and mask & os.W_OK and not self.node(node).mode & 0o222:
            raise os_error(errno.EACCES)

    async def getxattr(self, caller: Caller, node: int, name: bytes) -> bytes:
        try:
            return self.node(node).xattrs[name]
        except KeyError:
            raise os_error(errno.ENODATA) from None

    async def setxattr(self, caller: Caller, node: int, name: bytes, value: bytes, flags: int) -> None:
        xattrs = self.node(node).xattrs
        if flags & os.XATTR_CREATE and name in xattrs:
            raise os_error(errno.EEXIST)
        if flags & os.XATTR_REPLACE and name not in xattrs:
            raise os_error(errno.ENODATA)
        xattrs[name] = value

    async def listxattr(self, caller: Caller, node: int) -> list[bytes]:
        return list(self.node(node).xattrs)

    async def removexattr(self, caller: Caller, node: int, name: bytes) -> None:
        if self.node(node).xattrs.pop(name, None) is None:
            raise os_error(errno.ENODATA)

    async def statfs(self, caller: Caller, node: int) -> StatFsReply:
        return StatFsReply(0, 4096, 1024, 1000, 600, 500, 90, 80, 255)

    async def syncfs(self, caller: Caller) -> None:
        self.calls.append(("syncfs",))

    # --- names -------------------------------------------------------------------------------------------------

    async def readlink(self, caller: Caller, node: int) -> bytes:
        return self.node(node).target

    async def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Entry:
        node = self._add(caller, parent, name, stat.S_IFLNK | 0o777)
        node.target = target
        return self.entry(node)

    async def mknod(self, caller: Caller, parent: int, name: bytes, mode: int, rdev: int) -> Entry:
        node = self._add(caller, parent, name, mode)
        node.rdev = rdev
        return self.entry(node)

    async def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> Entry:
        await self.gate("mkdir", caller)
        node = self._add(caller, parent, name, stat.S_IFDIR | mode)
        node.nlink = 2
        node.parent = parent
        self.node(parent).nlink += 1
        return self.entry(node)

    async def link(self, caller: Caller, node: int, parent: int, name: bytes) -> Entry:
        found = self.node(node)
        if self.child(parent, name) is not None:
            raise os_error(errno.EEXIST)
        self.node(parent).names[name] = node
        found.nlink += 1
        return self.entry(found)

    async def unlink(self, caller: Caller, parent: int, name: bytes) -> None:
        found = self.child(parent, name)
        if found is None:
            raise os_error(errno.ENOENT)
        del self.node(parent).names[name]
        found.nlink -= 1

    async def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        found = self.child(parent, name)
        if found is None:
            raise os_error(errno.ENOENT)
        if found.names:
            raise os_error(errno.ENOTEMPTY)
        del self.node(parent).names[name]
        found.nlink = 0
        self.node(parent).nlink -= 1

    async def rename(
        self, caller: Caller, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        self.calls.append(("rename", name, new_name, flags))
        source, target = self.child(parent, name), self.child(new_parent, new_name)
        if source is None:
            raise os_error(errno.ENOENT)
        if target is not None and flags & 1:
            raise os_error(errno.EEXIST)
        del self.node(parent).names[name]
        self.node(new_parent).names[new_name] = source.number
        if target is not None and flags & 2:
            self.node(parent).names[name] = target.number
        elif target is not None:
            target.nlink = 0

    # --- directories -------------------------------------------------------------------------------------------

    async def opendir(self, caller: Caller, node: int) -> Opened:
        return self.opened(self.node(node))

    async def readdir(
        self, caller: Caller, node: int, handle: int, cookie: int, max_items: int, plus: bool
    ) -> list[DirItem]:
        self.calls.append(("readdirplus" if plus else "readdir", cookie))
        directory = self.node(node)
        items = [
            DirItem(b".", 1, directory.number + 1000, 4, None),
            DirItem(b"..", 2, directory.parent + 1000, 4, None),
        ]
        for at, (name, number) in enumerate(directory.names.items(), 3):
            found = self.nodes[number]
            items.append(DirItem(name, at, number + 1000, stat.S_IFMT(found.mode) >> 12, None))
        items = items[cookie : cookie + max_items]
        if plus:
            items = [
                item
                if item.name in (b".", b"..")
                else item._replace(entry=self.entry(self.nodes[item.ino - 1000]))
                for item in items
            ]
        return items

    def releasedir(self, node: int, handle: int) -> None:
        del self.handles[handle]

    async def fsyncdir(self, caller: Caller, node: int, handle: int, data_only: bool) -> None:
        self.calls.append(("fsyncdir", data_only))

    # --- files -------------------------------------------------------------------------------------------------

    async def open(self, caller: Caller, node: int, flags: int, kill_priv: bool) -> Opened:
        self.calls.append(("open", flags, kill_priv))
        found = self.node(node)
        if flags & os.O_TRUNC:
            found.data.clear()
            self._touch(found)
        return self.opened(found)

    async def create(
        self, caller: Caller, parent: int, name: bytes, mode: int, flags: int, kill_priv: bool
    ) -> tuple[Entry, Opened]:
        node = self._add(caller, parent, name, stat.S_IFREG | mode)
        return self.entry(node), self.opened(node)

    async def tmpfile(self, caller: Caller, parent: int, mode: int, flags: int) -> tuple[Entry, Opened]:
        node = self._new(stat.S_IFREG | mode, caller.uid, caller.gid)
        node.nlink = 0
        return self.entry(node), self.opened(node)

    async def read(self, caller: Caller, node: int, handle: int, offset: int, size: int) -> bytes:
        assert self.handles[handle] == node
        await self.gate("read", caller)
        return bytes(memoryview(self.node(node).data)[offset : offset + size])

    async def write(
        self, caller: Caller, node: int, handle: int, offset: int, data: bytes, kill_priv: bool
    ) -> int:
        assert self.handles[handle] == node
        await self.gate("write", caller)
        found = self.node(node)
        if kill_priv:
            found.mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if offset > len(found.data):
            found.data.extend(bytes(offset - len(found.data)))
        found.data[offset : offset + len(data)] = data
        self._touch(found)
        return len(data)

    async def flush(self, caller: Caller, node: int, handle: int, lock_owner: int) -> None:
        self.calls.append(("flush",))
        await self._unlock(node, lock_owner, flock=False)

    def release(self, node: int, handle: int, lock_owner: int, flock_unlock: bool) -> None:
        self.calls.append(("release", flock_unlock))
        del self.handles[handle]
        if flock_unlock:
            self.locks = [
                (at, one) for at, one in self.locks if (at, one.owner, one.flock) != (node, lock_owner, True)
            ]

    async def fsync(self, caller: Caller, node: int, handle: int, data_only: bool) -> None:
        self.calls.append(("fsync", data_only))

    async def fallocate(
        self, caller: Caller, node: int, handle: int, mode: int, offset: int, length: int
    ) -> None:
        data = self.node(node).data
        if mode & 2:  # punch a hole
            length = min(length, max(0, len(data) - offset))
            data[offset : offset + length] = bytes(length)
        else:
            data.extend(bytes(max(0, offset + length - len(data))))

    async def lseek(self, caller: Caller, node: int, handle: int, offset: int, whence: int) -> int:
        size = len(self.node(node).data)
        if offset >= size:
            raise os_error(errno.ENXIO)
        return size if whence == os.SEEK_HOLE else offset

    async def copy_file_range(
        self,
        caller: Caller,
        node: int,
        handle: int,
        offset: int,
        node_out: int,
        handle_out: int,
        offset_out: int,
        length: int,
    ) -> int:
        data = bytes(self.node(node).data[offset : offset + length])
        return await self.write(caller, node_out, handle_out, offset_out, data, False)

    # --- locks -------------------------------------------------------------------------------------------------

    def _conflict(self, node: int, lock: Lock) -> Lock | None:
        for at, held in self.locks:
            if at != node or held.flock != lock.flock or held.owner == lock.owner:
                continue
            if "w" in (held.type, lock.type) and held.start <= lock.end and lock.start <= held.end:
                return held
        return None

    async def _unlock(self, node: int, owner: int, *, flock: bool) -> None:
        async with self.released:
            self.locks = [
                (at, one) for at, one in self.locks if (at, one.owner, one.flock) != (node, owner, flock)
            ]
            self.released.notify_all()

    async def getlk(self, caller: Caller, node: int, handle: int, lock: Lock) -> Lock:
        found = self._conflict(node, lock)
        return Lock(0, lock.start, lock.end, "u", 0) if found is None else found

    async def setlk(self, caller: Caller, node: int, handle: int, lock: Lock, wait: bool) -> None:
        if lock.type == "u":
            await self._unlock(node, lock.owner, flock=lock.flock)
            return
        while self._conflict(node, lock) is not None:
            if not wait:
                raise os_error(errno.EAGAIN)
            self.reached("setlk").set()
            await self.interruptible(caller.key, self._release())
        self.locks.append((node, lock))

    async def _release(self) -> None:
        async with self.released:
            await self.released.wait()

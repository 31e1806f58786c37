"""Locks: set and tested at the server, remembered here for ``flush`` and for a lost server."""

from __future__ import annotations

from ..protocol.messages import Attr, GetLock, Lock, LockReply, SetLock
from ..protocol.ranges import LAST
from .api import Caller
from .core import Core
from .handles import apply_lock
from .profiler import measured
from .tree import Node


class LockOperations(Core):
    """getlk, setlk, flush."""

    @measured
    async def getlk(self, caller: Caller, node: int, handle: int, lock: Lock) -> Lock:
        """The first lock in the way of *lock*, or one of type "u"."""
        await self.real(self.file(handle))
        reply = await self.ask(LockReply, GetLock(0, handle, lock), caller.key)
        if reply.lock is not None:
            return reply.lock
        return Lock(lock.owner, lock.start, lock.end, "u", 0, lock.flock)

    @measured
    async def setlk(self, caller: Caller, node: int, handle: int, lock: Lock, wait: bool) -> None:
        """Set or clear a lock; ``EAGAIN`` if it is not free, with *wait* ``EINTR`` after :meth:`interrupt`.

        When it is granted, nothing older than the lock is left in any cache.
        """
        file = await self.real(self.file(handle))
        reply = await self.ask(LockReply, SetLock(0, handle, lock, wait), caller.key)
        self._locked(file.node, handle, lock)
        if lock.type != "u":
            await self._agree(file.node, reply.attr)

    def _locked(self, node: Node, handle: int, lock: Lock) -> None:
        apply_lock(node.locks, handle, lock)
        self.tree.record("lock", handle, lock.owner, lock.start, lock.end, lock.type, lock.pid, lock.flock)

    async def _agree(self, node: Node, attr: Attr | None) -> None:
        """Whoever held the lock before may have changed the file: make sure that the kernel sees that."""
        self.cache.drop_attr(node.identity)
        if attr is None or node.told is None or self.version(attr) != node.told:
            node.told = None
            node.pages = None
            self.invalidator.inval_node(node.id)
        await self.invalidator.settled()

    @measured
    async def flush(self, caller: Caller, node: int, handle: int, lock_owner: int) -> None:
        """A descriptor was closed: POSIX locks of its owner go. Without any this asks nobody."""
        file = self.files.get(handle)
        if file is not None and file.failure is None and (lock_owner, False) not in file.node.locks:
            return
        file = self.file(handle)
        unlock = Lock(lock_owner, 0, LAST, "u", caller.pid)
        await self.ask(LockReply, SetLock(0, handle, unlock), caller.key)
        self._locked(file.node, handle, unlock)

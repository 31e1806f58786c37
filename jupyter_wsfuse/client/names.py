"""Operations on names: looking up, making, linking, removing, renaming."""

from __future__ import annotations

import errno
from stat import S_ISDIR

from ..errors import os_error
from ..protocol.messages import (
    LEASE_PARENT,
    LEASE_SELF,
    Attr,
    AttrReply,
    Link,
    Lookup,
    MkDir,
    MkNod,
    Ref,
    RemovedReply,
    Rename,
    Request,
    RmDir,
    SymLink,
    Unlink,
)
from .api import RENAME_EXCHANGE, RENAME_NOREPLACE, Caller, Entry
from .cache import Change
from .core import Core
from .profiler import measured
from .tree import Node

_NAME_MAX = 255  # bytes, on every file system that Linux has
_ATTEMPTS = 3  # at a lookup whose answer was overtaken by a change of the same name


class NameOperations(Core):
    """lookup and the operations that change directories."""

    @measured
    async def lookup(self, caller: Caller, parent: int, name: bytes) -> Entry:
        """What *name* in *parent* is; counted until :meth:`forget`. ``ENOENT`` may be a negative entry."""
        await self.keep_within()
        directory = self.tree.get(parent)
        if len(name) > _NAME_MAX:  # not one of those that are known not to exist: it cannot
            raise os_error(errno.ENAMETOOLONG)
        known = self.cached_entry(directory, name)
        if known is not None:
            self.cache.hits += 1
            self.stats["lookup"].hits += 1
            self.entered(directory)
            return known
        self.cache.misses += 1
        await self.looked_into(directory, name)
        if (known := self.cached_entry(directory, name)) is not None:
            return known
        key = (directory.identity, name)
        for _ in range(_ATTEMPTS):
            since = self.cache.version
            try:
                request = Lookup(0, self.ref(directory), name)
                reply = await self.ask(AttrReply, request, caller.key, parent=directory)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                if self.cache.fresh(key, since):
                    self.tree.unlink(directory, name)
                ttl = self.cache.keep_entry(directory.identity, name, None, since)
                if ttl:
                    return self.no_entry(directory, name, ttl)
                raise
            if self.cache.fresh(key, since):
                break
        if reply.lease & LEASE_PARENT:
            self.cache.grant(directory.identity, since)
        if reply.lease & LEASE_SELF:
            self.cache.grant(reply.attr.identity, since)
        return self.entry(directory, name, reply.attr, since, since)

    def entered(self, directory: Node) -> None:
        """A name in *directory* was answered from memory."""
        known = self.cache.known(directory.identity)
        if known is not None and known.prefetched:
            self.fetcher.entered(known)

    async def looked_into(self, directory: Node, name: bytes) -> None:
        """*name* in *directory* is not known: have the others listed, and wait for a listing that is under way."""
        identity = directory.identity
        if not self.fetcher.wants("subtree") or not self.cache.leases.offered:
            return
        await self.fetcher.listed(identity, alone=True)
        if self.cache.directory(identity) is None and not directory.gone:
            path = self.tree.path_of(directory)
            if path is not None:
                self.fetcher.list_soon(Ref(path, identity), identity)
                self.fetcher.arrived(path)
                if self.fetcher.subtree.near:  # all of them come about as soon as one
                    await self.fetcher.listed(identity, alone=True)

    def forget(self, node: int, count: int) -> None:
        """The kernel takes back *count* of the lookups that it was told."""
        self.tree.forget(node, count)

    # --- making ----------------------------------------------------------------------------------------

    @measured
    async def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> Entry:
        directory = self._directory(parent)
        request = MkDir(0, self.ref(directory), name, mode, *self.owner(caller))
        return await self._make(caller, directory, name, request)

    @measured
    async def mknod(self, caller: Caller, parent: int, name: bytes, mode: int, rdev: int) -> Entry:
        """A regular file, fifo or socket; ``EPERM`` for devices."""
        directory = self._directory(parent)
        request = MkNod(0, self.ref(directory), name, mode, rdev, *self.owner(caller))
        return await self._make(caller, directory, name, request)

    @measured
    async def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Entry:
        directory = self._directory(parent)
        request = SymLink(0, self.ref(directory), name, target, *self.owner(caller))
        return await self._make(caller, directory, name, request)

    async def _make(self, caller: Caller, directory: Node, name: bytes, request: Request) -> Entry:
        slot = (directory.identity, name)
        with self.cache.changing(directory.identity, slot) as change:
            reply = await self.ask(AttrReply, request, caller.key, parent=directory)
        return self.entry(directory, name, reply.attr, change.token(slot), change.token(reply.attr.identity))

    @measured
    async def link(self, caller: Caller, node: int, parent: int, name: bytes) -> Entry:
        """*name* in *parent* becomes another name of *node*."""
        directory = self._directory(parent)
        subject = self.tree.get(node)
        slot = (directory.identity, name)
        with self.cache.changing(directory.identity, slot, subject.identity) as change:
            request = Link(0, self.ref(subject), self.ref(directory), name)
            reply = await self.ask(AttrReply, request, caller.key, ref=subject, parent=directory)
        return self.entry(directory, name, reply.attr, change.token(slot), change.token(reply.attr.identity))

    # --- removing --------------------------------------------------------------------------------------

    @measured
    async def unlink(self, caller: Caller, parent: int, name: bytes) -> None:
        directory = self._directory(parent)
        request = Unlink(0, self.ref(directory), name, pin=True)
        await self._remove(caller, directory, name, request)

    @measured
    async def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        directory = self._directory(parent)
        request = RmDir(0, self.ref(directory), name, pin=True)
        await self._remove(caller, directory, name, request)

    async def _remove(self, caller: Caller, directory: Node, name: bytes, request: Request) -> None:
        victim = directory.children.get(name)
        slot = (directory.identity, name)
        keys = (directory.identity, slot) if victim is None else (directory.identity, slot, victim.identity)
        with self.cache.changing(*keys) as change:
            reply = await self.ask(RemovedReply, request, caller.key, parent=directory)
        if reply.attr is None:
            raise os_error(errno.EIO, f"the server answered {request} with {reply}")
        self._removed(directory, name, reply.attr, reply.pin, change)
        self.cache.keep_entry(directory.identity, name, None, change.token(slot))

    def _removed(self, directory: Node, name: bytes, attr: Attr, pin: int, change: Change) -> None:
        """The server took *name* from the file of *attr*."""
        victim = self.tree.find(attr.identity)
        # In the answer to a request that the kernel sent again, the name may long belong to another file.
        if victim is not None and directory.children.get(name) is victim:
            self.tree.unlink(directory, name)
        if attr.nlink and not S_ISDIR(attr.mode):
            self.cache.keep_attr(attr.identity, self._own(attr), change.token(attr.identity))
        elif victim is not None:
            self.tree.bury(victim)
        self.pin(victim, pin)

    # --- renaming --------------------------------------------------------------------------------------

    @measured
    async def rename(
        self, caller: Caller, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """*flags*: ``RENAME_NOREPLACE`` (1) or ``RENAME_EXCHANGE`` (2); anything else is ``EINVAL``."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise os_error(errno.EINVAL, "unknown flags of rename")
        source, target = self._directory(parent), self._directory(new_parent)
        moving, standing = source.children.get(name), target.children.get(new_name)
        files = {node.identity for node in (source, target, moving, standing) if node is not None}
        here, there = (source.identity, name), (target.identity, new_name)
        with self.cache.changing(*files, *{here, there}) as change:
            request = Rename(0, self.ref(source), name, self.ref(target), new_name, flags, pin=True)
            reply = await self.ask(RemovedReply, request, caller.key, parent=source, new_parent=target)
        if reply.moved is None:
            raise os_error(errno.EIO, f"the server answered {request} with {reply}")
        moving = self.tree.find(reply.moved.identity)
        if reply.attr is None or reply.attr.identity != reply.moved.identity:
            self.cache.keep_entry(*there, reply.moved.identity, change.token(there))
        self.cache.keep_attr(
            reply.moved.identity, self._own(reply.moved), change.token(reply.moved.identity), target.identity
        )
        if flags == RENAME_EXCHANGE:
            self._exchanged(source, name, moving, target, new_name, standing)
            return
        if moving is not None and moving is standing and source.children.get(name) is moving:
            return  # two names of one file: rename(2) does nothing, both stay
        if reply.attr is not None:
            self._removed(target, new_name, reply.attr, reply.pin, change)
        if moving is None:
            self.tree.unlink(source, name)
            self.tree.unlink(target, new_name)
            return
        if source.children.get(name) is moving:
            self.tree.unlink(source, name)
        self.tree.link(target, new_name, moving)
        self.cache.keep_entry(*here, None, change.token(here))

    def _exchanged(
        self,
        source: Node,
        name: bytes,
        moving: Node | None,
        target: Node,
        new_name: bytes,
        standing: Node | None,
    ) -> None:
        if moving is standing:
            return  # two names of one file; or the answer to a repeated request, which we have noted already
        for directory, step, node in ((target, new_name, moving), (source, name, standing)):
            if node is None:
                self.tree.unlink(directory, step)
            else:
                self.tree.link(directory, step, node)

    def _directory(self, node: int) -> Node:
        self.may_write()
        return self.tree.get(node)

"""Operations on what a file is, not on what is in it: attributes, permissions, link targets, xattrs."""

from __future__ import annotations

import errno
from stat import S_IFREG

from msgspec import structs

from ..errors import os_error
from ..protocol.messages import (
    LEASE_SELF,
    Access,
    Attr,
    AttrReply,
    Done,
    GetAttr,
    GetXattr,
    LinkReply,
    ListXattr,
    NamesReply,
    ReadLink,
    Ref,
    RemoveXattr,
    SetAttr,
    SetXattr,
    StatFs,
    StatFsReply,
    SyncFs,
    ValueReply,
)
from .api import Caller
from .core import Core, log
from .profiler import measured
from .tree import Node

#: Extended attributes of this name are ours: they never reach the workspace.
RESERVED_XATTR = b"user.wsfuse."
#: The one that the engine answers: what may be done with the file, and which rules say so.
WHY_XATTR = b"user.wsfuse.why"
#: Extended attributes that a file has listed if it has them at all.
_LISTED = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")


class AttributeOperations(Core):
    """getattr and its relatives."""

    @measured
    async def getattr(self, caller: Caller, node: int, handle: int = 0) -> tuple[Attr, float]:
        """Attributes, and the seconds that the kernel may believe them."""
        subject = self.tree.get(node)
        if handle and self.file(handle).local:
            handle = 0
        try:
            return await self._attributes(subject, handle, caller.key)
        except OSError as error:
            # Opened without the server's knowing, and removed by somebody else since.
            removed = self._removed_while_open(subject) if error.errno == errno.ESTALE else None
            if removed is None:
                raise
            return removed, 0.0

    def _removed_while_open(self, node: Node) -> Attr | None:
        for file in node.handles.values():
            if file.local and file.attr is not None:
                return structs.replace(file.attr, nlink=0)
        return None

    async def _attributes(self, subject: Node, handle: int, key: int) -> tuple[Attr, float]:
        known = None if subject.gone else self.cache.attr(subject.identity)
        if known is not None:
            self.cache.hits += 1
            self.stats["getattr"].hits += 1
            subject.told = (known[0].size, known[0].mtime, known[0].ctime)
            return known
        self.cache.misses += 1
        since = self.cache.version
        # By a handle, if there is one: the server then has no name to look up.
        handle = handle or subject.reach()
        ref = Ref(b"", None, handle) if handle else self.ref(subject)
        reply = await self.ask(AttrReply, GetAttr(0, ref), key, ref=subject)
        if reply.lease & LEASE_SELF:
            self.cache.grant(reply.attr.identity, since)
        return self.told(subject, reply.attr, since)

    @measured
    async def setattr(
        self, caller: Caller, node: int, *, handle: int = 0, mode: int | None = None, uid: int | None = None,
        gid: int | None = None, size: int | None = None, atime: int | None = None, mtime: int | None = None,
        kill_priv: bool = False,
    ) -> tuple[Attr, float]:  # fmt: skip
        """Set what is not None; times in nanoseconds, -1 for the server's present time."""
        self.may_write()
        subject = self.tree.get(node)
        if handle and self.file(handle).local:
            handle = 0
        if not self.options.raw and (uid is not None or gid is not None):
            if uid not in (None, self.options.uid) or gid not in (None, self.options.gid):
                raise os_error(errno.EPERM, "owners are not passed to the server on this mount")
            uid = gid = None
            kill_priv = kill_priv or subject.type == S_IFREG  # as chown(2) does, whoever calls it
        if mode is uid is gid is size is atime is mtime is None and not kill_priv:
            # The kernel asks for nothing when it would clear privileges: chown(2) with -1 and -1 does that.
            if subject.type != S_IFREG:
                return await self._attributes(subject, handle, caller.key)
            kill_priv = True
        ref = Ref(b"", None, handle) if handle else self.ref(subject)
        identity = subject.identity
        with self.cache.changing(identity) as change:
            if size is not None:
                subject.pages = None
            request = SetAttr(0, ref, mode, uid, gid, size, atime, mtime, kill_priv)
            reply = await self.ask(AttrReply, request, caller.key, ref=subject)
        return self.told(subject, reply.attr, change.token(identity))

    @measured
    async def access(self, caller: Caller, node: int, mask: int) -> None:
        """access(2) as the engine sees it; ``EACCES`` if not."""
        if self.read_only and mask & 2:
            raise os_error(errno.EROFS, "mounted read-only")
        subject = self.tree.get(node)
        record = self.cache.record(subject.identity)
        if record is not None and record.cover and not self.options.raw:
            if record.denied & mask:
                raise os_error(errno.EACCES)
            if not mask & ~record.allowed:
                self.stats["access"].hits += 1
                return
        since = self.cache.version
        try:
            await self.ask(Done, Access(0, self.ref(subject), mask), caller.key, ref=subject)
        except OSError as error:
            if error.errno == errno.EACCES and mask in (1, 2, 4):
                self._remember(subject, since, 0, mask)
            raise
        self._remember(subject, since, mask, 0)

    def _remember(self, node: Node, since: int, allowed: int, denied: int) -> None:
        record = self.cache.record(node.identity)
        if record is not None and self.cache.fresh(node.identity, since):
            record.allowed |= allowed
            record.denied |= denied

    @measured
    async def readlink(self, caller: Caller, node: int) -> bytes:
        """The target of a symbolic link, as stored. Under ``links=contain``: ``EPERM`` if it leaves the mount."""
        subject = self.tree.get(node)
        target = self.cache.link(subject.identity)
        if target is None:
            self.cache.misses += 1
            reply = await self.ask(LinkReply, ReadLink(0, self.ref(subject)), caller.key, ref=subject)
            target = reply.target
            self.cache.keep_link(subject.identity, target)
        else:
            self.cache.hits += 1
            self.stats["readlink"].hits += 1
        if self.options.links == "contain":
            self._contain(subject, target)
        return target

    def _contain(self, link: Node, target: bytes) -> None:
        # ".." is allowed at the start only: behind a name it would go up from wherever that name leads,
        # which may be another link of the same server.
        parts = [part for part in target.split(b"/") if part not in (b"", b".")]
        up = 0
        while up < len(parts) and parts[up] == b"..":
            up += 1
        if target.startswith(b"/") or b".." in parts[up:] or up > min(self.tree.depths(link), default=0):
            log.warning("symbolic link to %r refused: it leaves the mount", target[:256])
            raise os_error(errno.EPERM, "the link leads outside the mount")

    @measured
    async def statfs(self, caller: Caller, node: int) -> StatFsReply:
        subject = self.tree.get(node)
        return await self.ask(StatFsReply, StatFs(0, self.ref(subject)), caller.key, ref=subject)

    @measured
    async def syncfs(self, caller: Caller) -> None:
        """Return when everything written is on the server's disk."""
        await self.ask(Done, SyncFs(0), caller.key)

    # Of extended attributes only that there are none is remembered.

    def _plain(self, node: Node) -> bool:
        record = None if node.gone else self.cache.record(node.identity)
        return record is not None and record.plain and record.cover != 0

    @measured
    async def getxattr(self, caller: Caller, node: int, name: bytes) -> bytes:
        subject = self.tree.get(node)
        if name.startswith(RESERVED_XATTR) and name != WHY_XATTR:
            raise os_error(errno.ENODATA)
        if name.startswith(_LISTED) and name != WHY_XATTR and self._plain(subject):
            self.stats["getxattr"].hits += 1
            raise os_error(errno.ENODATA)
        reply = await self.ask(ValueReply, GetXattr(0, self.ref(subject), name), caller.key, ref=subject)
        return reply.value

    @measured
    async def setxattr(self, caller: Caller, node: int, name: bytes, value: bytes, flags: int) -> None:
        """*flags*: ``XATTR_CREATE`` (1), ``XATTR_REPLACE`` (2)."""
        subject = self._xattr_owner(node, name)
        with self.cache.changing(subject.identity):
            request = SetXattr(0, self.ref(subject), name, value, flags)
            await self.ask(Done, request, caller.key, ref=subject)

    @measured
    async def listxattr(self, caller: Caller, node: int) -> list[bytes]:
        subject = self.tree.get(node)
        if self._plain(subject):
            self.stats["listxattr"].hits += 1
            return []
        reply = await self.ask(NamesReply, ListXattr(0, self.ref(subject)), caller.key, ref=subject)
        return [name for name in reply.names if not name.startswith(RESERVED_XATTR)]

    @measured
    async def removexattr(self, caller: Caller, node: int, name: bytes) -> None:
        subject = self._xattr_owner(node, name)
        with self.cache.changing(subject.identity):
            await self.ask(Done, RemoveXattr(0, self.ref(subject), name), caller.key, ref=subject)

    def _xattr_owner(self, node: int, name: bytes) -> Node:
        self.may_write()
        if name.startswith(RESERVED_XATTR):
            raise os_error(errno.EPERM, "attributes named user.wsfuse are reserved")
        return self.tree.get(node)

"""Operations on open files: open, write, and what becomes of their pages in the kernel."""

from __future__ import annotations

import errno
from stat import S_IFREG
from typing import Final

from ..errors import os_error
from ..protocol.messages import (
    Attr,
    CopyRange,
    CountReply,
    Create,
    Done,
    Fallocate,
    Fsync,
    Identity,
    Open,
    OpenReply,
    Seek,
    TmpFile,
    Write,
)
from .api import FMODE_EXEC, O_ACCMODE, O_APPEND, O_CREAT, O_EXCL, O_TRUNC, Caller, Entry, Opened
from .core import Core
from .handles import OpenFile
from .prefetch import SMALL
from .profiler import measured
from .tree import Node

#: What a server need know of open(2)'s flags. The kernel does O_SYNC by asking for fsync, and O_DIRECT would ask
#: for an alignment that only the server's disk knows.
_SENT: Final = O_ACCMODE | O_APPEND | O_TRUNC | O_CREAT | O_EXCL | FMODE_EXEC

#: One copy_file_range is shorter than asked rather than busy for minutes: it could not be interrupted.
_LONGEST_COPY: Final = 1 << 30


class FileOperations(Core):
    """open, create, write and their relatives."""

    @measured
    async def open(self, caller: Caller, node: int, flags: int, kill_priv: bool = False) -> Opened:
        """*flags* with Linux numbers. ``O_TRUNC`` truncates here and now."""
        subject = self.tree.get(node)
        if flags & (O_ACCMODE | O_TRUNC):
            self.may_write()
        reads = not flags & (O_ACCMODE | O_TRUNC | FMODE_EXEC)
        if reads and self.options.cache:
            here = await self._open_here(subject, flags)
            if here is not None:
                self.stats["open"].hits += 1
                return here
        inline = self._inline(subject) if reads else 0
        request = Open(0, self.ref(subject), flags & _SENT & ~(O_CREAT | O_EXCL), kill_priv, 0, inline)
        if flags & O_TRUNC:
            subject.pages = None
            with self.cache.changing(subject.identity) as change:
                reply = await self.ask(OpenReply, request, caller.key, ref=subject)
            since = change.token(subject.identity)
        else:
            since = self.cache.version
            reply, data = await self.ask_data(OpenReply, request, caller.key, ref=subject)
        file = self.opened(reply.handle, subject, flags & _SENT)
        # The kernel is not told these attributes: what it believes (`told`) stays what it was.
        parent = self.parent_of(subject)
        self._own(reply.attr)
        if reads:
            self._opened_to_read(subject, reply.attr, data, since, parent, inline)
        else:
            self.keep_attr(subject, reply.attr, since, parent)
        version = self.state(subject, reply.attr)
        keep = version is not None and subject.pages == version
        subject.pages = version
        return self._as_opened(file, keep)

    def _inline(self, node: Node) -> int:
        """The bytes that an opening of *node* had better bring with it."""
        record = self.cache.record(node.identity)
        if record is None or not record.cover or not self.fetcher.wants("inline"):
            return 0
        size = record.attr.size
        return size if 0 < size <= SMALL and node.type == S_IFREG else 0

    def _opened_to_read(
        self, node: Node, attr: Attr, data: bytes, since: int, parent: Identity | None, inline: int
    ) -> None:
        if inline:
            tally = self.fetcher.inline
            tally.issued += 1
            tally.hit() if data else tally.miss()
        if node.identity == attr.identity and not node.gone:
            self.pages.renew(node.identity, self.version(attr), self.cache.cover(attr, parent))
            self.fetcher.keep_content(node.identity, attr, data, since, parent, 0, False)
            self._tell_siblings(node, parent, False)

    def _tell_siblings(self, node: Node, parent: Identity | None, hit: bool, late: bool = False) -> None:
        record = self.cache.record(node.identity)
        if parent is None or record is None or record.attr.size > SMALL or node.type != S_IFREG:
            return
        for above, name in node.names:
            if above.identity == parent:
                self.fetcher.opened(parent, name, hit, late)
                return

    async def _open_here(self, node: Node, flags: int) -> Opened | None:
        """Open *node* without asking the server, which let us open it before and has told of no change since."""
        if node.gone:
            return None
        late = await self.fetcher.fetched(node.identity)
        record = self.cache.record(node.identity)
        if record is None or not record.cover or not record.readable:
            return None
        file = self.opened_here(node, flags & _SENT)
        attr = record.attr
        block = self.pages.block(node.identity, 0) if attr.size <= SMALL else None
        file.attr = attr
        if block is not None and len(block) == attr.size:
            file.content = block
        version = (attr.size, attr.mtime, attr.ctime)
        keep = node.pages == version
        node.pages = version
        self._tell_siblings(node, self.parent_of(node), True, late)
        return self._as_opened(file, keep)

    def _as_opened(self, file: OpenFile, keep: bool) -> Opened:
        direct = not self.options.cache
        return Opened(file.handle, keep and not direct, direct, direct and not file.flags & O_APPEND)

    @measured
    async def create(
        self, caller: Caller, parent: int, name: bytes, mode: int, flags: int, kill_priv: bool = False
    ) -> tuple[Entry, Opened]:
        """Open *name*, made if it does not exist (if it must not: ``O_EXCL``)."""
        self.may_write()
        directory = self.tree.get(parent)
        slot = (directory.identity, name)
        sent = flags & _SENT | O_CREAT
        with self.cache.changing(directory.identity, slot) as change:
            request = Create(0, self.ref(directory), name, mode, sent, *self.owner(caller), kill_priv)
            try:
                reply = await self.ask(OpenReply, request, caller.key, parent=directory)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                # Somebody made it a symbolic link since the kernel looked: it must look again, and follow.
                raise os_error(errno.ESTALE, "the name is a symbolic link now") from error
        entry = self.entry(directory, name, reply.attr, change.token(slot), change.token(reply.attr.identity))
        return entry, self._first_opened(entry, reply.handle, flags)

    @measured
    async def tmpfile(self, caller: Caller, parent: int, mode: int, flags: int) -> tuple[Entry, Opened]:
        """An open file without a name in *parent*'s file system; ``link`` may give it one."""
        self.may_write()
        directory = self.tree.get(parent)
        since = self.cache.version
        request = TmpFile(0, self.ref(directory), mode, flags & _SENT, *self.owner(caller))
        reply = await self.ask(OpenReply, request, caller.key, parent=directory)
        node = self.tree.intern(reply.attr)
        self._look(node)
        attr, ttl = self.told(node, reply.attr, since)
        entry = Entry(node.id, 0, attr, 0.0, ttl)
        return entry, self._first_opened(entry, reply.handle, flags)

    def _first_opened(self, entry: Entry, handle: int, flags: int) -> Opened:
        node = self.tree.get(entry.node)
        node.pages = None
        return self._as_opened(self.opened(handle, node, flags & _SENT), False)

    def release(self, node: int, handle: int, lock_owner: int = 0, flock_unlock: bool = False) -> None:
        """The last user of *handle* closed it. With *flock_unlock* its ``flock`` goes with it."""
        self.closed(handle)

    # --- data ------------------------------------------------------------------------------------------

    @measured
    async def write(
        self, caller: Caller, node: int, handle: int, offset: int, data: bytes, kill_priv: bool = False
    ) -> int:
        """Bytes written. The server has them: they survive this process and, if it is killed, its own."""
        file = self.file(handle)
        subject = file.node
        self._written(subject)
        with self.cache.changing(subject.identity):
            reply, _ = await self.call(Write(0, handle, offset, kill_priv), data, key=caller.key)
        self._written(subject)
        if type(reply) is not CountReply:
            raise os_error(errno.EIO, f"the server answered a write with {reply}")
        self.stats["write"].bytes += reply.count
        return reply.count

    @staticmethod
    def _written(node: Node) -> None:
        # The pages in the kernel are newer than any version that we were told of.
        node.told = None
        node.pages = None

    @measured
    async def fsync(self, caller: Caller, node: int, handle: int, data_only: bool) -> None:
        await self.real(self.file(handle))
        await self.ask(Done, Fsync(0, handle, data_only), caller.key)

    @measured
    async def fallocate(
        self, caller: Caller, node: int, handle: int, mode: int, offset: int, length: int
    ) -> None:
        """*mode*: ``FALLOC_FL_*``."""
        subject = self.file(handle).node
        with self.cache.changing(subject.identity):
            await self.ask(Done, Fallocate(0, handle, mode, offset, length), caller.key)
        self._written(subject)

    @measured
    async def lseek(self, caller: Caller, node: int, handle: int, offset: int, whence: int) -> int:
        """``SEEK_DATA`` or ``SEEK_HOLE``; the kernel does the others itself."""
        await self.real(self.file(handle))
        return (await self.ask(CountReply, Seek(0, handle, offset, whence), caller.key)).count

    @measured
    async def copy_file_range(
        self, caller: Caller, node: int, handle: int, offset: int,
        node_out: int, handle_out: int, offset_out: int, length: int,
    ) -> int:  # fmt: skip
        """Copy on the server; may copy less than *length*, 0 only at the end of the source."""
        source, target = (await self.real(self.file(handle))).node, self.file(handle_out).node
        request = CopyRange(0, handle, offset, handle_out, offset_out, min(length, _LONGEST_COPY))
        with self.cache.changing(target.identity):
            count = (await self.ask(CountReply, request, caller.key)).count
        self.cache.was_read(source.identity)
        self._written(target)
        self.stats["copy_file_range"].bytes += count
        return count

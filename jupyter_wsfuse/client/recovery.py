"""What others changed, and what becomes of open files when the server was replaced under them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Iterator
from stat import S_IFDIR, S_ISDIR
from typing import Any

from ..errors import MountError, os_error
from ..protocol.messages import (
    LEASES,
    Attr,
    AttrReply,
    Changed,
    GetAttr,
    Identity,
    InvalidateAll,
    Lock,
    OpenReply,
    Ref,
    Released,
    Reopen,
    Struct,
    Welcome,
)
from .api import O_CREAT, O_EXCL, O_TRUNC, ROOT
from .core import Core, log
from .handles import OpenFile, apply_lock, locks_of

_AT_OPEN_ONLY = O_CREAT | O_EXCL | O_TRUNC


class RecoveryOperations(Core):
    """Notifications, recovery after a lost engine, restart of this process."""

    _unrecovered: dict[int, str]  # handle -> "recovered" or "lost": what is left to do after an interruption

    # --- what others changed ---------------------------------------------------------------------------

    def notified(self, message: Struct) -> None:
        """Another session, or somebody on the server, changed something."""
        if isinstance(message, InvalidateAll):
            log.info("forgetting everything: %s", message.reason)
            self.forget_all()
        elif isinstance(message, Released):
            for identity in message.identities:
                self._released(identity)
        elif isinstance(message, Changed):
            for change in message.changes:
                if change.name is None:
                    self._file_changed(change.identity)
                else:
                    self._entry_changed(change.identity, change.name)

    def _file_changed(self, identity: Identity) -> None:
        self.cache.drop_attr(identity)
        node = self.tree.find(identity)
        if node is not None:
            node.told = None
            node.pages = None
            self.invalidator.inval_node(node.id)

    def _entry_changed(self, parent: Identity, name: bytes) -> None:
        """*name* in the directory *parent* is another now; what it was may have been changed before that."""
        known = self.cache.known(parent)
        before = None if known is None else known.names.get(name)
        directory = self.tree.find(parent)
        child = None if directory is None else directory.children.get(name)
        for identity in {before, None if child is None else child.identity}:
            if identity is not None:
                self._file_changed(identity)
        self.cache.drop_attr(parent)
        self.cache.drop_entry(parent, name)
        if directory is not None:
            self.invalidator.inval_entry(directory.id, name)
            self.invalidator.inval_node(directory.id)

    def _released(self, identity: Identity) -> None:
        """What was believed because of the lease on *identity* is not believed any more, by nobody."""
        self.cache.drop_directory(identity)
        self._file_changed(identity)
        node = self.tree.find(identity)
        if node is None or node.type != S_IFDIR:
            return
        for name, child in node.children.items():
            if child.type != S_IFDIR:
                self._file_changed(child.identity)
            self.invalidator.inval_entry(node.id, name)
        if node is self.tree.root:
            for name in self.tree.take_missing():
                self.invalidator.inval_entry(node.id, name)
        for parent, name in node.names:  # and with it the names that are not in it
            self.invalidator.inval_entry(parent.id, name)

    def state_changed(self, state: str) -> None:
        """The connection is in another state now: without one, nobody tells us of changes."""
        self.fetcher.usable = state == "connected"
        if state in ("reconnecting", "parked"):
            self.cache.leases.clear()
            self.forget_all()

    def forget_all(self) -> None:
        """Believe nothing that was known before, and let the kernel believe none of it."""
        self.cache.clear()
        self.pages.unsure_all()
        self.fetcher.forget()
        for node in self.tree.nodes.values():
            node.told = None
            node.pages = None
            self.invalidator.inval_node(node.id)
            for name in node.children:
                self.invalidator.inval_entry(node.id, name)
        for name in self.tree.take_missing():
            self.invalidator.inval_entry(ROOT, name)

    # --- the server ------------------------------------------------------------------------------------

    def live_handles(self) -> list[int]:
        """What the server must keep open for us."""
        handles = [
            handle
            for handle, file in self.files.items()
            if file.failure is None and (not file.local or file.opening is not None)
        ]
        return handles + [node.pin for node in self.tree.nodes.values() if node.pin]

    async def recover(self, welcome: Welcome, kind: str) -> None:
        """A connection was admitted; called before any other request goes out.

        *kind*: "new", "resumed" (nothing was lost), "recovered" (another engine took the session over: files are
        opened again, with their locks) or "lost" (another session: what was locked cannot be used any more).
        Raises for a new mount that cannot be: :class:`MountError`, or :class:`OSError` about the subdirectory.
        """
        self.read_only = self.options.read_only or welcome.read_only
        self.cache.leases.offered = LEASES in welcome.features
        if kind == "new":
            await self._begin(welcome)
            return
        if kind != "resumed":
            self.cache.leases.clear()
            self._unrecovered = {handle: kind for handle, file in self.files.items() if not file.local}
            for node in self.tree.nodes.values():
                if node.pin:
                    node.pin = 0
                    self.tree.record("pin", node.id, 0)
            self.forget_all()
        if self._unrecovered:
            await asyncio.gather(*[self._take_up(handle, how) for handle, how in self._unrecovered.items()])

    async def _begin(self, welcome: Welcome) -> None:
        if self.options.raw and not welcome.raw_owner:
            raise MountError("the server does not let owners through: mount with --owner squash")
        root: Attr = welcome.root
        if self.tree.prefix:
            reply, _ = await self.connection.call(GetAttr(0, Ref(self.tree.prefix)), recovery=True)
            if type(reply) is not AttrReply:
                raise os_error(errno.EIO, f"the server answered with {reply}")
            root = reply.attr
        if not S_ISDIR(root.mode):
            raise os_error(errno.ENOTDIR, "what is to be mounted is not a directory")
        self.tree.root_is(root.identity)

    async def _take_up(self, handle: int, kind: str) -> None:
        file = self.files.get(handle)
        if file is not None and file.failure is None:
            failure = await self._reopen(file, kind)
            if failure is not None:
                log.warning(
                    "open file %s of node %d is lost: %s", handle & 0xFFFF, file.node.id, failure.strerror
                )
                self._fail(file, failure)
        del self._unrecovered[handle]

    async def _reopen(self, file: OpenFile, kind: str) -> OSError | None:
        node = file.node
        locks = list(locks_of(node.locks, file.handle))
        if locks and kind == "lost":
            return os_error(errno.EIO, "locks on the file were lost with the server's session")
        path = self.tree.path_of(node)
        if path is None:
            return os_error(
                errno.EIO, "the file was deleted while open, and lost when the server was restarted"
            )
        ref = Ref(path, None if node is self.tree.root else node.identity)
        request = Reopen(0, ref, file.handle, file.flags & ~_AT_OPEN_ONLY, file.directory, locks)
        try:
            reply, _ = await self.connection.call(request, recovery=True)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return os_error(errno.ESTALE, "the file is not there any more since the server was restarted")
            if error.errno == errno.ENOLCK:
                return os_error(errno.EIO, "locks on the file were lost when the server was restarted")
            return os_error(
                errno.EIO, f"the restarted server could not open the file again: {error.strerror}"
            )
        if type(reply) is not OpenReply:
            return os_error(errno.EIO, f"the server answered with {reply}")
        return None

    def _fail(self, file: OpenFile, failure: OSError) -> None:
        file.failure = failure
        for key in [key for key, held in file.node.locks.items() if held.handle == file.handle]:
            del file.node.locks[key]
        self.tree.record("fail", file.handle, failure.errno, str(failure.strerror))

    # --- this process ----------------------------------------------------------------------------------

    def restore(self, records: Iterable[Iterable[Any]]) -> None:
        """Be what a predecessor was, by its records. Before anything else is done."""
        recorder, self.tree.recorder = self.tree.recorder, None
        on_drop, self.tree.on_drop = self.tree.on_drop, None
        try:
            for record in records:
                kind, *fields = record
                if not self.tree.apply(kind, tuple(fields)):
                    self._apply(kind, fields)
        finally:
            self.tree.recorder = recorder
            self.tree.on_drop = on_drop

    def _apply(self, kind: str, fields: list[Any]) -> None:
        if kind == "open":
            handle, id, flags, directory, *rest = fields
            node = self.tree.nodes.get(id)
            if node is not None:
                file = self.files[handle] = node.handles[handle] = OpenFile(handle, node, flags, directory)
                file.local = bool(rest and rest[0])
            return
        if kind == "pin":
            node = self.tree.nodes.get(fields[0])
            if node is not None:
                node.pin = fields[1]
            return
        opened = self.files.get(fields[0]) if fields else None
        if opened is None:
            return
        file = opened
        if kind == "close":
            self.shut(file)
        elif kind == "real":
            file.local = False
        elif kind == "lock":
            owner, start, end, type, pid, flock = fields[1:]
            apply_lock(file.node.locks, file.handle, Lock(owner, start, end, type, pid, flock))
        elif kind == "fail":
            self._fail(file, os_error(fields[1], fields[2]))

    def snapshot(self) -> Iterator[tuple[Any, ...]]:
        """Records that make what is now, for a log that has grown too long."""
        yield from self.tree.snapshot()
        for node in self.tree.nodes.values():
            if node.pin:
                yield ("pin", node.id, node.pin)
        for file in self.files.values():
            yield ("open", file.handle, file.node.id, file.flags, file.directory, file.local)
            for lock in locks_of(file.node.locks, file.handle):
                yield ("lock", file.handle, lock.owner, lock.start, lock.end, lock.type, lock.pid, lock.flock)
            if file.failure is not None:
                yield ("fail", file.handle, file.failure.errno, str(file.failure.strerror))

"""Listing directories: pages from the server, pieces to the kernel."""

from __future__ import annotations

from collections.abc import Iterable

from ..protocol.messages import DirEntry, DirReply, Done, Fsync, OpenDir, OpenReply, ReadDir
from .api import Caller, DirItem, Entry, Opened
from .core import Core
from .handles import DirPage
from .profiler import measured
from .tree import Node

_DOTS = (b".", b"..")


class DirectoryOperations(Core):
    """opendir, readdir and their relatives."""

    @measured
    async def opendir(self, caller: Caller, node: int) -> Opened:
        directory = self.tree.get(node)
        since = self.cache.version
        reply = await self.ask(OpenReply, OpenDir(0, self.ref(directory)), caller.key, ref=directory)
        self.opened(reply.handle, directory, 0, directory=True)
        self.cache.keep_attr(directory.identity, self._own(reply.attr), since)
        return Opened(reply.handle, False, False, False)

    @measured
    async def readdir(
        self, caller: Caller, node: int, handle: int, cookie: int, max_items: int, plus: bool
    ) -> list[DirItem]:
        """At most *max_items* entries after *cookie* (0: from the start, read anew); none at the end.

        With *plus*, entries whose attributes are still known to be true are looked up as well; what the kernel
        had no room for must be handed to :meth:`unreturned`.
        """
        file = self.file(handle)
        page = file.page
        start = page.find(cookie) if page is not None and cookie else None
        if page is None or start is None:
            since = self.cache.version
            request = ReadDir(0, handle, cookie, self.options.page_entries, plus)
            reply = await self.ask(DirReply, request, caller.key)
            page = file.page = DirPage(cookie, reply.entries, reply.end or not reply.entries)
            start = 0
            self.cache.was_read(file.node.identity)
            if plus:
                self._prime(file.node, page.entries, since)
        else:
            self.stats["readdir"].hits += 1
        taken = page.entries[start : start + max_items]
        page.position = start + len(taken)
        directory = file.node
        return [
            DirItem(
                entry.name,
                entry.cookie,
                entry.ino,
                entry.type,
                self._listed(directory, entry) if plus and entry.attr is not None else None,
            )
            for entry in taken
        ]

    def _prime(self, directory: Node, entries: list[DirEntry], since: int) -> None:
        for entry in entries:
            attr = entry.attr
            if attr is not None and entry.name not in _DOTS:
                identity = attr.identity
                self.cache.keep_attr(identity, self._own(attr), since)
                self.cache.keep_entry(directory.id, entry.name, identity, since)

    def _listed(self, directory: Node, entry: DirEntry) -> Entry | None:
        # Only what the cache still vouches for: the page may have waited here while a file of it was written,
        # and the kernel would take the old size for the new one.
        if entry.name in _DOTS:
            return None
        found = self.cached_entry(directory, entry.name)
        return found if found is not None and found.node else None

    def unreturned(self, items: Iterable[DirItem]) -> None:
        """The kernel did not get these: their lookups do not count."""
        for item in items:
            if item.entry is not None:
                self.tree.forget(item.entry.node, 1)

    def releasedir(self, node: int, handle: int) -> None:
        self.closed(handle)

    @measured
    async def fsyncdir(self, caller: Caller, node: int, handle: int, data_only: bool) -> None:
        self.file(handle)
        await self.ask(Done, Fsync(0, handle, data_only), caller.key)

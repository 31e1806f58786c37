"""Listing directories: whole or in pages from the server, in pieces to the kernel."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from ..protocol.messages import (
    ENTRY_LEASED,
    DirEntry,
    DirReply,
    Done,
    Fsync,
    ListTree,
    OpenDir,
    OpenReply,
    ReadDir,
    Ref,
    TreeReply,
)  # fmt: skip
from .api import Caller, DirItem, Entry, Opened
from .core import Core
from .directory import Directory
from .fetcher import LARGEST
from .handles import DirPage, OpenFile
from .profiler import measured
from .tree import Node

_DOTS = (b".", b"..")

#: Listings under way that are remembered, and directories that are held open at the server because they are too large.
_LISTINGS: Final = 64
_STREAMS: Final = 16


class DirectoryOperations(Core):
    """opendir, readdir and their relatives.

    A directory that fits into one answer is listed without being opened at the server. The kernel may leave opening
    out altogether, and then gives 0 for the handle.
    """

    _pages: OrderedDict[int, DirPage]
    _streams: OrderedDict[int, int]  # node -> handle

    @measured
    async def opendir(self, caller: Caller, node: int) -> Opened:
        directory = self.tree.get(node)
        if self._whole:
            return Opened(self.opened_here(directory, 0, directory=True).handle, False, False, False)
        return Opened(await self._opendir(caller, directory), False, False, False)

    @property
    def lists_unopened(self) -> bool:
        """Whether a directory may be listed that was not opened."""
        return self._whole

    @property
    def _whole(self) -> bool:
        return self.options.cache and "subtree" in self.options.prefetch

    async def _opendir(self, caller: Caller, directory: Node) -> int:
        since = self.cache.version
        reply = await self.ask(OpenReply, OpenDir(0, self.ref(directory)), caller.key, ref=directory)
        self.opened(reply.handle, directory, 0, directory=True)
        self.keep_attr(directory, self._own(reply.attr), since)
        return reply.handle

    @measured
    async def readdir(
        self, caller: Caller, node: int, handle: int, cookie: int, max_items: int, plus: bool
    ) -> list[DirItem]:
        """At most *max_items* entries after *cookie* (0: from the start, read anew); none at the end.

        With *plus*, entries whose attributes are still known to be true are looked up as well; what the kernel
        had no room for must be handed to :meth:`unreturned`.
        """
        if plus:
            await self.keep_within()
        file = self.file(handle) if handle else None
        directory = self.tree.get(node)
        if self._whole:
            page, start = await self._whole_page(caller, directory, cookie, plus)
        else:
            assert file is not None
            page, start = await self._page(caller, file, cookie, plus)
        taken = page.entries[start : start + max_items]
        page.position = start + len(taken)
        return [
            DirItem(
                entry.name,
                entry.cookie,
                entry.ino or self._dot(directory, entry.name),
                entry.type,
                self._listed(directory, entry) if plus else None,
            )
            for entry in taken
        ]

    @staticmethod
    def _dot(directory: Node, name: bytes) -> int:
        if name == b".." and directory.names:
            directory = next(iter(directory.names))[0]
        return directory.identity.ino

    # --- at once ---------------------------------------------------------------------------------------

    async def _whole_page(
        self, caller: Caller, directory: Node, cookie: int, plus: bool
    ) -> tuple[DirPage, int]:
        if directory.gone:
            return DirPage(cookie, [], True), 0
        page = self._pages.get(directory.id)
        if cookie and page is not None and (start := page.find(cookie)) is not None:
            self.stats["readdir"].hits += 1
            return page, start
        known = await self._listing(caller, directory)
        if known is not None and known.order is not None:
            page = DirPage(0, known.order, True)
            if cookie:
                place = known.after(cookie)
                if place is None:
                    return await self._stream(caller, directory, cookie, plus)
                page.position = place
            self._pages[directory.id] = page
            self._pages.move_to_end(directory.id)
            if len(self._pages) > _LISTINGS:
                self._pages.popitem(last=False)
            return page, page.position
        return await self._stream(caller, directory, cookie, plus)

    async def _listing(self, caller: Caller, directory: Node) -> Directory | None:
        """All entries of *directory*; None if they are too many."""
        identity, fetcher = directory.identity, self.fetcher
        known = self.cache.directory(identity)
        if known is None or known.order is None:
            await fetcher.listed(identity)
            known = self.cache.directory(identity)
        if known is not None and known.order is not None:
            self.stats["readdir"].hits += 1
            fetcher.entered(known)
            return known
        if fetcher.too_large(identity):
            return None
        path = self.tree.path_of(directory)
        if path is not None:
            if self.cache.leases.offered:  # the first of those below it come at the same time
                fetcher.list_soon(Ref(path, identity), identity)
            fetcher.arrived(path)
        since = self.cache.version
        request = ListTree(0, [self.ref(directory)], LARGEST, 0)
        reply = await self.ask(TreeReply, request, caller.key, refs=directory)
        fetcher.keep_tree(reply, since, [identity])
        for found in reply.directories:
            if found.attr.identity == identity and not found.complete:
                fetcher.refused(identity)
                return None
        if path is not None:
            fetcher.arrived(path)
        known = self.cache.directory(identity)
        if known is None or known.order is None:
            # It changed meanwhile: what came is as good a listing as any, but not to be remembered.
            known = Directory(b"", 0)
            for found in reply.directories:
                if found.attr.identity == identity:
                    known.fill(found.entries, 0.0)
        return known

    async def _stream(self, caller: Caller, directory: Node, cookie: int, plus: bool) -> tuple[DirPage, int]:
        """A page of a directory that does not fit into one answer."""
        handle = self._streams.get(directory.id)
        file = None if handle is None else self.files.get(handle)
        if file is None or file.failure is not None or file.node is not directory:
            file = self.files[await self._opendir(caller, directory)]
            self._streams[directory.id] = file.handle
        self._streams.move_to_end(directory.id)
        while len(self._streams) > _STREAMS:
            self.closed(self._streams.popitem(last=False)[1])
        page, start = await self._page(caller, file, cookie, plus)
        if page.end and start >= len(page.entries) and self._streams.get(directory.id) == file.handle:
            del self._streams[directory.id]
            self.closed(file.handle)
        return page, start

    # --- page by page ----------------------------------------------------------------------------------

    async def _page(self, caller: Caller, file: OpenFile, cookie: int, plus: bool) -> tuple[DirPage, int]:
        page = file.page
        start = page.find(cookie) if page is not None and cookie else None
        if page is not None and start is not None:
            self.stats["readdir"].hits += 1
            return page, start
        since = self.cache.version
        request = ReadDir(0, file.handle, cookie, self.options.page_entries, plus)
        reply = await self.ask(DirReply, request, caller.key)
        if reply.lease:
            self.cache.grant(file.node.identity, since)
        page = file.page = DirPage(cookie, reply.entries, reply.end or not reply.entries)
        self.cache.was_read(file.node.identity)
        if plus:
            self._prime(file.node, page.entries, since)
        return page, 0

    def _prime(self, directory: Node, entries: list[DirEntry], since: int) -> None:
        for entry in entries:
            attr = entry.attr
            if attr is not None and entry.name not in _DOTS:
                identity = attr.identity
                if entry.flags & ENTRY_LEASED:
                    self.cache.grant(identity, since)
                self.cache.keep_entry(directory.identity, entry.name, identity, since)
                self.cache.keep_attr(identity, self._own(attr), since, directory.identity)

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
        """By a handle of its own, if the kernel has none."""
        if not handle:
            directory = self.tree.get(node)
            handle = await self._opendir(caller._replace(key=0), directory)
            try:
                await self.ask(Done, Fsync(0, handle, data_only), caller.key)
            finally:
                self.closed(handle)
            return
        await self.real(self.file(handle))
        await self.ask(Done, Fsync(0, handle, data_only), caller.key)

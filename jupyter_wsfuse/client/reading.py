"""Reading: from what is here, from what is on its way, or from the server, and what is read ahead meanwhile."""

from __future__ import annotations

import asyncio
import errno
from typing import Final

from ..errors import os_error
from ..protocol.messages import DataReply, Identity, Read
from .api import Caller
from .core import Core
from .handles import OpenFile
from .pages import BLOCK
from .prefetch import SMALL
from .profiler import measured
from .readahead import Range, ReadAhead
from .tree import Node

#: Errors by which a file that is open turns out not to be there any more.
_REMOVED: Final = (errno.ESTALE, errno.ENOENT)


class _Flight:
    """A block on its way. ``since``: the version of the cache when it was asked for."""

    __slots__ = ("future", "since")

    def __init__(self, future: asyncio.Future[bytes | None], since: int) -> None:
        self.future = future
        self.since = since


class ReadOperations(Core):
    """read."""

    _flights: dict[tuple[Identity, int, int], _Flight]  # (file, offset, size)
    _exact: dict[
        tuple[Identity, int, int], tuple[bytes, int]
    ]  # strided ranges that came: data, version asked at

    @measured
    async def read(
        self, caller: Caller, node: int, handle: int, offset: int, size: int
    ) -> bytes | memoryview:
        """Up to *size* bytes; fewer only at the end of the file."""
        file = self.file(handle)
        stats = self.stats["read"]
        data = self._here(file, offset, size)
        if data is not None:
            stats.hits += 1
            self.pages.hits += 1
            if file.ahead is not None:
                self._read_ahead(file, offset, size)
        else:
            self.pages.misses += 1
            data = await self._read(caller, file, offset, size)
        stats.bytes += len(data)
        return data

    def _here(self, file: OpenFile, offset: int, size: int) -> bytes | memoryview | None:
        """The bytes, if all of them are here."""
        node = file.node
        record = self.cache.record(node.identity)
        if record is None or not record.cover or node.gone:
            return None
        length = record.attr.size
        end = min(offset + size, length)
        if end <= offset:
            return b""
        first, last = offset // BLOCK, (end - 1) // BLOCK
        parts: list[memoryview] = []
        for index in range(first, last + 1):
            block = self.pages.block(node.identity, index)
            start = max(offset - index * BLOCK, 0)
            stop = min(end - index * BLOCK, BLOCK)
            if block is None or len(block) < stop:
                return None
            if first == last and start == 0 and stop == len(block):
                return block
            parts.append(memoryview(block)[start:stop])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read(self, caller: Caller, file: OpenFile, offset: int, size: int) -> bytes | memoryview:
        node = file.node
        if self.store is not None and await self._from_store(node, offset // BLOCK):
            data = self._here(file, offset, size)
            if data is not None:
                return data
        if await self.fetcher.fetched(node.identity) and (data := self._here(file, offset, size)) is not None:
            return data
        if self._may_read_ahead(file):
            if file.ahead is None:
                file.ahead = ReadAhead(BLOCK)
            self._read_ahead(file, offset, size)
            data = await self._arriving(file, offset, size)
            if data is not None:
                return data
        since = self.cache.version
        try:
            data = await self._ask_for(caller, file, offset, size)
            whole = file.ahead is not None and not offset % BLOCK and len(data) == BLOCK
            if whole and self.cache.fresh(node.identity, since):
                self._keep(node, Range(offset, BLOCK), True, data, prefetched=False)
            return data
        except OSError as error:
            # Opened without the server's knowing, and removed by somebody else since: what it was when it was opened.
            if file.content is None or error.errno not in _REMOVED:
                raise
            return file.content[offset : offset + size]

    async def _from_store(self, node: Node, index: int) -> bool:
        """Whether block *index* could be had from this machine's disk; then it is among the pages."""
        record = self.cache.record(node.identity)
        if self.store is None or record is None or not record.cover or self.pages.has(node.identity, index):
            return False
        version, since = self.version(record.attr), self.cache.version
        if version is None:
            return False
        data = await self.store.get(node.identity, version, index)
        whole = min(BLOCK, record.attr.size - index * BLOCK)
        if data is None or len(data) != whole or not self.cache.fresh(node.identity, since):
            return False
        self.pages.keep(node.identity, index, data, record.cover, version)
        return True

    async def _ask_for(self, caller: Caller, file: OpenFile, offset: int, size: int) -> bytes:
        opening = None
        if file.local:
            opening = self.tell(file)
            await asyncio.sleep(0)  # its request goes out first
        try:
            reply, data = await self.call(Read(0, file.handle, offset, size), key=caller.key)
        except OSError as error:
            if opening is None or error.errno != errno.EBADF:
                raise
            await self.real(file)  # says what is wrong, or finds another way to the file
            reply, data = await self.call(Read(0, file.handle, offset, size), key=caller.key)
        if type(reply) is not DataReply:
            raise os_error(errno.EIO, f"the server answered a read with {reply}")
        self.cache.was_read(file.node.identity)
        return data

    # --- ahead -----------------------------------------------------------------------------------------

    def _may_read_ahead(self, file: OpenFile) -> bool:
        record = self.cache.record(file.node.identity)
        return (
            record is not None
            and record.cover != 0
            and record.attr.size > SMALL
            and not file.node.gone
            and self.fetcher.wants("readahead")
            and self.options.cache
        )

    def _read_ahead(self, file: OpenFile, offset: int, size: int) -> None:
        """*size* bytes at *offset* are read: ask for what comes next."""
        record = self.cache.record(file.node.identity)
        if record is None or file.ahead is None:
            return
        fetcher, ahead = self.fetcher, file.ahead
        room = min(fetcher.window.room(), self.pages.limit // 2)
        for wanted in ahead.saw(offset, size, record.attr.size, max(room, 0)):
            identity = file.node.identity
            whole = wanted.offset % BLOCK == 0 and (
                wanted.size == BLOCK or wanted.offset + wanted.size == record.attr.size
            )
            if whole and self.pages.has(identity, wanted.offset // BLOCK):
                continue
            key = (identity, wanted.offset, wanted.size)
            if key in self._flights:
                continue
            fetcher.ahead.issued += 1
            if file.local:
                self.tell(file)  # a task that was started before the one below: its request goes out first
            future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
            self._flights[key] = _Flight(future, self.cache.version)
            fetcher.start(self._fly(file, wanted, whole, key))

    async def _fly(self, file: OpenFile, wanted: Range, whole: bool, key: tuple[Identity, int, int]) -> None:
        flight = self._flights[key]
        window = self.fetcher.window
        data: bytes | None = None
        if whole and await self._from_store(file.node, wanted.offset // BLOCK):
            data = self.pages.block(key[0], wanted.offset // BLOCK)
        token = window.sent(0 if data is not None else wanted.size)
        try:
            if data is not None:
                return
            reply, found = await self.connection.call(Read(0, file.handle, wanted.offset, wanted.size))
            window.answered(token, len(found))
            if type(reply) is DataReply and self.cache.fresh(key[0], flight.since):
                data = found
                self._keep(file.node, wanted, whole, data)
        except OSError:
            pass  # whoever needs it asks himself
        finally:
            window.dropped(token)
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not flight.future.done():
                flight.future.set_result(data)

    def _keep(self, node: Node, wanted: Range, whole: bool, data: bytes, *, prefetched: bool = True) -> None:
        record = self.cache.record(node.identity)
        if record is None or not record.cover or len(data) < wanted.size:
            return
        if whole:
            version = self.version(record.attr)
            self.pages.keep(
                node.identity, wanted.offset // BLOCK, data, record.cover, version, prefetched=prefetched
            )
        else:
            self._exact[node.identity, wanted.offset, wanted.size] = data, self.cache.version
            while len(self._exact) > _EXACT:
                del self._exact[next(iter(self._exact))]

    async def _arriving(self, file: OpenFile, offset: int, size: int) -> bytes | memoryview | None:
        """The bytes, if they are here or on their way in whole blocks, or as predicted."""
        node = file.node
        identity = node.identity
        kept = self._exact.pop((identity, offset, size), None)
        if kept is not None and self.cache.fresh(identity, kept[1]):
            self.fetcher.ahead.hit()
            return kept[0]
        record = self.cache.record(identity)
        if record is None:
            return None
        flight = self._flights.get((identity, offset, size))
        if flight is not None:
            data = await self._wait_for(flight)
            if self._exact.pop((identity, offset, size), None) is not None:
                self.fetcher.ahead.hit()
            else:
                self.pages.use(identity, offset // BLOCK)
            return data if self.cache.fresh(identity, flight.since) else None
        length = record.attr.size
        end = min(offset + size, length)
        for index in range(offset // BLOCK, (end - 1) // BLOCK + 1 if end > offset else 0):
            if self.pages.has(identity, index):
                continue
            whole = min(BLOCK, length - index * BLOCK)
            flight = self._flights.get((identity, index * BLOCK, whole))
            if flight is None:
                return None
            await self._wait_for(flight)
        return self._here(file, offset, size)

    async def _wait_for(self, flight: _Flight) -> bytes | None:
        stats = self.stats
        current = stats.current
        asked_at = stats.asking()
        try:
            return await asyncio.shield(flight.future)
        finally:
            stats.answered(current, asked_at)


#: Ranges that came ahead of a reader with a stride and are not read yet.
_EXACT: Final = 64

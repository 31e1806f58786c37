"""File data that this client remembers, beside what the kernel does.

Kept in blocks of 1 MiB at most, by file identity. The kernel has its own pages of what programs have read; these are
what they will probably read next. Like everything else they are believed under a lease, or for a second; but a
file whose size and times are what they were is the same file, so blocks whose lease ended are taken up again when
that turns out (:meth:`Pages.renew`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, cast

from cachetools import LRUCache

from ..protocol.messages import Identity
from .leases import Cover, Leases
from .tree import Version

BLOCK: Final = 1 << 20
_OVERHEAD: Final = 700  # bytes that a block takes besides its data, about

Data = bytes | memoryview


class FileData:
    """The blocks of one file. ``version``: what they are of, if that tells it from any other state, else None."""

    __slots__ = ("blocks", "cover", "until", "version", "unused")

    def __init__(self, cover: Cover, until: float, version: Version | None) -> None:
        self.blocks: set[int] = set()
        self.cover = cover
        self.until = until
        self.version = version
        self.unused: set[int] = set()  # fetched before anybody asked, and not read yet


class Pages:
    """At most *limit* bytes. ``on_kept`` is given each block whose version tells it from any
    other; ``on_used`` is told the index of a block that was fetched ahead
    when it is read, ``on_unused`` when it goes without ever having been."""

    def __init__(
        self, limit: int, leases: Leases, ttl: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.on_kept: Callable[[Identity, Version, int, bytes], None] = lambda *block: None
        self.on_used: Callable[[int], None] = lambda index: None
        self.on_unused: Callable[[int], None] = lambda index: None
        self.hits = 0
        self.misses = 0
        self._leases = leases
        self._ttl = ttl
        self._clock = clock
        self._files: dict[Identity, FileData] = {}
        self._blocks = _Blocks(limit, self._evicted)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return cast(int, self._blocks.currsize)

    @property
    def limit(self) -> int:
        return cast(int, self._blocks.maxsize)

    def _valid(self, identity: Identity) -> FileData | None:
        data = self._files.get(identity)
        if data is None:
            return None
        if data.cover:
            return data if self._leases.holds(data.cover) else None
        return data if data.until > self._clock() else None

    def has(self, identity: Identity, index: int) -> bool:
        """Whether block *index* is here, without counting as a use."""
        data = self._valid(identity)
        return data is not None and index in data.blocks

    def block(self, identity: Identity, index: int) -> bytes | None:
        """Block *index* of the file, shorter than :data:`BLOCK` only where the file ends; None if it is not here."""
        data = self._valid(identity)
        if data is None or index not in data.blocks:
            return None
        if data.unused:
            self.use(identity, index)
        return self._blocks[identity, index]

    def use(self, identity: Identity, index: int) -> None:
        """Block *index* of the file was read, if it is here at all."""
        data = self._files.get(identity)
        if data is not None and index in data.unused:
            data.unused.discard(index)
            self.on_used(index)

    def keep(
        self,
        identity: Identity,
        index: int,
        block: bytes,
        cover: Cover,
        version: Version | None,
        *,
        prefetched: bool = False,
    ) -> None:
        """Remember a block that is true now, and under the lease *cover* for as long as that is held."""
        data = self._files.get(identity)
        if data is None or data.cover != cover or (data.version is not None and data.version != version):
            if data is not None:
                self.drop(identity)
            data = self._files[identity] = FileData(cover, 0.0, version)
        if not cover:
            data.until = self._clock() + self._ttl
        data.blocks.add(index)
        if prefetched:
            data.unused.add(index)
        self._blocks.put((identity, index), block)
        if cover and version is not None:
            self.on_kept(identity, version, index, block)

    def renew(self, identity: Identity, version: Version | None, cover: Cover) -> None:
        """The file is known to be in the state *version* now, and the lease *cover* is held on it."""
        data = self._files.get(identity)
        if data is None or not cover or data.cover == cover:
            return
        if version is not None and data.version == version:
            data.cover = cover
        else:
            self.drop(identity)

    def unsure(self, identity: Identity) -> None:
        """The file may have changed: nothing of it is believed, unless :meth:`renew` says that it has not."""
        data = self._files.get(identity)
        if data is not None:
            if data.version is None:
                self.drop(identity)
            else:
                data.cover, data.until = 0, 0.0

    def drop(self, identity: Identity) -> None:
        """Forget the file's data."""
        data = self._files.pop(identity, None)
        if data is not None:
            for index in data.blocks:
                self._blocks.remove((identity, index))
            for index in data.unused:
                self.on_unused(index)

    def unsure_all(self) -> None:
        """:meth:`unsure` of every file."""
        for identity in list(self._files):
            self.unsure(identity)

    def _evicted(self, key: tuple[Identity, int]) -> None:
        identity, index = key
        data = self._files[identity]  # there is one as long as it has blocks
        data.blocks.discard(index)
        if index in data.unused:
            data.unused.discard(index)
            self.on_unused(index)
        if not data.blocks:
            del self._files[identity]

    def snapshot(self) -> dict[str, int]:
        """Numbers for people."""
        return {"files": len(self._files), "bytes": self.size, "hits": self.hits, "misses": self.misses}


class _Blocks(LRUCache[tuple[Identity, int], bytes]):
    def __init__(self, limit: int, evicted: Callable[[tuple[Identity, int]], None]) -> None:
        super().__init__(limit, lambda block: len(block) + _OVERHEAD)
        self._told = evicted

    def put(self, key: tuple[Identity, int], block: bytes) -> None:
        self.remove(key)  # or the one before might have to make room for this one, and be told of as evicted
        if len(block) + _OVERHEAD > self.maxsize:
            self._told(key)
        else:
            self[key] = block

    def remove(self, key: tuple[Identity, int]) -> None:
        if key in self:
            del self[key]

    def popitem(self) -> Any:
        key, block = super().popitem()
        self._told(key)
        return key, block

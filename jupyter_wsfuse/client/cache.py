"""What this client remembers of the workspace, for a bounded time, in bounded space.

Attributes are kept by file identity, so that they are right under every name of a file. Entries are kept by
(directory node, name), negative ones with a time of their own. Targets of symbolic links never change.

**The guard.** An answer may be older than what we know: it was on its way while the file changed. So every
question takes a :attr:`Cache.version` with it, every change or invalidation of a thing *touches* it, and an
answer is kept only if the thing was not touched since the question and no change of it is under way. The
same test decides how long the kernel may believe the answer: the standard time, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from cachetools import LRUCache

from ..protocol.messages import Attr, Identity
from .api import VfsOptions

#: A version that is older than everything: an answer that carries it is never kept.
STALE: Final = -1

_REMEMBERED_TOUCHES: Final = 20_000
_LINKS: Final = 20_000
_DAY: Final = 24 * 3600 * 10**9

EntryKey = tuple[int, bytes]
Key = Identity | EntryKey


class Change:
    """A change of *keys* that is under way, from before the request leaves until its answer was used.

    Leaving the ``with`` block drops the keys, whatever became of the request: after an error nobody knows.
    """

    __slots__ = ("begun", "_cache", "_keys", "_sure")

    def __init__(self, cache: Cache, keys: tuple[Key, ...]) -> None:
        self.begun = STALE
        self._cache = cache
        self._keys = keys
        self._sure: dict[Key, bool] = {}

    def __enter__(self) -> Change:
        self.begun = self._cache.begin(self._keys)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sure = self._cache.end(self._keys, self.begun)

    def token(self, key: Key) -> int:
        """After the block: the version to keep this change's own answer about *key* with.

        :data:`STALE` if somebody else changed it meanwhile. *key* may be one that was not foreseen.
        """
        sure = self._sure.get(key)
        if sure is None:
            return self._cache.supersede(key, self.begun)
        return self._cache.version if sure else STALE


class Cache:
    """Attributes, entries and link targets. *clock* is monotonic, in seconds; *wall* tells ns since the epoch."""

    def __init__(
        self,
        options: VfsOptions,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.enabled = options.cache
        self.attr_ttl = options.attr_ttl if options.cache else 0.0
        self.entry_ttl = options.entry_ttl if options.cache else 0.0
        self.negative_ttl = options.negative_ttl if options.cache else 0.0
        self.version = 0
        self.hits = 0
        self.misses = 0
        self._clock = clock
        self._wall = wall
        self._attrs: LRUCache[Identity, tuple[Attr, float]] = LRUCache(options.attr_capacity)
        self._entries: LRUCache[EntryKey, tuple[Identity | None, float]] = LRUCache(options.entry_capacity)
        self._links: LRUCache[Identity, bytes] = LRUCache(_LINKS)
        self._touched: dict[Key, int] = {}  # oldest first
        self._floor = 0  # nothing older than this version can be judged: its touches are forgotten
        self._changing: dict[Key, int] = {}

    # --- the guard -------------------------------------------------------------------------------------

    def fresh(self, key: Key, since: int) -> bool:
        """Whether an answer about *key*, asked for at version *since*, is still true as far as we know."""
        return since >= self._floor and self._touched.get(key, 0) <= since and key not in self._changing

    def touch(self, key: Key) -> None:
        """*key* is another than before: answers that are on their way are not to be kept."""
        self.version += 1
        touched = self._touched
        touched.pop(key, None)
        touched[key] = self.version
        if len(touched) > _REMEMBERED_TOUCHES:
            oldest = next(iter(touched))
            self._floor = touched.pop(oldest)

    def changing(self, *keys: Key) -> Change:
        """``with cache.changing(...)`` around a request that changes *keys*."""
        return Change(self, keys)

    def begin(self, keys: tuple[Key, ...]) -> int:
        changing = self._changing
        for key in keys:
            changing[key] = changing.get(key, 0) + 1
        return self.version

    def end(self, keys: tuple[Key, ...], begun: int) -> dict[Key, bool]:
        sure: dict[Key, bool] = {}
        changing = self._changing
        for key in keys:
            left = changing[key] - 1
            if left:
                changing[key] = left
            else:
                del changing[key]
            sure[key] = sure.get(key, True) and self.fresh(key, begun)
        for key in sure:
            self._drop(key)
        return sure

    def _drop(self, key: Key) -> None:
        self.touch(key)
        if isinstance(key, Identity):
            self._attrs.pop(key, None)
        else:
            self._entries.pop(key, None)

    def supersede(self, key: Key, since: int) -> int:
        """A request made at version *since* turned out to have changed *key*; the version to keep its answer with."""
        sure = self.fresh(key, since)
        self._drop(key)
        return self.version if sure else STALE

    def drop_attr(self, identity: Identity) -> None:
        self._drop(identity)

    def drop_entry(self, parent: int, name: bytes) -> None:
        self._drop((parent, name))

    def clear(self) -> None:
        """Forget everything, and keep nothing that was asked for before."""
        self.version += 1
        self._floor = self.version
        self._touched.clear()
        self._attrs.clear()
        self._entries.clear()
        self._links.clear()

    # --- attributes ------------------------------------------------------------------------------------

    def attr(self, identity: Identity) -> tuple[Attr, float] | None:
        """Attributes and the seconds that they stay valid."""
        kept = self._attrs.get(identity)
        if kept is not None:
            left = kept[1] - self._clock()
            if left > 0:
                return kept[0], left
        return None

    def keep_attr(self, identity: Identity, attr: Attr, since: int) -> float:
        """Keep *attr*, asked for at version *since*. Returns the seconds that the kernel may believe it."""
        if not self.enabled or not self.fresh(identity, since):
            return 0.0
        self._attrs[identity] = (attr, self._clock() + self.attr_ttl)
        return self.attr_ttl

    def was_read(self, identity: Identity) -> None:
        """The file was read: its access time may have moved.

        Servers mount "relatime": only an access time that is a day old or not newer than the last change moves.
        """
        kept = self._attrs.get(identity)
        if kept is not None:
            attr = kept[0]
            if attr.atime <= attr.mtime or attr.atime <= attr.ctime or self._wall() - attr.atime > _DAY:
                del self._attrs[identity]

    # --- entries ---------------------------------------------------------------------------------------

    def entry(self, parent: int, name: bytes) -> tuple[Identity | None, float] | None:
        """What *name* is, None inside for "does not exist", and the seconds that this stays valid."""
        kept = self._entries.get((parent, name))
        if kept is not None:
            left = kept[1] - self._clock()
            if left > 0:
                return kept[0], left
        return None

    def keep_entry(self, parent: int, name: bytes, identity: Identity | None, since: int) -> float:
        """Keep what *name* is (None: nothing). Returns the seconds that the kernel may believe it."""
        key = (parent, name)
        ttl = self.entry_ttl if identity is not None else self.negative_ttl
        if ttl <= 0 or not self.fresh(key, since):
            return 0.0
        self._entries[key] = (identity, self._clock() + ttl)
        return ttl

    # --- links -----------------------------------------------------------------------------------------

    def link(self, identity: Identity) -> bytes | None:
        return self._links.get(identity) if self.enabled else None

    def keep_link(self, identity: Identity, target: bytes) -> None:
        if identity.btime:  # otherwise another link may be born with the same inode number
            self._links[identity] = target

    def snapshot(self) -> dict[str, int]:
        """Numbers for people."""
        return {
            "hits": self.hits,
            "misses": self.misses,
            "attributes": len(self._attrs),
            "entries": len(self._entries),
            "links": len(self._links),
        }

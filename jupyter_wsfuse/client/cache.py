"""What this client remembers of the workspace, for a bounded time, in bounded space.

Attributes are kept by file identity, so that they are right under every name of a file. Entries are kept by the
identity of their directory, which may be known as a whole: then a name that is not in it does not exist. Targets of
symbolic links never change.

**How long.** Under a lease (:mod:`.leases`) a thing stays true until the server says otherwise, and the kernel may
believe it as long. Without one it is believed for a second or so (``VfsOptions.attr_ttl`` and its like).

**The guard.** An answer may be older than what we know: it was on its way while the file changed. So every
question takes a :attr:`Cache.version` with it, every change or invalidation of a thing *touches* it, and an
answer is kept only if the thing was not touched since the question and no change of it is under way. The
same test decides how long the kernel may believe the answer: the lease, the standard time, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from stat import S_ISDIR
from types import TracebackType
from typing import Final

from cachetools import Cache as _Plain
from cachetools import LRUCache

from ..protocol.messages import Attr, DirEntry, Identity
from .api import VfsOptions
from .directory import LEASED, Directory
from .leases import Cover, Leases

#: A version that is older than everything: an answer that carries it is never kept.
STALE: Final = -1

_REMEMBERED_TOUCHES: Final = 20_000
_LINK_BYTES: Final = 4 << 20
#: What one remembered thing takes in memory, about: with its keys and its place in the cache.
_ATTR_BYTES: Final = 1200
_LINK_OVERHEAD: Final = 600
_DAY: Final = 24 * 3600 * 10**9

EntryKey = tuple[Identity, bytes]
Key = Identity | EntryKey


class Record:
    """Attributes of one file, and what else is true for as long as they are.

    ``cover``: the lease that they are under, 0 for none; then they are good until the time ``until``. ``readable``: it
    was opened for reading. ``plain``: it has no extended attributes. ``allowed``/``denied``: bits of access(2).
    """

    __slots__ = ("attr", "cover", "until", "readable", "plain", "allowed", "denied")

    def __init__(self, attr: Attr, cover: Cover, until: float) -> None:
        self.attr = attr
        self.cover = cover
        self.until = until
        self.readable = False
        self.plain = False
        self.allowed = 0
        self.denied = 0


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
    """Attributes, entries and link targets. *clock* is monotonic, in seconds; *wall* tells ns since the epoch.

    ``on_drop`` is called with the identity of every file whose attributes are not believed any more: whoever keeps its
    data has to forget that as well.
    """

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
        self.leases = Leases()
        self.on_drop: Callable[[Identity], None] = lambda identity: None
        self.on_evict: Callable[[Identity, Directory], None] = lambda identity, directory: None
        self.version = 0
        self.hits = 0
        self.misses = 0
        self._clock = clock
        self._wall = wall
        self._records: LRUCache[Identity, Record] = LRUCache(max(1, options.attr_bytes // _ATTR_BYTES))
        self._directories = _Directories(options.entry_bytes, self._evicted)
        self._links: LRUCache[Identity, bytes] = LRUCache(_LINK_BYTES, _size_of_link)
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
            self._records.pop(key, None)
            self.on_drop(key)
        else:
            directory = self._directories.peek(key[0])
            if directory is not None:
                directory.forget(key[1])

    def supersede(self, key: Key, since: int) -> int:
        """A request made at version *since* turned out to have changed *key*; the version to keep its answer with."""
        sure = self.fresh(key, since)
        self._drop(key)
        return self.version if sure else STALE

    def drop_attr(self, identity: Identity) -> None:
        """The file is another than before; so are its data."""
        self._drop(identity)

    def drop_entry(self, parent: Identity, name: bytes) -> None:
        """What *name* is now, nobody knows."""
        self._drop((parent, name))

    def drop_directory(self, identity: Identity) -> None:
        """Nothing is known of the entries of *identity*, and no lease on it is relied on any more."""
        self.touch(identity)
        self.leases.end(identity)
        self._directories.remove(identity)

    def clear(self) -> None:
        """Forget everything, and keep nothing that was asked for before. Leases stay."""
        self.version += 1
        self._floor = self.version
        self._touched.clear()
        self._records.clear()
        self._directories.clear()
        self._links.clear()

    # --- leases ----------------------------------------------------------------------------------------

    def grant(self, identity: Identity, since: int) -> None:
        """An answer to what was asked at version *since* says that the lease on *identity* is held.

        It may have ended since the answer was given: then the file was touched.
        """
        if self.enabled and (self.leases.on(identity) or self.fresh(identity, since)):
            self.leases.grant(identity)

    # --- attributes ------------------------------------------------------------------------------------

    def cover(self, attr: Attr, parent: Identity | None) -> Cover:
        """The lease under which *attr* is, 0 for none. *parent*: a directory that is known to have the file."""
        if S_ISDIR(attr.mode) or attr.nlink != 1 or parent is None:
            return self.leases.on(attr.identity)
        return self.leases.on(parent)

    def record(self, identity: Identity) -> Record | None:
        """What is remembered of the file, if it is still true."""
        record: Record | None = self._records.get(identity)
        if record is None:
            return None
        if record.cover:
            return record if self.leases.holds(record.cover) else None
        return record if record.until > self._clock() else None

    def attr(self, identity: Identity) -> tuple[Attr, float] | None:
        """Attributes and the seconds that they stay valid."""
        record = self.record(identity)
        if record is None:
            return None
        return record.attr, LEASED if record.cover else record.until - self._clock()

    def keep_attr(
        self,
        identity: Identity,
        attr: Attr,
        since: int,
        parent: Identity | None = None,
        *,
        readable: bool = False,
        plain: bool = False,
        allowed: int = 0,
    ) -> float:
        """Keep *attr*, asked for at version *since*. Returns the seconds that the kernel may believe it."""
        if not self.enabled or not self.fresh(identity, since):
            return 0.0
        cover = self.cover(attr, parent)
        old = self._records.get(identity)
        record = Record(attr, cover, 0.0 if cover else self._clock() + self.attr_ttl)
        record.readable = readable
        record.plain = plain
        record.allowed = allowed
        if old is not None and old.attr.ctime == attr.ctime:  # neither owner nor mode is another
            record.allowed |= old.allowed
            record.denied = old.denied
            if cover and old.cover == cover:
                record.readable |= old.readable
                record.plain |= old.plain
        self._records[identity] = record
        return LEASED if cover else self.attr_ttl

    def was_read(self, identity: Identity) -> None:
        """The file was read: its access time may have moved.

        Servers mount "relatime": only an access time that is a day old or not newer than the last change moves. Under
        a lease it is left as it is: reads that the server knows nothing of move no access time either.
        """
        kept = self._records.get(identity)
        if kept is not None and not kept.cover:
            attr = kept.attr
            if attr.atime <= attr.mtime or attr.atime <= attr.ctime or self._wall() - attr.atime > _DAY:
                del self._records[identity]

    # --- entries ---------------------------------------------------------------------------------------

    def directory(self, identity: Identity) -> Directory | None:
        """What is known of a directory's entries, if all of them are, and it is still true."""
        directory = self._directories.get(identity)
        if directory is None or not directory.complete:
            return None
        if directory.cover:
            return directory if self.leases.holds(directory.cover) else None
        return directory if directory.until > self._clock() else None

    def known(self, identity: Identity) -> Directory | None:
        """What is remembered of a directory, true or not any more, complete or not."""
        return self._directories.peek(identity)

    def entry(self, parent: Identity, name: bytes) -> tuple[Identity | None, float] | None:
        """What *name* is, None inside for "does not exist", and the seconds that this stays valid."""
        directory = self._directories.get(parent)
        if directory is None:
            return None
        if directory.cover and not self.leases.holds(directory.cover):
            self._directories.remove(parent)
            return None
        return directory.find(name, self._clock(), self.negative_ttl)

    def keep_entry(self, parent: Identity, name: bytes, identity: Identity | None, since: int) -> float:
        """Keep what *name* is (None: nothing). Returns the seconds that the kernel may believe it."""
        if not self.enabled or not self.fresh((parent, name), since):
            return 0.0
        cover = self.leases.on(parent)
        ttl = LEASED if cover else self.entry_ttl if identity is not None else self.negative_ttl
        if ttl <= 0:
            return 0.0
        directory = self._directories.get(parent)
        if directory is None or (directory.cover and directory.cover != cover):
            directory = Directory(b"", cover)
        elif cover and not directory.cover:
            directory.covered(cover)
        directory.keep(name, identity, 0.0 if cover else self._clock() + ttl)
        self._directories.put(parent, directory)
        return ttl

    def keep_listing(
        self, parent: Identity, path: bytes, entries: Iterable[DirEntry], since: int, prefetched: bool
    ) -> Directory | None:
        """Keep all entries that *parent*, at *path* from the workspace's root, had at version *since*.

        Returns what is known of the directory now, None if it cannot be believed.
        """
        if not self.enabled or since < self._floor or parent in self._changing:
            return None
        cover = self.leases.on(parent)
        directory = Directory(path, cover, prefetched=prefetched)
        directory.fill(entries, 0.0 if cover else self._clock() + self.entry_ttl)
        for key in self._changing:
            if isinstance(key, tuple) and key[0] == parent:
                directory.forget(key[1])
        for key, version in reversed(self._touched.items()):  # what changed since we asked is not known
            if version <= since:
                break
            if isinstance(key, tuple) and key[0] == parent:
                directory.forget(key[1])
        self._directories.put(parent, directory)
        return directory

    def _evicted(self, identity: Identity, directory: Directory) -> None:
        # Names of it that others change cannot be brought together with files any more.
        self.leases.end(identity)
        self.on_evict(identity, directory)

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
            "attributes": len(self._records),
            "entries": self._directories.entries,
            "directories": len(self._directories),
            "links": len(self._links),
            "leases": len(self.leases),
        }


def _size_of_link(target: bytes) -> int:
    return len(target) + _LINK_OVERHEAD


class _Directories(LRUCache[Identity, Directory]):
    """Directories by identity, in bounded space. The one that was used longest ago goes first; *evicted* is told."""

    def __init__(self, limit: int, evicted: Callable[[Identity, Directory], None]) -> None:
        super().__init__(limit, lambda directory: directory.bytes)
        self._told = evicted

    def put(self, identity: Identity, directory: Directory) -> None:
        """Add it, or count anew how large it is."""
        directory.measure()
        self.remove(identity)  # or it could be the one that has to go to make room for itself
        if directory.bytes > self.maxsize:
            self.remove(identity)
            self._told(identity, directory)
        else:
            self[identity] = directory

    def peek(self, identity: Identity) -> Directory | None:
        """Without counting as a use."""
        return _Plain.__getitem__(self, identity) if identity in self else None

    def remove(self, identity: Identity) -> None:
        """Nobody is told."""
        if identity in self:
            del self[identity]

    def popitem(self) -> tuple[Identity, Directory]:
        identity, directory = super().popitem()
        self._told(identity, directory)
        return identity, directory

    @property
    def entries(self) -> int:
        return sum(len(directory.names) for directory in self.values())

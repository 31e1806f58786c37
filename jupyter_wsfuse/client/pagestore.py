"""File data that outlive a mount: blocks of files in a folder on a local disk.

Whatever happens to the folder, :meth:`PageStore.get` returns the bytes that were put for the same identity, version and
index, or nothing. A block says of what it is, and carries a checksum of that and of its data. So nothing is ever
synced, and what a crash tore is thrown away when somebody would read it.

No name in the folder tells a path. Several processes may share it: see :mod:`.pagefolder`. What cannot be stored,
because the disk is full or another process holds the lock, is not: it is a cache.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final

from ..protocol.messages import Identity
from .diskthread import DiskThread
from .pagefolder import Folder, cost_of
from .tree import Version

_MAGIC: Final = b"wsfpage1"
#: Magic; device, inode, birth time; size, mtime, ctime; index; bytes of data. A checksum follows, then the data.
_LABEL: Final = struct.Struct(">8s QQq qqq Q I")
_CHECKSUM: Final = 16
_HEADER: Final = _LABEL.size + _CHECKSUM
#: Files of one store. Each takes some 250 bytes of memory, and some microseconds of every look at all of them.
_MOST_FILES: Final = 100_000
#: What an eviction leaves.
_KEPT: Final = 0.9
#: Seconds after which an eviction first looks at what other processes have stored and used.
_SCANNED: Final = 600.0
#: The disk has no room, or not for this user.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Times of use are noted so many seconds apart.
_NOTED: Final = 60
#: Bytes that wait for the disk at most.
_WAITING_BYTES: Final = 32 << 20

Data = bytes | memoryview


class PageStore:
    """At most *limit* bytes in *folder*, which is made if it is missing. *clock* is the time of day, in seconds.

    :class:`.MountError` says what to do when the folder cannot be used: it cannot be made or written, is a symbolic
    link, or not this user's alone. After that, no error of the disk is ever raised.

    All methods take the time of a disk, and belong into one thread. An identity means something within one workspace,
    so every workspace has to have a folder of its own.
    """

    def __init__(self, folder: Path, limit: int, clock: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self.scanning = False  # for another thread to look at: whatever is asked for now takes long
        self._clock = clock
        self._folder = Folder(folder)
        # name -> when it was used, in units of _NOTED, and what it costs; the least recently used first
        self._files: dict[str, tuple[int, int]] = {}
        self._scanned_at: float | None = None
        self._hits = self._misses = self._corrupt = 0
        self._stored = self._refused = self._evicted = self._failed = 0

    def close(self) -> None:
        """Nothing else may be called after that."""
        self._folder.close()

    @property
    def size(self) -> int:
        """Bytes that all blocks take on disk, those of other processes included; never less than it is."""
        count = self._folder.count
        return sum(cost for _, cost in self._files.values()) if count is None else count

    def snapshot(self) -> dict[str, int]:
        """Numbers for people. ``refused``: blocks that were not stored as the disk was full, another process took
        long, or they were too large. ``failed``: other errors of the disk. ``files``: known to this process."""
        return {
            "bytes": self.size,
            "limit": self.limit,
            "files": len(self._files),
            "hits": self._hits,
            "misses": self._misses,
            "stored": self._stored,
            "evicted": self._evicted,
            "corrupt": self._corrupt,
            "refused": self._refused,
            "failed": self._failed,
        }

    # --- blocks ----------------------------------------------------------------------------------------

    def get(self, identity: Identity, version: Version, index: int) -> bytes | None:
        """The data of block *index* of the file *identity* in the state *version*, if they are here."""
        name = _name(identity, version, index)
        data = self._read(name, identity, version, index)
        if data is None:
            self._misses += 1
        else:
            self._hits += 1
        return data

    def _read(self, name: str, identity: Identity, version: Version, index: int) -> bytes | None:
        try:
            fd = self._folder.open(name)
        except OSError as error:
            self._failed += error.errno != errno.ENOENT
            self._files.pop(name, None)
            return None
        try:
            size = os.fstat(fd).st_size
            label = _label(identity, version, index, size - _HEADER)
            header = os.pread(fd, _HEADER, 0)
            if label is not None and header[: len(label)] == label:
                data = os.pread(fd, size - _HEADER, _HEADER)
                if header[len(label) :] == _checksum(label, data):
                    self._used(name, fd, size)
                    return data
            self._corrupt += 1
            self._remove([name])
        except OSError:  # EIO of a bad disk, ESTALE of a network's
            self._failed += 1
        finally:
            os.close(fd)
        return None

    def _used(self, name: str, fd: int, size: int) -> None:
        when = self._now
        before, _ = self._files.pop(name, (0, 0))
        self._files[name] = when, cost_of(size)
        if before < when:
            try:
                os.utime(fd, (when * _NOTED, when * _NOTED))
            except OSError:  # nor does anybody else learn of it then
                self._failed += 1

    @property
    def _now(self) -> int:
        return int(self._clock()) // _NOTED

    def put(self, identity: Identity, version: Version, index: int, data: Data) -> None:
        """Keep *data* of a block, if that is possible now, instead of what is kept of it."""
        label = _label(identity, version, index, len(data))
        cost = cost_of(_HEADER + len(data))
        if label is None or cost > self.limit:
            self._refused += 1
            return
        with self._folder.locked() as locked:
            if not locked:
                self._refused += 1
                return
            name = _name(identity, version, index)
            parts = [label + _checksum(label, data), data]
            total = self._count()
            if total + cost > self.limit or len(self._files) >= _MOST_FILES:
                total = self._evict(total, int(self.limit * _KEPT) - cost)
            if total + cost > self.limit:
                self._refused += 1
                return
            try:
                try:
                    self._write(name, parts, cost, total)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    # Of other things as well, perhaps. Of ours, a tenth goes.
                    total = self._evict(total, int(total * _KEPT) - cost)
                    self._write(name, parts, cost, total)
                self._stored += 1
            except OSError as error:
                if error.errno in _FULL:
                    self._refused += 1
                else:
                    self._failed += 1

    def _write(self, name: str, parts: list[Data], cost: int, total: int) -> None:
        when = self._now
        old = self._folder.find(name)
        self._folder.count = total + cost
        try:
            self._folder.write(name, parts, when * _NOTED)
        except OSError:
            self._folder.count = total
            raise
        if old is not None:
            self._folder.count = total + cost - old.cost
        self._files.pop(name, None)
        self._files[name] = when, cost

    def drop(self, identity: Identity) -> None:
        """Remove all blocks of a file, of whatever version."""
        self._remove([found.name for found in self._folder.files(_prefix(identity))])

    def clear(self) -> None:
        """Remove all blocks."""
        self._remove([found.name for found in self._folder.files()])

    def _remove(self, names: list[str]) -> None:
        """Without the lock they are counted until the next look at all files: that is safe, the opposite is not."""
        if not names:
            return
        with self._folder.locked() as locked:
            for name in names:
                self._files.pop(name, None)
                found = self._folder.find(name)
                count = self._folder.count
                if self._folder.remove(name) and locked and found is not None and count is not None:
                    self._folder.count = count - found.cost

    # --- what is kept, and what goes ---------------------------------------------------------------------

    def scan(self) -> None:
        """Look at all files, some 10 us each. Done by itself when it is needed; who calls it first chooses when."""
        with self._folder.locked() as locked:
            self._scan(locked)

    def _scan(self, locked: bool) -> int:
        self.scanning = True
        try:
            now = self._now
            found = sorted(
                (min(int(used) // _NOTED, now), name, cost) for name, cost, used in self._folder.files()
            )
            self._files = {name: (used, cost) for used, name, cost in found}
            total = sum(cost for _, _, cost in found)
            if locked:
                self._folder.tidy()
                self._folder.count = total
            self._scanned_at = self._clock()
            return total
        finally:
            self.scanning = False

    def _count(self) -> int:
        count = self._folder.count
        return self._scan(True) if count is None or self._scanned_at is None else count

    def _evict(self, total: int, target: int) -> int:
        """Remove what was not used for longest until no more than *target* bytes of *total* are left, and not too
        many files. How many bytes are. Under the lock."""
        target = max(0, target)
        scanned = self._scanned_at is None or not 0 <= self._clock() - self._scanned_at < _SCANNED
        if scanned:
            total = self._scan(True)
        most = int(_MOST_FILES * _KEPT)
        for name in list(self._files):
            if total <= target and len(self._files) <= most:
                break
            used, cost = self._files.pop(name)
            found = self._folder.find(name)
            if found is None:
                continue  # another process has removed it, and counted that
            if int(found.used) // _NOTED > used and not scanned:
                self._files[name] = int(found.used) // _NOTED, cost  # another process has used it
            elif self._folder.remove(name):
                total -= found.cost
                self._evicted += 1
        if total > target and not scanned:
            self._scanned_at = None  # what it is of, nobody here knows
            total = self._evict(total, target)
        self._folder.count = total
        return total


class AsyncPageStore:
    """A :class:`PageStore` in a thread of its own, for the event loop that is running. To be closed by :meth:`close`.

    What is asked for goes before what is to be stored, and waits for one operation on the disk at most.
    """

    def __init__(self, store: PageStore) -> None:
        """*store* belongs to this from now on. It looks at its files first, and gives nothing until it has."""
        self._store = store
        self._dropped = self._late = 0
        self._closed = False
        store.scanning = True
        self._thread = DiskThread("wsfuse-pagestore", _WAITING_BYTES)
        self._thread.later(store.scan)

    async def get(self, identity: Identity, version: Version, index: int) -> bytes | None:
        """As :meth:`PageStore.get`. None as well while the store looks at its own files, which may take long."""
        if self._store.scanning:
            self._late += 1
            return None
        return await self._thread.ask(lambda: self._store.get(identity, version, index))

    def put(self, identity: Identity, version: Version, index: int, data: Data) -> None:
        """As :meth:`PageStore.put`, later, if there is not too much to be stored already. *data* must not change."""
        self._later(lambda: self._store.put(identity, version, index, data), len(data))

    def drop(self, identity: Identity) -> None:
        """As :meth:`PageStore.drop`, after what was put before."""
        self._later(lambda: self._store.drop(identity))

    def clear(self) -> None:
        """As :meth:`PageStore.clear`, after what was put before."""
        self._later(self._store.clear)

    def _later(self, task: Callable[[], None], size: int = 0) -> None:
        if not self._thread.later(task, size):
            self._dropped += 1

    async def flush(self) -> None:
        """Until all that was put, dropped or cleared before is done."""
        await self._thread.flush()

    async def close(self, patience: float = 5.0) -> None:
        """Finish what is being done, forget what waits. May be called twice. A disk that takes more than *patience*
        seconds for it is left alone with the thread."""
        if await self._thread.close(patience) and not self._closed:
            self._closed = True
            self._store.close()

    def snapshot(self) -> dict[str, int]:
        """As :meth:`PageStore.snapshot`, and ``waiting``: things to be done; ``dropped``: those that were too many to
        wait; ``late``: questions that were not asked as the store was busy."""
        own = {"waiting": self._thread.waiting, "dropped": self._dropped, "late": self._late}
        return own if self._closed else self._store.snapshot() | own


# --- names and contents of files --------------------------------------------------------------------------


def _prefix(identity: Identity) -> str:
    """Of the names of all blocks of a file."""
    return blake2b(repr((identity.dev, identity.ino, identity.btime)).encode(), digest_size=10).hexdigest()


def _name(identity: Identity, version: Version, index: int) -> str:
    state = blake2b(repr(tuple(version)).encode(), digest_size=6).hexdigest()
    return f"{_prefix(identity)}-{state}-{index:x}"


def _label(identity: Identity, version: Version, index: int, size: int) -> bytes | None:
    """Of what *size* bytes of data are; None if that are numbers that no file has."""
    try:
        return _LABEL.pack(_MAGIC, identity.dev, identity.ino, identity.btime, *version, index, size)
    except struct.error:
        return None


def _checksum(label: bytes, data: Data) -> bytes:
    checksum = blake2b(label, digest_size=_CHECKSUM)
    checksum.update(data)
    return checksum.digest()

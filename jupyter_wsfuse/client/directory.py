"""What is known of the entries of one directory."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from ..protocol.messages import DirEntry, Identity
from .leases import Cover

#: Names of a directory about which nothing is known although all others are, and names known not to be in one that is
#: not known as a whole: from so many on it is asked for anew.
_MOST: Final = 4096
#: What a directory and one name of it take in memory, about.
_BYTES: Final = 700
_ENTRY_BYTES: Final = 560

_DOTS: Final = (b".", b"..")
_DT_DIR: Final = 4

#: Seconds that the kernel may believe what a lease covers. It is told when that ends; the number only has to be large.
LEASED: Final = 1e9


class Below:
    """Names of directories: as they were ``listed``, and ``sorted``. ``places``: index in the first of each."""

    __slots__ = ("listed", "places", "sorted")

    def __init__(self, names: Iterable[bytes]) -> None:
        self.listed = list(names)
        self.places = {name: place for place, name in enumerate(self.listed)}
        self.sorted = sorted(self.listed)

    def before(self, name: bytes) -> tuple[bytes | None, bytes | None]:
        """Which come before *name*, as listed and by name; None where that is the first, or is not among them."""
        place = self.places.get(name)
        if place is None:
            return None, None
        by_name = bisect.bisect_left(self.sorted, name)
        return (
            self.listed[place - 1] if place else None,
            self.sorted[by_name - 1] if by_name else None,
        )

    def after(self, name: bytes, *, by_name: bool, wrap: bool) -> Iterator[bytes]:
        """Those that come after *name*, as listed or by name, and with *wrap* then those before it. None if it is not
        among them."""
        place = self.places.get(name)
        if place is None:
            return iter(())
        names = self.listed
        if by_name:
            names, place = self.sorted, bisect.bisect_left(self.sorted, name)
        rest = itertools.islice(names, place) if wrap else ()
        return itertools.chain(itertools.islice(names, place + 1, None), rest)


_NONE_BELOW: Final = Below(())


class Directory:
    """``complete``: a name that is neither in ``names`` nor in ``holes`` does not exist.

    ``cover``: the lease that all of this is under; without one, what was learnt is good until a time of its own.
    ``order``: the entries as the server listed them, with the cookies by which a listing goes on, behind ``.`` and
    ``..`` without inode numbers; None since anything changed. ``path``: where it was when it was listed, from the
    workspace's root. ``prefetched``: nobody has asked for it yet;
    ``counted`` are the names that it had when that was noted.
    """

    __slots__ = (
        "names",
        "absent",
        "holes",
        "complete",
        "cover",
        "until",
        "order",
        "path",
        "prefetched",
        "counted",
        "bytes",
        "_until",
        "_below",
    )

    def __init__(self, path: bytes, cover: Cover, *, prefetched: bool = False) -> None:
        self.path = path
        self.cover = cover
        self.prefetched = prefetched
        self.counted = 0
        self.names: dict[bytes, Identity] = {}
        self.absent: dict[bytes, None] = {}
        self.holes: set[bytes] = set()
        self.complete = False
        self.until = 0.0
        self.order: list[DirEntry] | None = None
        self.bytes = _BYTES
        self._until: dict[bytes, float] = {}
        self._below: tuple[list[DirEntry], Below] | None = None

    def below(self) -> Below:
        """Its directories; none if they are not known in order."""
        order = self.order
        if order is None:
            return _NONE_BELOW
        if self._below is None or self._below[0] is not order:
            self._below = (
                order,
                Below(entry.name for entry in order if entry.type == _DT_DIR and entry.name not in _DOTS),
            )
        return self._below[1]

    def fill(self, entries: Iterable[DirEntry], until: float) -> None:
        """All entries, as listed; good until the time *until* if there is no lease. Their attributes are not kept."""
        names = self.names
        entries = list(entries)
        taken = {entry.cookie for entry in entries}
        free = (cookie for cookie in itertools.count(1) if cookie not in taken)
        # Numbers that no entry has: a listing may have to go on behind them.
        order = [DirEntry(name, next(free), 0, _DT_DIR) for name in _DOTS]
        for entry in entries:
            attr = entry.attr
            if entry.name in _DOTS:
                continue
            if attr is None:
                self.holes.add(entry.name)
            else:
                names[entry.name] = attr.identity
            order.append(DirEntry(entry.name, entry.cookie, entry.ino, entry.type))
        self.order = order
        self.complete = True
        self.until = until

    def covered(self, cover: Cover) -> None:
        """From now on there is a lease. What was learnt before it is good as long as it was."""
        self.cover = cover
        if self.complete:
            self._until = dict.fromkeys(self.names, self.until)
            self.complete = False
            self.order = None
            self.holes.clear()

    def find(self, name: bytes, now: float, negative: float) -> tuple[Identity | None, float] | None:
        """What *name* is and for how many seconds; None if that is not known. *negative*: for how long a name may be
        believed not to exist, without a lease."""
        identity = self.names.get(name)
        if identity is None and name not in self.absent:
            if not self.complete or name in self.holes:
                return None
            if self.cover:
                return None, LEASED
            left = min(self.until - now, negative)
            return (None, left) if left > 0 else None
        if self._until or not self.cover:
            until = self._until.get(name, 0.0 if self.cover else self.until)
            if until:
                return (identity, until - now) if until > now else None
        return identity, LEASED

    def keep(self, name: bytes, identity: Identity | None, until: float) -> None:
        """*name* is the file *identity*, or nothing; good until the time *until*, 0 under the lease."""
        if identity is None:
            if self.names.pop(name, None) is not None:
                self.order = None
            if not (self.complete and self.cover):
                self.absent[name] = None
                if len(self.absent) > _MOST:
                    self.absent.clear()
                    self._until = {known: at for known, at in self._until.items() if known in self.names}
                    self.absent[name] = None
        else:
            self.absent.pop(name, None)
            if self.order is not None and self.names.get(name) != identity:
                self.order = None
            self.names[name] = identity
        if until:
            self._until[name] = until
        else:
            self._until.pop(name, None)
        self.holes.discard(name)

    def forget(self, name: bytes) -> None:
        """Nothing is known about *name*."""
        self.names.pop(name, None)
        self.absent.pop(name, None)
        self._until.pop(name, None)
        self.order = None
        if self.complete:
            self.holes.add(name)
            if len(self.holes) > _MOST:
                self.complete = False
                self.holes.clear()

    def after(self, cookie: int) -> int | None:
        """The index in ``order`` of the entry after the one with *cookie*; None if there is no such entry."""
        order = self.order
        assert order is not None
        for index, entry in enumerate(order):
            if entry.cookie == cookie:
                return index + 1
        return None

    def measure(self) -> None:
        """Count anew what it takes in memory."""
        self.bytes = _BYTES + _ENTRY_BYTES * (len(self.names) + len(self.absent) // 2 + len(self.holes) // 2)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.names)

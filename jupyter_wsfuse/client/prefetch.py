"""What to ask for before anybody needs it.

Policies only: they look at what is known and say what would be worth having; :mod:`.fetcher` asks for it, within the
room that the link has.

==============  ==========================================================================================
policy          what it does
==============  ==========================================================================================
``subtree``     who enters a directory of one that is known as a whole is probably walking: the directories
                that come next are listed ahead (:mod:`.subtree`), more of them each time that turns out right
``siblings``    who reads a second small file of a directory will probably read the others: their
                data are fetched ahead, in the order in which he goes (:mod:`.siblings`)
``readahead``   who reads a file in sequence, or with a stride, goes on (:mod:`.readahead`)
``inline``      a small file's data come with its opening
==============  ==========================================================================================

Each keeps a :class:`Tally`. One whose guesses are mostly wrong stops for a while. The first two guess as far ahead as
the server is away: who waits for an answer for 20 ms gains by having a thousand things listed that he may never look
at, and who waits for a third of one loses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from ..protocol.messages import Identity
from .cache import Cache
from .directory import Directory

#: Bytes of a file up to which all of it is fetched at once.
SMALL: Final = 128 << 10
#: Bytes that an answer takes on the way besides the data, about.
OVERHEAD: Final = 200

#: What a policy may be wrong about in a row, more or less, before it pauses; and for how many seconds.
_CREDIT: Final = 128
_MOST_CREDIT: Final = 512
_PAUSE: Final = 30.0


class Tally:
    """How a policy does: what it asked for, what of that was used, and what went unused."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.issued = 0
        self.used = 0
        self.wasted = 0
        self._clock = clock
        self._credit = _CREDIT
        self._until = 0.0

    def hit(self, count: int = 1) -> None:
        self.used += count
        self._credit = min(_MOST_CREDIT, self._credit + count)

    def miss(self, count: int = 1) -> None:
        self.wasted += count
        self._credit -= count
        if self._credit <= 0 and not self._until:
            self._until = self._clock() + _PAUSE

    @property
    def worth(self) -> bool:
        """Whether it should go on."""
        if self._until:
            if self._clock() < self._until:
                return False
            self._until = 0.0
            self._credit = _CREDIT // 4
        return True

    def snapshot(self) -> dict[str, int | bool]:
        """Numbers for people."""
        return {"issued": self.issued, "used": self.used, "wasted": self.wasted, "paused": not self.worth}


def join(path: bytes, name: bytes) -> bytes:
    """The path of *name* in the directory *path*, both from the workspace's root."""
    return path + b"/" + name if path else name


class Map:
    """Which directory was where when it was listed; what :class:`.Cache` knows of it may be gone by now."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._at: dict[bytes, Identity] = {}
        #: How often something came or went.
        self.changes = 0

    def put(self, path: bytes, identity: Identity) -> None:
        self._at[path] = identity
        self.changes += 1

    def remove(self, path: bytes, identity: Identity) -> None:
        if self._at.get(path) == identity:
            del self._at[path]
            self.changes += 1

    def clear(self) -> None:
        self._at.clear()
        self.changes += 1

    def above(self, path: bytes) -> tuple[Identity, Directory] | None:
        """The directory that *path* is in, if it is known as a whole."""
        if not path:
            return None
        parent = path.rpartition(b"/")[0]
        identity = self._at.get(parent)
        if identity is None:
            return None
        directory = self._cache.directory(identity)
        return (identity, directory) if directory is not None and directory.path == parent else None

    def at(self, path: bytes) -> tuple[Identity, Directory] | None:
        """The directory at *path*, if it is known as a whole."""
        identity = self._at.get(path)
        directory = None if identity is None else self._cache.directory(identity)
        if identity is None or directory is None or directory.path != path:
            return None
        return identity, directory


def ancestors(path: bytes) -> Iterator[bytes]:
    """The directories that *path* is in, the nearest first."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def within(path: bytes, above: bytes) -> bool:
    """Whether *path* is *above* or below it."""
    return path == above or not above or path.startswith(above + b"/")

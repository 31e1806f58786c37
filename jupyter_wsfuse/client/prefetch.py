"""What to ask for before anybody needs it.

Policies only: they look at what is known and say what would be worth having; :mod:`.fetcher` asks for it, within the
room that the link has.

==============  ==========================================================================================
policy          what it does
==============  ==========================================================================================
``subtree``     who enters a directory of one that is known as a whole is probably walking: the directories
                that come next are listed ahead, more of them each time that turns out right
``siblings``    who reads a second small file of a directory will probably read the others: their
                data are fetched ahead, in the order in which he goes
``readahead``   who reads a file in sequence, or with a stride, goes on (:mod:`.readahead`)
``inline``      a small file's data come with its opening
==============  ==========================================================================================

Each keeps a :class:`Tally`. One whose guesses are mostly wrong stops for a while.
"""

from __future__ import annotations

import bisect
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from ..protocol.messages import Identity, Ref
from .cache import Cache
from .directory import Directory

#: Bytes of a file up to which all of it is fetched at once.
SMALL: Final = 128 << 10

_DT_DIR: Final = 4
_DT_REG: Final = 8

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

    def put(self, path: bytes, identity: Identity) -> None:
        self._at[path] = identity

    def remove(self, path: bytes, identity: Identity) -> None:
        if self._at.get(path) == identity:
            del self._at[path]

    def clear(self) -> None:
        self._at.clear()

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


class Plan(NamedTuple):
    """What one request for listings is to ask for."""

    refs: list[Ref]
    limit: int
    depth: int


class Subtree:
    """See ``subtree`` in the module's text."""

    #: Entries of one request, growing.
    LIMITS: Final = (512, 2048, 8192)
    #: Directories that one request names, levels below them, and entries that may be known and unused at a time.
    REFS: Final = 128
    DEPTH: Final = 32
    UNUSED: Final = 24_000

    def __init__(self, cache: Cache, places: Map, clock: Callable[[], float] = time.monotonic) -> None:
        self.tally = Tally(clock)
        self.unused = 0  # entries of directories that were listed ahead and not entered yet
        self._cache = cache
        self._places = places
        self._level = 0

    def entered(self, directory: Directory) -> None:
        """Somebody lists or looks up in *directory*."""
        if directory.prefetched:
            directory.prefetched = False
            self.unused -= len(directory.names)
            self.tally.hit()
            self._level = min(self._level + 1, len(self.LIMITS) - 1)

    def dropped(self, directory: Directory) -> None:
        """What is known of *directory* is given up."""
        if directory.prefetched:
            directory.prefetched = False
            self.unused -= len(directory.names)
            self.tally.miss()
            self._level = 0

    def replaced(self, directory: Directory) -> None:
        """*directory* was listed once more before anybody entered it."""
        self.unused -= len(directory.names)

    def listed(self, directory: Directory) -> None:
        """*directory* was listed although nobody asked for it."""
        self.unused += len(directory.names)
        self.tally.issued += 1

    def plan(self, path: bytes) -> Plan | None:
        """What to list next, now that the directory at *path* was entered; None: nothing."""
        if self.unused >= self.UNUSED or not self.tally.worth:
            return None
        refs: list[Ref] = []
        below = path
        here = self._places.at(path)
        if here is not None and self._places.above(path) is not None:
            self._collect(here[1], None, refs)
        # Upwards: what comes after the directory in the one above, and after that one in the next.
        while len(refs) < self.REFS:
            above = self._places.above(below)
            if above is None:
                break
            self._collect(above[1], below.rpartition(b"/")[2], refs)
            below = above[1].path
        if not refs:
            return None
        return Plan(refs[: self.REFS], self.LIMITS[self._level], self.DEPTH)

    def _collect(self, directory: Directory, after: bytes | None, refs: list[Ref]) -> None:
        """Directories in *directory* that are not known, those behind the name *after* first."""
        order = directory.order
        if order is None:
            return
        earlier: list[Ref] = []
        wanted = earlier if after is not None else refs
        for entry in order:
            if entry.type != _DT_DIR:
                continue
            if entry.name == after:
                wanted = refs
                continue
            identity = directory.names.get(entry.name)
            if identity is not None and self._cache.known(identity) is None:
                wanted.append(Ref(join(directory.path, entry.name), identity))
                if len(refs) >= self.REFS:
                    return
        if wanted is not earlier:
            refs += earlier


class _Run:
    """Small files of one directory that are read one after the other."""

    __slots__ = ("count", "listed", "last", "by_name", "names", "places", "window")

    def __init__(self, directory: Directory) -> None:
        self.count = 0
        self.last: bytes | None = None
        self.by_name = False
        self.window = 8
        order = directory.order
        assert order is not None
        self.listed = [entry.name for entry in order if entry.type == _DT_REG]
        self.places = {name: place for place, name in enumerate(self.listed)}
        self.names = sorted(self.listed)

    def follow(self, name: bytes) -> None:
        """*name* is read now."""
        last, self.last = self.last, name
        self.count += 1
        place = self.places.get(name)
        before = None if last is None else self.places.get(last)
        if place is None or before is None or last is None:
            return
        step = place - before
        by_name = bisect.bisect_left(self.names, name) - bisect.bisect_left(self.names, last)
        if step != by_name:
            self.by_name = by_name > 0 and (step <= 0 or by_name < step)

    def coming(self) -> Iterator[bytes]:
        """The names that are likely to be next, then those that were left out."""
        names = self.names if self.by_name else self.listed
        last = self.last
        if last is None:
            yield from names
            return
        place = bisect.bisect_left(names, last) if self.by_name else self.places.get(last, -1)
        yield from names[place + 1 :]
        yield from names[:place]


class Candidate(NamedTuple):
    """A small file whose data are worth having."""

    ref: Ref
    identity: Identity
    parent: Identity
    size: int


class Siblings:
    """See ``siblings`` in the module's text. *has* tells whether a file's data are here or on their way."""

    #: Files that are looked ahead at most, and directories whose runs are remembered.
    MOST: Final = 512
    RUNS: Final = 256
    #: Directories beside each other, in each of which files were read, after which the next ones are looked at too.
    SPREAD: Final = 2
    #: Names that are looked at for one opening.
    SCAN: Final = 2048

    def __init__(
        self,
        cache: Cache,
        places: Map,
        has: Callable[[Identity], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = Tally(clock)
        self._cache = cache
        self._places = places
        self._has = has
        self._runs: OrderedDict[Identity, _Run] = OrderedDict()
        self._spread: OrderedDict[bytes, int] = OrderedDict()  # path -> directories in it with a run

    def opened(self, parent: Identity, directory: Directory, name: bytes, hit: bool) -> Iterator[Candidate]:
        """*name* in *directory* is read; *hit*: its data were here. What to fetch, the most urgent first."""
        run = self._runs.get(parent)
        above = directory.path.rpartition(b"/")[0] if directory.path else None
        if run is None:
            if directory.order is None:
                return
            run = self._runs[parent] = _Run(directory)
            if len(self._runs) > self.RUNS:
                self._runs.popitem(last=False)
            if above is not None:
                self._spread[above] = self._spread.get(above, 0) + 1
                self._spread.move_to_end(above)
                if len(self._spread) > self.RUNS:
                    self._spread.popitem(last=False)
        else:
            self._runs.move_to_end(parent)
        run.follow(name)
        if hit:
            run.window = min(2 * run.window, self.MOST)
        spreads = above is not None and self._spread.get(above, 0) >= self.SPREAD
        if (run.count < 2 and not spreads) or not self.tally.worth:
            return
        left = run.window
        budget = self.SCAN
        for candidate in self._coming(run, parent, directory, spreads):
            budget -= 1
            if candidate is not None:
                left -= 1
                yield candidate
            if left <= 0 or budget <= 0:
                return

    def forget(self) -> None:
        """All directories may be others now."""
        self._runs.clear()
        self._spread.clear()

    def _coming(
        self, run: _Run, parent: Identity, directory: Directory, spreads: bool
    ) -> Iterator[Candidate | None]:
        for name in run.coming():
            yield self._candidate(parent, directory, name)
        if spreads:
            yield from self._below(directory)
            yield from self._beside(directory)

    def _candidate(self, parent: Identity, directory: Directory, name: bytes) -> Candidate | None:
        identity = directory.names.get(name)
        record = None if identity is None else self._cache.record(identity)
        if identity is None or record is None or not record.cover or self._has(identity):
            return None
        size = record.attr.size
        if not 0 < size <= SMALL or record.attr.nlink != 1:
            return None
        return Candidate(Ref(join(directory.path, name), identity), identity, parent, size)

    def _all_of(self, identity: Identity, directory: Directory) -> Iterator[Candidate | None]:
        for name in directory.names:
            yield self._candidate(identity, directory, name)
        yield from self._below(directory)

    def _below(self, directory: Directory) -> Iterator[Candidate | None]:
        for entry in directory.order or ():
            if entry.type == _DT_DIR:
                below = self._places.at(join(directory.path, entry.name))
                if below is not None:
                    yield from self._all_of(*below)
                else:
                    yield None

    def _beside(self, directory: Directory) -> Iterator[Candidate | None]:
        """The directories that come after this one in the one above, as a walk would take them, and then those
        before it."""
        above = self._places.above(directory.path)
        if above is None or above[1].order is None:
            return
        name = directory.path.rpartition(b"/")[2]
        names = [entry.name for entry in above[1].order if entry.type == _DT_DIR]
        place = names.index(name) if name in names else -1
        for other in [*names[place + 1 :], *names[: max(place, 0)]]:
            found = self._places.at(join(above[1].path, other))
            if found is not None:
                yield from self._all_of(*found)
            else:
                yield None

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
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator
from stat import S_ISREG
from typing import Final, NamedTuple

from ..protocol.messages import DirEntry, Identity, Ref
from .cache import Cache
from .directory import Directory

#: Bytes of a file up to which all of it is fetched at once.
SMALL: Final = 128 << 10
#: Bytes that an answer takes on the way besides the data, about.
OVERHEAD: Final = 200

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


class Plan(NamedTuple):
    """What one request for listings is to ask for."""

    refs: list[Ref]
    limit: int
    depth: int


class Subtree:
    """See ``subtree`` in the module's text. *distance*: the seconds that an answer takes."""

    #: Entries of one request, growing.
    LIMITS: Final = (1024, 4096, 8192)
    #: Directories that one request names, levels below them, and entries that may be known and unused at a time.
    REFS: Final = 128
    DEPTH: Final = 32
    UNUSED: Final = 24_000
    #: Entries that are listed ahead while nobody has entered a directory that was listed ahead.
    UNASKED: Final = 2048
    #: Names of directories that are looked at for one plan.
    SCAN: Final = 4096
    #: Entries listed ahead for each second that an answer takes, and at least. Who waits for little need not guess far,
    #: and what is guessed in vain costs him as much as what he asks for.
    PACE: Final = 400_000
    LEAST: Final = 256
    #: Directories of which it is remembered that others in them were entered.
    ABOVE: Final = 256

    def __init__(
        self,
        cache: Cache,
        places: Map,
        distance: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = Tally(clock)
        self.unused = 0  # entries of directories that were listed ahead and not entered yet
        #: How many of these there may be before more are listed unasked.
        self.allowance = self.UNASKED
        self._cache = cache
        self._places = places
        self._distance = distance
        #: Path -> the directories in it that were entered; and those of which the last one came in turn.
        self._visited: OrderedDict[bytes, set[bytes | None]] = OrderedDict()
        self._in_turn: set[bytes] = set()
        self._level = 0
        self._left = 0
        self._found_nothing: tuple[int, bytes] | None = None

    @property
    def reach(self) -> int:
        """Entries that are worth asking for at a time, for how far away the server is."""
        return int(max(self.LEAST, min(self.LIMITS[-1], self.PACE * self._distance())))

    @property
    def near(self) -> bool:
        """Whether the server is so near that a guess needs a reason."""
        return self.reach < self.LIMITS[0]

    def goes_on(self, path: bytes) -> bool:
        """Whether whoever has come to the directory at *path* is probably walking: where guesses need a reason, whether
        he was in the one before it, as listed or by name. To be called once for each directory."""
        found = self._places.above(path)
        if found is None:
            return not self.near
        above, name = found[1].path, path.rpartition(b"/")[2]
        visited = self._visited.get(above)
        if visited is None:
            visited = self._visited[above] = set()
            if len(self._visited) > self.ABOVE:
                gone, _ = self._visited.popitem(last=False)
                self._in_turn.discard(gone)
        else:
            self._visited.move_to_end(above)
        visited.add(name)
        if not visited.isdisjoint(found[1].below().before(name)):
            self._in_turn.add(above)
        else:
            self._in_turn.discard(above)
        return self._walked(above)

    def _walked(self, above: bytes) -> bool:
        """Whether what is in the directory at *above* is taken in turn."""
        return not self.near or above in self._in_turn

    @property
    def eager(self) -> bool:
        """Whether the next ones are to be listed although nobody has entered what was listed ahead."""
        return self.unused < min(self.allowance, self.reach)

    def entered(self, directory: Directory) -> None:
        """Somebody lists or looks up in *directory*."""
        if directory.prefetched:
            directory.prefetched = False
            self.unused -= directory.counted
            self.allowance = min(self.UNUSED, self.allowance + 4 * directory.counted)
            self.tally.hit()
            self._level = min(self._level + 1, len(self.LIMITS) - 1)
            self.goes_on(directory.path)

    def dropped(self, directory: Directory) -> None:
        """What is known of *directory* is given up."""
        if directory.prefetched:
            directory.prefetched = False
            self.unused -= directory.counted
            self.tally.miss()
            self._level = 0

    def replaced(self, directory: Directory) -> None:
        """*directory* was listed once more before anybody entered it."""
        self.unused -= directory.counted

    def listed(self, directory: Directory) -> None:
        """*directory* was listed although nobody asked for it."""
        directory.counted = len(directory.names)
        self.unused += directory.counted
        self.tally.issued += 1

    def plan(self, path: bytes, skip: Container[Identity] = ()) -> Plan | None:
        """What to list next, now that the directory at *path* was entered; None: nothing. Not those in *skip*, as long
        as nothing changes."""
        reach = self.reach
        if self.unused >= min(self.UNUSED, 3 * reach) or not self.tally.worth:
            return None
        # Upwards: what comes after the directory in the one above, and after that one in the next.
        steps: list[tuple[Directory, bytes | None]] = []
        here = self._places.at(path)
        top = path
        while (above := self._places.above(top)) is not None and self._walked(above[1].path):
            steps.append((above[1], top.rpartition(b"/")[2]))
            top = above[1].path
        if here is not None and self._places.above(path) is not None:
            steps.insert(0, (here[1], None))
        state = self._places.changes, top
        if self._found_nothing == state:  # as at each step of a walk when all is known
            return None
        refs: list[Ref] = []
        self._left = self.SCAN
        for directory, after in steps:
            self._collect(directory, after, refs)
            if len(refs) >= self.REFS:
                break
        refs = [ref for ref in refs if ref.identity not in skip]
        if not refs:
            self._found_nothing = state
            return None
        return Plan(refs[: self.REFS], min(self.LIMITS[self._level], reach), self.DEPTH)

    def _collect(
        self, directory: Directory, after: bytes | None, refs: list[Ref], depth: int = DEPTH
    ) -> None:
        """Directories below *directory* that are not known, those behind the name *after* first."""
        if not depth:
            return
        below = directory.below()
        names: Iterable[bytes] = below.listed
        if after is not None:
            place = below.places.get(after)
            if place is None:
                return
            names = itertools.islice(below.listed, place + 1, None)
            if not self.near:
                names = itertools.chain(names, itertools.islice(below.listed, place))
        for name in names:
            self._left -= 1
            if self._left < 0 or len(refs) >= self.REFS:
                return
            identity = directory.names.get(name)
            if identity is None:
                continue
            path = join(directory.path, name)
            known = self._places.at(path)
            if known is not None:
                self._collect(known[1], None, refs, depth - 1)
            elif self._cache.known(identity) is None:
                refs.append(Ref(path, identity))


class Candidate(NamedTuple):
    """A small file whose data are worth having."""

    ref: Ref
    identity: Identity
    parent: Identity
    size: int


class _Trail:
    """Where a reader will probably go. ``next``: what there was no room for. ``ahead``: files that were fetched and not
    read yet, at most ``window``. ``above``: directories in this one are taken one after the other; None: one alone."""

    __slots__ = ("coming", "next", "ahead", "window", "above")

    def __init__(self, coming: Iterator[Candidate | None], window: int, above: bytes | None) -> None:
        self.coming = coming
        self.next: Candidate | None = None
        self.ahead = 0
        self.window = window
        self.above = above


class _Run:
    """Small files of one directory that are read one after the other."""

    __slots__ = ("count", "listed", "last", "by_name", "in_turn", "names", "places", "trail", "window")

    def __init__(self, order: list[DirEntry]) -> None:
        self.count = 0
        self.last: bytes | None = None
        self.by_name = False
        self.in_turn = False  # the last file was the one after the one before it
        self.trail: _Trail | None = None
        self.window = 0  # that of the next trail, at least
        self.listed = [entry.name for entry in order if entry.type == _DT_REG]
        self.places = {name: place for place, name in enumerate(self.listed)}
        self.names = sorted(self.listed)

    def follow(self, name: bytes, hit: bool) -> None:
        """*name* is read now; *hit*: its data were here."""
        last, self.last = self.last, name
        self.count += 1
        trail = self.trail
        if trail is not None and hit:
            trail.ahead = max(0, trail.ahead - 1)
        elif trail is not None:
            # He goes another way, or what was here had to go: from where he is now, and sooner all of the directory.
            self.window = 2 * trail.window
            self.trail = None
        place = self.places.get(name)
        before = -1 if last is None else self.places.get(last)
        if place is None or before is None:
            self.in_turn = False
            return
        step = place - before
        by_name = bisect.bisect_left(self.names, name) - (
            -1 if last is None else bisect.bisect_left(self.names, last)
        )
        self.in_turn = step == 1 or by_name == 1
        if last is None:
            return
        if step != by_name:
            self.by_name = by_name > 0 and (step <= 0 or by_name < step)

    def coming(self) -> Iterator[bytes]:
        """The names that are likely to be next, then those that were left out."""
        names = self.names if self.by_name else self.listed
        last = self.last
        if last is None:
            yield from names
            return
        if self.by_name:  # also if it is new, and not among them
            before, behind = bisect.bisect_left(names, last), bisect.bisect_right(names, last)
        else:
            before = self.places.get(last, -1)
            behind = before + 1
        yield from names[behind:]
        yield from names[: max(before, 0)]


class Siblings:
    """See ``siblings`` in the module's text. *has* tells whether a file's data are here or on their way, *distance*
    how many seconds an answer takes."""

    #: Files that are fetched ahead at first and at most, and for each second that an answer takes; directories whose
    #: runs are remembered.
    LEAST: Final = 8
    MOST: Final = 512
    PACE: Final = 25_000
    RUNS: Final = 256
    #: Directories beside each other, in each of which files were read, after which the next ones are looked at too.
    SPREAD: Final = 2
    #: Names that are looked at for one opening.
    SCAN: Final = 256

    def __init__(
        self,
        cache: Cache,
        places: Map,
        has: Callable[[Identity], bool],
        distance: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = Tally(clock)
        self._cache = cache
        self._places = places
        self._has = has
        self._distance = distance
        self._current: _Run | None = None
        self._early: dict[Identity, None] = {}
        self._runs: OrderedDict[Identity, _Run] = OrderedDict()
        self._spread: OrderedDict[bytes, set[bytes]] = (
            OrderedDict()
        )  # path -> directories in it that were read from

    @property
    def near(self) -> bool:
        """Whether the server is so near that a guess needs a reason."""
        return self.most < 8 * self.LEAST

    @property
    def most(self) -> int:
        """Files that may be fetched ahead, for how far away the server is."""
        return int(max(self.LEAST, min(self.MOST, self.PACE * self._distance())))

    def opened_early(self, parent: Identity) -> None:
        """A file in *parent* is read, of which nothing else is known yet."""
        self._early[parent] = None
        while len(self._early) > self.RUNS:
            del self._early[next(iter(self._early))]

    def opened(self, parent: Identity, directory: Directory, name: bytes, hit: bool, late: bool) -> None:
        """*name* in *directory* is read; *hit*: its data were here, or, if *late*, still on their way."""
        before = self._current
        run = self._current = self._run(parent, directory)
        if run is None:
            return
        run.follow(name, hit)
        if run.trail is None:
            self._set_out(run, None if before is None else before.trail, parent, directory, hit)
        if late and run.trail is not None:
            run.trail.window = min(2 * run.trail.window, self.most)

    def _set_out(
        self, run: _Run, before: _Trail | None, parent: Identity, directory: Directory, hit: bool
    ) -> None:
        above = self._taken_in_turn(directory.path)
        if (run.count < 2 and above is None) or (self.near and not run.in_turn):
            return
        window = self.LEAST
        if before is not None and before.above is not None:
            if hit and _within(directory.path, before.above):  # where that one led
                run.trail = before
                before.ahead = max(0, before.ahead - 1)
                return
            window = before.window
        window = min(max(window, run.window), self.most)
        run.trail = _Trail(self._coming(run, parent, directory, above), window, above)

    def _taken_in_turn(self, path: bytes) -> bytes | None:
        """The highest directory above *path* of which several others were read from, too; None if there is none."""
        found = None
        for above in _ancestors(path):
            if len(self._spread.get(above, ())) >= self.SPREAD:
                found = above
        return found

    def more(self, room: int) -> Iterator[Candidate]:
        """What to fetch after what was read last, the most urgent first, at most *room* bytes."""
        trail = None if self._current is None else self._current.trail
        if trail is None or not self.tally.worth:
            return
        for _ in range(self.SCAN):
            if trail.ahead >= trail.window:
                return
            candidate = trail.next
            if candidate is None:
                try:
                    candidate = next(trail.coming)
                except StopIteration:
                    return
            if candidate is None:
                continue
            room -= candidate.size + OVERHEAD
            if room < 0:
                trail.next = candidate
                return
            trail.next = None
            trail.ahead += 1
            yield candidate

    def _run(self, parent: Identity, directory: Directory) -> _Run | None:
        run = self._runs.get(parent)
        if run is not None:
            self._runs.move_to_end(parent)
            return run
        if directory.order is None:
            return None
        run = self._runs[parent] = _Run(directory.order)
        if parent in self._early:
            del self._early[parent]
            run.count = 1
        if len(self._runs) > self.RUNS:
            self._runs.popitem(last=False)
        below = directory.path
        for above in _ancestors(below):
            seen = self._spread.setdefault(above, set())
            self._spread.move_to_end(above)
            if len(seen) < self.SPREAD:
                seen.add(below)
            below = above
        while len(self._spread) > self.RUNS:
            self._spread.popitem(last=False)
        return run

    def forget(self) -> None:
        """All directories may be others now."""
        self._current = None
        self._runs.clear()
        self._spread.clear()

    def _coming(
        self, run: _Run, parent: Identity, directory: Directory, top: bytes | None
    ) -> Iterator[Candidate | None]:
        """What comes after the last file of *run*: in its directory, below it, and then beside it, and beside those
        above it up to what is in the directory *top*."""
        for name in run.coming():
            yield self._candidate(parent, directory, name)
        if top is not None:
            yield from self._below(directory)
            path = directory.path
            while path != top:
                yield from self._beside(path)
                path = path.rpartition(b"/")[0]

    def _candidate(self, parent: Identity, directory: Directory, name: bytes) -> Candidate | None:
        identity = directory.names.get(name)
        if identity is None or self._has(identity):
            return None
        record = self._cache.record(identity)
        if record is None or not record.cover:
            return None
        size = record.attr.size
        if not 0 < size <= SMALL or record.attr.nlink != 1 or not S_ISREG(record.attr.mode):
            return None
        return Candidate(Ref(join(directory.path, name), identity), identity, parent, size)

    def _all_of(self, identity: Identity, directory: Directory) -> Iterator[Candidate | None]:
        for name in list(directory.names):
            yield self._candidate(identity, directory, name)
        yield from self._below(directory)

    def _below(self, directory: Directory) -> Iterator[Candidate | None]:
        for name in directory.below().listed:
            below = self._places.at(join(directory.path, name))
            if below is not None:
                yield from self._all_of(*below)
            else:
                yield None

    def _beside(self, path: bytes) -> Iterator[Candidate | None]:
        """The directories that come after *path* in the one above, as a walk would take them."""
        above = self._places.above(path)
        if above is None:
            return
        name = path.rpartition(b"/")[2]
        below = above[1].below()
        for other in itertools.islice(below.listed, below.places.get(name, -1) + 1, None):
            found = self._places.at(join(above[1].path, other))
            if found is not None:
                yield from self._all_of(*found)
            else:
                yield None


def _ancestors(path: bytes) -> Iterator[bytes]:
    """The directories that *path* is in, the nearest first."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def _within(path: bytes, above: bytes) -> bool:
    """Whether *path* is *above* or below it."""
    return path == above or not above or path.startswith(above + b"/")

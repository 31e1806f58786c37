"""Which small files to fetch before anybody opens them: the policy ``siblings`` of :mod:`.prefetch`."""

from __future__ import annotations

import bisect
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from stat import S_ISREG
from typing import Final, NamedTuple

from ..protocol.messages import DirEntry, Identity, Ref
from .cache import Cache
from .directory import Directory
from .prefetch import OVERHEAD, SMALL, Map, Tally, ancestors, join, within

_DT_REG: Final = 8


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
            if hit and within(directory.path, before.above):  # where that one led
                run.trail = before
                before.ahead = max(0, before.ahead - 1)
                return
            window = before.window
        window = min(max(window, run.window), self.most)
        run.trail = _Trail(self._coming(run, parent, directory, above), window, above)

    def _taken_in_turn(self, path: bytes) -> bytes | None:
        """The highest directory above *path* of which several others were read from, too; None if there is none."""
        found = None
        for above in ancestors(path):
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
        for above in ancestors(below):
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

"""Which directories to list before anybody enters them: the policy ``subtree`` of :mod:`.prefetch`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from typing import Final, NamedTuple

from ..protocol.messages import Identity, Ref
from .cache import Cache
from .directory import Directory
from .prefetch import Map, Tally, join


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
        #: Path -> the directories in it that were entered; and if the last one came in turn, whether that was by name.
        self._visited: OrderedDict[bytes, set[bytes | None]] = OrderedDict()
        self._in_turn: dict[bytes, bool] = {}
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
                self._in_turn.pop(gone, None)
        else:
            self._visited.move_to_end(above)
        visited.add(name)
        as_listed, by_name = (before in visited for before in found[1].below().before(name))
        if as_listed or by_name:
            self._in_turn[above] = by_name and (not as_listed or self._in_turn.get(above, False))
        else:
            self._in_turn.pop(above, None)
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
        if after is None:
            names: Iterable[bytes] = below.listed
        else:
            names = below.after(after, by_name=self._in_turn.get(directory.path, False), wrap=not self.near)
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

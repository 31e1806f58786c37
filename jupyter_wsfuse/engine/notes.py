"""What operations of our own did to the files, so that what the kernel tells of them is not taken for news.

Of a file it is the state that it was left in: while it is in that very state, nobody else has changed it since. Of an
entry it is what now stands at the name, and the event that the kernel will tell of it, which is *spent* when it comes:
the state alone would not do, since what somebody else makes and removes again leaves a name as it was, and whoever
looked at it meanwhile would never hear of it. So one operation of our own excuses one event.

Operations are noted after they were done. By then their event may have been looked at already, and told; or it has
been lost. A note of an operation that began before such a moment would excuse the event of somebody else, and is not
taken.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

from ..protocol.messages import Attr, Identity

#: Notes that are kept. One that is missing costs a client that he hears of his own operation.
MOST: Final = 50_000

#: A file, an entry of a directory, or, with "moving", whatever file is being renamed.
Key = Identity | tuple[Identity, bytes] | str
MOVING: Final = "moving"

#: Size, mtime and ctime.
State = tuple[int, int, int]


def state_of(attr: Attr) -> State:
    return attr.size, attr.mtime, attr.ctime


def who(attr: Attr | None) -> object:
    """What stands at a name. Without birth times the next file may have the same number."""
    if attr is None:
        return None
    return attr.identity if attr.btime else (attr.identity, attr.ctime)


class Left(NamedTuple):
    """The ``state`` in which an operation left a file. Everybody in *workspace* is told of it by whoever did it."""

    state: State
    workspace: object


class _Expected(NamedTuple):
    """An event: its kind, what stands at the name after it, and who is told of it otherwise."""

    kind: int
    who: object
    workspace: object


class Notes:
    """For any thread. Times are those of ``perf_counter_ns``.

    Entries are named by the number of the watch on their directory, and their name: what is noted ends with the watch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Identity -> Left; (watch, identity) -> State that was told; (watch, name) -> events expected, or when one
        # was told
        self._notes: dict[Any, Any] = {}
        self._floor = 0
        self._at_work: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._notes)

    def _put(self, key: Any, value: Any) -> None:
        self._notes.pop(key, None)
        self._notes[key] = value
        if len(self._notes) > MOST:
            oldest = self._notes.pop(next(iter(self._notes)))
            if isinstance(oldest, int):
                self._floor = max(self._floor, oldest)

    # --- at work

    def begin(self, keys: Iterable[Key]) -> None:
        """An operation that may change these is being executed, until :meth:`end`."""
        with self._lock:
            for key in keys:
                self._at_work[key] = self._at_work.get(key, 0) + 1

    def end(self, keys: Iterable[Key]) -> None:
        """It has been noted what it did."""
        with self._lock:
            for key in keys:
                left = self._at_work[key] - 1
                if left:
                    self._at_work[key] = left
                else:
                    del self._at_work[key]

    def at_work(self, key: Key) -> bool:
        """Whether an operation may have changed this that has not been noted yet."""
        return key in self._at_work

    # --- files

    def left(self, attr: Attr, workspace: object) -> None:
        """An operation in *workspace* left a file as *attr* says."""
        with self._lock:
            self._put(attr.identity, Left(state_of(attr), workspace))

    def unsure(self, key: Key) -> None:
        """An operation left the file in an unknown state."""
        with self._lock:
            self._notes.pop(key, None)

    def left_by(self, attr: Attr) -> object:
        """The workspace whose operation left the file as *attr* says; None if it was none."""
        noted = self._notes.get(attr.identity)
        return noted.workspace if noted is not None and noted.state == state_of(attr) else None

    def told(self, watch: int, attr: Attr) -> bool:
        """The holders of *watch* are told that the file is as *attr* says. False if they were told that already."""
        key, state = (watch, attr.identity), state_of(attr)
        with self._lock:
            if self._notes.get(key) == state:
                return False
            self._put(key, state)
            return True

    # --- entries

    def expect(
        self, watch: int, name: bytes, kind: int, attr: Attr | None, workspace: object, began: int
    ) -> None:
        """An operation in *workspace*, which began at *began*, will be told as an event of that *kind*, and *attr* is
        what stands at the name since."""
        with self._lock:
            if began < self._floor:
                return
            key = watch, name
            noted = self._notes.get(key)
            if isinstance(noted, int):
                if began < noted:
                    return
                noted = None
            self._put(key, [*(noted or ()), _Expected(kind, who(attr), workspace)])

    def spend(self, watch: int, name: bytes, kind: int, attr: Attr | None) -> object:
        """An event came, and *attr* stands at the name now. The workspace whose operation that was; None: it is news.

        Of several operations that were noted, the events come in that order, and what stands there now is what the
        last one left. The kernel makes one event of two that are alike.
        """
        key = watch, name
        with self._lock:
            noted = self._notes.get(key)
            if isinstance(noted, list) and noted[0].kind == kind and noted[-1].who == who(attr):
                alike = list(itertools.takewhile(lambda expected: expected.kind == kind, noted))
                if all(expected.workspace is noted[0].workspace for expected in alike):
                    del noted[: len(alike)]
                    if not noted:
                        del self._notes[key]
                    return alike[0].workspace
            self._put(key, perf_counter_ns())
            return None

    def lost(self) -> None:
        """Events were lost: of nothing that was done up to now it is known what will be told."""
        with self._lock:
            self._notes.clear()
            self._floor = perf_counter_ns()

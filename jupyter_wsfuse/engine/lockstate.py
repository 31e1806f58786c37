"""What the lock table (:mod:`.locks`) knows of keys, files, sessions and requests: plain records."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..protocol.messages import Identity, Lock
from ..protocol.ranges import Span

#: Seconds between the first attempts to get a lock that a process on the server holds, and between the later
#: ones.
FIRST_RETRY: Final = 0.005
LAST_RETRY: Final = 0.25

Done = Callable[[OSError | None], None]
Found = Callable[[Lock | OSError], None]


class Key(NamedTuple):
    """Who holds a lock: ``holder`` is the lock owner for POSIX locks, the handle for a flock."""

    session: str
    flock: bool
    holder: int


class Hold(NamedTuple):
    """That a key holds some lock of a file: what is recorded for the time after an engine's death."""

    identity: Identity
    key: Key


@dataclass(frozen=True, slots=True)
class Target:
    """The open file that a lock request names. ``fd`` must stay open until the request is answered."""

    session: str
    handle: int
    identity: Identity
    fd: int
    access: int = os.O_RDWR

    def key(self, lock: Lock) -> Key:
        return Key(self.session, lock.flock, self.handle if lock.flock else lock.owner)


@dataclass(slots=True, eq=False)
class Waiting:
    """A lock request that is not answered yet."""

    target: Target
    lock: Lock
    key: Key
    wait: bool
    done: Done
    claim: bool = False  # by reclaim(): does not wait for expected locks
    answered: bool = False
    busy: bool = False  # its native lock is being taken in a worker thread
    cancelled: bool = False
    gone: int = 0  # errno: its handle or session is no more, so it must not get the lock
    timer: asyncio.TimerHandle | None = None
    pause: float = FIRST_RETRY


@dataclass(slots=True)
class Held:
    """What one key holds on one file, and through which handles it got that."""

    spans: list[Span] = field(default_factory=list)
    handles: set[int] = field(default_factory=set)
    fd: int = -1  # of a flock: the open file it is set on


@dataclass(slots=True, eq=False)
class File:
    identity: Identity
    held: dict[Key, Held] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    steps: deque[Callable[[], None]] = field(default_factory=deque)  # what comes when `busy` ends
    busy: bool = False
    fd: int = -1  # for the POSIX locks of all keys


@dataclass(slots=True)
class SessionLocks:
    files: dict[File, int] = field(default_factory=dict)  # on which it holds something: for how many keys
    spans: int = 0

"""What belongs to an open file: its number at the server, the directory page being listed, locks held."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..protocol.messages import Attr, DirEntry, Lock
from ..protocol.ranges import Span, assign

if TYPE_CHECKING:
    from .readahead import ReadAhead
    from .tree import Node


class OpenFile:
    """An open file or directory. ``handle`` is the server's number, and the kernel's.

    ``failure``: the server has lost it, and this is what every further use answers. ``local``: the server does not know
    of it (yet; ``opening``: it is being told). ``ahead``: how it is read. ``content`` and ``attr``: all of
    its data, of a small file, and its attributes when it was opened here alone, for the case that it is removed before
    the server is told.
    """

    __slots__ = (
        "handle", "node", "flags", "directory", "failure", "page", "local", "opening", "ahead", "content", "attr",
    )  # fmt: skip

    def __init__(self, handle: int, node: Node, flags: int, directory: bool = False) -> None:
        self.handle = handle
        self.node = node
        self.flags = flags
        self.directory = directory
        self.failure: OSError | None = None
        self.page: DirPage | None = None
        self.local = False
        self.opening: asyncio.Future[None] | None = None
        self.ahead: ReadAhead | None = None
        self.content: bytes | None = None
        self.attr: Attr | None = None


class DirPage:
    """One answer of the server to a listing, handed to the kernel in pieces.

    The kernel continues by the cookie of the last entry that it took, which need not be the last it was offered.
    """

    __slots__ = ("cookie", "entries", "end", "position")

    def __init__(self, cookie: int, entries: list[DirEntry], end: bool) -> None:
        self.cookie = cookie
        self.entries = entries
        self.end = end
        self.position = 0

    def find(self, cookie: int) -> int | None:
        """The index of the entry after *cookie*, None if this page does not tell.

        Looks backwards from where the last piece ended: there, or a few entries before.
        """
        for index in range(self.position, 0, -1):
            if self.entries[index - 1].cookie == cookie:
                break
        else:
            if cookie != self.cookie:
                return None
            index = 0
        return index if index < len(self.entries) or self.end else None


class Held:
    """Locks of one owner on one file. ``handle`` is the open file by which they were set."""

    __slots__ = ("handle", "spans")

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.spans: list[Span] = []


Locks = dict[tuple[int, bool], Held]  # (owner, flock)


def apply_lock(locks: Locks, handle: int, lock: Lock) -> None:
    """Note that the server has done *lock*."""
    key = (lock.owner, lock.flock)
    held = locks.get(key)
    if held is None:
        if lock.type == "u":
            return
        held = locks[key] = Held(handle)
    if lock.type != "u":
        held.handle = handle
    held.spans = assign(held.spans, lock.start, lock.end, lock.type, lock.pid)
    if not held.spans:
        del locks[key]


def locks_of(locks: Locks, handle: int) -> Iterator[Lock]:
    """The locks set by *handle*, as requests that would set them again."""
    for (owner, flock), held in locks.items():
        if held.handle == handle:
            for span in held.spans:
                yield Lock(owner, span.start, span.end, span.type, span.pid, flock)

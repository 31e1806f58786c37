"""Asks the server for listings and file data, each thing once at a time, and puts the answers where they belong.

What nobody waits for is asked within the room of a :class:`~.window.Window`, and marked as background, so that the
server does other things first. It fails silently: whoever needs it in the end asks himself, and hears why.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from ..protocol.messages import (
    ENTRY_LEASED,
    ENTRY_PLAIN,
    LEASE_SELF,
    Attr,
    Fetch,
    FetchReply,
    Identity,
    ListTree,
    Ref,
    TreeReply,
)
from .api import Requester, VfsOptions
from .cache import Cache
from .directory import Directory
from .pages import Pages
from .prefetch import OVERHEAD, SMALL, Map, Tally
from .siblings import Candidate, Siblings
from .subtree import Subtree
from .tree import Version
from .window import Window

#: Entries of one directory that are asked for when a name in it was looked up, by how often that was in vain.
LIMITS: Final = (512, 4096, 8192)
#: Entries of a directory beyond which it is listed page by page.
LARGEST: Final = 8192
#: Levels below a directory that come with it, as far as there is room, where a further request would be waited for.
_NEAR: Final = 2
#: access(2)'s bits, by ENTRY_READABLE and ENTRY_EXECUTABLE.
_ALLOWED: Final = (0, os.R_OK, os.X_OK, os.R_OK | os.X_OK)
#: Requests for subtrees under way; from near by, one.
_WALKS: Final = 2
#: Entries of one answer to a request for subtrees.
_PART: Final = 1024
#: What an entry of a listing takes on the way, in bytes, about.
_ENTRY: Final = 130


class Fetcher:
    """See the module's text. *own* makes attributes those that the mount shows; *version* tells a state of a file."""

    def __init__(
        self,
        connection: Requester,
        options: VfsOptions,
        cache: Cache,
        pages: Pages,
        *,
        own: Callable[[Attr], Attr],
        version: Callable[[Attr], Version | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.connection = connection
        self.cache = cache
        self.pages = pages
        self.window = Window(clock)
        self.places = Map(cache)
        self.subtree = Subtree(cache, self.places, self._distance, clock)
        self.siblings = Siblings(cache, self.places, self.has, self._distance, clock)
        self.ahead = Tally(clock)
        self.inline = Tally(clock)
        self.usable = False  # somebody is there to be asked
        self._policies = options.prefetch
        self._own = own
        self._version = version
        self._large: dict[
            Identity, int
        ] = {}  # directories that did not fit -> index into LIMITS of the next try
        self._listing: dict[Identity, asyncio.Future[None]] = {}
        self._single: set[asyncio.Future[None]] = set()
        self._fetching: dict[Identity, asyncio.Future[None]] = {}
        self._walks = 0
        self._tasks: set[asyncio.Task[None]] = set()
        cache.on_evict = self._evicted
        pages.on_used = self._used
        pages.on_unused = self._unused

    def wants(self, policy: str) -> bool:
        """Whether *policy* is switched on and can do anything now."""
        return self.usable and policy in self._policies

    def _distance(self) -> float:
        """Seconds that an answer takes; far away while nobody knows."""
        rtt = self.connection.rtt
        return math.inf if rtt is None else rtt

    # --- listings --------------------------------------------------------------------------------------

    def keep_tree(self, reply: TreeReply, since: int, asked: Iterable[Identity] = ()) -> None:
        """Remember what *reply*, asked for at version *since*, says; nobody asked for more than *asked*."""
        cache = self.cache
        asked = set(asked)
        for found in reply.directories:
            attr = self._own(found.attr)
            identity = attr.identity
            if found.lease:
                cache.grant(identity, since)
            cache.keep_attr(identity, attr, since)
            if not found.complete:
                self._large[identity] = self._large.get(identity, 0) + 1
                continue
            prefetched = identity not in asked
            old = cache.known(identity)
            if prefetched and old is not None and old.complete and not old.prefetched:
                prefetched = False
            if old is not None and old.prefetched:
                self.subtree.replaced(old)
            directory = cache.keep_listing(identity, found.path, found.entries, since, prefetched)
            if directory is None:
                continue
            self._large.pop(identity, None)
            self.places.put(found.path, identity)
            if prefetched:
                self.subtree.listed(directory)
            for entry in found.entries:
                child = entry.attr
                if child is not None:
                    known = child.identity
                    if entry.flags & ENTRY_LEASED:
                        cache.grant(known, since)
                    flags = entry.flags
                    cache.keep_attr(
                        known, self._own(child), since, identity,
                        plain=bool(flags & ENTRY_PLAIN), allowed=_ALLOWED[flags >> 2 & 3],
                    )  # fmt: skip

    def list_soon(self, ref: Ref, identity: Identity) -> None:
        """A name was looked up in the directory *ref*: others will be. Ask for all of them."""
        level = self._large.get(identity, 0)
        if level >= len(LIMITS) or identity in self._listing or not self.wants("subtree"):
            return
        depth = 0 if level or self.subtree.near else _NEAR
        self._list([ref], LIMITS[level], depth, [identity])

    async def listed(self, identity: Identity, *, alone: bool = False) -> None:
        """Until a listing of the directory that is under way, if one is, has come; with *alone*, if it is of
        nothing else, so that a question about a single name would take as long."""
        future = self._listing.get(identity)
        if future is not None and (not alone or future in self._single):
            await asyncio.shield(future)

    def too_large(self, identity: Identity) -> bool:
        """Whether the directory is listed page by page."""
        return self._large.get(identity, 0) >= len(LIMITS)

    def refused(self, identity: Identity) -> None:
        """The directory did not fit into the largest answer."""
        self._large[identity] = len(LIMITS)

    def entered(self, directory: Directory) -> None:
        """Somebody lists or looks up in *directory*, which is known."""
        if directory.prefetched:
            self.subtree.entered(directory)
            self.walk(directory.path)

    def arrived(self, path: bytes) -> None:
        """Somebody has entered the directory at *path*, which is not known."""
        if self.wants("subtree") and self.subtree.goes_on(path):
            self.walk(path)

    def walk(self, path: bytes) -> None:
        """Somebody walks, and is at *path*: list what comes next."""
        if self._walks >= (1 if self.subtree.near else _WALKS) or not self.wants("subtree"):
            return
        plan = self.subtree.plan(path, self._listing.keys() | self._large.keys())
        if plan is not None and self.window.room() >= min(plan.limit * _ENTRY, self.window.limit // 2):
            self._walks += 1
            # In parts, so that he who walks need not wait until all of it is listed, has come, and was taken in.
            count = min(-(-plan.limit // _PART), len(plan.refs))
            size = -(-len(plan.refs) // count)
            parts = [plan.refs[at : at + size] for at in range(0, len(plan.refs), size)]
            limit = plan.limit // len(parts)
            self._start(self._walk(path, [self._list(part, limit, plan.depth, []) for part in parts]))

    async def _walk(self, path: bytes, parts: list[asyncio.Task[None]]) -> None:
        before = self.subtree.tally.issued
        try:
            await asyncio.gather(*parts)
        finally:
            self._walks -= 1
        if self.subtree.tally.issued > before and self.subtree.eager:
            self.walk(path)

    def _list(self, refs: list[Ref], limit: int, depth: int, asked: list[Identity]) -> asyncio.Task[None]:
        """Ask for listings. They are under way from now on, not only when the task begins to run."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wanted = [ref.identity for ref in refs if ref.identity is not None]
        for identity in wanted:
            self._listing[identity] = future
        if asked:
            self._single.add(future)
        came = functools.partial(self._came, wanted, future)
        task = self._start(self._ask_for(ListTree(0, refs, limit, depth, True), asked, came))
        task.add_done_callback(lambda _: came())  # also if it was cancelled before it began
        return task

    def _came(self, wanted: list[Identity], future: asyncio.Future[None]) -> None:
        for identity in wanted:
            if self._listing.get(identity) is future:
                del self._listing[identity]
        self._single.discard(future)
        if not future.done():
            future.set_result(None)

    async def _ask_for(self, request: ListTree, asked: list[Identity], came: Callable[[], None]) -> None:
        since = self.cache.version
        token = self.window.sent(request.limit * _ENTRY)
        try:
            reply, _ = await self.connection.call(request)
            if type(reply) is TreeReply:
                self.window.answered(token, _size_of(reply))
                self.keep_tree(reply, since, asked)
        except OSError:
            pass
        finally:
            self.window.dropped(token)
            came()

    # --- small files -----------------------------------------------------------------------------------

    def has(self, identity: Identity) -> bool:
        """Whether all data of a small file are here or on their way."""
        return identity in self._fetching or self.pages.has(identity, 0)

    async def fetched(self, identity: Identity) -> bool:
        """Wait for the data of a small file that are under way; whether any were."""
        future = self._fetching.get(identity)
        if future is None:
            return False
        await asyncio.shield(future)
        return True

    def opened(self, parent: Identity, name: bytes, hit: bool, late: bool) -> None:
        """The small file *name* in *parent* was opened; *hit*: its data were here, or, if *late*, on their way."""
        if not self.wants("siblings"):
            return
        directory = self.cache.directory(parent)
        if directory is None or not directory.cover:
            self.siblings.opened_early(parent)
            return
        self.siblings.opened(parent, directory, name, hit, late)
        self._fetch_more()

    def _fetch_more(self) -> None:
        for candidate in self.siblings.more(self.window.room()):
            if candidate.identity not in self._fetching:  # by another trail that leads past it
                self.siblings.tally.issued += 1
                self._fetching[candidate.identity] = asyncio.get_running_loop().create_future()
                self._start(self._fetch(candidate))

    async def _fetch(self, candidate: Candidate) -> None:
        identity = candidate.identity
        future = self._fetching[identity]
        token = self.window.sent(candidate.size + OVERHEAD)
        since = self.cache.version
        try:
            reply, data = await self.connection.call(Fetch(0, candidate.ref, 0, SMALL, True))
            self.window.answered(token, len(data) + OVERHEAD)
            if type(reply) is FetchReply:
                self.keep_content(identity, reply.attr, data, since, candidate.parent, reply.lease, True)
        except OSError:
            self.window.dropped(token)
        finally:
            del self._fetching[identity]
            if not future.done():
                future.set_result(None)
        if self.wants("siblings"):
            self._fetch_more()

    def keep_content(
        self,
        identity: Identity,
        attr: Attr,
        data: bytes,
        since: int,
        parent: Identity | None,
        lease: int,
        prefetched: bool,
    ) -> None:
        """Remember attributes and, if *data* are all of it, the data of a file that was opened for reading or might
        have been. They were asked for at version *since*."""
        if attr.identity != identity:
            return
        if lease & LEASE_SELF:
            self.cache.grant(identity, since)
        self.cache.keep_attr(identity, self._own(attr), since, parent, readable=True)
        record = self.cache.record(identity)
        if record is None or record.attr is not attr:
            return
        if len(data) == attr.size:
            self.pages.keep(identity, 0, data, record.cover, self._version(attr), prefetched=prefetched)

    # --- life ------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do *work*, which nobody waits for, until it ends or this does."""
        self._start(work)

    def forget(self) -> None:
        """All that was known may be untrue."""
        self._large.clear()
        self.places.clear()
        self.siblings.forget()
        self.subtree.unused = 0
        self.subtree.allowance = self.subtree.UNASKED

    async def stop(self) -> None:
        """Give up what is under way."""
        self.usable = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _evicted(self, identity: Identity, directory: Directory) -> None:
        self.subtree.dropped(directory)
        self.places.remove(directory.path, identity)

    def _used(self, index: int) -> None:
        (self.siblings.tally if index == 0 else self.ahead).hit()

    def _unused(self, index: int) -> None:
        (self.siblings.tally if index == 0 else self.ahead).miss()

    def snapshot(self) -> dict[str, Any]:
        """Numbers for people."""
        return {
            "subtree": self.subtree.tally.snapshot(),
            "siblings": self.siblings.tally.snapshot(),
            "readahead": self.ahead.snapshot(),
            "inline": self.inline.snapshot(),
            "window": self.window.snapshot(),
        }


def _size_of(reply: TreeReply) -> int:
    return sum(OVERHEAD + _ENTRY * len(found.entries) for found in reply.directories)

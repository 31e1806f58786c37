"""What all operations share: asking the server about nodes, and presenting what it says to the kernel."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import secrets
import time
from collections.abc import Callable
from stat import S_IFDIR
from typing import Any, Final, TypeVar

from ..errors import errno_of, os_error
from ..protocol.messages import (
    Attr,
    Close,
    GetAttr,
    Identity,
    Open,
    OpenDir,
    OpenReply,
    Ref,
    Reply,
    Request,
)
from .api import Caller, Entry, Invalidator, NoInvalidator, Recorder, Requester, Store, VfsOptions
from .cache import Cache
from .denials import Denials
from .fetcher import Fetcher
from .handles import OpenFile
from .pages import Pages
from .profiler import Profiler
from .tree import Node, Tree, Version

log = logging.getLogger(__name__)

AnyReply = TypeVar("AnyReply", bound=Reply)

#: A file that changed less than this many nanoseconds ago may change again without another mtime
#: (a tick of the server's clock, plus what its clock and ours may differ by).
_RACY: int = 10**9

#: Operations that are given a directory and a name in it.
_BY_NAME: Final = frozenset({"lookup", "mkdir", "mknod", "symlink", "unlink", "rmdir", "rename", "create"})

#: Files that the kernel is asked to forget at a time.
_SHED: Final = 256
#: Seconds that an operation waits for that.
_FORGETTING: Final = 0.05

_NOTHING = Attr(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def _looked_at(opening: asyncio.Future[None]) -> None:
    """Whoever waits has heard of the error; if nobody does, it does not matter."""
    if not opening.cancelled():
        opening.exception()


class Core:
    """State and helpers; the operations are in the classes derived from this one.

    ``store``: where data are kept beside what is in memory; to be set by :meth:`keep_in`.
    """

    def __init__(
        self,
        connection: Requester,
        options: VfsOptions,
        recorder: Recorder | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.connection = connection
        self.options = options
        self.invalidator: Invalidator = NoInvalidator()
        self.stats = Profiler()
        self.stats.path_of = self.path_named
        self.tree = Tree(options.subdir.strip(b"/"), recorder)
        self.tree.on_drop = self._dropped
        self.cache = Cache(options, clock, wall)
        self.pages = Pages(options.page_bytes, self.cache.leases, self.cache.attr_ttl, clock)
        self.cache.on_drop = self.pages.unsure
        self.fetcher = Fetcher(
            connection, options, self.cache, self.pages, own=self._own, version=self.version, clock=clock
        )
        self.store: Store | None = None
        self.denials = Denials(clock)
        self.files: dict[int, OpenFile] = {}
        self.read_only = options.read_only
        self._came = 0  # files that the kernel was told of since it was asked to forget some
        self._wall = wall

    def keep_in(self, store: Store) -> None:
        """Keep data in *store* as well, and look there before the server is asked. Closed by whoever made it."""
        self.store = store
        self.pages.on_kept = store.put

    # --- asking ----------------------------------------------------------------------------------------

    def ref(self, node: Node) -> Ref:
        """*node* for the server: by path and identity, or by a handle if it has no name any more."""
        path = self.tree.path_of(node)
        if path is not None:
            # The root is whatever stands there: its identity is not ours to insist on.
            return Ref(path, None if node is self.tree.root else node.identity)
        handle = node.reach()
        if handle:
            return Ref(b"", None, handle)
        raise os_error(errno.ESTALE, "the file has no name any more")

    async def ask(self, expected: type[AnyReply], request: Request, key: int = 0, **nodes: Node) -> AnyReply:
        """Send *request* and return its reply.

        *key* is the kernel's number of the operation, given with the one request of it that changes something.
        *nodes* names the fields that are references: when the server answers ``ESTALE``, those are tried in
        another way before the kernel is told.
        """
        reply, _ = await self.ask_data(expected, request, key, **nodes)
        return reply

    async def ask_data(
        self, expected: type[AnyReply], request: Request, key: int = 0, **nodes: Node
    ) -> tuple[AnyReply, bytes]:
        """:meth:`ask`, and the data that came with the reply."""
        try:
            reply, data = await self.call(request, key=key)
        except OSError as error:
            if error.errno != errno.ESTALE or not nodes:
                raise
            if not await self._other_ways(request, nodes):
                raise
            reply, data = await self.call(request, key=key)
        if type(reply) is not expected:
            raise os_error(errno.EIO, f"the server answered {request} with {reply}")
        return reply, data

    async def call(self, request: Request, payload: bytes = b"", *, key: int = 0) -> tuple[Reply, bytes]:
        """Send *request* for the operation that runs, whose waiting this is, and return reply and payload."""
        stats = self.stats
        flight = stats.current
        asked_at = stats.asking()
        try:
            return await self.connection.call(request, payload, key=key)
        except OSError as error:
            self.denials.saw(request, error)
            raise
        finally:
            stats.answered(flight, asked_at)

    async def _other_ways(self, request: Request, nodes: dict[str, Node]) -> bool:
        found = False
        for field, node in nodes.items():
            named = getattr(request, field)
            several = isinstance(named, list)  # of one
            ref = await self._other_way(node, named[0] if several else named)
            if ref is not None:
                setattr(request, field, [ref] if several else ref)
                found = True
        return found

    async def _other_way(self, node: Node, stale: Ref) -> Ref | None:
        """Another reference to *node* than *stale*, if there is one."""
        self.cache.drop_attr(node.identity)
        if stale.handle:
            return None
        handle = node.reach()
        if handle:
            return Ref(b"", None, handle)
        await self._mend(node)
        path = self.tree.path_of(node)
        return Ref(path, stale.identity) if path is not None and path != stale.path else None

    async def _mend(self, node: Node) -> None:
        """Find the first step of the path to *node* that is not true any more, and forget that one."""
        steps = self.tree.chain(node)
        answers = await asyncio.gather(
            *(self.connection.call(GetAttr(0, self.ref(child))) for _, _, child in steps),
            return_exceptions=True,
        )
        for (parent, name, child), answer in zip(steps, answers, strict=True):
            if isinstance(answer, OSError) and answer.errno in (errno.ESTALE, errno.ENOENT, errno.ENOTDIR):
                if parent.children.get(name) is child:
                    self.tree.unlink(parent, name)
                self.cache.drop_entry(parent.identity, name)
                self.cache.drop_attr(child.identity)
                self.invalidator.inval_entry(parent.id, name)
                return

    def done(self, key: int) -> None:
        """The kernel has the reply of operation *key*: the server need not remember it any more."""
        self.connection.done(key)

    def interrupt(self, key: int) -> None:
        """The process that made operation *key* got a signal: stop waiting, as far as that is safe."""
        self.connection.interrupt(key)

    def repeated(self, key: int) -> None:
        """The kernel asks for *key* once more, that it asked a predecessor of this process. Before the operation."""
        self.connection.mark_repeated(key)

    def all_repeated(self) -> None:
        """The kernel has repeated everything that a predecessor of this process left unanswered."""
        self.connection.forget_others()

    # --- presenting ------------------------------------------------------------------------------------

    def _own(self, attr: Attr) -> Attr:
        if not self.options.raw:
            attr.uid = self.options.uid
            attr.gid = self.options.gid
        return attr

    def told(self, node: Node, attr: Attr, since: int, parent: Identity | None = None) -> tuple[Attr, float]:
        """*attr*, asked for at cache version *since*, goes to the kernel, and with it how long it holds. *parent*: a
        directory in which the file is."""
        self._own(attr)
        node.told = (attr.size, attr.mtime, attr.ctime)
        if node is self.tree.root and node.identity != attr.identity:
            self.tree.root_is(attr.identity)
        if node.gone:  # where files have no birth time, a new one may have the same identity by now
            return attr, 0.0
        return attr, self.keep_attr(node, attr, since, parent)

    def keep_attr(self, node: Node, attr: Attr, since: int, parent: Identity | None = None) -> float:
        """Remember *attr* of *node*, asked for at cache version *since*. The seconds that the kernel may believe it."""
        if parent is None:
            parent = self.parent_of(node)
        ttl = self.cache.keep_attr(node.identity, attr, since, parent)
        if ttl:
            self.pages.renew(node.identity, self.version(attr), self.cache.cover(attr, parent))
        return ttl

    def parent_of(self, node: Node) -> Identity | None:
        """A directory that is known to have *node* in it now."""
        for parent, name in node.names:
            known = self.cache.entry(parent.identity, name)
            if known is not None and known[0] == node.identity:
                return parent.identity
        return None

    def entry(self, parent: Node, name: bytes, attr: Attr, entry_since: int, attr_since: int) -> Entry:
        """*name* in *parent* is the file of *attr*: count the lookup and tell the kernel."""
        node = self.tree.intern(attr)
        key = (parent.identity, name)
        # An answer older than what we know must not take a name away from the node that has it.
        if self.cache.fresh(key, entry_since) or name not in parent.children:
            self.tree.link(parent, name, node)
        self._look(node)
        entry_ttl = self.cache.keep_entry(parent.identity, name, node.identity, entry_since)
        _, attr_ttl = self.told(node, attr, attr_since, parent.identity if entry_ttl else None)
        return Entry(node.id, 0, attr, entry_ttl, attr_ttl)

    def _look(self, node: Node) -> None:
        self.tree.look(node)
        if len(self.tree) > self.options.nodes:
            # Two go for one that comes. Not for each at once: those who are asked to go need a moment.
            self._came += 1
            if self._came >= _SHED // 2:
                self._came = 0
                self._shed()

    async def keep_within(self) -> None:
        """Before the kernel is told of more files: while it knows many too many, let it forget some first.

        The kernel may be kept from that by a lock that the present operation holds: so not for long.
        """
        if len(self.tree) > self.options.nodes + self.options.nodes // 8:
            try:
                async with asyncio.timeout(_FORGETTING):
                    await self.invalidator.settled()
            except TimeoutError:
                pass

    def _shed(self) -> None:
        """The kernel knows too many files: have it forget those that it was told of longest ago and does not use."""
        nodes = self.tree.nodes
        asked = 0
        for node in list(itertools.islice(nodes.values(), 4 * _SHED)):
            nodes[node.id] = nodes.pop(node.id)  # not the same ones again
            if not node.children and not node.handles and node is not self.tree.root:
                for parent, name in node.names:
                    self.invalidator.inval_entry(parent.id, name)
                asked += 1
                if asked >= _SHED:
                    break

    def cached_entry(self, parent: Node, name: bytes) -> Entry | None:
        """The same from the cache, if it knows both what *name* is and its attributes."""
        known = self.cache.entry(parent.identity, name)
        if known is None:
            return None
        identity, entry_ttl = known
        if identity is None:
            return self.no_entry(parent, name, entry_ttl)
        attributes = self.cache.attr(identity)
        if attributes is None:
            return None
        attr, attr_ttl = attributes
        node = self.tree.intern(attr)
        self.tree.link(parent, name, node)
        self._look(node)
        node.told = (attr.size, attr.mtime, attr.ctime)
        return Entry(node.id, 0, attr, entry_ttl, attr_ttl)

    def no_entry(self, parent: Node, name: bytes, ttl: float) -> Entry:
        """*name* in *parent* does not exist, for *ttl* seconds."""
        if parent is self.tree.root and not self.tree.missing(name):
            ttl = 0.0
        return Entry(0, 0, _NOTHING, ttl, 0.0)

    def version(self, attr: Attr) -> Version | None:
        """What tells this state of the file from any other; None while it may yet change unnoticed."""
        if self._wall() - max(attr.mtime, attr.ctime) < _RACY:
            return None
        return attr.size, attr.mtime, attr.ctime

    def state(self, node: Node, attr: Attr) -> Version | None:
        """The same for the kernel's pages, which are told of changes while there is a lease."""
        record = self.cache.record(node.identity)
        if record is not None and record.cover:
            return attr.size, attr.mtime, attr.ctime
        return self.version(attr)

    # --- for people ------------------------------------------------------------------------------------

    def path_named(self, operation: str, arguments: tuple[Any, ...]) -> bytes:
        """The path in the mount that *operation* with these *arguments* is about, of a rename the old one."""
        path = self._shown(arguments)
        if path is None:
            return b"(a file without a name)"
        if operation in _BY_NAME:
            return path + b"/" + arguments[2] if path else bytes(arguments[2])
        return path

    def directory_named(self, operation: str, arguments: tuple[Any, ...]) -> bytes:
        """The directory of the mount that *operation* with these *arguments* works in: of a directory, itself."""
        path = self._shown(arguments)
        if path is None:
            return b"(files without a name)"
        node = self.tree.nodes.get(arguments[1]) if len(arguments) > 1 else self.tree.root
        return path if node is not None and node.type == S_IFDIR else path.rpartition(b"/")[0]

    def _shown(self, arguments: tuple[Any, ...]) -> bytes | None:
        """The path of the first node among *arguments*, from the root of the mount; None if it has no name."""
        node = self.tree.nodes.get(arguments[1]) if len(arguments) > 1 else self.tree.root
        path = None if node is None else self.tree.path_of(node)
        return None if path is None else path[len(self.tree.prefix) :].lstrip(b"/")

    # --- open files ------------------------------------------------------------------------------------

    def opened(
        self, handle: int, node: Node, flags: int, directory: bool = False, local: bool = False
    ) -> OpenFile:
        """*node* is open as *handle*, at the server or, if *local*, here alone. Doing it twice is harmless."""
        file = self.files.get(handle)
        if file is None:
            file = self.files[handle] = node.handles[handle] = OpenFile(handle, node, flags, directory)
            file.local = local
            self.tree.record("open", handle, node.id, flags, directory, local)
        return file

    def opened_here(self, node: Node, flags: int, directory: bool = False) -> OpenFile:
        """Open *node* without telling the server; :meth:`real` does when that becomes necessary."""
        handle = 0
        while not handle or handle in self.files:
            handle = secrets.randbits(62)
        return self.opened(handle, node, flags, directory, local=True)

    async def real(self, file: OpenFile) -> OpenFile:
        """See to it that the server has *file* open, too."""
        if file.local:
            await asyncio.shield(self.tell(file))
        return file

    def tell(self, file: OpenFile) -> asyncio.Future[None]:
        """Tell the server of *file*, which is open here alone. What tasks that are started later ask is asked later."""
        if file.opening is None:
            file.opening = asyncio.get_running_loop().create_task(self._open_there(file))
            file.opening.add_done_callback(_looked_at)
        return file.opening

    async def _open_there(self, file: OpenFile) -> None:
        node = file.node
        try:
            if file.directory:
                request: Request = OpenDir(0, self.ref(node), file.handle)
            else:
                request = Open(0, self.ref(node), file.flags, False, file.handle)
            try:
                await self.ask(OpenReply, request, ref=node)
            except OSError as error:
                if (
                    error.errno != errno.EEXIST
                ):  # by a predecessor of this process that had no time to note it
                    raise
            file.local = False
            self.tree.record("real", file.handle)
            if self.files.get(file.handle) is not file:  # closed meanwhile
                self.connection.post(Close(0, file.handle))
        finally:
            file.opening = None

    def file(self, handle: int) -> OpenFile:
        """The open file of that number; raises what is wrong with it if the server has lost it."""
        file = self.files.get(handle)
        if file is None:
            raise os_error(errno.EBADF, "the handle is not open")
        if file.failure is not None:
            raise os_error(errno_of(file.failure), str(file.failure.strerror))
        return file

    def closed(self, handle: int) -> None:
        """The kernel is done with *handle*; the server is told, nobody waits for it."""
        file = self.files.get(handle)
        if file is not None:
            if file.failure is None and not file.local:
                self.connection.post(Close(0, handle))
            self.tree.record("close", handle)
            self.shut(file)

    def shut(self, file: OpenFile) -> None:
        self.files.pop(file.handle, None)
        if file.ahead is not None:
            file.ahead.close()
        node = file.node
        node.handles.pop(file.handle, None)
        for key in [key for key, held in node.locks.items() if held.handle == file.handle]:
            del node.locks[key]  # the server lets go of them with the handle
        self.tree.settle(node)

    def pin(self, node: Node | None, pin: int) -> None:
        """The server keeps a file without a name reachable by *pin*: for *node*, or for nobody."""
        if not pin or (node is not None and node.pin == pin):
            return
        if node is None or node.pin or node.id not in self.tree.nodes:
            self.connection.post(Close(0, pin))
            return
        node.pin = pin
        self.tree.record("pin", node.id, pin)

    def _dropped(self, node: Node) -> None:
        if node.pin:
            self.connection.post(Close(0, node.pin))

    # --- small checks ----------------------------------------------------------------------------------

    def may_write(self) -> None:
        if self.read_only:
            raise os_error(errno.EROFS, "mounted read-only")

    def owner(self, caller: Caller) -> tuple[int | None, int | None]:
        """Whose a new file is to be: the caller's, or (None, None) the engine's."""
        return (caller.uid, caller.gid) if self.options.raw else (None, None)

"""The plain types that a driver, the file system and the connection share. No behaviour.

Ids are integers from three different worlds and must not be mixed up: a *node* is the kernel's node id
(1 is the root), a *handle* is the engine's number of an open file, a *key* is the kernel's ``unique``
of the request being served.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from ..protocol.messages import Attr, Identity, Reply, Request, Struct, Welcome

ROOT: Final = 1  # the kernel's number of the root node

# open(2) flags as Linux numbers them on every architecture that we support; they travel as such.
O_ACCMODE: Final = 0o3
O_RDONLY: Final = 0
O_CREAT: Final = 0o100
O_EXCL: Final = 0o200
O_TRUNC: Final = 0o1000
O_APPEND: Final = 0o2000
FMODE_EXEC: Final = 0o40  # the kernel's own: opened by execve(2)

#: What may be asked for before anybody needs it; :mod:`.prefetch` says what each is.
PREFETCH: Final = frozenset({"subtree", "siblings", "readahead", "inline"})

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class Caller(NamedTuple):
    """On whose behalf an operation runs; ``key`` is the kernel's ``unique`` (0: nobody waits for it)."""

    uid: int
    gid: int
    pid: int
    key: int = 0


class Entry(NamedTuple):
    """A name that was looked up; the lookup is counted until :meth:`Vfs.forget`.

    ``node`` 0 is a negative entry: the name does not exist, valid for ``entry_ttl`` seconds.
    """

    node: int
    generation: int
    attr: Attr
    entry_ttl: float
    attr_ttl: float


class Opened(NamedTuple):
    """An open file or directory and how the kernel is to treat its pages."""

    handle: int
    keep_cache: bool
    direct_io: bool
    parallel: bool


class DirItem(NamedTuple):
    """One directory entry. ``entry`` is set by readdirplus only, its lookup already counted."""

    name: bytes
    cookie: int
    ino: int
    type: int
    entry: Entry | None


class Recorder(Protocol):
    """A write-ahead log of what a restarted daemon needs to know; fields are msgpack-able."""

    def record(self, *fields: Any) -> None: ...


class Invalidator(Protocol):
    """Tells the kernel what it must forget. Calls only queue; nothing is sent from inside a request."""

    def inval_node(self, node: int, data: bool = True) -> None:
        """Forget the attributes, and with ``data`` the pages, of *node*."""

    def inval_entry(self, parent: int, name: bytes) -> None:
        """Forget what *name* in *parent* is, or that it is not."""

    async def settled(self) -> None:
        """Return when everything queued so far has reached the kernel."""


class NoInvalidator:
    """For a file system that nobody has mounted."""

    def inval_node(self, node: int, data: bool = True) -> None:
        pass

    def inval_entry(self, parent: int, name: bytes) -> None:
        pass

    async def settled(self) -> None:
        pass


class Requester(Protocol):
    """What the file system needs of :class:`~.connection.Connection`."""

    on_notification: Callable[[Struct], None]
    on_welcome: Callable[[Welcome, str], Awaitable[None]]
    on_state: Callable[[str], None]
    live_handles: Callable[[], list[int]] | None

    @property
    def welcome(self) -> Welcome | None: ...

    @property
    def rtt(self) -> float | None:
        """Seconds of a round trip, as measured last."""

    async def call(
        self, request: Request, payload: bytes = b"", *, key: int = 0, recovery: bool = False
    ) -> tuple[Reply, bytes]: ...

    def post(self, request: Request) -> None: ...

    def done(self, key: int) -> None: ...

    def interrupt(self, key: int) -> None: ...

    def mark_repeated(self, key: int) -> None: ...

    def forget_others(self) -> None: ...


class Store(Protocol):
    """Blocks of files that outlive the mount, by the file's identity, the version of its data, and their index."""

    async def get(self, identity: Identity, version: tuple[int, int, int], index: int) -> bytes | None:
        """The block, if it is there."""

    def put(self, identity: Identity, version: tuple[int, int, int], index: int, data: bytes) -> None:
        """Keep a block, some time soon."""


@dataclass(frozen=True)
class VfsOptions:
    """How a workspace is shown. Times to live are in seconds.

    ``subdir``: the directory of the workspace that becomes the root, ``b""`` for all of it.
    ``owner``: "squash" shows everything as belonging to ``uid``/``gid``; "raw" passes numbers through.
    ``links``: "keep", "contain" or "follow". ``cache`` False: nothing is kept, by us or by the kernel. The times to
    live are for what no lease covers. ``*_bytes`` bound what is remembered, in bytes of memory; ``nodes``: files that
    the kernel may know at a time. ``prefetch``: the policies in force, of :data:`PREFETCH`.
    """

    read_only: bool = False
    subdir: bytes = b""
    owner: str = "squash"
    uid: int = os.getuid()
    gid: int = os.getgid()
    links: str = "keep"
    cache: bool = True
    attr_ttl: float = 1.0
    entry_ttl: float = 1.0
    negative_ttl: float = 0.0
    attr_bytes: int = 48 << 20
    entry_bytes: int = 32 << 20
    page_bytes: int = 48 << 20
    nodes: int = 60_000
    page_entries: int = 1000
    prefetch: frozenset[str] = frozenset()

    @property
    def raw(self) -> bool:
        return self.owner == "raw"

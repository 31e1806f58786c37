"""A connection without a network: requests are executed by the engine's own operations on a directory.

What a network and a restarted engine do to a client is injected: :attr:`LocalEngine.before` is awaited with every
request, :attr:`LocalEngine.after` with every reply; both may raise. Locks are granted by a table of its own.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jupyter_wsfuse.client.vfs import Caller, NoInvalidator, Vfs, VfsOptions
from jupyter_wsfuse.engine import operations
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol import messages as m


class Clock:
    """Seconds for the cache, nanoseconds for the wall; both stand still until told. The wall is far ahead of the
    disk's clock, so that files count as quiet unless a test says otherwise."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.wall_ns = 2**62

    def __call__(self) -> float:
        return self.seconds

    def wall(self) -> int:
        return self.wall_ns


class Grants:
    """Leases on everything. Nobody watches: a test says what has changed."""

    def directory(self, fd: int, attr: m.Attr, name: bytes = b"") -> bool:
        return True

    def file(self, fd: int, attr: m.Attr) -> bool:
        return True

    def holds(self, identity: m.Identity) -> bool:
        return True


class LocalEngine:
    def __init__(self, root: Path, *, raw: bool = False, leases: bool = False) -> None:
        self.sandbox = Sandbox(root)
        self.context = operations.Context(self.sandbox, raw_owner=raw)
        self.leases = leases
        self.rtt: float | None = None
        if leases:
            self.context.leases = Grants()
        self.raw = raw
        self.on_notification: Callable[[m.Struct], None] = lambda message: None
        self.on_welcome: Callable[[m.Welcome, str], Awaitable[None]] = self._nobody
        self.on_state: Callable[[str], None] = lambda state: None
        self.live_handles: Callable[[], list[int]] | None = None
        self.requests: list[m.Request] = []
        self.posted: list[m.Request] = []
        self.calls: list[tuple[str, int]] = []
        self.remembered: dict[int, Any] = {}  # what the engine keeps for the case that a request comes again
        self.used: set[int] = set()  # keys that this process has made a request under
        self.before: Callable[[m.Request], Awaitable[None]] | None = None
        self.after: Callable[[m.Request, m.Reply], Awaitable[m.Reply | None]] | None = None
        self.locks: list[tuple[m.Identity, m.Lock]] = []
        self.seq = 2**62

    async def _nobody(self, welcome: m.Welcome, kind: str) -> None: ...

    @property
    def welcome(self) -> m.Welcome:
        root = self.execute(m.GetAttr(0, m.Ref(b"")), b"")[0].attr
        return m.Welcome(
            1, "session", 1, False, False, 512, 1 << 26, 1 << 20, "default", root, 0, 0, False, self.raw,
            features=[m.LEASES] if self.leases else [],
        )  # fmt: skip

    async def call(
        self, request: m.Request, payload: bytes = b"", *, key: int = 0, recovery: bool = False
    ) -> tuple[m.Reply, bytes]:
        assert m.msgspec.msgpack.encode(request)  # everything can travel
        once = key and request.once and key not in self.used
        if once:
            self.used.add(key)
            if key in self.remembered:
                result = self.remembered[key]
                if isinstance(result, OSError):
                    raise result
                return result
        self.seq += 1
        request.seq = key if once else self.seq
        self.requests.append(request)
        if self.before is not None:
            await self.before(request)
        try:
            reply, data = self.execute(request, payload)
        except OSError as error:
            if once:
                self.remembered[key] = error
            raise
        if once:
            self.remembered[key] = (reply, bytes(data))
        if self.after is not None:
            reply = await self.after(request, reply) or reply
        return reply, bytes(data)

    def execute(self, request: m.Request, payload: bytes) -> Any:
        if isinstance(request, m.GetLock):
            identity = self.context.handles.get(request.handle).identity
            return m.LockReply(request.seq, self._conflict(identity, request.lock)), b""
        if isinstance(request, m.SetLock):
            return self._set_lock(request), b""
        if isinstance(request, m.Reopen) and request.locks:
            reply, data = operations.execute(self.context, request, payload)
            for lock in request.locks:
                self._set_lock(m.SetLock(0, request.handle, lock))
            return reply, data
        return operations.execute(self.context, request, payload)

    def _conflict(self, identity: m.Identity, lock: m.Lock) -> m.Lock | None:
        for other, held in self.locks:
            if other == identity and held.owner != lock.owner and "w" in (held.type, lock.type):
                return held
        return None

    def _set_lock(self, request: m.SetLock) -> m.LockReply:
        identity = self.context.handles.get(request.handle).identity
        lock = request.lock
        if lock.type == "u":
            self.locks = [(i, held) for i, held in self.locks if (i, held.owner) != (identity, lock.owner)]
            return m.LockReply(request.seq)
        if self._conflict(identity, lock) is not None:
            raise os_error(errno.EAGAIN)
        self.locks.append((identity, lock))
        attr = self.execute(m.GetAttr(0, m.Ref(b"", None, request.handle)), b"")[0].attr
        return m.LockReply(request.seq, attr=attr)

    def post(self, request: m.Request) -> None:
        self.posted.append(request)
        operations.execute(self.context, request)

    def done(self, key: int) -> None:
        self.calls.append(("done", key))
        self.remembered.pop(key, None)

    def interrupt(self, key: int) -> None:
        self.calls.append(("interrupt", key))

    def mark_repeated(self, key: int) -> None:
        self.calls.append(("repeated", key))

    def forget_others(self) -> None:
        self.calls.append(("forget_others", 0))

    def repeats(self) -> None:
        """From now on this stands for another process, of which the kernel asks everything again."""
        self.used.clear()

    def restart(self) -> None:
        """As if the engine had been killed: open files, pins and locks are gone."""
        self.context.handles.close_all()
        self.locks.clear()

    def close(self) -> None:
        self.context.handles.close_all()
        self.sandbox.close()

    def count(self, kind: type[m.Request]) -> int:
        return sum(type(request) is kind for request in self.requests)


class Notes(NoInvalidator):
    """An invalidator that notes what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.settlings = 0

    def inval_node(self, node: int, data: bool = True) -> None:
        self.seen.append((node, data))

    def inval_entry(self, parent: int, name: bytes) -> None:
        self.seen.append((parent, name))

    async def settled(self) -> None:
        self.settlings += 1


class Log:
    """A recorder that can be replayed."""

    def __init__(self) -> None:
        self.records: list[tuple[Any, ...]] = []

    def record(self, *fields: Any) -> None:
        self.records.append(m.msgspec.msgpack.decode(m.msgspec.msgpack.encode(fields)))


class Mount:
    """A file system over a directory, with shorthands for tests. ``caller()`` has a new key each time."""

    def __init__(self, root: Path, *, raw: bool = False, leases: bool = False, **options: Any) -> None:
        self.root = root
        self.engine = LocalEngine(root, raw=raw, leases=leases)
        self.clock = Clock()
        self.log = Log()
        self.options = VfsOptions(**{"uid": 1234, "gid": 1234, **options})
        self.vfs = self.make()
        self.notes = Notes()
        self.vfs.invalidator = self.notes

    def make(self) -> Vfs:
        return Vfs(self.engine, self.options, self.log, clock=self.clock, wall=self.clock.wall)

    async def start(self) -> Mount:
        await self.vfs.start()
        await self.engine.on_welcome(self.engine.welcome, "new")
        self.engine.on_state("connected")
        return self

    def caller(self, uid: int = 0, gid: int = 0) -> Caller:
        return Caller(uid, gid, 1, 2 * secrets.randbits(40) + 2)

    async def node(self, path: bytes) -> int:
        """The node of *path*, looked up step by step; each lookup is counted."""
        node = 1
        for name in path.split(b"/"):
            node = (await self.vfs.lookup(self.caller(), node, name)).node
        return node

    async def open(self, path: bytes, flags: int = 0) -> tuple[int, int]:
        node = await self.node(path)
        return node, (await self.vfs.open(self.caller(), node, flags)).handle

    async def restarted(self) -> Vfs:
        """A new daemon's file system, by the records of the old one."""
        vfs = Vfs(self.engine, self.options, None, clock=self.clock, wall=self.clock.wall)
        vfs.restore(self.log.records)
        return vfs


def state(vfs: Vfs) -> list[tuple[Any, ...]]:
    return sorted(vfs.snapshot(), key=repr)

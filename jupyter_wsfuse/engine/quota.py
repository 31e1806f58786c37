"""How much a workspace may hold on disk, the way du counts: blocks, and a file with several names once.

The account is kept up as requests change files, each compared before and after, and is set right by counting
everything now and then, since others change the workspace as well. A request that would make it grow over
the limit fails with ``EDQUOT`` and has done nothing. What needs no more blocks, like overwriting, always works.

A file without a name counts for as long as a client has it open: it is on the disk until then.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeAlias

from ..errors import os_error
from ..protocol import messages as m
from ..protocol.messages import Attr, Identity
from . import syscalls
from .blocks import BLOCK, SECTOR, Stopped, measure, missing
from .context import Context, Payload, Result, check_range
from .handles import Handle
from .links import real_path
from .sandbox import Target

_LOG = logging.getLogger(__name__)

#: Seconds from one count to the next, if that takes no more than the fraction of the time below.
INTERVAL: Final = 300.0
_SHARE: Final = 0.05
#: What a new name may need: a block for itself, one more for the directory.
_NAME: Final = 2 * BLOCK
#: Bytes that one CopyRange copies at most.
_COPY_MAX: Final = 128 << 20
#: Files that are remembered after their blocks were taken off the account.
_RELEASED_MAX: Final = 4096

_Key: TypeAlias = tuple[int, int]  # device and inode: of a file that is held open, so they stay its own


class _Changing:
    """A file that requests are changing. ``blocks``: as many are in the account."""

    __slots__ = ("blocks", "removed", "users")

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.users = 0
        self.removed = False


class Quota:
    """The account of the workspace below *root*, which may hold *limit* bytes. Safe to use from several threads.

    Nothing is counted before :meth:`start`. Until the first count is done, only what was added since is held
    against the limit. *follow*: links may lead out of the workspace; what is reached that way does not count.

    It is the ``observer`` of the handle tables of all sessions of the workspace.
    """

    def __init__(
        self,
        limit: int,
        root: bytes,
        *,
        follow: bool = False,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limit = limit
        self.root = root
        self._follow = follow
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._used = 0
        self._reserved = 0
        self._grown = self._shrunk = 0  # since the count that is under way began
        self._changing: dict[_Key, _Changing] = {}
        self._open: dict[_Key, set[Handle]] = {}
        self._released: dict[Identity, None] = {}
        self._refused = 0
        self._counted: float | None = None
        self._seconds = 0.0
        self._unreadable = 0
        self._error = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- for the status page and df

    @property
    def used(self) -> int:
        """Bytes, as far as is known."""
        return max(0, self._used)

    def describe(self) -> dict[str, Any]:
        """For the status page. ``counted``: when everything was counted last, None if it has not been yet.
        ``unreadable``: folders that the count could not look into; the account never gets smaller by it then."""
        return {
            "limit": self.limit,
            "used": self.used,
            "counted": self._counted,
            "count_seconds": self._seconds,
            "unreadable": self._unreadable,
            "refused": self._refused,
            "error": self._error,
        }

    def stat_fs(self, reply: m.StatFsReply) -> m.StatFsReply:
        """*reply* with no more space, in all and free, than the quota leaves."""
        unit = max(1, reply.frsize)
        free = max(0, self.limit - self.used) // unit
        reply.blocks = min(reply.blocks, self.limit // unit)
        reply.bfree = min(reply.bfree, free)
        reply.bavail = min(reply.bavail, free)
        return reply

    # --- requests

    def account(self, context: Context, request: Any, payload: Payload, run: Callable[[], Result]) -> Result:
        """Execute *run*, which is *request* with *payload* on the files, if there is room for what it may add.
        ``EDQUOT`` otherwise, with nothing done. What *run* raises is raised. In a worker thread."""
        handler = _HANDLERS.get(type(request))
        return run() if handler is None else handler(self, context, request, payload, run)

    @contextmanager
    def changing(self, fd: int, most: int = 0, precise: Callable[[], int] | None = None) -> Iterator[None]:
        """The file that *fd* is open on changes in the block, and may need *most* more bytes on disk; *precise*
        says how many, and is asked if that is too much."""
        if self._elsewhere(fd):
            yield
            return
        reserved = self._reserve(most, precise)
        try:
            info = os.fstat(fd)
            key = info.st_dev, info.st_ino
            with self._lock:
                entry = self._changing.get(key)
                if entry is None:
                    # Under the lock, here and below: of two looks the later one is entered later.
                    entry = self._changing[key] = _Changing(os.fstat(fd).st_blocks)
                entry.users += 1
            try:
                yield
            finally:
                with self._lock:
                    blocks = os.fstat(fd).st_blocks
                    self._add((blocks - entry.blocks) * SECTOR)
                    entry.blocks = blocks
                    entry.users -= 1
                    if not entry.users:
                        del self._changing[key]
                        if entry.removed and key not in self._open:
                            self._add(-blocks * SECTOR)
        finally:
            with self._lock:
                self._reserved -= reserved

    @contextmanager
    def making(self) -> Iterator[Callable[[Attr], None]]:
        """A file is made in the block, which gives its attributes to the function that it gets."""
        reserved = self._reserve(_NAME, None)

        def made(attr: Attr) -> None:
            with self._lock:
                self._add(attr.blocks * SECTOR)

        try:
            yield made
        finally:
            with self._lock:
                self._reserved -= reserved

    def removed(self, attr: Attr) -> None:
        """A file has lost its last name. Its blocks are free again, unless a client has it open."""
        key = attr.dev, attr.ino
        with self._lock:
            if key in self._open:
                return
            entry = self._changing.get(key)
            if entry is not None:
                entry.removed = True
                return
            self._add(-attr.blocks * SECTOR)
            # Somebody who has found the file before may be about to open it.
            self._released[attr.identity] = None
            if len(self._released) > _RELEASED_MAX:
                del self._released[next(iter(self._released))]

    def _reserve(self, most: int, precise: Callable[[], int] | None) -> int:
        with self._lock:
            if self._used + self._reserved + most <= self.limit:
                self._reserved += most
                return most
        need = most if precise is None else precise()
        with self._lock:
            if need and self._used + self._reserved + need > self.limit:
                self._refused += 1
                raise os_error(errno.EDQUOT, f"the workspace's quota of {self.limit} bytes is used up")
            self._reserved += need
            return need

    def _add(self, change: int) -> None:
        self._used += change
        if change > 0:
            self._grown += change
        else:
            self._shrunk -= change

    def _elsewhere(self, fd: int) -> bool:
        """Whether *fd* was reached through a link that leads out of the workspace."""
        if not self._follow:
            return False
        root = os.path.realpath(self.root)
        path = real_path(fd)
        return path != root and not path.startswith(root.rstrip(b"/") + b"/")

    # --- open files

    def opened(self, handle: Handle) -> None:
        """A session has *handle* now."""
        key = handle.identity.dev, handle.identity.ino
        with self._lock:
            handles = self._open.get(key)
            if handles is not None:
                handles.add(handle)
                return
            self._open[key] = {handle}
            if handle.identity in self._released:  # or one whose inode was given to a new file
                info = os.fstat(handle.fd)
                if not info.st_nlink:
                    del self._released[handle.identity]
                    self._add(info.st_blocks * SECTOR)

    def closing(self, handle: Handle) -> None:
        """The descriptor of *handle*, which is still open, is about to be closed."""
        key = handle.identity.dev, handle.identity.ino
        with self._lock:
            handles = self._open.get(key)
            if handles is None:
                return
            handles.discard(handle)
            if handles:
                return
            del self._open[key]
            info = os.fstat(handle.fd)
            if info.st_nlink or self._elsewhere(handle.fd):
                return
            entry = self._changing.get(key)
            if entry is None:
                self._add(-info.st_blocks * SECTOR)
            else:
                entry.removed = True

    # --- counting

    def start(self) -> None:
        """Count everything, now and from time to time, in a thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="quota", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Count no more. A count that the file system keeps waiting is left behind."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.count()
            except Stopped:
                return
            except Exception:
                _LOG.exception("what a workspace holds could not be counted")
            self._stop.wait(max(self._interval, self._seconds / _SHARE))

    def count(self) -> None:
        """Count everything and set the account right. Takes its time: the faster, the less is in force yet."""
        began = time.monotonic()
        first = self._counted is None
        with self._lock:
            self._grown = self._shrunk = 0
        try:
            total, unreadable = measure(self.root, self._stop, rest=0.25 if first else 4.0)
            total += self._nameless()
        except OSError as exc:
            self._error = exc.strerror or str(exc)
            self._seconds = time.monotonic() - began
            return
        with self._lock:
            # Of what changed meanwhile, nobody knows how much the count has seen. Between these bounds the account
            # knows better, as it has every change that went through the engine.
            low, high = total - self._shrunk, total + self._grown
            used = self._used + total if first else self._used
            used = min(max(used, low), high)
            self._used = max(used, self._used) if unreadable else used
        self._unreadable = unreadable
        self._error = ""
        self._counted = self._clock()
        self._seconds = time.monotonic() - began

    def _nameless(self) -> int:
        """Bytes of the open files that have no name."""
        with self._lock:
            keys = list(self._open)
        total = 0
        for key in keys:
            with self._lock:  # no descriptor in the table is closed meanwhile
                for handle in self._open.get(key, ()):
                    info = os.fstat(handle.fd)
                    if not info.st_nlink and not self._elsewhere(handle.fd):
                        total += info.st_blocks * SECTOR
                    break
        return total


# --- what each request may change

_Run: TypeAlias = Callable[[], Result]


def _hold(held: ExitStack, context: Context, ref: m.Ref) -> Target | None:
    """What *ref* means, held until the end of *held*; None if it means nothing, which the operation will say."""
    try:
        return held.enter_context(context.sandbox.resolve(ref, context.handles))
    except OSError:
        return None


def _by_handle(
    quota: Quota, context: Context, id: int, run: _Run, span: Callable[[Handle], tuple[int, int]]
) -> Result:
    """*span*: the offset from which on, and for how many bytes, the file may need blocks."""
    with ExitStack() as held:
        try:
            handle = held.enter_context(context.handles.use(id))
            offset, length = span(handle)
            check_range(offset, length, offset + length)
        except OSError:  # it will fail, and say why
            return run()
        most = length + 2 * BLOCK if length else 0
        with quota.changing(handle.fd, most, lambda: missing(handle.fd, offset, length)):
            return run()


def _write(quota: Quota, context: Context, request: m.Write, payload: Payload, run: _Run) -> Result:
    def span(handle: Handle) -> tuple[int, int]:
        offset = os.fstat(handle.fd).st_size if handle.append else request.offset
        return offset, len(payload)

    return _by_handle(quota, context, request.handle, run, span)


def _fallocate(quota: Quota, context: Context, request: m.Fallocate, payload: Payload, run: _Run) -> Result:
    length = 0 if request.mode & syscalls.FALLOC_FL_PUNCH_HOLE else request.length
    return _by_handle(quota, context, request.handle, run, lambda handle: (request.offset, length))


def _copy_range(quota: Quota, context: Context, request: m.CopyRange, payload: Payload, run: _Run) -> Result:
    def span(target: Handle) -> tuple[int, int]:
        with context.handles.use(request.source) as source:
            rest = max(0, os.fstat(source.fd).st_size - request.source_offset)
        return request.target_offset, min(request.length, rest, _COPY_MAX)

    return _by_handle(quota, context, request.target, run, span)


def _by_ref(quota: Quota, context: Context, ref: m.Ref, run: _Run, most: int = 0) -> Result:
    with ExitStack() as held:
        target = _hold(held, context, ref)
        if target is None:
            return run()
        with quota.changing(target.fd, most):
            return run()


def _set_attr(quota: Quota, context: Context, request: m.SetAttr, payload: Payload, run: _Run) -> Result:
    return run() if request.size is None else _by_ref(quota, context, request.ref, run)


def _open(quota: Quota, context: Context, request: m.Open, payload: Payload, run: _Run) -> Result:
    return _by_ref(quota, context, request.ref, run) if request.flags & os.O_TRUNC else run()


def _set_xattr(quota: Quota, context: Context, request: m.SetXattr, payload: Payload, run: _Run) -> Result:
    return _by_ref(quota, context, request.ref, run, len(request.value))


def _remove_xattr(
    quota: Quota, context: Context, request: m.RemoveXattr, payload: Payload, run: _Run
) -> Result:
    return _by_ref(quota, context, request.ref, run)


def _create(quota: Quota, context: Context, request: m.Create, payload: Payload, run: _Run) -> Result:
    """It may be there already, and then this is an Open."""
    with ExitStack() as held:
        parent = _hold(held, context, request.parent)
        if parent is None:
            return run()
        try:
            fd = context.sandbox.lookup(parent.fd, request.name)
        except FileNotFoundError:
            return _make_in(quota, parent, run)
        except OSError:
            return run()
        held.callback(os.close, fd)
        with quota.changing(fd):
            return run()


def _make(quota: Quota, context: Context, request: Any, payload: Payload, run: _Run) -> Result:
    with ExitStack() as held:
        parent = _hold(held, context, request.parent)
        return run() if parent is None else _make_in(quota, parent, run)


def _make_in(quota: Quota, parent: Target, run: _Run) -> Result:
    if quota._elsewhere(parent.fd):
        return run()
    with quota.making() as made, quota.changing(parent.fd):
        result = run()
        made(result[0].attr)  # type: ignore[attr-defined]  # of all replies to these requests
        return result


def _link(quota: Quota, context: Context, request: m.Link, payload: Payload, run: _Run) -> Result:
    return _by_ref(quota, context, request.parent, run, BLOCK)


def _remove(
    quota: Quota, context: Context, request: m.Unlink | m.RmDir | m.Rename, payload: Payload, run: _Run
) -> Result:
    place = request.new_parent if isinstance(request, m.Rename) else request.parent
    with ExitStack() as held:
        counted = True
        if quota._follow:
            parent = _hold(held, context, place)
            counted = parent is not None and not quota._elsewhere(parent.fd)
        result = run()
    reply = result[0]
    if counted and isinstance(reply, m.RemovedReply) and reply.attr is not None:
        attr = reply.attr
        if not attr.nlink or stat.S_ISDIR(attr.mode):
            quota.removed(attr)
    return result


def _stat_fs(quota: Quota, context: Context, request: m.StatFs, payload: Payload, run: _Run) -> Result:
    reply, data = run()
    return quota.stat_fs(reply) if isinstance(reply, m.StatFsReply) else reply, data


#: Requests that are not here change no blocks.
_HANDLERS: Final[dict[type[m.Request], Callable[[Quota, Context, Any, Payload, _Run], Result]]] = {
    m.Write: _write,
    m.Fallocate: _fallocate,
    m.CopyRange: _copy_range,
    m.SetAttr: _set_attr,
    m.Open: _open,
    m.SetXattr: _set_xattr,
    m.RemoveXattr: _remove_xattr,
    m.Create: _create,
    m.TmpFile: _make,
    m.MkDir: _make,
    m.MkNod: _make,
    m.SymLink: _make,
    m.Link: _link,
    m.Unlink: _remove,
    m.RmDir: _remove,
    m.Rename: _remove,
    m.StatFs: _stat_fs,
}

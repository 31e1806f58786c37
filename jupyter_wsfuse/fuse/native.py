"""The kernel's FUSE protocol, spoken on ``/dev/fuse``: negotiation, dispatch, exactly one reply.

A request is answered in one place, :meth:`NativeDriver._finished`, which each operation reaches exactly once, however
it ends. Only three kinds are answered elsewhere: INIT, INTERRUPT (by an error alone, and only if its target is not
running) and what we do not have. FORGET has no reply.

``ENOSYS`` is the one error that the kernel remembers for the life of the mount. It is the answer to operations that
we do not have, and means there: do without. The kernel then polls regular files itself, never asks for BMAP or DAX
mappings again, and falls back to older forms of newer operations. No operation of the file system can answer it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from jupyter_wsfuse.busypoll import BusyPoll
from jupyter_wsfuse.errors import MountError, WsFuseError, errno_of
from jupyter_wsfuse.fuse import abi, replies, wire
from jupyter_wsfuse.fuse import requests as rq
from jupyter_wsfuse.fuse.interface import Caller, FileSystem
from jupyter_wsfuse.fuse.notifier import Notifier
from jupyter_wsfuse.fuse.operations import OPERATIONS, Body, Held
from jupyter_wsfuse.fuse.running import Running

log = logging.getLogger(__name__)

#: What we ask for, as far as the kernel has it.
#: Not WRITEBACK_CACHE: another client's writes would be overwritten by pages that are late.
#: Not DONT_MASK: the kernel applies the caller's umask. Not SETXATTR_EXT: for POSIX ACLs only, which we leave alone.
WANTED: Final = (
    abi.ASYNC_READ
    | abi.POSIX_LOCKS
    | abi.ATOMIC_O_TRUNC
    | abi.EXPORT_SUPPORT
    | abi.BIG_WRITES
    | abi.FLOCK_LOCKS
    | abi.AUTO_INVAL_DATA
    | abi.DO_READDIRPLUS
    | abi.READDIRPLUS_AUTO
    | abi.ASYNC_DIO
    | abi.PARALLEL_DIROPS
    | abi.ABORT_ERROR
    | abi.MAX_PAGES_FLAG
    | abi.CACHE_SYMLINKS
    | abi.NO_OPENDIR_SUPPORT
    | abi.HANDLE_KILLPRIV_V2
    | abi.INIT_EXT
    | abi.DIRECT_IO_ALLOW_MMAP
    | abi.HAS_RESEND
)

# Read-ahead is the bdi's business (see device.raise_read_ahead); this must only not lower it.
_MAX_READAHEAD: Final = 64 << 20

#: Requests taken from the kernel in one turn of the event loop: a busy mount must not starve the connection.
_BURST: Final = 16

#: How far back a successor without HAS_RESEND looks for requests that its predecessor took and left unanswered.
_ORPHANS: Final = 1 << 16

_UNMOUNTED: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})
# EINTR, ENOENT: the request was taken back while it was being read.
_READ_AGAIN: Final = frozenset({errno.EINTR, errno.ENOENT})


@dataclass(frozen=True)
class DriverOptions:
    """``max_background``: requests of read-ahead and asynchronous I/O in flight. ``refuse``: INIT flags not to use.
    ``no_opendir``: the file system lists a directory that was not opened; the kernel then keeps listings itself, until
    told otherwise, and asks for nothing at all to list a directory again."""

    max_write: int = abi.MAX_WRITE
    max_background: int = 512
    refuse: int = 0
    no_opendir: bool = False


class NativeDriver:
    """Serves *fs* on the open ``/dev/fuse`` descriptor *fd*, which stays the caller's to close.

    *before_reply* runs before each answer is written: what the answer makes the kernel know must be safe by then.
    *on_init* is given the negotiated state, a small dict of numbers. A driver that takes over a descriptor from one
    that is gone is given it as *state*; the kernel then sends again what was not answered, under the same keys.

    Implements :class:`~.interface.Invalidator` while :meth:`run` runs.
    """

    def __init__(
        self,
        fd: int,
        fs: FileSystem,
        *,
        options: DriverOptions | None = None,
        state: dict[str, int] | None = None,
        before_reply: Callable[[], None] | None = None,
        on_init: Callable[[dict[str, int]], None] | None = None,
    ) -> None:
        self.state = state
        self.aborted = False
        """Whether the end was an abort, or the last descriptor closed elsewhere: the mount is still to be removed."""
        self._fd = fd
        self._fs = fs
        self._options = options or DriverOptions()
        self._before_reply = before_reply
        self._on_init = on_init
        self._buffer = bytearray(abi.READ_BUFFER)
        self._view = memoryview(self._buffer)
        self._running: dict[int, Running] = {}
        self._idle: asyncio.Event | None = None
        self._debug = log.isEnabledFor(logging.DEBUG)
        self._immediate: dict[type[rq.Request], Callable[[Any], None]] = {
            rq.Forget: self._forget,
            rq.BatchForget: self._batch_forget,
            rq.Init: self._init,
            rq.Interrupt: self._interrupt,
            rq.Unsupported: self._unsupported,
        }
        self._operations = dict(OPERATIONS)
        if state is not None:
            self._settle(state["flags"])
        # The predecessor's unanswered requests, which the kernel will not send again: see _answer_orphans.
        self._orphans = state is not None and not state["flags"] & abi.HAS_RESEND
        # Until the kernel's queue is empty for the first time, a predecessor's requests may come again.
        self._repeating = state is not None

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the mount is gone, or :meth:`stop`. Raises MountError for a kernel too old, OSError for a bad *fd*.

        What is running then is cancelled; its reply, if anybody waits for it still, is EIO.
        """
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._notifier = Notifier(self._fd, self._loop)
        self._poll = BusyPoll(self._loop)
        self._fs.invalidator = self
        os.set_blocking(self._fd, False)
        try:
            if self.state is not None and not self._orphans:
                # Before the first read, or what we read ourselves would come twice. Takes no lock: safe right here.
                os.write(self._fd, replies.resend())
            self._loop.add_reader(self._fd, self._readable)
            try:
                await self._ended
            finally:
                self._loop.remove_reader(self._fd)
                await self._drop_all()
        finally:
            thread = self._notifier.close()
            if thread is not None:
                await self._loop.run_in_executor(None, thread.join)

    async def stop(self) -> None:
        """Read no more requests, wait for those that run, and let :meth:`run` return. The mount stays as it is.

        To give up on those that run, cancel the task of :meth:`run`.
        """
        self._loop.remove_reader(self._fd)
        await self._until_idle()
        self._end(None)

    def abandon(self) -> list[int]:
        """Stop at once and answer nothing, as if killed; a successor gets it all again. The keys left unanswered."""
        self._loop.remove_reader(self._fd)
        left = list(self._running)
        for running in self._running.values():
            running.tag = None
            running.cancel()
        self._running.clear()
        self._end(None)
        return left

    def _end(self, error: Exception | None) -> None:
        if not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    async def _drop_all(self) -> None:
        for running in self._running.values():
            running.cancel()
        await self._until_idle()

    async def _until_idle(self) -> None:
        while self._running:
            self._idle = asyncio.Event()
            await self._idle.wait()

    # --- Invalidator -----------------------------------------------------------------------------------------------

    def inval_node(self, node: int, data: bool = True) -> None:
        """See :class:`~.interface.Invalidator`."""
        self._notifier.inval_node(node, data)

    def inval_entry(self, parent: int, name: bytes) -> None:
        """See :class:`~.interface.Invalidator`."""
        self._notifier.inval_entry(parent, name)

    async def settled(self) -> None:
        """See :class:`~.interface.Invalidator`."""
        await self._notifier.settled()

    # --- requests --------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        buffers = [self._buffer]
        # One process that waits for each answer is the common case: asking again only to hear that there is nothing
        # more would cost it a system call an operation. If there is more, we are called again at once.
        for _ in range(_BURST if self._running else 1):
            try:
                size = os.readv(self._fd, buffers)
                self._poll.happened()
            except BlockingIOError:
                if self._repeating:
                    self._repeating = False
                    self._fs.all_repeated()
                return
            except OSError as exc:
                if exc.errno in _READ_AGAIN:
                    continue
                self.aborted = exc.errno == errno.ECONNABORTED
                self._end(None if exc.errno in _UNMOUNTED else exc)
                self._loop.remove_reader(self._fd)  # or a level-triggered loop would come back for ever
                return
            try:
                request = wire.parse(self._view[:size])
            except wire.MalformedRequestError as exc:
                log.error("the kernel sent a message that makes no sense: %s", exc)
                self._write_error(exc.unique, errno.EIO)
                continue
            if self._debug:
                log.debug("%s", request)
            if self._orphans and not request.unique % abi.UNIQUE_STEP:
                self._answer_orphans(request.unique)
            operation = self._operations.get(type(request))
            if operation is not None:
                key = request.unique & ~abi.UNIQUE_RESEND
                if key != request.unique:
                    self._fs.repeated(key)
                caller = Caller(request.uid, request.gid, request.pid, key)
                running = Running(self._loop, operation(self._fs, request, caller), self._finished, request)
                running.step()
                if not running.done():
                    self._running[key] = running
            else:
                try:
                    self._immediate[type(request)](request)
                except Exception:
                    log.exception("%s", request)

    def _finished(self, running: Running, result: Body | None, error: BaseException | None) -> None:
        request: rq.Request | None = running.tag
        if request is None:  # abandoned
            return
        key = request.unique & ~abi.UNIQUE_RESEND
        if self._running.pop(key, None) is not None and not self._running and self._idle is not None:
            self._idle.set()
        if result is None:
            self._fail(request, error)
        elif isinstance(result, Held):
            if not self._write(request.unique, result.body):
                result.undo()
                return
        elif not self._write(request.unique, result):
            return
        self._fs.done(key)

    def _fail(self, request: rq.Request, error: BaseException | None) -> None:
        number = errno_of(error) if error is not None else errno.EIO
        if isinstance(error, asyncio.CancelledError):
            number = errno.EIO  # nobody interrupted it: we dropped it
        elif not isinstance(error, (OSError, WsFuseError)):
            log.error("%s", request, exc_info=error)
        if number == errno.ENOSYS:
            number = errno.EOPNOTSUPP
        if not 0 < number <= abi.MAX_ERRNO:
            number = errno.EIO
        if self._debug:
            log.debug("%s %d: %s", type(request).__name__, request.key, error)
        self._write_error(request.unique, number)

    # --- replies ---------------------------------------------------------------------------------------------------

    def _write(self, unique: int, body: bytes | memoryview) -> bool:
        """Answer with success. False: the kernel did not take it, and holds nothing that *body* gave."""
        length = len(body)
        try:
            if self._before_reply is not None:
                self._before_reply()
            if length < 4096:
                os.write(self._fd, replies.head(unique, length) + body)
            else:
                os.writev(self._fd, (replies.head(unique, length), body))
        except OSError as exc:
            if exc.errno != errno.ENOENT:  # that is a request given up, with the connection: nobody waits
                log.error("no reply of %d bytes could be written: %s", length, exc)
                self._write_error(unique, errno.EIO)
            return False
        if not self._running:
            self._poll.expect()
        return True

    def _write_error(self, unique: int, number: int) -> None:
        try:
            if self._before_reply is not None:
                self._before_reply()
            os.write(self._fd, replies.head(unique, errno=number))
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                log.error("error %d could not be written: %s", number, exc)

    def _answer_orphans(self, unique: int) -> None:
        """EIO to whatever was taken by the predecessor and never answered.

        Ids only grow, and the kernel hands requests out in their order, so everything below the first one we see was
        his. Writing to an id that is not waiting does nothing.
        """
        self._orphans = False
        for orphan in range(
            max(abi.UNIQUE_STEP, unique - _ORPHANS * abi.UNIQUE_STEP), unique, abi.UNIQUE_STEP
        ):
            try:
                os.write(self._fd, replies.head(orphan, errno=errno.EIO))
            except FileNotFoundError:
                pass

    # --- requests that are not operations --------------------------------------------------------------------------

    def _init(self, request: rq.Init) -> None:
        if request.major != abi.MAJOR or request.minor < abi.OLDEST_MINOR:
            self._write_error(request.unique, errno.EPROTO)
            spoken = f"{request.major}.{request.minor}"
            self._end(MountError(f"the kernel speaks FUSE {spoken}; Linux 5.2 or later is needed, for 7.31"))
            return
        flags = request.flags & WANTED & ~self._options.refuse
        if not self._options.no_opendir:
            flags &= ~abi.NO_OPENDIR_SUPPORT
        elif flags & abi.NO_OPENDIR_SUPPORT:
            # Attributes come with the listing or not at all: the kernel will not list a second time.
            flags &= ~abi.READDIRPLUS_AUTO
        self._settle(flags)
        state = {
            "minor": min(request.minor, abi.MINOR),
            "flags": flags,
            "max_write": self._options.max_write,
            "max_pages": max(1, self._options.max_write // mmap.PAGESIZE),
        }
        body = replies.init(
            **state,
            max_readahead=max(request.max_readahead, _MAX_READAHEAD),
            max_background=self._options.max_background,
        )
        self.state = state
        if self._on_init is not None:
            self._on_init(state)  # before the reply, so that a successor never lacks it
        self._write(request.unique, body)

    def _settle(self, flags: int) -> None:
        """What the negotiated *flags* mean for us."""
        if flags & abi.NO_OPENDIR_SUPPORT:
            self._operations.pop(rq.OpenDir, None)
            self._immediate[rq.OpenDir] = self._unsupported

    def _forget(self, request: rq.Forget) -> None:
        self._fs.forget(request.node, request.count)

    def _batch_forget(self, request: rq.BatchForget) -> None:
        for node, count in request.items:
            self._fs.forget(node, count)

    def _interrupt(self, request: rq.Interrupt) -> None:
        # EAGAIN: the kernel asks again, unless the target has been answered meanwhile (the write then says ENOENT).
        # That is how an interrupt that overtakes its target, as after a take-over, still meets it.
        if request.target in self._running:
            self._fs.interrupt(request.target)
        elif self._orphans:
            self._write_error(request.target, errno.EINTR)
        else:
            self._write_error(request.unique, errno.EAGAIN)

    def _unsupported(self, request: rq.Request) -> None:
        self._write_error(request.unique, errno.ENOSYS)

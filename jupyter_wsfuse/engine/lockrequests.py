"""Requests about locks: they are answered by the workspace's lock table, perhaps much later, not by an operation."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import os_error
from ..protocol import messages as m
from ..protocol.messages import Error, Reply
from .context import Context
from .handles import Handle
from .locks import Target
from .operations import WouldBlock
from .session import Session

if TYPE_CHECKING:
    from .jobs import Job


class Offload(Protocol):
    def __call__(self, session: Session, work: Callable[[], Any], then: Callable[[Any], None], /) -> None: ...


class LockRequests:
    """Executes SetLock and GetLock, and what a Reopen says of locks.

    *answer* a request, with what it has *failed* of if it has; *leave*: let in who comes after it on its handle;
    *offload* runs the first function in a worker and the second on the loop with what it returned.
    """

    def __init__(
        self,
        *,
        answer: Callable[[Job, Reply], None],
        failed: Callable[[Any, Exception], Error],
        leave: Callable[[Job], None],
        offload: Offload,
    ) -> None:
        self._answer = answer
        self._failed = failed
        self._leave = leave
        self._offload = offload

    def set(self, job: Job) -> None:
        """SetLock."""
        # What was written before the lock is released is executed by now, and what comes later may run while
        # this waits.
        self._leave(job)
        session, request = job.session, job.request
        context = session.context
        assert context is not None
        try:
            handle, target = _target_of(job)
        except OSError as exc:
            self._answer(job, self._failed(request, exc))
            return

        def answer(attr: m.Attr | OSError | None) -> None:
            context.handles.release(handle)
            if isinstance(attr, OSError):
                self._answer(job, self._failed(request, attr))
            else:
                self._answer(job, m.LockReply(request.seq, None, attr))

        def done(error: OSError | None) -> None:
            session.waits.pop(request.seq, None)
            if error is not None or request.lock.type == "u":
                answer(error)
            else:
                self._stat(session, context, handle, answer)

        waiting = session.workspace.locks.set(target, request.lock, request.wait, done)
        if not waiting.answered:
            session.waits[request.seq] = waiting

    def _stat(
        self, session: Session, context: Context, handle: Handle, then: Callable[[m.Attr | OSError], None]
    ) -> None:
        def stat(nowait: bool) -> m.Attr | OSError:
            try:
                return context.sandbox.stat(handle.fd, nowait)
            except OSError as exc:
                return exc

        if context.sandbox.inline_ok:
            try:
                then(stat(True))
                return
            except WouldBlock:
                pass
        self._offload(session, lambda: stat(False), then)

    def get(self, job: Job) -> None:
        """GetLock."""
        self._leave(job)
        session, request = job.session, job.request
        context = session.context
        assert context is not None
        try:
            handle, target = _target_of(job)
        except OSError as exc:
            self._answer(job, self._failed(request, exc))
            return

        def found(lock: m.Lock | OSError) -> None:
            context.handles.release(handle)
            if isinstance(lock, OSError):
                self._answer(job, self._failed(request, lock))
            else:
                self._answer(job, m.LockReply(request.seq, lock))

        session.workspace.locks.get(target, request.lock, found)

    def reclaim(self, job: Job, reply: Reply) -> None:
        """The handle is open again; now its locks, or nothing."""
        session, request = job.session, job.request
        context = session.context
        assert context is not None
        handles = context.handles
        try:
            handle = handles.acquire(request.handle)
        except OSError as exc:  # the session has ended meanwhile
            self._answer(job, self._failed(request, exc))
            return

        def done(error: OSError | None) -> None:
            handles.release(handle)
            if error is not None:
                handles.close(handle.id)
            self._answer(job, reply if error is None else self._failed(request, error))

        session.workspace.locks.reclaim(_target(session, handle), request.locks, done)


def _target_of(job: Job) -> tuple[Handle, Target]:
    context = job.session.context
    assert context is not None
    handle = context.handles.acquire(job.request.handle)
    if handle.pin or (handle.directory and not job.request.lock.flock):
        context.handles.release(handle)
        raise os_error(errno.EBADF)
    return handle, _target(job.session, handle)


def _target(session: Session, handle: Handle) -> Target:
    return Target(session.id, handle.id, handle.identity, handle.fd, handle.flags & os.O_ACCMODE)

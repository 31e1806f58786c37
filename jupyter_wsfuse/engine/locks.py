"""The locks of all sessions: who holds what, who waits, and who has to be let in first after a restart.

One table serves every session of the engine, keyed by the file's identity, so that a lock taken through one
mount is seen by all. It belongs to the event loop; nothing in it blocks. Requests are answered by a callback,
at once or later:

- *flock*: one lock a handle, on the whole file. A conversion is not atomic, as in Linux: one that cannot be
  granted at once has lost the lock it wanted to convert.
- *POSIX*: ranges by ``(session, owner)``, split, merged, up- and downgraded (:mod:`.ranges`). A wait that
  would close a circle of waiting owners is refused with ``EDEADLK``.

Waiters are let in first come, first served, but a request that conflicts with nothing *held* does not queue
behind them, as in Linux. After the table has granted a lock, it is taken on a real descriptor as well
(:mod:`.nativelocks`); if a process on the server holds it, the request fails or tries again with growing
pauses. On file systems where that may wait for a network it happens in a worker thread, and the file's other
requests queue meanwhile.

After an engine died, its sessions' locks are *expected*: nobody else is granted a lock on those files until
their holders have claimed them again (:meth:`LockTable.reclaim`), or are gone, or the time for that is over.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ..errors import os_error
from ..protocol.messages import Identity, Lock
from ..protocol.ranges import LAST, Span, assign
from . import nativelocks
from .lockstate import LAST_RETRY, Done, File, Found, Held, Hold, Key, SessionLocks, Target, Waiting
from .ranges import conflict, uncovered

__all__ = ["Hold", "Key", "LockTable", "Target", "Waiting"]

#: Spans and flocks that one session may hold. More is answered with ENOLCK.
MAX_LOCKS: Final = 65536
#: Runs the first function in a worker thread and the second on the loop with what it returned.
Offload = Callable[[Callable[[], bool], Callable[[bool], None]], None]


class LockTable:
    """See the module's text.

    *changed* is told when a key starts (True) or stops (False) holding anything on a file, before the request
    is answered: write it down. *offload* as :data:`Offload`; without it everything runs on the loop.
    """

    def __init__(
        self,
        *,
        changed: Callable[[Hold, bool], None] = lambda hold, held: None,
        offload: Offload | None = None,
        is_local: Callable[[int], bool] = nativelocks.is_local,
        limit: int = MAX_LOCKS,
    ) -> None:
        self._changed = changed
        self._offload = offload
        self._is_local = is_local
        self._limit = limit
        self._files: dict[Identity, File] = {}
        self._sessions: dict[str, SessionLocks] = {}
        self._waits: dict[Key, set[Waiting]] = {}  # POSIX, for the search for circles
        self._open: dict[str, set[Waiting]] = {}  # requests without an answer, by session
        self._expected: dict[Identity, set[Key]] = {}

    # --- questions ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Files on which anything is held or waited for."""
        return len(self._files)

    def holds(self, session: str) -> list[Hold]:
        """Everything *session* holds or is expected to claim."""
        known = self._sessions.get(session)
        files = known.files if known else ()
        held = [Hold(file.identity, key) for file in files for key in file.held if key.session == session]
        expected = [
            Hold(i, key) for i, keys in self._expected.items() for key in keys if key.session == session
        ]
        return list(dict.fromkeys(held + expected))

    def get(self, target: Target, lock: Lock, found: Found) -> None:
        """Answer GetLock: the first lock in the way of *lock*, or *lock* itself with type "u"."""
        error = _invalid(target, lock, needs_access=False)
        if error is not None:
            found(error)
            return
        file = self._file(target.identity)
        self._in_turn(file, lambda: self._get(file, target, lock, found))

    # --- set, clear, cancel ---------------------------------------------------------------------------------

    def set(self, target: Target, lock: Lock, wait: bool, done: Done) -> Waiting:
        """Set or clear *lock*; *done* is called once, with None or the error, perhaps before this returns."""
        request = self._request(target, lock, wait, done)
        error = _invalid(target, lock)
        if error is not None:
            self._answer(request, error)
            return request
        file = self._file(target.identity)
        self._in_turn(file, lambda: self._attempt(file, request))
        return request

    def cancel(self, request: Waiting) -> None:
        """Give up waiting: answered with EINTR, unless it was answered or just now gets its lock."""
        request.cancelled = True
        file = self._files.get(request.target.identity)
        if file is not None and request in file.waiting and not request.busy:
            self._fail(file, request, errno.EINTR)
            self._drop_if_unused(file)

    def close_handle(self, session: str, handle: int) -> None:
        """Release what *session* got through *handle*: before its descriptor is closed.

        Whoever still waits for a lock through it gets EBADF.
        """
        self._let_go(session, handle, errno.EBADF)

    def end_session(self, session: str) -> None:
        """Release everything of *session* and expect nothing of it any more; its waiting requests get EINTR."""
        self._let_go(session, None, errno.EINTR)
        for identity, expected in list(self._expected.items()):
            self._arrived(identity, [key for key in expected if key.session == session])

    # --- after an engine's death ----------------------------------------------------------------------------

    def expect(self, holds: Iterable[Hold]) -> None:
        """At the start: these were held when the former engine died. See :meth:`end_reclaim`."""
        for identity, key in holds:
            self._expected.setdefault(identity, set()).add(key)

    def reclaim(self, target: Target, locks: list[Lock], done: Done) -> None:
        """Set *locks* of a handle that was open when the former engine died, all or none.

        *done* gets ENOLCK if one may have been somebody else's in the meantime. A lock that the session had
        released by its own record is left out if it is taken now: the client has not seen that answer yet and
        asks again.
        """
        remaining = deque(locks)
        file = self._file(target.identity)

        def proceed(error: OSError | None) -> None:
            if error is not None:
                self.close_handle(target.session, target.handle)
                done(os_error(errno.ENOLCK, "a lock was lost while the engine was replaced"))
                return
            while remaining:
                lock = remaining.popleft()
                key = target.key(lock)
                sure = key in self._expected.get(target.identity, ())
                error = _invalid(target, lock)
                if error is not None:
                    proceed(error)
                    return
                if sure or next(self._conflicts(file, key, lock), None) is None:
                    self._attempt(file, self._request(target, lock, False, proceed, claim=True))
                    return
            done(None)

        self._in_turn(file, lambda: proceed(None))

    def end_reclaim(self) -> None:
        """What was not claimed by now is lost."""
        for identity, keys in list(self._expected.items()):
            self._arrived(identity, list(keys))

    def _arrived(self, identity: Identity, keys: Iterable[Key]) -> None:
        """*keys* have claimed what was expected of them, or never will."""
        expected = self._expected.get(identity)
        if expected is None:
            return
        file = self._files.get(identity)
        for key in expected.intersection(keys):
            expected.remove(key)
            if file is None or key not in file.held:
                self._changed(Hold(identity, key), False)
        if not expected:
            del self._expected[identity]
        if file is not None:
            self._in_turn(file, lambda: self._sweep(file))

    # --- one file's requests, one after another -------------------------------------------------------------

    def _file(self, identity: Identity) -> File:
        file = self._files.get(identity)
        if file is None:
            file = self._files[identity] = File(identity)
        return file

    def _in_turn(self, file: File, step: Callable[[], None]) -> None:
        if file.busy:
            file.steps.append(step)
        else:
            step()
            self._drop_if_unused(file)

    def _natively(self, file: File, work: Callable[[], bool], then: Callable[[bool], None]) -> None:
        """Run *work*, here or in a thread, then *then* and the steps that came meanwhile."""
        if self._offload is None or self._is_local(file.identity.dev):
            then(work())
            return

        def finish(result: bool) -> None:
            file.busy = False
            then(result)
            while file.steps and not file.busy:
                file.steps.popleft()()
            self._drop_if_unused(file)

        file.busy = True
        self._offload(work, finish)

    def _drop_if_unused(self, file: File) -> None:
        if file.busy or file.steps or file.held or file.waiting or self._files.get(file.identity) is not file:
            return
        del self._files[file.identity]
        if file.fd >= 0:
            os.close(file.fd)

    def _use(self, file: File, session: str, uses: int, spans: int = 0) -> None:
        """Count what *session* has to do with *file*, so that its end finds it."""
        known = self._sessions.setdefault(session, SessionLocks())
        known.files[file] = known.files.get(file, 0) + uses
        known.spans += spans
        if not known.files[file]:
            del known.files[file]
            if not known.files:
                del self._sessions[session]

    def _request(self, target: Target, lock: Lock, wait: bool, done: Done, claim: bool = False) -> Waiting:
        request = Waiting(target, lock, target.key(lock), wait, done, claim)
        self._open.setdefault(target.session, set()).add(request)
        return request

    def _answer(self, request: Waiting, error: OSError | None) -> None:
        request.answered = True
        if request.timer is not None:
            request.timer.cancel()
        session = request.target.session
        self._open[session].remove(request)
        if not self._open[session]:
            del self._open[session]
        request.done(error)

    def _queue(self, file: File, request: Waiting) -> None:
        if request in file.waiting:
            return
        file.waiting.append(request)
        if not request.key.flock:
            self._waits.setdefault(request.key, set()).add(request)

    def _unqueue(self, file: File, request: Waiting) -> None:
        if request not in file.waiting:
            return
        file.waiting.remove(request)
        if not request.key.flock:
            waits = self._waits[request.key]
            waits.remove(request)
            if not waits:
                del self._waits[request.key]

    def _fail(self, file: File, request: Waiting, number: int) -> None:
        self._unqueue(file, request)
        self._answer(request, os_error(number))

    # --- the rules ------------------------------------------------------------------------------------------

    def _conflicts(self, file: File, key: Key, lock: Lock) -> Iterator[tuple[Key, Span]]:
        """Who stands in the way of *lock* for *key*, in no order but each with its first such span."""
        for other, held in file.held.items():
            if other.flock == key.flock and other != key:
                span = conflict(held.spans, lock.start, lock.end, lock.type)
                if span is not None:
                    yield other, span

    def _get(self, file: File, target: Target, lock: Lock, found: Found) -> None:
        key = target.key(lock)
        ours = min(self._conflicts(file, key, lock), key=lambda pair: pair[1], default=None)
        if ours is not None:
            other, span = ours
            owner = other.holder if other.session == key.session else 0
            found(Lock(owner, span.start, span.end, span.type, span.pid, lock.flock))
            return
        free = Lock(lock.owner, lock.start, lock.end, "u", 0, lock.flock)
        if lock.flock or lock.type == "u":
            found(free)
            return
        # Ours, if there are any, are on file.fd, and a descriptor's own locks are not in its way.
        fd = os.dup(target.fd if file.fd < 0 else file.fd)
        foreign: list[nativelocks.Foreign | None] = []

        def ask() -> bool:
            foreign.append(nativelocks.get_posix(fd, lock.type, lock.start, lock.end))
            return True

        def tell(_: bool) -> None:
            os.close(fd)
            held = foreign[0]
            found(free if held is None else Lock(0, held.start, held.end, held.type, 0))

        self._natively(file, ask, tell)

    def _attempt(self, file: File, request: Waiting) -> None:
        """Grant, refuse or queue *request*. It may be queued already."""
        key, lock = request.key, request.lock
        if lock.type == "u":
            if lock.start == 0 and lock.end == LAST:
                self._arrived(file.identity, [key])
            self._release(file, key, lock.start, lock.end, lambda: self._answer(request, None))
            return
        if request.gone or request.cancelled:
            self._fail(file, request, request.gone or errno.EINTR)
            return
        expected = self._expected.get(file.identity)
        if expected and not request.claim and not expected <= {key}:
            # Others may still claim. Nobody may pass meanwhile, not even a request that would not wait.
            self._queue(file, request)
        elif next(self._conflicts(file, key, lock), None) is None:
            self._take(file, request)
        else:
            if lock.flock and key in file.held:
                self._release(file, key)
            if not request.wait:
                self._fail(file, request, errno.EAGAIN)
            elif not lock.flock and self._circle(file, request):
                self._fail(file, request, errno.EDEADLK)
            else:
                self._queue(file, request)

    def _circle(self, file: File, request: Waiting) -> bool:
        """Whether those that *request* would wait for wait, directly or not, for its own owner."""
        todo = [key for key, _ in self._conflicts(file, request.key, request.lock)]
        seen: set[Key] = set()
        while todo:
            key = todo.pop()
            if key == request.key:
                return True
            if key not in seen:
                seen.add(key)
                for other in self._waits.get(key, ()):
                    where = self._files[other.target.identity]
                    todo.extend(blocker for blocker, _ in self._conflicts(where, key, other.lock))
        return False

    def _take(self, file: File, request: Waiting) -> None:
        """The table has no objection: ask the server's kernel, then enter it."""
        key, lock, target = request.key, request.lock, request.target
        known = self._sessions.get(key.session)
        if known is not None and known.spans >= self._limit:
            self._fail(file, request, errno.ENOLCK)
            return
        if not key.flock and file.fd < 0:
            file.fd = nativelocks.open_for_locks(target.fd, target.access)

        def work() -> bool:
            if key.flock:
                return nativelocks.set_flock(target.fd, lock.type)
            return nativelocks.set_posix(file.fd, lock.type, [(lock.start, lock.end)])

        def then(granted: bool) -> None:
            request.busy = False
            if granted:
                self._unqueue(file, request)
                weakened = self._enter(file, key, lock, target)
                if request.gone:
                    self._release(file, key)
                    self._fail(file, request, request.gone)
                    return
                self._answer(request, None)
                self._arrived(file.identity, [key])
                if weakened:
                    self._sweep(file)
                return
            if (
                key.flock and key in file.held
            ):  # the kernel took the old lock away before it refused the new one
                self._release(file, key)
            if request.gone or request.cancelled or not request.wait:
                number = request.gone or (errno.EINTR if request.cancelled else errno.EAGAIN)
                self._fail(file, request, number)
            else:  # a process on the server holds it: nobody will tell us when it lets go
                self._queue(file, request)
                request.timer = asyncio.get_running_loop().call_later(
                    request.pause, self._again, file, request
                )
                request.pause = min(2 * request.pause, LAST_RETRY)

        request.busy = True
        self._natively(file, work, then)

    def _again(self, file: File, request: Waiting) -> None:
        request.timer = None
        self._in_turn(file, lambda: None if request.answered else self._attempt(file, request))

    def _enter(self, file: File, key: Key, lock: Lock, target: Target) -> bool:
        """Write down that *key* has *lock*; True if that lets go of something it had before."""
        held = file.held.get(key)
        if held is None:
            held = file.held[key] = Held(fd=os.dup(target.fd) if key.flock else -1)
            self._use(file, key.session, 1)
            self._changed(Hold(file.identity, key), True)
        held.handles.add(target.handle)
        weakened = conflict(held.spans, lock.start, lock.end, "r") is not None and lock.type == "r"
        spans = assign(held.spans, lock.start, lock.end, lock.type, lock.pid)
        self._sessions[key.session].spans += len(spans) - len(held.spans)
        held.spans = spans
        return weakened

    def _release(
        self, file: File, key: Key, start: int = 0, end: int = LAST, after: Callable[[], None] = lambda: None
    ) -> None:
        """Take ``[start, end]`` from *key*, in the table and in the kernel, and let others in."""
        held = file.held.get(key)
        if held is None:
            after()
            return
        spans = assign(held.spans, start, end, "u", 0)
        self._sessions[key.session].spans += len(spans) - len(held.spans)
        held.spans = spans
        if not spans:
            del file.held[key]
            self._use(file, key.session, -1)
            self._changed(Hold(file.identity, key), False)
        others = [span for k, h in file.held.items() if not k.flock and k != key for span in h.spans]
        ranges = uncovered(start, end, others)

        def work() -> bool:
            if key.flock:
                return nativelocks.set_flock(held.fd, "u")
            return nativelocks.set_posix(file.fd, "u", ranges)

        def then(_: bool) -> None:
            if key.flock:
                os.close(held.fd)
            after()
            self._sweep(file)

        self._natively(file, work, then)

    def _let_go(self, session: str, handle: int | None, number: int) -> None:
        for request in list(self._open.get(session, ())):
            if handle in (None, request.target.handle):
                request.gone = number
                file = self._files[request.target.identity]
                if request in file.waiting and not request.busy:
                    self._fail(file, request, number)
                    self._drop_if_unused(file)
        known = self._sessions.get(session)
        for file in list(known.files) if known else []:
            for key, held in list(file.held.items()):
                if key.session == session and (handle is None or handle in held.handles):
                    self._in_turn(file, lambda file=file, key=key: self._release(file, key))  # type: ignore[misc]

    def _sweep(self, file: File) -> None:
        """Something became free: let in whom it suffices, in order of arrival."""
        for request in list(file.waiting):
            if file.busy:
                file.steps.appendleft(lambda: self._sweep(file))
                return
            if not request.answered and not request.busy:
                self._attempt(file, request)


def _invalid(target: Target, lock: Lock, needs_access: bool = True) -> OSError | None:
    if lock.type not in ("r", "w", "u") or not 0 <= lock.start <= lock.end <= LAST:
        return os_error(errno.EINVAL)
    if lock.flock:
        return None if (lock.start, lock.end) == (0, LAST) else os_error(errno.EINVAL)
    forbidden = {"r": os.O_WRONLY, "w": os.O_RDONLY}.get(lock.type)
    if needs_access and target.access == forbidden:
        return os_error(errno.EBADF)
    return None

"""The open files of a session.

A handle is a random number, so that one from another session, or from before a restart, never reaches a file
by accident. Descriptors are used by worker threads while the client closes handles:
:meth:`HandleTable.acquire` keeps a descriptor open until :meth:`HandleTable.release`, since a number that was
closed under a running call may be another file's by then.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol.messages import Identity

DEFAULT_LIMIT: Final = 65536


def _random_id() -> int:
    return secrets.randbits(63)


class Handle:
    """One open file, directory or pin (an ``O_PATH`` descriptor of a file that has lost its last name).

    ``path`` is where it was opened, for people. ``lost`` is the errno with which everything that would change
    the file fails, once the session has lost locks that it held through this handle; 0 while all is well.
    ``rights`` at ``place`` were given by the policy ``judged``; None while nobody had to ask
    (:mod:`.enforcement`).
    """

    __slots__ = (
        "id",
        "fd",
        "flags",
        "identity",
        "directory",
        "path",
        "pin",
        "lost",
        "reading",
        "judged",
        "place",
        "rights",
        "_uses",
        "_closed",
    )

    def __init__(
        self, id: int, fd: int, flags: int, identity: Identity, directory: bool, path: bytes, pin: bool
    ) -> None:
        self.id = id
        self.fd = fd
        self.flags = flags
        self.identity = identity
        self.directory = directory
        self.path = path
        self.pin = pin
        self.lost = 0
        self.reading = threading.Lock()  # a directory's position belongs to one ReadDir at a time
        self.judged: object = None
        self.place: bytes | None = None
        self.rights = 0
        self._uses = 0
        self._closed = False

    @property
    def append(self) -> bool:
        return bool(self.flags & os.O_APPEND)

    @property
    def writable(self) -> bool:
        """Opened for writing; a pin never is."""
        return not self.pin and self.flags & os.O_ACCMODE != os.O_RDONLY

    def __repr__(self) -> str:
        kind = "pin" if self.pin else "directory" if self.directory else "file"
        return f"<Handle {kind} fd={self.fd} path={self.path!r}>"  # not the id: it is a capability


class Observer(Protocol):
    """Who has to know which files are held open. Called from any thread; must not use the table."""

    def opened(self, handle: Handle) -> None:
        """The session has *handle* now."""

    def closing(self, handle: Handle) -> None:
        """The descriptor of *handle* is going to be closed; it is still open."""


class Budget(Protocol):
    """What several tables together may hold open. In any thread."""

    def open_handle(self) -> None:
        """One more; ``EMFILE`` or ``ENFILE`` if that is too many."""

    def close_handle(self) -> None:
        """One less."""


class HandleTable:
    """The handles of one session; at most *limit*, and what *budget* allows. Safe to use from several threads.

    ``observer`` is set, if at all, before the first handle is added.
    """

    def __init__(
        self,
        limit: int = DEFAULT_LIMIT,
        rng: Callable[[], int] | None = None,
        *,
        budget: Budget | None = None,
    ) -> None:
        self.limit = limit
        self._budget = budget
        self.observer: Observer | None = None
        self._random = rng or _random_id
        self._handles: dict[int, Handle] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, id: int) -> bool:
        return id in self._handles

    def __iter__(self) -> Iterator[Handle]:
        return iter(list(self._handles.values()))

    def ids(self) -> list[int]:
        return list(self._handles)

    def add(
        self,
        fd: int,
        *,
        flags: int,
        identity: Identity,
        directory: bool = False,
        path: bytes = b"",
        pin: bool = False,
        id: int = 0,
    ) -> Handle:
        """Take over *fd* under a new number, or under *id* if it is not 0.

        ``EMFILE`` if the table is full or the budget says so (that also ``ENFILE``), ``EEXIST`` if *id* is taken,
        ``EINVAL`` if it is out of range; *fd* is closed then.
        """
        try:
            with self._lock:
                if len(self._handles) >= self.limit:
                    raise os_error(errno.EMFILE, "the session has too many open files")
                self.check_free(id)
                if self._budget is not None:
                    self._budget.open_handle()
                while not id or id in self._handles:
                    id = self._random()
                handle = Handle(id, fd, flags, identity, directory, path, pin)
                self._handles[id] = handle
                if self.observer is not None:
                    self.observer.opened(handle)
                return handle
        except OSError:
            os.close(fd)
            raise

    def check_free(self, id: int) -> None:
        """Raise as :meth:`add` does unless *id* can be that of a new handle."""
        if id:
            if not 0 < id < 1 << 63:
                raise os_error(errno.EINVAL)
            if id in self._handles:
                raise os_error(errno.EEXIST)

    def find(self, id: int) -> Handle | None:
        """The handle, to look at; its descriptor may be closed at any moment. None if there is none."""
        return self._handles.get(id)

    def get(self, id: int) -> Handle:
        """As :meth:`find`, but ``EBADF`` if there is none."""
        handle = self._handles.get(id)
        if handle is None:
            raise os_error(errno.EBADF, "the session has no such handle")
        return handle

    def acquire(self, id: int) -> Handle:
        """The handle, its descriptor kept open until :meth:`release`. ``EBADF`` if there is none."""
        with self._lock:
            handle = self.get(id)
            handle._uses += 1
            return handle

    def release(self, handle: Handle) -> None:
        with self._lock:
            handle._uses -= 1
            last = handle._closed and not handle._uses
        if last:
            self._close(handle)

    @contextmanager
    def use(self, id: int) -> Iterator[Handle]:
        handle = self.acquire(id)
        try:
            yield handle
        finally:
            self.release(handle)

    def close(self, id: int) -> Handle | None:
        """Forget a handle; its descriptor is closed as soon as nobody uses it. None if there was none."""
        with self._lock:
            handle = self._handles.pop(id, None)
            if handle is None:
                return None
            handle._closed = True
            idle = not handle._uses
        if self._budget is not None:
            self._budget.close_handle()
        if idle:
            self._close(handle)
        return handle

    def _close(self, handle: Handle) -> None:
        try:
            if self.observer is not None:
                self.observer.closing(handle)
        finally:
            os.close(handle.fd)

    def keep(self, ids: Collection[int]) -> list[Handle]:
        """Close every handle but *ids*, and return those closed."""
        wanted = set(ids)
        closed = [self.close(id) for id in self.ids() if id not in wanted]
        return [handle for handle in closed if handle is not None]

    def close_all(self) -> list[Handle]:
        return self.keep(())

"""Who is told of changes to which files.

A *lease* is a session and the identity of a directory, or of a regular file with several names; what it covers is
said in :class:`~..protocol.messages.AttrReply`. It is granted, and the kernel watches the file, before the state that
goes into the answer is read: so no change can fall between the two.

Watched files are held open (``O_PATH``), so that what stands at a name in an event is looked up in the directory that
the event is about, wherever that has been moved to.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from ..protocol import messages as m
from ..protocol.messages import Attr, Identity
from . import inotify
from .sandbox import Sandbox, proc_path

if TYPE_CHECKING:
    from .session import Session

_LOG = logging.getLogger(__name__)

_SINGLE: Final = inotify.FILE | inotify.DELETE_SELF | inotify.MOVE_SELF
_DIRECTORY: Final = _SINGLE | inotify.ENTRY | inotify.ONLYDIR | inotify.EXCL_UNLINK

#: The part of a session's leases that is ended when it has too many.
_EVICTED: Final = 0.1

_MAX_WATCHES: Final = "/proc/sys/fs/inotify/max_user_watches"


def most_watches(files: int) -> int:
    """Watches that this process had better not exceed: each takes a descriptor, of which there are *files*, and others
    of the same user want some as well."""
    try:
        with open(_MAX_WATCHES) as setting:
            allowed = int(setting.read())
    except (OSError, ValueError):
        allowed = 8192
    return max(0, min(allowed * 3 // 4, files // 2))


def unlease(reply: m.Reply) -> None:
    """Take out of *reply* what it says of leases: some may have ended since it was made."""
    match reply:
        case m.AttrReply() | m.FetchReply():
            reply.lease = 0
        case m.DirReply():
            reply.lease = False
            _unlease_entries(reply.entries)
        case m.TreeReply():
            for directory in reply.directories:
                directory.lease = False
                _unlease_entries(directory.entries)


def _unlease_entries(entries: list[m.DirEntry]) -> None:
    for entry in entries:
        entry.flags &= ~m.ENTRY_LEASED


class Watched:
    """A file that is watched for ``holders``. ``name``: what it was called when it was last looked at; ``since``:
    ``perf_counter_ns`` from which on nothing that happens to it is missed."""

    __slots__ = ("wd", "fd", "identity", "directory", "name", "sandbox", "holders", "since")

    def __init__(self, wd: int, fd: int, identity: Identity, directory: bool, sandbox: Sandbox) -> None:
        self.wd = wd
        self.fd = fd
        self.identity = identity
        self.directory = directory
        self.name = self.called() if directory else b""
        self.sandbox = sandbox
        self.holders: dict[Session, None] = {}
        self.since = perf_counter_ns()

    def called(self) -> bytes:
        """What it is called now, as far as that can be said."""
        try:
            return os.readlink(proc_path(self.fd)).rpartition(b"/")[2]
        except OSError:  # the path is too long
            return b""


class Leases:
    """All leases of an engine. Granting is for any thread, everything else for the event loop.

    *watches*: how many files may be watched; *each*: leases of one session. *ended* is called, on whatever thread it
    happens, when leases of a session were ended to make room: it has to be told.

    ``Session.lease_ends`` counts the ends of a session's leases. An answer that was made before the count was another
    may promise what does not hold any more: see :func:`unlease`.
    """

    def __init__(
        self,
        queue: inotify.Inotify,
        *,
        watches: int,
        each: int,
        ended: Callable[[Session, list[Identity]], None],
    ) -> None:
        self.refused = 0
        self.granted = 0
        self._queue = queue
        self._watches = watches
        self._each = each
        self._ended = ended
        self._lock = threading.Lock()
        self._by_wd: dict[int, Watched] = {}
        self._by_identity: dict[Identity, Watched] = {}
        self._named: dict[bytes, set[Watched]] = {}
        self._complained = False

    def __len__(self) -> int:
        """How many files are watched."""
        return len(self._by_wd)

    def __iter__(self) -> Iterator[Watched]:
        return iter(list(self._by_wd.values()))

    # --- granting --------------------------------------------------------------------------------------

    def grant(self, leaser: Leaser, fd: int, attr: Attr, directory: bool) -> bool:
        """A lease of the *leaser*'s session on the file that *fd* is open on; False if that cannot be. *attr*, which
        may be older than the call, tells who the file is."""
        session, identity = leaser.session, attr.identity
        evicted: list[Identity] = []
        with self._lock:
            if leaser.stopped:
                return False
            if identity in session.leases:
                return True
            watched = self._by_identity.get(identity)
            if watched is None:
                watched = self._watch(leaser.sandbox, fd, identity, directory)
                if watched is None:
                    self.refused += 1
                    return False
            watched.holders[session] = None
            session.leases[identity] = watched
            self.granted += 1
            if len(session.leases) > self._each:
                oldest = list(session.leases)[: max(1, int(self._each * _EVICTED))]
                evicted = [old for old in oldest if old != identity]
                for old in evicted:
                    self._let_go(session, old)
        if evicted:
            self._ended(session, evicted)
        return True

    def _watch(self, sandbox: Sandbox, fd: int, identity: Identity, directory: bool) -> Watched | None:
        if len(self._by_wd) >= self._watches:
            self._complain("as many files are watched as this process may watch")
            return None
        try:
            held = os.open(proc_path(fd), os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            self._complain(os.strerror(error.errno or errno.EIO))
            return None
        try:
            wd = self._queue.add(proc_path(held), _DIRECTORY if directory else _SINGLE)
            if wd in self._by_wd:  # known by another identity: where there are no birth times, say
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        except OSError as error:
            os.close(held)
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EEXIST):
                self._complain(os.strerror(error.errno or errno.EIO))
            return None
        watched = Watched(wd, held, identity, directory, sandbox)
        self._by_wd[wd] = self._by_identity[identity] = watched
        if directory:
            self._named.setdefault(watched.name, set()).add(watched)
        return watched

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            _LOG.info(
                "some directories are not watched, and clients believe what they know of them briefly: %s",
                why,
            )

    # --- ending ----------------------------------------------------------------------------------------

    def _let_go(self, session: Session, identity: Identity) -> None:
        watched = session.leases.pop(identity)
        session.lease_ends += 1
        self.granted -= 1
        del watched.holders[session]
        if not watched.holders:
            self._unwatch(watched)

    def _unwatch(self, watched: Watched) -> None:
        del self._by_wd[watched.wd]
        del self._by_identity[watched.identity]
        if watched.directory:
            self._unname(watched)
        self._queue.remove(watched.wd)
        os.close(watched.fd)

    def _unname(self, watched: Watched) -> None:
        same = self._named[watched.name]
        same.discard(watched)
        if not same:
            del self._named[watched.name]

    def end(self, leaser: Leaser) -> list[Identity]:
        """The session holds no leases any more, and gets none from *leaser*; those that it held."""
        with self._lock:
            leaser.stopped = True
            held = list(leaser.session.leases)
            for identity in held:
                self._let_go(leaser.session, identity)
            return held

    def gone(self, watched: Watched) -> list[Session]:
        """The file does not exist any more, or cannot be watched. Who held a lease on it."""
        with self._lock:
            holders = list(watched.holders)
            for session in holders:
                self._let_go(session, watched.identity)
            return holders

    def renamed(self, watched: Watched) -> None:
        """The directory was moved."""
        with self._lock:
            if watched.wd in self._by_wd:
                self._unname(watched)
                watched.name = watched.called()
                self._named.setdefault(watched.name, set()).add(watched)

    # --- looking ---------------------------------------------------------------------------------------

    def find(self, wd: int) -> Watched | None:
        """The file of the watch *wd*, if it is (still) watched."""
        return self._by_wd.get(wd)

    def on(self, identity: Identity) -> Watched | None:
        """That very file, if it is watched."""
        return self._by_identity.get(identity)

    def called(self, name: bytes) -> list[Watched]:
        """The watched directories that are called *name*."""
        return list(self._named.get(name, ()))


class Leaser:
    """What the operations of one session ask for leases; see :class:`.context.Context`. For as long as the session is
    under the same rules: with others it needs another one. ``stopped``: it grants nothing any more."""

    def __init__(self, leases: Leases, session: Session, sandbox: Sandbox) -> None:
        self._leases = leases
        self.session = session
        self.sandbox = sandbox
        self.stopped = False

    def directory(self, fd: int, attr: Attr) -> bool:
        """A lease on the directory that *fd* is open on."""
        return self._leases.grant(self, fd, attr, True)

    def file(self, fd: int, attr: Attr) -> bool:
        """A lease on the regular file that *fd* is open on."""
        return self._leases.grant(self, fd, attr, False)

    def holds(self, identity: Identity) -> bool:
        """Whether there is one already."""
        return not self.stopped and identity in self.session.leases

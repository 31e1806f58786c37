"""What happens to the files behind us: inotify -> changes -> the sessions that hold a lease.

The kernel tells of what this very process does as well. A client must not be told of its own operations: it
would forget what it has just learnt. So after each operation the engine *notes* in which state it left the file, or
what it left standing at a name. An event whose file is in exactly that state is an echo, and says nothing. That is
sound because whoever made the operation drops all he knows of the file when it is answered, and others are told
of it anyway: whatever happened before the noted state was reached, nobody believes anything older.

Telling too much costs somebody a question. Telling too little would be a lie: where a clock is so coarse that two
states may carry the same times, equal times prove nothing until they are old enough.

inotify does not report everything: a file that is changed through ``mmap`` is noticed when it is closed, and a file
that is changed by a second name in a directory that nobody watches is not noticed by its first.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..protocol import messages as m
from ..protocol.messages import Attr, Identity
from . import inotify
from .context import Context
from .leases import Leases, Watched
from .sandbox import Sandbox

if TYPE_CHECKING:
    from .session import Session

#: Notes that are kept. An older one is missed by nobody but a client that hears of his own operation.
_NOTES: Final = 50_000
#: Nanoseconds after which a file's times cannot come again, where the clock of the file system is coarse.
_TICK: Final = 20_000_000
#: Batches of events that are read before others get their turn.
_BATCHES: Final = 8

_State = tuple[int, int, int]
_NOTHING: Final = object()


def fine_times(sandbox: Sandbox) -> bool:
    """Whether each change of a file gives it another ctime, however soon it comes (Linux 6.13 and later, on most file
    systems). Found out on a file without a name; False if there can be none."""
    try:
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=sandbox.root_fd)
    except OSError:
        return False
    try:
        seen = set()
        for _ in range(8):
            os.pwrite(fd, b"x", 0)
            seen.add(os.fstat(fd).st_ctime_ns)
        return len(seen) == 8
    except OSError:
        return False
    finally:
        os.close(fd)


def _state(attr: Attr) -> _State:
    return attr.size, attr.mtime, attr.ctime


def _who(attr: Attr | None) -> object:
    """What stands at a name. Without birth times the next file may have the same number."""
    if attr is None:
        return None
    return attr.identity if attr.btime else (attr.identity, attr.ctime)


class Notes:
    """In which state operations of our own left files and names. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: dict[Any, Any] = {}

    def put(self, key: Any, value: Any) -> None:
        with self._lock:
            self._notes.pop(key, None)
            self._notes[key] = value
            if len(self._notes) > _NOTES:
                del self._notes[next(iter(self._notes))]

    def get(self, key: Any) -> Any:
        return self._notes.get(key, _NOTHING)

    def forget(self, key: Any) -> None:
        with self._lock:
            self._notes.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._notes.clear()


class Watcher:
    """Reads events and tells sessions. *mark* is called with a session that there is news for.

    On the event loop, but for :meth:`note` and what is said of :class:`.Leases`.
    """

    def __init__(
        self,
        *,
        watches: int,
        each: int,
        mark: Callable[[Session], None],
        ended: Callable[[Session, list[Identity]], None],
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.queue = inotify.Inotify()
        self.leases = Leases(self.queue, watches=watches, each=each, ended=ended)
        self.events = self.echoes = self.overflows = 0
        self._mark = mark
        self._wall = wall
        self._notes = Notes()
        self._fine: dict[int, bool] = {}  # device -> whether its times are

    @property
    def fd(self) -> int:
        """Readable when there is something to :meth:`drain`."""
        return self.queue.fd

    def close(self) -> None:
        for watched in self.leases:
            self.leases.gone(watched)
        self.queue.close()

    def settle(self, sandbox: Sandbox) -> None:
        """Find out, once, how fine the times of a workspace are. Blocks. In any thread."""
        device = sandbox.stat(sandbox.root_fd).dev
        if device not in self._fine:
            self._fine[device] = fine_times(sandbox)

    # --- what we do ourselves --------------------------------------------------------------------------

    def note(self, context: Context, request: Any, reply: Any) -> None:
        """*request* was just executed with *reply*. In any thread, before it is answered."""
        if not self.leases:
            return
        kind = type(request)
        if kind is m.Write or kind is m.Fallocate:
            self._note_handle(context, request.handle)
        elif kind is m.CopyRange:
            self._note_handle(context, request.target)
        elif kind is m.Rename:
            self._note_rename(context, request, reply)
        else:
            attr: Attr | None = getattr(reply, "attr", None)
            if kind in (m.Unlink, m.RmDir):
                self._note_entry(context, request.parent, request.name, None)
            elif kind in (m.Create, m.Link, m.MkDir, m.MkNod, m.SymLink):
                self._note_entry(context, request.parent, request.name, attr)
            if attr is not None:
                self._notes.put(attr.identity, _state(attr))

    def _note_handle(self, context: Context, id: int) -> None:
        handle = context.handles.find(id)
        if handle is not None:
            try:
                self._notes.put(handle.identity, _state(context.sandbox.stat(handle.fd)))
            except OSError:  # closed by now, or another file's: then the event is news
                self._notes.forget(handle.identity)

    def _note_entry(self, context: Context, parent: m.Ref, name: bytes, attr: Attr | None) -> None:
        identity = parent.identity
        if parent.handle:
            handle = context.handles.find(parent.handle)
            identity = None if handle is None else handle.identity
        elif identity is None and not parent.path:
            identity = context.sandbox.stat(context.sandbox.root_fd).identity
        if identity is not None:
            self._notes.put((identity, name), _who(attr))

    def _note_rename(self, context: Context, request: m.Rename, reply: m.RemovedReply) -> None:
        moved = reply.moved
        if moved is None or request.flags > 1:
            return
        if reply.attr is not None:
            self._notes.put(reply.attr.identity, _state(reply.attr))
        self._notes.put(moved.identity, _state(moved))
        if moved.nlink > 1:  # perhaps two names of one file, and nothing was done
            return
        self._note_entry(context, request.parent, request.name, None)
        self._note_entry(context, request.new_parent, request.new_name, moved)

    # --- what happens ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Look at what has happened since. Never waits."""
        for _ in range(_BATCHES):
            events = self.queue.read()
            if not events:
                return
            self.events += len(events)
            last = None
            for event in events:
                if event != last:
                    self._happened(event)
                last = event

    def _happened(self, event: inotify.Event) -> None:
        wd, mask, name = event
        if mask & inotify.Q_OVERFLOW:
            self._lost()
            return
        watched = self.leases.find(wd)
        if watched is None:
            return
        if mask & inotify.END:
            self._gone(watched)
        elif not name:
            self._changed_itself(watched)
        elif mask & inotify.ENTRY:
            self._entry(watched, name, bool(mask & inotify.ISDIR), mask)
        else:
            self._child(watched, name)

    def _lost(self) -> None:
        """Events were dropped: anything may be another."""
        self.overflows += 1
        self._notes.clear()
        sessions = {session for watched in self.leases for session in watched.holders}
        for session in sessions:
            session.pending.everything("more changed on the server than could be followed")
            self._mark(session)

    def _gone(self, watched: Watched) -> None:
        for session in self.leases.gone(watched):
            session.pending.add([(watched.identity, None)])
            session.pending.released([watched.identity])
            self._mark(session)

    def _changed_itself(self, watched: Watched) -> None:
        try:
            attr = watched.sandbox.stat(watched.fd)
        except OSError:
            self._gone(watched)
            return
        self._judge(watched, attr)
        if not attr.nlink:
            self._gone(watched)

    def _child(self, watched: Watched, name: bytes) -> None:
        attr = watched.sandbox.stat_entry(watched.fd, name, frozenset())
        if attr is None:
            self._tell(watched, name)
        else:
            self._judge(watched, attr)

    def _judge(self, watched: Watched, attr: Attr) -> None:
        """The file of *attr* may have changed."""
        identity, state = attr.identity, _state(attr)
        noted = self._notes.get(identity)
        self._notes.put(identity, state)
        if noted == state and self._proves(attr):
            self.echoes += 1
        else:
            self._tell(watched, None, identity)

    def _proves(self, attr: Attr) -> bool:
        """Whether another state of the file would have other times."""
        return self._fine.get(attr.dev, False) or self._wall() - attr.ctime > _TICK

    def _entry(self, watched: Watched, name: bytes, directory: bool, mask: int) -> None:
        attr = watched.sandbox.stat_entry(watched.fd, name, frozenset())
        who = _who(attr)
        key = (watched.identity, name)
        noted = self._notes.get(key)
        if noted == who:
            self.echoes += 1
        else:
            self._notes.put(key, who)
            self._tell(watched, name)
        if attr is not None and attr.nlink > 1 and not stat.S_ISDIR(attr.mode):
            self._judge(watched, attr)  # those who know it by another name have to hear of it
        if directory and mask & inotify.DELETE:
            for other in self.leases.called(name):
                self._gone_if_removed(other)

    def _gone_if_removed(self, watched: Watched) -> None:
        # We have it open, so the kernel does not say it.
        try:
            if watched.sandbox.stat(watched.fd).nlink:
                return
        except OSError:
            pass
        self._gone(watched)

    def _tell(self, watched: Watched, name: bytes | None, identity: Identity | None = None) -> None:
        place = (identity or watched.identity, name)
        holders = dict(watched.holders)
        if identity is not None:  # those who have a lease on that very file
            holders |= self.leases.holders(identity)
        for session in holders:
            session.pending.add([place])
            self._mark(session)

    def describe(self) -> dict[str, int]:
        """For the status page."""
        return {
            "watches": len(self.leases),
            "refused": self.leases.refused,
            "events": self.events,
            "echoes": self.echoes,
            "overflows": self.overflows,
        }

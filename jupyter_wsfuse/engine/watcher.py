"""What happens to the files behind us: inotify -> changes -> the sessions that hold a lease.

The kernel tells of what this very process does as well. A client must not be told of its own operations: it
would forget what it has just learnt. So after each operation the engine notes what it did (:mod:`.ours`), and an event
that says nothing else is an echo; one that comes while the operation is still at work waits until that is noted. That
is sound because whoever made the operation drops all he knows of the file when it is answered, and the others in his
workspace are told of it anyway. Those in another workspace that happens to hold the same files are told by the event.

Telling too much costs somebody a question. Telling too little would be a lie: where a clock is so coarse that two
states may carry the same times, equal times prove nothing, unless the event came so long after them that it cannot be
about a change that carries them, too.

inotify does not report everything: a file that is changed through ``mmap`` is noticed when it is closed, and a file
that is changed by a second name in a directory that nobody watches is not noticed by its first.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from ..errors import errno_name, errno_of
from ..protocol.messages import Attr, Identity
from . import inotify
from .leases import Leases, Watched
from .notes import MOVING, Key, Notes
from .ours import Ours
from .sandbox import Sandbox

if TYPE_CHECKING:
    from .session import Session

_LOG = logging.getLogger(__name__)

#: Nanoseconds after which a file's times cannot come again, where the clock of the file system is coarse.
_TICK: Final = 20_000_000
#: Seconds for which the news of a file wait, at most, while operations of our own are at work on it.
PATIENCE: Final = 0.05
#: Batches of events that are read before others get their turn.
_BATCHES: Final = 8


def fine_times(sandbox: Sandbox) -> bool:
    """Whether each change of a file that was looked at gives it another ctime, however soon it comes (Linux 6.13 and
    later, on most file systems). Found out on a file without a name; False if there can be none."""
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


class Watcher:
    """Reads events and tells sessions. *mark* is called with a session that there is news for.

    On the event loop, but for :meth:`settle`, and what is said of :class:`.Leases` and :class:`.Ours`. ``unable``: why
    nothing can be watched at all, in words. Call :meth:`drain` when *again* has been called, after at most so many
    seconds. *wall*: nanoseconds since the epoch.
    """

    def __init__(
        self,
        *,
        watches: int,
        each: int,
        mark: Callable[[Session], None],
        ended: Callable[[Session, list[Identity]], None],
        again: Callable[[float], None] = lambda seconds: None,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.unable = ""
        self.queue: inotify.Inotify
        try:
            self.queue = inotify.Inotify()
        except OSError as error:
            self.queue = inotify.NoInotify()
            self.unable = (
                f"the server has no means left to watch files (inotify: {errno_name(errno_of(error))})"
            )
            _LOG.warning("clients are not told of changes: %s", self.unable)
        self.leases = Leases(self.queue, watches=watches, each=each, ended=ended)
        self.events = self.echoes = self.overflows = 0
        #: Told of each change behind the mounts that is noticed, while somebody wants to know where.
        self.on_change: Callable[[Watched], None] | None = None
        self._mark = mark
        self._again = again
        self._wall = wall
        self._notes = Notes()
        self.ours = Ours(self.leases, self._notes)
        #: For what is at work on their files, each with the time until which.
        self._waiting: list[tuple[inotify.Event, int]] = []
        self._fine: dict[int, bool] = {}  # device -> whether its times are
        #: By the wall: nothing that had happened until then is in the queue any more.
        self._emptied = 0
        self._settling = threading.Lock()

    @property
    def fd(self) -> int:
        """Readable when there is something to :meth:`drain`; -1 if there never is."""
        return self.queue.fd

    def close(self) -> None:
        for watched in self.leases:
            self.leases.gone(watched)
        self.queue.close()

    def settle(self, sandbox: Sandbox) -> None:
        """Find out, once, how fine the times of a workspace are. Blocks. In any thread."""
        device = sandbox.stat(sandbox.root_fd).dev
        with self._settling:
            if device not in self._fine:
                self._fine[device] = fine_times(sandbox)

    # --- what happens ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Look at what has happened since. Never waits."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for event, until in waiting:
                self._happened(event, until)
        for _ in range(_BATCHES):
            now = self._wall()
            events = self.queue.read()
            if not events:
                self._emptied = now
                return
            self.events += len(events)
            for event in events:  # of alike ones in a row, the kernel has made one
                self._happened(event)

    def _happened(self, event: inotify.Event, until: int = 0) -> None:
        """*until*: how long it has to wait for what is at work; 0 if it has just come."""
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
            self._itself(watched, event, until)
        elif mask & inotify.ENTRY:
            self._entry(watched, event, until)
        else:
            self._child(watched, event, until)

    def _waits(self, event: inotify.Event, until: int, *keys: Key) -> bool:
        """Whether *event* is not looked at now, since what is at work on one of *keys* may be its cause."""
        if not any(map(self._notes.at_work, keys)):
            return False
        now = perf_counter_ns()
        if until and now >= until:
            return False
        if not self._waiting:
            self._again(PATIENCE)
        if not self._waiting or self._waiting[-1][0] != event:
            self._waiting.append((event, until or now + int(PATIENCE * 1e9)))
        return True

    def _lost(self) -> None:
        """Events were dropped: anything may be another."""
        self.overflows += 1
        self._notes.lost()
        for watched in self.leases:
            for session in list(watched.holders):
                session.pending.everything("more changed on the server than could be followed")
                self._mark(session)

    def _gone(self, watched: Watched) -> None:
        for session in self.leases.gone(watched):
            session.pending.add([(watched.identity, None)])
            session.pending.released([watched.identity])
            self._mark(session)

    def _itself(self, watched: Watched, event: inotify.Event, until: int) -> None:
        moved = event.mask & inotify.MOVE_SELF
        if self._waits(event, until, watched.identity, *([MOVING] if moved else [])):
            return
        try:
            attr = watched.sandbox.stat(watched.fd)
        except OSError:
            self._gone(watched)
            return
        if moved and watched.directory:
            self.leases.renamed(watched)
        self._judge(watched, attr)
        if not attr.nlink:
            self._gone(watched)

    def _child(self, watched: Watched, event: inotify.Event, until: int) -> None:
        attr = watched.sandbox.stat_entry(watched.fd, event.name, frozenset())
        if attr is None:
            self._tell(watched, (watched.identity, event.name))
        elif not self._waits(event, until, attr.identity):
            self._judge(watched, attr)

    def _judge(self, watched: Watched, attr: Attr) -> None:
        """The file of *attr* may have changed."""
        proof = self._proves(attr)
        if not self._notes.told(watched.wd, attr) and proof:
            self.echoes += 1
            return
        self._tell(watched, (attr.identity, None), self._notes.left_by(attr) if proof else None)

    def _proves(self, attr: Attr) -> bool:
        """Whether another state of the file would have other times."""
        return self._fine.get(attr.dev, False) or self._emptied - attr.ctime > _TICK

    def _entry(self, watched: Watched, event: inotify.Event, until: int) -> None:
        _, mask, name = event
        if self._waits(event, until, (watched.identity, name)):
            return
        attr = watched.sandbox.stat_entry(watched.fd, name, frozenset())
        by = self._notes.spend(watched.wd, name, mask & inotify.ENTRY, attr)
        self._tell(watched, (watched.identity, name), by)
        if attr is not None and attr.nlink > 1 and not stat.S_ISDIR(attr.mode):
            self._judge(watched, attr)  # those who know it by another name have to hear of it
        if mask & inotify.ISDIR and mask & inotify.DELETE:
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

    def _tell(self, watched: Watched, place: tuple[Identity, bytes | None], by: object = None) -> None:
        """Tell who holds a lease on *watched*, or on the file of *place*; *by*: not those in the workspace that did it
        itself."""
        holders = list(watched.holders)
        if place[1] is None and place[0] != watched.identity:
            other = self.leases.on(place[0])
            if other is not None:
                holders += list(other.holders)
        if by is None and self.on_change is not None:
            self.on_change(watched)
        news = [session for session in holders if by is None or session.workspace is not by]
        for session in news:
            session.pending.add([place])
            self._mark(session)
        self.echoes += not news

    def describe(self) -> dict[str, int | str]:
        """For the status page."""
        return {
            "watches": len(self.leases),
            "leases": self.leases.granted,
            "refused": self.leases.refused,
            "events": self.events,
            "echoes": self.echoes,
            "overflows": self.overflows,
            "unable": self.unable,
        }

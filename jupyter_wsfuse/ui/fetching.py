"""Walking what lies below some paths and reading its files, by threads, so that everything on the way remembers it.

Whoever waits for this does no I/O itself: a file system that does not answer cannot keep it from being interrupted.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

#: Bytes of a file up to which it is one of those that are read first.
SMALL: Final = 128 << 10
#: Bytes of one read.
PIECE: Final = 1 << 20
#: Failures that are remembered by name.
NAMED: Final = 20

#: What says that nothing will be answered any more.
_LOST: Final = frozenset({errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNABORTED})
#: What was there when its directory was listed may be something else by now.
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR, errno.ENXIO})
#: O_NONBLOCK: if it has become a FIFO, nobody waits for its writer.
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Crew:
    """Threads that take tasks from a stack until there is none left. *work* returns further ones, to be done next."""

    def __init__(self, size: int, tasks: Sequence[Any], work: Callable[[Any], Sequence[Any]]) -> None:
        self.stopped = False
        self.failure: BaseException | None = None
        self._stack = list(reversed(tasks))
        self._work = work
        self._busy = 0
        self._ended: set[threading.Thread] = set()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"wsfuse-prefetch-{number}", daemon=True)
            for number in range(size)
        ]

    def start(self) -> None:
        """To be followed by :meth:`wait` until it is true, or by :meth:`stop`."""
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all have ended, within *seconds*. Raises what a task failed of."""
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._left(), seconds)
        if ended and self.failure is not None:
            raise self.failure
        return ended

    def stop(self, seconds: float = 0.0) -> int:
        """No further task is begun, and those under way are told by :attr:`stopped`. The number of threads that have
        not ended within *seconds*; they do as soon as the system call that they are in returns."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._left(), seconds)
            return self._left()

    def _left(self) -> int:
        # Those that were never started, because an interrupt came first, are not waited for.
        return sum(thread.is_alive() and thread not in self._ended for thread in self._threads)

    def _run(self) -> None:
        try:
            while (task := self._take()) is not None:
                more: Sequence[Any] = ()
                try:
                    more = self._work(task)
                finally:
                    self._finished(more)
        except BaseException as exc:
            self.failure = exc
            self.stop()
        finally:
            with self._changed:
                self._ended.add(threading.current_thread())
                self._changed.notify_all()

    def _take(self) -> Any:
        """The next task; None: there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._stack or not self._busy or self.stopped)
            if self.stopped or not self._stack:
                return None
            self._busy += 1
            return self._stack.pop()

    def _finished(self, more: Sequence[Any]) -> None:
        with self._changed:
            self._busy -= 1
            self._stack += reversed(more)
            if more or not self._busy:
                self._changed.notify_all()


class Root(NamedTuple):
    """Where to begin, and the number of the file system (``st_dev``) that is not left."""

    path: str
    device: int


class _File(NamedTuple):
    name: str
    size: int


class _Directory:
    """``below``: the directories in it, in the order of its listing."""

    __slots__ = ("path", "device", "files", "below")

    def __init__(self, path: str, device: int) -> None:
        self.path = path
        self.device = device
        self.files: list[_File] = []
        self.below: list[_Directory] = []


class _Task(NamedTuple):
    """A file to be read."""

    directory: _Directory
    file: _File


@dataclass
class Counts:
    """``files`` and ``bytes``: what there is to read. ``special``: neither files nor directories nor links.
    ``elsewhere``: on other file systems. ``over``, ``over_bytes``: what the limit left out."""

    directories: int = 0
    files: int = 0
    bytes: int = 0
    links: int = 0
    special: int = 0
    elsewhere: int = 0
    gone: int = 0
    over: int = 0
    over_bytes: int = 0
    read: int = 0
    read_bytes: int = 0
    errors: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


class Fetch:
    """First :meth:`look`, then :meth:`choose`, then :meth:`read`. ``lost``: why it came to an early end, "" if it did
    not. *readv* is :func:`os.readv`, *clock* gives seconds."""

    def __init__(
        self,
        roots: Sequence[Root],
        *,
        readv: Callable[[int, Any], int] = os.readv,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = Counts()
        self.lost = ""
        self._readv = readv
        self._clock = clock
        self._began = clock()
        self._roots = list(roots)
        self._tops = [_Directory("", root.device) for root in self._roots]
        self._chosen: list[_Task] = []
        self._crew: Crew | None = None
        self._lock = threading.Lock()
        self._buffers = threading.local()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._clock() - self._began

    def look(self, threads: int) -> Crew:
        """Who lists everything and looks at it; to be started by the caller."""
        self._crew = Crew(
            threads, list(zip(self._roots, self._tops, strict=True)), lambda task: self._list(*task)
        )
        return self._crew

    def choose(self, limit: int) -> None:
        """Of what was found, as many files as have *limit* bytes together, in the order in which they are read."""
        left, counts = limit, self.counts
        for directory in self._in_order():
            # The small ones first: who needs one of them usually needs most of them, and soon.
            for file in sorted(directory.files, key=lambda file: file.size > SMALL):
                if file.size > left:
                    counts.over += 1
                    counts.over_bytes += file.size
                    counts.files -= 1
                    counts.bytes -= file.size
                    continue
                left -= file.size
                self._chosen.append(_Task(directory, file))

    def read(self, threads: int) -> Crew:
        """Who reads what was chosen; to be started by the caller."""
        self._crew = Crew(threads, self._chosen, self._read)
        return self._crew

    def stop(self, seconds: float) -> int:
        """End it. The number of threads that are still in a system call after *seconds*, and end when it returns."""
        return 0 if self._crew is None else self._crew.stop(seconds)

    # --- looking -----------------------------------------------------------------------------------------------

    def _in_order(self) -> Iterator[_Directory]:
        stack = list(reversed(self._tops))
        while stack:
            directory = stack.pop()
            yield directory
            stack += reversed(directory.below)

    def _list(self, place: Root | _Directory, top: _Directory) -> Sequence[tuple[_Directory, _Directory]]:
        try:
            if isinstance(place, Root):
                return self._begin(place, top)
            return self._scan(place)
        except OSError as exc:
            self._failed(place.path, exc, named=isinstance(place, Root))
            return ()

    def _begin(self, root: Root, top: _Directory) -> Sequence[tuple[_Directory, _Directory]]:
        """What was named is followed if it is a link: to whatever is on the same file system."""
        found = os.stat(root.path)
        if found.st_dev != root.device:
            raise OSError(errno.EXDEV, "is on another file system, not in the mount")
        if stat.S_ISDIR(found.st_mode):
            top.path = root.path
            return [(top, top)]
        top.path, name = os.path.split(os.path.realpath(root.path))
        if stat.S_ISREG(found.st_mode):
            self._add(top, name, found.st_size)
        else:
            self._count("special")
        return ()

    def _scan(self, directory: _Directory) -> Sequence[tuple[_Directory, _Directory]]:
        self._count("directories")
        with os.scandir(directory.path) as entries:
            for entry in entries:
                if self._crew is not None and self._crew.stopped:
                    return ()
                try:
                    self._look_at(directory, entry)
                except OSError as exc:
                    self._failed(entry.path, exc)
        return [(below, below) for below in directory.below]

    def _look_at(self, directory: _Directory, entry: os.DirEntry[str]) -> None:
        found = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            self._count("links")
            try:
                os.readlink(entry.path)  # so that this is remembered, too
            except OSError:
                pass  # where links are judged, some may not be read
        elif found.st_dev != directory.device:
            self._count("elsewhere")
        elif stat.S_ISDIR(found.st_mode):
            directory.below.append(_Directory(entry.path, directory.device))
        elif stat.S_ISREG(found.st_mode):
            self._add(directory, entry.name, found.st_size)
        else:
            self._count("special")

    def _add(self, directory: _Directory, name: str, size: int) -> None:
        directory.files.append(_File(name, size))
        with self._lock:
            self.counts.files += 1
            self.counts.bytes += size

    # --- reading -----------------------------------------------------------------------------------------------

    def _read(self, task: _Task) -> Sequence[Any]:
        path = os.path.join(task.directory.path, task.file.name)
        try:
            fd = os.open(path, _FLAGS)
            try:
                found = os.fstat(fd)
                if stat.S_ISREG(found.st_mode) and found.st_dev == task.directory.device:
                    self._take_in(fd, task.file.size)
            finally:
                os.close(fd)
        except OSError as exc:
            self._failed(path, exc)
        return ()

    def _take_in(self, fd: int, size: int) -> None:
        """Up to *size* bytes: a file that grows must not keep us for ever."""
        buffer = getattr(self._buffers, "buffer", None)
        if buffer is None:
            buffer = self._buffers.buffer = bytearray(PIECE)
        left = size
        while left > 0:
            got = self._readv(fd, [buffer])
            if not got:
                break
            left -= got
            self._count("read_bytes", got)
            if self._crew is not None and self._crew.stopped:
                return
        self._count("read")

    # --- counting ----------------------------------------------------------------------------------------------

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            setattr(self.counts, name, getattr(self.counts, name) + by)

    def _failed(self, path: str, exc: OSError, named: bool = False) -> None:
        """*named*: by the user, who is told even if it does not exist."""
        if exc.errno in _LOST and self._crew is not None:
            self.lost = exc.strerror or str(exc)
            self._crew.stop()
        elif exc.errno in _GONE and not named:
            self._count("gone")
            return
        with self._lock:
            self.counts.errors += 1
            if len(self.counts.failed) < NAMED:
                self.counts.failed.append((path, exc.strerror or str(exc)))

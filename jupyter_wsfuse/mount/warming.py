"""Bringing what lies below a path here before it is needed, by walking and reading it through the mount.

So it ends up wherever it would when a program reads it: metadata with the daemon and the kernel, data in the kernel's
pages. What changes afterwards is told as usual.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

#: Bytes of one read.
PIECE: Final = 1 << 20
#: Failures whose names are remembered.
NAMED: Final = 10


@dataclass
class Progress:
    """What was found, and what was done of it so far. ``skipped`` counts files that did not fit into the limit."""

    directories: int = 0
    found: int = 0
    found_bytes: int = 0
    files: int = 0
    bytes: int = 0
    skipped: int = 0
    skipped_bytes: int = 0
    failures: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    listed: bool = False  # everything is found

    def fail(self, path: str, error: OSError) -> None:
        self.failures += 1
        if len(self.failed) < NAMED:
            self.failed.append((path, error.strerror or str(error)))


def memory_available() -> int:
    """Bytes that can be used on this machine before something else has to go; 0 if it does not say."""
    try:
        with open("/proc/meminfo") as table:
            for line in table:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return 0


class Warming:
    """Threads that read what lies below *paths*, at most *limit* bytes of it; with *metadata* they only look.

    Symbolic links are not followed, other file systems not entered, and nothing but regular files is read. Poll
    :attr:`progress`; :meth:`stop` ends the threads after their present read.
    """

    def __init__(
        self, paths: Iterable[str], *, threads: int = 8, limit: int = 0, metadata: bool = False
    ) -> None:
        self.progress = Progress()
        self._limit = limit
        self._metadata = metadata
        self._stopping = threading.Event()
        self._ready = threading.Condition()
        self._files: deque[tuple[str, int]] = deque()
        self._threads = [threading.Thread(target=self._list, args=(list(paths),), daemon=True)]
        if not metadata:
            self._threads += [threading.Thread(target=self._read_all, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        """Return at once."""
        for thread in self._threads:
            thread.start()

    def wait(self, timeout: float) -> bool:
        """Whether it ended within *timeout* seconds."""
        for thread in self._threads:
            thread.join(timeout)
            if thread.is_alive():
                return False
        return True

    def stop(self) -> None:
        """Give up. Returns at once; a thread that waits for the mount ends when that answers."""
        self._stopping.set()
        with self._ready:
            self._ready.notify_all()

    # --- in threads ------------------------------------------------------------------------------------

    def _list(self, paths: list[str]) -> None:
        progress = self.progress
        try:
            for path in paths:
                for file, size in self._walk(path):
                    if self._stopping.is_set():
                        return
                    progress.found += 1
                    if self._limit and progress.found_bytes + size > self._limit:
                        progress.skipped += 1
                        progress.skipped_bytes += size
                        continue
                    progress.found_bytes += size
                    if not self._metadata:
                        with self._ready:
                            self._files.append((file, size))
                            self._ready.notify()
        finally:
            with self._ready:
                progress.listed = True
                self._ready.notify_all()

    def _walk(self, top: str) -> Iterator[tuple[str, int]]:
        """Regular files below *top* with their sizes, directory by directory, in the order of their listings."""
        progress = self.progress
        try:
            status = os.lstat(top)
        except OSError as error:
            progress.fail(top, error)
            return
        if stat.S_ISREG(status.st_mode):
            yield top, status.st_size
        if not stat.S_ISDIR(status.st_mode):
            return
        waiting = deque([top])
        while waiting and not self._stopping.is_set():
            folder = waiting.popleft()
            below: list[str] = []
            try:
                with os.scandir(folder) as entries:
                    progress.directories += 1
                    for entry in entries:
                        try:
                            found = entry.stat(follow_symlinks=False)
                        except OSError as error:
                            progress.fail(entry.path, error)
                            continue
                        if found.st_dev != status.st_dev:
                            continue
                        if stat.S_ISDIR(found.st_mode):
                            below.append(entry.path)
                        elif stat.S_ISREG(found.st_mode):
                            yield entry.path, found.st_size
            except OSError as error:
                progress.fail(folder, error)
            waiting.extendleft(reversed(below))

    def _next(self) -> tuple[str, int] | None:
        with self._ready:
            while not self._files and not self.progress.listed and not self._stopping.is_set():
                self._ready.wait()
            if self._stopping.is_set() or not self._files:
                return None
            return self._files.popleft()

    def _read_all(self) -> None:
        buffer = bytearray(PIECE)
        while (item := self._next()) is not None:
            path, _ = item
            try:
                self._read(path, buffer)
            except OSError as error:
                with self._ready:
                    self.progress.fail(path, error)

    def _read(self, path: str, buffer: bytearray) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            while not self._stopping.is_set():
                count = os.readv(fd, [buffer])
                if not count:
                    break
                with self._ready:
                    self.progress.bytes += count
        finally:
            os.close(fd)
        if not self._stopping.is_set():
            with self._ready:
                self.progress.files += 1

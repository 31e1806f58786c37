"""Which names have something mounted on them, asked of the kernel's own table and never by touching them.

A stat of a mount point is answered by what is mounted there. If that is one of our own mounts, the answer
would have to come through this very engine; so a listing leaves mount points alone, and needs to know them
beforehand.
"""

from __future__ import annotations

import os
import re
import select
import threading
from typing import Final

_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


def parse_mountinfo(text: bytes) -> frozenset[bytes]:
    """The mount points in ``/proc/self/mountinfo`` (proc(5)), absolute, unescaped."""
    points = set()
    for line in text.splitlines():
        field = line.split(b" ", 5)[4]
        points.add(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field))
    return frozenset(points)


class MountTable:
    """The mount points of this process's namespace; read again only when the kernel says that they
    changed."""

    def __init__(self, path: str = "/proc/self/mountinfo") -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLERR | select.POLLPRI)
        self._lock = threading.Lock()
        self._points: frozenset[bytes] | None = None

    def points(self) -> frozenset[bytes]:
        with self._lock:
            # A change after the poll sets the event again, so what is read here is never older than the
            # event.
            if self._poll.poll(0) or self._points is None:
                text = b""
                while chunk := os.pread(self._fd, 1 << 16, len(text)):
                    text += chunk
                self._points = parse_mountinfo(text)
            return self._points

    def within(self, directory: bytes) -> frozenset[bytes]:
        """The names directly in *directory* (an absolute path without links) on which something is
        mounted."""
        prefix = directory.rstrip(b"/") + b"/"
        start = len(prefix)
        return frozenset(
            point[start:]
            for point in self.points()
            if point.startswith(prefix) and point[start:] and b"/" not in point[start:]
        )

    def close(self) -> None:
        os.close(self._fd)

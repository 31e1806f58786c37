"""Where an open file lies, as the kernel knows it: the path that rules are asked about.

It is taken from the descriptor, so it is the file's own, whatever names the client used and whatever has been
renamed since.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from jupyter_wsfuse.engine import syscalls
from jupyter_wsfuse.errors import SandboxError

#: Seconds after which the folders are looked up again; at once when a file seems to be in none of them.
_FRESH: Final = 1.0
BELOW: Final = (
    syscalls.RESOLVE_BENEATH
    | syscalls.RESOLVE_NO_SYMLINKS
    | syscalls.RESOLVE_NO_MAGICLINKS
    | syscalls.RESOLVE_NO_XDEV
)
_DELETED: Final = b" (deleted)"


class Places:
    """*roots* are descriptors of the workspace and of the folders outside that links may lead to."""

    def __init__(self, roots: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._roots = roots
        self._descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._clock = clock
        self._until = 0.0
        self._prefixes: list[bytes] = []

    def of(self, fd: int) -> bytes:
        """The path of what *fd* is open on, below the workspace; with a slash in front: below another folder.

        Raises FileNotFoundError if it has no name any more, :class:`SandboxError` if it lies elsewhere.
        """
        path = syscalls.descriptor_path(self._descriptors, fd)
        if self._clock() < self._until:
            # Nearly always this: a path in the workspace, no question open.
            prefix = self._prefixes[0]
            if path.startswith(prefix) and not path.endswith(_DELETED):
                return path[len(prefix) :]
        else:
            self._look_up()
        if not path.endswith(_DELETED):
            return self._place(*self._below(path))
        return self._standing(fd, path)

    def close(self) -> None:
        os.close(self._descriptors)

    def _look_up(self) -> None:
        self._prefixes = [
            os.path.join(syscalls.descriptor_path(self._descriptors, root), b"") for root in self._roots
        ]
        self._until = self._clock() + _FRESH

    def _below(self, path: bytes) -> tuple[int, bytes]:
        """The folder and the path in it; the workspace, or else the innermost one."""
        path += b"/"
        for _ in range(2):
            inside = [index for index, prefix in enumerate(self._prefixes) if path.startswith(prefix)]
            if inside:
                index = max(inside, key=lambda index: (index == 0, len(self._prefixes[index])))
                return index, path[len(self._prefixes[index]) : -1]
            self._look_up()  # a folder itself was moved
        raise SandboxError

    @staticmethod
    def _place(index: int, below: bytes) -> bytes:
        return b"/" + below if index else below

    def _standing(self, fd: int, path: bytes) -> bytes:
        """The place by *path*, or by what that is without "(deleted)" at its end, where the file stands.

        A file may be called so; and where names are kept on another machine, the kernel may have dropped one
        that is still good.
        """
        own = os.fstat(fd)
        how = syscalls.open_how(os.O_PATH | os.O_NOFOLLOW, BELOW)
        for candidate in (path.removesuffix(_DELETED), path):
            index, below = self._below(candidate)
            try:
                found = syscalls.openat2(self._roots[index], below or b".", how)
            except OSError:
                continue
            try:
                other = os.fstat(found)
            finally:
                os.close(found)
            if (other.st_dev, other.st_ino) == (own.st_dev, own.st_ino):
                return self._place(index, below)
        raise FileNotFoundError(errno.ENOENT, "the file has no name any more")

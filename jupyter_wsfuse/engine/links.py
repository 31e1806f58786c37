"""Following symbolic links on the server, into folders that the administrator allowed (``links=follow``).

Names are only reckoned with here; what is opened in the end is opened by the sandbox below the descriptor of
an allowed folder, without any link, so a link that changes in the meantime leads nowhere.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from jupyter_wsfuse.errors import SandboxError, os_error

_LINKS_MAX: Final = 40  # as the kernel's MAXSYMLINKS


class Place(NamedTuple):
    """A path below one of the allowed folders: the folder's index, and the components below it."""

    root: int
    below: tuple[bytes, ...]


def parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def locate(components: Sequence[bytes], roots: Sequence[Sequence[bytes]]) -> Place | None:
    """Where the absolute path *components* lies; the innermost folder if they are nested."""
    best: Place | None = None
    depth = -1
    for index, root in enumerate(roots):
        if len(root) > depth and list(components[: len(root)]) == list(root):
            best, depth = Place(index, tuple(components[len(root) :])), len(root)
    return best


def walk(path: bytes, roots: Sequence[Sequence[bytes]], read_link: Callable[[Place], bytes | None]) -> Place:
    """The place that the absolute *path* leads to when every link in it is followed.

    *roots* are the allowed folders as components of their real paths. *read_link* gives the target of what
    stands at a place, or None if that is no link. Raises :class:`SandboxError` if the way, or its end, is
    outside every allowed folder.
    """
    resolved: list[bytes] = []
    pending = parts(path)[::-1]
    budget = _LINKS_MAX
    while pending:
        part = pending.pop()
        if part == b"..":
            del resolved[-1:]
            continue
        resolved.append(part)
        place = locate(resolved, roots)
        if place is None:
            # The real path of an allowed folder has no links in it: on the way there nothing has to be read.
            if not any(list(root[: len(resolved)]) == resolved for root in roots):
                raise SandboxError("a symbolic link leads outside the workspace")
            continue
        target = read_link(place) if place.below else None
        if target is None:
            continue
        budget -= 1
        if budget < 0:
            raise os_error(errno.ELOOP)
        resolved.pop()
        if target.startswith(b"/"):
            resolved.clear()
        pending += parts(target)[::-1]
    place = locate(resolved, roots)
    if place is None:
        raise SandboxError("a symbolic link leads outside the workspace")
    return place


def real_path(fd: int) -> bytes:
    """The absolute path by which the kernel knows what *fd* is open on; the link itself for a link."""
    return os.readlink(b"/proc/self/fd/%d" % fd)

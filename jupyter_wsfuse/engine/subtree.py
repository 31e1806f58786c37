"""ListTree: the entries of several directories, and of those below them, in one answer.

Each directory is resolved by its path and identity as in any other request, judged by the same rules, and listed wholly
or not at all. No symbolic link is followed, and nothing is entered that is mounted inside.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections import deque
from typing import Final

from ..errors import os_error
from ..protocol import messages as m
from . import enforcement, entries
from .context import Context, Payload, Result
from .permissions import LIST
from .sandbox import proc_path, reopen

#: What one request may ask for: entries, directories that it names, levels below them.
MOST_ENTRIES: Final = 8192
MOST_REFS: Final = 1024
DEEPEST: Final = 64
#: Bytes of a directory in the answer beside its path and entries, at most, and of an entry beside its name, on average:
#: even if all are the longest, a header has room for them.
_DIRECTORY_BYTES: Final = 200
_ENTRY_BYTES: Final = 125
#: Directories that may turn out to be too large for the room that is left.
_MOST_SKIPPED: Final = 16
_RESERVED: Final = "user.wsfuse."


class _Answer:
    """The directories found so far, and the room that is left."""

    def __init__(self, context: Context, limit: int) -> None:
        self.context = context
        self.directories: list[m.TreeDirectory] = []
        self.entries = limit
        self.bytes = entries.LISTING_BYTES
        self.skipped = 0

    @property
    def full(self) -> bool:
        return self.entries <= 0 or self.bytes <= 0 or self.skipped > _MOST_SKIPPED

    def add(self, ref: m.Ref, first: bool) -> m.TreeDirectory | None:
        """List the directory *ref*; None if there is no room for it any more. The *first* is in the answer in any case.
        Raises :class:`OSError` if it cannot be listed."""
        context = self.context
        leases = context.leases  # those of the rules by which it is decided now, or of older ones
        with enforcement.resolve(context, ref, LIST) as target:
            if not stat.S_ISDIR(target.attr.mode):
                raise os_error(errno.ENOTDIR)
            lease = leases is not None and leases.directory(target.fd, target.attr)
            attr = context.sandbox.stat(target.fd)
            fd = reopen(target.fd, attr.mode, os.O_RDONLY | os.O_DIRECTORY)
            place = target.place if context.policy.hides else None
        try:
            # With two dots, and one more, which says that these are not all.
            found, end = entries.list_directory(fd, 0, self.entries + 3)
            size = _DIRECTORY_BYTES + len(ref.path) + sum(len(entry[0]) + _ENTRY_BYTES for entry in found)
            if not end or size > self.bytes:
                if not first:
                    self.skipped += 1
                    return None
                self.entries = 0
                directory = m.TreeDirectory(ref.path, attr, [], False, lease)
            else:
                shown = [entry for entry in found if entry[0] not in (b".", b"..")]
                self.entries -= len(shown)
                self.bytes -= size
                listed = entries.entries_of(context, fd, shown, True, place)
                for entry in listed:
                    if entry.attr is not None and _plain(fd, entry.name):
                        entry.flags |= m.ENTRY_PLAIN
                        if context.policy.unrestricted:
                            entry.flags |= _access(entry.attr)
                directory = m.TreeDirectory(ref.path, attr, listed, True, lease)
        finally:
            os.close(fd)
        self.directories.append(directory)
        return directory


def _plain(directory: int, name: bytes) -> bool:
    """Whether an entry has no extended attributes."""
    try:
        found = os.listxattr(proc_path(directory) + b"/" + name, follow_symlinks=False)
    except OSError:
        return False
    return all(attribute.startswith(_RESERVED) for attribute in found)


def _may_override() -> bool:
    """Whether modes keep this process from nothing (CAP_DAC_OVERRIDE)."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & 1 << 1)
    return False


def _access(attr: m.Attr) -> int:
    """What access(2) would say of a file without access lists: ``ENTRY_READABLE`` and ``ENTRY_EXECUTABLE``."""
    uid, groups, override = _identity()
    mode = attr.mode
    if override:
        executable = stat.S_ISDIR(mode) or mode & 0o111
        return m.ENTRY_READABLE | (m.ENTRY_EXECUTABLE if executable else 0)
    shift = 6 if attr.uid == uid else 3 if attr.gid in groups else 0
    bits = mode >> shift
    return (m.ENTRY_READABLE if bits & 4 else 0) | (m.ENTRY_EXECUTABLE if bits & 1 else 0)


@functools.cache
def _identity() -> tuple[int, frozenset[int], bool]:
    return os.geteuid(), frozenset((os.getegid(), *os.getgroups())), _may_override()


def list_tree(context: Context, request: m.ListTree, payload: Payload, nowait: bool) -> Result:
    """Breadth first. What cannot be listed is left out, unless nothing can."""
    if not request.refs or len(request.refs) > MOST_REFS:
        raise os_error(errno.EINVAL)
    answer = _Answer(context, min(max(request.limit, 1), MOST_ENTRIES))
    depth = min(max(request.depth, 0), DEEPEST)
    waiting = deque((ref, depth) for ref in request.refs)
    failure: OSError | None = None
    while waiting and not answer.full:
        ref, levels = waiting.popleft()
        try:
            found = answer.add(ref, not answer.directories)
        except OSError as error:
            failure = failure or error
            continue
        if found is None or not levels:
            continue
        for entry in found.entries:
            if entry.attr is not None and stat.S_ISDIR(entry.attr.mode):
                path = ref.path + b"/" + entry.name if ref.path else entry.name
                waiting.append((m.Ref(path, entry.attr.identity), levels - 1))
    if failure is not None and not answer.directories:
        raise failure
    return m.TreeReply(request.seq, answer.directories), b""

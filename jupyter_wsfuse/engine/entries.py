"""Operations on names: looking up, making, linking, removing, renaming and listing the entries of
directories.

The parent is resolved to a descriptor first, and the kernel is given that and one single name, so whatever
happens to the way there meanwhile, the change is made in the directory that was meant.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from jupyter_wsfuse.engine import enforcement, syscalls
from jupyter_wsfuse.engine.context import Context, Payload, Result, entry_path, owned_by
from jupyter_wsfuse.engine.permissions import DELETE, join
from jupyter_wsfuse.engine.sandbox import Target, check_name, proc_path
from jupyter_wsfuse.errors import SandboxError, os_error
from jupyter_wsfuse.protocol import messages as m

_TARGET_MAX: Final = 4095  # bytes of a symbolic link's target, PATH_MAX without the NUL
LISTING_BYTES: Final = 768 << 10  # of one reply, so that it stays well within a frame's header
_DT_DIR: Final = stat.S_IFDIR >> 12
_DT_LNK: Final = stat.S_IFLNK >> 12
_DT_REG: Final = stat.S_IFREG >> 12
ENTRY_BYTES: Final = 160  # of an entry with attributes, without its name, at most


def lookup(context: Context, request: m.Lookup, payload: Payload, nowait: bool) -> Result:
    sandbox = context.sandbox
    with sandbox.resolve(request.parent, context.handles, nowait) as parent:
        lease = _lease_on(context, parent)
        try:
            fd = sandbox.lookup(parent.fd, request.name, nowait)
        except OSError as error:
            raise enforcement.not_found(context, parent, request.name, error) from None
        try:
            attr = sandbox.stat(fd, nowait)
            enforcement.found(context, parent, request.name, fd, attr)
            lease |= lease_on_file(context, fd, attr)
            if lease & m.LEASE_SELF:  # what was read before it was granted may be untrue by now
                attr = sandbox.stat(fd, nowait)
            return m.AttrReply(request.seq, attr, lease), b""
        finally:
            os.close(fd)


def _lease_on(context: Context, directory: Target) -> int:
    """``LEASE_PARENT`` if there is a lease on *directory*."""
    leases = context.leases
    if leases is None or not stat.S_ISDIR(directory.attr.mode):
        return 0
    if not leases.holds(directory.attr.identity):
        if not enforcement.may_list(context, directory):
            return 0
        if not leases.directory(directory.fd, directory.attr):
            return 0
    return m.LEASE_PARENT


def lease_on_file(context: Context, fd: int, attr: m.Attr) -> int:
    """``LEASE_SELF`` if there is a lease on the regular file of several names that *fd* is open on."""
    leases = context.leases
    if leases is None or attr.nlink < 2 or not stat.S_ISREG(attr.mode):
        return 0
    return m.LEASE_SELF if leases.file(fd, attr) else 0


def entry_attr(context: Context, directory: int, name: bytes) -> m.Attr:
    """The attributes of an entry, itself if it is a symbolic link."""
    fd = context.sandbox.open_entry(directory, name)
    try:
        return context.sandbox.stat(fd)
    finally:
        os.close(fd)


# --- making


def mkdir(context: Context, request: m.MkDir, payload: Payload, nowait: bool) -> Result:
    check_name(request.name)
    with enforcement.parent(context, request.parent) as parent:
        enforcement.making(context, parent, request.name, directory=True)
        with owned_by(context, request.uid, request.gid):
            os.mkdir(request.name, request.mode & 0o7777, dir_fd=parent.fd)
        return m.AttrReply(request.seq, entry_attr(context, parent.fd, request.name)), b""


def mknod(context: Context, request: m.MkNod, payload: Payload, nowait: bool) -> Result:
    check_name(request.name)
    kind = request.mode & 0o170000 or stat.S_IFREG  # S_IFMT() refuses numbers that are no mode
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        raise os_error(errno.EPERM)
    if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
        raise os_error(errno.EINVAL)
    with enforcement.parent(context, request.parent) as parent:
        enforcement.making(context, parent, request.name)
        with owned_by(context, request.uid, request.gid):
            os.mknod(request.name, kind | request.mode & 0o7777, dir_fd=parent.fd)
        return m.AttrReply(request.seq, entry_attr(context, parent.fd, request.name)), b""


def symlink(context: Context, request: m.SymLink, payload: Payload, nowait: bool) -> Result:
    """The target is stored as it is: it is the client's kernel that will follow it."""
    check_name(request.name)
    if not request.target:
        raise os_error(errno.ENOENT)
    if b"\0" in request.target:
        raise os_error(errno.EINVAL)
    if len(request.target) > _TARGET_MAX:
        raise os_error(errno.ENAMETOOLONG)
    with enforcement.parent(context, request.parent) as parent:
        enforcement.making(context, parent, request.name)
        with owned_by(context, request.uid, request.gid):
            os.symlink(request.target, request.name, dir_fd=parent.fd)
        return m.AttrReply(request.seq, entry_attr(context, parent.fd, request.name)), b""


def link(context: Context, request: m.Link, payload: Payload, nowait: bool) -> Result:
    """Another name for the very file of ``ref``, also if that is a symbolic link or has no name yet."""
    with enforcement.resolve(context, request.ref) as target:
        check_name(request.name)
        with enforcement.parent(context, request.parent) as parent:
            enforcement.linking(context, target, parent, request.name)
            # Following /proc/self/fd/N ends at the descriptor's own file. AT_EMPTY_PATH would need
            # CAP_DAC_READ_SEARCH.
            os.link(proc_path(target.fd), request.name, dst_dir_fd=parent.fd, follow_symlinks=True)
        return m.AttrReply(request.seq, context.sandbox.stat(target.fd)), b""


# --- removing


class _Victim:
    """An entry that is about to be removed, renamed or replaced, held so that it can be looked at, and pinned,
    afterwards. The session has *rights* on it."""

    def __init__(self, context: Context, parent: Target, name: bytes, rights: int = DELETE) -> None:
        self.context = context
        self.place = None if parent.place is None else join(parent.place, name)
        check_name(name)
        try:
            self.fd = context.sandbox.open_entry(parent.fd, name)
        except SandboxError:
            raise os_error(errno.EBUSY, "another file system is mounted there") from None
        except OSError as error:
            raise enforcement.not_found(context, parent, name, error) from None
        try:
            enforcement.entry(context, parent, name, rights, stat.S_ISDIR(self.attr.mode))
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> _Victim:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    @property
    def attr(self) -> m.Attr:
        return self.context.sandbox.stat(self.fd)

    def pin(self, attr: m.Attr, path: bytes) -> int:
        """The id of a handle that keeps the file reachable."""
        fd = os.open(proc_path(self.fd), os.O_PATH | os.O_CLOEXEC)
        handle = self.context.handles.add(
            fd,
            flags=os.O_PATH,
            identity=attr.identity,
            directory=stat.S_ISDIR(attr.mode),
            path=path,
            pin=True,
        )
        handle.place = self.place
        return handle.id


def unlink(context: Context, request: m.Unlink, payload: Payload, nowait: bool) -> Result:
    with (
        enforcement.parent(context, request.parent) as parent,
        _Victim(context, parent, request.name) as victim,
    ):
        os.unlink(request.name, dir_fd=parent.fd)
        attr = victim.attr
        pin = 0
        if request.pin and not attr.nlink:
            pin = victim.pin(attr, entry_path(request.parent, request.name))
        return m.RemovedReply(request.seq, attr, pin), b""


def rmdir(context: Context, request: m.RmDir, payload: Payload, nowait: bool) -> Result:
    with (
        enforcement.parent(context, request.parent) as parent,
        _Victim(context, parent, request.name) as victim,
    ):
        os.rmdir(request.name, dir_fd=parent.fd)
        attr = victim.attr
        pin = victim.pin(attr, entry_path(request.parent, request.name)) if request.pin else 0
        return m.RemovedReply(request.seq, attr, pin), b""


def rename(context: Context, request: m.Rename, payload: Payload, nowait: bool) -> Result:
    if request.flags not in (0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE):
        raise os_error(errno.EINVAL)
    check_name(request.new_name)
    with (
        enforcement.parent(context, request.parent) as parent,
        enforcement.parent(context, request.new_parent) as new_parent,
    ):
        if not stat.S_ISDIR(new_parent.attr.mode):  # comes before what is wrong with the names
            raise os_error(errno.ENOTDIR)
        return _rename(context, request, parent, new_parent), b""


def _rename(context: Context, request: m.Rename, parent: Target, new_parent: Target) -> m.RemovedReply:
    old, new = (parent.fd, request.name), (new_parent.fd, request.new_name)
    there, here = (new_parent, request.new_name), (parent, request.name)
    with _Victim(context, *here) as source:
        directory = stat.S_ISDIR(source.attr.mode)
        enforcement.moving(context, *here, *there, directory)
        if request.flags == syscalls.RENAME_EXCHANGE:
            with _Victim(context, *there) as other:
                enforcement.moving(context, *there, *here, stat.S_ISDIR(other.attr.mode))
                syscalls.rename(*old, *new, request.flags)
                return m.RemovedReply(request.seq, moved=source.attr)
        if request.flags:  # nothing is replaced
            syscalls.rename(*old, *new, request.flags)
            return m.RemovedReply(request.seq, moved=source.attr)
        try:
            replaced = _Victim(context, *there)
        except FileNotFoundError:
            _rename_to_nothing(context, request, parent, new_parent)
            return m.RemovedReply(request.seq, moved=source.attr)
        with replaced:
            syscalls.rename(*old, *new, 0)
            attr, moved = replaced.attr, source.attr
            if attr.identity == moved.identity:  # two names of one file: POSIX leaves both as they are
                return m.RemovedReply(request.seq, moved=moved)
            gone = stat.S_ISDIR(attr.mode) or not attr.nlink
            pin = (
                replaced.pin(attr, entry_path(request.new_parent, request.new_name))
                if request.pin and gone
                else 0
            )
            return m.RemovedReply(request.seq, attr, pin, moved)


def _rename_to_nothing(context: Context, request: m.Rename, parent: Target, new_parent: Target) -> None:
    """Rename; the new name stood for nothing a moment ago, and if that may not be replaced, stands for nothing
    now."""
    names = parent.fd, request.name, new_parent.fd, request.new_name
    denied = enforcement.replacing(context, new_parent, request.new_name)
    if denied is None:
        syscalls.rename(*names, 0)
        return
    try:
        syscalls.rename(*names, syscalls.RENAME_NOREPLACE)
    except FileExistsError:
        raise denied from None


# --- listing


def read_dir(context: Context, request: m.ReadDir, payload: Payload, nowait: bool) -> Result:
    if request.limit <= 0 or not 0 <= request.cookie < 1 << 63:
        raise os_error(errno.EINVAL)
    with context.handles.use(request.handle) as handle:
        if not handle.directory:
            raise os_error(errno.ENOTDIR)
        leases = context.leases  # those of the rules by which it is decided now, or of older ones
        place = enforcement.lists(context, handle)
        leased = leases is not None and leases.directory(handle.fd, context.sandbox.stat(handle.fd))
        cookie = request.cookie
        while True:
            with handle.reading:
                found, end = list_directory(handle.fd, cookie, request.limit)
            if found:
                cookie = found[-1][1]
            entries = entries_of(context, handle.fd, found, request.plus, place)
            # No entries would mean the end: go on until there is one that may be shown.
            if entries or end:
                return m.DirReply(request.seq, entries, end, leased), b""


def entries_of(
    context: Context,
    fd: int,
    found: list[tuple[bytes, int, int, int]],
    plus: bool,
    place: bytes | None,
) -> list[m.DirEntry]:
    """What of the entries *found* in the directory *fd* is shown, with attributes if *plus*. *place*: some may have to
    be hidden."""
    sandbox = context.sandbox
    mounted = sandbox.mounted_in(fd) if plus else frozenset()
    entries = []
    for name, cookie, ino, kind in found:
        if place is not None:
            if not kind:  # a file system that does not say
                kind = _kind(fd, name)
            if not enforcement.listed(context, place, name, kind == _DT_DIR):
                continue
        attr = None
        flags = 0
        if plus and name not in (b".", b".."):
            if place is not None and kind == _DT_LNK and sandbox.links == "follow":
                attr = enforcement.attr_of_link(context, fd, name)
            else:
                attr = sandbox.stat_entry(fd, name, mounted)
        if attr is not None:
            ino, kind = attr.ino, stat.S_IFMT(attr.mode) >> 12
            if attr.nlink > 1 and kind == _DT_REG and context.leases is not None:
                attr, flags = _leased(context, fd, name, attr)
        entries.append(m.DirEntry(name, cookie, ino, kind, attr, flags))
    return entries


def _leased(context: Context, directory: int, name: bytes, attr: m.Attr) -> tuple[m.Attr, int]:
    """Attributes of an entry with several names, and ``ENTRY_LEASED`` if there is a lease on it."""
    try:
        fd = context.sandbox.open_entry(directory, name)
    except OSError:  # it has just vanished: its directory's lease tells
        return attr, 0
    try:
        now = context.sandbox.stat(fd)
        if now.identity != attr.identity or not lease_on_file(context, fd, now):
            return attr, 0
        return context.sandbox.stat(fd), m.ENTRY_LEASED
    finally:
        os.close(fd)


def _kind(directory: int, name: bytes) -> int:
    """``DT_*`` of an entry, 0 if it has vanished."""
    try:
        return stat.S_IFMT(os.lstat(name, dir_fd=directory).st_mode) >> 12
    except OSError:
        return 0


def list_directory(fd: int, cookie: int, limit: int) -> tuple[list[tuple[bytes, int, int, int]], bool]:
    """At most *limit* entries after *cookie*, and whether the directory ends after them."""
    os.lseek(fd, cookie, os.SEEK_SET)
    found: list[tuple[bytes, int, int, int]] = []
    room = LISTING_BYTES
    while len(found) < limit and room > 0:
        # No entry is shorter than 24 bytes: hardly ever more is read than may be returned.
        batch = syscalls.read_directory(fd, 24 * (limit - len(found)))
        if not batch:
            return found, True
        found += batch[: limit - len(found)]
        room -= sum(len(entry[0]) + ENTRY_BYTES for entry in batch)
    return found, False

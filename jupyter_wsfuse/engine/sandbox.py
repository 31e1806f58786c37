"""The sole way from a name to a file.

A workspace is a descriptor of its root directory. Every path is resolved by openat2(2) below that descriptor,
by the kernel, with ``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV``: it
cannot leave by ``..``, by an absolute path, by a symbolic link that somebody plants or swaps in, by
``/proc``, or into anything that is mounted inside. There is no comparison of paths as strings that could be
wrong.

What is found is held as an ``O_PATH`` descriptor, which neither waits for a fifo nor wakes a device. It is
opened for reading or writing only after it was seen to be a regular file or a directory, and then through the
descriptor, not the name.
"""

from __future__ import annotations

import copy
import errno
import os
import stat
from collections.abc import Iterable
from typing import Final

from jupyter_wsfuse.engine import links as following
from jupyter_wsfuse.engine import syscalls
from jupyter_wsfuse.engine.handles import Handle, HandleTable
from jupyter_wsfuse.engine.mounts import MountTable
from jupyter_wsfuse.engine.places import BELOW, Places
from jupyter_wsfuse.engine.syscalls import WouldBlock
from jupyter_wsfuse.errors import SandboxError, os_error
from jupyter_wsfuse.protocol.messages import Attr, Ref

NAME_MAX: Final = 255
_PATH_CHUNK: Final = 3072  # bytes of a path given to the kernel at a time, whose own bound is 4096

# File systems that answer from memory what the kernel has cached, so that such a call may be made on the
# event loop. Everything else (NFS, CIFS, FUSE, 9p, ...) may ask a server for it. <linux/magic.h>
_LOCAL: Final = frozenset({
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0xF2F52010,  # f2fs
    0xCA451A4E,  # bcachefs
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0x794C7630,  # overlayfs
})  # fmt: skip
# When overlayfs copies a file up before the first change, inode and device stay but the birth time is a new
# one.
_NO_BIRTH_TIME: Final = frozenset({0x794C7630})

_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_WRONG_KIND: Final = {
    stat.S_IFLNK: errno.ELOOP,
    stat.S_IFCHR: errno.EACCES,
    stat.S_IFBLK: errno.EACCES,
    stat.S_IFIFO: errno.ENXIO,
    stat.S_IFSOCK: errno.ENXIO,
}


def check_name(name: bytes) -> None:
    """Raise unless *name* can be one entry of a directory."""
    if len(name) > NAME_MAX:
        raise os_error(errno.ENAMETOOLONG)
    if name == b"..":
        raise SandboxError
    if not name or b"/" in name or b"\0" in name or name == b".":
        raise os_error(errno.EINVAL if name else errno.ENOENT)


def _check_path(path: bytes) -> None:
    """The kernel refuses these as well; here they get a plain error, and NUL would cut the string short."""
    if b"\0" in path:
        raise os_error(errno.EINVAL)
    if path.startswith(b"/") or (b".." in path and b".." in path.split(b"/")):
        raise SandboxError


def proc_path(fd: int) -> bytes:
    """A name for what *fd* is open on, for calls that take no ``O_PATH`` descriptor; never resolved any
    further."""
    return b"/proc/self/fd/%d" % fd


class Target:
    """A file that a request means: ``fd`` is good for as long as the ``with`` block of this lasts.

    ``place``, ``rights`` and ``judged`` are as in a handle, for who opens it (:mod:`.enforcement`).
    """

    __slots__ = ("fd", "attr", "handle", "place", "rights", "judged", "_table")

    def __init__(self, fd: int, attr: Attr, handle: Handle | None, table: HandleTable) -> None:
        self.fd = fd
        self.attr = attr
        self.handle = handle
        self.place: bytes | None = None
        self.rights = 0
        self.judged: object = None
        self._table = table

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.handle is None:
            os.close(self.fd)
        else:
            self._table.release(self.handle)

    @property
    def path(self) -> bytes:
        """What an open file was opened as."""
        return b"" if self.handle is None else self.handle.path


class Sandbox:
    """The workspace below *root*, and the folders that symbolic links may lead to where ``links`` is
    "follow".

    ``inline_ok``: calls with *nowait* are allowed, since what they ask for is in memory or they raise
    :class:`WouldBlock`. ``local``: nothing changes in there that this kernel does not hear of.
    """

    def __init__(
        self, root: str | bytes, *, follow_roots: Iterable[str | bytes] = (), links: str = "keep"
    ) -> None:
        self.root = os.fsencode(root)
        self.links = links
        self._roots: list[int] = []
        self._mounts = MountTable()
        self._places = Places(self._roots)
        try:
            for folder in (root, *follow_roots):
                self._roots.append(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise
        self.root_fd = self._roots[0]
        kinds = {syscalls.file_system_type(fd) for fd in self._roots}
        self._births = not kinds & _NO_BIRTH_TIME
        self.local = kinds <= _LOCAL
        self.inline_ok = self.local and self._can_ask_the_cache()

    def _can_ask_the_cache(self) -> bool:
        """Whether the kernel knows ``RESOLVE_CACHED`` (5.12 and later)."""
        try:
            os.close(self.open_path(b"", nowait=True))
        except (OSError, WouldBlock):
            return False
        return True

    def with_links(self, links: str) -> Sandbox:
        """The same workspace with another way to treat links. Shares the descriptors: close only the
        original."""
        other = copy.copy(self)
        other.links = links
        return other

    def close(self) -> None:
        while self._roots:
            os.close(self._roots.pop())
        self._mounts.close()
        self._places.close()

    # --- names to descriptors

    def open_path(self, path: bytes, flags: int = 0, nowait: bool = False) -> int:
        """An ``O_PATH`` descriptor of *path*, relative to the root; the caller closes it.

        The last component is not followed if it is a symbolic link, except by ``links=follow``.
        """
        _check_path(path)
        try:
            fd = self._open_long(self.root_fd, path or b".", flags, nowait)
        except OSError as error:
            if self.links != "follow" or error.errno != errno.ELOOP:
                raise
            fd = self._open_through_links(path, nowait)
        return self._followed(fd, nowait)

    def open_entry(self, directory: int, name: bytes, nowait: bool = False) -> int:
        """An ``O_PATH`` descriptor of the entry *name* of an open directory, itself if it is a symbolic
        link."""
        check_name(name)
        return self._open(directory, name, 0, nowait)

    def lookup(self, directory: int, name: bytes, nowait: bool = False) -> int:
        """As :meth:`open_entry`, followed by ``links=follow``."""
        return self._followed(self.open_entry(directory, name, nowait), nowait)

    def _open(self, directory: int, path: bytes, flags: int, nowait: bool) -> int:
        resolve = BELOW | syscalls.RESOLVE_CACHED if nowait else BELOW
        how = syscalls.open_how(os.O_PATH | os.O_NOFOLLOW | flags, resolve)
        try:
            return syscalls.openat2(directory, path, how, nowait)
        except BlockingIOError:
            raise WouldBlock from None
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise SandboxError("another file system is mounted there") from None
            raise

    def _open_long(self, directory: int, path: bytes, flags: int, nowait: bool) -> int:
        if len(path) <= _PATH_CHUNK:
            return self._open(directory, path, flags, nowait)
        cut = path.rfind(b"/", 0, _PATH_CHUNK)
        if cut < 0:
            raise os_error(errno.ENAMETOOLONG)
        middle = self._open(directory, path[:cut], os.O_DIRECTORY, nowait)
        try:
            return self._open_long(middle, path[cut:].lstrip(b"/") or b".", flags, nowait)
        finally:
            os.close(middle)

    # --- symbolic links, with links=follow

    def _followed(self, fd: int, nowait: bool) -> int:
        """*fd*, or what the symbolic link leads to that it is open on, if that is allowed."""
        if self.links != "follow":
            return fd
        try:
            if not stat.S_ISLNK(self.stat(fd, nowait).mode):
                return fd
            other = self._follow(following.real_path(fd), nowait)
        except WouldBlock:
            os.close(fd)
            raise
        except OSError:
            return fd  # a link that leads nowhere, or nowhere allowed, is shown as it is stored
        os.close(fd)
        return other

    def _open_through_links(self, path: bytes, nowait: bool) -> int:
        """As :meth:`_open_long` from the root, with every component but the last one followed."""
        way, _, name = path.rstrip(b"/").rpartition(b"/")
        directory = self._follow(following.real_path(self.root_fd) + b"/" + way, nowait)
        try:
            return self._open(directory, name, 0, nowait)
        finally:
            os.close(directory)

    def _follow(self, path: bytes, nowait: bool) -> int:
        if nowait:
            raise WouldBlock
        roots = [following.parts(following.real_path(fd)) for fd in self._roots]
        place = following.walk(path, roots, self._read_link)
        if place.root == 0:  # links within the workspace are the client's kernel's to follow
            raise os_error(errno.ELOOP)
        return self._open_place(place)

    def _open_place(self, place: following.Place) -> int:
        return self._open_long(self._roots[place.root], b"/".join(place.below) or b".", 0, False)

    def _read_link(self, place: following.Place) -> bytes | None:
        fd = self._open_place(place)
        try:
            return read_link(fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    # --- descriptors to files

    def stat(self, fd: int, nowait: bool = False) -> Attr:
        """Attributes of an open file. No birth time where the file system does not keep it."""
        attr, _ = syscalls.statx(fd, nowait=nowait)
        if not self._births:
            attr.btime = 0
        return attr

    def stat_entry(self, directory: int, name: bytes, mounted: frozenset[bytes]) -> Attr | None:
        """Attributes of an entry just listed; None if it has vanished, or is one of the *mounted* names."""
        if name in mounted:
            return None
        try:
            attr, mount = syscalls.statx(
                directory, name, syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT
            )
            if mount:  # since the table was read
                return None
            if self.links == "follow" and stat.S_ISLNK(attr.mode):
                fd = self.lookup(directory, name)
                try:
                    return self.stat(fd)
                finally:
                    os.close(fd)
        except OSError:
            return None
        if not self._births:
            attr.btime = 0
        return attr

    def place(self, fd: int) -> bytes:
        """Where an open file lies, for the rules (:meth:`.places.Places.of`). ``ENOENT`` without a name."""
        return self._places.of(fd)

    def mounted_in(self, directory: int) -> frozenset[bytes]:
        """The names in an open directory on which something is mounted."""
        try:
            path = following.real_path(directory)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return frozenset()  # too deep for mount(2) to have been told of it by a path
        return self._mounts.within(path)

    def resolve(self, ref: Ref, handles: HandleTable, nowait: bool = False) -> Target:
        """What *ref* means. ``ESTALE`` if another file stands at the path now, ``EBADF`` for an unknown
        handle."""
        if ref.handle:
            handle = handles.acquire(ref.handle)
            try:
                return Target(handle.fd, self.stat(handle.fd, nowait), handle, handles)
            except BaseException:
                handles.release(handle)
                raise
        try:
            fd = self.open_path(ref.path, 0, nowait)
        except OSError as error:
            if ref.identity is not None and error.errno in _GONE:
                raise os_error(errno.ESTALE) from None
            raise
        try:
            attr = self.stat(fd, nowait)
            wanted = ref.identity
            if wanted is not None and (
                attr.ino != wanted.ino or attr.dev != wanted.dev or attr.btime != wanted.btime
            ):
                raise os_error(errno.ESTALE)
        except BaseException:
            os.close(fd)
            raise
        return Target(fd, attr, None, handles)


def read_link(fd: int) -> bytes:
    """The target of the symbolic link that *fd* is open on (``O_PATH``); ``EINVAL`` if it is none."""
    try:
        return os.readlink(b"", dir_fd=fd)
    except FileNotFoundError:  # Linux's answer for an empty name and something else than a link
        raise os_error(errno.EINVAL) from None


def reopen(fd: int, mode: int, flags: int) -> int:
    """A real descriptor of the regular file or directory that *fd* (``O_PATH``) is open on; *mode* is its
    ``st_mode``.

    ``EISDIR`` for a directory and anything but reading, ``ENXIO``, ``EACCES`` or ``ELOOP`` for what cannot be
    opened at all.
    """
    wrong = _WRONG_KIND.get(stat.S_IFMT(mode))
    if wrong is not None:
        raise os_error(wrong)
    return os.open(proc_path(fd), flags | os.O_CLOEXEC | os.O_NOCTTY)

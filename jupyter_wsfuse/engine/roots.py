"""Workspaces on disk: made on first use, and opened without being led astray."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from ..errors import os_error
from . import syscalls
from .tenants import Tenant, parent_of

_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_HOW: Final = syscalls.open_how(
    _FLAGS | os.O_NOFOLLOW,
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS,
)


def open_root(tenant: Tenant) -> int:
    """An ``O_PATH`` descriptor of the tenant's root, which the caller closes; made before, 0700, if it is to be.

    Links on the way to the folder in which roots are made are the administrator's and are followed. Where the root
    itself is made, by us or before, none is: ``ELOOP``. ``ENOENT`` if that folder does not exist; it is never made.
    ``EPERM`` if everyone can make entries there, and this one is somebody else's.
    """
    if not tenant.create:
        return os.open(tenant.root, _FLAGS)
    parent = parent_of(tenant)
    fd = os.open(parent, _FLAGS)
    try:
        for name in tenant.root.split(b"/")[1:][-tenant.own :] if tenant.root != b"/" else ():
            inner = _enter(fd, name)
            os.close(fd)
            fd = inner
    except BaseException:
        os.close(fd)
        raise
    return fd


def _enter(parent: int, name: bytes) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        pass
    try:
        fd = syscalls.openat2(parent, name, _HOW)
    except OSError as exc:
        # With O_DIRECTORY, the kernel calls a symbolic link no directory.
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):
            raise os_error(
                exc.errno, "something else than a folder stands where the workspace is to be"
            ) from None
        raise
    if os.fstat(parent).st_mode & stat.S_IWOTH and os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise os_error(errno.EPERM, "somebody else has made a folder where the workspace is to be")
    return fd

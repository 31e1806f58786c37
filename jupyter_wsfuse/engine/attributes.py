"""Operations on what a file is, rather than on what it holds: attributes, access, extended attributes, file
system.

All of them go through the descriptor of the target, so they work on files that have no name any more.
"""

from __future__ import annotations

import errno
import os
import stat

from jupyter_wsfuse.engine import enforcement, syscalls
from jupyter_wsfuse.engine.context import Context, Payload, Result, check_fence, check_owner, check_range
from jupyter_wsfuse.engine.entries import lease_on_file
from jupyter_wsfuse.engine.permissions import EXECUTE, LIST, READ, WRITE
from jupyter_wsfuse.engine.sandbox import Target, proc_path, read_link
from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol import messages as m

# Extended attributes of this prefix are answered here or by the mount, and never stored.
_RESERVED = b"user.wsfuse."
_WHY = b"user.wsfuse.why"


def get_attr(context: Context, request: m.GetAttr, payload: Payload, nowait: bool) -> Result:
    with enforcement.resolve(context, request.ref, 0, nowait) as target:
        lease = _lease(context, target)
        attr = context.sandbox.stat(target.fd, nowait) if lease else target.attr
        return m.AttrReply(request.seq, attr, lease), b""


def _lease(context: Context, target: Target) -> int:
    """``LEASE_SELF`` if there is a lease on *target*, a directory or a regular file of several names."""
    leases = context.leases
    if leases is None:
        return 0
    if not stat.S_ISDIR(target.attr.mode):
        return lease_on_file(context, target.fd, target.attr)
    if leases.holds(target.attr.identity):
        return m.LEASE_SELF
    may = enforcement.may_list(context, target)
    return m.LEASE_SELF if may and leases.directory(target.fd, target.attr) else 0


def set_attr(context: Context, request: m.SetAttr, payload: Payload, nowait: bool) -> Result:
    """Owner, then mode (a change of owner clears bits of it), then size (it changes times), then times."""
    with enforcement.resolve(context, request.ref, WRITE) as target:
        check_owner(context, request.uid, request.gid)
        if request.uid is not None or request.gid is not None:
            syscalls.chown(
                target.fd,
                -1 if request.uid is None else request.uid,
                -1 if request.gid is None else request.gid,
            )
        if request.mode is not None:
            if stat.S_ISLNK(target.attr.mode):
                raise os_error(errno.EOPNOTSUPP)
            os.chmod(proc_path(target.fd), request.mode & 0o7777)
        if request.size is not None:
            _truncate(target, request.size)
        if request.kill_priv:
            syscalls.chown(target.fd, -1, -1)  # changes no owner, and clears what a change of owner clears
        if request.atime is not None or request.mtime is not None:
            syscalls.set_times(target.fd, request.atime, request.mtime)
        return m.AttrReply(request.seq, context.sandbox.stat(target.fd)), b""


def _truncate(target: Target, size: int) -> None:
    check_range(size)
    check_fence(target.handle)
    if target.handle is not None and target.handle.writable:
        os.ftruncate(target.fd, size)  # allowed by the open, whatever the mode says now
    elif stat.S_ISDIR(target.attr.mode):
        raise os_error(errno.EISDIR)
    else:
        os.truncate(proc_path(target.fd), size)


def kill_privileges(fd: int) -> None:
    """Clear set-user-ID, and set-group-ID where the group may execute, of a regular file.

    That is what the kernel does after a write, unless the writer (as the engine may be) is privileged.
    """
    mode = os.fstat(fd).st_mode
    drop = mode & stat.S_ISUID
    if mode & stat.S_IXGRP:
        drop |= mode & stat.S_ISGID
    if drop and stat.S_ISREG(mode):
        os.chmod(proc_path(fd), stat.S_IMODE(mode) & ~drop)


def access(context: Context, request: m.Access, payload: Payload, nowait: bool) -> Result:
    if request.mask & ~(os.R_OK | os.W_OK | os.X_OK):
        raise os_error(errno.EINVAL)
    with enforcement.resolve(context, request.ref) as target:
        rights = 0
        if request.mask & os.R_OK:
            rights |= LIST if stat.S_ISDIR(target.attr.mode) else READ
        if request.mask & os.W_OK:
            rights |= WRITE
        if request.mask & os.X_OK:
            rights |= EXECUTE
        enforcement.demand(target, rights)
        syscalls.access(target.fd, request.mask)
        return m.Done(request.seq), b""


def readlink(context: Context, request: m.ReadLink, payload: Payload, nowait: bool) -> Result:
    with enforcement.resolve(context, request.ref, READ) as target:
        return m.LinkReply(request.seq, read_link(target.fd)), b""


def stat_fs(context: Context, request: m.StatFs, payload: Payload, nowait: bool) -> Result:
    with enforcement.resolve(context, request.ref) as target:
        s = os.fstatvfs(target.fd)
        return m.StatFsReply(
            request.seq,
            s.f_bsize,
            s.f_frsize,
            s.f_blocks,
            s.f_bfree,
            s.f_bavail,
            s.f_files,
            s.f_ffree,
            s.f_namemax,
        ), b""


def sync_fs(context: Context, request: m.SyncFs, payload: Payload, nowait: bool) -> Result:
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=context.sandbox.root_fd)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)
    return m.Done(request.seq), b""


# --- extended attributes: "user." and every other name space that the kernel allows the engine's user


def _check_xattr(name: bytes, *, change: bool = False) -> None:
    if b"\0" in name:
        raise os_error(errno.EINVAL)
    if change and name.startswith(_RESERVED):
        raise os_error(errno.EPERM, "this extended attribute is the mount's own")


def get_xattr(context: Context, request: m.GetXattr, payload: Payload, nowait: bool) -> Result:
    _check_xattr(request.name)
    if request.name.startswith(_RESERVED):
        return m.ValueReply(request.seq, _answered(context, request)), b""
    with enforcement.resolve(context, request.ref, READ) as target:
        return m.ValueReply(request.seq, os.getxattr(proc_path(target.fd), request.name)), b""


def _answered(context: Context, request: m.GetXattr) -> bytes:
    """The value of a reserved attribute: what the session may do with the file, and by which rules."""
    if request.name != _WHY:
        raise os_error(errno.ENODATA)
    with enforcement.resolve(context, request.ref) as target:
        return os.fsencode(enforcement.explain(context, target))


def set_xattr(context: Context, request: m.SetXattr, payload: Payload, nowait: bool) -> Result:
    _check_xattr(request.name, change=True)
    if request.flags not in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
        raise os_error(errno.EINVAL)
    with enforcement.resolve(context, request.ref, WRITE) as target:
        os.setxattr(proc_path(target.fd), request.name, request.value, request.flags)
        return m.Done(request.seq), b""


def list_xattr(context: Context, request: m.ListXattr, payload: Payload, nowait: bool) -> Result:
    with enforcement.resolve(context, request.ref, READ) as target:
        names = [os.fsencode(name) for name in os.listxattr(proc_path(target.fd))]
        return m.NamesReply(request.seq, [name for name in names if not name.startswith(_RESERVED)]), b""


def remove_xattr(context: Context, request: m.RemoveXattr, payload: Payload, nowait: bool) -> Result:
    _check_xattr(request.name, change=True)
    with enforcement.resolve(context, request.ref, WRITE) as target:
        os.removexattr(proc_path(target.fd), request.name)
        return m.Done(request.seq), b""

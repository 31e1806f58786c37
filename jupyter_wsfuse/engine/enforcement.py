"""Holding a session to its policy: between the names of a request and the call that does something.

What is decided about is the file itself: it is held by a descriptor first, and the rules are asked about the
place that the kernel knows it by (:mod:`.places`), not about the path that was sent. An entry that is made,
removed or renamed is its directory's place and its name. A handle was decided about when it was opened, and is
again when the session's policy has changed since.

A file that the policy hides is ``ENOENT``, everything else that is not allowed :class:`DeniedError`, before
anything has happened. Where the policy restricts nothing, none of this looks at anything.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from jupyter_wsfuse.engine.context import Context
from jupyter_wsfuse.engine.handles import Handle
from jupyter_wsfuse.engine.permissions import DELETE, EXECUTE, LIST, READ, SEE, WRITE, Policy, join
from jupyter_wsfuse.engine.sandbox import Target
from jupyter_wsfuse.errors import DeniedError, os_error
from jupyter_wsfuse.protocol.messages import Attr, Ref

#: Opened by execve(2); <linux/fs.h>. The kernels of all architectures pass it on under this number.
FMODE_EXEC: Final = 0x20
#: Where a file without a name is, in the directory that it was made in.
_UNNAMED: Final = b"#unnamed"


def rights_to_open(flags: int) -> int:
    """What has to be allowed for open(2) with these flags. Who executes a file reads it."""
    access = flags & os.O_ACCMODE
    rights = 0
    if access != os.O_WRONLY:
        rights |= READ
    if access != os.O_RDONLY or flags & os.O_TRUNC:
        rights |= WRITE
    if flags & FMODE_EXEC:
        rights |= READ | EXECUTE
    return rights


# --- files that exist


def resolve(context: Context, ref: Ref, rights: int = 0, nowait: bool = False) -> Target:
    """What *ref* means, if the session has *rights* on it; 0: if it may know of it."""
    policy = context.policy
    if policy.unrestricted:
        return context.sandbox.resolve(ref, context.handles, nowait)
    try:
        target = context.sandbox.resolve(ref, context.handles, nowait)
    except OSError as error:
        raise _unseen(policy, ref.path.strip(b"/"), error) from None
    try:
        if target.handle is not None:
            require(context, target.handle, rights)
            target.judged, target.place, target.rights = policy, target.handle.place, target.handle.rights
        else:
            _judge(context, policy, target)
            demand(target, rights)
    except BaseException as error:
        target.__exit__()
        if isinstance(error, FileNotFoundError) and ref.identity is not None:
            raise os_error(errno.ESTALE) from None
        raise
    return target


def _judge(context: Context, policy: Policy, target: Target) -> None:
    target.place = context.sandbox.place(target.fd)
    target.rights = policy.view(target.place, stat.S_ISDIR(target.attr.mode)).allowed
    target.judged = policy


def demand(target: Target, rights: int) -> None:
    """Raise unless there are *rights* on a *target* of :func:`resolve`. A right to read is to list, of a
    directory."""
    policy = target.judged
    if policy is None:
        return
    assert isinstance(policy, Policy)
    assert target.place is not None
    directory = stat.S_ISDIR(target.attr.mode)
    if (rights | SEE) & ~target.rights:
        _refuse(policy, target.place, directory, rights)


def _refuse(policy: Policy, place: bytes, directory: bool, rights: int) -> None:
    if policy.hidden(place, directory):
        raise os_error(errno.ENOENT)
    policy.check(place, directory, rights)


def _unseen(policy: Policy, place: bytes, error: OSError) -> OSError:
    """What to say instead of *error*, which would tell what stands at *place* or on the way to it."""
    view = policy.view(place, False)
    if view.hidden:
        return os_error(
            errno.ENOENT if error.errno in (errno.ENOTDIR, errno.ELOOP) else error.errno or errno.EIO
        )
    if view.barrier >= 0:
        return DeniedError(policy.rules.name(view.barrier))
    return error


def found(context: Context, parent: Target, name: bytes, fd: int, attr: Attr) -> None:
    """Raise unless the session may know of *fd*, which looking up *name* in *parent* has led to."""
    policy = context.policy
    if policy.unrestricted:
        return
    place = context.sandbox.place(fd)
    if context.sandbox.links == "follow":
        link = join(context.sandbox.place(parent.fd), name)
        if link != place:
            _see(policy, link, False)
    _see(policy, place, stat.S_ISDIR(attr.mode))


def _see(policy: Policy, place: bytes, directory: bool) -> None:
    if not policy.view(place, directory).allowed & SEE:
        _refuse(policy, place, directory, 0)


def not_found(context: Context, parent: Target, name: bytes, error: OSError) -> OSError:
    """What to raise instead of *error*, which looking for *name* in *parent* ended with."""
    policy = context.policy
    if policy.unrestricted:
        return error
    return _unseen(policy, join(context.sandbox.place(parent.fd), name), error)


# --- handles


def require(context: Context, handle: Handle, rights: int) -> None:
    """Raise unless the handle, as it was opened, gives *rights*."""
    policy = context.policy
    if policy.unrestricted:
        return
    if handle.judged is not policy:
        handle.place = place_of(context, handle)
        handle.rights = policy.view(handle.place, handle.directory).allowed
        handle.judged = policy
    if (rights | SEE) & ~handle.rights:
        assert handle.place is not None
        if not handle.rights & SEE:
            _refuse(policy, handle.place, handle.directory, rights)
        policy.check(handle.place, handle.directory, rights)  # who has made a file knows of it


def place_of(context: Context, handle: Handle) -> bytes:
    """Where the file of a handle is, or was while it had a name."""
    try:
        return context.sandbox.place(handle.fd)
    except FileNotFoundError:
        return handle.path.strip(b"/") if handle.place is None else handle.place


def explain(context: Context, target: Target) -> str:
    """Which rights there are on *target*, and which rules say so."""
    handle = target.handle
    place = context.sandbox.place(target.fd) if handle is None else place_of(context, handle)
    return context.policy.explain(place, stat.S_ISDIR(target.attr.mode))


# --- entries of directories


def parent(context: Context, ref: Ref) -> Target:
    """The directory in which an entry is to be made, removed or renamed; its ``place`` is known if the policy
    restricts anything, and is where it is now."""
    target = resolve(context, ref)
    if target.judged is not None and target.handle is not None:
        try:
            target.place = context.sandbox.place(target.fd)
            _see(context.policy, target.place, True)
        except BaseException:
            target.__exit__()
            raise
    return target


def entry(context: Context, parent: Target, name: bytes, rights: int, directory: bool) -> None:
    """Raise unless there are *rights* on an existing entry of *parent*."""
    if parent.place is not None:
        place = join(parent.place, name)
        if (rights | SEE) & ~context.policy.view(place, directory).allowed:
            _refuse(context.policy, place, directory, rights)


def making(context: Context, parent: Target, name: bytes, directory: bool = False) -> None:
    """Raise unless the entry *name* may be made in *parent*. Says nothing about whether it exists."""
    if parent.place is not None:
        context.policy.check(join(parent.place, name), directory, WRITE)


def replacing(context: Context, parent: Target, name: bytes) -> DeniedError | None:
    """Why an entry *name*, of whatever kind, may not be replaced by another; None if it may."""
    if parent.place is not None:
        place = join(parent.place, name)
        try:
            context.policy.check(place, False, DELETE)
            context.policy.check(place, True, DELETE)
        except DeniedError as error:
            return error
    return None


def moving(context: Context, old: Target, name: bytes, new: Target, new_name: bytes, directory: bool) -> None:
    """Raise unless *name* in *old* may become *new_name* in *new*, and gives no right there that it did not
    give."""
    if old.place is None or new.place is None:
        return
    target = join(new.place, new_name)
    context.policy.check(target, directory, WRITE)
    _no_gain(context.policy, join(old.place, name), target, directory)


def _no_gain(policy: Policy, old: bytes, new: bytes, directory: bool) -> None:
    rule = policy.gained(old, new, directory)
    if rule:
        raise DeniedError(rule)


def linking(context: Context, target: Target, parent: Target, name: bytes) -> None:
    """Raise unless *target* may be called *name* in *parent* as well, which must give no right it did not
    have."""
    if parent.place is None:
        return
    making(context, parent, name)
    handle = target.handle
    place = context.sandbox.place(target.fd) if handle is None else place_of(context, handle)
    _no_gain(context.policy, place, join(parent.place, name), False)


class Newcomer:
    """A file about to be made in *parent*, or opened if it exists: whether the first is allowed, and as what
    it is opened. *name* None: one without a name. Raises if it can be neither."""

    def __init__(self, context: Context, parent: Target, name: bytes | None, flags: int) -> None:
        self.judged: object = None
        self.place: bytes | None = None
        self.rights = 0
        self.allowed = True
        self._wanted = rights_to_open(flags) | WRITE
        if parent.place is None:
            return
        self.judged = policy = context.policy
        self.place = join(parent.place, _UNNAMED if name is None else name)
        view = policy.view(self.place, False)
        self.rights = view.allowed | SEE  # who makes a file knows of it
        if self._wanted & ~view.allowed:
            self.allowed = False
            if name is None or flags & os.O_EXCL:
                self.check(context)

    def check(self, context: Context) -> None:
        """Raise unless it may be made."""
        if self.place is not None:
            context.policy.check(self.place, False, self._wanted)

    def exists(self, context: Context, target: Target, flags: int) -> None:
        """Raise unless what stands there may be opened instead."""
        if self.judged is not None:
            policy = context.policy
            _judge(context, policy, target)
            assert target.place is not None
            policy.check(target.place, stat.S_ISDIR(target.attr.mode), rights_to_open(flags))
            target.rights |= SEE


# --- listings


def lists(context: Context, handle: Handle) -> bytes | None:
    """The place of an open directory of whose entries some may be hidden; None if none are. Raises if it may
    not be listed at all."""
    policy = context.policy
    if policy.unrestricted:
        return None
    require(context, handle, LIST)
    return place_of(context, handle) if policy.hides else None


def listed(context: Context, place: bytes, name: bytes, directory: bool) -> bool:
    """Whether a listing of *place* shows an entry."""
    return name in (b".", b"..") or not context.policy.hidden(join(place, name), directory)


def may_list(context: Context, directory: Target) -> bool:
    """Whether the session may know of the entries of *directory*, all of them."""
    policy = context.policy
    if policy.unrestricted:
        return True
    view = policy.view(context.sandbox.place(directory.fd), True)
    return bool(view.allowed & LIST) and not policy.hides


def attr_of_link(context: Context, directory: int, name: bytes) -> Attr | None:
    """What a listing shows of a symbolic link that is followed on the server; None if that is hidden."""
    sandbox = context.sandbox
    try:
        fd = sandbox.lookup(directory, name)
        try:
            attr = sandbox.stat(fd)
            return None if context.policy.hidden(sandbox.place(fd), stat.S_ISDIR(attr.mode)) else attr
        finally:
            os.close(fd)
    except OSError:
        return None

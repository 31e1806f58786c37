"""What became of a request that an engine had begun when it died.

Before a request that must not be executed twice, :func:`prepare` records what there was. The next engine,
given the request again, compares that with what there is now: :func:`settle` answers in place of the engine
that died if the work had been done, and gives None if it had not, or if doing it again changes nothing. This
is a reckoning from the outside: somebody else who makes the same change in the very moment of the crash is
taken for the dead engine.

- Made (create, mkdir, mknod, symlink, link): the name was free, and now stands for such a thing.
- Removed (unlink, rmdir): the name does not stand for the victim any more.
- Renamed: the new name stands for the source, the old one does not.
- Appended: the payload stands at the old end; half of it is completed.
- Extended attributes made or removed: as with names.

Everything else (attributes, truncation, writes at an offset, space, copies) ends in the same state when it is
done again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from jupyter_wsfuse.engine import enforcement, files
from jupyter_wsfuse.engine.attributes import kill_privileges
from jupyter_wsfuse.engine.context import Context, Payload, entry_path
from jupyter_wsfuse.engine.entries import entry_attr
from jupyter_wsfuse.engine.permissions import DELETE, WRITE
from jupyter_wsfuse.engine.sandbox import check_name, proc_path, read_link
from jupyter_wsfuse.protocol import messages as m

Intent: TypeAlias = dict[str, Any]

_Creation: TypeAlias = m.Create | m.MkDir | m.MkNod | m.SymLink
_Removal: TypeAlias = m.Unlink | m.RmDir


def prepare(context: Context, request: m.Request, payload: Payload = b"") -> Intent | None:
    """What has to be known to :func:`settle` the request later, in values for msgpack; None if nothing.

    Never fails: where this cannot look, the request will not get far either. May wait for the disk.
    """
    steps = _STEPS.get(type(request))
    if steps is None:
        return None
    try:
        return steps[0](context, request, payload)
    except OSError:
        return None


def settle(context: Context, request: m.Request, intent: Intent, payload: Payload = b"") -> m.Reply | None:
    """The reply to a request that was done by an engine that is gone; None if it is to be executed now."""
    try:
        _authorise(context, request)
        return _STEPS[type(request)][1](context, request, intent, payload)
    except OSError:
        return None


def _authorise(context: Context, request: m.Request) -> None:
    """Raise unless the session may do what *request* says; executing it will then tell what is wrong."""
    if context.policy.unrestricted:
        return
    if isinstance(request, m.Write):
        with context.handles.use(request.handle) as handle:
            enforcement.require(context, handle, WRITE)
    elif isinstance(request, m.SetXattr | m.RemoveXattr):
        with enforcement.resolve(context, request.ref, WRITE):
            pass
    elif isinstance(request, m.Create | m.MkDir | m.MkNod | m.SymLink | m.Link):
        with enforcement.parent(context, request.parent) as parent:
            enforcement.making(context, parent, request.name, isinstance(request, m.MkDir))
    else:
        assert isinstance(request, m.Unlink | m.RmDir | m.Rename)
        with enforcement.parent(context, request.parent) as parent:
            enforcement.entry(context, parent, request.name, DELETE, isinstance(request, m.RmDir))
        if isinstance(request, m.Rename):
            with enforcement.parent(context, request.new_parent) as parent:
                enforcement.making(context, parent, request.new_name)


def revive(context: Context, request: m.Request, reply: m.OpenReply) -> bool:
    """Open again what a remembered reply of an engine that is gone calls ``reply.handle``. False: it cannot
    be.

    For Open, OpenDir, Create and Reopen; what TmpFile opened is gone with its engine.
    """
    if isinstance(request, m.Open | m.OpenDir | m.Reopen):
        path = request.ref.path
    elif isinstance(request, m.Create):
        path = entry_path(request.parent, request.name)
    else:
        return False
    flags = 0 if isinstance(request, m.OpenDir) else request.flags
    directory = stat.S_ISDIR(reply.attr.mode)
    again = m.Reopen(request.seq, m.Ref(path, reply.attr.identity), reply.handle, flags, directory)
    try:
        files.take_up(context, again, b"", False)
    except OSError:
        return False
    return True


# --- names


def _standing(context: Context, parent: m.Ref, name: bytes) -> m.Attr | None:
    """The attributes of what *name* stands for, None if it is free."""
    check_name(name)
    with context.sandbox.resolve(parent, context.handles) as directory:
        try:
            return entry_attr(context, directory.fd, name)
        except FileNotFoundError:
            return None


def _key(attr: m.Attr | None) -> list[int] | None:
    return None if attr is None else [attr.dev, attr.ino, attr.btime]


def _values(attr: m.Attr | None) -> list[int] | None:
    return None if attr is None else list(msgspec.structs.astuple(attr))


def _removed(values: list[int]) -> m.Attr:
    """The attributes of a file that lost a name since they were recorded."""
    attr = m.Attr(*values)
    attr.nlink = 0 if stat.S_ISDIR(attr.mode) else attr.nlink - 1
    return attr


def _before_creation(context: Context, request: _Creation, payload: Payload) -> Intent:
    return {"free": _standing(context, request.parent, request.name) is None}


def _after_creation(context: Context, request: _Creation, intent: Intent, payload: Payload) -> m.Reply | None:
    attr = _standing(context, request.parent, request.name) if intent["free"] else None
    if attr is None or stat.S_IFMT(attr.mode) != _kind(request):
        return None
    if isinstance(request, m.Create):
        return files.open_created(context, request)
    if isinstance(request, m.SymLink):
        with context.sandbox.resolve(request.parent, context.handles) as parent:
            fd = context.sandbox.open_entry(parent.fd, request.name)
        try:
            if read_link(fd) != request.target:
                return None
        finally:
            os.close(fd)
    return m.AttrReply(request.seq, attr)


def _kind(request: _Creation) -> int:
    if isinstance(request, m.MkDir):
        return stat.S_IFDIR
    if isinstance(request, m.SymLink):
        return stat.S_IFLNK
    return (stat.S_IFMT(request.mode) if isinstance(request, m.MkNod) else 0) or stat.S_IFREG


def _before_link(context: Context, request: m.Link, payload: Payload) -> Intent:
    with context.sandbox.resolve(request.ref, context.handles) as target:
        source = _key(target.attr)
    return {"free": _standing(context, request.parent, request.name) is None, "source": source}


def _after_link(context: Context, request: m.Link, intent: Intent, payload: Payload) -> m.Reply | None:
    attr = _standing(context, request.parent, request.name) if intent["free"] else None
    if attr is None or _key(attr) != intent["source"]:
        return None
    return m.AttrReply(request.seq, attr)


def _before_removal(context: Context, request: _Removal, payload: Payload) -> Intent | None:
    attr = _standing(context, request.parent, request.name)
    return None if attr is None else {"victim": _values(attr)}


def _after_removal(context: Context, request: _Removal, intent: Intent, payload: Payload) -> m.Reply | None:
    victim = _removed(intent["victim"])
    if _key(_standing(context, request.parent, request.name)) == _key(victim):
        return None
    return m.RemovedReply(request.seq, victim)


def _before_rename(context: Context, request: m.Rename, payload: Payload) -> Intent | None:
    source = _standing(context, request.parent, request.name)
    target = _standing(context, request.new_parent, request.new_name)
    if _key(source) == _key(target):  # nothing to rename, or two names of one file, which stay
        return None
    return {"source": _key(source), "target": _values(target)}


def _after_rename(context: Context, request: m.Rename, intent: Intent, payload: Payload) -> m.Reply | None:
    moved = _standing(context, request.new_parent, request.new_name)
    left = _standing(context, request.parent, request.name)
    if _key(moved) != intent["source"] or _key(left) == intent["source"]:
        return None
    if request.flags or intent["target"] is None:
        return m.RemovedReply(request.seq, moved=moved)
    return m.RemovedReply(request.seq, _removed(intent["target"]), moved=moved)


# --- data


def _before_write(context: Context, request: m.Write, payload: Payload) -> Intent | None:
    with context.handles.use(request.handle) as handle:
        return {"size": os.fstat(handle.fd).st_size} if handle.append else None


def _after_write(context: Context, request: m.Write, intent: Intent, payload: Payload) -> m.Reply | None:
    with context.handles.use(request.handle) as handle:
        found = files.read_back(context, handle.fd, len(payload), intent["size"])
        done = len(found)
        if not done or found != payload[:done]:
            return None
        if done < len(payload):
            done += os.pwrite(handle.fd, payload[done:], 0)  # at the end, as it was opened so
        if request.kill_priv:
            kill_privileges(handle.fd)
        return m.CountReply(request.seq, done)


# --- extended attributes


def _has_xattr(context: Context, ref: m.Ref, name: bytes) -> bytes | None:
    with context.sandbox.resolve(ref, context.handles) as target:
        try:
            return os.getxattr(proc_path(target.fd), name)
        except OSError:
            return None


def _before_xattr(context: Context, request: m.SetXattr | m.RemoveXattr, payload: Payload) -> Intent | None:
    if b"\0" in request.name:
        return None
    return {"present": _has_xattr(context, request.ref, request.name) is not None}


def _after_xattr(
    context: Context, request: m.SetXattr | m.RemoveXattr, intent: Intent, payload: Payload
) -> m.Reply | None:
    value = _has_xattr(context, request.ref, request.name)
    if isinstance(request, m.SetXattr):
        done = not intent["present"] and value == request.value
    else:
        done = intent["present"] and value is None
    return m.Done(request.seq) if done else None


_STEPS: Final[dict[type[m.Request], tuple[Callable[..., Intent | None], Callable[..., m.Reply | None]]]] = {
    m.Create: (_before_creation, _after_creation),
    m.MkDir: (_before_creation, _after_creation),
    m.MkNod: (_before_creation, _after_creation),
    m.SymLink: (_before_creation, _after_creation),
    m.Link: (_before_link, _after_link),
    m.Unlink: (_before_removal, _after_removal),
    m.RmDir: (_before_removal, _after_removal),
    m.Rename: (_before_rename, _after_rename),
    m.Write: (_before_write, _after_write),
    m.SetXattr: (_before_xattr, _after_xattr),
    m.RemoveXattr: (_before_xattr, _after_xattr),
}

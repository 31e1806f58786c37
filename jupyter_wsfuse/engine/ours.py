"""What requests do to the files: announced before they are executed, noted after it (:mod:`.notes`).

In between, the kernel tells of it already. Whoever looks at such an event finds its file or name *at work* and comes
back to it later (:class:`.watcher.Watcher`).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from ..protocol import messages as m
from ..protocol.messages import Attr, Identity
from . import inotify
from .handles import HandleTable
from .leases import Leases
from .notes import MOVING, Key, Notes

if TYPE_CHECKING:
    from .session import Session


class Ours:
    """For any thread."""

    def __init__(self, leases: Leases, notes: Notes) -> None:
        self.leases = leases
        self.notes = notes

    def begin(self, session: Session, request: Any) -> Doing | None:
        """*request* of *session* is about to be executed. None if nobody would be told of it."""
        return Doing(self, session, request) if self.leases else None


class Doing:
    """A request that is being executed. Call :meth:`done` if it succeeded, and :meth:`end` in any case, before it is
    answered."""

    def __init__(self, ours: Ours, session: Session, request: Any) -> None:
        assert session.context is not None
        self._ours = ours
        self._workspace = session.workspace
        self._context = session.context
        self._request = request
        self._keys = list(_touched(request, self._context.handles))
        ours.notes.begin(self._keys)
        self._began = perf_counter_ns()

    def end(self) -> None:
        self._ours.notes.end(self._keys)

    def done(self, reply: Any) -> None:
        """It succeeded with *reply*."""
        request = self._request
        match request:
            case m.Write() | m.Fallocate():
                self._handle(request.handle)
                return
            case m.CopyRange():
                self._handle(request.target)
                return
            case m.SetXattr() | m.RemoveXattr():
                self._ref(request.ref)
                return
        for attr in (getattr(reply, "attr", None), getattr(reply, "moved", None)):
            if attr is not None:
                self._ours.notes.left(attr, self._workspace)
        match request:
            case m.Unlink() | m.RmDir():
                self._entry(request.parent, request.name, inotify.DELETE, None)
            case m.Create() | m.Link() | m.MkDir() | m.MkNod() | m.SymLink():
                self._entry(request.parent, request.name, inotify.CREATE, reply.attr)
            case m.Rename():
                moved = reply.moved
                # Of two names that were exchanged, one is not known; with two names of one file nothing may have
                # been done.
                if (
                    moved is not None
                    and request.flags <= 1
                    and (moved.nlink == 1 or stat.S_ISDIR(moved.mode))
                ):
                    self._entry(request.parent, request.name, inotify.MOVED_FROM, None)
                    self._entry(request.new_parent, request.new_name, inotify.MOVED_TO, moved)

    def _handle(self, id: int) -> None:
        context, notes = self._context, self._ours.notes
        try:
            with context.handles.use(id) as handle:
                notes.left(context.sandbox.stat(handle.fd), self._workspace)
        except OSError:  # closed by now: then the event is news
            for key in self._keys:
                notes.unsure(key)

    def _ref(self, ref: m.Ref) -> None:
        if ref.handle:
            self._handle(ref.handle)
        elif ref.identity is not None:  # or it might be another file by now
            try:
                with self._context.sandbox.resolve(ref, self._context.handles) as target:
                    self._ours.notes.left(target.attr, self._workspace)
            except OSError:
                self._ours.notes.unsure(ref.identity)

    def _entry(self, parent: m.Ref, name: bytes, kind: int, attr: Attr | None) -> None:
        identity = _identity(parent, self._context.handles)
        watched = None if identity is None else self._ours.leases.on(identity)
        if watched is not None and watched.since < self._began:
            self._ours.notes.expect(watched.wd, name, kind, attr, self._workspace, self._began)


def _identity(ref: m.Ref, handles: HandleTable) -> Identity | None:
    """Which file *ref* means, as far as that is known without looking."""
    if not ref.handle:
        return ref.identity
    handle = handles.find(ref.handle)
    return None if handle is None else handle.identity


def _touched(request: Any, handles: HandleTable) -> Iterator[Key]:
    """Files and names that *request* may change, as far as that is known without looking."""
    refs: list[m.Ref] = []
    entries: list[tuple[m.Ref, bytes]] = []
    match request:
        case m.Write() | m.Fallocate():
            refs = [m.Ref(b"", None, request.handle)]
        case m.CopyRange():
            refs = [m.Ref(b"", None, request.target)]
        case m.SetAttr() | m.SetXattr() | m.RemoveXattr() | m.Open():
            refs = [request.ref]
        case m.Link():
            refs, entries = [request.ref], [(request.parent, request.name)]
        case m.Rename():
            yield MOVING
            entries = [(request.parent, request.name), (request.new_parent, request.new_name)]
        case m.TmpFile():  # nobody can know it
            return
        case _:
            entries = [(request.parent, request.name)]
    for ref in refs:
        identity = _identity(ref, handles)
        if identity is not None:
            yield identity
    for parent, name in entries:
        identity = _identity(parent, handles)
        if identity is not None:
            yield identity, name

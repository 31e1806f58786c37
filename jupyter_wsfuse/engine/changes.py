"""What other sessions have to be told about a mutation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from ..protocol import messages as m
from ..protocol.messages import Change, Changed, Identity, InvalidateAll, Ref, Released

#: Changes in one message, and changes that wait for one session before it is told to forget everything
#: instead.
PER_MESSAGE: Final = 1024
PENDING: Final = 8192

Place = tuple[Identity, bytes | None]
Find = Callable[[int], Identity | None]


class Unknown(Exception):
    """It cannot be said what changed: the request did not say, and its handle is closed."""


def _ref(ref: Ref, find: Find) -> Identity:
    identity = find(ref.handle) if ref.handle else ref.identity
    if identity is None:
        raise Unknown
    return identity


def _entry(parent: Ref, name: bytes, find: Find) -> Iterator[Place]:
    directory = _ref(parent, find)
    yield directory, name
    yield directory, None


def changes(request: Any, reply: Any, find: Find) -> Iterator[Place]:
    """Files, and entries of directories, that *request*, which succeeded with *reply*, has changed.

    *find* gives the identity behind a handle, or None. Raises :class:`Unknown` if it cannot be told.
    """
    match request:
        case m.Write() | m.Fallocate():
            yield _ref(Ref(b"", None, request.handle), find), None
        case m.CopyRange():
            yield _ref(Ref(b"", None, request.target), find), None
        case m.SetAttr() | m.Open():
            yield reply.attr.identity, None
        case m.SetXattr() | m.RemoveXattr():
            yield _ref(request.ref, find), None
        case m.Create() | m.Link():
            yield from _entry(request.parent, request.name, find)
            yield reply.attr.identity, None
        case m.MkDir() | m.MkNod() | m.SymLink():
            yield from _entry(request.parent, request.name, find)
        case m.Unlink() | m.RmDir():
            yield from _entry(request.parent, request.name, find)
            if reply.attr is not None:
                yield reply.attr.identity, None
        case m.Rename():
            yield from _entry(request.parent, request.name, find)
            yield from _entry(request.new_parent, request.new_name, find)
            for attr in (reply.attr, reply.moved):
                if attr is not None:
                    yield attr.identity, None
        case _:  # TmpFile: nobody else can see it
            return


class Pending:
    """What one session has not been told yet. Bounded: from :data:`PENDING` changes on it is "everything"."""

    __slots__ = ("_everything", "_places", "_released")

    def __init__(self) -> None:
        self._places: dict[Place, None] = {}
        self._everything = ""
        self._released: dict[Identity, None] = {}

    def __bool__(self) -> bool:
        return bool(self._places or self._everything or self._released)

    def add(self, places: list[Place]) -> None:
        """Remember more changes; one that waits already is not repeated."""
        if not self._everything:
            self._places.update(dict.fromkeys(places))
            if len(self._places) > PENDING:
                self.everything("too many changes at once")

    def released(self, identities: Iterable[Identity]) -> None:
        """Leases of the session have ended."""
        self._released.update(dict.fromkeys(identities))

    def everything(self, reason: str) -> None:
        """The session has to forget all it knows."""
        self._everything = reason
        self._places = {}

    def take(self) -> list[Changed | InvalidateAll | Released]:
        """The messages to send now."""
        messages: list[Changed | InvalidateAll | Released] = []
        if self._everything:
            messages.append(InvalidateAll(self._everything))
            self._everything = ""
        places, self._places = list(self._places), {}
        for start in range(0, len(places), PER_MESSAGE):
            part = places[start : start + PER_MESSAGE]
            messages.append(Changed([Change(identity, name) for identity, name in part]))
        released, self._released = list(self._released), {}
        for start in range(0, len(released), PER_MESSAGE):
            messages.append(Released(released[start : start + PER_MESSAGE]))
        return messages

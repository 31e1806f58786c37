"""What is known of a request by its type: in which order it runs, how, and what it counts as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ..protocol import messages as m
from ..protocol.messages import Request
from .context import Context, Payload
from .hooks import Result
from .operations import OPERATIONS


class Plan(NamedTuple):
    """What is known of a request by its type.

    ``handles``: the handles that it passes the gate of, each with whether alone. ``recorded``: a successor
    must know whether it ran. The others that are ``once`` only make or use what dies with the engine, and run
    again. ``limit``: the class of operations whose rate limit it is under; empty for what gives something back or
    restores it, which must never be held up. ``syncs``: its success promises that what was done is on disk.
    """

    handles: Callable[[Any], list[tuple[int, bool]]]
    function: Callable[[Context, Any, Payload, bool], Result] | None
    inline: bool
    mutating: bool
    recorded: bool
    limit: str
    syncs: bool


def _no_handle(request: Any) -> list[tuple[int, bool]]:
    return []


def _by_handle(alone: bool) -> Callable[[Any], list[tuple[int, bool]]]:
    return lambda request: [(request.handle, alone)]


def _by_ref(alone: bool) -> Callable[[Any], list[tuple[int, bool]]]:
    return lambda request: [(request.ref.handle, alone)] if request.ref.handle else []


_BY_REF: Final = _by_ref(False)


def _opening(request: Any) -> list[tuple[int, bool]]:
    """What is asked by the number that a client chose for a file comes after the opening of it."""
    if not request.handle:
        return _BY_REF(request)
    own = (request.handle, True)
    return [own, *(other for other in _BY_REF(request) if other[0] != request.handle)]


def _copy_range(request: m.CopyRange) -> list[tuple[int, bool]]:
    if request.source == request.target:
        return [(request.target, True)]
    return [(request.target, True), (request.source, False)]


def _class_of(kind: type[Request]) -> str:
    if kind in (m.Close, m.Reopen, m.Stats):
        return ""
    if kind in (m.Read, m.Fetch):
        return "read"
    if kind in (m.Write, m.Fallocate, m.CopyRange, m.Fsync, m.SyncFs):
        return "write"
    if kind in (m.Unlink, m.RmDir):
        return "delete"
    return "metadata"


def _plan(kind: type[Request]) -> Plan:
    operation = OPERATIONS.get(kind)
    alone = kind.mutating or kind in (m.Close, m.ReadDir, m.SetLock)
    if kind is m.CopyRange:
        handles: Callable[[Any], list[tuple[int, bool]]] = _copy_range
    elif kind in (m.Open, m.OpenDir):
        handles = _opening
    elif kind is not m.Reopen and "handle" in kind.__struct_fields__:
        handles = _by_handle(alone)
    elif kind is not m.Reopen and "ref" in kind.__struct_fields__:
        handles = _by_ref(alone)
    else:
        handles = _no_handle
    return Plan(
        handles=handles,
        function=None if operation is None else operation.function,
        inline=operation is not None and operation.inline and not kind.mutating,
        mutating=kind.mutating,
        recorded=kind.mutating,
        limit=_class_of(kind),
        syncs=kind in (m.Fsync, m.SyncFs),
    )


PLANS: Final = {kind: _plan(kind) for kind in m.REQUESTS}

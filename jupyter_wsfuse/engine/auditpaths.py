"""Which files a request names, in the workspace's own terms: for the audit, and for whoever explains a request.

Paths are relative to the workspace's root, which itself is ``.``; ``b""`` where a request names none. A handle stands
for the path at which it was opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ..protocol import messages as m
from ..protocol.messages import Ref, Request
from .context import Context
from .handles import HandleTable

Paths: TypeAlias = tuple[bytes, bytes]
_Look: TypeAlias = Callable[[Any, HandleTable], Paths]

#: Bytes of a path that are recorded: no file has a longer one.
LONGEST: Final = 8192
ROOT: Final = b"."


def _handle(id: int, handles: HandleTable) -> bytes:
    handle = handles.find(id)
    return b"" if handle is None else handle.path or ROOT


def _ref(ref: Ref, handles: HandleTable) -> bytes:
    return (_handle(ref.handle, handles) if ref.handle else b"") or ref.path[:LONGEST] or ROOT


def _entry(parent: Ref, name: bytes, handles: HandleTable) -> bytes:
    folder = _ref(parent, handles)
    return name[:LONGEST] if folder == ROOT else folder + b"/" + name[:LONGEST]


def _of_handle(request: Any, handles: HandleTable) -> Paths:
    return _handle(request.handle, handles), b""


def _of_ref(request: Any, handles: HandleTable) -> Paths:
    return _ref(request.ref, handles), b""


def _of_parent(request: Any, handles: HandleTable) -> Paths:
    return _ref(request.parent, handles), b""


def _of_entry(request: Any, handles: HandleTable) -> Paths:
    return _entry(request.parent, request.name, handles), b""


def _of_symlink(request: m.SymLink, handles: HandleTable) -> Paths:
    return _entry(request.parent, request.name, handles), request.target[:LONGEST]


def _of_link(request: m.Link, handles: HandleTable) -> Paths:
    return _ref(request.ref, handles), _entry(request.parent, request.name, handles)


def _of_rename(request: m.Rename, handles: HandleTable) -> Paths:
    old = _entry(request.parent, request.name, handles)
    return old, _entry(request.new_parent, request.new_name, handles)


def _of_copy(request: m.CopyRange, handles: HandleTable) -> Paths:
    return _handle(request.source, handles), _handle(request.target, handles)


def _of_refs(request: m.ListTree, handles: HandleTable) -> Paths:
    return (_ref(request.refs[0], handles) if request.refs else b""), b""


def _nothing(request: Any, handles: HandleTable) -> Paths:
    return b"", b""


def _look(kind: type[Request]) -> _Look:
    special: dict[type[Request], _Look] = {
        m.SymLink: _of_symlink,
        m.Link: _of_link,
        m.Rename: _of_rename,
        m.CopyRange: _of_copy,
        m.Reopen: _of_ref,
        m.Open: _of_ref,
        m.OpenDir: _of_ref,
        m.ListTree: _of_refs,
    }
    fields = kind.__struct_fields__
    if kind in special:
        return special[kind]
    if "handle" in fields:
        return _of_handle
    if "ref" in fields:
        return _of_ref
    if "parent" in fields:
        return _of_entry if "name" in fields else _of_parent
    return _nothing


_LOOK: Final = {kind: _look(kind) for kind in m.REQUESTS}


def describe(request: Request, context: Context) -> Paths:
    """The path that *request* names, and the second one of a rename or link (the new name), of a copy (its target)
    or of a symbolic link (where it leads). To be asked before a Close has removed the handle."""
    return _LOOK[type(request)](request, context.handles)

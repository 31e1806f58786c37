"""Every request says which files it is about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine.auditpaths import describe
from jupyter_wsfuse.engine.context import Context
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Identity, Ref

REF = Ref(b"a/b")
LOCK = m.Lock(1, 0, 1, "r", 1)
#: Per request, how it is made, and what it names. Handle 1 was opened at h/1, 2 at h/2.
CASES: dict[type[m.Request], tuple[dict[str, Any], tuple[bytes, bytes]]] = {
    m.Lookup: ({"parent": REF, "name": b"n"}, (b"a/b/n", b"")),
    m.GetAttr: ({"ref": REF}, (b"a/b", b"")),
    m.SetAttr: ({"ref": Ref(b"", None, 1)}, (b"h/1", b"")),
    m.Access: ({"ref": REF, "mask": 4}, (b"a/b", b"")),
    m.ReadLink: ({"ref": REF}, (b"a/b", b"")),
    m.OpenDir: ({"ref": Ref(b"")}, (b".", b"")),
    m.ReadDir: ({"handle": 1, "cookie": 0, "limit": 1}, (b"h/1", b"")),
    m.Open: ({"ref": REF, "flags": 0}, (b"a/b", b"")),
    m.Create: ({"parent": Ref(b""), "name": b"n", "mode": 0, "flags": 0}, (b"n", b"")),
    m.TmpFile: ({"parent": REF, "mode": 0, "flags": 0}, (b"a/b", b"")),
    m.Close: ({"handle": 1}, (b"h/1", b"")),
    m.Read: ({"handle": 1, "offset": 0, "size": 1}, (b"h/1", b"")),
    m.Write: ({"handle": 1, "offset": 0}, (b"h/1", b"")),
    m.Fsync: ({"handle": 2}, (b"h/2", b"")),
    m.Fallocate: ({"handle": 1, "mode": 0, "offset": 0, "length": 1}, (b"h/1", b"")),
    m.Seek: ({"handle": 1, "offset": 0, "whence": 3}, (b"h/1", b"")),
    m.CopyRange: (
        {"source": 1, "source_offset": 0, "target": 2, "target_offset": 0, "length": 1},
        (b"h/1", b"h/2"),
    ),
    m.MkDir: ({"parent": Ref(b"", None, 1), "name": b"n", "mode": 0}, (b"h/1/n", b"")),
    m.MkNod: ({"parent": REF, "name": b"n", "mode": 0}, (b"a/b/n", b"")),
    m.SymLink: ({"parent": REF, "name": b"n", "target": b"/etc/passwd"}, (b"a/b/n", b"/etc/passwd")),
    m.Link: ({"ref": REF, "parent": Ref(b""), "name": b"n"}, (b"a/b", b"n")),
    m.Unlink: ({"parent": REF, "name": b"n"}, (b"a/b/n", b"")),
    m.RmDir: ({"parent": REF, "name": b"n"}, (b"a/b/n", b"")),
    m.Rename: (
        {"parent": REF, "name": b"n", "new_parent": Ref(b"c"), "new_name": b"\xff"},
        (b"a/b/n", b"c/\xff"),
    ),
    m.StatFs: ({"ref": REF}, (b"a/b", b"")),
    m.SyncFs: ({}, (b"", b"")),
    m.GetXattr: ({"ref": REF, "name": b"user.x"}, (b"a/b", b"")),
    m.SetXattr: ({"ref": REF, "name": b"user.x", "value": b""}, (b"a/b", b"")),
    m.ListXattr: ({"ref": REF}, (b"a/b", b"")),
    m.RemoveXattr: ({"ref": REF, "name": b"user.x"}, (b"a/b", b"")),
    m.GetLock: ({"handle": 1, "lock": LOCK}, (b"h/1", b"")),
    m.SetLock: ({"handle": 1, "lock": LOCK}, (b"h/1", b"")),
    m.Reopen: ({"ref": REF, "handle": 1, "flags": 0}, (b"a/b", b"")),
    m.Stats: ({}, (b"", b"")),
    m.Fetch: ({"ref": REF, "offset": 0, "size": 1}, (b"a/b", b"")),
    m.ListTree: ({"refs": [REF, Ref(b"c")], "limit": 1}, (b"a/b", b"")),
}


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    sandbox = Sandbox(os.fsencode(tmp_path))
    context = Context(sandbox)
    for id in (1, 2):
        fd = os.open(tmp_path, os.O_RDONLY)
        context.handles.add(fd, flags=0, identity=Identity(0, 0, 0), path=b"h/%d" % id, id=id)
    yield context
    context.handles.close_all()
    sandbox.close()


@pytest.mark.parametrize("kind", m.REQUESTS, ids=lambda kind: kind.__name__)
def test_every_request_names_its_files(kind: type[m.Request], context: Context) -> None:
    fields, expected = CASES[kind]
    assert describe(kind(1, **fields), context) == expected


def test_handles_that_are_not_there(context: Context) -> None:
    assert describe(m.Read(1, 77, 0, 1), context) == (b"", b"")
    assert describe(m.GetAttr(1, Ref(b"a", None, 77)), context) == (b"a", b"")
    assert describe(m.ListTree(1, [], 1), context) == (b"", b"")


def test_names_that_no_file_can_have_are_cut(context: Context) -> None:
    path, _ = describe(m.Lookup(1, Ref(b"x" * 100_000), b"y" * 100_000), context)
    assert len(path) <= 2 * 8192 + 1

"""A workspace on a real directory, and the engine's operations on it by plain methods."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine.handles import HandleTable
from jupyter_wsfuse.engine.operations import Context, Payload, execute
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.protocol import messages as m

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, owners or devices")
ROOT = m.Ref(b"")


def errno_of_call(function: Callable[[], Any]) -> str:
    """The name of the errno that *function* fails with, "" if it succeeds."""
    try:
        function()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def fails(number: int) -> Any:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


class Workspace:
    def __init__(self, path: Path, *, raw_owner: bool = False, **options: Any) -> None:
        self.path = path
        self.context = Context(Sandbox(bytes(path), **options), HandleTable(), raw_owner)

    def close(self) -> None:
        self.context.handles.close_all()
        self.context.sandbox.close()

    def run(self, request: m.Request, payload: Payload = b"", nowait: bool = False) -> Any:
        reply, _ = execute(self.context, request, payload, nowait)
        assert reply.seq == request.seq
        assert type(reply) is m.REQUESTS[type(request)]
        return reply

    def attr(self, path: bytes, nowait: bool = False) -> m.Attr:
        attr: m.Attr = self.run(m.GetAttr(1, m.Ref(path)), nowait=nowait).attr
        return attr

    def ref(self, path: bytes) -> m.Ref:
        """With identity, as clients send it."""
        return m.Ref(path, self.attr(path).identity)

    def open(self, path: bytes, flags: int = os.O_RDONLY, **options: Any) -> int:
        handle: int = self.run(m.Open(1, m.Ref(path), flags, **options)).handle
        return handle

    def open_dir(self, path: bytes) -> int:
        handle: int = self.run(m.OpenDir(1, m.Ref(path))).handle
        return handle

    def create(self, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644, **options: Any) -> int:
        handle: int = self.run(m.Create(1, ROOT, name, mode, flags, **options)).handle
        return handle

    def read(self, handle: int, offset: int, size: int, nowait: bool = False) -> bytes:
        reply, data = execute(self.context, m.Read(1, handle, offset, size), b"", nowait)
        assert type(reply) is m.DataReply
        return bytes(data)

    def write(self, handle: int, offset: int, data: Payload, **options: Any) -> int:
        count: int = self.run(m.Write(1, handle, offset, **options), data).count
        return count

    def close_handle(self, handle: int) -> None:
        self.run(m.Close(1, handle))

    def listing(self, handle: int, limit: int = 1000, plus: bool = False) -> list[m.DirEntry]:
        entries: list[m.DirEntry] = []
        cookie = 0
        while True:
            reply = self.run(m.ReadDir(1, handle, cookie, limit, plus))
            assert len(reply.entries) <= limit
            entries += reply.entries
            if reply.end:
                return entries
            cookie = reply.entries[-1].cookie

"""A driver on a pair of sockets instead of the kernel, for the tests that speak to it message by message."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from struct import pack, unpack_from
from typing import Any

import pytest

from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.fuse.native import NativeDriver
from tests.fuse.kernel import Device, message
from tests.fuse.memfs import MemFs

LOOKUP, FORGET, GETATTR, READLINK, MKDIR, OPEN, READ, WRITE, STATFS = 1, 2, 3, 5, 9, 14, 15, 16, 17
RELEASE, GETXATTR, OPENDIR, READDIR, CREATE, INTERRUPT, DESTROY, IOCTL, POLL = (
    18,
    22,
    27,
    28,
    35,
    36,
    38,
    39,
    40,
)
BATCH_FORGET, READDIRPLUS, COPY, SYNCFS, COPY_64 = 42, 44, 47, 50, 53
GETATTR_BODY = pack("=IIQ", 0, 0, 0)


class Bench:
    """A driver that runs on a fake device, and what to do with it."""

    def __init__(self, **arguments: Any) -> None:
        self.device = Device()
        self.fs = MemFs()
        self.states: list[dict[str, int]] = []
        self.flushed = 0
        self.arguments = {"before_reply": self._flush, "on_init": self.states.append, **arguments}
        self.driver = self.make()
        self.task: asyncio.Task[None] | None = None

    def make(self, **arguments: Any) -> NativeDriver:
        return NativeDriver(self.device.fd, self.fs, **{**self.arguments, **arguments})

    def _flush(self) -> None:
        self.flushed += 1

    async def start(self) -> None:
        self.task = asyncio.create_task(self.driver.run())
        await asyncio.sleep(0)

    async def reply(self) -> tuple[int, int, bytes]:
        """The next reply, waited for."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self.device.kernel, ready.set)
        try:
            while (found := self.device.received()) is None:
                ready.clear()
                await asyncio.wait_for(ready.wait(), 30)
        finally:
            loop.remove_reader(self.device.kernel)
        return found

    async def ask(
        self, opcode: int, body: bytes = b"", *, unique: int = 2, node: int = 1
    ) -> tuple[int, bytes]:
        """(errno, body) of the reply to this one request."""
        self.device.send(message(opcode, body, unique=unique, node=node))
        answered, error, reply = await self.reply()
        assert answered == unique
        return -error, reply

    async def create(self, name: bytes = b"file", *, unique: int = 2) -> tuple[int, int]:
        """(node, handle) of a new open file."""
        error, reply = await self.ask(
            CREATE, pack("=IIII", os.O_RDWR, 0o644, 0, 0) + name + b"\0", unique=unique
        )
        assert error == 0
        return unpack_from("=Q", reply)[0], unpack_from("=Q", reply, 128)[0]

    async def read_gated(self, unique: int = 100) -> None:
        """A READ that the file system is holding back."""
        node, handle = await self.create(unique=unique - 2)
        self.fs.nodes[node].data[:] = b"data"
        self.fs.gates["read"] = asyncio.Event()
        self.device.send(
            message(READ, pack("=QQIIQII", handle, 0, 4096, 0, 0, 0, 0), unique=unique, node=node)
        )
        await self.fs.reached("read").wait()

    def fail_writes(self, monkeypatch: pytest.MonkeyPatch, *errnos: int) -> None:
        """The next writes to the device fail like this."""
        left = list(errnos)
        real = {"write": os.write, "writev": os.writev}

        def fake(name: str) -> Callable[..., int]:
            def call(fd: int, data: Any) -> int:
                if fd == self.device.fd and left and (number := left.pop(0)):
                    raise os_error(number)
                return real[name](fd, data)

            return call

        for name in real:
            monkeypatch.setattr(f"jupyter_wsfuse.fuse.native.os.{name}", fake(name))

    async def close(self) -> None:
        if self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        self.device.close()


MakeBench = Callable[..., Awaitable[Bench]]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]

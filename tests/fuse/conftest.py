"""A real mount of the file system in memory, served by this test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jupyter_wsfuse.errors import MountError
from jupyter_wsfuse.fuse import device
from jupyter_wsfuse.fuse.device import MountOptions
from jupyter_wsfuse.fuse.native import NativeDriver
from tests.fuse.bench import Bench, MakeBench
from tests.fuse.memfs import MemFs
from tests.fuse.nobody import Nobody

T = TypeVar("T")


class Mount:
    """``path`` shows ``fs``. Nothing may touch it on the loop's own thread: :meth:`do` does it in another one."""

    def __init__(self, path: Path, fs: MemFs, fd: int, **arguments: Any) -> None:
        self.path = path
        self.fs = fs
        self.fd = fd
        self.driver = NativeDriver(fd, fs, **arguments)
        self.task = asyncio.create_task(self.driver.run())

    async def do(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call *function* where it may wait for the mount; fails if that takes for ever."""
        return await asyncio.wait_for(asyncio.to_thread(function, *arguments, **named), 30)

    async def succeed(self, **arguments: Any) -> None:
        """Another driver takes over, as after the death of this one."""
        self.driver.abandon()
        await self.task
        self.driver = NativeDriver(self.fd, self.fs, **arguments)
        self.task = asyncio.create_task(self.driver.run())

    async def close(self) -> None:
        """Unmount, whatever state it is in."""
        with contextlib.suppress(OSError, MountError):
            await asyncio.to_thread(device.abort, str(self.path))
        while device.find_mount(str(self.path)) is not None:
            await asyncio.to_thread(device.unmount, str(self.path), lazy=True)
        await asyncio.wait_for(asyncio.wait([self.task]), 30)
        os.close(self.fd)


@pytest.fixture
async def make_mount() -> AsyncIterator[Callable[..., Awaitable[Mount]]]:
    """A function that mounts; options of the mount, of MemFs and of the driver are told apart by name."""
    mounts: list[Mount] = []
    top = Path(tempfile.mkdtemp(prefix="wsfuse-test-"))
    top.chmod(0o755)

    async def make(*, fs: MemFs | None = None, driver: dict[str, Any] | None = None, **options: Any) -> Mount:
        path = top / f"mount{len(mounts)}"
        path.mkdir()
        fd = await asyncio.to_thread(device.mount, MountOptions(str(path), "memfs", **options))
        mounts.append(Mount(path, fs or MemFs(), fd, **driver or {}))
        return mounts[-1]

    yield make
    for one in mounts:
        await one.close()
    shutil.rmtree(top)


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    with Nobody() as user:
        yield user


@pytest.fixture
async def make_bench() -> AsyncIterator[MakeBench]:
    made: list[Bench] = []

    async def make(**arguments: Any) -> Bench:
        made.append(Bench(**arguments))
        await made[-1].start()
        return made[-1]

    yield make
    for one in made:
        await one.close()


@pytest.fixture
async def bench(make_bench: MakeBench) -> Bench:
    return await make_bench()


@pytest.fixture
async def mount(make_mount: Callable[..., Awaitable[Mount]]) -> Mount:
    return await make_mount()

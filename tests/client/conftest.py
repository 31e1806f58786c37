"""A file system over a directory, for the tests of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.helpers.local_engine import Mount

MakeMount = Callable[..., Awaitable[Mount]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


@pytest.fixture
async def mounted(root: Path) -> AsyncIterator[MakeMount]:
    """A function that mounts the test's directory with the options given."""
    mounts: list[Mount] = []

    async def make(**options: object) -> Mount:
        mount = Mount(root, **options)
        mounts.append(mount)
        return await mount.start()

    yield make
    for mount in mounts:
        await mount.vfs.stop()
        mount.engine.close()


@pytest.fixture
async def mount(mounted: MakeMount) -> Mount:
    return await mounted()

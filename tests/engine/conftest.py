"""Engine processes, and clients that join them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.helpers.engineproc import EngineProcess
from tests.helpers.rawclient import RawClient, disconnect_all

Start: TypeAlias = Callable[..., EngineProcess]
Join: TypeAlias = Callable[..., Awaitable[RawClient]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts an engine on ``tmp_path / "root"``; all are stopped in the end."""
    (tmp_path / "root").mkdir(exist_ok=True)
    engines: list[EngineProcess] = []

    def make(**options: Any) -> EngineProcess:
        engine = EngineProcess(tmp_path / "root", tmp_path / "state", **options)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        if engine.process.poll() is None:
            assert engine.stop() == 0
            assert "Traceback" not in engine.log, engine.log
            assert " ERROR " not in engine.log, engine.log


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """A function that connects a new client to an engine."""
    clients: list[RawClient] = []

    async def make(engine: EngineProcess, ticket: str = "", **hello: Any) -> RawClient:
        client = RawClient(client=f"client{len(clients)}")
        clients.append(client)
        await client.open(engine.url, ticket or engine.ticket(), **hello)
        return client

    yield make
    await disconnect_all()

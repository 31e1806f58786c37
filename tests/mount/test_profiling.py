"""What a daemon answers about its figures, with a server that tells its part, tells nonsense, or does not answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.errors import MountError, os_error
from jupyter_wsfuse.mount import profiling as module
from jupyter_wsfuse.mount.profiling import PROFILES, Profiling
from jupyter_wsfuse.protocol import messages as m
from tests.helpers.local_engine import Mount


class Server:
    """Answers Stats with what a test says, and everything else as the engine does."""

    def __init__(self, mount: Mount) -> None:
        self.totals: dict[str, list[int]] = {}
        self.answer: Any = None  # instead of the totals: a reply, or an error to raise
        self.asked = 0
        self.connected = True
        self._call = mount.engine.call
        mount.engine.call = self.call  # type: ignore[method-assign]
        self.profiling = Profiling(mount.vfs, 1000.0, lambda: self.connected)

    async def call(self, request: m.Request, *arguments: Any, **options: Any) -> Any:
        if type(request) is not m.Stats:
            return await self._call(request, *arguments, **options)
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer == "silence":
            await asyncio.Event().wait()
        return (self.answer or m.StatsReply(1, self.totals)), b""


@pytest.fixture
async def mount(tmp_path: Path) -> Any:
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "a").write_text("abc")
    mount = await Mount(root).start()
    yield mount
    await mount.vfs.stop()
    mount.engine.close()


async def test_the_figures_of_both(mount: Mount) -> None:
    server = Server(mount)
    await mount.open(b"a")
    server.totals = {"Open": [1, 0, 10, 5, 1, 0]}
    found = await server.profiling.stats()
    assert found["operations"]["open"]["count"] == 1
    assert found["waiting"]["parts"]["disk"] == pytest.approx(5e-9)
    assert found["waiting"]["parts"]["limit"] == pytest.approx(1e-9)
    assert (found["since"], found["slow"], found["slow_count"]) == (1000.0, [], 0)
    json.dumps(found)
    assert await server.profiling.stats() == found, "asking changes nothing"


async def test_counting_from_zero_again(mount: Mount) -> None:
    server = Server(mount)
    await mount.open(b"a")
    server.totals = {"Open": [1, 0, 10**9, 0, 10**9, 0]}
    assert (await server.profiling.stats(reset=True))["operations"]["open"]["count"] == 1
    found = await server.profiling.stats()
    assert found["operations"] == {}
    assert found["since"] > 1000.0
    await mount.open(b"a")
    server.totals = {"Open": [2, 0, 10**9 + 10, 5, 10**9, 0]}
    found = await server.profiling.stats()
    assert found["operations"]["open"]["count"] == 1
    assert found["waiting"]["parts"]["limit"] == 0.0, "that was before"


@pytest.mark.parametrize(
    "answer",
    [
        os_error(5),
        MountError("gone"),
        m.Done(1),
    ],
    ids=repr,
)
async def test_a_server_that_does_not_say(mount: Mount, answer: Any) -> None:
    server = Server(mount)
    server.answer = answer
    await mount.open(b"a")
    found = await server.profiling.stats()
    assert found["waiting"]["parts"] is None
    assert found["waiting"]["operations"] is None
    assert found["operations"]["open"]["count"] == 1


async def test_a_server_that_is_silent_or_away(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    server = Server(mount)
    server.answer = "silence"
    assert (await server.profiling.stats())["waiting"]["parts"] is None
    assert server.asked == 1
    server.connected = False
    name = await server.profiling.begin()
    assert (await server.profiling.end(name))["waiting"]["parts"] is None
    assert server.asked == 1, "a connection that is parked stays so"


async def test_a_server_that_talks_nonsense(mount: Mount) -> None:
    server = Server(mount)
    await mount.open(b"a")
    server.totals = {"Open": [1, 2], "Lookup": [1, 0, -5, 0, 0, 0], "GetAttr": [1 << 63] * 6, "": []}
    found = await server.profiling.stats()
    assert found["waiting"]["parts"]["server"] == 0.0
    server.totals = {"Open": [0, 0, 0, 0, 0, 0], "Lookup": [1, 0, 10**15, 10**16, 10**17, 0]}
    waiting = (await server.profiling.stats())["waiting"]
    assert min(waiting["parts"].values()) >= 0


async def test_profiles(mount: Mount) -> None:
    server = Server(mount)
    one = await server.profiling.begin()
    await mount.open(b"a")
    two = await server.profiling.begin()
    await mount.open(b"a")
    server.totals = {"Open": [2, 0, 10, 5, 1, 0]}
    assert (await server.profiling.end(two))["operations"]["open"]["count"] == 1
    result = await server.profiling.end(one)
    assert result["operations"]["open"]["count"] == 2
    assert result["waiting"]["parts"]["disk"] == pytest.approx(5e-9)
    for name in (one, "nonsense"):
        with pytest.raises(MountError, match="lost"):
            await server.profiling.end(name)
    assert mount.vfs.stats.watchers == []


async def test_profiles_that_nobody_ends(mount: Mount) -> None:
    server = Server(mount)
    names = [await server.profiling.begin() for _ in range(PROFILES + 3)]
    assert len(mount.vfs.stats.watchers) == PROFILES
    with pytest.raises(MountError, match="lost"):
        await server.profiling.end(names[0])
    assert await server.profiling.end(names[-1])

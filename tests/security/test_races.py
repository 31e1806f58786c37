"""The race fuzzer: a client resolves names while others on the server swap what the names mean.

Two processes exchange directories for symbolic links that lead outside, files for links, and move directories about,
some hundred thousand times a second, while requests of every type go through those places. Not one of them may see
or touch what is outside.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from jupyter_wsfuse.engine.handles import HandleTable
from jupyter_wsfuse.engine.operations import OPERATIONS, Context, execute
from jupyter_wsfuse.engine.sandbox import Sandbox, WouldBlock
from jupyter_wsfuse.errors import errno_name
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Ref
from tests.helpers.arena import Arena, Make, by_name, by_path
from tests.helpers.engineproc import EngineProcess
from tests.helpers.fuzzing import SCALE, chance
from tests.helpers.rawclient import RawClient, disconnect_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 * (1 + SCALE))]

#: Requests on the operations themselves, in all ways to treat links together, and through an engine.
DIRECT = 200_000 * SCALE
THROUGH_AN_ENGINE = 20_000 * SCALE
#: What is swapped, and what lies behind it.
PLACES = [
    b"door", b"door/canary", b"door/dir/inner", b"door2/canary", b"door2/dir", b"trap/canary", b"trap2/dir/inner",
    b"deep/way/canary", b"deep/trap/canary", b"deep/way/dir/inner", b"leaf", b"leaf-trap", b"flicker", b"mover/sub",
    b"elsewhere/mover/sub", b"to-shared", b"to-shared/canary", b"to-shared/sub/canary", b"to-outside/canary",
]  # fmt: skip
NAMES = [b"leaf", b"leaf-trap", b"door2", b"trap2", b"to-shared", b"mover"]
REMOVABLE = [b"flicker", b"canary"]


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """With pairs to swap: one is a directory (or file) inside, the other a link that leads outside."""
    arena = Arena(tmp_path)
    ws, shared, outside = arena.workspace, arena.shared, arena.outside
    for folder in ("door/dir", "door2/dir", "deep/way/dir", "elsewhere", "mover/sub"):
        (ws / folder).mkdir(parents=True)
    for name in ("door", "door2", "deep/way"):
        (ws / name / "canary").write_bytes(b"inside")
        (ws / name / "dir/inner").write_bytes(b"inside")
    (ws / "leaf").write_bytes(b"inside")
    (shared / "sub").mkdir()
    (shared / "canary").write_bytes(b"shared")
    (shared / "sub/canary").write_bytes(b"shared")
    for name, target in (
        ("trap", outside), ("trap2", "../outside"), ("deep/trap", "../../outside"), ("leaf-trap", outside / "canary"),
        ("to-outside", outside),
    ):  # fmt: skip
        os.symlink(target, ws / name)
    yield arena
    arena.close()


@contextmanager
def swapping(arena: Arena) -> Iterator[list[int]]:
    """Both swappers at work. What is given holds afterwards how often each has swapped."""
    swaps: list[int] = []
    with ExitStack() as stack:
        running = []
        for part in ("directories", "files"):
            process = stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable, str(Path(__file__).with_name("swapper.py")),
                        str(arena.workspace), str(arena.shared), str(arena.outside), part,
                    ],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            running.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("!")
            process.stdin.flush()
        try:
            yield swaps
        finally:
            for process in running:
                said, _ = process.communicate(timeout=60)
                assert process.returncode == 0
                swaps.append(int(said))


def requests() -> list[Make]:
    """Everything that goes through what is swapped, and leaves it there to be swapped again."""
    made = [make for place in PLACES for make in by_path(place)]
    made += [make for name in REMOVABLE for make in by_name(name)]
    removing = (m.Unlink, m.RmDir, m.Rename)
    return made + [make for name in NAMES for make in by_name(name) if make.func not in removing]


class Racer:
    """Executes requests by itself, and looks at every descriptor that they give."""

    def __init__(self, arena: Arena, links: str) -> None:
        self.arena = arena
        sandbox = Sandbox(bytes(arena.workspace), follow_roots=[bytes(arena.shared)], links=links)
        self.context = Context(sandbox, HandleTable())
        self.outcomes: Counter[str] = Counter()
        self.escapes: list[str] = []
        self.numbers = itertools.count(1)

    def run(self, count: int, rng: random.Random) -> None:
        pool = requests()
        for _ in range(count):
            self.attempt(rng.choice(pool), nowait=rng.random() < 0.2)

    def attempt(self, make: Make, nowait: bool) -> None:
        nowait = nowait and OPERATIONS[make.func].inline  # type: ignore[index]  # func is the type of the request
        request: Any = make(1)
        if isinstance(request, m.Open | m.OpenDir | m.Reopen) and request.handle:
            request.handle = next(self.numbers)  # or the other thread would close it
        try:
            reply, payload = execute(self.context, request, b"", nowait)
        except OSError as exc:
            self.outcomes[errno_name(exc.errno or 0)] += 1
            return
        except WouldBlock:
            self.outcomes["would block"] += 1
            return
        self.outcomes["done"] += 1
        found = self.arena.leaks(reply, payload)
        if isinstance(reply, m.OpenReply):
            found += self.look(reply.handle)
        if found:
            self.escapes.append(f"{make}: {found}")

    def look(self, id: int) -> list[str]:
        handle = self.context.handles.get(id)
        seen = os.fstat(handle.fd)
        found = ["descriptor"] if (seen.st_dev, seen.st_ino) in self.arena.forbidden else []
        look = m.ReadDir(1, id, 0, 100) if handle.directory else m.Read(1, id, 0, 4096)
        try:
            found += self.arena.leaks(*execute(self.context, look))
        except OSError:
            pass
        self.context.handles.close(id)
        return found

    def close(self) -> None:
        self.context.handles.close_all()
        self.context.sandbox.close()


def check(arena: Arena, outcomes: Counter[str], escapes: list[str], count: int, swaps: list[int]) -> None:
    print(outcomes, swaps)
    assert escapes == []
    arena.check_untouched()
    assert sum(outcomes.values()) == count
    # Both sides of the race were seen, or nothing has been tested.
    assert min(swaps) > count // 20
    assert outcomes["done"] > count // 50, outcomes
    assert outcomes["ELOOP"] + outcomes["EACCES"] > count // 50, outcomes


@pytest.mark.parametrize(("links", "share"), [("keep", 0.6), ("follow", 0.4)])
def test_the_operations(arena: Arena, links: str, share: float) -> None:
    """In two threads of one session, as an engine's workers are."""
    count = int(DIRECT * share) // 2
    racer = Racer(arena, links)
    rngs = [chance(f"{links} {number}") for number in range(2)]
    threads = [threading.Thread(target=racer.run, args=(count, rng)) for rng in rngs]
    try:
        with swapping(arena) as swaps:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        racer.close()
    check(arena, racer.outcomes, racer.escapes, 2 * count, swaps)


@pytest.fixture(autouse=True)
async def no_connection_is_left() -> AsyncIterator[None]:
    yield
    await disconnect_all()


async def test_through_an_engine(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pipelined, so that loop and workers are at it at once. Not confined, as in the corpus."""
    tenants = {"default": {"root": str(arena.workspace), "follow_roots": [str(arena.shared)]}}
    engine = EngineProcess(arena.workspace, tmp_path_factory.mktemp("state"), tenants=tenants, landlock=False)
    rng, pool = chance("engine"), requests()
    outcomes: Counter[str] = Counter()
    escapes: list[str] = []
    try:
        clients = {}
        for links in ("keep", "follow"):
            clients[links] = RawClient()
            await clients[links].open(engine.url, engine.ticket(), links=links)
        with swapping(arena) as swaps:
            for _ in range(THROUGH_AN_ENGINE // 200):
                client = clients[rng.choice(["keep", "follow"])]
                batch = [(make, client.send(make)) for make in rng.choices(pool, k=200)]
                looks: list[tuple[Make, int]] = []
                for make, seq in batch:
                    try:
                        reply, payload = await client.answer(seq)
                    except OSError as exc:
                        outcomes[errno_name(exc.errno or 0)] += 1
                        continue
                    outcomes["done"] += 1
                    escapes += [f"{make}: {found}" for found in arena.leaks(reply, payload)]
                    if isinstance(reply, m.OpenReply):
                        looks.append((make, client.send(m.Read, reply.handle, 0, 4096)))
                        looks.append((make, client.send(m.ReadDir, reply.handle, 0, 100)))
                        looks.append((make, client.send(m.GetAttr, Ref(b"", None, reply.handle))))
                        looks.append((make, client.send(m.Close, reply.handle)))
                    elif isinstance(reply, m.RemovedReply) and reply.pin:
                        looks.append((make, client.send(m.Close, reply.pin)))
                for make, seq in looks:
                    try:
                        answer = await client.answer(seq)
                    except OSError:
                        continue
                    escapes += [f"{make}: {found}" for found in arena.leaks(*answer)]
        check(arena, outcomes, escapes, THROUGH_AN_ENGINE // 200 * 200, swaps)
    finally:
        await disconnect_all()
        assert engine.stop() == 0
    assert "Traceback" not in engine.log, engine.log
    assert " ERROR " not in engine.log, engine.log


def test_the_fuzzer_would_notice(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking first and opening afterwards, which is what a check of the resolved path is, loses this race."""

    def open_path(self: Sandbox, path: bytes, flags: int = 0, nowait: bool = False) -> int:
        full = self.root + b"/" + path
        if not os.path.realpath(full).startswith(self.root + b"/"):
            raise PermissionError
        return os.open(full, os.O_PATH | flags)

    monkeypatch.setattr(Sandbox, "open_path", open_path)
    racer = Racer(arena, "keep")
    looks = [
        Make(kind, ref=Ref(path))
        for kind in (m.GetAttr, m.OpenDir)
        for path in (b"door/canary", b"door2/canary", b"deep/way/canary", b"door/dir", b"leaf")
    ]
    rng = chance("would notice")
    try:
        with swapping(arena):
            for _ in range(50_000):
                racer.attempt(rng.choice(looks), nowait=False)
                if racer.escapes:
                    break
    finally:
        racer.close()
    assert racer.escapes
    arena.check_untouched()

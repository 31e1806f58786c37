"""What a flooding tenant leaves of an engine to a quiet one: ``python -m benchmarks.fairness``.

The quiet tenant's small operations, one after the other: their 99th percentile while the noisy tenant floods the same
engine, against that while the same flood goes to an engine of its own. What the machine's processors are worth
meanwhile is the same for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from jupyter_wsfuse.protocol import messages as m
from tests.helpers.engineproc import EngineProcess
from tests.helpers.flood import Flood
from tests.helpers.rawclient import RawClient, disconnect_all

from .mounts import workplace

ASKED: Final = 3.0
_LEAST: Final = 500  # operations of a round
_SESSIONS: Final = 4  # of the noisy tenant


async def quiet_round(client: RawClient, handle: int, flood: Flood) -> float:
    """The 99th percentile of small operations, one after the other, under a *flood*; seconds."""
    took: list[float] = []
    flood.go()
    flooded = asyncio.ensure_future(asyncio.to_thread(flood.wait))
    while len(took) < _LEAST or not flooded.done():
        for request, payload in (
            ((m.GetAttr, m.Ref(b"")), b""),
            ((m.Read, handle, 0, 4096), b""),
            ((m.Write, handle, 0), b"x" * 100),
        ):
            began = time.perf_counter()
            await client.answer(client.send(*request, payload=payload))
            took.append(time.perf_counter() - began)
    await flooded
    await asyncio.to_thread(flood.stop)
    return sorted(took)[int(len(took) * 0.99)]


@contextlib.contextmanager
def engines() -> Iterator[list[EngineProcess]]:
    """Two engines, each with the tenants "noisy" and "quiet", on folders in memory if there is memory for that."""
    found = []
    with workplace("/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        for number in range(2):
            here = Path(folder) / str(number)
            tenants = {}
            for name in ("noisy", "quiet"):
                (here / name).mkdir(parents=True)
                tenants[name] = {"root": str(here / name)}
            found.append(EngineProcess(here, here / "state", tenants=tenants))
        try:
            yield found
        finally:
            for engine in found:
                engine.stop()


async def measure(engine: EngineProcess, elsewhere: EngineProcess, rounds: int) -> list[tuple[float, float]]:
    """Seconds of each round: with the flood elsewhere, and with the flood here."""
    floods = [
        Flood(each.url, [each.ticket("noisy") for _ in range(_SESSIONS)]) for each in (elsewhere, engine)
    ]
    try:
        client = RawClient()
        await client.open(engine.url, engine.ticket("quiet"))
        made = await client.call(m.Create, m.Ref(b""), b"f", 0o600, os.O_RDWR)
        await client.call(m.Write, made.handle, 0, payload=b"x" * 4096)
        found = []
        for _ in range(rounds):
            alone, shared = [await quiet_round(client, made.handle, flood) for flood in floods]
            found.append((alone, shared))
        return found
    finally:
        for flood in floods:
            flood.end()
        await disconnect_all()


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--strict", is_flag=True, help="Exit 1 when the quiet tenant waits longer than it may.")
def main(rounds: int, strict: bool) -> None:
    """Compare a quiet tenant's pace beside a flood in the same engine, and in another one."""
    with engines() as (engine, elsewhere):
        found = asyncio.run(measure(engine, elsewhere, rounds))
    ratio = statistics.median(shared / alone for alone, shared in found)
    alone, shared = (statistics.median(each) for each in zip(*found, strict=True))
    print(
        f"99th percentile of a quiet tenant's operations, medians of {rounds} rounds: {alone * 1e6:.0f} us "
        f"with the flood in another engine, {shared * 1e6:.0f} us in the same one: {ratio:.2f} x (asked {ASKED:g} x)"
    )
    if strict and ratio > ASKED:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""A client that asks for as much as it can, as a process of its own: ``python -m tests.helpers.flood``.

Reads ``{"url", "tickets"}`` as a line of JSON, opens a session for each ticket and says ``ready``. Then each
line ``go`` lets it flood until the line ``stop``, which it answers with the requests executed meanwhile; it says
``flooding`` when there were ENOUGH. Half of the sessions ask for attributes, the others write pieces of 1 MiB, all of
them pipelined.

It stands for somebody on another machine, and so gives way on this one to others that want a processor.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from jupyter_wsfuse.protocol import messages as m
from tests.helpers.rawclient import RawClient

SMALL_AT_ONCE = 256
WRITES_AT_ONCE = 8
ENOUGH = 4000
PIECE = bytes(1 << 20)


class Flooder:
    """One session that has always *at_once* requests under way while it is on."""

    def __init__(self, client: RawClient, at_once: int, counted: Callable[[], None]) -> None:
        self.counted = counted
        self.client = client
        self.at_once = at_once
        self.count = 0
        self.on = asyncio.Event()
        self.handle = 0

    async def start(self, name: bytes) -> None:
        if self.at_once == WRITES_AT_ONCE:
            made = await self.client.call(m.Create, m.Ref(b""), name, 0o600, os.O_RDWR)
            self.handle = made.handle
        self.lanes = [asyncio.ensure_future(self.lane(number)) for number in range(self.at_once)]

    async def lane(self, number: int) -> None:
        while True:
            await self.on.wait()
            if self.handle:
                await self.client.answer(
                    self.client.send(m.Write, self.handle, number << 20, payload=PIECE), done=True
                )
            else:
                await self.client.answer(self.client.send(m.GetAttr, m.Ref(b"")), done=False)
            self.count += 1
            self.counted()


async def main() -> None:
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    loop.add_reader(0, lambda: lines.put_nowait(os.read(0, 1 << 16)))
    config = json.loads(await lines.get())
    os.nice(10)
    flooders: list[Flooder] = []

    def counted() -> None:
        if sum(flooder.count for flooder in flooders) == ENOUGH:
            print("flooding", flush=True)

    for number, ticket in enumerate(config["tickets"]):
        client = RawClient(client="flood")
        await client.open(config["url"], ticket)
        flooder = Flooder(client, WRITES_AT_ONCE if number % 2 else SMALL_AT_ONCE, counted)
        await flooder.start(b"flood%d" % number)
        flooders.append(flooder)
    print("ready", flush=True)
    while line := await lines.get():
        if line == b"go\n":
            for flooder in flooders:
                flooder.count = 0
                flooder.on.set()
        else:
            for flooder in flooders:
                flooder.on.clear()
            print(json.dumps([flooder.count for flooder in flooders]), flush=True)
    for flooder in flooders:
        for lane in flooder.lanes:
            lane.cancel()


class Flood:
    """That process, from outside."""

    def __init__(self, url: str, tickets: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.flood"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._say(json.dumps({"url": url, "tickets": tickets}))
        assert self._hear() == "ready"

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def go(self) -> None:
        self._say("go")

    def wait(self) -> None:
        """Until it has flooded ENOUGH since :meth:`go`."""
        assert self._hear() == "flooding"

    def stop(self) -> list[int]:
        """How many requests of each session were answered since :meth:`go`. Call :meth:`wait` before."""
        self._say("stop")
        counts: list[Any] = json.loads(self._hear())
        return counts

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())

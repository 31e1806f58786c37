"""When a mount says what of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from jupyter_wsfuse.client.reporting import Reporter
from jupyter_wsfuse.protocol.messages import Report


class Connection:
    """Takes reports, or not."""

    def __init__(self) -> None:
        self.on_watched: Callable[[bool], None]
        self.on_parking: Callable[[], None]
        self.reports: list[Report] = []
        self.open = True
        self.told = asyncio.Event()

    def report(self, report: Report) -> bool:
        if self.open:
            self.reports.append(report)
            self.told.set()
        return self.open


class Mount:
    def __init__(self) -> None:
        self.connection = Connection()
        self.operations = self.rtt = self.asked = 0
        self.looked = asyncio.Event()
        self.reporter = Reporter(self.connection, self.figures, interval=0.005)

    def figures(self, state: str) -> Report:
        self.asked += 1
        self.looked.set()
        return Report(state, "host", b"/mnt", self.rtt, self.operations, 0, 0, 0, 0)

    async def looks(self, times: int) -> None:
        """Until it has looked so many times more."""
        for _ in range(times):
            self.looked.clear()
            await asyncio.wait_for(self.looked.wait(), 20)


async def test_nothing_is_said_before_somebody_looks() -> None:
    mount = Mount()
    mount.operations = 1
    await asyncio.sleep(0)
    assert (mount.asked, mount.connection.reports) == (0, [])


async def test_what_is_another_is_said_once() -> None:
    mount = Mount()
    mount.connection.on_watched(True)
    assert [report.operations for report in mount.connection.reports] == [0]
    await mount.looks(3)
    mount.rtt = 7  # changes all the time
    await mount.looks(3)
    assert len(mount.connection.reports) == 1
    mount.operations = 5
    await mount.looks(3)
    assert [(report.operations, report.rtt) for report in mount.connection.reports] == [(0, 0), (5, 7)]
    mount.connection.on_watched(False)
    asked = mount.asked
    mount.operations = 6
    await asyncio.sleep(0.02)
    assert mount.asked == asked


async def test_who_looks_again_is_told_all() -> None:
    mount = Mount()
    for on in (True, False, True, True):
        mount.connection.on_watched(on)
    assert len(mount.connection.reports) == 3
    mount.connection.on_watched(False)


async def test_what_could_not_be_said_is_said_later() -> None:
    mount = Mount()
    mount.connection.open = False
    mount.connection.on_watched(True)
    await mount.looks(2)
    mount.connection.open = True
    await asyncio.wait_for(mount.connection.told.wait(), 20)
    assert len(mount.connection.reports) == 1
    mount.connection.on_watched(False)


async def test_parking_is_said_to_whoever_looks_later() -> None:
    mount = Mount()
    mount.connection.on_parking()
    assert [report.state for report in mount.connection.reports] == ["parked"]

"""How soon a mount sees what somebody else has changed: ``python -m benchmarks.coherence``.

Two mounts of one workspace, and a process on the server behind them. Each change is made by one of the others, in a
process of its own, to what a mount has looked at before, and so answers from memory; meanwhile that mount is asked in a
tight loop until it answers otherwise. The time counts from the beginning of the system call that makes the change.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from . import report
from .changes import CHANGES, Change, prepare
from .mounts import workplace
from .peers import everything
from .processes import running, start

PATIENCE: Final = 10.0  # seconds for any change to be seen
HEADINGS: Final = (
    "round trip", "a file was", "by", "trips", "old: median", "old: max", "new: min", "median", "p95", "p99", "max",
)  # fmt: skip
SERVER, MOUNT = "a process on the server", "another mount"
#: How often something has to cross the distance, one way: from the server to who looks; before that, to the server.
TRIPS: Final = {SERVER: 1, MOUNT: 2}


def until_seen(
    change: Change, reader: Path, number: int, writer: subprocess.Popen[str]
) -> tuple[float, float]:
    """Seconds from a change that *writer* makes: until *reader* was asked last and gave the old answer, and until it
    has given the new one. Who asks between the two waits for that."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    before = change.looks(reader, number)
    if change.looks(reader, number) != before:
        raise RuntimeError(f"a file was {change.name} by nobody")
    print(change.name, number, file=writer.stdin, flush=True)
    deadline = time.monotonic() + PATIENCE
    asked = old = time.monotonic()
    while change.looks(reader, number) == before:
        old, asked = asked, time.monotonic()
        if asked > deadline:
            raise RuntimeError(f"nobody saw that a file was {change.name}")
    seen = time.monotonic()
    begun = float(writer.stdout.readline())
    return max(old - begun, 0.0), seen - begun


def spread(seconds: list[float]) -> tuple[float, ...]:
    """Milliseconds: the least, the median, 95 and 99 of 100, the most."""
    times = sorted(1000 * each for each in seconds)
    last = len(times) - 1
    return times[0], statistics.median(times), times[round(0.95 * last)], times[round(0.99 * last)], times[-1]


def measure(round_trip: float, count: int, transport: str) -> list[tuple[str, str, tuple[float, ...]]]:
    """(change, who made it, median and most of the old answers, spread of the new ones), of *count* changes each."""
    found = []
    with workplace() as work:
        source = work / "source"
        source.mkdir()
        prepare(source)
        only = ("wsfuse direct", "wsfuse relay")
        with (
            everything(source, work, cached=True, round_trip=round_trip, only=only) as peers,
            peers[f"wsfuse {transport}"]() as reader,
            peers["wsfuse relay" if transport == "direct" else "wsfuse direct"]() as other,
        ):
            for who, directory in ((SERVER, source), (MOUNT, other)):
                command = [sys.executable, "-m", "benchmarks.changes", directory]
                pipe = subprocess.PIPE
                with running(start(command, stdin=pipe, stdout=pipe)) as writer:
                    for change in CHANGES:
                        first = 0 if who == SERVER else count
                        numbers = range(first, first + count)
                        old, new = zip(
                            *(until_seen(change, reader, number, writer) for number in numbers), strict=True
                        )
                        ends = spread(list(old))
                        found.append((change.name, who, (ends[1], ends[-1], *spread(list(new)))))
    return found


@click.command()
@click.option("--rtt", default="0,20", show_default=True, help="Round trips in milliseconds, with commas.")
@click.option("--count", default=200, show_default=True, help="Changes of each kind.")
@click.option("--transport", type=click.Choice(["relay", "direct"]), default="relay", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Keep all figures in this JSON file.")
@click.option("--docs", is_flag=True, help="Put the table into docs/.")
def main(rtt: str, count: int, transport: str, output: Path | None, docs: bool) -> None:
    """Print the distribution of the time until a change is seen."""
    rows: list[tuple[str, ...]] = []
    kept = []
    for part in rtt.split(","):
        for change, who, times in measure(float(part) / 1000, count, transport):
            trips = f"{TRIPS[who]} x {float(part) / 2:g} ms"
            rows.append((f"{part} ms", change, who, trips, *(f"{value:.2f}" for value in times)))
            kept.append({"rtt": float(part), "change": change, "by": who, "milliseconds": times})
    table = Table(title=f"milliseconds until a change is seen by a mount over {transport}")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)
    if output:
        output.write_text(json.dumps(kept, indent=1) + "\n")
    if docs:
        report.insert("coherence", report.markdown_table(HEADINGS, rows))


if __name__ == "__main__":
    main()

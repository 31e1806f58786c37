"""A large tree: ``python -m benchmarks.bigtree`` walks 200,000 files three times, and looks at the daemon's memory.

Each part of a walk has as many files as the others. If parts take longer and longer, something grows with what was
seen.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from . import report
from .mounts import workplace
from .peers import everything

EACH: Final = 100  # files of one directory
PART: Final = 10_000  # files for which time and memory are noted
WALKS: Final = ("first", "second", "third")


@dataclass(frozen=True)
class Part:
    """Of one walk: ``files`` so far, ``seconds`` for the last of them, then what the daemon takes, in MiB."""

    walk: str
    files: int
    seconds: float
    resident: float
    most: float


def make(top: Path, files: int) -> None:
    """A tree of so many empty files, in directories of EACH."""
    for number in range(files // EACH):
        directory = top / f"d{number // 50}" / f"e{number % 50}"
        directory.mkdir(parents=True)
        for file in range(EACH):
            os.close(os.open(directory / f"file{file:03}", os.O_CREAT | os.O_WRONLY))


def daemon_of(mountpoint: Path) -> int:
    """The process that answers for a mount."""
    said = subprocess.run(
        [sys.executable, "-m", "jupyter_wsfuse.ui.cli", "status", mountpoint, "--json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(json.loads(said.stdout)[0]["daemon"]["pid"])


def memory(pid: int) -> tuple[float, float]:
    """MiB that a process has in memory now, and at most so far."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    now, most = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def walk(
    name: str, top: Path, remember: Callable[[], tuple[float, float]], part: int = PART
) -> Iterator[Part]:
    """Walk with stat, and note how that goes each *part* files."""
    found, begun = 0, time.perf_counter()
    for folder, _, names in os.walk(top):
        for each in names:
            os.lstat(os.path.join(folder, each))
        before, found = found, found + len(names)
        if found // part > before // part:
            elapsed = time.perf_counter() - begun
            yield Part(name, found, elapsed, *remember())
            begun = time.perf_counter()


def growth(parts: list[Part]) -> float:
    """How much longer the last quarter of the parts of a walk took than the first: 1 is linear time."""
    quarter = max(len(parts) // 4, 1)
    first, last = ([part.seconds for part in chosen] for chosen in (parts[:quarter], parts[-quarter:]))
    return statistics.median(last) / statistics.median(first)


def summary(parts: list[Part]) -> list[tuple[str, ...]]:
    """A row for each walk, as in HEADINGS."""
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(part.walk for part in parts):
        own = [part for part in parts if part.walk == name]
        seconds = [part.seconds for part in own]
        rows.append(
            (
                name,
                f"{own[-1].files}",
                f"{sum(seconds):.2f}",
                f"{min(seconds):.2f}",
                f"{statistics.median(seconds):.2f}",
                f"{max(seconds):.2f}",
                f"{growth(own):.2f}",
                f"{own[-1].resident:.0f}",
                f"{own[-1].most:.0f}",
            )
        )
    return rows


HEADINGS: Final = (
    "walk", "files", "seconds", f"least for {PART}", "median", "most", "last / first quarter", "daemon, MiB",
    "at most",
)  # fmt: skip


@click.command()
@click.option("--files", default=200_000, show_default=True)
@click.option("--rtt", default=0.0, show_default=True, help="Round trip in milliseconds.")
@click.option("--transport", type=click.Choice(["relay", "direct"]), default="direct", show_default=True)
@click.option("--verbose", is_flag=True, help="A row for each part, too.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep all figures in this JSON file.")
@click.option("--docs", is_flag=True, help="Put the table into docs/.")
def main(files: int, rtt: float, transport: str, verbose: bool, output: Path | None, docs: bool) -> None:
    """Print seconds and memory of walks with stat through one mount."""
    parts: list[Part] = []
    with workplace() as work:
        source = work / "source"
        source.mkdir()
        make(source, files)
        peer = f"wsfuse {transport}"
        with (
            everything(source, work, cached=True, round_trip=rtt / 1000, only=[peer]) as peers,
            peers[peer]() as mountpoint,
        ):
            pid = daemon_of(mountpoint)
            for name in WALKS:
                for part in walk(name, mountpoint, lambda: memory(pid)):
                    parts.append(part)
                    print(f"{name} walk: {part.files} files", file=sys.stderr)
    console = Console(width=130)
    if verbose:
        each = Table("walk", "files so far", "seconds for the last part", "daemon, MiB", "at most")
        for part in parts:
            figures = f"{part.seconds:.3f}", f"{part.resident:.0f}", f"{part.most:.0f}"
            each.add_row(part.walk, f"{part.files}", *figures)
        console.print(each)
    table = Table(title=f"walks with stat of {files} files, over {transport}, round trip of {rtt:g} ms")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in summary(parts):
        table.add_row(*row)
    console.print(table)
    if output:
        output.write_text(json.dumps([asdict(part) for part in parts], indent=1) + "\n")
    if docs:
        report.insert("bigtree", report.markdown_table(HEADINGS, summary(parts)))


if __name__ == "__main__":
    main()

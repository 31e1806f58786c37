"""A large tree: ``python -m benchmarks.bigtree`` walks 200,000 files twice, and looks at the daemon's memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from .peers import everything

EACH = 100  # files of one directory
STEPS = 8  # parts of a walk that are timed


def _make(top: Path, files: int) -> None:
    for number in range(files // EACH):
        directory = top / f"d{number // 50}" / f"e{number % 50}"
        directory.mkdir(parents=True)
        for file in range(EACH):
            os.close(os.open(directory / f"file{file:03}", os.O_CREAT | os.O_WRONLY))


def _memory(mountpoint: Path) -> int:
    """The most that the daemon of the mount has taken so far, in KiB."""
    said = subprocess.run(
        [sys.executable, "-m", "jupyter_wsfuse.ui.cli", "status", mountpoint, "--json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    pid = json.loads(said.stdout)[0]["daemon"]["pid"]
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError("no such process")


@click.command()
@click.option("--files", default=200_000, show_default=True)
@click.option("--rtt", default=0.0, show_default=True, help="Round trip in milliseconds.")
def main(files: int, rtt: float) -> None:
    """Print seconds and memory of each part of a walk with stat."""
    table = Table(title=f"walk with stat of {files} files")
    for heading in ("walk", "files so far", "seconds for the last part", "daemon, MiB at most"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(prefix="wsfuse-bench-") as name:
        work, source = Path(name), Path(name) / "source"
        source.mkdir()
        _make(source, files)
        with (
            everything(source, work, cached=True, round_trip=rtt / 1000) as peers,
            peers["wsfuse direct"]() as mountpoint,
        ):
            for walk in ("first", "second", "third"):
                found, begun = 0, time.perf_counter()
                for folder, _, names in os.walk(mountpoint):
                    for each in names:
                        os.lstat(os.path.join(folder, each))
                    before, found = found, found + len(names)
                    if found * STEPS // files > before * STEPS // files:
                        elapsed = time.perf_counter() - begun
                        table.add_row(walk, f"{found}", f"{elapsed:.2f}", f"{_memory(mountpoint) / 1024:.0f}")
                        begun = time.perf_counter()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

"""How soon a mount sees what somebody else has changed: ``python -m benchmarks.coherence``.

Two mounts of one workspace, and a process on the server behind them. Each change is made by one of the others to what
a mount has looked at before, and so answers from memory; the mount is then asked in a tight loop until it
answers otherwise.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from .peers import everything

PATIENCE = 10.0  # seconds for any change to be seen


def _until(seen: Callable[[], bool]) -> float:
    begun = time.perf_counter()
    while not seen():
        if time.perf_counter() - begun > PATIENCE:
            raise RuntimeError("a change was not seen")
    return time.perf_counter() - begun


def _made(writer: Path, reader: Path, number: int) -> float:
    name = f"made{number}"
    if (reader / name).exists():
        raise RuntimeError("it exists")
    (writer / name).touch()
    return _until((reader / name).exists)


def _removed(writer: Path, reader: Path, number: int) -> float:
    name = f"made{number}"
    (reader / name).stat()
    (writer / name).unlink()
    return _until(lambda: not (reader / name).exists())


def _appended(writer: Path, reader: Path, number: int) -> float:
    size = (reader / "log").stat().st_size
    with (writer / "log").open("ab", buffering=0) as file:
        file.write(b"a line\n")
    return _until(lambda: (reader / "log").stat().st_size > size)


def _replaced(writer: Path, reader: Path, number: int) -> float:
    (reader / "state").read_bytes()
    (writer / "fresh").write_text(f"{number}")
    os.replace(writer / "fresh", writer / "state")
    return _until(lambda: (reader / "state").read_text() == f"{number}")


CHANGES = {"made": _made, "appended to": _appended, "replaced": _replaced, "removed": _removed}


@click.command()
@click.option("--rtt", default="0,20", show_default=True, help="Round trips in milliseconds, with commas.")
@click.option("--count", default=200, show_default=True, help="Changes of each kind.")
def main(rtt: str, count: int) -> None:
    """Print the distribution of the time until a change is seen."""
    table = Table(title="milliseconds until a file that was ... is seen so by a mount over the relay")
    for heading in ("round trip", "a file was", "by", "min", "median", "p95", "p99", "max"):
        table.add_column(heading, justify="right")
    for part in rtt.split(","):
        with tempfile.TemporaryDirectory(prefix="wsfuse-bench-") as name:
            work, source = Path(name), Path(name) / "source"
            source.mkdir()
            (source / "log").touch()
            (source / "state").touch()
            with (
                everything(source, work, cached=True, round_trip=float(part) / 1000) as peers,
                peers["wsfuse relay"]() as reader,
                peers["wsfuse direct"]() as other,
            ):
                for who, writer in (("the server", source), ("another mount", other)):
                    os.listdir(reader)
                    for what, change in CHANGES.items():
                        base = 0 if who == "the server" else count
                        times = sorted(
                            change(writer, reader, base + number) * 1000 for number in range(count)
                        )
                        shown = (
                            times[0], statistics.median(times), times[int(0.95 * count)], times[int(0.99 * count)],
                            times[-1],
                        )  # fmt: skip
                        table.add_row(f"{part} ms", what, who, *(f"{value:.2f}" for value in shown))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

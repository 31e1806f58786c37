"""``python -m benchmarks``: measure, print a table for each distance, and keep the figures."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from . import report
from .peers import Mount, PeerUnavailableError, everything
from .report import Figures
from .sources import prepare
from .workloads import WORKLOADS, Workload

#: Rounds at a distance where sshfs takes minutes for a row.
FAR = 0.01


def warm_the_server(source: Path) -> None:
    """Fresh mounts have nothing cached. The disk of the server is not what is compared: all of it is in memory."""
    if os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("2")
    for folder, _, files in os.walk(source):
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                with open(path, "rb", buffering=0) as file:
                    while file.read(1 << 20):
                        pass


def rows_of(
    workload: Workload, directory: Path, tag: str, patience: float, environ: dict[str, str]
) -> Iterator[tuple[str, float]]:
    """Run *workload* in a process of its own, at most *patience* seconds. A row that is not done by then counts as
    long as it was waited for, and ends it."""
    command = [sys.executable, "-m", "benchmarks.workloads", workload.name, str(directory), tag]
    begun = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **environ}, cwd=Path(__file__).parents[1],
        start_new_session=True,
    ) as process, selectors.DefaultSelector() as selector:  # fmt: skip
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        pending = b""
        while True:
            left = begun + patience - time.monotonic()
            if not selector.select(max(left, 0)):
                os.killpg(process.pid, 9)
                yield "", patience
                return
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                seconds, _, row = line.decode().partition("\t")
                yield row, float(seconds)
                begun = time.monotonic()
    if process.returncode:
        raise RuntimeError(f"{workload.name} on {directory} ended with {process.returncode}")


def measure(
    peers: dict[str, Mount], workloads: Sequence[Workload], rounds: int, patience: float, environ: dict[str, str],
    source: Path, say: Console, round_trip: float,
) -> Figures:  # fmt: skip
    """Seconds of each round: row -> peer -> values. Peers take turns, so that a noisy moment hits all of them."""
    figures: Figures = {}
    cut: set[tuple[str, str]] = set()
    for workload in workloads:
        expected: list[str] = []
        for number in range(rounds):
            for peer, mount in peers.items():
                if (workload.name, peer) in cut or (number and peer == "sshfs" and round_trip >= FAR):
                    continue  # it is known by now, and takes minutes
                warm_the_server(source)
                with mount() as directory:
                    tag = peer.replace(" ", "-")
                    rows = rows_of(workload, directory, tag, patience, environ)
                    for done, (row, seconds) in enumerate(rows):
                        if not row:
                            cut.add((workload.name, peer))
                            row = expected[done] if done < len(expected) else workload.name
                        elif row not in expected:
                            expected.append(row)
                        figures.setdefault(row, {}).setdefault(peer, []).append(seconds)
                        say.print(f"{1000 * round_trip:.0f} ms  {row}: {peer} {seconds:.3f} s")
    return figures


@click.command()
@click.option(
    "--rtt", default="0,5,20,80", show_default=True, help="Round trips in milliseconds, with commas."
)
@click.option("--rounds", default=3, show_default=True, help="Rounds; of sshfs at a distance, one.")
@click.option("--patience", default=100.0, show_default=True, help="Seconds after which a row is cut off.")
@click.option("--only", help="Workloads to run, with commas.")
@click.option("--quick", is_flag=True, help="Reading only, at 0 and 20 ms.")
@click.option("--directory", help="Where the workspace lies.  [default: the directory for temporary files]")
@click.option("--output", type=click.Path(path_type=Path), help="Keep all figures in this JSON file.")
@click.option("--docs", is_flag=True, help="Put table and chart into docs/.")
@click.option("--strict", is_flag=True, help="Exit 1 when a ratio is over its limit.")
def main(
    rtt: str, rounds: int, patience: float, only: str | None, quick: bool, directory: str | None,
    output: Path | None, docs: bool, strict: bool,
) -> None:  # fmt: skip
    """Compare wsfuse with sshfs and the local directory, all on this host, in one run."""
    names = set(only.split(",")) if only else {w.name for w in WORKLOADS if not (quick and w.later)}
    unknown = names - {w.name for w in WORKLOADS}
    if unknown:
        raise click.UsageError(f"no such workload: {', '.join(sorted(unknown))}")
    chosen = [workload for workload in WORKLOADS if workload.name in names]
    round_trips = [float(part) / 1000 for part in ("0,20" if quick else rtt).split(",")]
    say = Console(stderr=True, highlight=False)
    found: dict[str, Figures] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="wsfuse-bench-", dir=directory) as name:
            work = Path(name)
            source, beside = work / "source", work / "beside"
            source.mkdir()
            beside.mkdir()
            environ = prepare(source, beside)
            for round_trip in round_trips:
                figures = found.setdefault(f"{1000 * round_trip:g}", {})
                for cached in (True, False):
                    rows = [w for w in chosen if w.cached is cached]
                    if rows and (cached or not round_trip):
                        with everything(source, work, cached=cached, round_trip=round_trip) as peers:
                            figures |= measure(
                                peers, rows, rounds, patience, environ, source, say, round_trip
                            )
    except PeerUnavailableError as problem:
        raise click.ClickException(str(problem)) from problem
    kept = True
    for milliseconds, figures in found.items():
        table, fine = report.table(figures, milliseconds)
        kept &= fine
        Console(width=170).print(table)
    if output:
        output.write_text(json.dumps(found, indent=1))
    if docs:
        report.into_docs(found)
    if strict and not kept:
        sys.exit(1)


if __name__ == "__main__":
    main()

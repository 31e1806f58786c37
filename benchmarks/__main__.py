"""``python -m benchmarks``: measure, print a table, and keep the figures as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from .peers import PeerUnavailableError, everything
from .workloads import WORKLOADS, prepare

Figures = dict[str, dict[str, list[float]]]


def measure(directory: str | None, rounds: int) -> Figures:
    """Seconds of every round: workload -> peer -> values. Peers take turns, so that a noisy moment hits all."""
    figures: Figures = {}
    for cached in (False, True):
        rows = [w for w in WORKLOADS if w.cached is cached]
        with tempfile.TemporaryDirectory(prefix="wsfuse-bench-", dir=directory) as name:
            source = Path(name) / "source"
            source.mkdir()
            prepare(source)
            with everything(source, Path(name), cached=cached) as peers:
                for number in range(rounds + 1):
                    for workload in rows:
                        for peer, path in peers.items():
                            seconds = workload.run(path, peer.replace(" ", "-"))
                            if number:  # the first round warms everything up
                                figures.setdefault(workload.name, {}).setdefault(peer, []).append(seconds)
    return figures


def report(figures: Figures) -> tuple[Table, bool]:
    """A table of medians with their ratio to sshfs, and whether every limit was kept over the direct transport."""
    table = Table(
        title=f"medians; in brackets the time against sshfs ({platform.machine()}, {os.cpu_count()} cores)"
    )
    peers = list(next(iter(figures.values())))
    for heading in ("workload", *peers, "asked of direct", "kept"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    all_kept = True
    for workload in WORKLOADS:
        medians = {peer: statistics.median(values) for peer, values in figures[workload.name].items()}
        cells = [f"{workload.unit(s)} ({s / medians['sshfs']:.2f})" for s in medians.values()]
        kept = medians["wsfuse direct"] <= workload.limit * medians["sshfs"]
        all_kept &= kept
        table.add_row(workload.name, *cells, f"<= {workload.limit:.2f}", "yes" if kept else "no")
    return table, all_kept


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Rounds that count; one more warms up.")
@click.option("--directory", help="Where the workspaces lie.  [default: the directory for temporary files]")
@click.option("--output", type=click.Path(path_type=Path), help="Keep all figures in this JSON file.")
@click.option("--strict", is_flag=True, help="Exit 1 when a ratio is over its limit.")
def main(rounds: int, directory: str | None, output: Path | None, strict: bool) -> None:
    """Compare wsfuse with sshfs and the local directory, all on this host, in one run."""
    try:
        figures = measure(directory, rounds)
    except PeerUnavailableError as problem:
        raise click.ClickException(str(problem)) from problem
    table, kept = report(figures)
    Console(width=160).print(table)
    if output:
        output.write_text(json.dumps(figures, indent=1))
    if strict and not kept:
        sys.exit(1)


if __name__ == "__main__":
    main()

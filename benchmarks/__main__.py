"""``python -m benchmarks``: measure, print a table for each distance, and keep the figures."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from . import figures, report, running
from .mounts import workplace
from .peers import PEERS, PeerUnavailableError, available, everything
from .running import Effort
from .sources import prepare
from .workloads import WORKLOADS, Workload

#: What ``--quick`` is: reading, once, without waiting long for those that are slow.
QUICK = Effort(rounds=1, patience=15.0)


def _chosen(only: str | None, quick: bool) -> list[Workload]:
    """The workloads that were asked for, in their own order."""
    if not only:
        return [workload for workload in WORKLOADS if not (quick and workload.writes)]
    names = set(only.split(","))
    if unknown := names - {workload.name for workload in WORKLOADS}:
        known = ", ".join(workload.name for workload in WORKLOADS)
        raise click.UsageError(f"no such workload: {', '.join(sorted(unknown))}. There are {known}")
    return [workload for workload in WORKLOADS if workload.name in names]


def _peers(names: str) -> list[str]:
    """``direct`` and ``relay`` stand for the transports of wsfuse."""
    asked = {
        {"direct": "wsfuse direct", "relay": "wsfuse relay"}.get(name, name) for name in names.split(",")
    }
    if unknown := asked - set(PEERS):
        raise click.UsageError(f"no such peer: {', '.join(sorted(unknown))}. There are {', '.join(PEERS)}")
    return [peer for peer in PEERS if peer in asked]


def _how(effort: Effort, round_trips: list[float]) -> str:
    """What one has to know of the figures of a run, for the documents."""
    rounds = f"{effort.rounds} rounds" if effort.rounds > 1 else "one round"
    text = f"Medians of {rounds}. A row that takes longer than {effort.patience:g} s is cut off, and shown as such (>)."
    if far := [figures.milliseconds(each) for each in round_trips if effort.at(each) != effort]:
        text += f" At {', '.join(far)} ms: one round, {effort.at(1.0).patience:g} s."
    return text


@click.command()
@click.option("--rtt", default="0,20", show_default=True, help="Round trips in milliseconds, with commas.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; of what is slow, and very far, one.")
@click.option("--patience", default=180.0, show_default=True, help="Seconds after which a row is cut off.")
@click.option(
    "--minutes", type=float, help="After so many, begin nothing new. What matters most comes first."
)
@click.option("--only", help="Workloads to run, with commas.")
@click.option("--peers", default=",".join(PEERS), show_default=True, help="Whom to compare, with commas.")
@click.option("--quick", is_flag=True, help="Reading only, at 0 and 20 ms, once.")
@click.option("--directory", help="Where the workspace lies.  [default: the directory for temporary files]")
@click.option("--output", type=click.Path(path_type=Path), help="Keep all figures in this JSON file.")
@click.option("--docs", is_flag=True, help="Put table and chart into docs/.")
@click.option("--strict", is_flag=True, help="Exit 1 when a ratio is over its limit.")
def main(
    rtt: str, rounds: int, patience: float, minutes: float | None, only: str | None, peers: str, quick: bool,
    directory: str | None, output: Path | None, docs: bool, strict: bool,
) -> None:  # fmt: skip
    """Compare wsfuse with sshfs and the local directory, all on this host, in one run."""
    begun = time.monotonic()
    chosen, wanted = _chosen(only, quick), _peers(peers)
    round_trips = [float(part) / 1000 for part in ("0,20" if quick else rtt).split(",")]
    until = begun + 60 * minutes if minutes else float("inf")
    effort = Effort(QUICK.rounds, QUICK.patience, until) if quick else Effort(rounds, patience, until)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(f"{(time.monotonic() - begun) / 60:5.1f} min  {line}")

    wanted, word = available(wanted)
    if word:
        say(word)
    try:
        with workplace(directory) as work:
            source, beside = work / "source", work / "beside"
            source.mkdir()
            beside.mkdir()
            environ = prepare(source, beside)
            servers = functools.partial(_servers, source, work, wanted)
            found, left_out = running.measure(servers, source, chosen, round_trips, effort, environ, say)
    except PeerUnavailableError as problem:
        raise click.ClickException(str(problem)) from problem
    kept, wide = True, Console(width=None if sys.stdout.isatty() else 190)
    for at, rows in found.items():
        if rows:
            shown, fine = report.table(rows, at)
            kept &= fine
            wide.print(shown)
    if left_out:
        say(f"there was no time for: {', '.join(left_out)}")
    if output:
        figures.keep(
            output, found, {"rounds": effort.rounds, "patience": effort.patience, "left_out": left_out}
        )
    if docs:
        report.into_docs(found, _how(effort, round_trips))
    if broken := running.failures(found):
        raise click.ClickException("\n".join(broken))
    if strict and not kept:
        sys.exit(1)


def _servers(source: Path, work: Path, wanted: list[str], round_trip: float, cached: bool) -> running.Peers:
    return everything(source, work, cached=cached, round_trip=round_trip, only=wanted)


if __name__ == "__main__":
    main()

"""``python -m benchmarks.security``: what rules, limits, audit and all of them together cost, against none of them.

One server a variant, all of them on the same host and at the same time; a mount of each without caches, so that
every system call is a request; variants take turns.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from .mounts import workplace
from .peers import wsfuse, wsfuse_server

CALLS: Final = 300
FILES: Final = 50
#: Operations a second with everything on, as a part of those with everything off.
ASKED: Final = 0.85

_NONE: Final = 'c.WsFuse.audit = "off"\n'
_RULES: Final = "".join(
    f"c.WsFuse.rules.append({rule!r})\n"
    for rule in (
        "deny write /raw/**",
        "deny all *.key",
        "deny delete /results/",
        "allow read,write /raw/incoming/**",
        "deny execute *.sh",
        "allow all /tmp/",
        "deny read /private/**",
        "allow read /private/public/**",
    )
)
_EVERY: Final = dict.fromkeys(("metadata", "read", "write", "delete", "bytes_in", "bytes_out"), 1000000000.0)
_LIMITS: Final = f"c.WsFuse.limits = {_EVERY}\nc.WsFuse.session_limits = {_EVERY}\n"
_AUDIT: Final = 'c.WsFuse.audit = "all"\n'

VARIANTS: Final = {
    "off": _NONE,
    "rules": _NONE + _RULES,
    "limits": _NONE + _LIMITS,
    "audit": _AUDIT,
    "all on": _RULES + _LIMITS + _AUDIT,
}


def fstat(directory: Path) -> None:
    """CALLS times fstat(2) on one open file."""
    fd = os.open(directory / "file0", os.O_RDONLY)
    try:
        for _ in range(CALLS):
            os.fstat(fd)
    finally:
        os.close(fd)


def stat(directory: Path) -> None:
    """stat(2) by name, CALLS times."""
    names = [directory / f"file{number}" for number in range(FILES)]
    for number in range(CALLS):
        os.stat(names[number % FILES])


def read(directory: Path) -> None:
    """CALLS reads of 4 KiB."""
    fd = os.open(directory / "file0", os.O_RDONLY | os.O_DIRECT)
    try:
        for number in range(CALLS):
            os.pread(fd, 4096, 4096 * (number % 16))
    finally:
        os.close(fd)


def open_close(directory: Path) -> None:
    """CALLS / 3 times open and close."""
    for number in range(CALLS // 3):
        os.close(os.open(directory / f"file{number % FILES}", os.O_RDONLY))


def write_files(directory: Path) -> None:
    """CALLS / 15 files made, written, renamed and removed."""
    for number in range(CALLS // 15):
        path = directory / f"new{number}"
        path.write_bytes(b"x" * 4096)
        path.rename(directory / f"moved{number}")
        os.unlink(directory / f"moved{number}")


WORKLOADS: Final[tuple[Callable[[Path], None], ...]] = (fstat, stat, read, open_close, write_files)


@click.command()
@click.option("--rounds", default=40, show_default=True, help="Rounds that count; one more warms up.")
@click.option("--strict", is_flag=True, help="Exit 1 when everything together costs more than it may.")
def main(rounds: int, strict: bool) -> None:
    """Compare operations a second with and without rules, limits and audit."""
    figures: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(workplace())
        mounts = {}
        for number, (variant, config) in enumerate(VARIANTS.items()):
            source = top / f"source{number}"
            source.mkdir()
            for file in range(FILES):
                (source / f"file{file}").write_bytes(os.urandom(1 << 16))
            url, token = stack.enter_context(wsfuse_server(source, top / f"server{number}", config))
            mounts[variant] = stack.enter_context(
                wsfuse(url, token, top / f"mount{number}", transport="direct", cached=False)
            )
        for turn in range(rounds + 1):
            for workload in WORKLOADS:
                # Short turns in another order each time, so that a noisy moment hits all of them alike.
                ahead = turn % len(mounts)
                for variant, path in [*mounts.items()][ahead:] + [*mounts.items()][:ahead]:
                    start = time.perf_counter()
                    workload(path)
                    if turn:
                        taken = time.perf_counter() - start
                        figures.setdefault((workload.__name__, variant), []).append(taken)
    table = Table(title="operations a second against everything off (medians)")
    for heading in ("workload", *VARIANTS, "asked", "kept"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    kept = True
    for workload in WORKLOADS:
        medians = {v: statistics.median(figures[workload.__name__, v]) for v in VARIANTS}
        ratios = {variant: medians["off"] / seconds for variant, seconds in medians.items()}
        fine = ratios["all on"] >= ASKED
        kept &= fine
        cells = [f"{ratio:.2f}" for ratio in ratios.values()]
        table.add_row(workload.__name__, *cells, f">= {ASKED:.2f}", "yes" if fine else "no")
    Console(width=120).print(table)
    if strict and not kept:
        sys.exit(1)


if __name__ == "__main__":
    main()

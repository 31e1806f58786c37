"""What was measured, and how it compares with what was asked."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .workloads import WORKLOADS, Workload

LOCAL: Final = "local"
SSHFS: Final = "sshfs"
#: Both have to keep what is asked.
OURS: Final = ("wsfuse direct", "wsfuse relay")
#: At no distance, nothing may take longer than this part of what sshfs takes.
NEAR: Final = 0.7


@dataclass
class Result:
    """One row of one peer: ``seconds`` of each round. ``cut``: a round was ended after so long, and would have taken
    longer. ``failed``: why there is nothing, or nothing more."""

    seconds: list[float] = field(default_factory=list)
    cut: bool = False
    failed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


#: Of one round trip: row -> peer -> result.
Figures = dict[str, dict[str, Result]]


def milliseconds(round_trip: float) -> str:
    """How a round trip of so many seconds is called."""
    return f"{1000 * round_trip:g}"


@dataclass(frozen=True)
class Ratio:
    """How many times longer one result takes than another. ``sign``: ``<`` or ``>`` where a cut made it a bound."""

    value: float
    sign: str = ""

    def __str__(self) -> str:
        return f"{self.sign}{self.value:.{0 if self.value >= 100 else 2}{'f' if self.value >= 100 else 'g'}}"


def ratio(result: Result, base: Result | None) -> Ratio | None:
    """None if one of them has no figure, or both were cut: then nothing is known."""
    if base is None or not result.seconds or not base.seconds or (result.cut and base.cut):
        return None
    return Ratio(result.median / base.median, ">" if result.cut else "<" if base.cut else "")


def limits_of(row: str, at: str) -> Iterator[tuple[str, float, Workload]]:
    """What is asked of *row* at a round trip of *at* milliseconds: the peer to compare with, the greatest ratio."""
    for workload in WORKLOADS:
        if row not in workload.rows:
            continue
        if at == "0":
            yield SSHFS, NEAR, workload
        if at == "20" and row in workload.far:
            yield SSHFS, workload.far[row], workload
        if row in workload.local and at in ("0", "20"):
            yield LOCAL, workload.local[row][at == "0"], workload


@dataclass(frozen=True)
class Verdict:
    """What is asked, how it is kept, both in words; ``kept`` is False only for what is promised today. ``open``: whom
    we are compared with was cut too early to tell."""

    asked: str = ""
    answer: str = ""
    kept: bool = True


def verdict(row: str, found: dict[str, Result], at: str) -> Verdict:
    """Hold all our transports against all that is asked of *row*."""
    asked, answers, kept, words = [], [], True, set[str]()
    for base, limit, workload in limits_of(row, at):
        later = workload.later and at != "0"
        asked.append(f"{limit:g} x {base}" + (" later" if later else ""))
        over = []
        for peer in OURS:
            result, name = found.get(peer), peer.split()[-1]
            if result is None:
                continue
            against = ratio(result, found.get(base))
            if result.failed:
                over.append(f"{name} failed")
                words.add("no")
                kept = False
            elif against is None:
                continue
            elif against.value <= limit and not result.cut:
                words.add("yes")  # also where the base was cut: it would have taken longer still
            else:
                over.append(f"{name} {against}")
                words.add("open" if against.sign == "<" else "not yet" if later else "no")
                kept &= later or against.sign == "<"
        if over:
            answers.append(", ".join(over))
    word = next((word for word in ("no", "not yet", "open", "yes") if word in words), "")
    return Verdict("; ".join(asked), f"{word}: {'; '.join(answers)}" if answers else word, kept)


def keep(path: Path, found: dict[str, Figures], options: dict[str, Any]) -> None:
    """Write everything into a file of JSON, with what one has to know of the machine and of the run."""
    told = {
        "machine": {
            "system": platform.platform(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "python": platform.python_version(),
        },
        "options": options,
        "round_trips": {
            at: {
                row: {peer: vars(result) for peer, result in results.items()}
                for row, results in figures.items()
            }
            for at, figures in found.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")


def kept_figures(path: Path) -> dict[str, Figures]:
    """What :func:`keep` wrote."""
    told = json.loads(path.read_text())["round_trips"]
    return {
        at: {
            row: {peer: Result(**result) for peer, result in results.items()}
            for row, results in figures.items()
        }
        for at, figures in told.items()
    }

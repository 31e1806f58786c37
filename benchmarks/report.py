"""Figures as tables, on the terminal and in the documents."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from .chart import chart
from .figures import LOCAL, SSHFS, Figures, Result, ratio, verdict

DOCS: Final = Path(__file__).parents[1] / "docs"


def _seconds(result: Result) -> str:
    if result.failed:
        return "failed"
    return f"{'>' if result.cut else ''}{result.median:.3g} s"


def _cell(peer: str, results: dict[str, Result], *, both: bool) -> str:
    """Seconds, and in brackets how they compare with sshfs, and with the local directory if *both* are wanted."""
    if peer not in results:
        return ""
    text = _seconds(results[peer])
    if peer in (LOCAL, SSHFS):
        return text
    ratios = [ratio(results[peer], results.get(base)) for base in ((SSHFS, LOCAL) if both else (SSHFS,))]
    said = " | ".join("?" if one is None else str(one) for one in ratios)
    return text if set(ratios) == {None} else f"{text} ({said})"


def _peers(figures: Figures) -> list[str]:
    return list(dict.fromkeys(peer for results in figures.values() for peer in results))


def table(figures: Figures, at: str) -> tuple[Table, bool]:
    """A table of medians with their ratios, and whether everything that is promised is kept."""
    peers = _peers(figures)
    shown = Table(
        title=f"round trip of {at} ms: medians; in brackets the time against sshfs | against the local directory "
        f"({platform.machine()}, {os.cpu_count()} cores)"
    )
    for heading in ("workload", *peers, "asked", "kept"):
        shown.add_column(heading, justify="right" if heading in peers else "left")
    fine = True
    for row, results in figures.items():
        judged = verdict(row, results, at)
        fine &= judged.kept
        cells = [_cell(peer, results, both=True) for peer in peers]
        shown.add_row(row, *cells, judged.asked, judged.answer)
    return shown, fine


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 1) -> str:
    """A table for the documents; columns from *numbers* on are set right."""
    lines = [headings, ["---" if place < numbers else "---:" for place in range(len(headings))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def markdown(found: dict[str, Figures]) -> str:
    """The tables for the documents."""
    parts = []
    for at, figures in found.items():
        if figures:
            peers = _peers(figures)
            rows = [
                [row, *(_cell(peer, results, both=False) for peer in peers)]
                for row, results in figures.items()
            ]
            parts.append(f"**Round trip of {at} ms**\n\n{markdown_table(('workload', *peers), rows)}")
    return "\n".join(parts)


def insert(mark: str, text: str, docs: Path = DOCS) -> None:
    """Replace what is between the marks called *mark* in the document about performance."""
    page = docs / "performance.md"
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no {begin} ... {end}")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def into_docs(found: dict[str, Figures], how: str, docs: Path = DOCS) -> None:
    """Put tables, *how* they were measured, and the chart of the distance that matters most into the documents."""
    insert("figures", f"{how}\n\n{markdown(found)}", docs)
    at = "20" if found.get("20") else next(iter(found))
    picture = docs / "images" / "benchmarks.svg"
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(chart(found[at], at))

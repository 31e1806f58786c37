"""Figures as tables and as a chart."""

from __future__ import annotations

import html
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Final

from rich.table import Table

from .workloads import WORKLOADS, Workload

#: Seconds of each round: row -> peer -> values.
Figures = dict[str, dict[str, list[float]]]
Medians = dict[str, float]

_DOCS: Final = Path(__file__).parents[1] / "docs"
_BEGIN: Final = "<!-- figures: begin -->"
_END: Final = "<!-- figures: end -->"
OURS: Final = ("wsfuse direct", "wsfuse relay")
#: At no distance, nothing may take longer than this part of what sshfs takes.
NEAR: Final = 0.7


def medians(values: dict[str, list[float]]) -> Medians:
    """The median of each peer."""
    return {peer: statistics.median(seconds) for peer, seconds in values.items()}


def limit_of(row: str, milliseconds: str) -> tuple[str, float, Workload] | None:
    """The peer that a row is compared with, and the greatest ratio that is accepted; None if nothing is asked."""
    for workload in WORKLOADS:
        if row in workload.local and milliseconds in ("0", "20"):
            return "local", workload.local[row][milliseconds == "0"], workload
        if row in workload.far:
            if milliseconds == "20":
                return "sshfs", workload.far[row], workload
            if milliseconds == "0":
                return "sshfs", NEAR, workload
    return ("sshfs", NEAR, WORKLOADS[0]) if milliseconds == "0" else None


def verdict(row: str, found: Medians, milliseconds: str) -> tuple[str, str, bool]:
    """What is asked, whether it is kept (by the quicker of our two ways), and whether that matters."""
    asked = limit_of(row, milliseconds)
    ours = [found[peer] for peer in OURS if peer in found]
    if asked is None or asked[0] not in found or not ours:
        return "", "", True
    peer, limit, workload = asked
    ratio = min(ours) / found[peer]
    kept = ratio <= limit
    words = "yes" if kept else "not yet" if workload.later else "no"
    return f"{limit:g} x {peer}", f"{words} ({ratio:.2g})", kept or workload.later


def _cell(peer: str, seconds: float, found: Medians) -> str:
    text = f"{seconds:.3g} s"
    if peer not in ("local", "sshfs") and "sshfs" in found:
        text += f" ({seconds / found['sshfs']:.2g})"
    return text


def table(figures: Figures, milliseconds: str) -> tuple[Table, bool]:
    """A table of medians with their ratio to sshfs, and whether everything that is promised is kept."""
    peers = list(dict.fromkeys(peer for values in figures.values() for peer in values))
    title = f"{milliseconds} ms round trip; medians, in brackets the time against sshfs"
    shown = Table(title=f"{title} ({platform.machine()}, {os.cpu_count()} cores)")
    for heading in ("workload", *peers, "asked", "kept"):
        shown.add_column(heading, justify="left" if heading == "workload" else "right")
    fine = True
    for row, values in figures.items():
        found = medians(values)
        asked, kept, good = verdict(row, found, milliseconds)
        fine &= good
        cells = [_cell(peer, found[peer], found) if peer in found else "" for peer in peers]
        shown.add_row(row, *cells, asked, kept)
    return shown, fine


def markdown(found: dict[str, Figures]) -> str:
    """The tables for the documents."""
    parts = []
    for milliseconds, figures in found.items():
        peers = list(dict.fromkeys(peer for values in figures.values() for peer in values))
        parts.append(f"**Round trip of {milliseconds} ms**\n")
        parts.append("| workload | " + " | ".join(peers) + " |")
        parts.append("|---|" + "---|" * len(peers))
        for row, values in figures.items():
            middle = medians(values)
            cells = [_cell(peer, middle[peer], middle) if peer in middle else "" for peer in peers]
            parts.append(f"| {row} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def chart(figures: Figures, milliseconds: str) -> str:
    """An SVG of the medians: a bar for each peer, on a scale on which each step is ten times the one before."""
    rows = {row: medians(values) for row, values in figures.items()}
    peers = [peer for peer in ("sshfs", *OURS, "local") if any(peer in found for found in rows.values())]
    every = [seconds for found in rows.values() for seconds in found.values()]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    left, width, bar, gap = 250, 520, 7, 10
    height = len(rows) * (bar * len(peers) + gap) + 70
    colours = {"sshfs": "#9e9e9e", OURS[0]: "#f37726", OURS[1]: "#f9b27c", "local": "#4e9a9a"}

    def x(seconds: float) -> float:
        return left + (math.log10(seconds) - low) / (high - low) * width

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" font-family="sans-serif" '
        f'font-size="11" fill="currentColor" color="#888" role="img">',
        f"<title>Seconds at a round trip of {html.escape(milliseconds)} ms, on a logarithmic scale</title>",
    ]
    for place, peer in enumerate(peers):
        out.append(f'<rect x="{left + 130 * place}" y="8" width="10" height="10" fill="{colours[peer]}"/>')
        out.append(f'<text x="{left + 130 * place + 15}" y="17">{html.escape(peer)}</text>')
    for power in range(low, high + 1):
        at = x(10.0**power)
        out.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="28" y2="{height - 25}" stroke="currentColor" stroke-opacity="0.3"/>'
        )
        out.append(f'<text x="{at:.1f}" y="{height - 10}" text-anchor="middle">{10.0**power:g} s</text>')
    y = 34
    for row, found in rows.items():
        middle = y + bar * len(peers) / 2 + 4
        out.append(f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{html.escape(row)}</text>')
        for peer in peers:
            if peer in found:
                length = max(x(found[peer]) - left, 1)
                out.append(
                    f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 1}" fill="{colours[peer]}"/>'
                )
            y += bar
        y += gap
    out.append("</svg>\n")
    return "\n".join(out)


def into_docs(found: dict[str, Figures]) -> None:
    """Replace the figures in the document about performance, and the chart of the distance that matters most."""
    page = _DOCS / "performance.md"
    text = page.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{markdown(found)}\n{_END}{after}")
    milliseconds = "20" if "20" in found else next(iter(found))
    picture = _DOCS / "images" / "benchmarks.svg"
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(chart(found[milliseconds], milliseconds))

"""Figures as a picture: an SVG that depends on nothing but them."""

from __future__ import annotations

import html
import math
from typing import Final

from .figures import LOCAL, OURS, SSHFS, Figures

#: Chosen to be told apart on white, on black, and by who sees no red or green.
COLOURS: Final = {
    SSHFS: "#8a8a8a",
    "rclone": "#b8a038",
    OURS[0]: "#e46e2e",
    OURS[1]: "#f9b27c",
    LOCAL: "#3f8f8f",
}
_LEFT: Final = 250  # of the bars; names are before
_WIDTH: Final = 520
_BAR: Final = 7
_GAP: Final = 10


def chart(figures: Figures, at: str) -> str:
    """Medians at a round trip of *at* milliseconds: a bar for each peer, on a scale on which each step is ten times the
    one before. A bar of what was cut off ends in an arrow."""
    rows = {
        row: {peer: result for peer, result in results.items() if result.seconds}
        for row, results in figures.items()
    }
    rows = {row: results for row, results in rows.items() if results}
    peers = [peer for peer in COLOURS if any(peer in results for results in rows.values())]
    every = [result.median for results in rows.values() for result in results.values()]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    high = max(high, low + 1)
    height = len(rows) * (_BAR * len(peers) + _GAP) + 70

    def x(seconds: float) -> float:
        return _LEFT + (math.log10(seconds) - low) / (high - low) * _WIDTH

    title = f"Seconds at a round trip of {at} ms, on a logarithmic scale; shorter is better"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 60} {height}" '
        'font-family="sans-serif" font-size="11" fill="currentColor" color="#888" role="img">',
        f"<title>{html.escape(title)}</title>",
    ]
    for place, peer in enumerate(peers):
        left = _LEFT + 105 * place
        out.append(f'<rect x="{left}" y="8" width="10" height="10" fill="{COLOURS[peer]}"/>')
        out.append(f'<text x="{left + 15}" y="17">{html.escape(peer)}</text>')
    for power in range(low, high + 1):
        mark = f"{x(10.0**power):.1f}"
        out.append(
            f'<line x1="{mark}" x2="{mark}" y1="28" y2="{height - 25}" stroke="currentColor" stroke-opacity="0.3"/>'
        )
        out.append(f'<text x="{mark}" y="{height - 10}" text-anchor="middle">{10.0**power:g} s</text>')
    y = 34
    for row, results in rows.items():
        middle = y + _BAR * len(peers) / 2 + 4
        out.append(f'<text x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end">{html.escape(row)}</text>')
        for peer in peers:
            if peer in results:
                result, colour = results[peer], COLOURS[peer]
                end, tall = max(x(result.median), _LEFT + 1), _BAR - 1
                said = f"{row}, {peer}: {'more than ' if result.cut else ''}{result.median:.3g} s"
                out.append(
                    f'<rect class="bar" x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="{tall}" '
                    f'fill="{colour}"><title>{html.escape(said)}</title></rect>'
                )
                if result.cut:
                    out.append(
                        f'<path d="M{end + 2:.1f} {y}l5 {tall / 2:g}l-5 {tall / 2:g}z" fill="{colour}"/>'
                    )
            y += _BAR
        y += _GAP
    out.append("</svg>\n")
    return "\n".join(out)

"""Results of commands: one object that is text on a terminal, a table in a notebook, and data for programs."""

from __future__ import annotations

import html
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

#: How a line is meant: "" for plain, or one of these.
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "hint": "dim", "title": "bold"}
_COLOURS = {
    "ok": "var(--jp-success-color1, #388e3c)",
    "warn": "var(--jp-warn-color1, #f57c00)",
    "fail": "var(--jp-error-color1, #d32f2f)",
    "hint": "var(--jp-ui-font-color2, #666)",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text with a style of :data:`STYLES`."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; cells are strings."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


def _rich(block: Line | Grid) -> Text | Table:
    if isinstance(block, Line):
        return Text(block.text, style=STYLES.get(block.style, ""))
    table = Table(*block.headers, box=None, pad_edge=False, header_style="bold")
    for row in block.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


@dataclass
class Report:
    """What a command found or did. ``data`` is what ``--json`` prints; ``ok`` False: the command failed."""

    data: Any
    blocks: list[Line | Grid] = field(default_factory=list)
    ok: bool = True

    def line(self, text: str, style: str = "") -> Report:
        """Add a line; returns the report."""
        self.blocks.append(Line(text, style))
        return self

    def grid(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Report:
        """Add a table; returns the report."""
        self.blocks.append(Grid(headers, rows))
        return self

    def print(self, console: Console) -> None:
        """To a terminal, or a file that pretends to be one."""
        for block in self.blocks:
            console.print(_rich(block), soft_wrap=isinstance(block, Line))

    def renderable(self) -> Group:
        """For what draws on a terminal by itself."""
        return Group(*map(_rich, self.blocks))

    def __str__(self) -> str:
        out = io.StringIO()
        self.print(Console(file=out, width=200, color_system=None))
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    __repr__ = __str__

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        parts = []
        for block in self.blocks:
            if isinstance(block, Line):
                weight = "font-weight:bold;" if block.style == "title" else ""
                style = f"{weight}color:{_COLOURS.get(block.style, 'inherit')};white-space:pre-wrap"
                parts.append(f'<div style="{style}">{html.escape(block.text)}</div>')
                continue
            head = "".join(f"<th style='text-align:left'>{html.escape(cell)}</th>" for cell in block.headers)
            body = "".join(
                "<tr>"
                + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
                + "</tr>"
                for row in block.rows
            )
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        return "".join(parts)


def console(stderr: bool = False) -> Console:
    """The terminal; where there is none, lines are long enough for paths."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=200)


def ago(since: float | None) -> str:
    """How long ago a time (seconds since the epoch) was, in words."""
    if not since:
        return "-"
    return duration(time.time() - since)


def duration(seconds: float) -> str:
    """A duration with one unit: ``40 s``, ``3 min``, ``5 h``, ``2 d``."""
    seconds = max(seconds, 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def seconds(number: float) -> str:
    """A measured time with three digits: ``4.13 s``, ``213 ms``, ``0.052 ms``."""
    if number >= 100:
        return f"{number:.0f} s"
    return f"{number:.3g} s" if number >= 1 else f"{milliseconds(number)} ms"


def milliseconds(number: float) -> str:
    """Seconds as milliseconds without the unit, as precise as can be read."""
    thousand = 1e3 * number
    return f"{thousand:.3f}" if thousand < 10 else f"{thousand:.1f}" if thousand < 1000 else f"{thousand:.0f}"


def printable(name: str) -> str:
    """*name* on one line, with whatever a terminal would act upon written as an escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name
    )


def size(number: float) -> str:
    """A number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"

"""What ranges of POSIX locks of several owners mean to each other."""

from __future__ import annotations

from jupyter_wsfuse.protocol.ranges import Span


def conflict(spans: list[Span], start: int, end: int, type: str) -> Span | None:
    """The first of another owner's *spans* that forbids a lock of *type* on ``[start, end]``."""
    for span in spans:
        if span.start <= end and start <= span.end and (type == "w" or span.type == "w"):
            return span
    return None


def uncovered(start: int, end: int, others: list[Span]) -> list[tuple[int, int]]:
    """The parts of ``[start, end]`` that no span of *others* (any order, may overlap) touches."""
    gaps = []
    for span in sorted(others):
        if span.end < start:
            continue
        if span.start > end:
            break
        if span.start > start:
            gaps.append((start, span.start - 1))
        start = span.end + 1
    if start <= end:
        gaps.append((start, end))
    return gaps

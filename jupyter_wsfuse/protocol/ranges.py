"""Byte ranges of POSIX locks: what one owner holds on one file, as fcntl(2) has it."""

from __future__ import annotations

from typing import Final, NamedTuple

#: The last offset there is; a span that ends here reaches "to the end of the file", however far that grows.
LAST: Final = 2**63 - 1


class Span(NamedTuple):
    """``[start, end]`` inclusive, ``type`` "r" or "w", ``pid`` as the client gave it."""

    start: int
    end: int
    type: str
    pid: int


def assign(spans: list[Span], start: int, end: int, type: str, pid: int) -> list[Span]:
    """*spans* (sorted, disjoint) after the owner set ``[start, end]`` to *type* ("u": unlocked).

    Splits what is cut through and merges neighbours of equal type.
    """
    result: list[Span] = []
    for span in spans:
        if span.start < start:
            result.append(span._replace(end=min(span.end, start - 1)))
        if span.end > end:
            result.append(span._replace(start=max(span.start, end + 1)))
    if type != "u":
        result.append(Span(start, end, type, pid))
    result.sort()
    merged: list[Span] = []
    for span in result:
        if merged and merged[-1].type == span.type and merged[-1].end + 1 == span.start:
            merged[-1] = merged[-1]._replace(end=span.end)
        else:
            merged.append(span)
    return merged

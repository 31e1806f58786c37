"""Searching the log: the newest entries first, in memory that does not grow with it."""

from __future__ import annotations

import heapq
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ..units import parse_duration
from .entries import MAX_LINE, SEAL, SEGMENT, Stream, decode, is_denial, stamp, streams

_BLOCK: Final = 1 << 16  # bytes read at a time
#: Found only by who asks for them.
_INTERNAL: Final = (SEGMENT, SEAL)


def parse_time(text: str, now: float) -> str:
    """A time as the log has it, from ISO 8601 (local unless it says otherwise) or an age like ``2h``.

    *now* in seconds since the epoch. Raises :class:`ValueError`.
    """
    if not text.strip().isdecimal():  # 20250131 is a day
        try:
            return stamp(int(max(now - parse_duration(text), 0) * 1e9))
        except ValueError:
            pass
    try:
        when = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: it looks like 2025-01-31, 2025-01-31T13:00 or, for how long ago, 90min or 2h"
        ) from None
    return when.replace(tzinfo=None).isoformat(timespec="microseconds") + "000Z"


_WILD: Final = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def glob(pattern: str) -> Callable[[str], bool]:
    """Whether a path matches: ``*``, ``?`` and ``[...]`` stop at slashes, ``**`` does not; what has no slash is any
    name of the path, what matches a folder matches everything in it."""

    def translate(found: re.Match[str]) -> str:
        token = found[0]
        if token[0] == "*":
            return "[^/]*"
        if token == "?":
            return "[^/]"
        if token[0] == "[" and len(token) > 2:
            inside = (
                token[1:-1].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^").replace("&", r"\&")
            )
            return f"(?!/)[{'^' + inside[1:] if inside[0] == '!' else inside}]"
        return re.escape(token)

    parts = [part for part in pattern.split("/") if part]
    if len(parts) == 1 and not pattern.startswith("/"):
        parts.insert(0, "**")
    expression = "".join(
        "(?:[^/]+/)*" if part == "**" else _WILD.sub(translate, part) + "/" for part in parts
    )
    try:
        matches = re.compile(expression, re.DOTALL).match
    except re.error:
        raise ValueError(f"{pattern!r} is no pattern") from None
    return lambda path: matches(path + "/") is not None


@dataclass(frozen=True)
class Filter:
    """Which entries. ``since`` (included) and ``until`` (not) as :func:`stamp` writes them; ``session`` may be
    the beginning of one; ``path`` as :func:`glob` has it. Empty and None: any."""

    since: str = ""
    until: str = ""
    tenant: str = ""
    session: str = ""
    operation: str = ""
    principal: str = ""
    path: str = ""
    success: bool | None = None
    denied: bool = False
    limit: int = 0

    @classmethod
    def parse(cls, given: Mapping[str, str], now: float) -> Filter:
        """From texts, as a command line or URL has them. :class:`ValueError` says what is wrong."""
        unknown = set(given) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"there is no filter {min(unknown)!r}")
        values: dict[str, Any] = dict(given)
        for name in ("since", "until"):
            if values.get(name):
                values[name] = parse_time(values[name], now)
        if "limit" in values and not re.fullmatch("[0-9]{1,12}", values["limit"], re.ASCII):
            raise ValueError(f"limit is a number, 0 for none, not {values['limit']!r}")
        values["limit"] = int(values.get("limit", 0))
        for name in ("success", "denied"):
            if values.setdefault(name, "") not in ("", "true", "false"):
                raise ValueError(f"{name} is true or false, not {values[name]!r}")
        values["success"] = {"true": True, "false": False, "": None}[values["success"]]
        values["denied"] = values["denied"] == "true"
        if values.get("path"):
            glob(values["path"])
        return cls(**values)

    def needles(self) -> list[bytes]:
        """What is in every line that matches."""
        exact = {"operation": self.operation, "principal": self.principal}
        found = [
            f'"{name}":{json.dumps(value)}'.encode()
            for name, value in exact.items()
            if value.isascii() and value.isprintable()
        ]
        found = [needle for needle in found if not needle.endswith(b':""')]
        if self.session.isalnum() and self.session.isascii():
            found.append(b'"session":"' + self.session.encode())
        if self.denied or self.success is False:
            found.append(b'"success":false')
        elif self.success:
            found.append(b'"success":true')
        return found

    def matcher(self) -> Callable[[dict[str, Any]], bool]:
        """Whether an entry is one of them."""
        path = glob(self.path) if self.path else None

        def matches(entry: dict[str, Any]) -> bool:
            time = entry.get("time", "")
            success = entry.get("success")
            if (self.since and time < self.since) or (self.until and time >= self.until):
                return False
            if self.success is not None and success is not self.success:
                return False
            if not self.operation and entry.get("operation") in _INTERNAL:
                return False
            if self.denied and (success or not is_denial(entry)):
                return False
            for name, value in (("operation", self.operation), ("principal", self.principal)):
                if value and entry.get(name, "") != value:
                    return False
            if self.session and not str(entry.get("session", "")).startswith(self.session):
                return False
            if path is not None:
                return any(name in entry and path(entry[name]) for name in ("path", "new_path"))
            return True

        return matches


def _backwards(path: Path) -> Iterator[bytes]:
    """The whole lines of a file from its end, in bounded memory. The file is open only while a block is read."""
    end, rest = os.stat(path).st_size, b""
    whole = False  # a newline follows on ``rest``
    while end and len(rest) <= MAX_LINE:
        start = max(0, end - _BLOCK)
        with open(path, "rb") as file:
            file.seek(start)
            rest, *lines = (file.read(end - start) + rest).split(b"\n")
        end = start
        if lines and not whole:
            lines.pop()  # nothing, or a line that is not finished
            whole = True
        yield from reversed(lines)
    if whole and not end:
        yield rest


def _later(time: str) -> str:
    """An hour later: what was recorded while a log could not be written is in a segment that began afterwards."""
    return stamp(int(datetime.fromisoformat(time).timestamp() + 3600) * 1_000_000_000)


def _entries(stream: Stream, wanted: Filter) -> Iterator[dict[str, Any]]:
    """Matching entries of one stream, the last first."""
    needles, matches = wanted.needles(), wanted.matcher()
    late = _later(wanted.until) if wanted.until else ""
    for _, path in reversed(stream.segments()):
        try:
            with open(path, "rb") as file:
                first = file.readline(MAX_LINE)
            begins = str(decode(first).get("time", "")) if first else ""
            if late and begins >= late:
                continue
            for line in _backwards(path):
                if all(needle in line for needle in needles):
                    try:
                        entry = decode(line)
                    except ValueError:
                        continue  # verify() names it
                    if matches(entry):
                        yield {"tenant": stream.tenant, **entry, "stream": stream.number}
        except FileNotFoundError:
            return  # it expired, and all before it
        except ValueError:
            continue  # not even its first line is whole
        if wanted.since and begins and begins < wanted.since:
            return


def query(directory: Path, wanted: Filter) -> Iterator[dict[str, Any]]:
    """Entries that match, the newest first, in memory that does not grow with the log.

    Each is what its line holds, plus ``stream``. Raises :class:`OSError`.
    """
    chosen = streams(directory, wanted.tenant or None)
    found = heapq.merge(
        *(_entries(stream, wanted) for stream in chosen),
        key=lambda entry: str(entry.get("time", "")),
        reverse=True,
    )
    for count, entry in enumerate(found, 1):
        yield entry
        if count == wanted.limit:
            return

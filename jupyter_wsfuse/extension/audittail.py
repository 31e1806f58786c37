"""What comes to the audit log while somebody looks on: the ends of its files, read on and on.

Nothing that was read is read again, and what did not change is only looked up by name. Blocks; call it in a thread, one
at a time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

from jupyter_wsfuse.auditlog import Stream, decode, streams

#: Bytes of one stream that are read at a time. What is before them is skipped and its lines are counted.
MOST: Final = 1 << 20

_TICK: Final = 50_000_000  # nanoseconds

Entry = dict[str, Any]


class _Open:
    """A stream, and up to where it was read."""

    def __init__(self, stream: Stream, *, from_start: bool) -> None:
        self.stream = stream
        segments = stream.segments()
        self.number, self.at = (segments[0] if from_start else segments[-1])[0] if segments else 0, 0
        if segments and not from_start:
            self.at = _whole(segments[-1][1])
        self.changed = 0  # of the folder, nanoseconds

    def read(self, most: int) -> tuple[list[Entry], int]:
        found: list[Entry] = []
        skipped = 0
        while True:
            after = self._after()  # asked first: a segment that has a successor is complete
            path = self.stream.path / f"{self.number:08d}.jsonl"
            try:
                size = os.stat(path).st_size
            except FileNotFoundError:  # none yet, or it has expired
                size = 0
            if size > self.at:
                entries, missed = self._lines(path, size, most)
                found += entries
                skipped += missed
            if not after:
                return found, skipped
            self.number, self.at = after, 0

    def _lines(self, path: Path, size: int, most: int) -> tuple[list[Entry], int]:
        skipped = 0
        with open(path, "rb") as file:
            file.seek(self.at)
            while size - self.at > most:
                block = file.read(min(most, size - self.at - most))
                if not block:
                    break
                skipped += block.count(b"\n")
                self.at += len(block)
            data = file.read(size - self.at)
        lines = data.split(b"\n")
        self.at += len(data) - len(lines.pop())  # what is not finished is read when it is
        found = []
        for line in lines:
            try:
                entry = decode(line)
            except ValueError:  # the rest of one that was skipped, or one that verify() names
                continue
            found.append({"tenant": self.stream.tenant, **entry, "stream": self.stream.number})
        return found, skipped

    def _after(self) -> int:
        """The next segment; 0: there is none."""
        changed = os.stat(self.stream.path).st_mtime_ns
        if changed == self.changed:
            return 0
        later = [number for number, _ in self.stream.segments() if number > self.number]
        if not later and _settled(changed):
            self.changed = changed
        return later[0] if later else 0


def _settled(mtime: int) -> bool:
    """Whether another change of the folder would show: the clock behind these times has coarse ticks."""
    return time.time_ns() - mtime > _TICK


def _whole(path: Path) -> int:
    """The size of a file up to its last newline."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MOST))
            return size - len(file.read().rpartition(b"\n")[2])
    except OSError:
        return 0


class AuditTail:
    """The log in *directory* from now on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[tuple[str, int], _Open] = {}
        self._seen: dict[Path, int] = {}
        self._look(from_start=False)

    def read(self) -> tuple[list[Entry], int]:
        """What has come since, the oldest first, and how much was skipped because there was too much. Raises
        :class:`OSError`."""
        self._look(from_start=True)
        found: list[Entry] = []
        skipped = 0
        for key, stream in list(self._open.items()):
            try:
                entries, missed = stream.read(MOST)
            except FileNotFoundError:
                del self._open[key]  # the whole of it was removed
                continue
            found += entries
            skipped += missed
        found.sort(key=lambda entry: str(entry.get("time", "")))
        return found, skipped

    def _look(self, *, from_start: bool) -> None:
        """Notice streams that are new."""
        folders = self._folders()
        if folders == self._seen:
            return
        self._seen = folders if all(map(_settled, folders.values())) else {}
        for stream in streams(self._directory) if folders else []:
            key = (stream.tenant, stream.number)
            if key not in self._open:
                try:
                    self._open[key] = _Open(stream, from_start=from_start)
                except FileNotFoundError:
                    continue

    def _folders(self) -> dict[Path, int]:
        found: dict[Path, int] = {}
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.is_dir():
                        found[Path(entry.path)] = entry.stat().st_mtime_ns
        except FileNotFoundError:
            pass  # nothing was ever recorded
        return found

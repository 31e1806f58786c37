"""Real audit logs in a test's own folder, and a clock that does what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_wsfuse.engine.auditfiles import Entry, LogFiles
from jupyter_wsfuse.engine.auditkeys import load_key
from jupyter_wsfuse.engine.tenants import AuditOptions

START = 1_700_000_000_000_000_000  # 2023-11-14T22:13:20Z


@dataclass
class Clock:
    """Nanoseconds since the epoch; each look is a millisecond later."""

    now: int = START

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


@dataclass
class Person:
    """A session, as far as the audit looks at it."""

    id: str = "0123456789abcdef" * 2
    principal: str = "ann"
    address: str = "192.0.2.7"
    client: str = "laptop"
    token_id: str = ""


@dataclass
class Log:
    """The audit folder of a test."""

    directory: Path
    clock: Clock = field(default_factory=Clock)

    @property
    def key(self) -> Any:
        return load_key(self.directory.parent / "audit.key", self.directory)

    def open(self, tenant: str = "t", **options: Any) -> LogFiles:
        return LogFiles(tenant, self.directory, self.key, AuditOptions(**options), self.clock)

    def entry(self, operation: str = "Create", path: str = "a", **values: Any) -> Entry:
        from jupyter_wsfuse.auditlog import stamp

        values = {"success": True, "tenant": "t", "principal": "ann", "session": "0123456789abcdef", **values}
        return Entry(time=stamp(self.clock()), operation=operation, path=path, **values)

    def stream(self, tenant: str = "t", number: int = 0) -> Path:
        return self.directory / tenant / str(number)

    def segment(self, number: int, tenant: str = "t") -> Path:
        return self.stream(tenant) / f"{number:08d}.jsonl"

    def write(self, *counts: int, tenant: str = "t") -> None:
        """A closed log with a segment of so many entries for each of *counts*."""
        files = self.open(tenant)
        for index, count in enumerate(counts):
            if index:
                files.rotate()
            for number in range(count):
                files.append([self.entry(path=f"folder/{index}-{number}.csv")])
        files.close()


def edit(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of a file, which keep their line ends."""
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

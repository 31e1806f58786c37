"""The log of a mount: one private, bounded file, written by the supervisor for itself and its daemon."""

from __future__ import annotations

import logging
import logging.handlers
import os
from io import TextIOWrapper
from pathlib import Path
from typing import Final, cast

#: Bytes of the log file, and how many older ones are kept.
MAX_BYTES: Final = 512 * 1024
BACKUPS: Final = 1

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_daemon = logging.getLogger("wsfuse.daemon.line")


class _Private(logging.handlers.RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

        path, mode = self.baseFilename, self.mode
        return cast(
            TextIOWrapper, open(path, mode, encoding="utf-8", errors="backslashreplace", opener=opener)
        )


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == _daemon.name:
            return record.getMessage()  # has its time and level already
        return super().format(record)


def to_file(path: Path, verbose: bool = False) -> None:
    """Send this process's log to *path*."""
    handler = _Private(path, maxBytes=MAX_BYTES, backupCount=BACKUPS)
    handler.setFormatter(_Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.INFO)


def to_stderr(verbose: bool = False) -> None:
    """Send this process's log to its supervisor."""
    logging.basicConfig(format=FORMAT, level=logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.INFO)


def forward(line: str) -> None:
    """Write what the daemon said, as it is."""
    _daemon.info("%s", line)


def tail(path: Path, lines: int) -> list[str]:
    """The last *lines* lines."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(2 * MAX_BYTES).splitlines()[-lines:]
    except OSError:
        return []

"""Changes that somebody makes and somebody else waits to see.

``python -m benchmarks.changes DIRECTORY`` makes them: it reads lines of ``CHANGE NUMBER``, and answers each with the
moment, on the clock that all processes of a machine share, at which it began the system call that makes the change.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Change:
    """What is done to a file. Numbers count up, and each kind of change takes each number once."""

    name: str

    def make(self, directory: Path, number: int) -> float:
        """Do it; returns when the system call began."""
        if self.name == "made":
            begun = time.monotonic()
            os.close(os.open(directory / f"made{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        elif self.name == "removed":
            begun = time.monotonic()
            os.unlink(directory / f"made{number}")
        elif self.name == "appended to":
            fd = os.open(directory / "log", os.O_WRONLY | os.O_APPEND)
            begun = time.monotonic()
            os.write(fd, b"a line\n")
            os.close(fd)
        else:
            (directory / "fresh").write_text(f"{number}")
            begun = time.monotonic()
            os.replace(directory / "fresh", directory / "state")
        return begun

    def looks(self, directory: Path, number: int) -> object:
        """What a reader sees that the change changes. Asked for again and again, it comes from memory."""
        if self.name in ("made", "removed"):
            return os.path.exists(directory / f"made{number}")
        if self.name == "appended to":
            return os.stat(directory / "log").st_size
        return (directory / "state").read_text()


#: In this order: what is removed was made before.
CHANGES: Final = tuple(Change(name) for name in ("made", "appended to", "replaced", "removed"))


def prepare(directory: Path) -> None:
    """Make the files that are changed."""
    (directory / "log").touch()
    (directory / "state").write_text("nothing")


def main(directory: Path) -> None:
    """Make the changes that standard input asks for."""
    by_name = {change.name: change for change in CHANGES}
    for line in sys.stdin:
        name, _, number = line.strip().rpartition(" ")
        print(repr(by_name[name].make(directory, int(number))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

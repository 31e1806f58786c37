"""Mounts that are taken down whatever happens, and the directory in which all of them lie."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from .processes import interruptible

_PREFIX: Final = "wsfuse-bench-"
_LEFT: Final = re.compile(rf"/{_PREFIX}([0-9]+)-[^/]*/")
_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_MOUNTS: Final = Path("/proc/self/mountinfo")
PATIENCE: Final = 60.0  # seconds for a mount to be taken down by its own program


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mounted() -> dict[str, int]:
    """Where something of FUSE is mounted: path -> number of the connection, which is the minor number of the device.

    Nothing is asked of the mounts: they may be stuck.
    """
    found = {}
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split(" ")
        if fields[fields.index("-") + 1].startswith("fuse."):
            found[_unescaped(fields[4])] = int(fields[2].partition(":")[2])
    return found


def abort(mountpoint: Path) -> bool:
    """Make every call fail that waits for the mount, now and later. False if nothing is there, or we may not."""
    number = mounted().get(str(mountpoint))
    if number is None:
        return False
    try:
        (_CONNECTIONS / str(number) / "abort").write_text("1")
    except OSError:
        return False
    return True


def take_down(mountpoint: Path, command: Sequence[str]) -> None:
    """Unmount by *command* with the mount as its last argument, and by force if that does not do it, which is said."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [*command, mountpoint],
            check=False,
            timeout=PATIENCE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    deadline = time.monotonic() + PATIENCE
    while str(mountpoint) in mounted():
        print(f"{mountpoint} is unmounted by force", file=sys.stderr)
        abort(mountpoint)
        helper = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*helper, mountpoint], check=False, stderr=subprocess.DEVNULL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{mountpoint} cannot be unmounted")


def sweep() -> list[Path]:
    """Take down what a run left behind that was killed. Returns what was."""
    gone = []
    for path in mounted():
        match = _LEFT.search(path)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            take_down(Path(path), ["fusermount3", "-u", "-z"])
            gone.append(Path(path))
    return gone


@contextlib.contextmanager
def workplace(parent: str | None = None) -> Iterator[Path]:
    """A directory for the time of a run: for servers, mounts, and what they serve. Gone afterwards, also when the run
    is interrupted."""
    sweep()
    prefix = f"{_PREFIX}{os.getpid()}-"
    with interruptible(), tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        yield Path(os.path.realpath(name))

"""A process that changes a workspace as fast as it can: ``swapper.py WORKSPACE SHARED OUTSIDE PART``.

Says "ready", begins when it is told to, and goes on until its standard input ends; then it says how often it has
swapped. What it changes it reaches by descriptors that it opened before, so it is not led astray by what it does.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
from collections.abc import Callable

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def swapping(directory: int, one: bytes, other: bytes) -> Callable[[], None]:
    """Exchange two entries, atomically."""
    return lambda: _libc.renameat2(directory, one, directory, other, _RENAME_EXCHANGE)


def flickering(directory: int, name: bytes, targets: list[bytes]) -> Callable[[], None]:
    """Make and remove a symbolic link, each time to another target."""
    state = [0]

    def step() -> None:
        state[0] += 1
        try:
            if state[0] % 2:
                os.symlink(targets[state[0] // 2 % len(targets)], name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
        except OSError:
            pass

    return step


def moving(here: int, there: int, name: bytes) -> Callable[[], None]:
    """Move a directory back and forth between two others."""
    state = [0]

    def step() -> None:
        state[0] ^= 1
        pair = (here, there) if state[0] else (there, here)
        try:
            os.rename(name, name, src_dir_fd=pair[0], dst_dir_fd=pair[1])
        except OSError:
            pass

    return step


def repairing(directories: list[int], names: list[bytes]) -> Callable[[], None]:
    """Put back the files that attackers have removed."""

    def step() -> None:
        for directory in directories:
            for name in names:
                try:
                    os.close(
                        os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, dir_fd=directory)
                    )
                except OSError:
                    pass

    return step


def main() -> None:
    workspace, shared, outside, part = (os.fsencode(argument) for argument in sys.argv[1:])
    here = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)

    def below(name: bytes, start: int = here) -> int:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=start)

    deep, doors = below(b"deep"), [below(b"door"), below(b"door2"), below(b"deep")]
    doors.append(below(b"way", deep))
    there = os.open(shared, os.O_RDONLY | os.O_DIRECTORY)
    steps = {
        b"directories": [
            swapping(here, b"door", b"trap"),
            swapping(deep, b"way", b"trap"),
            swapping(here, b"door2", b"trap2"),
            moving(here, below(b"elsewhere"), b"mover"),
        ],
        b"files": [
            swapping(here, b"leaf", b"leaf-trap"),
            flickering(
                here, b"flicker", [b"../outside/planted", outside + b"/canary", b"door/canary", b"../outside"]
            ),
            swapping(here, b"to-shared", b"to-outside"),
            swapping(there, b"sub", b"escape"),
        ],
    }[part]
    repair = repairing([here, *doors], [b"canary", b"file"])
    waiting = select.poll()
    waiting.register(0, select.POLLIN | select.POLLHUP)
    print("ready", flush=True)
    os.read(0, 1)
    count = 0
    while not waiting.poll(0):
        for _ in range(50):
            for step in steps:
                step()
        count += 50 * len(steps)
        repair()
    print(count, flush=True)


if __name__ == "__main__":
    main()

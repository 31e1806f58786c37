"""Programs that measurements need around them, and that they never leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Final, NoReturn

START_DEADLINE: Final = 30.0  # seconds for a server or a mount to be there
STOP_DEADLINE: Final = 20.0
ROOT: Final = Path(__file__).parents[1]

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def start(
    command: Sequence[object],
    *,
    stdin: int | None = None,
    stdout: int | IO[str] | None = None,
    stderr: int | IO[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """A child away from the terminal, so that Ctrl-C reaches only us, and we end everything in order; if we are killed
    the kernel ends it."""
    return subprocess.Popen(
        [*map(str, command)],
        text=True,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def stop(process: subprocess.Popen[str]) -> None:
    """End it, whatever it does."""
    process.terminate()
    try:
        process.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def end_all(program: str, argument: object) -> None:
    """Kill what runs as *program* with this *argument*, which nobody else can have: a path in a workplace of ours."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else [b""]
            if words[0] == program.encode() and str(argument).encode() in words:
                os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Ends *process* behind the block."""
    try:
        yield process
    finally:
        stop(process)


def wait_until(
    condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None
) -> None:
    """Block until *condition* holds, at most START_DEADLINE seconds; RuntimeError names *what* failed."""
    deadline = time.monotonic() + START_DEADLINE
    while not condition():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not ready after {START_DEADLINE:.0f} s")
        time.sleep(0.02)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, a signal that asks this process to end unwinds it, as Ctrl-C does, instead of ending it on the spot."""

    def unwind(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

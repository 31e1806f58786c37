"""Programs that the tests start, to use a mount as others do."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.fuse.conftest import Mount

HOLD = """
import fcntl, os, sys
file = open(sys.argv[1], "r+b")
(fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
WAIT = """
import fcntl, signal, sys
class Alarm(Exception): pass
def alarm(*_): raise Alarm
signal.signal(signal.SIGUSR1, alarm)
file = open(sys.argv[1], "r+b")
print("waiting", flush=True)
try:
    (fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
except Alarm:
    print("interrupted", flush=True)
else:
    print("held", flush=True)
"""


def script(text: str, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-S", "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def said(mount: Mount, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await mount.do(process.stdout.readline)).strip()


async def end(mount: Mount, *processes: subprocess.Popen[str]) -> None:
    for process in processes:
        await mount.do(process.communicate)


async def fails(
    mount: Mount, number: int, function: Callable[..., Any], *arguments: Any, **named: Any
) -> None:
    with pytest.raises(OSError) as info:
        await mount.do(function, *arguments, **named)
    assert errno.errorcode[info.value.errno or 0] == errno.errorcode[number]

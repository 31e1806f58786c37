"""Commands as an ordinary user who can do nothing that root could, for tests that run as root.

The machine's directories may keep such a user from Python itself (a root's ``~/.pyenv``) and from ``/dev/fuse``, and
must stay as they are. So his commands run in a mount namespace of their own, where what he needs is reachable and the
device is open to everybody, as it is on a usual machine. Mounts that he makes are seen in that namespace only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534

# Runs in the new namespace: argv is an empty staging directory that is not below a closed one, then what must be
# reachable. A directory above one of these that is closed is covered by an open one that has nothing but these in it.
_SETUP = """
import os, stat, subprocess, sys

def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)

stage, *wanted = sys.argv[1:]
closed = {}
for path in wanted:
    at = "/"
    for part in path.strip("/").split("/"):
        at = os.path.join(at, part)
        if not os.stat(at).st_mode & stat.S_IXOTH:
            closed.setdefault(at, []).append(path)
            break
for number, (directory, paths) in enumerate(closed.items()):
    for index, path in enumerate(paths):
        kept = f"{stage}/{number}.{index}"
        os.mkdir(kept)
        mount("--bind", path, kept)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)
    for index, path in enumerate(paths):
        os.makedirs(path, exist_ok=True)
        mount("--move", f"{stage}/{number}.{index}", path)
if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
    os.mknod(f"{stage}/fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
    os.chmod(f"{stage}/fuse", 0o666)
    mount("--bind", f"{stage}/fuse", "/dev/fuse")
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class OtherUser:
    """``command`` goes in front of what is to be run as that user."""

    command: tuple[str, ...]

    def run(
        self, *arguments: str, env: dict[str, str], check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; with *check*, AssertionError with the output if it fails."""
        done = subprocess.run(
            [*self.command, *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}{done.stdout}"
        return done


@contextlib.contextmanager
def other_user(reachable: Sequence[Path], uid: int = NOBODY) -> Iterator[OtherUser]:
    """A user who can reach *reachable*, and Python with its packages. His processes are the caller's to end."""
    stage = tempfile.mkdtemp()
    wanted = {os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, *map(str, reachable))}
    keeper = subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            sys.executable,
            "-c",
            _SETUP,
            stage,
            *sorted(wanted),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    with keeper.stdin, keeper.stdout:
        assert keeper.stdout.readline() == "ready\n"
        enter = ("nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", "--wd=/")
        drop = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all")
        try:
            yield OtherUser((*enter, *drop, "--"))
        finally:
            keeper.stdin.close()
            keeper.wait()
            shutil.rmtree(stage)

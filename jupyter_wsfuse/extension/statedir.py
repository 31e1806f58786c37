"""Where the engines of one server leave what their successors need."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path


class StateDir:
    """A private directory ``wsfuse-<pid>-<random>`` for what engines leave to their successors.

    It is locked as long as its server lives, whatever host or container that is on: one that can be locked is
    the remains of a server that was killed, and is removed.
    """

    def __init__(self, runtime_dir: Path) -> None:
        runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in runtime_dir.glob("wsfuse-*"):
            self._remove_if_stale(stale)
        name = f"wsfuse-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = runtime_dir / name
        young = runtime_dir / f".{name}"  # nobody takes it for stale before it is locked
        young.mkdir(mode=0o700)
        self._lock = os.open(young / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a network file system without locks: it is then never cleaned up
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        young.rename(self.path)

    def remove(self) -> None:
        """At a clean stop. May be called once."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    @staticmethod
    def _remove_if_stale(path: Path) -> None:
        try:
            lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return  # not one of these, or being made just now
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # in use
        finally:
            os.close(lock)

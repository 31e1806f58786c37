"""An ordinary user in a thread of this process, so that what he covers is measured as everything else is.

The thread has a mount namespace of its own, in which ``/dev/fuse`` is open to everybody as on a usual machine (this
one may keep it for root), and no privileges left. What he mounts is seen by him alone, and gone with him. Programs
that he starts are in the same position.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from tests.helpers.unprivileged import _SETGROUPS, _SETRESGID, _SETRESUID, NOBODY, _call

T = TypeVar("T")

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Nobody:
    """``run`` a function as that user, always in the same thread. Only root can become him."""

    def __init__(self) -> None:
        self._stage = tempfile.mkdtemp(prefix="wsfuse-nobody-")
        self._thread = ThreadPoolExecutor(1, initializer=self._become)
        self.uid = NOBODY

    def _become(self) -> None:
        node = f"{self._stage}/fuse"
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(10, 229))
        os.chmod(node, 0o666)
        _check(_libc.unshare(_CLONE_NEWNS))
        _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
        _check(_libc.mount(node.encode(), b"/dev/fuse", None, ctypes.c_ulong(_MS_BIND), None))
        _call(_SETGROUPS, 0, 0)
        _call(_SETRESGID, NOBODY, NOBODY, NOBODY)
        _call(_SETRESUID, NOBODY, NOBODY, NOBODY)

    def run(self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result()

    def __enter__(self) -> Nobody:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        shutil.rmtree(self._stage)

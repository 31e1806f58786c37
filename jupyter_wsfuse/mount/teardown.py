"""Taking a mount down so that it is always gone afterwards, in four steps of rising force.

``umount`` alone loses nothing, but fails while a file is open. A lazy unmount takes the name away at once and lets who
has files open finish. Aborting the connection ends whatever still waits, with an error for those who wait. Every step
runs in a thread of its own with a time limit: each of them can get stuck behind a server that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Literal, TypeVar

from jupyter_wsfuse.errors import MountError
from jupyter_wsfuse.fuse import device
from jupyter_wsfuse.mount import registry

log = logging.getLogger("wsfuse.unmount")

T = TypeVar("T")
Outcome = Literal["clean", "lazy", "aborted"]

#: Seconds for one system call or one run of fusermount3.
STEP_TIMEOUT = 5.0


async def in_thread(function: Callable[[], T], timeout: float) -> T:
    """Run a blocking *function*. After *timeout* seconds it is left behind in its thread: :class:`TimeoutError`.

    Unlike the executor's, such a thread keeps neither the loop nor the process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, exc: BaseException | None) -> None:
        if not future.done():
            future.set_exception(exc) if exc is not None else future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended without us
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, daemon=True, name=getattr(function, "__name__", "blocking")).start()
    return await asyncio.wait_for(future, timeout)


def users_of(mountpoint: str) -> list[tuple[int, str]]:
    """Process id and name of who has a file of the mount open or stands in it, as far as we may see.

    Reads the links in ``/proc``, which the kernel answers without asking the mount.
    """
    inside = mountpoint.rstrip("/") + "/"

    def uses(pid: str) -> bool:
        links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
        with contextlib.suppress(OSError):
            links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
        for link in links:
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target == mountpoint or target.startswith(inside):
                    return True
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
            return any(inside in line for line in maps)
        return False

    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if uses(pid):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", errors="replace") as name:
                found.append((int(pid), name.read().strip()))
    return sorted(found)


def _mounted(mountpoint: str, minor: int) -> bool:
    return any(mount.path == mountpoint and mount.minor == minor for mount in registry.kernel_mounts())


async def _try(what: str, function: Callable[[], None], timeout: float) -> None:
    try:
        await in_thread(function, timeout)
    except TimeoutError:
        log.info("%s did not return within %g s", what, timeout)
    except (MountError, OSError) as exc:
        log.info("%s: %s", what, exc)


async def detach(mountpoint: str, minor: int, *, step: float = STEP_TIMEOUT) -> Outcome:
    """Take the mount out of the name space, forcing it as far as it takes. Raises :class:`MountError` if it stays.

    Returns ``lazy`` if files are still open: whoever serves the connection must go on for a while.
    """
    await _try("umount", lambda: device.unmount(mountpoint), step)
    if not _mounted(mountpoint, minor):
        return "clean"
    await _try("umount --lazy", lambda: device.unmount(mountpoint, lazy=True), step)
    if not _mounted(mountpoint, minor):
        return "lazy"
    await _try("abort", lambda: device.abort(minor), step)
    await _try("umount --lazy after abort", lambda: device.unmount(mountpoint, lazy=True), step)
    if not _mounted(mountpoint, minor):
        return "aborted"
    raise MountError(f"{mountpoint} cannot be unmounted; as root: umount --lazy {mountpoint}")


async def abort(minor: int) -> None:
    """End the connection: every waiting and later operation on it fails."""
    await _try("abort", lambda: device.abort(minor), STEP_TIMEOUT)

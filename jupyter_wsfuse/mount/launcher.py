"""What the command line and the magic call: start a mount, ask it, take it down. Blocking, with deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_wsfuse.errors import MountError, NotMountedError
from jupyter_wsfuse.fuse import device
from jupyter_wsfuse.mount import registry, teardown
from jupyter_wsfuse.mount.config import MountConfig, child_environment
from jupyter_wsfuse.mount.control import Client, error_from_json
from jupyter_wsfuse.mount.registry import Entry

#: Seconds that a mount may take to come up; the supervisor's own limits are tighter.
START_TIMEOUT = 100.0
#: Seconds that an orderly unmount may take: sync, files still open, processes.
UNMOUNT_TIMEOUT = 60.0

#: Seconds that a mount which could not be made may take to clear away what it had set up.
CLEAR_TIMEOUT = 20.0

#: Seconds for an answer that a healthy supervisor gives at once.
ANSWER_TIMEOUT = 5.0

# The supervisor must be nobody's child: neither a zombie of a kernel that forgets it, nor waited for by a shell.
_DETACH = 'exec 3<&0; "$@" <&3 3<&- & echo $!'


def start(config: MountConfig) -> dict[str, Any]:
    """Mount, and return when files can be used: ``{"pid", "log"}``.

    The processes that serve the mount are detached from this one. Raises the :class:`WsFuseError` that tells why not;
    then nothing is left behind.
    """
    front = subprocess.Popen(
        ["/bin/sh", "-c", _DETACH, "sh", sys.executable, "-P", "-m", "jupyter_wsfuse.mount.supervisor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=child_environment(),
        start_new_session=True,
    )
    assert front.stdin is not None
    assert front.stdout is not None
    said: list[str] = []
    pid = 0
    try:
        front.stdin.write(config.to_json().encode())
        front.stdin.close()
        for line in _lines(front.stdout.fileno(), time.monotonic() + START_TIMEOUT):
            if not pid and line.isdigit():
                pid = int(line)
                continue
            message = _message(line)
            if message is None:
                said.append(line)
            elif message["event"] == "ready":
                return message
            else:
                raise error_from_json(message["error"])
    except BaseException:
        if pid:
            _end(pid)
        raise
    finally:
        front.stdout.close()
        front.wait()
    raise MountError("the mount process ended at once: " + (" ".join(said[-3:]) or "it said nothing"))


def _end(pid: int) -> None:
    """Let a supervisor take down what it has set up so far, and see it gone: the caller may try again at once."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            select.select([process], [], [], CLEAR_TIMEOUT)
        finally:
            os.close(process)


def _message(line: str) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and "event" in message else None


def _lines(fd: int, end: float) -> Iterator[str]:
    """Lines from *fd* until its end. Raises :class:`MountError` when it is later than *end* (monotonic seconds)."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while selector.select(max(end - time.monotonic(), 0)):
            data = os.read(fd, 1 << 16)
            if not data:
                if pending:
                    yield pending.decode(errors="replace")
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
    raise MountError("the mount did not come up in time")


# --- asking ----------------------------------------------------------------------------------------------------


def ask(entry: Entry, op: str, *, timeout: float = 10.0, **arguments: Any) -> Any:
    """One request to the mount's supervisor. Raises :class:`NotMountedError` if there is none."""
    with Client(entry.socket) as client:
        return client.call(op, timeout=timeout, **arguments)


def status(entry: Entry) -> dict[str, Any]:
    """What the mount says of itself, or what is known of one that does not answer."""
    try:
        return dict(ask(entry, "status", timeout=5.0))
    except MountError as exc:
        state = (
            "dead"
            if not entry.alive
            else "unsupervised"
            if isinstance(exc, NotMountedError)
            else "not answering"
        )
        return {**entry.info, "state": state, "daemon": {}}


def mounts() -> list[Entry]:
    """All mounts of this user that are, or seem to be, there. Entries of what is wholly gone are removed."""
    mounted = {mount.path for mount in registry.kernel_mounts()}
    found = []
    for entry in registry.entries():
        if entry.alive or entry.mountpoint in mounted:
            found.append(entry)
        else:
            _forget(entry)
    return sorted(found, key=lambda entry: entry.mountpoint)


def _forget(entry: Entry, patience: float = 0.0) -> None:
    """Remove the entry of a mount whose processes are gone, or are just going: then within *patience* seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            registry.Claim(entry.mountpoint, entry.directory).release()
            return
        except (MountError, OSError):
            if time.monotonic() >= end:
                return
            time.sleep(0.02)


def choose(mountpoint: str | None) -> Entry:
    """The mount that is meant: the one on *mountpoint*, or the only one. Raises :class:`NotMountedError`."""
    if mountpoint is not None:
        path = registry.resolve_mountpoint(mountpoint)
        for entry in mounts():
            if entry.mountpoint == path:
                return entry
        if registry.kernel_mount(path) is not None:  # made with another runtime directory, or by another user
            return Entry(Path("/nonexistent"), path, False, {"mountpoint": path})
        raise NotMountedError(f"nothing of wsfuse is mounted on {path}; `wsfuse status` lists what is")
    found = mounts()
    if not found:
        raise NotMountedError("nothing is mounted; `wsfuse mount URL DIR` mounts a workspace")
    if len(found) > 1:
        paths = ", ".join(entry.mountpoint for entry in found)
        raise MountError(f"several workspaces are mounted, which one is meant? {paths}")
    return found[0]


# --- taking down -----------------------------------------------------------------------------------------------


def unmount(entry: Entry, *, force: bool = False) -> dict[str, Any]:
    """Take a mount down; returns ``{"outcome": "clean"|"lazy"|"aborted", "users": [...], "warnings": [...]}``.

    Works whatever is dead: server, network, daemon, supervisor. Raises :class:`MountError` if it stays all the same.
    """
    try:
        with Client(entry.socket) as client:
            client.call(
                "log", timeout=ANSWER_TIMEOUT, lines=0
            )  # a supervisor that is stuck is not waited for long
            result = dict(client.call("unmount", timeout=UNMOUNT_TIMEOUT, force=force))
            client.wait_closed(5.0)
    except MountError as exc:
        if not isinstance(exc, NotMountedError):  # there is a supervisor, and it is stuck
            _kill(entry)
        result = asyncio.run(_unmount_alone(entry))
        _forget(entry, patience=5.0)
    if "error" in result:
        raise MountError(str(result["error"]))
    return result


async def _unmount_alone(entry: Entry) -> dict[str, Any]:
    mounted = registry.kernel_mount(entry.mountpoint)
    outcome = "clean"
    if mounted is not None:
        outcome = await teardown.detach(entry.mountpoint, mounted.minor)
        if outcome != "clean":
            await teardown.abort(mounted.minor)
            outcome = "aborted"
    return {"outcome": outcome, "users": [], "warnings": []}


def _kill(entry: Entry) -> None:
    pid = entry.info.get("pid")
    with contextlib.suppress(OSError, TypeError), open(f"/proc/{pid}/cmdline", "rb") as command:
        if entry.alive and b"wsfuse" in command.read():
            os.kill(int(str(pid)), signal.SIGKILL)


def abort(entry: Entry) -> None:
    """End the connection to the kernel at once, for tests and for despair."""
    mounted = registry.kernel_mount(entry.mountpoint)
    if mounted is not None:
        with contextlib.suppress(MountError, OSError):
            device.abort(mounted.minor)
        device.unmount(entry.mountpoint, lazy=True)

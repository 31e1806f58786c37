"""What the Jupyter server has done with mounts on its own machine: ``python -m jupyter_wsfuse.mount.steward``.

Started by the server's extension while somebody looks at its panel or acts there, ends with its standard input. Takes
one JSON object a line, ``{"id", "op", ...}``, and answers each with ``{"id", "result"}`` or ``{"id", "error": {"kind",
"message", ...}}``, in the order in which they are done.

============  ======================================================  ==========================================
op            arguments                                               result
============  ======================================================  ==========================================
``look``      ``profile``: with what operations cost                  see :meth:`.Observer.look`
``fuse``                                                              ``{available, reason, advice}``
``mount``     ``url``, ``token``, ``path``, ``read_only``,            ``{id, mountpoint}``
              ``tenant``, ``outside``
``unmount``   ``mount``, ``force``                                    ``{outcome, users, warnings}``
``sync``      ``mount``                                               ``{synced}``
``unsynced``  ``mount``                                               ``{files: [{path, bytes}], bytes}``
``reset``     ``mount``                                               ``{}``
============  ======================================================  ==========================================

``kind`` is one of "invalid" (what was asked), "fuse" (this machine does not mount), "missing" (no such mount), "busy"
(somebody is in the way; ``users``, ``unsynced``), "relay" (it would wait for itself), "failed" (anything else).
``mount`` is the id of an entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from jupyter_wsfuse.client.discovery import discover
from jupyter_wsfuse.errors import DiscoveryError, MountError, NotMountedError, WsFuseError
from jupyter_wsfuse.mount import launcher, machine, registry, teardown
from jupyter_wsfuse.mount.config import MountConfig
from jupyter_wsfuse.mount.observer import Observer
from jupyter_wsfuse.mount.registry import Entry
from jupyter_wsfuse.mount.supervisor import SYNC_TIMEOUT

log = logging.getLogger("wsfuse.steward")

T = TypeVar("T")

#: Bytes of one request.
_LONGEST: Final = 1 << 16
#: Seconds that a sync which somebody waits for may take.
SYNC_PATIENCE: Final = 120.0
#: Seconds beyond which an operation is given up, whatever it waits for.
_ENOUGH: Final = launcher.START_TIMEOUT + launcher.CLEAR_TIMEOUT


class StewardError(WsFuseError):
    """*kind* as in the module's text."""

    def __init__(self, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.more = more


class Steward:
    """Answers requests. Belongs to one event loop; what blocks runs in threads."""

    def __init__(self) -> None:
        self._observer = Observer()
        self._ops: dict[str, Callable[..., Any]] = {
            "look": self._observer.look,
            "fuse": self.fuse,
            "mount": self.mount,
            "unmount": self.unmount,
            "sync": self.sync,
            "unsynced": self.unsynced,
            "reset": self.reset,
        }

    async def answer(self, line: bytes) -> dict[str, Any]:
        """What to say to one request. Does not raise."""
        number: object = None
        try:
            request = json.loads(line)
            number = request.pop("id")
            result = await self._ops[request.pop("op")](**request)
        except StewardError as exc:
            return _error(number, exc.kind, str(exc), **exc.more)
        except TimeoutError:
            return _error(number, "failed", "it took too long")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as exc:
            log.debug("not a request", exc_info=exc)
            return _error(number, "invalid", "not a request that this version knows")
        except (WsFuseError, OSError) as exc:
            return _error(number, "failed", str(exc) or type(exc).__name__)
        except Exception as exc:
            log.exception("a request failed")
            return _error(number, "failed", f"{type(exc).__name__}: {exc}")
        return {"id": number, "result": result}

    def close(self) -> None:
        self._observer.close()

    # --- what can be asked for ------------------------------------------------------------------------------

    async def fuse(self) -> dict[str, Any]:
        """Whether this machine mounts, and what to do if not."""
        return await _blocking(_fuse, 5.0)

    async def mount(
        self, url: str, token: str, path: str, read_only: bool = False, tenant: str = "", outside: str = ""
    ) -> dict[str, Any]:
        """Mount the workspace of the server at *url* on *path*, which is absolute or begins with ``~``, and not in
        *outside*."""
        able = await self.fuse()
        if not able["available"]:
            raise StewardError(
                "fuse", "this machine does not mount", reason=able["reason"], advice=able["advice"]
            )
        mountpoint = await _blocking(lambda: check_mountpoint(path), 10.0)
        if outside and (mountpoint + "/").startswith(outside.rstrip("/") + "/"):
            raise StewardError(
                "relay",
                "direct connections are switched off here (WsFuse.allow_direct): the file browser would wait for the "
                "server, which waits for the file browser",
                advice=f"choose a folder outside of {outside}",
            )
        try:
            server = discover(url, token)
        except DiscoveryError as exc:
            raise StewardError("invalid", str(exc)) from exc
        config = MountConfig(
            url=server.url,
            token=server.token,
            source=server.source,
            ca_file=server.ca_file or "",
            proxy=server.proxy or "",
            mountpoint=mountpoint,
            read_only=read_only,
            tenant=tenant,
        )
        await _blocking(lambda: launcher.start(config), _ENOUGH)
        return {"id": registry.mount_id(mountpoint), "mountpoint": mountpoint}

    async def unmount(self, mount: str, force: bool = False) -> dict[str, Any]:
        """Sync, see that nobody uses it, and take it down; with *force* only the last."""
        entry = await _blocking(lambda: find(mount), 5.0)
        if not force and entry.alive:
            with contextlib.suppress(
                NotMountedError
            ):  # without a supervisor it cannot be asked, only taken down
                await self._sync(entry, SYNC_TIMEOUT)
            users = await _blocking(lambda: teardown.users_of(entry.mountpoint), 10.0)
            if users:
                names = ", ".join(f"{name} ({pid})" for pid, name in users[:5])
                raise StewardError(
                    "busy",
                    f"{entry.mountpoint} is in use by {names}",
                    users=[{"pid": pid, "name": name} for pid, name in users],
                )
        return await _blocking(
            lambda: launcher.unmount(entry, force=force),
            launcher.UNMOUNT_TIMEOUT + 2 * launcher.CLEAR_TIMEOUT,
        )

    async def sync(self, mount: str) -> dict[str, Any]:
        """Wait until everything written is on the server's disk."""
        await self._sync(await _blocking(lambda: find(mount), 5.0), SYNC_PATIENCE)
        return {"synced": True}

    async def unsynced(self, mount: str) -> dict[str, Any]:
        """What is not on the server yet."""
        entry = await _blocking(lambda: find(mount), 5.0)
        return await self._unsynced(entry)

    async def reset(self, mount: str) -> dict[str, Any]:
        """Count the mount's operations from zero."""
        entry = await _blocking(lambda: find(mount), 5.0)
        await _blocking(lambda: launcher.ask(entry, "stats", reset=True), 15.0)
        return {}

    # --- how ------------------------------------------------------------------------------------------------

    async def _unsynced(self, entry: Entry) -> dict[str, Any]:
        try:
            found = await _blocking(lambda: launcher.ask(entry, "unsynced", timeout=3.0), 5.0)
        except NotMountedError:
            raise
        except MountError as exc:  # made by another version, or it does not answer
            raise StewardError("failed", f"{entry.mountpoint} does not say: {exc}") from exc
        files = [{"path": str(path), "bytes": int(size)} for path, size in found]
        return {"files": files, "bytes": sum(file["bytes"] for file in files)}

    async def _sync(self, entry: Entry, timeout: float) -> None:
        try:
            await _blocking(
                lambda: launcher.ask(entry, "sync", timeout=timeout + 2, patience=timeout), timeout + 5
            )
        except NotMountedError:
            raise
        except (MountError, TimeoutError) as exc:
            left: list[Any] = []
            with contextlib.suppress(WsFuseError, OSError, TimeoutError):
                left = (await self._unsynced(entry))["files"]
            said = str(exc) or "the server did not answer in time"
            raise StewardError(
                "busy", f"{entry.mountpoint} could not be synced: {said}", unsynced=left
            ) from exc


def _fuse() -> dict[str, Any]:
    failed = [check for check in machine.mounting() if check.result == "fail"]
    return {
        "available": not failed,
        "reason": "; ".join(check.found for check in failed),
        "advice": "; ".join(check.remedy for check in failed if check.remedy),
    }


def check_mountpoint(path: str) -> str:
    """*path* as a mount point, if it is, or can be made in, a folder of this user. Raises :class:`StewardError`."""
    if not path or "\0" in path or not path.startswith(("/", "~")) or len(os.fsencode(path)) > 4096:
        raise StewardError("invalid", "name a folder by an absolute path, or one that begins with ~/")
    try:
        mountpoint = registry.resolve_mountpoint(path)
    except MountError as exc:
        raise StewardError("invalid", str(exc)) from exc
    if registry.kernel_mount(mountpoint) is not None:
        raise StewardError("busy", f"{mountpoint} is mounted already", users=[])
    above = mountpoint
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    found = os.stat(above)
    if not os.path.isdir(above):
        raise StewardError("invalid", f"{above} is not a folder")
    if found.st_uid != os.geteuid():
        raise StewardError("invalid", f"{above} is not a folder of yours: choose one below your home")
    if above == mountpoint and os.listdir(mountpoint):
        raise StewardError("busy", f"{mountpoint} is not empty: choose another folder", users=[])
    return mountpoint


def find(mount: str) -> Entry:
    """The entry of that id. Raises :class:`StewardError`."""
    for entry in registry.entries():
        if entry.id == mount:
            return entry
    raise StewardError("missing", "that is not mounted any more")


async def _blocking(function: Callable[[], T], timeout: float) -> T:
    return await teardown.in_thread(function, timeout)


def _error(number: object, kind: str, message: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "error": {"kind": kind, "message": message, **more}}


async def serve(source: int, sink: int) -> None:
    """Answer what comes in on *source* until it ends; who has asked by then is not waited for."""
    loop = asyncio.get_running_loop()
    steward = Steward()
    reader = asyncio.StreamReader(limit=_LONGEST)
    with os.fdopen(source, "rb", closefd=False) as pipe:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        tasks: set[asyncio.Task[None]] = set()

        async def one(line: bytes) -> None:
            answer = json.dumps(await steward.answer(line), separators=(",", ":")).encode() + b"\n"
            with contextlib.suppress(OSError, TimeoutError):  # nobody wants to know any more
                await teardown.in_thread(lambda: _write(sink, answer), 30.0)

        while True:
            try:
                line = await reader.readuntil(b"\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                break
            task = asyncio.create_task(one(line))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()
        steward.close()


_writing: Final = threading.Lock()


def _write(sink: int, data: bytes) -> None:
    with _writing:
        while data:
            data = data[os.write(sink, data) :]


def main() -> int:
    """See the module's text; logs to standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the server's business
    os.chdir("/")  # the server's folder may be a mount
    try:
        asyncio.run(serve(0, 1))
    except BrokenPipeError:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())

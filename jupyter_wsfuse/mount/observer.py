"""Looking at all mounts of this user at once, over and over, cheaply, and without waiting for one that is stuck."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from jupyter_wsfuse.mount import registry
from jupyter_wsfuse.mount.control import peer_uid, short_address
from jupyter_wsfuse.mount.registry import Entry

#: Seconds that a mount's supervisor may take to answer before it counts as one that does not.
PATIENCE: Final = 1.0
#: Bytes of an answer.
_LONGEST: Final = 1 << 20


class _Line:
    """A connection to the control socket of one mount, kept open. Questions are asked one after another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """The result. Raises :class:`OSError` or :class:`ValueError`: then the line is closed, and opened again by the
        next question."""
        async with asyncio.timeout(PATIENCE), self._turn:
            try:
                if self._writer is None:
                    await self._open()
                assert self._reader is not None
                assert self._writer is not None
                number = next(self._numbers)
                self._writer.write(json.dumps({"id": number, "op": op, **arguments}).encode() + b"\n")
                answer = json.loads(await self._reader.readuntil(b"\n"))
                if answer["id"] != number or not answer["ok"]:
                    raise ValueError(str(answer.get("error")))
                return dict(answer["result"])
            except BaseException as exc:
                self.close()
                if isinstance(exc, EOFError | LookupError | TypeError | asyncio.LimitOverrunError):
                    raise ValueError("no answer") from exc
                raise

    async def _open(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            with short_address(self._path) as address:
                await asyncio.get_running_loop().sock_connect(sock, address)
            if peer_uid(sock) not in (0, os.getuid()):
                raise ValueError("it belongs to another user")
            self._reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=_LONGEST)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class Observer:
    """What every mount of this user says of itself. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lines: dict[Path, _Line] = {}

    async def look(self, profile: bool = False) -> list[dict[str, Any]]:
        """A row a mount, ``id`` first; *profile*: with what its operations cost. Of one that does not answer what its
        entry says, and the state "dead" (nobody serves it), "unsupervised" or "not answering". Bounded in time by
        :data:`PATIENCE`."""
        found = list(registry.entries())
        if not all(entry.alive for entry in found):
            mounted = {mount.path for mount in registry.kernel_mounts()}
            found = [entry for entry in found if entry.alive or entry.mountpoint in mounted]
        for path in self._lines.keys() - {entry.socket for entry in found}:
            self._lines.pop(path).close()
        return list(await asyncio.gather(*(self._ask(entry, profile) for entry in found)))

    async def _ask(self, entry: Entry, profile: bool) -> dict[str, Any]:
        line = self._lines.get(entry.socket)
        if line is None:
            line = self._lines[entry.socket] = _Line(entry.socket)
        known = {"id": entry.id, **entry.info}
        if not entry.alive:
            return {**known, "state": "dead", "daemon": {}}
        try:
            answer = await line.ask("status", figures=True, profile=profile)
        except (FileNotFoundError, ConnectionRefusedError):
            state = "connecting" if entry.info.get("state") == "connecting" else "unsupervised"
            return {**known, "state": state, "daemon": {}}
        except (OSError, ValueError, TimeoutError):
            return {**known, "state": "not answering", "daemon": {}}
        return {**answer, "id": entry.id, "mountpoint": entry.mountpoint}

    def close(self) -> None:
        """Let all mounts go."""
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.close()
        self._lines.clear()

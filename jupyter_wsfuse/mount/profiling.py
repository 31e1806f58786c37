"""What the daemon answers to ``stats`` and ``profile``: its own figures, and with them the server's."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from jupyter_wsfuse.client.pagestore import AsyncPageStore
from jupyter_wsfuse.client.profile import Profile
from jupyter_wsfuse.client.profiler import ServerTotals, since
from jupyter_wsfuse.client.vfs import Vfs
from jupyter_wsfuse.errors import MountError, WsFuseError
from jupyter_wsfuse.protocol.messages import Stats, StatsReply

#: Seconds that the server may take to tell its part.
PATIENCE: Final = 1.0
#: Profiles taken at a time; one more ends the oldest, whose taker is probably gone.
PROFILES: Final = 8
#: Slow operations that are shown of those that are remembered.
SHOWN: Final = 20
#: Things that could not be brought to the server which are shown.
RESCUED: Final = 50
#: Figures that a server gives of a request; see :class:`~jupyter_wsfuse.protocol.messages.StatsReply`.
_FIGURES: Final = 6


def figures(vfs: Vfs) -> dict[str, Any]:
    """Of :meth:`Profiling.figures` what is always there."""
    cache, pages = vfs.cache, vfs.pages
    return {
        "operations": sum(operation.times.count for operation in vfs.stats.values()),
        "hits": cache.hits + pages.hits,
        "misses": cache.misses + pages.misses,
        "unsynced": sum(size for _, size in vfs.unsynced()),
        "rescue": dict(itertools.islice(vfs.rescue().items(), RESCUED)),
    }


class Profiling:
    """The profiles of one daemon, and its figures since *begun* (seconds since the epoch) or the last reset.

    *connected* tells whether the server can be asked now. One that is not there is not waited for, and a connection
    that is parked stays so.
    """

    def __init__(self, vfs: Vfs, begun: float, connected: Callable[[], bool]) -> None:
        self._vfs = vfs
        self._since = begun
        self._connected = connected
        self._base: ServerTotals = {}
        self._profiles: dict[str, Profile] = {}
        self._rows: dict[str, tuple[int, dict[str, Any]]] = {}

    async def stats(self, reset: bool = False) -> dict[str, Any]:
        """``{operations, waiting, slow, slow_count, cache, pages, prefetch, disk, since}``; see
        :class:`~jupyter_wsfuse.client.profiler.Profiler`. With *reset* the first four are counted from zero
        afterwards."""
        stats = self._vfs.stats
        server = await self._server()
        found = {
            "operations": stats.snapshot(),
            "waiting": stats.waiting(None if server is None else since(server, self._base)),
            "slow": list(reversed(stats.slow)),
            "slow_count": stats.slow_count,
            "cache": self._vfs.cache.snapshot() | {"nodes": len(self._vfs.tree)},
            "pages": self._vfs.pages.snapshot(),
            "prefetch": self._vfs.fetcher.snapshot(),
            "disk": self._vfs.store.snapshot() if isinstance(self._vfs.store, AsyncPageStore) else {},
            "since": self._since,
        }
        if reset:
            stats.reset()
            self._rows.clear()
            self._since = time.time()
            self._base = server or {}
        return found

    def figures(self, profile: bool = False) -> dict[str, Any]:
        """What somebody who looks on is shown again and again; the server is not asked for its part.

        ``operations``: how many there were; ``hits`` and ``misses`` of what is remembered; ``unsynced``: bytes that are
        not on the server yet; ``rescue``: what could not be brought there, see :meth:`.Vfs.rescue`. *profile*: with
        ``profile``, ``{operations, slow}`` as in :meth:`stats`.
        """
        found = figures(self._vfs)
        if profile:
            stats = self._vfs.stats
            operations = {}
            for name, operation in stats.items():
                count = operation.times.count
                known = self._rows.get(name)
                if known is None or known[0] != count:
                    known = self._rows[name] = (count, operation.snapshot())
                if count:
                    operations[name] = known[1]
            found["profile"] = {"operations": operations, "slow": list(reversed(stats.slow))[:SHOWN]}
        return found

    async def begin(self) -> str:
        """Take a profile; returns its name, for :meth:`end`."""
        server = await self._server()
        while len(self._profiles) >= PROFILES:
            self._profiles.pop(next(iter(self._profiles))).stop()
        name = secrets.token_hex(8)
        self._profiles[name] = Profile(self._vfs.stats, self._vfs.directory_named, server)
        return name

    async def end(self, name: str) -> dict[str, Any]:
        """The result of :meth:`~jupyter_wsfuse.client.profile.Profile.finish`. Raises :class:`MountError` for a profile
        that is not taken (any more)."""
        profile = self._profiles.pop(name, None)
        if profile is None:
            raise MountError(
                "the profile was lost: the mount's daemon was replaced meanwhile, or others took too many"
            )
        profile.stop()  # the question below is no part of it
        return profile.finish(await self._server())

    async def _server(self) -> ServerTotals | None:
        """The server's totals for this session; None if it cannot be asked now."""
        if not self._connected():
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                reply, _ = await self._vfs.connection.call(Stats(0))
        except (TimeoutError, WsFuseError, OSError):
            return None
        if type(reply) is not StatsReply:
            return None
        return {
            name: row
            for name, row in reply.operations.items()
            if len(row) == _FIGURES and all(0 <= figure < 1 << 63 for figure in row)
        }

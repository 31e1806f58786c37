"""The process that serves one mount: a connection to the server on one side, ``/dev/fuse`` on the other.

Started by the supervisor with two descriptors (the channel to it, the write-ahead log) and its configuration on
stdin. A first daemon connects, says so, and serves when it is given the kernel's descriptor; errors of the first
connection are the user's to see. One that finds a log written by a predecessor continues its session, its nodes and
its open files, and connects when it can: the kernel's requests wait meanwhile, up to the mount's deadline.

It never touches a path in its own mount: it would wait for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import platformdirs
import uvloop

from jupyter_wsfuse.client.api import Caller, VfsOptions
from jupyter_wsfuse.client.connection import Connection, ConnectionOptions
from jupyter_wsfuse.client.discovery import Server
from jupyter_wsfuse.client.pagestore import AsyncPageStore, PageStore
from jupyter_wsfuse.client.reporting import Reporter
from jupyter_wsfuse.client.vfs import Vfs
from jupyter_wsfuse.errors import MountError, WsFuseError
from jupyter_wsfuse.fuse.abi import CACHE_SYMLINKS, EXPORT_SUPPORT
from jupyter_wsfuse.fuse.native import DriverOptions, NativeDriver
from jupyter_wsfuse.memory import keep_freed_memory
from jupyter_wsfuse.mount import logs
from jupyter_wsfuse.mount.child import EXIT_FAILED, EXIT_STOPPED, EXIT_UNMOUNTED
from jupyter_wsfuse.mount.config import MountConfig
from jupyter_wsfuse.mount.control import Channel, error_to_json
from jupyter_wsfuse.mount.profiling import Profiling, figures
from jupyter_wsfuse.mount.state import StateLog
from jupyter_wsfuse.protocol.messages import LEASES, MOST_RESCUED, Report, Rescued, Welcome

log = logging.getLogger("wsfuse.daemon")

#: Our own records in the write-ahead log, beside those of the client: the session's name, what INIT negotiated.
_SESSION: Final = "mount.session"
_DRIVER: Final = "mount.driver"

#: Seconds of silence after which the server is asked for a sign of life, and that it may take then.
_HEARTBEAT: Final = 5.0
_PATIENCE: Final = 15.0

#: Files with data that are not on the server yet which are named.
MOST_UNSYNCED: Final = 200

#: Seconds that saying goodbye to the server may take: the user waits for his ``umount``.
_GOODBYE: Final = 1.5


class Daemon:
    """One run of a daemon over a live channel."""

    def __init__(self, config: MountConfig, channel: socket.socket, state_fd: int) -> None:
        loop = asyncio.get_running_loop()
        self._config = config
        self._log = StateLog(state_fd)
        self._fuse: asyncio.Future[int] = loop.create_future()
        self._stopping = asyncio.Event()
        self._since = time.time()
        self._session: tuple[Any, ...] | None = None
        self._driver_state: dict[str, Any] | None = None
        records = list(self._own_records())
        self.continues = self._driver_state is not None
        self._connection = Connection(
            Server(config.url, config.token, config.source or "explicit", config.ca_file, config.proxy),
            ConnectionOptions(
                transport=config.transport,
                deadline=config.deadline,
                # Noticing that the server is silent must not take longer than waiting for it may.
                heartbeat=min(_HEARTBEAT, config.deadline / 2),
                patience=min(_PATIENCE, config.deadline),
                links=config.links,
                leases=config.cache,
                reports=True,
                tenant=config.tenant,
                client=f"{socket.gethostname()}:{config.mountpoint}"[:200],
            ),
            session=self._session[1] if self._session else "",
            epoch=self._session[2] if self._session else 0,
        )
        self._vfs = Vfs(self._connection, vfs_options(config), self._log)
        if self.continues:
            self._vfs.restore(records)
        self._profiling = Profiling(
            self._vfs, self._since, lambda: self._connection.status()["state"] == "connected"
        )
        Reporter(self._connection, self._report)
        self._store: AsyncPageStore | None = None
        self._connection.on_welcome = self._on_welcome
        self._log.snapshot = self._snapshot
        self._channel = Channel(
            channel, handler=self._answer, on_event=self._on_event, on_close=self._on_supervisor_gone
        )

    def _own_records(self) -> Iterator[list[Any]]:
        """Keeps what is ours of the log, gives the rest."""
        for record in self._log.load():
            if record[0] == _SESSION:
                self._session = tuple(record)
            elif record[0] == _DRIVER:
                self._driver_state = record[1]
            else:
                yield record

    def _snapshot(self) -> Iterator[tuple[Any, ...]]:
        if self._session is not None:
            yield self._session
        if self._driver_state is not None:
            yield (_DRIVER, self._driver_state)
        yield from self._vfs.snapshot()

    async def run(self) -> int:
        """Serve until unmounted or told to stop; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        code = EXIT_FAILED
        try:
            if await self._unless_stopping(self._connect()) and await self._unless_stopping(
                self._wait_for_kernel()
            ):
                code = await self._serve()
            else:
                code = EXIT_STOPPED
        except (WsFuseError, OSError) as exc:
            log.info("ending: %s", exc)
            self._channel.announce("failed", error=error_to_json(exc))
        finally:
            await self._leave(goodbye=code == EXIT_UNMOUNTED or not self.continues)
        return code

    async def _connect(self) -> None:
        if self._config.disk_cache:
            self._store = AsyncPageStore(PageStore(store_folder(self._config), self._config.disk_cache))
            self._vfs.keep_in(self._store)
        await self._vfs.start()
        if self.continues:
            self._connection.start()
        else:
            await self._connection.open()
        self._channel.announce("connected")

    async def _wait_for_kernel(self) -> None:
        await asyncio.shield(self._fuse)

    async def _unless_stopping(self, work: Any) -> bool:
        """Wait for *work*; False if we are told to stop first."""
        task, stop = asyncio.ensure_future(work), asyncio.create_task(self._stopping.wait())
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return False
        await task
        return True

    def _refused(self) -> int:
        # A file handle of name_to_handle_at(2) outlives the kernel's knowledge of the node, and ours with it.
        refused = EXPORT_SUPPORT
        if self._config.links == "contain":
            refused |= CACHE_SYMLINKS  # each reading of a link is judged: where it stands may have changed
        return refused

    async def _serve(self) -> int:
        welcome = self._connection.welcome
        told = welcome is not None and LEASES in welcome.features
        driver = NativeDriver(
            self._fuse.result(),
            self._vfs,
            # Listings that the kernel keeps are good only if somebody tells it when they are not.
            options=DriverOptions(refuse=self._refused(), no_opendir=told and self._vfs.lists_unopened),
            state=self._driver_state,
            before_reply=self._log.flush,
            on_init=self._on_init,
        )
        if self.continues:
            self._channel.announce("serving")
        _collect_seldom()
        running = asyncio.create_task(driver.run())
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((running, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if running.done():
            await running
            log.info("unmounted")
            return EXIT_UNMOUNTED
        self.continues = True  # whoever comes next takes the session up: no goodbye
        driver.abandon()
        await running
        return EXIT_STOPPED

    async def _leave(self, goodbye: bool) -> None:
        """End the session on the server, or only this connection if a successor will continue it."""
        try:
            async with asyncio.timeout(_GOODBYE):
                await self._vfs.stop()
                if self._store is not None:
                    await self._store.close(_GOODBYE / 2)
                if goodbye:
                    await self._connection.close()
        except (TimeoutError, WsFuseError, OSError) as exc:
            log.info("left without saying goodbye to the server: %s", exc or "no answer")
        self._stopping.set()
        self._channel.close()

    # --- what happens to us -------------------------------------------------------------------------------------

    async def _on_welcome(self, welcome: Welcome, kind: str) -> None:
        self._session = (_SESSION, welcome.session, welcome.epoch)
        self._log.record(*self._session)
        self._log.flush()
        log.info("%s session over %s", kind, self._connection.status().get("transport"))
        await self._vfs.recover(welcome, kind)

    def _on_init(self, negotiated: dict[str, Any]) -> None:
        self._driver_state = negotiated
        self._log.record(_DRIVER, negotiated)
        self._log.flush()
        self._channel.announce("serving")

    def _on_event(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        if message["event"] == "serve" and len(fds) == 1 and not self._fuse.done():
            self._fuse.set_result(fds[0])

    def _on_supervisor_gone(self) -> None:
        """Before the mount exists that is the end. Afterwards files are open: serve them until it is unmounted."""
        if not self._fuse.done():
            self._stopping.set()
        elif not self._stopping.is_set():
            log.info("the supervisor is gone; serving on without one")

    def _report(self, state: str) -> Report:
        """What there is to say to those who look at this mount on the server."""
        known, status = figures(self._vfs), self._connection.status()
        rescue = [
            Rescued(name, os.fsencode(one["path"]), one["reason"], one["bytes"], int(one["time"] * 1e9))
            for name, one in known["rescue"].items()
        ]
        return Report(
            state=state,
            host=socket.gethostname(),
            path=os.fsencode(self._config.mountpoint),
            rtt=int((status["rtt_ms"] or 0) * 1e6),
            operations=known["operations"],
            hits=known["hits"],
            misses=known["misses"],
            unsynced=known["unsynced"],
            held=status["held"],
            rescue=rescue[:MOST_RESCUED],
        )

    async def _answer(self, op: str, arguments: dict[str, Any]) -> Any:
        if op == "status":
            status = {"since": self._since, "connection": self._connection.status()}
            if arguments.get("figures"):
                status["figures"] = self._profiling.figures(bool(arguments.get("profile")))
            return status
        if op == "unsynced":
            return [[os.fsdecode(path), size] for path, size in self._vfs.unsynced()[:MOST_UNSYNCED]]
        if op == "stats":
            return await self._profiling.stats(bool(arguments.get("reset")))
        if op == "profile.begin":
            return await self._profiling.begin()
        if op == "profile.end":
            return await self._profiling.end(str(arguments.get("name")))
        if op == "sync":
            await self._vfs.syncfs(Caller(self._config.uid, self._config.gid, 0))
            return None
        raise MountError(f"unknown request {op!r}")


#: Objects that come before the collector looks at the young ones, and how often it does before it looks at older ones.
_GENERATIONS: Final = (20_000, 20, 50)


def _collect_seldom() -> None:
    """What is remembered of a workspace is hundreds of thousands of objects, in no circle: looking at all of them each
    time that some are made takes longer than what they are made for."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GENERATIONS)


#: MiB that a daemon takes before it has anything to remember, and what a node takes in bytes, with what the kernel was
#: told of it and what the log says of it.
_BASE: Final = 72
_NODE: Final = 1300


def store_folder(config: MountConfig) -> Path:
    """Where data of the workspace that *config* is about are kept: each has a folder of its own."""
    who = json.dumps([config.url, config.tenant]).encode()
    name = hashlib.blake2b(who, digest_size=12).hexdigest()
    return Path(platformdirs.user_cache_dir("wsfuse")) / "pages" / name


def vfs_options(config: MountConfig) -> VfsOptions:
    """How the workspace is shown, of a mount's configuration."""
    left = max(config.memory - _BASE, 16) << 20
    return VfsOptions(
        prefetch=frozenset(config.prefetch),
        attr_bytes=left // 4,
        entry_bytes=left // 6,
        page_bytes=left // 4,
        nodes=left // 3 // _NODE,
        read_only=config.read_only,
        subdir=os.fsencode(config.subdir.strip("/")),
        owner=config.owner,
        uid=config.uid,
        gid=config.gid,
        links=config.links,
        cache=config.cache,
    )


async def _run(config: MountConfig, channel: socket.socket, state_fd: int) -> int:
    return await Daemon(config, channel, state_fd).run()


def main() -> int:
    """``python -m jupyter_wsfuse.mount.daemon CHANNEL_FD STATE_FD``, configuration on stdin."""
    try:
        channel_fd, state_fd = map(int, sys.argv[1:])
        config = MountConfig.from_json(sys.stdin.read())
    except (ValueError, MountError):
        print("this process is started by `wsfuse mount`, through its supervisor", file=sys.stderr)
        return 2
    os.umask(0)  # modes were masked by the kernel for the process that asked
    keep_freed_memory()
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # no dump of a process that knows the token
    logs.to_stderr(config.verbose)
    return uvloop.run(_run(config, socket.socket(fileno=channel_fd), state_fd))


if __name__ == "__main__":
    sys.exit(main())

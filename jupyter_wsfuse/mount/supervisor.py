"""The process that keeps one mount alive, and the only one that takes it down.

It holds a duplicate of the ``/dev/fuse`` descriptor and the daemon's write-ahead log, so that a daemon that dies is
replaced under the live mount: the kernel notices nothing but a pause. It never touches files of the mount from its
event loop and never speaks to the server, so it answers whatever state those two are in.

Order of a start: claim the mount point, control socket, daemon, *the daemon is connected*, mount, the daemon serves.
A wrong token therefore never leaves a mount. Whatever ends the mount - ``unmount`` on the control socket, a signal, a
plain ``umount`` by somebody, a daemon that cannot be kept alive - the end is the same: no mount, no process, no entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from jupyter_wsfuse import __version__
from jupyter_wsfuse.errors import MountError, WsFuseError
from jupyter_wsfuse.fuse import device
from jupyter_wsfuse.mount import logs, provider, registry, state, teardown
from jupyter_wsfuse.mount.child import EXIT_UNMOUNTED, Daemon
from jupyter_wsfuse.mount.config import MountConfig
from jupyter_wsfuse.mount.control import ControlServer, error_to_json
from jupyter_wsfuse.mount.teardown import in_thread

log = logging.getLogger("wsfuse.supervisor")

#: Seconds: for the first connection; for a sync before unmounting; that files still open after an unmount are served;
#: that a daemon may take to leave; between a daemon's death and its successor (doubling up to the second number).
CONNECT_TIMEOUT: Final = 30.0
SYNC_TIMEOUT: Final = 10.0
OPEN_FILES_GRACE: Final = 5.0
EXIT_TIMEOUT: Final = 3.0
BACKOFF: Final = (0.05, 5.0)
WATCH_INTERVAL: Final = 5.0
WATCH_PATIENCE: Final = 20.0

#: A daemon that served this long is healthy: the next death starts with the shortest pause again.
_HEALTHY: Final = 10.0

Report = Callable[[dict[str, Any]], None]


class Supervisor:
    """One mount, from claim to end. *report* gets ``{"event": "ready"}`` when files can be used, and
    ``{"event": "failed", "error": ...}`` at the end, after everything was cleaned up, if it was no orderly one."""

    def __init__(self, config: MountConfig, report: Report) -> None:
        self.config = config
        self._report = report
        self._state = "connecting"
        self._since = time.time()
        self._restarts = 0
        self._last_death = ""
        self._fuse_fd = -1
        self._state_fd = -1
        self._minor = -1
        self._poll: select.epoll | None = None
        self._created: list[str] = []
        self._daemon: Daemon | None = None
        self._claim: registry.Claim | None = None
        self._gone = asyncio.Event()
        self._stop = asyncio.Event()
        self._force = False
        self._outcome: asyncio.Future[dict[str, Any]] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Mount, supervise, unmount; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._outcome = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        try:
            self._claim = registry.Claim(self.config.mountpoint)
        except (WsFuseError, OSError) as exc:
            self._report({"event": "failed", "error": error_to_json(exc)})
            return 1
        server = ControlServer(self._claim.entry.socket, self._control)
        failure: BaseException | None = None
        result: dict[str, Any] = {"outcome": "clean", "users": [], "warnings": []}
        try:
            self._publish()
            await server.start()
            self._state_fd = state.create()
            try:
                await self._start()
                log.info("%s is mounted on %s", self.config.url, self.config.mountpoint)
                self._report({"event": "ready", "pid": os.getpid(), "log": str(self._claim.entry.log)})
                await self._supervise()
            except (WsFuseError, OSError) as exc:
                failure = (
                    MountError("the server did not answer in time") if isinstance(exc, TimeoutError) else exc
                )
                self._force = True
            self._state = "unmounting"
            self._publish()
            result = await self._take_down()
        except (WsFuseError, OSError) as exc:
            failure = exc
        finally:
            await self._end_daemon()
            self._close_descriptors()
            for path in reversed(self._created):
                with contextlib.suppress(OSError):  # it was used for something else meanwhile
                    os.rmdir(path)
            self._claim.release()
            if failure is not None:
                result["error"] = str(failure)
            log.info("ended: %s", result)
            self._outcome.set_result(result)
            await server.close()
        if failure is not None:  # said last: who hears it finds nothing of the attempt
            self._report({"event": "failed", "error": error_to_json(failure)})
        return 0 if failure is None else 1

    async def _start(self) -> None:
        provider.require()
        self._prepare_mountpoint()
        daemon = await self._spawn()
        await self._unless_stopped(asyncio.wait_for(asyncio.shield(daemon.connected), CONNECT_TIMEOUT))
        options = provider.mount_options(self.config)
        self._fuse_fd = await in_thread(lambda: device.mount(options), CONNECT_TIMEOUT)
        mounted = registry.kernel_mount(self.config.mountpoint)
        if mounted is None:
            raise MountError(f"{self.config.mountpoint} was unmounted while it was being mounted")
        self._minor = mounted.minor
        self._watch_connection()
        daemon.serve(self._fuse_fd)
        await self._unless_stopped(asyncio.wait_for(asyncio.shield(daemon.serving), CONNECT_TIMEOUT))
        self._state = "mounted"
        self._publish()

    async def _unless_stopped(self, waiting: Any) -> None:
        work, stop = asyncio.ensure_future(waiting), asyncio.create_task(self._stop.wait())
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not work.done():
            work.cancel()
            raise MountError("stopped before the mount was ready")
        await work

    def _prepare_mountpoint(self) -> None:
        path = self.config.mountpoint
        mounted = registry.kernel_mount(path)
        if mounted is not None:
            # The claim was free, so nobody serves it: what is left of a mount whose processes were all killed.
            log.info("removing a dead mount from %s", path)
            with contextlib.suppress(MountError, OSError):
                device.abort(mounted.minor)
            device.unmount(path, lazy=True)
        missing = []
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path)
        try:
            for path in reversed(missing):
                os.mkdir(path, 0o755)
                self._created.append(path)
            names = os.listdir(self.config.mountpoint)
        except OSError as exc:
            raise MountError(f"cannot use {self.config.mountpoint} as a mount point: {exc.strerror}") from exc
        if names:
            raise MountError(
                f"{self.config.mountpoint} is not empty ({len(names)} entries): choose another directory"
            )

    def _watch_connection(self) -> None:
        """Notice the end of the kernel's side: then, and only then, the descriptor polls as an error."""
        poll = self._poll = select.epoll()
        poll.register(self._fuse_fd, 0)
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(poll.fileno())
            self._gone.set()

        loop.add_reader(poll.fileno(), ended)

    async def _spawn(self) -> Daemon:
        assert self._claim is not None
        self._daemon = Daemon(logs.forward)
        await self._daemon.start(self.config, state_fd=self._state_fd, claim_fd=self._claim.fd)
        self._publish()
        return self._daemon

    async def _supervise(self) -> None:
        """Keep a daemon running until the mount is to end. Raises :class:`MountError` if that cannot be done."""
        pause, healthy_since = BACKOFF[0], time.monotonic()
        patience = max(self.config.deadline, CONNECT_TIMEOUT)
        while True:
            assert self._daemon is not None
            waiting: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(asyncio.shield(self._daemon.exited)),
                asyncio.create_task(self._gone.wait()),
                asyncio.create_task(self._stop.wait()),
            ]
            watch = asyncio.create_task(self._watch_daemon(self._daemon))
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in (*waiting, watch):
                task.cancel()
            if self._gone.is_set() or self._stop.is_set():
                return
            code = self._daemon.exited.result()
            if code == EXIT_UNMOUNTED:
                return
            if self._daemon.serving.done() and self._daemon.serving.exception() is None:
                if time.monotonic() - healthy_since > _HEALTHY:
                    pause = BACKOFF[0]
                healthy_since = time.monotonic()
            elif time.monotonic() - healthy_since > patience:
                raise MountError(f"no daemon could be started for {patience:.0f} s: {self._last_death}")
            self._restarts += 1
            self._last_death = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._state = "restarting"
            log.info("the daemon ended with %s; starting another in %.2f s", self._last_death, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            pause = min(2 * pause, BACKOFF[1])
            if not self._stop.is_set():
                daemon = await self._spawn()
                daemon.serve(self._fuse_fd)
                daemon.serving.add_done_callback(self._on_serving)

    async def _watch_daemon(self, daemon: Daemon) -> None:
        """Kill a daemon that lives and does not answer: another can take over, a stuck one blocks everybody."""
        answered = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            try:
                await daemon.request("status", timeout=WATCH_INTERVAL)
                answered = time.monotonic()
            except (WsFuseError, OSError, TimeoutError):
                if time.monotonic() - answered > WATCH_PATIENCE:
                    log.warning("the daemon has not answered for %.0f s and is replaced", WATCH_PATIENCE)
                    daemon.kill(signal.SIGKILL)
                    return

    def _on_serving(self, serving: asyncio.Future[dict[str, Any]]) -> None:
        if serving.exception() is None and self._state == "restarting":
            self._state = "mounted"

    # --- the end ------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        self._force = self._stop.is_set()  # the second time in earnest
        self._stop.set()

    async def _take_down(self) -> dict[str, Any]:
        result: dict[str, Any] = {"outcome": "clean", "users": [], "warnings": []}
        mounted = registry.kernel_mount(self.config.mountpoint)
        if self._minor < 0 or (self._gone.is_set() and (mounted is None or mounted.minor != self._minor)):
            return result
        if not self._force and not self._gone.is_set():
            try:
                await self._sync(SYNC_TIMEOUT)
            except (WsFuseError, OSError, TimeoutError) as exc:
                result["warnings"].append(
                    f"not synced before unmounting: {str(exc) or 'the server did not answer in time'}"
                )
                log.info("%s", result["warnings"][-1])
        with contextlib.suppress(TimeoutError):
            result["users"] = await in_thread(lambda: teardown.users_of(self.config.mountpoint), 2.0)
        result["outcome"] = await teardown.detach(
            self.config.mountpoint, self._minor, step=1.0 if self._force else teardown.STEP_TIMEOUT
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), 0.2 if self._force else OPEN_FILES_GRACE)
        if not self._gone.is_set():
            await teardown.abort(self._minor)
            result["outcome"] = "aborted"
        return result

    async def _end_daemon(self) -> None:
        """It leaves by itself when the kernel's side is gone; a stuck one is made to."""
        if self._daemon is None:
            return
        steps = [signal.SIGTERM, signal.SIGKILL]
        for number in [None, *steps] if self._gone.is_set() else steps:
            if number is not None:
                self._daemon.kill(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    asyncio.shield(self._daemon.exited), 0.5 if self._force else EXIT_TIMEOUT
                )
                return

    def _close_descriptors(self) -> None:
        if self._poll is not None:
            asyncio.get_running_loop().remove_reader(self._poll.fileno())
            self._poll.close()
        for fd in (self._fuse_fd, self._state_fd):
            if fd >= 0:
                os.close(fd)

    async def _sync(self, timeout: float) -> None:
        """Everything written through the mount is on the server's disk, or an error."""
        assert self._daemon is not None
        status = await self._daemon.request("status", timeout=1.0)
        connection = status["connection"]["state"]
        if connection not in ("connected", "parked"):
            raise MountError(f"the server cannot be reached ({connection})")
        await in_thread(lambda: _syncfs(self.config.mountpoint), timeout)  # pages of shared memory maps
        await self._daemon.request("sync", timeout=timeout)

    # --- what the control socket answers ------------------------------------------------------------------------

    async def _control(self, op: str, arguments: dict[str, Any]) -> Any:
        assert self._claim is not None
        if op == "status":
            return await self._status(
                **{name: True for name in ("figures", "profile") if arguments.get(name)}
            )
        if op in ("stats", "profile.begin", "profile.end", "unsynced"):
            assert self._daemon is not None
            passed = {name: arguments[name] for name in ("reset", "name") if name in arguments}
            return await self._daemon.request(op, timeout=3.0, **passed)
        if op == "sync":
            try:
                await self._sync(float(arguments.get("patience", self.config.deadline)))
            except TimeoutError as exc:
                raise MountError(
                    "not synced: the server did not answer in time; `wsfuse status` tells more"
                ) from exc
            return {"synced": True}
        if op == "log":
            return logs.tail(self._claim.entry.log, int(arguments.get("lines", 100)))
        if op == "unmount":
            assert self._outcome is not None
            self._force = self._force or bool(arguments.get("force"))
            self._stop.set()
            return await asyncio.shield(self._outcome)
        raise MountError(f"unknown request {op!r}: the mount was made by another version of wsfuse")

    async def _status(self, **wanted: bool) -> dict[str, Any]:
        daemon: dict[str, Any] = {}
        answering = False
        if self._daemon is not None:
            with contextlib.suppress(WsFuseError, TimeoutError):
                daemon = await self._daemon.request("status", timeout=2.0, **wanted)
                answering = True
        return {**self._public(), "daemon": {"pid": self._daemon_pid(), "answering": answering, **daemon}}

    def _daemon_pid(self) -> int:
        return self._daemon.pid if self._daemon is not None and self._daemon.alive else 0

    def _public(self) -> dict[str, Any]:
        assert self._claim is not None
        return {
            **self.config.public(),
            "state": self._state,
            "pid": os.getpid(),
            "since": self._since,
            "restarts": self._restarts,
            "last_death": self._last_death,
            "connection_id": self._minor,
            "log": str(self._claim.entry.log),
            "version": __version__,
        }

    def _publish(self) -> None:
        assert self._claim is not None
        self._claim.write({**self._public(), "daemon_pid": self._daemon_pid()})


def _syncfs(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


def run_foreground(config: MountConfig, report: Report) -> int:
    """Supervise in this very process until a signal or an unmount; returns the exit code."""
    logs.to_file(registry.runtime_dir() / f"{registry.mount_id(config.mountpoint)}.log", config.verbose)
    return asyncio.run(_run(config, report))


async def _run(config: MountConfig, report: Report) -> int:
    return await Supervisor(config, report).run()


def main() -> int:
    """The detached process: configuration as JSON on stdin, one line of JSON with the result on stdout."""
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # no dump of a process that knows the token
    try:
        return run_foreground(MountConfig.from_json(sys.stdin.read()), _report)
    except (WsFuseError, OSError) as exc:
        _report({"event": "failed", "error": error_to_json(exc)})
        return 1


def _report(message: dict[str, Any]) -> None:
    """Tell the front process, if it is still there: after "ready" it need not be."""
    print(json.dumps(message), flush=True)
    if message["event"] == "ready":
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)


if __name__ == "__main__":
    sys.exit(main())

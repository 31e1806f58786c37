"""Starts the file engine as a process of its own, looks after it, and starts it again.

The engine is started when it is first needed. It reads its configuration as one JSON line from its standard
input, which then stays open: end of file there tells it that its server has died. It answers with one JSON
line on standard output, ``{"port", "pid", "epoch"}``, and logs to standard error, which goes to the server's
log. Every engine of a server gets the same secret and state directory, so that a new one takes the
sessions of one that died over.

States: ``stopped`` (not needed yet, or the server is stopping), ``starting``, ``running``, ``failed`` (the
last start did not succeed; the next one comes after a pause).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.extension.settings import Settings
from jupyter_wsfuse.protocol.tickets import TicketIssuer, bearer

TENANT: Final = "default"  # a plain server has one workspace
# -P: a module of the same name in the server's working directory, which is the user's, is not ours.
ENGINE: Final = (sys.executable, "-P", "-m", "jupyter_wsfuse.engine.main")
_LEVEL: Final = re.compile(r"^(?:\d{4}-\S+ )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[\s:\]]*")
_STABLE: Final = 60.0  # seconds of life after which an earlier death is forgiven
_NEAR: Final = (
    3.0  # seconds to the next start for which it is better to wait than to be refused and ask again
)
_MAX_LINE: Final = 1 << 16


class EngineUnavailable(WsFuseError):
    """There is no engine now. ``retry_after``: seconds after which it is worth asking again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the engine listens."""

    port: int
    pid: int
    epoch: int
    host: str = "127.0.0.1"


class EngineSupervisor:
    """Owns the engine process. All methods belong to one event loop.

    ``on_activity`` is called when a probe shows that mounts have made requests since the last one.
    """

    def __init__(
        self,
        settings: Settings,
        runtime_dir: str | os.PathLike[str],
        log: logging.Logger | logging.LoggerAdapter[Any],
        *,
        command: Sequence[str] | None = None,
        on_activity: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._runtime_dir = Path(runtime_dir)
        self._log = log
        self._command = tuple(command or ENGINE)
        self._on_activity = on_activity
        self._secret = secrets.token_bytes(32)
        self._audience = ""
        self._name_engine()
        self._bearer = bearer(self._secret, "status")
        self._state_dir: StateDir | None = None
        self._endpoint: Endpoint | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # replaced at every change of state
        self._stopping = False
        self._next_try = 0.0  # loop time
        self._counters: dict[Any, Any] = {}
        self.state = "stopped"
        self.error: str | None = None
        self.restarts = 0

    # --- for the handlers -------------------------------------------------------------------------------

    def ticket(self, principal: str, rights: frozenset[str] | set[str]) -> str:
        """A ticket for one connection. *principal*: who may take the session up again; empty: any user."""
        return self._issuer.issue(TENANT, principal[:200], rights, self._settings.ticket_lifetime)

    async def endpoint(self) -> Endpoint:
        """Where the engine listens; starts it if it is not there, and waits for that.

        Raises :class:`EngineUnavailable` if the last start failed and the next one is not near, if this one fails
        or takes too long, and when the server is stopping.
        """
        if self._endpoint is not None:
            return self._endpoint
        if self._stopping:
            raise EngineUnavailable("the Jupyter server is stopping", 5)
        if self._task is None:
            self._set("starting")
            self._task = asyncio.create_task(self._supervise(), name="wsfuse-engine")
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self._settings.engine_start_timeout):
                if self.state == "failed" and self._next_try - clock() < _NEAR:
                    await self.until(lambda: self.state != "failed")
                await self.until(lambda: self.state != "starting")
        except TimeoutError:
            raise EngineUnavailable("the file engine has not started yet", 1) from None
        found: Endpoint | None = self._endpoint
        if found is not None:
            return found
        if self._stopping:
            raise EngineUnavailable("the Jupyter server is stopping", 5)
        pause = max(0.0, self._next_try - clock())
        raise EngineUnavailable(f"the file engine does not run: {self.error}", pause)

    def info(self) -> dict[str, Any]:
        """The engine's state for people: ``state``, ``pid``, ``restarts``, ``error``."""
        pid = self._endpoint.pid if self._endpoint is not None else None
        return {"state": self.state, "pid": pid, "restarts": self.restarts, "error": self.error}

    async def sessions(self) -> list[dict[str, Any]]:
        """The mounts as the engine tells of them; empty if it does not run or does not answer now."""
        if self._endpoint is None:
            return []
        try:
            status = await self._ask(self._endpoint)
        except Exception as exc:
            self._log.debug("the file engine gave no status: %s", exc)
            return []
        return list(status.get("sessions", []))

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until *predicate*, which is looked at whenever the state changes."""
        while not predicate():
            await self._changed.wait()

    async def stop(self) -> None:
        """End the engine: first by asking, then by force. Its state directory is removed."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._set("stopped")
        if self._state_dir is not None:
            await asyncio.to_thread(self._state_dir.remove)
            self._state_dir = None

    # --- the life of engines ----------------------------------------------------------------------------

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            self._set("starting")
            born: float | None = None
            process: asyncio.subprocess.Process | None = None
            logged: asyncio.Task[None] | None = None
            try:
                if self._state_dir is None:
                    self._state_dir = await asyncio.to_thread(StateDir, self._runtime_dir)
                process = await self._spawn()
                assert process.stderr is not None
                logged = asyncio.create_task(self._forward(process.stderr))
                endpoint = await self._introduce(process)
                born = loop.time()
                self._endpoint, self.error = endpoint, None
                self._set("running")
                self._log.info("the file engine runs as process %d", endpoint.pid)
                self.error = await self._watch(process, endpoint)
            except Exception as exc:  # whatever it is, the server goes on and the next start is tried
                self.error = str(exc) or type(exc).__name__
            finally:
                self._endpoint = None
                self._set("starting")  # so that a ticket asked for meanwhile waits for what comes
                if process is not None:
                    # Shielded: a cancelled stop() must not leave a process behind.
                    await asyncio.shield(self._end(process, logged))
            if born is not None and loop.time() - born > _STABLE:
                pause = 0.0
            self.restarts += 1
            self._log.error("the file engine failed: %s", self.error)
            if born is None or pause:
                pause = min(
                    max(2 * pause, self._settings.restart_backoff), self._settings.restart_backoff_max
                )
                self._next_try = loop.time() + pause
                self._set("failed")
                self._log.warning("the file engine is started again in %.1f seconds", pause)
                await asyncio.sleep(pause)
            else:  # it has worked: the mounts wait, so at once; but only once
                pause = self._settings.restart_backoff

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_LINE,
            env=_environment(),
            # Ctrl-C in the terminal asks the server, who may say no; the engine must not die of it first.
            start_new_session=True,
        )

    def _name_engine(self) -> None:
        # Each engine admits only tickets issued for itself: a successor does not know which of its predecessor's
        # tickets were used.
        self._audience = secrets.token_hex(8)
        self._issuer = TicketIssuer(self._secret, self._audience)

    async def _introduce(self, process: asyncio.subprocess.Process) -> Endpoint:
        assert process.stdin is not None
        assert process.stdout is not None
        settings, state_dir = self._settings, self._state_dir
        assert state_dir is not None
        self._name_engine()
        config = {
            "secret": self._secret.hex(),
            "audience": self._audience,
            "state_dir": str(state_dir.path),
            "tenants": {
                TENANT: {
                    "root": settings.root_dir,
                    "read_only": settings.read_only,
                    "raw_owner": settings.raw_owner,
                    "follow_roots": list(settings.follow_roots),
                }
            },
            "grace": settings.engine_grace,
            "window": settings.window,
            "max_sessions": settings.max_sessions,
        }
        try:
            process.stdin.write(json.dumps(config).encode() + b"\n")
            await process.stdin.drain()
            async with asyncio.timeout(settings.engine_start_timeout):
                line = await process.stdout.readline()
        except TimeoutError:
            raise ValueError(f"it did not start within {settings.engine_start_timeout:g} seconds") from None
        except ConnectionError:
            line = b""
        if not line:
            raise ValueError(f"it ended at its start {await self._how(process)}")
        try:
            said = json.loads(line)
            return Endpoint(port=int(said["port"]), pid=int(said["pid"]), epoch=int(said["epoch"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError("it did not introduce itself as expected") from None

    async def _watch(self, process: asyncio.subprocess.Process, endpoint: Endpoint) -> str:
        """Until the engine ends or stops answering; returns which."""
        ended = asyncio.ensure_future(process.wait())
        failures = 0
        try:
            while True:
                done, _ = await asyncio.wait((ended,), timeout=self._settings.probe_interval)
                if done:
                    return f"it ended {await self._how(process)}"
                try:
                    self._count(await self._ask(endpoint))
                    failures = 0
                except Exception as exc:  # whatever it was: it did not answer as it should
                    failures += 1
                    self._log.warning("the file engine did not answer (%d): %s", failures, exc)
                    if failures >= self._settings.probe_failures:
                        process.kill()
                        return f"it did not answer {failures} times in a row and was killed"
        finally:
            ended.cancel()

    def _count(self, status: dict[str, Any]) -> None:
        """Real use, as against a connection that is merely there: the engine counts requests, not pings."""
        counters = {session["id"]: session["requests"] for session in status.get("sessions", [])}
        if any(count > self._counters.get(name, 0) for name, count in counters.items()):
            self._on_activity()
        self._counters = counters

    async def _ask(self, endpoint: Endpoint) -> dict[str, Any]:
        request = HTTPRequest(
            f"http://{endpoint.host}:{endpoint.port}/status",
            headers={"Authorization": f"Bearer {self._bearer}"},
            connect_timeout=self._settings.probe_timeout,
            request_timeout=self._settings.probe_timeout,
        )
        response = await AsyncHTTPClient().fetch(request)
        status = json.loads(response.body)
        if not isinstance(status, dict):
            raise ValueError("the status is not an object")
        return status

    async def _end(self, process: asyncio.subprocess.Process, logged: asyncio.Task[None] | None) -> None:
        """End of input, then SIGTERM, then SIGKILL; returns when the process is gone and its log is read."""
        assert process.stdin is not None
        process.stdin.close()
        for then in (signal.SIGTERM, signal.SIGKILL, None):
            if then is None:
                await process.wait()
                break
            try:
                async with asyncio.timeout(self._settings.engine_stop_timeout):
                    await process.wait()
                break
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(then)
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()
        if logged is not None:
            await logged

    async def _how(self, process: asyncio.subprocess.Process) -> str:
        async with asyncio.timeout(self._settings.engine_stop_timeout):
            code = await process.wait()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"

    async def _forward(self, stream: asyncio.StreamReader) -> None:
        """The engine's log lines into the server's, at the level they begin with."""
        level = logging.INFO
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than the limit; the rest of it follows
                continue
            if not line:
                return
            text = line.decode("utf-8", "backslashreplace").rstrip()
            match = _LEVEL.match(text)
            if match is not None:  # the lines of a traceback have the level of what they belong to
                level = logging.getLevelNamesMapping()[match[1]]
                text = text[match.end() :]
            self._log.log(level, "engine: %s", text)

    def _set(self, state: str) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _environment() -> dict[str, str]:
    """The server's environment without its credentials, and this very package importable."""
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_TOKEN")}
    package = str(Path(__file__).resolve().parents[2])
    paths = [os.path.abspath(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if os.path.basename(package) not in ("site-packages", "dist-packages") and package not in paths:
        paths.append(package)  # a checkout that is not installed
    if paths:
        environ["PYTHONPATH"] = os.pathsep.join(paths)
    return environ


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

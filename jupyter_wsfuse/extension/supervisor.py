"""Starts the file engine as a process of its own, looks after it, and starts it again.

The engine is started when it is first needed. It reads its configuration as one JSON line from its standard
input, which then stays open: end of file there tells it that its server has died. It answers with one JSON
line on standard output, ``{"port", "pid", "epoch"}``, and logs to standard error, which goes to the server's
log. Then the two lines carry commands one way, answers and events the other (see :meth:`EngineSupervisor.command`).
Every engine of a server gets the same secret and state directory, so that a new one takes the sessions of one that
died over.

States: ``stopped`` (not needed yet, or the server is stopping), ``starting``, ``running``, ``failed`` (the
last start did not succeed; the next one comes after a pause).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.extension.settings import TENANT, Settings
from jupyter_wsfuse.extension.statedir import StateDir
from jupyter_wsfuse.protocol.tickets import TicketIssuer, TokenClaims, bearer

# -P: a module of the same name in the server's working directory, which is the user's, is not ours.
ENGINE: Final = (sys.executable, "-P", "-m", "jupyter_wsfuse.engine.main")
_LEVEL: Final = re.compile(r"^(?:\d{4}-\S+ )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[\s:\]]*")
_RENEW: Final = (
    os.EX_TEMPFAIL
)  # the status of an engine that has to be started anew to reach a folder that came later
_STABLE: Final = 60.0  # seconds of life after which an earlier death is forgiven
_NEAR: Final = (
    3.0  # seconds to the next start for which it is better to wait than to be refused and ask again
)
_MAX_LINE: Final = 1 << 20


class EngineUnavailable(WsFuseError):
    """There is no engine now. ``retry_after``: seconds after which it is worth asking again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CommandError(WsFuseError):
    """The engine did not do what it was told; the message is its own."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the engine listens."""

    port: int
    pid: int
    epoch: int
    host: str = "127.0.0.1"


class EngineSupervisor:
    """Owns the engine process. All methods belong to one event loop.

    ``on_activity`` is called when a probe shows that mounts have made requests since the last one, ``on_event``
    with everything the engine says by itself. ``revoked`` tells, in a worker thread, the ids of the scoped tokens
    that must not be served; it is asked when an engine starts, at every probe, and by :meth:`revoke`. ``private``
    are the paths of secrets that could give somebody who reads them more rights than he has.
    """

    def __init__(
        self,
        settings: Settings,
        runtime_dir: str | os.PathLike[str],
        log: logging.Logger | logging.LoggerAdapter[Any],
        *,
        command: Sequence[str] | None = None,
        on_activity: Callable[[], None] = lambda: None,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        revoked: Callable[[], Collection[str]] = lambda: (),
        private: Iterable[str] = (),
    ) -> None:
        self._settings = settings
        self._runtime_dir = Path(runtime_dir)
        self._log = log
        self._command = tuple(command or ENGINE)
        self._on_activity = on_activity
        self._on_event = on_event
        self._revoked = revoked
        self._private = list(private)
        self._told: set[str] = set()  # what this engine knows to be revoked
        self._revoking = asyncio.Lock()
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
        self._stdin: asyncio.StreamWriter | None = None  # of a running engine
        self._asked: set[asyncio.Future[HTTPResponse]] = set()
        self._commands: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._complaint = ""  # the last error in the log of the engine that was started last
        #: What the running engine told of itself last; empty if none runs.
        self.status: dict[str, Any] = {}
        self.state = "stopped"
        self.error: str | None = None
        self.restarts = 0

    # --- for the handlers -------------------------------------------------------------------------------

    def ticket(
        self,
        principal: str,
        rights: Iterable[str],
        *,
        groups: Iterable[str] = (),
        tenant: str = "",
        address: str = "",
        token: TokenClaims | None = None,
    ) -> str:
        """A ticket for one connection.

        *principal*: who may take the session up again; empty: any user. *tenant*: the one that is wanted; empty:
        the one that the identity belongs to. *address*: the client's, for the audit. Raises :class:`ValueError`
        for names that are too long.
        """
        if not self._settings.tenants_file:
            tenant = tenant or TENANT
        return self._issuer.issue(
            tenant,
            principal,
            rights,
            self._settings.ticket_lifetime,
            groups=groups,
            address=address,
            token=token,
        )

    async def assign(self, principal: str, groups: Iterable[str], tenant: str = "") -> str:
        """The name of the tenant that the identity belongs to, *tenant* if it may have that one.

        Raises :class:`EngineUnavailable`, and :class:`CommandError` for an identity that has none.
        """
        if not self._settings.tenants_file and tenant in ("", TENANT):
            return TENANT
        await self.endpoint()
        return str(await self.command("assign", principal=principal, groups=list(groups), tenant=tenant))

    async def command(self, op: str, **arguments: Any) -> Any:
        """Have the running engine do *op*; returns what it answers.

        Raises :class:`EngineUnavailable` if it does not run or does not answer, :class:`CommandError` if it says no.
        """
        if self._stdin is None:
            raise EngineUnavailable("the file engine does not run", 1)
        number = next(self._numbers)
        answer = self._commands[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._settings.probe_timeout):
                line = json.dumps({"id": number, "op": op, **arguments})
                self._stdin.write(line.encode("ascii") + b"\n")
                await self._stdin.drain()
                return await answer
        except TimeoutError:
            raise EngineUnavailable("the file engine does not answer", 1) from None
        except ConnectionError:
            raise EngineUnavailable("the file engine has ended", 1) from None
        finally:
            del self._commands[number]

    async def revoke(self) -> None:
        """Tell the engine which tokens were revoked since it was told last; their sessions end.

        Nothing to do if it does not run: the next one is told when it starts. Raises what :meth:`command` does.
        """
        async with self._revoking:
            revoked = set(await asyncio.to_thread(self._revoked))
            for id in revoked - self._told:
                if self._stdin is None:
                    return
                told = self._told
                await self.command("revoke", token=id)
                told.add(id)
            self._told &= revoked

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

    async def change(self) -> None:
        """Wait for the next change of :attr:`state`."""
        await self._changed.wait()

    def info(self) -> dict[str, Any]:
        """The engine's state for people: ``state``, ``pid``, ``restarts``, ``error``."""
        pid = self._endpoint.pid if self._endpoint is not None else None
        return {"state": self.state, "pid": pid, "restarts": self.restarts, "error": self.error}

    async def look(self) -> dict[str, Any]:
        """The engine's status as it is now; empty if it does not run or does not answer."""
        if self._endpoint is None:
            return {}
        try:
            return await self._ask(self._endpoint)
        except Exception as exc:
            self._log.debug("the file engine gave no status: %s", exc)
            return {}

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
            self._complaint = ""
            process: asyncio.subprocess.Process | None = None
            logged: asyncio.Task[None] | None = None
            heard: asyncio.Task[None] | None = None
            try:
                if self._state_dir is None:
                    self._state_dir = await asyncio.to_thread(StateDir, self._runtime_dir)
                process = await self._spawn()
                assert process.stderr is not None
                logged = asyncio.create_task(self._forward(process.stderr))
                endpoint = await self._introduce(process)
                born = loop.time()
                assert process.stdout is not None
                self._stdin = process.stdin
                heard = asyncio.create_task(self._hear(process.stdout))
                self._endpoint, self.error = endpoint, None
                self._set("running")
                self._log.info("the file engine runs as process %d", endpoint.pid)
                self.error = await self._watch(process, endpoint)
            except Exception as exc:  # whatever it is, the server goes on and the next start is tried
                self.error = str(exc) or type(exc).__name__
            finally:
                self._endpoint = self._stdin = None
                self.status = {}
                for answer in self._commands.values():
                    if not answer.done():
                        answer.set_exception(EngineUnavailable("the file engine has ended", 1))
                self._set("starting")  # so that a ticket asked for meanwhile waits for what comes
                if process is not None:
                    # Shielded: a cancelled stop() must not leave a process behind.
                    await asyncio.shield(self._end(process, logged, heard))
            if born is None and self._complaint:
                self.error = f"{self.error}: {self._complaint}"
            if born is not None and process is not None and process.returncode == _RENEW:
                self.error = None
                self._log.info("the file engine is started anew, as it asked for")
                continue
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
            env=environment(),
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
        try:
            revoked = await asyncio.to_thread(self._revoked)
        except (WsFuseError, OSError) as exc:  # then no token is accepted either
            self._log.error("the list of tokens cannot be read: %s", exc)
            revoked = ()
        self._told = set(revoked)
        config = {
            **settings.engine_config(),
            "secret": self._secret.hex(),
            "audience": self._audience,
            "state_dir": str(state_dir.path),
            "revoked": list(revoked),
            "private": self._private,
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
                await self._try_to_revoke()
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

    async def _try_to_revoke(self) -> None:
        try:
            await self.revoke()
        except Exception as exc:  # it is tried again with the next probe
            self._log.error("revoked tokens could not be made known to the file engine: %s", exc)

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
        # Shielded: who is not there any longer for the answer leaves a connection that has to end with the engine.
        asked = asyncio.ensure_future(AsyncHTTPClient().fetch(request))
        self._asked.add(asked)
        asked.add_done_callback(self._answered)
        response = await asyncio.shield(asked)
        status = json.loads(response.body)
        if not isinstance(status, dict):
            raise ValueError("the status is not an object")
        if endpoint is self._endpoint:
            self.status = status
        return status

    def _answered(self, asked: asyncio.Future[HTTPResponse]) -> None:
        self._asked.discard(asked)
        asked.exception()  # nobody may be left who hears of it

    async def _end(self, process: asyncio.subprocess.Process, *readers: asyncio.Task[None] | None) -> None:
        """End of input, then SIGTERM, then SIGKILL; returns when the process is gone and what it said is read."""
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
        await asyncio.gather(*(reader for reader in readers if reader is not None))
        await asyncio.gather(*self._asked, return_exceptions=True)

    async def _how(self, process: asyncio.subprocess.Process) -> str:
        async with asyncio.timeout(self._settings.engine_stop_timeout):
            code = await process.wait()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"

    async def _hear(self, stream: asyncio.StreamReader) -> None:
        """What the engine says on standard output: answers to commands, and events."""
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than the limit; the rest of it follows
                continue
            if not line:
                return
            try:
                said = json.loads(line)
                number = said.get("id")
            except (ValueError, AttributeError):
                self._log.warning("the file engine said something that is no JSON object")
                continue
            if number is None:
                try:
                    self._on_event(said)
                except Exception:  # an observer's trouble is not the engine's
                    self._log.exception("an event of the file engine could not be dealt with")
                continue
            answer = self._commands.get(number)
            if answer is None or answer.done():
                continue  # it came too late
            if "error" in said:
                answer.set_exception(CommandError(str(said["error"])))
            else:
                answer.set_result(said.get("result"))

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
                if level >= logging.ERROR:
                    self._complaint = text.partition(": ")[2] or text
            self._log.log(level, "engine: %s", text)

    def _set(self, state: str) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def environment() -> dict[str, str]:
    """The server's environment without its credentials, and this very package importable."""
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_TOKEN")}
    package = str(Path(__file__).resolve().parents[2])
    paths = [os.path.abspath(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if os.path.basename(package) not in ("site-packages", "dist-packages") and package not in paths:
        paths.append(package)  # a checkout that is not installed
    if paths:
        environ["PYTHONPATH"] = os.pathsep.join(paths)
    return environ

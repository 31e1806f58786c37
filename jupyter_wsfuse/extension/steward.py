"""The helper process that looks at mounts on this machine and carries out what the panel asks for.

It is ``jupyter_wsfuse.mount.steward``, started when it is first needed and ended after :data:`IDLE` seconds without
use. One that dies or does not answer is replaced at the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.extension.supervisor import environment

STEWARD: Final = (sys.executable, "-P", "-m", "jupyter_wsfuse.mount.steward")
#: Seconds without a request after which the process is ended, and that it may take for it.
IDLE: Final = 15.0
_LEAVE: Final = 2.0
_MAX_LINE: Final = 4 << 20


class StewardError(WsFuseError):
    """It did not do what it was asked for. ``kind`` and ``more`` are its own words (see
    :mod:`jupyter_wsfuse.mount.steward`); or "gone": it has ended or does not answer."""

    def __init__(self, kind: str, message: str, more: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.more = more or {}


class Steward:
    """Owns the process. All methods belong to one event loop."""

    def __init__(
        self,
        log: logging.Logger | logging.LoggerAdapter[Any],
        *,
        command: Sequence[str] | None = None,
        idle: float = IDLE,
    ) -> None:
        self._log = log
        self._command = tuple(command or STEWARD)
        self._idle = idle
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._starting = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._ends: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pid(self) -> int:
        """0: it does not run."""
        return 0 if self._process is None else self._process.pid

    async def request(self, op: str, timeout: float, **arguments: Any) -> Any:
        """What it answers. Raises :class:`StewardError`; "gone" also if it does not answer within *timeout* seconds."""
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._rest_later()
        try:
            async with asyncio.timeout(timeout):
                process = await self._running()
                assert process.stdin is not None
                process.stdin.write(json.dumps({"id": number, "op": op, **arguments}).encode() + b"\n")
                await process.stdin.drain()
                return await answer
        except TimeoutError:
            raise StewardError("gone", "the helper for mounts does not answer; try again") from None
        except OSError as exc:
            raise StewardError("gone", f"the helper for mounts cannot be reached: {exc}") from None
        finally:
            del self._waiting[number]
            self._rest_later()

    async def close(self) -> None:
        """End the process; what it was asked for fails."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._end()
        await asyncio.gather(*self._ends, return_exceptions=True)

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._closed:
                raise StewardError("gone", "the Jupyter server is stopping")
            if self._process is None or self._process.returncode is not None:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    limit=_MAX_LINE,
                    env=environment(),
                    start_new_session=True,
                )
                assert process.stdout is not None
                assert process.stderr is not None
                self._process = process
                self._readers = [
                    asyncio.create_task(self._hear(process, process.stdout)),
                    asyncio.create_task(self._forward(process.stderr)),
                ]
            return self._process

    def _rest_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._idle, self._end)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        task = asyncio.create_task(self._leave(process, self._readers))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _leave(self, process: asyncio.subprocess.Process, readers: list[asyncio.Task[None]]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_LEAVE):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()
        await asyncio.gather(*readers)

    async def _hear(self, process: asyncio.subprocess.Process, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(ValueError):  # a line longer than the limit
            while line := await stream.readline():
                try:
                    said = json.loads(line)
                    answer = self._waiting.get(said["id"])
                except (ValueError, LookupError, TypeError):
                    break
                if answer is None or answer.done():
                    continue  # it came too late
                error = said.get("error")
                if error is None:
                    answer.set_result(said.get("result"))
                else:
                    more = {name: value for name, value in error.items() if name not in ("kind", "message")}
                    answer.set_exception(StewardError(str(error["kind"]), str(error["message"]), more))
        if self._process is process:  # it has ended, or talks nonsense: the next request starts another
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(StewardError("gone", "the helper for mounts has ended; try again"))
            self._end()

    async def _forward(self, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(ValueError):
            while line := await stream.readline():
                self._log.warning("helper for mounts: %s", line.decode("utf-8", "backslashreplace").rstrip())

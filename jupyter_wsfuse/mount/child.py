"""A daemon process as its supervisor sees it: started, spoken to, waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jupyter_wsfuse.mount.config import MountConfig, child_environment
from jupyter_wsfuse.mount.control import Channel, ChannelClosed, error_from_json

#: The daemon's exit codes: the mount is gone; it was asked to go and another may take over; it failed.
EXIT_UNMOUNTED, EXIT_STOPPED, EXIT_FAILED = 0, 75, 1


class Daemon:
    """One daemon. ``connected`` and ``serving`` become done when it says so, or get the error it died of;
    ``exited`` becomes its exit code (negative: the signal)."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self._on_line = on_line
        self.connected: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.serving: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and not self.exited.done()

    async def start(self, config: MountConfig, *, state_fd: int, claim_fd: int) -> None:
        """Start the process; it connects to the server by itself, and serves after :meth:`serve`."""
        ours, theirs = Channel.pair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "jupyter_wsfuse.mount.daemon"),
                *(str(theirs.fileno()), str(state_fd)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(), state_fd, claim_fd),
                start_new_session=True,  # Ctrl-C in a terminal is the supervisor's business
                cwd="/",
                env=child_environment(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours, on_event=self._on_event)
        self._watcher = asyncio.create_task(self._watch())
        assert self._process.stdin is not None
        self._process.stdin.write(config.to_json().encode())
        with contextlib.suppress(ConnectionError):  # it is dead already: `exited` tells
            await self._process.stdin.drain()
        self._process.stdin.close()

    def serve(self, fuse_fd: int) -> None:
        """Give it the connection to the kernel."""
        assert self._channel is not None
        self._channel.announce("serve", fds=(fuse_fd,))

    async def request(self, op: str, *, timeout: float, **arguments: Any) -> Any:
        """Ask it. Raises as :meth:`Channel.request` does."""
        if self._channel is None:
            raise ChannelClosed("the daemon is not running")
        return await self._channel.request(op, timeout=timeout, **arguments)

    def kill(self, signal: int) -> None:
        """Send it *signal* if it still runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal)

    def _on_event(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        for fd in fds:
            os.close(fd)
        future = {"connected": self.connected, "serving": self.serving}.get(message["event"])
        if future is not None and not future.done():
            future.set_result(message)
        if message["event"] == "failed":
            self._fail(error_from_json(message["error"]))

    def _fail(self, exc: BaseException) -> None:
        for future in (self.connected, self.serving):
            if not future.done():
                future.set_exception(exc)
                future.exception()  # it may be that nobody waits for it

    async def _watch(self) -> None:
        process = self._process
        assert process is not None
        assert process.stderr is not None
        assert self._channel is not None
        last = ""
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # a line longer than the buffer
                continue
            if not line:
                break
            last = line.decode(errors="backslashreplace").rstrip()
            self._on_line(last)
        code = await process.wait()
        await asyncio.sleep(0)  # what it said last is read first
        self._channel.close()
        self._fail(ChannelClosed(f"the daemon ended with code {code}: {last}" if last else f"code {code}"))
        self.exited.set_result(code)

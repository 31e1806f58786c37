"""Callers that wait for a reply: until it comes, the mount's deadline passes, or they are interrupted."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol.messages import Reply

Answer = tuple[Reply, bytes]


class Waiting:
    """Who waits for which reply.

    ``futures``: seq -> the future to set, and the key under which the request was made; the connection reads
    and writes it directly on its hot path. A request is *stranded* while there is no connection for it; when it
    has been for *deadline* seconds it fails with ``ETIMEDOUT``. *give_up* is told the seq of each such request.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deadline: float, give_up: Callable[[int], object]
    ) -> None:
        self.futures: dict[int, tuple[asyncio.Future[Answer], int]] = {}
        self.interrupted: set[int] = (
            set()
        )  # seqs whose caller would rather not wait, but must while connected
        self.why = ""  # the last trouble, for messages
        self._loop = loop
        self._deadline = deadline
        self._give_up = give_up
        self._stranded: dict[int, float] = {}  # seq -> loop time since when; in that order
        self._timer: asyncio.TimerHandle | None = None

    def fail(self, seq: int, number: int, message: str = "") -> None:
        """Wake the caller with an error. If the request was sent, its reply will find nobody."""
        future, _ = self.futures.pop(seq)
        self._stranded.pop(seq, None)
        self.interrupted.discard(seq)
        if not future.done():
            future.set_exception(os_error(number, message))

    def fail_all(self, number: int, message: str = "") -> None:
        for seq in list(self.futures):
            self.fail(seq, number, message)
        self.rescued()

    def forget(self, seq: int) -> bool:
        """The caller does not wait any more. False: he has got his reply meanwhile."""
        self._stranded.pop(seq, None)
        self.interrupted.discard(seq)
        return self.futures.pop(seq, None) is not None

    def under(self, key: int) -> list[int]:
        """The requests made under *key*."""
        return [seq for seq, (_, owner) in self.futures.items() if owner == key]

    def strand(self, seq: int) -> None:
        """*seq* waits for a connection from now on."""
        self._stranded[seq] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._deadline, self._expire)

    def strand_all(self) -> None:
        """The connection was lost: everybody waits for the next, but for those who were interrupted."""
        for seq in list(self.interrupted):
            self.fail(seq, errno.EINTR)
        for seq in self.futures:
            if seq not in self._stranded:
                self.strand(seq)

    def rescued(self) -> None:
        """There is a connection again."""
        self._stranded.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for seq, since in list(self._stranded.items()):
            if since + self._deadline > now:
                self._timer = self._loop.call_at(since + self._deadline, self._expire)
                return
            self._give_up(seq)
            why = f"no connection for {self._deadline:g} seconds"
            self.fail(seq, errno.ETIMEDOUT, f"{why}: {self.why}" if self.why else why)

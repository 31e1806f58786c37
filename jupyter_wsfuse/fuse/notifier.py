"""Telling the kernel, in a thread of its own, to forget what it has cached.

Writing an invalidation waits for locks of the kernel (a directory's, a page's) that may be held by an operation which
in turn waits for us. So it must never happen on the event loop's thread, nor be waited for inside an operation.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import threading
from typing import Final

from jupyter_wsfuse.fuse import replies

log = logging.getLogger(__name__)

# Not cached (any more), or nobody there to cache: all the same to us.
_IGNORED: Final = frozenset({errno.ENOENT, errno.ENOTCONN, errno.ENODEV, errno.ENOTDIR})


class Notifier:
    """An :class:`~.interface.Invalidator` on the connection *fd*; nothing runs before it is used."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        # A descriptor of its own: the thread may still be in the kernel when the owner closes his.
        self._fd = os.dup(fd)
        self._loop = loop
        self._queue: queue.SimpleQueue[bytes | asyncio.Future[None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def inval_node(self, node: int, data: bool = True) -> None:
        """Forget attributes of *node* and, with ``data``, its pages."""
        self._put(replies.inval_inode(node, data=data))

    def inval_entry(self, parent: int, name: bytes) -> None:
        """Forget what *name* in *parent* leads to."""
        self._put(replies.inval_entry(parent, name))

    async def settled(self) -> None:
        """Until everything queued so far has reached the kernel, or can not any more."""
        if self._thread is not None and not self._closed:
            marker: asyncio.Future[None] = self._loop.create_future()
            self._queue.put(marker)
            await marker

    def close(self) -> threading.Thread | None:
        """No more; what is queued is still written. The thread to join, if there is one.

        It ends when the kernel has let go of the locks it needs: do not wait while requests are unanswered.
        """
        if not self._closed:
            self._closed = True
            if self._thread is None:
                os.close(self._fd)
            else:
                self._queue.put(None)
        return self._thread

    def _put(self, message: bytes) -> None:
        if self._closed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="wsfuse-notifier", daemon=True)
            self._thread.start()
        self._queue.put(message)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, bytes):
                self._write(item)
            else:
                self._settle(item)
        os.close(self._fd)

    def _write(self, message: bytes) -> None:
        try:
            os.write(self._fd, message)
        except OSError as exc:
            if exc.errno not in _IGNORED:
                log.error("the kernel refused a notification of %d bytes: %s", len(message), exc)

    def _settle(self, marker: asyncio.Future[None]) -> None:
        try:
            self._loop.call_soon_threadsafe(_set, marker)
        except RuntimeError:  # the loop is closed, and whoever waited with it
            pass


def _set(marker: asyncio.Future[None]) -> None:
    if not marker.done():
        marker.set_result(None)

"""The file system that a driver shows to a kernel: asynchronous POSIX operations on nodes.

:class:`Vfs` puts the parts together; each is a class over the same :class:`~.core.Core`:

=====================  =============================================================================
:mod:`.names`          lookup, forget, mkdir, mknod, symlink, link, unlink, rmdir, rename
:mod:`.attributes`     getattr, setattr, access, readlink, statfs, syncfs, extended attributes
:mod:`.directories`    opendir, readdir, unreturned, releasedir, fsyncdir
:mod:`.files`          open, create, tmpfile, release, write, fsync, fallocate, lseek, copy_file_range
:mod:`.reading`        read
:mod:`.locking`        getlk, setlk, flush
:mod:`.recovery`       notified, recover, live_handles; restore and snapshot for a daemon that is replaced
=====================  =============================================================================

Every operation is given the :class:`Caller` that it runs for and raises :class:`OSError` when it fails. Nodes,
handles and keys are the integers of :mod:`.api`. Everything runs on one event loop.

The driver's duties: each :class:`Entry` with a node is forgotten as often as it was returned (:meth:`Vfs.forget`),
each :class:`Opened` released once, what a listing had no room for is handed to :meth:`Vfs.unreturned`, and
:meth:`Vfs.done` is called when the kernel has the reply to an operation with a key.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .api import (
    Caller,
    DirItem,
    Entry,
    Invalidator,
    NoInvalidator,
    Opened,
    Recorder,
    Requester,
    VfsOptions,
)
from .attributes import AttributeOperations
from .directories import DirectoryOperations
from .files import FileOperations
from .locking import LockOperations
from .names import NameOperations
from .reading import ReadOperations
from .recovery import RecoveryOperations

__all__ = [
    "Caller", "DirItem", "Entry", "Invalidator", "NoInvalidator", "Opened", "Recorder", "Requester", "Vfs",
    "VfsOptions",
]  # fmt: skip


class Vfs(
    NameOperations,
    AttributeOperations,
    DirectoryOperations,
    FileOperations,
    ReadOperations,
    LockOperations,
    RecoveryOperations,
):
    """One mounted workspace. See the module's text.

    Made before *connection* is opened, whose hooks it sets; :attr:`invalidator` is the driver's to set. *clock* is
    monotonic, in seconds; *wall* tells nanoseconds since the epoch.
    """

    def __init__(
        self,
        connection: Requester,
        options: VfsOptions,
        recorder: Recorder | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(connection, options, recorder, clock=clock, wall=wall)
        self._unrecovered = {}
        self._flights, self._exact = {}, {}
        self._pages, self._streams = OrderedDict(), OrderedDict()
        connection.on_notification = self.notified
        connection.on_welcome = self.recover
        connection.live_handles = self.live_handles
        connection.on_state = self.state_changed

    async def start(self) -> None:
        """Before the connection is opened. What can be wrong with the mount shows in :meth:`recover`."""

    def unsynced(self) -> list[tuple[bytes, int]]:
        """Files with data that are not on the server yet: path, and how many bytes. What is written goes to the server
        before it is acknowledged, so there are none."""
        return []

    def rescue(self) -> dict[str, dict[str, Any]]:
        """What could not be brought to the server and was kept here, by name: ``{path, reason, bytes, time}``. As
        nothing is acknowledged before it is there, nothing has to be kept."""
        return {}

    async def stop(self) -> None:
        """The mount is gone or handed on: notifications find nobody any more."""
        self.invalidator = NoInvalidator()
        await self.fetcher.stop()

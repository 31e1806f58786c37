"""What every operation is given, and the shape that all of them have."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from jupyter_wsfuse.engine import syscalls
from jupyter_wsfuse.engine.handles import Handle, HandleTable
from jupyter_wsfuse.engine.permissions import Policy
from jupyter_wsfuse.engine.sandbox import Sandbox
from jupyter_wsfuse.errors import os_error
from jupyter_wsfuse.protocol.messages import Attr, Identity, Ref, Reply

Payload: TypeAlias = bytes | bytearray | memoryview
Result: TypeAlias = tuple[Reply, Payload]

MAX_IO: Final = 1 << 20  # bytes of one Read or Write
_ID_MAX: Final = (1 << 32) - 2  # the largest user or group id; the next one means "keep"


@dataclass(slots=True)
class Context:
    """The session's view: its workspace, its open files, whether it may choose who owns what (``raw_owner``), from
    whom it gets leases (None: it gets none), and what it may do at all. Another ``policy`` may be put in at any time:
    it holds from the next request on, for files that are open as well."""

    sandbox: Sandbox
    handles: HandleTable = field(default_factory=HandleTable)
    raw_owner: bool = False
    policy: Policy = Policy.OPEN
    leases: Leases | None = None


class Leases(Protocol):
    """Where leases come from. Asked before the state is read that they are to be good for. In any thread; quick."""

    def directory(self, fd: int, attr: Attr) -> bool:
        """Whether there is a lease on the directory now that *fd* is open on."""

    def file(self, fd: int, attr: Attr) -> bool:
        """Whether there is one on the regular file that *fd* is open on."""

    def holds(self, identity: Identity) -> bool:
        """Whether there was one before."""


class Operation(NamedTuple):
    """How a request is executed: ``function(context, request, payload, nowait)`` gives the reply and its
    payload.

    ``inline``: may be tried on the event loop with ``nowait``, where the sandbox says ``inline_ok``; it
    raises ``WouldBlock``, having done nothing, when it has to be repeated in a worker thread. Errors are
    :class:`OSError`.
    """

    function: Callable[[Context, Any, Payload, bool], Result]
    inline: bool = False


def check_range(*values: int) -> None:
    """``EINVAL`` unless all are file offsets or sizes that the kernel could be given."""
    for value in values:
        if not 0 <= value < 1 << 63:
            raise os_error(errno.EINVAL)


def check_owner(context: Context, uid: int | None, gid: int | None) -> None:
    """``EPERM`` if an owner is named where the session may not, ``EINVAL`` for impossible ids."""
    for id in (uid, gid):
        if id is not None:
            if not context.raw_owner:
                raise os_error(errno.EPERM)
            if not 0 <= id <= _ID_MAX:
                raise os_error(errno.EINVAL)


@contextmanager
def owned_by(context: Context, uid: int | None, gid: int | None) -> Iterator[None]:
    """What is created in the block belongs to the ids given; None is the engine's own."""
    if uid is None and gid is None:
        yield
        return
    check_owner(context, uid, gid)
    with syscalls.creating_as(os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid):
        yield


def check_fence(handle: Handle | None) -> None:
    """Raise if the session lost locks that this handle relied on: it must not change the file any more."""
    if handle is not None and handle.lost:
        raise os_error(handle.lost, "the locks held through this handle were lost")


def entry_path(parent: Ref, name: bytes) -> bytes:
    """The path of an entry, as far as its directory's is known."""
    return parent.path + b"/" + name if parent.path else name

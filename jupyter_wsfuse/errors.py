"""The exception tree, and the one table between exceptions and errno.

::

    WsFuseError
    ├── LocalProtocolError      we broke the rules of the protocol: a bug on this side
    ├── RemoteProtocolError     the peer broke them: close the connection, trust nothing it sent
    │   └── LimitExceededError  ... by sending something larger than was agreed
    ├── RefusedError            the engine refused the handshake; ``code`` says why
    ├── DiscoveryError          no server, or no way to use it; the message says what to do
    ├── TransportError          the connection failed or was lost; may be tried again
    ├── SandboxError            an OSError as well: a name would have led outside the workspace
    ├── DeniedError             an OSError as well: a permission rule says no; ``rule`` names it
    └── MountError              mounting or unmounting failed; the message says what to do
        └── NotMountedError     ... because nothing of ours is mounted there

File operations raise plain :class:`OSError` with ``errno`` set. Numbers differ between operating
systems, so on the wire an error travels by its *name* (``"ENOENT"``).
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Final


class WsFuseError(Exception):
    """Base of everything this project raises on purpose."""


class LocalProtocolError(WsFuseError):
    """This side tried something the protocol does not allow in its present state."""


class RemoteProtocolError(WsFuseError):
    """The peer sent something the protocol does not allow.

    ``close_code`` is the WebSocket close code (RFC 6455, section 7.4.1) to answer with.
    """

    close_code: int = 1002


class LimitExceededError(RemoteProtocolError):
    """The peer sent more than the agreed limits allow."""

    close_code = 1009


class RefusedError(WsFuseError):
    """The engine did not admit the client.

    ``code`` is one of ``protocol.messages.REFUSALS``; it is stable, the message is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DiscoveryError(WsFuseError):
    """No Jupyter server was found, or it does not serve a workspace."""


class TransportError(WsFuseError):
    """A connection could not be made, or broke."""


class MountError(WsFuseError):
    """A mount could not be made, found or taken down."""


class NotMountedError(MountError):
    """None of our mounts is where one was expected."""


class SandboxError(WsFuseError, OSError):
    """A name would have led outside the workspace. Carries ``EACCES``, and never the outside path."""

    def __init__(self, message: str = "path leads outside the workspace") -> None:
        OSError.__init__(self, errno.EACCES, message)


class DeniedError(WsFuseError, OSError):
    """A permission rule says no. Carries ``EACCES``; ``rule`` names the rule that decided, for the log, the audit
    and whoever asks why."""

    def __init__(self, rule: str) -> None:
        OSError.__init__(self, errno.EACCES, f"denied by {rule}")
        self.rule = rule


# Exceptions without an errno of their own. First match wins; anything not listed is EIO, never
# ENOSYS, which the kernel would remember for the life of the mount.
_ERRNO_OF: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (asyncio.CancelledError, errno.EINTR),
    (TimeoutError, errno.ETIMEDOUT),
    (InterruptedError, errno.EINTR),
    (RefusedError, errno.EACCES),
    (LimitExceededError, errno.EMSGSIZE),
    (TransportError, errno.EIO),
    (MemoryError, errno.ENOMEM),
    (RecursionError, errno.ELOOP),
    (NotImplementedError, errno.EOPNOTSUPP),
)


def errno_of(exc: BaseException) -> int:
    """The positive errno number to answer a file operation with that ended in *exc*."""
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno
    for kind, number in _ERRNO_OF:
        if isinstance(exc, kind):
            return number
    return errno.EIO


# Where two names share a number, ``errno.errorcode`` has one of them; these are the ones of POSIX.
_NAMES: Final[dict[int, str]] = {
    **errno.errorcode,
    errno.EAGAIN: "EAGAIN",
    errno.EDEADLK: "EDEADLK",
    errno.EOPNOTSUPP: "EOPNOTSUPP",
}


def errno_name(number: int) -> str:
    """The portable name of an errno number, ``"EIO"`` for one that this system does not know."""
    return _NAMES.get(number, "EIO")


def errno_number(name: str) -> int:
    """The number on this system of an errno name from the wire, ``EIO`` for an unknown one."""
    number = getattr(errno, name, None) if name[:1] == "E" and name.isalnum() else None
    return number if isinstance(number, int) else errno.EIO


def os_error(number: int, message: str = "") -> OSError:
    """An :class:`OSError` (of the right subclass) for *number*, with a message for people."""
    return OSError(number, message or os.strerror(number))

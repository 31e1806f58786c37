"""Which mounts there are: the kernel's mount table, and one entry file per mount of ours.

An entry is ``<id>.json`` in a private directory, beside the mount's control socket ``<id>.sock`` and its log. Its
liveness is a lock on the file, not a process id: the supervisor takes it, the daemon inherits it, so it is free
exactly when nobody serves the mount any more, however they ended.

Nothing here touches a mount point itself: ``stat`` on a mount whose server is gone may wait for it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import struct
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from jupyter_wsfuse.errors import MountError, NotMountedError

#: What mounts of ours are called in the kernel's table.
FSTYPE = "fuse.wsfuse"

#: struct flock of <fcntl.h> on 64 bit: type, whence, start, length, pid (0 for locks of an open file description).
_FLOCK = struct.Struct("hhqqi4x")


# --- the runtime directory -------------------------------------------------------------------------------------


def _is_private(path: Path) -> bool:
    """A real directory of ours that nobody else may enter."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _candidates() -> list[Path]:
    """Where the runtime directory may be, best first: a kernel and a shell may see different environments."""
    override = os.environ.get("WSFUSE_RUNTIME_DIR")
    if override:
        return [Path(override).absolute()]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # platformdirs warns where it invents a directory; we do not take those
        system = Path(platformdirs.user_runtime_dir())
    for parent in dict.fromkeys((system, Path(f"/run/user/{os.getuid()}"))):
        if _is_private(parent):
            found.append(parent / "wsfuse")
    found.append(Path(tempfile.gettempdir()) / f"wsfuse-{os.getuid()}")
    return found


def runtime_dir() -> Path:
    """The private directory (0700) for entries, sockets and logs; made if missing.

    Raises :class:`MountError` if somebody else has put something in its place.
    """
    path = _candidates()[0]
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & 0o077:
            os.chmod(path, 0o700)
    except OSError as exc:
        raise MountError(
            f"cannot use {path} for sockets and logs ({exc.strerror}); set WSFUSE_RUNTIME_DIR to a directory of yours"
        ) from exc
    if not _is_private(path):
        raise MountError(
            f"{path} is not a private directory of yours; remove it, or set WSFUSE_RUNTIME_DIR to another one"
        )
    return path


# --- the kernel's mount table ----------------------------------------------------------------------------------


class KernelMount(NamedTuple):
    """One line of ``/proc/self/mountinfo``. ``minor`` names the connection in ``/sys/fs/fuse/connections``."""

    path: str
    fstype: str
    source: str
    minor: int


def _unescape(text: str) -> str:
    raw = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), os.fsencode(text))
    return os.fsdecode(raw)


def kernel_mounts() -> list[KernelMount]:
    """Every mount of ours in this mount namespace, the topmost of a stack last."""
    mounts = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.partition(" - ")
            fields, (fstype, source, *_) = before.split(" "), after.split(" ")
            if fstype == FSTYPE:
                mounts.append(
                    KernelMount(
                        _unescape(fields[4]), fstype, _unescape(source), int(fields[2].partition(":")[2])
                    )
                )
    return mounts


def kernel_mount(mountpoint: str) -> KernelMount | None:
    """The topmost mount of ours on exactly *mountpoint*."""
    found = [mount for mount in kernel_mounts() if mount.path == mountpoint]
    return found[-1] if found else None


def resolve_mountpoint(path: str) -> str:
    """*path* absolute and without symbolic links, without looking at it if it is a mount of ours."""
    mounted = {mount.path for mount in kernel_mounts()}
    path = os.path.abspath(os.path.expanduser(path))
    for _ in range(40):  # ELOOP, as in the kernel
        if path in mounted:
            return path
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if path in mounted or not os.path.islink(path):
            return path
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    raise MountError(f"{path} is a loop of symbolic links")


# --- entries ---------------------------------------------------------------------------------------------------


def mount_id(mountpoint: str) -> str:
    """The name of the files that belong to a mount on *mountpoint*."""
    return hashlib.blake2b(os.fsencode(mountpoint), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a mount. ``info`` is what its supervisor wrote; ``alive``: somebody serves it."""

    directory: Path
    mountpoint: str
    alive: bool
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return mount_id(self.mountpoint)

    @property
    def file(self) -> Path:
        return self.directory / f"{self.id}.json"

    @property
    def socket(self) -> Path:
        return self.directory / f"{self.id}.sock"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.id}.log"


class Claim:
    """The right to mount on one mount point, held by a lock until :meth:`release` or the end of the process.

    Pass :attr:`fd` to a child to let it hold the claim as well.
    """

    def __init__(self, mountpoint: str, directory: Path | None = None) -> None:
        """Raises :class:`MountError` if another process has it."""
        self.entry = Entry(directory or runtime_dir(), mountpoint, True)
        while True:
            self.fd = os.open(self.entry.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
                if os.path.samestat(os.fstat(self.fd), os.stat(self.entry.file)):
                    return
            except FileNotFoundError:
                pass  # the previous holder removed it between our open and our lock
            except OSError as exc:
                os.close(self.fd)
                if exc.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                raise MountError(
                    f"{mountpoint} is already mounted, or just being mounted; see `wsfuse status`, "
                    f"or take it down with `wsfuse umount {mountpoint}`"
                ) from None
            os.close(self.fd)

    def write(self, info: dict[str, Any]) -> None:
        """Publish *info* in the entry (no secrets: it is for ``status``)."""
        data = json.dumps({**info, "mountpoint": self.entry.mountpoint}).encode()
        os.pwrite(self.fd, data, 0)
        os.ftruncate(self.fd, len(data))

    def release(self) -> None:
        """Remove entry and socket. The log stays, for whoever wants to know what happened."""
        for path in (self.entry.socket, self.entry.file):
            path.unlink(missing_ok=True)
        os.close(self.fd)


def _held(fd: int) -> bool:
    """Whether anybody holds the lock; asking does not take it."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _read(file: Path) -> Entry | None:
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None  # just removed
    try:
        alive = _held(fd)
        info = json.loads(os.read(fd, 1 << 20))
        return Entry(file.parent, str(info["mountpoint"]), alive, info)
    except (ValueError, LookupError, TypeError):
        return None  # not written yet
    finally:
        os.close(fd)


def entries() -> Iterator[Entry]:
    """Every entry, dead ones included."""
    for directory in _candidates():
        if _is_private(directory):
            for file in sorted(directory.glob("*.json")):
                entry = _read(file)
                if entry is not None:
                    yield entry


def find(mountpoint: str) -> Entry:
    """The entry for *mountpoint* (as from :func:`resolve_mountpoint`). Raises :class:`NotMountedError`."""
    for entry in entries():
        if entry.mountpoint == mountpoint:
            return entry
    raise NotMountedError(f"nothing of wsfuse is mounted on {mountpoint}; `wsfuse status` lists what is")

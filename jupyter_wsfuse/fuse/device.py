"""``/dev/fuse``: mounting, unmounting, and what to do about a mount that does not answer.

Nothing here looks at a mount point that is, or may be, a mount: ``stat`` on a mount whose server is gone or stuck may
wait for it. ``/proc/self/mountinfo`` knows all that is needed. The functions block, some until a server has answered:
call them in a thread, where that server is this process.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from typing import Final, NamedTuple

from jupyter_wsfuse.errors import MountError

DEVICE: Final = "/dev/fuse"
_MOUNTINFO: Final = "/proc/thread-self/mountinfo"
_CONNECTIONS: Final = "/sys/fs/fuse/connections"
_BDI: Final = "/sys/class/bdi"
_CONF: Final = "/etc/fuse.conf"
_FUSERMOUNT: Final = ("fusermount3", "fusermount")

# <sys/mount.h>
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_MAX_LINKS: Final = 40  # as many as the kernel follows

#: KiB that the kernel reads ahead, in requests of 1 MiB. Measured, sequential reads with answers after 0 / 1 / 20 ms:
#: 128 (the default): 2600 / 210 / 13 MB/s, 1024: 4300 / 1170 / 99, 4096: 4100 / 2880 / 350, 16384: 4000 / 3530 / 1010.
#: More than this is the client's own read-ahead to fetch, which knows the link.
READ_AHEAD_KB: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class MountOptions:
    """``default_permissions``: the kernel checks modes itself. ``max_read``: bytes of one READ; 0: as negotiated."""

    mountpoint: str
    fsname: str
    subtype: str = "wsfuse"
    allow_other: bool = False
    read_only: bool = False
    default_permissions: bool = False
    max_read: int = 0
    read_ahead_kb: int = READ_AHEAD_KB


class Mounted(NamedTuple):
    """A line of the mount table. ``device`` is ``major:minor``; the minor number names a FUSE connection."""

    device: str
    path: bytes
    fstype: str

    @property
    def connection(self) -> int:
        """Its name under ``/sys/fs/fuse/connections``."""
        return int(self.device.partition(":")[2])


# --- the mount table -----------------------------------------------------------------------------------------------


def _unescape(path: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), path)


def find_mount(mountpoint: str) -> Mounted | None:
    """The topmost mount on *mountpoint*, which must be absolute and free of symbolic links; see :func:`locate`."""
    wanted = os.fsencode(mountpoint)
    found = None
    with open(_MOUNTINFO, "rb") as table:
        for line in table:
            before, _, after = line.partition(b" - ")
            fields = before.split(b" ")
            path = _unescape(fields[4])
            if path == wanted:
                found = Mounted(fields[2].decode(), path, after.split(b" ")[0].decode())
    return found


def _beside(path: str) -> str:
    """*path* with its parents free of symbolic links, whatever it is itself."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def locate(mountpoint: str) -> str:
    """*mountpoint* as the mount table has it.

    Symbolic links in its place are followed one step at a time: realpath(3) would look at the end of the way as well,
    which may be a mount.
    """
    path = _beside(mountpoint)
    for _ in range(_MAX_LINKS):
        if find_mount(path) is not None or not os.path.islink(path):
            break
        path = _beside(os.path.join(os.path.dirname(path), os.readlink(path)))
    return path


def connection_id(mountpoint: str) -> int:
    """The number of the FUSE connection behind *mountpoint*. Raises MountError if there is none."""
    found = find_mount(locate(mountpoint))
    if found is None or not found.fstype.startswith("fuse"):
        raise MountError(f"{mountpoint} is not a FUSE mount")
    return found.connection


# --- mounting ------------------------------------------------------------------------------------------------------


def mount(options: MountOptions) -> int:
    """Mount, and return the descriptor of the connection: non-blocking, closed on exec.

    Nobody may use the mount before a driver serves the descriptor; the mount ends when the last copy of it is closed.
    Raises MountError, whose message says what to do.
    """
    path = _check_mountpoint(options.mountpoint)
    fd = _mount_directly(path, options) if os.geteuid() == 0 else _mount_by_helper(path, options)
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    raise_read_ahead(path, options.read_ahead_kb)
    return fd


def _check_mountpoint(mountpoint: str) -> str:
    path = locate(mountpoint)
    mounted = find_mount(path)
    if mounted is not None:
        raise MountError(
            f"{mountpoint} is already a mount ({mounted.fstype}); unmount it first, or take another directory"
        )
    try:
        with os.scandir(path) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError:
        raise MountError(f"{mountpoint} does not exist; create the directory first") from None
    except NotADirectoryError:
        raise MountError(f"{mountpoint} is not a directory; mount on an empty directory") from None
    except OSError as exc:
        raise MountError(
            f"{mountpoint} cannot be used: {exc.strerror}; mount on a directory of your own"
        ) from exc
    if not empty:
        raise MountError(
            f"{mountpoint} is not empty, and its files would be hidden; mount on an empty directory"
        )
    return path


def _no_device(number: int | None) -> MountError:
    if number == errno.EACCES:
        hint = "as root, chmod 666 it, as it is on a usual machine (a udev rule makes that last)"
    else:
        hint = (
            "load the kernel's module (modprobe fuse), or let the container have the device"
            " (docker run --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    return MountError(f"{DEVICE} cannot be opened ({os.strerror(number or errno.EIO)}): {hint}")


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise _no_device(exc.errno) from exc


def _escape(value: str) -> str:
    """An option's value, where a comma would begin another option."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _mount_directly(path: str, options: MountOptions) -> int:
    fd = _open_device()
    # The kernel takes a comma for the end of an option; names show in the mount's source only, which is no option.
    data = [f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"]
    if options.allow_other:
        data.append("allow_other")
    if options.default_permissions:
        data.append("default_permissions")
    if options.max_read:
        data.append(f"max_read={options.max_read}")
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if options.read_only else 0)
    failed = _libc.mount(
        os.fsencode(options.fsname),
        os.fsencode(path),
        os.fsencode(f"fuse.{options.subtype}"),
        ctypes.c_ulong(flags),
        ",".join(data).encode(),
    )
    if failed:
        number = ctypes.get_errno()
        os.close(fd)
        hint = (
            "this root may not mount: let the container do it (docker run --device /dev/fuse --cap-add SYS_ADMIN)"
            if number == errno.EPERM
            else "see the kernel's log (dmesg)"
        )
        raise MountError(f"mounting on {path} failed: {os.strerror(number)}; {hint}")
    return fd


def _helper() -> str:
    for name in _FUSERMOUNT:
        found = shutil.which(name)
        if found is not None:
            return found
    raise MountError(
        "fusermount3 was not found, which mounts for users other than root: install the package fuse3"
        " (apt install fuse3, dnf install fuse3, conda install -c conda-forge libfuse)"
    )


def _allow_other_permitted() -> bool:
    try:
        with open(_CONF, encoding="utf-8", errors="replace") as conf:
            return any(line.partition("#")[0].strip() == "user_allow_other" for line in conf)
    except OSError:
        return False


def _mount_by_helper(path: str, options: MountOptions) -> int:
    helper = _helper()
    if options.allow_other and not _allow_other_permitted():
        raise MountError(
            f"other users may not be let in: an administrator has to put the line user_allow_other into {_CONF}"
        )
    os.close(_open_device())  # the helper opens it with our rights; our message says more than its own
    words = [f"fsname={_escape(options.fsname)}", f"subtype={options.subtype}", "nosuid", "nodev"]
    words += ["allow_other"] if options.allow_other else []
    words += ["default_permissions"] if options.default_permissions else []
    words += ["ro"] if options.read_only else []
    words += [f"max_read={options.max_read}"] if options.max_read else []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", ",".join(words), "--", path],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        theirs.close()
        fds = _received(ours) if done.returncode == 0 else []
    if not fds:
        said = done.stderr.decode(errors="replace").strip() or f"it ended with status {done.returncode}"
        raise MountError(f"mounting on {path} failed: {said}; the directory must be yours and writable")
    return fds[0]


def _received(channel: socket.socket) -> list[int]:
    """The descriptors that came over *channel*."""
    fds = array.array("i")
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(fds.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def raise_read_ahead(mountpoint: str, kib: int) -> bool:
    """Let the kernel read *kib* ahead on this mount. Only root may; False: it stays at 128 KiB."""
    found = find_mount(locate(mountpoint))
    if found is None:
        return False
    try:
        with open(f"{_BDI}/{found.device}/read_ahead_kb", "w") as control:
            control.write(str(kib))
    except OSError:
        return False
    return True


# --- taking down ---------------------------------------------------------------------------------------------------


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Take the topmost mount on *mountpoint* down.

    ``lazy``: at once out of everybody's sight, really when its last file is closed. Otherwise MountError if it is in
    use. A mount whose server does not answer may make this wait: :func:`abort` it first.
    """
    path = locate(mountpoint)
    if find_mount(path) is None:
        raise MountError(f"{mountpoint} is not mounted")
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        number = ctypes.get_errno() if _libc.umount2(os.fsencode(path), flags) else 0
        said, busy = os.strerror(number), number == errno.EBUSY
    else:
        done = subprocess.run(
            [_helper(), "-u", *(["-z"] if lazy else []), "--", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        number, said = done.returncode, done.stderr.decode(errors="replace").strip()
        busy = "busy" in said.lower()
    if number and busy:
        raise MountError(
            f"{mountpoint} is in use: close its files and leave its directories (lsof {mountpoint}), or unmount lazily"
        )
    if number:
        raise MountError(f"{mountpoint} cannot be unmounted: {said}")


def abort(target: str | int) -> None:
    """End a connection, whatever it is doing: all that wait for it get an error, at once.

    *target* is a mount point or a connection's number. The mount itself stays, to be unmounted. The last resort, for
    a server that does not answer. Raises MountError if it cannot be reached.
    """
    number = target if isinstance(target, int) else connection_id(target)
    try:
        _write_abort(number)
        return
    except OSError as exc:
        failed = exc
    if os.geteuid() == 0:
        if isinstance(target, str):
            # What does it without the control file system; the unmounting that was asked for as well may fail.
            _libc.umount2(os.fsencode(locate(target)), _MNT_FORCE | _UMOUNT_NOFOLLOW)
            return
        _libc.mount(b"fusectl", _CONNECTIONS.encode(), b"fusectl", ctypes.c_ulong(0), None)
        try:
            _write_abort(number)
            return
        except OSError as exc:
            failed = exc
    raise MountError(
        f"connection {number} cannot be aborted ({failed.strerror}): kill the process that serves it instead"
    ) from failed


def _write_abort(number: int) -> None:
    with open(f"{_CONNECTIONS}/{number}/abort", "w") as control:
        control.write("1")

"""Which way a workspace is served to the operating system: the kernel protocol spoken natively, on Linux.

The only module that knows both the mount's configuration and the drivers' options.
"""

from __future__ import annotations

import os
import shutil
import sys

from jupyter_wsfuse.errors import MountError
from jupyter_wsfuse.fuse.device import MountOptions
from jupyter_wsfuse.mount.config import MountConfig


def why_not() -> str:
    """What keeps this machine from mounting, and the remedy; empty if nothing does."""
    if not sys.platform.startswith("linux"):
        return f"mounting is done through Linux's /dev/fuse, which {sys.platform} does not have"
    if not os.path.exists("/dev/fuse"):
        return (
            "there is no /dev/fuse: `modprobe fuse` as root; in a container, add `--device /dev/fuse "
            "--cap-add SYS_ADMIN` (Kubernetes: a device plugin for /dev/fuse)"
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "you may not open /dev/fuse: `chmod 666 /dev/fuse` as root (a udev rule makes it last)"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "fusermount3 is missing, which mounts for users other than root: `apt-get install fuse3`"
    return ""


def require() -> None:
    """Raises :class:`MountError` with the remedy if this machine cannot mount."""
    reason = why_not()
    if reason:
        raise MountError(reason)


def mount_options(config: MountConfig) -> MountOptions:
    """What the kernel is told about the mount. Modes are enforced by it only where ids are real."""
    return MountOptions(
        mountpoint=config.mountpoint,
        fsname=config.url.rstrip("/"),
        allow_other=config.allow_other,
        read_only=config.read_only,
        default_permissions=config.owner == "raw",
    )

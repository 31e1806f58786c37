"""Whether this machine lets us mount, check by check, with the remedy for what is missing."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from jupyter_wsfuse.mount import provider

_CAP_SYS_ADMIN: Final = 21


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what to do if it is not ``ok``."""

    name: str
    result: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def mounting() -> Iterator[Check]:
    """Everything that a mount needs of this machine."""
    reason = provider.why_not()
    if reason:
        found, _, remedy = reason.partition(": ")
        yield Check(
            "mounting", "fail", found, remedy or "use Linux, or a machine of which you control the kernel"
        )
    else:
        yield Check("mounting", "ok", "/dev/fuse can be opened")
    yield from _privileges()


def _privileges() -> Iterator[Check]:
    process = _process_status()
    if os.geteuid() == 0:
        if int(process.get("CapEff", "0"), 16) & 1 << _CAP_SYS_ADMIN:
            yield Check("privileges", "ok", "root, may mount")
        else:
            yield Check(
                "privileges",
                "fail",
                "root without CAP_SYS_ADMIN: mount(2) will be refused",
                "start the container with --cap-add SYS_ADMIN --device /dev/fuse",
            )
        return
    helper = shutil.which("fusermount3")
    if helper is None:
        return  # told by `mounting` already
    if process.get("NoNewPrivs") == "1":
        yield Check(
            "fusermount3",
            "fail",
            "this process may not gain privileges, so the setuid helper cannot work",
            "in Kubernetes set allowPrivilegeEscalation: true, or mount from a privileged helper",
        )
    elif os.stat(helper).st_mode & stat.S_ISUID:
        yield Check("fusermount3", "ok", helper)
    else:
        yield Check("fusermount3", "warn", f"{helper} is not setuid root", f"chmod u+s {helper}, as root")
    try:
        with open("/etc/fuse.conf", encoding="utf-8") as file:
            allowed = any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        allowed = False
    yield Check(
        "--allow-other", "ok", "allowed" if allowed else "not allowed (user_allow_other in /etc/fuse.conf)"
    )


def _process_status() -> dict[str, str]:
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except OSError:
        return {}

"""What a mount is told when it is made: one frozen object, handed from process to process through a pipe.

The token is part of it. It never appears in an argument list, in the environment of a process of ours, in a file or
in a ``repr``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from jupyter_wsfuse.client.api import PREFETCH
from jupyter_wsfuse.errors import MountError

Transport = Literal["auto", "direct", "relay"]
Owner = Literal["squash", "raw"]
Links = Literal["keep", "contain", "follow"]

#: Seconds that an operation waits through a disconnect before it fails with ``ETIMEDOUT``.
DEFAULT_DEADLINE = 60.0

#: MiB of memory that a daemon keeps within, and the least that it can work with.
DEFAULT_MEMORY = 256
LEAST_MEMORY = 96

#: Where a token may be in a caller's environment; none of our processes inherits them.
TOKEN_VARIABLES = (
    "WSFUSE_TOKEN",
    "KERNEL_WSFUSE_TOKEN",
    "JUPYTERHUB_API_TOKEN",
    "JPY_API_TOKEN",
    "JUPYTER_TOKEN",
)


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount. ``mountpoint`` is absolute and free of symbolic links; ``url`` ends with a slash.

    ``uid`` and ``gid`` are what files show under ``owner="squash"``. ``deadline`` is in seconds. ``subdir`` is
    relative to the workspace. ``tenant``: which workspace, empty for the one that is the user's. ``source``,
    ``ca_file`` and ``proxy`` are those of the server that was found. ``prefetch``: policies of
    :mod:`~jupyter_wsfuse.client.prefetch`; ``memory``: MiB that the daemon may take; ``disk_cache``: bytes of file
    data to keep on this machine's disk.
    """

    url: str
    token: str = field(repr=False)
    mountpoint: str
    source: str = ""
    ca_file: str = ""
    proxy: str = field(default="", repr=False)
    transport: Transport = "auto"
    deadline: float = DEFAULT_DEADLINE
    owner: Owner = "squash"
    links: Links = "keep"
    cache: bool = True
    prefetch: tuple[str, ...] = tuple(sorted(PREFETCH))
    memory: int = DEFAULT_MEMORY
    disk_cache: int = 0
    read_only: bool = False
    allow_other: bool = False
    tenant: str = ""
    subdir: str = ""
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    verbose: bool = False

    def to_json(self) -> str:
        """One line of JSON, token included: for a pipe, not for a log."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MountConfig:
        """The counterpart of :meth:`to_json`. Raises :class:`MountError` for anything else."""
        try:
            fields = json.loads(text)
            if "prefetch" in fields:
                fields["prefetch"] = tuple(fields["prefetch"])
            return cls(**fields)
        except (ValueError, TypeError) as exc:
            raise MountError("this process is started by `wsfuse mount`, which tells it what to do") from exc

    def public(self) -> dict[str, Any]:
        """What ``status`` may show: everything but the token, and the proxy's URL that may hold a password."""
        shown = dataclasses.asdict(self)
        del shown["token"], shown["proxy"]
        return shown


def child_environment() -> dict[str, str]:
    """The environment for our own processes: no tokens, and this very package importable from any directory."""
    environ = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
    paths = [os.path.abspath(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(package) not in ("site-packages", "dist-packages") and package not in paths:
        paths.append(package)  # run from a checkout; `-P` keeps the working directory out
    if paths:
        environ["PYTHONPATH"] = os.pathsep.join(paths)
    return environ

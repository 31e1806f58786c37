"""The options of the server extension: traitlets for people, one frozen :class:`Settings` for the code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from traitlets import Bool, Float, Int, List, TraitError, Unicode, validate
from traitlets.config import Configurable


@dataclass(frozen=True, slots=True)
class Settings:
    """What :class:`WsFuse` was configured to, made once when the server starts. Times in seconds, sizes in bytes."""

    root_dir: str
    read_only: bool = False
    raw_owner: bool = True
    follow_roots: tuple[str, ...] = ()
    allow_direct: bool = True
    engine_grace: float = 60.0
    window: int = 512
    max_sessions: int = 64
    ticket_lifetime: float = 60.0
    relay_buffer: int = 16 << 20
    relay_stall_timeout: float = 60.0
    engine_start_timeout: float = 15.0
    engine_stop_timeout: float = 5.0
    probe_interval: float = 5.0
    probe_timeout: float = 5.0
    probe_failures: int = 3
    restart_backoff: float = 0.2
    restart_backoff_max: float = 30.0


class WsFuse(Configurable):
    """Serves the workspace to mounts. In ``jupyter_server_config.py``: ``c.WsFuse.read_only = True``."""

    root_dir = Unicode(
        "",
        help="""The directory that is served as the workspace. No name in a mount ever leads out of it.

        Default: the server's own root directory (``ServerApp.root_dir``), what the file browser shows.
        """,
    ).tag(config=True)

    read_only = Bool(
        False,
        help="Serve the workspace read-only, to everyone. Writing fails with 'Read-only file system'.",
    ).tag(config=True)

    raw_owner = Bool(
        True,
        help="""Let mounts made with ``--owner raw`` set the numeric owner and group of files.

        It has an effect only if the server runs as root; whoever may use it then has a root shell in its
        terminals anyway. Mounts without that option show all files as their own user's.
        """,
    ).tag(config=True)

    follow_roots = List(
        Unicode(),
        help="""Absolute directories outside the workspace into which its symbolic links may be followed.

        Used by mounts made with ``--links follow``. Everyone who can mount the workspace can then reach them
        through a link that he makes.
        """,
    ).tag(config=True)

    allow_direct = Bool(
        True,
        help="""Let mounts on the server's own host connect to the file engine's loopback port.

        They still need a ticket of this server. If off, their data goes through the Jupyter server too,
        which is slower, and a folder of a mount that lies in the workspace itself can block the server.
        """,
    ).tag(config=True)

    engine_grace = Float(
        60.0,
        min=0.1,
        help="""Seconds for which open files and locks of a mount are kept after its connection was lost.

        A mount that comes back within that time goes on as if nothing had happened.
        """,
    ).tag(config=True)

    window = Int(
        512,
        min=8,
        max=65536,
        help="The most requests a mount may have unanswered at a time; more wait on its side.",
    ).tag(config=True)

    max_sessions = Int(64, min=1, help="The most mounts served at a time; a further one is refused.").tag(
        config=True
    )

    ticket_lifetime = Float(
        60.0,
        min=1,
        help="Seconds within which a mount must use the ticket that it got for one connection.",
    ).tag(config=True)

    relay_buffer = Int(
        16 << 20,
        min=1 << 20,
        help="""Bytes that the server holds for one mount, in each direction, when the other side is slow.

        Over it, the faster side is made to wait.
        """,
    ).tag(config=True)

    relay_stall_timeout = Float(
        60.0,
        min=1,
        help="""Seconds after which a mount's connection is closed if the receiving side took nothing of a full buffer.

        The mount connects again and goes on.
        """,
    ).tag(config=True)

    probe_interval = Float(
        5.0, min=0.05, help="Seconds between two looks whether the file engine answers."
    ).tag(config=True)

    @validate("root_dir")
    def _absolute_root(self, proposal: dict[str, Any]) -> str:
        root: str = proposal["value"]
        return os.path.abspath(os.path.expanduser(root)) if root else ""

    @validate("follow_roots")
    def _absolute_roots(self, proposal: dict[str, Any]) -> list[str]:
        for path in proposal["value"]:
            if not os.path.isabs(path):
                raise TraitError(f"WsFuse.follow_roots: {path!r} is not an absolute path")
        return list(proposal["value"])

    def settings(self, server_root: str) -> Settings:
        """The options as they are now; *server_root* is served if no directory was configured."""
        given = {name: getattr(self, name) for name in self.class_own_traits(config=True)}
        given["root_dir"] = self.root_dir or os.path.abspath(os.path.expanduser(server_root))
        given["follow_roots"] = tuple(self.follow_roots)
        return Settings(**given)

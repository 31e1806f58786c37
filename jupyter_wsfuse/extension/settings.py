"""The options of the server extension: traitlets for people, one frozen :class:`Settings` for the code."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from jupyter_core.paths import jupyter_data_dir
from traitlets import Bool, Dict, Enum, Float, Int, List, TraitError, Unicode, Union, validate
from traitlets.config import Configurable

from jupyter_wsfuse.units import parse_duration, parse_size

TENANT: Final = "default"  # a plain server has one workspace

_WORDS: Final = frozenset({"read", "write", "execute", "delete", "search", "all"})
_RULE: Final = re.compile(r"\s*(?:allow|deny)\s+([A-Za-z,]+)[ \t]+.*\S.*", re.IGNORECASE)
_EXAMPLE: Final = "'deny write,delete /raw/**'"


def default_audit_dir() -> str:
    """Where the logs are unless something else is configured: beside what else Jupyter keeps for the user."""
    return os.path.join(os.path.abspath(jupyter_data_dir()), "wsfuse", "audit")


def _frozen(table: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(table))


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
    max_sessions: int = 1000
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
    tenants_file: str = ""
    rules: tuple[str, ...] = ()
    hide_denied: bool = False
    limits: Mapping[str, Any] = field(default_factory=lambda: _frozen({}))
    session_limits: Mapping[str, Any] = field(default_factory=lambda: _frozen({}))
    quota: int | None = None
    audit: str = "mutations"
    audit_dir: str = field(default_factory=default_audit_dir)
    audit_on_failure: str = "continue"
    audit_segment_bytes: int = 16 << 20
    audit_segment_age: float = 86400.0
    audit_retention: float = 0.0
    audit_max_bytes: int = 1 << 30
    slow_operation: float = 1.0
    landlock: bool = True
    token_max_lifetime: float = 30 * 86400.0

    @property
    def audit_key_file(self) -> str:
        """The key that signs the logs: beside their folder, so that the logs alone can be given away."""
        return self.audit_dir.rstrip("/") + ".key"

    def engine_config(self) -> dict[str, Any]:
        """What the engine is told of these, as JSON. Who starts it adds ``secret``, ``audience`` and
        ``state_dir``."""
        config: dict[str, Any] = {
            "grace": self.engine_grace,
            "window": self.window,
            "max_sessions": self.max_sessions,
            "audit_dir": self.audit_dir,
            "audit_key_file": self.audit_key_file,
            "slow_operation": self.slow_operation,
            "landlock": self.landlock,
        }
        if self.tenants_file:
            return {**config, "tenants_file": self.tenants_file}
        tenant = {
            "root": self.root_dir,
            "users": ["*"],
            "read_only": self.read_only,
            "raw_owner": self.raw_owner,
            "follow_roots": list(self.follow_roots),
            "rules": list(self.rules),
            "hide": self.hide_denied,
            "limits": dict(self.limits),
            "session_limits": dict(self.session_limits),
            "quota": self.quota,
            "audit": {
                "record": self.audit,
                "on_failure": self.audit_on_failure,
                "segment_bytes": self.audit_segment_bytes,
                "segment_age": self.audit_segment_age,
                "retention": self.audit_retention,
                "max_bytes": self.audit_max_bytes,
            },
        }
        return {**config, "tenants": {TENANT: tenant}}


#: What a file of tenants says of each of them; beside such a file, these would be without effect.
OF_TENANT: Final = (
    "root_dir", "read_only", "raw_owner", "follow_roots", "rules", "hide_denied", "limits", "session_limits", "quota",
    "audit", "audit_on_failure", "audit_segment_bytes", "audit_segment_age", "audit_retention", "audit_max_bytes",
)  # fmt: skip


# --- what may be in a table of limits


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError("must be a number of operations a second, greater than 0")
    return float(value)


def _byte_rate(value: object) -> int:
    size = parse_size(value.removesuffix("/s") if isinstance(value, str) else value)
    if not size:
        raise ValueError("must be greater than 0 bytes a second")
    return size


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number of at least 1")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be True or False")
    return value


#: The keys of a table of limits, and how each is read.
LIMITS: Final[Mapping[str, Callable[[object], Any]]] = {
    "metadata": _rate,
    "read": _rate,
    "write": _rate,
    "delete": _rate,
    "bytes_in": _byte_rate,
    "bytes_out": _byte_rate,
    "sessions": _count,
    "handles": _count,
    "in_flight": _count,
    "max_wait": parse_duration,
    "refuse": _flag,
}
_NOT_NONE: Final = ("max_wait", "refuse")


def read_limits(table: Mapping[str, object], where: str) -> dict[str, Any]:
    """*table* with plain numbers. Raises :class:`TraitError`, which names the key and what it must be."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name not in LIMITS:
            raise TraitError(f"{where}: {name!r} is no limit; there are {', '.join(LIMITS)}")
        if value is None and name not in _NOT_NONE:
            continue
        try:
            found[name] = LIMITS[name](value)
        except ValueError as exc:
            raise TraitError(f"{where}[{name!r}] {exc}, not {value!r}") from None
    return found


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

    max_sessions = Int(1000, min=1, help="The most mounts served at a time; a further one is refused.").tag(
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

    tenants_file = Unicode(
        "",
        help="""A YAML file that defines several workspaces, and who may use which.

        It is read again when it changes; mounts go on meanwhile. The options that concern a single workspace
        (root_dir, read_only, rules, limits, quota, audit and others) are without effect then, so that setting
        one of them as well is an error: they have keys of the same meaning in the file.
        """,
    ).tag(config=True)

    rules = List(
        Unicode(),
        help="""What may be done with which paths: 'deny write,delete /raw/**', 'allow read *.csv'.

        A rule is allow or deny; read, write, execute, delete or all, with commas between them; and a pattern as
        in a .gitignore file. The last rule that matches a path decides; without one, everything is allowed.
        """,
    ).tag(config=True)

    hide_denied = Bool(
        False,
        help="""Do not list what the rules do not let be read, as if it did not exist.

        Otherwise it is listed, and using it fails with 'Permission denied'.
        """,
    ).tag(config=True)

    limits = Dict(
        help="""What all mounts together may use, for example {"read": 2000, "bytes_out": "50 MiB"}.

        Operations a second: metadata, read, write, delete. Bytes a second: bytes_in (written) and bytes_out
        (read). At a time: sessions (mounts), handles (open files), in_flight (unanswered requests). Who exceeds
        a rate is slowed down, each request by max_wait seconds at most (30), or refused at once with
        {"refuse": True}.
        """,
    ).tag(config=True)

    session_limits = Dict(
        help="What each single mount may use; the same keys as in limits, except sessions."
    ).tag(config=True)

    quota = Union(
        [Int(), Unicode()],
        default_value=None,
        allow_none=True,
        help="""How much the workspace may hold on disk: a number of bytes, or a text like '10 GiB'.

        A mount that would make it grow over that gets 'Disk quota exceeded'. Default: no bound.
        """,
    ).tag(config=True)

    audit = Enum(
        ("all", "mutations", "denials", "off"),
        default_value="mutations",
        help="""What of the mounts' doings is recorded in the audit log.

        'mutations': what changes something or was denied, and who came and went. 'denials': only what was
        denied. 'all': reading as well. 'off': nothing.
        """,
    ).tag(config=True)

    audit_dir = Unicode(
        "",
        help="""The folder of the audit logs, outside of what is served. The key that signs them lies beside it.

        Default: wsfuse/audit in Jupyter's data directory.
        """,
    ).tag(config=True)

    audit_on_failure = Enum(
        ("continue", "refuse"),
        default_value="continue",
        help="""What happens while the audit log cannot be written, for example because the disk is full.

        'continue': the mounts go on, the status says so, and the log gets an entry with the number of lost ones.
        'refuse': nothing can be changed until the log can be written again.
        """,
    ).tag(config=True)

    audit_segment_bytes = Union(
        [Int(), Unicode()],
        default_value=16 << 20,
        help="The size at which a file of the audit log is signed and the next one begun: bytes, or '16 MiB'.",
    ).tag(config=True)

    audit_segment_age = Union(
        [Float(), Unicode()],
        default_value=86400.0,
        help="The age at which a file of the audit log is signed and the next one begun: seconds, or '1 day'.",
    ).tag(config=True)

    audit_retention = Union(
        [Float(), Unicode()],
        default_value=0.0,
        help="How long signed files of the audit log are kept: seconds, or '90 days'. 0: for ever.",
    ).tag(config=True)

    audit_max_bytes = Union(
        [Int(), Unicode()],
        default_value=1 << 30,
        help="The most that the audit log may hold; over it, the oldest signed files are removed. 0: no bound.",
    ).tag(config=True)

    slow_operation = Float(
        1.0,
        min=0.0,
        help="Seconds from which on an operation is remembered in the list of the slow ones.",
    ).tag(config=True)

    landlock = Bool(
        True,
        help="""Let the kernel confine the file engine to the workspace and what it needs to run.

        Only where the kernel has Landlock; the status says whether it is in force.
        """,
    ).tag(config=True)

    token_max_lifetime = Union(
        [Float(), Unicode()],
        default_value=30 * 86400.0,
        help="The longest time for which a scoped token may be made: seconds, or '30 days'.",
    ).tag(config=True)

    @validate("root_dir", "tenants_file", "audit_dir")
    def _absolute(self, proposal: dict[str, Any]) -> str:
        path: str = proposal["value"]
        if "\0" in path:
            raise TraitError(f"WsFuse.{proposal['trait'].name}: {path!r} is no path")
        return os.path.abspath(os.path.expanduser(path)) if path else ""

    @validate("follow_roots")
    def _absolute_roots(self, proposal: dict[str, Any]) -> list[str]:
        for path in proposal["value"]:
            if not os.path.isabs(path):
                raise TraitError(f"WsFuse.follow_roots: {path!r} is not an absolute path")
        return list(proposal["value"])

    @validate("rules")
    def _rules(self, proposal: dict[str, Any]) -> list[str]:
        for rule in proposal["value"]:
            match = _RULE.fullmatch(rule)
            if match is None:
                raise TraitError(
                    f"WsFuse.rules: {rule!r} is no rule; it must be allow or deny, rights and a pattern, as {_EXAMPLE}"
                )
            for word in match[1].lower().split(","):
                if word not in _WORDS:
                    raise TraitError(
                        f"WsFuse.rules: {word!r} in {rule!r} is no right; there are {', '.join(sorted(_WORDS))}"
                    )
        return list(proposal["value"])

    @validate("limits", "session_limits")
    def _limits(self, proposal: dict[str, Any]) -> dict[str, Any]:
        where = f"WsFuse.{proposal['trait'].name}"
        found = read_limits(proposal["value"], where)
        if where.endswith("session_limits") and "sessions" in found:
            raise TraitError(f"{where}: a mount is one session; put 'sessions' into WsFuse.limits")
        return found

    @validate("quota", "audit_segment_bytes", "audit_max_bytes")
    def _size(self, proposal: dict[str, Any]) -> int | None:
        name, value = proposal["trait"].name, proposal["value"]
        if value is None:
            return None
        least = {"quota": 1, "audit_segment_bytes": 1024}.get(name, 0)
        try:
            size = parse_size(value)
        except ValueError as exc:
            raise TraitError(f"WsFuse.{name} {exc}, not {value!r}") from None
        if size < least:
            raise TraitError(f"WsFuse.{name} must be at least {least} bytes, not {value!r}")
        return size

    @validate("audit_segment_age", "audit_retention", "token_max_lifetime")
    def _duration(self, proposal: dict[str, Any]) -> float:
        name, value = proposal["trait"].name, proposal["value"]
        least = {"audit_segment_age": 1.0, "token_max_lifetime": 1.0}.get(name, 0.0)
        try:
            duration = parse_duration(value)
        except ValueError as exc:
            raise TraitError(f"WsFuse.{name} {exc}, not {value!r}") from None
        if duration < least:
            raise TraitError(f"WsFuse.{name} must be at least {least:g} seconds, not {value!r}")
        return duration

    def settings(self, server_root: str) -> Settings:
        """The options as they are now; *server_root* is served if no directory was configured."""
        given = {name: getattr(self, name) for name in self.class_own_traits(config=True)}
        if self.tenants_file:
            usual = WsFuse()
            vain = [name for name in OF_TENANT if given[name] != getattr(usual, name)]
            if vain:
                raise TraitError(
                    f"WsFuse.{vain[0]} is without effect beside WsFuse.tenants_file; say it in {self.tenants_file}, "
                    "for all tenants under 'defaults'"
                )
        given["root_dir"] = self.root_dir or os.path.abspath(os.path.expanduser(server_root))
        given["audit_dir"] = self.audit_dir or default_audit_dir()
        given["follow_roots"] = tuple(self.follow_roots)
        given["rules"] = tuple(self.rules)
        given["limits"] = _frozen(self.limits)
        given["session_limits"] = _frozen(self.session_limits)
        return Settings(**given)

"""Who is served which folder: the tenants of one engine, as its configuration names them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import RefusedError, WsFuseError
from .permissions import Rule


class ConfigurationError(WsFuseError):
    """The engine's configuration is not usable; the message names the key and what it must be."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant, a session or a token may use; None: no limit.

    Operations a second by class (``metadata``, ``read``, ``write``, ``delete``); bytes of file data a second,
    ``bytes_in`` to the engine (written) and ``bytes_out`` (read). ``sessions`` at a time, open ``handles``, and
    requests ``in_flight``. ``max_wait``: seconds that one request is held back at most before it is refused with
    ``EBUSY``; ``refuse``: refuse at once instead of holding back.
    """

    metadata: float | None = None
    read: float | None = None
    write: float | None = None
    delete: float | None = None
    bytes_in: float | None = None
    bytes_out: float | None = None
    sessions: int | None = None
    handles: int | None = None
    in_flight: int | None = None
    max_wait: float = 30.0
    refuse: bool = False


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """What is recorded of a tenant: ``record`` is "all", "mutations" (and denials), "denials", or "off".

    ``on_failure``: "refuse" mutations while the log cannot be written, or "continue" and say so. A segment is
    sealed when it has ``segment_bytes`` or is ``segment_age`` seconds old; sealed segments older than
    ``retention`` seconds are removed (0: never), the oldest ones also beyond ``max_bytes`` in all (0: no bound).
    """

    record: str = "mutations"
    on_failure: str = "continue"
    segment_bytes: int = 16 << 20
    segment_age: float = 86400.0
    retention: float = 0.0
    max_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Tenant:
    """One workspace.

    ``root`` and ``follow_roots`` are absolute paths of folders. ``raw_owner`` only takes effect if the engine
    runs as root. ``follow_roots``: where symbolic links that leave the workspace may lead with
    ``links=follow``. ``create``: make the root, 0700, on first use. ``rules`` hold for everyone, ``group_rules``
    after them for the members of a group. ``hide``: names that may not be read are not listed and not found.
    ``limits`` of all its sessions together, ``session_limits`` of each. ``quota`` in bytes on disk. ``weight``:
    its share of a busy engine, relative to other tenants.
    """

    name: str
    root: bytes
    read_only: bool = False
    raw_owner: bool = False
    follow_roots: tuple[bytes, ...] = ()
    create: bool = False
    rules: tuple[Rule, ...] = ()
    group_rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    hide: bool = False
    limits: Limits = Limits()
    session_limits: Limits = Limits()
    quota: int | None = None
    weight: float = 1.0
    audit: AuditOptions = AuditOptions()


def _folder(value: object, key: str) -> bytes:
    if not isinstance(value, str) or not os.path.isabs(value) or "\0" in value:
        raise ConfigurationError(f"{key} must be the absolute path of a folder, not {value!r}")
    return os.fsencode(value)


def _flag(options: Mapping[str, Any], name: str, key: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise ConfigurationError(f"{key}.{name} must be true or false, not {value!r}")
    return value


class Tenants:
    """The configured tenants by name."""

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._tenants = dict(tenants)

    @classmethod
    def from_config(cls, config: object) -> Tenants:
        """Read ``{name: {"root": str, "read_only": bool, "raw_owner": bool, "follow_roots": [str]}}``.

        Raises :class:`ConfigurationError` for anything else, unknown keys included. Whether the folders exist
        is looked at when a session opens them, so that one that is missing does not stop the others.
        """
        if not isinstance(config, Mapping) or not config:
            raise ConfigurationError("tenants must be a table with at least one tenant")
        tenants: dict[str, Tenant] = {}
        for name, options in config.items():
            key = f"tenants.{name}"
            if not isinstance(name, str) or not name:
                raise ConfigurationError(f"a tenant's name must be a text that is not empty, not {name!r}")
            if not isinstance(options, Mapping):
                raise ConfigurationError(f"{key} must be a table, not {options!r}")
            unknown = set(options) - {"root", "read_only", "raw_owner", "follow_roots"}
            if unknown:
                names = ", ".join(sorted(map(str, unknown)))
                raise ConfigurationError(f"{key} has keys that are not known: {names}")
            follow = options.get("follow_roots", [])
            if not isinstance(follow, list | tuple):
                raise ConfigurationError(f"{key}.follow_roots must be a list of folders, not {follow!r}")
            tenants[name] = Tenant(
                name=name,
                root=_folder(options.get("root"), f"{key}.root"),
                read_only=_flag(options, "read_only", key),
                raw_owner=_flag(options, "raw_owner", key),
                follow_roots=tuple(_folder(root, f"{key}.follow_roots") for root in follow),
            )
        return cls(tenants)

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def get(self, name: str) -> Tenant:
        """The tenant *name*; :class:`RefusedError` (``workspace``) if this engine serves none of that name."""
        tenant = self._tenants.get(name)
        if tenant is None:
            raise RefusedError("workspace", "this engine does not serve the tenant that the ticket names")
        return tenant

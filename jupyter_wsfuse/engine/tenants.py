"""Who is served which folder: the tenants of one engine, as its configuration names them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RefusedError, WsFuseError


class ConfigurationError(WsFuseError):
    """The engine's configuration is not usable; the message names the key and what it must be."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One workspace.

    ``root`` and ``follow_roots`` are absolute paths of folders. ``raw_owner`` only takes effect if the engine
    runs as root. ``follow_roots``: where symbolic links that leave the workspace may lead with
    ``links=follow``.
    """

    name: str
    root: bytes
    read_only: bool = False
    raw_owner: bool = False
    follow_roots: tuple[bytes, ...] = ()


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

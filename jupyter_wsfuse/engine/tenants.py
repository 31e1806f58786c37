"""Who is served which folder: the tenants of one engine, and who belongs to which.

What they are made of is read by :mod:`.definitions`, from the engine's configuration or from a file of its own.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..errors import RefusedError, WsFuseError
from .permissions import Rule

#: Stands in the root of a tenant for the name of its user: one workspace for each.
USER: Final = "{user}"
EVERYONE: Final = "*"
_NAME_MAX: Final = 255  # bytes of one component of a path


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
    ``links=follow``. ``create``: make the root, 0700, on first use, that is its last ``own`` components; no
    link is followed in those. ``rules`` hold for everyone, ``group_rules`` after them for the members of a
    group. ``hide``: names that may not be read are not listed and not found. ``limits`` of all its sessions
    together, ``session_limits`` of each. ``quota`` in bytes on disk. ``weight``: its share of a busy engine,
    relative to other tenants.
    """

    name: str
    root: bytes
    read_only: bool = False
    raw_owner: bool = False
    follow_roots: tuple[bytes, ...] = ()
    create: bool = False
    own: int = 1
    rules: tuple[Rule, ...] = ()
    group_rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    hide: bool = False
    limits: Limits = Limits()
    session_limits: Limits = Limits()
    quota: int | None = None
    weight: float = 1.0
    audit: AuditOptions = AuditOptions()


@dataclass(frozen=True, slots=True)
class Definition:
    """A tenant and who belongs to it: ``users`` by name (``*``: everyone, those without a name included), and the
    members of ``groups``. If its root has ``{user}`` in it, it defines a tenant NAME/USER for each of them."""

    tenant: Tenant
    users: frozenset[str]
    groups: frozenset[str]

    @property
    def template(self) -> bool:
        return USER.encode() in self.tenant.root

    def includes(self, principal: str, groups: Collection[str]) -> bool:
        return EVERYONE in self.users or principal in self.users or not self.groups.isdisjoint(groups)

    def tenant_of(self, user: str) -> Tenant:
        """The tenant of *user*, which is the same for all unless this is a template.

        Raises :class:`RefusedError` (``workspace``) for a name that cannot be one component of a path.
        """
        if not self.template:
            return self.tenant
        if not safe_component(user):
            raise RefusedError("workspace", "the user's name cannot be the name of a folder")

        def fill(path: bytes) -> bytes:
            return path.replace(USER.encode(), user.encode())

        return dataclasses.replace(
            self.tenant,
            name=f"{self.tenant.name}/{user}",
            root=fill(self.tenant.root),
            follow_roots=tuple(fill(root) for root in self.tenant.follow_roots),
        )


def safe_component(name: str) -> bool:
    """Whether *name* can stand in a path as one component that is neither hidden nor leads anywhere else."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < length <= _NAME_MAX and not name.startswith(".") and "/" not in name and name.isprintable()


class Tenants:
    """The tenants that are defined, in the order of their definitions."""

    def __init__(self, definitions: Sequence[Definition]) -> None:
        self._definitions = {definition.tenant.name: definition for definition in definitions}

    @classmethod
    def from_config(cls, config: object) -> Tenants:
        """Read a table of tenants by name, as :mod:`.definitions` describes it.

        A tenant that names neither users nor groups is everyone's. Raises :class:`ConfigurationError` for
        anything that is not as described, unknown keys included. Whether the folders exist is looked at when a
        session opens them, so that one that is missing does not stop the others.
        """
        from .definitions import from_table

        return cls(from_table(config))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tenants:
        """As :meth:`from_config`, from a YAML file; the errors begin with ``FILE:LINE:``."""
        from .definitions import from_yaml, read_text

        return cls(from_yaml(read_text(path), os.fspath(path)))

    def __eq__(self, other: object) -> bool:
        # The order counts: it decides which tenant is somebody's first.
        return isinstance(other, Tenants) and list(self._definitions.items()) == list(
            other._definitions.items()
        )

    def __hash__(self) -> int:
        return hash(tuple(self._definitions))

    def __iter__(self) -> Iterator[Tenant]:
        """The tenants that exist whoever comes: those of templates are not among them."""
        return (definition.tenant for definition in self._definitions.values() if not definition.template)

    @property
    def alone(self) -> bool:
        """Whether there is just one tenant."""
        return len(self._definitions) == 1 and not any(one.template for one in self._definitions.values())

    def __len__(self) -> int:
        return len(self._definitions)

    def get(self, name: str) -> Tenant:
        """The tenant *name*, whoever asks; :class:`RefusedError` (``workspace``) if there is none of that
        name."""
        plain, slash, user = name.partition("/")
        definition = self._definitions.get(plain)
        if definition is None or definition.template != bool(slash):
            raise RefusedError("workspace", "this engine does not serve the tenant that the ticket names")
        return definition.tenant_of(user)

    def assign(self, principal: str, groups: Collection[str], wanted: str = "") -> Tenant:
        """The tenant of a user: *wanted* if he belongs to that, otherwise the first that he belongs to.

        *principal* is ``""`` for somebody without a name, who belongs to what is everyone's. *wanted* may name a
        template without the user. Raises :class:`RefusedError` (``workspace``), which does not tell a tenant of
        others from one that does not exist.
        """
        plain, slash, user = wanted.partition("/")
        for definition in self._definitions.values():
            if wanted and definition.tenant.name != plain:
                continue
            if not definition.includes(principal, groups):
                continue
            if slash and not (definition.template and user == principal):
                continue
            return definition.tenant_of(principal)
        if wanted:
            raise RefusedError("workspace", f"there is no tenant {wanted[:100]!r} for this user")
        raise RefusedError("workspace", "this user belongs to no tenant; ask the administrator of the server")

    def folders(self) -> list[bytes]:
        """What the engine must be able to reach for all tenants: the roots, or the folders in which they are
        made, and where links may be followed to."""
        folders: dict[bytes, None] = {}
        for definition in self._definitions.values():
            tenant = definition.tenant
            roots = [parent_of(tenant)] if tenant.create or definition.template else [tenant.root]
            for root in (*roots, *tenant.follow_roots):
                # Of a path with {user} in it, what comes before the component that has it.
                fixed, found, _ = root.partition(USER.encode())
                folders[(fixed.rpartition(b"/")[0] or b"/") if found else root] = None
        return list(folders)


def parent_of(tenant: Tenant) -> bytes:
    """The folder in which the root is made: it has to exist."""
    parts = [part for part in tenant.root.split(b"/") if part]
    return b"/" + b"/".join(parts[: max(0, len(parts) - tenant.own)])

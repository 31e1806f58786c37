"""Scoped tokens: what somebody hands to a colleague, a worker or a job so that it can mount a part of his workspace.

::

    "wsfuse1_" base64url(body) "." base64url(HMAC-SHA256(key, "wsfuse-token-1" NUL body))     without padding
    body = msgpack(claims, the workspace it is for, the tenant and principal of who made it)

The text is shown once, when it is made. The server keeps its key, and a list of the ids that it gave out: a token
is good only as long as it is on that list, unrevoked, and so are the tokens that it was made with. Both are
files of mode 0600 in a directory that the servers of one user share, so that a token outlives the server's restarts,
and changes are made under a lock there. Which workspace a token is for is part of it: it does not open
another server's.

Here is what a token may say; :mod:`.tokenstore` keeps them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from jupyter_wsfuse.errors import WsFuseError
from jupyter_wsfuse.protocol.tickets import RIGHTS, TokenClaims

PREFIX: Final = "wsfuse1_"
#: The limits that a token may carry: operations and bytes a second, and numbers of things at a time.
_COUNTS: Final = frozenset({"sessions", "handles", "in_flight"})
LIMITS: Final = frozenset({"metadata", "read", "write", "delete", "bytes_in", "bytes_out"}) | _COUNTS
DEFAULT_LIFETIME: Final = 8 * 3600.0
#: Bounds on what one token may say, so that it fits into a header everywhere.
MAX_PATHS: Final = 64
MAX_PATH_BYTES: Final = 2048  # of all paths together
MAX_LABEL: Final = 100
MAX_PARENTS: Final = 8


class TokenError(WsFuseError):
    """A token is not accepted. ``code``: ``malformed``, ``foreign``, ``expired`` or ``revoked``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StoreError(WsFuseError):
    """The files of the tokens cannot be used; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Creator:
    """Who makes, lists or revokes tokens: his identity and rights, and the token that he came with, if any."""

    principal: str
    groups: tuple[str, ...]
    rights: frozenset[str]
    token: TokenClaims | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new token shall be good for, checked. ``paths`` empty: all that the creator has."""

    paths: tuple[bytes, ...]
    rights: frozenset[str]
    lifetime: float
    limits: Mapping[str, float]
    label: str


@dataclass(frozen=True, slots=True)
class Presented:
    """A token that was accepted. ``rights`` are what is left of its own after its creator's present ones.

    ``noted``: this use was written down, and is worth an event.
    """

    claims: TokenClaims
    tenant: str
    principal: str
    groups: tuple[str, ...]
    rights: frozenset[str]
    noted: bool = False


def workspace_name(root: str, tenants_file: str = "") -> str:
    """What names a server's workspace in its tokens: the same after a restart, another for another folder."""
    places = [os.fsencode(os.path.realpath(place)) if place else b"" for place in (root, tenants_file)]
    return hashlib.sha256(b"\0".join(places)).hexdigest()[:16]


def presented(authorization: str) -> str | None:
    """The scoped token of an ``Authorization`` header; None if there is none, but perhaps another credential."""
    scheme, _, text = authorization.strip().partition(" ")
    text = text.strip()
    return text if scheme.lower() in ("token", "bearer") and text.startswith(PREFIX) else None


# --- what a token may be ---------------------------------------------------------------------------------------


def clean_path(text: str) -> bytes:
    """A path as it stands in claims. :class:`ValueError` for one that is not plainly inside the workspace."""
    path = text.encode("utf-8", "surrogateescape")
    if b"\0" in path or path.startswith(b"/"):
        raise ValueError(f"the path {text!r} must be relative to the workspace")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts or not path:
        raise ValueError(f"the path {text!r} must name something inside the workspace, without '..'")
    return b"/".join(parts)


def read_wish(body: Mapping[str, Any], longest: float) -> Wish:
    """A request for a token, ``{"paths": [...], "rights": [...], "expires": seconds, "limits": {...}, "label"}``.

    All of it may be left out. *longest*: seconds that a token may live. :class:`ValueError` says what is wrong.
    """
    paths = body.get("paths", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("paths must be a list of texts")
    cleaned = _reduced([clean_path(path) for path in paths])
    if len(cleaned) > MAX_PATHS or sum(map(len, cleaned)) > MAX_PATH_BYTES:
        raise ValueError(f"a token may name {MAX_PATHS} paths of {MAX_PATH_BYTES} bytes in all")
    rights = body.get("rights", sorted(RIGHTS))
    if not isinstance(rights, list) or not rights or not all(right in ("read", "write") for right in rights):
        raise ValueError('rights must be ["read"] or ["read", "write"]')
    lifetime = body.get("expires", min(DEFAULT_LIFETIME, longest))
    if not _is_number(lifetime) or not 0 < lifetime <= longest:
        raise ValueError(f"a token may be valid for {_spoken(longest)} at most (WsFuse.token_max_lifetime)")
    limits = body.get("limits", {})
    if not isinstance(limits, dict) or not set(limits) <= LIMITS:
        raise ValueError(f"limits may be {', '.join(sorted(LIMITS))}")
    for name, limit in limits.items():
        if not _is_number(limit) or not 0 < limit < 1e15 or (name in _COUNTS and limit != int(limit)):
            kind = "whole number" if name in _COUNTS else "number"
            raise ValueError(f"the limit of {name} must be a {kind} greater than 0")
    label = body.get("label", "")
    if not isinstance(label, str) or len(label) > MAX_LABEL or not label.isprintable():
        raise ValueError(f"label must be a text of {MAX_LABEL} printable characters at most")
    return Wish(cleaned, frozenset({"read", *rights}), float(lifetime), limits, label)


def _spoken(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} seconds"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(path: bytes, folder: bytes) -> bool:
    return not folder or path == folder or path.startswith(folder + b"/")


def _reduced(paths: Collection[bytes]) -> tuple[bytes, ...]:
    """*paths* without those that lie in another one."""
    return tuple(
        path
        for path in sorted(set(paths))
        if not any(other != path and _within(path, other) for other in paths)
    )


def narrowed(wish: Wish, creator: Creator, id: str, now: float) -> TokenClaims:
    """The claims for *wish* that *creator* can give: never more than he has himself.

    :class:`ValueError` if nothing would be left.
    """
    paths = wish.paths or (b"",)
    rights = wish.rights & creator.rights
    expires = now + wish.lifetime
    parents: tuple[str, ...] = ()
    parent_limits: tuple[dict[str, float], ...] = ()
    limits = dict(wish.limits)
    parent = creator.token
    if parent is not None:
        shared = {path for path in paths if any(_within(path, own) for own in parent.paths)}
        shared.update(own for own in parent.paths if any(_within(own, path) for path in paths))
        paths = _reduced(shared)
        if not paths:
            raise ValueError("none of these paths is within what the token that you came with opens")
        rights &= parent.rights
        expires = min(expires, parent.expires)
        for name, limit in parent.limits.items():
            limits[name] = min(limit, limits.get(name, limit))
        parents = (*parent.parents, parent.id)
        parent_limits = (*parent.parent_limits, parent.limits)
        if len(parents) > MAX_PARENTS:
            raise ValueError(f"a token of a token of a token ...: {MAX_PARENTS} times is enough")
    if not rights:
        raise ValueError("you have no right on this workspace that a token could carry")
    return TokenClaims(
        id=id,
        paths=paths,
        rights=rights,
        expires=expires,
        limits=limits,
        label=wish.label,
        parents=parents,
        parent_limits=parent_limits,
    )

"""The scoped tokens that the servers of one user gave out: made, checked, listed, revoked. See :mod:`.tokens`.

All of it blocks on files; call it in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from jupyter_wsfuse.extension.tokens import (
    PREFIX,
    Creator,
    Presented,
    StoreError,
    TokenError,
    Wish,
    narrowed,
)
from jupyter_wsfuse.protocol.tickets import TokenClaims

#: What may be valid at a time of tokens that their creators made themselves.
MAX_TOKENS: Final = 1000
#: What may be stored of tokens that were made with one of those, with its children, and so on: whoever holds a token
#: does not use up what others can make.
MAX_CHILDREN: Final = 100
_MAX_TEXT: Final = 16 << 10
_PURPOSE: Final = b"wsfuse-token-1\0"
_KEPT: Final = 7 * 86400.0  # seconds for which a token that has ended is still listed
_USE_NOTED: Final = 60.0  # seconds within which further uses are not written down


class _Body(msgspec.Struct, array_like=True, frozen=True):
    claims: TokenClaims
    workspace: str
    tenant: str
    principal: str


_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")
_decoder: Final = msgspec.msgpack.Decoder(_Body)


class _Entry(msgspec.Struct, kw_only=True):
    """What is stored of a token. ``groups`` and ``creator_rights`` are the creator's when he was last seen."""

    principal: str
    groups: list[str]
    creator_rights: list[str]
    workspace: str
    tenant: str
    label: str
    paths: list[str]
    rights: list[str]
    limits: dict[str, float]
    parents: list[str]
    created: float
    expires: float
    used: float | None = None
    revoked: float | None = None


class _Stored(msgspec.Struct, kw_only=True):
    version: int = 1
    tokens: dict[str, _Entry] = {}


def _pack(data: bytes) -> str:
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _unpack(text: str) -> bytes:
    """:class:`ValueError` for anything that :func:`_pack` does not say so, which has one text for every value."""
    data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    if _pack(data) != text:
        raise ValueError("not as it was written")
    return data


class TokenStore:
    """The tokens of one workspace. *directory* is made, 0700, when it is first needed. Thread-safe.

    *clock* in seconds since the epoch.
    """

    def __init__(self, directory: Path, workspace: str, *, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._workspace = workspace
        self._clock = clock
        self._lock = threading.Lock()
        self._key: bytes | None = None
        self._tokens: dict[str, _Entry] = {}
        self._read: tuple[int, int, int] | None = None  # which state of the file ``_tokens`` is

    # for the handlers

    def create(self, creator: Creator, wish: Wish, tenant: str) -> tuple[str, dict[str, Any]]:
        """A new token and what is known of it. :class:`ValueError` if it would be good for nothing."""
        now = self._clock()
        claims = narrowed(wish, creator, secrets.token_hex(8), now)
        with self._changing():
            if claims.parents:
                self._make_room(claims.parents[0], now)
            else:
                self._check_room(now)
            body = _encoder.encode(_Body(claims, self._workspace, tenant, creator.principal))
            text = f"{PREFIX}{_pack(body)}.{_pack(self._sign(body))}"
            self._tokens[claims.id] = _Entry(
                principal=creator.principal,
                groups=list(creator.groups),
                creator_rights=sorted(creator.rights),
                workspace=self._workspace,
                tenant=tenant,
                label=claims.label,
                paths=[path.decode("utf-8", "surrogateescape") for path in claims.paths],
                rights=sorted(claims.rights),
                limits=claims.limits,
                parents=list(claims.parents),
                created=now,
                expires=claims.expires,
            )
            return text, self._describe(claims.id)

    def verify(self, text: str, *, use: bool = False) -> Presented:
        """What the token *text* is good for now; *use*: note that it was used. Raises :class:`TokenError`."""
        body = self._open(text)
        claims = body.claims
        if body.workspace != self._workspace:
            raise TokenError("foreign", "this token is for another workspace than the one this server serves")
        now = self._clock()
        with self._lock:
            self._load()
            self._check_alive(claims, now)
            entry = self._tokens[claims.id]
            rights = claims.rights & set(entry.creator_rights)
            noted = use and (entry.used is None or now - entry.used >= _USE_NOTED)
        if noted:
            with self._changing():
                if claims.id in self._tokens:
                    self._tokens[claims.id].used = now
        return Presented(claims, body.tenant, body.principal, tuple(entry.groups), rights, noted)

    def tokens(self, creator: Creator) -> list[dict[str, Any]]:
        """The tokens that *creator* may see, the newest first: those of his, or of the token he came with."""
        with self._lock:
            self._load()
            mine = [id for id in self._tokens if self._is_of(id, creator)]
            return [self._describe(id) for id in sorted(mine, key=lambda id: -self._tokens[id].created)]

    def revoke(self, creator: Creator, id: str | None) -> list[str]:
        """Revoke the token *id*, or all that *creator* may; the ids of those that were valid, what was made with
        them included. :class:`KeyError` if there is none of that id for him."""
        now = self._clock()
        with self._changing():
            if id is not None and (id not in self._tokens or not self._is_of(id, creator)):
                raise KeyError(id)
            ended = []
            for name, entry in self._tokens.items():
                meant = self._is_of(name, creator) if id is None else id in (name, *entry.parents)
                if meant and entry.revoked is None and entry.expires > now:
                    entry.revoked = now
                    ended.append(name)
            return ended

    def seen(self, creator: Creator) -> None:
        """*creator* has come himself: what his tokens may do follows what he may do now."""
        groups, rights = list(creator.groups), sorted(creator.rights)

        def outdated() -> list[_Entry]:
            return [
                entry
                for entry in self._tokens.values()
                if entry.principal == creator.principal
                and entry.workspace == self._workspace
                and (entry.groups, entry.creator_rights) != (groups, rights)
            ]

        with self._lock:
            self._load()
            if not outdated():
                return
        with self._changing():
            for entry in outdated():
                entry.groups, entry.creator_rights = groups, rights

    def revoked(self) -> list[str]:
        """The ids that an engine must not serve although the tokens themselves have not expired."""
        now = self._clock()
        with self._lock:
            self._load()
            return [id for id, entry in self._tokens.items() if entry.revoked and entry.expires > now]

    # inside

    def _check_room(self, now: float) -> None:
        entries = [entry for entry in self._tokens.values() if not entry.parents]
        valid = sum(1 for entry in entries if not entry.revoked and entry.expires > now)
        if valid >= MAX_TOKENS:
            raise ValueError(f"there are {valid} valid tokens already; revoke some")

    def _make_room(self, outermost: str, now: float) -> None:
        """For one more token that comes from *outermost*: what has expired is listed only as long as there is room."""
        made = {id: entry.expires for id, entry in self._tokens.items() if entry.parents[:1] == [outermost]}
        for id in sorted(made, key=made.__getitem__)[: max(len(made) - MAX_CHILDREN + 1, 0)]:
            if made[id] > now:
                raise ValueError(
                    f"{MAX_CHILDREN} tokens that have not expired were made with the token {outermost}, and with what "
                    "was made with it; revoked ones count until they would have expired. Use one of those again, let "
                    "new ones expire sooner, or ask whoever made that token for another one"
                )
            del self._tokens[id]

    def _is_of(self, id: str, creator: Creator) -> bool:
        entry = self._tokens[id]
        if entry.workspace != self._workspace or entry.principal != creator.principal:
            return False
        return creator.token is None or creator.token.id in (id, *entry.parents)

    def _describe(self, id: str) -> dict[str, Any]:
        entry = self._tokens[id]
        ended = entry.revoked is not None or entry.expires <= self._clock()
        state = "revoked" if entry.revoked is not None else "expired" if ended else "valid"
        return {
            "id": id,
            "state": state,
            "label": entry.label,
            "creator": entry.principal,
            "tenant": entry.tenant,
            "paths": entry.paths,
            "rights": entry.rights,
            "limits": entry.limits,
            "parents": entry.parents,
            "created": entry.created,
            "expires": entry.expires,
            "used": entry.used,
            "revoked": entry.revoked,
        }

    def _check_alive(self, claims: TokenClaims, now: float) -> None:
        if claims.expires <= now:
            raise TokenError(
                "expired",
                f"this token expired on {_date(claims.expires)}; ask whoever made it for a new one "
                "(`wsfuse token create`)",
            )
        for id in claims.family:
            entry = self._tokens.get(id)
            if entry is not None and entry.revoked is None:
                continue
            which = "this token" if id == claims.id else "the token that this one was made with"
            when = "" if entry is None or entry.revoked is None else f" on {_date(entry.revoked)}"
            raise TokenError(
                "revoked",
                f"{which} was revoked{when}; ask whoever made it for a new one (`wsfuse token create`)",
            )

    def _open(self, text: str) -> _Body:
        malformed = TokenError(
            "malformed",
            "this is no token of this server: it is incomplete, or another server made it",
        )
        if len(text) > _MAX_TEXT or not text.startswith(PREFIX):
            raise malformed
        try:
            packed, mac = map(_unpack, text.removeprefix(PREFIX).split("."))
        except ValueError:  # includes those of base64 and encoding
            raise malformed from None
        with self._lock:
            signature = self._sign(packed)
        if not hmac.compare_digest(mac, signature):
            raise malformed
        return _decoder.decode(packed)

    def _sign(self, body: bytes) -> bytes:
        if self._key is None:
            with self._locked():
                self._key = self._read_key()
        return hmac.digest(self._key, _PURPOSE + body, hashlib.sha256)

    @property
    def _key_file(self) -> Path:
        return self._directory / "token.key"

    @property
    def _file(self) -> Path:
        return self._directory / "tokens.json"

    def _read_key(self) -> bytes:
        """The servers' common key, made by the first that needs it."""
        try:
            key = _read_private(self._key_file)
        except FileNotFoundError:
            _replace(self._key_file, secrets.token_bytes(32))
            key = _read_private(self._key_file)
        if len(key) != 32:
            raise StoreError(
                f"{self._key_file} is damaged; remove it, which ends all tokens, and make new ones"
            )
        return key

    def _load(self) -> None:
        """Follow what other servers have written."""
        try:
            found = os.stat(self._file)
        except FileNotFoundError:
            self._tokens, self._read = {}, None
            return
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        if state == self._read:
            return
        try:
            self._tokens = msgspec.convert(json.loads(_read_private(self._file)), _Stored).tokens
        except ValueError:  # includes those of msgspec
            raise StoreError(
                f"{self._file} is damaged; remove it, which ends all tokens, and make new ones"
            ) from None
        self._read = state

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the list, together with all other servers. Nothing is changed if the block raises."""
        with self._lock:
            if self._key is None:
                self._sign(b"")
            with self._locked():
                self._load()
                before = self._encoded()
                try:
                    yield
                    oldest = self._clock() - _KEPT
                    self._tokens = {id: entry for id, entry in self._tokens.items() if entry.expires > oldest}
                    after = self._encoded()
                    if after != before:
                        _replace(self._file, after)
                finally:
                    self._read = None  # also what was half changed is read again

    def _encoded(self) -> bytes:
        stored = {"version": 1, "tokens": {id: msgspec.to_builtins(e) for id, e in self._tokens.items()}}
        return json.dumps(stored, indent=1).encode("ascii")  # names that are no UTF-8 are escaped

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / "tokens.lock"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(OSError):  # a network file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


def _read_private(path: Path) -> bytes:
    """A file that nobody else can have read or written."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StoreError(f"{path} cannot be read: {exc.strerror}") from None
    with open(file, "rb") as stream:
        found = os.fstat(file)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise StoreError(
                f"{path} must belong to you and be closed to others, but others can use it: whoever did can have "
                "made tokens. Remove it, which ends all tokens, and make new ones"
            )
        return stream.read()


def _replace(path: Path, data: bytes) -> None:
    young = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = os.open(young, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(file)
        os.rename(young, path)
    except BaseException:
        young.unlink(missing_ok=True)
        raise


def _date(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when))

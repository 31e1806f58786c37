"""The engine's configuration: one JSON line, given by whoever starts it."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ..busypoll import LIMIT
from ..protocol import codec
from .tenants import ConfigurationError, Tenants


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """``secret``: hexadecimal, at least 16 bytes, shared with who issues tickets; ``audience``: this engine's
    name in them. ``state_dir``: private folder for what a successor needs. ``tenants``: see
    :meth:`.Tenants.from_config`; or ``tenants_file``, which is read again when it changes. ``audit_dir`` and
    ``audit_key_file``: where the audit logs and the key that signs them are; empty: nothing is recorded.
    ``revoked``: scoped tokens that are good for nothing. ``private``: absolute paths that neither a scoped
    token nor a right to read alone opens, because keys to more are kept there. ``landlock``: confine the process
    to what it serves.

    ``max_watches``: directories and files that are watched at a time, beside what the kernel allows; ``max_leases``:
    those that one session is told of.

    Times in seconds. ``grace``: how long a session without connection lives. ``window``/``window_bytes``:
    what a session may have unanswered. ``workers``: threads for blocking calls. ``hello_timeout``: until a
    new connection must have said Hello. ``drain``: how long running requests are waited for when the engine
    stops. ``busy_poll``: for how long to stay awake for a client that asked its last questions in a row.
    ``slow_operation``: from which duration on an operation is remembered by itself.
    """

    secret: str
    audience: str
    state_dir: str
    tenants: dict[str, Any] = {}
    tenants_file: str = ""
    audit_dir: str = ""
    audit_key_file: str = ""
    revoked: list[str] = []
    private: list[str] = []
    landlock: bool = True
    grace: float = 60.0
    window: int = 512
    window_bytes: int = 16 << 20
    max_sessions: int = 1000
    max_handles: int = 65536
    max_watches: int = 1 << 20
    max_leases: int = 20_000
    workers: int = 16
    hello_timeout: float = 10.0
    drain: float = 5.0
    busy_poll: float = LIMIT
    slow_operation: float = 1.0
    log_level: str = "INFO"

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.secret)


def read_config(line: bytes) -> tuple[Config, Tenants]:
    """Parse and check the configuration, with the tenants that are defined in it (none, if that is in a file).

    :class:`ConfigurationError` says what is wrong, and never the secret.
    """
    try:
        config = msgspec.json.decode(line, type=Config)
    except msgspec.MsgspecError as exc:
        raise ConfigurationError(f"configuration: {exc}") from None
    try:
        long_enough = len(config.key) >= 16
    except ValueError:
        long_enough = False
    positive = ("grace", "window", "max_sessions", "max_handles", "max_leases", "hello_timeout", "drain")
    checks = {
        "secret must be at least 16 bytes in hexadecimal": long_enough,
        "audience must not be empty": bool(config.audience),
        "state_dir must be an absolute path": config.state_dir.startswith("/"),
        "tenants_file must be an absolute path": config.tenants_file[:1] in ("", "/"),
        "audit_dir must be an absolute path": config.audit_dir[:1] in ("", "/"),
        "audit_dir and audit_key_file go together": bool(config.audit_dir) == bool(config.audit_key_file),
        "either tenants or tenants_file must be given": bool(config.tenants) != bool(config.tenants_file),
        "workers must be from 2 to 256": 2 <= config.workers <= 256,
        "log_level must be DEBUG, INFO, WARNING or ERROR": config.log_level
        in ("DEBUG", "INFO", "WARNING", "ERROR"),
        f"window_bytes must be at least {codec.DEFAULT_MAX_PAYLOAD}": config.window_bytes
        >= codec.DEFAULT_MAX_PAYLOAD,
    }
    for name in positive:
        value = getattr(config, name)
        checks[f"{name} must be a positive number"] = value > 0 and math.isfinite(value)
    for complaint, fine in checks.items():
        if not fine:
            raise ConfigurationError(complaint)
    return config, Tenants([]) if config.tenants_file else Tenants.from_config(config.tenants)

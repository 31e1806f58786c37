"""The audit logs of all tenants of an engine: one folder, one key."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .audit import TenantAudit
from .auditkeys import Signer, load_key
from .hooks import Audit, NullAudit
from .tenants import AuditOptions

_LOG = logging.getLogger(__name__)

#: Told, in any thread, that the audit of a tenant fails, works again, or has lost something: tenant, state.
OnState = Callable[[str, dict[str, Any]], None]


class UnavailableAudit(NullAudit):
    """There is no log, because there is no key to sign it with or no folder to keep it in."""

    def __init__(self, options: AuditOptions, error: str) -> None:
        self._error = error
        self.reconfigure(options)

    def barrier(self) -> bool:
        return False

    def reconfigure(self, options: AuditOptions) -> None:
        self._options = options
        self.refusing = options.on_failure == "refuse"

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "record": self._options.record,
            "state": "failing",
            "error": self._error,
            "refusing": self.refusing,
        }


class AuditStore:
    """*directory* has a folder for each tenant; *key_file* the key that all logs are signed with, read at once."""

    def __init__(self, directory: str, key_file: str) -> None:
        self._directory = Path(directory)
        self._key: Signer | None = None
        self._error = ""
        #: Told, in any thread, that the audit of a tenant fails, works again, or has lost something.
        self.on_state: OnState = lambda tenant, state: None
        try:
            self._key = load_key(Path(key_file), self._directory)
        except (OSError, ValueError) as exc:
            self._error = str(exc)
            _LOG.error("nothing can be recorded: %s", exc)

    def open(self, tenant: str, options: AuditOptions) -> Audit:
        """The audit of *tenant*. Where it cannot be, what is returned says so, and acts by the policy."""
        if self._key is not None:
            return TenantAudit(
                tenant,
                options,
                self._directory,
                self._key,
                on_state=lambda state: self.on_state(tenant, state),
            )
        if options.record == "off":
            return NullAudit()
        unavailable = UnavailableAudit(options, self._error)
        self.on_state(tenant, unavailable.state())
        return unavailable

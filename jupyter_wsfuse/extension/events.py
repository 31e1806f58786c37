"""What happens, told through Jupyter's own event system to whoever listens there. The schemas are in ``schemas/``.

Mounts, bursts of denials, tokens, trouble: things of which there are few. Emitting takes about 100 us.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from jupyter_events import EventLogger

SCHEMAS: Final = Path(__file__).parent / "schemas"
_WHO: Final = ("tenant", "principal", "session", "client", "address", "token")
#: What the engine tells -> our schema, and the fields of it that are passed on.
_OF_ENGINE: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "session": ("mount", ("state", *_WHO)),
    "denials": ("denials", (*_WHO, "count", "rule", "path")),
    "audit": ("audit", ("tenant", "state", "error")),
}


def schema_id(name: str) -> str:
    return f"urn:jupyter-wsfuse:{name}:v1"


class Events:
    """Registers the schemas with *logger* and emits. *paths*: whether events may name paths of files."""

    def __init__(
        self, logger: EventLogger, log: logging.Logger | logging.LoggerAdapter[Any], *, paths: bool
    ) -> None:
        self._logger = logger
        self._log = log
        self._paths = paths
        for schema in sorted(SCHEMAS.glob("*.yaml")):
            logger.register_event_schema(schema)

    def token(self, action: str, id: str, principal: str, tenant: str, address: str | None) -> None:
        """A scoped token was ``created``, ``used`` or ``revoked``."""
        self._emit(
            "token",
            {
                "action": action,
                "token": id,
                "principal": principal,
                "tenant": tenant,
                "address": address or "",
            },
        )

    def of_engine(self, event: dict[str, Any]) -> None:
        """What the engine said by itself."""
        kind = event.get("event")
        if kind == "dropped":
            self._log.warning("the file engine had more to say than was read; %s events", event.get("count"))
        elif kind in _OF_ENGINE:
            name, fields = _OF_ENGINE[kind]
            data = {field: event[field] for field in fields if event.get(field) is not None}
            if not self._paths:
                data.pop("path", None)
            self._emit(name, data)
        else:
            self._log.debug("an event of the file engine that is not known: %s", kind)

    def _emit(self, name: str, data: dict[str, Any]) -> None:
        try:
            self._logger.emit(schema_id=schema_id(name), data=data)
        except Exception as exc:  # whoever listens, and whatever was said: nothing else depends on it
            self._log.warning("an event %s could not be emitted: %s", name, exc)

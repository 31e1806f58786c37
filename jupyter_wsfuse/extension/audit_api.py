"""The audit log over HTTP, for ``wsfuse audit`` and the panel.

=========================  ==============================================================================
``GET api/audit``          entries, newest first, a line of JSON each; the parameters are the fields of
                           :class:`~jupyter_wsfuse.auditlog.Filter`. The last line is ``{"end": true}``, or
                           ``{"error": text}`` if reading failed on the way
``GET api/audit/verify``   what is proven of every stream: ``tenant``, and ``expect`` any number of times
=========================  ==============================================================================

Both need ``read`` on ``wsfuse``; where the server knows its users by name, so that the log is about other people as
well, ``execute`` and ``write``. Scoped tokens are not admitted. The log is read in threads.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from jupyter_server.base.handlers import APIHandler, JupyterHandler
from tornado import web
from tornado.iostream import StreamClosedError

from jupyter_wsfuse.auditlog import Filter, query, verify
from jupyter_wsfuse.extension.base import WsFuseHandler

#: Entries that are answered where no limit is named.
DEFAULT_LIMIT: Final = "1000"
#: Entries read at a time, in one thread's turn.
_BATCH: Final = 256
#: Questions that are worked on at a time; further ones wait.
SLOTS: Final = 4


class _Handler(WsFuseHandler, APIHandler):
    _track_activity = False

    async def allowed(self) -> bool:
        """Whether the user may read the log; otherwise the request is answered. Raises HTTP 403, too."""
        if "write" in await self.rights() or not self.principal:
            return True
        self.refuse(403, "the log is about all users here: reading it takes execute and write on wsfuse")
        return False

    def slot(self) -> asyncio.Semaphore:
        return self.settings.setdefault("wsfuse_audit_slots", asyncio.Semaphore(SLOTS))

    @property
    def directory(self) -> Path:
        return Path(self.wsfuse.audit_dir)


class AuditHandler(_Handler):
    @web.authenticated
    async def get(self) -> None:
        if not await self.allowed():
            return
        given = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        given.pop("no_track_activity", None)
        try:
            wanted = Filter.parse({"limit": DEFAULT_LIMIT, **given}, time.time())
        except ValueError as exc:
            self.refuse(400, str(exc))
            return
        self.set_header("Content-Type", "application/x-ndjson")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Accel-Buffering", "no")
        async with self.slot():
            try:
                await self._stream(query(self.directory, wanted))
            except FileNotFoundError:
                pass  # nothing was ever recorded
            except StreamClosedError:
                return
            except OSError as exc:
                self.log.error("the audit log cannot be read: %s", exc)
                self.write(json.dumps({"error": f"the server cannot read the log: {exc.strerror}"}) + "\n")
                self.finish(set_content_type="application/x-ndjson")
                return
        self.write('{"end": true}\n')
        self.finish(set_content_type="application/x-ndjson")

    async def _stream(self, entries: Iterator[dict[str, Any]]) -> None:
        while lines := await asyncio.to_thread(_lines, entries):
            self.write(lines)
            await self.flush()


def _lines(entries: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in itertools.islice(entries, _BATCH))


class VerifyHandler(_Handler):
    @web.authenticated
    async def get(self) -> None:
        if not await self.allowed():
            return
        expected = set(self.get_query_arguments("expect"))
        tenant = self.get_query_argument("tenant", "") or None
        self.set_header("Cache-Control", "no-store")
        async with self.slot():
            try:
                proofs = await asyncio.to_thread(
                    lambda: [
                        proof.as_dict() for proof in verify(self.directory, tenant=tenant, expected=expected)
                    ]
                )
            except FileNotFoundError:
                proofs = []
            except (OSError, ValueError) as exc:
                self.log.error("the audit log cannot be verified: %s", exc)
                self.refuse(500, f"the server cannot read the log: {exc}")
                return
        self.finish(json.dumps({"proofs": proofs}))


HANDLERS: Final[list[tuple[str, type[JupyterHandler]]]] = [
    (r"/wsfuse/api/audit/?", AuditHandler),
    (r"/wsfuse/api/audit/verify/?", VerifyHandler),
]
